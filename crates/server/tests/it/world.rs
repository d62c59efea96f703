//! A whole network in one thread: the core on a disk in memory, workers that follow a script, a chain in memory, and
//! a clock that only the test moves.

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::WalletKey;
use ionet_api::sign::Usage;
use ionet_api::worker::{BoxPhase, Desired, FromWorker, Generation, MemberEndpoint, ObservedLease, ToWorker};
use ionet_chain::{Chain, MemChain};
use ionet_domain::command::CommandBody;
use ionet_domain::device::{Enrolment, Hardware, Measured, Resources};
use ionet_domain::id::QuoteId;
use ionet_domain::ledger::Owner;
use ionet_domain::market::{EngineKind, Program, Quote, Request, price};
use ionet_domain::meter::Receipt;
use ionet_domain::money::{Asset, HOUR_MS, Rate};
use ionet_domain::order::WipeReceipt;
use ionet_domain::{
    Actor, Address, Command, CommandId, DeviceId, EndpointId, Event, LeaseId, Order, OrderId, Params,
    Refusal, Stage, State,
};
use ionet_journal::{Keep, MemDisk};
use ionet_net::link::LinkEvent;
use ionet_server::fleet::NetworkMeasured;
use ionet_server::{
    Batch, Committer, Core, CoreOptions, EngineOptions, Input, Keys, Opened, Output, PublishedEvent,
    ServerError,
};

pub(crate) const RENTER: Address = Address([1; 32]);
pub(crate) const SUPPLIER: Address = Address([2; 32]);
pub(crate) const OTHER: Address = Address([3; 32]);
pub(crate) const GIB: u64 = 1 << 30;
/// A Monday at noon, in the middle of an epoch.
pub(crate) const START_MS: u64 = 1_800_014_400_000 + HOUR_MS / 2;
/// How far one pump moves the clock.
pub(crate) const STEP_MS: u64 = 5_000;
const NETWORK: &str = "test";

/// When the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Never.
    Never,
    /// After this batch was sealed and the one before it released, before anything of it was written.
    AfterSeal(u64),
    /// After this commit, before anything of it left the server.
    AfterCommit(u64),
}

pub(crate) struct World {
    pub(crate) disk: MemDisk,
    pub(crate) core: Core,
    pub(crate) committer: Committer<MemDisk>,
    /// Sealed and not committed: the core runs one batch ahead, as the real writer's does.
    in_flight: Option<Batch>,
    pub(crate) chain: MemChain,
    pub(crate) workers: BTreeMap<EndpointId, Worker>,
    pub(crate) now_ms: u64,
    pub(crate) crash: Crash,
    pub(crate) seals: u64,
    pub(crate) commits: u64,
    pub(crate) crashes: u64,
    /// Every message is delivered twice.
    pub(crate) doubled: bool,
    pub(crate) published: Vec<PublishedEvent>,
    answers: BTreeMap<u64, Result<Vec<(u64, Event)>, Refusal>>,
    next: u64,
}

/// A scripted worker: boxes are up at once and run on whatever the server does.
pub(crate) struct Worker {
    pub(crate) device: DeviceId,
    pub(crate) linked: bool,
    pub(crate) boxes: BTreeMap<LeaseId, LeaseBox>,
    pub(crate) told: Option<Desired>,
    generation: Generation,
    pub(crate) said: Vec<FromWorker>,
}

pub(crate) struct LeaseBox {
    key: WalletKey,
    pub(crate) phase: BoxPhase,
    pub(crate) elapsed_ms: u64,
    pub(crate) running: bool,
    pub(crate) heard: Vec<u32>,
}

pub(crate) fn params() -> Params {
    Params {
        network: NETWORK.into(),
        dispute_window_ms: 120_000,
        removal_grace_ms: 60_000,
        ..Params::default()
    }
}

