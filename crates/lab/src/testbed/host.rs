//! A machine of a testbed: an init process in namespaces of its own, and what runs under it.
//!
//! Always holds: when the init process ends, everything that it or its children ever started ends too; it ends when the
//! process that started it does, however that ends, as its standard input closes then. So nothing has a name that could
//! be left behind. Where namespaces cannot be made, the machine is a mere process of this one, with the same promise.
//! Not here: addresses and lines (`net`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, pidfd_send_signal,
    set_child_subreaper, wait,
};
use serde::{Deserialize, Serialize};

use crate::{LabError, Result};

/// The hidden sub-command that is a machine's first process.
pub const INIT_WORD: &str = "host-init";
const REAP_EVERY: Duration = Duration::from_millis(20);
const START_PATIENCE: Duration = Duration::from_secs(10);

/// What to start on a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Variables besides those of this process.
    pub variables: BTreeMap<String, String>,
    /// File that its output is added to; `.err` of the same name takes the errors.
    pub log: PathBuf,
}

/// What the first process says of a start.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Started {
    /// Its number, as the machine counts.
    Pid(u32),
    /// Why not.
    Failed(String),
}

// --- the machine's side -------------------------------------------------------------------------

/// The machine's first process: starts what each line of its input says, and reaps. Ends with its input, and everything
/// with it.
pub fn init() -> bool {
    // In a namespace of its own the kernel gives orphans to the first process anyway.
    let _ = set_child_subreaper(Some(getpid()));
    std::thread::spawn(|| {
        loop {
            if wait(WaitOptions::empty()).is_err() {
                std::thread::sleep(REAP_EVERY);
            }
        }
    });
    let answer = |started: &Started| {
        let mut line = serde_json::to_string(started).unwrap_or_default();
        line.push('\n');
        std::io::stdout().write_all(line.as_bytes()).and_then(|()| std::io::stdout().flush())
    };
    if answer(&Started::Pid(std::process::id())).is_ok() {
        for line in std::io::stdin().lines().map_while(std::io::Result::ok) {
            let started = match serde_json::from_str(&line) {
                Ok(start) => begin(&start),
                Err(error) => Started::Failed(error.to_string()),
            };
            if answer(&started).is_err() {
                break;
            }
        }
    }
    end_descendants(std::process::id());
    true
}

fn begin(start: &Start) -> Started {
    let run = || -> std::io::Result<u32> {
        let log = |path: &Path| File::options().create(true).append(true).open(path);
        let [program, arguments @ ..] = start.words.as_slice() else {
            return Err(std::io::Error::other("no program was named"));
        };
        let mut command = Command::new(program);
        command.args(arguments).envs(&start.variables).stdin(Stdio::null()).process_group(0);
        command.stdout(log(&start.log)?).stderr(log(&start.log.with_extension("err"))?);
        Ok(command.spawn()?.id())
    };
    match run() {
        Ok(pid) => Started::Pid(pid),
        Err(error) => Started::Failed(format!("{}: {error}", start.words.join(" "))),
    }
}

/// Kills what descends from a process until nothing does.
fn end_descendants(of: u32) {
    let until = Instant::now() + START_PATIENCE;
    while Instant::now() < until {
        let left = descendants(of);
        if left.is_empty() {
            return;
        }
        for process in left {
            if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(REAP_EVERY);
    }
}

// --- processes ----------------------------------------------------------------------------------

/// A process as `/proc` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its number here.
    pub pid: u32,
    /// Its number in its own namespace.
    pub inner_pid: u32,
    parent: u32,
    /// Its words, separated by spaces.
    pub words: String,
}

/// Every process that lives and descends from this one, zombies left out; the nearest first.
pub fn descendants(of: u32) -> Vec<Seen> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut all: Vec<Seen> =
        entries.filter_map(|entry| look(entry.file_name().to_str()?.parse().ok()?)).collect();
    let (mut found, mut parents) = (Vec::new(), vec![of]);
    while !parents.is_empty() {
        let (next, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|seen| parents.contains(&seen.parent));
        parents = next.iter().map(|seen| seen.pid).collect();
        all = rest;
        found.extend(next);
    }
    found
}

fn look(pid: u32) -> Option<Seen> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if field("State:")?.starts_with('Z') {
        return None;
    }
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Seen {
        pid,
        inner_pid: field("NSpid:")?.split_whitespace().next_back()?.parse().ok()?,
        parent: field("PPid:")?.parse().ok()?,
        words: String::from_utf8_lossy(&words).replace('\0', " "),
    })
}

/// A handle on one process, which never becomes another.
#[derive(Debug)]
pub struct Process {
    /// Its number here.
    pub pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// The process that has this number now; `None` if none has.
    pub fn open(pid: u32) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, fd })
    }

    /// Whether it has not ended.
    pub fn alive(&self) -> bool {
        !self.ended_within(Duration::ZERO)
    }

    /// Waits for its end; whether it came.
    pub fn ended_within(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN)];
        poll(&mut fds, Timespec::try_from(patience).ok().as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Sends a signal; one that has ended does not mind.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Ends it as hard as it goes, and waits until it has.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.ended_within(START_PATIENCE);
    }
}

// --- the lab's side -----------------------------------------------------------------------------

