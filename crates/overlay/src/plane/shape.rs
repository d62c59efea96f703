//! Sending in a padded cluster: what is for a peer waits in cells until its shaper lets it go, and leaves in packets
//! that are all as large as their way takes.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use rustix::event::Timespec;

use super::send::{Exit, Sender, exit};
use crate::{
    Dropped, PeerKey,
    crypt::{PREFIX_BYTES, SendKey, TAG_BYTES},
    privacy::{CoverPlan, Shaper},
    random::Random,
    seam::{Route, Table},
    segment::Train,
    wire::{CHANNEL_BYTES, Kind, MOST_PADDING_BYTES, OVERHEAD_BYTES, SHIM_BYTES, Shim},
};

/// So many cells are let go at once while the TUN gives more.
const ENOUGH_CELLS: usize = 48;
/// How often we look what came, and for peers that have sent and got nothing yet.
const LOOK_US: u64 = 50_000;
const IDLE_US: u64 = 500_000;

/// A shaper for each peer.
#[derive(Debug)]
pub(super) struct Shapers {
    plan: CoverPlan,
    random: Random,
    began: Instant,
    looked_us: u64,
    fresh: usize,
    all: BTreeMap<PeerKey, Shaped>,
}

#[derive(Debug)]
struct Shaped {
    shaper: Shaper,
    /// Where the peer's route is found.
    at: Ipv4Addr,
    /// Packets and cover that came until we looked last.
    came: [u64; 2],
}

impl Shapers {
    pub(super) fn new(plan: &CoverPlan, random: Random) -> Self {
        let (plan, began, all) = (plan.clone(), Instant::now(), BTreeMap::new());
        Self { plan, random, began, looked_us: 0, fresh: 0, all }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// How long until something may leave.
    pub(super) fn wait(&self) -> Timespec {
        let next_us = self.all.values().filter_map(|shaped| shaped.shaper.next_us()).min();
        let now_us = self.now_us();
        let us = next_us.map_or(IDLE_US, |us| us.saturating_sub(now_us)).min(IDLE_US);
        let nanos = i64::try_from(us * 1_000).unwrap_or(0);
        Timespec { tv_sec: 0, tv_nsec: nanos }
    }

    fn of(&mut self, route: &Route, now_us: u64) -> &mut Shaped {
        let (plan, random) = (&self.plan, &mut self.random);
        let peer = &route.peer;
        self.all.entry(peer.key).or_insert_with(|| {
            let shaper = Shaper::new(plan, &random.seed(), now_us);
            Shaped { shaper, at: peer.addresses.v4, came: [0; 2] }
        })
    }

    /// Tells the machines what came. Who has keys has a shaper; who is no member any more loses it.
    fn look(&mut self, table: &Table, now_us: u64) {
        if now_us < self.looked_us + LOOK_US {
            return;
        }
        self.looked_us = now_us;
        self.all.retain(|key, shaped| table.v4.get(&shaped.at).is_some_and(|route| route.peer.key == *key));
        for route in table.v4.values().filter(|route| route.send.is_some()) {
            let counters = &route.peer.counters;
            let now = [counters.received_until_now()[0], counters.cover_until_now()[1]];
            let shaped = self.of(route, now_us);
            let new = [0, 1].map(|at| usize::try_from(now[at].saturating_sub(shaped.came[at])).unwrap_or(0));
            shaped.came = now;
            if new != [0, 0] {
                shaped.shaper.came(now_us, new[0], new[1]);
            }
        }
    }
}

/// What a packet to this peer holds at most on each way that its cells may take.
pub(super) fn cell_bytes(route: &Route) -> u16 {
    let used = route.hops.iter().filter(|hop| hop.weight > 0);
    let least = used.chain(route.hops.first()).map(|hop| hop.packet_bytes).min().unwrap_or(0);
    // A shim can say so much of padding, and a cell may have nothing else in it.
    least.min(u16::try_from(MOST_PADDING_BYTES).unwrap_or(u16::MAX))
}

impl Sender {
    /// Has what stands behind a shim wait for its turn.
    pub(super) fn queue(&mut self, route: &Route, room: usize, shim: &Shim, parts: [&[u8]; 2]) {
        let Some(shapers) = &mut self.shapers else { return };
        let now_us = shapers.now_us();
        shapers.fresh += 1;
        let counters = &route.peer.counters;
        if shapers.of(route, now_us).shaper.push(now_us, shim, &parts, room) {
            counters.sent(1, parts[0].len() + parts[1].len());
        } else {
            counters.dropped(Dropped::Crowded, 1);
        }
    }

