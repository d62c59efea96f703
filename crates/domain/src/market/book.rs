//! The index of what is open for hire: shelves of devices by hardware, free GPUs and price, and on a shelf one group for all
//! devices that are equal to placement.
//!
//! Kept by the state as events are folded, and built anew from the state where there is none yet: after a snapshot, in a
//! copy. Always holds: the book is the same whichever way it came about; it is no part of the state's equality or of
//! its snapshots; a device stands in one group at most. Not here: choosing (`place`).

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, btree_set};
use std::sync::OnceLock;

use super::capacity::{Capacity, GPU_MILLIS};
use super::demand::Demand;
use super::price::member_rate;
use super::queue::Desk;
use super::score::{Typical, scarcity};
use crate::device::{Contact, Device, DeviceStage, HardwareClass, OwnerRules, Resources, Tier, Window};
use crate::event::PublicBody;
use crate::id::{DeviceId, OrderId};
use crate::money::{HOUR_MS, Rate};
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

/// What of a device renters may set conditions on, beside hardware, size and price.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Traits {
    pub(crate) network: String,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) tier: Tier,
    pub(crate) one_tenant: bool,
    pub(crate) no_egress: bool,
    pub(crate) region_doubted: bool,
    schedule: Vec<Window>,
}

impl Traits {
    fn of(device: &Device) -> Self {
        Self {
            network: device.enrolment.network.clone(),
            tags: device.enrolment.tags.clone(),
            tier: device.tier.unwrap_or(Tier::Basic),
            one_tenant: device.one_tenant(),
            no_egress: device.rules.no_egress,
            region_doubted: device.region_doubt().is_some(),
            schedule: device.rules.schedule.clone(),
        }
    }

    /// Whether the owner's schedule allows a lease to begin now.
    pub(crate) fn open(&self, now_ms: u64) -> bool {
        let rules = || OwnerRules { schedule: self.schedule.clone(), ..OwnerRules::default() };
        self.schedule.is_empty() || rules().closed(now_ms).is_none()
    }
}

/// Numbers for traits, each kept while a device has them.
#[derive(Debug, Default)]
struct Numbers {
    of: BTreeMap<Traits, u32>,
    known: Vec<Option<(Traits, u32)>>,
    unused: Vec<u32>,
}

impl Numbers {
    fn take(&mut self, traits: Traits) -> u32 {
        if let Some(number) = self.of.get(&traits) {
            if let Some((_, users)) = self.known.get_mut(*number as usize).and_then(Option::as_mut) {
                *users += 1;
            }
            return *number;
        }
        let number = self.unused.pop().unwrap_or_else(|| {
            self.known.push(None);
            u32::try_from(self.known.len() - 1).unwrap_or(u32::MAX)
        });
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

/// What one unit of a device costs its renter at least, an hour: for less than a day, and for a week. The two say what any
/// duration costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ask {
    pub(crate) short: Rate,
    long: Rate,
}

impl Ask {
    fn of(device: &Device) -> Self {
        const WEEK_MS: u64 = 7 * 24 * HOUR_MS;
        let gpus = u32::from(device.class != HardwareClass::Cpu);
        let unit = Resources { cpu_millis: 1000, gpus, ..Resources::default() };
        Self { short: member_rate(device, unit, 0), long: member_rate(device, unit, WEEK_MS) }
    }
}

/// Devices that are equal to placement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub(crate) capacity: Capacity,
    pub(crate) traits: u32,
}

/// Devices by age, without a set where there is but one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    One(DeviceId),
    Many(BTreeSet<DeviceId>),
}

/// The devices of a group, the oldest first.
#[derive(Debug, Clone)]
pub(crate) enum IdsIter<'a> {
    One(Option<DeviceId>),
    Many(btree_set::Iter<'a, DeviceId>),
}

impl Iterator for IdsIter<'_> {
    type Item = DeviceId;
    fn next(&mut self) -> Option<DeviceId> {
        match self {
            Self::One(id) => id.take(),
            Self::Many(ids) => ids.next().copied(),
        }
    }
}

impl Ids {
    pub(crate) fn iter(&self) -> IdsIter<'_> {
        match self {
            Self::One(id) => IdsIter::One(Some(*id)),
            Self::Many(ids) => IdsIter::Many(ids.iter()),
        }
    }

    fn insert(&mut self, id: DeviceId) {
        match self {
            Self::One(first) => *self = Self::Many(BTreeSet::from([*first, id])),
            Self::Many(ids) => drop(ids.insert(id)),
        }
    }

    /// Takes one out; whether none is left.
    fn remove(&mut self, id: DeviceId) -> bool {
        match self {
            Self::One(_) => true,
            Self::Many(ids) => {
                ids.remove(&id);
                if let (1, Some(last)) = (ids.len(), ids.first().copied()) {
                    *self = Self::One(last);
                }
                false
            }
        }
    }
}

