//! The index of devices, first of all of those open for hire: shelves of devices by hardware, free GPUs and price, and on a shelf the devices of
//! each shape, with what else placement asks of them beside their ids, so that no device itself needs to be looked at.
//!
//! Kept by the state as events are folded, and built anew from the state where there is none yet: after a snapshot, in a
//! copy. Always holds: the book is the same whichever way it came about; it is no part of the state's equality or of
//! its snapshots; a device stands in one place at most. Not here: choosing (`place`).

use std::borrow::Cow;
use std::collections::btree_map::{self, Entry as Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use super::capacity::{Capacity, GPU_MILLIS, Shape};
use super::conditions::{Facts, Known};
use super::demand::Demand;
use super::price::{floor_per_unit, unit_rate};
use super::queue::Desk;
use super::score::{Typical, scarcity};
use super::terms::Denials;
use crate::connectivity::claimed_region;
use crate::device::{Contact, Device, DeviceStage, HardwareClass, OwnerRules, Resources, Tier, Window};
use crate::devices::Devices;
use crate::event::PublicBody;
use crate::id::{Address, DeviceId, OrderId};
use crate::money::Rate;
use crate::order::Order;
use crate::state::State;

/// A state's book: there is one from the first placement on.
#[derive(Debug, Default)]
pub(crate) struct BookCell(OnceLock<Box<Book>>);

/// A copy of a state makes its own book when it needs one.
impl Clone for BookCell {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Derived from the rest of the state, so never what two states differ in.
impl PartialEq for BookCell {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for BookCell {}

impl BookCell {
    /// The book of this state, made now if there is none yet.
    pub(crate) fn of<'a>(&'a self, state: &State) -> &'a Book {
        self.0.get_or_init(|| Box::new(Book::build(state)))
    }

    /// The book, if there is one.
    pub(crate) fn kept(&mut self) -> Option<&mut Book> {
        self.0.get_mut().map(AsMut::as_mut)
    }
}

/// What of a device renters may set conditions on, beside hardware, size and price. Borrowed from the device until it gets
/// a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Traits<'a> {
    pub(crate) tier: Tier,
    pub(crate) one_tenant: bool,
    pub(crate) no_egress: bool,
    pub(crate) region_doubted: bool,
    unreliable_percent: u8,
    gpu_memory_mib: u32,
    /// Where measurements bear out that it is.
    region: Option<Cow<'a, str>>,
    cpu_model: Cow<'a, str>,
    terms: Option<Cow<'a, Denials>>,
    pub(crate) network: Cow<'a, str>,
    pub(crate) tags: Cow<'a, BTreeSet<String>>,
    schedule: Cow<'a, [Window]>,
}

impl Facts for Traits<'_> {
    fn proven_region(&self) -> Option<&str> {
        self.region.as_deref()
    }
    fn cpu_model(&self) -> &str {
        &self.cpu_model
    }
    fn gpu_memory_mib(&self) -> u32 {
        self.gpu_memory_mib
    }
    fn one_tenant(&self) -> bool {
        self.one_tenant
    }
    fn reliability_percent(&self) -> u8 {
        100 - self.unreliable_percent
    }
    fn terms(&self) -> Option<&Denials> {
        self.terms.as_deref()
    }
}

impl<'a> Traits<'a> {
    fn of(id: DeviceId, device: &'a Device, known: Known<'a>) -> Self {
        let region_doubted = device.region_doubt().is_some();
        let claimed = claimed_region(&device.enrolment.tags).filter(|_| !region_doubted);
        Self {
            unreliable_percent: known.unreliable_percent(id),
            gpu_memory_mib: device.gpu_memory_mib(),
            region: claimed.map(Cow::Borrowed),
            cpu_model: Cow::Borrowed(&device.enrolment.hardware.cpu_model),
            terms: known.terms(id).map(Cow::Borrowed),
            tier: device.tier.unwrap_or(Tier::Basic),
            one_tenant: device.one_tenant(),
            no_egress: device.rules.no_egress,
            region_doubted,
            network: Cow::Borrowed(&device.enrolment.network),
            tags: Cow::Borrowed(&device.enrolment.tags),
            schedule: Cow::Borrowed(&device.rules.schedule),
        }
    }

