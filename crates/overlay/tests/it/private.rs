//! What somebody sees who watches a member that pads, and what a member shows that hides behind relays. The other
//! member is played by the test, which opens everything and so knows what was in it.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::mpsc,
    time::{Duration, Instant},
};

use ionet_overlay::{
    Config, Member, Overlay, Privacy, Way,
    control::{Candidates, Control},
    handshake::Identity,
    machine::Machine,
    privacy::{CoverPlan, cells},
    seam::{Input, Output},
    session::Session,
    wire::{Kind, SHIM_BYTES, Shim, session_index},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::real::{addresses, identity, member};

const BOTH_CIPHERS: u8 = 3;
/// What was sent is lost if nothing more of it came for so long.
const LOST_AFTER: Duration = Duration::from_secs(1);

fn config(privacy: Privacy) -> Config {
    Config {
        cluster: "c1".into(),
        key_seed: [2; 32],
        me: addresses(2),
        // Nobody begins a handshake but the test.
        members: [1, 2].map(|number| Member { eager: false, ..member(number) }).to_vec(),
        relays: Vec::new(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        mtu: 1400,
        privacy,
        cover: CoverPlan::default(),
    }
}

/// A member and the wire that it sends on.
struct Watched {
    overlay: Overlay,
    kernel: OwnedFd,
    wire: UdpSocket,
    session: Session,
    /// How large every packet was, and when it came.
    seen: Vec<(Instant, usize)>,
    /// The inner packets that were in them.
    inside: Vec<Vec<u8>>,
}

impl Watched {
    fn new(privacy: Privacy) -> Self {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None);
        let (device, kernel) = pair.expect("a socket pair");
        let (bring, introduced) = mpsc::channel();
        let introduce = move |_, bytes| drop(bring.send(bytes));
        let overlay = Overlay::start(&config(privacy), device, Box::new(introduce)).expect("an overlay");
        let wire = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        wire.set_read_timeout(Some(Duration::from_millis(2))).expect("a timeout");
        let at = wire.local_addr().expect("bound");
        let ours = Candidates { sequence: 1, local: vec![at], ..Candidates::default() };
        let begun =
            identity(1).initiate(&identity(2).key(), session_index(7), BOTH_CIPHERS, &ours.write(), [9; 32]);
        let (mut waiting, message) = begun.expect("an initiation");
        overlay.introduced(identity(1).key(), &message);
        let session = loop {
            let answer = introduced.recv_timeout(Duration::from_secs(20)).expect("an answer");
            if let Ok((session, _)) = identity(1).finish(&mut waiting, &answer, 0) {
                break session;
            }
        };
        let mut watched = Self { overlay, kernel, wire, session, seen: Vec::new(), inside: Vec::new() };
        watched.say(&Control::Have { sequence: 0 });
        let until = Instant::now() + Duration::from_secs(20);
        while !watched.overlay.stats()[0].ways.iter().any(|way| way.up && way.packet_bytes >= 1440) {
            assert!(Instant::now() < until, "no way comes up: {:?}", watched.overlay.stats());
            watched.listen();
        }
        watched
    }

    fn say(&self, control: &Control) {
        let plain = [&Shim::plain(Kind::Control).write()[..], &control.write(0)].concat();
        let sealed = self.session.send.seal_alone(&plain).expect("a key");
        self.wire.send_to(&sealed, self.overlay.local()).expect("send");
    }

    /// Takes a packet of the wire, if there is one soon, and echoes what asks for it.
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        let Ok(length) = self.wire.recv(&mut buffer) else { return };
        self.seen.push((Instant::now(), length));
        let mut opener = self.session.receive.opener();
        let Ok(plain) = opener.open(&mut buffer[..length]) else { return };
        let (head, behind) = plain.split_first_chunk::<SHIM_BYTES>().expect("a shim");
        let mut shim = Shim::parse(head).expect("a shim");
        let behind = shim.trim(behind).expect("padding").to_vec();
        drop(opener);
        match shim.kind {
            Kind::Control => {
                if let Some(Control::Probe { token }) = Control::parse(&behind) {
                    let packet_bytes = u16::try_from(length).expect("small");
                    self.say(&Control::Echo { token, packet_bytes, seen: self.overlay.local() });
                }
            }
            Kind::Several => {
                self.inside.extend(cells::several(&behind).map(|next| next.expect("a packet").1.to_vec()));
            }
            Kind::Packet => self.inside.push(behind),
            _ => {}
        }
    }

    /// Sends packets of these sizes, one every so often, and watches for so long.
    fn play(&mut self, sizes: &[usize], every: Duration, all: Duration) {
        // What is still under way is of the time before, when sizes were tried.
        let mut before = usize::MAX;
        while before != self.seen.len() {
            before = self.seen.len();
            self.listen();
        }
        (self.seen, self.inside) = (Vec::new(), Vec::new());
        let begun = Instant::now();
        let mut left = sizes.iter();
        let mut next = begun;
        let mut heard = (begun, 0);
        while begun.elapsed() < all || self.inside.len() < sizes.len() {
            assert!(
                begun.elapsed() < all + Duration::from_secs(20),
                "{} of {}",
                self.inside.len(),
                sizes.len()
            );
            // What is due comes together, as far as the device takes it.
            while Instant::now() >= next
                && let Some(bytes) = left.as_slice().first()
                && rustix::io::write(&self.kernel, &inner([2, 1], *bytes)).is_ok()
            {
                left.next();
                next += every;
            }
            self.listen();
            if self.inside.len() > heard.1 {
                heard = (Instant::now(), self.inside.len());
            }
            // A busy machine's sockets drop: what is missing is sent again.
            if left.as_slice().is_empty() && heard.0.elapsed() > LOST_AFTER {
                left = sizes[self.inside.len().min(sizes.len())..].iter();
                (heard.0, next) = (Instant::now(), Instant::now());
            }
        }
    }

    fn sizes(&self) -> BTreeSet<usize> {
        self.seen.iter().map(|(_, bytes)| *bytes).collect()
    }
}

