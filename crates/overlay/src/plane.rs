//! A running overlay: threads between the TUN, the UDP socket and control.
//!
//! One thread seals what the TUN gives, and opens what others send and hands it to the TUN; another one helps it with
//! the TUN while there is much to do; one steps the machine. They share a [`Table`] that is replaced as a whole. What
//! always holds: a packet that cannot be dealt with is dropped and counted, nobody waits for it; dropping the
//! [`Overlay`] ends every thread.

mod carry;
mod control;
mod halves;
mod pace;
mod receive;
mod send;
mod shape;
mod spare;

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, SyncSender},
    },
    thread::JoinHandle,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use ring::rand::{SecureRandom, SystemRandom};

use crate::{
    Addresses, Config, Counters, Dropped, Member, OverlayError, PeerKey, RelayAt, Result, Way,
    io::{
        tcp::{Bell, LinkEvents, Links},
        tun::Tun,
        udp::Udp,
    },
    machine::Machine,
    random::Random,
    seam::{Peer, Table, WayObserved},
    segment::{VIRTIO_BYTES, Virtio},
    wire::{First, first},
};
use control::{Control, Event};
use receive::{Receiver, Source};
use send::Sender;
use shape::Shapers;

/// What waits for control, at most; more is dropped.
const MOST_EVENTS: usize = 4096;
/// Of those, messages that nobody has verified yet, so that a stranger's flood leaves room for members.
const MOST_UNVERIFIED: usize = 256;
/// The longest message, and as much of a sealed control message as means something; the rest of it is padding.
const MOST_MESSAGE_BYTES: usize = 1500;
/// Stacks of our threads: their frames hold the headers of a batch, not packets.
const STACK_BYTES: usize = 512 << 10;

/// Carries bytes to a member over whatever introduces members to each other.
pub type Introduce = Box<dyn Fn(PeerKey, Vec<u8>) + Send + Sync>;

/// What all threads see.
struct Shared {
    me: Addresses,
    tun: Tun,
    udp: Udp,
    /// Connections to relays over TCP; `None` when it is over.
    links: ArcSwapOption<Links>,
    introduce: Introduce,
    table: ArcSwap<Table>,
    /// Of packets that belong to no peer.
    counters: Counters,
    events: SyncSender<Event>,
    /// Messages that wait for control to verify them.
    unverified: AtomicUsize,
    /// Wakes the sender, who waits for the TUN otherwise.
    bell: Bell,
    is_over: AtomicBool,
}

/// What is known of one peer.
#[derive(Clone, Debug)]
pub struct PeerStats {
    /// Its key.
    pub key: PeerKey,
    /// Its addresses inside.
    pub addresses: Addresses,
    /// Whether there are keys to seal with.
    pub has_session: bool,
    /// The ways to it, best first.
    pub ways: Vec<WayObserved>,
    /// Handshakes completed with it.
    pub handshakes: u64,
    /// Packets and inner bytes sent to it.
    pub sent: [u64; 2],
    /// Packets and inner bytes received from it and let through.
    pub received: [u64; 2],
    /// Packets of cover, sent and received.
    pub cover: [u64; 2],
    /// Packets dropped, by reason.
    pub dropped: Vec<(Dropped, u64)>,
}

/// A running overlay; ends when dropped.
pub struct Overlay {
    shared: Arc<Shared>,
    /// For what the introducer brings, on the caller's thread.
    aside: Mutex<Receiver>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overlay({} on {})", self.shared.me.v4, self.local())
    }
}

impl Overlay {
    /// Starts an overlay on a TUN descriptor (`IFF_TUN | IFF_NO_PI`; with `IFF_VNET_HDR` large packets pass at once).
    ///
    /// # Errors
    /// If the address to listen on is taken, the descriptor is no use, our own key is none, or threads cannot be had.
    pub fn start(config: &Config, tun: OwnedFd, introduce: Introduce) -> Result<Self> {
        let mut seed = [0; 32];
        let random = SystemRandom::new().fill(&mut seed);
        random.map_err(|_| OverlayError::Noise { reason: "the system has no randomness".into() })?;
        let mut seeds = Random::new(&seed);
        let cover_seed = seeds.seed();
        let machine = Machine::new(config, &seeds.seed())?;
        let (events, waiting) = mpsc::sync_channel(MOST_EVENTS);
        let shared = Arc::new(Shared {
            me: config.me,
            tun: Tun::new(tun)?,
            udp: Udp::bind(config.listen)?,
            links: ArcSwapOption::empty(),
            introduce,
            table: ArcSwap::default(),
            counters: Counters::default(),
            events,
            unverified: AtomicUsize::new(0),
            bell: Bell::new().map_err(OverlayError::io("make an eventfd"))?,
            is_over: AtomicBool::new(false),
        });
        let mut overlay = Self { shared: shared.clone(), aside: Mutex::default(), threads: Vec::new() };
        let links = Links::start(FromLinks { shared: shared.clone(), receiver: Receiver::default() })?;
        shared.links.store(Some(Arc::new(links)));
        let control = Control::new(shared.clone(), machine)?;
        overlay.spawn("overlay-control", move || control.run(&waiting))?;
        let shapers = config.privacy.padded.then(|| Shapers::new(&config.cover, Random::new(&cover_seed)));
        let sender = Sender::new(shared.clone(), shapers, config.privacy.split_relays);
        let (carrier, helper) = carry::pair(&shared, sender)?;
        overlay.spawn("overlay-help", move || helper.run())?;
        overlay.spawn("overlay-carry", move || carrier.run())?;
        Ok(overlay)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(work);
        self.threads.push(thread.map_err(OverlayError::io(format!("start the thread {name}")))?);
        Ok(())
    }

