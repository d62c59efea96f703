//! Cutting and joining: what comes out is what went in, or a well-formed part of it.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Sort {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

const SORTS: [Sort; 4] = [Sort::Tcp4, Sort::Tcp6, Sort::Udp4, Sort::Udp6];

/// A large packet as the kernel hands it over, and its note.
fn large(sort: Sort, payload: &[u8], segment_bytes: u16, options: usize) -> (Virtio, Vec<u8>) {
    let (kind, tcp, six) = match sort {
        Sort::Tcp4 => (GSO_TCP4, true, false),
        Sort::Tcp6 => (GSO_TCP6, true, true),
        Sort::Udp4 => (GSO_UDP, false, false),
        Sort::Udp6 => (GSO_UDP, false, true),
    };
    let mut transport = vec![0x12, 0x34, 0x56, 0x78];
    if tcp {
        transport.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 9]);
        transport.extend([u8::try_from((20 + options) / 4).unwrap() << 4, 0x10 | FIN_AND_PSH | CWR]);
        transport.extend([1, 0, 0, 0, 0, 0]);
        transport.extend(vec![1; options]);
    } else {
        transport.extend([0, 0, 0, 0]);
    }
    let protocol = if tcp { TCP } else { UDP };
    let mut header = if six {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        header.extend([0xfd; 32]);
        header
    } else {
        vec![0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
    };
    let start = header.len();
    header.extend(&transport);
    let shim = Shim {
        kind: if tcp { Kind::Tcp4 } else { Kind::Udp },
        checksum_start: u8::try_from(start).unwrap(),
        checksum_offset: if tcp { TCP_CHECKSUM_OFFSET } else { UDP_CHECKSUM_OFFSET },
        ..Shim::plain(Kind::Packet)
    };
    repair(&mut header, &shim, start + transport.len() + payload.len());
    let virtio = Virtio {
        flags: NEEDS_CHECKSUM,
        kind,
        header_bytes: u16::try_from(header.len()).unwrap(),
        segment_bytes,
        checksum_start: u16::try_from(start).unwrap(),
        checksum_offset: shim.checksum_offset.into(),
    };
    header.extend(payload);
    (virtio, header)
}

/// The segments of a train as they are sealed: shim, then headers and payload.
fn segments(train: &Train, packet: &[u8]) -> Vec<(Shim, Vec<u8>)> {
    let mut all = Vec::new();
    for (shim, header, part) in train.parts(packet) {
        for (index, payload) in part.chunks(train.segment_bytes).enumerate() {
            let index = u8::try_from(index).unwrap();
            all.push((Shim { index, ..shim }, [header.get(), payload].concat()));
        }
    }
    all
}

/// What the kernel gets of segments that come in this order.
fn join(arrived: &[(Shim, Vec<u8>)]) -> Vec<(Virtio, Vec<u8>)> {
    let arena: Vec<u8> = arrived.iter().flat_map(|(_, segment)| segment.clone()).collect();
    let (mut joiner, mut written, mut at) = (Joiner::default(), Vec::new(), 0);
    let mut flush = |joiner: &mut Joiner| {
        if let Some(joined) = joiner.finish() {
            let mut packet = joined.header.to_vec();
            joined.parts.iter().for_each(|part| packet.extend(&arena[part.clone()]));
            assert_eq!(packet.len(), joined.bytes);
            written.push((joined.note, packet));
        }
        joiner.clear();
    };
    for (shim, segment) in arrived {
        let end = at + segment.len();
        if is_segment(shim, segment) {
            if !joiner.continues(shim, segment) {
                flush(&mut joiner);
            }
            joiner.add(shim, segment, at + usize::from(shim.header_bytes)..end);
        }
        at = end;
    }
    flush(&mut joiner);
    written
}

