//! Machines against each other over a network in memory, for many seeds.

use std::net::{IpAddr, SocketAddr};

use ionet_overlay::{Privacy, Way, seam::Input};

use crate::world::{
    CONE, FAIR, FULL_CONE, Host, MS, NO_UDP, NatKind, S, STEPPING, SYMMETRIC, Weather, World, public,
};

/// Two members, each behind a NAT of its own, with two relays; given a moment to learn their addresses.
fn pair(seed: u64, kinds: [Option<NatKind>; 2]) -> World {
    pair_in(World::new(seed, 2), kinds)
}

fn pair_in(mut world: World, kinds: [Option<NatKind>; 2]) -> World {
    for (kind, n) in kinds.into_iter().zip(1..) {
        let net = kind.map_or(0, |kind| world.nat(kind, 0, public(n)));
        world.node(net);
    }
    world.begin();
    world.run_for(4 * S);
    world
}

/// Two members that are direct.
fn direct_pair(seed: u64, kinds: [Option<NatKind>; 2]) -> World {
    let mut world = pair(seed, kinds);
    first_packet(&mut world, 0, 1);
    world.run_to(5 * S, is_direct).expect("direct");
    world
}

fn is_direct(world: &World) -> bool {
    world.is_direct(0, 1) && world.is_direct(1, 0)
}

fn is_relayed(world: &World) -> bool {
    world.is_relayed(0, 1) && world.is_relayed(1, 0)
}

/// Says the first packet, and again until it came through; how long that took.
fn first_packet(world: &mut World, n: usize, to: usize) -> u64 {
    let began_us = world.now_us;
    let what = 1 + world.random.below(1 << 40);
    while !world.has(to, what) {
        world.data(n, to, what, 200);
        world.run_for(10 * MS);
        assert!(world.now_us < began_us + 20 * S, "no packet came through");
    }
    world.now_us - began_us
}

#[test]
fn whoever_can_be_direct_soon_is() {
    let kinds = [None, Some(FULL_CONE), Some(CONE)];
    for seed in 0..60 {
        for (a, b) in [(0, 1), (1, 1), (2, 2), (2, 1), (0, 2), (0, 0)] {
            let mut world = pair(seed, [kinds[a], kinds[b]]);
            let began_us = world.now_us;
            let first_us = first_packet(&mut world, 0, 1);
            assert!(first_us < S, "{a} {b} seed {seed}: the first packet took {first_us} us");
            world.run_to(5 * S, is_direct).unwrap_or_else(|| panic!("{a} {b} seed {seed}: never direct"));
            let round_trips = (world.now_us - began_us).div_ceil(2 * FAIR.delay_us);
            assert!(round_trips <= 6, "{a} {b} seed {seed}: direct after {round_trips} round trips");
        }
    }
}

#[test]
fn both_at_once_and_in_bad_weather_too() {
    let weather = Weather { delay_us: 10 * MS, jitter_us: 20 * MS, loss_ppm: 50_000, twice_ppm: 20_000 };
    for seed in 0..100 {
        let mut world = World::new(seed, 2);
        world.weather = weather;
        let mut world = pair_in(world, [Some(CONE), Some(CONE)]);
        for n in [0, 1] {
            let peer = world.nodes[1 - n].key;
            world.input(n, Input::Wanted { peer });
        }
        first_packet(&mut world, 0, 1);
        first_packet(&mut world, 1, 0);
        world.run_to(5 * S, is_direct).unwrap_or_else(|| panic!("seed {seed}: never direct"));
        let gap_us = world.stream(0, 1, 5 * MS, 60 * S);
        assert!(gap_us < S, "seed {seed}: nothing came for {gap_us} us");
        assert!(world.nodes[0].strange < 40, "seed {seed}: {} packets did not open", world.nodes[0].strange);
    }
}

