//! Prices of all hardware, prices elsewhere, and reasons for every no and every wait.
//!
//! Always holds: what takes a look at every device is done beside the threads that answer; whose order or device it is
//! decides who hears of it. Not here: the reasons themselves (`ionet-domain`).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ionet_api::rest::{
    ExplainedCluster, ExplainedDevice, ExplainedRequest, FeedRequest, PriceBoard, PriceFilter,
};
use ionet_api::sign;
use ionet_domain::account::Scope;
use ionet_domain::command::CommandBody;
use ionet_domain::market::queue::{self, Waiting};
use ionet_domain::market::{Request, board, explain, explain_device};
use ionet_domain::order::CloseReason;
use ionet_domain::{Actor, Command, DeviceId, Order, OrderId, Refusal, Stage};

use super::Api;
use super::caller::Caller;
use super::error::Error;
use super::extract::{Body, Named, Params};
use crate::error::ServerError;
use crate::view::View;

/// What each kind of hardware costs, did cost and costs elsewhere.
#[utoipa::path(get, path = "/v1/prices", tag = "market", params(PriceFilter),
    responses((status = 200, body = PriceBoard)))]
pub(super) async fn prices(
    State(api): State<Api>,
    Params(filter): Params<PriceFilter>,
) -> Result<Json<PriceBoard>, Error> {
    let at_ms = api.now_ms();
    let look = move |view: &View| board::prices(&view.state, filter.model.as_deref(), at_ms);
    Ok(Json(PriceBoard { at_ms, classes: api.beside(look).await? }))
}

/// Takes in prices elsewhere from a signer whom the network's price table names. The signature is all the sign-in there is.
#[utoipa::path(post, path = "/v1/prices/feeds", tag = "market", request_body = FeedRequest,
    responses((status = 204)))]
pub(super) async fn feed(
    State(api): State<Api>,
    Body(FeedRequest { feed, signature }): Body<FeedRequest>,
) -> Result<StatusCode, Error> {
    sign::verify(feed.signer, &api.handle.network(), &feed, &signature).map_err(Error::BadFeed)?;
    let body = CommandBody::TakeFeed { feed, signature };
    api.submit(Command { id: None, actor: Actor::Server, body }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether a request would be placed now; if not, what removed which devices, the nearest misses, and what would do.
#[utoipa::path(post, path = "/v1/explain", tag = "market", request_body = Object,
    responses((status = 200, body = ExplainedRequest)), security(("token" = [])))]
pub(super) async fn explain_request(
    State(api): State<Api>,
    caller: Caller,
    Body(request): Body<Request>,
) -> Result<Json<ExplainedRequest>, Error> {
    caller.needs(&api, &[Scope::Rent], "ask why")?;
    let account = caller.account;
    let at_ms = api.now_ms();
    let explanation =
        api.beside(move |view| explain::request(&view.state, account, &request, at_ms)).await??;
    Ok(Json(ExplainedRequest { at_ms, explanation }))
}

/// Where a cluster of the account stands and why; while it waits, or after it found no devices, what its request would need.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/explain", tag = "market", params(("cluster" = String, Path, description = "Its id")),
    responses((status = 200, body = ExplainedCluster)), security(("token" = [])))]
pub(super) async fn explain_cluster(
    State(api): State<Api>,
    caller: Caller,
    Named(cluster): Named<OrderId>,
) -> Result<Json<ExplainedCluster>, Error> {
    caller.needs(&api, &[Scope::Read, Scope::Rent], "ask why")?;
    let at_ms = api.now_ms();
    let look = move |view: &View| {
        let order = view.state.order(cluster)?;
        if order.account != caller.account {
            return Err(Refusal::UnknownOrder { order: cluster });
        }
        let request = &order.quote.request;
        let explanation = unplaced(order)
            .then(|| explain::request(&view.state, order.account, request, at_ms))
            .transpose()?;
        let (stage, reason) = (order.stage, order.reason.clone());
        let waiting = queue::explain(&view.state, order, at_ms);
        let says = waiting.as_ref().map_or_else(|| says(order, at_ms), in_line);
        Ok(ExplainedCluster { cluster, at_ms, stage, reason, says, waiting, explanation })
    };
    Ok(Json(api.beside(look).await??))
}

