//! The server's disk: the journal's own twin, which a planted fault can make lie about syncs.

use std::io::Result;

use ionet_journal::{Disk, Keep, MemDisk};

/// A disk in memory that may lie.
#[derive(Debug, Clone)]
pub(super) struct LabDisk {
    pub(super) mem: MemDisk,
    lies: bool,
}

impl LabDisk {
    pub(super) fn new(lies: bool) -> Self {
        Self { mem: MemDisk::new(), lies }
    }

    pub(super) fn restart(&self, keep: Keep) -> Self {
        Self { mem: self.mem.restart(keep), lies: self.lies }
    }

    /// Bytes in all files.
    pub(super) fn used_bytes(&self) -> u64 {
        let names = self.mem.list().unwrap_or_default();
        names.iter().filter_map(|name| self.mem.size(name).ok()).sum()
    }

    pub(super) fn copy(&self) -> Self {
        Self { mem: self.mem.copy(), lies: self.lies }
    }
}

impl Disk for LabDisk {
    fn list(&self) -> Result<Vec<String>> {
        self.mem.list()
    }
    fn size(&self, name: &str) -> Result<u64> {
        self.mem.size(name)
    }
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.mem.read_at(name, offset, into)
    }
    fn append(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.mem.append(name, bytes)
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.mem.write_at(name, offset, bytes)
    }
    fn truncate(&self, name: &str, bytes: u64) -> Result<()> {
        self.mem.truncate(name, bytes)
    }
    fn sync(&self, name: &str) -> Result<()> {
        if self.lies { Ok(()) } else { self.mem.sync(name) }
    }
    fn sync_dir(&self) -> Result<()> {
        self.mem.sync_dir()
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.mem.replace(name, bytes)
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.mem.remove(name)
    }
}
