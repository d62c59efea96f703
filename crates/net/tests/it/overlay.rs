//! Overlays between real network namespaces with real TUN devices. Needs root.
//!
//! Each member has its own node here, in the machine's own namespace; its device is in a namespace that has nothing
//! else, so whatever arrives there came through the overlay.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use ionet_net::{
    Node, NodeAddr, NodeConfig, Relay, RelayInfo,
    link::{LinkListener, connect_link},
    overlay::{MTU_BYTES, Member, Overlay, OverlayConfig, PeerPath, PeerStats, Privacy},
    relay::admit_all,
};
use ionet_overlay::io::tun;

use tokio::sync::oneshot;

use crate::{key, node, run, soon, until};

/// A network namespace with one TUN device; goes when dropped.
struct Namespace {
    name: String,
}

impl Namespace {
    /// `None`, with the reason printed, where namespaces cannot be made.
    fn new(label: &str) -> Option<Self> {
        let name = format!("ionet-test-{}-{label}", std::process::id());
        let made = ip(&["netns", "add", &name]);
        if let Err(reason) = made {
            eprintln!("skipped: cannot make a network namespace: {reason}");
            return None;
        }
        Some(Self { name })
    }

    /// Runs something on a thread inside the namespace.
    fn enter<T: Send + 'static>(&self, inside: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let handle = File::open(format!("/run/netns/{}", self.name)).expect("namespace");
        thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(handle.as_fd(), kind).expect("enter");
            inside()
        })
    }

    fn tun(&self, address: Ipv4Addr) -> OwnedFd {
        let device = self.enter(|| tun::create("ionet0").expect("tun")).join().expect("thread");
        let mtu = MTU_BYTES.to_string();
        for command in [
            vec!["addr", "add", &format!("{address}/24"), "dev", "ionet0"],
            vec!["link", "set", "ionet0", "mtu", &mtu, "up"],
            vec!["link", "set", "lo", "up"],
        ] {
            let mut full = vec!["-n", &self.name];
            full.extend(command);
            ip(&full).expect("set the device up");
        }
        device
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn member(node: &Node, number: u8) -> Member {
    let addr = NodeAddr::direct(node.id(), node.bound());
    Member { endpoint: node.id(), ip: address(number), addr, eager: true }
}

fn config(cluster: &str, me: u8, members: &[Member]) -> OverlayConfig {
    OverlayConfig {
        cluster: cluster.into(),
        me: address(me),
        members: members.to_vec(),
        relays: Vec::new(),
        mtu: MTU_BYTES,
        privacy: Privacy::default(),
    }
}

/// How the first peer is reached; down as long as nothing is known of it.
fn path(overlay: &Overlay) -> PeerPath {
    overlay.stats().first().map_or(PeerPath::Down, |peer| peer.path.clone())
}

async fn up(overlay: &Overlay) -> PeerStats {
    let connected = |stats: &[PeerStats]| !stats.is_empty() && stats.iter().all(|s| s.path != PeerPath::Down);
    until("the overlay is up", || connected(&overlay.stats())).await;
    overlay.stats().remove(0)
}

/// Two members of one cluster, each with its namespace; nodes 1 and 2 have the addresses .1 and .2.
struct Pair {
    spaces: [Namespace; 2],
    nodes: [Node; 2],
    overlays: [Overlay; 2],
}

async fn pair(label: &str) -> Option<Pair> {
    let spaces = [Namespace::new(&format!("{label}-a"))?, Namespace::new(&format!("{label}-b"))?];
    let nodes = [node(1).await, node(2).await];
    let members = [member(&nodes[0], 1), member(&nodes[1], 2)];
    let start = |i: usize, number: u8| {
        let device = spaces[i].tun(address(number));
        Overlay::start(&nodes[i], config("c1", number, &members), device).expect("overlay")
    };
    let overlays = [start(0, 1), start(1, 2)];
    for overlay in &overlays {
        until("the way is direct", || matches!(path(overlay), PeerPath::Direct(_))).await;
    }
    Some(Pair { spaces, nodes, overlays })
}

const PATIENT: Duration = Duration::from_secs(30);
const BRIEF: Duration = Duration::from_millis(700);

/// Sends datagrams of the full size from a namespace until the other side answers, or patience ends.
fn echo(from: &Namespace, to: &Namespace, target: Ipv4Addr, patience: Duration) -> bool {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = to.enter(move || {
        let socket = UdpSocket::bind((target, 7777)).expect("bind");
        socket.set_read_timeout(Some(patience)).expect("timeout");
        ready.send(()).expect("ready");
        let mut buffer = [0; 2048];
        if let Ok((count, sender)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..count], sender).expect("answer");
        }
    });
    is_ready.recv().expect("ready");
    let client = from.enter(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
        socket.set_read_timeout(Some(patience / 10)).expect("timeout");
        // With 28 bytes of headers a full inner packet.
        let full = [7; MTU_BYTES as usize - 28];
        let ask = || socket.send_to(&full, (target, 7777)).is_ok() && socket.recv(&mut [0; 2048]).is_ok();
        (0..10).any(|_| ask())
    });
    let answered = tokio::task::block_in_place(|| client.join().expect("client"));
    tokio::task::block_in_place(|| server.join().expect("server"));
    answered
}

