//! Who serves whom: terms of suppliers and operator are applied before the match, explained to whom they concern, and told
//! to nobody else; and what renters say counts within its bounds.

use std::collections::BTreeSet;

use ionet_domain::command::{Actor, CommandBody as C};
use ionet_domain::event::PublicBody;
use ionet_domain::market::explain::{self, Condition};
use ionet_domain::market::{Country, Denials, DenyList, Request, WorkKind, explain_device};
use ionet_domain::order::CloseReason;
use ionet_domain::{Address, DeviceId, LeaseId, OrderId};

use crate::world::{OTHER, RENTER, SUPPLIER, World, request};

fn country(text: &str) -> Country {
    text.parse().unwrap()
}

fn set(world: &mut World, device: DeviceId, terms: Denials) {
    world.must(Actor::Wallet(SUPPLIER), C::SetTerms { device, terms });
}

fn reason(world: &World, account: Address, wanted: &Request) -> String {
    let found = explain::request(&world.state, account, wanted, world.now_ms).unwrap();
    assert!(!found.fits && found.relaxations.is_empty(), "terms are not the renter's to relax: {found:#?}");
    format!("{} / {}", found.refused.unwrap(), found.nearest[0].misses.join("; "))
}

#[test]
fn a_supplier_serves_whom_and_what_he_likes() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let device = world.device(SUPPLIER, 100_000);
    let train = Request { kind: WorkKind::Train, ..request(1) };
    set(&mut world, device, Denials { kinds: [WorkKind::Train].into(), ..Denials::default() });
    assert!(world.quote(&request(1)).is_ok());
    assert!(reason(&world, RENTER, &train).contains("work of the kind 'train' is not served"));
    assert_eq!(world.quote(&train).unwrap_err().code(), "no_capacity");

    set(&mut world, device, Denials { accounts: [RENTER].into(), ..Denials::default() });
    assert!(reason(&world, RENTER, &request(1)).contains("this account is not served"));
    let other = explain::request(&world.state, OTHER, &request(1), world.now_ms).unwrap();
    assert!(other.fits, "nobody else hears of it");

    set(&mut world, device, Denials { countries: [country("KP")].into(), ..Denials::default() });
    assert!(reason(&world, RENTER, &request(1)).contains("declared their country"));
    world.must(Actor::Wallet(RENTER), C::DeclareCountry { country: country("KP") });
    assert!(reason(&world, RENTER, &request(1)).contains("renters of KP are not served"));
    world.must(Actor::Wallet(RENTER), C::DeclareCountry { country: country("DE") });
    let order = world.order(&request(1)).unwrap();
    // Terms that come after the money all the same hold before the match.
    set(&mut world, device, Denials { accounts: [RENTER].into(), ..Denials::default() });
    world.must(Actor::Server, C::Place { order });
    assert_eq!(world.state.order(order).unwrap().reason, Some(CloseReason::NoCapacity));
    let why = explain_device::device(&world.state, device, world.now_ms).unwrap().orders[0].why.clone();
    assert!(why[0].contains("its supplier's terms"), "{why:?}");
    set(&mut world, device, Denials::default());
    assert!(world.state.private.terms.is_empty() && world.quote(&request(1)).is_ok());
}

#[test]
fn lists_stand_in_the_private_part_alone() {
    let mut world = World::new();
    let device = world.device(SUPPLIER, 100_000);
    let terms =
        Denials { accounts: [RENTER].into(), countries: [country("KP")].into(), kinds: BTreeSet::new() };
    let list = DenyList { renters: terms.clone(), devices: BTreeSet::new() };
    let said = [
        (Actor::Wallet(SUPPLIER), C::SetTerms { device, terms }),
        (Actor::Server, C::SetDenyList { list }),
        (Actor::Wallet(OTHER), C::DeclareCountry { country: country("KP") }),
    ];
    for (actor, body) in said {
        let events = world.must(actor, body.clone());
        let public = String::from_utf8(events[0].public_json()).unwrap();
        assert!(!public.contains(&RENTER.to_string()) && !public.contains("KP"), "{public}");
        assert!(events[0].private_json().is_some());
        assert_eq!(world.refused(actor, body), "no_change");
    }
}

#[test]
fn only_he_who_may_sets_terms() {
    let mut world = World::new();
    let device = world.device(SUPPLIER, 100_000);
    let terms = Denials { kinds: [WorkKind::Train].into(), ..Denials::default() };
    let list = DenyList { renters: terms.clone(), ..DenyList::default() };
    assert_eq!(world.refused(Actor::Wallet(OTHER), C::SetTerms { device, terms }), "not_allowed");
    assert_eq!(world.refused(Actor::Wallet(OTHER), C::SetDenyList { list }), "not_allowed");
    assert_eq!(
        world.refused(Actor::Device(device), C::DeclareCountry { country: country("DE") }),
        "not_allowed"
    );
}

