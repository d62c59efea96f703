//! Tunnels to real TCP services.

use data_encoding::HEXLOWER;
use ionet_net::{
    NetError, Node, NodeAddr,
    relay::admit_all,
    tunnel::{
        LocalForward, Opening, Refused, TunnelRequest, TunnelServer, TunnelStream, forward_local, open, serve,
    },
};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{admit, node, run, soon, until};

fn request(port: u16) -> TunnelRequest {
    TunnelRequest { cluster: "c1".into(), service: port.to_string(), auth: b"secret".to_vec() }
}

fn addr(node: &Node) -> NodeAddr {
    NodeAddr::direct(node.id(), node.bound())
}

type Way = Result<(NodeAddr, TunnelRequest), NetError>;

/// A way that never changes.
fn to(server: &Node, port: u16) -> impl Fn(bool) -> std::future::Ready<Way> + Send + Sync + 'static {
    let addr = addr(server);
    move |_| std::future::ready(Ok((addr.clone(), request(port))))
}

/// A server whose tunnels lead to the loopback, and a client.
struct Pair {
    server: Node,
    client: Node,
    _serving: TunnelServer,
}

impl Pair {
    async fn new() -> Self {
        let (server, client) = (node(1).await, node(2).await);
        let serving = serve_loopback(&server);
        Self { server, client, _serving: serving }
    }

    async fn open(&self, port: u16) -> TunnelStream {
        open(&self.client, &addr(&self.server), &request(port)).await.expect("open")
    }

    async fn forward(&self, port: u16) -> LocalForward {
        forward_local(&self.client, 0, to(&self.server, port)).await.expect("forward")
    }
}

/// A service of the test's own, and its port.
async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("addr").port();
    (listener, port)
}

/// Ends our direction and reads the service's answer.
pub(crate) async fn finish(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.shutdown().await.expect("half-close");
    let mut answer = String::new();
    soon("answer", stream.read_to_string(&mut answer)).await.expect("read");
    answer
}

/// Lets requests with the right word through to the loopback.
pub(crate) fn serve_loopback(node: &Node) -> TunnelServer {
    serve(node, admit_all(), |_, request: TunnelRequest| async move {
        if request.auth != b"secret" {
            return Err(Refused { code: "wrong_word".into(), message: "say the word".into() });
        }
        let port: u16 = request.service.parse().expect("a port");
        TcpStream::connect(("127.0.0.1", port))
            .await
            .map(Into::into)
            .map_err(|e| Refused { code: "no_service".into(), message: e.to_string() })
    })
}

/// A service that reads to the end, then answers with the count and hash of what it read.
pub(crate) async fn hashing_service() -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (count, hash) = digest(&mut tcp).await;
                let _ = tcp.write_all(format!("{count} {hash}").as_bytes()).await;
            });
        }
    });
    port
}

async fn digest(stream: &mut (impl AsyncReadExt + Unpin)) -> (u64, String) {
    let (mut count, mut hash, mut buffer) = (0, Sha256::new(), vec![0; 64 << 10]);
    loop {
        let read = stream.read(&mut buffer).await.expect("read");
        if read == 0 {
            return (count, HEXLOWER.encode(&hash.finalize()));
        }
        count += read as u64;
        hash.update(&buffer[..read]);
    }
}

#[test]
fn the_way_back_stays_open_after_half_close() {
    run(async {
        let pair = Pair::new().await;
        let mut stream = pair.open(hashing_service().await).await;
        stream.write_all(b"hello").await.expect("write");
        let answer = finish(stream).await;
        assert!(answer.starts_with("5 2cf24dba"), "{answer}");
    });
}

#[test]
fn the_service_may_end_its_direction_first() {
    run(async {
        let pair = Pair::new().await;
        let (listener, port) = listen().await;
        let service = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.expect("accept");
            finish(tcp).await
        });
        let mut stream = pair.open(port).await;
        let mut text = String::new();
        soon("end", stream.read_to_string(&mut text)).await.expect("a clean end");
        stream.write_all(b"after the end").await.expect("write");
        stream.shutdown().await.expect("half-close");
        assert_eq!(soon("service", service).await.expect("join"), "after the end");
    });
}

