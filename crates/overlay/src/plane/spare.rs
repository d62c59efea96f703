//! Sockets beside the main one: many that are open while a NAT's port is sought, and those that found one.
//!
//! One thread, which is started when the first are opened, receives from all of them. What always holds: what comes by
//! a spare socket is treated like what comes by the main one; control is told of the number of a socket that is not
//! kept yet as of something that nobody has verified. Which sockets are opened and kept says the machine.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{STACK_BYTES, Shared, control::Event, receive::Receiver};
use crate::{
    OverlayError, Result,
    io::{
        tcp::{Bell, wait_for},
        udp::{Inbox, Received, Udp},
    },
    seam::Spare,
};

/// Whoever has something to do rings the bell.
const LONG_WAIT: Duration = Duration::from_mins(1);
/// How long sockets are left alone that cannot be waited for.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The spare sockets of a member; closed when dropped.
pub(super) struct Spares {
    shared: Arc<Shared>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    sockets: Mutex<Sockets>,
    bell: Bell,
    is_over: AtomicBool,
}

#[derive(Default)]
struct Sockets {
    /// Of the attempt under way, by number.
    open: Vec<Arc<Udp>>,
    /// By the only address that each is for.
    kept: BTreeMap<SocketAddr, Arc<Udp>>,
}

impl State {
    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spares {
    /// None are open yet.
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self> {
        let bell = Bell::new().map_err(OverlayError::io("make an eventfd"))?;
        let state = State { sockets: Mutex::default(), bell, is_over: AtomicBool::new(false) };
        Ok(Self { shared, state: Arc::new(state), thread: None })
    }

    /// Does what the machine says.
    pub(super) fn act(&mut self, spare: Spare) {
        match spare {
            Spare::Send { number, to, bytes } => {
                let socket = self.state.sockets().open.get(usize::from(number)).cloned();
                if let Some(Err(error)) = socket.map(|socket| socket.send(to, &bytes)) {
                    tracing::debug!(%error, "a probe from a spare socket was not sent");
                }
            }
            Spare::Open { count } => self.open(count),
            Spare::Keep { number, to } => self.change(|sockets| {
                let open = std::mem::take(&mut sockets.open);
                sockets.kept.extend(open.get(usize::from(number)).map(|socket| (to, socket.clone())));
            }),
            Spare::Close => self.change(|sockets| sockets.open.clear()),
            Spare::Release { to } => self.change(|sockets| drop(sockets.kept.remove(&to))),
        }
    }

    /// Opens as many as can be had: fewer find a port less likely.
    fn open(&mut self, count: u16) {
        if self.thread.is_none() {
            let (shared, state) = (self.shared.clone(), self.state.clone());
            let thread = std::thread::Builder::new().name("overlay-spare".into()).stack_size(STACK_BYTES);
            let Ok(thread) = thread.spawn(move || receive_all(&shared, &state)) else { return };
            self.thread = Some(thread);
        }
        let local = self.shared.udp.local().ip();
        let is_bound = local.is_ipv4() && !local.is_unspecified();
        let at = if is_bound { local } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let open: Vec<_> = (0..count).map_while(|_| Udp::bind((at, 0).into()).ok().map(Arc::new)).collect();
        tracing::debug!(sockets = open.len(), "seeking a way through a NAT that takes random ports");
        self.change(|sockets| sockets.open = open);
    }

    fn change(&self, change: impl FnOnce(&mut Sockets)) {
        let mut sockets = self.state.sockets();
        change(&mut sockets);
        self.shared.udp.divert(sockets.kept.clone());
        drop(sockets);
        self.state.bell.ring();
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        self.state.bell.ring();
        self.shared.udp.divert(BTreeMap::new());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn receive_all(shared: &Shared, state: &State) {
    let (mut inbox, mut receiver) = (Inbox::default(), Receiver::default());
    while !state.is_over.load(Ordering::Relaxed) {
        let all = all(&state.sockets());
        let fds = all.iter().map(|(_, socket)| (std::os::fd::AsFd::as_fd(&**socket), false));
        let Ok(ready) = wait_for(std::iter::once((state.bell.fd(), false)).chain(fds), LONG_WAIT) else {
            std::thread::park_timeout(BACK_OFF);
            continue;
        };
        state.bell.hush();
        for ((number, socket), _) in all.iter().zip(&ready[1..]).filter(|(_, (is_read, _))| *is_read) {
            if inbox.receive_now(socket).is_err() {
                continue;
            }
            if let (Some(number), [Received { from, .. }, ..]) = (*number, inbox.take().0) {
                shared.tell(Event::Spare { number, from: *from });
            }
            receiver.take_all(shared, &mut inbox);
        }
    }
}

/// All sockets; those of an attempt with their numbers.
fn all(sockets: &Sockets) -> Vec<(Option<u16>, Arc<Udp>)> {
    let open = (0..).zip(&sockets.open).map(|(number, socket)| (Some(number), socket.clone()));
    open.chain(sockets.kept.values().map(|socket| (None, socket.clone()))).collect()
}
