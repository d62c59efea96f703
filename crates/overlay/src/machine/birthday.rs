//! Punching between a NAT that takes a random port for each destination and one that has one port for all, by the
//! birthday paradox: the member behind the first speaks from many sockets to the other's one address, and so owns many
//! ports there; the other probes ports at random until it meets one of them, through which both are let in.
//!
//! With 256 of 64,512 ports, 1,024 probes meet none in (1 - 256/64,512)^1024 = 1.7 % of attempts. What always holds: one
//! attempt at a time, of five seconds; after one that failed the next waits minutes; probes of random ports are only
//! sent for a member that asked within its session, so many and no more. Opening and closing the sockets is not here.

use std::net::{IpAddr, SocketAddr};

use super::{Machine, is_usable, peer::PeerState};
use crate::{
    PeerKey, Way,
    control::{Candidates, Control, Mapping},
    random::Random,
    relay::message::Token,
    seam::{Output, Spare},
};

/// Sockets that are opened for an attempt.
const SPARES: u16 = 256;
/// Ports that are probed for one.
const GUESSES: u16 = 1_024;
/// Ports that a NAT may take.
const FIRST_PORT: u64 = 1_024;
const PORTS: u64 = 65_536 - FIRST_PORT;
/// Ordinary punching has so long.
const LONELY_US: u64 = 1_000_000;
const ATTEMPT_US: u64 = 5_000_000;
/// The call may be lost.
const CALL_EVERY_US: u64 = 500_000;
/// Probes of random ports leave in bursts of so many.
const BURST: u16 = 32;
const BURST_EVERY_US: u64 = 50_000;
/// Attempts of others that are helped at once.
const MOST_GUESSED: usize = 4;
/// Whom we helped is not helped again before this.
const GUESS_PAUSE_US: u64 = 60_000_000;
/// After a way was found, and after each failure in a row.
const FOUND_PAUSE_US: u64 = 60_000_000;
const FAILED_PAUSES_US: [u64; 2] = [300_000_000, 1_800_000_000];
/// Answers to what came by spare sockets without being verified, in one attempt.
const MOST_ANSWERS: u16 = 256;
/// A socket that was kept is let go if its way is down for so long.
const KEPT_DOWN_US: u64 = 10_000_000;

/// An attempt of ours: sockets are open.
#[derive(Debug)]
pub(super) struct Attempt {
    peer: PeerKey,
    to: SocketAddr,
    /// Of the probe from each socket; its echo says that the socket reaches the peer.
    tokens: Vec<Token>,
    answers: u16,
    call_us: u64,
    ends_us: u64,
}

/// What is known of punching with one peer.
#[derive(Debug, Default)]
pub(super) struct Birthday {
    /// Since when there is traffic, but no direct way, and spare sockets may find one.
    lonely_us: Option<u64>,
    failures: usize,
    not_before_us: u64,
    guessing: Option<Guessing>,
    guess_not_before_us: u64,
    /// The address that a socket was kept for, and when it is let go unless its way is up.
    kept: Option<(SocketAddr, u64)>,
    wake_us: Option<u64>,
}

/// Probes of random ports for an attempt of the peer's.
#[derive(Debug)]
struct Guessing {
    ip: IpAddr,
    first: u64,
    stride: u64,
    done: u16,
    next_us: u64,
}

impl Guessing {
    fn new(ip: IpAddr, random: &mut Random, now_us: u64) -> Self {
        let mut stride = random.below(PORTS);
        // Then no port comes twice: these are the primes that the number of ports is made of.
        while [2, 3, 7].into_iter().any(|prime| stride.is_multiple_of(prime)) {
            stride += 1;
        }
        Self { ip, first: random.below(PORTS), stride, done: 0, next_us: now_us }
    }

    fn next(&mut self) -> SocketAddr {
        let at = (self.first + u64::from(self.done) * self.stride) % PORTS;
        self.done += 1;
        SocketAddr::new(self.ip, u16::try_from(FIRST_PORT + at).unwrap_or(u16::MAX))
    }
}

