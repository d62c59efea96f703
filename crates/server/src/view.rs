//! What the server knows, as readers see it: the folded state and the fleet.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ionet_domain::State;
use ionet_journal::Head;

use crate::fleet::Fleet;

/// State and fleet together. What a reader sees may be one sync ahead of what is durable.
#[derive(Debug, Clone)]
pub struct View {
    /// The fold of the journal.
    pub state: State,
    /// What is heard of the devices.
    pub fleet: Fleet,
    /// The durable head of the journal.
    pub head: Head,
    /// The number of the last deposit that the state has.
    pub deposits_seen: u64,
}

/// One view for the writer and all readers. Locks are held for short and never over a sync.
#[derive(Debug, Clone)]
pub struct SharedView(Arc<RwLock<View>>);

impl SharedView {
    pub(crate) fn new(view: View) -> Self {
        Self(Arc::new(RwLock::new(view)))
    }

    /// The view for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, View> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
