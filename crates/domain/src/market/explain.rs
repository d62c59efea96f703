//! A reason for every no and every wait: what each condition removed, the nearest misses, and the smallest changes to the
//! request that would succeed now, each with its price.
//!
//! Always holds: a relaxation was tried (`quote`) before it is named, so with it the request succeeds in this very state;
//! one change is named before two; the same state gives the same answer. It goes through all of the index, and of devices
//! that are alike to placement looks at one; so it runs beside the writer and never in it. Not here: placing (`place`), why a device gets no work (`explain_device`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::book::{Alike, Spot};
use super::buy::Buy;
use super::conditions::{self, Known, Looked, supplier_allowed};
use super::egress::Egress;
use super::hardware;
use super::place::Shortfall;
use super::price::member_rate;
use super::quote::{Quote, quote, quote_if_any};
use super::request::{MIN_DURATION_MS, Request};
use super::standing::STEPS_PERCENT;
use super::terms::Asker;
use super::wishes::{GpuMinimum, Isolation};
use crate::connectivity::claimed_region;
use crate::device::{Contact, Device, DeviceStage, HardwareClass, Resources, Tier};
use crate::devices::Devices;
use crate::id::{Address, DeviceId, QuoteId};
use crate::money::Rate;
use crate::refusal::Refusal;
use crate::state::State;

/// Most devices that are remembered for each set of unmet conditions, and of each class of them, beside one for each member.
const KEPT_PER_SET: usize = 512;
const KEPT_PER_CLASS: usize = 48;
/// Most devices of a class and standing that are looked at for what they miss: those with the most free GPUs, the cheapest
/// first.
const LOOKED_AT: usize = 4096;
/// Most relaxations that are tried, and named.
const TRIES: usize = 48;
const NAMED: usize = 8;
/// Most of the nearest misses that are named.
const NEAREST: usize = 5;

/// A condition of a request, as devices meet it or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The device is in the pool.
    Pooled,
    /// The device is heard from.
    Heard,
    /// Its owner lets new leases in.
    Open,
    /// Simulated or not, as asked for.
    Simulated,
    /// The operator's deny list.
    Operator,
    /// The hardware.
    GpuModel,
    /// The least that a GPU must be.
    GpuMinimum,
    /// The CPU's name.
    CpuModel,
    /// The supply network.
    Network,
    /// Suppliers that are wanted, or not wanted.
    Suppliers,
    /// Tags, and what round trips say of a region.
    Tags,
    /// Connectivity.
    Tier,
    /// Egress that the supplier allows.
    Egress,
    /// Regions that are wanted.
    Regions,
    /// Regions that data must not be in.
    Residency,
    /// What keeps boxes from their neighbours.
    Isolation,
    /// Leases kept.
    Reliability,
    /// Whom and what its supplier does not serve.
    Terms,
    /// CPU that is free.
    Cpus,
    /// Memory that is free.
    Memory,
    /// Disk that is free.
    Disk,
    /// GPUs that are free.
    Gpus,
    /// How many members, together.
    Members,
    /// A device for each member.
    Spread,
    /// The renter's cap on the price.
    PriceCap,
    /// The renter's cap on the whole.
    TotalCap,
}

impl Condition {
    /// What a renter can change, as far as it shows on single devices.
    const RELAXABLE: [Self; 16] = [
        Self::GpuModel,
        Self::GpuMinimum,
        Self::CpuModel,
        Self::Network,
        Self::Suppliers,
        Self::Tags,
        Self::Tier,
        Self::Egress,
        Self::Regions,
        Self::Residency,
        Self::Isolation,
        Self::Reliability,
        Self::Cpus,
        Self::Memory,
        Self::Disk,
        Self::Gpus,
    ];
    /// What depends on what is free.
    const ROOM: [Self; 4] = [Self::Cpus, Self::Memory, Self::Disk, Self::Gpus];

    /// A set of this one alone.
    fn bit(self) -> u32 {
        1 << self as u32
    }

    fn bits<'a>(these: impl IntoIterator<Item = &'a Self>) -> u32 {
        these.into_iter().fold(0, |bits, one| bits | one.bit())
    }
}

/// A device that would nearly do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearMiss {
    /// Which.
    pub device: DeviceId,
    /// What it is.
    pub class: HardwareClass,
    /// What its supplier takes at least for a member.
    pub least_rate: Rate,
    /// Every condition that it does not meet, with both numbers.
    pub misses: Vec<String>,
}

/// One change to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Which condition.
    pub condition: Condition,
    /// What was asked for.
    pub from: String,
    /// What would do.
    pub to: String,
}

