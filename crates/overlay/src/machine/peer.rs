//! What the machine knows of one peer, and what it says to it in sealed messages.

use std::{net::SocketAddr, sync::Arc};

use super::birthday::Birthday;
use crate::{
    Member, Privacy, Way,
    control::{Candidates, Control},
    crypt::{PREFIX_BYTES, TAG_BYTES},
    handshake::Initiation,
    paths::{Ask, Paths, nat},
    random::Random,
    relay::{
        Rate,
        limits::Bucket,
        message::{Tag, Token},
    },
    seam::{Observed, Output, Peer, Route},
    session::{Session, Sessions},
};

/// Kind of a sealed control message, and the length of what stands before it.
const CONTROL_KIND: u8 = 0x40;
const SHIM_BYTES: usize = 12;

/// Initiations of one member that are answered.
pub(super) const INITIATIONS: Rate = Rate { per_s: 20, burst: 20 };
/// Traffic in the last moments makes a peer busy.
const BUSY_US: u64 = 3_000_000;
/// A pair without traffic for so long is left to fall silent.
const QUIET_US: u64 = 600_000_000;
const RENEWAL_LOOK_US: u64 = 1_000_000;
const TELL_FIRST_US: u64 = 250_000;
const TELL_TRIES: u32 = 8;

/// A handshake that we began.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) state: Initiation,
    pub(super) index: u32,
    pub(super) bytes: Vec<u8>,
    pub(super) sequence: u32,
    pub(super) begun_us: u64,
    pub(super) next_us: u64,
    pub(super) tries: u32,
}

/// An initiation that we answered, kept so that its repetitions get the same answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) question: Vec<u8>,
    pub(super) answer: Vec<u8>,
    pub(super) at_us: u64,
}

/// Which of our candidates the peer has.
#[derive(Debug, Default)]
struct Told {
    has: Option<u32>,
    telling: u32,
    tries: u32,
    next_us: u64,
}

/// One peer.
#[derive(Debug)]
pub(super) struct PeerState {
    pub(super) member: Member,
    pub(super) peer: Arc<Peer>,
    pub(super) route: Arc<Route>,
    pub(super) tag: Tag,
    pub(super) sessions: Sessions,
    pub(super) pending: Option<Pending>,
    pub(super) answered: Option<Answered>,
    pub(super) paths: Paths,
    pub(super) initiations: Bucket,
    pub(super) handshakes: u64,
    /// A packet waits, or the peer is to be reached before one does.
    pub(super) is_wanted: bool,
    pub(super) wake_us: u64,
    pub(super) checked_us: u64,
    pub(super) begun_us: u64,
    pub(super) theirs: Candidates,
    pub(super) birthday: Birthday,
    told: Told,
    sent_packets: u64,
    received_packets: u64,
    busy_us: u64,
    spoken_us: u64,
    full_bytes: u16,
    privacy: Privacy,
}

impl PeerState {
    pub(super) fn new(member: Member, tag: Tag, full_bytes: u16, privacy: Privacy, now_us: u64) -> Self {
        let peer = Arc::new(Peer::new(&member));
        let paths = Paths::new(full_bytes, privacy.split_relays);
        let route = Route { peer: peer.clone(), send: None, hops: paths.hops() };
        Self {
            member,
            peer,
            route: Arc::new(route),
            tag,
            sessions: Sessions::default(),
            pending: None,
            answered: None,
            paths,
            initiations: Bucket::new(INITIATIONS, now_us / 1_000),
            handshakes: 0,
            is_wanted: member.eager,
            wake_us: now_us,
            checked_us: 0,
            begun_us: now_us,
            theirs: Candidates::default(),
            birthday: Birthday::default(),
            told: Told::default(),
            sent_packets: 0,
            received_packets: 0,
            busy_us: 0,
            spoken_us: 0,
            full_bytes,
            privacy,
        }
    }

    /// What seals control messages: the session in use, or before there is one, the newest that was answered.
    fn session(&self) -> Option<&Session> {
        self.sessions.current().or_else(|| self.sessions.receiving().last())
    }

