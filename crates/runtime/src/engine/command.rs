//! The command engine: the given program, once, in each member's box.
//!
//! Always holds: ready means started; the box's exit code is the program's.

use super::{Program, State};
use crate::sandbox::{Phase, Timeline};

/// A running program.
#[derive(Debug)]
pub(crate) struct CommandRun {
    phase: Phase,
    timeline: Timeline,
}

/// The program line with the renter's variables after the box's own.
pub(crate) fn program(argv: &[String], env: &[(String, String)]) -> Program {
    Program { argv: argv.to_vec(), variables: env.to_vec(), ..Program::default() }
}

impl CommandRun {
    pub(crate) fn started(now_ms: u64) -> Self {
        let timeline = Timeline { engine_ms: Some(now_ms), ..Timeline::default() };
        Self { phase: Phase::Ready, timeline }
    }

    pub(crate) fn exited(&mut self, code: i32) {
        self.phase = Phase::Exited { code };
    }

    pub(crate) fn state(&self) -> State {
        State { phase: self.phase.clone(), timeline: self.timeline.clone() }
    }
}
