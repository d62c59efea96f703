//! How a cluster's members reach each other: one line for each pair.

use std::io::IsTerminal;
use std::time::Duration;

use ionet_api::rest::{ClusterNetwork, LinkView};
use ionet_api::worker::{Flow, PathKind, PeerLink};
use ionet_domain::OrderId;

use crate::context::Context;
use crate::error::Result;
use crate::out::Out;
use crate::units::{bytes, rate, span};

const REFRESH: Duration = Duration::from_secs(2);
/// Moves the cursor home and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// `ionet cluster network`
pub(crate) async fn show(context: &Context, cluster: OrderId, watch: bool) -> Result {
    let client = context.session().await?.client;
    let clears = watch && !context.out.json && std::io::stdout().is_terminal();
    loop {
        let network = client.cluster_network(cluster).await?;
        context.out.answer(&network, |out| {
            if clears {
                out.line(CLEAR);
            }
            people(out, &network);
        });
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(REFRESH).await;
    }
}

fn people(out: Out, network: &ClusterNetwork) {
    let members = network.members.iter().map(|member| format!("{} is {}", member.slot, member.ip));
    out.line(format!("{}: {}", network.cluster, members.collect::<Vec<_>>().join(", ")));
    let header =
        ["PAIR", "PATH", "VIA", "FOR", "RTT", "LOSS", "NOW ->", "NOW <-", "SENT", "RECEIVED", "DROPPED"];
    out.table(&header, &[3, 4, 5, 6, 7, 8, 9], rows(network));
    if network.members.len() > 1 && network.links.is_empty() {
        out.line("no member has said yet how it reaches the others; they do once their boxes are up");
    }
}

/// Each pair once, as its lower member sees it, or the other where that one said nothing.
fn rows(network: &ClusterNetwork) -> Vec<Vec<String>> {
    let view = |from: u32, to: u32| network.links.iter().find(|link| link.from == from && link.to == to);
    let mut slots: Vec<u32> = network.members.iter().map(|member| member.slot).collect();
    slots.sort_unstable();
    let pairs = slots
        .iter()
        .flat_map(|low| slots.iter().filter(move |high| *high > low).map(move |high| (*low, *high)));
    pairs
        .map(|(low, high)| match (view(low, high), view(high, low)) {
            (Some(own), other) => row(own, other, network.at_ms),
            (None, Some(other)) => row(other, None, network.at_ms),
            (None, None) => vec![format!("{low} - {high}"), "not told yet".into()],
        })
        .collect()
}

fn row(view: &LinkView, other: Option<&LinkView>, at_ms: u64) -> Vec<String> {
    let link = &view.link;
    let for_ms = link.path_for_ms.saturating_add(at_ms.saturating_sub(view.told_ms));
    vec![
        format!("{} - {}", view.from, view.to),
        path(link, other.map(|other| &other.link)),
        link.via.clone(),
        span(for_ms / 1000 * 1000),
        if link.path == PathKind::Down { "-".into() } else { milliseconds(link.rtt_us) },
        link.loss_ppm.map_or_else(|| "-".to_owned(), percent),
        rate(link.sent.bits_per_second),
        rate(link.received.bits_per_second),
        passed(&link.sent),
        passed(&link.received),
        dropped(link, other.map(|other| &other.link)),
    ]
}

/// The two sides may reach each other in different ways.
fn path(link: &PeerLink, other: Option<&PeerLink>) -> String {
    match other.filter(|other| other.path != link.path) {
        Some(other) => format!("{} / {}", link.path.name(), other.path.name()),
        None => link.path.name().to_owned(),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

fn percent(ppm: u32) -> String {
    format!("{}.{:02} %", ppm / 10_000, ppm % 10_000 / 100)
}

fn passed(flow: &Flow) -> String {
    match flow.packets {
        Some(packets) => format!("{} ({packets})", bytes(flow.bytes)),
        None => bytes(flow.bytes),
    }
}

/// What either side dropped, by reason.
fn dropped(link: &PeerLink, other: Option<&PeerLink>) -> String {
    let mut counts = link.dropped.clone();
    for (reason, count) in other.iter().flat_map(|other| &other.dropped) {
        *counts.entry(reason.clone()).or_default() += count;
    }
    let counts: Vec<_> = counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    if counts.is_empty() { "0".into() } else { counts.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ionet_api::rest::NetworkMember;
    use ionet_domain::LeaseId;

    use super::*;

    #[test]
    fn each_pair_has_one_line_and_both_sides_count() {
        let order = OrderId::from_bits(7);
        let member = |slot: u32| NetworkMember {
            slot,
            lease: LeaseId { order, n: slot },
            ip: format!("10.77.0.{}", slot + 1),
        };
        let flow =
            |bytes, bits| Flow { bytes, packets: Some(4), bits_per_second: bits, peak_bits_per_second: bits };
        let view = |from, to, path, reason: &str| LinkView {
            from,
            to,
            told_ms: 1_000,
            link: PeerLink {
                peer: to,
                path,
                via: "203.0.113.9:4000".into(),
                path_for_ms: 3_500,
                rtt_us: 1_234,
                loss_ppm: Some(12_345),
                sent: flow(2048, 1_000_000),
                received: flow(1024, 0),
                dropped: BTreeMap::from([(reason.to_owned(), 2)]),
            },
        };
        let network = ClusterNetwork {
            cluster: order,
            at_ms: 2_000,
            members: [1, 0, 2].map(member).into(),
            links: vec![
                view(0, 1, PathKind::Direct, "replay"),
                view(1, 0, PathKind::Relayed, "replay"),
                view(2, 0, PathKind::Down, "no_session"),
            ],
        };
        let rows = rows(&network).into_iter().map(|row| row.join("|")).collect::<Vec<_>>();
        assert_eq!(
            rows,
            [
                "0 - 1|direct / relayed|203.0.113.9:4000|4.0 s|1.23 ms|1.23 %|1.0 Mbit/s|0 bit/s|2 KiB (4)|1 KiB (4)|replay 4",
                "2 - 0|down|203.0.113.9:4000|4.0 s|-|1.23 %|1.0 Mbit/s|0 bit/s|2 KiB (4)|1 KiB (4)|no_session 2",
                "1 - 2|not told yet",
            ]
        );
    }
}
