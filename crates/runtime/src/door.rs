//! The door of a running box: further programs beside the engine, in the very same namespaces and under the same limits.
//!
//! The launcher holds one end of a socket and starts what it is asked to; the lease's own process holds the other.
//! Always holds: the host never waits for the box here and reads nothing from it: it only sends; each program is in a process group of its
//! own that is killed when its leash, a pipe, is let go; no program inherits the socket or another's leash; the
//! launcher ends when the engine does, and with it the whole box. Not here: what is worth starting (`ssh`, `files`).

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd as _, FromRawFd as _, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::{Errno, FdFlags, fcntl_setfd},
    net::sockopt,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{During, Error, Result},
    wire,
};

/// Programs beside the engine at once.
const PROGRAMS: usize = 128;

/// Asks for a program; beside it are its standard input, its standard output and its leash.
#[derive(Debug, Serialize, Deserialize)]
struct Start {
    argv: Vec<String>,
    /// Beside those of the engine.
    variables: BTreeMap<String, String>,
}

/// The host's end.
pub(crate) struct Door {
    socket: OwnedFd,
    /// The launcher's own program line up to its sub-command, as it is in the box.
    own: Vec<String>,
}

/// A program that was started through a door. Dropping it kills the program's process group.
#[derive(Debug)]
pub struct Inside {
    /// Its standard input and output.
    pub stdio: UnixStream,
    /// What the launcher watches.
    pub leash: OwnedFd,
}

impl Door {
    /// Both ends of a new one; the second is for the launcher.
    pub(crate) fn new(own: Vec<String>) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = wire::pair().during("make the box's door")?;
        // A launcher that was stopped must not stop the lease's own process.
        let flags = fcntl_getfl(&ours).during("look at the box's door")?;
        fcntl_setfl(&ours, flags | OFlags::NONBLOCK).during("make the box's door")?;
        Ok((Self { socket: ours, own }, theirs))
    }

    /// Starts one of the launcher's own sub-commands in the box. That it could not be started shows as an end of its
    /// output.
    pub(crate) fn start(&self, word: &str, variables: BTreeMap<String, String>) -> Result<Inside> {
        let (ours, theirs) = UnixStream::pair().during("make a program's standard input")?;
        let (held, leash) =
            pipe_with(PipeFlags::CLOEXEC).map(|(end, start)| (start, end)).during("make a leash")?;
        let argv = self.own.iter().cloned().chain([word.to_owned()]).collect();
        let theirs = theirs.as_fd();
        match wire::send(&self.socket, &Start { argv, variables }, &[theirs, theirs, leash.as_fd()]) {
            Ok(()) => Ok(Inside { stdio: ours, leash: held }),
            Err(error) => Err(Error::Helper { message: format!("takes no further program ({error})") }),
        }
    }
}

/// The launcher's end, by its number.
pub(crate) fn inherited(number: &str) -> io::Result<OwnedFd> {
    let number = number.parse().ok().filter(|number: &i32| *number > 2).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the number was given by the parent for this end, and nothing else here owns it; one that is not open or is no
    // socket is found out by the next line.
    let door = unsafe { OwnedFd::from_raw_fd(number) };
    if let Err(error) = sockopt::socket_type(&door) {
        // It was never ours: closing it would be wrong too.
        std::mem::forget(door);
        return Err(error.into());
    }
    fcntl_setfd(&door, FdFlags::CLOEXEC)?;
    Ok(door)
}

/// Serves the launcher's end until the engine has ended; answers its exit status, 128 + n for signal n.
pub(crate) fn serve(door: OwnedFd, engine: Child, variables: Vec<(OsString, OsString)>) -> io::Result<i32> {
    let engine = Run { pidfd: watch(&engine)?, child: engine, leash: None };
    Launcher { door: Some(door), engine, programs: Vec::new(), variables }.serve()
}

struct Run {
    child: Child,
    pidfd: OwnedFd,
    leash: Option<OwnedFd>,
}

struct Launcher {
    /// Gone when the host has let go of it.
    door: Option<OwnedFd>,
    engine: Run,
    programs: Vec<Run>,
    variables: Vec<(OsString, OsString)>,
}

impl Launcher {
    fn serve(mut self) -> io::Result<i32> {
        loop {
            let asked = self.wait()?;
            if let Some(status) = self.engine.child.try_wait()? {
                return Ok(code(status));
            }
            self.end_programs();
            if asked {
                self.take_in();
            }
        }
    }

    /// Blocks until something happens; true when the door has a word or is gone.
    fn wait(&self) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.engine.pidfd, PollFlags::IN)];
        fds.extend(self.door.iter().map(|door| PollFd::new(door, PollFlags::IN)));
        for run in &self.programs {
            fds.push(PollFd::new(&run.pidfd, PollFlags::IN));
            fds.extend(run.leash.iter().map(|leash| PollFd::new(leash, PollFlags::empty())));
        }
        match poll(&mut fds, None) {
            Ok(_) => Ok(self.door.is_some() && !fds[1].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets programs that have ended and kills those whose leash was let go.
    fn end_programs(&mut self) {
        self.programs.retain_mut(|run| {
            if run.leash.as_ref().is_some_and(let_go) {
                kill(&run.child);
                run.leash = None;
            }
            let ended = run.child.try_wait().map_or(true, |status| status.is_some());
            if ended {
                // What it started in its group goes with it.
                kill(&run.child);
            }
            !ended
        });
    }

    fn take_in(&mut self) {
        let Some(door) = &self.door else { return };
        match wire::receive::<Start>(door) {
            Ok(Some((start, fds))) if self.programs.len() < PROGRAMS => {
                if let Err(error) = self.start(&start, fds) {
                    eprintln!("box-launch: cannot start {:?}: {error}", start.argv.first());
                }
            }
            // Closing what came with it is the answer.
            Ok(Some(_)) => eprintln!("box-launch: {PROGRAMS} programs beside the engine are the most"),
            Ok(None) | Err(_) => self.door = None,
        }
    }

    fn start(&mut self, start: &Start, fds: Vec<OwnedFd>) -> io::Result<()> {
        let [stdin, stdout, leash] =
            <[OwnedFd; 3]>::try_from(fds).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (program, arguments) = start.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(self.variables.iter().cloned())
            .envs(&start.variables)
            .process_group(0)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout))
            .spawn()?;
        let pidfd = watch(&child)?;
        self.programs.push(Run { child, pidfd, leash: Some(leash) });
        Ok(())
    }
}

/// Nobody holds the other end any more.
fn let_go(leash: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(leash, PollFlags::empty())];
    poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id().cast_signed())
}

fn watch(child: &Child) -> io::Result<OwnedFd> {
    let pid = pid(child).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Kills a program's process group; gone in the meantime is what is wanted.
fn kill(child: &Child) {
    if let Some(pid) = pid(child) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// An exit status as a shell has it.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
