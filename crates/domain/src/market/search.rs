//! The search behind placement: levels of equal price, from the cheapest up, and on each level the best candidate first.
//!
//! A level holds one candidate for each shape, the first in the queue that meets every condition; when it is taken the next of its shape
//! and what is left of it come in. So the members of an order are placed one after the other, each where it costs least.
//! Always holds: nothing is placed unless all members are. Not here: the index (`book`), the formula (`score`).

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::book::{Ask, Book, Shelf, Spot, Spots, SpotsIter, Traits, Waiting};
use super::capacity::{Capacity, Shape, take};
use super::conditions::{Known, class_allowed, meets_all, supplier_allowed};
use super::place::{Limits, Seat, Sieve};
use super::price::{duration_factor_percent, member_rate};
use super::request::Request;
use super::score::Scorer;
use super::terms::Asker;
use crate::connectivity::claimed_region;
use crate::device::{Device, HardwareClass, Resources};
use crate::id::DeviceId;
use crate::market::Egress;
use crate::money::Rate;
use crate::state::State;

/// Where a member could go.
pub(super) struct Candidate<'a> {
    cost: i64,
    waiting: Waiting,
    share_of: u16,
    class: &'a HardwareClass,
    room: Room<'a>,
}

/// What a candidate has free.
enum Room<'a> {
    /// Alone: a device that was looked at by itself, or what is left of one.
    Own(Box<Capacity>),
    /// As one of a shape, with those after it.
    Shape(&'a Shape, &'a Spot, SpotsIter<'a>),
}

impl Room<'_> {
    /// What is left after a member.
    fn less(&self, wanted: Resources, share_of: u16) -> Capacity {
        match self {
            Self::Own(capacity) => capacity.less(wanted, share_of),
            Self::Shape(shape, Spot { memory_bytes, disk_bytes, .. }, _) => {
                let (memory_bytes, disk_bytes) = (*memory_bytes, *disk_bytes);
                Capacity { shape: (*shape).clone(), memory_bytes, disk_bytes }.less(wanted, share_of)
            }
        }
    }
}

impl Candidate<'_> {
    fn order(&self) -> (i64, Waiting) {
        (self.cost, self.waiting)
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Candidate<'_> {}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// Once so many candidates tie, no more of the same cost are looked for: which is the oldest of very many matters to nobody.
const ENOUGH: usize = 64;

/// A shape that was not looked at yet.
struct Closed<'a> {
    cost: i64,
    share_of: u16,
    class: &'a HardwareClass,
    shape: &'a Shape,
    spots: &'a Spots,
}

/// A level: all candidates of one rate, the best on top, and shapes by cost that are looked at when it is their turn.
#[derive(Default)]
pub(super) struct Level<'a> {
    open: BinaryHeap<Reverse<Candidate<'a>>>,
    closed: VecDeque<Closed<'a>>,
}

impl<'a> Level<'a> {
    fn pop(&mut self, search: &Search<'a>) -> Option<Candidate<'a>> {
        while let Some(next) = self.closed.front() {
            match self.open.peek() {
                Some(Reverse(best)) if best.cost < next.cost => break,
                Some(Reverse(best)) if best.cost == next.cost && self.open.len() >= ENOUGH => break,
                _ => {}
            }
            if let Some(next) = self.closed.pop_front() {
                self.push(search.look_into(&next));
            }
        }
        self.open.pop().map(|Reverse(best)| best)
    }

    fn push(&mut self, candidate: Option<Candidate<'a>>) {
        self.open.extend(candidate.map(Reverse));
    }

    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.is_empty()
    }
}

/// Where levels come from, the cheapest first.
pub(super) trait Levels<'a> {
    /// The next level; `None` after the last.
    fn next(&mut self, search: &Search<'a>) -> Option<(Rate, Level<'a>)>;
}

/// One request's search.
pub(super) struct Search<'a> {
    state: &'a State,
    book: &'a Book,
    request: &'a Request,
    limits: &'a Limits,
    now_ms: u64,
    asker: Asker,
    /// Whether the operator's list keeps the whole request out.
    refused: bool,
    /// What is known of each number of traits.
    accepted: RefCell<Vec<Option<bool>>>,
    /// Where the request could go to several models.
    scarcity: Option<&'a BTreeMap<String, i64>>,
}

impl<'a> Search<'a> {
    pub(super) fn new(state: &'a State, request: &'a Request, limits: &'a Limits, now_ms: u64) -> Self {
        let book = state.book();
        let named_one = request.gpu_model.as_ref().is_some_and(|named| !named.contains('|'));
        let choice = request.per_member.gpus > 0 && !named_one;
        let scarcity = choice.then(|| book.scarcity());
        let accepted = RefCell::new(vec![None; book.numbers()]);
        let asker = Asker::new(&state.private, limits.renter, request.kind);
        let refused = state.private.deny.renters.refuse(&asker).is_some();
        Self { state, book, request, limits, now_ms, asker, refused, accepted, scarcity }
    }

