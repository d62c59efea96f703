//! Services of a cluster under the server's name: what is asked and answered, and the client's calls.

use std::collections::BTreeSet;

use ionet_domain::order::expose::{Access, Kind};
use ionet_domain::{Address, CommandId, OrderId};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::client::{Client, ClientError};
use crate::secret::Secret;

/// What everybody who exposes a service is told.
pub const SERVER_SEES: &str =
    "the server carries this traffic and can read it; 'ionet tunnel' is sealed end to end";

/// Expose a service, or change how it is exposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExposeRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// What the server speaks outside: `http` (with WebSocket), `tcp` or `udp`.
    #[schema(value_type = String)]
    pub kind: Kind,
    /// The port in the box.
    pub port: u16,
    /// The member whose box it is; the head, if absent.
    #[serde(default)]
    pub member: u32,
    /// For whom: `owner`, `accounts` or `public`. Ports of `tcp` and `udp` can only be public.
    #[schema(value_type = String)]
    pub access: Access,
    /// With `accounts`: whom, beside the owner.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub accounts: BTreeSet<Address>,
}

/// What a cluster exposes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExposedServices {
    /// Which cluster.
    #[schema(value_type = String)]
    pub cluster: OrderId,
    /// Its services under the server's name.
    pub services: Vec<ExposedService>,
    /// What to know of all of them.
    pub notice: String,
}

/// One service under the server's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExposedService {
    /// What the server speaks outside.
    #[schema(value_type = String)]
    pub kind: Kind,
    /// The port in the box.
    pub port: u16,
    /// The member whose box it is.
    pub member: u32,
    /// For whom.
    #[schema(value_type = String)]
    pub access: Access,
    /// Whom it is for beside the owner, with access `accounts`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub accounts: BTreeSet<Address>,
    /// Where it is found: a URL for HTTP, else `tcp://HOST:PORT` or `udp://HOST:PORT`; nothing where this server exposes
    /// nothing (any more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Since when it is exposed so.
    pub since_ms: u64,
    /// Connections that go on.
    pub live: u64,
    /// Why it cannot be reached at the server, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A link that opens a cluster's HTTP service in a browser: good once, for a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntryTicket {
    /// The link, a secret until it was used.
    #[schema(value_type = String)]
    pub url: Secret,
    /// Until when, in milliseconds since 1970.
    pub expires_ms: u64,
}

impl Client {
    /// Exposes a service.
    pub async fn expose(
        &self,
        cluster: OrderId,
        request: &ExposeRequest,
    ) -> Result<ExposedServices, ClientError> {
        self.send_json(Method::POST, &format!("/v1/clusters/{cluster}/exposed"), request).await
    }

    /// What a cluster exposes.
    pub async fn exposed(&self, cluster: OrderId) -> Result<ExposedServices, ClientError> {
        self.get(&format!("/v1/clusters/{cluster}/exposed"), &()).await
    }

    /// Takes a service back: what goes on through it is cut.
    pub async fn unexpose(
        &self,
        cluster: OrderId,
        kind: Kind,
        port: u16,
    ) -> Result<ExposedServices, ClientError> {
        self.send_json(Method::DELETE, &format!("/v1/clusters/{cluster}/exposed/{kind}/{port}"), &()).await
    }

    /// A link into a cluster's HTTP service, for whoever it is exposed to.
    pub async fn enter(&self, cluster: OrderId) -> Result<EntryTicket, ClientError> {
        self.send_json(Method::POST, &format!("/v1/clusters/{cluster}/tickets"), &()).await
    }
}
