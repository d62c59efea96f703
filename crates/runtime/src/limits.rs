//! Memory, CPU and process limits of one box, by control group.
//!
//! Always holds: a limit counts as enforced only when memory, CPU and process controllers all took it;
//! otherwise the reason is reported and the device must not hold two tenants. Version 2 where it is
//! delegated, version 1 hierarchies where they are writable, else none. The group also finds and kills
//! whatever is left of a box. A lease's own process has a group beside its box's, without limits, so that
//! what is done to the agent's group is not done to it. Not here: the disk limit, which the box's owner
//! watches.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use crate::{
    error::{During, Result},
    sandbox::Limits,
};

/// How the limits of a box are enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Enforcement {
    /// A delegated part of the unified hierarchy.
    Cgroup2,
    /// Writable version 1 hierarchies.
    Cgroup1,
    /// Not at all: the device must never hold two tenants.
    None {
        /// Why, and what would change it.
        reason: String,
    },
}

/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
const CPU_PERIOD_US: u64 = 100_000;
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Where groups of boxes can be made on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    enforcement: Enforcement,
    /// One parent folder per controller (version 1) or one for all (version 2).
    parents: Vec<PathBuf>,
    /// In every hierarchy where this process could have a group of its own: the group above it, and the
    /// one that it is in now.
    places: Vec<(PathBuf, PathBuf)>,
}

impl Hierarchy {
    /// Looks at this machine as this process sees it. Making the version 2 choice may switch controllers
    /// on for the children of the chosen group.
    pub fn detect() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::detect_in(Path::new("/sys/fs/cgroup"), &own)
    }

    /// The same with the mount point and the text of `/proc/self/cgroup` as parameters.
    pub fn detect_in(mount: &Path, own_groups: &str) -> Self {
        if let Some((parent, own)) = find_v2(mount, own_groups) {
            let places = vec![(parent.clone(), own)];
            return Self { enforcement: Enforcement::Cgroup2, parents: vec![parent], places };
        }
        let found = CONTROLLERS.map(|name| find_group(&mount.join(name), own_groups, name));
        // The last three are by what a service manager finds its processes, if any of them is there.
        let places = found.iter().flatten().cloned().chain(
            [("systemd", "name=systemd"), ("unified", ""), ("", "")]
                .into_iter()
                .filter(|(folder, _)| mount.join(folder).join("cgroup.procs").exists())
                .filter_map(|(folder, name)| find_group(&mount.join(folder), own_groups, name)),
        );
        let places = places.collect();
        let missing: Vec<&str> =
            CONTROLLERS.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(name, _)| *name).collect();
        let parents: Vec<PathBuf> = found.into_iter().flatten().map(|(parent, _)| parent).collect();
        let enforcement = if missing.is_empty() {
            Enforcement::Cgroup1
        } else {
            Enforcement::None {
                reason: format!(
                    "no control group of this user takes limits for {}; run the worker as a systemd \
                     service with Delegate=yes, or as root",
                    missing.join(", ")
                ),
            }
        };
        Self { enforcement, parents, places }
    }

    /// How limits are enforced here.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }
}

/// The nearest group, from this process's own upwards, that hands all controllers to its children; and its own.
fn find_v2(mount: &Path, own_groups: &str) -> Option<(PathBuf, PathBuf)> {
    let own = mount.join(own_groups.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let parent = own.ancestors().take_while(|group| group.starts_with(mount)).find(|group| {
        let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        let has_all = CONTROLLERS.iter().all(|c| available.split_whitespace().any(|a| a == *c));
        let handed_on =
            has_all && fs::write(group.join("cgroup.subtree_control"), "+memory +cpu +pids").is_ok();
        handed_on && can_make_group(group)
    })?;
    Some((parent.to_path_buf(), own))
}

/// The nearest writable group of the hierarchy at `top`, and this process's own there. `name` is the
/// hierarchy's in `/proc/self/cgroup`; the unified one has none.
fn find_group(top: &Path, own_groups: &str, name: &str) -> Option<(PathBuf, PathBuf)> {
    let own = own_groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let named = parts.next()?.split(',').any(|part| part == name);
        named.then(|| parts.next().unwrap_or("/").trim_start_matches('/'))
    })?;
    // Within a container the group's name may not exist under the mount; then the mount is the group.
    let own = top.join(own);
    let mut above = own.ancestors().take_while(|group| group.starts_with(top));
    let parent = above.find(|group| can_make_group(group))?.to_path_buf();
    let own = if own.exists() { own } else { parent.clone() };
    Some((parent, own))
}

