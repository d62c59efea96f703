//! The loop: whoever has something to do at this virtual moment, one of them by chance does one act.

use std::collections::{BTreeMap, BTreeSet};

use ionet_chain::MemChain;
use ionet_domain::money::Asset;
use ionet_domain::{Address, DeviceId, EndpointId, LeaseId, Stage};
use ionet_net::mem_link::{Faults, MemNet};
use ionet_server::{Input, Keys, Ticket};

use super::check::Checker;
use super::device::DeviceNode;
use super::disk::LabDisk;
use super::faults::Injected;
use super::machine::machine;
use super::plan::{Crash, FaultKind, Plan};
use super::planted::Planted;
use super::promise::Promise;
use super::renters::Renter;
use super::server::ServerNode;
use super::spoil::Memory;
use super::suppliers::Supplier;
use super::trace::{Trace, seconds};
use super::turns::{NEVER_MS, Turns};
use super::{Scenario, Summary};
use crate::random::Random;
use crate::{LabError, Result};

/// A Monday at noon.
pub(super) const START_MS: u64 = 1_800_014_400_000;
/// The state is looked at every so many acts, and more seldom the more there is to look at.
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
    Wake(usize),
    Dial(usize),
    Supervisor(usize, LeaseId),
    Renter(usize),
    Supplier(usize),
    Fault,
}

/// Who acts; each has a number for [`Turns`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Server,
    Fault,
    Device(usize),
    Supplier(usize),
    Renter(usize),
}

/// Everybody.
pub(super) struct World {
    pub(super) plan: Plan,
    /// Whose turn it is.
    pub(super) random: Random,
    pub(super) trace: Trace,
    /// Virtual time since the beginning, in milliseconds.
    pub(super) at_ms: u64,
    /// How far the server's wall clock is off, and how far it ever was.
    pub(super) clock_off_ms: i64,
    pub(super) clock_span_ms: u64,
    pub(super) net: MemNet,
    pub(super) server: ServerNode,
    pub(super) server_endpoint: ionet_net::EndpointId,
    /// The server waits for its disk, or sleeps, until then.
    pub(super) stalled_until_ms: u64,
    pub(super) slow_until_ms: u64,
    /// The disk is full until then.
    pub(super) full_until_ms: Option<u64>,
    /// The disk as it was before a byte of it changed.
    pub(super) mirror: Option<LabDisk>,
    pub(super) devices: Vec<DeviceNode>,
    pub(super) by_endpoint: BTreeMap<ionet_net::EndpointId, usize>,
    pub(super) by_device: BTreeMap<DeviceId, usize>,
    pub(super) false_hardware: BTreeSet<DeviceId>,
    pub(super) renters: Vec<Renter>,
    pub(super) suppliers: Vec<Supplier>,
    pub(super) chain: MemChain,
    pub(super) check: Checker,
    /// Whose key is whose lease's, and on which device.
    pub(super) keys: BTreeMap<EndpointId, (LeaseId, usize)>,
    pub(super) tickets: BTreeMap<Ticket, (usize, usize)>,
    /// Answers of chain, probes and look-ups on their way to the server.
    pub(super) delayed: BTreeMap<(u64, u64), Input>,
    pub(super) fault_due_ms: u64,
    pub(super) fault_random: Random,
    /// Faults that chance brought so far, and those that were injected.
    pub(super) struck: u64,
    pub(super) injected: Vec<Injected>,
    pub(super) backup: Option<(LabDisk, u64)>,
    pub(super) bad_net: bool,
    pub(super) healed: bool,
    pub(super) numbers: u64,
    pub(super) turns: Turns,
    next_look: u64,
    /// What planted faults remember.
    pub(super) memory: Memory,
    pub(super) summary: Summary,
}

pub(super) fn renter(n: usize) -> Address {
    Address([u8::try_from(n).unwrap_or(0) + 10; 32])
}

/// A few suppliers share the machines.
pub(super) fn supplier(n: usize, devices: usize) -> Address {
    let suppliers = (devices / 10).clamp(2, 20);
    Address([u8::try_from(n % suppliers).unwrap_or(0) + 100; 32])
}

