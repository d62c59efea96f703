//! Renters: they order all kinds of clusters, retry under the same id, close, extend, send money, make keys and vanish.
//! Not here: what they only ask (`questions`), and what must be refused (`mistakes`).

use std::collections::BTreeSet;

use ionet_domain::account::{ApiKey, Scope};
use ionet_domain::command::CommandBody;
use ionet_domain::connectivity::REGION_TAG;
use ionet_domain::device::{Resources, Tier};
use ionet_domain::id::{QuoteId, TransferKind};
use ionet_domain::market::upkeep::{Metric, Scale};
use ionet_domain::market::{
    Buy, Destination, Egress, EngineKind, Hiding, Isolation, Priority, Program, Quote, Request, WorkKind,
    price,
};
use ionet_domain::money::{Asset, Rate};
use ionet_domain::order::CloseReason;
use ionet_domain::{Actor, Address, Command, CommandId, Event, KeyId, OrderId, Refusal, Stage, TransferId};
use ionet_server::{Input, Ticket};

use super::check::quote_is_refused_in_truth;
use super::machine::{MODELS, NETWORKS, REGIONS, TAG};
use super::plan::FaultKind;
use super::planted::Planted;
use super::promise::{Promise, broken};
use super::world::{GIB, Part, World, renter};
use crate::Result;
use crate::random::Random;

/// An unanswered request is made again after this long, in milliseconds.
const RETRY_MS: u64 = 5_000;

