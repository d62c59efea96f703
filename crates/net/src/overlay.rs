//! The private layer-3 network of one cluster, seen from one member.
//!
//! Packets are `ionet-overlay`'s: keys, paths, the TUN and the sockets. What this module adds is the introduction: one
//! iroh connection for each pair of members, over which the two ends' control talks before it has found a path of
//! its own, and small packets go as long as there is none.
//!
//! What always holds: only members' endpoints are let in, of this cluster only; what arrives from a member is handed on
//! as from that member and nobody else. Of two members the one with the lower endpoint id dials. Addresses need be unique within a
//! cluster only. Making the namespace and the device's addresses are not here.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
pub use ionet_overlay::Privacy;
use ionet_overlay::{PeerKey, RelayAt, Way, privacy::CoverPlan};
use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    EndpointId, NetError, Node, NodeAddr, RelayInfo,
    frame::{FrameReader, read_frame, write_frame},
    node::{
        ALPN_OVERLAY, CLOSE_DONE, CLOSE_NO_SERVICE, CLOSE_NOT_ADMITTED, CLOSE_REPLACED, Protocol, explain_end,
    },
};

/// The MTU of the TUN device: fits a path of 1500 bytes with all headers, over IPv6 and a relay too. Trains are cut at
/// the path's own size.
pub const MTU_BYTES: u16 = 1400;

const GREETING_LIMIT_BYTES: usize = 1024;
const GREETING_WAIT: Duration = Duration::from_secs(10);
const REDIAL_MIN: Duration = Duration::from_millis(100);
const REDIAL_MAX: Duration = Duration::from_secs(5);
/// How soon a relay's name is looked up again that was not found.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(10);
/// What control says to its other end is short.
const MESSAGE_LIMIT_BYTES: usize = 4096;
/// Messages for one peer that may wait for a connection; control repeats what matters.
const WAITING_MESSAGES: usize = 32;

/// One member of a cluster's overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its key.
    pub endpoint: EndpointId,
    /// Its address inside the overlay; its IPv6 address follows from it ([`ipv6`]).
    pub ip: Ipv4Addr,
    /// Where to reach it, best effort.
    pub addr: NodeAddr,
    /// Whether a path to it is made before the first packet asks for one.
    #[serde(default)]
    pub eager: bool,
}

/// What an overlay is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayConfig {
    /// Which cluster; both sides must say the same.
    pub cluster: String,
    /// Our address inside.
    pub me: Ipv4Addr,
    /// All members; ourselves may be among them.
    pub members: Vec<Member>,
    /// The relays whose forwarders may be used.
    pub relays: Vec<RelayInfo>,
    /// Size of the largest inner packet, usually [`MTU_BYTES`].
    pub mtu: u16,
    /// What to hide beyond contents.
    pub privacy: Privacy,
}

/// The length of the IPv6 prefix that the members of a cluster share.
pub const IPV6_PREFIX_BITS: u8 = 64;

/// The IPv6 address of a member: a unique local prefix (RFC 4193) that only the cluster's name decides, and the IPv4
/// address as its last 32 bits.
pub fn ipv6(cluster: &str, ip: Ipv4Addr) -> Ipv6Addr {
    let hash = ring::digest::digest(&ring::digest::SHA256, format!("ionet overlay {cluster}").as_bytes());
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&hash.as_ref()[..8]);
    octets[0] = 0xfd;
    octets[12..].copy_from_slice(&ip.octets());
    octets.into()
}

/// A running overlay; ends when dropped.
#[derive(Debug)]
pub struct Overlay {
    shared: Arc<Shared>,
}

struct Shared {
    node: Node,
    cluster: String,
    me: Ipv4Addr,
    peers: Peers,
    /// URLs of the relays by what their forwarders are known by.
    relays: RwLock<BTreeMap<[u8; 32], String>>,
    finding_relays: Mutex<Option<JoinHandle<()>>>,
    plane: ionet_overlay::Overlay,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overlay({} at {})", self.cluster, self.me)
    }
}

/// The members and the connections to them, shared with the threads that move packets.
#[derive(Clone, Default)]
struct Peers(Arc<RwLock<BTreeMap<EndpointId, Arc<Peer>>>>);

