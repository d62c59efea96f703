//! The testbed: machines in namespaces behind routers of several kinds, lines between them, the real binary on them,
//! and faults.
//!
//! Always holds: all of it ends with the process that made it, however that ends; two testbeds do not touch each other.
//! What is real: the binary, its processes, kernels' NAT and TCP, time. What is not: the lines, and that all machines share
//! one kernel, its clock and its processors.

pub mod cloud;
pub mod fault;
pub mod file;
pub mod host;
pub mod line;
pub mod member;
pub mod net;
pub mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{LabError, Result};
use file::{Family, Link, Machine, Nat, Site, TestbedFile};
use host::Host;
use line::Quality;
use net::{Laid, Lan};
use wire::Wire;

/// What a testbed's folder is called before its name.
pub const PREFIX: &str = "ionet-lab-";
const STATE: &str = "state.json";
/// A packet with the overlay's headers must fit: nobody on the way fragments.
const MTU_BYTES: u32 = 1500;
/// A lab that is told to end gets this long.
const LAB_PATIENCE: Duration = Duration::from_secs(15);

/// Machines and lines; everything ends when dropped.
#[derive(Debug)]
pub struct Testbed {
    /// What it was made from.
    pub file: TestbedFile,
    /// By the machine or site at its end.
    wires: BTreeMap<String, Wire>,
    /// Of the wires.
    numbers: BTreeMap<String, u8>,
    hosts: BTreeMap<String, Host>,
    addresses: BTreeMap<String, IpAddr>,
    /// How often a site has had another address.
    changes: BTreeMap<String, u8>,
    isolated: bool,
    /// The program that a machine's first process is.
    lab: PathBuf,
    dir: PathBuf,
}

/// What a running testbed tells those who want to enter it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// The lab's own process.
    pub lab_pid: u32,
    /// Each machine's first process and address.
    pub hosts: BTreeMap<String, (u32, IpAddr)>,
}

/// A testbed's folder.
pub fn dir_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{name}"))
}

/// Why machines with addresses of their own cannot be made here; `None` if they can.
pub fn missing() -> Option<String> {
    let probe = || -> Result<()> {
        let dir = tempfile::tempdir().map_err(LabError::io("make a folder"))?;
        let [internet, router] =
            ["probe-internet", "probe-router"].map(|name| Host::start(name, dir.path(), 1, true));
        let (internet, router) = (internet?, router?);
        net::set_up_internet(&internet)?;
        let qualities = [Quality::default(); 2];
        let laid = Laid { number: 0, family: Family::Ipv4, mtu: MTU_BYTES, qualities, seed: 0 };
        let _wire = net::attach(&internet, &router, &laid)?;
        net::set_up_router(&router, &Lan::of_site(0, Nat::FullCone, Family::Ipv4), Nat::FullCone)
    };
    probe().err().map(|error| error.to_string())
}

impl Testbed {
    /// Makes machines and lines. Not `isolated`, all machines share this one's loopback and nothing has a line.
    pub fn up(file: TestbedFile, isolated: bool) -> Result<Self> {
        let me = std::env::current_exe().map_err(LabError::io("find this program"))?;
        Self::up_by(&me, file, isolated)
    }

    /// The same from another program than `ionet-lab`, which is at `lab`.
    pub fn up_by(lab: &Path, file: TestbedFile, isolated: bool) -> Result<Self> {
        let dir = dir_of(&file.name);
        if running(&file.name).is_some() {
            let name = &file.name;
            return Err(LabError::Broken(format!(
                "the testbed '{name}' is up already; end it by Ctrl-C or 'ionet-lab down', or use another name"
            )));
        }
        down(&file.name)?;
        std::fs::create_dir_all(dir.join("logs")).map_err(LabError::io(format!("make {}", dir.display())))?;
        let mut testbed = Self {
            file,
            wires: BTreeMap::new(),
            numbers: BTreeMap::new(),
            hosts: BTreeMap::new(),
            addresses: BTreeMap::new(),
            changes: BTreeMap::new(),
            isolated,
            lab: lab.to_owned(),
            dir,
        };
        let file = testbed.file.clone();
        let disks = [("server".to_owned(), file.server.clone()), ("client".into(), file.client.clone())];
        let relays =
            file.relays.iter().enumerate().map(|(n, relay)| (format!("relay-{}", n + 1), relay.clone()));
        testbed.host("internet", 0)?;
        if isolated {
            net::set_up_internet(&testbed.hosts["internet"])?;
        }
        for (name, machine) in disks.into_iter().chain(relays) {
            testbed.machine(&name, &machine)?;
        }
        for (n, site) in file.sites.iter().enumerate() {
            testbed.site(u8::try_from(n).unwrap_or(u8::MAX), site)?;
        }
        testbed.name_machines()?;
        testbed.write_state()?;
        Ok(testbed)
    }

