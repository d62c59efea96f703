//! Renters and suppliers: they order, retry under the same id, close, extend, vanish; pause, drain and leave.

use std::collections::BTreeSet;

use ionet_domain::command::CommandBody;
use ionet_domain::device::{DeviceChange, OwnerRules, Resources};
use ionet_domain::id::{QuoteId, TransferKind};
use ionet_domain::market::{EngineKind, Program, Request, price};
use ionet_domain::money::{Asset, Rate};
use ionet_domain::order::CloseReason;
use ionet_domain::{Actor, Address, Command, CommandId, Event, OrderId, Refusal, Stage, TransferId};
use ionet_server::{Input, Ticket};

use super::world::{GIB, World, renter, supplier};
/// An unanswered request is made again after this long, in milliseconds.
const RETRY_MS: u64 = 5_000;

/// What a renter wants to happen once.
#[derive(Debug, Clone)]
pub(super) struct Intent {
    tag: u64,
    command: Command,
    asked_ms: u64,
    answered: bool,
}

/// Somebody who rents.
#[derive(Debug, Clone)]
pub(super) struct Renter {
    address: Address,
    pub(super) due_ms: u64,
    intents: Vec<Intent>,
    orders: Vec<OrderId>,
    vanished: bool,
}

impl Renter {
    pub(super) fn new(address: Address, due_ms: u64) -> Self {
        Self { address, due_ms, intents: Vec::new(), orders: Vec::new(), vanished: false }
    }

    /// Requests without an answer.
    pub(super) fn waits_for(&self) -> usize {
        if self.vanished { 0 } else { self.intents.iter().filter(|intent| !intent.answered).count() }
    }
}

impl World {
    pub(super) fn renter_act(&mut self, n: usize) {
        self.renters[n].due_ms = self.at_ms + self.random.between(1_000, 6_000);
        if self.renters[n].vanished {
            return;
        }
        let waits = self.renters[n].intents.iter().position(|intent| !intent.answered);
        if let Some(which) = waits {
            // The oldest first: one wish at a time.
            if self.at_ms >= self.renters[n].intents[which].asked_ms + RETRY_MS {
                self.freshen(n, which);
                self.ask(n, which);
            }
            return;
        }
        if self.plan.chance {
            let pause_ms = self.plan.chaos_ms / (self.plan.orders_each * 3);
            self.renters[n].due_ms += self.random.below(pause_ms);
        }
        if self.healed && self.plan.chance {
            return;
        }
        let may_order = (self.renters[n].orders.len() as u64) < self.plan.orders_each;
        match self.random.below(20) {
            0..12 if may_order => self.order(n),
            12..15 if self.plan.chance => self.close(n),
            15..17 if self.plan.chance => self.extend(n),
            17..19 if self.plan.chance => self.send(n),
            19 if self.plan.chance && self.random.chance(100_000) => self.renters[n].vanished = true,
            _ => {}
        }
    }

    /// The planted fault: a retry that is somebody else's request to the server.
    fn freshen(&mut self, n: usize, which: usize) {
        if !self.plan.planted.fresh_id_on_retry {
            return;
        }
        let (at_ms, random) = (self.now_ms(), self.unique());
        let intent = &mut self.renters[n].intents[which];
        intent.command.id = Some(CommandId::from_parts(at_ms, random));
        if let CommandBody::PlaceOrder { order, .. } = &mut intent.command.body {
            *order = OrderId::from_parts(at_ms, random);
            self.check.intents.insert(*order, intent.tag);
        }
    }

    fn intend(&mut self, n: usize, body: CommandBody) {
        let (at_ms, random) = (self.now_ms(), self.unique());
        let tag = self.number();
        if let CommandBody::PlaceOrder { order, .. } = &body {
            self.check.intents.insert(*order, tag);
        }
        let id = Some(CommandId::from_parts(at_ms, random));
        let command = Command { id, actor: Actor::Wallet(self.renters[n].address), body };
        self.renters[n].intents.push(Intent { tag, command, asked_ms: 0, answered: false });
        let which = self.renters[n].intents.len() - 1;
        self.ask(n, which);
    }

    fn ask(&mut self, n: usize, which: usize) {
        let intent = &mut self.renters[n].intents[which];
        intent.asked_ms = self.at_ms;
        let command = intent.command.clone();
        self.trace.note(self.at_ms, || format!("renter {n}: asks {:?}", command.body));
        let lost = self.plan.chance && !self.healed && self.random.chance(30_000);
        if self.server.up() && !lost {
            let ticket = self.number();
            self.tickets.insert(ticket, (n, which));
            self.server.inbox.push_back(Input::Submit(Some(ticket), command));
        }
    }

    pub(super) fn take_answer(&mut self, ticket: Ticket, answer: Result<Vec<(u64, Event)>, Refusal>) {
        let lost = self.plan.chance && !self.healed && self.random.chance(60_000);
        let Some((n, which)) = self.tickets.get(&ticket).copied().filter(|_| !lost) else { return };
        let intent = &mut self.renters[n].intents[which];
        intent.answered = true;
        if let Ok(events) = answer {
            self.check.promise(events);
        }
    }

