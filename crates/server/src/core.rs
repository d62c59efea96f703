//! The core: inputs in, durable outputs out. Synchronous, without clock, threads or network; the shell and the lab
//! both run it.
//!
//! [`Core::step`] stages; [`Core::seal`] hands over everything staged as one batch, with what is to be answered, told
//! and paid when it is durable; committing the batch releases that. Steps may go on while a sealed batch is committed;
//! batches are committed in the order in which they were sealed. Not here: rules (`ionet-domain`), what is due when
//! (`reconcile`), files and syncs (`commit`), threads (`writer`).

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::worker::{FromWorker, MemberEndpoint, MemberList, ToWorker, Welcome};
use ionet_chain::{Deposit, Paid};
use ionet_domain::command::CommandBody;
use ionet_domain::connectivity::RelayMeasure;
use ionet_domain::device::{Contact, DeviceStage};
use ionet_domain::{Actor, Command, DeviceId, EndpointId, Event, LeaseId, PayoutId, PublicBody, Refusal};
use ionet_journal::Disk;
use ionet_net::link::LinkEvent;

use crate::commit::{Batch, Committer};
use crate::engine::{Decided, Engine, EngineOptions, Opened};
use crate::error::ServerError;
use crate::fleet::{CheckNow, Fleet, NetworkMeasured, SignedList, trimmed};
use crate::handle::PublishedEvent;
use crate::keys::Keys;
use crate::reconcile::{self, Act, Todo};
use crate::view::SharedView;
use crate::vitals;

/// How often telemetry is wanted from workers.
pub const TELEMETRY_MS: u64 = 5_000;
/// Rounds of reconciling in one tick; what is left waits for the next.
const MAX_ROUNDS: u32 = 12;
/// How often all devices are looked at.
const DEVICES_EVERY_MS: u64 = 1_000;
/// How often members are judged.
const JUDGE_EVERY_MS: u64 = 30_000;
/// Unknown leases of one report that the journal is asked about.
const MAX_FINDS: usize = 64;
/// A payment without an answer is asked for again after this long, a failed one sooner. Asking again pays once.
const PAY_AGAIN_MS: u64 = 60_000;
const PAY_AFTER_FAILURE_MS: u64 = 5_000;

/// Names a submitted command until it is answered.
pub type Ticket = u64;

/// What reaches the core.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "inputs are handed over one by one and never kept")]
pub enum Input {
    /// A command; answered under its ticket, if it has one.
    Submit(Option<Ticket>, Command),
    /// The links.
    Link(LinkEvent),
    /// A measurement that was asked for with [`Output::Probe`].
    Probed(EndpointId, NetworkMeasured),
    /// What relays attest of the links of the device at an endpoint; whoever runs the links has checked it.
    LinksMeasured(EndpointId, Vec<RelayMeasure>),
    /// The answer to [`Output::Pay`]: the payment as the chain has it, or what failed.
    ChainPaid(PayoutId, Result<Paid, String>),
    /// The chain's watcher saw tokens arrive.
    ChainDeposit(Deposit),
    /// The answer to [`Output::Find`]: whether the journal has the lease's order.
    Found(LeaseId, bool),
    /// Time went by: reconcile.
    Tick,
}

/// What leaves the core, after it is durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// To a submitted command: its events with their places.
    Answer(Ticket, Result<Vec<(u64, Event)>, Refusal>),
    /// Say something to a worker.
    Tell(EndpointId, Box<ToWorker>),
    /// Measure the network to a worker and answer with [`Input::Probed`].
    Probe(EndpointId),
    /// Pay and answer with [`Input::ChainPaid`].
    Pay {
        /// The payment's id.
        payout: PayoutId,
        /// Who is paid.
        account: ionet_domain::Address,
        /// In what.
        asset: ionet_domain::Asset,
        /// In minor units.
        amount: u64,
    },
    /// Look in the journal whether it has the order of a lease, and answer with [`Input::Found`].
    Find(LeaseId),
    /// These events are durable now.
    Published(Vec<PublishedEvent>),
}

/// How to open a core.
#[derive(Debug, Clone)]
pub struct CoreOptions {
    /// The engine's part.
    pub engine: EngineOptions,
    /// The server's keys.
    pub keys: Keys,
    /// How supervisors were reached before the restart, from [`Fleet::endpoints`]; may be empty.
    pub endpoints: BTreeMap<LeaseId, MemberEndpoint>,
}

/// Engine, fleet and reconcilers together.
#[derive(Debug)]
pub struct Core {
    engine: Engine,
    view: SharedView,
    keys: Keys,
    outputs: Vec<Output>,
    dirty: bool,
    devices_due_ms: u64,
    judge_due_ms: u64,
}

