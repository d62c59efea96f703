//! The better ones among devices that all would do: who belongs together near each other, replicas apart, the fastest, the
//! nearest to the callers; within a bounded share above the cheapest.
//!
//! ```text
//! penalty = sum over factors of weight x how far a device is from the best candidate (0 to a million, ppm)
//! ```
//! The candidates are a bounded number of seats from the index, the cheapest first, and again so many from each of a few
//! regions or classes, so that those of one place are among them. For members near each other every one of a few seeds
//! gathers those with the least penalty and distance to itself, and the best group counts; for members apart each next one
//! is the one that shares least with those before.
//!
//! Always holds: a group costs at most `PriceParams::premium_ppm` more than the cheapest by the suppliers' asks, and keeps
//! every promise; where none is better, the cheapest stays; what is looked at is bounded, whatever the market's size. Not
//! here: finding seats (`search`), distances (`nearness`), the price (`quote`).

use std::collections::BTreeMap;

use super::conditions::Known;
use super::hardware;
use super::nearness::{FAR_US, Reach, latency_us};
use super::place::{Limits, Seat};
use super::price_params::{PPM, PriceParams};
use super::request::Request;
use super::wishes::{Preference, WorkKind, region_within};
use crate::device::{Device, HardwareClass};
use crate::id::{Address, DeviceId};
use crate::money::Rate;
use crate::state::State;

/// Seats beside one for each member that are looked at: the cheapest of all, and of each narrower search.
const MORE: usize = 64;
const MORE_OF_EACH: usize = 32;
/// Most regions, and most classes, that are searched by themselves.
const REGIONS: usize = 4;
const CLASSES: usize = 8;
/// Most seeds of a group.
const SEEDS: usize = 8;

/// How much each factor weighs.
#[derive(Debug, Clone, Copy, Default)]
struct Weights {
    price: u64,
    compute: u64,
    memory: u64,
    token: u64,
    link: u64,
    latency: u64,
    reliability: u64,
    together: u64,
    apart: u64,
}

/// The weights of a kind of work and a preference, in one table. The price of a token has no measure yet: what a GB/s of
/// memory bandwidth costs stands for it, as decoding is bound by memory.
fn weights(kind: WorkKind, prefer: Preference) -> Weights {
    let of_kind = match kind {
        WorkKind::General => Weights { price: 100, reliability: 20, ..Weights::default() },
        WorkKind::Train => Weights { price: 20, memory: 20, link: 20, reliability: 20, ..Weights::default() },
        WorkKind::Inference => {
            Weights { price: 20, token: 40, latency: 60, reliability: 20, ..Weights::default() }
        }
    };
    match prefer {
        Preference::Cheapest => of_kind,
        Preference::Fastest => Weights { compute: 400, ..of_kind },
        Preference::Together => Weights { together: 400, ..of_kind },
        Preference::Apart => Weights { apart: 400, ..of_kind },
        Preference::Near => Weights { latency: 400, ..of_kind },
    }
}

/// The most that a preference may cost more, in ppm.
pub(super) fn premium_ppm(state: &State, prefer: Preference) -> u64 {
    let usual = PriceParams::default();
    let table = state.params.price.as_ref().unwrap_or(&usual);
    table.premium_ppm.get(&prefer).copied().unwrap_or(0).into()
}

/// A rate with the premium on it, rounded down.
pub(super) fn with_premium(rate: Rate, premium_ppm: u64) -> Rate {
    let sum = u128::from(rate.0) * u128::from(PPM + premium_ppm) / u128::from(PPM);
    Rate(u64::try_from(sum).unwrap_or(u64::MAX))
}

/// A seat with what is known of its device.
struct Candidate<'a> {
    seat: Seat,
    owner: Address,
    region: Option<&'a str>,
    reach: Reach<'a>,
    /// Compute, memory and bandwidth of its hardware; the figures of one class are alike.
    figures: Figures,
    latency_us: u32,
    unreliable_percent: u8,
    /// What is the same wherever the others are.
    own: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    compute: u64,
    memory_mib: u64,
    bandwidth: u64,
}

fn figures(device: &Device) -> Figures {
    let measured = device.measured.as_ref();
    match &device.class {
        HardwareClass::Gpu(model) => {
            let known = hardware::find(model);
            Figures {
                compute: known.map_or(0, |known| known.fp16_gflops.into()),
                memory_mib: device.gpu_memory_mib().into(),
                bandwidth: known.map_or(0, |known| known.bandwidth_gb_s.into()),
            }
        }
        HardwareClass::Cpu => Figures {
            compute: measured.map_or(0, |measured| measured.cpu_one_mb_s.into()),
            memory_mib: device.enrolment.offered.memory_bytes >> 20,
            bandwidth: measured.map_or(0, |measured| measured.memory_mb_s.into()),
        },
    }
}

