//! `ionet up`: a whole network on this machine.
//!
//! The server runs in this process; the relay and each worker are children, so that each can be killed and measured
//! alone. Supervisors of leases are nobody's children: they go on when all this ends, and the next `up` adopts them.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ionet_api::rest::{ClusterFilter, DeviceFilter, DeviceView, JoinToken, NewKey};
use ionet_api::{Secret, WalletKey};
use ionet_domain::account::Scope;
use ionet_domain::device::DeviceStage;
use ionet_domain::money::{Asset, HOUR_MS};
use ionet_domain::{Address, Stage};
use ionet_net::RelayInfo;
use ionet_worker::box_doctor::{Check, Status};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::UpArgs;
use crate::commands::server::{self, LocalServer};
use crate::commands::{doctor, worker};
use crate::context::{Context, Session, now_ms, read_json, write_json, write_private};
use crate::error::{CliError, Result, io};
use crate::machine::{Machine, Share};
use crate::process::{Ending, OwnChild};
use crate::units::{bytes, cpus, span};

const RELAY_WAIT: Duration = Duration::from_secs(15);
const POOL_WAIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(150);
/// A worker that ended by itself is started again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// What the local wallet is funded with, once.
const LOCAL_FUNDS_MICRO_USD: u64 = 1_000_000_000;
/// The supply network of local workers.
const SUPPLY_NETWORK: &str = "local";
const SUPPLY_KEY_LIFE_MS: u64 = 10 * 365 * 24 * HOUR_MS;

/// What runs from a data directory, for whoever comes later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) pid: u32,
    pub(crate) workers: u32,
    pub(crate) since_ms: u64,
}

/// A network on this machine, up while it lives.
struct Network {
    running: Running,
    server: LocalServer,
    relay: OwnChild,
    workers: Vec<OwnChild>,
    /// Simulated devices on show.
    simulated: usize,
}

/// `ionet up`
pub(crate) async fn up(context: &Context, args: &UpArgs) -> Result {
    let Some(_lock) = lock(context)? else { return already(context) };
    let mut ending = Ending::listen(args.tied)?;
    // Whatever is under way when it is told to end is ended with it, which is safe at any moment.
    let network = tokio::select! {
        network = make_ready(context, args) => network?,
        () = ending.told() => return Ok(()),
    };
    let ended = stay(context, args, network, ending).await;
    let _ = std::fs::remove_file(context.path("up.json"));
    ended
}

async fn make_ready(context: &Context, args: &UpArgs) -> Result<Network> {
    let started = Instant::now();
    let network = begin(context, args).await?;
    let session = context.session().await?;
    let (devices, checks) =
        tokio::join!(wait_for_pool(context, &session, args.workers), doctor::of_boxes(context));
    let devices = devices?;
    warn_of_what_is_missing(context, &checks.unwrap_or_default());
    let ready_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    announce(context, &network, &session, &devices, ready_ms).await?;
    Ok(network)
}

