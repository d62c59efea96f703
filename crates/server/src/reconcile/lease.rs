//! Every connected device is told all that should run on it, whenever that changes; a placed order is started then.
//!
//! A lease that the device reports and that is in neither list is left alone by it: so a server restored from an old
//! backup ends nothing.

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::worker::{BoxPhase, Desired, DesiredLease, Generation, Member, MemberList, ToWorker};
use ionet_domain::command::CommandBody;
use ionet_domain::market::Program;
use ionet_domain::order::{Lease, overlay_ip, share};
use ionet_domain::{DeviceId, LeaseId, Order, Stage};

use super::{Act, Todo, command, in_stage, lease_id, under_way};
use crate::engine::known_ended;
use crate::fleet::{DeviceNow, SignedList};
use crate::view::View;

/// How long a box runs on after its paid time without hearing that its order was closed; it costs nothing.
const LEASE_GRACE_MS: u64 = 5 * 60_000;

/// A lease that a device should have a box for, with all that it is told of it.
struct Wanted<'a> {
    order: &'a Order,
    n: u32,
    lease: &'a Lease,
    signed: &'a SignedList,
}

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let mut todos = Vec::new();
    let mut wanted: BTreeMap<DeviceId, Vec<Wanted<'_>>> = BTreeMap::new();
    let mut waiting = BTreeSet::new();
    for order in under_way(view) {
        let members = order.members();
        let signed = view.fleet.lists.get(&order.id).filter(|signed| is_list(view, order, &members, signed));
        for (n, lease) in order.leases.iter().filter(|(_, lease)| lease.live()) {
            match signed {
                _ if !view.fleet.connected(lease.device) => {}
                Some(signed) => {
                    wanted.entry(lease.device).or_default().push(Wanted { order, n: *n, lease, signed });
                }
                None => _ = waiting.insert(lease.device),
            }
        }
        if signed.is_none() {
            let members = members.iter().map(|(slot, (n, _))| member(view, order, *slot, *n)).collect();
            todos.push(Todo::Sign(newer(view, order, members, now_ms)));
        }
    }
    let mut ended = ended(view);
    for (id, now) in view.fleet.devices().filter(|(id, now)| now.connected && !waiting.contains(*id)) {
        let wanted = wanted.remove(id).unwrap_or_default();
        let ended = ended.remove(id).unwrap_or_default();
        todos.extend(tell(view, now, &wanted, &ended));
    }
    let placed = in_stage(view, Stage::Placed).filter(|order| view.fleet.lists.contains_key(&order.id));
    todos.extend(placed.map(|order| command(CommandBody::Start { order: order.id })));
    todos
}

