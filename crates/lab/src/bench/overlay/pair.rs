//! Two machines with one wire between them, as a network sees them: namespaces and a veth pair.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::testbed::host::{Host, Process, Start};
use crate::{LabError, Result};

/// The ends of the wire.
pub(super) const UNDERLAY: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];
const DEVICE: &str = "wire";
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the wire does to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// As the kernel gives it: up to 64 KiB travel as one.
    Offloads,
    /// Packets arrive one by one, as from most network cards' point of view.
    NoOffloads,
    /// With offloads, and of 200 packets one is lost in each direction.
    Loss,
}

impl Condition {
    pub(super) const ALL: [Self; 3] = [Self::Offloads, Self::NoOffloads, Self::Loss];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Offloads => "offloads",
            Self::NoOffloads => "no_offloads",
            Self::Loss => "loss",
        }
    }
}

/// The two machines; they end when dropped, with all that runs on them.
pub(super) struct Pair {
    pub(super) hosts: [Host; 2],
}

impl Pair {
    pub(super) fn up(dir: &Path) -> Result<Self> {
        let host = |name: &str| Host::start(name, &dir.join(name), 0, true);
        let pair = Self { hosts: [host("left")?, host("right")?] };
        let [left, right] = &pair.hosts;
        left.run(&format!("ip link add {DEVICE} type veth peer name {DEVICE} netns {}", right.pid))?;
        for (host, address) in pair.hosts.iter().zip(UNDERLAY) {
            host.run(&format!("ip addr add {address}/24 dev {DEVICE}; ip link set {DEVICE} up"))?;
        }
        Ok(pair)
    }

    /// Makes the wire behave so.
    pub(super) fn set(&self, condition: Condition) -> Result<()> {
        let offloads = if condition == Condition::NoOffloads { "off" } else { "on" };
        let loss = match condition {
            Condition::Loss => format!(
                "nft 'add table netdev bench; add chain netdev bench in {{ type filter hook ingress device {DEVICE} \
                 priority 0; }}; add rule netdev bench in numgen random mod 200 0 drop'"
            ),
            _ => {
                "nft list table netdev bench >/dev/null 2>&1 && nft delete table netdev bench || true".into()
            }
        };
        for host in &self.hosts {
            host.run(&format!(
                "ethtool -K {DEVICE} tso {offloads} gso {offloads} gro {offloads} >/dev/null"
            ))?;
            host.run(&loss)?;
        }
        Ok(())
    }

    /// Starts a process that stays on one of them.
    pub(super) fn start(&self, side: usize, name: &str, words: &[&str]) -> Result<Process> {
        let host = &self.hosts[side];
        let start = Start {
            words: words.iter().map(ToString::to_string).collect(),
            variables: std::collections::BTreeMap::new(),
            log: host.dir.join(format!("{name}.log")),
        };
        host.start_process(&start)
    }

    /// Waits until the left one reaches an address.
    pub(super) fn wait_until_reachable(&self, address: Ipv4Addr) -> Result<()> {
        self.wait(&format!("{address} to answer"), |left| {
            left.run(&format!("ping -c 1 -W 1 {address}")).is_ok()
        })
    }

    pub(super) fn wait(&self, what: &str, there: impl Fn(&Host) -> bool) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if there(&self.hosts[0]) {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(LabError::Broken(format!("waited {} s in vain for {what}", PATIENCE.as_secs())))
    }
}
