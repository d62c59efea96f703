//! A market in memory for benchmarks of placement: events are folded without their commands, so that what is measured is
//! where things go. Not here: money beyond what the fold asks for.

use std::collections::BTreeSet;

use ionet_domain::device::{Contact, Enrolment, Gpu, Hardware, HardwareClass, Measured, Resources, Tier};
use ionet_domain::event::PublicBody;
use ionet_domain::id::{QuoteId, TransferKind};
use ionet_domain::ledger::{AccountKey, Owner, Step, Transfer};
use ionet_domain::market::place::Seat;
use ionet_domain::market::{Egress, EngineKind, Hiding, Quote, QuoteItem, Request};
use ionet_domain::money::{Asset, BasisPoints, HOUR_MS, Rate};
use ionet_domain::order::NewLease;
use ionet_domain::{Address, DeviceId, EndpointId, Event, OrderId, Params, State, TransferId};

use crate::{LabError, Result};

const NOW_MS: u64 = 1_800_014_400_000;
const RATE: Rate = Rate(1_000_000);

/// A market whose events are folded without their commands: what is measured is where things go.
pub(crate) struct Market {
    /// The state.
    pub(crate) state: State,
    /// The time of what happens next.
    pub(crate) now_ms: u64,
    next: u128,
}

impl Market {
    /// A network without a table of prices, so that asks alone count.
    pub(crate) fn new() -> Result<Self> {
        Self::founded(Params { price: None, ..Params::default() })
    }

    /// A network that is founded with these.
    pub(crate) fn founded(params: Params) -> Result<Self> {
        let mut market = Self { state: State::default(), now_ms: NOW_MS, next: 0 };
        market.happen(PublicBody::Founded { params })?;
        let id = TransferId { scope: 1, kind: TransferKind::Deposit, n: 0 };
        let key = |owner| AccountKey { owner, asset: Asset::Iosd };
        let (debit, credit) = (key(Owner::World), key(Owner::Wallet(Address([1; 32]))));
        let transfer = Transfer { id, step: Step::Post, debit, credit, amount: 1 << 50 };
        market.happen(PublicBody::Deposited { reference: "start".into(), transfer })?;
        Ok(market)
    }

    pub(crate) fn happen(&mut self, public: PublicBody) -> Result<()> {
        let event = Event { at_ms: self.now_ms, command: None, public, private: None };
        self.state.apply(&event).map_err(|broken| LabError::Broken(broken.to_string()))
    }

    fn unique(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    /// A device that is open for hire; the later, the younger.
    pub(crate) fn add(
        &mut self,
        model: Option<&str>,
        offered: Resources,
        tier: Tier,
        make: impl FnOnce(&mut Enrolment),
    ) -> Result<DeviceId> {
        let n = self.unique();
        let mut endpoint = [9; 32];
        endpoint[..16].copy_from_slice(&n.to_be_bytes());
        let gpu = |n| Gpu {
            uuid: format!("GPU-{n}"),
            model: model.unwrap_or_default().into(),
            memory_bytes: 16 << 30,
        };
        let hardware = Hardware {
            cpu_threads: offered.cpu_millis.div_ceil(1000),
            memory_bytes: offered.memory_bytes,
            gpus: (0..offered.gpus).map(gpu).collect(),
            ..Hardware::default()
        };
        let device = DeviceId::from_parts(NOW_MS, n);
        let mut enrolment = Enrolment {
            device,
            owner: Address([2; 32]),
            endpoint: EndpointId(endpoint),
            network: "ionet".into(),
            tags: BTreeSet::new(),
            ask_per_unit: RATE,
            offered,
            hardware,
            simulated: false,
        };
        make(&mut enrolment);
        let class = model.map_or(HardwareClass::Cpu, |model| HardwareClass::Gpu(model.into()));
        let measured = Measured { enforcement: Some("cgroup v2".into()), ..Measured::default() };
        self.happen(PublicBody::DeviceEnrolled { enrolment })?;
        self.happen(PublicBody::DeviceContact { device, contact: Contact::Connected })?;
        self.happen(PublicBody::DevicePooled { device, measured, class, tier })?;
        Ok(device)
    }

    /// An order that is asked and paid for.
    pub(crate) fn order(&mut self, request: &Request) -> Result<OrderId> {
        let n = self.unique();
        let (order, account) = (OrderId::from_parts(self.now_ms, n), Address([1; 32]));
        let quote = quote(request, account, self.now_ms, n);
        self.happen(PublicBody::OrderAccepted { order, account, key: None, quote })?;
        let key = |owner| AccountKey { owner, asset: Asset::Iosd };
        let transfer = Transfer {
            id: TransferId { scope: order.bits(), kind: TransferKind::Escrow, n: 0 },
            step: Step::Post,
            debit: key(Owner::Wallet(account)),
            credit: key(Owner::Order(order)),
            amount: 1,
        };
        self.happen(PublicBody::OrderFunded { order, transfer })?;
        Ok(order)
    }

    /// Gives an order its seats.
    pub(crate) fn take(&mut self, order: OrderId, seats: &[Seat]) -> Result<()> {
        let lease = |(n, seat): (u32, &Seat)| NewLease {
            n,
            slot: n,
            device: seat.device,
            supplier: Address([2; 32]),
            rate: seat.rate,
            gpus: seat.gpus.clone(),
        };
        let leases = (0..).zip(seats).map(lease).collect();
        self.happen(PublicBody::OrderPlaced { order, leases, reason: None })
    }
}

fn quote(request: &Request, account: Address, now_ms: u64, n: u128) -> Quote {
    Quote {
        id: QuoteId::from_parts(now_ms, n),
        account,
        request: request.clone(),
        items: Vec::<QuoteItem>::new(),
        rate: RATE,
        duration_factor_percent: 100,
        renter_fee: BasisPoints(0),
        supplier_fee: BasisPoints(0),
        compute_micro_usd: 0,
        fee_micro_usd: 0,
        total_micro_usd: 0,
        issued_ms: now_ms,
        expires_ms: now_ms + 60_000,
        reserves_capacity: false,
        pricing: Vec::new(),
        lines: None,
        elsewhere: None,
        outlook: None,
        past: Vec::new(),
    }
}

/// A request of one member.
pub(crate) fn request(per_member: Resources, models: Option<String>) -> Request {
    Request {
        engine: EngineKind::Command,
        members: 1,
        per_member,
        duration_ms: HOUR_MS,
        gpu_model: models,
        network: None,
        tags: BTreeSet::new(),
        tier: None,
        spread: false,
        egress: Egress::Off,
        hiding: Hiding::default(),
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
