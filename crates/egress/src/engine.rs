//! The loop: packets of the box, sockets of the host, timers and orders, one after another in one thread.
//!
//! Always holds: every TCP connection, UDP flow and lookup has an id of its own that is never used again; the count of
//! each is below its limit; a packet or event costs the same however many there are.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ionet_domain::market::Egress;
use ionet_domain::market::egress::Net;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::SocketType;

use crate::dns::{self, No};
use crate::host::Host;
use crate::io::{Io, TUN, WAKE, add};
use crate::packet::{self, Packet, Pair, TcpHead, Unreachable};
use crate::policy::Policy;
use crate::stack::Stack;
use crate::tcp::{Connection, Next, answer_failed_dial};
use crate::udp::{Flow, IDLE_MS, Lookup, TRIES};
use crate::{Config, RESOLVER, Shared};

const DNS: u16 = 53;
/// Packets of the box before others have their turn.
const PACKETS: usize = 64;
const EVENTS: usize = 128;
/// The largest packet and the largest datagram.
const BUFFER_BYTES: usize = 64 << 10;

/// A connection has two buffers of this size: the first ones large, so that one stream is fast; the more there are,
/// the smaller. All connections of the usual limit together have 22 MiB.
fn stack_buffer_bytes(open: usize) -> usize {
    match open {
        ..16 => 256 << 10,
        16..64 => 64 << 10,
        64..256 => 16 << 10,
        _ => 4 << 10,
    }
}

enum Party {
    Tcp(Box<Connection>),
    Udp(Flow),
    Lookup(Lookup),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Tcp,
    Udp,
}

#[derive(Default)]
struct Count {
    tcp: usize,
    dialing: usize,
    udp: usize,
    lookups: usize,
}

pub(crate) struct Engine {
    config: Config,
    shared: Arc<Shared>,
    io: Io,
    policy: Policy,
    host: Host,
    own: Vec<IpAddr>,
    parties: HashMap<u64, Party>,
    pairs: HashMap<(Kind, Pair), u64>,
    count: Count,
    /// Whose turn comes again.
    queue: VecDeque<u64>,
    last_id: u64,
    began: Instant,
    buffer: Vec<u8>,
}

impl Engine {
    pub(crate) fn new(config: Config, device: OwnedFd, shared: Arc<Shared>) -> io::Result<Self> {
        let io = Io::new(device, &shared.wake, config.mtu)?;
        let policy = Policy::new(config.rules.clone(), config.open.clone());
        let host = Host::new(config.resolv_conf.clone());
        let mut engine = Self {
            config,
            shared,
            io,
            policy,
            host,
            own: Vec::new(),
            parties: HashMap::new(),
            pairs: HashMap::new(),
            count: Count::default(),
            queue: VecDeque::new(),
            last_id: WAKE,
            began: Instant::now(),
            buffer: vec![0; BUFFER_BYTES],
        };
        engine.look_at_host();
        Ok(engine)
    }

