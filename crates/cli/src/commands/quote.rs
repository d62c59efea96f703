//! What is asked for and what it costs.

use ionet_api::rest::SignedQuote;
use ionet_domain::device::Resources;
use ionet_domain::market::price::{DecidedBy, Pricing};
use ionet_domain::market::quote::ElsewhereCost;
use ionet_domain::market::{Destination, Egress, Hiding, Quote, Request, Upkeep};
use ionet_domain::money::{Asset, HOUR_MS, decimal};

use super::{course, explain};
use crate::args::{QuoteArgs, RequestArgs};
use crate::context::{Context, now_ms};
use crate::error::Result;
use crate::out::Out;
use crate::units::{bytes, cpus, span, usd};

/// The request that the words typed make.
pub(crate) fn request(args: &RequestArgs) -> Result<Request> {
    let request = Request {
        engine: args.engine.parse()?,
        members: args.members,
        per_member: Resources {
            cpu_millis: args.cpus,
            memory_bytes: args.memory,
            disk_bytes: args.disk,
            gpus: args.gpus,
            gpu_share_millis: None,
        },
        duration_ms: args.hours.map_or(args.duration_ms, |hours| hours * HOUR_MS),
        gpu_model: args.gpu_model.clone(),
        network: args.network.clone(),
        tags: args.tag.iter().cloned().collect(),
        tier: args.tier,
        spread: args.spread,
        egress: mode(args.egress, &args.allow_egress),
        hiding: Hiding {
            private: args.private,
            via_relay: args.via_relay || args.split_relays,
            split_relays: args.split_relays,
        },
        max_rate: args.max_price,
        upkeep: args.upkeep.applied(&Upkeep::default(), args.gpus),
        asset: Asset::Iosd,
    };
    request.check()?;
    Ok(request)
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
    out.line(network_rules(quote.request.egress, []));
    quote.request.hiding.explained().for_each(|line| out.line(line));
    out.lines(course::upkeep_lines(&quote.request.upkeep));
    out.table(&["MEMBER", "CLASS", "DEVICE", "RATE", "COMPUTE"], &[3, 4], rows(quote));
    quote.pricing.iter().for_each(|how| pricing(out, how));
    lines(out, quote);
    out.line(format!("at most    {}; what is not used comes back", usd(quote.total_micro_usd)));
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
        let (class, device) = (item.class.to_string(), item.device.to_string());
        vec![slot.to_string(), class, device, item.rate.to_string(), usd(item.compute_micro_usd)]
    };
    quote.items.iter().enumerate().map(row).collect()
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
