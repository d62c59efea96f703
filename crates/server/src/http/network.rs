//! What the network is and how it does, for people, programs and monitors. No sign-in, no secret.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use ionet_api::rest::NetworkInfo;

use super::error::Error;
use super::metrics::{Text, write_view};
use super::{Api, page};

/// What the network is.
#[utoipa::path(get, path = "/v1/network", tag = "network", responses((status = 200, body = NetworkInfo)))]
pub(super) async fn network(State(api): State<Api>) -> Json<NetworkInfo> {
    Json(api.handle.info())
}

/// Whether the server takes commands.
#[utoipa::path(get, path = "/healthz", tag = "network",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 503)))]
pub(super) async fn healthz(State(api): State<Api>) -> Result<&'static str, Error> {
    if api.handle.0.writer.is_closed() {
        return Err(crate::error::ServerError::Stopping.into());
    }
    Ok("ok\n")
}

/// Numbers for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "network",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let mut text = Text::default();
    api.shared.counters.write(&mut text);
    text.gauge("ionet_http_sessions", "Open sessions.", api.sessions().len());
    let streams = super::STREAMS_MOST - api.shared.streams.available_permits();
    text.gauge("ionet_http_streams", "Live event streams.", streams);
    let now_ms = api.now_ms();
    api.handle.read(|view| write_view(&mut text, view, now_ms));
    let handle = api.handle.clone();
    if let Ok(lag) = tokio::task::spawn_blocking(move || handle.0.index_lag_events()).await {
        text.gauge("ionet_index_lag_events", "Durable events that the subject index does not have yet.", lag);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.into_string()).into_response()
}

/// This API, described for programs.
#[utoipa::path(get, path = "/openapi.json", tag = "network",
    responses((status = 200, body = Object, content_type = "application/json")))]
pub(super) async fn openapi(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.shared.openapi.clone()).into_response()
}

/// The network on one page.
#[utoipa::path(get, path = "/", tag = "network",
    responses((status = 200, body = String, content_type = "text/html")))]
pub(super) async fn home(State(api): State<Api>) -> Result<Response, Error> {
    let now_ms = api.now_ms();
    let numbers = api.beside(move |view| page::Numbers::of(view, now_ms)).await?;
    Ok(page::answer(&numbers, api.handle.network()))
}
