//! One endpoint per process, and the protocols served on it.
//!
//! What always holds: only relays the node was told of are used, no name is looked up, no port is mapped; a connection
//! reaches a protocol only after its `admit` rule said yes to the proven endpoint id. Works without any relay, and
//! without any network but the loopback, as long as an address of the peer is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard},
    time::Duration,
};

use iroh::{
    Endpoint, EndpointAddr, RelayMap, RelayMode, Watcher,
    endpoint::{
        ConnectOptions, Connection, ConnectionError, Incoming, PortmapperConfig, QuicTransportConfig, VarInt,
        presets,
    },
    tls::CaTlsConfig,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    EndpointId, EndpointKey, NetError, RelayInfo,
    homes::{self, Relays},
    measure, overlay,
    pins::Pins,
    relay::Admit,
    tunnel,
};

/// Names of the protocols, as agreed in the handshake.
pub(crate) const ALPN_LINK: &[u8] = b"ionet/link/1";
pub(crate) const ALPN_TUNNEL: &[u8] = b"ionet/tunnel/2";
pub(crate) const ALPN_OVERLAY: &[u8] = b"ionet/overlay/2";
pub(crate) const ALPN_MEASURE: &[u8] = b"ionet/measure/1";
const ALPNS: [&[u8]; 4] = [ALPN_LINK, ALPN_TUNNEL, ALPN_OVERLAY, ALPN_MEASURE];

/// Codes a connection is closed with.
pub(crate) const CLOSE_DONE: u32 = 0;
pub(crate) const CLOSE_NOT_ADMITTED: u32 = 403;
pub(crate) const CLOSE_NO_SERVICE: u32 = 404;
pub(crate) const CLOSE_REPLACED: u32 = 409;
pub(crate) const CLOSE_BUSY: u32 = 503;

/// UDP payload that carries an inner packet of 1280 bytes: 38 bytes of headers and seal, and some room. Tried first;
/// where the way is narrower, it is soon found out.
const OVERLAY_UDP_PAYLOAD_BYTES: u16 = 1340;
/// What every path of the internet carries.
const LEAST_UDP_PAYLOAD_BYTES: u16 = 1200;
/// Streams and window of a client that has not yet shown that it may use a tunnel.
const STRANGERS_STREAMS: u32 = 8;
const STRANGERS_WINDOW_BYTES: u32 = 256 << 10;
const TUNNEL_STREAMS: u32 = 12_288;
const TUNNEL_WINDOW_BYTES: u32 = 64 << 20;
/// Fills 1.6 Gbit/s over 20 ms, and is through a way of 10 Mbit/s in 3 s.
const MEASURE_SEND_WINDOW_BYTES: u32 = 4 << 20;

/// How to open a node.
#[derive(Clone, Debug, Default)]
pub struct NodeConfig {
    /// Relays to use; the nearest becomes the home, and the first other one the second home. May be empty.
    pub relays: Vec<RelayInfo>,
    /// UDP addresses to bind; empty means every interface on a free port.
    pub bind: Vec<SocketAddr>,
    /// Use relays only, never a direct path. For tests, and for hiding addresses.
    pub relay_only: bool,
}

/// Where an endpoint can be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeAddr {
    /// Who it is.
    pub id: EndpointId,
    /// Direct UDP addresses, best effort.
    #[serde(default)]
    pub direct: BTreeSet<SocketAddr>,
    /// URLs of the relays it is at home on: two, if it knows as many.
    #[serde(default)]
    pub relays: BTreeSet<String>,
}

impl NodeAddr {
    /// An endpoint at the given addresses, without a relay.
    pub fn direct(id: EndpointId, addrs: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { id, direct: addrs.into_iter().collect(), relays: BTreeSet::new() }
    }

    fn of(endpoint: &Endpoint, relays: &Relays) -> Self {
        let addr = endpoint.addr();
        let homes = addr.relay_urls().chain(relays.kept(&addr));
        Self {
            id: addr.id.into(),
            direct: addr.ip_addrs().copied().collect(),
            relays: homes.map(ToString::to_string).collect(),
        }
    }

    fn to_iroh(&self) -> Result<EndpointAddr, NetError> {
        let mut addr = EndpointAddr::new(self.id.public()?);
        for ip in &self.direct {
            addr = addr.with_ip_addr(*ip);
        }
        for url in &self.relays {
            addr = addr.with_relay_url(parse_url(url)?);
        }
        Ok(addr)
    }
}

fn parse_url(url: &str) -> Result<iroh::RelayUrl, NetError> {
    url.parse().map_err(|_| NetError::Malformed { what: format!("the relay url {url:?}") })
}

