//! One lease's logic: what is counted, what is refused, when it ends.

use ionet_api::sign::{self, Usage};
use ionet_api::worker::{BoxPhase, ObservedLease};
use ionet_domain::market::EngineKind;
use ionet_domain::order::WipeReceipt;
use ionet_runtime::limits::Enforcement;
use ionet_runtime::sandbox::{BoxReport, Phase, Timeline};
use ionet_worker::assignment::Assignment;
use ionet_worker::supervision::{Input, Output, PAID_TIME_OVER, Progress, RECEIPT_EVERY_MS, Supervision};
use proptest::prelude::*;

use crate::fixtures::{NETWORK, assignment, lease, lease_key, member, wanted, with_members};

fn begin(assignment: Assignment) -> Supervision {
    Supervision::new(assignment, lease_key(), Progress::default(), 0)
}

fn report(phase: Phase) -> Input {
    Input::Box(BoxReport {
        lease: String::new(),
        phase,
        timeline: Timeline::default(),
        enforcement: Enforcement::Cgroup2,
        started_ms: 0,
        ready_ms: None,
    })
}

fn failed(code: &str) -> Input {
    report(Phase::Failed { code: code.into(), message: "m".into() })
}

fn running(mut it: Assignment) -> Assignment {
    it.lease.running = true;
    it
}

fn ray() -> Assignment {
    let mut it = assignment(wanted(lease(1, 0)));
    it.lease.engine = EngineKind::Ray;
    it.lease.program.argv.clear();
    it.lease.resources.memory_bytes = 2 << 30;
    it
}

fn reported(outputs: &[Output]) -> Option<&ObservedLease> {
    outputs.iter().find_map(|output| match output {
        Output::Report(observed) => Some(&**observed),
        _ => None,
    })
}

fn wipe() -> WipeReceipt {
    WipeReceipt { files: 1, bytes: 2, processes_killed: 0, method: "m".into() }
}

#[test]
fn the_way_of_a_lease() {
    let mut it = begin(assignment(wanted(lease(1, 0))));
    let outputs = it.step(0, Input::Tick);
    assert!(matches!(outputs[0], Output::StartBox(_)), "{outputs:?}");
    assert_eq!(reported(&it.step(100, report(Phase::Ready))).unwrap().phase, BoxPhase::Ready);
    // Ready, but paid time was not told to run.
    it.step(9_000, Input::Tick);
    assert_eq!((it.elapsed_ms(), it.observed().receipt), (0, None));
    it.step(10_000, Input::Assigned(Box::new(running(it.assignment().clone()))));
    it.step(12_500, report(Phase::Exited { code: 7 }));
    it.step(30_000, Input::Tick);
    let observed = it.observed();
    assert_eq!(observed.phase, BoxPhase::Exited { exit_code: 7 });
    assert_eq!(observed.receipt.as_ref().unwrap().elapsed_ms, 2_500);
    assert!(
        it.step(31_000, Input::Remove).contains(&Output::RemoveBox { reason: "removed as asked".into() })
    );
    assert!(it.step(31_500, Input::Remove).is_empty(), "asking twice changes nothing");
    let outputs = it.step(32_000, Input::Wiped(wipe()));
    assert_eq!(reported(&outputs).unwrap().phase, BoxPhase::Removed { wipe: wipe() });
    assert_eq!(outputs.last(), Some(&Output::Finish));
}

#[test]
fn paid_time_and_grace_end_a_lease_by_themselves() {
    let mut it = begin(running(assignment(wanted(lease(1, 0)))));
    it.step(0, report(Phase::Ready));
    it.step(60_000, Input::Tick);
    assert_eq!(it.elapsed_ms(), 60_000);
    assert_eq!(it.observed().phase, BoxPhase::Ready, "the grace holds it");
    let outputs = it.step(70_000, Input::Tick);
    assert!(outputs.contains(&Output::RemoveBox { reason: PAID_TIME_OVER.into() }), "{outputs:?}");
    let observed = reported(&outputs).unwrap();
    assert_eq!(observed.phase, BoxPhase::Lost { reason: PAID_TIME_OVER.into() });
    assert_eq!(observed.receipt.as_ref().unwrap().elapsed_ms, 60_000, "the grace costs nothing");
}

#[test]
fn an_extension_in_the_grace_goes_on_counting() {
    let mut it = begin(running(assignment(wanted(lease(1, 0)))));
    it.step(0, report(Phase::Ready));
    it.step(65_000, Input::Tick);
    let mut longer = it.assignment().clone();
    longer.lease.paid_ms = 120_000;
    it.step(66_000, Input::Assigned(Box::new(longer)));
    it.step(106_000, Input::Tick);
    assert_eq!(it.elapsed_ms(), 100_000);
    it.step(126_000, Input::Tick);
    assert_eq!(it.observed().phase, BoxPhase::Ready);
    assert!(matches!(it.step(136_001, Input::Tick)[0], Output::RemoveBox { .. }));
}

#[test]
fn a_box_that_nobody_ever_lets_run_ends_too() {
    let mut it = begin(assignment(wanted(lease(1, 0))));
    it.step(0, report(Phase::Ready));
    it.step(70_000, Input::Tick);
    assert_eq!(it.observed().phase, BoxPhase::Ready);
    assert!(it.step(70_001, Input::Tick).iter().any(|o| matches!(o, Output::RemoveBox { .. })));
    assert_eq!(it.elapsed_ms(), 0);
}

