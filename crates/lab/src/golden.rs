//! The golden journal: what a release wrote must fold to the same state in every later one.
//!
//! [`write`] plays a scripted world that uses every kind of event into a folder; its content depends on nothing but the
//! rules of this release. **Never write over the folder of an old release**: its bytes are what people have on their
//! disks. When events change, write a new folder beside the old ones (`golden/v0.2.0`, ...); the test folds them all.

use std::collections::BTreeSet;
use std::path::Path;

use ionet_domain::account::{ActivityKind, ApiKey, Scope as KeyScope};
use ionet_domain::command::CommandBody as C;
use ionet_domain::connectivity::{Bandwidth, RelayMeasure};
use ionet_domain::device::{
    Alternative, Contact, DeviceChange, Enrolment, Gpu, GpuCheck, Hardware, Measured, OwnerRules, Resources,
};
use ionet_domain::id::{QuoteId, TransferKind};
use ionet_domain::market::competitors::PricePoint;
use ionet_domain::market::{
    Buy, Denials, DenyList, Egress, EngineKind, Feed, PriceParams, Priority, Program, Quote, Request,
    WorkKind, price,
};
use ionet_domain::meter::{Receipt, Witness};
use ionet_domain::money::{Asset, HOUR_MS, Rate};
use ionet_domain::order::health::Ailment;
use ionet_domain::order::size::{self, OrderChange};
use ionet_domain::order::{CloseReason, WipeReceipt};
use ionet_domain::payout::{epoch_start_ms, payout_id};
use ionet_domain::{
    Actor, Address, Command, CommandId, DeviceId, EndpointId, KeyId, LeaseId, OrderId, Params, State,
    TransferId, decide,
};
use ionet_journal::{Disk, Entry, FileDisk, Journal, Options, Private, Scope};

use crate::sim::fold;
use crate::{LabError, Result};

/// What the folded state is kept as beside the journal.
pub const STATE_FILE: &str = "state.json";
const RENTER: Address = Address([1; 32]);
const SUPPLIER: Address = Address([2; 32]);
const OTHER: Address = Address([3; 32]);
const GIB: u64 = 1 << 30;

/// Plays the script into `dir`, which must be empty, and records the state that it folds to.
pub fn write(dir: &Path) -> Result<()> {
    let disk = FileDisk::open(dir).map_err(LabError::journal("open the folder"))?;
    let mut script = Script::new(disk)?;
    script.play()?;
    let json = serde_json::to_vec_pretty(&script.state).map_err(|e| LabError::Broken(e.to_string()))?;
    std::fs::write(dir.join(STATE_FILE), json).map_err(LabError::io("write the state"))?;
    drop(script);
    std::fs::remove_file(dir.join("lock")).map_err(LabError::io("remove the lock"))
}

/// Verifies a golden journal, folds it, and compares with the recorded state; the names of the events in it.
pub fn check(dir: &Path) -> Result<BTreeSet<String>> {
    let disk = FileDisk::open_read_only(dir).map_err(LabError::journal("open the golden journal"))?;
    let text = std::fs::read(dir.join(STATE_FILE)).map_err(LabError::io("read the recorded state"))?;
    let recorded: State = serde_json::from_slice(&text).map_err(|e| LabError::Broken(e.to_string()))?;
    let mut names = BTreeSet::new();
    let folded = fold::fold(&disk, Scope::Full, |_, event, _| {
        names.insert(event.public.name());
        Ok(())
    })?;
    if folded != recorded {
        return Err(LabError::Broken("the golden journal folds to another state than was recorded".into()));
    }
    let mut public = fold::fold(&disk, Scope::Public, |_, _, _| Ok(()))?;
    public.private.clone_from(&recorded.private);
    if public != recorded {
        return Err(LabError::Broken("the golden journal's public part folds to another state".into()));
    }
    recorded.audit().map_err(LabError::Broken)?;
    Ok(names)
}

