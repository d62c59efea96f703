//! What agents and supervisors do when it is their turn, and what their shells would do around them.

use std::collections::BTreeSet;

use ionet_api::WalletKey;
use ionet_api::sign::Usage;
use ionet_api::worker::{BoxPhase, ObservedLease, Telemetry, ToWorker};
use ionet_domain::market::EngineKind;
use ionet_domain::meter::Receipt;
use ionet_domain::order::WipeReceipt;
use ionet_domain::{EndpointId, LeaseId};
use ionet_net::link::Link;
use ionet_worker::agent;
use ionet_worker::agent::Saved;
use ionet_worker::assignment::{Assignment, box_name};
use ionet_worker::supervision::{self, Progress};

use super::device::Folder;
use super::machine::links;
use super::plan::FaultKind;
use super::planted::Planted;
use super::promise::{Promise, must};
use super::supervisor::{Supervisor, Word};
use super::world::{Part, START_MS, World};
use crate::Result;
use crate::random::Random;

/// Telemetry is sent every so many ticks.
const TELEMETRY_EVERY: u64 = 6;

impl World {
    pub(super) fn crash_agent(&mut self, n: usize) {
        self.trace.note(self.at_ms, || format!("agent {n} is down"));
        let mut random = Random::new(self.plan.seed ^ (self.struck << 32) ^ self.at_ms ^ 1);
        let most_ms = if random.chance(200_000) { 90_000 } else { 5_000 };
        let device = &mut self.devices[n];
        device.stop_agent();
        device.start_due_ms = self.at_ms + random.between(100, most_ms);
        self.net.disconnect(device.endpoint, self.server_endpoint);
        device.link = self.net.attach(device.endpoint);
        self.poll_links();
        self.touch(Part::Device(n));
    }

    pub(super) fn agent_start(&mut self, n: usize) {
        self.trace.note(self.at_ms, || format!("agent {n}: starts"));
        let forgets = self.plants(Planted::StartTwice);
        self.devices[n].start_agent(forgets);
    }

    pub(super) fn agent_step(&mut self, n: usize) {
        let at_ms = self.at_ms;
        let healed = self.healed;
        let device = &mut self.devices[n];
        let mut input = device.inbox.pop_front().unwrap_or(agent::Input::Tick);
        if matches!(input, agent::Input::Tick) {
            device.tick_due_ms = at_ms + self.plan.pace.agent_ms;
            device.ticks += 1;
            if self.plan.load.varied && device.ticks.is_multiple_of(TELEMETRY_EVERY) {
                let busy = !healed && self.plan.may(FaultKind::OwnerRules);
                let busy = busy && (at_ms / 150_000 + n as u64).is_multiple_of(5);
                let foreign_cpu_percent = if busy { 90 } else { 10 };
                // Leases work hard for some minutes, then rest.
                let own_percent = if (at_ms / 240_000 + n as u64).is_multiple_of(2) { 10 } else { 0 };
                let cpu_percent = foreign_cpu_percent + own_percent;
                let telemetry = Telemetry { cpu_percent, foreign_cpu_percent, ..Telemetry::default() };
                device.inbox.push_back(agent::Input::Telemetry(telemetry));
            }
        }
        if let (true, agent::Input::FromServer(ToWorker::Desired(desired))) =
            (self.plan.plants(Planted::IgnoreGeneration), &mut input)
        {
            desired.generation = desired.generation.max(device.saved.desired.generation);
            // What it was told long before arrives once more.
            if let Some((_, old)) =
                device.told.first_key_value().filter(|(first, _)| **first < desired.generation)
            {
                let old = ionet_api::worker::Desired { generation: desired.generation, ..old.clone() };
                device.again = Some(old);
            }
        }
        if matches!(input, agent::Input::Tick)
            && let Some(old) = device.again.take()
        {
            input = agent::Input::FromServer(ToWorker::Desired(old));
        }
        self.trace.detail(at_ms, || format!("agent {n}: takes {input:?}"));
        let now_ms = device.monotonic_ms(at_ms);
        if let Some(agent) = &mut device.agent {
            device.outbox.extend(agent.step(now_ms, input));
        }
    }

