//! The order in which waiting orders are tried, who holds capacity meanwhile, and what a waiting order is told.
//!
//! First the class of urgency, which waiting lifts (half a class an hour); in a class the account that used least of late; then
//! age. Whoever stands behind may go first if he fits and those before him do not (backfill), except that one order at a time,
//! the first of those that waited for [`HOLD_AFTER_MS`], holds what it can already get.
//! Always holds: the same state gives the same order; within an account and class the older goes first but for backfill; what
//! is held counts as taken for all but those of a higher class. Not here: where an order goes (`place`, `waiting`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::buy::{Buy, Priority};
use super::place::{self, Limits, Taken};
use super::price::Pricer;
use super::quote;
use super::record::units_millis;
use super::request::Request;
use super::reserve::{self, KeptSeat, Window};
use super::spot::{self, Notice, NoticeReason};
use super::waiting;
use crate::device::HardwareClass;
use crate::event::PublicBody;
use crate::id::{Address, DeviceId, OrderId};
use crate::money::HOUR_MS;
use crate::order::{self, Order, Stage};
use crate::state::State;

/// How much of a class an hour of waiting lifts, in thousandths.
const LIFT_MILLIS_PER_HOUR: u64 = 500;
/// Who has waited for so long may hold what he can already get.
pub const HOLD_AFTER_MS: u64 = 10 * 60_000;
/// Who has held for so long lets others hold; if there are none he goes on.
const HOLD_MOST_MS: u64 = 12 * HOUR_MS;
/// What an account used in this time counts in its fair share.
const SHARE_OVER_MS: u64 = 24 * HOUR_MS;
/// A CPU thread counts like so many thousandths of a GPU in the fair share.
const GPU_MILLIS_PER_THREAD: u64 = 20;
/// The first of the waiting are tried every time.
const ALWAYS_TRIED: usize = 16;
/// And so many of the others, in turn.
const TRIED_IN_TURN: usize = 48;

/// What the way to buy adds to an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ways {
    /// When it last began to hold capacity, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// Spot: the notice that it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
    /// Spot: when its rates were last set by the market.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repriced_ms: Option<u64>,
    /// Until when it waits for the room that spot orders make for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_until_ms: Option<u64>,
    /// Reserved: what is kept for its window.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptSeat>,
}

impl Ways {
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Orders that something is to be done about, kept with the index: those that are paid for and not placed, those of them that
/// room is made for, spot orders that run, and those that were given notice and are not settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Desk {
    funded: BTreeSet<OrderId>,
    made_room_for: BTreeSet<OrderId>,
    spot: BTreeSet<OrderId>,
    noticed: BTreeSet<OrderId>,
    kept: BTreeSet<OrderId>,
}

