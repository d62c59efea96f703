//! A server of one network, as far as a worker sees it, and a worker under test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::routing::{get, post};
use axum::{Json, Router};
use ionet_api::Secret;
use ionet_api::rest::{DeviceView, EnrolRequest, JoinToken, JournalHead, NetworkInfo};
use ionet_api::sign::Grant;
use ionet_api::worker::{BoxPhase, DesiredLease, FromWorker, MemberEndpoint, ObservedLease, ToWorker};
use ionet_domain::device::{DeviceStage, HardwareClass, OwnerRules};
use ionet_domain::money::Rate;
use ionet_domain::tunnel::{Service, Services};
use ionet_domain::{Address, EndpointId, LeaseId};
use ionet_net::link::{LinkListener, LinkSender};
use ionet_net::tunnel::TunnelRequest;
use ionet_net::{EndpointKey, Node, NodeAddr, NodeConfig};
use ionet_runtime::holder::HelperExe;
use ionet_worker::tunnels::TunnelAuth;
use ionet_worker::{Worker, WorkerConfig, WorkerError};

use crate::fixtures::{NETWORK, desired, lease, member, order, server_key, welcome, with_members};

/// What the server has heard, and to whom it can speak.
#[derive(Default)]
struct Heard {
    link: Option<LinkSender>,
    hellos: u32,
    observed: BTreeMap<LeaseId, ObservedLease>,
    others: Vec<FromWorker>,
    enrolled: Vec<EnrolRequest>,
}

pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    heard: Arc<Mutex<Heard>>,
    url: String,
    pub(crate) node: Node,
    /// The order of this site's leases; no two sites on one machine have the same.
    order: u128,
    generation: Mutex<u64>,
}

static SITES: AtomicU32 = AtomicU32::new(0);

