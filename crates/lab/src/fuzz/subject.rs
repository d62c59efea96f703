//! A running overlay with a socket for its device, and the member, the relay and the stranger who attack it.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use ionet_overlay::{
    Addresses, Config, Member, Overlay, PeerKey, Privacy, RelayAt,
    control::{Candidates, Control},
    handshake::{Identity, MOST_PAYLOAD_BYTES},
    inner,
    privacy::CoverPlan,
    session::Session,
    wire::{Kind, Shim, session_index},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{
    Input, Through,
    inputs::{FROM_OTHER, FROM_PEER, TO_US},
};
use crate::{LabError, Result, random::Random};

const CLUSTER: &str = "fuzz";
/// A member that does not answer for so long hangs.
const PATIENCE: Duration = Duration::from_secs(10);
const ALL_CIPHERS: u8 = 3;
/// The number of an IPv4 packet behind a shim, and the one of those that must not pass.
const NUMBER: Range<usize> = 16..18;
const MISLABELLED: [u8; 2] = [0xde, 0xad];
/// What a marker's payload begins with.
const MARK: &[u8] = b"mark";

/// Notes what panics in the overlay's threads.
pub(super) struct Panics(Arc<Mutex<Vec<String>>>);

impl Panics {
    pub(super) fn watch() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (noted, before) = (seen.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            if at.contains("overlay") {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(at);
            }
            before(panic);
        }));
        Self(seen)
    }

    /// Whether nothing has panicked.
    pub(super) fn none(&self) -> Result<(), String> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.first().map_or(Ok(()), |at| Err(format!("it panics at {at}")))
    }

    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A member under attack.
pub(super) struct Subject {
    overlay: Overlay,
    device: OwnedFd,
    wire: UdpSocket,
    relay: UdpSocket,
    session: Session,
    random: Random,
    marks: u64,
    /// Whether the batch has what makes the overlay answer its own kernel.
    asked_by_kernel: bool,
}

fn identity(number: u8) -> Identity {
    Identity::new(CLUSTER, &[number; 32])
}

fn addresses(last: u8) -> Addresses {
    let v6 = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, last.into());
    Addresses { v4: Ipv4Addr::new(10, 9, 0, last), v6 }
}

fn member(last: u8) -> Member {
    Member { key: identity(last).key(), addresses: addresses(last), eager: false }
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(LabError::io("bind a socket"))?;
    socket.set_read_timeout(Some(Duration::from_millis(20))).map_err(LabError::io("set a timeout"))?;
    Ok(socket)
}