/// A UDP packet between two members, of that many bytes in all.
fn inner([from, to]: [u8; 2], bytes: usize) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).expect("small").to_be_bytes();
    let [high, low] = length(bytes);
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(addresses(from).v4.octets());
    packet.extend(addresses(to).v4.octets());
    packet.extend([0, 7, 0, 7]);
    packet.extend(length(bytes - 20));
    packet.resize(bytes, 0);
    packet
}

const SIZES: [usize; 40] = {
    let mut sizes = [0; 40];
    let mut at = 0;
    while at < 40 {
        sizes[at] = 40 + at * 311 % 1300;
        at += 1;
    }
    sizes
};

#[test]
fn every_packet_of_a_padded_member_is_as_large_as_the_others() {
    let mut watched = Watched::new(Privacy { padded: true, ..Privacy::default() });
    watched.play(&SIZES, Duration::from_millis(50), Duration::from_secs(3));
    let lengths: Vec<_> = watched.inside.iter().map(Vec::len).collect();
    assert_eq!(lengths, SIZES, "everything arrives, in order");
    assert_eq!(watched.sizes().len(), 1, "{:?}", watched.sizes());
    let busy = watched.seen.len();
    watched.play(&[], Duration::ZERO, Duration::from_secs(3));
    assert_eq!(watched.sizes().len(), 1, "{:?}", watched.sizes());
    // Slots are kept exactly in time of the machine's own; this machine may be busy with other tests.
    let idle = watched.seen.len();
    assert!(
        busy.abs_diff(idle) < 40 && idle > 90,
        "{busy} packets in three seconds of work, {idle} in idle ones"
    );
    let [sent, _] = watched.overlay.stats()[0].cover;
    assert!(sent > 90, "{sent} packets of cover");
}

#[test]
fn without_padding_sizes_and_times_are_seen() {
    let mut watched = Watched::new(Privacy::default());
    watched.play(&SIZES, Duration::from_millis(20), Duration::from_secs(1));
    assert!(watched.sizes().len() > 30, "{:?}", watched.sizes());
    let busy = watched.seen.len();
    watched.play(&[], Duration::ZERO, Duration::from_secs(1));
    assert!(
        watched.seen.len() * 4 < busy,
        "{busy} packets in a second of work, {} in an idle one",
        watched.seen.len()
    );
}