fn can_make_group(parent: &Path) -> bool {
    let probe = parent.join(format!("ionet-probe-{}", std::process::id()));
    fs::create_dir(&probe).is_ok() && fs::remove_dir(&probe).is_ok()
}

/// The groups of one box.
#[derive(Debug)]
pub struct BoxGroup {
    enforcement: Enforcement,
    folders: Vec<PathBuf>,
}

impl BoxGroup {
    /// Makes the groups of `lease` and writes its limits. Existing ones are taken over.
    pub fn create(hierarchy: &Hierarchy, lease: &str, limits: &Limits) -> Result<Self> {
        let mut group = Self::existing(hierarchy, lease);
        for folder in &group.folders {
            fs::create_dir_all(folder).during("make the box's control group")?;
        }
        let written = match hierarchy.enforcement {
            Enforcement::Cgroup2 => group.write_v2(limits),
            Enforcement::Cgroup1 => group.write_v1(limits),
            Enforcement::None { .. } => Ok(()),
        };
        if let Err(error) = written {
            group.enforcement = Enforcement::None { reason: format!("the kernel refused a limit: {error}") };
        }
        Ok(group)
    }

    /// The groups of `lease` as they would be named, whether they exist or not.
    pub fn existing(hierarchy: &Hierarchy, lease: &str) -> Self {
        let folders = hierarchy.parents.iter().map(|p| p.join(format!("ionet-{lease}"))).collect();
        Self { enforcement: hierarchy.enforcement.clone(), folders }
    }

