//! The whole life of an order: its stages, the moves between them and what each move decides.
//!
//! | move | from | to | who makes it |
//! |---|---|---|---|
//! | accept | - | Accepted | the renter |
//! | fund | Accepted | Funded | the engine, with the acceptance |
//! | place | Funded | Placed | reconcile/place |
//! | start | Placed | Starting | reconcile/lease |
//! | ready | Starting | Running | reconcile/ready |
//! | meter, extend, replace, egress | Running (and where [`after`] says) | the same | reconcile/meter, renter, reconcile/place |
//! | grow, shrink, exchange | Running | the same | the renter, reconcile/upkeep, reconcile/replace |
//! | change, expose, share | anything before Closing | the same | the renter |
//! | pause | Running | Paused | the renter |
//! | resume | Paused | Funded | the renter |
//! | put off | Funded, if it was to resume and found no place | Paused | reconcile/place |
//! | close | anything before Closing | Closing | renter, time, money, failure |
//! | settle | Closing | Settled | reconcile/settle |
//! | rate | Settled, Paid | the same | the renter, once |
//! | pay | Settled | Paid | reconcile/payout |
//!
//! Always holds: a stage is the to-do list of whoever moves it on; a lease's number is never used again. Not here: what changes
//! the size and the time of an order that runs (`course`, `size`, `pause`, `scale`), what its members ail from (`health`),
//! what it shows to the world (`expose`).

pub mod course;
pub mod expose;
pub mod health;
pub mod pause;
pub mod scale;
pub mod share;
pub mod size;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use self::course::{Course, ReleaseReason, Released};
use self::expose::Exposed;
use self::health::Ailing;
use self::share::Shares;
use crate::id::{Address, DeviceId, KeyId, LeaseId, OrderId, TransferId, TransferKind};
use crate::ledger::{AccountKey, Owner, Step, Transfer};
use crate::market::place::{self, Limits, Seat, Taken};
use crate::market::queue::{self, Ways};
use crate::market::spot::{self, Earlier};
use crate::market::{Destination, Egress, EngineKind, Program, Quote, Request, reserve, waiting};
use crate::meter::HeldCharge;
use crate::money::{Asset, Rate};
use crate::refusal::Refusal;
use crate::simulated;
use crate::state::State;

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Taken in.
    Accepted,
    /// Its money is set aside.
    Funded,
    /// It has leases on devices.
    Placed,
    /// The devices were told.
    Starting,
    /// Every member is up; time is metered.
    Running,
    /// It has no boxes, and time stands still; what is left of time and money is kept.
    Paused,
    /// Boxes are being removed and wiped.
    Closing,
    /// What was not used went back.
    Settled,
    /// Its suppliers were paid.
    Paid,
}

/// What can be done to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Move {
    /// Set the money aside.
    Fund,
    /// Commit devices.
    Place,
    /// Tell the devices.
    Start,
    /// All members are up.
    Ready,
    /// Charge for a period.
    Meter,
    /// Add time.
    Extend,
    /// Put a lost member on another device.
    Replace,
    /// Change what its boxes may reach outside.
    Egress,
    /// Show a service under the server's name.
    Expose,
    /// Let others open its services, or no longer.
    Share,
    /// Say how it was.
    Rate,
    /// Add members.
    Grow,
    /// Take members away.
    Shrink,
    /// Put another device in the place of a member that is up.
    Exchange,
    /// Take all boxes away for a while.
    Pause,
    /// Run again.
    Resume,
    /// Go back to the pause that it was to come out of: there is no place.
    PutOff,
    /// Change its duration, its cap or what is done for it.
    Change,
    /// End it.
    Close,
    /// Give back the rest.
    Settle,
    /// Its suppliers are paid.
    Pay,
}

macro_rules! show_as_debug_lowercase {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&format!("{self:?}").to_lowercase())
            }
        }
    )*};
}
show_as_debug_lowercase!(Stage, Move);

