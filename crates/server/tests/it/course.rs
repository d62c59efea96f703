//! What changes an order that runs, through the core: reconcilers place, remove, meter and tell as the renter says.

use ionet_api::worker::{FromWorker, Telemetry};
use ionet_domain::command::CommandBody;
use ionet_domain::ledger::Owner;
use ionet_domain::market::Upkeep;
use ionet_domain::market::upkeep::{Metric, ReplaceMode, Scale};
use ionet_domain::money::HOUR_MS;
use ionet_domain::order::health::Ailment;
use ionet_domain::order::size::{OrderChange, more_of};
use ionet_domain::order::{CloseReason, LeasePhase};
use ionet_domain::{Actor, LeaseId, OrderId, Stage};

use crate::world::{RENTER, SUPPLIER, World, request};

const FUNDS: u64 = 50_000_000;
const MINUTE_MS: u64 = 60_000;

fn running(devices: u32, members: u32) -> (World, OrderId) {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    for _ in 0..devices {
        world.device(SUPPLIER, 1_000_000);
    }
    let quote = world.quote(&request(members)).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    (world, order)
}

fn until_stage(world: &mut World, order: OrderId, stage: Stage) {
    world.until(&format!("{stage}"), |world| world.stage(order) == Some(stage));
}

fn ask(world: &mut World, body: CommandBody) {
    assert!(world.must(Actor::Wallet(RENTER), body));
}

fn members(world: &World, order: OrderId) -> Vec<u32> {
    let order = world.order(order).unwrap();
    let up = |lease: &&ionet_domain::order::Lease| lease.live() && lease.phase == LeasePhase::Ready;
    order.leases.values().filter(up).map(|lease| lease.slot).collect()
}

/// The members that a lease's box was last told of.
fn told(world: &World, lease: LeaseId) -> Vec<u32> {
    let told = world.workers.values().filter_map(|worker| worker.told.as_ref());
    let mut leases = told.flat_map(|told| &told.leases).filter(|told| told.lease == lease);
    leases
        .next()
        .map(|told| told.members.members.iter().map(|member| member.slot).collect())
        .unwrap_or_default()
}

fn boxes(world: &World) -> usize {
    world.workers.values().map(|worker| worker.boxes.len()).sum()
}

#[test]
fn members_are_added_and_taken_away_while_the_others_run() {
    let (mut world, order) = running(3, 1);
    world.run_for(10 * MINUTE_MS);
    let more = more_of(&world.order(order).unwrap(), 2, world.now_ms).unwrap();
    let quote = world.quote(&more).unwrap();
    ask(&mut world, CommandBody::Grow { order, quote });
    world.until("three members are up", |world| members(world, order) == [0, 1, 2]);
    assert_eq!(told(&world, LeaseId { order, n: 0 }), [0, 1, 2]);
    assert_eq!(world.order(order).unwrap().engine_epoch, 0, "the head runs on");
    world.run_for(10 * MINUTE_MS);
    let before = world.balance(Owner::Wallet(RENTER));
    ask(&mut world, CommandBody::Shrink { order, members: 1 });
    assert!(world.balance(Owner::Wallet(RENTER)) > before, "the rest comes back at once");
    world.until("two boxes are gone", |world| boxes(world) == 1);
    assert_eq!(told(&world, LeaseId { order, n: 0 }), [0]);
    let found = world.order(order).unwrap();
    for n in [1, 2] {
        assert!(matches!(&found.leases[&n].phase, LeasePhase::Removed { wipe: Some(_) }));
        let elapsed_ms = found.leases[&n].elapsed_ms;
        assert!((9 * MINUTE_MS..11 * MINUTE_MS).contains(&elapsed_ms), "metered to the end: {elapsed_ms}");
    }
    world.run_for(HOUR_MS);
    until_stage(&mut world, order, Stage::Paid);
    let found = world.order(order).unwrap();
    assert_eq!((found.reason.clone(), found.leases[&0].elapsed_ms), (Some(CloseReason::Time), HOUR_MS));
    let bill = found.bill();
    assert_eq!(bill.total_micro_usd + bill.refund_micro_usd, bill.escrow_micro_usd);
}

#[test]
fn a_paused_order_costs_nothing_and_goes_on_with_its_time() {
    let (mut world, order) = running(2, 2);
    world.run_for(20 * MINUTE_MS);
    ask(&mut world, CommandBody::Pause { order });
    world.until("the boxes are gone", |world| boxes(world) == 0);
    assert_eq!(world.stage(order), Some(Stage::Paused));
    let charged = world.order(order).unwrap().bill().total_micro_usd;
    world.run_for(5 * HOUR_MS);
    assert_eq!(world.order(order).unwrap().bill().total_micro_usd, charged);
    ask(&mut world, CommandBody::Resume { order });
    until_stage(&mut world, order, Stage::Running);
    world.run_for(39 * MINUTE_MS);
    assert_eq!(world.stage(order), Some(Stage::Running));
    world.run_for(2 * MINUTE_MS);
    until_stage(&mut world, order, Stage::Paid);
    let found = world.order(order).unwrap();
    assert_eq!(found.reason, Some(CloseReason::Time));
    for (first, second) in [(0, 2), (1, 3)] {
        let ran_ms = found.leases[&first].elapsed_ms + found.leases[&second].elapsed_ms;
        assert!(ran_ms <= HOUR_MS && ran_ms > HOUR_MS - MINUTE_MS, "{ran_ms}");
    }
}

