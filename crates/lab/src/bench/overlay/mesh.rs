//! Many members on one switch: how long the first packet between two takes that have never spoken, one pair at a time
//! and many at once. The time is what `ping` says, with handshake and finding each other in it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::plot::{Plot, Series};
use super::super::{Figure, Report, Target, percentile, sorted};
use super::member::program;
use crate::testbed::host::{Host, Start};
use crate::{LabError, Result};

const DEVICE: &str = "wire";
const PORT: u16 = 7000;
/// How many pairs speak one after the other.
const PAIRS: usize = 100;
/// How many others every member speaks to at once.
const AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const WANTED_MS: f64 = 2_000.0;

/// Makes `members` of them, at least 20 and at most 100.
///
/// # Errors
/// If something does not start, or is not installed.
pub fn run(dir: &Path, members: u8) -> Result<Report> {
    super::rival::needs(&[("ping", "iputils-ping")])?;
    let members = members.clamp(20, 100);
    let (_switch, hosts) = machines(dir, members)?;
    for host in &hosts {
        start(host, members)?;
    }
    for host in &hosts {
        wait_until_listening(host)?;
    }
    let count = hosts.len();
    // Neighbours first, then those further away: no pair twice, and none that the second part takes.
    let pairs = (0..PAIRS).map(|n| (n % count, (n % count + 1 + n / count) % count));
    let one_by_one =
        pairs.map(|(from, to)| first_packets(&hosts[from], &[to])).collect::<Result<Vec<_>>>()?;
    let far = count / 2 - AT_ONCE;
    let at_once = std::thread::scope(|scope| {
        let all: Vec<_> = (0..count)
            .map(|from| {
                let others: Vec<_> = (0..AT_ONCE).map(|n| (from + far + n) % count).collect();
                let host = &hosts[from];
                scope.spawn(move || first_packets(host, &others))
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap_or_else(|_| Ok(Vec::new()))).collect::<Result<Vec<_>>>()
    })?;
    Ok(report(members, &sorted(one_by_one.concat()), &sorted(at_once.concat())))
}

/// A switch and machines on it.
fn machines(dir: &Path, members: u8) -> Result<(Host, Vec<Host>)> {
    let host = |name: &str| Host::start(name, &dir.join(name), 0, true);
    let switch = host("switch")?;
    switch.run("ip link add lan type bridge; ip link set lan up")?;
    let mut hosts = Vec::new();
    for number in 1..=members {
        let host = host(&format!("member-{number}"))?;
        switch.run(&format!(
            "ip link add port-{number} type veth peer name {DEVICE} netns {}; ip link set port-{number} master lan up",
            host.pid
        ))?;
        host.run(&format!("ip addr add {}/24 dev {DEVICE}; ip link set {DEVICE} up", outside(number)))?;
        hosts.push(host);
    }
    Ok((switch, hosts))
}

fn outside(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 98, 1, number)
}

fn inside(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn start(host: &Host, members: u8) -> Result<()> {
    let entry = |number: u8| {
        json!({
            "number": number,
            "v4": inside(number),
            "v6": format!("fd77::{number:x}"),
            "introducer": format!("{}:{}", outside(number), PORT + 1),
        })
    };
    let number: u8 = host.name.trim_start_matches("member-").parse().unwrap_or(0);
    let settings = json!({
        "cluster": "mesh",
        "tun": "mesh",
        "listen": format!("{}:{PORT}", outside(number)),
        "me": entry(number),
        "members": (1..=members).map(entry).collect::<Vec<_>>(),
    });
    let file = host.dir.join("member.json");
    std::fs::write(&file, settings.to_string()).map_err(LabError::io("write a member's settings"))?;
    // It runs until its input ends.
    let words = format!("sleep infinity | {} {}", program()?.display(), file.display());
    let start = Start {
        words: ["sh", "-c", &words].map(str::to_owned).into(),
        variables: std::collections::BTreeMap::new(),
        log: host.dir.join("member.log"),
    };
    host.start_process(&start).map(drop)
}

fn wait_until_listening(host: &Host) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let said = std::fs::read_to_string(host.dir.join("member.log")).unwrap_or_default();
        if said.contains("listening on") {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Err(LabError::Broken(format!("{} never listened", host.name)))
}

/// Milliseconds of the first packet to each of these, all at once; one that never came took all the time there was.
fn first_packets(host: &Host, to: &[usize]) -> Result<Vec<f64>> {
    let pings = to.iter().map(|to| {
        let address = inside(u8::try_from(to + 1).unwrap_or(u8::MAX));
        format!("ping -n -c 1 -W {} {address} & ", PATIENCE.as_secs())
    });
    let said = host.run(&(pings.collect::<String>() + "wait"))?;
    let times = said.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok());
    let mut times: Vec<f64> = times.collect();
    times.resize(to.len(), PATIENCE.as_secs_f64() * 1e3);
    Ok(times)
}

fn report(members: u8, one_by_one: &[f64], at_once: &[f64]) -> Report {
    let slowest = |times: &[f64]| times.last().copied().unwrap_or(f64::INFINITY);
    let figures = vec![
        Figure::new("first_packet_p50", percentile(one_by_one, 50), "ms"),
        Figure::new("first_packet_slowest", slowest(one_by_one), "ms").target(Target::Below(WANTED_MS)),
        Figure::new("first_packet_at_once_p50", percentile(at_once, 50), "ms"),
        Figure::new("first_packet_at_once_slowest", slowest(at_once), "ms").target(Target::Below(WANTED_MS)),
    ];
    let series = [("one pair at a time", one_by_one), ("all at once", at_once)].map(|(name, times)| Series {
        name: name.into(),
        points: times
            .iter()
            .enumerate()
            .map(|(n, time)| (100.0 * (n + 1) as f64 / times.len() as f64, *time))
            .collect(),
    });
    let plot = Plot {
        title: "The first packet between two members".into(),
        x_label: "per cent of pairs".into(),
        y_label: "ms".into(),
        series: series.into(),
    };
    let what = format!(
        "{members} members on one switch: {} pairs one by one, then {} at once",
        one_by_one.len(),
        at_once.len()
    );
    Report { bench: "mesh", what, figures, plot }
}
