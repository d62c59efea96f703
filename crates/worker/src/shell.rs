//! The agent's process: carries out what [`Agent`] decides.
//!
//! Always holds: one agent a data directory; the link is tried again for ever; leases that run are adopted on start and
//! outlive this process. Not here: decisions (`agent`), one lease (`supervisor`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ionet_api::Client;
use ionet_api::rest::EnrolRequest;
use ionet_api::worker::{FromWorker, Telemetry};
use ionet_domain::device::{DeviceStage, Enrolment, Measured};
use ionet_domain::{DeviceId, EndpointId, LeaseId};
use ionet_net::link::{LinkSender, connect_link};
use ionet_net::{EndpointKey, NetError, Node, NodeConfig};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::agent::{Agent, AgentConfig, Input, Output};
use crate::assignment::Assignment;
use crate::attend::{self, Attendant, News};
use crate::config::{Identity, Network, Status, WorkerConfig};
use crate::control::Word;
use crate::error::{Result, WorkerError};
use crate::files::{Brief, DirLock, LeaseDir, make_dir, read_json, write_json, write_json_loosely};
use crate::telemetry::Sampler;
use crate::{check, inventory, measuring, supervisor};

const TICK: Duration = Duration::from_secs(1);
const TELEMETRY_EVERY: Duration = Duration::from_secs(5);
const RECONNECT_MIN_MS: u64 = 200;
const RECONNECT_MAX_MS: u64 = 10_000;
const REST_WAIT: Duration = Duration::from_secs(5);
const DIAL_WAIT: Duration = Duration::from_secs(20);
const BLIND_DIAL_WAIT: Duration = Duration::from_secs(3);
/// A link that lasted so long was no failed attempt.
const SETTLED: Duration = Duration::from_secs(10);

/// A running worker. Dropping or stopping it leaves its leases running.
#[derive(Debug)]
pub struct Worker {
    device: DeviceId,
    stop: watch::Sender<bool>,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Starts the agent: takes stock, enrols the machine if it is new, adopts what runs. A machine that was enrolled
    /// before starts without its server too.
    ///
    /// # Errors
    /// If another agent has the data directory, a file is damaged, or a new machine cannot be enrolled.
    pub async fn start(config: WorkerConfig) -> Result<Self> {
        make_dir(&config.data_dir)?;
        let lock = DirLock::take(&config.data_dir)?;
        let mut identity = identity(&config.data_dir)?;
        let key = EndpointKey::load_or_create(&config.data_dir.join("endpoint.key"))?;
        let hardware = inventory::take(&config.places);
        let offered = config.offered.unwrap_or_else(|| inventory::default_offer(&hardware, &config.data_dir));
        let enrolment = Enrolment {
            device: identity.device,
            owner: config.join.owner,
            endpoint: EndpointId(key.id().0),
            network: config.join.network.clone(),
            tags: config.tags.clone(),
            ask_per_unit: config.ask_per_unit,
            offered,
            hardware,
            simulated: false,
        };
        let client = Client::new(&config.join.url)?.with_token(config.join.key.clone());
        let home = Home {
            client,
            enrolment,
            machine_name: config.machine_name.clone(),
            data_dir: config.data_dir.clone(),
        };
        let network = home.join(&mut identity).await?;
        let node_config =
            NodeConfig { relays: network.relays.clone(), bind: config.bind.clone(), ..NodeConfig::default() };
        let node = Node::bind(&key, node_config).await?;
        Self::launch(config, identity.device, home, network, node, lock)
    }

    fn launch(
        config: WorkerConfig,
        device: DeviceId,
        home: Home,
        network: Network,
        node: Node,
        lock: DirLock,
    ) -> Result<Self> {
        let (tell, events) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let (shell, status) = Shell::open(config, device, &home, (&network, &node), tell)?;
        let task = tokio::spawn(async move {
            let linking = tokio::spawn(keep_link(node.clone(), home, network, shell.tell.clone()));
            shell.run(events, stopped).await;
            linking.abort();
            node.close().await;
            drop(lock);
        });
        Ok(Self { device, stop, status, task })
    }

    /// Which device this machine is.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Follows how the worker is.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Ends the agent; its leases go on.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.task.await;
    }
}

