//! From the TUN to sealed packets.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};

use super::{
    Shared,
    control::Event,
    note_bytes,
    shape::{self, Shapers},
};
use crate::{
    Dropped, PeerKey, Way,
    crypt::{PREFIX_BYTES, SendKey, TAG_BYTES},
    inner,
    io::{
        tun::READ_BYTES,
        udp::{Outbox, Refused},
    },
    seam::{Hop, Route, Table},
    segment::{Cut, Train, Virtio, cut},
    wire::{CHANNEL_BYTES, OVERHEAD_BYTES, SHIM_BYTES, Shim},
};

/// Packets that wait for a session or a way, and their bytes, at most.
const MOST_PARKED: usize = 64;
const MOST_PARKED_BYTES: usize = 256 << 10;
/// How long we leave a TUN alone that gives errors.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How a sealed packet leaves.
#[derive(Clone, Copy)]
pub(super) enum Exit {
    Udp { to: SocketAddr, channel: Option<u32> },
    Tcp { relay: u8, to: SocketAddr, channel: u32 },
    Introducer(PeerKey),
}

pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) outbox: Outbox,
    scratch: Vec<u8>,
    train: u16,
    /// What the TUN gave for peers that cannot be reached yet, notes included.
    parked: VecDeque<Vec<u8>>,
    parked_bytes: usize,
    /// Of a padded cluster.
    pub(super) shapers: Option<Shapers>,
    pub(super) is_split: bool,
    turn: usize,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, shapers: Option<Shapers>, is_split: bool) -> Self {
        Self {
            shared,
            outbox: Outbox::default(),
            scratch: Vec::new(),
            train: 0,
            parked: VecDeque::new(),
            parked_bytes: 0,
            shapers,
            is_split,
            turn: 0,
        }
    }

    /// Sends what the TUN gives until it is over or the device is gone. While packets come, a batch is sent when it is
    /// large enough; when none is left, at once.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        let mut buffer = vec![0; READ_BYTES];
        while !shared.is_over.load(Ordering::Relaxed) {
            match shared.tun.read(&mut buffer) {
                Ok(length) => {
                    let table = shared.table.load();
                    self.packet(&table, &buffer[..length]);
                    self.let_some_go(&table);
                    if self.outbox.is_full() {
                        self.flush();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.let_go(&shared.table.load());
                    self.flush();
                    self.wait();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.flush();
                    if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV)) {
                        tracing::debug!(%error, "the TUN device is gone");
                        return;
                    }
                    std::thread::park_timeout(BACK_OFF);
                }
            }
        }
    }

    /// Waits for the TUN or the bell, at which parked packets are tried again.
    fn wait(&mut self) {
        let shared = self.shared.clone();
        let mut fds = [
            PollFd::from_borrowed_fd(shared.tun.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.bell.fd(), PollFlags::IN),
        ];
        let wait = self.shapers.as_ref().map(Shapers::wait);
        if poll(&mut fds, wait.as_ref()).is_err() {
            return;
        }
        let [tun, bell] = fds.map(|fd| fd.revents());
        if !bell.is_empty() {
            shared.bell.hush();
            let table = shared.table.load();
            self.parked_bytes = 0;
            for packet in std::mem::take(&mut self.parked) {
                self.packet(&table, &packet);
            }
        }
        if tun.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            std::thread::park_timeout(BACK_OFF);
        }
    }

    pub(super) fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        let shared = &self.shared;
        self.outbox.flush(&shared.udp, |Refused { to, packets, error }| {
            shared.counters.dropped(Dropped::Refused, packets);
            let table = shared.table.load();
            let way = super::Source::Udp(to).way(&table);
            shared.tell(match error.raw_os_error() {
                Some(libc::EMSGSIZE) => Event::TooLarge { way },
                _ => Event::Failed { way, error: error.kind() },
            });
        });
    }

    /// Takes one packet of the TUN, note included.
    fn packet(&mut self, table: &Table, read: &[u8]) {
        let (note, packet) = read.split_at(note_bytes(&self.shared.tun).min(read.len()));
        let virtio = note.first_chunk().map(Virtio::parse).unwrap_or_default();
        let ends = inner::ends(packet).filter(|_| inner::is_whole(packet));
        let to = ends.filter(|(source, _)| self.shared.me.has(*source)).map(|(_, to)| to);
        let Some(route) = to.and_then(|to| table.route(to)) else {
            return self.shared.counters.dropped(Dropped::NoRoute, 1);
        };
        let hop = if self.is_split { self.next_hop(route) } else { choose(&route.hops, packet) };
        let (Some(key), Some(hop)) = (&route.send, hop) else {
            return self.park(route, read);
        };
        let Some(exit) = exit(table, route, hop.way) else {
            return route.peer.counters.dropped(Dropped::NoWay, 1);
        };
        self.train = self.train.wrapping_add(1);
        let room = self.shapers.as_ref().map_or(hop.packet_bytes, |_| shape::cell_bytes(route));
        let room = usize::from(room).saturating_sub(OVERHEAD_BYTES);
        match cut(&virtio, packet, room, self.train) {
            Cut::Whole(shim) if self.shapers.is_some() => self.queue(route, room, &shim, [packet, &[]]),
            Cut::Train(train) if self.shapers.is_some() => self.queue_train(route, room, &train, packet),
            Cut::Whole(shim) => self.whole(route, key, exit, &shim, packet),
            Cut::Train(train) => self.segments(route, key, exit, &train, packet),
            Cut::TooBig => {
                route.peer.counters.dropped(Dropped::TooBig, 1);
                if let Some(answer) = inner::too_big(packet, u16::try_from(room).unwrap_or(u16::MAX)) {
                    self.shared.write(&Virtio::default(), &answer);
                }
            }
            Cut::Malformed => route.peer.counters.dropped(Dropped::Malformed, 1),
        }
    }

    /// Keeps a packet for a peer that cannot be reached yet, and asks for a way.
    fn park(&mut self, route: &Route, read: &[u8]) {
        if route.peer.want() {
            self.shared.tell(Event::Wanted(route.peer.key));
        }
        self.parked_bytes += read.len();
        self.parked.push_back(read.to_vec());
        // The oldest has waited for longest, maybe for somebody who never comes.
        while self.parked.len() > MOST_PARKED || self.parked_bytes > MOST_PARKED_BYTES {
            let Some(oldest) = self.parked.pop_front() else { return };
            self.parked_bytes -= oldest.len();
            self.shared.counters.dropped(Dropped::NoSession, 1);
        }
    }

    fn whole(&mut self, route: &Route, key: &SendKey, exit: Exit, shim: &Shim, packet: &[u8]) {
        let bytes = OVERHEAD_BYTES + packet.len();
        let Some(counter) = key.reserve(1, bytes) else {
            return route.peer.counters.dropped(Dropped::NoSession, 1);
        };
        self.make_room(1, bytes + CHANNEL_BYTES);
        self.seal(key, exit, counter, shim, &[packet, &[]]);
        route.peer.counters.sent(1, packet.len());
    }

    fn segments(&mut self, route: &Route, key: &SendKey, exit: Exit, train: &Train, packet: &[u8]) {
        for (shim, header, part) in train.parts(packet) {
            let count = usize::from(shim.count);
            let inner_bytes = part.len() + count * train.header_bytes;
            let bytes = inner_bytes + count * OVERHEAD_BYTES;
            let Some(first) = key.reserve(count, bytes) else {
                return route.peer.counters.dropped(Dropped::NoSession, count);
            };
            self.make_room(count, bytes + count * CHANNEL_BYTES);
            for ((index, counter), payload) in (0..).zip(first..).zip(part.chunks(train.segment_bytes)) {
                self.seal(key, exit, counter, &Shim { index, ..shim }, &[header.get(), payload]);
            }
            route.peer.counters.sent(count, inner_bytes);
        }
    }

    pub(super) fn make_room(&mut self, packets: usize, bytes: usize) {
        if !self.outbox.fits(packets, bytes) {
            self.flush();
        }
    }

    /// Seals one packet into the outbox, or hands it over where it does not leave by UDP.
    fn seal(&mut self, key: &SendKey, exit: Exit, counter: u64, shim: &Shim, inner: &[&[u8]; 2]) {
        let bytes = OVERHEAD_BYTES + inner[0].len() + inner[1].len();
        self.put(exit, bytes, |packet| fill(packet, key, counter, shim, inner));
    }

    /// Has a packet filled in where it leaves from.
    pub(super) fn put(&mut self, exit: Exit, bytes: usize, fill: impl FnOnce(&mut [u8])) {
        if let Exit::Udp { to, channel } = exit {
            let before = channel.map_or(0, |_| CHANNEL_BYTES);
            let (start, packet) = self.outbox.add(to, before + bytes).split_at_mut(before);
            if let Some(channel) = channel {
                start.copy_from_slice(&channel.to_be_bytes());
            }
            return fill(packet);
        }
        self.scratch.resize(bytes, 0);
        fill(&mut self.scratch);
        match exit {
            Exit::Tcp { relay, to, channel } => {
                if let Some(links) = &*self.shared.links.load() {
                    links.send(relay, to, &[&channel.to_be_bytes(), &self.scratch]);
                }
            }
            Exit::Introducer(to) => (self.shared.introduce)(to, self.scratch.clone()),
            Exit::Udp { .. } => {}
        }
    }

    /// The ways that share a peer's traffic in turn, whatever the flow.
    pub(super) fn next_hop<'a>(&mut self, route: &'a Route) -> Option<&'a Hop> {
        self.turn = self.turn.wrapping_add(1);
        let used = route.hops.iter().filter(|hop| hop.weight > 0);
        used.clone().nth(self.turn % used.count().max(1)).or(route.hops.first())
    }
}

