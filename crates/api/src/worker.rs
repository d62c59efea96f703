//! What server and worker say to each other over their link: JSON frames.
//!
//! The server tells a worker its whole desired set under a generation and which leases have ended; a lease that is in
//! neither list is left alone until what is paid for runs out, so a server restored from an old backup kills nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ionet_domain::device::{Measured, Resources};
use ionet_domain::market::{Egress, EngineKind, Hiding, Program};
use ionet_domain::meter::Receipt;
use ionet_domain::order::WipeReceipt;
use ionet_domain::tunnel::Void;
use ionet_domain::{Address, DeviceId, EndpointId, LeaseId, OrderId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::secret::Secret;
use crate::sign::LinkMeasured;

/// Orders what a worker is told: the server's term first, then a number within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Generation {
    /// Grows with every start of a server.
    pub term: u64,
    /// Events folded when it was said.
    pub n: u64,
}

/// Server to worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// Who is speaking and for which network; the first frame.
    Welcome(Welcome),
    /// Everything that should run.
    Desired(Desired),
    /// Measure yourself and report.
    Check,
    /// Answer at once with the same bytes: measures round trip and bandwidth to the worker.
    Ping {
        /// Echoed.
        n: u64,
        /// Filler to measure bandwidth with.
        payload: String,
    },
}

/// The server's first words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// Names the network in signed statements.
    pub network: String,
    /// The key that signs quotes, member lists and grants.
    pub server: Address,
    /// How often telemetry is wanted, in milliseconds.
    pub telemetry_ms: u64,
}

/// The whole desired set of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Older ones are refused.
    pub generation: Generation,
    /// Leases that should have a box.
    pub leases: Vec<DesiredLease>,
    /// Leases that the server knows have ended: their boxes go and are wiped.
    pub ended: Vec<LeaseId>,
}

/// One lease as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredLease {
    /// Which lease.
    pub lease: LeaseId,
    /// What runs in the box.
    pub engine: EngineKind,
    /// What exactly.
    pub program: Program,
    /// What the box gets.
    pub resources: Resources,
    /// The secret of this cluster's services.
    pub token: Secret,
    /// Grows when the engine must start anew.
    pub engine_epoch: u32,
    /// Whether paid time is running.
    pub running: bool,
    /// Milliseconds that are paid for in all; the box runs on until then without any server.
    pub paid_ms: u64,
    /// Milliseconds beyond that before the box is ended by itself; they cost nothing.
    pub grace_ms: u64,
    /// The members, signed by the server.
    pub members: MemberList,
    /// The server's signature over the list, in hex.
    pub members_signature: String,
    /// Whether the box may open connections out of the cluster; what is listed is in the program.
    #[serde(default, skip_serializing_if = "Egress::is_on")]
    pub egress: Egress,
    /// What the cluster's network hides.
    #[serde(default, skip_serializing_if = "Hiding::is_none")]
    pub hiding: Hiding,
    /// Leave to open tunnels that was taken back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub void: Vec<Void>,
}

/// Who belongs to a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberList {
    /// Which cluster.
    pub cluster: OrderId,
    /// Newer lists have higher numbers.
    pub generation: u64,
    /// In the order of slots; slot 0 is the head.
    pub members: Vec<Member>,
}

/// One member of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its lease.
    pub lease: LeaseId,
    /// Its place.
    pub slot: u32,
    /// Its address on the overlay.
    pub ip: Ipv4Addr,
    /// Its supervisor's endpoint and how to reach it, once it has said so: the transport's own JSON.
    pub endpoint: Option<MemberEndpoint>,
}

/// How a supervisor is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEndpoint {
    /// Its key.
    pub id: EndpointId,
    /// Addresses and relays, as the transport writes them.
    pub addr: serde_json::Value,
}

/// Worker to server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// The first frame of a link.
    Hello {
        /// Which device.
        device: DeviceId,
        /// The agent's release.
        version: String,
        /// The last desired set that it carried out.
        generation: Generation,
        /// What runs.
        observed: Vec<ObservedLease>,
    },
    /// What runs, whenever it changes and every few seconds.
    Observed(Vec<ObservedLease>),
    /// How the machine is.
    Telemetry(Telemetry),
    /// The result of a check, or why it could not be made.
    Checked(Result<Measured, String>),
    /// The echo of a ping.
    Pong {
        /// As it was sent.
        n: u64,
        /// As it was sent.
        payload: String,
    },
    /// The machine is in its owner's own use, or free again.
    Yielding(bool),
    /// What relays measured of the machine's links.
    LinksMeasured(Vec<SignedLink>),
    /// How a lease reaches the other members of its cluster, every few seconds.
    Links {
        /// Which lease.
        lease: LeaseId,
        /// One entry for each other member.
        links: Vec<PeerLink>,
    },
}

