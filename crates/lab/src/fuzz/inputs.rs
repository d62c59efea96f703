//! Making inputs: valid ones of every kind first, then spoilt ones. And their form in a file.

use std::{fmt::Write as _, path::Path};

use crate::{LabError, Result, random::Random};

/// What an input goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Through {
    /// Sealed in a live session with a member, sent to its socket: shim, segments, control messages.
    Sealed,
    /// The payload of a valid initiation.
    Handshake,
    /// A datagram as it is.
    Datagram,
    /// A datagram from the address of the member's relay.
    FromRelay,
    /// Bytes that the introducer brings.
    Introduced,
    /// Sealed by one member, brought in the name of another.
    Mislabelled,
    /// A packet of the cluster's own network namespace.
    Tun,
    /// Segments that the joiner gets, as with offload.
    Join,
    /// A message to a relay.
    ToRelay,
    /// Bytes of a TCP connection.
    Frames,
    /// A cell of several packets.
    Several,
}

impl Through {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Sealed,
        Self::Handshake,
        Self::Datagram,
        Self::FromRelay,
        Self::Introduced,
        Self::Mislabelled,
        Self::Tun,
        Self::Join,
        Self::ToRelay,
        Self::Frames,
        Self::Several,
    ];

    /// A stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Handshake => "handshake",
            Self::Datagram => "datagram",
            Self::FromRelay => "from_relay",
            Self::Introduced => "introduced",
            Self::Mislabelled => "mislabelled",
            Self::Tun => "tun",
            Self::Join => "join",
            Self::ToRelay => "to_relay",
            Self::Frames => "frames",
            Self::Several => "several",
        }
    }

    /// Whether it needs no running overlay.
    pub fn is_pure(self) -> bool {
        matches!(self, Self::Join | Self::ToRelay | Self::Frames | Self::Several)
    }
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// What it goes through.
    pub through: Through,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Input {
    /// As a line of a file: name, then the bytes in hexadecimal.
    pub fn line(&self) -> String {
        let mut line = format!("{} ", self.through.name());
        for byte in &self.bytes {
            // Writing to text cannot fail.
            let _ = write!(line, "{byte:02x}");
        }
        line
    }

    /// The first line of a file.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(LabError::io(format!("read {}", file.display())))?;
        let parsed = text.lines().next().and_then(Self::parse);
        parsed.ok_or_else(|| LabError::Broken(format!("{} holds no input", file.display())))
    }

    fn parse(line: &str) -> Option<Self> {
        let (name, hex) = line.split_once(' ')?;
        let through = Through::ALL.into_iter().find(|through| through.name() == name)?;
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let bytes = (0..hex.len()).step_by(2).map(byte).collect::<Option<_>>()?;
        Some(Self { through, bytes })
    }
}

/// An input of any kind.
pub(super) fn make(random: &mut Random) -> Input {
    // What is sealed has most to it.
    let through =
        if random.chance(400_000) { Through::Sealed } else { Through::ALL[random.index(Through::ALL.len())] };
    let mut bytes = match through {
        Through::Sealed | Through::Mislabelled => plain(random),
        Through::Handshake => candidates(random),
        Through::Datagram | Through::Introduced => outer(random),
        Through::FromRelay => {
            if random.chance(500_000) {
                relay_answer(random)
            } else {
                outer(random)
            }
        }
        Through::Tun => packet(random, [TO_US, FROM_PEER]),
        Through::Join => segments(random),
        Through::ToRelay => relay_question(random),
        Through::Frames => frames(random),
        Through::Several => several(random),
    };
    for _ in 0..[0, 0, 1, 1, 2, 4][random.index(6)] {
        spoil(random, &mut bytes);
    }
    Input { through, bytes }
}

/// The last byte of addresses: `10.9.0.x` and `fd09::x`.
pub(super) const TO_US: u8 = 1;
pub(super) const FROM_PEER: u8 = 2;
pub(super) const FROM_OTHER: u8 = 3;

