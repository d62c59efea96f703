//! What must be refused, or at least do no harm: mistakes of renters and suppliers, and what the operator does by hand.

use std::collections::BTreeSet;

use ionet_domain::account::{ActivityKind, ApiKey, Scope};
use ionet_domain::command::CommandBody;
use ionet_domain::device::{Contact, DeviceChange, DeviceStage, Enrolment, OwnerRules, Window};
use ionet_domain::market::{EngineKind, Program};
use ionet_domain::meter::Witness;
use ionet_domain::money::{Asset, HOUR_MS};
use ionet_domain::order::{CloseReason, LeasePhase};
use ionet_domain::{Actor, DeviceId, KeyId, LeaseId, OrderId, Stage, TransferId, id::TransferKind};

use super::machine::{TAG, endpoint};
use super::renters::make;
use super::world::{World, renter, supplier};

impl World {
    /// What must be refused, or at least do no harm.
    pub(super) fn mistake(&mut self, n: usize) {
        let body = match self.renters[n].random.below(5) {
            0 => self.wrong_order(n),
            1 => self.wrong_money(n),
            2 => self.wrong_key(n),
            3 => self.wrong_business(n),
            _ => return self.mistaken_order(n),
        };
        let actor = match self.renters[n].random.below(12) {
            // A device's own word for its own lease would be no mistake.
            0 if !matches!(body, CommandBody::ReportLost { .. }) => Actor::Device(self.devices[0].id()),
            1 => Actor::Wallet(self.renters[n].address),
            2 if matches!(body, CommandBody::Send { .. } | CommandBody::MakeKey { .. }) => Actor::Server,
            _ => self.actor(n),
        };
        // Some do not believe it the first time and ask anew.
        if self.renters[n].random.chance(300_000) {
            self.intend_as(n, actor, body.clone());
        }
        self.intend_as(n, actor, body);
    }

    fn wrong_order(&mut self, n: usize) -> CommandBody {
        let old = OrderId::from_parts(self.true_ms() - 90_000_000, 7);
        let someone = (n + 1) % self.plan.renters;
        let theirs = self.renters[someone].orders.last().copied().unwrap_or(old);
        let mine = self.renters[n].orders.last().copied().unwrap_or(old);
        match self.renters[n].random.below(6) {
            0 => CommandBody::Close { order: theirs, reason: CloseReason::Renter },
            1 => CommandBody::Close { order: old, reason: CloseReason::Renter },
            2 => CommandBody::Close { order: mine, reason: CloseReason::Operator { reason: "me".into() } },
            3 => CommandBody::Extend { order: mine, added_ms: 400 * 24 * HOUR_MS },
            4 => CommandBody::Extend { order: theirs, added_ms: 1 },
            _ => CommandBody::ReportLost { lease: LeaseId { order: mine, n: 0 }, reason: "I say so".into() },
        }
    }

    fn wrong_money(&mut self, n: usize) -> CommandBody {
        let id = self.transfer_id();
        let (me, asset) = (self.renters[n].address, Asset::Iosd);
        let to = renter((n + 1) % self.plan.renters);
        let old = OrderId::from_parts(self.true_ms() - 90_000_000, 7);
        let send = |id, to, amount| CommandBody::Send { id, to, asset, amount };
        match self.renters[n].random.below(6) {
            0 => send(id, to, u64::MAX / 4),
            1 => send(TransferId { kind: TransferKind::Escrow, ..id }, to, 5),
            2 => send(TransferId { scope: old.bits(), ..id }, to, 5),
            3 => send(id, me, 5),
            4 => send(id, to, 1),
            _ => CommandBody::Deposit { id, reference: "mine".into(), account: me, asset, amount: 9 },
        }
    }