#[test]
fn whoever_cannot_be_direct_is_relayed_within_a_second() {
    for seed in 0..100 {
        let mut world = pair(seed, [Some(SYMMETRIC), Some(SYMMETRIC)]);
        let began_us = world.now_us;
        first_packet(&mut world, 0, 1);
        world.run_to(5 * S, is_relayed).expect("relayed");
        assert!(world.now_us - began_us < S, "seed {seed}: {} us", world.now_us - began_us);
        let is_shared = |world: &World| world.ways(0, 1).len() == 2;
        world.run_to(S, is_shared).expect("two homes share the traffic");
    }
}

#[test]
fn a_symmetric_nat_is_no_hindrance_before_a_full_cone_or_none() {
    for seed in 0..50 {
        for other in [None, Some(FULL_CONE)] {
            direct_pair(seed, [Some(SYMMETRIC), other]);
            direct_pair(seed, [other, Some(SYMMETRIC)]);
        }
    }
}

#[test]
fn stepping_ports_are_mostly_predicted() {
    let mut found = 0;
    for seed in 0..200 {
        let mut world = pair(seed, [Some(STEPPING), Some(CONE)]);
        // Others behind the same NAT take ports meanwhile.
        let taken = world.random.below(12);
        world.take_ports(1, taken);
        let (n, to) = if seed % 2 == 0 { (0, 1) } else { (1, 0) };
        let first_us = first_packet(&mut world, n, to);
        assert!(first_us < S, "seed {seed}: {first_us} us until the first packet");
        found += u32::from(world.run_to(5 * S, is_direct).is_some());
    }
    println!("stepping to cone: direct in {found} of 200");
    assert!(found >= 180, "{found} of 200");
}

#[test]
fn random_ports_are_mostly_met_by_many_sockets() {
    let (mut found, mut probes) = (0, 0);
    for seed in 0..200 {
        let kinds = [Some(SYMMETRIC), Some(CONE)];
        let (hard, kinds) = if seed % 2 == 0 { (0, kinds) } else { (1, [kinds[1], kinds[0]]) };
        let mut world = pair(seed, kinds);
        if seed % 4 > 1 {
            world.weather.loss_ppm = 10_000;
        }
        first_packet(&mut world, 0, 1);
        let (before, began_us) = (world.nodes[1 - hard].sent, world.now_us);
        while !is_direct(&world) && world.now_us < began_us + 5 * S {
            world.stream(0, 1, 20 * MS, 100 * MS);
        }
        probes = probes.max(world.nodes[1 - hard].sent - before);
        if !is_direct(&world) {
            continue;
        }
        found += 1;
        let gap_us = world.stream(0, 1, 20 * MS, 30 * S);
        assert!(gap_us < S && is_direct(&world), "seed {seed}: {gap_us} us, {:?}", world.ways(0, 1));
        let node = &world.nodes[hard];
        assert_eq!((node.attempts, node.kept.len(), node.spares.len()), (1, 1, 0), "seed {seed}");
        // When the peer is gone, so is the socket.
        let gone = world.nodes[1 - hard].key;
        world.set_members(|member| member.key != gone);
        assert!(world.nodes[hard].kept.is_empty(), "seed {seed}");
    }
    println!("random to cone: direct within 5 s in {found} of 200, at most {probes} packets from the cone");
    assert!(found >= 185, "{found} of 200");
}

#[test]
fn many_sockets_are_not_opened_for_long_in_vain_nor_where_addresses_are_hidden() {
    for (kinds, privacy, most) in [
        // The cone has become one that nobody can meet, and nobody noticed.
        ([SYMMETRIC, CONE], Privacy::default(), 3),
        ([SYMMETRIC, SYMMETRIC], Privacy::default(), 0),
        ([SYMMETRIC, CONE], Privacy { via_relay: true, ..Privacy::default() }, 0),
    ] {
        let mut world = World::new(3, 2);
        world.privacy = privacy;
        let mut world = pair_in(world, kinds.map(Some));
        world.cuts.extend([(Host::Node(0), Host::Node(1)), (Host::Node(1), Host::Node(0))]);
        first_packet(&mut world, 0, 1);
        let before = world.nodes[1].sent;
        let gap_us = world.stream(0, 1, 100 * MS, 2_000 * S);
        assert!(gap_us < S, "{kinds:?}: nothing came for {gap_us} us");
        let (node, sent) = (&world.nodes[0], world.nodes[1].sent - before);
        assert!(node.attempts <= most && node.attempts >= most.min(1), "{kinds:?}: {}", node.attempts);
        assert!(node.spares.is_empty() && node.kept.is_empty());
        println!("{kinds:?}: {} attempts, {sent} packets from the other side in 2,000 s", node.attempts);
    }
}

