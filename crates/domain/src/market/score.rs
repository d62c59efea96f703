//! How much a placement costs the rest of the market: what it fragments, what it leaves unbalanced, what it takes of scarce
//! models. The smaller the better.
//!
//! ```text
//! cost = floor((dF + dU / 2 + S x need / 2) / 320)
//! ```
//! `F` is the fragmentation of "Beware of Fragmentation" (FGD, USENIX ATC'23): the free thousandths of GPUs here that a
//! member of the typical workload cannot use, averaged over that workload. `U` is how far the free share of the CPU is from
//! the free share of the GPUs, in thousandths of the device's GPUs: CPU without GPUs and GPUs without CPU are of no use to
//! anybody. `S` is the part of a model's supply that typical members ask for by name, and counts where a request would take
//! several models: a model that others need is left to them. All in thousandths of a GPU; differences below 320 are noise and
//! are left to the next criterion, which keeps placements together.
//!
//! Always holds: integers only, so every machine gives the same answer. Not here: price, which comes first (`place`).

use std::collections::BTreeMap;

use super::capacity::{GPU_MILLIS, Shape};
use super::demand::Want;
use crate::device::{HardwareClass, Resources};

/// Differences below this are noise, in thousandths of a GPU.
const COARSE_MILLIS: i64 = 320;
/// Most GPUs of a device that are looked at.
const MOST_GPUS: usize = 64;

/// A kind of member that a class of hardware can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Runnable {
    gpu_millis: u16,
    gpus: u32,
    cpu_millis: u32,
    weight: i64,
}

/// The typical workload as one class of hardware sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Typical {
    /// By GPU share, so that each share's counts are made once.
    runnable: Vec<Runnable>,
    /// The weight of the members that cannot run here at all.
    blocked: i64,
    /// All weights.
    total: i64,
}

impl Typical {
    /// What of the workload this class can run.
    pub fn of(class: &HardwareClass, workload: &[(Want, u64)]) -> Self {
        let mut typical = Self::default();
        let HardwareClass::Gpu(model) = class else { return typical };
        for (want, members) in workload {
            let weight = i64::try_from(*members).unwrap_or(i64::MAX).min(1 << 30);
            typical.total += weight;
            if want.gpus == 0 || !want.allows(model) {
                typical.blocked += weight;
            } else {
                let Want { gpu_millis, gpus, cpu_millis, .. } = *want;
                typical.runnable.push(Runnable { gpu_millis, gpus, cpu_millis, weight });
            }
        }
        typical.runnable.sort_unstable();
        typical
    }

    /// `F`, times the sum of all weights.
    fn fragmentation(&self, gpus: &[u16], cpu_millis: u32) -> i64 {
        let all: i64 = gpus.iter().map(|free| i64::from(*free)).sum();
        if all == 0 {
            return 0;
        }
        let (mut share, mut enough, mut too_small) = (0, gpus.len(), 0);
        let mut sum = self.blocked * all;
        for known in &self.runnable {
            if known.gpu_millis != share {
                share = known.gpu_millis;
                let small = gpus.iter().filter(|free| **free < share);
                (enough, too_small) =
                    small.fold((gpus.len(), 0), |(n, sum), free| (n - 1, sum + i64::from(*free)));
            }
            let runs = known.cpu_millis <= cpu_millis && known.gpus as usize <= enough;
            sum += known.weight * if runs { too_small } else { all };
        }
        sum
    }
}