impl Peers {
    fn get(&self, id: EndpointId) -> Option<Arc<Peer>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

struct Peer {
    id: EndpointId,
    ip: Ipv4Addr,
    carrier: Arc<Carrier>,
    addr: watch::Sender<NodeAddr>,
    arrivals: mpsc::Sender<Introduction>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
        self.carrier.close();
    }
}

/// Carries bytes to one peer: sealed packets as datagrams, which may be lost, everything else in order on a stream.
struct Carrier {
    connection: RwLock<Option<Connection>>,
    messages: mpsc::Sender<Vec<u8>>,
}

impl Carrier {
    fn send(&self, bytes: Vec<u8>) {
        // The first byte of what control says is 0; a sealed packet begins with an index above that.
        let sealed = bytes.first() != Some(&0);
        let connection = self.connection.read().unwrap_or_else(PoisonError::into_inner).clone();
        let fits =
            |connection: &Connection| connection.max_datagram_size().is_some_and(|most| bytes.len() <= most);
        match connection.filter(|connection| sealed && fits(connection)) {
            Some(connection) => _ = connection.send_datagram(Bytes::from(bytes)),
            // Without a connection for long the oldest messages stay; control says it again anyway.
            None => _ = self.messages.try_send(bytes),
        }
    }

    fn set(&self, connection: Option<Connection>) {
        *self.connection.write().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    fn close(&self) {
        let connection = self.connection.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = connection {
            connection.close(VarInt::from_u32(CLOSE_DONE), b"done");
        }
    }
}

/// A connection whose two ends have agreed on the cluster.
struct Introduction {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Overlay {
    /// Starts the overlay on a TUN descriptor (`IFF_TUN | IFF_NO_PI | IFF_VNET_HDR`). Must be called inside a tokio
    /// runtime. Peers are introduced in the background.
    ///
    /// # Errors
    /// If the descriptor or a socket cannot be used, or this node already runs an overlay of this cluster.
    pub fn start(node: &Node, config: OverlayConfig, tun: OwnedFd) -> Result<Self, NetError> {
        let OverlayConfig { cluster, me, members, relays, mtu, privacy } = config;
        let peers = Peers::default();
        let carriers = peers.clone();
        let introduce = move |to: PeerKey, bytes: Vec<u8>| {
            if let Some(peer) = carriers.get(EndpointId(to.0)) {
                peer.carrier.send(bytes);
            }
        };
        let inner = ionet_overlay::Config {
            key_seed: node.seed(),
            me: addresses(&cluster, me),
            members: known(&cluster, &members),
            relays: Vec::new(),
            listen: (Ipv6Addr::UNSPECIFIED, 0).into(),
            mtu,
            privacy,
            cover: CoverPlan::default(),
            cluster: cluster.clone(),
        };
        let plane = ionet_overlay::Overlay::start(&inner, tun, Box::new(introduce)).map_err(refused)?;
        let shared = Arc::new(Shared {
            node: node.clone(),
            cluster,
            me,
            peers,
            relays: RwLock::default(),
            finding_relays: Mutex::default(),
            plane,
        });
        node.overlays().add(&shared)?;
        shared.connect(members);
        shared.use_relays(relays);
        Ok(Self { shared })
    }

    /// Makes this the list of members. Those who stay keep everything, the others are out at once.
    pub fn set_members(&self, members: Vec<Member>) {
        self.shared.plane.set_members(known(&self.shared.cluster, &members));
        self.shared.connect(members);
    }

    /// Uses these relays' forwarders from now on.
    pub fn set_relays(&self, relays: Vec<RelayInfo>) {
        self.shared.use_relays(relays);
    }

    /// The state of every peer, by overlay address.
    pub fn stats(&self) -> Vec<PeerStats> {
        self.shared.stats()
    }

    /// Packets dropped that belong to no peer, most of them of our own side: a foreign source address, or nobody there.
    pub fn unrouted(&self) -> u64 {
        self.shared.plane.dropped().iter().map(|(_, count)| count).sum()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.shared.node.overlays().remove(&self.shared.cluster);
        self.shared.connect(Vec::new());
        self.shared.use_relays(Vec::new());
    }
}

fn addresses(cluster: &str, ip: Ipv4Addr) -> ionet_overlay::Addresses {
    ionet_overlay::Addresses { v4: ip, v6: ipv6(cluster, ip) }
}

/// The members as the packets' side knows them.
fn known(cluster: &str, members: &[Member]) -> Vec<ionet_overlay::Member> {
    let member = |member: &Member| ionet_overlay::Member {
        key: PeerKey(member.endpoint.0),
        addresses: addresses(cluster, member.ip),
        eager: member.eager,
    };
    members.iter().map(member).collect()
}

impl Shared {
    fn peer(&self, id: EndpointId) -> Option<Arc<Peer>> {
        self.peers.get(id)
    }