/// Looks for a better group than the cheapest one.
pub(super) struct Choice<'a, F> {
    state: &'a State,
    request: &'a Request,
    limits: &'a Limits,
    prefer: Preference,
    weights: Weights,
    /// So many seats for a request, none above a rate, the cheapest first.
    seats: F,
}

impl<'a, F: Fn(&Request, usize, Rate) -> Vec<Seat>> Choice<'a, F> {
    pub(super) fn new(state: &'a State, request: &'a Request, limits: &'a Limits, seats: F) -> Self {
        let prefer = request.preference();
        Self { state, request, limits, prefer, weights: weights(request.kind, prefer), seats }
    }

    /// The better seats; the cheapest ones where none are.
    pub(super) fn of(&self, cheapest: Vec<Seat>) -> Vec<Seat> {
        let Some(dearest) = cheapest.last().map(|seat| seat.rate) else { return cheapest };
        if self.prefer == Preference::Cheapest {
            return cheapest;
        }
        let premium = premium_ppm(self.state, self.prefer);
        let sum = |rates: &mut dyn Iterator<Item = Rate>| {
            Rate(rates.fold(0, |sum, rate| sum.saturating_add(rate.0)))
        };
        let most = with_premium(sum(&mut cheapest.iter().map(|seat| seat.rate)), premium);
        let mut pool = self.pool(with_premium(dearest, premium), &cheapest);
        let own: Vec<u64> = pool.iter().map(|one| self.own(one, &pool)).collect();
        pool.iter_mut().zip(own).for_each(|(one, own)| one.own = own);
        let members = cheapest.len();
        let known: Vec<usize> = (0..members).collect();
        let mut best = (self.score(&pool, &known), None);
        for mut group in self.groups(&pool, members) {
            group.sort_unstable_by_key(|at| (pool[*at].seat.rate, *at));
            let rate = sum(&mut group.iter().map(|at| pool[*at].seat.rate));
            if rate > most || !self.promised(&pool, &group) {
                continue;
            }
            let score = self.score(&pool, &group);
            if score < best.0 {
                best = (score, Some(group));
            }
        }
        match best.1 {
            Some(group) => group.into_iter().map(|at| pool[at].seat.clone()).collect(),
            None => cheapest,
        }
    }

    /// Whether the prices of a group are those that were promised.
    fn promised(&self, pool: &[Candidate<'_>], group: &[usize]) -> bool {
        let Some(rates) = &self.limits.rates else { return true };
        group.len() <= rates.len() && group.iter().zip(rates).all(|(at, most)| pool[*at].seat.rate <= *most)
    }

    /// The candidates: the cheapest seats first, then those of narrower searches on other devices.
    fn pool(&self, most: Rate, cheapest: &[Seat]) -> Vec<Candidate<'a>> {
        let members = cheapest.len();
        let mut seats = cheapest.to_vec();
        let first = (self.seats)(self.request, members + MORE, most);
        seats.extend(first.into_iter().skip(members));
        let mut known: std::collections::BTreeSet<DeviceId> = seats.iter().map(|seat| seat.device).collect();
        for narrow in self.narrower(&seats) {
            let more: Vec<_> = (self.seats)(&narrow, members + MORE_OF_EACH, most)
                .into_iter()
                .filter(|seat| !known.contains(&seat.device))
                .collect();
            known.extend(more.iter().map(|seat| seat.device));
            seats.extend(more);
        }
        seats.into_iter().filter_map(|seat| self.candidate(seat)).collect()
    }