/// One change, or two together, with which the request succeeds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relaxation {
    /// What changes.
    pub changes: Vec<Change>,
    /// All members an hour, before fees.
    pub rate: Rate,
    /// The whole time with the fee, in micro-USD.
    pub total_micro_usd: u64,
    /// The request with the changes.
    pub request: Request,
}

/// Why a request gets what it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// The request as it was understood, defaults included.
    pub request: Request,
    /// Whether it would be placed now.
    pub fits: bool,
    /// What it costs an hour then, before fees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Why not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What each condition removed, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortfall: Option<Shortfall>,
    /// The devices that miss the fewest conditions.
    pub nearest: Vec<NearMiss>,
    /// What would succeed now, single changes first, then by price.
    pub relaxations: Vec<Relaxation>,
}

/// Explains a request against the state as it is, to the account that asks.
///
/// # Errors
/// If the request makes no sense by itself.
pub fn request(
    state: &State,
    account: Address,
    wanted: &Request,
    now_ms: u64,
) -> Result<Explanation, Refusal> {
    wanted.check()?;
    let wanted = &wanted.completed();
    let mut found = Explanation {
        request: wanted.clone(),
        fits: false,
        rate: None,
        refused: None,
        shortfall: None,
        nearest: Vec::new(),
        relaxations: Vec::new(),
    };
    let at_once = at_once(wanted);
    match priced(state, account, &at_once, now_ms) {
        Ok(quote) => {
            found.fits = true;
            found.rate = Some(quote.rate);
            return Ok(found);
        }
        Err(Refusal::NoCapacity(shortfall)) => {
            found.refused = Some(shortfall.to_string());
            found.shortfall = Some(shortfall);
        }
        Err(refusal @ (Refusal::OverPriceCap { .. } | Refusal::OverTotalCap { .. })) => {
            found.refused = Some(refusal.to_string());
        }
        Err(other) => return Err(other),
    }
    let wanted = &Request { buy: Buy::default(), ..wanted.clone() };
    let pool = Pool::of(state, Judge::new(state, account, wanted, now_ms));
    found.nearest = pool.nearest.iter().map(|near| pool.near_miss(*near)).collect();
    let possible = found.shortfall.as_ref().map_or(0, |short| short.possible);
    found.relaxations =
        Search { state, account, wanted, pool: &pool, now_ms, tries: TRIES, found: Vec::new() }.all(possible);
    Ok(found)
}

/// The same request as it would be decided now: waiting is no reason for anything.
fn at_once(wanted: &Request) -> Request {
    let buy = match wanted.buy {
        Buy::Spot { notice_ms, .. } => Buy::Spot { notice_ms, expires_ms: None },
        Buy::Reserved { starts_ms } => Buy::Reserved { starts_ms },
        Buy::OnDemand {} | Buy::Standing { .. } | Buy::Flexible { .. } => Buy::default(),
    };
    Request { buy, ..wanted.clone() }
}

/// The quote that the request would get; nothing of it is promised to anybody.
fn priced(state: &State, account: Address, wanted: &Request, now_ms: u64) -> Result<Quote, Refusal> {
    quote(state, QuoteId::from_bits(0), account, wanted, now_ms)
}

/// Holds devices against a request.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    known: Known<'a>,
    asker: Asker,
    refused: bool,
    wanted: &'a Request,
    now_ms: u64,
}

impl<'a> Judge<'a> {
    pub(super) fn new(state: &'a State, account: Address, wanted: &'a Request, now_ms: u64) -> Self {
        let asker = Asker::new(&state.private, Some(account), wanted.kind);
        let refused = state.private.deny.renters.refuse(&asker).is_some();
        Self { known: Known::of(state), asker, refused, wanted, now_ms }
    }

    fn with<'b>(&self, wanted: &'b Request) -> Judge<'b>
    where
        'a: 'b,
    {
        Judge { wanted, ..*self }
    }
}