/// What a protocol does with an admitted connection.
pub(crate) type Handle = Arc<dyn Fn(Connection) + Send + Sync>;

/// A protocol served on a node.
#[derive(Clone)]
pub(crate) struct Protocol {
    pub(crate) admit: Admit,
    pub(crate) handle: Handle,
}

/// Ends the service of a protocol when dropped, unless another has taken its place.
pub(crate) struct Serving {
    node: Node,
    alpn: &'static [u8],
    handle: Handle,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut protocols = lock_write(&self.node.0.protocols);
        if protocols.get(self.alpn).is_some_and(|protocol| Arc::ptr_eq(&protocol.handle, &self.handle)) {
            protocols.remove(self.alpn);
        }
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Serving({})", String::from_utf8_lossy(self.alpn))
    }
}

type ProtocolMap = BTreeMap<&'static [u8], Protocol>;
type Protocols = Arc<RwLock<ProtocolMap>>;

/// This process on the network. Cheap to clone; the last clone dropped ends it.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    protocols: Protocols,
    pins: Arc<Pins>,
    relays: watch::Sender<Relays>,
    changing_relays: tokio::sync::Mutex<()>,
    addr: watch::Receiver<NodeAddr>,
    overlays: overlay::Registry,
    tunnels: tunnel::Pool,
    /// The relays as we were told of them.
    known: RwLock<Vec<RelayInfo>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_tasks();
    }
}

impl Inner {
    fn stop_tasks(&self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

impl Node {
    /// Opens the endpoint. Returns as soon as the local addresses are known; see [`Node::online`] for relays.
    ///
    /// # Errors
    /// If an address cannot be bound or a relay's data is malformed.
    pub async fn bind(key: &EndpointKey, config: NodeConfig) -> Result<Self, NetError> {
        let pins = Pins::new(&config.relays)?;
        // Boxed, as the future is some 20 kB.
        let endpoint = Box::pin(open(key, &config, pins.clone())).await?;
        let protocols = Protocols::default();
        let overlays = overlay::Registry::default();
        lock_write(&protocols).insert(ALPN_OVERLAY, overlays.protocol());
        let relays = watch::Sender::new(Relays::new(relay_configs(&config.relays)?));
        let (sender, addr) = watch::channel(NodeAddr::of(&endpoint, &relays.borrow()));
        let tasks = vec![
            tokio::spawn(accept_all(endpoint.clone(), protocols.clone())),
            tokio::spawn(follow_addr(endpoint.clone(), relays.subscribe(), sender)),
            tokio::spawn(homes::keep(endpoint.clone(), relays.clone())),
        ];
        Ok(Self(Arc::new(Inner {
            endpoint,
            protocols,
            pins,
            relays,
            changing_relays: tokio::sync::Mutex::new(()),
            addr,
            overlays,
            tunnels: tunnel::Pool::default(),
            known: RwLock::new(config.relays),
            tasks: Mutex::new(tasks),
        })))
    }

    /// Who we are.
    pub fn id(&self) -> EndpointId {
        self.0.endpoint.id().into()
    }

    /// The seed of our key, for what else bears our name.
    pub(crate) fn seed(&self) -> [u8; 32] {
        self.0.endpoint.secret_key().to_bytes()
    }

    /// Our key's signature.
    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.endpoint.secret_key().sign(bytes).to_bytes()
    }

    /// The relays that splice.
    pub(crate) fn splicers(&self) -> Vec<RelayInfo> {
        let known = self.0.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter(|relay| relay.forwarder.is_some_and(|ports| ports.splice != 0)).cloned().collect()
    }

    /// Where we can be reached now. Grows when a relay is connected or an interface appears.
    pub fn addr(&self) -> NodeAddr {
        NodeAddr::of(&self.0.endpoint, &self.0.relays.borrow())
    }

    /// Follows [`Node::addr`].
    pub fn watch_addr(&self) -> watch::Receiver<NodeAddr> {
        self.0.addr.clone()
    }

    /// The UDP sockets bound.
    pub fn bound(&self) -> Vec<SocketAddr> {
        self.0.endpoint.bound_sockets()
    }

    /// Waits until a relay is connected; never returns if there is none. Wrap it in a timeout.
    pub async fn online(&self) {
        self.0.endpoint.online().await;
    }

    /// Uses these relays from now on, and no others.
    ///
    /// # Errors
    /// If a relay's data is malformed; then nothing was changed.
    pub async fn set_relays(&self, relays: &[RelayInfo]) -> Result<(), NetError> {
        let configs = relay_configs(relays)?;
        let _alone = self.0.changing_relays.lock().await;
        self.0.pins.replace(relays)?;
        *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = relays.to_vec();
        let known = self.0.relays.send_replace(Relays::new(configs.clone()));
        for gone in known.all.iter().filter(|old| configs.iter().all(|new| new.url != old.url)) {
            self.0.endpoint.remove_relay(&gone.url).await;
        }
        for config in configs {
            self.0.endpoint.insert_relay(config.url.clone(), config).await;
        }
        Ok(())
    }

    /// Closes every connection and tells the peers. The ports are free once the last clone is dropped too.
    pub async fn close(&self) {
        self.0.endpoint.close().await;
        self.0.stop_tasks();
    }

    pub(crate) fn overlays(&self) -> &overlay::Registry {
        &self.0.overlays
    }

    pub(crate) fn tunnels(&self) -> &tunnel::Pool {
        &self.0.tunnels
    }

    /// Serves a protocol while the answer lives; a later call for the same protocol takes its place.
    pub(crate) fn serve(&self, alpn: &'static [u8], admit: Admit, handle: Handle) -> Serving {
        lock_write(&self.0.protocols).insert(alpn, Protocol { admit, handle: handle.clone() });
        Serving { node: self.clone(), alpn, handle }
    }

    /// Dials a peer for one protocol.
    pub(crate) async fn connect(&self, addr: &NodeAddr, alpn: &'static [u8]) -> Result<Connection, NetError> {
        let target = addr.to_iroh()?;
        let unreachable = |reason: String| NetError::Unreachable { peer: addr.id, reason };
        let options = ConnectOptions::new().with_transport_config(transport(alpn));
        let connecting = self
            .0
            .endpoint
            .connect_with_opts(target, alpn, options)
            .await
            .map_err(|e| unreachable(format!("{e:#}")))?;
        connecting.await.map_err(|e| unreachable(format!("{e:#}")))
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.id())
    }
}

