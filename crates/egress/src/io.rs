//! What every party of the loop needs of the outside: the box's device, what is watched, when to wake up, the counters.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::stack::Outlet;

/// What went out and in, and what did not. Bytes are payload, of TCP, UDP and name lookups.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) limited: AtomicU64,
    pub(crate) open: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// The names of the device and of the wake-up among what is watched; parties have higher ones.
pub(crate) const TUN: u64 = 0;
pub(crate) const WAKE: u64 = 1;

pub(crate) struct Io {
    epoll: OwnedFd,
    tun: OwnedFd,
    mtu: u16,
    /// The packet that is being written.
    scratch: Vec<u8>,
    timers: BTreeSet<(u64, u64)>,
    pub(crate) now_ms: u64,
}

impl Io {
    pub(crate) fn new(tun: OwnedFd, wake: &OwnedFd, mtu: u16) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&tun)? | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&tun, flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &tun, EventData::new_u64(TUN), EventFlags::IN)?;
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let scratch = vec![0; usize::from(mtu)];
        Ok(Self { epoll, tun, mtu, scratch, timers: BTreeSet::new(), now_ms: 0 })
    }

    /// Waits for events, no longer than until the next timer, and not at all when `busy`.
    pub(crate) fn wait(&self, events: &mut Vec<epoll::Event>, busy: bool) -> io::Result<()> {
        events.clear();
        let until_ms = self.timers.first().map(|(at_ms, _)| at_ms.saturating_sub(self.now_ms));
        let wait_ms = if busy { Some(0) } else { until_ms };
        let timeout = wait_ms.map(|ms| rustix::event::Timespec {
            tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next packet out of the box; `None` when there is none just now.
    pub(crate) fn read_packet(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.tun, buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok(Some(n)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a whole packet into the box. What the device does not take is lost, as on any wire.
    pub(crate) fn write_packet(&self, packet: Option<Vec<u8>>) {
        let _ = packet.map(|packet| rustix::io::write(&self.tun, &packet));
    }

    /// Says when `id` is to be looked at, instead of `before`; `None` is never.
    pub(crate) fn arm(&mut self, id: u64, before: &mut Option<u64>, at_ms: Option<u64>) {
        if *before == at_ms {
            return;
        }
        before.and_then(|at_ms| self.timers.take(&(at_ms, id)));
        at_ms.map(|at_ms| self.timers.insert((at_ms, id)));
        *before = at_ms;
    }

    /// A party whose time has come; it has no timer then.
    pub(crate) fn due(&mut self) -> Option<u64> {
        let (at_ms, id) = *self.timers.first()?;
        (at_ms <= self.now_ms).then(|| self.timers.pop_first())?;
        Some(id)
    }

    /// Begins to connect a socket of this host; `id` hears of it.
    pub(crate) fn dial(&self, id: u64, kind: SocketType, to: SocketAddr) -> rustix::io::Result<OwnedFd> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        if kind == SocketType::STREAM {
            sockopt::set_tcp_nodelay(&socket, true)?;
            sockopt::set_socket_keepalive(&socket, true)?;
        }
        match connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let mut flags = EventFlags::IN | EventFlags::ET;
        if kind == SocketType::STREAM {
            flags |= EventFlags::OUT | EventFlags::RDHUP;
        }
        epoll::add(&self.epoll, socket.as_fd(), EventData::new_u64(id), flags)?;
        Ok(socket)
    }
}

impl Outlet for Io {
    fn packet<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        if length > self.scratch.len() {
            self.scratch.resize(length, 0);
        }
        let written = write(&mut self.scratch[..length]);
        let _ = rustix::io::write(&self.tun, &self.scratch[..length]);
        written
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }
}
