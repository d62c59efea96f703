//! Orders that wait: the line, its fairness, who holds, expiry, and the price of the moment.

use std::collections::BTreeSet;

use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::device::Tier;
use ionet_domain::market::queue::{self, HOLD_AFTER_MS};
use ionet_domain::market::{Buy, Priority, Request, Wants};
use ionet_domain::money::{HOUR_MS, Rate};
use ionet_domain::order::CloseReason;
use ionet_domain::order::size::OrderChange;
use ionet_domain::{LeaseId, OrderId, Stage};
use proptest::prelude::*;

use crate::world::{RENTER, START_MS, SUPPLIER, World, gpu_request, request};

const L4: &str = "NVIDIA L4";

fn standing(wanted: Request, cap: u64, for_ms: u64, now_ms: u64) -> Request {
    let buy = Buy::Standing { expires_ms: now_ms + for_ms };
    Request { max_rate: Some(Rate(cap)), buy, ..wanted }
}

/// What the server does about the line once a second.
fn tick(world: &mut World) {
    if queue::holder_due(&world.state, world.now_ms) != world.state.holder {
        world.must(Actor::Server, CommandBody::Hold);
    }
    let over = queue::over(&world.state, world.now_ms);
    for order in over.into_iter().chain(queue::placeable(&world.state, world.now_ms)) {
        // One that was placed before in the same round may have taken its devices.
        let _ = world.ask(Actor::Server, CommandBody::Place { order });
    }
}

fn stage(world: &World, order: OrderId) -> Stage {
    world.state.order(order).unwrap().stage
}

/// Starts an order that has its devices, and lets it run until it is over and settled.
fn run(world: &mut World, order: OrderId) {
    world.must(Actor::Server, CommandBody::Start { order });
    let leases: Vec<_> = world.state.order(order).unwrap().leases.keys().copied().collect();
    for n in leases {
        world.ready(LeaseId { order, n });
    }
    world.must(Actor::Server, CommandBody::MarkRunning { order });
}

fn end(world: &mut World, order: OrderId) {
    world.must(Actor::Server, CommandBody::Close { order, reason: CloseReason::Time });
    let leases: Vec<_> = world.state.order(order).unwrap().leases.keys().copied().collect();
    for n in leases {
        world.removed(LeaseId { order, n });
    }
    world.must(Actor::Server, CommandBody::Settle { order });
}

#[test]
fn a_standing_order_is_placed_when_hardware_comes_at_the_price_of_that_moment() {
    let mut world = World::new();
    world.fund(RENTER, 100_000_000);
    let wanted = standing(request(2), 1_000_001, 8 * HOUR_MS, world.now_ms);
    let quote = world.quote(&wanted).unwrap();
    assert_eq!(quote.items.iter().map(|item| item.rate.0).collect::<Vec<_>>(), [500_000, 500_001]);
    assert!(
        quote.items.iter().all(|item| item.device.is_none())
            && quote.outlook.clone().unwrap().now_rate.is_none()
    );
    let order = world.order_quoted(quote).unwrap();
    assert_eq!(world.wallet(RENTER), 100_000_000 - world.state.order(order).unwrap().escrow_micro_usd);
    tick(&mut world);
    let told = queue::explain(&world.state, world.state.order(order).unwrap(), world.now_ms).unwrap();
    assert_eq!((told.place, told.of, told.holds), (1, 1, None));
    assert!(told.reason.contains("0 of 2 members fit"), "{}", told.reason);
    // Too dear at first.
    let device = world.device(SUPPLIER, 600_000);
    tick(&mut world);
    let told = queue::explain(&world.state, world.state.order(order).unwrap(), world.now_ms).unwrap();
    assert_eq!(told.reason, "it waits for its price: $1.20/h now, the cap is $1.000001/h");
    world.device(SUPPLIER, 100_000);
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Placed);
    let found = world.state.order(order).unwrap();
    assert!(found.leases.values().all(|lease| lease.rate == Rate(100_000) && lease.device != device));
    run(&mut world, order);
    world.now_ms += HOUR_MS;
    let n = LeaseId { order, n: 0 };
    world.meter(n, HOUR_MS, ionet_domain::meter::Witness::Heartbeats).unwrap();
    end(&mut world, order);
    assert_eq!(world.wallet(RENTER), 100_000_000 - 100_250);
}

