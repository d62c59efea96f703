//! The relay's edge: its sockets and threads. What they do with a packet is said by the rules (`super`).
//!
//! What always holds: packets that came together for one channel leave together, in as few system calls as they came
//! in; a member that does not read loses its own packets only; memory is bounded whoever connects.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Admit, Counters, End, Limits, Reply, Rules, count};
use crate::{
    OverlayError, Result,
    io::{
        tcp::{Bell, Framed, wait_for},
        udp::{Inbox, Outbox, Received, Udp},
    },
};

/// What a sealed packet has at least: a channel, the receiver's index, a counter, a tag.
const LEAST_BYTES: usize = 4 + 12 + 16;
const MOST_CONNECTIONS: usize = 4_096;
const MOST_CONNECTIONS_PER_ADDRESS: usize = 256;
/// Bytes that wait for the thread that writes to connections.
const MOST_WAITING_BYTES: usize = 8 << 20;
const PATIENCE_MS: u32 = 10_000;
const SILENT_MS: u64 = 120_000;
const SWEEP_EVERY_MS: u64 = 5_000;
/// How long a socket is left alone that gives errors.
const BACK_OFF: Duration = Duration::from_millis(10);
const SOCKETS: usize = 2;

/// How to run a forwarder.
pub struct ForwarderConfig {
    /// What members know it by: [`crate::RelayAt::id`].
    pub id: [u8; 32],
    /// Random, and never told.
    pub secret: [u8; 32],
    /// Where it listens.
    pub ip: IpAddr,
    /// UDP port; 0 takes a free one.
    pub udp_port: u16,
    /// Another UDP port, by which members learn what NAT they are behind; 0 takes a free one.
    pub second_udp_port: u16,
    /// TCP port; 0 takes a free one.
    pub tcp_port: u16,
    /// What it allows.
    pub limits: Limits,
    /// Who may use it.
    pub admit: Admit,
}

/// A running forwarder; ends when dropped.
#[derive(Debug)]
pub struct Forwarder {
    shared: Arc<Shared>,
    tcp: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    rules: Mutex<Rules>,
    counters: Arc<Counters>,
    udp: [Udp; SOCKETS],
    waiting: Mutex<Waiting>,
    bell: Bell,
    is_over: AtomicBool,
    began: Instant,
}

/// Packets for connections, on their way to the thread that writes to them.
#[derive(Debug, Default)]
struct Waiting {
    packets: Vec<(u64, Vec<u8>)>,
    bytes: usize,
}

impl Forwarder {
    /// Binds and starts.
    ///
    /// # Errors
    /// If a port is taken or a thread cannot be had.
    pub fn start(config: ForwarderConfig) -> Result<Self> {
        let at = |port| SocketAddr::new(config.ip, port);
        let udp = [Udp::bind_knowing(at(config.udp_port))?, Udp::bind_knowing(at(config.second_udp_port))?];
        let listener = TcpListener::bind(at(config.tcp_port));
        let listener =
            listener.map_err(OverlayError::io(format!("listen on TCP {}", at(config.tcp_port))))?;
        listener.set_nonblocking(true).map_err(OverlayError::io("set the listener up"))?;
        let tcp = listener.local_addr().map_err(OverlayError::io("find the TCP port"))?;
        let rules = Rules::new(config.id, &config.secret, config.limits, config.admit);
        let shared = Arc::new(Shared {
            counters: rules.counters(),
            rules: Mutex::new(rules),
            udp,
            waiting: Mutex::default(),
            bell: Bell::new().map_err(OverlayError::io("make an eventfd"))?,
            is_over: AtomicBool::new(false),
            began: Instant::now(),
        });
        let mut forwarder = Self { shared: shared.clone(), tcp, threads: Vec::new() };
        for socket in 0..SOCKETS {
            let shared = shared.clone();
            forwarder.thread("relay-udp", move || serve_udp(&shared, socket))?;
        }
        forwarder.thread("relay-tcp", move || Connections::new(shared, listener).serve())?;
        Ok(forwarder)
    }

