//! Packets of every sort, and no packets.

use super::*;
use proptest::prelude::*;

fn v4(protocol: u8, fragment: u16, first: u8, to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 1];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1]);
    packet.extend(to);
    packet.extend([first, 0, 0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet
}

fn v6(next: u8, first: u8, to: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, next, 64];
    packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(to.octets());
    packet.extend([first; 20]);
    packet
}

fn peer() -> Ipv6Addr {
    "fd00::2".parse().unwrap()
}

#[test]
fn ends_and_lengths() {
    let (four, six) = (v4(6, 0, 1, [10, 0, 0, 2]), v6(6, 1, peer()));
    assert_eq!(ends(&four), Some(("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())));
    assert_eq!(ends(&six), Some(("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())));
    for packet in [&four, &six] {
        assert!(is_whole(packet) && !is_whole(&packet[..packet.len() - 1]));
        assert!(!is_whole(&[&packet[..], &[0]].concat()));
    }
    let mut beyond = four.clone();
    beyond[0] = 0x4f;
    assert!(!is_whole(&beyond) && !is_whole(&[]) && ends(&[]).is_none() && ends(&[0x50; 60]).is_none());
}

#[test]
fn the_transport_header_is_found() {
    assert_eq!(transport(&v4(6, 0x4000, 1, [10, 0, 0, 2])), Some((6, 20)));
    assert_eq!(transport(&v4(6, 0x2000, 1, [10, 0, 0, 2])), None, "first fragment");
    assert_eq!(transport(&v4(6, 7, 1, [10, 0, 0, 2])), None, "later fragment");
    assert_eq!(transport(&v6(17, 1, peer())), Some((17, 40)));
    let mut extended = v6(0, 0, peer());
    extended[40] = 6;
    assert_eq!(transport(&extended), Some((6, 48)));
    assert_eq!(transport(&v6(0, 0, peer())), None, "extensions without end");
}

#[test]
fn flows_are_told_apart() {
    let one = v4(6, 0, 1, [10, 0, 0, 2]);
    let mut later = one.clone();
    later[30] = 9;
    assert_eq!(flow(&one), flow(&later));
    let buckets = (0..=255_u8).map(|port| flow(&v4(6, 0, port, [10, 0, 0, 2])) % 2);
    let odd = buckets.filter(|bucket| *bucket == 1).count();
    assert!((96..=160).contains(&odd), "{odd} of 256");
    assert_ne!(flow(&v6(6, 1, peer())), flow(&v6(6, 2, peer())));
}

#[test]
fn what_is_too_large_is_answered_where_it_may_be() {
    let with_options = [&[0x46][..], &v4(6, 0x4000, 1, [10, 0, 0, 2])[1..]].concat();
    for (packet, mtu, answered, what) in [
        (v4(6, 0x4000, 1, [10, 0, 0, 2]), 1162, Some(56), "TCP"),
        (v4(6, 0, 1, [10, 0, 0, 2]), 576, Some(56), "a packet that may be fragmented, by whom?"),
        (v4(ICMP, 0x4000, 8, [10, 0, 0, 2]), 1162, Some(56), "an echo request"),
        (v4(ICMP, 0x4000, 3, [10, 0, 0, 2]), 1162, None, "an error"),
        (v4(6, 5, 1, [10, 0, 0, 2]), 1162, None, "a later fragment"),
        (v4(17, 0x4000, 1, [224, 0, 0, 1]), 1162, None, "a group"),
        (v4(17, 0x4000, 1, [255; 4]), 1162, None, "everybody"),
        (v4(6, 0x4000, 1, [10, 0, 0, 2]), 575, None, "a way too narrow"),
        (with_options, 1162, Some(60), "options"),
        (v4(6, 0, 1, [10, 0, 0, 2])[..27].to_vec(), 1162, None, "a packet that is cut"),
        (v6(6, 1, peer()), 1280, Some(108), "TCP over IPv6"),
        (v6(6, 1, peer()), 1279, None, "below what IPv6 takes"),
        (v6(ICMPV6, 128, peer()), 1300, Some(108), "an echo request over IPv6"),
        (v6(ICMPV6, 1, peer()), 1300, None, "an error over IPv6"),
        (v6(6, 1, "ff02::1".parse().unwrap()), 1300, None, "a group over IPv6"),
        (v6(44, 1, peer()), 1300, Some(108), "a fragment over IPv6"),
        (Vec::new(), 1162, None, "nothing"),
    ] {
        assert_eq!(too_big(&packet, mtu).map(|answer| answer.len()), answered, "{what}");
    }
}

#[test]
fn the_answer_quotes_the_packet_names_the_size_and_adds_up() {
    let asked = v4(6, 0x4000, 9, [10, 77, 0, 2]);
    let answer = too_big(&asked, 1162).unwrap();
    assert_eq!((&answer[12..16], &answer[16..20]), (&asked[16..20], &asked[12..16]));
    assert_eq!((answer[20], answer[21], &answer[26..28]), (3, 4, &1162_u16.to_be_bytes()[..]));
    assert_eq!(answer[28..], asked[..28]);
    assert_eq!((fold(sum(&answer[..20])), fold(sum(&answer[20..]))), (0xffff, 0xffff));

    let asked = v6(6, 9, peer());
    let answer = too_big(&asked, 1300).unwrap();
    assert!(is_whole(&answer));
    assert_eq!((&answer[8..24], &answer[24..40]), (&asked[24..40], &asked[8..24]));
    assert_eq!((answer[40], &answer[46..48]), (2, &1300_u16.to_be_bytes()[..]));
    assert_eq!(answer[48..], asked[..]);
    assert_eq!(fold(pseudo_sum(&answer, ICMPV6, answer.len() - 40) + sum(&answer[40..])), 0xffff);
    let large = [&asked[..], &[0; 2000]].concat();
    assert_eq!(too_big(&large, 1300).unwrap().len(), 1280);
}

proptest! {
    #[test]
    fn any_bytes_will_do(bytes in prop::collection::vec(any::<u8>(), 0..120), version in 0..3_u8, mtu: u16) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = [0x40, 0x60, 0][usize::from(version)] | *first & 15;
        }
        let _ = (ends(&bytes), is_whole(&bytes), transport(&bytes), flow(&bytes));
        prop_assert!(too_big(&bytes, mtu).is_none_or(|answer| is_whole(&answer)));
    }
}
