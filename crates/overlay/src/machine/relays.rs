//! All relays of one member: which are up, over what, where they see us, and the channels wanted at them.
//!
//! What always holds: a relay keeps its number for as long as it is used, as ways bear it; TCP is tried only where the
//! relay is silent over UDP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ring::signature::Ed25519KeyPair;

use crate::{
    RelayAt, Way,
    control::{Mapping, RelayName},
    paths::nat::Seen,
    random::Random,
    relay::{
        client::{Client, Event},
        message::{Answer, Refusal, Tag},
    },
    seam::Output,
};

/// Relays that a member waits at.
const HOMES: usize = 2;
/// Another relay must be this much nearer to take a home's place.
const HOME_STAYS_MS: u64 = 20;

/// What has changed at a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// This way leads to the other member of the pair.
    Met { tag: Tag, way: Way },
    /// This way leads nowhere any more.
    Parted { tag: Tag, way: Way },
    /// Others see us from elsewhere, or our homes are others.
    Moved,
    /// A relay does not want us.
    Refused { relay: u8, reason: Refusal },
}

#[derive(Debug)]
struct Relay {
    at: RelayAt,
    udp: Client,
    tcp: Client,
    second: Client,
    /// The channels that are known to lead to somebody.
    met: BTreeMap<(Tag, bool), u32>,
}

impl Relay {
    fn new(at: RelayAt) -> Self {
        let [udp, tcp, second] = [(); 3].map(|()| Client::new(at.id));
        Self { at, udp, tcp, second, met: BTreeMap::new() }
    }

    fn name(&self) -> RelayName {
        name_of(&self.at)
    }

    fn is_up(&self) -> bool {
        self.udp.is_up() || self.tcp.is_up()
    }

    fn rtt_ms(&self) -> u64 {
        // A relay that is only there over TCP comes after all others.
        self.udp.rtt_ms().filter(|_| self.udp.is_up()).unwrap_or(10_000 + self.tcp.rtt_ms().unwrap_or(0))
    }

    fn needs_tcp(&self) -> bool {
        self.at.tcp.is_some() && !self.udp.is_up() && (self.udp.is_silent() || self.tcp.is_up())
    }
}

fn name_of(at: &RelayAt) -> RelayName {
    let mut name = [0; 8];
    name.copy_from_slice(&at.id[..8]);
    name
}

/// The relays.
#[derive(Debug)]
pub(super) struct Relays {
    key: Ed25519KeyPair,
    all: Vec<Option<Relay>>,
    seen: Seen,
    homes: Vec<RelayName>,
    wanted: BTreeMap<Tag, BTreeSet<RelayName>>,
}

impl Relays {
    pub(super) fn new(key: Ed25519KeyPair) -> Self {
        let (all, homes, wanted) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { key, all, seen: Seen::default(), homes, wanted }
    }

