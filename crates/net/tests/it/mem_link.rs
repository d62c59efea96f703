//! The in-memory twin keeps its promises for any seed.

use ionet_net::{
    EndpointId,
    link::{Link, LinkEvent},
    mem_link::{Faults, MemLink, MemNet},
};

const A: EndpointId = EndpointId([1; 32]);
const B: EndpointId = EndpointId([2; 32]);

const BAD: Faults = Faults {
    delay_min_ms: 5,
    delay_max_ms: 50,
    loss_ppm: 100_000,
    duplicate_ppm: 100_000,
    reorder_ppm: 200_000,
    dead_after_ms: 15_000,
};

fn connected(seed: u64, faults: Faults) -> (MemNet, MemLink, MemLink) {
    let net = MemNet::new(seed, faults);
    let (mut a, mut b) = (net.attach(A), net.attach(B));
    net.connect(A, B);
    assert_eq!(a.poll(), Some(LinkEvent::Up(B)));
    assert_eq!(b.poll(), Some(LinkEvent::Up(A)));
    (net, a, b)
}

fn send_numbers(from: &mut MemLink, to: EndpointId, count: u32) {
    for number in 0..count {
        from.send(to, number.to_be_bytes().to_vec());
    }
}

fn numbers(link: &mut MemLink) -> Vec<u32> {
    std::iter::from_fn(|| link.poll())
        .map(|event| match event {
            LinkEvent::Frame(_, frame) => u32::from_be_bytes(frame.try_into().expect("a number")),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_good_network_keeps_order_whatever_the_delay() {
    for seed in 0..200 {
        let faults = Faults { delay_min_ms: 1, delay_max_ms: 100, ..Faults::default() };
        let (net, mut a, mut b) = connected(seed, faults);
        send_numbers(&mut a, B, 50);
        net.advance(0);
        assert_eq!(b.poll(), None, "a frame takes time");
        net.advance(100);
        assert_eq!(numbers(&mut b), (0..50).collect::<Vec<_>>());
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let (net, mut a, mut b) = connected(seed, BAD);
        send_numbers(&mut a, B, 1000);
        net.advance(1000);
        numbers(&mut b)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_bad_network_loses_doubles_and_reorders_but_invents_nothing() {
    let (net, mut a, mut b) = connected(3, BAD);
    send_numbers(&mut a, B, 10_000);
    net.advance(1000);
    let got = numbers(&mut b);
    let mut distinct = got.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 8_700 && distinct.len() < 9_300, "lost: {}", 10_000 - distinct.len());
    assert!(got.len() - distinct.len() > 700, "doubled: {}", got.len() - distinct.len());
    assert!(!got.is_sorted(), "nothing was reordered");
    assert!(distinct.iter().all(|number| *number < 10_000));
}

#[test]
fn one_direction_may_be_cut_and_a_long_cut_ends_the_session() {
    let (net, mut a, mut b) = connected(1, Faults { dead_after_ms: 15_000, ..Faults::default() });
    net.cut(A, B, true);
    send_numbers(&mut a, B, 3);
    send_numbers(&mut b, A, 3);
    net.advance(14_999);
    assert_eq!(numbers(&mut b), Vec::<u32>::new());
    assert_eq!(numbers(&mut a), vec![0, 1, 2]);
    net.advance(15_000);
    assert_eq!(a.poll(), Some(LinkEvent::Down(B)));
    assert_eq!(b.poll(), Some(LinkEvent::Down(A)));
    net.cut(A, B, false);
    net.connect(A, B);
    assert_eq!(a.poll(), Some(LinkEvent::Up(B)));
    send_numbers(&mut a, B, 1);
    net.advance(15_001);
    assert_eq!(b.poll(), Some(LinkEvent::Up(A)));
    assert_eq!(numbers(&mut b), vec![0]);
}

#[test]
fn frames_of_an_ended_session_never_arrive() {
    let faults = Faults { delay_min_ms: 10, delay_max_ms: 10, ..Faults::default() };
    let (net, mut a, mut b) = connected(1, faults);
    send_numbers(&mut a, B, 3);
    net.connect(A, B);
    net.advance(100);
    assert_eq!(b.poll(), Some(LinkEvent::Down(A)));
    assert_eq!(b.poll(), Some(LinkEvent::Up(A)));
    assert_eq!(b.poll(), None);
    net.disconnect(A, B);
    a.send(B, vec![1]);
    net.advance(200);
    assert_eq!(b.poll(), Some(LinkEvent::Down(A)));
    assert_eq!(b.poll(), None);
}