    /// Takes the best candidates until every member has a seat; fewer seats where no more fit.
    pub(super) fn fill(&self, levels: impl Levels<'a>) -> Vec<Seat> {
        let promised = self.limits.rates.as_deref();
        self.take(levels, self.request.members as usize, |n, rate| {
            promised.is_none_or(|rates| rates.get(n).is_some_and(|most| rate <= *most))
        })
    }

    /// So many seats, or as many as there are, none above a rate.
    pub(super) fn up_to(&self, levels: impl Levels<'a>, wanted: usize, most: Rate) -> Vec<Seat> {
        self.take(levels, wanted, |_, rate| rate <= most)
    }

    fn take(
        &self,
        mut levels: impl Levels<'a>,
        wanted: usize,
        within: impl Fn(usize, Rate) -> bool,
    ) -> Vec<Seat> {
        let mut seats: Vec<Seat> = Vec::with_capacity(wanted);
        // Free GPUs by place, of devices that have a member of this request already.
        let mut rooms: BTreeMap<DeviceId, Begun> = BTreeMap::new();
        while seats.len() < wanted && !self.refused {
            let Some((rate, mut level)) = levels.next(self) else { break };
            while seats.len() < wanted
                && let Some(best) = level.pop(self)
            {
                if !within(seats.len(), rate) {
                    return seats;
                }
                seats.push(self.seat(best, rate, &mut rooms, &mut level));
            }
        }
        seats
    }

    /// Takes a candidate; the next of its group and what is left of it become candidates.
    fn seat(
        &self,
        mut best: Candidate<'a>,
        rate: Rate,
        rooms: &mut BTreeMap<DeviceId, Begun>,
        level: &mut Level<'a>,
    ) -> Seat {
        let (device, wanted, share_of) = (best.waiting.id(), self.request.per_member, best.share_of);
        let found = self.state.devices.get(&device);
        let begun = rooms.entry(device).or_insert_with(|| {
            let gpus = found.map(|found| self.limits.room(device, found).1).unwrap_or_default();
            Begun { gpus, members: 0 }
        });
        begun.members += 1;
        let gpus = take(&mut begun.gpus, wanted, share_of);
        let seat = Seat { device, gpus, rate, cost: best.cost };
        let one_tenant = found.is_none_or(Device::one_tenant);
        let most = self.request.most_per_device();
        let last = one_tenant || most.is_some_and(|most| begun.members >= most);
        let left = (!last).then(|| best.room.less(wanted, share_of)).filter(|left| left.fits(wanted));
        if let Some(left) = left {
            level.push(self.candidate(best.waiting, best.class, left));
        }
        if let Room::Shape(_, spot, more) = &mut best.room
            && let Some((waiting, next)) = self.next_of(more)
        {
            (best.waiting, *spot) = (waiting, next);
            level.push(Some(best));
        }
        seat
    }

    /// The next device of a shape that meets every condition and is not looked at by itself.
    fn next_of(&self, spots: &mut SpotsIter<'a>) -> Option<(Waiting, &'a Spot)> {
        let wanted = self.request.per_member;
        let any_supplier = self.request.suppliers.is_empty() && self.request.not_suppliers.is_empty();
        spots.find(|(waiting, spot)| {
            let id = waiting.id();
            spot.memory_bytes >= wanted.memory_bytes
                && spot.disk_bytes >= wanted.disk_bytes
                && self.knows(spot.traits)
                && !self.limits.avoid.contains(&id)
                && !self.limits.apart(id)
                && (any_supplier || self.is_supplied_as_wanted(id))
        })
    }

    fn is_supplied_as_wanted(&self, id: DeviceId) -> bool {
        let found = self.state.devices.get(&id);
        found.is_some_and(|device| supplier_allowed(self.request, &device.enrolment.owner))
    }

    /// The devices of the suppliers that are wanted, if some are and they are few.
    fn few_of_suppliers(&self) -> Option<Vec<DeviceId>> {
        let wanted = &self.request.suppliers;
        let ids = wanted.iter().flat_map(|owner| self.book.of_supplier(owner));
        let ids: Vec<_> = ids.take(FEW + 1).collect();
        (!wanted.is_empty() && ids.len() <= FEW).then_some(ids)
    }