/// What a device is told, if that is not what it was told last.
fn tell(view: &View, now: &DeviceNow, wanted: &[Wanted<'_>], ended: &BTreeSet<LeaseId>) -> Option<Todo> {
    let same = |(told, _): &(Desired, u64)| {
        // What was told under a term before its own the device did not take.
        let too_old = told.generation < now.generation && told.generation.term < view.state.term;
        !too_old
            && told.leases.len() == wanted.len()
            && told.leases.iter().zip(wanted).all(|(told, wanted)| wanted.is(view, told))
            && told.ended.iter().eq(ended)
    };
    if now.told.as_ref().is_some_and(same) {
        return None;
    }
    let n = view.state.events.max(view.fleet.last_told_n + 1);
    let desired = Desired {
        generation: Generation { term: view.state.term, n },
        leases: wanted.iter().map(|wanted| wanted.desired(view)).collect(),
        ended: ended.iter().copied().collect(),
    };
    Some(Todo::Act(Act::Tell(now.endpoint, Box::new(ToWorker::Desired(desired)))))
}

/// Whether a list says what is so now. Asked of every order all the time, so nothing is copied.
fn is_list(view: &View, order: &Order, members: &BTreeMap<u32, (u32, &Lease)>, signed: &SignedList) -> bool {
    let same = |(listed, (slot, (n, _))): (&Member, (&u32, &(u32, &Lease)))| {
        let lease = lease_id(order, *n);
        (listed.slot, listed.lease, listed.endpoint.as_ref()) == (*slot, lease, view.fleet.endpoint(lease))
    };
    signed.list.members.len() == members.len() && signed.list.members.iter().zip(members).all(same)
}

fn member(view: &View, order: &Order, slot: u32, n: u32) -> Member {
    let lease = lease_id(order, n);
    Member { lease, slot, ip: overlay_ip(slot), endpoint: view.fleet.endpoint(lease).cloned() }
}

/// A list that every member takes for newer, also after a restart of this server from a backup.
fn newer(view: &View, order: &Order, members: Vec<Member>, now_ms: u64) -> MemberList {
    let last = view.fleet.lists.get(&order.id).map_or(0, |signed| signed.list.generation);
    let generation = now_ms.max(view.state.term).max(last + 1);
    MemberList { cluster: order.id, generation, members }
}

impl Wanted<'_> {
    fn id(&self) -> LeaseId {
        lease_id(self.order, self.n)
    }

    fn running(&self) -> bool {
        self.order.stage == Stage::Running && self.lease.charging_since_ms.is_some()
    }

    fn paid_ms(&self) -> u64 {
        match (self.order.ends_ms(), self.lease.charging_since_ms) {
            (Some(ends_ms), Some(since_ms)) => ends_ms.saturating_sub(since_ms),
            _ => self.order.quote.request.duration_ms,
        }
    }

    /// Whether a device that was told this knows all. A signature stands for the list under it; engine and size of an
    /// order never change. What may be reached outside does, in its mode and in the program's list, and whose leave is void.
    fn is(&self, view: &View, told: &DesiredLease) -> bool {
        let program = view.state.private.programs.get(&self.order.id);
        (told.lease, told.engine_epoch, told.running, told.paid_ms)
            == (self.id(), self.order.engine_epoch, self.running(), self.paid_ms())
            && told.egress == self.order.quote.request.egress
            && told.void == share::void(&view.state, self.order)
            && told.members_signature == self.signed.signature
            && program.map_or_else(|| told.program == Program::default(), |program| told.program == *program)
    }

    fn desired(&self, view: &View) -> DesiredLease {
        let request = &self.order.quote.request;
        DesiredLease {
            lease: self.id(),
            engine: request.engine,
            program: view.state.private.programs.get(&self.order.id).cloned().unwrap_or_default(),
            resources: request.per_member,
            token: self.signed.token.clone(),
            engine_epoch: self.order.engine_epoch,
            running: self.running(),
            paid_ms: self.paid_ms(),
            grace_ms: LEASE_GRACE_MS,
            members: self.signed.list.clone(),
            members_signature: self.signed.signature.clone(),
            egress: request.egress,
            hiding: request.hiding,
            void: share::void(&view.state, self.order),
        }
    }
}

/// For each device the leases that are known to have ended: those of closing orders, those that were let go, and whatever it
/// still reports.
fn ended(view: &View) -> BTreeMap<DeviceId, BTreeSet<LeaseId>> {
    let mut ended: BTreeMap<DeviceId, BTreeSet<LeaseId>> = BTreeMap::new();
    for order in view.state.orders.values().filter(|order| order.stage <= Stage::Closing) {
        let goes = |lease: &Lease| order.stage == Stage::Closing || lease.released.is_some();
        for (n, lease) in order.leases.iter().filter(|(_, lease)| !lease.ended() && goes(lease)) {
            ended.entry(lease.device).or_default().insert(lease_id(order, *n));
        }
    }
    for (device, now) in view.fleet.devices().filter(|(_, now)| now.connected) {
        let over = |id: &&LeaseId| known_ended(&view.state, **id) || view.fleet.ended_long_ago(**id);
        let gone = |id: &LeaseId| {
            let removed =
                now.observed.get(id).map(|observed| matches!(observed.phase, BoxPhase::Removed { .. }));
            removed == Some(true) && !view.state.lease(*id).is_ok_and(|(_, lease)| !lease.ended())
        };
        // A removal that is in the books needs no more telling: in neither list, the device forgets it.
        for id in now.observed.keys().filter(over).filter(|id| !gone(id)) {
            ended.entry(*device).or_default().insert(*id);
        }
    }
    ended
}