/// A machine that is up; ends when dropped, and everything on it.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its folder, as seen from it.
    pub dir: PathBuf,
    /// Its first process, by its number here.
    pub pid: u32,
    isolated: bool,
    first: Child,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Host {
    /// Starts a machine with its folder `dir`. `isolated` gives it namespaces; `disk_mib` a disk of its own in memory, for
    /// which it must be isolated.
    pub fn start(name: &str, dir: &Path, disk_mib: u64, isolated: bool) -> Result<Self> {
        let me = std::env::current_exe().map_err(LabError::io("find this program"))?;
        Self::start_by(&me, name, dir, disk_mib, isolated)
    }

    /// The same from another program than `ionet-lab`, which is at `lab`.
    pub fn start_by(lab: &Path, name: &str, dir: &Path, disk_mib: u64, isolated: bool) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(LabError::io(format!("make {}", dir.display())))?;
        let mut command = if isolated {
            let mut command = Command::new("unshare");
            command.args([
                "--net",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
            ]);
            command.arg(lab);
            command
        } else {
            Command::new(lab)
        };
        // Ctrl-C is for the lab, which ends its machines in order.
        command.arg(INIT_WORD).arg(name).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut first = command.spawn().map_err(LabError::io("start a machine's first process"))?;
        let (Some(stdin), Some(stdout)) = (first.stdin.take(), first.stdout.take()) else {
            return Err(LabError::Broken("a machine's first process has no pipes".into()));
        };
        let talk = Mutex::new((stdin, BufReader::new(stdout)));
        let mut host = Self { name: name.into(), dir: dir.into(), pid: first.id(), isolated, first, talk };
        if host.answer().is_err() {
            return Err(host.does_not_start());
        }
        if isolated {
            let inner = descendants(host.pid).into_iter().next();
            host.pid = inner.map(|seen| seen.pid).ok_or_else(|| LabError::Broken(format!("{name} ended")))?;
            host.run(&format!("hostname {name}; ip link set lo up"))?;
            if disk_mib > 0 {
                host.run(&format!("mount -t tmpfs -o size={disk_mib}m ionet-lab {}", dir.display()))?;
            }
        }
        Ok(host)
    }

    fn does_not_start(&mut self) -> LabError {
        let _ = self.first.kill();
        let mut said = String::new();
        let _ = self.first.stderr.take().map(|mut errors| errors.read_to_string(&mut said));
        LabError::Broken(format!("the machine {} does not start: {}", self.name, said.trim()))
    }

    fn answer(&self) -> Result<u32> {
        let mut line = String::new();
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        talk.1.read_line(&mut line).map_err(LabError::io("hear a machine's first process"))?;
        drop(talk);
        match serde_json::from_str(&line) {
            Ok(Started::Pid(pid)) => Ok(pid),
            Ok(Started::Failed(why)) => Err(LabError::Broken(format!("{}: {why}", self.name))),
            Err(_) => Err(LabError::Broken(format!("{}'s first process ended", self.name))),
        }
    }

    /// Starts a process that stays.
    pub fn start_process(&self, start: &Start) -> Result<Process> {
        let mut line = serde_json::to_string(start).unwrap_or_default();
        line.push('\n');
        {
            let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
            let told = talk.0.write_all(line.as_bytes());
            told.map_err(LabError::io("tell a machine's first process"))?;
        }
        let inner = self.answer()?;
        let children = self.processes();
        let seen = children.iter().find(|seen| seen.parent == self.pid && seen.inner_pid == inner);
        let process = seen.and_then(|seen| Process::open(seen.pid));
        process.ok_or_else(|| {
            let (_, error) = last_words(&self.path(&start.log));
            LabError::Broken(format!("{}: {} ended at once: {error}", self.name, start.words.join(" ")))
        })
    }

    /// A command that runs on this machine, with this process's own input and output.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        if !self.isolated {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--net", "--mount", "--uts", "--"]).arg(program);
        command
    }

    /// Runs a shell script on this machine; what it said.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.command("/bin/sh").args(["-ec", script]).stdin(Stdio::null()).output();
        let output = output.map_err(LabError::io("start nsenter"))?;
        succeeded(&output, &format!("on {}: {script}", self.name))
    }

    /// Everything that runs on it but its first process.
    pub fn processes(&self) -> Vec<Seen> {
        descendants(self.pid)
    }

    /// A file of this machine, as seen from here.
    pub fn path(&self, path: &Path) -> PathBuf {
        if !self.isolated {
            return path.to_owned();
        }
        let below_root = path.strip_prefix("/").unwrap_or(path);
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(below_root)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its input closes; what does not end by itself then is ended.
        if self.isolated {
            if let Some(first) = Process::open(self.pid) {
                first.kill();
            }
        } else {
            end_descendants(self.pid);
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

/// The output of a command that must succeed.
pub fn succeeded(output: &Output, what: &str) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Broken(format!("{what}: {} {}", output.status, said.trim())))
}

/// The last words of a log and of its errors.
pub fn last_words(log: &Path) -> (String, String) {
    let last = |path: &Path| {
        let mut text = Vec::new();
        let _ = File::open(path).and_then(|mut file| file.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    };
    (last(log), last(&log.with_extension("err")))
}