    fn owned(self) -> Traits<'static> {
        Traits {
            region: self.region.map(|region| Cow::Owned(region.into_owned())),
            cpu_model: Cow::Owned(self.cpu_model.into_owned()),
            terms: self.terms.map(|terms| Cow::Owned(terms.into_owned())),
            network: Cow::Owned(self.network.into_owned()),
            tags: Cow::Owned(self.tags.into_owned()),
            schedule: Cow::Owned(self.schedule.into_owned()),
            ..self
        }
    }

    /// Whether the owner's schedule allows a lease to begin now.
    pub(crate) fn open(&self, now_ms: u64) -> bool {
        let rules = || OwnerRules { schedule: self.schedule.to_vec(), ..OwnerRules::default() };
        self.schedule.is_empty() || rules().closed(now_ms).is_none()
    }
}

/// Numbers for traits, each kept while a device has them.
#[derive(Debug, Default)]
struct Numbers {
    of: BTreeMap<Traits<'static>, u32>,
    known: Vec<Option<(Traits<'static>, u32)>>,
    unused: Vec<u32>,
}

impl Numbers {
    fn users(&mut self, number: u32) -> Option<&mut (Traits<'static>, u32)> {
        self.known.get_mut(number as usize)?.as_mut()
    }

    /// The number of these traits. A device that has a number keeps it where its traits are the same as before.
    fn take(&mut self, traits: Traits<'_>, before: Option<u32>) -> u32 {
        if let Some(before) = before {
            if self.users(before).is_some_and(|(known, _)| *known == traits) {
                return before;
            }
            self.give_back(before);
        }
        if let Some(number) = number_of(&self.of, &traits) {
            if let Some((_, users)) = self.users(number) {
                *users += 1;
            }
            return number;
        }
        let number = self.unused.pop().unwrap_or_else(|| {
            self.known.push(None);
            u32::try_from(self.known.len() - 1).unwrap_or(u32::MAX)
        });
        let traits = traits.owned();
        self.of.insert(traits.clone(), number);
        self.known[number as usize] = Some((traits, 1));
        number
    }

    fn give_back(&mut self, number: u32) {
        let Some(slot) = self.known.get_mut(number as usize) else { return };
        let Some((traits, users)) = slot else { return };
        *users -= 1;
        if *users == 0 {
            self.of.remove(traits);
            *slot = None;
            self.unused.push(number);
        }
    }
}

/// Looks up borrowed traits among owned ones.
fn number_of<'a>(of: &BTreeMap<Traits<'a>, u32>, traits: &Traits<'a>) -> Option<u32> {
    of.get(traits).copied()
}

/// What one unit of a device costs its renter at least, an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ask {
    /// For less than a day.
    pub(crate) short: Rate,
    pub(crate) per_unit: Rate,
    floor: Rate,
}

impl Ask {
    fn of(device: &Device) -> Self {
        let per_unit = device.enrolment.ask_per_unit;
        let floor = device.alternative.map_or(Rate(0), |other| floor_per_unit(&device.class, other));
        Self { short: per_unit.max(floor), per_unit, floor }
    }

    /// What a member costs on a device of a class that asks this, as [`super::price::member_rate`] has it.
    pub(crate) fn rate(&self, class: &HardwareClass, wanted: Resources, duration_ms: u64) -> Rate {
        unit_rate(class, (self.per_unit, self.floor), wanted, duration_ms)
    }
}

/// What placement knows of a device beside its shape and its price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Free.
    pub(crate) memory_bytes: u64,
    /// Free.
    pub(crate) disk_bytes: u64,
    pub(crate) memory_offered_bytes: u64,
    pub(crate) disk_offered_bytes: u64,
    pub(crate) traits: u32,
}

/// A device's place in the queue for work: the more reliable first, among them who has waited longest, whoever's it is. A
/// device that is in use keeps its place, so that what is begun is filled; one that becomes free goes to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    /// Unreliable percent above the time that it waits since: there is one of these for each device.
    turn: u64,
    /// Big-endian, for the order.
    id: [u8; 16],
}

impl Waiting {
    const TIME_BITS: u32 = 56;

    pub(crate) fn of(id: DeviceId, known: Known<'_>) -> Self {
        let since_ms = known.waits_since_ms(id).min((1 << Self::TIME_BITS) - 1);
        let turn = u64::from(known.unreliable_percent(id)) << Self::TIME_BITS | since_ms;
        Self { turn, id: id.bits().to_be_bytes() }
    }