/// Every condition that a device does not meet now, in the order in which they are applied.
pub(super) fn misses(judge: &Judge<'_>, id: DeviceId, device: &Device) -> Vec<Condition> {
    use Condition as C;
    let Judge { wanted, now_ms, .. } = *judge;
    let free = device.free();
    let per = wanted.per_member;
    let gpus = if per.is_share() {
        device.free_gpu_millis().iter().any(|free| u32::from(*free) >= per.millis_per_gpu())
    } else {
        free.gpus >= per.gpus
    };
    let met = [
        (C::Pooled, device.stage == DeviceStage::Pooled),
        (C::Simulated, device.enrolment.simulated == wanted.simulated),
        (C::Operator, !judge.refused && !judge.known.denied(id)),
        (C::GpuModel, wanted.allows(&device.class)),
        (C::Network, wanted.allows_network(&device.enrolment.network)),
        (C::Suppliers, supplier_allowed(wanted, &device.enrolment.owner)),
        (C::Tags, missing_tags(device, wanted).is_empty()),
        (C::Tier, wanted.tier.is_none_or(|least| device.tier.unwrap_or(Tier::Basic) >= least)),
        (C::Egress, !device.rules.no_egress || wanted.egress == Egress::Off),
        (C::Heard, device.contact == Contact::Connected),
        (C::Open, device.rules.closed(now_ms).is_none()),
        (C::Gpus, gpus),
        (C::Cpus, free.cpu_millis >= per.cpu_millis),
        (C::Memory, free.memory_bytes >= per.memory_bytes),
        (C::Disk, free.disk_bytes >= per.disk_bytes),
    ];
    let missed = met.into_iter().filter(|(_, met)| !met).map(|(condition, _)| condition);
    let looked = Looked { id, device, known: judge.known };
    let meets = |one: &C| {
        let by_class = *one != C::GpuMinimum || wanted.gpu_min.met_by(&device.class);
        by_class && conditions::meets(*one, &looked, wanted, &judge.asker)
    };
    let wishes = conditions::CONDITIONS.into_iter().filter(|one| !meets(one));
    missed.chain(wishes).collect()
}

/// Tags that the device does not have, and the region's where measurements do not bear it out.
fn missing_tags<'a>(device: &Device, wanted: &'a Request) -> Vec<&'a String> {
    let doubted = claimed_region(&wanted.tags).filter(|_| device.region_doubt().is_some());
    let lacks = |tag: &&String| {
        !device.enrolment.tags.contains(*tag) || doubted.is_some_and(|region| tag.ends_with(region))
    };
    wanted.tags.iter().filter(lacks).collect()
}

/// A condition that a device does not meet, in words with both numbers.
pub(super) fn in_words(judge: &Judge<'_>, condition: Condition, id: DeviceId, device: &Device) -> String {
    use Condition as C;
    let Judge { wanted, now_ms, .. } = *judge;
    let (free, per) = (device.free(), wanted.per_member);
    let leased = if device.leases > 0 { format!(" beside {} leases", device.leases) } else { String::new() };
    let has =
        |what: &str, wanted: String, free: String| format!("{what}: {wanted} wanted, {free} free{leased}");
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    match condition {
        C::Pooled => format!("not pooled ({})", device.stage),
        C::Heard => "not heard from at present".into(),
        C::Simulated if wanted.simulated => "real, and simulated ones are asked for".into(),
        C::Simulated => "simulated: nothing runs on it".into(),
        C::Open => device.rules.closed(now_ms).unwrap_or("closed").into(),
        C::GpuModel => {
            format!(
                "hardware: {} wanted, it is {}",
                wanted.gpu_model.as_deref().unwrap_or("any"),
                device.class
            )
        }
        C::Network => {
            let wanted = wanted.network.as_deref().unwrap_or("any");
            format!("supply network: {wanted} wanted, it is {}", device.enrolment.network)
        }
        C::Tags => {
            let doubt = device.region_doubt().filter(|_| claimed_region(&wanted.tags).is_some());
            let lacking: Vec<_> = missing_tags(device, wanted).into_iter().map(String::as_str).collect();
            doubt.map_or_else(
                || format!("tags: lacks {}", lacking.join(", ")),
                |doubt| format!("region: {doubt}"),
            )
        }
        C::Tier => {
            let least = wanted.tier.unwrap_or(Tier::Basic);
            format!("connectivity: {least} wanted, measured {}", device.tier.unwrap_or(Tier::Basic))
        }
        C::Egress => format!("egress: {} wanted, its supplier forbids it", wanted.egress),
        C::Cpus => has("CPU", format!("{} millis", per.cpu_millis), format!("{} millis", free.cpu_millis)),
        C::Memory => has("memory", mib(per.memory_bytes), mib(free.memory_bytes)),
        C::Disk => has("disk", mib(per.disk_bytes), mib(free.disk_bytes)),
        C::Gpus => has("GPUs", gpus_text(per), free.gpus.to_string()),
        C::Members | C::Spread | C::PriceCap | C::TotalCap => "not a device's own condition".into(),
        C::Operator
        | C::GpuMinimum
        | C::CpuModel
        | C::Suppliers
        | C::Regions
        | C::Residency
        | C::Isolation
        | C::Reliability
        | C::Terms => {
            conditions::in_words(condition, &Looked { id, device, known: judge.known }, wanted, &judge.asker)
        }
    }
}

fn gpus_text(per: Resources) -> String {
    match per.gpu_share_millis {
        Some(share) if per.is_share() => format!("{share} thousandths of one"),
        _ => per.gpus.to_string(),
    }
}