    /// Whether anything can be said to it.
    pub(super) fn has_session(&self) -> bool {
        self.session().is_some()
    }

    /// Looks whether there was traffic since the last look; whether it has become busy or idle.
    pub(super) fn look(&mut self, now_us: u64) -> bool {
        let [sent_packets, _] = self.peer.counters.sent_until_now();
        let [received_packets, _] = self.peer.counters.received_until_now();
        if std::mem::replace(&mut self.sent_packets, sent_packets) != sent_packets {
            (self.busy_us, self.spoken_us) = (now_us, now_us);
        }
        if std::mem::replace(&mut self.received_packets, received_packets) != received_packets {
            self.spoken_us = now_us;
        }
        // Where nobody may see when there is traffic, the questions do not tell either.
        self.paths.set_busy(self.is_busy(now_us))
    }

    /// Whether there is traffic for it, or nobody may see when there is none.
    fn is_busy(&self, now_us: u64) -> bool {
        self.privacy.padded || self.busy_us > 0 && now_us < self.busy_us + BUSY_US
    }

    /// Whether there is traffic for it or of it, or nobody may see when there is none.
    pub(super) fn is_spoken_with(&self, now_us: u64) -> bool {
        self.privacy.padded || self.spoken_us > 0 && now_us < self.spoken_us + BUSY_US
    }

    /// Whether keys are kept fresh for it.
    pub(super) fn is_kept(&self, now_us: u64) -> bool {
        self.member.eager || self.is_wanted || now_us < self.busy_us.max(1) + QUIET_US
    }

    /// Takes what the peer says about where it is.
    pub(super) fn take_candidates(&mut self, theirs: Candidates) {
        self.theirs = theirs;
    }

    /// Tries every address that the peer named, and what its NAT may do next.
    pub(super) fn try_addresses(&mut self, usable: impl Fn(SocketAddr) -> bool, now_us: u64) {
        let named = self.theirs.local.iter().chain(&self.theirs.seen).copied();
        for address in named.filter(|address| usable(*address)).collect::<Vec<_>>() {
            self.paths.try_way(Way::Udp(address), false, now_us);
        }
        for address in nat::guesses(&self.theirs).into_iter().filter(|address| usable(*address)) {
            self.paths.try_way(Way::Udp(address), true, now_us);
        }
    }

    /// A control message, sealed to be sent by a way, in a packet of at least that many bytes.
    pub(super) fn seal(&self, control: &Control, way: Way, packet_bytes: u16) -> Option<Vec<u8>> {
        seal(self.session()?, control, self.cell_bytes(way).max(packet_bytes))
    }

    /// How large every packet on this way is; 0 where each is as large as it is.
    fn cell_bytes(&self, way: Way) -> u16 {
        if self.privacy.padded { self.paths.packet_bytes(way) } else { 0 }
    }

    /// Sends by a way, the introducer among them.
    pub(super) fn send(&self, way: Way, bytes: Vec<u8>) -> Output {
        match way {
            Way::Introducer => Output::Introduce { to: self.member.key, bytes },
            way => Output::Send { way, bytes },
        }
    }

    /// Opens a NAT's door for a session that is not in use yet, while another is: one probe to each address.
    pub(super) fn knock(&self, session: &Session, random: &mut Random, out: &mut Vec<Output>) {
        for address in self.paths.addresses() {
            let probe = Control::Probe { token: random.token() };
            let sealed = seal(session, &probe, self.cell_bytes(Way::Udp(address)));
            out.extend(sealed.map(|bytes| Output::Send { way: Way::Udp(address), bytes }));
        }
    }

    /// Asks what the paths want to know.
    pub(super) fn probe(&mut self, now_us: u64, random: &mut Random, out: &mut Vec<Output>) {
        let mut asks = Vec::new();
        self.paths.tick(now_us, random, &mut asks);
        for Ask { way, token, packet_bytes } in asks {
            let sealed = self.seal(&Control::Probe { token }, way, packet_bytes);
            out.extend(sealed.map(|bytes| self.send(way, bytes)));
        }
    }

