//! What goes wrong on the way while members talk: over a path that is cut, a relay that dies, an address that changes, a
//! line that is bad. One network and one cluster for all of it, one after the other; the talks go on from beginning to end.

use std::collections::BTreeMap;

use ionet_lab::testbed::cloud::Cloud;
use ionet_lab::testbed::line::Quality;

use super::{Cluster, Links, up};

/// Two sites reach each other straight, the others over relays, of which the first is nearer. To one site no packet of
/// more than 1280 bytes gets, and senders are told.
const SITES: &str = "
    [[relays]]
    link = { delay_ms = 1 }
    [[relays]]
    link = { delay_ms = 20 }
    [[sites]]
    name = 'home'
    nat = 'cone'
    link = { delay_ms = 2 }
    [[sites]]
    name = 'flat'
    nat = 'cone'
    link = { delay_ms = 2, mtu = 1280 }
    [[sites]]
    name = 'mobile'
    nat = 'symmetric'
    link = { delay_ms = 2 }
    [[sites]]
    name = 'office'
    nat = 'symmetric'
    link = { delay_ms = 2 }
";
const STRAIGHT: [&str; 2] = ["home", "flat"];
const OVER_RELAYS: [&str; 2] = ["office", "mobile"];

struct Bed {
    cloud: Cloud,
    cluster: Cluster,
}

type Case = (&'static str, fn(&mut Bed));

/// Done one after the other; each leaves everything as it was.
const CASES: [Case; 7] = [
    ("the straight path is cut, and there again", Bed::straight_path_cut),
    ("the nearer relay is killed, and there again", Bed::relay_killed),
    ("a provider gives a network another address", Bed::network_moves),
    ("a worker gets another address of its network", Bed::worker_moves),
    ("a line of 20 ms loses one packet in a hundred and mixes them up", Bed::bad_line),
    ("nothing above 1280 bytes passes, and nobody is told", Bed::narrow_line),
    ("a line is cut for longer than any path lives", Bed::line_cut),
];

impl Bed {
    fn straight_path_cut(&mut self) {
        self.cloud.testbed.keep_apart(&[STRAIGHT]).unwrap();
        self.cluster.until_path(STRAIGHT, "relayed");
        self.cloud.testbed.keep_apart(&[]).unwrap();
        self.cluster.until_path(STRAIGHT, "direct");
    }

    fn relay_killed(&mut self) {
        let over = |address: String| {
            move |links: &Links| {
                let mut pair = links.iter().filter(|((from, to), _)| {
                    OVER_RELAYS.contains(&from.as_str()) && OVER_RELAYS.contains(&to.as_str())
                });
                pair.all(|(_, link)| link.path == "relayed" && link.via.contains(&format!("//{address}:")))
            }
        };
        let [near, far] =
            ["relay-1", "relay-2"].map(|relay| over(self.cloud.testbed.address(relay).to_string()));
        self.cluster.until("everything over the nearer relay", &near);
        self.cloud.process("relay-1").unwrap().kill();
        self.cluster.until("everything over the other relay", far);
        self.cloud.start_role("relay-1", &BTreeMap::new()).unwrap();
        self.cluster.until("everything over the nearer relay again", near);
    }

    fn network_moves(&mut self) {
        let address = self.cloud.testbed.change_address("home").unwrap().to_string();
        self.cluster.until("the others see the new address, and all is as before", |links| {
            let link = |from: &str, to: &str| links.get(&(from.to_owned(), to.to_owned()));
            link("flat", "home").is_some_and(|link| link.path == "direct" && link.via.starts_with(&address))
        });
    }

    fn worker_moves(&mut self) {
        let worker = self.cloud.testbed.get("flat-1").unwrap();
        let address = self.cloud.testbed.address("flat-1").to_string();
        let (network, _) = address.rsplit_once('.').unwrap();
        worker
            .run(&format!(
                "ip -4 addr flush dev eth0; ip addr add {network}.77/24 dev eth0
                 ip route replace default via {network}.1"
            ))
            .unwrap();
        self.cluster.until_path(STRAIGHT, "direct");
    }

    fn bad_line(&mut self) {
        self.with_line(
            |before| Quality {
                delay_us: 20_000,
                jitter_us: 5_000,
                loss_ppm: 10_000,
                reorder: true,
                ..before
            },
            500_000,
        );
    }

    fn narrow_line(&mut self) {
        self.with_line(|before| Quality { most_bytes: 1280, ..before }, 500_000);
    }

    /// With the line of a site so, bytes arrive whole, both ways.
    fn with_line(&mut self, change: impl Fn(Quality) -> Quality, bytes: usize) {
        let wire = &self.cloud.testbed.wires()["home"];
        let before = wire.qualities();
        wire.set(before.map(change));
        for (from, to) in
            [("home", ["flat", "mobile"].as_slice()), ("flat", &["home"]), ("mobile", &["home"])]
        {
            self.cluster.carries(from, to, bytes);
        }
        wire.set(before);
    }

    fn line_cut(&mut self) {
        let wire = &self.cloud.testbed.wires()["mobile"];
        let before = wire.qualities();
        wire.set(before.map(|quality| Quality { cut: true, ..quality }));
        self.cluster.until("no path to who is cut off", |links| {
            links.get(&("office".into(), "mobile".into())).is_some_and(|link| link.path == "down")
        });
        wire.set(before);
        self.cluster.until_path(OVER_RELAYS, "relayed");
    }
}

#[test]
fn connections_between_members_survive_whatever_happens_on_the_way() {
    let Some(cloud) = up("faults", SITES) else { return };
    let cluster = Cluster::rent(&cloud, &[]);
    cluster.until_path(STRAIGHT, "direct");
    cluster.until_path(OVER_RELAYS, "relayed");
    for (from, to) in [STRAIGHT, OVER_RELAYS].map(Into::into) {
        cluster.carries(from, &[to], 500_000);
    }
    let mut talks = [STRAIGHT, OVER_RELAYS].map(|pair| cluster.talk(pair));
    let mut bed = Bed { cloud, cluster };
    for (name, case) in CASES {
        let begun = std::time::Instant::now();
        case(&mut bed);
        println!("{name} ({:.1} s):", begun.elapsed().as_secs_f64());
        for talk in &mut talks {
            let [tcp, udp] = talk.goes_on(&format!("after: {name}"));
            println!(
                "  {}: longest silence {} ms over UDP, {} ms in the connection",
                talk.name,
                udp.as_millis(),
                tcp.as_millis()
            );
        }
    }
    drop(talks);
    bed.cluster.end();
}
