//! One answer to "may the box talk to this": the guard first, then the lease's rules.
//!
//! Pure; time is an argument. Always holds: an address counts under a name only for as long as the name's answer lives
//! (a minute at least, for programs resolve first and connect later); the table of names is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ionet_domain::market::egress::Net;
use ionet_domain::market::{Destination, Egress};

use crate::guard::Guard;

/// What the lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The mode.
    pub egress: Egress,
    /// With [`Egress::Listed`], what may be reached.
    pub allow: BTreeSet<Destination>,
}

/// Most answered addresses that are remembered; the one that ends first makes room.
const MAX_NAMES: usize = 4096;
const LEAST_LIFE_MS: u64 = 60_000;
const MOST_LIFE_MS: u64 = 24 * 3_600_000;

/// Guard, rules and what names stand for at present.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) guard: Guard,
    pub(crate) rules: Rules,
    /// Until when an address counts as this name's.
    names: BTreeMap<(IpAddr, String), u64>,
}

impl Policy {
    pub(crate) fn new(rules: Rules, open: Vec<Net>) -> Self {
        Self { guard: Guard { near: Vec::new(), open }, rules, names: BTreeMap::new() }
    }

    /// Whether there may be a connection to what has these names, or had them when it was opened.
    pub(crate) fn admits_as(&self, to: SocketAddr, names: &[String]) -> bool {
        if self.guard.blocks(to.ip(), to.port()) {
            return false;
        }
        let listed = |entry: &Destination| {
            entry.covers(to.ip(), to.port())
                || (entry.has_port(to.port()) && names.iter().any(|name| entry.names(name)))
        };
        match self.rules.egress {
            Egress::On => true,
            Egress::Off => false,
            Egress::Listed => self.rules.allow.iter().any(listed),
        }
    }

    /// Whether the name may be asked for.
    pub(crate) fn admits_name(&self, name: &str) -> bool {
        match self.rules.egress {
            Egress::On => true,
            Egress::Off => false,
            Egress::Listed => self.rules.allow.iter().any(|entry| entry.names(name)),
        }
    }

    /// The names that an address has now.
    pub(crate) fn names_of(&self, address: IpAddr, now_ms: u64) -> Vec<String> {
        let from = (address, String::new());
        let of_it = self.names.range(from..).take_while(|((ip, _), _)| *ip == address);
        of_it.filter(|(_, until)| **until > now_ms).map(|((_, name), _)| name.clone()).collect()
    }

    /// A name was answered.
    pub(crate) fn learn(&mut self, name: &str, answers: &[(IpAddr, u32)], now_ms: u64) {
        for (address, ttl) in answers {
            let life_ms = (u64::from(*ttl) * 1000).clamp(LEAST_LIFE_MS, MOST_LIFE_MS);
            let until = self.names.entry((*address, name.to_owned())).or_insert(0);
            *until = (*until).max(now_ms + life_ms);
        }
        if self.names.len() > MAX_NAMES {
            self.names.retain(|_, until| *until > now_ms);
        }
        while self.names.len() > MAX_NAMES {
            let first = self.names.iter().min_by_key(|(_, until)| **until).map(|(key, _)| key.clone());
            first.map(|key| self.names.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(egress: Egress, allow: &[&str]) -> Policy {
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        Policy::new(Rules { egress, allow }, vec![])
    }

    impl Policy {
        fn admits(&self, to: SocketAddr, now_ms: u64) -> bool {
            self.admits_as(to, &self.names_of(to.ip(), now_ms))
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_mode_decides_and_the_guard_comes_first() {
        let out = at("203.0.113.9:443");
        assert!(policy(Egress::On, &[]).admits(out, 0));
        assert!(!policy(Egress::Off, &[]).admits(out, 0));
        assert!(!policy(Egress::Listed, &["203.0.113.8"]).admits(out, 0));
        assert!(policy(Egress::Listed, &["203.0.113.0/24:443"]).admits(out, 0));
        for rules in [policy(Egress::On, &[]), policy(Egress::Listed, &["0.0.0.0/0", "::/0"])] {
            for near in ["127.0.0.1:80", "10.0.0.1:80", "[::1]:80", "203.0.113.9:25"] {
                assert!(!rules.admits(at(near), 0), "{near}");
            }
        }
    }

    #[test]
    fn a_name_lends_its_addresses_the_right_for_their_lifetime() {
        let mut policy = policy(Egress::Listed, &["*.example.org:443"]);
        let ip = "203.0.113.9".parse().unwrap();
        assert!(policy.admits_name("a.example.org") && !policy.admits_name("example.org"));
        assert!(!policy.admits(at("203.0.113.9:443"), 0));
        policy.learn("a.example.org", &[(ip, 120)], 1000);
        assert!(policy.admits(at("203.0.113.9:443"), 120_999));
        assert!(!policy.admits(at("203.0.113.9:80"), 2000));
        assert!(!policy.admits(at("203.0.113.9:443"), 121_000));
        // A name of somebody else's that points there gives no right.
        policy.learn("evil.com", &[(ip, 120)], 200_000);
        assert!(!policy.admits(at("203.0.113.9:443"), 200_001));
        // Nor does an allowed name that points near.
        policy.learn("a.example.org", &[("127.0.0.1".parse().unwrap(), 120)], 200_000);
        assert!(!policy.admits(at("127.0.0.1:443"), 200_001));
    }

    #[test]
    fn the_table_of_names_is_bounded() {
        let mut policy = policy(Egress::On, &[]);
        for n in 0..10_000u32 {
            policy.learn(&format!("n{n}.org"), &[(IpAddr::V4(n.into()), 3600)], n.into());
        }
        assert_eq!(policy.names.len(), MAX_NAMES);
        assert_eq!(policy.names_of(IpAddr::V4(9_999.into()), 10_000), ["n9999.org"]);
        assert!(policy.names_of(IpAddr::V4(0.into()), 10_000).is_empty());
    }
}
