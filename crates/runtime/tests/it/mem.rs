//! The in-memory twin keeps the promises of the seam under any order of events.

use ionet_runtime::{
    mem::MemHost,
    sandbox::{BoxSpec, Engine, Phase, Sandbox as _, check_box_kind},
};
use proptest::prelude::*;

use crate::support::shell_spec;

fn phases(host: &MemHost) -> Vec<Phase> {
    host.sandbox().observe().into_iter().map(|report| report.phase).collect()
}

#[test]
fn a_box_outlives_its_agent_and_becomes_ready_in_its_time() {
    let host = MemHost::new(100);
    let spec = shell_spec("a", "true");
    host.sandbox().ensure(&spec).unwrap();
    assert_eq!(phases(&host), [Phase::Starting]);
    host.advance(100);
    // Another handle: the agent was started again.
    host.sandbox().ensure(&spec).unwrap();
    let report = host.sandbox().observe().remove(0);
    assert_eq!((report.phase, report.ready_ms), (Phase::Ready, Some(100)));
    host.exit(&spec.lease, 3);
    assert_eq!(phases(&host), [Phase::Exited { code: 3 }]);
}

#[test]
fn it_can_fail_die_and_lie() {
    let host = MemHost::new(0);
    let (a, b) = (shell_spec("a", "true"), shell_spec("b", "true"));
    host.refuse(Some("no room"));
    assert_eq!(host.sandbox().ensure(&a).unwrap_err().code(), "box_helper");
    host.refuse(None);
    host.sandbox().ensure(&a).unwrap();
    host.sandbox().ensure(&b).unwrap();
    host.lie(&a.lease, Some(Phase::Starting));
    host.lose(&b.lease);
    assert_eq!(phases(&host), [Phase::Starting]);
    host.lie(&a.lease, None);
    assert_eq!(phases(&host), [Phase::Ready]);
    host.power_loss();
    assert!(matches!(phases(&host)[0], Phase::Failed { .. }) && host.running().is_empty());
}

#[test]
fn what_cannot_be_run_is_refused_by_name_with_the_reason() {
    for (refused, name) in [
        (Engine::check_name("kubernetes"), "kubernetes"),
        (Engine::check_name("container"), "container"),
        (Engine::check_name("vm"), "vm"),
        (check_box_kind("podman"), "podman"),
    ] {
        let error = refused.unwrap_err();
        assert!(error.code().ends_with("_unavailable") && error.to_string().contains(name), "{error}");
    }
    Engine::check_name("ray").unwrap();
    let spec = shell_spec("a", "true");
    let broken: [fn(&mut BoxSpec); 6] = [
        |s| s.lease = "../etc".into(),
        |s| s.prefix = 0,
        |s| s.mtu = 1,
        |s| s.head_ip = [192, 168, 0, 1].into(),
        |s| s.limits.memory_bytes = 0,
        |s| s.engine = Engine::Command { argv: Vec::new(), env: Vec::new() },
    ];
    for change in broken {
        let mut spec = spec.clone();
        change(&mut spec);
        assert_eq!(spec.check().unwrap_err().code(), "box_spec_invalid", "{spec:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ensure(u8),
    Remove(u8),
    Exit(u8),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..4u8).prop_map(Step::Ensure),
        (0..4u8).prop_map(Step::Remove),
        (0..4u8).prop_map(Step::Exit),
        (0..50u64).prop_map(Step::Advance),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn repeating_any_step_changes_nothing_and_what_ended_stays_ended(steps in steps()) {
        let host = MemHost::new(20);
        let mut now_ms = 0;
        let mut ended = std::collections::BTreeSet::new();
        for step in steps {
            let mut observed = Vec::new();
            for _ in 0..2 {
                match &step {
                    Step::Ensure(n) => host.sandbox().ensure(&shell_spec(&n.to_string(), "true")).unwrap(),
                    Step::Remove(n) => {
                        host.sandbox().remove(&shell_spec(&n.to_string(), "").lease, "test").unwrap();
                    }
                    Step::Exit(n) => host.exit(&shell_spec(&n.to_string(), "").lease, 0),
                    Step::Advance(ms) => host.advance(now_ms + ms),
                }
                observed.push(host.sandbox().observe());
            }
            prop_assert_eq!(&observed[0], &observed[1]);
            if let Step::Advance(ms) = step {
                now_ms += ms;
            }
            for report in &observed[0] {
                let over = matches!(report.phase, Phase::Exited { .. } | Phase::Removed { .. });
                prop_assert!(over || !ended.contains(&report.lease));
                if over {
                    ended.insert(report.lease.clone());
                }
            }
        }
    }
}
