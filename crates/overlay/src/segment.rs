//! Large packets as the kernel hands them over: cut into segments that fit a way, and joined again.
//!
//! A TUN with offload gives up to 64 KiB of one TCP stream, or many datagrams of one size, as one packet with headers
//! for all of it and a note how to cut it (`virtio_net_hdr`). Each segment is sealed with those headers as they are and its
//! place in the train; the other side joins what arrives in order, repairs the headers for just that run, and hands the
//! kernel one large packet again. Nobody computes a checksum over payload.
//!
//! What always holds: what is handed to the kernel is a well-formed IP packet whatever was lost, doubled, moved or
//! made up on the way; payload bytes are not looked at. Pure: where payload lies is the caller's business (a `Range`).

use std::ops::Range;

use crate::{
    inner::{self, IPV6_BYTES, TCP, UDP},
    wire::{Kind, Shim},
};

/// Bytes of the header before each packet of a TUN with offload.
pub const VIRTIO_BYTES: usize = 10;
/// The largest IP packet.
pub const MOST_BYTES: usize = 65_535;
/// IP and TCP header with all options, over either version.
const MOST_HEADER_BYTES: usize = 120;
/// A train's segments are counted in a byte.
const MOST_SEGMENTS: usize = 255;
/// The kernel takes so many datagrams in one packet.
const MOST_DATAGRAMS: usize = 64;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

const TCP_CHECKSUM_OFFSET: u8 = 16;
const UDP_CHECKSUM_OFFSET: u8 = 6;
const UDP_BYTES: usize = 8;
const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The kernel's note before a packet (`struct virtio_net_hdr`), in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Virtio {
    /// Whether the checksum is still to be completed.
    pub flags: u8,
    /// What is large: 0 for nothing.
    pub kind: u8,
    /// Bytes of all headers.
    pub header_bytes: u16,
    /// Payload of each segment but the last.
    pub segment_bytes: u16,
    /// Where the checksum's coverage starts.
    pub checksum_start: u16,
    /// Where the checksum stands, from its start on.
    pub checksum_offset: u16,
}

impl Virtio {
    /// Reads the note.
    pub fn parse(bytes: &[u8; VIRTIO_BYTES]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            kind: bytes[1],
            header_bytes: word(2),
            segment_bytes: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// Writes the note.
    pub fn write(&self) -> [u8; VIRTIO_BYTES] {
        let mut bytes = [0; VIRTIO_BYTES];
        bytes[..2].copy_from_slice(&[self.flags, self.kind]);
        let words = [self.header_bytes, self.segment_bytes, self.checksum_start, self.checksum_offset];
        for (at, word) in words.into_iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// How a packet is to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As it is, behind this shim.
    Whole(Shim),
    /// In segments.
    Train(Train),
    /// Not at all: it is too large for the way, and nobody may cut it.
    TooBig,
    /// Not at all: the note does not fit the packet.
    Malformed,
}

/// How to cut a large packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    shim: Shim,
    /// Bytes of the headers, which stand in every segment.
    pub header_bytes: usize,
    /// Payload of each segment but the last.
    pub segment_bytes: usize,
}

/// Decides how a whole IP packet goes through a way that takes `room` inner bytes at once. `train` names the train.
pub fn cut(virtio: &Virtio, packet: &[u8], room: usize, train: u16) -> Cut {
    let kind = match virtio.kind & !GSO_ECN {
        0 if packet.len() <= room => return whole(virtio, packet),
        0 => match inner::transport(packet) {
            Some((TCP, _)) => tcp_kind(packet),
            _ => return Cut::TooBig,
        },
        GSO_TCP4 | GSO_TCP6 => tcp_kind(packet),
        GSO_UDP => Kind::Udp,
        _ => return Cut::Malformed,
    };
    let Some(headers) = Headers::find(kind, packet) else { return Cut::Malformed };
    let (header_bytes, payload_bytes) = (headers.bytes, packet.len() - headers.bytes);
    // A stream may be cut anywhere, so it is cut as the way has it; datagrams are what they are.
    let segment_bytes = match kind {
        Kind::Udp => usize::from(virtio.segment_bytes),
        _ => room.saturating_sub(header_bytes),
    };
    if segment_bytes == 0 || header_bytes + segment_bytes.min(payload_bytes) > room {
        return Cut::TooBig;
    }
    let shim = headers.shim(kind, train, u16::try_from(segment_bytes).unwrap_or(u16::MAX));
    if payload_bytes <= segment_bytes {
        return Cut::Whole(Shim {
            kind: Kind::Packet,
            partial: true,
            train: 0,
            segment_bytes: 0,
            header_bytes: 0,
            ..shim
        });
    }
    Cut::Train(Train { shim, header_bytes, segment_bytes })
}

fn tcp_kind(packet: &[u8]) -> Kind {
    if packet[0] >> 4 == 4 { Kind::Tcp4 } else { Kind::Tcp6 }
}

fn whole(virtio: &Virtio, packet: &[u8]) -> Cut {
    if virtio.flags & NEEDS_CHECKSUM == 0 {
        return Cut::Whole(Shim::plain(Kind::Packet));
    }
    let fields = (u8::try_from(virtio.checksum_start), u8::try_from(virtio.checksum_offset));
    let (Ok(checksum_start), Ok(checksum_offset)) = fields else { return Cut::Malformed };
    let shim = Shim { partial: true, checksum_start, checksum_offset, ..Shim::plain(Kind::Packet) };
    if checksum_fits(&shim, packet) { Cut::Whole(shim) } else { Cut::Malformed }
}

/// Whether the checksum lies in the packet, and behind its IP header: to complete it must not change addresses that
/// were looked at already.
fn checksum_fits(shim: &Shim, packet: &[u8]) -> bool {
    let start = usize::from(shim.checksum_start);
    let header_bytes = match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 15) * 4,
        _ => IPV6_BYTES,
    };
    start >= header_bytes.max(20) && start + usize::from(shim.checksum_offset) + 2 <= packet.len()
}

