//! The state: a fold of the events, and nothing else.

mod course;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::account::{Account, ApiKey};
use crate::connectivity;
use crate::device::{Device, DeviceStage, Resources};
use crate::devices::Devices;
use crate::event::{Event, PrivateBody, PublicBody};
use crate::id::{Address, CommandId, DeviceId, KeyId, LeaseId, OrderId, PayoutId};
use crate::ledger::{Ledger, Step, Transfer};
use crate::market::book::{Book, BookCell, Turn};
use crate::market::capacity::GPU_MILLIS;
use crate::market::conditions::Known;
use crate::market::record::Share;
use crate::market::spot::{self, Notice, NoticeReason};
use crate::market::{Country, Denials, DenyList, MarketRecord, PriceParams, Program};
use crate::meter::{Charge, HeldCharge};
use crate::money::{BasisPoints, HOUR_MS};
use crate::order::{Lease, LeasePhase, Move, NewLease, Order, ReplaceReason, Stage};
use crate::payout::Payout;
use crate::refusal::Refusal;

/// What a network is founded with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Names the network in every signed statement, so that none is good on another one.
    pub network: String,
    /// From the renter, of every posted charge.
    pub renter_fee: BasisPoints,
    /// From the supplier, of every posted charge.
    pub supplier_fee: BasisPoints,
    /// A payout a supplier and epoch at most.
    pub epoch_ms: u64,
    /// A charge at least this often while a lease runs.
    pub meter_period_ms: u64,
    /// How long a charge with one witness waits.
    pub dispute_window_ms: u64,
    /// How long a closed order waits for a silent device before it is settled without a wipe receipt.
    pub removal_grace_ms: u64,
    /// How long an ended order stays in the live state.
    pub retention_ms: u64,
    /// What the market's prices are made by; without it, as in networks founded before there was one, asks alone count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<PriceParams>,
    /// Whether shares of a GPU may be asked for. Off, as no worker keeps a box to its part of a card yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gpu_shares: bool,
    /// Whether simulated devices may be enrolled, which are for show: on networks of one machine alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated_devices: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            network: "ionet".into(),
            renter_fee: BasisPoints(25),
            supplier_fee: BasisPoints(25),
            epoch_ms: HOUR_MS,
            meter_period_ms: 60_000,
            dispute_window_ms: HOUR_MS,
            removal_grace_ms: 15 * 60_000,
            retention_ms: 24 * HOUR_MS,
            price: Some(PriceParams::default()),
            gpu_shares: false,
            simulated_devices: false,
        }
    }
}

/// Ids older than this are refused instead of being remembered.
pub const REMEMBERED_MS: u64 = 24 * HOUR_MS;

/// An event that contradicts the state it is folded into: the journal is not one of these rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event '{event}' contradicts the state: {why}")]
pub struct Broken {
    /// Which event.
    pub event: String,
    /// What is wrong with it.
    pub why: String,
}

/// What only the network's own server knows. Losing it loses no money and no stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Private {
    /// What each live order runs.
    pub programs: BTreeMap<OrderId, Program>,
    /// The name of each machine.
    pub machine_names: BTreeMap<DeviceId, String>,
    /// Label and hash of each key's secret.
    pub key_secrets: BTreeMap<KeyId, (String, String)>,
    /// The country that an account declared.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub countries: BTreeMap<Address, Country>,
    /// Whom an order's HTTP service is exposed to by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guests: BTreeMap<OrderId, BTreeSet<Address>>,
    /// What a device's supplier does not serve.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub terms: BTreeMap<DeviceId, Denials>,
    /// What the operator keeps out of the market.
    #[serde(default, skip_serializing_if = "DenyList::is_none")]
    pub deny: DenyList,
}

