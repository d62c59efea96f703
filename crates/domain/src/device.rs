//! Devices: what a machine offers, what was measured of it, and its way into the pool.
//!
//! `Registered -> Checking -> Pooled`, or `Refused` with the reason, `Archived` when deleted. What is only claimed
//! ([`Hardware`]) and what was measured ([`Measured`]) are different types and never mixed. Not here: measuring
//! (`ionet-worker`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::connectivity::{RelayMeasure, claimed_region, region_doubt};
use crate::id::{Address, DeviceId, EndpointId};
use crate::market::capacity::{self, GPU_MILLIS};
use crate::money::Rate;
use crate::refusal::Refusal;

/// Amounts of what can be hired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a CPU thread.
    pub cpu_millis: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disk in bytes.
    pub disk_bytes: u64,
    /// GPUs.
    pub gpus: u32,
    /// Of a member that wants a part of one GPU (`gpus` is 1): how many thousandths of it. Whole GPUs if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_share_millis: Option<u32>,
}

impl Resources {
    /// Thousandths that are wanted of each GPU.
    pub fn millis_per_gpu(self) -> u32 {
        self.gpu_share_millis.unwrap_or(1000)
    }

    /// Whether a part of one GPU is wanted.
    pub fn is_share(self) -> bool {
        self.gpus == 1 && self.millis_per_gpu() < 1000
    }

    /// Whole GPUs; none where a part of one is wanted.
    pub fn whole_gpus(self) -> u32 {
        if self.is_share() { 0 } else { self.gpus }
    }

    /// Thousandths of GPUs in all.
    pub fn total_gpu_millis(self) -> u64 {
        u64::from(self.gpus) * u64::from(self.millis_per_gpu())
    }

    /// Whether a share makes sense: of one GPU, at least a thousandth of it and at most all.
    pub fn check_share(self) -> Result<(), Refusal> {
        match self.gpu_share_millis {
            Some(share) if self.gpus != 1 || !(1..=1000).contains(&share) => {
                Err(Refusal::out_of_range("gpu_share_millis", share, "1 to 1000, with gpus 1"))
            }
            _ => Ok(()),
        }
    }

    /// What is left after `used`; nothing goes below zero. Shares of GPUs are not in these sums: see [`Device::gpu_used_millis`].
    #[must_use]
    pub fn less(self, used: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(used.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(used.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(used.disk_bytes),
            gpus: self.gpus.saturating_sub(used.whole_gpus()),
            gpu_share_millis: None,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
            gpus: self.whole_gpus().saturating_add(other.whole_gpus()),
            gpu_share_millis: None,
        }
    }

    /// Whether `wanted` fits in here.
    pub fn holds(self, wanted: Self) -> bool {
        wanted.cpu_millis <= self.cpu_millis
            && wanted.memory_bytes <= self.memory_bytes
            && wanted.disk_bytes <= self.disk_bytes
            && wanted.gpus <= self.gpus
    }
}

/// A GPU as the machine reports it: a claim until measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// The maker's UUID of this very card.
    pub uuid: String,
    /// For example `NVIDIA A100-SXM4-80GB`.
    pub model: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// The machine's inventory as its own agent reports it: claims.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// CPU model name.
    pub cpu_model: String,
    /// Hardware threads of the whole machine.
    pub cpu_threads: u32,
    /// Memory of the whole machine in bytes.
    pub memory_bytes: u64,
    /// Usable NVIDIA GPUs.
    pub gpus: Vec<Gpu>,
    /// What is there but cannot be hired, each with the reason.
    pub unsupported: Vec<String>,
}

/// What the check measured of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuCheck {
    /// Which card.
    pub uuid: String,
    /// Whether the kernel lists it on its bus.
    pub kernel_sees: bool,
    /// Memory in bytes as the driver reports it; `None` if the driver does not know the card.
    pub driver_memory_bytes: Option<u64>,
}

/// What the check measured. Integers only; rates are per second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// SHA-256 work on one thread, in MB/s.
    pub cpu_one_mb_s: u32,
    /// The same on all offered threads at once, in MB/s.
    pub cpu_all_mb_s: u32,
    /// Copying memory, in MB/s.
    pub memory_mb_s: u32,
    /// Writing to disk with a sync at the end, in MB/s.
    pub disk_write_mb_s: u32,
    /// Reading it back past the page cache where that can be had, in MB/s.
    pub disk_read_mb_s: u32,
    /// From the server, in Mbit/s.
    pub network_down_mbit_s: u32,
    /// To the server, in Mbit/s.
    pub network_up_mbit_s: u32,
    /// Round trip to the server in microseconds.
    pub rtt_us: u32,
    /// Each GPU.
    pub gpus: Vec<GpuCheck>,
    /// How limits are enforced on boxes; `None` where nothing is delegated, and then one tenant at a time.
    pub enforcement: Option<String>,
}

