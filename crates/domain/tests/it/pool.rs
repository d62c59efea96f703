//! How a device enters, is changed and leaves.

use std::collections::BTreeSet;

use ionet_domain::Refusal;
use ionet_domain::command::{Actor, CommandBody};
use ionet_domain::connectivity::{Bandwidth, RelayMeasure};
use ionet_domain::device::{
    DeviceChange, DeviceStage, Gpu, GpuCheck, HardwareClass, Measured, OwnerRules, Tier,
};
use ionet_domain::ledger::Owner;
use ionet_domain::market::Request;
use ionet_domain::money::Rate;

use crate::world::{GIB, OTHER, SUPPLIER, World, good_measures, request};

/// One line a check: what was claimed, what was measured, and the class or the words of the refusal.
#[test]
fn a_check_believes_nothing_that_was_said() {
    let gpu = |n: u8| Gpu { uuid: format!("GPU-{n}"), model: "A100".into(), memory_bytes: 80 * GIB };
    let seen = |n: u8, kernel_sees, memory| GpuCheck {
        uuid: format!("GPU-{n}"),
        kernel_sees,
        driver_memory_bytes: memory,
    };
    let with = |gpus: Vec<GpuCheck>| Measured { gpus, ..good_measures() };
    let table: Vec<(Vec<Gpu>, Measured, Result<&str, &str>)> = vec![
        (vec![], good_measures(), Ok("cpu")),
        (vec![], Measured { cpu_one_mb_s: 19, ..good_measures() }, Err("20 is the least")),
        (vec![], Measured { disk_write_mb_s: 4, ..good_measures() }, Err("5 is the least")),
        (vec![gpu(1)], with(vec![seen(1, true, Some(80 * GIB))]), Ok("A100")),
        (vec![gpu(1)], with(vec![]), Err("not measured")),
        (vec![gpu(1)], with(vec![seen(1, false, Some(80 * GIB))]), Err("no such card")),
        (vec![gpu(1)], with(vec![seen(1, true, None)]), Err("does not know")),
        (vec![gpu(1)], with(vec![seen(1, true, Some(40 * GIB))]), Err("its driver sees")),
        (vec![gpu(1), gpu(2)], with(vec![seen(1, true, Some(80 * GIB))]), Err("GPU-2")),
    ];
    for (gpus, measured, expected) in table {
        let mut world = World::new();
        let mut enrolment = world.enrolment(SUPPLIER, 10_000);
        enrolment.offered.gpus = u32::try_from(gpus.len()).unwrap();
        enrolment.hardware.gpus = gpus;
        let device = enrolment.device;
        let machine_name = "m".into();
        world.must(Actor::Wallet(SUPPLIER), CommandBody::Enrol { enrolment, machine_name });
        world.must(Actor::Server, CommandBody::BeginCheck { device });
        world.must(Actor::Device(device), CommandBody::ReportCheck { device, measured: Ok(measured) });
        let found = world.state.device(device).unwrap();
        match (&found.stage, expected) {
            (DeviceStage::Pooled, Ok(class)) => assert_eq!(found.class.to_string(), class),
            (DeviceStage::Refused { reason }, Err(words)) => assert!(reason.contains(words), "{reason}"),
            (stage, expected) => panic!("{stage:?} where {expected:?} was expected"),
        }
    }
}

#[test]
fn the_owner_comes_first() {
    let mut world = World::new();
    world.fund(crate::world::RENTER, 1_000_000_000);
    let device = world.device(SUPPLIER, 10_000);
    let rules = |rules| CommandBody::ChangeDevice {
        device,
        change: DeviceChange { rules: Some(rules), ..DeviceChange::default() },
    };
    let paused = OwnerRules { paused: true, ..OwnerRules::default() };
    assert_eq!(world.refused(Actor::Wallet(OTHER), rules(paused.clone())), "not_allowed");
    world.must(Actor::Wallet(SUPPLIER), rules(paused));
    let Err(Refusal::NoCapacity(short)) = world.quote(&request(1)) else { panic!("it was hired") };
    assert_eq!(short.removed[0].constraint, "paused by its owner");
    world.must(Actor::Wallet(SUPPLIER), rules(OwnerRules::default()));
    world.must(Actor::Device(device), CommandBody::ReportYield { device, yielding: true });
    assert!(world.quote(&request(1)).is_err());
    world.must(Actor::Device(device), CommandBody::ReportYield { device, yielding: false });
    let order = world.running(&request(1));
    assert_eq!(
        world.refused(Actor::Wallet(SUPPLIER), CommandBody::ArchiveDevice { device }),
        "wrong_device_stage"
    );
    world.must(
        Actor::Wallet(crate::world::RENTER),
        CommandBody::Close { order, reason: ionet_domain::order::CloseReason::Renter },
    );
    world.removed(ionet_domain::LeaseId { order, n: 0 });
    world.must(Actor::Wallet(SUPPLIER), CommandBody::ArchiveDevice { device });
    assert!(world.quote(&request(1)).is_err());
}

#[test]
fn a_device_without_limits_takes_one_tenant() {
    let mut world = World::new();
    world.fund(crate::world::RENTER, 1_000_000_000);
    let enrolment = world.enrolment(SUPPLIER, 10_000);
    let device = enrolment.device;
    world.must(Actor::Wallet(SUPPLIER), CommandBody::Enrol { enrolment, machine_name: "m".into() });
    let contact = ionet_domain::device::Contact::Connected;
    world.must(Actor::Server, CommandBody::NoteContact { device, contact });
    world.must(Actor::Server, CommandBody::BeginCheck { device });
    let measured = Ok(Measured { enforcement: None, ..good_measures() });
    world.must(Actor::Device(device), CommandBody::ReportCheck { device, measured });
    world.running(&request(1));
    assert!(matches!(world.quote(&request(1)), Err(Refusal::NoCapacity(_))));
}

