//! Cells: what is sealed in packets of one size. Several small packets that wait together share one.
//!
//! What always holds: what was taken in leaves in order, whole and once; what waits is bounded. What was received is
//! any bytes. Pure. Not here: when a cell leaves (`cover`), and padding and sealing.

use std::collections::VecDeque;

use crate::{
    inner,
    wire::{Kind, SHIM_BYTES, Shim},
};

/// Bytes that stand before each packet of several: where its checksum's coverage starts, and where the checksum
/// stands from there; 0 and 0 for one that is complete.
pub const NOTE_BYTES: usize = 2;

/// What waits for one peer, in cells.
#[derive(Debug)]
pub struct Cells {
    waiting: VecDeque<Cell>,
    /// Of cells that have left, to be used again.
    spare: Vec<Vec<u8>>,
    most: usize,
}

#[derive(Debug)]
struct Cell {
    plain: Vec<u8>,
    holds: Holds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    One,
    Several,
    Segment,
}

impl Cells {
    /// None; of more than `most` at once the newest are refused.
    pub fn new(most: usize) -> Self {
        Self { waiting: VecDeque::new(), spare: Vec::new(), most }
    }

    /// Cells that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes what stands behind a shim, in parts; `room` is what a cell holds of it. Whether it takes a cell of its own;
    /// `None` if there is no room for it.
    pub fn push(&mut self, shim: &Shim, parts: &[&[u8]], room: usize) -> Option<bool> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if shim.kind == Kind::Packet && self.share(shim, parts, bytes, room) {
            return Some(false);
        }
        if bytes > room || self.waiting.len() >= self.most {
            return None;
        }
        let mut plain = self.spare.pop().unwrap_or_default();
        plain.clear();
        plain.extend(shim.write());
        for part in parts {
            plain.extend_from_slice(part);
        }
        let holds = if shim.kind == Kind::Packet { Holds::One } else { Holds::Segment };
        self.waiting.push_back(Cell { plain, holds });
        Some(true)
    }

    /// Puts a packet behind those of the newest cell, if that has room.
    fn share(&mut self, shim: &Shim, parts: &[&[u8]], bytes: usize, room: usize) -> bool {
        let Some(Cell { plain, holds }) = self.waiting.back_mut() else { return false };
        let more_bytes = match holds {
            Holds::One => 2 * NOTE_BYTES + bytes,
            Holds::Several => NOTE_BYTES + bytes,
            Holds::Segment => return false,
        };
        if plain.len() + more_bytes > SHIM_BYTES + room {
            return false;
        }
        if *holds == Holds::One {
            let [start, offset] = [plain[3], plain[4]];
            let note = if plain[1] & 1 == 1 { [start, offset] } else { [0, 0] };
            plain.splice(..SHIM_BYTES, [&Shim::plain(Kind::Several).write()[..], &note].concat());
            *holds = Holds::Several;
        }
        plain.extend(note(shim));
        for part in parts {
            plain.extend_from_slice(part);
        }
        true
    }

    /// The oldest cell: a shim and what stands behind it, without padding.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.waiting.pop_front().map(|cell| cell.plain)
    }

    /// Gives a cell's memory back.
    pub fn reuse(&mut self, plain: Vec<u8>) {
        if self.spare.len() < 64 {
            self.spare.push(plain);
        }
    }
}

fn note(shim: &Shim) -> [u8; NOTE_BYTES] {
    if shim.partial { [shim.checksum_start, shim.checksum_offset] } else { [0, 0] }
}

/// The packets of a cell with several, each with the shim that it would have alone. The last is `None` if there is
/// something else behind them.
pub fn several(body: &[u8]) -> impl Iterator<Item = Option<(Shim, &[u8])>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = split(rest);
        rest = next.map_or(&[], |(_, _, rest)| rest);
        Some(next.map(|(shim, packet, _)| (shim, packet)))
    })
}

fn split(bytes: &[u8]) -> Option<(Shim, &[u8], &[u8])> {
    let ([checksum_start, checksum_offset], packets) = bytes.split_first_chunk::<NOTE_BYTES>()?;
    let (packet, rest) = packets.split_at_checked(inner::said_bytes(packets)?)?;
    let partial = *checksum_start > 0;
    let shim = Shim {
        partial,
        checksum_start: *checksum_start,
        checksum_offset: *checksum_offset,
        ..Shim::plain(Kind::Packet)
    };
    (partial || *checksum_offset == 0).then_some((shim, packet, rest))
}
