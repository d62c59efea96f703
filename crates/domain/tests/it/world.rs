//! A small world: a founded network with accounts and devices, driven by commands only.

use std::collections::BTreeSet;

use ionet_domain::command::{Actor, Command, CommandBody};
use ionet_domain::connectivity::{Bandwidth, RelayMeasure};
use ionet_domain::device::{Contact, Enrolment, Gpu, GpuCheck, Hardware, Measured, Resources, Tier};
use ionet_domain::id::{QuoteId, TransferKind};
use ionet_domain::market::{EngineKind, Program, Quote, Request, price};
use ionet_domain::meter::{Receipt, Witness};
use ionet_domain::money::{Asset, HOUR_MS, Rate};
use ionet_domain::order::WipeReceipt;
use ionet_domain::{
    Address, CommandId, DeviceId, EndpointId, Event, LeaseId, OrderId, Params, Refusal, State, TransferId,
    decide,
};

pub(crate) const RENTER: Address = Address([1; 32]);
pub(crate) const SUPPLIER: Address = Address([2; 32]);
pub(crate) const OTHER: Address = Address([3; 32]);
pub(crate) const GIB: u64 = 1 << 30;
/// A Monday at noon.
pub(crate) const START_MS: u64 = 1_800_014_400_000;

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now_ms: u64,
    pub(crate) events: Vec<Event>,
    next: u128,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self { state: State::default(), now_ms: START_MS, events: Vec::new(), next: 0 };
        world.must(
            Actor::Server,
            CommandBody::Found {
                params: Params { gpu_shares: true, simulated_devices: true, ..Params::default() },
            },
        );
        world.must(Actor::Server, CommandBody::BeginTerm { above: 0 });
        world
    }

    pub(crate) fn unique(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    /// Decides and folds; after every command the books are checked.
    pub(crate) fn ask(&mut self, actor: Actor, body: CommandBody) -> Result<Vec<Event>, Refusal> {
        let id = CommandId::from_parts(self.now_ms, self.unique());
        self.ask_as(Some(id), actor, body)
    }

    pub(crate) fn ask_as(
        &mut self,
        id: Option<CommandId>,
        actor: Actor,
        body: CommandBody,
    ) -> Result<Vec<Event>, Refusal> {
        let before = self.state.clone();
        let events = decide(&self.state, &Command { id, actor, body }, self.now_ms);
        assert_eq!(self.state, before, "deciding changed something");
        for event in events.as_deref().unwrap_or_default() {
            self.state.apply(event).unwrap();
            self.events.push(event.clone());
        }
        self.state.audit().unwrap();
        events
    }

    pub(crate) fn must(&mut self, actor: Actor, body: CommandBody) -> Vec<Event> {
        let text = format!("{body:?}");
        self.ask(actor, body).unwrap_or_else(|refusal| panic!("{text}: {refusal}"))
    }

    pub(crate) fn refused(&mut self, actor: Actor, body: CommandBody) -> &'static str {
        let text = format!("{body:?}");
        self.ask(actor, body).expect_err(&text).code()
    }

    pub(crate) fn fund(&mut self, account: Address, amount: u64) {
        let id = TransferId { scope: self.unique() | (1 << 90), kind: TransferKind::Deposit, n: 0 };
        let reference = id.to_string();
        self.must(Actor::Server, CommandBody::Deposit { id, reference, account, asset: Asset::Iosd, amount });
    }

    pub(crate) fn wallet(&self, account: Address) -> u64 {
        self.state.ledger.balance(ionet_domain::ledger::Owner::Wallet(account), Asset::Iosd).available()
    }

    pub(crate) fn earned(&self, account: Address) -> u64 {
        self.state.ledger.balance(ionet_domain::ledger::Owner::Earned(account), Asset::Iosd).available()
    }

    pub(crate) fn enrolment(&mut self, owner: Address, ask: u64) -> Enrolment {
        let n = self.unique();
        let mut endpoint = [9; 32];
        endpoint[..16].copy_from_slice(&n.to_be_bytes());
        Enrolment {
            device: DeviceId::from_parts(self.now_ms, n),
            owner,
            endpoint: EndpointId(endpoint),
            network: "ionet".into(),
            tags: BTreeSet::new(),
            ask_per_unit: Rate(ask),
            offered: Resources {
                cpu_millis: 2000,
                memory_bytes: 4 * GIB,
                disk_bytes: 20 * GIB,
                ..Resources::default()
            },
            hardware: Hardware { cpu_threads: 2, memory_bytes: 8 * GIB, ..Hardware::default() },
            simulated: false,
        }
    }

    /// A pooled, connected CPU device.
    pub(crate) fn device(&mut self, owner: Address, ask: u64) -> DeviceId {
        let enrolment = self.enrolment(owner, ask);
        let device = enrolment.device;
        let machine_name = "box".into();
        self.must(Actor::Wallet(owner), CommandBody::Enrol { enrolment, machine_name });
        self.must(Actor::Server, CommandBody::NoteContact { device, contact: Contact::Connected });
        self.must(Actor::Server, CommandBody::BeginCheck { device });
        let measured = Ok(good_measures());
        self.must(Actor::Device(device), CommandBody::ReportCheck { device, measured });
        device
    }

    pub(crate) fn quote(&mut self, request: &Request) -> Result<Quote, Refusal> {
        let id = QuoteId::from_parts(self.now_ms, self.unique());
        price::quote(&self.state, id, RENTER, request, self.now_ms)
    }

    pub(crate) fn order(&mut self, request: &Request) -> Result<OrderId, Refusal> {
        let quote = self.quote(request)?;
        self.order_quoted(quote)
    }

    pub(crate) fn order_quoted(&mut self, quote: Quote) -> Result<OrderId, Refusal> {
        let order = OrderId::from_parts(self.now_ms, self.unique());
        let program = Program { argv: vec!["true".into()], ..Program::default() };
        self.ask(Actor::Wallet(RENTER), CommandBody::PlaceOrder { order, quote, program })?;
        Ok(order)
    }

    /// An order whose members are all up.
    pub(crate) fn running(&mut self, request: &Request) -> OrderId {
        let order = self.order(request).unwrap();
        self.must(Actor::Server, CommandBody::Place { order });
        self.must(Actor::Server, CommandBody::Start { order });
        for n in 0..request.members {
            self.ready(LeaseId { order, n });
        }
        self.must(Actor::Server, CommandBody::MarkRunning { order });
        order
    }

    pub(crate) fn device_of(&self, lease: LeaseId) -> DeviceId {
        self.state.lease(lease).unwrap().1.device
    }

    pub(crate) fn ready(&mut self, lease: LeaseId) {
        let actor = Actor::Device(self.device_of(lease));
        self.must(actor, CommandBody::ReportReady { lease, parts_ms: vec![("boxes".into(), 120)] });
    }

    pub(crate) fn meter(
        &mut self,
        lease: LeaseId,
        elapsed_ms: u64,
        witness: Witness,
    ) -> Result<Vec<Event>, Refusal> {
        let receipt = Receipt { lease, elapsed_ms, heard: Vec::new(), signature: String::new() };
        let actor = Actor::Device(self.device_of(lease));
        self.ask(actor, CommandBody::Meter { receipt, witness })
    }

    pub(crate) fn removed(&mut self, lease: LeaseId) {
        let actor = Actor::Device(self.device_of(lease));
        self.must(actor, CommandBody::ReportRemoved { lease, wipe: Some(WipeReceipt::default()) });
    }
}

