//! The way of an order through the core: every step by its reconciler, every minor unit by the domain's formula.

use std::collections::BTreeMap;

use ionet_api::sign;
use ionet_api::worker::{BoxPhase, Flow, FromWorker, PathKind, PeerLink};
use ionet_domain::command::CommandBody;
use ionet_domain::device::{Contact, Tier};
use ionet_domain::ledger::Owner;
use ionet_domain::market::Request;
use ionet_domain::meter::Witness;
use ionet_domain::money::{BasisPoints, HOUR_MS, Rate};
use ionet_domain::order::{CloseReason, LeasePhase};
use ionet_domain::{Actor, Command, CommandId, Event, LeaseId, OrderId, PublicBody, Refusal, Stage};
use ionet_server::Keys;

use crate::world::{OTHER, RENTER, STEP_MS, SUPPLIER, World, request};

const FUNDS: u64 = 50_000_000;

fn close(world: &mut World, order: OrderId) {
    world.must(Actor::Wallet(RENTER), CommandBody::Close { order, reason: CloseReason::Renter });
}

fn until_stage(world: &mut World, order: OrderId, stage: Stage) {
    world.until(&format!("{stage}"), |world| world.stage(order) >= Some(stage));
}

fn events(world: &World) -> Vec<Event> {
    world.published.iter().map(|published| published.event.clone()).collect()
}

fn witnesses(world: &World) -> Vec<Witness> {
    let metered = events(world).into_iter().filter_map(|event| match event.public {
        PublicBody::LeaseMetered { witness, .. } => Some(witness),
        _ => None,
    });
    metered.collect()
}

fn of(share: BasisPoints, amount: u64) -> u64 {
    amount * u64::from(share.0) / 10_000
}

#[test]
fn from_order_to_payout_to_the_minor_unit() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    let worker = world.device(SUPPLIER, 3_333_333);
    let device = world.workers[&worker].device;
    // The server's own figures count, not what the device says of the network.
    assert_eq!(world.state().devices[&device].tier, Some(Tier::High));
    let quote = world.quote(&request(1)).unwrap();
    let order = world.place(quote.clone());
    until_stage(&mut world, order, Stage::Running);
    let lease = LeaseId { order, n: 0 };
    let (told, key) = (world.workers[&worker].told.clone().unwrap(), Keys::from_seeds([40; 32], [41; 32]));
    let wanted = &told.leases[0];
    assert_eq!((wanted.lease, wanted.running, wanted.paid_ms), (lease, true, HOUR_MS));
    assert_eq!(wanted.token, key.cluster_token(order));
    sign::verify(key.signing.address(), "test", &wanted.members, &wanted.members_signature).unwrap();
    assert!(wanted.members.members[0].endpoint.is_some());
    world.run_for(10 * 60_000 + STEP_MS);
    assert!(witnesses(&world).len() >= 10);
    close(&mut world, order);
    until_stage(&mut world, order, Stage::Paid);

    let found = world.order(order).unwrap();
    let lease = &found.leases[&0];
    assert!(matches!(&lease.phase, LeasePhase::Removed { wipe: Some(wipe) } if wipe.files == 3));
    let charge = Rate(3_333_333).total_for(lease.elapsed_ms);
    let (renter_fee, supplier_fee) = (of(quote.renter_fee, charge), of(quote.supplier_fee, charge));
    assert_eq!(lease.charged_micro_usd, charge);
    assert_eq!(lease.elapsed_ms, found.closed_ms.unwrap() - lease.charging_since_ms.unwrap());
    assert!(witnesses(&world).iter().all(|witness| *witness == Witness::Heartbeats));
    assert_eq!(world.balance(Owner::Wallet(RENTER)), FUNDS - charge - renter_fee);
    assert_eq!(world.balance(Owner::Fees), renter_fee + supplier_fee);
    let paid: Vec<_> = world.chain.payouts().into_values().collect();
    assert_eq!(paid, [(SUPPLIER, ionet_domain::Asset::Iosd, charge - supplier_fee)]);
    assert_eq!(world.balance(Owner::Earned(SUPPLIER)), 0);
    assert_eq!(world.state().devices[&device].leases, 0);
    world.run_for(25 * HOUR_MS);
    assert_eq!(world.stage(order), None, "what ended leaves the live state");
    assert!(world.workers[&worker].boxes.is_empty());
}