impl Train {
    /// The payload in parts, each of which is a train of its own: its shim, its headers and its payload. Almost always
    /// one.
    pub fn parts<'a>(
        &self,
        packet: &'a [u8],
    ) -> impl Iterator<Item = (Shim, HeaderBuffer, &'a [u8])> + use<'a> {
        let Self { shim, header_bytes, segment_bytes } = *self;
        let (header, payload) = packet.split_at(header_bytes);
        let part_bytes = segment_bytes * MOST_SEGMENTS;
        let last = payload.len().div_ceil(part_bytes) - 1;
        payload.chunks(part_bytes).enumerate().map(move |(at, part)| {
            let mut headers = HeaderBuffer::new(header);
            advance(headers.get_mut(), &shim, at * MOST_SEGMENTS, at == last);
            let count = u8::try_from(part.len().div_ceil(segment_bytes)).unwrap_or(u8::MAX);
            let train = shim.train.wrapping_add(u16::try_from(at).unwrap_or(0));
            (Shim { train, count, ..shim }, headers, part)
        })
    }
}

/// A copy of the headers of a packet.
#[derive(Clone, Debug)]
pub struct HeaderBuffer {
    bytes: [u8; MOST_HEADER_BYTES],
    length: usize,
}

impl HeaderBuffer {
    fn new(header: &[u8]) -> Self {
        let mut bytes = [0; MOST_HEADER_BYTES];
        bytes[..header.len()].copy_from_slice(header);
        Self { bytes, length: header.len() }
    }

    /// The headers.
    pub fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

/// Where the headers of a packet end that is of a kind that can be cut.
struct Headers {
    bytes: usize,
    transport: usize,
}

impl Headers {
    fn find(kind: Kind, packet: &[u8]) -> Option<Self> {
        let version = packet.first()? >> 4;
        let (protocol, transport) = inner::transport(packet)?;
        let (wanted, transport_bytes) = match (kind, version) {
            (Kind::Tcp4, 4) | (Kind::Tcp6, 6) => (TCP, usize::from(packet.get(transport + 12)? >> 4) * 4),
            (Kind::Udp, 4 | 6) => (UDP, UDP_BYTES),
            _ => return None,
        };
        let bytes = transport + transport_bytes;
        let least = if wanted == TCP { 20 } else { UDP_BYTES };
        let fits =
            protocol == wanted && transport_bytes >= least && bytes <= packet.len().min(MOST_HEADER_BYTES);
        fits.then_some(Self { bytes, transport })
    }

