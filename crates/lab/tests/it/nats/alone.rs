//! Members whose server is gone go on, and change their keys; a device that was taken out of the cluster is out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ionet_lab::testbed::cloud::{Cloud, wait_for};
use ionet_lab::testbed::host::Start;
use ionet_lab::testbed::member::{Member, in_box, in_network};

use super::listen::Listener;
use super::{CONE, Cluster, PYTHON, REACH, SYMMETRIC, bed, python, up};

const SESSIONS: &str = include_str!("sessions.py");
/// Keys are changed every two minutes.
const SEVERAL_KEYS: Duration = Duration::from_mins(4);

/// How many sessions a machine has sent in, by whom they go to.
fn sessions(listener: &Listener) -> BTreeMap<String, BTreeSet<String>> {
    let mut sessions = BTreeMap::<String, BTreeSet<String>>::new();
    for line in listener.lines() {
        let (to, index) = line.rsplit_once(' ').unwrap();
        sessions.entry(to.to_owned()).or_default().insert(index.to_owned());
    }
    sessions
}

#[test]
fn members_whose_server_is_gone_talk_on_and_change_their_keys() {
    let sites = [("home", CONE), ("flat", CONE), ("mobile", SYMMETRIC), ("office", SYMMETRIC)];
    let Some(mut cloud) = up("alone", &bed(2, &sites)) else { return };
    let cluster = Cluster::rent(&cloud, &[]);
    cluster.until_path(["home", "flat"], "direct");
    cluster.until_path(["office", "mobile"], "relayed");
    let mut talks = [["home", "flat"], ["office", "mobile"]].map(|pair| cluster.talk(pair));
    cloud.process("server").unwrap().kill();
    let begun = Instant::now();
    // By whom packets go to: flat's network from home, a relay from the office.
    let flat = cloud.testbed.address("flat").to_string();
    let senders = [("home-1", flat.as_str()), ("office-1", "a relay")].map(|(machine, to)| {
        (Listener::start(cloud.testbed.get(machine).unwrap().command(PYTHON), SESSIONS, &[]), to)
    });
    let changed = wait_for("new keys with both others", SEVERAL_KEYS, || {
        let all =
            senders.iter().all(|(sent, to)| sessions(sent).get(*to).is_some_and(|indices| indices.len() > 1));
        Ok(all.then_some(()))
    });
    changed.unwrap_or_else(|error| panic!("{error}: {:?}", senders.map(|(sent, _)| sent.lines())));
    println!("new keys after {:.0} s without a server", begun.elapsed().as_secs_f64());
    for talk in &mut talks {
        let [tcp, udp] = talk.goes_on("without a server");
        println!(
            "  {}: longest silence {} ms over UDP, {} ms in the connection",
            talk.name,
            udp.as_millis(),
            tcp.as_millis()
        );
    }
    // Whoever was kept from each other meanwhile finds another way without it, too.
    cloud.testbed.keep_apart(&[["home", "flat"]]).unwrap();
    talks[0].goes_on("over relays, without a server");
    served_again(&mut cloud, &cluster);
}

fn served_again(cloud: &mut Cloud, cluster: &Cluster) {
    cloud.revive().unwrap();
    cloud.wait_served(super::PATIENCE).unwrap();
    // What the members did meanwhile is told when they are heard again.
    cluster.until_path(["home", "flat"], "relayed");
    cloud.testbed.keep_apart(&[]).unwrap();
    cluster.until_path(["home", "flat"], "direct");
}

#[test]
fn a_device_whose_place_was_given_to_another_is_out_with_its_old_key() {
    // Two for the members, and one to take a place.
    let sites = ["home", "flat", "spare"].map(|name| (name, CONE));
    let Some(cloud) = up("revoked", &bed(1, &sites)) else { return };
    let mut cluster = Cluster::rent_on(&cloud, 2, &[]);
    let sites: Vec<_> = cluster.members.keys().cloned().collect();
    let [gone, stays] = [&sites[0], &sites[1]].map(String::as_str);
    cluster.carries(gone, &[stays], 1000);
    let before = cluster.members[gone].clone();
    let stolen = steal(&cloud, &before);
    // The device says that its box is lost, as a device may that wants to be rid of it.
    cloud.supervisors(&before.host)[0].kill();
    wait_for("another device in its place", super::PATIENCE, || {
        let there = cluster.find(&cloud).is_ok();
        Ok((there && !cluster.members.contains_key(gone)).then_some(()))
    })
    .unwrap();
    let (new, _) = cluster.members.iter().find(|(_, member)| member.slot == before.slot).unwrap();
    let new = new.as_str();
    cluster.carries(new, &[stays], 1000);
    // With the key that it had it goes on as if it were a member still, with a box and all.
    let host = cloud.testbed.get(&before.host).unwrap();
    let words = [&cloud.binary().display().to_string(), "supervisor", "--dir", &stolen].map(str::to_owned);
    let start = Start { words: words.to_vec(), variables: BTreeMap::new(), log: cloud.testbed.log("stolen") };
    let supervisor = host.start_process(&start).unwrap();
    let boxed = || Ok(in_box(supervisor.pid));
    let pid = wait_for("a box of the stolen lease", super::PATIENCE, boxed).unwrap();
    let packets = Listener::start(host.command(PYTHON), SESSIONS, &[]);
    let mut inside = in_network(pid);
    inside.arg(PYTHON);
    let shut = python(inside, REACH, &[&format!("{},4000", cluster.members[stays].ip)]);
    assert_eq!(shut.trim(), "shut", "{:?}", packets.lines());
    assert!(sessions(&packets).is_empty(), "somebody answered: {:?}", packets.lines());
    // The one in its place never lost its own.
    cluster.carries(new, &[stays], 1000);
    supervisor.kill();
    cluster.end();
}

/// Keeps what a lease's key and members are, in a folder that its agent does not know; where that is.
fn steal(cloud: &Cloud, member: &Member) -> String {
    let host = cloud.testbed.get(&member.host).unwrap();
    let to = host.dir.join("stolen").join(&member.lease);
    std::fs::create_dir_all(host.path(&to)).unwrap();
    for name in ["brief.json", "endpoint.key", "progress.json"] {
        std::fs::copy(member.dir.join(name), host.path(&to).join(name)).unwrap();
    }
    to.display().to_string()
}
