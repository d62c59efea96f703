//! What changes an order that lives: more and fewer members, less time, pauses. Money is right after every step.

use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::ledger::Owner;
use ionet_domain::market::upkeep::{Metric, ReplaceMode, Scale};
use ionet_domain::market::{Buy, Quote, Request, Upkeep, place, price, spot};
use ionet_domain::meter::Witness;
use ionet_domain::money::{Asset, HOUR_MS, Rate};
use ionet_domain::order::health::{self, Ailment};
use ionet_domain::order::size::{self, OrderChange};
use ionet_domain::order::{CloseReason, Lease, LeasePhase, ReplaceReason, Stage};
use ionet_domain::{Event, LeaseId, Order, OrderId, PublicBody, Refusal, State, id::QuoteId};
use proptest::prelude::*;

use crate::world::{OTHER, RENTER, SUPPLIER, World, request};

const RICH: u64 = 1_000_000_000;
const MINUTE_MS: u64 = 60_000;

fn lease(order: OrderId, n: u32) -> LeaseId {
    LeaseId { order, n }
}

fn found(world: &World, order: OrderId) -> &Order {
    world.state.order(order).unwrap()
}

/// A world with `devices` machines of two members each, and an order of `members` that runs.
fn running(devices: u32, members: u32) -> (World, OrderId) {
    running_at(devices, members, 7)
}

/// The same where each machine asks so much more than the one before.
fn running_at(devices: u32, members: u32, step: u64) -> (World, OrderId) {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    for n in 0..devices {
        world.device(if n % 2 == 0 { SUPPLIER } else { OTHER }, 100_000 + u64::from(n) * step);
    }
    let order = world.running(&request(members));
    (world, order)
}

fn more(world: &World, order: OrderId, members: u32) -> Result<Quote, Refusal> {
    let request = size::more_of(found(world, order), members, world.now_ms)?;
    let id = QuoteId::from_parts(world.now_ms, 7);
    price::quote(&world.state, id, RENTER, &request, world.now_ms)
}

fn grow(world: &mut World, order: OrderId, members: u32) -> Result<Vec<Event>, Refusal> {
    let quote = more(world, order, members)?;
    world.ask(Actor::Wallet(RENTER), CommandBody::Grow { order, quote })
}

/// Every member that has a box and is not up comes up.
fn all_up(world: &mut World, order: OrderId) {
    let placed = |order: &Order| -> Vec<u32> {
        let leases = order.leases.iter().filter(|(_, l)| l.live() && l.phase == LeasePhase::Placed);
        leases.map(|(n, _)| *n).collect()
    };
    for n in placed(found(world, order)) {
        world.ready(lease(order, n));
    }
}

/// Every box that is to go is gone.
fn all_gone(world: &mut World, order: OrderId) {
    let going: Vec<u32> = {
        let order = found(world, order);
        let closing = order.stage >= Stage::Closing;
        let going = |lease: &Lease| !lease.ended() && (closing || lease.released.is_some());
        order.leases.iter().filter(|(_, lease)| going(lease)).map(|(n, _)| *n).collect()
    };
    for n in going {
        world.removed(lease(order, n));
    }
}

fn ask(world: &mut World, body: CommandBody) -> Result<Vec<Event>, Refusal> {
    world.ask(Actor::Wallet(RENTER), body)
}

/// What is set aside is what everything can cost at most; the order's account covers what is not charged yet.
fn money_is_right(world: &World, order: OrderId) {
    let order = found(world, order);
    if order.stage < Stage::Settled {
        let aside = order.escrow_micro_usd - order.refund_micro_usd;
        assert_eq!(aside, order.quote.total_micro_usd);
        assert!(order.bill().total_micro_usd <= aside);
        let purse = world.state.ledger.balance(Owner::Order(order.id), Asset::Iosd);
        assert_eq!(purse.available() + order.bill().total_micro_usd, aside);
    }
    assert!(place::index_is_true(&world.state));
}

