//! Placement: all members of a request or none, on the cheapest devices that fit; and the count of what each
//! constraint removed when it does not work out.
//!
//! Among devices that cost the same, the one on which a member costs the rest of the market least (`score`), then the more
//! reliable one, then the one that has waited longest for work. Where the request prefers something else than the cheapest,
//! `choice` looks for better seats. [`seats`] finds them from the book, [`exhaustive`] by looking at every device: the same answer, for checking.
//! Always holds: the same state gives the same answer. Not here: the index (`book`), the price (`price`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::book::{Alike, Book};
use super::capacity::{Capacity, GPU_MILLIS, Shape};
use super::choice::Choice;
use super::conditions::{self, Known, Looked, asked, supplier_allowed};
use super::egress::Egress;
use super::explain::Condition;
use super::price::member_rate;
use super::request::Request;
use super::search::{All, Search, Shelves};
use super::terms::Asker;
use crate::connectivity::claimed_region;
use crate::device::{Contact, Device, DeviceStage, Resources, Tier};
use crate::id::{Address, DeviceId};
use crate::money::Rate;
use crate::order::Stage;
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
    /// Who rents: suppliers' terms are asked of him. Without, as in a look at the market at large, they are not.
    pub renter: Option<Address>,
    /// Devices that hold members of the same cluster already: what belongs together, or apart, goes by them.
    pub beside: Vec<DeviceId>,
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
    all_or_none(state, request, limits, now_ms, chosen(state, request, limits, now_ms), true)
}

/// The cheapest seats, or better ones within what a preference may cost more; too few where not all members fit.
fn chosen(state: &State, request: &Request, limits: &Limits, now_ms: u64) -> Vec<Seat> {
    let search = Search::new(state, request, limits, now_ms);
    let cheapest = search.fill(Shelves::new(&search));
    let more = |narrow: &Request, wanted: usize, most: Rate| {
        let search = Search::new(state, narrow, limits, now_ms);
        search.up_to(Shelves::new(&search), wanted, most)
    };
    Choice::new(state, request, limits, more).of(cheapest)
}

/// The same without reasons: `None` where not all members fit.
pub fn find(state: &State, request: &Request, limits: &Limits, now_ms: u64) -> Option<Vec<Seat>> {
    Some(chosen(state, request, limits, now_ms)).filter(|seats| seats.len() == request.members as usize)
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
    Sieve::new(state, request, limits, now_ms).shortfall(state, possible, true)
}

/// In how long so many members' worth of what is in the way has come to its paid end, if that is known.
pub(crate) fn enough_free_in_ms(
    state: &State,
    request: &Request,
    limits: &Limits,
    missing: u32,
    now_ms: u64,
) -> Option<u64> {
    let sieve = Sieve::new(state, request, limits, now_ms);
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
    let cheapest = search.fill(All::new(&search));
    let more = |narrow: &Request, wanted: usize, most: Rate| {
        let search = Search::new(state, narrow, limits, now_ms);
        search.up_to(All::new(&search), wanted, most)
    };
    let seats = Choice::new(state, request, limits, more).of(cheapest);
    all_or_none(state, request, limits, now_ms, seats, false)
}

fn all_or_none(
    state: &State,
    request: &Request,
    limits: &Limits,
    now_ms: u64,
    seats: Vec<Seat>,
    by_index: bool,
) -> Result<Vec<Seat>, Refusal> {
    if seats.len() == request.members as usize {
        return Ok(seats);
    }
    let possible = u32::try_from(seats.len()).unwrap_or(u32::MAX);
    Err(Refusal::NoCapacity(Sieve::new(state, request, limits, now_ms).shortfall(state, possible, by_index)))
}

/// Whether the state's index, if it has one yet, is the one that would be built from the state now.
pub fn index_is_true(state: &State) -> bool {
    state.book().same(&Book::build(state))
}

/// The places of the size and of "hired by others now" among the constraints.
const SIZE: u8 = 18;
const HIRED: u8 = 20;

/// A constraint, with its place in the order.
type Constraint = (u8, Cow<'static, str>);

/// What a device is too small in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Size {
    Gpus,
    Cpu,
    Memory,
    Disk,
}

/// Why a device does not do.
enum Miss {
    Constraint(Constraint),
    /// Too small even if all of it were free, and how much it offers.
    Small(Size, u64),
}