#[test]
fn refusals_carry_code_and_message() {
    run(async {
        let (server, client, stranger) = (node(1).await, node(2).await, node(3).await);
        let serving = serve(&server, admit(&[2]), |_, _| async {
            Err::<Opening<TcpStream>, _>(Refused { code: "paused".into(), message: "resume it first".into() })
        });
        match soon("refusal", open(&client, &addr(&server), &request(1))).await {
            Err(NetError::Refused { code, message }) => {
                assert_eq!((code.as_str(), message.as_str()), ("paused", "resume it first"));
            }
            other => panic!("{other:?}"),
        }
        let stranger = soon("refusal", open(&stranger, &addr(&server), &request(1))).await;
        assert_eq!(stranger.expect_err("stranger").code(), "net_not_admitted");
        drop(serving);
        assert!(!format!("{:?}", request(1)).contains("secret"));
    });
}

#[test]
fn strangers_in_crowds_are_bounded_and_do_not_shut_out_who_is_known() {
    run(async {
        let pair = Pair::new().await;
        let service = hashing_service().await;
        let mut known = pair.open(service).await;
        let wrong = TunnelRequest { auth: b"wrong".to_vec(), ..request(service) };
        let (mut refused, mut turned_away, mut crowd) = (0, 0, Vec::new());
        for number in 0..80 {
            let stranger = node(100 + number).await;
            match soon("an answer", open(&stranger, &addr(&pair.server), &wrong)).await {
                Err(NetError::Refused { code, .. }) if code == "wrong_word" => refused += 1,
                Err(NetError::Closed { .. }) => turned_away += 1,
                other => panic!("{other:?}"),
            }
            crowd.push(stranger);
        }
        assert_eq!((refused, turned_away), (64, 16));
        known.write_all(b"hello").await.expect("write");
        assert!(finish(known).await.starts_with("5 "));
        let mut again = pair.open(service).await;
        again.write_all(b"hello again").await.expect("write");
        assert!(finish(again).await.starts_with("11 "));
    });
}

#[test]
fn a_broken_service_shows_as_a_reset() {
    run(async {
        let pair = Pair::new().await;
        let (listener, port) = listen().await;
        let forward = pair.forward(port).await;
        let mut tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
        let (service, _) = soon("service", listener.accept()).await.expect("accept");
        service.set_zero_linger().expect("linger");
        // Nobody is there any more when the way is tried again.
        drop((listener, service));
        let error = soon("reset", tcp.read(&mut [0; 8])).await.expect_err("not a clean end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        until("the reason", || forward.last_error().is_some()).await;
    });
}

#[test]
fn two_hundred_connections_at_once() {
    run(async {
        let pair = Pair::new().await;
        let forward = pair.forward(hashing_service().await).await;
        let mut open = Vec::new();
        for number in 0..200 {
            let mut tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
            tcp.write_all(&vec![1; number]).await.expect("write");
            open.push(tcp);
        }
        for (number, tcp) in open.into_iter().enumerate() {
            let answer = finish(tcp).await;
            assert!(answer.starts_with(&format!("{number} ")), "{answer}");
        }
        assert_eq!(forward.last_error(), None);
    });
}

#[test]
fn sixty_four_mebibytes_arrive_unchanged() {
    run(async {
        let pair = Pair::new().await;
        let forward = pair.forward(hashing_service().await).await;
        let chunk: Vec<u8> =
            (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let mut expected = Sha256::new();
        let mut tcp = TcpStream::connect(forward.local_addr).await.expect("connect");
        for _ in 0..64 {
            expected.update(&chunk);
            soon("write", tcp.write_all(&chunk)).await.expect("write");
        }
        let hash = HEXLOWER.encode(&expected.finalize());
        assert_eq!(finish(tcp).await, format!("{} {hash}", 64 << 20));
    });
}