#[test]
fn the_operator_keeps_renters_and_devices_out() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let device = world.device(SUPPLIER, 100_000);
    let out = |renters, devices| C::SetDenyList { list: DenyList { renters, devices } };
    world.must(Actor::Server, out(Denials::default(), [device].into()));
    let found = explain::request(&world.state, RENTER, &request(1), world.now_ms).unwrap();
    assert_eq!(found.nearest[0].misses, ["kept out of the market by the operator"]);
    let closed = explain_device::device(&world.state, device, world.now_ms).unwrap().closed;
    assert!(closed[0].contains("the operator keeps it out"), "{closed:?}");
    let quote = {
        world.must(Actor::Server, out(Denials::default(), BTreeSet::new()));
        world.quote(&request(1)).unwrap()
    };
    world.must(
        Actor::Server,
        out(Denials { accounts: [RENTER].into(), ..Denials::default() }, BTreeSet::new()),
    );
    assert!(
        reason(&world, RENTER, &request(1)).contains("the operator's deny list: this account is not served")
    );
    assert_eq!(world.order_quoted(quote).unwrap_err().code(), "no_capacity");
}

/// An order of the renter on a device, run for its time, closed and settled.
fn ended(world: &mut World, wanted: &Request) -> OrderId {
    let order = world.running(wanted);
    let lease = LeaseId { order, n: 0 };
    world.now_ms += wanted.duration_ms;
    world.meter(lease, wanted.duration_ms, ionet_domain::meter::Witness::Heartbeats).unwrap();
    world.must(Actor::Wallet(RENTER), C::Close { order, reason: CloseReason::Renter });
    world.removed(lease);
    world.must(Actor::Server, C::Settle { order });
    order
}

#[test]
fn a_renter_rates_once_what_has_ended_and_never_his_own() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000_000);
    let device = world.device(SUPPLIER, 100_000_000);
    let by = Actor::Wallet(RENTER);
    let running = world.running(&request(1));
    assert_eq!(world.refused(by, C::Rate { order: running, stars: 5 }), "wrong_stage");
    let order = ended(&mut world, &request(1));
    assert_eq!(world.refused(Actor::Wallet(OTHER), C::Rate { order, stars: 1 }), "unknown_order");
    assert_eq!(world.refused(by, C::Rate { order, stars: 6 }), "out_of_range");
    world.must(by, C::Rate { order, stars: 1 });
    assert_eq!(world.refused(by, C::Rate { order, stars: 5 }), "no_change");
    let served = world.state.market.as_ref().unwrap().served[&device];
    assert_eq!(served.rated_fees_micro_usd, 2 * 250_000, "both sides' fees for an hour at $100");
    assert_eq!(served.stars_hundredths(), Some(100));
    let demanding = Request { min_reliability_percent: Some(100), ..request(1) };
    let found = explain::request(&world.state, RENTER, &demanding, world.now_ms).unwrap();
    assert!(found.nearest[0].misses[0].contains("reliability: 100 % wanted"), "{found:#?}");
    assert!(
        found.relaxations.iter().any(|one| one.changes[0].condition == Condition::Reliability),
        "{found:#?}"
    );

    let own = world.device(RENTER, 1_000_000);
    let order = ended(&mut world, &Request { suppliers: [RENTER].into(), ..request(1) });
    assert_eq!(world.device_of(LeaseId { order, n: 0 }), own);
    world.must(by, C::Rate { order, stars: 5 });
    assert_eq!(world.state.market.as_ref().unwrap().served[&own].stars_hundredths(), None);
}

#[test]
fn work_goes_round_among_those_who_cost_the_same() {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    let devices: BTreeSet<_> = (0..4).map(|n| world.device([SUPPLIER, OTHER][n % 2], 100_000)).collect();
    for round in 0..3 {
        let mut got = BTreeSet::new();
        for _ in 0..devices.len() {
            world.now_ms += 1000;
            let order = ended(&mut world, &request(1));
            got.insert(world.device_of(LeaseId { order, n: 0 }));
        }
        assert_eq!(got, devices, "round {round}: each once");
    }
    let hired = world.events.iter().filter(|event| matches!(event.public, PublicBody::OrderPlaced { .. }));
    assert_eq!(hired.count(), 12);
}
