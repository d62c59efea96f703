//! What changes a cluster that lives: more and fewer members, a pause, another duration or cap.

use axum::Json;
use axum::extract::State;
use ionet_api::rest::{
    ChangeRequest, ClusterView, GrowRequest, MoreRequest, NamedRequest, ReplaceRequest, ShrinkRequest,
    SignedQuote,
};
use ionet_domain::OrderId;
use ionet_domain::account::Scope;
use ionet_domain::command::CommandBody;
use ionet_domain::id::QuoteId;
use ionet_domain::market::price;
use ionet_domain::order::size;

use super::Api;
use super::caller::Caller;
use super::clusters::own;
use super::error::Error;
use super::extract::{Body, Named};

/// A signed price for more members of a cluster that runs, for the rest of its time.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/quote", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = MoreRequest, responses((status = 200, body = SignedQuote)), security(("token" = [])))]
pub(super) async fn quote_more(
    State(api): State<Api>,
    caller: Caller,
    Named(cluster): Named<OrderId>,
    Body(MoreRequest { members }): Body<MoreRequest>,
) -> Result<Json<SignedQuote>, Error> {
    caller.needs(&api, &[Scope::Rent], "ask for a price")?;
    let now_ms = api.now_ms();
    let id = QuoteId::from_parts(now_ms, api.handle.random_bits()?);
    let quote = api.handle.read(|view| {
        let request = size::more_of(own(view, caller, cluster)?, members, now_ms)?;
        Ok::<_, Error>(price::quote(&view.state, id, caller.account, &request, now_ms)?)
    })?;
    Ok(Json(api.handle.sign_quote(quote)))
}

/// Adds the members of a price to a cluster: their money is set aside, all of them get devices, or none and it comes back.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/grow", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = GrowRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn grow(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(GrowRequest { id, quote }): Body<GrowRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.handle.verify_quote(&quote).map_err(Error::BadQuote)?;
    api.ask(caller, Some(id), CommandBody::Grow { order, quote: quote.quote }).await?;
    api.cluster(caller, order)
}

/// Keeps a cluster's first members only: the boxes of the others are wiped, and what they will not use comes back at once.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/shrink", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = ShrinkRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn shrink(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(ShrinkRequest { id, members }): Body<ShrinkRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::Shrink { order, members }).await?;
    api.cluster(caller, order)
}

/// Puts another device in a member's place, at the same price. Where it is the head of a Ray cluster, the engine starts anew.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/replace", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = ReplaceRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn replace_member(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(ReplaceRequest { id, member }): Body<ReplaceRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::ReplaceMember { order, slot: member }).await?;
    api.cluster(caller, order)
}

/// Takes all boxes of a cluster away, and nothing that was in them is kept; clock and charges stand still until it is resumed.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/pause", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = NamedRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn pause(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(NamedRequest { id }): Body<NamedRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::Pause { order }).await?;
    api.cluster(caller, order)
}

/// Runs a paused cluster again, with the same program at the same rates; refused with the reasons where there is no place now.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/resume", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = NamedRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn resume(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(NamedRequest { id }): Body<NamedRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::Resume { order }).await?;
    api.cluster(caller, order)
}

/// Changes a cluster that waits or runs: a shorter duration, another price cap, what is done for it while it lives.
#[utoipa::path(patch, path = "/v1/clusters/{cluster}", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = ChangeRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn change(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(ChangeRequest { id, change }): Body<ChangeRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::ChangeOrder { order, change }).await?;
    api.cluster(caller, order)
}
