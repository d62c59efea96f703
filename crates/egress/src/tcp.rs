//! One TCP connection out of the box: dialled first, answered as the other end answered, then carried in both ways.
//!
//! Always holds: bytes wait in this connection's own buffers, in the box or at the other end, and nowhere else: whoever
//! reads slowly stops the one who sends. An end is passed on as what it was: a close as a close, a reset as a reset.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use crate::io::{Counters, Io, add};
use crate::packet::{self, Pair, TcpHead, Unreachable};
use crate::stack::Stack;

/// The box's own kernel confirms at once.
const CONFIRM_MS: u64 = 15_000;
/// What the box left behind may still be read for so long.
const LINGER_MS: u64 = 60_000;
/// Bytes move so often before others have their turn.
const ROUNDS: usize = 8;

/// How it goes on with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When something happens.
    Wait,
    /// As soon as others had their turn.
    Again,
    /// Not at all.
    Over,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about one end or the other")]
pub(crate) struct Connection {
    pub(crate) pair: Pair,
    /// What the address was called when it was dialled.
    pub(crate) names: Vec<String>,
    pub(crate) timer: Option<u64>,
    /// Whether it waits for its turn.
    pub(crate) queued: bool,
    socket: OwnedFd,
    stage: Stage,
    /// Until when the present stage may last.
    deadline_ms: Option<u64>,
    readable: bool,
    writable: bool,
    /// The other end has sent its last byte.
    ended: bool,
    /// The other end knows that the box has sent its last byte.
    told: bool,
}

enum Stage {
    Dialing { syn: Vec<u8>, head: TcpHead },
    Open(Box<Stack>),
}

impl Connection {
    /// A connection that is being dialled until then; `syn` is the box's first packet.
    pub(crate) fn dialing(
        pair: Pair,
        names: Vec<String>,
        socket: OwnedFd,
        syn: (&[u8], TcpHead),
        until_ms: u64,
    ) -> Self {
        Self {
            pair,
            names,
            timer: None,
            queued: false,
            socket,
            stage: Stage::Dialing { syn: syn.0.to_vec(), head: syn.1 },
            deadline_ms: Some(until_ms),
            readable: false,
            writable: false,
            ended: false,
            told: false,
        }
    }

    pub(crate) fn is_dialing(&self) -> bool {
        matches!(self.stage, Stage::Dialing { .. })
    }

    /// The box sent a packet of this connection.
    pub(crate) fn packet(&mut self, head: &TcpHead, bytes: &[u8], io: &mut Io) -> bool {
        match &mut self.stage {
            Stage::Dialing { .. } => !head.is_rst(),
            Stage::Open(stack) => {
                stack.poll(io.now_ms, Some(bytes), io);
                true
            }
        }
    }