/// What lists of destinations are made of.
pub(super) const DESTINATIONS: [&str; 5] =
    ["pypi.org", "*.debian.org:443", "203.0.113.0/24", "[2001:db8::1]:22", "198.51.100.7:80"];

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
    pub(super) address: Address,
    pub(super) due_ms: u64,
    pub(super) random: Random,
    /// Chance of its own, so that what else is asked for stays as it is without.
    ways: Random,
    intents: Vec<Intent>,
    pub(super) orders: Vec<OrderId>,
    /// Orders wished for, those that a smaller run leaves out included.
    wished: u64,
    pub(super) keys: Vec<KeyId>,
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
            ways: Random::new(seed ^ 0x7761_7973 ^ ((n as u64) << 32)),
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
        match self.renters[n].random.below(35) {
            0..12 if may_order => return self.order(n),
            12..14 => self.close(n),
            14..17 => self.extend(n),
            17 | 18 => self.send(n),
            19 => self.make_key(n),
            20 | 21 if self.plan.load.varied => self.mistake(n),
            22 if self.plan.load.varied && !self.calm() => self.by_hand(n),
            24 | 25 if self.plan.load.varied => return self.question(n),
            26 | 27 | 34 if self.plan.load.varied => self.change_egress(n),
            28 if self.plan.load.varied => self.rate(n),
            29..34 if self.plan.load.varied => return self.change_course(n),
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

    pub(super) fn intend(&mut self, n: usize, body: CommandBody) {
        self.intend_as(n, Actor::Wallet(self.renters[n].address), body);
    }

    pub(super) fn intend_as(&mut self, n: usize, actor: Actor, body: CommandBody) {
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
        if let Err(refusal) = &answer {
            self.read_refusal(n, refusal)?;
        }
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
        let mut request = self.request(n);
        self.choose_way(n, &mut request);
        if self.plan.only_orders.as_ref().is_some_and(|only| !only.contains(&(n, wished))) {
            return Ok(());
        }
        let Some(quote) = self.quote(n, &request)? else { return Ok(()) };
        let argv = if request.engine == EngineKind::Command { vec!["work".into()] } else { Vec::new() };
        let allow = self.allow_for(n, request.egress);
        let program = Program { argv, allow, ..Program::default() };
        let keeps = self.plan.load.varied && self.renters[n].random.chance(120_000);
        let (quote, program) = match self.renters[n].kept.take() {
            Some(kept) => kept,
            None if keeps => {
                self.renters[n].kept = Some((quote, program));
                return Ok(());
            }
            None => (quote, program),
        };
        // Two at once, so that the second comes before the first has its devices.
        let eager = self.plan.load.varied && !self.calm() && self.renters[n].random.chance(100_000);
        for _ in 0..=u8::from(eager) {
            let order = OrderId::from_parts(self.true_ms(), self.unique());
            self.renters[n].orders.push(order);
            let actor = self.actor(n);
            let (quote, program) = (quote.clone(), program.clone());
            self.intend_as(n, actor, CommandBody::PlaceOrder { order, quote, program });
        }
        if self.plan.may(FaultKind::OwnerRules) && self.renters[n].random.chance(60_000) {
            self.pause_them_all();
        }
        Ok(())
    }

    /// How it is bought, and how urgent it is.
    fn choose_way(&mut self, n: usize, request: &mut Request) {
        let (now_ms, load) = (self.now_ms(), self.plan.load.clone());
        let random = &mut self.renters[n].ways;
        if !load.ways || random.chance(550_000) {
            return;
        }
        request.priority = *random.one_of(&Priority::ALL).unwrap_or(&Priority::Normal);
        let cap = random.between(20_000, 400_000) * u64::from(request.members);
        request.max_rate = Some(Rate(cap));
        let expires_ms = now_ms + random.between(30_000, 2 * load.duration_ms.1);
        request.buy = match random.below(6) {
            3 => {
                let starts_ms = now_ms + random.between(20_000, 240_000);
                request.max_rate = None;
                Buy::Reserved { starts_ms }
            }
            4 => {
                let deadline_ms = now_ms + request.duration_ms + 15 * 60_000 + random.between(1_000, 240_000);
                Buy::Flexible { deadline_ms }
            }
            5 => {
                (request.mega, request.members) = (true, 4);
                Buy::default()
            }
            0 => Buy::Standing { expires_ms },
            1 => Buy::Spot { notice_ms: random.between(10_000, 60_000), expires_ms: Some(expires_ms) },
            _ => Buy::Spot { notice_ms: 10_000, expires_ms: None },
        };
    }

    /// A price, unless the server is away or refuses.
    pub(super) fn quote(&mut self, n: usize, request: &Request) -> Result<Option<Quote>> {
        let (id, now_ms) = (QuoteId::from_parts(self.true_ms(), self.unique()), self.now_ms());
        let Some(core) = &self.server.core else { return Ok(None) };
        let view = core.view().read();
        let quoted = price::quote(&view.state, id, self.renters[n].address, request, now_ms);
        if let Err(refusal) = &quoted {
            quote_is_refused_in_truth(&view.state, request, refusal, now_ms)?;
        }
        drop(view);
        match quoted {
            Ok(quote) => {
                self.check.money.quotes.insert(quote.id, quote.clone());
                Ok(Some(quote))
            }
            Err(refusal) => self.read_refusal(n, &refusal).map(|()| None),
        }
    }

    /// By the wallet, or by one of its keys.
    pub(super) fn actor(&mut self, n: usize) -> Actor {
        let me = &mut self.renters[n];
        let by_key = me.random.chance(400_000);
        let key = me.random.one_of(&me.keys).copied().filter(|_| by_key);
        key.map_or(Actor::Wallet(me.address), |key| Actor::Key(me.address, key))
    }

    pub(super) fn request(&mut self, n: usize) -> Request {
        let load = self.plan.load.clone();
        let random = &mut self.renters[n].random;
        let mut request = Request {
            engine: EngineKind::Command,
            members: 2,
            per_member: Resources {
                cpu_millis: 1000,
                memory_bytes: GIB,
                disk_bytes: GIB,
                ..Resources::default()
            },
            duration_ms: random.between(load.duration_ms.0, load.duration_ms.1),
            spread: true,
            egress: Egress::On,
            ..Request::default()
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
        request.upkeep.max_pause_ms = Some(load.extend_most_ms.max(60_000));
        if random.chance(150_000) {
            let (min, max) = (1, u32::try_from(random.between(1, load.members_most)).unwrap_or(1));
            let scale = Scale { min, max, metric: Metric::Cpu, target_percent: 70, max_rate: None };
            request.upkeep.scale = Some(scale);
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
        if random.chance(60_000) {
            request.tags.insert(format!("{REGION_TAG}{}", REGIONS[random.index(2)]));
        }
        if random.chance(60_000) {
            request.tier = Some([Tier::Low, Tier::Medium, Tier::Ultra][random.index(3)]);
        }
        request.egress =
            *random.one_of(&[Egress::On, Egress::On, Egress::Listed, Egress::Off]).unwrap_or(&Egress::On);
        if random.chance(150_000) {
            let [private, via_relay, split_relays] = [(); 3].map(|()| random.chance(500_000));
            request.hiding = Hiding { private, via_relay, split_relays };
        }
        wish(&mut request, random);
        if random.chance(200_000) {
            request.max_rate = Some(Rate(random.between(20_000, 2_000_000)));
        }
        request
    }

    /// One of the renter's orders that the server still has, if any.
    pub(super) fn an_order(&mut self, n: usize) -> Option<OrderId> {
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

    /// Any number of stars for any order, so that wrong ones are refused.
    fn rate(&mut self, n: usize) {
        let me = &mut self.renters[n];
        let Some(order) = me.random.one_of(&me.orders).copied() else { return };
        let stars = u8::try_from(me.random.between(0, 6)).unwrap_or(5);
        let actor = self.actor(n);
        self.intend_as(n, actor, CommandBody::Rate { order, stars });
    }

    fn extend(&mut self, n: usize) {
        if let Some(order) = self.an_order(n) {
            let added_ms = self.renters[n].random.between(1, self.plan.load.extend_most_ms);
            let actor = self.actor(n);
            self.intend_as(n, actor, CommandBody::Extend { order, added_ms });
        }
    }

    /// Other rules for what an order may reach outside; one in eight has a list where there is none to be, or none.
    fn change_egress(&mut self, n: usize) {
        let Some(order) = self.an_order(n) else { return };
        let modes = [Egress::On, Egress::Listed, Egress::Off];
        let egress = *self.renters[n].random.one_of(&modes).unwrap_or(&Egress::Off);
        let wrong = self.renters[n].random.chance(125_000);
        let listed = if wrong { modes[1 - usize::from(egress == Egress::Listed)] } else { egress };
        let allow = self.allow_for(n, listed);
        let actor = self.actor(n);
        self.intend_as(n, actor, CommandBody::ChangeEgress { order, egress, allow });
    }

    fn allow_for(&mut self, n: usize, egress: Egress) -> BTreeSet<Destination> {
        let random = &mut self.renters[n].random;
        let most = if egress == Egress::Listed { random.between(1, DESTINATIONS.len() as u64) } else { 0 };
        let listed = (0..most).filter_map(|_| random.one_of(&DESTINATIONS)?.parse().ok());
        listed.collect()
    }

    pub(super) fn transfer_id(&mut self) -> TransferId {
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
        let key = self.new_key(n);
        self.renters[n].keys.push(key.id);
        let actor = self.actor(n);
        self.intend_as(n, actor, make(key));
    }

    pub(super) fn new_key(&mut self, n: usize) -> ApiKey {
        let id = KeyId::from_parts(self.true_ms(), self.unique());
        let expires_ms = self.true_ms() + self.plan.chaos_ms / 2;
        let random = &mut self.renters[n].random;
        let scopes: &[Scope] = match random.below(10) {
            0..5 => &[Scope::Rent, Scope::Read, Scope::Pay],
            5..8 => &Scope::ALL,
            _ => &[Scope::Read],
        };
        ApiKey {
            id,
            scopes: scopes.iter().copied().collect(),
            cap_micro_usd: random.between(1_000, 3_000_000),
            spent_micro_usd: 0,
            expires_ms,
            revoked: false,
            revoked_ms: None,
        }
    }
}

pub(super) fn make(key: ApiKey) -> CommandBody {
    CommandBody::MakeKey { key, label: "of the lab".into(), sha256: "0".repeat(64) }
}

/// Where and beside whom, now and then.
fn wish(request: &mut Request, random: &mut Random) {
    if random.chance(60_000) {
        request.regions = [REGIONS[random.index(2)].to_owned()].into();
    }
    if random.chance(60_000) {
        request.not_regions = [REGIONS[random.index(2)].to_owned()].into();
    }
    if random.chance(60_000) {
        request.isolation =
            random.one_of(&[Isolation::Process, Isolation::Limits, Isolation::OneTenant]).copied();
    }
    if random.chance(100_000) {
        request.max_per_device =
            u32::try_from(random.between(1, 3)).ok().filter(|n| !request.spread || *n == 1);
    }
    request.kind = *random.one_of(WorkKind::ALL).unwrap_or(&WorkKind::General);
}