/// The stage after a move; `None` where the move is not allowed. This is the table of all legal moves.
#[expect(clippy::match_same_arms, reason = "one line a move reads as the table that it is")]
pub fn after(stage: Stage, wanted: Move) -> Option<Stage> {
    use Move as M;
    use Stage as S;
    match (stage, wanted) {
        (S::Accepted, M::Fund) => Some(S::Funded),
        (S::Funded, M::Place) => Some(S::Placed),
        (S::Placed, M::Start) => Some(S::Starting),
        (S::Starting, M::Ready) => Some(S::Running),
        (S::Funded | S::Placed | S::Starting | S::Running | S::Paused | S::Closing, M::Meter) => Some(stage),
        (S::Running | S::Paused, M::Extend) => Some(stage),
        (S::Running, M::Grow | M::Shrink | M::Exchange) => Some(S::Running),
        (S::Running, M::Pause) | (S::Funded, M::PutOff) => Some(S::Paused),
        (S::Paused, M::Resume) => Some(S::Funded),
        (S::Accepted | S::Funded | S::Placed | S::Starting | S::Running | S::Paused, M::Change) => {
            Some(stage)
        }
        (S::Placed | S::Starting | S::Running, M::Replace) => Some(stage),
        (
            S::Accepted | S::Funded | S::Placed | S::Starting | S::Running | S::Paused,
            M::Egress | M::Expose | M::Share,
        ) => Some(stage),
        (S::Accepted | S::Funded | S::Placed | S::Starting | S::Running | S::Paused, M::Close) => {
            Some(S::Closing)
        }
        (S::Closing, M::Settle) => Some(S::Settled),
        (S::Settled, M::Pay) => Some(S::Paid),
        (S::Settled | S::Paid, M::Rate) => Some(stage),
        _ => None,
    }
}

/// Why an order ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum CloseReason {
    /// The renter closed it.
    Renter,
    /// Its time is over.
    Time,
    /// No device was left when it came to placement.
    NoCapacity,
    /// It waited until its end and neither price nor hardware appeared.
    Expired,
    /// Spot: others needed its room, or the market rose above its bid; its notice is over.
    Preempted,
    /// A member was lost and no other device fits.
    MemberLost {
        /// Which lease.
        lease: LeaseId,
        /// What happened to it.
        reason: String,
    },
    /// A member could not be started, again and again.
    StartFailed {
        /// What the last one said.
        reason: String,
    },
    /// It was paused for as long as it may be.
    PauseOver,
    /// The program of every member ended.
    Finished {
        /// The highest exit code.
        exit_code: i32,
    },
    /// The operator closed it.
    Operator {
        /// Why.
        reason: String,
    },
}

impl CloseReason {
    /// The stable name of this reason.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Renter => "renter",
            Self::Time => "time",
            Self::NoCapacity => "no_capacity",
            Self::Expired => "expired",
            Self::Preempted => "preempted",
            Self::MemberLost { .. } => "member_lost",
            Self::StartFailed { .. } => "start_failed",
            Self::PauseOver => "pause_over",
            Self::Finished { .. } => "finished",
            Self::Operator { .. } => "operator",
        }
    }
}

/// Why an order that had its leases got others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplaceReason {
    /// The head of a Ray cluster was lost: the engine starts anew on the members that are left.
    HeadLost,
    /// Another member was lost: the rest run on.
    MemberLost,
    /// Members were added.
    Grown,
    /// A member ailed, and another takes its place.
    Ailing,
}

impl ReplaceReason {
    /// The stable name of this reason.
    pub fn code(self) -> &'static str {
        match self {
            Self::HeadLost => "head_lost",
            Self::MemberLost => "member_lost",
            Self::Grown => "grown",
            Self::Ailing => "ailing",
        }
    }
}

/// Evidence that a lease's files and processes are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WipeReceipt {
    /// Files removed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Processes that were still there and were ended.
    pub processes_killed: u32,
    /// What was done to the bytes.
    pub method: String,
}

/// Where a lease stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeasePhase {
    /// Committed; the box may be on its way up.
    Placed,
    /// The box and its engine are up.
    Ready,
    /// Command engine: the program ended by itself.
    Exited {
        /// With this code.
        exit_code: i32,
    },
    /// The box is gone without having been asked to go.
    Lost {
        /// What happened.
        reason: String,
    },
    /// Removed as asked; without a receipt if the device never answered.
    Removed {
        /// The evidence.
        wipe: Option<WipeReceipt>,
    },
}

