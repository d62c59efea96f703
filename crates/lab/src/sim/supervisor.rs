//! One lease's supervisor process: the real logic over the box in memory. It outlives its agent; its box dies with it.

use std::collections::{BTreeSet, VecDeque};

use ionet_api::WalletKey;
use ionet_api::worker::{MemberEndpoint, ObservedLease};
use ionet_domain::market::EngineKind;
use ionet_domain::order::WipeReceipt;
use ionet_domain::{EndpointId, LeaseId};
use ionet_runtime::mem::MemHost;
use ionet_runtime::sandbox::{BoxReport, BoxSpec, Sandbox};
use ionet_worker::assignment::{Assignment, box_name};
use ionet_worker::supervision::{Input, Output, Progress, Supervision};

/// How often it looks at its box, in milliseconds.
pub(super) const LOOK_EVERY_MS: u64 = 1_000;

/// What leaves a supervisor.
pub(super) enum Word {
    /// A box was started.
    Started,
    /// A box is ended and wiped, for this reason.
    Ended(String),
    /// To the agent.
    Report(ObservedLease),
    /// To its folder.
    Save(Progress),
    /// The process ends.
    Finish,
}

/// A supervisor that lives.
pub(super) struct Supervisor {
    pub(super) logic: Supervision,
    pub(super) lease: LeaseId,
    pub(super) engine: EngineKind,
    pub(super) inbox: VecDeque<Input>,
    pub(super) due_ms: u64,
    pub(super) began_ms: u64,
    pub(super) peers: Vec<EndpointId>,
    /// When its program ends by itself.
    pub(super) exit_ms: Option<u64>,
    spec: Option<BoxSpec>,
    seen: Option<BoxReport>,
    leaves_box: bool,
}

impl Supervisor {
    pub(super) fn new(assignment: Assignment, seed: [u8; 32], now_ms: u64, leaves_box: bool) -> Self {
        let key = WalletKey::from_seed(&seed);
        let (lease, engine) = (assignment.lease.lease, assignment.lease.engine);
        let id = EndpointId(key.address().0);
        let endpoint = MemberEndpoint { id, addr: serde_json::Value::Null };
        Self {
            logic: Supervision::new(assignment, key, Progress::default(), 0),
            lease,
            engine,
            inbox: VecDeque::from([Input::Endpoint(endpoint)]),
            due_ms: now_ms,
            began_ms: now_ms,
            peers: Vec::new(),
            exit_ms: None,
            spec: None,
            seen: None,
            leaves_box,
        }
    }

    /// Takes one input, or looks at the box, and carries out what follows.
    pub(super) fn act(&mut self, host: &MemHost, now_ms: u64, heard: BTreeSet<u32>) -> Vec<Word> {
        let mut inputs: VecDeque<Input> = self.inbox.pop_front().into_iter().collect();
        if now_ms >= self.due_ms {
            self.due_ms = now_ms + LOOK_EVERY_MS;
            inputs.extend(self.look(host, heard));
        }
        let mut words = Vec::new();
        while let Some(input) = inputs.pop_front() {
            for output in self.logic.step(now_ms - self.began_ms, input) {
                let (input, word) = self.carry_out(host, output);
                inputs.extend(input);
                words.extend(word);
            }
        }
        words
    }

    fn look(&mut self, host: &MemHost, heard: BTreeSet<u32>) -> Vec<Input> {
        let name = box_name(self.lease);
        let report = host.sandbox().observe().into_iter().find(|report| report.lease == name);
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
                host.lose(&box_name(self.lease));
                (self.spec.clone().and_then(|spec| self.start(host, spec)), None)
            }
            Output::SetPeers(peers) => {
                self.peers = peers.into_iter().map(|peer| EndpointId(peer.endpoint.0)).collect();
                (None, None)
            }
            Output::RemoveBox { reason } => {
                if !self.leaves_box {
                    // Removing from memory cannot fail.
                    let _ = host.sandbox().remove(&box_name(self.lease), &reason);
                }
                let wipe = WipeReceipt { method: "in memory".into(), ..WipeReceipt::default() };
                (Some(Input::Wiped(wipe)), Some(Word::Ended(reason)))
            }
            Output::Report(observed) => (None, Some(Word::Report(*observed))),
            Output::Save(progress) => (None, Some(Word::Save(*progress))),
            Output::Finish => (None, Some(Word::Finish)),
            Output::SaveAssignment(_) | Output::Warn(_) => (None, None),
        }
    }

    fn start(&mut self, host: &MemHost, spec: BoxSpec) -> Option<Input> {
        let failed = host.sandbox().ensure(&spec).err();
        self.spec = Some(spec);
        failed.map(|error| Input::BoxFailed { reason: error.to_string() })
    }
}
