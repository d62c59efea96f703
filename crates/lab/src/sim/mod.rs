//! The whole cloud in one thread under one seed: the real core of the server, real agents and supervisors, over
//! links, boxes, a disk and a chain in memory, with scripted people and faults between any two acts.
//!
//! Always holds: the same plan gives the same run, to the act; there is no clock but the virtual one. What must hold
//! of the cloud itself is named in [`Promise`] and watched in `check`. Not here: sockets, processes, HTTP.

mod check;
mod course;
mod device;
mod device_acts;
mod disk;
mod faults;
pub(crate) mod fold;
mod machine;
mod mistakes;
mod plan;
mod planted;
mod promise;
mod questions;
mod renters;
mod scenario;
mod server;
mod server_acts;
mod shrink;
mod spoil;
mod supervisor;
mod suppliers;
mod trace;
mod turns;
mod world;

pub use faults::Injected;
pub use plan::{Crash, FaultKind, Load, Pace, Plan};
pub use planted::Planted;
pub use promise::Promise;
pub use scenario::Scenario;
pub use shrink::{Shrunk, shrink};

use crate::{LabError, Result};
use trace::Trace;
use world::World;

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

/// A run with all that is known of it, whether it broke something or not.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What it came to.
    pub summary: Summary,
    /// The faults in it.
    pub injected: Vec<Injected>,
    /// What it broke, and how.
    pub broken: Option<(Promise, String)>,
    /// The last acts, if they were kept.
    pub trace: String,
}

/// Runs a plan to its end; what was broken, if anything.
pub fn run(plan: &Plan) -> Result<Summary> {
    World::new(plan, Trace::silent())?.run()
}

/// Runs a plan and prints every act.
pub fn replay(plan: &Plan) -> Result<Summary> {
    World::new(plan, Trace::printing())?.run()
}

/// Runs a plan and tells all that is known of it.
pub fn attempt(plan: &Plan) -> Outcome {
    outcome(plan, Trace::silent())
}

/// The same, with its last acts.
pub fn explain(plan: &Plan, acts: usize) -> Outcome {
    outcome(plan, Trace::remembering(acts))
}

fn outcome(plan: &Plan, trace: Trace) -> Outcome {
    let broken = |error| match error {
        LabError::Promise { promise, what } => (promise, what),
        other => (Promise::JournalFolds, other.to_string()),
    };
    match World::new(plan, trace) {
        Ok(mut world) => {
            let ended = world.run().err().map(broken);
            let World { summary, injected, trace, .. } = world;
            Outcome { summary, injected, broken: ended, trace: trace.text() }
        }
        Err(error) => Outcome {
            summary: Summary::default(),
            injected: Vec::new(),
            broken: Some(broken(error)),
            trace: String::new(),
        },
    }
}