    pub(crate) fn id(self) -> DeviceId {
        DeviceId::from_bits(u128::from_be_bytes(self.id))
    }
}

/// Devices in the order in which they wait, without a map where there is but one.
#[derive(Debug)]
pub(crate) enum Spots {
    One(Waiting, Spot),
    Many(BTreeMap<Waiting, Spot>),
}

/// The devices of a shape, the first in the queue first.
#[derive(Debug, Clone)]
pub(crate) enum SpotsIter<'a> {
    One(Option<(Waiting, &'a Spot)>),
    Many(btree_map::Iter<'a, Waiting, Spot>),
}

impl<'a> Iterator for SpotsIter<'a> {
    type Item = (Waiting, &'a Spot);
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::One(spot) => spot.take(),
            Self::Many(spots) => spots.next().map(|(id, spot)| (*id, spot)),
        }
    }
}

impl Spots {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DeviceId, &Spot)> {
        self.queue().map(|(waiting, spot)| (waiting.id(), spot))
    }

    pub(crate) fn queue(&self) -> SpotsIter<'_> {
        match self {
            Self::One(id, spot) => SpotsIter::One(Some((*id, spot))),
            Self::Many(spots) => SpotsIter::Many(spots.iter()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(..) => 1,
            Self::Many(spots) => spots.len(),
        }
    }

    fn insert(&mut self, id: Waiting, spot: Spot) {
        match self {
            Self::One(first, known) => *self = Self::Many(BTreeMap::from([(*first, *known), (id, spot)])),
            Self::Many(spots) => drop(spots.insert(id, spot)),
        }
    }

    /// Takes one out, and whether it was the last.
    fn remove(&mut self, id: Waiting) -> (Option<Spot>, bool) {
        match self {
            Self::One(_, spot) => (Some(*spot), true),
            Self::Many(spots) => {
                let spot = spots.remove(&id);
                if let (1, Some((last, spot))) = (spots.len(), spots.first_key_value()) {
                    *self = Self::One(*last, *spot);
                }
                (spot, false)
            }
        }
    }
}

/// One price: devices by what of them is free, memory and disk aside.
pub(crate) type Shelf = BTreeMap<Shape, Spots>;
/// How many GPUs are free: 0 none, 1 a part of one, n + 1 for n whole ones.
type Rank = u8;

/// Why a device takes nothing at all, whatever is asked of it; its schedule, which the time decides, is one of its traits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::struct_excessive_bools, reason = "each by itself keeps a device from work")]
pub(crate) struct Standing {
    /// For show only.
    pub(crate) simulated: bool,
    /// Not in the pool: by stage.
    pub(crate) unpooled: Option<Unpooled>,
    /// Kept out by the operator.
    denied: bool,
    /// Not heard from.
    pub(crate) silent: bool,
    paused: bool,
    draining: bool,
    yielding: bool,
    /// Has a tenant and lets no second one in.
    pub(crate) full: bool,
}

/// A stage before the pool or beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unpooled {
    Registered,
    Checking,
    Refused,
}

impl Standing {
    /// `None` for a device that is archived: it stands nowhere.
    fn of(id: DeviceId, device: &Device, known: Known<'_>) -> Option<Self> {
        let unpooled = match device.stage {
            DeviceStage::Registered => Some(Unpooled::Registered),
            DeviceStage::Checking => Some(Unpooled::Checking),
            DeviceStage::Refused { .. } => Some(Unpooled::Refused),
            DeviceStage::Pooled => None,
            DeviceStage::Archived => return None,
        };
        let OwnerRules { paused, draining, yielding, .. } = device.rules;
        let silent = device.contact != Contact::Connected;
        let full = device.one_tenant() && device.leases > 0;
        let (simulated, denied) = (device.enrolment.simulated, known.denied(id));
        Some(Self { simulated, unpooled, denied, silent, paused, draining, yielding, full })
    }

    /// Whether its owner lets new leases in, the schedule aside.
    pub(crate) fn welcomes(self) -> bool {
        !(self.paused || self.draining || self.yielding)
    }

    /// Whether it counts as supply: what is hired does.
    fn supplies(self) -> bool {
        Self { full: false, ..self } == Self::default()
    }
}

/// Devices of one standing.
#[derive(Debug, Default)]
struct Stand {
    /// By free GPUs, price and shape.
    ranks: BTreeMap<Rank, BTreeMap<Ask, Shelf>>,
    /// How many there are of each number of traits, and the one that came in last, which may have left again.
    traits: BTreeMap<u32, (u32, DeviceId)>,
}