#[test]
fn a_burst_of_a_padded_member_shares_cells_and_passes_quickly() {
    let mut watched = Watched::new(Privacy { padded: true, ..Privacy::default() });
    watched.play(&[100; 300], Duration::ZERO, Duration::from_millis(1));
    assert_eq!(watched.inside.len(), 300);
    assert_eq!(watched.sizes().len(), 1);
    assert!(watched.seen.len() < 150, "{} packets for 300 small ones", watched.seen.len());
}

#[test]
fn a_cell_of_several_packets_is_taken_apart() {
    let watched = Watched::new(Privacy { padded: true, ..Privacy::default() });
    let all: Vec<_> = [60, 28, 700].map(|bytes| inner([1, 2], bytes)).into();
    let stray = inner([3, 2], 50);
    let notes = all.iter().chain([&stray]).flat_map(|packet| [&[0, 0][..], packet].concat());
    let body: Vec<u8> = notes.chain([0; 37]).collect();
    let shim = Shim { padding_bytes: 37, ..Shim::plain(Kind::Several) };
    let sealed = watched.session.send.seal_alone(&[&shim.write()[..], &body].concat()).expect("a key");
    watched.wire.send_to(&sealed, watched.overlay.local()).expect("send");
    let mut buffer = [0; 2048];
    let until = Instant::now() + Duration::from_secs(20);
    for packet in &all {
        let length = loop {
            match rustix::io::read(&watched.kernel, &mut buffer) {
                Ok(length) => break length,
                Err(_) => assert!(Instant::now() < until, "the kernel gets nothing"),
            }
        };
        assert_eq!(&buffer[..length], packet);
    }
    assert!(rustix::io::read(&watched.kernel, &mut buffer).is_err(), "what has another source is dropped");
}

/// The machine of member 2, and a session of member 1 with it that the introducer brought about.
fn hidden() -> (Machine, Session, Candidates) {
    let mut machine =
        Machine::new(&config(Privacy { via_relay: true, ..Privacy::default() }), &[5; 32]).expect("one");
    let mut out = Vec::new();
    machine.step(0, Input::OwnAddresses(vec!["192.0.2.7:4000".parse().expect("an address")]), &mut out);
    let theirs = Candidates { sequence: 1, local: vec![ours()], seen: vec![ours()], ..Candidates::default() };
    let begun =
        identity(1).initiate(&identity(2).key(), session_index(7), BOTH_CIPHERS, &theirs.write(), [9; 32]);
    let (mut waiting, message) = begun.expect("an initiation");
    machine.step(10, Input::Introduced { from: identity(1).key(), bytes: &message }, &mut out);
    let answers = out.iter().filter_map(|output| match output {
        Output::Introduce { bytes, .. } => identity(1).finish(&mut waiting, bytes, 0).ok(),
        _ => None,
    });
    let (session, said) = answers.last().expect("an answer");
    (machine, session, Candidates::parse(&said).expect("candidates"))
}

fn ours() -> SocketAddr {
    "192.0.2.9:5000".parse().expect("an address")
}

#[test]
fn who_hides_names_no_address_and_is_silent_to_what_comes_straight() {
    let (mut machine, session, named) = hidden();
    assert!(named.local.is_empty() && named.seen.is_empty(), "{named:?}");
    let way = Way::Udp(ours());
    let index = session.send.remote_index();
    let again = Identity::new("c1", &[1; 32]).initiate(&identity(2).key(), session_index(8), 3, &[], [8; 32]);
    let (_, initiation) = again.expect("an initiation");
    let probe = Control::Probe { token: [1; 8] }.write(0);
    for straight in [
        Input::Used { index, way },
        Input::Control { index, way, body: &probe, packet_bytes: 60 },
        Input::Packet { way, bytes: &initiation },
    ] {
        let mut out = Vec::new();
        machine.step(1_000, straight, &mut out);
        assert!(!out.iter().any(is_straight), "{out:?}");
    }
    let mut out = Vec::new();
    (1..200).for_each(|n| machine.step(n * 100_000, Input::Tick, &mut out));
    assert!(!out.iter().any(is_straight), "{out:?}");
}

fn is_straight(output: &Output) -> bool {
    matches!(output, Output::Send { way: Way::Udp(_), .. })
}
