//! Agents and supervisors are killed under running members; two orders race for the last device.

use std::thread;

use serde_json::Value;

use super::cloud::{Cloud, PATIENCE, marked, order_words, short_periods, wait_for};

/// Members that talk: the head answers, the other asks ten times a second and prints each answer's number. A packet
/// without an answer within 3 s is lost. Its first word is a mark to find its processes by.
const TALK: &str = "import os, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
me, head = os.environ['IONET_MEMBER_IP'], os.environ['IONET_HEAD_IP']
print('started', flush=True)
if me == head:
    s.bind((me, 4000))
    while True:
        data, peer = s.recvfrom(100)
        s.sendto(data, peer)
s.settimeout(3)
n = 0
while True:
    n += 1
    s.sendto(str(n).encode(), (head, 4000))
    try:
        while s.recvfrom(100)[0] != str(n).encode(): pass
        print('answer', n, flush=True)
    except OSError as e: print('lost', n, e, flush=True)
    time.sleep(0.1)";

fn answers(text: &str) -> usize {
    text.matches("answer ").count()
}

fn mark() -> String {
    format!("mark-{:016x}", getrandom::u64().unwrap())
}

#[test]
fn an_agent_killed_mid_job_costs_no_packet_and_adopts_its_leases() {
    let mut cloud = Cloud::new(&short_periods());
    cloud.add_agent("supplier-a", "1");
    cloud.add_agent("supplier-b", "1");
    cloud.wait_pooled();
    let cluster = cloud
        .renter
        .order(&["-n", "2", "--spread", "--cpus", "0.3", "--for", "10m"], &["/usr/bin/python3", "-c", TALK]);
    let (asking, agent) = cloud.member(&cluster, 1);
    let printed = |cloud: &Cloud| cloud.output(agent, &asking);
    wait_for("first answers", PATIENCE, || (answers(&printed(&cloud)) > 10).then_some(()));
    let (supervisors, lost_before) = (cloud.supervisors(), printed(&cloud).matches("lost").count());
    assert_eq!(supervisors.len(), 2);

    for n in [1, 2] {
        cloud.kill_agent(n);
    }
    let from = answers(&printed(&cloud));
    wait_for("answers without agents", PATIENCE, || (answers(&printed(&cloud)) > from + 60).then_some(()));
    for n in [1, 2] {
        cloud.start_agent(n);
        cloud.wait_linked(n);
    }
    let from = answers(&printed(&cloud));
    wait_for("answers after adoption", PATIENCE, || (answers(&printed(&cloud)) > from + 20).then_some(()));

    let text = printed(&cloud);
    assert_eq!(text.matches("lost").count(), lost_before, "packets were lost:\n{text}");
    assert_eq!(text.matches("started").count(), 1);
    assert_eq!(cloud.supervisors(), supervisors);
    let view = cloud.renter.show(&cluster);
    assert_eq!(view["stage"], "running");
    assert!(view["leases"].as_array().unwrap().iter().all(|lease| lease["now"] == "ready"), "{view}");
    let logs = cloud.renter.say(&["cluster", "logs", &cluster, "--member", "1"]);
    assert!(answers(logs["log"].as_str().unwrap()) > from, "{logs}");

    // An adopted lease is still obeyed: it ends, is wiped, and all is charged.
    cloud.renter.say(&["cluster", "rm", &cluster, "--yes", "--no-wait"]);
    let over = cloud.renter.wait_over(&cluster);
    let wiped = |lease: &Value| lease["phase"]["removed"]["wipe"]["files"].is_u64();
    assert!(over["leases"].as_array().unwrap().iter().all(wiped), "{over}");
    cloud.renter.check_money();
    cloud.wait_no_boxes();
    cloud.renter.verify();
}

