//! Simulated devices: seen everywhere, marked, and never hired.

use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::market::{Request, board, explain};
use ionet_domain::simulated::Simulated;
use ionet_domain::{Params, Refusal};

use super::world::{RENTER, SUPPLIER, World, good_measures, request};

fn fleet(world: &mut World, count: usize) -> Vec<Simulated> {
    let mut one = |_| {
        let mut enrolment = world.enrolment(SUPPLIER, 900);
        enrolment.simulated = true;
        Simulated { enrolment, measured: good_measures() }
    };
    (0..count).map(&mut one).collect()
}

fn show(world: &mut World, count: usize) -> Vec<Simulated> {
    let devices = fleet(world, count);
    world.must(Actor::Server, CommandBody::Simulate { devices: devices.clone() });
    devices
}

fn simulated() -> Request {
    Request { simulated: true, ..request(2) }
}

#[test]
fn they_are_only_where_the_network_was_founded_for_them() {
    let mut world = World::new();
    world.state.params = Params { simulated_devices: false, ..world.state.params.clone() };
    let devices = fleet(&mut world, 1);
    let body = CommandBody::Simulate { devices };
    assert_eq!(world.refused(Actor::Server, body.clone()), "unsupported");
    let mut marked = world.enrolment(SUPPLIER, 1000);
    marked.simulated = true;
    world.state.params.simulated_devices = true;
    let enrol = CommandBody::Enrol { enrolment: marked, machine_name: "box".into() };
    assert_eq!(world.refused(Actor::Wallet(SUPPLIER), enrol), "not_allowed");
    assert_eq!(world.refused(Actor::Wallet(RENTER), body.clone()), "not_allowed");
    world.must(Actor::Server, body);
}

#[test]
fn one_that_is_not_marked_is_no_simulated_device() {
    let mut world = World::new();
    let mut devices = fleet(&mut world, 1);
    devices[0].enrolment.simulated = false;
    assert_eq!(world.refused(Actor::Server, CommandBody::Simulate { devices }), "out_of_range");
}

#[test]
fn a_real_request_gets_none_and_a_simulated_one_is_never_accepted() {
    let mut world = World::new();
    world.fund(RENTER, 1 << 40);
    show(&mut world, 300);
    let Err(Refusal::NoCapacity(short)) = world.quote(&request(1)) else { panic!("a real seat") };
    assert_eq!(short.removed.len(), 1, "{short}");
    assert_eq!(short.removed[0].constraint, "simulated, nothing runs on them");
    assert_eq!(short.removed[0].devices, 300);
    let quote = world.quote(&simulated()).unwrap();
    assert!(quote.request.simulated);
    let seats = quote.items.iter().map(|item| world.state.device(item.device.unwrap()).unwrap());
    assert!(seats.clone().count() == 2 && seats.into_iter().all(|device| device.enrolment.simulated));
    assert_eq!(world.order_quoted(quote.clone()).unwrap_err().code(), "unsupported");
    // Who takes the mark off a quote gets no device either.
    let mut forged = quote;
    forged.request.simulated = false;
    assert_eq!(world.order_quoted(forged).unwrap_err().code(), "no_capacity");
    let real = world.device(SUPPLIER, 1000);
    assert!(world.quote(&request(1)).unwrap().items.iter().all(|item| item.device == Some(real)));
    assert!(world.quote(&simulated()).unwrap().items.iter().all(|item| item.device != Some(real)));
}

#[test]
fn the_board_and_the_record_keep_them_apart() {
    let mut world = World::new();
    let before = world.state.market.clone();
    let devices = show(&mut world, 200);
    assert_eq!(world.state.market, before, "the record counts real devices alone");
    world.device(SUPPLIER, 1000);
    let classes = board::prices(&world.state, None, world.now_ms);
    let of = |simulated| -> u32 {
        classes.iter().filter(|class| class.simulated == simulated).map(|class| class.devices).sum()
    };
    assert_eq!((of(true), of(false)), (200, 1));
    let mut large = simulated();
    large.per_member.cpu_millis = 64_000;
    let found = explain::request(&world.state, RENTER, &large, world.now_ms).unwrap();
    assert!(!found.fits && !found.nearest.is_empty());
    let near = |device| world.state.device(device).unwrap().enrolment.simulated;
    assert!(found.nearest.iter().all(|miss| near(miss.device)));
    assert_eq!(devices.len(), 200);
    let check = CommandBody::BeginCheck { device: devices[0].enrolment.device };
    assert_eq!(world.refused(Actor::Server, check), "wrong_device_stage");
}