/// How the worker of a data directory is, as it last wrote it; `None` if there never was one.
///
/// # Errors
/// If the file is damaged.
pub fn status(data_dir: &Path) -> Result<Option<Status>> {
    let Some(mut status) = read_json::<Status>(&data_dir.join("status.json"))? else { return Ok(None) };
    status.running = matches!(DirLock::take(data_dir), Err(WorkerError::Busy { .. }));
    status.linked &= status.running;
    Ok(Some(status))
}

fn identity(data_dir: &Path) -> Result<Identity> {
    let path = data_dir.join("device.json");
    if let Some(identity) = read_json(&path)? {
        return Ok(identity);
    }
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| WorkerError::Join { reason: format!("the system gives no randomness ({error})") })?;
    let device = DeviceId::from_parts(unix_ms(), u128::from_le_bytes(random));
    let identity = Identity { device, enrolled: false };
    write_json(&path, &identity)?;
    Ok(identity)
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The REST side: how the machine joins and finds its server.
struct Home {
    client: Client,
    enrolment: Enrolment,
    machine_name: String,
    data_dir: PathBuf,
}

impl Home {
    /// Enrols a new machine. One that is known goes on with what it knows where the server does not answer.
    async fn join(&self, identity: &mut Identity) -> Result<Network> {
        let joined = async {
            let network = self.network().await?;
            self.enrol().await?;
            Ok(network)
        };
        match joined.await {
            Ok(network) => {
                identity.enrolled = true;
                write_json(&self.data_dir.join("device.json"), identity)?;
                Ok(network)
            }
            Err(error) if identity.enrolled && is_absence(&error) => {
                tracing::warn!("{error}; starting with what is known");
                read_json(&self.data_dir.join("network.json"))?.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn network(&self) -> Result<Network> {
        let network = Network::of(&self.client.network().await?)?;
        write_json(&self.data_dir.join("network.json"), &network)?;
        Ok(network)
    }

    /// Repeating it changes nothing: a device that is known stays as its owner has it.
    async fn enrol(&self) -> Result<()> {
        let request =
            EnrolRequest { enrolment: self.enrolment.clone(), machine_name: self.machine_name.clone() };
        let view = match self.client.enrol(&request).await {
            Ok(view) => view,
            Err(error) if error.code() == "exists" => self.client.device(self.enrolment.device).await?,
            Err(error) => return Err(error.into()),
        };
        if view.stage == DeviceStage::Archived {
            let reason =
                "its owner has deleted this device; move its data directory away to enrol it anew".into();
            return Err(WorkerError::Join { reason });
        }
        Ok(())
    }
}

/// The server is away, which is no reason to stop.
fn is_absence(error: &WorkerError) -> bool {
    error.code() == "unreachable" || error.code() == "garbled_answer"
}

/// What reaches the shell's loop.
enum Event {
    Agent(Input),
    Lease(LeaseId, News),
    Reaped(LeaseId, Result<ionet_api::worker::ObservedLease>),
    LinkUp(LinkSender, Network),
    LinkDown(String),
    Sampled(Telemetry),
}

type Tell = mpsc::UnboundedSender<Event>;

/// Waits between attempts to reach the server: from 0.2 s doubling to 10 s, each up to half longer or shorter, so that
/// a million workers do not come back in the same moment.
#[derive(Debug, Default)]
struct BackOff {
    failures: u32,
}

impl BackOff {
    fn next(&mut self, random: u32) -> Duration {
        let wait_ms = (RECONNECT_MIN_MS << self.failures.min(10)).min(RECONNECT_MAX_MS);
        self.failures += 1;
        Duration::from_millis(wait_ms / 2 + wait_ms * u64::from(random) / u64::from(u32::MAX))
    }
}

/// Keeps the link up for as long as the agent lives.
async fn keep_link(node: Node, home: Home, mut network: Network, tell: Tell) {
    let (mut back_off, mut dial_wait) = (BackOff::default(), DIAL_WAIT);
    loop {
        let (up_for, reason) = link_once(&node, &network, dial_wait, &tell).await;
        let not_admitted = matches!(reason, NetError::NotAdmitted);
        let reason = if not_admitted { "not admitted".into() } else { reason.to_string() };
        if tell.send(Event::LinkDown(reason)).is_err() {
            return;
        }
        if up_for > SETTLED {
            back_off = BackOff::default();
        }
        tokio::time::sleep(back_off.next(getrandom::u32().unwrap_or(0))).await;
        // The server may have moved, or, restored from a backup, not know this device any more.
        let fresh = timeout(REST_WAIT, home.network()).await;
        // While it is away for sure no dial is worth waiting for: it might miss the moment of its return.
        dial_wait = if matches!(fresh, Ok(Ok(_))) { DIAL_WAIT } else { BLIND_DIAL_WAIT };
        if let Ok(Ok(fresh)) = fresh {
            if let Err(error) = node.set_relays(&fresh.relays).await {
                tracing::warn!(%error, "the server's relays are not used");
            }
            network = fresh;
        }
        if not_admitted && let Ok(Err(error)) = timeout(REST_WAIT, home.enrol()).await {
            tracing::warn!("cannot enrol again: {error}");
        }
    }
}

/// One session from dial to end: how long it was up, and why it ended.
async fn link_once(node: &Node, network: &Network, dial_wait: Duration, tell: &Tell) -> (Duration, NetError) {
    let unanswered = || NetError::Closed { reason: "the server does not answer".into() };
    let dialled = timeout(dial_wait, connect_link(node, &network.server_addr)).await;
    let mut link = match dialled.unwrap_or_else(|_| Err(unanswered())) {
        Ok(link) => link,
        Err(error) => return (Duration::ZERO, error),
    };
    let began = Instant::now();
    let _ = tell.send(Event::LinkUp(link.sender(), network.clone()));
    loop {
        match link.recv().await {
            Ok(frame) => match serde_json::from_slice(&frame) {
                Ok(said) => {
                    let _ = tell.send(Event::Agent(Input::FromServer(said)));
                }
                Err(error) => {
                    tracing::warn!(%error, "a frame of the server cannot be read; update the worker");
                }
            },
            Err(error) => return (began.elapsed(), error),
        }
    }
}

struct Shell {
    config: WorkerConfig,
    agent: Agent,
    began: Instant,
    tell: Tell,
    environments_dir: PathBuf,
    network: Network,
    node: Node,
    link: Option<LinkSender>,
    attendants: BTreeMap<LeaseId, Attendant>,
    reaping: BTreeSet<LeaseId>,
    /// The processes below which nothing is foreign: the agent and its supervisors.
    own: watch::Sender<BTreeMap<Option<LeaseId>, u32>>,
    status_written: Instant,
    status: watch::Sender<Status>,
}

impl Shell {
    fn open(
        config: WorkerConfig,
        device: DeviceId,
        home: &Home,
        (network, node): (&Network, &Node),
        tell: Tell,
    ) -> Result<(Self, watch::Receiver<Status>)> {
        let saved = read_json(&config.data_dir.join("desired.json"))?.unwrap_or_default();
        let found = LeaseDir::scan(&config.data_dir.join("leases"))?;
        let offered = home.enrolment.offered.gpus as usize;
        let agent_config = AgentConfig {
            version: env!("CARGO_PKG_VERSION").into(),
            gpus: home.enrolment.hardware.gpus.iter().take(offered).map(|gpu| gpu.uuid.clone()).collect(),
            enforced: check::one_tenant_because().is_none(),
            near: network.local,
            yield_cpu_percent: config.yield_cpu_percent,
        };
        let status = watch::Sender::new(Status {
            device,
            machine_name: config.machine_name.clone(),
            pid: std::process::id(),
            running: true,
            server: config.join.url.clone(),
            linked: false,
            link_error: None,
            yielding: false,
            one_tenant_because: check::one_tenant_because(),
            leases: Vec::new(),
            telemetry: None,
            at_ms: unix_ms(),
        });
        let environments = config.environments_dir.clone();
        let mut shell = Self {
            environments_dir: environments.unwrap_or_else(|| config.data_dir.join("environments")),
            agent: Agent::new(device, agent_config, saved, found.iter().copied()),
            config,
            began: Instant::now(),
            tell,
            network: network.clone(),
            node: node.clone(),
            link: None,
            attendants: BTreeMap::new(),
            reaping: BTreeSet::new(),
            own: watch::Sender::new(BTreeMap::from([(None, std::process::id())])),
            status_written: Instant::now(),
            status,
        };
        for lease in found {
            shell.attend(lease, None);
        }
        let status = shell.status.subscribe();
        Ok((shell, status))
    }

    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>, mut stop: watch::Receiver<bool>) {
        let sampling = self.sample_for_ever();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = stop.changed() => if changed.is_err() || *stop.borrow() { break },
                Some(event) = events.recv() => self.take(event).await,
                _ = tick.tick() => {
                    self.step(Input::Tick).await;
                    if self.status_written.elapsed() >= TELEMETRY_EVERY {
                        self.write_status();
                    }
                }
            }
        }
        sampling.abort();
        self.link = None;
        self.write_status();
    }

