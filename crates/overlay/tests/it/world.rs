//! A network in memory: members' machines, relays' rules, NATs, delay, loss, cuts. Everything follows from a seed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ionet_overlay::{
    Addresses, Config, Member, PeerKey, Privacy, RelayAt, Way,
    handshake::Identity,
    machine::Machine,
    privacy::CoverPlan,
    random::Random,
    relay::{End, Limits, Rules},
    seam::{Hop, Input, Output, Spare, Table},
};

pub(crate) const MS: u64 = 1_000;
pub(crate) const S: u64 = 1_000_000;
const PORT: u16 = 4000;
const RELAY_PORT: u16 = 3478;
const CONTROL: u8 = 0x40;

/// How a NAT chooses ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maps {
    /// One for all destinations.
    Once,
    /// The next for each destination.
    Steps(i32),
    /// Any for each destination.
    Randomly,
}

/// Whom a NAT lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lets {
    Anybody,
    /// Addresses and ports spoken to.
    Spoken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NatKind {
    pub(crate) maps: Maps,
    pub(crate) lets: Lets,
    pub(crate) blocks_udp: bool,
}

pub(crate) const FULL_CONE: NatKind = NatKind { maps: Maps::Once, lets: Lets::Anybody, blocks_udp: false };
pub(crate) const CONE: NatKind = NatKind { maps: Maps::Once, lets: Lets::Spoken, blocks_udp: false };
pub(crate) const STEPPING: NatKind = NatKind { maps: Maps::Steps(1), lets: Lets::Spoken, blocks_udp: false };
pub(crate) const SYMMETRIC: NatKind = NatKind { maps: Maps::Randomly, lets: Lets::Spoken, blocks_udp: false };
pub(crate) const NO_UDP: NatKind = NatKind { blocks_udp: true, ..CONE };

struct Nat {
    kind: NatKind,
    outer_net: usize,
    outer_ip: IpAddr,
    ports: BTreeMap<(SocketAddr, Option<SocketAddr>), u16>,
    inner: BTreeMap<u16, SocketAddr>,
    spoken: BTreeSet<(u16, SocketAddr)>,
    next: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Node(usize),
    Relay(usize),
}

pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) table: Arc<Table>,
    pub(crate) key: PeerKey,
    pub(crate) addresses: Addresses,
    pub(crate) net: usize,
    pub(crate) own: Vec<SocketAddr>,
    /// Spare sockets, and those that were kept, by whom they are for.
    pub(crate) spares: Vec<SocketAddr>,
    pub(crate) kept: BTreeMap<SocketAddr, SocketAddr>,
    /// How often spare sockets were opened.
    pub(crate) attempts: u32,
    /// What was let through: from whom, and the payload's first bytes.
    pub(crate) got: Vec<(u64, PeerKey, u64)>,
    pub(crate) is_on: bool,
    /// Packets that did not open, and those of no session.
    pub(crate) strange: u64,
    pub(crate) sent: u64,
    pub(crate) ticks: u64,
}

impl Node {
    fn has(&self, address: &SocketAddr) -> bool {
        let kept = || self.kept.values().any(|kept| kept == address);
        self.own.contains(address) || self.spares.contains(address) || kept()
    }
}

pub(crate) struct Relay {
    pub(crate) rules: Rules,
    pub(crate) ip: IpAddr,
    id: [u8; 32],
    pub(crate) is_on: bool,
}

enum Event {
    Datagram { from: SocketAddr, to: SocketAddr, net: usize, sender: Host, bytes: Vec<u8> },
    Introduced { from: PeerKey, to: PeerKey, bytes: Vec<u8> },
    ToRelayTcp { relay: usize, node: usize, bytes: Vec<u8> },
    FromRelayTcp { relay: usize, node: usize, bytes: Vec<u8> },
    Failed { node: usize, way: Way },
}

/// What the network does to packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) delay_us: u64,
    pub(crate) jitter_us: u64,
    pub(crate) loss_ppm: u64,
    pub(crate) twice_ppm: u64,
}

pub(crate) const FAIR: Weather = Weather { delay_us: 10 * MS, jitter_us: 500, loss_ppm: 0, twice_ppm: 0 };

pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) random: Random,
    pub(crate) nodes: Vec<Node>,
    pub(crate) relays: Vec<Relay>,
    nats: Vec<Option<Nat>>,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    waiting: BTreeMap<usize, Event>,
    sequence: u64,
    pub(crate) weather: Weather,
    pub(crate) is_introducer_on: bool,
    pub(crate) introduced: u64,
    /// Cut one way between two hosts.
    pub(crate) cuts: BTreeSet<(Host, Host)>,
    /// The largest datagram that passes between two hosts.
    pub(crate) most_bytes: BTreeMap<(Host, Host), usize>,
    members: Vec<Member>,
    pub(crate) privacy: Privacy,
    /// Every datagram between two hosts, by bytes.
    pub(crate) traffic: BTreeMap<(Host, Host), u64>,
}

pub(crate) fn public(n: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, n])
}

impl World {
    pub(crate) fn new(seed: u64, relays: usize) -> Self {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut world = Self {
            now_us: 1_000 * S,
            random: Random::new(&bytes),
            nodes: Vec::new(),
            relays: Vec::new(),
            nats: vec![None],
            events: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            sequence: 0,
            weather: FAIR,
            is_introducer_on: true,
            introduced: 0,
            cuts: BTreeSet::new(),
            most_bytes: BTreeMap::new(),
            members: Vec::new(),
            privacy: Privacy::default(),
            traffic: BTreeMap::new(),
        };
        for n in 0..relays {
            let id = [u8::try_from(n).unwrap() + 1; 32];
            let ip = IpAddr::from([198, 51, 100, u8::try_from(n).unwrap() + 1]);
            let rules = Rules::new(id, &world.random.seed(), Limits::default(), Box::new(|_| true));
            world.relays.push(Relay { rules, ip, id, is_on: true });
        }
        world
    }

    /// A network behind a NAT; network 0 is the internet.
    pub(crate) fn nat(&mut self, kind: NatKind, outer_net: usize, outer_ip: IpAddr) -> usize {
        let next = 20_000 + i32::try_from(self.random.below(20_000)).unwrap();
        self.nats.push(Some(Nat {
            kind,
            outer_net,
            outer_ip,
            ports: BTreeMap::new(),
            inner: BTreeMap::new(),
            spoken: BTreeSet::new(),
            next,
        }));
        self.nats.len() - 1
    }

    /// Somebody else behind a NAT takes that many ports.
    pub(crate) fn take_ports(&mut self, net: usize, ports: u64) {
        self.nats[net].as_mut().unwrap().next += i32::try_from(ports).unwrap();
    }

    /// Changes what a NAT does, and makes it forget all.
    pub(crate) fn change_nat(&mut self, net: usize, kind: NatKind, outer_ip: IpAddr) {
        let nat = self.nats[net].as_mut().unwrap();
        (nat.kind, nat.outer_ip) = (kind, outer_ip);
        nat.ports.clear();
        nat.inner.clear();
        nat.spoken.clear();
    }

    /// A member in a network.
    pub(crate) fn node(&mut self, net: usize) -> usize {
        self.node_of(net, "cluster", true)
    }