fn options() -> CoreOptions {
    let engine = EngineOptions { params: params(), snapshot_every: 7, ..EngineOptions::default() };
    CoreOptions { engine, keys: Keys::from_seeds([40; 32], [41; 32]), endpoints: BTreeMap::new() }
}

pub(crate) fn open(disk: &MemDisk, now_ms: u64) -> (Core, Committer<MemDisk>, Opened) {
    Core::open(disk.clone(), options(), now_ms).expect("the journal opens")
}

impl World {
    pub(crate) fn new() -> Self {
        let disk = MemDisk::new();
        let (core, committer, _) = open(&disk, START_MS);
        Self {
            disk,
            core,
            committer,
            in_flight: None,
            chain: MemChain::default(),
            workers: BTreeMap::new(),
            now_ms: START_MS,
            crash: Crash::Never,
            seals: 0,
            commits: 0,
            crashes: 0,
            doubled: false,
            published: Vec::new(),
            answers: BTreeMap::new(),
            next: 0,
        }
    }

    pub(crate) fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn state(&self) -> State {
        self.core.view().read().state.clone()
    }

    pub(crate) fn order(&self, order: OrderId) -> Option<Order> {
        self.core.view().read().state.orders.get(&order).cloned()
    }

    pub(crate) fn stage(&self, order: OrderId) -> Option<Stage> {
        self.order(order).map(|order| order.stage)
    }

    pub(crate) fn balance(&self, owner: Owner) -> u64 {
        self.core.view().read().state.ledger.balance(owner, Asset::Iosd).available()
    }

    fn links(&mut self, event: LinkEvent) {
        self.core.step(self.now_ms, Input::Link(event));
    }

    /// A frame of a worker reaches the server.
    pub(crate) fn send(&mut self, from: EndpointId, message: &FromWorker) {
        let frame = serde_json::to_vec(message).expect("frames are JSON");
        for _ in 0..=u32::from(self.doubled) {
            self.links(LinkEvent::Frame(ionet_net::EndpointId(from.0), frame.clone()));
        }
    }

    pub(crate) fn link(&mut self, endpoint: EndpointId) {
        let Some(worker) = self.workers.get_mut(&endpoint) else { return };
        worker.linked = true;
        let hello = worker.hello();
        self.links(LinkEvent::Up(ionet_net::EndpointId(endpoint.0)));
        self.send(endpoint, &hello);
    }

    pub(crate) fn unlink(&mut self, endpoint: EndpointId) {
        self.workers.get_mut(&endpoint).expect("a worker").linked = false;
        self.links(LinkEvent::Down(ionet_net::EndpointId(endpoint.0)));
    }

    /// The server's process ends at once and starts again on what is durable.
    pub(crate) fn restart(&mut self) -> Opened {
        self.disk = self.disk.restart(Keep::Nothing);
        let (core, committer, opened) = open(&self.disk, self.now_ms);
        (self.core, self.committer, self.in_flight) = (core, committer, None);
        self.crashes += 1;
        let linked: Vec<_> = self.workers.iter().filter(|(_, w)| w.linked).map(|(id, _)| *id).collect();
        for endpoint in linked {
            self.link(endpoint);
        }
        opened
    }

    /// Commits everything staged at once and gives what it releases.
    pub(crate) fn commit(&mut self) -> Result<Vec<Output>, ServerError> {
        let batch = self.core.seal()?;
        Ok(self.committer.commit(batch)?.outputs)
    }

    /// Seals, commits and delivers, until nothing more follows. Each batch is committed when the next is sealed.
    pub(crate) fn settle_down(&mut self) {
        for _ in 0..400 {
            self.core.step(self.now_ms, Input::Tick);
            let sealed = self.core.seal().expect("what was decided folds");
            let sealed = (!sealed.is_empty()).then_some(sealed);
            let committed = std::mem::replace(&mut self.in_flight, sealed);
            if !self.carry_on(committed) {
                self.restart();
                continue;
            }
            let more = self.in_flight.is_some();
            self.seals += u64::from(more);
            if more && self.crash == Crash::AfterSeal(self.seals) {
                self.restart();
                continue;
            }
            if !more && !self.workers_speak() {
                return;
            }
        }
        panic!("the network does not settle down");
    }

