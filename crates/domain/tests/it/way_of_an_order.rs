//! The way of an order, straight and with everything that can cross it.

use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::decide::MAX_RETIRED;
use ionet_domain::device::Contact;
use ionet_domain::ledger::{Balance, Owner};
use ionet_domain::market::{EngineKind, Program};
use ionet_domain::meter::Witness;
use ionet_domain::money::{Asset, HOUR_MS, Rate};
use ionet_domain::order::{CloseReason, LeasePhase, NewLease, ReplaceReason, Stage, replace_reason};
use ionet_domain::{Event, LeaseId, OrderId, Refusal, State};
use proptest::prelude::*;

use crate::world::{OTHER, RENTER, SUPPLIER, World, request};

const RICH: u64 = 1_000_000_000;

fn lease(order: OrderId, n: u32) -> LeaseId {
    LeaseId { order, n }
}

fn close(world: &mut World, order: OrderId) {
    world.must(Actor::Wallet(RENTER), CommandBody::Close { order, reason: CloseReason::Renter });
}

fn pay_out(world: &mut World) {
    world.now_ms += world.state.params.epoch_ms;
    world.must(Actor::Server, CommandBody::OpenPayout { account: SUPPLIER });
    let payout = *world.state.payouts.keys().next().unwrap();
    let amount = world.state.payouts[&payout].transfer.amount;
    world.must(Actor::Server, CommandBody::ConfirmPayout { payout, reference: "tx".into(), amount });
}

/// An order that runs for an hour and is settled.
fn earn(world: &mut World) -> OrderId {
    let order = world.running(&request(1));
    world.now_ms += HOUR_MS;
    world.meter(lease(order, 0), HOUR_MS, Witness::Heartbeats).unwrap();
    world.must(Actor::Server, CommandBody::Close { order, reason: CloseReason::Time });
    world.removed(lease(order, 0));
    world.must(Actor::Server, CommandBody::Settle { order });
    order
}

/// Books put back to an old backup: what the chain had paid under a payout's id counts. One line a case: what it had
/// paid more or less than was on its way, and then what is still owed, what was lost and where the order is.
#[test]
fn what_the_chain_paid_counts() {
    const LATER: u64 = 99_750;
    for (differs, owed, lost, stage) in [
        (0, LATER, 0, Stage::Paid),
        (-1, LATER + 1, 0, Stage::Settled),
        (-99_750, LATER + 99_750, 0, Stage::Settled),
        (1, LATER - 1, 0, Stage::Paid),
        (99_750, 0, 0, Stage::Paid),
        (99_751, 0, 1, Stage::Paid),
        (1_000_000, 0, 900_250, Stage::Paid),
    ] {
        let mut world = World::new();
        world.fund(RENTER, RICH);
        world.device(SUPPLIER, 100_000);
        let first = earn(&mut world);
        world.must(Actor::Server, CommandBody::OpenPayout { account: SUPPLIER });
        let later = earn(&mut world);
        let (payout, held) =
            world.state.payouts.iter().next().map(|(id, p)| (*id, p.transfer.amount)).unwrap();
        let amount = held.checked_add_signed(differs).unwrap();
        world.must(Actor::Server, CommandBody::ConfirmPayout { payout, reference: "tx".into(), amount });
        assert_eq!(world.earned(SUPPLIER), owed, "{differs}");
        let losses = world.state.ledger.balance(Owner::Losses, Asset::Iosd);
        assert_eq!((losses.debits, losses.credits), (lost, 0), "{differs}");
        assert_eq!(world.state.order(first).unwrap().stage, stage, "{differs}");
        assert_eq!(world.state.ledger.balance(Owner::World, Asset::Iosd).credits, amount);
        let again = CommandBody::ConfirmPayout { payout, reference: "tx".into(), amount };
        assert_eq!(world.refused(Actor::Server, again), "exists");
        // What is still owed goes out with the next epoch, and then everything is paid.
        if owed > 0 {
            pay_out(&mut world);
        }
        assert_eq!(world.earned(SUPPLIER), 0);
        for order in [first, later] {
            assert_eq!(world.state.order(order).unwrap().stage, Stage::Paid, "{differs}");
        }
    }
}

