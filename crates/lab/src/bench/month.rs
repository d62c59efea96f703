//! A simulated month: the same renters and the same would-be suppliers under the market's price, under a fixed price and
//! under the bare ask, with daily peaks, new suppliers and a demand shock.
//!
//! What is real: requests, quotes, placement, the index, the market's record and its hourly loads, by the product's own
//! code over folded events. What is assumed, and the same for all three: renters with a reservation price each, who try
//! again for some hours; suppliers who join where their kind earned more than their cost of late, and leave where they
//! themselves earned less; suppliers under the bare ask move their ask with their own use. Not here: the ledger and the meter,
//! as what is paid is rate by time; competitors' feeds beyond the built-in ones.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::device::{DeviceChange, OwnerRules, Resources, Tier};
use ionet_domain::event::PublicBody;
use ionet_domain::id::{Address, QuoteId};
use ionet_domain::market::place::{self, Limits, Seat};
use ionet_domain::market::{Request, hardware, price};
use ionet_domain::money::{HOUR_MS, Rate};
use ionet_domain::{DeviceId, LeaseId, OrderId, Params};

use super::market::{Market, request};
use super::plot::{Plot, Series};
use super::{Figure, Report};
use crate::Result;
use crate::random::Random;

const GIB: u64 = 1 << 30;
/// Model, machines at first, orders an hour at the mean of a day.
const CLASSES: [(&str, usize, u64); 4] = [
    ("NVIDIA GeForce RTX 4090", 150, 24),
    ("NVIDIA GeForce RTX 3080", 90, 12),
    ("NVIDIA RTX A6000", 50, 7),
    ("NVIDIA A100-SXM4-80GB", 60, 9),
];
/// GPUs of a machine.
const GPUS: u32 = 4;
/// Hours a day that the mean is exceeded or missed by, in percent of the mean, from midnight.
const DAY_PERCENT: [i64; 24] = [
    -50, -55, -60, -60, -55, -45, -30, -10, 15, 35, 45, 50, 50, 55, 60, 55, 50, 40, 30, 15, 0, -15, -30, -40,
];
/// In these days renters want twice as much.
const SHOCK_DAYS: std::ops::Range<u64> = 14..18;
/// Hours in which a renter tries again.
const PATIENCE: u64 = 3;
/// Would-be suppliers of each class who look at the market every day.
const LOOKING: u64 = 6;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Days.
    pub days: u64,
    /// The seed.
    pub seed: u64,
}

/// Who makes the price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Regime {
    Market,
    Fixed,
    Ask,
}

impl Regime {
    const ALL: [Self; 3] = [Self::Market, Self::Fixed, Self::Ask];

    fn name(self) -> &'static str {
        match self {
            Self::Market => "market",
            Self::Fixed => "fixed",
            Self::Ask => "ask",
        }
    }
}

/// A renter's wish, until it is met or given up.
#[derive(Debug, Clone)]
struct Wish {
    class: usize,
    gpus: u32,
    hours: u64,
    /// The most that a GPU is worth to him, an hour.
    worth: Rate,
    until_hour: u64,
}

struct Supplier {
    class: usize,
    /// What a GPU costs him while it is on offer, an hour.
    cost: u64,
    ask: u64,
    since_hour: u64,
    /// Of the days since he came: GPU-hours hired and what they paid, in micro-USD.
    days: Vec<(u64, u64)>,
    leaving: bool,
}

/// What one regime gave. GPU-hours, and micro-USD.
#[derive(Debug, Default)]
struct Outcome {
    offered: u64,
    hired: u64,
    paid: u64,
    worth: u64,
    cost: u64,
    wanted: u64,
    too_dear: u64,
    no_capacity: u64,
    at_first: usize,
    at_last: usize,
    joined: u64,
    left: u64,
    /// By hour and class: paid for a GPU and hour of what began then, in ppm of the reference, and GPUs of that.
    prices: BTreeMap<u64, BTreeMap<usize, (u64, u64)>>,
}

/// Runs all three.
pub fn run(size: Size) -> Result<Report> {
    let mut figures = Vec::new();
    let mut series = Vec::new();
    for regime in Regime::ALL {
        let outcome = Month::new(regime, size)?.run()?;
        outcome.show(&mut figures, regime);
        series.push(Series { name: regime.name().into(), points: outcome.daily_prices() });
    }
    let plot = Plot {
        title: format!("paid for a GPU-hour against its reference; twice the demand in days {SHOCK_DAYS:?}"),
        x_label: "day".into(),
        y_label: "of the reference".into(),
        series,
    };
    let what =
        format!("{} days, seed {}, the same renters and would-be suppliers under each", size.days, size.seed);
    Ok(Report { bench: "month", what, figures, plot })
}

