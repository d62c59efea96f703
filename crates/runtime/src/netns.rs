//! The helper process of one box: makes its namespaces, hands out its devices, then holds it.
//!
//! It is single-threaded and talks to its parent over the socket that is its standard input (messages
//! of the `wire` module). First comes one `setup`; then `run`, `connect`, `datagrams` and `kill` in any
//! order. Always holds: it starts nothing outside the new namespaces; before the first program starts
//! it has no privilege on the host left; when the parent's end closes, however the parent ended,
//! everything in the box is killed and it ends; when it is killed itself, bubblewrap's parent-death
//! signal does the same.

use std::{
    fs, io,
    net::SocketAddrV4,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, FdFlags, fcntl_setfd},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
        open_tree,
    },
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
    process::{Gid, Pid, PidfdFlags, Signal, Uid, geteuid, getgid, getuid, pidfd_open, pidfd_send_signal},
    thread::{
        UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
        unshare_unsafe,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{During, Error, Result},
    iface, wire,
};

/// Where the box's sources are staged in the helper's own mount namespace.
pub(crate) const STAGE: &str = "/tmp";

/// What the helper is told first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) tun_device: PathBuf,
    pub(crate) ip: std::net::Ipv4Addr,
    pub(crate) ip6: Option<std::net::Ipv6Addr>,
    pub(crate) prefix: u8,
    pub(crate) mtu: u32,
    /// The MTU of the device for what leaves the cluster.
    pub(crate) out_mtu: u32,
    /// Host paths to stage as `STAGE/<name>`, so that they need not be reachable for the box's user.
    pub(crate) binds: Vec<(PathBuf, String)>,
    /// The unprivileged user to become when started as root.
    pub(crate) uid: u32,
}

/// A request; `id` comes back in the reply.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) op: Op,
}

/// What the parent may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Op {
    Setup(Setup),
    /// Descriptors beside it: stdin, stdout, stderr, then extras; `{fdN}` in an argument becomes the
    /// number of extra N in the program.
    Run {
        argv: Vec<String>,
    },
    Connect {
        address: SocketAddrV4,
        timeout_ms: u64,
    },
    /// A connected UDP socket in the box.
    Datagrams {
        address: SocketAddrV4,
    },
    Kill {
        run: u64,
    },
}

/// What the helper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The request was done; descriptors may be beside it. `pid` is set for `run`.
    Done {
        id: u64,
        pid: Option<u32>,
    },
    Failed {
        id: u64,
        message: String,
    },
    /// The program of request `run` ended; 128 + n for signal n.
    Exit {
        run: u64,
        code: i32,
    },
}

/// Entry point of the hidden sub-command `box-init`. It takes no arguments: everything comes over the
/// socket at standard input.
pub fn main(_args: &[String]) -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("box-init: {}", error.full_message());
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let control = io::stdin().as_fd().try_clone_to_owned().during("keep the parent's socket")?;
    let Some((request, _)) = wire::receive::<Request>(&control).during("receive the setup")? else {
        return Ok(());
    };
    let Op::Setup(setup) = request.op else {
        return Err(Error::Helper { message: "the first request must be the setup".into() });
    };
    match enter(&setup) {
        Ok(devices) => {
            let fds = [devices[0].as_fd(), devices[1].as_fd()];
            wire::send(&control, &Reply::Done { id: request.id, pid: None }, &fds)
                .during("send the devices' descriptors")?;
        }
        Err(error) => {
            let message = error.full_message();
            return wire::send(&control, &Reply::Failed { id: request.id, message }, &[])
                .during("report the failed setup");
        }
    }
    Holder { control, runs: Vec::new(), connects: Vec::new() }.hold()
}