#[test]
fn from_quote_to_payout_to_the_last_minor_unit() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    world.device(SUPPLIER, 123_457);
    world.device(SUPPLIER, 100_003);
    let quote = world.quote(&request(3)).unwrap();
    assert_eq!(quote.items.iter().map(|i| i.rate.0).collect::<Vec<_>>(), [100_003, 100_003, 123_457]);
    assert_eq!(quote.total_micro_usd, 323_463 + 250 + 250 + 308);
    let order = world.running(&request(3));
    assert_eq!(world.wallet(RENTER), RICH - quote.total_micro_usd);
    for minute in 1..=10u64 {
        world.now_ms += 60_000;
        for n in 0..3 {
            world.meter(lease(order, n), minute * 60_000 - 7, Witness::Heartbeats).unwrap();
        }
    }
    close(&mut world, order);
    for n in 0..3 {
        world.meter(lease(order, n), 700_000, Witness::Heartbeats).unwrap();
        world.removed(lease(order, n));
    }
    world.must(Actor::Server, CommandBody::Settle { order });
    let bill = world.state.order(order).unwrap().bill();
    // 600,000 ms: until it was closed, whatever the last receipt says.
    let due: Vec<u64> = [100_003, 100_003, 123_457].map(|rate| Rate(rate).total_for(600_000)).to_vec();
    assert_eq!(bill.lines.iter().map(|line| line.compute_micro_usd).collect::<Vec<_>>(), due);
    assert_eq!(bill.total_micro_usd, due.iter().map(|d| d + d * 25 / 10_000).sum::<u64>());
    assert_eq!(world.wallet(RENTER), RICH - bill.total_micro_usd);
    assert_eq!(world.earned(SUPPLIER), due.iter().map(|d| d - d * 25 / 10_000).sum::<u64>());
    pay_out(&mut world);
    assert_eq!(world.earned(SUPPLIER), 0);
    assert_eq!(world.state.order(order).unwrap().stage, Stage::Paid);
    world.now_ms += world.state.params.retention_ms;
    world.must(Actor::Server, CommandBody::Retire);
    assert!(world.state.orders.is_empty());
    assert_eq!(world.state.ledger.balance(Owner::Order(order), Asset::Iosd), Balance::default());
}

#[test]
fn the_fold_of_what_was_written_is_the_state() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    world.device(SUPPLIER, 100_000);
    let order = world.running(&request(1));
    world.now_ms += 90_000;
    world.meter(lease(order, 0), 90_000, Witness::Nobody).unwrap();
    close(&mut world, order);
    let (mut whole, mut public_only) = (State::default(), State::default());
    for event in &world.events {
        let (public, private) = (event.public_json(), event.private_json());
        let read = Event::read(event.at_ms, &public, private.as_deref()).unwrap();
        assert_eq!(&read, event);
        whole.apply(&read).unwrap();
        public_only.apply(&Event::read(event.at_ms, &public, None).unwrap()).unwrap();
    }
    assert_eq!(whole, world.state);
    assert_eq!(public_only.ledger, world.state.ledger);
    assert_eq!(public_only.orders, world.state.orders);
    let snapshot = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<State>(&snapshot).unwrap(), whole);
}

#[test]
fn refusals_change_nothing_and_say_why() {
    let mut world = World::new();
    world.device(SUPPLIER, 100_000);
    let quote = world.quote(&request(2)).unwrap();
    let poor = world.order_quoted(quote.clone()).unwrap_err();
    assert!(matches!(poor, Refusal::InsufficientFunds { available: 0, needed: 200_500, .. }), "{poor}");
    world.fund(RENTER, RICH);
    let program = Program { argv: vec!["true".into()], ..Program::default() };
    let order = OrderId::from_parts(world.now_ms, 1 << 70);
    let ask = CommandBody::PlaceOrder { order, quote: quote.clone(), program: program.clone() };
    assert_eq!(world.refused(Actor::Wallet(OTHER), ask.clone()), "quote_not_yours");
    assert_eq!(world.refused(Actor::Server, ask.clone()), "not_allowed");
    world.now_ms = quote.expires_ms;
    assert_eq!(world.refused(Actor::Wallet(RENTER), ask), "quote_expired");
    let empty = CommandBody::PlaceOrder {
        order,
        quote: world.quote(&request(1)).unwrap(),
        program: Program::default(),
    };
    assert_eq!(world.refused(Actor::Wallet(RENTER), empty), "out_of_range");
    assert_eq!(world.wallet(RENTER), RICH);
    for (members, cpu, memory, code) in [
        (0, 1000, 1 << 30, "out_of_range"),
        (1, 99, 1 << 30, "out_of_range"),
        (1, 1000, 1, "out_of_range"),
        (9, 1000, 1 << 30, "no_capacity"),
    ] {
        let mut wrong = request(members);
        wrong.per_member.cpu_millis = cpu;
        wrong.per_member.memory_bytes = memory;
        assert_eq!(world.quote(&wrong).unwrap_err().code(), code);
    }
    let mut capped = request(1);
    capped.max_rate = Some(Rate(99_999));
    assert_eq!(world.quote(&capped).unwrap_err().code(), "over_price_cap");
}

