//! Placement: all members of a request or none, on the cheapest devices that fit; and the count of what each
//! constraint removed when it does not work out.
//!
//! Among devices that cost the same, the one on which a member costs the rest of the market least (`score`), then the older
//! one. [`seats`] finds them from the book, [`exhaustive`] by looking at every device: the same answer, for checking.
//! Always holds: the same state gives the same answer. Not here: the index (`book`), the price (`price`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::book::Book;
use super::capacity::{Capacity, GPU_MILLIS};
use super::egress::Egress;
use super::price::member_rate;
use super::request::Request;
use super::search::{All, Search, Shelves};
use crate::connectivity::claimed_region;
use crate::device::{Contact, Device, DeviceStage, Resources, Tier};
use crate::id::DeviceId;
use crate::money::Rate;
use crate::order::{Order, Stage};
use crate::refusal::Refusal;
use crate::state::State;

/// How many devices one constraint removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    /// The constraint, in words.
    pub constraint: String,
    /// Devices that met every constraint before it and not this one.
    pub devices: u32,
}

/// Why a request cannot be placed, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shortfall {
    /// Members asked for.
    pub wanted: u32,
    /// Members that would fit now.
    pub possible: u32,
    /// Devices in the network.
    pub devices: u32,
    /// What removed the others, in the order in which it was applied.
    pub removed: Vec<Removed>,
    /// How long until somebody's paid time is over and capacity comes free, at the latest.
    pub free_in_ms: Option<u64>,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} members fit now, on {} devices", self.possible, self.wanted, self.devices)?;
        for removed in &self.removed {
            write!(f, "; {} removed by: {}", removed.devices, removed.constraint)?;
        }
        match self.possible {
            0 => {}
            n => write!(f, "; {n} would be placed at once")?,
        }
        match self.free_in_ms {
            None => write!(f, "; ask for less, or wait for more devices"),
            Some(ms) => write!(f, "; a device comes free within {} minutes", ms.div_ceil(60_000)),
        }
    }
}

/// What a replacement or an order under a quote adds to the request.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Devices that failed this order or are taken by its other members under `spread`.
    pub avoid: BTreeSet<DeviceId>,
    /// The promised prices, cheapest first: the i-th device may cost at most the i-th.
    pub rates: Option<Vec<Rate>>,
    /// Promised to orders that are paid for and not yet placed.
    pub promised: BTreeMap<DeviceId, Vec<Taken>>,
    /// Hired now and counted as free: what makes room.
    pub freed: BTreeMap<DeviceId, Vec<Taken>>,
}

/// Part of a device that is spoken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// How much.
    pub wanted: Resources,
    /// Of which GPUs, by their place in the device's offer.
    pub gpus: Vec<u32>,
}

/// Where a member goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The device.
    pub device: DeviceId,
    /// Its GPUs, by their place in the device's offer.
    pub gpus: Vec<u32>,
    /// What the supplier takes at least, an hour.
    pub rate: Rate,
    /// What it costs the rest of the market; comparable among devices of the same rate only.
    pub cost: i64,
}

/// Chooses a device for every member, cheapest first; the answer's order is the members' order.
pub fn plan(
    state: &State,
    request: &Request,
    limits: &Limits,
    now_ms: u64,
) -> Result<Vec<DeviceId>, Refusal> {
    let seats = seats(state, request, limits, now_ms)?;
    Ok(seats.into_iter().map(|seat| seat.device).collect())
}

/// Chooses device and GPUs for every member, cheapest first; the answer's order is the members' order.
pub fn seats(state: &State, request: &Request, limits: &Limits, now_ms: u64) -> Result<Vec<Seat>, Refusal> {
    let search = Search::new(state, request, limits, now_ms);
    all_or_none(state, request, limits, now_ms, search.fill(Shelves::new(&search)))
}

/// The same without reasons: `None` where not all members fit.
pub fn find(state: &State, request: &Request, limits: &Limits, now_ms: u64) -> Option<Vec<Seat>> {
    let search = Search::new(state, request, limits, now_ms);
    Some(search.fill(Shelves::new(&search))).filter(|seats| seats.len() == request.members as usize)
}

/// As many members as fit, up to all.
pub(crate) fn some(state: &State, request: &Request, limits: &Limits, now_ms: u64) -> Vec<Seat> {
    let search = Search::new(state, request, limits, now_ms);
    search.fill(Shelves::new(&search))
}

/// Why not all members fit, with what removed the devices.
pub(crate) fn shortfall(state: &State, request: &Request, limits: &Limits, now_ms: u64) -> Shortfall {
    let possible = some(state, request, limits, now_ms).len().min(request.members as usize);
    let possible = u32::try_from(possible).unwrap_or(u32::MAX);
    Sieve::new(request, limits, now_ms).shortfall(state, possible)
}