/// Enters the new namespaces, stages the mounts, makes the devices and gives up every privilege.
fn enter(setup: &Setup) -> Result<[OwnedFd; 2]> {
    let base = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    // As root the new namespaces belong to the host's user namespace, in which the box will be nobody.
    let as_root = geteuid().is_root() && unshare(base).is_ok();
    if !as_root {
        enter_user_namespace(base)?;
    }
    iface::loopback_up()?;
    let tun = iface::open_tun(&setup.tun_device, (setup.ip, setup.prefix), setup.ip6, setup.mtu)?;
    let out = iface::open_out(&setup.tun_device, setup.ip, setup.out_mtu)?;
    stage(&setup.binds)?;
    if as_root {
        drop_to(setup.uid)?;
    }
    set_no_new_privs(true).during("set no_new_privs")?;
    Ok([tun, out])
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the descriptor table is not unshared (no CLONE_FILES) and this process has one thread.
    unsafe { unshare_unsafe(flags) }
}

/// Without root: a user namespace in which this user is root, for as long as the setup takes.
fn enter_user_namespace(base: UnshareFlags) -> Result<()> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    unshare(base | UnshareFlags::NEWUSER).during("create user and network namespaces without root")?;
    fs::write("/proc/self/setgroups", "deny").during("deny setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).during("map the user")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).during("map the group")
}

/// Clones the sources, covers `STAGE` with a private tmpfs and moves them there.
fn stage(binds: &[(PathBuf, String)]) -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during("make mounts private")?;
    let mut trees = Vec::new();
    for (source, name) in binds {
        trees.push((clone_tree(source)?, source.is_dir(), Path::new(STAGE).join(name)));
    }
    mount("tmpfs", STAGE, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))
        .during("mount the staging tmpfs")?;
    for (tree, is_dir, target) in &trees {
        let made = if *is_dir { fs::create_dir(target) } else { fs::write(target, "") };
        made.during(format!("make {}", target.display()))?;
        move_mount(tree, "", rustix::fs::CWD, target.as_path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .during(format!("stage {}", target.display()))?;
    }
    Ok(())
}

fn clone_tree(source: &Path) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(rustix::fs::CWD, source, flags).during(format!("clone the mount of {}", source.display()))
}

/// Becomes the box's unprivileged user for good.
fn drop_to(uid: u32) -> Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    std::env::set_current_dir("/").during("leave the working directory")?;
    set_thread_groups(&[]).during("drop the groups")?;
    set_thread_res_gid(group, group, group).during("drop to the box's group")?;
    set_thread_res_uid(user, user, user).during("drop to the box's user")
}

struct Run {
    id: u64,
    child: Child,
    pidfd: OwnedFd,
}

struct Connecting {
    id: u64,
    socket: OwnedFd,
    deadline: Instant,
}

/// The state of the holding process.
struct Holder {
    control: OwnedFd,
    runs: Vec<Run>,
    connects: Vec<Connecting>,
}

impl Holder {
    /// Serves until the parent's end closes, then kills what is left.
    fn hold(mut self) -> Result<()> {
        let served = self.serve_requests();
        for run in &self.runs {
            // Already gone is what is wanted.
            let _ = pidfd_send_signal(&run.pidfd, Signal::KILL);
        }
        for run in &mut self.runs {
            let _ = run.child.wait();
        }
        served
    }

    fn serve_requests(&mut self) -> Result<()> {
        loop {
            let ready = self.wait_for_event()?;
            self.reap();
            self.finish_connects();
            if ready && !self.handle_request()? {
                return Ok(());
            }
        }
    }