#[test]
fn a_way_through_a_random_nat_that_is_cut_is_found_again() {
    let mut found = 0;
    for seed in 0..20 {
        let mut world = pair(seed, [Some(SYMMETRIC), Some(CONE)]);
        first_packet(&mut world, 0, 1);
        world.stream(0, 1, 20 * MS, 5 * S);
        if !is_direct(&world) {
            continue;
        }
        // The NAT forgets all; ordinary punching is of no use.
        world.change_nat(1, SYMMETRIC, public(33));
        let gap_us = world.stream(0, 1, 20 * MS, 30 * S);
        assert!(gap_us < 3 * S, "seed {seed}: nothing came for {gap_us} us");
        world.stream(0, 1, 20 * MS, 90 * S);
        assert!(world.nodes[0].kept.len() <= 1, "seed {seed}");
        found += u32::from(is_direct(&world));
    }
    assert!(found >= 15, "{found} of 20");
}

#[test]
fn without_udp_there_is_tcp() {
    for seed in 0..50 {
        for kinds in [[NO_UDP, NO_UDP], [NO_UDP, CONE], [SYMMETRIC, NO_UDP]] {
            let mut world = pair(seed, kinds.map(Some));
            let first_us = first_packet(&mut world, 0, 1);
            assert!(first_us < S, "seed {seed} {kinds:?}: {first_us} us");
            world.run_to(S, is_relayed).expect("relayed");
            let is_tcp = |way: &Way| matches!(way, Way::Relay { tcp: true, .. });
            for (n, kind) in kinds.into_iter().enumerate() {
                let ways = world.ways(n, 1 - n);
                assert_eq!(ways.iter().all(is_tcp), kind == NO_UDP, "seed {seed} {kinds:?}: {ways:?}");
            }
        }
    }
}

#[test]
fn double_nat() {
    for seed in 0..50 {
        let mut world = World::new(seed, 2);
        let outer = world.nat(CONE, 0, public(1));
        let inner = world.nat(CONE, outer, IpAddr::from([10, 0, 1, 200]));
        let other = world.nat(CONE, 0, public(2));
        world.node(inner);
        world.node(other);
        world.node(inner);
        world.begin();
        world.run_for(4 * S);
        first_packet(&mut world, 0, 1);
        world.run_to(S, is_direct).expect("direct");
        first_packet(&mut world, 0, 2);
        world.run_to(S, |world| world.is_direct(0, 2) && world.is_direct(2, 0)).expect("direct");
        let is_near = |way: &Way| matches!(way, Way::Udp(to) if to.ip().to_string().starts_with("10.0."));
        assert!(world.ways(0, 2).iter().any(is_near), "{:?}", world.ways(0, 2));
    }
}

#[test]
fn a_cut_path_is_left_and_taken_again_in_under_three_seconds() {
    let (a, b) = (Host::Node(0), Host::Node(1));
    for seed in 0..100 {
        let mut world = direct_pair(seed, [Some(CONE), Some(CONE)]);
        world.stream(0, 1, 20 * MS, 10 * S);
        world.cuts.insert((a, b));
        // One way only, for half of the seeds.
        if seed % 2 == 0 {
            world.cuts.insert((b, a));
        }
        let gap_us = world.stream(0, 1, 20 * MS, 20 * S);
        assert!(gap_us < 3 * S, "seed {seed}: nothing came for {gap_us} us");
        assert!(!world.is_direct(0, 1) && world.is_relayed(0, 1));
        world.cuts.clear();
        let began_us = world.now_us;
        while !world.is_direct(0, 1) {
            world.stream(0, 1, 20 * MS, 100 * MS);
            assert!(world.now_us - began_us < 3 * S, "seed {seed}: not direct again");
        }
    }
}

