//! Whole runs by chance, and those that broke once.

use std::sync::atomic::{AtomicU64, Ordering};

use ionet_lab::sim::{self, Plan, Scenario};

const LAST_ACTS: usize = 40;

fn ends_well(plan: &Plan, name: &str) {
    if sim::attempt(plan).broken.is_some() {
        let outcome = sim::explain(plan, LAST_ACTS);
        panic!("{name}: {:?}\n{}\nionet-lab replay {}", outcome.broken, outcome.trace, plan.arguments());
    }
}

/// Seeds from 0 on, on two threads.
fn seeds_end_well(scenario: Scenario, seeds: u64) {
    let next = AtomicU64::new(0);
    let work = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < seeds
        {
            ends_well(&Plan::new(scenario, seed), scenario.name());
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
}

#[test]
fn two_hundred_seeds_of_chaos_end_well() {
    seeds_end_well(Scenario::Chaos, 200);
}

#[test]
fn storms_end_well() {
    seeds_end_well(Scenario::Storm, 30);
}

#[test]
fn nothing_is_lost_or_late_in_a_calm() {
    seeds_end_well(Scenario::Calm, 30);
}

#[test]
fn a_crowd_ends_well() {
    seeds_end_well(Scenario::Crowd, 2);
}

#[test]
fn weeks_end_well() {
    seeds_end_well(Scenario::Weeks, 1);
}

#[test]
fn what_broke_once_does_not_break_again() {
    let text = include_str!("../../regressions.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in lines {
        let words: Vec<_> = line.split_whitespace().collect();
        let [name, scenario, seed, ..] = words[..] else { panic!("a name, a scenario and a seed: {line}") };
        let scenario = Scenario::ALL.into_iter().find(|it| it.name() == scenario).unwrap();
        ends_well(&Plan::new(scenario, seed.parse().unwrap()), name);
    }
}

#[test]
fn the_same_plan_gives_the_same_run() {
    for plan in [Plan::new(Scenario::Chaos, 7), Plan::new(Scenario::Storm, 8)] {
        assert_eq!(sim::run(&plan).unwrap(), sim::run(&plan).unwrap());
    }
}
