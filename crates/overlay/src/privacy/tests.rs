//! Whatever is sent, an onlooker sees cells of one size; without privacy it sees the packets. The cover keeps its bounds.

use proptest::prelude::*;

use super::*;
use crate::wire::{Kind, SHIM_BYTES};

const S: u64 = 1_000_000;
const ROOM: usize = 1400;
const SEED: [u8; 32] = [7; 32];

fn steady() -> CoverPlan {
    CoverPlan::new(&["steady".into()], CoverLimits::default()).unwrap()
}

fn no_cover() -> CoverPlan {
    CoverPlan::new(&[], CoverLimits::default()).unwrap()
}

/// An IPv4 packet of that many bytes.
fn packet(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; bytes];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(bytes).unwrap().to_be_bytes());
    packet
}

/// What somebody sees who watches one pair: when a packet passed and how large it was.
type Seen = Vec<(u64, usize)>;

/// Plays packets (when, how large), in order, to the end of `until_us`.
fn watch(plan: &CoverPlan, packets: &[(u64, usize)], until_us: u64) -> (Seen, Vec<u64>) {
    let mut shaper = Shaper::new(plan, &SEED, 0);
    let (mut seen, mut waiting, mut delays) = (Seen::new(), 0, Vec::new());
    let mut packets = packets.iter().peekable();
    let mut sent = std::collections::VecDeque::new();
    loop {
        let next_packet_us = packets.peek().map_or(u64::MAX, |(at_us, _)| *at_us);
        let now_us = next_packet_us.min(shaper.next_us().unwrap_or(u64::MAX));
        if now_us > until_us {
            return (seen, delays);
        }
        if now_us == next_packet_us {
            let (_, bytes) = packets.next().unwrap();
            assert!(shaper.push(now_us, &Shim::plain(Kind::Packet), &[&packet(*bytes)], ROOM));
            sent.push_back(now_us);
            waiting += 1;
        }
        shaper.leave(now_us, |cell| {
            seen.push((now_us, SHIM_BYTES + ROOM));
            let Some(cell) = cell else { return };
            let inside = if cell[0] == 2 { cells::several(&cell[SHIM_BYTES..]).count() } else { 1 };
            waiting -= inside;
            delays.extend(sent.drain(..inside).map(|at_us| now_us - at_us));
        });
        assert!(waiting <= 256, "what waits is bounded");
    }
}

/// The same without privacy: every packet as large as it is, when it is.
fn bare(packets: &[(u64, usize)]) -> Seen {
    packets.iter().map(|(at_us, bytes)| (*at_us, bytes + SHIM_BYTES)).collect()
}

fn per_second(seen: &Seen, seconds: u64) -> Vec<usize> {
    (0..seconds).map(|s| seen.iter().filter(|(at_us, _)| at_us / S == s).count()).collect()
}

fn sizes(seen: &Seen) -> std::collections::BTreeSet<usize> {
    seen.iter().map(|(_, bytes)| *bytes).collect()
}

/// A word now and then.
fn chat() -> Vec<(u64, usize)> {
    (0..20).map(|n| (n * 3 * S + n % 7 * 130_000, 60 + usize::try_from(n).unwrap())).collect()
}

/// Questions and answers of many sizes, up to forty a second, and none for a while.
fn work() -> Vec<(u64, usize)> {
    let busy = |n: u64| !(20..30).contains(&(n * 25_000 / S));
    (0..2400)
        .filter(|n| busy(*n))
        .map(|n| (n * 25_000, 100 + usize::try_from(n * 37 % 1200).unwrap()))
        .collect()
}

#[test]
fn an_observer_cannot_tell_a_chat_from_work() {
    let [(chat_seen, _), (work_seen, delays)] =
        [chat(), work()].map(|packets| watch(&steady(), &packets, 60 * S));
    assert_eq!(sizes(&chat_seen), sizes(&work_seen));
    assert_eq!(sizes(&chat_seen).len(), 1, "one size");
    // The bound: what passes in a second differs by one packet at most.
    for (chat, work) in per_second(&chat_seen, 59).into_iter().zip(per_second(&work_seen, 59)) {
        assert!(chat.abs_diff(work) <= 1, "{chat} and {work} packets in a second");
    }
    let slot_us = u64::from(machines::SLOT_US);
    assert!(delays.iter().all(|us| *us <= 2 * slot_us), "nothing waits for long: {:?}", delays.iter().max());
    assert_eq!(delays.len(), work().len());
}

