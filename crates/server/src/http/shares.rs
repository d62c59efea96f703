//! Leave to open a cluster's services: for its owner, and for those whom he shares it with.
//!
//! Always holds: nobody gets more than his share and nothing for longer; whether a cluster of somebody else exists is nobody's business;
//! each leave is a line in the log of whoever got it and in the owner's. Not here: the rules of shares (`ionet-domain`),
//! the check where a tunnel is opened (`ionet-worker`).

use axum::Json;
use axum::extract::State;
use ionet_api::rest::{ClusterView, ShareRequest, TunnelGrant, TunnelGrantRequest};
use ionet_api::sign::Grant;
use ionet_domain::account::{ActivityKind, Scope};
use ionet_domain::command::CommandBody;
use ionet_domain::order::share::Share;
use ionet_domain::tunnel::{Service, Services};
use ionet_domain::{Actor, Address, Command, EndpointId, Order, OrderId, Refusal, Stage};

use super::caller::Caller;
use super::error::Error;
use super::extract::{Body, Named};
use super::{Api, views};
use crate::view::View;

/// How long a grant opens tunnels; it works without the server, so it is not for ever.
const GRANT_LIFE_MS: u64 = 12 * 3_600_000;
/// Ray's dashboard and jobs, its client, and the notebook: what the cluster's token is for.
const TOKEN_PORTS: [u16; 3] = [8265, 10001, 8888];

/// Lets another account open some of a cluster's services, instead of what it might before.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/shares", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = ShareRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn share(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(ShareRequest { id, account, services, until_ms }): Body<ShareRequest>,
) -> Result<Json<ClusterView>, Error> {
    let share = Share { services, until_ms };
    api.ask(caller, Some(id), CommandBody::Share { order, account, share }).await?;
    api.cluster(caller, order)
}

/// Takes a share back: what was opened under it is cut.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/shares/{account}", tag = "clusters",
    params(("cluster" = String, Path, description = "Its id"), ("account" = String, Path, description = "Whose share")),
    responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn unshare(
    State(api): State<Api>,
    caller: Caller,
    Named((order, account)): Named<(OrderId, Address)>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, None, CommandBody::Unshare { order, account }).await?;
    api.cluster(caller, order)
}

/// Leave for one endpoint key to open tunnels into a cluster: one's own, or one that is shared with the caller.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/tunnels", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = TunnelGrantRequest, responses((status = 200, body = TunnelGrant)), security(("token" = [])))]
pub(super) async fn grant(
    State(api): State<Api>,
    caller: Caller,
    Named(cluster): Named<OrderId>,
    Body(TunnelGrantRequest { endpoint, services }): Body<TunnelGrantRequest>,
) -> Result<Json<TunnelGrant>, Error> {
    caller.needs(&api, &[Scope::Rent], "open a tunnel")?;
    let now_ms = api.now_ms();
    let found = api.handle.read(|view| {
        let Leave { order, services, until_ms } = leave(view, caller, cluster, services, now_ms)?;
        if !(Stage::Placed..=Stage::Running).contains(&order.stage) {
            return Err(Error::NoTunnel { cluster, stage: order.stage });
        }
        let key_ends_ms =
            caller.actor.key().and_then(|key| Some(view.state.key(caller.account, key).ok()?.expires_ms));
        let ends = [order.ends_ms(), until_ms, key_ends_ms];
        let grant = Grant {
            cluster,
            endpoint,
            account: caller.account,
            key: caller.actor.key(),
            services,
            issued_ms: now_ms,
            not_after_ms: ends.into_iter().flatten().fold(now_ms.saturating_add(GRANT_LIFE_MS), u64::min),
            cut_ms: until_ms,
        };
        let members = views::tunnel_members(&view.fleet, order);
        Ok((grant, members, order.account, order.quote.request.engine))
    });
    if let Err(Error::Refused(Refusal::UnknownOrder { .. } | Refusal::NotAllowed { .. })) = &found {
        api.note_denied(caller, &format!("a tunnel into {cluster}, which is not this account's to open"));
    }
    let (grant, members, owner, engine) = found?;
    api.note_opening(caller, owner, &grant).await?;
    let signature = api.handle.sign_grant(&grant);
    let with_token = TOKEN_PORTS.iter().any(|port| grant.services.include(Service::Tcp(*port)));
    let token = with_token.then(|| api.handle.cluster_token(cluster));
    Ok(Json(TunnelGrant { grant, signature, members, engine, token }))
}

/// What a caller may open.
struct Leave<'a> {
    order: &'a Order,
    services: Services,
    /// The end of his share.
    until_ms: Option<u64>,
}

fn leave(
    view: &View,
    caller: Caller,
    cluster: OrderId,
    asked: Option<Services>,
    now_ms: u64,
) -> Result<Leave<'_>, Error> {
    let order = view.state.order(cluster)?;
    let asked = asked.unwrap_or(Services::All);
    if order.account == caller.account {
        return Ok(Leave { order, services: asked, until_ms: None });
    }
    let share = order.sharing.of(caller.account, now_ms).ok_or(Refusal::UnknownOrder { order: cluster })?;
    let services = asked.within(&share.services);
    if services.is_empty() {
        let left_s = share.until_ms.saturating_sub(now_ms) / 1000;
        return Err(Error::Refused(Refusal::NotAllowed {
            who: caller.account.to_string(),
            what: format!("open {asked} of {cluster}"),
            takes: format!(
                "a share with that from its owner; this account's is {} for {left_s} s more",
                share.services
            ),
        }));
    }
    Ok(Leave { order, services, until_ms: Some(share.until_ms) })
}

impl Api {
    /// A line for whoever got leave, and one for the owner.
    async fn note_opening(&self, caller: Caller, owner: Address, grant: &Grant) -> Result<(), Error> {
        let Grant { cluster, endpoint, services, .. } = grant;
        let line = opened(*cluster, services, *endpoint);
        self.note(caller, ActivityKind::TunnelOpened, &line).await?;
        if owner == caller.account {
            return Ok(());
        }
        let by = caller.actor.key().map_or_else(String::new, |key| format!(" with {key}"));
        let particulars = format!("{line}, by {}{by}", caller.account);
        let kind = ActivityKind::TunnelOpened;
        let body = CommandBody::LogActivity { account: owner, kind, key: None, particulars };
        self.submit(Command { id: None, actor: Actor::Server, body }).await
    }
}

fn opened(cluster: OrderId, services: &Services, endpoint: EndpointId) -> String {
    format!("into {cluster} to {services} by endpoint {endpoint}")
}
