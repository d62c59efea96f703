//! What an order shows under the server's name: who may ask, what is refused, which port it gets, when it ends.

use std::collections::BTreeSet;

use ionet_domain::account::{ApiKey, Scope};
use ionet_domain::command::CommandBody;
use ionet_domain::event::PrivateBody;
use ionet_domain::order::CloseReason;
use ionet_domain::order::expose::{Access, Exposure, Kind, MAX_GUESTS, MAX_PORTS, Ports, Wanted};
use ionet_domain::{Actor, Address, KeyId, OrderId, PublicBody};

use crate::world::{OTHER, RENTER, SUPPLIER, World, request};

const PORTS: Ports = Ports { first: 20_000, last: 20_002 };

fn wanted(kind: Kind, port: u16, access: Access) -> Wanted {
    Wanted { kind, port, slot: 0, access, guests: BTreeSet::new(), ports: Some(PORTS) }
}

fn world() -> World {
    let mut world = World::new();
    world.fund(RENTER, 1_000_000_000);
    world.fund(OTHER, 1_000_000_000);
    (0..3).for_each(|_| _ = world.device(SUPPLIER, 10_000));
    world
}

fn expose(order: OrderId, wanted: &Wanted) -> CommandBody {
    CommandBody::Expose { order, wanted: wanted.clone() }
}

fn shown(world: &World, order: OrderId) -> Vec<(Kind, u16, Option<u16>)> {
    let found = world.state.order(order).unwrap();
    found.exposures().iter().map(|it| (it.kind, it.port, it.public_port)).collect()
}

/// One line a request: what is asked, and the code of the answer.
#[test]
fn what_can_be_exposed_and_what_not() {
    let mut world = world();
    let order = world.running(&request(1));
    let named = |n: usize| (0..n).map(|n| Address([u8::try_from(n).unwrap(); 32])).collect::<BTreeSet<_>>();
    let http = |access, guests| Wanted { guests: named(guests), ..wanted(Kind::Http, 8000, access) };
    let table = [
        (wanted(Kind::Http, 0, Access::Owner), "out_of_range"),
        (Wanted { slot: 1, ..wanted(Kind::Http, 80, Access::Owner) }, "out_of_range"),
        (http(Access::Owner, 1), "out_of_range"),
        (http(Access::Public, 1), "out_of_range"),
        (http(Access::Accounts, 0), "out_of_range"),
        (http(Access::Accounts, MAX_GUESTS + 1), "out_of_range"),
        (http(Access::Accounts, MAX_GUESTS), "ok"),
        (http(Access::Accounts, MAX_GUESTS), "no_change"),
        (http(Access::Accounts, 1), "ok"),
        (http(Access::Public, 0), "ok"),
        (http(Access::Owner, 0), "ok"),
        (http(Access::Owner, 0), "no_change"),
        (wanted(Kind::Tcp, 9000, Access::Owner), "unsupported"),
        (Wanted { guests: named(1), ..wanted(Kind::Udp, 9000, Access::Accounts) }, "unsupported"),
        (Wanted { ports: None, ..wanted(Kind::Tcp, 9000, Access::Public) }, "unsupported"),
        (wanted(Kind::Tcp, 9000, Access::Public), "ok"),
        (wanted(Kind::Tcp, 9000, Access::Public), "no_change"),
        (wanted(Kind::Udp, 9000, Access::Public), "ok"),
    ];
    for (line, (wanted, expected)) in table.iter().enumerate() {
        let answer = world.ask(Actor::Wallet(RENTER), expose(order, wanted));
        let code = answer.as_ref().map_or_else(ionet_domain::Refusal::code, |_| "ok");
        assert_eq!(code, *expected, "line {line}: {wanted:?} {answer:?}");
    }
    let expected =
        [(Kind::Http, 8000, None), (Kind::Tcp, 9000, Some(20_000)), (Kind::Udp, 9000, Some(20_000))];
    assert_eq!(shown(&world, order), expected, "TCP and UDP ports are counted apart");
}

#[test]
fn only_the_renter_and_his_keys_that_rent_expose_and_take_back() {
    let mut world = world();
    let order = world.running(&request(1));
    let keys = [(1, Scope::Rent), (2, Scope::Read)].map(|(n, scope)| {
        let id = KeyId::from_parts(world.now_ms, n);
        let scopes = BTreeSet::from([scope]);
        let expires_ms = world.now_ms + 1_000_000;
        let key = ApiKey {
            id,
            scopes,
            cap_micro_usd: 0,
            spent_micro_usd: 0,
            expires_ms,
            revoked: false,
            revoked_ms: None,
        };
        let make = CommandBody::MakeKey { key, label: "k".into(), sha256: "00".into() };
        world.must(Actor::Wallet(RENTER), make);
        Actor::Key(RENTER, id)
    });
    let ask = expose(order, &wanted(Kind::Http, 80, Access::Public));
    let back = CommandBody::Unexpose { order, kind: Kind::Http, port: 80 };
    for body in [&ask, &back] {
        assert_eq!(world.refused(Actor::Wallet(OTHER), body.clone()), "unknown_order");
        assert_eq!(world.refused(Actor::Server, body.clone()), "not_allowed");
        assert_eq!(world.refused(keys[1], body.clone()), "not_allowed");
    }
    assert_eq!(world.refused(Actor::Wallet(RENTER), back.clone()), "no_change", "it is not exposed");
    world.must(keys[0], ask);
    world.must(keys[0], back);
    assert_eq!(world.state.order(order).unwrap().exposed, None, "nothing is kept where nothing is shown");
}

