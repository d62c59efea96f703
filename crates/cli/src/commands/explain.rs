//! Why: for a request that was refused, a cluster that waits, a device without work.

use ionet_api::rest::{ExplainedCluster, ExplainedDevice, SignedQuote};
use ionet_api::{Client, ClientError};
use ionet_domain::market::Request;
use ionet_domain::market::explain::{Change, Explanation};
use serde_json::json;

use crate::args::Explained;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::out::Out;
use crate::units::{moment, usd};

/// `ionet explain`
pub(crate) async fn explain(context: &Context, id: Explained) -> Result {
    let client = context.session().await?.client;
    match id {
        Explained::Cluster(cluster) => {
            let found = client.explain_cluster(cluster).await?;
            context.out.answer(&found, |out| show_cluster(out, &found));
        }
        Explained::Device(device) => {
            let found = client.explain_device(device).await?;
            context.out.answer(&found, |out| show_device(out, &found));
        }
    }
    Ok(())
}

/// The quote, or the refusal; with `--explain` the refusal says what would do, and carries it for programs.
pub(crate) async fn or_explain(
    client: &Client,
    request: &Request,
    wanted: bool,
    quoted: std::result::Result<SignedQuote, ClientError>,
) -> Result<SignedQuote> {
    let error = match quoted {
        Ok(signed) => return Ok(signed),
        Err(error) => error,
    };
    let helps = ["no_capacity", "over_price_cap", "over_total_cap"].contains(&error.code());
    let mut shown = CliError::from(error);
    if helps && wanted {
        let found = client.explain(request).await?.explanation;
        shown.message = format!("{}\n{}", shown.message, text(&found));
        shown.help = None;
        let refusal = shown.refusal.get_or_insert_with(|| json!({}));
        refusal["explanation"] = json!(found);
    } else if helps {
        shown = shown.help("--explain says what would do and at which price; 'ionet prices' what there is");
    }
    Err(shown)
}

/// The reasons as people read them.
fn text(found: &Explanation) -> String {
    let mut lines = Vec::new();
    if let Some(short) = &found.shortfall {
        lines.extend(
            short
                .removed
                .iter()
                .map(|removed| format!("  {:>6} removed by: {}", removed.devices, removed.constraint)),
        );
    }
    if !found.nearest.is_empty() {
        lines.push("nearest misses:".into());
    }
    for near in &found.nearest {
        lines.push(format!(
            "  {} ({}, from {}): {}",
            near.device,
            near.class,
            near.least_rate,
            near.misses.join("; ")
        ));
    }
    lines.push(if found.relaxations.is_empty() {
        "no single change and no two together would do now".to_owned()
    } else {
        "what would do now:".to_owned()
    });
    for relaxation in &found.relaxations {
        let changes: Vec<_> = relaxation.changes.iter().map(change).collect();
        let (rate, total) = (relaxation.rate, usd(relaxation.total_micro_usd));
        lines.push(format!("  {}: {rate}, {total} in all", changes.join(" and ")));
    }
    lines.join("\n")
}

fn change(change: &Change) -> String {
    let name = json!(change.condition).as_str().unwrap_or_default().replace('_', " ");
    format!("{name} {} instead of {}", change.to, change.from)
}

fn show_cluster(out: Out, found: &ExplainedCluster) {
    out.line(format!("{} is {}: {}", found.cluster, found.stage, found.says));
    match &found.explanation {
        Some(explanation) if explanation.fits => out.line("its request would be placed now: order it again"),
        Some(explanation) => {
            out.line(explanation.refused.clone().unwrap_or_default());
            out.line(text(explanation));
        }
        None => {}
    }
}

fn show_device(out: Out, found: &ExplainedDevice) {
    let known = &found.explanation;
    out.line(format!("{} ({}) holds {} leases", known.device, known.class, known.leases));
    match known.closed.as_slice() {
        [] => out.line("it could take work now"),
        why => out.line(format!("it can take no work now: {}", why.join("; "))),
    }
    let lowest = known.lowest_ask_per_unit.map_or_else(|| "-".into(), |rate| rate.to_string());
    let market = known.market_per_unit.map_or_else(|| "by asks alone".into(), |rate| rate.to_string());
    out.line(format!(
        "its ask {} for a unit; lowest of the free ones {lowest}; market {market}",
        known.ask_per_unit
    ));
    out.line(format!("{} free devices of its class, {} of them cheaper", known.rivals, known.cheaper));
    if let Some(hired) = known.hired_ppm {
        out.line(format!("{} % of its class is hired now", hired / 10_000));
    }
    let stars = known.served.stars_hundredths().map(|stars| {
        let fees = usd(known.served.rated_fees_micro_usd);
        format!("; renters give {}.{:02} of 5 stars, weighed by {fees} in fees", stars / 100, stars % 100)
    });
    let (kept, lost) = (known.served.kept, known.served.lost);
    out.line(format!("leases kept {kept}, lost {lost}{}", stars.unwrap_or_default()));
    let rows = known.orders.iter().map(|order| {
        let what = match (order.got, order.waiting) {
            (true, _) => "got it",
            (false, true) => "waits",
            (false, false) => "missed",
        };
        vec![moment(order.at_ms), order.order.to_string(), what.to_owned(), order.why.join("; ")]
    });
    out.table(&["WHEN", "CLUSTER", "", "WHY, AS THE DEVICE IS NOW"], &[], rows.collect());
    for advice in &known.advice {
        out.line(format!("- {advice}"));
    }
}
