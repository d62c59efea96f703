//! Faults put in on purpose: the checkers must find each of them within a few seeds, and say what is wrong.

use ionet_lab::sim::{self, Plan, Planted};

/// One line a fault: what is broken, and words of what the checkers say.
#[test]
fn every_planted_fault_is_found() {
    let none = Planted::default();
    let table: [(Planted, &[&str]); 10] = [
        (Planted { lying_sync: true, ..none }, &["are left", "changed after", "does not start again"]),
        (
            Planted { answer_before_commit: true, ..none },
            &["was answered", "not the event that was answered"],
        ),
        (Planted { fresh_id_on_retry: true, ..none }, &["one wish became two orders"]),
        (Planted { charge_by_wall_clock: true, ..none }, &["and receipted"]),
        (Planted { pay_twice: true, ..none }, &["the books do not know it", "never paid"]),
        (Planted { end_unknown: true, ..none }, &["nobody had closed it"]),
        (Planted { end_silent: true, ..none }, &["given up while it ran"]),
        (Planted { leave_box: true, ..none }, &["nobody pays for", "still runs"]),
        (Planted { start_twice: true, ..none }, &["a second box was started"]),
        (Planted { lie_about_boxes: true, ..none }, &["paid for and not there"]),
    ];
    for (planted, words) in table {
        let found =
            (0..40).find_map(|seed| sim::run(&Plan { planted, restores: true, ..Plan::random(seed) }).err());
        let error = found.unwrap_or_else(|| panic!("{planted:?} was not found in 40 seeds")).to_string();
        assert!(words.iter().any(|word| error.contains(word)), "{planted:?} was found as: {error}");
    }
}