/// Answers of the kernel on the other side to three ICMP echo requests.
fn ping(from: &Namespace, target: Ipv4Addr) -> usize {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt,
    };
    let pinging = from.enter(move || {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).expect("socket");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENT)).expect("timeout");
        let target = std::net::SocketAddrV4::new(target, 0);
        // Echo request, code 0, checksum, identifier 0, sequence 0: the checksum is all ones but the type.
        let request = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        let ask = || {
            sendto(&socket, &request, SendFlags::empty(), &target).expect("send");
            let mut answer = [0; 64];
            recv(&socket, &mut answer, RecvFlags::empty()).is_ok() && answer[20] == 0
        };
        (0..3).filter(|_| ask()).count()
    });
    tokio::task::block_in_place(|| pinging.join().expect("ping"))
}

#[test]
fn ping_and_tcp_cross_between_namespaces() {
    run(async {
        let Some(pair) = pair("cross").await else { return };
        assert_eq!(ping(&pair.spaces[0], address(2)), 3);
        assert!(echo(&pair.spaces[1], &pair.spaces[0], address(1), PATIENT), "a full packet passes");
        let bytes: usize =
            std::env::var("IONET_OVERLAY_BYTES").map_or(32 << 20, |n| n.parse().expect("a number"));
        let elapsed = transfer(&pair.spaces[0], &pair.spaces[1], bytes).await;
        let stats = &pair.overlays[0].stats()[0];
        let megabits = u128::try_from(bytes).expect("small") * 8 / elapsed.as_micros().max(1);
        eprintln!("tcp over the overlay: {megabits} Mbit/s, {stats:?}");
        assert!(stats.sent_bytes > bytes as u64 && stats.rtt_us > 0);
    });
}

#[test]
fn strangers_and_other_clusters_get_nothing() {
    run(async {
        let Some(pair) = pair("strange").await else { return };
        let Some(space) = Namespace::new("strange-c") else { return };
        let stranger = node(3).await;
        let members = [member(&pair.nodes[0], 1), member(&pair.nodes[1], 2), member(&stranger, 3)];
        let device = space.tun(address(3));
        let outsider = Overlay::start(&stranger, config("c1", 3, &members), device).expect("overlay");
        let reach = |patience| {
            [(0, 1), (1, 2)].map(|(i, number)| echo(&space, &pair.spaces[i], address(number), patience))
        };
        assert_eq!(reach(BRIEF), [false, false], "not a member of c1");
        assert!(outsider.stats().iter().all(|peer| peer.path == PeerPath::Down));

        // Once it is a member it is let in, without a restart; once removed it is out again.
        for overlay in &pair.overlays {
            overlay.set_members(members.to_vec());
        }
        up(&outsider).await;
        assert_eq!(reach(PATIENT), [true, true]);
        for overlay in &pair.overlays {
            overlay.set_members(members[..2].to_vec());
        }
        assert_eq!(reach(BRIEF), [false, false], "out again");
        assert!(echo(&pair.spaces[0], &pair.spaces[1], address(2), PATIENT), "others stay");
    });
}

#[test]
fn the_same_keys_in_two_clusters_do_not_mix() {
    run(async {
        let Some(pair) = pair("mix").await else { return };
        let (Some(a), Some(b)) = (Namespace::new("mix-c"), Namespace::new("mix-d")) else { return };
        // The same machines and addresses, in another cluster: a separate network.
        let members = [member(&pair.nodes[0], 1), member(&pair.nodes[1], 2)];
        let first =
            Overlay::start(&pair.nodes[0], config("c2", 1, &members), a.tun(address(1))).expect("overlay");
        let alone = echo(&a, &pair.spaces[1], address(2), BRIEF);
        assert!(!alone, "c2 reached a member of c1");
        let again = Overlay::start(&pair.nodes[0], config("c2", 1, &members), a.tun2());
        assert_eq!(again.expect_err("twice").code(), "net_bind");
        let second =
            Overlay::start(&pair.nodes[1], config("c2", 2, &members), b.tun(address(2))).expect("overlay");
        up(&first).await;
        up(&second).await;
        assert!(echo(&a, &b, address(2), PATIENT));
        drop(second);
        until("the peer left", || first.stats()[0].path == PeerPath::Down).await;
        assert!(echo(&pair.spaces[0], &pair.spaces[1], address(2), PATIENT), "c1 lives on");
    });
}

