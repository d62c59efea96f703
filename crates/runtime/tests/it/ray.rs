//! A real Ray cluster of two boxes on this machine, joined by the simplest overlay there is.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ionet_runtime::{
    environment::{self, Environment},
    lease_box::LeaseBox,
    sandbox::{BoxReport, BoxSpec, Engine, FailureDetection, Limits, Phase, Role, Secret},
};

use crate::support::{Site, unique, wait_for};

const TOKEN: &str = "a-token-for-the-tests-of-ray";
const HEAD: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const MEMBER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// Two clusters at once would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The environment is kept between runs: making it is measured in minutes on a cold machine.
fn environments() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("environments");
    let environment = Environment::named("ray").unwrap();
    let (_wanted, stop) = environment::wanted();
    environment::prepare(&folder, environment, &stop, &mut |percent, step| {
        println!("{percent:3} % {step}");
    })
    .unwrap();
    folder
}

fn ray_spec(lease: &str, role: Role, fast_start: bool) -> BoxSpec {
    BoxSpec {
        lease: unique(lease),
        engine: Engine::Ray {
            environment: Environment::named("ray").unwrap().reference(),
            role,
            jupyter: false,
            token: Secret::new(TOKEN),
            failure_detection: FailureDetection::Lan,
            fast_start,
        },
        ip: if role == Role::Head { HEAD } else { MEMBER },
        ip6: None,
        prefix: 24,
        mtu: 1280,
        head_ip: HEAD,
        members: 2,
        limits: Limits {
            cpu_millis: 1000,
            memory_bytes: 3 << 30,
            processes: 2000,
            disk_bytes: 4 << 30,
            gpus: Vec::new(),
        },
    }
}

/// Every packet that leaves one box enters the other.
fn wire_together(a: OwnedFd, b: OwnedFd) {
    let forward = |mut from: File, mut to: File| {
        thread::spawn(move || {
            let mut packet = vec![0; 65536];
            while let Ok(bytes @ 1..) = from.read(&mut packet) {
                // A box that is gone is noticed by its reader.
                let _ = to.write_all(&packet[..bytes]);
            }
        });
    };
    let (a, b) = (File::from(a), File::from(b));
    forward(a.try_clone().unwrap(), b.try_clone().unwrap());
    forward(b, a);
}

struct Cluster {
    head: LeaseBox,
    member: LeaseBox,
    _site: Site,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    fn start(fast_start: bool) -> Self {
        Self::start_with(&environments(), fast_start)
    }

    fn start_with(environments: &Path, fast_start: bool) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut site = Site::new();
        site.environments = environments.into();
        let (head, head_tun) = site.start(ray_spec("head", Role::Head, fast_start));
        let (member, member_tun) = site.start(ray_spec("member", Role::Member, fast_start));
        wire_together(head_tun.overlay, member_tun.overlay);
        Self { head, member, _site: site, _alone: alone }
    }

    /// Until the head is ready; prints the parts.
    fn ready(&mut self, name: &str) -> BoxReport {
        let deadline = Instant::now() + Duration::from_mins(2);
        loop {
            let member = self.member.poll(Instant::now());
            let report = self.head.poll(Instant::now());
            if report.phase == Phase::Ready {
                println!("{name}: head {:?} member {:?}", report.timeline, member.timeline);
                return report;
            }
            let failed = [&report, &member].iter().any(|r| matches!(r.phase, Phase::Failed { .. }));
            assert!(
                !failed && Instant::now() < deadline,
                "{report:?} {member:?}\n-- head:\n{}\n-- member:\n{}",
                self.head.log_tail(6000),
                self.member.log_tail(6000)
            );
            thread::sleep(Duration::from_millis(20)); // poll
        }
    }

    fn remove(self) {
        let receipts = [self.member.remove().unwrap(), self.head.remove().unwrap()];
        assert!(receipts.iter().all(|r| r.finished && r.files > 0), "{receipts:?}");
    }

    /// One HTTP exchange with the dashboard: status and body.
    fn http(&self, request: &str, token: Option<&str>, body: &str) -> (u16, String) {
        let mut stream = self.head.connector().connect(HEAD, 8265, Duration::from_secs(5)).unwrap();
        let token = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
        let length = body.len();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: head\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{token}\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn submit(&self, id: &str, code: &str) {
        let body = serde_json::json!({ "entrypoint": format!("python -c '{code}'"), "submission_id": id });
        let (status, answer) = self.http("POST /api/jobs/", Some(TOKEN), &body.to_string());
        assert_eq!(status, 200, "{answer}");
    }

    fn run_job(&self, code: &str) -> String {
        self.submit("job-1", code);
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let (_, info) = self.http("GET /api/jobs/job-1", Some(TOKEN), "");
            if info.contains("SUCCEEDED") {
                return self.http("GET /api/jobs/job-1/logs", Some(TOKEN), "").1;
            }
            assert!(!info.contains("FAILED") && Instant::now() < deadline, "{info}");
            thread::sleep(Duration::from_millis(100)); // poll
        }
    }
}

