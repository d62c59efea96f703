//! What must not be heard: by another cluster on the same machines, by who listens where packets pass, by members of each
//! other.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ionet_lab::testbed::cloud::{Cloud, wait_for};

use super::listen::Listener;
use super::{CONE, Cluster, PATIENCE, PYTHON, REACH, bed, python, up};

const BOTH: [&str; 2] = ["home", "flat"];
const LISTEN: &str = include_str!("listen.py");
const SAY: &str = include_str!("say.py");
const SIZES: &str = include_str!("sizes.py");
const SERVE_HERE: &str = "import socket
s = socket.create_server(('0.0.0.0', 7000))
print('ready', flush=True)
while True: s.accept()[0].close()";
/// Said inside one cluster, inside the other, and between machines.
const WORDS: [&str; 3] = [APPLES, BREAD, CHEESE];
const APPLES: &str = "apples-apples-apples";
const BREAD: &str = "bread-bread-bread";
const CHEESE: &str = "cheese-cheese-cheese";
/// Sent while packets are counted or measured.
const SOME_BYTES: usize = 1_000_000;

fn heard(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Cluster {
    /// A script in the network of a member's box.
    fn listen(&self, site: &str, script: &str, arguments: &[&str]) -> Listener {
        Listener::start(self.members[site].command(PYTHON), script, arguments)
    }

    fn say(&self, site: &str, word: &str, to: &[String]) {
        let to = to.iter().map(String::as_str);
        python(self.members[site].command(PYTHON), SAY, &std::iter::once(word).chain(to).collect::<Vec<_>>());
    }

    fn addresses(&self, site: &str) -> Vec<String> {
        let script = "for line in open('/proc/net/if_inet6'):
    address, *_, name = line.split()
    if name == 'tun0' and address.startswith('fd'): print(':'.join(address[n:n + 4] for n in range(0, 32, 4)))";
        let six = python(self.members[site].command(PYTHON), script, &[]);
        six.split_whitespace().map(str::to_owned).chain([self.members[site].ip.to_string()]).collect()
    }
}

/// Says a word until all of these have heard it: a busy machine loses a packet now and then, and so may who captures them.
fn say_until_heard(word: &str, listeners: &[(&str, &Listener)], say: impl Fn()) {
    let mut deaf = Vec::new();
    let came = wait_for(word, PATIENCE, || {
        say();
        deaf = listeners.iter().filter(|(_, listener)| !listener.lines().contains(word)).collect();
        Ok(deaf.is_empty().then_some(()))
    });
    let names: Vec<_> = deaf.iter().map(|(name, listener)| (name, listener.lines())).collect();
    came.unwrap_or_else(|error| panic!("{error} to {names:?}"));
}

/// A script on a machine.
fn listen_on(cloud: &Cloud, machine: &str, script: &str, arguments: &[&str]) -> Listener {
    Listener::start(cloud.testbed.get(machine).unwrap().command(PYTHON), script, arguments)
}

#[test]
fn nothing_crosses_between_clusters_and_nothing_is_said_in_plain_text() {
    let Some(cloud) = up("apart", &bed(2, &BOTH.map(|name| (name, CONE)))) else { return };
    // What a box sends out of its cluster is in plain text of course; the one that shouts may not.
    let [fruit, bakery] = ["on", "off"].map(|egress| Cluster::rent(&cloud, &["--egress", egress]));
    for cluster in [&fruit, &bakery] {
        cluster.until_path(BOTH, "direct");
    }
    let inside = [&fruit, &bakery].map(|cluster| cluster.listen("flat", LISTEN, &WORDS));
    let machines = ["home-1", "home", "flat-1", "flat", "internet"];
    let outside = machines.map(|machine| (machine, listen_on(&cloud, machine, LISTEN, &WORDS)));
    let all = inside.iter().chain(outside.iter().map(|(_, listener)| listener));
    all.for_each(|listener| listener.until("ready"));

    // The bakery speaks to everybody: its own, the other cluster by each of its names, the machines, whoever is near.
    let mut everybody: Vec<_> = [&bakery, &fruit]
        .into_iter()
        .flat_map(|cluster| BOTH.map(|site| cluster.addresses(site)))
        .flatten()
        .collect();
    everybody.extend(machines.map(|machine| cloud.testbed.address(machine).to_string()));
    everybody.extend(["10.77.255.255", "255.255.255.255", "224.0.0.1", "ff02::1"].map(str::to_owned));
    say_until_heard(BREAD, &[("bakery", &inside[1])], || bakery.say("home", BREAD, &everybody));
    // The fruit seller to its own only; then the listeners have heard whatever there was to hear before.
    say_until_heard(APPLES, &[("fruit", &inside[0])], || {
        fruit.say("home", APPLES, &fruit.addresses("flat"));
    });
    // A word in plain text is heard by all who listen outside.
    let home = cloud.testbed.get("home-1").unwrap();
    let flat = cloud.testbed.address("flat").to_string();
    let own = cloud.testbed.address("flat-1").to_string();
    let all: Vec<_> = outside.iter().map(|(machine, listener)| (*machine, listener)).collect();
    say_until_heard(CHEESE, &all, || {
        python(home.command(PYTHON), SAY, &[CHEESE, &flat]);
        python(cloud.testbed.get("flat").unwrap().command(PYTHON), SAY, &[CHEESE, &own]);
    });
    for (machine, listener) in &outside {
        assert_eq!(
            listener.lines().intersection(&heard(&WORDS)).cloned().collect::<BTreeSet<_>>(),
            heard(&[CHEESE]),
            "{machine}"
        );
    }
    for (listener, own) in inside.iter().zip([APPLES, BREAD]) {
        assert_eq!(
            listener.lines().intersection(&heard(&WORDS)).cloned().collect::<BTreeSet<_>>(),
            heard(&[own])
        );
    }
    reaches_the_world_and_nothing_near(&cloud, &fruit, &bakery);
}

/// A box reaches a server in the world, and no machine of its supplier, nor another lease on its own machine.
fn reaches_the_world_and_nothing_near(cloud: &Cloud, fruit: &Cluster, bakery: &Cluster) {
    let machines = ["client", "home-1", "home"];
    let servers = machines.map(|machine| listen_on(cloud, machine, SERVE_HERE, &[]));
    for server in &servers {
        server.until("ready");
    }
    let at = |address: &str| format!("{address},7000");
    let mut targets = machines.map(|machine| at(&cloud.testbed.address(machine).to_string())).to_vec();
    targets[2] = at(&cloud.testbed.address("home-1").to_string().replace(".2", ".1"));
    targets.push("169.254.169.254,80".into());
    targets.extend(
        bakery
            .addresses("home")
            .into_iter()
            .filter(|address| address.contains(':'))
            .map(|six| format!("{six},4000")),
    );
    let words: Vec<_> = targets.iter().map(String::as_str).collect();
    let said = python(fruit.members["home"].command(PYTHON), REACH, &words);
    assert_eq!(
        said.split_whitespace().collect::<Vec<_>>(),
        ["open", "shut", "shut", "shut", "shut"],
        "{targets:?}"
    );
    // The machine itself reaches its own and its router's.
    let said = python(cloud.testbed.get("home-1").unwrap().command(PYTHON), REACH, &words[..3]);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["open"; 3]);
}