/// The part of each model's supply that typical members ask for by name, in thousandths of the supply, if demand and supply
/// were as large as each other. A member that names several is shared out by their supply.
pub fn scarcity(supply: &BTreeMap<&str, u64>, workload: &[(Want, u64)]) -> BTreeMap<String, i64> {
    let wide = |value: u64| i128::from(value);
    let all_supply: i128 = supply.values().map(|millis| wide(*millis)).sum();
    let all_demand: i128 = workload.iter().map(|(want, n)| wide(want.total_gpu_millis()) * wide(*n)).sum();
    let mut scarce: BTreeMap<String, i64> = BTreeMap::new();
    for (want, members) in workload.iter().filter(|(want, _)| want.models.is_some() && want.gpus > 0) {
        let named = || supply.iter().filter(|(model, _)| want.allows(model));
        let able: i128 = named().map(|(_, millis)| wide(*millis)).sum();
        let asked = wide(want.total_gpu_millis()) * wide(*members);
        // Each of the named models gets the same part of its own supply.
        let part = (1000 * asked * all_supply).checked_div(all_demand * able).unwrap_or(0);
        let part = i64::try_from(part).unwrap_or(i64::MAX).min(1_000_000);
        named().for_each(|(model, _)| *scarce.entry((*model).to_owned()).or_default() += part);
    }
    scarce
}

/// What a member costs on one class of hardware.
#[derive(Debug, Clone, Copy)]
pub struct Scorer<'a> {
    /// The workload as the class sees it.
    pub typical: &'a Typical,
    /// How scarce the class is, in thousandths; 0 where the request has no choice.
    pub scarcity_millis: i64,
}

impl Scorer<'_> {
    /// The cost of a member that fits, and for a share the free thousandths of the GPU that it should be taken from.
    pub fn cost(&self, free: &Shape, wanted: Resources) -> (i64, u16) {
        if free.gpus.is_empty() {
            return (0, GPU_MILLIS);
        }
        let mut gpus = [0; MOST_GPUS];
        let count = free.gpus.len().min(MOST_GPUS);
        let gpus = &mut gpus[..count];
        gpus.copy_from_slice(&free.gpus[..count]);
        let before = self.typical.fragmentation(gpus, free.cpu_millis);
        let cpu_millis = free.cpu_millis.saturating_sub(wanted.cpu_millis);
        let millis = u16::try_from(wanted.millis_per_gpu()).unwrap_or(GPU_MILLIS);
        if !wanted.is_share() {
            let whole = gpus.iter_mut().filter(|free| **free == GPU_MILLIS).take(wanted.gpus as usize);
            whole.for_each(|free| *free = 0);
            return (self.bucket(free, gpus, cpu_millis, before, wanted), GPU_MILLIS);
        }
        let mut best: Option<(i64, u16)> = None;
        for place in 0..count {
            let share_of = gpus[place];
            let seen = place > 0 && gpus[place - 1] == share_of;
            if share_of < millis || seen {
                continue;
            }
            gpus[place] -= millis;
            let cost = self.bucket(free, gpus, cpu_millis, before, wanted);
            gpus[place] = share_of;
            // Among equals the fullest GPU, which is the later one.
            if best.is_none_or(|(least, _)| cost <= least) {
                best = Some((cost, share_of));
            }
        }
        best.unwrap_or((i64::MAX, GPU_MILLIS))
    }

    fn bucket(&self, was: &Shape, gpus: &[u16], cpu_millis: u32, before: i64, wanted: Resources) -> i64 {
        let total = self.typical.total.max(1);
        let fragmented = self.typical.fragmentation(gpus, cpu_millis) - before;
        let unbalanced = imbalance(was, gpus, cpu_millis) - imbalance(was, &was.gpus, was.cpu_millis);
        let need = i64::try_from(wanted.total_gpu_millis()).unwrap_or(i64::MAX).min(1 << 20);
        let scarce = self.scarcity_millis * need / 1000;
        (2 * fragmented + total * (unbalanced + scarce)).div_euclid(2 * COARSE_MILLIS * total)
    }
}

/// How far the free share of the CPU is from the free share of the GPUs, in thousandths of the device's GPUs.
fn imbalance(device: &Shape, gpus: &[u16], cpu_millis: u32) -> i64 {
    let all = i64::from(GPU_MILLIS) * i64::try_from(device.gpus.len()).unwrap_or(0);
    let free: i64 = gpus.iter().map(|free| i64::from(*free)).sum();
    (i64::from(cpu_millis) * all / i64::from(device.cpu_offered_millis.max(1)) - free).abs()
}
