//! A server that comes back from an old backup, and one whose snapshots are of use or not.

use ionet_domain::command::CommandBody;
use ionet_domain::ledger::Owner;
use ionet_domain::order::CloseReason;
use ionet_domain::{Actor, Asset, EndpointId, LeaseId, OrderId, Stage};
use ionet_journal::Keep;

use crate::world::{RENTER, SUPPLIER, World, open, request};

/// A world with one worker, and an order that runs on it.
fn running() -> (World, EndpointId, OrderId) {
    let mut world = World::new();
    world.fund(RENTER, 50_000_000);
    let worker = world.device(SUPPLIER, 1_000_000);
    let quote = world.quote(&request(1)).unwrap();
    let order = world.place(quote);
    world.until("it runs", |world| world.stage(order) == Some(Stage::Running));
    (world, worker, order)
}

#[test]
fn a_restored_server_leaves_alone_what_it_does_not_know() {
    let mut world = World::new();
    world.fund(RENTER, 50_000_000);
    let worker = world.device(SUPPLIER, 1_000_000);
    let backup = world.disk.copy();
    let quote = world.quote(&request(1)).unwrap();
    let order = world.place(quote);
    world.until("it runs", |world| world.stage(order) == Some(Stage::Running));
    world.run_for(60_000);
    let generation = world.workers[&worker].told.clone().unwrap().generation;
    world.disk = backup;
    world.restart();
    world.run_for(60_000);
    let (lease, device) = (LeaseId { order, n: 0 }, world.workers[&worker].device);
    assert_eq!(world.core.view().read().fleet.adopted(), [(device, lease)]);
    let told = world.workers[&worker].told.clone().unwrap();
    assert!(told.generation > generation, "a new term comes after every older one");
    assert!(told.leases.is_empty() && told.ended.is_empty());
    assert!(world.box_of(lease).running, "it runs on");
}

/// Terms come from the clock; the devices remember the lost timeline's, and are asked.
#[test]
fn a_restore_after_the_clock_was_put_right_is_heard_by_devices_of_a_later_term() {
    let (mut world, worker, order) = running();
    let backup = world.disk.copy();
    world.now_ms += 2 * 3_600_000;
    world.restart();
    let close = CommandBody::Close { order, reason: CloseReason::Renter };
    world.must(Actor::Wallet(RENTER), close.clone());
    world.run_for(10_000);
    let lost = world.workers[&worker].told.clone().unwrap().generation;
    world.now_ms -= 2 * 3_600_000;
    world.disk = backup;
    world.restart();
    world.run_for(10_000);
    let told = world.workers[&worker].told.clone().unwrap().generation;
    assert!(told > lost, "{told:?} does not come after {lost:?}");
    let terms = |world: &World| world.core.view().read().state.term;
    let term = terms(&world);
    world.run_for(10_000);
    assert_eq!(terms(&world), term, "one new term is enough");
}

/// The chain keeps what it did in the timeline that was lost: what it paid is never paid again, and every order ends.
#[test]
fn a_restored_server_believes_the_chain_on_what_was_paid() {
    let (mut world, _, order) = running();
    world.run_for(60_000);
    let backup = world.disk.copy();
    // It ends earlier here than in the timeline that counts.
    world.must(Actor::Wallet(RENTER), CommandBody::Close { order, reason: CloseReason::Renter });
    world.until("it is paid", |world| world.stage(order) == Some(Stage::Paid));
    let made = world.chain.payouts();
    world.disk = backup;
    world.restart();
    // Else the two timelines would ask for the same amount, and there would be nothing to adopt.
    let paid: u64 = made.values().map(|(_, _, amount)| amount).sum();
    world.until("it has earned more than was paid", |world| {
        let earned = Owner::Earned(SUPPLIER);
        world.core.view().read().state.ledger.balance(earned, Asset::Iosd).credits > paid
    });
    world.must(Actor::Wallet(RENTER), CommandBody::Close { order, reason: CloseReason::Renter });
    world.until("it is paid again", |world| world.stage(order) == Some(Stage::Paid));
    let now_made = world.chain.payouts();
    assert!(made.iter().all(|(id, paid)| now_made.get(id) == Some(paid)), "{made:?} became {now_made:?}");
    let adopted = world.published.iter().any(|published| published.event.public.name() == "payout_adopted");
    assert!(adopted, "{now_made:?}");
    let view = world.core.view();
    let state = &view.read().state;
    state.audit().unwrap();
    let out: u64 = now_made.values().map(|(_, _, amount)| amount).sum();
    assert_eq!(state.ledger.balance(Owner::World, Asset::Iosd).credits, out);
}

#[test]
fn what_retired_long_ago_is_removed_when_a_device_comes_back_with_it() {
    let (mut world, worker, order) = running();
    world.unlink(worker);
    let close = CommandBody::Close { order, reason: CloseReason::Renter };
    world.must(Actor::Wallet(RENTER), close);
    world.until("it is forgotten", |world| {
        world.stage(order).is_none() || world.stage(order) == Some(Stage::Paid)
    });
    world.now_ms += 25 * 3_600_000;
    world.until("it is forgotten", |world| world.stage(order).is_none());
    world.link(worker);
    world.run_for(20_000);
    assert!(world.workers[&worker].boxes.is_empty());
    assert_eq!(world.core.view().read().fleet.adopted(), []);
}

#[test]
fn a_snapshot_and_the_whole_journal_fold_to_the_same_state() {
    let (world, _, _) = running();
    let disk = world.disk.restart(Keep::Everything);
    let whole = disk.copy();
    let names = ionet_journal::Disk::list(&whole).unwrap();
    for name in names.iter().filter(|name| name.ends_with(".snapshot")) {
        assert!(whole.corrupt(name, 200, 1));
    }
    let (from_snapshot, _, opened) = open(&disk, world.now_ms);
    let (from_start, _, passed_over) = open(&whole, world.now_ms);
    assert!(opened.snapshot_seq > 0 && opened.folded < 10, "{opened:?}");
    assert_eq!(passed_over.snapshot_seq, 0);
    assert!(!passed_over.unusable_snapshots.is_empty());
    assert_eq!(from_snapshot.view().read().state, from_start.view().read().state);
    assert_eq!(from_snapshot.view().read().deposits_seen, 1);
    assert_eq!(from_start.view().read().deposits_seen, 1);
}