pub(crate) fn good_measures() -> Measured {
    Measured {
        cpu_one_mb_s: 400,
        cpu_all_mb_s: 800,
        memory_mb_s: 5000,
        disk_write_mb_s: 200,
        disk_read_mb_s: 400,
        network_down_mbit_s: 900,
        network_up_mbit_s: 700,
        rtt_us: 300,
        gpus: Vec::new(),
        enforcement: Some("cgroup v2".into()),
    }
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

/// What a request for GPUs asks for.
pub(crate) fn gpu_request(members: u32, gpus: u32, model: &str) -> Request {
    let per_member = Resources { gpus, ..request(1).per_member };
    Request { gpu_model: Some(model.into()), per_member, ..request(members) }
}

impl World {
    /// A pooled, connected device with GPUs of a model, measured at a tier by a relay in its region.
    pub(crate) fn gpu_device(&mut self, ask: u64, model: &str, gpus: u32, tier: Tier) -> DeviceId {
        let mut enrolment = self.enrolment(SUPPLIER, ask);
        let device = enrolment.device;
        enrolment.offered.gpus = gpus;
        enrolment.offered.memory_bytes = 8 * GIB;
        enrolment.tags = BTreeSet::from(["region.us".into()]);
        let card =
            |n: u32| Gpu { uuid: format!("{device}-{n}"), model: model.into(), memory_bytes: 80 * GIB };
        enrolment.hardware.gpus = (0..gpus).map(card).collect();
        let seen = |gpu: &Gpu| GpuCheck {
            uuid: gpu.uuid.clone(),
            kernel_sees: true,
            driver_memory_bytes: Some(gpu.memory_bytes),
        };
        let checks = enrolment.hardware.gpus.iter().map(seen).collect();
        self.must(Actor::Wallet(SUPPLIER), CommandBody::Enrol { enrolment, machine_name: "rack".into() });
        self.must(Actor::Server, CommandBody::NoteContact { device, contact: Contact::Connected });
        self.must(Actor::Server, CommandBody::BeginCheck { device });
        let measured = Ok(Measured { gpus: checks, ..good_measures() });
        self.must(Actor::Device(device), CommandBody::ReportCheck { device, measured });
        let (down_mbit_s, up_mbit_s) = tier.least();
        let measure = RelayMeasure {
            relay: "us1".into(),
            region: Some("us".into()),
            at_ms: self.now_ms,
            rtt_us: 9_000,
            bandwidth: Some(Bandwidth { down_mbit_s, up_mbit_s }),
        };
        self.must(Actor::Server, CommandBody::ReportLinks { device, measures: vec![measure] });
        device
    }
}