impl Core {
    /// Opens the engine and begins to listen.
    ///
    /// # Errors
    /// Those of [`Engine::open`].
    pub fn open<D: Disk>(
        disk: D,
        options: CoreOptions,
        now_ms: u64,
    ) -> Result<(Self, Committer<D>, Opened), ServerError> {
        let fleet = Fleet::new(options.endpoints, now_ms);
        let (engine, committer, opened) = Engine::open(disk, options.engine, fleet, now_ms)?;
        Ok((Self::new(engine, options.keys), committer, opened))
    }

    fn new(engine: Engine, keys: Keys) -> Self {
        let view = engine.view().clone();
        Self { engine, view, keys, outputs: Vec::new(), dirty: true, devices_due_ms: 0, judge_due_ms: 0 }
    }

    /// State and fleet.
    pub fn view(&self) -> &SharedView {
        &self.view
    }

    /// The engine below.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Whether something happened that reconcilers may want to act upon before the next tick.
    pub fn dirty(&self) -> bool {
        self.dirty
    }

    /// Takes one input. What follows from it leaves with the next [`Core::seal`].
    pub fn step(&mut self, now_ms: u64, input: Input) {
        match input {
            Input::Submit(ticket, command) => self.submitted(ticket, &command, now_ms),
            Input::Link(event) => self.linked(event, now_ms),
            Input::Probed(endpoint, measured) => self.probed(endpoint, measured),
            Input::LinksMeasured(endpoint, measures) => self.links_measured(endpoint, measures, now_ms),
            Input::ChainPaid(payout, paid) => self.paid(payout, paid, now_ms),
            Input::ChainDeposit(deposit) => self.deposited(&deposit, now_ms),
            Input::Found(lease, ended) => {
                self.view.write().fleet.note_found(lease, ended);
                self.dirty = true;
            }
            Input::Tick => self.reconcile(now_ms),
        }
    }

    /// Everything staged since the last call, with what follows from it; perhaps nothing.
    ///
    /// # Errors
    /// Fatal: nothing of it may be released; end the process and open again.
    pub fn seal(&mut self) -> Result<Batch, ServerError> {
        self.engine.seal(std::mem::take(&mut self.outputs))
    }

    fn submitted(&mut self, ticket: Option<Ticket>, command: &Command, now_ms: u64) {
        let answer = match self.submit(command, now_ms) {
            Ok(decided) => ticket.map(|ticket| (ticket, Ok(decided.numbered()))),
            Err(ServerError::Refused(refusal)) => ticket.map(|ticket| (ticket, Err(refusal))),
            // Fatal: sealing says so, and nobody is answered.
            Err(_) => return,
        };
        self.outputs.extend(answer.map(|(ticket, answer)| Output::Answer(ticket, answer)));
    }