#[test]
fn the_market_rate_counts_and_not_the_ask_alone() {
    let mut world = World::new();
    world.fund(RENTER, 100_000_000);
    let dear = world.gpu_device(10_000, L4, 1, Tier::Ultra);
    let at = |cap| standing(gpu_request(1, 1, L4), cap, HOUR_MS, START_MS);
    let now = world.quote(&at(9_000_000)).unwrap().outlook.unwrap().now_rate.unwrap();
    let order = world.order(&at(now.0 - 1)).unwrap();
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Funded, "the ask is within the cap and the price is not");
    // A device with slower links costs less, whatever it asks.
    let slow = world.gpu_device(20_000, L4, 1, Tier::Basic);
    tick(&mut world);
    let lease = &world.state.order(order).unwrap().leases[&0];
    assert!(lease.device == slow && lease.device != dear && lease.rate < now);
}

#[test]
fn waiting_ends_with_everything_given_back() {
    let mut world = World::new();
    world.fund(RENTER, 10_000_000);
    let order = world.order(&standing(request(1), 50_000, HOUR_MS, START_MS)).unwrap();
    world.now_ms += HOUR_MS - 1;
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Funded);
    world.now_ms += 1;
    tick(&mut world);
    assert_eq!(world.state.order(order).unwrap().reason, Some(CloseReason::Expired));
    world.must(Actor::Server, CommandBody::Settle { order });
    assert_eq!(world.wallet(RENTER), 10_000_000);
    for (wanted, field) in [
        (standing(request(1), 50_000, 0, world.now_ms), "expires_ms"),
        (standing(request(1), 50_000, 91 * 24 * HOUR_MS, world.now_ms), "expires_ms"),
        (standing(request(4), 3, HOUR_MS, world.now_ms), "max_rate"),
        (Request { max_rate: None, ..standing(request(4), 3, HOUR_MS, world.now_ms) }, "max_rate"),
    ] {
        let refused = world.quote(&wanted).unwrap_err().to_string();
        assert!(refused.starts_with(field), "{refused}");
    }
}

/// A stream of small orders, each as soon as there is room, by on-demand and by standing orders; a large one among them.
fn large_among_small(on_demand: bool) -> u64 {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    for _ in 0..4 {
        world.device(SUPPLIER, 100_000);
    }
    let mut running: Vec<(u64, OrderId)> = Vec::new();
    let mut large = None;
    for minute in 0..24 * 60 {
        world.now_ms += 60_000;
        let now_ms = world.now_ms;
        for (_, order) in running.extract_if(.., |(until_ms, _)| *until_ms <= now_ms) {
            end(&mut world, order);
        }
        let small = Request { duration_ms: 40 * 60_000, ..request(1) };
        if on_demand {
            while let Ok(order) = world.order(&small) {
                world.must(Actor::Server, CommandBody::Place { order });
                run(&mut world, order);
                running.push((now_ms + 20 * 60_000 + minute % 20 * 60_000, order));
            }
        } else {
            world.order(&standing(small, 200_000, 3 * HOUR_MS, now_ms)).unwrap();
        }
        if minute == 60 {
            large = Some(world.order(&standing(request(7), 1_400_000, 20 * HOUR_MS, now_ms)).unwrap());
        }
        tick(&mut world);
        let placed: Vec<_> =
            world.state.orders.values().filter(|o| o.stage == Stage::Placed).map(|o| o.id).collect();
        for order in placed {
            if Some(order) == large {
                return (world.now_ms - START_MS) / 60_000 - 61;
            }
            run(&mut world, order);
            running.push((now_ms + 20 * 60_000 + minute % 20 * 60_000, order));
        }
    }
    u64::MAX
}

#[test]
fn a_large_order_among_small_ones_is_placed_within_a_bound() {
    // It begins to hold after its bound and then waits for what runs, which is 40 minutes at most.
    let alone_min = HOLD_AFTER_MS / 60_000 + 40 + 1;
    // Those 61 that have waited longer go first, eight at a time.
    let behind_min = alone_min + 61 * 40 / 8;
    for (on_demand, bound_min) in [(true, alone_min), (false, behind_min)] {
        let took_min = large_among_small(on_demand);
        assert!(took_min <= bound_min, "{took_min} of {bound_min} minutes, on demand {on_demand}");
    }
}

