//! The logic of the worker's agent, as a synchronous step: desired leases in, acts and reports out.
//!
//! Always holds: an older generation is refused; a lease in neither of the server's lists is left alone; what is
//! desired is on disk before it is acted on; a lease that ran once is never started a second time; a machine that
//! cannot enforce limits never holds two tenants. The agent is only the supervisors' client: nothing that runs
//! depends on it.
//!
//! The lab runs this. Not here: processes, sockets, files (`shell`), one lease's paid time (`supervision`).

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::worker::{
    BoxPhase, Desired, DesiredLease, FromWorker, ObservedLease, PeerLink, SignedLink, Telemetry, ToWorker,
    Welcome,
};
use ionet_domain::device::Measured;
use ionet_domain::{DeviceId, LeaseId};
use serde::{Deserialize, Serialize};

use crate::assignment::Assignment;
use crate::measuring::Measuring;

/// How often everything observed is said anew, in milliseconds.
pub const OBSERVED_EVERY_MS: u64 = 5_000;
/// For how long a removal is reported before it is forgotten, in milliseconds of a live link.
pub const REMOVAL_TOLD_MS: u64 = 60_000;
/// How long foreign use must last before the machine yields, and how long it must be over.
const YIELD_AFTER_MS: u64 = 30_000;
const RETURN_AFTER_MS: u64 = 60_000;

/// What the agent knows of its machine and its owner's wishes.
#[derive(Clone, Debug, Default)]
pub struct AgentConfig {
    /// Its release.
    pub version: String,
    /// UUIDs of the GPUs for hire.
    pub gpus: Vec<String>,
    /// Whether limits are enforced; without them there is one tenant at a time.
    pub enforced: bool,
    /// Whether all members of this network are near each other.
    pub near: bool,
    /// Above this share of CPU in other use the machine yields; `None` never.
    pub yield_cpu_percent: Option<u8>,
}

/// What the agent must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Who the server said that it is.
    pub welcome: Option<Welcome>,
    /// The newest desired set.
    pub desired: Desired,
    /// The GPUs of each lease.
    pub gpus: BTreeMap<LeaseId, Vec<String>>,
}

/// What happened.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "inputs are handed over one by one and never kept")]
pub enum Input {
    /// The link to the server is up.
    LinkUp,
    /// It is down.
    LinkDown,
    /// The server said something.
    FromServer(ToWorker),
    /// A supervisor said how its lease is.
    Observed(ObservedLease),
    /// A supervisor said how its lease reaches the other members.
    Links {
        /// Which lease.
        lease: LeaseId,
        /// One for each other member.
        links: Vec<PeerLink>,
    },
    /// A lease's supervisor is gone; the last that is known of the lease, if anything.
    Gone {
        /// Which lease.
        lease: LeaseId,
        /// What it had saved.
        last: Option<Box<ObservedLease>>,
        /// Why, for people.
        reason: String,
    },
    /// Relays have measured the links; what each attests, nothing where none could.
    LinksMeasured(Vec<SignedLink>),
    /// The measurements are done.
    CheckDone(Result<Measured, String>),
    /// How the machine is.
    Telemetry(Telemetry),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Say this to the server; lost if the link is down.
    Send(FromWorker),
    /// Put on disk before anything that follows.
    Persist(Box<Saved>),
    /// Start the supervisor of a lease that has none.
    StartSupervisor(Box<Assignment>),
    /// Tell the supervisor of a lease how it should be now.
    UpdateSupervisor(Box<Assignment>),
    /// End a lease and wipe it, by its supervisor or, if that is gone, without; then say `Observed`.
    RemoveLease(LeaseId),
    /// A removal has been told long enough: drop what is left of the lease on disk.
    ForgetLease(LeaseId),
    /// Measure the machine, then say `CheckDone`.
    RunCheck,
    /// Have relays measure the links, then say `LinksMeasured`.
    MeasureLinks,
    /// For the log.
    Warn(String),
}

#[derive(Clone, Debug, Default)]
struct Held {
    observed: Option<ObservedLease>,
    assignment: Option<Assignment>,
    /// The supervisor is gone, and with it its box.
    gone: bool,
    removing: bool,
    /// When the removal was first told on the present link.
    removal_told_ms: Option<u64>,
}

impl Held {
    fn is_removed(&self) -> bool {
        matches!(&self.observed, Some(ObservedLease { phase: BoxPhase::Removed { .. }, .. }))
    }
}

