//! Placement under random markets: the index gives what a look at every device gives, nothing is over-committed, an order
//! gets all its members or none, and the index that is kept is the one that would be built.

use std::collections::BTreeSet;

use ionet_domain::connectivity::RelayMeasure;
use ionet_domain::device::{
    Contact, Gpu, GpuCheck, HardwareClass, Measured, OwnerRules, Resources, Tier, Window,
};
use ionet_domain::event::{PrivateBody, PublicBody};
use ionet_domain::id::DeviceId;
use ionet_domain::market::place::{self, Limits};
use ionet_domain::market::{Denials, DenyList, Egress, GpuMinimum, Isolation, Preference, Request, WorkKind};
use ionet_domain::money::{HOUR_MS, Rate};
use ionet_domain::order::NewLease;
use ionet_domain::{Event, LeaseId, OrderId};
use proptest::prelude::*;

use crate::world::{GIB, OTHER, RENTER, START_MS, SUPPLIER, World, good_measures, request};

/// Chance under a seed: `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_of<T: Copy>(&mut self, these: &[T]) -> T {
        these[usize::try_from(self.below(these.len() as u64)).unwrap()]
    }

    fn small(&mut self, limit: u32) -> u32 {
        u32::try_from(self.below(limit.into())).unwrap()
    }
}

struct Market {
    world: World,
    dice: Dice,
    devices: Vec<DeviceId>,
    live: Vec<(OrderId, u32)>,
}

impl Market {
    fn new(seed: u64) -> Self {
        let mut market =
            Self { world: World::new(), dice: Dice(seed), devices: Vec::new(), live: Vec::new() };
        market.world.fund(RENTER, u64::from(u32::MAX) << 20);
        for _ in 0..12 {
            market.add_device();
        }
        market
    }

    fn happen(&mut self, public: PublicBody) {
        self.happen_with(public, None);
    }

    fn happen_with(&mut self, public: PublicBody, private: Option<PrivateBody>) {
        let event = Event { at_ms: self.world.now_ms, command: None, public, private };
        self.world.state.apply(&event).unwrap();
    }

    fn add_device(&mut self) {
        let (dice, world) = (&mut self.dice, &mut self.world);
        let mut enrolment = world.enrolment(dice.one_of(&[SUPPLIER, SUPPLIER, OTHER]), 1000);
        enrolment.hardware.cpu_model = dice.one_of(&["AMD EPYC 7763", "Intel Xeon"]).into();
        let region = dice.one_of(&[None, Some("us-east"), Some("eu")]);
        let model = dice.one_of(&["A100", "T4", "V100", ""]);
        let count = if model.is_empty() { 0 } else { dice.one_of(&[1u32, 2, 4, 8]) };
        let threads = dice.one_of(&[4u32, 8, 32]);
        enrolment.ask_per_unit = Rate(dice.one_of(&[100_000, 100_000, 200_000, 333_333]));
        enrolment.offered = Resources {
            cpu_millis: threads * 1000,
            memory_bytes: dice.one_of(&[16, 64]) * GIB,
            disk_bytes: 100 * GIB,
            gpus: count,
            ..Resources::default()
        };
        enrolment.hardware.cpu_threads = threads;
        enrolment.hardware.memory_bytes = 64 * GIB;
        let gpu = |n| Gpu { uuid: format!("GPU-{n}"), model: model.into(), memory_bytes: 16 * GIB };
        enrolment.hardware.gpus = (0..count).map(gpu).collect();
        enrolment.network = dice.one_of(&["ionet", "render"]).into();
        enrolment.simulated = dice.below(6) == 0;
        if dice.below(3) == 0 {
            enrolment.tags = BTreeSet::from(["quiet".to_owned()]);
        }
        enrolment.tags.extend(region.map(|region| format!("region.{region}")));
        let beside = dice.one_of(&["us-east", "eu", "sa"]).to_owned();
        let check = |gpu: &Gpu| GpuCheck {
            uuid: gpu.uuid.clone(),
            kernel_sees: true,
            driver_memory_bytes: Some(gpu.memory_bytes),
        };
        let enforcement = (dice.below(6) > 0).then(|| "cgroup v2".to_owned());
        let gpus = enrolment.hardware.gpus.iter().map(check).collect();
        let measured = Measured { gpus, enforcement, ..good_measures() };
        let class = if count == 0 { HardwareClass::Cpu } else { HardwareClass::Gpu(model.into()) };
        let (device, tier) = (enrolment.device, dice.one_of(&[Tier::Low, Tier::High]));
        self.devices.push(device);
        self.happen(PublicBody::DeviceEnrolled { enrolment });
        self.happen(PublicBody::DeviceContact { device, contact: Contact::Connected });
        self.happen(PublicBody::DeviceChecking { device });
        self.happen(PublicBody::DevicePooled { device, measured, class, tier });
        let relay = format!("relay.{beside}");
        let rtt_us = 1000 * self.dice.small(80);
        let measure = RelayMeasure { relay, region: Some(beside), at_ms: 1, rtt_us, bandwidth: None };
        self.happen(PublicBody::DeviceLinksMeasured { device, measures: vec![measure], tier: None });
    }

