//! A member against a peer that the test plays itself: whatever a holder of keys or a stranger can send. The device is
//! a plain socket, so what the kernel would get is read from its other end.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use ionet_overlay::{
    Config, Dropped, Member, Overlay, PeerStats, Privacy,
    control::Candidates,
    handshake::Identity,
    privacy::CoverPlan,
    random::Random,
    session::Session,
    wire::{Kind, Shim, session_index},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::real::{addresses, identity, member, until};

const BOTH_CIPHERS: u8 = 3;
const INNER_BYTES: usize = 28;

/// The overlay of member 2, and member 1 played by the test.
struct Played {
    overlay: Overlay,
    kernel: OwnedFd,
    socket: UdpSocket,
    identity: Identity,
    introduced: mpsc::Receiver<Vec<u8>>,
}

impl Played {
    fn new() -> Self {
        let (device, kernel) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None)
                .expect("a socket pair");
        let (bring, introduced) = mpsc::channel();
        let config = Config {
            cluster: "c1".into(),
            key_seed: [2; 32],
            me: addresses(2),
            // Nobody begins a handshake but the test.
            members: [1, 2, 3].map(|number| Member { eager: false, ..member(number) }).to_vec(),
            relays: Vec::new(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            mtu: 1400,
            privacy: Privacy::default(),
            cover: CoverPlan::default(),
        };
        let introduce = move |to, bytes| {
            if to == identity(1).key() {
                let _ = bring.send(bytes);
            }
        };
        let overlay = Overlay::start(&config, device, Box::new(introduce)).expect("an overlay");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        Self { overlay, kernel, socket, identity: identity(1), introduced }
    }

    /// A session with the overlay, used by its first packet.
    fn meet(&self) -> Session {
        let index = session_index(77);
        let payload = candidates(self.socket.local_addr().expect("bound"));
        let key = identity(2).key();
        let begun = self.identity.initiate(&key, index, BOTH_CIPHERS, &payload, [9; 32]);
        let (mut waiting, message) = begun.expect("an initiation");
        self.overlay.introduced(self.identity.key(), &message);
        loop {
            let answer = self.introduced.recv_timeout(Duration::from_secs(20)).expect("an answer");
            if let Ok((session, _)) = self.identity.finish(&mut waiting, &answer, 0) {
                return session;
            }
        }
    }

    fn send(&self, packet: &[u8]) {
        self.socket.send_to(packet, self.overlay.local()).expect("send");
    }

    fn send_sealed(&self, session: &Session, shim: Shim, inner: &[u8]) {
        self.send(&session.send.seal_alone(&[&shim.write(), inner].concat()).expect("a key"));
    }

    /// Something that came by the socket or the introducer.
    fn next_packet(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        let by_socket = self.socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec());
        by_socket.or_else(|| self.introduced.try_recv().ok())
    }

    fn peer(&self) -> PeerStats {
        self.overlay.stats().swap_remove(0)
    }

    fn dropped(&self, reason: Dropped) -> u64 {
        count(&self.peer().dropped, reason)
    }

    fn received(&self) -> u64 {
        self.peer().received[0]
    }

    /// The next packet that the kernel gets.
    fn kernel_gets(&self) -> Vec<u8> {
        let (mut buffer, mut got) = (vec![0; 70_000], None);
        until("a packet for the kernel", || {
            got = rustix::io::read(&self.kernel, &mut buffer).ok();
            got.is_some()
        });
        buffer[..got.expect("bytes")].to_vec()
    }
}

fn count(dropped: &[(Dropped, u64)], reason: Dropped) -> u64 {
    dropped.iter().find(|(of, _)| *of == reason).map_or(0, |(_, count)| *count)
}

/// A list of candidates with one local address.
fn candidates(at: SocketAddr) -> Vec<u8> {
    let theirs = Candidates { sequence: 1, local: vec![at], ..Default::default() };
    theirs.write()
}