/// Everything live.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Events folded so far; with the term it is the generation of what workers are told.
    pub events: u64,
    /// Whether it is a network yet.
    pub founded: bool,
    /// What it was founded with.
    pub params: Params,
    /// The server's term.
    pub term: u64,
    /// Accounts with keys.
    pub accounts: BTreeMap<Address, Account>,
    /// Devices, archived ones included.
    pub devices: Devices,
    /// Orders that are not retired.
    pub orders: BTreeMap<OrderId, Order>,
    /// Payouts under way.
    pub payouts: BTreeMap<PayoutId, Payout>,
    /// What the market did, if the network was founded with a table of prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub market: Option<MarketRecord>,
    /// The waiting order that holds what it can already get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<OrderId>,
    /// The money.
    pub ledger: Ledger,
    /// Command ids that were carried out.
    pub commands: BTreeSet<CommandId>,
    /// What is not public.
    pub private: Private,
    /// The index of what is open for hire: follows from the rest.
    #[serde(skip)]
    book: BookCell,
}

impl State {
    /// The index of what is open for hire.
    pub(crate) fn book(&self) -> &Book {
        self.book.of(self)
    }

    /// A device.
    pub fn device(&self, device: DeviceId) -> Result<&Device, Refusal> {
        self.devices.get(&device).ok_or(Refusal::UnknownDevice { device })
    }

    /// An order.
    pub fn order(&self, order: OrderId) -> Result<&Order, Refusal> {
        self.orders.get(&order).ok_or(Refusal::UnknownOrder { order })
    }

    /// A lease with its order.
    pub fn lease(&self, lease: LeaseId) -> Result<(&Order, &Lease), Refusal> {
        let order = self.orders.get(&lease.order).ok_or(Refusal::UnknownLease { lease })?;
        Ok((order, order.lease(lease.n)?))
    }

    /// A key of an account.
    pub fn key(&self, account: Address, key: KeyId) -> Result<&ApiKey, Refusal> {
        let unknown = || Refusal::KeyUnusable { key, state: "unknown".into() };
        self.accounts.get(&account).and_then(|a| a.keys.get(&key)).ok_or_else(unknown)
    }

    /// Folds an event. Reads nothing but the two, so it always gives the same state.
    pub fn apply(&mut self, event: &Event) -> Result<(), Broken> {
        let broken = |why: String| Broken { event: event.public.name(), why };
        let touched = &*self.touched(event);
        if let Some(book) = self.book.kept() {
            let (devices, orders) = (&self.devices, &self.orders);
            let known = Known::new(self.market.as_ref(), &self.private, &self.params);
            book.before(Turn { event: &event.public, touched, devices, orders, known });
        }
        self.fold(event).map_err(|refusal| broken(refusal.to_string()))?;
        if let Some(book) = self.book.kept() {
            let (devices, orders) = (&self.devices, &self.orders);
            let known = Known::new(self.market.as_ref(), &self.private, &self.params);
            book.after(Turn { event: &event.public, touched, devices, orders, known });
        }
        if let Some(command) = event.command {
            self.commands.insert(command);
        }
        self.events += 1;
        Ok(())
    }

    /// The devices that an event changes for placement.
    fn touched(&self, event: &Event) -> Vec<DeviceId> {
        use PublicBody as B;
        let of_lease =
            |lease: &LeaseId| self.lease(*lease).map_or_else(|_| Vec::new(), |(_, l)| vec![l.device]);
        match &event.public {
            B::DeviceEnrolled { enrolment } => vec![enrolment.device],
            B::DeviceChecking { device }
            | B::DevicePooled { device, .. }
            | B::DeviceRefused { device, .. }
            | B::DeviceLinksMeasured { device, .. }
            | B::DeviceContact { device, .. }
            | B::DeviceChanged { device, .. }
            | B::DeviceTermsSet { device }
            | B::DeviceArchived { device } => vec![*device],
            B::DenyListSet { .. } => {
                let now = match &event.private {
                    Some(PrivateBody::DenyList(list)) => list.devices.clone(),
                    _ => BTreeSet::new(),
                };
                self.private.deny.devices.symmetric_difference(&now).copied().collect()
            }
            B::OrderRated { order, .. } => {
                let leases = self.orders.get(order).into_iter().flat_map(|order| order.leases.values());
                let devices: BTreeSet<_> = leases.map(|lease| lease.device).collect();
                devices.into_iter().collect()
            }
            B::OrderPlaced { leases, .. } => {
                let devices: BTreeSet<_> = leases.iter().map(|lease| lease.device).collect();
                devices.into_iter().collect()
            }
            B::LeaseLost { lease, .. } | B::LeaseRemoved { lease, .. } => of_lease(lease),
            _ => Vec::new(),
        }
    }