/// Changes something: a bit, a byte to one that numbers often go wrong at, a length, an end.
fn spoil(random: &mut Random, bytes: &mut Vec<u8>) {
    const ODD: [u8; 9] = [0, 1, 2, 0x3f, 0x40, 0x7f, 0x80, 0xfe, 0xff];
    // Headers are at the beginning.
    let most = if random.chance(700_000) { 80 } else { usize::MAX };
    let at = random.index(bytes.len().min(most));
    match random.below(9) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 | 2 if !bytes.is_empty() => bytes[at] = ODD[random.index(ODD.len())],
        3 if bytes.len() > at + 1 => {
            let word = u16::try_from(random.below(70)).unwrap_or(0).wrapping_sub(2);
            bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
        }
        4 => bytes.truncate(at),
        5 => bytes.extend(noise(random, 64)),
        6 if !bytes.is_empty() => {
            bytes.remove(at);
        }
        7 => bytes.insert(at, ODD[random.index(ODD.len())]),
        _ => {
            let piece: Vec<u8> = bytes[at..].iter().take(random.index(40)).copied().collect();
            drop(bytes.splice(at..at, piece));
        }
    }
}

fn noise(random: &mut Random, most: usize) -> Vec<u8> {
    (0..random.index(most)).map(|_| random.bits().to_be_bytes()[0]).collect()
}

fn number(random: &mut Random) -> u8 {
    [0, 1, 2, 3, 20, 28, 40, 52, 60, 200, 255][random.index(11)]
}

