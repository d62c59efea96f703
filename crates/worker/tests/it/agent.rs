//! The agent's logic: what it starts, leaves alone, ends and forgets.

use std::collections::{BTreeMap, BTreeSet};

use ionet_api::worker::{BoxPhase, DesiredLease, FromWorker, Telemetry, ToWorker};
use ionet_domain::order::WipeReceipt;
use ionet_domain::{DeviceId, LeaseId};
use ionet_worker::agent::{Agent, AgentConfig, Input, OBSERVED_EVERY_MS, Output, REMOVAL_TOLD_MS, Saved};
use proptest::prelude::*;

use crate::fixtures::{desired, lease, observed, wanted, welcome};

fn config() -> AgentConfig {
    AgentConfig {
        version: "1".into(),
        gpus: vec!["g0".into(), "g1".into()],
        enforced: true,
        ..Default::default()
    }
}

fn agent_with(config: AgentConfig) -> Agent {
    let saved = Saved { welcome: Some(welcome()), ..Saved::default() };
    Agent::new(DeviceId::from_parts(1, 1), config, saved, [])
}

fn tell(agent: &mut Agent, term: u64, n: u64, leases: Vec<DesiredLease>, ended: Vec<LeaseId>) -> Vec<Output> {
    agent.step(0, Input::FromServer(ToWorker::Desired(desired(term, n, leases, ended))))
}