impl Outcome {
    fn show(&self, figures: &mut Vec<Figure>, regime: Regime) {
        let name = |what: &str| format!("{}_{what}", regime.name());
        let part = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let dollars = |micro: u64, hours: u64| micro as f64 / 1e6 / hours.max(1) as f64;
        let profit = (self.paid as f64 - self.cost as f64) / 1e6;
        figures.extend([
            Figure::new(name("utilisation"), part(self.hired, self.offered), "% of offered GPU-hours"),
            Figure::new(name("paid_per_gpu_hour"), dollars(self.paid, self.hired), "USD"),
            Figure::new(name("renters_paid"), self.paid as f64 / 1e6, "USD"),
            Figure::new(
                name("renters_gain"),
                (self.worth as f64 - self.paid as f64) / 1e6,
                "USD above what they paid",
            ),
            Figure::new(name("income_per_offered_gpu_hour"), dollars(self.paid, self.offered), "USD"),
            Figure::new(name("suppliers_profit"), profit, "USD over their costs"),
            Figure::new(name("gain_of_both"), (self.worth as f64 - self.cost as f64) / 1e6, "USD"),
            Figure::new(
                name("unserved_no_capacity"),
                part(self.no_capacity, self.wanted),
                "% of wanted GPU-hours",
            ),
            Figure::new(name("unserved_too_dear"), part(self.too_dear, self.wanted), "% of wanted GPU-hours"),
            Figure::new(name("price_change_mean"), self.change().0, "% from hour to hour"),
            Figure::new(name("price_change_max"), self.change().1, "% from hour to hour"),
            Figure::new(name("machines_at_first"), self.at_first as f64, "machines"),
            Figure::new(name("machines_at_last"), self.at_last as f64, "machines"),
            Figure::new(name("joined"), self.joined as f64, "machines"),
            Figure::new(name("left"), self.left as f64, "machines"),
        ]);
    }

    /// How much a class's price moved between hours that both had trades: the mean and the most.
    fn change(&self) -> (f64, f64) {
        let mut changes = Vec::new();
        for class in 0..CLASSES.len() {
            let of = |hour: &BTreeMap<usize, (u64, u64)>| {
                hour.get(&class).map(|(sum, gpus)| *sum as f64 / (*gpus).max(1) as f64)
            };
            let hours: Vec<f64> = self.prices.values().filter_map(of).collect();
            changes.extend(hours.windows(2).map(|two| 100.0 * (two[1] / two[0] - 1.0).abs()));
        }
        let most = changes.iter().copied().fold(0.0, f64::max);
        (changes.iter().sum::<f64>() / changes.len().max(1) as f64, most)
    }

    fn daily_prices(&self) -> Vec<(f64, f64)> {
        let mut days: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (hour, classes) in &self.prices {
            let day = days.entry(hour / 24).or_default();
            for (sum, gpus) in classes.values() {
                *day = (day.0 + sum, day.1 + gpus);
            }
        }
        days.into_iter()
            .map(|(day, (sum, gpus))| (day as f64, sum as f64 / gpus.max(1) as f64 / 1e6))
            .collect()
    }
}

struct Month {
    regime: Regime,
    size: Size,
    market: Market,
    /// Renters, and would-be suppliers: each as if the other were not, so that all regimes see the same.
    renters: Random,
    suppliers: Random,
    devices: BTreeMap<DeviceId, Supplier>,
    waiting: Vec<Wish>,
    /// By the hour in which they end.
    live: BTreeMap<u64, Vec<OrderId>>,
    ended: Vec<OrderId>,
    hour: u64,
    outcome: Outcome,
}

impl Month {
    fn new(regime: Regime, size: Size) -> Result<Self> {
        let usual = Params::default();
        let market = Market::founded(match regime {
            Regime::Market => usual,
            Regime::Fixed | Regime::Ask => Params { price: None, ..usual },
        })?;
        let mut month = Self {
            regime,
            size,
            market,
            renters: Random::new(size.seed),
            suppliers: Random::new(size.seed ^ 0xabcd),
            devices: BTreeMap::new(),
            waiting: Vec::new(),
            live: BTreeMap::new(),
            ended: Vec::new(),
            hour: 0,
            outcome: Outcome::default(),
        };
        for (class, (_, count, _)) in CLASSES.iter().enumerate() {
            for _ in 0..*count {
                let cost = month.cost(class);
                month.join(class, cost)?;
            }
        }
        month.outcome.at_first = month.devices.len();
        Ok(month)
    }

