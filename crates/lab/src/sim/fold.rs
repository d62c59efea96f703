//! Folding a journal from its bytes alone, as anybody can who has them.

use ionet_domain::{Event, State};
use ionet_journal::{Disk, PrivatePart, Record, Scope, verify};

use crate::{LabError, Result};

/// Reads an event back from its record.
pub(crate) fn event(record: &Record) -> Result<Event> {
    let private = match &record.private {
        PrivatePart::Present(private) => Some(private.body.as_slice()),
        _ => None,
    };
    Event::read(record.at_ms, &record.public, private).map_err(|e| LabError::Broken(e.to_string()))
}

/// Verifies the whole chain and folds it; shows each event before it is folded.
pub(crate) fn fold<D: Disk>(
    disk: &D,
    scope: Scope,
    mut visit: impl FnMut(&Record, &Event, &State) -> Result<()>,
) -> Result<State> {
    let mut state = State::default();
    let mut outcome = Ok(());
    let folded = verify(disk, scope, |record| {
        if outcome.is_ok() {
            outcome = event(record).and_then(|event| {
                visit(record, &event, &state)?;
                state.apply(&event).map_err(|broken| LabError::Broken(broken.to_string()))
            });
        }
    });
    folded.map_err(LabError::journal("verify the journal"))?;
    outcome.map(|()| state)
}