/// A UDP packet without payload between two members.
fn inner(from: u8, to: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(addresses(from).v4.octets());
    packet.extend(addresses(to).v4.octets());
    packet.extend([0, 7, 0, 7, 0, 8, 0, 0]);
    packet
}

const PLAIN: Shim = Shim::plain(Kind::Packet);

#[test]
fn what_is_sealed_well_passes_and_the_answer_comes_back() {
    let played = Played::new();
    let session = played.meet();
    played.send_sealed(&session, PLAIN, &inner(1, 2));
    assert_eq!(played.kernel_gets(), inner(1, 2));
    // The other way: what the kernel sends to member 1 comes sealed, by whichever way, among other things.
    rustix::io::write(&played.kernel, &inner(2, 1)).expect("write");
    until("the answer", || {
        let Some(mut packet) = played.next_packet() else { return false };
        let mut opener = session.receive.opener();
        opener.open(&mut packet).is_ok_and(|plain| plain[0] == 0 && plain[12..] == inner(2, 1))
    });
}

#[test]
fn replayed_forged_and_unknown_packets_are_dropped_and_counted() {
    let played = Played::new();
    let session = played.meet();
    let packet = session.send.seal_alone(&[&PLAIN.write()[..], &inner(1, 2)].concat()).expect("a key");
    played.send(&packet);
    until("the first passes", || played.received() == 1);
    played.send(&packet);
    until("the second does not", || played.dropped(Dropped::Replayed) == 1);
    let mut forged = packet.clone();
    forged[11] ^= 1;
    played.send(&forged);
    until("a changed counter", || played.dropped(Dropped::Forged) == 1);
    let mut unknown = packet;
    unknown[3] ^= 1;
    played.send(&unknown);
    until("another session", || count(&played.overlay.dropped(), Dropped::Unknown) == 1);
    assert_eq!(played.received(), 1);
}

#[test]
fn a_member_may_send_as_itself_only_and_to_us_only() {
    let played = Played::new();
    let session = played.meet();
    for (at, (from, to)) in [(3, 2), (2, 2), (9, 2), (1, 3), (1, 1)].into_iter().enumerate() {
        played.send_sealed(&session, PLAIN, &inner(from, to));
        until("spoofed", || played.dropped(Dropped::Spoofed) == at as u64 + 1);
    }
    // The same in segments.
    let (shim, segment) = segment(3, 0, 2, 100);
    played.send_sealed(&session, shim, &segment);
    until("a spoofed segment", || played.dropped(Dropped::Spoofed) == 6);
    assert_eq!(played.received(), 0);
}

/// A segment of a TCP train: its place, the train's length, and payload bytes.
fn segment(from: u8, index: u8, count: u8, payload_bytes: usize) -> (Shim, Vec<u8>) {
    let mut segment = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    segment.extend(addresses(from).v4.octets());
    segment.extend(addresses(2).v4.octets());
    segment.extend([0, 7, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 1, 0, 0, 0, 0]);
    segment.extend(vec![index; payload_bytes]);
    let shim = Shim {
        kind: Kind::Tcp4,
        header_bytes: 40,
        checksum_start: 20,
        checksum_offset: 16,
        train: 5,
        index,
        segment_bytes: u16::try_from(payload_bytes).expect("small"),
        count,
        ..PLAIN
    };
    (shim, segment)
}

#[test]
fn a_device_without_offload_gets_segments_one_by_one_with_checksums() {
    let played = Played::new();
    let session = played.meet();
    for index in 0..2 {
        let (shim, segment) = segment(1, index, 2, 100);
        played.send_sealed(&session, shim, &segment);
        let packet = played.kernel_gets();
        assert_eq!(packet[2..4], 140_u16.to_be_bytes());
        assert_eq!(packet[24..28], (1 + 100 * u32::from(index)).to_be_bytes(), "sequence");
        assert_eq!(checksum(&[&packet[..20]]), 0, "IP");
        let pseudo = [&packet[12..20], &[0, 6, 0, 120][..]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[20..]]), 0, "TCP");
        assert_eq!(packet[33] & 8 != 0, index == 1, "pushed by the last");
    }
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