    fn shim(&self, kind: Kind, train: u16, segment_bytes: u16) -> Shim {
        let byte = |length: usize| u8::try_from(length).unwrap_or(u8::MAX);
        Shim {
            kind,
            partial: false,
            header_bytes: byte(self.bytes),
            checksum_start: byte(self.transport),
            checksum_offset: checksum_offset(kind),
            train,
            index: 0,
            segment_bytes,
            count: 0,
            padding_bytes: 0,
        }
    }
}

const fn checksum_offset(kind: Kind) -> u8 {
    if matches!(kind, Kind::Udp) { UDP_CHECKSUM_OFFSET } else { TCP_CHECKSUM_OFFSET }
}

/// Makes the headers of a train those of its segments from `first` on, `to_last` or not. Lengths and checksums come
/// later.
fn advance(header: &mut [u8], shim: &Shim, first: usize, to_last: bool) {
    if header[0] >> 4 == 4 {
        let number = u16::from_be_bytes([header[4], header[5]]);
        let number = number.wrapping_add(u16::try_from(first & 0xffff).unwrap_or(0));
        header[4..6].copy_from_slice(&number.to_be_bytes());
    }
    if shim.kind == Kind::Udp {
        return;
    }
    let tcp = &mut header[usize::from(shim.checksum_start)..];
    let ahead = u32::try_from(first * usize::from(shim.segment_bytes)).unwrap_or(0);
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(ahead);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    if !to_last {
        tcp[13] &= !FIN_AND_PSH;
    }
    if first > 0 {
        tcp[13] &= !CWR;
    }
}

/// Checks what a shim says of one received packet that is no segment; its note for the kernel.
pub fn whole_note(shim: &Shim, packet: &[u8]) -> Option<Virtio> {
    if !inner::is_whole(packet) {
        return None;
    }
    if !shim.partial {
        return Some(Virtio::default());
    }
    checksum_fits(shim, packet).then(|| Virtio {
        flags: NEEDS_CHECKSUM,
        checksum_start: shim.checksum_start.into(),
        checksum_offset: shim.checksum_offset.into(),
        ..Virtio::default()
    })
}

/// Completes the checksum of a packet that has a sum for a start, for a device that cannot.
pub fn complete_checksum(note: &Virtio, packet: &mut [u8]) {
    if note.flags & NEEDS_CHECKSUM == 0 {
        return;
    }
    let start = usize::from(note.checksum_start);
    let at = start + usize::from(note.checksum_offset);
    let checksum = match !inner::fold(inner::sum(&packet[start..])) {
        // To UDP, 0 says that there is none; all ones is the same number.
        0 => 0xffff,
        checksum => checksum,
    };
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Joins segments that follow each other.
#[derive(Debug)]
pub struct Joiner {
    running: bool,
    shim: Shim,
    next: usize,
    header: HeaderBuffer,
    parts: Vec<Range<usize>>,
    payload_bytes: usize,
}

/// A packet for the kernel: note and headers, then payload.
#[derive(Debug)]
pub struct Joined<'a> {
    /// The note.
    pub note: Virtio,
    /// The headers.
    pub header: &'a [u8],
    /// Where the payload lies, in order.
    pub parts: &'a [Range<usize>],
    /// Bytes of headers and payload together.
    pub bytes: usize,
}

impl Default for Joiner {
    fn default() -> Self {
        Self {
            running: false,
            shim: Shim::plain(Kind::Packet),
            next: 0,
            header: HeaderBuffer { bytes: [0; MOST_HEADER_BYTES], length: 0 },
            parts: Vec::with_capacity(MOST_SEGMENTS),
            payload_bytes: 0,
        }
    }
}

impl Joiner {
    /// Whether a segment continues the present run. Ask [`is_segment`] or [`datagram`] first.
    pub fn continues(&self, shim: &Shim, segment: &[u8]) -> bool {
        let Shim { index, count, .. } = *shim;
        if !self.running {
            return false;
        }
        let is_next = if count == 0 {
            self.parts.len() < MOST_DATAGRAMS && is_sibling(self.header.get(), segment)
        } else {
            usize::from(index) == self.next && segment.starts_with(self.header.get())
        };
        is_next
            && *shim == Shim { index, ..self.shim }
            && self.bytes() + segment.len() - self.header.length <= MOST_BYTES
    }

    /// Adds a segment that starts a run, or continues it. Its payload lies at `payload`.
    pub fn add(&mut self, shim: &Shim, segment: &[u8], payload: Range<usize>) {
        if !self.running {
            self.running = true;
            self.shim = *shim;
            self.next = usize::from(shim.index);
            self.header = HeaderBuffer::new(&segment[..usize::from(shim.header_bytes)]);
        }
        self.next += 1;
        self.payload_bytes += payload.len();
        self.parts.push(payload);
    }

    /// Whether there is a run.
    pub fn is_running(&self) -> bool {
        self.running
    }

    fn bytes(&self) -> usize {
        self.header.length + self.payload_bytes
    }

    /// The run as a packet, if there is one. It must be [`Self::clear`]ed before the next one.
    pub fn finish(&mut self) -> Option<Joined<'_>> {
        if !self.running {
            return None;
        }
        let (bytes, shim) = (self.bytes(), self.shim);
        let header = self.header.get_mut();
        let to_last = self.next == usize::from(shim.count);
        advance(header, &shim, usize::from(shim.index), to_last);
        repair(header, &shim, bytes);
        let note = note(&shim, header, self.parts.len());
        Some(Joined { note, header: self.header.get(), parts: &self.parts, bytes })
    }

