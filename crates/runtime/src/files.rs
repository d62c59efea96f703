//! The box's files for those who copy to and from it: a small protocol over standard input and output, served in the box.
//!
//! A frame is a big-endian `u32` and that many bytes; a header is a frame of JSON. The client asks, one request at a
//! time; what a file holds comes as frames, an empty one at its end, and then its digest.
//! Always holds: a file appears under its name only whole, with the digest that the sender gave, and on disk; what was
//! broken off stays beside it as `NAME.ionet-part` and is gone on with only if its bytes are the sender's. Paths are the box's: the box
//! is the jail. Not here: the way to the client (`ionet-worker`), the client (`ionet`).

use std::{
    fs::{self, File, FileTimes, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

/// The sub-command.
pub const WORD: &str = "box-files";
/// Longest header in bytes.
pub const HEADER_BYTES: usize = 64 << 10;
/// Longest piece of a file in bytes.
pub const PIECE_BYTES: usize = 256 << 10;
/// How deep a tree may be.
const DEPTH: usize = 128;
/// What is added to the name of a file that is not whole yet.
const PART: &str = ".ionet-part";

/// What the client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// What is at a path: an [`Entry`], or `null`.
    Stat {
        /// Relative ones begin at the home folder.
        path: String,
    },
    /// What is at a path and below it: an [`Entry`] each, parents first, then `null`.
    List {
        /// Relative ones begin at the home folder.
        path: String,
    },
    /// A file, from `offset` on if its first `offset` bytes have this digest, else from the start: a [`Coming`], the
    /// pieces, the digest of the whole.
    Get {
        /// Which.
        path: String,
        /// How much of it the client has.
        offset: u64,
        /// The digest of that, in hex.
        digest: String,
    },
    /// Make a folder with those above it: `Done`.
    Folder {
        /// Which.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// Take a file: a [`Had`], then from the client the offset from which it sends, the pieces, the digest of the whole; then
    /// `Done`.
    Put {
        /// Where to.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// Its permissions.
        mode: u32,
        /// When it was changed, in milliseconds since 1970.
        modified_ms: u64,
    },
}

/// One thing in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Relative to what was asked for; empty for that itself.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// In bytes.
    pub size: u64,
    /// Its permissions.
    pub mode: u32,
    /// When it was changed, in milliseconds since 1970.
    pub modified_ms: u64,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A link, a socket and the like: not copied.
    Other,
}

/// What a `Get` sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coming {
    /// Of the whole file, in bytes.
    pub size: u64,
    /// Where it begins.
    pub offset: u64,
}

/// How much of a file was there of an earlier try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Had {
    /// In bytes.
    pub size: u64,
    /// Its digest, in hex.
    pub digest: String,
}

