//! Measures this machine: what its inventory only claims.
//!
//! Always holds: every part is bounded in time and size and leaves nothing behind; rates are decimal megabytes a second.
//! The network is measured by the server. Not here: whether it is enough (`ionet-domain`).

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ionet_domain::device::{GpuCheck, Measured};
use ionet_runtime::limits::{Enforcement, Hierarchy};
use rustix::fs::{Advice, fadvise};
use sha2::{Digest as _, Sha256};

use crate::error::{During as _, Result};
use crate::inventory::{Places, disk_free_bytes};

const CPU_TIME: Duration = Duration::from_millis(400);
const MEMORY_TIME: Duration = Duration::from_millis(200);
const DISK_TIME: Duration = Duration::from_secs(4);
const MOST_DISK_BYTES: u64 = 128 << 20;
const CHUNK_BYTES: usize = 1 << 20;
const COPY_BYTES: usize = 32 << 20;

/// Measures everything but the network; `threads` are those offered.
pub fn measure(places: &Places, data_dir: &Path, threads: u32) -> Result<Measured> {
    let (disk_write_mb_s, disk_read_mb_s) = measure_disk(data_dir)?;
    Ok(Measured {
        cpu_one_mb_s: measure_cpu(1),
        cpu_all_mb_s: measure_cpu(threads.max(1)),
        memory_mb_s: measure_memory(),
        disk_write_mb_s,
        disk_read_mb_s,
        gpus: check_gpus(places),
        enforcement: enforcement(),
        ..Measured::default()
    })
}

/// How limits are enforced on boxes; `None` where nothing is delegated.
fn enforcement() -> Option<String> {
    match Hierarchy::detect().enforcement() {
        Enforcement::Cgroup2 => Some("cgroup2".into()),
        Enforcement::Cgroup1 => Some("cgroup1".into()),
        Enforcement::None { .. } => None,
    }
}

/// Why this machine holds one tenant at a time, if so: limits that are not enforced protect nobody from another.
pub(crate) fn one_tenant_because() -> Option<String> {
    match Hierarchy::detect().enforcement() {
        Enforcement::Cgroup2 | Enforcement::Cgroup1 => None,
        Enforcement::None { reason } => Some(reason.clone()),
    }
}

fn mb_per_second(bytes: u64, took: Duration) -> u32 {
    let per_second = u128::from(bytes) * 1_000_000 / took.as_micros().max(1);
    u32::try_from(per_second / 1_000_000).unwrap_or(u32::MAX)
}

/// SHA-256 on so many threads at once, all together.
fn measure_cpu(threads: u32) -> u32 {
    let workers: Vec<_> = (0..threads).map(|_| thread::spawn(hash_for_a_while)).collect();
    workers.into_iter().filter_map(|worker| worker.join().ok()).fold(0, u32::saturating_add)
}

fn hash_for_a_while() -> u32 {
    let chunk = vec![0x5a; 64 << 10];
    let mut hasher = Sha256::new();
    let (began, mut bytes) = (Instant::now(), 0u64);
    while began.elapsed() < CPU_TIME {
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
    }
    std::hint::black_box(hasher.finalize());
    mb_per_second(bytes, began.elapsed())
}

fn measure_memory() -> u32 {
    let source = vec![1u8; COPY_BYTES];
    let mut target = vec![0u8; COPY_BYTES];
    let (began, mut bytes) = (Instant::now(), 0u64);
    while began.elapsed() < MEMORY_TIME {
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&target);
        bytes += COPY_BYTES as u64;
    }
    mb_per_second(bytes, began.elapsed())
}

/// Writing with a sync at the end, then reading past the page cache where the system lets it go.
fn measure_disk(data_dir: &Path) -> Result<(u32, u32)> {
    let path = data_dir.join(format!("check-{}.tmp", std::process::id()));
    let measured = write_and_read(&path, (disk_free_bytes(data_dir) / 20).min(MOST_DISK_BYTES));
    // Whatever came of it, nothing stays.
    let _ = fs::remove_file(&path);
    measured
}

fn write_and_read(path: &Path, most_bytes: u64) -> Result<(u32, u32)> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .during_at("measure the disk with", path)?;
    let mut noise = noise();
    let (began, mut bytes) = (Instant::now(), 0u64);
    while bytes == 0 || (bytes < most_bytes && began.elapsed() < DISK_TIME) {
        // No two chunks alike, so that a clever disk cannot keep one for all.
        noise[..8].copy_from_slice(&bytes.to_le_bytes());
        file.write_all(&noise).during_at("write", path)?;
        bytes += noise.len() as u64;
    }
    file.sync_data().during_at("sync", path)?;
    let write = mb_per_second(bytes, began.elapsed());
    // Best effort: a file system in memory has nothing else.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    drop(file);
    Ok((write, read_back(path, noise)?))
}

fn read_back(path: &Path, mut buffer: Vec<u8>) -> Result<u32> {
    let mut file = File::open(path).during_at("open", path)?;
    let (began, mut bytes) = (Instant::now(), 0u64);
    while began.elapsed() < DISK_TIME {
        match file.read(&mut buffer).during_at("read", path)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    Ok(mb_per_second(bytes, began.elapsed()))
}

/// Bytes that no disk can compress.
fn noise() -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(CHUNK_BYTES);
    while noise.len() < CHUNK_BYTES {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        noise.extend_from_slice(&word.to_le_bytes());
    }
    noise
}

fn check_gpus(places: &Places) -> Vec<GpuCheck> {
    // A card that does not answer was not seen; one that was claimed is then missed.
    let known = places.nvml().and_then(|nvml| nvml.gpus().map_err(|error| error.to_string()));
    let known = known.map(|cards| cards.into_iter().flatten().collect::<Vec<_>>());
    let check = |gpu: crate::nvml::DriverGpu| GpuCheck {
        kernel_sees: places.kernel_sees(&gpu),
        driver_memory_bytes: Some(gpu.gpu.memory_bytes),
        uuid: gpu.gpu.uuid,
    };
    known.unwrap_or_default().into_iter().map(check).collect()
}