    /// Uses these relays from now on. The ways through those that went are gone; the caller forgets them.
    pub(super) fn set(&mut self, relays: Vec<RelayAt>) {
        for slot in &mut self.all {
            if slot.as_ref().is_some_and(|known| !relays.contains(&known.at)) {
                *slot = None;
            }
        }
        for at in relays.into_iter().take(usize::from(u8::MAX)) {
            if self.all.iter().flatten().any(|known| known.at == at) {
                continue;
            }
            let relay = Some(Relay::new(at));
            match self.all.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => *slot = relay,
                None => self.all.push(relay),
            }
        }
        let wanted: Vec<_> = self.wanted.keys().copied().collect();
        for tag in wanted {
            self.apply(&tag);
        }
    }

    /// Where they are, by number.
    pub(super) fn table(&self) -> Vec<Option<RelayAt>> {
        self.all.iter().map(|slot| slot.as_ref().map(|relay| relay.at.clone())).collect()
    }

    /// Whether a relay of that number is used.
    pub(super) fn has(&self, relay: u8) -> bool {
        self.all.get(usize::from(relay)).is_some_and(Option::is_some)
    }

    /// The relays that we wait at.
    pub(super) fn homes(&self) -> &[RelayName] {
        &self.homes
    }

    /// Addresses that relays see us from, and what that tells about our NAT.
    pub(super) fn seen(&self) -> (Vec<SocketAddr>, Mapping) {
        (self.seen.addresses(), self.seen.mapping())
    }

    /// A channel for this pair is wanted at our homes, and at those of these that we know.
    pub(super) fn want(&mut self, tag: Tag, theirs: &[RelayName]) {
        self.wanted.insert(tag, theirs.iter().copied().collect());
        self.apply(&tag);
    }

    /// No channel is wanted for it any more.
    pub(super) fn unwant(&mut self, tag: &Tag) {
        self.wanted.remove(tag);
        for relay in self.all.iter_mut().flatten() {
            relay.udp.unwant(tag);
            relay.tcp.unwant(tag);
            relay.met.retain(|(met, _), _| met != tag);
        }
    }

    fn apply(&mut self, tag: &Tag) {
        let Some(theirs) = self.wanted.get(tag) else { return };
        for relay in self.all.iter_mut().flatten() {
            let name = relay.name();
            if self.homes.contains(&name) || theirs.contains(&name) {
                relay.udp.want(*tag);
                relay.tcp.want(*tag);
            }
        }
    }

    /// Nothing came by this way: asks whether the channel is still there.
    pub(super) fn check(&mut self, tag: &Tag) {
        for relay in self.all.iter_mut().flatten() {
            relay.udp.check(tag);
            relay.tcp.check(tag);
        }
    }

    /// Our own address has changed.
    pub(super) fn check_all(&mut self) {
        for relay in self.all.iter_mut().flatten() {
            for client in [&mut relay.udp, &mut relay.second, &mut relay.tcp] {
                client.check_all();
            }
        }
    }

    /// The pair that a channel is of.
    pub(super) fn tag_of(&self, way: Way) -> Option<Tag> {
        let Way::Relay { relay, tcp, channel } = way else { return None };
        let relay = self.all.get(usize::from(relay))?.as_ref()?;
        if tcp { relay.tcp.tag_of(channel) } else { relay.udp.tag_of(channel) }.copied()
    }

    /// The ways that are known to lead to the other member of a pair.
    pub(super) fn ways(&self, tag: &Tag) -> Vec<Way> {
        let mut ways = Vec::new();
        for (number, relay) in (0..).zip(&self.all) {
            let met = relay.iter().flat_map(|relay| &relay.met).filter(|((met, _), _)| met == tag);
            ways.extend(met.map(|((_, tcp), channel)| Way::Relay {
                relay: number,
                tcp: *tcp,
                channel: *channel,
            }));
        }
        ways
    }

    /// A message came from a relay.
    pub(super) fn hear(
        &mut self,
        now_ms: u64,
        way: Way,
        bytes: &[u8],
        random: &mut Random,
        changes: &mut Vec<Change>,
    ) {
        let Some(answer) = Answer::parse(bytes) else { return };
        let mut events = Vec::new();
        match way {
            Way::Relay { relay, tcp, channel: Way::TO_RELAY } => {
                let Some(Some(known)) = self.all.get_mut(usize::from(relay)) else { return };
                let client = if tcp { &mut known.tcp } else { &mut known.udp };
                client.hear(now_ms, &answer, random, &mut events);
                self.follow(relay, tcp, events, changes);
            }
            Way::Udp(from) => {
                let asked = self.all.iter_mut().flatten().find(|relay| relay.at.second == Some(from));
                let Some(known) = asked else { return };
                known.second.hear(now_ms, &answer, random, &mut events);
                if let Some(Event::Up(seen)) = events.first() {
                    changes.extend(self.seen.note(from, *seen).then_some(Change::Moved));
                }
            }
            _ => {}
        }
    }

    /// A relay's connection ended, or nothing can be sent to it.
    pub(super) fn failed(&mut self, now_ms: u64, relay: u8, tcp: bool, changes: &mut Vec<Change>) {
        let Some(Some(known)) = self.all.get_mut(usize::from(relay)) else { return };
        let mut events = Vec::new();
        if tcp {
            known.tcp.lost(now_ms, &mut events);
        }
        self.follow(relay, tcp, events, changes);
    }

    fn follow(&mut self, number: u8, tcp: bool, events: Vec<Event>, changes: &mut Vec<Change>) {
        let Some(Some(relay)) = self.all.get_mut(usize::from(number)) else { return };
        let way = |channel| Way::Relay { relay: number, tcp, channel };
        for event in events {
            match event {
                Event::Up(seen) if !tcp => {
                    changes.extend(self.seen.note(relay.at.udp, seen).then_some(Change::Moved));
                }
                Event::Up(_) => changes.push(Change::Moved),
                Event::Down => {
                    self.seen.forget(relay.at.udp);
                    changes.push(Change::Moved);
                }
                Event::Bound { tag, channel, is_met } => {
                    let before = relay.met.remove(&(tag, tcp));
                    if is_met {
                        relay.met.insert((tag, tcp), channel);
                    }
                    let gone = before.filter(|before| !is_met || *before != channel);
                    changes.extend(gone.map(|before| Change::Parted { tag, way: way(before) }));
                    changes.extend(is_met.then_some(Change::Met { tag, way: way(channel) }));
                }
                Event::Unbound { tag } => {
                    let before = relay.met.remove(&(tag, tcp));
                    changes.extend(before.map(|channel| Change::Parted { tag, way: way(channel) }));
                }
                Event::Refused { reason } => changes.push(Change::Refused { relay: number, reason }),
            }
        }
        self.settle_homes(changes);
    }

    /// The nearest relays that are up are our homes; a home stays unless another is clearly nearer.
    fn settle_homes(&mut self, changes: &mut Vec<Change>) {
        let mut up: Vec<_> = self.all.iter().flatten().filter(|relay| relay.is_up()).collect();
        let stays = |relay: &Relay| if self.homes.contains(&relay.name()) { 0 } else { HOME_STAYS_MS };
        up.sort_by_key(|relay| relay.rtt_ms() + stays(relay));
        let mut homes: Vec<_> = up.iter().take(HOMES).map(|relay| relay.name()).collect();
        homes.sort_unstable();
        if homes != self.homes {
            self.homes = homes;
            changes.push(Change::Moved);
            let wanted: Vec<_> = self.wanted.keys().copied().collect();
            for tag in wanted {
                self.apply(&tag);
            }
        }
    }

    /// When something is due.
    pub(super) fn next_ms(&self) -> u64 {
        let due = self.all.iter().flatten().map(|relay| {
            let tcp_ms = if relay.needs_tcp() { relay.tcp.next_ms() } else { u64::MAX };
            let second_ms = if relay.at.second.is_some() { relay.second.next_ms() } else { u64::MAX };
            relay.udp.next_ms().min(tcp_ms).min(second_ms)
        });
        due.min().unwrap_or(u64::MAX)
    }

    /// Asks what is due.
    pub(super) fn tick(
        &mut self,
        now_ms: u64,
        random: &mut Random,
        out: &mut Vec<Output>,
        changes: &mut Vec<Change>,
    ) {
        for number in 0..u8::try_from(self.all.len()).unwrap_or(u8::MAX) {
            for tcp in [false, true] {
                let Some(Some(relay)) = self.all.get_mut(usize::from(number)) else { continue };
                let (mut asked, mut events) = (Vec::new(), Vec::new());
                let client = match tcp {
                    false => &mut relay.udp,
                    true if relay.needs_tcp() => &mut relay.tcp,
                    true => continue,
                };
                client.tick(now_ms, random, &self.key, &mut asked, &mut events);
                let way = Way::Relay { relay: number, tcp, channel: Way::TO_RELAY };
                out.extend(asked.into_iter().map(|bytes| Output::Send { way, bytes }));
                if !events.is_empty() {
                    self.follow(number, tcp, events, changes);
                }
            }
            self.ask_second(now_ms, number, random, out);
        }
    }

    fn ask_second(&mut self, now_ms: u64, number: u8, random: &mut Random, out: &mut Vec<Output>) {
        let Some(Some(relay)) = self.all.get_mut(usize::from(number)) else { return };
        let Some(second) = relay.at.second else { return };
        let (mut asked, mut events) = (Vec::new(), Vec::new());
        relay.second.tick(now_ms, random, &self.key, &mut asked, &mut events);
        out.extend(asked.into_iter().map(|bytes| Output::Send { way: Way::Udp(second), bytes }));
        if events.contains(&Event::Down) {
            self.seen.forget(second);
        }
    }
}