    fn run(mut self) -> Result<Outcome> {
        while self.hour < self.size.days * 24 {
            self.end_leases()?;
            self.set_loads()?;
            if self.hour.is_multiple_of(24) && self.hour > 0 {
                self.day()?;
            }
            let fresh = self.arrivals();
            let all = std::mem::take(&mut self.waiting).into_iter().chain(fresh);
            for wish in all.collect::<Vec<_>>() {
                self.serve(wish)?;
            }
            for supplier in self.devices.values() {
                self.outcome.offered += u64::from(GPUS);
                self.outcome.cost += u64::from(GPUS) * supplier.cost;
            }
            self.hour += 1;
            self.market.now_ms += HOUR_MS;
        }
        self.outcome.at_last = self.devices.len();
        Ok(self.outcome)
    }

    fn reference(class: usize) -> u64 {
        hardware::find(CLASSES[class].0).map_or(0, |known| known.reference().0)
    }

    /// A would-be supplier's cost of a GPU on offer: a fifth to four fifths of the reference.
    fn cost(&mut self, class: usize) -> u64 {
        Self::reference(class) * self.suppliers.between(20, 80) / 100
    }

    fn join(&mut self, class: usize, cost: u64) -> Result<()> {
        // Being hired costs no more than being on offer; under the bare ask a margin is added, and moved later.
        let ask = if self.regime == Regime::Ask { cost * 3 / 2 } else { cost };
        let offered = Resources {
            cpu_millis: 32_000,
            memory_bytes: 256 * GIB,
            disk_bytes: 1000 * GIB,
            gpus: GPUS,
            ..Resources::default()
        };
        let device = self.market.add(Some(CLASSES[class].0), offered, Tier::Medium, |enrolment| {
            enrolment.ask_per_unit = Rate(ask);
        })?;
        let supplier =
            Supplier { class, cost, ask, since_hour: self.hour, days: vec![(0, 0)], leaving: false };
        self.devices.insert(device, supplier);
        Ok(())
    }

    fn arrivals(&mut self) -> Vec<Wish> {
        let slot = usize::try_from(self.hour % 24).unwrap_or(0);
        let shock = if SHOCK_DAYS.contains(&(self.hour / 24)) { 2 } else { 1 };
        let mut wishes = Vec::new();
        for (class, (_, _, mean)) in CLASSES.iter().enumerate() {
            let percent = u64::try_from(100 + DAY_PERCENT[slot]).unwrap_or(0) * shock;
            let expected = mean * percent;
            let count = expected / 100 + u64::from(self.renters.below(100) < expected % 100);
            for _ in 0..count {
                let gpus = self.renters.one_of(&[1, 1, 1, 2, 4]).copied().unwrap_or(1);
                let hours = self.renters.one_of(&[1, 2, 4, 8, 12, 24]).copied().unwrap_or(1);
                let worth = Rate(Self::reference(class) * self.renters.between(60, 200) / 100);
                wishes.push(Wish { class, gpus, hours, worth, until_hour: self.hour + PATIENCE });
                self.outcome.wanted += u64::from(gpus) * hours;
            }
        }
        wishes
    }

    fn request(wish: &Wish) -> Request {
        let per_member = Resources {
            cpu_millis: 4000 * wish.gpus,
            memory_bytes: 16 * GIB * u64::from(wish.gpus),
            disk_bytes: 20 * GIB,
            gpus: wish.gpus,
            ..Resources::default()
        };
        let duration_ms = wish.hours * HOUR_MS;
        Request { duration_ms, ..request(per_member, Some(CLASSES[wish.class].0.to_owned())) }
    }

    /// The seat that a wish would get and what it costs an hour; none if nothing is free.
    fn offer(&self, wanted: &Request, wish: &Wish) -> Option<(Seat, u64)> {
        let (state, now_ms) = (&self.market.state, self.market.now_ms);
        let fixed = Rate(Self::reference(wish.class) * u64::from(wish.gpus));
        let rates = (self.regime == Regime::Fixed).then(|| vec![fixed]);
        let seat = place::find(state, wanted, &Limits { rates, ..Limits::default() }, now_ms)?.pop()?;
        if self.regime == Regime::Fixed {
            return Some((seat, fixed.0));
        }
        let quote = price::quote(state, QuoteId::from_bits(0), Address([1; 32]), wanted, now_ms).ok()?;
        Some((seat, quote.rate.0))
    }

