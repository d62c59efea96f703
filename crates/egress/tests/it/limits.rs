//! A box that wants to harm: floods, half-open connections, slow readers, packets of no sense. What it costs is bounded.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ionet_domain::market::Egress as Mode;
use ionet_egress::{Config, Limits};

use crate::world::{FAR, WAIT, World, echo_server, eventually, rules};

/// Memory of this process in bytes.
fn rss_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn far() -> SocketAddr {
    SocketAddr::new(FAR.parse().unwrap(), 80)
}

fn few(config: &mut Config) {
    config.limits = Limits { connections: 8, dialing: 4, flows: 4, lookups: 4, dial_ms: 2_500 };
}

#[test]
fn connections_and_flows_are_bounded_and_come_free_again() {
    let Some(world) = World::with(rules(Mode::On, &[]), few) else { return };
    echo_server(&world.net, 80);
    let held: Vec<_> = (0..8).map(|_| world.echoes(FAR, 80).unwrap()).collect();
    assert_eq!(world.egress.usage().open, 8);
    let ninth = world.inside.enter(|| TcpStream::connect_timeout(&far(), WAIT));
    eventually("the ninth waits", || world.egress.usage().limited > 0);
    drop(held);
    ninth.join().unwrap().unwrap();
    // Datagrams beyond the limit are lost.
    let before = world.egress.usage().limited;
    world.inside.within(|| {
        for _ in 0..10 {
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (FAR, 9)).unwrap();
        }
    });
    eventually("six are lost", || world.egress.usage().limited == before + 6);
}

#[test]
fn dialling_what_never_answers_holds_up_nobody_for_long() {
    let Some(world) = World::with(rules(Mode::On, &[]), few) else { return };
    echo_server(&world.net, 80);
    // The router swallows this.
    world.net.ip("route add blackhole 198.51.100.0/24");
    let silent = world.inside.enter(|| {
        let to = (IpAddr::from([198, 51, 100, 1]), 80).into();
        let dials: Vec<_> =
            (0..4).map(|_| std::thread::spawn(move || TcpStream::connect_timeout(&to, WAIT / 10))).collect();
        dials.into_iter().map(|dial| dial.join().unwrap().unwrap_err().kind()).collect::<Vec<_>>()
    });
    eventually("they are being dialled", || world.egress.usage().open == 4);
    assert_eq!(silent.join().unwrap(), [ErrorKind::TimedOut; 4]);
    // They gave up, and so the box's kernel sends nothing more of them; the places come free when dialling ends.
    assert_eq!(world.egress.usage().open, 4);
    let asked = Instant::now();
    let later = world.inside.within(|| TcpStream::connect_timeout(&far(), 3 * WAIT));
    later.unwrap();
    assert!(asked.elapsed() < 3 * WAIT);
}

#[test]
fn slow_readers_cost_no_more_than_their_buffers() {
    let Some(world) = World::new(rules(Mode::On, &[])) else { return };
    let listener = world.net.within(|| TcpListener::bind("0.0.0.0:80")).unwrap();
    let mut held = Vec::new();
    let before = rss_bytes();
    for _ in 0..200 {
        let inside = world.connect(FAR, 80).unwrap();
        let far = listener.accept().unwrap().0;
        // Nobody reads on either side; both sides write until nothing more goes.
        for stream in [&inside, &far] {
            stream.set_nonblocking(true).unwrap();
        }
        held.push((inside, far));
    }
    let chunk = vec![7; 64 << 10];
    let deadline = Instant::now() + WAIT;
    let mut stuck = 0;
    while stuck < 3 && Instant::now() < deadline {
        let ends = held.iter().flat_map(|(inside, far)| [inside, far]);
        let written: usize = ends.map(|mut end| end.write(&chunk).unwrap_or(0)).sum();
        stuck = if written == 0 { stuck + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(20)); // poll
    }
    let grown = rss_bytes().saturating_sub(before);
    println!("200 stuck connections: {} kB", grown / 1024);
    assert!(grown < 48 << 20, "{grown}");
    assert_eq!(world.egress.usage().open, 200);
    drop(held);
    eventually("all are gone", || world.egress.usage().open == 0);
}