    pub(super) fn queue_train(&mut self, route: &Route, room: usize, train: &Train, packet: &[u8]) {
        for (shim, header, part) in train.parts(packet) {
            for (index, payload) in (0..).zip(part.chunks(train.segment_bytes)) {
                self.queue(route, room, &Shim { index, ..shim }, [header.get(), payload]);
            }
        }
    }

    /// Lets cells go if many have come since.
    pub(super) fn let_some_go(&mut self, table: &Table) {
        if self.shapers.as_ref().is_some_and(|shapers| shapers.fresh >= ENOUGH_CELLS) {
            self.let_go(table);
        }
    }

    /// Seals what may leave by now.
    pub(super) fn let_go(&mut self, table: &Table) {
        let Some(mut shapers) = self.shapers.take() else { return };
        let now_us = shapers.now_us();
        shapers.fresh = 0;
        shapers.look(table, now_us);
        for shaped in shapers.all.values_mut() {
            let is_due = shaped.shaper.next_us().is_some_and(|us| us <= now_us);
            if !is_due && shaped.shaper.waiting() == 0 {
                continue;
            }
            let Some(route) = table.v4.get(&shaped.at) else { continue };
            let hop = if self.is_split { self.next_hop(route) } else { route.hops.first() };
            let way = hop.and_then(|hop| Some((exit(table, route, hop.way)?, hop.packet_bytes)));
            let (Some(key), Some((exit, bytes))) = (&route.send, way) else { continue };
            shaped.shaper.leave(now_us, |cell| self.cell(route, key, exit, bytes, cell));
        }
        self.shapers = Some(shapers);
    }

    /// Seals one cell, or cover, into a packet of that many bytes.
    fn cell(&mut self, route: &Route, key: &SendKey, exit: Exit, bytes: u16, cell: Option<&[u8]>) {
        let counters = &route.peer.counters;
        let cover = Shim::plain(Kind::Cover).write();
        if cell.is_none() && matches!(exit, Exit::Introducer(_)) {
            return;
        }
        let plain = cell.unwrap_or(&cover);
        let bytes = usize::from(bytes).min(OVERHEAD_BYTES + MOST_PADDING_BYTES);
        let padding = (bytes + SHIM_BYTES).checked_sub(OVERHEAD_BYTES + plain.len());
        let Some(padding_bytes) = padding.and_then(|padding| u16::try_from(padding).ok()) else {
            // It was cut for a way that took more.
            return counters.dropped(Dropped::TooBig, 1);
        };
        let Some((shim, counter)) = shim_of(plain).zip(key.reserve(1, bytes)) else {
            return counters.dropped(Dropped::NoSession, 1);
        };
        self.make_room(1, bytes + CHANNEL_BYTES);
        let shim = Shim { padding_bytes, ..shim }.write();
        self.put(exit, bytes, |packet| {
            let inner = &mut packet[PREFIX_BYTES..bytes - TAG_BYTES];
            let (inner, padding) = inner.split_at_mut(plain.len());
            inner.copy_from_slice(plain);
            inner[..SHIM_BYTES].copy_from_slice(&shim);
            padding.fill(0);
            key.seal(counter, packet);
        });
        if cell.is_none() {
            counters.cover_sent();
        }
    }
}

fn shim_of(plain: &[u8]) -> Option<Shim> {
    Shim::parse(plain.first_chunk()?)
}
