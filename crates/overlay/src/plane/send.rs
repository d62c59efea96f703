//! From the TUN to sealed packets.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    mem,
    net::SocketAddr,
    sync::Arc,
};

use rustix::event::Timespec;

use super::{
    Shared,
    control::Event,
    halves::Leave,
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

/// Packets that are taken from the TUN at once, at most.
const MOST_DRAINED: usize = 256;
/// Packets that wait for a session or a way, and their bytes, at most.
const MOST_PARKED: usize = 64;
const MOST_PARKED_BYTES: usize = 256 << 10;

/// How a sealed packet leaves.
#[derive(Clone, Copy)]
pub(super) enum Exit {
    Udp { to: SocketAddr, channel: Option<u32> },
    Tcp { relay: u8, to: SocketAddr, channel: u32 },
    Introducer(PeerKey),
}

/// What was taken from the TUN at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drained {
    pub(super) packets: usize,
    pub(super) bytes: usize,
    /// Whether there may be more.
    pub(super) is_left: bool,
}

pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    /// What the TUN is read into.
    buffer: Vec<u8>,
    pub(super) outbox: Outbox,
    scratch: Vec<u8>,
    pub(super) train: u16,
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
            buffer: vec![0; READ_BYTES],
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

    /// Sends what the TUN has, or as much of it as makes a batch. A box that floods nobody makes none, and must keep neither
    /// what comes in waiting nor the end.
    ///
    /// # Errors
    /// If the device cannot be read from.
    pub(super) fn drain(&mut self) -> io::Result<Drained> {
        let shared = self.shared.clone();
        let mut drained = Drained::default();
        let mut buffer = mem::take(&mut self.buffer);
        let result = loop {
            match shared.tun.read(&mut buffer) {
                // No packet is empty: nobody is at the other end of the device.
                Ok(0) => break Err(io::Error::from_raw_os_error(libc::ENODEV)),
                Ok(length) => {
                    let table = shared.table.load();
                    self.packet(&table, &buffer[..length]);
                    self.let_some_go(&table);
                    drained.packets += 1;
                    drained.bytes += length;
                    if self.outbox.is_full() || drained.packets >= MOST_DRAINED {
                        drained.is_left = true;
                        break Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.let_go(&shared.table.load());
                    break Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.buffer = buffer;
        self.flush();
        result.map(|()| drained)
    }

    /// Until when something is to leave that nobody gives cause for.
    pub(super) fn wait(&self) -> Option<Timespec> {
        self.shapers.as_ref().map(Shapers::wait)
    }

    /// Tries again what waits for a session or a way.
    pub(super) fn unpark(&mut self) {
        let shared = self.shared.clone();
        let table = shared.table.load();
        self.parked_bytes = 0;
        for packet in mem::take(&mut self.parked) {
            self.packet(&table, &packet);
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
            Cut::TooBig => self.too_big(Leave { route, key, exit, room }, &virtio, packet),
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

    pub(super) fn whole(&mut self, route: &Route, key: &SendKey, exit: Exit, shim: &Shim, packet: &[u8]) {
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
