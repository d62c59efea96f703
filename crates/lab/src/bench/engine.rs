//! Durable transfers a second: decide, apply and append with one sync a batch, while the subject index follows.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ionet_journal::{FileDisk, Index, Reader, Scope};

use super::load::{self, Kind, Load};
use super::plot::{Plot, Series};
use super::{Figure, Report, Target, ms, percentile, sorted};
use crate::{LabError, Result};

/// A bare sync is measured beside every so many batches.
const BARE_EVERY: usize = 8;

/// How much to do.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// What the commands are.
    pub kind: Kind,
    /// Transfers in all.
    pub transfers: usize,
    /// Transfers that share a sync.
    pub batch: usize,
}

/// What the run took, in milliseconds.
#[derive(Default)]
struct Times {
    batches: Vec<f64>,
    bare: Vec<f64>,
    decided: Vec<f64>,
    /// On a processor, all batches together.
    cpu: f64,
}

/// Runs in `dir`, which should be on the disk that matters.
pub fn run(dir: &Path, size: Size) -> Result<Report> {
    let journal_dir = dir.join("journal");
    let disk = FileDisk::open(&journal_dir).map_err(LabError::journal("open the disk"))?;
    let mut engine = load::open(disk.clone())?;
    let mut bare = Bare::open(&dir.join("bare"))?;
    let mut load = Load::begin(size.kind, &mut engine)?;
    let follower = Follower::start(disk, &dir.join("index.sqlite"), engine.head().seq)?;
    let mut times = Times::default();
    for n in 0..size.transfers.div_ceil(size.batch) {
        if n % BARE_EVERY == 0 {
            times.bare.push(bare.sync(size.batch * BYTES_A_TRANSFER)?);
        }
        let each = (size.batch / size.kind.transfers()).max(1);
        let commands: Vec<_> = (0..each).map(|_| load.command()).collect();
        let (begun, cpu_ms) = (Instant::now(), thread_cpu_ms());
        for (command, now_ms) in &commands {
            engine.submit(command, *now_ms).map_err(LabError::server("submit"))?;
        }
        times.decided.push(ms(begun.elapsed()));
        engine.commit().map_err(LabError::server("commit"))?;
        times.batches.push(ms(begun.elapsed()));
        times.cpu += thread_cpu_ms() - cpu_ms;
        follower.told(engine.head().seq);
    }
    let lags = follower.finish()?;
    engine.view().read().state.audit().map_err(LabError::Broken)?;
    Ok(report(size, times, lags))
}

/// About what one transfer takes in the public file.
const BYTES_A_TRANSFER: usize = 480;

fn report(size: Size, times: Times, lags: Vec<f64>) -> Report {
    let total_ms: f64 = times.batches.iter().sum();
    let transfers = times.batches.len() * size.batch;
    let plot = plot(&times);
    let decided_ms: f64 = times.decided.iter().sum();
    let (batches, bare, lags) = (sorted(times.batches), sorted(times.bare), sorted(lags));
    let (bare_p50, p99) = (percentile(&bare, 50), percentile(&batches, 99));
    let count = transfers as f64;
    let figures = vec![
        Figure::new("transfers_per_second", count / total_ms * 1000.0, "1/s")
            .target(Target::AtLeast(100_000.0)),
        Figure::new("batch_p50", percentile(&batches, 50), "ms"),
        Figure::new("batch_p99", p99, "ms"),
        Figure::new("bare_sync_p50", bare_p50, "ms"),
        Figure::new("bare_sync_p99", percentile(&bare, 99), "ms"),
        Figure::new("batch_p50_in_syncs", percentile(&batches, 50) / bare_p50, "syncs"),
        Figure::new("batch_p99_in_syncs", p99 / bare_p50, "syncs").target(Target::Below(3.0)),
        Figure::new("decide_and_apply", decided_ms / count * 1000.0, "us each"),
        Figure::new("writer_cpu", times.cpu / count * 1000.0, "us each"),
        Figure::new("index_lag_p50", percentile(&lags, 50), "ms"),
        Figure::new("index_lag_max", lags.last().copied().unwrap_or_default(), "ms")
            .target(Target::Below(1000.0)),
    ];
    let (kind, batch) = (size.kind, size.batch);
    let what = format!("{transfers} transfers ({kind:?} commands), {batch} a batch, one sync a batch");
    Report { bench: "engine", what, figures, plot }
}