#[test]
fn two_orders_race_for_the_last_device() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    world.device(SUPPLIER, 100_000);
    let (first, second) = (world.quote(&request(2)).unwrap(), world.quote(&request(2)).unwrap());
    let order = world.order_quoted(first).unwrap();
    // Not placed yet, but paid for: the second is refused at once and keeps its money.
    let wallet = world.wallet(RENTER);
    let Err(Refusal::NoCapacity(short)) = world.order_quoted(second) else { panic!("both got it") };
    assert_eq!((short.wanted, short.possible), (2, 0));
    assert_eq!(world.wallet(RENTER), wallet);
    world.must(Actor::Server, CommandBody::Place { order });
    world.must(Actor::Server, CommandBody::Start { order });
    world.ready(lease(order, 0));
    world.ready(lease(order, 1));
    world.must(Actor::Server, CommandBody::MarkRunning { order });
    let Err(Refusal::NoCapacity(short)) = world.quote(&request(1)) else { panic!("it fitted") };
    assert_eq!(short.free_in_ms, Some(HOUR_MS), "{short}");
    assert_eq!(short.removed[0].constraint, "hired by others now");
    let mut larger = request(1);
    larger.per_member.cpu_millis = 1_000_000;
    let Err(Refusal::NoCapacity(never)) = world.quote(&larger) else { panic!("it fitted") };
    assert_eq!(never.free_in_ms, None, "waiting would not help: {never}");
    let said = short.to_string();
    assert!(said.contains("a device comes free within 60 minutes"), "{said}");
}

/// A server's clock that jumps back sells no time from before the order ran.
#[test]
fn a_replacement_before_its_order_ran_is_charged_for_what_was_bought() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    for _ in 0..3 {
        world.device(SUPPLIER, 100_000);
    }
    let mut wanted = request(2);
    wanted.spread = true;
    let order = world.running(&wanted);
    let reason = "died".into();
    let actor = Actor::Device(world.device_of(lease(order, 0)));
    world.must(actor, CommandBody::ReportLost { lease: lease(order, 0), reason });
    world.must(Actor::Server, CommandBody::Replace { order });
    world.now_ms -= 5 * 60_000;
    world.ready(lease(order, 2));
    world.now_ms += 3 * HOUR_MS;
    world.meter(lease(order, 2), 4 * HOUR_MS, Witness::Heartbeats).unwrap();
    assert_eq!(world.state.lease(lease(order, 2)).unwrap().1.elapsed_ms, HOUR_MS);
}

