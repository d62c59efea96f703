//! `ionet-lab fuzz`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ionet_lab::{Result, fuzz};

/// What is attacked.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Everything that a member of an overlay, or a relay, parses: handshakes, sealed packets, control messages, frames.
    Overlay(Overlay),
}

#[derive(Args)]
pub(crate) struct Overlay {
    /// For how long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Decides the inputs; another one at each run by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Where an input that breaks something is written.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Try the input of this file again instead.
    #[arg(long)]
    again: Option<PathBuf>,
}

/// Runs it; whether nothing broke.
pub(crate) fn run(command: Command) -> Result<bool> {
    let Command::Overlay(Overlay { seconds, seed, dir, again }) = command;
    if let Some(file) = again {
        fuzz::again(&file)?;
        println!("{} breaks nothing", file.display());
        return Ok(true);
    }
    let seed = seed.unwrap_or_else(|| std::process::id().into());
    let outcome = fuzz::overlay(&fuzz::Options { seconds, seed, dir })?;
    let all: u64 = outcome.tried.values().sum();
    println!("seed {seed}: {all} inputs in {seconds} s, {} packets let through", outcome.let_through);
    for (through, count) in &outcome.tried {
        println!("  {count:>9} {}", through.name());
    }
    if let Some((file, what)) = &outcome.found {
        println!("broken: {what}\nsee it again: ionet-lab fuzz overlay --again {}", file.display());
    }
    Ok(outcome.found.is_none())
}
