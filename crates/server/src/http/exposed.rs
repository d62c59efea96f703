//! Services of a cluster under the server's name: exposed, listed, taken back; and the way in for a browser.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use ionet_api::Secret;
use ionet_api::exposed::{EntryTicket, ExposeRequest, ExposedService, ExposedServices, SERVER_SEES};
use ionet_api::sign::hex;
use ionet_domain::account::Scope;
use ionet_domain::command::CommandBody;
use ionet_domain::order::expose::{Kind, Wanted};
use ionet_domain::{Order, OrderId, Refusal};

use super::caller::Caller;
use super::clusters::{OWN_SCOPES, own};
use super::error::Error;
use super::extract::{Body, Named};
use super::{Api, random};
use crate::apps::{Apps, TICKET_LIFE_MS, Visitor, admitted};
use crate::view::View;

/// Shows a service of a cluster under the server's name, or changes for whom. A cluster has one HTTP service: another port takes
/// its place. The server carries such traffic and can read it; a tunnel is sealed end to end.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/exposed", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    request_body = ExposeRequest, responses((status = 200, body = ExposedServices)), security(("token" = [])))]
pub(super) async fn expose(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
    Body(request): Body<ExposeRequest>,
) -> Result<Json<ExposedServices>, Error> {
    let ExposeRequest { id, kind, port, member, access, accounts } = request;
    caller.needs(&api, &[Scope::Rent], "expose a service")?;
    let ports = api.apps()?.config.ports;
    let wanted = Wanted { kind, port, slot: member, access, guests: accounts, ports };
    api.ask(caller, Some(id), CommandBody::Expose { order, wanted }).await?;
    api.exposed(caller, order)
}

/// What a cluster of the account exposes.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/exposed", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    responses((status = 200, body = ExposedServices)), security(("token" = [])))]
pub(super) async fn exposed(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
) -> Result<Json<ExposedServices>, Error> {
    caller.needs(&api, &OWN_SCOPES, "look at what a cluster exposes")?;
    api.exposed(caller, order)
}

/// Takes a service back; what goes on through it is cut.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/exposed/{kind}/{port}", tag = "clusters",
    params(("cluster" = String, Path, description = "Its id"), ("kind" = String, Path, description = "http, tcp or udp"),
        ("port" = u16, Path, description = "The port in the box")),
    responses((status = 200, body = ExposedServices)), security(("token" = [])))]
pub(super) async fn unexpose(
    State(api): State<Api>,
    caller: Caller,
    Named((order, kind, port)): Named<(OrderId, Kind, u16)>,
) -> Result<Json<ExposedServices>, Error> {
    api.ask(caller, None, CommandBody::Unexpose { order, kind, port }).await?;
    api.exposed(caller, order)
}

/// A link that lets a browser into a cluster's HTTP service, for whoever it is exposed to: good once, for a minute.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/tickets", tag = "clusters", params(("cluster" = String, Path, description = "Its id")),
    responses((status = 200, body = EntryTicket)), security(("token" = [])))]
pub(super) async fn ticket(
    State(api): State<Api>,
    caller: Caller,
    Named(order): Named<OrderId>,
) -> Result<Json<EntryTicket>, Error> {
    caller.needs(&api, &[Scope::Rent], "open an exposed service")?;
    let now_ms = api.now_ms();
    let visitor = Visitor { account: caller.account, key: caller.actor.key() };
    let open = api.handle.read(|view| {
        let web = view.state.orders.get(&order).and_then(Order::web);
        web.is_some_and(|web| admitted(view, order, (web.kind, web.port), Some(visitor), now_ms).is_some())
    });
    if !open {
        api.note_denied(
            caller,
            &format!("the HTTP service of {order}, which is not exposed to this account"),
        );
        // Whether a cluster of somebody else exists is nobody's business.
        api.handle.read(|view| own(view, caller, order).map(|_| ()))?;
        return Err(Refusal::NoChange {
            what: format!("{order} exposes no HTTP service; 'ionet expose' shows one"),
        }
        .into());
    }
    let (apps, text) = (api.apps()?, hex(&random()?));
    if !apps.tickets.put(&text, order, visitor, now_ms) {
        return Err(Error::TooMany { what: "links that were not used", retry_s: 60 });
    }
    let url = Secret::new(apps.entry_url(order, &text));
    Ok(Json(EntryTicket { url, expires_ms: now_ms + TICKET_LIFE_MS }))
}

impl Api {
    fn apps(&self) -> Result<&Apps, Refusal> {
        self.handle.0.apps.as_deref().ok_or_else(|| Refusal::Unsupported {
            what: "a service under the server's name".into(),
            reason: "this network's server has no listener for them ('ionet server --apps-listen')".into(),
            available: "'ionet tunnel'".into(),
        })
    }

    fn exposed(&self, caller: Caller, order: OrderId) -> Result<Json<ExposedServices>, Error> {
        let services = self.handle.read(|view| {
            own(view, caller, order).map(|order| services(view, order, self.handle.0.apps.as_deref()))
        });
        Ok(Json(ExposedServices { cluster: order, services: services?, notice: SERVER_SEES.into() }))
    }
}

/// What an order exposes, as its renter sees it.
pub(super) fn services(view: &View, order: &Order, apps: Option<&Apps>) -> Vec<ExposedService> {
    let show = |exposure: &ionet_domain::order::expose::Exposure| ExposedService {
        kind: exposure.kind,
        port: exposure.port,
        member: exposure.slot,
        access: exposure.access,
        accounts: if exposure.kind == Kind::Http {
            view.state.guests(order.id).clone()
        } else {
            BTreeSet::default()
        },
        url: apps.and_then(|apps| apps.url(order.id, exposure)),
        since_ms: exposure.since_ms,
        live: apps.map_or(0, |apps| apps.live(order.id, exposure)),
        trouble: apps.and_then(|apps| apps.trouble(order.id, exposure, crate::handle::now_ms())),
    };
    order.exposures().iter().map(show).collect()
}
