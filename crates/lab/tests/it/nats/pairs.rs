//! How members behind every two kinds of router reach each other.

use super::{CONE, Cluster, SYMMETRIC, bed, up};

/// What a site's router does to UDP, as far as its peers can tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Everybody gets in.
    Open,
    /// Whoever was spoken to gets in, by the same mapping.
    Cone,
    /// Another mapping for each.
    Symmetric,
    /// Nothing passes.
    Blocked,
}

use Kind::{Blocked, Cone, Open, Symmetric};

/// The site, what its routers do, and what that comes to.
const SITES: [(&str, &str, Kind); 8] = [
    ("open", "nat = 'none'", Open),
    ("full", "nat = 'full_cone'", Open),
    ("home", CONE, Cone),
    ("flat", CONE, Cone),
    ("doubled", "nat = 'cone'\ncarrier = 'cone'", Cone),
    ("mobile", SYMMETRIC, Symmetric),
    ("office", SYMMETRIC, Symmetric),
    ("tcp-only", "nat = 'udp_blocked'", Blocked),
];

/// The paths of which each of two sees one. A port of chance is found by chance.
fn expected(from: Kind, to: Kind) -> &'static [&'static str] {
    match (from, to) {
        (Blocked, _) => &["tcp"],
        (_, Blocked) | (Symmetric, Symmetric) => &["relayed"],
        (Symmetric, Cone) | (Cone, Symmetric) => &["direct", "relayed"],
        (Open | Cone, Open | Cone) | (Open, Symmetric) | (Symmetric, Open) => &["direct"],
    }
}

fn kind_of(site: &str) -> Kind {
    SITES.iter().find(|(name, ..)| *name == site).unwrap().2
}

/// Every two of these reach each other as they should, and their bytes arrive.
fn check(cluster: &Cluster, expected: impl Fn(&str, &str) -> &'static [&'static str]) {
    let sites: Vec<&str> = cluster.members.keys().map(String::as_str).collect();
    let took = cluster.until("the path that is right for every pair", |links| {
        let count = sites.len() * (sites.len() - 1);
        links.len() == count
            && links.iter().all(|((from, to), link)| expected(from, to).contains(&link.path.as_str()))
    });
    println!("every path is right after {:.1} s", took.as_secs_f64());
    for from in &sites {
        let others: Vec<_> = sites.iter().copied().filter(|to| to != from).collect();
        let took = cluster.carries(from, &others, 100_000);
        println!("{from} carries to all others within {:.1} s", took.as_secs_f64());
    }
    for ((from, to), link) in cluster.links().iter().filter(|((from, to), _)| expected(from, to).len() > 1) {
        println!("{from} to {to}: {}", link.path);
    }
}

#[test]
fn members_behind_routers_of_all_kinds_reach_each_other_by_the_best_path_there_is() {
    let sites = bed(2, &SITES.map(|(name, routers, _)| (name, routers)));
    let Some(mut cloud) = up("pairs", &sites) else { return };
    // The clock of one worker is wrong by a day, and that of another.
    for (machine, shift) in [("open-1", "+86400s"), ("doubled-1", "-86400s")] {
        assert!(cloud.set_clock(machine, shift).unwrap(), "apt install faketime");
    }
    let heard = || Ok(cloud.all_heard()?.then_some(()));
    ionet_lab::testbed::cloud::wait_for("the workers with wrong clocks", super::PATIENCE, heard).unwrap();
    let cluster = Cluster::rent(&cloud, &[]);
    check(&cluster, |from, to| expected(kind_of(from), kind_of(to)));
    cluster.end();
}

#[test]
fn members_reach_each_other_where_there_is_nothing_but_ipv6() {
    let blocked = ("tcp-only", "nat = 'udp_blocked'");
    let sites = bed(2, &[("open", ""), ("home", CONE), ("flat", CONE), blocked]);
    let Some(cloud) = up("six", &format!("family = 'ipv6'\n{sites}")) else { return };
    let cluster = Cluster::rent(&cloud, &[]);
    check(&cluster, |from, to| match (kind_of(from), kind_of(to)) {
        (Blocked, _) => &["tcp"],
        (_, Blocked) => &["relayed"],
        _ => &["direct"],
    });
    cluster.end();
}