    fn fold(&mut self, event: &Event) -> Result<(), Refusal> {
        use PublicBody as B;
        match &event.public {
            B::Founded { params } => {
                self.founded = true;
                self.params = params.clone();
                self.market = params.price.is_some().then(MarketRecord::default);
            }
            B::TermBegun { term } => self.term = *term,
            B::KeyMade { account, key } => self.fold_key(*account, key, event.private.as_ref()),
            B::KeyRevoked { account, key, void_before_ms } => {
                self.fold_key_revoked(*account, *key, *void_before_ms);
            }
            B::Active(_) => {}
            B::CountryDeclared { .. } | B::DeviceTermsSet { .. } | B::DenyListSet { .. } => {
                self.fold_terms(&event.public, event.private.as_ref());
            }
            B::Deposited { transfer, .. } | B::Sent { transfer } => self.ledger.post(&[*transfer])?,
            B::DeviceEnrolled { .. }
            | B::DeviceRebound { .. }
            | B::DeviceChecking { .. }
            | B::DevicePooled { .. }
            | B::DeviceRefused { .. }
            | B::DeviceLinksMeasured { .. }
            | B::DeviceContact { .. }
            | B::DeviceChanged { .. }
            | B::DeviceArchived { .. } => self.fold_device(event)?,
            B::LeaseReady { lease, .. } => self.fold_ready(*lease, event.at_ms)?,
            B::LeaseExited { lease, exit_code } => {
                self.lease_mut(*lease)?.phase = LeasePhase::Exited { exit_code: *exit_code };
            }
            B::LeaseLost { lease, reason } => {
                self.end_lease(*lease, LeasePhase::Lost { reason: reason.clone() }, event.at_ms)?;
            }
            B::LeaseRemoved { lease, wipe } => {
                self.end_lease(*lease, LeasePhase::Removed { wipe: wipe.clone() }, event.at_ms)?;
            }
            B::FeedTaken { feed, .. } => self.market.iter_mut().for_each(|market| market.fed(feed)),
            B::LoadsSet { loads } => {
                self.market.iter_mut().for_each(|market| market.loads_set(loads, event.at_ms));
            }
            B::LeaseMetered { receipt, charge, .. } => self.fold_charge(receipt.lease, charge)?,
            B::ChargesProven { lease, count, transfers }
            | B::ChargesVoided { lease, count, transfers, .. } => {
                self.fold_held(*lease, *count, transfers)?;
            }
            B::PayoutOpened { payout, content } => {
                self.ledger.post(&[content.transfer])?;
                self.payouts.insert(*payout, content.clone());
            }
            B::PayoutPaid { payout, transfer, .. } => self.fold_payout(*payout, transfer)?,
            B::PayoutAdopted { payout, account, transfers, orders, .. } => {
                self.ledger.post(transfers)?;
                self.payouts.remove(payout);
                self.fold_paid_from(*account, orders);
            }
            B::Retired { orders, forget_ids_before_ms } => self.fold_retired(orders, *forget_ids_before_ms),
            _ => self.fold_order(event)?,
        }
        Ok(())
    }