/// Tells which constraint removes a device, in words; for reasons, and for devices that are looked at by themselves.
pub(super) struct Sieve<'a> {
    request: &'a Request,
    limits: &'a Limits,
    now_ms: u64,
    known: Known<'a>,
    asker: Asker,
    /// Why the operator keeps the whole request out.
    refused: Option<String>,
    /// The most that a member may cost.
    most: Option<Rate>,
    removed: BTreeMap<Constraint, u32>,
    /// How many are too small, and what the largest of them offers.
    small: BTreeMap<Size, (u32, u64)>,
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
                free.shape.cpu_millis = 0;
            }
        }
        free.shape.gpus = Capacity::with(device, gpus.iter().copied()).shape.gpus;
        (free, gpus)
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
        let shape = Shape { cpu_millis, ..free.shape };
        (gpus, Capacity { shape, memory_bytes, disk_bytes })
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
    pub(super) fn new(state: &'a State, request: &'a Request, limits: &'a Limits, now_ms: u64) -> Self {
        let asker = Asker::new(&state.private, limits.renter, request.kind);
        let refused = state.private.deny.renters.refuse(&asker);
        Self {
            request,
            limits,
            now_ms,
            known: Known::of(state),
            asker,
            refused: refused.map(|why| format!("the operator's deny list: {why}")),
            most: limits.rates.as_ref().and_then(|rates| rates.iter().max().copied()),
            removed: BTreeMap::new(),
            small: BTreeMap::new(),
        }
    }

    /// Whether the device meets every constraint.
    pub(super) fn suits(&self, id: DeviceId, device: &Device) -> bool {
        self.misses(id, device).is_none()
    }

    fn count(&mut self, missed: Option<Miss>) {
        match missed {
            None => {}
            Some(Miss::Constraint(constraint)) => *self.removed.entry(constraint).or_insert(0) += 1,
            Some(Miss::Small(size, offered)) => self.count_small(size, offered, 1),
        }
    }

    fn count_small(&mut self, size: Size, offered: u64, count: u32) {
        if count > 0 {
            let (devices, most) = self.small.entry(size).or_default();
            *devices += count;
            *most = offered.max(*most);
        }
    }

    /// Counts what each constraint removes by a look at every device.
    fn sift_all(&mut self, state: &State) {
        for (id, device) in &state.devices {
            self.count(self.misses(*id, device));
        }
    }

    /// The same from the index: of devices that are alike to placement one is looked at.
    fn sift(&mut self, state: &State) {
        let book = state.book();
        let archived = state.devices.len().saturating_sub(book.devices());
        if archived > 0 {
            let archived = u32::try_from(archived).unwrap_or(u32::MAX);
            self.removed.insert((0, "not pooled (archived)".into()), archived);
        }
        // Devices that are looked at by themselves; what is said of their traits is counted with all the others.
        let alone: BTreeSet<_> = self.limits.avoid.iter().copied().chain(self.limits.all_apart()).collect();
        for (id, device) in alone.iter().filter_map(|id| Some((*id, state.devices.get(id)?))) {
            match self.misses(id, device) {
                Some(Miss::Constraint((place, _))) if place < SIZE => {}
                missed => self.count(missed),
            }
        }
        let mut willing = vec![false; book.numbers()];
        for crowd in book.crowds() {
            let (mut some, mut all) = (false, true);
            for (traits, devices) in crowd.traits() {
                let like = crowd.like(traits, book, &state.devices, self.known);
                let missed =
                    like.and_then(|(id, device)| self.unwilling(id, device).or_else(|| self.resting(device)));
                let is_willing = missed.is_none();
                if let Some(missed) = missed {
                    *self.removed.entry(missed).or_insert(0) += devices;
                }
                (some, all) = (some || is_willing, all && is_willing);
                if let Some(known) = willing.get_mut(traits as usize) {
                    *known = is_willing;
                }
            }
            if some {
                // Of one mind, and none looked at by itself: then the shape alone may say it of all.
                let as_one = all && alone.is_empty();
                crowd.alike().for_each(|alike| {
                    if !as_one || !self.sift_shape(&alike) {
                        self.sift_alike(&alike, &willing, &alone);
                    }
                });
            }
        }
    }

    /// Counts all devices of one shape as too small, if that is so whatever memory and disk they have.
    fn sift_shape(&mut self, alike: &Alike<'_>) -> bool {
        let small = too_small(alike.shape.offered(), (u64::MAX, u64::MAX), self.request.per_member);
        if let Some((size, offered)) = small {
            self.count_small(size, offered, u32::try_from(alike.spots.len()).unwrap_or(u32::MAX));
        }
        small.is_some()
    }

    /// Counts devices of one shape for which nothing but size and price is in question, if their traits are willing.
    fn sift_alike(&mut self, alike: &Alike<'_>, willing: &[bool], alone: &BTreeSet<DeviceId>) {
        let wanted = self.request.per_member;
        let (small, fits) =
            (too_small(alike.shape.offered(), (u64::MAX, u64::MAX), wanted), alike.shape.fits(wanted));
        let (mut devices, mut hired, mut fit) = (0, 0, 0);
        for (_, spot) in alike.spots.iter().filter(|(id, _)| alone.is_empty() || !alone.contains(id)) {
            if !willing.get(spot.traits as usize).is_some_and(|willing| *willing) {
                continue;
            }
            if small.is_some() {
                devices += 1;
            } else if wanted.memory_bytes > spot.memory_offered_bytes
                || wanted.disk_bytes > spot.disk_offered_bytes
            {
                let beside = (spot.memory_offered_bytes, spot.disk_offered_bytes);
                let small = too_small(alike.shape.offered(), beside, wanted);
                if let Some((size, offered)) = small {
                    self.count_small(size, offered, 1);
                }
            } else if !fits || wanted.memory_bytes > spot.memory_bytes || wanted.disk_bytes > spot.disk_bytes
            {
                hired += 1;
            } else {
                fit += 1;
            }
        }
        if let Some((size, offered)) = small {
            self.count_small(size, offered, devices);
        }
        let mut add = |constraint: Constraint, devices: u32| {
            if devices > 0 {
                *self.removed.entry(constraint).or_insert(0) += devices;
            }
        };
        add((HIRED, HIRED_BY_OTHERS.into()), hired);
        let rate = alike.ask.rate(alike.class, wanted, self.request.duration_ms);
        if fit > 0 && self.most.is_some_and(|most| rate > most) {
            add(too_dear(self.most), fit);
        }
    }

    /// The first constraint that the device does not meet.
    fn misses(&self, id: DeviceId, device: &Device) -> Option<Miss> {
        let (offered, wanted) = (device.enrolment.offered, self.request.per_member);
        if let Some(missed) = self.unwilling(id, device) {
            return Some(Miss::Constraint(missed));
        }
        if let Some(missed) = self.resting(device) {
            return Some(Miss::Constraint(missed));
        }
        let beside = (offered.memory_bytes, offered.disk_bytes);
        if let Some((size, offered)) = too_small((offered.gpus, offered.cpu_millis), beside, wanted) {
            return Some(Miss::Small(size, offered));
        }
        let missed = if self.limits.avoid.contains(&id) {
            Some((SIZE + 1, "a device that this cluster already uses or that failed it".into()))
        } else if !self.limits.room(id, device).0.fits(wanted) {
            Some((HIRED, HIRED_BY_OTHERS.into()))
        } else {
            let rate = member_rate(device, wanted, self.request.duration_ms);
            self.most.is_some_and(|most| rate > most).then(|| too_dear(self.most))
        };
        missed.map(Miss::Constraint)
    }

    /// What is asked for beside sizes: the same for all devices of a class, a standing and a set of traits, suppliers aside.
    fn unwilling(&self, id: DeviceId, device: &Device) -> Option<Constraint> {
        if device.stage != DeviceStage::Pooled {
            return Some((0, format!("not pooled ({})", device.stage).into()));
        }
        if device.enrolment.simulated != self.request.simulated {
            let wanted = self.request.simulated;
            let words = if wanted { "simulated devices wanted" } else { "simulated, nothing runs on them" };
            return Some((1, words.into()));
        }
        if let Some(refused) = &self.refused {
            return Some((2, refused.clone().into()));
        }
        if self.known.denied(id) {
            return Some((2, asked(Condition::Operator, self.request).into()));
        }
        let (place, missing) = self.wishes(id, device)?;
        Some((place, missing.into()))
    }

    fn wishes(&self, id: DeviceId, device: &Device) -> Option<(u8, String)> {
        let (r, enrolment) = (self.request, &device.enrolment);
        let tag = r.tags.iter().find(|tag| !enrolment.tags.contains(*tag));
        if !r.allows(&device.class) {
            return Some((3, format!("GPU model {}", r.gpu_model.as_deref().unwrap_or("any"))));
        }
        if !r.gpu_min.met_by(&device.class) {
            return Some((4, asked(Condition::GpuMinimum, r)));
        }
        if !r.allows_network(&enrolment.network) {
            return Some((5, format!("supply network {}", r.network.as_deref().unwrap_or("any"))));
        }
        if !supplier_allowed(r, &enrolment.owner) {
            return Some((6, asked(Condition::Suppliers, r)));
        }
        if let Some(tag) = tag {
            return Some((7, format!("tag {tag}")));
        }
        if let Some(doubt) = self.unproven_region(device) {
            return Some((7, doubt));
        }
        if let Some(low) = self.below_tier(device) {
            return Some((8, low));
        }
        if device.rules.no_egress && r.egress != Egress::Off {
            let why = format!("egress {}, which their suppliers forbid (ask with egress off)", r.egress);
            return Some((8, why));
        }
        let looked = Looked { id, device, known: self.known };
        let unmet = conditions::CONDITIONS.iter().zip(9..);
        let mut unmet = unmet.filter(|(one, _)| !conditions::meets(**one, &looked, r, &self.asker));
        unmet.next().map(|(one, place)| (place, asked(*one, r)))
    }

    /// Why it takes nothing now: the same for all devices of a standing and a set of traits.
    fn resting(&self, device: &Device) -> Option<Constraint> {
        if device.contact != Contact::Connected {
            return Some((16, "not heard from at present".into()));
        }
        device.rules.closed(self.now_ms).map(|why| (17, why.into()))
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

    /// Why it does not work out, by the index or by a look at every device: the same answer.
    pub(super) fn shortfall(mut self, state: &State, possible: u32, by_index: bool) -> Shortfall {
        // The index knows no suppliers: where they matter every device is looked at.
        let any_supplier = self.request.suppliers.is_empty() && self.request.not_suppliers.is_empty();
        if by_index && any_supplier {
            self.sift(state);
        } else {
            self.sift_all(state);
        }
        let wanted = self.request.per_member;
        for (size, (devices, most)) in std::mem::take(&mut self.small) {
            let constraint = (SIZE, format!("size ({})", size_in_words(size, wanted, most)).into());
            self.removed.insert(constraint, devices);
        }
        let free_at_ms = self.free_at_ms(state);
        let removed = self.removed.into_iter();
        Shortfall {
            wanted: self.request.members,
            possible,
            devices: u32::try_from(state.devices.len()).unwrap_or(u32::MAX),
            removed: removed
                .map(|((_, constraint), devices)| Removed { constraint: constraint.into_owned(), devices })
                .collect(),
            free_in_ms: free_at_ms.map(|at| at.saturating_sub(self.now_ms)),
        }
    }

    /// Whether a device would do if it were free: only such a one is worth waiting for.
    fn would_do(&self, state: &State, id: DeviceId) -> bool {
        match state.devices.get(&id).map(|device| self.misses(id, device)) {
            Some(Some(Miss::Constraint((place, _)))) => place == HIRED,
            Some(missed) => missed.is_none(),
            None => false,
        }
    }

    /// When the first device comes free that would do.
    fn free_at_ms(&self, state: &State) -> Option<u64> {
        let may_do = |id| self.would_do(state, id);
        let live = state.orders.values().filter(|order| order.stage < Stage::Closing);
        live.filter_map(|order| Some((order, order.ends_ms()?))).fold(None, |first, (order, ends_ms)| {
            let sooner = first.is_none_or(|first| ends_ms < first);
            let better = sooner && order.leases.values().any(|lease| lease.live() && may_do(lease.device));
            if better { Some(ends_ms) } else { first }
        })
    }
}

