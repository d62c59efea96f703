//! The disk in memory behaves as the real one does.

use ionet_journal::{Disk, FileDisk, MemDisk};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Call {
    List,
    Size(String),
    ReadAt(String, u64, usize),
    Append(String, Vec<u8>),
    WriteAt(String, u64, Vec<u8>),
    Truncate(String, u64),
    Sync(String),
    SyncDir,
    Replace(String, Vec<u8>),
    Remove(String),
}

/// What a call gives: bytes or names or a length as text, or the kind of error.
fn outcome<D: Disk>(disk: &D, call: &Call) -> Result<String, std::io::ErrorKind> {
    let nothing = |()| String::new();
    let done = match call {
        Call::List => disk.list().map(|names| names.join(" ")),
        Call::Size(name) => disk.size(name).map(|bytes| bytes.to_string()),
        Call::ReadAt(name, offset, count) => {
            let mut into = vec![0xaa; *count];
            disk.read_at(name, *offset, &mut into).map(|read| format!("{read} {into:?}"))
        }
        Call::Append(name, bytes) => disk.append(name, bytes).map(nothing),
        Call::WriteAt(name, offset, bytes) => disk.write_at(name, *offset, bytes).map(nothing),
        Call::Truncate(name, bytes) => disk.truncate(name, *bytes).map(nothing),
        Call::Sync(name) => disk.sync(name).map(nothing),
        Call::SyncDir => disk.sync_dir().map(nothing),
        Call::Replace(name, bytes) => disk.replace(name, bytes).map(nothing),
        Call::Remove(name) => disk.remove(name).map(nothing),
    };
    done.map_err(|e| e.kind())
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let name = || "[abc]";
    let bytes = || proptest::collection::vec(any::<u8>(), 0..1500);
    let call = prop_oneof![
        Just(Call::List),
        name().prop_map(Call::Size),
        (name(), 0..2000_u64, 0..2000_usize).prop_map(|(name, at, count)| Call::ReadAt(name, at, count)),
        (name(), bytes()).prop_map(|(name, bytes)| Call::Append(name, bytes)),
        (name(), 0..2000_u64, bytes()).prop_map(|(name, at, bytes)| Call::WriteAt(name, at, bytes)),
        (name(), 0..2000_u64).prop_map(|(name, bytes)| Call::Truncate(name, bytes)),
        name().prop_map(Call::Sync),
        Just(Call::SyncDir),
        (name(), bytes()).prop_map(|(name, bytes)| Call::Replace(name, bytes)),
        name().prop_map(Call::Remove),
    ];
    proptest::collection::vec(call, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn both_disks_answer_alike(calls in calls()) {
        let dir = tempfile::tempdir().expect("a temp directory");
        let (real, memory) = (FileDisk::open(dir.path()).expect("opens"), MemDisk::new());
        for call in &calls {
            prop_assert_eq!(outcome(&real, call), outcome(&memory, call), "{:?}", call);
        }
    }
}
