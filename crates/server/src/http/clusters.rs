//! The way of an order from outside: price, order, look, extend, tunnel, close.

use axum::Json;
use axum::extract::State;
use ionet_api::rest::{
    ClusterFilter, ClusterNetwork, ClusterView, EgressRequest, ExtendRequest, OrderRequest, SignedQuote,
};
use ionet_domain::account::Scope;
use ionet_domain::command::CommandBody;
use ionet_domain::id::QuoteId;
use ionet_domain::market::{EngineKind, Program, Request, price, queue};
use ionet_domain::order::CloseReason;
use ionet_domain::{Order, OrderId, Refusal};

use super::caller::Caller;
use super::error::Error;
use super::extract::{Body, Named, Params};
use super::history::{in_span, page_size};
use super::{Api, exposed, views};
use crate::view::View;

pub(super) const OWN_SCOPES: [Scope; 2] = [Scope::Read, Scope::Rent];

/// A signed, itemised, all-in price, good for a minute.
#[utoipa::path(post, path = "/v1/quotes", tag = "clusters", request_body = Object,
    responses((status = 200, body = SignedQuote)), security(("token" = [])))]
pub(super) async fn quote(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<Request>,
) -> Result<Json<SignedQuote>, Error> {
    caller.needs(&api, &[Scope::Rent], "ask for a price")?;
    let now_ms = api.now_ms();
    let id = QuoteId::from_parts(now_ms, api.handle.random_bits()?);
    let quote = api.handle.read(|view| price::quote(&view.state, id, caller.account, &request, now_ms))?;
    Ok(Json(api.handle.sign_quote(quote)))
}

/// Accepts a price: the money is set aside and a cluster begins.
#[utoipa::path(post, path = "/v1/clusters", tag = "clusters", request_body = OrderRequest,
    responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn order(
    State(api): State<Api>,
    caller: Caller,
    Body(OrderRequest { id, quote, program }): Body<OrderRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.handle.verify_quote(&quote).map_err(Error::BadQuote)?;
    let quote = quote.quote;
    known_environment(&api.handle.info().environments, quote.request.engine, &program)?;
    api.ask(caller, None, CommandBody::PlaceOrder { order: id, quote, program }).await?;
    api.cluster(caller, id)
}

fn known_environment(known: &[String], engine: EngineKind, program: &Program) -> Result<(), Refusal> {
    let Some(wanted) = &program.environment else { return Ok(()) };
    if engine == EngineKind::Ray && known.contains(&wanted.0) {
        return Ok(());
    }
    let reason = match engine {
        EngineKind::Ray => "this network does not offer it",
        EngineKind::Command => "the command engine takes no environment",
    };
    Err(Refusal::Unsupported {
        what: format!("environment '{}'", wanted.0.chars().take(100).collect::<String>()),
        reason: reason.into(),
        available: known.join(", "),
    })
}

/// The account's clusters.
#[utoipa::path(get, path = "/v1/clusters", tag = "clusters", params(ClusterFilter),
    responses((status = 200, body = Vec<ClusterView>)), security(("token" = [])))]
pub(super) async fn clusters(
    State(api): State<Api>,
    caller: Caller,
    Params(filter): Params<ClusterFilter>,
) -> Result<Json<Vec<ClusterView>>, Error> {
    caller.needs(&api, &OWN_SCOPES, "list clusters")?;
    let limit = page_size(filter.limit)?;
    let found = api.handle.read(|view| {
        let span = in_span(&view.state.orders, (filter.after, filter.before, filter.newest));
        let own = span.filter(|(_, order)| order.account == caller.account).take(limit);
        let mut line = Line::default();
        own.map(|(_, order)| show(&api, view, order, &mut line)).collect()
    });
    Ok(Json(found))
}

/// One cluster of the account.
#[utoipa::path(get, path = "/v1/clusters/{cluster}", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn cluster(
    State(api): State<Api>,
    caller: Caller,
    Named(cluster): Named<OrderId>,
) -> Result<Json<ClusterView>, Error> {
    caller.needs(&api, &OWN_SCOPES, "look at a cluster")?;
    api.cluster(caller, cluster)
}

/// How the members of a cluster of the account reach each other now.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/network", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    responses((status = 200, body = ClusterNetwork)), security(("token" = [])))]
pub(super) async fn cluster_network(
    State(api): State<Api>,
    caller: Caller,
    Named(cluster): Named<OrderId>,
) -> Result<Json<ClusterNetwork>, Error> {
    caller.needs(&api, &OWN_SCOPES, "look at a cluster's network")?;
    let now_ms = api.now_ms();
    let found = api.handle.read(|view| {
        own(view, caller, cluster).map(|order| views::cluster_network(&view.fleet, order, now_ms))
    });
    Ok(Json(found?))
}

/// Adds paid time at the same rates.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/extend", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = ExtendRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn extend(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(ExtendRequest { id, added_ms }): Body<ExtendRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::Extend { order, added_ms }).await?;
    api.cluster(caller, order)
}

/// Changes what the boxes may reach outside their cluster; it takes effect while they run, and cuts what it forbids.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/egress", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = EgressRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn change_egress(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(EgressRequest { id, egress, allow }): Body<EgressRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::ChangeEgress { order, egress, allow }).await?;
    api.cluster(caller, order)
}

/// Closes a cluster: boxes go, what was not used comes back.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn close(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, None, CommandBody::Close { order, reason: CloseReason::Renter }).await?;
    api.cluster(caller, order)
}

/// A cluster of the caller's; whether one of somebody else exists is nobody's business.
pub(super) fn own(view: &View, caller: Caller, order: OrderId) -> Result<&Order, Error> {
    let found = view.state.order(order)?;
    if found.account == caller.account { Ok(found) } else { Err(Refusal::UnknownOrder { order }.into()) }
}

/// The line of waiting orders, looked up once for an answer that needs it.
#[derive(Default)]
struct Line(Option<Vec<OrderId>>);

fn show(api: &Api, view: &View, order: &Order, line: &mut Line) -> ClusterView {
    let now_ms = api.now_ms();
    let waiting = queue::waits(order, now_ms).then(|| {
        let line = line.0.get_or_insert_with(|| queue::line(&view.state, now_ms));
        queue::standing(&view.state, order, line, now_ms)
    });
    let token = api.handle.cluster_token(order.id);
    let mut shown = views::cluster(&view.state, &view.fleet, order, waiting.flatten(), token);
    shown.exposed = exposed::services(view, order, api.handle.0.apps.as_deref());
    shown
}

impl Api {
    pub(super) fn cluster(&self, caller: Caller, order: OrderId) -> Result<Json<ClusterView>, Error> {
        self.handle.read(|view| Ok(Json(show(self, view, own(view, caller, order)?, &mut Line::default()))))
    }
}