/// The server's answer, or why not.
pub type Answer<T> = Result<T, Failed>;

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// Stable, `snake_case`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Entry point of the hidden sub-command.
pub fn main(_arguments: &[String]) -> ExitCode {
    let (input, output) = (BufReader::new(io::stdin().lock()), BufWriter::new(io::stdout().lock()));
    match (Server { input, output }).serve() {
        Ok(()) => ExitCode::SUCCESS,
        // The client went away; nobody is left to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

struct Server<R, W> {
    input: R,
    output: W,
}

impl<R: Read, W: Write> Server<R, W> {
    fn serve(&mut self) -> io::Result<()> {
        while let Some(frame) = self.frame(HEADER_BYTES)? {
            match read::<Ask>(&frame)? {
                Ask::Stat { path } => self.stat(&path)?,
                Ask::List { path } => self.list(&path)?,
                Ask::Get { path, offset, digest } => self.get(&path, offset, &digest)?,
                Ask::Folder { path, mode } => {
                    let made = make_folder(&path, mode).map_err(|error| failed(&path, &error));
                    self.say(&made)?;
                }
                Ask::Put { path, size, mode, modified_ms } => self.put(&path, size, mode, modified_ms)?,
            }
        }
        Ok(())
    }

    /// The next frame; `None` when the client has ended.
    fn frame(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        match self.input.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; length];
        self.input.read_exact(&mut frame)?;
        Ok(Some(frame))
    }

    fn header<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let frame = self.frame(HEADER_BYTES)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        read(&frame)
    }

    fn piece(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.output.write_all(&length.to_be_bytes())?;
        self.output.write_all(bytes)
    }

    fn tell<T: Serialize>(&mut self, answer: &T) -> io::Result<()> {
        self.piece(&serde_json::to_vec(answer)?)
    }

    fn say<T: Serialize>(&mut self, answer: &Answer<T>) -> io::Result<()> {
        self.tell(answer)?;
        self.output.flush()
    }

    fn stat(&mut self, path: &str) -> io::Result<()> {
        let found = match fs::metadata(path) {
            Ok(found) => Ok(Some(entry(String::new(), &found))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(path, &error)),
        };
        self.say(&found)
    }

    fn list(&mut self, path: &str) -> io::Result<()> {
        let top = PathBuf::from(path);
        // What is asked for by name may be a link; what is found below it is not followed.
        let entry = match fs::metadata(&top) {
            Ok(found) => entry(String::new(), &found),
            Err(error) => return self.say::<()>(&Err(failed(path, &error))),
        };
        let folder = entry.kind == Kind::Folder;
        self.tell::<Answer<Option<Entry>>>(&Ok(Some(entry)))?;
        if folder {
            self.list_below(&top, "", 0)?;
        }
        self.say::<Option<Entry>>(&Ok(None))
    }

    fn list_below(&mut self, folder: &Path, name: &str, depth: usize) -> io::Result<()> {
        let Ok(found) = fs::read_dir(folder) else { return Ok(()) };
        for child in found.flatten() {
            let Ok(metadata) = fs::symlink_metadata(child.path()) else { continue };
            // A name that is no text has no way to be asked for.
            let Ok(own) = child.file_name().into_string() else { continue };
            let name = if name.is_empty() { own } else { format!("{name}/{own}") };
            let entry = entry(name.clone(), &metadata);
            let folder = entry.kind == Kind::Folder;
            self.tell::<Answer<Option<Entry>>>(&Ok(Some(entry)))?;
            if folder && depth < DEPTH {
                self.list_below(&child.path(), &name, depth + 1)?;
            }
        }
        Ok(())
    }

    fn get(&mut self, path: &str, offset: u64, digest: &str) -> io::Result<()> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, mut file) = match opened {
            Ok((metadata, file)) if metadata.is_file() => (metadata, file),
            Ok(_) => {
                let message = format!("{path} is no file");
                return self.say::<()>(&Err(Failed { code: "not_a_file".into(), message }));
            }
            Err(error) => return self.say::<()>(&Err(failed(path, &error))),
        };
        let size = metadata.len();
        let mut hash = Sha256::new();
        let mut from = 0;
        if offset > 0 && offset <= size {
            let had = digest_of(&mut file, offset)?;
            if hex(&had.clone().finalize()) == digest {
                (hash, from) = (had, offset);
            }
        }
        file.seek(SeekFrom::Start(from))?;
        self.tell::<Answer<Coming>>(&Ok(Coming { size, offset: from }))?;
        let mut buffer = vec![0; PIECE_BYTES];
        // A file that grows meanwhile, like a log, is what it was when it was asked for.
        let mut file = file.take(size - from);
        loop {
            let count = file.read(&mut buffer)?;
            hash.update(&buffer[..count]);
            self.piece(&buffer[..count])?;
            if count == 0 {
                break;
            }
        }
        self.say::<String>(&Ok(hex(&hash.finalize())))
    }

    fn put(&mut self, path: &str, size: u64, mode: u32, modified_ms: u64) -> io::Result<()> {
        let mut part = match Part::open(path, size) {
            Ok(part) => part,
            Err(error) => return self.say::<()>(&Err(failed(path, &error))),
        };
        self.say::<Had>(&Ok(Had { size: part.at, digest: hex(&part.hash.clone().finalize()) }))?;
        let from: u64 = self.header()?;
        let mut done = part.go_on_from(from);
        // What comes is read to its end even where it cannot be kept, so that the answer is read too.
        while let Some(piece) = self.frame(PIECE_BYTES)?.filter(|piece| !piece.is_empty()) {
            done = done.and_then(|()| part.add(&piece));
        }
        let digest: String = self.header()?;
        let done = done.map_err(|error| failed(path, &error));
        let kept = done.and_then(|()| part.keep(&digest, mode, modified_ms));
        self.say(&kept)
    }
}