    /// Forgets the run.
    pub fn clear(&mut self) {
        self.running = false;
        self.parts.clear();
        self.payload_bytes = 0;
    }
}

/// Whether a datagram is of the same flow and size as the one with this header: all but the number of an IPv4 packet,
/// and the checksum with it, is the same.
fn is_sibling(header: &[u8], datagram: &[u8]) -> bool {
    let Some(other) = datagram.get(..header.len()) else { return false };
    if header[0] >> 4 != 4 {
        return header == other;
    }
    header[..4] == other[..4] && header[6..10] == other[6..10] && header[12..] == other[12..]
}

/// The shim under which a lone datagram joins others of its flow and size: that of a train without end. `None` for
/// what is no datagram, or whose checksum is done already. Ask [`whole_note`] first.
pub fn datagram(shim: &Shim, packet: &[u8]) -> Option<Shim> {
    let headers = Headers::find(Kind::Udp, packet).filter(|headers| headers.bytes < packet.len())?;
    let length = u16::from_be_bytes([packet[headers.transport + 4], packet[headers.transport + 5]]);
    let is_whole = usize::from(length) == packet.len() - headers.transport;
    let is_partial = shim.partial
        && usize::from(shim.checksum_start) == headers.transport
        && shim.checksum_offset == UDP_CHECKSUM_OFFSET;
    let payload_bytes = u16::try_from(packet.len() - headers.bytes).ok()?;
    (is_whole && is_partial).then(|| headers.shim(Kind::Udp, 0, payload_bytes))
}

/// Checks what a shim says of one received segment: headers and payload.
pub fn is_segment(shim: &Shim, segment: &[u8]) -> bool {
    let (header_bytes, full) = (usize::from(shim.header_bytes), usize::from(shim.segment_bytes));
    let Some(headers) = Headers::find(shim.kind, segment) else { return false };
    let Some(payload_bytes) = segment.len().checked_sub(header_bytes) else { return false };
    let is_last = u16::from(shim.index) + 1 == u16::from(shim.count);
    headers.bytes == header_bytes
        && headers.transport == usize::from(shim.checksum_start)
        && shim.checksum_offset == checksum_offset(shim.kind)
        && shim.index < shim.count
        && !shim.partial
        && payload_bytes > 0
        && segment.len() <= MOST_BYTES
        && if is_last { payload_bytes <= full } else { payload_bytes == full }
}

/// Writes lengths, the IP checksum and the start of the transport's.
fn repair(header: &mut [u8], shim: &Shim, bytes: usize) {
    let transport = usize::from(shim.checksum_start);
    let transport_bytes = bytes - transport;
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    if header[0] >> 4 == 4 {
        header[2..4].copy_from_slice(&length(bytes));
        header[10..12].copy_from_slice(&[0, 0]);
        let checksum = !inner::fold(inner::sum(&header[..transport]));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        header[4..6].copy_from_slice(&length(bytes - IPV6_BYTES));
    }
    let protocol = if shim.kind == Kind::Udp { UDP } else { TCP };
    if protocol == UDP {
        header[transport + 4..transport + 6].copy_from_slice(&length(transport_bytes));
    }
    let start = inner::fold(inner::pseudo_sum(header, protocol, transport_bytes));
    let at = transport + usize::from(shim.checksum_offset);
    header[at..at + 2].copy_from_slice(&start.to_be_bytes());
}

fn note(shim: &Shim, header: &[u8], segments: usize) -> Virtio {
    let alone = Virtio {
        flags: NEEDS_CHECKSUM,
        kind: 0,
        header_bytes: shim.header_bytes.into(),
        segment_bytes: 0,
        checksum_start: shim.checksum_start.into(),
        checksum_offset: shim.checksum_offset.into(),
    };
    if segments == 1 {
        return alone;
    }
    let ecn = match shim.kind {
        Kind::Udp => 0,
        _ if header[usize::from(shim.checksum_start) + 13] & CWR == 0 => 0,
        _ => GSO_ECN,
    };
    let kind = match shim.kind {
        Kind::Tcp4 => GSO_TCP4,
        Kind::Tcp6 => GSO_TCP6,
        _ => GSO_UDP,
    };
    Virtio { kind: kind | ecn, segment_bytes: shim.segment_bytes, ..alone }
}

#[cfg(test)]
mod tests;
