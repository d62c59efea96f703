//! From what the overlay counts to what is told of each link: rates, peaks, and for how long a path has been the same.
//!
//! Always holds: time is an argument; more peers are told of less often, so that a large cluster's words stay few. Not
//! here: who is told (`supervisor`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ionet_api::worker::{Flow, PathKind, PeerLink};
use ionet_net::overlay::{PeerPath, PeerStats};

/// The shortest time that a rate is taken over.
const LEAST_MS: u64 = 800;
/// How often links are told of: at least this far apart, and so much longer for each peer.
const TELL_EVERY_MS: u64 = 2_000;
const TELL_EVERY_MS_PER_PEER: u64 = 100;

/// Watches the links of one member.
#[derive(Debug, Default)]
pub(crate) struct LinkWatch {
    seen: BTreeMap<u32, Seen>,
    looked_ms: Option<u64>,
    told_ms: Option<u64>,
}

#[derive(Debug)]
struct Seen {
    link: PeerLink,
    path_since_ms: u64,
}

impl LinkWatch {
    /// Takes note of how the links are at `now_ms`; what is to be told, when it is time: at once when a path changed,
    /// otherwise every few seconds. `members` are the others' lease numbers by address.
    pub(crate) fn look(
        &mut self,
        now_ms: u64,
        stats: &[PeerStats],
        members: &BTreeMap<Ipv4Addr, u32>,
    ) -> Option<Vec<PeerLink>> {
        let passed_ms = self.looked_ms.map(|looked_ms| now_ms.saturating_sub(looked_ms));
        if passed_ms.is_some_and(|passed_ms| passed_ms < LEAST_MS) {
            return None;
        }
        self.looked_ms = Some(now_ms);
        let before = std::mem::take(&mut self.seen);
        let mut changed = false;
        for peer in stats {
            let Some(n) = members.get(&peer.ip) else { continue };
            let seen = Seen::of(*n, peer, before.get(n), (now_ms, passed_ms.unwrap_or(0)));
            changed |= seen.path_since_ms == now_ms;
            self.seen.insert(*n, seen);
        }
        let wait_ms = TELL_EVERY_MS + TELL_EVERY_MS_PER_PEER * self.seen.len() as u64;
        let due = self.told_ms.is_none_or(|told_ms| now_ms.saturating_sub(told_ms) >= wait_ms);
        let soon = changed && self.seen.len() <= 16;
        if self.seen.is_empty() || !(due || soon) {
            return None;
        }
        self.told_ms = Some(now_ms);
        Some(self.seen.values().map(|seen| seen.link.clone()).collect())
    }
}

impl Seen {
    fn of(n: u32, peer: &PeerStats, before: Option<&Self>, (now_ms, passed_ms): (u64, u64)) -> Self {
        let (path, via) = describe(&peer.path);
        let same = before.filter(|before| (before.link.path, &before.link.via) == (path, &via));
        let path_since_ms = same.map_or(now_ms, |before| before.path_since_ms);
        let last = before.map(|before| (&before.link.sent, &before.link.received)).unzip();
        let link = PeerLink {
            peer: n,
            path,
            via,
            path_for_ms: now_ms - path_since_ms,
            rtt_us: peer.rtt_us,
            loss_ppm: peer.loss_ppm,
            sent: flow(last.0, (peer.sent_bytes, peer.sent_packets), passed_ms),
            received: flow(last.1, (peer.received_bytes, peer.received_packets), passed_ms),
            dropped: peer.dropped.clone(),
        };
        Self { link, path_since_ms }
    }
}

fn flow(last: Option<&Flow>, (bytes, packets): (u64, Option<u64>), passed_ms: u64) -> Flow {
    let passed = last.map_or(0, |last| bytes.saturating_sub(last.bytes));
    let bits_per_second = passed.saturating_mul(8_000).checked_div(passed_ms).unwrap_or(0);
    let peak = last.map_or(0, |last| last.peak_bits_per_second);
    Flow { bytes, packets, bits_per_second, peak_bits_per_second: peak.max(bits_per_second) }
}

fn describe(path: &PeerPath) -> (PathKind, String) {
    match path {
        PeerPath::Direct(at) => (PathKind::Direct, at.to_string()),
        PeerPath::Relayed(relay) => (PathKind::Relayed, relay.clone()),
        PeerPath::Tcp(relay) => (PathKind::Tcp, relay.clone()),
        PeerPath::Introducer => (PathKind::Introducer, String::new()),
        PeerPath::Down => (PathKind::Down, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(path: PeerPath, sent_bytes: u64, received_bytes: u64) -> PeerStats {
        PeerStats {
            endpoint: ionet_net::EndpointId([1; 32]),
            ip: Ipv4Addr::new(10, 77, 0, 2),
            path,
            rtt_us: 900,
            loss_ppm: Some(10),
            sent_bytes,
            received_bytes,
            sent_packets: Some(sent_bytes / 1000),
            received_packets: None,
            dropped: BTreeMap::from([("no_session".to_owned(), 3)]),
        }
    }

    #[test]
    fn rates_peaks_and_the_age_of_a_path_are_told_now_and_then() {
        let members = BTreeMap::from([(Ipv4Addr::new(10, 77, 0, 2), 7)]);
        let relayed = || PeerPath::Relayed("https://relay".into());
        let direct = || PeerPath::Direct("10.0.0.9:5".parse().unwrap());
        let mut watch = LinkWatch::default();
        assert_eq!(watch.look(0, &[], &members), None, "nobody is there");
        let first = watch.look(1_000, &[stats(relayed(), 5_000_000, 0)], &members).unwrap();
        assert_eq!(
            (first[0].peer, first[0].path, first[0].via.as_str()),
            (7, PathKind::Relayed, "https://relay")
        );
        assert_eq!(first[0].sent.bits_per_second, 0, "what passed before the first look is of no known time");
        assert_eq!(
            watch.look(1_100, &[stats(relayed(), 6_000_000, 0)], &members),
            None,
            "too soon for a rate"
        );
        assert_eq!(watch.look(2_000, &[stats(relayed(), 7_000_000, 1_000)], &members), None, "not due");
        let second = watch.look(3_100, &[stats(relayed(), 7_000_000, 1_000)], &members).unwrap().remove(0);
        assert_eq!((second.sent.bits_per_second, second.sent.peak_bits_per_second), (0, 16_000_000));
        assert_eq!((second.received.bytes, second.received.peak_bits_per_second), (1_000, 8_000));
        assert_eq!((second.path_for_ms, second.dropped["no_session"]), (2_100, 3));
        let third = watch.look(4_100, &[stats(direct(), 7_125_000, 1_000)], &members).unwrap().remove(0);
        assert_eq!(
            (third.path, third.path_for_ms, third.sent.bits_per_second),
            (PathKind::Direct, 0, 1_000_000)
        );
        assert_eq!(watch.look(5_000, &[stats(direct(), 0, 0)], &BTreeMap::new()), None, "members no more");
    }
}
