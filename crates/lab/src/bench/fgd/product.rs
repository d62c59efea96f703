//! The product under the same pods: a state with the trace's machines as devices of one price, and its own `place`.
//!
//! The trace's own list is what renters asked for in the hour before, so the state knows the typical workload as every
//! published policy does. Devices are as old as the seed's order says.

use ionet_domain::device::{Resources, Tier};
use ionet_domain::market::Request;
use ionet_domain::market::place::{self, Limits};
use ionet_domain::money::HOUR_MS;

use super::super::market::{Market, request};
use super::trace::{Node, Pod};
use crate::{LabError, Result};

fn wish(pod: &Pod) -> Request {
    let wanted = Resources {
        cpu_millis: pod.cpu_millis,
        memory_bytes: pod.memory_mib << 20,
        gpus: pod.gpus,
        gpu_share_millis: pod.is_share().then(|| pod.gpu_millis.into()),
        ..Resources::default()
    };
    request(wanted, (!pod.models.is_empty()).then(|| pod.models.clone()))
}

/// The trace's cluster as a market.
pub(super) struct Product {
    market: Market,
}

impl Product {
    pub(super) fn new(nodes: &[Node], history: &[Pod]) -> Result<Self> {
        let mut market = Market::new()?;
        for node in nodes {
            let offered = Resources {
                cpu_millis: node.cpu_millis,
                memory_bytes: node.memory_mib << 20,
                gpus: node.gpus,
                ..Resources::default()
            };
            market.add(Some(&node.model), offered, Tier::High, |_| ())?;
        }
        for pod in history {
            market.order(&wish(pod))?;
        }
        market.now_ms += HOUR_MS;
        Ok(Self { market })
    }

    /// Places a pod; whether it fits anywhere.
    pub(super) fn place(&mut self, pod: &Pod) -> Result<bool> {
        let wish = wish(pod);
        let order = self.market.order(&wish)?;
        match place::find(&self.market.state, &wish, &Limits::default(), self.market.now_ms) {
            Some(seats) => self.market.take(order, &seats).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whether the books are right after all.
    pub(super) fn audit(&self) -> Result<()> {
        let index = place::index_is_true(&self.market.state);
        let index = if index { Ok(()) } else { Err("the index is another than one built anew".to_owned()) };
        self.market.state.audit().and(index).map_err(LabError::Broken)
    }
}