#[test]
fn added_members_are_paid_for_the_rest_of_the_time() {
    let (mut world, order) = running(3, 1);
    world.now_ms += 15 * MINUTE_MS;
    let before = world.wallet(RENTER);
    let quote = more(&world, order, 2).unwrap();
    assert_eq!(quote.request.duration_ms, 45 * MINUTE_MS);
    let aside = quote.total_micro_usd;
    ask(&mut world, CommandBody::Grow { order, quote }).unwrap();
    assert_eq!(world.wallet(RENTER), before - aside);
    assert_eq!((found(&world, order).quote.request.members, found(&world, order).vacant()), (3, vec![1, 2]));
    money_is_right(&world, order);
    assert_eq!(grow(&mut world, order, 1).unwrap_err().code(), "no_change", "one growth at a time");
    let events = world.must(Actor::Server, CommandBody::Replace { order });
    let PublicBody::OrderPlaced { leases, reason, .. } = &events[0].public else { panic!("{events:?}") };
    assert_eq!((leases.len(), *reason), (2, Some(ReplaceReason::Grown)));
    all_up(&mut world, order);
    assert_eq!(found(&world, order).course.growth, None);
    world.now_ms += 60 * MINUTE_MS;
    for (n, due_ms) in [(0, 60), (1, 45), (2, 45)] {
        world.meter(lease(order, n), 100 * MINUTE_MS, Witness::Heartbeats).unwrap();
        assert_eq!(world.state.lease(lease(order, n)).unwrap().1.elapsed_ms, due_ms * MINUTE_MS);
    }
    money_is_right(&world, order);
    world.must(Actor::Server, CommandBody::Close { order, reason: CloseReason::Time });
    all_gone(&mut world, order);
    world.must(Actor::Server, CommandBody::Settle { order });
    let bill = found(&world, order).bill();
    assert_eq!((bill.refund_micro_usd, bill.total_micro_usd), (0, bill.escrow_micro_usd));
}

#[test]
fn members_that_find_no_place_are_given_up_and_the_order_runs_on() {
    let (mut world, order) = running(2, 1);
    let before = world.wallet(RENTER);
    grow(&mut world, order, 3).unwrap();
    // Somebody else was faster.
    let other = world.order(&request(1)).unwrap();
    world.must(Actor::Server, CommandBody::Place { order: other });
    let paid = RICH - before;
    let events = world.must(Actor::Server, CommandBody::Replace { order });
    assert!(matches!(events[0].public, PublicBody::OrderShrunk { members: 1, .. }), "{events:?}");
    let it = found(&world, order);
    assert_eq!((it.stage, it.quote.request.members, it.course.growth), (Stage::Running, 1, None));
    assert_eq!(it.quote.total_micro_usd, paid, "all of it came back");
    money_is_right(&world, order);
    let Err(Refusal::NoCapacity(short)) = grow(&mut world, order, 9) else { panic!("it fitted") };
    assert_eq!((short.wanted, short.possible), (9, 2));
}

#[test]
fn what_shrinking_leaves_unused_comes_back_at_once() {
    let (mut world, order) = running(2, 4);
    world.now_ms += 30 * MINUTE_MS;
    let (before, total) = (world.wallet(RENTER), found(&world, order).quote.total_micro_usd);
    for (members, code) in [(0, "out_of_range"), (4, "out_of_range")] {
        assert_eq!(ask(&mut world, CommandBody::Shrink { order, members }).unwrap_err().code(), code);
    }
    ask(&mut world, CommandBody::Shrink { order, members: 1 }).unwrap();
    let back = world.wallet(RENTER) - before;
    assert!((total * 3 / 8).abs_diff(back) < 20, "{back} of {total}: half of three quarters");
    money_is_right(&world, order);
    assert_eq!(found(&world, order).members().len(), 1);
    // Boxes that are on their way out cost nothing, however long it takes.
    world.now_ms += 20 * MINUTE_MS;
    for n in 1..4 {
        world.meter(lease(order, n), 50 * MINUTE_MS, Witness::Heartbeats).unwrap();
        assert_eq!(world.state.lease(lease(order, n)).unwrap().1.elapsed_ms, 30 * MINUTE_MS);
    }
    all_gone(&mut world, order);
    assert_eq!(world.state.devices.values().map(|device| device.leases).sum::<u32>(), 1);
    // What was shrunk can grow again.
    grow(&mut world, order, 3).unwrap();
    world.must(Actor::Server, CommandBody::Replace { order });
    all_up(&mut world, order);
    money_is_right(&world, order);
    assert_eq!(found(&world, order).members().len(), 4);
}