fn plot(times: &Times) -> Plot {
    let points = |values: &[f64], every: usize| -> Vec<(f64, f64)> {
        values.iter().enumerate().map(|(n, value)| ((n * every) as f64, *value)).collect()
    };
    Plot {
        title: "durable batches beside bare syncs".into(),
        x_label: "batch".into(),
        y_label: "ms".into(),
        series: vec![
            Series { name: "batch: decide, apply, append, sync".into(), points: points(&times.batches, 1) },
            Series { name: "bare write and sync".into(), points: points(&times.bare, BARE_EVERY) },
        ],
    }
}

/// What this thread has had of a processor so far; other programs' share of the machine is not in it.
fn thread_cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default() / 1e6
}

/// A file that is written and synced with nothing around it.
struct Bare(File);

impl Bare {
    fn open(path: &Path) -> Result<Self> {
        File::create(path).map(Self).map_err(LabError::io("create the file for bare syncs"))
    }

    fn sync(&mut self, bytes: usize) -> Result<f64> {
        let bytes = vec![b'x'; bytes];
        let begun = Instant::now();
        self.0.write_all(&bytes).and_then(|()| self.0.sync_data()).map_err(LabError::io("sync"))?;
        Ok(ms(begun.elapsed()))
    }
}

/// The index on a thread of its own, as the server has it.
struct Follower {
    head: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    commits: Arc<Mutex<Vec<(u64, Instant)>>>,
    thread: JoinHandle<Result<Vec<f64>>>,
}

impl Follower {
    fn start(disk: FileDisk, path: &Path, head: u64) -> Result<Self> {
        let mut index = Index::open(path).map_err(LabError::journal("open the index"))?;
        let (head, done) = (Arc::new(AtomicU64::new(head)), Arc::new(AtomicBool::new(false)));
        let commits = Arc::new(Mutex::new(Vec::new()));
        let (its_head, its_done, its_commits) = (head.clone(), done.clone(), commits.clone());
        let thread = std::thread::Builder::new().name("index".into());
        let thread = thread.spawn(move || {
            let reader = Reader::new(disk, Scope::Full);
            let (mut lags, mut covered) = (Vec::new(), 0);
            loop {
                let last = its_done.load(Ordering::Acquire);
                let up_to = its_head.load(Ordering::Acquire);
                let caught_up =
                    index.catch_up(&reader, up_to).map_err(LabError::journal("index the journal"))?;
                take_lags(&its_commits, caught_up.position.seq, &mut covered, &mut lags);
                if last {
                    return Ok(lags);
                }
                if its_head.load(Ordering::Acquire) == up_to {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let thread = thread.map_err(LabError::io("start the index thread"))?;
        Ok(Self { head, done, commits, thread })
    }

    fn told(&self, seq: u64) {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).push((seq, Instant::now()));
        self.head.store(seq, Ordering::Release);
    }

    fn finish(self) -> Result<Vec<f64>> {
        self.done.store(true, Ordering::Release);
        self.thread.join().map_err(|_| LabError::Broken("the index thread panicked".into()))?
    }
}

/// How long each commit up to `seq` waited for the index.
fn take_lags(commits: &Mutex<Vec<(u64, Instant)>>, seq: u64, covered: &mut usize, lags: &mut Vec<f64>) {
    let commits = commits.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((_, at)) = commits.get(*covered).filter(|(of, _)| *of <= seq) {
        lags.push(ms(at.elapsed()));
        *covered += 1;
    }
}
