//! Faults of a testbed: what is done to which machine, and how it is undone.
//!
//! Always holds: after [`Cloud::heal`] nothing of the fault is left but what the product made of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ionet_runtime::limits::{BoxGroup, Enforcement, Hierarchy};
use ionet_runtime::sandbox::Limits;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde::Serialize;

use super::cloud::Cloud;
use super::file::Site;
use super::host::Process;
use super::line::Quality;
use crate::random::Random;
use crate::{LabError, Result};

/// The kernel gets this long to find that a process has too much.
const MEMORY_PATIENCE: Duration = Duration::from_secs(20);

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// kill -9 of server, relay or agent.
    Kill,
    /// kill -9 of the supervisor of a lease.
    KillSupervisor,
    /// Everything on a machine ends at once.
    Power,
    /// A machine's or a site's line is cut.
    Cut,
    /// A line is slow and loses packets.
    BadLine,
    /// A process stands still: SIGSTOP, and SIGCONT later.
    Freeze,
    /// The disk of a server or worker is full.
    FullDisk,
    /// A process is started again under a clock that is wrong, and later under the right one.
    Clock,
    /// The kernel has no memory for a process.
    Memory,
}

/// Every kind.
pub const ALL: [Kind; 9] = [
    Kind::Kill,
    Kind::KillSupervisor,
    Kind::Power,
    Kind::Cut,
    Kind::BadLine,
    Kind::Freeze,
    Kind::FullDisk,
    Kind::Clock,
    Kind::Memory,
];

/// One fault.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To which machine.
    pub machine: String,
    /// How it was done, in words.
    pub how: String,
    /// For how long, in milliseconds.
    pub hold_ms: u64,
}

/// What must be undone.
#[derive(Debug, Default)]
pub struct Injury {
    frozen: Vec<Process>,
    line: Option<(String, [Quality; 2])>,
    filler: Option<PathBuf>,
    /// Its program must be started again though it runs.
    wrong_clock: Option<String>,
}

impl Kind {
    /// Why this kind cannot be done here; `None` if it can.
    pub fn missing(self, cloud: &Cloud) -> Option<String> {
        let isolated = cloud.testbed.isolated();
        let disks = cloud.testbed.file.server.disk_mib > 0;
        match self {
            Self::Cut | Self::BadLine if !isolated => Some("machines on the loopback have no lines".into()),
            Self::FullDisk if !isolated => Some("machines on the loopback have no disks of their own".into()),
            Self::FullDisk if !disks => {
                Some("the file gives the server no disk of its own (disk_mib)".into())
            }
            Self::Clock if faketime().is_none() => Some(
                "libfaketime is not installed; no namespace shifts the clock ('apt-get install faketime')"
                    .into(),
            ),
            _ => None,
        }
    }
}

fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    found.find(|library| library.exists())
}

impl Cloud {
    /// Does something of this kind, by chance; `None` when there is nothing to do it to.
    pub fn injure(&mut self, kind: Kind, random: &mut Random) -> Result<Option<(Fault, Injury)>> {
        let machine = match kind {
            Kind::KillSupervisor => self.machine_with_supervisor(random),
            Kind::Cut | Kind::BadLine => {
                let lines: Vec<_> =
                    self.testbed.wires().keys().filter(|name| *name != "client").cloned().collect();
                random.one_of(&lines).cloned()
            }
            Kind::FullDisk => random.one_of(&self.machines_with_disks()).cloned(),
            _ => random.one_of(&self.role_names()).cloned(),
        };
        let Some(machine) = machine else { return Ok(None) };
        let mut injury = Injury::default();
        let (how, hold_ms) = match kind {
            Kind::Kill => (self.kill(&machine), random.between(0, 3_000)),
            Kind::KillSupervisor => (self.kill_supervisor(&machine, random), 0),
            Kind::Power => (self.power_off(&machine)?, random.between(500, 6_000)),
            Kind::Cut => (self.cut(&machine, &mut injury), random.between(1_000, 25_000)),
            Kind::BadLine => (self.spoil(&machine, &mut injury, random), random.between(5_000, 15_000)),
            Kind::Freeze => (self.freeze(&machine, &mut injury, random)?, random.between(1_000, 20_000)),
            Kind::FullDisk => (self.fill(&machine, &mut injury)?, random.between(2_000, 8_000)),
            Kind::Clock => (self.shift_clock(&machine, &mut injury, random)?, random.between(3_000, 12_000)),
            Kind::Memory => (self.starve(&machine)?, random.between(0, 2_000)),
        };
        Ok(Some((Fault { kind, machine, how, hold_ms }, injury)))
    }