/// Connectivity as measured (down/up Mbit/s): ultra 1600/1200, high 800/600, medium 400/300, low 100/75.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Below every tier.
    Basic,
    /// 100/75.
    Low,
    /// 400/300.
    Medium,
    /// 800/600.
    High,
    /// 1600/1200.
    Ultra,
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic => "basic",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Ultra => "ultra",
        })
    }
}

impl std::str::FromStr for Tier {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let known = [Self::Basic, Self::Low, Self::Medium, Self::High, Self::Ultra];
        let value: String = text.chars().take(80).collect();
        let wrong = || Refusal::out_of_range("tier", value, "basic, low, medium, high, ultra");
        known.into_iter().find(|tier| tier.to_string() == text).ok_or_else(wrong)
    }
}

impl Tier {
    /// The least that it takes, down and up in Mbit/s.
    pub fn least(self) -> (u32, u32) {
        match self {
            Self::Basic => (0, 0),
            Self::Low => (100, 75),
            Self::Medium => (400, 300),
            Self::High => (800, 600),
            Self::Ultra => (1600, 1200),
        }
    }

    /// The highest tier that both directions reach.
    pub fn of(down_mbit_s: u32, up_mbit_s: u32) -> Self {
        let reaches = |tier: &Self| {
            let (down, up) = tier.least();
            down_mbit_s >= down && up_mbit_s >= up
        };
        [Self::Ultra, Self::High, Self::Medium, Self::Low].into_iter().find(reaches).unwrap_or(Self::Basic)
    }
}

/// What renters choose by: a GPU model, or a CPU.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HardwareClass {
    /// No usable GPU.
    Cpu,
    /// All GPUs of this model.
    Gpu(String),
}

impl std::fmt::Display for HardwareClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Gpu(model) => model,
        })
    }
}

/// Where a device stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceStage {
    /// Enrolled; nothing measured yet.
    Registered,
    /// Being measured.
    Checking,
    /// May be hired.
    Pooled,
    /// Turned away.
    Refused {
        /// Why, with the numbers and what would help.
        reason: String,
    },
    /// Deleted by its owner; kept for history.
    Archived,
}

impl std::fmt::Display for DeviceStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Registered => "registered",
            Self::Checking => "checking",
            Self::Pooled => "pooled",
            Self::Refused { .. } => "refused",
            Self::Archived => "archived",
        })
    }
}

/// Whether the server hears from the device. Silence is never failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contact {
    /// Its agent is connected.
    Connected,
    /// Silent since this time, in milliseconds since 1970.
    Unknown {
        /// When it was last heard.
        since_ms: u64,
    },
}

/// A stretch of the week in which the owner offers the machine, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First minute of the week, Monday 00:00 is 0.
    pub from_minute: u16,
    /// The minute after the last, up to 10,080; smaller than `from_minute` wraps over the week's end.
    pub to_minute: u16,
}

const WEEK_MINUTES: u64 = 7 * 24 * 60;

impl Window {
    fn contains(self, minute: u16) -> bool {
        if self.from_minute <= self.to_minute {
            (self.from_minute..self.to_minute).contains(&minute)
        } else {
            minute >= self.from_minute || minute < self.to_minute
        }
    }
}

/// What the owner wants of it; the owner comes first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a wish of its own")]
pub struct OwnerRules {
    /// Takes no new leases until resumed.
    pub paused: bool,
    /// Takes no new leases; what runs may finish, then the device rests.
    pub draining: bool,
    /// The machine is in other use (seen by the agent): no new leases until it is not.
    pub yielding: bool,
    /// Only in these windows, if any are given.
    pub schedule: Vec<Window>,
    /// Boxes here open no connections out of their cluster: only orders with egress off are placed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_egress: bool,
}

impl OwnerRules {
    /// Why no new lease may start at `now_ms`, if so.
    pub fn closed(&self, now_ms: u64) -> Option<&'static str> {
        // 1970-01-01 was a Thursday: three days after Monday 00:00.
        let minute = (now_ms / 60_000 + 3 * 24 * 60) % WEEK_MINUTES;
        let minute = u16::try_from(minute).unwrap_or(0);
        if self.paused {
            Some("paused by its owner")
        } else if self.draining {
            Some("draining")
        } else if self.yielding {
            Some("yielding to its owner's own use")
        } else if !self.schedule.is_empty() && !self.schedule.iter().any(|window| window.contains(minute)) {
            Some("outside its schedule")
        } else {
            None
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        let wrong =
            |w: &&Window| u64::from(w.from_minute) >= WEEK_MINUTES || u64::from(w.to_minute) > WEEK_MINUTES;
        match self.schedule.iter().find(wrong) {
            Some(w) => Err(Refusal::out_of_range(
                "schedule",
                format!("{}-{}", w.from_minute, w.to_minute),
                "minutes of the week from 0 to 10080",
            )),
            None => Ok(()),
        }
    }
}

