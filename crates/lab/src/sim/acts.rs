//! What each part does when it is its turn.

use std::collections::BTreeSet;

use ionet_api::worker::ToWorker;
use ionet_chain::Chain;
use ionet_domain::command::CommandBody;
use ionet_domain::device::Measured;
use ionet_domain::market::EngineKind;
use ionet_domain::meter::{Receipt, Witness};
use ionet_domain::order::{LeasePhase, Stage};
use ionet_domain::{Actor, Command, LeaseId, PayoutId, decide};
use ionet_journal::{Fault, Keep, Scope};
use ionet_net::link::Link;
use ionet_server::fleet::NetworkMeasured;
use ionet_server::{Input, Output};
use ionet_worker::agent;
use ionet_worker::supervision::Progress;

use super::device::{Folder, TICK_MS};
use super::fold;
use super::plan::Crash;
use super::supervisor::{Supervisor, Word};
use super::world::World;
use crate::Result;

/// How often the server's shell lets its core reconcile when nothing happened, in milliseconds.
const SERVER_TICK_MS: u64 = 1_000;
const WATCH_CHAIN_MS: u64 = 2_000;

impl World {
    pub(super) fn server_start(&mut self) -> Result<()> {
        self.server.start(self.now_ms())?;
        self.server.link = self.net.attach(self.server_endpoint);
        self.trace.note(self.at_ms, || "server: starts".into());
        self.reread()
    }

    /// The checker reads the whole journal, as after every start.
    pub(super) fn reread(&mut self) -> Result<()> {
        let Self { check, devices, server, at_ms, .. } = self;
        check.begin_again();
        let disk = server.disk.clone();
        let running = |lease| devices.iter().any(|device| device.running(lease));
        let mut seq = 0;
        fold::fold(&disk, Scope::Full, |record, event, _| {
            seq += 1;
            check.reread(record)?;
            check.take(event, *at_ms, &running)
        })?;
        check.reread_all(seq)
    }

    pub(super) fn server_input(&mut self) -> Result<()> {
        let Some(input) = self.server.inbox.pop_front() else { return Ok(()) };
        self.trace.detail(self.at_ms, || format!("server: takes {}", show_input(&input)));
        let now_ms = self.now_ms();
        if self.plan.planted.answer_before_commit
            && let (Input::Submit(Some(ticket), command), Some(core)) = (&input, &mut self.server.core)
        {
            let first = core.engine().head().seq + core.engine().staged() + 1;
            let decided = decide(&core.view().read().state, command, now_ms);
            if let Ok(events) = decided {
                let ticket = *ticket;
                self.take_answer(ticket, Ok((first..).zip(events).collect()));
            }
        }
        self.server.step(now_ms, input);
        if self.random.chance(700_000) { self.server_commit() } else { Ok(()) }
    }

    pub(super) fn server_tick(&mut self) {
        self.server.tick_due_ms = self.at_ms + SERVER_TICK_MS;
        self.plant_commands();
        self.server.step(self.now_ms(), Input::Tick);
    }

