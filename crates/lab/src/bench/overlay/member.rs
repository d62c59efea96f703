//! This project's overlay as one of those that carry packets: two members, each a process, and what many peers cost.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::pair::{Pair, UNDERLAY};
use super::{Size, measure};
use crate::bench::{Figure, Target, percentile, sorted};
use crate::testbed::host::Process;
use crate::{LabError, Result};

/// Peers that are listed and never there, in the measurement of what they cost.
const MANY: u8 = 98;
/// How long idle members are listened to.
const IDLE: Duration = Duration::from_secs(20);
const MANY_INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 100, 0, 1), Ipv4Addr::new(10, 100, 0, 2)];

/// What kind of cluster it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Two members.
    Plain,
    /// Two, and many others that are listed and never there.
    Many,
    /// Two whose packets are all of one size.
    Cells,
    /// The same, with cover traffic.
    Private,
}

impl Kind {
    /// The port of its members; the next one introduces them.
    fn port(self) -> u16 {
        7000 + 2 * self as u16
    }

    fn name(self) -> String {
        format!("ionet{}", self as u8)
    }
}

/// Starts a member on each machine.
pub(super) fn start(pair: &Pair, dir: &Path, inside: [Ipv4Addr; 2], kind: Kind) -> Result<Vec<Process>> {
    let program = program()?;
    let absent = if kind == Kind::Many { MANY } else { 0 };
    let entries: Vec<Value> = (0..absent + 2).map(|number| entry(inside, number, kind)).collect();
    let machines = if kind == Kind::Private { &["steady"][..] } else { &[] };
    let mut processes = Vec::new();
    for (side, underlay) in UNDERLAY.iter().enumerate() {
        let device = kind.name();
        let settings = json!({
            "cluster": device,
            "tun": device,
            "padded": matches!(kind, Kind::Cells | Kind::Private),
            "machines": machines,
            "listen": format!("{underlay}:{}", kind.port()),
            "me": entries[side],
            "members": entries,
        });
        let file = dir.join(format!("{device}-{side}.json"));
        std::fs::write(&file, settings.to_string()).map_err(LabError::io("write a member's settings"))?;
        // It ends with its input.
        let words = format!("tail -f /dev/null | {} {}", program.display(), file.display());
        processes.push(pair.start(side, &device, &["/bin/sh", "-c", &words])?);
    }
    Ok(processes)
}

fn entry(inside: [Ipv4Addr; 2], number: u8, kind: Kind) -> Value {
    let there = inside.get(usize::from(number)).copied();
    let [a, b, c, _] = inside[0].octets();
    let own = there.unwrap_or_else(|| Ipv4Addr::new(a, b, c, number + 1));
    // Where nobody is, nobody answers.
    let at = UNDERLAY.get(usize::from(number)).copied().unwrap_or(Ipv4Addr::new(10, 98, 0, 200));
    json!({
        "number": number + 1,
        "v4": own,
        "v6": format!("fd00:{b:x}:{c:x}::{:x}", u16::from(number) + 1),
        "introducer": format!("{at}:{}", kind.port() + 1),
    })
}

/// The member's program, which cargo puts below this one.
pub(super) fn program() -> Result<PathBuf> {
    let me = std::env::current_exe().map_err(LabError::io("find this program"))?;
    let program = me.with_file_name("examples").join("member");
    if program.exists() {
        return Ok(program);
    }
    let hint = "build it with 'cargo build -p ionet-overlay --example member'";
    Err(LabError::Broken(format!("there is no {}; {hint}", program.display())))
}

/// One stream between two of a hundred members, beside one between two of two, and the memory of each.
pub(super) fn cost_of_peers(pair: &Pair, dir: &Path, size: Size) -> Result<Vec<Figure>> {
    start(pair, dir, MANY_INSIDE, Kind::Many)?;
    pair.wait_until_reachable(MANY_INSIDE[1])?;
    let few = super::rival::Rival::Ionet.inside()[1];
    let mut shares = Vec::new();
    for _ in 0..size.rounds.max(1) {
        let alone = measure::stream(pair, few, size.seconds)?.gbit_per_second;
        let among_many = measure::stream(pair, MANY_INSIDE[1], size.seconds)?.gbit_per_second;
        shares.push(among_many / alone.max(1e-9));
    }
    let share = percentile(&sorted(shares), 50);
    let [few, many] = [Kind::Plain, Kind::Many].map(|kind| resident_mib(pair, &format!("{}-", kind.name())));
    Ok(vec![
        Figure::new("share_with_100_peers", share, "x").target(Target::AtLeast(0.9)),
        Figure::new("memory_with_1_peer", few, "MiB"),
        Figure::new("memory_a_peer", (many - few) * 1024.0 / f64::from(MANY), "KiB")
            .target(Target::Below(100.0)),
    ])
}

fn resident_mib(pair: &Pair, settings: &str) -> f64 {
    let seen = pair.hosts[0].processes();
    let sizes = seen.iter().filter(|seen| seen.words.contains(settings) && !seen.words.contains("tail")).map(
        |seen| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", seen.pid)).unwrap_or_default();
            let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            kib.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default()
                / 1024.0
        },
    );
    sizes.fold(0.0, f64::max)
}

/// What members of these kinds send while nobody has anything to say: KiB and packets a minute, each way on its own.
pub(super) fn idle_minute(pair: &Pair, kind: Kind) -> Result<[f64; 2]> {
    let left = &pair.hosts[0];
    let port = kind.port();
    left.run(&format!(
        "nft 'add table inet idle; add chain inet idle out {{ type filter hook output priority 0; }}; \
         add rule inet idle out udp sport {port} counter'"
    ))?;
    std::thread::sleep(IDLE);
    let said = left.run("nft -j list table inet idle; nft delete table inet idle")?;
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    let parts = said["nftables"].as_array().into_iter().flatten();
    let counter = parts.filter_map(|part| part["rule"]["expr"].as_array()).flatten();
    let counter = counter.map(|part| &part["counter"]).find(|counter| counter.is_object());
    let counter = counter.ok_or_else(|| LabError::Broken("nft counted nothing".into()))?;
    let a_minute = |name: &str| counter[name].as_f64().unwrap_or_default() * 60.0 / IDLE.as_secs_f64();
    Ok([a_minute("bytes") / 1024.0, a_minute("packets")])
}
