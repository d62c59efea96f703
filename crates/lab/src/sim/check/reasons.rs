//! Reasons: every refusal and every end is held against the state it was decided on.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::command::CommandBody;
use ionet_domain::connectivity::claimed_region;
use ionet_domain::device::{Contact, Device, DeviceStage, HardwareClass};
use ionet_domain::market::place::Shortfall;
use ionet_domain::market::spot::{self, Notice, NoticeReason};
use ionet_domain::market::{Egress, Isolation, Request};
use ionet_domain::order::pause::PauseReason;
use ionet_domain::order::size::ShrinkReason;
use ionet_domain::order::{self, CloseReason, LeasePhase, Order};
use ionet_domain::{Command, DeviceId, Event, OrderId, PublicBody, Refusal, State};

use crate::Result;
use crate::sim::promise::{Promise, must};
use crate::sim::questions::{close_code_is_true, replace_code_is_true};

/// Why an order closes must be so in the state just before.
pub(super) fn closing(state: &State, event: &Event) -> Result<()> {
    if let PublicBody::OrderPlaced { reason: Some(reason), .. } = &event.public {
        replace_code_is_true(*reason)?;
    }
    not_placed(state, event)?;
    if let PublicBody::OrderNoticed { order: id, notice } = &event.public {
        return noticed(state, *id, notice, event.at_ms);
    }
    let PublicBody::OrderClosing { order: id, reason } = &event.public else { return Ok(()) };
    close_code_is_true(reason)?;
    let Ok(order) = state.order(*id) else { return Ok(()) };
    must(holds(state, order, reason, event.at_ms), Promise::ReasonsTrue, || {
        format!("{id} was closed as {reason:?} and that is not so: {:?} {:?}", order.stage, order.leases)
    })
}

/// Only spot orders are given notice, as long as was agreed, and for room only of an order that is no spot and has none.
fn noticed(state: &State, id: OrderId, notice: &Notice, at_ms: u64) -> Result<()> {
    let Ok(order) = state.order(id) else { return Ok(()) };
    let long = spot::notice_ms(order.quote.request.buy).map(|notice_ms| at_ms + notice_ms);
    let whom = match notice.reason {
        NoticeReason::Room { order } => state.order(order).ok(),
        NoticeReason::Price { .. } => None,
    };
    let needs = whom.is_none_or(|whom| {
        spot::notice_ms(whom.quote.request.buy).is_none() && order::place(state, whom, at_ms).is_err()
    });
    must(long == Some(notice.ends_ms) && needs, Promise::ReasonsTrue, || {
        format!("{id} was given notice at {at_ms} and that is not so: {notice:?}")
    })
}

/// Nobody shrinks or stays paused for want of devices that are there.
fn not_placed(state: &State, event: &Event) -> Result<()> {
    let (order, tried) = match &event.public {
        PublicBody::OrderShrunk { order, reason: ShrinkReason::NoPlace, .. } => {
            let Ok(found) = state.order(*order) else { return Ok(()) };
            (order, order::replace(state, found, event.at_ms))
        }
        PublicBody::OrderPaused { order, reason: PauseReason::NoPlace, .. } => {
            let Ok(found) = state.order(*order) else { return Ok(()) };
            (order, order::place(state, found, event.at_ms))
        }
        _ => return Ok(()),
    };
    let none = matches!(tried, Err(Refusal::NoCapacity(_) | Refusal::OverPriceCap { .. }));
    must(none, Promise::ReasonsTrue, || format!("{order} found no place and that is not so"))
}

fn holds(state: &State, found: &Order, reason: &CloseReason, at_ms: u64) -> bool {
    let lost_as = |wanted: &str| {
        let phases = found.leases.values().map(|lease| &lease.phase);
        phases.into_iter().any(|phase| matches!(phase, LeasePhase::Lost { reason } if reason == wanted))
    };
    match reason {
        CloseReason::Renter | CloseReason::Operator { .. } => true,
        CloseReason::Time => found.ends_ms().is_some_and(|ends_ms| ends_ms <= at_ms),
        CloseReason::PauseOver => found.course.pause.is_some_and(|pause| pause.until_ms <= at_ms),
        CloseReason::Expired => {
            let until_ms = found.quote.request.waits_until_ms();
            found.leases.is_empty() && until_ms.is_some_and(|until_ms| until_ms <= at_ms)
        }
        CloseReason::Preempted => {
            let over = found.ways.notice.is_some_and(|notice| notice.ends_ms <= at_ms);
            over && spot::notice_ms(found.quote.request.buy).is_some()
        }
        CloseReason::NoCapacity => {
            let short = order::place(state, found, at_ms);
            matches!(short, Err(Refusal::NoCapacity(_) | Refusal::OverPriceCap { .. }))
        }
        CloseReason::MemberLost { lease, reason } => {
            found.running_since_ms.is_some() && found.leases.contains_key(&lease.n) && lost_as(reason)
        }
        CloseReason::StartFailed { reason } => found.running_since_ms.is_none() && lost_as(reason),
        CloseReason::Finished { exit_code } => {
            let mut codes = BTreeMap::new();
            for lease in found.leases.values().filter(|lease| lease.live()) {
                if let LeasePhase::Exited { exit_code } = lease.phase {
                    codes.insert(lease.slot, exit_code);
                }
            }
            codes.len() == found.quote.request.members as usize && codes.values().max() == Some(exit_code)
        }
    }
}

