//! Two members in network namespaces with a wire between them: what applications get of it. Needs root.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use ionet_overlay::{Config, Overlay, PeerKey, Privacy, RelayAt, Way, privacy::CoverPlan};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};

use crate::real::{Space, addresses, identity, member, until, wire};

const PATIENT: Duration = Duration::from_secs(30);

/// Members 1 and 2, who introduce themselves to each other by a call.
pub(crate) struct Pair {
    pub(crate) spaces: [Space; 2],
    pub(crate) overlays: [Arc<OnceLock<Overlay>>; 2],
}

impl Pair {
    /// `None` where there are no namespaces.
    fn new(label: &str, wire_mtu: u16) -> Option<Self> {
        let spaces = [Space::new(&format!("{label}-a"))?, Space::new(&format!("{label}-b"))?];
        wire(&spaces, wire_mtu);
        let pair = Self::over(spaces, &[]);
        until("a straight way", || pair.is_direct());
        Some(pair)
    }

    /// Members in namespaces that somebody has connected.
    pub(crate) fn over(spaces: [Space; 2], relays: &[RelayAt]) -> Self {
        let overlays: [Arc<OnceLock<Overlay>>; 2] = Default::default();
        for (at, number) in [(0, 1), (1, 2)] {
            let device = spaces[at].tun(number, 1400);
            // Not held by each other, so that both can end.
            let other = Arc::downgrade(&overlays[1 - at]);
            let me = identity(number).key();
            let introduce = move |_: PeerKey, bytes: Vec<u8>| {
                if let Some(other) = other.upgrade().as_ref().and_then(|other| other.get()) {
                    other.introduced(me, &bytes);
                }
            };
            let config = Config { relays: relays.to_vec(), ..config(number) };
            let started = spaces[at].run(move || Overlay::start(&config, device, Box::new(introduce)));
            overlays[at].set(started.expect("an overlay")).expect("the first");
        }
        Self { spaces, overlays }
    }

    /// Whether a straight way is up at both.
    pub(crate) fn is_direct(&self) -> bool {
        self.overlays.iter().all(|overlay| has_way(overlay))
    }

    pub(crate) fn overlay(&self, at: usize) -> &Overlay {
        self.overlays[at].get().expect("started")
    }
}

fn has_way(overlay: &OnceLock<Overlay>) -> bool {
    let peer = overlay.get().expect("started").stats().swap_remove(0);
    peer.has_session && peer.ways.iter().any(|way| way.up && matches!(way.way, Way::Udp(_)))
}

fn config(number: u8) -> Config {
    Config {
        cluster: "c1".into(),
        key_seed: [number; 32],
        me: addresses(number),
        members: vec![member(1), member(2)],
        relays: Vec::new(),
        listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        mtu: 1400,
        privacy: Privacy::default(),
        cover: CoverPlan::default(),
    }
}

fn both(number: u8) -> [IpAddr; 2] {
    [addresses(number).v4.into(), addresses(number).v6.into()]
}

/// Sends bytes by TCP from one member to an address of the other, while something else happens.
pub(crate) fn transfer(pair: &Pair, to: IpAddr, bytes: usize, meanwhile: impl FnOnce()) {
    let (port, ready) = mpsc::channel();
    let server = pair.spaces[1].enter(move || {
        let listener = TcpListener::bind((to, 0)).expect("bind");
        port.send(listener.local_addr().expect("bound")).expect("send");
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(PATIENT)).expect("timeout");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("read");
        all
    });
    let target = ready.recv().expect("a port");
    let sent: Vec<u8> = (0..bytes).map(|i| u8::try_from(i * 31 % 251).expect("a byte")).collect();
    let copy = sent.clone();
    let client = pair.spaces[0].enter(move || {
        TcpStream::connect(target).expect("connect").write_all(&copy).expect("write");
    });
    meanwhile();
    client.join().expect("the client");
    assert!(server.join().expect("the server") == sent, "what came is what was sent");
}

/// Sends datagrams of a size until one is answered. A lone byte says that it is over.
fn echo(pair: &Pair, to: IpAddr, bytes: usize) -> bool {
    let (port, ready) = mpsc::channel();
    let server = pair.spaces[1].enter(move || {
        let socket = UdpSocket::bind((to, 0)).expect("bind");
        socket.set_read_timeout(Some(PATIENT)).expect("timeout");
        port.send(socket.local_addr().expect("bound")).expect("send");
        let mut buffer = [0; 4096];
        while let Ok((count @ 2.., sender)) = socket.recv_from(&mut buffer) {
            // It may be too large for the way back, of which our kernel hears then.
            let _ = socket.send_to(&buffer[..count], sender);
        }
    });
    let target = ready.recv().expect("a port");
    let client = pair.spaces[0].enter(move || {
        let any: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).expect("bind");
        socket.set_read_timeout(Some(PATIENT / 30)).expect("timeout");
        let mut buffer = [0; 4096];
        let is_answered = (0..30).any(|_| {
            let _ = socket.send_to(&vec![7; bytes], target);
            socket.recv(&mut buffer).is_ok_and(|count| count == bytes)
        });
        socket.send_to(&[0], target).expect("the end");
        is_answered
    });
    let answered = client.join().expect("the client");
    server.join().expect("the server");
    answered
}

