//! What a release wrote must fold to the same state in every later one.

use std::path::PathBuf;

use ionet_domain::State;
use ionet_journal::FileDisk;
use ionet_lab::golden;

/// Every kind of event there is.
const KINDS: [&str; 54] = [
    "active",
    "charges_proven",
    "charges_voided",
    "country_declared",
    "deny_list_set",
    "deposited",
    "device_archived",
    "device_changed",
    "device_checking",
    "device_contact",
    "device_enrolled",
    "device_links_measured",
    "device_pooled",
    "device_rebound",
    "device_refused",
    "device_terms_set",
    "feed_taken",
    "founded",
    "key_made",
    "key_revoked",
    "lease_exited",
    "lease_lost",
    "lease_metered",
    "lease_ready",
    "lease_removed",
    "loads_set",
    "member_ailing",
    "member_released",
    "order_accepted",
    "order_changed",
    "order_closing",
    "order_egress_changed",
    "order_extended",
    "order_funded",
    "order_grown",
    "order_kept",
    "order_noticed",
    "order_paid",
    "order_paused",
    "order_placed",
    "order_rated",
    "order_repriced",
    "order_resumed",
    "order_running",
    "order_settled",
    "order_shrunk",
    "order_started",
    "payout_adopted",
    "payout_opened",
    "payout_paid",
    "queue_held",
    "retired",
    "sent",
    "term_begun",
];

fn releases() -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    assert!(!found.is_empty());
    found
}

#[test]
fn every_release_folds_to_what_it_recorded() {
    for dir in releases() {
        let names = golden::check(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let text = std::fs::read(dir.join(golden::STATE_FILE)).unwrap();
        let recorded: State = serde_json::from_slice(&text).unwrap();
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(&dir).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        let disk = FileDisk::open(copy.path()).unwrap();
        golden::check_snapshot(disk, &recorded).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        assert!(!names.is_empty());
    }
}

#[test]
fn the_script_uses_every_kind_of_event() {
    let dir = tempfile::tempdir().unwrap();
    golden::write(dir.path()).unwrap();
    let names = golden::check(dir.path()).unwrap();
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), KINDS);
}