#[test]
fn one_http_service_a_cluster_and_the_names_are_private() {
    let mut world = world();
    let order = world.running(&request(1));
    let guests = BTreeSet::from([OTHER]);
    let ask = Wanted { guests: guests.clone(), ..wanted(Kind::Http, 8000, Access::Accounts) };
    let events = world.must(Actor::Wallet(RENTER), expose(order, &ask));
    assert_eq!(events[0].private, Some(PrivateBody::Guests(guests)));
    let web = |world: &World| *world.state.order(order).unwrap().web().unwrap();
    let first: Exposure = web(&world);
    let admitted = |world: &World, first: &Exposure| {
        let found = world.state.order(order).unwrap();
        [None, Some(OTHER), Some(RENTER), Some(SUPPLIER)].map(|who| world.state.admits(found, first, who))
    };
    assert_eq!(admitted(&world, &first), [false, true, true, false]);
    world.now_ms += 5;
    world.must(Actor::Wallet(RENTER), expose(order, &wanted(Kind::Http, 9000, Access::Owner)));
    assert_eq!(shown(&world, order), [(Kind::Http, 9000, None)], "another port takes its place");
    assert_ne!(web(&world).since_ms, first.since_ms, "what was shown at the door before is void");
    assert_eq!(admitted(&world, &web(&world)), [false, false, true, false]);
    world.must(Actor::Wallet(RENTER), expose(order, &wanted(Kind::Http, 9000, Access::Public)));
    assert_eq!(admitted(&world, &web(&world)), [true; 4]);
    // Where the names were erased, the cluster is its owner's alone.
    let mut erased = world.must(Actor::Wallet(RENTER), expose(order, &ask));
    let mut fold = world.state.clone();
    erased[0].private = None;
    fold.apply(&erased[0]).unwrap();
    let found = fold.order(order).unwrap();
    let admits = |who| fold.admits(found, found.web().unwrap(), Some(who));
    assert!(!admits(OTHER) && admits(RENTER));
}

#[test]
fn public_ports_are_the_lowest_free_ones_and_come_back() {
    let mut world = world();
    let (one, two) = (world.running(&request(1)), world.running(&request(1)));
    let tcp = |port| wanted(Kind::Tcp, port, Access::Public);
    for (order, port) in [(one, 1), (two, 1), (one, 2)] {
        world.must(Actor::Wallet(RENTER), expose(order, &tcp(port)));
    }
    assert_eq!(shown(&world, one), [(Kind::Tcp, 1, Some(20_000)), (Kind::Tcp, 2, Some(20_002))]);
    let refusal = world.ask(Actor::Wallet(RENTER), expose(two, &tcp(2))).unwrap_err();
    assert!(refusal.to_string().contains("all 3 ports from 20000 to 20002 are taken"), "{refusal}");
    world.must(Actor::Wallet(RENTER), CommandBody::Unexpose { order: one, kind: Kind::Tcp, port: 1 });
    world.must(Actor::Wallet(RENTER), expose(two, &tcp(2)));
    assert_eq!(shown(&world, two), [(Kind::Tcp, 1, Some(20_001)), (Kind::Tcp, 2, Some(20_000))]);
    // What a closed cluster had is free at once, and it shows nothing any more.
    world.must(Actor::Wallet(RENTER), CommandBody::Close { order: two, reason: CloseReason::Renter });
    assert_eq!(shown(&world, two), []);
    assert_eq!(world.refused(Actor::Wallet(RENTER), expose(two, &tcp(3))), "wrong_stage");
    let most = Ports { first: 1000, last: 2000 };
    for port in 2..=u16::try_from(MAX_PORTS).unwrap() {
        let ask = Wanted { ports: Some(most), ..tcp(100 + port) };
        world.must(Actor::Wallet(RENTER), expose(one, &ask));
    }
    let over = Wanted { ports: Some(most), ..tcp(99) };
    assert_eq!(world.refused(Actor::Wallet(RENTER), expose(one, &over)), "out_of_range");
    let text = serde_json::to_string(&world.state.order(one).unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<ionet_domain::Order>(&text).unwrap(), *world.state.order(one).unwrap());
    assert!(matches!(
        PublicBody::OrderUnexposed { order: one, kind: Kind::Udp, port: 9 }.subjects()[..],
        [_]
    ));
}
