//! What is counted: packets and bytes of a peer in each direction, and why packets were dropped.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// From our TUN: no member has its destination, or its source is not ours.
    NoRoute,
    /// For a peer without keys yet.
    NoSession,
    /// For a peer that no way leads to.
    NoWay,
    /// Larger than the way takes; its sender was told.
    TooBig,
    /// The socket did not take it.
    Refused,
    /// For a session that we do not have.
    Unknown,
    /// Seen before, or older than the window.
    Replayed,
    /// It does not open with the session's key.
    Forged,
    /// A field is not what it can be.
    Malformed,
    /// Its inner source is not its sender's address, or its destination not ours.
    Spoofed,
    /// Our TUN did not take it.
    TunRefused,
    /// The control thread is behind.
    Busy,
    /// More waits for its turn than may, in a padded cluster.
    Crowded,
}

impl Dropped {
    /// Every reason, in order.
    pub const ALL: [Self; 13] = [
        Self::NoRoute,
        Self::NoSession,
        Self::NoWay,
        Self::TooBig,
        Self::Refused,
        Self::Unknown,
        Self::Replayed,
        Self::Forged,
        Self::Malformed,
        Self::Spoofed,
        Self::TunRefused,
        Self::Busy,
        Self::Crowded,
    ];

    /// A stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoSession => "no_session",
            Self::NoWay => "no_way",
            Self::TooBig => "too_big",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Replayed => "replayed",
            Self::Forged => "forged",
            Self::Malformed => "malformed",
            Self::Spoofed => "spoofed",
            Self::TunRefused => "tun_refused",
            Self::Busy => "busy",
            Self::Crowded => "crowded",
        }
    }
}

/// Counters that many threads add to. Inner packets and bytes: of a train, each segment is one packet.
#[derive(Debug, Default)]
pub struct Counters {
    sent: [AtomicU64; 2],
    received: [AtomicU64; 2],
    /// Packets of cover, sent and received.
    cover: [AtomicU64; 2],
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Counters {
    /// Adds sent packets and their inner bytes.
    pub fn sent(&self, packets: usize, bytes: usize) {
        add(&self.sent[0], packets);
        add(&self.sent[1], bytes);
    }

    /// Adds received packets and their inner bytes.
    pub fn received(&self, packets: usize, bytes: usize) {
        add(&self.received[0], packets);
        add(&self.received[1], bytes);
    }

    /// Adds a sent packet of cover.
    pub fn cover_sent(&self) {
        add(&self.cover[0], 1);
    }

    /// Adds a received packet of cover.
    pub fn cover_received(&self) {
        add(&self.cover[1], 1);
    }

    /// Packets of cover sent and received until now.
    pub fn cover_until_now(&self) -> [u64; 2] {
        self.cover.each_ref().map(load)
    }

    /// Adds packets dropped for this reason.
    pub fn dropped(&self, reason: Dropped, packets: usize) {
        add(&self.dropped[reason as usize], packets);
    }

    /// Packets and bytes sent until now.
    pub fn sent_until_now(&self) -> [u64; 2] {
        self.sent.each_ref().map(load)
    }

    /// Packets and bytes received until now.
    pub fn received_until_now(&self) -> [u64; 2] {
        self.received.each_ref().map(load)
    }

    /// Packets dropped for this reason until now.
    pub fn dropped_until_now(&self, reason: Dropped) -> u64 {
        load(&self.dropped[reason as usize])
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
