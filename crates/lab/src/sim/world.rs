//! The loop: whoever has something to do at this virtual moment, one of them by chance does one act.

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::WalletKey;
use ionet_chain::MemChain;
use ionet_domain::device::{Enrolment, Hardware, Resources};
use ionet_domain::money::{Asset, Rate};
use ionet_domain::{Address, DeviceId, EndpointId, LeaseId, Stage};

use ionet_net::mem_link::{Faults, MemNet};
use ionet_server::{Input, Keys, Ticket};

use super::Summary;
use super::check::Checker;
use super::device::DeviceNode;
use super::disk::LabDisk;
use super::people::Renter;
use super::plan::{Crash, Plan};
use super::server::ServerNode;
use super::trace::{Trace, seconds};
use crate::random::Random;
use crate::{LabError, Result};

/// A Monday at noon.
pub(super) const START_MS: u64 = 1_800_014_400_000;
/// Everything must have ended by this long after the last fault: the longest order and extension, the dispute window,
/// the grace for silent devices, two epochs.
const END_WITHIN_MS: u64 = 45 * 60_000;
/// The state is looked at every so many acts.
const LOOK_EVERY: u64 = 200;
pub(super) const GIB: u64 = 1 << 30;

/// One thing that can be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    ServerStart,
    ServerInput,
    ServerTick,
    ServerCommit,
    ServerOutput,
    ServerSnapshot,
    ChainWatch,
    Delayed,
    AgentStart(usize),
    Agent(usize),
    AgentOutput(usize),
    Dial(usize),
    Supervisor(usize, LeaseId),
    Renter(usize),
    Supplier(usize),
    Fault,
}

/// Everybody.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) trace: Trace,
    /// Virtual time since the beginning, in milliseconds.
    pub(super) at_ms: u64,
    pub(super) net: MemNet,
    pub(super) server: ServerNode,
    pub(super) server_endpoint: ionet_net::EndpointId,
    pub(super) devices: Vec<DeviceNode>,
    pub(super) renters: Vec<Renter>,
    pub(super) supplier_due_ms: Vec<u64>,
    pub(super) chain: MemChain,
    pub(super) check: Checker,
    /// Whose key is whose lease's.
    pub(super) keys: BTreeMap<EndpointId, LeaseId>,
    pub(super) tickets: BTreeMap<Ticket, (usize, usize)>,
    /// Answers of chain, probes and look-ups on their way to the server.
    pub(super) delayed: BTreeMap<(u64, u64), Input>,
    pub(super) fault_due_ms: u64,
    pub(super) backup: Option<(LabDisk, u64)>,
    pub(super) bad_net: bool,
    /// Devices that are cut off in some direction.
    pub(super) cut: Vec<bool>,
    pub(super) healed: bool,
    pub(super) numbers: u64,
    pub(super) summary: Summary,
}

pub(super) fn renter(n: usize) -> Address {
    Address([u8::try_from(n).unwrap_or(0) + 10; 32])
}

pub(super) fn supplier(n: usize) -> Address {
    Address([u8::try_from(n % 2).unwrap_or(0) + 100; 32])
}