/// How a device enters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Made by the agent; survives key rotation.
    pub device: DeviceId,
    /// Who supplies it and is paid.
    pub owner: Address,
    /// The key by which it is reached now.
    pub endpoint: EndpointId,
    /// The supply network that the joining token names.
    pub network: String,
    /// The supplier's own words to find it by.
    pub tags: BTreeSet<String>,
    /// Asked for one GPU, or on a CPU device for one CPU thread.
    pub ask_per_unit: Rate,
    /// The part of the machine that is for hire.
    pub offered: Resources,
    /// The whole machine, as claimed.
    pub hardware: Hardware,
    /// Made up, for show: nothing can be ordered on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
}

impl Enrolment {
    /// Whether the enrolment is within limits.
    pub fn check(&self) -> Result<(), Refusal> {
        let threads = self.hardware.cpu_threads.saturating_mul(1000);
        if self.offered.cpu_millis == 0 || self.offered.cpu_millis > threads {
            let limit = format!("1 to {threads} (the machine's threads x 1000)");
            return Err(Refusal::out_of_range("offered cpu_millis", self.offered.cpu_millis, limit));
        }
        if self.offered.memory_bytes == 0 || self.offered.memory_bytes > self.hardware.memory_bytes {
            let limit = format!("1 to {} (the machine's memory)", self.hardware.memory_bytes);
            return Err(Refusal::out_of_range("offered memory_bytes", self.offered.memory_bytes, limit));
        }
        if self.offered.gpus as usize > self.hardware.gpus.len() {
            let limit = format!("at most {} (the machine's usable GPUs)", self.hardware.gpus.len());
            return Err(Refusal::out_of_range("offered gpus", self.offered.gpus, limit));
        }
        let word = |w: &str| {
            !w.is_empty()
                && w.len() <= 40
                && w.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if let Some(wrong) = self.tags.iter().chain([&self.network]).find(|w| !word(w)) {
            return Err(Refusal::out_of_range(
                "tag or network",
                wrong,
                "1 to 40 letters, digits, '-', '_' or '.'",
            ));
        }
        if self.tags.len() > 20 {
            return Err(Refusal::out_of_range("tags", self.tags.len(), "at most 20"));
        }
        Ok(())
    }
}

/// What the hardware's best other use is worth to its owner. Both zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alternative {
    /// What a unit (a GPU, a CPU thread) would earn otherwise.
    pub revenue_per_unit: Rate,
    /// What power costs, in micro-USD a kilowatt-hour; a GPU is counted with its board power.
    pub power_micro_usd_per_kwh: u64,
}

impl Alternative {
    fn check(self) -> Result<(), Refusal> {
        const MOST: u64 = 1_000_000_000;
        let within = |field, value| match value {
            0..=MOST => Ok(()),
            _ => Err(Refusal::out_of_range(field, value, format!("at most {MOST} micro-USD"))),
        };
        within("revenue_per_unit", self.revenue_per_unit.0)?;
        within("power_micro_usd_per_kwh", self.power_micro_usd_per_kwh)
    }
}

/// A device with everything known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What it said when it entered, and the owner's later changes.
    pub enrolment: Enrolment,
    /// Where it stands.
    pub stage: DeviceStage,
    /// What the last check measured.
    pub measured: Option<Measured>,
    /// What renters choose by.
    pub class: HardwareClass,
    /// Connectivity as measured.
    pub tier: Option<Tier>,
    /// What relays measured of its links, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<RelayMeasure>,
    /// What else the owner would do with it, if he said so: the floor of its price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alternative: Option<Alternative>,
    /// The owner's wishes.
    pub rules: OwnerRules,
    /// Whether it is heard.
    pub contact: Contact,
    /// Committed to live leases.
    pub committed: Resources,
    /// How many live leases it holds.
    pub leases: u32,
    /// Thousandths of each offered GPU that live leases use, by its place in the offer; empty while none is in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_used_millis: Vec<u16>,
}

