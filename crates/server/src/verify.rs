//! Verifying a journal without its server: the chain recomputed, the state folded, the books checked.
//!
//! Always holds: nothing is written; it may run while the server does. Not here: the chain's own rules
//! (`ionet-journal`), the rules that are folded (`ionet-domain`).

use std::path::Path;

use ionet_domain::{Asset, Event, State};
use ionet_journal::{FileDisk, PrivatePart, Record, Scope, Verified};

use crate::error::ServerError;

/// What was found in a journal that is whole.
#[derive(Debug)]
pub struct Audit {
    /// Chain, segments, private parts.
    pub journal: Verified,
    /// The fold of all of it.
    pub state: State,
    /// What is wrong with the books, if anything.
    pub fault: Option<String>,
}

impl Audit {
    /// What all accounts of an asset add up to; zero if the books are right.
    pub fn sum(&self, asset: Asset) -> i128 {
        self.state.ledger.sums().get(&asset).copied().unwrap_or(0)
    }
}

/// Reads the journal in this folder from its first record on.
///
/// # Errors
/// If it cannot be read, is damaged (with the place), or does not fold (with the record's number).
pub fn verify(journal_dir: &Path) -> Result<Audit, ServerError> {
    let disk = FileDisk::open_read_only(journal_dir)?;
    let mut state = State::default();
    let mut unfoldable = None;
    let journal = ionet_journal::verify(&disk, Scope::Full, |record| {
        if unfoldable.is_none() {
            unfoldable = fold(&mut state, record).err();
        }
    })?;
    match unfoldable {
        Some(error) => Err(error),
        None => Ok(Audit { fault: state.audit().err(), journal, state }),
    }
}

fn fold(state: &mut State, record: &Record) -> Result<(), ServerError> {
    let private = match &record.private {
        PrivatePart::Present(private) => Some(private.body.as_slice()),
        _ => None,
    };
    let seq = record.seq;
    let event = Event::read(record.at_ms, &record.public, private)
        .map_err(|error| ServerError::Unfoldable { seq, source: Box::new(error) })?;
    state.apply(&event).map_err(|error| ServerError::Unfoldable { seq, source: Box::new(error) })
}
