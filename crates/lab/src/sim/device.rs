//! One machine: the real agent, its supervisors, their boxes and what is on its disk.

use std::collections::{BTreeMap, VecDeque};

use ionet_api::worker::{BoxPhase, Desired, Generation, MemberEndpoint, ObservedLease};
use ionet_domain::device::{Enrolment, Measured};
use ionet_domain::{DeviceId, EndpointId, LeaseId};
use ionet_net::link::{Link, LinkEvent};
use ionet_net::mem_link::MemLink;
use ionet_runtime::mem::MemHost;
use ionet_worker::agent::{Agent, AgentConfig, Input, Output, Saved};
use ionet_worker::assignment::box_name;
use ionet_worker::supervision::Progress;

use super::supervisor::Supervisor;
use super::turns::NEVER_MS;

/// What is left of a lease on the machine's disk.
pub(super) struct Folder {
    /// What the box is called.
    pub(super) name: String,
    pub(super) key: [u8; 32],
    pub(super) progress: Progress,
    /// Its last word, once it ended in order.
    pub(super) end: Option<ObservedLease>,
}

/// A machine.
#[expect(clippy::struct_excessive_bools, reason = "each is one state of the machine, on or off")]
pub(super) struct DeviceNode {
    pub(super) enrolment: Enrolment,
    pub(super) endpoint: ionet_net::EndpointId,
    pub(super) host: MemHost,
    pub(super) agent: Option<Agent>,
    pub(super) inbox: VecDeque<Input>,
    pub(super) outbox: VecDeque<Output>,
    pub(super) saved: Saved,
    pub(super) folders: BTreeMap<LeaseId, Folder>,
    pub(super) supervisors: BTreeMap<LeaseId, Supervisor>,
    pub(super) link: MemLink,
    /// Since when agent and link are up without a break.
    pub(super) linked_since_ms: Option<u64>,
    pub(super) tick_due_ms: u64,
    pub(super) dial_due_ms: u64,
    pub(super) start_due_ms: u64,
    /// Its supplier took it away for good.
    pub(super) left: bool,
    /// The machine's monotonic clock began with this.
    pub(super) boot_ms: u64,
    /// How far its wall clock is off, in milliseconds.
    pub(super) wall_off_ms: i64,
    /// It sleeps from the first to the second virtual time.
    sleeps: Option<(u64, u64)>,
    /// How long it slept before that.
    slept_ms: u64,
    /// How much faster its clock runs, in a million; slower below zero.
    pub(super) skew_ppm: i64,
    /// It is cut off in some direction.
    pub(super) cut: bool,
    /// It signs for more than it ran, and says that dead boxes are up.
    pub(super) lies: bool,
    /// It cannot make boxes until then.
    pub(super) refuses_until_ms: u64,
    /// What its check measures.
    pub(super) measures: Result<Measured, String>,
    /// Whether it enforces limits.
    pub(super) enforced: bool,
    /// Telemetry is sent every so many ticks, and this many have passed.
    pub(super) ticks: u64,
    /// What the server told it lately, by generation.
    pub(super) told: BTreeMap<Generation, Desired>,
    /// A planted fault: an old wish under way once more.
    pub(super) again: Option<Desired>,
    /// The newest generation that its agent kept.
    pub(super) newest: Generation,
}

impl DeviceNode {
    pub(super) fn new(enrolment: Enrolment, link: MemLink, boot_ms: u64, start_delay_ms: u64) -> Self {
        Self {
            endpoint: ionet_net::EndpointId(enrolment.endpoint.0),
            enrolment,
            host: MemHost::new(start_delay_ms),
            agent: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            saved: Saved::default(),
            folders: BTreeMap::new(),
            supervisors: BTreeMap::new(),
            link,
            linked_since_ms: None,
            tick_due_ms: 0,
            dial_due_ms: 0,
            start_due_ms: 0,
            left: false,
            boot_ms,
            wall_off_ms: 0,
            sleeps: None,
            slept_ms: 0,
            skew_ppm: 0,
            cut: false,
            lies: false,
            refuses_until_ms: 0,
            measures: Err("not measured".into()),
            enforced: true,
            ticks: 0,
            told: BTreeMap::new(),
            again: None,
            newest: Generation::default(),
        }
    }

    pub(super) fn id(&self) -> DeviceId {
        self.enrolment.device
    }

    /// The machine's monotonic clock.
    pub(super) fn monotonic_ms(&self, at_ms: u64) -> u64 {
        let awake_ms = at_ms - self.slept_ms;
        let off_ms = i64::try_from(awake_ms).unwrap_or(0) * self.skew_ppm / 1_000_000;
        (self.boot_ms + awake_ms).saturating_add_signed(off_ms)
    }

    /// It sleeps now; if it did already, for longer.
    pub(super) fn sleep(&mut self, at_ms: u64, wakes_ms: u64) {
        self.wake(at_ms);
        self.sleeps = Some((at_ms, wakes_ms));
    }

