//! Runs what a lease bought, and nothing else: the only starter of customer code.
//!
//! Always holds: customer code sees its own network namespace, files, processes and GPUs, and nothing
//! of the host or of another tenant; every part of a box dies with its holder, and the holder with the
//! process that started it; what could not be enforced is reported, never assumed.
//!
//! The agent's seam is [`sandbox::Sandbox`] with its in-memory twin [`mem::MemSandbox`]. The process of
//! one lease owns one [`lease_box::LeaseBox`]. Not here: the overlay (it only gets the TUN descriptor),
//! money and paid time, links to the server.

pub mod bwrap;
pub mod doctor;
mod door;
pub mod engine;
pub mod environment;
pub mod error;
pub mod files;
pub mod holder;
mod iface;
pub mod launch;
pub mod lease_box;
pub mod limits;
pub mod mem;
pub mod netns;
pub mod sandbox;
mod seccomp;
pub mod ssh;
pub mod wipe;
mod wire;

use std::process::ExitCode;

pub use door::Inside;
pub use error::{Error, Result};

/// Runs a hidden sub-command of a box, if `word` is one: they are this same binary, started by the worker, never by people.
pub fn hidden(word: &str, arguments: &[String]) -> Option<ExitCode> {
    Some(match word {
        "box-init" => netns::main(arguments),
        "box-launch" => launch::main(arguments),
        ssh::WORD => ssh::main(arguments),
        files::WORD => files::main(arguments),
        _ => return None,
    })
}
