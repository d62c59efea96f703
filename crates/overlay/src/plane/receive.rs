//! From sealed packets to the TUN.

use std::{io::IoSlice, net::SocketAddr, ops::Range, sync::Arc};

use super::{
    MOST_MESSAGE_BYTES, Shared,
    control::Event,
    halves::{Halves, Taken},
};
use crate::{
    Dropped, PeerKey, Way,
    crypt::{NotOpened, Opener, PREFIX_BYTES, TAG_BYTES},
    inner,
    io::udp::{Inbox, Received},
    privacy::cells,
    seam::{Peer, Receive, Table},
    segment::{Joiner, complete_checksum, datagram, is_segment, whole_note},
    wire::{CHANNEL_BYTES, First, Kind, SHIM_BYTES, Shim, first},
};

/// Pieces of one write: note, headers, and the payload of as many segments as a train has.
const MOST_PIECES: usize = 2 + 255;

/// From where packets came.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Udp(SocketAddr),
    Tcp(u8),
    Introducer(PeerKey),
}

impl Source {
    /// The way that it is without a channel.
    pub(super) fn way(self, table: &Table) -> Way {
        let relay_at = |from: SocketAddr| {
            table.relays.iter().position(|relay| relay.as_ref().is_some_and(|relay| relay.udp == from))
        };
        match self {
            Self::Introducer(_) => Way::Introducer,
            Self::Tcp(relay) => Way::Relay { relay, tcp: true, channel: Way::TO_RELAY },
            Self::Udp(from) => match relay_at(from).and_then(|number| u8::try_from(number).ok()) {
                Some(relay) => Way::Relay { relay, tcp: false, channel: Way::TO_RELAY },
                None => Way::Udp(from),
            },
        }
    }
}

/// Opens packets, joins segments and writes to the TUN. Whoever has one takes packets of one thread.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    joiner: Joiner,
    /// Whose segments are being joined, and how many there are.
    joining: Option<(Arc<Peer>, usize)>,
    halves: Halves,
}

impl Receiver {
    /// Takes everything that was received.
    pub(super) fn take_all(&mut self, shared: &Shared, inbox: &mut Inbox) {
        let table = shared.table.load();
        let (messages, arena) = inbox.take();
        for Received { from, bytes, segment, .. } in messages {
            let way = Source::Udp(*from).way(&table);
            self.batch(shared, &table, Source::Udp(*from), way, arena, bytes.clone(), *segment);
        }
        self.flush(shared, arena);
    }

    /// Takes one packet.
    pub(super) fn take(&mut self, shared: &Shared, source: Source, packet: &mut [u8]) {
        let table = shared.table.load();
        let (way, all) = (source.way(&table), 0..packet.len());
        let length = all.len().max(1);
        self.batch(shared, &table, source, way, packet, all, length);
        self.flush(shared, packet);
    }