impl Device {
    /// A device as it enters, before anything was measured.
    pub fn enrolled(enrolment: Enrolment, now_ms: u64) -> Self {
        Self {
            enrolment,
            stage: DeviceStage::Registered,
            measured: None,
            class: HardwareClass::Cpu,
            tier: None,
            links: Vec::new(),
            alternative: None,
            rules: OwnerRules::default(),
            contact: Contact::Unknown { since_ms: now_ms },
            committed: Resources::default(),
            leases: 0,
            gpu_used_millis: Vec::new(),
        }
    }

    /// Why the region that its tags claim is not believed, if it claims one.
    pub fn region_doubt(&self) -> Option<String> {
        region_doubt(claimed_region(&self.enrolment.tags)?, &self.links)
    }

    /// The region that its tags claim and round trips bear out.
    pub fn proven_region(&self) -> Option<&str> {
        let claimed = claimed_region(&self.enrolment.tags)?;
        region_doubt(claimed, &self.links).is_none().then_some(claimed)
    }

    /// Memory of its GPUs as their driver reported it in the check, of the smallest one, in MiB; 0 without GPUs.
    pub fn gpu_memory_mib(&self) -> u32 {
        let checks = self.measured.iter().flat_map(|measured| &measured.gpus);
        let least = checks.filter_map(|check| check.driver_memory_bytes).min().unwrap_or(0);
        u32::try_from(least >> 20).unwrap_or(u32::MAX)
    }

    /// Whether limits are not enforced on boxes here, so that a second tenant is never let in.
    pub fn one_tenant(&self) -> bool {
        self.measured.as_ref().is_none_or(|measured| measured.enforcement.is_none())
    }

    /// What can still be hired; of GPUs, those that are fully free. Without enforced limits a second tenant is never let in.
    pub fn free(&self) -> Resources {
        let alone = self.measured.as_ref().is_some_and(|m| m.enforcement.is_none());
        if alone && self.leases > 0 {
            return Resources::default();
        }
        let whole = self.free_gpus().filter(|free| *free == GPU_MILLIS).count();
        let gpus = u32::try_from(whole).unwrap_or(u32::MAX);
        Resources { gpus, ..self.enrolment.offered.less(self.committed) }
    }

    /// The same where GPUs do not matter.
    pub(crate) fn free_beside_gpus(&self) -> Resources {
        if self.leases > 0 && self.measured.as_ref().is_some_and(|m| m.enforcement.is_none()) {
            return Resources::default();
        }
        self.enrolment.offered.less(self.committed)
    }

    /// Thousandths that are free of each offered GPU, by its place in the offer.
    pub fn free_gpu_millis(&self) -> Vec<u16> {
        self.free_gpus().collect()
    }

    /// The same without a list.
    pub(crate) fn free_gpus(&self) -> impl Iterator<Item = u16> {
        // A snapshot of a release without shares counts whole GPUs only; the first ones are in use then.
        let counted = if self.gpu_used_millis.is_empty() { self.committed.gpus as usize } else { 0 };
        let used = move |place: usize| match self.gpu_used_millis.get(place) {
            Some(used) => *used,
            None if place < counted => GPU_MILLIS,
            None => 0,
        };
        (0..self.enrolment.offered.gpus as usize).map(move |place| GPU_MILLIS.saturating_sub(used(place)))
    }

    /// Commits part of it to a lease: on these GPUs, or, where a release without shares chose none, on the first that are
    /// fully free. Answers with the GPUs.
    pub(crate) fn hire(&mut self, wanted: Resources, gpus: &[u32]) -> Vec<u32> {
        let mut free = self.free_gpu_millis();
        let millis = u16::try_from(wanted.millis_per_gpu()).unwrap_or(GPU_MILLIS);
        let gpus = if gpus.is_empty() {
            capacity::take(&mut free.clone(), wanted, GPU_MILLIS)
        } else {
            gpus.to_vec()
        };
        for place in &gpus {
            if let Some(gpu) = free.get_mut(*place as usize) {
                *gpu = gpu.saturating_sub(millis);
            }
        }
        self.keep_gpus(&free);
        self.committed = self.committed.plus(wanted);
        self.leases += 1;
        gpus
    }

    /// Takes back what a lease had.
    pub(crate) fn release(&mut self, wanted: Resources, gpus: &[u32]) {
        let mut free = self.free_gpu_millis();
        let millis = u16::try_from(wanted.millis_per_gpu()).unwrap_or(GPU_MILLIS);
        let mut used: Vec<u32> = gpus.to_vec();
        if used.is_empty() {
            used = (0..).zip(&free).filter(|(_, free)| **free == 0).map(|(place, _)| place).collect();
            used.truncate(wanted.whole_gpus() as usize);
        }
        for place in used {
            if let Some(gpu) = free.get_mut(place as usize) {
                *gpu = gpu.saturating_add(millis).min(GPU_MILLIS);
            }
        }
        self.keep_gpus(&free);
        self.committed = self.committed.less(wanted);
        self.leases = self.leases.saturating_sub(1);
        if self.leases == 0 {
            self.committed = Resources::default();
            self.gpu_used_millis = Vec::new();
        }
    }