    /// Looks the relays' forwarders up, again and again while a name is not found, and uses them.
    fn use_relays(self: &Arc<Self>, relays: Vec<RelayInfo>) {
        let overlay = Arc::downgrade(self);
        let wanted = relays.iter().filter(|relay| relay.forwarder.is_some()).count();
        let finding = tokio::spawn(async move {
            loop {
                let mut found = Vec::new();
                for relay in &relays {
                    found.extend(relay.forwarder_at().await.map(|at| (at, relay.url.clone())));
                }
                let all = found.len() == wanted;
                let Some(overlay) = overlay.upgrade() else { return };
                overlay.found_relays(found);
                drop(overlay);
                if all {
                    return;
                }
                tokio::time::sleep(LOOK_UP_AGAIN).await;
            }
        });
        let before = self.finding_relays.lock().unwrap_or_else(PoisonError::into_inner).replace(finding);
        if let Some(before) = before {
            before.abort();
        }
    }

    fn found_relays(&self, found: Vec<(RelayAt, String)>) {
        let urls = found.iter().map(|(at, url)| (at.id, url.clone())).collect();
        *self.relays.write().unwrap_or_else(PoisonError::into_inner) = urls;
        self.plane.set_relays(found.into_iter().map(|(at, _)| at).collect());
    }

    fn relay_name(&self, number: u8) -> String {
        let relays = self.relays.read().unwrap_or_else(PoisonError::into_inner);
        self.plane.relay(number).and_then(|at| relays.get(&at.id).cloned()).unwrap_or_default()
    }

    /// Connections to exactly these; an address that changed is dialled anew.
    fn connect(self: &Arc<Self>, members: Vec<Member>) {
        let mut peers = self.peers.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = BTreeMap::new();
        for member in members {
            if member.endpoint == self.node.id() || member.ip == self.me {
                continue;
            }
            let same = peers.get(&member.endpoint).filter(|peer| peer.ip == member.ip).cloned();
            let peer = match same {
                Some(peer) => {
                    peer.addr
                        .send_if_modified(|addr| std::mem::replace(addr, member.addr.clone()) != member.addr);
                    peer
                }
                None => Arc::new(self.new_peer(&member)),
            };
            next.insert(member.endpoint, peer);
        }
        *peers = next;
    }

    fn new_peer(self: &Arc<Self>, member: &Member) -> Peer {
        let (messages, waiting) = mpsc::channel(WAITING_MESSAGES);
        let carrier = Arc::new(Carrier { connection: RwLock::new(None), messages });
        let (addr, address) = watch::channel(member.addr.clone());
        let (arrivals, arriving) = mpsc::channel(4);
        let seek = Seek {
            overlay: Arc::downgrade(self),
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            id: member.endpoint,
            address,
            arriving,
            waiting,
        };
        let task = tokio::spawn(seek.run(carrier.clone()));
        Peer { id: member.endpoint, ip: member.ip, carrier, addr, arrivals, task }
    }
}

/// Keeps one peer connected for as long as it is a member.
struct Seek {
    overlay: Weak<Shared>,
    node: Node,
    cluster: String,
    id: EndpointId,
    address: watch::Receiver<NodeAddr>,
    arriving: mpsc::Receiver<Introduction>,
    waiting: mpsc::Receiver<Vec<u8>>,
}

impl Seek {
    async fn run(mut self, carrier: Arc<Carrier>) {
        let mut next = None;
        loop {
            let introduction = match next.take() {
                Some(introduction) => introduction,
                None => match self.find().await {
                    Some(introduction) => introduction,
                    None => return,
                },
            };
            carrier.set(Some(introduction.connection.clone()));
            let connection = introduction.connection.clone();
            tokio::select! {
                () = carry(self.overlay.clone(), self.id, introduction, &mut self.waiting) => {}
                newer = self.arriving.recv() => {
                    connection.close(VarInt::from_u32(CLOSE_REPLACED), b"replaced");
                    next = newer;
                }
            }
            carrier.set(None);
            tracing::debug!(peer = %self.id, reason = ?connection.close_reason(), "an introduction ended");
            if next.is_none() {
                // A peer that lets us in and throws us out again must not make us spin.
                tokio::time::sleep(REDIAL_MIN).await;
            }
        }
    }

