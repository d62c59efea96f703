//! A real server on a free port with its journal in a temporary directory, wallets with money, and a stand-in for the
//! worker's agent on a real link.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use ionet_api::rest::{EnrolRequest, EventFilter, NewKey, SignedQuote};
use ionet_api::worker::{
    BoxPhase, FromWorker, Generation, MemberEndpoint, ObservedLease, Telemetry, ToWorker,
};
use ionet_api::{Client, Secret, WalletKey};
use ionet_domain::account::{ActivityKind, Scope};
use ionet_domain::command::CommandBody;
use ionet_domain::device::{DeviceStage, Enrolment, Hardware, Measured, Resources};
use ionet_domain::id::TransferKind;
use ionet_domain::market::{EngineKind, Program, Request};
use ionet_domain::order::WipeReceipt;
use ionet_domain::{
    Actor, Address, Asset, Command, DeviceId, EndpointId, LeaseId, OrderId, Rate, Stage, TransferId,
};
use ionet_net::link::{LinkConn, connect_link};
use ionet_net::{EndpointKey, Node, NodeAddr, NodeConfig};
use ionet_server::{Handle, Server, ServerConfig, View};
use tempfile::TempDir;
use tokio::sync::broadcast::error::RecvError;

/// Fails the test instead of hanging.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Runs a test in its own small runtime.
pub(crate) fn run(test: impl Future<Output = ()>) {
    // As the binary does before it makes a client; the second test finds it done.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("runtime").block_on(test);
}

/// A wallet of a test's actor; the same number is the same wallet.
pub(crate) fn wallet(number: u8) -> WalletKey {
    WalletKey::from_seed(&[number; 32])
}

/// A network with one server.
pub(crate) struct Network {
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
}

