//! Control of one member's overlay: handshakes, sessions, paths, relays, and the table that every packet goes by.
//!
//! Pure: what happened comes in with the time, what to do comes out ([`crate::seam`]); randomness is of a seed. What
//! always holds: nothing is accepted from a key that is not in the member list, and a member that leaves it loses its
//! keys in the same step; no message makes us do more than a bounded amount of work or keep more than a bounded amount
//! of state; whatever the introducer is away for, sessions are renewed over the paths themselves. Not here: descriptors
//! and threads (`plane`), what is inside packets.

mod birthday;
mod handshakes;
mod peer;
mod relays;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ring::signature::Ed25519KeyPair;

use crate::{
    Config, Member, OverlayError, PeerKey, Privacy, RelayAt, Result, Way,
    control::{Candidates, Control},
    crypt::Cipher,
    handshake::{INITIATION, Identity, NoiseKey, RESPONSE, noise_key},
    random::Random,
    relay::{
        Rate,
        limits::{Bucket, PerAddress},
        message::Tag,
    },
    seam::{Input, Output, Receive, Spare, Table},
};
use birthday::Attempt;
use peer::PeerState;
use relays::{Change, Relays};

/// What is put around an inner packet, at most: prefix, shim, tag.
const OVERHEAD_BYTES: u16 = 12 + 12 + 16;
const LOOK_EVERY_US: u64 = 500_000;
/// Initiations from unknown addresses that cost a Diffie-Hellman, from one and in all.
const STRANGER_INITIATIONS: Rate = Rate { per_s: 20, burst: 20 };
const ALL_INITIATIONS: Rate = Rate { per_s: 200, burst: 200 };
/// A relay is asked about a doubtful channel this often at most.
const CHECK_EVERY_US: u64 = 1_000_000;

/// The control of one member's overlay.
#[derive(Debug)]
pub struct Machine {
    identity: Identity,
    ciphers: u8,
    random: Random,
    privacy: Privacy,
    full_bytes: u16,
    peers: BTreeMap<PeerKey, PeerState>,
    by_noise_key: BTreeMap<NoiseKey, PeerKey>,
    by_tag: BTreeMap<Tag, PeerKey>,
    /// Whose session, or handshake of ours under way, an index of ours is.
    by_index: BTreeMap<u32, PeerKey>,
    relays: Relays,
    /// Of a punch with many sockets; one at a time.
    attempt: Option<Attempt>,
    /// Sockets that nobody needs any more.
    unneeded: Vec<Spare>,
    own: Vec<SocketAddr>,
    candidates: Candidates,
    strangers: PerAddress,
    initiations: Bucket,
    touched: Vec<PeerKey>,
    is_changed: bool,
    next_look_us: u64,
    next_us: u64,
}

impl Machine {
    /// The machine of a member; nothing happens before the first step. `seed` must be random and used once.
    ///
    /// # Errors
    /// If our own key cannot be used.
    pub fn new(config: &Config, seed: &[u8; 32]) -> Result<Self> {
        let signing = Ed25519KeyPair::from_seed_unchecked(&config.key_seed).map_err(|error| {
            OverlayError::Config { reason: format!("its key is no Ed25519 key: {error}") }
        })?;
        let mut random = Random::new(seed);
        let sequence = u32::try_from(random.below(1 << 31)).unwrap_or(0);
        let mut machine = Self {
            identity: Identity::new(&config.cluster, &config.key_seed),
            ciphers: Cipher::offered(),
            random,
            privacy: config.privacy,
            full_bytes: config.mtu.saturating_add(OVERHEAD_BYTES),
            peers: BTreeMap::new(),
            by_noise_key: BTreeMap::new(),
            by_tag: BTreeMap::new(),
            by_index: BTreeMap::new(),
            relays: Relays::new(signing),
            attempt: None,
            unneeded: Vec::new(),
            own: Vec::new(),
            candidates: Candidates { sequence, ..Candidates::default() },
            strangers: PerAddress::new(STRANGER_INITIATIONS, 1_024),
            initiations: Bucket::new(ALL_INITIATIONS, 0),
            touched: Vec::new(),
            is_changed: true,
            next_look_us: 0,
            next_us: 0,
        };
        machine.set_members(0, config.members.clone());
        machine.relays.set(config.relays.clone());
        Ok(machine)
    }

    /// Takes what happened at `now_us`, by a clock that never goes back; what to do goes to `out`, in order.
    pub fn step(&mut self, now_us: u64, input: Input<'_>, out: &mut Vec<Output>) {
        let mut sends = Vec::new();
        self.take(now_us, input, &mut sends);
        self.run(now_us, &mut sends);
        // What opens the answers is there before the questions leave.
        if std::mem::take(&mut self.is_changed) {
            out.push(Output::Publish(Arc::new(self.table())));
        }
        out.append(&mut sends);
    }

