//! Damage tables: a small journal, one thing wrong with it, the answer expected.

use ionet_journal::{Disk, Entry, Error, MemDisk, Scope, verify};
use proptest::prelude::*;

use crate::kit::{entries, files, open, open_whole, read_all, written};

/// Four segments, the last with room for one more entry.
fn small() -> MemDisk {
    written(7)
}

fn size(disk: &MemDisk, name: &str) -> u64 {
    disk.size(name).expect("is there")
}

#[test]
fn every_changed_byte_is_refused_with_its_file() {
    let disk = small();
    let names = [files(&disk, ".public"), files(&disk, ".private")].concat();
    for name in &names {
        for offset in 0..size(&disk, name) {
            for flip in [0x01, 0x80, 0xff] {
                let disk = disk.copy();
                assert!(disk.corrupt(name, offset, flip));
                let error = open(&disk).map(|_| ()).expect_err("is damaged");
                let damage = error.damage().expect("is damage");
                let place = format!("{name} at {offset}: {damage}");
                assert_eq!(&damage.file, name, "{place}");
                assert!(damage.offset <= offset, "{place}");
                assert_eq!(verify(&disk, Scope::Full, |_| ()).expect_err(&place).damage(), Some(damage));
            }
        }
    }
}

#[test]
fn a_last_batch_cut_at_any_byte_is_torn_and_cut() {
    let disk = small();
    let before = open_whole(&disk).head();
    let name = files(&disk, ".public").pop().expect("a segment");
    let private = files(&disk, ".private").pop().expect("a segment");
    let (start, private_start) = (size(&disk, &name), size(&disk, &private));
    // A batch that stays in this segment.
    open_whole(&disk).append(&entries(22, 1)).expect("appends");
    assert_eq!(files(&disk, ".public").last(), Some(&name));
    let end = size(&disk, &name);
    assert_eq!(size(&disk, &private), private_start, "entry 22 has no private part");
    for cut in start..end {
        let disk = disk.copy();
        disk.truncate(&name, cut).expect("cuts");
        let (mut journal, recovery) = open(&disk).expect("a torn end is no damage");
        assert_eq!(recovery.head, before, "cut at {cut}");
        let torn: Vec<_> = recovery.torn.iter().map(|torn| (torn.offset, torn.bytes)).collect();
        assert_eq!(torn, if cut == start { vec![] } else { vec![(start, cut - start)] });
        journal.append(&entries(22, 3)).expect("goes on");
        assert_eq!(read_all(&disk).len(), 24);
    }
}

#[test]
fn a_last_batch_with_a_private_part_cut_at_any_byte_is_cut_on_both_sides() {
    let disk = small();
    let before = open_whole(&disk).head();
    let (public, private) = (files(&disk, ".public"), files(&disk, ".private"));
    let (name, private) = (public.last().expect("a segment"), private.last().expect("a segment"));
    let (start, private_start) = (size(&disk, name), size(&disk, private));
    let mut entry = entries(24, 1);
    entry[0].public = b"{}".to_vec();
    open_whole(&disk).append(&entry).expect("appends");
    assert_eq!(files(&disk, ".public").last(), Some(name));
    let (end, private_end) = (size(&disk, name), size(&disk, private));
    let public_cuts = (start..end).map(|cut| (cut, private_end));
    let private_cuts = (private_start..=private_end).map(|cut| (start, cut));
    for (cut, private_cut) in public_cuts.chain(private_cuts) {
        let disk = disk.copy();
        disk.truncate(name, cut).expect("cuts");
        disk.truncate(private, private_cut).expect("cuts");
        let (_, recovery) = open(&disk).expect("a torn end is no damage");
        assert_eq!(recovery.head, before, "cut at {cut}, {private_cut}");
        assert_eq!((size(&disk, name), size(&disk, private)), (start, private_start));
    }
    // The public frame is written after the private one is durable, so this is no interrupted write.
    for cut in private_start..private_end {
        let disk = disk.copy();
        disk.truncate(private, cut).expect("cuts");
        assert_eq!(&open(&disk).expect_err("is damaged").damage().expect("is damage").file, private);
    }
}