    fn sample_for_ever(&self) -> JoinHandle<()> {
        let (tell, own) = (self.tell.clone(), self.own.subscribe());
        let (places, data_dir) = (self.config.places.clone(), self.config.data_dir.clone());
        tokio::spawn(async move {
            let mut sampler = Sampler::new(places);
            let mut every = interval(TELEMETRY_EVERY);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                let pids = own.borrow().values().copied().collect();
                let sample = sampler.sample(unix_ms(), &data_dir, &pids);
                if tell.send(Event::Sampled(sample)).is_err() {
                    return;
                }
            }
        })
    }

    async fn take(&mut self, event: Event) {
        match event {
            Event::Agent(input) => self.step(input).await,
            Event::Lease(lease, news) => self.take_news(lease, news).await,
            Event::Reaped(lease, result) => {
                self.reaping.remove(&lease);
                match result {
                    Ok(observed) => self.step(Input::Observed(observed)).await,
                    // Asked again at the next tick.
                    Err(error) => tracing::error!(%lease, "cannot wipe: {}", error.full_message()),
                }
            }
            Event::LinkUp(link, network) => {
                tracing::info!(server = %network.server_addr.id, "the link to the server is up");
                self.link = Some(link);
                self.set_network(network);
                self.status.send_modify(|status| (status.linked, status.link_error) = (true, None));
                self.write_status();
                self.step(Input::LinkUp).await;
            }
            Event::LinkDown(reason) => {
                let new = self.status.borrow().link_error.as_ref() != Some(&reason);
                if self.link.take().is_some() || new {
                    tracing::warn!(reason, "no link to the server; leases go on, trying again");
                }
                self.status.send_modify(|status| (status.linked, status.link_error) = (false, Some(reason)));
                self.step(Input::LinkDown).await;
            }
            Event::Sampled(telemetry) => {
                self.status.send_modify(|status| status.telemetry = Some(telemetry.clone()));
                self.step(Input::Telemetry(telemetry)).await;
            }
        }
    }

    async fn take_news(&mut self, lease: LeaseId, news: News) {
        match news {
            News::Attached(pid) => self.own.send_modify(|own| _ = own.insert(Some(lease), pid)),
            News::Observed(observed) => self.step(Input::Observed(*observed)).await,
            News::Links(links) => self.step(Input::Links { lease, links }).await,
            News::Gone { last, reason } => {
                self.attendants.remove(&lease);
                self.own.send_modify(|own| _ = own.remove(&Some(lease)));
                tracing::info!(%lease, reason, "a supervisor is gone");
                self.step(Input::Gone { lease, last: Some(last), reason }).await;
            }
        }
    }

    /// New relays go to the supervisors that run.
    fn set_network(&mut self, network: Network) {
        let relays_changed = network.relays != self.network.relays;
        self.network = network;
        if relays_changed {
            for wanted in self.agent.assignments() {
                self.tell_supervisor(wanted);
            }
        }
    }

    async fn step(&mut self, input: Input) {
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        for output in self.agent.step(now_ms, input) {
            self.carry_out(output).await;
        }
        let leases = self.agent.observed();
        let news = self.status.send_if_modified(|status| {
            let changed = status.leases != leases;
            status.leases = leases;
            changed
        });
        if news {
            self.write_status();
        }
    }

    async fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(said) => self.send(&said).await,
            Output::Persist(saved) => {
                if let Err(error) = write_json(&self.config.data_dir.join("desired.json"), &*saved) {
                    tracing::error!("{}", error.full_message());
                }
            }
            Output::StartSupervisor(assignment) => self.start_supervisor(*assignment),
            Output::UpdateSupervisor(assignment) => self.tell_supervisor(*assignment),
            Output::RemoveLease(lease) => self.remove(lease),
            Output::ForgetLease(lease) => {
                self.attendants.remove(&lease);
                if let Err(error) = supervisor::forget(&self.lease_dir(lease), lease) {
                    tracing::error!("{}", error.full_message());
                }
            }
            Output::RunCheck => self.check(),
            Output::MeasureLinks => self.measure_links(),
            Output::Warn(text) => tracing::warn!("{text}"),
        }
    }

    async fn send(&mut self, said: &FromWorker) {
        let Some(link) = &self.link else { return };
        let Ok(frame) = serde_json::to_vec(said) else { return };
        // A link that broke is told by its own task.
        if let Err(error) = link.send(frame).await {
            tracing::debug!(%error, "not sent");
        }
    }

    fn lease_dir(&self, lease: LeaseId) -> LeaseDir {
        LeaseDir::of(&self.config.data_dir.join("leases"), lease)
    }

    fn brief(&self, assignment: Assignment) -> Brief {
        Brief {
            assignment,
            relays: self.network.relays.clone(),
            environments_dir: self.environments_dir.clone(),
            egress: self.config.egress.clone(),
            own_addresses: self.node.addr().direct.iter().map(std::net::SocketAddr::ip).collect(),
        }
    }

    fn start_supervisor(&mut self, assignment: Assignment) {
        let lease = assignment.lease.lease;
        match attend::start(&self.lease_dir(lease), &self.brief(assignment), &self.config.helper) {
            Ok(child) => self.attend(lease, Some(child)),
            Err(error) => {
                let reason = error.full_message();
                let _ = self.tell.send(Event::Agent(Input::Gone { lease, last: None, reason }));
            }
        }
    }

    fn attend(&mut self, lease: LeaseId, child: Option<tokio::process::Child>) {
        let tell = self.tell.clone();
        let attendant = attend::attend(self.lease_dir(lease), lease, child, move |lease, news| {
            let _ = tell.send(Event::Lease(lease, news));
        });
        self.attendants.insert(lease, attendant);
    }

    fn tell_supervisor(&self, assignment: Assignment) {
        if let Some(attendant) = self.attendants.get(&assignment.lease.lease) {
            let _ = attendant.words.send(Word::Assign(Box::new(self.brief(assignment))));
        }
    }

    /// By its supervisor, or without one where that is gone.
    fn remove(&mut self, lease: LeaseId) {
        if let Some(attendant) = self.attendants.get(&lease) {
            let _ = attendant.words.send(Word::Remove);
        } else if self.reaping.insert(lease) {
            let (tell, dir) = (self.tell.clone(), self.lease_dir(lease));
            tokio::task::spawn_blocking(move || {
                let _ = tell.send(Event::Reaped(lease, supervisor::reap(&dir, lease)));
            });
        }
    }

    fn check(&self) {
        let (tell, places) = (self.tell.clone(), self.config.places.clone());
        let (data_dir, offered) = (self.config.data_dir.clone(), self.config.offered);
        tokio::task::spawn_blocking(move || {
            let threads =
                offered.map_or_else(inventory::cpu_threads, |offered| offered.cpu_millis.div_ceil(1000));
            let measured: std::result::Result<Measured, String> =
                check::measure(&places, &data_dir, threads).map_err(|error| error.full_message());
            let _ = tell.send(Event::Agent(Input::CheckDone(measured)));
        });
    }

    /// Where no relay measures, nothing comes of it.
    fn measure_links(&self) {
        let (tell, node, relays) = (self.tell.clone(), self.node.clone(), self.network.relays.clone());
        tokio::spawn(async move {
            let measured = measuring::measure(&node, &relays).await;
            let _ = tell.send(Event::Agent(Input::LinksMeasured(measured)));
        });
    }

    fn write_status(&mut self) {
        self.status_written = Instant::now();
        let (linked, yielding) = (self.link.is_some(), self.agent.is_yielding());
        self.status.send_modify(|status| {
            status.linked = linked;
            status.yielding = yielding;
            status.at_ms = unix_ms();
        });
        let status = self.status.borrow().clone();
        if let Err(error) = write_json_loosely(&self.config.data_dir.join("status.json"), &status) {
            tracing::warn!("{}", error.full_message());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_a_fifth_of_a_second_to_ten_and_differ() {
        let waits = |random| {
            let mut back_off = BackOff::default();
            (0..40).map(|_| back_off.next(random).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(waits(u32::MAX / 2)[..8], [199, 399, 799, 1599, 3199, 6399, 9999, 9999]);
        let (shortest, longest) = (waits(0), waits(u32::MAX));
        assert_eq!((shortest[0], longest[0], shortest[39], longest[39]), (100, 300, 5_000, 15_000));
    }
}