#[test]
fn urgency_is_lifted_by_waiting_and_spent_from_the_fair_share() {
    let hours = |n: u64| n * HOUR_MS;
    let rank = queue::rank_millis;
    assert!(rank(Priority::High, 0) > rank(Priority::Normal, hours(1)));
    assert_eq!(rank(Priority::Normal, hours(2)), rank(Priority::High, 0));
    assert!(rank(Priority::Low, hours(5)) > rank(Priority::High, 0));
    let mut world = World::new();
    world.fund(RENTER, 100_000_000);
    let wish = |priority, at| Request { priority, ..standing(request(1), 9_000, 24 * HOUR_MS, at) };
    let low = world.order(&wish(Priority::Low, START_MS)).unwrap();
    world.now_ms += hours(1);
    let normal = world.order(&wish(Priority::Normal, world.now_ms)).unwrap();
    let high = world.order(&wish(Priority::High, world.now_ms)).unwrap();
    assert_eq!(queue::line(&world.state, world.now_ms), [high, normal, low]);
    assert_eq!(queue::line(&world.state, world.now_ms + hours(1)), [high, low, normal]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Random orders, ends and times: the line is the same each time it is asked for, in an account and class the older is
    /// before the younger, and who is placed over an older one of his account and class fitted where that one did not.
    #[test]
    fn nobody_overtakes_but_by_backfill(steps in prop::collection::vec((1u32..6, 0usize..3, 1u64..120, 0u8..3), 1..30)) {
        let mut world = World::new();
        world.fund(RENTER, 1 << 40);
        for _ in 0..3 {
            world.device(SUPPLIER, 100_000);
        }
        let mut placed: Vec<OrderId> = Vec::new();
        for (members, class, minutes, ends) in steps {
            world.now_ms += minutes * 60_000;
            let wanted = Request { priority: Priority::ALL[class], ..request(members) };
            world.order(&standing(wanted, 2_000_000, 9 * HOUR_MS, world.now_ms)).unwrap();
            for _ in 0..ends {
                if let Some(order) = placed.pop() {
                    run(&mut world, order);
                    end(&mut world, order);
                }
            }
            let line = queue::line(&world.state, world.now_ms);
            prop_assert_eq!(&line, &queue::line(&world.state.clone(), world.now_ms));
            let class_of = |id: &OrderId| {
                let order = world.state.order(*id).unwrap();
                (order.quote.request.priority, queue::rank_millis(order.quote.request.priority,
                    world.now_ms - order.accepted_ms) / 1000, order.accepted_ms)
            };
            for (at, one) in line.iter().enumerate() {
                let mine = class_of(one);
                let older = |other: &&OrderId| {
                    let its = class_of(other);
                    its.0 == mine.0 && its.1 == mine.1 && its.2 < mine.2
                };
                prop_assert!(!line[at..].iter().any(|other| older(&other)));
            }
            tick(&mut world);
            let now = world.state.orders.values().filter(|order| order.stage == Stage::Placed);
            placed = now.map(|order| order.id).collect();
            // Whoever is first in line and fits is never left waiting.
            if let Some(first) = queue::line(&world.state, world.now_ms).first() {
                prop_assert!(!queue::placeable(&world.state, world.now_ms).contains(first));
            }
        }
    }
}

fn spot(wanted: Request, bid: u64) -> Request {
    let buy = Buy::Spot { notice_ms: 120_000, expires_ms: None };
    Request { max_rate: Some(Rate(bid)), buy, ..wanted }
}

fn started(world: &mut World, request: &Request) -> OrderId {
    let order = world.order(request).unwrap();
    world.must(Actor::Server, CommandBody::Place { order });
    run(world, order);
    order
}

fn noticed(world: &World) -> Vec<OrderId> {
    let orders = world.state.orders.values();
    orders.filter(|order| order.ways.notice.is_some()).map(|order| order.id).collect()
}

#[test]
fn spot_makes_room_with_a_notice_and_the_room_is_kept_for_whom_it_was_made() {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    for _ in 0..3 {
        world.device(SUPPLIER, 100_000);
    }
    // Two members each on two threads' devices: the third keeps an order on demand.
    let low = started(&mut world, &spot(request(2), 210_000));
    let high = started(&mut world, &spot(request(2), 900_000));
    let firm = started(&mut world, &request(2));
    assert_eq!(
        world.quote(&spot(request(1), 900_000)).unwrap_err().code(),
        "no_capacity",
        "spot ends no spot"
    );
    let quote = world.quote(&request(2)).unwrap();
    assert_eq!(quote.outlook.as_ref().unwrap().room_in_ms, Some(120_000));
    let order = world.order_quoted(quote).unwrap();
    world.must(Actor::Server, CommandBody::Place { order });
    assert_eq!(noticed(&world), [low], "one order is enough, the one with the lower bid");
    assert_eq!(world.refused(Actor::Server, CommandBody::Place { order }), "no_change");
    let close = |order| CommandBody::Close { order, reason: CloseReason::Preempted };
    assert_eq!(world.refused(Actor::Server, close(low)), "not_yet");
    assert_eq!(world.refused(Actor::Server, close(high)), "no_change");
    world.now_ms += 120_000;
    world.must(Actor::Server, close(low));
    world.removed(LeaseId { order: low, n: 0 });
    world.removed(LeaseId { order: low, n: 1 });
    // What came free is not for others, spot or not.
    assert_eq!(world.order(&spot(request(1), 900_000)).unwrap_err().code(), "no_capacity");
    world.must(Actor::Server, CommandBody::Place { order });
    assert_eq!(stage(&world, order), Stage::Placed);
    assert_eq!((stage(&world, high), stage(&world, firm)), (Stage::Running, Stage::Running));
    assert_eq!(world.state.order(low).unwrap().reason, Some(CloseReason::Preempted));
}

#[test]
fn a_spot_lease_follows_the_market_within_its_bid() {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    let device = world.gpu_device(10_000, L4, 1, Tier::Medium);
    let wanted = Request { duration_ms: 20 * HOUR_MS, ..gpu_request(1, 1, L4) };
    let full = world.quote(&wanted).unwrap().rate;
    let order = started(&mut world, &spot(wanted.clone(), full.0));
    let begun = world.state.order(order).unwrap().leases[&0].rate;
    assert!(begun.0.abs_diff(full.0 * 6 / 10) <= 1, "{begun} of {full}");
    let lease = LeaseId { order, n: 0 };
    let witness = || ionet_domain::meter::Witness::Heartbeats;
    let (mut expected, mut at, mut rate) = (0, START_MS, begun);
    let mut hours = 0;
    while noticed(&world).is_empty() {
        world.now_ms += HOUR_MS + 1;
        hours += 1;
        world.must(Actor::Server, CommandBody::SetLoads);
        assert_eq!(queue_reprices(&world), [order]);
        world.must(Actor::Server, CommandBody::Reprice { order });
        if hours % 2 == 0 {
            world.meter(lease, world.now_ms - START_MS, witness()).unwrap();
        }
        let now = world.state.order(order).unwrap().leases[&0].rate;
        expected += rate.total_for(world.now_ms - at);
        (at, rate) = (world.now_ms, now);
        assert!(now > begun && now <= full, "{now}");
        // An ask that is raised while it runs raises nothing.
        let change = ionet_domain::device::DeviceChange {
            ask_per_unit: Some(Rate(begun.0 * 3)),
            ..Default::default()
        };
        if hours == 1 {
            world.must(Actor::Wallet(SUPPLIER), CommandBody::ChangeDevice { device, change });
        }
        if hours == 4 {
            break;
        }
    }
    world.now_ms += HOUR_MS / 2;
    world.meter(lease, world.now_ms - START_MS, witness()).unwrap();
    expected += rate.total_for(world.now_ms - at);
    let charged = world.state.order(order).unwrap().leases[&0].charged_micro_usd;
    assert!(charged <= expected && expected - charged <= 10, "{charged} of {expected}");
}

fn queue_reprices(world: &World) -> Vec<OrderId> {
    ionet_domain::market::spot::reprice_due(&world.state)
}

#[test]
fn a_market_above_the_bid_gives_notice() {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    world.gpu_device(10_000, L4, 1, Tier::Medium);
    let wanted = Request { duration_ms: 20 * HOUR_MS, ..gpu_request(1, 1, L4) };
    let full = world.quote(&wanted).unwrap().rate;
    let bid = full.0 * 6 / 10 + 1;
    let order = started(&mut world, &spot(wanted, bid));
    world.now_ms += HOUR_MS + 1;
    world.must(Actor::Server, CommandBody::SetLoads);
    world.must(Actor::Server, CommandBody::Reprice { order });
    assert_eq!(noticed(&world), [order]);
    assert!(world.state.order(order).unwrap().leases[&0].rate.0 <= bid);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is ordered, only spot is ever given notice.
    #[test]
    fn only_spot_is_preempted(steps in prop::collection::vec((1u32..6, 0u64..5, 1u64..30), 4..24)) {
        let mut world = World::new();
        world.fund(RENTER, 1 << 40);
        for _ in 0..3 {
            world.device(SUPPLIER, 100_000);
        }
        for (members, way, minutes) in steps {
            world.now_ms += minutes * 1_000;
            let wanted = match way {
                0 => request(members),
                1 => standing(request(members), 2_000_000, HOUR_MS, world.now_ms),
                bid => spot(request(members), 150_000 * bid * u64::from(members)),
            };
            if let Ok(order) = world.order(&wanted) {
                let _ = world.ask(Actor::Server, CommandBody::Place { order });
            }
            tick(&mut world);
            for order in ionet_domain::market::spot::over(&world.state, world.now_ms) {
                world.must(Actor::Server, CommandBody::Close { order, reason: CloseReason::Preempted });
                let leases: Vec<_> = world.state.order(order).unwrap().leases.keys().copied().collect();
                for n in leases {
                    world.removed(LeaseId { order, n });
                }
            }
            for order in noticed(&world) {
                let buy = world.state.order(order).unwrap().quote.request.buy;
                prop_assert!(ionet_domain::market::spot::notice_ms(buy).is_some());
            }
            let waiting: Vec<_> = world.state.orders.values().filter(|order| {
                order.stage == Stage::Funded && order.ways.room_until_ms.is_some()
            }).map(|order| order.id).collect();
            for order in waiting {
                let _ = world.ask(Actor::Server, CommandBody::Place { order });
            }
        }
    }
}

fn reserved(wanted: Request, starts_ms: u64) -> Request {
    Request { buy: Buy::Reserved { starts_ms }, ..wanted }
}

#[test]
fn a_window_is_kept_from_whatever_would_overlap_it() {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    world.device(SUPPLIER, 100_000);
    let starts_ms = START_MS + 3 * HOUR_MS;
    let hours = |n: u64, wanted: Request| Request { duration_ms: n * HOUR_MS, ..wanted };
    // Half an hour too late to come back in time; two hours are done by then.
    let order = world.order(&reserved(hours(2, request(2)), starts_ms)).unwrap();
    assert_eq!(world.state.order(order).unwrap().ways.kept.len(), 2);
    assert_eq!(world.order(&hours(3, request(1))).unwrap_err().code(), "no_capacity");
    let standing_over = standing(hours(3, request(1)), 900_000, 9 * HOUR_MS, START_MS);
    let over = world.order(&standing_over).unwrap();
    tick(&mut world);
    assert_eq!(stage(&world, over), Stage::Funded);
    assert_eq!(
        world.quote(&reserved(hours(1, request(1)), starts_ms + HOUR_MS)).unwrap_err().code(),
        "no_capacity"
    );
    world.order(&reserved(hours(2, request(2)), starts_ms + 2 * HOUR_MS + HOUR_MS / 4)).unwrap();
    let short = started(&mut world, &hours(2, request(1)));
    let extend = |added_ms| CommandBody::Extend { order: short, added_ms };
    assert_eq!(world.refused(Actor::Wallet(RENTER), extend(HOUR_MS)), "out_of_range");
    world.must(Actor::Wallet(RENTER), extend(HOUR_MS / 2));
    assert_eq!(world.refused(Actor::Server, CommandBody::Place { order }), "not_yet");
    let told = queue::explain(&world.state, world.state.order(order).unwrap(), world.now_ms).unwrap();
    assert_eq!((told.place, told.estimate_ms), (0, Some(3 * HOUR_MS)));
    world.now_ms = START_MS + 5 * HOUR_MS / 2;
    end(&mut world, short);
    world.must(Actor::Wallet(RENTER), CommandBody::Close { order: over, reason: CloseReason::Renter });
    world.now_ms = starts_ms;
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Placed);
    let rate = world.state.order(order).unwrap().leases[&0].rate;
    assert_eq!(rate, world.state.order(order).unwrap().quote.items[0].rate);
}

