//! The Ray engine: settings of one node, and what its boot script reports.
//!
//! Always holds: every port that Ray lets one choose is pinned (see `rayboot.py`); the token is in the
//! environment of every process and on no command line; failure-detection settings are the same on all
//! nodes. A head is ready when its Jobs API and its client port answer, which is after a first task ran
//! on every member; a member is ready when its node is up.

use serde::Deserialize;
use serde_json::json;

use super::{Program, State};
use crate::{
    bwrap::ENVIRONMENT,
    sandbox::{BoxSpec, FailureDetection, Phase, Role, Secret, Timeline},
};

/// Port of the dashboard and the Jobs API on the head.
pub const DASHBOARD_PORT: u16 = 8265;
/// Port of Ray Client on the head.
pub const CLIENT_PORT: u16 = 10001;
/// Port of `JupyterLab` on the head.
pub const JUPYTER_PORT: u16 = 8888;

const BOOT_SCRIPT: &str = include_str!("rayboot.py");
const BOOT_PLACE: &str = "/run/rayboot.py";

/// Ray keeps this much of the box's memory for its object store, at most.
const OBJECT_STORE_SHARE_PERCENT: u64 = 30;
const OBJECT_STORE_MIN_BYTES: u64 = 80 << 20;
/// What Ray's own processes need; the rest is offered to tasks.
const OVERHEAD_BYTES: u64 = 600 << 20;

/// Bytes of the box's memory that the object store gets.
pub(crate) fn object_store_bytes(memory_bytes: u64) -> u64 {
    (memory_bytes / 100 * OBJECT_STORE_SHARE_PERCENT).max(OBJECT_STORE_MIN_BYTES)
}

/// What one node is asked for, besides the box's spec.
pub(crate) struct Node<'a> {
    pub(crate) role: Role,
    pub(crate) jupyter: bool,
    pub(crate) token: &'a Secret,
    pub(crate) failure_detection: FailureDetection,
    pub(crate) fast_start: bool,
}

