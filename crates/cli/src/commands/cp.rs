//! `ionet cp`: files and folders to a member's box or from it.
//!
//! Always holds: a file appears only whole; what was broken off goes on where it was, in the same run and in the next one; the box
//! is not believed: what it calls a file lands below the folder that was said, or nowhere. Not here: the other side
//! (`ionet_worker::box_files`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use ionet_domain::tunnel::Service;
use ionet_net::tunnel::TunnelStream;
use ionet_worker::box_files::{
    Answer, Ask, Coming, Entry, HEADER_BYTES, Had, Kind, PIECE_BYTES, digest_of, hex,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::args::{CpArgs, Place};
use crate::context::Context;
use crate::error::{CliError, Kind as ErrorKind, Result, io};
use crate::tunnel::Tunnels;
use crate::units;

/// How often a file is gone on with after a break, without having come any further.
const TRIES: u32 = 5;
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A box that says nothing for so long is taken for gone.
const ANSWER_WAIT: Duration = Duration::from_mins(2);
const PART: &str = ".ionet-part";

/// `ionet cp`
pub(crate) async fn cp(context: &Context, args: &CpArgs) -> Result {
    let (place, here, up) = match (&args.source, &args.target) {
        (Place::Here(here), place @ Place::Box { .. }) => (place, here, true),
        (place @ Place::Box { .. }, Place::Here(here)) => (place, here, false),
        _ => {
            return Err(CliError::usage("one of the two is in a box, the other here")
                .help("ionet cp FILE CLUSTER[.MEMBER]:PATH, or the other way round"));
        }
    };
    let Place::Box { cluster, member, path } = place else { return Ok(()) };
    let session = context.session().await?;
    let tunnels = Tunnels::open(context, &session, *cluster, Some(Service::Files.into())).await?;
    let path = path.strip_prefix("~/").unwrap_or(path);
    let path = if path.is_empty() || path == "~" { "." } else { path };
    let link = Link {
        stream: tunnels.stream(*member, Service::Files).await?,
        tunnels: tunnels.clone(),
        member: *member,
    };
    let mut copy = Copy { link, done: Done::default(), bar: bar(), moved: 0 };
    let result = if up { copy.up(here, path).await } else { copy.down(path, here).await };
    copy.bar.finish_and_clear();
    tunnels.close().await;
    result?;
    let Done { files, skipped, bytes, resumed_bytes } = copy.done;
    context.out.answer(&copy.done, |out| {
        let same = if skipped > 0 { format!(", {skipped} were there already") } else { String::new() };
        let before = if resumed_bytes > 0 {
            format!(", {} of an earlier try", units::bytes(resumed_bytes))
        } else {
            String::new()
        };
        let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
        out.line(format!("{files} copied, {}{before}{same}", units::bytes(bytes)));
    });
    Ok(())
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Done {
    files: u64,
    /// Already there, of the same size and time.
    skipped: u64,
    /// Sent or received now.
    bytes: u64,
    /// Not sent again.
    resumed_bytes: u64,
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let words = "{bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta} {msg}";
    if let Ok(style) = ProgressStyle::with_template(words) {
        bar.set_style(style);
    }
    bar
}

/// Why a file was not copied.
enum Broken {
    /// The stream: it may be tried again.
    Off(CliError),
    /// Anything else.
    For(CliError),
}

impl From<CliError> for Broken {
    fn from(error: CliError) -> Self {
        Self::For(error)
    }
}

type Step<T = ()> = std::result::Result<T, Broken>;

fn off(why: impl std::fmt::Display) -> Broken {
    Broken::Off(CliError::unreachable(
        "broken_off",
        format!("the copy broke off: {why}; say it again to go on"),
    ))
}

/// The stream to the box's side.
struct Link {
    stream: TunnelStream,
    tunnels: Tunnels,
    member: u32,
}

impl Link {
    async fn again(&mut self) -> Result {
        self.stream = self.tunnels.stream(self.member, Service::Files).await?;
        Ok(())
    }

    async fn piece(&mut self, bytes: &[u8]) -> Step {
        let length = u32::try_from(bytes.len()).map_err(off)?;
        let send = async {
            self.stream.write_all(&length.to_be_bytes()).await?;
            self.stream.write_all(bytes).await
        };
        tokio::time::timeout(ANSWER_WAIT, send).await.map_err(off)?.map_err(off)
    }

    async fn tell<T: Serialize>(&mut self, header: &T) -> Step {
        let header = serde_json::to_vec(header).map_err(off)?;
        self.piece(&header).await?;
        self.stream.flush().await.map_err(off)
    }

    async fn frame(&mut self, limit: usize) -> Step<Vec<u8>> {
        let receive = async {
            let length = self.stream.read_u32().await? as usize;
            if length > limit {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let mut frame = vec![0; length];
            self.stream.read_exact(&mut frame).await?;
            Ok::<_, std::io::Error>(frame)
        };
        tokio::time::timeout(ANSWER_WAIT, receive).await.map_err(off)?.map_err(off)
    }

    async fn answer<T: DeserializeOwned>(&mut self) -> Step<T> {
        let frame = self.frame(HEADER_BYTES).await?;
        let answer: Answer<T> = serde_json::from_slice(&frame).map_err(off)?;
        answer.map_err(|failed| {
            Broken::For(CliError::refused(&failed.code, format!("in the box: {}", failed.message)))
        })
    }

    async fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Step<T> {
        self.tell(ask).await?;
        self.answer().await
    }
}

struct Copy {
    link: Link,
    done: Done,
    bar: ProgressBar,
    /// Bytes that passed at all: whether a new try came further.
    moved: u64,
}

/// A file or a folder to copy.
struct Item {
    here: PathBuf,
    there: String,
    entry: Entry,
    /// It is there already.
    same: bool,
}

impl Copy {
    async fn up(&mut self, source: &Path, target: &str) -> Result {
        let top = fs::metadata(source).map_err(io(format!("read {}", source.display())))?;
        let into = matches!(
            self.once(&Ask::Stat { path: target.into() }).await?,
            Some(Entry { kind: Kind::Folder, .. })
        );
        let target = if into || target.ends_with('/') {
            let whole = fs::canonicalize(source).map_err(io(format!("read {}", source.display())))?;
            let name = whole.file_name().and_then(|name| name.to_str()).ok_or_else(|| no_name(source))?;
            format!("{}/{name}", target.trim_end_matches('/'))
        } else {
            target.to_owned()
        };
        let there = self.tree(&target, true).await?;
        let there: BTreeMap<_, _> = there.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        let mut items = Vec::new();
        gather(source, &target, &top, &mut items)?;
        for item in &mut items {
            let name = item.there.strip_prefix(&target).unwrap_or_default().trim_start_matches('/');
            item.same = there.get(name).is_some_and(|entry| same(entry, &item.entry));
        }
        self.all(&items, true).await
    }

    async fn down(&mut self, source: &str, target: &Path) -> Result {
        let entries = self.tree(source, false).await?;
        let text = target.as_os_str().to_string_lossy();
        let top = if target.is_dir() || text.ends_with('/') {
            let name = Path::new(source).file_name().and_then(|name| name.to_str());
            // The home folder itself has no name of its own.
            name.map_or_else(|| target.to_path_buf(), |name| target.join(name))
        } else {
            target.to_path_buf()
        };
        let mut items = Vec::new();
        let mut folders = BTreeSet::new();
        for entry in entries {
            in_known_folder(&entry, &mut folders)?;
            let here = below(&top, &entry.path)?;
            let there =
                if entry.path.is_empty() { source.to_owned() } else { format!("{source}/{}", entry.path) };
            let known = fs::symlink_metadata(&here).ok().map(|known| described(String::new(), &known));
            let same = known.is_some_and(|known| same(&known, &entry));
            items.push(Item { here, there, entry, same });
        }
        self.all(&items, false).await
    }

    /// Asks for one answer, again after a break.
    async fn once(&mut self, ask: &Ask) -> Result<Option<Entry>> {
        match self.link.ask(ask).await {
            Ok(answer) => Ok(answer),
            Err(Broken::For(error) | Broken::Off(error)) => Err(error),
        }
    }

    /// What is at a path in the box and below; nothing where nothing is, if that may be.
    async fn tree(&mut self, path: &str, may_be_absent: bool) -> Result<Vec<Entry>> {
        if may_be_absent && self.once(&Ask::Stat { path: path.into() }).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut next = self.once(&Ask::List { path: path.into() }).await?;
        while let Some(entry) = next {
            found.push(entry);
            next = match self.link.answer().await {
                Ok(next) => next,
                Err(Broken::For(error) | Broken::Off(error)) => return Err(error),
            };
        }
        Ok(found)
    }

    async fn all(&mut self, items: &[Item], up: bool) -> Result {
        let files = || items.iter().filter(|item| item.entry.kind == Kind::File);
        self.bar.set_length(files().map(|item| item.entry.size).sum());
        for item in items {
            match item.entry.kind {
                Kind::Folder if up => self.folder_there(item).await?,
                Kind::Folder => folder_here(item)?,
                Kind::File if item.same => {
                    self.done.skipped += 1;
                    self.bar.inc(item.entry.size);
                }
                Kind::File => self.file(item, up).await?,
                Kind::Other => {}
            }
        }
        Ok(())
    }

    async fn folder_there(&mut self, item: &Item) -> Result {
        let ask = Ask::Folder { path: item.there.clone(), mode: item.entry.mode };
        match self.link.ask::<()>(&ask).await {
            Ok(()) => Ok(()),
            Err(Broken::For(error) | Broken::Off(error)) => Err(error),
        }
    }

    /// One file, gone on with after each break as long as that brings it further.
    async fn file(&mut self, item: &Item, up: bool) -> Result {
        self.bar.set_message(item.there.clone());
        let begun = self.bar.position();
        let mut tries = 0;
        loop {
            let before = self.moved;
            let step = if up { self.put(item).await } else { self.get(item).await };
            let error = match step {
                Ok(()) => {
                    self.done.files += 1;
                    return Ok(());
                }
                Err(Broken::For(error)) => return Err(error),
                Err(Broken::Off(error)) => error,
            };
            tries = if self.moved > before { 1 } else { tries + 1 };
            self.bar.set_position(begun);
            self.reach_again(&mut tries, error).await?;
        }
    }

    async fn reach_again(&mut self, tries: &mut u32, mut last: CliError) -> Result {
        while *tries < TRIES {
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
            match self.link.again().await {
                Ok(()) => return Ok(()),
                // Leave that was taken back stays so.
                Err(error) if error.kind == ErrorKind::Refused && error.code != "box_not_up" => {
                    return Err(error);
                }
                Err(error) => last = error,
            }
            *tries += 1;
        }
        Err(last)
    }

    fn passed(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        self.done.bytes += bytes as u64;
        self.bar.inc(bytes as u64);
    }

    async fn put(&mut self, item: &Item) -> Step {
        let failed = || io(format!("read {}", item.here.display()));
        let mut file = File::open(&item.here).map_err(failed())?;
        let entry = described(String::new(), &file.metadata().map_err(failed())?);
        let Entry { size, mode, modified_ms, .. } = entry;
        let had: Had = self.link.ask(&Ask::Put { path: item.there.clone(), size, mode, modified_ms }).await?;
        let (mut hash, mut from) = (digest_of(&mut file, had.size.min(size)).map_err(failed())?, had.size);
        if had.size > size || hex(&hash.clone().finalize()) != had.digest {
            (hash, from) = (Sha256::new(), 0);
        }
        self.done.resumed_bytes += from;
        self.bar.inc(from);
        self.link.tell(&from).await?;
        file.seek(SeekFrom::Start(from)).map_err(failed())?;
        let mut rest = file.take(size - from);
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let count = rest.read(&mut buffer).map_err(failed())?;
            hash.update(&buffer[..count]);
            self.link.piece(&buffer[..count]).await?;
            self.passed(count);
            if count == 0 {
                break;
            }
        }
        self.link.tell(&hex(&hash.finalize())).await?;
        self.link.answer().await
    }

    async fn get(&mut self, item: &Item) -> Step {
        let failed = || io(format!("write {}", item.here.display()));
        let part = with_part(&item.here);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut file = options.custom_flags(no_follow).open(&part).map_err(failed())?;
        let had = file.metadata().map_err(failed())?.len();
        let mut hash = digest_of(&mut file, had).map_err(failed())?;
        let digest = hex(&hash.clone().finalize());
        let coming: Coming =
            self.link.ask(&Ask::Get { path: item.there.clone(), offset: had, digest }).await?;
        if coming.offset != had {
            file.set_len(0).map_err(failed())?;
            hash = Sha256::new();
        }
        let from = if coming.offset == had { had } else { 0 };
        self.done.resumed_bytes += from;
        self.bar.inc(from);
        file.seek(SeekFrom::Start(from)).map_err(failed())?;
        loop {
            let piece = self.link.frame(PIECE_BYTES).await?;
            if piece.is_empty() {
                break;
            }
            hash.update(&piece);
            file.write_all(&piece).map_err(failed())?;
            self.passed(piece.len());
        }
        let digest: String = self.link.answer().await?;
        if hex(&hash.finalize()) != digest {
            let _ = fs::remove_file(&part);
            return Err(off(format!("{} came damaged", item.there)));
        }
        keep(&file, &part, item).map_err(failed())?;
        Ok(())
    }
}

/// The finished file gets its name.
fn keep(file: &File, part: &Path, item: &Item) -> std::io::Result<()> {
    let modified = UNIX_EPOCH + Duration::from_millis(item.entry.modified_ms);
    // What comes from a box does not act as somebody else here.
    file.set_permissions(fs::Permissions::from_mode(item.entry.mode & 0o777))?;
    file.set_times(FileTimes::new().set_modified(modified))?;
    file.sync_all()?;
    fs::rename(part, &item.here)
}

fn with_part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PART);
    name.into()
}

