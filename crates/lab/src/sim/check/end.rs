//! What must hold when everything has ended: no box is left, the chain agrees, and every way to fold gives one state.

use ionet_domain::State;
use ionet_journal::{Disk, Scope};

use crate::Result;
use crate::sim::disk::LabDisk;
use crate::sim::fold;
use crate::sim::planted::Planted;
use crate::sim::promise::{Promise, broken, must};
use crate::sim::world::World;

impl World {
    /// What must hold at the end.
    pub(in crate::sim) fn finish(&mut self) -> Result<()> {
        self.look()?;
        let left = self.devices.iter().filter(|device| !device.left).flat_map(|device| device.host.running());
        if let Some(name) = left.into_iter().next() {
            return broken(Promise::BoxHasLease, format!("box {name} still runs after everything ended"));
        }
        self.check_chain()?;
        self.check_folds()
    }

    /// Everything that was paid outside is in the books, once.
    fn check_chain(&self) -> Result<()> {
        let (made, paid) = (self.chain.payouts(), &self.check.money.paid);
        for (payout, (_, _, amount)) in &made {
            // What was paid in a timeline that was lost is in the books only if it was asked for again.
            let lost = self.check.restored && !paid.contains_key(payout);
            let open = lost || self.check.shadow.payouts.contains_key(payout);
            must(open || paid.get(payout) == Some(amount), Promise::ChainOnce, || {
                format!("{amount} went out as {payout} and the books do not know it")
            })?;
        }
        let unpaid = paid.keys().find(|payout| !made.contains_key(*payout));
        must(unpaid.is_none(), Promise::ChainOnce, || {
            format!("{unpaid:?} is in the books and was never paid")
        })
    }

    /// The journal from its first record, from each snapshot, and its public part alone all give the same state.
    fn check_folds(&mut self) -> Result<()> {
        let disk = self.server.disk.copy();
        let whole = fold::fold(&disk, Scope::Full, |record, event, _| {
            let name = format!("\"{}\"", event.public.name());
            let named = record.public.windows(name.len()).any(|part| part == name.as_bytes());
            must(named, Promise::JournalFolds, || format!("record {} is no {name}", record.seq))
        })?;
        self.summary.records = whole.events;
        let bytes = json(&whole);
        must(bytes == json(&self.check.shadow), Promise::JournalFolds, || {
            "the journal does not fold to the state".into()
        })?;
        must(whole.params == self.plan.params, Promise::JournalFolds, || "the parameters changed".into())?;
        let mirror = disk.copy();
        if self.plants(Planted::TornMirror) {
            flip_a_byte(&mirror);
        }
        let public = fold::fold(&mirror, Scope::Public, |_, _, _| Ok(()));
        let mut public = public.or_else(|error| broken(Promise::PublicFolds, error.to_string()))?;
        public.private.clone_from(&whole.private);
        must(json(&public) == bytes, Promise::PublicFolds, || {
            "the public part folds to another state".into()
        })?;
        for (name, state) in fold::from_snapshots(&disk)? {
            must(json(&state) == bytes, Promise::SnapshotFolds, || {
                format!("a start from {name} gives another state than the journal")
            })?;
        }
        self.start_once_more(&disk)
    }

    /// The server's own start gives that state too.
    fn start_once_more(&mut self, disk: &LabDisk) -> Result<()> {
        let now_ms = self.now_ms();
        self.server.stop();
        self.server.disk = disk.copy();
        self.server.start(now_ms).or_else(|error| broken(Promise::Restarts, error.to_string()))?;
        let again = fold::fold(&self.server.disk, Scope::Full, |_, _, _| Ok(()))?;
        let same = self.server.core.as_ref().is_some_and(|core| core.view().read().state == again);
        must(same, Promise::SnapshotFolds, || "the server starts with another state than the journal".into())
    }
}

fn json(state: &State) -> Vec<u8> {
    // The state is plain data with text keys: writing it to memory has no way to fail.
    serde_json::to_vec(state).unwrap_or_default()
}

/// Changes the middle of the first public segment.
fn flip_a_byte(disk: &LabDisk) {
    let names = disk.list().unwrap_or_default();
    if let Some(name) = names.iter().find(|name| name.ends_with(".public")) {
        let bytes = disk.size(name).unwrap_or_default();
        disk.mem.corrupt(name, bytes / 2, 0x10);
    }
}