/// Why a device of the account gets the work that it gets, or none.
#[utoipa::path(get, path = "/v1/devices/{device}/explain", tag = "market", params(("device" = String, Path, description = "Its id")),
    responses((status = 200, body = ExplainedDevice)), security(("token" = [])))]
pub(super) async fn explain_device(
    State(api): State<Api>,
    caller: Caller,
    Named(device): Named<DeviceId>,
) -> Result<Json<ExplainedDevice>, Error> {
    const WHAT: &str = "ask why the device gets no work";
    caller.needs(&api, &[Scope::Read, Scope::Supply], WHAT)?;
    let at_ms = api.now_ms();
    let look = move |view: &View| {
        let enrolment = &view.state.device(device)?.enrolment;
        if enrolment.owner != caller.account && !enrolment.simulated {
            let (who, takes) = (caller.account.to_string(), "the device's owner".into());
            return Err(Refusal::NotAllowed { who, what: WHAT.into(), takes });
        }
        explain_device::device(&view.state, device, at_ms)
    };
    let found = api.beside(look).await?;
    if let Err(refusal @ Refusal::NotAllowed { .. }) = &found {
        api.note_denied(caller, &refusal.to_string());
    }
    Ok(Json(ExplainedDevice { at_ms, explanation: found? }))
}

/// Whether an order waits for devices, or ended because there were none.
fn unplaced(order: &Order) -> bool {
    let no_devices = matches!(
        order.reason,
        Some(CloseReason::NoCapacity | CloseReason::Expired | CloseReason::MemberLost { .. })
    );
    order.stage <= Stage::Funded || no_devices
}

/// Where a waiting order stands, in a sentence.
fn in_line(waiting: &Waiting) -> String {
    let estimate = waiting.estimate_ms.map(|ms| {
        let minutes = ms.div_ceil(60_000);
        format!("; enough of what is in its way ends within {minutes} minutes")
    });
    let holds = waiting.holds.map(|members| format!("; it holds what {members} of its members need"));
    let (place, of) = (waiting.place, waiting.of);
    if place == 0 {
        let minutes = waiting.estimate_ms.unwrap_or(0).div_ceil(60_000);
        return format!("it is paid for: {}; it begins in {minutes} minutes", waiting.reason);
    }
    let (estimate, holds) = (estimate.unwrap_or_default(), holds.unwrap_or_default());
    format!("it is paid for and number {place} of {of} in line: {}{estimate}{holds}", waiting.reason)
}

/// Where an order stands, in a sentence.
fn says(order: &Order, now_ms: u64) -> String {
    let members = order.quote.request.members;
    let up = order.members().len();
    let minutes = order.ends_ms().map(|ends| ends.saturating_sub(now_ms).div_ceil(60_000));
    match (order.stage, &order.reason) {
        (Stage::Accepted | Stage::Funded, _) => {
            format!("it is paid for and waits for {members} members' devices")
        }
        (Stage::Placed | Stage::Starting, _) => {
            format!("{up} of {members} members have their devices, which prepare them")
        }
        (Stage::Running, _) => {
            let ailing = order.members().into_values().filter_map(|(_, lease)| {
                let ailing = lease.ailing.as_ref()?;
                Some(format!(
                    "; member {} ails: {} ('ionet cluster replace {} {}')",
                    lease.slot, ailing.ailment, order.id, lease.slot
                ))
            });
            format!(
                "{up} of {members} members run at {}, for {} minutes more{}",
                order.quote.rate,
                minutes.unwrap_or(0),
                ailing.collect::<String>()
            )
        }
        (Stage::Paused, _) => {
            let until_ms = order.course.pause.map_or(now_ms, |pause| pause.until_ms);
            let hours = until_ms.saturating_sub(now_ms).div_ceil(3_600_000);
            let left = order.left_ms(now_ms).div_ceil(60_000);
            format!(
                "it is paused with {left} minutes of its time left; it is closed in {hours} hours unless it is resumed"
            )
        }
        (_, Some(reason)) => format!("it ended: {}", reason.code()),
        (_, None) => "it ended".into(),
    }
}

impl Api {
    /// Looks at the view on a thread of its own, one caller after the other, for what looks at every device.
    pub(super) async fn beside<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let _turn = self.shared.look.acquire().await.map_err(|_| ServerError::Stopping)?;
        let handle = self.handle.clone();
        let found = tokio::task::spawn_blocking(move || handle.read(look)).await;
        found.map_err(|_| ServerError::Stopping.into())
    }
}