    /// Commits and delivers a batch; false if the server died of it or by the plan.
    fn carry_on(&mut self, batch: Option<Batch>) -> bool {
        let Some(batch) = batch else { return true };
        // Where it fails its process ends; the disk comes back with what it kept.
        let Ok(durable) = self.committer.commit(batch) else { return false };
        let books = self.state().audit();
        books.expect("the books");
        self.commits += 1;
        if self.crash == Crash::AfterCommit(self.commits) {
            return false;
        }
        if let Some(pending) = durable.snapshot {
            // A failed disk shows itself at the next commit.
            let _ = ionet_server::engine::write_snapshot(&self.disk, &pending);
        }
        for output in durable.outputs {
            self.deliver(output);
        }
        self.workers_speak();
        true
    }

    fn deliver(&mut self, output: Output) {
        match output {
            Output::Answer(ticket, answer) => _ = self.answers.insert(ticket, answer),
            Output::Tell(endpoint, message) => {
                let (now_ms, doubled) = (self.now_ms, self.doubled);
                if let Some(worker) = self.workers.get_mut(&endpoint).filter(|worker| worker.linked) {
                    for _ in 0..=u32::from(doubled) {
                        worker.hear(&message, now_ms);
                    }
                }
            }
            Output::Probe(endpoint) => {
                let measured = NetworkMeasured { rtt_us: 300, down_mbit_s: 900, up_mbit_s: 700 };
                self.core.step(self.now_ms, Input::Probed(endpoint, measured));
            }
            Output::Pay { payout, account, asset, amount } => {
                for _ in 0..=u32::from(self.doubled) {
                    let paid = self.chain.pay(payout, account, asset, amount).map_err(|e| e.to_string());
                    self.core.step(self.now_ms, Input::ChainPaid(payout, paid));
                }
            }
            Output::Find(lease) => {
                let ended = self.committer.has_order(lease.order).expect("the journal");
                self.core.step(self.now_ms, Input::Found(lease, ended));
            }
            Output::Published(events) => self.published.extend(events),
        }
    }

    fn workers_speak(&mut self) -> bool {
        let all = self.workers.iter_mut().filter(|(_, worker)| worker.linked);
        let said: Vec<_> = all.map(|(id, worker)| (*id, std::mem::take(&mut worker.said))).collect();
        let mut any = false;
        for (endpoint, message) in said.iter().flat_map(|(id, said)| said.iter().map(|one| (*id, one))) {
            self.send(endpoint, message);
            any = true;
        }
        any
    }

