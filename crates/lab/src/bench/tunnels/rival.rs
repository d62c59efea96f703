//! Who carries the bytes: each started as its own documentation says, all on the loopback. Who is not installed is left out.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ionet_net::RelayInfo;
use ionet_net::relay::RelayMetrics;

use super::load;
use crate::bench::overlay::is_installed;
use crate::{LabError, Result};

/// Who carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rival {
    /// Nobody.
    Direct,
    /// This project's tunnel, once it has moved to a relay's splicer.
    Ionet,
    /// The same on its QUIC stream, straight to the member.
    IonetStream,
    /// The same on its QUIC stream through the QUIC library's relay.
    IonetRelayed,
    Rathole,
    RatholeNoise,
    Bore,
    Ssh,
}

/// A rival that runs.
pub(super) struct Running {
    pub(super) rival: Rival,
    pub(super) at: SocketAddr,
    relay: Option<Told>,
    processes: Vec<Process>,
}

/// A process that ends when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Rival {
    pub(super) const ALL: [Self; 8] = [
        Self::Direct,
        Self::Ionet,
        Self::IonetStream,
        Self::IonetRelayed,
        Self::Rathole,
        Self::RatholeNoise,
        Self::Bore,
        Self::Ssh,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Ionet => "ionet",
            Self::IonetStream => "ionet_stream",
            Self::IonetRelayed => "ionet_relayed",
            Self::Rathole => "rathole",
            Self::RatholeNoise => "rathole_noise",
            Self::Bore => "bore",
            Self::Ssh => "ssh",
        }
    }

    /// How to get it, if it is not there.
    pub(super) fn missing(self) -> Option<&'static str> {
        let (program, hint) = match self {
            Self::Rathole | Self::RatholeNoise => ("rathole", "cargo install rathole"),
            Self::Bore => ("bore", "cargo install bore-cli"),
            Self::Ssh => ("/usr/sbin/sshd", "apt install openssh-server"),
            _ => return None,
        };
        (!is_installed(program)).then_some(hint)
    }

    pub(super) fn start(self, dir: &Path, service: SocketAddr) -> Result<Running> {
        let dir = dir.join(self.name());
        std::fs::create_dir_all(&dir).map_err(LabError::io("make a folder"))?;
        let running = match self {
            Self::Direct => Running { rival: self, at: service, relay: None, processes: Vec::new() },
            Self::Ionet | Self::IonetStream | Self::IonetRelayed => self.ionet(&dir, service)?,
            Self::Rathole | Self::RatholeNoise => self.rathole(&dir, service)?,
            Self::Bore => self.bore(service)?,
            Self::Ssh => self.ssh(&dir, service)?,
        };
        load::wait(running.at)?;
        Ok(running)
    }

    fn ionet(self, dir: &Path, service: SocketAddr) -> Result<Running> {
        let relayed: &[&str] = if self == Self::IonetRelayed { &["--relayed"] } else { &[] };
        let dir = dir.display().to_string();
        let (relay_process, relay, mut info) = told::<RelayInfo>(&["relay", &dir])?;
        if let (Some(ports), false) = (&mut info.forwarder, self == Self::Ionet) {
            ports.splice = 0;
        }
        let info = serde_json::to_string(&info).unwrap_or_default();
        let service = service.to_string();
        let words = [&["member", &info, &service], relayed].concat();
        let (member_process, member, addr) = told::<serde_json::Value>(&words)?;
        let addr = addr.to_string();
        let words = [&["client", &info, &addr], relayed].concat();
        let (client_process, client, at) = told::<SocketAddr>(&words)?;
        // Their inputs stay open for as long as they do.
        let mut processes = vec![relay_process, member_process, client_process];
        for (process, told) in processes[1..].iter_mut().zip([member, client]) {
            process.0.stdin = Some(told.input);
        }
        Ok(Running { rival: self, at, relay: Some(relay), processes })
    }

    fn rathole(self, dir: &Path, service: SocketAddr) -> Result<Running> {
        let [control, at] = free()?;
        let noise = |side: &str, key: &str| match self {
            Self::Rathole => String::new(),
            _ => format!("[{side}.transport]\ntype = \"noise\"\n[{side}.transport.noise]\n{key}\n"),
        };
        let (private, public) = rathole_keys()?;
        let (private, public) =
            (format!("local_private_key = \"{private}\""), format!("remote_public_key = \"{public}\""));
        let server = format!(
            "[server]\nbind_addr = \"{control}\"\ndefault_token = \"t\"\n{}[server.services.b]\nbind_addr = \"{at}\"\n",
            noise("server", &private)
        );
        let client = format!(
            "[client]\nremote_addr = \"{control}\"\ndefault_token = \"t\"\n{}[client.services.b]\nlocal_addr = \"{service}\"\n",
            noise("client", &public)
        );
        let mut processes = Vec::new();
        for (side, text) in [("server", server), ("client", client)] {
            let file = dir.join(format!("{side}.toml"));
            std::fs::write(&file, text).map_err(LabError::io("write rathole's settings"))?;
            processes.push(start("rathole", &[&format!("--{side}"), &file.display().to_string()])?);
        }
        Ok(Running { rival: self, at, relay: None, processes })
    }

    fn bore(self, service: SocketAddr) -> Result<Running> {
        let [at, _] = free()?;
        let port = at.port().to_string();
        let server = start("bore", &["server", "--min-port", &port, "--max-port", &port])?;
        let words = ["local", &service.port().to_string(), "--to", "127.0.0.1", "--port", &port];
        // It ends at once where the server is not up yet.
        let again = format!("until bore {}; do sleep 0.1; done", words.join(" "));
        let client = start("sh", &["-c", &again])?;
        Ok(Running { rival: self, at, relay: None, processes: vec![server, client] })
    }

    fn ssh(self, dir: &Path, service: SocketAddr) -> Result<Running> {
        let [control, at] = free()?;
        let at_dir = |name: &str| dir.join(name).display().to_string();
        for name in ["host", "user"] {
            let made = start("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &at_dir(name)])?.0.wait();
            made.map_err(LabError::io("make a key"))?;
        }
        // Where it is not there sshd says no; it is empty anyway.
        let _ = std::fs::create_dir_all("/run/sshd");
        let options = [
            format!("Port={}", control.port()),
            "ListenAddress=127.0.0.1".into(),
            format!("HostKey={}", at_dir("host")),
            format!("AuthorizedKeysFile={}", at_dir("user.pub")),
            "StrictModes=no".into(),
            "UsePAM=no".into(),
            "PidFile=none".into(),
        ];
        let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
        let server = start("/usr/sbin/sshd", &[&["-D", "-e", "-f", "/dev/null"], &options[..]].concat())?;
        let (local, port) = (format!("{at}:{service}"), control.port().to_string());
        let user = at_dir("user");
        let known =
            ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"];
        let words = [&known[..], &["-N", "-i", &user, "-p", &port, "-L", &local, "127.0.0.1"]].concat();
        let again = format!("until ssh {}; do sleep 0.1; done", words.join(" "));
        let client = start("sh", &["-c", &again])?;
        Ok(Running { rival: self, at, relay: None, processes: vec![server, client] })
    }
}

