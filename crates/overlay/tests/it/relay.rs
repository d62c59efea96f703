//! The forwarder on real sockets, its rules, and the messages' formats.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use ionet_overlay::{
    io::{
        tcp::Framed,
        udp::{Inbox, Outbox, Udp},
    },
    random::Random,
    relay::{
        Admit, End, Limits, Rate, Rules,
        client::{Client, Event},
        forwarder::{Forwarder, ForwarderConfig},
        message::{Answer, Bind, Question, Refusal, Tag},
    },
};
use ring::signature::{Ed25519KeyPair, KeyPair};

const ID: [u8; 32] = [9; 32];
const TAG: Tag = [5; 16];

fn key(n: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[n; 32]).expect("key")
}

fn all() -> Admit {
    Box::new(|_| true)
}

fn start(admit: Admit) -> Forwarder {
    start_with(admit, Limits::default())
}

fn start_with(admit: Admit, limits: Limits) -> Forwarder {
    start_at(Ipv4Addr::LOCALHOST.into(), admit, limits)
}

fn start_at(ip: IpAddr, admit: Admit, limits: Limits) -> Forwarder {
    let config = ForwarderConfig {
        id: ID,
        secret: [1; 32],
        ip,
        udp_port: 0,
        second_udp_port: 0,
        tcp_port: 0,
        limits,
        admit,
    };
    Forwarder::start(config).expect("start")
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// One member's socket, by UDP or TCP.
enum Line {
    Udp(UdpSocket),
    /// Our own kind of socket, and the relay's port.
    Big(Udp, u16),
    Tcp(Framed),
}

impl Line {
    fn udp(port: u16) -> Self {
        Self::udp_at(Ipv4Addr::LOCALHOST.into(), port)
    }

    /// Hears only what comes from this very address.
    fn udp_at(ip: IpAddr, port: u16) -> Self {
        let socket = UdpSocket::bind((ip, 0)).expect("bind");
        socket.connect((ip, port)).expect("connect");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
        Self::Udp(socket)
    }

    fn tcp(port: u16) -> Self {
        Self::Tcp(Framed::new(TcpStream::connect(at(port)).expect("connect"), 10_000).expect("framed"))
    }

    fn send(&mut self, packet: &[u8]) {
        match self {
            Self::Udp(socket) => drop(socket.send(packet).expect("send")),
            Self::Big(udp, port) => udp.send(at(*port), packet).expect("send"),
            Self::Tcp(framed) => {
                assert!(framed.push(&[packet]));
                framed.flush().expect("flush");
            }
        }
    }

    /// What has come, after a short wait if nothing has.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        match self {
            Self::Udp(socket) => {
                let mut bytes = [0; 2048];
                packets.extend(socket.recv(&mut bytes).ok().map(|n| bytes[..n].to_vec()));
            }
            Self::Big(udp, _) => {
                let mut inbox = Inbox::default();
                inbox.receive(udp).expect("receive");
                let (messages, bytes) = inbox.take();
                packets.extend(messages.iter().map(|message| bytes[message.bytes.clone()].to_vec()));
            }
            Self::Tcp(framed) => {
                let mut fds = [rustix::event::PollFd::new(framed, rustix::event::PollFlags::IN)];
                let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                let _ = rustix::event::poll(&mut fds, Some(&wait));
                framed.read(|packet| packets.push(packet.to_vec())).expect("read");
            }
        }
        packets
    }

    /// Binds to the tag; the channel, when the other side may still be missing.
    fn bind(&mut self, n: u8) -> (Client, Vec<Event>) {
        let (mut client, mut random, key) = (Client::new(ID), Random::new(&[n; 32]), key(n));
        client.want(TAG);
        let (began, mut events) = (Instant::now(), Vec::new());
        let is_done = |event: &Event| matches!(event, Event::Bound { .. } | Event::Refused { .. });
        while !events.iter().any(is_done) {
            assert!(began.elapsed() < Duration::from_secs(10), "no channel: {events:?}");
            let now_ms = u64::try_from(began.elapsed().as_millis()).expect("short");
            let mut out = Vec::new();
            client.tick(now_ms, &mut random, &key, &mut out, &mut events);
            for message in out {
                self.send(&message);
            }
            for packet in self.receive() {
                let answer = Answer::parse(&packet).expect("an answer");
                client.hear(now_ms, &answer, &mut random, &mut events);
            }
        }
        (client, events)
    }

    fn packet(&mut self) -> Vec<u8> {
        let began = Instant::now();
        loop {
            let packets = self.receive();
            if let Some(packet) = packets.into_iter().find(|packet| packet[0] >= 0x80) {
                return packet;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "no packet");
        }
    }
}

