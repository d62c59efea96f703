//! The subject index: follows, survives, starts again.

use std::path::PathBuf;

use ionet_journal::{Entry, Head, Index, Journal, MemDisk, Options};
use tempfile::TempDir;

use crate::kit::{entries, entry, open_whole, reader, written};

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temp directory");
    let path = dir.path().join("subjects.sqlite");
    (dir, path)
}

/// The records that name cluster 2 among entries 1 to `last`.
fn of_cluster_2(last: u64) -> Vec<u64> {
    (1..=last).filter(|n| n % 5 == 2).collect()
}

#[test]
fn it_follows_the_journal_and_answers_in_pages() {
    let (_dir, path) = place();
    let disk = written(10);
    let mut journal = open_whole(&disk);
    let mut index = Index::open(&path).expect("opens");
    assert_eq!(index.position().expect("reads"), Head::GENESIS);
    assert_eq!(index.catch_up(&reader(&disk), 20).expect("follows").position.seq, 20);
    assert_eq!(index.by_subject("cluster:2", 0, 100).expect("reads"), of_cluster_2(20));
    journal.append(&entries(31, 3)).expect("appends");
    let caught_up = index.catch_up(&reader(&disk), 33).expect("follows");
    assert_eq!((caught_up.position, caught_up.rebuilt), (journal.head(), false));

    let view = Index::open_read_only(&path).expect("opens beside the writer");
    assert_eq!(view.position().expect("reads"), journal.head());
    for index in [&index, &view] {
        assert_eq!(index.by_subject("cluster:2", 0, 100).expect("reads"), of_cluster_2(33));
        assert_eq!(index.by_subject("cluster:2", 7, 2).expect("reads"), vec![12, 17]);
        assert_eq!(index.by_subject_newest_first("cluster:2", 27, 2).expect("reads"), vec![22, 17]);
        assert_eq!(index.by_subject("all", 0, 100).expect("reads").len(), 33);
        assert_eq!(index.by_subject("cluster:9", 0, 100).expect("reads"), Vec::<u64>::new());
    }
}

#[test]
fn it_goes_on_after_a_restart() {
    let (_dir, path) = place();
    let disk = written(10);
    Index::open(&path).expect("opens").catch_up(&reader(&disk), 15).expect("follows");
    let mut index = Index::open(&path).expect("opens");
    assert_eq!(index.position().expect("reads").seq, 15);
    let caught_up = index.catch_up(&reader(&disk), 30).expect("follows");
    assert_eq!((caught_up.position.seq, caught_up.rebuilt), (30, false));
    assert_eq!(index.by_subject("cluster:2", 0, 100).expect("reads"), of_cluster_2(30));
}

#[test]
fn it_starts_again_where_the_journal_is_another() {
    let (_dir, path) = place();
    let long = written(10);
    Index::open(&path).expect("opens").catch_up(&reader(&long), 30).expect("follows");
    // Shorter than the index, then as long but different.
    let other = MemDisk::new();
    let mut journal = open_whole(&other);
    for n in 1..=30 {
        journal
            .append(&[Entry { at_ms: 5, subjects: vec!["other".to_owned()], ..entry(n) }])
            .expect("appends");
        if n == 10 || n == 30 {
            let mut index = Index::open(&path).expect("opens");
            let caught_up = index.catch_up(&reader(&other), n).expect("follows");
            assert_eq!((caught_up.position, caught_up.rebuilt), (journal.head(), n == 10));
            assert_eq!(index.by_subject("cluster:2", 0, 100).expect("reads"), Vec::<u64>::new());
            assert_eq!(index.by_subject("other", 0, 100).expect("reads").len() as u64, n);
        }
    }
    let mut index = Index::open(&path).expect("opens");
    assert!(index.catch_up(&reader(&long), 30).expect("follows").rebuilt);
    assert_eq!(index.by_subject("cluster:2", 0, 100).expect("reads"), of_cluster_2(30));
}

#[test]
fn a_broken_file_is_made_new() {
    let disk = written(10);
    let rubbish = [b"no database at all".repeat(500), vec![0; 100], vec![]];
    for bytes in rubbish {
        let (_dir, path) = place();
        std::fs::write(&path, bytes).expect("writes");
        let mut index = Index::open(&path).expect("opens");
        assert_eq!(index.catch_up(&reader(&disk), 30).expect("follows").position.seq, 30);
        assert_eq!(index.by_subject("cluster:2", 0, 100).expect("reads"), of_cluster_2(30));
    }
}

#[test]
fn a_subject_named_twice_counts_once() {
    let (_dir, path) = place();
    let disk = MemDisk::new();
    let (mut journal, _) = Journal::open(disk.clone(), Options::default()).expect("opens");
    journal.append(&[Entry { subjects: vec!["a".to_owned(); 3], ..entry(1) }]).expect("appends");
    let mut index = Index::open(&path).expect("opens");
    index.catch_up(&reader(&disk), 1).expect("follows");
    assert_eq!(index.by_subject("a", 0, 100).expect("reads"), vec![1]);
}