    fn serve(&mut self, wish: Wish) -> Result<()> {
        let wanted = Self::request(&wish);
        let amount = u64::from(wish.gpus) * wish.hours;
        let offer = self.offer(&wanted, &wish);
        let Some((mut seat, rate)) =
            offer.clone().filter(|(_, rate)| *rate <= wish.worth.0 * u64::from(wish.gpus))
        else {
            if self.hour < wish.until_hour {
                self.waiting.push(wish);
            } else if offer.is_some() {
                self.outcome.too_dear += amount;
            } else {
                self.outcome.no_capacity += amount;
            }
            return Ok(());
        };
        seat.rate = Rate(rate);
        let order = self.market.order(&wanted)?;
        let paid = rate * wish.hours;
        if let Some(supplier) = self.devices.get_mut(&seat.device)
            && let Some(day) = supplier.days.last_mut()
        {
            *day = (day.0 + amount, day.1 + paid);
        }
        self.outcome.hired += amount;
        self.outcome.paid += paid;
        self.outcome.worth += wish.worth.0 * amount;
        let prices = self.outcome.prices.entry(self.hour).or_default().entry(wish.class).or_default();
        let of_reference = rate * 1_000_000 / Self::reference(wish.class).max(1);
        *prices = (prices.0 + of_reference, prices.1 + u64::from(wish.gpus));
        self.market.take(order, std::slice::from_ref(&seat))?;
        self.live.entry(self.hour + wish.hours).or_default().push(order);
        Ok(())
    }

    fn end_leases(&mut self) -> Result<()> {
        for order in self.live.remove(&self.hour).unwrap_or_default() {
            self.market.happen(PublicBody::LeaseRemoved { lease: LeaseId { order, n: 0 }, wipe: None })?;
            self.ended.push(order);
        }
        Ok(())
    }

    fn set_loads(&mut self) -> Result<()> {
        let loads = price::due_loads(&self.market.state, self.market.now_ms);
        if loads.is_empty() { Ok(()) } else { self.market.happen(PublicBody::LoadsSet { loads }) }
    }

    /// Suppliers look at what they earned; old orders leave the state.
    fn day(&mut self) -> Result<()> {
        let orders = std::mem::take(&mut self.ended);
        self.market.happen(PublicBody::Retired { orders, forget_ids_before_ms: 0 })?;
        let earned = self.earned_of_late();
        for (class, earned) in earned.into_iter().enumerate() {
            for _ in 0..LOOKING {
                let cost = self.cost(class);
                if earned > cost * 11 / 10 {
                    self.join(class, cost)?;
                    self.outcome.joined += 1;
                }
            }
        }
        let ids: BTreeSet<DeviceId> = self.devices.keys().copied().collect();
        ids.into_iter().try_for_each(|device| self.look_back(device))
    }

    /// By class, what a GPU on offer earned an hour in the last three days.
    fn earned_of_late(&self) -> Vec<u64> {
        let of = |class: usize| {
            let own = self.devices.values().filter(|supplier| supplier.class == class);
            let days = own.flat_map(|supplier| supplier.days.iter().rev().take(3));
            let (paid, count) = days.fold((0, 0), |(sum, count), (_, paid)| (sum + paid, count + 1));
            paid / (count * 24 * u64::from(GPUS)).max(1)
        };
        (0..CLASSES.len()).map(of).collect()
    }

    fn look_back(&mut self, device: DeviceId) -> Result<()> {
        const DAYS: usize = 4;
        let (regime, hour) = (self.regime, self.hour);
        let Some(supplier) = self.devices.get_mut(&device) else { return Ok(()) };
        let day_hours = 24 * u64::from(GPUS);
        let (hired, _) = supplier.days.last().copied().unwrap_or_default();
        let paid: u64 = supplier.days.iter().rev().take(DAYS).map(|(_, paid)| paid).sum();
        let old = hour - supplier.since_hour >= DAYS as u64 * 24;
        let poor = paid / (DAYS as u64 * day_hours) < supplier.cost * 95 / 100;
        supplier.days.push((0, 0));
        let mut change = DeviceChange::default();
        if regime == Regime::Ask {
            let percent = match hired * 100 / day_hours {
                75.. => 105,
                0..40 => 95,
                _ => 100,
            };
            supplier.ask = (supplier.ask * percent / 100).max(supplier.cost);
            change.ask_per_unit = Some(Rate(supplier.ask));
        }
        if (old && poor) || supplier.leaving {
            supplier.leaving = true;
            change.rules = Some(OwnerRules { draining: true, ..OwnerRules::default() });
        }
        let leaving = supplier.leaving;
        if change != DeviceChange::default() {
            self.market.happen(PublicBody::DeviceChanged { device, change })?;
        }
        if leaving && self.market.state.devices.get(&device).is_none_or(|device| device.leases == 0) {
            self.market.happen(PublicBody::DeviceArchived { device })?;
            self.devices.remove(&device);
            self.outcome.left += 1;
        }
        Ok(())
    }
}