/// In how long so many members' worth of what is in the way has come to its paid end, if that is known.
pub(crate) fn enough_free_in_ms(
    state: &State,
    request: &Request,
    limits: &Limits,
    missing: u32,
    now_ms: u64,
) -> Option<u64> {
    let sieve = Sieve::new(request, limits, now_ms);
    let mut ends: Vec<(u64, usize)> = Vec::new();
    for order in state.orders.values().filter(|order| order.stage < Stage::Closing) {
        let in_the_way =
            order.leases.values().filter(|lease| lease.live() && sieve.would_do(state, lease.device)).count();
        ends.extend(order.ends_ms().filter(|_| in_the_way > 0).map(|ends_ms| (ends_ms, in_the_way)));
    }
    ends.sort_unstable();
    let mut free = 0;
    let enough = ends.into_iter().find(|(_, leases)| {
        free += leases;
        free >= missing as usize
    });
    enough.map(|(ends_ms, _)| ends_ms.saturating_sub(now_ms))
}

/// The same without the index: every device is looked at.
pub fn exhaustive(
    state: &State,
    request: &Request,
    limits: &Limits,
    now_ms: u64,
) -> Result<Vec<Seat>, Refusal> {
    let search = Search::new(state, request, limits, now_ms);
    all_or_none(state, request, limits, now_ms, search.fill(All::new(&search)))
}

fn all_or_none(
    state: &State,
    request: &Request,
    limits: &Limits,
    now_ms: u64,
    seats: Vec<Seat>,
) -> Result<Vec<Seat>, Refusal> {
    if seats.len() == request.members as usize {
        return Ok(seats);
    }
    let possible = u32::try_from(seats.len()).unwrap_or(u32::MAX);
    Err(Refusal::NoCapacity(Sieve::new(request, limits, now_ms).shortfall(state, possible)))
}

/// Whether the state's index, if it has one yet, is the one that would be built from the state now.
pub fn index_is_true(state: &State) -> bool {
    state.book().same(&Book::build(state))
}

/// The place of "hired by others now" among the constraints.
const HIRED: u8 = 8;

/// Tells which constraint removes a device, in words; for reasons, and for devices that are looked at by themselves.
pub(super) struct Sieve<'a> {
    request: &'a Request,
    limits: &'a Limits,
    now_ms: u64,
    removed: BTreeMap<(u8, String), u32>,
}

impl Limits {
    /// What of a device is free beside what is promised: in all, and of each GPU by its place in the offer.
    pub(super) fn room(&self, id: DeviceId, device: &Device) -> (Capacity, Vec<u16>) {
        let (mut gpus, mut free) = self.free(id, device);
        for taken in self.promised.get(&id).into_iter().flatten() {
            let millis = u16::try_from(taken.wanted.millis_per_gpu()).unwrap_or(u16::MAX);
            for gpu in &taken.gpus {
                if let Some(gpu) = gpus.get_mut(*gpu as usize) {
                    *gpu = gpu.saturating_sub(millis);
                }
            }
            free = free.less(Resources { gpus: 0, ..taken.wanted }, 0);
            if device.one_tenant() {
                free.cpu_millis = 0;
            }
        }
        let capacity = Capacity { gpus: Capacity::with(device, gpus.clone()).gpus, ..free };
        (capacity, gpus)
    }
}

impl Limits {
    /// What of a device is free, with what makes room.
    fn free(&self, id: DeviceId, device: &Device) -> (Vec<u16>, Capacity) {
        let (mut gpus, free) = (device.free_gpu_millis(), Capacity::of(device));
        let Some(freed) = self.freed.get(&id) else { return (gpus, free) };
        if device.one_tenant() && freed.len() < device.leases as usize {
            return (gpus, free);
        }
        let mut left = device.enrolment.offered.less(device.committed);
        for taken in freed {
            left = left.plus(Resources { gpus: 0, ..taken.wanted });
            let millis = u16::try_from(taken.wanted.millis_per_gpu()).unwrap_or(GPU_MILLIS);
            for gpu in &taken.gpus {
                if let Some(gpu) = gpus.get_mut(*gpu as usize) {
                    *gpu = gpu.saturating_add(millis).min(GPU_MILLIS);
                }
            }
        }
        let Resources { cpu_millis, memory_bytes, disk_bytes, .. } = left;
        (gpus, Capacity { cpu_millis, memory_bytes, disk_bytes, ..free })
    }

    /// Whether a device is looked at by itself and not with its like.
    pub(super) fn apart(&self, id: DeviceId) -> bool {
        self.promised.contains_key(&id) || self.freed.contains_key(&id)
    }

    /// The devices that are looked at by themselves, each once.
    pub(super) fn all_apart(&self) -> impl Iterator<Item = DeviceId> {
        let freed = self.freed.keys().filter(|id| !self.promised.contains_key(*id));
        self.promised.keys().chain(freed).copied()
    }
}

impl<'a> Sieve<'a> {
    pub(super) fn new(request: &'a Request, limits: &'a Limits, now_ms: u64) -> Self {
        Self { request, limits, now_ms, removed: BTreeMap::new() }
    }

    /// Whether the device meets every constraint.
    pub(super) fn suits(&self, id: DeviceId, device: &Device) -> bool {
        self.misses(id, device).is_none()
    }

