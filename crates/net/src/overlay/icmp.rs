//! What a router says of a packet that is too large for the way ahead (RFC 792 and 1191), so that its sender adapts.
//!
//! Pure: bytes in, bytes out. Not here: when a packet is too large.

use std::net::Ipv4Addr;

const HEADER_BYTES: usize = 20;
const ICMP: u8 = 1;
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const HOPS: u8 = 64;
/// No host need take less in one piece.
const LEAST_MTU: u16 = 576;

/// The answer to an IPv4 packet of which only `mtu` bytes fit: a whole IPv4 packet for its sender, in the name of its
/// destination. `None` where none may be given: to errors, later fragments, groups, what is no packet, and where the way
/// is so narrow that it would be no help.
pub(super) fn fragmentation_needed(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let header = packet.first_chunk::<HEADER_BYTES>()?;
    let header_bytes = usize::from(header[0] & 15) * 4;
    let quoted = packet.get(..header_bytes + 8)?;
    let fragment_offset = u16::from_be_bytes([header[6] & 0x1f, header[7]]);
    let [source, destination] =
        [12, 16].map(|at| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
    let is_error = header[9] == ICMP && !matches!(quoted[header_bytes], 0 | 8);
    let answerable = header[0] >> 4 == 4
        && header_bytes >= HEADER_BYTES
        && fragment_offset == 0
        && !is_error
        && mtu >= LEAST_MTU
        && !destination.is_multicast()
        && !destination.is_broadcast();
    answerable.then(|| {
        let mut message = vec![UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(quoted);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut answer = ip_header(destination, source, message.len());
        answer.extend(message);
        answer
    })
}

fn ip_header(source: Ipv4Addr, destination: Ipv4Addr, payload_bytes: usize) -> Vec<u8> {
    let length = u16::try_from(HEADER_BYTES + payload_bytes).unwrap_or(u16::MAX);
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0x40, 0, HOPS, ICMP, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The Internet checksum: over bytes that carry their own it is 0.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of `bytes` with this protocol, flags and fragment offset, first payload byte and destination.
    fn packet(protocol: u8, fragment: u16, first: u8, destination: [u8; 4]) -> Vec<u8> {
        let mut packet = ip_header([10, 77, 0, 1].into(), destination.into(), 1280 - HEADER_BYTES);
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet.resize(1280, 7);
        packet[HEADER_BYTES] = first;
        packet
    }

    #[test]
    fn only_what_may_be_answered_is_answered() {
        const PEER: [u8; 4] = [10, 77, 0, 2];
        let mut short = packet(6, 0x4000, 1, PEER);
        short.truncate(27);
        let mut with_options = packet(17, 0x4000, 1, PEER);
        with_options[0] = 0x4f;
        let mut six = packet(6, 0, 1, PEER);
        six[0] = 0x65;
        for (packet, mtu, answered, what) in [
            (packet(6, 0x4000, 1, PEER), 1162, Some(56), "TCP"),
            (packet(17, 0, 1, PEER), 1162, Some(56), "a datagram that may be cut: its sender cuts the next"),
            (packet(17, 0x2000, 1, PEER), 1162, Some(56), "a first fragment"),
            (packet(17, 0x2001, 1, PEER), 1162, None, "a later fragment"),
            (packet(ICMP, 0x4000, 8, PEER), 1162, Some(56), "a large echo request"),
            (packet(ICMP, 0x4000, 3, PEER), 1162, None, "an error"),
            (packet(17, 0x4000, 1, [224, 0, 0, 1]), 1162, None, "a group"),
            (packet(17, 0x4000, 1, [255; 4]), 1162, None, "everybody"),
            (packet(6, 0x4000, 1, PEER), 575, None, "a way too narrow"),
            (with_options, 1162, Some(96), "options"),
            (short, 1162, None, "a packet that is cut"),
            (six, 1162, None, "another version"),
            (Vec::new(), 1162, None, "nothing"),
        ] {
            assert_eq!(fragmentation_needed(&packet, mtu).map(|answer| answer.len()), answered, "{what}");
        }
    }

    #[test]
    fn the_answer_quotes_the_packet_names_the_size_and_adds_up() {
        let asked = packet(6, 0x4000, 9, [10, 77, 0, 2]);
        let answer = fragmentation_needed(&asked, 1162).unwrap();
        assert_eq!(answer[..4], [0x45, 0, 0, 56]);
        assert_eq!((&answer[12..16], &answer[16..20]), (&asked[16..20], &asked[12..16]));
        assert_eq!((answer[20], answer[21], &answer[26..28]), (3, 4, &1162_u16.to_be_bytes()[..]));
        assert_eq!(answer[28..], asked[..28]);
        assert_eq!((checksum(&answer[..20]), checksum(&answer[20..])), (0, 0));
    }
}