/// Part of one device committed to one order for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The member that it fills: price and overlay address go with the slot, not with the device.
    pub slot: u32,
    /// The device.
    pub device: DeviceId,
    /// Who is paid.
    pub supplier: Address,
    /// The quoted price of the slot.
    pub rate: Rate,
    /// Which of the device's GPUs it has, by their place in its offer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<u32>,
    /// Where it stands.
    pub phase: LeasePhase,
    /// When charging began, in milliseconds since 1970.
    pub charging_since_ms: Option<u64>,
    /// Charged so far for this much time in all.
    pub elapsed_ms: u64,
    /// Periods charged so far.
    pub periods: u32,
    /// Charged in all before fees, in micro-USD; includes what is held.
    pub charged_micro_usd: u64,
    /// Charged and then disproven.
    pub voided_micro_usd: u64,
    /// The renter's fee charged in all, without what was disproven.
    pub renter_fee_micro_usd: u64,
    /// Charges that wait for proof.
    pub held: Vec<HeldCharge>,
    /// What it cost before its rate last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<Box<Earlier>>,
    /// That it is no member any more: its box is to go, while the order lives on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Released>,
    /// What it ails from, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ailing: Option<Box<Ailing>>,
}

impl Lease {
    /// What so much run time in all costs, before fees.
    pub fn worth(&self, elapsed_ms: u64) -> u64 {
        self.earlier
            .as_ref()
            .map_or_else(|| self.rate.total_for(elapsed_ms), |earlier| earlier.worth(self.rate, elapsed_ms))
    }

    /// From `at_ms` on it costs another rate.
    pub(crate) fn reprice(&mut self, rate: Rate, at_ms: u64) {
        if let Some(since_ms) = self.charging_since_ms {
            let ran_ms = at_ms.saturating_sub(since_ms).max(self.elapsed_ms);
            let charged = (self.elapsed_ms, self.charged_micro_usd);
            self.earlier.get_or_insert_default().end(self.rate, ran_ms, charged);
        }
        self.rate = rate;
    }

    /// Whether the device should have a box for it, as long as the order lives.
    pub fn live(&self) -> bool {
        self.released.is_none()
            && matches!(self.phase, LeasePhase::Placed | LeasePhase::Ready | LeasePhase::Exited { .. })
    }

    /// Whether nothing more will come of it.
    pub fn ended(&self) -> bool {
        matches!(self.phase, LeasePhase::Lost { .. } | LeasePhase::Removed { .. })
    }
}

/// A request with money behind it, and the cluster that it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its name.
    pub id: OrderId,
    /// Who pays.
    pub account: Address,
    /// The API key it was made with, if any.
    pub key: Option<KeyId>,
    /// The promise.
    pub quote: Quote,
    /// Where it stands.
    pub stage: Stage,
    /// Grows with every change to its leases; members take the newest list.
    pub generation: u32,
    /// Grows when the engine must start anew on the surviving leases (its head was lost).
    pub engine_epoch: u32,
    /// Why it last got other leases, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<ReplaceReason>,
    /// All its leases by number, ended ones included.
    pub leases: BTreeMap<u32, Lease>,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: u64,
    /// When every member was up for the first time.
    pub running_since_ms: Option<u64>,
    /// When it was closed.
    pub closed_ms: Option<u64>,
    /// Why.
    pub reason: Option<CloseReason>,
    /// Set aside in all, extensions included, in micro-USD.
    pub escrow_micro_usd: u64,
    /// Times that money was set aside.
    pub escrows: u32,
    /// Given back, in micro-USD.
    pub refund_micro_usd: u64,
    /// Suppliers who have earned from it and were not paid since.
    pub unpaid: BTreeSet<Address>,
    /// The stars that its renter gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rated: Option<u8>,
    /// What its way to buy adds.
    #[serde(default, skip_serializing_if = "Ways::is_none")]
    pub ways: Ways,
    /// What became of its size and its time since it ran first.
    #[serde(default, skip_serializing_if = "Course::is_none")]
    pub course: Course,
    /// What it shows under the server's name, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed: Option<Box<Exposed>>,
    /// Who else may open its services.
    #[serde(default, skip_serializing_if = "Shares::is_none")]
    pub sharing: Shares,
}

