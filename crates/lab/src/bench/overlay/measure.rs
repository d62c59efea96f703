//! One stream, small datagrams and round trips between the two machines, and what was spent on them.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::pair::Pair;
use crate::bench::{percentile, sorted};
use crate::testbed::host::Host;
use crate::{LabError, Result};

/// In which the kernel tells times to programs, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;
/// Small datagrams a second: what every rival can carry without loss.
const DATAGRAM_BYTES: u32 = 200;
const DATAGRAMS_PER_SECOND: u32 = 20_000;
const PINGS: u32 = 300;

/// A stream or a flood.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flow {
    pub(super) gbit_per_second: f64,
    pub(super) packets_per_second: f64,
    /// On both sides, the kernel's part and the measuring program's included.
    pub(super) cpu_seconds: f64,
    /// Of it, what the processes that carry the packets spent, in the kernel too.
    pub(super) carriers_seconds: f64,
    pub(super) gbit: f64,
    pub(super) packets: f64,
}

impl Flow {
    pub(super) fn cpu_per_gbit(self) -> f64 {
        self.cpu_seconds / self.gbit.max(1e-9)
    }

    pub(super) fn cpu_us_per_packet(self) -> f64 {
        self.cpu_seconds * 1e6 / self.packets.max(1.0)
    }

    pub(super) fn carriers_us_per_packet(self) -> f64 {
        self.carriers_seconds * 1e6 / self.packets.max(1.0)
    }
}

/// One TCP stream to `address` for so many seconds.
pub(super) fn stream(pair: &Pair, address: Ipv4Addr, seconds: u32) -> Result<Flow> {
    let (said, spent) = iperf(pair, &format!("-c {address} -t {seconds}"))?;
    let received = &said["end"]["sum_received"];
    let gbit = received["bytes"].as_f64().unwrap_or_default() * 8.0 / 1e9;
    let gbit_per_second = received["bits_per_second"].as_f64().unwrap_or_default() / 1e9;
    Ok(Flow { gbit_per_second, gbit, ..spent })
}

/// Datagrams of 200 bytes at a rate that all can carry.
pub(super) fn datagrams(pair: &Pair, address: Ipv4Addr, seconds: u32) -> Result<Flow> {
    let bits = DATAGRAMS_PER_SECOND * DATAGRAM_BYTES * 8;
    let words = format!("-c {address} -u -l {DATAGRAM_BYTES} -b {bits} -t {seconds}");
    let (said, spent) = iperf(pair, &words)?;
    let sum = &said["end"]["sum"];
    let field = |name: &str| sum[name].as_f64().unwrap_or_default();
    let packets = field("packets") - field("lost_packets");
    Ok(Flow { packets_per_second: packets / f64::from(seconds), packets, ..spent })
}

/// The middle one of many round trips, in milliseconds.
pub(super) fn round_trip_ms(pair: &Pair, address: Ipv4Addr) -> Result<f64> {
    let said = pair.hosts[0].run(&format!("ping -i 0.003 -c {PINGS} {address}"))?;
    let times = said.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok());
    let times: Vec<f64> = times.collect();
    if times.is_empty() {
        return Err(LabError::Broken(format!("no answer from {address}")));
    }
    Ok(percentile(&sorted(times), 50))
}

/// Starts the receiving side of all streams.
pub(super) fn listen(pair: &Pair) -> Result<()> {
    pair.start(1, "iperf3", &["iperf3", "-s"])?;
    let [_, right] = super::pair::UNDERLAY;
    pair.wait("iperf3", |left| left.run(&format!("iperf3 -c {right} -n 1K")).is_ok())
}

/// What iperf3 says, and what was spent meanwhile.
fn iperf(pair: &Pair, words: &str) -> Result<(Value, Flow)> {
    let before = [spent_seconds(pair), carriers_seconds(pair)];
    let said = pair.hosts[0].run(&format!("iperf3 -J {words}"))?;
    let spent = Flow {
        cpu_seconds: spent_seconds(pair) - before[0],
        carriers_seconds: carriers_seconds(pair) - before[1],
        ..Flow::default()
    };
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    match said["error"].as_str() {
        Some(error) => Err(LabError::Broken(format!("iperf3 {words}: {error}"))),
        None => Ok((said, spent)),
    }
}

/// What the two machines' processes spent, those that this process ran there, and the kernel's threads for packets that no
/// process handles: so others on this machine do not count.
fn spent_seconds(pair: &Pair) -> f64 {
    let there = pair.hosts.iter().flat_map(Host::processes).map(|seen| seen.pid.to_string());
    let mine = spent_ticks("self", [13, 14]);
    let all = there.chain(kernel_threads()).map(|pid| spent_ticks(&pid, [11, 12]));
    (mine + all.sum::<f64>()) / TICKS_PER_SECOND
}

/// What the two machines' processes spent that carry packets: those that measure are left out.
fn carriers_seconds(pair: &Pair) -> f64 {
    let there = pair.hosts.iter().flat_map(Host::processes);
    let carriers = there.filter(|seen| !seen.words.starts_with("iperf3"));
    carriers.map(|seen| spent_ticks(&seen.pid.to_string(), [11, 12])).sum::<f64>() / TICKS_PER_SECOND
}

/// The sum of two fields of a process's times, counted from its state; 0 for one that has ended.
fn spent_ticks(pid: &str, fields: [usize; 2]) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let words: Vec<&str> = behind_name.split_whitespace().collect();
    fields.iter().filter_map(|at| words.get(*at)?.parse::<f64>().ok()).sum()
}

fn kernel_threads() -> impl Iterator<Item = String> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().into_string().ok()).filter(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("ksoftirqd/")
    })
}
