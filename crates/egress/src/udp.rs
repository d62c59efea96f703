//! Datagrams out of the box: a flow for each pair of addresses, until nothing has passed for a while; and name lookups,
//! which are datagrams to the host's own name servers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::dns::Question;
use crate::io::{Counters, Io, add};
use crate::packet::{self, Pair, Unreachable};

/// A flow ends when nothing has passed for so long.
pub(crate) const IDLE_MS: u64 = 60_000;
/// Datagrams of one flow before others have their turn.
const ROUND: usize = 64;
/// How long a name server has to answer before the next is asked, and how many are asked in all.
pub(crate) const ANSWER_MS: u64 = 2_000;
pub(crate) const TRIES: usize = 4;

pub(crate) struct Flow {
    pub(crate) pair: Pair,
    pub(crate) names: Vec<String>,
    pub(crate) timer: Option<u64>,
    pub(crate) used_ms: u64,
    pub(crate) socket: OwnedFd,
    pub(crate) queued: bool,
}

impl Flow {
    /// From the box.
    pub(crate) fn outward(&mut self, payload: &[u8], now_ms: u64, counters: &Counters) {
        self.used_ms = now_ms;
        // A datagram that does not get through is lost, as datagrams are; an error of the one before is met here.
        let sent = send(&self.socket, payload, SendFlags::NOSIGNAL)
            .or_else(|_| send(&self.socket, payload, SendFlags::NOSIGNAL));
        add(&counters.sent_bytes, sent.unwrap_or(0));
    }

    /// Everything that came back; whether there may be more.
    pub(crate) fn inward(&mut self, buffer: &mut [u8], io: &Io, counters: &Counters) -> bool {
        for _ in 0..ROUND {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((n, _)) => {
                    self.used_ms = io.now_ms;
                    add(&counters.received_bytes, n);
                    io.write_packet(packet::udp_into_box(&self.pair, &buffer[..n]));
                }
                Err(Errno::CONNREFUSED) => io.write_packet(self.nobody_there()),
                Err(Errno::AGAIN) => return false,
                // Whatever else befell a datagram on its way is not the box's to know.
                Err(_) => {}
            }
        }
        true
    }

    fn nobody_there(&self) -> Option<Vec<u8>> {
        let back = Pair { from: self.pair.to, to: self.pair.from };
        packet::unreachable_into_box(&packet::udp_into_box(&back, &[])?, Unreachable::Port)
    }
}

/// A name that is being asked for.
pub(crate) struct Lookup {
    pub(crate) pair: Pair,
    pub(crate) query: Vec<u8>,
    pub(crate) question: Question,
    pub(crate) timer: Option<u64>,
    pub(crate) tries: usize,
    pub(crate) socket: Option<OwnedFd>,
}

impl Lookup {
    /// Asks a name server.
    pub(crate) fn ask(&mut self, id: u64, server: SocketAddr, io: &mut Io, counters: &Counters) {
        self.tries += 1;
        self.socket = io.dial(id, rustix::net::SocketType::DGRAM, server).ok();
        let sent =
            self.socket.as_ref().and_then(|socket| send(socket, &self.query, SendFlags::NOSIGNAL).ok());
        add(&counters.sent_bytes, sent.unwrap_or(0));
        let next_ms = io.now_ms + if sent.is_some() { ANSWER_MS } else { 1 };
        let mut timer = self.timer;
        io.arm(id, &mut timer, Some(next_ms));
        self.timer = timer;
    }

    /// The next datagram that the server sent; what is no answer is not looked at.
    pub(crate) fn answer(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let socket = self.socket.as_ref().ok_or(Errno::NOTCONN)?;
        recv(socket, buffer, RecvFlags::empty()).map(|(n, _)| n)
    }
}