    /// Time goes by: boxes run, workers report, the chain's watcher looks, everything settles down.
    pub(crate) fn pump(&mut self) {
        self.now_ms += STEP_MS;
        for worker in self.workers.values_mut() {
            worker.run(STEP_MS);
        }
        let seen = self.core.view().read().deposits_seen;
        for deposit in self.chain.deposits_after(seen).expect("the chain") {
            for _ in 0..=u32::from(self.doubled) {
                self.core.step(self.now_ms, Input::ChainDeposit(deposit.clone()));
            }
        }
        self.settle_down();
    }

    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..3_000 {
            if holds(self) {
                return;
            }
            self.pump();
        }
        panic!("it never came to this: {what}");
    }

    pub(crate) fn run_for(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.pump();
        }
    }

    /// Sends a command once; `None` if the server died before it answered.
    pub(crate) fn ask_as(&mut self, command: &Command) -> Option<Result<Vec<(u64, Event)>, Refusal>> {
        let ticket = self.unique();
        self.core.step(self.now_ms, Input::Submit(Some(ticket), command.clone()));
        self.settle_down();
        self.answers.remove(&ticket)
    }

    /// Sends a command under one id until it is answered, as a good client does; true if it was carried out now.
    pub(crate) fn must(&mut self, actor: Actor, body: CommandBody) -> bool {
        let id = CommandId::from_parts(self.now_ms, self.unique().into());
        let command = Command { id: Some(id), actor, body };
        for _ in 0..5 {
            match self.ask_as(&command) {
                Some(Ok(_)) => return true,
                Some(Err(Refusal::Exists { .. })) => return false,
                Some(Err(refusal)) => panic!("{command:?}: {refusal}"),
                None => {}
            }
        }
        panic!("{command:?} is never answered");
    }

    pub(crate) fn fund(&mut self, account: Address, amount: u64) {
        self.chain.fund(account, Asset::Iosd, amount, self.now_ms);
        self.until("the deposit is seen", |world| world.balance(Owner::Wallet(account)) >= amount);
    }

    /// A pooled, connected CPU device with its worker.
    pub(crate) fn device(&mut self, owner: Address, ask: u64) -> EndpointId {
        let n = self.unique();
        let mut endpoint = [9; 32];
        endpoint[..8].copy_from_slice(&n.to_be_bytes());
        let (device, endpoint) = (DeviceId::from_parts(self.now_ms, n.into()), EndpointId(endpoint));
        let enrolment = Enrolment {
            device,
            owner,
            endpoint,
            network: "ionet".into(),
            tags: BTreeSet::new(),
            ask_per_unit: Rate(ask),
            offered: Resources {
                cpu_millis: 1000,
                memory_bytes: 2 * GIB,
                disk_bytes: 8 * GIB,
                ..Resources::default()
            },
            hardware: Hardware { cpu_threads: 2, memory_bytes: 8 * GIB, ..Hardware::default() },
            simulated: false,
        };
        self.must(Actor::Wallet(owner), CommandBody::Enrol { enrolment, machine_name: "box".into() });
        self.workers.insert(endpoint, Worker::new(device));
        self.link(endpoint);
        self.until("the device is pooled", |world| {
            world.state().devices[&device].stage == ionet_domain::device::DeviceStage::Pooled
        });
        endpoint
    }

    pub(crate) fn quote(&mut self, request: &Request) -> Result<Quote, Refusal> {
        let id = QuoteId::from_parts(self.now_ms, self.unique().into());
        price::quote(&self.state(), id, RENTER, request, self.now_ms)
    }

    pub(crate) fn place(&mut self, quote: Quote) -> OrderId {
        let order = OrderId::from_parts(self.now_ms, self.unique().into());
        self.must(Actor::Wallet(RENTER), CommandBody::PlaceOrder { order, quote, program: program() });
        order
    }

    pub(crate) fn box_of(&mut self, lease: LeaseId) -> &mut LeaseBox {
        let boxes = self.workers.values_mut().find_map(|worker| worker.boxes.get_mut(&lease));
        boxes.expect("a worker has the box")
    }
}

pub(crate) fn program() -> Program {
    Program { argv: vec!["true".into()], ..Program::default() }
}

pub(crate) fn request(members: u32) -> Request {
    Request {
        engine: EngineKind::Command,
        members,
        per_member: Resources {
            cpu_millis: 1000,
            memory_bytes: GIB,
            disk_bytes: GIB,
            ..Resources::default()
        },
        duration_ms: HOUR_MS,
        gpu_model: None,
        network: None,
        tags: BTreeSet::new(),
        tier: None,
        spread: false,
        egress: ionet_domain::market::Egress::On,
        hiding: ionet_domain::market::Hiding::default(),
        max_rate: None,
        priority: ionet_domain::market::Priority::Normal,
        buy: ionet_domain::market::Buy::default(),
        mega: false,
        simulated: false,
        upkeep: ionet_domain::market::Upkeep::default(),
        asset: Asset::Iosd,
        ..Request::default()
    }
}

impl Worker {
    pub(crate) fn new(device: DeviceId) -> Self {
        let generation = Generation::default();
        Self { device, linked: false, boxes: BTreeMap::new(), told: None, generation, said: Vec::new() }
    }

