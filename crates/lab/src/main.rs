//! `ionet-lab`: simulations under a seed, benchmarks, golden journals. Not shipped.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ionet_lab::bench::{self, Report, engine};
use ionet_lab::{LabError, Result};

#[derive(Parser)]
#[command(name = "ionet-lab", about = "The cloud under one seed, its benchmarks and its golden journals")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the real parts on a real disk.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// Durable transfers a second through decide, apply and journal, and how far the index trails.
    Engine {
        /// Transfers in all.
        #[arg(long, default_value_t = 1_000_000)]
        transfers: usize,
        /// Transfers that share a sync.
        #[arg(long, default_value_t = 500)]
        batch: usize,
        #[command(flatten)]
        show: Show,
    },
    /// A start from a snapshot and the events after it.
    Start {
        /// Events after the snapshot.
        #[arg(long, default_value_t = 1_000_000)]
        events: usize,
        /// How many starts.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        #[command(flatten)]
        show: Show,
    },
}

#[derive(Args)]
struct Show {
    /// Print one line of JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Draw an SVG into this file.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Work in a temporary folder below this one, on the disk that matters.
    #[arg(long, default_value = ".")]
    below: PathBuf,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(error) => {
            eprintln!("ionet-lab: {error} [{}]", error.code());
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Bench(bench) => run_bench(bench),
    }
}

fn run_bench(bench: Bench) -> Result<bool> {
    match bench {
        Bench::Engine { transfers, batch, show } => {
            let size = engine::Size { transfers, batch: batch.max(1) };
            shown(&show, |dir| engine::run(dir, size))
        }
        Bench::Start { events, runs, show } => shown(&show, |dir| bench::start::run(dir, events, runs)),
    }
}

/// Runs a benchmark in a folder of its own and shows what it found.
fn shown(show: &Show, bench: impl FnOnce(&Path) -> Result<Report>) -> Result<bool> {
    let dir = tempfile::Builder::new().prefix("ionet-lab-").tempdir_in(&show.below);
    let dir = dir.map_err(LabError::io(format!("make a folder below {}", show.below.display())))?;
    let report = bench(dir.path())?;
    println!("{}", if show.json { report.json() } else { report.text() });
    if let Some(file) = &show.plot {
        report.draw(file)?;
    }
    Ok(true)
}