/// An IP packet with a TCP, UDP or ICMP header, from and to addresses of ours, mostly.
fn packet(random: &mut Random, [from, to]: [u8; 2]) -> Vec<u8> {
    let most = if random.chance(50_000) { 1400 } else { 90 };
    let payload = noise(random, most);
    let protocol = [6, 6, 17, 17, 1, 58, 0, 44][random.index(8)];
    let mut transport = vec![
        0;
        match protocol {
            6 => 20,
            _ => 8,
        }
    ];
    transport[..4].copy_from_slice(&[0x1f, 0x90, 0x10, number(random)]);
    match protocol {
        6 => transport[12] = if random.chance(100_000) { random.bits().to_be_bytes()[0] } else { 0x50 },
        17 => transport[4..6].copy_from_slice(&length(8 + payload.len())),
        _ => {}
    }
    let body = [transport, payload].concat();
    let ends = if random.chance(100_000) { [number(random), number(random)] } else { [from, to] };
    if random.chance(500_000) { v4(random, protocol, ends, &body) } else { v6(protocol, ends, &body) }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

fn v4(random: &mut Random, protocol: u8, [from, to]: [u8; 2], body: &[u8]) -> Vec<u8> {
    let options = if random.chance(100_000) { vec![1; 4 * random.index(11)] } else { Vec::new() };
    let words = 5 + u8::try_from(options.len() / 4).unwrap_or(0);
    let [high, low] = length(usize::from(words) * 4 + body.len());
    let head = [0x40 | words, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, from, 10, 9, 0, to];
    [&head[..], &options, body].concat()
}

fn v6(protocol: u8, [from, to]: [u8; 2], body: &[u8]) -> Vec<u8> {
    let [high, low] = length(body.len());
    let mut head = vec![0x60, 0, 0, 0, high, low, protocol, 64];
    for last in [from, to] {
        head.extend([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    [&head[..], body].concat()
}

/// What is sealed: a shim, and what its kind says.
fn plain(random: &mut Random) -> Vec<u8> {
    let kind = [0, 0, 1, 4, 5, 2, 0x40, 0x41][random.index(8)];
    let inner = packet(random, [FROM_PEER, TO_US]);
    let behind = match kind {
        2 => several(random),
        0x40 => control(random),
        _ => inner,
    };
    [&shim(random, kind, &behind)[..], &behind].concat()
}

/// A shim that mostly fits what is behind it.
fn shim(random: &mut Random, kind: u8, behind: &[u8]) -> [u8; 12] {
    let ip_bytes = if behind.first().is_some_and(|first| first >> 4 == 6) { 40 } else { 20 };
    let is_segment = matches!(kind, 1 | 4 | 5);
    let transport_bytes = if kind == 5 { 8 } else { 20 };
    let mut shim = [0; 12];
    shim[0] = kind;
    if is_segment {
        let payload = behind.len().saturating_sub(ip_bytes + transport_bytes);
        let byte = |bytes: usize| u8::try_from(bytes).unwrap_or(u8::MAX);
        let count = [1, 2, 3, 44, 255][random.index(5)];
        let [high, low] = length(payload);
        shim[2..5].copy_from_slice(&[
            byte(ip_bytes + transport_bytes),
            byte(ip_bytes),
            if kind == 5 { 6 } else { 16 },
        ]);
        shim[7..11].copy_from_slice(&[byte(random.index(count)), high, low, byte(count)]);
    } else if kind == 0 && random.chance(300_000) {
        shim[1] = 1;
        shim[3..5].copy_from_slice(&[20, 16]);
    }
    shim
}

fn control(random: &mut Random) -> Vec<u8> {
    let token = random.bits().to_be_bytes();
    match random.below(4) {
        0 => [&[1][..], &token, &noise(random, 1300)].concat(),
        1 => [&[2][..], &token, &[4, 0], &[0; 18]].concat(),
        2 => [&[3][..], &candidates(random)].concat(),
        _ => vec![4, 0, 0, 0, number(random)],
    }
}

/// Where a member says it may be reached: loopback, others, nonsense.
fn candidates(random: &mut Random) -> Vec<u8> {
    let mut bytes = random.bits().to_be_bytes()[..4].to_vec();
    bytes.extend([[0, 0], [1, 0], [2, number(random)], [3, 0]][random.index(4)]);
    for _ in 0..2 {
        let count = random.index(17);
        bytes.push(u8::try_from(count).unwrap_or(0));
        for _ in 0..count {
            bytes.extend([
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0xff,
                0xff,
                127,
                0,
                0,
                number(random),
                0,
                number(random),
            ]);
        }
    }
    let relays = random.index(5);
    bytes.push(u8::try_from(relays).unwrap_or(0));
    bytes.extend(vec![7; relays * 8]);
    bytes
}

/// What may stand first in a datagram, and then anything.
fn outer(random: &mut Random) -> Vec<u8> {
    let first =
        [0, 1, 2, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x100, 0x3fff_ffff, 0x4000_0000, 0x8000_0000, u32::MAX];
    let first: u32 = first[random.index(first.len())];
    [&first.to_be_bytes()[..], &noise(random, 1400)].concat()
}

fn relay_answer(random: &mut Random) -> Vec<u8> {
    let kind = [0x11, 0x13, 0x14][random.index(3)];
    let bytes = match kind {
        0x11 => 8 + 16 + 18,
        0x13 => 8 + 4 + 2 + 1 + 18,
        _ => 9,
    };
    let mut answer = vec![0, 0, 0, kind];
    answer.extend((0..bytes).map(|_| number(random)));
    answer
}

/// Who asks (one byte), then what: the pure subject puts a valid cookie and signature into a question for a channel.
fn relay_question(random: &mut Random) -> Vec<u8> {
    let (kind, bytes) = [(0x10, 44), (0x12, 136), (0x15, 36), (0x99, 20)][random.index(4)];
    let mut question = vec![number(random) % 8, 0, 0, 0, kind];
    question.extend((0..bytes).map(|_| number(random)));
    question
}

fn frames(random: &mut Random) -> Vec<u8> {
    (0..=random.index(6))
        .flat_map(|_| {
            let body = noise(random, 900);
            [&length(body.len())[..], &body].concat()
        })
        .collect()
}

fn several(random: &mut Random) -> Vec<u8> {
    (0..random.index(5))
        .flat_map(|_| {
            let note = if random.chance(200_000) { [20, number(random)] } else { [0, 0] };
            [&note[..], &packet(random, [FROM_PEER, TO_US])].concat()
        })
        .collect()
}

/// Segments of a train, each behind two bytes of length.
fn segments(random: &mut Random) -> Vec<u8> {
    let kind = [1, 4, 5][random.index(3)];
    let mut segment = packet(random, [FROM_PEER, TO_US]);
    let mut shim = shim(random, kind, &segment);
    let count = 1 + random.index(8);
    shim[10] = u8::try_from(count).unwrap_or(0);
    (0..count)
        .flat_map(|index| {
            shim[7] = u8::try_from(index).unwrap_or(0);
            if random.chance(50_000) {
                spoil(random, &mut segment);
            }
            [&length(12 + segment.len())[..], &shim, &segment].concat()
        })
        .collect()
}