    /// Tells every machine the names of all: who has IPv6 alone is reached by a name.
    fn name_machines(&self) -> Result<()> {
        if !self.isolated {
            return Ok(());
        }
        let names = self.addresses.iter().map(|(name, address)| format!("{address} {name}\n"));
        let hosts = self.dir.join("hosts");
        let text = format!("127.0.0.1 localhost\n::1 localhost\n{}", names.collect::<String>());
        std::fs::write(&hosts, text).map_err(LabError::io("write the names of the machines"))?;
        let bind = format!("mount --bind {} /etc/hosts", hosts.display());
        self.hosts.values().try_for_each(|host| host.run(&bind).map(drop))
    }

    fn host(&mut self, name: &str, disk_mib: u64) -> Result<&Host> {
        let disk_mib = if self.isolated { disk_mib } else { 0 };
        let host = Host::start_by(&self.lab, name, &self.dir.join(name), disk_mib, self.isolated)?;
        self.addresses.insert(name.to_owned(), Ipv4Addr::LOCALHOST.into());
        Ok(self.hosts.entry(name.to_owned()).or_insert(host))
    }

    fn machine(&mut self, name: &str, machine: &Machine) -> Result<()> {
        self.host(name, machine.disk_mib)?;
        self.attach(name, name, &machine.link)
    }

    /// Lays the wire of this name, at whose end this machine is.
    fn attach(&mut self, name: &str, host: &str, link: &Link) -> Result<()> {
        if !self.isolated {
            return Ok(());
        }
        let number = u8::try_from(self.wires.len()).unwrap_or(u8::MAX);
        let laid = Laid {
            number,
            family: self.file.family,
            mtu: if link.mtu == 0 { MTU_BYTES } else { link.mtu },
            qualities: link.qualities(),
            seed: self.file.seed.wrapping_mul(1000).wrapping_add(number.into()),
        };
        let wire = net::attach(&self.hosts["internet"], &self.hosts[host], &laid)?;
        self.wires.insert(name.to_owned(), wire);
        self.numbers.insert(name.to_owned(), number);
        self.addresses.insert(name.to_owned(), net::wire_addresses(number, laid.family)[1]);
        Ok(())
    }

    fn site(&mut self, n: u8, site: &Site) -> Result<()> {
        let lan = Lan::of_site(n, site.nat, self.file.family);
        self.host(&site.name, 0)?;
        match site.carrier {
            Some(nat) => self.carrier(n, site, nat)?,
            None => self.attach(&site.name, &site.name, &site.link)?,
        }
        if self.isolated {
            net::set_up_router(&self.hosts[&site.name], &lan, site.nat)?;
        }
        let public = site.nat == Nat::None || self.file.family == Family::Ipv6;
        if let (Some(number), true) = (self.numbers.get(&site.name), public) {
            net::route_to(&self.hosts["internet"], &lan, *number)?;
        }
        for (worker, name) in (1..).zip(site.worker_names()) {
            self.host(&name, site.disk_mib)?;
            if self.isolated {
                net::join_lan(&self.hosts[&site.name], &self.hosts[&name], worker, &lan)?;
                self.addresses.insert(name, lan.host(worker));
            }
        }
        Ok(())
    }

    /// The provider's router, and the site's behind it.
    fn carrier(&mut self, n: u8, site: &Site, nat: Nat) -> Result<()> {
        let (name, lan) = (site.carrier_name(), Lan::of_carrier(n));
        self.host(&name, 0)?;
        self.attach(&site.name, &name, &site.link)?;
        if self.isolated {
            net::set_up_router(&self.hosts[&name], &lan, nat)?;
            net::join_carrier(&self.hosts[&name], &self.hosts[&site.name], &lan)?;
        }
        Ok(())
    }