    /// How the limits are enforced.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    fn write_v2(&self, limits: &Limits) -> std::io::Result<()> {
        let folder = &self.folders[0];
        fs::write(folder.join("memory.max"), limits.memory_bytes.to_string())?;
        fs::write(folder.join("pids.max"), limits.processes.to_string())?;
        let quota_us = limits.cpu_millis.saturating_mul(CPU_PERIOD_US) / 1000;
        fs::write(folder.join("cpu.max"), format!("{quota_us} {CPU_PERIOD_US}"))?;
        // Not every kernel has swap accounting, and one out-of-memory kill should end one process only.
        let _ = fs::write(folder.join("memory.swap.max"), "0");
        Ok(())
    }

    fn write_v1(&self, limits: &Limits) -> std::io::Result<()> {
        let [memory, cpu, pids] = [&self.folders[0], &self.folders[1], &self.folders[2]];
        fs::write(memory.join("memory.limit_in_bytes"), limits.memory_bytes.to_string())?;
        let _ = fs::write(memory.join("memory.memsw.limit_in_bytes"), limits.memory_bytes.to_string());
        fs::write(cpu.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
        let quota_us = limits.cpu_millis.saturating_mul(CPU_PERIOD_US) / 1000;
        fs::write(cpu.join("cpu.cfs_quota_us"), quota_us.to_string())?;
        fs::write(pids.join("pids.max"), limits.processes.to_string())
    }

    /// Kills what is in the groups, but for this process, and removes them; false while something is still in them.
    fn vanish(&self) -> bool {
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            for pid in self.pids().into_iter().filter_map(Pid::from_raw).filter(|pid| *pid != getpid()) {
                // Gone in the meantime is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
            if self.remove() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Puts a process, and what it starts from now on, under the limits.
    pub fn attach(&self, pid: u32) -> Result<()> {
        for folder in &self.folders {
            fs::write(folder.join("cgroup.procs"), pid.to_string()).during("put the box under its limits")?;
        }
        Ok(())
    }

    /// Processes that are in the groups now.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .folders
            .iter()
            .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Times that the kernel killed a process of the box for lack of memory.
    pub fn memory_kills(&self) -> u64 {
        let count = |file: &str| {
            let text = fs::read_to_string(self.folders.first()?.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        count("memory.events").or_else(|| count("memory.oom_control")).unwrap_or(0)
    }

    /// Removes the groups; false while something is still in them.
    pub fn remove(&self) -> bool {
        self.folders.iter().all(|folder| !folder.exists() || fs::remove_dir(folder).is_ok())
    }
}

/// The groups of a lease's own process, which is in them until this is dropped. They have no limits.
#[derive(Debug)]
pub struct OwnGroup {
    group: BoxGroup,
    /// Where this process was before, group by group.
    before: Vec<PathBuf>,
}

impl OwnGroup {
    /// Moves this process, and what it starts from now on, into groups of its own, wherever they can be
    /// made. Look for the hierarchy before this: afterwards this process is elsewhere.
    pub fn enter(hierarchy: &Hierarchy, lease: &str) -> Self {
        let all = Self::of(hierarchy, lease);
        let (mut folders, mut before) = (Vec::new(), Vec::new());
        for (folder, (_, was)) in all.folders.into_iter().zip(&hierarchy.places) {
            if fs::create_dir_all(&folder).is_ok() && move_to(&folder) {
                folders.push(folder);
                before.push(was.clone());
            } else {
                let _ = fs::remove_dir(&folder);
            }
        }
        Self { group: BoxGroup { enforcement: hierarchy.enforcement.clone(), folders }, before }
    }

    /// Ends what a lease's dead process has left in its groups, and removes them; false while something
    /// is still in them.
    pub fn clear(hierarchy: &Hierarchy, lease: &str) -> bool {
        Self::of(hierarchy, lease).vanish()
    }

    fn of(hierarchy: &Hierarchy, lease: &str) -> BoxGroup {
        let folder = |(parent, _): &(PathBuf, PathBuf)| parent.join(format!("ionet-{lease}-supervisor"));
        let folders = hierarchy.places.iter().map(folder).collect();
        BoxGroup { enforcement: hierarchy.enforcement.clone(), folders }
    }
}

fn move_to(group: &Path) -> bool {
    fs::write(group.join("cgroup.procs"), getpid().as_raw_nonzero().to_string()).is_ok()
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        for (folder, before) in self.group.folders.iter().zip(&self.before) {
            // The group before may be gone, or take no process any more: then whoever reaps removes this one.
            let _ = move_to(before) || folder.parent().is_some_and(move_to);
        }
        self.group.vanish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "8:pids:/\n4:memory:/a/b\n3:cpu,cpuacct:/\n0::/\n";

    #[test]
    fn version_1_is_used_when_all_three_hierarchies_are_writable() {
        let mount = tempfile::tempdir().unwrap();
        for name in CONTROLLERS {
            fs::create_dir(mount.path().join(name)).unwrap();
        }
        let found = Hierarchy::detect_in(mount.path(), V1);
        assert_eq!(found.enforcement, Enforcement::Cgroup1);
        // The own memory group does not exist under this mount, so the mount stands for it.
        assert_eq!(found.parents[0], mount.path().join("memory"));
    }

    #[test]
    fn a_missing_controller_is_named_in_the_reason() {
        let mount = tempfile::tempdir().unwrap();
        for name in ["memory", "cpu"] {
            fs::create_dir(mount.path().join(name)).unwrap();
        }
        let Enforcement::None { reason } = Hierarchy::detect_in(mount.path(), V1).enforcement else {
            panic!("two of three controllers must not count as enforced");
        };
        assert!(reason.contains("pids") && !reason.contains("memory"), "{reason}");
    }

    #[test]
    fn version_2_takes_the_nearest_group_that_has_every_controller() {
        let mount = tempfile::tempdir().unwrap();
        let service = mount.path().join("user.slice/app.service");
        fs::create_dir_all(&service).unwrap();
        fs::write(service.join("cgroup.controllers"), "pids").unwrap();
        fs::write(service.parent().unwrap().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let found = Hierarchy::detect_in(mount.path(), "0::/user.slice/app.service\n");
        assert_eq!(found.enforcement, Enforcement::Cgroup2);
        assert_eq!(found.parents, [mount.path().join("user.slice")]);
        assert_eq!(found.places, [(mount.path().join("user.slice"), service)]);
    }

    #[test]
    fn a_process_enters_its_own_group_beside_its_boxes_and_leaves_it() {
        let mount = tempfile::tempdir().unwrap();
        let service = mount.path().join("app.service");
        fs::create_dir(&service).unwrap();
        fs::write(mount.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let hierarchy = Hierarchy::detect_in(mount.path(), "0::/app.service\n");
        let me = getpid().as_raw_nonzero().to_string();
        let procs = |group: &Path| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let own = OwnGroup::enter(&hierarchy, "l1");
        let folder = mount.path().join("ionet-l1-supervisor");
        assert_eq!(procs(&folder), me);
        assert_eq!(BoxGroup::existing(&hierarchy, "l1").folders, [mount.path().join("ionet-l1")]);
        drop(own);
        assert_eq!(procs(&service), me, "back where it was");
    }
}