const HIRED_BY_OTHERS: &str = "hired by others now";

fn too_dear(most: Option<Rate>) -> Constraint {
    (HIRED + 1, format!("a price above the promised {}", most.unwrap_or_default()).into())
}

/// What a device that offers so many GPUs and CPU, and so much memory and disk, is too small in.
fn too_small(
    (gpus, cpu_millis): (u32, u32),
    (memory_bytes, disk_bytes): (u64, u64),
    wanted: Resources,
) -> Option<(Size, u64)> {
    if wanted.gpus > gpus {
        Some((Size::Gpus, u64::from(gpus)))
    } else if wanted.cpu_millis > cpu_millis {
        Some((Size::Cpu, u64::from(cpu_millis)))
    } else if wanted.memory_bytes > memory_bytes {
        Some((Size::Memory, memory_bytes))
    } else if wanted.disk_bytes > disk_bytes {
        Some((Size::Disk, disk_bytes))
    } else {
        None
    }
}

/// Which of the sizes is too large, with both numbers.
fn size_in_words(size: Size, wanted: Resources, most: u64) -> String {
    const MIB: u64 = 1 << 20;
    match size {
        Size::Gpus => format!("{} GPUs wanted, at most {most} offered", wanted.gpus),
        Size::Cpu => format!("{} CPU millis wanted, at most {most} offered", wanted.cpu_millis),
        Size::Memory => {
            format!("{} MiB memory wanted, at most {} offered", wanted.memory_bytes / MIB, most / MIB)
        }
        Size::Disk => format!("{} MiB disk wanted, at most {} offered", wanted.disk_bytes / MIB, most / MIB),
    }
}