#[test]
fn a_killed_supervisor_leaves_no_orphan_and_its_lease_is_replaced_while_there_is_a_device() {
    let mut cloud = Cloud::new(&short_periods());
    for supplier in ["supplier-a", "supplier-b", "supplier-c"] {
        cloud.add_agent(supplier, "1");
    }
    cloud.wait_pooled();
    let mark = mark();
    let program = ["/usr/bin/python3", "-c", TALK, mark.as_str()];
    let cluster = cloud.renter.order(&["-n", "2", "--spread", "--cpus", "0.3", "--for", "10m"], &program);
    let (head, heads_agent) = cloud.member(&cluster, 0);
    let (first, agent) = cloud.member(&cluster, 1);
    wait_for("first answers", PATIENCE, || (answers(&cloud.output(agent, &first)) > 5).then_some(()));
    let of_head = |cloud: &Cloud| cloud.supervisors().get(&head).copied();
    let heads_pid = of_head(&cloud);
    let processes_of_one = marked(&mark).len() / 2;

    super::cloud::signal(cloud.supervisors()[&first], "-KILL");
    let (second, agent) = wait_for("a replacement", PATIENCE, || {
        let view = cloud.renter.show(&cluster);
        let replaced = |lease: &&Value| {
            lease["slot"] == 1 && lease["lease"] != first.as_str() && lease["phase"] == "ready"
        };
        let lease = view["leases"].as_array().unwrap().iter().find(replaced)?.clone();
        Some((lease["lease"].as_str().unwrap().to_owned(), cloud.agent_of(&lease["device"])))
    });
    assert!(agent != heads_agent, "every member is on a device of its own");
    wait_for("answers at the replacement", PATIENCE, || {
        (answers(&cloud.output(agent, &second)) > 5).then_some(())
    });
    assert_eq!(of_head(&cloud), heads_pid, "the head was touched");
    assert_eq!(cloud.output(heads_agent, &head).matches("started").count(), 1);
    wait_for("the end of what was in the lost box", PATIENCE, || {
        (marked(&mark).len() == 2 * processes_of_one).then_some(())
    });

    // No third device is left: the order ends with its reason, and the rest of the money comes back.
    super::cloud::signal(cloud.supervisors()[&second], "-KILL");
    let over = cloud.renter.wait_over(&cluster);
    assert_eq!(over["reason"]["code"], "member_lost", "{over}");
    assert_eq!(over["reason"]["lease"], second.as_str(), "{over}");
    assert!(over["bill"]["refund_micro_usd"].as_u64().unwrap() > 0, "{over}");
    wait_for("the end of every box", PATIENCE, || marked(&mark).is_empty().then_some(()));
    cloud.renter.check_money();
    cloud.wait_no_boxes();
    cloud.renter.verify();
}

#[test]
fn of_two_orders_for_the_last_device_one_is_refused_and_told_what_would_help() {
    let mut cloud = Cloud::new(&short_periods());
    cloud.add_agent("supplier-a", "1");
    cloud.wait_pooled();
    for round in 0..3 {
        let words =
            order_words(&["-n", "1", "--cpus", "0.8", "--for", "10m"], &["/bin/sh", "-c", "sleep 600"]);
        let both = thread::scope(|scope| {
            let race = [(); 2].map(|()| scope.spawn(|| cloud.renter.run(&words)));
            race.map(|one| one.join().unwrap())
        });
        let (won, lost): (Vec<_>, Vec<_>) = both.iter().partition(|said| said.status == 0);
        assert_eq!((won.len(), lost.len()), (1, 1), "round {round}: {} {}", both[0].text(), both[1].text());
        let error = &lost[0].json()["error"];
        assert_eq!((lost[0].status, &error["code"]), (1, &Value::from("no_capacity")), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("0 of 1") || message.contains("capacity comes free") || message.contains("free"),
            "{message}"
        );
        eprintln!("round {round}: {message}");
        let cluster = won[0].json()["id"].as_str().unwrap().to_owned();
        cloud.renter.say(&["cluster", "rm", &cluster, "--yes"]);
        cloud.renter.wait_over(&cluster);
    }
    cloud.renter.check_money();
    cloud.wait_no_boxes();
    cloud.renter.verify();
}
