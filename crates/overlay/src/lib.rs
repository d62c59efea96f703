//! The private layer-3 network of one cluster: packets in at a TUN descriptor, sealed packets out, and back.
//!
//! What always holds: an inner packet is let through only if its source is an address of the member whose key sealed
//! it and its destination is ours; each sealed packet passes once; every field from the wire is checked before use;
//! everything dropped is counted under a reason. Time and randomness are arguments of all logic; threads and
//! descriptors are at the edge (`io`, `plane`). The wire format is `docs/network.md`.
//!
//! Not here: who the members are, how they are introduced to each other, and how a namespace or a TUN is made. No
//! other crate of ours is known, so that this one can be taken out and used elsewhere.

pub mod control;
mod count;
pub mod crypt;
mod error;
pub mod handshake;
pub mod inner;
pub mod io;
pub mod machine;
mod paths;
mod plane;
pub mod privacy;
pub mod random;
pub mod relay;
pub mod seam;
pub mod segment;
pub mod session;
pub mod wire;

pub use count::{Counters, Dropped};
pub use error::{OverlayError, Result};
pub use plane::{Introduce, Overlay, PeerStats};

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// An Ed25519 public key: who a member is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub [u8; 32]);

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The addresses of a member inside the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Whether this is one of the two.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.v4,
            IpAddr::V6(v6) => v6 == self.v6,
        }
    }
}

/// One member of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its key.
    pub key: PeerKey,
    /// Its addresses inside.
    pub addresses: Addresses,
    /// Whether a path to it is made before the first packet asks for one.
    pub eager: bool,
}

/// Where a relay listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayAt {
    /// What its members know it by, whatever its address; what they sign for it bears it.
    pub id: [u8; 32],
    /// Its UDP forwarder.
    pub udp: SocketAddr,
    /// Another UDP port of it: whether a NAT gives us another port towards it tells what NAT that is.
    pub second: Option<SocketAddr>,
    /// The same over TCP, where UDP is blocked.
    pub tcp: Option<SocketAddr>,
}

/// How a packet leaves, and how one came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Straight to or from this address; IPv4 addresses are never written as IPv6 ones.
    Udp(SocketAddr),
    /// Through a relay.
    Relay {
        /// Its number in the configuration.
        relay: u8,
        /// Over TCP, not UDP.
        tcp: bool,
        /// The relay's channel, which stands before the packet; [`Way::TO_RELAY`] where the relay itself is meant.
        channel: u32,
    },
    /// As opaque bytes over whatever introduces the members.
    Introducer,
}

impl Way {
    /// The channel of messages for, or of, a relay itself: nothing stands before them.
    pub const TO_RELAY: u32 = 0;
}

/// What is hidden beyond contents, and at what cost. The default hides no sizes, times or addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Privacy {
    /// Every packet has one size, and cover traffic is sent.
    pub padded: bool,
    /// Members do not learn each other's addresses: relays only.
    pub via_relay: bool,
    /// What goes over relays goes over all that both sides are at in turn, so that none sees it all.
    pub split_relays: bool,
}

/// What an overlay is.
#[derive(Clone)]
pub struct Config {
    /// Which cluster; members of another fail the handshake.
    pub cluster: String,
    /// Our Ed25519 seed.
    pub key_seed: [u8; 32],
    /// Our addresses inside.
    pub me: Addresses,
    /// All members; ourselves may be among them.
    pub members: Vec<Member>,
    /// The relays to use, best first.
    pub relays: Vec<RelayAt>,
    /// Where to listen; port 0 is any. An IPv6 wildcard hears IPv4 too.
    pub listen: SocketAddr,
    /// The largest inner packet, as the TUN has it.
    pub mtu: u16,
    /// What to hide.
    pub privacy: Privacy,
    /// Cover traffic and timing of a padded cluster.
    pub cover: privacy::CoverPlan,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, key_seed: _, me, members, relays, listen, mtu, privacy, cover: _ } = self;
        f.debug_struct("Config")
            .field("cluster", cluster)
            .field("me", me)
            .field("members", members)
            .field("relays", relays)
            .field("listen", listen)
            .field("mtu", mtu)
            .field("privacy", privacy)
            .finish_non_exhaustive()
    }
}
