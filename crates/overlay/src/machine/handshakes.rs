//! Beginning, answering, finishing and renewing handshakes: how often, by which way, and which one stands when two
//! members begin at once.

use super::{ALL_INITIATIONS, Machine, PeerState, peer::INITIATIONS};
use crate::{
    PeerKey, Way,
    control::Candidates,
    handshake::{MOST_PAYLOAD_BYTES, response_index},
    machine::peer::{Answered, Pending},
    random::Random,
    seam::Output,
    session::{REKEY_MS, Role},
};

/// Indexes of sessions begin here; what is above belongs to relays' channels, what is below to messages.
const FIRST_INDEX: u32 = 0x4000_0000;
const RETRY_FIRST_US: u64 = 400_000;
const RETRY_MOST_US: u64 = 8_000_000;
/// The same message is sent so often before another is made.
const SAME_TRIES: u32 = 3;
/// A handshake that nobody waits for any more is given up.
const GIVE_UP_US: u64 = 30_000_000;
/// So long the lower key's initiation stands against the other's.
const STANDS_US: u64 = 3_000_000;
/// So long the higher key of an eager pair waits for the lower one to begin.
const YIELD_US: u64 = 2_000_000;
/// Repetitions of an initiation get the same answer for so long.
const ANSWER_STANDS_US: u64 = 5_000_000;
/// Who answered a handshake renews it only if the other side has not.
const RESPONDER_RENEWS_MS: u64 = REKEY_MS + 15_000;

impl Machine {
    /// Begins, repeats or gives up a handshake with a peer, and ends what has expired.
    pub(super) fn keep_session(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) {
        let ours = self.identity.key();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let had_session = peer.has_session();
        if peer.sessions.expire(now_us / 1_000) {
            if had_session && !peer.has_session() {
                peer.lapse();
            }
            self.is_changed = true;
            self.index_sessions(key);
        }
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let is_due = is_due(peer, now_us, ours < key);
        match &peer.pending {
            None if is_due => self.initiate(now_us, key, out),
            Some(pending) if now_us >= pending.next_us => self.repeat(now_us, key, out),
            _ => {}
        }
    }

    fn repeat(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let Some(pending) = &mut peer.pending else { return };
        let is_over = now_us >= pending.begun_us + GIVE_UP_US && !peer.member.eager;
        if is_over {
            peer.pending = None;
            peer.is_wanted = false;
            peer.peer.heard();
            return self.index_sessions(key);
        }
        if pending.tries.is_multiple_of(SAME_TRIES) {
            return self.initiate(now_us, key, out);
        }
        pending.tries += 1;
        pending.next_us = now_us + pause_us(pending.tries, &mut self.random);
        let bytes = pending.bytes.clone();
        say(peer, &bytes, true, &self.relays.ways(&peer.tag), out);
    }

    /// Sends a new initiation.
    fn initiate(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) {
        let index = self.new_index();
        let entropy = self.random.seed();
        let Some(peer) = self.peers.get_mut(&key) else { return };
        self.relays.want(peer.tag, &peer.theirs.relays);
        let payload = payload(&self.candidates, self.privacy.padded);
        let Ok((state, bytes)) = self.identity.initiate(&key, index, self.ciphers, &payload, entropy) else {
            return;
        };
        let before = peer.pending.take();
        let tries = before.as_ref().map_or(0, |pending| pending.tries) + 1;
        let begun_us = before.map_or(now_us, |pending| pending.begun_us);
        let next_us = now_us + pause_us(tries, &mut self.random);
        // A renewal needs no introducer as long as a way is up.
        let is_alone = tries > 1 || peer.paths.live().is_empty();
        say(peer, &bytes, is_alone, &self.relays.ways(&peer.tag), out);
        let sequence = self.candidates.sequence;
        peer.pending = Some(Pending { state, index, bytes, sequence, begun_us, next_us, tries });
        self.index_sessions(key);
    }

    /// An initiation came; `from` is known where the way itself tells.
    pub(super) fn initiation(
        &mut self,
        now_us: u64,
        way: Way,
        from: Option<PeerKey>,
        bytes: &[u8],
        out: &mut Vec<Output>,
    ) {
        let at_ms = now_us / 1_000;
        if !self.identity.is_for_us(bytes) || !self.may_ask(at_ms, way, from) {
            return;
        }
        if let Some(peer) = self.peers.values().find(|peer| has_answered(peer, bytes, now_us)) {
            let answer = peer.answered.as_ref().map(|answered| answered.answer.clone());
            return out.extend(answer.map(|answer| peer.send(way, answer)));
        }
        let Ok(asked) = self.identity.read(bytes, self.random.seed()) else { return };
        let Some(key) = self.by_noise_key.get(&asked.from).copied() else { return };
        let Some(theirs) = Candidates::parse(&asked.payload) else { return };
        let ours_stands = self.identity.key() < key;
        let index = self.new_index();
        let Some(peer) = self.peers.get_mut(&key).filter(|_| from.is_none_or(|from| from == key)) else {
            return;
        };
        if from.is_none() && !peer.initiations.take(INITIATIONS, at_ms, 1) {
            return;
        }
        let is_crossing = |pending: &Pending| now_us < pending.begun_us + STANDS_US;
        if ours_stands && peer.pending.as_ref().is_some_and(is_crossing) {
            return;
        }
        let payload = payload(&self.candidates, self.privacy.padded);
        let answered = self.identity.answer(asked, &key, index, self.ciphers, &payload, at_ms);
        let Ok((session, answer)) = answered else { return };
        out.push(peer.send(way, answer.clone()));
        peer.pending = None;
        peer.has_candidates(self.candidates.sequence);
        peer.answered = Some(Answered { question: bytes.to_vec(), answer, at_us: now_us });
        let is_second = peer.sessions.current().is_some();
        peer.sessions.add(session.clone(), at_ms);
        self.take_candidates(now_us, key, theirs);
        if let Some(peer) = self.peers.get(&key).filter(|_| is_second) {
            peer.knock(&session, &mut self.random, out);
        }
        self.index_sessions(key);
        self.is_changed = true;
    }