/// A file that is coming.
struct Part {
    target: PathBuf,
    path: PathBuf,
    file: File,
    hash: Sha256,
    at: u64,
}

impl Part {
    fn open(path: &str, size: u64) -> io::Result<Self> {
        let target = PathBuf::from(path);
        if target.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let part = PathBuf::from(format!("{path}{PART}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.custom_flags(libc::O_NOFOLLOW).open(&part)?;
        if file.metadata()?.len() > size {
            file.set_len(0)?;
        }
        let at = file.metadata()?.len();
        let hash = digest_of(&mut file, at)?;
        Ok(Self { target, path: part, file, hash, at })
    }

    fn go_on_from(&mut self, from: u64) -> io::Result<()> {
        if from != self.at {
            self.file.set_len(0)?;
            (self.hash, self.at) = (Sha256::new(), 0);
        }
        self.file.seek(SeekFrom::Start(self.at)).map(drop)
    }

    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.hash.update(piece);
        self.at += piece.len() as u64;
        Ok(())
    }

    fn keep(self, digest: &str, mode: u32, modified_ms: u64) -> Answer<()> {
        let failed = |error: io::Error| failed(&self.target.display().to_string(), &error);
        if hex(&self.hash.finalize()) != digest {
            let _ = fs::remove_file(&self.path);
            let message = format!("{} came damaged; copy it again", self.target.display());
            return Err(Failed { code: "damaged".into(), message });
        }
        let modified = UNIX_EPOCH + Duration::from_millis(modified_ms);
        self.file.set_permissions(fs::Permissions::from_mode(mode & 0o7777)).map_err(failed)?;
        self.file.set_times(FileTimes::new().set_modified(modified)).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.path, &self.target).map_err(failed)
    }
}

fn make_folder(path: &str, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    // Its owner must be able to fill it.
    fs::set_permissions(path, fs::Permissions::from_mode((mode & 0o7777) | 0o700))
}

