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
pub mod engine;
pub mod environment;
pub mod error;
pub mod holder;
mod iface;
pub mod launch;
pub mod lease_box;
pub mod limits;
pub mod mem;
pub mod netns;
pub mod sandbox;
mod seccomp;
pub mod wipe;
mod wire;

pub use error::{Error, Result};
