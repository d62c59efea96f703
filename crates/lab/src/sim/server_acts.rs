//! What the server does when it is its turn, and what its shell would do around it.

use std::collections::BTreeSet;

use ionet_api::worker::ToWorker;
use ionet_chain::{Chain, Paid};
use ionet_domain::command::CommandBody;
use ionet_domain::meter::{Receipt, Witness};
use ionet_domain::order::{LeasePhase, Stage};
use ionet_domain::{Actor, Command, LeaseId, PayoutId, decide};
use ionet_journal::{Disk, Fault, Keep, Scope};
use ionet_net::link::Link;
use ionet_server::fleet::NetworkMeasured;
use ionet_server::{Input, Output};

use super::check::{Facts, refusal_is_true};
use super::fold;
use super::plan::{Crash, FaultKind};
use super::planted::Planted;
use super::promise::{Promise, broken, must};
use super::world::{Part, World};
use crate::random::Random;
use crate::{LabError, Result};

/// How often the chain is watched, at least, in milliseconds.
const WATCH_CHAIN_MS: u64 = 2_000;
/// After a start that was refused the operator looks into it.
const OPERATOR_MS: u64 = 3_000;

impl World {
    pub(super) fn server_start(&mut self) -> Result<()> {
        self.touch_all();
        if self.full_until_ms.is_some_and(|until_ms| self.at_ms >= until_ms) {
            self.full_until_ms = None;
            self.server.disk.mem.set_capacity(None);
        }
        if let Err(error) = self.server.start(self.now_ms()) {
            self.trace.note(self.at_ms, || format!("server: does not start, {error}"));
            self.server.stop();
            return self.operator(&error);
        }
        self.server.link = self.net.attach(self.server_endpoint);
        self.trace.note(self.at_ms, || "server: starts".into());
        match self.reread() {
            Err(LabError::Journal { .. }) if self.mirror.is_some() => {
                self.put_back_the_mirror();
                Ok(())
            }
            Err(LabError::Promise { what, .. }) if self.mirror.is_some() => {
                broken(Promise::DamageRefused, what)
            }
            other => {
                self.mirror = None;
                other
            }
        }
    }

    /// What is done about a start that was refused.
    fn operator(&mut self, error: &LabError) -> Result<()> {
        if self.mirror.is_some() {
            self.put_back_the_mirror();
            return Ok(());
        }
        self.server.start_due_ms = self.at_ms + OPERATOR_MS;
        if self.full_until_ms.is_some() {
            // Whatever a start that failed left half written is as after a crash.
            self.server.disk = self.server.disk.restart(Keep::Everything);
            return Ok(());
        }
        broken(Promise::Restarts, error.to_string())
    }

    /// Damage was found: the disk is replaced by what it was.
    fn put_back_the_mirror(&mut self) {
        self.server.stop();
        self.server.start_due_ms = self.at_ms + OPERATOR_MS;
        let Some(mirror) = self.mirror.take() else { return };
        self.trace.note(self.at_ms, || "the damage was found; the disk is put back".into());
        self.server.disk = mirror;
        if self.plants(Planted::DamageCut) {
            self.cut_the_journal();
        }
    }

    /// The planted fault: what is damaged is cut off, and on it goes.
    fn cut_the_journal(&mut self) {
        let names = self.server.disk.list().unwrap_or_default();
        if let Some(name) = names.iter().rev().find(|name| name.ends_with(".public")) {
            let bytes = self.server.disk.size(name).unwrap_or_default();
            let _ = self.server.disk.truncate(name, bytes * 2 / 3);
        }
    }

    /// The whole chain is verified and held against what was published and answered; what is new in it is folded.
    pub(super) fn reread(&mut self) -> Result<()> {
        let disk = self.server.disk.clone();
        let Self { check, devices, chain, false_hardware, plan, .. } = self;
        let running =
            |id, lease| devices.iter().any(|device| device.enrolment.device == id && device.running(lease));
        let calm = plan.faults.len() <= 1 && plan.scenario == super::Scenario::Calm;
        let facts = Facts { running: &running, chain, false_hardware, calm };
        let mut seq = 0;
        fold::scan(&disk, Scope::Full, |record| {
            seq = record.seq;
            check.book.reread(record)?;
            if record.seq <= check.shadow.events {
                return Ok(());
            }
            let event = fold::event(record)?;
            if check.restored { check.fold(&event) } else { check.take(&event, &facts) }
        })?;
        check.book.reread_all(seq)
    }