#[test]
fn a_pause_ends_at_its_bound_and_everything_comes_back() {
    let (mut world, order) = running(1, 1);
    let upkeep = Upkeep { max_pause_ms: Some(10 * MINUTE_MS), ..Upkeep::default() };
    let change = OrderChange { upkeep: Some(upkeep), ..OrderChange::default() };
    ask(&mut world, CommandBody::ChangeOrder { order, change });
    ask(&mut world, CommandBody::Pause { order });
    world.run_for(9 * MINUTE_MS);
    assert_eq!(world.stage(order), Some(Stage::Paused));
    world.run_for(2 * MINUTE_MS);
    until_stage(&mut world, order, Stage::Paid);
    let found = world.order(order).unwrap();
    assert_eq!(found.reason, Some(CloseReason::PauseOver));
    assert_eq!(world.balance(Owner::Wallet(RENTER)), FUNDS - found.bill().total_micro_usd);
}

#[test]
fn less_time_ends_sooner_on_the_device_too() {
    let (mut world, order) = running(1, 1);
    world.run_for(10 * MINUTE_MS);
    let change = OrderChange { duration_ms: Some(20 * MINUTE_MS), ..OrderChange::default() };
    ask(&mut world, CommandBody::ChangeOrder { order, change });
    world.run_for(MINUTE_MS);
    let told: Vec<u64> = world
        .workers
        .values()
        .flat_map(|worker| &worker.told)
        .flat_map(|told| &told.leases)
        .map(|it| it.paid_ms)
        .collect();
    assert_eq!(told, [20 * MINUTE_MS]);
    world.run_for(10 * MINUTE_MS);
    until_stage(&mut world, order, Stage::Paid);
    assert_eq!(world.order(order).unwrap().leases[&0].elapsed_ms, 20 * MINUTE_MS);
}

/// Every machine says for a while how busy it is, by itself and by others: `percent` of a machine by its place.
fn busy_for(world: &mut World, ms: u64, percent: impl Fn(usize) -> (u8, u8)) {
    for _ in 0..ms / 5_000 {
        let workers: Vec<_> = world.workers.keys().copied().collect();
        for (at, worker) in workers.into_iter().enumerate() {
            let (cpu_percent, foreign_cpu_percent) = percent(at);
            let telemetry = Telemetry { cpu_percent, foreign_cpu_percent, ..Telemetry::default() };
            world.send(worker, &FromWorker::Telemetry(telemetry));
        }
        world.run_for(5_000);
    }
}

#[test]
fn a_member_on_an_overloaded_machine_is_proposed_and_then_replaced_where_that_is_allowed() {
    let (mut world, order) = running(3, 1);
    let device = world.order(order).unwrap().leases[&0].device;
    let machine = world.workers.values().position(|worker| worker.device == device).unwrap();
    let busy = move |at| if at == machine { (95, 80) } else { (10, 0) };
    busy_for(&mut world, 4 * MINUTE_MS, busy);
    assert_eq!(world.order(order).unwrap().leases[&0].ailing, None, "that may pass");
    busy_for(&mut world, 4 * MINUTE_MS, busy);
    let ailing = world.order(order).unwrap().leases[&0].ailing.clone().unwrap();
    assert_eq!(ailing.ailment, Ailment::Overloaded { foreign_cpu_percent: 80 });
    assert_eq!(world.order(order).unwrap().leases.len(), 1, "it is only proposed");
    let upkeep = Upkeep { replace: ReplaceMode::ByItself, ..Upkeep::default() };
    let change = OrderChange { upkeep: Some(upkeep), ..OrderChange::default() };
    ask(&mut world, CommandBody::ChangeOrder { order, change });
    busy_for(&mut world, MINUTE_MS, busy);
    let found = world.order(order).unwrap();
    assert_ne!(found.leases[&1].device, device);
    assert!(matches!(found.leases[&0].phase, LeasePhase::Removed { wipe: Some(_) }));
    assert_eq!(members(&world, order), [0]);
}

#[test]
fn a_cluster_grows_while_it_is_busy_and_shrinks_when_it_rests() {
    let mut world = World::new();
    world.fund(RENTER, FUNDS);
    for _ in 0..4 {
        world.device(SUPPLIER, 1_000_000);
    }
    let mut wanted = request(1);
    let metric = Metric::Cpu;
    wanted.upkeep.scale = Some(Scale { min: 1, max: 3, metric, target_percent: 70, max_rate: None });
    let quote = world.quote(&wanted).unwrap();
    let order = world.place(quote);
    until_stage(&mut world, order, Stage::Running);
    busy_for(&mut world, 12 * MINUTE_MS, |_| (100, 0));
    assert_eq!(members(&world, order), [0, 1, 2], "no more than it may have");
    busy_for(&mut world, 30 * MINUTE_MS, |_| (1, 0));
    assert_eq!(members(&world, order), [0], "no fewer either");
    let found = world.order(order).unwrap();
    assert_eq!(found.escrow_micro_usd - found.refund_micro_usd, found.quote.total_micro_usd);
}
