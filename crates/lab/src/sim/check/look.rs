//! What is looked at between any two acts: the books, the server's state, and what really runs.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::device::Resources;
use ionet_domain::order::{Lease, LeasePhase, Order};
use ionet_domain::{LeaseId, Stage, State};

use crate::Result;
use crate::sim::device::DeviceNode;
use crate::sim::planted::Planted;
use crate::sim::promise::{Promise, broken, must};
use crate::sim::supervisor::MayReach;
use crate::sim::world::World;

/// How long a device that is linked may be without a box that is paid for, or with one that is not.
const BOUND_MS: u64 = 60_000;

impl World {
    /// What must hold between any two acts.
    pub(in crate::sim) fn look(&mut self) -> Result<()> {
        audit(&self.check.shadow)?;
        if let Some(core) = self.server.core.as_ref().filter(|_| self.server.staged == 0) {
            let view = core.view().read();
            audit(&view.state)?;
            must(view.state == self.check.shadow, Promise::JournalFolds, || {
                "the server's state is not the fold of its journal".into()
            })?;
        }
        self.look_at_boxes()
    }

    /// How long something may be wrong: clocks that jump and shells that tick seldom make it longer.
    pub(in crate::sim) fn bound_ms(&self) -> u64 {
        BOUND_MS
            + self.clock_span_ms
            + 4 * (self.plan.pace.agent_ms + self.plan.pace.server_ms + self.plan.pace.look_ms)
    }

    fn look_at_boxes(&mut self) -> Result<()> {
        let (at_ms, bound_ms) = (self.at_ms, self.bound_ms());
        let mut wrong = Vec::new();
        for device in self.devices.iter().filter(|device| self.reaches(device)) {
            self.unpaid_boxes(device, &mut wrong);
            if !self.check.restored {
                over_capacity(device, &mut wrong);
            }
        }
        for order in self.check.shadow.orders.values().filter(|order| order.stage == Stage::Running) {
            let up = |lease: &Lease| lease.live() && lease.phase == LeasePhase::Ready;
            for (n, lease) in order.leases.iter().filter(|(_, lease)| up(lease)) {
                let id = LeaseId { order: order.id, n: *n };
                let device = self.by_device.get(&lease.device).map(|at| &self.devices[*at]);
                let missing =
                    |device: &DeviceNode| !device.running(id) && !device.lies && self.reaches(device);
                if device.is_some_and(missing) {
                    wrong.push((id, Promise::LeaseHasBox));
                }
                let supervisor = device.filter(|device| self.reaches(device));
                let supervisor = supervisor.and_then(|device| device.supervisors.get(&id));
                if supervisor.is_some_and(|found| !self.follows(order, found.may_reach())) {
                    wrong.push((id, Promise::EgressFollowed));
                }
            }
        }
        let before = std::mem::take(&mut self.check.boxes.wrong_since_ms);
        let since = |key| (key, before.get(&key).copied().unwrap_or(at_ms));
        let now: BTreeMap<_, _> = wrong.into_iter().map(since).collect();
        let long = now.iter().find(|(_, since_ms)| at_ms - **since_ms > bound_ms);
        if let Some(((lease, promise), _)) = long {
            return broken(
                *promise,
                format!("{lease}: {}, for more than {} s", said(*promise), bound_ms / 1000),
            );
        }
        self.check.boxes.wrong_since_ms = now;
        Ok(())
    }

    /// Whether everything between a device and the server has been in order for long enough.
    fn reaches(&self, device: &DeviceNode) -> bool {
        let bound_ms = self.bound_ms();
        let long = |since_ms: u64| self.at_ms.saturating_sub(since_ms) > bound_ms;
        device.linked_since_ms.is_some_and(long)
            && !device.cut
            && !self.bad_net
            && self.server.up()
            && long(self.slow_until_ms)
    }

    /// Whether a box may reach what its renter said last.
    fn follows(&self, order: &Order, (egress, allow): &MayReach) -> bool {
        let program = self.check.shadow.private.programs.get(&order.id);
        *egress == order.quote.request.egress && program.is_none_or(|program| program.allow == *allow)
    }

    fn unpaid_boxes(&self, device: &DeviceNode, wrong: &mut Vec<(LeaseId, Promise)>) {
        let check = &self.check;
        for lease in device.folders.keys().filter(|lease| device.running(**lease)) {
            // After a restore the books may not know a lease at all: it is left alone until its paid time is over.
            let unknown = !check.restored && check.boxes.ended.contains(lease);
            let found = check.shadow.lease(*lease);
            if found.map_or(unknown, |(order, lease)| order.stage >= Stage::Closing || !lease.live()) {
                wrong.push((*lease, Promise::BoxHasLease));
            }
        }
    }

    /// Whether this machine's agent is to forget what it does at the next start.
    pub(in crate::sim) fn plants(&self, planted: Planted) -> bool {
        self.plan.plants(planted)
    }
}

fn said(promise: Promise) -> &'static str {
    match promise {
        Promise::BoxHasLease => "a box runs that nobody pays for",
        Promise::EgressFollowed => "its box may reach what its renter did not say, or not what they said",
        Promise::LeaseHasBox => "a box is paid for and not there",
        _ => "the machine's boxes take more than it offers",
    }
}

fn audit(state: &State) -> Result<()> {
    let sum = state.ledger.sums().into_iter().find(|(_, sum)| *sum != 0);
    must(sum.is_none(), Promise::MoneyConserved, || format!("the accounts add up to {sum:?} instead of 0"))?;
    let owes = state.ledger.overdrawn();
    must(owes.is_none(), Promise::MoneyConserved, || format!("account {owes:?} is below zero"))?;
    state.audit().or_else(|wrong| broken(Promise::UnitsOnce, wrong))
}

/// What the boxes of a machine really take, against what it offers.
fn over_capacity(device: &DeviceNode, wrong: &mut Vec<(LeaseId, Promise)>) {
    let (mut taken, mut gpus) = (Resources::default(), BTreeSet::new());
    for (lease, supervisor) in device.supervisors.iter().filter(|(lease, _)| device.running(**lease)) {
        let Some(spec) = &supervisor.spec else { continue };
        let cpu_millis = u32::try_from(spec.limits.cpu_millis).unwrap_or(u32::MAX);
        taken = taken.plus(Resources {
            cpu_millis,
            memory_bytes: spec.limits.memory_bytes,
            ..Resources::default()
        });
        let shared = spec.limits.gpus.iter().any(|gpu| !gpus.insert(gpu.clone()));
        if shared || !device.enrolment.offered.holds(taken) {
            wrong.push((*lease, Promise::RealCapacity));
        }
    }
}
