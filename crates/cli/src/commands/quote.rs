//! What is asked for and what it costs.

use ionet_api::rest::SignedQuote;
use ionet_domain::device::Resources;
use ionet_domain::market::price::{DecidedBy, Pricing};
use ionet_domain::market::quote::ElsewhereCost;
use ionet_domain::market::{Buy, Destination, Egress, Hiding, Priority, Quote, Request, Upkeep, Wants};
use ionet_domain::money::{Asset, HOUR_MS, decimal};

use super::{course, explain};
use crate::args::{QuoteArgs, RequestArgs};
use crate::context::{Context, now_ms};
use crate::error::Result;
use crate::out::Out;
use crate::units::{bytes, cpus, moment, span, usd};

/// The most members that a cluster can have.
const MOST_MEMBERS: u32 = 256;

/// The request that the words typed make.
pub(crate) fn request(args: &RequestArgs) -> Result<Request> {
    let request = Request {
        engine: args.engine.parse()?,
        members: if args.mega { MOST_MEMBERS } else { args.members },
        per_member: Resources {
            cpu_millis: args.cpus,
            memory_bytes: args.memory,
            disk_bytes: args.disk,
            gpus: args.gpus,
            gpu_share_millis: None,
        },
        duration_ms: args.hours.map_or(args.duration_ms, |hours| hours * HOUR_MS),
        egress: mode(args.egress, &args.allow_egress),
        hiding: Hiding {
            private: args.private,
            via_relay: args.via_relay || args.split_relays,
            split_relays: args.split_relays,
        },
        max_rate: args.max_price.or(args.bid),
        priority: args.priority,
        buy: buy(args),
        mega: args.mega,
        simulated: args.simulated,
        upkeep: args.upkeep.applied(&Upkeep::default(), args.gpus),
        asset: Asset::Iosd,
        kind: args.kind,
        max_total_micro_usd: args.max_total.or(args.budget),
        open_ended: args.budget.is_some(),
        ..Request::default()
    };
    let request = args.wants.applied(&Wants::default(), &[]).of(&request);
    request.check()?;
    Ok(request)
}

/// How it is bought, by the words typed.
fn buy(args: &RequestArgs) -> Buy {
    let expires_ms = args.wait_ms.map(|wait_ms| now_ms().saturating_add(wait_ms));
    match expires_ms {
        _ if args.spot => Buy::Spot { notice_ms: args.notice_ms, expires_ms },
        Some(expires_ms) => Buy::Standing { expires_ms },
        None => match (args.starts_ms, args.deadline_ms) {
            (Some(starts_ms), _) => Buy::Reserved { starts_ms },
            (None, Some(deadline_ms)) => Buy::Flexible { deadline_ms },
            (None, None) => Buy::default(),
        },
    }
}

/// The mode that a switch and a list make.
pub(crate) fn mode(switch: Option<bool>, allow: &[Destination]) -> Egress {
    match switch {
        Some(false) => Egress::Off,
        _ if !allow.is_empty() => Egress::Listed,
        _ => Egress::On,
    }
}

/// What the boxes may reach, in one line.
pub(crate) fn network_rules<'a>(egress: Egress, allow: impl IntoIterator<Item = &'a Destination>) -> String {
    let listed: Vec<_> = allow.into_iter().map(ToString::to_string).collect();
    match (egress, listed.as_slice()) {
        (Egress::On | Egress::Off, _) => format!("network rules: members only + egress {egress}"),
        (Egress::Listed, []) => "network rules: members only + egress to what the order lists".to_owned(),
        (Egress::Listed, listed) => format!("network rules: members only + egress to {}", listed.join(", ")),
    }
}

/// `ionet quote`
pub(crate) async fn quote(context: &Context, args: &QuoteArgs) -> Result {
    let request = request(&args.request)?;
    let client = context.session().await?.client;
    let signed = explain::or_explain(&client, &request, args.explain, client.quote(&request).await).await?;
    context.out.answer(&signed, |out| show(out, &signed));
    Ok(())
}

