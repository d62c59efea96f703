//! How the machine is, every few seconds: CPU in use by leases and by others, memory, disk, GPUs.
//!
//! Always holds: a sample is the average since the one before; what cannot be read is 0. Not here: what follows from it
//! (`agent`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ionet_api::worker::{GpuTelemetry, Telemetry};

use crate::inventory::{Places, disk_free_bytes, meminfo_bytes};
use crate::nvml::Nvml;

/// Takes samples.
#[derive(Debug)]
pub struct Sampler {
    places: Places,
    nvml: Option<Nvml>,
    /// Samples until the driver is looked for again.
    look_in: u32,
    before: Ticks,
}

/// A driver that was not there or broke may be installed, reloaded or updated while the agent runs.
const LOOK_EVERY_SAMPLES: u32 = 12;

/// CPU time in clock ticks since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ticks {
    all: u64,
    busy: u64,
    leases: u64,
}

impl Sampler {
    /// A sampler of this machine.
    pub fn new(places: Places) -> Self {
        let nvml = places.nvml().ok();
        let before = Ticks { leases: 0, ..machine_ticks(&places.read("proc/stat")) };
        Self { places, nvml, look_in: LOOK_EVERY_SAMPLES, before }
    }

    /// The machine now. `own` are the agent and the supervisors: what runs below those is no other use of the machine.
    pub fn sample(&mut self, at_ms: u64, data_dir: &Path, own: &BTreeSet<u32>) -> Telemetry {
        let leases = tree_ticks(&processes(&self.places), own);
        let now = Ticks { leases, ..machine_ticks(&self.places.read("proc/stat")) };
        let (cpu_percent, foreign_cpu_percent) = shares(self.before, now);
        self.before = now;
        let meminfo = self.places.read("proc/meminfo");
        let memory = |key| meminfo_bytes(&meminfo, key);
        Telemetry {
            at_ms,
            cpu_percent,
            foreign_cpu_percent,
            memory_used_bytes: memory("MemTotal").saturating_sub(memory("MemAvailable")),
            disk_free_bytes: disk_free_bytes(data_dir),
            gpus: self.gpus(),
        }
    }

    fn gpus(&mut self) -> Vec<GpuTelemetry> {
        if self.nvml.is_none() {
            self.look_in = self.look_in.saturating_sub(1);
            if self.look_in == 0 {
                self.look_in = LOOK_EVERY_SAMPLES;
                self.nvml = self.places.nvml().ok();
            }
        }
        let told = self.nvml.as_ref().map(Nvml::telemetry);
        if let Some(Err(error)) = &told {
            tracing::warn!("{error}");
            self.nvml = None;
        }
        told.and_then(std::result::Result::ok).unwrap_or_default()
    }
}

/// Percent of all CPU time in use, and the part of it that is not leases.
fn shares(before: Ticks, now: Ticks) -> (u8, u8) {
    let all = now.all.saturating_sub(before.all).max(1);
    let busy = now.busy.saturating_sub(before.busy).min(all);
    let foreign = busy.saturating_sub(now.leases.saturating_sub(before.leases));
    let percent = |part: u64| u8::try_from(part * 100 / all).unwrap_or(100);
    (percent(busy), percent(foreign))
}

/// The first line of `/proc/stat`.
fn machine_ticks(stat: &str) -> Ticks {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    // Guest time is in user time already.
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|n| n.parse().unwrap_or(0)).collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3).unwrap_or(&0) + ticks.get(4).unwrap_or(&0);
    Ticks { all, busy: all.saturating_sub(idle), leases: 0 }
}

/// Every process: its parent and its ticks with those of the children that it has buried.
fn processes(places: &Places) -> BTreeMap<u32, (u32, u64)> {
    let entries = fs::read_dir(places.root.join("proc")).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, process_ticks(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
    };
    entries.filter_map(read).collect()
}

/// Parent and ticks of a `/proc/PID/stat` line.
fn process_ticks(stat: &str) -> Option<(u32, u64)> {
    // The name is in brackets and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|n| n.parse::<u64>().ok()).sum();
    Some((fields.get(1)?.parse().ok()?, ticks))
}

/// Ticks of these processes and of all below them.
fn tree_ticks(processes: &BTreeMap<u32, (u32, u64)>, roots: &BTreeSet<u32>) -> u64 {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (pid, (parent, _)) in processes {
        children.entry(*parent).or_default().push(*pid);
    }
    let mut inside = BTreeSet::new();
    let mut next: Vec<u32> = roots.iter().copied().collect();
    while let Some(pid) = next.pop() {
        if inside.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    inside.iter().filter_map(|pid| processes.get(pid)).map(|(_, ticks)| ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leases_use_is_not_foreign() {
        let before = machine_ticks("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n");
        assert_eq!(before, Ticks { all: 1000, busy: 200, leases: 0 });
        let now = Ticks { leases: 300, ..machine_ticks("cpu  500 0 200 1200 100 0 0 0 0 0\n") };
        assert_eq!(shares(before, now), (50, 20));
        assert_eq!(shares(now, before), (0, 0), "a clock that went back is nothing");
    }

    #[test]
    fn a_tree_has_all_below_its_roots_once() {
        let line = "12 (a (b) c) S 7 1 1 0 -1 4 9 9 9 9 100 20 3 4 20 0 1 0 5 6 7";
        assert_eq!(process_ticks(line), Some((7, 127)));
        assert_eq!(process_ticks("12 (x"), None);
        let processes = BTreeMap::from([(7, (1, 1)), (12, (7, 10)), (13, (12, 100)), (20, (1, 1000))]);
        assert_eq!(tree_ticks(&processes, &[7, 12].into()), 111);
        assert_eq!(tree_ticks(&processes, &[99].into()), 0);
    }

    #[test]
    fn this_machine_can_be_sampled() {
        let mut sampler = Sampler::new(Places::default());
        let telemetry = sampler.sample(5, Path::new("/"), &[std::process::id()].into());
        assert!(telemetry.memory_used_bytes > 0 && telemetry.disk_free_bytes > 0, "{telemetry:?}");
        assert!(telemetry.foreign_cpu_percent <= telemetry.cpu_percent && telemetry.cpu_percent <= 100);
    }
}