/// The devices that come into question, by what they miss.
struct Pool<'a> {
    judge: Judge<'a>,
    /// Those that miss at most two conditions, all of which a renter can change.
    sets: BTreeMap<BTreeSet<Condition>, Vec<(DeviceId, &'a Device)>>,
    nearest: Vec<(Near, &'a Device)>,
}

/// How near a device is: fewer conditions missed, then fewer GPUs short, then cheaper, then older.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Near {
    missed: usize,
    gpus_short: u32,
    rate: Rate,
    id: DeviceId,
}

/// Devices of a set of unmet conditions that are remembered.
#[derive(Default)]
struct Kept<'a> {
    set: BTreeSet<Condition>,
    devices: Vec<(DeviceId, &'a Device)>,
    class: Option<(&'a HardwareClass, usize)>,
}

impl<'a> Kept<'a> {
    /// Whether one more of a class is wanted.
    fn takes(&mut self, class: &'a HardwareClass, members: usize) -> bool {
        let (known, count) = self.class.unwrap_or((class, 0));
        let count = if known == class { count } else { 0 };
        self.class = Some((class, count + 1));
        count < KEPT_PER_CLASS + members && self.devices.len() < KEPT_PER_SET + members
    }

    fn add(&mut self, judge: &Judge<'_>, id: DeviceId, device: &'a Device) {
        if self.devices.is_empty() {
            self.set = misses(judge, id, device).into_iter().collect();
        }
        self.devices.push((id, device));
    }
}

/// The conditions on what is free that a device does not meet, as [`misses`] has them.
fn missed_room(alike: &Alike<'_>, spot: Option<&Spot>, per: Resources) -> u32 {
    use Condition as C;
    let Alike { shape, standing, .. } = alike;
    let gpus = match shape.gpus.first() {
        _ if per.gpus == 0 => true,
        Some(freest) if per.is_share() => u32::from(*freest) >= per.millis_per_gpu(),
        _ => !standing.full && shape.whole_gpus() >= per.gpus,
    };
    let Some(spot) = spot else {
        let met = [(C::Gpus, gpus), (C::Cpus, shape.cpu_millis >= per.cpu_millis)];
        return Condition::bits(met.iter().filter(|(_, met)| !met).map(|(one, _)| one));
    };
    let memory = if spot.memory_bytes >= per.memory_bytes { 0 } else { C::Memory.bit() };
    let disk = if spot.disk_bytes >= per.disk_bytes { 0 } else { C::Disk.bit() };
    memory | disk
}

impl<'a> Pool<'a> {
    fn of(state: &'a State, judge: Judge<'a>) -> Self {
        let mut pool = Self { judge, sets: BTreeMap::new(), nearest: Vec::new() };
        let wanted = judge.wanted;
        // The index knows no suppliers: where they matter every device is looked at by itself.
        let any_supplier = wanted.suppliers.is_empty() && wanted.not_suppliers.is_empty();
        let (book, members) = (state.book(), wanted.members as usize);
        let (room, relaxable) = (Condition::bits(&Condition::ROOM), Condition::bits(&Condition::RELAXABLE));
        let lacks = |id, device: &Device| Condition::bits(&misses(&judge, id, device)) & !room;
        let most_looked_at = if any_supplier { LOOKED_AT } else { usize::MAX };
        let mut kept: BTreeMap<u32, Kept<'a>> = BTreeMap::new();
        let mut known: Vec<u32> = vec![0; book.numbers()];
        for crowd in book.crowds().filter(|crowd| crowd.standing.simulated == wanted.simulated) {
            for (traits, _) in crowd.traits() {
                let like = crowd.like(traits, book, &state.devices, judge.known);
                if let (Some(known), Some((id, device))) = (known.get_mut(traits as usize), like) {
                    *known = lacks(id, device);
                }
            }
            let mut looked_at = 0;
            for alike in crowd.alike() {
                if looked_at > most_looked_at {
                    break;
                }
                looked_at += alike.spots.len();
                let of_shape = missed_room(&alike, None, wanted.per_member);
                let rate = alike.ask.rate(alike.class, wanted.per_member, wanted.duration_ms);
                let gpus_short = wanted.per_member.gpus.saturating_sub(alike.shape.whole_gpus());
                for (id, spot) in alike.spots.iter().take(most_looked_at) {
                    let of_traits = match known.get(spot.traits as usize) {
                        Some(known) if any_supplier => *known,
                        _ => state.devices.get(&id).map(|device| lacks(id, device)).unwrap_or_default(),
                    };
                    let missed = of_traits | of_shape | missed_room(&alike, Some(spot), wanted.per_member);
                    let count = missed.count_ones() as usize;
                    if missed != 0 && pool.is_near(count) {
                        pool.note_near(Near { missed: count, gpus_short, rate, id }, &state.devices);
                    }
                    if count > 2 || missed & !relaxable != 0 {
                        continue;
                    }
                    let kept = kept.entry(missed).or_default();
                    if kept.takes(alike.class, members)
                        && let Some(device) = state.devices.get(&id)
                    {
                        kept.add(&judge, id, device);
                    }
                }
            }
        }
        pool.sets = kept.into_values().map(|kept| (kept.set, kept.devices)).collect();
        pool
    }

    /// Whether a device that misses so many conditions may be among the nearest.
    fn is_near(&self, missed: usize) -> bool {
        self.nearest.len() < NEAREST || self.nearest.last().is_some_and(|(worst, _)| missed <= worst.missed)
    }

    /// Keeps the few that are nearest.
    fn note_near(&mut self, near: Near, devices: &'a Devices) {
        let full = self.nearest.last().filter(|_| self.nearest.len() >= NEAREST);
        if full.is_some_and(|(worst, _)| *worst < near) {
            return;
        }
        let Some(device) = devices.get(&near.id) else { return };
        let at = self.nearest.partition_point(|(known, _)| *known <= near);
        self.nearest.insert(at, (near, device));
        self.nearest.truncate(NEAREST);
    }

    fn near_miss(&self, (near, device): (Near, &Device)) -> NearMiss {
        let missed = misses(&self.judge, near.id, device);
        let words = |one: &Condition| in_words(&self.judge, *one, near.id, device);
        NearMiss {
            device: near.id,
            class: device.class.clone(),
            least_rate: near.rate,
            misses: missed.iter().map(words).collect(),
        }
    }

    /// The devices that would do if these conditions were no matter.
    fn without(&self, relaxed: &BTreeSet<Condition>) -> impl Iterator<Item = (DeviceId, &'a Device)> {
        self.sets
            .iter()
            .filter(|(set, _)| set.is_subset(relaxed))
            .flat_map(|(_, devices)| devices.iter().copied())
    }

    /// Whether that many members of a request would fit on these devices.
    fn enough(&self, devices: &[(DeviceId, &Device)], wanted: &Request) -> bool {
        let mut members = 0;
        let judge = self.judge.with(wanted);
        devices.iter().any(|(id, device)| {
            if misses(&judge, *id, device).is_empty() {
                members += room(device, wanted);
            }
            members >= wanted.members
        })
    }
}

/// How many members of a request that it may take fit on a device now.
fn room(device: &Device, wanted: &Request) -> u32 {
    if device.one_tenant() {
        return 1;
    }
    let (free, per) = (device.free(), wanted.per_member);
    let times = |free: u64, per: u64| free.checked_div(per).unwrap_or(u64::MAX);
    let gpus = if per.is_share() {
        let millis = per.millis_per_gpu().max(1);
        device.free_gpu_millis().iter().map(|free| u64::from(u32::from(*free) / millis)).sum()
    } else {
        times(free.gpus.into(), per.gpus.into())
    };
    let least = [
        times(free.cpu_millis.into(), per.cpu_millis.into()),
        times(free.memory_bytes, per.memory_bytes),
        times(free.disk_bytes, per.disk_bytes),
        gpus,
        wanted.most_per_device().unwrap_or(wanted.members).min(wanted.members).into(),
    ];
    least.into_iter().min().and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX)
}

