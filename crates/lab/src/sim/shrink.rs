//! From a run that broke to the smallest one found that breaks the same promise: fewer machines, renters and orders,
//! less time, fewer kinds of faults, and then single faults and orders left out, halves first.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::plan::Plan;
use super::promise::Promise;
use super::{Outcome, attempt};

/// A run that broke, made small.
#[derive(Debug)]
pub struct Shrunk {
    /// The smallest plan found.
    pub plan: Plan,
    /// What it breaks.
    pub promise: Promise,
    /// How.
    pub what: String,
    /// Faults in it.
    pub faults: usize,
    /// Runs that were tried.
    pub runs: u32,
}

struct Shrinker {
    best: Plan,
    outcome: Outcome,
    promise: Promise,
    runs: u32,
    until: Instant,
}

/// Makes a plan that breaks smaller for at most `budget`; `None` if it does not break.
pub fn shrink(plan: &Plan, budget: Duration) -> Option<Shrunk> {
    let outcome = attempt(plan);
    let (promise, _) = outcome.broken.clone()?;
    let until = Instant::now() + budget;
    let mut shrinker = Shrinker { best: plan.clone(), outcome, promise, runs: 1, until };
    while shrinker.pass() && !shrinker.over() {}
    let Shrinker { best, outcome, promise, runs, .. } = shrinker;
    let what = outcome.broken.map(|(_, what)| what).unwrap_or_default();
    Some(Shrunk { plan: best, promise, what, faults: outcome.injected.len(), runs })
}

impl Shrinker {
    fn over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Takes a smaller plan if it still breaks the same promise.
    fn try_one(&mut self, plan: Plan) -> bool {
        if plan == self.best || self.over() {
            return false;
        }
        self.runs += 1;
        let outcome = attempt(&plan);
        let same = outcome.broken.as_ref().is_some_and(|(promise, _)| *promise == self.promise);
        if same {
            (self.best, self.outcome) = (plan, outcome);
        }
        same
    }

    /// One round of everything; whether anything got smaller.
    fn pass(&mut self) -> bool {
        let mut smaller = self.sizes();
        smaller |= self.kinds();
        smaller |= self.faults();
        smaller |= self.orders();
        smaller
    }

    fn sizes(&mut self) -> bool {
        let mut smaller = false;
        let end_ms = self.outcome.summary.virtual_ms + 1_000;
        if end_ms < self.best.chaos_ms {
            smaller |= self.try_one(Plan { chaos_ms: end_ms, ..self.best.clone() });
        }
        for less in [1, 2] {
            smaller |= self.fewer(less, |plan| &mut plan.devices);
            smaller |= self.fewer(less, |plan| &mut plan.renters);
        }
        while self.best.orders_each > 1
            && self.try_one(Plan { orders_each: self.best.orders_each - 1, ..self.best.clone() })
        {
            smaller = true;
        }
        smaller
    }

    /// Halves a number, or takes one away, for as long as it breaks.
    fn fewer(&mut self, by: usize, part: fn(&mut Plan) -> &mut usize) -> bool {
        let mut smaller = false;
        loop {
            let mut plan = self.best.clone();
            let number = part(&mut plan);
            let less = if by == 1 { *number / 2 } else { number.saturating_sub(1) };
            if less == 0 {
                return smaller;
            }
            *number = less;
            if !self.try_one(plan) {
                return smaller;
            }
            smaller = true;
        }
    }

    fn kinds(&mut self) -> bool {
        let mut smaller = false;
        for kind in self.best.faults.clone() {
            let mut plan = self.best.clone();
            plan.faults.remove(&kind);
            // Numbers belong to the kinds that were there when they were given.
            plan.only_faults = None;
            smaller |= plan.only_faults == self.best.only_faults && self.try_one(plan);
        }
        smaller
    }

    fn faults(&mut self) -> bool {
        let struck: BTreeSet<u64> = self.outcome.injected.iter().map(|fault| fault.n).collect();
        self.subset(&struck, |plan, only| plan.only_faults = Some(only))
    }

    fn orders(&mut self) -> bool {
        let renters = 0..self.best.renters;
        let all = renters.flat_map(|renter| (0..self.best.orders_each).map(move |n| (renter, n)));
        let all: BTreeSet<_> = match &self.best.only_orders {
            Some(only) => only.clone(),
            None => all.collect(),
        };
        self.subset(&all, |plan, only| plan.only_orders = Some(only))
    }

    /// Leaves out parts of a set, halves first, then ever smaller ones, for as long as it breaks.
    fn subset<T: Copy + Ord>(&mut self, all: &BTreeSet<T>, set: impl Fn(&mut Plan, BTreeSet<T>)) -> bool {
        let mut kept: Vec<T> = all.iter().copied().collect();
        let mut smaller = false;
        let mut part = kept.len();
        while part > 0 && !self.over() {
            let mut at = 0;
            while at < kept.len() {
                let end = (at + part).min(kept.len());
                let rest: Vec<T> = [&kept[..at], &kept[end..]].concat();
                let mut plan = self.best.clone();
                set(&mut plan, rest.iter().copied().collect());
                if self.try_one(plan) {
                    kept = rest;
                    smaller = true;
                } else {
                    at = end;
                }
            }
            part = if part == 1 { 0 } else { part.div_ceil(2) };
        }
        smaller
    }
}