impl World {
    pub(super) fn new(plan: &Plan, trace: Trace) -> Result<Self> {
        let mut random = Random::new(plan.seed);
        let net = MemNet::new(random.bits(), sound());
        let keys = Keys::from_seeds([1; 32], [2; 32]);
        let server_endpoint = keys.endpoint.id();
        let disk = LabDisk::new(plan.plants(Planted::LyingSync));
        let mut server = ServerNode::new(disk, keys, net.attach(server_endpoint), plan.params.clone());
        server.start(START_MS)?;
        let devices: Vec<_> = (0..plan.devices).map(|n| machine(n, plan, &net)).collect();
        let false_hardware =
            devices.iter().filter(|(_, honest)| !honest).map(|(device, _)| device.id()).collect();
        let devices: Vec<_> = devices.into_iter().map(|(device, _)| device).collect();
        let numbered = || devices.iter().enumerate();
        let chain = MemChain::default();
        for n in 0..plan.renters {
            chain.fund(renter(n), Asset::Iosd, 50_000_000 * (1 + plan.chaos_ms / 3_600_000), START_MS);
            chain.fund(renter(n), Asset::Io, 700_000_000, START_MS);
        }
        let mut world = Self {
            random,
            trace,
            at_ms: 0,
            clock_off_ms: 0,
            clock_span_ms: 0,
            net,
            server,
            server_endpoint,
            stalled_until_ms: 0,
            slow_until_ms: 0,
            full_until_ms: None,
            mirror: None,
            by_endpoint: numbered().map(|(n, device)| (device.endpoint, n)).collect(),
            by_device: numbered().map(|(n, device)| (device.id(), n)).collect(),
            false_hardware,
            devices,
            renters: (0..plan.renters).map(|n| Renter::new(n, plan.seed)).collect(),
            suppliers: (0..plan.devices).map(|n| Supplier::new(n, plan.seed)).collect(),
            chain,
            check: Checker::default(),
            keys: BTreeMap::new(),
            tickets: BTreeMap::new(),
            delayed: BTreeMap::new(),
            fault_due_ms: if plan.faults.is_empty() { NEVER_MS } else { plan.fault_gap_ms.1.min(20_000) },
            fault_random: Random::new(plan.seed ^ 0x6661_756c_7473),
            struck: 0,
            injected: Vec::new(),
            backup: None,
            bad_net: false,
            healed: false,
            numbers: 0,
            turns: Turns::new(2 + 2 * plan.devices + plan.renters),
            next_look: 0,
            memory: Memory::default(),
            summary: Summary { seed: plan.seed, ..Summary::default() },
            plan: plan.clone(),
        };
        world.reread()?;
        Ok(world)
    }

    /// The server's wall clock.
    pub(super) fn now_ms(&self) -> u64 {
        self.true_ms().saturating_add_signed(self.clock_off_ms)
    }

