//! Faults put in on purpose: the right checker must find each of them within a few seeds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ionet_lab::sim::{self, Plan, Planted, Promise};

/// Every fault is found by chance within so many seeds.
const SEEDS: u64 = 60;

/// What is wrong with the finding of a fault, if anything.
fn missed(planted: Planted) -> Option<String> {
    let found = (0..SEEDS).find_map(|seed| sim::attempt(&Plan::with_planted(planted, seed)).broken);
    match found {
        None => Some(format!("{} was not found in {SEEDS} seeds", planted.name())),
        Some((promise, what)) if !planted.breaks().contains(&promise) => {
            Some(format!("{} was found as {promise}: {what}", planted.name()))
        }
        Some(_) => None,
    }
}

#[test]
fn every_planted_fault_is_found_by_the_right_checker() {
    assert!(Planted::ALL.len() >= 24);
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(planted) = Planted::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            wrong.lock().unwrap().extend(missed(*planted));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A checker that nothing can break is no checker.
#[test]
fn every_promise_is_broken_by_some_planted_fault() {
    let breaks = |promise: &Promise| Planted::ALL.iter().any(|planted| planted.breaks().contains(promise));
    let never: Vec<_> = Promise::ALL.iter().filter(|promise| !breaks(promise)).collect();
    assert!(never.is_empty(), "{never:?}");
}

#[test]
fn every_promise_is_in_the_documents() {
    let text = include_str!("../../../../docs/reliability.md");
    let missing: Vec<_> = Promise::ALL.iter().filter(|it| !text.contains(&format!("`{it}`"))).collect();
    assert!(missing.is_empty(), "docs/reliability.md lacks {missing:?}");
}

#[test]
fn a_run_that_breaks_is_made_smaller() {
    let broken = |plan: &Plan| sim::attempt(plan).broken.is_some();
    let plan = (0..SEEDS).map(|seed| Plan::with_planted(Planted::SkipRefund, seed)).find(broken).unwrap();
    let shrunk = sim::shrink(&plan, Duration::from_secs(20)).unwrap();
    assert_eq!(shrunk.promise, Promise::BillAddsUp);
    let small = shrunk.plan.devices <= 2 && shrunk.plan.renters <= 2 && shrunk.faults <= 1;
    assert!(small, "{}", shrunk.plan.arguments());
    // Either single orders are named, or each renter makes few.
    let all = shrunk.plan.renters as u64 * shrunk.plan.orders_each;
    let orders = shrunk.plan.only_orders.as_ref().map_or(all, |only| only.len() as u64);
    assert!(orders <= 4, "{}", shrunk.plan.arguments());
}
