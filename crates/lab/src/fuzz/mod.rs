//! Inputs that no honest member sends: everything that the overlay and its relay parse, made by rules of their own
//! formats and then spoilt.
//!
//! What must hold for each: nothing panics, nothing hangs, memory stays bounded, and what comes out of the overlay's
//! TUN is a whole IP packet from the member that sealed it to us. A run follows from its seed, as far as threads and
//! sockets let it; an input that breaks something is written to a file and can be tried again.

mod inputs;
mod pure;
mod subject;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{LabError, Result, random::Random};
pub use inputs::{Input, Through};
use pure::Pure;
use subject::Subject;

/// Inputs between two looks at what they did.
const BATCH: usize = 32;
/// A subject is made anew after so many batches, so that sessions and memory start over.
const BATCHES_PER_SUBJECT: u64 = 400;
/// How much more memory a run may hold at its end than after its first batches.
const MOST_GROWTH_BYTES: u64 = 96 << 20;
/// An input that needs longer is one that stops a member.
const MOST_TIME: Duration = Duration::from_millis(250);

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long.
    pub seconds: u64,
    /// Decides the inputs.
    pub seed: u64,
    /// Where an input that breaks something is written.
    pub dir: PathBuf,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Inputs tried, by what they went through.
    pub tried: BTreeMap<Through, u64>,
    /// Packets that came out of the TUN, which were allowed to.
    pub let_through: u64,
    /// What broke: the file of the input, and how.
    pub found: Option<(PathBuf, String)>,
}

/// Tries inputs until the time is over or one breaks something.
///
/// # Errors
/// If a subject cannot be made or a file not written.
pub fn overlay(options: &Options) -> Result<Outcome> {
    let panics = subject::Panics::watch();
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let (mut outcome, mut random) = (Outcome::default(), Random::new(options.seed));
    let mut first_bytes = None;
    while Instant::now() < end {
        let mut subject = Subject::new(random.bits())?;
        let mut pure = Pure::new(random.bits())?;
        for _ in 0..BATCHES_PER_SUBJECT {
            if Instant::now() >= end {
                break;
            }
            let batch: Vec<Input> = (0..BATCH).map(|_| inputs::make(&mut random)).collect();
            for input in &batch {
                *outcome.tried.entry(input.through).or_default() += 1;
            }
            if let Err(what) = attempt(&mut subject, &mut pure, &panics, &batch, &mut outcome) {
                outcome.found = Some(written(options, &panics, &batch, what)?);
                return Ok(outcome);
            }
        }
        let bytes = resident_bytes();
        let grown = bytes.saturating_sub(*first_bytes.get_or_insert(bytes));
        if grown > MOST_GROWTH_BYTES {
            return Err(LabError::Broken(format!(
                "memory has grown by {grown} bytes, seed {}",
                options.seed
            )));
        }
    }
    Ok(outcome)
}

/// Tries the input of a file again.
///
/// # Errors
/// What it breaks, or that the file is none.
pub fn again(file: &Path) -> Result<()> {
    let panics = subject::Panics::watch();
    let input = Input::read(file)?;
    let (mut subject, mut pure) = (Subject::new(1)?, Pure::new(1)?);
    let batch = [input];
    attempt(&mut subject, &mut pure, &panics, &batch, &mut Outcome::default()).map_err(LabError::Broken)
}

fn attempt(
    subject: &mut Subject,
    pure: &mut Pure,
    panics: &subject::Panics,
    batch: &[Input],
    outcome: &mut Outcome,
) -> Result<(), String> {
    let begun = Instant::now();
    for input in batch {
        if input.through.is_pure() {
            pure.take(input)?;
        } else {
            subject.take(input);
        }
    }
    outcome.let_through += subject.settle()?;
    panics.none()?;
    let most = MOST_TIME * u32::try_from(batch.len() + 4).unwrap_or(1);
    if begun.elapsed() > most {
        return Err(format!("{} inputs took {:?}", batch.len(), begun.elapsed()));
    }
    Ok(())
}

/// Finds the input of a batch that did it, if one did it alone, and writes it down.
fn written(
    options: &Options,
    panics: &subject::Panics,
    batch: &[Input],
    what: String,
) -> Result<(PathBuf, String)> {
    let breaks = |input: &&Input| {
        panics.forget();
        let (Ok(mut subject), Ok(mut pure)) = (Subject::new(1), Pure::new(1)) else { return false };
        let alone = std::slice::from_ref(*input);
        attempt(&mut subject, &mut pure, panics, alone, &mut Outcome::default()).is_err()
    };
    let culprit = batch.iter().find(breaks);
    let all = batch.iter();
    std::fs::create_dir_all(&options.dir).map_err(LabError::io("make the folder for what was found"))?;
    let file = options.dir.join(format!("overlay-{}.txt", options.seed));
    let lines: Vec<String> = culprit.map_or_else(|| all.map(Input::line).collect(), |one| vec![one.line()]);
    std::fs::write(&file, lines.join("\n") + "\n")
        .map_err(LabError::io(format!("write {}", file.display())))?;
    Ok((file, what))
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