    fn wrong_key(&mut self, n: usize) -> CommandBody {
        let key = self.renters[n].keys.first().copied().unwrap_or(KeyId::from_parts(1, 1));
        let new = self.new_key(n);
        match self.renters[n].random.below(5) {
            0 => CommandBody::RevokeKey { key },
            1 => make(ApiKey { id: key, ..new }),
            2 => make(ApiKey { expires_ms: 5, ..new }),
            3 => make(ApiKey { cap_micro_usd: u64::MAX, scopes: BTreeSet::from(Scope::ALL), ..new }),
            _ => make(ApiKey { spent_micro_usd: 1, ..new }),
        }
    }

    fn wrong_business(&mut self, n: usize) -> CommandBody {
        let (device, account) = (self.devices[0].id(), self.renters[n].address);
        let enrolment = self.devices[0].enrolment.clone();
        match self.renters[n].random.below(6) {
            0 => CommandBody::ArchiveDevice { device },
            1 => CommandBody::BeginCheck { device },
            2 => CommandBody::Enrol { enrolment, machine_name: "mine".into() },
            3 => CommandBody::Retire,
            4 => {
                let (kind, particulars) = (ActivityKind::SignedIn, "x".into());
                CommandBody::LogActivity { account, kind, key: None, particulars }
            }
            _ => CommandBody::Found { params: self.plan.params.clone() },
        }
    }

    /// An order with something wrong: the quote of another, no program, one that the engine does not take, or an id that
    /// was used before.
    fn mistaken_order(&mut self, n: usize) {
        let quotes: Vec<_> = self.check.money.quotes.values().rev().take(8).cloned().collect();
        let (at_ms, unique) = (self.true_ms(), self.unique());
        let me = &mut self.renters[n];
        let Some(quote) = me.random.one_of(&quotes).cloned() else { return };
        let argv = match me.random.below(4) {
            0 => Vec::new(),
            1 => vec!["x".repeat(70_000)],
            _ => vec!["work".into()],
        };
        let used = me.orders.last().copied().filter(|_| me.random.chance(500_000));
        let order = used.unwrap_or(OrderId::from_parts(at_ms, unique));
        // Otherwise nothing may be wrong with it, and then it is an order like any other.
        let fits = argv.len() == 1 && argv[0] == "work" && quote.request.engine == EngineKind::Command;
        if fits && used.is_none() {
            return;
        }
        let account = if at_ms.is_multiple_of(4) { me.address } else { quote.account };
        let program = Program { argv, ..Program::default() };
        self.intend_as(n, Actor::Wallet(account), CommandBody::PlaceOrder { order, quote, program });
    }

    /// What the operator does by hand.
    pub(super) fn by_hand(&mut self, n: usize) {
        let account = self.renters[n].address;
        let device = self.renters[n].random.index(self.devices.len());
        let device = self.devices[device].id();
        let body = match self.renters[n].random.below(4) {
            0 | 1 => self.step_by_hand(n),
            2 => self.device_by_hand(n, device),
            _ => None,
        };
        let (kind, particulars) = (ActivityKind::TunnelOpened, "by hand".into());
        let line = CommandBody::LogActivity { account, kind, key: None, particulars };
        self.intend_as(n, Actor::Server, body.unwrap_or(line));
    }

    /// A reconciler's step where it is not due.
    fn step_by_hand(&mut self, n: usize) -> Option<CommandBody> {
        let orders = self.check.shadow.orders.values();
        let live: Vec<_> =
            orders.filter(|order| (Stage::Running..=Stage::Closing).contains(&order.stage)).collect();
        let random = &mut self.renters[n].random;
        let found = *random.one_of(&live)?;
        let leases: Vec<_> = found.leases.iter().collect();
        let (at, lease) = *random.one_of(&leases)?;
        let (order, lease_id) = (found.id, LeaseId { order: found.id, n: *at });
        let close = CloseReason::Operator { reason: "works".into() };
        Some(match random.below(14) {
            0 => CommandBody::Close { order, reason: close },
            1 | 2 => CommandBody::Disprove { lease: lease_id, reason: "not so".into() },
            3 => CommandBody::Place { order },
            4 => CommandBody::Settle { order },
            5 => CommandBody::Replace { order },
            6 => CommandBody::Start { order },
            7 => CommandBody::MarkRunning { order },
            8 => CommandBody::Prove { lease: lease_id, witness: Witness::Nobody },
            9 => CommandBody::OpenPayout { account: lease.supplier },
            10 => CommandBody::OpenPayout { account: found.account },
            11 | 12 if lease.phase != LeasePhase::Placed => {
                CommandBody::ReportReady { lease: lease_id, parts_ms: Vec::new() }
            }
            13 if found.stage == Stage::Closing => CommandBody::ReportRemoved { lease: lease_id, wipe: None },
            _ => CommandBody::Retire,
        })
    }

