//! The real server: files, threads and links over the loopback, with a worker of a few lines.

use std::future::Future;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ionet_api::worker::ToWorker;
use ionet_domain::account::ActivityKind;
use ionet_domain::command::CommandBody;
use ionet_domain::device::{DeviceStage, Enrolment, Hardware, Resources};
use ionet_domain::id::QuoteId;
use ionet_domain::ledger::Owner;
use ionet_domain::market::price;
use ionet_domain::money::{Asset, Rate};
use ionet_domain::order::CloseReason;
use ionet_domain::{
    Actor, Command, CommandId, DeviceId, EndpointId, LeaseId, OrderId, Params, PrivateBody, Stage,
};
use ionet_net::link::{LinkConn, connect_link};
use ionet_net::{EndpointKey, Node, NodeAddr, NodeConfig};
use ionet_server::shell::LocalFunds;
use ionet_server::{Handle, Server, ServerConfig, Span};

use crate::world::{GIB, RENTER, SUPPLIER, Worker, params, program, request};

const FUNDS: u64 = 50_000_000;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("runtime").block_on(async {
        tokio::time::timeout(Duration::from_mins(2), test).await.expect("the test ends");
    });
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_mins(1), "it never came to this: {what}");
        looks.tick().await;
    }
}

fn config(dir: &Path) -> ServerConfig {
    let params = Params { meter_period_ms: 500, dispute_window_ms: 1000, ..params() };
    let local_funds = vec![LocalFunds { account: RENTER, asset: Asset::Iosd, amount: FUNDS }];
    ServerConfig { params, local_funds, ..ServerConfig::local(dir.to_owned()) }
}

async fn start(dir: &Path) -> Server {
    Server::start(config(dir)).await.expect("the server starts")
}

async fn submit(handle: &Handle, actor: Actor, body: CommandBody) {
    let id = CommandId::from_parts(handle.now_ms(), handle.random_bits().unwrap());
    let command = Command { id: Some(id), actor, body };
    let done = handle.submit(command.clone()).await.unwrap();
    assert!(!done.events.is_empty());
    assert_eq!(handle.submit(command).await.unwrap_err().code(), "exists");
}

fn wallet(handle: &Handle) -> u64 {
    handle.read(|view| view.state.ledger.balance(Owner::Wallet(RENTER), Asset::Iosd).available())
}

#[test]
fn starts_stops_and_starts_again_where_it_was() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path()).await;
        let handle = server.handle().clone();
        let mut events = handle.subscribe();
        until("the deposit", || wallet(&handle) == FUNDS).await;
        handle.note_activity(RENTER, ActivityKind::SignedIn, None, "from here".into());
        until("it is durable", || {
            handle.read(|view| view.head.seq == view.state.events && view.state.events == 4)
        })
        .await;
        let last = loop {
            let event = events.recv().await.unwrap();
            if event.seq == 4 {
                break event;
            }
        };
        let history =
            handle.history(Some(RENTER.to_string()), Span { limit: 10, ..Span::default() }).await.unwrap();
        assert_eq!(history.iter().map(|event| event.seq).collect::<Vec<_>>(), [3, 4]);
        assert_eq!((history[1].hash, &history[1].public), (last.hash, &last.event.public));
        assert_eq!(history[1].private, Some(PrivateBody::Particulars("from here".into())));
        let info = handle.info();
        assert!(info.local && info.journal.seq == 4);
        assert_eq!(Server::start(config(dir.path())).await.unwrap_err().code(), "journal_locked");
        server.stop().await.unwrap();
        let body = CommandBody::BeginTerm { above: 0 };
        let late = handle.submit(Command { id: None, actor: Actor::Server, body }).await;
        assert_eq!(late.unwrap_err().code(), "stopping");
        for file in ["signing.key", "endpoint.key"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        drop(handle);
        let again = start(dir.path()).await;
        let next = again.handle().info();
        assert_eq!(
            (next.server, &next.server_addr),
            (info.server, &info.server_addr),
            "workers find it again"
        );
        assert!(next.term > info.term && next.journal.seq == 5);
        let events =
            again.handle().history(None, Span { after: 3, limit: 10, ..Span::default() }).await.unwrap();
        assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(wallet(again.handle()), FUNDS, "funded once");
        again.stop().await.unwrap();
    });
}

/// A worker over a real link: the script of the world's workers, in real time.
async fn work(node: Node, worker: Arc<Mutex<Worker>>, server: NodeAddr) {
    let mut tries = tokio::time::interval(Duration::from_millis(50));
    loop {
        tries.tick().await;
        if let Ok(link) = connect_link(&node, &server).await {
            worker.lock().unwrap().linked = true;
            let _ = serve(link, &worker).await;
            worker.lock().unwrap().linked = false;
        }
    }
}

