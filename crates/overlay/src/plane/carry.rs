//! The two threads that carry packets between the TUN and the UDP socket.
//!
//! The carrier does both directions while there is little to do: the answer to a packet that it has handed to the
//! kernel is in the TUN at once, and leaves without another thread being woken. Where much comes from either side, the
//! helper takes the TUN over until that gives little again. The [`Sender`] goes to and fro between them, so that there is one.
//! A padded cluster's sender, which sends by the clock, stays with the helper.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{self, Receiver as Taker, SyncSender},
    },
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Shared,
    pace::Pace,
    receive::Receiver,
    send::{Drained, Sender},
};
use crate::{
    OverlayError, Result,
    io::{tcp::Bell, udp::Inbox},
};

/// So many full batches in a row are much.
const MANY_FULL: u32 = 4;
/// Of what is received, a full batch.
const FULL_BYTES: usize = 32 << 10;
/// Less in [`LULL`] is little.
const FEW_BYTES: usize = 256 << 10;
const LULL: Duration = Duration::from_millis(50);
/// How long we leave a TUN alone that gives errors.
const BACK_OFF: Duration = Duration::from_millis(100);

pub(super) struct Carrier {
    shared: Arc<Shared>,
    inbox: Inbox,
    receiver: Receiver,
    /// Whoever has it takes what the TUN gives.
    sender: Option<Box<Sender>>,
    to_helper: SyncSender<Box<Sender>>,
    from_helper: Taker<Box<Sender>>,
    returned: Arc<Bell>,
    pace: Pace,
    began: Instant,
    full: u32,
}

pub(super) struct Helper {
    shared: Arc<Shared>,
    to_carrier: SyncSender<Box<Sender>>,
    from_carrier: Taker<Box<Sender>>,
    returned: Arc<Bell>,
}

/// What can be read.
#[derive(Clone, Copy, Default)]
struct Ready {
    udp: bool,
    tun: bool,
}

/// The two, with the sender at whom it belongs.
pub(super) fn pair(shared: &Arc<Shared>, sender: Sender) -> Result<(Carrier, Helper)> {
    let (to_helper, from_carrier) = mpsc::sync_channel(1);
    let (to_carrier, from_helper) = mpsc::sync_channel(1);
    let returned = Arc::new(Bell::new().map_err(OverlayError::io("make an eventfd"))?);
    let helper = Helper { shared: shared.clone(), to_carrier, from_carrier, returned: returned.clone() };
    let mut carrier = Carrier {
        shared: shared.clone(),
        inbox: Inbox::default(),
        receiver: Receiver::default(),
        sender: Some(Box::new(sender)),
        to_helper,
        from_helper,
        returned,
        pace: Pace::default(),
        began: Instant::now(),
        full: 0,
    };
    if carrier.sender.as_ref().is_some_and(|sender| sender.wait().is_some()) {
        carrier.hand_over();
    }
    Ok((carrier, helper))
}

impl Carrier {
    /// Carries until it is over.
    pub(super) fn run(mut self) {
        while !self.shared.is_over.load(Ordering::Relaxed) {
            let ready = self.wait();
            if !ready.udp && !ready.tun {
                continue;
            }
            let received_bytes = if ready.udp { self.receive() } else { 0 };
            let is_left = self.send();
            self.full = if is_left || received_bytes >= FULL_BYTES { self.full + 1 } else { 0 };
            if self.full >= MANY_FULL {
                self.hand_over();
            }
        }
    }

