//! How fast placement is from ten thousand devices to a million, and whether it is right: every so often an order is placed
//! by a look at every device as well.
//!
//! The mix is of a small table: models with prices that are published (see `HARDWARE`), shares that are our own assumption.
//! Orders come and go, so that most devices are partly hired. Not here: quality of packing (`fgd`).

use std::collections::{BTreeSet, VecDeque};
use std::hint::black_box;
use std::time::{Duration, Instant};

use ionet_domain::device::{Resources, Tier};
use ionet_domain::event::PublicBody;
use ionet_domain::market::Request;
use ionet_domain::market::place::{self, Limits, Seat};
use ionet_domain::money::{HOUR_MS, Rate};
use ionet_domain::{LeaseId, OrderId, Params};

use super::market::{Market, request};
use super::plot::{Plot, Series};
use super::{Figure, Report, Target, percentile, sorted};
use crate::random::Random;
use crate::{LabError, Result};

const GIB: u64 = 1 << 30;

/// Model, share of all GPU devices in thousandths, price of a GPU in cents an hour. Both are assumptions that only spread the
/// load of this benchmark; prices that people are told stand in `ionet_domain::market::hardware`.
const HARDWARE: [(&str, u64, u64); 14] = [
    ("NVIDIA GeForce RTX 4090", 220, 37),
    ("NVIDIA GeForce RTX 3090", 140, 25),
    ("NVIDIA GeForce RTX 3080", 110, 20),
    ("NVIDIA GeForce RTX 3070", 60, 15),
    ("NVIDIA RTX A6000", 70, 75),
    ("NVIDIA RTX A5000", 50, 45),
    ("NVIDIA RTX A4000", 70, 23),
    ("Tesla T4", 90, 30),
    ("Tesla V100-SXM2-16GB", 40, 50),
    ("NVIDIA A10", 50, 60),
    ("NVIDIA A100-SXM4-40GB", 30, 110),
    ("NVIDIA A100-SXM4-80GB", 40, 76),
    ("NVIDIA L40S", 20, 90),
    ("NVIDIA H100 80GB HBM3", 10, 199),
];
/// Of all devices, in thousandths, those without a GPU.
const CPU_ONLY: u64 = 150;
/// How full the market is kept, in percent of its GPUs.
const HIRED_PERCENT: u64 = 70;

/// What to run.
#[derive(Debug, Clone)]
pub struct Size {
    /// Numbers of devices.
    pub devices: Vec<usize>,
    /// Orders for each.
    pub orders: usize,
    /// Orders that are also placed by a look at every device.
    pub checks: usize,
}

/// What one number of devices gave.
struct Outcome {
    devices: usize,
    plan_us: Vec<f64>,
    placed: usize,
    seconds: f64,
    checked: usize,
    worst_off_percent: f64,
    /// Of the first run only: what is freed after it is used again.
    bytes_per_device: Option<f64>,
}

/// Runs all sizes.
pub fn run(size: &Size) -> Result<Report> {
    let mut devices = size.devices.clone();
    devices.sort_unstable_by(|a, b| b.cmp(a));
    let most = devices.first().copied();
    let run = |devices: &usize| one(*devices, size, most == Some(*devices));
    let mut outcomes: Vec<_> = devices.iter().map(run).collect::<Result<_>>()?;
    outcomes.reverse();
    let mut figures = Vec::new();
    for outcome in &outcomes {
        show(&mut figures, outcome);
    }
    let line = |name: &str, percent: usize| Series {
        name: name.into(),
        points: outcomes
            .iter()
            .map(|o| ((o.devices as f64).log10(), percentile(&o.plan_us, percent)))
            .collect(),
    };
    let plot = Plot {
        title: "time to choose the devices of an order".into(),
        x_label: "devices, power of ten".into(),
        y_label: "us".into(),
        series: vec![line("p50", 50), line("p99", 99)],
    };
    let what = format!("{:?} devices, {} orders each", size.devices, size.orders);
    Ok(Report { bench: "place", what, figures, plot })
}

fn show(figures: &mut Vec<Figure>, outcome: &Outcome) {
    let name = |what: &str| format!("{}_{what}", outcome.devices);
    let per_second = outcome.placed as f64 / outcome.seconds;
    figures.extend([
        Figure::new(name("p50"), percentile(&outcome.plan_us, 50), "us").target(Target::Below(50.0)),
        Figure::new(name("p99"), percentile(&outcome.plan_us, 99), "us").target(Target::Below(1000.0)),
        Figure::new(name("max"), outcome.plan_us.last().copied().unwrap_or_default(), "us"),
        Figure::new(name("placed"), outcome.placed as f64, "orders"),
        Figure::new(name("placements_per_second"), per_second, "1/s").target(Target::AtLeast(20_000.0)),
        Figure::new(name("checked_against_all_devices"), outcome.checked as f64, "orders"),
        Figure::new(name("worst_off"), outcome.worst_off_percent, "%").target(Target::Below(1.0)),
    ]);
    let memory = |bytes| Figure::new(name("memory_per_device"), bytes, "B").target(Target::Below(1500.0));
    figures.extend(outcome.bytes_per_device.map(memory));
}