/// The one `up` of a data directory holds this lock; `None` if there is one already.
fn lock(context: &Context) -> Result<Option<File>> {
    let path = context.path("up.lock");
    std::fs::create_dir_all(&context.data_dir).map_err(io(format!("make {}", context.data_dir.display())))?;
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(io(format!("open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(io(format!("lock {}", path.display()))(error)),
    }
}

/// What runs from this data directory, if something does.
pub(crate) fn running(context: &Context) -> Result<Option<Running>> {
    if lock(context)?.is_some() {
        return Ok(None);
    }
    read_json(&context.path("up.json"))
}

fn already(context: &Context) -> Result {
    let running: Option<Running> = read_json(&context.path("up.json"))?;
    let running = running.ok_or_else(|| {
        let message = format!("another 'ionet up' is just starting in {}", context.data_dir.display());
        CliError::refused("busy", message).help("wait a moment, or use another --data-dir")
    })?;
    context.out.answer(&json!({ "already_running": true, "running": running }), |out| {
        out.line(format!(
            "already up for {}: {} with {} workers (process {})",
            span(now_ms().saturating_sub(running.since_ms)),
            running.url,
            running.workers,
            running.pid
        ));
    });
    Ok(())
}

async fn begin(context: &Context, args: &UpArgs) -> Result<Network> {
    let mut progress = context.out.progress("starting the relay");
    let (wallet, _) = context.wallet_or_new()?;
    let (relay, relay_info) = start_relay(context, args).await?;
    progress.say("starting the server");
    let server = start_server(context, args, &wallet, relay_info).await?;
    let simulated = server.simulate(args.simulate).await?;
    let url = server.url().to_owned();
    let public_url = server::public_url(context, args.listen.ip(), &url, args.public_url.as_deref());
    context.remember_served(&url, public_url)?;
    let running = Running { url, pid: std::process::id(), workers: args.workers, since_ms: now_ms() };
    progress.say("starting the workers");
    let token = join_token(context, &running.url, &wallet).await?;
    write_private(&context.path("join-token.txt"), worker::encode(&token).as_bytes())?;
    let workers = (1..=args.workers).map(|n| start_worker(context, args, n)).collect::<Result<_>>()?;
    write_json(&context.path("up.json"), &running)?;
    Ok(Network { running, server, relay, workers, simulated })
}

async fn start_relay(context: &Context, args: &UpArgs) -> Result<(OwnChild, RelayInfo)> {
    let mut words = words(&["relay", "--data-dir", &context.data_dir.display().to_string()]);
    words.extend(relay_for_others(args));
    let mut relay = OwnChild::start("the relay", &words, &context.path("logs/relay.log"))?;
    let line = relay.first_line(RELAY_WAIT).await?;
    let info = serde_json::from_str(&line)
        .map_err(|error| CliError::internal("child", format!("the relay said something odd: {error}")))?;
    Ok((relay, info))
}

/// Who listens for other machines has a relay that they can dial too.
fn relay_for_others(args: &UpArgs) -> Vec<String> {
    let ip = args.listen.ip();
    let host = match &args.public_url {
        _ if ip.is_loopback() => None,
        Some(url) => url.split("://").nth(1).map(host_of),
        None if ip.is_unspecified() => None,
        None => Some(ip.to_string()),
    };
    host.map(|host| words(&["--bind", &ip.to_string(), "--host", &host])).unwrap_or_default()
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address.
pub(crate) fn host_of(authority: &str) -> String {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default().to_owned(),
        None => authority.split(':').next().unwrap_or_default().to_owned(),
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The server, on the port it had the last time if that is free, so that what was written down stays true.
async fn start_server(
    context: &Context,
    args: &UpArgs,
    wallet: &WalletKey,
    relay: RelayInfo,
) -> Result<LocalServer> {
    let config = |listen| {
        server::local_config(context, listen, relay.clone(), wallet.address(), LOCAL_FUNDS_MICRO_USD)
    };
    if args.listen.port() == 0
        && let Some(port) = last_port(context)
    {
        let kept = SocketAddr::new(args.listen.ip(), port);
        if std::net::TcpListener::bind(kept).is_ok() {
            return LocalServer::start(config(kept)).await;
        }
    }
    LocalServer::start(config(args.listen)).await
}

fn last_port(context: &Context) -> Option<u16> {
    context.url().ok()?.rsplit(':').next()?.parse().ok()
}

/// What local workers join with: the server's address now, and a key that may enrol devices.
async fn join_token(context: &Context, url: &str, wallet: &WalletKey) -> Result<JoinToken> {
    let path = context.path("supply-key.json");
    let kept: Option<(Address, Secret)> = read_json(&path)?;
    let kept = kept.filter(|(account, _)| *account == wallet.address());
    let key = if let Some((_, key)) = kept { key } else { new_supply_key(context, wallet).await? };
    Ok(JoinToken { url: url.to_owned(), owner: wallet.address(), network: SUPPLY_NETWORK.into(), key })
}

async fn new_supply_key(context: &Context, wallet: &WalletKey) -> Result<Secret> {
    let new = NewKey {
        label: "local workers".into(),
        scopes: [Scope::Supply, Scope::Read].into(),
        cap_micro_usd: 0,
        lifetime_ms: SUPPLY_KEY_LIFE_MS,
    };
    let key = context.session().await?.client.make_key(&new).await?.token;
    write_json(&context.path("supply-key.json"), &(wallet.address(), &key))?;
    Ok(key)
}

fn start_worker(context: &Context, args: &UpArgs, n: u32) -> Result<OwnChild> {
    let Share { cpu_millis, memory_bytes, disk_bytes } =
        Machine::look(&context.data_dir)?.share(args.workers);
    let dir = context.path(format!("workers/{n}"));
    let words = words(&[
        "worker",
        "start",
        "--data-dir",
        &dir.display().to_string(),
        "--token-file",
        &context.path("join-token.txt").display().to_string(),
        "--name",
        &format!("local-{n}"),
        "--cpus",
        &cpus(cpu_millis),
        "--memory",
        &memory_bytes.to_string(),
        "--disk",
        &disk_bytes.to_string(),
        "--ask",
        &ionet_domain::money::decimal(args.ask.0, 6),
        "--environments",
        &context.path("environments").display().to_string(),
        "--never-yield",
    ]);
    OwnChild::start(&format!("worker {n}"), &words, &context.path(format!("logs/worker-{n}.log")))
}

/// Waits until as many of my devices are pooled and heard as there are workers.
async fn wait_for_pool(context: &Context, session: &Session, workers: u32) -> Result<Vec<DeviceView>> {
    let mut progress = context.out.progress("waiting for the workers");
    let until = Instant::now() + POOL_WAIT;
    let filter = DeviceFilter { mine: true, ..DeviceFilter::default() };
    loop {
        let devices = session.client.devices(&filter).await?;
        let ready = devices.iter().filter(|device| is_ready(device)).count();
        let refused = devices.iter().find_map(|device| match &device.stage {
            DeviceStage::Refused { reason } => Some(reason.clone()),
            _ => None,
        });
        if ready >= workers as usize {
            progress.done(&format!("{ready} workers measured and in the pool"));
            return Ok(devices);
        }
        if refused.is_some() || Instant::now() > until {
            let why = refused.unwrap_or_else(|| format!("not ready after {} s", POOL_WAIT.as_secs()));
            let logs = context.path("logs").display().to_string();
            progress.done(&format!("{ready} of {workers} workers are in the pool: {why}"));
            context
                .out
                .note(format!("help: 'ionet worker doctor' finds what is missing; messages are in {logs}"));
            return Ok(devices);
        }
        progress.say(&format!("{ready} of {workers} workers are measured and in the pool"));
        tokio::time::sleep(POLL).await;
    }
}

fn is_ready(device: &DeviceView) -> bool {
    device.stage == DeviceStage::Pooled && device.status != "unknown"
}

async fn announce(
    context: &Context,
    network: &Network,
    session: &Session,
    devices: &[DeviceView],
    ready_ms: u64,
) -> Result {
    let wallet = session.client.wallet().await?;
    let available =
        wallet.holdings.iter().find(|holding| holding.asset == Asset::Iosd).map_or(0, |h| h.available);
    let answer = json!({
        "url": network.running.url,
        "ready_ms": ready_ms,
        "account": wallet.account,
        "available_micro_usd": available,
        "data_dir": context.data_dir,
        "pid": network.running.pid,
        "relay_pid": network.relay.pid(),
        "worker_pids": network.workers.iter().map(OwnChild::pid).collect::<Vec<_>>(),
        "devices": devices.iter().map(|device| device.id).collect::<Vec<_>>(),
        "simulated_devices": network.simulated,
    });
    context.out.answer(&answer, |out| {
        out.line(format!("up after {}: {}", span(ready_ms), network.running.url));
        for device in devices {
            let (offered, name) = (device.offered, device.machine_name.as_deref().unwrap_or("worker"));
            let offered = format!("{} CPU, {}", cpus(offered.cpu_millis), bytes(offered.memory_bytes));
            out.line(format!("  {name}: {offered}, {} ({})", device.ask_per_unit, device.status));
        }
        if network.simulated > 0 {
            out.line(format!(
                "  and {} simulated devices, for show: nothing can be ordered on them",
                network.simulated
            ));
        }
        let funds = Asset::Iosd.show(available);
        out.line(format!("wallet {} holds {funds} of local money, which is worth nothing", wallet.account));
        let flag = data_dir_flag(context);
        out.line("next, in another terminal:");
        out.line(format!("  ionet{flag} devices"));
        out.line(format!("  ionet{flag} cluster create -n {} --for 1h", network.running.workers));
        if network.simulated > 0 {
            out.line(format!("  ionet{flag} prices"));
            out.line(format!(
                "  ionet{flag} quote --simulated --gpus 8 --gpu-model 'NVIDIA A100-SXM4-80GB' --explain"
            ));
        }
        out.note("Ctrl-C ends it; what is rented goes on for as long as it is paid");
    });
    Ok(())
}

/// A machine on which no box runs is said so before somebody pays for one.
fn warn_of_what_is_missing(context: &Context, checks: &[Check]) {
    for check in checks.iter().filter(|check| check.status == Status::Fail) {
        context.out.note(format!("warning: boxes do not run here yet: {}: {}", check.name, check.found));
        context.out.note(format!("help: {}", check.remedy));
    }
}

/// What the next commands must say to find this network.
fn data_dir_flag(context: &Context) -> String {
    if context.is_default_dir() || std::env::var_os("IONET_DATA_DIR").is_some() {
        return String::new();
    }
    format!(" --data-dir {}", context.data_dir.display())
}

/// Stays until told to end, starting again the workers that end by themselves; then ends everything and says what
/// goes on.
async fn stay(context: &Context, args: &UpArgs, mut network: Network, mut ending: Ending) -> Result {
    let failed = loop {
        tokio::select! {
            () = ending.told() => break None,
            failed = network.server.failed() => break Some(failed),
            _ = network.relay.ended() => {
                context.out.note("the relay ended; starting it again needs a new 'ionet up'");
                break Some(CliError::internal("child", "the relay ended"));
            }
            n = any_ended(&mut network.workers) => {
                context.out.note(format!("worker {} ended; starting it again", n + 1));
                tokio::time::sleep(AGAIN_AFTER).await;
                network.workers[n] = start_worker(context, args, u32::try_from(n + 1).unwrap_or(1))?;
            }
        }
    };
    let going_on = match &failed {
        None => say_what_goes_on(context).await,
        Some(_) => Ok(()),
    };
    let mut progress = context.out.progress("stopping the workers");
    for worker in network.workers {
        worker.stop().await;
    }
    progress.say("stopping the server");
    let stopped = network.server.stop().await;
    network.relay.stop().await;
    progress.done("stopped");
    failed.map_or(going_on.and(stopped), Err)
}

/// The index of the first worker that ends.
async fn any_ended(workers: &mut [OwnChild]) -> usize {
    let mut ends: Vec<_> = workers.iter_mut().map(|worker| Box::pin(worker.ended())).collect();
    std::future::poll_fn(|task| {
        let done = ends.iter_mut().position(|end| end.as_mut().poll(task).is_ready());
        done.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

async fn say_what_goes_on(context: &Context) -> Result {
    let mut clusters = context.session().await?.client.clusters(&ClusterFilter::default()).await?;
    clusters.retain(|cluster| cluster.stage < Stage::Closing);
    for cluster in &clusters {
        let left = cluster.ends_ms.map(|ends| span(ends.saturating_sub(now_ms()) / 1000 * 1000));
        let left = left.unwrap_or_else(|| "its time".into());
        context.out.note(format!(
            "{} is {} and paid for another {left}: its boxes go on without a server and are found again by the next \
             'ionet up' ('ionet cluster rm' before ends them)",
            cluster.id, cluster.stage
        ));
    }
    if clusters.is_empty() {
        context.out.note("nothing is rented");
    }
    Ok(())
}
