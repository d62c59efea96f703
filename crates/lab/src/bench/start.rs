//! How long a start takes: the newest snapshot, then a million events after it.

use std::path::Path;
use std::time::Instant;

use ionet_domain::State;
use ionet_journal::FileDisk;
use ionet_server::engine::write_snapshot;

use super::load::{self, Kind, Load, NOW_MS};
use super::plot::{Plot, Series};
use super::{Figure, Report, Target};
use crate::{LabError, Result};

const BATCH: usize = 5000;

/// Writes a journal of `events` after a snapshot in `dir` and starts from it `runs` times.
pub fn run(dir: &Path, events: usize, runs: usize) -> Result<Report> {
    let open = || FileDisk::open(dir).map_err(LabError::journal("open the disk"));
    let written = write(&open()?, events)?;
    let mut seconds = Vec::new();
    for _ in 0..runs.max(1) {
        let begun = Instant::now();
        let (core, _) = load::open(open()?)?;
        seconds.push(begun.elapsed().as_secs_f64());
        if core.view().read().state.ledger != written.ledger {
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

fn write(disk: &FileDisk, events: usize) -> Result<State> {
    let mut server = load::open(disk.clone())?;
    let mut load = Load::begin(Kind::Send, &mut server)?;
    let (mut core, mut committer) = server;
    let engine = core.engine();
    write_snapshot(disk, &engine.snapshot()).map_err(LabError::server("write a snapshot"))?;
    for n in 1..=events {
        engine.submit(&load.command(), NOW_MS).map_err(LabError::server("send"))?;
        if n % BATCH == 0 || n == events {
            load::commit(engine, &mut committer)?;
        }
    }
    let state = engine.view().read().state.clone();
    Ok(state)
}