    pub(crate) fn hello(&self) -> FromWorker {
        let (generation, observed) = (self.generation, self.observed());
        FromWorker::Hello { device: self.device, version: "0".into(), generation, observed }
    }

    pub(crate) fn observed(&self) -> Vec<ObservedLease> {
        self.boxes.iter().map(|(lease, one)| one.observed(*lease)).collect()
    }

    pub(crate) fn hear(&mut self, message: &ToWorker, _now_ms: u64) {
        match message {
            ToWorker::Desired(desired) => self.desire(desired),
            ToWorker::Check => self.said.push(FromWorker::Checked(Ok(good_measures()))),
            ToWorker::Ping { n, payload } => {
                self.said.push(FromWorker::Pong { n: *n, payload: payload.clone() });
            }
            ToWorker::Welcome(_) => {}
        }
    }

    fn desire(&mut self, desired: &Desired) {
        if desired.generation < self.generation {
            return;
        }
        self.generation = desired.generation;
        self.told = Some(desired.clone());
        let before = self.observed();
        for wanted in &desired.leases {
            let new = || LeaseBox::new(wanted.lease);
            self.boxes.entry(wanted.lease).or_insert_with(new).running |= wanted.running;
        }
        for lease in &desired.ended {
            if let Some(one) = self.boxes.get_mut(lease) {
                one.running = false;
                let wipe = WipeReceipt { files: 3, method: "unlinked".into(), ..WipeReceipt::default() };
                one.phase = BoxPhase::Removed { wipe };
            }
        }
        let listed = |lease: &LeaseId| {
            desired.ended.contains(lease) || desired.leases.iter().any(|wanted| wanted.lease == *lease)
        };
        self.boxes.retain(|lease, one| !matches!(one.phase, BoxPhase::Removed { .. }) || listed(lease));
        if self.observed() != before {
            self.said.push(FromWorker::Observed(self.observed()));
        }
    }

    pub(crate) fn run(&mut self, ms: u64) {
        for one in self.boxes.values_mut().filter(|one| one.running && one.phase == BoxPhase::Ready) {
            one.elapsed_ms += ms;
        }
        if self.linked {
            self.said.push(FromWorker::Observed(self.observed()));
        }
    }
}

impl LeaseBox {
    fn new(lease: LeaseId) -> Self {
        let mut seed = [7; 32];
        seed[..16].copy_from_slice(&lease.order.bits().to_be_bytes());
        seed[16..20].copy_from_slice(&lease.n.to_be_bytes());
        let key = WalletKey::from_seed(&seed);
        Self { key, phase: BoxPhase::Ready, elapsed_ms: 0, running: false, heard: Vec::new() }
    }

    fn observed(&self, lease: LeaseId) -> ObservedLease {
        let usage = Usage { lease, elapsed_ms: self.elapsed_ms, heard: self.heard.clone() };
        let signature = self.key.sign(NETWORK, &usage);
        let Usage { elapsed_ms, heard, .. } = usage;
        let id = EndpointId(self.key.address().0);
        ObservedLease {
            lease,
            phase: self.phase.clone(),
            parts_ms: vec![("box".into(), 12)],
            receipt: Some(Receipt { lease, elapsed_ms, heard, signature }),
            endpoint: Some(MemberEndpoint { id, addr: serde_json::json!({ "of": lease }) }),
            engine_restarts: 0,
            egress: None,
        }
    }
}

fn good_measures() -> Measured {
    Measured {
        cpu_one_mb_s: 400,
        cpu_all_mb_s: 800,
        memory_mb_s: 5000,
        disk_write_mb_s: 200,
        disk_read_mb_s: 400,
        network_down_mbit_s: 1,
        network_up_mbit_s: 1,
        rtt_us: 1,
        gpus: Vec::new(),
        enforcement: Some("cgroup v2".into()),
    }
}
