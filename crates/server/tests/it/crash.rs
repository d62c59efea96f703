//! The server dies between every two steps of an order's way, and at every write to its disk.

use ionet_domain::command::CommandBody;
use ionet_domain::ledger::Owner;
use ionet_domain::order::CloseReason;
use ionet_domain::{Actor, OrderId, Stage};
use ionet_journal::{Fault, Keep};

use crate::world::{Crash, OTHER, RENTER, SUPPLIER, World, request};

const FUNDS: u64 = 50_000_000;

/// The whole way of an order with two members; whatever happens, the money adds up and the order reaches its end.
fn whole_way(world: &mut World) -> OrderId {
    world.fund(RENTER, FUNDS);
    for owner in [SUPPLIER, OTHER] {
        world.device(owner, 1_000_000);
    }
    let quote = world.quote(&request(2)).unwrap();
    let order = world.place(quote);
    world.until("it runs", |world| world.stage(order) >= Some(Stage::Running));
    world.run_for(130_000);
    let close = CommandBody::Close { order, reason: CloseReason::Renter };
    world.must(Actor::Wallet(RENTER), close);
    world.until("it is paid", |world| world.stage(order) == Some(Stage::Paid));
    order
}

fn check(world: &World, order: OrderId, what: &str) {
    let state = world.state();
    state.audit().unwrap_or_else(|fault| panic!("{what}: {fault}"));
    let found = &state.orders[&order];
    let paid: u64 = world.chain.payouts().values().map(|(_, _, amount)| amount).sum();
    let total = world.balance(Owner::Wallet(RENTER)) + world.balance(Owner::Fees) + paid;
    assert_eq!(total, FUNDS, "{what}: money was made or lost");
    assert!(found.bill().total_micro_usd <= found.escrow_micro_usd, "{what}");
    for lease in found.leases.values() {
        let ran_ms = found.closed_ms.unwrap() - lease.charging_since_ms.unwrap();
        assert_eq!(lease.elapsed_ms, ran_ms, "{what}: every second that ran is charged");
    }
    assert!(world.workers.values().all(|worker| worker.boxes.is_empty()), "{what}: a box was left");
}

/// The server dies once in each of these moments in turn.
fn dies_at(moment: fn(u64) -> Crash, moments: fn(&World) -> u64) {
    let mut world = World::new();
    let order = whole_way(&mut world);
    world.settle_down();
    check(&world, order, "without a crash");
    let last = moments(&world);
    assert!(last > 10, "{last}");
    for at in 1..=last {
        let mut world = World::new();
        world.crash = moment(at);
        let order = whole_way(&mut world);
        world.run_for(20_000);
        assert_eq!(world.crashes, 1);
        check(&world, order, &format!("crash {:?}", world.crash));
    }
}

#[test]
fn after_every_commit_with_the_next_batch_sealed_before_anything_is_released() {
    dies_at(Crash::AfterCommit, |world| world.commits);
}

#[test]
fn after_every_seal_before_anything_is_written() {
    dies_at(Crash::AfterSeal, |world| world.seals);
}

#[test]
fn the_power_goes_at_every_write() {
    let mut world = World::new();
    let first = world.disk.operations();
    whole_way(&mut world);
    let last = world.disk.operations();
    for at in first..last {
        let mut world = World::new();
        world.disk.plan(at, Fault::PowerLoss);
        let order = whole_way(&mut world);
        world.run_for(20_000);
        check(&world, order, &format!("power lost at operation {at}"));
    }
}

#[test]
fn a_failed_sync_ends_the_process_and_answers_nobody() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    let from = world.disk.operations();
    for operation in from..from + 8 {
        world.disk.plan(operation, Fault::FailedSync);
    }
    let before = world.core.view().read().head;
    let mut sealed = [1, 2].map(|ticket| {
        let particulars = "a".into();
        let kind = ionet_domain::account::ActivityKind::SignedIn;
        let body = CommandBody::LogActivity { account: RENTER, kind, key: None, particulars };
        let command = ionet_domain::Command { id: None, actor: Actor::Server, body };
        world.core.step(world.now_ms, ionet_server::Input::Submit(Some(ticket), command));
        Some(world.core.seal().unwrap())
    });
    assert_eq!(world.core.engine().staged(), 2);
    let codes = sealed.each_mut().map(|batch| {
        let batch = batch.take().unwrap();
        world.committer.commit(batch).unwrap_err().code().to_owned()
    });
    assert_eq!(codes, ["sync_failed", "journal_stopped"]);
    assert!(world.commit().is_err(), "it is never tried again");
    assert_eq!(world.core.view().read().head, before);
    world.disk = world.disk.restart(Keep::Nothing);
    let (core, _, _) = crate::world::open(&world.disk, world.now_ms);
    assert_eq!(
        core.view().read().state.ledger.balance(Owner::Wallet(RENTER), ionet_domain::Asset::Iosd).available(),
        FUNDS
    );
}
