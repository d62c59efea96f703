//! How every "no" of the gateway looks: one status, one stable code, and words for people or JSON for programs.
//!
//! Always holds: an answer of the gateway's own carries the header `x-ionet-error`, which a service's answer never does.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use ionet_api::rest::ErrorBody;
use ionet_domain::OrderId;

/// What a body may end with.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body of any make.
pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Which error an answer of the gateway's own is.
pub(super) const ERROR_HEADER: HeaderName = HeaderName::from_static("x-ionet-error");

/// Why a visitor did not get to the service.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the request names no host")]
    NoHost,
    #[error("there is no service at this address: the cluster does not exist, has ended, or exposes nothing")]
    NothingHere,
    #[error("this method is not carried here")]
    Method,
    #[error("this upgrade is not carried here; WebSocket is")]
    Upgrade,
    #[error(
        "this service is for known accounts: run 'ionet expose open {0}' and follow its link, or send an API key that may \
         rent in the header X-Ionet-Key"
    )]
    WhoAreYou(OrderId),
    #[error(
        "this account may not use this service; its owner names accounts with 'ionet expose --for ACCOUNT'"
    )]
    NotYou,
    #[error("{}", .0.message)]
    BadKey(Box<ErrorBody>),
    #[error(
        "the link was used before, is older than a minute, or is not for this cluster; run 'ionet expose open' again"
    )]
    BadTicket,
    #[error(
        "another site's page sent this request; known accounts' cookies are good for the service's own pages only"
    )]
    ForeignOrigin,
    #[error("{most} connections to this cluster go on already; try again when some have ended")]
    TooMany { most: usize },
    #[error("more than {each_second} connections to this cluster in one second; try again")]
    TooOften { each_second: u32 },
    #[error("member {slot} of the cluster cannot be reached now: {reason}")]
    Member { slot: u32, reason: String },
    #[error("the service is down: {reason}")]
    Down { reason: String },
    #[error("the service did not begin to answer within {limit_s} s")]
    Silent { limit_s: u64 },
    #[error("the way to this service was closed")]
    Cut,
    #[error("what the service answered is not HTTP: {reason}")]
    Garbled { reason: String },
}

impl Trouble {
    /// The stable name.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::NoHost => "no_host",
            Self::NothingHere => "not_exposed",
            Self::Method => "wrong_method",
            Self::Upgrade => "wrong_upgrade",
            Self::WhoAreYou(_) => "not_signed_in",
            Self::NotYou => "not_admitted",
            Self::BadKey(body) => &body.code,
            Self::BadTicket => "bad_ticket",
            Self::ForeignOrigin => "foreign_origin",
            Self::TooMany { .. } => "too_many_connections",
            Self::TooOften { .. } => "too_often",
            Self::Member { .. } => "member_not_reachable",
            Self::Down { .. } => "service_down",
            Self::Silent { .. } => "service_silent",
            Self::Cut => "access_closed",
            Self::Garbled { .. } => "service_garbled",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoHost | Self::Upgrade => StatusCode::BAD_REQUEST,
            Self::NothingHere => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::WhoAreYou(_) | Self::BadKey(_) | Self::BadTicket => StatusCode::UNAUTHORIZED,
            Self::NotYou | Self::ForeignOrigin | Self::Cut => StatusCode::FORBIDDEN,
            Self::TooMany { .. } | Self::TooOften { .. } | Self::Member { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Down { .. } | Self::Garbled { .. } => StatusCode::BAD_GATEWAY,
            Self::Silent { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The answer: a page where one is asked for, else JSON.
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response<Body> {
        let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let (kind, text) = if accepts.contains("text/html") {
            ("text/html; charset=utf-8", self.page())
        } else {
            let body = ErrorBody { code: self.code().into(), message: self.to_string(), refusal: None };
            ("application/json", serde_json::to_string(&body).unwrap_or_default())
        };
        let mut response = plain(self.status(), kind, text);
        let set = response.headers_mut();
        if let Ok(code) = HeaderValue::from_str(self.code()) {
            set.insert(ERROR_HEADER, code);
        }
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            set.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    fn page(&self) -> String {
        let safe = self.to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!("<!doctype html><title>{0}</title><h1>{0}</h1><p>{safe}</p>", self.status())
    }
}

/// An answer of the gateway's own: nothing in it runs, nobody keeps it.
pub(super) fn plain(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    let set = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ];
    for (name, value) in set {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A body that is there already.
pub(super) fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}
