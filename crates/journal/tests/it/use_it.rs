//! Ordinary use: append, read, erase, snapshot.

use ionet_journal::{
    Disk, Error, FileDisk, Hash, Head, Journal, MAX_BODY_BYTES, MemDisk, Options, PrivatePart, Reader, Scope,
    latest_snapshot, verify, write_snapshot,
};

use crate::kit::{
    SMALL, assert_is_entry, entries, entry, files, open, open_whole, read_all, reader, written,
};

#[test]
fn what_was_appended_is_read_back_from_any_place() {
    let disk = written(10);
    assert!(files(&disk, ".public").len() > 3, "the journal rolls");
    let records = read_all(&disk);
    assert_eq!(records.len(), 30);
    assert_eq!(records[0].prev, Hash::GENESIS);
    let (journal, reader) = (open_whole(&disk), reader(&disk));
    assert_eq!(journal.head(), Head { seq: 30, hash: records[29].hash });
    // Backwards and twice: with and without places remembered from earlier reads.
    for from in (0..=32).rev().chain(0..=32) {
        let wanted: Vec<u64> = (from.max(1)..=30).collect();
        let read = |records: ionet_journal::Records<'_, MemDisk>| -> Vec<u64> {
            records
                .map(|record| record.expect("sound"))
                .inspect(|r| assert_is_entry(r, r.seq))
                .map(|r| r.seq)
                .collect()
        };
        assert_eq!(read(journal.read_from(from).expect("reads")), wanted);
        assert_eq!(read(reader.read_from(from).expect("reads")), wanted);
    }
}

#[test]
fn the_public_files_alone_verify() {
    let disk = written(10);
    let mirror = MemDisk::new();
    for name in files(&disk, ".public") {
        let mut bytes = vec![0; usize::try_from(disk.size(&name).expect("is there")).expect("small")];
        disk.read_at(&name, 0, &mut bytes).expect("reads");
        assert!(!bytes.windows(6).any(|bytes| bytes == b"secret"), "no private byte is public");
        mirror.replace(&name, &bytes).expect("writes");
    }
    let full = verify(&disk, Scope::Full, |_| ()).expect("verifies");
    let public = verify(&mirror, Scope::Public, |_| ()).expect("verifies");
    assert_eq!(public.head, full.head);
    assert_eq!((full.privates_present, full.privates_withheld), (10, 0));
    assert_eq!((public.privates_present, public.privates_withheld), (0, 10));
    assert_eq!(verify(&mirror, Scope::Full, |_| ()).expect_err("no private files").code(), "journal_damaged");
}

#[test]
fn the_hash_is_the_documented_one() {
    let disk = written(1);
    let records = read_all(&disk);
    // Computed apart from this code, from the documented bytes. Changing it breaks every published journal.
    assert_eq!(
        records[2].hash.to_string(),
        "b066614cd7a5e6d6d411f9cb7c7a77136c16017848e34da38ea7baf9b17b4fa0"
    );
    assert_eq!(Hash::from_hex(&records[2].hash.to_string()), Some(records[2].hash));
    assert_eq!(Hash::from_hex("0g"), None);
}

#[test]
fn an_empty_batch_and_a_refused_entry_change_nothing() {
    let disk = written(1);
    let mut journal = open_whole(&disk);
    let head = journal.head();
    let operations = disk.operations();
    assert_eq!(journal.append(&[]).expect("is nothing"), head);
    let long = vec![0; MAX_BODY_BYTES + 1];
    let cases = [
        ionet_journal::Entry { public: long, ..entry(1) },
        ionet_journal::Entry { subjects: vec![String::new()], ..entry(1) },
        ionet_journal::Entry { subjects: vec!["s".repeat(513)], ..entry(1) },
        ionet_journal::Entry { subjects: vec!["s".to_owned(); 4097], ..entry(1) },
    ];
    for refused in cases {
        let error = journal.append(&[entry(4), refused]).expect_err("is refused");
        assert!(matches!(error, Error::EntryRefused { position: 1, .. }), "{error}");
    }
    assert_eq!(disk.operations(), operations);
    assert_eq!(journal.append(&entries(4, 3)).expect("goes on").seq, 6);
}

