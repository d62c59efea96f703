//! What a renter asks for: the public part that price and placement read ([`Request`]) and the private part
//! that only the workers read ([`Program`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::{HardwareClass, Resources, Tier};
use crate::id::Address;
use crate::market::buy::{Buy, Priority};
use crate::market::egress::{Destination, Egress};
use crate::market::hiding::Hiding;
use crate::market::upkeep::Upkeep;
use crate::market::wishes::{GpuMinimum, Isolation, Preference, WorkKind};
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
#[expect(clippy::struct_excessive_bools, reason = "each is a wish of its own, by its name on the wire")]
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
    /// Only this supply network, or one of several with `|` between them.
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
    /// How urgent it is.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// How it is bought.
    #[serde(default, skip_serializing_if = "Buy::is_on_demand")]
    pub buy: Buy,
    /// For as long as `max_total_micro_usd` pays; a quote says how long that is, in `duration_ms`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_ended: bool,
    /// Everything that matches, `members` at most; a quote says how many that are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mega: bool,
    /// Only simulated devices: for show, such a request is never accepted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// What is done for the cluster while it lives: pauses, replacement of ailing members, scaling.
    #[serde(default, skip_serializing_if = "Upkeep::is_none")]
    pub upkeep: Upkeep,
    /// What is paid with.
    pub asset: Asset,
    /// What the work is; it completes `prefer`.
    #[serde(default, skip_serializing_if = "WorkKind::is_general")]
    pub kind: WorkKind,
    /// The least that each GPU must be.
    #[serde(default, skip_serializing_if = "GpuMinimum::is_none")]
    pub gpu_min: GpuMinimum,
    /// Only CPUs whose claimed name contains this, in any case, or one of several with `|` between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// At most so many members on one device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_device: Option<u32>,
    /// Only in one of these regions, where measurements bear it out; `us` covers `us-east`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub regions: BTreeSet<String>,
    /// Data residency: only where measurements bear out that it is in none of these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub not_regions: BTreeSet<String>,
    /// The region that callers are in, for the preference `near` and for inference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<String>,
    /// The least that keeps boxes from their neighbours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Only devices of at least this reliability, in percent of leases kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_reliability_percent: Option<u8>,
    /// The most that it may cost in all, fee included, in micro-USD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_total_micro_usd: Option<u64>,
    /// Which of the devices that would do are the better ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Preference>,
    /// Only devices of these suppliers, if any are named.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub suppliers: BTreeSet<Address>,
    /// No devices of these.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub not_suppliers: BTreeSet<Address>,
}

impl Default for Request {
    /// One member with the least that a box takes, for the least time, anywhere.
    fn default() -> Self {
        let per_member =
            Resources { cpu_millis: 100, memory_bytes: MIN_MEMORY_BYTES, ..Resources::default() };
        Self {
            engine: EngineKind::Command,
            members: 1,
            per_member,
            duration_ms: MIN_DURATION_MS,
            gpu_model: None,
            network: None,
            tags: BTreeSet::new(),
            tier: None,
            spread: false,
            egress: Egress::default(),
            hiding: Hiding::default(),
            max_rate: None,
            priority: Priority::default(),
            buy: Buy::default(),
            open_ended: false,
            mega: false,
            simulated: false,
            upkeep: Upkeep::default(),
            asset: Asset::Iosd,
            kind: WorkKind::default(),
            gpu_min: GpuMinimum::default(),
            cpu_model: None,
            max_per_device: None,
            regions: BTreeSet::new(),
            not_regions: BTreeSet::new(),
            near: None,
            isolation: None,
            min_reliability_percent: None,
            max_total_micro_usd: None,
            prefer: None,
            suppliers: BTreeSet::new(),
            not_suppliers: BTreeSet::new(),
        }
    }
}

/// Least and most of each field, in one place.
pub(crate) const MAX_MEMBERS: u32 = 256;
pub(crate) const MIN_DURATION_MS: u64 = 60_000;
pub(crate) const MAX_DURATION_MS: u64 = 366 * 24 * HOUR_MS;
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

    /// Whether a supply network would do.
    pub fn allows_network(&self, network: &str) -> bool {
        self.network.as_ref().is_none_or(|named| named.split('|').any(|name| name == network))
    }

    /// Whether a CPU of this claimed name would do.
    pub fn allows_cpu(&self, model: &str) -> bool {
        let Some(named) = &self.cpu_model else { return true };
        let model = model.to_ascii_lowercase();
        named.split('|').any(|name| !name.is_empty() && model.contains(&name.to_ascii_lowercase()))
    }

    /// Until when an order for it waits for devices; `None` if it does not wait.
    pub fn waits_until_ms(&self) -> Option<u64> {
        self.buy.waits_until_ms(self.duration_ms)
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
        if self.mega && self.buy != Buy::default() {
            let limit = "on demand: who takes all that matches takes what there is now";
            return Err(Refusal::out_of_range("mega", self.buy.name(), limit));
        }
        if self.open_ended && self.max_total_micro_usd.is_none() {
            let limit = "the budget of an open-ended order (--budget)";
            return Err(Refusal::out_of_range("max_total_micro_usd", "missing", limit));
        }
        if self.open_ended && matches!(self.buy, Buy::Reserved { .. } | Buy::Flexible { .. }) {
            let limit = "on demand, standing or spot: a window has its length";
            return Err(Refusal::out_of_range("open_ended", self.buy.name(), limit));
        }
        in_range("cpu_millis", self.per_member.cpu_millis.into(), 100, 1_024_000)?;
        in_range("memory_bytes", self.per_member.memory_bytes, least_memory, 64 << 40)?;
        in_range("disk_bytes", self.per_member.disk_bytes, 0, 1 << 50)?;
        in_range("gpus", self.per_member.gpus.into(), 0, 64)?;
        self.per_member.check_share()?;
        self.upkeep.check(self)?;
        in_range("duration_ms", self.duration_ms, MIN_DURATION_MS, MAX_DURATION_MS)?;
        self.check_wishes()?;
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