fn started(outputs: &[Output]) -> Vec<LeaseId> {
    let of = |o: &Output| match o {
        Output::StartSupervisor(assignment) => Some(assignment.lease.lease),
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

fn removed(outputs: &[Output]) -> Vec<LeaseId> {
    let of = |o: &Output| match o {
        Output::RemoveLease(lease) => Some(*lease),
        _ => None,
    };
    outputs.iter().filter_map(of).collect()
}

fn wiped() -> BoxPhase {
    BoxPhase::Removed { wipe: WipeReceipt { files: 0, bytes: 0, processes_killed: 0, method: "m".into() } }
}

fn phase(agent: &Agent, lease: LeaseId) -> BoxPhase {
    agent.observed().into_iter().find(|o| o.lease == lease).unwrap().phase
}

#[test]
fn what_is_desired_is_on_disk_before_it_is_started() {
    let mut agent = agent_with(config());
    let outputs = tell(&mut agent, 1, 1, vec![wanted(lease(1, 0))], vec![]);
    assert!(matches!(outputs[0], Output::Persist(_)), "{outputs:?}");
    assert_eq!(started(&outputs), [lease(1, 0)]);
    assert!(started(&tell(&mut agent, 1, 1, vec![wanted(lease(1, 0))], vec![])).is_empty(), "only once");
}

#[test]
fn an_older_generation_is_refused() {
    let mut agent = agent_with(config());
    tell(&mut agent, 2, 7, vec![wanted(lease(1, 0))], vec![]);
    for (term, n) in [(2, 6), (1, 9)] {
        let outputs = tell(&mut agent, term, n, vec![], vec![lease(1, 0)]);
        assert!(matches!(outputs[..], [Output::Warn(_)]), "{outputs:?}");
    }
    assert_eq!(removed(&tell(&mut agent, 3, 0, vec![], vec![lease(1, 0)])), [lease(1, 0)]);
}

#[test]
fn a_lease_in_neither_list_is_left_alone() {
    let mut agent = agent_with(config());
    tell(&mut agent, 1, 1, vec![wanted(lease(1, 0))], vec![]);
    let outputs = tell(&mut agent, 2, 0, vec![], vec![]);
    assert!(matches!(outputs[..], [Output::Persist(_)]), "{outputs:?}");
    agent.step(1, Input::Observed(observed(lease(1, 0), BoxPhase::Ready)));
    assert_eq!(phase(&agent, lease(1, 0)), BoxPhase::Ready);
}

#[test]
fn a_removal_is_asked_again_until_answered_and_told_for_a_while() {
    let mut agent = agent_with(config());
    agent.step(0, Input::LinkUp);
    tell(&mut agent, 1, 1, vec![wanted(lease(1, 0))], vec![]);
    assert_eq!(removed(&tell(&mut agent, 1, 2, vec![], vec![lease(1, 0)])), [lease(1, 0)]);
    assert_eq!(removed(&agent.step(1_000, Input::Tick)), [lease(1, 0)]);
    agent.step(2_000, Input::Observed(observed(lease(1, 0), wiped())));
    agent.step(2_001, Input::Gone { lease: lease(1, 0), last: None, reason: "ended".into() });
    assert_eq!(phase(&agent, lease(1, 0)), wiped(), "the end of its supervisor loses no evidence");
    assert!(removed(&agent.step(3_000, Input::Tick)).is_empty());
    // A link that broke before the time was over may not have delivered it.
    agent.step(30_000, Input::LinkDown);
    agent.step(40_000, Input::LinkUp);
    assert!(
        !agent.step(40_000 + REMOVAL_TOLD_MS - 1, Input::Tick).contains(&Output::ForgetLease(lease(1, 0)))
    );
    assert!(agent.step(40_000 + REMOVAL_TOLD_MS, Input::Tick).contains(&Output::ForgetLease(lease(1, 0))));
    assert!(agent.observed().is_empty());
}

#[test]
fn a_dead_supervisor_is_a_lost_lease_and_is_not_started_again() {
    let mut agent = agent_with(config());
    tell(&mut agent, 1, 1, vec![wanted(lease(1, 0)), wanted(lease(1, 1))], vec![]);
    agent.step(1, Input::Observed(observed(lease(1, 0), BoxPhase::Ready)));
    agent.step(1, Input::Observed(observed(lease(1, 1), BoxPhase::Exited { exit_code: 0 })));
    for n in [0, 1] {
        agent.step(2, Input::Gone { lease: lease(1, n), last: None, reason: "killed".into() });
    }
    assert_eq!(phase(&agent, lease(1, 0)), BoxPhase::Lost { reason: "killed".into() });
    assert_eq!(phase(&agent, lease(1, 1)), BoxPhase::Exited { exit_code: 0 }, "it had ended before");
    let outputs = tell(&mut agent, 1, 2, vec![wanted(lease(1, 0)), wanted(lease(1, 1))], vec![]);
    assert!(started(&outputs).is_empty());
}

#[test]
fn without_enforced_limits_a_second_tenant_is_refused_and_the_first_may_grow() {
    let mut agent = agent_with(AgentConfig { enforced: false, ..config() });
    let all = vec![wanted(lease(1, 0)), wanted(lease(2, 0)), wanted(lease(1, 1))];
    assert_eq!(started(&tell(&mut agent, 1, 1, all, vec![])), [lease(1, 0), lease(1, 1)]);
    let BoxPhase::Lost { reason } = phase(&agent, lease(2, 0)) else { panic!("a second tenant") };
    assert!(reason.contains("one tenant"), "{reason}");
}

#[test]
fn gpus_are_shared_out_once_each() {
    let mut agent = agent_with(config());
    let hungry = |n| {
        let mut it = wanted(lease(n, 0));
        it.resources.gpus = 1;
        it
    };
    let outputs = tell(&mut agent, 1, 1, vec![hungry(1), hungry(2), hungry(3)], vec![]);
    assert_eq!(started(&outputs), [lease(1, 0), lease(2, 0)]);
    let expected = BTreeMap::from([
        (lease(1, 0), vec!["g0".to_owned()]),
        (lease(2, 0), vec!["g1".to_owned()]),
        (lease(3, 0), vec![]),
    ]);
    assert_eq!(agent.saved().gpus, expected);
    assert!(matches!(phase(&agent, lease(3, 0)), BoxPhase::Lost { reason } if reason.contains("GPUs")));
}

#[test]
fn a_ping_is_answered_and_nothing_is_said_while_the_link_is_down() {
    let mut agent = agent_with(config());
    let ping = || Input::FromServer(ToWorker::Ping { n: 4, payload: "x".into() });
    assert!(agent.step(0, ping()).is_empty());
    let hello = agent.step(0, Input::LinkUp);
    assert!(matches!(hello[0], Output::Send(FromWorker::Hello { .. })));
    assert_eq!(agent.step(1, ping()), [Output::Send(FromWorker::Pong { n: 4, payload: "x".into() })]);
    let mut outputs = agent.step(OBSERVED_EVERY_MS, Input::Tick);
    // Seconds after joining its links are measured, too.
    outputs.retain(|output| *output != Output::MeasureLinks);
    assert_eq!(outputs, [Output::Send(FromWorker::Observed(vec![]))]);
}

#[test]
fn a_check_runs_once_at_a_time() {
    let mut agent = agent_with(config());
    agent.step(0, Input::LinkUp);
    let check = || Input::FromServer(ToWorker::Check);
    assert_eq!(agent.step(1, check()), [Output::RunCheck]);
    assert!(agent.step(2, check()).is_empty());
    let outputs = agent.step(3, Input::CheckDone(Err("no disk".into())));
    assert_eq!(outputs, [Output::Send(FromWorker::Checked(Err("no disk".into())))]);
    assert_eq!(agent.step(4, check()), [Output::RunCheck]);
}

#[test]
fn the_machine_yields_after_half_a_minute_of_other_use_and_returns_after_a_whole_one() {
    let mut agent = agent_with(AgentConfig { yield_cpu_percent: Some(40), ..config() });
    agent.step(0, Input::LinkUp);
    let mut turns = Vec::new();
    for second in (0..200u64).step_by(5) {
        let busy = (20..100).contains(&second) || second == 120;
        let foreign_cpu_percent = if busy { 41 } else { 40 };
        let input = Input::Telemetry(Telemetry { foreign_cpu_percent, ..Telemetry::default() });
        for output in agent.step(second * 1_000, input) {
            if let Output::Send(FromWorker::Yielding(on)) = output {
                turns.push((second, on));
            }
        }
    }
    assert_eq!(turns, [(50, true), (185, false)]);
}

/// What a server and a machine may do, in any order.
#[derive(Clone, Debug)]
enum Event {
    Desired { term: u64, n: u64, leases: Vec<u32>, ended: Vec<u32> },
    Ready(u32),
    Wiped(u32),
    Gone(u32),
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let some = || prop::collection::vec(0u32..6, 0..4);
    prop_oneof![
        3 => (1u64..4, 0u64..5, some(), some()).prop_map(|(term, n, leases, ended)| {
            let ended = ended.into_iter().filter(|l| !leases.contains(l)).collect();
            Event::Desired { term, n, leases, ended }
        }),
        2 => (0u32..6).prop_map(Event::Ready),
        1 => (0u32..6).prop_map(Event::Wiped),
        1 => (0u32..6).prop_map(Event::Gone),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_lease_starts_twice_or_ends_unasked_and_a_restart_forgets_nothing(
        events in prop::collection::vec(event(), 1..40)
    ) {
        let mut agent = agent_with(config());
        let mut saved = agent.saved().clone();
        let (mut ever_started, mut ever_ended) = (BTreeSet::new(), BTreeSet::new());
        for (at, event) in events.into_iter().enumerate() {
            let now_ms = at as u64;
            let input = match event {
                Event::Desired { term, n, leases, ended } => {
                    let before = agent.saved().desired.clone();
                    let next = desired(
                        term,
                        n,
                        leases.into_iter().map(|n| wanted(lease(1, n))).collect(),
                        ended.into_iter().map(|n| lease(1, n)).collect(),
                    );
                    if next.generation >= before.generation {
                        ever_ended.extend(next.ended.clone());
                    }
                    Input::FromServer(ToWorker::Desired(next))
                }
                Event::Ready(n) => Input::Observed(observed(lease(1, n), BoxPhase::Ready)),
                Event::Wiped(n) if ever_started.contains(&lease(1, n)) => {
                    Input::Observed(observed(lease(1, n), wiped()))
                }
                Event::Gone(n) if ever_started.contains(&lease(1, n)) => {
                    Input::Gone { lease: lease(1, n), last: None, reason: "killed".into() }
                }
                Event::Wiped(_) | Event::Gone(_) => Input::Tick,
                Event::Restart => {
                    prop_assert_eq!(&saved, agent.saved(), "all that is needed was given out to be kept");
                    let found = ever_started.iter().copied();
                    agent = Agent::new(DeviceId::from_parts(1, 1), config(), saved.clone(), found);
                    Input::Tick
                }
            };
            let before = agent.saved().desired.generation;
            let outputs = agent.step(now_ms, input);
            prop_assert!(agent.saved().desired.generation >= before);
            for output in &outputs {
                if let Output::Persist(kept) = output {
                    saved = (**kept).clone();
                }
            }
            for lease in started(&outputs) {
                prop_assert!(agent.saved().desired.leases.iter().any(|l| l.lease == lease));
                prop_assert!(ever_started.insert(lease), "{} was started twice", lease);
            }
            for lease in removed(&outputs) {
                prop_assert!(ever_ended.contains(&lease), "{} was ended unasked", lease);
            }
        }
    }
}
