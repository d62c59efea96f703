//! When the machine's links are measured, and asking the relays to do it.
//!
//! Always holds: measuring never competes with leases that use the machine or its network; machines that start at once
//! do not measure at once; bandwidth is measured with the two nearest relays only, the round trip with all. When is
//! pure ([`Measuring`]) and runs in the lab too. Not here: who believes the figures (`ionet-server`).

use std::collections::BTreeMap;
use std::time::Duration;

use ionet_api::worker::{PeerLink, SignedLink};
use ionet_domain::{DeviceId, LeaseId};
use ionet_net::{Node, RelayInfo, measure};

/// After joining, at the earliest and spread over so much more.
const FIRST_AFTER_MS: u64 = 3_000;
const FIRST_SPREAD_MS: u64 = 7_000;
/// Between two measurements, spread alike.
const EVERY_MS: u64 = 6 * 3_600_000;
const EVERY_SPREAD_MS: u64 = 2 * 3_600_000;
/// After one that did not work out.
const AGAIN_AFTER_MS: u64 = 10 * 60_000;
/// When leases need the machine, it is asked again so much later.
const BUSY_WAIT_MS: u64 = 60_000;
/// Leases that use more than this are not disturbed.
const BUSY_CPU_PERCENT: u8 = 70;
const BUSY_BITS_PER_SECOND: u64 = 20_000_000;
/// How long each direction is measured, and with how many relays.
const EACH: Duration = Duration::from_secs(2);
const WITH_RELAYS: usize = 2;

/// Decides when to measure.
#[derive(Debug)]
pub struct Measuring {
    due_ms: Option<u64>,
    under_way: bool,
    spread: u64,
    rounds: u64,
    cpu_percent: u8,
    rates: BTreeMap<LeaseId, u64>,
}

impl Measuring {
    /// Nothing measured yet; the device's id spreads machines over time.
    pub fn new(device: DeviceId) -> Self {
        let spread = u64::try_from(device.bits() % 1_000_003).unwrap_or(0);
        Self { due_ms: None, under_way: false, spread, rounds: 0, cpu_percent: 0, rates: BTreeMap::new() }
    }

    pub(crate) fn link_up(&mut self, now_ms: u64) {
        self.due_ms.get_or_insert(now_ms + FIRST_AFTER_MS + self.spread % FIRST_SPREAD_MS);
    }

    pub(crate) fn take_cpu(&mut self, percent: u8) {
        self.cpu_percent = percent;
    }

    pub(crate) fn take_links(&mut self, lease: LeaseId, links: &[PeerLink]) {
        let rate = |link: &PeerLink| link.sent.bits_per_second.saturating_add(link.received.bits_per_second);
        self.rates.insert(lease, links.iter().map(rate).fold(0, u64::saturating_add));
    }

    /// Whether to measure now; then it is under way until [`Measuring::done`]. `live` tells leases that run.
    pub(crate) fn is_due(&mut self, now_ms: u64, live: impl Fn(&LeaseId) -> bool) -> bool {
        if self.under_way || self.due_ms.is_none_or(|due_ms| now_ms < due_ms) {
            return false;
        }
        self.rates.retain(|lease, _| live(lease));
        let rate = self.rates.values().fold(0, |sum: u64, rate| sum.saturating_add(*rate));
        let busy =
            rate > BUSY_BITS_PER_SECOND || (!self.rates.is_empty() && self.cpu_percent > BUSY_CPU_PERCENT);
        if busy {
            self.due_ms = Some(now_ms + BUSY_WAIT_MS);
            return false;
        }
        self.under_way = true;
        true
    }

    pub(crate) fn done(&mut self, now_ms: u64, worked: bool) {
        self.under_way = false;
        self.rounds += 1;
        let spread = (self.spread.wrapping_mul(self.rounds + 1) * 7_919) % EVERY_SPREAD_MS;
        self.due_ms = Some(now_ms + if worked { EVERY_MS + spread } else { AGAIN_AFTER_MS + spread / 10 });
    }
}

/// Has every relay that measures tell the round trip, and the nearest ones the bandwidth. What a relay would not or could
/// not tell is missing.
pub(crate) async fn measure(node: &Node, relays: &[RelayInfo]) -> Vec<SignedLink> {
    let mut near = Vec::new();
    for at in relays.iter().filter_map(|relay| relay.measure.as_ref()) {
        if let Some(signed) = ask(node, at, Duration::ZERO).await {
            near.push((signed.measured.rtt_us, at, signed));
        }
    }
    near.sort_by_key(|(rtt_us, at, _)| (*rtt_us, at.id));
    let mut found = Vec::new();
    for (n, (_, at, signed)) in near.into_iter().enumerate() {
        let with_bandwidth = if n < WITH_RELAYS { ask(node, at, EACH).await } else { None };
        found.push(with_bandwidth.unwrap_or(signed));
    }
    found
}

async fn ask(node: &Node, at: &ionet_net::NodeAddr, each: Duration) -> Option<SignedLink> {
    match measure::measure(node, at, each).await {
        Ok(attested) => serde_json::from_slice(&attested).ok(),
        Err(error) => {
            tracing::info!(relay = %at.id, %error, "a relay did not measure the link");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use ionet_api::worker::{Flow, PathKind};
    use ionet_domain::OrderId;

    use super::*;

    #[test]
    fn measuring_begins_soon_comes_rarely_and_yields_to_leases() {
        let lease = LeaseId { order: OrderId::from_bits(1), n: 0 };
        let mut measuring = Measuring::new(DeviceId::from_bits(77));
        let live = |_: &LeaseId| true;
        assert!(!measuring.is_due(100_000, live), "not linked yet");
        measuring.link_up(0);
        assert!(!measuring.is_due(FIRST_AFTER_MS - 1, live));
        let flow = |bits_per_second| Flow { bits_per_second, ..Flow::default() };
        let link = |bits| PeerLink {
            peer: 1,
            path: PathKind::Direct,
            via: String::new(),
            path_for_ms: 0,
            rtt_us: 0,
            loss_ppm: None,
            sent: flow(bits),
            received: flow(0),
            dropped: BTreeMap::new(),
        };
        measuring.take_links(lease, &[link(1_000_000_000)]);
        assert!(!measuring.is_due(10_000, live), "the network is in use");
        measuring.take_links(lease, &[link(0)]);
        measuring.take_cpu(99);
        assert!(!measuring.is_due(10_000 + BUSY_WAIT_MS, live), "the machine is in use");
        measuring.take_cpu(1);
        assert!(!measuring.is_due(10_001 + BUSY_WAIT_MS, live), "it waits");
        assert!(measuring.is_due(10_000 + 2 * BUSY_WAIT_MS, live));
        assert!(!measuring.is_due(10_000_000, live), "one at a time");
        measuring.done(200_000, false);
        assert!(measuring.is_due(200_000 + AGAIN_AFTER_MS + EVERY_SPREAD_MS / 10, live));
        measuring.done(1_000_000, true);
        assert!(!measuring.is_due(1_000_000 + EVERY_MS - 1, live));
        measuring.take_cpu(99);
        assert!(measuring.is_due(1_000_000 + EVERY_MS + EVERY_SPREAD_MS, |_| false), "no lease is there");
    }
}
