//! Removes what a lease left behind, and says honestly what was done.
//!
//! Always holds: links are removed, never followed; the receipt says `finished` only when folder and
//! processes were looked for afterwards and not found. Not claimed: that blocks of a flash disk cannot
//! be recovered by whoever holds the disk; that needs an encrypted disk.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    error::{During, Result},
    sandbox::WipeReceipt,
};

/// Regular files up to this size are overwritten before they are removed.
const OVERWRITE_BYTES: u64 = 1 << 20;

/// Wipes the lease's folder. `processes_killed` comes from whoever ended the processes, `processes_gone`
/// from the look afterwards.
pub fn wipe(lease: &str, folder: &Path, processes_killed: u64, processes_gone: bool) -> Result<WipeReceipt> {
    let mut found = Found::default();
    if folder.symlink_metadata().is_ok() {
        wipe_folder(folder, &mut found).during(format!("wipe {}", folder.display()))?;
        fs::remove_dir(folder).during(format!("remove {}", folder.display()))?;
    }
    Ok(WipeReceipt {
        lease: lease.into(),
        files: found.files,
        bytes: found.bytes,
        processes_killed,
        method: "regular files up to 1 MiB overwritten once with zeros, all files unlinked, memory file \
                 systems discarded"
            .into(),
        finished: processes_gone && folder.symlink_metadata().is_err(),
    })
}

#[derive(Default)]
struct Found {
    files: u64,
    bytes: u64,
}

/// Removes the content. A folder in a folder is first moved to the top, so that no depth that a box
/// made up can exhaust the stack or the length of a path.
fn wipe_folder(top: &Path, found: &mut Found) -> io::Result<()> {
    let mut moved = 0u64;
    let mut folders = vec![top.to_path_buf()];
    while let Some(folder) = folders.pop() {
        // A box may have taken its own rights away.
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            if meta.is_dir() && folder == top {
                folders.push(path);
            } else if meta.is_dir() {
                fs::set_permissions(&path, Permissions::from_mode(0o700))?;
                folders.push(move_to(top, &path, &mut moved)?);
            } else {
                wipe_file(&path, &meta, found)?;
            }
        }
        if folder != top {
            fs::remove_dir(&folder)?;
        }
    }
    Ok(())
}

/// Moves a folder up under a name that nothing has, not even what an interrupted wipe has left.
fn move_to(top: &Path, path: &Path, moved: &mut u64) -> io::Result<PathBuf> {
    loop {
        let place = top.join(format!(".wipe-{moved}"));
        *moved += 1;
        if place.symlink_metadata().is_err() {
            return fs::rename(path, &place).map(|()| place);
        }
    }
}

fn wipe_file(path: &Path, meta: &fs::Metadata, found: &mut Found) -> io::Result<()> {
    found.files += 1;
    if meta.is_file() {
        found.bytes += meta.len();
        if meta.len() <= OVERWRITE_BYTES {
            overwrite(path, meta.len())?;
        }
    }
    fs::remove_file(path)
}

fn overwrite(path: &Path, bytes: u64) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let mut file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let zeros = [0; 4096];
    let mut left = usize::try_from(bytes).unwrap_or(0);
    while left > 0 {
        let step = left.min(zeros.len());
        file.write_all(&zeros[..step])?;
        left -= step;
    }
    Ok(())
}

/// Bytes that the files below `folder` take on disk. What vanishes meanwhile counts nothing; folders so
/// deep that they cannot be looked at count as more than any limit.
pub fn disk_usage_bytes(folder: &Path) -> u64 {
    let mut bytes = 0u64;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => return u64::MAX,
            Err(_) => continue,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => folders.push(path),
                Ok(meta) => bytes += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("keep"), "host").unwrap();
        let lease = tempfile::tempdir().unwrap().keep();
        fs::create_dir_all(lease.join("a/b")).unwrap();
        fs::write(lease.join("a/b/small"), "secret").unwrap();
        fs::write(lease.join("large"), vec![7; 2 << 20]).unwrap();
        std::os::unix::fs::symlink(outside.path(), lease.join("a/out")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("keep"), lease.join("out")).unwrap();
        fs::set_permissions(lease.join("a/b"), Permissions::from_mode(0o0)).unwrap();
        let receipt = wipe("l1", &lease, 3, true).unwrap();
        assert_eq!((receipt.files, receipt.bytes, receipt.finished), (4, 6 + (2 << 20), true));
        assert_eq!(fs::read_to_string(outside.path().join("keep")).unwrap(), "host");
        // A second time there is nothing to do.
        assert_eq!(wipe("l1", &lease, 0, true).unwrap().files, 0);
    }

    #[test]
    fn an_interrupted_wipe_is_finished_and_names_that_a_box_chose_do_not_stop_it() {
        let lease = tempfile::tempdir().unwrap().keep();
        for folder in [".wipe-0/deep", ".wipe-1", "work/.wipe-0/.wipe-1/.wipe-0", "work/.wipe-2/x"] {
            fs::create_dir_all(lease.join(folder)).unwrap();
            fs::write(lease.join(folder).join("file"), "secret").unwrap();
        }
        std::os::unix::fs::symlink("/", lease.join("work/.wipe-3")).unwrap();
        std::os::unix::fs::symlink("/", lease.join(".wipe-4")).unwrap();
        let receipt = wipe("l1", &lease, 0, true).unwrap();
        assert_eq!((receipt.files, receipt.finished), (6, true));
    }
}
