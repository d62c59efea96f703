//! Events of the journal in words.

use ionet_api::rest::EventView;
use ionet_domain::PayoutId;
use ionet_domain::event::PublicBody as B;
use ionet_domain::ledger::{Owner, Step, Transfer};
use ionet_domain::market::spot::NoticeReason;
use ionet_domain::money::decimal;
use ionet_domain::order::pause::PauseReason;
use ionet_domain::order::size::{GrowReason, ShrinkReason};
use ionet_domain::order::{CloseReason, ReplaceReason};
use serde_json::Value;

use crate::units::{bytes, cpus, moment, span, usd};

/// What happened, in one line. An event of a newer release is shown as it stands.
pub(crate) fn event(view: &EventView) -> String {
    let body = view.event.get("event").unwrap_or(&view.event);
    match serde_json::from_value::<B>(body.clone()) {
        Ok(body) => sentence(&body),
        Err(_) => body.to_string(),
    }
}

/// Reads the event's body, if this release knows it.
pub(crate) fn body(view: &EventView) -> Option<B> {
    serde_json::from_value(view.event.get("event").unwrap_or(&view.event).clone()).ok()
}

/// Why an order ended, in words.
pub(crate) fn reason(reason: &CloseReason) -> String {
    match reason {
        CloseReason::Renter => "its renter closed it".into(),
        CloseReason::Time => "its time is over".into(),
        CloseReason::NoCapacity => "no device was left when it came to placement".into(),
        CloseReason::Expired => "its waiting is over and neither price nor hardware appeared".into(),
        CloseReason::Preempted => {
            "others needed its room or the price rose above its bid; its notice is over".into()
        }
        CloseReason::MemberLost { lease, reason } => {
            format!("member {} was lost ({reason}) and no other device fits", lease.n)
        }
        CloseReason::StartFailed { reason } => format!("a member could not be started: {reason}"),
        CloseReason::PauseOver => "it was paused for as long as it may be".into(),
        CloseReason::Finished { exit_code } => {
            format!("the program of every member ended, exit code {exit_code}")
        }
        CloseReason::Operator { reason } => format!("the operator closed it: {reason}"),
    }
}

/// Why a spot order is given notice.
pub(crate) fn notice(reason: NoticeReason) -> String {
    match reason {
        NoticeReason::Room { order } => format!("{order}, which is no spot, has no place otherwise"),
        NoticeReason::Price { rate } => format!("the market is at {rate}, above its bid"),
    }
}

/// Why an order got other leases, with its stable name.
pub(crate) fn replaced(reason: ReplaceReason) -> String {
    let words = match reason {
        ReplaceReason::HeadLost => "the Ray engine starts anew on the members that are left",
        ReplaceReason::MemberLost => "the other members run on",
        ReplaceReason::Grown => "members were added",
        ReplaceReason::Ailing => "a member that ailed was replaced",
    };
    format!("{}: {words}", reason.code())
}

fn sentence(body: &B) -> String {
    devices(body).or_else(|| orders(body)).or_else(|| money(body)).unwrap_or_else(|| accounts(body))
}

fn devices(body: &B) -> Option<String> {
    Some(match body {
        B::DeviceEnrolled { enrolment } => format!(
            "device {} enrolled: {} CPU, {} memory, {} GPUs offered, ask {}",
            enrolment.device,
            cpus(enrolment.offered.cpu_millis),
            bytes(enrolment.offered.memory_bytes),
            enrolment.offered.gpus,
            enrolment.ask_per_unit
        ),
        B::DeviceRebound { device, endpoint } => {
            format!("device {device} has the endpoint key {endpoint} now")
        }
        B::DeviceChecking { device } => format!("device {device} is being measured"),
        B::DevicePooled { device, class, .. } => format!("device {device} passed its check: {class}"),
        B::DeviceLinksMeasured { device, tier, .. } => match tier {
            Some(tier) => format!("device {device}: relays measured its links; connectivity {tier}"),
            None => format!("device {device}: relays measured its round trips"),
        },
        B::DeviceRefused { device, reason, .. } => format!("device {device} was refused: {reason}"),
        B::DeviceContact { device, contact } => match contact {
            ionet_domain::device::Contact::Connected => format!("device {device} is connected"),
            ionet_domain::device::Contact::Unknown { .. } => {
                format!("device {device} is silent (unknown, not failed)")
            }
        },
        B::DeviceChanged { device, .. } => format!("device {device} was changed by its owner"),
        B::DeviceTermsSet { device } => {
            format!("device {device}: its supplier set whom and what it does not serve")
        }
        B::DeviceArchived { device } => format!("device {device} was archived"),
        _ => return None,
    })
}