#[test]
fn without_privacy_an_observer_can() {
    let [chat_seen, work_seen] = [chat(), work()].map(|packets| bare(&packets));
    assert!(sizes(&work_seen).len() > 100 && sizes(&chat_seen) != sizes(&work_seen));
    let apart = per_second(&chat_seen, 59).into_iter().zip(per_second(&work_seen, 59));
    assert!(apart.filter(|(chat, work)| chat.abs_diff(*work) > 30).count() > 40);
    let (padded, _) = watch(&no_cover(), &work(), 60 * S);
    assert_eq!(sizes(&padded).len(), 1, "without machines sizes are hidden");
    assert!(per_second(&padded, 59)[25] == 0, "and times are not");
}

#[test]
fn a_bulk_transfer_passes_and_slots_begin_again() {
    let bulk: Vec<_> = (0..20_000).map(|n| (2 * S + n * 100, 1400)).collect();
    let packets: Vec<_> = [(0, 60)].into_iter().chain(bulk).collect();
    let (seen, delays) = watch(&steady(), &packets, 20 * S);
    assert_eq!(delays.len(), packets.len(), "nothing is lost");
    let held = delays.iter().filter(|us| **us > 0).count();
    assert!(held <= 12, "few are held back before it is taken for bulk: {held}");
    let seconds = per_second(&seen, 20);
    assert!(seconds[1] == 50 && seconds[2] > 9_000 && seconds[3] > 9_000, "{seconds:?}");
    assert!(seconds[7..].iter().all(|count| count.abs_diff(50) <= 1), "{seconds:?}");
}

#[test]
fn little_traffic_after_a_bulk_transfer_is_hidden_again() {
    let bulk = (0..5_000).map(|n| (n * 100, 1400));
    let little = (0..100).map(|n| (S + n * 100_000, 200));
    let (seen, delays) = watch(&steady(), &bulk.chain(little).collect::<Vec<_>>(), 12 * S);
    assert_eq!(delays.len(), 5_100);
    let seconds = per_second(&seen, 11);
    assert!(seconds[5..].iter().all(|count| count.abs_diff(50) <= 1), "{seconds:?}");
}

#[test]
fn a_busy_link_below_bulk_does_not_starve() {
    for per_s in [10, 45, 49, 50, 60, 200] {
        let packets: Vec<_> = (0..20 * per_s).map(|n| (n * S / per_s, 1400)).collect();
        let (_, delays) = watch(&steady(), &packets, 21 * S);
        assert_eq!(delays.len(), packets.len(), "{per_s} a second");
        assert!(delays.iter().all(|us| *us <= 420_000), "{per_s} a second wait {:?} us", delays.iter().max());
    }
}

#[test]
fn cover_begins_when_the_other_side_does() {
    let mut shaper = Shaper::new(&steady(), &SEED, 0);
    assert_eq!(shaper.next_us(), None);
    shaper.came(5, 1, 0);
    let mut sent = 0;
    while let Some(now_us) = shaper.next_us().filter(|us| *us < S) {
        shaper.leave(now_us, |cell| sent += usize::from(cell.is_none()));
    }
    assert!((48..=50).contains(&sent), "{sent}");
}

#[test]
fn what_machines_ask_for_is_bounded() {
    use maybenot::{
        action::Action,
        dist::{Dist, DistType},
        event::Event,
        state::{State, Trans},
    };
    let at_once = Dist::new(DistType::Uniform { low: 0.0, high: 0.0 }, 0.0, 0.0);
    let action = Action::SendPadding { bypass: true, replace: false, timeout: at_once, limit: None };
    let mut mad = State::new(enum_map::enum_map! {
        Event::NormalSent | Event::PaddingSent => vec![Trans(0, 1.0)],
        _ => vec![],
    });
    mad.action = Some(action);
    let mad = Machine::new(0, 0.0, 0, 0.0, vec![mad]).unwrap();
    let plan =
        CoverPlan::new(&[mad.serialize()], CoverLimits { cover_per_s: 100, cover_percent: 0 }).unwrap();
    let mut shaper = Shaper::new(&plan, &SEED, 0);
    assert!(shaper.push(0, &Shim::plain(Kind::Packet), &[&packet(60)], ROOM));
    let (mut cover, mut wakes) = (0, 0);
    while let Some(now_us) = shaper.next_us().filter(|us| *us < 10 * S) {
        shaper.leave(now_us, |cell| cover += usize::from(cell.is_none()));
        wakes += 1;
    }
    assert!((1000..=1030).contains(&cover), "a hundred a second: {cover}");
    assert!(wakes <= 10_010, "and it does not keep a processor busy: {wakes}");
}

