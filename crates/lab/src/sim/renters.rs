//! Renters: they order all kinds of clusters, retry under the same id, close, extend, send money, make keys, make
//! mistakes, and vanish. And the operator, who now and then does something by hand.

use std::collections::BTreeSet;

use ionet_domain::account::{ActivityKind, ApiKey, Scope};
use ionet_domain::command::CommandBody;
use ionet_domain::device::Resources;
use ionet_domain::id::{QuoteId, TransferKind};
use ionet_domain::market::{EngineKind, Program, Quote, Request, price};
use ionet_domain::money::{Asset, HOUR_MS, Rate};
use ionet_domain::order::CloseReason;
use ionet_domain::{
    Actor, Address, Command, CommandId, Event, KeyId, LeaseId, OrderId, Refusal, Stage, TransferId,
};
use ionet_server::{Input, Ticket};

use super::check::quote_is_refused_in_truth;
use super::machine::{MODELS, NETWORKS, TAG};
use super::plan::FaultKind;
use super::planted::Planted;
use super::promise::{Promise, broken};
use super::world::{GIB, Part, World, renter};
use crate::Result;
use crate::random::Random;

/// An unanswered request is made again after this long, in milliseconds.
const RETRY_MS: u64 = 5_000;

/// What a renter wants to happen once.
#[derive(Debug, Clone)]
struct Intent {
    wish: u64,
    command: Command,
    asked_ms: u64,
    answered: bool,
}

/// Somebody who rents.
#[derive(Debug)]
pub(super) struct Renter {
    address: Address,
    pub(super) due_ms: u64,
    random: Random,
    intents: Vec<Intent>,
    orders: Vec<OrderId>,
    /// Orders wished for, those that a smaller run leaves out included.
    wished: u64,
    keys: Vec<KeyId>,
    /// A quote that was not used at once.
    kept: Option<(Quote, Program)>,
    vanished: bool,
}

impl Renter {
    pub(super) fn new(n: usize, seed: u64) -> Self {
        Self {
            address: renter(n),
            due_ms: 500 + 700 * n as u64,
            random: Random::new(seed ^ 0x7265_6e74 ^ ((n as u64) << 32)),
            intents: Vec::new(),
            orders: Vec::new(),
            wished: 0,
            keys: Vec::new(),
            kept: None,
            vanished: false,
        }
    }

    /// Requests without an answer.
    pub(super) fn waits_for(&self) -> usize {
        if self.vanished { 0 } else { self.intents.iter().filter(|intent| !intent.answered).count() }
    }
}