#[test]
fn everything_delivered_twice_changes_nothing() {
    let run = |doubled| {
        let mut world = World::new();
        world.doubled = doubled;
        world.fund(RENTER, FUNDS);
        for owner in [SUPPLIER, OTHER] {
            world.device(owner, 1_000_000);
        }
        let quote = world.quote(&request(2)).unwrap();
        let order = world.place(quote);
        until_stage(&mut world, order, Stage::Running);
        world.run_for(5 * 60_000);
        close(&mut world, order);
        until_stage(&mut world, order, Stage::Paid);
        let events: Vec<_> = events(&world).iter().map(|event| event.public.name()).collect();
        (events, world.balance(Owner::Wallet(RENTER)), world.chain.payouts().len())
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_retry_is_answered_exists_and_two_race_for_the_last_device() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    world.device(SUPPLIER, 1_000_000);
    let quotes = [world.quote(&request(1)).unwrap(), world.quote(&request(1)).unwrap()];
    let commands = quotes.map(|quote| {
        let n = world.unique();
        let order = OrderId::from_parts(world.now_ms, n.into());
        let program = crate::world::program();
        let body = CommandBody::PlaceOrder { order, quote, program };
        let id = Some(CommandId::from_parts(world.now_ms, n.into()));
        Command { id, actor: Actor::Wallet(RENTER), body }
    });
    // All three before one commit.
    for (ticket, command) in [(900, &commands[0]), (901, &commands[1]), (902, &commands[0])] {
        world.core.step(world.now_ms, ionet_server::Input::Submit(Some(ticket), command.clone()));
    }
    let outputs = world.commit().unwrap();
    let answers: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            ionet_server::Output::Answer(ticket, answer) => {
                Some((*ticket, answer.as_ref().map_or_else(Refusal::code, |_| "ok")))
            }
            _ => None,
        })
        .collect();
    assert_eq!(answers, [(900, "ok"), (901, "no_capacity"), (902, "exists")]);
    world.settle_down();
    assert_eq!(world.ask_as(&commands[0]).unwrap().unwrap_err().code(), "exists");
    assert_eq!(world.state().orders.len(), 1);
}

#[test]
fn a_silent_device_is_unknown_and_its_usage_is_settled_on_return() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    let worker = world.device(SUPPLIER, 1_000_000);
    let device = world.workers[&worker].device;
    let quote = world.quote(&request(1)).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    world.run_for(90_000);
    world.unlink(worker);
    world.run_for(10_000);
    assert_eq!(world.state().devices[&device].contact, Contact::Connected);
    world.run_for(10 * 60_000);
    assert!(matches!(world.state().devices[&device].contact, Contact::Unknown { .. }));
    assert_eq!(world.stage(order), Some(Stage::Running), "silence ends nothing");
    world.link(worker);
    world.run_for(2 * 60_000 + STEP_MS);
    let kinds = witnesses(&world);
    assert_eq!(kinds.iter().filter(|witness| **witness == Witness::Nobody).count(), 1, "{kinds:?}");
    assert_eq!(kinds.last(), Some(&Witness::Heartbeats));
    close(&mut world, order);
    until_stage(&mut world, order, Stage::Paid);
    let found = world.order(order).unwrap();
    let ran_ms = found.closed_ms.unwrap() - found.running_since_ms.unwrap();
    assert_eq!(found.leases[&0].elapsed_ms, ran_ms);
}

#[test]
fn another_suppliers_member_is_a_witness() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    let workers = [world.device(SUPPLIER, 1_000_000), world.device(OTHER, 1_000_000)];
    let quote = world.quote(&request(2)).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    for n in 0..2 {
        world.box_of(LeaseId { order, n }).heard = vec![1 - n];
    }
    world.run_for(60_000);
    let before = witnesses(&world).len();
    world.unlink(workers[0]);
    world.unlink(workers[1]);
    world.run_for(120_000);
    world.link(workers[1]);
    world.link(workers[0]);
    world.settle_down();
    world.run_for(STEP_MS);
    let since = witnesses(&world).split_off(before);
    assert!(since.iter().any(|witness| matches!(witness, Witness::Member(_))), "{since:?}");
}

