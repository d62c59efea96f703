//! What the worker keeps on disk: small JSON files, written whole or not at all, and one folder a lease.
//!
//! Always holds: a file is readable by its owner only and never half written; a folder has one process at a time. Not
//! here: what is in the files (`agent`, `supervision`).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ionet_api::worker::{BoxPhase, ObservedLease};
use ionet_domain::LeaseId;
use ionet_net::RelayInfo;
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::assignment::Assignment;
use crate::egress::EgressPolicy;
use crate::error::{During as _, Result, WorkerError};
use crate::supervision::Progress;

/// Makes a folder, and what is above it, for its owner only.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).during_at("make the folder", dir)
}

/// Reads a JSON file; `None` if there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).during_at("read", path),
    };
    let damaged = |error: serde_json::Error| WorkerError::Damaged {
        place: path.display().to_string(),
        reason: error.to_string(),
    };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

/// Writes a JSON file so that a crash leaves the old one or the new one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write(path, value, true)
}

/// The same for what nobody would miss after a crash of the machine: the disk need not be waited for.
pub(crate) fn write_json_loosely<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write(path, value, false)
}

fn write<T: Serialize>(path: &Path, value: &T, lasting: bool) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::from).during_at("write", path)?;
    let new = path.with_extension("new");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        if lasting {
            file.sync_all()?;
        }
        fs::rename(&new, path)?;
        // The name must last too.
        path.parent().filter(|_| lasting).map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().during_at("write", path)
}

/// Holds a folder for this process until dropped.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "dropping it gives the lock back")] File);

impl DirLock {
    pub(crate) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.during_at("open", &path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| WorkerError::Busy { place: dir.display().to_string() })?;
        Ok(Self(file))
    }
}

/// What a supervisor reads when it starts, and is told when something changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Brief {
    /// The lease.
    pub assignment: Assignment,
    /// The network's relays.
    pub relays: Vec<RelayInfo>,
    /// The worker's folder of prepared environments.
    pub environments_dir: PathBuf,
    /// What the operator says of what boxes may reach.
    #[serde(default)]
    pub egress: EgressPolicy,
    /// Where the agent is seen from outside: boxes may not go there. A supervisor that uses relays only does not learn
    /// it itself.
    #[serde(default)]
    pub own_addresses: Vec<IpAddr>,
}

/// The folder of one lease.
#[derive(Clone, Debug)]
pub(crate) struct LeaseDir(PathBuf);

impl LeaseDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn of(leases_dir: &Path, lease: LeaseId) -> Self {
        Self(leases_dir.join(lease.to_string()))
    }

    /// All leases that have a folder, in order.
    pub(crate) fn scan(leases_dir: &Path) -> Result<Vec<LeaseId>> {
        make_dir(leases_dir)?;
        let entries = fs::read_dir(leases_dir).during_at("look into", leases_dir)?;
        let mut found: Vec<LeaseId> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        found.sort_unstable();
        Ok(found)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn brief(&self) -> PathBuf {
        self.0.join("brief.json")
    }

    pub(crate) fn progress(&self) -> PathBuf {
        self.0.join("progress.json")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.0.join("endpoint.key")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    /// What the box has on disk; goes when it is wiped. Its name is the lease's alone: by it the box's processes are
    /// found.
    pub(crate) fn box_dir(&self) -> PathBuf {
        let lease = self.0.file_name().unwrap_or_default().to_string_lossy();
        self.0.join(lease.replace('.', "-"))
    }

    fn end(&self) -> PathBuf {
        self.0.join("end.json")
    }

    /// Keeps the last word on the lease.
    pub(crate) fn write_end(&self, observed: &ObservedLease) -> Result<()> {
        write_json(&self.end(), observed)
    }

    /// The last word on a lease whose supervisor is gone: its wipe, or what it had saved of its time.
    pub(crate) fn last_word(&self, lease: LeaseId, reason: &str) -> ObservedLease {
        if let Ok(Some(end)) = read_json(&self.end()) {
            return end;
        }
        let progress = read_json::<Progress>(&self.progress()).ok().flatten().unwrap_or_default();
        ObservedLease {
            lease,
            phase: BoxPhase::Lost { reason: reason.into() },
            parts_ms: Vec::new(),
            receipt: progress.receipt,
            endpoint: None,
            engine_restarts: progress.engine_restarts,
            egress: None,
        }
    }

    /// Whether a supervisor has the folder.
    pub(crate) fn is_held(&self) -> bool {
        matches!(DirLock::take(&self.0), Err(WorkerError::Busy { .. }))
    }

    /// Removes the folder; its box was wiped before.
    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).during_at("remove", &self.0),
            _ => Ok(()),
        }
    }

    /// Listens on the control socket; what a dead process left is replaced.
    pub(crate) fn listen(&self) -> Result<UnixListener> {
        let dir = File::open(&self.0).during_at("open", &self.0)?;
        let _ = fs::remove_file(self.0.join(SOCKET));
        let listener = UnixListener::bind(short(&dir)).during_at("listen in", &self.0)?;
        fs::set_permissions(self.0.join(SOCKET), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .during_at("close the control socket in", &self.0)?;
        listener.set_nonblocking(true).during("set up the control socket")?;
        Ok(listener)
    }

    /// Connects to the control socket; fails if nobody listens.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(short(&File::open(&self.0)?))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

const SOCKET: &str = "control.sock";

/// A name of the socket that fits in a socket address however long the folder's own is.
fn short(dir: &File) -> OsString {
    format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()).into()
}

/// A log of two files of bounded size.
#[derive(Debug)]
pub(crate) struct CappedLog {
    path: PathBuf,
    file: File,
    written: u64,
}

const LOG_BYTES: u64 = 1 << 20;

impl CappedLog {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let file = append(&path).during_at("open", &path)?;
        let written = file.metadata().map_or(0, |meta| meta.len());
        Ok(Self { path, file, written })
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl io::Write for CappedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= LOG_BYTES {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = append(&self.path)?;
            self.written = 0;
        }
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_never_grows_past_its_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor.log");
        let mut log = CappedLog::open(path.clone()).unwrap();
        for _ in 0..700 {
            log.write_all(&[b'x'; 4096]).unwrap();
        }
        let total: u64 =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!((LOG_BYTES..=2 * LOG_BYTES + 4096).contains(&total), "{total}");
    }

    #[test]
    fn a_folder_has_one_process_and_a_socket_with_any_length_of_name() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        make_dir(&deep).unwrap();
        let lease = LeaseDir::new(deep.clone());
        assert!(lease.connect().is_err());
        let listener = lease.listen().unwrap();
        lease.connect().unwrap();
        drop(listener);
        assert!(lease.connect().is_err(), "the file is there and nobody listens");
        lease.listen().unwrap();
        let lock = DirLock::take(&deep).unwrap();
        assert_eq!(DirLock::take(&deep).unwrap_err().code(), "worker_busy");
        drop(lock);
        DirLock::take(&deep).unwrap();
    }
}
