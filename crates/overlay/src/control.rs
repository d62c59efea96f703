//! What members say to each other about the ways between them: candidates (in handshakes, and sealed when they
//! change), probes and their echoes (sealed). Formats only; what they lead to is `paths` and `machine`.
//!
//! What always holds: lists are bounded, every length is checked, and whatever was parsed is written the same. Zeros
//! behind a message mean nothing: they hide how long it is.

use std::net::SocketAddr;

use crate::relay::message::{ADDRESS_BYTES, Token, read_address, take, write_address};

/// How many addresses of each kind a member may name.
pub const MOST_ADDRESSES: usize = 16;
/// How many relays a member may name.
pub const MOST_RELAYS: usize = 4;
/// How a relay is called between members: the beginning of its id.
pub type RelayName = [u8; 8];

const PROBE: u8 = 1;
const ECHO: u8 = 2;
const CANDIDATES: u8 = 3;
const HAVE: u8 = 4;
const CALL: u8 = 5;

/// How a member's NAT makes the ports that others see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// Not seen by two others yet.
    #[default]
    Unknown,
    /// One port for whomever it speaks to: others reach it there once it has spoken to them.
    Independent,
    /// A new port for each destination, this far from the one before.
    Stepping(i8),
    /// A new port for each destination, anywhere.
    Random,
}

/// Where a member may be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Counts up with each change; an older one is ignored.
    pub sequence: u32,
    /// Addresses on its machine's own networks.
    pub local: Vec<SocketAddr>,
    /// Addresses that relays saw it from, the newest first.
    pub seen: Vec<SocketAddr>,
    /// What its NAT does.
    pub mapping: Mapping,
    /// The relays it waits at.
    pub relays: Vec<RelayName>,
}

impl Candidates {
    /// Its bytes. What is beyond the bounds is left out.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = self.sequence.to_be_bytes().to_vec();
        bytes.extend(match self.mapping {
            Mapping::Unknown => [0, 0],
            Mapping::Independent => [1, 0],
            Mapping::Stepping(step) => [2, step.to_be_bytes()[0]],
            Mapping::Random => [3, 0],
        });
        for list in [&self.local, &self.seen] {
            bytes.push(u8::try_from(list.len().min(MOST_ADDRESSES)).unwrap_or(0));
            list.iter().take(MOST_ADDRESSES).for_each(|address| bytes.extend(write_address(*address)));
        }
        bytes.push(u8::try_from(self.relays.len().min(MOST_RELAYS)).unwrap_or(0));
        self.relays.iter().take(MOST_RELAYS).for_each(|relay| bytes.extend(relay));
        bytes
    }

    /// Reads them; `None` if a list is too long or something stands behind them.
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let sequence = u32::from_be_bytes(take(rest)?);
        let mapping = match take(rest)? {
            [0, 0] => Mapping::Unknown,
            [1, 0] => Mapping::Independent,
            [2, step] => Mapping::Stepping(i8::from_be_bytes([step])),
            [3, 0] => Mapping::Random,
            _ => return None,
        };
        let local = addresses(rest)?;
        let seen = addresses(rest)?;
        let [count] = take(rest)?;
        let count = Some(usize::from(count)).filter(|count| *count <= MOST_RELAYS)?;
        let relays = (0..count).map(|_| take(rest)).collect::<Option<_>>()?;
        is_padding(rest).then_some(Self { sequence, local, seen, mapping, relays })
    }
}

fn is_padding(rest: &[u8]) -> bool {
    rest.iter().all(|byte| *byte == 0)
}

fn addresses(rest: &mut &[u8]) -> Option<Vec<SocketAddr>> {
    let [count] = take(rest)?;
    let count = Some(usize::from(count)).filter(|count| *count <= MOST_ADDRESSES)?;
    (0..count).map(|_| take::<ADDRESS_BYTES>(rest).map(read_address)).collect()
}

/// A sealed message about the ways between two members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Asks for an echo by the way it came; the rest of the packet is padding.
    Probe {
        /// Names the probe.
        token: Token,
    },
    /// A probe has come.
    Echo {
        /// Of the probe.
        token: Token,
        /// Bytes of the whole sealed packet that came.
        packet_bytes: u16,
        /// From where it came; the unspecified address where a relay stood between.
        seen: SocketAddr,
    },
    /// Where the sender may be reached now.
    Candidates(Candidates),
    /// The candidates of this sequence number have come.
    Have {
        /// The number.
        sequence: u32,
    },
    /// The sender has many sockets open behind a NAT that takes random ports, each of which has spoken to the receiver:
    /// a probe to a port that one of them got comes through.
    Call,
}

impl Control {
    /// Its bytes, padded to `least` bytes.
    pub fn write(&self, least: usize) -> Vec<u8> {
        let mut bytes = match self {
            Self::Probe { token } => [&[PROBE][..], token].concat(),
            Self::Echo { token, packet_bytes, seen } => {
                [&[ECHO][..], token, &packet_bytes.to_be_bytes(), &write_address(*seen)].concat()
            }
            Self::Candidates(candidates) => [&[CANDIDATES][..], &candidates.write()].concat(),
            Self::Have { sequence } => [&[HAVE][..], &sequence.to_be_bytes()].concat(),
            Self::Call => vec![CALL],
        };
        bytes.resize(bytes.len().max(least), 0);
        bytes
    }

    /// Reads one; `None` if it is none.
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let [kind] = take(rest)?;
        if kind == CANDIDATES {
            return Candidates::parse(rest).map(Self::Candidates);
        }
        let parsed = match kind {
            PROBE => {
                let token = take(rest)?;
                *rest = &[];
                Self::Probe { token }
            }
            ECHO => Self::Echo {
                token: take(rest)?,
                packet_bytes: u16::from_be_bytes(take(rest)?),
                seen: read_address(take(rest)?),
            },
            HAVE => Self::Have { sequence: u32::from_be_bytes(take(rest)?) },
            CALL => Self::Call,
            _ => return None,
        };
        is_padding(rest).then_some(parsed)
    }
}
