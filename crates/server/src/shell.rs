//! The shell around the core: the writer's thread, the links, the chain's watcher, the subject index and HTTP.
//!
//! Always holds: every queue into the writer is bounded, and it waits for nobody but the disk and the links' hub, which
//! waits for nobody. A failed commit ends the server with its error. Not here: what follows from what (`core`), batches
//! (`writer`).

mod attest;
mod background;
mod hub;
mod outlet;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ionet_chain::{Chain, LocalChain};
use ionet_domain::device::DeviceStage;
use ionet_domain::{Address, Asset, Params};
use ionet_journal::{FileDisk, Options, Reader, Scope};
use ionet_net::link::IrohLink;
use ionet_net::relay::Admit;
use ionet_net::{EndpointId, Node, NodeConfig, RelayInfo};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use background::GATHER;

use crate::apps::{self, AppsConfig};
use crate::commit::Committer;
use crate::core::{Core, CoreOptions};
use crate::engine::{EngineOptions, Opened};
use crate::error::ServerError;
use crate::handle::{Handle, Inner, now_ms};
use crate::keys::{Keys, random};
use crate::view::SharedView;
use crate::writer::{Message, Writer};

/// Messages that may wait for the writer.
const QUEUED_MESSAGES: usize = 8192;
/// Events that a subscriber may be behind before it is told that some were missed.
const QUEUED_EVENTS: usize = 8192;
/// Orders that may wait for the hub, the chain or the index.
const QUEUED_ORDERS: usize = 4096;
/// How often reconcilers look when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// How often it is looked whether supervisors are reached in new ways.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(1);
/// How long requests under way get when the server stops.
const HTTP_GRACE: Duration = Duration::from_secs(6);

/// Tokens that a local network gives an account once. They are worth nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFunds {
    /// For whom.
    pub account: Address,
    /// What.
    pub asset: Asset,
    /// In minor units.
    pub amount: u64,
}

/// How to start a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where journal, keys, index and the local token ledger are.
    pub data_dir: PathBuf,
    /// Where HTTP listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// UDP addresses for links; empty means every interface. Port 0 takes the port of the last start if it is free.
    pub bind: Vec<SocketAddr>,
    /// What a new network is founded with; an old one keeps its own.
    pub params: Params,
    /// Relays to use and to tell others about.
    pub relays: Vec<RelayInfo>,
    /// Ray environments on offer, the default first: `name@sha256:digest`.
    pub environments: Vec<String>,
    /// Whether this is a local network whose money is worth nothing.
    pub local: bool,
    /// Given once to each account, by a deposit that the watcher sees; for local networks only.
    pub local_funds: Vec<LocalFunds>,
    /// A snapshot is due after this many events; 0 means never.
    pub snapshot_every: u64,
    /// How services of clusters are shown under the server's name; not at all if `None`.
    pub apps: Option<AppsConfig>,
}

impl ServerConfig {
    /// A server on the loopback with everything else as usual.
    pub fn local(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            bind: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            params: Params::default(),
            relays: Vec::new(),
            environments: Vec::new(),
            local: true,
            local_funds: Vec::new(),
            snapshot_every: 50_000,
            apps: None,
        }
    }
}

/// A running server. Dropping it without [`Server::stop`] ends it like a crash, which is safe.
pub struct Server {
    url: String,
    handle: Handle,
    opened: Opened,
    ended: oneshot::Receiver<Result<(), ServerError>>,
    stop_http: watch::Sender<bool>,
    http: tokio::task::JoinHandle<()>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.url)
    }
}