impl Desk {
    pub(crate) fn of<'a>(orders: impl Iterator<Item = (&'a OrderId, &'a Order)>) -> Self {
        let mut desk = Self::default();
        orders.for_each(|(id, order)| desk.put(*id, Some(order)));
        desk
    }

    /// Follows an event that was folded.
    pub(crate) fn after(&mut self, event: &PublicBody, orders: &BTreeMap<OrderId, Order>) {
        use PublicBody as B;
        match event {
            B::OrderFunded { order, .. }
            | B::OrderKept { order, .. }
            | B::OrderPlaced { order, .. }
            | B::OrderPaused { order, .. }
            | B::OrderResumed { order }
            | B::OrderClosing { order, .. }
            | B::OrderSettled { order, .. } => self.put(*order, orders.get(order)),
            B::OrderNoticed { order, notice } => {
                self.put(*order, orders.get(order));
                if let NoticeReason::Room { order } = &notice.reason {
                    self.put(*order, orders.get(order));
                }
            }
            _ => {}
        }
    }

    fn put(&mut self, id: OrderId, order: Option<&Order>) {
        let mut set = |set: fn(&mut Self) -> &mut BTreeSet<OrderId>, is: &dyn Fn(&Order) -> bool| {
            if order.is_some_and(is) {
                set(self).insert(id)
            } else {
                set(self).remove(&id)
            };
        };
        let funded = |order: &Order| order.stage == Stage::Funded;
        set(|desk| &mut desk.funded, &funded);
        let begins = |order: &Order| funded(order) && !order.resumes();
        set(|desk| &mut desk.made_room_for, &|order| begins(order) && order.ways.room_until_ms.is_some());
        let runs = |order: &Order| (Stage::Placed..=Stage::Running).contains(&order.stage);
        set(|desk| &mut desk.spot, &|order| {
            runs(order) && spot::notice_ms(order.quote.request.buy).is_some()
        });
        let open = |order: &Order| order.stage < Stage::Settled && order.ways.notice.is_some();
        set(|desk| &mut desk.noticed, &open);
        set(|desk| &mut desk.kept, &|order| begins(order) && !order.ways.kept.is_empty());
    }

    /// Orders whose windows are to come, with what is kept for them.
    pub(crate) fn kept<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Order> {
        self.kept.iter().filter_map(|id| state.orders.get(id))
    }

    /// Spot orders that have devices.
    pub(crate) fn spot<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Order> {
        self.spot.iter().filter_map(|id| state.orders.get(id))
    }

    /// Spot orders that were given notice and may hold devices still.
    pub(crate) fn noticed<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Order> {
        self.noticed.iter().filter_map(|id| state.orders.get(id))
    }

    /// Orders that are paid for and not placed, the oldest id first.
    pub(crate) fn funded<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Order> {
        self.funded.iter().filter_map(|id| state.orders.get(id))
    }
}

/// How far up an order stands, in thousandths of a class.
pub fn rank_millis(priority: Priority, waited_ms: u64) -> u64 {
    let class = match priority {
        Priority::Low => 0,
        Priority::Normal => 1000,
        Priority::High => 2000,
    };
    class + waited_ms.saturating_mul(LIFT_MILLIS_PER_HOUR) / HOUR_MS
}

/// The whole classes of a rank.
fn class(priority: Priority, since_ms: u64, now_ms: u64) -> u64 {
    rank_millis(priority, now_ms.saturating_sub(since_ms)) / 1000
}

/// What accounts used of late, in thousandths of GPUs times milliseconds, weighed by how urgent it was to be.
fn used(state: &State, accounts: &BTreeSet<Address>, now_ms: u64) -> BTreeMap<Address, u64> {
    let mut used = BTreeMap::new();
    let counts = |order: &&Order| {
        accounts.contains(&order.account)
            && order.closed_ms.is_none_or(|closed_ms| closed_ms + SHARE_OVER_MS > now_ms)
    };
    for order in state.orders.values().filter(counts) {
        let request = &order.quote.request;
        let gpus = request.per_member.total_gpu_millis();
        let threads = u64::from(request.per_member.cpu_millis) * GPU_MILLIS_PER_THREAD / 1000;
        let half_weight = match request.priority {
            Priority::Low => 1,
            Priority::Normal => 2,
            Priority::High => 4,
        };
        let each = gpus.max(threads).saturating_mul(half_weight);
        let time_ms = order.leases.values().map(|lease| lease.elapsed_ms.min(SHARE_OVER_MS)).sum();
        let sum: &mut u64 = used.entry(order.account).or_default();
        *sum = sum.saturating_add(each.saturating_mul(time_ms));
    }
    used
}

/// All waiting orders, in the order in which they are tried.
pub fn line(state: &State, now_ms: u64) -> Vec<OrderId> {
    let waits = |order: &&Order| waits(order, now_ms) && not_before_ms(state, order, now_ms) <= now_ms;
    let waiting: Vec<&Order> = state.book().desk().funded(state).filter(waits).collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    let accounts = waiting.iter().map(|order| order.account).collect();
    let used = used(state, &accounts, now_ms);
    let key = |order: &&Order| {
        let class = class(order.quote.request.priority, since_ms(order), now_ms);
        let used = used.get(&order.account).copied().unwrap_or(0);
        (Reverse(class), used, since_ms(order), order.id)
    };
    let mut keyed: Vec<_> = waiting.iter().map(key).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, _, _, id)| id).collect()
}

