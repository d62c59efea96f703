//! Prices: the worked examples, what bounds them, and what a quote holds.

use std::collections::BTreeMap;

use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::device::{Alternative, DeviceChange, Tier};
use ionet_domain::market::competitors::{Feed, PricePoint};
use ionet_domain::market::price::{DecidedBy, Pricer, duration_factor_percent};
use ionet_domain::market::{Buy, PriceParams, Quote, Request, explain};
use ionet_domain::money::{HOUR_MS, Rate};
use ionet_domain::order::size::OrderChange;
use ionet_domain::{Address, DeviceId, Params};
use proptest::prelude::*;

use super::world::{RENTER, SUPPLIER, World, gpu_request, request};

const A100: &str = "NVIDIA A100-SXM4-80GB";

/// 16 x A100, ultra, US, one week at $1.232 an hour is $3,311.6 before fees.
#[test]
fn the_worked_example_of_a_week_holds() {
    let mut world = World::new();
    for _ in 0..2 {
        world.gpu_device(1_540_000, A100, 8, Tier::Ultra);
    }
    let mut wanted = gpu_request(16, 1, A100);
    wanted.per_member.cpu_millis = 100;
    wanted.per_member.memory_bytes = 512 << 20;
    wanted.duration_ms = 7 * 24 * HOUR_MS;
    wanted.tier = Some(Tier::Ultra);
    wanted.tags.insert("region.us".into());
    let quote = world.quote(&wanted).unwrap();
    assert_eq!(quote.items.len(), 16);
    assert!(quote.items.iter().all(|item| item.rate == Rate(1_232_000)));
    assert_eq!(quote.compute_micro_usd, 3_311_616_000);
    assert_eq!(quote.pricing.len(), 1);
    assert_eq!(quote.pricing[0].decided_by, DecidedBy::Ask);
    let lines = quote.lines.unwrap();
    assert_eq!(lines.total_micro_usd(), quote.total_micro_usd);
    assert_eq!(lines.compute_micro_usd - lines.discount_micro_usd, 3_311_616_000);
    let elsewhere = quote.elsewhere.unwrap();
    assert_eq!((elsewhere.micro_usd, elsewhere.date.as_str()), (16 * 168 * 2_450_000, "2026-03"));
}

/// An hour of one GPU at medium connectivity before anything was hired: the reference rates.
#[test]
fn the_reference_rates_hold() {
    for (model, rate) in [
        (A100, 760_000),
        ("NVIDIA GeForce RTX 4090", 370_000),
        ("NVIDIA GeForce RTX 3080", 200_000),
        ("NVIDIA RTX A6000", 750_000),
        ("NVIDIA RTX A4000", 230_000),
    ] {
        let mut world = World::new();
        world.gpu_device(10_000, model, 1, Tier::Medium);
        let quote = world.quote(&gpu_request(1, 1, model)).unwrap();
        assert_eq!((quote.rate, quote.pricing[0].decided_by), (Rate(rate), DecidedBy::Market), "{model}");
        assert_eq!(quote.pricing[0].reference.as_ref().unwrap().0, Rate(rate));
    }
}

fn with_table(table: Option<PriceParams>) -> World {
    let mut world = World::new();
    world.state = ionet_domain::State::default();
    world.must(Actor::Server, CommandBody::Found { params: Params { price: table, ..Params::default() } });
    world.must(Actor::Server, CommandBody::BeginTerm { above: 0 });
    world
}

#[test]
fn without_a_table_the_asks_alone_count() {
    let mut world = with_table(None);
    world.gpu_device(10_000, A100, 1, Tier::Ultra);
    assert_eq!(world.quote(&gpu_request(1, 1, A100)).unwrap().rate, Rate(10_000));
    assert_eq!(world.state.market, None);
    assert_eq!(world.refused(Actor::Server, CommandBody::SetLoads), "no_change");
}

