//! Power losses, failed syncs and full disks at every operation in turn.

use std::io::ErrorKind;

use ionet_journal::{Fault, Head, Keep, MemDisk, PrivatePart, Scope, verify};

use crate::kit::{entries, entry, open, open_whole, read_all};

/// What a run was told: the last acknowledged head, and which erasures were confirmed.
#[derive(Debug, Default)]
struct Told {
    head_seq: u64,
    attempted_seq: u64,
    erased: Vec<u64>,
    snapshot_seq: u64,
}

/// Appends, rolls, erases and snapshots until done or the first error.
fn run(disk: &MemDisk) -> (Told, ionet_journal::Result<()>) {
    let mut told = Told::default();
    let outcome = run_telling(disk, &mut told);
    (told, outcome)
}

fn run_telling(disk: &MemDisk, told: &mut Told) -> ionet_journal::Result<()> {
    let (mut journal, _) = open(disk)?;
    for batch in 0..6 {
        told.attempted_seq = batch * 3 + 3;
        told.head_seq = journal.append(&entries(batch * 3 + 1, 3))?.seq;
        if batch == 2 {
            journal.erase_private(6)?;
            told.erased.push(6);
        }
        if batch % 2 == 1 {
            journal.write_snapshot(journal.head(), b"state")?;
            told.snapshot_seq = told.head_seq;
        }
    }
    Ok(())
}

fn operations_of_a_run() -> u64 {
    let disk = MemDisk::new();
    run(&disk).1.expect("no fault is planned");
    disk.operations()
}

/// What was told must hold on `disk`, whatever happened to it.
fn check(disk: &MemDisk, told: &Told, place: &str) {
    let (mut journal, recovery) = open(disk).unwrap_or_else(|e| panic!("{place}: {e}"));
    let head = recovery.head.seq;
    assert!(head == told.head_seq || head == told.attempted_seq, "{place}: {head} after {told:?}");
    let records = read_all(disk);
    assert_eq!(records.len() as u64, head, "{place}");
    for seq in &told.erased {
        let record = &records[usize::try_from(*seq).expect("small") - 1];
        assert!(matches!(record.private, PrivatePart::Erased { .. }), "{place}: {seq} is back");
    }
    let snapshot = journal.latest_snapshot().expect("looks").snapshot;
    assert!(snapshot.map_or(0, |snapshot| snapshot.at.seq) >= told.snapshot_seq, "{place}");
    journal.append(&entries(head + 1, 3)).unwrap_or_else(|e| panic!("{place}: {e}"));
    assert_eq!(read_all(disk).len() as u64, head + 3, "{place}");
    let again = open_whole(disk);
    assert_eq!(again.head().seq, head + 3, "{place}");
}

fn keeps() -> impl Iterator<Item = Keep> {
    [Keep::Nothing, Keep::Everything].into_iter().chain((0..60).map(Keep::Some))
}

#[test]
fn what_was_told_survives_a_power_loss_at_every_operation() {
    for operation in 0..operations_of_a_run() {
        for keep in keeps() {
            let disk = MemDisk::new();
            disk.plan(operation, Fault::PowerLoss);
            let (told, outcome) = run(&disk);
            assert!(outcome.is_err());
            check(&disk.restart(keep), &told, &format!("operation {operation}, {keep:?}"));
        }
    }
}

#[test]
fn a_segment_begun_in_vain_does_not_stand_in_the_way() {
    for operation in 0..operations_of_a_run() {
        for keep in keeps().take(4) {
            let disk = MemDisk::new();
            disk.plan(operation, Fault::PowerLoss);
            let _ = run(&disk);
            let disk = disk.restart(keep);
            let (mut journal, recovery) = open(&disk).expect("opens");
            let seq = recovery.head.seq + 1;
            // Small enough for the segment that the lost batch was too long for.
            journal.append(&[entry(seq)]).expect("appends");
            let (journal, _) = open(&disk).unwrap_or_else(|e| panic!("operation {operation}, {keep:?}: {e}"));
            assert_eq!(journal.head().seq, seq);
        }
    }
}

#[test]
fn what_was_told_survives_a_second_power_loss_while_recovering() {
    for operation in 0..operations_of_a_run() {
        let first = Keep::Some(operation);
        for during in 0..8 {
            let disk = MemDisk::new();
            disk.plan(operation, Fault::PowerLoss);
            let (told, _) = run(&disk);
            let disk = disk.restart(first);
            disk.plan(disk.operations() + during, Fault::PowerLoss);
            let _ = open(&disk);
            let place = format!("operation {operation}, {during} into recovery");
            check(&disk.restart(Keep::Some(during)), &told, &place);
        }
    }
}

#[test]
fn what_was_told_survives_a_failing_disk_at_every_operation() {
    let faults = [
        Fault::Fail(ErrorKind::StorageFull),
        Fault::Fail(ErrorKind::Other),
        Fault::ShortWrite { bytes: 0 },
        Fault::ShortWrite { bytes: 1 },
        Fault::ShortWrite { bytes: 64 },
        Fault::ShortWrite { bytes: 100 },
        Fault::FailedSync,
    ];
    for operation in 0..operations_of_a_run() {
        for fault in faults {
            // The process ends and starts again with the system's cache as it was; then the power goes too.
            let disk = MemDisk::new();
            disk.plan(operation, fault);
            let (told, _) = run(&disk);
            let place = format!("operation {operation}, {fault:?}");
            let (journal, _) = open(&disk).unwrap_or_else(|e| panic!("{place}: {e}"));
            let head_seq = journal.head().seq;
            drop(journal);
            let told = Told { head_seq, attempted_seq: head_seq.max(told.attempted_seq), ..told };
            check(&disk.restart(Keep::Nothing), &told, &place);
        }
    }
}

#[test]
fn a_failed_sync_stops_the_journal_for_ever() {
    let disk = MemDisk::new();
    let mut journal = open_whole(&disk);
    journal.append(&entries(1, 3)).expect("appends");
    // Entry 4 has no private part: one write, one sync.
    disk.plan(disk.operations() + 1, Fault::FailedSync);
    assert_eq!(journal.append(&[entry(4)]).expect_err("is not confirmed").code(), "sync_failed");
    let operations = disk.operations();
    assert_eq!(journal.append(&[entry(4)]).expect_err("has stopped").code(), "journal_stopped");
    assert_eq!(journal.erase_private(3).expect_err("has stopped").code(), "journal_stopped");
    assert_eq!(disk.operations(), operations, "it is never tried again");
    assert_eq!(journal.head().seq, 3);
}

#[test]
fn a_full_disk_keeps_what_was_told_and_goes_on_once_there_is_room() {
    let disk = MemDisk::new();
    let mut journal = open_whole(&disk);
    disk.set_capacity(Some(2000));
    let mut told = Head::GENESIS;
    let error = loop {
        match journal.append(&entries(told.seq + 1, 3)) {
            Ok(head) => told = head,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), "disk_full");
    assert_eq!(journal.append(&[entry(1)]).expect_err("has stopped").code(), "journal_stopped");
    assert_eq!(verify(&disk, Scope::Full, |_| ()).expect("verifies").head, told);
    disk.set_capacity(None);
    let (mut journal, recovery) = open(&disk).expect("opens");
    assert_eq!(recovery.head, told);
    journal.append(&entries(told.seq + 1, 3)).expect("goes on");
    assert_eq!(read_all(&disk).len() as u64, told.seq + 3);
}
