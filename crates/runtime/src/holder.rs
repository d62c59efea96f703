//! The parent's side of a box's helper process (see [`crate::netns`]).
//!
//! Always holds: dropping the last [`Holder`] or connector, or the death of this process, ends the
//! helper and with it everything in the box. Calls may come from several threads.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use crate::{
    door::{Door, Inside},
    error::{During, Error, Result},
    netns::{Op, Reply, Request, Setup},
    wire,
};

/// The executable that offers the hidden sub-commands `box-init` and `box-launch`, with the arguments
/// to put before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperExe(pub PathBuf, pub Vec<OsString>);

impl HelperExe {
    /// The running executable itself.
    pub fn current() -> Result<Self> {
        Ok(Self(std::env::current_exe().during("find the running executable")?, Vec::new()))
    }
}

type Answer = std::result::Result<(Option<u32>, Vec<OwnedFd>), String>;

#[derive(Default)]
struct Pending {
    next: u64,
    waiting: BTreeMap<u64, Sender<Answer>>,
    exits: BTreeMap<u64, i32>,
    closed: bool,
}

struct Shared {
    socket: OwnedFd,
    /// The door of the box's launcher, once there is one.
    door: Mutex<Option<Door>>,
    pending: Arc<Mutex<Pending>>,
}

/// The running helper of one box.
pub struct Holder {
    child: Child,
    shared: Arc<Shared>,
}

/// Reaches services inside the box; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Connector(Arc<Shared>);

/// The devices of a box's network namespace: whole IP packets, no header.
#[derive(Debug)]
pub struct Devices {
    /// To and from the other members.
    pub overlay: OwnedFd,
    /// Everything else that the box sends, and what is answered.
    pub out: OwnedFd,
}

/// A program that was started in the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId(u64);

impl Holder {
    /// Starts the helper; it waits for its setup and has no namespaces yet.
    pub(crate) fn spawn(exe: &HelperExe) -> Result<Self> {
        let (ours, theirs) = wire::pair().during("make a socket for the box helper")?;
        let child = Command::new(&exe.0)
            .args(&exe.1)
            .arg("box-init")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .during(format!("start the box helper {}", exe.0.display()))?;
        let pending = Arc::new(Mutex::new(Pending::default()));
        let reader = ours.try_clone().during("share the box helper's socket")?;
        let seen = Arc::clone(&pending);
        thread::Builder::new()
            .name("box-helper".into())
            .stack_size(256 << 10)
            .spawn(move || read_replies(&reader, &seen))
            .during("start a thread")?;
        Ok(Self { child, shared: Arc::new(Shared { socket: ours, door: Mutex::default(), pending }) })
    }

    /// The helper's process id on the host.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes the namespaces; gives back their devices.
    pub(crate) fn setup(&self, setup: Setup) -> Result<Devices> {
        let (_, fds) = self.shared.call(Op::Setup(setup), &[], Duration::from_secs(20))?;
        match <[OwnedFd; 2]>::try_from(fds) {
            Ok([overlay, out]) => Ok(Devices { overlay, out }),
            Err(_) => Err(helper_error("sent no descriptors of the devices")),
        }
    }