    /// Dials, or waits to be dialled: the lower id dials, so there is one connection per pair.
    async fn find(&mut self) -> Option<Introduction> {
        if self.id < self.node.id() {
            return self.arriving.recv().await;
        }
        let mut wait = REDIAL_MIN;
        loop {
            let addr = self.address.borrow_and_update().clone();
            match self.dial(&addr).await {
                Ok(introduction) => return Some(introduction),
                Err(error) => tracing::debug!(peer = %self.id, %error, "an overlay peer is out of reach"),
            }
            let changed = timeout(wait, self.address.changed()).await;
            wait = if changed.is_ok() { REDIAL_MIN } else { (wait * 2).min(REDIAL_MAX) };
        }
    }

    async fn dial(&self, addr: &NodeAddr) -> Result<Introduction, NetError> {
        let connection = self.node.connect(addr, ALPN_OVERLAY).await?;
        let greet = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(NetError::closed)?;
            write_frame(&mut send, self.cluster.as_bytes(), GREETING_LIMIT_BYTES).await?;
            read_frame(&mut receive, GREETING_LIMIT_BYTES).await?;
            Ok((send, receive))
        };
        match timeout(GREETING_WAIT, greet).await {
            Ok(Ok((send, receive))) => Ok(Introduction { connection, send, receive }),
            Ok(Err(error)) => Err(explain_end(&connection, error)),
            Err(_) => Err(NetError::closed("no answer to the greeting")),
        }
    }
}

/// Carries what both ends say until the connection ends.
async fn carry(
    overlay: Weak<Shared>,
    from: EndpointId,
    Introduction { connection, mut send, receive }: Introduction,
    waiting: &mut mpsc::Receiver<Vec<u8>>,
) {
    let mut frames = FrameReader::new(receive, MESSAGE_LIMIT_BYTES);
    let heard = |bytes: &[u8]| {
        if let Some(overlay) = overlay.upgrade() {
            overlay.plane.introduced(PeerKey(from.0), bytes);
        }
    };
    loop {
        tokio::select! {
            frame = frames.next() => match frame {
                Ok(Some(frame)) => heard(&frame),
                _ => return,
            },
            datagram = connection.read_datagram() => match datagram {
                Ok(datagram) => heard(&datagram),
                Err(_) => return,
            },
            Some(message) = waiting.recv() => {
                if write_frame(&mut send, &message, MESSAGE_LIMIT_BYTES).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// How packets reach a peer now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerPath {
    /// Straight, to this address.
    Direct(SocketAddr),
    /// Through the forwarder of the relay at this URL.
    Relayed(String),
    /// Through the relay at this URL in TCP, as UDP is blocked.
    Tcp(String),
    /// Over the connection that introduced the two.
    Introducer,
    /// Not at all.
    Down,
}

/// What an overlay knows about one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStats {
    /// The peer's key.
    pub endpoint: EndpointId,
    /// Its address inside.
    pub ip: Ipv4Addr,
    /// How packets travel.
    pub path: PeerPath,
    /// Round trip on that path, in microseconds; 0 when down.
    pub rtt_us: u64,
    /// Packets lost on that path, of a million, where it is measured.
    pub loss_ppm: Option<u32>,
    /// Inner bytes sent to it.
    pub sent_bytes: u64,
    /// Inner bytes received from it and let through.
    pub received_bytes: u64,
    /// Inner packets sent, where they are counted.
    pub sent_packets: Option<u64>,
    /// Inner packets received and let through, where they are counted.
    pub received_packets: Option<u64>,
    /// Packets dropped in either direction, by reason; reasons without any are left out.
    pub dropped: BTreeMap<String, u64>,
}

impl PeerStats {
    /// Packets dropped for whatever reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.values().sum()
    }
}

impl Shared {
    fn stats(&self) -> Vec<PeerStats> {
        let mut stats: Vec<_> =
            self.plane.stats().iter().map(|peer| seen(peer, |number| self.relay_name(number))).collect();
        stats.sort_unstable_by_key(|peer| peer.ip);
        stats
    }
}

fn seen(peer: &ionet_overlay::PeerStats, relay: impl Fn(u8) -> String) -> PeerStats {
    let up = peer.ways.iter().find(|way| way.up && peer.has_session);
    let path = match up.map(|way| way.way) {
        Some(Way::Udp(at)) => PeerPath::Direct(at),
        Some(Way::Relay { relay: number, tcp: false, .. }) => PeerPath::Relayed(relay(number)),
        Some(Way::Relay { relay: number, tcp: true, .. }) => PeerPath::Tcp(relay(number)),
        Some(Way::Introducer) => PeerPath::Introducer,
        None => PeerPath::Down,
    };
    let ([sent_packets, sent_bytes], [received_packets, received_bytes]) = (peer.sent, peer.received);
    let dropped = peer.dropped.iter().filter(|(_, count)| *count > 0);
    PeerStats {
        endpoint: EndpointId(peer.key.0),
        ip: peer.addresses.v4,
        path,
        rtt_us: up.map_or(0, |way| way.rtt_us),
        loss_ppm: up.map(|way| way.loss_ppm),
        sent_bytes,
        received_bytes,
        sent_packets: Some(sent_packets),
        received_packets: Some(received_packets),
        dropped: dropped.map(|(reason, count)| (reason.code().to_owned(), *count)).collect(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
fn refused(error: ionet_overlay::OverlayError) -> NetError {
    NetError::Bind { reason: error.to_string() }
}

/// The overlays of one node, by cluster: decides which of them an incoming connection belongs to.
#[derive(Clone, Default)]
pub(crate) struct Registry(Arc<Mutex<BTreeMap<String, Weak<Shared>>>>);

impl Registry {
    /// How the node serves overlay connections.
    pub(crate) fn protocol(&self) -> Protocol {
        let (known, registry) = (self.clone(), self.clone());
        Protocol {
            admit: Arc::new(move |id| known.all().iter().any(|overlay| overlay.peer(id).is_some())),
            handle: Arc::new(move |connection| {
                tokio::spawn(welcome(connection, registry.clone()));
            }),
        }
    }

    fn all(&self) -> Vec<Arc<Shared>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn add(&self, overlay: &Arc<Shared>) -> Result<(), NetError> {
        let mut overlays = self.lock();
        if overlays.get(&overlay.cluster).is_some_and(|other| other.strong_count() > 0) {
            let reason = format!("an overlay of cluster {} already runs here", overlay.cluster);
            return Err(NetError::Bind { reason });
        }
        overlays.insert(overlay.cluster.clone(), Arc::downgrade(overlay));
        Ok(())
    }

    fn remove(&self, cluster: &str) {
        self.lock().remove(cluster);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Weak<Shared>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn welcome(connection: Connection, registry: Registry) {
    let id = EndpointId::from(connection.remote_id());
    let greet = async {
        let (mut send, mut receive) = connection.accept_bi().await.map_err(NetError::closed)?;
        let cluster = read_frame(&mut receive, GREETING_LIMIT_BYTES).await?;
        let overlay = registry.all().into_iter().find(|overlay| overlay.cluster.as_bytes() == cluster);
        let Some(overlay) = overlay else {
            connection.close(VarInt::from_u32(CLOSE_NO_SERVICE), b"no_such_cluster");
            return Err(NetError::NoService);
        };
        let Some(peer) = overlay.peer(id).filter(|peer| peer.id < overlay.node.id()) else {
            connection.close(VarInt::from_u32(CLOSE_NOT_ADMITTED), b"not_a_member");
            return Err(NetError::NotAdmitted);
        };
        write_frame(&mut send, &[], GREETING_LIMIT_BYTES).await?;
        let introduction = Introduction { connection: connection.clone(), send, receive };
        peer.arrivals.send(introduction).await.map_err(|_| NetError::NotAdmitted)
    };
    match timeout(GREETING_WAIT, greet).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(peer = %id, %error, "an overlay connection was turned away"),
        Err(_) => tracing::debug!(peer = %id, "an overlay connection sent no greeting"),
    }
}