impl World {
    pub(super) fn new(plan: &Plan, trace: Trace) -> Result<Self> {
        let mut random = Random::new(plan.seed);
        let net = MemNet::new(random.bits(), sound());
        let keys = Keys::from_seeds([1; 32], [2; 32]);
        let server_endpoint = keys.endpoint.id();
        let disk = LabDisk::new(plan.planted.lying_sync);
        let mut server = ServerNode::new(disk, keys, net.attach(server_endpoint));
        server.start(START_MS)?;
        let devices = (0..plan.devices).map(|n| machine(n, &net, &mut random)).collect();
        let renters = (0..plan.renters).map(|n| Renter::new(renter(n), 500 + 700 * n as u64)).collect();
        let chain = MemChain::default();
        for n in 0..plan.renters {
            chain.fund(renter(n), Asset::Iosd, 50_000_000, START_MS);
        }
        let mut world = Self {
            plan: plan.clone(),
            random,
            trace,
            at_ms: 0,
            net,
            server,
            server_endpoint,
            devices,
            renters,
            supplier_due_ms: vec![0; plan.devices],
            chain,
            check: Checker::default(),
            keys: BTreeMap::new(),
            tickets: BTreeMap::new(),
            delayed: BTreeMap::new(),
            fault_due_ms: 20_000,
            backup: None,
            bad_net: false,
            cut: vec![false; plan.devices],
            healed: false,
            numbers: 0,
            summary: Summary { seed: plan.seed, ..Summary::default() },
        };
        world.reread()?;
        Ok(world)
    }

    /// The server's wall clock.
    pub(super) fn now_ms(&self) -> u64 {
        START_MS + self.at_ms
    }

    /// A number never given before.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The same as the random part of an id.
    pub(super) fn unique(&mut self) -> u128 {
        u128::from(self.number())
    }

    pub(super) fn run(&mut self) -> Result<Summary> {
        loop {
            if !self.healed && self.at_ms >= self.plan.chaos_ms {
                self.heal();
            }
            if self.healed && self.is_over() {
                break;
            }
            if self.at_ms > self.plan.chaos_ms + END_WITHIN_MS {
                return Err(self.broken(&self.unfinished()));
            }
            let ready = self.ready();
            match self.random.one_of(&ready).copied() {
                Some(_) if self.plan.chance && self.random.chance(60_000) => self.pass_time(1),
                Some(act) => self.act(act).map_err(|error| self.broken(&error.to_string()))?,
                None => {
                    let gap_ms = self.next_due_ms().saturating_sub(self.at_ms).max(1);
                    self.pass_time(gap_ms);
                }
            }
            if self.summary.acts.is_multiple_of(LOOK_EVERY) {
                self.look().map_err(|error| self.broken(&error.to_string()))?;
            }
        }
        self.summary.disk_operations = self.server.disk.mem.operations();
        self.finish().map_err(|error| self.broken(&error.to_string()))?;
        self.summary.virtual_ms = self.at_ms;
        Ok(self.summary.clone())
    }

    fn broken(&self, what: &str) -> LabError {
        LabError::Broken(format!("seed {} at {} s: {what}", self.plan.seed, seconds(self.at_ms)))
    }

    fn pass_time(&mut self, gap_ms: u64) {
        self.at_ms += gap_ms;
        self.net.advance(self.at_ms);
        for device in &mut self.devices {
            device.host.advance(self.at_ms);
            let exits = device.supervisors.values_mut();
            for supervisor in exits.filter(|s| s.exit_ms.is_some_and(|at_ms| at_ms <= self.at_ms)) {
                supervisor.exit_ms = None;
                device.host.exit(&ionet_worker::assignment::box_name(supervisor.lease), 0);
            }
        }
        self.poll_links();
    }

    pub(super) fn poll_links(&mut self) {
        self.server.poll_link();
        for device in &mut self.devices {
            device.poll_link(self.at_ms);
        }
    }