/// The boot script with its settings.
pub(crate) fn program(spec: &BoxSpec, node: &Node<'_>) -> Program {
    let memory = spec.limits.memory_bytes;
    let object_store = object_store_bytes(memory);
    let boot = json!({
        "role": node.role,
        "ip": spec.ip,
        "head_ip": spec.head_ip,
        "members": spec.members,
        "num_cpus": (spec.limits.cpu_millis / 1000).max(1),
        "num_gpus": spec.limits.gpus.len(),
        "memory": memory.saturating_sub(object_store + OVERHEAD_BYTES).max(128 << 20),
        "object_store_memory": object_store,
        "jupyter": node.jupyter && node.role == Role::Head,
        "fast": node.fast_start,
    });
    let mut variables = failure_settings(node.failure_detection);
    variables.extend(
        [
            ("IONET_RAY_BOOT", boot.to_string().as_str()),
            ("RAY_AUTH_MODE", "token"),
            ("RAY_AUTH_TOKEN", node.token.expose()),
            ("RAY_USAGE_STATS_ENABLED", "0"),
            ("RAY_ADDRESS", &format!("{}:6379", spec.head_ip)),
            // A box has no way out, so Ray must not wait for what it would fetch.
            ("RAY_DISABLE_IMPORT_WARNING", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    Program {
        argv: vec![format!("{ENVIRONMENT}/bin/python"), BOOT_PLACE.into()],
        variables,
        files: vec![(BOOT_PLACE, BOOT_SCRIPT)],
        reports_progress: true,
    }
}

/// With these a silent node is dead in 10 s near by, in 30 s far away.
fn failure_settings(detection: FailureDetection) -> Vec<(String, String)> {
    let factor = match detection {
        FailureDetection::Lan => 1,
        FailureDetection::Wan => 3,
    };
    let timed = [
        ("RAY_health_check_initial_delay_ms", 2000),
        ("RAY_health_check_period_ms", 2000),
        ("RAY_health_check_timeout_ms", 2000),
        ("RAY_grpc_client_keepalive_time_ms", 3000),
        ("RAY_grpc_client_keepalive_timeout_ms", 4000),
    ];
    timed
        .into_iter()
        .map(|(name, value_ms)| (name.to_owned(), (value_ms * factor).to_string()))
        .chain([("RAY_health_check_failure_threshold".to_owned(), "3".to_owned())])
        .collect()
}

/// A line of the boot script.
#[derive(Deserialize)]
struct Progress {
    stage: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
}

/// A node that is starting or running.
#[derive(Debug)]
pub(crate) struct RayRun {
    role: Role,
    phase: Phase,
    timeline: Timeline,
    fallback: Option<String>,
}

impl RayRun {
    pub(crate) fn new(role: Role) -> Self {
        Self { role, phase: Phase::Starting, timeline: Timeline::default(), fallback: None }
    }

    /// Why plain `ray start` was used although the fast start was asked for.
    pub(crate) fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    pub(crate) fn line(&mut self, line: &str, now_ms: u64) {
        // Customer code could write here too; what is no progress is ignored.
        let Ok(progress) = serde_json::from_str::<Progress>(line) else { return };
        let part = match progress.stage.as_str() {
            "node" => &mut self.timeline.engine_ms,
            "first_task" => &mut self.timeline.first_task_ms,
            "jobs_api" => &mut self.timeline.jobs_api_ms,
            "client" => &mut self.timeline.client_ms,
            "fallback" => {
                self.fallback = Some(progress.reason);
                return;
            }
            "failed" => {
                self.phase = Phase::Failed { code: progress.code, message: progress.message };
                return;
            }
            _ => return,
        };
        part.get_or_insert(now_ms);
        if self.phase == Phase::Starting && self.is_up() {
            self.phase = Phase::Ready;
        }
    }

    fn is_up(&self) -> bool {
        let t = &self.timeline;
        match self.role {
            Role::Head => t.first_task_ms.and(t.jobs_api_ms).and(t.client_ms).is_some(),
            Role::Member => t.engine_ms.is_some(),
        }
    }

    pub(crate) fn exited(&mut self, code: i32) {
        if !matches!(self.phase, Phase::Failed { .. }) {
            let message = format!("the Ray node's boot program ended with code {code}; see the box's log");
            self.phase = Phase::Failed { code: "ray_node_died".into(), message };
        }
    }

    pub(crate) fn state(&self) -> State {
        State { phase: self.phase.clone(), timeline: self.timeline.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_ready_only_when_every_service_answers_and_noise_is_ignored() {
        let mut run = RayRun::new(Role::Head);
        let lines = [
            "noise",
            "{}",
            r#"{"stage":"node","ms":1}"#,
            r#"{"stage":"first_task"}"#,
            r#"{"stage":"client"}"#,
        ];
        for (n, line) in lines.iter().enumerate() {
            run.line(line, n as u64);
            assert_eq!(run.state().phase, Phase::Starting, "{line}");
        }
        run.line(r#"{"stage":"jobs_api"}"#, 9);
        assert_eq!(run.state().phase, Phase::Ready);
        assert_eq!(run.state().timeline.jobs_api_ms, Some(9));
        run.line(r#"{"stage":"failed","code":"ray_node_died","message":"raylet"}"#, 10);
        run.exited(1);
        assert_eq!(
            run.state().phase,
            Phase::Failed { code: "ray_node_died".into(), message: "raylet".into() }
        );
    }

    #[test]
    fn a_wide_area_waits_three_times_as_long() {
        let value = |detection, name: &str| {
            failure_settings(detection).into_iter().find(|(n, _)| n == name).map(|(_, v)| v)
        };
        let name = "RAY_health_check_period_ms";
        assert_eq!(value(FailureDetection::Lan, name).as_deref(), Some("2000"));
        assert_eq!(value(FailureDetection::Wan, name).as_deref(), Some("6000"));
    }
}
