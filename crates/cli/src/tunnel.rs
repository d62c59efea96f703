//! Tunnels into a cluster: a grant for this client's endpoint key, and streams to its members, sealed end to end.

use ionet_api::rest::{TunnelGrant, TunnelGrantRequest, TunnelMember};
use ionet_domain::{EndpointId, OrderId};
use ionet_net::tunnel::{self, LocalForward, TunnelRequest, TunnelStream};
use ionet_net::{NetError, Node, NodeAddr, NodeConfig, RelayInfo};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::{Context, Session};
use crate::error::{CliError, Result};

/// The port that stands for a member's output.
const LOG_PORT: u16 = 0;

/// Leave to enter one cluster, and this client's node.
#[derive(Debug)]
pub(crate) struct Tunnels {
    node: Node,
    grant: TunnelGrant,
}

impl Tunnels {
    /// Asks the server for leave and opens this client's endpoint.
    pub(crate) async fn open(context: &Context, session: &Session, cluster: OrderId) -> Result<Self> {
        let key = context.endpoint_key()?;
        let request = TunnelGrantRequest { endpoint: EndpointId(key.id().0) };
        let grant = session.client.grant(cluster, &request).await?;
        let relays = session.network.relays.iter().map(|relay| read::<RelayInfo>(relay, "relay"));
        let relays = relays.collect::<Result<Vec<_>>>()?;
        let node = Node::bind(&key, NodeConfig { relays, ..NodeConfig::default() }).await?;
        Ok(Self { node, grant })
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

    fn request(&self, slot: u32, port: u16, follow: bool) -> Result<(NodeAddr, TunnelRequest)> {
        let member = self.member(slot)?;
        let auth = json!({ "grant": self.grant.grant, "signature": self.grant.signature, "follow": follow });
        let request =
            TunnelRequest { cluster: member.lease.to_string(), port, auth: auth.to_string().into_bytes() };
        Ok((read(&member.endpoint.addr, "address")?, request))
    }

    /// A local port that leads to `port` of a member: `local_port` if it is free, else another.
    pub(crate) async fn forward(&self, slot: u32, port: u16, local_port: u16) -> Result<LocalForward> {
        let (addr, request) = self.request(slot, port, true)?;
        match tunnel::forward_local(&self.node, addr.clone(), local_port, request.clone()).await {
            Err(NetError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                Ok(tunnel::forward_local(&self.node, addr, 0, request).await?)
            }
            result => Ok(result?),
        }
    }

    /// Whether something listens on `port` of a member.
    pub(crate) async fn answers(&self, slot: u32, port: u16) -> bool {
        match self.request(slot, port, true) {
            Ok((addr, request)) => tunnel::open(&self.node, &addr, &request).await.is_ok(),
            Err(_) => false,
        }
    }

    /// A stream of a member's output: what there is, or with `follow` until the member ends.
    pub(crate) async fn logs(&self, slot: u32, follow: bool) -> Result<TunnelStream> {
        let (addr, request) = self.request(slot, LOG_PORT, follow)?;
        Ok(tunnel::open(&self.node, &addr, &request).await?)
    }

    /// Ends it, telling the other side.
    pub(crate) async fn close(self) {
        self.node.close().await;
    }
}

fn read<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(|error| {
        CliError::unreachable("garbled_answer", format!("the server gave a malformed {what}: {error}"))
    })
}
