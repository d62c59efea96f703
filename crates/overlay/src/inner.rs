//! Inner packets: their ends, where their transport header is, checksums, and what a router says of one that is too
//! large (RFC 792, 1191 and 4443).
//!
//! Pure: bytes in, bytes out; any bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an IPv6 header.
pub const IPV6_BYTES: usize = 40;
const IPV4_BYTES: usize = 20;
/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of UDP.
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOPS: u8 = 64;
/// No IPv4 host need take less in one piece.
const LEAST_MTU: u16 = 576;
/// Every IPv6 way takes this in one piece.
const LEAST_MTU_V6: u16 = 1280;
/// How much of a packet an IPv6 error quotes: the answer must fit the least MTU.
const QUOTED_V6: usize = 1280 - IPV6_BYTES - 8;

/// Source and destination by the header alone.
pub fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<IPV4_BYTES>()?;
            let at = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
            Some((at(12).into(), at(16).into()))
        }
        6 => {
            let header = packet.first_chunk::<IPV6_BYTES>()?;
            let at = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&header[at..at + 16]);
                Ipv6Addr::from(octets)
            };
            Some((at(8).into(), at(24).into()))
        }
        _ => None,
    }
}

/// How long the IP packet is that begins here, by its header.
pub fn said_bytes(packet: &[u8]) -> Option<usize> {
    let word =
        |at: usize| packet.get(at..at + 2).map(|two| usize::from(u16::from_be_bytes([two[0], two[1]])));
    match packet.first()? >> 4 {
        4 => word(2).filter(|bytes| *bytes >= IPV4_BYTES),
        6 => word(4).map(|bytes| IPV6_BYTES + bytes),
        _ => None,
    }
}

/// Whether this is an IP packet that is neither longer nor shorter than its header says.
pub fn is_whole(packet: &[u8]) -> bool {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= IPV4_BYTES => {
            let header_bytes = usize::from(packet[0] & 15) * 4;
            header_bytes >= IPV4_BYTES && header_bytes <= packet.len() && word(2) == packet.len()
        }
        Some(6) if packet.len() >= IPV6_BYTES => word(4) + IPV6_BYTES == packet.len(),
        _ => false,
    }
}

/// Protocol and offset of the transport header; `None` for fragments and what has none.
pub fn transport(packet: &[u8]) -> Option<(u8, usize)> {
    match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<IPV4_BYTES>()?;
            let offset = usize::from(header[0] & 15) * 4;
            let fragmented = u16::from_be_bytes([header[6] & 0x3f, header[7]]) != 0;
            (offset >= IPV4_BYTES && !fragmented).then_some((header[9], offset))
        }
        6 => {
            let header = packet.first_chunk::<IPV6_BYTES>()?;
            let (mut next, mut offset) = (header[6], IPV6_BYTES);
            // Hop-by-hop, routing and destination options.
            while matches!(next, 0 | 43 | 60) {
                let extension = packet.get(offset..)?.first_chunk::<2>()?;
                next = extension[0];
                offset += 8 + usize::from(extension[1]) * 8;
            }
            Some((next, offset))
        }
        _ => None,
    }
}

/// A number that is the same for all packets of a flow, and hard to tell from chance otherwise.
pub fn flow(packet: &[u8]) -> u32 {
    let addresses = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(12..20),
        _ => packet.get(8..40),
    };
    let ports = match transport(packet) {
        Some((TCP | UDP, offset)) => packet.get(offset..offset + 4),
        _ => None,
    };
    let bytes = addresses.into_iter().chain(ports).flatten();
    // FNV-1a, and a last mix because its low bits are weak.
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ hash >> 15).wrapping_mul(0x2c1b_3c6d)
}

/// A sum of 16-bit words, to be folded once.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (pairs, odd) = bytes.as_chunks::<4>();
    let sum: u64 = pairs.iter().map(|four| u64::from(u32::from_be_bytes(*four))).sum();
    let mut last = [0; 4];
    last[..odd.len()].copy_from_slice(odd);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum into 16 bits.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The sum over what a transport checksum covers besides the transport itself.
pub(crate) fn pseudo_sum(header: &[u8], protocol: u8, transport_bytes: usize) -> u64 {
    let addresses = if header[0] >> 4 == 4 { &header[12..20] } else { &header[8..40] };
    sum(addresses) + u64::from(protocol) + transport_bytes as u64
}

/// The answer to a packet of which only `mtu` bytes fit: a whole packet for its sender, in the name of its
/// destination. `None` where none may be given: to errors, later fragments, groups, what is no packet, and where the
/// way is so narrow that it would be no help.
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    match ends(packet)? {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            fragmentation_needed(packet, mtu, source, destination)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => packet_too_big(packet, mtu, source, destination),
        _ => None,
    }
}

fn fragmentation_needed(packet: &[u8], mtu: u16, source: Ipv4Addr, destination: Ipv4Addr) -> Option<Vec<u8>> {
    let header_bytes = usize::from(packet[0] & 15) * 4;
    let quoted = packet.get(..header_bytes + 8)?;
    let fragment_offset = u16::from_be_bytes([packet[6] & 0x1f, packet[7]]);
    let is_error = packet[9] == ICMP && !matches!(quoted.get(header_bytes), Some(0 | 8));
    let answerable = header_bytes >= IPV4_BYTES
        && fragment_offset == 0
        && !is_error
        && mtu >= LEAST_MTU
        && !destination.is_multicast()
        && !destination.is_broadcast();
    answerable.then(|| {
        // Unreachable: fragmentation needed.
        let mut message = vec![3, 4, 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(quoted);
        let checksum = !fold(sum(&message));
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let length = u16::try_from(IPV4_BYTES + message.len()).unwrap_or(u16::MAX);
        let mut answer = vec![0x45, 0];
        answer.extend(length.to_be_bytes());
        answer.extend([0, 0, 0x40, 0, HOPS, ICMP, 0, 0]);
        answer.extend(destination.octets());
        answer.extend(source.octets());
        let checksum = !fold(sum(&answer));
        answer[10..12].copy_from_slice(&checksum.to_be_bytes());
        answer.extend(message);
        answer
    })
}

fn packet_too_big(packet: &[u8], mtu: u16, source: Ipv6Addr, destination: Ipv6Addr) -> Option<Vec<u8>> {
    let is_error = match transport(packet) {
        // Errors are the types below 128.
        Some((ICMPV6, offset)) => packet.get(offset).is_none_or(|kind| *kind < 128),
        transport => transport.is_none(),
    };
    let answerable = !is_error && mtu >= LEAST_MTU_V6 && !destination.is_multicast();
    answerable.then(|| {
        let mut message = vec![2, 0, 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(&packet[..packet.len().min(QUOTED_V6)]);
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        let mut answer = vec![0x60, 0, 0, 0];
        answer.extend(length.to_be_bytes());
        answer.extend([ICMPV6, HOPS]);
        answer.extend(destination.octets());
        answer.extend(source.octets());
        let checksum = !fold(pseudo_sum(&answer, ICMPV6, message.len()) + sum(&message));
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        answer.extend(message);
        answer
    })
}

#[cfg(test)]
mod tests;