    fn wish(&mut self) -> Request {
        let dice = &mut self.dice;
        let mut wish = request(dice.one_of(&[1, 1, 1, 2, 3, 6]));
        wish.per_member.cpu_millis = dice.one_of(&[500, 1000, 4000, 8000]);
        wish.per_member.gpus = dice.one_of(&[0, 1, 1, 1, 2, 4]);
        if wish.per_member.gpus == 1 && dice.below(2) == 0 {
            wish.per_member.gpu_share_millis = Some(dice.one_of(&[100, 300, 500, 700, 1000]));
        }
        let models = [None, None, Some("A100"), Some("T4"), Some("T4|V100"), Some("V100")];
        wish.gpu_model = dice.one_of(&models).filter(|_| wish.per_member.gpus > 0).map(str::to_owned);
        wish.network = (dice.below(5) == 0).then(|| "render".to_owned());
        wish.tags = if dice.below(6) == 0 { BTreeSet::from(["quiet".to_owned()]) } else { BTreeSet::new() };
        wish.tier = (dice.below(5) == 0).then_some(Tier::High);
        wish.spread = dice.below(4) == 0;
        wish.egress = dice.one_of(&[Egress::On, Egress::Off]);
        wish.duration_ms = dice.one_of(&[HOUR_MS, 30 * HOUR_MS, 200 * HOUR_MS]);
        self.wish_more(&mut wish);
        wish.check().unwrap();
        wish
    }

    fn wish_more(&mut self, wish: &mut Request) {
        let dice = &mut self.dice;
        wish.kind = dice.one_of(WorkKind::ALL);
        if dice.below(2) == 0 {
            wish.prefer = Some(dice.one_of(&Preference::ALL[..4]));
        }
        let mut now_and_then = || dice.below(8) == 0;
        let set = [(); 8].map(|()| now_and_then());
        let region = |dice: &mut Dice| BTreeSet::from([dice.one_of(&["us", "eu", "us-east"]).to_owned()]);
        wish.regions = if set[0] { region(dice) } else { BTreeSet::new() };
        wish.not_regions = if set[1] { region(dice) } else { BTreeSet::new() };
        wish.isolation = set[2].then(|| dice.one_of(&[Isolation::Limits, Isolation::OneTenant]));
        wish.min_reliability_percent = set[3].then(|| dice.one_of(&[100, 99, 95, 60]));
        wish.cpu_model = set[4].then(|| "epyc".to_owned());
        wish.max_per_device = (set[5] && !wish.spread).then(|| dice.one_of(&[1, 2]));
        if set[6] {
            let supplier = BTreeSet::from([dice.one_of(&[SUPPLIER, OTHER])]);
            let list =
                if dice.one_of(&[true, false]) { &mut wish.suppliers } else { &mut wish.not_suppliers };
            *list = supplier;
        }
        if set[7] && wish.per_member.gpus > 0 {
            let memory_bytes = dice.one_of(&[0, 16 * GIB, 32 * GIB]);
            wish.gpu_min =
                GpuMinimum { memory_bytes, bandwidth_gb_s: dice.one_of(&[0, 500]), fp16_gflops: 0 };
        }
    }

    fn change_terms(&mut self) {
        let dice = &mut self.dice;
        let denied = Denials {
            kinds: (dice.below(2) == 0).then(|| dice.one_of(WorkKind::ALL)).into_iter().collect(),
            accounts: (dice.below(4) == 0).then_some(RENTER).into_iter().collect(),
            countries: BTreeSet::new(),
        };
        let device = dice.one_of(&self.devices);
        if dice.below(3) > 0 {
            let terms = Some(PrivateBody::Terms(denied));
            return self.happen_with(PublicBody::DeviceTermsSet { device }, terms);
        }
        let renters = if dice.below(6) == 0 { denied } else { Denials::default() };
        let list = DenyList { renters, devices: BTreeSet::from([device]) };
        self.happen_with(PublicBody::DenyListSet { entries: 1 }, Some(PrivateBody::DenyList(list)));
    }

