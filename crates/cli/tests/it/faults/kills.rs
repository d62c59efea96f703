//! The server is killed at fifty random moments of the way of orders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cloud::{Cloud, PATIENCE, Renter, is_over, order_words, short_periods, wait_for};
use crate::kit::Said;

const KILLS: u32 = 50;
/// Live orders that the renter keeps going.
const LIVE_ORDERS: usize = 6;

/// Pseudo-random numbers; the seed is printed and may be given as `IONET_TEST_SEED`.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let given = std::env::var("IONET_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| getrandom::u64().unwrap());
        eprintln!("IONET_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// What the renter knows for certain.
#[derive(Debug, Default)]
struct Known {
    acknowledged: BTreeSet<String>,
    live: Vec<String>,
    commands: u32,
    done: BTreeMap<String, u32>,
}

/// A renter that goes on whatever happens: orders that end by themselves, are closed early, are extended.
fn rent(renter: &Renter, mut dice: Dice, stop: &AtomicBool) -> Known {
    let mut known = Known::default();
    while !stop.load(Ordering::SeqCst) {
        known.commands += 1;
        if known.live.len() < LIVE_ORDERS {
            order(renter, &mut dice, &mut known);
            continue;
        }
        let at = usize::try_from(dice.below(known.live.len() as u64)).unwrap();
        let cluster = known.live[at].clone();
        let (word, said) = match dice.below(4) {
            0 => ("rm", renter.run(&["cluster", "rm", &cluster, "--yes", "--no-wait"])),
            1 => ("extend", renter.run(&["cluster", "extend", &cluster, "--for", "1m", "--yes"])),
            _ => ("show", renter.run(&["cluster", "show", &cluster])),
        };
        note(&mut known, word, &said);
        let closed = said.status == 0 && said.json()["closed_ms"].is_u64();
        if closed {
            known.live.remove(at);
        }
    }
    known
}

fn order(renter: &Renter, dice: &mut Dice, known: &mut Known) {
    let program = match dice.below(3) {
        0 => "echo started; exit 3",
        1 => "echo started; sleep 1",
        _ => "echo started; while sleep 1; do echo tick; done",
    };
    let members = if dice.below(2) == 0 { "1" } else { "2" };
    let more = ["-n", members, "--cpus", "0.1", "--for", "5m", "--no-wait"];
    let said = renter.run(&order_words(&more, &["/bin/sh", "-c", program]));
    note(known, "create", &said);
    if said.status == 0 {
        let id = said.json()["id"].as_str().unwrap().to_owned();
        known.live.push(id.clone());
        known.acknowledged.insert(id);
    }
}

/// Every answer is a success, a refusal for a good reason, or says that the server is away.
fn note(known: &mut Known, word: &str, said: &Said) {
    let code = match said.status {
        0 => "done".to_owned(),
        _ => said.json()["error"]["code"].as_str().unwrap_or_default().to_owned(),
    };
    let good =
        ["done", "unreachable", "stopping", "wrong_stage", "no_change", "no_capacity", "garbled_answer"];
    assert!(good.contains(&code.as_str()), "{word}: {}", said.text());
    *known.done.entry(format!("{word} {code}")).or_default() += 1;
}

/// Supervisors keep their process, and each program starts once.
#[derive(Default)]
struct Boxes(BTreeMap<String, u32>);

impl Boxes {
    fn check(&mut self, cloud: &Cloud) {
        for (lease, pid) in cloud.supervisors() {
            let first = *self.0.entry(lease.clone()).or_insert(pid);
            assert_eq!(first, pid, "the supervisor of {lease} was started again");
            for agent in [1, 2] {
                let starts = cloud.output(agent, &lease).matches("started").count();
                assert!(starts <= 1, "the program of {lease} was started {starts} times");
            }
        }
    }
}

/// Ends the renter also when the test fails.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn journal_bytes(cloud: &Cloud) -> u64 {
    let folder = std::fs::read_dir(cloud.home.path().join("server/journal"));
    folder.into_iter().flatten().flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

/// A moment of the way: when so much more was written, or nothing more comes for a while.
fn wait_for_a_moment(cloud: &Cloud, dice: &mut Dice) {
    let until_bytes = journal_bytes(cloud) + dice.below(6_000);
    let deadline = Instant::now() + Duration::from_millis(dice.below(2_000));
    while journal_bytes(cloud) < until_bytes && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1)); // poll
    }
}

#[test]
fn a_server_killed_at_fifty_moments_loses_no_lease_and_no_money() {
    let mut dice = Dice::new();
    let mut cloud = Cloud::new(&short_periods());
    for supplier in ["supplier-a", "supplier-b"] {
        cloud.add_agent_with(supplier, "2", "8GiB", None);
    }
    cloud.wait_pooled();
    let (mut boxes, stop) = (Boxes::default(), AtomicBool::new(false));
    let renters_dice = Dice(dice.below(u64::MAX >> 12) | 1);
    let mut link_restarts = 0;
    let known = {
        let renter = cloud.renter.clone();
        thread::scope(|scope| {
            let renting = scope.spawn(|| rent(&renter, renters_dice, &stop));
            let _stop = StopWhenDropped(&stop);
            for _ in 0..KILLS {
                wait_for_a_moment(&cloud, &mut dice);
                cloud.kill_server();
                boxes.check(&cloud);
                cloud.start_server();
                // An agent whose server vanished finds out after seconds; a new one links at once.
                if dice.below(2) == 0 {
                    link_restarts += 1;
                    cloud.restart_agents();
                }
                if renting.is_finished() {
                    break;
                }
            }
            cloud.wait_served();
            drop(StopWhenDropped(&stop));
            renting.join().expect("the renter")
        })
    };
    eprintln!("{link_restarts} restarts of agents, {} boxes, {:?}", boxes.0.len(), known.done);
    cloud.restart_agents();
    end_all(&cloud.renter, &known);
    boxes.check(&cloud);
    cloud.renter.check_money();
    cloud.wait_no_boxes();
    cloud.stop_server();
    cloud.renter.verify();
}

/// Every order that was acknowledged is there, and every order ends.
fn end_all(renter: &Renter, known: &Known) {
    let all = || renter.say(&["cluster", "ls", "--all"]).as_array().unwrap().clone();
    let id = |view: &Value| view["id"].as_str().unwrap().to_owned();
    let there: BTreeSet<_> = all().iter().map(id).collect();
    let lost: Vec<_> = known.acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(!there.is_empty(), "nothing was ever ordered: {known:?}");
    for view in all().iter().filter(|view| view["closed_ms"].is_null()) {
        let said = renter.run(&["cluster", "rm", &id(view), "--yes", "--no-wait"]);
        let code = said.json()["error"]["code"].clone();
        assert!(said.status == 0 || code == "wrong_stage", "{}", said.text());
    }
    wait_for("the end of every order", PATIENCE, || {
        let open: Vec<_> = all().into_iter().filter(|view| !is_over(view)).collect();
        open.is_empty().then_some(())
    });
    let mut reasons = BTreeMap::<_, u32>::new();
    for view in all() {
        *reasons.entry(view["reason"]["code"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    eprintln!("{reasons:?}");
    assert!(
        reasons.contains_key("renter") && reasons.contains_key("finished"),
        "too little happened: {reasons:?}"
    );
}
