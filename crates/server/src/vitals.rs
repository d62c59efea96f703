//! How members are and how busy they are, from what their devices said over the last minutes.
//!
//! Always holds: of a device that is not heard nothing is said. Not here: what follows from it (`ionet_domain::order::health` and
//! `scale`, `reconcile/upkeep`).

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::worker::{PathKind, Telemetry};
use ionet_domain::connectivity::RelayMeasure;
use ionet_domain::market::upkeep::Metric;
use ionet_domain::order::Lease;
use ionet_domain::order::health::{self, Ailment, LIMITS, Vitals, middle};
use ionet_domain::{DeviceId, LeaseId, Order, Stage, State};

use crate::fleet::Fleet;
use crate::links::STALE_MS;

/// Telemetry that is looked at for ailments (five minutes of it) and for how busy members are (two), and the least of it.
const VITALS_POINTS: usize = 60;
const BUSY_POINTS: usize = 24;
const LEAST_POINTS: usize = 12;

/// What a member was last found to ail from, and since when it is so without a break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) ailment: Option<Ailment>,
    pub(crate) since_ms: u64,
}

/// Judges every member of every order that runs; what it was found to be before is kept where it is the same.
pub(crate) fn judge_all(state: &State, fleet: &Fleet, now_ms: u64) -> BTreeMap<LeaseId, Found> {
    let mut found = BTreeMap::new();
    for order in state.orders.values().filter(|order| order.stage == Stage::Running) {
        let members: Vec<(LeaseId, Vitals)> = order
            .members()
            .into_values()
            .map(|(n, lease)| {
                let id = LeaseId { order: order.id, n };
                (id, vitals(state, fleet, id, lease, now_ms))
            })
            .collect();
        for (at, (id, own)) in members.iter().enumerate() {
            let peers = members.iter().enumerate().filter(|(other, _)| *other != at);
            let peers: Vec<&Vitals> = peers.map(|(_, (_, vitals))| vitals).collect();
            let ailment = health::judge(own, &peers, &LIMITS);
            let code = ailment.as_ref().map(Ailment::code);
            let before = fleet.found.get(id);
            let same = before.filter(|before| before.ailment.as_ref().map(Ailment::code) == code);
            let since_ms = same.map_or(now_ms, |before| before.since_ms);
            found.insert(*id, Found { ailment, since_ms });
        }
    }
    found
}

fn vitals(state: &State, fleet: &Fleet, id: LeaseId, lease: &Lease, now_ms: u64) -> Vitals {
    if !fleet.connected(lease.device) {
        return Vitals::default();
    }
    let points = telemetry(fleet, lease.device, VITALS_POINTS);
    let own = gpus(state, lease);
    let hottest = |point: &&Telemetry| {
        let mine = point.gpus.iter().filter(|gpu| own.contains(gpu.uuid.as_str()));
        mine.map(|gpu| gpu.temperature_c).max()
    };
    let foreign: Vec<u32> = points.iter().map(|point| point.foreign_cpu_percent.into()).collect();
    let links = fleet.links(id).filter(|now| now.told_ms.saturating_add(STALE_MS) >= now_ms);
    let links = links.map(|now| now.links.as_slice()).unwrap_or_default();
    let count = |links: usize| u32::try_from(links).unwrap_or(u32::MAX);
    let down = links.iter().filter(|link| link.path == PathKind::Down).count();
    let up = || links.iter().filter(|link| link.path != PathKind::Down);
    let loss = middle(up().filter_map(|link| link.loss_ppm.map(u64::from)));
    let device = state.devices.get(&lease.device);
    Vitals {
        foreign_cpu_percent: average(&foreign),
        temperature_c: points.iter().map(hottest).min().flatten(),
        loss_ppm: loss.and_then(|ppm| u32::try_from(ppm).ok()),
        rtt_us: middle(up().map(|link| link.rtt_us)),
        links: (count(links.len()), count(down)),
        engine_restarts: fleet.observed(lease.device, id).map_or(0, |observed| observed.engine_restarts),
        bandwidth_mbit_s: device.and_then(|device| fallen(&device.links)),
    }
}