    pub(super) fn server_commit(&mut self) -> Result<()> {
        let before = self.server.disk.mem.operations();
        if self.plan.chance && !self.healed && self.random.chance(600) {
            self.server.disk.mem.plan(before + self.random.below(3), Fault::PowerLoss);
        }
        if let Some(Crash::Disk(operation)) = self.plan.crash {
            self.server.disk.mem.plan(operation, Fault::PowerLoss);
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

    fn release(&mut self, output: Output) -> Result<()> {
        let Output::Published(events) = output else {
            self.server.outbox.push_back(output);
            return Ok(());
        };
        let Self { check, devices, at_ms, trace, summary, .. } = self;
        let running = |lease| devices.iter().any(|device| device.running(lease));
        for published in events {
            trace.note(*at_ms, || format!("journal: {} {:?}", published.seq, published.event.public));
            summary.orders += u64::from(published.event.public.name() == "order_accepted");
            check.published(&published)?;
            check.take(&published.event, *at_ms, &running)?;
        }
        Ok(())
    }

    pub(super) fn server_snapshot(&mut self) {
        if let Err(error) = self.server.write_snapshot() {
            self.trace.note(self.at_ms, || format!("server: no snapshot, {error}"));
            self.crash_server();
        }
    }

    pub(super) fn server_output(&mut self) {
        let Some(output) = self.server.outbox.pop_front() else { return };
        self.trace.note(self.at_ms, || format!("server: {}", show_output(&output)));
        match output {
            Output::Answer(ticket, answer) => self.take_answer(ticket, answer),
            Output::Tell(endpoint, message) => self.tell(endpoint, *message),
            Output::Probe(endpoint) => {
                let measured = NetworkMeasured { rtt_us: 900, down_mbit_s: 900, up_mbit_s: 700 };
                self.later(200, Input::Probed(endpoint, measured));
            }
            Output::Pay { payout, account, asset, amount } => {
                let mut id = payout;
                if self.plan.planted.pay_twice {
                    id = PayoutId::from_parts(payout.at_ms(), self.unique());
                }
                let paid = self.chain.pay(id, account, asset, amount).map_err(|error| error.to_string());
                self.later(300, Input::ChainPaid(payout, paid));
            }
            Output::Find(lease) => {
                let core = self.server.core.as_ref();
                let known = core.map(|core| core.view().read().state.orders.contains_key(&lease.order));
                let found = self.server.has_order(lease.order);
                if let (Some(Ok(found)), Some(_)) = (found, known) {
                    self.later(50, Input::Found(lease, found));
                }
            }
            Output::Published(_) => {}
        }
    }

    fn later(&mut self, most_ms: u64, input: Input) {
        let due_ms = self.at_ms + self.random.between(1, most_ms);
        let n = self.number();
        self.delayed.insert((due_ms, n), input);
    }

    pub(super) fn deliver_delayed(&mut self) {
        if let Some((_, input)) = self.delayed.pop_first() {
            self.server.inbox.push_back(input);
        }
    }

    pub(super) fn chain_watch(&mut self) {
        self.server.watch_due_ms = self.at_ms + WATCH_CHAIN_MS;
        let Some(core) = &self.server.core else { return };
        let seen = core.view().read().deposits_seen;
        let deposits = self.chain.deposits_after(seen).unwrap_or_default();
        self.server.inbox.extend(deposits.into_iter().map(Input::ChainDeposit));
    }

    fn tell(&mut self, endpoint: ionet_domain::EndpointId, mut message: ToWorker) {
        if let (true, ToWorker::Desired(desired)) = (self.plan.planted.end_unknown, &mut message) {
            let device = self.devices.iter().find(|device| device.enrolment.endpoint == endpoint);
            let there = device.into_iter().flat_map(|device| device.supervisors.keys());
            let unwanted = there.filter(|lease| !desired.leases.iter().any(|wanted| wanted.lease == **lease));
            desired.ended.extend(unwanted);
        }
        let frame = serde_json::to_vec(&message).unwrap_or_default();
        self.server.link.send(ionet_net::EndpointId(endpoint.0), frame);
    }

    /// Commands that a broken server would make.
    fn plant_commands(&mut self) {
        let planted = self.plan.planted;
        if !planted.charge_by_wall_clock && !planted.end_silent {
            return;
        }
        let now_ms = self.now_ms();
        let mut bodies = Vec::new();
        for order in self.check.shadow.orders.values().filter(|order| order.stage == Stage::Running) {
            for (n, lease) in order.leases.iter().filter(|(_, lease)| lease.phase == LeasePhase::Ready) {
                let id = LeaseId { order: order.id, n: *n };
                let elapsed_ms = now_ms.saturating_sub(order.accepted_ms);
                let receipt = Receipt { lease: id, elapsed_ms, heard: Vec::new(), signature: String::new() };
                let device = self.devices.iter().find(|device| device.id() == lease.device);
                let silent = device.is_some_and(|device| device.linked_since_ms.is_none());
                if planted.charge_by_wall_clock {
                    bodies.push(CommandBody::Meter { receipt, witness: Witness::Heartbeats });
                } else if silent {
                    bodies.push(CommandBody::ReportLost { lease: id, reason: "silent".into() });
                }
            }
        }
        for body in bodies {
            let command = Command { id: None, actor: Actor::Server, body };
            self.server.step(now_ms, Input::Submit(None, command));
        }
    }

    pub(super) fn crash_server(&mut self) {
        let keep = match self.random.below(3) {
            0 => Keep::Everything,
            1 => Keep::Nothing,
            _ => Keep::Some(self.random.bits()),
        };
        self.trace.note(self.at_ms, || format!("FAULT: the server crashes, {keep:?}"));
        self.summary.faults += 1;
        self.server.stop();
        self.delayed.clear();
        self.server.disk = self.server.disk.restart(keep);
        // What only the crash's own act left in memory is forgotten; a planned power loss happens once.
        if matches!(self.plan.crash, Some(Crash::Disk(_))) {
            self.plan.crash = None;
        }
        let away_ms = if self.random.chance(100_000) { 120_000 } else { 4_000 };
        self.server.start_due_ms = self.at_ms + self.random.between(200, away_ms);
        for n in 0..self.devices.len() {
            self.net.disconnect(self.devices[n].endpoint, self.server_endpoint);
        }
        self.poll_links();
    }

    pub(super) fn crash_agent(&mut self, n: usize) {
        self.trace.note(self.at_ms, || format!("FAULT: agent {n} crashes"));
        self.summary.faults += 1;
        let most_ms = if self.random.chance(200_000) { 90_000 } else { 5_000 };
        let device = &mut self.devices[n];
        device.stop_agent();
        device.start_due_ms = self.at_ms + self.random.between(100, most_ms);
        self.net.disconnect(device.endpoint, self.server_endpoint);
        device.link = self.net.attach(device.endpoint);
        self.server.poll_link();
    }

    pub(super) fn agent_start(&mut self, n: usize) {
        self.trace.note(self.at_ms, || format!("agent {n}: starts"));
        let forgets = self.plan.planted.start_twice;
        self.devices[n].start_agent(forgets);
    }

    pub(super) fn agent_step(&mut self, n: usize) {
        let at_ms = self.at_ms;
        let device = &mut self.devices[n];
        let input = device.inbox.pop_front().unwrap_or(agent::Input::Tick);
        if matches!(input, agent::Input::Tick) {
            device.tick_due_ms = at_ms + TICK_MS;
        }
        self.trace.detail(at_ms, || format!("agent {n}: takes {input:?}"));
        if let Some(agent) = &mut device.agent {
            device.outbox.extend(agent.step(device.boot_ms + at_ms, input));
        }
    }

    pub(super) fn agent_output(&mut self, n: usize) {
        use agent::Output as O;
        let Some(output) = self.devices[n].outbox.pop_front() else { return };
        if matches!(output, O::Send(_) | O::Persist(_)) {
            self.trace.detail(self.at_ms, || format!("agent {n}: {output:?}"));
        } else {
            self.trace.note(self.at_ms, || format!("agent {n}: {output:?}"));
        }
        let device = &mut self.devices[n];
        match output {
            O::Send(message) => {
                let frame = serde_json::to_vec(&message).unwrap_or_default();
                device.link.send(self.server_endpoint, frame);
            }
            O::Persist(saved) => device.saved = *saved,
            O::StartSupervisor(assignment) => self.start_supervisor(n, *assignment),
            O::UpdateSupervisor(assignment) => {
                let lease = assignment.lease.lease;
                if let Some(supervisor) = device.supervisors.get_mut(&lease) {
                    let assigned = ionet_worker::supervision::Input::Assigned(assignment);
                    supervisor.inbox.push_back(assigned);
                }
            }
            O::RemoveLease(lease) => self.remove_lease(n, lease),
            O::ForgetLease(lease) => _ = device.folders.remove(&lease),
            O::RunCheck => device.inbox.push_back(agent::Input::CheckDone(Ok(good_measures()))),
            O::Warn(_) => {}
        }
    }

    fn start_supervisor(&mut self, n: usize, assignment: ionet_worker::assignment::Assignment) {
        let lease = assignment.lease.lease;
        let mut key = [0; 32];
        key[..16].copy_from_slice(&lease.order.bits().to_be_bytes());
        key[16..20].copy_from_slice(&lease.n.to_be_bytes());
        key[20] = u8::try_from(n).unwrap_or(0);
        let leaves_box = self.plan.planted.leave_box;
        let mut supervisor = Supervisor::new(assignment, key, self.at_ms, leaves_box);
        if supervisor.engine == EngineKind::Command && self.random.chance(300_000) {
            supervisor.exit_ms = Some(self.at_ms + self.random.between(5_000, 400_000));
        }
        let address = ionet_api::WalletKey::from_seed(&key).address();
        self.keys.insert(ionet_domain::EndpointId(address.0), lease);
        let device = &mut self.devices[n];
        device.folders.insert(lease, Folder { key, progress: Progress::default(), end: None });
        device.supervisors.insert(lease, supervisor);
    }

    fn remove_lease(&mut self, n: usize, lease: LeaseId) {
        let device = &mut self.devices[n];
        if let Some(supervisor) = device.supervisors.get_mut(&lease) {
            supervisor.inbox.push_back(ionet_worker::supervision::Input::Remove);
            return;
        }
        // Without a supervisor there is no box: the agent wipes the folder itself.
        let mut observed = match device.folders.get(&lease).and_then(|folder| folder.end.clone()) {
            Some(observed) => observed,
            None => ionet_api::worker::ObservedLease {
                lease,
                phase: ionet_api::worker::BoxPhase::Starting,
                parts_ms: Vec::new(),
                receipt: device.folders.get(&lease).and_then(|folder| folder.progress.receipt.clone()),
                endpoint: None,
                engine_restarts: 0,
            },
        };
        let wipe = ionet_domain::order::WipeReceipt { method: "folder".into(), ..Default::default() };
        observed.phase = ionet_api::worker::BoxPhase::Removed { wipe };
        device.inbox.push_back(agent::Input::Observed(observed));
    }

    pub(super) fn supervisor_step(&mut self, n: usize, lease: LeaseId) -> Result<()> {
        let heard = self.heard(n, lease);
        let at_ms = self.at_ms;
        let device = &mut self.devices[n];
        let Some(supervisor) = device.supervisors.get_mut(&lease) else { return Ok(()) };
        for word in supervisor.act(&device.host, at_ms, heard) {
            match word {
                Word::Started => {
                    self.trace.note(at_ms, || format!("device {n}: a box starts for {lease}"));
                    self.check.box_started(lease, at_ms)?;
                    if self.plan.planted.lie_about_boxes {
                        let lie = ionet_runtime::sandbox::Phase::Ready;
                        device.host.lie(&ionet_worker::assignment::box_name(lease), Some(lie));
                    }
                }
                Word::Ended(reason) => {
                    self.trace.note(at_ms, || format!("device {n}: the box of {lease} ends, {reason}"));
                    self.check.box_ended(lease, &reason, at_ms)?;
                }
                Word::Report(observed) => {
                    if let Some(folder) = device.folders.get_mut(&lease)
                        && matches!(observed.phase, ionet_api::worker::BoxPhase::Removed { .. })
                    {
                        folder.end = Some(observed.clone());
                    }
                    if device.agent.is_some() {
                        device.inbox.push_back(agent::Input::Observed(observed));
                    }
                }
                Word::Save(progress) => {
                    let receipt = progress.receipt.as_ref();
                    self.check.receipted(lease, receipt.map_or(0, |receipt| receipt.elapsed_ms));
                    if let Some(folder) = device.folders.get_mut(&lease) {
                        folder.progress = progress;
                    }
                }
                Word::Finish => {
                    device.supervisors.remove(&lease);
                    device.tell_gone(lease, "it finished");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Members whose boxes are up, wherever they are: nothing stands between them.
    fn heard(&self, n: usize, lease: LeaseId) -> BTreeSet<u32> {
        let Some(supervisor) = self.devices[n].supervisors.get(&lease) else { return BTreeSet::new() };
        if self.at_ms < supervisor.due_ms {
            return BTreeSet::new();
        }
        let peers = supervisor.peers.iter().filter_map(|peer| self.keys.get(peer));
        peers
            .filter(|peer| self.devices.iter().any(|device| device.running(**peer)))
            .map(|peer| peer.n)
            .collect()
    }

    pub(super) fn dial(&mut self, n: usize) {
        self.devices[n].dial_due_ms = self.at_ms + self.random.between(500, 4_000);
        let endpoint = self.devices[n].enrolment.endpoint;
        let Some(core) = &self.server.core else { return };
        let known = core.view().read().state.devices.values().any(|d| d.enrolment.endpoint == endpoint);
        let cut = self.cut[n];
        if known && !cut {
            self.trace.note(self.at_ms, || format!("agent {n}: links"));
            self.net.connect(self.devices[n].endpoint, self.server_endpoint);
            self.poll_links();
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
        enforcement: Some("cgroup v2".into()),
        ..Measured::default()
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