async fn serve(mut link: LinkConn, worker: &Mutex<Worker>) -> Option<()> {
    let hello = worker.lock().unwrap().hello();
    link.send(serde_json::to_vec(&hello).ok()?).await.ok()?;
    let (mut beat, mut last) = (tokio::time::interval(Duration::from_millis(100)), Instant::now());
    loop {
        tokio::select! {
            frame = link.recv() => {
                let message: ToWorker = serde_json::from_slice(&frame.ok()?).ok()?;
                worker.lock().unwrap().hear(&message, 0);
            }
            _ = beat.tick() => {
                let ms = u64::try_from(last.elapsed().as_millis()).ok()?;
                last += Duration::from_millis(ms);
                worker.lock().unwrap().run(ms);
            }
        }
        let said = std::mem::take(&mut worker.lock().unwrap().said);
        for message in said {
            link.send(serde_json::to_vec(&message).ok()?).await.ok()?;
        }
    }
}

fn enrolment(endpoint: EndpointId, now_ms: u64) -> Enrolment {
    Enrolment {
        device: DeviceId::from_parts(now_ms, 1),
        owner: SUPPLIER,
        endpoint,
        network: "ionet".into(),
        tags: std::collections::BTreeSet::new(),
        ask_per_unit: Rate(1_800_000_000),
        offered: Resources {
            cpu_millis: 1000,
            memory_bytes: 2 * GIB,
            disk_bytes: 8 * GIB,
            ..Resources::default()
        },
        hardware: Hardware { cpu_threads: 2, memory_bytes: 8 * GIB, ..Hardware::default() },
        simulated: false,
    }
}

fn stage(handle: &Handle, order: OrderId) -> Option<Stage> {
    handle.read(|view| view.state.orders.get(&order).map(|order| order.stage))
}

async fn order(handle: &Handle) -> OrderId {
    let now_ms = handle.now_ms();
    let id = QuoteId::from_parts(now_ms, 7);
    let wanted = ionet_domain::market::Request { duration_ms: 60_000, ..request(1) };
    let quote = handle.read(|view| price::quote(&view.state, id, RENTER, &wanted, now_ms)).unwrap();
    let signed = handle.sign_quote(quote);
    handle.verify_quote(&signed).unwrap();
    let order = OrderId::from_parts(now_ms, 9);
    let body = CommandBody::PlaceOrder { order, quote: signed.quote, program: program() };
    submit(handle, Actor::Wallet(RENTER), body).await;
    order
}

#[test]
fn an_order_over_a_real_link_survives_a_restart() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path()).await;
        let mut handle = server.handle().clone();
        until("the deposit", || wallet(&handle) == FUNDS).await;
        let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let key = EndpointKey::from_seed([9; 32]);
        let node = Node::bind(&key, NodeConfig { bind, ..NodeConfig::default() }).await.unwrap();
        let enrolment = enrolment(EndpointId(node.id().0), handle.now_ms());
        let device = enrolment.device;
        let body = CommandBody::Enrol { enrolment, machine_name: "box".into() };
        submit(&handle, Actor::Wallet(SUPPLIER), body).await;
        let server_addr: NodeAddr = serde_json::from_value(handle.info().server_addr).unwrap();
        let worker = Arc::new(Mutex::new(Worker::new(device)));
        let working = tokio::spawn(work(node, worker.clone(), server_addr));
        until("the device is pooled", || {
            handle.read(|view| view.state.devices[&device].stage == DeviceStage::Pooled)
        })
        .await;
        let measured = handle.read(|view| view.state.devices[&device].measured.clone()).unwrap();
        assert!(measured.rtt_us > 1 && measured.network_up_mbit_s > 1, "{measured:?}");
        let order = order(&handle).await;
        until("it runs", || stage(&handle, order) == Some(Stage::Running)).await;
        let lease = LeaseId { order, n: 0 };
        let elapsed = |handle: &Handle| {
            handle.read(|view| view.state.orders.get(&order).map_or(0, |order| order.leases[&0].elapsed_ms))
        };
        until("it is metered", || elapsed(&handle) > 1000).await;

        server.stop().await.unwrap();
        assert!(worker.lock().unwrap().boxes[&lease].running, "a server that is away ends nothing");
        drop(handle);
        let server = start(dir.path()).await;
        handle = server.handle().clone();
        assert!(handle.read(|view| view.fleet.endpoint(lease).is_some()), "members stay reachable");
        let before = elapsed(&handle);
        until("it is metered again", || elapsed(&handle) > before + 1000).await;
        assert_eq!(stage(&handle, order), Some(Stage::Running));
        let close = CommandBody::Close { order, reason: CloseReason::Renter };
        submit(&handle, Actor::Wallet(RENTER), close).await;
        until("it is paid", || stage(&handle, order) == Some(Stage::Paid)).await;
        handle.read(|view| view.state.audit()).unwrap();
        let bill = handle.read(|view| view.state.orders[&order].bill());
        assert!(bill.compute_micro_usd > 1_000_000, "{bill:?}");
        assert_eq!(wallet(&handle), FUNDS - bill.total_micro_usd);
        working.abort();
        server.stop().await.unwrap();
        let tokens = dir.path().join("local-tokens.jsonl");
        let fees = Rate(0).0 + bill.compute_micro_usd * 25 / 10_000;
        let paid = ionet_chain::LocalChain::open(&tokens).unwrap().paid_to(SUPPLIER, Asset::Iosd);
        assert!(bill.compute_micro_usd - fees - paid <= 1, "{paid} of {}", bill.compute_micro_usd);
    });
}