#[test]
fn a_thousand_malformed_packets_do_nothing() {
    let played = Played::new();
    let session = played.meet();
    let mut random = Random::new(&[4; 32]);
    let (mut sealed, mut plain) = (0, 0);
    for round in 0..1000_u64 {
        let length = usize::try_from(random.below(200)).expect("small");
        let mut bytes: Vec<u8> = (0..8).flat_map(|_| random.seed()).take(length).collect();
        if round % 2 == 0 {
            // A peer that holds keys: any shim, any packet. Messages for control are its own business.
            if let Some(kind) = bytes.first_mut() {
                *kind &= 7;
            }
            played.send(&session.send.seal_alone(&bytes).expect("a key"));
            sealed += 1;
        } else {
            if let Some(first) = bytes.first_mut().filter(|_| round % 4 == 1) {
                *first = 0;
            }
            played.send(&bytes);
            plain += 1;
        }
    }
    assert_eq!((sealed, plain), (500, 500));
    let handled = || {
        let of_peer: u64 = played.peer().dropped.iter().map(|(_, count)| count).sum();
        of_peer + played.received()
    };
    let began = Instant::now();
    // The socket may have dropped some.
    until("they were looked at", || handled() > 400 || began.elapsed() > Duration::from_secs(10));
    assert_eq!(played.received(), 0, "{:?}", played.peer().dropped);
    let mut last = inner(1, 2);
    last[5] = 9;
    played.send_sealed(&session, PLAIN, &last);
    assert_eq!(played.kernel_gets(), last, "and it still works");
    assert_eq!(last.len(), INNER_BYTES);
}

#[test]
fn a_strangers_flood_keeps_nobody_out() {
    let played = Played::new();
    let (target, is_over) = (played.overlay.local(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let mut message = vec![7; 1200];
            while !is_over.load(Ordering::Relaxed) {
                for kind in [1, 2, 0x10, 0x20] {
                    message[..4].copy_from_slice(&[0, 0, 0, kind]);
                    let _ = socket.send_to(&message, target);
                }
            }
        });
        let session = played.meet();
        let mut number = 0_u8;
        until("a packet passes", || {
            number = number.wrapping_add(1);
            let mut packet = inner(1, 2);
            packet[5] = number;
            played.send_sealed(&session, PLAIN, &packet);
            played.received() > 0
        });
        is_over.store(true, Ordering::Relaxed);
        flood.join().expect("the flood");
    });
    let long = [&[0, 0, 0, 1][..], &[0; 3000]].concat();
    played.send(&long);
    until("a message too long", || count(&played.overlay.dropped(), Dropped::Malformed) > 0);
}

#[test]
fn an_overlay_ends_when_dropped() {
    let played = Played::new();
    let _session = played.meet();
    let at = played.overlay.local();
    drop(played.overlay);
    UdpSocket::bind(at).expect("its port is free again");
}

/// Reading from it says at once and for ever that there is nothing, whenever the overlay comes to do so.
#[test]
fn a_device_that_nobody_is_behind_does_not_keep_the_overlay() {
    let (ended, end) = mpsc::channel();
    for _ in 0..50 {
        let Played { overlay, kernel, .. } = Played::new();
        rustix::io::write(&kernel, b"to nobody").expect("write");
        until("the device is read from", || count(&overlay.dropped(), Dropped::NoRoute) > 0);
        drop(kernel);
        let ended = ended.clone();
        std::thread::spawn(move || {
            drop(overlay);
            ended.send(()).expect("somebody waits");
        });
        end.recv_timeout(Duration::from_secs(30)).expect("the overlay ends");
    }
}
