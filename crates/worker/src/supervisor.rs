//! The process of one lease: it holds the box, the overlay, the tunnels and the paid time.
//!
//! Always holds: it lives in its own session and, where one can be made, its own control group, and needs neither the agent nor the server to go on; when it ends, however
//! it ends, the box ends with it; at an orderly end everything is wiped and the evidence is left for the agent. What
//! it decides is in [`Supervision`]; this file only carries it out.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ionet_api::WalletKey;
use ionet_api::worker::{BoxPhase, MemberEndpoint, ObservedLease, PeerLink};
use ionet_domain::EndpointId;
use ionet_domain::order::WipeReceipt;
use ionet_domain::tunnel::Void;
use ionet_net::overlay::{Overlay, OverlayConfig, PeerPath, Privacy};
use ionet_net::{EndpointKey, Node, NodeConfig, tunnel};
use ionet_runtime::holder::{Connector, HelperExe};
use ionet_runtime::lease_box::{self, BoxConfig, LeaseBox, TUN_DEVICE};
use ionet_runtime::limits::{Hierarchy, OwnGroup};
use ionet_runtime::sandbox::{self, BoxSpec};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::assignment::box_name;
use crate::control::{self, Word};
use crate::egress::WayOut;
use crate::error::{During as _, Result, WorkerError};
use crate::files::{Brief, CappedLog, DirLock, LeaseDir, read_json, write_json};
use crate::footprint;
use crate::links::LinkWatch;
use crate::supervision::{Input, Output, Supervision};
use crate::tunnels::{Door, ssh::HostKey};

/// How often the box is looked at while it starts, and later.
const POLL_STARTING: Duration = Duration::from_millis(20);
const POLL_STEADY: Duration = Duration::from_millis(100);
const LOOK_AT_PEERS_EVERY: Duration = Duration::from_secs(1);
/// When what only the start needed is let go of, after it and again and again: what is rare comes and goes.
const LET_GO_AFTER: Duration = Duration::from_secs(2);
const LET_GO_EVERY: Duration = Duration::from_mins(1);

/// Entry point of the hidden sub-command `supervisor`: `--dir DIR`. `helper` is the executable with the box helper's
/// sub-commands.
pub fn main(args: &[String], helper: HelperExe) -> ExitCode {
    let [flag, dir] = args else {
        eprintln!("usage: supervisor --dir DIR");
        return ExitCode::from(2);
    };
    if flag != "--dir" {
        eprintln!("usage: supervisor --dir DIR");
        return ExitCode::from(2);
    }
    match start(LeaseDir::new(PathBuf::from(dir)), helper) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(code = error.code(), "{}", error.full_message());
            eprintln!("supervisor: {}", error.full_message());
            ExitCode::FAILURE
        }
    }
}