/// Folds a copy of a golden journal from its snapshot and compares with the recorded state.
pub fn check_snapshot<D: Disk>(copy: D, recorded: &State) -> Result<()> {
    let (journal, _) =
        Journal::open(copy, Options::default()).map_err(LabError::journal("open the golden journal"))?;
    let latest = journal.latest_snapshot().map_err(LabError::journal("read the snapshot"))?;
    let snapshot = latest.snapshot.ok_or_else(|| LabError::Broken("there is no usable snapshot".into()))?;
    let mut state: State =
        serde_json::from_slice(&snapshot.body).map_err(|e| LabError::Broken(e.to_string()))?;
    let rest = journal.read_from(snapshot.at.seq + 1).map_err(LabError::journal("read the journal"))?;
    for record in rest {
        let event = fold::event(&record.map_err(LabError::journal("read the journal"))?)?;
        state.apply(&event).map_err(|e| LabError::Broken(e.to_string()))?;
    }
    if state == *recorded {
        Ok(())
    } else {
        Err(LabError::Broken("from its snapshot it folds to another".into()))
    }
}

struct Script<D> {
    state: State,
    journal: Journal<D>,
    now_ms: u64,
    next: u128,
}

impl<D: Disk> Script<D> {
    fn new(disk: D) -> Result<Self> {
        let options = Options { segment_bytes: 24_000, check_from_snapshot: false };
        let (journal, _) = Journal::open(disk, options).map_err(LabError::journal("begin the journal"))?;
        Ok(Self { state: State::default(), journal, now_ms: 1_800_014_400_000, next: 0 })
    }