    /// The socket said something. While it was dialled that is the answer: `open` makes the box's end of it.
    pub(crate) fn event(
        &mut self,
        flags: EventFlags,
        io: &mut Io,
        open: impl FnOnce(&mut Io) -> Option<Stack>,
    ) -> bool {
        let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        self.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP) || failed;
        self.writable |= flags.contains(EventFlags::OUT) || failed;
        let Stage::Dialing { syn, head } = &self.stage else { return true };
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) if self.writable => {}
            Ok(Ok(())) => return true,
            Ok(Err(error)) | Err(error) => {
                answer_failed_dial(&self.pair, head, syn, error, io);
                return false;
            }
        }
        let Some(mut stack) = open(io) else { return false };
        stack.poll(io.now_ms, Some(syn), io);
        self.deadline_ms = Some(io.now_ms + CONFIRM_MS);
        self.stage = Stage::Open(Box::new(stack));
        true
    }

    /// Whether its time is over; then the box is told.
    pub(crate) fn is_late(&self, io: &Io) -> bool {
        let late = self.deadline_ms.is_some_and(|at_ms| at_ms <= io.now_ms);
        if let (true, Stage::Dialing { syn, .. }) = (late, &self.stage) {
            io.write_packet(packet::unreachable_into_box(syn, Unreachable::Host));
        }
        late
    }

    /// Moves bytes both ways, as far as both ends take them.
    pub(crate) fn pump(&mut self, io: &mut Io, counters: &Counters) -> Next {
        let Stage::Open(stack) = &mut self.stage else { return Next::Wait };
        for _ in 0..ROUNDS {
            let (mut into_box, mut out_of_box) = (Moved::Nothing, Moved::Nothing);
            if self.readable && !self.ended && stack.has_room() {
                into_box = inward(stack, &self.socket, counters);
                self.readable = into_box == Moved::Bytes;
                self.ended = into_box == Moved::Last;
            }
            if self.writable && stack.has_bytes() {
                out_of_box = outward(stack, &self.socket, counters);
                self.writable = out_of_box == Moved::Bytes;
            }
            let both = [into_box, out_of_box];
            if both.contains(&Moved::Broken) {
                stack.abort();
                stack.poll(io.now_ms, None, io);
                return Next::Over;
            }
            if !self.told && stack.box_finished() {
                self.told = true;
                // The other end may have gone first.
                let _ = shutdown(&self.socket, Shutdown::Write);
            }
            stack.poll(io.now_ms, None, io);
            if stack.is_over() && !stack.has_bytes() {
                return Next::Over;
            }
            if !both.contains(&Moved::Bytes) {
                return Next::Wait;
            }
        }
        Next::Again
    }

    /// When it is to be looked at although nothing happened.
    pub(crate) fn next_ms(&mut self, now_ms: u64) -> Option<u64> {
        let Stage::Open(stack) = &mut self.stage else { return self.deadline_ms };
        if stack.is_over() {
            self.deadline_ms = self.deadline_ms.or(Some(now_ms + LINGER_MS));
        } else if !stack.is_opening() {
            self.deadline_ms = None;
        }
        stack.next_ms(now_ms).into_iter().chain(self.deadline_ms).min()
    }

    /// Ends it for good on both sides.
    pub(crate) fn cut(mut self, io: &mut Io) {
        match &mut self.stage {
            Stage::Dialing { syn, .. } => {
                io.write_packet(packet::unreachable_into_box(syn, Unreachable::Prohibited));
            }
            Stage::Open(stack) => {
                stack.abort();
                stack.poll(io.now_ms, None, io);
            }
        }
        self.ended = false;
    }
}

impl Drop for Connection {
    /// What did not end by itself is reset at the other end too.
    fn drop(&mut self) {
        if !self.ended {
            let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }
}

/// Tells the box of a dial that failed what the other end, or the network, said of it.
pub(crate) fn answer_failed_dial(pair: &Pair, head: &TcpHead, syn: &[u8], error: Errno, io: &Io) {
    let answer = match error {
        Errno::CONNREFUSED | Errno::CONNRESET => packet::reset_into_box(pair, head),
        _ => packet::unreachable_into_box(syn, Unreachable::Host),
    };
    io.write_packet(answer);
}

/// What came of moving bytes one way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Bytes,
    Nothing,
    /// The last byte was moved before.
    Last,
    /// The socket is no good any more.
    Broken,
}

/// From the other end to the box.
fn inward(stack: &mut Stack, socket: &OwnedFd, counters: &Counters) -> Moved {
    let got = stack.send(|space| match recv(socket, space, RecvFlags::empty()) {
        Ok((n, _)) => (n, Ok(n)),
        Err(error) => (0, Err(error)),
    });
    if got == Some(Ok(0)) {
        stack.finish();
        return Moved::Last;
    }
    moved(got, &counters.received_bytes)
}

/// From the box to the other end.
fn outward(stack: &mut Stack, socket: &OwnedFd, counters: &Counters) -> Moved {
    let put = stack.receive(|bytes| match send(socket, bytes, SendFlags::NOSIGNAL) {
        Ok(n) => (n, Ok(n)),
        Err(error) => (0, Err(error)),
    });
    moved(put, &counters.sent_bytes)
}

fn moved(outcome: Option<Result<usize, Errno>>, counter: &AtomicU64) -> Moved {
    match outcome {
        Some(Ok(n)) => {
            add(counter, n);
            Moved::Bytes
        }
        Some(Err(Errno::AGAIN | Errno::INTR)) | None => Moved::Nothing,
        Some(Err(_)) => Moved::Broken,
    }
}