impl Drop for Site {
    fn drop(&mut self) {
        // Whatever a failed test has left.
        for pid in processes_with(&self.folder.path().to_string_lossy()) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Site {
    pub(crate) async fn new() -> Self {
        // As the product's binary does when it starts.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let node = Node::bind(&EndpointKey::generate().unwrap(), NodeConfig::default()).await.unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        tokio::spawn(accept(LinkListener::start(&node, Arc::new(|_| true)), heard.clone()));
        let url = serve_rest(&node, heard.clone()).await;
        let folder = tempfile::tempdir().unwrap();
        let order = u128::from(std::process::id()) << 32 | u128::from(SITES.fetch_add(1, Ordering::Relaxed));
        Self { folder, heard, url, node, order, generation: Mutex::new(0) }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("worker")
    }

    pub(crate) async fn worker(&self) -> Worker {
        Worker::start(self.config()).await.unwrap()
    }

    pub(crate) async fn worker_error(&self) -> WorkerError {
        Worker::start(self.config()).await.unwrap_err()
    }

    pub(crate) fn config(&self) -> WorkerConfig {
        let join = JoinToken {
            url: self.url.clone(),
            owner: Address([9; 32]),
            network: "test-supply".into(),
            key: Secret::new("key"),
        };
        let helper = HelperExe(env!("CARGO_BIN_EXE_ionet-lease").into(), Vec::new());
        let ask = Rate(1_000);
        WorkerConfig::new(self.data_dir(), join, ask, helper)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    pub(crate) fn hellos(&self) -> u32 {
        self.heard().hellos
    }

    pub(crate) fn enrolled(&self) -> Vec<EnrolRequest> {
        self.heard().enrolled.clone()
    }

    pub(crate) fn others(&self) -> Vec<FromWorker> {
        self.heard().others.clone()
    }

    pub(crate) fn observed(&self, lease: LeaseId) -> Option<ObservedLease> {
        self.heard().observed.get(&lease).cloned()
    }

    pub(crate) async fn say(&self, said: ToWorker) {
        let link = self.heard().link.clone().expect("the worker is linked");
        link.send(serde_json::to_vec(&said).unwrap()).await.unwrap();
    }

    /// Tells the worker this desired set under the next generation.
    pub(crate) async fn want(&self, leases: Vec<DesiredLease>, ended: Vec<LeaseId>) {
        let n = {
            let mut generation = self.generation.lock().unwrap();
            *generation += 1;
            *generation
        };
        self.say(ToWorker::Desired(desired(1, n, leases, ended))).await;
    }

    /// The same leases with what the supervisors have said of how they are reached.
    pub(crate) fn with_endpoints(&self, leases: &[DesiredLease], list_generation: u64) -> Vec<DesiredLease> {
        let endpoint = |lease| self.observed(lease).and_then(|observed| observed.endpoint);
        let members: Vec<_> = leases.iter().map(|w| member(w.lease, endpoint(w.lease))).collect();
        leases.iter().map(|w| with_members(w.clone(), list_generation, members.clone())).collect()
    }

    /// Waits until the worker has said this of a lease.
    pub(crate) async fn until(
        &self,
        lease: LeaseId,
        seconds: u64,
        condition: impl Fn(&ObservedLease) -> bool,
    ) -> ObservedLease {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let observed = self.observed(lease);
            match observed {
                Some(observed) if condition(&observed) => return observed,
                observed => assert!(Instant::now() < deadline, "{observed:?}\n{}", self.log(lease)),
            }
            tokio::time::sleep(Duration::from_millis(10)).await; // poll
        }
    }

    pub(crate) async fn until_phase(&self, lease: LeaseId, phase: &BoxPhase) -> ObservedLease {
        self.until(lease, 60, |observed| observed.phase == *phase).await
    }

    pub(crate) async fn until_removed(&self, lease: LeaseId) -> ObservedLease {
        self.until(lease, 60, |observed| matches!(observed.phase, BoxPhase::Removed { .. })).await
    }

    pub(crate) fn lease_dir(&self, lease: LeaseId) -> PathBuf {
        self.data_dir().join("leases").join(lease.to_string())
    }

    /// What the box has on disk.
    pub(crate) fn box_dir(&self, lease: LeaseId) -> PathBuf {
        self.lease_dir(lease).join(lease.to_string().replace('.', "-"))
    }

    pub(crate) fn lease(&self, n: u32) -> LeaseId {
        lease(self.order, n)
    }

    /// What the supervisor was told last, and keeps.
    pub(crate) fn brief(&self, lease: LeaseId) -> String {
        fs::read_to_string(self.lease_dir(lease).join("brief.json")).unwrap_or_default()
    }

    pub(crate) fn log(&self, lease: LeaseId) -> String {
        fs::read_to_string(self.lease_dir(lease).join("supervisor.log")).unwrap_or_default()
    }

    /// The supervisor's process.
    pub(crate) fn supervisor(&self, lease: LeaseId) -> Option<i32> {
        let mut pids = processes_with(&format!("--dir {}", self.lease_dir(lease).display()));
        // A child that it has just forked has its words for a moment.
        let all = pids.clone();
        pids.retain(|pid| !parent(*pid).is_some_and(|parent| all.contains(&parent)));
        assert!(pids.len() <= 1, "one supervisor a lease: {pids:?}");
        pids.first().copied()
    }

    /// Leave for a client to open tunnels into this site's order.
    pub(crate) fn grant(&self, client: &Node, not_after_ms: u64) -> TunnelAuth {
        let grant = Grant {
            cluster: order(self.order),
            endpoint: EndpointId(client.id().0),
            account: server_key().address(),
            key: None,
            services: Services::All,
            issued_ms: 0,
            not_after_ms,
            cut_ms: None,
        };
        let signature = server_key().sign(NETWORK, &grant);
        TunnelAuth { grant, signature, follow: true, ssh_keys: Vec::new() }
    }

    pub(crate) fn request(&self, auth: &TunnelAuth, service: Service) -> TunnelRequest {
        TunnelRequest {
            cluster: order(self.order).to_string(),
            service: service.to_string(),
            auth: serde_json::to_vec(auth).unwrap(),
        }
    }
}

pub(crate) fn addr_of(endpoint: &MemberEndpoint) -> NodeAddr {
    serde_json::from_value(endpoint.addr.clone()).unwrap()
}

async fn accept(mut listener: LinkListener, heard: Arc<Mutex<Heard>>) {
    while let Some(mut link) = listener.accept().await {
        let heard = heard.clone();
        tokio::spawn(async move {
            link.send(serde_json::to_vec(&ToWorker::Welcome(welcome())).unwrap()).await.unwrap();
            heard.lock().unwrap().link = Some(link.sender());
            while let Ok(frame) = link.recv().await {
                take(&mut heard.lock().unwrap(), serde_json::from_slice(&frame).unwrap());
            }
        });
    }
}

fn take(heard: &mut Heard, said: FromWorker) {
    let observed = match said {
        FromWorker::Hello { observed, .. } => {
            heard.hellos += 1;
            observed
        }
        FromWorker::Observed(observed) => observed,
        other => {
            heard.others.push(other);
            return;
        }
    };
    heard.observed = observed.into_iter().map(|lease| (lease.lease, lease)).collect();
}

async fn serve_rest(node: &Node, heard: Arc<Mutex<Heard>>) -> String {
    let info = NetworkInfo {
        name: NETWORK.into(),
        version: "test".into(),
        server: server_key().address(),
        server_addr: serde_json::to_value(node.addr()).unwrap(),
        relays: Vec::new(),
        journal: JournalHead::default(),
        term: 1,
        environments: Vec::new(),
        fees_basis_points: (25, 25),
        local: true,
    };
    let enrol = move |Json(request): Json<EnrolRequest>| {
        let view = view(&request);
        heard.lock().unwrap().enrolled.push(request);
        async move { Json(view) }
    };
    let app = Router::new()
        .route("/v1/network", get(|| async move { Json(info) }))
        .route("/v1/devices", post(enrol));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn view(request: &EnrolRequest) -> DeviceView {
    let it = &request.enrolment;
    DeviceView {
        id: it.device,
        owner: it.owner,
        machine_name: None,
        stage: DeviceStage::Registered,
        status: "registered".into(),
        class: HardwareClass::Cpu,
        tier: None,
        network: it.network.clone(),
        tags: BTreeSet::new(),
        ask_per_unit: it.ask_per_unit,
        offered: it.offered,
        free: it.offered,
        leases: 0,
        claimed_cpu_model: String::new(),
        claimed_gpus: Vec::new(),
        measured: None,
        measured_links: Vec::new(),
        counted_bandwidth: None,
        claimed_region: None,
        region_unproven: None,
        simulated: false,
        rules: OwnerRules::default(),
        telemetry: None,
    }
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

/// Processes whose command line holds `text`, this one left out.
pub(crate) fn processes_with(text: &str) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let holds = |pid: &i32| {
        let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    };
    pids.filter(|pid| *pid != own).filter(holds).collect()
}

/// Waits for a condition on the host; long, for the machine may be busy with other tests.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await; // poll
    }
}

/// Memory of a process that is in use and not swapped out.
pub(crate) fn rss_bytes(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