#[test]
fn a_reader_follows_the_writer() {
    let disk = MemDisk::new();
    let mut journal = open_whole(&disk);
    let reader = reader(&disk);
    let mut following = reader.read_from(1).expect("reads");
    assert!(following.next().is_none());
    for batch in 0..20 {
        journal.append(&entries(batch * 3 + 1, 3)).expect("appends");
        for n in batch * 3 + 1..=batch * 3 + 3 {
            assert_is_entry(&following.next().expect("is there").expect("is sound"), n);
        }
        assert!(following.next().is_none());
    }
}

#[test]
fn an_erased_private_part_is_gone_and_the_chain_holds() {
    let disk = written(10);
    let mut journal = open_whole(&disk);
    let head = journal.head();
    assert!(journal.erase_private(9).expect("erases"));
    assert!(!journal.erase_private(9).expect("is erased already"));
    assert_eq!(journal.erase_private(8).expect_err("has none").code(), "no_private_part");
    assert_eq!(journal.erase_private(31).expect_err("not there").code(), "no_such_record");
    for name in files(&disk, ".private") {
        let mut bytes = vec![0; usize::try_from(disk.size(&name).expect("is there")).expect("small")];
        disk.read_at(&name, 0, &mut bytes).expect("reads");
        assert!(!bytes.windows(12).any(|bytes| bytes == b"{\"secret\":9}"));
    }
    let verified = verify(&disk, Scope::Full, |_| ()).expect("verifies");
    assert_eq!((verified.head, verified.privates_erased, verified.privates_present), (head, 1, 9));
    let record = reader(&disk).get(9).expect("reads").expect("is there");
    assert!(matches!(record.private, PrivatePart::Erased { .. }));
    assert_eq!(journal.append(&entries(31, 3)).expect("goes on").seq, 33);
}

#[test]
fn the_newest_whole_snapshot_is_found() {
    let disk = written(10);
    let journal = open_whole(&disk);
    assert_eq!(journal.latest_snapshot().expect("looks").snapshot, None);
    let at = |seq| Head { seq, hash: journal.hash_at(seq).expect("reads").expect("is there") };
    for seq in [3, 9, 20] {
        journal.write_snapshot(at(seq), format!("state {seq}").as_bytes()).expect("writes");
    }
    assert_eq!(files(&disk, ".snapshot").len(), 2);
    let found = journal.latest_snapshot().expect("looks");
    assert_eq!((found.snapshot.expect("is there").body, found.damaged.len()), (b"state 20".to_vec(), 0));

    let names = files(&disk, ".snapshot");
    assert!(disk.corrupt(&names[1], 95, 1));
    let found = journal.latest_snapshot().expect("looks");
    assert_eq!(found.snapshot.expect("the one before").at, at(9));
    assert_eq!(found.damaged[0].file, names[1]);
    write_snapshot(&disk, Head { seq: 21, hash: Hash([7; 32]) }, b"of another chain").expect("writes");
    let found = journal.latest_snapshot().expect("looks");
    assert_eq!((found.snapshot, found.damaged.len()), (None, 2));
}

#[test]
fn a_journal_opened_from_its_snapshot_does_not_read_what_is_older() {
    let disk = written(10);
    let head = {
        let journal = open_whole(&disk);
        journal.write_snapshot(journal.head(), b"state").expect("writes");
        journal.head()
    };
    assert!(disk.corrupt(&files(&disk, ".public")[0], 200, 1));
    let quick = Options { check_from_snapshot: true, ..SMALL };
    let (mut journal, recovery) = Journal::open(disk.clone(), quick).expect("opens");
    assert_eq!(recovery.head, head);
    journal.append(&entries(31, 3)).expect("goes on");
    assert_eq!(open(&disk).expect_err("the whole check finds it").damage().expect("damage").seq, 1);
}

#[test]
fn opening_shows_what_comes_after_the_snapshot_while_it_checks() {
    let disk = written(10);
    let at = Head { seq: 14, hash: open_whole(&disk).hash_at(14).expect("reads").expect("is there") };
    write_snapshot(&disk, at, b"state").expect("writes");
    let found = latest_snapshot(&disk).expect("looks").snapshot.expect("is there");
    assert_eq!((found.at, found.body), (at, b"state".to_vec()));
    for (check_from_snapshot, after) in [(false, 14), (true, 14), (false, 0), (true, 0), (true, 30)] {
        let mut seen = Vec::new();
        let options = Options { check_from_snapshot, ..SMALL };
        let opened = Journal::open_with(disk.clone(), options, after, |record| seen.push(record));
        assert_eq!(opened.expect("opens").1.head.seq, 30);
        assert_eq!(seen.iter().map(|r| r.seq).collect::<Vec<_>>(), (after + 1..=30).collect::<Vec<_>>());
        for record in &seen {
            assert_is_entry(record, record.seq);
        }
    }
    // What is older than the snapshot is only read where the whole chain is to be checked.
    assert!(disk.corrupt(&files(&disk, ".public")[0], 200, 1));
    let open = |check_from_snapshot| {
        let options = Options { check_from_snapshot, ..SMALL };
        Journal::open_with(disk.clone(), options, 14, drop).map(|(_, recovery)| recovery.head.seq)
    };
    assert_eq!(open(true).expect("opens"), 30);
    assert_eq!(open(false).expect_err("the whole check finds it").damage().expect("damage").seq, 1);
}

