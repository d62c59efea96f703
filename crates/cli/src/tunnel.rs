//! Tunnels into a cluster: a grant for this client's endpoint key, and streams to its members, sealed end to end.
//!
//! Always holds: leave is renewed well before it runs out, and a member that was replaced is found again, both when the
//! next stream is opened; so ports that were opened once work for as long as the cluster does.

use std::collections::BTreeSet;
use std::sync::Arc;

use ionet_api::Secret;
use ionet_api::rest::{TunnelGrant, TunnelGrantRequest, TunnelMember};
use ionet_domain::market::EngineKind;
use ionet_domain::order::LeasePhase;
use ionet_domain::tunnel::{Service, Services};
use ionet_domain::{EndpointId, LeaseId, OrderId};
use ionet_net::tunnel::{self, LocalForward, TunnelRequest, TunnelStream};
use ionet_net::{EndpointKey, NetError, Node, NodeAddr, NodeConfig, RelayInfo};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::context::{Context, Session, now_ms};
use crate::error::{CliError, Kind, Result};

/// Leave is not renewed more often than this.
const RENEW_AFTER_MS: u64 = 60_000;
/// Where a way was not found leave is asked for anew at once, then ever more rarely until the last: each is a line in the log.
const PATIENCE_MS: std::ops::RangeInclusive<u64> = 500..=30_000;

/// The code of an error: a local port that somebody else has.
pub(crate) const PORT_IN_USE: &str = "port_in_use";

/// Leave to enter one cluster, and this client's node.
#[derive(Debug, Clone)]
pub(crate) struct Tunnels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Context,
    cluster: OrderId,
    node: Node,
    /// What leave is asked for; `None` for all that there is.
    services: Option<Services>,
    leave: Mutex<Leave>,
}

#[derive(Debug)]
struct Leave {
    grant: TunnelGrant,
    asked_ms: u64,
    /// For how long it is not asked for anew.
    patience_ms: u64,
    renew_ms: u64,
    /// URLs of the network's relays.
    relays: BTreeSet<String>,
}

impl Leave {
    /// Asks the server for leave.
    async fn ask(
        session: &Session,
        cluster: OrderId,
        endpoint: EndpointId,
        services: Option<Services>,
    ) -> Result<Self> {
        let grant = session.client.grant(cluster, &TunnelGrantRequest { endpoint, services }).await?;
        let asked_ms = now_ms();
        let half_ms = grant.grant.not_after_ms.saturating_sub(asked_ms) / 2;
        let relays = relays(session)?.into_iter().map(|relay| relay.url).collect();
        Ok(Self { grant, asked_ms, patience_ms: 0, renew_ms: asked_ms + half_ms.max(RENEW_AFTER_MS), relays })
    }

    fn may_ask_again(&self) -> bool {
        now_ms() >= self.asked_ms.saturating_add(self.patience_ms)
    }