/// The agent of one device.
#[derive(Debug)]
pub struct Agent {
    device: DeviceId,
    config: AgentConfig,
    saved: Saved,
    held: BTreeMap<LeaseId, Held>,
    linked: bool,
    checking: bool,
    started: bool,
    /// When everything observed was last said; `None` once something has changed since.
    observed_ms: Option<u64>,
    yielding: Yielding,
    measuring: Measuring,
}

#[derive(Debug, Default)]
struct Yielding {
    on: bool,
    /// Since when the measurements speak for the other state.
    other_since_ms: Option<u64>,
}

impl Agent {
    /// An agent with what it had saved and the leases found on this machine. The first step starts what is desired
    /// and was never started.
    pub fn new(
        device: DeviceId,
        config: AgentConfig,
        saved: Saved,
        found: impl IntoIterator<Item = LeaseId>,
    ) -> Self {
        let held = found.into_iter().map(|lease| (lease, Held::default())).collect();
        Self {
            device,
            config,
            saved,
            held,
            linked: false,
            checking: false,
            started: false,
            observed_ms: None,
            yielding: Yielding::default(),
            measuring: Measuring::new(device),
        }
    }

    /// What it must not forget.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// What is known of every lease here.
    pub fn observed(&self) -> Vec<ObservedLease> {
        self.held.values().filter_map(|held| held.observed.clone()).collect()
    }

    /// What the supervisors that run should carry out.
    pub fn assignments(&self) -> Vec<Assignment> {
        self.held.values().filter(|held| !held.gone).filter_map(|held| held.assignment.clone()).collect()
    }

    /// Whether the machine yields to its owner's own use.
    pub fn is_yielding(&self) -> bool {
        self.yielding.on
    }

