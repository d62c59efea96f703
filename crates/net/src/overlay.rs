//! The private layer-3 network of one cluster, seen from one member.
//!
//! What always holds: only members' endpoints are let in, of this cluster only; a packet passes only if its inner
//! source is the overlay address of the peer that sent it and its destination is ours; everything else is dropped and
//! counted. Of two members the one with the lower endpoint id dials. Addresses need be unique within a cluster only.
//!
//! The interface ([`Overlay`], [`OverlayConfig`], [`Member`], [`PeerStats`] and the TUN descriptor) is the seam: today
//! packets travel as QUIC datagrams (`plane`); a faster UDP plane keyed from these same connections can take its place
//! behind it. Making the namespace and the device's address are not here.

mod icmp;
mod plane;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use iroh::{
    TransportAddr,
    endpoint::{Connection, VarInt},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    EndpointId, NetError, Node, NodeAddr,
    frame::{read_frame, write_frame},
    node::{
        ALPN_OVERLAY, CLOSE_DONE, CLOSE_NO_SERVICE, CLOSE_NOT_ADMITTED, CLOSE_REPLACED, Protocol, explain_end,
    },
};
use plane::{Lane, Tun};

/// The MTU of the TUN device: the largest inner packet that passes wherever the way takes 1368 bytes. Where it takes
/// less, senders are told and adapt.
pub const MTU_BYTES: u16 = 1280;

const GREETING_LIMIT_BYTES: usize = 1024;
const GREETING_WAIT: Duration = Duration::from_secs(10);
const REDIAL_MIN: Duration = Duration::from_millis(100);
const REDIAL_MAX: Duration = Duration::from_secs(5);

/// One member of a cluster's overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its key.
    pub endpoint: EndpointId,
    /// Its address inside the overlay.
    pub ip: Ipv4Addr,
    /// Where to reach it, best effort.
    pub addr: NodeAddr,
}

/// What an overlay is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayConfig {
    /// Which cluster; both sides must say the same.
    pub cluster: String,
    /// Our address inside.
    pub me: Ipv4Addr,
    /// All members; ourselves may be among them.
    pub members: Vec<Member>,
    /// Size of the largest inner packet, usually [`MTU_BYTES`].
    pub mtu: u16,
}

/// How packets reach a peer now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerPath {
    /// Straight, to this address.
    Direct(SocketAddr),
    /// Through the relay at this URL.
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

/// A running overlay; ends when dropped.
#[derive(Debug)]
pub struct Overlay {
    shared: Arc<Shared>,
    reading: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    node: Node,
    cluster: String,
    me: Ipv4Addr,
    tun: Arc<Tun>,
    peers: RwLock<Arc<Peers>>,
}

type Peers = BTreeMap<Ipv4Addr, Arc<Peer>>;

#[derive(Debug)]
struct Peer {
    id: EndpointId,
    lane: Arc<Lane>,
    addr: watch::Sender<NodeAddr>,
    arrivals: mpsc::Sender<Connection>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
        self.lane.close(CLOSE_DONE);
    }
}

impl Overlay {
    /// Starts the overlay on a TUN descriptor (`IFF_TUN | IFF_NO_PI`, no offload header). Must be called inside a
    /// tokio runtime. Peers are connected in the background.
    ///
    /// # Errors
    /// If the descriptor cannot be watched, or this node already runs an overlay of this cluster.
    pub fn start(node: &Node, config: OverlayConfig, tun: OwnedFd) -> Result<Self, NetError> {
        let tun = Arc::new(Tun::new(tun, config.mtu).map_err(NetError::io("watch the TUN device"))?);
        let shared = Arc::new(Shared {
            node: node.clone(),
            cluster: config.cluster,
            me: config.me,
            tun,
            peers: RwLock::default(),
        });
        node.overlays().add(&shared)?;
        shared.set_members(config.members);
        let reader = shared.clone();
        let reading = tokio::spawn(async move {
            let peer = |ip: Ipv4Addr| reader.peers().get(&ip).map(|peer| peer.lane.clone());
            reader.tun.read_all(reader.me, peer).await;
        });
        Ok(Self { shared, reading })
    }

    /// Makes this the list of members. Connections to those who stay are kept, the others end at once.
    pub fn set_members(&self, members: Vec<Member>) {
        self.shared.set_members(members);
    }

    /// The state of every peer, by overlay address.
    pub fn stats(&self) -> Vec<PeerStats> {
        self.shared.peers().iter().map(|(ip, peer)| peer.stats(*ip)).collect()
    }

    /// Packets of our own side dropped before a peer was chosen: a foreign source address, or nobody there.
    pub fn unrouted(&self) -> u64 {
        self.shared.tun.unrouted()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.reading.abort();
        self.shared.node.overlays().remove(&self.shared.cluster);
        self.shared.set_members(Vec::new());
    }
}

impl Shared {
    fn peers(&self) -> Arc<Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn peer(&self, id: EndpointId) -> Option<Arc<Peer>> {
        self.peers().values().find(|peer| peer.id == id).cloned()
    }

