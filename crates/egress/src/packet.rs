//! IP packets as they pass the box's device: read with every check, and the few that are written here rather than by the
//! TCP stack (UDP, resets, "unreachable").
//!
//! Pure. Always holds: nothing is read beyond the packet's own lengths; fragments, options of IPv6 and what is neither
//! TCP nor UDP are not read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const HOP_LIMIT: u8 = 64;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    /// In the box.
    pub(crate) from: SocketAddr,
    /// Outside.
    pub(crate) to: SocketAddr,
}

/// A packet out of the box.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Tcp { pair: Pair, head: TcpHead },
    Udp { pair: Pair, payload: &'a [u8] },
}

/// What a reset needs to know of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpHead {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    flags: u8,
    length: u32,
}

impl TcpHead {
    /// Opens a connection.
    pub(crate) fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    pub(crate) fn is_rst(&self) -> bool {
        self.flags & RST != 0
    }
}

/// Reads a packet; `None` is dropped.
pub(crate) fn read(bytes: &[u8]) -> Option<Packet<'_>> {
    let (from, to, protocol, body) = match bytes.first()? >> 4 {
        4 => read_v4(bytes)?,
        6 => read_v6(bytes)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let pair = Pair { from: SocketAddr::new(from, port(0)?), to: SocketAddr::new(to, port(2)?) };
    match protocol {
        TCP => Some(Packet::Tcp { pair, head: tcp_head(body)? }),
        UDP => {
            let length = usize::from(port(4)?);
            Some(Packet::Udp { pair, payload: body.get(UDP_HEADER..length)? })
        }
        _ => None,
    }
}

type Read<'a> = (IpAddr, IpAddr, u8, &'a [u8]);

fn read_v4(bytes: &[u8]) -> Option<Read<'_>> {
    let header: &[u8; V4_HEADER] = bytes.first_chunk()?;
    let header_bytes = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header_bytes < V4_HEADER || fragment != 0 {
        return None;
    }
    let body = bytes.get(header_bytes..total)?;
    let at = |n: usize| IpAddr::V4(Ipv4Addr::new(header[n], header[n + 1], header[n + 2], header[n + 3]));
    Some((at(12), at(16), header[9], body))
}

fn read_v6(bytes: &[u8]) -> Option<Read<'_>> {
    let header: &[u8; V6_HEADER] = bytes.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let body = bytes.get(V6_HEADER..V6_HEADER + length)?;
    let at = |n: usize| header[n..].first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets)));
    Some((at(8)?, at(24)?, header[6], body))
}

fn tcp_head(body: &[u8]) -> Option<TcpHead> {
    let header: &[u8; TCP_HEADER] = body.first_chunk()?;
    let data = body.len().checked_sub(usize::from(header[12] >> 4) * 4)?;
    let word = |n: usize| u32::from_be_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
    let flags = header[13];
    let marks = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    Some(TcpHead { seq: word(4), ack: word(8), flags, length: u32::try_from(data).ok()? + marks })
}

/// A datagram from outside into the box.
pub(crate) fn udp_into_box(pair: &Pair, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut body = Vec::with_capacity(length.into());
    for field in [pair.to.port(), pair.from.port(), length, 0] {
        body.extend(field.to_be_bytes());
    }
    body.extend(payload);
    let sum = pseudo_sum(pair.to.ip(), pair.from.ip(), UDP, &body)?;
    // Zero would mean that there is no checksum.
    let sum = if sum == 0 { 0xffff } else { sum };
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    packet(pair.to.ip(), pair.from.ip(), UDP, &body)
}

/// Says "no" to a segment as the other end's own stack would.
pub(crate) fn reset_into_box(pair: &Pair, head: &TcpHead) -> Option<Vec<u8>> {
    let acked = head.flags & ACK != 0;
    let (seq, ack, flags) =
        if acked { (head.ack, 0, RST) } else { (0, head.seq.wrapping_add(head.length), RST | ACK) };
    let mut body = Vec::with_capacity(TCP_HEADER);
    body.extend(pair.to.port().to_be_bytes());
    body.extend(pair.from.port().to_be_bytes());
    body.extend(u32::to_be_bytes(seq));
    body.extend(u32::to_be_bytes(ack));
    body.extend([5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    let sum = pseudo_sum(pair.to.ip(), pair.from.ip(), TCP, &body)?;
    body[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(pair.to.ip(), pair.from.ip(), TCP, &body)
}

/// Why something cannot be reached, as ICMP says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// Rules forbid it.
    Prohibited,
    /// No way leads there.
    Host,
    /// Nobody listens there.
    Port,
}

/// Tells the sender in the box that what it sent cannot arrive. `refused` is the packet it sent, or its beginning.
pub(crate) fn unreachable_into_box(refused: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let (from, to, _, _) = if refused.first()? >> 4 == 4 { read_v4(refused)? } else { read_v6(refused)? };
    let (kind, code, protocol, quoted) = match (to, why) {
        (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13, ICMP, V4_HEADER + 8),
        (IpAddr::V4(_), Unreachable::Host) => (3, 1, ICMP, V4_HEADER + 8),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3, ICMP, V4_HEADER + 8),
        (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1, ICMP_V6, 512),
        (IpAddr::V6(_), Unreachable::Host) => (1, 0, ICMP_V6, 512),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4, ICMP_V6, 512),
    };
    let mut body = vec![kind, code, 0, 0, 0, 0, 0, 0];
    body.extend(&refused[..refused.len().min(quoted)]);
    let sum = match protocol {
        ICMP => checksum([].iter(), &body),
        _ => pseudo_sum(to, from, ICMP_V6, &body)?,
    };
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(to, from, protocol, &body)
}