#[test]
fn an_order_for_privacy_hides_what_it_says() {
    let Some(cloud) = up("hidden", &bed(2, &BOTH.map(|name| (name, CONE)))) else { return };
    packets_are_of_one_size(&cloud);
    members_do_not_learn_of_each_other(&cloud);
    relays_see_half(&cloud);
}

fn hidden(cloud: &Cloud, words: &[&str], said: &str) -> Cluster {
    let cluster = Cluster::rent(cloud, words);
    let view = cloud.client.must(&["cluster", "show", &cluster.id]).unwrap();
    assert_eq!(view["quote"]["request"]["hiding"], said, "{view:#}");
    cluster
}

/// The sizes of the next packets that a site's worker gets from another's network.
fn sizes(cloud: &Cloud, cluster: &Cluster) -> Vec<usize> {
    let talk = cluster.talk(BOTH);
    let from = cloud.testbed.address("home").to_string();
    let said = python(cloud.testbed.get("flat-1").unwrap().command(PYTHON), SIZES, &[&from, "200"]);
    drop(talk);
    said.split_whitespace().map(|size| size.parse().unwrap()).collect()
}

fn packets_are_of_one_size(cloud: &Cloud) {
    let cluster = Cluster::rent(cloud, &[]);
    cluster.until_path(BOTH, "direct");
    assert!(sizes(cloud, &cluster).len() > 1);
    cluster.end();
    let cluster = hidden(cloud, &["--private"], "private");
    cluster.until_path(BOTH, "direct");
    cluster.carries("home", &["flat"], SOME_BYTES);
    let one = wait_for("packets of one size", PATIENCE, || {
        let sizes = sizes(cloud, &cluster);
        println!("the sizes of 200 packets of a private cluster are {sizes:?}");
        Ok((sizes.len() == 1).then(|| sizes[0]))
    });
    assert!(one.unwrap() > 1200);
    cluster.end();
}

