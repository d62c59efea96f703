//! Reasons: they are true, and what they recommend works.

use std::collections::BTreeSet;

use ionet_domain::DeviceId;
use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::device::{DeviceChange, OwnerRules, Resources, Tier};
use ionet_domain::market::explain::{self, Condition, Explanation};
use ionet_domain::market::{Egress, GpuMinimum, Isolation, Request, WorkKind, board, explain_device};
use ionet_domain::money::{HOUR_MS, Rate};
use proptest::prelude::*;

use super::world::{GIB, OTHER, RENTER, SUPPLIER, World, gpu_request, request};

const A100: &str = "NVIDIA A100-SXM4-80GB";
const L4: &str = "NVIDIA L4";

/// Applies every relaxation: the request must succeed, at the price that was named, within the cap that it has.
fn true_in(world: &mut World, found: &Explanation) {
    assert!(!found.fits);
    for relaxation in &found.relaxations {
        let text = format!("{:?} in {relaxation:?}", found.refused);
        assert!((1..=2).contains(&relaxation.changes.len()), "{text}");
        assert!(relaxation.changes.iter().all(|change| change.from != change.to), "{text}");
        let quote = world.quote(&relaxation.request).unwrap_or_else(|refusal| panic!("{refusal}: {text}"));
        assert_eq!(
            (quote.rate, quote.total_micro_usd),
            (relaxation.rate, relaxation.total_micro_usd),
            "{text}"
        );
    }
}

fn explained(world: &mut World, wanted: &Request) -> Explanation {
    let found = explain::request(&world.state, RENTER, wanted, world.now_ms).unwrap();
    true_in(world, &found);
    found
}

fn conditions(found: &Explanation) -> Vec<Vec<Condition>> {
    let of = |changes: &[explain::Change]| changes.iter().map(|change| change.condition).collect();
    found.relaxations.iter().map(|relaxation| of(&relaxation.changes)).collect()
}

fn world() -> World {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000_000);
    world.gpu_device(800_000, A100, 4, Tier::Ultra);
    world.gpu_device(250_000, L4, 2, Tier::Medium);
    world.device(SUPPLIER, 100_000);
    world
}

#[test]
fn one_change_is_named_with_its_price() {
    let mut world = world();
    for (wanted, condition, to) in [
        (Request { tier: Some(Tier::High), ..gpu_request(1, 1, L4) }, Condition::Tier, "medium"),
        (gpu_request(1, 4, L4), Condition::Gpus, "2"),
        (Request { network: Some("render".into()), ..gpu_request(1, 1, A100) }, Condition::Network, "any"),
        (
            Request { tags: BTreeSet::from(["fast".into()]), ..gpu_request(1, 1, A100) },
            Condition::Tags,
            "any",
        ),
        (gpu_request(3, 1, L4), Condition::Members, "2"),
        (Request { spread: true, ..gpu_request(2, 1, L4) }, Condition::Spread, "devices may be shared"),
        (Request { max_rate: Some(Rate(1)), ..gpu_request(1, 1, L4) }, Condition::PriceCap, "$0.25/h"),
        (gpu_request(1, 1, "NVIDIA B200"), Condition::GpuModel, "NVIDIA B200 or NVIDIA L4"),
        (
            Request {
                per_member: Resources { memory_bytes: 16 * GIB, ..gpu_request(1, 1, A100).per_member },
                ..gpu_request(1, 1, A100)
            },
            Condition::Memory,
            "8192 MiB",
        ),
    ] {
        let found = explained(&mut world, &wanted);
        let single = found
            .relaxations
            .iter()
            .find(|one| one.changes.len() == 1 && one.changes[0].condition == condition);
        let single = single.unwrap_or_else(|| panic!("{condition:?} of {found:#?}"));
        assert_eq!(single.changes[0].to, to, "{condition:?}");
    }
}

#[test]
fn two_changes_are_named_where_one_is_not_enough() {
    let mut world = world();
    let wanted = Request { tier: Some(Tier::Ultra), ..gpu_request(1, 4, L4) };
    let found = explained(&mut world, &wanted);
    assert!(conditions(&found).contains(&vec![Condition::GpuModel]), "{found:#?}");
    assert!(conditions(&found).contains(&vec![Condition::Tier, Condition::Gpus]), "{found:#?}");
    assert_eq!(found.nearest.len(), 3);
    let first = &found.nearest[0];
    assert_eq!((first.class.to_string().as_str(), first.misses.len()), (A100, 1));
    assert!(first.misses[0].contains("NVIDIA L4 wanted, it is NVIDIA A100"), "{first:?}");
}