fn relay_config(relay: &RelayInfo) -> Result<iroh::RelayConfig, NetError> {
    let quic = iroh_relay::RelayQuicConfig::new(relay.quic_port);
    Ok(iroh::RelayConfig::new(parse_url(&relay.url)?, Some(quic)))
}

fn relay_configs(relays: &[RelayInfo]) -> Result<Vec<Arc<iroh::RelayConfig>>, NetError> {
    relays.iter().map(|relay| relay_config(relay).map(Arc::new)).collect()
}

async fn open(key: &EndpointKey, config: &NodeConfig, pins: Arc<Pins>) -> Result<Endpoint, NetError> {
    let failed = |reason: String| NetError::Bind { reason };
    let relays = config.relays.iter().map(relay_config).collect::<Result<Vec<_>, _>>()?;
    let mut probes = iroh::NetReportConfig::minimal();
    probes.https_probes = true;
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(key.secret())
        .alpns(ALPNS.map(<[u8]>::to_vec).into())
        .transport_config(transport(ALPN_OVERLAY))
        .relay_mode(RelayMode::Custom(RelayMap::from_iter(relays)))
        .ca_tls_config(CaTlsConfig::custom_server_cert_verifier(Arc::new(move |_| Ok(pins.clone()))))
        .portmapper_config(PortmapperConfig::Disabled)
        .net_report_config(probes);
    if config.relay_only || !config.bind.is_empty() {
        builder = builder.clear_ip_transports();
    }
    for addr in config.bind.iter().filter(|_| !config.relay_only) {
        builder = builder.bind_addr(*addr).map_err(|e| failed(format!("{e:#}")))?;
    }
    builder.bind().await.map_err(|e| failed(format!("{e:#}")))
}

/// Limits of a connection. A stream's window stays at 1 MiB or below: the QUIC library drops the whole connection when
/// a wider one leaves too many gaps. A worker's link notices soon that its server is gone, as does an overlay that a
/// relay is.
fn transport(alpn: &[u8]) -> QuicTransportConfig {
    let (streams, stream_window, window) = match alpn {
        ALPN_TUNNEL => (STRANGERS_STREAMS, 1 << 20, STRANGERS_WINDOW_BYTES),
        ALPN_LINK => (4, 1 << 20, 2 << 20),
        ALPN_MEASURE => (measure::STREAMS + 1, 1 << 20, STRANGERS_WINDOW_BYTES),
        _ => (4, 64 << 10, 256 << 10),
    };
    let send_window = match alpn {
        ALPN_TUNNEL => TUNNEL_WINDOW_BYTES,
        ALPN_MEASURE => MEASURE_SEND_WINDOW_BYTES,
        _ => window,
    };
    let (keep_alive_ms, dead_after_ms) = match alpn {
        ALPN_LINK => (2_000, 7_000),
        ALPN_OVERLAY => (3_000, 10_000),
        _ => (5_000, 15_000),
    };
    let config = QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(window))
        .send_window(u64::from(send_window))
        .keep_alive_interval(Duration::from_millis(keep_alive_ms))
        .max_idle_timeout(Some(VarInt::from_u32(dead_after_ms).into()));
    match alpn {
        ALPN_OVERLAY => config
            .initial_mtu(OVERLAY_UDP_PAYLOAD_BYTES)
            .min_mtu(LEAST_UDP_PAYLOAD_BYTES)
            .datagram_receive_buffer_size(Some(2 << 20))
            .datagram_send_buffer_size(512 << 10)
            .build(),
        _ => config.datagram_receive_buffer_size(None).build(),
    }
}