    /// Everybody else's.
    pub(super) fn true_ms(&self) -> u64 {
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

    /// Whether nothing goes wrong in this run.
    pub(super) fn calm(&self) -> bool {
        self.plan.scenario == Scenario::Calm
    }

    pub(super) fn run(&mut self) -> Result<Summary> {
        let outcome = self.run_to_the_end();
        self.summary.virtual_ms = self.at_ms;
        self.summary.faults = self.injected.len() as u64;
        outcome.map_err(|error| self.at(error))?;
        Ok(self.summary.clone())
    }

    fn run_to_the_end(&mut self) -> Result<()> {
        loop {
            if !self.healed && self.at_ms >= self.plan.chaos_ms {
                self.heal();
            }
            if self.healed && self.summary.acts.is_multiple_of(16) && self.is_over() {
                break;
            }
            if self.at_ms > self.plan.chaos_ms + self.plan.ends_within_ms {
                return Err(LabError::Promise { promise: Promise::OrdersEnd, what: self.unfinished() });
            }
            self.one_act()?;
            if self.summary.acts >= self.next_look {
                let size = self.devices.len() * 4 + self.check.shadow.orders.len() * 8;
                self.next_look = self.summary.acts + LOOK_EVERY + size as u64;
                self.look()?;
            }
        }
        self.summary.disk_operations = self.server.disk.mem.operations();
        self.finish()
    }

    fn one_act(&mut self) -> Result<()> {
        while let Some(part) = self.turns.take_stale() {
            let due_ms = self.due_ms(self.part(part));
            self.turns.set(part, due_ms, self.at_ms);
        }
        let Some(part) = self.turns.pick(&mut self.random) else {
            let due_ms = self.turns.next_due_ms().min(self.net.next_due_ms().unwrap_or(NEVER_MS));
            let end_ms = self.plan.chaos_ms + self.plan.ends_within_ms + 1;
            self.pass_time(due_ms.clamp(self.at_ms + 1, end_ms.max(self.at_ms + 1)));
            return Ok(());
        };
        if !self.plan.load.scripted && self.random.chance(60_000) {
            self.pass_time(self.at_ms + 1);
        }
        self.turns.touch(part);
        let acts = self.acts(self.part(part));
        match self.random.one_of(&acts).copied() {
            Some(act) => self.act(act),
            None => Ok(()),
        }
    }

    /// Says when it was.
    fn at(&self, error: LabError) -> LabError {
        let at = |what: String| format!("at {} s: {what}", seconds(self.at_ms));
        match error {
            LabError::Promise { promise, what } => LabError::Promise { promise, what: at(what) },
            other => LabError::Promise {
                promise: Promise::JournalFolds,
                what: at(crate::error::with_causes(&other)),
            },
        }
    }

    fn part(&self, number: usize) -> Part {
        let devices = self.plan.devices;
        match number {
            0 => Part::Server,
            1 => Part::Fault,
            n if n < 2 + devices => Part::Device(n - 2),
            n if n < 2 + 2 * devices => Part::Supplier(n - 2 - devices),
            n => Part::Renter(n - 2 - 2 * devices),
        }
    }

    /// Something happened to a part that may let it act.
    pub(super) fn touch(&mut self, part: Part) {
        let devices = self.plan.devices;
        self.turns.touch(match part {
            Part::Server => 0,
            Part::Fault => 1,
            Part::Device(n) => 2 + n,
            Part::Supplier(n) => 2 + devices + n,
            Part::Renter(n) => 2 + 2 * devices + n,
        });
    }

    /// The whole server was started or stopped: everybody looks anew.
    pub(super) fn touch_all(&mut self) {
        (0..2 + 2 * self.plan.devices + self.plan.renters).for_each(|part| self.turns.touch(part));
    }

    fn pass_time(&mut self, at_ms: u64) {
        self.at_ms = at_ms;
        self.net.advance(at_ms);
        self.turns.advance(at_ms);
        self.poll_links();
    }

    /// Takes in what links have for those who were told something.
    pub(super) fn poll_links(&mut self) {
        for endpoint in self.net.take_told() {
            if endpoint == self.server_endpoint {
                self.server.poll_link();
                self.touch(Part::Server);
            } else if let Some(n) = self.by_endpoint.get(&endpoint).copied() {
                self.devices[n].poll_link(self.at_ms);
                self.touch(Part::Device(n));
            }
        }
    }

    /// Something reaches the server.
    pub(super) fn send_to_server(&mut self, input: Input) {
        self.server.inbox.push_back(input);
        self.touch(Part::Server);
    }

    fn due_ms(&self, part: Part) -> u64 {
        match part {
            Part::Server => self.server_due_ms(),
            Part::Fault if self.healed => NEVER_MS,
            Part::Fault => self.fault_due_ms,
            Part::Device(n) => self.devices[n].due_ms(self.server.up()),
            Part::Supplier(n) if self.devices[n].left => NEVER_MS,
            Part::Supplier(n) => self.suppliers[n].due_ms,
            Part::Renter(n) => self.renters[n].due_ms,
        }
    }

    fn server_due_ms(&self) -> u64 {
        let server = &self.server;
        if !server.up() {
            return server.start_due_ms;
        }
        let busy = !server.inbox.is_empty() || !server.outbox.is_empty() || server.staged > 0;
        let due_ms = if busy || server.snapshot.is_some() || self.dirty() {
            0
        } else {
            let delayed_ms = self.delayed.keys().next().map_or(NEVER_MS, |(due_ms, _)| *due_ms);
            server.tick_due_ms.min(server.watch_due_ms).min(delayed_ms)
        };
        due_ms.max(self.stalled_until_ms)
    }

    fn dirty(&self) -> bool {
        self.server.core.as_ref().is_some_and(ionet_server::Core::dirty)
    }

    /// What a part can do now.
    fn acts(&self, part: Part) -> Vec<Act> {
        match part {
            Part::Server => self.server_acts(),
            Part::Device(n) => self.device_acts(n),
            Part::Fault => vec![Act::Fault],
            Part::Supplier(n) => vec![Act::Supplier(n)],
            Part::Renter(n) => vec![Act::Renter(n)],
        }
    }

    fn server_acts(&self) -> Vec<Act> {
        let (at_ms, server) = (self.at_ms, &self.server);
        if !server.up() {
            return if at_ms >= server.start_due_ms { vec![Act::ServerStart] } else { Vec::new() };
        }
        let delayed_ms = self.delayed.keys().next().map(|(due_ms, _)| *due_ms);
        let acts = [
            (!server.inbox.is_empty(), Act::ServerInput),
            (at_ms >= server.tick_due_ms || self.dirty(), Act::ServerTick),
            (server.staged > 0, Act::ServerCommit),
            (!server.outbox.is_empty(), Act::ServerOutput),
            (server.snapshot.is_some(), Act::ServerSnapshot),
            (at_ms >= server.watch_due_ms, Act::ChainWatch),
            (delayed_ms.is_some_and(|due_ms| due_ms <= at_ms), Act::Delayed),
        ];
        acts.into_iter().filter(|(is, _)| *is).map(|(_, act)| act).collect()
    }

    fn device_acts(&self, n: usize) -> Vec<Act> {
        let (at_ms, device) = (self.at_ms, &self.devices[n]);
        if device.asleep() {
            return if device.due_ms(true) <= at_ms { vec![Act::Wake(n)] } else { Vec::new() };
        }
        let alive = device.agent.is_some();
        let quiet = device.outbox.is_empty();
        let asked = !device.inbox.is_empty() || at_ms >= device.tick_due_ms;
        let dials = device.linked_since_ms.is_none() && at_ms >= device.dial_due_ms;
        let acts = [
            (!alive && at_ms >= device.start_due_ms, Act::AgentStart(n)),
            (alive && !quiet, Act::AgentOutput(n)),
            (alive && quiet && asked, Act::Agent(n)),
            (alive && self.server.up() && dials, Act::Dial(n)),
        ];
        let mut ready: Vec<_> = acts.into_iter().filter(|(is, _)| *is).map(|(_, act)| act).collect();
        let supervisors = device.supervisors.iter().filter(|(_, supervisor)| supervisor.due_ms() <= at_ms);
        ready.extend(supervisors.map(|(lease, _)| Act::Supervisor(n, *lease)));
        ready
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
            Act::ServerOutput => return self.server_output(),
            Act::ServerSnapshot => return self.server_snapshot(),
            Act::Supervisor(n, lease) => return self.supervisor_step(n, lease),
            Act::AgentOutput(n) => return self.agent_output(n),
            Act::Renter(n) => return self.renter_act(n),
            Act::ServerTick => self.server_tick(),
            Act::ChainWatch => self.chain_watch(),
            Act::Delayed => self.deliver_delayed(),
            Act::AgentStart(n) => self.agent_start(n),
            Act::Agent(n) => self.agent_step(n),
            Act::Dial(n) => self.dial(n),
            Act::Wake(n) => self.devices[n].wake(self.at_ms),
            Act::Supplier(n) => self.supplier_act(n),
            Act::Fault => self.fault(),
        }
        Ok(())
    }