fn channel_of(client: &Client) -> u32 {
    client.channel(&TAG).expect("a channel").0
}

fn packet(channel: u32, fill: u8, bytes: usize) -> Vec<u8> {
    let mut packet = channel.to_be_bytes().to_vec();
    packet.resize(bytes, fill);
    packet
}

#[test]
fn members_of_a_pair_talk_over_udp_and_tcp_in_any_mix() {
    let relay = start(all());
    let [udp, _] = relay.udp_ports();
    let line = |is_tcp| if is_tcp { Line::tcp(relay.tcp_port()) } else { Line::udp(udp) };
    for (n, kinds) in [[false, false], [false, true], [true, true]].into_iter().enumerate() {
        let mut lines = kinds.map(line);
        let n = u8::try_from(n).expect("few");
        // Each mix rebinds the same two keys, from elsewhere.
        let (first, _) = lines[0].bind(1);
        let (second, _) = lines[1].bind(2);
        let channel = channel_of(&first);
        assert_eq!(channel, channel_of(&second));
        for (from, to) in [(0, 1), (1, 0)] {
            let sent = packet(channel, n + 10, 1400);
            lines[from].send(&sent);
            assert_eq!(lines[to].packet(), sent, "unchanged");
        }
    }
    assert_eq!(relay.counters().packets.load(Relaxed), 6);
}

#[test]
fn a_relay_with_several_addresses_speaks_from_the_one_that_was_asked() {
    let [one, other] = [1, 7].map(|last| IpAddr::from([127, 0, 0, last]));
    let mut relays: Vec<(IpAddr, [IpAddr; 2])> = vec![(Ipv4Addr::UNSPECIFIED.into(), [one, other])];
    let six = IpAddr::from(Ipv6Addr::LOCALHOST);
    if UdpSocket::bind((six, 0)).is_ok() {
        relays.extend([[one, other], [other, six]].map(|ends| (Ipv6Addr::UNSPECIFIED.into(), ends)));
    }
    for (wildcard, ends) in relays {
        let relay = start_at(wildcard, all(), Limits::default());
        let [udp, _] = relay.udp_ports();
        let mut lines = ends.map(|ip| Line::udp_at(ip, udp));
        let (first, _) = lines[0].bind(1);
        let (second, _) = lines[1].bind(2);
        assert_eq!(channel_of(&first), channel_of(&second), "{ends:?}");
        for (from, to) in [(0, 1), (1, 0)] {
            let sent = packet(channel_of(&first), 9, 1400);
            lines[from].send(&sent);
            assert_eq!(lines[to].packet(), sent, "{ends:?}");
        }
    }
}

#[test]
fn both_ports_answer_and_say_where_from() {
    let relay = start(all());
    for port in relay.udp_ports() {
        let mut line = Line::udp(port);
        line.send(&Question::Hello { token: [3; 8] }.write());
        let began = Instant::now();
        let answer = loop {
            if let Some(answer) = line.receive().first() {
                break Answer::parse(answer).expect("an answer");
            }
            assert!(began.elapsed() < Duration::from_secs(10));
        };
        let Line::Udp(socket) = &line else { unreachable!() };
        let ours = socket.local_addr().expect("bound");
        assert!(matches!(answer, Answer::Cookie { token: [3, ..], seen, .. } if seen == ours), "{answer:?}");
    }
}

#[test]
fn a_stranger_gets_no_channel() {
    let friend = key(1).public_key().as_ref().to_vec();
    let relay = start(Box::new(move |key| key[..] == friend[..]));
    let [udp, _] = relay.udp_ports();
    let (_, events) = Line::udp(udp).bind(2);
    assert!(events.contains(&Event::Refused { reason: Refusal::NotAdmitted }), "{events:?}");
    let (client, _) = Line::udp(udp).bind(1);
    assert!(client.channel(&TAG).is_some());
}