    /// One step: what happened at `now_ms` (monotonic), and what is to be done, in this order.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Output> {
        let mut todo = Vec::new();
        if !self.started {
            self.started = true;
            self.carry_out(&mut todo);
        }
        match input {
            Input::LinkUp => self.link_up(now_ms, &mut todo),
            Input::LinkDown => self.link_down(),
            Input::FromServer(said) => self.hear(said, &mut todo),
            Input::Observed(observed) => self.observe(observed),
            Input::Links { lease, links } => {
                self.measuring.take_links(lease, &links);
                todo.push(Output::Send(FromWorker::Links { lease, links }));
            }
            Input::LinksMeasured(measured) => {
                self.measuring.done(now_ms, !measured.is_empty());
                if !measured.is_empty() {
                    todo.push(Output::Send(FromWorker::LinksMeasured(measured)));
                }
            }
            Input::Gone { lease, last, reason } => self.supervisor_gone(lease, last, reason),
            Input::CheckDone(result) => {
                self.checking = false;
                todo.push(Output::Send(FromWorker::Checked(result)));
            }
            Input::Telemetry(telemetry) => self.take_telemetry(now_ms, telemetry, &mut todo),
            Input::Tick => {
                self.remind(&mut todo);
                let live = |lease: &LeaseId| {
                    self.held.get(lease).is_some_and(|held| !held.gone && !held.is_removed())
                };
                if self.linked && self.measuring.is_due(now_ms, live) {
                    todo.push(Output::MeasureLinks);
                }
            }
        }
        self.say_observed(now_ms, &mut todo);
        self.forget(now_ms, &mut todo);
        if !self.linked {
            todo.retain(|output| !matches!(output, Output::Send(_)));
        }
        todo
    }

    fn link_up(&mut self, now_ms: u64, todo: &mut Vec<Output>) {
        self.linked = true;
        self.measuring.link_up(now_ms);
        self.observed_ms = Some(now_ms);
        todo.push(Output::Send(FromWorker::Hello {
            device: self.device,
            version: self.config.version.clone(),
            generation: self.saved.desired.generation,
            observed: self.observed(),
        }));
        todo.push(Output::Send(FromWorker::Yielding(self.yielding.on)));
        self.note_removals_told(now_ms);
    }

    fn link_down(&mut self) {
        self.linked = false;
        for held in self.held.values_mut() {
            held.removal_told_ms = None;
        }
    }

    fn hear(&mut self, said: ToWorker, todo: &mut Vec<Output>) {
        match said {
            ToWorker::Welcome(welcome) => self.welcome(welcome, todo),
            ToWorker::Desired(desired) => self.take_desired(desired, todo),
            ToWorker::Check if self.checking => {}
            ToWorker::Check => {
                self.checking = true;
                todo.push(Output::RunCheck);
            }
            ToWorker::Ping { n, payload } => todo.push(Output::Send(FromWorker::Pong { n, payload })),
        }
    }

    fn welcome(&mut self, welcome: Welcome, todo: &mut Vec<Output>) {
        let before = self.saved.welcome.as_ref();
        if before.is_some_and(|before| before.server != welcome.server || before.network != welcome.network) {
            todo.push(Output::Warn(format!(
                "the server now signs as {} for network {}; leases of the former one keep their own",
                welcome.server, welcome.network
            )));
        }
        if before != Some(&welcome) {
            self.saved.welcome = Some(welcome);
            todo.push(Output::Persist(Box::new(self.saved.clone())));
        }
    }

    fn take_desired(&mut self, desired: Desired, todo: &mut Vec<Output>) {
        let have = self.saved.desired.generation;
        if desired.generation < have {
            todo.push(Output::Warn(format!(
                "refused desired set {:?}: {have:?} is newer",
                desired.generation
            )));
            return;
        }
        if desired != self.saved.desired {
            self.saved.desired = desired;
            self.share_out_gpus();
            todo.push(Output::Persist(Box::new(self.saved.clone())));
        }
        self.carry_out(todo);
    }

    /// Gives each new lease the free GPUs that it hired; those of leases that are over are free again.
    fn share_out_gpus(&mut self) {
        let held = &self.held;
        let wanted = &self.saved.desired.leases;
        self.saved.gpus.retain(|lease, _| {
            held.get(lease).is_some_and(|held| !held.is_removed()) || wanted.iter().any(|w| w.lease == *lease)
        });
        for lease in wanted {
            if self.saved.gpus.contains_key(&lease.lease) || lease.resources.gpus == 0 {
                continue;
            }
            let taken: BTreeSet<&String> = self.saved.gpus.values().flatten().collect();
            let free = self.config.gpus.iter().filter(|gpu| !taken.contains(gpu)).cloned();
            let given = free.take(lease.resources.gpus as usize).collect();
            self.saved.gpus.insert(lease.lease, given);
        }
    }

    /// Makes the machine match the desired set. Repeating it changes nothing.
    fn carry_out(&mut self, todo: &mut Vec<Output>) {
        for wanted in self.saved.desired.leases.clone() {
            self.carry_out_lease(&wanted, todo);
        }
        for lease in self.saved.desired.ended.clone() {
            self.remove(lease, todo);
        }
    }

    fn carry_out_lease(&mut self, wanted: &DesiredLease, todo: &mut Vec<Output>) {
        let lease = wanted.lease;
        let Some(assignment) = self.assignment(wanted) else { return };
        if let Some(held) = self.held.get_mut(&lease) {
            let over = held.gone || held.removing || held.is_removed();
            if !over && held.assignment.as_ref() != Some(&assignment) {
                held.assignment = Some(assignment.clone());
                todo.push(Output::UpdateSupervisor(Box::new(assignment)));
            }
            return;
        }
        match self.refusal(wanted, &assignment) {
            Some(reason) => self.observe(lost(lease, reason)),
            None => todo.push(Output::StartSupervisor(Box::new(assignment.clone()))),
        }
        let held = self.held.entry(lease).or_default();
        held.gone = held.observed.is_some();
        held.assignment = Some(assignment);
    }

    fn assignment(&self, wanted: &DesiredLease) -> Option<Assignment> {
        let welcome = self.saved.welcome.as_ref()?;
        Some(Assignment {
            network: welcome.network.clone(),
            server: welcome.server,
            near: self.config.near,
            gpus: self.saved.gpus.get(&wanted.lease).cloned().unwrap_or_default(),
            lease: wanted.clone(),
        })
    }

    /// Why this machine cannot carry the lease, if so.
    fn refusal(&self, wanted: &DesiredLease, assignment: &Assignment) -> Option<String> {
        let tenant = self
            .held
            .iter()
            .find(|(lease, held)| lease.order != wanted.lease.order && !held.is_removed() && !held.gone);
        if let (false, Some((other, _))) = (self.config.enforced, tenant) {
            return Some(format!(
                "limits are not enforced on this device, so it holds one tenant at a time, and lease {other} is here"
            ));
        }
        let (hired, given) = (wanted.resources.gpus as usize, assignment.gpus.len());
        (given < hired).then(|| format!("{hired} GPUs were hired and {given} are free on this device"))
    }

    fn remove(&mut self, lease: LeaseId, todo: &mut Vec<Output>) {
        let Some(held) = self.held.get_mut(&lease) else { return };
        if !held.is_removed() && !held.removing {
            held.removing = true;
            todo.push(Output::RemoveLease(lease));
        }
    }

    /// What has not been answered is asked again: the supervisor or its socket may have been in between.
    fn remind(&mut self, todo: &mut Vec<Output>) {
        let asked = self.held.iter().filter(|(_, held)| held.removing && !held.is_removed());
        todo.extend(asked.map(|(lease, _)| Output::RemoveLease(*lease)));
    }

    fn observe(&mut self, observed: ObservedLease) {
        let held = self.held.entry(observed.lease).or_default();
        // What is removed stays so: a late word of its supervisor changes nothing.
        if held.is_removed() || held.observed.as_ref() == Some(&observed) {
            return;
        }
        held.observed = Some(observed);
        self.observed_ms = None;
    }

    fn supervisor_gone(&mut self, lease: LeaseId, last: Option<Box<ObservedLease>>, reason: String) {
        let held = self.held.entry(lease).or_default();
        held.gone = true;
        if held.is_removed() {
            return;
        }
        let known = held.observed.take().or(last.map(|last| *last));
        let mut observed = known.unwrap_or_else(|| lost(lease, String::new()));
        // What ended before its supervisor did has not become lost by that.
        if !matches!(observed.phase, BoxPhase::Exited { .. } | BoxPhase::Lost { .. })
            || observed.phase == unsaid()
        {
            observed.phase = BoxPhase::Lost { reason };
        }
        held.observed = Some(observed);
        self.observed_ms = None;
    }

    fn take_telemetry(&mut self, now_ms: u64, telemetry: Telemetry, todo: &mut Vec<Output>) {
        self.measuring.take_cpu(telemetry.cpu_percent);
        let busy = self.config.yield_cpu_percent.is_some_and(|most| telemetry.foreign_cpu_percent > most);
        if self.yielding.take(now_ms, busy) {
            todo.push(Output::Send(FromWorker::Yielding(self.yielding.on)));
        }
        todo.push(Output::Send(FromWorker::Telemetry(telemetry)));
    }

    fn say_observed(&mut self, now_ms: u64, todo: &mut Vec<Output>) {
        let due = self.observed_ms.is_none_or(|at_ms| now_ms.saturating_sub(at_ms) >= OBSERVED_EVERY_MS);
        if self.linked && due {
            self.observed_ms = Some(now_ms);
            todo.push(Output::Send(FromWorker::Observed(self.observed())));
            self.note_removals_told(now_ms);
        }
    }

    fn note_removals_told(&mut self, now_ms: u64) {
        for held in self.held.values_mut().filter(|held| held.is_removed()) {
            held.removal_told_ms.get_or_insert(now_ms);
        }
    }

    /// Drops removals that were told for long enough and that nobody wants any more.
    fn forget(&mut self, now_ms: u64, todo: &mut Vec<Output>) {
        let desired = &self.saved.desired.leases;
        self.held.retain(|lease, held| {
            let told =
                held.removal_told_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) >= REMOVAL_TOLD_MS);
            let forget = told && !desired.iter().any(|wanted| wanted.lease == *lease);
            if forget {
                todo.push(Output::ForgetLease(*lease));
            }
            !forget
        });
    }
}

impl Yielding {
    /// Whether the state changed.
    fn take(&mut self, now_ms: u64, busy: bool) -> bool {
        if busy == self.on {
            self.other_since_ms = None;
            return false;
        }
        let since_ms = *self.other_since_ms.get_or_insert(now_ms);
        let wait_ms = if busy { YIELD_AFTER_MS } else { RETURN_AFTER_MS };
        let changes = now_ms.saturating_sub(since_ms) >= wait_ms;
        if changes {
            *self = Self { on: busy, other_since_ms: None };
        }
        changes
    }
}

fn unsaid() -> BoxPhase {
    BoxPhase::Lost { reason: String::new() }
}

fn lost(lease: LeaseId, reason: String) -> ObservedLease {
    ObservedLease {
        lease,
        phase: BoxPhase::Lost { reason },
        parts_ms: Vec::new(),
        receipt: None,
        endpoint: None,
        engine_restarts: 0,
        egress: None,
    }
}
