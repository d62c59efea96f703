//! Every connected device is told all that should run on it, whenever that changes; a placed order is started then.
//!
//! A lease that the device reports and that is in neither list is left alone by it: so a server restored from an old
//! backup ends nothing.

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::worker::{BoxPhase, Desired, DesiredLease, Generation, Member, MemberList, ToWorker};
use ionet_domain::command::CommandBody;
use ionet_domain::order::{Lease, overlay_ip};
use ionet_domain::{DeviceId, LeaseId, Order, Stage};

use super::{Act, Todo, command, in_stage, lease_id, under_way};
use crate::engine::known_ended;
use crate::fleet::{DeviceNow, SignedList};
use crate::view::View;

/// How long a box runs on after its paid time without hearing that its order was closed; it costs nothing.
const LEASE_GRACE_MS: u64 = 5 * 60_000;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let mut todos = Vec::new();
    let mut wanted: BTreeMap<DeviceId, Vec<DesiredLease>> = BTreeMap::new();
    let mut waiting = BTreeSet::new();
    for order in under_way(view) {
        let members = members(view, order);
        let signed = view.fleet.lists.get(&order.id).filter(|signed| signed.list.members == members);
        let connected = |device| view.fleet.device(device).is_some_and(|now| now.connected);
        for (n, lease) in order.leases.iter().filter(|(_, lease)| lease.live() && connected(lease.device)) {
            match signed {
                Some(signed) => {
                    wanted.entry(lease.device).or_default().push(desired(view, order, *n, lease, signed));
                }
                None => _ = waiting.insert(lease.device),
            }
        }
        if signed.is_none() {
            todos.push(Todo::Sign(newer(view, order, members, now_ms)));
        }
    }
    let mut ended = ended(view);
    for (id, now) in view.fleet.devices().filter(|(id, now)| now.connected && !waiting.contains(*id)) {
        let leases = wanted.remove(id).unwrap_or_default();
        let ended = ended.remove(id).unwrap_or_default().into_iter().collect();
        todos.extend(tell(view, now, Desired { generation: Generation::default(), leases, ended }));
    }
    let placed = in_stage(view, Stage::Placed).filter(|order| view.fleet.lists.contains_key(&order.id));
    todos.extend(placed.map(|order| command(CommandBody::Start { order: order.id })));
    todos
}

fn tell(view: &View, now: &DeviceNow, mut desired: Desired) -> Option<Todo> {
    let told = now.told.as_ref();
    if told.is_some_and(|(told, _)| (&told.leases, &told.ended) == (&desired.leases, &desired.ended)) {
        return None;
    }
    let n = view.state.events.max(view.fleet.last_told_n + 1);
    desired.generation = Generation { term: view.state.term, n };
    Some(Todo::Act(Act::Tell(now.endpoint, Box::new(ToWorker::Desired(desired)))))
}

fn members(view: &View, order: &Order) -> Vec<Member> {
    let slots = 0..order.quote.request.members;
    let members = slots.filter_map(|slot| {
        let lease = lease_id(order, order.member(slot)?.0);
        let endpoint = view.fleet.endpoint(lease).cloned();
        Some(Member { lease, slot, ip: overlay_ip(slot), endpoint })
    });
    members.collect()
}

/// A list that every member takes for newer, also after a restart of this server from a backup.
fn newer(view: &View, order: &Order, members: Vec<Member>, now_ms: u64) -> MemberList {
    let last = view.fleet.lists.get(&order.id).map_or(0, |signed| signed.list.generation);
    let generation = now_ms.max(view.state.term).max(last + 1);
    MemberList { cluster: order.id, generation, members }
}

fn desired(view: &View, order: &Order, n: u32, lease: &Lease, signed: &SignedList) -> DesiredLease {
    let request = &order.quote.request;
    let paid_ms = match (order.ends_ms(), lease.charging_since_ms) {
        (Some(ends_ms), Some(since_ms)) => ends_ms.saturating_sub(since_ms),
        _ => request.duration_ms,
    };
    DesiredLease {
        lease: lease_id(order, n),
        engine: request.engine,
        program: view.state.private.programs.get(&order.id).cloned().unwrap_or_default(),
        resources: request.per_member,
        token: signed.token.clone(),
        engine_epoch: order.engine_epoch,
        running: order.stage == Stage::Running && lease.charging_since_ms.is_some(),
        paid_ms,
        grace_ms: LEASE_GRACE_MS,
        members: signed.list.clone(),
        members_signature: signed.signature.clone(),
    }
}

/// For each device the leases that are known to have ended: those of closing orders, and whatever it still reports.
fn ended(view: &View) -> BTreeMap<DeviceId, BTreeSet<LeaseId>> {
    let mut ended: BTreeMap<DeviceId, BTreeSet<LeaseId>> = BTreeMap::new();
    for order in in_stage(view, Stage::Closing) {
        for (n, lease) in order.leases.iter().filter(|(_, lease)| !lease.ended()) {
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
        let still = now.observed.keys().filter(over).filter(|id| !gone(id));
        ended.entry(*device).or_default().extend(still);
    }
    ended
}