/// What was paid for and what came back. In micro-USD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bill {
    /// One line a lease.
    pub lines: Vec<BillLine>,
    /// All lines.
    pub compute_micro_usd: u64,
    /// The renter's fee.
    pub fee_micro_usd: u64,
    /// What the renter pays.
    pub total_micro_usd: u64,
    /// What was set aside, so the most it could have been.
    pub escrow_micro_usd: u64,
    /// What came back.
    pub refund_micro_usd: u64,
}

/// One lease's part of the bill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BillLine {
    /// Which lease.
    pub lease: LeaseId,
    /// On which device.
    pub device: DeviceId,
    /// At this rate; of a spot order, the last one.
    pub rate: Rate,
    /// For this metered time.
    pub elapsed_ms: u64,
    /// `floor(rate x elapsed / 1 h)` less what was disproven.
    pub compute_micro_usd: u64,
    /// The renter's fee on it.
    pub fee_micro_usd: u64,
}

/// Most leases that one order may use up before it is given up.
pub const MAX_REPLACEMENTS: u32 = 8;

impl Order {
    /// An order as it is accepted.
    pub fn accepted(id: OrderId, account: Address, key: Option<KeyId>, quote: Quote, now_ms: u64) -> Self {
        Self {
            id,
            account,
            key,
            quote,
            stage: Stage::Accepted,
            generation: 0,
            engine_epoch: 0,
            replaced: None,
            leases: BTreeMap::new(),
            accepted_ms: now_ms,
            running_since_ms: None,
            closed_ms: None,
            reason: None,
            escrow_micro_usd: 0,
            escrows: 0,
            refund_micro_usd: 0,
            unpaid: BTreeSet::new(),
            rated: None,
            ways: Ways::default(),
            course: Course::default(),
            exposed: None,
            sharing: Shares::default(),
        }
    }

    /// Whether `wanted` is allowed now; the stage after it.
    pub fn may(&self, wanted: Move) -> Result<Stage, Refusal> {
        after(self.stage, wanted).ok_or(Refusal::WrongStage { order: self.id, stage: self.stage, wanted })
    }

    /// Whether it was paused and is to run again: it waits for nothing, and without a place its pause goes on.
    pub fn resumes(&self) -> bool {
        self.stage == Stage::Funded && self.course.pause.is_some()
    }

    /// When its paid time is over, once it runs.
    pub fn ends_ms(&self) -> Option<u64> {
        let left_ms = self.quote.request.duration_ms.saturating_sub(self.course.ran_ms);
        Some(self.running_since_ms?.saturating_add(left_ms))
    }

    /// The order's own account.
    pub fn purse(&self) -> AccountKey {
        AccountKey { owner: Owner::Order(self.id), asset: self.quote.request.asset }
    }

    /// The leases that fill slots now, by slot and each with its number.
    pub fn members(&self) -> BTreeMap<u32, (u32, &Lease)> {
        let mut members = BTreeMap::new();
        for (n, lease) in self.leases.iter().filter(|(_, lease)| lease.live()) {
            members.entry(lease.slot).or_insert((*n, lease));
        }
        members
    }

    /// Slots without a live lease.
    pub fn vacant(&self) -> Vec<u32> {
        let members = self.members();
        (0..self.quote.request.members).filter(|slot| !members.contains_key(slot)).collect()
    }

    /// A lease of this order.
    pub fn lease(&self, n: u32) -> Result<&Lease, Refusal> {
        self.leases.get(&n).ok_or(Refusal::UnknownLease { lease: LeaseId { order: self.id, n } })
    }

