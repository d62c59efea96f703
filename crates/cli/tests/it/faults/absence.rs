//! Server and agents are away for long: programs go on, and what they used is settled on return.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::cloud::{Cloud, PATIENCE, short_periods, wait_for};

/// Longer than after which a device counts as silent.
const ABSENCE: Duration = Duration::from_secs(22);
/// A program that prints the monotonic clock ten times a second.
const CLOCK: &str = "import time
while True: print(int(time.monotonic() * 1000), flush=True); time.sleep(0.1)";
/// The busiest machine lets a program run at least this often.
const MOST_PAUSE_MS: u64 = 8_000;
/// Receipts come at least this often.
const RECEIPT_EVERY_MS: u64 = 5_000;

fn ticks(text: &str) -> Vec<u64> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The longest time between two lines of a program.
fn longest_pause_ms(ticks: &[u64]) -> u64 {
    ticks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(u64::MAX)
}

fn metered<'a>(events: &'a [Value], witness: &str) -> Vec<&'a Value> {
    let is = |event: &&Value| {
        let text = event.to_string();
        text.contains("lease_metered") && text.contains(witness)
    };
    events.iter().filter(is).collect()
}

#[test]
fn programs_go_on_without_a_server_and_usage_is_settled_on_return() {
    let mut cloud = Cloud::new(&short_periods());
    cloud.add_agent("supplier-a", "1");
    cloud.add_agent("supplier-b", "1");
    cloud.wait_pooled();
    let clock = ["/usr/bin/python3", "-c", CLOCK];
    // Two members of two suppliers are each other's witness; the one that is alone has only its own word.
    let pair = cloud.renter.order(&["-n", "2", "--spread", "--cpus", "0.3", "--for", "10m"], &clock);
    let alone = cloud.renter.order(&["-n", "1", "--cpus", "0.2", "--for", "10m"], &clock);
    let members: Vec<_> =
        [(&pair, 0), (&pair, 1), (&alone, 0)].map(|(id, slot)| cloud.member(id, slot)).into();
    let charged = |id: &str| cloud.renter.show(id)["bill"]["compute_micro_usd"].as_u64().unwrap();
    for id in [&pair, &alone] {
        wait_for("a first charge", PATIENCE, || (charged(id) > 0).then_some(()));
    }
    let before = cloud.supervisors();

    let gone = Instant::now();
    cloud.kill_server();
    let from: Vec<_> =
        members.iter().map(|(lease, agent)| ticks(&cloud.output(*agent, lease)).len()).collect();
    wait_for("the long absence", PATIENCE, || (gone.elapsed() > ABSENCE).then_some(()));
    for ((lease, agent), from) in members.iter().zip(from) {
        let ticks = ticks(&cloud.output(*agent, lease));
        let went_on_ms = ticks[ticks.len() - 1] - ticks[from];
        assert!(went_on_ms + MOST_PAUSE_MS > 22_000, "{lease} printed for {went_on_ms} ms");
        assert!(longest_pause_ms(&ticks) < MOST_PAUSE_MS, "{lease} paused");
    }
    assert_eq!(cloud.supervisors(), before);

    cloud.start_server();
    cloud.wait_served();
    (1..=2).for_each(|n| cloud.wait_linked(n));
    let away_ms = u64::try_from(gone.elapsed().as_millis()).unwrap();
    let elapsed = |id: &str| cloud.renter.show(id)["leases"][0]["elapsed_ms"].as_u64().unwrap();
    for id in [&pair, &alone] {
        let view = cloud.renter.show(id);
        assert_eq!(view["stage"], "running", "{view}");
        wait_for("the gap's charge", PATIENCE, || (elapsed(id) > away_ms).then_some(()));
    }
    let (of_pair, of_alone) = (cloud.renter.events(&pair), cloud.renter.events(&alone));
    assert!(!metered(&of_pair, "\"member\"").is_empty(), "no member was a witness: {of_pair:?}");
    let attested = metered(&of_alone, "\"nobody\"");
    assert!(!attested.is_empty(), "the gap of the lease that was alone was not held apart: {of_alone:?}");
    assert!(attested.iter().all(|event| event.to_string().contains("held_until_ms")), "{attested:?}");

    for id in [&pair, &alone] {
        cloud.renter.say(&["cluster", "rm", id, "--yes", "--no-wait"]);
    }
    for id in [&pair, &alone] {
        let over = cloud.renter.wait_over(id);
        let ran_ms = over["closed_ms"].as_u64().unwrap() - over["running_since_ms"].as_u64().unwrap();
        for line in over["bill"]["lines"].as_array().unwrap() {
            let billed_ms = line["elapsed_ms"].as_u64().unwrap();
            assert!(billed_ms <= ran_ms && billed_ms + RECEIPT_EVERY_MS + 1_000 > ran_ms, "{ran_ms}: {line}");
        }
    }
    cloud.renter.check_money();
    cloud.wait_no_boxes();
    cloud.renter.verify();
}