    pub(super) fn server_input(&mut self) -> Result<()> {
        let Some(mut input) = self.server.inbox.pop_front() else { return Ok(()) };
        self.trace.detail(self.at_ms, || format!("server: takes {}", show_input(&input)));
        self.spoil_input(&mut input);
        let now_ms = self.now_ms();
        if let (Input::Submit(Some(ticket), command), Some(core)) = (&input, &self.server.core) {
            let ticket = *ticket;
            let view = core.view().read();
            let decided = decide(&view.state, command, now_ms);
            if let Err(refusal) = &decided {
                refusal_is_true(&view.state, command, refusal, now_ms)?;
                self.check.book.refusals.insert(ticket, refusal.clone());
            }
            drop(view);
            if let (true, Ok(events)) = (self.plants(Planted::AnswerBeforeCommit), decided) {
                self.check.book.promise((self.server.next_seq()..).zip(events).collect());
            }
        }
        self.server.step(now_ms, input);
        if self.random.chance(700_000) { self.server_commit() } else { Ok(()) }
    }

    /// Planted faults of what reaches the server.
    fn spoil_input(&mut self, input: &mut Input) {
        let Some(planted) = self.plan.planted else { return };
        match (planted, input) {
            (
                Planted::ExpiredQuote,
                Input::Submit(_, Command { body: CommandBody::PlaceOrder { quote, .. }, .. }),
            ) => {
                quote.expires_ms = u64::MAX;
            }
            (
                Planted::OtherPrice,
                Input::Submit(_, Command { body: CommandBody::PlaceOrder { quote, .. }, .. }),
            ) => {
                for item in &mut quote.items {
                    item.rate.0 += 1_000;
                }
                quote.add_up();
            }
            (Planted::BelievePayment, Input::ChainPaid(payout, paid @ Err(_))) => {
                let payout = self.check.shadow.payouts.get(payout);
                let amount = payout.map_or(0, |payout| payout.transfer.amount);
                *paid = Ok(Paid { reference: "believed".into(), amount });
            }
            (Planted::LosePayments, Input::ChainPaid(_, paid)) => *paid = Err("lost".into()),
            _ => {}
        }
    }

    pub(super) fn server_tick(&mut self) {
        self.server.tick_due_ms = self.at_ms + self.plan.pace.server_ms;
        if self.plants(Planted::Sleepy) && self.fault_random.chance(2_000) {
            self.stalled_until_ms = self.at_ms + 120_000;
        }
        self.plant_commands();
        self.server.step(self.now_ms(), Input::Tick);
        if self.plants(Planted::SnapshotAhead) && self.server.staged_events() > 0 {
            self.server.snapshot_ahead();
        }
    }

    pub(super) fn server_commit(&mut self) -> Result<()> {
        if self.server.staged_events() > 0 {
            self.spoil_disk();
        }
        match self.server.commit() {
            Ok(outputs) => {
                for output in outputs {
                    self.release(output)?;
                }
                Ok(())
            }
            Err(error) => {
                self.trace.note(self.at_ms, || format!("server: ends, {error}"));
                self.crash_server();
                Ok(())
            }
        }
    }

    /// Faults of the disk under the next operations.
    fn spoil_disk(&mut self) {
        let before = self.server.disk.mem.operations();
        if let Some(mut random) = self.strikes(FaultKind::DiskFails, 2_500) {
            let faults = [
                Fault::PowerLoss,
                Fault::PowerLoss,
                Fault::FailedSync,
                Fault::ShortWrite { bytes: random.index(3_000) },
                Fault::Fail(std::io::ErrorKind::Other),
            ];
            let fault = random.one_of(&faults).copied().unwrap_or(Fault::PowerLoss);
            self.trace.note(self.at_ms, || format!("FAULT: the server's disk will have {fault:?}"));
            self.server.disk.mem.plan(before + random.below(4), fault);
        }
        if let Some(Crash::Disk(operation)) = self.plan.crash {
            self.server.disk.mem.plan(operation, Fault::PowerLoss);
        }
        if self.at_ms < self.slow_until_ms {
            self.stalled_until_ms = self.at_ms + self.random.between(50, 2_500);
        }
    }