    /// Counts what each constraint removes.
    fn sift(&mut self, state: &State) {
        for (id, device) in &state.devices {
            if let Some(constraint) = self.misses(*id, device) {
                *self.removed.entry(constraint).or_insert(0) += 1;
            }
        }
    }

    /// The first constraint that the device does not meet, with its place in the order.
    fn misses(&self, id: DeviceId, device: &Device) -> Option<(u8, String)> {
        let r = self.request;
        let enrolment = &device.enrolment;
        let tag = r.tags.iter().find(|tag| !enrolment.tags.contains(*tag));
        let other_network = r.network.as_ref().filter(|network| **network != enrolment.network);
        let other_model = r.gpu_model.as_ref().filter(|_| !r.allows(&device.class));
        let wanted = r.per_member;
        let missing = if device.stage != DeviceStage::Pooled {
            (0, format!("not pooled ({})", device.stage))
        } else if let Some(model) = other_model {
            (1, format!("GPU model {model}"))
        } else if let Some(network) = other_network {
            (2, format!("supply network {network}"))
        } else if let Some(tag) = tag {
            (3, format!("tag {tag}"))
        } else if let Some(doubt) = self.unproven_region(device) {
            (3, doubt)
        } else if let Some(low) = self.below_tier(device) {
            (4, low)
        } else if device.rules.no_egress && r.egress != Egress::Off {
            (4, format!("egress {}, which their suppliers forbid (ask with egress off)", r.egress))
        } else if !enrolment.offered.holds(wanted) {
            (4, format!("size ({})", size(enrolment.offered, wanted)))
        } else if self.limits.avoid.contains(&id) {
            (5, "a device that this cluster already uses or that failed it".into())
        } else if device.contact != Contact::Connected {
            (6, "not heard from at present".into())
        } else if let Some(why) = device.rules.closed(self.now_ms) {
            (7, why.into())
        } else if !self.limits.room(id, device).0.fits(wanted) {
            (HIRED, "hired by others now".into())
        } else {
            return self.too_dear(device);
        };
        Some(missing)
    }

    /// A tag that claims a region counts only as long as round trips bear it out.
    fn unproven_region(&self, device: &Device) -> Option<String> {
        let claimed = claimed_region(&self.request.tags)?;
        device.region_doubt()?;
        Some(format!("region {claimed}, which they claim and measurements do not bear out"))
    }

    /// Who is in the pool has a tier.
    fn below_tier(&self, device: &Device) -> Option<String> {
        let earned = device.tier.unwrap_or(Tier::Basic);
        let least = self.request.tier.filter(|least| earned < *least)?;
        let (down, up) = least.least();
        Some(format!("connectivity {least} ({down}/{up} Mbit/s down/up): measured {earned}"))
    }

    fn too_dear(&self, device: &Device) -> Option<(u8, String)> {
        let most = self.limits.rates.as_ref()?.iter().max()?;
        let rate = member_rate(device, self.request.per_member, self.request.duration_ms);
        (rate > *most).then(|| (9, format!("a price above the promised {most}")))
    }

    /// Whether a device would do if it were free: only such a one is worth waiting for.
    fn would_do(&self, state: &State, id: DeviceId) -> bool {
        let missing = state.devices.get(&id).map(|device| self.misses(id, device));
        missing.is_some_and(|missing| missing.is_none_or(|(place, _)| place == HIRED))
    }

    /// Why it does not work out.
    pub(super) fn shortfall(mut self, state: &State, possible: u32) -> Shortfall {
        self.sift(state);
        let may_do = |id| self.would_do(state, id);
        let live = state.orders.values().filter(|order| order.stage < Stage::Closing);
        let in_the_way =
            live.filter(|order| order.leases.values().any(|lease| lease.live() && may_do(lease.device)));
        let free_at_ms = in_the_way.filter_map(Order::ends_ms).min();
        Shortfall {
            wanted: self.request.members,
            possible,
            devices: u32::try_from(state.devices.len()).unwrap_or(u32::MAX),
            removed: self
                .removed
                .into_iter()
                .map(|((_, constraint), devices)| Removed { constraint, devices })
                .collect(),
            free_in_ms: free_at_ms.map(|at| at.saturating_sub(self.now_ms)),
        }
    }
}

/// Which of the sizes is too large, with both numbers.
fn size(offered: Resources, wanted: Resources) -> String {
    const MIB: u64 = 1 << 20;
    if wanted.gpus > offered.gpus {
        format!("{} GPUs wanted, {} offered", wanted.gpus, offered.gpus)
    } else if wanted.cpu_millis > offered.cpu_millis {
        format!("{} CPU millis wanted, {} offered", wanted.cpu_millis, offered.cpu_millis)
    } else if wanted.memory_bytes > offered.memory_bytes {
        format!("{} MiB memory wanted, {} offered", wanted.memory_bytes / MIB, offered.memory_bytes / MIB)
    } else {
        format!("{} MiB disk wanted, {} offered", wanted.disk_bytes / MIB, offered.disk_bytes / MIB)
    }
}