fn one(devices: usize, size: &Size, first: bool) -> Result<Outcome> {
    let before = resident_bytes()?;
    let random = Random::new(7);
    let mut run = Run::new(devices, Params { price: None, ..Params::default() }, random)?;
    let bytes = resident_bytes()?.saturating_sub(before) as f64 / devices.max(1) as f64;
    run.warm_up()?;
    let mut outcome = Outcome {
        devices,
        plan_us: Vec::with_capacity(size.orders),
        placed: 0,
        seconds: 0.0,
        checked: 0,
        worst_off_percent: 0.0,
        bytes_per_device: first.then_some(bytes),
    };
    let every = (size.orders / size.checks.max(1)).max(1);
    for n in 0..size.orders {
        run.order(&mut outcome, size.checks > 0 && n % every == 0)?;
        if n % (size.orders / 4).max(1) == 0 {
            run.market.now_ms += HOUR_MS;
        }
    }
    if !place::index_is_true(&run.market.state) {
        return Err(LabError::Broken("the index is another than one built anew".into()));
    }
    outcome.plan_us = sorted(outcome.plan_us);
    Ok(outcome)
}

/// A device of the mix; how many GPUs it has.
fn add(market: &mut Market, random: &mut Random) -> Result<u64> {
    let cpu_only = random.below(1000) < CPU_ONLY;
    let mut at = random.below(HARDWARE.iter().map(|(_, share, _)| share).sum());
    let of = |(_, share, _): &&(&str, u64, u64)| {
        let here = at < *share;
        at = at.saturating_sub(*share);
        here
    };
    let (model, _, cents) = *HARDWARE.iter().find(of).unwrap_or(&HARDWARE[0]);
    let gpus: u32 = match random.below(100) {
        _ if cpu_only => 0,
        0..60 => 1,
        60..75 => 2,
        75..87 => 4,
        _ => 8,
    };
    let threads = if cpu_only { 4 << random.below(4) } else { gpus * (8 << random.below(2)) };
    let offered = Resources {
        cpu_millis: threads * 1000,
        memory_bytes: u64::from(threads) * GIB * random.one_of(&[2, 4, 8]).copied().unwrap_or(4),
        disk_bytes: random.one_of(&[200, 500, 1000, 2000]).copied().unwrap_or(500) * GIB,
        gpus,
        ..Resources::default()
    };
    let cents = if cpu_only { 1 + random.below(3) } else { cents * random.between(80, 130) / 100 };
    let networks = ["ionet", "ionet", "ionet", "ionet", "render", "filecoin"];
    let network = random.one_of(&networks).copied().unwrap_or("ionet");
    let region = random.one_of(&["us", "us", "eu", "eu", "apac", "sa"]).copied().unwrap_or("us");
    let tier = random.one_of(&[Tier::Low, Tier::Medium, Tier::Medium, Tier::High, Tier::Ultra]).copied();
    market.add((!cpu_only).then_some(model), offered, tier.unwrap_or(Tier::Low), |enrolment| {
        enrolment.network = network.into();
        enrolment.tags = BTreeSet::from([region.to_owned()]);
        enrolment.ask_per_unit = Rate(cents * 10_000);
    })?;
    Ok(gpus.into())
}

/// An order of mixed kind and size.
pub(super) fn wish(random: &mut Random) -> Request {
    let gpus = random.one_of(&[0, 1, 1, 1, 1, 1, 1, 2, 4, 8]).copied().unwrap_or(1);
    let share =
        (gpus == 1 && random.below(4) == 0).then(|| random.one_of(&[250, 500, 750]).copied().unwrap_or(500));
    let wanted = Resources {
        cpu_millis: 1000 * gpus.max(1) * random.one_of(&[1, 2, 4, 6]).copied().unwrap_or(2),
        memory_bytes: GIB * u64::from(gpus.max(1)) * random.one_of(&[2, 4, 8, 16]).copied().unwrap_or(4),
        disk_bytes: 20 * GIB,
        gpus,
        gpu_share_millis: share,
    };
    let model = |random: &mut Random| random.one_of(&HARDWARE).map_or("", |(model, ..)| *model);
    let models = match random.below(20) {
        _ if gpus == 0 => None,
        0..3 => None,
        3..5 => Some(format!("{}|{}", model(random), model(random))),
        _ => Some(model(random).to_owned()),
    };
    let region = random.one_of(&["us", "eu", "apac"]).copied().unwrap_or("us");
    Request {
        members: match random.below(20) {
            0..17 => 1,
            17..19 => u32::try_from(random.between(2, 8)).unwrap_or(2),
            _ => 16,
        },
        spread: random.below(4) == 0,
        tags: if random.below(5) == 0 { BTreeSet::from([region.to_owned()]) } else { BTreeSet::new() },
        tier: (random.below(6) == 0).then_some(Tier::High),
        network: (random.below(10) == 0).then(|| "render".to_owned()),
        duration_ms: HOUR_MS * random.one_of(&[1, 12, 48, 200]).copied().unwrap_or(1),
        ..request(wanted, models)
    }
}