#[test]
fn a_window_without_its_device_finds_another_or_ends() {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    let lost = world.device(SUPPLIER, 100_000);
    let starts_ms = START_MS + HOUR_MS;
    let order = world.order(&reserved(request(1), starts_ms)).unwrap();
    let since_ms = world.now_ms;
    let contact = ionet_domain::device::Contact::Unknown { since_ms };
    world.must(Actor::Server, CommandBody::NoteContact { device: lost, contact });
    world.now_ms = starts_ms;
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Funded);
    let other = world.device(SUPPLIER, 100_000);
    tick(&mut world);
    assert_eq!(world.state.order(order).unwrap().leases[&0].device, other);
    let none = world.order(&reserved(request(2), starts_ms + 9 * HOUR_MS));
    assert_eq!(
        none.unwrap_err().code(),
        "no_capacity",
        "spot and ended leases aside, one device has no room for it"
    );
}

#[test]
fn a_flexible_order_runs_in_the_cheap_hours_and_by_its_deadline() {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    let device = world.gpu_device(10_000, L4, 1, Tier::Medium);
    let flexible = |deadline_ms| Request {
        max_rate: Some(Rate(9_000_000)),
        buy: Buy::Flexible { deadline_ms },
        ..gpu_request(1, 1, L4)
    };
    let start = |world: &World, deadline_ms| {
        ionet_domain::market::reserve::flexible_start_ms(
            &world.state,
            &flexible(deadline_ms),
            deadline_ms,
            world.now_ms,
        )
    };
    assert_eq!(start(&world, START_MS + 30 * HOUR_MS), START_MS, "no pattern is known: at once");
    // Hired from noon to six, three days long.
    for day in 0..3 {
        world.now_ms = START_MS + day * 24 * HOUR_MS;
        let busy = Request { duration_ms: 6 * HOUR_MS, ..gpu_request(1, 1, L4) };
        let order = started(&mut world, &busy);
        world.now_ms += 6 * HOUR_MS;
        end(&mut world, order);
    }
    world.now_ms = START_MS + 3 * 24 * HOUR_MS;
    let noon_ms = world.now_ms;
    assert_eq!(start(&world, noon_ms + 30 * HOUR_MS), noon_ms + 6 * HOUR_MS);
    let deadline_ms = noon_ms + 4 * HOUR_MS;
    assert_eq!(start(&world, deadline_ms), noon_ms, "all hours before the deadline are alike");
    let order = world.order(&flexible(noon_ms + 30 * HOUR_MS)).unwrap();
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Funded);
    world.now_ms = noon_ms + 6 * HOUR_MS;
    tick(&mut world);
    assert_eq!(world.state.order(order).unwrap().leases[&0].device, device);
    assert_eq!(world.quote(&flexible(world.now_ms + HOUR_MS)).unwrap_err().code(), "out_of_range");
}