    fn scorer(&self, class: &HardwareClass) -> Option<Scorer<'a>> {
        let scarcity_millis = match class {
            HardwareClass::Gpu(model) => {
                self.scarcity.and_then(|scarcity| scarcity.get(model)).copied().unwrap_or(0)
            }
            HardwareClass::Cpu => 0,
        };
        Some(Scorer { typical: &self.book.kind(class)?.typical, scarcity_millis })
    }

    fn candidate(
        &self,
        waiting: Waiting,
        class: &'a HardwareClass,
        capacity: Capacity,
    ) -> Option<Candidate<'a>> {
        let (cost, share_of) = self.scorer(class)?.cost(&capacity.shape, self.request.per_member);
        Some(Candidate { cost, waiting, share_of, class, room: Room::Own(Box::new(capacity)) })
    }

    fn rate(&self, device: &Device) -> Rate {
        member_rate(device, self.request.per_member, self.request.duration_ms)
    }

    /// A device that is looked at by itself, if it meets every condition.
    fn alone(&self, id: DeviceId, sieve: &Sieve<'_>) -> Option<(Rate, DeviceId)> {
        let device = self.state.devices.get(&id)?;
        sieve.suits(id, device).then(|| (self.rate(device), id))
    }

    fn single(&self, id: DeviceId) -> Option<Candidate<'a>> {
        let device = self.state.devices.get(&id)?;
        let waiting = Waiting::of(id, Known::of(self.state));
        self.candidate(waiting, &device.class, self.limits.room(id, device).0)
    }

    /// Opens a shape: the oldest that meets every condition.
    fn look_into(&self, closed: &Closed<'a>) -> Option<Candidate<'a>> {
        let Closed { cost, share_of, class, shape, spots } = *closed;
        let mut more = spots.queue();
        let (waiting, spot) = self.next_of(&mut more)?;
        Some(Candidate { cost, waiting, share_of, class, room: Room::Shape(shape, spot, more) })
    }

    fn knows(&self, number: u32) -> bool {
        let mut accepted = self.accepted.borrow_mut();
        let Some(known) = accepted.get_mut(number as usize) else { return false };
        *known.get_or_insert_with(|| self.book.traits(number).is_some_and(|traits| self.accepts(traits)))
    }

    fn accepts(&self, traits: &Traits<'_>) -> bool {
        let request = self.request;
        request.allows_network(&traits.network)
            && request.tags.is_subset(&traits.tags)
            && (!traits.region_doubted || claimed_region(&request.tags).is_none())
            && request.tier.is_none_or(|least| traits.tier >= least)
            && (!traits.no_egress || request.egress == Egress::Off)
            && traits.open(self.now_ms)
            && meets_all(traits, request, &self.asker)
    }
}

/// What a device has left while members of this request are put on it.
pub(super) struct Begun {
    /// Free thousandths of each GPU, by its place in the offer.
    gpus: Vec<u16>,
    members: u32,
}

/// Suppliers with more devices than this are found on the shelves.
const FEW: usize = 4096;

/// The rest of a row.
type Rest<'a> = Box<dyn Iterator<Item = (&'a Ask, &'a Shelf)> + 'a>;

/// A row of shelves with the lower bound of what a member costs on the next of them.
struct Row<'a> {
    class: &'a HardwareClass,
    next: (&'a Ask, &'a Shelf),
    rest: Rest<'a>,
}

/// Levels from the book.
pub(super) struct Shelves<'a> {
    rows: Vec<Option<Row<'a>>>,
    bounds: BinaryHeap<Reverse<(u64, usize)>>,
    /// Shelves whose rate is known, and devices that are looked at by themselves.
    pending: BinaryHeap<Reverse<(Rate, usize)>>,
    known: Vec<Pending<'a>>,
    units_millis: [u64; 2],
    percent: u64,
}

#[derive(Clone, Copy)]
enum Pending<'a> {
    Shelf(&'a HardwareClass, &'a Shelf),
    Single(DeviceId),
}

impl<'a> Shelves<'a> {
    pub(super) fn new(search: &Search<'a>) -> Self {
        let wanted = search.request.per_member;
        let mut shelves = Self {
            rows: Vec::new(),
            bounds: BinaryHeap::new(),
            pending: BinaryHeap::new(),
            known: Vec::new(),
            units_millis: [wanted.cpu_millis.into(), gpu_units_millis(wanted)],
            percent: duration_factor_percent(search.request.duration_ms).into(),
        };
        let can = |class: &HardwareClass| wanted.gpus == 0 || *class != HardwareClass::Cpu;
        let simulated = search.request.simulated;
        for (class, kind) in
            search.book.kinds().filter(|(class, _)| class_allowed(search.request, class) && can(class))
        {
            // What no device of a class meets is told by its traits, without a look at the shelves.
            if !kind.open_traits(simulated).any(|traits| search.knows(traits)) {
                continue;
            }
            for row in kind.rows(wanted, simulated) {
                shelves.add(class, Box::new(row));
            }
        }
        let sieve = Sieve::new(search.state, search.request, search.limits, search.now_ms);
        if let Some(few) = search.few_of_suppliers() {
            (shelves.rows, shelves.bounds) = (Vec::new(), BinaryHeap::new());
            for (rate, id) in few.into_iter().filter_map(|id| search.alone(id, &sieve)) {
                shelves.put(rate, Pending::Single(id));
            }
            return shelves;
        }
        for (rate, id) in search.limits.all_apart().filter_map(|id| search.alone(id, &sieve)) {
            shelves.put(rate, Pending::Single(id));
        }
        shelves
    }