    /// The itemised bill as it stands.
    pub fn bill(&self) -> Bill {
        let lines: Vec<_> = self.leases.iter().map(|(n, lease)| self.bill_line(*n, lease)).collect();
        let compute_micro_usd = lines.iter().map(|line| line.compute_micro_usd).sum();
        let fee_micro_usd = lines.iter().map(|line| line.fee_micro_usd).sum();
        Bill {
            compute_micro_usd,
            fee_micro_usd,
            total_micro_usd: compute_micro_usd + fee_micro_usd,
            escrow_micro_usd: self.escrow_micro_usd,
            refund_micro_usd: self.refund_micro_usd,
            lines,
        }
    }

    fn bill_line(&self, n: u32, lease: &Lease) -> BillLine {
        let compute_micro_usd = lease.charged_micro_usd - lease.voided_micro_usd;
        BillLine {
            lease: LeaseId { order: self.id, n },
            device: lease.device,
            rate: lease.rate,
            elapsed_ms: lease.elapsed_ms,
            compute_micro_usd,
            fee_micro_usd: lease.renter_fee_micro_usd,
        }
    }
}

/// The overlay address of a slot, the same for every lease that ever fills it. Clusters are separate networks,
/// so all of them use `10.77.0.0/16`.
pub fn overlay_ip(slot: u32) -> Ipv4Addr {
    let host = u16::try_from(slot + 1).unwrap_or(u16::MAX);
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// A lease as placement makes it: its number and the slot, device and price that go with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLease {
    /// Its number.
    pub n: u32,
    /// Which member it fills.
    pub slot: u32,
    /// The device.
    pub device: DeviceId,
    /// Who is paid.
    pub supplier: Address,
    /// At the quoted price of the slot.
    pub rate: Rate,
    /// Which of the device's GPUs, by their place in its offer; none named means the first that are free.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<u32>,
}

/// What `accept` needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Acceptance<'a> {
    /// The order's name.
    pub order: OrderId,
    /// Who pays.
    pub account: Address,
    /// By which key.
    pub key: Option<KeyId>,
    /// The promise, its signature already checked.
    pub quote: &'a Quote,
    /// What runs.
    pub program: &'a Program,
}

/// Whether an order may be accepted: the quote is good, the program fits the engine, the money is there and all
/// members fit beside what is already promised. Answers with the transfer that funds it.
pub fn accept(state: &State, order: &Acceptance<'_>, now_ms: u64) -> Result<Transfer, Refusal> {
    let quote = order.quote;
    if quote.account != order.account {
        return Err(Refusal::QuoteNotYours);
    }
    if now_ms >= quote.expires_ms {
        return Err(Refusal::QuoteExpired { ago_ms: now_ms - quote.expires_ms });
    }
    if state.orders.contains_key(&order.order) {
        return Err(Refusal::Exists { what: order.order.to_string() });
    }
    simulated::check_order(quote.request.simulated)?;
    order.program.check(quote.request.engine)?;
    quote.request.egress.check(&order.program.allow)?;
    quote.request.hiding.check()?;
    let fund = escrow(order.order, 0, order.account, quote.request.asset, quote.total_micro_usd);
    state.ledger.check(&[fund])?;
    if let Some(key) = order.key {
        state.key(order.account, key)?.affords(quote.total_micro_usd)?;
    }
    if quote.request.waits_until_ms().is_some() {
        return reserve::kept(state, quote, now_ms).map(|_| fund);
    }
    let mut limits = Limits { promised: promised(state, now_ms), ..promise(quote) };
    queue::hold_back(state, &queue::Asker::new(&quote.request, now_ms), &mut limits, now_ms);
    if quote.request.buy.floats() {
        let caps = limits.rates.take().unwrap_or_default();
        waiting::now_or_never(state, &quote.request, &caps, &limits, now_ms)?;
    } else if let Err(refusal) = place::seats(state, &quote.request, &limits, now_ms) {
        spot::room(state, &quote.request, &limits, now_ms).ok_or(refusal)?;
    }
    Ok(fund)
}

pub(crate) fn promise(quote: &Quote) -> Limits {
    let mut rates: Vec<Rate> = quote.items.iter().map(|item| item.rate).collect();
    rates.sort_unstable();
    Limits { rates: Some(rates), renter: Some(quote.account), ..Limits::default() }
}