#[test]
fn mega_takes_all_that_matches_within_its_cap() {
    let mut world = World::new();
    for ask in [100_000, 200_000, 300_000] {
        world.device(SUPPLIER, ask);
    }
    let mega = |cap| Request { mega: true, max_rate: cap, ..request(256) };
    let members = |world: &mut World, cap| world.quote(&mega(cap)).unwrap().request.members;
    assert_eq!(members(&mut world, None), 6);
    assert_eq!(members(&mut world, Some(Rate(600_000))), 4);
    assert_eq!(members(&mut world, Some(Rate(100_000))), 1);
    assert_eq!(world.quote(&mega(Some(Rate(99_999)))).unwrap_err().code(), "over_price_cap");
    world.fund(RENTER, 1 << 40);
    let quote = world.quote(&mega(None)).unwrap();
    let order = world.order_quoted(quote).unwrap();
    world.must(Actor::Server, CommandBody::Place { order });
    assert_eq!(world.quote(&mega(None)).unwrap_err().code(), "no_capacity");
    let waiting = standing(mega(Some(Rate(900_000))), 900_000, HOUR_MS, START_MS);
    assert_eq!(world.quote(&waiting).unwrap_err().code(), "out_of_range");
}

fn change(world: &mut World, order: OrderId, change: OrderChange) -> Result<(), &'static str> {
    let body = CommandBody::ChangeOrder { order, change };
    world.ask(Actor::Wallet(RENTER), body).map(|_| ()).map_err(|refusal| refusal.code())
}

