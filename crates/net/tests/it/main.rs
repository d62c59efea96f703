//! The network crate from outside: links, relays, tunnels, overlays and the in-memory twin.

mod link;
mod measure;
mod mem_link;
mod memory;
mod overlay;
mod relay;
mod session;
mod tunnel;

use std::{future::Future, net::Ipv4Addr, sync::Arc, time::Duration};

use ionet_net::{EndpointKey, NetError, Node, NodeConfig, relay::Admit};

/// The key of a test's actor; the same number is the same key.
fn key(number: u8) -> EndpointKey {
    EndpointKey::from_seed([number; 32])
}

/// A node on the loopback.
async fn node(number: u8) -> Node {
    try_node_at(number, 0).await.expect("bind")
}

/// A node on a port that another node of ours is just leaving.
async fn node_at(number: u8, port: u16) -> Node {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        if let Ok(node) = try_node_at(number, port).await {
            return node;
        }
        tick.tick().await;
    }
}

async fn try_node_at(number: u8, port: u16) -> Result<Node, NetError> {
    let bind = vec![(Ipv4Addr::LOCALHOST, port).into()];
    Node::bind(&key(number), NodeConfig { bind, ..NodeConfig::default() }).await
}

/// Admits these actors only.
fn admit(numbers: &[u8]) -> Admit {
    let ids: Vec<_> = numbers.iter().map(|number| key(*number).id()).collect();
    Arc::new(move |id| ids.contains(&id))
}

/// Fails the test instead of hanging; long, for the machine may be busy with other tests.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_mins(1);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Waits until a condition holds, looking often.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            tick.tick().await;
        }
    })
    .await;
}

/// Runs a test in its own small runtime.
fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(test);
}

#[test]
fn keys_survive_and_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("deep/endpoint.key");
    let first = EndpointKey::load_or_create(&path).expect("create");
    let again = EndpointKey::load_or_create(&path).expect("load");
    assert_eq!(first.id(), again.id());
    assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
    assert!(!format!("{first:?}").contains(&data_encoding::HEXLOWER.encode(&first.seed())));
    std::fs::write(&path, b"short").expect("write");
    assert_eq!(EndpointKey::load_or_create(&path).expect_err("malformed").code(), "net_malformed");
}

#[test]
fn endpoint_ids_are_base58_both_ways() {
    let id = key(7).id();
    let text = id.to_string();
    assert_eq!(text.parse::<ionet_net::EndpointId>().expect("parse"), id);
    let json = serde_json::to_string(&id).expect("json");
    assert_eq!(json, format!("\"{text}\""));
    assert_eq!(serde_json::from_str::<ionet_net::EndpointId>(&json).expect("json"), id);
    for bad in ["", "0", "l", &text[8..], "not a key"] {
        assert!(bad.parse::<ionet_net::EndpointId>().is_err(), "{bad}");
    }
}