impl Namespace {
    /// A second device, never set up.
    fn tun2(&self) -> OwnedFd {
        self.enter(|| tun::create("ionet1").expect("tun")).join().expect("thread")
    }
}

#[test]
fn spoofed_sources_are_dropped_and_counted() {
    run(async {
        let Some(space) = Namespace::new("spoof") else { return };
        let (honest, liar) = (node(1).await, node(2).await);
        let members = [member(&honest, 1), member(&liar, 2)];
        let device = space.tun(address(1));
        let overlay = Overlay::start(&honest, config("c1", 1, &members), device).expect("overlay");
        // The liar's node believes it is .9 and that its own device is a plain socket we write packets into.
        let (device, kernel) = socket_pair();
        let lying = Overlay::start(&liar, config("c1", 9, &members[..1]), device).expect("overlay");
        up(&overlay).await;
        up(&lying).await;
        for (source, destination) in [(9, 1), (9, 2)] {
            rustix::io::write(&kernel, &packet(address(source), address(destination))).expect("write");
        }
        rustix::io::write(&kernel, &packet(address(2), address(1))).expect("write");
        rustix::io::write(&kernel, b"not a packet").expect("write");
        until("the receiver drops it", || overlay.stats()[0].dropped.get("spoofed") == Some(&1)).await;
        assert_eq!(overlay.stats()[0].received_bytes, 0);
        until("the sender's own check", || lying.unrouted() >= 3).await;
    });
}

/// An overlay of two nodes behind relays, whose devices are plain sockets that the test holds the other ends of.
struct Relayed {
    overlays: [Overlay; 2],
    kernels: [OwnedFd; 2],
}

impl Relayed {
    async fn start(relays: &[RelayInfo]) -> Self {
        let behind = |number| crate::relay::behind_all(number, relays.to_vec());
        let nodes = [behind(1).await, behind(2).await];
        let mut members = Vec::new();
        for (node, number) in nodes.iter().zip(1..) {
            until("its homes", || node.addr().relays.len() == relays.len().min(2)).await;
            members.push(Member { endpoint: node.id(), ip: address(number), addr: node.addr(), eager: true });
        }
        let start = |i: usize, number: u8| {
            let (device, kernel) = socket_pair();
            let privacy = Privacy { via_relay: true, ..Privacy::default() };
            let config = OverlayConfig { relays: relays.to_vec(), privacy, ..config("c1", number, &members) };
            (Overlay::start(&nodes[i], config, device).expect("overlay"), kernel)
        };
        let [(first, one), (second, two)] = [start(0, 1), start(1, 2)];
        for overlay in [&first, &second] {
            until("a relay carries", || matches!(path(overlay), PeerPath::Relayed(_))).await;
        }
        Self { overlays: [first, second], kernels: [one, two] }
    }

    fn relay(&self) -> String {
        match &self.overlays[0].stats()[0].path {
            PeerPath::Relayed(url) => url.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Sends full packets until one arrives; what arrived is what was sent.
    async fn full_packet_passes(&self) {
        let mut full = packet(address(1), address(2));
        full.resize(usize::from(MTU_BYTES), 7);
        full[2..4].copy_from_slice(&MTU_BYTES.to_be_bytes());
        let before = self.overlays[1].stats()[0].received_bytes;
        soon("a full packet", async {
            let mut every = tokio::time::interval(Duration::from_millis(50));
            while self.overlays[1].stats()[0].received_bytes == before {
                every.tick().await;
                rustix::io::write(&self.kernels[0], &full).expect("write");
            }
        })
        .await;
        let mut got = [0; 2048];
        let count = rustix::io::read(&self.kernels[1], &mut got).expect("read");
        assert_eq!(got[..count], full);
    }
}

#[test]
fn full_packets_pass_through_a_relay_alone() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let relay = crate::relay::relay(&dir, admit_all()).await;
        Relayed::start(&[relay.info()]).await.full_packet_passes().await;
    });
}

#[test]
fn an_overlay_outlives_the_relay_that_carried_it() {
    run(async {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("dir"));
        let mut relays = vec![
            crate::relay::relay(&dirs[0], admit_all()).await,
            crate::relay::relay(&dirs[1], admit_all()).await,
        ];
        let infos: Vec<RelayInfo> = relays.iter().map(Relay::info).collect();
        let pair = Relayed::start(&infos).await;
        pair.full_packet_passes().await;
        // Each node is known at both, so neither needs to hear from anybody where the other is.
        until("both relays know both", || relays.iter().all(|relay| relay.metrics().accepted >= 2)).await;
        let carried = pair.relay();
        let at = infos.iter().position(|relay| carried.starts_with(&relay.url)).expect("one of them");
        let began = std::time::Instant::now();
        relays.remove(at).shutdown().await;
        let is_other = |overlay: &Overlay| match path(overlay) {
            PeerPath::Relayed(url) => url != carried,
            _ => false,
        };
        until("another relay carries", || pair.overlays.iter().all(is_other)).await;
        pair.full_packet_passes().await;
        eprintln!("packets flow again {:?} after their relay was lost", began.elapsed());
    });
}