#[test]
fn each_factor_is_in_the_quote_and_does_what_it_says() {
    let mut table = PriceParams::default();
    table.region_ppm.insert("us".into(), 1_200_000);
    table.disk_micro_usd_per_gib_month = 73_000;
    let mut world = with_table(Some(table));
    world.gpu_device(10_000, A100, 8, Tier::Ultra);
    let mut wanted = gpu_request(1, 8, A100);
    wanted.duration_ms = 24 * HOUR_MS;
    let quote = world.quote(&wanted).unwrap();
    let how = &quote.pricing[0];
    let factors: BTreeMap<_, _> = how.factors.iter().map(|f| (f.name.as_str(), f.ppm)).collect();
    for (name, ppm) in [
        ("performance", 1_000_000),
        ("connectivity", 1_100_000),
        ("region", 1_200_000),
        ("reliability", 1_000_000),
        ("load", 1_000_000),
        ("hours", 1_000_000),
        ("count", 980_000),
        ("commitment", 900_000),
    ] {
        assert_eq!(factors[name], ppm, "{name}");
    }
    // 0.76 x 1.1 x 1.2 x 0.98 x 0.9 = 0.8848224, eight of them, and 1 GiB of disk at 100 micro-USD an hour.
    assert_eq!(how.rate, Rate(7_078_579 + 100));
    assert_eq!(how.list_rate, Rate(8_025_600 + 100));
    let lines = quote.lines.unwrap();
    assert_eq!(lines.disk_micro_usd, 2400);
    assert_eq!(lines.discount_micro_usd, (8_025_600 - 7_078_579) * 24);
    assert_eq!(lines.total_micro_usd(), quote.total_micro_usd);
}

fn set_other_use(world: &mut World, device: DeviceId, revenue: u64, power: u64) {
    let alternative = Some(Alternative { revenue_per_unit: Rate(revenue), power_micro_usd_per_kwh: power });
    let change = DeviceChange { alternative, ..DeviceChange::default() };
    world.must(Actor::Wallet(SUPPLIER), CommandBody::ChangeDevice { device, change });
}

#[test]
fn the_floor_of_other_use_is_never_discounted() {
    let mut world = World::new();
    let device = world.gpu_device(10_000, A100, 8, Tier::Ultra);
    // 400 W at $0.25 a kWh is $0.10, and $0.90 elsewhere.
    set_other_use(&mut world, device, 900_000, 250_000);
    let mut wanted = gpu_request(1, 2, A100);
    wanted.duration_ms = 7 * 24 * HOUR_MS;
    let quote = world.quote(&wanted).unwrap();
    assert_eq!((quote.rate, quote.pricing[0].decided_by), (Rate(2_000_000), DecidedBy::Floor));
    set_other_use(&mut world, device, 0, 0);
    assert_eq!(world.quote(&wanted).unwrap().pricing[0].decided_by, DecidedBy::Market);
}

/// A price is a promise: where the market moves between quote and order, the quoted rate stands.
#[test]
fn the_promised_rate_is_paid_whatever_the_market_does_meanwhile() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let device = world.gpu_device(10_000, A100, 2, Tier::Ultra);
    let quote = world.quote(&gpu_request(1, 1, A100)).unwrap();
    let promised = quote.rate;
    world.now_ms += 30_000;
    let order = world.order_quoted(quote).unwrap();
    world.must(Actor::Server, CommandBody::Place { order });
    let lease = &world.state.orders[&order].leases[&0];
    assert_eq!((lease.device, lease.rate), (device, promised));
    let known = &world.state.market.as_ref().unwrap().classes[A100];
    assert_eq!((known.supply_millis, known.hired_millis), (2000, 1000));
    assert_eq!(known.trades.back().unwrap().per_unit, promised);
}

