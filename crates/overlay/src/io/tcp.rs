//! Packets over TCP, for whom UDP is blocked: frames of two bytes of length and the packet. One connection
//! ([`Framed`]), and a member's connections to relays ([`Links`]), made when they are first needed.
//!
//! What always holds: a frame comes out as it went in; what does not fit the bounded queue is dropped, as UDP would;
//! a connection that fails is told once and made anew when something is to be sent again. Nobody waits for a peer
//! that does not read.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
};

use crate::{OverlayError, Result};

/// What waits to be written on one connection, at most.
const OUTPUT_BYTES: usize = 512 << 10;
const INPUT_BYTES: usize = 256 << 10;
/// Whoever has something to do rings the bell.
const LONG_WAIT: Duration = Duration::from_mins(1);
/// Short, for our address may have changed; making another connection costs little.
const PATIENCE_MS: u32 = 2_000;
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Packets that wait for the thread to write them, at most.
const WAITING_PACKETS: usize = 1024;

/// One connection that carries packets.
#[derive(Debug)]
pub struct Framed {
    stream: TcpStream,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    written: usize,
}

impl Framed {
    /// Carries packets on this connection, which is broken when the other side confirms nothing for `patience_ms`.
    ///
    /// # Errors
    /// If it cannot be set to wait for nobody.
    pub fn new(stream: TcpStream, patience_ms: u32) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_tcp_user_timeout(&stream, patience_ms)?;
        Ok(Self { stream, input: Vec::new(), filled: 0, output: Vec::new(), written: 0 })
    }

    /// Queues a packet, given in parts; whether there was room.
    pub fn push(&mut self, parts: &[&[u8]]) -> bool {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let Ok(length) = u16::try_from(bytes) else { return false };
        if length == 0 || self.output.len() - self.written + 2 + bytes > OUTPUT_BYTES {
            return false;
        }
        self.output.extend(length.to_be_bytes());
        for part in parts {
            self.output.extend_from_slice(part);
        }
        true
    }

    /// Whether something waits to be written.
    pub fn wants_to_write(&self) -> bool {
        self.written < self.output.len()
    }

    /// Writes as much as the connection takes.
    ///
    /// # Errors
    /// If it is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.wants_to_write() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if !self.wants_to_write() {
            self.output.clear();
            self.written = 0;
        } else if self.written > OUTPUT_BYTES / 2 {
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Reads what is there and hands on each whole packet.
    ///
    /// # Errors
    /// If the connection ended or is broken.
    pub fn read(&mut self, mut packet: impl FnMut(&mut [u8])) -> io::Result<()> {
        self.input.resize(INPUT_BYTES, 0);
        match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.filled += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        let mut at = 0;
        while let Some(head) = self.input[at..self.filled].first_chunk() {
            let length = usize::from(u16::from_be_bytes(*head));
            if length == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let Some(body) = self.input[at + 2..self.filled].get_mut(..length) else { break };
            packet(body);
            at += 2 + length;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }
}

impl AsFd for Framed {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Waits until one of these can be read, or written where that is wanted; what can be done with each.
///
/// # Errors
/// If the system refuses to wait.
pub(crate) fn wait_for<'a>(
    all: impl Iterator<Item = (std::os::fd::BorrowedFd<'a>, bool)>,
    wait: Duration,
) -> io::Result<Vec<(bool, bool)>> {
    let interest = |write| if write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let mut fds: Vec<PollFd<'_>> =
        all.map(|(fd, write)| PollFd::from_borrowed_fd(fd, interest(write))).collect();
    match poll(&mut fds, Some(&wait.try_into().map_err(|_| Errno::INVAL)?)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let bad = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    Ok(fds
        .iter()
        .map(|fd| (fd.revents().intersects(PollFlags::IN | bad), fd.revents().contains(PollFlags::OUT)))
        .collect())
}

/// Wakes a thread that waits in [`wait_for`].
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(crate) fn hush(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }

    pub(crate) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a member's links tell.
pub trait LinkEvents: Send + 'static {
    /// A packet came from a relay, a channel before it if it is of one.
    fn packet(&mut self, relay: u8, packet: &mut [u8]);
    /// The connection to a relay ended, or could not be made.
    fn failed(&mut self, relay: u8, error: io::ErrorKind);
}

struct ToSend {
    relay: u8,
    at: SocketAddr,
    packet: Vec<u8>,
}

/// A member's TCP connections to relays.
#[derive(Debug)]
pub struct Links {
    queue: mpsc::SyncSender<ToSend>,
    bell: Arc<Bell>,
    is_over: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Links {
    /// No connection yet; a thread waits for something to be sent.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(events: impl LinkEvents) -> Result<Self> {
        let (queue, waiting) = mpsc::sync_channel(WAITING_PACKETS);
        let bell = Arc::new(Bell::new().map_err(OverlayError::io("make an eventfd"))?);
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, ring) = (is_over.clone(), bell.clone());
        let work = move || run(events, &waiting, &ring, &over);
        let thread = std::thread::Builder::new().name("overlay-tcp".into()).stack_size(256 << 10).spawn(work);
        let thread = thread.map_err(OverlayError::io("start the overlay's TCP thread"))?;
        Ok(Self { queue, bell, is_over, thread: Mutex::new(Some(thread)) })
    }

    /// Sends a packet, given in parts, to the relay at that address; whether it was queued.
    pub fn send(&self, relay: u8, at: SocketAddr, parts: &[&[u8]]) -> bool {
        let is_queued = self.queue.try_send(ToSend { relay, at, packet: parts.concat() }).is_ok();
        self.bell.ring();
        is_queued
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.bell.ring();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// A connection, or one that another thread is making.
enum Link {
    Dialling(mpsc::Receiver<io::Result<TcpStream>>, Vec<Vec<u8>>),
    Open(Framed),
}

fn run(mut events: impl LinkEvents, waiting: &mpsc::Receiver<ToSend>, bell: &Arc<Bell>, over: &AtomicBool) {
    let mut links: BTreeMap<u8, (SocketAddr, Link)> = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        let open = links.values().filter_map(|(_, link)| match link {
            Link::Open(framed) => Some((framed.as_fd(), framed.wants_to_write())),
            Link::Dialling(..) => None,
        });
        let all = std::iter::once((bell.fd(), false)).chain(open);
        if wait_for(all, LONG_WAIT).is_err() {
            return;
        }
        bell.hush();
        while let Ok(next) = waiting.try_recv() {
            queue(&mut links, next, bell);
        }
        let mut failed = Vec::new();
        for (relay, (_, link)) in &mut links {
            if let Err(error) = work(link, |packet| events.packet(*relay, packet)) {
                failed.push((*relay, error.kind()));
            }
        }
        for (relay, error) in failed {
            links.remove(&relay);
            events.failed(relay, error);
        }
    }
}

fn queue(links: &mut BTreeMap<u8, (SocketAddr, Link)>, next: ToSend, bell: &Arc<Bell>) {
    let ToSend { relay, at, packet } = next;
    if links.get(&relay).is_none_or(|(known, _)| *known != at) {
        links.insert(relay, (at, dial(at, bell.clone())));
    }
    match links.get_mut(&relay) {
        Some((_, Link::Open(framed))) => {
            framed.push(&[&packet]);
        }
        Some((_, Link::Dialling(_, early))) if early.len() < 64 => early.push(packet),
        _ => {}
    }
}

/// Connecting waits, so a thread of its own does it.
fn dial(at: SocketAddr, bell: Arc<Bell>) -> Link {
    let (done, made) = mpsc::channel();
    let dial = move || {
        let _ = done.send(TcpStream::connect_timeout(&at, CONNECT_WAIT));
        bell.ring();
    };
    // Without a thread the channel is closed, which is found out like a refusal.
    let _ = std::thread::Builder::new().name("overlay-dial".into()).stack_size(64 << 10).spawn(dial);
    Link::Dialling(made, Vec::new())
}

fn work(link: &mut Link, packet: impl FnMut(&mut [u8])) -> io::Result<()> {
    if let Link::Dialling(made, early) = link {
        let stream = match made.try_recv() {
            Ok(made) => made?,
            Err(mpsc::TryRecvError::Empty) => return Ok(()),
            Err(mpsc::TryRecvError::Disconnected) => return Err(io::ErrorKind::ConnectionRefused.into()),
        };
        let mut framed = Framed::new(stream, PATIENCE_MS)?;
        for packet in early {
            framed.push(&[packet]);
        }
        *link = Link::Open(framed);
    }
    let Link::Open(framed) = link else { return Ok(()) };
    framed.read(packet)?;
    framed.flush()
}
