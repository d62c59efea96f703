//! What a run does: who takes part, how bad the world is, and what is broken on purpose.

use crate::random::Random;

/// Faults put in on purpose, so that the checkers can be seen to find them. Each wraps a real part; none is in the product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one fault, on or off")]
pub struct Planted {
    /// The disk says that it synced and did not.
    pub lying_sync: bool,
    /// Answers leave before the commit.
    pub answer_before_commit: bool,
    /// A retry gets new ids.
    pub fresh_id_on_retry: bool,
    /// Metering by the wall clock instead of by receipts.
    pub charge_by_wall_clock: bool,
    /// A payment that was not answered is made again under another id.
    pub pay_twice: bool,
    /// What the server does not want is told as ended, known or not.
    pub end_unknown: bool,
    /// A silent device's leases are taken for lost.
    pub end_silent: bool,
    /// A box is said to be wiped and goes on.
    pub leave_box: bool,
    /// An agent that starts again has forgotten what it started.
    pub start_twice: bool,
    /// A device goes on reporting boxes that are dead.
    pub lie_about_boxes: bool,
}

/// A crash at one chosen act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Of the server before its n-th act.
    Server(u64),
    /// Of the power under the server at the n-th operation of its disk.
    Disk(u64),
    /// Of an agent before the n-th act of all agents.
    Agent(u64),
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Decides everything else.
    pub seed: u64,
    /// Machines for hire.
    pub devices: usize,
    /// Renters.
    pub renters: usize,
    /// Orders that each renter makes at most.
    pub orders_each: u64,
    /// Faults and orders end after this time; then everything must end well.
    pub chaos_ms: u64,
    /// Whether anything goes wrong by chance.
    pub chance: bool,
    /// Whether the server may be put back to an old backup.
    pub restores: bool,
    /// One crash at one act.
    pub crash: Option<Crash>,
    /// Faults put in on purpose.
    pub planted: Planted,
}

impl Plan {
    /// Everything by chance.
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x706c_616e);
        Self {
            seed,
            devices: 2 + random.index(4),
            renters: 1 + random.index(3),
            orders_each: random.between(2, 5),
            chaos_ms: random.between(4, 10) * 60_000,
            chance: true,
            restores: random.chance(250_000),
            crash: None,
            planted: Planted::default(),
        }
    }

    /// One short order on sound machines: the way of an order, for a crash at every act of it.
    pub fn one_order(crash: Option<Crash>) -> Self {
        Self {
            seed: 1,
            devices: 2,
            renters: 1,
            orders_each: 1,
            chaos_ms: 30_000,
            chance: false,
            restores: false,
            crash,
            planted: Planted::default(),
        }
    }
}
