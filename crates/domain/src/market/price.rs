//! The price: an itemised, all-in promise, good for a minute. It reserves no capacity and says so.
//!
//! A first price: the devices' asks, a duration factor (1 below a day, 0.9 from a day, 0.8 from a week) and the
//! reservation fee of 0.25 % from each side. Not here: signing it (`ionet-server`).

use serde::{Deserialize, Serialize};

use super::place;
use super::request::Request;
use crate::device::{Device, HardwareClass, Resources};
use crate::id::{Address, DeviceId, QuoteId};
use crate::money::{BasisPoints, HOUR_MS, Rate};
use crate::refusal::Refusal;
use crate::state::State;

/// How long a quote is good for.
pub const QUOTE_LIFE_MS: u64 = 60_000;

/// One member's price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteItem {
    /// What the price was made from; the order may get another device at the same price.
    pub device: DeviceId,
    /// What kind of device it is.
    pub class: HardwareClass,
    /// The price of this member.
    pub rate: Rate,
    /// What the whole time costs before fees, in micro-USD.
    pub compute_micro_usd: u64,
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
    /// A price per member, cheapest first.
    pub items: Vec<QuoteItem>,
    /// All members together, before fees.
    pub rate: Rate,
    /// The duration factor in percent, already in the rates.
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
}

/// The factor on the price of a longer commitment, in percent.
pub fn duration_factor_percent(duration_ms: u64) -> u32 {
    const DAY_MS: u64 = 24 * HOUR_MS;
    match duration_ms {
        0..DAY_MS => 100,
        DAY_MS..604_800_000 => 90,
        _ => 80,
    }
}

/// What `wanted` of a device costs: its ask for each GPU, or on a CPU device for each CPU thread, times the
/// duration factor, rounded down once.
pub fn member_rate(device: &Device, wanted: Resources, duration_ms: u64) -> Rate {
    let units_millis = match device.class {
        HardwareClass::Cpu => u128::from(wanted.cpu_millis),
        HardwareClass::Gpu(_) => u128::from(wanted.gpus.max(1)) * 1000,
    };
    let factor = u128::from(duration_factor_percent(duration_ms));
    let rate = u128::from(device.enrolment.ask_per_unit.0) * units_millis * factor / 100_000;
    Rate(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Prices a request on the cheapest devices that could take it now.
pub fn quote(
    state: &State,
    id: QuoteId,
    account: Address,
    request: &Request,
    now_ms: u64,
) -> Result<Quote, Refusal> {
    request.check()?;
    let devices = place::plan(state, request, &place::Limits::default(), now_ms)?;
    let items: Vec<_> =
        devices.iter().map(|device| item(state, *device, request)).collect::<Result<_, _>>()?;
    let rate = Rate(items.iter().map(|item| item.rate.0).sum());
    if let Some(cap) = request.max_rate
        && rate > cap
    {
        let (rate, cap) = (rate.0, cap.0);
        return Err(Refusal::OverPriceCap { rate_micro_usd_per_hour: rate, cap_micro_usd_per_hour: cap });
    }
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
    };
    quote.add_up();
    Ok(quote)
}

fn item(state: &State, device: DeviceId, request: &Request) -> Result<QuoteItem, Refusal> {
    let found = state.device(device)?;
    let rate = member_rate(found, request.per_member, request.duration_ms);
    let compute_micro_usd = rate.total_for(request.duration_ms);
    Ok(QuoteItem { device, class: found.class.clone(), rate, compute_micro_usd })
}

impl Quote {
    /// Sets the totals from items and duration: the one place where a quote is added up.
    pub fn add_up(&mut self) {
        for item in &mut self.items {
            item.compute_micro_usd = item.rate.total_for(self.request.duration_ms);
        }
        self.compute_micro_usd = self.items.iter().map(|item| item.compute_micro_usd).sum();
        self.fee_micro_usd = self.items.iter().map(|item| self.renter_fee.of(item.compute_micro_usd)).sum();
        self.total_micro_usd = self.compute_micro_usd + self.fee_micro_usd;
    }
}