#[test]
fn a_relay_that_dies_is_replaced_by_the_other_and_used_again_when_it_is_back() {
    for seed in 0..100 {
        let kinds = [[SYMMETRIC, SYMMETRIC], [NO_UDP, SYMMETRIC], [NO_UDP, NO_UDP]];
        let mut world = pair(seed, kinds[usize::try_from(seed % 3).unwrap()].map(Some));
        first_packet(&mut world, 0, 1);
        world.stream(0, 1, 20 * MS, 5 * S);
        assert_eq!(world.ways(0, 1).len(), 2);
        world.relays[0].is_on = false;
        let gap_us = world.stream(0, 1, 20 * MS, 20 * S);
        assert!(gap_us < 3 * S, "seed {seed}: nothing came for {gap_us} us");
        assert_eq!(world.ways(0, 1).len(), 1, "seed {seed}");
        world.restart_relay(0);
        let gap_us = world.stream(0, 1, 20 * MS, 20 * S);
        assert!(gap_us < 100 * MS, "seed {seed}: nothing came for {gap_us} us");
        assert_eq!(world.ways(0, 1).len(), 2, "seed {seed}");
    }
}

#[test]
fn the_introducer_may_be_away_for_an_hour() {
    for seed in 0..6 {
        let kinds = [[CONE, CONE], [SYMMETRIC, SYMMETRIC], [NO_UDP, CONE]];
        let mut world = pair(seed, kinds[usize::try_from(seed % 3).unwrap()].map(Some));
        world.weather.loss_ppm = 10_000;
        first_packet(&mut world, 0, 1);
        world.is_introducer_on = false;
        let gap_us = world.stream(0, 1, S, 3_600 * S);
        assert!(gap_us < 5 * S, "seed {seed}: nothing came for {gap_us} us");
        let handshakes = world.handshakes(0, 1);
        assert!((25..40).contains(&handshakes), "seed {seed}: {handshakes} handshakes in an hour");
    }
}

#[test]
fn an_address_change_is_survived() {
    for seed in 0..100 {
        let mut world = direct_pair(seed, [Some(CONE), Some(CONE)]);
        world.stream(0, 1, 20 * MS, 5 * S);
        if seed % 2 == 0 {
            // The line got another address; nobody tells the machine behind it.
            world.change_nat(1, CONE, public(33));
        } else {
            let own = vec![SocketAddr::from(([10, 0, 1, 77], 4000))];
            world.nodes[0].own.clone_from(&own);
            world.input(0, Input::OwnAddresses(own));
        }
        for (n, to) in [(0, 1), (1, 0)] {
            let gap_us = world.stream(n, to, 20 * MS, 15 * S);
            assert!(gap_us < 3 * S, "seed {seed} {n}: nothing came for {gap_us} us");
        }
        assert!(is_direct(&world), "seed {seed}: {:?} {:?}", world.ways(0, 1), world.ways(1, 0));
    }
}

#[test]
fn a_narrow_path_is_found_out() {
    for seed in 0..50 {
        let mut world = pair(seed, [Some(CONE), Some(CONE)]);
        let (a, b) = (Host::Node(0), Host::Node(1));
        world.most_bytes.extend([((a, b), 1252), ((b, a), 1252)]);
        first_packet(&mut world, 0, 1);
        world.run_to(5 * S, is_direct).expect("direct");
        assert_eq!(world.packet_bytes(0, 1), vec![1228], "seed {seed}");
        world.stream(0, 1, 20 * MS, 5 * S);
        // A wide one becomes narrow while large packets go by it.
        let mut world = direct_pair(seed, [Some(CONE), Some(CONE)]);
        world.stream(0, 1, 20 * MS, 5 * S);
        assert_eq!(world.packet_bytes(0, 1), vec![1440], "seed {seed}");
        world.most_bytes.extend([((a, b), 1400), ((b, a), 1400)]);
        world.stream(0, 1, 20 * MS, 10 * S);
        assert!(world.is_direct(0, 1), "seed {seed}");
        assert_eq!(world.packet_bytes(0, 1), vec![1340], "seed {seed}");
    }
}

