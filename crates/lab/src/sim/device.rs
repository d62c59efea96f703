//! One machine: the real agent, its supervisors, their boxes and what is on its disk.

use std::collections::{BTreeMap, VecDeque};

use ionet_api::worker::{BoxPhase, MemberEndpoint, ObservedLease};
use ionet_domain::device::Enrolment;
use ionet_domain::{DeviceId, EndpointId, LeaseId};
use ionet_net::link::{Link, LinkEvent};
use ionet_net::mem_link::MemLink;
use ionet_runtime::mem::MemHost;
use ionet_worker::agent::{Agent, AgentConfig, Input, Output, Saved};
use ionet_worker::supervision::Progress;

use super::supervisor::Supervisor;

/// How often the agent's shell lets it tick, in milliseconds.
pub(super) const TICK_MS: u64 = 1_000;

/// What is left of a lease on the machine's disk.
pub(super) struct Folder {
    pub(super) key: [u8; 32],
    pub(super) progress: Progress,
    /// Its last word, once it ended in order.
    pub(super) end: Option<ObservedLease>,
}

/// A machine.
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
        }
    }

    pub(super) fn id(&self) -> DeviceId {
        self.enrolment.device
    }

    pub(super) fn start_agent(&mut self, forgets: bool) {
        let config =
            AgentConfig { version: "lab".into(), enforced: true, near: true, ..AgentConfig::default() };
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
        self.host.lose(&ionet_worker::assignment::box_name(lease));
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

    /// Leases whose box runs now.
    pub(super) fn running(&self, lease: LeaseId) -> bool {
        self.host.running().contains(&ionet_worker::assignment::box_name(lease))
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
        })
    }
}