#[test]
fn a_device_that_loses_leases_is_worth_less_until_it_keeps_some() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let device = world.gpu_device(10_000, A100, 1, Tier::Medium);
    let wanted = gpu_request(1, 1, A100);
    let order = world.running(&wanted);
    let lease = ionet_domain::LeaseId { order, n: 0 };
    world.must(Actor::Device(device), CommandBody::ReportLost { lease, reason: "power".into() });
    assert_eq!(world.state.market.as_ref().unwrap().served[&device].lost, 1);
    let after = world.quote(&wanted).unwrap().rate;
    assert_eq!(after, Rate(760_000 * 952_380 / 1_000_000), "20 of 21");
}

#[test]
fn feeds_count_from_trusted_signers_only_and_once() {
    let signer = Address([9; 32]);
    let table = PriceParams { feed_signers: [signer].into(), ..PriceParams::default() };
    let mut world = with_table(Some(table));
    world.gpu_device(10_000, A100, 1, Tier::Medium);
    let point = |rate| PricePoint { model: "A100 80GB SXM".into(), provider: "x".into(), rate: Rate(rate) };
    let feed = |signer, at_ms| Feed { signer, at_ms, source: "seen".into(), points: vec![point(2_000_000)] };
    let take = |feed| CommandBody::TakeFeed { feed, signature: "00".into() };
    let now_ms = world.now_ms;
    assert_eq!(world.refused(Actor::Server, take(feed(Address([8; 32]), now_ms))), "not_allowed");
    assert_eq!(world.refused(Actor::Wallet(signer), take(feed(signer, now_ms))), "not_allowed");
    world.must(Actor::Server, take(feed(signer, now_ms)));
    assert_eq!(world.refused(Actor::Server, take(feed(signer, now_ms))), "no_change");
    let elsewhere = world.quote(&gpu_request(1, 1, A100)).unwrap().elsewhere.unwrap();
    assert_eq!((elsewhere.median_per_gpu, elsewhere.prices), (Rate(2_000_000), 2));
    assert!(*elsewhere.date > *"2026-03", "{}", elsewhere.date);
}

fn class_rate(world: &World) -> u64 {
    let class = ionet_domain::device::HardwareClass::Gpu(A100.into());
    Pricer::new(&world.state, world.now_ms).class_rate(&class).unwrap().0
}

/// One hour's quote for one GPU of the model, whether or not one is free.
fn market_rate(world: &World, wanted: &Request) -> u64 {
    let pricer = Pricer::new(&world.state, world.now_ms);
    let (id, device) = world.state.devices.iter().next().unwrap();
    pricer.price(*id, device, wanted).market_per_unit.unwrap().0
}

#[test]
fn the_load_follows_what_is_hired_one_bounded_step_an_hour() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000_000);
    world.gpu_device(10_000, A100, 4, Tier::Medium);
    assert_eq!(world.refused(Actor::Server, CommandBody::SetLoads), "no_change", "no full hour is known yet");
    let mut wanted = gpu_request(1, 4, A100);
    wanted.duration_ms = 12 * HOUR_MS;
    world.running(&wanted);
    let mut rates = vec![class_rate(&world)];
    for _ in 0..10 {
        world.now_ms += HOUR_MS;
        let _ = world.ask(Actor::Server, CommandBody::SetLoads);
        assert_eq!(world.refused(Actor::Server, CommandBody::SetLoads), "no_change", "once an hour");
        rates.push(class_rate(&world));
    }
    assert!(rates.windows(2).all(|pair| pair[0] <= pair[1]), "{rates:?}");
    // The gap to the competitors' median counts up to a half, a tenth of which is taken over.
    assert_eq!(rates.last(), Some(&(760_000 * 1_417_500 / 1_000_000)), "{rates:?}");
}