#[test]
fn cover_can_be_held_to_a_share() {
    let limits = CoverLimits { cover_percent: 50, ..CoverLimits::default() };
    let plan = CoverPlan::new(&["steady".into()], limits).unwrap();
    let (seen, delays) = watch(&plan, &work(), 60 * S);
    assert_eq!(delays.len(), work().len());
    assert!(seen.len() <= 2 * delays.len() + 100, "{} for {}", seen.len(), delays.len());
}

#[test]
fn only_machines_are_taken() {
    let text = machines::steady().serialize();
    assert!(CoverPlan::new(&[text], CoverLimits::default()).is_ok());
    let error = CoverPlan::new(&["02nonsense".into()], CoverLimits::default()).unwrap_err();
    assert!(error.to_string().contains("02nonsense"), "{error}");
    assert!(CoverPlan::new(&[], CoverLimits { cover_percent: 101, ..CoverLimits::default() }).is_err());
}

#[test]
fn what_waits_is_bounded() {
    let mut shaper = Shaper::new(&no_cover(), &SEED, 0);
    let taken = (0..1000).filter(|_| shaper.push(0, &Shim::plain(Kind::Tcp4), &[&[0; 900]], ROOM)).count();
    assert_eq!((taken, shaper.waiting()), (MOST_WAITING, MOST_WAITING));
    assert!(!shaper.push(0, &Shim::plain(Kind::Packet), &[&[0; 1401]], ROOM), "it would not fit a cell");
}

proptest! {
    #[test]
    fn packets_share_cells_and_come_out_as_they_went_in(
        all in prop::collection::vec((20..1400_usize, prop::option::of((20..200_u8, 0..200_u8))), 0..60)
    ) {
        let mut shaper = Shaper::new(&no_cover(), &SEED, 0);
        let all: Vec<_> = all.into_iter().map(|(bytes, note)| {
            let (checksum_start, checksum_offset) = note.unwrap_or_default();
            let partial = note.is_some();
            (Shim { partial, checksum_start, checksum_offset, ..Shim::plain(Kind::Packet) }, packet(bytes))
        }).collect();
        for (shim, packet) in &all {
            let (first, second) = packet.split_at(7);
            prop_assert!(shaper.push(0, shim, &[first, second], ROOM));
        }
        let mut came = Vec::new();
        let mut cells = 0;
        shaper.leave(0, |cell| {
            let (head, body) = cell.unwrap().split_first_chunk::<SHIM_BYTES>().unwrap();
            assert!(body.len() <= ROOM);
            cells += 1;
            let shim = Shim::parse(head).unwrap();
            match shim.kind {
                Kind::Several => came.extend(cells::several(body).map(|next| {
                    let (shim, packet) = next.unwrap();
                    (shim, packet.to_vec())
                })),
                _ => came.push((shim, body.to_vec())),
            }
        });
        prop_assert_eq!(came, all.clone());
        let bytes: usize = all.iter().map(|(_, packet)| packet.len() + 2).sum();
        prop_assert!(cells <= 1 + 2 * bytes / ROOM, "{} cells of {} bytes", cells, bytes);
    }

    #[test]
    fn any_bytes_are_taken_for_several(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let taken: usize = cells::several(&bytes).flatten().map(|(_, packet)| packet.len() + 2).sum();
        prop_assert!(taken <= bytes.len());
    }

    #[test]
    fn any_course_of_events_is_taken(
        events in prop::collection::vec((0..4_u8, 0..400_000_u64, 0..80_usize), 0..200)
    ) {
        let mut shaper = Shaper::new(&steady(), &SEED, 0);
        let mut now_us = 0_u64;
        for (kind, us, count) in events {
            // Clocks may stand still and threads be late.
            now_us = if kind == 3 { now_us.saturating_sub(us) } else { now_us + us };
            match kind {
                0 => (0..count).for_each(|_| {
                    shaper.push(now_us, &Shim::plain(Kind::Packet), &[&packet(1300)], ROOM);
                }),
                1 => shaper.came(now_us, count, count / 2),
                _ => {}
            }
            let mut left = 0;
            shaper.leave(now_us, |_| left += 1);
            prop_assert!(left <= 600);
        }
    }
}