/// The itemised price as people read it.
pub(crate) fn show(out: Out, signed: &SignedQuote) {
    let quote = &signed.quote;
    out.line(sentence(&quote.request));
    out.line(wishes(&quote.request));
    if let Some(line) = way(&quote.request) {
        out.line(line);
    }
    if let Some(budget) = quote.request.max_total_micro_usd.filter(|_| quote.request.open_ended) {
        out.line(format!(
            "open-ended: {} is how long {} lasts",
            span(quote.request.duration_ms),
            usd(budget)
        ));
    }
    if quote.request.simulated {
        out.line("SIMULATED: these devices are for show; this quote cannot be ordered");
    }
    out.line(network_rules(quote.request.egress, []));
    quote.request.hiding.explained().for_each(|line| out.line(line));
    out.lines(course::upkeep_lines(&quote.request.upkeep));
    out.table(&["MEMBER", "CLASS", "DEVICE", "RATE", "COMPUTE"], &[3, 4], rows(quote));
    quote.pricing.iter().for_each(|how| pricing(out, how));
    lines(out, quote);
    out.line(format!("at most    {}; what is not used comes back", usd(quote.total_micro_usd)));
    let outlook = quote.outlook.as_deref().copied().unwrap_or_default();
    if let Some(rate) = outlook.now_rate {
        out.line(format!("now        {rate} if it were placed at this moment"));
    }
    if let Some(room_ms) = outlook.room_in_ms {
        out.line(format!(
            "begins     when spot orders have made room, after their notice of {}",
            span(room_ms)
        ));
    }
    let left_ms = quote.expires_ms.saturating_sub(now_ms());
    out.line(format!("good for   {}; it reserves no capacity", span(left_ms)));
    if let Some(elsewhere) = &quote.elsewhere {
        out.line(elsewhere_line(elsewhere));
    }
}

/// How a rate came about, in a few lines.
fn pricing(out: Out, how: &Pricing) {
    let Some((reference, source)) = &how.reference else {
        let floor = how.floor_per_unit.map(|floor| format!(", floor of other use {floor}"));
        let ask = how.ask_per_unit;
        return out.line(format!(
            "rate       {} by the ask: {ask} for a unit{}",
            how.rate,
            floor.unwrap_or_default()
        ));
    };
    let decided = match how.decided_by {
        DecidedBy::Ask => "the ask",
        DecidedBy::Floor => "the supplier's other use",
        DecidedBy::Market => "the market",
    };
    out.line(format!("rate       {} by {decided}; ask {} for a unit", how.rate, how.ask_per_unit));
    out.line(format!("  reference      {reference}  {source}"));
    for factor in &how.factors {
        let times = decimal(factor.ppm.into(), 6);
        out.line(format!("  {:<14} x {times:<8} {}", factor.name, factor.because));
    }
    if let Some(market) = how.market_per_unit {
        out.line(format!("  market         {market} for a unit"));
    }
    if let Some(floor) = how.floor_per_unit {
        out.line(format!("  other use      {floor} for a unit, at least"));
    }
}

/// The total in its parts; what is nothing and has no story is left out.
fn lines(out: Out, quote: &Quote) {
    let Some(lines) = &quote.lines else {
        out.line(format!("compute    {}", usd(quote.compute_micro_usd)));
        return out.line(format!(
            "fee        {} ({} basis points)",
            usd(quote.fee_micro_usd),
            quote.renter_fee.0
        ));
    };
    out.line(format!("compute    {}", usd(lines.compute_micro_usd)));
    if lines.disk_micro_usd > 0 {
        out.line(format!(
            "disk       {}; paused disk {}",
            usd(lines.disk_micro_usd),
            usd(lines.paused_disk_micro_usd)
        ));
    } else {
        out.line("disk       included");
    }
    out.line(format!("traffic    {}; it is counted and free", usd(lines.traffic_micro_usd)));
    if lines.discount_micro_usd > 0 {
        out.line(format!("discount  -{} for time and count", usd(lines.discount_micro_usd)));
    }
    out.line(format!("fee        {} ({} basis points)", usd(lines.fee_micro_usd), quote.renter_fee.0));
    out.line(format!(
        "tax        {}; none is collected, what is due is yours to declare",
        usd(lines.tax_micro_usd)
    ));
}

