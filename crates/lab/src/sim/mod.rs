//! The whole cloud in one thread under one seed: the real core of the server, real agents and supervisors, over
//! links, boxes, a disk and a chain in memory, with scripted people and faults between any two acts.
//!
//! Always holds: the same plan gives the same run, to the act; there is no clock but the virtual one. What must hold
//! of the cloud itself is in [`check`]. Not here: sockets, processes, HTTP.

mod acts;
pub mod check;
mod device;
mod disk;
mod faults;
pub(crate) mod fold;
mod people;
mod plan;
mod server;
mod supervisor;
mod trace;
mod world;

pub use plan::{Crash, Plan, Planted};

use crate::{LabError, Result};
use trace::Trace;
use world::World;

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Its seed.
    pub seed: u64,
    /// Acts of all parts.
    pub acts: u64,
    /// Acts of the server that something could come between.
    pub server_acts: u64,
    /// Acts of agents.
    pub agent_acts: u64,
    /// Virtual time, in milliseconds.
    pub virtual_ms: u64,
    /// Faults injected.
    pub faults: u64,
    /// Orders accepted, in all timelines.
    pub orders: u64,
    /// Operations of the server's disk that changed something.
    pub disk_operations: u64,
    /// Records in the journal at the end.
    pub records: u64,
}

/// Runs a plan to its end; what was broken, if anything.
pub fn run(plan: &Plan) -> Result<Summary> {
    World::new(plan, Trace::silent())?.run()
}

/// Runs a plan and prints every act.
pub fn replay(plan: &Plan) -> Result<Summary> {
    World::new(plan, Trace::printing())?.run()
}

/// Runs a plan again that broke and gives the last acts before it did.
pub fn explain(plan: &Plan) -> String {
    let outcome = World::new(plan, Trace::remembering(40)).and_then(|mut world| {
        let outcome = world.run();
        outcome.map_err(|error| LabError::Broken(format!("{}\n{error}", world.trace.text())))
    });
    outcome.map_or_else(|error| error.to_string(), |_| "it did not break again".into())
}