    fn unique(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    /// Every command is one batch; refusals are faults of the script.
    fn ask(&mut self, actor: Actor, body: C) -> Result<()> {
        self.now_ms += 1_000;
        let id = Some(CommandId::from_parts(self.now_ms, self.unique()));
        let words = format!("{body:?}");
        let events = decide(&self.state, &Command { id, actor, body }, self.now_ms)
            .map_err(|refusal| LabError::Broken(format!("{words}: {refusal}")))?;
        let mut entries = Vec::new();
        for event in events {
            self.state.apply(&event).map_err(|e| LabError::Broken(e.to_string()))?;
            let salt = self.unique().to_be_bytes();
            let private = event.private_json().map(|body| Private { salt, body });
            let (public, subjects) = (event.public_json(), event.public.subjects());
            entries.push(Entry { at_ms: event.at_ms, public, private, subjects });
        }
        self.journal.append(&entries).map_err(LabError::journal("append"))?;
        Ok(())
    }

    fn server(&mut self, body: C) -> Result<()> {
        self.ask(Actor::Server, body)
    }

    fn play(&mut self) -> Result<()> {
        let price = Some(PriceParams { feed_signers: [OTHER].into(), ..PriceParams::default() });
        let params = Params { network: "golden".into(), price, ..Params::default() };
        self.server(C::Found { params })?;
        self.server(C::BeginTerm { above: 0 })?;
        self.accounts()?;
        let devices =
            [self.device(SUPPLIER, 100_000)?, self.device(SUPPLIER, 120_000)?, self.device(OTHER, 120_000)?];
        self.more_of_devices(devices[0])?;
        let first = self.running(2, false)?;
        self.metered_and_extended(first)?;
        self.snapshot()?;
        let second = self.running(2, true)?;
        self.lost_and_held(second)?;
        self.finished()?;
        self.changed()?;
        self.payouts()?;
        self.now_ms += 25 * HOUR_MS;
        self.server(C::Retire)?;
        self.market()?;
        self.terms(devices[2])?;
        self.running(1, false).map(|_| ())
    }

    /// Who serves whom.
    fn terms(&mut self, device: DeviceId) -> Result<()> {
        let country = "DE".parse().map_err(|refusal| LabError::Broken(format!("{refusal}")))?;
        self.ask(Actor::Wallet(RENTER), C::DeclareCountry { country })?;
        let terms = Denials { kinds: [WorkKind::Train].into(), ..Denials::default() };
        self.ask(Actor::Wallet(OTHER), C::SetTerms { device, terms: terms.clone() })?;
        self.server(C::SetDenyList { list: DenyList { renters: terms, ..DenyList::default() } })
    }

    /// Prices elsewhere come in, and the load follows an hour in which nothing was hired.
    fn market(&mut self) -> Result<()> {
        let gpu = Gpu { uuid: "GPU-1".into(), model: "NVIDIA L4".into(), memory_bytes: 24 * GIB };
        let (uuid, kernel_sees) = (gpu.uuid.clone(), true);
        let seen = GpuCheck { uuid, kernel_sees, driver_memory_bytes: Some(gpu.memory_bytes) };
        let device = self.enrol(SUPPLIER, 200_000, vec![gpu])?;
        self.check(device, Ok(Measured { gpus: vec![seen], ..measures() }))?;
        let alternative =
            Some(Alternative { revenue_per_unit: Rate(100_000), power_micro_usd_per_kwh: 200_000 });
        let change = DeviceChange { alternative, ..DeviceChange::default() };
        self.ask(Actor::Wallet(SUPPLIER), C::ChangeDevice { device, change })?;
        let point = PricePoint { model: "L4".into(), provider: "a cloud".into(), rate: Rate(700_000) };
        let feed = Feed { signer: OTHER, at_ms: self.now_ms, source: "a page".into(), points: vec![point] };
        self.server(C::TakeFeed { feed, signature: "00".into() })?;
        self.now_ms += 2 * HOUR_MS;
        self.server(C::SetLoads)?;
        self.waiting()?;
        self.spot(device)
    }

    /// A spot order follows the market, and makes room with a notice.
    fn spot(&mut self, device: DeviceId) -> Result<()> {
        self.server(C::NoteContact { device, contact: Contact::Connected })?;
        let mut firm = request(1, false);
        firm.per_member.gpus = 1;
        let buy = Buy::Spot { notice_ms: 120_000, expires_ms: None };
        let order = self.up(&Request { buy, ..firm.clone() })?;
        self.now_ms += 2 * HOUR_MS;
        self.server(C::SetLoads)?;
        self.server(C::Reprice { order })?;
        let quote = self.quote(&firm)?;
        let firm = OrderId::from_parts(self.now_ms, self.unique());
        self.ask(Actor::Wallet(RENTER), C::PlaceOrder { order: firm, quote, program: program() })?;
        self.server(C::Place { order: firm })?;
        self.now_ms += 120_000;
        self.server(C::Close { order, reason: CloseReason::Preempted })?;
        self.remove(LeaseId { order, n: 0 })?;
        self.server(C::Settle { order })?;
        self.server(C::Place { order: firm })?;
        let buy = Buy::Reserved { starts_ms: self.now_ms + 2 * HOUR_MS };
        let quote = self.quote(&Request { buy, ..request(1, false) })?;
        let order = OrderId::from_parts(self.now_ms, self.unique());
        self.ask(Actor::Wallet(RENTER), C::PlaceOrder { order, quote, program: program() })?;
        self.now_ms += 2 * HOUR_MS;
        self.server(C::Place { order })
    }

    /// An order waits for more devices than are free, holds what it can get, and is given up.
    fn waiting(&mut self) -> Result<()> {
        let order = OrderId::from_parts(self.now_ms, self.unique());
        let buy = Buy::Standing { expires_ms: self.now_ms + HOUR_MS };
        let request = Request { buy, priority: Priority::High, ..request(5, false) };
        let quote = self.quote(&request)?;
        self.ask(Actor::Wallet(RENTER), C::PlaceOrder { order, quote, program: program() })?;
        self.now_ms += HOUR_MS / 2;
        self.server(C::Hold)?;
        self.now_ms += HOUR_MS / 2;
        self.server(C::Place { order })?;
        self.server(C::Settle { order })
    }

    fn snapshot(&self) -> Result<()> {
        let body = serde_json::to_vec(&self.state).map_err(|e| LabError::Broken(e.to_string()))?;
        self.journal.write_snapshot(self.journal.head(), &body).map_err(LabError::journal("write a snapshot"))
    }

    fn accounts(&mut self) -> Result<()> {
        for (n, account) in (1u64..).zip([RENTER, OTHER]) {
            let id = TransferId {
                scope: OrderId::from_parts(self.now_ms, n.into()).bits(),
                kind: TransferKind::Deposit,
                n,
            };
            let reference = format!("golden:{n}");
            self.server(C::Deposit { id, reference, account, asset: Asset::Iosd, amount: 90_000_000 })?;
        }
        let scope = CommandId::from_parts(self.now_ms, self.unique()).bits();
        let id = TransferId { scope, kind: TransferKind::Send, n: 0 };
        self.ask(Actor::Wallet(OTHER), C::Send { id, to: RENTER, asset: Asset::Iosd, amount: 1 })?;
        let key = ApiKey {
            id: KeyId::from_parts(self.now_ms, self.unique()),
            scopes: BTreeSet::from([KeyScope::Read, KeyScope::Rent]),
            cap_micro_usd: 5_000_000,
            spent_micro_usd: 0,
            expires_ms: self.now_ms + HOUR_MS,
            revoked: false,
            revoked_ms: None,
        };
        let id = key.id;
        self.ask(Actor::Wallet(RENTER), C::MakeKey { key, label: "ci".into(), sha256: "ab".repeat(32) })?;
        let particulars = "from 192.0.2.1".into();
        self.server(C::LogActivity {
            account: RENTER,
            kind: ActivityKind::SignedIn,
            key: None,
            particulars,
        })?;
        self.ask(Actor::Wallet(RENTER), C::RevokeKey { key: id })
    }

    fn enrol(&mut self, owner: Address, ask: u64, gpus: Vec<Gpu>) -> Result<DeviceId> {
        let n = self.unique();
        let mut endpoint = [9; 32];
        endpoint[..16].copy_from_slice(&n.to_be_bytes());
        let device = DeviceId::from_parts(self.now_ms, n);
        let enrolment = Enrolment {
            device,
            owner,
            endpoint: EndpointId(endpoint),
            network: "ionet".into(),
            tags: BTreeSet::from(["lab".to_string()]),
            ask_per_unit: Rate(ask),
            offered: Resources {
                cpu_millis: 2000,
                memory_bytes: 4 * GIB,
                disk_bytes: 20 * GIB,
                gpus: u32::try_from(gpus.len()).unwrap_or(0),
                ..Resources::default()
            },
            hardware: Hardware {
                cpu_model: "a CPU".into(),
                cpu_threads: 2,
                memory_bytes: 8 * GIB,
                gpus,
                unsupported: vec!["AMD GPU: not supported yet".into()],
            },
            simulated: false,
        };
        self.ask(Actor::Wallet(owner), C::Enrol { enrolment, machine_name: "box".into() })?;
        Ok(device)
    }

    fn device(&mut self, owner: Address, ask: u64) -> Result<DeviceId> {
        let device = self.enrol(owner, ask, Vec::new())?;
        self.server(C::NoteContact { device, contact: Contact::Connected })?;
        self.check(device, Ok(measures()))?;
        Ok(device)
    }

    fn check(&mut self, device: DeviceId, measured: Result<Measured, String>) -> Result<()> {
        self.server(C::BeginCheck { device })?;
        self.ask(Actor::Device(device), C::ReportCheck { device, measured })
    }

    fn more_of_devices(&mut self, device: DeviceId) -> Result<()> {
        let change = DeviceChange { ask_per_unit: Some(Rate(90_000)), ..DeviceChange::default() };
        self.ask(Actor::Wallet(SUPPLIER), C::ChangeDevice { device, change })?;
        let rules = OwnerRules { paused: true, ..OwnerRules::default() };
        for rules in [rules, OwnerRules::default()] {
            let change = DeviceChange { rules: Some(rules), ..DeviceChange::default() };
            self.ask(Actor::Wallet(SUPPLIER), C::ChangeDevice { device, change })?;
        }
        let bandwidth = Some(Bandwidth { down_mbit_s: 450, up_mbit_s: 310 });
        let (relay, region) = ("https://relay.example.org".into(), Some("eu".into()));
        let measure = RelayMeasure { relay, region, at_ms: 1, rtt_us: 900, bandwidth };
        self.server(C::ReportLinks { device, measures: vec![measure] })?;
        self.ask(Actor::Device(device), C::ReportYield { device, yielding: true })?;
        self.ask(Actor::Device(device), C::ReportYield { device, yielding: false })?;
        self.ask(Actor::Wallet(SUPPLIER), C::Rebind { device, endpoint: EndpointId([77; 32]) })?;
        let slow = self.enrol(OTHER, 1, Vec::new())?;
        self.check(slow, Ok(Measured { cpu_one_mb_s: 1, ..measures() }))?;
        self.check(slow, Err("the check was ended".into()))?;
        self.ask(Actor::Wallet(OTHER), C::ArchiveDevice { device: slow })
    }

    fn running(&mut self, members: u32, spread: bool) -> Result<OrderId> {
        self.up(&request(members, spread))
    }

    fn up(&mut self, request: &Request) -> Result<OrderId> {
        let order = OrderId::from_parts(self.now_ms, self.unique());
        let quote = self.quote(request)?;
        let program = program();
        self.ask(Actor::Wallet(RENTER), C::PlaceOrder { order, quote, program })?;
        self.server(C::Place { order })?;
        self.server(C::Start { order })?;
        for n in 0..request.members {
            self.ready(LeaseId { order, n })?;
        }
        self.server(C::MarkRunning { order })?;
        Ok(order)
    }

    fn quote(&mut self, request: &Request) -> Result<Quote> {
        let id = QuoteId::from_parts(self.now_ms, self.unique());
        price::quote(&self.state, id, RENTER, request, self.now_ms)
            .map_err(|refusal| LabError::Broken(refusal.to_string()))
    }

    fn by_device(&mut self, lease: LeaseId, body: C) -> Result<()> {
        let device = self.state.lease(lease).map_err(|r| LabError::Broken(r.to_string()))?.1.device;
        self.ask(Actor::Device(device), body)
    }

    fn ready(&mut self, lease: LeaseId) -> Result<()> {
        self.by_device(lease, C::ReportReady { lease, parts_ms: vec![("boxes".into(), 120)] })
    }

    fn meter(&mut self, lease: LeaseId, elapsed_ms: u64, witness: Witness) -> Result<()> {
        self.now_ms += 120_000;
        let receipt = Receipt { lease, elapsed_ms, heard: vec![1], signature: "00".repeat(64) };
        self.by_device(lease, C::Meter { receipt, witness })
    }

    fn remove(&mut self, lease: LeaseId) -> Result<()> {
        let wipe = WipeReceipt { files: 3, bytes: 4096, processes_killed: 1, method: "unlinked".into() };
        self.by_device(lease, C::ReportRemoved { lease, wipe: Some(wipe) })
    }

    fn metered_and_extended(&mut self, order: OrderId) -> Result<()> {
        let lease = |n| LeaseId { order, n };
        self.meter(lease(0), 60_000, Witness::Heartbeats)?;
        self.meter(lease(1), 61_001, Witness::Heartbeats)?;
        self.ask(Actor::Wallet(RENTER), C::Extend { order, added_ms: HOUR_MS / 2 })?;
        let allow =
            ["pypi.org:443", "203.0.113.0/24"].into_iter().filter_map(|text| text.parse().ok()).collect();
        self.ask(Actor::Wallet(RENTER), C::ChangeEgress { order, egress: Egress::Listed, allow })?;
        self.ask(Actor::Wallet(RENTER), C::Close { order, reason: CloseReason::Renter })?;
        self.meter(lease(0), 90_000, Witness::Heartbeats)?;
        self.remove(lease(0))?;
        self.remove(lease(1))?;
        self.server(C::Settle { order })?;
        self.ask(Actor::Wallet(RENTER), C::Rate { order, stars: 4 })
    }

    /// A lost member is replaced; charges are held, proven and voided; the last one is not heard from again.
    fn lost_and_held(&mut self, order: OrderId) -> Result<()> {
        let lease = |n| LeaseId { order, n };
        self.meter(lease(0), 50_000, Witness::Nobody)?;
        self.meter(lease(1), 40_000, Witness::Nobody)?;
        let reason = "the machine restarted".to_string();
        self.by_device(lease(1), C::ReportLost { lease: lease(1), reason })?;
        self.server(C::Replace { order })?;
        self.ready(lease(2))?;
        let voided = C::Disprove { lease: lease(1), reason: "no such work".into() };
        self.server(voided)?;
        self.now_ms += HOUR_MS;
        self.server(C::Prove { lease: lease(0), witness: Witness::Nobody })?;
        self.server(C::Close { order, reason: CloseReason::Time })?;
        let device = self.state.lease(lease(2)).map_err(|r| LabError::Broken(r.to_string()))?.1.device;
        let since_ms = self.now_ms;
        self.server(C::NoteContact { device, contact: Contact::Unknown { since_ms } })?;
        self.remove(lease(0))?;
        self.now_ms += HOUR_MS;
        self.server(C::ReportRemoved { lease: lease(2), wipe: None })?;
        self.server(C::NoteContact { device, contact: Contact::Connected })?;
        self.server(C::Settle { order })
    }

    fn finished(&mut self) -> Result<()> {
        let order = self.running(1, false)?;
        let lease = LeaseId { order, n: 0 };
        self.by_device(lease, C::ReportExit { lease, exit_code: 0 })?;
        self.server(C::Close { order, reason: CloseReason::Finished { exit_code: 0 } })?;
        self.remove(lease)?;
        self.server(C::Settle { order })
    }

    /// Grown, shrunk, changed, paused and resumed.
    fn changed(&mut self) -> Result<()> {
        let order = self.running(1, false)?;
        let broken = |refusal: ionet_domain::Refusal| LabError::Broken(refusal.to_string());
        let found = self.state.order(order).map_err(broken)?;
        let request = size::more_of(found, 2, self.now_ms).map_err(broken)?;
        let id = QuoteId::from_parts(self.now_ms, self.unique());
        let request = Request { duration_ms: request.duration_ms, ..request };
        let quote = price::quote(&self.state, id, RENTER, &request, self.now_ms).map_err(broken)?;
        let renter = Actor::Wallet(RENTER);
        self.ask(renter, C::Grow { order, quote })?;
        self.server(C::Replace { order })?;
        self.ready(LeaseId { order, n: 1 })?;
        self.ready(LeaseId { order, n: 2 })?;
        self.meter(LeaseId { order, n: 2 }, 60_000, Witness::Heartbeats)?;
        let ailment = Some(Ailment::Overloaded { foreign_cpu_percent: 80 });
        self.server(C::ReportAiling { lease: LeaseId { order, n: 1 }, ailment })?;
        self.device(OTHER, 1_000)?;
        self.ask(renter, C::ReplaceMember { order, slot: 1 })?;
        self.remove(LeaseId { order, n: 1 })?;
        self.ready(LeaseId { order, n: 3 })?;
        self.ask(renter, C::Shrink { order, members: 2 })?;
        self.remove(LeaseId { order, n: 2 })?;
        let change = OrderChange { duration_ms: Some(HOUR_MS / 2), ..OrderChange::default() };
        self.ask(renter, C::ChangeOrder { order, change })?;
        self.ask(renter, C::Pause { order })?;
        self.remove(LeaseId { order, n: 0 })?;
        self.remove(LeaseId { order, n: 3 })?;
        self.ask(renter, C::Resume { order })?;
        self.server(C::Place { order })?;
        self.server(C::Start { order })?;
        self.ask(renter, C::Close { order, reason: CloseReason::Renter })?;
        self.remove(LeaseId { order, n: 4 })?;
        self.remove(LeaseId { order, n: 5 })?;
        self.server(C::Settle { order })
    }

    fn payouts(&mut self) -> Result<()> {
        self.now_ms += HOUR_MS;
        let earners: Vec<Address> = [SUPPLIER, OTHER]
            .into_iter()
            .filter(|account| {
                let owner = ionet_domain::ledger::Owner::Earned(*account);
                self.state.ledger.balance(owner, Asset::Iosd).available() > 0
            })
            .collect();
        for account in earners {
            // The chain had paid less in a timeline that was lost; the rest goes out an epoch later.
            self.payout(account, 1)?;
            self.now_ms += HOUR_MS;
            self.payout(account, 0)?;
        }
        Ok(())
    }

    fn payout(&mut self, account: Address, less: u64) -> Result<()> {
        self.server(C::OpenPayout { account })?;
        let payout = payout_id(epoch_start_ms(self.state.params.epoch_ms, self.now_ms), account);
        let held = self.state.payouts.get(&payout).map_or(0, |payout| payout.transfer.amount);
        let reference = format!("golden:{payout}");
        self.server(C::ConfirmPayout { payout, reference, amount: held - less })
    }
}

fn request(members: u32, spread: bool) -> Request {
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
        network: Some("ionet".into()),
        tags: BTreeSet::from(["lab".to_string()]),
        tier: None,
        spread,
        egress: Egress::On,
        hiding: ionet_domain::market::Hiding::default(),
        max_rate: Some(Rate(10_000_000)),
        priority: Priority::Normal,
        buy: Buy::default(),
        mega: false,
        asset: Asset::Iosd,
        ..Request::default()
    }
}

fn program() -> Program {
    Program { argv: vec!["python3".into(), "-c".into(), "print(1)".into()], ..Program::default() }
}

fn measures() -> Measured {
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
