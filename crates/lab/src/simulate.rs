//! The commands of the simulation: many seeds at once, one seed act by act.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ionet_lab::sim::{self, FaultKind, Outcome, Plan, Planted, Scenario};
use ionet_lab::{LabError, Result};
use serde_json::json;

/// How long a run that broke is made smaller, at most.
const SHRINK_FOR: Duration = Duration::from_mins(1);
const LAST_ACTS: usize = 40;

#[derive(Args)]
pub(crate) struct Sim {
    /// How many seeds of each scenario.
    #[arg(long, default_value_t = 50)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Which scenarios; all of them if none is named.
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Put a fault in on purpose, to see it found.
    #[arg(long, value_parser = planted)]
    plant: Option<Planted>,
    /// Print one line of JSON a scenario.
    #[arg(long)]
    json: bool,
    /// Do not make what breaks smaller.
    #[arg(long)]
    no_shrink: bool,
}

#[derive(Args)]
pub(crate) struct Replay {
    /// Which seed.
    seed: u64,
    /// Which scenario.
    #[arg(long, value_enum, default_value = "chaos")]
    scenario: Scenario,
    /// Machines.
    #[arg(long)]
    devices: Option<usize>,
    /// Renters.
    #[arg(long)]
    renters: Option<usize>,
    /// Orders that each renter makes at most.
    #[arg(long)]
    orders: Option<u64>,
    /// When faults and orders end, in virtual milliseconds.
    #[arg(long)]
    chaos_ms: Option<u64>,
    /// Kinds of faults, with commas between; 'none' for none.
    #[arg(long)]
    faults: Option<String>,
    /// Only these faults, by number; 'none' for none.
    #[arg(long)]
    only_faults: Option<String>,
    /// Only these orders, as renter.number; 'none' for none.
    #[arg(long)]
    only_orders: Option<String>,
    /// A fault put in on purpose.
    #[arg(long, value_parser = planted)]
    plant: Option<Planted>,
}

/// What many runs came to.
#[derive(Default)]
struct Total {
    seeds: AtomicU64,
    acts: AtomicU64,
    virtual_ms: AtomicU64,
    orders: AtomicU64,
    faults: AtomicU64,
    records: AtomicU64,
    /// The time of all threads, in microseconds.
    busy_us: AtomicU64,
}

pub(crate) fn sim(args: &Sim) -> bool {
    let scenarios = if args.scenario.is_empty() { Scenario::ALL.to_vec() } else { args.scenario.clone() };
    if !args.json {
        println!(
            "{:<9} {:>6} {:>8} {:>8} {:>9} {:>12} {:>10} {:>10} {:>9}",
            "scenario", "seeds", "orders", "faults", "records", "steps", "steps/s", "hours", "hours/s"
        );
    }
    for scenario in scenarios {
        let begun = Instant::now();
        let total = Total::default();
        let failed = runs(args, scenario, &total);
        if let Some(plan) = failed {
            report(&plan, args.no_shrink);
            return false;
        }
        show(args, scenario, &total, begun.elapsed());
    }
    true
}