    /// Takes packets of one sender that lie behind each other. The key of a session is held for as long as packets of
    /// the same session follow.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are one thing: packets, where from, and what they go by"
    )]
    fn batch(
        &mut self,
        shared: &Shared,
        table: &Table,
        source: Source,
        way: Way,
        arena: &mut [u8],
        bytes: Range<usize>,
        segment: usize,
    ) {
        let mut held: Option<Held<'_>> = None;
        for start in bytes.clone().step_by(segment) {
            let mut range = start..(start + segment).min(bytes.end);
            let mut way = way;
            let mut is = first(&arena[range.clone()]);
            if let (Some(First::Channel(channel)), Way::Relay { relay, tcp, .. }) = (is, way) {
                way = Way::Relay { relay, tcp, channel };
                range.start += CHANNEL_BYTES;
                is = first(&arena[range.clone()]);
            }
            match is {
                Some(First::Session(index)) => {
                    if held.as_ref().is_none_or(|held| held.index != index || held.way != way) {
                        // The key may be the one that is held already.
                        drop(held.take());
                        held = Held::take(table, index, way);
                    }
                    match held.as_mut().filter(|held| held.may_come_from(source)) {
                        Some(held) => self.open(shared, held, arena, range),
                        None => shared.counters.dropped(Dropped::Unknown, 1),
                    }
                }
                Some(First::Message) => {
                    shared.tell_unverified(way, &arena[range]);
                }
                _ => shared.counters.dropped(Dropped::Malformed, 1),
            }
        }
    }

    fn open(&mut self, shared: &Shared, held: &mut Held<'_>, arena: &mut [u8], range: Range<usize>) {
        let counters = &held.receive.peer.counters;
        match held.opener.open(&mut arena[range.clone()]) {
            Ok(_) => {}
            Err(NotOpened::Replayed) => return counters.dropped(Dropped::Replayed, 1),
            Err(NotOpened::Forged) => return counters.dropped(Dropped::Forged, 1),
        }
        if !std::mem::replace(&mut held.has_come, true) && held.opener.came(held.way) {
            shared.tell(Event::Used { index: held.index, way: held.way });
        }
        let plain = range.start + PREFIX_BYTES..range.end - TAG_BYTES;
        if self.plain(shared, held, arena, plain, range.len()).is_none() {
            counters.dropped(Dropped::Malformed, 1);
        }
    }

    /// Takes what was sealed; `None` if it is malformed.
    fn plain(
        &mut self,
        shared: &Shared,
        held: &Held<'_>,
        arena: &mut [u8],
        plain: Range<usize>,
        packet_bytes: usize,
    ) -> Option<()> {
        let mut shim = Shim::parse(arena[plain.clone()].first_chunk()?)?;
        let start = plain.start + SHIM_BYTES;
        let behind = start..start + shim.trim(&arena[start..plain.end])?.len();
        match shim.kind {
            Kind::Control => {
                let body = arena[behind].iter().copied().take(MOST_MESSAGE_BYTES).collect();
                let (index, way) = (held.index, held.way);
                shared.tell(Event::Control { index, way, body, packet_bytes });
            }
            Kind::Half => {
                let taken = self.halves.take(held.index, &shim, &arena[behind])?;
                if let Taken::Whole(mut whole) = taken {
                    self.flush(shared, arena);
                    let all = 0..whole.len();
                    let is_taken = self.plain(shared, held, &mut whole, all, packet_bytes);
                    self.flush(shared, &whole);
                    is_taken?;
                }
            }
            Kind::Cover => held.receive.peer.counters.cover_received(),
            Kind::Packet => self.packet(shared, &held.receive.peer, &shim, arena, behind)?,
            Kind::Tcp4 | Kind::Tcp6 | Kind::Udp => {
                self.segment(shared, &held.receive.peer, &shim, arena, behind)?;
            }
            Kind::Several => self.several(shared, &held.receive.peer, arena, behind)?,
        }
        Some(())
    }

    /// Takes a cell of several packets, or none of them if it is malformed.
    fn several(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        arena: &mut [u8],
        cell: Range<usize>,
    ) -> Option<()> {
        let mut start = cell.start;
        let packets: Option<Vec<(Shim, Range<usize>)>> = cells::several(&arena[cell])
            .map(|next| {
                let (shim, packet) = next?;
                let at = start + cells::NOTE_BYTES;
                start = at + packet.len();
                Some((shim, at..start))
            })
            .collect();
        packets?.into_iter().try_for_each(|(shim, at)| self.packet(shared, peer, &shim, arena, at))
    }

    fn packet(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        shim: &Shim,
        arena: &mut [u8],
        at: Range<usize>,
    ) -> Option<()> {
        let note = whole_note(shim, &arena[at.clone()])?;
        if shared.tun.joins_datagrams()
            && let Some(shim) = datagram(shim, &arena[at.clone()])
        {
            self.join(shared, peer, &shim, arena, at);
            return Some(());
        }
        self.flush(shared, arena);
        let packet = &mut arena[at];
        if !is_allowed(shared, peer, packet) {
            return Some(());
        }
        if !shared.tun.has_offload() {
            complete_checksum(&note, packet);
        }
        count(peer, shared.write(&note, packet), 1, packet.len());
        Some(())
    }

    fn segment(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        shim: &Shim,
        arena: &mut [u8],
        at: Range<usize>,
    ) -> Option<()> {
        is_segment(shim, &arena[at.clone()]).then(|| self.join(shared, peer, shim, arena, at))
    }

    /// Takes something that may be part of a larger packet.
    fn join(&mut self, shared: &Shared, peer: &Arc<Peer>, shim: &Shim, arena: &mut [u8], at: Range<usize>) {
        let segment = &arena[at.clone()];
        let is_same = self.joining.as_ref().is_some_and(|(joining, _)| Arc::ptr_eq(joining, peer));
        if !is_same || !self.joiner.continues(shim, segment) {
            self.flush(shared, arena);
            if !is_allowed(shared, peer, &arena[at.clone()]) {
                return;
            }
            self.joining = Some((peer.clone(), 0));
        }
        let payload = at.start + usize::from(shim.header_bytes)..at.end;
        self.joiner.add(shim, &arena[at], payload);
        if let Some((_, segments)) = &mut self.joining {
            *segments += 1;
        }
        if !shared.tun.has_offload() {
            self.flush(shared, arena);
        }
    }

    /// Writes what was joined, whose payload lies in the arena.
    fn flush(&mut self, shared: &Shared, arena: &[u8]) {
        let Some((peer, segments)) = self.joining.take() else { return };
        let Some(joined) = self.joiner.finish() else { return };
        let bytes = joined.bytes + joined.header.len() * (segments - 1);
        let is_written = if shared.tun.has_offload() {
            let note = joined.note.write();
            let mut pieces = [IoSlice::new(&[]); MOST_PIECES];
            pieces[0] = IoSlice::new(&note);
            pieces[1] = IoSlice::new(joined.header);
            for (piece, part) in pieces[2..].iter_mut().zip(joined.parts) {
                *piece = IoSlice::new(&arena[part.clone()]);
            }
            shared.tun.write(&pieces[..2 + joined.parts.len()]).is_ok()
        } else {
            let mut packet = joined.header.to_vec();
            joined.parts.iter().for_each(|part| packet.extend_from_slice(&arena[part.clone()]));
            complete_checksum(&joined.note, &mut packet);
            shared.write(&joined.note, &packet)
        };
        self.joiner.clear();
        count(&peer, is_written, segments, bytes);
    }
}

fn count(peer: &Peer, is_written: bool, packets: usize, bytes: usize) {
    if is_written {
        peer.counters.received(packets, bytes);
    } else {
        peer.counters.dropped(Dropped::TunRefused, packets);
    }
}

/// Whether a packet may come from this peer to us; counted if not.
fn is_allowed(shared: &Shared, peer: &Peer, packet: &[u8]) -> bool {
    let is_allowed = inner::ends(packet)
        .is_some_and(|(source, destination)| peer.addresses.has(source) && shared.me.has(destination));
    if !is_allowed {
        peer.counters.dropped(Dropped::Spoofed, 1);
    }
    is_allowed
}

/// A session's key in our hands.
struct Held<'a> {
    index: u32,
    way: Way,
    receive: &'a Receive,
    opener: Opener<'a>,
    has_come: bool,
}

impl<'a> Held<'a> {
    fn take(table: &'a Table, index: u32, way: Way) -> Option<Self> {
        let receive = table.receive.get(&index)?;
        Some(Self { index, way, receive, opener: receive.key.opener(), has_come: false })
    }

    fn may_come_from(&self, source: Source) -> bool {
        !matches!(source, Source::Introducer(from) if from != self.receive.peer.key)
    }
}
