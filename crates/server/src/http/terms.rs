//! Who serves whom: an account's country, a device's terms, the operator's deny list, and what renters say afterwards.
//!
//! Always holds: lists are shown to whom they belong to and to nobody else. Not here: what follows from them
//! (`ionet-domain`).

use axum::Json;
use axum::extract::State;
use ionet_api::rest::{ClusterView, Declared, DenyListView, DeviceTerms, OperatorRequest, RateRequest};
use ionet_api::sign;
use ionet_domain::account::Scope;
use ionet_domain::command::CommandBody;
use ionet_domain::{Actor, Command, DeviceId, OrderId, Refusal};

use super::Api;
use super::caller::Caller;
use super::error::Error;
use super::extract::{Body, Named};

/// How old the operator's word may be.
const WORD_LIFE_MS: u64 = 60_000;

/// The country that the account declared.
#[utoipa::path(get, path = "/v1/country", tag = "accounts",
    responses((status = 200, body = Declared)), security(("token" = [])))]
pub(super) async fn country(State(api): State<Api>, caller: Caller) -> Result<Json<Declared>, Error> {
    caller.needs(&api, &[Scope::Read, Scope::Rent], "look at its country")?;
    Ok(Json(api.declared(caller)))
}

/// Declares the account's country: its own word, which nobody checks. Suppliers' terms go by it.
#[utoipa::path(put, path = "/v1/country", tag = "accounts", request_body = Declared,
    responses((status = 200, body = Declared)), security(("token" = [])))]
pub(super) async fn declare(
    State(api): State<Api>,
    caller: Caller,
    Body(declared): Body<Declared>,
) -> Result<Json<Declared>, Error> {
    let none = || Refusal::OutOfRange {
        field: "country".into(),
        value: "absent".into(),
        limit: "two letters, such as DE".into(),
    };
    let country = declared.country.ok_or_else(none)?;
    match api.ask(caller, None, CommandBody::DeclareCountry { country }).await {
        Ok(()) | Err(Error::Refused(Refusal::NoChange { .. })) => Ok(Json(api.declared(caller))),
        Err(error) => Err(error),
    }
}

/// Whom and what a device of the account does not serve.
#[utoipa::path(get, path = "/v1/devices/{device}/terms", tag = "devices", params(("device" = String, Path, description = "Its id")),
    responses((status = 200, body = DeviceTerms)), security(("token" = [])))]
pub(super) async fn terms(
    State(api): State<Api>,
    caller: Caller,
    Named(device): Named<DeviceId>,
) -> Result<Json<DeviceTerms>, Error> {
    const WHAT: &str = "look at the device's terms";
    caller.needs(&api, &[Scope::Read, Scope::Supply], WHAT)?;
    let found = api.handle.read(|view| {
        if view.state.device(device)?.enrolment.owner != caller.account {
            let (who, takes) = (caller.account.to_string(), "the device's owner".into());
            return Err(Refusal::NotAllowed { who, what: WHAT.into(), takes });
        }
        Ok(view.state.private.terms.get(&device).cloned().unwrap_or_default())
    });
    if let Err(refusal @ Refusal::NotAllowed { .. }) = &found {
        api.note_denied(caller, &refusal.to_string());
    }
    Ok(Json(DeviceTerms { denied: found? }))
}

/// Sets whom and what a device does not serve. What runs there runs on.
#[utoipa::path(put, path = "/v1/devices/{device}/terms", tag = "devices", params(("device" = String, Path, description = "Its id")),
    request_body = DeviceTerms, responses((status = 200, body = DeviceTerms)), security(("token" = [])))]
pub(super) async fn set_terms(
    State(api): State<Api>,
    caller: Caller,
    Named(device): Named<DeviceId>,
    Body(DeviceTerms { denied }): Body<DeviceTerms>,
) -> Result<Json<DeviceTerms>, Error> {
    let answer = DeviceTerms { denied: denied.clone() };
    match api.ask(caller, None, CommandBody::SetTerms { device, terms: denied }).await {
        Ok(()) | Err(Error::Refused(Refusal::NoChange { .. })) => Ok(Json(answer)),
        Err(error) => Err(error),
    }
}

/// Shows the operator's deny list, or sets it. The server's own key signs, which is all the sign-in there is.
#[utoipa::path(post, path = "/v1/operator/deny-list", tag = "network", request_body = OperatorRequest,
    responses((status = 200, body = DenyListView)))]
pub(super) async fn deny_list(
    State(api): State<Api>,
    Body(OperatorRequest { order, signature }): Body<OperatorRequest>,
) -> Result<Json<DenyListView>, Error> {
    let info = api.handle.info();
    let signed = sign::verify(info.server, &info.name, &order, &signature).is_ok();
    if !signed || api.now_ms().abs_diff(order.at_ms) > WORD_LIFE_MS {
        let (who, what) = ("this caller".into(), "speak for the operator".into());
        let takes =
            "the server's own key and the time of now ('ionet operator' on the server's machine)".into();
        return Err(Refusal::NotAllowed { who, what, takes }.into());
    }
    if let Some(list) = order.list {
        let body = CommandBody::SetDenyList { list };
        match api.submit(Command { id: None, actor: Actor::Server, body }).await {
            Ok(()) | Err(Error::Refused(Refusal::NoChange { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(DenyListView { list: api.handle.read(|view| view.state.private.deny.clone()) }))
}

/// Gives a cluster that ended one to five stars, once.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/rate", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = RateRequest, responses((status = 200, body = ClusterView)), security(("token" = [])))]
pub(super) async fn rate(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(RateRequest { id, stars }): Body<RateRequest>,
) -> Result<Json<ClusterView>, Error> {
    api.ask(caller, Some(id), CommandBody::Rate { order, stars }).await?;
    api.cluster(caller, order)
}

impl Api {
    fn declared(&self, caller: Caller) -> Declared {
        let country = self.handle.read(|view| view.state.private.countries.get(&caller.account).copied());
        Declared { country }
    }
}
