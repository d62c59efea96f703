//! What a box reaches, and what not.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Instant;

use ionet_domain::market::Egress as Mode;

use crate::world::{
    FAR, FAR_V6, HOST, METADATA, OTHER, ROUTER, WAIT, World, ask, echo, echo_server, eventually, name_server,
    rules, udp_echo_server,
};

/// A connection that rules forbid fails at once and says so.
fn is_forbidden(answer: &std::io::Result<TcpStream>) -> bool {
    let kinds = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
    answer.as_ref().is_err_and(|error| kinds.contains(&error.kind()))
}

#[test]
fn the_internet_is_reached_and_nothing_near_is() {
    let Some(world) = World::new(rules(Mode::On, &[])) else { return };
    echo_server(&world.net, 80);
    echo_server(&world.host, 80);
    echo_server(&world.net, 25);
    world.echoes(FAR, 80).unwrap();
    world.echoes(FAR_V6, 80).unwrap();
    let mapped = format!("::ffff:{HOST}");
    for near in [HOST, ROUTER, METADATA, "2001:db8:231::fe", "2001:db8:231::1", "64:ff9b::a9fe:a9fe", &mapped]
    {
        let answer = world.connect(near, 80);
        assert!(is_forbidden(&answer), "{near}: {answer:?}");
    }
    let mail = world.connect(FAR, 25);
    assert!(is_forbidden(&mail), "{mail:?}");
    // The box's own mapped is the box's own.
    assert_eq!(world.connect("127.0.0.1", 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // What the other end says is what the box hears.
    assert_eq!(world.connect(FAR, 81).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    world.host.ip("route add unreachable 198.51.100.0/24");
    assert_eq!(world.connect("198.51.100.1", 80).unwrap_err().kind(), ErrorKind::HostUnreachable);
    let usage = world.egress.usage();
    assert_eq!((usage.sent_bytes, usage.received_bytes), (10, 10), "{usage:?}");
    // A "no" that comes while the kernel still holds the socket is not heard: it asks again.
    assert!(usage.refused >= 8, "{usage:?}");
    eventually("all are closed", || world.egress.usage().open == 0);
}

#[test]
fn the_operator_may_open_what_is_near() {
    let open = |config: &mut ionet_egress::Config| config.open = vec![ROUTER.parse().unwrap()];
    let Some(world) = World::with(rules(Mode::On, &[]), open) else { return };
    echo_server(&world.net, 80);
    world.echoes(ROUTER, 80).unwrap();
    assert!(is_forbidden(&world.connect(METADATA, 80)));
    // An address that the host is known by elsewhere is near too.
    world.echoes(FAR, 80).unwrap();
    world.egress.set_own_addresses(vec![FAR.parse().unwrap()]);
    eventually("it is blocked", || is_forbidden(&world.connect(FAR, 80)));
    world.echoes(OTHER, 80).unwrap();
}

#[test]
fn off_means_nothing_and_a_list_what_it_says() {
    let Some(world) = World::new(rules(Mode::Off, &[])) else { return };
    echo_server(&world.net, 80);
    udp_echo_server(&world.net, &format!("{FAR}:9"));
    name_server(&world.net, FAR);
    assert!(is_forbidden(&world.connect(FAR, 80)));
    assert_eq!(ask(&world, "pypi.org").0, 5, "refused");
    let usage = world.egress.usage();
    assert_eq!((usage.sent_bytes, usage.received_bytes), (0, 0), "{usage:?}");
    assert!(usage.refused >= 2, "{usage:?}");
    world.egress.set_rules(rules(Mode::Listed, &["*.example.org:80", "203.0.113.10"]));
    eventually("the rules are taken", || world.connect(OTHER, 80).is_ok());
    assert!(is_forbidden(&world.connect(FAR, 80)), "nobody asked for its name");
    assert_eq!(ask(&world, "pypi.org").0, 5);
    assert_eq!(ask(&world, "www.example.org"), (0, Some(FAR.parse().unwrap())));
    world.echoes(FAR, 80).unwrap();
    assert!(is_forbidden(&world.connect(FAR, 81)), "only port 80 of it");
}

#[test]
fn a_name_that_points_near_is_of_no_use() {
    let Some(world) = World::new(rules(Mode::Listed, &["*.example.org"])) else { return };
    echo_server(&world.net, 80);
    name_server(&world.net, METADATA);
    assert_eq!(ask(&world, "www.example.org"), (0, Some(METADATA.parse().unwrap())));
    assert!(is_forbidden(&world.connect(METADATA, 80)));
}

#[test]
fn a_live_change_cuts_what_it_forbids_and_nothing_else() {
    let Some(world) = World::new(rules(Mode::On, &[])) else { return };
    echo_server(&world.net, 80);
    name_server(&world.net, OTHER);
    ask(&world, "www.example.org");
    let [mut far, mut other] = [FAR, OTHER].map(|at| world.echoes(at, 80).unwrap());
    world.egress.set_rules(rules(Mode::Listed, &["www.example.org"]));
    assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    echo(&mut other, b"still here").unwrap();
    world.egress.set_rules(rules(Mode::Off, &[]));
    assert_eq!(other.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(is_forbidden(&world.connect(OTHER, 80)));
    assert_eq!(world.egress.usage().open, 0);
    world.egress.set_rules(rules(Mode::On, &[]));
    eventually("on again", || world.echoes(FAR, 80).is_ok());
}

#[test]
fn datagrams_go_out_and_come_back() {
    let Some(world) = World::new(rules(Mode::On, &[])) else { return };
    for at in [format!("{FAR}:9"), format!("[{FAR_V6}]:9"), format!("{METADATA}:9"), format!("{HOST}:9")] {
        udp_echo_server(if at.starts_with(HOST) { &world.host } else { &world.net }, &at);
    }
    let exchange = |to: String, bytes: usize| {
        world.inside.within(move || {
            let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
            socket.set_read_timeout(Some(WAIT))?;
            socket.connect(&to)?;
            socket.send(&vec![7; bytes])?;
            socket.recv(&mut vec![0; 65_536])
        })
    };
    for bytes in [0, 1, 1400, 20_000] {
        assert_eq!(exchange(format!("{FAR}:9"), bytes).unwrap(), bytes);
        assert_eq!(exchange(format!("[{FAR_V6}]:9"), bytes).unwrap(), bytes);
    }
    for near in [format!("{METADATA}:9"), format!("{HOST}:9")] {
        assert_eq!(exchange(near, 5).unwrap_err().kind(), ErrorKind::HostUnreachable);
    }
    assert_eq!(exchange(format!("{FAR}:10"), 5).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let usage = world.egress.usage();
    assert_eq!(usage.received_bytes, 2 * 21_401, "{usage:?}");
}

#[test]
fn ends_are_passed_on_as_they_are() {
    let Some(world) = World::new(rules(Mode::On, &[])) else { return };
    let listener = world.net.within(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let accept = || listener.accept().unwrap().0;
    // The box finishes first and still hears the answer.
    let mut inside = world.connect(FAR, 80).unwrap();
    let mut far = accept();
    inside.write_all(b"question").unwrap();
    inside.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    let answer = vec![b'a'; 3 << 20];
    let sender = thread::spawn({
        let answer = answer.clone();
        move || far.write_all(&answer).unwrap()
    });
    let mut back = Vec::new();
    inside.read_to_end(&mut back).unwrap();
    assert_eq!(back, answer);
    sender.join().unwrap();
    // The other end finishes first and still hears what the box has to say.
    let mut inside = world.connect(FAR, 80).unwrap();
    let mut far = accept();
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(inside.read(&mut [0; 1]).unwrap(), 0);
    inside.write_all(&answer).unwrap();
    drop(inside);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), answer.len());
    // A reset is a reset, both ways.
    let (inside, far) = (world.connect(FAR, 80).unwrap(), accept());
    rustix::net::sockopt::set_socket_linger(&far, Some(std::time::Duration::ZERO)).unwrap();
    drop(far);
    assert_eq!((&inside).read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (inside, far) = (world.connect(FAR, 80).unwrap(), accept());
    rustix::net::sockopt::set_socket_linger(&inside, Some(std::time::Duration::ZERO)).unwrap();
    drop(inside);
    assert_eq!((&far).read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    eventually("nothing is left", || world.egress.usage().open == 0);
}

#[test]
fn one_stream_is_fast() {
    const BYTES: usize = 1 << 30;
    let Some(world) = World::new(rules(Mode::On, &[])) else { return };
    let listener = world.net.within(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let send = |mut stream: TcpStream| {
        thread::spawn(move || {
            let chunk = vec![7; 256 << 10];
            (0..BYTES / chunk.len()).for_each(|_| stream.write_all(&chunk).unwrap());
        })
    };
    let receive = |mut stream: TcpStream| {
        let (began, mut buffer, mut total) = (Instant::now(), vec![0; 256 << 10], 0);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            total += n;
        }
        assert_eq!(total, BYTES);
        8.0 * f64::from(1u32 << 30) / began.elapsed().as_secs_f64() / 1e9
    };
    for direction in ["out", "in"] {
        let inside = world.connect(FAR, 80).unwrap();
        let far = listener.accept().unwrap().0;
        let (from, to) = if direction == "out" { (inside, far) } else { (far, inside) };
        let sender = send(from);
        println!("one TCP stream {direction}: {:.2} Gbit/s", receive(to));
        sender.join().unwrap();
    }
    let usage = world.egress.usage();
    assert_eq!((usage.sent_bytes, usage.received_bytes), (BYTES as u64, BYTES as u64));
}