#[test]
fn what_fits_says_so_and_what_nothing_helps_says_that() {
    let mut world = world();
    let fits = explain::request(&world.state, RENTER, &gpu_request(1, 1, L4), world.now_ms).unwrap();
    assert!(fits.fits && fits.rate.is_some() && fits.relaxations.is_empty());
    let mut empty = World::new();
    let found = explained(&mut empty, &request(1));
    assert!(found.relaxations.is_empty() && found.shortfall.is_some());
    assert_eq!(
        explain::request(&world.state, RENTER, &request(0), world.now_ms).unwrap_err().code(),
        "out_of_range"
    );
    let hired = Request { duration_ms: 2 * HOUR_MS, ..gpu_request(2, 1, L4) };
    world.running(&hired);
    let found = explained(&mut world, &gpu_request(1, 1, L4));
    assert_eq!(found.shortfall.as_ref().unwrap().free_in_ms, Some(2 * HOUR_MS));
    assert!(
        found.nearest.iter().any(|near| near.misses[0].contains("beside 2 leases")),
        "{:#?}",
        found.nearest
    );
}

fn rules(world: &mut World, device: DeviceId, rules: OwnerRules) {
    let change = DeviceChange { rules: Some(rules), ..DeviceChange::default() };
    world.must(Actor::Wallet(SUPPLIER), CommandBody::ChangeDevice { device, change });
}

#[test]
fn a_supplier_hears_why_his_device_gets_no_work() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let cheap = world.gpu_device(200_000, L4, 2, Tier::Medium);
    let dear = world.gpu_device(900_000, L4, 2, Tier::Medium);
    world.running(&gpu_request(1, 1, L4));
    world.running(&Request { tier: Some(Tier::Low), ..request(1) });
    let found = explain_device::device(&world.state, dear, world.now_ms).unwrap();
    assert_eq!((found.closed.len(), found.rivals, found.cheaper), (0, 1, 1));
    assert_eq!(found.orders.len(), 2);
    assert!(found.orders.iter().all(|order| !order.got && !order.why.is_empty()));
    assert!(found.orders.iter().any(|order| order.why[0].starts_with("others were cheaper")), "{found:#?}");
    assert!(found.advice[0].contains("the cheapest are hired first"), "{:?}", found.advice);
    let found = explain_device::device(&world.state, cheap, world.now_ms).unwrap();
    assert!(found.orders.iter().any(|order| order.got) && found.hired_ppm.is_some());
    rules(&mut world, dear, OwnerRules { paused: true, ..OwnerRules::default() });
    let found = explain_device::device(&world.state, dear, world.now_ms).unwrap();
    assert_eq!(found.closed, ["it is paused by its owner"]);
    assert!(found.advice[0].contains("resume"));
    assert_eq!(
        explain_device::device(&world.state, DeviceId::from_parts(1, 1), 0).unwrap_err().code(),
        "unknown_device"
    );
}

#[test]
fn the_board_has_each_class_with_trades_history_and_competitors() {
    let mut world = world();
    world.running(&gpu_request(1, 1, A100));
    world.now_ms += 3 * HOUR_MS;
    let all = board::prices(&world.state, None, world.now_ms);
    assert_eq!(all.len(), 3);
    let found = board::prices(&world.state, Some("a100"), world.now_ms);
    let [a100] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((a100.devices, a100.open_devices, a100.units_millis, a100.free_millis), (1, 1, 4000, 3000));
    assert_eq!((a100.hired_ppm, a100.lowest_ask, a100.trades.len()), (250_000, Some(Rate(800_000)), 1));
    assert_eq!((a100.market, a100.hours.len()), (Some(Rate(760_000)), 3));
    assert!(a100.elsewhere.is_some() && a100.competitors.len() > 3);
    assert!(board::prices(&world.state, Some("b200"), world.now_ms).is_empty());
}

fn any_request() -> impl Strategy<Value = Request> {
    let size = (1u32..5, 0u32..5, 1u32..5, 1u64..20, 0u64..40);
    let conditions = (
        0usize..4,
        0usize..5,
        0usize..3,
        prop::bool::ANY,
        prop::bool::ANY,
        prop::option::of(1u64..4_000_000),
    );
    (size, conditions).prop_map(
        |((members, gpus, cpus, memory, disk), (model, tier, tags, spread, egress, cap))| {
            let per_member = Resources {
                cpu_millis: cpus * 500,
                memory_bytes: memory * GIB / 2,
                disk_bytes: disk * GIB,
                gpus,
                ..Resources::default()
            };
            let names = [None, Some(A100), Some(L4), Some("NVIDIA B200")];
            let tiers = [None, Some(Tier::Low), Some(Tier::Medium), Some(Tier::High), Some(Tier::Ultra)];
            let sets: [&[&str]; 3] = [&[], &["region.us"], &["region.eu", "fast"]];
            Request {
                per_member,
                gpu_model: names[model].map(str::to_owned),
                tier: tiers[tier],
                tags: sets[tags].iter().map(|tag| (*tag).to_owned()).collect(),
                spread,
                egress: if egress { Egress::Off } else { Egress::On },
                max_rate: cap.map(Rate),
                ..request(members)
            }
        },
    )
}