    fn ready(&self) -> Vec<Act> {
        let mut ready = Vec::new();
        let mut when = |is: bool, act| {
            if is {
                ready.push(act);
            }
        };
        let (at_ms, server) = (self.at_ms, &self.server);
        let up = server.up();
        let dirty = server.core.as_ref().is_some_and(ionet_server::Core::dirty);
        when(!up && at_ms >= server.start_due_ms, Act::ServerStart);
        when(up && !server.inbox.is_empty(), Act::ServerInput);
        when(up && (at_ms >= server.tick_due_ms || dirty), Act::ServerTick);
        when(up && server.staged > 0, Act::ServerCommit);
        when(up && !server.outbox.is_empty(), Act::ServerOutput);
        when(up && server.snapshot.is_some(), Act::ServerSnapshot);
        when(up && at_ms >= server.watch_due_ms, Act::ChainWatch);
        let delayed_ms = self.delayed.keys().next().map(|(due_ms, _)| *due_ms);
        when(up && delayed_ms.is_some_and(|due_ms| due_ms <= at_ms), Act::Delayed);
        for (n, device) in self.devices.iter().enumerate().filter(|(_, device)| !device.left) {
            let alive = device.agent.is_some();
            let quiet = device.outbox.is_empty();
            when(!alive && at_ms >= device.start_due_ms, Act::AgentStart(n));
            when(alive && !quiet, Act::AgentOutput(n));
            let asked = !device.inbox.is_empty() || at_ms >= device.tick_due_ms;
            when(alive && quiet && asked, Act::Agent(n));
            let dials = device.linked_since_ms.is_none() && at_ms >= device.dial_due_ms;
            when(alive && up && dials, Act::Dial(n));
            for (lease, supervisor) in &device.supervisors {
                let asked = !supervisor.inbox.is_empty() || at_ms >= supervisor.due_ms;
                when(asked, Act::Supervisor(n, *lease));
            }
        }
        for (n, renter) in self.renters.iter().enumerate() {
            when(at_ms >= renter.due_ms, Act::Renter(n));
        }
        for (n, due_ms) in self.supplier_due_ms.iter().enumerate() {
            when(at_ms >= *due_ms, Act::Supplier(n));
        }
        when(self.plan.chance && !self.healed && at_ms >= self.fault_due_ms, Act::Fault);
        ready
    }

    /// When somebody has something to do next.
    fn next_due_ms(&self) -> u64 {
        let server = if self.server.up() {
            self.server.tick_due_ms.min(self.server.watch_due_ms)
        } else {
            self.server.start_due_ms
        };
        let here = self.devices.iter().filter(|device| !device.left);
        let devices = here.flat_map(|device| {
            let agent = if device.agent.is_some() { device.tick_due_ms } else { device.start_due_ms };
            device.supervisors.values().map(|supervisor| supervisor.due_ms).chain([agent])
        });
        let people = self.renters.iter().map(|renter| renter.due_ms).chain(self.supplier_due_ms.clone());
        let delayed = self.delayed.keys().map(|(due_ms, _)| *due_ms).take(1);
        let net = self.net.next_due_ms();
        let all = [server].into_iter().chain(devices).chain(people).chain(delayed).chain(net);
        all.filter(|due_ms| *due_ms > self.at_ms).min().unwrap_or(self.at_ms + 1)
    }

    fn act(&mut self, act: Act) -> Result<()> {
        self.summary.acts += 1;
        if self.crashes_before(act) {
            return Ok(());
        }
        match act {
            Act::ServerStart => return self.server_start(),
            Act::ServerInput => return self.server_input(),
            Act::ServerCommit => return self.server_commit(),
            Act::Supervisor(n, lease) => return self.supervisor_step(n, lease),
            Act::ServerTick => self.server_tick(),
            Act::ServerOutput => self.server_output(),
            Act::ServerSnapshot => self.server_snapshot(),
            Act::ChainWatch => self.chain_watch(),
            Act::Delayed => self.deliver_delayed(),
            Act::AgentStart(n) => self.agent_start(n),
            Act::Agent(n) => self.agent_step(n),
            Act::AgentOutput(n) => self.agent_output(n),
            Act::Dial(n) => self.dial(n),
            Act::Renter(n) => self.renter_act(n),
            Act::Supplier(n) => self.supplier_act(n),
            Act::Fault => self.fault(),
        }
        Ok(())
    }

