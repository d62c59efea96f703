//! The ways to one peer: which are tried, which are up, which carry its traffic. Pure; what is to be asked comes back
//! as probes for the machine to seal.
//!
//! What always holds: only ways of the best kind that is up carry traffic, those nearly as fast as the fastest share
//! it; a bounded number of addresses is tried, however many a peer names. Which addresses those are, keys, and relays'
//! channels are not here.

pub(crate) mod nat;
mod way;

use std::net::SocketAddr;

use crate::{
    Way,
    random::Random,
    relay::message::Token,
    seam::{Hop, WayObserved},
};
pub(crate) use way::Ask;
use way::{Kind, LEAST_PACKET_BYTES, Need, WayState};

/// Ways of one peer at most.
const MOST_WAYS: usize = 64;
/// A guess that nothing came of is forgotten.
const GUESS_US: u64 = 6_000_000;
/// A way that was not heard of for so long is forgotten, if nobody names it any more.
const FORGET_US: u64 = 300_000_000;
/// What is carried by the introducer as long as there is no other way.
const INTRODUCED: Hop = Hop { way: Way::Introducer, packet_bytes: 1200, weight: 1 };

/// The ways to one peer.
#[derive(Debug)]
pub(crate) struct Paths {
    ways: Vec<WayState>,
    full_bytes: u16,
    is_busy: bool,
    /// Every way of the best kind carries traffic, however slow.
    is_split: bool,
}

impl Paths {
    /// None yet; `full_bytes` is the largest sealed packet that will be sent. Split: no way of the best kind that is up
    /// is left out, so that none sees it all.
    pub(crate) fn new(full_bytes: u16, is_split: bool) -> Self {
        Self { ways: Vec::new(), full_bytes, is_busy: false, is_split }
    }

    /// Notes whether there is traffic for the peer; whether that is news.
    pub(crate) fn set_busy(&mut self, is_busy: bool) -> bool {
        std::mem::replace(&mut self.is_busy, is_busy) != is_busy
    }

    /// Tries this way, quickly if it is not up.
    pub(crate) fn try_way(&mut self, way: Way, is_guess: bool, now_us: u64) {
        if let Some(known) = self.ways.iter_mut().find(|known| known.way == way) {
            known.is_guess &= is_guess;
            if !known.is_up() {
                known.urge(now_us);
            }
            return;
        }
        if self.ways.len() >= MOST_WAYS && !self.make_room() {
            return;
        }
        let mut new = WayState::new(way, self.full_bytes, now_us);
        new.is_guess = is_guess;
        self.ways.push(new);
    }

    /// Forgets the way that is of least use; a guess or what has not been heard of for longest.
    fn make_room(&mut self) -> bool {
        let idle = self.ways.iter().enumerate().filter(|(_, way)| !way.is_up() && way.kind == Kind::Direct);
        let Some((at, _)) = idle.min_by_key(|(_, way)| (!way.is_guess, way.heard_us())) else { return false };
        self.ways.remove(at);
        true
    }