fn orders(body: &B) -> Option<String> {
    Some(match body {
        B::OrderAccepted { order, quote, .. } => {
            format!("order {order} accepted: {} for at most {}", members(quote), usd(quote.total_micro_usd))
        }
        B::OrderFunded { order, transfer } => format!("order {order} funded with {}", usd(transfer.amount)),
        B::OrderPlaced { order, leases, reason } => {
            let places: Vec<_> =
                leases.iter().map(|lease| format!("{} on {}", lease.n, lease.device)).collect();
            let why = reason.map(|reason| format!(" ({})", replaced(reason))).unwrap_or_default();
            format!("order {order} placed: lease {}{why}", places.join(", lease "))
        }
        B::QueueHeld { order: Some(order) } => {
            format!("order {order} has waited long and holds what it can already get")
        }
        B::QueueHeld { order: None } => "no waiting order holds devices any more".into(),
        B::OrderKept { order, seats } => {
            let devices: Vec<_> = seats.iter().map(|seat| seat.device.to_string()).collect();
            format!("order {order}: kept for its window: {}", devices.join(", "))
        }
        B::OrderNoticed { order, notice: given } => {
            format!("order {order} ends at {}: {}", moment(given.ends_ms), notice(given.reason))
        }
        B::OrderRepriced { order, rates } => {
            let rates: Vec<_> = rates.iter().map(|new| format!("lease {} {}", new.n, new.rate)).collect();
            let rates = if rates.is_empty() { "unchanged".to_owned() } else { rates.join(", ") };
            format!("order {order} repriced by the market: {rates}")
        }
        B::OrderStarted { order } => format!("order {order} starting: its devices are being told"),
        B::LeaseReady { lease, parts_ms } => {
            let parts: Vec<_> = parts_ms.iter().map(|(name, ms)| format!("{name} {}", span(*ms))).collect();
            format!("lease {lease} is up ({})", parts.join(", "))
        }
        B::LeaseExited { lease, exit_code } => {
            format!("lease {lease} ended by itself, exit code {exit_code}")
        }
        B::LeaseLost { lease, reason } => format!("lease {lease} was lost: {reason}"),
        B::OrderRunning { order } => format!("order {order} is running: every member is up, metering begins"),
        B::OrderExtended { order, duration_ms, transfer } => {
            format!("order {order} extended to {} for {}", span(*duration_ms), usd(transfer.amount))
        }
        B::OrderEgressChanged { order, egress } => format!("order {order}: egress is {egress} now"),
        B::OrderExposed { order, exposure } => {
            format!("order {order} exposes {} port {} ({})", exposure.kind, exposure.port, exposure.access)
        }
        B::OrderUnexposed { order, kind, port } => {
            format!("order {order} exposes {kind} port {port} no more")
        }
        B::OrderClosing { order, reason: why } => format!("order {order} closing: {}", reason(why)),
        B::LeaseRemoved { lease, wipe } => match wipe {
            Some(wipe) => format!(
                "lease {lease} removed and wiped: {} files, {}, {} processes ended ({})",
                wipe.files,
                bytes(wipe.bytes),
                wipe.processes_killed,
                wipe.method
            ),
            None => format!("lease {lease} given up: its device did not answer, no wipe receipt"),
        },
        B::OrderSettled { order, bill, .. } => format!(
            "order {order} settled: {} of {} charged, {} back",
            usd(bill.total_micro_usd),
            usd(bill.escrow_micro_usd),
            usd(bill.refund_micro_usd)
        ),
        B::OrderRated { order, stars } => format!("order {order}: its renter gave it {stars} of 5 stars"),
        B::OrderPaid { order } => format!("order {order}: all suppliers paid"),
        B::Retired { orders, .. } => format!("{} ended orders left the live state", orders.len()),
        _ => return courses(body),
    })
}

fn back(refund: Option<&Transfer>) -> String {
    usd(refund.map_or(0, |refund| refund.amount))
}

/// What changes an order that lives.
fn courses(body: &B) -> Option<String> {
    Some(match body {
        B::OrderGrown { order, quote, transfer, reason, .. } => {
            let why = match reason {
                GrowReason::Renter => "as asked".to_owned(),
                GrowReason::Scaled { busy_percent } => format!("its members were {busy_percent} % busy"),
            };
            format!(
                "order {order} grows by {} members for {}: {why}",
                quote.request.members,
                usd(transfer.amount)
            )
        }
        B::OrderShrunk { order, members, refund, reason, .. } => {
            let why = match reason {
                ShrinkReason::Renter => "as asked".to_owned(),
                ShrinkReason::NoPlace => "there were no devices for more".to_owned(),
                ShrinkReason::Scaled { busy_percent } => format!("its members were {busy_percent} % busy"),
            };
            format!("order {order} shrinks to {members} members, {} back: {why}", back(refund.as_ref()))
        }
        B::OrderPaused { order, ran_ms, reason, .. } => {
            let why = match reason {
                PauseReason::Renter => "as asked",
                PauseReason::NoPlace => "there was no place for it any more",
            };
            format!("order {order} paused after {}: {why}", span(*ran_ms))
        }
        B::MemberAiling { lease, ailment: Some(ailment) } => {
            format!("lease {lease} ails ({}): {ailment}", ailment.code())
        }
        B::MemberAiling { lease, ailment: None } => format!("lease {lease} is well again"),
        B::MemberReleased { lease, .. } => format!("lease {lease} is let go: another takes its place"),
        B::OrderResumed { order } => format!("order {order} is to run again"),
        B::OrderChanged { order, refund, .. } => {
            format!("order {order} changed by its renter, {} back", back(refund.as_ref()))
        }
        B::OrderShared { order, account, share } => {
            format!(
                "order {order} shared with {account}: {} until {}",
                share.services,
                moment(share.until_ms)
            )
        }
        B::OrderUnshared { order, account } => format!("order {order} is no longer shared with {account}"),
        _ => return None,
    })
}