/// Since when an order waits: a reserved one since its window began.
fn since_ms(order: &Order) -> u64 {
    order.quote.request.buy.begins_ms().unwrap_or(0).max(order.accepted_ms)
}

/// When an order joins the line.
fn not_before_ms(state: &State, order: &Order, now_ms: u64) -> u64 {
    let request = &order.quote.request;
    match request.buy {
        Buy::Reserved { starts_ms } => starts_ms,
        Buy::Flexible { deadline_ms } => reserve::flexible_start_ms(state, request, deadline_ms, now_ms),
        _ => now_ms,
    }
}

/// Whether an order waits for devices and its end of waiting is not over.
pub fn waits(order: &Order, now_ms: u64) -> bool {
    let until_ms = order.quote.request.waits_until_ms();
    order.stage == Stage::Funded && !order.resumes() && until_ms.is_some_and(|until_ms| now_ms < until_ms)
}

/// Whether an order waited until its end.
pub fn expired(order: &Order, now_ms: u64) -> bool {
    let until_ms = order.quote.request.waits_until_ms();
    order.stage <= Stage::Funded && !order.resumes() && until_ms.is_some_and(|until_ms| until_ms <= now_ms)
}

/// Orders whose waiting is over, with nothing found.
pub fn over(state: &State, now_ms: u64) -> Vec<OrderId> {
    let funded = state.book().desk().funded(state);
    funded.filter(|order| expired(order, now_ms)).map(|order| order.id).collect()
}

/// Waiting orders that can be placed now, or for whom spot orders can make room if they are first, among the first in line and some of the others in turn: a bounded number of searches
/// however many wait.
pub fn placeable(state: &State, now_ms: u64) -> Vec<OrderId> {
    let line = line(state, now_ms);
    let others = line.len().saturating_sub(ALWAYS_TRIED);
    let turn = usize::try_from(now_ms / 1000).unwrap_or(0).wrapping_mul(TRIED_IN_TURN);
    let in_turn = (0..others.min(TRIED_IN_TURN)).map(|n| ALWAYS_TRIED + turn.wrapping_add(n) % others.max(1));
    let tried = (0..line.len().min(ALWAYS_TRIED)).chain(in_turn);
    let room = |found: &Order| {
        let asks = line.first() == Some(&found.id) && !spot::waits_for_room(found, now_ms);
        asks && spot::make_room(state, found, &order::limits(state, found, now_ms), now_ms).is_some()
    };
    let fits = |id: &OrderId| {
        let found = state.orders.get(id);
        found.is_some_and(|found| order::place(state, found, now_ms).is_ok() || room(found))
    };
    tried.filter_map(|at| line.get(at).copied()).filter(fits).collect()
}

/// Who should hold capacity now: who does, as long as he waits and might get all that he asks for; else the first in line who
/// has waited long enough and might, those that never held before those that did.
pub fn holder_due(state: &State, now_ms: u64) -> Option<OrderId> {
    let held_for_ms = |order: &Order| order.ways.held_ms.map(|since_ms| now_ms.saturating_sub(since_ms));
    let may = |order: &Order| {
        let due = waits(order, now_ms) && not_before_ms(state, order, now_ms) <= now_ms;
        due && might(state, order, now_ms)
    };
    let now = state.holder.and_then(|id| state.orders.get(&id)).filter(|order| may(order));
    if now.is_some_and(|order| held_for_ms(order).is_some_and(|held_ms| held_ms < HOLD_MOST_MS)) {
        return state.holder;
    }
    let long = |order: &&Order| now_ms.saturating_sub(since_ms(order)) >= HOLD_AFTER_MS;
    state.book().desk().funded(state).filter(|order| waits(order, now_ms)).find(long)?;
    let line = line(state, now_ms);
    let first = line.iter().filter_map(|id| state.orders.get(id)).filter(long).take(ALWAYS_TRIED);
    let mut first: Vec<_> = first.collect();
    first.sort_by_key(|order| order.ways.held_ms);
    first.into_iter().find(|order| may(order)).map(|order| order.id)
}

