//! What stands between control (the machine: keys, paths, relays; pure) and the threads that move packets.
//!
//! The threads tell the machine what happened ([`Input`]), it says what to do ([`Output`]). What every packet needs is
//! in one [`Table`], replaced as a whole whenever it changes, so that a packet takes no lock to find its way.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    Addresses, Counters, Member, PeerKey, RelayAt, Way,
    crypt::{ReceiveKey, SendKey},
};

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A message of its own, not data: its first byte is 0. The channel of a relayed one has been taken off.
    Packet {
        /// How it came.
        way: Way,
        /// The whole message.
        bytes: &'a [u8],
    },
    /// A sealed control message, opened already.
    Control {
        /// Our index of the session that it was sealed in.
        index: u32,
        /// How it came.
        way: Way,
        /// What stands behind the shim.
        body: &'a [u8],
        /// Bytes of the whole sealed packet, without a channel: a padded probe that came shows the size that passes.
        packet_bytes: usize,
    },
    /// The first packet was opened on a session, or the first that came this way.
    Used {
        /// Our index of the session.
        index: u32,
        /// How the packet came.
        way: Way,
    },
    /// There is a packet for a peer, and no session or no way.
    Wanted {
        /// Whom it is for.
        peer: PeerKey,
    },
    /// Bytes that the introducer carried for that peer.
    Introduced {
        /// From whom, as the introducer has proven.
        from: PeerKey,
        /// What our machine at the other end handed to the introducer.
        bytes: &'a [u8],
    },
    /// This is the list of members now.
    Members(Vec<Member>),
    /// These are the relays now.
    Relays(Vec<RelayAt>),
    /// Our socket can be reached at these addresses on this machine's own networks.
    OwnAddresses(Vec<SocketAddr>),
    /// The system would not send this way.
    Failed {
        /// The way.
        way: Way,
        /// Its reason.
        error: std::io::ErrorKind,
    },
    /// The system does not send packets this way that are as large as the table says.
    TooLarge {
        /// The way.
        way: Way,
    },
    /// Something came by a spare socket; nobody has verified it yet.
    Spare {
        /// Which socket.
        number: u16,
        /// From where.
        from: SocketAddr,
    },
    /// New keys are wanted with everybody.
    Renew,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub enum Output {
    /// Send this message or sealed packet; the channel of a relayed way is put before it by the threads.
    Send {
        /// How.
        way: Way,
        /// What.
        bytes: Vec<u8>,
    },
    /// Have this carried to the peer by whatever introduces members.
    Introduce {
        /// To whom.
        to: PeerKey,
        /// What.
        bytes: Vec<u8>,
    },
    /// Do this with the spare sockets.
    Spare(Spare),
    /// From now on packets go by this table.
    Publish(Arc<Table>),
}

/// What to do with spare sockets: many are open for a moment, while one port of a NAT is sought that lets a peer in.
#[derive(Debug)]
pub enum Spare {
    /// Open so many, numbered from 0.
    Open {
        /// How many.
        count: u16,
    },
    /// Send a sealed packet from one.
    Send {
        /// Which.
        number: u16,
        /// Whereto.
        to: SocketAddr,
        /// What.
        bytes: Vec<u8>,
    },
    /// This one reaches that address: everything for it leaves by this socket from now on. The others are closed.
    Keep {
        /// Which.
        number: u16,
        /// Whom it reaches.
        to: SocketAddr,
    },
    /// All that were not kept are closed.
    Close,
    /// The one that was kept for this address is closed.
    Release {
        /// Whom it reached.
        to: SocketAddr,
    },
}

/// Where every packet goes and what opens it.
#[derive(Debug, Default)]
pub struct Table {
    /// By inner destination.
    pub v4: BTreeMap<Ipv4Addr, Arc<Route>>,
    /// By inner destination.
    pub v6: BTreeMap<Ipv6Addr, Arc<Route>>,
    /// By our session index, which stands first in a packet.
    pub receive: BTreeMap<u32, Receive>,
    /// The relays by their number; `None` for one that is not used any more.
    pub relays: Vec<Option<RelayAt>>,
}

impl Table {
    /// The way to an inner address.
    pub fn route(&self, to: IpAddr) -> Option<&Arc<Route>> {
        match to {
            IpAddr::V4(to) => self.v4.get(&to),
            IpAddr::V6(to) => self.v6.get(&to),
        }
    }
}

/// How packets get to one peer now.
#[derive(Debug)]
pub struct Route {
    /// To whom.
    pub peer: Arc<Peer>,
    /// What seals them; `None` before the first handshake is done.
    pub send: Option<Arc<SendKey>>,
    /// The ways that are up, best first; flows are spread over them by weight.
    pub hops: Vec<Hop>,
}

/// A way that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The way.
    pub way: Way,
    /// The largest sealed packet that passes, from the receiver's index to the tag, without a channel.
    pub packet_bytes: u16,
    /// Its share of the flows against the other ways' weights; 0 for a way that only stands by.
    pub weight: u16,
}

/// What opens the packets of one session.
#[derive(Clone, Debug)]
pub struct Receive {
    /// The key.
    pub key: Arc<ReceiveKey>,
    /// Whose packets they are.
    pub peer: Arc<Peer>,
}

/// What is known of one peer for as long as it is a member, whatever becomes of its sessions.
#[derive(Debug)]
pub struct Peer {
    /// Its key.
    pub key: PeerKey,
    /// Its addresses inside: the only sources that its packets may have.
    pub addresses: Addresses,
    /// What was counted.
    pub counters: Counters,
    wanted: AtomicBool,
    observed: Mutex<Observed>,
}

/// What control sees of a peer, for people to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The ways to it, best first, those that stand by or are down included.
    pub ways: Vec<WayObserved>,
    /// Handshakes that were completed with it.
    pub handshakes: u64,
}

/// What control sees of one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayObserved {
    /// The way.
    pub way: Way,
    /// Whether packets may go this way.
    pub up: bool,
    /// Round trip, smoothed.
    pub rtt_us: u64,
    /// Lost probes, in millionths.
    pub loss_ppm: u32,
    /// The largest sealed packet that passes.
    pub packet_bytes: u16,
}

impl Peer {
    /// A peer of which nothing is known yet.
    pub fn new(member: &Member) -> Self {
        let Member { key, addresses, eager: _ } = *member;
        Self {
            key,
            addresses,
            counters: Counters::default(),
            wanted: AtomicBool::new(false),
            observed: Mutex::default(),
        }
    }

    /// Notes that a packet waits for it; whether that is news, so that control is told once.
    pub fn want(&self) -> bool {
        !self.wanted.swap(true, Ordering::Relaxed)
    }

    /// Control has heard of it: the next packet that waits is news again.
    pub fn heard(&self) {
        self.wanted.store(false, Ordering::Relaxed);
    }

    /// What control saw last.
    pub fn observed(&self) -> Observed {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what control sees.
    pub fn observe(&self, observed: Observed) {
        *self.observed.lock().unwrap_or_else(PoisonError::into_inner) = observed;
    }
}