impl Stand {
    fn insert(&mut self, waiting: Waiting, device: &Device, traits: u32) {
        let Capacity { shape, memory_bytes, disk_bytes } = Capacity::of(device);
        let Resources { memory_bytes: memory_offered_bytes, disk_bytes: disk_offered_bytes, .. } =
            device.enrolment.offered;
        let spot = Spot { memory_bytes, disk_bytes, memory_offered_bytes, disk_offered_bytes, traits };
        let (devices, last) = self.traits.entry(traits).or_insert((0, waiting.id()));
        (*devices, *last) = (*devices + 1, waiting.id());
        let shelves = self.ranks.entry(rank(&shape)).or_default();
        match shelves.entry(Ask::of(device)).or_default().entry(shape) {
            Slot::Occupied(mut spots) => spots.get_mut().insert(waiting, spot),
            Slot::Vacant(free) => drop(free.insert(Spots::One(waiting, spot))),
        }
    }

    /// Takes a device out; what is empty then goes with it. The number of its traits.
    fn remove(&mut self, waiting: Waiting, device: &Device) -> Option<u32> {
        let shape = Capacity::of(device).shape;
        let (rank, ask) = (rank(&shape), Ask::of(device));
        let shelves = self.ranks.get_mut(&rank)?;
        let shapes = shelves.get_mut(&ask)?;
        let (spot, last) = shapes.get_mut(&shape)?.remove(waiting);
        if last {
            shapes.remove(&shape);
            if shapes.is_empty() {
                shelves.remove(&ask);
            }
            if shelves.is_empty() {
                self.ranks.remove(&rank);
            }
        }
        let Slot::Occupied(mut count) = self.traits.entry(spot?.traits) else { return None };
        count.get_mut().0 -= 1;
        if count.get().0 == 0 {
            count.remove();
        }
        spot.map(|spot| spot.traits)
    }

    /// The device with the most free GPUs and the lowest ask that has these traits.
    fn like(&self, traits: u32) -> Option<DeviceId> {
        let shelves = self.ranks.values().rev().flat_map(BTreeMap::values);
        let mut spots = shelves.flat_map(BTreeMap::values).flat_map(Spots::iter);
        spots.find(|(_, spot)| spot.traits == traits).map(|(id, _)| id)
    }
}

/// One class of hardware.
#[derive(Debug, Default)]
pub(crate) struct Kind {
    standings: BTreeMap<Standing, Stand>,
    supply_millis: u64,
    cpu_millis: u64,
    pub(crate) typical: Typical,
}

/// Devices of one class and standing.
#[derive(Clone, Copy)]
pub(crate) struct Crowd<'a> {
    pub(crate) class: &'a HardwareClass,
    pub(crate) standing: Standing,
    stand: &'a Stand,
}

impl<'a> Crowd<'a> {
    /// The numbers of their traits, each with how many devices have them.
    pub(crate) fn traits(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        self.stand.traits.iter().map(|(number, (devices, _))| (*number, *devices))
    }

    /// One of the devices with these traits.
    pub(crate) fn like<'d>(
        &self,
        traits: u32,
        book: &Book,
        devices: &'d Devices,
        known: Known<'_>,
    ) -> Option<(DeviceId, &'d Device)> {
        let (_, last) = *self.stand.traits.get(&traits)?;
        let is_here = |device: &&Device| {
            device.class == *self.class
                && Standing::of(last, device, known) == Some(self.standing)
                && book.traits(traits).is_some_and(|same| *same == Traits::of(last, device, known))
        };
        let first = || self.stand.like(traits).and_then(|id| Some((id, devices.get(&id)?)));
        devices.get(&last).filter(is_here).map(|device| (last, device)).or_else(first)
    }

    /// Those with the most free GPUs and the lowest ask first.
    pub(crate) fn alike(self) -> impl Iterator<Item = Alike<'a>> {
        let Self { class, standing, stand } = self;
        let shelves = stand.ranks.values().rev().flatten();
        shelves.flat_map(move |(ask, shelf)| {
            shelf.iter().map(move |(shape, spots)| Alike { class, standing, ask, shape, spots })
        })
    }
}