    pub(super) fn agent_output(&mut self, n: usize) -> Result<()> {
        use agent::Output as O;
        let Some(output) = self.devices[n].outbox.pop_front() else { return Ok(()) };
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
            O::Persist(saved) => return self.persist(n, *saved),
            O::StartSupervisor(assignment) => self.start_supervisor(n, *assignment),
            O::UpdateSupervisor(mut assignment) => {
                let lease = assignment.lease.lease;
                if let Some(supervisor) = device.supervisors.get_mut(&lease) {
                    if self.plan.plants(Planted::KeepEgress) {
                        let kept = supervisor.may_reach().clone();
                        (assignment.lease.egress, assignment.lease.program.allow) = kept;
                    }
                    supervisor.inbox.push_back(supervision::Input::Assigned(assignment));
                }
            }
            O::RemoveLease(_) if self.plan.plants(Planted::SwallowRemove) => {}
            O::RemoveLease(lease) => self.remove_lease(n, lease),
            O::ForgetLease(lease) => {
                device.folders.remove(&lease);
                if !self.plan.plants(Planted::LeaveBox) {
                    device.host.lose(&box_name(lease));
                }
            }
            O::RunCheck => {
                let measures = device.measures.clone();
                device.inbox.push_back(agent::Input::CheckDone(measures));
            }
            O::MeasureLinks => self.measure_links(n),
            O::Warn(_) => {}
        }
        Ok(())
    }

    /// Relays attest the links; their signatures are looked at in the server's shell, which is not here.
    fn measure_links(&mut self, n: usize) {
        let (at_ms, linked) = (self.true_ms(), self.devices[n].linked_since_ms.is_some());
        let mut random = Random::new(self.plan.seed ^ (n as u64) << 40 ^ at_ms);
        let device = &mut self.devices[n];
        device.inbox.push_back(agent::Input::LinksMeasured(Vec::new()));
        if linked && !device.cut && !random.chance(100_000) {
            let mut measures = links(n, at_ms, &mut random);
            // Some say again what they said before.
            if random.chance(200_000) {
                for measure in &mut measures {
                    measure.at_ms = START_MS;
                }
            }
            let input = ionet_server::Input::LinksMeasured(EndpointId(device.endpoint.0), measures);
            self.send_to_server(input);
        }
    }

    /// What an agent keeps is what it was told last, and never older than what it had.
    fn persist(&mut self, n: usize, saved: Saved) -> Result<()> {
        let device = &mut self.devices[n];
        let (had, wish) = (device.newest, &saved.desired);
        must(wish.generation >= had, Promise::NewestWish, || {
            format!("device {n} went back from {had:?} to {:?}", wish.generation)
        })?;
        let told = device.told.get(&wish.generation);
        must(told.is_none_or(|told| same_wish(told, wish)), Promise::NewestWish, || {
            format!("device {n} follows {wish:?} and was told {told:?}")
        })?;
        device.newest = wish.generation;
        if !self.plan.plants(Planted::ForgetWish) {
            device.saved = saved;
        }
        Ok(())
    }

    fn start_supervisor(&mut self, n: usize, assignment: Assignment) {
        let lease = assignment.lease.lease;
        let mut key = [0; 32];
        key[..16].copy_from_slice(&lease.order.bits().to_be_bytes());
        key[16..20].copy_from_slice(&lease.n.to_be_bytes());
        key[20..24].copy_from_slice(&u32::try_from(n).unwrap_or(0).to_be_bytes());
        let mut random = Random::new(
            self.plan.seed ^ (n as u64) << 40 ^ u64::try_from(lease.order.bits() & 0xffff_ffff).unwrap_or(0),
        );
        let leaves_box = self.plants(Planted::LeaveBox);
        let device = &mut self.devices[n];
        let clocks = (device.monotonic_ms(self.at_ms), self.at_ms, self.plan.pace.look_ms);
        let mut supervisor = Supervisor::new(assignment, key, clocks, leaves_box);
        if supervisor.engine == EngineKind::Command && random.chance(300_000) {
            let (least_ms, most_ms) = self.plan.load.duration_ms;
            supervisor.exit_ms = Some(self.at_ms + random.between(least_ms / 10, most_ms));
        }
        let address = WalletKey::from_seed(&key).address();
        self.keys.insert(EndpointId(address.0), (lease, n));
        let name = supervisor.name.clone();
        device.folders.insert(lease, Folder { name, key, progress: Progress::default(), end: None });
        device.supervisors.insert(lease, supervisor);
    }

    fn remove_lease(&mut self, n: usize, lease: LeaseId) {
        let device = &mut self.devices[n];
        if let Some(supervisor) = device.supervisors.get_mut(&lease) {
            supervisor.inbox.push_back(supervision::Input::Remove);
            return;
        }
        // Without a supervisor there is no box: the agent wipes the folder itself.
        let mut observed = match device.folders.get(&lease).and_then(|folder| folder.end.clone()) {
            Some(observed) => observed,
            None => ObservedLease {
                lease,
                phase: BoxPhase::Starting,
                parts_ms: Vec::new(),
                receipt: device.folders.get(&lease).and_then(|folder| folder.progress.receipt.clone()),
                endpoint: None,
                engine_restarts: 0,
                egress: None,
            },
        };
        let wipe = WipeReceipt { method: "folder".into(), ..Default::default() };
        observed.phase = BoxPhase::Removed { wipe };
        device.inbox.push_back(agent::Input::Observed(observed));
    }

    pub(super) fn supervisor_step(&mut self, n: usize, lease: LeaseId) -> Result<()> {
        let heard = self.heard(n, lease);
        let at_ms = self.at_ms;
        let network = &self.plan.params.network;
        let device = &mut self.devices[n];
        device.end_programs(at_ms);
        device.host.refuse((at_ms < device.refuses_until_ms).then_some("out of disk"));
        let (now_ms, id, lies) = (device.monotonic_ms(at_ms), device.id(), device.lies);
        let Some(supervisor) = device.supervisors.get_mut(&lease) else { return Ok(()) };
        for word in supervisor.act(&device.host, at_ms, now_ms, heard) {
            match word {
                Word::Started => {
                    self.trace.note(at_ms, || format!("device {n}: a box starts for {lease}"));
                    self.check.boxes.started(lease, id, (&self.check.shadow, self.check.restored))?;
                    if self.plan.plants(Planted::DeadBoxes) || lies {
                        let lie = ionet_runtime::sandbox::Phase::Ready;
                        device.host.lie(&box_name(lease), Some(lie));
                    }
                }
                Word::Ended(reason) => {
                    self.trace.note(at_ms, || format!("device {n}: the box of {lease} ends, {reason}"));
                    self.check.boxes.stopped(lease, &reason)?;
                }
                Word::Report(mut observed) => {
                    let Some(folder) = device.folders.get_mut(&lease) else { continue };
                    if matches!(observed.phase, BoxPhase::Removed { .. }) {
                        folder.end = Some((*observed).clone());
                    }
                    if let Some(receipt) = observed.receipt.as_mut().filter(|_| lies) {
                        inflate(receipt, &folder.key, network);
                        self.check.boxes.receipted(lease, receipt.elapsed_ms);
                    }
                    if device.agent.is_some() {
                        device.inbox.push_back(agent::Input::Observed(*observed));
                    }
                }
                Word::Save(progress) => {
                    let receipt = progress.receipt.as_ref();
                    self.check.boxes.receipted(lease, receipt.map_or(0, |receipt| receipt.elapsed_ms));
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
        if !supervisor.looks(self.at_ms) {
            return BTreeSet::new();
        }
        let peers = supervisor.peers.iter().filter_map(|peer| self.keys.get(peer));
        let awake =
            |(peer, at): &&(LeaseId, usize)| !self.devices[*at].asleep() && self.devices[*at].running(*peer);
        peers.filter(awake).map(|(peer, _)| peer.n).collect()
    }

    pub(super) fn dial(&mut self, n: usize) {
        self.devices[n].dial_due_ms = self.at_ms + self.random.between(500, 4_000);
        let device = &self.devices[n];
        let Some(core) = &self.server.core else { return };
        let view = core.view().read();
        let known = view.state.devices.get(&device.id()).map(|found| found.enrolment.endpoint);
        let known = known == Some(device.enrolment.endpoint);
        drop(view);
        if known && !device.cut {
            self.trace.note(self.at_ms, || format!("agent {n}: links"));
            self.net.connect(device.endpoint, self.server_endpoint);
            self.poll_links();
        }
    }
}

/// The same leases, wanted or ended; a planted fault may have added some on the way.
fn same_wish(told: &ionet_api::worker::Desired, wish: &ionet_api::worker::Desired) -> bool {
    let leases =
        |wish: &ionet_api::worker::Desired| wish.leases.iter().map(|lease| lease.lease).collect::<Vec<_>>();
    leases(told) == leases(wish) && told.ended.iter().all(|lease| wish.ended.contains(lease))
}

/// A supplier who holds the supervisor's key signs for twice the time and a minute.
fn inflate(receipt: &mut Receipt, key: &[u8; 32], network: &str) {
    let elapsed_ms = receipt.elapsed_ms * 2 + 60_000;
    let usage = Usage { lease: receipt.lease, elapsed_ms, heard: receipt.heard.clone() };
    receipt.signature = WalletKey::from_seed(key).sign(network, &usage);
    receipt.elapsed_ms = elapsed_ms;
}
