//! What runs in a box: each engine turns its request into a program with variables, and the program's
//! progress into the box's phase.
//!
//! Always holds: an engine starts nothing itself and never blocks; it is asked what to start and told
//! what was seen. Not here: processes, files, namespaces.

pub mod command;
pub mod ray;

use crate::sandbox::{Phase, Timeline};

/// What to start in the box.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    /// Files that the program needs, by their place in the box.
    pub(crate) files: Vec<(&'static str, &'static str)>,
    /// Whether standard output carries progress lines rather than the renter's output.
    pub(crate) reports_progress: bool,
}

/// What an engine makes of the program's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) timeline: Timeline,
}

/// The state machine of one running engine.
#[derive(Debug)]
pub(crate) enum Running {
    Command(command::CommandRun),
    Ray(ray::RayRun),
}

impl Running {
    /// A line of progress, `now_ms` after the box was started.
    pub(crate) fn line(&mut self, line: &str, now_ms: u64) {
        if let Running::Ray(run) = self {
            run.line(line, now_ms);
        }
    }

    /// The program ended.
    pub(crate) fn exited(&mut self, code: i32) {
        match self {
            Running::Command(run) => run.exited(code),
            Running::Ray(run) => run.exited(code),
        }
    }

    /// Phase and parts so far.
    pub(crate) fn state(&self) -> State {
        match self {
            Running::Command(run) => run.state(),
            Running::Ray(run) => run.state(),
        }
    }
}
