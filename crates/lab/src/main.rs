//! `ionet-lab`: simulations under a seed, benchmarks, golden journals. Not shipped.

mod testbed_commands;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ionet_lab::bench::load::Kind;
use ionet_lab::bench::{self, Report, engine};
use ionet_lab::sim::{self, Plan};
use ionet_lab::{LabError, Result, golden};
use testbed_commands::beside;

#[derive(Parser)]
#[command(name = "ionet-lab", about = "The cloud under one seed, its benchmarks and its golden journals")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole cloud under many seeds; prints the seed and the last acts of what breaks.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 50)]
        seeds: u64,
        /// The first one.
        #[arg(long, default_value_t = 0)]
        first: u64,
    },
    /// Run one seed and print every act.
    Replay {
        /// Which.
        seed: u64,
    },
    /// Measure the real parts on a real disk.
    #[command(subcommand)]
    Bench(Bench),
    #[command(flatten)]
    Testbed(testbed_commands::Command),
    /// Write this release's golden journal into an empty folder; never over an old one.
    Golden {
        /// The folder.
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Durable transfers a second through decide, apply and journal, and how far the index trails.
    Engine {
        /// What the commands are.
        #[arg(long, value_enum, default_value = "send")]
        load: Kind,
        /// Transfers in all.
        #[arg(long, default_value_t = 1_000_000)]
        transfers: usize,
        /// Clients, each with one command at a time.
        #[arg(long, default_value_t = 500)]
        clients: usize,
        #[command(flatten)]
        show: Show,
    },
    /// Resident memory of server, agent and supervisor of the real binary.
    Memory {
        /// The binary; the one beside this by default.
        #[arg(long)]
        binary: Option<PathBuf>,
        #[command(flatten)]
        show: Show,
    },
    /// From order to work: a Ray cluster through ionet, and in turn one started by hand with `ray start`.
    Ray {
        /// How many of each.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// The binary; the one beside this by default.
        #[arg(long)]
        binary: Option<PathBuf>,
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
        Command::Sim { seeds, first } => Ok(simulate(first, seeds)),
        Command::Replay { seed } => sim::replay(&Plan::random(seed)).map(|_| true),
        Command::Bench(bench) => run_bench(bench),
        Command::Testbed(command) => testbed_commands::run(command),
        Command::Golden { dir } => {
            let empty = std::fs::read_dir(&dir).map_or(true, |mut files| files.next().is_none());
            if !empty {
                return Err(LabError::Broken(format!("{} is not empty; name a new folder", dir.display())));
            }
            golden::write(&dir).map(|()| true)
        }
    }
}

/// Stops at the first seed that breaks.
#[expect(clippy::cast_precision_loss, reason = "counts become figures for people")]
fn simulate(first: u64, seeds: u64) -> bool {
    let begun = std::time::Instant::now();
    let (mut acts, mut virtual_ms, mut orders, mut faults) = (0, 0, 0, 0);
    for seed in first..first.saturating_add(seeds) {
        let plan = Plan::random(seed);
        let Ok(summary) = sim::run(&plan) else {
            println!("{}\nagain, act by act: ionet-lab replay {seed}", sim::explain(&plan));
            return false;
        };
        acts += summary.acts;
        virtual_ms += summary.virtual_ms;
        orders += summary.orders;
        faults += summary.faults;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (hours, acts_each_s) = (virtual_ms as f64 / 3_600_000.0, acts as f64 / seconds);
    println!("{seeds} seeds from {first}: nothing broke; {orders} orders, {faults} faults");
    println!(
        "{acts} acts in {seconds:.1} s ({acts_each_s:.0} a second), {hours:.1} virtual hours ({:.2} a second)",
        hours / seconds
    );
    true
}

fn run_bench(bench: Bench) -> Result<bool> {
    match bench {
        Bench::Engine { load, transfers, clients, show } => {
            let size = engine::Size { kind: load, transfers, clients: clients.max(1) };
            shown(&show, |dir| engine::run(dir, size))
        }
        Bench::Memory { binary, show } => {
            let binary = binary.map_or_else(beside, Ok)?;
            shown(&show, |dir| bench::memory::run(dir, &binary))
        }
        Bench::Ray { rounds, binary, show } => {
            let binary = binary.map_or_else(beside, Ok)?;
            shown(&show, |dir| bench::ray::run(dir, &binary, rounds))
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