    /// The provider gives a site's router another address; all that came from the old one is forgotten.
    pub fn change_address(&mut self, site: &str) -> Result<IpAddr> {
        let number = self.number(site)?;
        let changes = self.changes.entry(site.to_owned()).or_default();
        let new = net::changed_address(number, *changes);
        *changes = changes.wrapping_add(1);
        net::change_address(self.get("internet")?, self.get(site)?, number, new)?;
        self.addresses.insert(site.to_owned(), new.into());
        Ok(new.into())
    }

    /// From now on nothing passes between the machines or sites of each pair; whatever else is not touched.
    pub fn keep_apart(&self, pairs: &[[&str; 2]]) -> Result<()> {
        let numbers = pairs.iter().map(|[one, other]| Ok([self.number(one)?, self.number(other)?]));
        net::keep_apart(self.get("internet")?, &numbers.collect::<Result<Vec<_>>>()?)
    }

    fn number(&self, name: &str) -> Result<u8> {
        self.numbers.get(name).copied().ok_or_else(|| no_host(name, self.numbers.keys()))
    }

    fn write_state(&self) -> Result<()> {
        let hosts = self.hosts.iter().map(|(name, host)| (name.clone(), (host.pid, self.addresses[name])));
        let running = Running { lab_pid: std::process::id(), hosts: hosts.collect() };
        let text = serde_json::to_string(&running).unwrap_or_default();
        std::fs::write(self.dir.join(STATE), text).map_err(LabError::io("write the testbed's state"))
    }

    /// Whether machines have addresses of their own.
    pub fn isolated(&self) -> bool {
        self.isolated
    }

    /// A machine by its name.
    pub fn get(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).ok_or_else(|| no_host(name, self.hosts.keys()))
    }

    /// Where a machine is.
    pub fn address(&self, name: &str) -> IpAddr {
        self.addresses.get(name).copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    /// The wires, by the machine or site at their end.
    pub fn wires(&self) -> &BTreeMap<String, Wire> {
        &self.wires
    }

    /// Where a program of a machine writes.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.wires.clear();
        let hosts = std::mem::take(&mut self.hosts);
        let leases: Vec<_> = hosts.values().flat_map(cloud::leases_of).collect();
        drop(hosts);
        for lease in &leases {
            cloud::remove_group(lease);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn no_host<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> LabError {
    let names: Vec<_> = names.map(String::as_str).collect();
    LabError::Broken(format!("there is no machine '{name}'; there are {}", names.join(", ")))
}

/// The testbed of this name, if it is up.
pub fn running(name: &str) -> Option<Running> {
    let text = std::fs::read_to_string(dir_of(name).join(STATE)).ok()?;
    let running: Running = serde_json::from_str(&text).ok()?;
    running.hosts.iter().any(|(host, (pid, _))| is_first(*pid, host)).then_some(running)
}

/// Whether this process is the first of this machine, and not another that got its number.
fn is_first(pid: u32, host: &str) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    words.contains(&format!(" {} {host} ", host::INIT_WORD))
}

/// Runs a command on a machine of a running testbed.
pub fn enter(name: &str, host: &str, words: &[String]) -> Result<ExitStatus> {
    let running = running(name).ok_or_else(|| {
        LabError::Broken(format!("the testbed '{name}' is not up; 'ionet-lab up' makes it"))
    })?;
    let (pid, _) = running.hosts.get(host).ok_or_else(|| no_host(host, running.hosts.keys()))?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "--mount", "--uts", "--pid", "--"]);
    let status = command.args(words).env("PS1", format!("{host}# ")).status();
    status.map_err(LabError::io("start nsenter"))
}

/// Ends whatever is left of a testbed: machines that run, its folder.
pub fn down(name: &str) -> Result<bool> {
    let dir = dir_of(name);
    let there = dir.exists();
    if let Some(running) = running(name) {
        // Its lab ends its machines in order.
        if let Some(lab) = host::Process::open(running.lab_pid) {
            lab.signal(rustix::process::Signal::TERM);
            lab.ended_within(LAB_PATIENCE);
        }
        for (host, (pid, _)) in &running.hosts {
            if is_first(*pid, host)
                && let Some(first) = host::Process::open(*pid)
            {
                first.kill();
            }
        }
    }
    // A lab that ended in order has removed it.
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(LabError::io(format!("remove {}", dir.display())))?;
    }
    Ok(there)
}