/// A member in a namespace of its own that a narrow wire leads to: its node and its device are both there.
fn narrow_member(
    space: &Namespace,
    device: OwnedFd,
    me: Member,
    seed: u8,
    all: Vec<Member>,
) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel();
    space.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let bind = me.addr.direct.iter().copied().collect();
            let node =
                Node::bind(&key(seed), NodeConfig { bind, ..NodeConfig::default() }).await.expect("bind");
            let config = OverlayConfig { me: me.ip, ..config("c1", 0, &all) };
            let _overlay = Overlay::start(&node, config, device).expect("overlay");
            let _ = stopped.await;
        });
    });
    stop
}

#[test]
fn senders_adapt_where_the_way_is_narrower_than_a_full_packet() {
    run(async {
        let (Some(a), Some(b)) = (Namespace::new("narrow-a"), Namespace::new("narrow-b")) else { return };
        let peer = ["peer", "name", "wire", "netns", &b.name, "mtu", "1300"];
        let wire = ["-n", &a.name, "link", "add", "wire", "mtu", "1300", "type", "veth"];
        ip(&[&wire[..], &peer[..]].concat()).expect("a wire");
        let spaces = [&a, &b];
        let members = [1, 2].map(|number: u8| {
            let outside = SocketAddr::from(([10, 99, 0, number], 4000));
            let space = spaces[usize::from(number) - 1];
            ip(&["-n", &space.name, "addr", "add", &format!("10.99.0.{number}/24"), "dev", "wire"])
                .expect("addr");
            ip(&["-n", &space.name, "link", "set", "wire", "up"]).expect("up");
            let id = key(number).id();
            Member { endpoint: id, ip: address(number), addr: NodeAddr::direct(id, [outside]), eager: true }
        });
        let _running = [1, 2].map(|number: u8| {
            let at = usize::from(number) - 1;
            let device = spaces[at].tun(address(number));
            narrow_member(spaces[at], device, members[at].clone(), number, members.to_vec())
        });
        let sent = transfer(&a, &b, 1 << 20).await;
        eprintln!("1 MiB over a wire of 1300 bytes in {sent:?}");
    });
}

/// Sends so many bytes by TCP from one namespace to `.2` in the other; the time that it took.
async fn transfer(from: &Namespace, to: &Namespace, bytes: usize) -> Duration {
    let (port, ready) = std::sync::mpsc::channel();
    let server = to.enter(move || {
        let listener = TcpListener::bind((address(2), 0)).expect("bind");
        port.send(listener.local_addr().expect("addr")).expect("send");
        let (mut stream, _) = listener.accept().expect("accept");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        all
    });
    let target: SocketAddr = ready.recv().expect("port");
    let sent: Vec<u8> = (0..bytes).map(|i| u8::try_from(i * 31 % 251).expect("a byte")).collect();
    let copy = sent.clone();
    let began = std::time::Instant::now();
    let client = from.enter(move || {
        TcpStream::connect(target).expect("connect").write_all(&copy).expect("write");
    });
    let got = soon("tcp", tokio::task::spawn_blocking(move || server.join().expect("server"))).await;
    client.join().expect("client");
    assert_eq!(got.expect("task"), sent);
    began.elapsed()
}

#[test]
fn two_nodes_meet_where_there_is_only_a_loopback() {
    let Some(space) = Namespace::new("lo") else { return };
    ip(&["-n", &space.name, "link", "set", "lo", "up"]).expect("lo up");
    let inside = space.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let server = Node::bind(&key(1), NodeConfig::default()).await.expect("bind");
            let client = Node::bind(&key(2), NodeConfig::default()).await.expect("bind");
            let mut watch = server.watch_addr();
            soon("an address", watch.wait_for(|addr| !addr.direct.is_empty())).await.expect("watch");
            let mut listener = LinkListener::start(&server, admit_all());
            let addr = server.addr();
            let (link, peer) = tokio::join!(soon("link", connect_link(&client, &addr)), listener.accept());
            assert_eq!((link.expect("link").peer(), peer.expect("peer").peer()), (server.id(), client.id()));
        });
    });
    inside.join().expect("met");
}

/// Two ends of a packet socket: one stands in for a TUN device.
fn socket_pair() -> (OwnedFd, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("socketpair")
}

/// An IPv4 header with nothing in it.
fn packet(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet
}