    /// Where it listens.
    pub fn local(&self) -> SocketAddr {
        self.shared.udp.local()
    }

    /// Takes bytes that the introducer has proven to come from that member.
    pub fn introduced(&self, from: PeerKey, bytes: &[u8]) {
        if !matches!(first(bytes), Some(First::Session(_))) {
            return self.shared.tell(Event::Introduced { from, bytes: bytes.to_vec() });
        }
        let mut packet = bytes.to_vec();
        let mut receiver = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.take(&self.shared, Source::Introducer(from), &mut packet);
    }

    /// Makes this the list of members. Who stays keeps its sessions, who does not loses them at once.
    pub fn set_members(&self, members: Vec<Member>) {
        self.shared.tell_surely(Event::Members(members));
    }

    /// Makes these the relays to use.
    pub fn set_relays(&self, relays: Vec<RelayAt>) {
        self.shared.tell_surely(Event::Relays(relays));
    }

    /// Makes new keys with everybody now, not when they are due; packets go on meanwhile.
    pub fn renew(&self) {
        self.shared.tell_surely(Event::Renew);
    }

    /// Every peer, by its IPv4 address.
    pub fn stats(&self) -> Vec<PeerStats> {
        let table = self.shared.table.load();
        let all = table.v4.values().map(|route| PeerStats::of(&route.peer, route.send.is_some()));
        all.collect()
    }

    /// The relay of that number, as ways bear it.
    pub fn relay(&self, number: u8) -> Option<RelayAt> {
        self.shared.table.load().relays.get(usize::from(number)).cloned().flatten()
    }

    /// Packets dropped that belong to no peer, by reason.
    pub fn dropped(&self) -> Vec<(Dropped, u64)> {
        by_reason(&self.shared.counters)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.bell.ring();
        self.shared.udp.shut();
        self.shared.tell_surely(Event::Over);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
        drop(self.shared.links.swap(None));
    }
}

impl PeerStats {
    fn of(peer: &Peer, has_session: bool) -> Self {
        let observed = peer.observed();
        Self {
            key: peer.key,
            addresses: peer.addresses,
            has_session,
            ways: observed.ways,
            handshakes: observed.handshakes,
            sent: peer.counters.sent_until_now(),
            received: peer.counters.received_until_now(),
            cover: peer.counters.cover_until_now(),
            dropped: by_reason(&peer.counters),
        }
    }
}

fn by_reason(counters: &Counters) -> Vec<(Dropped, u64)> {
    let all = Dropped::ALL.map(|reason| (reason, counters.dropped_until_now(reason)));
    all.into_iter().filter(|(_, packets)| *packets > 0).collect()
}

/// Takes what relays send over TCP, on the thread of the connections.
struct FromLinks {
    shared: Arc<Shared>,
    receiver: Receiver,
}

impl LinkEvents for FromLinks {
    fn packet(&mut self, relay: u8, packet: &mut [u8]) {
        self.receiver.take(&self.shared, Source::Tcp(relay), packet);
    }

    fn failed(&mut self, relay: u8, error: io::ErrorKind) {
        let way = Way::Relay { relay, tcp: true, channel: Way::TO_RELAY };
        self.shared.tell(Event::Failed { way, error });
    }
}

impl Shared {
    /// Tells control, unless it is far behind.
    fn tell(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.counters.dropped(Dropped::Busy, 1);
        }
    }

    /// Tells control of a message that anybody may have sent.
    fn tell_unverified(&self, way: Way, message: &[u8]) {
        if message.len() > MOST_MESSAGE_BYTES {
            return self.counters.dropped(Dropped::Malformed, 1);
        }
        if self.unverified.fetch_add(1, Ordering::Relaxed) < MOST_UNVERIFIED {
            let event = Event::Packet { way, bytes: message.to_vec() };
            if self.events.try_send(event).is_ok() {
                return;
            }
        }
        self.unverified.fetch_sub(1, Ordering::Relaxed);
        self.counters.dropped(Dropped::Busy, 1);
    }

    /// Tells control, and waits if it is behind.
    fn tell_surely(&self, event: Event) {
        // Control that ended has nothing to be told any more.
        let _ = self.events.send(event);
    }

    /// Hands one whole packet to the kernel.
    fn write(&self, note: &Virtio, packet: &[u8]) -> bool {
        let note = note.write();
        let pieces = [IoSlice::new(&note), IoSlice::new(packet)];
        let skip = usize::from(!self.tun.has_offload());
        self.tun.write(&pieces[skip..]).is_ok()
    }

    /// Sends one message or sealed packet. Does not know the introducer.
    fn send(&self, way: Way, bytes: &[u8]) -> io::Result<()> {
        let Way::Relay { relay, tcp, channel } = way else {
            let Way::Udp(to) = way else { return Ok(()) };
            return self.udp.send(to, bytes);
        };
        let table = self.table.load();
        let at = table.relays.get(usize::from(relay)).and_then(Option::as_ref);
        let at = at.ok_or(io::ErrorKind::NotFound)?;
        let is_to_relay = channel == Way::TO_RELAY;
        let channel = channel.to_be_bytes();
        let channel = if is_to_relay { &[][..] } else { &channel[..] };
        if !tcp {
            return self.udp.send(at.udp, &[channel, bytes].concat());
        }
        let to = at.tcp.ok_or(io::ErrorKind::NotFound)?;
        if let Some(links) = &*self.links.load() {
            links.send(relay, to, &[channel, bytes]);
        }
        Ok(())
    }
}

/// Bytes that the kernel's note takes before a packet.
fn note_bytes(tun: &Tun) -> usize {
    if tun.has_offload() { VIRTIO_BYTES } else { 0 }
}