/// What a member's cost depends on: all that is neither memory nor disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    cpu_offered_millis: u32,
    cpu_millis: u32,
    gpus: Box<[u16]>,
}

impl Shape {
    fn of(capacity: &Capacity) -> Self {
        let Capacity { cpu_offered_millis, cpu_millis, .. } = *capacity;
        Self { cpu_offered_millis, cpu_millis, gpus: capacity.gpus.clone() }
    }
}

/// Groups of one shape.
pub(crate) type Groups = BTreeMap<Group, Ids>;
/// One price.
pub(crate) type Shelf = BTreeMap<Shape, Groups>;
/// How many GPUs are free: 0 none, 1 a part of one, n + 1 for n whole ones.
type Rank = u8;

/// One class of hardware.
#[derive(Debug, Default)]
pub(crate) struct Kind {
    ranks: BTreeMap<Rank, BTreeMap<Ask, Shelf>>,
    devices: u64,
    supply_millis: u64,
    cpu_millis: u64,
    pub(crate) typical: Typical,
}

impl Kind {
    /// How many members all its open devices would hold by GPUs and CPU if nothing were hired and nothing lost in parts.
    pub(crate) fn members(&self, wanted: Resources) -> u64 {
        let times = |all: u64, each: u64| all.checked_div(each).unwrap_or(u64::MAX);
        let by_gpu = times(self.supply_millis, wanted.total_gpu_millis());
        by_gpu.min(times(self.cpu_millis, wanted.cpu_millis.into()))
    }

    /// The least that a unit costs for less than a day.
    pub(crate) fn lowest_ask(&self) -> Option<Rate> {
        self.ranks.values().filter_map(|shelves| shelves.keys().next()).map(|ask| ask.short).min()
    }

    /// The shelves with devices that have enough GPUs free for `wanted`, the cheapest first, in one row for each number of
    /// free GPUs.
    pub(crate) fn rows(
        &self,
        wanted: Resources,
    ) -> impl Iterator<Item = impl Iterator<Item = (&Ask, &Shelf)>> {
        let least = match wanted.gpus {
            0 => 0,
            _ if wanted.is_share() => 1,
            gpus => Rank::try_from(gpus + 1).unwrap_or(Rank::MAX),
        };
        self.ranks.range(least..).map(|(_, shelves)| shelves.iter())
    }

    /// Puts a device into its group.
    fn insert(&mut self, numbers: &mut Numbers, id: DeviceId, device: &Device) {
        let capacity = Capacity::of(device);
        let shelves = self.ranks.entry(rank(&capacity)).or_default();
        let groups = shelves.entry(Ask::of(device)).or_default().entry(Shape::of(&capacity)).or_default();
        let traits = numbers.take(Traits::of(device));
        match groups.entry(Group { capacity, traits }) {
            Slot::Occupied(mut ids) => ids.get_mut().insert(id),
            Slot::Vacant(free) => drop(free.insert(Ids::One(id))),
        }
    }

    /// Takes a device out of its group; what is empty then goes with it.
    fn remove(&mut self, numbers: &mut Numbers, id: DeviceId, device: &Device) {
        let capacity = Capacity::of(device);
        let (rank, ask) = (rank(&capacity), Ask::of(device));
        let Some(traits) = numbers.of.get(&Traits::of(device)).copied() else { return };
        let Some(shelves) = self.ranks.get_mut(&rank) else { return };
        let Some(shapes) = shelves.get_mut(&ask) else { return };
        let shape = Shape::of(&capacity);
        let Some(groups) = shapes.get_mut(&shape) else { return };
        let group = Group { capacity, traits };
        let Some(ids) = groups.get_mut(&group) else { return };
        if ids.remove(id) {
            groups.remove(&group);
        }
        if groups.is_empty() {
            shapes.remove(&shape);
        }
        if shapes.is_empty() {
            shelves.remove(&ask);
        }
        if shelves.is_empty() {
            self.ranks.remove(&rank);
        }
        numbers.give_back(traits);
    }
}