fn start(dir: LeaseDir, helper: HelperExe) -> Result<()> {
    // Signals to the agent's terminal or process group must not reach the lease. It fails only where this process
    // already leads its group, and then they do not either.
    let _ = rustix::process::setsid();
    let _lock = DirLock::take(dir.path())?;
    let log = CappedLog::open(dir.log())?;
    let log = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(Mutex::new(log))
        .finish();
    // An embedding test may have a log of its own.
    let _ = tracing::subscriber::set_global_default(log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_stack_size(512 << 10)
        .build()
        .during("start the supervisor's runtime")?;
    runtime.block_on(async { Supervisor::open(dir, helper).await?.run().await })
}

struct Supervisor {
    dir: LeaseDir,
    helper: HelperExe,
    /// As it was seen from the agent's control group, where whoever reaps looks from.
    hierarchy: Hierarchy,
    _own_group: OwnGroup,
    brief: Brief,
    logic: Supervision,
    began: Instant,
    node: Node,
    the_box: Option<LeaseBox>,
    overlay: Option<Overlay>,
    out: Option<WayOut>,
    overlay_is_up: bool,
    states: Option<watch::Sender<ObservedLease>>,
    watched: LinkWatch,
    links: watch::Sender<Vec<PeerLink>>,
    connector: watch::Sender<Option<Connector>>,
    over: watch::Sender<bool>,
    void: watch::Sender<Vec<Void>>,
    host_key: Arc<HostKey>,
    wiped: mpsc::Receiver<std::result::Result<WipeReceipt, String>>,
    tell_wiped: mpsc::Sender<std::result::Result<WipeReceipt, String>>,
    finished: bool,
}

impl Supervisor {
    async fn open(dir: LeaseDir, helper: HelperExe) -> Result<Self> {
        let brief: Brief = read_json(&dir.brief())?.ok_or_else(|| WorkerError::Damaged {
            place: dir.brief().display().to_string(),
            reason: "it is missing".into(),
        })?;
        let hierarchy = Hierarchy::detect();
        let own_group = OwnGroup::enter(&hierarchy, &box_name(brief.assignment.lease.lease));
        let progress = read_json(&dir.progress())?.unwrap_or_default();
        let key = EndpointKey::load_or_create(&dir.key())?;
        let relay_only = brief.assignment.lease.hiding.via_relay;
        let config = NodeConfig { relays: brief.relays.clone(), relay_only, ..NodeConfig::default() };
        let node = Node::bind(&key, config).await?;
        // The endpoint's key is an Ed25519 key too: receipts are signed with it.
        let signer = WalletKey::from_seed(&key.seed());
        let logic = Supervision::new(brief.assignment.clone(), signer, progress, 0);
        let (tell_wiped, wiped) = mpsc::channel(1);
        Ok(Self {
            states: Some(watch::Sender::new(logic.observed())),
            watched: LinkWatch::default(),
            links: watch::Sender::new(Vec::new()),
            logic,
            began: Instant::now(),
            node,
            the_box: None,
            overlay: None,
            out: None,
            overlay_is_up: false,
            connector: watch::Sender::new(None),
            over: watch::Sender::new(false),
            void: watch::Sender::new(brief.assignment.lease.void.clone()),
            host_key: Arc::new(HostKey::of(&key.seed())),
            wiped,
            tell_wiped,
            finished: false,
            dir,
            helper,
            hierarchy,
            _own_group: own_group,
            brief,
        })
    }

    async fn run(mut self) -> Result<()> {
        tracing::info!(lease = %self.brief.assignment.lease.lease, endpoint = %self.node.id(), "a lease begins");
        let (tell, mut words) = mpsc::channel(16);
        let Some(states) = self.states.as_ref().map(watch::Sender::subscribe) else { return Ok(()) };
        let listener =
            tokio::net::UnixListener::from_std(self.dir.listen()?).during("serve the control socket")?;
        let serving = tokio::spawn(control::serve(listener, tell, states, self.links.subscribe()));
        let _tunnels = self.serve_tunnels();
        let mut addr = self.node.watch_addr();
        let mut poll = interval(POLL_STARTING);
        let mut peers = interval(LOOK_AT_PEERS_EVERY);
        let mut shrink = interval(LET_GO_EVERY);
        for timer in [&mut poll, &mut peers, &mut shrink] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        self.tell_endpoint();
        while !self.finished {
            tokio::select! {
                Some(word) = words.recv() => self.hear(word).await,
                Some(wiped) = self.wiped.recv() => self.take_wiped(wiped),
                Ok(()) = addr.changed() => self.tell_endpoint(),
                _ = peers.tick() => {
                    self.note_egress();
                    self.look_at_peers();
                }
                _ = shrink.tick(), if self.is_steady() => footprint::let_go(),
                _ = poll.tick() => {
                    let before = self.is_steady();
                    self.poll();
                    if self.is_steady() != before {
                        if !before {
                            // The overlay and its relays are still being found.
                            shrink.reset_after(LET_GO_AFTER);
                        }
                        poll = interval(if before { POLL_STARTING } else { POLL_STEADY });
                        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    }
                }
            }
        }
        // Without the states' sender every client reads the last state and is let go.
        self.states = None;
        let _ = serving.await;
        self.node.close().await;
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Up or ended: nothing moves from one moment to the next.
    fn is_steady(&self) -> bool {
        !matches!(self.logic.observed().phase, BoxPhase::Starting | BoxPhase::Preparing { .. })
    }

    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.logic.step(self.now_ms(), input) {
                if let Some(failed) = self.carry_out(output) {
                    inputs.push_back(failed);
                }
            }
        }
    }

    /// Does what the logic wants; what comes of it at once is the next input.
    fn carry_out(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::StartBox(spec) => self.start_box(*spec),
            Output::RestartEngine => self.restart_engine(),
            Output::SetPeers(peers) => {
                if let Some(overlay) = &self.overlay {
                    overlay.set_members(peers);
                }
                None
            }
            Output::RemoveBox { reason } => {
                self.remove_box(&reason);
                None
            }
            Output::Report(observed) => {
                self.report(&observed);
                None
            }
            Output::Save(progress) => self.keep(write_json(&self.dir.progress(), &*progress)),
            Output::SaveAssignment(assignment) => {
                self.brief.assignment = *assignment;
                if let Some(out) = &mut self.out {
                    out.follow(&self.brief.assignment.lease);
                }
                self.void.send_replace(self.brief.assignment.lease.void.clone());
                self.keep(write_json(&self.dir.brief(), &self.brief))
            }
            Output::Warn(text) => {
                tracing::warn!("{text}");
                None
            }
            Output::Finish => {
                self.finished = true;
                None
            }
        }
    }

    /// A file that cannot be written makes the lease poorer after a crash; it does not end it.
    #[expect(clippy::unused_self, reason = "reads as the step that it is")]
    fn keep(&self, written: Result<()>) -> Option<Input> {
        if let Err(error) = written {
            tracing::error!("{}", error.full_message());
        }
        None
    }

    fn start_box(&mut self, spec: BoxSpec) -> Option<Input> {
        let config = BoxConfig {
            lease_dir: self.dir.box_dir(),
            environments_dir: self.brief.environments_dir.clone(),
            helper: self.helper.clone(),
            tun_device: TUN_DEVICE.into(),
            hierarchy: self.hierarchy.clone(),
            resolver: ionet_egress::RESOLVER,
            out_mtu: ionet_egress::MTU_BYTES.into(),
            spec,
        };
        let ip = config.spec.ip;
        let made = LeaseBox::start(config, self.began).map_err(WorkerError::from);
        let started = made.and_then(|(the_box, devices)| {
            self.connector.send_replace(Some(the_box.connector()));
            self.the_box = Some(the_box);
            let lease = &self.logic.assignment().lease;
            self.out = Some(WayOut::start(lease, self.brief.egress.clone(), ip, devices.out)?);
            self.tell_own_addresses();
            self.start_overlay(ip, devices.overlay)
        });
        let error = started.err()?;
        tracing::error!("{}", error.full_message());
        Some(Input::BoxFailed { reason: format!("{}: {}", error.code(), error.full_message()) })
    }

    fn start_overlay(&mut self, me: std::net::Ipv4Addr, tun: OwnedFd) -> Result<()> {
        let assignment = self.logic.assignment();
        let config = OverlayConfig {
            cluster: assignment.cluster(),
            me,
            members: assignment.peers(),
            relays: self.brief.relays.clone(),
            mtu: ionet_net::overlay::MTU_BYTES,
            privacy: privacy(assignment.lease.hiding),
        };
        self.overlay = Some(Overlay::start(&self.node, config, tun)?);
        Ok(())
    }

    fn restart_engine(&mut self) -> Option<Input> {
        let the_box = self.the_box.as_mut()?;
        tracing::info!("the engine is started again");
        let error = the_box.restart_engine(Instant::now()).err()?;
        Some(Input::BoxFailed { reason: format!("{}: {}", error.code(), error.full_message()) })
    }

    /// Ends and wipes beside the loop: a large disk takes its time.
    fn remove_box(&mut self, reason: &str) {
        tracing::info!(reason, "the lease ends");
        self.over.send_replace(true);
        self.connector.send_replace(None);
        self.overlay = None;
        self.note_egress();
        self.out = None;
        let the_box = self.the_box.take();
        let (name, dir) = (box_name(self.brief.assignment.lease.lease), self.dir.box_dir());
        let (tell, hierarchy) = (self.tell_wiped.clone(), self.hierarchy.clone());
        tokio::task::spawn_blocking(move || {
            let first = the_box.map(LeaseBox::remove);
            let wiped = match first {
                Some(Ok(wiped)) if wiped.finished => Ok(wiped),
                _ => lease_box::reap(&name, &dir, &hierarchy),
            };
            // Nobody listens only when the process is at its end.
            let _ = tell.blocking_send(wiped.map(evidence).map_err(|error| error.full_message()));
        });
    }

    /// Wiping that failed is tried again, with a wait, for as long as this process lives.
    fn take_wiped(&mut self, wiped: std::result::Result<WipeReceipt, String>) {
        match wiped {
            Ok(wipe) => self.step(Input::Wiped(wipe)),
            Err(error) => {
                tracing::error!(error, "the box could not be wiped; trying again");
                let (name, dir) = (box_name(self.brief.assignment.lease.lease), self.dir.box_dir());
                let (tell, hierarchy) = (self.tell_wiped.clone(), self.hierarchy.clone());
                tokio::task::spawn_blocking(move || {
                    std::thread::sleep(Duration::from_secs(1));
                    let wiped = lease_box::reap(&name, &dir, &hierarchy);
                    let _ = tell.blocking_send(wiped.map(evidence).map_err(|error| error.full_message()));
                });
            }
        }
    }

    fn report(&mut self, observed: &ObservedLease) {
        if matches!(observed.phase, BoxPhase::Removed { .. }) {
            self.keep(self.dir.write_end(observed));
        }
        if matches!(observed.phase, BoxPhase::Exited { .. } | BoxPhase::Lost { .. }) {
            self.over.send_replace(true);
        }
        if let Some(states) = &self.states {
            let before = states.send_replace(observed.clone());
            if before.phase != observed.phase {
                tracing::info!(phase = ?observed.phase, "the box");
            }
        }
    }

    async fn hear(&mut self, word: Word) {
        match word {
            Word::Assign(brief) => {
                if brief.relays != self.brief.relays {
                    if let Err(error) = self.node.set_relays(&brief.relays).await {
                        tracing::warn!(%error, "the new relays are not used");
                    } else {
                        if let Some(overlay) = &self.overlay {
                            overlay.set_relays(brief.relays.clone());
                        }
                        self.brief.relays.clone_from(&brief.relays);
                    }
                }
                self.brief.own_addresses = brief.own_addresses;
                self.tell_own_addresses();
                self.step(Input::Assigned(Box::new(brief.assignment)));
            }
            Word::Remove => self.step(Input::Remove),
        }
    }

    fn note_egress(&mut self) {
        if let Some(out) = &self.out {
            self.logic.note_egress(out.used());
        }
    }

    /// Where others see this host: boxes reach it by no such address either.
    fn tell_own_addresses(&self) {
        if let Some(out) = &self.out {
            let addr = self.node.addr();
            let own = addr.direct.iter().map(std::net::SocketAddr::ip);
            out.set_own_addresses(own.chain(self.brief.own_addresses.iter().copied()).collect());
        }
    }

    fn tell_endpoint(&mut self) {
        self.tell_own_addresses();
        let Ok(addr) = serde_json::to_value(self.node.addr()) else { return };
        self.step(Input::Endpoint(MemberEndpoint { id: EndpointId(self.node.id().0), addr }));
    }

    fn poll(&mut self) {
        let now = Instant::now();
        let input = match &mut self.the_box {
            Some(the_box) => Input::Box(the_box.poll(now)),
            None => Input::Tick,
        };
        self.step(input);
        if !self.overlay_is_up {
            self.look_at_peers();
        }
    }

    /// Who is there over the overlay: a witness of its time, and the sign that packets flow.
    fn look_at_peers(&mut self) {
        let Some(overlay) = &self.overlay else { return };
        let stats = overlay.stats();
        let up = |ip| stats.iter().any(|peer| peer.ip == ip && peer.path != PeerPath::Down);
        let others = || self.logic.assignment().others();
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let members = others().map(|member| (member.ip, member.lease.n)).collect();
        if let Some(links) = self.watched.look(now_ms, &stats, &members) {
            self.links.send_replace(links);
        }
        let heard: BTreeSet<u32> = others().filter(|member| up(member.ip)).map(|m| m.lease.n).collect();
        let all = others().count() == heard.len();
        if all && !self.overlay_is_up {
            self.overlay_is_up = true;
            if let Some(the_box) = &mut self.the_box {
                the_box.overlay_is_up(Instant::now());
            }
        }
        if !heard.is_empty() {
            self.step(Input::Heard(heard));
        }
    }

    fn serve_tunnels(&self) -> tunnel::TunnelServer {
        let assignment = self.logic.assignment();
        let ip = assignment.box_spec().map_or(std::net::Ipv4Addr::UNSPECIFIED, |spec| spec.ip);
        let door = Door {
            network: assignment.network.clone(),
            server: assignment.server,
            lease: assignment.lease.lease,
            ip,
            connector: self.connector.subscribe(),
            log_dir: self.dir.box_dir().join("log"),
            over: self.over.subscribe(),
            void: self.void.subscribe(),
            host_key: Arc::clone(&self.host_key),
        };
        // Whoever has a grant may come; the grant is asked for with each stream.
        let admit = Arc::new(|_| true);
        tunnel::serve(&self.node, admit, move |peer, request| door.clone().open(peer, request))
    }
}