fn no_name(path: &Path) -> CliError {
    CliError::usage(format!("{} has no name to copy it under", path.display())).help("say where to")
}

/// Where a name that the box gave is here.
fn below(top: &Path, name: &str) -> Result<PathBuf> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.contains('\0') {
        let message =
            format!("the box names a file {name:?}, which is not below the folder that was asked for");
        return Err(CliError::refused("unsafe_path", message).help("nothing of it was copied"));
    }
    Ok(if name.is_empty() { top.to_path_buf() } else { top.join(name) })
}

/// What is in a folder comes after it, so that it is made, and looked at, before anything is put in.
fn in_known_folder(entry: &Entry, folders: &mut BTreeSet<String>) -> Result {
    let parent = entry.path.rsplit_once('/').map_or("", |(parent, _)| parent);
    if !entry.path.is_empty() && !folders.contains(parent) {
        let message = format!("the box names {:?} without the folder that it is in", entry.path);
        return Err(CliError::refused("unsafe_path", message).help("nothing of it was copied"));
    }
    if entry.kind == Kind::Folder {
        folders.insert(entry.path.clone());
    }
    Ok(())
}

fn folder_here(item: &Item) -> Result {
    let failed = || io(format!("make {}", item.here.display()));
    match fs::symlink_metadata(&item.here) {
        Ok(known) if known.is_dir() || (item.entry.path.is_empty() && item.here.is_dir()) => Ok(()),
        Ok(_) => {
            let message = format!("{} is there and is no folder", item.here.display());
            Err(CliError::refused("unsafe_path", message).help("move it away, or copy to somewhere else"))
        }
        Err(_) => {
            let mode = (item.entry.mode & 0o777) | 0o700;
            fs::DirBuilder::new().recursive(true).mode(mode).create(&item.here).map_err(failed())
        }
    }
}