    /// Blocks until a request, an exit, a connection or a deadline; true when a request waits.
    fn wait_for_event(&self) -> Result<bool> {
        let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
        fds.extend(self.runs.iter().map(|run| PollFd::new(&run.pidfd, PollFlags::IN)));
        fds.extend(self.connects.iter().map(|c| PollFd::new(&c.socket, PollFlags::OUT)));
        let timeout = self.connects.iter().map(|c| c.deadline).min().map(time_left);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error).during("wait for requests"),
        }
    }

    fn reap(&mut self) {
        let mut ended = Vec::new();
        self.runs.retain_mut(|run| match run.child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                ended.push((run.id, status.code().or(status.signal().map(|s| 128 + s)).unwrap_or(-1)));
                false
            }
            Err(_) => {
                ended.push((run.id, -1));
                false
            }
        });
        for (run, code) in ended {
            self.reply(&Reply::Exit { run, code }, &[]);
        }
    }

    fn finish_connects(&mut self) {
        let now = Instant::now();
        for connecting in std::mem::take(&mut self.connects) {
            let failed = match writable(&connecting.socket) {
                false if now < connecting.deadline => {
                    self.connects.push(connecting);
                    continue;
                }
                false => Some("timed out".to_owned()),
                true => match sockopt::socket_error(&connecting.socket) {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) | Err(error) => Some(io::Error::from(error).to_string()),
                },
            };
            match failed {
                None => {
                    self.reply(&Reply::Done { id: connecting.id, pid: None }, &[connecting.socket.as_fd()]);
                }
                Some(message) => self.reply(&Reply::Failed { id: connecting.id, message }, &[]),
            }
        }
    }

    /// Answers; when the parent is gone the next read ends the loop.
    fn reply(&self, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let _ = wire::send(&self.control, reply, fds);
    }

    /// Handles one request; false when the parent's end is closed.
    fn handle_request(&mut self) -> Result<bool> {
        let Some((Request { id, op }, fds)) = wire::receive(&self.control).during("receive a request")?
        else {
            return Ok(false);
        };
        let failed = match op {
            Op::Setup(_) => Some("the box is set up already".to_owned()),
            Op::Run { argv } => self.run(id, &argv, fds).err().map(|e| e.full_message()),
            Op::Connect { address, timeout_ms } => {
                self.connect(id, address, timeout_ms).err().map(|e| e.full_message())
            }
            Op::Datagrams { address } => self.datagrams(id, address).err().map(|e| e.full_message()),
            Op::Kill { run } => {
                self.kill(run);
                self.reply(&Reply::Done { id, pid: None }, &[]);
                None
            }
        };
        if let Some(message) = failed {
            self.reply(&Reply::Failed { id, message }, &[]);
        }
        Ok(true)
    }

    fn run(&mut self, id: u64, argv: &[String], fds: Vec<OwnedFd>) -> Result<()> {
        let mut fds = fds.into_iter();
        let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(Error::Helper { message: "run needs three descriptors".into() });
        };
        let extras: Vec<OwnedFd> = fds.collect();
        let mut argv = argv.iter().map(|arg| with_numbers(arg, &extras));
        let program = argv.next().ok_or_else(|| Error::Helper { message: "run needs a program".into() })?;
        for extra in &extras {
            // This process has one thread and starts one program at a time, so nothing else inherits it.
            fcntl_setfd(extra, FdFlags::empty()).during("let a descriptor be inherited")?;
        }
        let child = Command::new(&program)
            .args(argv)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .spawn()
            .during(format!("start {program}"))?;
        let pid = child.id();
        let pidfd = Pid::from_raw(pid.cast_signed())
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .during("watch the program")?;
        self.runs.push(Run { id, child, pidfd });
        self.reply(&Reply::Done { id, pid: Some(pid) }, &[]);
        Ok(())
    }

    fn connect(&mut self, id: u64, address: SocketAddrV4, timeout_ms: u64) -> Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
            .during("make a socket in the box")?;
        match connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error).during(format!("connect to {address}")),
        }
        let deadline = Instant::now() + Duration::from_millis(timeout_ms.min(60_000));
        self.connects.push(Connecting { id, socket, deadline });
        self.finish_connects();
        Ok(())
    }

    fn datagrams(&self, id: u64, address: SocketAddrV4) -> Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
            .during("make a socket in the box")?;
        connect(&socket, &address).during(format!("connect to {address}"))?;
        self.reply(&Reply::Done { id, pid: None }, &[socket.as_fd()]);
        Ok(())
    }

    fn kill(&mut self, run: u64) {
        if let Some(run) = self.runs.iter().find(|r| r.id == run) {
            let _ = pidfd_send_signal(&run.pidfd, Signal::KILL);
        }
    }
}

/// `{fdN}` becomes the number of extra N.
fn with_numbers(arg: &str, extras: &[OwnedFd]) -> String {
    extras
        .iter()
        .enumerate()
        .fold(arg.to_owned(), |arg, (n, fd)| arg.replace(&format!("{{fd{n}}}"), &fd.as_raw_fd().to_string()))
}

fn time_left(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}

fn writable(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
}
