//! This machine's size, to be divided among local workers.

use std::path::Path;

use crate::error::{CliError, Result, io};

/// What there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    threads: u32,
    memory_bytes: u64,
    disk_free_bytes: u64,
}

/// What one local worker offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) cpu_millis: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
}

/// Of memory and free disk, this much is for hire in all.
const FOR_HIRE_PERCENT: u64 = 80;

impl Machine {
    pub(crate) fn look(data_dir: &Path) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_err(io("count the CPU threads"))?;
        let text = std::fs::read_to_string("/proc/meminfo").map_err(io("read /proc/meminfo"))?;
        let disk = rustix::fs::statvfs(data_dir).map_err(|error| io("measure the disk")(error.into()))?;
        Ok(Self {
            threads: u32::try_from(threads.get()).unwrap_or(u32::MAX),
            memory_bytes: total_memory(&text)
                .ok_or_else(|| CliError::internal("io", "/proc/meminfo names no MemTotal"))?,
            disk_free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        })
    }

    /// One of `workers` equal parts; each has a CPU thread at least.
    pub(crate) fn share(self, workers: u32) -> Share {
        let part = |bytes: u64| bytes / 100 * FOR_HIRE_PERCENT / u64::from(workers.max(1));
        Share {
            cpu_millis: (self.threads / workers.max(1)).max(1) * 1000,
            memory_bytes: part(self.memory_bytes),
            disk_bytes: part(self.disk_free_bytes),
        }
    }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_a_thread_and_an_equal_part() {
        let machine = Machine { threads: 2, memory_bytes: 1000, disk_free_bytes: 500 };
        assert_eq!(machine.share(2), Share { cpu_millis: 1000, memory_bytes: 400, disk_bytes: 200 });
        assert_eq!(machine.share(3).cpu_millis, 1000);
        assert_eq!(total_memory("MemTotal:  2 kB\nMemFree: 1 kB"), Some(2048));
    }
}