    /// How long to wait with the leave that follows this one.
    fn more_patience_ms(&self) -> u64 {
        let long_ago = now_ms() > self.asked_ms.saturating_add(2 * PATIENCE_MS.end());
        if long_ago { 0 } else { (2 * self.patience_ms).clamp(*PATIENCE_MS.start(), *PATIENCE_MS.end()) }
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

    fn request(&self, slot: u32, service: Service, more: &Value) -> Result<(NodeAddr, TunnelRequest)> {
        let member = self.member(slot)?;
        let mut auth = json!({ "grant": self.grant.grant, "signature": self.grant.signature });
        if let (Some(auth), Some(more)) = (auth.as_object_mut(), more.as_object()) {
            auth.extend(more.clone());
        }
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
    async fn route(
        &self,
        slot: u32,
        service: Service,
        again: bool,
        more: &Value,
    ) -> Result<(NodeAddr, TunnelRequest)> {
        let mut leave = self.leave.lock().await;
        if now_ms() >= leave.renew_ms || (again && self.moved(&leave, slot).await?) {
            let session = self.context.session().await?;
            let patience_ms = leave.more_patience_ms();
            *leave = Leave::ask(&session, self.cluster, self.endpoint(), self.services.clone()).await?;
            leave.patience_ms = patience_ms;
        }
        leave.request(slot, service, more)
    }

    /// A stream to a member's service. A way that leads nowhere is looked for once more.
    async fn stream(&self, slot: u32, service: Service, more: &Value) -> Result<TunnelStream> {
        let (addr, request) = self.route(slot, service, false, more).await?;
        let first = match tunnel::open(&self.node, &addr, &request).await {
            Ok(stream) => return Ok(stream),
            Err(error) => CliError::from(error),
        };
        if first.kind == Kind::Refused && first.code != "grant_revoked" {
            return Err(first);
        }
        let (addr, request) = self.route(slot, service, true, more).await?;
        Ok(tunnel::open(&self.node, &addr, &request).await?)
    }

    /// Whether another lease fills the slot than the one that leave was given for.
    async fn moved(&self, leave: &Leave, slot: u32) -> Result<bool> {
        let view = match self.context.session().await?.client.cluster(self.cluster).await {
            // A cluster that is shared is not shown; new leave says where its members are.
            Err(error) if error.code() == "unknown_order" => return Ok(leave.may_ask_again()),
            view => view?,
        };
        let lost = |phase: &LeasePhase| matches!(phase, LeasePhase::Lost { .. } | LeasePhase::Removed { .. });
        let now = view.leases.iter().find(|lease| lease.slot == slot && !lost(&lease.phase));
        let known: Option<LeaseId> = leave.member(slot).ok().map(|member| member.lease);
        Ok(now.map(|lease| lease.lease) != known)
    }
}

impl Tunnels {
    /// Asks the server for leave and opens this client's endpoint.
    ///
    /// `services` are those that leave is asked for; `None` for all that there is.
    pub(crate) async fn open(
        context: &Context,
        session: &Session,
        cluster: OrderId,
        services: Option<Services>,
    ) -> Result<Self> {
        // Each process is a client of its own: relays know one place for a key.
        let key = EndpointKey::generate()?;
        let leave = Leave::ask(session, cluster, EndpointId(key.id().0), services.clone()).await?;
        let relays = relays(session)?;
        let node = Node::bind(&key, NodeConfig { relays, ..NodeConfig::default() }).await?;
        let (context, leave) = (context.clone(), Mutex::new(leave));
        Ok(Self(Arc::new(Inner { context, cluster, node, services, leave })))
    }

    /// What runs in the cluster, and the secret of its services for whoever may use Ray's.
    pub(crate) async fn engine(&self) -> (EngineKind, Option<Secret>) {
        let leave = self.0.leave.lock().await;
        (leave.grant.engine, leave.grant.token.clone())
    }

    /// The places of the members that can be reached.
    pub(crate) async fn slots(&self) -> BTreeSet<u32> {
        self.0.leave.lock().await.grant.members.iter().map(|member| member.slot).collect()
    }

    /// A local port that leads to `port` of a member: `local_port` if it is free, else another.
    pub(crate) async fn forward(&self, slot: u32, port: u16, local_port: u16) -> Result<LocalForward> {
        match self.forward_at(slot, Service::Tcp(port), local_port).await {
            Err(error) if error.code == PORT_IN_USE => self.forward_at(slot, Service::Tcp(port), 0).await,
            result => result,
        }
    }

    /// A local port, `local_port` and no other (0 takes a free one), that leads to a port of a member.
    pub(crate) async fn forward_at(
        &self,
        slot: u32,
        service: Service,
        local_port: u16,
    ) -> Result<LocalForward> {
        self.0.leave.lock().await.member(slot)?;
        let inner = Arc::clone(&self.0);
        let route = move |again| {
            let inner = Arc::clone(&inner);
            async move { inner.route(slot, service, again, &Value::Null).await.map_err(no_way) }
        };
        let forward = match service {
            Service::Udp(_) => tunnel::forward_local_udp(&self.0.node, local_port, route).await,
            _ => tunnel::forward_local(&self.0.node, local_port, route).await,
        };
        match forward {
            Err(NetError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                let message = format!("port {local_port} of this machine is in use");
                Err(CliError::refused(PORT_IN_USE, message).help("say --local with another port, or none"))
            }
            result => Ok(result?),
        }
    }

    /// Whether something listens on `port` of a member.
    pub(crate) async fn answers(&self, slot: u32, port: u16) -> bool {
        self.0.stream(slot, Service::Tcp(port), &Value::Null).await.is_ok()
    }

    /// A stream of a member's output: what there is, or with `follow` until the member ends.
    pub(crate) async fn logs(&self, slot: u32, follow: bool) -> Result<TunnelStream> {
        self.0.stream(slot, Service::Log, &json!({ "follow": follow })).await
    }

    /// A stream to a member's service.
    pub(crate) async fn stream(&self, slot: u32, service: Service) -> Result<TunnelStream> {
        self.0.stream(slot, service, &Value::Null).await
    }

    /// A stream to a member's SSH server, for these public keys.
    pub(crate) async fn ssh(&self, slot: u32, keys: &[String]) -> Result<TunnelStream> {
        self.0.stream(slot, Service::Ssh, &json!({ "ssh_keys": keys })).await
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