#[test]
fn a_journal_shorter_than_its_snapshot_is_refused() {
    let disk = written(10);
    let head = open_whole(&disk).head();
    write_snapshot(&disk, Head { seq: head.seq + 1, ..head }, b"state").expect("writes");
    for check_from_snapshot in [false, true] {
        let options = Options { check_from_snapshot, ..SMALL };
        let refused = Journal::open(disk.clone(), options).expect_err("records are missing");
        assert_eq!(refused.code(), "journal_behind_snapshot");
    }
}

#[test]
fn real_files_hold_a_journal_and_let_one_writer_in() {
    let dir = tempfile::tempdir().expect("a temp directory");
    let path = dir.path().join("journal");
    assert!(FileDisk::open_read_only(&path).is_err());
    let disk = FileDisk::open(&path).expect("opens");
    assert_eq!(FileDisk::open(&path).expect_err("is locked").code(), "journal_locked");
    let (mut journal, _) = Journal::open(disk, SMALL).expect("opens");
    for batch in 0..10 {
        journal.append(&entries(batch * 3 + 1, 3)).expect("appends");
    }
    assert!(journal.erase_private(9).expect("erases"));
    journal.write_snapshot(journal.head(), b"state").expect("writes");
    let view = FileDisk::open_read_only(&path).expect("opens");
    assert!(view.append("x", b"x").is_err() && view.replace("x", b"x").is_err() && view.remove("x").is_err());
    assert_eq!(read_all(&view).len(), 30);
    let head = journal.head();
    drop(journal);
    let (journal, recovery) =
        Journal::open(FileDisk::open(&path).expect("is free again"), SMALL).expect("opens");
    assert_eq!((recovery.head, recovery.torn.len()), (head, 0));
    assert_eq!(journal.latest_snapshot().expect("looks").snapshot.expect("is there").body, b"state");
    assert_eq!(Reader::new(view, Scope::Public).hash_at(30).expect("reads"), Some(head.hash));
}

#[test]
fn a_live_journal_always_verifies_from_outside() {
    let dir = tempfile::tempdir().expect("a temp directory");
    let (mut journal, _) = Journal::open(FileDisk::open(dir.path()).expect("opens"), SMALL).expect("opens");
    journal.append(&entries(1, 3)).expect("appends");
    let view = FileDisk::open_read_only(dir.path()).expect("opens");
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for batch in 1..100 {
                journal.append(&entries(batch * 3 + 1, 3)).expect("appends");
                journal.erase_private(batch * 3).expect("erases");
            }
        });
        let reader = Reader::new(view.clone(), Scope::Full);
        let mut following = reader.read_from(1).expect("reads");
        let mut last_seq = 0;
        while last_seq < 300 {
            let writing = !writer.is_finished();
            for record in following.by_ref() {
                last_seq += 1;
                assert_is_entry(&record.expect("a live journal is sound"), last_seq);
            }
            assert!(
                verify(&view, Scope::Full, |_| ()).expect("a live journal is sound").head.seq >= last_seq
            );
            assert!(writing || last_seq == 300, "all is seen once the writer is done");
        }
    });
    assert_eq!(read_all(&view).len(), 300);
}

#[test]
fn an_intent_to_erase_that_fits_no_record_is_refused() {
    let disk = written(3);
    disk.replace("erasing", &[3, 0, 0, 0, 0, 0, 0, 0].repeat(5)).expect("writes");
    let operations = disk.operations();
    assert_eq!(open(&disk).expect_err("is of another journal").code(), "journal_damaged");
    assert_eq!(disk.operations(), operations, "nothing was changed");
    assert_eq!(read_all(&disk).len(), 9);
}