/// Looks for relaxations.
struct Search<'a> {
    state: &'a State,
    account: Address,
    wanted: &'a Request,
    pool: &'a Pool<'a>,
    now_ms: u64,
    tries: usize,
    found: Vec<Relaxation>,
}

impl Search<'_> {
    fn all(mut self, possible: u32) -> Vec<Relaxation> {
        self.whole_request(possible);
        let present: BTreeSet<Condition> = self.pool.sets.keys().flatten().copied().collect();
        for one in &present {
            for relaxed in self.options(&[*one].into(), *one, self.wanted) {
                self.attempt(relaxed, &[*one]);
            }
        }
        for (n, one) in present.iter().enumerate() {
            for other in present.iter().skip(n + 1) {
                self.pair(*one, *other);
            }
        }
        self.found.sort_by_key(|found| (found.changes.len(), found.rate));
        self.found.truncate(NAMED);
        self.found
    }

    /// What concerns all members together.
    fn whole_request(&mut self, possible: u32) {
        if self.wanted.max_rate.is_some() || self.wanted.max_total_micro_usd.is_some() {
            self.attempt(self.wanted.clone(), &[]);
        }
        if self.wanted.most_per_device().is_some() {
            let shared = Request { spread: false, max_per_device: None, ..self.wanted.clone() };
            self.attempt(shared, &[Condition::Spread]);
        }
        if possible > 0 {
            self.attempt(Request { members: possible, ..self.wanted.clone() }, &[Condition::Members]);
        }
    }

    /// Two changes, unless one of them is enough.
    fn pair(&mut self, one: Condition, other: Condition) {
        let alone = |found: &Relaxation, condition| matches!(found.changes.as_slice(), [only] if only.condition == condition);
        if self.found.iter().any(|found| alone(found, one) || alone(found, other)) {
            return;
        }
        let both = [one, other].into();
        for first in self.options(&both, one, self.wanted) {
            for relaxed in self.options(&both, other, &first) {
                if self.attempt(relaxed, &[one, other]) {
                    return;
                }
            }
        }
    }

    /// Tries a relaxed request; a price above the cap is one more change, if there is room for one.
    fn attempt(&mut self, relaxed: Request, changed: &[Condition]) -> bool {
        if self.tries == 0 {
            return false;
        }
        self.tries -= 1;
        let open_ended = relaxed.open_ended;
        let uncapped =
            Request { max_rate: None, max_total_micro_usd: None, open_ended: false, ..relaxed.clone() };
        let uncapped =
            if open_ended { Request { duration_ms: MIN_DURATION_MS, ..uncapped } } else { uncapped };
        let Some(quote) = quote_if_any(self.state, self.account, &uncapped, self.now_ms) else {
            return false;
        };
        let mut changed = changed.to_vec();
        let mut request = relaxed;
        if request.max_rate.is_some_and(|cap| quote.rate > cap) {
            changed.push(Condition::PriceCap);
            request.max_rate = Some(quote.rate);
        }
        if request.max_total_micro_usd.is_some_and(|cap| quote.total_micro_usd > cap) {
            changed.push(Condition::TotalCap);
            request.max_total_micro_usd = Some(quote.total_micro_usd);
        }
        if changed.is_empty() || changed.len() > 2 {
            return false;
        }
        let lasting = |request| quote_if_any(self.state, self.account, request, self.now_ms);
        let Some(quote) = (if open_ended { lasting(&request) } else { Some(quote) }) else { return false };
        let relaxation = Relaxation {
            changes: changed.iter().map(|one| change(*one, self.wanted, &request)).collect(),
            rate: quote.rate,
            total_micro_usd: quote.total_micro_usd,
            request,
        };
        if !self.found.contains(&relaxation) {
            self.found.push(relaxation);
        }
        true
    }

    /// The request with one condition relaxed as little as may do, in each way that there is; `from` may already have another
    /// one relaxed, and `relaxed` names all of them.
    fn options(&self, relaxed: &BTreeSet<Condition>, one: Condition, from: &Request) -> Vec<Request> {
        use Condition as C;
        let devices: Vec<_> = self.pool.without(relaxed).collect();
        let with = |change: &dyn Fn(&mut Request)| {
            let mut request = from.clone();
            change(&mut request);
            request
        };
        match one {
            C::GpuModel => Self::models(&devices, from),
            C::Network => vec![with(&|request| request.network = None)],
            C::Tags => {
                let lacking = |(_, device): &(DeviceId, &Device)| {
                    missing_tags(device, self.wanted).into_iter().cloned().collect::<BTreeSet<_>>()
                };
                let sets: BTreeSet<_> =
                    devices.iter().map(lacking).filter(|set| !set.is_empty()).take(8).collect();
                let without =
                    |set: &BTreeSet<String>| with(&|request| request.tags.retain(|tag| !set.contains(tag)));
                sets.iter().map(without).collect()
            }
            C::Tier => {
                let lower = [Tier::High, Tier::Medium, Tier::Low, Tier::Basic];
                let below = lower.into_iter().filter(|tier| from.tier.is_some_and(|least| *tier < least));
                let tier =
                    |tier| with(&|request| request.tier = Some(tier).filter(|tier| *tier > Tier::Basic));
                self.least(&devices, relaxed, &below.map(tier).collect::<Vec<_>>())
            }
            C::Egress => vec![with(&|request| request.egress = Egress::Off)],
            C::GpuMinimum
            | C::CpuModel
            | C::Suppliers
            | C::Regions
            | C::Residency
            | C::Isolation
            | C::Reliability => self.wishes(&devices, relaxed, one, from),
            _ => self.sizes(&devices, relaxed, one, from),
        }
    }

    /// Wishes, relaxed to what there is.
    fn wishes(
        &self,
        devices: &[(DeviceId, &Device)],
        relaxed: &BTreeSet<Condition>,
        one: Condition,
        from: &Request,
    ) -> Vec<Request> {
        use Condition as C;
        match one {
            C::GpuMinimum => {
                let lower = |(_, device): &(DeviceId, &Device)| lowered(from.gpu_min, device);
                let lower: BTreeSet<_> = devices.iter().map(lower).collect();
                let with = |gpu_min| Request { gpu_min, ..from.clone() };
                lower.into_iter().rev().filter(|min| *min != from.gpu_min).take(4).map(with).collect()
            }
            C::CpuModel => vec![Request { cpu_model: None, ..from.clone() }],
            C::Suppliers => {
                let any = Request { suppliers: BTreeSet::new(), ..from.clone() };
                let all = Request { not_suppliers: BTreeSet::new(), ..from.clone() };
                let both = Request { not_suppliers: BTreeSet::new(), ..any.clone() };
                [any, all, both].into_iter().filter(|changed| changed != from).collect()
            }
            C::Regions => {
                let region = |(_, device): &(DeviceId, &Device)| device.proven_region().map(str::to_owned);
                let others: BTreeSet<_> = devices.iter().filter_map(region).collect();
                let also = |region: String| {
                    let regions = from.regions.iter().cloned().chain([region]).collect();
                    Request { regions, ..from.clone() }
                };
                let any = Request { regions: BTreeSet::new(), ..from.clone() };
                others.into_iter().take(4).map(also).chain([any]).filter(|changed| changed != from).collect()
            }
            C::Residency => {
                let without = |region: &String| {
                    let mut request = from.clone();
                    request.not_regions.remove(region);
                    request
                };
                let none = Request { not_regions: BTreeSet::new(), ..from.clone() };
                from.not_regions.iter().take(4).map(without).chain([none]).collect()
            }
            C::Isolation => vec![Request { isolation: Some(Isolation::Process), ..from.clone() }],
            C::Reliability => {
                let asked = from.min_reliability_percent.unwrap_or(0);
                let with = |percent| Request {
                    min_reliability_percent: Some(percent).filter(|percent| *percent > 0),
                    ..from.clone()
                };
                let steps = STEPS_PERCENT.into_iter().chain([0]).filter(|step| *step < asked);
                self.least(devices, relaxed, &steps.map(with).collect::<Vec<_>>())
            }
            _ => Vec::new(),
        }
    }

    /// Smaller members, the largest that may do first.
    fn sizes(
        &self,
        devices: &[(DeviceId, &Device)],
        relaxed: &BTreeSet<Condition>,
        one: Condition,
        from: &Request,
    ) -> Vec<Request> {
        let Some((grain, _)) = size(one, from.per_member) else { return Vec::new() };
        let of = |resources| size(one, resources).map_or(0, |(_, amount)| amount);
        let free = devices.iter().map(|(_, device)| of(device.free()) / grain * grain);
        let smaller = |value| Request { per_member: sized(one, from.per_member, value), ..from.clone() };
        let steps: Vec<_> = below(free, of(from.per_member)).map(smaller).collect();
        self.least(devices, relaxed, &steps)
    }

    /// Of ever greater relaxations the first with room for all members, and the greatest as a last resort. While another
    /// condition is still to be relaxed, room cannot be judged yet: a few are handed on.
    fn least(
        &self,
        devices: &[(DeviceId, &Device)],
        relaxed: &BTreeSet<Condition>,
        steps: &[Request],
    ) -> Vec<Request> {
        let first = steps.partition_point(|request| !self.pool.enough(devices, request));
        if let Some(found) = steps.get(first) {
            return vec![found.clone()];
        }
        if relaxed.len() < 2 {
            return Vec::new();
        }
        let last = steps.len().saturating_sub(1);
        let some: BTreeSet<usize> = [0, last / 2, last].into_iter().filter(|n| *n < steps.len()).collect();
        some.into_iter().map(|n| steps[n].clone()).collect()
    }

    /// Other hardware beside what was asked for: each other class that there is, the cheapest first.
    fn models(devices: &[(DeviceId, &Device)], from: &Request) -> Vec<Request> {
        let mut least: BTreeMap<&HardwareClass, Rate> = BTreeMap::new();
        for (_, device) in devices.iter().filter(|(_, device)| !from.allows(&device.class)) {
            let rate = member_rate(device, from.per_member, from.duration_ms);
            let known = least.entry(&device.class).or_insert(rate);
            *known = rate.min(*known);
        }
        let mut classes: Vec<_> = least.into_iter().map(|(class, rate)| (rate, class)).collect();
        classes.sort();
        let also = |class: &HardwareClass| {
            let asked = from.gpu_model.as_deref().unwrap_or_default();
            match class {
                HardwareClass::Gpu(model) => Some(format!("{asked}|{model}")),
                HardwareClass::Cpu => None,
            }
        };
        let with = |(_, class): (Rate, &HardwareClass)| Request { gpu_model: also(class), ..from.clone() };
        classes.into_iter().take(4).map(with).collect()
    }
}

