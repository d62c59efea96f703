//! What this machine has: claims of its own agent, until a check measures them.
//!
//! Always holds: only what this process may use is counted (affinity, control groups); a GPU that cannot be hired is
//! listed with the reason. Not here: how good it is (`check`), how it is now (`telemetry`).

use std::fs;
use std::path::{Path, PathBuf};

use ionet_domain::device::{Hardware, Resources};
use rustix::fs::statvfs;

use crate::nvml::{self, DriverGpu, Nvml};

/// PCI vendors as the kernel writes them.
const NVIDIA: &str = "0x10de";
const AMD: &str = "0x1002";

/// Where to look: the machine itself unless a test makes its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// What stands above `proc` and `sys`.
    pub root: PathBuf,
    /// The driver's management library, by path or by the loader's name.
    pub nvml_library: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { root: "/".into(), nvml_library: nvml::LIBRARY.into() }
    }
}

impl Places {
    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    /// The driver's library; `None` with the reason when it cannot be used.
    pub(crate) fn nvml(&self) -> Result<Nvml, String> {
        match Nvml::open(&self.nvml_library) {
            Ok(Some(nvml)) => Ok(nvml),
            Ok(None) => Err("no NVIDIA driver is installed".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether the kernel lists this NVIDIA card, on its own word or on that of the bus.
    pub(crate) fn kernel_sees(&self, gpu: &DriverGpu) -> bool {
        let cards = fs::read_dir(self.root.join("proc/driver/nvidia/gpus")).into_iter().flatten().flatten();
        let told = |text: &str| {
            let uuid = text.lines().find_map(|line| line.strip_prefix("GPU UUID:"));
            uuid.is_some_and(|uuid| uuid.trim() == gpu.gpu.uuid)
        };
        let vendor = self.read(&format!("sys/bus/pci/devices/{}/vendor", gpu.pci));
        (!gpu.pci.is_empty() && vendor.trim() == NVIDIA)
            || cards.flat_map(|card| fs::read_to_string(card.path().join("information"))).any(|t| told(&t))
    }
}

/// Takes stock.
pub fn take(places: &Places) -> Hardware {
    let (cards, why_none) = match places.nvml().map(|nvml| nvml.gpus()) {
        Ok(Ok(cards)) => (cards, String::new()),
        Ok(Err(error)) => (Vec::new(), error.to_string()),
        Err(reason) => (Vec::new(), reason),
    };
    let no_driver = cards.is_empty().then_some(why_none.as_str());
    let mut unsupported = unsupported(places, no_driver);
    let mut gpus = Vec::new();
    for (number, card) in cards.into_iter().enumerate() {
        match card {
            Ok(card) => gpus.push(card.gpu),
            Err(error) => unsupported.push(format!("NVIDIA GPU {number}: {error}, or restart the machine")),
        }
    }
    Hardware {
        cpu_model: cpu_model(&places.read("proc/cpuinfo")),
        cpu_threads: cpu_threads(),
        memory_bytes: memory_bytes(places),
        unsupported,
        gpus,
    }
}

/// What is offered where its owner says nothing: all CPU threads and GPUs, three quarters of the memory and half of
/// the free disk.
pub fn default_offer(hardware: &Hardware, data_dir: &Path) -> Resources {
    Resources {
        cpu_millis: hardware.cpu_threads.saturating_mul(1000),
        memory_bytes: hardware.memory_bytes / 4 * 3,
        disk_bytes: disk_free_bytes(data_dir) / 2,
        gpus: u32::try_from(hardware.gpus.len()).unwrap_or(u32::MAX),
        gpu_share_millis: None,
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let value = |key: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
    };
    // ARM kernels name no model.
    value("model name")
        .or_else(|| value("CPU part").map(|part| format!("ARM part {part}")))
        .unwrap_or_else(|| format!("unknown {} CPU", std::env::consts::ARCH))
}

/// Threads that this process may run on at once.
pub(crate) fn cpu_threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// `key` of `/proc/meminfo` in bytes.
pub(crate) fn meminfo_bytes(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn memory_bytes(places: &Places) -> u64 {
    let total = meminfo_bytes(&places.read("proc/meminfo"), "MemTotal");
    let limits = ["sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = limits.into_iter().filter_map(|path| places.read(path).trim().parse::<u64>().ok());
    limits.filter(|limit| *limit > 0).fold(total, u64::min)
}

/// Free for this user on the disk of `dir`, or of what is above it as long as it is not made.
pub(crate) fn disk_free_bytes(dir: &Path) -> u64 {
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    statvfs(there).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// GPUs that cannot be hired, each with the reason.
fn unsupported(places: &Places, no_nvidia_because: Option<&str>) -> Vec<String> {
    let mut found = Vec::new();
    for (place, vendor, model) in displays(places) {
        match (vendor.as_str(), no_nvidia_because) {
            (AMD, _) => found.push(format!(
                "AMD GPU {model} at {place}: only NVIDIA GPUs can be hired so far; boxes do not carry ROCm yet"
            )),
            (NVIDIA, Some(why)) => {
                found.push(format!("NVIDIA GPU {model} at {place}: {why}; install the NVIDIA driver"));
            }
            _ => {}
        }
    }
    if cfg!(target_os = "macos") || places.read("proc/device-tree/compatible").contains("apple,") {
        found.push(
            "Apple GPU: it has no driver that boxes could share; only NVIDIA GPUs can be hired so far".into(),
        );
    }
    found
}

/// PCI display controllers: place, vendor, device.
fn displays(places: &Places) -> Vec<(String, String, String)> {
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let names = |dir: &str| {
        let entries = fs::read_dir(places.root.join(dir)).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort_unstable();
        paths
    };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_card = |path: &Path| name(path).strip_prefix("card").is_some_and(|n| n.parse::<u32>().is_ok());
    let pci = names("sys/bus/pci/devices").into_iter().filter(|p| text(p.join("class")).starts_with("0x03"));
    let cards =
        names("sys/class/drm").into_iter().filter(|path| is_card(path)).map(|path| path.join("device"));
    let mut found = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for path in pci.chain(cards) {
        let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        if seen.insert(real.clone()) {
            found.push((name(&real), text(path.join("vendor")), text(path.join("device"))));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_sizes_are_read_from_the_kernels_text() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Xeon X\n"), "Xeon X");
        assert_eq!(cpu_model("CPU part\t: 0xd0c\n"), "ARM part 0xd0c");
        assert!(cpu_model("").contains("unknown"));
        assert_eq!(
            meminfo_bytes("MemTotal:       24683520 kB\nMemFree: 1 kB\n", "MemTotal"),
            24_683_520 * 1024
        );
        assert_eq!(meminfo_bytes("", "MemTotal"), 0);
    }

    #[test]
    fn this_machine_has_something_to_offer() {
        let hardware =
            take(&Places { nvml_library: "/nonexistent/libnvidia-ml.so.1".into(), ..Places::default() });
        assert!(hardware.cpu_threads > 0 && hardware.memory_bytes > 1 << 28, "{hardware:?}");
        assert!(hardware.gpus.is_empty());
        let offer = default_offer(&hardware, Path::new("/nonexistent/data"));
        assert!(offer.cpu_millis >= 1000 && offer.disk_bytes > 0 && offer.gpus == 0, "{offer:?}");
    }
}