/// What orders that are paid for, wait for nothing and are not yet placed will take.
fn promised(state: &State, now_ms: u64) -> BTreeMap<DeviceId, Vec<Taken>> {
    let mut promised: BTreeMap<DeviceId, Vec<Taken>> = BTreeMap::new();
    let funded = state.book().desk().funded(state);
    let now = |order: &&Order| {
        let waits = order.quote.request.waits_until_ms().is_some() || order.ways.room_until_ms.is_some();
        order.resumes() || !waits
    };
    for order in funded.filter(now) {
        let limits = Limits { promised: promised.clone(), ..promise(&order.quote) };
        let wanted = order.quote.request.per_member;
        let made = || Some(spot::room(state, &order.quote.request, &limits, now_ms)?.seats);
        let seats = place::find(state, &order.quote.request, &limits, now_ms).or_else(made);
        for seat in seats.unwrap_or_default() {
            promised.entry(seat.device).or_default().push(Taken { wanted, gpus: seat.gpus });
        }
    }
    promised
}

fn escrow(order: OrderId, n: u32, account: Address, asset: Asset, amount: u64) -> Transfer {
    Transfer {
        id: TransferId { scope: order.bits(), kind: TransferKind::Escrow, n: n.into() },
        step: Step::Post,
        debit: AccountKey { owner: Owner::Wallet(account), asset },
        credit: AccountKey { owner: Owner::Order(order), asset },
        amount,
    }
}

/// Chooses devices for every member: all leases or none.
pub fn place(state: &State, order: &Order, now_ms: u64) -> Result<Vec<NewLease>, Refusal> {
    order.may(Move::Place)?;
    let mut limits = limits(state, order, now_ms);
    let slots = cheapest_first(order, (0..order.quote.request.members).collect());
    let request = &order.quote.request;
    if request.buy.begins_ms().is_some() && !order.resumes() {
        let seats = reserve::begin(state, order, &limits, now_ms)?;
        return new_leases(state, order, &slots, seats);
    }
    if queue::waits(order, now_ms) && request.buy.floats() {
        let caps = limits.rates.take().unwrap_or_default();
        let waits = || Refusal::NoChange { what: format!("{} waits for its devices", order.id) };
        let seats = waiting::seats(state, request, &caps, &limits, now_ms).ok_or_else(waits)?;
        return priced_leases(state, order, &slots, seats);
    }
    leases(state, order, request, &slots, limits, now_ms)
}

/// Leases on these slots, the cheapest first, for a request for so many members: at the quoted rates, or at those of the moment
/// within them where the price floats.
fn leases(
    state: &State,
    order: &Order,
    request: &Request,
    slots: &[u32],
    mut limits: Limits,
    now_ms: u64,
) -> Result<Vec<NewLease>, Refusal> {
    if request.buy.floats() {
        let caps = limits.rates.take().unwrap_or_default();
        let seats = waiting::now_or_never(state, request, &caps, &limits, now_ms)?;
        return priced_leases(state, order, slots, seats);
    }
    let seats = place::seats(state, request, &limits, now_ms)?;
    new_leases(state, order, slots, seats)
}

/// What an order may have: at its prices, beside what is held for others.
pub(crate) fn limits(state: &State, order: &Order, now_ms: u64) -> Limits {
    let mut limits = promise(&order.quote);
    queue::hold_back(state, &queue::Asker::of(order, now_ms), &mut limits, now_ms);
    limits
}

/// Chooses devices for the members that were lost; the rest keep running and what failed is avoided.
pub fn replace(state: &State, order: &Order, now_ms: u64) -> Result<Vec<NewLease>, Refusal> {
    order.may(Move::Replace)?;
    let vacant = cheapest_first(order, order.vacant());
    if vacant.is_empty() {
        return Err(Refusal::NoChange { what: format!("{} has all its members", order.id) });
    }
    let rates = vacant.iter().map(|slot| rate_of(order, *slot)).collect();
    let limits = further(state, order, rates, now_ms);
    let members = u32::try_from(vacant.len()).unwrap_or(u32::MAX);
    let request = Request { members, ..order.quote.request.clone() };
    leases(state, order, &request, &vacant, limits, now_ms)
}