    /// The plan's one crash, and crashes by chance, come between any two acts.
    fn crashes_before(&mut self, act: Act) -> bool {
        let counts = match act {
            Act::ServerInput | Act::ServerOutput | Act::ServerSnapshot => true,
            Act::ServerCommit => self.server.staged_events() > 0,
            _ => false,
        };
        if counts {
            self.summary.server_acts += 1;
            let planned = self.plan.crash == Some(Crash::Server(self.summary.server_acts));
            if planned || self.strikes(FaultKind::ServerCrash, self.plan.crash_ppm).is_some() {
                self.crash_server();
                return true;
            }
        }
        if let Act::AgentOutput(n) | Act::Agent(n) = act {
            let counts = matches!(act, Act::AgentOutput(_)) || !self.devices[n].inbox.is_empty();
            self.summary.agent_acts += u64::from(counts);
            let planned = counts && self.plan.crash == Some(Crash::Agent(self.summary.agent_acts));
            if planned || self.strikes(FaultKind::AgentCrash, self.plan.crash_ppm / 2).is_some() {
                self.crash_agent(n);
                return true;
            }
        }
        false
    }

    /// No order lives, nobody waits for an answer and no box runs.
    fn is_over(&self) -> bool {
        let orders_over = self.check.shadow.orders.values().all(|order| order.stage == Stage::Paid);
        let answered = self.renters.iter().all(|renter| renter.waits_for() == 0);
        let here = self.devices.iter().filter(|device| !device.left);
        let quiet = here.into_iter().all(|device| device.supervisors.is_empty());
        let ordered = !self.plan.load.scripted || !self.check.book.orders.is_empty();
        orders_over && answered && quiet && ordered && self.server.up() && self.server.staged == 0
    }

    fn unfinished(&self) -> String {
        let orders = self.check.shadow.orders.values().filter(|order| order.stage != Stage::Paid);
        let orders: Vec<_> = orders.map(|o| format!("{} is {} ({:?})", o.id, o.stage, o.reason)).collect();
        let here = self.devices.iter().filter(|device| !device.left);
        let boxes: Vec<_> = here.flat_map(|d| d.supervisors.keys()).map(ToString::to_string).collect();
        let waiting: usize = self.renters.iter().map(Renter::waits_for).sum();
        let within_s = self.plan.ends_within_ms / 1000;
        let up = self.server.up();
        format!(
            "not ended {within_s} s after the last fault: orders {orders:?}, boxes {boxes:?}, unanswered {waiting}, server up {up}"
        )
    }
}

/// A network on which nothing goes wrong.
pub(super) fn sound() -> Faults {
    Faults { delay_min_ms: 1, delay_max_ms: 20, dead_after_ms: 15_000, ..Faults::default() }
}