fn quoted(ask: u64, floor: u64, units: u32, hours: u64, load: u32) -> (World, Quote) {
    let mut world = World::new();
    let device = world.gpu_device(ask, A100, units, Tier::Medium);
    set_other_use(&mut world, device, floor, 0);
    let market = world.state.market.as_mut().unwrap();
    market.loads_set(&BTreeMap::from([(A100.to_owned(), load)]), 0);
    let wanted = Request { duration_ms: hours * HOUR_MS, ..gpu_request(1, units, A100) };
    let quote = world.quote(&wanted).unwrap();
    (world, quote)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Never under the ask or the floor, whatever the load; and the quote adds up.
    #[test]
    fn nobody_gets_less_than_he_asked_for(
        ask in 1u64..5_000_000, floor in 0u64..5_000_000, units in 1u32..16, hours in 1u64..400, load in 100_000u32..3_000_000
    ) {
        let (_, quote) = quoted(ask, floor, units, hours, load);
        let percent = u64::from(duration_factor_percent(hours * HOUR_MS));
        prop_assert!(quote.rate.0 >= ask * u64::from(units) * percent / 100);
        prop_assert!(quote.rate.0 >= floor * u64::from(units));
        let lines = quote.lines.clone().unwrap();
        prop_assert_eq!(lines.total_micro_usd(), quote.total_micro_usd);
        let mut again = quote.clone();
        again.add_up();
        prop_assert_eq!(again, quote);
    }

    /// Whatever is hired when, for whatever hours: an hour moves the market rate by at most what the table allows.
    #[test]
    fn an_hour_moves_the_rate_by_no_more_than_the_table_allows(
        steps in prop::collection::vec((0u64..3 * HOUR_MS, prop::bool::ANY), 4..40)
    ) {
        let mut world = World::new();
        world.fund(RENTER, u64::MAX >> 8);
        world.gpu_device(1, A100, 2, Tier::Medium);
        let most = u64::from(PriceParams::default().max_change_ppm_per_hour) * 760_000 / 1_000_000 + 2;
        let wanted = gpu_request(1, 1, A100);
        let mut seen: Vec<(u64, u64)> = Vec::new();
        let mut open = Vec::new();
        for (pause_ms, hire) in steps {
            world.now_ms += pause_ms;
            let _ = world.ask(Actor::Server, CommandBody::SetLoads);
            if hire && open.len() < 2 {
                open.push(world.running(&Request { duration_ms: 400 * HOUR_MS, ..wanted.clone() }));
            } else if let Some(order) = open.pop() {
                world.must(Actor::Wallet(RENTER), CommandBody::Close { order, reason: ionet_domain::order::CloseReason::Renter });
                world.removed(ionet_domain::LeaseId { order, n: 0 });
            }
            let rate = market_rate(&world, &wanted);
            for (at_ms, before) in &seen {
                let hours = (world.now_ms - at_ms) / HOUR_MS + 1;
                prop_assert!(rate.abs_diff(*before) <= most * hours, "{before} to {rate} within {hours} h");
            }
            seen.push((world.now_ms, rate));
        }
    }
}

/// The one who asks least is of the dearer class: the renter is quoted the cheaper one, and what he orders costs no more.
#[test]
fn a_request_that_takes_several_classes_costs_what_the_cheapest_does() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let dear = world.gpu_device(10_000, A100, 1, Tier::Medium);
    world.gpu_device(20_000, "NVIDIA GeForce RTX 3080", 1, Tier::Medium);
    let wanted = Request { gpu_model: None, ..gpu_request(1, 1, A100) };
    let quote = world.quote(&wanted).unwrap();
    assert_eq!(quote.rate, Rate(200_000));
    let order = world.order_quoted(quote).unwrap();
    world.must(Actor::Server, CommandBody::Place { order });
    let lease = &world.state.orders[&order].leases[&0];
    assert_eq!((lease.device, lease.rate), (dear, Rate(200_000)));
    // Who wants no GPU pays for none.
    let no_gpu = Request { duration_ms: HOUR_MS, ..request(1) };
    assert_eq!(world.quote(&no_gpu).unwrap().rate, Rate(10_000));
}

#[test]
fn a_class_without_a_reference_goes_by_the_ask_and_says_so() {
    let mut world = World::new();
    world.device(SUPPLIER, 100_000);
    let quote = world.quote(&request(1)).unwrap();
    let how = &quote.pricing[0];
    assert_eq!((quote.rate, how.decided_by, &how.reference), (Rate(100_000), DecidedBy::Ask, &None));
    assert!(how.factors.is_empty() && quote.elsewhere.is_none());
}

