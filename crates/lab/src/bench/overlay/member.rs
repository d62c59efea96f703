//! This project's overlay as one of those that carry packets: two members, each a process, and what many peers cost.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::pair::{Pair, UNDERLAY};
use super::{Size, measure};
use crate::bench::{Figure, Target, percentile, sorted};
use crate::testbed::host::Process;
use crate::{LabError, Result};

/// Peers that are listed and never there, in the measurement of what they cost.
const MANY: u8 = 98;
const MANY_INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 100, 0, 1), Ipv4Addr::new(10, 100, 0, 2)];

/// Starts a member on each machine; `absent` others are listed beside them.
pub(super) fn start(pair: &Pair, dir: &Path, inside: [Ipv4Addr; 2], absent: u8) -> Result<Vec<Process>> {
    let program = program()?;
    let entries: Vec<Value> = (0..absent + 2).map(|number| entry(inside, number)).collect();
    let mut processes = Vec::new();
    for (side, underlay) in UNDERLAY.iter().enumerate() {
        let device = format!("ionet{absent}");
        let settings = json!({
            "cluster": format!("bench-{absent}"),
            "tun": device,
            "listen": format!("{underlay}:{}", port(absent)),
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

fn entry(inside: [Ipv4Addr; 2], number: u8) -> Value {
    let there = inside.get(usize::from(number)).copied();
    let [a, b, c, _] = inside[0].octets();
    let own = there.unwrap_or_else(|| Ipv4Addr::new(a, b, c, number + 1));
    // Where nobody is, nobody answers.
    let at = UNDERLAY.get(usize::from(number)).copied().unwrap_or(Ipv4Addr::new(10, 98, 0, 200));
    json!({
        "number": number + 1,
        "v4": own,
        "v6": format!("fd00:{b:x}::{:x}", u16::from(number) + 1),
        "introducer": format!("{at}:{}", port(b) + 1),
    })
}

fn port(of: u8) -> u16 {
    7000 + 2 * u16::from(of)
}

/// The member's program, which cargo puts below this one.
fn program() -> Result<PathBuf> {
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
    start(pair, dir, MANY_INSIDE, MANY)?;
    pair.wait_until_reachable(MANY_INSIDE[1])?;
    let few = super::rival::Rival::Ionet.inside()[1];
    let mut shares = Vec::new();
    for _ in 0..size.rounds.max(1) {
        let alone = measure::stream(pair, few, size.seconds)?.gbit_per_second;
        let among_many = measure::stream(pair, MANY_INSIDE[1], size.seconds)?.gbit_per_second;
        shares.push(among_many / alone.max(1e-9));
    }
    let share = percentile(&sorted(shares), 50);
    let [few, many] = ["ionet0-", "ionet98-"].map(|settings| resident_mib(pair, settings));
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
