//! The loads of the engine's benchmarks: wallets that send each other money, every command with an id of its own; and
//! the metering of many running leases, two linked transfers a command.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::command::{Actor, Command, CommandBody as C};
use ionet_domain::device::{Contact, Enrolment, Hardware, Measured, Resources};
use ionet_domain::id::{QuoteId, TransferKind};
use ionet_domain::market::{EngineKind, Program, Request, price};
use ionet_domain::meter::{Receipt, Witness};
use ionet_domain::money::{HOUR_MS, Rate};
use ionet_domain::{Address, Asset, CommandId, DeviceId, EndpointId, LeaseId, OrderId, TransferId};
use ionet_journal::{FileDisk, Options};
use ionet_server::{Committer, Core, CoreOptions, Engine, EngineOptions, Keys};

use crate::random::Random;
use crate::{LabError, Result};

/// Wallets in the load.
const WALLETS: u64 = 1000;
/// Orders and members of each, for the metering.
const ORDERS: u64 = 4;
const MEMBERS: u32 = 125;
/// A Monday at noon: when every load begins.
pub(super) const NOW_MS: u64 = 1_800_014_400_000;
/// Every lease is charged for a millisecond at a time, so that a run takes no more time than it has; the rate makes that
/// enough for a fee.
const PERIOD_MS: u64 = 1;
const ASK_MICRO_USD_PER_HOUR: u64 = 4_000_000_000;
const GIB: u64 = 1 << 30;

/// What the commands are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Sends between wallets: one transfer a command.
    Send,
    /// Charges of running leases: two linked transfers a command.
    Meter,
}

impl Kind {
    /// Transfers that each command makes.
    pub fn transfers(self) -> usize {
        match self {
            Self::Send => 1,
            Self::Meter => 2,
        }
    }
}

/// An endless load.
pub(super) struct Load {
    kind: Kind,
    random: Random,
    made: u64,
    leases: Vec<LeaseId>,
}

impl Load {
    /// Prepares a server for a load: everybody gets a rich deposit, and for the metering leases run.
    pub(super) fn begin(kind: Kind, (core, committer): &mut Server) -> Result<Self> {
        let engine = core.engine();
        for n in 0..WALLETS {
            let id = TransferId { scope: 1 << 80, kind: TransferKind::Deposit, n };
            let (account, asset, amount) = (wallet(n), Asset::Iosd, 1 << 44);
            ask(
                engine,
                Actor::Server,
                C::Deposit { id, reference: format!("bench:{n}"), account, asset, amount },
            )?;
        }
        let mut load = Self { kind, random: Random::new(1), made: 0, leases: Vec::new() };
        if kind == Kind::Meter {
            (0..ORDERS * u64::from(MEMBERS) / 2).try_for_each(|n| device(engine, n))?;
            for n in 0..ORDERS {
                let order = running(engine, n)?;
                load.leases.extend((0..MEMBERS).map(|n| LeaseId { order, n }));
            }
        }
        commit(engine, committer)?;
        Ok(load)
    }

    /// The next command. It needs a clock that has gone on for a millisecond for every round of the leases.
    pub(super) fn command(&mut self) -> Command {
        self.made += 1;
        match self.kind {
            Kind::Send => self.send(),
            Kind::Meter => self.meter(),
        }
    }

    fn send(&mut self) -> Command {
        let id = CommandId::from_parts(NOW_MS, self.made.into());
        let (from, gap) = (self.random.below(WALLETS), self.random.between(1, WALLETS - 1));
        let body = C::Send {
            id: TransferId { scope: id.bits(), kind: TransferKind::Send, n: 0 },
            to: wallet((from + gap) % WALLETS),
            asset: Asset::Iosd,
            amount: self.random.between(1, 100),
        };
        Command { id: Some(id), actor: Actor::Wallet(wallet(from)), body }
    }