impl Birthday {
    /// An authentic packet came by a way: if it is from the NAT whose ports are probed, that is what was sought.
    pub(super) fn heard(&mut self, way: Way) {
        let Way::Udp(from) = way else { return };
        self.guessing.take_if(|guessing| guessing.ip == from.ip());
    }

    /// When something is due.
    pub(super) fn wake_us(&self, now_us: u64) -> u64 {
        let guess_us = self.guessing.as_ref().map_or(u64::MAX, |guessing| guessing.next_us);
        let kept_us = self.kept.map_or(u64::MAX, |(_, until_us)| until_us);
        let own_us = self.wake_us.unwrap_or(u64::MAX);
        guess_us.min(kept_us).min(own_us).max(now_us + 1)
    }

    fn failed(&mut self, now_us: u64) {
        self.not_before_us = now_us + FAILED_PAUSES_US[self.failures.min(FAILED_PAUSES_US.len() - 1)];
        self.failures += 1;
    }
}

/// The address of the first kind that can be met in this manner.
fn target(theirs: &Candidates, own: &[SocketAddr]) -> Option<SocketAddr> {
    theirs.seen.iter().copied().find(|seen| seen.is_ipv4() && is_usable(*seen, own))
}

impl Machine {
    /// Does for a peer what is due with spare sockets and random ports.
    pub(super) fn punch(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) {
        self.guess(now_us, key, out);
        self.judge_kept(now_us, key, out);
        let wake_us = match &self.attempt {
            Some(attempt) if attempt.peer == key => self.go_on(now_us, key, out),
            _ => self.seek(now_us, key, out),
        };
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.birthday.wake_us = wake_us;
        }
    }

    /// Begins an attempt if it is time for one; when to look again.
    fn seek(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) -> Option<u64> {
        let is_hard = self.candidates.mapping == Mapping::Random && !self.privacy.via_relay;
        let own = &self.own;
        let peer = self.peers.get_mut(&key)?;
        let is_sought = is_hard
            && peer.theirs.mapping == Mapping::Independent
            && peer.sessions.current().is_some()
            && peer.is_spoken_with(now_us)
            && !peer.paths.is_direct();
        let Some(to) = target(&peer.theirs, own).filter(|_| is_sought) else {
            peer.birthday.lonely_us = None;
            return None;
        };
        let lonely_us = *peer.birthday.lonely_us.get_or_insert(now_us);
        let due_us = (lonely_us + LONELY_US).max(peer.birthday.not_before_us);
        let free_us = self.attempt.as_ref().map_or(0, |other| other.ends_us);
        if now_us < due_us || self.attempt.is_some() {
            return Some(due_us.max(free_us));
        }
        out.push(Output::Spare(Spare::Open { count: SPARES }));
        let tokens: Vec<Token> = (0..SPARES).map(|_| self.random.token()).collect();
        for (number, token) in (0..).zip(&tokens) {
            out.extend(from_spare(peer, number, to, *token));
        }
        let ends_us = now_us + ATTEMPT_US;
        self.attempt = Some(Attempt { peer: key, to, tokens, answers: 0, call_us: now_us, ends_us });
        self.go_on(now_us, key, out)
    }

    /// Calls the peer while an attempt is under way, and ends it when its time is over; when to look again.
    fn go_on(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) -> Option<u64> {
        let attempt = self.attempt.as_mut()?;
        let peer = self.peers.get_mut(&key)?;
        let is_direct = peer.paths.is_direct();
        if is_direct || now_us >= attempt.ends_us {
            if !is_direct {
                peer.birthday.failed(now_us);
            }
            self.attempt = None;
            out.push(Output::Spare(Spare::Close));
            return None;
        }
        if now_us >= attempt.call_us {
            attempt.call_us = now_us + CALL_EVERY_US;
            let way = peer.paths.live().first().copied().unwrap_or(Way::Introducer);
            let call = peer.seal(&Control::Call, way, 0);
            out.extend(call.map(|bytes| peer.send(way, bytes)));
        }
        Some(attempt.call_us.min(attempt.ends_us))
    }

    /// Something came by a spare socket: if the peer met its port, a probe from there comes through now.
    pub(super) fn came_by_spare(&mut self, number: u16, from: SocketAddr, out: &mut Vec<Output>) {
        let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.to == from) else { return };
        let Some(token) = attempt.tokens.get(usize::from(number)) else { return };
        if attempt.answers < MOST_ANSWERS {
            attempt.answers += 1;
            out.extend(self.peers.get(&attempt.peer).and_then(|peer| from_spare(peer, number, from, *token)));
        }
    }

    /// An echo came: if it is of a probe from a spare socket, that one is kept and carries what is for the peer.
    pub(super) fn keep_spare(&mut self, now_us: u64, key: PeerKey, token: Token, out: &mut Vec<Output>) {
        let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.peer == key) else { return };
        let Some(number) = attempt.tokens.iter().position(|known| *known == token) else { return };
        let (to, number) = (attempt.to, u16::try_from(number).unwrap_or(0));
        self.attempt = None;
        out.push(Output::Spare(Spare::Keep { number, to }));
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.birthday.kept = Some((to, now_us + KEPT_DOWN_US));
        (peer.birthday.failures, peer.birthday.not_before_us) = (0, now_us + FOUND_PAUSE_US);
        peer.paths.try_way(Way::Udp(to), false, now_us);
    }

    /// Lets a socket go whose way has been down for a while.
    fn judge_kept(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some((to, until_us)) = peer.birthday.kept else { return };
        if peer.paths.is_up(Way::Udp(to)) {
            peer.birthday.kept = Some((to, now_us + KEPT_DOWN_US));
        } else if now_us >= until_us {
            peer.birthday.kept = None;
            out.push(Output::Spare(Spare::Release { to }));
        }
    }

    /// The peer is no member any more.
    pub(super) fn let_spares_go(&mut self, key: PeerKey, peer: &PeerState) {
        self.unneeded.extend(peer.birthday.kept.map(|(to, _)| Spare::Release { to }));
        if self.attempt.take_if(|attempt| attempt.peer == key).is_some() {
            self.unneeded.push(Spare::Close);
        }
    }

    /// The peer has many ports open: some are probed, if we have one that can be met.
    pub(super) fn called(&mut self, now_us: u64, key: PeerKey) {
        let guessed = self.peers.values().filter(|peer| peer.birthday.guessing.is_some()).count();
        let is_met = self.candidates.mapping == Mapping::Independent && !self.privacy.via_relay;
        let own = &self.own;
        let Some(peer) = self.peers.get_mut(&key).filter(|_| is_met && guessed < MOST_GUESSED) else {
            return;
        };
        let is_wanted = peer.theirs.mapping == Mapping::Random && !peer.paths.is_direct();
        let Some(to) = target(&peer.theirs, own).filter(|_| is_wanted) else { return };
        if now_us >= peer.birthday.guess_not_before_us {
            peer.birthday.guess_not_before_us = now_us + GUESS_PAUSE_US;
            peer.birthday.guessing = Some(Guessing::new(to.ip(), &mut self.random, now_us));
            self.touch(key);
        }
    }

    /// Probes random ports of the peer's NAT.
    fn guess(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(mut guessing) = peer.birthday.guessing.take_if(|guessing| now_us >= guessing.next_us) else {
            return;
        };
        for _ in 0..BURST.min(GUESSES - guessing.done) {
            let way = Way::Udp(guessing.next());
            let probe = peer.seal(&Control::Probe { token: self.random.token() }, way, 0);
            out.extend(probe.map(|bytes| Output::Send { way, bytes }));
        }
        guessing.next_us = now_us + BURST_EVERY_US;
        peer.birthday.guessing = Some(guessing).filter(|guessing| guessing.done < GUESSES);
    }
}

/// A probe from a spare socket.
fn from_spare(peer: &PeerState, number: u16, to: SocketAddr, token: Token) -> Option<Output> {
    let bytes = peer.seal(&Control::Probe { token }, Way::Udp(to), 0)?;
    Some(Output::Spare(Spare::Send { number, to, bytes }))
}
