//! One order from quote to payout, with a crash at every act of it in turn.

use ionet_lab::sim::{self, Crash, Plan};

fn ends_well(crash: Crash) {
    let plan = Plan::one_order(Some(crash));
    if let Err(error) = sim::run(&plan) {
        panic!("{crash:?}: {error}\n{}", sim::explain(&plan, 40).trace);
    }
}

#[test]
fn the_server_may_crash_between_any_two_acts() {
    let sound = sim::run(&Plan::one_order(None)).unwrap();
    assert_eq!(sound.orders, 1);
    for act in 1..=sound.server_acts {
        ends_well(Crash::Server(act));
    }
}

#[test]
fn the_agents_may_crash_between_any_two_acts() {
    let sound = sim::run(&Plan::one_order(None)).unwrap();
    for act in 1..=sound.agent_acts {
        ends_well(Crash::Agent(act));
    }
}

#[test]
fn the_power_may_go_at_any_operation_of_the_servers_disk() {
    let sound = sim::run(&Plan::one_order(None)).unwrap();
    for operation in 0..sound.disk_operations {
        ends_well(Crash::Disk(operation));
    }
}
