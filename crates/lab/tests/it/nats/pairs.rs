//! How members behind every two kinds of router reach each other.

use super::{Cluster, up};

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

const TWO_RELAYS: &str = "[[relays]]\n[[relays]]\n";
/// The site, what its routers do, and what that comes to.
const SITES: [(&str, &str, Kind); 8] = [
    ("open", "nat = 'none'", Open),
    ("full", "nat = 'full_cone'", Open),
    ("home", "nat = 'cone'", Cone),
    ("flat", "nat = 'cone'", Cone),
    ("doubled", "nat = 'cone'\ncarrier = 'cone'", Cone),
    ("mobile", "nat = 'symmetric'", Symmetric),
    ("office", "nat = 'symmetric'", Symmetric),
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
    let sites = SITES.map(|(name, routers, _)| format!("[[sites]]\nname = '{name}'\n{routers}\n"));
    let Some(mut cloud) = up("pairs", &format!("{TWO_RELAYS}{}", sites.concat())) else { return };
    // The clock of one worker is wrong by a day, and that of another.
    for (machine, shift) in [("open-1", "+86400s"), ("doubled-1", "-86400s")] {
        cloud.set_clock(machine, shift).unwrap();
    }
    let heard = || Ok(cloud.all_heard()?.then_some(()));
    ionet_lab::testbed::cloud::wait_for("the workers with wrong clocks", super::PATIENCE, heard).unwrap();
    let cluster = Cluster::rent(&cloud, &[]);
    check(&cluster, |from, to| expected(kind_of(from), kind_of(to)));
    cluster.end();
}

#[test]
fn members_reach_each_other_where_there_is_nothing_but_ipv6() {
    let sites = "family = 'ipv6'
        [[relays]]\n[[relays]]
        [[sites]]\nname = 'open'
        [[sites]]\nname = 'home'\nnat = 'cone'
        [[sites]]\nname = 'flat'\nnat = 'cone'";
    let Some(cloud) = up("six", sites) else { return };
    let cluster = Cluster::rent(&cloud, &[]);
    check(&cluster, |_, _| &["direct"]);
    cluster.end();
}