    /// Takes what came from others; how many bytes.
    fn receive(&mut self) -> usize {
        if let Err(error) = self.inbox.receive_now(&self.shared.udp) {
            tracing::debug!(%error, "receiving told of an error");
            return 0;
        }
        let bytes = self.inbox.take().0.iter().map(|received| received.bytes.len()).sum();
        self.receiver.take_all(&self.shared, &mut self.inbox);
        self.pace.came(self.now_us(), bytes);
        bytes
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Sends what the TUN has, if that is ours to do; whether it may have more.
    fn send(&mut self) -> bool {
        let Some(sender) = &mut self.sender else { return false };
        let Ok(drained) = sender.drain() else {
            self.hand_over();
            return false;
        };
        if drained.packets > 0 {
            self.pace.sent(self.now_us(), drained);
        }
        drained.is_left
    }

    fn hand_over(&mut self) {
        self.full = 0;
        // The helper ends only after we have.
        if let Some(sender) = self.sender.take() {
            let _ = self.to_helper.try_send(sender);
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Ready {
        let mut now_us = self.now_us();
        let until_us = now_us + self.pace.awake_us(now_us);
        while now_us < until_us {
            let ready = self.look(Some(0));
            if ready.udp || ready.tun {
                return ready;
            }
            std::hint::spin_loop();
            now_us = self.now_us();
            if now_us >= until_us {
                self.pace.in_vain();
            }
        }
        let ready = self.look(None);
        if ready.udp || !ready.tun {
            return ready;
        }
        match self.pace.gather_us() {
            0 => ready,
            gather_us => Ready { tun: true, ..self.look_at_udp(gather_us) },
        }
    }

    /// What can be read, at once or when something can.
    fn look(&mut self, wait_us: Option<u64>) -> Ready {
        let shared = &*self.shared;
        let udp = PollFd::new(&shared.udp, PollFlags::IN);
        let Some(sender) = &mut self.sender else {
            let mut fds = [udp, PollFd::from_borrowed_fd(self.returned.fd(), PollFlags::IN)];
            let _ = poll(&mut fds, time(wait_us).as_ref());
            let [udp, returned] = fds.map(|fd| fd.revents());
            if !returned.is_empty() {
                self.returned.hush();
                self.sender = self.from_helper.try_recv().ok();
            }
            return Ready { udp: !udp.is_empty(), tun: !returned.is_empty() };
        };
        let mut fds = [
            udp,
            PollFd::from_borrowed_fd(shared.tun.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.bell.fd(), PollFlags::IN),
        ];
        let _ = poll(&mut fds, time(wait_us).as_ref());
        let [udp, tun, bell] = fds.map(|fd| fd.revents());
        if !bell.is_empty() {
            shared.bell.hush();
            sender.unpark();
        }
        if is_broken(tun) {
            self.hand_over();
        }
        Ready { udp: !udp.is_empty(), tun: !tun.is_empty() || !bell.is_empty() }
    }

    /// Waits for packets of others alone.
    fn look_at_udp(&self, wait_us: u64) -> Ready {
        let mut fds = [PollFd::new(&self.shared.udp, PollFlags::IN)];
        let _ = poll(&mut fds, time(Some(wait_us)).as_ref());
        Ready { udp: !fds[0].revents().is_empty(), tun: false }
    }
}

impl Helper {
    /// Sends whenever that is handed over, until it is over.
    pub(super) fn run(self) {
        while let Ok(mut sender) = self.from_carrier.recv() {
            if !self.send(&mut sender) || self.to_carrier.try_send(sender).is_err() {
                return;
            }
            self.returned.ring();
        }
    }

    /// Sends what the TUN gives until that is little; whether there is anything to go on with.
    fn send(&self, sender: &mut Sender) -> bool {
        let (mut since, mut bytes) = (Instant::now(), 0);
        while !self.shared.is_over.load(Ordering::Relaxed) {
            match sender.drain() {
                Ok(Drained { is_left: true, bytes: drained, .. }) => bytes += drained,
                Ok(drained) => {
                    bytes += drained.bytes;
                    self.wait(sender);
                    if sender.wait().is_none() && since.elapsed() >= LULL {
                        if bytes < FEW_BYTES {
                            return true;
                        }
                        (since, bytes) = (Instant::now(), 0);
                    }
                }
                Err(error) => {
                    if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV)) {
                        tracing::debug!(%error, "the TUN device is gone");
                        return false;
                    }
                    std::thread::park_timeout(BACK_OFF);
                }
            }
        }
        false
    }

    /// Waits for the TUN or the bell, or for as long as it may.
    fn wait(&self, sender: &mut Sender) {
        let shared = &*self.shared;
        let mut fds = [
            PollFd::from_borrowed_fd(shared.tun.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.bell.fd(), PollFlags::IN),
        ];
        let wait = sender.wait().or(Timespec::try_from(LULL).ok());
        if poll(&mut fds, wait.as_ref()).is_err() {
            return;
        }
        let [tun, bell] = fds.map(|fd| fd.revents());
        if !bell.is_empty() {
            shared.bell.hush();
            sender.unpark();
        }
        if is_broken(tun) {
            std::thread::park_timeout(BACK_OFF);
        }
    }
}

fn is_broken(device: PollFlags) -> bool {
    device.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
}

fn time(wait_us: Option<u64>) -> Option<Timespec> {
    Timespec::try_from(Duration::from_micros(wait_us?)).ok()
}
