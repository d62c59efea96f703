//! The typical workload: what renters asked for of late, by which placement judges what a free GPU is still good for.
//!
//! It is made from the orders that the state holds: those accepted in the last [`KEPT_HOURS`] full hours before the newest
//! one's hour. So it changes with the hour and not with every order, and the same orders give the same answer.
//! Not here: what follows from it (`score`).

use std::collections::BTreeMap;

use super::request::Request;
use crate::money::HOUR_MS;
use crate::order::Order;

/// Full hours that count.
pub const KEPT_HOURS: u64 = 24;
/// Most kinds of members that count, the most frequent first.
const MOST_WANTS: usize = 128;
/// The share of all members that the kinds which count must cover (FGD, USENIX ATC'23: 95 %), in percent.
const COVERED_PERCENT: u64 = 95;

/// One kind of member that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// Thousandths of a CPU thread.
    pub cpu_millis: u32,
    /// Thousandths of each GPU.
    pub gpu_millis: u16,
    /// How many GPUs.
    pub gpus: u32,
    /// The models that would do, as the request names them; any if `None`.
    pub models: Option<String>,
}

impl Want {
    /// What a request's members are.
    pub fn of(request: &Request) -> Self {
        let wanted = request.per_member;
        Self {
            cpu_millis: wanted.cpu_millis,
            gpu_millis: u16::try_from(wanted.millis_per_gpu()).unwrap_or(1000),
            gpus: wanted.gpus,
            models: request.gpu_model.clone(),
        }
    }

    /// Thousandths of GPUs in all.
    pub fn total_gpu_millis(&self) -> u64 {
        u64::from(self.gpu_millis) * u64::from(self.gpus)
    }

    /// Whether a GPU of this model would do.
    pub fn allows(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|named| named.split('|').any(|name| name == model))
    }
}

/// Members asked for, by the hour in which their order was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    hours: BTreeMap<u64, BTreeMap<Want, u64>>,
    typical: Vec<(Want, u64)>,
}

impl Demand {
    /// The demand of these orders.
    pub fn of<'a>(orders: impl Iterator<Item = &'a Order>) -> Self {
        let mut demand = Self::default();
        orders.for_each(|order| demand.count(order));
        demand.typical = demand.fresh();
        demand
    }

    /// What is typical, the most frequent first, each with how many members wanted it.
    pub fn typical(&self) -> &[(Want, u64)] {
        &self.typical
    }

    /// Counts an order that was accepted; whether what is typical changed.
    pub fn accepted(&mut self, order: &Order) -> bool {
        let (before, hour) = (self.newest(), order.accepted_ms / HOUR_MS);
        self.count(order);
        // An order of the newest hour changes nothing yet; one of an earlier hour means that a clock was put back.
        before.is_none_or(|newest| newest != hour) && self.refresh()
    }

    /// Forgets orders that leave the state; whether what is typical changed.
    pub fn retired<'a>(&mut self, orders: impl Iterator<Item = &'a Order>) -> bool {
        for order in orders {
            let (hour, want) = (order.accepted_ms / HOUR_MS, Want::of(&order.quote.request));
            if let Some(wants) = self.hours.get_mut(&hour) {
                if let Some(count) = wants.get_mut(&want) {
                    *count = count.saturating_sub(order.accepted_members().into());
                }
                wants.retain(|_, count| *count > 0);
            }
        }
        self.hours.retain(|_, wants| !wants.is_empty());
        self.refresh()
    }

    fn newest(&self) -> Option<u64> {
        self.hours.keys().next_back().copied()
    }

    fn count(&mut self, order: &Order) {
        let request = &order.quote.request;
        let hour = self.hours.entry(order.accepted_ms / HOUR_MS).or_default();
        *hour.entry(Want::of(request)).or_default() += u64::from(order.accepted_members());
    }

    fn refresh(&mut self) -> bool {
        let fresh = self.fresh();
        let changed = fresh != self.typical;
        self.typical = fresh;
        changed
    }

    fn fresh(&self) -> Vec<(Want, u64)> {
        let Some(newest) = self.newest() else { return Vec::new() };
        let mut sum: BTreeMap<&Want, u64> = BTreeMap::new();
        for wants in self.hours.range(newest.saturating_sub(KEPT_HOURS)..newest).map(|(_, wants)| wants) {
            for (want, count) in wants {
                *sum.entry(want).or_default() += count;
            }
        }
        let all: u64 = sum.values().sum();
        let mut wants: Vec<_> = sum.into_iter().collect();
        wants.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(a.0)));
        let mut covered = 0;
        let counts = |(_, count): &(&Want, u64)| {
            let more = covered * 100 < all * COVERED_PERCENT;
            covered += count;
            more
        };
        let typical = wants.into_iter().take(MOST_WANTS).take_while(counts);
        typical.map(|(want, count)| (want.clone(), count)).collect()
    }
}