/// Whether a refusal is true of the state it was decided on.
pub(in crate::sim) fn refusal_is_true(
    state: &State,
    command: &Command,
    refusal: &Refusal,
    now_ms: u64,
) -> Result<()> {
    let quote = match &command.body {
        CommandBody::PlaceOrder { quote, .. } | CommandBody::Grow { quote, .. } => Some(quote),
        _ => None,
    };
    let account = command.actor.account();
    let is = match refusal {
        Refusal::InsufficientFunds { account, available, needed, asset } => {
            state.ledger.balance(account.owner, *asset).available() == *available && available < needed
        }
        Refusal::QuoteExpired { ago_ms } => quote.is_some_and(|quote| quote.expires_ms + ago_ms == now_ms),
        Refusal::QuoteNotYours => quote.is_some_and(|quote| Some(quote.account) != account),
        Refusal::KeyOverCap { cap_micro_usd, spent_micro_usd, needed_micro_usd, .. } => {
            spent_micro_usd + needed_micro_usd > *cap_micro_usd
        }
        Refusal::UnknownOrder { order } => {
            state.orders.get(order).is_none_or(|order| Some(order.account) != account)
        }
        Refusal::WrongStage { order, stage, wanted } => {
            let found = state.orders.get(order);
            found.is_some_and(|order| order.stage == *stage) && order::after(*stage, *wanted).is_none()
        }
        Refusal::UnknownDevice { device } => !state.devices.contains_key(device),
        Refusal::TransferExists { id } => state.ledger.exists(*id),
        Refusal::StaleId { age_ms, limit_ms } => age_ms > limit_ms,
        Refusal::NoCapacity(short) => adds_up(state, short),
        Refusal::OverPriceCap { rate_micro_usd_per_hour, cap_micro_usd_per_hour } => {
            rate_micro_usd_per_hour > cap_micro_usd_per_hour
        }
        _ => true,
    };
    must(is, Promise::ReasonsTrue, || format!("{:?} was refused and that is not so: {refusal}", command.body))
}

fn adds_up(state: &State, short: &Shortfall) -> bool {
    let removed: u32 = short.removed.iter().map(|removed| removed.devices).sum();
    let devices = u32::try_from(state.devices.len()).unwrap_or(u32::MAX);
    let pooled = state.devices.values().filter(|device| device.stage == DeviceStage::Pooled).count();
    let not_pooled = short.removed.iter().filter(|removed| removed.constraint.starts_with("not pooled"));
    let not_pooled: u32 = not_pooled.map(|removed| removed.devices).sum();
    short.possible < short.wanted
        && short.devices == devices
        && removed <= devices
        && not_pooled as usize + pooled == state.devices.len()
}

/// A quote is refused for want of devices only if too few members fit; counted here a second time, the plain way.
pub(in crate::sim) fn quote_is_refused_in_truth(
    state: &State,
    request: &Request,
    refusal: &Refusal,
    now_ms: u64,
) -> Result<()> {
    let Refusal::NoCapacity(short) = refusal else { return Ok(()) };
    // What is held for others, now or in the window asked for, is not counted here.
    let held = |order: &Order| order.ways.room_until_ms.is_some() || !order.ways.kept.is_empty();
    if state.holder.is_some() || request.buy.begins_ms().is_some() || state.orders.values().any(held) {
        return Ok(());
    }
    let refuses =
        |id: &DeviceId| state.private.terms.get(id).is_some_and(|terms| terms.kinds.contains(&request.kind));
    let willing = state.devices.iter().filter(|(id, _)| !refuses(id));
    let fit: u64 = willing.map(|(_, device)| members_on(device, request, now_ms)).sum();
    must(fit < u64::from(request.members) && fit == u64::from(short.possible), Promise::ReasonsTrue, || {
        format!("{fit} members would have fitted and it was refused: {short}")
    })
}

/// Where it is and what keeps boxes apart there.
fn wishes_met(device: &Device, request: &Request) -> bool {
    let region = device.proven_region();
    let in_one = |regions: &BTreeSet<String>| {
        region.is_some_and(|own| regions.iter().any(|of| own == of || own.starts_with(&format!("{of}-"))))
    };
    let enforced = device.measured.as_ref().is_some_and(|measured| measured.enforcement.is_some());
    (request.regions.is_empty() || in_one(&request.regions))
        && (request.not_regions.is_empty() || region.is_some() && !in_one(&request.not_regions))
        && match request.isolation {
            Some(Isolation::Limits) => enforced,
            Some(Isolation::OneTenant) => !enforced,
            Some(Isolation::Process) | None => true,
        }
}

fn members_on(device: &Device, request: &Request, now_ms: u64) -> u64 {
    let enrolment = &device.enrolment;
    let suits = device.stage == DeviceStage::Pooled
        && device.contact == Contact::Connected
        && device.rules.closed(now_ms).is_none()
        && request.gpu_model.as_ref().is_none_or(|model| device.class == HardwareClass::Gpu(model.clone()))
        && request.network.as_ref().is_none_or(|network| *network == enrolment.network)
        && wishes_met(device, request)
        && request.tags.iter().all(|tag| enrolment.tags.contains(tag))
        && (!device.rules.no_egress || request.egress == Egress::Off)
        && request.tier.is_none_or(|least| device.tier.is_some_and(|tier| tier >= least))
        && (claimed_region(&request.tags).is_none() || device.region_doubt().is_none());
    let one_at_a_time = device.measured.as_ref().is_none_or(|measured| measured.enforcement.is_none());
    let bound = request.max_per_device.unwrap_or(request.members);
    let most = if one_at_a_time || request.spread { 1 } else { bound.min(request.members) };
    let (mut free, mut fit) = (device.free(), 0);
    while suits && fit < most && free.holds(request.per_member) {
        free = free.less(request.per_member);
        fit += 1;
    }
    u64::from(fit)
}
