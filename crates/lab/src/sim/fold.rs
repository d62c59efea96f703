//! Folding a journal from its bytes alone, as anybody can who has them.

use ionet_domain::{Event, State};
use ionet_journal::{Disk, Hash, Head, Journal, Options, PrivatePart, Record, Scope, verify};
use serde::Deserialize;

use super::disk::LabDisk;
use super::promise::{Promise, broken};
use crate::{LabError, Result};

/// Where a snapshot's body begins in its file.
const BODY_AT: usize = 92;

/// Reads an event back from its record.
pub(crate) fn event(record: &Record) -> Result<Event> {
    let private = match &record.private {
        PrivatePart::Present(private) => Some(private.body.as_slice()),
        _ => None,
    };
    Event::read(record.at_ms, &record.public, private)
        .or_else(|error| broken(Promise::JournalFolds, error.to_string()))
}

/// Verifies the whole chain and shows each record.
pub(crate) fn scan<D: Disk>(
    disk: &D,
    scope: Scope,
    mut visit: impl FnMut(&Record) -> Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    let verified = verify(disk, scope, |record| {
        if outcome.is_ok() {
            outcome = visit(record);
        }
    });
    verified.map_err(LabError::journal("verify the journal"))?;
    outcome
}

/// Verifies the whole chain and folds it; shows each event before it is folded.
pub(crate) fn fold<D: Disk>(
    disk: &D,
    scope: Scope,
    mut visit: impl FnMut(&Record, &Event, &State) -> Result<()>,
) -> Result<State> {
    let mut state = State::default();
    scan(disk, scope, |record| {
        let event = event(record)?;
        visit(record, &event, &state)?;
        apply(&mut state, &event)
    })?;
    Ok(state)
}

fn apply(state: &mut State, event: &Event) -> Result<()> {
    state.apply(event).or_else(|wrong| broken(Promise::JournalFolds, wrong.to_string()))
}

/// What a snapshot's body has of interest.
#[derive(Deserialize)]
struct Body {
    state: State,
}

/// Folds from every snapshot there is: its file's name, and the state that it leads to.
pub(super) fn from_snapshots(disk: &LabDisk) -> Result<Vec<(String, State)>> {
    let names = disk.list().map_err(LabError::io("list the disk"))?;
    let snapshots: Vec<_> = names.into_iter().filter(|name| name.ends_with(".snapshot")).collect();
    let mut folded = Vec::new();
    for name in &snapshots {
        let copy = disk.copy();
        for other in snapshots.iter().filter(|other| *other != name) {
            copy.remove(other).map_err(LabError::io("remove a snapshot"))?;
        }
        let opened = Journal::open(copy, Options::default());
        let (journal, _) = opened.map_err(LabError::journal("open a copy"))?;
        let latest = journal.latest_snapshot().map_err(LabError::journal("read a snapshot"))?;
        // A damaged one is passed over.
        let Some(snapshot) = latest.snapshot else { continue };
        let wrong =
            |error| LabError::Promise { promise: Promise::SnapshotFolds, what: format!("{name}: {error}") };
        let mut state = serde_json::from_slice::<Body>(&snapshot.body).map_err(wrong)?.state;
        let records = journal.read_from(snapshot.at.seq + 1).map_err(LabError::journal("read a copy"))?;
        for record in records {
            let event = event(&record.map_err(LabError::journal("read a copy"))?)?;
            let applied = state.apply(&event);
            applied.or_else(|wrong| broken(Promise::SnapshotFolds, format!("{name}: {wrong}")))?;
        }
        folded.push((name.clone(), state));
    }
    Ok(folded)
}

/// The state in a snapshot's file and the record that its name says.
pub(super) fn read_snapshot(disk: &LabDisk, name: &str) -> Option<(u64, State)> {
    let size = disk.size(name).ok()?;
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    disk.read_at(name, 0, &mut bytes).ok()?;
    let state = serde_json::from_slice::<Body>(bytes.get(BODY_AT..)?).ok()?.state;
    Some((name.strip_suffix(".snapshot")?.parse().ok()?, state))
}

/// The planted fault: the snapshot has a little more money in it.
pub(super) fn alter_snapshot(disk: &LabDisk, name: &str) {
    let size = usize::try_from(disk.size(name).unwrap_or_default()).unwrap_or_default();
    let mut bytes = vec![0; size];
    let read = disk.read_at(name, 0, &mut bytes).unwrap_or_default();
    let Some(header) = bytes[..read].first_chunk::<48>() else { return };
    let seq = u64::from_le_bytes(std::array::from_fn(|at| header[8 + at]));
    let hash = Hash(std::array::from_fn(|at| header[16 + at]));
    let Ok(mut body) = serde_json::from_slice::<serde_json::Value>(&bytes[BODY_AT..]) else { return };
    let balances = body.pointer_mut("/state/ledger/balances").and_then(serde_json::Value::as_object_mut);
    for (_, balance) in balances.into_iter().flatten().filter(|(key, _)| key.starts_with("wallet")) {
        let credits = balance["credits"].as_u64().unwrap_or_default();
        balance["credits"] = (credits + 1).into();
    }
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let _ = ionet_journal::write_snapshot(disk, Head { seq, hash }, &body);
}
