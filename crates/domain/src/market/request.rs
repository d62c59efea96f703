//! What a renter asks for: the public part that price and placement read ([`Request`]) and the private part
//! that only the workers read ([`Program`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::{HardwareClass, Resources, Tier};
use crate::market::egress::{Destination, Egress};
use crate::market::hiding::Hiding;
use crate::market::upkeep::Upkeep;
use crate::money::{Asset, HOUR_MS, Rate};
use crate::refusal::Refusal;

/// What runs in the boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineKind {
    /// The given program, once per member.
    Command,
    /// A Ray cluster.
    Ray,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "command",
            Self::Ray => "ray",
        })
    }
}

impl FromStr for EngineKind {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let reason = match text {
            "command" => return Ok(Self::Command),
            "ray" => return Ok(Self::Ray),
            "kubernetes" => "clusters on a supplier's Kubernetes are not built yet",
            "container" => "container images need the podman box, which is not built yet",
            "vm" => "virtual machines need the microvm box, which is not built yet",
            _ => "there is no such engine",
        };
        Err(Refusal::Unsupported {
            what: format!("engine '{}'", text.chars().take(40).collect::<String>()),
            reason: reason.into(),
            available: "ray, command".into(),
        })
    }
}

crate::id::serde_as_text!(EngineKind);

/// Everything that price and placement look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What runs in the boxes.
    pub engine: EngineKind,
    /// How many members, each a lease on a device.
    pub members: u32,
    /// What each member gets.
    pub per_member: Resources,
    /// For how long, in milliseconds.
    pub duration_ms: u64,
    /// Only this GPU model, or one of several with `|` between them; `None` with no GPUs wanted means any device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// Only this supply network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Only devices with all of these tags.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Only devices that have earned this connectivity or a better one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Every member on a device of its own.
    #[serde(default)]
    pub spread: bool,
    /// Whether the boxes may open connections out of the cluster; what is listed is in the private [`Program`].
    #[serde(default, skip_serializing_if = "Egress::is_on")]
    pub egress: Egress,
    /// What the cluster's network hides.
    #[serde(default, skip_serializing_if = "Hiding::is_none")]
    pub hiding: Hiding,
    /// The most that all members together may cost an hour, before fees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<Rate>,
    /// What is done for the cluster while it lives: pauses, replacement of ailing members, scaling.
    #[serde(default, skip_serializing_if = "Upkeep::is_none")]
    pub upkeep: Upkeep,
    /// What is paid with.
    pub asset: Asset,
}

/// Least and most of each field, in one place.
pub(crate) const MAX_MEMBERS: u32 = 256;
pub(crate) const MIN_DURATION_MS: u64 = 60_000;
const MAX_DURATION_MS: u64 = 366 * 24 * HOUR_MS;
const MIN_MEMORY_BYTES: u64 = 16 << 20;
const MIN_RAY_MEMORY_BYTES: u64 = 1 << 30;

impl Request {
    /// Whether a device of this class would do.
    pub fn allows(&self, class: &HardwareClass) -> bool {
        match (&self.gpu_model, class) {
            (None, _) => true,
            (Some(named), HardwareClass::Gpu(model)) => named.split('|').any(|name| name == model),
            (Some(_), HardwareClass::Cpu) => false,
        }
    }

    /// Whether the request makes sense at all; says which field and what it may be.
    pub fn check(&self) -> Result<(), Refusal> {
        let in_range = |field: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Refusal::out_of_range(field, value, format!("{least} to {most}")))
        };
        let least_memory = match self.engine {
            EngineKind::Command => MIN_MEMORY_BYTES,
            EngineKind::Ray => MIN_RAY_MEMORY_BYTES,
        };
        in_range("members", self.members.into(), 1, MAX_MEMBERS.into())?;
        in_range("cpu_millis", self.per_member.cpu_millis.into(), 100, 1_024_000)?;
        in_range("memory_bytes", self.per_member.memory_bytes, least_memory, 64 << 40)?;
        in_range("disk_bytes", self.per_member.disk_bytes, 0, 1 << 50)?;
        in_range("gpus", self.per_member.gpus.into(), 0, 64)?;
        self.per_member.check_share()?;
        self.upkeep.check(self)?;
        in_range("duration_ms", self.duration_ms, MIN_DURATION_MS, MAX_DURATION_MS)?;
        if self.asset != Asset::Iosd {
            return Err(Refusal::Unsupported {
                what: format!("paying in {}", self.asset),
                reason: "the exchange between assets is not built yet".into(),
                available: "IOSD".into(),
            });
        }
        Ok(())
    }
}

/// A prepared set of packages, by name and digest: `ray@sha256:...`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvironmentRef(pub String);

/// What the workers run; nobody else needs to know it, so it is the private part of an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Program {
    /// Command engine: the program and its arguments.
    pub argv: Vec<String>,
    /// Variables of the program.
    pub env: BTreeMap<String, String>,
    /// Ray engine: which environment; the network's default if `None`.
    pub environment: Option<EnvironmentRef>,
    /// Ray engine: also start `JupyterLab`.
    pub jupyter: bool,
    /// With egress `listed`, what the boxes may reach.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<Destination>,
}

impl Program {
    /// Whether the program is one that `engine` can run.
    pub fn check(&self, engine: EngineKind) -> Result<(), Refusal> {
        let bytes: usize = self.argv.iter().map(String::len).sum::<usize>()
            + self.env.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        if bytes > 64 << 10 {
            return Err(Refusal::out_of_range("program", format!("{bytes} bytes"), "at most 65536 bytes"));
        }
        match engine {
            EngineKind::Command if self.argv.is_empty() => {
                Err(Refusal::out_of_range("argv", "empty", "a program and its arguments"))
            }
            EngineKind::Ray if !self.argv.is_empty() => {
                let limit = "empty for the ray engine; submit the program as a job ('ionet job submit')";
                Err(Refusal::out_of_range("argv", format!("{:?}", self.argv[0]), limit))
            }
            _ => Ok(()),
        }
    }
}