/// The least that is asked of a GPU, lowered to what a device has.
fn lowered(asked: GpuMinimum, device: &Device) -> GpuMinimum {
    let model = match &device.class {
        HardwareClass::Gpu(model) => hardware::find(model),
        HardwareClass::Cpu => None,
    };
    let of = |figure: Option<u32>| u64::from(figure.unwrap_or(0));
    GpuMinimum {
        memory_bytes: asked.memory_bytes.min(u64::from(device.gpu_memory_mib()) << 20),
        bandwidth_gb_s: asked.bandwidth_gb_s.min(of(model.map(|model| model.bandwidth_gb_s))),
        fp16_gflops: asked.fp16_gflops.min(of(model.map(|model| model.fp16_gflops))),
    }
}

/// Distinct values below what was asked for and above zero, the largest first; each also shared by two and by four members.
fn below(free: impl Iterator<Item = u64>, asked: u64) -> impl Iterator<Item = u64> {
    let parts = free.flat_map(|free| [free, free / 2, free / 4]);
    let values: BTreeSet<u64> = parts.filter(|value| (1..asked).contains(value)).collect();
    values.into_iter().rev()
}

/// The steps in which a size is made smaller, and how large it is; none for what is no size.
fn size(one: Condition, resources: Resources) -> Option<(u64, u64)> {
    match one {
        Condition::Cpus => Some((100, resources.cpu_millis.into())),
        Condition::Memory => Some((1 << 20, resources.memory_bytes)),
        Condition::Disk => Some((1 << 20, resources.disk_bytes)),
        Condition::Gpus => Some((1, resources.gpus.into())),
        _ => None,
    }
}