fn packet(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Option<Vec<u8>> {
    let mut packet;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(V4_HEADER + body.len()).ok()?;
            packet = vec![0x45, 0];
            packet.extend(total.to_be_bytes());
            // Not to be fragmented.
            packet.extend([0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let sum = checksum([].iter(), &packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet = vec![0x60, 0, 0, 0];
            packet.extend(u16::try_from(body.len()).ok()?.to_be_bytes());
            packet.extend([protocol, HOP_LIMIT]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => return None,
    }
    packet.extend(body);
    Some(packet)
}

fn pseudo_sum(from: IpAddr, to: IpAddr, protocol: u8, body: &[u8]) -> Option<u16> {
    let mut head = Vec::with_capacity(V6_HEADER);
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => head.extend(v4.octets()),
            IpAddr::V6(v6) => head.extend(v6.octets()),
        }
    }
    head.extend([0, protocol]);
    head.extend(u16::try_from(body.len()).ok()?.to_be_bytes());
    Some(checksum(head.iter(), body))
}

/// The internet checksum over a head of even length and a body.
fn checksum<'a>(head: impl Iterator<Item = &'a u8>, body: &'a [u8]) -> u16 {
    let (mut sum, mut high) = (0u64, true);
    for byte in head.chain(body) {
        sum += if high { u64::from(*byte) << 8 } else { u64::from(*byte) };
        high = !high;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(from: &str, to: &str) -> Pair {
        Pair { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    fn turned(pair: &Pair) -> Pair {
        Pair { from: pair.to, to: pair.from }
    }

    fn pairs() -> [Pair; 2] {
        [pair("10.77.0.1:4000", "203.0.113.9:53"), pair("[fd00::1]:4000", "[2001:db8::9]:53")]
    }

    #[test]
    fn what_is_written_is_read_back() {
        for pair in pairs() {
            let datagram = udp_into_box(&pair, b"hello").unwrap();
            assert_eq!(read(&datagram), Some(Packet::Udp { pair: turned(&pair), payload: b"hello" }));
            let syn = TcpHead { seq: 7, ack: 0, flags: SYN, length: 1 };
            let reset = reset_into_box(&pair, &syn).unwrap();
            let Some(Packet::Tcp { pair: back, head }) = read(&reset) else { panic!() };
            assert_eq!((back, head.seq, head.ack, head.flags), (turned(&pair), 0, 8, RST | ACK));
            let answer = reset_into_box(&pair, &TcpHead { flags: ACK, ack: 99, ..syn }).unwrap();
            let Some(Packet::Tcp { head, .. }) = read(&answer) else { panic!() };
            assert_eq!((head.seq, head.flags, head.is_syn(), head.is_rst()), (99, RST, false, true));
            let sent = udp_into_box(&turned(&pair), b"hello").unwrap();
            for why in [Unreachable::Prohibited, Unreachable::Host, Unreachable::Port] {
                assert!(unreachable_into_box(&sent, why).is_some());
            }
        }
    }

    #[test]
    fn every_checksum_adds_up() {
        for pair in pairs() {
            let datagram = udp_into_box(&pair, b"odd").unwrap();
            let (from, to, protocol, body) =
                if pair.to.is_ipv4() { read_v4(&datagram).unwrap() } else { read_v6(&datagram).unwrap() };
            assert_eq!(pseudo_sum(from, to, protocol, body), Some(0));
            if pair.to.is_ipv4() {
                assert_eq!(checksum([].iter(), &datagram[..V4_HEADER]), 0);
            }
        }
    }

    #[test]
    fn fragments_and_what_is_cut_off_are_not_read() {
        let mut datagram = udp_into_box(&pairs()[0], b"hello").unwrap();
        assert_eq!(read(&datagram[..datagram.len() - 1]), None);
        datagram[6] = 0x20;
        assert_eq!(read(&datagram), None, "more fragments");
        datagram[6..8].copy_from_slice(&[0, 1]);
        assert_eq!(read(&datagram), None, "not the first fragment");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), first in prop::sample::select(vec![0x45u8, 0x46, 0x60, 0x4f, 0])) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let _ = read(&bytes);
            let _ = unreachable_into_box(&bytes, Unreachable::Port);
        }
    }
}
