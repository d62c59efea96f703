//! Our own relay: pinned, gated, and enough to connect without any direct path.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use ionet_net::{
    Node, NodeConfig, Relay, RelayConfig, RelayInfo,
    link::{LinkListener, connect_link},
    relay::{Admit, ForwarderPorts, admit_all},
};

use crate::{admit, key, run, soon, until};

pub(crate) async fn relay(dir: &tempfile::TempDir, admit: Admit) -> Relay {
    let config = RelayConfig {
        bind: Ipv4Addr::LOCALHOST.into(),
        host: None,
        https_port: 0,
        http_port: 0,
        quic_port: 0,
        forwarder: ForwarderPorts::default(),
        dir: dir.path().to_path_buf(),
        admit,
    };
    Relay::spawn(config).await.expect("relay")
}

/// The relay of this folder once more, where it was.
pub(crate) async fn relay_again(dir: &tempfile::TempDir, info: &RelayInfo) -> Relay {
    let https_port = info.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let config = |https_port| RelayConfig {
        bind: Ipv4Addr::LOCALHOST.into(),
        host: None,
        https_port,
        http_port: 0,
        quic_port: info.quic_port,
        forwarder: info.forwarder.expect("ports"),
        dir: dir.path().to_path_buf(),
        admit: admit_all(),
    };
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        if let Ok(relay) = Relay::spawn(config(https_port)).await {
            return relay;
        }
        tick.tick().await;
    }
}

pub(crate) async fn behind(number: u8, relay: RelayInfo) -> Node {
    behind_all(number, vec![relay]).await
}

pub(crate) async fn behind_all(number: u8, relays: Vec<RelayInfo>) -> Node {
    let config = NodeConfig { relays, relay_only: true, ..NodeConfig::default() };
    Node::bind(&key(number), config).await.expect("bind")
}

#[test]
fn two_nodes_meet_through_the_relay_alone() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let relay = relay(&dir, admit_all()).await;
        let (server, worker) = (behind(1, relay.info()).await, behind(2, relay.info()).await);
        soon("online", server.online()).await;
        soon("online", worker.online()).await;
        let addr = server.addr();
        assert!(addr.direct.is_empty(), "{addr:?}");
        assert_eq!(addr.relays.len(), 1);
        let mut listener = LinkListener::start(&server, admit_all());
        let (ours, theirs) = tokio::join!(connect_link(&worker, &addr), soon("link", listener.accept()));
        let (ours, mut theirs) = (ours.expect("link"), theirs.expect("link"));
        ours.send(b"sealed".to_vec()).await.expect("send");
        assert_eq!(soon("frame", theirs.recv()).await.expect("recv"), b"sealed");
        let metrics = relay.metrics();
        assert!(metrics.accepted >= 2 && metrics.received_bytes > 0, "{metrics:?}");
    });
}

#[test]
fn a_relay_with_another_authority_is_not_believed() {
    run(async {
        let (dir, other) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let relay = relay(&dir, admit_all()).await;
        let impostor = self::relay(&other, admit_all()).await;
        let wrong = RelayInfo { ca_der: impostor.info().ca_der, ..relay.info() };
        let node = behind(1, wrong).await;
        let online = tokio::time::timeout(Duration::from_secs(2), node.online()).await;
        assert!(online.is_err(), "believed a wrong certificate");
        assert_eq!(relay.metrics().accepted, 0);
        node.set_relays(&[relay.info()]).await.expect("set relays");
        soon("online with the right authority", node.online()).await;
    });
}

#[test]
fn a_relay_turns_strangers_away() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let relay = relay(&dir, admit(&[2])).await;
        let friend = behind(2, relay.info()).await;
        soon("online", friend.online()).await;
        let stranger = behind(3, relay.info()).await;
        let online = tokio::time::timeout(Duration::from_secs(2), stranger.online()).await;
        assert!(online.is_err(), "admitted a stranger");
        assert_eq!(relay.metrics().accepted, 1);
    });
}

#[test]
fn a_restarted_relay_keeps_its_authority() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let first = relay(&dir, admit_all()).await;
        let ca_der = first.info().ca_der;
        first.shutdown().await;
        let second = relay(&dir, admit_all()).await;
        assert_eq!(second.info().ca_der, ca_der);
        let json = serde_json::to_string(&second.info()).expect("json");
        assert_eq!(serde_json::from_str::<RelayInfo>(&json).expect("json"), second.info());
        let node = behind(1, second.info()).await;
        soon("online", node.online()).await;
        until("the home relay shows in the address", || !node.addr().relays.is_empty()).await;
    });
}

#[test]
fn a_node_is_at_home_on_two_relays_and_on_a_third_when_both_are_lost() {
    run(async {
        let dirs = [(); 3].map(|()| tempfile::tempdir().expect("dir"));
        let mut relays = BTreeMap::new();
        for dir in &dirs {
            let relay = relay(dir, admit_all()).await;
            relays.insert(format!("{}/", relay.info().url), relay);
        }
        let infos: Vec<_> = relays.values().map(Relay::info).collect();
        let node = behind_all(1, infos.clone()).await;
        until("two homes", || node.addr().relays.len() == 2).await;
        let homes = node.addr().relays;
        let is_known = |url: &String| relays[url].metrics().accepted > 0;
        until("both know it", || homes.iter().all(is_known)).await;
        assert_eq!(node.watch_addr().borrow().relays, homes);
        let began = std::time::Instant::now();
        for url in &homes {
            relays.remove(url).expect("a home").shutdown().await;
        }
        let (third, relay) = relays.first_key_value().expect("the third");
        until("it is known at the third", || relay.metrics().accepted > 0).await;
        until("the third is a home", || node.addr().relays.contains(third)).await;
        eprintln!("at home again {:?} after both homes were lost", began.elapsed());
        node.set_relays(&[relay.info()]).await.expect("set relays");
        until("one home", || node.addr().relays == [third.clone()].into()).await;
    });
}

