//! The way to a service: a tunnel to the member's supervisor, under leave that the server signs for itself.
//!
//! Always holds: leave is for one service of one cluster and a few minutes; opening ends in time, one way or the other.

use std::time::Duration;

use ionet_api::sign::Grant;
use ionet_domain::order::expose::Exposure;
use ionet_domain::tunnel::Services;
use ionet_domain::{EndpointId, LeaseId, Order, OrderId, Stage};
use ionet_net::tunnel::{self, TunnelRequest, TunnelStream};
use ionet_net::{NetError, NodeAddr};
use serde_json::json;

use super::Gateway;
use super::answer::Trouble;
use super::stall::Stall;
use crate::view::View;

/// How long it may take to get to the service.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// How long leave is good: only for opening.
const LEAVE_MS: u64 = 5 * 60_000;

impl Gateway {
    /// A stream to an exposed service.
    pub(super) async fn open(
        &self,
        order: OrderId,
        exposure: &Exposure,
    ) -> Result<Stall<TunnelStream>, Trouble> {
        let (addr, request) = self.way(order, exposure)?;
        let opening = tunnel::open(&self.handle.0.node, &addr, &request);
        let opened = tokio::time::timeout(OPEN_LIMIT, opening).await.unwrap_or_else(|_| {
            Err(NetError::Closed { reason: format!("no answer within {} s", OPEN_LIMIT.as_secs()) })
        });
        opened.map(Stall::new).map_err(|error| trouble(error, exposure.slot))
    }

    fn way(&self, order: OrderId, exposure: &Exposure) -> Result<(NodeAddr, TunnelRequest), Trouble> {
        let unreachable = |reason: &str| Trouble::Member { slot: exposure.slot, reason: reason.into() };
        let found = self.handle.read(|view| member(view, order, exposure));
        let (lease, mut addr, grant) = found.map_err(|reason| unreachable(&reason))?;
        if addr.relays.is_empty() {
            // A member that has just begun is not at home on a relay yet, but will be on one of these.
            addr.relays = self.handle.0.relays.iter().map(|relay| relay.url.clone()).collect();
        }
        let now_ms = self.now_ms();
        let endpoint = EndpointId(self.handle.0.keys.endpoint.id().0);
        let grant = Grant { endpoint, issued_ms: now_ms, not_after_ms: now_ms + LEAVE_MS, ..grant };
        let signature = self.handle.sign_grant(&grant);
        let auth =
            json!({ "grant": grant, "signature": signature, "follow": false }).to_string().into_bytes();
        let service = exposure.service().to_string();
        Ok((addr, TunnelRequest { cluster: lease.to_string(), service, auth }))
    }
}

/// Where the member is, and leave for it without its time.
fn member(view: &View, order: OrderId, exposure: &Exposure) -> Result<(LeaseId, NodeAddr, Grant), String> {
    let found: &Order = view.state.orders.get(&order).ok_or("its cluster has ended")?;
    if !(Stage::Placed..=Stage::Running).contains(&found.stage) {
        return Err(format!("its cluster is {}", found.stage));
    }
    let (n, _) = *found.members().get(&exposure.slot).ok_or("nothing fills its place")?;
    let lease = LeaseId { order, n };
    let endpoint = view.fleet.endpoint(lease).ok_or("it has not said where it is")?;
    let addr = serde_json::from_value(endpoint.addr.clone()).map_err(|_| "its address is malformed")?;
    let services = Services::from(exposure.service());
    let grant = Grant {
        cluster: order,
        endpoint: EndpointId([0; 32]),
        account: found.account,
        key: None,
        services,
        issued_ms: 0,
        not_after_ms: 0,
        cut_ms: None,
    };
    Ok((lease, addr, grant))
}

fn trouble(error: NetError, slot: u32) -> Trouble {
    match error {
        NetError::Refused { message, .. } => Trouble::Down { reason: message },
        other => Trouble::Member { slot, reason: other.to_string() },
    }
}