/// Gives a tunnel's connection the room of one that may use it.
pub(crate) fn trust(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(TUNNEL_WINDOW_BYTES));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(TUNNEL_STREAMS));
}

async fn follow_addr(
    endpoint: Endpoint,
    mut relays: watch::Receiver<Relays>,
    sender: watch::Sender<NodeAddr>,
) {
    let mut addrs = endpoint.watch_addr();
    loop {
        let over = tokio::select! {
            addr = addrs.updated() => addr.is_err(),
            changed = relays.changed() => changed.is_err(),
        };
        if over {
            return;
        }
        sender.send_replace(NodeAddr::of(&endpoint, &relays.borrow_and_update()));
    }
}

async fn accept_all(endpoint: Endpoint, protocols: Protocols) {
    while let Some(incoming) = endpoint.accept().await {
        let (endpoint, protocols) = (endpoint.clone(), protocols.clone());
        tokio::spawn(async move {
            if let Err(error) = accept_one(incoming, &endpoint, &protocols).await {
                tracing::debug!(error, "an incoming connection failed");
            }
        });
    }
}

async fn accept_one(incoming: Incoming, endpoint: &Endpoint, protocols: &Protocols) -> Result<(), String> {
    let limits = transport(wanted_protocol(&incoming));
    let all = ALPNS.map(<[u8]>::to_vec).into();
    let server = endpoint.create_server_config_builder(all).set_transport_config(limits).build();
    let accepting = incoming.accept_with(Arc::new(server)).map_err(|e| e.to_string())?;
    let connection = accepting.await.map_err(|e| format!("{e:#}"))?;
    let known = protocols.read().unwrap_or_else(PoisonError::into_inner).get(connection.alpn()).cloned();
    match known {
        None => connection.close(VarInt::from_u32(CLOSE_NO_SERVICE), b"no_service"),
        Some(protocol) if !(protocol.admit)(connection.remote_id().into()) => {
            connection.close(VarInt::from_u32(CLOSE_NOT_ADMITTED), b"not_admitted");
        }
        Some(protocol) => (protocol.handle)(connection),
    }
    Ok(())
}

/// The protocol a peer asks for, read early as it decides the connection's limits; the handshake proper checks it.
fn wanted_protocol(incoming: &Incoming) -> &'static [u8] {
    let first = incoming.decrypt().and_then(|hello| hello.alpns()?.next()?.ok());
    match first.as_deref() {
        Some(ALPN_LINK) => ALPN_LINK,
        Some(ALPN_TUNNEL) => ALPN_TUNNEL,
        Some(ALPN_MEASURE) => ALPN_MEASURE,
        _ => ALPN_OVERLAY,
    }
}

/// Says in our words why a connection ended.
fn explain(error: &ConnectionError) -> NetError {
    if let ConnectionError::ApplicationClosed(close) = error {
        let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
        match code {
            CLOSE_NOT_ADMITTED => return NetError::NotAdmitted,
            CLOSE_NO_SERVICE => return NetError::NoService,
            CLOSE_REPLACED => return NetError::Replaced,
            CLOSE_BUSY => return NetError::closed("too many others ask at the moment"),
            CLOSE_DONE => return NetError::closed("the other side ended it"),
            _ => {}
        }
    }
    NetError::closed(error)
}

/// Why this connection ended, or `otherwise` if it has not.
pub(crate) fn explain_end(connection: &Connection, otherwise: NetError) -> NetError {
    connection.close_reason().map_or(otherwise, |error| explain(&error))
}

fn lock_write(protocols: &RwLock<ProtocolMap>) -> RwLockWriteGuard<'_, ProtocolMap> {
    protocols.write().unwrap_or_else(PoisonError::into_inner)
}