#[test]
fn a_lost_member_is_replaced_elsewhere_and_the_rest_run_on() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    for _ in 0..3 {
        world.device(SUPPLIER, 100_000);
    }
    let mut wanted = request(2);
    wanted.spread = true;
    let order = world.running(&wanted);
    world.now_ms += 60_000;
    world.meter(lease(order, 0), 60_000, Witness::Heartbeats).unwrap();
    let lost_on = world.device_of(lease(order, 0));
    world.must(
        Actor::Device(lost_on),
        CommandBody::ReportLost { lease: lease(order, 0), reason: "died".into() },
    );
    world.must(Actor::Server, CommandBody::Replace { order });
    let found = world.state.order(order).unwrap().clone();
    let (n, member) = found.members()[&0];
    assert_eq!((n, member.slot, found.engine_epoch), (2, 0, 1));
    assert_eq!(found.replaced, Some(ReplaceReason::MemberLost), "the command engine has no head");
    assert_ne!(member.device, lost_on);
    assert_ne!(member.device, world.device_of(lease(order, 1)));
    assert_eq!(world.state.lease(lease(order, 1)).unwrap().1.phase, LeasePhase::Ready);
    world.now_ms += 30_000;
    world.ready(lease(order, 2));
    world.now_ms += 60_000;
    // Only what it ran itself, not the time while it was missing.
    world.meter(lease(order, 2), 1_000_000, Witness::Heartbeats).unwrap();
    assert_eq!(world.state.lease(lease(order, 2)).unwrap().1.elapsed_ms, 60_000);
    let device = world.device_of(lease(order, 2));
    world.must(
        Actor::Device(device),
        CommandBody::ReportLost { lease: lease(order, 2), reason: "died".into() },
    );
    world.must(Actor::Server, CommandBody::Replace { order });
    let found = world.state.order(order).unwrap();
    assert_eq!(found.stage, Stage::Closing);
    assert_eq!(found.reason.as_ref().unwrap().code(), "member_lost");
    world.removed(lease(order, 1));
    world.must(Actor::Server, CommandBody::Settle { order });
    let bill = world.state.order(order).unwrap().bill();
    assert_eq!(world.wallet(RENTER), RICH - bill.total_micro_usd);
    assert_eq!(bill.compute_micro_usd, 2 * Rate(100_000).total_for(60_000));
}

/// One line a loss: the engine, the slots that were lost, and the reason that the event gives.
#[test]
fn a_lost_head_is_told_from_a_lost_member() {
    for (engine, slots, reason) in [
        (EngineKind::Ray, vec![0], ReplaceReason::HeadLost),
        (EngineKind::Ray, vec![0, 1], ReplaceReason::HeadLost),
        (EngineKind::Ray, vec![1], ReplaceReason::MemberLost),
        (EngineKind::Command, vec![0], ReplaceReason::MemberLost),
    ] {
        let mut world = World::new();
        world.fund(RENTER, RICH);
        let device = world.device(SUPPLIER, 100_000);
        let order = world.running(&request(2));
        let mut found = world.state.order(order).unwrap().clone();
        found.quote.request.engine = engine;
        let lease = |slot: u32| NewLease {
            n: slot + 2,
            slot,
            device,
            supplier: SUPPLIER,
            rate: Rate(1),
            gpus: Vec::new(),
        };
        let leases: Vec<_> = slots.iter().map(|slot| lease(*slot)).collect();
        assert_eq!(replace_reason(&found, &leases), reason, "{engine} {slots:?}");
    }
}

#[test]
fn what_ended_leaves_in_bounded_lots() {
    let mut world = World::new();
    world.fund(RENTER, u64::MAX >> 8);
    world.device(SUPPLIER, 1);
    for _ in 0..=MAX_RETIRED {
        let order = world.order(&request(1)).unwrap();
        close(&mut world, order);
        world.must(Actor::Server, CommandBody::Settle { order });
    }
    world.now_ms += world.state.params.retention_ms;
    for left in [1, 0] {
        world.must(Actor::Server, CommandBody::Retire);
        assert_eq!(world.state.orders.len(), left);
    }
    assert_eq!(world.refused(Actor::Server, CommandBody::Retire), "no_change");
}

#[test]
fn one_witness_waits_and_two_do_not() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    world.device(SUPPLIER, 100_000);
    world.device(OTHER, 100_000);
    let mut wanted = request(2);
    wanted.spread = true;
    let order = world.running(&wanted);
    let (mine, theirs) = (lease(order, 0), lease(order, 1));
    world.now_ms += 600_000;
    // A member of the same supplier is no witness; one of another supplier is.
    world.meter(mine, 60_000, Witness::Member(mine)).unwrap();
    assert_eq!(world.earned(world.state.lease(mine).unwrap().1.supplier), 0);
    world.meter(mine, 120_000, Witness::Member(theirs)).unwrap();
    assert!(world.earned(world.state.lease(mine).unwrap().1.supplier) > 0);
    let prove = |witness| CommandBody::Prove { lease: mine, witness };
    assert_eq!(world.refused(Actor::Server, prove(Witness::Nobody)), "no_change");
    close(&mut world, order);
    world.removed(mine);
    world.removed(theirs);
    assert_eq!(world.refused(Actor::Server, CommandBody::Settle { order }), "no_change");
    world.now_ms += world.state.params.dispute_window_ms;
    world.must(Actor::Server, prove(Witness::Nobody));
    world.must(Actor::Server, CommandBody::Settle { order });
    assert_eq!(world.state.order(order).unwrap().bill().compute_micro_usd, Rate(100_000).total_for(120_000));
}

