//! Preferences: members near each other, apart, near the callers, the fastest; each within what it may cost more, and no
//! preference ever costs a fit.

use std::collections::BTreeSet;

use ionet_domain::command::{Actor, CommandBody as C};
use ionet_domain::connectivity::{Bandwidth, RelayMeasure};
use ionet_domain::device::Tier;
use ionet_domain::market::{Preference, Quote, Request, WorkKind};
use ionet_domain::order::LeasePhase;
use ionet_domain::{DeviceId, LeaseId, Rate};
use proptest::prelude::*;

use crate::world::{OTHER, RENTER, SUPPLIER, World, gpu_request, request};

const L4: &str = "NVIDIA L4";
const A100: &str = "NVIDIA A100-SXM4-80GB";

/// Round trips to a relay in the US and to one in Europe.
fn links(world: &mut World, device: DeviceId, us_us: u32, eu_us: u32) {
    let at_ms = world.now_ms + 1;
    let bandwidth = Some(Bandwidth { down_mbit_s: 1000, up_mbit_s: 1000 });
    let of = |region: &str, rtt_us| RelayMeasure {
        relay: format!("{region}2"),
        region: Some(region.into()),
        at_ms,
        rtt_us,
        bandwidth,
    };
    let measures = vec![of("us", us_us), of("eu", eu_us)];
    world.must(Actor::Server, C::ReportLinks { device, measures });
}

/// A GPU device on one side of the sea or the other.
fn stands(world: &mut World, ask: u64, in_us: bool) -> DeviceId {
    let device = world.gpu_device(ask, L4, 1, Tier::High);
    let (here, there) = if in_us { (9_000, 85_000) } else { (86_000, 8_000) };
    links(world, device, here, there);
    device
}

fn devices(quote: &Quote) -> BTreeSet<DeviceId> {
    quote.items.iter().filter_map(|item| item.device).collect()
}

#[test]
fn members_of_a_training_cluster_are_near_each_other_while_that_costs_little() {
    for (ask_eu, together) in [(210_000, true), (300_000, false)] {
        let mut world = World::new();
        let us: Vec<_> = [200_000, 200_000].map(|ask| stands(&mut world, ask, true)).into();
        let eu: BTreeSet<_> = [ask_eu; 3].map(|ask| stands(&mut world, ask, false)).into();
        let wanted = gpu_request(3, 1, L4);
        let cheapest = devices(&world.quote(&wanted).unwrap());
        assert!(us.iter().all(|device| cheapest.contains(device)), "general work goes by price");
        let train = world.quote(&Request { kind: WorkKind::Train, ..wanted.clone() }).unwrap();
        assert_eq!(train.request.prefer, Some(Preference::Together), "the default is printed back");
        assert_eq!(devices(&train) == eu, together, "{ask_eu}");
        let asked = Request { prefer: Some(Preference::Together), ..wanted.clone() };
        assert_eq!(devices(&world.quote(&asked).unwrap()) == eu, together);
        let capped = Request { max_rate: Some(Rate(world.quote(&wanted).unwrap().rate.0)), ..asked };
        assert!(world.quote(&capped).is_ok(), "a preference costs no fit");
    }
}

#[test]
fn a_lost_member_comes_back_near_the_others() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let eu: BTreeSet<_> = [200_000; 4].map(|ask| stands(&mut world, ask, false)).into();
    stands(&mut world, 199_000, true);
    let order = world.running(&Request { kind: WorkKind::Train, ..gpu_request(3, 1, L4) });
    let lease = LeaseId { order, n: 0 };
    let actor = Actor::Device(world.device_of(lease));
    world.must(actor, C::ReportLost { lease, reason: "gone".into() });
    world.must(Actor::Server, C::Replace { order });
    let leases = &world.state.order(order).unwrap().leases;
    let live: BTreeSet<_> = leases
        .values()
        .filter(|one| one.phase == LeasePhase::Placed || one.live())
        .map(|one| one.device)
        .collect();
    assert_eq!(live.len(), 3);
    assert!(live.is_subset(&eu), "{live:?}");
}

#[test]
fn replicas_stand_on_different_suppliers() {
    let mut world = World::new();
    for _ in 0..3 {
        world.device(SUPPLIER, 100_000);
    }
    let other = world.device(OTHER, 105_000);
    let wanted = request(2);
    assert!(!devices(&world.quote(&wanted).unwrap()).contains(&other));
    let quote = world.quote(&Request { kind: WorkKind::Inference, ..wanted }).unwrap();
    assert!(devices(&quote).len() == 2 && devices(&quote).contains(&other), "{quote:?}");
}

#[test]
fn near_is_near_the_callers_and_fast_is_fast() {
    let mut world = World::new();
    stands(&mut world, 200_000, true);
    let eu = stands(&mut world, 205_000, false);
    let near = Request { near: Some("eu".into()), ..gpu_request(1, 1, L4) };
    assert_eq!(devices(&world.quote(&near).unwrap()), [eu].into());
    let a100 = world.gpu_device(220_000, A100, 1, Tier::High);
    let both = gpu_request(1, 1, &format!("{L4}|{A100}"));
    let fast = world.quote(&Request { prefer: Some(Preference::Fastest), ..both.clone() }).unwrap();
    let cheap = world.quote(&both).unwrap();
    assert!(fast.rate.0 <= cheap.rate.0 * 6 / 5, "{} {}", fast.rate, cheap.rate);
    assert!(devices(&fast) == [a100].into() || fast.rate == cheap.rate);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever stands where for whatever it asks: a preference fits where the cheapest does, and costs at most its premium.
    #[test]
    fn preferences_are_bounded(
        all in prop::collection::vec((180_000u64..260_000, prop::bool::ANY), 1..8),
        members in 1u32..5,
        prefer in 1usize..4,
        kind in 0usize..3,
    ) {
        let mut world = World::new();
        for (ask, in_us) in all {
            stands(&mut world, ask, in_us);
        }
        let wanted = Request { kind: WorkKind::ALL[kind], ..gpu_request(members, 1, L4) };
        let plain = world.quote(&Request { prefer: Some(Preference::Cheapest), ..wanted.clone() });
        let preferred = world.quote(&Request { prefer: Some(Preference::ALL[prefer]), ..wanted });
        prop_assert_eq!(plain.is_ok(), preferred.is_ok());
        if let (Ok(plain), Ok(preferred)) = (plain, preferred) {
            prop_assert!(preferred.rate.0 <= plain.rate.0 * 6 / 5, "{} {}", preferred.rate, plain.rate);
            let rates: Vec<_> = preferred.items.iter().map(|item| item.device).collect();
            prop_assert_eq!(rates.len(), members as usize);
        }
    }
}
