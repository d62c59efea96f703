//! The scenarios as data: from a name and a seed to a plan.

use std::collections::BTreeSet;

use ionet_domain::Params;

use super::plan::{Crash, FaultKind, Load, Pace, Plan};
use super::planted::Planted;
use crate::random::Random;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A kind of run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Scenario {
    /// A few machines, everything by chance, about half of all kinds of faults.
    Chaos,
    /// Everything fails, often.
    Storm,
    /// No faults: nothing may be lost and nothing late.
    Calm,
    /// Hundreds of machines and orders of all kinds.
    Crowd,
    /// Weeks of virtual time: long orders, many epochs.
    Weeks,
    /// One short order on sound machines, for a crash at every act of it.
    OneOrder,
}

impl Scenario {
    /// Those that are run by seed.
    pub const ALL: [Self; 5] = [Self::Chaos, Self::Storm, Self::Calm, Self::Crowd, Self::Weeks];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chaos => "chaos",
            Self::Storm => "storm",
            Self::Calm => "calm",
            Self::Crowd => "crowd",
            Self::Weeks => "weeks",
            Self::OneOrder => "one-order",
        }
    }
}

/// An hour's business in minutes.
fn fast() -> Params {
    Params {
        network: "lab".into(),
        epoch_ms: 5 * MINUTE_MS,
        meter_period_ms: 15_000,
        dispute_window_ms: 3 * MINUTE_MS,
        removal_grace_ms: 2 * MINUTE_MS,
        retention_ms: 10 * MINUTE_MS,
        ..Params::default()
    }
}

fn minutes() -> Load {
    Load {
        members_most: 3,
        duration_ms: (MINUTE_MS, 10 * MINUTE_MS),
        extend_most_ms: 3 * MINUTE_MS,
        think_ms: (1_000, 25_000),
        varied: true,
        ways: false,
        scripted: false,
    }
}

impl Plan {
    /// The plan of a scenario under a seed.
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x706c_616e);
        let mut plan = Self::small(seed, &mut random);
        plan.scenario = scenario;
        // A third of the seeds buys on demand only: those that are named after what they found stay what they were.
        let all_ways = matches!(scenario, Scenario::Chaos | Scenario::Storm | Scenario::Crowd);
        plan.load.ways = all_ways && seed % 3 != 2;
        match scenario {
            Scenario::Chaos => {}
            Scenario::Storm => {
                plan.faults = FaultKind::ALL.iter().copied().collect();
                plan.fault_gap_ms = (300, 5_000);
                plan.crash_ppm = 3_000;
            }
            Scenario::Calm => plan.faults = BTreeSet::from([FaultKind::PriceJumps]),
            Scenario::Crowd => {
                plan.devices = 150 + random.index(150);
                plan.renters = 30 + random.index(30);
                plan.orders_each = random.between(4, 10);
                plan.chaos_ms = random.between(4, 7) * MINUTE_MS;
                plan.load.members_most = 24;
                plan.pace = Pace { server_ms: 1_000, agent_ms: 2_500, look_ms: 2_500 };
                plan.fault_gap_ms = (500, 6_000);
                plan.crash_ppm = 20;
            }
            Scenario::Weeks => {
                plan.devices = 3 + random.index(2);
                plan.renters = 2;
                plan.orders_each = random.between(6, 14);
                plan.chaos_ms = random.between(14, 21) * DAY_MS;
                plan.ends_within_ms = 9 * DAY_MS;
                plan.params = Params { network: "lab".into(), meter_period_ms: HOUR_MS, ..Params::default() };
                plan.load.duration_ms = (HOUR_MS, 8 * DAY_MS);
                plan.load.extend_most_ms = 2 * DAY_MS;
                plan.load.think_ms = (10 * MINUTE_MS, 40 * HOUR_MS);
                plan.pace = Pace { server_ms: 15_000, agent_ms: 15_000, look_ms: 60_000 };
                plan.fault_gap_ms = (HOUR_MS, 30 * HOUR_MS);
                plan.crash_ppm = 5;
            }
            Scenario::OneOrder => {
                plan.seed = 1;
                plan.devices = 2;
                plan.renters = 1;
                plan.orders_each = 1;
                plan.chaos_ms = 30_000;
                plan.faults.clear();
                plan.load.scripted = true;
                plan.load.varied = false;
                plan.load.duration_ms = (MINUTE_MS, MINUTE_MS);
            }
        }
        plan
    }

    /// A few machines and renters for some minutes; each kind of fault with an even chance, so that combinations that
    /// hide each other also come apart.
    fn small(seed: u64, random: &mut Random) -> Self {
        let faults: BTreeSet<_> = FaultKind::ALL.iter().copied().filter(|_| random.chance(550_000)).collect();
        Self {
            scenario: Scenario::Chaos,
            seed,
            devices: 2 + random.index(4),
            renters: 1 + random.index(3),
            orders_each: random.between(3, 9),
            chaos_ms: random.between(4, 10) * MINUTE_MS,
            ends_within_ms: 50 * MINUTE_MS,
            params: fast(),
            load: minutes(),
            pace: Pace { server_ms: 1_000, agent_ms: 1_000, look_ms: 1_000 },
            faults,
            fault_gap_ms: (2_000, 25_000),
            crash_ppm: 600,
            crash: None,
            planted: None,
            only_faults: None,
            only_orders: None,
        }
    }

    /// One short order on sound machines: the way of an order, for a crash at every act of it.
    pub fn one_order(crash: Option<Crash>) -> Self {
        Self { crash, ..Self::new(Scenario::OneOrder, 1) }
    }

    /// Everything by chance and this put in.
    pub fn with_planted(planted: Planted, seed: u64) -> Self {
        let scenario = if planted == Planted::Sleepy { Scenario::Calm } else { Scenario::Chaos };
        Self { planted: Some(planted), ..Self::new(scenario, seed) }
    }
}
