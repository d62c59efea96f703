//! A script that listens somewhere, and what it heard.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use ionet_lab::testbed::cloud::wait_for;

/// A script that runs, and the lines that it said; ends when dropped.
pub(super) struct Listener {
    child: Child,
    lines: Arc<Mutex<BTreeSet<String>>>,
}

impl Listener {
    /// Starts it by a command that runs Python.
    pub(super) fn start(mut python: Command, script: &str, arguments: &[&str]) -> Self {
        python.args(["-uc", script]).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let lines = Arc::new(Mutex::new(BTreeSet::new()));
        let (said, into) = (BufReader::new(child.stdout.take().unwrap()).lines(), lines.clone());
        std::thread::spawn(move || {
            for line in said.map_while(Result::ok) {
                into.lock().unwrap_or_else(PoisonError::into_inner).insert(line);
            }
        });
        Self { child, lines }
    }

    /// What it said so far, each line once.
    pub(super) fn lines(&self) -> BTreeSet<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has said this.
    pub(super) fn until(&self, line: &str) {
        let came = wait_for(line, super::PATIENCE, || Ok(self.lines().contains(line).then_some(())));
        came.unwrap_or_else(|error| panic!("{error}; what was said is {:?}", self.lines()));
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