    fn order(&mut self, n: usize) {
        let request = self.request();
        let account = self.renters[n].address;
        let (now_ms, random) = (self.now_ms(), self.unique());
        let Some(core) = &self.server.core else { return };
        let id = QuoteId::from_parts(now_ms, random);
        let Ok(quote) = price::quote(&core.view().read().state, id, account, &request, now_ms) else {
            return;
        };
        let order = OrderId::from_parts(now_ms, random);
        let argv = match request.engine {
            EngineKind::Command => vec!["work".into()],
            EngineKind::Ray => Vec::new(),
        };
        self.renters[n].orders.push(order);
        let program = Program { argv, ..Program::default() };
        self.intend(n, CommandBody::PlaceOrder { order, quote, program });
    }

    fn request(&mut self) -> Request {
        let chance = self.plan.chance;
        let random = &mut self.random;
        let members = if chance { random.between(1, 3) } else { 2 };
        let engine = if chance && random.chance(300_000) { EngineKind::Ray } else { EngineKind::Command };
        Request {
            engine,
            members: u32::try_from(members).unwrap_or(1),
            per_member: Resources { cpu_millis: 1000, memory_bytes: GIB, disk_bytes: GIB, gpus: 0 },
            duration_ms: if chance { random.between(60_000, 600_000) } else { 60_000 },
            gpu_model: None,
            network: None,
            tags: BTreeSet::new(),
            spread: !chance || random.chance(300_000),
            max_rate: None,
            asset: Asset::Iosd,
        }
    }

    /// One of the renter's orders that the server still has, if any.
    fn an_order(&mut self, n: usize) -> Option<OrderId> {
        let live = |order: &&OrderId| {
            self.check.shadow.orders.get(*order).is_some_and(|found| found.stage < Stage::Closing)
        };
        let orders: Vec<_> = self.renters[n].orders.iter().filter(live).copied().collect();
        self.random.one_of(&orders).copied()
    }

    fn close(&mut self, n: usize) {
        if let Some(order) = self.an_order(n) {
            self.intend(n, CommandBody::Close { order, reason: CloseReason::Renter });
        }
    }

    fn extend(&mut self, n: usize) {
        if let Some(order) = self.an_order(n) {
            let added_ms = self.random.between(1, 180_000);
            self.intend(n, CommandBody::Extend { order, added_ms });
        }
    }

    fn send(&mut self, n: usize) {
        let scope = CommandId::from_parts(self.now_ms(), self.unique()).bits();
        let id = TransferId { scope, kind: TransferKind::Send, n: 0 };
        let amount = self.random.between(0, 5_000);
        let to = renter(self.random.index(self.plan.renters + 1));
        self.intend(n, CommandBody::Send { id, to, asset: Asset::Iosd, amount });
    }

    pub(super) fn supplier_act(&mut self, n: usize) {
        self.supplier_due_ms[n] = self.at_ms + self.random.between(8_000, 40_000);
        let device = self.devices[n].id();
        let enrolment = self.devices[n].enrolment.clone();
        let Some(core) = self.server.core.as_ref().filter(|_| !self.devices[n].left) else { return };
        let rules = core.view().read().state.devices.get(&device).map(|found| found.rules.clone());
        let Some(rules) = rules else {
            self.supply(n, CommandBody::Enrol { enrolment, machine_name: "box".into() });
            return;
        };
        let change = |change| CommandBody::ChangeDevice { device, change };
        let set = |rules| change(DeviceChange { rules: Some(rules), ..DeviceChange::default() });
        if self.healed || !self.plan.chance {
            if rules != OwnerRules::default() {
                self.supply(n, set(OwnerRules::default()));
            }
            return;
        }
        match self.random.below(40) {
            0 | 1 => self.supply(n, set(OwnerRules { paused: !rules.paused, ..rules })),
            2 | 3 => self.supply(n, set(OwnerRules { draining: !rules.draining, ..rules })),
            4..8 => {
                let ask = Some(Rate(self.random.between(10_000, 500_000)));
                self.supply(n, change(DeviceChange { ask_per_unit: ask, ..DeviceChange::default() }));
            }
            8 if self.devices.iter().filter(|device| !device.left).count() > 1 => self.leave(n),
            _ => {}
        }
    }

    fn supply(&mut self, n: usize, body: CommandBody) {
        let command = Command { id: None, actor: Actor::Wallet(supplier(n)), body };
        self.trace.note(self.at_ms, || format!("supplier of {n}: {:?}", command.body));
        self.server.inbox.push_back(Input::Submit(None, command));
    }

    /// The machine is unplugged and never comes back.
    fn leave(&mut self, n: usize) {
        self.trace.note(self.at_ms, || format!("device {n} leaves for good"));
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        for lease in leases {
            self.check.box_died(lease, self.at_ms);
            self.devices[n].kill_supervisor(lease);
        }
        self.devices[n].stop_agent();
        self.devices[n].left = true;
        self.net.disconnect(self.devices[n].endpoint, self.server_endpoint);
        self.server.poll_link();
    }
}