#[test]
fn a_relay_names_its_forwarder_and_one_of_an_older_version_has_none() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let relay = relay(&dir, admit_all()).await;
        let info = relay.info();
        let ports = info.forwarder.expect("a forwarder");
        let at = info.forwarder_at().await.expect("found");
        assert_eq!(at.udp, (Ipv4Addr::LOCALHOST, ports.udp).into());
        assert_eq!(at.second, Some((Ipv4Addr::LOCALHOST, ports.second_udp).into()));
        assert_eq!(at.tcp, Some((Ipv4Addr::LOCALHOST, ports.tcp).into()));
        assert_eq!(relay.metrics().forwarder, ionet_net::relay::ForwarderMetrics::default());
        let mut json = serde_json::to_value(&info).expect("json");
        json.as_object_mut().expect("object").remove("forwarder");
        let older: RelayInfo = serde_json::from_value(json).expect("an older relay's");
        assert!(older.forwarder_at().await.is_none());
    });
}

#[test]
fn monitors_are_told_numbers_and_nothing_else() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let relay = relay(&dir, admit_all()).await;
        let monitor = relay.monitor((Ipv4Addr::LOCALHOST, 0).into()).await.expect("a monitor");
        let ports = relay.info().forwarder.expect("a forwarder");
        let member = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let hello = [&0x10_u32.to_be_bytes()[..], &[7; 8], &[0; 36]].concat();
        member.send_to(&hello, (Ipv4Addr::LOCALHOST, ports.udp)).await.expect("send");
        soon("a cookie", member.recv(&mut [0; 64])).await.expect("receive");
        let unknown = [&0x8000_0001_u32.to_be_bytes()[..], &[7; 60]].concat();
        member.send_to(&unknown, (Ipv4Addr::LOCALHOST, ports.udp)).await.expect("send");
        until("it was counted", || relay.metrics().forwarder.dropped_packets == 1).await;
        let told = ask(monitor.local(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");
        for line in [
            "# TYPE ionet_relay_channels gauge",
            "ionet_relay_channels 0",
            "ionet_relay_hellos_total 1",
            r#"ionet_relay_dropped_packets_total{reason="unknown"} 1"#,
            r#"ionet_relay_refusals_total{reason="not_admitted"} 0"#,
            "ionet_relay_quic_connections_total 0",
        ] {
            assert!(told.lines().any(|told| told == line), "{line} is missing: {told}");
        }
        let other = ask(monitor.local(), "GET / HTTP/1.1\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
        assert_eq!(ask(monitor.local(), &"x".repeat(8 << 10)).await, "", "too long a question");
    });
}

/// Everything that is answered to a question over TCP.
async fn ask(at: std::net::SocketAddr, question: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(at).await.expect("connect");
    stream.write_all(question.as_bytes()).await.expect("ask");
    let mut told = Vec::new();
    // What was not read is why the other side may end it with a reset.
    let _ = soon("an answer", stream.read_to_end(&mut told)).await;
    String::from_utf8(told).expect("text")
}

/// CPU time of this process's threads of that name, in milliseconds.
fn cpu_ms_of(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc").flatten();
    let of = |task: std::fs::DirEntry| -> Option<u64> {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (head, rest) = stat.split_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        head.ends_with(name).then_some(ticks * 10)
    };
    tasks.filter_map(of).sum()
}

/// What the QUIC library's relay takes for a Gbit, to be set against the forwarder's `cost_of_a_gbit`.
#[test]
#[ignore = "a measurement, to be asked for by name"]
fn cost_of_a_gbit_by_the_library_s_relay() {
    let dir = tempfile::tempdir().expect("dir");
    let beside = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("relay-alone")
        .enable_all()
        .build()
        .expect("runtime");
    let (told, info) = std::sync::mpsc::channel();
    let _relay = beside.spawn(async move {
        let relay = relay(&dir, admit_all()).await;
        told.send(relay.info()).expect("told");
        std::future::pending::<()>().await;
        drop(relay);
    });
    let info = info.recv().expect("info");
    run(async {
        let (server, worker) = (behind(1, info.clone()).await, behind(2, info).await);
        soon("online", server.online()).await;
        soon("online", worker.online()).await;
        let mut listener = LinkListener::start(&server, admit_all());
        let addr = server.addr();
        let (ours, theirs) = tokio::join!(connect_link(&worker, &addr), soon("link", listener.accept()));
        let (ours, mut theirs) = (ours.expect("link"), theirs.expect("link"));
        let (before_ms, began) = (cpu_ms_of("relay-alone"), std::time::Instant::now());
        let sending = tokio::spawn(async move { while ours.send(vec![7; 64 << 10]).await.is_ok() {} });
        let mut bytes = 0;
        while began.elapsed() < Duration::from_secs(4) {
            bytes += theirs.recv().await.expect("recv").len();
        }
        sending.abort();
        let (cpu_ms, mbit) = (cpu_ms_of("relay-alone") - before_ms, bytes * 8 / 1_000_000);
        println!("the library's relay: {mbit} Mbit passed on in 4 s, {cpu_ms} CPU-ms");
    });
    beside.shutdown_background();
}