/// What further members of an order that has some may have, at these rates, ascending: beside its own and what is kept for others.
fn further(state: &State, order: &Order, rates: Vec<Rate>, now_ms: u64) -> Limits {
    let mut limits = beside_own(order, rates);
    let window = reserve::Window { from_ms: now_ms, until_ms: order.ends_ms().unwrap_or(now_ms) };
    reserve::hold(state, Some(order.id), window, &mut limits, now_ms);
    limits
}

fn beside_own(order: &Order, rates: Vec<Rate>) -> Limits {
    let beside = order.leases.values().filter(|lease| lease.live()).map(|lease| lease.device).collect();
    let (avoid, renter) = (avoided(order), Some(order.account));
    Limits { avoid, rates: Some(rates), renter, beside, ..Limits::default() }
}

/// Devices that a further member does not go to: those that failed this order, and where a bound for a device is set those that
/// it has, so that no bound is passed.
fn avoided(order: &Order) -> BTreeSet<DeviceId> {
    let failed = |lease: &Lease| match &lease.released {
        Some(released) => released.why == ReleaseReason::Ailing,
        None => !lease.live(),
    };
    let bounded = order.quote.request.most_per_device().is_some();
    let taken = |lease: &Lease| bounded && !lease.ended();
    order.leases.values().filter(|l| failed(l) || taken(l)).map(|lease| lease.device).collect()
}

fn rate_of(order: &Order, slot: u32) -> Rate {
    order.quote.items.get(slot as usize).map(|item| item.rate).unwrap_or_default()
}

/// Seats are found the cheapest first, so the cheapest of the slots gets the first.
fn cheapest_first(order: &Order, mut slots: Vec<u32>) -> Vec<u32> {
    slots.sort_by_key(|slot| (rate_of(order, *slot), *slot));
    slots
}

/// Why an order gets these leases for lost ones.
pub fn replace_reason(order: &Order, leases: &[NewLease]) -> ReplaceReason {
    let ray = order.quote.request.engine == EngineKind::Ray;
    let last_of = |slot: u32| order.leases.values().rev().find(|lease| lease.slot == slot);
    let ailed = |lease: &NewLease| {
        let released = last_of(lease.slot).and_then(|last| last.released.as_ref());
        released.is_some_and(|released| released.why == ReleaseReason::Ailing)
    };
    if order.course.growth.is_some_and(|base| leases.iter().all(|lease| lease.slot >= base)) {
        ReplaceReason::Grown
    } else if leases.iter().all(ailed) {
        ReplaceReason::Ailing
    } else if ray && leases.iter().any(|lease| lease.slot == 0) {
        ReplaceReason::HeadLost
    } else {
        ReplaceReason::MemberLost
    }
}

fn new_leases(
    state: &State,
    order: &Order,
    slots: &[u32],
    seats: Vec<Seat>,
) -> Result<Vec<NewLease>, Refusal> {
    let seats = slots.iter().map(|slot| rate_of(order, *slot)).zip(seats).map(|(rate, seat)| (seat, rate));
    priced_leases(state, order, slots, seats.collect())
}

fn priced_leases(
    state: &State,
    order: &Order,
    slots: &[u32],
    seats: Vec<(Seat, Rate)>,
) -> Result<Vec<NewLease>, Refusal> {
    let first = order.leases.keys().next_back().map_or(0, |n| n + 1);
    let numbered = (first..).zip(slots.iter().zip(seats));
    numbered
        .map(|(n, (slot, (Seat { device, gpus, .. }, rate)))| {
            let supplier = state.device(device)?.enrolment.owner;
            Ok(NewLease { n, slot: *slot, device, supplier, rate, gpus })
        })
        .collect()
}

/// Whether every member is up.
pub fn ready(order: &Order) -> Result<(), Refusal> {
    order.may(Move::Ready)?;
    let up = order.members().values().filter(|(_, lease)| lease.phase != LeasePhase::Placed).count();
    let missing = (order.quote.request.members as usize).saturating_sub(up);
    if missing > 0 {
        return Err(Refusal::NoChange { what: format!("{missing} members of {} are not up yet", order.id) });
    }
    Ok(())
}

