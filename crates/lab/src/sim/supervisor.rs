//! One lease's supervisor process: the real logic over the box in memory. It outlives its agent; its box dies with it.

use std::collections::{BTreeSet, VecDeque};

use ionet_api::WalletKey;
use ionet_api::worker::{MemberEndpoint, ObservedLease};
use ionet_domain::EndpointId;
use ionet_domain::market::{Destination, Egress, EngineKind};
use ionet_domain::order::WipeReceipt;
use ionet_runtime::mem::MemHost;
use ionet_runtime::sandbox::{BoxReport, BoxSpec, Sandbox};
use ionet_worker::assignment::{Assignment, box_name};
use ionet_worker::supervision::{Input, Output, Progress, Supervision};

/// What a box may reach outside its cluster: the mode, and the list.
pub(super) type MayReach = (Egress, BTreeSet<Destination>);

fn may_reach(assignment: &Assignment) -> MayReach {
    (assignment.lease.egress, assignment.lease.program.allow.clone())
}

/// What leaves a supervisor.
pub(super) enum Word {
    /// A box was started.
    Started,
    /// A box is ended and wiped, for this reason.
    Ended(String),
    /// To the agent.
    Report(Box<ObservedLease>),
    /// To its folder.
    Save(Progress),
    /// The process ends.
    Finish,
}

/// A supervisor that lives.
pub(super) struct Supervisor {
    pub(super) logic: Supervision,
    /// What its box is called.
    pub(super) name: String,
    pub(super) engine: EngineKind,
    pub(super) inbox: VecDeque<Input>,
    look_due_ms: u64,
    look_every_ms: u64,
    /// When it began, by the machine's clock.
    began_ms: u64,
    pub(super) peers: Vec<EndpointId>,
    /// When its program ends by itself.
    pub(super) exit_ms: Option<u64>,
    pub(super) spec: Option<BoxSpec>,
    seen: Option<BoxReport>,
    /// The rules of its way out, as it was told last.
    may_reach: MayReach,
    leaves_box: bool,
}

impl Supervisor {
    /// `at_ms` is the machine's clock at the virtual time `due_ms`.
    pub(super) fn new(
        assignment: Assignment,
        seed: [u8; 32],
        (at_ms, due_ms, look_every_ms): (u64, u64, u64),
        leaves_box: bool,
    ) -> Self {
        let key = WalletKey::from_seed(&seed);
        let (lease, engine) = (assignment.lease.lease, assignment.lease.engine);
        let id = EndpointId(key.address().0);
        let may_reach = may_reach(&assignment);
        let endpoint = MemberEndpoint { id, addr: serde_json::Value::Null };
        Self {
            logic: Supervision::new(assignment, key, Progress::default(), 0),
            name: box_name(lease),
            engine,
            inbox: VecDeque::from([Input::Endpoint(endpoint)]),
            look_due_ms: due_ms,
            look_every_ms,
            began_ms: at_ms,
            peers: Vec::new(),
            exit_ms: None,
            spec: None,
            seen: None,
            may_reach,
            leaves_box,
        }
    }

    /// What its box may reach outside the cluster now.
    pub(super) fn may_reach(&self) -> &MayReach {
        &self.may_reach
    }

    /// When it can act next, in virtual milliseconds.
    pub(super) fn due_ms(&self) -> u64 {
        if self.inbox.is_empty() { self.look_due_ms.min(self.exit_ms.unwrap_or(self.look_due_ms)) } else { 0 }
    }

    /// Whether it looks at its box when it acts now.
    pub(super) fn looks(&self, at_ms: u64) -> bool {
        at_ms >= self.look_due_ms
    }

    /// Takes one input, or looks at the box, and carries out what follows; `now_ms` is the machine's clock.
    pub(super) fn act(&mut self, host: &MemHost, at_ms: u64, now_ms: u64, heard: BTreeSet<u32>) -> Vec<Word> {
        let mut inputs: VecDeque<Input> = self.inbox.pop_front().into_iter().collect();
        if self.looks(at_ms) {
            self.look_due_ms = at_ms + self.look_every_ms;
            inputs.extend(self.look(host, heard));
        }
        let mut words = Vec::new();
        while let Some(input) = inputs.pop_front() {
            for output in self.logic.step(now_ms.saturating_sub(self.began_ms), input) {
                let (input, word) = self.carry_out(host, output);
                inputs.extend(input);
                words.extend(word);
            }
        }
        words
    }

    fn look(&mut self, host: &MemHost, heard: BTreeSet<u32>) -> Vec<Input> {
        let report = host.sandbox().observe().into_iter().find(|report| report.lease == self.name);
        let fresh = report.filter(|report| self.seen.as_ref() != Some(report));
        self.seen = fresh.clone().or(self.seen.take());
        let heard = (!heard.is_empty()).then_some(Input::Heard(heard));
        fresh.map(Input::Box).into_iter().chain(heard).chain([Input::Tick]).collect()
    }

    fn carry_out(&mut self, host: &MemHost, output: Output) -> (Option<Input>, Option<Word>) {
        match output {
            Output::StartBox(spec) => {
                let failed = self.start(host, *spec);
                (failed, Some(Word::Started))
            }
            Output::RestartEngine => {
                host.lose(&self.name);
                (self.spec.clone().and_then(|spec| self.start(host, spec)), None)
            }
            Output::SetPeers(peers) => {
                self.peers = peers.into_iter().map(|peer| EndpointId(peer.endpoint.0)).collect();
                (None, None)
            }
            Output::RemoveBox { reason } => {
                if !self.leaves_box {
                    // Removing from memory cannot fail.
                    let _ = host.sandbox().remove(&self.name, &reason);
                }
                let wipe = WipeReceipt { method: "in memory".into(), ..WipeReceipt::default() };
                (Some(Input::Wiped(wipe)), Some(Word::Ended(reason)))
            }
            Output::Report(observed) => (None, Some(Word::Report(observed))),
            Output::Save(progress) => (None, Some(Word::Save(*progress))),
            Output::Finish => (None, Some(Word::Finish)),
            Output::SaveAssignment(assignment) => {
                self.may_reach = may_reach(&assignment);
                (None, None)
            }
            Output::Warn(_) => (None, None),
        }
    }

    fn start(&mut self, host: &MemHost, spec: BoxSpec) -> Option<Input> {
        let failed = host.sandbox().ensure(&spec).err();
        self.spec = Some(spec);
        failed.map(|error| Input::BoxFailed { reason: error.to_string() })
    }
}