impl Kind {
    fn crowds<'a>(&'a self, class: &'a HardwareClass) -> impl Iterator<Item = Crowd<'a>> {
        self.standings.iter().map(move |(standing, stand)| Crowd { class, standing: *standing, stand })
    }

    /// How many members all its open devices would hold by GPUs and CPU if nothing were hired and nothing lost in parts.
    pub(crate) fn members(&self, wanted: Resources) -> u64 {
        let times = |all: u64, each: u64| all.checked_div(each).unwrap_or(u64::MAX);
        let by_gpu = times(self.supply_millis, wanted.total_gpu_millis());
        by_gpu.min(times(self.cpu_millis, wanted.cpu_millis.into()))
    }

    /// The least that a unit costs for less than a day.
    pub(crate) fn lowest_ask(&self) -> Option<Rate> {
        let supply = self.standings.iter().filter(|(standing, _)| standing.supplies());
        let shelves = supply.flat_map(|(_, stand)| stand.ranks.values());
        shelves.filter_map(|shelves| shelves.keys().next()).map(|ask| ask.short).min()
    }

    /// The shelves with devices that have enough GPUs free for `wanted`, the cheapest first, in one row for each number of
    /// free GPUs.
    pub(crate) fn rows(
        &self,
        wanted: Resources,
        simulated: bool,
    ) -> impl Iterator<Item = impl Iterator<Item = (&Ask, &Shelf)>> {
        let least = match wanted.gpus {
            0 => 0,
            _ if wanted.is_share() => 1,
            gpus => Rank::try_from(gpus + 1).unwrap_or(Rank::MAX),
        };
        let open = self.open(simulated).into_iter();
        open.flat_map(move |stand| stand.ranks.range(least..)).map(|(_, shelves)| shelves.iter())
    }

    /// The numbers of the traits of all devices that take leases now.
    pub(crate) fn open_traits(&self, simulated: bool) -> impl Iterator<Item = u32> {
        self.open(simulated).into_iter().flat_map(|stand| stand.traits.keys().copied())
    }

    fn open(&self, simulated: bool) -> Option<&Stand> {
        self.standings.get(&Standing { simulated, ..Standing::default() })
    }

    fn remove(&mut self, standing: Standing, waiting: Waiting, device: &Device) -> Option<u32> {
        let stand = self.standings.get_mut(&standing)?;
        let traits = stand.remove(waiting, device);
        if stand.ranks.is_empty() {
            self.standings.remove(&standing);
        }
        traits
    }
}

impl Alike<'_> {
    /// Free units, in thousandths: of GPUs, or on a CPU device of CPU threads.
    pub(crate) fn free_millis(&self) -> u64 {
        match self.class {
            HardwareClass::Cpu => self.shape.cpu_millis.into(),
            HardwareClass::Gpu(_) => self.shape.gpus.iter().map(|free| u64::from(*free)).sum(),
        }
    }

    /// The same of those in use and free.
    pub(crate) fn offered_millis(&self) -> u64 {
        match self.class {
            HardwareClass::Cpu => self.shape.cpu_offered_millis.into(),
            HardwareClass::Gpu(_) => self.shape.gpus.len() as u64 * u64::from(GPU_MILLIS),
        }
    }

    /// Whether they could take something, their schedules aside.
    pub(crate) fn has_room(&self) -> bool {
        let Standing { unpooled, denied, silent, .. } = self.standing;
        unpooled.is_none() && !denied && !silent && self.standing.welcomes() && self.free_millis() > 0
    }
}

/// Devices that stand alike but for their ids, their traits and their memory and disk.
#[derive(Clone, Copy)]
pub(crate) struct Alike<'a> {
    pub(crate) class: &'a HardwareClass,
    pub(crate) standing: Standing,
    pub(crate) ask: &'a Ask,
    pub(crate) shape: &'a Shape,
    pub(crate) spots: &'a Spots,
}

fn rank(shape: &Shape) -> Rank {
    match (shape.whole_gpus(), shape.gpus.first()) {
        (0, None | Some(0)) => 0,
        (whole, _) => Rank::try_from(whole + 1).unwrap_or(Rank::MAX),
    }
}

/// An event that is folded, with the state before or after it.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) event: &'a PublicBody,
    /// The devices that it changes.
    pub(crate) touched: &'a [DeviceId],
    pub(crate) devices: &'a Devices,
    pub(crate) orders: &'a BTreeMap<OrderId, Order>,
    /// What is known of the devices beside themselves.
    pub(crate) known: Known<'a>,
}

