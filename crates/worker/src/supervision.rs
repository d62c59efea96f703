//! The logic of one lease's supervisor, as a synchronous step: paid time, receipts, phases, engine restarts.
//!
//! Always holds: time counts only by the monotonic clock, only after the server once said that paid time runs, and
//! only while the box is up; it never counts beyond what is paid for, and beyond that only the grace is given. Receipts
//! are cumulative and signed with this lease's own key. An older or badly signed member list is refused and the one
//! before stays. Where this process ends, nothing is left of the box.
//!
//! The lab runs this over the in-memory sandbox. Not here: processes, sockets, packets (`supervisor`).

use std::collections::BTreeSet;

use ionet_api::WalletKey;
use ionet_api::sign::Usage;
use ionet_api::worker::{BoxPhase, EgressUse, MemberEndpoint, ObservedLease};
use ionet_domain::market::EngineKind;
use ionet_domain::meter::Receipt;
use ionet_domain::order::WipeReceipt;
use ionet_net::overlay;
use ionet_runtime::sandbox::{self, BoxReport, BoxSpec, Timeline};
use serde::{Deserialize, Serialize};

use crate::assignment::Assignment;

/// How often a receipt is made and the state is reported and saved, in milliseconds.
pub const RECEIPT_EVERY_MS: u64 = 5_000;
/// The reason of an end that nobody asked for.
pub const PAID_TIME_OVER: &str = "paid_time_over";
/// How often an engine that died is started again in its box.
const MAX_RESTARTS: u32 = 3;
const FIRST_BACK_OFF_MS: u64 = 1_000;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The agent passed on the lease as it should be now.
    Assigned(Box<Assignment>),
    /// How the box is.
    Box(BoxReport),
    /// The box could not be made, or its engine not be started again.
    BoxFailed {
        /// Why, for people.
        reason: String,
    },
    /// Members, by lease number, from whom packets came since the last time this was said.
    Heard(BTreeSet<u32>),
    /// How this supervisor is reached.
    Endpoint(MemberEndpoint),
    /// The agent asks for the end.
    Remove,
    /// Box and files are gone.
    Wiped(WipeReceipt),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make the box.
    StartBox(Box<BoxSpec>),
    /// End the engine in the box and start it anew.
    RestartEngine,
    /// These are the peers now.
    SetPeers(Vec<overlay::Member>),
    /// End everything in the box and wipe it, then say `Wiped`.
    RemoveBox {
        /// For the log.
        reason: String,
    },
    /// Tell the agent.
    Report(Box<ObservedLease>),
    /// Keep on disk.
    Save(Box<Progress>),
    /// Keep the assignment on disk.
    SaveAssignment(Box<Assignment>),
    /// For the log.
    Warn(String),
    /// There is nothing left to do: end the process.
    Finish,
}

/// What a supervisor must remember; what is left of it when machine or supervisor died.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Whether the server ever said that paid time runs.
    pub running: bool,
    /// Paid time used so far, in milliseconds.
    pub elapsed_ms: u64,
    /// Engine restarts so far.
    pub engine_restarts: u32,
    /// The newest receipt.
    pub receipt: Option<Receipt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    New,
    Preparing { percent: Option<u8>, detail: String },
    Starting,
    Ready,
    BackOff { until_ms: u64 },
    Exited { exit_code: i32 },
    Lost { reason: String },
    Removing { before: BoxPhase },
    Removed { wipe: WipeReceipt },
}

/// One lease's supervisor.
#[derive(Debug)]
pub struct Supervision {
    assignment: Assignment,
    key: WalletKey,
    progress: Progress,
    stage: Stage,
    /// Restarts since the server last asked for a new start.
    restarts_in_epoch: u32,
    last_ms: u64,
    /// Run beyond what is paid for.
    overrun_ms: u64,
    /// Passed since time last counted.
    idle_ms: u64,
    heard: BTreeSet<u32>,
    parts_ms: Vec<(String, u64)>,
    endpoint: Option<MemberEndpoint>,
    /// What left the cluster: as it is, and as it is told, which is every few seconds.
    egress_now: Option<EgressUse>,
    egress_told: Option<EgressUse>,
    reported: Option<ObservedLease>,
    reported_ms: u64,
}

impl Supervision {
    /// A supervisor with its own endpoint key; `progress` is what an earlier process of the lease had saved. `now_ms`
    /// is monotonic, here and in every step.
    pub fn new(assignment: Assignment, key: WalletKey, progress: Progress, now_ms: u64) -> Self {
        Self {
            assignment,
            key,
            progress,
            stage: Stage::New,
            restarts_in_epoch: 0,
            last_ms: now_ms,
            overrun_ms: 0,
            idle_ms: 0,
            heard: BTreeSet::new(),
            parts_ms: Vec::new(),
            endpoint: None,
            egress_now: None,
            egress_told: None,
            reported: None,
            reported_ms: now_ms,
        }
    }

    /// The lease as it should be now.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// Paid time used so far, in milliseconds.
    pub fn elapsed_ms(&self) -> u64 {
        self.progress.elapsed_ms
    }