/// Whether all hardware together, hired or not, might do for an order at its price: a rough look, by class and not by device.
fn might(state: &State, order: &Order, now_ms: u64) -> bool {
    let request = &order.quote.request;
    let Some(most) = order.quote.items.last().map(|item| item.rate) else { return false };
    let pricer = Pricer::new(state, now_ms);
    let wanted = request.per_member;
    let members = |(class, kind): (&HardwareClass, &super::book::Kind)| -> u64 {
        if !request.allows(class) || (wanted.gpus > 0 && *class == HardwareClass::Cpu) {
            return 0;
        }
        let units = units_millis(class, wanted);
        let ask = kind.lowest_ask().unwrap_or_default().0;
        let market = pricer.class_rate(class).filter(|_| wanted.gpus > 0).unwrap_or_default().0;
        // What only single devices add or take off is left a quarter of room.
        let least = ask.max(market / 4 * 3).saturating_mul(units) / 1000;
        if least > most.0 { 0 } else { kind.members(wanted) }
    };
    let all = state.book().kinds().map(members).fold(0, u64::saturating_add);
    all >= u64::from(request.members)
}

/// Who asks for devices, as far as it matters to what is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    order: Option<OrderId>,
    class: u64,
    window: Window,
}

impl Asker {
    /// A request that is no order yet.
    pub(crate) fn new(request: &Request, now_ms: u64) -> Self {
        let window = Window::of(request, now_ms);
        Self { order: None, class: class(request.priority, now_ms, now_ms), window }
    }

    /// An order. Of one that was paused the time that it ran is no waiting.
    pub(crate) fn of(order: &Order, now_ms: u64) -> Self {
        let since_ms = if order.course.pause.is_some() { now_ms } else { since_ms(order) };
        let class = class(order.quote.request.priority, since_ms, now_ms);
        Self { order: Some(order.id), class, window: Window::of(&order.quote.request, now_ms) }
    }
}

/// Adds to what is promised what an order holds that waits before the asker.
pub(crate) fn hold_back(state: &State, asker: &Asker, limits: &mut Limits, now_ms: u64) {
    made_room(state, asker, limits, now_ms);
    reserve::hold(state, asker.order, asker.window, limits, now_ms);
    let Some(holder) = state.holder.and_then(|id| state.orders.get(&id)) else { return };
    let its = class(holder.quote.request.priority, since_ms(holder), now_ms);
    if asker.order == Some(holder.id) || asker.class > its || !waits(holder, now_ms) {
        return;
    }
    for (device, taken) in held_by(state, holder, now_ms) {
        limits.promised.entry(device).or_default().push(taken);
    }
}

/// What comes free for others is theirs, and what comes free for the asker is his.
fn made_room(state: &State, asker: &Asker, limits: &mut Limits, now_ms: u64) {
    let desk = state.book().desk();
    for id in desk.made_room_for.iter().filter(|id| asker.order != Some(**id)) {
        let Some(order) = state.orders.get(id).filter(|order| spot::waits_for_room(order, now_ms)) else {
            continue;
        };
        let its = Limits { freed: spot::coming_free(state, *id), ..order::promise(&order.quote) };
        let wanted = order.quote.request.per_member;
        for seat in place::find(state, &order.quote.request, &its, now_ms).unwrap_or_default() {
            limits.promised.entry(seat.device).or_default().push(Taken { wanted, gpus: seat.gpus });
        }
    }
}