#[test]
fn whatever_is_said_fits_the_least_packet_of_ipv6() {
    for seed in 0..40 {
        for kinds in [[CONE, CONE], [SYMMETRIC, SYMMETRIC]] {
            let mut world = World::new(seed, 2);
            world.privacy.padded = seed % 2 == 0;
            let hosts = [Host::Node(0), Host::Node(1), Host::Relay(0), Host::Relay(1)];
            let pairs = hosts.iter().flat_map(|from| hosts.map(|to| (*from, to)));
            // Less the headers of IPv6 and UDP.
            world.most_bytes.extend(pairs.map(|pair| (pair, 1280 - 48)));
            let mut world = pair_in(world, kinds.map(Some));
            let first_us = first_packet(&mut world, 0, 1);
            assert!(first_us < S, "seed {seed}: {first_us} us until the first packet");
            let is_there = if kinds == [CONE, CONE] { is_direct } else { is_relayed };
            world.run_to(5 * S, is_there).expect("the best way that there is");
            let gap_us = world.stream(0, 1, 20 * MS, 20 * S);
            assert!(gap_us < S, "seed {seed}: nothing came for {gap_us} us");
            assert!(world.packet_bytes(0, 1).iter().all(|bytes| *bytes == 1228), "seed {seed}");
        }
    }
}

#[test]
fn nothing_is_accepted_from_strangers_other_clusters_and_those_who_left() {
    for seed in 0..50 {
        let mut world = World::new(seed, 2);
        let nets = [world.nat(CONE, 0, public(1)), world.nat(CONE, 0, public(2)), 0, 0];
        world.node(nets[0]);
        world.node(nets[1]);
        world.node_of(nets[2], "cluster", false);
        world.node_of(nets[3], "another cluster", true);
        world.begin();
        world.run_for(4 * S);
        first_packet(&mut world, 0, 1);
        for n in [2, 3] {
            for _ in 0..300 {
                world.data(n, 0, 66, 200);
                world.run_for(10 * MS);
            }
            assert!(world.ways(n, 0).is_empty() && world.ways(0, n).is_empty(), "seed {seed}");
        }
        assert!(!world.has(0, 66), "seed {seed}");
        let gone = world.nodes[1].key;
        let left = world.nodes[1].table.clone();
        world.set_members(|member| member.key != gone);
        assert!(world.nodes[0].table.receive.is_empty() || world.ways(0, 1).is_empty());
        // It goes on sending by what it had.
        world.nodes[1].table = left;
        for _ in 0..300 {
            world.data(1, 0, 67, 200);
            world.run_for(10 * MS);
        }
        assert!(!world.has(0, 67), "seed {seed}");
    }
}

#[test]
fn fifty_members_reach_each_other_in_under_two_seconds() {
    let kinds = [None, Some(CONE), Some(CONE), Some(SYMMETRIC), Some(STEPPING), Some(NO_UDP)];
    for seed in 0..2 {
        let mut world = World::new(seed, 2);
        for n in 0..50_u8 {
            let kind = kinds[usize::from(n) % kinds.len()];
            let net = kind.map_or(0, |kind| world.nat(kind, 0, public(n + 1)));
            world.node(net);
        }
        world.begin();
        world.run_for(4 * S);
        let mut waiting: Vec<(usize, usize)> =
            (0..50).flat_map(|n| (0..50).map(move |to| (n, to))).filter(|(n, to)| n != to).collect();
        let began_us = world.now_us;
        while !waiting.is_empty() {
            assert!(world.now_us - began_us < 2 * S, "seed {seed}: {} pairs still wait", waiting.len());
            waiting.retain(|(n, to)| !world.has(*to, number(*n, *to)));
            for (n, to) in &waiting {
                world.data(*n, *to, number(*n, *to), 200);
            }
            world.run_for(20 * MS);
        }
        println!("fifty members: every first packet within {} ms", (world.now_us - began_us) / MS);
    }
}