const BOTH_NODES: &str = r#"
import ray, time
ray.init()
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(1)
    return ray.util.get_node_ip_address()
print("nodes", sorted(set(ray.get([where.remote() for _ in range(8)]))))
"#;

const KILL_THE_CONTROL_STORE: &str = r#"
import os
for pid in (int(n) for n in os.listdir("/proc") if n.isdigit()):
    if open(f"/proc/{pid}/comm").read().startswith("gcs_server"):
        os.kill(pid, 9)
"#;

#[test]
fn two_boxes_become_a_cluster_fast_and_run_a_job() {
    let mut cluster = Cluster::start(true);
    let report = cluster.ready("fast start");
    assert_eq!(cluster.head.fallback(), None);
    assert!(report.timeline.first_task_ms.is_some());
    assert_eq!(cluster.http("GET /api/jobs/", None, "").0, 401);
    assert_eq!(cluster.http("GET /api/jobs/", Some("wrong"), "").0, 403);
    let output = cluster.run_job(BOTH_NODES);
    assert!(output.contains("10.78.0.1") && output.contains("10.78.0.2"), "{output}");
    cluster.submit("job-2", KILL_THE_CONTROL_STORE);
    let report = wait_for(&mut cluster.head, 60, |r| r.phase != Phase::Ready);
    assert!(matches!(&report.phase, Phase::Failed { code, .. } if code == "ray_node_died"), "{report:?}");
    cluster.head.restart_engine(Instant::now()).unwrap();
    cluster.member.restart_engine(Instant::now()).unwrap();
    cluster.ready("restarted after the head was lost");
    cluster.remove();
}

#[test]
fn plain_ray_start_gives_the_same_cluster() {
    let mut cluster = Cluster::start(false);
    cluster.ready("plain ray start");
    assert_eq!(cluster.http("GET /api/jobs/", None, "").0, 401);
    cluster.remove();
}

#[test]
fn another_version_of_ray_falls_back_to_plain_start_by_itself() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let name = environment::folder_name(&Environment::named("ray").unwrap().reference());
    // Links cost nothing; the one file that differs is replaced, not written through.
    let copied = Command::new("cp").arg("-al").args([&environments().join(&name), folder.path()]).status();
    assert!(copied.unwrap().success());
    let version = folder.path().join(&name).join("lib/python3.11/site-packages/ray/_version.py");
    let text = fs::read_to_string(&version).unwrap();
    fs::remove_file(&version).unwrap();
    fs::write(&version, text.replace("2.60.0", "2.60.999")).unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let mut cluster = Cluster::start_with(folder.path(), true);
    cluster.ready("fall-back");
    let reason = cluster.head.fallback().unwrap();
    assert!(reason.contains("2.60.999"), "{reason}");
    cluster.remove();
}
