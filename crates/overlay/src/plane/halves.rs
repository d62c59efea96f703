//! What is too large for a way, and may not be cut by anybody else, in two packets.
//!
//! An inner IPv6 packet of 1,280 bytes must pass whatever the way is (RFC 8200, section 5), and a way over IPv6 may take no
//! more than that with everything around it. So what would have been sealed is sealed in halves, and taken like one
//! packet when both are there. Its sender is told what fits, where that helps. What always holds: few halves wait for
//! their other one, whatever comes; a half has no halves.

use std::collections::VecDeque;

use super::send::{Exit, Sender};
use crate::{
    Dropped,
    crypt::SendKey,
    inner,
    seam::Route,
    segment::{Cut, Virtio, cut},
    wire::{Kind, SHIM_BYTES, Shim},
};

/// The least MTU of IPv6: nobody heeds who says less.
const LEAST_V6_BYTES: usize = 1280;
/// Halves that wait for the other one.
const MOST_WAITING: usize = 32;

/// A way and what seals for it.
#[derive(Clone, Copy)]
pub(super) struct Leave<'a> {
    pub(super) route: &'a Route,
    pub(super) key: &'a SendKey,
    pub(super) exit: Exit,
    /// Inner bytes of one packet.
    pub(super) room: usize,
}

impl Sender {
    /// Sends a packet that is too large for its way, in halves, and tells its sender what fits.
    pub(super) fn too_big(&mut self, leave: Leave<'_>, virtio: &Virtio, packet: &[u8]) {
        let most = (leave.room * 2).saturating_sub(SHIM_BYTES);
        let bytes = match cut(virtio, packet, most, self.train) {
            Cut::Whole(shim) => {
                self.halves(leave, &shim, [packet, &[]]);
                packet.len()
            }
            Cut::Train(train) => {
                for (shim, header, part) in train.parts(packet) {
                    for (index, payload) in (0..).zip(part.chunks(train.segment_bytes)) {
                        self.halves(leave, &Shim { index, ..shim }, [header.get(), payload]);
                    }
                }
                train.header_bytes + train.segment_bytes
            }
            Cut::TooBig | Cut::Malformed => {
                leave.route.peer.counters.dropped(Dropped::TooBig, 1);
                packet.len()
            }
        };
        let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let fits = leave.room.max(if is_v6 { LEAST_V6_BYTES } else { 0 });
        let answer = u16::try_from(fits).ok().filter(|_| bytes > fits);
        if let Some(answer) = answer.and_then(|fits| inner::too_big(packet, fits)) {
            self.shared.write(&Virtio::default(), &answer);
        }
    }

    fn halves(&mut self, leave: Leave<'_>, shim: &Shim, [header, payload]: [&[u8]; 2]) {
        let Leave { route, key, exit, room } = leave;
        self.train = self.train.wrapping_add(1);
        let whole = [&shim.write()[..], header, payload].concat();
        for (index, half) in (0..).zip(whole.chunks(whole.len().div_ceil(2))) {
            let shim = Shim { train: self.train, index, ..Shim::plain(Kind::Half) };
            if self.shapers.is_some() {
                self.queue(route, room, &shim, [half, &[]]);
            } else {
                self.whole(route, key, exit, &shim, half);
            }
        }
    }
}

/// Halves that wait for the other one.
#[derive(Debug, Default)]
pub(super) struct Halves(VecDeque<Half>);

#[derive(Debug)]
struct Half {
    session: u32,
    name: u16,
    index: u8,
    bytes: Vec<u8>,
}

/// What becomes of a half.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The other one is not there.
    Waits,
    /// Both are there: a shim and what stands behind it.
    Whole(Vec<u8>),
}

impl Halves {
    /// Takes one; `None` if it is none.
    pub(super) fn take(&mut self, session: u32, shim: &Shim, bytes: &[u8]) -> Option<Taken> {
        let (name, index) = (shim.train, shim.index);
        if index > 1 {
            return None;
        }
        let is_other = |half: &Half| (half.session, half.name, half.index) == (session, name, 1 - index);
        if let Some(at) = self.0.iter().position(is_other) {
            let other = self.0.remove(at)?.bytes;
            let parts = if index == 0 { [bytes, &other] } else { [&other[..], bytes] };
            let whole = parts.concat();
            let kind = Shim::parse(whole.first_chunk()?)?.kind;
            let is_whole = matches!(kind, Kind::Packet | Kind::Tcp4 | Kind::Tcp6 | Kind::Udp);
            return is_whole.then_some(Taken::Whole(whole));
        }
        if self.0.len() >= MOST_WAITING {
            self.0.pop_front();
        }
        self.0.push_back(Half { session, name, index, bytes: bytes.to_vec() });
        Some(Taken::Waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(name: u16, index: u8) -> Shim {
        Shim { train: name, index, ..Shim::plain(Kind::Half) }
    }

    #[test]
    fn halves_find_each_other_in_any_order() {
        let whole = [&Shim::plain(Kind::Packet).write()[..], b"a packet"].concat();
        let (first, second) = whole.split_at(9);
        for [(a, a_bytes), (b, b_bytes)] in [[(0, first), (1, second)], [(1, second), (0, first)]] {
            let mut halves = Halves::default();
            assert_eq!(halves.take(1, &half(7, a), a_bytes), Some(Taken::Waits));
            assert_eq!(halves.take(2, &half(7, b), b_bytes), Some(Taken::Waits), "of another session");
            assert_eq!(halves.take(1, &half(8, b), b_bytes), Some(Taken::Waits), "of another packet");
            assert_eq!(halves.take(1, &half(7, b), b_bytes), Some(Taken::Whole(whole.clone())));
            assert_eq!(halves.take(1, &half(7, b), b_bytes), Some(Taken::Waits), "taken");
        }
    }

    #[test]
    fn what_is_spoilt_is_no_packet_and_what_never_comes_costs_little() {
        let mut halves = Halves::default();
        assert_eq!(halves.take(1, &half(7, 2), b"third"), None);
        let nested = half(1, 0).write();
        assert_eq!(halves.take(1, &half(7, 0), &nested), Some(Taken::Waits));
        assert_eq!(halves.take(1, &half(7, 1), b"more"), None, "a half has no halves");
        assert_eq!(
            (halves.take(1, &half(7, 0), b""), halves.take(1, &half(7, 1), b"")),
            (Some(Taken::Waits), None)
        );
        (0..1000).for_each(|name| drop(halves.take(1, &half(name, 0), &[0; 600])));
        assert_eq!(halves.0.len(), MOST_WAITING);
    }
}