#[test]
fn a_flood_of_nonsense_changes_nothing() {
    let relay = start(all());
    let [udp, _] = relay.udp_ports();
    let (mut noise, mut random) = (Line::udp(udp), Random::new(&[4; 32]));
    let (mut first, mut second) = (Line::udp(udp), Line::udp(udp));
    let (client, _) = first.bind(1);
    second.bind(2);
    let channel = channel_of(&client);
    for n in 0..5_000 {
        let mut bytes = random.seed().repeat(3);
        bytes.truncate(usize::try_from(random.below(96)).expect("small"));
        if n % 2 == 0 && bytes.len() > 4 {
            bytes[..4].copy_from_slice(&channel.to_be_bytes());
        }
        noise.send(&bytes);
    }
    let mut connection = TcpStream::connect(at(relay.tcp_port())).expect("connect");
    std::io::Write::write_all(&mut connection, &[0; 64]).expect("write");
    let sent = packet(channel, 1, 600);
    first.send(&sent);
    assert_eq!(second.packet(), sent);
    assert!(relay.counters().unknown.load(Relaxed) > 0 && relay.counters().malformed.load(Relaxed) > 0);
}

/// The rules with a bound pair on them.
fn rules(limits: Limits, admit: Admit) -> Rules {
    Rules::new(ID, &[2; 32], limits, admit)
}

fn end(n: u8) -> (End, SocketAddr) {
    let address = SocketAddr::from(([192, 0, 2, n], 1000));
    (End::Udp { socket: 0, address, at: None }, address)
}

fn ask(rules: &mut Rules, now_ms: u64, n: u8, question: &Question) -> Vec<(End, Answer)> {
    let ((from, seen), mut out) = (end(n), Vec::new());
    rules.hear(now_ms, from, seen, &question.write(), &mut out);
    out
}

fn bind(rules: &mut Rules, now_ms: u64, n: u8, key_of: u8, tag: Tag) -> Answer {
    let hello = ask(rules, now_ms, n, &Question::Hello { token: [1; 8] });
    let Answer::Cookie { cookie, .. } = hello[0].1 else { panic!("{hello:?}") };
    let bind = Bind::new([2; 8], cookie, tag, &ID, &key(key_of));
    let answers = ask(rules, now_ms, n, &Question::Bind(bind));
    answers.into_iter().find(|(to, answer)| *to == end(n).0 && answer.token() == [2; 8]).expect("an answer").1
}

fn refusal(answer: &Answer) -> Option<Refusal> {
    match answer {
        Answer::Refused { reason, .. } => Some(*reason),
        _ => None,
    }
}

#[test]
fn a_channel_is_of_two_keys_at_proven_addresses() {
    let mut rules = rules(Limits::default(), all());
    let first = bind(&mut rules, 0, 1, 1, TAG);
    assert!(matches!(first, Answer::Bound { is_met: false, .. }), "{first:?}");
    let Answer::Bound { channel, .. } = first else { panic!() };
    assert_eq!(rules.forward(0, channel, end(1).0, 1, 100), None, "nobody is there");
    assert!(matches!(bind(&mut rules, 0, 2, 2, TAG), Answer::Bound { is_met: true, .. }));
    assert_eq!(rules.forward(0, channel, end(1).0, 1, 100), Some(end(2).0));
    assert_eq!(rules.forward(0, channel, end(2).0, 1, 100), Some(end(1).0));
    assert_eq!(rules.forward(0, channel, end(3).0, 1, 100), None, "not bound");
    assert_eq!(refusal(&bind(&mut rules, 0, 3, 3, TAG)), Some(Refusal::TagTaken));
    // The first moves; its old address is worth nothing.
    bind(&mut rules, 0, 4, 1, TAG);
    assert_eq!(rules.forward(0, channel, end(1).0, 1, 100), None);
    assert_eq!(rules.forward(0, channel, end(2).0, 1, 100), Some(end(4).0));
}

#[test]
fn a_cookie_is_of_one_address_and_a_short_time_and_a_signature_of_one_relay() {
    let mut rules = rules(Limits::default(), all());
    let hello = ask(&mut rules, 0, 1, &Question::Hello { token: [1; 8] });
    let Answer::Cookie { cookie, .. } = hello[0].1 else { panic!("{hello:?}") };
    let good = Bind::new([2; 8], cookie, TAG, &ID, &key(1));
    let mut asked = |now_ms, n, bind: Bind| refusal(&ask(&mut rules, now_ms, n, &Question::Bind(bind))[0].1);
    assert_eq!(asked(0, 2, good.clone()), Some(Refusal::StaleCookie));
    assert_eq!(asked(120_000, 1, good.clone()), Some(Refusal::StaleCookie));
    assert_eq!(asked(0, 1, Bind::new([2; 8], cookie, TAG, &[8; 32], &key(1))), Some(Refusal::NotGenuine));
    assert_eq!(asked(0, 1, Bind { tag: [6; 16], ..good.clone() }), Some(Refusal::NotGenuine));
    assert_eq!(asked(59_000, 1, good), None);
}

