//! Two members behind real NATs, with relays between them. Needs root.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ionet_overlay::{
    RelayAt, Way,
    relay::{
        Limits,
        forwarder::{Forwarder, ForwarderConfig},
    },
};

use crate::{
    plane::{Pair, transfer},
    real::{Space, addresses, until},
};

/// How a router masquerades.
const ONE_PORT: &str = "masquerade";
const RANDOM_PORTS: &str = "masquerade fully-random";

/// Two machines behind routers of their own, and an internet with two relays.
struct Internet {
    relays: Vec<RelayAt>,
    forwarders: [Forwarder; 2],
    _spaces: [Space; 3],
}

/// `None` where there are no namespaces.
fn behind(label: &str, masquerades: [&str; 2]) -> Option<(Internet, [Space; 2])> {
    let space = |end: &str| Space::new(&format!("{label}-{end}"));
    let (core, machines, routers) =
        (space("core")?, [space("a")?, space("b")?], [space("ra")?, space("rb")?]);
    core.script("echo 1 > /proc/sys/net/ipv4/ip_forward");
    for ((number, masquerade), (machine, router)) in (1..).zip(masquerades).zip(machines.iter().zip(&routers))
    {
        let far = format!("far-{number}");
        core.ip(&["link", "add", &far, "type", "veth", "peer", "name", "wan", "netns", &router.name]);
        core.ip(&["addr", "add", &format!("203.0.{number}.1/24"), "dev", &far]);
        core.ip(&["link", "set", &far, "up"]);
        machine.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "lan", "netns", &router.name]);
        machine.script(&format!(
            "ip addr add 10.0.{number}.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.{number}.1"
        ));
        router.script(&format!(
            "ip addr add 203.0.{number}.2/24 dev wan; ip link set wan up
             ip addr add 10.0.{number}.1/24 dev lan; ip link set lan up
             ip route add default via 203.0.{number}.1
             echo 1 > /proc/sys/net/ipv4/ip_forward
             nft -f - <<'END'
             table ip router {{
               chain outbound {{ type nat hook postrouting priority srcnat; oifname wan {masquerade}
               }}
               chain passing {{ type filter hook forward priority filter; policy drop;
                 ct state established,related accept
                 iifname lan oifname wan accept
               }}
               chain own {{ type filter hook input priority filter; policy drop;
                 ct state established,related accept
               }}
             }}
END"
        ));
    }
    let forwarders = [1, 2].map(|number| {
        let ip = Ipv4Addr::new(198, 51, 100, number);
        core.ip(&["addr", "add", &format!("{ip}/32"), "dev", "lo"]);
        core.run(move || forwarder(number, ip))
    });
    let at = |(number, forwarder): (u8, &Forwarder)| {
        let [udp, second] = forwarder.udp_ports();
        let at = |port| (Ipv4Addr::new(198, 51, 100, number), port).into();
        RelayAt {
            id: [number; 32],
            udp: at(udp),
            second: Some(at(second)),
            tcp: Some(at(forwarder.tcp_port())),
        }
    };
    let relays = (1..).zip(&forwarders).map(at).collect();
    let [ra, rb] = routers;
    Some((Internet { relays, forwarders, _spaces: [core, ra, rb] }, machines))
}

fn forwarder(number: u8, ip: Ipv4Addr) -> Forwarder {
    let config = ForwarderConfig {
        id: [number; 32],
        secret: [number; 32],
        ip: ip.into(),
        udp_port: 0,
        second_udp_port: 0,
        tcp_port: 0,
        limits: Limits::default(),
        admit: Box::new(|_| true),
    };
    Forwarder::start(config).expect("a forwarder")
}

/// Has one member speak to the other until both have a straight way, or no attempt is left; how long that took.
fn direct_after(pair: &Pair) -> Option<Duration> {
    let relayed = |at: usize| {
        let ways = pair.overlay(at).stats().swap_remove(0).ways;
        ways.iter().any(|way| way.up && matches!(way.way, Way::Relay { .. }))
    };
    until("relayed", || relayed(0) && relayed(1));
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let speaker = pair.spaces[0].enter(move || {
        let socket = UdpSocket::bind((addresses(1).v4, 0)).expect("bind");
        while !over.load(Ordering::Relaxed) {
            socket.send_to(b"hello", (addresses(2).v4, 9)).expect("send");
            thread::sleep(Duration::from_millis(20)); // poll
        }
    });
    let began = Instant::now();
    let mut is_direct = false;
    until("direct, or in vain", || {
        is_direct = pair.is_direct();
        is_direct || began.elapsed() > Duration::from_secs(12)
    });
    is_over.store(true, Ordering::Relaxed);
    speaker.join().expect("the speaker");
    is_direct.then(|| began.elapsed())
}

#[test]
fn a_router_with_random_ports_is_met_by_many_sockets() {
    for (label, masquerades) in [("hard", [RANDOM_PORTS, ONE_PORT]), ("drah", [ONE_PORT, RANDOM_PORTS])] {
        let Some((internet, spaces)) = behind(label, masquerades) else { return };
        let mut pair = Pair::over(spaces, &internet.relays);
        // One attempt in fifty meets nothing, by chance.
        for _ in 0..4 {
            let Some(took) = direct_after(&pair) else {
                let Pair { spaces, overlays } = pair;
                drop(overlays);
                pair = Pair::over(spaces, &internet.relays);
                continue;
            };
            println!("{label}: direct after {} ms", took.as_millis());
            break;
        }
        let is_full = || {
            let ways = pair.overlay(1).stats().swap_remove(0).ways;
            ways.iter().any(|way| way.up && way.packet_bytes > 1400 && matches!(way.way, Way::Udp(_)))
        };
        until("a straight way of the full size", is_full);
        let relayed = || -> u64 {
            internet.forwarders.iter().map(|relay| relay.counters().bytes.load(Ordering::Relaxed)).sum()
        };
        let before = relayed();
        transfer(&pair, addresses(2).v4.into(), 64 << 20, || {});
        assert!(relayed() < before + (1 << 20), "the stream went straight");
    }
}