impl World {
    pub(super) fn renter_act(&mut self, n: usize) -> Result<()> {
        let me = &mut self.renters[n];
        me.due_ms = self.at_ms + me.random.between(1_000, 6_000);
        if me.vanished {
            me.due_ms = u64::MAX;
            return Ok(());
        }
        let waits = me.intents.iter().position(|intent| !intent.answered);
        if let Some(which) = waits {
            // The oldest first: one wish at a time.
            if self.at_ms >= self.renters[n].intents[which].asked_ms + RETRY_MS {
                self.freshen(n, which);
                self.ask(n, which);
            }
            return Ok(());
        }
        if self.plan.load.scripted {
            return if (self.renters[n].orders.len() as u64) < self.plan.orders_each {
                self.order(n)
            } else {
                Ok(())
            };
        }
        let (least_ms, most_ms) = self.plan.load.think_ms;
        self.renters[n].due_ms += self.renters[n].random.between(least_ms, most_ms);
        if self.healed {
            return Ok(());
        }
        let may_order = self.renters[n].wished < self.plan.orders_each;
        match self.renters[n].random.below(26) {
            0..12 if may_order => return self.order(n),
            12..14 => self.close(n),
            14..17 => self.extend(n),
            17 | 18 => self.send(n),
            19 => self.make_key(n),
            20 | 21 if self.plan.load.varied => self.mistake(n),
            22 if self.plan.load.varied && !self.calm() => self.by_hand(n),
            23 if self.plan.may(FaultKind::RenterVanishes) && self.renters[n].random.chance(200_000) => {
                self.trace.note(self.at_ms, || format!("renter {n} vanishes"));
                self.renters[n].vanished = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// The planted fault: a retry that is somebody else's request to the server.
    fn freshen(&mut self, n: usize, which: usize) {
        if !self.plants(Planted::FreshIdOnRetry) {
            return;
        }
        let (at_ms, random) = (self.true_ms(), self.unique());
        let intent = &mut self.renters[n].intents[which];
        intent.command.id = Some(CommandId::from_parts(at_ms, random));
        if let CommandBody::PlaceOrder { order, .. } = &mut intent.command.body {
            *order = OrderId::from_parts(at_ms, random);
            self.check.book.wishes.insert(*order, intent.wish);
        }
    }

    fn intend(&mut self, n: usize, body: CommandBody) {
        self.intend_as(n, Actor::Wallet(self.renters[n].address), body);
    }

    fn intend_as(&mut self, n: usize, actor: Actor, body: CommandBody) {
        let (at_ms, random) = (self.true_ms(), self.unique());
        let wish = self.number();
        if let CommandBody::PlaceOrder { order, .. } = &body {
            self.check.book.wishes.insert(*order, wish);
        }
        let command = Command { id: Some(CommandId::from_parts(at_ms, random)), actor, body };
        self.renters[n].intents.push(Intent { wish, command, asked_ms: 0, answered: false });
        let which = self.renters[n].intents.len() - 1;
        self.ask(n, which);
    }

    fn ask(&mut self, n: usize, which: usize) {
        let intent = &mut self.renters[n].intents[which];
        intent.asked_ms = self.at_ms;
        let command = intent.command.clone();
        self.trace.note(self.at_ms, || format!("renter {n}: asks {:?}", command.body));
        let lost = self.strikes(FaultKind::LostAnswers, 30_000).is_some();
        if self.server.up() && !lost {
            let ticket = self.number();
            self.tickets.insert(ticket, (n, which));
            self.send_to_server(Input::Submit(Some(ticket), command));
        }
    }

    pub(super) fn take_answer(
        &mut self,
        ticket: Ticket,
        answer: Result<Vec<(u64, Event)>, Refusal>,
    ) -> Result<()> {
        let Some((n, which)) = self.tickets.remove(&ticket) else {
            return broken(Promise::AnsweredOnce, format!("request {ticket} was answered a second time"));
        };
        self.check.book.answered(ticket, answer.as_ref().err())?;
        if self.strikes(FaultKind::LostAnswers, 60_000).is_some() {
            return Ok(());
        }
        self.renters[n].intents[which].answered = true;
        self.touch(Part::Renter(n));
        if let Ok(events) = answer {
            self.check.book.promise(events);
        }
        Ok(())
    }

    fn order(&mut self, n: usize) -> Result<()> {
        let wished = self.renters[n].wished;
        self.renters[n].wished += 1;
        let request = self.request(n);
        if self.plan.only_orders.as_ref().is_some_and(|only| !only.contains(&(n, wished))) {
            return Ok(());
        }
        let (at_ms, random, now_ms) = (self.true_ms(), self.unique(), self.now_ms());
        let account = self.renters[n].address;
        let Some(core) = &self.server.core else { return Ok(()) };
        let quoted = {
            let view = core.view().read();
            let quoted =
                price::quote(&view.state, QuoteId::from_parts(at_ms, random), account, &request, now_ms);
            if let Err(refusal) = &quoted {
                quote_is_refused_in_truth(&view.state, &request, refusal, now_ms)?;
            }
            quoted
        };
        let Ok(quote) = quoted else { return Ok(()) };
        self.check.money.quotes.insert(quote.id, quote.clone());
        let argv = if request.engine == EngineKind::Command { vec!["work".into()] } else { Vec::new() };
        let program = Program { argv, ..Program::default() };
        let keeps = self.plan.load.varied && self.renters[n].random.chance(120_000);
        let (quote, program) = match self.renters[n].kept.take() {
            Some(kept) => kept,
            None if keeps => {
                self.renters[n].kept = Some((quote, program));
                return Ok(());
            }
            None => (quote, program),
        };
        let order = OrderId::from_parts(at_ms, random);
        self.renters[n].orders.push(order);
        let actor = self.actor(n);
        self.intend_as(n, actor, CommandBody::PlaceOrder { order, quote, program });
        Ok(())
    }

    /// By the wallet, or by one of its keys.
    fn actor(&mut self, n: usize) -> Actor {
        let me = &mut self.renters[n];
        let by_key = me.random.chance(400_000);
        let key = me.random.one_of(&me.keys).copied().filter(|_| by_key);
        key.map_or(Actor::Wallet(me.address), |key| Actor::Key(me.address, key))
    }

    fn request(&mut self, n: usize) -> Request {
        let load = self.plan.load.clone();
        let random = &mut self.renters[n].random;
        let mut request = Request {
            engine: EngineKind::Command,
            members: 2,
            per_member: Resources { cpu_millis: 1000, memory_bytes: GIB, disk_bytes: GIB, gpus: 0 },
            duration_ms: random.between(load.duration_ms.0, load.duration_ms.1),
            gpu_model: None,
            network: None,
            tags: BTreeSet::new(),
            spread: true,
            max_rate: None,
            asset: Asset::Iosd,
        };
        if load.scripted {
            return request;
        }
        // Large clusters are the rarer the larger they are.
        let most = random.between(1, load.members_most);
        request.members = u32::try_from(random.between(1, most)).unwrap_or(1);
        request.spread = random.chance(300_000);
        if random.chance(300_000) {
            request.engine = EngineKind::Ray;
        }
        if !load.varied {
            return request;
        }
        request.per_member.cpu_millis = 500 * u32::try_from(random.between(1, 4)).unwrap_or(1);
        request.per_member.memory_bytes = GIB * random.between(1, 2);
        if random.chance(150_000) {
            request.per_member.gpus = u32::try_from(random.between(1, 2)).unwrap_or(1);
            request.gpu_model = random.chance(500_000).then(|| MODELS[0].into());
            request.members = request.members.min(2);
        }
        if random.chance(100_000) {
            request.network = Some(NETWORKS[random.index(2)].into());
        }
        if random.chance(100_000) {
            request.tags.insert(TAG.into());
        }
        if random.chance(200_000) {
            request.max_rate = Some(Rate(random.between(20_000, 2_000_000)));
        }
        request
    }

    /// One of the renter's orders that the server still has, if any.
    fn an_order(&mut self, n: usize) -> Option<OrderId> {
        let orders = &self.check.shadow.orders;
        let live = |order: &&OrderId| orders.get(*order).is_some_and(|found| found.stage < Stage::Closing);
        let me = &mut self.renters[n];
        let orders: Vec<_> = me.orders.iter().filter(live).copied().collect();
        me.random.one_of(&orders).copied()
    }

    fn close(&mut self, n: usize) {
        if let Some(order) = self.an_order(n) {
            self.intend(n, CommandBody::Close { order, reason: CloseReason::Renter });
        }
    }

    fn extend(&mut self, n: usize) {
        if let Some(order) = self.an_order(n) {
            let added_ms = self.renters[n].random.between(1, self.plan.load.extend_most_ms);
            let actor = self.actor(n);
            self.intend_as(n, actor, CommandBody::Extend { order, added_ms });
        }
    }

    fn transfer_id(&mut self) -> TransferId {
        let scope = CommandId::from_parts(self.true_ms(), self.unique()).bits();
        TransferId { scope, kind: TransferKind::Send, n: 0 }
    }

    fn send(&mut self, n: usize) {
        let id = self.transfer_id();
        let random = &mut self.renters[n].random;
        let asset = if random.chance(700_000) { Asset::Iosd } else { Asset::Io };
        let amount = random.between(0, 5_000);
        let to = renter(random.index(self.plan.renters + 1));
        self.intend(n, CommandBody::Send { id, to, asset, amount });
    }

    fn make_key(&mut self, n: usize) {
        let id = KeyId::from_parts(self.true_ms(), self.unique());
        let expires_ms = self.true_ms() + self.plan.chaos_ms / 2;
        let random = &mut self.renters[n].random;
        let cap_micro_usd = random.between(1_000, 3_000_000);
        let all = if random.chance(700_000) {
            vec![Scope::Rent, Scope::Read, Scope::Pay]
        } else {
            vec![Scope::Read]
        };
        let key = ApiKey {
            id,
            scopes: all.into_iter().collect(),
            cap_micro_usd,
            spent_micro_usd: 0,
            expires_ms,
            revoked: false,
        };
        self.renters[n].keys.push(id);
        self.intend(n, CommandBody::MakeKey { key, label: "of the lab".into(), sha256: "0".repeat(64) });
    }

    /// What must be refused, or at least do no harm.
    fn mistake(&mut self, n: usize) {
        let old = OrderId::from_parts(self.true_ms() - 90_000_000, 7);
        let someone = (n + 1) % self.plan.renters;
        let theirs = self.renters[someone].orders.last().copied().unwrap_or(old);
        let mine = self.renters[n].orders.last().copied().unwrap_or(old);
        let device = self.devices[0].id();
        let id = self.transfer_id();
        let (me, iosd) = (self.renters[n].address, Asset::Iosd);
        let key = self.renters[n].keys.first().copied().unwrap_or(KeyId::from_parts(1, 1));
        let send = |id, amount| CommandBody::Send { id, to: renter(someone), asset: iosd, amount };
        let body = match self.renters[n].random.below(18) {
            0 => CommandBody::Close { order: theirs, reason: CloseReason::Renter },
            1 => CommandBody::Close { order: old, reason: CloseReason::Renter },
            2 => CommandBody::Close { order: mine, reason: CloseReason::Operator { reason: "me".into() } },
            3 => CommandBody::Extend { order: mine, added_ms: 400 * 24 * HOUR_MS },
            4 => CommandBody::Extend { order: theirs, added_ms: 1 },
            5 => send(id, u64::MAX / 4),
            6 => send(TransferId { kind: TransferKind::Escrow, ..id }, 5),
            7 => send(TransferId { scope: old.bits(), ..id }, 5),
            8 => CommandBody::Send { id, to: me, asset: iosd, amount: 5 },
            9 => CommandBody::RevokeKey { key },
            10 => CommandBody::ArchiveDevice { device },
            11 => CommandBody::BeginCheck { device },
            12 => CommandBody::Enrol {
                enrolment: self.devices[0].enrolment.clone(),
                machine_name: "mine".into(),
            },
            13 => CommandBody::Retire,
            14 => CommandBody::LogActivity {
                account: me,
                kind: ActivityKind::SignedIn,
                key: None,
                particulars: "x".into(),
            },
            15 => return self.mistaken_order(n, someone),
            16 => CommandBody::Found { params: self.plan.params.clone() },
            _ => CommandBody::Deposit { id, reference: "mine".into(), account: me, asset: iosd, amount: 9 },
        };
        let actor = self.actor(n);
        self.intend_as(n, actor, body);
    }

    /// An order with something wrong: the quote of another, no program, or one that the engine does not take.
    fn mistaken_order(&mut self, n: usize, someone: usize) {
        let quotes: Vec<_> = self.check.money.quotes.values().rev().take(8).cloned().collect();
        let random = &mut self.renters[n].random;
        let Some(quote) = random.one_of(&quotes).cloned() else { return };
        let argv = if random.chance(500_000) { Vec::new() } else { vec!["x".repeat(70_000)] };
        let (at_ms, random) = (self.true_ms(), self.unique());
        let order = OrderId::from_parts(at_ms, random);
        let program = Program { argv, ..Program::default() };
        let actor = Actor::Wallet(renter(if at_ms.is_multiple_of(2) { n } else { someone }));
        self.intend_as(n, actor, CommandBody::PlaceOrder { order, quote, program });
    }

    /// What the operator does by hand.
    fn by_hand(&mut self, n: usize) {
        let running = self.check.shadow.orders.values().filter(|order| order.stage == Stage::Running);
        let running: Vec<_> = running.map(|order| (order.id, order.leases.keys().next().copied())).collect();
        let random = &mut self.renters[n].random;
        let some = random.one_of(&running).copied();
        let device = self.devices[random.index(self.devices.len())].id();
        let account = self.renters[n].address;
        let body = match (self.renters[n].random.below(8), some) {
            (0, Some((order, _))) => {
                CommandBody::Close { order, reason: CloseReason::Operator { reason: "works".into() } }
            }
            (1 | 2, Some((order, Some(lease)))) => {
                CommandBody::Disprove { lease: LeaseId { order, n: lease }, reason: "not so".into() }
            }
            (3, _) => CommandBody::BeginCheck { device },
            (4, _) => CommandBody::Retire,
            (5, Some((order, _))) => CommandBody::Place { order },
            (6, Some((order, _))) => CommandBody::Settle { order },
            _ => CommandBody::LogActivity {
                account,
                kind: ActivityKind::TunnelOpened,
                key: None,
                particulars: "by hand".into(),
            },
        };
        self.intend_as(n, Actor::Server, body);
    }
}