impl Network {
    /// Starts with an empty journal.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with other settings.
    pub(crate) async fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut config = ServerConfig::local(dir.path().to_owned());
        change(&mut config);
        let server = Server::start(config).await.expect("server");
        Self { server, dir }
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.server.handle()
    }

    pub(crate) fn url(&self) -> &str {
        self.server.url()
    }

    pub(crate) fn nobody(&self) -> Client {
        Client::new(self.url()).expect("client")
    }

    pub(crate) async fn signed_in(&self, wallet: &WalletKey) -> Client {
        let mut client = self.nobody();
        client.sign_in(&self.handle().network(), wallet).await.expect("sign in");
        client
    }

    /// A client by a new key of `owner` with these scopes.
    pub(crate) async fn with_key(
        &self,
        owner: &Client,
        scopes: &[Scope],
        cap_micro_usd: u64,
    ) -> (Client, Secret) {
        let made = owner.make_key(&new_key(scopes, cap_micro_usd)).await.expect("key");
        (self.nobody().with_token(made.token.clone()), made.token)
    }

    /// Deposits IOSD, as the chain's watcher would.
    pub(crate) async fn fund(&self, account: Address, amount: u64) {
        let id = self.transfer_id(TransferKind::Deposit);
        let reference = id.to_string();
        let body = CommandBody::Deposit { id, reference, account, asset: Asset::Iosd, amount };
        self.handle().submit(Command { id: None, actor: Actor::Server, body }).await.expect("deposit");
    }

    pub(crate) fn transfer_id(&self, kind: TransferKind) -> TransferId {
        TransferId { scope: self.order_id().bits(), kind, n: 0 }
    }

    pub(crate) fn order_id(&self) -> OrderId {
        OrderId::from_parts(self.handle().now_ms(), self.handle().random_bits().expect("random"))
    }

    /// Where the server keeps the key that it signs with.
    pub(crate) fn signing_key_path(&self) -> std::path::PathBuf {
        self.dir.path().join("signing.key")
    }

    pub(crate) fn head_seq(&self) -> u64 {
        self.handle().read(|view| view.head.seq)
    }

    /// How many denials stand in the activity log of a client, once there is one.
    pub(crate) async fn denied_lines(&self, client: &Client) -> usize {
        soon("a denial in the log", async {
            loop {
                let log = client.activity(&EventFilter::default()).await.expect("activity");
                let denied = log.iter().filter(|line| line.kind == ActivityKind::Denied).count();
                if denied > 0 {
                    return denied;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Stops the server and waits until it is down.
    pub(crate) async fn stop(self) {
        soon("the end of the server", self.server.stop()).await.expect("stop");
    }

    /// Waits until the view is as wanted, looking after every event.
    pub(crate) async fn until<T>(&self, what: &str, wanted: impl Fn(&View) -> Option<T>) -> T {
        let mut events = self.handle().subscribe();
        soon(what, async {
            loop {
                if let Some(found) = self.handle().read(&wanted) {
                    return found;
                }
                let event = tokio::time::timeout(Duration::from_millis(200), events.recv()).await;
                assert!(!matches!(event, Ok(Err(RecvError::Closed))), "the server ended: {what}");
            }
        })
        .await
    }

    /// Enrols a device for `owner`, links it and waits until it is pooled.
    pub(crate) async fn pool(&self, owner: &Client, owner_address: Address, number: u8) -> Worker {
        let worker = Worker::enrol(self, owner, owner_address, number).await;
        let device = worker.device;
        self.until("the device is pooled", |view| {
            let found = view.state.devices.get(&device)?;
            let connected = found.contact == ionet_domain::device::Contact::Connected;
            (found.stage == DeviceStage::Pooled && connected).then_some(())
        })
        .await;
        worker
    }

    /// Orders one member for an hour and waits until it runs.
    pub(crate) async fn running_cluster(&self, renter: &Client) -> OrderId {
        let quote = renter.quote(&request()).await.expect("quote");
        let id = self.order_id();
        renter.order(&order(id, quote)).await.expect("order");
        self.until("the cluster runs", |view| {
            (view.state.orders.get(&id)?.stage == Stage::Running).then_some(())
        })
        .await;
        id
    }
}

pub(crate) fn new_key(scopes: &[Scope], cap_micro_usd: u64) -> NewKey {
    let scopes: BTreeSet<_> = scopes.iter().copied().collect();
    NewKey { label: "a test's".into(), scopes, cap_micro_usd, lifetime_ms: 3_600_000 }
}

/// One member for an hour on any device.
pub(crate) fn request() -> Request {
    Request {
        engine: EngineKind::Command,
        members: 1,
        per_member: Resources {
            cpu_millis: 1000,
            memory_bytes: 64 << 20,
            disk_bytes: 0,
            ..Resources::default()
        },
        duration_ms: 3_600_000,
        gpu_model: None,
        network: None,
        tags: BTreeSet::new(),
        tier: None,
        spread: false,
        egress: ionet_domain::market::Egress::On,
        hiding: ionet_domain::market::Hiding::default(),
        max_rate: None,
        priority: ionet_domain::market::Priority::Normal,
        buy: ionet_domain::market::Buy::default(),
        mega: false,
        simulated: false,
        upkeep: ionet_domain::market::Upkeep::default(),
        asset: Asset::Iosd,
        ..Request::default()
    }
}

pub(crate) fn order(id: OrderId, quote: SignedQuote) -> ionet_api::rest::OrderRequest {
    let env = [("WORD".to_owned(), PRIVATE_WORD.to_owned())].into();
    let program = Program { argv: vec!["sleep".into(), "9".into()], env, ..Program::default() };
    ionet_api::rest::OrderRequest { id, quote, program }
}

/// Stands in every test order's program, which nobody but the workers may see.
pub(crate) const PRIVATE_WORD: &str = "xyzzy-only-for-workers";
/// Stands in every test device's machine name, which nobody but the owner may see.
pub(crate) const PRIVATE_NAME: &str = "plugh-in-the-cellar";

/// An enrolment with four threads to hire at a tenth of a dollar each.
pub(crate) fn enrolment(device: DeviceId, owner: Address, endpoint: EndpointId) -> Enrolment {
    let memory_bytes = 4 << 30;
    Enrolment {
        device,
        owner,
        endpoint,
        network: "ionet".into(),
        tags: BTreeSet::from(["test".to_owned()]),
        ask_per_unit: Rate(100_000),
        offered: Resources { cpu_millis: 4000, memory_bytes, disk_bytes: 1 << 30, ..Resources::default() },
        hardware: Hardware {
            cpu_model: "Abacus".into(),
            cpu_threads: 4,
            memory_bytes,
            ..Hardware::default()
        },
        simulated: false,
    }
}

/// A stand-in for a worker's agent: passes its check and says that every desired lease is up.
pub(crate) struct Worker {
    pub(crate) device: DeviceId,
    pub(crate) endpoint: EndpointId,
    pub(crate) node: Node,
    agent: tokio::task::JoinHandle<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

impl Worker {
    async fn enrol(network: &Network, owner: &Client, address: Address, number: u8) -> Self {
        let key = EndpointKey::from_seed([number; 32]);
        let node =
            Node::bind(&key, NodeConfig { bind: vec![([127, 0, 0, 1], 0).into()], ..NodeConfig::default() });
        let node = node.await.expect("node");
        let endpoint = EndpointId(key.id().0);
        let device = DeviceId::from_parts(network.handle().now_ms(), u128::from(number));
        let enrolment = enrolment(device, address, endpoint);
        let request = EnrolRequest { enrolment, machine_name: PRIVATE_NAME.into() };
        owner.enrol(&request).await.expect("enrol");
        let info = owner.network().await.expect("network");
        let server: NodeAddr = serde_json::from_value(info.server_addr).expect("address");
        let link = soon("a link", connect_link(&node, &server)).await.expect("link");
        let agent = tokio::spawn(agent(node.clone(), link, device, endpoint));
        Self { device, endpoint, node, agent }
    }
}

async fn agent(node: Node, mut link: LinkConn, device: DeviceId, endpoint: EndpointId) {
    let hello = FromWorker::Hello {
        device,
        version: "test".into(),
        generation: Generation::default(),
        observed: Vec::new(),
    };
    say(&link, &hello).await;
    say(&link, &FromWorker::Telemetry(Telemetry { cpu_percent: 42, ..Telemetry::default() })).await;
    while let Ok(frame) = link.recv().await {
        let answer = match serde_json::from_slice(&frame).expect("a message") {
            ToWorker::Welcome(_) => continue,
            ToWorker::Check => FromWorker::Checked(Ok(measured())),
            ToWorker::Ping { n, payload } => FromWorker::Pong { n, payload },
            ToWorker::Desired(desired) => {
                let leases = desired.leases.iter().map(|lease| (lease.lease, BoxPhase::Ready));
                let removed = || BoxPhase::Removed { wipe: WipeReceipt::default() };
                let ended = desired.ended.iter().map(|lease| (*lease, removed()));
                let addr = serde_json::to_value(node.addr()).expect("address");
                let observed =
                    leases.chain(ended).map(|(lease, phase)| observed(lease, phase, endpoint, &addr));
                FromWorker::Observed(observed.collect())
            }
        };
        say(&link, &answer).await;
    }
}

async fn say(link: &LinkConn, message: &FromWorker) {
    // A server that is going down needs no answer.
    let _ = link.send(serde_json::to_vec(message).expect("json")).await;
}

fn observed(lease: LeaseId, phase: BoxPhase, id: EndpointId, addr: &serde_json::Value) -> ObservedLease {
    ObservedLease {
        lease,
        phase,
        parts_ms: vec![("box".into(), 12)],
        receipt: None,
        endpoint: Some(MemberEndpoint { id, addr: addr.clone() }),
        engine_restarts: 0,
        egress: None,
    }
}

fn measured() -> Measured {
    Measured {
        cpu_one_mb_s: 400,
        cpu_all_mb_s: 1600,
        memory_mb_s: 5000,
        disk_write_mb_s: 200,
        disk_read_mb_s: 300,
        network_down_mbit_s: 900,
        network_up_mbit_s: 700,
        rtt_us: 300,
        gpus: Vec::new(),
        enforcement: Some("cgroup".into()),
    }
}
