//! The promise: an itemised, all-in price, good for a minute. It reserves no capacity and says so.
//!
//! Always holds: the lines add up to the total; what a quote names is the most that can be charged. Not here: how a rate is
//! made (`price`), signing it (`ionet-server`).

use serde::{Deserialize, Serialize};

use super::budget;
use super::buy::Buy;
use super::choice::{premium_ppm, with_premium};
use super::competitors;
use super::place;
use super::price::{Pricer, Pricing, duration_factor_percent};
use super::queue;
use super::request::Request;
use super::reserve;
use super::spot;
use super::waiting;
use super::wishes::Preference;
use crate::device::HardwareClass;
use crate::id::{Address, DeviceId, QuoteId};
use crate::money::{BasisPoints, Rate};
use crate::refusal::Refusal;
use crate::state::State;

/// How long a quote is good for.
pub const QUOTE_LIFE_MS: u64 = 60_000;

/// One member's price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteItem {
    /// What the price was made from; the order may get another device at the same price. None for an order that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// What kind of device it is; none for an order that waits for one of several kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<HardwareClass>,
    /// The price of this member; for an order that waits, the most that it may be.
    pub rate: Rate,
    /// What the whole time costs before fees, in micro-USD.
    pub compute_micro_usd: u64,
    /// How much of the order's time was over when the member was added: it is not paid for that.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub from_ms: u64,
    /// Its place in the quote's `pricing`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pricing: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl QuoteItem {
    /// How much time of an order of this duration is bought of the member, in milliseconds.
    pub fn bought_ms(&self, duration_ms: u64) -> u64 {
        duration_ms.saturating_sub(self.from_ms)
    }
}

/// A member that the order had and gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PastItem {
    /// Which member it was.
    pub slot: u32,
    /// Its price.
    pub rate: Rate,
    /// The most time that it can be charged for, in milliseconds.
    pub time_ms: u64,
}

/// What a quote's total is made of, in micro-USD: all but the discount are added, the discount is taken off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    /// Computing time without discounts.
    pub compute_micro_usd: u64,
    /// Disk while the cluster runs.
    pub disk_micro_usd: u64,
    /// Disk while the cluster is paused: nothing, as nothing is kept then.
    pub paused_disk_micro_usd: u64,
    /// Traffic out of the cluster: counted, and free at present.
    pub traffic_micro_usd: u64,
    /// For time and count, taken off.
    pub discount_micro_usd: u64,
    /// The renter's reservation fee.
    pub fee_micro_usd: u64,
    /// Taxes: none are collected; what is due where you are is yours to declare.
    pub tax_micro_usd: u64,
}

/// What the same GPUs and time cost elsewhere, computed from dated prices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElsewhereCost {
    /// All GPUs for the whole time at the median, in micro-USD, before anybody's fees and taxes.
    pub micro_usd: u64,
    /// The median for one GPU an hour; of several models the dearest one's.
    pub median_per_gpu: Rate,
    /// How many prices it was computed from.
    pub prices: u32,
    /// The newest date among them.
    pub date: String,
    /// Where they were seen.
    pub source: String,
}

/// A signed, all-in price for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quote {
    /// Its name.
    pub id: QuoteId,
    /// Whom it is for.
    pub account: Address,
    /// What it is for.
    pub request: Request,
    /// A price per member, in the order in which devices are chosen: the supplier who asks least first.
    pub items: Vec<QuoteItem>,
    /// All members together, before fees.
    pub rate: Rate,
    /// The duration factor on the asks in percent, already in the rates.
    pub duration_factor_percent: u32,
    /// The renter's reservation fee.
    pub renter_fee: BasisPoints,
    /// The supplier's reservation fee, taken from what he earns.
    pub supplier_fee: BasisPoints,
    /// The whole time before fees, in micro-USD.
    pub compute_micro_usd: u64,
    /// The most that the renter's fee can be, in micro-USD.
    pub fee_micro_usd: u64,
    /// The most that can ever be charged, in micro-USD; this is what is set aside.
    pub total_micro_usd: u64,
    /// When it was made, in milliseconds since 1970.
    pub issued_ms: u64,
    /// When it stops being good.
    pub expires_ms: u64,
    /// Always false: capacity is taken by the order, not by the quote.
    pub reserves_capacity: bool,
    /// How the items' rates came about, each way once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pricing: Vec<Pricing>,
    /// The total in its parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<Box<Lines>>,
    /// What the same costs elsewhere, if that is known of all its hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Box<ElsewhereCost>>,
    /// What becomes of an order that is not simply placed at the quoted price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Box<Outlook>>,
    /// Of an order: members that it had and gave up; what they can cost is in the total.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<PastItem>,
}