/// The same with one size set; fewer GPUs are whole ones.
fn sized(one: Condition, resources: Resources, value: u64) -> Resources {
    match one {
        Condition::Cpus => Resources { cpu_millis: narrow(value), ..resources },
        Condition::Memory => Resources { memory_bytes: value, ..resources },
        Condition::Disk => Resources { disk_bytes: value, ..resources },
        Condition::Gpus => Resources { gpus: narrow(value), gpu_share_millis: None, ..resources },
        _ => resources,
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What was asked for under a condition, and what would do.
fn change(condition: Condition, from: &Request, to: &Request) -> Change {
    let text = |request: &Request| value(condition, request);
    Change { condition, from: text(from), to: text(to) }
}

fn value(condition: Condition, request: &Request) -> String {
    use Condition as C;
    let any = || "any".to_owned();
    let per = request.per_member;
    let list = |tags: &BTreeSet<String>| tags.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    match condition {
        C::GpuModel => request.gpu_model.clone().map_or_else(any, |model| model.replace('|', " or ")),
        C::Network => request.network.clone().unwrap_or_else(any),
        C::Tags if request.tags.is_empty() => any(),
        C::Tags => list(&request.tags),
        C::Tier => request.tier.map_or_else(any, |tier| tier.to_string()),
        C::Egress => request.egress.to_string(),
        C::Cpus => format!("{} millis", per.cpu_millis),
        C::Memory => format!("{} MiB", per.memory_bytes >> 20),
        C::Disk => format!("{} MiB", per.disk_bytes >> 20),
        C::Gpus => gpus_text(per),
        C::Members => request.members.to_string(),
        C::Spread => match request.most_per_device() {
            Some(1) => "a device each".into(),
            Some(most) => format!("at most {most} on a device"),
            None => "devices may be shared".into(),
        },
        C::GpuMinimum => request.gpu_min.to_string(),
        C::CpuModel => request.cpu_model.clone().map_or_else(any, |model| model.replace('|', " or ")),
        C::Suppliers => suppliers(request),
        C::Regions if request.regions.is_empty() => any(),
        C::Regions => conditions::listed(&request.regions, " or "),
        C::Residency if request.not_regions.is_empty() => any(),
        C::Residency => format!("not in {}", conditions::listed(&request.not_regions, " nor ")),
        C::Isolation => request.isolation.map_or_else(any, |isolation| isolation.to_string()),
        C::Reliability => {
            request.min_reliability_percent.map_or_else(any, |percent| format!("at least {percent} %"))
        }
        C::TotalCap => {
            request.max_total_micro_usd.map_or_else(any, |total| crate::money::Asset::Iosd.show(total))
        }
        C::PriceCap => request.max_rate.map_or_else(any, |rate| rate.to_string()),
        C::Pooled | C::Heard | C::Open | C::Simulated | C::Operator | C::Terms => String::new(),
    }
}

fn suppliers(request: &Request) -> String {
    let list = |of: &BTreeSet<Address>| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match (request.suppliers.is_empty(), request.not_suppliers.is_empty()) {
        (true, true) => "any".into(),
        (false, _) => list(&request.suppliers),
        (true, false) => format!("not {}", list(&request.not_suppliers)),
    }
}