    /// Who serves whom is private; where it was erased, nobody is denied.
    fn fold_terms(&mut self, event: &PublicBody, private: Option<&PrivateBody>) {
        use PublicBody as B;
        match (event, private) {
            (B::CountryDeclared { account }, Some(PrivateBody::Country(country))) => {
                self.private.countries.insert(*account, *country);
            }
            (B::DeviceTermsSet { device }, Some(PrivateBody::Terms(terms))) if !terms.is_none() => {
                self.private.terms.insert(*device, terms.clone());
            }
            (B::DeviceTermsSet { device }, _) => drop(self.private.terms.remove(device)),
            (B::DenyListSet { .. }, Some(PrivateBody::DenyList(list))) => self.private.deny = list.clone(),
            (B::DenyListSet { .. }, _) => self.private.deny = DenyList::default(),
            _ => {}
        }
    }

    fn fold_key(&mut self, account: Address, key: &ApiKey, private: Option<&PrivateBody>) {
        self.accounts.entry(account).or_default().keys.insert(key.id, key.clone());
        if let Some(PrivateBody::KeySecret { label, sha256 }) = private {
            self.private.key_secrets.insert(key.id, (label.clone(), sha256.clone()));
        }
    }

    fn fold_key_revoked(&mut self, account: Address, key: KeyId, void_before_ms: Option<u64>) {
        if let Some(key) = self.accounts.get_mut(&account).and_then(|a| a.keys.get_mut(&key)) {
            key.revoked = true;
            key.revoked_ms = void_before_ms;
        }
    }

    fn fold_device(&mut self, event: &Event) -> Result<(), Refusal> {
        use PublicBody as B;
        let (B::DeviceChecking { device }
        | B::DevicePooled { device, .. }
        | B::DeviceRefused { device, .. }
        | B::DeviceArchived { device }) = &event.public
        else {
            return self.fold_device_alone(event);
        };
        let before = self.share(*device);
        self.fold_device_alone(event)?;
        self.moved(*device, before, event.at_ms);
        Ok(())
    }

    /// A device's part of the market's supply.
    fn share(&self, device: DeviceId) -> Option<Share> {
        self.market.as_ref()?;
        self.devices.get(&device).and_then(Share::of)
    }

    fn moved(&mut self, device: DeviceId, before: Option<Share>, at_ms: u64) {
        let after = self.share(device);
        if let Some(market) = &mut self.market {
            market.moved(before, after, at_ms);
        }
    }

    fn fold_device_alone(&mut self, event: &Event) -> Result<(), Refusal> {
        use PublicBody as B;
        if let B::DeviceEnrolled { enrolment } = &event.public {
            let device = Device::enrolled(enrolment.clone(), event.at_ms);
            self.devices.insert(enrolment.device, device);
            if let Some(PrivateBody::MachineName(name)) = &event.private {
                self.private.machine_names.insert(enrolment.device, name.clone());
            }
            return Ok(());
        }
        match &event.public {
            B::DeviceRebound { device, endpoint } => self.device_mut(*device)?.enrolment.endpoint = *endpoint,
            B::DeviceChecking { device } => self.device_mut(*device)?.stage = DeviceStage::Checking,
            B::DevicePooled { device, measured, class, tier } => {
                let device = self.device_mut(*device)?;
                device.stage = DeviceStage::Pooled;
                device.measured = Some(measured.clone());
                device.class = class.clone();
                // What relays measured is worth more than the check's few pings.
                if device.links.is_empty() {
                    device.tier = Some(*tier);
                }
            }
            B::DeviceLinksMeasured { device, measures, tier } => {
                let device = self.device_mut(*device)?;
                connectivity::keep(&mut device.links, measures);
                device.tier = tier.or(device.tier);
            }
            B::DeviceRefused { device, measured, reason } => {
                let device = self.device_mut(*device)?;
                device.stage = DeviceStage::Refused { reason: reason.clone() };
                device.measured.clone_from(measured);
            }
            B::DeviceContact { device, contact } => self.device_mut(*device)?.contact = *contact,
            B::DeviceChanged { device, change } => {
                let device = self.device_mut(*device)?;
                if let Some(ask) = change.ask_per_unit {
                    device.enrolment.ask_per_unit = ask;
                }
                if let Some(tags) = &change.tags {
                    device.enrolment.tags.clone_from(tags);
                }
                if let Some(rules) = &change.rules {
                    device.rules.clone_from(rules);
                }
                device.alternative = change.alternative.or(device.alternative);
            }
            B::DeviceArchived { device } => self.device_mut(*device)?.stage = DeviceStage::Archived,
            _ => {}
        }
        Ok(())
    }