/// How an order's chances stand at the moment of its quote; no promise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outlook {
    /// Where the price floats: what all members would cost an hour if they were placed at this moment; none if they would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now_rate: Option<Rate>,
    /// If spot orders must make room first: how long their notice is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_in_ms: Option<u64>,
}

/// Prices a request on the devices that could take it now.
pub fn quote(
    state: &State,
    id: QuoteId,
    account: Address,
    request: &Request,
    now_ms: u64,
) -> Result<Quote, Refusal> {
    check(state, request, now_ms)?;
    let request = request.completed();
    let request =
        if request.open_ended { budget::lasting(state, account, &request, now_ms)? } else { request };
    of_time(state, id, account, &request, now_ms)
}

/// The quote of a checked and completed request for its time.
pub(super) fn of_time(
    state: &State,
    id: QuoteId,
    account: Address,
    request: &Request,
    now_ms: u64,
) -> Result<Quote, Refusal> {
    if request.buy.floats() {
        return waiting::quote(state, id, account, request, now_ms);
    }
    if matches!(request.buy, Buy::Reserved { .. }) {
        let seats = reserve::seats(state, request, &of(account), now_ms)?;
        let devices: Vec<_> = seats.into_iter().map(|seat| seat.device).collect();
        return within_cap(of_devices(state, id, account, request, &devices, now_ms)?);
    }
    let limits = beside_waiting(state, account, request, now_ms);
    if request.mega {
        return all_that_matches(state, (id, account), request, &limits, now_ms);
    }
    match place::plan(state, request, &limits, now_ms) {
        Ok(devices) => best(state, (id, account), request, (&limits, &devices), now_ms),
        Err(refusal) => {
            let room = spot::room(state, request, &limits, now_ms).ok_or(refusal)?;
            let devices: Vec<_> = room.seats.into_iter().map(|seat| seat.device).collect();
            let quote = of_devices(state, id, account, request, &devices, now_ms)?;
            let outlook = Outlook { room_in_ms: Some(room.notice_ms), ..Outlook::default() };
            within_cap(Quote { outlook: Some(Box::new(outlook)), ..quote })
        }
    }
}

/// The same without reasons.
pub(super) fn quote_if_any(state: &State, account: Address, request: &Request, now_ms: u64) -> Option<Quote> {
    let unnamed = (QuoteId::from_bits(0), account);
    if request.buy != Buy::default() || request.mega || request.open_ended {
        return quote(state, unnamed.0, unnamed.1, request, now_ms).ok();
    }
    check(state, request, now_ms).ok()?;
    let request = &request.completed();
    let limits = beside_waiting(state, account, request, now_ms);
    let devices = devices(state, request, &limits, now_ms)?;
    best(state, unnamed, request, (&limits, &devices), now_ms).ok()
}

pub(super) fn of(account: Address) -> place::Limits {
    place::Limits { renter: Some(account), ..place::Limits::default() }
}

/// What the account may have beside those who wait already and what is held for them.
pub(super) fn beside_waiting(
    state: &State,
    account: Address,
    request: &Request,
    now_ms: u64,
) -> place::Limits {
    let mut limits = of(account);
    queue::hold_back(state, &queue::Asker::new(request, now_ms), &mut limits, now_ms);
    limits
}

fn check(state: &State, request: &Request, now_ms: u64) -> Result<(), Refusal> {
    request.check()?;
    if request.per_member.is_share() && !state.params.gpu_shares {
        return Err(Refusal::Unsupported {
            what: "a share of a GPU".into(),
            reason: "nothing keeps a box to its part of a card yet".into(),
            available: "whole GPUs".into(),
        });
    }
    request.buy.check(request, now_ms)
}

fn devices(state: &State, request: &Request, limits: &place::Limits, now_ms: u64) -> Option<Vec<DeviceId>> {
    let seats = place::find(state, request, limits, now_ms)?;
    Some(seats.into_iter().map(|seat| seat.device).collect())
}

