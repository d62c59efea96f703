//! Whole runs by chance, and seeds that once failed.

use ionet_lab::sim::{self, Plan};

fn ends_well(plan: &Plan, name: &str) {
    if sim::run(plan).is_err() {
        panic!("{name}\n{}", sim::explain(plan));
    }
}

#[test]
fn fifty_seeds_end_well() {
    for seed in 0..50 {
        ends_well(&Plan::random(seed), &format!("seed {seed}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let one = sim::run(&Plan::random(7)).unwrap();
    let again = sim::run(&Plan::random(7)).unwrap();
    assert_eq!((one.acts, one.records, one.virtual_ms), (again.acts, again.records, again.virtual_ms));
}
