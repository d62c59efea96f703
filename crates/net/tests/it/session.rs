//! Tunnels that outlive what carries them: moved to a relay, brought back from one that is gone, and the relay's part.

use std::net::Ipv4Addr;

use ionet_net::{
    Node, NodeAddr, NodeConfig, Relay, RelayInfo,
    relay::{Admit, admit_all},
    tunnel::{LocalForward, TunnelRequest, TunnelServer, forward_local, open},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
};

use crate::{
    key,
    relay::{behind, relay},
    run, soon,
    tunnel::{finish, hashing_service, serve_loopback},
    until,
};

/// A node on the loopback that knows a relay, and is reached directly.
async fn beside(number: u8, relay: RelayInfo) -> Node {
    let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    Node::bind(&key(number), NodeConfig { relays: vec![relay], bind, relay_only: false }).await.expect("bind")
}

struct World {
    _dir: tempfile::TempDir,
    relay: Option<Relay>,
    server: Node,
    client: Node,
    _serving: TunnelServer,
}

impl World {
    async fn new(admit: Admit) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let relay = relay(&dir, admit).await;
        let (server, client) = (beside(1, relay.info()).await, beside(2, relay.info()).await);
        let serving = serve_loopback(&server);
        Self { _dir: dir, relay: Some(relay), server, client, _serving: serving }
    }

    fn addr(&self) -> NodeAddr {
        NodeAddr::direct(self.server.id(), self.server.bound())
    }

    async fn forward(&self, port: u16) -> LocalForward {
        let (addr, request) = (self.addr(), request(port));
        let way = move |_| std::future::ready(Ok((addr.clone(), request.clone())));
        forward_local(&self.client, 0, way).await.expect("forward")
    }

    fn spliced(&self) -> u64 {
        self.relay.as_ref().map_or(0, |relay| relay.metrics().splicer.bytes)
    }
}

fn request(port: u16) -> TunnelRequest {
    TunnelRequest { cluster: "c1".into(), service: port.to_string(), auth: b"secret".to_vec() }
}