struct Run {
    market: Market,
    random: Random,
    live: VecDeque<(OrderId, u32, u64)>,
    hired: u64,
    most: u64,
}

/// A market of so many devices, hired as far as a day's worth of orders does.
pub(super) fn filled(devices: usize, params: Params, random: &mut Random) -> Result<Market> {
    let mut run = Run::new(devices, params, random.clone())?;
    run.warm_up()?;
    *random = run.random;
    Ok(run.market)
}

impl Run {
    fn new(devices: usize, params: Params, mut random: Random) -> Result<Self> {
        let mut market = Market::founded(params)?;
        let mut gpus = 0;
        for _ in 0..devices {
            gpus += add(&mut market, &mut random)?;
        }
        // The first placement makes the index.
        black_box(place::find(&market.state, &wish(&mut random), &Limits::default(), market.now_ms));
        Ok(Self { market, random, live: VecDeque::new(), hired: 0, most: gpus * HIRED_PERCENT / 100 })
    }

    /// Hires the market to where it is kept, as far as a day's worth of orders does.
    fn warm_up(&mut self) -> Result<()> {
        for n in 0..self.most.min(60_000) {
            let wish = wish(&mut self.random);
            if let Some(seats) =
                place::find(&self.market.state, &wish, &Limits::default(), self.market.now_ms)
            {
                self.take(&wish, &seats)?;
            }
            if n == 2000 {
                self.market.now_ms += HOUR_MS;
            }
        }
        Ok(())
    }

    fn take(&mut self, wish: &Request, seats: &[Seat]) -> Result<Duration> {
        let order = self.market.order(wish)?;
        let begun = Instant::now();
        self.market.take(order, seats)?;
        let took = begun.elapsed();
        let gpus = u64::from(wish.members) * u64::from(wish.per_member.gpus);
        self.hired += gpus;
        self.live.push_back((order, wish.members, gpus));
        while self.hired > self.most
            && let Some((order, members, gpus)) = self.live.pop_front()
        {
            for n in 0..members {
                let lease = LeaseId { order, n };
                self.market.happen(PublicBody::LeaseLost { lease, reason: "over".into() })?;
            }
            self.hired -= gpus;
        }
        Ok(took)
    }

    fn order(&mut self, outcome: &mut Outcome, check: bool) -> Result<()> {
        let (wish, limits) = (wish(&mut self.random), Limits::default());
        let begun = Instant::now();
        let seats = black_box(place::find(&self.market.state, &wish, &limits, self.market.now_ms));
        let took = begun.elapsed();
        outcome.plan_us.push(took.as_secs_f64() * 1e6);
        if check {
            let all = place::exhaustive(&self.market.state, &wish, &limits, self.market.now_ms).ok();
            outcome.checked += 1;
            outcome.worst_off_percent =
                outcome.worst_off_percent.max(off_percent(seats.as_deref(), all.as_deref()));
        }
        outcome.seconds += took.as_secs_f64();
        if let Some(seats) = seats {
            outcome.seconds += self.take(&wish, &seats)?.as_secs_f64();
            outcome.placed += 1;
        }
        Ok(())
    }
}

/// How far a choice is from the best one: in price, and where that is the same in cost to the market.
fn off_percent(found: Option<&[Seat]>, best: Option<&[Seat]>) -> f64 {
    let (Some(found), Some(best)) = (found, best) else {
        return if found.is_none() == best.is_none() { 0.0 } else { 100.0 };
    };
    let rate = |seats: &[Seat]| seats.iter().map(|seat| seat.rate.0 as f64).sum::<f64>();
    let cost = |seats: &[Seat]| seats.iter().map(|seat| seat.cost as f64).sum::<f64>();
    let off = |own: f64, best: f64| 100.0 * (own - best).abs() / best.abs().max(1.0);
    off(rate(found), rate(best)).max(off(cost(found), cost(best)))
}

/// Memory of this process that is in use.
fn resident_bytes() -> Result<u64> {
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(LabError::io("read /proc/self/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.unwrap_or(0) << 10)
}
