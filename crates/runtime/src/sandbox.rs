//! The seam between the agent and the boxes on its machine: one supervised box per lease.
//!
//! Always holds: `ensure` and `remove` may be repeated; a box that was removed stays in the reports
//! with its wipe receipt until it is forgotten; secrets are masked in every print. The real
//! implementation (a process per lease) is in the worker; the twin is [`crate::mem::MemSandbox`].

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, limits::Enforcement};

/// Runs boxes, one per lease.
pub trait Sandbox {
    /// Makes the lease's box exist as specified. Repeating it with the same spec changes nothing.
    fn ensure(&mut self, spec: &BoxSpec) -> Result<()>;
    /// Ends the lease's box and wipes it. Repeating it changes nothing; an unknown lease is fine.
    fn remove(&mut self, lease: &str, reason: &str) -> Result<()>;
    /// What is there now, ordered by lease.
    fn observe(&mut self) -> Vec<BoxReport>;
}

/// Everything needed to run one lease's box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxSpec {
    /// The lease, as text; letters, digits, `-` and `_` only.
    pub lease: String,
    /// What runs in the box.
    pub engine: Engine,
    /// This member's address in the cluster's overlay.
    pub ip: Ipv4Addr,
    /// Its IPv6 address there, of a /64 of the cluster's own; `None` for a box without.
    pub ip6: Option<Ipv6Addr>,
    /// Length of the overlay's network prefix in bits.
    pub prefix: u8,
    /// The overlay's MTU in bytes.
    pub mtu: u32,
    /// The head's address in the overlay.
    pub head_ip: Ipv4Addr,
    /// How many members the cluster has, the head included.
    pub members: u32,
    /// What the lease may use.
    pub limits: Limits,
}

impl BoxSpec {
    /// Refuses what cannot be run: a lease id that is no file name, addresses outside one network,
    /// limits of zero.
    pub fn check(&self) -> Result<()> {
        let id_ok = !self.lease.is_empty()
            && self.lease.len() <= 128
            && self.lease.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !id_ok {
            return Err(bad_spec("a lease id is 1 to 128 letters, digits, '-' or '_'"));
        }
        if !(8..=30).contains(&self.prefix) || !(576..=9000).contains(&self.mtu) {
            return Err(bad_spec("the overlay's prefix must be 8 to 30 bits and its MTU 576 to 9000 bytes"));
        }
        let mask = u32::MAX << (32 - u32::from(self.prefix));
        if u32::from(self.ip) & mask != u32::from(self.head_ip) & mask {
            return Err(bad_spec("the member's and the head's address are not in one overlay network"));
        }
        let l = &self.limits;
        if self.members == 0 || l.cpu_millis == 0 || l.memory_bytes < 16 << 20 || l.processes < 8 {
            return Err(bad_spec("a box needs members, CPU, 16 MiB of memory and 8 processes at least"));
        }
        self.engine.check()
    }
}

fn bad_spec(message: &str) -> Error {
    Error::Refused { code: "box_spec_invalid", message: message.into() }
}

/// What runs in a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Engine {
    /// The given program, once, on every member.
    Command {
        /// Program and arguments; the program is looked up in the box.
        argv: Vec<String>,
        /// Extra environment variables.
        env: Vec<(String, String)>,
    },
    /// A Ray node.
    Ray {
        /// The prepared environment, by name and digest.
        environment: EnvironmentRef,
        /// Head or member.
        role: Role,
        /// Whether the head also serves `JupyterLab` (port 8888, the same token).
        jupyter: bool,
        /// The cluster's token for every Ray port.
        token: Secret,
        /// How soon a silent node counts as dead.
        failure_detection: FailureDetection,
        /// Start over Ray's private API (falls back by itself); false means plain `ray start`.
        fast_start: bool,
    },
}