    fn thread(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).stack_size(512 << 10).spawn(work);
        self.threads.push(thread.map_err(OverlayError::io("start a thread of the relay"))?);
        Ok(())
    }

    /// Its UDP ports: the one for packets and the other one.
    pub fn udp_ports(&self) -> [u16; SOCKETS] {
        self.shared.udp.each_ref().map(|udp| udp.local().port())
    }

    /// Its TCP port.
    pub fn tcp_port(&self) -> u16 {
        self.tcp.port()
    }

    /// Its counters, which go on counting.
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.udp.iter().for_each(Udp::shut);
        self.shared.bell.ring();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn to_connection(&self, number: u64, packets: &[u8], segment: usize) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for packet in packets.chunks(segment.max(1)) {
            if waiting.bytes + packet.len() > MOST_WAITING_BYTES {
                count(&self.counters.unsent, 1);
                continue;
            }
            waiting.bytes += packet.len();
            waiting.packets.push((number, packet.to_vec()));
        }
        drop(waiting);
        self.bell.ring();
    }
}

/// What is to be sent by the sockets.
struct Outgoing<'a> {
    shared: &'a Shared,
    boxes: [Outbox; SOCKETS],
}

impl<'a> Outgoing<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, boxes: Default::default() }
    }

    /// Packets of one size for one end; the last may be shorter.
    fn add(&mut self, to: End, packets: &[u8], segment: usize) {
        match to {
            End::Tcp(number) => self.shared.to_connection(number, packets, segment),
            End::Udp { socket, address, at: from } => {
                for packet in packets.chunks(segment.max(1)) {
                    let at = usize::from(socket) % SOCKETS;
                    if !self.boxes[at].fits(1, packet.len()) {
                        self.flush();
                    }
                    self.boxes[at].add_from(from, address, packet.len()).copy_from_slice(packet);
                }
            }
        }
    }

    fn answer(&mut self, replies: &mut Vec<Reply>) {
        for (to, answer) in replies.drain(..) {
            let bytes = answer.write();
            self.add(to, &bytes, bytes.len());
        }
    }

    fn flush(&mut self) {
        let counters = &self.shared.counters;
        for (outbox, udp) in self.boxes.iter_mut().zip(&self.shared.udp) {
            outbox.flush(udp, |refused| count(&counters.unsent, refused.packets as u64));
        }
    }
}

fn serve_udp(shared: &Shared, socket: usize) {
    let (mut inbox, mut outgoing) = (Inbox::default(), Outgoing::new(shared));
    let mut replies = Vec::new();
    let number = u8::try_from(socket).unwrap_or(0);
    while !shared.is_over() {
        if let Err(error) = inbox.receive(&shared.udp[socket]) {
            tracing::debug!(%error, "the relay's socket has something to say");
            std::thread::park_timeout(BACK_OFF);
            continue;
        }
        let (messages, bytes) = inbox.take();
        let now_ms = shared.now_ms();
        let mut rules = shared.rules();
        for Received { from, to, bytes: range, segment } in messages {
            let end = End::Udp { socket: number, address: *from, at: *to };
            let mut rest = &bytes[range.clone()];
            while !rest.is_empty() {
                let (run, behind) = rest.split_at(same_channel(rest, *segment));
                pass(&mut rules, now_ms, (end, *from), (run, *segment), &mut outgoing, &mut replies);
                rest = behind;
            }
        }
        drop(rules);
        outgoing.answer(&mut replies);
        outgoing.flush();
    }
}

/// How many bytes, from the first, are packets that bear the same channel; a message stands alone.
fn same_channel(packets: &[u8], segment: usize) -> usize {
    let segment = segment.max(1);
    let first = packets.first_chunk::<4>();
    if first.is_none_or(|first| first[0] < 0x80) {
        return segment.min(packets.len());
    }
    let same = packets.chunks(segment).take_while(|packet| packet.first_chunk() == first);
    same.map(<[u8]>::len).sum()
}