fn described(path: String, metadata: &fs::Metadata) -> Entry {
    let kind = if metadata.is_file() {
        Kind::File
    } else if metadata.is_dir() {
        Kind::Folder
    } else {
        Kind::Other
    };
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let modified_ms = modified.map_or(0, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    Entry { path, kind, size: metadata.len(), mode: metadata.mode() & 0o7777, modified_ms }
}

fn same(one: &Entry, other: &Entry) -> bool {
    (one.kind, one.size, one.modified_ms) == (other.kind, other.size, other.modified_ms)
}

/// A tree here, parents first; links below its top are not followed.
fn gather(here: &Path, there: &str, metadata: &fs::Metadata, into: &mut Vec<Item>) -> Result {
    let failed = || io(format!("read {}", here.display()));
    let entry = described(String::new(), metadata);
    let folder = entry.kind == Kind::Folder;
    into.push(Item { here: here.to_path_buf(), there: there.to_owned(), entry, same: false });
    if !folder {
        return Ok(());
    }
    for child in fs::read_dir(here).map_err(failed())? {
        let child = child.map_err(failed())?;
        let name = child.file_name().into_string().map_err(|name| no_name(Path::new(&name)))?;
        let metadata = fs::symlink_metadata(child.path()).map_err(failed())?;
        gather(&child.path(), &format!("{there}/{name}"), &metadata, into)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_box_names_lands_below_the_folder_or_nowhere() {
        let top = Path::new("/here/out");
        assert_eq!(below(top, "a/b").unwrap(), top.join("a/b"));
        assert_eq!(below(top, "").unwrap(), top);
        for hostile in ["..", "../x", "a/../../x", "/etc/passwd", "a/\0", "./../x"] {
            assert_eq!(below(top, hostile).unwrap_err().code, "unsafe_path", "{hostile:?}");
        }
    }

    #[test]
    fn a_link_in_the_way_of_a_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", dir.path().join("a")).unwrap();
        let entry = |path: &str| Entry {
            path: path.into(),
            kind: Kind::Folder,
            size: 0,
            mode: 0o755,
            modified_ms: 0,
        };
        let item = |path: &str| Item {
            here: dir.path().join(path),
            there: path.into(),
            entry: entry(path),
            same: false,
        };
        assert_eq!(folder_here(&item("a")).unwrap_err().code, "unsafe_path");
        folder_here(&item("b/c")).unwrap();
        assert!(dir.path().join("b/c").is_dir());
    }
}