    fn fold_order(&mut self, event: &Event) -> Result<(), Refusal> {
        use PublicBody as B;
        match &event.public {
            B::OrderAccepted { order, account, key, quote } => {
                let accepted = Order::accepted(*order, *account, *key, quote.clone(), event.at_ms);
                self.orders.insert(*order, accepted);
                if let Some(PrivateBody::Program(program)) = &event.private {
                    self.private.programs.insert(*order, program.clone());
                }
            }
            B::OrderFunded { order, transfer } => self.fold_escrow(*order, Move::Fund, transfer)?,
            B::OrderExtended { order, duration_ms, transfer } => {
                self.fold_escrow(*order, Move::Extend, transfer)?;
                let quote = &mut self.order_mut(*order)?.quote;
                quote.request.duration_ms = *duration_ms;
                quote.add_up();
            }
            B::OrderEgressChanged { order, egress } => {
                self.order_mut(*order)?.quote.request.egress = *egress;
                // Where the list was erased nothing is allowed, not everything.
                let allow = match &event.private {
                    Some(PrivateBody::Allow(allow)) => allow.clone(),
                    _ => BTreeSet::new(),
                };
                if let Some(program) = self.private.programs.get_mut(order) {
                    program.allow = allow;
                }
            }
            B::OrderShared { order, account, share } => {
                self.order_mut(*order)?.sharing.give(*account, share.clone(), event.at_ms);
            }
            B::OrderUnshared { order, account } => {
                self.order_mut(*order)?.sharing.take_back(*account, event.at_ms);
            }
            B::OrderPlaced { order, leases, reason } => {
                self.fold_placed(*order, leases, *reason, event.at_ms)?;
            }
            B::QueueHeld { order } => {
                self.holder = *order;
                if let Some(order) = order {
                    self.order_mut(*order)?.ways.held_ms = Some(event.at_ms);
                }
            }
            B::OrderKept { order, seats } => self.order_mut(*order)?.ways.kept.clone_from(seats),
            B::OrderNoticed { order, notice } => self.fold_noticed(*order, notice)?,
            B::OrderRepriced { order, rates } => {
                let order = self.order_mut(*order)?;
                order.ways.repriced_ms = Some(event.at_ms);
                for new in rates {
                    if let Some(lease) = order.leases.get_mut(&new.n) {
                        lease.reprice(new.rate, event.at_ms);
                    }
                }
            }
            B::OrderStarted { order } => self.step(*order, Move::Start)?,
            B::OrderRunning { order } => self.fold_running(*order, event.at_ms)?,
            B::OrderClosing { order: id, reason } => {
                self.step(*id, Move::Close)?;
                self.holder = self.holder.filter(|holder| holder != id);
                let order = self.order_mut(*id)?;
                order.closed_ms = Some(event.at_ms);
                order.reason = Some(reason.clone());
                order.exposed = None;
                order.generation += 1;
                self.private.guests.remove(id);
            }
            B::OrderSettled { order, refund, .. } => self.fold_settled(*order, refund.as_ref())?,
            B::OrderPaid { order } => self.step(*order, Move::Pay)?,
            B::OrderRated { order, stars } => self.fold_rated(*order, *stars, event.at_ms)?,
            _ => self.fold_course(event)?,
        }
        Ok(())
    }