fn fill(packet: &mut [u8], key: &SendKey, counter: u64, shim: &Shim, [header, payload]: &[&[u8]; 2]) {
    let end = packet.len() - TAG_BYTES;
    let (shim_room, inner) = packet[PREFIX_BYTES..end].split_at_mut(SHIM_BYTES);
    shim_room.copy_from_slice(&shim.write());
    let (header_room, payload_room) = inner.split_at_mut(header.len());
    header_room.copy_from_slice(header);
    payload_room.copy_from_slice(payload);
    key.seal(counter, packet);
}

/// The way for a packet: one and the same for a flow as long as the ways stay, others for others by weight.
fn choose<'a>(hops: &'a [Hop], packet: &[u8]) -> Option<&'a Hop> {
    let first = hops.first()?;
    let all: u32 = hops.iter().map(|hop| u32::from(hop.weight)).sum();
    if hops.len() == 1 || all == 0 {
        return Some(first);
    }
    let mut at = inner::flow(packet) % all;
    for hop in hops {
        match at.checked_sub(u32::from(hop.weight)) {
            Some(rest) => at = rest,
            None => return Some(hop),
        }
    }
    Some(first)
}

pub(super) fn exit(table: &Table, route: &Route, way: Way) -> Option<Exit> {
    match way {
        Way::Udp(to) => Some(Exit::Udp { to, channel: None }),
        Way::Introducer => Some(Exit::Introducer(route.peer.key)),
        Way::Relay { relay, tcp, channel } => {
            let at = table.relays.get(usize::from(relay))?.as_ref()?;
            if tcp {
                return Some(Exit::Tcp { relay, to: at.tcp?, channel });
            }
            Some(Exit::Udp { to: at.udp, channel: Some(channel) })
        }
    }
}