/// What else may be wished for.
fn any_wish() -> impl Strategy<Value = Request> {
    let where_to = (0usize..4, 0usize..3, 0usize..3);
    let what =
        (0u64..3, prop::option::of(0u64..3000), prop::option::of(80u8..101), prop::option::of(1u32..3));
    let who = (prop::bool::ANY, prop::bool::ANY, prop::option::of(1_000u64..9_000_000), 0usize..3);
    (any_request(), where_to, what, who).prop_map(|(request, (region, not, isolation), what, who)| {
        let (memory, bandwidth, reliability, most) = (what.0, what.1, what.2, what.3);
        let (only, no, total, kind) = who;
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let regions: [&[&str]; 4] = [&[], &[], &["us"], &["eu", "sa"]];
        let denied: [&[&str]; 3] = [&[], &["eu"], &["us", "eu"]];
        let gpu_min = GpuMinimum {
            memory_bytes: memory * 60 * GIB,
            bandwidth_gb_s: bandwidth.unwrap_or(0),
            fp16_gflops: 0,
        };
        Request {
            regions: set(regions[region]),
            not_regions: set(denied[not]),
            isolation: [None, Some(Isolation::Limits), Some(Isolation::OneTenant)][isolation],
            gpu_min: if request.per_member.gpus > 0 { gpu_min } else { GpuMinimum::default() },
            min_reliability_percent: reliability,
            max_per_device: most.filter(|_| !request.spread),
            suppliers: if only { [OTHER].into() } else { BTreeSet::new() },
            not_suppliers: if no { [SUPPLIER].into() } else { BTreeSet::new() },
            max_total_micro_usd: total,
            kind: WorkKind::ALL[kind],
            ..request
        }
    })
}

/// Every wish alone has its relaxation, with what would do.
#[test]
fn every_wish_that_removes_all_is_named_with_what_would_do() {
    let mut world = world();
    let one = || gpu_request(1, 1, L4);
    let set = |name: &str| BTreeSet::from([name.to_owned()]);
    for (wanted, condition, to, removed) in [
        (Request { regions: set("eu"), ..one() }, Condition::Regions, "eu or us", "region eu"),
        (Request { not_regions: set("us"), ..one() }, Condition::Residency, "any", "provably not in us"),
        (
            Request { isolation: Some(Isolation::OneTenant), ..one() },
            Condition::Isolation,
            "process",
            "isolation one-tenant",
        ),
        (
            Request { gpu_min: GpuMinimum { bandwidth_gb_s: 1000, ..GpuMinimum::default() }, ..one() },
            Condition::GpuMinimum,
            "300 GB/s",
            "at least 1000 GB/s",
        ),
        (
            Request { gpu_min: GpuMinimum { memory_bytes: 100 * GIB, ..GpuMinimum::default() }, ..one() },
            Condition::GpuMinimum,
            "81920 MiB memory",
            "at least 102400 MiB",
        ),
        (Request { cpu_model: Some("epyc".into()), ..one() }, Condition::CpuModel, "any", "CPU model epyc"),
        (Request { suppliers: [OTHER].into(), ..one() }, Condition::Suppliers, "any", "suppliers"),
        (Request { not_suppliers: [SUPPLIER].into(), ..one() }, Condition::Suppliers, "any", "suppliers"),
    ] {
        let found = explained(&mut world, &wanted);
        let counts = &found.shortfall.as_ref().unwrap().removed;
        assert!(counts.iter().any(|one| one.constraint.contains(removed)), "{removed} of {counts:?}");
        let single = found.relaxations.iter().find(|one| one.changes.len() == 1);
        let single = &single.unwrap_or_else(|| panic!("{condition:?} of {found:#?}")).changes[0];
        assert_eq!((single.condition, single.to.as_str()), (condition, to));
        assert!(found.nearest[0].misses.len() == 1 && !found.nearest[0].misses[0].is_empty());
    }
    let capped = Request { max_total_micro_usd: Some(1), ..one() };
    assert_eq!(world.quote(&capped).unwrap_err().code(), "over_total_cap");
    let found = explained(&mut world, &capped);
    assert_eq!(conditions(&found)[0], [Condition::TotalCap]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is asked for and hired: apply the relaxation and it fits.
    #[test]
    fn relaxations_are_true(wanted in any_wish(), hired in prop::collection::vec(any_request(), 0..3), closed in 0u8..8) {
        let mut world = world();
        world.gpu_device(400_000, L4, 1, Tier::Low);
        for other in hired {
            if world.quote(&other).is_ok() {
                world.running(&other);
            }
        }
        let devices: Vec<_> = world.state.devices.keys().copied().collect();
        for (n, device) in devices.iter().enumerate().take(3) {
            if closed & (1 << n) != 0 {
                rules(&mut world, *device, OwnerRules { no_egress: true, ..OwnerRules::default() });
            }
        }
        let found = explain::request(&world.state, RENTER, &wanted, world.now_ms).unwrap();
        prop_assert_eq!(found.fits, world.quote(&wanted).is_ok());
        if !found.fits {
            true_in(&mut world, &found);
        }
        prop_assert_eq!(&found, &explain::request(&world.state, RENTER, &wanted, world.now_ms).unwrap());
    }
}
