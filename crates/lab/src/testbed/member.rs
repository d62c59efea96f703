//! The members of a cluster on a testbed: on which machine each is, and commands inside its box's network.
//!
//! Always holds: a member is found by its lease's folder and supervisor, never by a guess. Not here: what is asked of the
//! renter's server (`cloud`).

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::cloud::Cloud;
use super::host::descendants;
use crate::{LabError, Result};

/// One member.
#[derive(Debug, Clone)]
pub struct Member {
    /// The machine it is on.
    pub host: String,
    /// Its lease.
    pub lease: String,
    /// Its number in the cluster.
    pub slot: u64,
    /// Its address in the cluster.
    pub ip: Ipv4Addr,
    /// Its lease's folder, as seen from here.
    pub dir: PathBuf,
    /// A process in its box, by its number here.
    pid: u32,
}

impl Member {
    /// A command in the network of its box, and otherwise of this machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = in_network(self.pid);
        command.arg(program);
        command
    }
}

/// A command in the network of a process, to which its program and words are added.
pub fn in_network(pid: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--net", "--"]);
    command
}

impl Cloud {
    /// The members of a cluster that is up, by their numbers.
    pub fn members(&self, cluster: &str) -> Result<Vec<Member>> {
        let network = self.client.must(&["cluster", "network", cluster])?;
        let told = network["members"].as_array().into_iter().flatten();
        let mut members = told.map(|told| self.member(told)).collect::<Result<Vec<_>>>()?;
        members.sort_unstable_by_key(|member| member.slot);
        Ok(members)
    }

    fn member(&self, told: &Value) -> Result<Member> {
        let unknown = || LabError::Broken(format!("no box of the member {told} is on any machine"));
        let lease = told["lease"].as_str().ok_or_else(unknown)?;
        let (slot, ip) = (told["slot"].as_u64(), told["ip"].as_str().and_then(|ip| ip.parse().ok()));
        let on = |name: &String| {
            let host = self.testbed.get(name).ok()?;
            let dir = host.path(&host.dir.join("data/worker/leases").join(lease));
            let supervisor = self.supervisor_of(name, lease).filter(|_| dir.exists())?;
            Some((name.clone(), dir, in_box(supervisor)?))
        };
        let (host, dir, pid) = self.worker_names().iter().find_map(on).ok_or_else(unknown)?;
        let (slot, ip) = (slot.ok_or_else(unknown)?, ip.ok_or_else(unknown)?);
        Ok(Member { host, lease: lease.into(), slot, ip, dir, pid })
    }

    /// The supervisor of a lease on a machine.
    pub fn supervisor_of(&self, machine: &str, lease: &str) -> Option<u32> {
        let mine = |words: &str| words.contains(" supervisor --dir ") && words.contains(lease);
        let seen = self.testbed.get(machine).ok()?.processes();
        seen.into_iter().find(|seen| mine(&seen.words)).map(|seen| seen.pid)
    }
}

/// The first process below a supervisor that has another network than it.
pub fn in_box(supervisor: u32) -> Option<u32> {
    let network = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let outside = network(supervisor)?;
    let below = descendants(supervisor).into_iter();
    below.map(|seen| seen.pid).find(|pid| network(*pid).is_some_and(|network| network != outside))
}