#[test]
fn a_budget_lasts_as_long_as_it_pays() {
    let mut world = World::new();
    world.fund(RENTER, 100_000_000);
    world.gpu_device(1_000_000, A100, 8, Tier::Ultra);
    let open =
        |budget| Request { open_ended: true, max_total_micro_usd: Some(budget), ..gpu_request(2, 1, A100) };
    let expires_ms = world.now_ms + HOUR_MS;
    let of = |buy, wanted: Request| Request { buy, max_rate: Some(Rate(3_000_000)), ..wanted };
    for wanted in [
        open(1_000_000),
        open(20_000_000),
        // Long enough for a discount, which makes it longer still.
        open(200_000_000),
        of(Buy::Standing { expires_ms }, open(5_000_000)),
        of(Buy::Spot { notice_ms: 120_000, expires_ms: None }, open(5_000_000)),
    ] {
        let quote = world.quote(&wanted).unwrap();
        let budget = wanted.max_total_micro_usd.unwrap();
        let least = budget - quote.rate.0 / 1000;
        assert!((least..=budget).contains(&quote.total_micro_usd), "{wanted:?}: {}", quote.total_micro_usd);
        assert_eq!(world.quote(&quote.request).unwrap().total_micro_usd, quote.total_micro_usd);
    }
    let month = world.quote(&open(200_000_000)).unwrap().request.duration_ms;
    assert!(month > 10 * world.quote(&open(20_000_000)).unwrap().request.duration_ms);
    for (wrong, code) in [
        (open(10), "over_total_cap"),
        (Request { max_total_micro_usd: None, ..open(1) }, "out_of_range"),
        (of(Buy::Flexible { deadline_ms: expires_ms }, open(1_000_000)), "out_of_range"),
        (
            of(Buy::Standing { expires_ms }, Request { open_ended: false, ..open(1_000_000) }),
            "over_total_cap",
        ),
    ] {
        assert_eq!(world.quote(&wrong).unwrap_err().code(), code, "{wrong:?}");
    }
    let order = world.running(&open(1_000_000));
    let extend = CommandBody::Extend { order, added_ms: HOUR_MS };
    assert_eq!(world.refused(Actor::Wallet(RENTER), extend.clone()), "over_total_cap");
    let change = OrderChange { max_total_micro_usd: Some(5_000_000), ..OrderChange::default() };
    world.must(Actor::Wallet(RENTER), CommandBody::ChangeOrder { order, change });
    world.must(Actor::Wallet(RENTER), extend);
    let none = OrderChange { max_total_micro_usd: Some(0), ..OrderChange::default() };
    let none = CommandBody::ChangeOrder { order, change: none };
    assert_eq!(world.refused(Actor::Wallet(RENTER), none), "out_of_range");
}

proptest! {
    /// An open-ended quote never costs more than its budget, and what explains a refusal of one is true.
    #[test]
    fn budgets_are_kept(asks in prop::collection::vec(1_000u64..2_000_000, 1..5), members in 1u32..7, budget in 1u64..1 << 36) {
        let mut world = World::new();
        for ask in asks {
            world.device(SUPPLIER, ask);
        }
        let wanted = Request { open_ended: true, max_total_micro_usd: Some(budget), ..request(members) };
        if let Ok(quote) = world.quote(&wanted) {
            prop_assert!(quote.total_micro_usd <= budget);
        } else {
            let found = explain::request(&world.state, RENTER, &wanted, world.now_ms).unwrap();
            prop_assert!(!found.fits);
            for relaxed in found.relaxations {
                let quote = world.quote(&relaxed.request);
                prop_assert_eq!(quote.map(|quote| quote.total_micro_usd), Ok(relaxed.total_micro_usd));
            }
        }
    }
}