/// Runs the seeds of one scenario on several threads; the plan of the first that breaks.
fn runs(args: &Sim, scenario: Scenario, total: &Total) -> Option<Plan> {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let failed: Mutex<Option<Plan>> = Mutex::default();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= args.seeds {
                return;
            }
            let plan = Plan { planted: args.plant, ..Plan::new(scenario, args.first + n) };
            let begun = Instant::now();
            let outcome = sim::attempt(&plan);
            total.add(&outcome, begun.elapsed());
            if outcome.broken.is_some() {
                stop.store(true, Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(plan);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(work);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Total {
    fn add(&self, outcome: &Outcome, took: Duration) {
        let add = |to: &AtomicU64, n: u64| _ = to.fetch_add(n, Ordering::Relaxed);
        let summary = &outcome.summary;
        add(&self.seeds, 1);
        add(&self.acts, summary.acts);
        add(&self.virtual_ms, summary.virtual_ms);
        add(&self.orders, summary.orders);
        add(&self.faults, summary.faults);
        add(&self.records, summary.records);
        add(&self.busy_us, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts become figures for people")]
fn show(args: &Sim, scenario: Scenario, total: &Total, took: Duration) {
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let (acts, hours) = (get(&total.acts), get(&total.virtual_ms) as f64 / 3_600_000.0);
    // Per core: the time of all threads together.
    let seconds = get(&total.busy_us) as f64 / 1e6;
    let (steps_s, hours_s) = (acts as f64 / seconds, hours / seconds);
    let (seeds, orders, faults, records) =
        (get(&total.seeds), get(&total.orders), get(&total.faults), get(&total.records));
    if args.json {
        let line = json!({
            "scenario": scenario.name(), "first_seed": args.first, "seeds": seeds, "orders": orders, "faults": faults,
            "records": records, "steps": acts, "steps_per_core_second": steps_s.round(), "virtual_hours": hours,
            "virtual_hours_per_core_second": hours_s, "wall_seconds": took.as_secs_f64(), "broken": 0,
        });
        return println!("{line}");
    }
    println!(
        "{:<9} {seeds:>6} {orders:>8} {faults:>8} {records:>9} {acts:>12} {steps_s:>10.0} {hours:>10.1} {hours_s:>9.2}",
        scenario.name()
    );
}

/// Says what broke, makes it small, and says how to see it again.
fn report(plan: &Plan, no_shrink: bool) {
    let budget = if no_shrink { Duration::ZERO } else { SHRINK_FOR };
    let Some(shrunk) = sim::shrink(plan, budget) else {
        return println!("seed {} broke once and not again", plan.seed);
    };
    let outcome = sim::explain(&shrunk.plan, LAST_ACTS);
    println!("{}", outcome.trace);
    println!("\nbroken: {}: {}", shrunk.promise, shrunk.promise.text());
    println!("{}", shrunk.what);
    let faults = shrunk.faults;
    let (scenario, seed, runs) = (plan.scenario.name(), plan.seed, shrunk.runs);
    println!(
        "\nscenario {scenario}, seed {seed}, commit {}; {faults} faults are left after {runs} runs",
        commit()
    );
    println!("again, act by act: ionet-lab replay {}", shrunk.plan.arguments());
    println!("as it was found:   ionet-lab replay {}", plan.arguments());
}

fn commit() -> String {
    let said = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let said = said.ok().filter(|said| said.status.success());
    said.map_or("unknown".into(), |said| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

pub(crate) fn replay(args: &Replay) -> Result<bool> {
    let plan = args.plan()?;
    match sim::replay(&plan) {
        Ok(summary) => println!("nothing broke in {} acts", summary.acts),
        Err(error) => {
            println!("\nbroken: {error}");
            return Ok(false);
        }
    }
    Ok(true)
}

impl Replay {
    fn plan(&self) -> Result<Plan> {
        let mut plan = Plan::new(self.scenario, self.seed);
        plan.devices = self.devices.unwrap_or(plan.devices);
        plan.renters = self.renters.unwrap_or(plan.renters);
        plan.orders_each = self.orders.unwrap_or(plan.orders_each);
        plan.chaos_ms = self.chaos_ms.unwrap_or(plan.chaos_ms);
        plan.planted = self.plant;
        if let Some(kinds) = &self.faults {
            plan.faults =
                list(kinds, |word| FaultKind::ALL.iter().copied().find(|kind| kind.name() == word))?;
        }
        if let Some(numbers) = &self.only_faults {
            plan.only_faults = Some(list(numbers, |word| word.parse().ok())?);
        }
        if let Some(orders) = &self.only_orders {
            let order =
                |word: &str| word.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            plan.only_orders = Some(list(orders, order)?);
        }
        Ok(plan)
    }
}

fn list<T: Ord>(text: &str, read: impl Fn(&str) -> Option<T>) -> Result<BTreeSet<T>> {
    let words = text.split(',').filter(|word| !word.is_empty() && *word != "none");
    let unknown =
        |word: &str| LabError::Broken(format!("'{word}' is not one of those; see ionet-lab replay --help"));
    words.map(|word| read(word).ok_or_else(|| unknown(word))).collect()
}

fn planted(word: &str) -> std::result::Result<Planted, String> {
    let names = || Planted::ALL.iter().map(|planted| planted.name()).collect::<Vec<_>>().join(", ");
    let found = Planted::ALL.iter().copied().find(|planted| planted.name() == word);
    found.ok_or_else(|| format!("one of: {}", names()))
}