impl Running {
    /// The process in the middle, if this one has one.
    pub(super) fn relay_pid(&self) -> Option<u32> {
        let has = !matches!(self.rival, Rival::Direct | Rival::Ssh);
        self.processes.first().filter(|_| has).map(|process| process.0.id())
    }

    /// What our relay counted.
    pub(super) fn relay_metrics(&mut self) -> Result<RelayMetrics> {
        let relay = self.relay.as_mut().ok_or_else(|| LabError::Broken("no relay of ours".into()))?;
        relay.ask()
    }
}

/// A part of ours that answers.
struct Told {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Told {
    fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(LabError::io("hear a part of the tunnel"))?;
        serde_json::from_str(&line).map_err(|error| LabError::Broken(format!("{error} in {line:?}")))
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        self.input.write_all(b"\n").map_err(LabError::io("ask a part of the tunnel"))?;
        self.line()
    }
}

/// Starts a part of ours; its first line.
fn told<T: serde::de::DeserializeOwned>(words: &[&str]) -> Result<(Process, Told, T)> {
    let program: PathBuf = std::env::current_exe().map_err(LabError::io("find this program"))?;
    let mut command = Command::new(program);
    command.arg("part").args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(LabError::io("start a part of the tunnel"))?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(LabError::Broken("a part of the tunnel without a pipe".into()));
    };
    let mut told = Told { input, output: BufReader::new(output) };
    let first = told.line()?;
    Ok((Process(child), told, first))
}

fn start(program: &str, words: &[&str]) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Its own children, if it is a shell, end with it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().map(Process).map_err(LabError::io(format!("start {program}")))
}

fn rathole_keys() -> Result<(String, String)> {
    let said =
        Command::new("rathole").arg("--genkey").output().map_err(LabError::io("make rathole's keys"))?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines[..] {
        [_, private, _, public] => Ok((private.to_owned(), public.to_owned())),
        _ => Err(LabError::Broken(format!("rathole's keys: {text}"))),
    }
}

/// Two ports that were free a moment ago.
fn free() -> Result<[SocketAddr; 2]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(LabError::io("find a free port"));
    let [one, other] = [bind()?, bind()?];
    let at = |listener: &TcpListener| listener.local_addr().map_err(LabError::io("find a free port"));
    Ok([at(&one)?, at(&other)?])
}