fn train(virtio: &Virtio, packet: &[u8], room: usize) -> Train {
    match cut(virtio, packet, room, 7) {
        Cut::Train(train) => train,
        other => panic!("{other:?}"),
    }
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// What must hold of every packet that the kernel gets.
fn check(note: &Virtio, packet: &[u8]) {
    assert!(inner::is_whole(packet));
    let start = usize::from(note.checksum_start);
    if packet[0] >> 4 == 4 {
        assert_eq!(inner::fold(inner::sum(&packet[..start])), 0xffff, "IP checksum");
    }
    assert!(note.segment_bytes == 0 || packet.len() > usize::from(note.header_bytes + note.segment_bytes));
    let (protocol, offset) = inner::transport(packet).unwrap();
    assert_eq!(offset, start);
    let expected = inner::fold(inner::pseudo_sum(packet, protocol, packet.len() - start));
    let at = start + usize::from(note.checksum_offset);
    assert_eq!(packet[at..at + 2], expected.to_be_bytes(), "start of the transport checksum");
    let mut complete = packet.to_vec();
    complete_checksum(note, &mut complete);
    let all = inner::pseudo_sum(packet, protocol, packet.len() - start) + inner::sum(&complete[start..]);
    assert_eq!(inner::fold(all), 0xffff, "transport checksum");
}

#[test]
fn a_checksum_is_not_completed_in_the_ip_header() {
    let packet = |version: u8| {
        let mut packet = vec![0; 80];
        packet[0] = if version == 4 { 0x45 } else { 0x60 };
        let at = if version == 4 { 2 } else { 4 };
        packet[at + 1] = if version == 4 { 80 } else { 40 };
        packet
    };
    for (version, start, fits) in
        [(4, 20, true), (4, 19, false), (6, 20, false), (6, 39, false), (6, 40, true)]
    {
        let shim =
            Shim { partial: true, checksum_start: start, checksum_offset: 16, ..Shim::plain(Kind::Packet) };
        assert_eq!(whole_note(&shim, &packet(version)).is_some(), fits, "IPv{version} from {start}");
    }
}

#[test]
fn cut_and_joined_is_as_it_was() {
    for sort in SORTS {
        for (bytes, options) in [(60_000, 12), (1401, 0), (2000, 40), (65_000, 0)] {
            let (virtio, packet) = large(sort, &payload(bytes), 1300, options);
            let train = train(&virtio, &packet, 1400);
            let joined = join(&segments(&train, &packet));
            assert_eq!(joined.len(), 1, "{sort:?} {bytes}");
            assert_eq!(joined[0].1, packet, "{sort:?} {bytes}");
            check(&joined[0].0, &packet);
            let cut_at = match sort {
                Sort::Tcp4 | Sort::Tcp6 => 1400 - usize::from(virtio.header_bytes),
                _ => 1300,
            };
            assert_eq!(usize::from(joined[0].0.segment_bytes), cut_at);
        }
    }
}

#[test]
fn more_segments_than_a_train_holds_make_several() {
    let (virtio, packet) = large(Sort::Tcp4, &payload(60_000), 100, 0);
    let train = train(&virtio, &packet, 140);
    let joined = join(&segments(&train, &packet));
    assert_eq!(joined.len(), 3);
    let bytes: Vec<u8> = joined.iter().flat_map(|(_, packet)| packet[40..].to_vec()).collect();
    assert_eq!(bytes, payload(60_000));
    for (note, packet) in &joined {
        check(note, packet);
    }
    let flags: Vec<u8> = joined.iter().map(|(_, packet)| packet[33] & (FIN_AND_PSH | CWR)).collect();
    assert_eq!(flags, [CWR, 0, FIN_AND_PSH]);
    assert_eq!(joined[0].0.kind, GSO_TCP4 | GSO_ECN);
}

#[test]
fn what_fits_goes_whole_and_what_does_not_is_cut_or_refused() {
    let none = Virtio::default();
    let (virtio, tcp) = large(Sort::Tcp4, &payload(1000), 1300, 0);
    let (_, udp) = large(Sort::Udp6, &payload(1000), 1300, 0);
    let plain = Cut::Whole(Shim::plain(Kind::Packet));
    assert_eq!(cut(&none, &tcp, 1040, 1), plain);
    assert_eq!(cut(&none, &udp, 1048, 1), plain);
    assert_eq!(cut(&none, &udp, 1047, 1), Cut::TooBig);
    assert!(matches!(cut(&none, &tcp, 1039, 1), Cut::Train(_)), "a stream is cut as the way has it");
    assert_eq!(cut(&none, &tcp, 40, 1), Cut::TooBig, "no room behind the headers");
    let Cut::Whole(shim) = cut(&virtio, &tcp, 2000, 1) else { panic!("it is one segment") };
    assert_eq!(
        whole_note(&shim, &tcp).unwrap(),
        Virtio { kind: 0, segment_bytes: 0, header_bytes: 0, ..virtio }
    );
    let datagrams = Virtio { kind: GSO_UDP, segment_bytes: 1300, ..virtio };
    assert_eq!(cut(&datagrams, &large(Sort::Udp6, &payload(5000), 1300, 0).1, 1347, 1), Cut::TooBig);
    for (virtio, what) in [
        (Virtio { kind: 3, ..virtio }, "fragments"),
        (Virtio { kind: GSO_UDP, ..virtio }, "TCP as UDP"),
        (Virtio { kind: 0, checksum_start: 19, ..virtio }, "a checksum of the IP header"),
        (Virtio { kind: 0, checksum_start: 1038, ..virtio }, "a checksum beyond the end"),
        (Virtio { kind: 0, checksum_offset: 1200, ..virtio }, "a checksum far beyond the end"),
    ] {
        assert_eq!(cut(&virtio, &tcp, 2000, 1), Cut::Malformed, "{what}");
    }
}

#[test]
fn a_gap_makes_two_packets_and_doubles_are_harmless() {
    let (virtio, packet) = large(Sort::Tcp4, &payload(6000), 1300, 0);
    let mut arrived = segments(&train(&virtio, &packet, 1040), &packet);
    arrived.remove(2);
    let joined = join(&arrived);
    let sizes: Vec<_> = joined.iter().map(|(note, packet)| (note.segment_bytes, packet.len())).collect();
    assert_eq!(sizes, [(1000, 2040), (1000, 3040)]);
    let sequence = |packet: &[u8]| u32::from_be_bytes(packet[24..28].try_into().unwrap());
    assert_eq!(sequence(&joined[1].1), sequence(&packet).wrapping_add(3000));
    assert_eq!(joined[1].1[4..6], [0, 1], "the number of the fourth segment");
    arrived.insert(1, arrived[0].clone());
    assert_eq!(join(&arrived).len(), 3);
}

#[test]
fn lone_datagrams_of_a_flow_and_size_join() {
    for sort in [Sort::Udp4, Sort::Udp6] {
        let one = |bytes: usize, number: u8| {
            let (virtio, mut packet) = large(sort, &payload(bytes), 0, 0);
            if packet[0] >> 4 == 4 {
                packet[5] = number;
            }
            let Cut::Whole(shim) = cut(&Virtio { kind: 0, ..virtio }, &packet, 1400, 1) else { panic!() };
            (datagram(&shim, &packet).unwrap(), packet)
        };
        let mut arrived: Vec<_> = (0..70).map(|number| one(200, number)).collect();
        arrived.push(one(100, 70));
        arrived.push(one(200, 71));
        let mut other = one(200, 72);
        other.1[20] ^= 1;
        arrived.push(other);
        let (mut joiner, mut runs) = (Joiner::default(), Vec::new());
        for (shim, packet) in &arrived {
            if !joiner.continues(shim, packet) {
                runs.extend(joiner.finish().map(|joined| (joined.parts.len(), joined.note.segment_bytes)));
                joiner.clear();
            }
            joiner.add(shim, packet, 0..packet.len() - usize::from(shim.header_bytes));
        }
        let last = joiner.finish().unwrap();
        assert_eq!((last.parts.len(), last.note.kind), (1, 0));
        assert_eq!(runs, [(64, 200), (6, 200), (1, 0), (1, 0)], "{sort:?}");
    }
    let (virtio, tcp) = large(Sort::Tcp4, &payload(100), 0, 0);
    let Cut::Whole(shim) = cut(&Virtio { kind: 0, ..virtio }, &tcp, 1400, 1) else { panic!() };
    assert_eq!(datagram(&shim, &tcp), None);
    let (_, done) = large(Sort::Udp4, &payload(100), 0, 0);
    assert_eq!(datagram(&Shim::plain(Kind::Packet), &done), None, "its checksum is done");
}

#[test]
fn shims_that_do_not_fit_their_segment_are_refused() {
    let (virtio, packet) = large(Sort::Tcp6, &payload(6000), 1300, 0);
    let (shim, segment) = segments(&train(&virtio, &packet, 1060), &packet).swap_remove(1);
    assert!(is_segment(&shim, &segment));
    for (changed, what) in [
        (Shim { kind: Kind::Tcp4, ..shim }, "another version"),
        (Shim { kind: Kind::Udp, ..shim }, "another protocol"),
        (Shim { kind: Kind::Packet, ..shim }, "no segment"),
        (Shim { partial: true, ..shim }, "a flag"),
        (Shim { header_bytes: 61, ..shim }, "longer headers"),
        (Shim { header_bytes: 0, ..shim }, "no headers"),
        (Shim { checksum_start: 39, ..shim }, "start"),
        (Shim { checksum_offset: 6, ..shim }, "offset"),
        (Shim { index: 6, ..shim }, "beyond the train"),
        (Shim { count: 0, ..shim }, "an empty train"),
        (Shim { segment_bytes: 999, ..shim }, "longer than said"),
        (Shim { segment_bytes: 1001, ..shim }, "shorter than said"),
        (Shim { segment_bytes: 0, ..shim }, "nothing"),
    ] {
        assert!(!is_segment(&changed, &segment), "{what}");
    }
    assert!(!is_segment(&shim, &segment[..60]) && !is_segment(&shim, &[]));
}

proptest! {
    #[test]
    fn whatever_arrives_in_whatever_order_is_well_formed(
        sort in 0..4_usize,
        bytes in 1500..9000_usize,
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
    ) {
        let (virtio, packet) = large(SORTS[sort], &payload(bytes), 700, 0);
        let train = train(&virtio, &packet, 760);
        let all = segments(&train, &packet);
        let arrived: Vec<_> = order.iter().map(|at| at.get(&all).clone()).collect();
        for (note, joined) in join(&arrived) {
            check(&note, &joined);
            let got = &joined[train.header_bytes..];
            prop_assert!(packet[train.header_bytes..].windows(got.len()).any(|part| part == got));
        }
    }

    #[test]
    fn a_train_that_lost_segments_keeps_the_order_of_the_rest(
        sort in 0..4_usize,
        bytes in 1500..60_000_usize,
        lost in prop::collection::vec(any::<bool>(), 100),
    ) {
        let (virtio, packet) = large(SORTS[sort], &payload(bytes), 700, 0);
        let train = train(&virtio, &packet, 760);
        let arrived: Vec<_> =
            segments(&train, &packet).into_iter().zip(&lost).filter(|(_, lost)| !**lost).map(|(s, _)| s).collect();
        let sent: Vec<u8> = arrived.iter().flat_map(|(_, segment)| segment[train.header_bytes..].to_vec()).collect();
        let joined = join(&arrived);
        let got: Vec<u8> = joined.iter().flat_map(|(_, packet)| packet[train.header_bytes..].to_vec()).collect();
        prop_assert_eq!(got, sent);
        for (note, packet) in &joined {
        check(note, packet);
    }
    }

    #[test]
    fn any_bytes_are_refused_or_well_formed(
        shim: [u8; 12],
        kind in 0..4_usize,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        version in any::<bool>(),
        protocol in any::<bool>(),
    ) {
        let mut shim = shim;
        shim[0] = [0, 1, 4, 5][kind];
        shim[1] &= 1;
        shim[11] = 0;
        let mut bytes = bytes;
        if bytes.len() > 20 {
            bytes[0] = if version { 0x45 } else { 0x60 };
            bytes[if version { 9 } else { 6 }] = if protocol { TCP } else { UDP };
        }
        let shim = Shim::parse(&shim).unwrap();
        let _ = whole_note(&shim, &bytes);
        for (note, packet) in join(&[(shim, bytes.clone())]) {
            check(&note, &packet);
        }
        let virtio = Virtio::parse(bytes.first_chunk().unwrap_or(&[0; 10]));
        if inner::is_whole(&bytes) {
            let _ = cut(&virtio, &bytes, 100, 1);
        }
    }
}
