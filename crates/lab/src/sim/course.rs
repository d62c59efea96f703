//! Renters change orders that live: they grow, shrink, pause, resume and change them.

use ionet_domain::command::CommandBody;
use ionet_domain::market::{Priority, Wants};
use ionet_domain::money::Rate;
use ionet_domain::order::size::{OrderChange, more_of};
use ionet_domain::{OrderId, Stage};

use super::world::World;
use crate::Result;

impl World {
    /// One change by chance, perhaps where it is not allowed.
    pub(super) fn change_course(&mut self, n: usize) -> Result<()> {
        let Some(order) = self.an_order(n) else { return Ok(()) };
        let stage = self.check.shadow.orders.get(&order).map(|found| found.stage);
        let body = match self.renters[n].random.below(9) {
            0 | 1 => return self.grow(n, order),
            2 | 3 => {
                let now = self.check.shadow.orders.get(&order).map_or(1, |found| found.quote.request.members);
                let fewer = u32::try_from(self.renters[n].random.between(1, 2)).unwrap_or(1);
                CommandBody::Shrink { order, members: now.saturating_sub(fewer) }
            }
            4 | 5 if stage != Some(Stage::Paused) => CommandBody::Pause { order },
            4..7 => CommandBody::Resume { order },
            7 => CommandBody::ReplaceMember {
                order,
                slot: u32::try_from(self.renters[n].random.below(3)).unwrap_or(0),
            },
            _ => CommandBody::ChangeOrder { order, change: self.some_change(n) },
        };
        let actor = self.actor(n);
        self.intend_as(n, actor, body);
        Ok(())
    }

    fn grow(&mut self, n: usize, order: OrderId) -> Result<()> {
        let members = u32::try_from(self.renters[n].random.between(1, 2)).unwrap_or(1);
        let now_ms = self.now_ms();
        let Some(core) = &self.server.core else { return Ok(()) };
        let asked = core.view().read().state.order(order).and_then(|found| more_of(found, members, now_ms));
        let request = match asked {
            Ok(request) => request,
            Err(refusal) => return self.read_refusal(n, &refusal),
        };
        if let Some(quote) = self.quote(n, &request)? {
            let actor = self.actor(n);
            self.intend_as(n, actor, CommandBody::Grow { order, quote });
        }
        Ok(())
    }

    fn some_change(&mut self, n: usize) -> OrderChange {
        let most_ms = self.plan.load.duration_ms.1;
        let random = &mut self.renters[n].random;
        match random.below(5) {
            3 => {
                let class = usize::try_from(random.below(3)).unwrap_or(0);
                OrderChange { priority: Priority::ALL.get(class).copied(), ..OrderChange::default() }
            }
            4 => {
                let most = u32::try_from(random.between(1, 3)).ok();
                let wants = Some(Box::new(Wants { max_per_device: most, ..Wants::default() }));
                OrderChange { wants, ..OrderChange::default() }
            }
            0 => OrderChange { duration_ms: Some(random.between(1, most_ms)), ..OrderChange::default() },
            1 => OrderChange { max_rate: Some(Rate(random.between(0, 1_000_000))), ..OrderChange::default() },
            _ => OrderChange::default(),
        }
    }
}