/// The beginning of an address.
fn beginning(owner: &Address) -> u64 {
    owner.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// All devices but archived ones, and what is usually asked for.
#[derive(Debug, Default)]
pub(crate) struct Book {
    numbers: Numbers,
    kinds: BTreeMap<HardwareClass, Kind>,
    demand: Demand,
    /// Devices by the beginning of their supplier's address, for who wants certain suppliers.
    owners: BTreeSet<(u64, DeviceId)>,
    desk: Desk,
    /// Follows from supply and demand; made when it is asked for.
    scarcity: OnceLock<BTreeMap<String, i64>>,
    /// How many devices stand here.
    devices: usize,
    /// Devices that an event is about to change, with the numbers of their traits before.
    changing: Vec<(DeviceId, u32)>,
}

impl Book {
    /// The book of a state, from nothing.
    pub(crate) fn build(state: &State) -> Self {
        let (demand, desk) = (Demand::of(state.orders.values()), Desk::of(state.orders.iter()));
        let mut book = Self { demand, desk, ..Self::default() };
        let known = Known::of(state);
        state.devices.iter().for_each(|(id, device)| book.insert(*id, device, known, None));
        book
    }

    /// Devices of a supplier, and now and then one of another.
    pub(crate) fn of_supplier(&self, owner: &Address) -> impl Iterator<Item = DeviceId> {
        let first = beginning(owner);
        let (least, most) = (DeviceId::from_bits(0), DeviceId::from_bits(u128::MAX));
        self.owners.range((first, least)..=(first, most)).map(|(_, id)| *id)
    }

    /// How many devices stand here.
    pub(crate) fn devices(&self) -> usize {
        self.devices
    }

    /// All devices by class and standing.
    pub(crate) fn crowds(&self) -> impl Iterator<Item = Crowd<'_>> {
        self.kinds.iter().flat_map(|(class, kind)| kind.crowds(class))
    }

    /// Those of a class.
    pub(crate) fn crowds_of<'a>(&'a self, class: &'a HardwareClass) -> impl Iterator<Item = Crowd<'a>> {
        self.kinds.get(class).into_iter().flat_map(move |kind| kind.crowds(class))
    }

    /// By the number of their traits, whether the schedule lets a lease begin now.
    pub(crate) fn hours(&self, now_ms: u64) -> Vec<bool> {
        let open = |known: &Option<(Traits<'static>, u32)>| {
            known.as_ref().is_none_or(|(traits, _)| traits.open(now_ms))
        };
        self.numbers.known.iter().map(open).collect()
    }

    /// Orders that something is to be done about.
    pub(crate) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Classes of hardware.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (&HardwareClass, &Kind)> {
        self.kinds.iter()
    }

    /// One class of hardware.
    pub(crate) fn kind(&self, class: &HardwareClass) -> Option<&Kind> {
        self.kinds.get(class)
    }

    /// One more than the highest number of traits.
    pub(crate) fn numbers(&self) -> usize {
        self.numbers.known.len()
    }

    /// The traits with this number.
    pub(crate) fn traits(&self, number: u32) -> Option<&Traits<'static>> {
        self.numbers.known.get(number as usize)?.as_ref().map(|(traits, _)| traits)
    }

    /// How scarce each model is.
    pub(crate) fn scarcity(&self) -> &BTreeMap<String, i64> {
        self.scarcity.get_or_init(|| {
            let supply = self.kinds.iter().filter_map(|(class, kind)| match class {
                HardwareClass::Gpu(model) => Some((model.as_str(), kind.supply_millis)),
                HardwareClass::Cpu => None,
            });
            scarcity(&supply.collect(), self.demand.typical())
        })
    }

    /// Puts a device in; `before` is the number of its traits before a change.
    fn insert(&mut self, id: DeviceId, device: &Device, known: Known<'_>, before: Option<u32>) {
        let Some(standing) = Standing::of(id, device, known) else {
            if let Some(number) = before {
                self.numbers.give_back(number);
            }
            return;
        };
        let demand = &self.demand;
        let fresh = || Kind { typical: Typical::of(&device.class, demand.typical()), ..Kind::default() };
        let kind = self.kinds.entry(device.class.clone()).or_insert_with(fresh);
        self.devices += 1;
        kind.supply_millis += supply_millis(standing, device);
        kind.cpu_millis += supply_cpu_millis(standing, device);
        self.owners.insert((beginning(&device.enrolment.owner), id));
        let traits = self.numbers.take(Traits::of(id, device, known), before);
        kind.standings.entry(standing).or_default().insert(Waiting::of(id, known), device, traits);
    }

    /// Takes a device out. The number of its traits, which is not given back.
    fn remove(&mut self, id: DeviceId, device: &Device, known: Known<'_>) -> Option<u32> {
        let standing = Standing::of(id, device, known)?;
        self.owners.remove(&(beginning(&device.enrolment.owner), id));
        let kind = self.kinds.get_mut(&device.class)?;
        self.devices -= 1;
        kind.supply_millis -= supply_millis(standing, device);
        kind.cpu_millis -= supply_cpu_millis(standing, device);
        let traits = kind.remove(standing, Waiting::of(id, known), device);
        if kind.standings.is_empty() {
            self.kinds.remove(&device.class);
        }
        traits
    }

    /// Takes out the devices that an event is about to change, and the orders that leave with it.
    pub(crate) fn before(&mut self, Turn { event, touched, devices, orders, known }: Turn<'_>) {
        for (id, device) in touched.iter().filter_map(|id| Some((*id, devices.get(id)?))) {
            let traits = self.remove(id, device, known);
            self.changing.extend(traits.map(|number| (id, number)));
        }
        // What is hired is supply still.
        let hired = matches!(
            event,
            PublicBody::OrderPlaced { .. } | PublicBody::LeaseLost { .. } | PublicBody::LeaseRemoved { .. }
        );
        if !touched.is_empty() && !hired {
            self.scarcity = OnceLock::new();
        }
        if let PublicBody::Retired { orders: retired, .. } = event
            && self.demand.retired(retired.iter().filter_map(|order| orders.get(order)))
        {
            self.refresh();
        }
    }

    /// Puts them back as they are now.
    pub(crate) fn after(&mut self, Turn { event, touched, devices, orders, known }: Turn<'_>) {
        let mut before = std::mem::take(&mut self.changing);
        for (id, device) in touched.iter().filter_map(|id| Some((*id, devices.get(id)?))) {
            let at = before.iter().position(|(changing, _)| *changing == id);
            self.insert(id, device, known, at.map(|at| before.swap_remove(at).1));
        }
        self.desk.after(event, orders);
        if let PublicBody::OrderAccepted { order, .. } = event
            && let Some(order) = orders.get(order)
            && self.demand.accepted(order)
        {
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        self.scarcity = OnceLock::new();
        for (class, kind) in &mut self.kinds {
            kind.typical = Typical::of(class, self.demand.typical());
        }
    }

    /// Whether both hold the same, whatever numbers they gave to traits.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let classes = |book: &Self| -> Vec<_> {
            let kinds = book.kinds.iter();
            kinds.map(|(class, kind)| (class.clone(), kind.supply_millis, kind.typical.clone())).collect()
        };
        self.demand == other.demand
            && self.devices == other.devices
            && self.owners == other.owners
            && self.desk == other.desk
            && classes(self) == classes(other)
            && self.kinds.keys().all(|class| self.entries(class) == other.entries(class))
    }

    /// Every device of a class with where it stands, by device.
    fn entries<'a>(&'a self, class: &'a HardwareClass) -> BTreeMap<Waiting, Entry<'a>> {
        let entry = |Alike { standing, ask, shape, spots, .. }: Alike<'a>| {
            let entry = move |(waiting, spot): (Waiting, &'a Spot)| {
                let spot = (Spot { traits: 0, ..*spot }, self.traits(spot.traits));
                (waiting, (standing, ask, shape, spot))
            };
            spots.queue().map(entry)
        };
        self.crowds_of(class).flat_map(Crowd::alike).flat_map(entry).collect()
    }
}

/// Where a device stands.
type Entry<'a> = (Standing, &'a Ask, &'a Shape, (Spot, Option<&'a Traits<'static>>));

fn supply_millis(standing: Standing, device: &Device) -> u64 {
    if !standing.supplies() {
        return 0;
    }
    u64::from(device.enrolment.offered.gpus) * u64::from(GPU_MILLIS)
}

fn supply_cpu_millis(standing: Standing, device: &Device) -> u64 {
    if standing.supplies() { device.enrolment.offered.cpu_millis.into() } else { 0 }
}