#[test]
fn a_missing_sector_is_torn_in_the_last_batch_only() {
    let disk = MemDisk::new();
    let big = |n: u64| Entry { public: vec![b'x'; 3000], ..crate::kit::entry(n) };
    let mut journal =
        ionet_journal::Journal::open(disk.clone(), ionet_journal::Options::default()).expect("opens").0;
    journal.append(&[big(1)]).expect("appends");
    let name = files(&disk, ".public").pop().expect("a segment");
    let start = size(&disk, &name);
    journal.append(&[big(2)]).expect("appends");
    let blank = |sector: u64| {
        let disk = disk.copy();
        let (from, to) = ((sector * 512).max(64), ((sector + 1) * 512).min(size(&disk, &name)));
        let zeros = vec![0; usize::try_from(to - from).expect("small")];
        disk.write_at(&name, from, &zeros).expect("writes");
        open(&disk).map(|(journal, recovery)| (journal.head().seq, recovery.torn.len()))
    };
    for sector in 0..size(&disk, &name).div_ceil(512) {
        let (from, outcome) = (sector * 512, blank(sector));
        if from >= start {
            assert_eq!(outcome.expect("is torn"), (1, 1), "sector {sector}");
        } else {
            assert_eq!(outcome.expect_err("is damaged").code(), "journal_damaged", "sector {sector}");
        }
    }
}

#[test]
fn an_earlier_segment_may_lose_nothing() {
    let disk = small();
    let names = [files(&disk, ".public"), files(&disk, ".private")];
    for name in names.iter().flat_map(|names| &names[..names.len() - 1]) {
        for bytes in 0..size(&disk, name) {
            let disk = disk.copy();
            disk.truncate(name, bytes).expect("cuts");
            let damage = open(&disk).expect_err("is damaged").damage().cloned().expect("is damage");
            assert_eq!(&damage.file, name, "cut to {bytes}: {damage}");
        }
        let lacking = disk.copy();
        lacking.remove(name).expect("removes");
        assert!(matches!(open(&lacking), Err(Error::Damaged(_))), "without {name}");
        let longer = disk.copy();
        longer.append(name, b"x").expect("writes");
        assert!(matches!(open(&longer), Err(Error::Damaged(_))), "more in {name}");
    }
}

#[test]
fn refusing_changes_nothing() {
    let disk = small();
    let names = files(&disk, ".public");
    assert!(disk.corrupt(&names[0], 100, 1));
    disk.append(names.last().expect("a segment"), b"torn").expect("writes");
    let operations = disk.operations();
    assert!(open(&disk).is_err());
    assert_eq!(disk.operations(), operations);
}

#[test]
fn the_message_names_the_place_and_the_way_out() {
    let disk = small();
    let name = files(&disk, ".public").remove(1);
    assert!(disk.corrupt(&name, 150, 1));
    let error = open(&disk).expect_err("is damaged");
    let text = error.to_string();
    for part in [name.as_str(), "at byte 64", "from record 7 on", "Restore this file", "nothing was cut"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

proptest! {
    /// No bytes whatever after the last batch make opening panic, lose a record or invent one.
    #[test]
    fn any_rubbish_at_the_end_is_cut_or_refused(rubbish in proptest::collection::vec(any::<u8>(), 0..400)) {
        let disk = small();
        let head = open_whole(&disk).head();
        let name = files(&disk, ".public").pop().expect("a segment");
        disk.append(&name, &rubbish).expect("writes");
        match open(&disk) {
            Ok((journal, _)) => prop_assert_eq!(journal.head(), head),
            Err(error) => prop_assert_eq!(error.code(), "journal_damaged"),
        }
    }
}