    fn keep_gpus(&mut self, free: &[u16]) {
        let used: Vec<u16> = free.iter().map(|free| GPU_MILLIS - free).collect();
        self.gpu_used_millis = if used.iter().any(|used| *used > 0) { used } else { Vec::new() };
    }
}

/// The classification that a check's result earns, or the reason to refuse the device.
pub fn judge(enrolment: &Enrolment, measured: &Measured) -> Result<(HardwareClass, Tier), String> {
    if measured.cpu_one_mb_s < 20 {
        return Err(format!(
            "one CPU thread did {} MB/s of SHA-256 and 20 is the least; is the machine busy or throttled?",
            measured.cpu_one_mb_s
        ));
    }
    if measured.disk_write_mb_s < 5 {
        return Err(format!(
            "the disk wrote {} MB/s and 5 is the least; put the data directory on a local disk",
            measured.disk_write_mb_s
        ));
    }
    for gpu in &enrolment.hardware.gpus {
        check_gpu(gpu, measured.gpus.iter().find(|check| check.uuid == gpu.uuid))?;
    }
    let mut models: Vec<_> = enrolment.hardware.gpus.iter().map(|gpu| gpu.model.as_str()).collect();
    models.dedup();
    let class = match models.as_slice() {
        [] => HardwareClass::Cpu,
        [model] => HardwareClass::Gpu((*model).into()),
        several => {
            return Err(format!(
                "the machine mixes GPU models ({}); offer one model per worker",
                several.join(", ")
            ));
        }
    };
    Ok((class, Tier::of(measured.network_down_mbit_s, measured.network_up_mbit_s)))
}

fn check_gpu(gpu: &Gpu, check: Option<&GpuCheck>) -> Result<(), String> {
    let check = check.ok_or_else(|| format!("GPU {} was claimed and not measured", gpu.uuid))?;
    if !check.kernel_sees {
        return Err(format!("GPU {} is claimed but the kernel lists no such card", gpu.uuid));
    }
    match check.driver_memory_bytes {
        None => Err(format!("GPU {} is claimed but its driver does not know it", gpu.uuid)),
        Some(seen) if seen < gpu.memory_bytes / 10 * 9 => Err(format!(
            "GPU {} claims {} bytes of memory and its driver sees {seen}",
            gpu.uuid, gpu.memory_bytes
        )),
        Some(_) => Ok(()),
    }
}

/// Changes that an owner makes; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceChange {
    /// A new ask for one GPU or CPU thread.
    pub ask_per_unit: Option<Rate>,
    /// New tags.
    pub tags: Option<BTreeSet<String>>,
    /// New wishes.
    pub rules: Option<OwnerRules>,
    /// What else the owner would do with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternative: Option<Alternative>,
}

impl DeviceChange {
    /// Whether the change is within limits for this device.
    pub fn check(&self, device: &Device) -> Result<(), Refusal> {
        if let Some(rules) = &self.rules {
            rules.check()?;
        }
        if let Some(other) = self.alternative {
            other.check()?;
        }
        if self == &Self::default() {
            return Err(Refusal::NoChange { what: "device".into() });
        }
        let tags = self.tags.clone().unwrap_or_default();
        Enrolment { tags, ..device.enrolment.clone() }.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_need_both_directions() {
        for (down, up, tier) in [
            (1600, 1200, Tier::Ultra),
            (1600, 1199, Tier::High),
            (799, 9000, Tier::Medium),
            (100, 75, Tier::Low),
            (99, 9000, Tier::Basic),
        ] {
            assert_eq!(Tier::of(down, up), tier, "{down}/{up}");
        }
    }

    #[test]
    fn a_schedule_may_wrap_over_the_weeks_end() {
        let weekend = Window { from_minute: 5 * 1440, to_minute: 60 };
        let rules = OwnerRules { schedule: vec![weekend], ..OwnerRules::default() };
        let monday = 4 * 86_400_000; // 1970-01-05
        assert_eq!(rules.closed(monday + 59 * 60_000), None);
        assert_eq!(rules.closed(monday + 60 * 60_000), Some("outside its schedule"));
        assert_eq!(rules.closed(monday + 5 * 86_400_000), None);
    }
}