    fn machine_with_supervisor(&self, random: &mut Random) -> Option<String> {
        let has_one = |name: &String| !self.supervisors(name).is_empty();
        let with: Vec<_> = self.worker_names().into_iter().filter(has_one).collect();
        random.one_of(&with).cloned()
    }

    fn machines_with_disks(&self) -> Vec<String> {
        let file = &self.testbed.file;
        let workers = file.sites.iter().filter(|site| site.disk_mib > 0).flat_map(Site::worker_names);
        workers.chain((file.server.disk_mib > 0).then(|| "server".to_owned())).collect()
    }

    fn kill(&self, machine: &str) -> String {
        if let Some(process) = self.process(machine) {
            process.kill();
        }
        "kill -9".into()
    }

    fn kill_supervisor(&self, machine: &str, random: &mut Random) -> String {
        if let Some(supervisor) = random.one_of(&self.supervisors(machine)) {
            supervisor.kill();
        }
        "kill -9 of a supervisor".into()
    }

    fn power_off(&self, machine: &str) -> Result<String> {
        let all = self.testbed.get(machine)?.processes();
        let all: Vec<_> = all.iter().filter_map(|seen| Process::open(seen.pid)).collect();
        // All at once first, so that none sees another end and acts on it.
        for process in &all {
            process.signal(Signal::KILL);
        }
        for process in &all {
            process.kill();
        }
        Ok(format!("{} processes ended at once", all.len()))
    }

    fn change_line(&self, machine: &str, injury: &mut Injury, change: impl Fn(Quality) -> Quality) {
        if let Some(wire) = self.testbed.wires().get(machine) {
            let before = wire.qualities();
            wire.set(before.map(change));
            injury.line = Some((machine.to_owned(), before));
        }
    }

    fn cut(&self, machine: &str, injury: &mut Injury) -> String {
        self.change_line(machine, injury, |quality| Quality { cut: true, ..quality });
        "line cut".into()
    }

    fn spoil(&self, machine: &str, injury: &mut Injury, random: &mut Random) -> String {
        let (delay_us, loss_ppm) = (random.between(50_000, 400_000), random.between(20_000, 250_000));
        self.change_line(machine, injury, |quality| Quality {
            delay_us,
            jitter_us: delay_us / 3,
            loss_ppm,
            reorder: true,
            ..quality
        });
        format!("{} ms and {} % lost each way", delay_us / 1000, loss_ppm / 10_000)
    }

    fn freeze(&self, machine: &str, injury: &mut Injury, random: &mut Random) -> Result<String> {
        let seen = self.testbed.get(machine)?.processes();
        let all: Vec<_> = seen.iter().filter_map(|seen| Process::open(seen.pid)).collect();
        let whole = random.below(2) == 0;
        let program = self.process(machine).map(|process| process.pid);
        injury.frozen = all.into_iter().filter(|process| whole || Some(process.pid) == program).collect();
        for process in &injury.frozen {
            process.signal(Signal::STOP);
        }
        Ok(if whole { "the whole machine stopped".into() } else { "its program stopped".into() })
    }