    fn device_by_hand(&mut self, n: usize, device: DeviceId) -> Option<CommandBody> {
        let found = self.check.shadow.devices.get(&device)?;
        let (yielding, contact) = (found.rules.yielding, found.contact);
        let heard = contact == Contact::Connected;
        Some(match self.renters[n].random.below(6) {
            0 => CommandBody::BeginCheck { device },
            1 => CommandBody::ReportYield { device, yielding },
            2 if heard => CommandBody::NoteContact { device, contact },
            3 if found.stage == DeviceStage::Pooled => {
                CommandBody::ReportCheck { device, measured: Err("by hand".into()) }
            }
            4 => CommandBody::Found { params: self.plan.params.clone() },
            _ => CommandBody::Retire,
        })
    }

    /// What a supplier gets wrong.
    pub(super) fn wrong_supply(&mut self, n: usize, number: u64) {
        let device = self.devices[n].id();
        let change = |change| CommandBody::ChangeDevice { device, change };
        let tags =
            |tags: BTreeSet<String>| change(DeviceChange { tags: Some(tags), ..DeviceChange::default() });
        let body = match number % 8 {
            0 => CommandBody::Rebind { device, endpoint: self.devices[n].enrolment.endpoint },
            1 => change(DeviceChange::default()),
            2 => {
                let schedule = vec![Window { from_minute: 1, to_minute: 20_000 }];
                let rules = Some(OwnerRules { schedule, ..OwnerRules::default() });
                change(DeviceChange { rules, ..DeviceChange::default() })
            }
            3 => tags(BTreeSet::from(["two words".into()])),
            4 => tags((0..21).map(|n| format!("tag{n}")).collect()),
            5 => tags(BTreeSet::from([TAG.into()])),
            6 => CommandBody::ReportYield { device: self.devices[0].id(), yielding: true },
            _ => return self.wrong_enrolment(n, number / 8),
        };
        self.supply(n, body);
    }

    /// A machine that is not taken: too large an offer, somebody else's key, or another owner.
    fn wrong_enrolment(&mut self, n: usize, number: u64) {
        let mut enrolment: Enrolment = self.devices[n].enrolment.clone();
        match number % 6 {
            0 => enrolment.offered.cpu_millis += 1,
            1 => enrolment.offered.memory_bytes *= 9,
            2 => enrolment.offered.gpus += 1,
            3 => enrolment.device = DeviceId::from_parts(self.true_ms(), self.unique()),
            4 => enrolment.owner = supplier(n + 1, self.plan.devices),
            _ => enrolment.network = String::new(),
        }
        if number % 6 < 3 {
            enrolment.device = DeviceId::from_parts(self.true_ms(), self.unique());
            enrolment.endpoint = endpoint(n, 255);
        }
        self.supply(n, CommandBody::Enrol { enrolment, machine_name: "box".into() });
    }

    /// The suppliers hear of the order and have second thoughts.
    pub(super) fn pause_them_all(&mut self) {
        for n in 0..self.devices.len() {
            let Some(found) = self.check.shadow.devices.get(&self.devices[n].id()) else { continue };
            let rules = OwnerRules { paused: true, ..found.rules.clone() };
            let change = DeviceChange { rules: Some(rules), ..DeviceChange::default() };
            self.supply(n, CommandBody::ChangeDevice { device: self.devices[n].id(), change });
        }
    }
}