    fn fold_rated(&mut self, order: OrderId, stars: u8, at_ms: u64) -> Result<(), Refusal> {
        self.step(order, Move::Rate)?;
        let fees = crate::order::rated_fees(self.order(order)?);
        self.order_mut(order)?.rated = Some(stars);
        for (device, fees_micro_usd) in fees {
            self.market.iter_mut().for_each(|market| market.rated(device, stars, fees_micro_usd, at_ms));
        }
        Ok(())
    }

    fn fold_escrow(&mut self, order: OrderId, wanted: Move, transfer: &Transfer) -> Result<(), Refusal> {
        self.step(order, wanted)?;
        self.ledger.post(&[*transfer])?;
        let order = self.order_mut(order)?;
        order.escrow_micro_usd += transfer.amount;
        order.escrows += 1;
        let (account, key) = (order.account, order.key);
        if let Some(key) = self.key_mut(account, key) {
            key.spent_micro_usd += transfer.amount;
        }
        Ok(())
    }

    fn fold_placed(
        &mut self,
        id: OrderId,
        leases: &[NewLease],
        reason: Option<ReplaceReason>,
        at_ms: u64,
    ) -> Result<(), Refusal> {
        let order = self.order_mut(id)?;
        let first = order.stage == Stage::Funded;
        order.stage = order.may(if first { Move::Place } else { Move::Replace })?;
        order.generation += 1;
        if !first && leases.iter().any(|lease| lease.slot == 0) {
            order.engine_epoch += 1;
        }
        order.replaced = reason.or(order.replaced);
        let wanted = order.quote.request.per_member;
        self.holder = self.holder.filter(|holder| *holder != id);
        for lease in leases {
            let before = self.share(lease.device);
            let device = self.device_mut(lease.device)?;
            let gpus = device.hire(wanted, &lease.gpus);
            let class = device.class.clone();
            self.moved(lease.device, before, at_ms);
            if let Some(market) = &mut self.market {
                market.traded(&class, wanted, lease.rate, at_ms);
            }
            self.order_mut(id)?.leases.insert(lease.n, lease.lease(gpus));
        }
        Ok(())
    }

    fn fold_noticed(&mut self, id: OrderId, notice: &Notice) -> Result<(), Refusal> {
        self.order_mut(id)?.ways.notice = Some(*notice);
        if let NoticeReason::Room { order } = notice.reason {
            let until_ms = spot::room_until_ms(self, notice);
            let room_until_ms = &mut self.order_mut(order)?.ways.room_until_ms;
            *room_until_ms = Some(room_until_ms.unwrap_or(0).max(until_ms));
        }
        Ok(())
    }

    fn fold_ready(&mut self, lease: LeaseId, at_ms: u64) -> Result<(), Refusal> {
        let (order, found) = self.lease(lease)?;
        let from_ms = order.quote.items.get(found.slot as usize).map_or(0, |item| item.from_ms);
        let bought_since_ms = order.moment_ms(from_ms);
        let id = lease.order;
        let lease = self.lease_mut(lease)?;
        lease.phase = LeasePhase::Ready;
        if let (Some(since_ms), None) = (bought_since_ms, lease.charging_since_ms) {
            // Where the clock was put back in between, the time before that was never bought.
            lease.charging_since_ms = Some(at_ms.max(since_ms));
        }
        self.fold_all_up(id)
    }

    fn fold_running(&mut self, order: OrderId, at_ms: u64) -> Result<(), Refusal> {
        self.step(order, Move::Ready)?;
        let order = self.order_mut(order)?;
        order.running_since_ms = Some(at_ms);
        order.course.pause = None;
        for lease in order.leases.values_mut().filter(|lease| lease.live()) {
            lease.charging_since_ms = Some(at_ms);
        }
        Ok(())
    }