    /// Forgets ways that this is said of.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(Way) -> bool) {
        self.ways.retain(|way| !is_gone(way.way));
    }

    /// An authentic packet came this way.
    pub(crate) fn heard(&mut self, way: Way, now_us: u64) {
        match self.ways.iter_mut().find(|known| known.way == way) {
            Some(known) => known.heard(now_us),
            None => self.try_way(way, false, now_us),
        }
    }

    /// An echo of a probe came, by whatever way.
    pub(crate) fn echoed(&mut self, token: Token, now_us: u64) {
        let _ = self.ways.iter_mut().any(|way| way.echoed(token, now_us));
    }

    /// The system would not send this way.
    pub(crate) fn failed(&mut self, way: Way, now_us: u64) {
        self.ways.iter_mut().filter(|known| known.way == way).for_each(|known| known.fail(now_us));
    }

    /// The system takes only smaller packets for these ways than it did; whether it is one of ours.
    pub(crate) fn shrink(&mut self, is_hit: impl Fn(Way) -> bool, now_us: u64) -> bool {
        let mut hit = self.ways.iter_mut().filter(|known| is_hit(known.way)).peekable();
        let is_ours = hit.peek().is_some();
        hit.for_each(|known| known.shrink(now_us));
        is_ours
    }

    /// Something has changed: asks all ways now.
    pub(crate) fn urge(&mut self, now_us: u64) {
        self.ways.iter_mut().for_each(|way| way.urge(now_us));
    }

    /// Whether this way is up.
    pub(crate) fn is_up(&self, way: Way) -> bool {
        self.ways.iter().any(|known| known.way == way && known.is_up())
    }

    /// Whether a way without a relay is up.
    pub(crate) fn is_direct(&self) -> bool {
        self.best_kind() == Some(Kind::Direct)
    }

    /// Whether a way through a relay does not answer as it did.
    pub(crate) fn is_relay_suspect(&self) -> bool {
        let relayed = |way: &&WayState| matches!(way.kind, Kind::Relayed | Kind::RelayedTcp);
        self.ways.iter().filter(relayed).any(WayState::is_suspect)
    }

    /// The ways worth sending a message by that must not be lost: those that are up, best first.
    pub(crate) fn live(&self) -> Vec<Way> {
        let mut up: Vec<_> = self.ways.iter().filter(|way| way.is_up()).collect();
        up.sort_by_key(|way| (way.is_suspect(), way.kind, way.rtt_us()));
        up.into_iter().map(|way| way.way).collect()
    }

    fn best_kind(&self) -> Option<Kind> {
        self.ways.iter().filter(|way| way.is_up()).map(|way| way.kind).min()
    }

    fn need(&self, way: &WayState, best: Option<Kind>) -> Need {
        let is_standby = best.is_some_and(|best| best < way.kind);
        Need { is_busy: self.is_busy, is_used: way.is_used, is_standby }
    }

    /// Asks what is due, and decides anew which ways carry the traffic.
    pub(crate) fn tick(&mut self, now_us: u64, random: &mut Random, out: &mut Vec<Ask>) {
        let best = self.best_kind();
        for at in 0..self.ways.len() {
            let need = self.need(&self.ways[at], best);
            self.ways[at].tick(now_us, need, || random.token(), out);
        }
        self.ways.retain(|way| {
            let age_us = now_us.saturating_sub(way.born_us());
            let silent_us = now_us.saturating_sub(way.heard_us());
            let is_past = way.is_guess && age_us > GUESS_US || silent_us > FORGET_US;
            way.is_up() || way.kind != Kind::Direct || !is_past
        });
        self.choose();
    }

    /// Which ways share the traffic: of the best kind, those nearly as fast as the fastest. One that shares it already
    /// goes on until it is clearly slower.
    pub(crate) fn choose(&mut self) {
        let best = self.best_kind();
        let of_best = |way: &&WayState| way.is_up() && Some(way.kind) == best;
        let fastest_us = self.ways.iter().filter(of_best).map(WayState::rtt_us).min().unwrap_or_default();
        for way in &mut self.ways {
            let slack_us = match way.is_used {
                _ if self.is_split => u64::MAX,
                true => fastest_us + 2_000,
                false => fastest_us / 4 + 500,
            };
            way.is_used =
                way.is_up() && Some(way.kind) == best && way.rtt_us() <= fastest_us.saturating_add(slack_us);
        }
    }

    /// When to tick next.
    pub(crate) fn wake_us(&self) -> u64 {
        let best = self.best_kind();
        self.ways.iter().map(|way| way.wake_us(self.need(way, best))).min().unwrap_or(u64::MAX)
    }

    /// The ways for packets, best first; those that only stand by have no weight.
    pub(crate) fn hops(&self) -> Vec<Hop> {
        let mut up: Vec<_> = self.ways.iter().filter(|way| way.is_up()).collect();
        up.sort_by_key(|way| (!way.is_used, way.kind, way.way));
        if up.is_empty() {
            return vec![INTRODUCED];
        }
        up.iter().map(|way| way.hop(if way.is_used { way.weight() } else { 0 })).collect()
    }

    /// The largest sealed packet that is known to pass this way.
    pub(crate) fn packet_bytes(&self, way: Way) -> u16 {
        if way == Way::Introducer {
            return INTRODUCED.packet_bytes;
        }
        let known = self.ways.iter().find(|known| known.way == way);
        known.map_or(LEAST_PACKET_BYTES, |known| known.hop(0).packet_bytes)
    }

    /// What is known of each way, best first.
    pub(crate) fn observed(&self) -> Vec<WayObserved> {
        let mut all: Vec<_> = self.ways.iter().collect();
        all.sort_by_key(|way| (!way.is_up(), !way.is_used, way.kind, way.rtt_us()));
        all.into_iter().map(WayState::observed).collect()
    }

    /// Addresses that are tried or up, for tests of bounds.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.ways.iter().filter_map(|way| match way.way {
            Way::Udp(address) => Some(address),
            _ => None,
        })
    }
}