    /// When to step with [`Input::Tick`], if nothing else happens before.
    pub fn next_us(&self) -> u64 {
        self.next_us
    }

    fn take(&mut self, now_us: u64, input: Input<'_>, out: &mut Vec<Output>) {
        match input {
            Input::Packet { way, bytes } => self.packet(now_us, way, bytes, out),
            Input::Control { index, way, body, packet_bytes } => {
                self.used(now_us, index, way);
                self.control(now_us, index, way, body, packet_bytes, out);
            }
            Input::Used { index, way } => self.used(now_us, index, way),
            Input::Wanted { peer } => self.wanted(now_us, peer),
            Input::Introduced { from, bytes } => self.introduced(now_us, from, bytes, out),
            Input::Members(members) => self.set_members(now_us, members),
            Input::Relays(relays) => self.set_relays(relays),
            Input::OwnAddresses(own) => self.set_own(now_us, own),
            Input::Failed { way, .. } => self.failed(now_us, way),
            Input::TooLarge { way } => self.too_large(now_us, way),
            Input::Spare { number, from } => self.came_by_spare(number, from, out),
            Input::Renew => {
                self.peers.values_mut().for_each(|peer| peer.sessions.renew());
                self.touch_all();
            }
            Input::Tick => {}
        }
    }

    fn packet(&mut self, now_us: u64, way: Way, bytes: &[u8], out: &mut Vec<Output>) {
        match bytes.first_chunk() {
            Some(&INITIATION | &RESPONSE) if self.is_hidden(way) => {}
            Some(&INITIATION) => {
                let from = self.relays.tag_of(way).and_then(|tag| self.by_tag.get(&tag)).copied();
                self.initiation(now_us, way, from, bytes, out);
            }
            Some(&RESPONSE) => self.response(now_us, None, bytes),
            _ => {
                let mut changes = Vec::new();
                self.relays.hear(now_us / 1_000, way, bytes, &mut self.random, &mut changes);
                self.follow(now_us, &changes);
            }
        }
    }

    /// Whether we do not speak this way, as it would show us: members know each other by relays only.
    fn is_hidden(&self, way: Way) -> bool {
        self.privacy.via_relay && matches!(way, Way::Udp(_))
    }

    fn introduced(&mut self, now_us: u64, from: PeerKey, bytes: &[u8], out: &mut Vec<Output>) {
        match bytes.first_chunk() {
            Some(&INITIATION) => self.initiation(now_us, Way::Introducer, Some(from), bytes, out),
            Some(&RESPONSE) => self.response(now_us, Some(from), bytes),
            _ => {}
        }
    }

    fn touch(&mut self, key: PeerKey) {
        if !self.touched.contains(&key) {
            self.touched.push(key);
        }
    }

    fn by_index(&mut self, index: u32) -> Option<(PeerKey, &mut PeerState)> {
        let key = *self.by_index.get(&index)?;
        Some((key, self.peers.get_mut(&key)?))
    }

    /// A packet of a session was opened: it is the peer's, and that way leads here.
    fn used(&mut self, now_us: u64, index: u32, way: Way) {
        let hides = self.privacy.via_relay;
        let Some((key, peer)) = self.by_index(index) else { return };
        let is_confirmed = peer.sessions.confirm(index, now_us / 1_000);
        if is_confirmed {
            peer.handshakes += 1;
            peer.pending = None;
            peer.is_wanted = false;
            peer.peer.heard();
        }
        match way {
            Way::Introducer => {}
            Way::Udp(_) if hides => {}
            // A relay's channel that we gave up leads nowhere.
            Way::Relay { .. } if self.relays.tag_of(way).is_none() => {}
            way => {
                if let Some(peer) = self.peers.get_mut(&key) {
                    peer.paths.heard(way, now_us);
                    peer.birthday.heard(way);
                }
            }
        }
        self.is_changed |= is_confirmed;
        self.touch(key);
    }

    fn control(
        &mut self,
        now_us: u64,
        index: u32,
        way: Way,
        body: &[u8],
        packet_bytes: usize,
        out: &mut Vec<Output>,
    ) {
        if self.is_hidden(way) {
            return;
        }
        let Some((key, peer)) = self.by_index(index) else { return };
        match Control::parse(body) {
            None => {}
            Some(Control::Probe { token }) => peer.echo(way, token, packet_bytes, out),
            Some(Control::Echo { token, .. }) => {
                peer.paths.echoed(token, now_us);
                self.keep_spare(now_us, key, token, out);
            }
            Some(Control::Call) => self.called(now_us, key),
            Some(Control::Have { sequence }) => peer.has_candidates(sequence),
            Some(Control::Candidates(theirs)) => {
                let have = peer.seal(&Control::Have { sequence: theirs.sequence }, way, 0);
                out.extend(have.map(|bytes| peer.send(way, bytes)));
                // An older one was overtaken on its way.
                if theirs.sequence.wrapping_sub(peer.theirs.sequence).cast_signed() > 0 {
                    self.take_candidates(now_us, key, theirs);
                }
            }
        }
    }