    fn release(&mut self, output: Output) -> Result<()> {
        let Output::Published(mut events) = output else {
            self.server.outbox.push_back(output);
            return Ok(());
        };
        self.spoil_published(&mut events);
        let calm = self.calm();
        let Self { check, devices, at_ms, trace, summary, chain, false_hardware, .. } = self;
        let running =
            |id, lease| devices.iter().any(|device| device.enrolment.device == id && device.running(lease));
        let facts = Facts { running: &running, chain, false_hardware, calm };
        for published in events {
            trace.note(*at_ms, || format!("journal: {} {:?}", published.seq, published.event.public));
            let is_order = matches!(published.event.public, ionet_domain::PublicBody::OrderAccepted { .. });
            summary.orders += u64::from(is_order);
            check.book.published(&published)?;
            check.take(&published.event, &facts)?;
        }
        Ok(())
    }

    pub(super) fn server_snapshot(&mut self) -> Result<()> {
        if let Err(error) = self.server.write_snapshot() {
            // As the shell: a start from the one before takes longer, that is all.
            self.trace.note(self.at_ms, || format!("server: no snapshot, {error}"));
            return Ok(());
        }
        let names = self.server.disk.list().unwrap_or_default();
        let Some(name) = names.iter().rev().find(|name| name.ends_with(".snapshot")) else { return Ok(()) };
        let Some((seq, state)) = fold::read_snapshot(&self.server.disk, name) else { return Ok(()) };
        must(state.events == seq, Promise::SnapshotFolds, || {
            format!("the snapshot of record {seq} has {} events in it", state.events)
        })?;
        let same = self.check.shadow.events != seq || state == self.check.shadow;
        must(same, Promise::SnapshotFolds, || format!("the snapshot of record {seq} is another state"))?;
        if self.plants(Planted::SnapshotAltered) {
            fold::alter_snapshot(&self.server.disk, name);
        }
        Ok(())
    }

    pub(super) fn server_output(&mut self) -> Result<()> {
        let Some(mut output) = self.server.outbox.pop_front() else { return Ok(()) };
        self.spoil_output(&mut output);
        self.trace.note(self.at_ms, || format!("server: {}", show_output(&output)));
        match output {
            Output::Answer(ticket, answer) => {
                if self.plants(Planted::AnswerTwice) {
                    self.take_answer(ticket, answer.clone())?;
                }
                return self.take_answer(ticket, answer);
            }
            Output::Tell(endpoint, message) => self.tell(endpoint, *message),
            Output::Probe(endpoint) => {
                let measured = NetworkMeasured { rtt_us: 900, down_mbit_s: 900, up_mbit_s: 700 };
                self.later(200, Input::Probed(endpoint, measured));
            }
            Output::Pay { payout, account, asset, amount } => {
                let mut id = payout;
                if self.plants(Planted::PayTwice) {
                    id = PayoutId::from_parts(payout.at_ms(), self.unique());
                }
                let paid = self.chain.pay(id, account, asset, amount).map_err(|error| error.to_string());
                self.later(300, Input::ChainPaid(payout, paid));
            }
            Output::Find(lease) => {
                let found = self.check.book.orders.contains(&lease.order);
                self.later(50, Input::Found(lease, found));
            }
            Output::Published(_) => {}
        }
        Ok(())
    }

    fn later(&mut self, most_ms: u64, input: Input) {
        let due_ms = self.at_ms + self.random.between(1, most_ms);
        let n = self.number();
        self.delayed.insert((due_ms, n), input);
    }

    pub(super) fn deliver_delayed(&mut self) {
        if let Some((_, input)) = self.delayed.pop_first() {
            self.send_to_server(input);
        }
    }

    pub(super) fn chain_watch(&mut self) {
        self.server.watch_due_ms = self.at_ms + WATCH_CHAIN_MS.max(4 * self.plan.pace.server_ms);
        let Some(core) = &self.server.core else { return };
        let seen = core.view().read().deposits_seen;
        let deposits = self.chain.deposits_after(seen).unwrap_or_default();
        self.server.inbox.extend(deposits.into_iter().map(Input::ChainDeposit));
    }