#[test]
fn what_enrols_badly_changes_nothing() {
    let mut world = World::new();
    let good = world.enrolment(SUPPLIER, 10_000);
    let mut offered_too_much = good.clone();
    offered_too_much.offered.cpu_millis = 2001;
    let mut memory = good.clone();
    memory.offered.memory_bytes = 9 * GIB;
    let mut gpus = good.clone();
    gpus.offered.gpus = 1;
    let mut tag = good.clone();
    tag.tags.insert("a b".into());
    let mut network = good.clone();
    network.network = String::new();
    for bad in [offered_too_much, memory, gpus, tag, network] {
        let body = CommandBody::Enrol { enrolment: bad, machine_name: "m".into() };
        assert_eq!(world.refused(Actor::Wallet(SUPPLIER), body), "out_of_range");
    }
    let foreign = CommandBody::Enrol { enrolment: good.clone(), machine_name: "m".into() };
    assert_eq!(world.refused(Actor::Wallet(OTHER), foreign.clone()), "not_allowed");
    world.must(Actor::Wallet(SUPPLIER), foreign.clone());
    assert_eq!(world.refused(Actor::Wallet(SUPPLIER), foreign), "exists");
    let mut same_endpoint = world.enrolment(SUPPLIER, 1);
    same_endpoint.endpoint = good.endpoint;
    let body = CommandBody::Enrol { enrolment: same_endpoint, machine_name: "m".into() };
    assert_eq!(world.refused(Actor::Wallet(SUPPLIER), body), "exists");
}

#[test]
fn a_change_of_ask_is_the_next_price() {
    let mut world = World::new();
    let device = world.device(SUPPLIER, 10_000);
    assert_eq!(world.quote(&request(1)).unwrap().rate, Rate(10_000));
    let change = DeviceChange { ask_per_unit: Some(Rate(7)), ..DeviceChange::default() };
    world.must(Actor::Wallet(SUPPLIER), CommandBody::ChangeDevice { device, change });
    assert_eq!(world.quote(&request(1)).unwrap().rate, Rate(7));
    assert_eq!(world.state.device(device).unwrap().class, HardwareClass::Cpu);
    assert_eq!(world.state.ledger.balance(Owner::Fees, ionet_domain::Asset::Iosd).available(), 0);
}

fn measure(relay: &str, at_ms: u64, rtt_us: u32, bandwidth: Option<(u32, u32)>) -> RelayMeasure {
    let bandwidth = bandwidth.map(|(down_mbit_s, up_mbit_s)| Bandwidth { down_mbit_s, up_mbit_s });
    RelayMeasure { relay: relay.into(), region: Some(relay.into()), at_ms, rtt_us, bandwidth }
}

#[test]
fn connectivity_is_earned_and_may_be_asked_for() {
    let mut world = World::new();
    world.fund(crate::world::RENTER, 1_000_000_000);
    let device = world.device(SUPPLIER, 10_000);
    let report = |measures: Vec<RelayMeasure>| CommandBody::ReportLinks { device, measures };
    let asked = Request { tier: Some(Tier::Medium), ..request(1) };
    world.must(Actor::Server, report(vec![measure("eu", 5, 900, Some((210, 95)))]));
    let code =
        world.refused(Actor::Device(device), report(vec![measure("eu", 6, 900, Some((9_000, 9_000)))]));
    assert_eq!(code, "not_allowed", "nobody is believed about itself");
    assert_eq!(
        world.refused(Actor::Server, report(vec![measure("eu", 5, 1, Some((2_000, 2_000)))])),
        "no_change"
    );
    let refusal = world.quote(&asked).unwrap_err().to_string();
    assert!(
        refusal.contains("1 removed by: connectivity medium (400/300 Mbit/s down/up): measured low"),
        "{refusal}"
    );
    world.must(Actor::Server, report(vec![measure("us", 7, 90_000, Some((450, 310)))]));
    assert_eq!(world.state.device(device).unwrap().tier, Some(Tier::Medium));
    world.quote(&asked).unwrap();
    // Another check's pings change nothing that relays have measured.
    world.must(Actor::Server, CommandBody::BeginCheck { device });
    world.must(Actor::Device(device), CommandBody::ReportCheck { device, measured: Ok(good_measures()) });
    assert_eq!(world.state.device(device).unwrap().tier, Some(Tier::Medium));
    // The region that it claims is that of the relay far away.
    let claim = |region: &str| {
        let tags = Some(BTreeSet::from([format!("region.{region}")]));
        CommandBody::ChangeDevice { device, change: DeviceChange { tags, ..DeviceChange::default() } }
    };
    let wanted = |region: &str| Request { tags: BTreeSet::from([format!("region.{region}")]), ..request(1) };
    world.must(Actor::Wallet(SUPPLIER), claim("us"));
    let refusal = world.quote(&wanted("us")).unwrap_err().to_string();
    assert!(refusal.contains("region us, which they claim and measurements do not bear out"), "{refusal}");
    world.must(Actor::Wallet(SUPPLIER), claim("eu"));
    world.quote(&wanted("eu")).unwrap();
}
