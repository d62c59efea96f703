//! A Ray cluster that loses its head and then a member: what survives keeps running, and jobs work again.

use std::time::Duration;

use serde_json::Value;

use super::cloud::{Cloud, short_periods, signal, spawn, wait_for};

/// Ray starts slowly on a busy machine, and its environment may have to be made first.
const RAYS_PATIENCE: Duration = Duration::from_secs(150);

/// Runs a task on every node and prints the nodes' addresses.
const JOB: &str = "import ray
ray.init()
alive = [n for n in ray.nodes() if n['Alive']]
@ray.remote(num_cpus=0.1)
def where(): return ray.util.get_node_ip_address()
at = lambda node: where.options(resources={'node:' + node['NodeManagerAddress']: 0.01}).remote()
print('NODES', sorted(ray.get([at(n) for n in alive], timeout=60)), flush=True)";

/// Runs long enough to be lost with its head.
const LONG_JOB: &str = "import ray, time
ray.init()
print('BEGAN', flush=True)
time.sleep(6)
print('ENDED', flush=True)";

/// Submits a job until it has run on both members: Ray needs a while to notice what was lost and what came.
fn job_runs_on_both(cloud: &Cloud, cluster: &str) {
    let words = ["job", "submit", cluster, "--", "python", "-c", JOB];
    let both = "NODES ['10.77.0.1', '10.77.0.2']";
    wait_for("a job on both members", RAYS_PATIENCE, || {
        let said = cloud.renter.run(&words);
        let ran = said.status == 0 && (said.stdout.contains(both) || said.stderr.contains(both));
        if !ran {
            eprintln!("not yet: {}", said.text());
        }
        ran.then_some(())
    });
}

/// Waits until a slot has another lease than `lost` and everything is up.
fn wait_replaced(cloud: &Cloud, cluster: &str, slot: u64, lost: &str) -> Value {
    wait_for("the replacement", RAYS_PATIENCE, || {
        let view = cloud.renter.show(cluster);
        assert_eq!(view["stage"], "running", "{view}");
        let leases = view["leases"].as_array().unwrap().iter();
        let up = |lease: &&Value| lease["slot"] == slot && lease["lease"] != lost && lease["now"] == "ready";
        leases.clone().any(|lease| up(&lease)).then_some(view.clone())
    })
}

#[test]
fn a_ray_cluster_survives_the_loss_of_its_head_and_of_a_member() {
    let mut cloud = Cloud::new(&short_periods());
    for n in 1..=4 {
        cloud.add_agent_with(&format!("supplier-{n}"), "1", "3GiB", None);
    }
    cloud.wait_pooled();
    let words = [
        "cluster", "create", "-n", "2", "--spread", "--cpus", "0.8", "--memory", "2GiB", "--for", "1h",
        "--yes",
    ];
    let cluster = cloud.renter.say(&words)["id"].as_str().unwrap().to_owned();
    job_runs_on_both(&cloud, &cluster);

    let (head, _) = cloud.member(&cluster, 0);
    let (member, _) = cloud.member(&cluster, 1);
    let members_pid = cloud.supervisors()[&member];
    let words = ["job", "submit", &cluster, "--resubmit", "--", "python", "-c", LONG_JOB];
    let said = cloud.home.path().join("job.txt");
    let mut job = spawn(&mut cloud.home.command(&words), &said, &said);
    let text = || std::fs::read_to_string(&said).unwrap();
    wait_for("the job's first words", RAYS_PATIENCE, || text().contains("BEGAN").then_some(()));
    signal(cloud.supervisors()[&head], "-KILL");
    wait_replaced(&cloud, &cluster, 0, &head);
    let status = wait_for("the job's end", RAYS_PATIENCE, || job.try_wait().unwrap());
    assert!(status.success() && text().contains("(1 of 3)") && text().contains("ENDED"), "{}", text());
    job_runs_on_both(&cloud, &cluster);
    assert_eq!(cloud.supervisors().get(&member), Some(&members_pid), "the surviving member was touched");
    let story = cloud.home.run(&["cluster", "events", &cluster]).stdout;
    assert!(story.contains("head_lost") && story.contains(&format!("{head} was lost")), "{story}");

    let (head, _) = cloud.member(&cluster, 0);
    let heads_pid = cloud.supervisors()[&head];
    signal(members_pid, "-KILL");
    wait_replaced(&cloud, &cluster, 1, &member);
    job_runs_on_both(&cloud, &cluster);
    assert_eq!(cloud.supervisors().get(&head), Some(&heads_pid), "the surviving head was touched");

    cloud.renter.say(&["cluster", "rm", &cluster, "--yes", "--no-wait"]);
    cloud.renter.wait_over(&cluster);
    cloud.renter.check_money();
    cloud.wait_no_boxes();
    cloud.renter.verify();
}