    fn meter(&mut self) -> Command {
        let (leases, n) = (self.leases.len() as u64, self.made - 1);
        let elapsed_ms = (n / leases + 1) * PERIOD_MS;
        let lease = self.leases[usize::try_from(n % leases).unwrap_or(0)];
        let receipt = Receipt { lease, elapsed_ms, heard: vec![0, 1], signature: "5a".repeat(64) };
        let body = C::Meter { receipt, witness: Witness::Heartbeats };
        Command { id: None, actor: Actor::Server, body }
    }
}

/// The server's core on a real disk, and the journal's side of it.
pub(super) type Server = (Core, Committer<FileDisk>);

/// Opens as the server does, but without snapshots of its own.
pub(super) fn open(disk: FileDisk) -> Result<Server> {
    let journal = Options { check_from_snapshot: true, ..Options::default() };
    let engine = EngineOptions { journal, snapshot_every: 0, ..EngineOptions::default() };
    let keys = Keys::from_seeds([1; 32], [2; 32]);
    let options = CoreOptions { engine, keys, endpoints: BTreeMap::new() };
    let (core, committer, _) =
        Core::open(disk, options, NOW_MS).map_err(LabError::server("open the journal"))?;
    Ok((core, committer))
}

/// Makes everything staged durable.
pub(super) fn commit(engine: &mut Engine, committer: &mut Committer<FileDisk>) -> Result<()> {
    let batch = engine.seal(Vec::new()).map_err(LabError::server("seal"))?;
    committer.commit(batch).map_err(LabError::server("commit"))?;
    Ok(())
}

fn ask(engine: &mut Engine, actor: Actor, body: C) -> Result<()> {
    let command = Command { id: None, actor, body };
    engine.submit(&command, NOW_MS).map_err(LabError::server("prepare the load"))?;
    Ok(())
}

fn device(engine: &mut Engine, n: u64) -> Result<()> {
    let device = DeviceId::from_parts(NOW_MS, u128::from(n) + 1);
    let owner = wallet(n);
    let enrolment = Enrolment {
        device,
        owner,
        endpoint: EndpointId(owner.0),
        network: "bench".into(),
        tags: BTreeSet::new(),
        ask_per_unit: Rate(ASK_MICRO_USD_PER_HOUR),
        offered: Resources {
            cpu_millis: 2000,
            memory_bytes: 4 * GIB,
            disk_bytes: 4 * GIB,
            ..Resources::default()
        },
        hardware: Hardware { cpu_threads: 2, memory_bytes: 8 * GIB, ..Hardware::default() },
        simulated: false,
    };
    ask(engine, Actor::Wallet(owner), C::Enrol { enrolment, machine_name: "bench".into() })?;
    ask(engine, Actor::Server, C::NoteContact { device, contact: Contact::Connected })?;
    ask(engine, Actor::Server, C::BeginCheck { device })?;
    let enforcement = Some("cgroup v2".into());
    let measured = Measured { cpu_one_mb_s: 400, disk_write_mb_s: 200, enforcement, ..Measured::default() };
    ask(engine, Actor::Server, C::ReportCheck { device, measured: Ok(measured) })
}

fn running(engine: &mut Engine, n: u64) -> Result<OrderId> {
    let order = OrderId::from_parts(NOW_MS, u128::from(n) + 1);
    let request = Request {
        engine: EngineKind::Command,
        members: MEMBERS,
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
    };
    let id = QuoteId::from_parts(NOW_MS, n.into());
    let quote = price::quote(&engine.view().read().state, id, wallet(n), &request, NOW_MS)
        .map_err(|refusal| LabError::Broken(refusal.to_string()))?;
    let program = Program { argv: vec!["true".into()], ..Program::default() };
    ask(engine, Actor::Wallet(wallet(n)), C::PlaceOrder { order, quote, program })?;
    ask(engine, Actor::Server, C::Place { order })?;
    ask(engine, Actor::Server, C::Start { order })?;
    for n in 0..MEMBERS {
        let lease = LeaseId { order, n };
        ask(engine, Actor::Server, C::ReportReady { lease, parts_ms: Vec::new() })?;
    }
    ask(engine, Actor::Server, C::MarkRunning { order })?;
    Ok(order)
}

fn wallet(n: u64) -> Address {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Address(key)
}