/// A part of a long text that says where it is in it.
fn part(number: u64) -> Vec<u8> {
    (0..8192_u64)
        .flat_map(|at| (number * 8192 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect()
}

/// Sends parts until `enough` says so; how many.
async fn send_until(tcp: &mut OwnedWriteHalf, first: u64, enough: impl Fn(u64) -> bool) -> u64 {
    let mut number = first;
    while !enough(number) {
        soon("write", tcp.write_all(&part(number))).await.expect("write");
        number += 1;
    }
    number
}

/// A service that sends back what it gets.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("addr").port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = tcp.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    port
}

/// Reads parts until the end and looks at each; how many.
async fn read_parts(mut from: impl tokio::io::AsyncRead + Unpin) -> u64 {
    let (mut number, mut buffer) = (0, vec![0; 65_536]);
    loop {
        match from.read_exact(&mut buffer).await {
            Ok(_) => assert!(buffer == part(number), "part {number}"),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return number,
            Err(error) => panic!("{error} after part {number}"),
        }
        number += 1;
    }
}

#[test]
fn a_long_tunnel_moves_to_a_relay_and_loses_nothing() {
    run(async {
        let world = World::new(admit_all()).await;
        let forward = world.forward(echo().await).await;
        let tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
        let (from, mut to) = tcp.into_split();
        let reading = tokio::spawn(read_parts(from));
        let sent = send_until(&mut to, 0, |number| number > 600 && world.spliced() > 8 << 20).await;
        to.shutdown().await.expect("half-close");
        assert_eq!(soon("all of it", reading).await.expect("join"), sent);
        assert_eq!(forward.last_error(), None);
    });
}

#[test]
fn a_relay_lost_in_the_middle_costs_no_byte() {
    run(async {
        let mut world = World::new(admit_all()).await;
        let forward = world.forward(echo().await).await;
        let tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
        let (from, mut to) = tcp.into_split();
        let reading = tokio::spawn(read_parts(from));
        let sent = send_until(&mut to, 0, |_| world.spliced() > 8 << 20).await;
        drop(world.relay.take());
        let more = sent + 300;
        let sent = send_until(&mut to, sent, |number| number == more).await;
        to.shutdown().await.expect("half-close");
        assert_eq!(soon("all of it", reading).await.expect("join"), sent);
        assert_eq!(forward.last_error(), None);
    });
}

#[test]
fn small_requests_in_a_row_move_too_and_a_tunnel_that_idles_does_not() {
    run(async {
        let world = World::new(admit_all()).await;
        let forward = world.forward(echo().await).await;
        let idle = TcpStream::connect(forward.local_addr).await.expect("connect");
        let mut tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
        let pairs = || world.relay.as_ref().map_or(0, |relay| relay.metrics().splicer.pairs);
        let mut answer = [0; 200];
        let requests = async {
            while pairs() == 0 {
                tcp.write_all(&[7; 200]).await.expect("write");
                tcp.read_exact(&mut answer).await.expect("read");
            }
        };
        soon("a pair at the relay", requests).await;
        tcp.write_all(&[8; 200]).await.expect("write");
        soon("an answer through it", tcp.read_exact(&mut answer)).await.expect("read");
        assert_eq!((answer, pairs()), ([8; 200], 1));
        drop((tcp, idle));
        until("the pair is gone", || pairs() == 0).await;
    });
}

#[test]
fn who_is_not_admitted_at_the_relay_stays_on_the_first_way() {
    run(async {
        let world = World::new(crate::admit(&[1])).await;
        let forward = world.forward(echo().await).await;
        let tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
        let (from, mut to) = tcp.into_split();
        let reading = tokio::spawn(read_parts(from));
        let refused = || world.relay.as_ref().map_or(0, |relay| relay.metrics().splicer.refused);
        let sent = send_until(&mut to, 0, |number| number > 200 && refused() > 0).await;
        to.shutdown().await.expect("half-close");
        assert_eq!(soon("all of it", reading).await.expect("join"), sent);
        assert_eq!(world.spliced(), 0);
    });
}

#[test]
fn who_does_not_read_stops_nobody_else() {
    run(async {
        let world = World::new(admit_all()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let slow = world.forward(listener.local_addr().expect("addr").port()).await;
        let mut writer = TcpStream::connect(slow.local_addr).await.expect("connect");
        let (unread, _) = soon("the slow service", listener.accept()).await.expect("accept");
        // The service reads nothing: what is written stops once all rooms on the way are full.
        let room = tokio::time::timeout(std::time::Duration::from_secs(2), async {
            let (mut written, much) = (0, vec![0; 65_536]);
            loop {
                written += writer.write(&much).await.expect("write");
                assert!(written < 64 << 20, "nobody holds that much back");
            }
        });
        let _: Result<(), _> = room.await;
        let quick = world.forward(hashing_service().await).await;
        let mut tcp = TcpStream::connect(quick.local_addr).await.expect("connect");
        tcp.write_all(b"hello").await.expect("write");
        assert!(finish(tcp).await.starts_with("5 2cf24dba"));
        drop(unread);
        let mut byte = [0];
        let broken = soon("a break", writer.read(&mut byte)).await;
        assert!(broken.is_err(), "{broken:?}");
    });
}

#[test]
fn a_stream_that_breaks_is_no_clean_end() {
    run(async {
        let world = World::new(admit_all()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("addr").port();
        let mut stream = open(&world.client, &world.addr(), &request(port)).await.expect("open");
        let (mut service, _) = soon("service", listener.accept()).await.expect("accept");
        service.write_all(b"half of ").await.expect("write");
        let mut start = [0; 8];
        soon("the first half", stream.read_exact(&mut start)).await.expect("read");
        service.set_zero_linger().expect("linger");
        drop(service);
        let error = soon("a break", stream.read(&mut start)).await.expect_err("no clean end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        // And the other way round.
        let stream = open(&world.client, &world.addr(), &request(port)).await.expect("open");
        let (mut service, _) = soon("service", listener.accept()).await.expect("accept");
        stream.reset();
        let end = soon("a break", service.read(&mut start)).await;
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    });
}

#[test]
fn a_tunnel_that_knows_the_relay_alone_goes_on_when_it_comes_back() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let relay = relay(&dir, admit_all()).await;
        let (server, client) = (behind(1, relay.info()).await, behind(2, relay.info()).await);
        soon("online", server.online()).await;
        let _serving = serve_loopback(&server);
        let (addr, request) = (server.addr(), request(echo().await));
        let way = move |_| std::future::ready(Ok((addr.clone(), request.clone())));
        let forward = forward_local(&client, 0, way).await.expect("forward");
        let tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
        let (from, mut to) = tcp.into_split();
        let reading = tokio::spawn(read_parts(from));
        let sent = send_until(&mut to, 0, |number| number == 20).await;
        let info = relay.info();
        relay.shutdown().await;
        let _back = crate::relay::relay_again(&dir, &info).await;
        let sent = send_until(&mut to, sent, |number| number == 40).await;
        to.shutdown().await.expect("half-close");
        assert_eq!(soon("all of it", reading).await.expect("join"), sent);
        assert_eq!(forward.last_error(), None);
    });
}