    fn set_members(self: &Arc<Self>, members: Vec<Member>) {
        let mut current = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Peers::new();
        for member in members {
            if member.endpoint == self.node.id() || member.ip == self.me {
                continue;
            }
            let same = current.get(&member.ip).filter(|peer| peer.id == member.endpoint).cloned();
            let peer = match same {
                Some(peer) => {
                    peer.addr
                        .send_if_modified(|addr| std::mem::replace(addr, member.addr.clone()) != member.addr);
                    peer
                }
                None => Arc::new(self.new_peer(&member)),
            };
            next.entry(member.ip).or_insert(peer);
        }
        *current = Arc::new(next);
    }

    fn new_peer(&self, member: &Member) -> Peer {
        let lane = Arc::new(Lane::new(self.me, member.ip));
        let (addr, address) = watch::channel(member.addr.clone());
        let (arrivals, arriving) = mpsc::channel(4);
        let seek = Seek {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            id: member.endpoint,
            address,
            arriving,
        };
        let task = tokio::spawn(seek.run(lane.clone(), self.tun.clone()));
        Peer { id: member.endpoint, lane, addr, arrivals, task }
    }
}

impl Peer {
    fn stats(&self, ip: Ipv4Addr) -> PeerStats {
        let (path, rtt_us) = self.lane.connection().as_ref().map_or((PeerPath::Down, 0), current_path);
        let (sent_bytes, received_bytes, dropped) = self.lane.counts();
        let dropped = (dropped > 0).then(|| ("any".to_owned(), dropped)).into_iter().collect();
        PeerStats {
            endpoint: self.id,
            ip,
            path,
            rtt_us,
            loss_ppm: None,
            sent_bytes,
            received_bytes,
            sent_packets: None,
            received_packets: None,
            dropped,
        }
    }
}

fn current_path(connection: &Connection) -> (PeerPath, u64) {
    for path in &connection.paths() {
        if path.is_selected() {
            let rtt_us = u64::try_from(path.rtt().as_micros()).unwrap_or(u64::MAX);
            match path.remote_addr() {
                TransportAddr::Ip(addr) => return (PeerPath::Direct(*addr), rtt_us),
                TransportAddr::Relay(url) => return (PeerPath::Relayed(url.to_string()), rtt_us),
                _ => {}
            }
        }
    }
    (PeerPath::Down, 0)
}

/// Keeps one peer connected for as long as it is a member.
struct Seek {
    node: Node,
    cluster: String,
    id: EndpointId,
    address: watch::Receiver<NodeAddr>,
    arriving: mpsc::Receiver<Connection>,
}

impl Seek {
    async fn run(mut self, lane: Arc<Lane>, tun: Arc<Tun>) {
        let mut next = None;
        loop {
            let connection = match next.take() {
                Some(connection) => connection,
                None => match self.find().await {
                    Some(connection) => connection,
                    None => return,
                },
            };
            lane.set(Some(connection.clone()));
            tokio::select! {
                () = lane.receive_all(&connection, &tun) => {}
                newer = self.arriving.recv() => {
                    connection.close(VarInt::from_u32(CLOSE_REPLACED), b"replaced");
                    next = newer;
                }
            }
            lane.set(None);
            tracing::debug!(peer = %self.id, reason = ?connection.close_reason(), "an overlay connection ended");
            if next.is_none() {
                // A peer that lets us in and throws us out again must not make us spin.
                tokio::time::sleep(REDIAL_MIN).await;
            }
        }
    }

    /// Dials, or waits to be dialled: the lower id dials, so there is one connection per pair.
    async fn find(&mut self) -> Option<Connection> {
        if self.id < self.node.id() {
            return self.arriving.recv().await;
        }
        let mut wait = REDIAL_MIN;
        loop {
            let addr = self.address.borrow_and_update().clone();
            match self.dial(&addr).await {
                Ok(connection) => return Some(connection),
                Err(error) => tracing::debug!(peer = %self.id, %error, "an overlay peer is out of reach"),
            }
            let changed = timeout(wait, self.address.changed()).await;
            wait = if changed.is_ok() { REDIAL_MIN } else { (wait * 2).min(REDIAL_MAX) };
        }
    }

    async fn dial(&self, addr: &NodeAddr) -> Result<Connection, NetError> {
        let connection = self.node.connect(addr, ALPN_OVERLAY).await?;
        let greet = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(NetError::closed)?;
            write_frame(&mut send, self.cluster.as_bytes(), GREETING_LIMIT_BYTES).await?;
            read_frame(&mut receive, GREETING_LIMIT_BYTES).await
        };
        match timeout(GREETING_WAIT, greet).await {
            Ok(Ok(_)) => Ok(connection),
            Ok(Err(error)) => Err(explain_end(&connection, error)),
            Err(_) => Err(NetError::closed("no answer to the greeting")),
        }
    }
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
        peer.arrivals.send(connection.clone()).await.map_err(|_| NetError::NotAdmitted)
    };
    match timeout(GREETING_WAIT, greet).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(peer = %id, %error, "an overlay connection was turned away"),
        Err(_) => tracing::debug!(peer = %id, "an overlay connection sent no greeting"),
    }
}