#[test]
fn who_waits_may_ask_for_more_or_less_and_pay_more_or_less() {
    let mut world = World::new();
    world.fund(RENTER, 10_000_000);
    world.device(SUPPLIER, 300_000);
    let wanted = Request { gpu_model: None, ..standing(request(2), 400_000, 8 * HOUR_MS, world.now_ms) };
    let order = world.order(&Request { regions: ["eu".into()].into(), ..wanted }).unwrap();
    let set_aside = |world: &World| {
        let found = world.state.order(order).unwrap();
        assert_eq!(world.wallet(RENTER), 10_000_000 - found.quote.total_micro_usd);
        found.quote.rate.0
    };
    tick(&mut world);
    assert_eq!((stage(&world, order), set_aside(&world)), (Stage::Funded, 400_000));
    let cap = |rate| OrderChange { max_rate: Some(Rate(rate)), ..OrderChange::default() };
    for (wrong, code) in [
        (cap(0), "out_of_range"),
        (cap(1), "out_of_range"),
        (cap(400_000), "no_change"),
        (cap(1 << 40), "insufficient_funds"),
    ] {
        assert_eq!(change(&mut world, order, wrong).unwrap_err(), code);
    }
    change(&mut world, order, cap(300_001)).unwrap();
    assert_eq!(set_aside(&world), 300_001);
    change(&mut world, order, cap(700_002)).unwrap();
    assert_eq!(set_aside(&world), 700_002);
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Funded, "no device is there by measurement");
    let anywhere =
        Wants { regions: BTreeSet::new(), ..Wants::from(&world.state.order(order).unwrap().quote.request) };
    let wants = OrderChange { wants: Some(Box::new(anywhere)), ..OrderChange::default() };
    change(&mut world, order, wants.clone()).unwrap();
    assert_eq!(change(&mut world, order, wants), Err("no_change"));
    let urgent = OrderChange { priority: Some(Priority::High), ..OrderChange::default() };
    change(&mut world, order, urgent).unwrap();
    tick(&mut world);
    assert_eq!(stage(&world, order), Stage::Placed);
    let leases: Vec<_> =
        world.state.order(order).unwrap().leases.values().map(|lease| lease.rate.0).collect();
    assert_eq!(leases, [300_000, 300_000]);
    run(&mut world, order);
    assert_eq!(change(&mut world, order, cap(700_001)), Err("out_of_range"), "what ran may have cost more");
    change(&mut world, order, cap(800_000)).unwrap();
    assert_eq!(set_aside(&world), 800_000);
    end(&mut world, order);
    assert_eq!(world.wallet(RENTER), 10_000_000, "no time passed");
}