#[test]
fn what_is_idle_ends_and_what_is_used_stays() {
    let mut rules = rules(Limits::default(), all());
    let Answer::Bound { channel, .. } = bind(&mut rules, 0, 1, 1, TAG) else { panic!() };
    bind(&mut rules, 0, 2, 2, TAG);
    for s in 1..100 {
        rules.forward(s * 1_000, channel, end(1).0, 1, 100);
        rules.sweep(s * 1_000);
    }
    assert_eq!(rules.forward(100_000, channel, end(1).0, 1, 100), None, "the other was idle");
    let keep = Question::Keep { token: [7; 8], channel };
    assert!(matches!(ask(&mut rules, 100_000, 1, &keep)[0].1, Answer::Bound { is_met: false, .. }));
    rules.sweep(170_000);
    assert_eq!(refusal(&ask(&mut rules, 170_000, 1, &keep)[0].1), Some(Refusal::NoSuchChannel));
    let Answer::Bound { channel: newer, .. } = bind(&mut rules, 170_000, 1, 1, TAG) else { panic!() };
    assert_ne!(newer, channel, "a number is not used twice in a row");
}

#[test]
fn everything_is_bounded() {
    let rate = Rate { per_s: 10, burst: 10 };
    let limits = Limits { channels: 8, channels_per_key: 5, packets: rate, ..Limits::default() };
    let mut rules = rules(limits, all());
    let mut refusals = |n: u8, tags: std::ops::Range<u8>| -> Vec<Option<Refusal>> {
        tags.map(|tag| refusal(&bind(&mut rules, 0, n, n, [tag; 16]))).collect()
    };
    assert_eq!(refusals(1, 0..6), [None, None, None, None, None, Some(Refusal::TooManyOfKey)]);
    assert_eq!(refusals(2, 10..14), [None, None, None, Some(Refusal::Full)]);
    assert_eq!(refusals(2, 0..2), [None, None], "a seat in a channel that stands");
    let Answer::Bound { channel, .. } = bind(&mut rules, 0, 1, 1, [0; 16]) else { panic!() };
    let passed = (0..100).filter(|_| rules.forward(0, channel, end(1).0, 1, 100).is_some()).count();
    assert_eq!(passed, 10);
    let asked = (0..2_000).map(|_| refusal(&bind(&mut rules, 0, 9, 9, [99; 16])));
    assert!(asked.into_iter().any(|reason| reason == Some(Refusal::TooFast)));
    rules.sweep(200_000);
    assert_eq!(rules.counters().channels.load(Relaxed), 0);
    assert_eq!(refusal(&bind(&mut rules, 200_000, 1, 1, TAG)), None, "all is given back");
}

mod formats {
    use ionet_overlay::control::{Candidates, Control, MOST_ADDRESSES, MOST_RELAYS, Mapping};
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    fn candidates() -> impl Strategy<Value = Candidates> {
        let list = || proptest::collection::vec(address(), 0..=MOST_ADDRESSES);
        let mapping = prop_oneof![
            Just(Mapping::Unknown),
            Just(Mapping::Independent),
            any::<i8>().prop_map(Mapping::Stepping),
            Just(Mapping::Random)
        ];
        let relays = proptest::collection::vec(any::<[u8; 8]>(), 0..=MOST_RELAYS);
        (any::<u32>(), list(), list(), mapping, relays).prop_map(
            |(sequence, local, seen, mapping, relays)| Candidates { sequence, local, seen, mapping, relays },
        )
    }