fn members(quote: &ionet_domain::market::Quote) -> String {
    crate::commands::quote::sentence(&quote.request)
}

fn money(body: &B) -> Option<String> {
    Some(match body {
        B::Deposited { reference, transfer } => {
            let amount = transfer.credit.asset.show(transfer.amount);
            format!("{amount} arrived for {} ({reference})", transfer.credit)
        }
        B::Sent { transfer } => {
            let amount = transfer.credit.asset.show(transfer.amount);
            format!("{amount} sent from {} to {}", transfer.debit, transfer.credit)
        }
        B::LeaseMetered { receipt, charge, witness } => format!(
            "lease {} charged {} for {} in all (witness: {}{})",
            receipt.lease,
            usd(charge.charge_micro_usd),
            span(charge.elapsed_ms),
            witness_word(witness),
            if charge.held_until_ms.is_some() { ", held" } else { "" }
        ),
        B::ChargesProven { lease, count, .. } => {
            format!("{count} held charges of lease {lease} proven and posted")
        }
        B::ChargesVoided { lease, count, reason, .. } => {
            format!("{count} held charges of lease {lease} voided: {reason}")
        }
        B::PayoutOpened { payout, content } => {
            format!("payout {payout} of {} to {} under way", usd(content.transfer.amount), content.account)
        }
        B::PayoutPaid { payout, transfer, reference } => {
            format!("payout {payout} of {} arrived ({reference})", usd(transfer.amount))
        }
        B::PayoutAdopted { payout, transfers, reference, .. } => adopted(*payout, transfers, reference),
        _ => return None,
    })
}

/// A payout that the chain had made before with another amount.
fn adopted(payout: PayoutId, transfers: &[Transfer], reference: &str) -> String {
    let sum = |wanted: &dyn Fn(&Transfer) -> bool| {
        transfers.iter().filter(|transfer| wanted(transfer)).map(|transfer| transfer.amount).sum()
    };
    let paid = usd(sum(&|transfer| transfer.step == Step::Post));
    let asked = usd(sum(&|transfer| transfer.step == Step::VoidHeld));
    let lost = sum(&|transfer| transfer.debit.owner == Owner::Losses);
    let lost = if lost > 0 { format!("; {} of it is the network's loss", usd(lost)) } else { String::new() };
    format!(
        "payout {payout}: the chain had paid {paid} under this id before the books were put back and {asked} was on \
         its way; what it paid counts{lost} ({reference})"
    )
}

fn witness_word(witness: &ionet_domain::meter::Witness) -> String {
    match witness {
        ionet_domain::meter::Witness::Heartbeats => "the server's heartbeats".into(),
        ionet_domain::meter::Witness::Member(lease) => format!("member {}", lease.n),
        ionet_domain::meter::Witness::Nobody => "nobody, supplier-attested".into(),
    }
}

fn accounts(body: &B) -> String {
    match body {
        B::Founded { params } => format!("network '{}' founded", params.network),
        B::TermBegun { term } => format!("a server began term {term}"),
        B::KeyMade { account, key } => {
            format!("key {} made for {account}, cap {}", key.id, usd(key.cap_micro_usd))
        }
        B::CountryDeclared { account } => format!("{account} declared its country"),
        B::DenyListSet { entries } => format!("the operator's deny list has {entries} entries now"),
        B::KeyRevoked { key, .. } => format!("key {key} revoked"),
        B::FeedTaken { feed, .. } => {
            format!("{} prices elsewhere taken in from {} ({})", feed.points.len(), feed.signer, feed.source)
        }
        B::LoadsSet { loads } => {
            let each = loads.iter().map(|(class, ppm)| format!("{class} {}", decimal((*ppm).into(), 6)));
            format!("the load's part of prices set: {}", each.collect::<Vec<_>>().join(", "))
        }
        B::Active(activity) => {
            let kind = serde_json::to_value(activity.kind).unwrap_or(Value::Null);
            format!("{}: {}", activity.account, kind.as_str().unwrap_or_default().replace('_', " "))
        }
        other => other.name(),
    }
}
