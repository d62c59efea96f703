//! The thread that steps the machine.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use super::{Shared, spare::Spares};
use crate::{
    Member, PeerKey, RelayAt, Result, Way,
    io::addresses,
    machine::Machine,
    seam::{Input, Output},
};

/// How often we look whether the machine's addresses changed.
const LOOK: Duration = Duration::from_secs(2);
/// Events taken before time is looked at again.
const MOST_AT_ONCE: usize = 256;

/// What other threads tell control.
pub(super) enum Event {
    Packet { way: Way, bytes: Vec<u8> },
    Control { index: u32, way: Way, body: Vec<u8>, packet_bytes: usize },
    Used { index: u32, way: Way },
    Wanted(PeerKey),
    Introduced { from: PeerKey, bytes: Vec<u8> },
    Members(Vec<Member>),
    Relays(Vec<RelayAt>),
    Failed { way: Way, error: ErrorKind },
    TooLarge { way: Way },
    Spare { number: u16, from: SocketAddr },
    Renew,
    Over,
}

pub(super) struct Control {
    shared: Arc<Shared>,
    machine: Machine,
    began: Instant,
    looked: Option<Instant>,
    spares: Spares,
    out: Vec<Output>,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>, machine: Machine) -> Result<Self> {
        let spares = Spares::new(shared.clone())?;
        Ok(Self { shared, machine, began: Instant::now(), looked: None, spares, out: Vec::new() })
    }

    pub(super) fn run(mut self, events: &Receiver<Event>) {
        loop {
            if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                self.looked = Some(Instant::now());
                let own = self.own();
                self.step(Input::OwnAddresses(own));
            }
            let wait = Duration::from_micros(self.machine.next_us().saturating_sub(self.now_us()));
            match events.recv_timeout(wait.min(LOOK)) {
                Ok(event) => {
                    let more = events.try_iter().take(MOST_AT_ONCE);
                    for event in std::iter::once(event).chain(more) {
                        if matches!(event, Event::Over) {
                            return;
                        }
                        self.take(&event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.step(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Packet { way, bytes } => {
                self.shared.unverified.fetch_sub(1, Ordering::Relaxed);
                self.step(Input::Packet { way: *way, bytes });
            }
            Event::Control { index, way, body, packet_bytes } => {
                let (index, way, packet_bytes) = (*index, *way, *packet_bytes);
                self.step(Input::Control { index, way, body, packet_bytes });
            }
            Event::Used { index, way } => self.step(Input::Used { index: *index, way: *way }),
            Event::Wanted(peer) => self.step(Input::Wanted { peer: *peer }),
            Event::Introduced { from, bytes } => self.step(Input::Introduced { from: *from, bytes }),
            Event::Members(members) => self.step(Input::Members(members.clone())),
            Event::Relays(relays) => self.step(Input::Relays(relays.clone())),
            Event::Failed { way, error } => self.step(Input::Failed { way: *way, error: *error }),
            Event::TooLarge { way } => self.step(Input::TooLarge { way: *way }),
            Event::Spare { number, from } => self.step(Input::Spare { number: *number, from: *from }),
            Event::Renew => self.step(Input::Renew),
            Event::Over => {}
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn step(&mut self, input: Input<'_>) {
        let now_us = self.now_us();
        self.machine.step(now_us, input, &mut self.out);
        let mut failed = Vec::new();
        for output in std::mem::take(&mut self.out) {
            match output {
                Output::Publish(table) => {
                    self.shared.table.store(table);
                    // Packets may wait for what is in it.
                    self.shared.bell.ring();
                }
                Output::Spare(spare) => self.spares.act(spare),
                Output::Introduce { to, bytes } => (self.shared.introduce)(to, bytes),
                Output::Send { way, bytes } => {
                    if let Err(error) = self.shared.send(way, &bytes) {
                        // A probe for a size that does not leave this machine is one that gets no answer.
                        let is_too_big = error.raw_os_error() == Some(libc::EMSGSIZE);
                        failed.extend((!is_too_big).then_some((way, error.kind())));
                    }
                }
            }
        }
        failed.dedup();
        for (way, error) in failed {
            let now_us = self.now_us();
            self.machine.step(now_us, Input::Failed { way, error }, &mut self.out);
        }
    }

    /// Where our socket can be reached on this machine's own networks.
    fn own(&self) -> Vec<SocketAddr> {
        let local = self.shared.udp.local();
        if !local.ip().is_unspecified() {
            return vec![local];
        }
        let at = |ip: IpAddr| SocketAddr::new(ip, local.port());
        let is_outer = |ip: &IpAddr| !self.shared.me.has(*ip);
        let own = addresses::own().into_iter().filter(is_outer).map(at);
        own.filter(|address| self.shared.udp.reaches(*address)).collect()
    }
}