/// The quote on these devices. Where the cheapest are wanted, those of one class alone count too; where others are
/// preferred, the cheapest stand in for what is too dear.
fn best(
    state: &State,
    (id, account): (QuoteId, Address),
    request: &Request,
    (limits, found): (&place::Limits, &[DeviceId]),
    now_ms: u64,
) -> Result<Quote, Refusal> {
    let mut quote = of_devices(state, id, account, request, found, now_ms)?;
    let prefer = request.preference();
    if prefer == Preference::Cheapest {
        for class in other_classes(state, request, now_ms) {
            let only = Request { gpu_model: Some(class), ..request.clone() };
            let Some(devices) = devices(state, &only, limits, now_ms) else { continue };
            let other = of_devices(state, id, account, request, &devices, now_ms)?;
            if other.rate < quote.rate {
                quote = other;
            }
        }
    } else {
        let plain = Request { prefer: Some(Preference::Cheapest), ..request.clone() };
        if let Some(devices) = devices(state, &plain, limits, now_ms) {
            let cheapest = of_devices(state, id, account, request, &devices, now_ms)?;
            let most = with_premium(cheapest.rate, premium_ppm(state, prefer));
            if quote.rate > most || quote.within_caps().is_err() {
                quote = cheapest;
            }
        }
    }
    within_cap(quote)
}

/// As many members as there are and the cap allows, up to what the request says.
fn all_that_matches(
    state: &State,
    (id, account): (QuoteId, Address),
    request: &Request,
    limits: &place::Limits,
    now_ms: u64,
) -> Result<Quote, Refusal> {
    let seats = place::some(state, request, limits, now_ms);
    let devices: Vec<_> = seats.into_iter().map(|seat| seat.device).collect();
    let of = |members: usize| {
        let some = Request { members: u32::try_from(members).unwrap_or(u32::MAX), ..request.clone() };
        within_cap(of_devices(state, id, account, &some, &devices[..members], now_ms)?)
    };
    if devices.is_empty() {
        return Err(Refusal::NoCapacity(place::shortfall(state, request, limits, now_ms)));
    }
    // The price of all grows with their number but at the steps of the discount for count, so the last of a run may be missed.
    let (mut fits, mut over) = (of(1)?, devices.len() + 1);
    while over - fits.items.len() > 1 {
        let middle = fits.items.len().midpoint(over);
        match of(middle) {
            Ok(quote) => fits = quote,
            Err(_) => over = middle,
        }
    }
    Ok(fits)
}

fn within_cap(quote: Quote) -> Result<Quote, Refusal> {
    quote.within_caps()?;
    Ok(quote)
}

/// Most classes of hardware that are priced where a request takes several.
const MOST_CLASSES: usize = 16;

/// Where a request takes several classes with a market rate: each of them, the cheapest first. The supplier who asks least is
/// not always of the class that costs least. The order goes to whoever asks least all the same, at the quoted rate.
pub(super) fn other_classes(state: &State, request: &Request, now_ms: u64) -> Vec<String> {
    let names = request.gpu_model.as_deref().map_or(usize::MAX, |named| named.split('|').count());
    if request.per_member.gpus == 0 || names < 2 {
        return Vec::new();
    }
    let pricer = Pricer::new(state, now_ms);
    let record = state.market.iter().flat_map(|market| market.classes.iter());
    let known =
        record.filter(|(_, class)| class.supply_millis > class.hired_millis).filter_map(|(name, _)| {
            let class = HardwareClass::Gpu(name.clone());
            let rate = pricer.class_rate(&class).filter(|_| request.allows(&class))?;
            Some((rate, name.clone()))
        });
    let mut classes: Vec<_> = known.collect();
    classes.sort();
    classes.into_iter().take(MOST_CLASSES).map(|(_, name)| name).collect()
}