    fn rate_one(&mut self) {
        let ended =
            self.world.state.orders.values().find(|order| order.stage == ionet_domain::Stage::Settled);
        if let Some(order) = ended.map(|order| order.id) {
            self.happen(PublicBody::OrderRated { order, stars: 1 });
        }
    }

    fn same_answers(&mut self) {
        let wish = Request { simulated: self.dice.below(6) == 0, ..self.wish() };
        let avoid = self.devices.iter().copied().filter(|_| self.dice.below(8) == 0).collect();
        let most = self.dice.one_of(&[u64::MAX, 150_000, 400_000]);
        let rates = (self.dice.below(3) == 0).then(|| vec![Rate(most); wish.members as usize]);
        let renter = (self.dice.below(2) == 0).then_some(RENTER);
        let limits = Limits { avoid, rates, renter, ..Limits::default() };
        let state = &self.world.state;
        let found = place::seats(state, &wish, &limits, self.world.now_ms);
        assert_eq!(found, place::seats(state, &wish, &limits, self.world.now_ms), "not the same twice");
        assert_eq!(found, place::exhaustive(state, &wish, &limits, self.world.now_ms), "{wish:?}");
        if let Ok(seats) = found {
            assert_eq!(seats.len(), wish.members as usize);
            let is = |seat: &place::Seat| state.device(seat.device).unwrap().enrolment.simulated;
            assert!(seats.iter().all(|seat| is(seat) == wish.simulated), "simulated and real were mixed");
        }
    }

    /// Orders are placed over what is promised to others, so several are paid for before the first gets its leases.
    fn order(&mut self) {
        let wish = self.wish();
        if let Ok(order) = self.world.order(&wish) {
            self.live.push((order, wish.members));
        }
        if self.dice.below(2) == 0 {
            self.place_all();
        }
    }

    fn place_all(&mut self) {
        for (order, members) in self.live.clone() {
            let found = self.world.state.order(order).unwrap();
            if !found.leases.is_empty() {
                continue;
            }
            match ionet_domain::order::place(&self.world.state, found, self.world.now_ms) {
                Ok(leases) => {
                    assert_eq!(leases.len(), members as usize);
                    self.happen(PublicBody::OrderPlaced { order, leases, reason: None });
                }
                // A device left in between.
                Err(refusal) => assert_eq!(refusal.code(), "no_capacity"),
            }
        }
    }

    fn lose_one(&mut self) {
        let Some((order, _)) = self.live.get(usize::try_from(self.dice.below(8)).unwrap()).copied() else {
            return;
        };
        let leases = self.world.state.order(order).unwrap().leases.clone();
        if let Some((n, _)) = leases.iter().find(|(_, lease)| lease.live()) {
            let lease = LeaseId { order, n: *n };
            self.happen(PublicBody::LeaseLost { lease, reason: "gone".into() });
        }
    }

    fn change_a_device(&mut self) {
        let device = self.dice.one_of(&self.devices);
        let since_ms = self.world.now_ms;
        let contact =
            self.dice.one_of(&[Contact::Connected, Contact::Connected, Contact::Unknown { since_ms }]);
        self.happen(PublicBody::DeviceContact { device, contact });
        let noon = Window { from_minute: 700, to_minute: 800 };
        let rules = OwnerRules {
            paused: self.dice.below(8) == 0,
            no_egress: self.dice.below(4) == 0,
            schedule: if self.dice.below(4) == 0 { vec![noon] } else { Vec::new() },
            ..OwnerRules::default()
        };
        let free = self.world.state.device(device).is_ok_and(|device| device.leases == 0);
        match self.dice.below(12) {
            0 => self.happen(PublicBody::DeviceChecking { device }),
            1 if free => self.happen(PublicBody::DeviceArchived { device }),
            _ => {}
        }
        let ask = Rate(self.dice.one_of(&[100_000, 250_000]));
        let change = ionet_domain::device::DeviceChange {
            rules: Some(rules),
            ask_per_unit: Some(ask),
            ..ionet_domain::device::DeviceChange::default()
        };
        self.happen(PublicBody::DeviceChanged { device, change });
    }