fn members_do_not_learn_of_each_other(cloud: &Cloud) {
    // Addresses of the other's machine and network, as they are written and as they are in packets.
    let addresses = ["flat", "flat-1"].map(|name| cloud.testbed.address(name).to_string());
    let packets = listen_on(cloud, "home-1", PEERS, &[]);
    packets.until("ready");
    let cluster = hidden(cloud, &["--via-relay"], "via-relay");
    cluster.until_path(BOTH, "relayed");
    cluster.carries("home", &["flat"], SOME_BYTES);
    let relay = cloud.testbed.address("relay-1").to_string();
    let other = cloud.testbed.address("relay-2").to_string();
    wait_for("packets to a relay", PATIENCE, || {
        Ok([&relay, &other].into_iter().any(|relay| packets.lines().contains(relay)).then_some(()))
    })
    .unwrap();
    for address in &addresses {
        assert!(!packets.lines().contains(address), "{address}: {:?}", packets.lines());
        let network = cloud.client.must(&["cluster", "network", &cluster.id]).unwrap();
        let view = cloud.client.must(&["cluster", "show", &cluster.id]).unwrap();
        assert!(!network.to_string().contains(address) && !view.to_string().contains(address));
        assert_eq!(files_with(&cluster.members["home"].dir, address), Vec::<String>::new(), "{address}");
    }
    let own = cloud.testbed.address("home-1").to_string();
    assert!(!files_with(&cluster.members["home"].dir, &own).is_empty(), "its own address is nowhere either");
    cluster.end();
}

/// Says each address that a packet of IPv4 comes from or goes to.
const PEERS: &str = "import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
print('ready', flush=True)
seen = set()
while True:
    packet, (_, protocol, *_) = s.recvfrom(65536)
    if protocol != 0x0800: continue
    for address in {packet[12:16], packet[16:20]} - seen:
        seen.add(address)
        print(socket.inet_ntoa(address), flush=True)";

/// The files below a folder that hold these words.
fn files_with(folder: &Path, words: &str) -> Vec<String> {
    let mut grep = Command::new("grep");
    grep.args(["-rlFa", "--devices=skip", "-e", words]).arg(folder);
    String::from_utf8_lossy(&grep.output().unwrap().stdout).lines().map(str::to_owned).collect()
}

fn relays_see_half(cloud: &Cloud) {
    let cluster = hidden(cloud, &["--via-relay", "--split-relays"], "via-relay+split-relays");
    cluster.until_path(BOTH, "relayed");
    let passed = || ["relay-1", "relay-2"].map(|relay| cloud.testbed.wires()[relay].counts()[0].taken);
    // Both relays are found one after the other.
    let [first, second] = wait_for("about as much over one relay as over the other", PATIENCE, || {
        let before = passed();
        cluster.carries("home", &["flat"], SOME_BYTES);
        let after = passed();
        let [first, second] = [0, 1].map(|n| after[n] - before[n]);
        Ok((first < 2 * second && second < 2 * first).then_some([first, second]))
    })
    .unwrap();
    println!("{first} packets over one relay, {second} over the other");
    cluster.end();
}
