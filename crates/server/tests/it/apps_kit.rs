//! A network that shows services, a member that serves tunnels as a supervisor does, and services behind it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::{any, get};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use ionet_api::Client;
use ionet_api::exposed::{ExposeRequest, ExposedServices};
use ionet_api::sign::{self, Grant};
use ionet_domain::order::expose::{Access, Kind};
use ionet_domain::tunnel::Service;
use ionet_domain::{Address, CommandId, OrderId};
use ionet_net::tunnel::{self, Opening, Refused, TunnelRequest, TunnelServer};
use ionet_server::{AppsConfig, AppsLimits};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::http_kit::{Network, Worker, wallet};

/// A network with a renter's cluster that runs on one member.
pub(crate) struct Scene {
    pub(crate) network: Network,
    pub(crate) renter: Client,
    pub(crate) cluster: OrderId,
    _worker: Worker,
    _tunnels: TunnelServer,
}

impl Scene {
    pub(crate) async fn start(change: impl FnOnce(&mut AppsConfig)) -> Self {
        let mut apps = AppsConfig::local();
        change(&mut apps);
        let network = Network::start_with(|config| config.apps = Some(apps)).await;
        let (renter, supplier) = (wallet(1), wallet(2));
        let (client, owner) = (network.signed_in(&renter).await, network.signed_in(&supplier).await);
        network.fund(renter.address(), 100_000_000).await;
        let worker = network.pool(&owner, supplier.address(), 7).await;
        let info = client.network().await.expect("network");
        let tunnels = serve(&worker, info.server, info.name);
        let cluster = network.running_cluster(&client).await;
        Self { network, renter: client, cluster, _worker: worker, _tunnels: tunnels }
    }

    pub(crate) async fn expose(
        &self,
        kind: Kind,
        port: u16,
        access: Access,
        accounts: &[Address],
    ) -> ExposedServices {
        let id = CommandId::from_bits(self.network.order_id().bits());
        let accounts: BTreeSet<_> = accounts.iter().copied().collect();
        let request = ExposeRequest { id, kind, port, member: 0, access, accounts };
        self.renter.expose(self.cluster, &request).await.expect("expose")
    }

    /// The host and address that the HTTP service is found at, by its URL.
    pub(crate) async fn place(&self) -> (String, SocketAddr) {
        let shown = self.renter.exposed(self.cluster).await.expect("exposed");
        let url =
            shown.services.iter().find(|it| it.kind == Kind::Http).expect("http").url.clone().expect("url");
        let authority = url.split('/').nth(2).expect("authority");
        let (host, port) = authority.rsplit_once(':').expect("port");
        (host.to_owned(), SocketAddr::from(([127, 0, 0, 1], port.parse().expect("port"))))
    }
}

/// Few at a time, so that a test reaches the bounds.
pub(crate) fn few() -> AppsLimits {
    AppsLimits { each_cluster: 2, ..AppsLimits::default() }
}

/// Opens what the server's own leave is for, and nothing else, as a supervisor does.
fn serve(worker: &Worker, server: Address, network: String) -> TunnelServer {
    let handler = move |peer: ionet_net::EndpointId, request: TunnelRequest| {
        let network = network.clone();
        async move {
            let auth: Value = serde_json::from_slice(&request.auth).expect("json");
            let grant: Grant = serde_json::from_value(auth["grant"].clone()).expect("a grant");
            sign::verify(server, &network, &grant, auth["signature"].as_str().expect("text"))
                .expect("signed");
            assert_eq!(grant.endpoint.0, peer.0, "for whoever comes");
            let service: Service = request.service.parse().expect("a service");
            assert_eq!(grant.services.to_string(), service.to_string(), "for this service only");
            let down = |error: std::io::Error| Refused {
                code: "service_unreachable".into(),
                message: error.to_string(),
            };
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            match service {
                Service::Tcp(port) => {
                    let mut box_side = TcpStream::connect(("127.0.0.1", port)).await.map_err(down)?;
                    let mut ours = ours;
                    tokio::spawn(
                        async move { _ = tokio::io::copy_bidirectional(&mut ours, &mut box_side).await },
                    );
                }
                Service::Udp(port) => _ = tokio::spawn(datagrams(ours, port)),
                other => panic!("{other} is not exposed"),
            }
            Ok::<Opening<DuplexStream>, Refused>(theirs.into())
        }
    };
    tunnel::serve(&worker.node, std::sync::Arc::new(|_| true), handler)
}

/// A supervisor's side of a UDP service.
async fn datagrams(stream: DuplexStream, port: u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    socket.connect(("127.0.0.1", port)).await.expect("connect");
    let (mut from, mut to) = tokio::io::split(stream);
    let back = async {
        let mut buffer = vec![0; 65_535];
        while let Ok(len) = socket.recv(&mut buffer).await {
            let framed = [&u16::try_from(len).expect("short").to_be_bytes(), &buffer[..len]].concat();
            if to.write_all(&framed).await.is_err() {
                return;
            }
        }
    };
    let out = async {
        while let Ok(len) = from.read_u16().await {
            let mut datagram = vec![0; usize::from(len)];
            if from.read_exact(&mut datagram).await.is_err() {
                return;
            }
            let _ = socket.send(&datagram).await;
        }
    };
    tokio::select! {
        () = back => {}
        () = out => {}
    }
}

/// A service that says what it was asked; `/stream` never ends; `/set` sets cookies.
pub(crate) async fn web() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let endless = || async {
        let parts = stream::unfold((), |()| async {
            tokio::task::yield_now().await;
            Some((Ok::<_, std::io::Error>(vec![b'x'; 1024]), ()))
        });
        Body::from_stream(parts)
    };
    let set = || async { [("set-cookie", "ionet-apps=stolen"), ("x-mine", "1")] };
    let routes = Router::new().route("/stream", get(endless)).route("/set", get(set)).fallback(any(echo));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    port
}

async fn echo(request: Request) -> axum::Json<Value> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("body");
    let headers: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), value.to_str().unwrap_or("?")]))
        .collect();
    let text = String::from_utf8_lossy(&body);
    axum::Json(
        json!({ "method": parts.method.as_str(), "uri": parts.uri.to_string(), "headers": headers, "body": text }),
    )
}

/// A WebSocket service that says everything again.
pub(crate) async fn echoing_websocket() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.expect("handshake");
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_close() || socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// A TCP service that says how many bytes came, once the other side has said all.
pub(crate) async fn counting_tcp() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).await.is_ok() {
                    let _ = stream.write_all(format!("{} bytes", all.len()).as_bytes()).await;
                }
            });
        }
    });
    port
}

/// A TCP service that says one thing to whoever says something, and closes.
pub(crate) async fn saying(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.read(&mut [0; 1024]).await.is_ok() {
                let _ = stream.write_all(word.as_bytes()).await;
            }
        }
    });
    port
}

/// A port that was free a moment ago.
pub(crate) async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address").port()
}

/// A UDP service that says everything again.
pub(crate) async fn echoing_udp() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let port = socket.local_addr().expect("address").port();
    tokio::spawn(async move {
        let mut buffer = vec![0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    });
    port
}
