//! How members of clusters last saw their links to each other. In memory only, by the members' own word.
//!
//! Always holds: what one device can make the server keep is bounded; counters of the totals never go back. Not here:
//! who may see it (`http`).

use std::collections::BTreeMap;

use ionet_api::worker::{PathKind, PeerLink};
use ionet_domain::{LeaseId, OrderId};

/// Links that were not told of for this long are counted in no metric.
pub(crate) const STALE_MS: u64 = 90_000;
/// Members of the largest cluster, and what is kept of each link's texts.
const MAX_LINKS: usize = 256;
const MAX_VIA_CHARS: usize = 200;
const MAX_REASONS: usize = 24;
const MAX_REASON_CHARS: usize = 32;
/// Reasons for drops that are told apart in the totals.
const MAX_TOTALS: usize = 48;

/// What a member last said of its links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinksNow {
    /// When.
    pub told_ms: u64,
    /// One for each other member.
    pub links: Vec<PeerLink>,
}

/// What all members of all clusters said.
#[derive(Debug, Clone, Default)]
pub struct Links {
    members: BTreeMap<LeaseId, LinksNow>,
    sent_bytes: u64,
    dropped: BTreeMap<String, u64>,
}

impl Links {
    /// What a member last said.
    pub fn of(&self, lease: LeaseId) -> Option<&LinksNow> {
        self.members.get(&lease)
    }

    /// Pairs by path, each counted once in each direction, of those that were told of lately.
    pub(crate) fn pairs(&self, now_ms: u64) -> BTreeMap<PathKind, u64> {
        let mut pairs: BTreeMap<_, _> = PathKind::ALL.into_iter().map(|kind| (kind, 0)).collect();
        let fresh = self.members.values().filter(|now| now.told_ms.saturating_add(STALE_MS) >= now_ms);
        for link in fresh.flat_map(|now| &now.links) {
            *pairs.entry(link.path).or_default() += 1;
        }
        pairs
    }

    /// Bytes that members sent to each other since this server started.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Packets dropped since this server started, by reason.
    pub(crate) fn dropped(&self) -> &BTreeMap<String, u64> {
        &self.dropped
    }

    /// A member said how its links are; the caller has checked that it may speak for the lease.
    pub(crate) fn take(&mut self, lease: LeaseId, mut links: Vec<PeerLink>, now_ms: u64) {
        links.truncate(MAX_LINKS);
        links.iter_mut().for_each(trim);
        let before = self.members.remove(&lease);
        for link in &links {
            let known = before.iter().flat_map(|now| &now.links).find(|known| known.peer == link.peer);
            self.add(link, known);
        }
        self.members.insert(lease, LinksNow { told_ms: now_ms, links });
    }

    fn add(&mut self, link: &PeerLink, before: Option<&PeerLink>) {
        let sent = link.sent.bytes.saturating_sub(before.map_or(0, |before| before.sent.bytes));
        self.sent_bytes = self.sent_bytes.saturating_add(sent);
        for (reason, count) in &link.dropped {
            let known = before.and_then(|before| before.dropped.get(reason)).copied().unwrap_or(0);
            let room = self.dropped.len() < MAX_TOTALS || self.dropped.contains_key(reason);
            let total = self.dropped.entry(if room { reason } else { "other" }.to_owned()).or_default();
            *total = total.saturating_add(count.saturating_sub(known));
        }
    }

    /// Forgets what is not of these orders.
    pub(crate) fn retain(&mut self, live: impl Fn(OrderId) -> bool) {
        self.members.retain(|lease, _| live(lease.order));
    }
}

fn trim(link: &mut PeerLink) {
    link.via = link.via.chars().filter(|c| !c.is_control()).take(MAX_VIA_CHARS).collect();
    let word = |reason: &str| {
        reason.len() <= MAX_REASON_CHARS && reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let dropped = std::mem::take(&mut link.dropped);
    link.dropped = dropped.into_iter().filter(|(reason, _)| word(reason)).take(MAX_REASONS).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(peer: u32, bytes: u64, dropped: &[(&str, u64)]) -> PeerLink {
        PeerLink {
            peer,
            path: PathKind::Direct,
            via: "x".repeat(1000),
            path_for_ms: 0,
            rtt_us: 1,
            loss_ppm: None,
            sent: ionet_api::worker::Flow { bytes, ..Default::default() },
            received: ionet_api::worker::Flow::default(),
            dropped: dropped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
        }
    }

    #[test]
    fn totals_grow_by_what_is_new_and_words_stay_bounded() {
        let lease = LeaseId { order: OrderId::from_bits(1), n: 0 };
        let mut links = Links::default();
        links.take(lease, vec![link(1, 100, &[("too_large", 2), ("No Word\n", 9)])], 1_000);
        links.take(lease, vec![link(1, 150, &[("too_large", 5)]), link(2, 10, &[])], 2_000);
        // A counter that went back was started anew.
        links.take(lease, vec![link(1, 0, &[])], 3_000);
        assert_eq!((links.sent_bytes(), links.dropped().len(), links.dropped()["too_large"]), (160, 1, 5));
        let now = links.of(lease).unwrap();
        assert_eq!((now.told_ms, now.links.len(), now.links[0].via.len()), (3_000, 1, MAX_VIA_CHARS));
        assert_eq!(links.pairs(3_000)[&PathKind::Direct], 1);
        assert_eq!(links.pairs(3_001 + STALE_MS)[&PathKind::Direct], 0);
        for n in 0..100_u8 {
            let reason = String::from_utf8(vec![b'a' + n / 26, b'a' + n % 26]).unwrap();
            links.take(lease, vec![link(1, 0, &[(&reason, 1)])], 4_000);
        }
        assert!(links.dropped().len() <= MAX_TOTALS + 1 && links.dropped()["other"] > 0);
        links.take(lease, (0..1000).map(|n| link(n, 0, &[])).collect(), 5_000);
        assert_eq!(links.of(lease).unwrap().links.len(), MAX_LINKS);
        links.retain(|_| false);
        assert_eq!(links.of(lease), None);
    }
}
