//! `ionet-lab`: simulations under a seed, benchmarks, golden journals. Not shipped.

mod fuzz_commands;
mod simulate;
mod testbed_commands;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ionet_lab::bench::load::Kind;
use ionet_lab::bench::{self, Report, engine};
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
    /// Run the whole cloud under many seeds; what breaks is made small and shown with the command to see it again.
    Sim(simulate::Sim),
    /// Run one seed and print every act.
    Replay(simulate::Replay),
    /// Measure the real parts on a real disk.
    #[command(subcommand)]
    Bench(Bench),
    #[command(flatten)]
    Testbed(testbed_commands::Command),
    /// Try inputs that no honest member sends.
    #[command(subcommand)]
    Fuzz(fuzz_commands::Command),
    /// One end of a tunnel, for a benchmark.
    #[command(subcommand, hide = true)]
    Part(bench::tunnels::parts::Part),
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
        #[arg(long, default_value_t = 1000)]
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
    /// The overlay beside the bare wire, nebula and gotatun, in turn, between two network namespaces. Needs root, iperf3,
    /// ethtool and nft.
    Overlay {
        /// Turns of everybody in each condition.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// How long each stream is.
        #[arg(long, default_value_t = 2)]
        seconds: u32,
        /// Measure what privacy costs instead.
        #[arg(long)]
        private: bool,
        #[command(flatten)]
        show: Show,
    },
    /// Many members of one overlay on one switch: the first packet between two that have never spoken. Needs root.
    Mesh {
        /// How many.
        #[arg(long, default_value_t = 50)]
        members: u8,
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
    /// A Ray object of 1 GiB between two members, beside one plain TCP stream over the same overlay.
    Object {
        /// How many of each.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// The binary; the one beside this by default.
        #[arg(long)]
        binary: Option<PathBuf>,
        #[command(flatten)]
        show: Show,
    },
    /// The experiment of "Beware of Fragmentation" (USENIX ATC'23) on its published traces: six policies as a check, then
    /// the product's own placement.
    Fgd {
        /// The folder with the nodes, the traces (.csv or .csv.gz) and the published table.
        #[arg(long)]
        data: PathBuf,
        /// This trace alone.
        #[arg(long)]
        trace: Option<PathBuf>,
        /// How many seeds, from 42 on.
        #[arg(long, default_value_t = 10)]
        seeds: u64,
        /// Leave the six published policies out.
        #[arg(long)]
        only_product: bool,
        #[command(flatten)]
        show: Show,
    },
    /// How fast placement is, and whether it is what a look at every device gives.
    Place {
        /// Numbers of devices.
        #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
        devices: Vec<usize>,
        /// Orders for each.
        #[arg(long, default_value_t = 100_000)]
        orders: usize,
        /// Orders that are also placed by a look at every device.
        #[arg(long, default_value_t = 1000)]
        checks: usize,
        #[command(flatten)]
        show: Show,
    },
    /// How long the market takes to answer: a quote, why not, and the prices of all hardware.
    Market {
        /// Numbers of devices.
        #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
        devices: Vec<usize>,
        /// Quotes for each.
        #[arg(long, default_value_t = 20_000)]
        quotes: usize,
        /// Explanations of each of five kinds.
        #[arg(long, default_value_t = 10)]
        explanations: usize,
        #[command(flatten)]
        show: Show,
    },
    /// A month of renters and suppliers under the market's price, a fixed price and the bare ask.
    Month {
        /// How many days.
        #[arg(long, default_value_t = 30)]
        days: u64,
        /// The seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        show: Show,
    },
    /// Tunnels beside rathole, bore and ssh, in turn, on the loopback.
    Tunnels {
        /// Turns of everybody.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// How long each measurement is.
        #[arg(long, default_value_t = 2)]
        seconds: u64,
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
        Command::Sim(sim) => Ok(simulate::sim(&sim)),
        Command::Replay(replay) => simulate::replay(&replay),
        Command::Bench(bench) => run_bench(bench),
        Command::Testbed(command) => testbed_commands::run(command),
        Command::Fuzz(command) => fuzz_commands::run(command),
        Command::Part(part) => bench::tunnels::parts::run(part).map(|()| true),
        Command::Golden { dir } => {
            let empty = std::fs::read_dir(&dir).map_or(true, |mut files| files.next().is_none());
            if !empty {
                return Err(LabError::Broken(format!("{} is not empty; name a new folder", dir.display())));
            }
            golden::write(&dir).map(|()| true)
        }
    }
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
        Bench::Overlay { rounds, seconds, private, show } => {
            let size = bench::overlay::Size { rounds, seconds: seconds.max(1), private };
            shown(&show, |dir| bench::overlay::run(dir, size))
        }
        Bench::Mesh { members, show } => shown(&show, |dir| bench::overlay::mesh::run(dir, members)),
        Bench::Object { rounds, binary, show } => {
            let binary = binary.map_or_else(beside, Ok)?;
            shown(&show, |dir| bench::object::run(dir, &binary, rounds))
        }
        Bench::Fgd { data, trace, seeds, only_product, show } => {
            let size = bench::fgd::Size { data, trace, seeds, only_product };
            shown(&show, |_| bench::fgd::run(&size))
        }
        Bench::Place { devices, orders, checks, show } => {
            let size = bench::place::Size { devices, orders, checks };
            shown(&show, |_| bench::place::run(&size))
        }
        Bench::Market { devices, quotes, explanations, show } => {
            let size = bench::answers::Size { devices, quotes, explanations };
            shown(&show, |_| bench::answers::run(&size))
        }
        Bench::Month { days, seed, show } => {
            let size = bench::month::Size { days, seed };
            shown(&show, |_| bench::month::run(size))
        }
        Bench::Tunnels { rounds, seconds, show } => {
            let size = bench::tunnels::Size { rounds, seconds };
            shown(&show, |dir| bench::tunnels::run(dir, size))
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
