//! Decide, apply, append: the engine's way without the server around it.

use ionet_domain::command::Command;
use ionet_domain::{State, decide};
use ionet_journal::{Disk, Entry, Head, Journal, Options};

use crate::{LabError, Result};

/// One writer over one journal.
pub(super) struct Pipe<D> {
    pub(super) state: State,
    journal: Journal<D>,
    staged: Vec<Entry>,
}

impl<D: Disk> Pipe<D> {
    pub(super) fn open(disk: D) -> Result<Self> {
        let (journal, _) =
            Journal::open(disk, Options::default()).map_err(LabError::journal("open the journal"))?;
        Ok(Self { state: State::default(), journal, staged: Vec::new() })
    }

    /// Decides a command and folds its events; they are durable after [`Pipe::commit`].
    pub(super) fn submit(&mut self, command: &Command, now_ms: u64) -> Result<()> {
        let events = decide(&self.state, command, now_ms).map_err(|r| LabError::Broken(r.to_string()))?;
        for event in events {
            self.state.apply(&event).map_err(|b| LabError::Broken(b.to_string()))?;
            self.staged.push(Entry {
                at_ms: event.at_ms,
                public: event.public_json(),
                private: None,
                subjects: event.public.subjects(),
            });
        }
        Ok(())
    }

    pub(super) fn commit(&mut self) -> Result<Head> {
        let head = self.journal.append(&self.staged).map_err(LabError::journal("append"))?;
        self.staged.clear();
        Ok(head)
    }

    pub(super) fn snapshot(&self) -> Result<()> {
        let body = serde_json::to_vec(&self.state).map_err(|e| LabError::Broken(e.to_string()))?;
        self.journal.write_snapshot(self.journal.head(), &body).map_err(LabError::journal("write a snapshot"))
    }
}