/// The quote for a request on these devices, one a member.
pub(super) fn of_devices(
    state: &State,
    id: QuoteId,
    account: Address,
    request: &Request,
    devices: &[DeviceId],
    now_ms: u64,
) -> Result<Quote, Refusal> {
    let mut pricing = Vec::new();
    let (mut items, mut last) = (Vec::with_capacity(devices.len()), None);
    let pricer = Pricer::new(state, now_ms);
    for device in devices {
        let found = state.device(*device)?;
        let place = match last {
            // Members on one device come one after the other and are priced alike.
            Some((known, place)) if known == *device => place,
            _ => place_of(&mut pricing, pricer.price(*device, found, request)),
        };
        last = Some((*device, place));
        let rate = pricing.get(place).map(|how| how.rate).unwrap_or_default();
        let pricing = u32::try_from(place).ok();
        let class = found.class.clone();
        let (device, class) = (Some(*device), Some(class));
        items.push(QuoteItem { device, class, rate, compute_micro_usd: 0, from_ms: 0, pricing });
    }
    Ok(of_items(state, (id, account), request, (items, pricing), now_ms))
}

/// The quote that these items make.
pub(super) fn of_items(
    state: &State,
    (id, account): (QuoteId, Address),
    request: &Request,
    (items, pricing): (Vec<QuoteItem>, Vec<Pricing>),
    now_ms: u64,
) -> Quote {
    let rate = Rate(items.iter().map(|item| item.rate.0).fold(0, u64::saturating_add));
    let mut quote = Quote {
        id,
        account,
        request: request.clone(),
        items,
        rate,
        duration_factor_percent: duration_factor_percent(request.duration_ms),
        renter_fee: state.params.renter_fee,
        supplier_fee: state.params.supplier_fee,
        compute_micro_usd: 0,
        fee_micro_usd: 0,
        total_micro_usd: 0,
        issued_ms: now_ms,
        expires_ms: now_ms + QUOTE_LIFE_MS,
        reserves_capacity: false,
        pricing,
        lines: Some(Box::default()),
        elsewhere: None,
        outlook: None,
        past: Vec::new(),
    };
    quote.add_up();
    quote.elsewhere = elsewhere(state, &quote, now_ms).map(Box::new);
    quote
}

/// Where this way of pricing stands in the list; put there if it is new.
fn place_of(all: &mut Vec<Pricing>, one: Pricing) -> usize {
    let known = all.iter().position(|known| *known == one);
    known.unwrap_or_else(|| {
        all.push(one);
        all.len() - 1
    })
}

fn elsewhere(state: &State, quote: &Quote, now_ms: u64) -> Option<ElsewhereCost> {
    let limits = state.params.price.as_ref().map(|table| table.feed_limits).unwrap_or_default();
    let none = std::collections::BTreeMap::new();
    let feeds = state.market.as_ref().map_or(&none, |record| &record.feeds);
    let gpus = u64::from(quote.request.per_member.gpus.max(1));
    let classes: Option<Vec<_>> = quote.items.iter().map(|item| item.class.as_ref()).collect();
    let mut classes = classes?;
    classes.sort_unstable();
    let mut cost: Option<ElsewhereCost> = None;
    for same in classes.chunk_by(|a, b| a == b) {
        let HardwareClass::Gpu(model) = same.first()? else { return None };
        let found = competitors::elsewhere(&competitors::prices(model, feeds, limits, now_ms))?;
        let count = gpus.saturating_mul(same.len() as u64);
        let part = found.median.total_for(quote.request.duration_ms).saturating_mul(count);
        cost = Some(match cost {
            None => ElsewhereCost {
                micro_usd: part,
                median_per_gpu: found.median,
                prices: found.prices,
                date: found.date,
                source: found.source,
            },
            Some(known) => ElsewhereCost {
                micro_usd: known.micro_usd.saturating_add(part),
                median_per_gpu: known.median_per_gpu.max(found.median),
                prices: known.prices + found.prices,
                date: known.date.max(found.date),
                source: if known.source == found.source {
                    known.source
                } else {
                    format!("{}; {}", known.source, found.source)
                },
            },
        });
    }
    cost
}

impl Quote {
    /// Sets the totals from items and duration: the one place where a quote is added up.
    pub fn add_up(&mut self) {
        for item in &mut self.items {
            item.compute_micro_usd = item.rate.total_for(item.bought_ms(self.request.duration_ms));
        }
        let past = self.past.iter().map(|item| item.rate.total_for(item.time_ms));
        let costs: Vec<u64> = self.items.iter().map(|item| item.compute_micro_usd).chain(past).collect();
        self.compute_micro_usd = costs.iter().sum();
        self.fee_micro_usd = costs.into_iter().map(|cost| self.renter_fee.of(cost)).sum();
        self.total_micro_usd = self.compute_micro_usd + self.fee_micro_usd;
        if self.lines.is_some() {
            self.lines = Some(Box::new(self.split()));
        }
    }