    /// Decides, and takes note of what own memory follows from the events.
    fn submit(&mut self, command: &Command, now_ms: u64) -> Result<Decided<'_>, ServerError> {
        let decided = self.engine.submit(command, now_ms)?;
        self.dirty = true;
        for event in decided.events {
            match &event.public {
                PublicBody::DeviceChecking { device } => {
                    if let Some(now) = self.view.write().fleet.device_mut(*device) {
                        now.check = CheckNow::default();
                        self.devices_due_ms = 0;
                    }
                }
                PublicBody::LeaseExited { lease, .. } => {
                    self.view.write().fleet.exits.insert(lease.order, event.at_ms);
                }
                PublicBody::PayoutPaid { payout, .. } | PublicBody::PayoutAdopted { payout, .. } => {
                    self.view.write().fleet.payments.remove(payout);
                }
                PublicBody::Retired { .. } => {
                    let mut view = self.view.write();
                    let live: BTreeSet<_> = view.state.orders.keys().copied().collect();
                    view.fleet.forget(&live);
                }
                _ => {}
            }
        }
        Ok(decided)
    }

    /// Carries out a command of the server's own or of a device; refusals are no news.
    fn carry_out(&mut self, command: &Command, now_ms: u64) -> bool {
        let done = match self.submit(command, now_ms) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, ?command, "not carried out");
                false
            }
        };
        if let CommandBody::ReplaceMember { order, .. } | CommandBody::Scale { order, .. } = &command.body {
            self.view.write().fleet.tried.insert(*order, now_ms);
        }
        if let CommandBody::Meter { receipt, .. } = &command.body {
            let mut view = self.view.write();
            let memory = view.fleet.meters.entry(receipt.lease).or_default();
            memory.tried_ms = receipt.elapsed_ms;
            if done {
                memory.at_ms = Some(now_ms);
            }
        }
        done
    }

    fn by_server(&mut self, body: CommandBody, now_ms: u64) -> bool {
        self.carry_out(&Command { id: None, actor: Actor::Server, body }, now_ms)
    }

    fn deposited(&mut self, deposit: &Deposit, now_ms: u64) {
        let Deposit { reference, account, asset, amount, .. } = deposit.clone();
        let id = deposit.transfer_id();
        if deposit.n > self.view.read().deposits_seen {
            self.by_server(CommandBody::Deposit { id, reference, account, asset, amount }, now_ms);
        }
    }

    fn paid(&mut self, payout: PayoutId, paid: Result<Paid, String>, now_ms: u64) {
        match paid {
            Ok(Paid { reference, amount }) => {
                self.by_server(CommandBody::ConfirmPayout { payout, reference, amount }, now_ms);
            }
            Err(reason) => {
                tracing::warn!(%payout, reason, "a payout failed and is tried again");
                self.view.write().fleet.payments.insert(payout, now_ms + PAY_AFTER_FAILURE_MS);
            }
        }
    }

    fn linked(&mut self, event: LinkEvent, now_ms: u64) {
        match event {
            LinkEvent::Up(net) => {
                let endpoint = EndpointId(net.0);
                self.view.write().fleet.link_up(endpoint);
                let welcome = Welcome {
                    network: self.view.read().state.params.network.clone(),
                    server: self.keys.signing.address(),
                    telemetry_ms: TELEMETRY_MS,
                };
                self.outputs.push(Output::Tell(endpoint, Box::new(ToWorker::Welcome(welcome))));
            }
            LinkEvent::Down(net) => self.view.write().fleet.link_down(EndpointId(net.0)),
            LinkEvent::Frame(net, frame) => {
                let endpoint = EndpointId(net.0);
                match serde_json::from_slice(&frame) {
                    Ok(message) => self.heard(endpoint, message, now_ms),
                    Err(error) => tracing::warn!(%endpoint, %error, "a frame was not understood"),
                }
            }
        }
    }

    fn heard(&mut self, endpoint: EndpointId, message: FromWorker, now_ms: u64) {
        if let FromWorker::Hello { device, version, generation, observed } = message {
            if !self.is_device(device, endpoint) || !self.view.read().fleet.link_is_up(endpoint) {
                return tracing::warn!(%endpoint, %device, "a hello from a key that is not the device's");
            }
            self.view.write().fleet.hello(device, endpoint, (version, generation), now_ms);
            self.frame(device, FromWorker::Observed(observed), now_ms);
            self.by_server(CommandBody::NoteContact { device, contact: Contact::Connected }, now_ms);
            self.devices_due_ms = 0;
            self.dirty = true;
            return;
        }
        let device = self.view.read().fleet.device_on(endpoint);
        if let Some(device) = device.filter(|device| self.is_device(*device, endpoint)) {
            self.frame(device, message, now_ms);
        } else {
            tracing::debug!(%endpoint, "a frame before hello");
        }
    }

    fn is_device(&self, device: DeviceId, endpoint: EndpointId) -> bool {
        let view = self.view.read();
        let enrolled = view.state.devices.get(&device).filter(|found| found.stage != DeviceStage::Archived);
        enrolled.is_some_and(|found| found.enrolment.endpoint == endpoint)
    }

    fn frame(&mut self, device: DeviceId, message: FromWorker, now_ms: u64) {
        let mut view = self.view.write();
        let Some(now) = view.fleet.heard(device, now_ms) else { return };
        match message {
            FromWorker::Telemetry(telemetry) => return now.take_telemetry(telemetry),
            FromWorker::Checked(measured) if now.check.asked_ms.is_some() => {
                now.check.measured = Some(trimmed(measured));
                self.devices_due_ms = 0;
            }
            FromWorker::Observed(observed) => {
                drop(view);
                return self.observed(device, observed, now_ms);
            }
            FromWorker::Yielding(yielding) => {
                drop(view);
                let body = CommandBody::ReportYield { device, yielding };
                self.carry_out(&Command { id: None, actor: Actor::Device(device), body }, now_ms);
                return;
            }
            FromWorker::Links { lease, links } => {
                if view.state.lease(lease).is_ok_and(|(_, lease)| lease.device == device) {
                    view.fleet.overlay.take(lease, links, now_ms);
                }
                return;
            }
            // Pongs and relays' words are for whoever runs the links.
            FromWorker::Checked(_)
            | FromWorker::Pong { .. }
            | FromWorker::LinksMeasured(_)
            | FromWorker::Hello { .. } => return,
        }
        self.dirty = true;
    }

    fn observed(&mut self, device: DeviceId, observed: Vec<ionet_api::worker::ObservedLease>, now_ms: u64) {
        let mut view = self.view.write();
        let view = &mut *view;
        let (state, fleet) = (&view.state, &mut view.fleet);
        let unknown: Vec<_> =
            observed.iter().map(|one| one.lease).filter(|id| state.lease(*id).is_err()).collect();
        self.dirty |= fleet.observe(device, observed, state, now_ms);
        for lease in unknown.into_iter().take(MAX_FINDS) {
            if !fleet.note_unknown(device, lease) {
                continue;
            }
            tracing::warn!(%device, %lease, "a device reports a lease that is not in the live state");
            if state.orders.contains_key(&lease.order) {
                // The order lives and this lease of it was never made here: from before a restore.
                fleet.note_found(lease, false);
            } else {
                self.outputs.push(Output::Find(lease));
            }
        }
    }

    fn probed(&mut self, endpoint: EndpointId, measured: NetworkMeasured) {
        let mut view = self.view.write();
        let device = view.fleet.device_on(endpoint);
        if let Some(now) = device.and_then(|device| view.fleet.device_mut(device)) {
            now.check.network = Some(measured);
            self.devices_due_ms = 0;
            self.dirty = true;
        }
    }

    fn links_measured(&mut self, endpoint: EndpointId, measures: Vec<RelayMeasure>, now_ms: u64) {
        let device = self.view.read().fleet.device_on(endpoint);
        if let Some(device) = device.filter(|device| self.is_device(*device, endpoint)) {
            self.by_server(CommandBody::ReportLinks { device, measures }, now_ms);
        }
    }

    /// Lets the reconcilers look until nothing more follows.
    fn reconcile(&mut self, now_ms: u64) {
        self.dirty = false;
        self.judge_members(now_ms);
        let look_at_devices = now_ms >= self.devices_due_ms;
        if look_at_devices {
            self.devices_due_ms = now_ms + DEVICES_EVERY_MS;
        }
        for _ in 0..MAX_ROUNDS {
            let mut todos = reconcile::orders(&self.view.read(), now_ms);
            if look_at_devices {
                todos.extend(reconcile::devices(&self.view.read(), now_ms));
            }
            // Devices are told once everything else has come to rest.
            let moved =
                self.carry_all_on(todos, now_ms) || self.carry_all_on(self.leases_to_tell(now_ms), now_ms);
            if !moved {
                return self.dirty = false;
            }
        }
    }

    /// Looks now and then at how the members of all orders are.
    fn judge_members(&mut self, now_ms: u64) {
        if now_ms < self.judge_due_ms {
            return;
        }
        self.judge_due_ms = now_ms + JUDGE_EVERY_MS;
        let view = self.view.read();
        let found = vitals::judge_all(&view.state, &view.fleet, now_ms);
        drop(view);
        self.view.write().fleet.found = found;
    }

    fn leases_to_tell(&self, now_ms: u64) -> Vec<Todo> {
        reconcile::leases(&self.view.read(), now_ms)
    }

    /// Carries out everything; whether more may follow from it at once.
    fn carry_all_on(&mut self, todos: Vec<Todo>, now_ms: u64) -> bool {
        let mut moved = false;
        for todo in todos {
            moved |= self.carry_on(todo, now_ms);
        }
        moved
    }

    /// Carries out one thing; whether more may follow from it at once.
    fn carry_on(&mut self, todo: Todo, now_ms: u64) -> bool {
        match todo {
            Todo::Command(command) => self.carry_out(&command, now_ms),
            Todo::Sign(list) => {
                self.sign(list);
                true
            }
            Todo::Act(act) => {
                self.act(act, now_ms);
                false
            }
        }
    }

    fn sign(&mut self, list: MemberList) {
        let mut view = self.view.write();
        let signature = self.keys.signing.sign(&view.state.params.network, &list);
        let token = self.keys.cluster_token(list.cluster);
        view.fleet.lists.insert(list.cluster, SignedList { list, signature, token });
    }

    fn act(&mut self, act: Act, now_ms: u64) {
        let mut view = self.view.write();
        let fleet = &mut view.fleet;
        match &act {
            Act::Tell(endpoint, message) => {
                if let ToWorker::Desired(desired) = message.as_ref() {
                    fleet.last_told_n = desired.generation.n;
                }
                let device = fleet.device_on(*endpoint);
                if let Some(now) = device.and_then(|device| fleet.device_mut(device)) {
                    match message.as_ref() {
                        ToWorker::Desired(desired) => now.told = Some((desired.clone(), now_ms)),
                        ToWorker::Check => {
                            now.check = CheckNow { asked_ms: Some(now_ms), ..CheckNow::default() }
                        }
                        _ => {}
                    }
                }
            }
            Act::Pay { payout, .. } => _ = fleet.payments.insert(*payout, now_ms + PAY_AGAIN_MS),
            Act::Probe(_) => {}
        }
        self.outputs.push(match act {
            Act::Tell(endpoint, message) => Output::Tell(endpoint, message),
            Act::Probe(endpoint) => Output::Probe(endpoint),
            Act::Pay { payout, account, asset, amount } => Output::Pay { payout, account, asset, amount },
        });
    }
}
