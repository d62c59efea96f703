//! What the first bytes of a packet say, and the shim that stands first in what is sealed.
//!
//! What always holds: a shim that was parsed is one that may be written; what its fields say of a packet is checked
//! against the packet where that is used (`segment`).

use crate::crypt::{PREFIX_BYTES, TAG_BYTES};

/// Bytes of the shim.
pub const SHIM_BYTES: usize = 12;
/// What sealing adds to an inner packet.
pub const OVERHEAD_BYTES: usize = PREFIX_BYTES + SHIM_BYTES + TAG_BYTES;
/// What a shim can say of padding.
pub const MOST_PADDING_BYTES: usize = 0x7ff;
/// Bytes of a relay's channel.
pub const CHANNEL_BYTES: usize = 4;

/// What a received packet is, by its first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// A message of its own: handshake or relay.
    Message,
    /// Sealed for the session with this index of ours.
    Session(u32),
    /// Through this channel of a relay; a whole packet follows.
    Channel(u32),
}

/// What a packet is; `None` if no packet begins so.
pub fn first(packet: &[u8]) -> Option<First> {
    match u32::from_be_bytes(*packet.first_chunk()?) {
        0..=0xff => Some(First::Message),
        index @ 0x4000_0000..=0x7fff_ffff => Some(First::Session(index)),
        channel @ 0x8000_0000.. => Some(First::Channel(channel)),
        _ => None,
    }
}

/// A session index made of random bits.
pub fn session_index(random: u32) -> u32 {
    random & 0x3fff_ffff | 0x4000_0000
}

/// What is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One IP packet.
    Packet,
    /// Several IP packets, each with a note of its own before it.
    Several,
    /// A segment of a large TCP packet over IPv4.
    Tcp4,
    /// A segment of a large TCP packet over IPv6.
    Tcp6,
    /// One of many datagrams that came as one large packet.
    Udp,
    /// One half of a shim and what stands behind it; the index says which, the train names the two.
    Half,
    /// For the other side's control.
    Control,
    /// Nothing, for the look of it.
    Cover,
}

/// The first sealed bytes. Which fields mean something depends on the kind; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shim {
    /// What follows.
    pub kind: Kind,
    /// Whether the checksum at start and offset is still to be completed.
    pub partial: bool,
    /// Bytes of IP and transport headers before a segment's payload.
    pub header_bytes: u8,
    /// Where the checksum's coverage starts.
    pub checksum_start: u8,
    /// Where the checksum stands, from its start on.
    pub checksum_offset: u8,
    /// Which train a segment is of.
    pub train: u16,
    /// Its place in the train.
    pub index: u8,
    /// Payload bytes of every segment of the train but the last.
    pub segment_bytes: u16,
    /// Segments of the train.
    pub count: u8,
    /// Bytes at the end of the packet that mean nothing, at most [`MOST_PADDING_BYTES`].
    pub padding_bytes: u16,
}

impl Shim {
    /// The shim of something that is no segment and has no checksum to complete.
    pub const fn plain(kind: Kind) -> Self {
        Self {
            kind,
            partial: false,
            header_bytes: 0,
            checksum_start: 0,
            checksum_offset: 0,
            train: 0,
            index: 0,
            segment_bytes: 0,
            count: 0,
            padding_bytes: 0,
        }
    }

    /// Its bytes.
    pub const fn write(&self) -> [u8; SHIM_BYTES] {
        let kind = match self.kind {
            Kind::Packet => 0,
            Kind::Several => 2,
            Kind::Tcp4 => 1,
            Kind::Tcp6 => 4,
            Kind::Udp => 5,
            Kind::Half => 3,
            Kind::Control => 0x40,
            Kind::Cover => 0x41,
        };
        let [train, segment] = [self.train.to_be_bytes(), self.segment_bytes.to_be_bytes()];
        let padding = self.padding_bytes.to_be_bytes();
        [
            kind,
            self.partial as u8 | (padding[0] & 7) << 1,
            self.header_bytes,
            self.checksum_start,
            self.checksum_offset,
            train[0],
            train[1],
            self.index,
            segment[0],
            segment[1],
            self.count,
            padding[1],
        ]
    }

    /// Reads one; `None` if kind or flags are not known to us.
    pub fn parse(bytes: &[u8; SHIM_BYTES]) -> Option<Self> {
        let kind = match bytes[0] {
            0 => Kind::Packet,
            2 => Kind::Several,
            1 => Kind::Tcp4,
            4 => Kind::Tcp6,
            5 => Kind::Udp,
            3 => Kind::Half,
            0x40 => Kind::Control,
            0x41 => Kind::Cover,
            _ => return None,
        };
        (bytes[1] <= 0xf).then(|| Self {
            kind,
            partial: bytes[1] & 1 == 1,
            header_bytes: bytes[2],
            checksum_start: bytes[3],
            checksum_offset: bytes[4],
            train: u16::from_be_bytes([bytes[5], bytes[6]]),
            index: bytes[7],
            segment_bytes: u16::from_be_bytes([bytes[8], bytes[9]]),
            count: bytes[10],
            padding_bytes: u16::from_be_bytes([bytes[1] >> 1, bytes[11]]),
        })
    }

    /// Takes the padding off what stands behind the shim; `None` if that is shorter than its padding.
    pub fn trim<'a>(&mut self, behind: &'a [u8]) -> Option<&'a [u8]> {
        let padding_bytes = usize::from(std::mem::take(&mut self.padding_bytes));
        behind.get(..behind.len().checked_sub(padding_bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_bytes_tell_what_a_packet_is() {
        for (bytes, is) in [
            (vec![], None),
            (vec![0, 0, 0], None),
            (vec![0, 0, 0, 1], Some(First::Message)),
            (vec![0, 0, 1, 0], None),
            (vec![0x3f, 0xff, 0xff, 0xff], None),
            (vec![0x40, 0, 0, 0, 9], Some(First::Session(0x4000_0000))),
            (vec![0x7f, 0xff, 0xff, 0xff], Some(First::Session(0x7fff_ffff))),
            (vec![0x80, 0, 0, 0], Some(First::Channel(0x8000_0000))),
            (vec![0xff; 4], Some(First::Channel(u32::MAX))),
        ] {
            assert_eq!(first(&bytes), is, "{bytes:?}");
        }
        assert_eq!(first(&session_index(u32::MAX).to_be_bytes()), Some(First::Session(0x7fff_ffff)));
        assert_eq!(first(&session_index(0).to_be_bytes()), Some(First::Session(0x4000_0000)));
    }

    proptest! {
        #[test]
        fn what_parses_is_written_the_same(bytes: [u8; SHIM_BYTES], kind in 0..8_usize) {
            let mut bytes = bytes;
            bytes[0] = [0, 1, 2, 3, 4, 5, 0x40, 0x41][kind];
            bytes[1] &= 0xf;
            prop_assert_eq!(Shim::parse(&bytes).unwrap().write(), bytes);
        }
    }
}
