//! Agent, supervisors and boxes as real processes.

use std::path::PathBuf;
use std::time::Duration;

use ionet_api::sign::{self, Usage};
use ionet_api::worker::{BoxPhase, DesiredLease, FromWorker, ToWorker};
use ionet_domain::tunnel::Service;
use ionet_domain::{Address, LeaseId};
use ionet_net::tunnel::{self, TunnelStream};
use ionet_net::{EndpointKey, Node, NodeConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fixtures::{NETWORK, wanted};
use crate::server::{Site, addr_of, eventually, processes_with, rss_bytes};

const FAR_MS: u64 = u64::MAX / 2;

fn shell(lease: LeaseId, script: &str) -> DesiredLease {
    let mut it = wanted(lease);
    it.program.argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    it
}

/// Control groups of this machine whose path ends so.
fn groups_named(end: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
        if folder.to_string_lossy().ends_with(end) {
            found.push(folder);
        }
    }
    found
}

async fn client() -> Node {
    Node::bind(&EndpointKey::generate().unwrap(), NodeConfig::default()).await.unwrap()
}

async fn read_all(mut stream: TunnelStream) -> String {
    let mut text = Vec::new();
    // A service that is ended hangs up in the middle.
    let _ = tokio::time::timeout(Duration::from_mins(1), stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_from_start_to_wipe() {
    let site = Site::new().await;
    let worker = site.worker().await;
    eventually("the worker links", || site.hellos() == 1).await;
    assert_eq!(site.enrolled()[0].enrolment.device, worker.device());
    let id = site.lease(0);
    let mut wanted = shell(id, "echo hello; until [ -e go ]; do sleep 0.05; done; echo bye; exit 7");
    site.want(vec![wanted.clone()], vec![]).await;
    let ready = site.until_phase(id, &BoxPhase::Ready).await;
    assert!(ready.receipt.is_none());
    wanted.running = true;
    site.want(vec![wanted.clone()], vec![]).await;
    eventually("paid time runs", || site.brief(id).contains("\"running\":true")).await;
    // Its control group is its own, beside the box's.
    let group = format!("/ionet-{}-supervisor", id.to_string().replace('.', "-"));
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", site.supervisor(id).unwrap())).unwrap();
    let agents = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let has_groups = groups != agents;
    assert!(!has_groups || groups.contains(&group), "{groups}");
    // The log is a stream for whoever has a grant.
    let client = client().await;
    let at = addr_of(ready.endpoint.as_ref().unwrap());
    let log =
        tunnel::open(&client, &at, &site.request(&site.grant(&client, FAR_MS), Service::Log)).await.unwrap();
    let stranger = site.grant(&site.node, FAR_MS);
    for (auth, code) in [(stranger, "bad_grant"), (site.grant(&client, 1), "grant_expired")] {
        let refused = tunnel::open(&client, &at, &site.request(&auth, Service::Log)).await.unwrap_err();
        assert!(refused.to_string().contains(code), "{refused}");
    }
    // What was only needed to start is let go once the box is up.
    eventually("a small supervisor", || rss_bytes(site.supervisor(id).unwrap()) < 20_000_000).await;
    let rss = rss_bytes(site.supervisor(id).unwrap());
    println!("supervisor: {} kB", rss / 1024);
    std::fs::write(site.box_dir(id).join("work/go"), "").unwrap();
    let exited = site.until(id, 60, |o| matches!(o.phase, BoxPhase::Exited { .. })).await;
    assert_eq!(exited.phase, BoxPhase::Exited { exit_code: 7 });
    assert_eq!(read_all(log).await, "hello\nbye\n");
    let receipt = exited.receipt.unwrap();
    let usage = Usage { lease: id, elapsed_ms: receipt.elapsed_ms, heard: receipt.heard.clone() };
    let signer = Address(exited.endpoint.unwrap().id.0);
    assert_eq!(sign::verify(signer, NETWORK, &usage, &receipt.signature), Ok(()));
    assert!(receipt.elapsed_ms > 0, "{receipt:?}");
    site.want(vec![], vec![id]).await;
    let removed = site.until_removed(id).await;
    let BoxPhase::Removed { wipe } = removed.phase else { unreachable!() };
    assert!(wipe.files > 0 && !wipe.method.contains("NOT CONFIRMED"), "{wipe:?}");
    assert_eq!(removed.receipt.unwrap().elapsed_ms, receipt.elapsed_ms, "nothing counts after the end");
    eventually("the supervisor ends", || site.supervisor(id).is_none()).await;
    assert!(!site.box_dir(id).exists());
    assert_eq!(groups_named(&group), Vec::<PathBuf>::new());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_end_changes_nothing_and_a_dead_supervisor_leaves_nothing() {
    let site = Site::new().await;
    let worker = site.worker().await;
    eventually("the worker links", || site.hellos() == 1).await;
    let id = site.lease(0);
    let mut wanted = shell(id, "echo started; sleep 4711");
    wanted.running = true;
    site.want(vec![wanted.clone()], vec![]).await;
    site.until_phase(id, &BoxPhase::Ready).await;
    let supervisor = site.supervisor(id).unwrap();
    let device = worker.device();
    let second = site.worker_error().await;
    assert_eq!(second.code(), "worker_busy");
    drop(worker);
    let aside = || ionet_worker::status(&site.data_dir()).unwrap().unwrap();
    eventually("the agent is gone", || !aside().running).await;
    // The box's first process is the supervisor's grandchild; it goes on.
    assert_eq!(site.supervisor(id), Some(supervisor));
    let worker = site.worker().await;
    assert_eq!(worker.device(), device);
    eventually("the worker links again", || site.hellos() == 2).await;
    let adopted = site.until_phase(id, &BoxPhase::Ready).await;
    assert_eq!(adopted.engine_restarts, 0);
    assert_eq!(site.supervisor(id), Some(supervisor), "adopted, not started anew");
    assert!(aside().running && aside().leases.len() == 1);
    let pid = rustix::process::Pid::from_raw(supervisor).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let lost = site.until(id, 60, |o| matches!(o.phase, BoxPhase::Lost { .. })).await;
    assert!(matches!(lost.phase, BoxPhase::Lost { reason } if reason.contains("supervisor")));
    eventually("nothing is orphaned", || processes_with("sleep 4711").is_empty()).await;
    site.want(vec![wanted], vec![]).await;
    site.want(vec![], vec![id]).await;
    site.until_removed(id).await;
    assert!(site.supervisor(id).is_none(), "a lost lease is not started again");
    assert!(!site.box_dir(id).exists());
    let group = format!("/ionet-{}-supervisor", id.to_string().replace('.', "-"));
    assert_eq!(groups_named(&group), Vec::<PathBuf>::new());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_see_each_other_and_a_tunnel_leads_in() {
    let site = Site::new().await;
    let worker = site.worker().await;
    eventually("the worker links", || site.hellos() == 1).await;
    let (head, other) = (site.lease(0), site.lease(1));
    let serve =
        "echo from the head > index.html; exec python3 -u -m http.server 8080 --bind $IONET_MEMBER_IP";
    let fetch = "import os, time, urllib.request as r\n\
                 while True:\n\
                 \x20try: print(r.urlopen('http://' + os.environ['IONET_HEAD_IP'] + ':8080/', timeout=1).read()); break\n\
                 \x20except OSError: time.sleep(0.1)\n";
    let mut fetching = wanted(other);
    fetching.program.argv = ["/usr/bin/python3", "-c", fetch].map(str::to_owned).to_vec();
    let mut both = vec![shell(head, serve), fetching];
    for one in &mut both {
        one.running = true;
    }
    both = site.with_endpoints(&both, 1);
    site.want(both.clone(), vec![]).await;
    for id in [head, other] {
        site.until(id, 60, |observed| observed.endpoint.is_some()).await;
    }
    both = site.with_endpoints(&both, 2);
    site.want(both.clone(), vec![]).await;
    let done = site.until(other, 60, |o| matches!(o.phase, BoxPhase::Exited { .. })).await;
    assert_eq!(done.phase, BoxPhase::Exited { exit_code: 0 }, "the head was reached by its overlay address");
    assert!(done.parts_ms.iter().any(|(name, _)| name == "boxes"), "{:?}", done.parts_ms);
    // The same service from outside, through a tunnel.
    let client = client().await;
    let at = addr_of(site.observed(head).unwrap().endpoint.as_ref().unwrap());
    let auth = site.grant(&client, FAR_MS);
    let mut stream = tunnel::open(&client, &at, &site.request(&auth, Service::Tcp(8080))).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert!(read_all(stream).await.contains("from the head"));
    let closed = tunnel::open(&client, &at, &site.request(&auth, Service::Tcp(9))).await.unwrap_err();
    assert!(closed.to_string().contains("service_unreachable"), "{closed}");
    // Another member's word is a witness: the head's next receipt names it.
    let witnessed = site.until(head, 60, |o| o.receipt.as_ref().is_some_and(|r| r.heard == [1])).await;
    assert_eq!(witnessed.phase, BoxPhase::Ready);
    site.want(vec![], vec![head, other]).await;
    for id in [head, other] {
        site.until_removed(id).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_measures_answers_and_tells_how_it_is() {
    let site = Site::new().await;
    let worker = site.worker().await;
    eventually("the worker links", || site.hellos() == 1).await;
    site.say(ToWorker::Ping { n: 5, payload: "x".repeat(1000) }).await;
    site.say(ToWorker::Check).await;
    let heard = |wanted: fn(&FromWorker) -> bool| site.others().iter().any(wanted);
    eventually("an answer", || {
        heard(|o| matches!(o, FromWorker::Pong { n: 5, payload } if payload.len() == 1000))
    })
    .await;
    eventually("telemetry", || heard(|o| matches!(o, FromWorker::Telemetry(t) if t.memory_used_bytes > 0)))
        .await;
    eventually("a check", || heard(|o| matches!(o, FromWorker::Checked(Ok(m)) if m.cpu_one_mb_s > 0))).await;
    for check in ionet_worker::doctor::checks(&site.data_dir(), Some(site.url())).await {
        if ["server", "clock", "link", "data_dir", "udp_ports"].contains(&check.name) {
            assert_eq!(check.remedy, "", "{check:?}");
        }
    }
    let nowhere = ionet_worker::doctor::checks(&site.data_dir(), Some("http://127.0.0.1:1")).await;
    assert!(nowhere.iter().any(|check| check.name == "server" && check.remedy.contains("127.0.0.1:1")));
    assert_eq!(site.hellos(), 1, "the doctor does not disturb the agent's link");
    let status = worker.status().borrow().clone();
    assert!(status.linked && status.link_error.is_none(), "{status:?}");
    // What is told to the owner and what the agent goes by are one.
    let limits =
        ionet_worker::box_doctor::checks(&site.data_dir()).into_iter().find(|it| it.name == "limits");
    let said = limits.map(|limits| limits.found).unwrap_or_default();
    assert_eq!(said.contains("one tenant"), status.one_tenant_because.is_some(), "{said}: {status:?}");
    worker.stop().await;
    assert!(!ionet_worker::status(&site.data_dir()).unwrap().unwrap().running);
}