    fn step(&mut self) {
        match self.dice.below(12) {
            10 => self.change_terms(),
            11 => self.rate_one(),
            0..4 => self.order(),
            4..6 => self.lose_one(),
            6 => self.change_a_device(),
            7 => self.add_device(),
            8 => self.place_all(),
            _ => self.world.now_ms += u64::from(self.dice.small(3)) * HOUR_MS / 2,
        }
        self.world.state.audit().unwrap();
        assert!(
            place::index_is_true(&self.world.state),
            "the index that was kept is another than one built now"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_gives_what_a_look_at_every_device_gives(seed: u64) {
        let mut market = Market::new(seed);
        for _ in 0..40 {
            market.step();
            market.same_answers();
        }
    }
}

/// A market with one device of `gpus` T4s.
fn one_device(gpus: u32) -> (Market, DeviceId) {
    let mut market = Market { world: World::new(), dice: Dice(1), devices: Vec::new(), live: Vec::new() };
    market.world.fund(RENTER, 1 << 40);
    loop {
        market.add_device();
        let device = market.world.state.device(market.devices[market.devices.len() - 1]).unwrap();
        let fits = device.class == HardwareClass::Gpu("T4".into()) && device.enrolment.offered.gpus == gpus;
        if fits && !device.enrolment.simulated && !device.one_tenant() && device.enrolment.network == "ionet"
        {
            let id = device.enrolment.device;
            market.world.state.devices.retain(|known, _| *known == id);
            market.world.state = market.world.state.clone();
            return (market, id);
        }
    }
}

fn share(millis: u32) -> Request {
    let mut wish = request(1);
    wish.per_member.cpu_millis = 100;
    wish.per_member.gpus = 1;
    wish.per_member.gpu_share_millis = Some(millis);
    wish
}

#[test]
fn shares_fill_one_gpu_before_they_open_another() {
    let (mut market, device) = one_device(2);
    for (millis, free) in [(500, [500, 1000]), (300, [200, 1000]), (300, [200, 700]), (200, [0, 700])] {
        let order = market.world.order(&share(millis)).unwrap();
        market.live.push((order, 1));
        market.place_all();
        assert_eq!(market.world.state.device(device).unwrap().free_gpu_millis(), free, "after {millis}");
    }
    let mut whole = share(1000);
    whole.per_member.gpu_share_millis = None;
    assert_eq!(market.world.order(&whole).unwrap_err().code(), "no_capacity");
    assert_eq!(market.world.order(&share(701)).unwrap_err().code(), "no_capacity");
    assert!(market.world.order(&share(700)).is_ok());
}

#[test]
fn shares_are_refused_where_no_worker_keeps_them_apart() {
    let (mut market, _) = one_device(1);
    market.world.state.params.gpu_shares = false;
    assert_eq!(market.world.order(&share(500)).unwrap_err().code(), "unsupported");
}

#[test]
fn a_share_is_of_one_gpu() {
    for (gpus, share, ok) in [
        (1, Some(1), true),
        (1, Some(1000), true),
        (1, Some(0), false),
        (1, Some(1001), false),
        (2, Some(500), false),
        (0, Some(500), false),
        (2, None, true),
    ] {
        let wanted = Resources { gpus, gpu_share_millis: share, ..Resources::default() };
        assert_eq!(wanted.check_share().is_ok(), ok, "{gpus} {share:?}");
    }
}

/// Journals from before there were shares name no GPUs: the first free ones are meant.
#[test]
fn a_lease_that_names_no_gpu_has_the_first_free_ones() {
    let (mut market, device) = one_device(4);
    let mut wish = share(1000);
    wish.per_member.gpus = 2;
    wish.per_member.gpu_share_millis = None;
    for expected in [vec![0, 1], vec![2, 3]] {
        let order = market.world.order(&wish).unwrap();
        let lease = NewLease { n: 0, slot: 0, device, supplier: SUPPLIER, rate: Rate(1), gpus: Vec::new() };
        market.happen(PublicBody::OrderPlaced { order, leases: vec![lease], reason: None });
        assert_eq!(market.world.state.order(order).unwrap().leases[&0].gpus, expected);
        market.world.state.audit().unwrap();
    }
    assert!(START_MS < market.world.now_ms + 1);
}