fn rank(capacity: &Capacity) -> Rank {
    match (capacity.whole_gpus(), capacity.gpus.first()) {
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
    pub(crate) devices: &'a BTreeMap<DeviceId, Device>,
    pub(crate) orders: &'a BTreeMap<OrderId, Order>,
}

/// What is open for hire, and what is usually asked for.
#[derive(Debug, Default)]
pub(crate) struct Book {
    numbers: Numbers,
    kinds: BTreeMap<HardwareClass, Kind>,
    demand: Demand,
    desk: Desk,
    /// Follows from supply and demand; made when it is asked for.
    scarcity: OnceLock<BTreeMap<String, i64>>,
}

/// Whether a device takes new leases, its schedule aside.
fn open(device: &Device) -> bool {
    let OwnerRules { paused, draining, yielding, .. } = device.rules;
    let resting = paused || draining || yielding;
    device.stage == DeviceStage::Pooled && device.contact == Contact::Connected && !resting
}

impl Book {
    /// The book of a state, from nothing.
    pub(crate) fn build(state: &State) -> Self {
        let (demand, desk) = (Demand::of(state.orders.values()), Desk::of(state.orders.iter()));
        let mut book = Self { demand, desk, ..Self::default() };
        state.devices.iter().for_each(|(id, device)| book.insert(*id, device));
        book
    }

    /// Orders that something is to be done about.
    pub(crate) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Classes of hardware with open devices.
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
    pub(crate) fn traits(&self, number: u32) -> Option<&Traits> {
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

    fn insert(&mut self, id: DeviceId, device: &Device) {
        if !open(device) {
            return;
        }
        let kind = match self.kinds.entry(device.class.clone()) {
            Slot::Occupied(kind) => kind.into_mut(),
            Slot::Vacant(free) => {
                let typical = Typical::of(&device.class, self.demand.typical());
                free.insert(Kind { typical, ..Kind::default() })
            }
        };
        kind.devices += 1;
        kind.supply_millis += u64::from(device.enrolment.offered.gpus) * u64::from(GPU_MILLIS);
        kind.cpu_millis += u64::from(device.enrolment.offered.cpu_millis);
        if device.one_tenant() && device.leases > 0 {
            return;
        }
        kind.insert(&mut self.numbers, id, device);
    }

    fn remove(&mut self, id: DeviceId, device: &Device) {
        let Some(kind) = self.kinds.get_mut(&device.class).filter(|_| open(device)) else { return };
        kind.devices -= 1;
        kind.supply_millis -= u64::from(device.enrolment.offered.gpus) * u64::from(GPU_MILLIS);
        kind.cpu_millis -= u64::from(device.enrolment.offered.cpu_millis);
        if !(device.one_tenant() && device.leases > 0) {
            kind.remove(&mut self.numbers, id, device);
        }
        if kind.devices == 0 {
            self.kinds.remove(&device.class);
        }
    }

    /// Takes out the devices that an event is about to change, and the orders that leave with it.
    pub(crate) fn before(&mut self, Turn { event, touched, devices, orders }: Turn<'_>) {
        for (id, device) in touched.iter().filter_map(|id| devices.get_key_value(id)) {
            self.remove(*id, device);
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
    pub(crate) fn after(&mut self, Turn { event, touched, devices, orders }: Turn<'_>) {
        for (id, device) in touched.iter().filter_map(|id| devices.get_key_value(id)) {
            self.insert(*id, device);
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
            kinds
                .map(|(class, kind)| (class.clone(), kind.devices, kind.supply_millis, kind.typical.clone()))
                .collect()
        };
        self.demand == other.demand
            && self.desk == other.desk
            && classes(self) == classes(other)
            && self.kinds.keys().all(|class| self.entries(class) == other.entries(class))
    }

    /// Every device of a class with where it stands, by device.
    fn entries(&self, class: &HardwareClass) -> BTreeMap<DeviceId, Entry<'_>> {
        let shelves = self.kinds.get(class).into_iter().flat_map(|kind| &kind.ranks);
        let shelves = shelves.flat_map(|(rank, shelves)| shelves.iter().map(move |groups| (*rank, groups)));
        let groups = shelves.flat_map(|(rank, (ask, shapes))| {
            shapes.values().flatten().map(move |group| (rank, *ask, group))
        });
        let entry = |(rank, ask, (group, ids)): (_, _, (&'_ Group, &'_ Ids))| -> Vec<_> {
            ids.iter().map(|id| (id, (rank, ask, group.traits, group.capacity.clone()))).collect()
        };
        let all = groups.flat_map(entry);
        all.map(|(id, (rank, ask, traits, capacity))| (id, (rank, ask, self.traits(traits), capacity)))
            .collect()
    }
}

/// Where a device stands.
type Entry<'a> = (Rank, Ask, Option<&'a Traits>, Capacity);
