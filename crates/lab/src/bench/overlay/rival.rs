//! What an engineer would pick instead, each started as its own documentation says. A rival that is not installed is left
//! out, with a word on how to get it.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::member::{self, Kind};
use super::pair::{Pair, UNDERLAY};
use crate::testbed::host::{Process, succeeded};
use crate::{LabError, Result};

/// Who carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rival {
    /// Nobody: the wire itself.
    Raw,
    /// This project's overlay.
    Ionet,
    /// Debian's nebula.
    Nebula,
    /// Mullvad's user-space `WireGuard`.
    Gotatun,
    /// This project's overlay, all packets of one size.
    Cells,
    /// The same, with cover traffic.
    Private,
}

/// Whether a program is there to be run.
pub(in crate::bench) fn is_installed(program: &str) -> bool {
    let found = Command::new("/bin/sh").args(["-c", &format!("command -v {program}")]).output();
    found.is_ok_and(|output| output.status.success())
}

/// What a benchmark cannot do without, by program and package.
///
/// # Errors
/// If something of it is not installed, with the command that installs it.
pub(super) fn needs(programs: &[(&str, &str)]) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| !is_installed(program));
    let packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    Err(LabError::Broken(format!("programs are missing: apt install {}", packages.join(" "))))
}

impl Rival {
    /// What an engineer chooses from.
    pub(super) const OTHERS: &[Self] = &[Self::Raw, Self::Ionet, Self::Nebula, Self::Gotatun];
    /// What privacy is set against.
    pub(super) const PRIVATE: &[Self] = &[Self::Raw, Self::Ionet, Self::Cells, Self::Private];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Ionet => "ionet",
            Self::Nebula => "nebula",
            Self::Gotatun => "gotatun",
            Self::Cells => "cells",
            Self::Private => "cells_and_cover",
        }
    }

    /// The addresses of the two machines inside.
    pub(super) fn inside(self) -> [Ipv4Addr; 2] {
        match self {
            Self::Raw => UNDERLAY,
            // A network of its own each: a member's device takes a /16.
            other => [1, 2].map(|end| Ipv4Addr::new(10, 101 + other as u8, 0, end)),
        }
    }

    /// Why it cannot take part, if it cannot.
    pub(super) fn missing(self) -> Option<&'static str> {
        let (program, hint) = match self {
            Self::Raw | Self::Ionet | Self::Cells | Self::Private => return None,
            Self::Nebula => ("nebula", "nebula: apt install nebula"),
            Self::Gotatun => ("gotatun", "gotatun: cargo install gotatun-cli"),
        };
        (!is_installed(program)).then_some(hint)
    }

    /// Starts it on both machines and waits until packets pass; its processes.
    pub(super) fn start(self, pair: &Pair, dir: &Path) -> Result<Vec<Process>> {
        let processes = match self {
            Self::Raw => Vec::new(),
            Self::Ionet => member::start(pair, dir, self.inside(), Kind::Plain)?,
            Self::Cells => member::start(pair, dir, self.inside(), Kind::Cells)?,
            Self::Private => member::start(pair, dir, self.inside(), Kind::Private)?,
            Self::Nebula => nebula(pair, dir, self.inside())?,
            Self::Gotatun => gotatun(pair, self.inside())?,
        };
        pair.wait_until_reachable(self.inside()[1])?;
        Ok(processes)
    }
}

/// A network of two with a fresh authority; each knows where the other is.
fn nebula(pair: &Pair, dir: &Path, inside: [Ipv4Addr; 2]) -> Result<Vec<Process>> {
    certificate(dir, &["ca", "-name", "bench", "-out-crt", "ca.crt", "-out-key", "ca.key"])?;
    let mut processes = Vec::new();
    for (side, own) in inside.iter().enumerate() {
        let (name, ip) = (format!("side{side}"), format!("{own}/24"));
        certificate(dir, &["sign", "-name", &name, "-ip", &ip])?;
        let there = 1 - side;
        let rules = "[{port: any, proto: any, host: any}]";
        let config = format!(
            "pki: {{ca: {dir}/ca.crt, cert: {dir}/{name}.crt, key: {dir}/{name}.key}}\n\
             static_host_map: {{\"{}\": [\"{}:4242\"]}}\n\
             lighthouse: {{am_lighthouse: false}}\nlisten: {{host: 0.0.0.0, port: 4242}}\n\
             tun: {{dev: nebula, mtu: 1300}}\nlogging: {{level: warning}}\n\
             firewall: {{outbound: {rules}, inbound: {rules}}}\n",
            inside[there],
            UNDERLAY[there],
            dir = dir.display(),
        );
        let file = dir.join(format!("{name}.yaml"));
        std::fs::write(&file, config).map_err(LabError::io("write nebula's settings"))?;
        processes.push(pair.start(side, "nebula", &["nebula", "-config", &file.to_string_lossy()])?);
    }
    Ok(processes)
}

fn certificate(dir: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new("nebula-cert").args(words).current_dir(dir).output();
    succeeded(&output.map_err(LabError::io("start nebula-cert"))?, "nebula-cert")
}

/// Two key pairs that protect nothing: 32 times the same byte, and its public part.
const KEYS: [[&str; 2]; 2] = [
    [
        "0101010101010101010101010101010101010101010101010101010101010101",
        "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209",
    ],
    [
        "0202020202020202020202020202020202020202020202020202020202020202",
        "ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59",
    ],
];

/// Configured over its socket, in `WireGuard`'s cross-platform words.
fn gotatun(pair: &Pair, inside: [Ipv4Addr; 2]) -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    for (side, own) in inside.iter().enumerate() {
        let (device, there) = (format!("gtun{side}"), 1 - side);
        processes.push(pair.start(
            side,
            "gotatun",
            &["gotatun", "--disable-drop-privileges", "--foreground", &device],
        )?);
        let socket = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
        pair.wait("gotatun's socket", |_| UnixStream::connect(&socket).is_ok())?;
        let mut words = String::new();
        let _ = write!(
            words,
            "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint={}:51820\nallowed_ip={}/32\n\n",
            KEYS[side][0], KEYS[there][1], UNDERLAY[there], inside[there],
        );
        let mut talk = UnixStream::connect(&socket).map_err(LabError::io("reach gotatun"))?;
        talk.write_all(words.as_bytes()).map_err(LabError::io("tell gotatun"))?;
        let mut answer = [0; 64];
        let count = talk.read(&mut answer).map_err(LabError::io("hear gotatun"))?;
        if !String::from_utf8_lossy(&answer[..count]).contains("errno=0") {
            return Err(LabError::Broken("gotatun refuses its settings".into()));
        }
        pair.hosts[side]
            .run(&format!("ip addr add {own}/24 dev {device}; ip link set {device} mtu 1420 up"))?;
    }
    Ok(processes)
}