/// The time and the money that an extension adds: the same members at the same rates.
pub fn extend(state: &State, order: &Order, added_ms: u64, now_ms: u64) -> Result<(u64, Transfer), Refusal> {
    order.may(Move::Extend)?;
    let ends_ms = order.ends_ms().unwrap_or(now_ms);
    reserve::check_until(state, order, ends_ms.saturating_add(added_ms), now_ms)?;
    let mut longer = order.quote.clone();
    longer.request.duration_ms = longer.request.duration_ms.saturating_add(added_ms);
    longer.request.check()?;
    longer.add_up();
    longer.within_total_cap()?;
    let more = longer.total_micro_usd - order.quote.total_micro_usd;
    let fund = escrow(order.id, order.escrows, order.account, longer.request.asset, more);
    state.ledger.check(&[fund])?;
    if let Some(key) = order.key {
        state.key(order.account, key)?.affords(more)?;
    }
    Ok((longer.request.duration_ms, fund))
}

/// Whether an order's boxes may be given these rules for what they reach outside.
pub fn change_egress(
    state: &State,
    order: &Order,
    egress: Egress,
    allow: &BTreeSet<Destination>,
) -> Result<(), Refusal> {
    order.may(Move::Egress)?;
    egress.check(allow)?;
    let forbids = |lease: &&Lease| state.device(lease.device).is_ok_and(|device| device.rules.no_egress);
    let Some(lease) = order.leases.values().filter(|lease| lease.live()).find(forbids) else { return Ok(()) };
    if egress == Egress::Off {
        return Ok(());
    }
    Err(Refusal::Unsupported {
        what: format!("egress {egress}"),
        reason: format!("the supplier of {} (member {}) forbids it", lease.device, lease.slot),
        available: "off".into(),
    })
}

/// Whether an order may be given so many stars now.
pub fn rate(order: &Order, stars: u8) -> Result<(), Refusal> {
    order.may(Move::Rate)?;
    if !(1..=5).contains(&stars) {
        return Err(Refusal::out_of_range("stars", stars, "1 to 5"));
    }
    match order.rated {
        Some(_) => Err(Refusal::NoChange { what: format!("{} is rated", order.id) }),
        None => Ok(()),
    }
}

/// What a renter's word on an order weighs for each device: the fees of both sides that were paid for the time on it, in
/// micro-USD. His own devices are not among them.
pub fn rated_fees(order: &Order) -> BTreeMap<DeviceId, u64> {
    let mut fees: BTreeMap<DeviceId, u64> = BTreeMap::new();
    for lease in order.leases.values().filter(|lease| lease.supplier != order.account) {
        let earned = lease.charged_micro_usd.saturating_sub(lease.voided_micro_usd);
        let paid = lease.renter_fee_micro_usd.saturating_add(order.quote.supplier_fee.of(earned));
        let sum = fees.entry(lease.device).or_default();
        *sum = sum.saturating_add(paid);
    }
    fees
}

/// What goes back to the renter, once nothing more can be charged. `None` if all was used.
pub fn settle(state: &State, order: &Order) -> Result<Option<Transfer>, Refusal> {
    order.may(Move::Settle)?;
    let open = order.leases.values().filter(|lease| !lease.ended() || !lease.held.is_empty()).count();
    if open > 0 {
        return Err(Refusal::NoChange { what: format!("{open} leases of {} are not closed yet", order.id) });
    }
    let purse = order.purse();
    let amount = state.ledger.balance(purse.owner, purse.asset).available();
    Ok(course::give_back(order, amount))
}

/// Suppliers who earned from an order that settles now and still have it coming; what an earlier payout took along,
/// an epoch's while the order ran, is waited for no more.
pub fn unpaid(state: &State, order: &Order) -> BTreeSet<Address> {
    let earners = order.leases.values().filter(|lease| lease.charged_micro_usd > lease.voided_micro_usd);
    let owed = |account: &Address| {
        state.ledger.balance(Owner::Earned(*account), order.purse().asset).available() > 0
    };
    earners.map(|lease| lease.supplier).filter(owed).collect()
}
