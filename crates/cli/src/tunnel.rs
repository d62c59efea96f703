//! Tunnels into a cluster: a grant for this client's endpoint key, and streams to its members, sealed end to end.
//!
//! Always holds: leave is renewed well before it runs out, and a member that was replaced is found again, both when the
//! next stream is opened; so ports that were opened once work for as long as the cluster does.

use std::collections::BTreeSet;
use std::sync::Arc;

use ionet_api::rest::{TunnelGrant, TunnelGrantRequest, TunnelMember};
use ionet_domain::order::LeasePhase;
use ionet_domain::tunnel::Service;
use ionet_domain::{EndpointId, LeaseId, OrderId};
use ionet_net::tunnel::{self, LocalForward, TunnelRequest, TunnelStream};
use ionet_net::{NetError, Node, NodeAddr, NodeConfig, RelayInfo};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::context::{Context, Session, now_ms};
use crate::error::{CliError, Result};

/// Leave is not renewed more often than this.
const RENEW_AFTER_MS: u64 = 60_000;

/// Leave to enter one cluster, and this client's node.
#[derive(Debug, Clone)]
pub(crate) struct Tunnels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Context,
    cluster: OrderId,
    node: Node,
    leave: Mutex<Leave>,
}

#[derive(Debug)]
struct Leave {
    grant: TunnelGrant,
    renew_ms: u64,
    /// URLs of the network's relays.
    relays: BTreeSet<String>,
}

impl Leave {
    /// Asks the server for leave.
    async fn ask(session: &Session, cluster: OrderId, node: EndpointId) -> Result<Self> {
        let grant =
            session.client.grant(cluster, &TunnelGrantRequest { endpoint: node, services: None }).await?;
        let asked_ms = now_ms();
        let half_ms = grant.grant.not_after_ms.saturating_sub(asked_ms) / 2;
        let relays = relays(session)?.into_iter().map(|relay| relay.url).collect();
        Ok(Self { grant, renew_ms: asked_ms + half_ms.max(RENEW_AFTER_MS), relays })
    }

    fn member(&self, slot: u32) -> Result<&TunnelMember> {
        let found = self.grant.members.iter().find(|member| member.slot == slot);
        found.ok_or_else(|| {
            let reachable: Vec<_> = self.grant.members.iter().map(|member| member.slot.to_string()).collect();
            let message =
                format!("member {slot} cannot be reached now; reachable: [{}]", reachable.join(", "));
            CliError::refused("member_not_reachable", message)
                .help("'ionet cluster show' says how its members are; wait until it is up")
        })
    }

    fn request(&self, slot: u32, service: Service, follow: bool) -> Result<(NodeAddr, TunnelRequest)> {
        let member = self.member(slot)?;
        let auth = json!({ "grant": self.grant.grant, "signature": self.grant.signature, "follow": follow });
        let request = TunnelRequest {
            cluster: member.lease.to_string(),
            service: service.to_string(),
            auth: auth.to_string().into_bytes(),
        };
        let mut addr: NodeAddr = read(&member.endpoint.addr, "address")?;
        if addr.relays.is_empty() {
            // A member that has just begun is not at home on a relay yet, but will be on one of these: behind a router
            // it is found nowhere else, and a short program is over before its next word would come.
            addr.relays.clone_from(&self.relays);
        }
        Ok((addr, request))
    }
}

/// The network's relays.
fn relays(session: &Session) -> Result<Vec<RelayInfo>> {
    session.network.relays.iter().map(|relay| read(relay, "relay")).collect()
}

impl Inner {
    fn endpoint(&self) -> EndpointId {
        EndpointId(self.node.id().0)
    }

    /// The way to a member's port; `again` when the one given before led nowhere.
    async fn route(&self, slot: u32, service: Service, again: bool) -> Result<(NodeAddr, TunnelRequest)> {
        let mut leave = self.leave.lock().await;
        if now_ms() >= leave.renew_ms || (again && self.moved(&leave, slot).await?) {
            let session = self.context.session().await?;
            *leave = Leave::ask(&session, self.cluster, self.endpoint()).await?;
        }
        leave.request(slot, service, true)
    }

    /// Whether another lease fills the slot than the one that leave was given for.
    async fn moved(&self, leave: &Leave, slot: u32) -> Result<bool> {
        let view = self.context.session().await?.client.cluster(self.cluster).await?;
        let lost = |phase: &LeasePhase| matches!(phase, LeasePhase::Lost { .. } | LeasePhase::Removed { .. });
        let now = view.leases.iter().find(|lease| lease.slot == slot && !lost(&lease.phase));
        let known: Option<LeaseId> = leave.member(slot).ok().map(|member| member.lease);
        Ok(now.map(|lease| lease.lease) != known)
    }
}

impl Tunnels {
    /// Asks the server for leave and opens this client's endpoint.
    pub(crate) async fn open(context: &Context, session: &Session, cluster: OrderId) -> Result<Self> {
        let key = context.endpoint_key()?;
        let leave = Leave::ask(session, cluster, EndpointId(key.id().0)).await?;
        let relays = relays(session)?;
        let node = Node::bind(&key, NodeConfig { relays, ..NodeConfig::default() }).await?;
        Ok(Self(Arc::new(Inner { context: context.clone(), cluster, node, leave: Mutex::new(leave) })))
    }

    /// A local port that leads to `port` of a member: `local_port` if it is free, else another.
    pub(crate) async fn forward(&self, slot: u32, port: u16, local_port: u16) -> Result<LocalForward> {
        self.0.leave.lock().await.member(slot)?;
        let route = || {
            let inner = Arc::clone(&self.0);
            move |again| {
                let inner = Arc::clone(&inner);
                async move { inner.route(slot, Service::Tcp(port), again).await.map_err(no_way) }
            }
        };
        match tunnel::forward_local(&self.0.node, local_port, route()).await {
            Err(NetError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                Ok(tunnel::forward_local(&self.0.node, 0, route()).await?)
            }
            result => Ok(result?),
        }
    }

    /// Whether something listens on `port` of a member.
    pub(crate) async fn answers(&self, slot: u32, port: u16) -> bool {
        match self.0.route(slot, Service::Tcp(port), false).await {
            Ok((addr, request)) => tunnel::open(&self.0.node, &addr, &request).await.is_ok(),
            Err(_) => false,
        }
    }

    /// A stream of a member's output: what there is, or with `follow` until the member ends.
    pub(crate) async fn logs(&self, slot: u32, follow: bool) -> Result<TunnelStream> {
        let (addr, request) = self.0.leave.lock().await.request(slot, Service::Log, follow)?;
        Ok(tunnel::open(&self.0.node, &addr, &request).await?)
    }

    /// Ends it, telling the other side.
    pub(crate) async fn close(self) {
        self.0.node.close().await;
    }
}

fn no_way(error: CliError) -> NetError {
    NetError::Refused { code: error.code, message: error.message }
}

fn read<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(|error| {
        CliError::unreachable("garbled_answer", format!("the server gave a malformed {what}: {error}"))
    })
}
