//! The seam to the file system: a directory of flat files, and its two implementations' contract.
//!
//! What always holds: nothing written is promised before [`Disk::sync`] of its file returned, and no file is
//! promised to exist (or be gone) before [`Disk::sync_dir`] returned; [`Disk::replace`] alone syncs by
//! itself. There is one writer. Not here: what the bytes mean.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, IoContext, Result};

/// A directory of flat files.
///
/// All methods take `&self`, so that readers and the writer can share one disk.
pub trait Disk {
    /// The names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A file's length in bytes; `NotFound` if there is none.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Reads from `offset` into `into`; fewer bytes than asked only at the end of the file.
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes at the end of a file, which is created if it does not exist.
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Writes over bytes of a file that already has them.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file to `bytes`.
    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()>;
    /// Makes a file's content durable.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Makes the creation and removal of files durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Makes `bytes` the whole content of a file, durably: after a crash it is the old or the new content.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file; `NotFound` if there is none.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// Reads a whole file.
pub(crate) fn read_all<D: Disk>(disk: &D, name: &str) -> io::Result<Vec<u8>> {
    let size = disk.size(name)?;
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    let read = disk.read_at(name, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

const LOCK_FILE: &str = "lock";
const TEMP_SUFFIX: &str = ".temp";
/// More than the files written at any time: two of a segment, two while rolling.
const OPEN_FILES_MAX: usize = 8;

/// A real directory. Clones share it.
#[derive(Debug, Clone)]
pub struct FileDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// Held for as long as the disk may write; `None` if it only reads.
    lock: Option<File>,
    /// A file is written and synced through the same handle, or a failed write-back could go unseen.
    open: Mutex<BTreeMap<String, Arc<File>>>,
}

impl FileDisk {
    /// Opens a directory for writing, creating it if needed, and keeps every other process from doing the same.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process (or this one) holds it.
    pub fn open(dir: &Path) -> Result<FileDisk> {
        let name = dir.display().to_string();
        create_dir_durably(dir).doing("create", &name)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE));
        let lock = lock.doing("open the lock of", &name)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: name }),
            Err(TryLockError::Error(source)) => return Err(source).doing("lock", &name),
        }
        let disk = FileDisk::new(dir, Some(lock));
        disk.remove_temporary_files().doing("clean up", &name)?;
        Ok(disk)
    }

    /// Opens a directory for reading only, also while another process writes. It must exist.
    pub fn open_read_only(dir: &Path) -> Result<FileDisk> {
        std::fs::read_dir(dir).doing("read", &dir.display().to_string())?;
        Ok(FileDisk::new(dir, None))
    }

    fn new(dir: &Path, lock: Option<File>) -> FileDisk {
        FileDisk { inner: Arc::new(Inner { dir: dir.to_owned(), lock, open: Mutex::default() }) }
    }

    fn remove_temporary_files(&self) -> io::Result<()> {
        for name in self.names()?.iter().filter(|name| name.ends_with(TEMP_SUFFIX)) {
            std::fs::remove_file(self.path(name))?;
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for file in std::fs::read_dir(&self.inner.dir)? {
            names.extend(file?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.inner.dir.join(name)
    }

    fn may_write(&self) -> io::Result<()> {
        match self.inner.lock {
            Some(_) => Ok(()),
            None => Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "opened for reading only")),
        }
    }

    fn writable(&self, name: &str, create: bool) -> io::Result<Arc<File>> {
        self.may_write()?;
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(name) {
            return Ok(file.clone());
        }
        let file = OpenOptions::new().read(true).write(true).create(create).open(self.path(name))?;
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        let file = Arc::new(file);
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn forget(&self, name: &str) {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

fn create_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl Disk for FileDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|name| name != LOCK_FILE && !name.ends_with(TEMP_SUFFIX));
        Ok(names)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path(name))?.len())
    }

    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let file = File::open(self.path(name))?;
        let mut read = 0;
        while read < into.len() {
            match file.read_at(&mut into[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(read)
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.writable(name, true)?;
        file.write_all_at(bytes, file.metadata()?.len())
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.writable(name, false)?;
        if offset + bytes.len() as u64 > file.metadata()?.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "would write past the end"));
        }
        file.write_all_at(bytes, offset)
    }

    fn truncate(&self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.writable(name, false)?;
        if bytes > file.metadata()?.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "would make the file longer"));
        }
        file.set_len(bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.writable(name, false)?.sync_data()
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.may_write()?;
        File::open(&self.inner.dir)?.sync_all()
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.may_write()?;
        let temp = self.path(&format!("{name}{TEMP_SUFFIX}"));
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&temp)?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&temp, self.path(name))?;
        self.forget(name);
        self.sync_dir()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.may_write()?;
        self.forget(name);
        std::fs::remove_file(self.path(name))
    }
}