    /// What left the cluster so far; told with the next regular report.
    pub fn note_egress(&mut self, used: EgressUse) {
        self.egress_now = Some(used);
    }

    /// One step: what happened at `now_ms`, and what is to be done.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Output> {
        let mut todo = Vec::new();
        self.pass_time(now_ms);
        if self.stage == Stage::New {
            self.begin(&mut todo);
        }
        self.take(input, &mut todo);
        self.end_back_off(&mut todo);
        if self.is_over_budget() {
            self.remove(PAID_TIME_OVER, &mut todo);
        }
        self.report(&mut todo);
        todo
    }

    fn pass_time(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.last_ms);
        self.last_ms = self.last_ms.max(now_ms);
        if !self.counts() {
            self.idle_ms += passed_ms;
            return;
        }
        self.idle_ms = 0;
        let room_ms = self.assignment.lease.paid_ms.saturating_sub(self.progress.elapsed_ms);
        let paid_ms = passed_ms.min(room_ms);
        self.progress.elapsed_ms += paid_ms;
        // After an extension the grace begins anew.
        self.overrun_ms = if room_ms > passed_ms { 0 } else { self.overrun_ms + passed_ms - paid_ms };
    }

    fn counts(&self) -> bool {
        let up = matches!(self.stage, Stage::Starting | Stage::Ready | Stage::BackOff { .. });
        self.progress.running && up
    }

    /// Paid time and grace are used up, or as long has passed with nothing to pay for.
    fn is_over_budget(&self) -> bool {
        let lease = &self.assignment.lease;
        let used_up = self.progress.elapsed_ms >= lease.paid_ms && self.overrun_ms >= lease.grace_ms;
        let forgotten = self.idle_ms > lease.paid_ms.saturating_add(lease.grace_ms);
        (self.counts() && used_up) || forgotten
    }

    fn begin(&mut self, todo: &mut Vec<Output>) {
        self.progress.running |= self.assignment.lease.running;
        let spec = self.assignment.check().and_then(|()| self.assignment.box_spec());
        match spec {
            Ok(spec) => {
                self.stage = Stage::Preparing { percent: None, detail: "making the box".into() };
                todo.push(Output::StartBox(Box::new(spec)));
                todo.push(Output::SetPeers(self.assignment.peers()));
            }
            Err(error) => self.stage = Stage::Lost { reason: error.full_message() },
        }
    }

    fn take(&mut self, input: Input, todo: &mut Vec<Output>) {
        match input {
            Input::Assigned(assignment) => self.assign(*assignment, todo),
            Input::Box(report) => self.take_box(&report),
            Input::BoxFailed { reason } => self.lose(reason),
            Input::Heard(members) => self.heard.extend(members),
            Input::Endpoint(endpoint) => self.endpoint = Some(endpoint),
            Input::Remove => self.remove("removed as asked", todo),
            Input::Wiped(wipe) => self.stage = Stage::Removed { wipe },
            Input::Tick => {}
        }
    }

    /// Takes a newer assignment; a member list that is not believed changes nothing.
    fn assign(&mut self, mut next: Assignment, todo: &mut Vec<Output>) {
        // Whose word counts was settled when the lease began.
        next.network.clone_from(&self.assignment.network);
        next.server = self.assignment.server;
        if next == self.assignment {
            return;
        }
        let (old, new) = (&self.assignment.lease, &next.lease);
        if new.lease != old.lease || new.members.generation < old.members.generation {
            let refused = (new.lease, new.members.generation);
            todo.push(Output::Warn(format!("refused an older member list or another lease's: {refused:?}")));
            return;
        }
        if let Err(error) = next.check() {
            todo.push(Output::Warn(error.full_message()));
            return;
        }
        let new_epoch = new.engine_epoch > old.engine_epoch;
        self.progress.running |= new.running;
        self.assignment = next;
        todo.push(Output::SaveAssignment(Box::new(self.assignment.clone())));
        todo.push(Output::SetPeers(self.assignment.peers()));
        if new_epoch {
            self.start_epoch(todo);
        }
    }

    /// The cluster's head was lost: a Ray node starts anew. A command knows no head.
    fn start_epoch(&mut self, todo: &mut Vec<Output>) {
        let up = matches!(self.stage, Stage::Starting | Stage::Ready | Stage::BackOff { .. });
        if up && self.assignment.lease.engine == EngineKind::Ray {
            self.restarts_in_epoch = 0;
            self.restart(todo);
        }
    }

    fn restart(&mut self, todo: &mut Vec<Output>) {
        self.progress.engine_restarts += 1;
        self.stage = Stage::Starting;
        todo.push(Output::RestartEngine);
    }

    fn take_box(&mut self, report: &BoxReport) {
        let up = matches!(self.stage, Stage::Preparing { .. } | Stage::Starting | Stage::Ready);
        if !up {
            return;
        }
        self.parts_ms = parts_of(&report.timeline);
        match &report.phase {
            sandbox::Phase::Preparing { progress, detail } => {
                self.stage = Stage::Preparing { percent: Some(*progress), detail: detail.clone() };
            }
            sandbox::Phase::Starting => self.stage = Stage::Starting,
            sandbox::Phase::Ready => self.stage = Stage::Ready,
            sandbox::Phase::Exited { code } => self.stage = Stage::Exited { exit_code: *code },
            sandbox::Phase::Failed { code, message } => self.engine_died(code, message),
            sandbox::Phase::Removed { .. } => {
                self.lose("the box vanished without having been asked to go".into());
            }
        }
    }

    /// A Ray node that died is started again in its box a few times; everything else is the end.
    fn engine_died(&mut self, code: &str, message: &str) {
        let can_restart = code.starts_with("ray_") && self.restarts_in_epoch < MAX_RESTARTS;
        if can_restart && self.assignment.lease.engine == EngineKind::Ray {
            let back_off_ms = FIRST_BACK_OFF_MS << self.restarts_in_epoch;
            self.restarts_in_epoch += 1;
            self.stage = Stage::BackOff { until_ms: self.last_ms.saturating_add(back_off_ms) };
        } else {
            self.lose(format!("{code}: {message}"));
        }
    }

    fn end_back_off(&mut self, todo: &mut Vec<Output>) {
        if matches!(self.stage, Stage::BackOff { until_ms } if until_ms <= self.last_ms) {
            self.restart(todo);
        }
    }

    fn lose(&mut self, reason: String) {
        if !matches!(self.stage, Stage::Removing { .. } | Stage::Removed { .. }) {
            self.stage = Stage::Lost { reason };
        }
    }

    fn remove(&mut self, reason: &str, todo: &mut Vec<Output>) {
        if matches!(self.stage, Stage::Removing { .. } | Stage::Removed { .. }) {
            return;
        }
        let before = match reason {
            PAID_TIME_OVER => BoxPhase::Lost { reason: reason.into() },
            _ => self.phase(),
        };
        self.stage = Stage::Removing { before };
        todo.push(Output::RemoveBox { reason: reason.into() });
    }

    fn phase(&self) -> BoxPhase {
        match &self.stage {
            Stage::New | Stage::Starting | Stage::BackOff { .. } => BoxPhase::Starting,
            Stage::Preparing { percent, detail } => {
                BoxPhase::Preparing { percent: *percent, detail: detail.clone() }
            }
            Stage::Ready => BoxPhase::Ready,
            Stage::Exited { exit_code } => BoxPhase::Exited { exit_code: *exit_code },
            Stage::Lost { reason } => BoxPhase::Lost { reason: reason.clone() },
            Stage::Removing { before } => before.clone(),
            Stage::Removed { wipe } => BoxPhase::Removed { wipe: wipe.clone() },
        }
    }

    /// Reports what changed at once, and everything every few seconds with a new receipt.
    fn report(&mut self, todo: &mut Vec<Output>) {
        let due = self.last_ms.saturating_sub(self.reported_ms) >= RECEIPT_EVERY_MS;
        let observed = self.observed();
        let changed = self.reported.as_ref() != Some(&observed);
        if !due && !changed {
            return;
        }
        let new_phase = self.reported.as_ref().is_none_or(|before| before.phase != observed.phase);
        if due || new_phase {
            self.make_receipt();
            self.egress_told = self.egress_now;
            self.reported_ms = self.last_ms;
            todo.push(Output::Save(Box::new(self.progress.clone())));
        }
        let observed = self.observed();
        todo.push(Output::Report(Box::new(observed.clone())));
        self.reported = Some(observed);
        if matches!(self.stage, Stage::Removed { .. }) {
            todo.push(Output::Finish);
        }
    }

    /// What is so now, with the newest receipt.
    pub fn observed(&self) -> ObservedLease {
        ObservedLease {
            lease: self.assignment.lease.lease,
            phase: self.phase(),
            parts_ms: self.parts_ms.clone(),
            receipt: self.progress.receipt.clone(),
            endpoint: self.endpoint.clone(),
            engine_restarts: self.progress.engine_restarts,
            egress: self.egress_told,
        }
    }

    /// Nothing to say before paid time runs, or after it has stopped.
    fn make_receipt(&mut self) {
        let said = self.progress.receipt.as_ref().map_or(0, |receipt| receipt.elapsed_ms);
        if self.progress.elapsed_ms == said {
            return;
        }
        let heard = std::mem::take(&mut self.heard).into_iter().collect();
        let usage = Usage { lease: self.assignment.lease.lease, elapsed_ms: self.progress.elapsed_ms, heard };
        let signature = self.key.sign(&self.assignment.network, &usage);
        let Usage { lease, elapsed_ms, heard } = usage;
        self.progress.receipt = Some(Receipt { lease, elapsed_ms, heard, signature });
    }
}

fn parts_of(timeline: &Timeline) -> Vec<(String, u64)> {
    let named = [
        ("boxes", timeline.boxes_ms),
        ("overlay", timeline.overlay_ms),
        ("engine", timeline.engine_ms),
        ("first_task", timeline.first_task_ms),
        ("jobs_api", timeline.jobs_api_ms),
        ("client", timeline.client_ms),
    ];
    named.into_iter().filter_map(|(name, ms)| Some((name.to_owned(), ms?))).collect()
}
