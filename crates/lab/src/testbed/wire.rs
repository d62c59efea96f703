//! A wire in user space between two TUN devices in two network namespaces: a thread that reads packets at one end and
//! writes them at the other when its [`Line`] says so.
//!
//! Always holds: the devices are there while the wire is, and vanish with this process however it ends.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::line::{Counts, Line, Quality};
use crate::{LabError, Result};

const PACKET_BYTES: usize = 2048;
/// Packets read at one end before the other has its turn.
const TURN: usize = 64;
const IDLE: Duration = Duration::from_secs(1);

/// Where one end of a wire is.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// A process in the network namespace.
    pub pid: u32,
    /// The device's name there.
    pub device: &'a str,
}

/// A running wire; ends when dropped.
#[derive(Debug)]
pub struct Wire {
    lines: Arc<Mutex<[Line; 2]>>,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Makes both devices and begins to carry. The first quality is that from the first end to the second.
    pub fn start(ends: [End<'_>; 2], qualities: [Quality; 2], seed: u64) -> Result<Self> {
        let devices = [open(ends[0])?, open(ends[1])?];
        let lines = [Line::new(qualities[0], seed), Line::new(qualities[1], seed ^ u64::MAX)];
        let lines = Arc::new(Mutex::new(lines));
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.map_err(|error| LabError::io("make an event")(error.into()))?);
        let stop = Arc::new(AtomicBool::new(false));
        let carrier = Carrier {
            devices,
            lines: lines.clone(),
            stop: stop.clone(),
            wake: wake.clone(),
            began: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("wire".into()).spawn(move || carrier.run());
        let thread = Some(thread.map_err(LabError::io("start a wire's thread"))?);
        Ok(Self { lines, stop, wake, thread })
    }

    /// From now on both directions are so.
    pub fn set(&self, qualities: [Quality; 2]) {
        let mut lines = lock(&self.lines);
        for (line, quality) in lines.iter_mut().zip(qualities) {
            line.set(quality);
        }
    }

    /// How both directions are.
    pub fn qualities(&self) -> [Quality; 2] {
        let lines = lock(&self.lines);
        [lines[0].quality(), lines[1].quality()]
    }

    /// What both directions did so far.
    pub fn counts(&self) -> [Counts; 2] {
        let lines = lock(&self.lines);
        [lines[0].counts(), lines[1].counts()]
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(lines: &Mutex<[Line; 2]>) -> MutexGuard<'_, [Line; 2]> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a device in another namespace. A namespace belongs to a thread, so a thread of its own goes there.
fn open(end: End<'_>) -> Result<OwnedFd> {
    let place = std::fs::File::open(format!("/proc/{}/ns/net", end.pid));
    let place = place.map_err(LabError::io("open a host's network namespace"))?;
    let device = end.device.to_owned();
    let made = std::thread::spawn(move || {
        let moved = move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network));
        moved.map_err(|error| LabError::io("enter a host's network namespace")(error.into()))?;
        ionet_net::tun::create(&device)
            .map_err(|error| LabError::Broken(format!("the device {device} cannot be made: {error}")))
    });
    made.join().map_err(|_| LabError::Broken("a thread that makes a device panicked".into()))?
}

struct Carrier {
    devices: [OwnedFd; 2],
    lines: Arc<Mutex<[Line; 2]>>,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    began: Instant,
}

impl Carrier {
    fn run(self) {
        let mut wait = IDLE;
        while !self.stop.load(Ordering::Acquire) {
            self.wait(wait);
            self.take_in();
            wait = self.give_out();
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wait(&self, most: Duration) {
        let mut fds = [
            PollFd::new(&self.devices[0], PollFlags::IN),
            PollFd::new(&self.devices[1], PollFlags::IN),
            PollFd::new(&*self.wake, PollFlags::IN),
        ];
        // Interrupted is as good as woken.
        let _ = poll(&mut fds, Timespec::try_from(most).ok().as_ref());
    }

    fn take_in(&self) {
        let mut packet = [0; PACKET_BYTES];
        for (n, device) in self.devices.iter().enumerate() {
            for _ in 0..TURN {
                let Ok(bytes) = rustix::io::read(device, &mut packet) else { break };
                lock(&self.lines)[n].push(self.now_ns(), packet[..bytes].to_vec());
            }
        }
    }

    /// Writes what is due; how long until something is due again.
    fn give_out(&self) -> Duration {
        let mut next_ns = u64::MAX;
        for n in 0..2 {
            loop {
                let mut lines = lock(&self.lines);
                let Some(packet) = lines[n].pop(self.now_ns()) else {
                    next_ns = next_ns.min(lines[n].next_ns().unwrap_or(u64::MAX));
                    break;
                };
                drop(lines);
                // A device that is down or full loses the packet, as a network card would.
                let _ = rustix::io::write(&self.devices[1 - n], &packet);
            }
        }
        Duration::from_nanos(next_ns.saturating_sub(self.now_ns())).min(IDLE)
    }
}