/// Answers of the kernel on the other side to three echo requests.
fn ping(pair: &Pair, to: IpAddr) -> usize {
    pair.spaces[0].run(move || {
        let (family, protocol, request, reply, skip) = match to {
            // For IPv4 we write the checksum and are given the IP header; for IPv6 the kernel does both.
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, [8, 0, 0xf7, 0xff, 0, 0, 0, 0], 0, 20),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, [128, 0, 0, 0, 0, 0, 0, 0], 129, 0),
        };
        let socket = socket(family, SocketType::RAW, Some(protocol)).expect("socket");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENT)).expect("timeout");
        let ask = || {
            sendto(&socket, &request, SendFlags::empty(), &SocketAddr::new(to, 0)).expect("send");
            let mut answer = [0; 64];
            // Others' neighbour discovery comes here too.
            while recv(&socket, &mut answer, RecvFlags::empty()).is_ok() {
                if answer[skip] == reply {
                    return true;
                }
            }
            false
        };
        (0..3).filter(|_| ask()).count()
    })
}

#[test]
fn both_families_carry_pings_datagrams_and_streams() {
    let Some(pair) = Pair::new("cross", 1500) else { return };
    for to in both(2) {
        assert_eq!(ping(&pair, to), 3, "{to}");
        // A full packet of the device, and one that it must fragment.
        assert!(echo(&pair, to, 1300) && echo(&pair, to, 2000), "{to}");
        transfer(&pair, to, 32 << 20, || {});
    }
    let (sent, received) = (pair.overlay(0).stats()[0].sent, pair.overlay(1).stats()[0].received);
    assert!(sent[1] > 64 << 20 && received[1] > 64 << 20, "{sent:?} {received:?}");
}

#[test]
fn new_keys_interrupt_no_stream() {
    let Some(pair) = Pair::new("renew", 1500) else { return };
    let handshakes = || pair.overlay(0).stats()[0].handshakes;
    let before = handshakes();
    transfer(&pair, both(2)[0], 64 << 20, || {
        for more in 1..=3 {
            (0..2).for_each(|at| pair.overlay(at).renew());
            until("new keys", || handshakes() >= before + more);
        }
    });
    let dropped = pair.overlay(1).stats()[0].dropped.clone();
    assert!(dropped.is_empty(), "{dropped:?}");
}

#[test]
fn streams_and_small_datagrams_cross_a_narrow_wire() {
    let Some(pair) = Pair::new("narrow", 1280) else { return };
    for to in both(2) {
        assert_eq!(ping(&pair, to), 3, "{to}");
        assert!(echo(&pair, to, 1000), "{to}");
        transfer(&pair, to, 8 << 20, || {});
    }
    // What is too large for the way, but not for IPv6's least MTU, and what the sender must be told about.
    for to in both(2) {
        assert!(echo(&pair, to, 1180) && echo(&pair, to, 1232) && echo(&pair, to, 1300), "{to}");
    }
}

#[test]
fn a_way_over_ipv6_of_the_least_mtu_carries_everything() {
    let spaces = [Space::new("six-a"), Space::new("six-b")];
    let [Some(a), Some(b)] = spaces else { return };
    let spaces = [a, b];
    wire(&spaces, 1280);
    for space in &spaces {
        space.ip(&["-4", "addr", "flush", "dev", "wire"]);
    }
    let pair = Pair::over(spaces, &[]);
    until("a straight way", || pair.is_direct());
    for to in both(2) {
        assert_eq!(ping(&pair, to), 3, "{to}");
        for bytes in [1000, 1180, 1200, 1232, 1300, 2000] {
            assert!(echo(&pair, to, bytes), "{bytes} to {to}");
        }
        transfer(&pair, to, 8 << 20, || {});
    }
    let ways = pair.overlay(0).stats().swap_remove(0).ways;
    let is_six = |way: &Way| matches!(way, Way::Udp(SocketAddr::V6(_)));
    assert!(
        ways.iter().filter(|way| way.up).all(|way| is_six(&way.way) && way.packet_bytes == 1228),
        "{ways:?}"
    );
}

#[test]
fn a_wire_that_becomes_narrow_and_loses_a_family_stops_no_stream() {
    let Some(pair) = Pair::new("worse", 1500) else { return };
    let way_bytes = || pair.overlay(0).stats()[0].ways[0].packet_bytes;
    until("the full size", || way_bytes() > 1400);
    let carried = || pair.overlay(1).stats()[0].received[1];
    let bytes = 64 << 20;
    transfer(&pair, both(2)[0], bytes, || {
        until("the stream flows", || carried() > 1 << 20);
        pair.spaces.iter().for_each(|space| space.ip(&["link", "set", "wire", "mtu", "1300"]));
        until("it was noticed", || way_bytes() < 1300);
        // It may be at its end by now.
        let more = (carried() + (1 << 20)).min(bytes as u64);
        until("the stream flows on", || carried() >= more);
        // One of the two ways is gone; whichever carried the flow, the other takes it.
        pair.spaces[0].ip(&["addr", "flush", "dev", "wire", "scope", "global"]);
        pair.spaces[0].ip(&["addr", "add", "10.99.0.1/24", "dev", "wire"]);
    });
}

#[test]
fn a_box_that_floods_nobody_keeps_neither_its_peers_nor_the_end_waiting() {
    let Some(pair) = Pair::new("flood", 1500) else { return };
    let over = Arc::new(AtomicBool::new(false));
    let is_over = over.clone();
    let flood = pair.spaces[1].enter(move || {
        let socket = UdpSocket::bind((addresses(2).v4, 0)).expect("bind");
        while !is_over.load(Ordering::Relaxed) {
            let _ = socket.send_to(&[7; 64], (addresses(77).v4, 9));
        }
    });
    transfer(&pair, addresses(2).v4.into(), 200_000, || {});
    let Pair { spaces, overlays } = pair;
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        drop(overlays);
        ended.send(()).expect("somebody waits");
    });
    end.recv_timeout(PATIENT).expect("the overlays end while the box floods");
    over.store(true, Ordering::Relaxed);
    flood.join().expect("the flood");
    drop(spaces);
}