    /// Starts a program inside the namespaces; `{fdN}` in an argument stands for extra N.
    pub(crate) fn run(
        &self,
        argv: Vec<String>,
        stdio: [BorrowedFd<'_>; 3],
        extras: &[BorrowedFd<'_>],
    ) -> Result<RunId> {
        let fds: Vec<_> = stdio.into_iter().chain(extras.iter().copied()).collect();
        let (id, answer) = self.shared.start(Op::Run { argv }, &fds)?;
        wait(&answer, Duration::from_secs(20))?;
        Ok(RunId(id))
    }

    /// The launcher that was started last has this door.
    pub(crate) fn set_door(&self, door: Door) {
        *self.shared.door.lock().unwrap_or_else(PoisonError::into_inner) = Some(door);
    }

    /// The program's exit code once it has ended (128 + n for signal n).
    pub(crate) fn exit_code(&self, run: RunId) -> Option<i32> {
        self.shared.lock().exits.get(&run.0).copied()
    }

    /// Kills the program and everything in its process namespace.
    pub(crate) fn kill(&self, run: RunId) -> Result<()> {
        self.shared.call(Op::Kill { run: run.0 }, &[], Duration::from_secs(5)).map(drop)
    }

    /// Whether the helper still answers.
    pub fn is_alive(&self) -> bool {
        !self.shared.lock().closed
    }

    /// A handle for tunnels.
    pub fn connector(&self) -> Connector {
        Connector(Arc::clone(&self.shared))
    }

    /// Ends the helper and everything in the box, and waits for it.
    pub(crate) fn stop(mut self) -> Result<()> {
        rustix::net::shutdown(&self.shared.socket, rustix::net::Shutdown::Both)
            .during("close the box helper's socket")?;
        self.child.wait().during("wait for the box helper").map(drop)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.shared.socket, rustix::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

impl Connector {
    /// Opens a TCP connection to a service in the box. Blocks for `timeout` at most.
    pub fn connect(&self, ip: Ipv4Addr, port: u16, timeout: Duration) -> io::Result<TcpStream> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let op = Op::Connect { address: SocketAddrV4::new(ip, port), timeout_ms };
        let stream = TcpStream::from(self.socket(op, timeout)?);
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A UDP socket in the box, non-blocking, connected to a port there.
    pub fn datagrams(&self, ip: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
        let op = Op::Datagrams { address: SocketAddrV4::new(ip, port) };
        Ok(UdpSocket::from(self.socket(op, Duration::from_secs(5))?))
    }

    /// Starts one of this executable's own sub-commands in the box, beside the engine. `variables` are added to those of
    /// the engine. Does not block.
    ///
    /// # Errors
    /// If the box has no engine yet or takes no more programs.
    pub fn start(&self, word: &str, variables: BTreeMap<String, String>) -> Result<Inside> {
        let door = self.0.door.lock().unwrap_or_else(PoisonError::into_inner);
        door.as_ref().ok_or_else(|| helper_error("has not started the engine yet"))?.start(word, variables)
    }

    fn socket(&self, op: Op, timeout: Duration) -> io::Result<OwnedFd> {
        let (_, fds) = self
            .0
            .call(op, &[], timeout + Duration::from_secs(2))
            .map_err(|error| io::Error::new(io::ErrorKind::ConnectionRefused, error.to_string()))?;
        Ok(fds.into_iter().next().ok_or(io::ErrorKind::ConnectionAborted)?)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, op: Op, fds: &[BorrowedFd<'_>]) -> Result<(u64, mpsc::Receiver<Answer>)> {
        let (tell, answer) = mpsc::channel();
        let id = {
            let mut pending = self.lock();
            if pending.closed {
                return Err(helper_error("is gone"));
            }
            pending.next += 1;
            let id = pending.next;
            pending.waiting.insert(id, tell);
            id
        };
        if let Err(error) = wire::send(self.socket.as_fd(), &Request { id, op }, fds) {
            self.lock().waiting.remove(&id);
            return Err(error).during("talk to the box helper");
        }
        Ok((id, answer))
    }

    fn call(&self, op: Op, fds: &[BorrowedFd<'_>], timeout: Duration) -> Result<(Option<u32>, Vec<OwnedFd>)> {
        let (_, answer) = self.start(op, fds)?;
        wait(&answer, timeout)
    }
}

fn wait(answer: &mpsc::Receiver<Answer>, timeout: Duration) -> Result<(Option<u32>, Vec<OwnedFd>)> {
    match answer.recv_timeout(timeout) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(message)) => Err(helper_error(&message)),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(helper_error("did not answer in time")),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(helper_error("ended before it answered")),
    }
}

fn helper_error(message: &str) -> Error {
    Error::Helper { message: message.into() }
}

fn read_replies(socket: &OwnedFd, pending: &Mutex<Pending>) {
    let lock = || pending.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(Some((reply, fds))) = wire::receive::<Reply>(socket) {
        let (id, answer) = match reply {
            Reply::Exit { run, code } => {
                lock().exits.insert(run, code);
                continue;
            }
            Reply::Done { id, pid } => (id, Ok((pid, fds))),
            Reply::Failed { id, message } => (id, Err(message)),
        };
        if let Some(waiting) = lock().waiting.remove(&id) {
            // A caller that gave up drops the descriptors with the message.
            let _ = waiting.send(answer);
        }
    }
    let mut pending = lock();
    pending.closed = true;
    pending.waiting.clear();
}