    /// Runs until it is told to stop or the device is gone.
    pub(crate) fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        while let Ok(()) = self.io.wait(&mut events, !self.queue.is_empty()) {
            self.io.now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            for event in &events {
                let (id, flags) = (event.data.u64(), event.flags);
                let goes_on = match id {
                    TUN => self.take_packets().is_ok(),
                    WAKE => self.obey(),
                    _ => {
                        self.event(id, flags);
                        true
                    }
                };
                if !goes_on {
                    return;
                }
            }
            while let Some(id) = self.io.due() {
                self.timer(id);
            }
            for _ in 0..self.queue.len() {
                self.queue.pop_front().inspect(|id| self.turn(*id));
            }
        }
    }

    fn obey(&mut self) -> bool {
        let orders = self.shared.take_orders();
        if let Some(own) = orders.own {
            self.own = own;
            self.host = Host::new(self.config.resolv_conf.clone());
        }
        if let Some(rules) = orders.rules {
            self.policy.rules = rules;
        }
        self.look_at_host();
        self.cut_forbidden();
        !orders.stop
    }

    fn look_at_host(&mut self) {
        if self.host.look(self.io.now_ms) {
            let own = self.own.iter().map(|address| Net::host(*address));
            self.policy.guard.near = self.host.nets.iter().copied().chain(own).collect();
        }
    }

    /// Ends what the rules no longer allow.
    fn cut_forbidden(&mut self) {
        let policy = &self.policy;
        let resolver = |pair: &Pair| is_resolver(pair.to) && policy.rules.egress == Egress::On;
        let allowed = |party: &Party| match party {
            Party::Tcp(it) => resolver(&it.pair) || policy.admits_as(it.pair.to, &it.names),
            Party::Udp(it) => policy.admits_as(it.pair.to, &it.names),
            Party::Lookup(it) => policy.admits_name(&it.question.name),
        };
        let forbidden: Vec<u64> =
            self.parties.iter().filter(|(_, party)| !allowed(party)).map(|(id, _)| *id).collect();
        for id in forbidden {
            if let Some(Party::Tcp(connection)) = self.forget(id) {
                connection.cut(&mut self.io);
            }
        }
    }

    fn take_packets(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let taken = (|| {
            for _ in 0..PACKETS {
                let Some(n) = self.io.read_packet(&mut buffer)? else { break };
                self.packet(&buffer[..n]);
            }
            Ok(())
        })();
        self.buffer = buffer;
        taken
    }

    fn packet(&mut self, bytes: &[u8]) {
        match packet::read(bytes) {
            Some(Packet::Tcp { pair, head }) if self.is_of_box(&pair) => self.segment(pair, head, bytes),
            Some(Packet::Udp { pair, payload }) if self.is_of_box(&pair) => {
                self.datagram(pair, payload, bytes);
            }
            _ => {}
        }
    }

    fn is_of_box(&self, pair: &Pair) -> bool {
        self.config.sources.contains(&pair.from.ip())
    }

    fn segment(&mut self, pair: Pair, head: TcpHead, bytes: &[u8]) {
        match self.pairs.get(&(Kind::Tcp, pair)).copied() {
            Some(id) => self.with_connection(id, |connection, io| connection.packet(&head, bytes, io)),
            None if head.is_syn() => self.open(pair, head, bytes),
            None if head.is_rst() => {}
            None => self.io.write_packet(packet::reset_into_box(&pair, &head)),
        }
    }

    /// The box wants to connect.
    fn open(&mut self, pair: Pair, head: TcpHead, syn: &[u8]) {
        self.look_at_host();
        let names = self.policy.names_of(pair.to.ip(), self.io.now_ms);
        let to = if is_resolver(pair.to) && self.policy.rules.egress == Egress::On {
            self.host.name_servers[0]
        } else if self.policy.admits_as(pair.to, &names) {
            pair.to
        } else {
            return self.refuse(syn);
        };
        if self.count.tcp >= self.config.limits.connections
            || self.count.dialing >= self.config.limits.dialing
        {
            // It asks again by itself.
            return add(&self.shared.counters.limited, 1);
        }
        let id = self.next_id();
        match self.io.dial(id, SocketType::STREAM, to) {
            Ok(socket) => {
                let until_ms = self.io.now_ms + self.config.limits.dial_ms;
                let it = Connection::dialing(pair, names, socket, (syn, head), until_ms);
                self.enter(id, Party::Tcp(Box::new(it)));
            }
            Err(error) => answer_failed_dial(&pair, &head, syn, error, &self.io),
        }
    }

    fn refuse(&mut self, packet: &[u8]) {
        add(&self.shared.counters.refused, 1);
        self.io.write_packet(packet::unreachable_into_box(packet, Unreachable::Prohibited));
    }

    fn datagram(&mut self, pair: Pair, payload: &[u8], bytes: &[u8]) {
        if is_resolver(pair.to) {
            return self.look_up(pair, payload);
        }
        if let Some(Party::Udp(flow)) =
            self.pairs.get(&(Kind::Udp, pair)).and_then(|id| self.parties.get_mut(id))
        {
            return flow.outward(payload, self.io.now_ms, &self.shared.counters);
        }
        self.look_at_host();
        let names = self.policy.names_of(pair.to.ip(), self.io.now_ms);
        if !self.policy.admits_as(pair.to, &names) {
            return self.refuse(bytes);
        }
        if self.count.udp >= self.config.limits.flows {
            return add(&self.shared.counters.limited, 1);
        }
        let id = self.next_id();
        let Ok(socket) = self.io.dial(id, SocketType::DGRAM, pair.to) else {
            return self.io.write_packet(packet::unreachable_into_box(bytes, Unreachable::Host));
        };
        let now_ms = self.io.now_ms;
        let mut flow = Flow { pair, names, timer: None, used_ms: now_ms, socket, queued: false };
        flow.outward(payload, now_ms, &self.shared.counters);
        self.enter(id, Party::Udp(flow));
    }

    /// The box asks for a name.
    fn look_up(&mut self, pair: Pair, query: &[u8]) {
        let Some(question) = dns::question(query) else { return };
        if !self.policy.admits_name(&question.name) {
            add(&self.shared.counters.refused, 1);
            let no = dns::refusal(query, &question, No::Refused);
            return self.io.write_packet(packet::udp_into_box(&pair, &no));
        }
        if self.count.lookups >= self.config.limits.lookups {
            return add(&self.shared.counters.limited, 1);
        }
        self.look_at_host();
        let id = self.next_id();
        let mut lookup =
            Lookup { pair, query: query.to_vec(), question, timer: None, tries: 0, socket: None };
        lookup.ask(id, self.host.name_servers[0], &mut self.io, &self.shared.counters);
        self.enter(id, Party::Lookup(lookup));
    }

    fn event(&mut self, id: u64, flags: epoll::EventFlags) {
        match self.parties.get_mut(&id) {
            Some(Party::Tcp(connection)) => {
                let (local, seed) = (connection.pair.to, self.config.seed.wrapping_add(id));
                let buffer_bytes = stack_buffer_bytes(self.count.tcp);
                self.with_connection(id, |connection, io| {
                    connection.event(flags, io, |io| Stack::new(local, buffer_bytes, seed, io.now_ms, io))
                });
            }
            Some(Party::Udp(_)) => self.flow_turn(id),
            Some(Party::Lookup(_)) => self.answered(id),
            None => {}
        }
    }

    /// Does something with a connection, then lets it move what it can.
    fn with_connection(&mut self, id: u64, act: impl FnOnce(&mut Connection, &mut Io) -> bool) {
        let Some(Party::Tcp(connection)) = self.parties.get_mut(&id) else { return };
        let was_dialing = connection.is_dialing();
        let goes_on = act(connection, &mut self.io);
        self.count.dialing -= usize::from(was_dialing && !connection.is_dialing());
        let next = if goes_on { connection.pump(&mut self.io, &self.shared.counters) } else { Next::Over };
        if next == Next::Over {
            self.forget(id);
            return;
        }
        if next == Next::Again && !connection.queued {
            connection.queued = true;
            self.queue.push_back(id);
        }
        let at_ms = connection.next_ms(self.io.now_ms);
        self.io.arm(id, &mut connection.timer, at_ms);
    }

    fn turn(&mut self, id: u64) {
        match self.parties.get_mut(&id) {
            Some(Party::Tcp(connection)) => {
                connection.queued = false;
                self.with_connection(id, |_, _| true);
            }
            Some(Party::Udp(flow)) => {
                flow.queued = false;
                self.flow_turn(id);
            }
            _ => {}
        }
    }

    fn flow_turn(&mut self, id: u64) {
        let Some(Party::Udp(flow)) = self.parties.get_mut(&id) else { return };
        if flow.inward(&mut self.buffer, &self.io, &self.shared.counters) && !flow.queued {
            flow.queued = true;
            self.queue.push_back(id);
        }
    }

    fn answered(&mut self, id: u64) {
        loop {
            let Some(Party::Lookup(lookup)) = self.parties.get_mut(&id) else { return };
            let n = match lookup.answer(&mut self.buffer) {
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::INTR) => return,
                // It says that it is none: the next one then.
                Err(_) => return self.timer(id),
            };
            let response = &self.buffer[..n];
            // What answers another question is not what was asked for.
            if let Some(answers) = dns::answers(&lookup.question, response) {
                self.policy.learn(&lookup.question.name, &answers, self.io.now_ms);
                add(&self.shared.counters.received_bytes, n);
                self.io.write_packet(packet::udp_into_box(&lookup.pair, response));
                self.forget(id);
                return;
            }
        }
    }

    fn timer(&mut self, id: u64) {
        let now_ms = self.io.now_ms;
        match self.parties.get_mut(&id) {
            Some(Party::Tcp(connection)) => {
                self.io.arm(id, &mut connection.timer, None);
                self.with_connection(id, |connection, io| !connection.is_late(io));
            }
            Some(Party::Udp(flow)) if flow.used_ms + IDLE_MS <= now_ms => {
                self.forget(id);
            }
            Some(Party::Udp(flow)) => {
                let at_ms = Some(flow.used_ms + IDLE_MS);
                self.io.arm(id, &mut flow.timer, at_ms);
            }
            Some(Party::Lookup(lookup)) if lookup.tries < TRIES => {
                let servers = &self.host.name_servers;
                lookup.ask(id, servers[lookup.tries % servers.len()], &mut self.io, &self.shared.counters);
            }
            Some(Party::Lookup(lookup)) => {
                let no = dns::refusal(&lookup.query, &lookup.question, No::ServerFailure);
                self.io.write_packet(packet::udp_into_box(&lookup.pair, &no));
                self.forget(id);
            }
            None => {}
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn enter(&mut self, id: u64, mut party: Party) {
        let now_ms = self.io.now_ms;
        match &mut party {
            Party::Tcp(it) => {
                self.count.tcp += 1;
                self.count.dialing += 1;
                self.pairs.insert((Kind::Tcp, it.pair), id);
                let at_ms = it.next_ms(now_ms);
                self.io.arm(id, &mut it.timer, at_ms);
            }
            Party::Udp(it) => {
                self.count.udp += 1;
                self.pairs.insert((Kind::Udp, it.pair), id);
                self.io.arm(id, &mut it.timer, Some(now_ms + IDLE_MS));
            }
            Party::Lookup(_) => self.count.lookups += 1,
        }
        if !matches!(party, Party::Lookup(_)) {
            add(&self.shared.counters.opened, 1);
        }
        self.parties.insert(id, party);
        self.say_open();
    }

    fn forget(&mut self, id: u64) -> Option<Party> {
        let mut party = self.parties.remove(&id)?;
        match &mut party {
            Party::Tcp(it) => {
                self.count.tcp -= 1;
                self.count.dialing -= usize::from(it.is_dialing());
                self.pairs.remove(&(Kind::Tcp, it.pair));
                self.io.arm(id, &mut it.timer, None);
            }
            Party::Udp(it) => {
                self.count.udp -= 1;
                self.pairs.remove(&(Kind::Udp, it.pair));
                self.io.arm(id, &mut it.timer, None);
            }
            Party::Lookup(it) => {
                self.count.lookups -= 1;
                self.io.arm(id, &mut it.timer, None);
            }
        }
        self.say_open();
        Some(party)
    }

    fn say_open(&self) {
        let open = (self.count.tcp + self.count.udp) as u64;
        self.shared.counters.open.store(open, Ordering::Relaxed);
    }
}

fn is_resolver(to: SocketAddr) -> bool {
    to == SocketAddr::new(RESOLVER.into(), DNS)
}
