//! A real Ray cluster of two leases on one device, over the real overlay.

use std::path::PathBuf;

use ionet_api::worker::{BoxPhase, DesiredLease, ObservedLease};
use ionet_domain::LeaseId;
use ionet_domain::market::{EngineKind, Program};
use ionet_domain::tunnel::Service;
use ionet_net::{EndpointKey, Node, NodeConfig, tunnel};
use ionet_worker::Worker;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fixtures::wanted;
use crate::server::{Site, addr_of, eventually, rss_bytes};

fn ray(lease: LeaseId) -> DesiredLease {
    let mut it = wanted(lease);
    it.engine = EngineKind::Ray;
    it.program = Program::default();
    it.resources.cpu_millis = 1000;
    it.resources.memory_bytes = 3 << 30;
    it.running = true;
    it.paid_ms = 600_000;
    it
}

async fn until_ready(site: &Site, lease: LeaseId, restarts: u32) -> ObservedLease {
    let settled = |o: &ObservedLease| {
        o.engine_restarts == restarts && matches!(o.phase, BoxPhase::Ready | BoxPhase::Lost { .. })
    };
    let observed = site.until(lease, 150, settled).await;
    assert_eq!(observed.phase, BoxPhase::Ready, "{}", site.log(lease));
    observed
}

/// What the Jobs API says, asked with and without the cluster's token.
async fn ask_jobs_api(site: &Site, client: &Node, head: LeaseId, token: &str) -> String {
    let at = addr_of(site.observed(head).unwrap().endpoint.as_ref().unwrap());
    let request = site.request(&site.grant(client, u64::MAX / 2), Service::Tcp(8265));
    let mut stream = tunnel::open(client, &at, &request).await.unwrap();
    let text = format!(
        "GET /api/version HTTP/1.1\r\nHost: head\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ray_cluster_comes_up_answers_and_starts_anew_in_its_boxes() {
    let site = Site::new().await;
    // Shared with the runtime's tests and kept between runs: making it is measured in minutes on a cold machine.
    let environments = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("environments");
    let mut config = site.config();
    config.environments_dir = Some(environments);
    let worker = Worker::start(config).await.unwrap();
    eventually("the worker links", || site.hellos() == 1).await;
    let (head, member) = (site.lease(0), site.lease(1));
    let mut both = site.with_endpoints(&[ray(head), ray(member)], 1);
    site.want(both.clone(), vec![]).await;
    for id in [head, member] {
        site.until(id, 60, |observed| observed.endpoint.is_some()).await;
    }
    both = site.with_endpoints(&both, 2);
    site.want(both.clone(), vec![]).await;
    let up = until_ready(&site, head, 0).await;
    until_ready(&site, member, 0).await;
    println!("head: {:?}; supervisor {} kB", up.parts_ms, rss_bytes(site.supervisor(head).unwrap()) / 1024);
    let parts: Vec<&str> = up.parts_ms.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(parts, ["boxes", "overlay", "engine", "first_task", "jobs_api", "client"]);
    let client = Node::bind(&EndpointKey::generate().unwrap(), NodeConfig::default()).await.unwrap();
    let answer = ask_jobs_api(&site, &client, head, both[0].token.expose()).await;
    assert!(answer.contains("\"ray_version\": \"2.60.0\"") || answer.contains("2.60.0"), "{answer}");
    let refused = ask_jobs_api(&site, &client, head, "another-token-than-the-clusters").await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    // As when the head was lost: every node starts anew, in the same boxes.
    for one in &mut both {
        one.engine_epoch = 1;
    }
    site.want(both, vec![]).await;
    for id in [head, member] {
        until_ready(&site, id, 1).await;
    }
    eventually("a small supervisor", || rss_bytes(site.supervisor(head).unwrap()) < 20_000_000).await;
    site.want(vec![], vec![head, member]).await;
    for id in [head, member] {
        site.until_removed(id).await;
    }
    worker.stop().await;
}