proptest! {
    /// Whatever is changed of an order that waits or runs, what is set aside is what it may cost, and all comes back that it did
    /// not cost.
    #[test]
    fn changes_keep_the_money(steps in prop::collection::vec((0u8..6, 1u64..20), 1..20)) {
        let mut world = World::new();
        world.fund(RENTER, 10_000_000);
        let wanted = standing(request(2), 400_000, 8 * HOUR_MS, world.now_ms);
        let order = world.order(&wanted).unwrap();
        for (what, size) in steps {
            let one = OrderChange::default();
            match what {
                0 => _ = change(&mut world, order, OrderChange { max_rate: Some(Rate(size * 50_000)), ..one }),
                1 => _ = change(&mut world, order, OrderChange { duration_ms: Some(size * 200_000), ..one }),
                2 => {
                    let wants = Wants { max_per_device: u32::try_from(size % 3).ok(), ..Wants::default() };
                    _ = change(&mut world, order, OrderChange { wants: Some(Box::new(wants)), ..one });
                }
                3 => _ = world.device(SUPPLIER, size * 20_000),
                4 => tick(&mut world),
                _ => world.now_ms += size * 1_000,
            }
            if stage(&world, order) == Stage::Placed {
                run(&mut world, order);
            }
            let found = world.state.order(order).unwrap();
            prop_assert_eq!(found.escrow_micro_usd - found.refund_micro_usd, found.quote.total_micro_usd);
            let items = found.quote.items.iter().map(|item| item.rate).collect::<Vec<_>>();
            prop_assert_eq!(Some(Rate(items.iter().map(|rate| rate.0).sum())), found.quote.request.max_rate);
            prop_assert!(found.leases.values().all(|lease| lease.rate <= items[lease.slot as usize]));
        }
    }
}