/// The runtime's receipt in the words of the journal.
pub(crate) fn evidence(wiped: sandbox::WipeReceipt) -> WipeReceipt {
    let method = if wiped.finished {
        wiped.method
    } else {
        format!("{}; NOT CONFIRMED: something of it was still found afterwards", wiped.method)
    };
    WipeReceipt {
        files: wiped.files,
        bytes: wiped.bytes,
        processes_killed: u32::try_from(wiped.processes_killed).unwrap_or(u32::MAX),
        method,
    }
}

/// Ends and wipes what is left of a lease whose supervisor is gone, and keeps the evidence.
pub(crate) fn reap(dir: &LeaseDir, lease: ionet_domain::LeaseId) -> Result<ObservedLease> {
    if dir.is_held() {
        return Err(WorkerError::Busy { place: dir.path().display().to_string() });
    }
    let hierarchy = Hierarchy::detect();
    // What it was preparing may go on without it.
    OwnGroup::clear(&hierarchy, &box_name(lease));
    let wiped = lease_box::reap(&box_name(lease), &dir.box_dir(), &hierarchy)?;
    let mut observed = dir.last_word(lease, "");
    if !matches!(observed.phase, BoxPhase::Removed { .. }) {
        observed.phase = BoxPhase::Removed { wipe: evidence(wiped) };
    }
    if dir.path().exists() {
        dir.write_end(&observed)?;
    }
    Ok(observed)
}

/// Drops what is left of a lease whose end was told.
pub(crate) fn forget(dir: &LeaseDir, lease: ionet_domain::LeaseId) -> Result<()> {
    OwnGroup::clear(&Hierarchy::detect(), &box_name(lease));
    dir.remove()
}

/// What the overlay hides of what the order asks to be hidden.
fn privacy(hiding: ionet_domain::market::Hiding) -> Privacy {
    let ionet_domain::market::Hiding { private, via_relay, split_relays } = hiding;
    Privacy { padded: private, via_relay, split_relays }
}