#[test]
fn a_lost_member_is_replaced_and_the_rest_runs_on() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    for _ in 0..3 {
        world.device(SUPPLIER, 1_000_000);
    }
    let quote = world.quote(&request(2)).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    world.run_for(60_000);
    let lost = LeaseId { order, n: 1 };
    let survivor_elapsed_ms = world.box_of(LeaseId { order, n: 0 }).elapsed_ms;
    world.box_of(lost).phase = BoxPhase::Lost { reason: "killed".into() };
    world.until("a third lease is up", |world| {
        world
            .order(order)
            .is_some_and(|order| order.leases.get(&2).is_some_and(|lease| lease.phase == LeasePhase::Ready))
    });
    assert_eq!(world.stage(order), Some(Stage::Running));
    assert!(world.box_of(LeaseId { order, n: 0 }).elapsed_ms > survivor_elapsed_ms);
    world.until("the lost box is wiped", |world| {
        world.workers.values().all(|worker| !worker.boxes.contains_key(&lost))
    });
    world.run_for(HOUR_MS);
    until_stage(&mut world, order, Stage::Paid);
    let found = world.order(order).unwrap();
    assert_eq!(found.reason, Some(CloseReason::Time));
    assert_eq!(found.leases[&0].elapsed_ms, HOUR_MS);
    assert!(found.leases[&1].elapsed_ms > 0 && found.leases[&2].elapsed_ms > 0);
}

#[test]
fn programs_that_all_end_close_the_order() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    world.device(SUPPLIER, 1_000_000);
    let quote = world.quote(&request(1)).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    world.run_for(30_000);
    world.box_of(LeaseId { order, n: 0 }).phase = BoxPhase::Exited { exit_code: 3 };
    until_stage(&mut world, order, Stage::Paid);
    assert_eq!(world.order(order).unwrap().reason, Some(CloseReason::Finished { exit_code: 3 }));
    assert_eq!(world.order(order).unwrap().leases[&0].elapsed_ms, 30_000);
}

#[test]
fn a_forged_receipt_is_worth_nothing() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    let worker = world.device(SUPPLIER, 1_000_000);
    let quote = world.quote(&request(1)).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    let mut forged = world.workers[&worker].observed();
    forged[0].receipt.as_mut().unwrap().elapsed_ms = 30 * 60_000;
    world.now_ms += 40 * 60_000;
    world.send(worker, &FromWorker::Observed(forged));
    // Signed by the right key and beyond all time that there was.
    world.box_of(LeaseId { order, n: 0 }).elapsed_ms = 41 * 60_000;
    let beyond = world.workers[&worker].observed();
    world.send(worker, &FromWorker::Observed(beyond));
    world.core.step(world.now_ms, ionet_server::Input::Tick);
    let view = world.core.view().read().clone();
    assert_eq!(view.fleet.device(world.workers[&worker].device).unwrap().bad_receipts, 2);
    assert_eq!(view.state.orders[&order].leases[&0].elapsed_ms, 0);
}

#[test]
fn a_member_speaks_for_its_own_links_only() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    let workers = [1_000_000, 2_000_000].map(|ask| world.device(SUPPLIER, ask));
    let quote = world.quote(&Request { spread: true, ..request(2) }).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    let link = |peer| PeerLink {
        peer,
        path: PathKind::Relayed,
        via: "https://relay".into(),
        path_for_ms: 5,
        rtt_us: 900,
        loss_ppm: None,
        sent: Flow { bytes: 1_000, ..Flow::default() },
        received: Flow::default(),
        dropped: BTreeMap::new(),
    };
    let own = world.workers[&workers[0]].boxes.keys().next().copied().unwrap();
    let others = world.workers[&workers[1]].boxes.keys().next().copied().unwrap();
    for lease in [own, others] {
        world.send(workers[0], &FromWorker::Links { lease, links: vec![link(1 - lease.n)] });
    }
    let view = world.core.view().read().clone();
    let told = |lease| view.fleet.links(lease).map(|now| now.links[0].rtt_us);
    assert_eq!((told(own), told(others)), (Some(900), None));
}

#[test]
fn a_payout_pays_once_even_if_the_chain_timed_out_after_paying() {
    use ionet_chain::PayFault::{Refuse, TimeoutAfter, TimeoutBefore};
    for fault in [Refuse, TimeoutBefore, TimeoutAfter] {
        let mut world = World::new();
        world.fund(RENTER, FUNDS);
        world.device(SUPPLIER, 1_000_000);
        let quote = world.quote(&request(1)).unwrap();
        let order = world.place(quote);
        until_stage(&mut world, order, Stage::Running);
        world.run_for(120_000);
        world.chain.plan(fault);
        world.chain.plan(fault);
        close(&mut world, order);
        until_stage(&mut world, order, Stage::Paid);
        let paid: u64 = world.chain.payouts().values().map(|(_, _, amount)| amount).sum();
        let earned = Rate(1_000_000).total_for(120_000);
        assert_eq!(
            (world.chain.payouts().len(), paid),
            (1, earned - of(BasisPoints(25), earned)),
            "{fault:?}"
        );
    }
}
