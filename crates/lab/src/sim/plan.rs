//! What a run does: who takes part, how bad the world is, and what is broken on purpose. Data, so that a run that
//! broke can be made smaller.

use std::collections::BTreeSet;

use ionet_domain::Params;

use super::planted::Planted;
use super::scenario::Scenario;

macro_rules! fault_kinds {
    ($($(#[doc = $text:literal])+ $name:ident = $word:literal,)+) => {
        /// What can go wrong in the world.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum FaultKind {
            $($(#[doc = $text])+ $name,)+
        }

        impl FaultKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its stable name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

fault_kinds! {
    /// The server's process dies between two acts.
    ServerCrash = "server_crash",
    /// An agent's process dies between two acts.
    AgentCrash = "agent_crash",
    /// A supervisor is killed and its box with it.
    SupervisorKill = "supervisor_kill",
    /// A machine loses power and comes back.
    MachinePower = "machine_power",
    /// A device cannot reach the server, or the server the device, or both.
    Cut = "cut",
    /// The network loses, doubles, delays and reorders.
    BadNet = "bad_net",
    /// The chain refuses, or does not answer before or after it paid.
    BadChain = "bad_chain",
    /// Requests and answers of people are lost.
    LostAnswers = "lost_answers",
    /// An engine dies in its box.
    BoxBreaks = "box_breaks",
    /// A machine cannot make boxes for a while.
    BoxRefused = "box_refused",
    /// The server's disk tears, shortens, reorders or refuses a write, or does not confirm a sync.
    DiskFails = "disk_fails",
    /// The server's disk is full for a while.
    DiskFull = "disk_full",
    /// A byte on the server's disk changes.
    DiskCorrupt = "disk_corrupt",
    /// The server's disk takes seconds for a while.
    SlowDisk = "slow_disk",
    /// The server's wall clock jumps, back or forward.
    ClockJump = "clock_jump",
    /// Machines' clocks run a little fast or slow.
    ClockSkew = "clock_skew",
    /// The wall clock of a machine jumps, back or forward.
    WorkerClock = "worker_clock",
    /// A machine sleeps, its clocks with it, and nobody hears of it.
    MachineSleeps = "machine_sleeps",
    /// The server is put back to an old backup, perhaps more than once.
    Restore = "restore",
    /// Devices inflate their receipts and report dead boxes as up.
    DeviceLies = "device_lies",
    /// Devices claim hardware that they have not.
    FalseHardware = "false_hardware",
    /// Renters go away for good without a word.
    RenterVanishes = "renter_vanishes",
    /// Suppliers pause, drain, schedule and yield.
    OwnerRules = "owner_rules",
    /// Suppliers take machines away for good, or archive them.
    SupplierLeaves = "supplier_leaves",
    /// Ask prices jump.
    PriceJumps = "price_jumps",
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

/// What renters ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Most members of an order.
    pub members_most: u64,
    /// Least and most of the first duration, in milliseconds.
    pub duration_ms: (u64, u64),
    /// Most of an extension, in milliseconds.
    pub extend_most_ms: u64,
    /// Least and most between two wishes, in milliseconds.
    pub think_ms: (u64, u64),
    /// All kinds of orders, keys, devices and mistakes; else plain orders on plain machines.
    pub varied: bool,
    /// Also orders that wait.
    pub ways: bool,
    /// Only one order, whatever happens.
    pub scripted: bool,
}

/// How often the shells around the logic let it tick, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The server.
    pub server_ms: u64,
    /// Agents.
    pub agent_ms: u64,
    /// Supervisors.
    pub look_ms: u64,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it is one of.
    pub scenario: Scenario,
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
    /// Everything must have ended by this long after that.
    pub ends_within_ms: u64,
    /// What the network is founded with.
    pub params: Params,
    /// What renters do.
    pub load: Load,
    /// How often shells tick.
    pub pace: Pace,
    /// What may go wrong.
    pub faults: BTreeSet<FaultKind>,
    /// Least and most between two faults, in milliseconds.
    pub fault_gap_ms: (u64, u64),
    /// The chance of a crash before an act, in a million.
    pub crash_ppm: u64,
    /// One crash at one act.
    pub crash: Option<Crash>,
    /// Put in on purpose.
    pub planted: Option<Planted>,
    /// Only these of the faults that come by chance, by number; all of them if `None`.
    pub only_faults: Option<BTreeSet<u64>>,
    /// Only these orders, by renter and number; all of them if `None`.
    pub only_orders: Option<BTreeSet<(usize, u64)>>,
}

impl Plan {
    /// Whether this kind of fault may happen.
    pub fn may(&self, kind: FaultKind) -> bool {
        self.faults.contains(&kind)
    }

    /// Whether this is the fault that was put in.
    pub fn plants(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    /// What must be said to get the same run again.
    pub fn arguments(&self) -> String {
        let plain = Self::new(self.scenario, self.seed);
        let mut words = vec![format!("{} --scenario {}", self.seed, self.scenario.name())];
        let mut number = |name, mine: u64, its: u64| {
            if mine != its {
                words.push(format!("--{name} {mine}"));
            }
        };
        number("devices", self.devices as u64, plain.devices as u64);
        number("renters", self.renters as u64, plain.renters as u64);
        number("orders", self.orders_each, plain.orders_each);
        number("chaos-ms", self.chaos_ms, plain.chaos_ms);
        let list = |mut texts: Vec<String>| {
            if texts.is_empty() {
                texts.push("none".into());
            }
            texts.join(",")
        };
        if self.faults != plain.faults {
            let kinds = self.faults.iter().map(|kind| kind.name().to_owned());
            words.push(format!("--faults {}", list(kinds.collect())));
        }
        if let Some(only) = &self.only_faults {
            words.push(format!("--only-faults {}", list(only.iter().map(ToString::to_string).collect())));
        }
        if let Some(only) = &self.only_orders {
            let orders = only.iter().map(|(renter, n)| format!("{renter}.{n}"));
            words.push(format!("--only-orders {}", list(orders.collect())));
        }
        words.extend(self.planted.map(|planted| format!("--plant {}", planted.name())));
        words.join(" ")
    }
}