    pub(crate) fn node_of(&mut self, net: usize, cluster: &str, is_member: bool) -> usize {
        let n = self.nodes.len();
        let number = u8::try_from(n + 1).unwrap();
        let ip = if net == 0 {
            public(100 + number)
        } else {
            IpAddr::from([10, 0, u8::try_from(net).unwrap(), number])
        };
        let seed = self.random.seed();
        let key = Identity::new(cluster, &seed).key();
        let addresses = Addresses {
            v4: Ipv4Addr::new(10, 99, 0, number),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()),
        };
        if is_member {
            self.members.push(Member { key, addresses, eager: false });
        }
        let config = Config {
            cluster: cluster.into(),
            key_seed: seed,
            me: addresses,
            members: Vec::new(),
            relays: self.relays.iter().map(relay_at).collect(),
            listen: SocketAddr::from(([0; 4], 0)),
            mtu: 1400,
            privacy: self.privacy,
            cover: CoverPlan::default(),
        };
        let machine = Machine::new(&config, &self.random.seed()).unwrap();
        let own = vec![SocketAddr::new(ip, PORT)];
        let table = Arc::default();
        self.nodes.push(Node {
            machine,
            table,
            key,
            addresses,
            net,
            own,
            spares: Vec::new(),
            kept: BTreeMap::new(),
            attempts: 0,
            got: Vec::new(),
            is_on: true,
            strange: 0,
            sent: 0,
            ticks: 0,
        });
        n
    }

    /// Tells everybody who the members are, and where they are.
    pub(crate) fn begin(&mut self) {
        for n in 0..self.nodes.len() {
            let own = self.nodes[n].own.clone();
            self.input(n, Input::OwnAddresses(own));
            let members = self.members.clone();
            self.input(n, Input::Members(members));
        }
    }

    pub(crate) fn set_members(&mut self, is_member: impl Fn(&Member) -> bool) {
        self.members.retain(|member| is_member(member));
        for n in 0..self.nodes.len() {
            let members = self.members.clone();
            self.input(n, Input::Members(members));
        }
    }

    pub(crate) fn make_eager(&mut self) {
        self.members.iter_mut().for_each(|member| member.eager = true);
    }

    pub(crate) fn input(&mut self, n: usize, input: Input<'_>) {
        if !self.nodes[n].is_on {
            return;
        }
        let mut out = Vec::new();
        self.nodes[n].machine.step(self.now_us, input, &mut out);
        for output in out {
            match output {
                Output::Publish(table) => self.nodes[n].table = table,
                Output::Send { way, bytes } => self.send(n, way, bytes),
                Output::Introduce { to, bytes } => self.introduce(n, to, bytes),
                Output::Spare(spare) => self.spare(n, spare),
            }
        }
    }

    fn spare(&mut self, n: usize, spare: Spare) {
        let node = &mut self.nodes[n];
        let at = |number: u16| SocketAddr::new(node.own[0].ip(), 10_000 + number);
        match spare {
            Spare::Open { count } => {
                assert!(node.spares.is_empty(), "one attempt at a time");
                node.attempts += 1;
                // Ports that were kept go on being used.
                let taken: BTreeSet<SocketAddr> = node.kept.values().copied().collect();
                let free = (0..).map(at).filter(|spare| !taken.contains(spare));
                node.spares = free.take(count.into()).collect();
            }
            Spare::Send { number, to, bytes } => {
                let (net, from) = (node.net, node.spares[usize::from(number)]);
                self.datagram(Host::Node(n), net, from, to, &bytes);
            }
            Spare::Keep { number, to } => {
                let from = std::mem::take(&mut node.spares)[usize::from(number)];
                node.kept.insert(to, from);
            }
            Spare::Close => node.spares.clear(),
            Spare::Release { to } => drop(node.kept.remove(&to)),
        }
    }

    fn introduce(&mut self, n: usize, to: PeerKey, bytes: Vec<u8>) {
        self.introduced += 1;
        if self.is_introducer_on {
            let at_us = self.now_us + self.weather.delay_us * 2;
            let from = self.nodes[n].key;
            self.at(at_us, Event::Introduced { from, to, bytes });
        }
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        let id = usize::try_from(self.sequence).unwrap();
        self.events.push(Reverse((at_us, self.sequence, id)));
        self.waiting.insert(id, event);
    }

    fn send(&mut self, n: usize, way: Way, bytes: Vec<u8>) {
        let node = &mut self.nodes[n];
        node.sent += 1;
        let (net, own) = (node.net, node.own.clone());
        let at = |to: SocketAddr| own.iter().find(|own| own.is_ipv4() == to.is_ipv4()).copied();
        match way {
            Way::Introducer => panic!("the introducer is not sent by"),
            Way::Udp(to) => {
                let kept = node.kept.get(&to).copied();
                let Some(from) = kept.or_else(|| at(to)) else { return };
                self.datagram(Host::Node(n), net, from, to, &bytes);
            }
            Way::Relay { relay, tcp, channel } => {
                let mut whole =
                    if channel == Way::TO_RELAY { Vec::new() } else { channel.to_be_bytes().to_vec() };
                whole.extend(bytes);
                let relay = usize::from(relay);
                let to = SocketAddr::new(self.relays[relay].ip, RELAY_PORT);
                if tcp {
                    let delay_us = self.weather.delay_us;
                    let event = if self.relays[relay].is_on {
                        Event::ToRelayTcp { relay, node: n, bytes: whole }
                    } else {
                        Event::Failed { node: n, way }
                    };
                    self.at(self.now_us + delay_us, event);
                } else if let Some(from) = at(to) {
                    self.datagram(Host::Node(n), net, from, to, &whole);
                }
            }
        }
    }

    fn datagram(&mut self, sender: Host, net: usize, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let Weather { delay_us, jitter_us, loss_ppm, twice_ppm } = self.weather;
        let times = 1 + usize::from(self.random.below(1_000_000) < twice_ppm);
        for _ in 0..times {
            if self.random.below(1_000_000) < loss_ppm {
                continue;
            }
            let at_us = self.now_us + delay_us + self.random.below(jitter_us + 1);
            self.at(at_us, Event::Datagram { from, to, net, sender, bytes: bytes.to_vec() });
        }
    }

    /// Carries a datagram through NATs to whoever has the address; `None` if nobody has, or a NAT lets it not pass. Says
    /// from where it seems to come, and at which address it ends.
    fn route(
        &mut self,
        mut net: usize,
        mut from: SocketAddr,
        mut to: SocketAddr,
    ) -> Option<(Host, SocketAddr, SocketAddr)> {
        for _ in 0..8 {
            let node = self.nodes.iter().position(|node| node.is_on && node.net == net && node.has(&to));
            if let Some(node) = node {
                return Some((Host::Node(node), from, to));
            }
            let relay = self.relays.iter().position(|relay| net == 0 && relay.ip == to.ip() && relay.is_on);
            if let Some(relay) = relay {
                return Some((Host::Relay(relay), from, to));
            }
            let inward = self.nats.iter().position(|nat| {
                nat.as_ref().is_some_and(|nat| nat.outer_net == net && nat.outer_ip == to.ip())
            });
            if let Some(inner) = inward {
                let nat = self.nats[inner].as_ref()?;
                let is_let = nat.kind.lets == Lets::Anybody || nat.spoken.contains(&(to.port(), from));
                if nat.kind.blocks_udp || !is_let {
                    return None;
                }
                (net, to) = (inner, *nat.inner.get(&to.port())?);
                continue;
            }
            let mut wish = u16::try_from(1_024 + self.random.below(64_512)).unwrap();
            let nat = self.nats[net].as_mut()?;
            while nat.inner.contains_key(&wish) {
                wish = wish.checked_add(1).unwrap_or(1_024);
            }
            if nat.kind.blocks_udp {
                return None;
            }
            let destination = if nat.kind.maps == Maps::Once { None } else { Some(to) };
            let port = if let Some(port) = nat.ports.get(&(from, destination)) {
                *port
            } else {
                if let Maps::Steps(step) = nat.kind.maps {
                    nat.next += step;
                    wish = u16::try_from(nat.next).unwrap();
                }
                nat.ports.insert((from, destination), wish);
                nat.inner.insert(wish, from);
                wish
            };
            nat.spoken.insert((port, to));
            (from, net) = (SocketAddr::new(nat.outer_ip, port), nat.outer_net);
        }
        None
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Datagram { from, to, net, sender, bytes } => {
                let Some((host, seen, inner)) = self.route(net, from, to) else { return };
                let most = self.most_bytes.get(&(sender, host)).copied().unwrap_or(1472);
                if self.cuts.contains(&(sender, host)) || bytes.len() > most {
                    return;
                }
                *self.traffic.entry((sender, host)).or_default() += bytes.len() as u64;
                match host {
                    Host::Node(n) => {
                        let number = self.nodes[n].spares.iter().position(|spare| *spare == inner);
                        if let Some(number) = number {
                            let number = u16::try_from(number).unwrap();
                            self.input(n, Input::Spare { number, from: seen });
                        }
                        self.receive(n, seen, bytes);
                    }
                    Host::Relay(r) => {
                        let socket = u8::from(to.port() != RELAY_PORT);
                        self.relay(r, End::Udp { socket, address: seen, at: None }, seen, &bytes);
                    }
                }
            }
            Event::Introduced { from, to, bytes } => {
                let Some(n) = self.nodes.iter().position(|node| node.key == to) else { return };
                if bytes[0] == 0 {
                    self.input(n, Input::Introduced { from, bytes: &bytes });
                } else {
                    self.open(n, Way::Introducer, bytes);
                }
            }
            Event::ToRelayTcp { relay, node, bytes } => {
                let seen = SocketAddr::from(([192, 0, 2, 1], 1));
                self.relay(relay, End::Tcp(node as u64), seen, &bytes);
            }
            Event::FromRelayTcp { relay, node, bytes } => self.heard_relay(node, relay, true, bytes),
            Event::Failed { node, way } => {
                self.input(node, Input::Failed { way, error: std::io::ErrorKind::ConnectionRefused });
            }
        }
    }

    fn relay(&mut self, r: usize, from: End, seen: SocketAddr, bytes: &[u8]) {
        if !self.relays[r].is_on {
            return;
        }
        let now_ms = self.now_us / 1_000;
        let channel = bytes.first_chunk().map_or(0, |first| u32::from_be_bytes(*first));
        let rules = &mut self.relays[r].rules;
        rules.sweep(now_ms);
        if channel >> 31 == 1 {
            if let Some(to) = rules.forward(now_ms, channel, from, 1, bytes.len() as u64) {
                self.relay_sends(r, to, bytes.to_vec());
            }
            return;
        }
        let mut replies = Vec::new();
        rules.hear(now_ms, from, seen, bytes, &mut replies);
        for (to, answer) in replies {
            let answer = answer.write();
            assert!(to != from || answer.len() <= bytes.len(), "an answer is longer than its question");
            self.relay_sends(r, to, answer);
        }
    }

    fn relay_sends(&mut self, r: usize, to: End, bytes: Vec<u8>) {
        match to {
            End::Udp { socket, address, .. } => {
                let from = SocketAddr::new(self.relays[r].ip, RELAY_PORT + u16::from(socket));
                self.datagram(Host::Relay(r), 0, from, address, &bytes);
            }
            End::Tcp(node) => {
                let at_us = self.now_us + self.weather.delay_us;
                let node = usize::try_from(node).unwrap();
                self.at(at_us, Event::FromRelayTcp { relay: r, node, bytes });
            }
        }
    }

    fn receive(&mut self, n: usize, from: SocketAddr, bytes: Vec<u8>) {
        let relay = self.relays.iter().position(|relay| from == SocketAddr::new(relay.ip, RELAY_PORT));
        match relay {
            Some(relay) => self.heard_relay(n, relay, false, bytes),
            None => self.open(n, Way::Udp(from), bytes),
        }
    }

    fn heard_relay(&mut self, n: usize, relay: usize, tcp: bool, mut bytes: Vec<u8>) {
        let first = u32::from_be_bytes(*bytes.first_chunk().unwrap());
        let relay = u8::try_from(relay).unwrap();
        let channel = if first >> 31 == 1 { first } else { Way::TO_RELAY };
        if channel != Way::TO_RELAY {
            bytes.drain(..4);
        }
        self.open(n, Way::Relay { relay, tcp, channel }, bytes);
    }

    /// What the thread that receives does.
    fn open(&mut self, n: usize, way: Way, mut bytes: Vec<u8>) {
        if bytes.first().is_none_or(|first| *first == 0) {
            return self.input(n, Input::Packet { way, bytes: &bytes });
        }
        let packet_bytes = bytes.len();
        let Some(index) = bytes.first_chunk().map(|index| u32::from_be_bytes(*index)) else { return };
        let table = self.nodes[n].table.clone();
        let Some(receive) = table.receive.get(&index) else {
            self.nodes[n].strange += 1;
            return;
        };
        let mut opener = receive.key.opener();
        let Ok(plain) = opener.open(&mut bytes) else {
            self.nodes[n].strange += 1;
            return;
        };
        let (kind, body) = (plain[0], plain[12..].to_vec());
        let is_news = opener.came(way);
        drop(opener);
        if is_news {
            self.input(n, Input::Used { index, way });
        }
        if kind == CONTROL {
            self.input(n, Input::Control { index, way, body: &body, packet_bytes });
        } else {
            let what = u64::from_be_bytes(*body.first_chunk().unwrap());
            receive.peer.counters.received(1, body.len());
            self.nodes[n].got.push((self.now_us, receive.peer.key, what));
        }
    }

    /// Sends a data packet by the table; whether there was a way for it.
    pub(crate) fn data(&mut self, n: usize, to: usize, what: u64, bytes: usize) -> bool {
        let route = self.nodes[n].table.route(self.nodes[to].addresses.v4.into()).cloned();
        let Some(route) = route else { return false };
        let Some(key) = &route.send else {
            if route.peer.want() {
                self.input(n, Input::Wanted { peer: route.peer.key });
            }
            return false;
        };
        let used: Vec<Hop> = route.hops.iter().filter(|hop| hop.weight > 0).copied().collect();
        let hop = used[usize::try_from(what).unwrap() % used.len()];
        let mut plain = vec![0; 12];
        plain.extend(what.to_be_bytes());
        plain.resize(bytes.clamp(20, usize::from(hop.packet_bytes) - 28), 0);
        let sealed = key.seal_alone(&plain).unwrap();
        route.peer.counters.sent(1, bytes);
        match hop.way {
            Way::Introducer => self.introduce(n, route.peer.key, sealed),
            way => self.send(n, way, sealed),
        }
        true
    }

    /// Lets everything happen until then.
    pub(crate) fn run_until(&mut self, until_us: u64) {
        while self.next_us() <= until_us {
            self.advance();
        }
        self.now_us = until_us;
    }

    pub(crate) fn run_for(&mut self, us: u64) {
        self.run_until(self.now_us + us);
    }

    /// Lets everything happen until the condition holds; how long that took.
    pub(crate) fn run_to(&mut self, most_us: u64, is_done: impl Fn(&Self) -> bool) -> Option<u64> {
        let began_us = self.now_us;
        while !is_done(self) {
            if self.next_us() > began_us + most_us {
                return None;
            }
            self.advance();
        }
        Some(self.now_us - began_us)
    }

    fn next_us(&self) -> u64 {
        let event_us = self.events.peek().map_or(u64::MAX, |Reverse((at_us, ..))| *at_us);
        let on = self.nodes.iter().filter(|node| node.is_on);
        on.map(|node| node.machine.next_us()).fold(event_us, u64::min)
    }

    fn advance(&mut self) {
        let next_us = self.next_us();
        self.now_us = self.now_us.max(next_us);
        if self.events.peek().is_some_and(|Reverse((at_us, ..))| *at_us <= next_us) {
            let Reverse((_, _, id)) = self.events.pop().unwrap();
            let event = self.waiting.remove(&id).unwrap();
            return self.happen(event);
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].is_on && self.nodes[n].machine.next_us() <= next_us {
                self.nodes[n].ticks += 1;
                self.input(n, Input::Tick);
                return;
            }
        }
    }

    /// The ways that carry the traffic of one member to another.
    pub(crate) fn ways(&self, n: usize, to: usize) -> Vec<Way> {
        let route = self.nodes[n].table.route(self.nodes[to].addresses.v4.into());
        let hops =
            route.filter(|route| route.send.is_some()).map(|route| route.hops.clone()).unwrap_or_default();
        hops.iter().filter(|hop| hop.weight > 0).map(|hop| hop.way).collect()
    }

    /// The sizes that those ways take.
    pub(crate) fn packet_bytes(&self, n: usize, to: usize) -> Vec<u16> {
        let route = self.nodes[n].table.route(self.nodes[to].addresses.v4.into()).expect("a member");
        route.hops.iter().filter(|hop| hop.weight > 0).map(|hop| hop.packet_bytes).collect()
    }

    pub(crate) fn handshakes(&self, n: usize, to: usize) -> u64 {
        let route = self.nodes[n].table.route(self.nodes[to].addresses.v4.into()).expect("a member");
        route.peer.observed().handshakes
    }

    pub(crate) fn is_direct(&self, n: usize, to: usize) -> bool {
        self.ways(n, to).iter().any(|way| matches!(way, Way::Udp(_)))
    }

    pub(crate) fn is_relayed(&self, n: usize, to: usize) -> bool {
        self.ways(n, to).iter().any(|way| matches!(way, Way::Relay { .. }))
    }

    /// Whether a packet of that content was let through.
    pub(crate) fn has(&self, n: usize, what: u64) -> bool {
        self.nodes[n].got.iter().any(|(_, _, got)| *got == what)
    }

    /// Sends packets every so often, and runs meanwhile; the longest time in which none came.
    pub(crate) fn stream(&mut self, n: usize, to: usize, every_us: u64, for_us: u64) -> u64 {
        let (began_us, before) = (self.now_us, self.nodes[to].got.len());
        let mut what = 1_000_000 + began_us;
        while self.now_us < began_us + for_us {
            what += 1;
            self.data(n, to, what, 200);
            self.run_for(every_us);
        }
        let key = self.nodes[n].key;
        let came =
            self.nodes[to].got[before..].iter().filter(|(_, from, _)| *from == key).map(|(at_us, ..)| *at_us);
        let mut times: Vec<u64> = std::iter::once(began_us).chain(came).chain([self.now_us]).collect();
        times.sort_unstable();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }

    /// Starts a relay anew: it has forgotten everything.
    pub(crate) fn restart_relay(&mut self, r: usize) {
        let id = self.relays[r].id;
        let secret = self.random.seed();
        self.relays[r].rules = Rules::new(id, &secret, Limits::default(), Box::new(|_| true));
        self.relays[r].is_on = true;
    }
}

fn relay_at(relay: &Relay) -> RelayAt {
    RelayAt {
        id: relay.id,
        udp: SocketAddr::new(relay.ip, RELAY_PORT),
        second: Some(SocketAddr::new(relay.ip, RELAY_PORT + 1)),
        tcp: Some(SocketAddr::new(relay.ip, 443)),
    }
}
