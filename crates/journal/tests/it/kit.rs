//! What the tests share: entries to write and ways to read them back.

use ionet_journal::{
    Disk, Entry, Journal, MemDisk, Options, Private, PrivatePart, Reader, Record, Recovery, Result, Scope,
    verify,
};

/// Small segments, so that a few records make several.
pub(crate) const SMALL: Options = Options { segment_bytes: 700, check_from_snapshot: false };

/// Entry `n`; every third has a private part.
pub(crate) fn entry(n: u64) -> Entry {
    let private = n.is_multiple_of(3).then(|| Private {
        salt: [u8::try_from(n % 250).expect("small") + 1; 16],
        body: format!("{{\"secret\":{n}}}").into_bytes(),
    });
    Entry {
        at_ms: 1_700_000_000_000 + n,
        public: format!("{{\"event\":\"thing-happened\",\"n\":{n}}}").into_bytes(),
        private,
        subjects: vec![format!("cluster:{}", n % 5), "all".to_owned()],
    }
}

/// Entries `from..from + count`.
pub(crate) fn entries(from: u64, count: u64) -> Vec<Entry> {
    (from..from + count).map(entry).collect()
}

pub(crate) fn open(disk: &MemDisk) -> Result<(Journal<MemDisk>, Recovery)> {
    Journal::open(disk.clone(), SMALL)
}

/// Opens a journal that must be sound, with nothing to cut.
pub(crate) fn open_whole(disk: &MemDisk) -> Journal<MemDisk> {
    let (journal, recovery) = open(disk).expect("a sound journal opens");
    assert_eq!(recovery.torn, vec![]);
    journal
}

/// A journal of `batches` batches of three entries each, numbered like their records.
pub(crate) fn written(batches: u64) -> MemDisk {
    let disk = MemDisk::new();
    let mut journal = open_whole(&disk);
    for batch in 0..batches {
        journal.append(&entries(batch * 3 + 1, 3)).expect("a sound disk takes it");
    }
    disk
}

/// All records; they must be entry 1, 2, 3 and so on, whole and chained.
pub(crate) fn read_all<D: Disk>(disk: &D) -> Vec<Record> {
    let mut records = Vec::new();
    verify(disk, Scope::Full, |record| records.push(record.clone())).expect("verifies");
    for (n, record) in (1..).zip(&records) {
        assert_is_entry(record, n);
    }
    records
}

pub(crate) fn assert_is_entry(record: &Record, n: u64) {
    let wanted = entry(n);
    assert_eq!((record.seq, record.at_ms), (n, wanted.at_ms));
    assert_eq!(record.public, wanted.public);
    assert_eq!(record.subjects, wanted.subjects);
    match &record.private {
        PrivatePart::Present(part) => assert_eq!(Some(part), wanted.private.as_ref()),
        PrivatePart::None => assert_eq!(wanted.private, None),
        PrivatePart::Erased { .. } | PrivatePart::Withheld { .. } => assert!(wanted.private.is_some()),
    }
}

pub(crate) fn reader(disk: &MemDisk) -> Reader<MemDisk> {
    Reader::new(disk.clone(), Scope::Full)
}

/// The files of one kind, in order.
pub(crate) fn files(disk: &MemDisk, extension: &str) -> Vec<String> {
    let mut names = disk.list().expect("lists");
    names.retain(|name| name.ends_with(extension));
    names
}