#[test]
fn a_pause_stops_clock_and_charges_and_resuming_goes_on_with_what_is_left() {
    let (mut world, order) = running(2, 2);
    world.now_ms += 20 * MINUTE_MS;
    ask(&mut world, CommandBody::Pause { order }).unwrap();
    let it = found(&world, order);
    assert_eq!((it.stage, it.ends_ms(), it.course.ran_ms), (Stage::Paused, None, 20 * MINUTE_MS));
    assert_eq!(ask(&mut world, CommandBody::Pause { order }).unwrap_err().code(), "wrong_stage");
    world.now_ms += 24 * HOUR_MS;
    for n in 0..2 {
        world.meter(lease(order, n), 21 * MINUTE_MS, Witness::Heartbeats).unwrap();
        assert_eq!(world.state.lease(lease(order, n)).unwrap().1.elapsed_ms, 20 * MINUTE_MS);
    }
    all_gone(&mut world, order);
    ask(&mut world, CommandBody::Resume { order }).unwrap();
    world.must(Actor::Server, CommandBody::Place { order });
    world.must(Actor::Server, CommandBody::Start { order });
    all_up(&mut world, order);
    world.must(Actor::Server, CommandBody::MarkRunning { order });
    assert_eq!(found(&world, order).ends_ms(), Some(world.now_ms + 40 * MINUTE_MS));
    world.now_ms += HOUR_MS;
    for n in 2..4 {
        world.meter(lease(order, n), HOUR_MS, Witness::Heartbeats).unwrap();
    }
    money_is_right(&world, order);
    world.must(Actor::Server, CommandBody::Close { order, reason: CloseReason::Time });
    all_gone(&mut world, order);
    world.must(Actor::Server, CommandBody::Settle { order });
    let bill = found(&world, order).bill();
    // Two parts of a member's time may round down where one would not.
    assert!(bill.refund_micro_usd <= 4, "{bill:?}");
}

#[test]
fn a_paused_order_without_a_place_says_why_and_keeps_its_money() {
    let (mut world, order) = running(1, 2);
    ask(&mut world, CommandBody::Pause { order }).unwrap();
    assert_eq!(ask(&mut world, CommandBody::Resume { order }).unwrap_err().code(), "no_capacity");
    all_gone(&mut world, order);
    ask(&mut world, CommandBody::Resume { order }).unwrap();
    // Its place is promised to it, but its device goes.
    assert_eq!(world.order(&request(1)).unwrap_err().code(), "no_capacity");
    let device = *world.state.devices.keys().next().unwrap();
    let rules = ionet_domain::device::OwnerRules { paused: true, ..Default::default() };
    let change = ionet_domain::device::DeviceChange { rules: Some(rules), ..Default::default() };
    world.must(Actor::Wallet(SUPPLIER), CommandBody::ChangeDevice { device, change });
    world.must(Actor::Server, CommandBody::Place { order });
    assert_eq!(found(&world, order).stage, Stage::Paused);
    money_is_right(&world, order);
    world.must(Actor::Server, CommandBody::Close { order, reason: CloseReason::PauseOver });
    world.must(Actor::Server, CommandBody::Settle { order });
    assert_eq!(world.wallet(RENTER), RICH);
}