fn elsewhere_line(elsewhere: &ElsewhereCost) -> String {
    let prices = if elsewhere.prices == 1 { "one price" } else { "the median of dated prices" };
    format!(
        "elsewhere  {} for the same GPUs and time at {} each ({prices}, {}, {})",
        usd(elsewhere.micro_usd),
        elsewhere.median_per_gpu,
        elsewhere.date,
        elsewhere.source
    )
}

fn rows(quote: &Quote) -> Vec<Vec<String>> {
    let row = |(slot, item): (usize, &ionet_domain::market::QuoteItem)| {
        let class = item.class.as_ref().map_or_else(|| "any that fits".to_owned(), ToString::to_string);
        let device = item.device.map_or_else(|| "-".to_owned(), |device| device.to_string());
        vec![slot.to_string(), class, device, item.rate.to_string(), usd(item.compute_micro_usd)]
    };
    quote.items.iter().enumerate().map(row).collect()
}

/// What was wished for beside size and time, as it was completed.
fn wishes(request: &Request) -> String {
    let list = |texts: Vec<String>| (!texts.is_empty()).then(|| texts.join(", "));
    let texts = |these: &std::collections::BTreeSet<String>| list(these.iter().cloned().collect());
    let accounts = |these: &std::collections::BTreeSet<ionet_domain::Address>| {
        list(these.iter().map(ToString::to_string).collect())
    };
    let parts = [
        ("prefer", request.prefer.map(|prefer| prefer.to_string())),
        ("isolation", request.isolation.map(|isolation| isolation.to_string())),
        ("per device", request.max_per_device.map(|most| most.to_string())),
        ("GPU at least", (!request.gpu_min.is_none()).then(|| request.gpu_min.to_string())),
        ("CPU", request.cpu_model.clone()),
        ("network", request.network.clone()),
        ("tier", request.tier.map(|tier| tier.to_string())),
        ("regions", texts(&request.regions)),
        ("not in", texts(&request.not_regions)),
        ("near", request.near.clone()),
        ("reliability at least", request.min_reliability_percent.map(|percent| format!("{percent} %"))),
        ("suppliers", accounts(&request.suppliers)),
        ("not of", accounts(&request.not_suppliers)),
    ];
    let said = parts.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
    format!("{} work: {}", request.kind, said.collect::<Vec<_>>().join("; "))
}

/// How it is bought and how urgent it is, where that is not the usual.
pub(crate) fn way(request: &Request) -> Option<String> {
    let urgency =
        (request.priority != Priority::Normal).then(|| format!("priority {}", request.priority.name()));
    let way = match request.buy {
        Buy::OnDemand {} => None,
        Buy::Standing { expires_ms } => Some(format!(
            "standing order: waits for its price and hardware until {}; rates are the most that it may cost",
            moment(expires_ms)
        )),
        Buy::Reserved { starts_ms } => {
            Some(format!("reserved from {}: its devices are kept once it is ordered", moment(starts_ms)))
        }
        Buy::Flexible { deadline_ms } => Some(format!(
            "flexible: done by {}, in the hours least in demand; rates are the most that it may cost",
            moment(deadline_ms)
        )),
        Buy::Spot { notice_ms, expires_ms } => {
            let waits = expires_ms.map(|at_ms| format!("; waits until {}", moment(at_ms)));
            Some(format!(
                "spot: the market's rate each hour, at most the bid; may be ended with {} of notice{}",
                span(notice_ms),
                waits.unwrap_or_default()
            ))
        }
    };
    let all = request.mega.then(|| {
        format!("all that matched: {} members, of at most {MOST_MEMBERS} of a cluster", request.members)
    });
    let way = way.or(all);
    let parts: Vec<_> = way.into_iter().chain(urgency).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The request in one line.
pub(crate) fn sentence(request: &Request) -> String {
    let each = request.per_member;
    let gpus = match each.gpus {
        0 => String::new(),
        n => format!(", {n} x {}", request.gpu_model.as_deref().unwrap_or("GPU")),
    };
    let members = if request.members == 1 { "member" } else { "members" };
    format!(
        "{} {members} ({} CPU, {} memory, {} disk{gpus}) with {} for {}",
        request.members,
        cpus(each.cpu_millis),
        bytes(each.memory_bytes),
        bytes(each.disk_bytes),
        request.engine,
        span(request.duration_ms)
    )
}