    fn tell(&mut self, endpoint: ionet_domain::EndpointId, mut message: ToWorker) {
        let mut to = ionet_net::EndpointId(endpoint.0);
        if let (Some(n), ToWorker::Desired(desired)) = (self.by_endpoint.get(&to).copied(), &mut message) {
            self.devices[n].told.insert(desired.generation, desired.clone());
            while self.devices[n].told.len() > 40 {
                self.devices[n].told.pop_first();
            }
            if self.plants(Planted::EndUnknown) {
                let there = self.devices[n].supervisors.keys();
                let unwanted =
                    there.filter(|lease| !desired.leases.iter().any(|wanted| wanted.lease == **lease));
                desired.ended.extend(unwanted);
            }
            if self.plants(Planted::Misdirect) && self.fault_random.chance(100_000) {
                let other = &mut self.devices[(n + 1) % self.plan.devices];
                other.told.insert(desired.generation, desired.clone());
                to = other.endpoint;
            }
        }
        let frame = serde_json::to_vec(&message).unwrap_or_default();
        self.server.link.send(to, frame);
    }

    /// Commands that a broken server would make.
    fn plant_commands(&mut self) {
        let Some(planted) = self.plan.planted else { return };
        if !matches!(planted, Planted::WallClock | Planted::NoReceipt | Planted::EndSilent) {
            return;
        }
        let now_ms = self.now_ms();
        let mut bodies = Vec::new();
        for order in self.check.shadow.orders.values().filter(|order| order.stage == Stage::Running) {
            for (n, lease) in order.leases.iter().filter(|(_, lease)| lease.phase == LeasePhase::Ready) {
                let id = LeaseId { order: order.id, n: *n };
                let since_ms = if planted == Planted::WallClock {
                    Some(order.accepted_ms)
                } else {
                    lease.charging_since_ms
                };
                let elapsed_ms = now_ms.saturating_sub(since_ms.unwrap_or(now_ms));
                let receipt = Receipt { lease: id, elapsed_ms, heard: Vec::new(), signature: String::new() };
                let silent = self
                    .by_device
                    .get(&lease.device)
                    .is_some_and(|n| self.devices[*n].linked_since_ms.is_none());
                let lost = || CommandBody::ReportLost { lease: id, reason: "silent".into() };
                bodies.extend(match planted {
                    Planted::WallClock => Some(CommandBody::Meter { receipt, witness: Witness::Heartbeats }),
                    Planted::NoReceipt if silent => {
                        Some(CommandBody::Meter { receipt, witness: Witness::Nobody })
                    }
                    Planted::EndSilent if silent => Some(lost()),
                    _ => None,
                });
            }
        }
        for body in bodies {
            self.server.step(now_ms, Input::Submit(None, Command { id: None, actor: Actor::Server, body }));
        }
    }

    /// The process dies; what it had not synced may be lost.
    pub(super) fn crash_server(&mut self) {
        let mut random = Random::new(self.plan.seed ^ (self.struck << 32) ^ self.at_ms);
        let keep = match random.below(3) {
            0 => Keep::Everything,
            1 => Keep::Nothing,
            _ => Keep::Some(random.bits()),
        };
        self.trace.note(self.at_ms, || format!("the server is down, {keep:?}"));
        self.server.stop();
        self.delayed.clear();
        self.tickets.clear();
        self.check.book.refusals.clear();
        self.server.disk = self.server.disk.restart(keep);
        // What only the crash's own act left in memory is forgotten; a planned power loss happens once.
        if matches!(self.plan.crash, Some(Crash::Disk(_))) {
            self.plan.crash = None;
        }
        let away_ms = if random.chance(100_000) { 120_000 } else { 4_000 };
        self.server.start_due_ms = self.at_ms + random.between(200, away_ms);
        let linked: BTreeSet<_> = self.devices.iter().map(|device| device.endpoint).collect();
        for endpoint in linked {
            self.net.disconnect(endpoint, self.server_endpoint);
        }
        self.poll_links();
        self.touch(Part::Server);
    }
}

fn show_input(input: &Input) -> String {
    match input {
        Input::Link(ionet_net::link::LinkEvent::Frame(_, frame)) => {
            String::from_utf8_lossy(frame).into_owned()
        }
        other => format!("{other:?}"),
    }
}

fn show_output(output: &Output) -> String {
    match output {
        Output::Tell(_, message) => format!("tells {message:?}"),
        other => format!("{other:?}"),
    }
}