    /// Takes where a peer says it is, and tries all of it.
    fn take_candidates(&mut self, now_us: u64, key: PeerKey, theirs: Candidates) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        self.relays.want(peer.tag, &theirs.relays);
        peer.take_candidates(theirs);
        let (own, hides) = (&self.own, self.privacy.via_relay);
        peer.try_addresses(|address| !hides && is_usable(address, own), now_us);
        for way in self.relays.ways(&peer.tag) {
            peer.paths.try_way(way, false, now_us);
        }
        self.touch(key);
    }

    fn wanted(&mut self, now_us: u64, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        peer.is_wanted = true;
        if peer.has_session() {
            peer.paths.urge(now_us);
        }
        self.touch(key);
    }

    fn set_members(&mut self, now_us: u64, members: Vec<Member>) {
        let ours = self.identity.key();
        let new: BTreeMap<PeerKey, Member> =
            members.into_iter().filter(|member| member.key != ours).map(|m| (m.key, m)).collect();
        let is_same = |old: &Member| new.get(&old.key).is_some_and(|new| new.addresses == old.addresses);
        let gone: Vec<PeerKey> =
            self.peers.values().filter(|peer| !is_same(&peer.member)).map(|peer| peer.member.key).collect();
        for key in gone {
            self.remove(key);
        }
        for member in new.into_values() {
            match self.peers.get_mut(&member.key) {
                Some(known) => known.member.eager = member.eager,
                None => self.add(now_us, member),
            }
            self.touch(member.key);
        }
        self.is_changed = true;
    }

    fn add(&mut self, now_us: u64, member: Member) {
        // Who has no usable key cannot be reached by anybody; the others can.
        let Ok(noise_key) = noise_key(&member.key) else { return };
        let Ok(tag) = self.identity.pair_name(&member.key, "relay") else { return };
        self.by_noise_key.insert(noise_key, member.key);
        self.by_tag.insert(tag, member.key);
        self.peers.insert(member.key, PeerState::new(member, tag, self.full_bytes, self.privacy, now_us));
    }

    fn remove(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else { return };
        self.let_spares_go(key, &peer);
        self.relays.unwant(&peer.tag);
        self.by_tag.remove(&peer.tag);
        self.by_noise_key.retain(|_, known| *known != key);
        self.by_index.retain(|_, known| *known != key);
        self.is_changed = true;
    }

    fn set_relays(&mut self, relays: Vec<RelayAt>) {
        self.relays.set(relays);
        for peer in self.peers.values_mut() {
            let known = &self.relays;
            peer.paths.forget(|way| matches!(way, Way::Relay { relay, .. } if !known.has(relay)));
        }
        self.is_changed = true;
        self.touch_all();
    }

    fn touch_all(&mut self) {
        self.touched = self.peers.keys().copied().collect();
    }

    fn set_own(&mut self, now_us: u64, mut own: Vec<SocketAddr>) {
        own.sort_unstable();
        own.dedup();
        if own == self.own {
            return;
        }
        self.own = own;
        self.relays.check_all();
        self.peers.values_mut().for_each(|peer| peer.paths.urge(now_us));
        self.refresh_candidates();
    }

    /// All channels of a relay share the way to it.
    fn too_large(&mut self, now_us: u64, way: Way) {
        let is_hit = |known: Way| match (known, way) {
            (Way::Relay { relay, tcp: false, .. }, Way::Relay { relay: hit, tcp: false, .. }) => relay == hit,
            _ => known == way,
        };
        let peers = self.peers.iter_mut();
        let hit: Vec<PeerKey> =
            peers.filter_map(|(key, peer)| peer.paths.shrink(is_hit, now_us).then_some(*key)).collect();
        for key in hit {
            self.touch(key);
        }
    }

    fn failed(&mut self, now_us: u64, way: Way) {
        if let Way::Relay { relay, tcp, .. } = way {
            let mut changes = Vec::new();
            self.relays.failed(now_us / 1_000, relay, tcp, &mut changes);
            return self.follow(now_us, &changes);
        }
        let mut hit = Vec::new();
        for (key, peer) in &mut self.peers {
            if peer.paths.is_up(way) {
                hit.push(*key);
            }
            peer.paths.failed(way, now_us);
        }
        for key in hit {
            self.touch(key);
        }
    }

    /// Does what changes at relays ask for.
    fn follow(&mut self, now_us: u64, changes: &[Change]) {
        for change in changes {
            match *change {
                Change::Met { tag, way } => {
                    let Some(key) = self.by_tag.get(&tag).copied() else { continue };
                    let Some(peer) = self.peers.get_mut(&key) else { continue };
                    peer.paths.try_way(way, false, now_us);
                    self.touch(key);
                }
                Change::Parted { tag, way } => {
                    let Some(key) = self.by_tag.get(&tag).copied() else { continue };
                    let Some(peer) = self.peers.get_mut(&key) else { continue };
                    peer.paths.forget(|known| known == way);
                    self.touch(key);
                }
                Change::Moved => self.refresh_candidates(),
                Change::Refused { relay, reason } => {
                    tracing::debug!(relay, reason = reason.code(), "a relay refused a channel");
                }
            }
        }
    }

    /// Makes our candidates what they are now, for everybody to be told.
    fn refresh_candidates(&mut self) {
        let (seen, mapping) = self.relays.seen();
        let (local, seen) =
            if self.privacy.via_relay { Default::default() } else { (self.own.clone(), seen) };
        let relays = self.relays.homes().to_vec();
        let sequence = self.candidates.sequence;
        let new = Candidates { sequence, local, seen, mapping, relays };
        if new != self.candidates {
            self.candidates = Candidates { sequence: sequence.wrapping_add(1), ..new };
            self.touch_all();
        }
    }

    /// Does what is due: relays, then the peers that something happened to or that are due.
    fn run(&mut self, now_us: u64, out: &mut Vec<Output>) {
        if self.relays.next_ms() <= now_us / 1_000 {
            let mut changes = Vec::new();
            self.relays.tick(now_us / 1_000, &mut self.random, out, &mut changes);
            self.follow(now_us, &changes);
        }
        let is_look = now_us >= self.next_look_us;
        if is_look {
            self.next_look_us = now_us + LOOK_EVERY_US;
        }
        out.extend(self.unneeded.drain(..).map(Output::Spare));
        let mut due = std::mem::take(&mut self.touched);
        for (key, peer) in &mut self.peers {
            let has_turned = is_look && peer.look(now_us);
            if is_look {
                peer.observe();
            }
            if (has_turned || peer.wake_us <= now_us) && !due.contains(key) {
                due.push(*key);
            }
        }
        for key in due {
            self.run_peer(now_us, key, out);
        }
        let looks = self.peers.values().any(PeerState::has_session);
        let look_us = if looks { self.next_look_us } else { u64::MAX };
        let peers_us = self.peers.values().map(|peer| peer.wake_us).min().unwrap_or(u64::MAX);
        self.next_us = self.relays.next_ms().saturating_mul(1_000).min(look_us).min(peers_us);
    }

    fn run_peer(&mut self, now_us: u64, key: PeerKey, out: &mut Vec<Output>) {
        self.keep_session(now_us, key, out);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.has_session() {
            peer.probe(now_us, &mut self.random, out);
            peer.tell(now_us, &self.candidates, out);
        }
        self.punch(now_us, key, out);
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if peer.paths.is_relay_suspect() && now_us >= peer.checked_us + CHECK_EVERY_US {
            peer.checked_us = now_us;
            self.relays.check(&peer.tag);
        }
        if peer.reroute() {
            peer.observe();
            self.is_changed = true;
        }
        peer.wake_us = peer.next_us(now_us, self.candidates.sequence).max(now_us + 1);
    }

    fn table(&self) -> Table {
        let mut table = Table { relays: self.relays.table(), ..Table::default() };
        for peer in self.peers.values() {
            table.v4.insert(peer.member.addresses.v4, peer.route.clone());
            table.v6.insert(peer.member.addresses.v6, peer.route.clone());
            for session in peer.sessions.receiving() {
                let receive = Receive { key: session.receive.clone(), peer: peer.peer.clone() };
                table.receive.insert(session.receive.index(), receive);
            }
        }
        table
    }
}

/// Whether an address that a peer named is worth a try from here.
fn is_usable(address: SocketAddr, own: &[SocketAddr]) -> bool {
    let ip = address.ip();
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_nowhere = ip.is_unspecified() || ip.is_multicast() || is_link_local || address.port() == 0;
    let has_family = own.is_empty() || own.iter().any(|own| own.is_ipv4() == address.is_ipv4());
    // Loopback leads to a peer only if both are tried out on one machine.
    let is_near = !ip.is_loopback() || own.iter().any(|own| own.ip().is_loopback());
    !is_nowhere && has_family && is_near && !own.contains(&address)
}
