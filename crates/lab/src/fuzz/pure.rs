//! What needs no running overlay: the joiner, a relay's rules, TCP frames, cells of several packets.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use ionet_overlay::{
    inner,
    io::tcp::Framed,
    privacy::cells,
    random::Random,
    relay::{
        End, Limits, Rules,
        message::{Answer, Bind, Question},
    },
    segment::{Joiner, is_segment, whole_note},
    wire::{Kind, SHIM_BYTES, Shim},
};

use ring::signature::Ed25519KeyPair;

use super::{Input, Through};
use crate::{LabError, Result};

const RELAY: [u8; 32] = [9; 32];
const CHANNELS: usize = 64;
const MOST_TIME: Duration = Duration::from_millis(100);

/// Everything pure.
pub(super) struct Pure {
    rules: Rules,
    now_ms: u64,
    random: Random,
    listener: TcpListener,
}

impl Pure {
    pub(super) fn new(seed: u64) -> Result<Self> {
        let limits = Limits { channels: CHANNELS, ..Limits::default() };
        let listener = TcpListener::bind("127.0.0.1:0").map_err(LabError::io("listen on loopback"))?;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let rules = Rules::new(RELAY, &bytes, limits, Box::new(|_| true));
        Ok(Self { rules, now_ms: 1, random: Random::new(&bytes), listener })
    }

    pub(super) fn take(&mut self, input: &Input) -> Result<(), String> {
        let begun = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| match input.through {
            Through::Join => join(&input.bytes),
            Through::Several => several(&input.bytes),
            Through::Frames => self.frames(&input.bytes),
            _ => self.at_relay(&input.bytes),
        }));
        done.unwrap_or_else(|_| Err("it panics".into()))?;
        let took = begun.elapsed();
        if took > MOST_TIME { Err(format!("it takes {took:?}")) } else { Ok(()) }
    }

    fn frames(&self, bytes: &[u8]) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("loopback: {error}");
        let address = self.listener.local_addr().map_err(failed)?;
        let mut writer = TcpStream::connect(address).map_err(failed)?;
        let (stream, _) = self.listener.accept().map_err(failed)?;
        let mut framed = Framed::new(stream, 1_000).map_err(failed)?;
        writer.write_all(bytes).map_err(failed)?;
        drop(writer);
        let mut came = 0;
        // The other side has closed, so it ends; with an error.
        while framed.read(|packet| came += 2 + packet.len()).is_ok() {}
        if came > bytes.len() { Err(format!("{came} bytes came of {}", bytes.len())) } else { Ok(()) }
    }

    fn at_relay(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some((who, message)) = bytes.split_first() else { return Ok(()) };
        self.now_ms += u64::from(*who) * 40;
        let seen = SocketAddr::from(([10, 0, 0, *who], 4000));
        let from = End::Udp { socket: 0, address: seen, at: None };
        let message = self.with_proof(from, seen, message);
        let mut answers = Vec::new();
        self.rules.hear(self.now_ms, from, seen, &message, &mut answers);
        for (to, answer) in &answers {
            let answered = answer.write();
            if answered.len() > message.len() {
                return Err(format!("{} bytes answer {}", answered.len(), message.len()));
            }
            if *to != from && !matches!(answer, Answer::Bound { .. }) {
                return Err("it answers somebody else".into());
            }
        }
        if let Some((channel, packet)) = message.split_first_chunk() {
            let channel = u32::from_be_bytes(*channel);
            if self.rules.forward(self.now_ms, channel, from, 1, packet.len() as u64) == Some(from) {
                return Err("it sends a packet back".into());
            }
        }
        self.rules.sweep(self.now_ms);
        let channels = self.rules.counters().channels.load(std::sync::atomic::Ordering::Relaxed);
        if channels > CHANNELS as u64 { Err(format!("{channels} channels stand")) } else { Ok(()) }
    }

    /// A question for a channel gets a cookie and a signature that are good; one with other lengths stays as it is.
    fn with_proof(&mut self, from: End, seen: SocketAddr, message: &[u8]) -> Vec<u8> {
        let Some(Question::Bind(bind)) = Question::parse(message) else { return message.to_vec() };
        let mut answers = Vec::new();
        let hello = Question::Hello { token: self.random.token() }.write();
        self.rules.hear(self.now_ms, from, seen, &hello, &mut answers);
        let Some((_, Answer::Cookie { cookie, .. })) = answers.first() else { return message.to_vec() };
        let mut secret = [0; 32];
        secret[0] = bind.key[0] % 4;
        let Ok(key) = Ed25519KeyPair::from_seed_unchecked(&secret) else { return message.to_vec() };
        Question::Bind(Bind::new(bind.token, *cookie, bind.tag, &RELAY, &key)).write()
    }
}

/// Joins segments as the receiver does, and checks every packet that comes of them.
fn join(bytes: &[u8]) -> Result<(), String> {
    let (mut joiner, mut rest, mut at) = (Joiner::default(), bytes, 0);
    while let Some((head, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*head));
        let Some((plain, next)) = behind.split_at_checked(length) else { break };
        at += 2;
        let start = at + SHIM_BYTES;
        (rest, at) = (next, at + length);
        let Some((shim, segment)) = shim_of(plain) else { continue };
        if !matches!(shim.kind, Kind::Tcp4 | Kind::Tcp6 | Kind::Udp) || !is_segment(&shim, segment) {
            continue;
        }
        if !joiner.continues(&shim, segment) {
            joined(&mut joiner, bytes)?;
        }
        joiner.add(&shim, segment, start + usize::from(shim.header_bytes)..start + segment.len());
    }
    joined(&mut joiner, bytes)
}

fn shim_of(plain: &[u8]) -> Option<(Shim, &[u8])> {
    let (head, behind) = plain.split_first_chunk::<SHIM_BYTES>()?;
    let mut shim = Shim::parse(head)?;
    let behind = shim.trim(behind)?;
    Some((shim, behind))
}

fn joined(joiner: &mut Joiner, bytes: &[u8]) -> Result<(), String> {
    if let Some(joined) = joiner.finish() {
        let mut packet = joined.header.to_vec();
        for part in joined.parts {
            packet.extend(bytes.get(part.clone()).ok_or("a part lies nowhere")?);
        }
        if packet.len() != joined.bytes || !inner::is_whole(&packet) {
            return Err(format!("{} bytes joined are no packet: {:02x?}", packet.len(), joined.header));
        }
        let (start, offset) = (joined.note.checksum_start, joined.note.checksum_offset);
        if usize::from(start) + usize::from(offset) + 2 > packet.len() {
            return Err("a checksum lies behind the packet".into());
        }
    }
    joiner.clear();
    Ok(())
}

fn several(bytes: &[u8]) -> Result<(), String> {
    let mut taken = 0;
    for (shim, packet) in cells::several(bytes).flatten() {
        taken += 2 + packet.len();
        if let Some(note) = whole_note(&shim, packet)
            && usize::from(note.checksum_start) + usize::from(note.checksum_offset) + 2 > packet.len()
        {
            return Err("a checksum lies behind the packet".into());
        }
    }
    if taken > bytes.len() { Err(format!("{taken} bytes of {}", bytes.len())) } else { Ok(()) }
}