    fn fold_charge(&mut self, id: LeaseId, charge: &Charge) -> Result<(), Refusal> {
        self.ledger.post(&charge.transfers)?;
        let lease = self.lease_mut(id)?;
        lease.elapsed_ms = charge.elapsed_ms;
        lease.periods += 1;
        lease.charged_micro_usd += charge.charge_micro_usd;
        lease.renter_fee_micro_usd += charge.renter_fee_micro_usd;
        if let Some(due_ms) = charge.held_until_ms {
            lease.held.push(HeldCharge {
                due_ms,
                charge_micro_usd: charge.charge_micro_usd,
                renter_fee_micro_usd: charge.renter_fee_micro_usd,
                transfers: charge.transfers.clone(),
            });
        }
        Ok(())
    }

    fn fold_held(&mut self, id: LeaseId, count: u32, transfers: &[Transfer]) -> Result<(), Refusal> {
        self.ledger.post(transfers)?;
        let voided = transfers.iter().any(|transfer| transfer.step == Step::VoidHeld);
        let lease = self.lease_mut(id)?;
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(lease.held.len());
        for held in lease.held.drain(..count).filter(|_| voided) {
            lease.voided_micro_usd += held.charge_micro_usd;
            lease.renter_fee_micro_usd -= held.renter_fee_micro_usd;
        }
        Ok(())
    }

    fn end_lease(&mut self, id: LeaseId, phase: LeasePhase, at_ms: u64) -> Result<(), Refusal> {
        let lost = matches!(phase, LeasePhase::Lost { .. });
        let (order, lease) = self.lease(id)?;
        let (wanted, device, held) = (order.quote.request.per_member, lease.device, !lease.ended());
        let lease = self.lease_mut(id)?;
        lease.phase = phase;
        if held {
            let gpus = lease.gpus.clone();
            let before = self.share(device);
            self.device_mut(device)?.release(wanted, &gpus);
            self.moved(device, before, at_ms);
            if let Some(market) = &mut self.market {
                market.served(device, lost);
            }
            if self.device(device)?.leases == 0
                && let Some(market) = &mut self.market
            {
                market.freed(device, at_ms);
            }
        }
        self.order_mut(id.order)?.generation += 1;
        Ok(())
    }

    fn fold_settled(&mut self, id: OrderId, refund: Option<&Transfer>) -> Result<(), Refusal> {
        self.step(id, Move::Settle)?;
        self.ledger.post(refund.map(std::slice::from_ref).unwrap_or_default())?;
        let amount = refund.map_or(0, |transfer| transfer.amount);
        let unpaid = crate::order::unpaid(self, self.order(id)?);
        let order = self.order_mut(id)?;
        order.refund_micro_usd += amount;
        order.unpaid = unpaid;
        let (account, key) = (order.account, order.key);
        if let Some(key) = self.key_mut(account, key) {
            key.spent_micro_usd = key.spent_micro_usd.saturating_sub(amount);
        }
        Ok(())
    }

    fn fold_payout(&mut self, id: PayoutId, transfer: &Transfer) -> Result<(), Refusal> {
        self.ledger.post(&[*transfer])?;
        if let Some(payout) = self.payouts.remove(&id) {
            self.fold_paid_from(payout.account, &payout.orders);
        }
        Ok(())
    }

    /// A supplier has what was earned from these orders.
    fn fold_paid_from(&mut self, account: Address, orders: &[OrderId]) {
        for order in orders {
            if let Some(order) = self.orders.get_mut(order) {
                order.unpaid.remove(&account);
            }
        }
    }

    fn fold_retired(&mut self, orders: &[OrderId], before_ms: u64) {
        for order in orders {
            self.orders.remove(order);
            self.private.programs.remove(order);
            self.ledger.forget_account(crate::ledger::Owner::Order(*order));
            self.ledger.forget_scope(order.bits());
        }
        self.ledger.forget_before(before_ms);
        self.commands = self.commands.split_off(&CommandId::from_parts(before_ms, 0));
    }