impl Engine {
    fn check(&self) -> Result<()> {
        match self {
            Engine::Command { argv, .. } if argv.first().is_none_or(String::is_empty) => {
                Err(bad_spec("the command engine needs a program"))
            }
            Engine::Ray { token, .. } if token.expose().len() < 16 => {
                Err(bad_spec("a Ray cluster's token has 16 characters at least"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses engines that this version does not run, by name and with the reason.
    pub fn check_name(name: &str) -> Result<()> {
        let why = match name {
            "command" | "ray" => return Ok(()),
            "kubernetes" => "it needs a supplier's Kubernetes, which workers do not drive yet",
            "container" => "it needs the podman box, which workers do not run yet",
            "vm" => "it needs the microVM box, which workers do not run yet",
            _ => "no such engine is known",
        };
        Err(Error::Refused {
            code: "engine_unavailable",
            message: format!("engine {name:?}: {why}; available: command, ray"),
        })
    }
}

/// Refuses kinds of box that this version does not run, by name and with the reason.
pub fn check_box_kind(name: &str) -> Result<()> {
    let why = match name {
        "bubblewrap" => return Ok(()),
        "podman" | "container" => "container images are not run yet",
        "microvm" | "vm" => "virtual machines are not run yet",
        "confidential" => "it needs hardware attestation, which is not checked yet",
        _ => "no such box is known",
    };
    Err(Error::Refused {
        code: "box_unavailable",
        message: format!("box {name:?}: {why}; available: bubblewrap"),
    })
}

/// Where a node stands in its Ray cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the control store, the dashboard and the client port.
    Head,
    /// Joins the head.
    Member,
}

/// How soon a silent node counts as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureDetection {
    /// About 10 s, for members near each other.
    Lan,
    /// About 30 s, for members across the internet.
    Wan,
}

/// An environment by name and content: `name@sha256:<64 hex digits>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvironmentRef {
    /// Such as `ray`.
    pub name: String,
    /// Hex SHA-256 of the environment's canonical text.
    pub digest: String,
}

impl fmt::Display for EnvironmentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@sha256:{}", self.name, self.digest)
    }
}

impl From<EnvironmentRef> for String {
    fn from(value: EnvironmentRef) -> Self {
        value.to_string()
    }
}

impl TryFrom<String> for EnvironmentRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let parsed = text.split_once("@sha256:").filter(|(name, digest)| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && digest.len() == 64
                && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        let Some((name, digest)) = parsed else {
            return Err(Error::Refused {
                code: "environment_ref_invalid",
                message: format!("{text:?} is no environment; write name@sha256:<64 hex digits>"),
            });
        };
        Ok(Self { name: name.into(), digest: digest.into() })
    }
}

impl std::str::FromStr for EnvironmentRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::try_from(text.to_owned())
    }
}

/// Text that must not be printed. Serialising keeps it; prints mask it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// What a lease may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Memory with page cache and shared memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// What the box may keep on disk; watched, the box ends when it is exceeded.
    pub disk_bytes: u64,
    /// UUIDs of the GPUs that the box may use.
    pub gpus: Vec<String>,
}

/// What is known of one lease's box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxReport {
    /// The lease, as in its spec.
    pub lease: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// How long the parts of the start took.
    pub timeline: Timeline,
    /// How the limits are enforced; with `None` the device must not hold two tenants.
    pub enforcement: Enforcement,
    /// When the box was started, in ms of the reporter's monotonic time.
    pub started_ms: u64,
    /// When it became ready, likewise.
    pub ready_ms: Option<u64>,
}

/// The life of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// The environment is being made.
    Preparing {
        /// 0 to 100.
        progress: u8,
        /// The step, for people.
        detail: String,
    },
    /// The engine is starting.
    Starting,
    /// The engine does its work.
    Ready,
    /// The program ended.
    Exited {
        /// Its exit code; 128 + n when signal n ended it.
        code: i32,
    },
    /// The box could not start or broke.
    Failed {
        /// Stable, `snake_case`.
        code: String,
        /// What happened and what to do.
        message: String,
    },
    /// Gone, with its files and processes.
    Removed {
        /// The evidence.
        wipe: WipeReceipt,
    },
}

/// How long each part of the start took, in ms since the box was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Namespaces and TUN are there.
    pub boxes_ms: Option<u64>,
    /// The supervisor said that packets flow.
    pub overlay_ms: Option<u64>,
    /// The node's processes are up.
    pub engine_ms: Option<u64>,
    /// A first task ran on every member (reported by the head).
    pub first_task_ms: Option<u64>,
    /// The Jobs API answers (head).
    pub jobs_api_ms: Option<u64>,
    /// The client port answers (head).
    pub client_ms: Option<u64>,
}

/// Evidence that a lease left nothing behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeReceipt {
    /// The lease.
    pub lease: String,
    /// Files and links removed.
    pub files: u64,
    /// Bytes of the regular files removed.
    pub bytes: u64,
    /// Processes that were still there and were killed.
    pub processes_killed: u64,
    /// What was done, honestly.
    pub method: String,
    /// Whether the folder and the processes were looked for afterwards and not found.
    pub finished: bool,
}