/// The last points of a device, none if they are too few.
fn telemetry(fleet: &Fleet, device: DeviceId, most: usize) -> Vec<&Telemetry> {
    let all = fleet.device(device).into_iter().flat_map(|now| now.telemetry.iter().rev());
    let points: Vec<_> = all.take(most).collect();
    if points.len() < LEAST_POINTS { Vec::new() } else { points }
}

fn average(values: &[u32]) -> Option<u32> {
    let sum: u64 = values.iter().copied().map(u64::from).sum();
    u32::try_from(sum / u64::try_from(values.len()).ok().filter(|count| *count > 0)?).ok()
}

/// The UUIDs of a lease's GPUs.
fn gpus<'a>(state: &'a State, lease: &Lease) -> BTreeSet<&'a str> {
    let Some(device) = state.devices.get(&lease.device) else { return BTreeSet::new() };
    let all = &device.enrolment.hardware.gpus;
    lease.gpus.iter().filter_map(|place| all.get(*place as usize)).map(|gpu| gpu.uuid.as_str()).collect()
}

/// The better of the last two measures of a relay, and the median of those before: of the relay and the direction that fell
/// most. One bad measure says nothing.
fn fallen(links: &[RelayMeasure]) -> Option<(u32, u32)> {
    let relays: BTreeSet<&str> = links.iter().map(|measure| measure.relay.as_str()).collect();
    let of = |relay: &str| -> Vec<(u32, u32)> {
        let own = links.iter().filter(|measure| measure.relay == relay);
        let all: Vec<_> = own.filter_map(|measure| measure.bandwidth).collect();
        let [down, up] = [
            all.iter().map(|one| one.down_mbit_s).collect::<Vec<_>>(),
            all.iter().map(|one| one.up_mbit_s).collect(),
        ];
        [down, up].iter().filter_map(|values| fall(values)).collect()
    };
    let falls = relays.into_iter().flat_map(of);
    falls.min_by_key(|(now, was)| u64::from(*now) * 1_000_000 / u64::from((*was).max(1)))
}

fn fall(values: &[u32]) -> Option<(u32, u32)> {
    let (before, last) = values.split_at_checked(values.len().checked_sub(2)?)?;
    let was = middle(before.iter().copied().map(u64::from)).filter(|_| before.len() >= 2)?;
    Some((*last.iter().max()?, u32::try_from(was).ok()?))
}

/// How busy the members of an order are on average, in percent of what they hired; `None` unless all of them are heard.
pub(crate) fn busy_percent(state: &State, fleet: &Fleet, order: &Order, metric: Metric) -> Option<u32> {
    let members = order.members();
    let each = members.values().map(|(_, lease)| {
        let points = telemetry(fleet, lease.device, BUSY_POINTS);
        fleet.connected(lease.device).then_some(())?;
        match metric {
            Metric::Cpu => cpu_percent(state, lease, &points),
            Metric::Gpu => gpu_percent(state, lease, &points),
        }
    });
    average(&each.collect::<Option<Vec<u32>>>()?)
}

/// What leases use of the machine's CPU, as a share of what is hired of it: boxes of one machine are not told apart.
fn cpu_percent(state: &State, lease: &Lease, points: &[&Telemetry]) -> Option<u32> {
    let device = state.devices.get(&lease.device)?;
    let used = points.iter().map(|p| u32::from(p.cpu_percent.saturating_sub(p.foreign_cpu_percent)));
    let used = u64::from(average(&used.collect::<Vec<_>>())?);
    let machine_millis = u64::from(device.enrolment.hardware.cpu_threads) * 1000;
    let hired_millis = u64::from(device.committed.cpu_millis).max(1);
    u32::try_from((used * machine_millis / hired_millis).min(100)).ok()
}

fn gpu_percent(state: &State, lease: &Lease, points: &[&Telemetry]) -> Option<u32> {
    let own = gpus(state, lease);
    let all = points.iter().flat_map(|point| &point.gpus);
    let mine = all.filter(|gpu| own.contains(gpu.uuid.as_str())).map(|gpu| gpu.utilisation_percent.min(100));
    average(&mine.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_measure_of_a_link_says_nothing() {
        for (values, found) in [
            (&[][..], None),
            (&[900, 900, 100], None),
            (&[900, 900, 900, 100], Some((900, 900))),
            (&[900, 800, 100, 90], Some((100, 800))),
        ] {
            assert_eq!(fall(values), found, "{values:?}");
        }
    }
}