    fn step(&mut self, order: OrderId, wanted: Move) -> Result<(), Refusal> {
        let order = self.order_mut(order)?;
        order.stage = order.may(wanted)?;
        Ok(())
    }

    fn order_mut(&mut self, order: OrderId) -> Result<&mut Order, Refusal> {
        self.orders.get_mut(&order).ok_or(Refusal::UnknownOrder { order })
    }

    fn device_mut(&mut self, device: DeviceId) -> Result<&mut Device, Refusal> {
        self.devices.get_mut(&device).ok_or(Refusal::UnknownDevice { device })
    }

    fn lease_mut(&mut self, lease: LeaseId) -> Result<&mut Lease, Refusal> {
        let order = self.order_mut(lease.order)?;
        order.leases.get_mut(&lease.n).ok_or(Refusal::UnknownLease { lease })
    }

    fn key_mut(&mut self, account: Address, key: Option<KeyId>) -> Option<&mut ApiKey> {
        self.accounts.get_mut(&account)?.keys.get_mut(&key?)
    }

    /// Checks the books: every sum zero, nobody below zero, no device over-committed. The first fault in words.
    pub fn audit(&self) -> Result<(), String> {
        if let Some((asset, sum)) = self.ledger.sums().into_iter().find(|(_, sum)| *sum != 0) {
            return Err(format!("the accounts in {asset} add up to {sum} minor units instead of 0"));
        }
        if let Some(account) = self.ledger.overdrawn() {
            return Err(format!("account {account} is below zero"));
        }
        for (id, device) in &self.devices {
            let committed = self.committed_on(*id);
            if committed != device.committed || !device.enrolment.offered.holds(committed) {
                return Err(format!(
                    "device {id} has {committed:?} committed and counts {:?}",
                    device.committed
                ));
            }
            let used = self.gpus_used_on(*id);
            if !device.gpu_used_millis.is_empty() && used != device.gpu_used_millis
                || used.iter().any(|used| *used > GPU_MILLIS)
            {
                let counted = &device.gpu_used_millis;
                return Err(format!(
                    "device {id} has {used:?} thousandths of its GPUs hired and counts {counted:?}"
                ));
            }
        }
        Ok(())
    }

    fn held_on(&self, device: DeviceId) -> impl Iterator<Item = (Resources, &Lease)> {
        let orders = self.orders.values();
        let wanted = |order: &Order| order.quote.request.per_member;
        let leases =
            orders.flat_map(move |order| order.leases.values().map(move |lease| (wanted(order), lease)));
        leases.filter(move |(_, lease)| lease.device == device && !lease.ended())
    }

    fn committed_on(&self, device: DeviceId) -> Resources {
        self.held_on(device).fold(Resources::default(), |sum, (wanted, _)| sum.plus(wanted))
    }

    fn gpus_used_on(&self, device: DeviceId) -> Vec<u16> {
        let gpus = self.devices.get(&device).map_or(0, |device| device.enrolment.offered.gpus);
        let mut used = vec![0; gpus as usize];
        for (wanted, lease) in self.held_on(device) {
            for place in &lease.gpus {
                if let Some(gpu) = used.get_mut(*place as usize) {
                    *gpu += u16::try_from(wanted.millis_per_gpu()).unwrap_or(GPU_MILLIS);
                }
            }
        }
        used
    }
}

impl NewLease {
    fn lease(&self, gpus: Vec<u32>) -> Lease {
        Lease {
            gpus,
            slot: self.slot,
            device: self.device,
            supplier: self.supplier,
            rate: self.rate,
            phase: LeasePhase::Placed,
            charging_since_ms: None,
            elapsed_ms: 0,
            periods: 0,
            charged_micro_usd: 0,
            voided_micro_usd: 0,
            renter_fee_micro_usd: 0,
            held: Vec::new(),
            earlier: None,
            released: None,
            ailing: None,
        }
    }
}