fn entry(path: String, metadata: &fs::Metadata) -> Entry {
    let kind = if metadata.is_file() {
        Kind::File
    } else if metadata.is_dir() {
        Kind::Folder
    } else {
        Kind::Other
    };
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Entry {
        path,
        kind,
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        modified_ms: modified.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The digest of a file's first `bytes`, or of what there is of them.
///
/// # Errors
/// If it cannot be read.
pub fn digest_of(file: &mut File, bytes: u64) -> io::Result<Sha256> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut rest = file.take(bytes);
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(hash),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// A digest as it is sent.
pub fn hex(digest: &[u8]) -> String {
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn read<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    serde_json::from_slice(frame).map_err(io::Error::from)
}

fn failed(path: &str, error: &io::Error) -> Failed {
    let code = match error.kind() {
        io::ErrorKind::NotFound => "no_such_file",
        io::ErrorKind::PermissionDenied => "not_permitted",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no_room",
        io::ErrorKind::IsADirectory => "not_a_file",
        _ => "file_error",
    };
    Failed { code: code.into(), message: format!("{path}: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server says to these frames.
    fn talk(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut input = Vec::new();
        for frame in frames {
            input.extend(u32::try_from(frame.len()).unwrap().to_be_bytes());
            input.extend(frame);
        }
        let mut output = Vec::new();
        // A client that breaks off in the middle is an error here, and what was said before counts.
        let _ = Server { input: &input[..], output: &mut output }.serve();
        let mut said = Vec::new();
        let mut rest = &output[..];
        while let Some((length, more)) = rest.split_first_chunk::<4>() {
            let (frame, more) = more.split_at(u32::from_be_bytes(*length) as usize);
            said.push(frame.to_vec());
            rest = more;
        }
        said
    }

    fn json(value: &impl Serialize) -> Vec<u8> {
        serde_json::to_vec(value).unwrap()
    }

    fn sha(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    fn put(path: &Path, size: u64) -> Vec<u8> {
        json(&Ask::Put { path: path.to_str().unwrap().into(), size, mode: 0o640, modified_ms: 86_400_000 })
    }

    #[test]
    fn a_file_goes_on_where_it_was_broken_off_and_appears_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("weights");
        // Broken off after six bytes.
        let said = talk(&[put(&target, 10), json(&0), b"012345".to_vec()]);
        assert_eq!(serde_json::from_slice::<Answer<Had>>(&said[0]).unwrap().unwrap().size, 0);
        assert!(!target.exists());
        let said =
            talk(&[put(&target, 10), json(&6), b"6789".to_vec(), Vec::new(), json(&sha(b"0123456789"))]);
        let had = serde_json::from_slice::<Answer<Had>>(&said[0]).unwrap().unwrap();
        assert_eq!(had, Had { size: 6, digest: sha(b"012345") });
        assert_eq!(serde_json::from_slice::<Answer<()>>(&said[1]).unwrap(), Ok(()));
        assert_eq!(fs::read(&target).unwrap(), b"0123456789");
        let metadata = fs::metadata(&target).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o640, 86_400));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_does_not_appear() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("weights");
        let said = talk(&[put(&target, 3), json(&0), b"abc".to_vec(), Vec::new(), json(&sha(b"abd"))]);
        let failed = serde_json::from_slice::<Answer<()>>(&said[1]).unwrap().unwrap_err();
        assert_eq!(failed.code, "damaged");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_get_goes_on_only_after_bytes_that_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "0123456789").unwrap();
        let get = |offset, digest: &str| {
            json(&Ask::Get { path: path.to_str().unwrap().into(), offset, digest: digest.into() })
        };
        for (digest, from) in [(sha(b"0123"), 4), (sha(b"abcd"), 0)] {
            let said = talk(&[get(4, &digest)]);
            let coming = serde_json::from_slice::<Answer<Coming>>(&said[0]).unwrap().unwrap();
            assert_eq!(coming, Coming { size: 10, offset: from });
            assert_eq!(said[1], &b"0123456789"[usize::try_from(from).unwrap()..]);
            assert!(said[2].is_empty());
            assert_eq!(serde_json::from_slice::<Answer<String>>(&said[3]).unwrap(), Ok(sha(b"0123456789")));
        }
    }

    #[test]
    fn a_list_has_parents_first_and_follows_no_links() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), "12").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("a/root")).unwrap();
        let said = talk(&[json(&Ask::List { path: dir.path().to_str().unwrap().into() })]);
        let mut found: Vec<_> = said
            .iter()
            .filter_map(|frame| serde_json::from_slice::<Answer<Option<Entry>>>(frame).unwrap().unwrap())
            .map(|entry| (entry.path, entry.kind))
            .collect();
        assert_eq!(found.remove(0), (String::new(), Kind::Folder));
        assert_eq!(found.remove(0), ("a".into(), Kind::Folder));
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found, [("a/b".into(), Kind::File), ("a/root".into(), Kind::Other)]);
        let missing = talk(&[json(&Ask::List { path: "/no/such".into() })]);
        let answer = serde_json::from_slice::<Answer<Option<Entry>>>(&missing[0]).unwrap();
        assert_eq!(answer.unwrap_err().code, "no_such_file");
    }
}