/// What a relay measured, signed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedLink {
    /// What.
    pub measured: LinkMeasured,
    /// In hex.
    pub signature: String,
}

/// How packets get to a member of the same cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// Straight, in UDP.
    Direct,
    /// Through a relay, in UDP.
    Relayed,
    /// Through a relay, in TCP: UDP is blocked.
    Tcp,
    /// Over the connection that introduced the two, until there is anything better.
    Introducer,
    /// Not at all.
    Down,
}

impl PathKind {
    /// All kinds, the best first.
    pub const ALL: [Self; 5] = [Self::Direct, Self::Relayed, Self::Tcp, Self::Introducer, Self::Down];

    /// Its name as programs see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Tcp => "tcp",
            Self::Introducer => "introducer",
            Self::Down => "down",
        }
    }
}

/// What passed in one direction between two members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// In all, without headers of the overlay.
    pub bytes: u64,
    /// In all, where they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Now.
    pub bits_per_second: u64,
    /// The most that was ever seen in a second.
    pub peak_bits_per_second: u64,
}

/// The link from one member of a cluster to another as the first sees it. In memory and disposable everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerLink {
    /// The other member's lease, by its number in the cluster.
    pub peer: u32,
    /// How packets travel.
    pub path: PathKind,
    /// The other side's address, or the relay's name; empty where there is none.
    pub via: String,
    /// For how long the path has been this one, in milliseconds.
    pub path_for_ms: u64,
    /// Round trip in microseconds; 0 when down.
    pub rtt_us: u64,
    /// Packets lost of a million, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_ppm: Option<u32>,
    /// To the other member.
    pub sent: Flow,
    /// From it.
    pub received: Flow,
    /// Packets dropped in either direction, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// One lease as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedLease {
    /// Which lease.
    pub lease: LeaseId,
    /// Where it stands.
    pub phase: BoxPhase,
    /// How long each part of the start took, in milliseconds.
    pub parts_ms: Vec<(String, u64)>,
    /// The newest receipt.
    pub receipt: Option<Receipt>,
    /// How the supervisor is reached.
    pub endpoint: Option<MemberEndpoint>,
    /// Restarts of the engine inside the box.
    pub engine_restarts: u32,
    /// What left the cluster from its box, as of a few seconds ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressUse>,
}

/// What passed between a box and the world outside its cluster since the box began. Bytes are payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressUse {
    /// What is in force: off where the supplier forbids egress, whatever the order says.
    #[schema(value_type = String)]
    pub mode: Egress,
    /// Out of the box.
    pub sent_bytes: u64,
    /// Into the box.
    pub received_bytes: u64,
    /// Connections and UDP flows opened.
    pub opened: u64,
    /// Connections, flows and names that rules or the protection of the supplier's own network turned away.
    pub refused: u64,
    /// Connections and datagrams dropped because the box had too many.
    pub limited: u64,
    /// Connections and flows open now.
    pub open: u64,
}

/// Where a box stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BoxPhase {
    /// The environment is being prepared.
    Preparing {
        /// 0 to 100, if it can be told.
        percent: Option<u8>,
        /// What is being done.
        detail: String,
    },
    /// Box, overlay and engine are starting.
    Starting,
    /// Up.
    Ready,
    /// The program ended by itself.
    Exited {
        /// With this code.
        exit_code: i32,
    },
    /// The box is gone without having been asked to go, or could not be started.
    Lost {
        /// What happened.
        reason: String,
    },
    /// Removed as asked.
    Removed {
        /// The evidence.
        wipe: WipeReceipt,
    },
}

/// How the machine is. In memory and disposable at the server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Milliseconds since 1970 by the worker's clock.
    pub at_ms: u64,
    /// Share of all CPU threads in use, in percent.
    pub cpu_percent: u8,
    /// The part of that which is not leases.
    pub foreign_cpu_percent: u8,
    /// Memory in use.
    pub memory_used_bytes: u64,
    /// Free on the data directory's disk.
    pub disk_free_bytes: u64,
    /// Each GPU.
    pub gpus: Vec<GpuTelemetry>,
}

/// How a GPU is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuTelemetry {
    /// Which.
    pub uuid: String,
    /// In percent.
    pub utilisation_percent: u32,
    /// In use.
    pub memory_used_bytes: u64,
    /// Of its memory.
    pub memory_bytes: u64,
    /// In degrees Celsius.
    pub temperature_c: u32,
    /// In milliwatts.
    pub power_mw: u32,
}