/// What an order could get now: the seats that it holds if it is its turn to.
fn held_by(state: &State, order: &Order, now_ms: u64) -> Vec<(DeviceId, Taken)> {
    let request = &order.quote.request;
    let seats = place::some(state, request, &order::promise(&order.quote), now_ms);
    let wanted = request.per_member;
    seats.into_iter().map(|seat| (seat.device, Taken { wanted, gpus: seat.gpus })).collect()
}

/// What a waiting order is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// Its place in the line; 1 is tried first, 0 is not in it yet.
    pub place: u32,
    /// How many wait.
    pub of: u32,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it gives up.
    pub until_ms: u64,
    /// If it holds what it can already get: for so many members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<u32>,
    /// In how long enough of what is in its way is over, at the latest, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<u64>,
    /// What it waits for.
    pub reason: String,
}

/// What a waiting order is told in short, by the line as it is now; `None` if it does not wait.
pub fn standing(state: &State, order: &Order, line: &[OrderId], now_ms: u64) -> Option<Waiting> {
    let until_ms = order.quote.request.waits_until_ms().filter(|_| waits(order, now_ms))?;
    let begins_ms = not_before_ms(state, order, now_ms);
    let place = line.iter().position(|id| *id == order.id).map_or(0, |at| at + 1);
    let early = (begins_ms > now_ms).then_some(match order.quote.request.buy {
        Buy::Reserved { .. } => "its devices are kept for its window, which is to come",
        _ => "it waits for the hours in which such hardware is usually least in demand",
    });
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let holds = state.holder == Some(order.id);
    Some(Waiting {
        place: count(place),
        of: count(line.len()),
        since_ms: since_ms(order),
        until_ms,
        holds: holds.then(|| count(held_by(state, order, now_ms).len())),
        estimate_ms: early.map(|_| begins_ms - now_ms),
        reason: early
            .map(str::to_owned)
            .or_else(|| reason(state, order, now_ms))
            .unwrap_or_else(|| "it waits for hardware".into()),
    })
}

/// The same with what removed which devices and when enough of what is in its way ends. Looks at every device: beside the
/// writer only.
pub fn explain(state: &State, order: &Order, now_ms: u64) -> Option<Waiting> {
    let mut waiting = standing(state, order, &line(state, now_ms), now_ms)?;
    if waiting.place > 0 && reason(state, order, now_ms).is_none() {
        let (request, limits) = (&order.quote.request, quote::of(order.account));
        let short = place::shortfall(state, request, &limits, now_ms);
        let missing = short.wanted.saturating_sub(short.possible);
        waiting.estimate_ms = place::enough_free_in_ms(state, request, &limits, missing, now_ms);
        waiting.reason = format!("it waits for hardware: {short}");
    }
    Some(waiting)
}

/// What an order waits for where there is hardware enough: its price, or somebody who holds it.
fn reason(state: &State, order: &Order, now_ms: u64) -> Option<String> {
    let request = &order.quote.request;
    let mut caps: Vec<_> = order.quote.items.iter().map(|item| item.rate).collect();
    caps.sort_unstable();
    let mut limits = quote::of(order.account);
    let at_any_price = waiting::uncapped(state, request, &limits, now_ms)?;
    let fits = |limits: &Limits| waiting::seats(state, request, &caps, limits, now_ms).is_some();
    if !fits(&limits) {
        let needed = waiting::cap_needed(&at_any_price, &caps)?;
        return Some(format!("it waits for its price: {needed} now, the cap is {}", order.quote.rate));
    }
    hold_back(state, &Asker::of(order, now_ms), &mut limits, now_ms);
    Some(match state.holder.filter(|holder| *holder != order.id) {
        Some(holder) if !fits(&limits) => {
            format!("it waits for {holder}, which has waited longer and holds what this order needs")
        }
        _ => "it is about to be placed".into(),
    })
}