#[test]
fn what_is_disproven_goes_back() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    world.device(SUPPLIER, 100_000);
    let order = world.running(&request(1));
    world.now_ms += 600_000;
    world.meter(lease(order, 0), 600_000, Witness::Nobody).unwrap();
    let disprove = CommandBody::Disprove { lease: lease(order, 0), reason: "proof failed".into() };
    world.must(Actor::Server, disprove);
    close(&mut world, order);
    world.removed(lease(order, 0));
    world.must(Actor::Server, CommandBody::Settle { order });
    assert_eq!(world.wallet(RENTER), RICH);
    assert_eq!(world.state.order(order).unwrap().stage, Stage::Paid);
}

#[test]
fn silence_is_not_failure_and_a_silent_device_does_not_hold_the_rest_back() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    let device = world.device(SUPPLIER, 100_000);
    let order = world.running(&request(1));
    let contact = Contact::Unknown { since_ms: world.now_ms };
    world.must(Actor::Server, CommandBody::NoteContact { device, contact });
    assert_eq!(world.state.order(order).unwrap().stage, Stage::Running);
    assert_eq!(world.state.lease(lease(order, 0)).unwrap().1.phase, LeasePhase::Ready);
    world.now_ms += HOUR_MS;
    world.must(Actor::Server, CommandBody::Close { order, reason: CloseReason::Time });
    let give_up = CommandBody::ReportRemoved { lease: lease(order, 0), wipe: None };
    assert_eq!(world.refused(Actor::Server, give_up.clone()), "not_yet");
    world.now_ms += world.state.params.removal_grace_ms;
    world.must(Actor::Server, give_up);
    world.must(Actor::Server, CommandBody::Settle { order });
    assert_eq!(world.wallet(RENTER), RICH, "nothing was receipted, nothing is charged");
}

#[test]
fn more_time_costs_what_the_same_quote_says() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    world.device(SUPPLIER, 100_000);
    let order = world.running(&request(1));
    let extend = CommandBody::Extend { order, added_ms: HOUR_MS };
    assert_eq!(world.refused(Actor::Wallet(OTHER), extend.clone()), "unknown_order");
    world.must(Actor::Wallet(RENTER), extend);
    let found = world.state.order(order).unwrap();
    assert_eq!(found.escrow_micro_usd, 2 * 100_000 + 500);
    assert_eq!(found.ends_ms(), Some(world.now_ms + 2 * HOUR_MS));
}

#[test]
fn a_repeated_command_is_found_out() {
    let mut world = World::new();
    world.fund(RENTER, RICH);
    let id = ionet_domain::CommandId::from_parts(world.now_ms, 5);
    let send = || CommandBody::Send {
        id: ionet_domain::TransferId { scope: id.bits(), kind: ionet_domain::id::TransferKind::Send, n: 0 },
        to: OTHER,
        asset: Asset::Iosd,
        amount: 10,
    };
    world.ask_as(Some(id), Actor::Wallet(RENTER), send()).unwrap();
    assert_eq!(world.ask_as(Some(id), Actor::Wallet(RENTER), send()).unwrap_err().code(), "exists");
    assert_eq!(world.ask_as(None, Actor::Wallet(RENTER), send()).unwrap_err().code(), "transfer_exists");
    world.now_ms += ionet_domain::state::REMEMBERED_MS + 1;
    assert_eq!(world.ask_as(Some(id), Actor::Wallet(RENTER), send()).unwrap_err().code(), "stale_id");
    assert_eq!(world.wallet(OTHER), 10);
}