    /// It is awake from now on.
    pub(super) fn wake(&mut self, at_ms: u64) {
        if let Some((since_ms, _)) = self.sleeps.take() {
            self.slept_ms += at_ms - since_ms;
        }
    }

    pub(super) fn asleep(&self) -> bool {
        self.sleeps.is_some()
    }

    pub(super) fn start_agent(&mut self, forgets: bool) {
        let gpus = self.enrolment.hardware.gpus.iter().map(|gpu| gpu.uuid.clone());
        let config = AgentConfig {
            version: "lab".into(),
            gpus: gpus.collect(),
            enforced: self.enforced,
            near: true,
            yield_cpu_percent: Some(60),
        };
        let found: Vec<LeaseId> = if forgets { Vec::new() } else { self.folders.keys().copied().collect() };
        self.agent = Some(Agent::new(self.id(), config, self.saved.clone(), found.iter().copied()));
        for lease in found {
            let input = match self.supervisors.get(&lease) {
                Some(supervisor) => Input::Observed(supervisor.logic.observed()),
                None => self.gone(lease, "the supervisor ended while the agent was away"),
            };
            self.inbox.push_back(input);
        }
    }

    /// The agent's process ends; supervisors and boxes go on.
    pub(super) fn stop_agent(&mut self) {
        self.agent = None;
        self.inbox.clear();
        self.outbox.clear();
        self.linked_since_ms = None;
    }

    /// A supervisor and its box are killed.
    pub(super) fn kill_supervisor(&mut self, lease: LeaseId) {
        self.supervisors.remove(&lease);
        self.host.lose(&box_name(lease));
        self.tell_gone(lease, "the supervisor was killed");
    }

    pub(super) fn tell_gone(&mut self, lease: LeaseId, reason: &str) {
        if self.agent.is_some() {
            let gone = self.gone(lease, reason);
            self.inbox.push_back(gone);
        }
    }

    fn gone(&self, lease: LeaseId, reason: &str) -> Input {
        let last = self.folders.get(&lease).map(|folder| Box::new(folder.last(lease, reason)));
        Input::Gone { lease, last, reason: reason.into() }
    }

    pub(super) fn poll_link(&mut self, now_ms: u64) {
        while let Some(event) = self.link.poll() {
            let input = match event {
                LinkEvent::Up(_) => {
                    self.linked_since_ms = Some(now_ms);
                    Input::LinkUp
                }
                LinkEvent::Down(_) => {
                    self.linked_since_ms = None;
                    Input::LinkDown
                }
                LinkEvent::Frame(_, frame) => match serde_json::from_slice(&frame) {
                    Ok(said) => Input::FromServer(said),
                    Err(_) => continue,
                },
            };
            if self.agent.is_some() {
                self.inbox.push_back(input);
            }
        }
    }

    /// Whether the box of a lease runs now.
    pub(super) fn running(&self, lease: LeaseId) -> bool {
        self.folders.get(&lease).is_some_and(|folder| self.host.is_running(&folder.name))
    }

    /// When it can act next, in virtual milliseconds.
    pub(super) fn due_ms(&self, server_up: bool) -> u64 {
        if self.left {
            return NEVER_MS;
        }
        if let Some((_, wakes_ms)) = self.sleeps {
            return wakes_ms;
        }
        let agent_ms = match &self.agent {
            None => self.start_due_ms,
            Some(_) if !self.outbox.is_empty() || !self.inbox.is_empty() => 0,
            Some(_) if server_up && self.linked_since_ms.is_none() => self.tick_due_ms.min(self.dial_due_ms),
            Some(_) => self.tick_due_ms,
        };
        self.supervisors.values().map(Supervisor::due_ms).fold(agent_ms, u64::min)
    }

    /// A program of one of its boxes ended and the box is still there; the supervisor will see it.
    pub(super) fn end_programs(&mut self, at_ms: u64) {
        self.host.advance(at_ms);
        for supervisor in self.supervisors.values_mut() {
            if supervisor.exit_ms.is_some_and(|exit_ms| exit_ms <= at_ms) {
                supervisor.exit_ms = None;
                self.host.exit(&supervisor.name, 0);
            }
        }
    }
}

impl Folder {
    fn last(&self, lease: LeaseId, reason: &str) -> ObservedLease {
        let id = EndpointId(ionet_api::WalletKey::from_seed(&self.key).address().0);
        self.end.clone().unwrap_or_else(|| ObservedLease {
            lease,
            phase: BoxPhase::Lost { reason: reason.into() },
            parts_ms: Vec::new(),
            receipt: self.progress.receipt.clone(),
            endpoint: Some(MemberEndpoint { id, addr: serde_json::Value::Null }),
            engine_restarts: self.progress.engine_restarts,
            egress: None,
        })
    }
}
