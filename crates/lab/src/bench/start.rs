//! How long a start takes: the newest snapshot, then a million events after it.

use std::path::Path;
use std::time::Instant;

use ionet_domain::{Event, State};
use ionet_journal::{FileDisk, Journal, Options, PrivatePart};

use super::load::{Load, NOW_MS};
use super::pipe::Pipe;
use super::plot::{Plot, Series};
use super::{Figure, Report, Target};
use crate::{LabError, Result};

const BATCH: usize = 5000;

/// Writes a journal of `events` after a snapshot in `dir` and starts from it `runs` times.
pub fn run(dir: &Path, events: usize, runs: usize) -> Result<Report> {
    let open = || FileDisk::open(dir).map_err(LabError::journal("open the disk"));
    let written = write(open()?, events)?;
    let mut seconds = Vec::new();
    for _ in 0..runs.max(1) {
        let begun = Instant::now();
        let state = start(open()?)?;
        seconds.push(begun.elapsed().as_secs_f64());
        if state != written {
            return Err(LabError::Broken("the state after the start is not the one before".into()));
        }
    }
    let points = seconds.iter().enumerate().map(|(n, s)| (n as f64, *s)).collect();
    let seconds = super::sorted(seconds);
    let median = super::percentile(&seconds, 50);
    let figures = vec![
        Figure::new("start_median", median, "s").target(Target::Below(5.0)),
        Figure::new("start_max", seconds.last().copied().unwrap_or_default(), "s"),
        Figure::new("events_per_second", events as f64 / median, "1/s"),
    ];
    let plot = Plot {
        title: "start from a snapshot and the events after it".into(),
        x_label: "run".into(),
        y_label: "s".into(),
        series: vec![Series { name: "start".into(), points }],
    };
    let what = format!("a snapshot and {events} events, {runs} starts");
    Ok(Report { bench: "start", what, figures, plot })
}

fn write(disk: FileDisk, events: usize) -> Result<State> {
    let mut pipe = Pipe::open(disk)?;
    for command in Load::founding() {
        pipe.submit(&command, NOW_MS)?;
    }
    pipe.commit()?;
    pipe.snapshot()?;
    let mut load = Load::new(2);
    for n in 1..=events {
        pipe.submit(&load.send(), NOW_MS)?;
        if n % BATCH == 0 || n == events {
            pipe.commit()?;
        }
    }
    Ok(pipe.state)
}

/// What the server does before it may answer.
fn start(disk: FileDisk) -> Result<State> {
    let options = Options { check_from_snapshot: true, ..Options::default() };
    let (journal, _) = Journal::open(disk, options).map_err(LabError::journal("open the journal"))?;
    let found = journal.latest_snapshot().map_err(LabError::journal("read the snapshot"))?;
    let snapshot =
        found.snapshot.ok_or_else(|| LabError::Broken("there is no snapshot to start from".into()))?;
    let mut state: State =
        serde_json::from_slice(&snapshot.body).map_err(|e| LabError::Broken(e.to_string()))?;
    let records = journal.read_from(snapshot.at.seq + 1).map_err(LabError::journal("read the journal"))?;
    for record in records {
        let record = record.map_err(LabError::journal("read the journal"))?;
        let private = match &record.private {
            PrivatePart::Present(private) => Some(private.body.as_slice()),
            _ => None,
        };
        let event = Event::read(record.at_ms, &record.public, private)
            .map_err(|e| LabError::Broken(e.to_string()))?;
        state.apply(&event).map_err(|e| LabError::Broken(e.to_string()))?;
    }
    Ok(state)
}