/// One line a duration: the factor, and what an ask of a dollar an hour becomes.
#[test]
fn longer_is_cheaper() {
    for (hours, percent) in [(1, 100), (23, 100), (24, 90), (167, 90), (168, 80), (8000, 80)] {
        let mut world = World::new();
        world.device(SUPPLIER, 1_000_000);
        let mut wanted = request(1);
        wanted.duration_ms = hours * HOUR_MS;
        let quote = world.quote(&wanted).unwrap();
        assert_eq!(u64::from(quote.duration_factor_percent), percent, "{hours} h");
        assert_eq!(quote.rate, Rate(10_000 * percent));
        assert_eq!(quote.compute_micro_usd, 10_000 * percent * hours);
    }
}

proptest! {
    /// Whatever receipts come, in whatever order, with whatever witnesses: no charge above the quote, no money made.
    #[test]
    fn no_charge_exceeds_the_quote(
        rate in 1u64..10_000_000,
        receipts in prop::collection::vec((0u64..8_000_000, 0u64..400_000, 0u8..3), 1..30),
    ) {
        let mut world = World::new();
        world.fund(RENTER, u64::MAX >> 8);
        world.device(SUPPLIER, rate);
        let quote = world.quote(&request(1)).unwrap();
        let before = world.wallet(RENTER);
        let order = world.running(&request(1));
        for (elapsed_ms, pause_ms, witness) in receipts {
            world.now_ms += pause_ms;
            let witness = if witness == 0 { Witness::Nobody } else { Witness::Heartbeats };
            let _ = world.meter(lease(order, 0), elapsed_ms, witness);
            if pause_ms % 7 == 0 {
                let reason = "no proof".to_string();
                let _ = world.ask(Actor::Server, CommandBody::Disprove { lease: lease(order, 0), reason });
            }
        }
        close(&mut world, order);
        world.removed(lease(order, 0));
        world.now_ms += world.state.params.dispute_window_ms;
        let _ = world.ask(Actor::Server, CommandBody::Prove { lease: lease(order, 0), witness: Witness::Nobody });
        world.must(Actor::Server, CommandBody::Settle { order });
        let bill = world.state.order(order).unwrap().bill();
        prop_assert!(bill.total_micro_usd <= quote.total_micro_usd);
        prop_assert_eq!(world.wallet(RENTER), before - bill.total_micro_usd);
        let found = world.state.order(order).unwrap();
        prop_assert_eq!(found.refund_micro_usd + bill.total_micro_usd, found.escrow_micro_usd);
    }
}

#[test]
fn what_boxes_may_reach_changes_while_they_run_and_a_supplier_may_forbid_it() {
    use std::collections::BTreeSet;

    use ionet_domain::device::{DeviceChange, OwnerRules};
    use ionet_domain::event::PrivateBody;
    use ionet_domain::market::{Egress, Request};

    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let device = world.device(SUPPLIER, 10_000);
    let order = world.running(&request(1));
    let listed = BTreeSet::from(["pypi.org:443".parse().unwrap()]);
    let change =
        |egress, allow: &BTreeSet<_>| CommandBody::ChangeEgress { order, egress, allow: allow.clone() };
    for (mode, list) in [(Egress::On, &listed), (Egress::Off, &listed), (Egress::Listed, &BTreeSet::new())] {
        assert_eq!(world.refused(Actor::Wallet(RENTER), change(mode, list)), "out_of_range");
    }
    assert_eq!(world.refused(Actor::Wallet(OTHER), change(Egress::Off, &BTreeSet::new())), "unknown_order");
    let events = world.must(Actor::Wallet(RENTER), change(Egress::Listed, &listed));
    assert_eq!(
        events[0].private,
        Some(PrivateBody::Allow(listed.clone())),
        "the list is nobody else's business"
    );
    let program = |world: &World| world.state.private.programs[&order].allow.clone();
    assert_eq!(
        (world.state.order(order).unwrap().quote.request.egress, program(&world)),
        (Egress::Listed, listed.clone())
    );
    // A supplier who forbids it keeps such orders away, and a running one cannot be opened any more.
    let rules = Some(OwnerRules { no_egress: true, ..OwnerRules::default() });
    let forbid =
        CommandBody::ChangeDevice { device, change: DeviceChange { rules, ..DeviceChange::default() } };
    world.must(Actor::Wallet(SUPPLIER), forbid);
    assert_eq!(world.refused(Actor::Wallet(RENTER), change(Egress::On, &BTreeSet::new())), "unsupported");
    world.must(Actor::Wallet(RENTER), change(Egress::Off, &BTreeSet::new()));
    assert_eq!(program(&world), BTreeSet::new());
    let open = world.quote(&request(1)).unwrap_err();
    assert!(open.to_string().contains("1 removed by: egress on, which their suppliers forbid"), "{open}");
    world.quote(&Request { egress: Egress::Off, ..request(1) }).unwrap();
}