impl Server {
    /// Opens the journal, folds it, begins a term and serves.
    ///
    /// # Errors
    /// If the data directory is in use or damaged, or an address is taken.
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || Parts::open(&opening));
        let parts = opened.await.map_err(|_| ServerError::Stopping)??;
        let node = bind_node(&parts.keys, &config).await?;
        let http = TcpListener::bind(config.listen).await;
        let http = http.map_err(ServerError::io(format!("listen on {}", config.listen)))?;
        let shown = match &config.apps {
            Some(apps) => Some(apps::Bound::new(apps, &config.data_dir, &parts.keys).await?),
            None => None,
        };
        Self::run(parts, &config, &node, (http, shown))
    }

    fn run(
        parts: Parts,
        config: &ServerConfig,
        node: &Node,
        (http, shown): (TcpListener, Option<apps::Bound>),
    ) -> Result<Self, ServerError> {
        let address = http.local_addr().map_err(ServerError::io("find the address that HTTP listens on"))?;
        let Parts { core, committer, opened, keys, chain, disk } = parts;
        let view = core.view().clone();
        let (writer, inbox) = mpsc::channel(QUEUED_MESSAGES);
        let (events, _) = broadcast::channel(QUEUED_EVENTS);
        let (to_hub, hub_orders) = mpsc::channel(QUEUED_ORDERS);
        let (to_chain, chain_orders) = sync_channel(QUEUED_ORDERS);
        let (to_index, index_orders) = sync_channel(QUEUED_ORDERS);
        let journal_dir = config.data_dir.join("journal");
        let reader =
            || Ok::<_, ServerError>(Reader::new(FileDisk::open_read_only(&journal_dir)?, Scope::Full));
        let inner = Inner {
            writer: writer.clone(),
            view: view.clone(),
            events: events.clone(),
            keys,
            node: node.clone(),
            relays: config.relays.clone(),
            environments: config.environments.clone(),
            local: config.local,
            reader: reader()?,
            index_path: config.data_dir.join("index.sqlite"),
            index: Mutex::default(),
            keys_used: Mutex::default(),
            apps: shown.as_ref().map(|shown| shown.apps.clone()),
        };
        let handle = Handle(Arc::new(inner));
        let router = crate::http::router(handle.clone())?;

        let link = IrohLink::start(node, admit(view.clone()));
        let (end, ended) = oneshot::channel();
        let mut outlet =
            outlet::Outlet { hub: to_hub, chain: to_chain, index: to_index, events, disk, snapshot: None };
        let release = move |durable, waiting| outlet.release(durable, waiting);
        let one = Writer::start(core, committer, inbox, now_ms, release)?;
        let endpoints = outlet::Endpoints::new(&endpoints_path(&config.data_dir), view.clone());
        let follower = background::Follower {
            index_path: config.data_dir.join("index.sqlite"),
            reader: reader()?,
            view: view.clone(),
            writer: writer.clone(),
        };
        let watcher = background::Watcher { chain, view, writer: writer.clone() };
        let threads = vec![
            spawn("ionet-index", move || follower.run(&index_orders))?,
            spawn("ionet-chain", move || watcher.run(&chain_orders))?,
            spawn("ionet-writer", move || _ = end.send(write(one, &endpoints)))?,
        ];
        let mut tasks = vec![
            tokio::spawn(hub::run(link, hub_orders, writer.clone(), config.relays.clone())),
            tokio::spawn(background::tick(writer)),
        ];
        tasks.extend(shown.map(|shown| tokio::spawn(apps::run(handle.clone(), shown))));
        let (stop_http, stopping) = watch::channel(false);
        let http = tokio::spawn(serve(http, router, stopping));
        let url = format!("http://{address}");
        Ok(Self { url, handle, opened, ended, stop_http, http, tasks, threads })
    }

    /// Where HTTP is served: `http://address:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What HTTP is made of.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What opening the journal found: torn ends that were cut, the snapshot used.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Waits until the server ends by itself.
    ///
    /// # Errors
    /// Why it did: the process must end with a non-zero code and may be started again.
    pub async fn wait(&mut self) -> Result<(), ServerError> {
        (&mut self.ended).await.unwrap_or(Err(ServerError::Stopping))
    }

    /// Stops: what was submitted is committed and answered, then everything ends and the data directory is free.
    ///
    /// # Errors
    /// If the last commit failed.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        let asked = self.handle.0.writer.send(Message::Stop).await.is_ok();
        let result = if asked { self.wait().await } else { Ok(()) };
        let _ = self.stop_http.send(true);
        if tokio::time::timeout(HTTP_GRACE, &mut self.http).await.is_err() {
            self.http.abort();
        }
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        self.handle.0.node.close().await;
        let threads = std::mem::take(&mut self.threads);
        let join = move || threads.into_iter().for_each(|thread| _ = thread.join());
        let _ = tokio::task::spawn_blocking(join).await;
        result
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.handle.0.writer.try_send(Message::Stop);
        self.http.abort();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What is opened before anything is served.
struct Parts {
    core: Core,
    committer: Committer<FileDisk>,
    opened: Opened,
    keys: Keys,
    chain: Box<dyn Chain + Send>,
    disk: FileDisk,
}