#[test]
fn changes_have_their_limits() {
    let (mut world, order) = running(2, 2);
    world.now_ms += 30 * MINUTE_MS;
    let duration = |ms| OrderChange { duration_ms: Some(ms), ..OrderChange::default() };
    let cap = |rate| OrderChange { max_rate: Some(Rate(rate)), ..OrderChange::default() };
    let upkeep = |text: &str| OrderChange {
        upkeep: Some(serde_json::from_str::<Upkeep>(text).unwrap()),
        ..OrderChange::default()
    };
    for (change, code) in [
        (OrderChange::default(), "no_change"),
        (duration(HOUR_MS), "no_change"),
        (duration(HOUR_MS + 1), "out_of_range"),
        (duration(29 * MINUTE_MS), "out_of_range"),
        (cap(100_000), "over_price_cap"),
        (upkeep(r#"{"max_pause_ms":1}"#), "out_of_range"),
        (upkeep(r#"{"scale":{"min":0,"max":2,"metric":"cpu","target_percent":70}}"#), "out_of_range"),
        (upkeep(r#"{"scale":{"min":1,"max":2,"metric":"gpu","target_percent":70}}"#), "out_of_range"),
        (upkeep(r#"{"scale":{"min":1,"max":2,"metric":"cpu","target_percent":99}}"#), "out_of_range"),
    ] {
        let asked = CommandBody::ChangeOrder { order, change: change.clone() };
        assert_eq!(ask(&mut world, asked).unwrap_err().code(), code, "{change:?}");
    }
    let before = (world.wallet(RENTER), found(&world, order).quote.total_micro_usd);
    ask(&mut world, CommandBody::ChangeOrder { order, change: duration(40 * MINUTE_MS) }).unwrap();
    let after = (world.wallet(RENTER), found(&world, order).quote.total_micro_usd);
    assert_eq!(after.0 - before.0, before.1 - after.1);
    assert!(after.1.abs_diff(before.1 * 2 / 3) < 5);
    ask(&mut world, CommandBody::ChangeOrder { order, change: cap(250_000) }).unwrap();
    assert_eq!(grow(&mut world, order, 1).unwrap_err().code(), "over_price_cap");
    ask(&mut world, CommandBody::ChangeOrder { order, change: cap(0) }).unwrap();
    assert_eq!(grow(&mut world, order, 1).map(|events| events.len()), Ok(1));
    money_is_right(&world, order);
}

#[test]
fn a_quote_for_more_is_for_this_order_and_this_time_only() {
    let (mut world, order) = running(4, 1);
    let quote = more(&world, order, 1).unwrap();
    let other_time = world.quote(&Request { duration_ms: 40 * MINUTE_MS, ..request(1) }).unwrap();
    let other_size = world.quote(&Request { spread: true, ..request(1) }).unwrap();
    for quote in [other_time, other_size] {
        assert_eq!(ask(&mut world, CommandBody::Grow { order, quote }).unwrap_err().code(), "out_of_range");
    }
    let theirs = CommandBody::Grow { order, quote: quote.clone() };
    assert_eq!(world.refused(Actor::Wallet(OTHER), theirs), "unknown_order");
    world.now_ms = quote.expires_ms;
    assert_eq!(ask(&mut world, CommandBody::Grow { order, quote }).unwrap_err().code(), "quote_expired");
    world.now_ms += 59 * MINUTE_MS - 30_000;
    assert_eq!(more(&world, order, 1).unwrap_err().code(), "out_of_range", "too little time is left");
}

/// Pays for an order and lets the line place it.
fn bought(world: &mut World, wanted: &Request) -> OrderId {
    let order = world.order(wanted).unwrap();
    world.now_ms = wanted.buy.begins_ms().unwrap_or(0).max(world.now_ms) + 1;
    world.must(Actor::Server, CommandBody::Place { order });
    up(world, order);
    order
}

/// Starts what has its devices.
fn up(world: &mut World, order: OrderId) {
    world.must(Actor::Server, CommandBody::Start { order });
    all_up(world, order);
    world.must(Actor::Server, CommandBody::MarkRunning { order });
}

#[test]
fn however_it_was_bought_it_grows_pauses_and_resumes() {
    for way in ["on demand", "standing", "spot", "reserved", "flexible"] {
        let mut world = World::new();
        world.fund(RENTER, RICH);
        for n in 0..4 {
            world.device(SUPPLIER, 100_000 + n);
        }
        let now_ms = world.now_ms;
        let (buy, cap) = match way {
            "standing" => (Buy::Standing { expires_ms: now_ms + HOUR_MS }, true),
            "spot" => (Buy::Spot { notice_ms: 60_000, expires_ms: Some(now_ms + HOUR_MS) }, true),
            "reserved" => (Buy::Reserved { starts_ms: now_ms + HOUR_MS }, false),
            "flexible" => (Buy::Flexible { deadline_ms: now_ms + 3 * HOUR_MS }, true),
            _ => (Buy::default(), false),
        };
        let max_rate = cap.then_some(Rate(1_000_000));
        let order = bought(&mut world, &Request { buy, max_rate, ..request(2) });
        world.now_ms += 10 * MINUTE_MS;
        grow(&mut world, order, 1).unwrap();
        money_is_right(&world, order);
        world.must(Actor::Server, CommandBody::Replace { order });
        all_up(&mut world, order);
        ask(&mut world, CommandBody::Pause { order }).unwrap();
        all_gone(&mut world, order);
        // Longer than it would have waited at first.
        world.now_ms += 5 * HOUR_MS;
        ask(&mut world, CommandBody::Resume { order }).unwrap_or_else(|refusal| panic!("{way}: {refusal}"));
        world.must(Actor::Server, CommandBody::Place { order });
        up(&mut world, order);
        let its = found(&world, order);
        assert_eq!((its.members().len(), its.left_ms(world.now_ms)), (3, 50 * MINUTE_MS), "{way}");
        let within = |lease: &Lease| lease.rate <= its.quote.items[lease.slot as usize].rate;
        assert!(its.leases.values().all(within), "{way}");
        money_is_right(&world, order);
    }
}

#[test]
fn who_pauses_under_notice_makes_the_room_and_is_not_ended() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    world.device(SUPPLIER, 100_000);
    let buy = Buy::Spot { notice_ms: 60_000, expires_ms: None };
    let spot = bought(&mut world, &Request { buy, max_rate: Some(Rate(1_000_000)), ..request(2) });
    let other = world.order(&request(2)).unwrap();
    world.must(Actor::Server, CommandBody::Place { order: other });
    assert!(found(&world, spot).ways.notice.is_some());
    ask(&mut world, CommandBody::Pause { order: spot }).unwrap();
    all_gone(&mut world, spot);
    world.now_ms += 2 * MINUTE_MS;
    assert_eq!(spot::over(&world.state, world.now_ms), []);
    world.must(Actor::Server, CommandBody::Place { order: other });
    assert_eq!(found(&world, other).stage, Stage::Placed);
    assert_eq!(ask(&mut world, CommandBody::Resume { order: spot }).unwrap_err().code(), "no_capacity");
    money_is_right(&world, spot);
}

/// What a renter, the devices and the clock do, by a number each.
fn step(world: &mut World, order: OrderId, what: u32, size: u64) {
    let members = u32::try_from(size % 4).unwrap();
    let _ = match what {
        0 => grow(world, order, members),
        1 => ask(world, CommandBody::Shrink { order, members }),
        2 => ask(world, CommandBody::Pause { order }),
        3 => ask(world, CommandBody::Resume { order }),
        4 => ask(world, CommandBody::Extend { order, added_ms: size * MINUTE_MS }),
        5 => {
            let change = OrderChange { duration_ms: Some(size * 5 * MINUTE_MS), ..OrderChange::default() };
            ask(world, CommandBody::ChangeOrder { order, change })
        }
        6 => {
            world.now_ms += size * MINUTE_MS / 2;
            Ok(Vec::new())
        }
        7 => {
            world.now_ms -= size * 7_000;
            Ok(Vec::new())
        }
        8 => {
            let live = found(world, order).members();
            let one =
                live.values().nth(usize::try_from(size).unwrap() % 4).map(|(n, lease)| (*n, lease.device));
            let Some((n, device)) = one else { return };
            let lost = CommandBody::ReportLost { lease: lease(order, n), reason: "died".into() };
            world.ask(Actor::Device(device), lost)
        }
        12 => ask(world, CommandBody::ReplaceMember { order, slot: members }),
        9 => {
            all_gone(world, order);
            Ok(Vec::new())
        }
        _ => {
            for body in [CommandBody::Place { order }, CommandBody::Start { order }] {
                let _ = world.ask(Actor::Server, body);
            }
            if found(world, order).stage == Stage::Running && !found(world, order).vacant().is_empty() {
                let _ = world.ask(Actor::Server, CommandBody::Replace { order });
            }
            all_up(world, order);
            world.ask(Actor::Server, CommandBody::MarkRunning { order })
        }
    };
    let held = if size.is_multiple_of(3) { Witness::Nobody } else { Witness::Heartbeats };
    // Of a lost lease nothing more is heard.
    let heard = |lease: &Lease| !matches!(lease.phase, LeasePhase::Lost { .. });
    let leases = found(world, order).leases.iter().filter(|(_, lease)| heard(lease));
    let leases: Vec<u32> = leases.map(|(n, _)| *n).collect();
    for n in leases {
        if let Err(refusal) = world.meter(lease(order, n), u64::MAX, held.clone()) {
            assert!(["no_change", "wrong_stage"].contains(&refusal.code()), "{refusal}");
        }
    }
    money_is_right(world, order);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn money_is_right_whatever_happens(steps in prop::collection::vec((0..15u32, 1..20u64), 1..50)) {
        let (mut world, order) = running(5, 3);
        for (what, size) in steps {
            step(&mut world, order, what, size);
        }
        let _ = ask(&mut world, CommandBody::Close { order, reason: CloseReason::Renter });
        all_gone(&mut world, order);
        world.now_ms += 2 * HOUR_MS;
        let leases: Vec<u32> = found(&world, order).leases.keys().copied().collect();
        for n in leases {
            let _ = world.ask(Actor::Server, CommandBody::Prove { lease: lease(order, n), witness: Witness::Nobody });
        }
        world.must(Actor::Server, CommandBody::Settle { order });
        let bill = found(&world, order).bill();
        prop_assert_eq!(bill.total_micro_usd + bill.refund_micro_usd, bill.escrow_micro_usd);
        prop_assert!(bill.total_micro_usd <= found(&world, order).quote.total_micro_usd);
        let mut again = State::default();
        for event in &world.events {
            again.apply(&Event::read(event.at_ms, &event.public_json(), event.private_json().as_deref()).unwrap()).unwrap();
        }
        prop_assert!(again == world.state);
    }
}

#[test]
fn a_member_that_ails_is_replaced_when_its_renter_says_or_allowed_it() {
    let (mut world, order) = running_at(3, 2, 0);
    world.now_ms += 10 * MINUTE_MS;
    let ail = CommandBody::ReportAiling {
        lease: lease(order, 1),
        ailment: Some(Ailment::Overloaded { foreign_cpu_percent: 80 }),
    };
    assert_eq!(world.refused(Actor::Wallet(RENTER), ail.clone()), "not_allowed");
    world.must(Actor::Server, ail.clone());
    assert_eq!(world.refused(Actor::Server, ail.clone()), "no_change");
    let by_itself = CommandBody::ReplaceMember { order, slot: 1 };
    assert_eq!(world.refused(Actor::Server, by_itself.clone()), "no_change", "it is only proposed");
    assert_eq!(health::due(found(&world, order), world.now_ms), None);
    assert_eq!(
        ask(&mut world, CommandBody::ReplaceMember { order, slot: 7 }).unwrap_err().code(),
        "out_of_range"
    );
    let before = world.device_of(lease(order, 1));
    ask(&mut world, by_itself.clone()).unwrap();
    assert_ne!(world.device_of(lease(order, 2)), before);
    assert_eq!(found(&world, order).vacant(), Vec::<u32>::new(), "both in one step");
    all_up(&mut world, order);
    world.now_ms += 10 * MINUTE_MS;
    for (n, ran_ms) in [(0, 20), (1, 10), (2, 10)] {
        world.meter(lease(order, n), HOUR_MS, Witness::Heartbeats).unwrap();
        assert_eq!(world.state.lease(lease(order, n)).unwrap().1.elapsed_ms, ran_ms * MINUTE_MS);
    }
    money_is_right(&world, order);
    let upkeep = Upkeep { replace: ReplaceMode::ByItself, ..Upkeep::default() };
    let change = OrderChange { upkeep: Some(upkeep), ..OrderChange::default() };
    ask(&mut world, CommandBody::ChangeOrder { order, change }).unwrap();
    world.must(
        Actor::Server,
        CommandBody::ReportAiling {
            lease: lease(order, 2),
            ailment: Some(Ailment::Hot { temperature_c: 95 }),
        },
    );
    assert_eq!(world.refused(Actor::Server, by_itself.clone()), "no_change", "not twice in half an hour");
    world.now_ms += 21 * MINUTE_MS;
    all_gone(&mut world, order);
    world.must(Actor::Server, by_itself);
    // Neither on the device that it leaves nor on the one that it left before.
    let places = [1, 2, 3].map(|n| world.device_of(lease(order, n)));
    assert!(places[2] != places[0] && places[2] != places[1]);
    money_is_right(&world, order);
}

#[test]
fn sizes_follow_how_busy_members_are_within_bounds_cap_and_money() {
    let scale = |max_rate| Some(Scale { min: 1, max: 4, metric: Metric::Cpu, target_percent: 70, max_rate });
    let mut world = World::new();
    world.fund(RENTER, RICH);
    for _ in 0..4 {
        world.device(SUPPLIER, 100_000);
    }
    let mut wanted = request(2);
    wanted.upkeep.scale = scale(Some(Rate(350_000)));
    let order = world.running(&wanted);
    let busy = |busy_percent| CommandBody::Scale { order, busy_percent };
    assert_eq!(world.refused(Actor::Server, busy(100)), "no_change", "it has just begun");
    world.now_ms += 3 * MINUTE_MS;
    assert_eq!(world.refused(Actor::Wallet(RENTER), busy(100)), "not_allowed");
    assert_eq!(world.refused(Actor::Server, busy(75)), "no_change", "near enough");
    world.must(Actor::Server, busy(100));
    world.must(Actor::Server, CommandBody::Replace { order });
    all_up(&mut world, order);
    assert_eq!(found(&world, order).members().len(), 3);
    world.now_ms += 3 * MINUTE_MS;
    assert_eq!(world.refused(Actor::Server, busy(100)), "over_price_cap");
    world.now_ms += 6 * MINUTE_MS;
    assert_eq!(world.refused(Actor::Server, busy(0)), "no_change", "it shrinks more slowly than it grows");
    world.now_ms += MINUTE_MS;
    let events = world.must(Actor::Server, busy(5));
    assert!(matches!(events[0].public, PublicBody::OrderShrunk { members: 2, .. }), "{events:?}");
    money_is_right(&world, order);
    // Back into bounds that its renter drew closer, whatever the load.
    let upkeep = Upkeep { scale: Some(Scale { max: 1, ..scale(None).unwrap() }), ..Upkeep::default() };
    let change = OrderChange { upkeep: Some(upkeep), ..OrderChange::default() };
    ask(&mut world, CommandBody::ChangeOrder { order, change }).unwrap();
    world.now_ms += 10 * MINUTE_MS;
    world.must(Actor::Server, busy(65));
    assert_eq!(found(&world, order).quote.request.members, 1);
    money_is_right(&world, order);
}
