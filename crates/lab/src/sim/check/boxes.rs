//! Boxes and leases: what really runs, against what is paid for.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::order::{LeasePhase, NewLease};
use ionet_domain::{DeviceId, LeaseId, OrderId, PublicBody, State};

use super::Facts;
use crate::Result;
use crate::sim::promise::{Promise, broken, must};

/// What really became of boxes.
#[derive(Debug, Default)]
pub(in crate::sim) struct Boxes {
    started: BTreeSet<LeaseId>,
    /// The most that a supervisor signed for, in milliseconds.
    pub(super) receipts: BTreeMap<LeaseId, u64>,
    /// Leases that were ended in the books, in any timeline.
    pub(super) ended: BTreeSet<LeaseId>,
    /// Leases whose program ended by itself.
    pub(super) exited: BTreeSet<LeaseId>,
    /// What has been wrong with a lease, and since when.
    pub(super) wrong_since_ms: BTreeMap<(LeaseId, Promise), u64>,
}

impl Boxes {
    /// A box was made on a device.
    pub(in crate::sim) fn started(
        &mut self,
        lease: LeaseId,
        device: DeviceId,
        (shadow, restored): (&State, bool),
    ) -> Result<()> {
        let first = self.started.insert(lease);
        let elsewhere = shadow.lease(lease).is_ok_and(|(_, lease)| lease.device != device);
        must(!elsewhere, Promise::OneBox, || {
            format!("{device} has a box for {lease}, which is not its own")
        })?;
        must(first || restored, Promise::OneBox, || format!("a second box was started for {lease}"))
    }

    /// A box was ended by its supervisor: because its paid time was over, or because the books say so.
    pub(in crate::sim) fn stopped(&self, lease: LeaseId, reason: &str) -> Result<()> {
        let time_over = reason == ionet_worker::supervision::PAID_TIME_OVER;
        must(time_over || self.ended.contains(&lease), Promise::WorkKept, || {
            format!("the box of {lease} was ended and nobody had closed it: {reason}")
        })
    }

    /// A supervisor signed for so much time.
    pub(in crate::sim) fn receipted(&mut self, lease: LeaseId, elapsed_ms: u64) {
        let most = self.receipts.entry(lease).or_default();
        *most = elapsed_ms.max(*most);
    }

    /// Takes note of leases that the books end now.
    pub(super) fn note_ended(&mut self, state: &State, event: &PublicBody) {
        match event {
            PublicBody::OrderClosing { order, .. } => {
                let leases = state.orders.get(order).into_iter().flat_map(|order| order.leases.keys());
                self.ended.extend(leases.map(|n| LeaseId { order: *order, n: *n }));
            }
            PublicBody::OrderShrunk { order, members, .. } => self.note_released(state, *order, *members),
            PublicBody::OrderPaused { order, .. } => self.note_released(state, *order, 0),
            PublicBody::LeaseLost { lease, .. }
            | PublicBody::LeaseRemoved { lease, .. }
            | PublicBody::MemberReleased { lease, .. } => {
                self.ended.insert(*lease);
            }
            PublicBody::LeaseExited { lease, .. } => _ = self.exited.insert(*lease),
            _ => {}
        }
    }
}

impl Boxes {
    /// Members from this slot on go.
    fn note_released(&mut self, state: &State, id: OrderId, members: u32) {
        let leases = state.orders.get(&id).into_iter().flat_map(|order| &order.leases);
        let going = leases.filter(|(_, lease)| lease.live() && lease.slot >= members);
        self.ended.extend(going.map(|(n, _)| LeaseId { order: id, n: *n }));
    }
}

/// Paid work that runs is not given up. After a restore another device may still have a box of a time that was lost.
pub(super) fn given_up(state: &State, event: &PublicBody, facts: &Facts<'_>) -> Result<()> {
    let PublicBody::LeaseLost { lease, reason } = event else { return Ok(()) };
    let runs = state
        .lease(*lease)
        .is_ok_and(|(_, found)| found.phase == LeasePhase::Ready && (facts.running)(found.device, *lease));
    if runs {
        return broken(
            Promise::WorkKept,
            format!("paid work of {lease} was given up while it ran: {reason}"),
        );
    }
    Ok(())
}

/// No device has more committed than it offers.
pub(super) fn units_once(state: &State, leases: &[NewLease]) -> Result<()> {
    for lease in leases {
        let Ok(device) = state.device(lease.device) else { continue };
        must(device.enrolment.offered.holds(device.committed), Promise::UnitsOnce, || {
            let (committed, offered) = (device.committed, device.enrolment.offered);
            format!("{} has {committed:?} committed and offers {offered:?}", lease.device)
        })?;
    }
    Ok(())
}