    /// The plan's one crash, and crashes by chance, come between any two acts.
    fn crashes_before(&mut self, act: Act) -> bool {
        let by_chance = self.plan.chance && !self.healed;
        let counts = match act {
            Act::ServerInput | Act::ServerOutput | Act::ServerSnapshot => true,
            Act::ServerCommit => self.server.core.as_mut().is_some_and(|core| core.engine().staged() > 0),
            _ => false,
        };
        if counts {
            self.summary.server_acts += 1;
            let planned = self.plan.crash == Some(Crash::Server(self.summary.server_acts));
            if planned || (by_chance && self.random.chance(700)) {
                self.crash_server();
                return true;
            }
        }
        if let Act::AgentOutput(n) | Act::Agent(n) = act {
            let counts = matches!(act, Act::AgentOutput(_)) || !self.devices[n].inbox.is_empty();
            self.summary.agent_acts += u64::from(counts);
            let planned = counts && self.plan.crash == Some(Crash::Agent(self.summary.agent_acts));
            if planned || (by_chance && self.random.chance(400)) {
                self.crash_agent(n);
                return true;
            }
        }
        false
    }

    /// No order lives, nobody waits for an answer and no box runs.
    fn is_over(&self) -> bool {
        let orders_over = self.check.shadow.orders.values().all(|order| self.is_over_for(order.stage));
        let answered = self.renters.iter().all(|renter| renter.waits_for() == 0);
        let here = self.devices.iter().filter(|device| !device.left);
        let quiet = here.into_iter().all(|device| device.supervisors.is_empty());
        let ordered = self.plan.chance || self.summary.orders > 0;
        orders_over && answered && quiet && ordered && self.server.up() && self.server.staged == 0
    }

    /// After a restore the chain may have paid a supplier for this epoch already, another amount in a lost timeline.
    /// It is never paid twice: the payout waits for the operator, and the order stays settled.
    fn is_over_for(&self, stage: Stage) -> bool {
        stage == Stage::Paid || (self.check.restored && stage == Stage::Settled)
    }

    fn unfinished(&self) -> String {
        let orders = self.check.shadow.orders.values().filter(|order| !self.is_over_for(order.stage));
        let orders: Vec<_> = orders.map(|o| format!("{} is {} ({:?})", o.id, o.stage, o.reason)).collect();
        let boxes: Vec<_> =
            self.devices.iter().flat_map(|d| d.supervisors.keys()).map(ToString::to_string).collect();
        let waiting: usize = self.renters.iter().map(Renter::waits_for).sum();
        let within_s = END_WITHIN_MS / 1000;
        format!(
            "not ended {within_s} s after the last fault: orders {orders:?}, boxes {boxes:?}, unanswered {waiting}"
        )
    }
}

/// A network on which nothing goes wrong.
pub(super) fn sound() -> Faults {
    Faults { delay_min_ms: 1, delay_max_ms: 20, dead_after_ms: 15_000, ..Faults::default() }
}

fn machine(n: usize, net: &MemNet, random: &mut Random) -> DeviceNode {
    let id = u8::try_from(n).unwrap_or(0);
    let key = WalletKey::from_seed(&[id + 150; 32]);
    let threads = 2 + u32::try_from(random.below(3)).unwrap_or(0);
    let enrolment = Enrolment {
        device: DeviceId::from_parts(START_MS, n as u128 + 1),
        owner: supplier(n),
        endpoint: EndpointId(key.address().0),
        network: "lab".into(),
        tags: BTreeSet::new(),
        ask_per_unit: Rate(random.between(20_000, 400_000)),
        offered: Resources {
            cpu_millis: threads * 1000,
            memory_bytes: 6 * GIB,
            disk_bytes: 40 * GIB,
            gpus: 0,
        },
        hardware: Hardware { cpu_threads: threads, memory_bytes: 8 * GIB, ..Hardware::default() },
    };
    let link = net.attach(ionet_net::EndpointId(enrolment.endpoint.0));
    DeviceNode::new(enrolment, link, random.below(1 << 30), random.between(200, 4_000))
}