#[test]
fn member_lists_older_badly_signed_or_foreign_are_refused() {
    let id = lease(1, 0);
    let list = |generation, n| {
        let members = [id, lease(1, n)].map(|l| member(l, None)).to_vec();
        assignment(with_members(wanted(id), generation, members))
    };
    let mut it = begin(list(5, 1));
    it.step(0, Input::Tick);
    let mut forged = list(6, 2);
    forged.lease.members.members[1].ip = [10, 77, 9, 9].into();
    let mut foreign = list(6, 2);
    foreign.lease.lease = lease(2, 0);
    for refused in [list(4, 2), forged, foreign] {
        let outputs = it.step(1, Input::Assigned(Box::new(refused)));
        assert!(matches!(outputs[0], Output::Warn(_)), "{outputs:?}");
        assert_eq!(it.assignment(), &list(5, 1));
    }
    let outputs = it.step(2, Input::Assigned(Box::new(list(6, 2))));
    assert!(matches!(outputs[0], Output::SaveAssignment(_)), "{outputs:?}");
    // The list that the lease began with counts too.
    let mut forged = list(1, 1);
    forged.lease.members_signature = "00".repeat(64);
    let mut it = begin(forged);
    assert!(!it.step(0, Input::Tick).iter().any(|o| matches!(o, Output::StartBox(_))));
    assert!(matches!(it.observed().phase, BoxPhase::Lost { reason } if reason.contains("signature")));
}

#[test]
fn a_dead_ray_engine_is_started_again_three_times_and_a_new_epoch_begins_anew() {
    let mut it = begin(running(ray()));
    it.step(0, report(Phase::Ready));
    let mut now_ms = 0;
    for back_off_ms in [1_000, 2_000, 4_000] {
        it.step(now_ms, failed("ray_node_died"));
        now_ms += back_off_ms;
        assert!(!it.step(now_ms - 1, Input::Tick).contains(&Output::RestartEngine));
        assert!(it.step(now_ms, Input::Tick).contains(&Output::RestartEngine));
        it.step(now_ms, report(Phase::Ready));
    }
    assert_eq!(it.observed().engine_restarts, 3);
    let mut next = it.assignment().clone();
    next.lease.engine_epoch = 1;
    assert!(it.step(now_ms, Input::Assigned(Box::new(next.clone()))).contains(&Output::RestartEngine));
    assert!(!it.step(now_ms, Input::Assigned(Box::new(next))).contains(&Output::RestartEngine));
    for _ in 0..4 {
        it.step(now_ms, failed("ray_node_died"));
        now_ms += 8_000;
        it.step(now_ms, Input::Tick);
    }
    assert!(matches!(it.observed().phase, BoxPhase::Lost { reason } if reason.starts_with("ray_node_died")));
}

#[test]
fn a_command_or_a_broken_box_is_never_started_again() {
    for (assignment, code) in [(assignment(wanted(lease(1, 0))), "ray_node_died"), (ray(), "box_lost")] {
        let mut it = begin(assignment);
        it.step(0, report(Phase::Ready));
        it.step(1, failed(code));
        let outputs = it.step(60_000, Input::Tick);
        assert!(!outputs.contains(&Output::RestartEngine));
        assert!(matches!(it.observed().phase, BoxPhase::Lost { .. }));
    }
}

#[test]
fn a_supervisor_goes_on_from_what_was_saved() {
    let mut it = begin(running(assignment(wanted(lease(1, 0)))));
    it.step(0, report(Phase::Ready));
    let outputs = it.step(RECEIPT_EVERY_MS, Input::Heard([1].into()));
    let saved = outputs.iter().find_map(|o| match o {
        Output::Save(progress) => Some((**progress).clone()),
        _ => None,
    });
    let saved = saved.unwrap();
    assert_eq!(saved.receipt.as_ref().unwrap().heard, vec![1]);
    let mut again = Supervision::new(it.assignment().clone(), lease_key(), saved, 1_000_000);
    again.step(1_000_000, report(Phase::Ready));
    again.step(1_001_000, Input::Tick);
    assert_eq!(again.elapsed_ms(), RECEIPT_EVERY_MS + 1_000);
}

/// A step of the clock, which may stand still or jump, and what is seen then.
fn events() -> impl Strategy<Value = Vec<(i64, u8)>> {
    prop::collection::vec((-20_000i64..50_000, 0u8..5), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn elapsed_never_exceeds_time_or_money_and_receipts_only_grow(events in events(), grace_ms in 0u64..30_000) {
        let mut wanted = wanted(lease(1, 0));
        wanted.grace_ms = grace_ms;
        let mut it = begin(running(assignment(wanted)));
        let (mut clock, mut latest, mut last_receipt_ms) = (0i64, 0u64, 0u64);
        for (jump, what) in events {
            clock = (clock + jump).max(0);
            let now_ms = clock.unsigned_abs();
            latest = latest.max(now_ms);
            let input = match what {
                0 => Input::Tick,
                1 => report(Phase::Starting),
                2 => report(Phase::Ready),
                3 => Input::Heard([3].into()),
                _ => Input::Assigned(Box::new(it.assignment().clone())),
            };
            let outputs = it.step(now_ms, input);
            prop_assert!(it.elapsed_ms() <= latest);
            prop_assert!(it.elapsed_ms() <= it.assignment().lease.paid_ms);
            if let Some(receipt) = reported(&outputs).and_then(|observed| observed.receipt.clone()) {
                prop_assert!(receipt.elapsed_ms >= last_receipt_ms);
                last_receipt_ms = receipt.elapsed_ms;
                let usage = Usage { lease: receipt.lease, elapsed_ms: receipt.elapsed_ms, heard: receipt.heard };
                let signed = sign::verify(lease_key().address(), NETWORK, &usage, &receipt.signature);
                prop_assert_eq!(signed, Ok(()));
            }
        }
    }
}