impl Subject {
    pub(super) fn new(seed: u64) -> Result<Self> {
        let broken = |what: String| LabError::Broken(format!("the overlay under attack: {what}"));
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None);
        let (tun, device) = pair.map_err(|error| LabError::io("make a socket pair")(error.into()))?;
        let (wire, relay) = (socket()?, socket()?);
        let relay_at = relay.local_addr().map_err(LabError::io("name a socket"))?;
        let config = config(relay_at, seed);
        let (bring, introduced) = mpsc::channel();
        let introduce = move |_: PeerKey, bytes: Vec<u8>| drop(bring.send(bytes));
        let overlay =
            Overlay::start(&config, tun, Box::new(introduce)).map_err(|error| broken(error.to_string()))?;
        let session = meet(&overlay, &introduced).ok_or_else(|| broken("no handshake comes about".into()))?;
        let random = Random::new(seed);
        let mut subject =
            Self { overlay, device, wire, relay, session, random, marks: 0, asked_by_kernel: false };
        subject.settle().map_err(broken)?;
        Ok(subject)
    }

    /// Does something to it.
    pub(super) fn take(&mut self, input: &Input) {
        let to = self.overlay.local();
        match input.through {
            Through::Sealed => self.sealed(&input.bytes),
            Through::Handshake => self.handshake(&input.bytes),
            Through::Datagram => drop(self.wire.send_to(&input.bytes, to)),
            Through::FromRelay => drop(self.relay.send_to(&input.bytes, to)),
            Through::Introduced => self.overlay.introduced(identity(FROM_PEER).key(), &input.bytes),
            Through::Mislabelled => {
                let mut plain = input.bytes.clone();
                if let Some(number) = plain.get_mut(NUMBER) {
                    number.copy_from_slice(&MISLABELLED);
                }
                if let Some(sealed) = self.session.send.seal_alone(&plain) {
                    self.overlay.introduced(identity(FROM_OTHER).key(), &sealed);
                }
            }
            Through::Tun => {
                self.asked_by_kernel = true;
                // A full queue is one packet less.
                let _ = rustix::io::write(&self.device, &input.bytes);
            }
            Through::Join | Through::ToRelay | Through::Frames | Through::Several => {}
        }
    }

    fn sealed(&self, plain: &[u8]) {
        if let Some(sealed) = self.session.send.seal_alone(plain) {
            let _ = self.wire.send_to(&sealed, self.overlay.local());
        }
    }

    /// An initiation that verifies, whatever it carries.
    fn handshake(&mut self, payload: &[u8]) {
        let mut entropy = [0; 32];
        entropy[..8].copy_from_slice(&self.random.bits().to_be_bytes());
        let payload = &payload[..payload.len().min(MOST_PAYLOAD_BYTES)];
        let index = session_index(u32::try_from(self.random.below(1 << 30)).unwrap_or(0));
        let ciphers = self.random.bits().to_be_bytes()[0];
        let key = identity(TO_US).key();
        if let Ok((_, message)) = identity(FROM_PEER).initiate(&key, index, ciphers, payload, entropy) {
            let _ = self.wire.send_to(&message, self.overlay.local());
        }
    }

    /// Waits until everything that was done has been dealt with, and looks at what came out of it; how many packets.
    pub(super) fn settle(&mut self) -> Result<u64, String> {
        self.marks += 1;
        let mark = marker(self.marks);
        let begun = Instant::now();
        let (mut passed, mut sent) = (0, None::<Instant>);
        let mut buffer = vec![0; 70_000];
        let (mut has_mark, mut has_echo) = (false, false);
        while !(has_mark && has_echo) {
            if begun.elapsed() > PATIENCE {
                let what = if has_mark { "control" } else { "receiving" };
                return Err(format!("{what} has stopped"));
            }
            if sent.is_none_or(|sent| sent.elapsed() > Duration::from_millis(100)) {
                sent = Some(Instant::now());
                self.sealed(&[&Shim::plain(Kind::Packet).write()[..], &mark].concat());
                let probe = Control::Probe { token: self.marks.to_be_bytes() }.write(0);
                self.sealed(&[&Shim::plain(Kind::Control).write()[..], &probe].concat());
            }
            while let Ok(length) = rustix::io::read(&self.device, &mut buffer) {
                let packet = &buffer[..length];
                self.judge(packet)?;
                passed += 1;
                has_mark |= packet == mark;
            }
            has_echo |= self.hears_echo();
        }
        self.asked_by_kernel = false;
        Ok(passed - 1)
    }

    /// Whether the next packets of the wire are the echo of the present mark.
    fn hears_echo(&self) -> bool {
        let mut buffer = [0; 4096];
        for _ in 0..64 {
            let Ok(length) = self.wire.recv(&mut buffer) else { return false };
            let mut opener = self.session.receive.opener();
            let Ok(plain) = opener.open(&mut buffer[..length]) else { continue };
            let control = plain.get(12..).and_then(Control::parse);
            if matches!(control, Some(Control::Echo { token, .. }) if token == self.marks.to_be_bytes()) {
                return true;
            }
        }
        false
    }

    /// Whether the kernel may get this.
    fn judge(&self, packet: &[u8]) -> Result<(), String> {
        let Some((from, to)) = inner::ends(packet).filter(|_| inner::is_whole(packet)) else {
            return Err(format!("what is let through is no packet: {packet:02x?}"));
        };
        if packet[0] >> 4 == 4 && packet[4..6] == MISLABELLED {
            return Err("what one member sealed is let through in another's name".into());
        }
        let ours = addresses(TO_US);
        let is_from_peer = addresses(FROM_PEER).has(from);
        // What a router says of too large a packet comes in the name of its destination.
        let is_answer = self.asked_by_kernel && matches!(inner::transport(packet), Some((1 | 58, _)));
        if !ours.has(to) || !(is_from_peer || is_answer) {
            return Err(format!("a packet from {from} to {to} is let through"));
        }
        Ok(())
    }
}

fn config(relay: SocketAddr, seed: u64) -> Config {
    Config {
        cluster: CLUSTER.into(),
        key_seed: [TO_US; 32],
        me: addresses(TO_US),
        members: [TO_US, FROM_PEER, FROM_OTHER].map(member).into(),
        relays: vec![RelayAt { id: [9; 32], udp: relay, second: None, tcp: None }],
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        mtu: 1400,
        // Both ways of sending are attacked in turn.
        privacy: Privacy { padded: seed.is_multiple_of(2), ..Privacy::default() },
        cover: CoverPlan::default(),
    }
}

fn meet(overlay: &Overlay, introduced: &mpsc::Receiver<Vec<u8>>) -> Option<Session> {
    let payload = Candidates::default().write();
    let (peer, key) = (identity(FROM_PEER), identity(TO_US).key());
    let (mut waiting, message) =
        peer.initiate(&key, session_index(1), ALL_CIPHERS, &payload, [3; 32]).ok()?;
    overlay.introduced(peer.key(), &message);
    loop {
        let answer = introduced.recv_timeout(PATIENCE).ok()?;
        if let Ok((session, _)) = peer.finish(&mut waiting, &answer, 0) {
            return Some(session);
        }
    }
}

/// A UDP packet that is known again.
fn marker(number: u64) -> Vec<u8> {
    let payload = [MARK, &number.to_be_bytes()].concat();
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(0).to_be_bytes();
    let [high, low] = length(28 + payload.len());
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(addresses(FROM_PEER).v4.octets());
    packet.extend(addresses(TO_US).v4.octets());
    packet.extend([0, 7, 0, 7]);
    packet.extend(length(8 + payload.len()));
    packet.extend([0, 0]);
    [packet, payload].concat()
}