    fn control() -> impl Strategy<Value = Control> {
        prop_oneof![
            any::<[u8; 8]>().prop_map(|token| Control::Probe { token }),
            (any::<[u8; 8]>(), any::<u16>(), address())
                .prop_map(|(token, packet_bytes, seen)| Control::Echo { token, packet_bytes, seen }),
            candidates().prop_map(Control::Candidates),
            any::<u32>().prop_map(|sequence| Control::Have { sequence }),
        ]
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let (token, cookie) = (any::<[u8; 8]>(), any::<[u8; 16]>());
        prop_oneof![
            (token, cookie, address()).prop_map(|(token, cookie, seen)| Answer::Cookie {
                token,
                cookie,
                seen
            }),
            (token, any::<u32>(), any::<u16>(), any::<bool>(), address()).prop_map(
                |(token, channel, lifetime_s, is_met, seen)| {
                    Answer::Bound { token, channel: channel | 1 << 31, lifetime_s, is_met, seen }
                }
            ),
            token.prop_map(|token| Answer::Refused { token, reason: Refusal::Full }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(control in control(), least in 0_usize..1_400) {
            prop_assert_eq!(Control::parse(&control.write(least)), Some(control));
        }

        #[test]
        fn answers_too(answer in answer()) {
            prop_assert_eq!(Answer::parse(&answer.write()), Some(answer));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..700), first in 0_u8..0x18) {
            let mut message = vec![0, 0, 0, first];
            message.extend(&bytes);
            for bytes in [&bytes, &message] {
                let _ = (Control::parse(bytes), Candidates::parse(bytes), Answer::parse(bytes), Question::parse(bytes));
            }
        }

        #[test]
        fn a_question_cut_or_grown_is_none(token in any::<[u8; 8]>(), cut in 1_usize..40) {
            let hello = Question::Hello { token }.write();
            prop_assert_eq!(Question::parse(&hello[..hello.len() - cut]), None);
            prop_assert_eq!(Question::parse(&[hello, vec![0; cut]].concat()), None);
        }

        #[test]
        fn a_relay_takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0x10_u8..0x16) {
            let mut rules = rules(Limits::default(), all());
            let (mut out, (from, seen)) = (Vec::new(), end(1));
            for kind in [kind, 0x12] {
                let message = [&[0, 0, 0, kind][..], &bytes].concat();
                out.clear();
                rules.hear(0, from, seen, &message, &mut out);
                prop_assert!(out.iter().all(|(_, answer)| answer.write().len() <= message.len()));
            }
        }
    }
}

/// CPU time of threads of that name, in clock ticks of 10 ms.
fn ticks_of(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc").flatten();
    let of = |path: std::path::PathBuf| -> Option<u64> {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let (head, rest) = stat.split_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        head.ends_with(name)
            .then(|| fields[11].parse::<u64>().unwrap_or(0) + fields[12].parse::<u64>().unwrap_or(0))
    };
    tasks.filter_map(|task| of(task.path())).sum()
}

/// How much of a CPU the forwarder takes for a Gbit in trains, and for a packet that comes alone.
#[test]
#[ignore = "a measurement, to be asked for by name"]
fn cost_of_a_gbit() {
    let limits = Limits {
        packets: Rate { per_s: 100_000_000, burst: 100_000_000 },
        bytes: Rate { per_s: 100_000_000_000, burst: 100_000_000_000 },
        ..Limits::default()
    };
    for bytes in [1_444, 200] {
        let relay = start_with(all(), limits);
        let [port, _] = relay.udp_ports();
        let (mut first, mut second) = (Line::Big(Udp::bind(at(0)).expect("bind"), port), Line::udp(port));
        let (client, _) = first.bind(1);
        second.bind(2);
        let channel = channel_of(&client);
        let (Line::Big(from, _), Line::Udp(to)) = (first, second) else { unreachable!() };
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let (before, began) = (ticks_of("relay-udp"), Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut bytes = [0; 2048];
                while !is_over.load(Relaxed) {
                    let _ = to.recv(&mut bytes);
                }
            });
            let mut outbox = Outbox::default();
            let at_once = if bytes > 1_000 { 44 } else { 1 };
            while began.elapsed() < Duration::from_secs(4) {
                for _ in 0..at_once {
                    outbox.add(at(port), bytes).copy_from_slice(&packet(channel, 7, bytes));
                }
                outbox.flush(&from, drop);
            }
            is_over.store(true, Relaxed);
        });
        let (ticks, counters) = (ticks_of("relay-udp") - before, relay.counters());
        let (packets, mbit) = (counters.packets.load(Relaxed), counters.bytes.load(Relaxed) * 8 / 1_000_000);
        println!(
            "{bytes} bytes: {} Mbit/s passed on, {} CPU-ms per Gbit, {} ns a packet, {} unsent",
            mbit * 1_000 / u64::try_from(began.elapsed().as_millis()).expect("short"),
            ticks * 10_000 / mbit,
            ticks * 10_000_000 / packets,
            counters.unsent.load(Relaxed),
        );
    }
}