#[test]
fn an_owner_shares_an_order_and_what_he_takes_back_is_void() {
    use ionet_domain::account::{ApiKey, Scope};
    use ionet_domain::order::share::{MOST_SHARES, Share, void};
    use ionet_domain::tunnel::Void;
    use ionet_domain::{Address, KeyId};

    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    world.device(SUPPLIER, 10_000);
    let order = world.running(&request(1));
    let until_ms = world.now_ms + 3_600_000;
    let share = |account, services: &str, until_ms| CommandBody::Share {
        order,
        account,
        share: Share { services: services.parse().unwrap(), until_ms },
    };
    let owner = Actor::Wallet(RENTER);
    for (actor, body, code) in [
        (Actor::Wallet(OTHER), share(OTHER, "ssh", until_ms), "unknown_order"),
        (owner, share(RENTER, "ssh", until_ms), "no_change"),
        (owner, share(OTHER, "ssh", world.now_ms), "out_of_range"),
        (owner, share(OTHER, "ssh", u64::MAX), "out_of_range"),
        (owner, CommandBody::Unshare { order, account: OTHER }, "no_change"),
    ] {
        assert_eq!(world.refused(actor, body.clone()), code, "{body:?}");
    }
    let taken_back = |world: &World| void(&world.state, world.state.order(order).unwrap());
    world.must(owner, share(OTHER, "ssh,log", until_ms));
    assert_eq!(world.refused(owner, share(OTHER, "ssh,log", until_ms)), "no_change");
    world.must(owner, share(OTHER, "all", until_ms));
    assert_eq!(taken_back(&world), [], "it only grew");
    world.must(owner, share(OTHER, "ssh", until_ms));
    let before_ms = world.now_ms + 1;
    assert_eq!(taken_back(&world), [Void { account: OTHER, key: None, before_ms }]);
    world.must(owner, CommandBody::Unshare { order, account: OTHER });
    assert_eq!(taken_back(&world), [Void { account: OTHER, key: None, before_ms: world.now_ms + 1 }]);

    // A key that is revoked takes what was given under it along.
    let id = KeyId::from_parts(world.now_ms, 1);
    let key = ApiKey {
        id,
        scopes: [Scope::Rent].into(),
        cap_micro_usd: 0,
        spent_micro_usd: 0,
        expires_ms: until_ms,
        revoked: false,
        revoked_ms: None,
    };
    world.must(owner, CommandBody::MakeKey { key, label: "ci".into(), sha256: "00".repeat(32) });
    assert_eq!(world.refused(Actor::Key(OTHER, id), share(OTHER, "ssh", until_ms)), "key_unusable");
    world.must(Actor::Key(RENTER, id), share(OTHER, "ssh", until_ms));
    world.must(owner, CommandBody::RevokeKey { key: id });
    let revoked = Void { account: RENTER, key: Some(id), before_ms: world.now_ms + 1 };
    assert!(taken_back(&world).contains(&revoked), "{:?}", taken_back(&world));

    // Few share it in its whole life; a share that is changed is the same one.
    let somebody = |n: usize| Address([u8::try_from(n).unwrap() + 100; 32]);
    for n in 1..MOST_SHARES {
        world.must(owner, share(somebody(n), "ssh", until_ms));
        world.must(owner, CommandBody::Unshare { order, account: somebody(n) });
    }
    assert_eq!(world.refused(owner, share(somebody(MOST_SHARES), "ssh", until_ms)), "out_of_range");
    world.must(owner, share(somebody(1), "log", until_ms));
}