impl Parts {
    fn open(config: &ServerConfig) -> Result<Self, ServerError> {
        let dir = &config.data_dir;
        let disk = FileDisk::open(&dir.join("journal"))?;
        let keys = Keys::load_or_create(dir)?;
        let mut salt_seed = [0; 32];
        random(&mut salt_seed)?;
        let engine = EngineOptions {
            journal: Options { check_from_snapshot: true, ..Options::default() },
            params: config.params.clone(),
            snapshot_every: config.snapshot_every,
            salt_seed,
        };
        let endpoints = read_endpoints(&endpoints_path(dir));
        let options = CoreOptions { engine, keys: keys.clone(), endpoints };
        let (core, committer, opened) = Core::open(disk.clone(), options, now_ms())?;
        report(&opened);
        let mut chain = LocalChain::open(&dir.join("local-tokens.jsonl"))?;
        for LocalFunds { account, asset, amount } in config.local_funds.iter().filter(|_| config.local) {
            chain.fund(&format!("local-funds:{account}:{asset}"), *account, *asset, *amount, now_ms())?;
        }
        Ok(Self { core, committer, opened, keys, chain: Box::new(chain), disk })
    }
}

fn report(opened: &Opened) {
    for torn in &opened.journal.torn {
        let (file, offset, bytes) = (&torn.file, torn.offset, torn.bytes);
        tracing::warn!(file, offset, bytes, "cut the end of an interrupted write that nobody was told of");
    }
    for reason in &opened.unusable_snapshots {
        tracing::warn!(reason, "passed over a snapshot");
    }
    let (snapshot_seq, folded) = (opened.snapshot_seq, opened.folded);
    tracing::info!(snapshot_seq, folded, head = opened.journal.head.seq, "the journal is open");
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ServerError> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
    spawned.map_err(ServerError::io(format!("start the thread {name}")))
}

/// The writer's thread: turns until it is stopped.
fn write(mut writer: Writer, endpoints: &outlet::Endpoints) -> Result<(), ServerError> {
    let mut saved_at = Instant::now();
    while writer.turn()? {
        if saved_at.elapsed() >= ENDPOINTS_EVERY {
            saved_at = Instant::now();
            endpoints.save();
        }
    }
    endpoints.save();
    Ok(())
}

fn endpoints_path(dir: &Path) -> PathBuf {
    dir.join("endpoints.json")
}

/// How supervisors were reached before; a cache, so what cannot be read is as good as empty.
fn read_endpoints(
    path: &Path,
) -> std::collections::BTreeMap<ionet_domain::LeaseId, ionet_api::worker::MemberEndpoint> {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Only devices that are enrolled may link.
fn admit(view: SharedView) -> Admit {
    Arc::new(move |id: EndpointId| {
        let view = view.read();
        let mut live = view.state.devices.values().filter(|device| device.stage != DeviceStage::Archived);
        live.any(|device| device.enrolment.endpoint.0 == id.0)
    })
}

/// How long the port of the last start is waited for: its sockets close a moment after the server that had them.
const LAST_PORT_WAIT: Duration = Duration::from_secs(5);

/// Binds the links' endpoint, at the port of the last start if it is free, so that workers find the server again.
async fn bind_node(keys: &Keys, config: &ServerConfig) -> Result<Node, ServerError> {
    let port_file = config.data_dir.join("link.port");
    let last = std::fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
    let node_config = |bind| NodeConfig { relays: config.relays.clone(), bind, ..NodeConfig::default() };
    let bind_at = |bind| Node::bind(&keys.endpoint, node_config(bind));
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let began = Instant::now();
    let node = loop {
        looks.tick().await;
        let Some(port) = last else { break bind_at(config.bind.clone()).await? };
        match bind_at(at_port(&config.bind, port)).await {
            Ok(node) => break node,
            Err(_) if began.elapsed() < LAST_PORT_WAIT => {}
            Err(error) => {
                tracing::warn!(port, %error, "the port of the last start is taken: workers need the new address");
                break bind_at(config.bind.clone()).await?;
            }
        }
    };
    if let Some(bound) = node.bound().first() {
        let written = std::fs::write(&port_file, bound.port().to_string());
        written.map_err(ServerError::io(format!("write {}", port_file.display())))?;
    }
    Ok(node)
}

fn at_port(bind: &[SocketAddr], port: u16) -> Vec<SocketAddr> {
    if bind.is_empty() {
        return vec![SocketAddr::from(([0, 0, 0, 0], port)), SocketAddr::from(([0_u16; 8], port))];
    }
    let with_port = |address: &SocketAddr| {
        let port = if address.port() == 0 { port } else { address.port() };
        SocketAddr::new(address.ip(), port)
    };
    bind.iter().map(with_port).collect()
}

async fn serve(listener: TcpListener, router: axum::Router, mut stopping: watch::Receiver<bool>) {
    let stopped = async move { _ = stopping.wait_for(|stop| *stop).await };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "HTTP ended");
    }
}