    fn add(&mut self, class: &'a HardwareClass, mut rest: Rest<'a>) {
        if let Some(next) = rest.next() {
            self.bounds.push(Reverse((self.bound(class, next.0), self.rows.len())));
            self.rows.push(Some(Row { class, next, rest }));
        }
    }

    /// The least that a member can cost on a shelf; exact except where a supplier's floor holds.
    fn bound(&self, class: &HardwareClass, ask: &Ask) -> u64 {
        let units = self.units_millis[usize::from(*class != HardwareClass::Cpu)];
        let bound = u128::from(ask.short.0) * u128::from(units) * u128::from(self.percent) / 100_000;
        u64::try_from(bound).unwrap_or(u64::MAX)
    }

    fn put(&mut self, rate: Rate, pending: Pending<'a>) {
        self.pending.push(Reverse((rate, self.known.len())));
        self.known.push(pending);
    }

    /// The rates of all shelves that may be as cheap as the cheapest known.
    fn look(&mut self, search: &Search<'a>) {
        while let Some(Reverse((bound, at))) = self.bounds.peek().copied() {
            if self.pending.peek().is_some_and(|Reverse((rate, _))| bound > rate.0) {
                return;
            }
            self.bounds.pop();
            let Some(row) = self.rows[at].as_mut() else { continue };
            let (class, (ask, shapes)) = (row.class, row.next);
            match row.rest.next() {
                Some(next) => {
                    row.next = next;
                    self.bounds.push(Reverse((self.bound(class, next.0), at)));
                }
                None => self.rows[at] = None,
            }
            let rate = ask.rate(class, search.request.per_member, search.request.duration_ms);
            self.put(rate, Pending::Shelf(class, shapes));
        }
    }

    fn open(search: &Search<'a>, class: &'a HardwareClass, shelf: &'a Shelf, level: &mut Level<'a>) {
        let (Some(scorer), wanted) = (search.scorer(class), search.request.per_member) else { return };
        for (shape, spots) in shelf.iter().filter(|(shape, _)| shape.fits(wanted)) {
            let (cost, share_of) = scorer.cost(shape, wanted);
            level.closed.push_back(Closed { cost, share_of, class, shape, spots });
        }
    }
}

impl<'a> Levels<'a> for Shelves<'a> {
    fn next(&mut self, search: &Search<'a>) -> Option<(Rate, Level<'a>)> {
        loop {
            self.look(search);
            let Reverse((rate, _)) = *self.pending.peek()?;
            let mut level = Level::default();
            while let Some(Reverse((same, at))) = self.pending.peek().copied()
                && same == rate
            {
                self.pending.pop();
                match self.known[at] {
                    Pending::Shelf(class, shapes) => Self::open(search, class, shapes, &mut level),
                    Pending::Single(id) => level.push(search.single(id)),
                }
            }
            level.closed.make_contiguous().sort_by_key(|closed| closed.cost);
            if !level.is_empty() {
                return Some((rate, level));
            }
        }
    }
}

/// Thousandths of GPUs that are priced on a GPU device: one at least, unless a share is wanted.
fn gpu_units_millis(wanted: Resources) -> u64 {
    if wanted.is_share() { wanted.total_gpu_millis() } else { wanted.total_gpu_millis().max(1000) }
}

/// Levels from all devices.
pub(super) struct All {
    suitable: std::iter::Peekable<std::vec::IntoIter<(Rate, DeviceId)>>,
}

impl All {
    pub(super) fn new(search: &Search<'_>) -> Self {
        let sieve = Sieve::new(search.state, search.request, search.limits, search.now_ms);
        let (request, all) = (search.request, search.state.devices.iter());
        let may = |device: &Device| {
            request.allows(&device.class) && device.enrolment.offered.holds(request.per_member)
        };
        let may = all.filter(|(_, device)| may(device));
        let mut suitable: Vec<_> = may.filter_map(|(id, _)| search.alone(*id, &sieve)).collect();
        suitable.sort_unstable();
        Self { suitable: suitable.into_iter().peekable() }
    }
}

impl<'a> Levels<'a> for All {
    fn next(&mut self, search: &Search<'a>) -> Option<(Rate, Level<'a>)> {
        let (rate, _) = *self.suitable.peek()?;
        let mut level = Level::default();
        while let Some((_, id)) = self.suitable.next_if(|(same, _)| *same == rate) {
            level.push(search.single(id));
        }
        Some((rate, level))
    }
}