    fn candidate(&self, seat: Seat) -> Option<Candidate<'a>> {
        let device = self.state.devices.get(&seat.device)?;
        let unreliable_percent = 100 - Known::of(self.state).reliability_percent(seat.device).min(100);
        Some(Candidate {
            owner: device.enrolment.owner,
            region: device.proven_region(),
            reach: Reach::of(device),
            figures: figures(device),
            latency_us: latency_us(&device.links, self.request.near.as_deref()).unwrap_or(FAR_US),
            unreliable_percent,
            own: 0,
            seat,
        })
    }

    /// The same request for one region, or for one class of hardware, or elsewhere.
    fn narrower(&self, seats: &[Seat]) -> Vec<Request> {
        let device = |seat: &Seat| self.state.devices.get(&seat.device);
        let mut regions: Vec<&str> = Vec::new();
        for region in seats.iter().filter_map(|seat| device(seat)?.proven_region()) {
            if !regions.contains(&region) {
                regions.push(region);
            }
        }
        let request = self.request;
        let only = |region: &str| Request { regions: [region.to_owned()].into(), ..request.clone() };
        let mut narrower = Vec::new();
        match self.prefer {
            Preference::Together => narrower.extend(regions.iter().take(REGIONS).map(|region| only(region))),
            Preference::Apart => {
                let mut elsewhere = request.clone();
                for region in regions.iter().take(REGIONS) {
                    elsewhere.not_regions.insert((*region).to_owned());
                    narrower.push(elsewhere.clone());
                }
            }
            _ => {}
        }
        if let Some(near) = &request.near
            && (request.regions.is_empty() || request.regions.iter().any(|of| region_within(near, of)))
        {
            narrower.push(only(near));
        }
        narrower.extend(
            self.classes().into_iter().map(|model| Request { gpu_model: Some(model), ..request.clone() }),
        );
        narrower
    }

    /// The classes that are searched by themselves where several would do: the best by what weighs.
    fn classes(&self) -> Vec<String> {
        let several = self.request.gpu_model.as_ref().is_none_or(|named| named.contains('|'));
        let weighs = self.weights.compute + self.weights.memory + self.weights.token > 0;
        if self.request.per_member.gpus == 0 || !several || !weighs {
            return Vec::new();
        }
        let of = |class: &HardwareClass| match class {
            HardwareClass::Gpu(model) if self.request.allows(class) => {
                Some((std::cmp::Reverse(hardware::find(model)?.performance_ppm()), model.clone()))
            }
            _ => None,
        };
        let mut classes: Vec<_> = self.state.book().kinds().filter_map(|(class, _)| of(class)).collect();
        classes.sort();
        classes.into_iter().take(CLASSES).map(|(_, model)| model).collect()
    }

    /// What a candidate has against it by itself.
    fn own(&self, one: &Candidate<'_>, pool: &[Candidate<'_>]) -> u64 {
        let best = |of: fn(&Candidate<'_>) -> u64| pool.iter().map(of).max().unwrap_or(0).max(1);
        let least = |of: fn(&Candidate<'_>) -> u64| pool.iter().map(of).min().unwrap_or(0).max(1);
        let below = |value: u64, best: u64| PPM - (value.min(best) * PPM / best);
        let above =
            |value: u64, least: u64| (value.saturating_sub(least).saturating_mul(PPM) / least).min(PPM);
        let token = |one: &Candidate<'_>| one.seat.rate.0.saturating_mul(1000) / one.figures.bandwidth.max(1);
        let Weights { price, compute, memory, token: of_token, link, latency, reliability, .. } =
            self.weights;
        let parts = [
            (price, above(one.seat.rate.0, least(|one| one.seat.rate.0))),
            (compute, below(one.figures.compute, best(|one| one.figures.compute))),
            (memory, below(one.figures.memory_mib, best(|one| one.figures.memory_mib))),
            (of_token, above(token(one), least(token))),
            (link, below(one.reach.mbit_s.into(), best(|one| one.reach.mbit_s.into()))),
            (latency, u64::from(one.latency_us.min(FAR_US)) * PPM / u64::from(FAR_US)),
            (reliability, u64::from(one.unreliable_percent) * PPM / 100),
        ];
        parts.into_iter().map(|(weight, part)| weight * part).sum()
    }

    /// Groups that may be better.
    fn groups(&self, pool: &[Candidate<'_>], members: usize) -> Vec<Vec<usize>> {
        let least = |penalty: &dyn Fn(usize) -> u64| {
            let mut all: Vec<_> = (0..pool.len()).map(|at| (penalty(at), at)).collect();
            all.sort_unstable();
            all.into_iter().take(members).map(|(_, at)| at).collect::<Vec<_>>()
        };
        match self.prefer {
            Preference::Together if members > 1 || !self.limits.beside.is_empty() => {
                let seeds = self.seeds(pool);
                let around = |seed: &Reach<'_>| least(&|at| pool[at].own + self.distance(seed, &pool[at]));
                seeds.iter().map(around).collect()
            }
            Preference::Apart if members > 1 || !self.limits.beside.is_empty() => {
                vec![self.scattered(pool, members)]
            }
            _ => vec![least(&|at| pool[at].own)],
        }
    }

    /// Where groups are gathered around: the members that are there, or a few candidates of different regions and nearest relays.
    fn seeds<'b>(&self, pool: &'b [Candidate<'a>]) -> Vec<Reach<'b>>
    where
        'a: 'b,
    {
        let beside = self.limits.beside.iter().filter_map(|id| self.state.devices.get(id));
        let beside: Vec<_> = beside.take(SEEDS).map(Reach::of).collect();
        if !beside.is_empty() {
            return beside;
        }
        let mut seeds: Vec<usize> = Vec::new();
        let mut places: BTreeMap<(Option<&str>, Option<&str>), usize> = BTreeMap::new();
        for (at, one) in pool.iter().enumerate() {
            let seen = places.entry((one.region, one.reach.nearest())).or_insert(0);
            *seen += 1;
            let again = seeds.iter().any(|seed| pool[*seed].seat.device == one.seat.device);
            if *seen <= 2 && !again && seeds.len() < SEEDS {
                seeds.push(at);
            }
        }
        seeds.into_iter().map(|at| pool[at].reach.clone()).collect()
    }

    fn distance(&self, seed: &Reach<'_>, one: &Candidate<'_>) -> u64 {
        let far = 2 * u64::from(FAR_US);
        self.weights.together * (seed.step_us(&one.reach).min(far) * PPM / far)
    }

    /// One after the other, each where it shares least with those before.
    fn scattered(&self, pool: &[Candidate<'_>], members: usize) -> Vec<usize> {
        let mut crowd = Crowd::new(self.state, &self.limits.beside);
        let (mut group, mut left): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..pool.len()).collect());
        for _ in 0..members {
            let penalty = |at: usize| pool[at].own + self.weights.apart * crowd.shared_ppm(&pool[at]);
            let next = (0..left.len()).min_by_key(|place| (penalty(left[*place]), left[*place]));
            let Some(next) = next else { break };
            let at = left.remove(next);
            crowd.add(&pool[at]);
            group.push(at);
        }
        group
    }

    /// How much a group has against it; the same measure for all.
    fn score(&self, pool: &[Candidate<'_>], group: &[usize]) -> u64 {
        let own: u64 = group.iter().map(|at| pool[*at].own).sum();
        let shared = match self.prefer {
            Preference::Together => {
                let around = |seed: &Reach<'_>| -> u64 {
                    group.iter().map(|at| self.distance(seed, &pool[*at])).sum()
                };
                let beside = self.limits.beside.iter().filter_map(|id| self.state.devices.get(id));
                let beside: Vec<_> = beside.take(SEEDS).map(Reach::of).collect();
                if beside.is_empty() {
                    group.iter().take(SEEDS).map(|at| around(&pool[*at].reach)).min().unwrap_or(0)
                } else {
                    beside.iter().map(around).min().unwrap_or(0)
                }
            }
            Preference::Apart => {
                let mut crowd = Crowd::new(self.state, &self.limits.beside);
                let mut sum = 0;
                for at in group {
                    sum += self.weights.apart * crowd.shared_ppm(&pool[*at]);
                    crowd.add(&pool[*at]);
                }
                sum
            }
            _ => 0,
        };
        own.saturating_add(shared)
    }
}

/// Members that are placed, by what they could fail with.
#[derive(Default)]
struct Crowd<'a> {
    devices: BTreeMap<DeviceId, u64>,
    suppliers: BTreeMap<Address, u64>,
    regions: BTreeMap<&'a str, u64>,
}

impl<'a> Crowd<'a> {
    fn new(state: &'a State, beside: &[DeviceId]) -> Self {
        let mut crowd = Self::default();
        for (id, device) in beside.iter().filter_map(|id| Some((id, state.devices.get(id)?))) {
            crowd.put(*id, device.enrolment.owner, device.proven_region());
        }
        crowd
    }

    fn put(&mut self, device: DeviceId, owner: Address, region: Option<&'a str>) {
        *self.devices.entry(device).or_insert(0) += 1;
        *self.suppliers.entry(owner).or_insert(0) += 1;
        if let Some(region) = region {
            *self.regions.entry(region).or_insert(0) += 1;
        }
    }

    fn add(&mut self, one: &Candidate<'a>) {
        self.put(one.seat.device, one.owner, one.region);
    }

    /// What one more member shares: a device counts in full, a supplier half, a region a quarter; each for every member
    /// that is there already.
    fn shared_ppm(&self, one: &Candidate<'_>) -> u64 {
        let of = |count: Option<&u64>, weight: u64| count.copied().unwrap_or(0) * weight;
        of(self.devices.get(&one.seat.device), PPM)
            + of(self.suppliers.get(&one.owner), PPM / 2)
            + of(one.region.and_then(|region| self.regions.get(region)), PPM / 4)
    }
}