    /// Echoes a probe.
    pub(super) fn echo(&self, way: Way, token: Token, packet_bytes: usize, out: &mut Vec<Output>) {
        let seen = match way {
            Way::Udp(address) => address,
            _ => SocketAddr::from(([0; 4], 0)),
        };
        let packet_bytes = u16::try_from(packet_bytes).unwrap_or(u16::MAX);
        let sealed = self.seal(&Control::Echo { token, packet_bytes, seen }, way, 0);
        out.extend(sealed.map(|bytes| self.send(way, bytes)));
    }

    /// The peer has our candidates of this number.
    pub(super) fn has_candidates(&mut self, sequence: u32) {
        self.told.has = Some(sequence);
    }

    /// Tells where we are now, until the peer has it.
    pub(super) fn tell(&mut self, now_us: u64, ours: &Candidates, out: &mut Vec<Output>) {
        if self.told.has == Some(ours.sequence) || self.sessions.current().is_none() {
            return;
        }
        if self.told.telling != ours.sequence {
            self.told = Told { has: self.told.has, telling: ours.sequence, tries: 0, next_us: now_us };
        }
        if now_us < self.told.next_us || self.told.tries >= TELL_TRIES {
            return;
        }
        self.told.next_us = now_us + (TELL_FIRST_US << self.told.tries);
        self.told.tries += 1;
        let is_alone = self.paths.live().is_empty() || self.told.tries % 2 == 1;
        let ways = self.paths.live().into_iter().take(3).chain(is_alone.then_some(Way::Introducer));
        for way in ways.collect::<Vec<_>>() {
            let sealed = self.seal(&Control::Candidates(ours.clone()), way, 0);
            out.extend(sealed.map(|bytes| self.send(way, bytes)));
        }
    }

    fn tell_us(&self, sequence: u32) -> u64 {
        let is_due = self.told.has != Some(sequence) && self.sessions.current().is_some();
        let is_left = self.told.telling != sequence || self.told.tries < TELL_TRIES;
        if is_due && is_left { self.told.next_us } else { u64::MAX }
    }

    /// When something is due.
    pub(super) fn next_us(&self, now_us: u64, sequence: u32) -> u64 {
        let session_us = self.sessions.next_ms().map_or(u64::MAX, |ms| ms * 1_000);
        // A renewal that is due is under way, or nobody needs it.
        let session_us = if session_us > now_us { session_us } else { now_us + RENEWAL_LOOK_US };
        let pending_us = self.pending.as_ref().map_or(u64::MAX, |pending| pending.next_us);
        let paths_us = if self.has_session() { self.paths.wake_us() } else { u64::MAX };
        session_us
            .min(pending_us)
            .min(paths_us)
            .min(self.tell_us(sequence))
            .min(self.birthday.wake_us(now_us))
    }

    /// All keys are gone: nothing is known about the ways any more.
    pub(super) fn lapse(&mut self) {
        self.paths = Paths::new(self.full_bytes, self.privacy.split_relays);
        self.told = Told::default();
    }

    /// Whether the way of its packets is another than before; then it has been noted.
    pub(super) fn reroute(&mut self) -> bool {
        let send = self.sessions.current().map(|session| session.send.clone());
        let hops = self.paths.hops();
        let same_key = match (&send, &self.route.send) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if same_key && hops == self.route.hops {
            return false;
        }
        self.route = Arc::new(Route { peer: self.peer.clone(), send, hops });
        true
    }

    /// Shows people what is known.
    pub(super) fn observe(&self) {
        self.peer.observe(Observed { ways: self.paths.observed(), handshakes: self.handshakes });
    }
}

/// A control message in a session, padded to a packet of that many bytes.
fn seal(session: &Session, control: &Control, packet_bytes: u16) -> Option<Vec<u8>> {
    let least = usize::from(packet_bytes).saturating_sub(PREFIX_BYTES + SHIM_BYTES + TAG_BYTES);
    let mut plain = vec![0; SHIM_BYTES];
    plain[0] = CONTROL_KIND;
    plain.extend(control.write(least));
    session.send.seal_alone(&plain)
}
