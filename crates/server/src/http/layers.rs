//! What surrounds every request: a deadline, counting, headers for browsers, the answer to unknown addresses, and the
//! refusal of queries where none is taken.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::{Error, Refusing};

/// How long a handler may take to answer; a live stream answers at once and then goes on.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Error::TimedOut { limit_s: ANSWER_LIMIT.as_secs() }.into_response(),
    }
}

pub(super) async fn no_query(request: Request, next: Next) -> Response {
    match request.uri().query() {
        None | Some("") => next.run(request).await,
        Some(query) => {
            let name = query.split(['=', '&']).next().unwrap_or_default();
            let name: String = name.chars().take(80).collect();
            let reason = format!("unknown field `{name}`, this endpoint takes no query");
            Error::Malformed { part: "the query is not what this endpoint takes", reason }.into_response()
        }
    }
}

/// Headers that keep a browser from doing anything with an answer but show it.
pub(super) async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let set = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in set {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(nothing);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Counts requests by route and status, and errors by code.
pub(super) async fn count(
    State(api): State<Api>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let begun = Instant::now();
    let response = next.run(request).await;
    let path = path.as_ref().map_or("other", MatchedPath::as_str);
    let refused = response.extensions().get::<Refusing>().map(|refusing| refusing.0.as_str());
    api.shared.counters.request(&method, path, response.status(), begun.elapsed());
    api.shared.counters.refused(refused);
    response
}

pub(super) async fn no_such_path(method: Method, uri: Uri) -> Error {
    Error::NoSuchPath { method: method.to_string(), path: shown(&uri) }
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> Error {
    Error::WrongMethod { method: method.to_string(), path: shown(&uri) }
}

fn shown(uri: &Uri) -> String {
    uri.path().chars().take(100).collect()
}