/// Passes on what came from an end for one channel, or hears a message.
fn pass(
    rules: &mut Rules,
    now_ms: u64,
    (from, seen): (End, SocketAddr),
    (run, segment): (&[u8], usize),
    outgoing: &mut Outgoing<'_>,
    replies: &mut Vec<Reply>,
) {
    let channel = run.first_chunk().map_or(0, |first| u32::from_be_bytes(*first));
    if channel >> 31 == 0 {
        return rules.hear(now_ms, from, seen, run, replies);
    }
    if run.len() < LEAST_BYTES {
        return count(&outgoing.shared.counters.malformed, 1);
    }
    let packets = run.len().div_ceil(segment.max(1)) as u64;
    if let Some(to) = rules.forward(now_ms, channel, from, packets, run.len() as u64) {
        outgoing.add(to, run, segment);
    }
}

struct Connection {
    framed: Framed,
    seen: SocketAddr,
    heard_ms: u64,
}

/// The thread of all TCP connections.
struct Connections {
    shared: Arc<Shared>,
    listener: TcpListener,
    all: BTreeMap<u64, Connection>,
    next: u64,
    swept_ms: u64,
}

impl Connections {
    fn new(shared: Arc<Shared>, listener: TcpListener) -> Self {
        Self { shared, listener, all: BTreeMap::new(), next: 1, swept_ms: 0 }
    }

    fn serve(mut self) {
        let shared = self.shared.clone();
        let mut outgoing = Outgoing::new(&shared);
        while !shared.is_over() {
            let connections = self.all.values().map(|c| (c.framed.as_fd(), c.framed.wants_to_write()));
            let fixed = [(shared.bell.fd(), false), (self.listener.as_fd(), false)];
            let Ok(ready) = wait_for(fixed.into_iter().chain(connections), Duration::from_secs(1)) else {
                return;
            };
            shared.bell.hush();
            let numbers: Vec<u64> = self.all.keys().copied().collect();
            for (number, (is_read, is_write)) in numbers.into_iter().zip(&ready[2..]) {
                if (*is_read || *is_write) && self.work(number, *is_read, &mut outgoing).is_err() {
                    self.all.remove(&number);
                }
            }
            outgoing.flush();
            self.write_waiting();
            if ready[1].0 {
                self.accept();
            }
            self.sweep();
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, seen)) = self.listener.accept() {
            let same = self.all.values().filter(|other| other.seen.ip() == seen.ip()).count();
            if self.all.len() >= MOST_CONNECTIONS || same >= MOST_CONNECTIONS_PER_ADDRESS {
                continue;
            }
            let Ok(framed) = Framed::new(stream, PATIENCE_MS) else { continue };
            let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
            self.all.insert(self.next, Connection { framed, seen, heard_ms: self.shared.now_ms() });
            self.next += 1;
        }
        self.shared.counters.connections.store(self.all.len() as u64, Ordering::Relaxed);
    }

    fn work(&mut self, number: u64, is_read: bool, outgoing: &mut Outgoing<'_>) -> io::Result<()> {
        let Some(Connection { framed, seen, heard_ms }) = self.all.get_mut(&number) else { return Ok(()) };
        if is_read {
            let now_ms = self.shared.now_ms();
            let (mut replies, end) = (Vec::new(), End::Tcp(number));
            let mut rules = self.shared.rules();
            let read = framed.read(|packet| {
                pass(&mut rules, now_ms, (end, *seen), (packet, packet.len()), outgoing, &mut replies);
            });
            drop(rules);
            *heard_ms = now_ms;
            outgoing.answer(&mut replies);
            read?;
        }
        framed.flush()
    }

    /// Writes what the other threads, and this one, left for connections.
    fn write_waiting(&mut self) {
        let waiting =
            std::mem::take(&mut *self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for (number, packet) in waiting.packets {
            let is_taken = self.all.get_mut(&number).is_some_and(|to| to.framed.push(&[&packet]));
            if !is_taken {
                count(&self.shared.counters.unsent, 1);
            }
        }
        self.all.retain(|_, connection| connection.framed.flush().is_ok());
    }

    fn sweep(&mut self) {
        let now_ms = self.shared.now_ms();
        if now_ms < self.swept_ms + SWEEP_EVERY_MS {
            return;
        }
        self.swept_ms = now_ms;
        self.shared.rules().sweep(now_ms);
        self.all.retain(|_, connection| now_ms < connection.heard_ms + SILENT_MS);
        self.shared.counters.connections.store(self.all.len() as u64, Ordering::Relaxed);
    }
}