    /// Whether an initiation may cost us a Diffie-Hellman.
    fn may_ask(&mut self, now_ms: u64, way: Way, from: Option<PeerKey>) -> bool {
        if let Some(from) = from {
            let peer = self.peers.get_mut(&from);
            return peer.is_some_and(|peer| peer.initiations.take(INITIATIONS, now_ms, 1));
        }
        let Way::Udp(address) = way else { return false };
        self.strangers.take(address.ip(), now_ms) && self.initiations.take(ALL_INITIATIONS, now_ms, 1)
    }

    /// A response came.
    pub(super) fn response(&mut self, now_us: u64, from: Option<PeerKey>, bytes: &[u8]) {
        let Some(index) = response_index(bytes) else { return };
        let Some((key, peer)) = self.by_index(index) else { return };
        if from.is_some_and(|from| from != key) {
            return;
        }
        let Some(mut pending) = peer.pending.take_if(|pending| pending.index == index) else { return };
        let finished = self.identity.finish(&mut pending.state, bytes, now_us / 1_000);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let parsed = finished.ok().and_then(|(session, theirs)| Some((session, Candidates::parse(&theirs)?)));
        let Some((session, theirs)) = parsed else {
            peer.pending = Some(pending);
            return;
        };
        peer.sessions.add(session, now_us / 1_000);
        peer.has_candidates(pending.sequence);
        peer.handshakes += 1;
        peer.is_wanted = false;
        peer.peer.heard();
        // The first packet of a new session makes the other side use it.
        peer.paths.urge(now_us);
        self.take_candidates(now_us, key, theirs);
        self.index_sessions(key);
        self.is_changed = true;
    }

    fn new_index(&mut self) -> u32 {
        loop {
            let offset = u32::try_from(self.random.below(u64::from(FIRST_INDEX))).unwrap_or(0);
            let index = FIRST_INDEX + offset;
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    /// Notes which indexes are this peer's now.
    fn index_sessions(&mut self, key: PeerKey) {
        self.by_index.retain(|_, known| *known != key);
        let Some(peer) = self.peers.get(&key) else { return };
        let sessions = peer.sessions.receiving().map(|session| session.receive.index());
        let pending = peer.pending.iter().map(|pending| pending.index);
        self.by_index.extend(sessions.chain(pending).map(|index| (index, key)));
    }
}

/// Our candidates as a handshake carries them.
fn payload(candidates: &Candidates, is_padded: bool) -> Vec<u8> {
    let mut payload = candidates.write();
    if is_padded {
        payload.resize(MOST_PAYLOAD_BYTES, 0);
    }
    payload
}

fn has_answered(peer: &PeerState, question: &[u8], now_us: u64) -> bool {
    let stands = |a: &Answered| a.question == question && now_us < a.at_us + ANSWER_STANDS_US;
    peer.answered.as_ref().is_some_and(stands)
}

/// Whether a handshake with the peer is ours to begin now.
fn is_due(peer: &PeerState, now_us: u64, is_lower: bool) -> bool {
    let Some(current) = peer.sessions.current() else {
        let is_awaited = peer.sessions.receiving().next().is_some();
        let yields = !is_lower && peer.member.eager && now_us < peer.begun_us + YIELD_US;
        return peer.is_wanted && !is_awaited && !yields;
    };
    let age_ms = (now_us / 1_000).saturating_sub(current.begun_ms);
    let renews = match current.role {
        Role::Initiator => peer.sessions.needs_renewal(now_us / 1_000),
        Role::Responder => age_ms >= RESPONDER_RENEWS_MS,
    };
    renews && peer.is_kept(now_us)
}

fn pause_us(tries: u32, random: &mut Random) -> u64 {
    random.around((RETRY_FIRST_US << tries.min(8)).min(RETRY_MOST_US))
}

/// Sends a handshake message by every way that is up, or may be.
fn say(peer: &PeerState, bytes: &[u8], is_alone: bool, relayed: &[Way], out: &mut Vec<Output>) {
    let mut ways = peer.paths.live();
    ways.truncate(2);
    if is_alone {
        ways.extend(relayed.iter().filter(|way| !peer.paths.is_up(**way)));
        ways.push(Way::Introducer);
    }
    out.extend(ways.into_iter().map(|way| peer.send(way, bytes.to_vec())));
}