    fn fill(&self, machine: &str, injury: &mut Injury) -> Result<String> {
        let host = self.testbed.get(machine)?;
        let path = host.path(&host.dir.join("filler"));
        let mut file = File::create(&path).map_err(LabError::io("make a filler"))?;
        let mut bytes = 0;
        for chunk in [1 << 20, 1 << 16, 1 << 12, 1] {
            let zeros = vec![0; chunk];
            while file.write_all(&zeros).is_ok() {
                bytes += chunk;
            }
        }
        injury.filler = Some(path);
        Ok(format!("the last {} MiB filled", bytes >> 20))
    }

    fn shift_clock(&mut self, machine: &str, injury: &mut Injury, random: &mut Random) -> Result<String> {
        // The server dates the journal; a supplier's machine may be wrong by anything.
        let most_s = if machine == "server" { 60 } else { 7_200 };
        let sign = if random.below(2) == 0 { '+' } else { '-' };
        let shift = format!("{sign}{}s", random.between(5, most_s));
        if !self.set_clock(machine, &shift)? {
            return Ok("nothing: libfaketime is not installed".into());
        }
        injury.wrong_clock = Some(machine.to_owned());
        Ok(format!("started again with the clock {shift}"))
    }

    /// Ends a machine's program and starts it under a clock that is wrong by so much, such as `+5s`. Does nothing and says
    /// so with `false` where libfaketime is not installed.
    pub fn set_clock(&mut self, machine: &str, shift: &str) -> Result<bool> {
        let Some(library) = faketime() else { return Ok(false) };
        self.kill(machine);
        let variables = [
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME", shift.to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value));
        self.start_role(machine, &variables.collect::<BTreeMap<_, _>>())?;
        Ok(true)
    }

    /// Takes a process's memory away: by a control group in which the kernel kills it, else by a limit at which its next
    /// allocation fails.
    fn starve(&self, machine: &str) -> Result<String> {
        let Some(process) = self.process(machine) else { return Ok("it had ended".into()) };
        let hierarchy = Hierarchy::detect();
        let how = if matches!(hierarchy.enforcement(), Enforcement::None { .. }) {
            let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            prlimit(pid, Resource::As, limit)
                .map_err(|error| LabError::io("limit a process's memory")(error.into()))?;
            process.ended_within(MEMORY_PATIENCE).then_some("no allocation succeeded (no control group here)")
        } else {
            let name = format!("lab-{}-{}", std::process::id(), process.pid);
            let limits = Limits {
                cpu_millis: 64_000,
                memory_bytes: 256 << 10,
                processes: 1_000,
                disk_bytes: 0,
                gpus: Vec::new(),
            };
            let group = BoxGroup::create(&hierarchy, &name, &limits);
            let group = group.map_err(|error| LabError::Broken(format!("no control group: {error}")))?;
            let attached = group.attach(process.pid);
            let ended = attached.is_ok() && process.ended_within(MEMORY_PATIENCE);
            let killed = group.memory_kills() > 0;
            process.kill();
            super::cloud::wait_for("the end of a control group", MEMORY_PATIENCE, || {
                Ok(group.remove().then_some(()))
            })?;
            (ended && killed).then_some("killed by the kernel for its memory")
        };
        process.kill();
        Ok(how.unwrap_or("it needed no memory for 20 s; kill -9").into())
    }

    /// Undoes a fault: thaws, mends the line, frees the disk, sets the clock right and starts again what has ended.
    pub fn heal(&mut self, injury: &Injury) -> Result<()> {
        for process in &injury.frozen {
            process.signal(Signal::CONT);
        }
        if let Some((machine, qualities)) = &injury.line
            && let Some(wire) = self.testbed.wires().get(machine)
        {
            wire.set(*qualities);
        }
        if let Some(filler) = &injury.filler {
            remove(filler)?;
        }
        if let Some(machine) = &injury.wrong_clock {
            self.kill(machine);
        }
        self.revive().map(drop)
    }
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(LabError::io("remove a filler"))
}
