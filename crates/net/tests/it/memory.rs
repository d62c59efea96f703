//! What a supervisor's network costs in memory that is its own, measured in a process of its own. Pages of the program file
//! are shared by all its processes and are let go of in the product; what a supervisor takes in all is `ionet-lab bench
//! memory`.

use std::{
    io::{BufRead, BufReader},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};

use ionet_net::{
    Node, NodeAddr,
    overlay::{MTU_BYTES, Member, Overlay, OverlayConfig, PeerPath, Privacy},
};

use crate::{node, until};

/// Of a promised 20 MB in all.
const OWN_KB: u64 = 6_000;
const PEER: &str = "IONET_TEST_PEER";

/// Resident memory; most of it is pages of the program file, shared by all its processes.
fn rss_kb() -> u64 {
    status_kb("VmRSS:")
}

/// Resident memory that is this process's own.
fn own_kb() -> u64 {
    status_kb("RssAnon:")
}

fn status_kb(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with(name)).expect("a line");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
}

fn member(node: &Node, number: u8) -> Member {
    let addr = NodeAddr::direct(node.id(), node.bound());
    Member { endpoint: node.id(), ip: [10, 0, 0, number].into(), addr, eager: true }
}

/// An overlay whose device is one end of a packet socket.
fn overlay(node: &Node, me: &Member, members: &[Member]) -> (Overlay, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (device, kernel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("socketpair");
    let config = OverlayConfig {
        cluster: "c".into(),
        me: me.ip,
        members: members.to_vec(),
        relays: Vec::new(),
        mtu: MTU_BYTES,
        privacy: Privacy::default(),
    };
    (Overlay::start(node, config, device).expect("overlay"), kernel)
}

async fn up(overlay: &Overlay) {
    until("the overlay is up", || overlay.stats().first().is_some_and(|peer| peer.path != PeerPath::Down))
        .await;
}

#[test]
fn a_node_with_an_overlay_peer_stays_small() {
    crate::run(async {
        let ours = node(1).await;
        let me = member(&ours, 1);
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "memory::measured", "--ignored", "--nocapture"])
            .env(PEER, serde_json::to_string(&me).expect("json"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("child");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut answer = |start: &str| {
            let mut next = || lines.next().expect("the child says more").expect("read");
            std::iter::repeat_with(&mut next).find_map(|line| line.strip_prefix(start).map(str::to_owned))
        };
        let theirs = serde_json::from_str(&answer("member ").expect("a member")).expect("json");
        let (overlay, _kernel) = overlay(&ours, &me, &[theirs]);
        up(&overlay).await;
        let figures = answer("rss_kb ").expect("figures");
        eprintln!(
            "resident kB at the start, as a bare node, with one overlay peer, of that its own: {figures}"
        );
        let own = figures.split(' ').next_back().and_then(|kb| kb.parse::<u64>().ok());
        // It stays until we have seen it.
        drop(child.stdin.take());
        assert!(child.wait().expect("child").success());
        assert!(own.is_some_and(|kb| kb < OWN_KB), "{figures}");
    });
}

/// The measured process; started by the test above.
#[test]
#[ignore = "runs as a child process"]
fn measured() {
    let Ok(peer) = std::env::var(PEER) else { return };
    let start = rss_kb();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let ours = node(2).await;
        let bare = rss_kb();
        let me = member(&ours, 2);
        println!("\nmember {}", serde_json::to_string(&me).expect("json"));
        let (overlay, kernel) = overlay(&ours, &me, &[serde_json::from_str(&peer).expect("json")]);
        up(&overlay).await;
        rustix::io::write(&kernel, b"wakes the reader").expect("write");
        until("the reader ran", || overlay.unrouted() > 0).await;
        println!("rss_kb {start} {bare} {} {}", rss_kb(), own_kb());
        let until_told = || std::io::read_to_string(std::io::stdin());
        tokio::task::spawn_blocking(until_told).await.expect("task").expect("told");
    });
}