    /// Whether it is within the renter's caps.
    pub(crate) fn within_caps(&self) -> Result<(), Refusal> {
        match self.request.max_rate {
            Some(cap) if self.rate > cap => {
                let (rate, cap) = (self.rate.0, cap.0);
                Err(Refusal::OverPriceCap { rate_micro_usd_per_hour: rate, cap_micro_usd_per_hour: cap })
            }
            _ => self.within_total_cap(),
        }
    }

    /// Whether the total is within the renter's cap on it.
    pub(crate) fn within_total_cap(&self) -> Result<(), Refusal> {
        let total_micro_usd = self.total_micro_usd;
        match self.request.max_total_micro_usd {
            Some(cap_micro_usd) if total_micro_usd > cap_micro_usd => {
                Err(Refusal::OverTotalCap { total_micro_usd, cap_micro_usd })
            }
            _ => Ok(()),
        }
    }

    /// This quote with the members of another one, which are paid for when `from_ms` of the time is over.
    #[must_use]
    pub fn grown(&self, more: &Self, from_ms: u64) -> Self {
        let mut grown = self.clone();
        for item in &more.items {
            let how = item.pricing.and_then(|place| more.pricing.get(place as usize));
            let place = how.map(|how| place_of(&mut grown.pricing, how.clone()));
            let pricing = place.and_then(|place| u32::try_from(place).ok());
            grown.items.push(QuoteItem { from_ms, pricing, ..item.clone() });
        }
        grown.resized()
    }

    /// This quote with its first members only; the others were there until `until_ms` of the time was over.
    #[must_use]
    pub fn shrunk(&self, members: u32, until_ms: u64) -> Self {
        let mut shrunk = self.clone();
        let gone = shrunk.items.split_off(shrunk.items.len().min(members as usize));
        let past = (members..).zip(gone).map(|(slot, item)| PastItem {
            slot,
            rate: item.rate,
            time_ms: until_ms.saturating_sub(item.from_ms),
        });
        shrunk.past.extend(past.filter(|item| item.time_ms > 0));
        shrunk.resized()
    }

    fn resized(mut self) -> Self {
        self.request.members = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        self.rate = Rate(self.items.iter().map(|item| item.rate.0).fold(0, u64::saturating_add));
        if self.request.buy.floats() {
            // What its members may cost together is its cap.
            self.request.max_rate = Some(self.rate);
        }
        self.elsewhere = None;
        self.add_up();
        self
    }

    /// The total in its parts; compute takes what rounding leaves.
    fn split(&self) -> Lines {
        let each = |part: fn(&Pricing) -> u64| -> u64 {
            let of = |item: &QuoteItem| {
                let how = self.pricing.get(item.pricing? as usize)?;
                Some(Rate(part(how)).total_for(item.bought_ms(self.request.duration_ms)))
            };
            self.items.iter().filter_map(of).fold(0, u64::saturating_add)
        };
        let disk_micro_usd = each(|how| how.disk_rate.0);
        let discount_micro_usd = each(|how| how.list_rate.0.saturating_sub(how.rate.0));
        Lines {
            compute_micro_usd: self.compute_micro_usd.saturating_add(discount_micro_usd) - disk_micro_usd,
            disk_micro_usd,
            paused_disk_micro_usd: 0,
            traffic_micro_usd: 0,
            discount_micro_usd,
            fee_micro_usd: self.fee_micro_usd,
            tax_micro_usd: 0,
        }
    }
}

impl Lines {
    /// All lines together: a quote's total.
    pub fn total_micro_usd(&self) -> u64 {
        let added = [
            self.compute_micro_usd,
            self.disk_micro_usd,
            self.paused_disk_micro_usd,
            self.traffic_micro_usd,
            self.fee_micro_usd,
            self.tax_micro_usd,
        ];
        added.into_iter().fold(0, u64::saturating_add).saturating_sub(self.discount_micro_usd)
    }
}