fn number(n: usize, to: usize) -> u64 {
    (n * 100 + to) as u64
}

#[test]
fn eager_members_are_direct_before_a_packet_asks() {
    for seed in 0..50 {
        let mut world = World::new(seed, 2);
        for n in 1..5 {
            let net = world.nat(CONE, 0, public(n));
            world.node(net);
        }
        world.make_eager();
        world.begin();
        world.run_for(6 * S);
        for (n, to) in (0..4).flat_map(|n| (0..4).map(move |to| (n, to))).filter(|(n, to)| n != to) {
            assert!(world.is_direct(n, to), "seed {seed}: {n} to {to} by {:?}", world.ways(n, to));
            assert_eq!(world.handshakes(n, to), 1, "seed {seed}: {n} to {to}");
        }
    }
}

#[test]
fn a_machine_wakes_seldom_and_a_pair_that_fell_silent_talks_again_without_the_introducer() {
    for kinds in [[CONE, CONE], [SYMMETRIC, SYMMETRIC], [NO_UDP, CONE], [NO_UDP, NO_UDP]] {
        let mut world = pair(1, kinds.map(Some));
        first_packet(&mut world, 0, 1);
        world.is_introducer_on = false;
        for for_s in [120, 300, 1_500] {
            world.nodes[0].ticks = 0;
            world.run_for(for_s * S);
            assert!(
                world.nodes[0].ticks < for_s * 5,
                "{kinds:?}: {} ticks in {for_s} s",
                world.nodes[0].ticks
            );
        }
        assert!(world.ways(0, 1).is_empty(), "it fell silent");
        let first_us = first_packet(&mut world, 0, 1);
        assert!(first_us < S, "{kinds:?}: {first_us} us");
        // A relay that cannot be reached at all is not asked all the time.
        world.relays.iter_mut().for_each(|relay| relay.is_on = false);
        world.nodes[0].ticks = 0;
        world.run_for(300 * S);
        assert!(world.nodes[0].ticks < 300 * 8, "{kinds:?}: {} ticks", world.nodes[0].ticks);
    }
}

#[test]
fn an_idle_pair_says_little() {
    let mut world = direct_pair(1, [Some(CONE), Some(CONE)]);
    world.run_for(60 * S);
    world.traffic.clear();
    world.run_for(300 * S);
    let bytes: u64 =
        world.traffic.iter().filter(|((from, _), _)| *from == Host::Node(0)).map(|(_, n)| n).sum();
    println!("an idle pair: {} bytes a minute from one member", bytes / 5);
    assert!(bytes / 5 < 3_000, "{bytes} bytes in five minutes");
    assert!(is_direct(&world));
}

#[test]
fn whoever_hides_behind_relays_is_seen_by_no_member() {
    for seed in 0..20 {
        let mut world = World::new(seed, 2);
        world.privacy = Privacy { via_relay: true, ..Privacy::default() };
        let mut world = pair_in(world, [Some(CONE), None]);
        first_packet(&mut world, 0, 1);
        world.stream(0, 1, 20 * MS, 10 * S);
        world.stream(1, 0, 20 * MS, 10 * S);
        assert!(is_relayed(&world));
        let is_between = |(from, to): &(Host, Host)| matches!((from, to), (Host::Node(_), Host::Node(_)));
        assert!(!world.traffic.keys().any(is_between), "seed {seed}: {:?}", world.traffic);
    }
}
