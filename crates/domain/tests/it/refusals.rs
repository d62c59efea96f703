//! What is refused wherever it is asked: steps that are not due, and rights that somebody has not.

use std::collections::BTreeSet;

use ionet_domain::account::{ApiKey, Scope};
use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::market::Program;
use ionet_domain::money::HOUR_MS;
use ionet_domain::order::{CloseReason, LeasePhase, MAX_REPLACEMENTS};
use ionet_domain::{KeyId, LeaseId, OrderId, Params};

use crate::world::{OTHER, RENTER, SUPPLIER, World, request};

/// What only the server's own steps and people's mistakes can be refused for: one line each.
#[test]
fn steps_that_are_not_due_change_nothing() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let device = world.device(SUPPLIER, 100_000);
    let order = world.running(&request(1));
    let lease = LeaseId { order, n: 0 };
    let scopes = BTreeSet::from([Scope::Keys]);
    let id = KeyId::from_parts(world.now_ms, world.unique());
    let expires_ms = world.now_ms + HOUR_MS;
    let key = ApiKey {
        id,
        scopes,
        cap_micro_usd: 5,
        spent_micro_usd: 0,
        expires_ms,
        revoked: false,
        revoked_ms: None,
    };
    let make =
        |key: &ApiKey| CommandBody::MakeKey { key: key.clone(), label: "l".into(), sha256: "0".repeat(64) };
    world.must(Actor::Wallet(RENTER), make(&key));
    let more =
        ApiKey { id: KeyId::from_parts(world.now_ms, world.unique()), cap_micro_usd: 6, ..key.clone() };
    let table = [
        (Actor::Server, CommandBody::Found { params: Params::default() }, "founded"),
        (Actor::Server, CommandBody::Place { order }, "wrong_stage"),
        (Actor::Server, CommandBody::Replace { order }, "no_change"),
        (Actor::Server, CommandBody::MarkRunning { order }, "wrong_stage"),
        (Actor::Server, CommandBody::OpenPayout { account: SUPPLIER }, "no_change"),
        (Actor::Server, CommandBody::ReportYield { device, yielding: false }, "no_change"),
        (Actor::Server, CommandBody::ReportReady { lease, parts_ms: Vec::new() }, "no_change"),
        (Actor::Device(device), make(&more), "not_allowed"),
        (Actor::Server, make(&more), "not_allowed"),
        (Actor::Wallet(RENTER), make(&key), "exists"),
        (Actor::Key(RENTER, id), make(&more), "not_allowed"),
        (Actor::Wallet(OTHER), CommandBody::ReportExit { lease, exit_code: 0 }, "not_allowed"),
    ];
    for (actor, body, code) in table {
        assert_eq!(world.refused(actor, body.clone()), code, "{body:?}");
    }
}

#[test]
fn a_key_commits_no_more_than_its_cap() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    world.device(SUPPLIER, 100_000);
    let id = KeyId::from_parts(world.now_ms, world.unique());
    let (scopes, expires_ms) = (BTreeSet::from([Scope::Rent]), world.now_ms + HOUR_MS);
    let key = ApiKey {
        id,
        scopes,
        cap_micro_usd: 5,
        spent_micro_usd: 0,
        expires_ms,
        revoked: false,
        revoked_ms: None,
    };
    let made = CommandBody::MakeKey { key, label: "l".into(), sha256: "0".repeat(64) };
    world.must(Actor::Wallet(RENTER), made);
    let quote = world.quote(&request(1)).unwrap();
    let order = OrderId::from_parts(world.now_ms, world.unique());
    let program = Program { argv: vec!["true".into()], ..Program::default() };
    let place = CommandBody::PlaceOrder { order, quote, program };
    assert_eq!(world.refused(Actor::Key(RENTER, id), place), "key_over_cap");
}

/// A box that its device removed while the order lived was lost, whatever the device calls it.
#[test]
fn a_box_removed_too_soon_was_lost_and_is_replaced_only_so_often() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    for _ in 0..=MAX_REPLACEMENTS + 2 {
        world.device(SUPPLIER, 100_000);
    }
    let order = world.running(&request(1));
    for n in 0..=MAX_REPLACEMENTS {
        world.removed(LeaseId { order, n });
        let (_, lease) = world.state.lease(LeaseId { order, n }).unwrap();
        assert!(matches!(lease.phase, LeasePhase::Lost { .. }), "{:?}", lease.phase);
        world.must(Actor::Server, CommandBody::Replace { order });
    }
    world.removed(LeaseId { order, n: MAX_REPLACEMENTS + 1 });
    world.must(Actor::Server, CommandBody::Replace { order });
    let found = world.state.order(order).unwrap();
    assert_eq!(found.reason.as_ref().map(CloseReason::code), Some("member_lost"));
}
