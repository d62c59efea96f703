//! How every "no" of the API looks: one status, one stable code, one message that says what to do.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ionet_api::rest::ErrorBody;
use ionet_api::sign::SignatureError;
use ionet_domain::{OrderId, Refusal, Stage};

use crate::error::ServerError;

/// Why a request was not answered as asked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The rules said no.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A body, path or query that is none of this endpoint's.
    #[error("{part}: {reason}")]
    Malformed { part: &'static str, reason: String },
    /// A quote that this server did not sign, or not in this form.
    #[error("the quote is not one that this network signed ({0}); ask for a new one and send it unchanged")]
    BadQuote(SignatureError),
    /// Prices elsewhere that their signer did not sign, or not in this form.
    #[error("the feed is not signed by the signer that it names ({0})")]
    BadFeed(SignatureError),
    /// Nobody is signed in, or not as it must be.
    #[error(
        "{reason}; sign in ('ionet login', or POST /v1/sign-in/challenge and /v1/sign-in) and send the header \
         'Authorization: Bearer ...'"
    )]
    NotSignedIn { code: &'static str, reason: String },
    /// No such address in this API.
    #[error("there is nothing at {method} {path}; /openapi.json lists what there is")]
    NoSuchPath { method: String, path: String },
    /// The address is there and takes other methods.
    #[error("{path} does not take {method}; /openapi.json lists what it takes")]
    WrongMethod { method: String, path: String },
    /// No such key of this account.
    #[error("your account has no API key {key}; 'GET /v1/keys' lists yours")]
    UnknownKey { key: String },
    /// A cluster without members that a tunnel could go to.
    #[error("cluster {cluster} is {stage}; tunnels go into clusters that are placed, starting or running")]
    NoTunnel { cluster: OrderId, stage: Stage },
    /// Too long.
    #[error("the body is longer than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    /// Not JSON.
    #[error("send the body as JSON with the header 'Content-Type: application/json'")]
    WrongContentType,
    /// Too often.
    #[error("too many {what}; try again in {retry_s} s")]
    TooMany { what: &'static str, retry_s: u32 },
    /// Took too long here.
    #[error("no answer within {limit_s} s; what was asked may still happen: look before you repeat it")]
    TimedOut { limit_s: u64 },
    /// No quiet moment came to look in.
    #[error("the server is too busy for a settled answer; ask again in a moment")]
    Busy,
    /// The server cannot do it now.
    #[error("{0}")]
    Server(ServerError),
}

impl Error {
    /// The stable name.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Malformed { reason, .. } if reason.contains("unknown field") => "unknown_field",
            Self::Malformed { .. } => "malformed",
            Self::BadQuote(error) | Self::BadFeed(error) => error.code(),
            Self::NotSignedIn { code, .. } => code,
            Self::Server(error) => error.code(),
            Self::NoSuchPath { .. } => "no_such_path",
            Self::WrongMethod { .. } => "wrong_method",
            Self::UnknownKey { .. } => "unknown_key",
            Self::NoTunnel { .. } => "wrong_stage",
            Self::TooLarge { .. } => "too_large",
            Self::WrongContentType => "wrong_content_type",
            Self::TooMany { .. } => "too_many",
            Self::TimedOut { .. } => "timed_out",
            Self::Busy => "busy",
        }
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Refused(refusal) => status_of(refusal),
            Self::Malformed { .. } | Self::BadQuote(_) | Self::BadFeed(_) => StatusCode::BAD_REQUEST,
            Self::NotSignedIn { .. } => StatusCode::UNAUTHORIZED,
            Self::NoSuchPath { .. } | Self::UnknownKey { .. } => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoTunnel { .. } => StatusCode::CONFLICT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::WrongContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TimedOut { .. } | Self::Busy | Self::Server(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(crate) fn body(&self) -> ErrorBody {
        let refusal = match self {
            Self::Refused(refusal) => Some(refusal.clone()),
            _ => None,
        };
        ErrorBody { code: self.code().into(), message: self.to_string(), refusal }
    }
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Refused(refusal) => Self::Refused(refusal),
            other => {
                let cause = std::error::Error::source(&other).map(ToString::to_string);
                tracing::error!(error = %other, cause, "a request failed");
                Self::Server(other)
            }
        }
    }
}

fn status_of(refusal: &Refusal) -> StatusCode {
    use Refusal as R;
    match refusal {
        R::KeyUnusable { .. } => StatusCode::UNAUTHORIZED,
        R::InsufficientFunds { .. } | R::KeyOverCap { .. } => StatusCode::PAYMENT_REQUIRED,
        R::NotAllowed { .. } | R::QuoteNotYours => StatusCode::FORBIDDEN,
        R::UnknownOrder { .. } | R::UnknownLease { .. } | R::UnknownDevice { .. } => StatusCode::NOT_FOUND,
        R::QuoteExpired { .. } => StatusCode::GONE,
        R::NotAnAmount { .. }
        | R::NotAnAsset { .. }
        | R::BadTransfer { .. }
        | R::OutOfRange { .. }
        | R::Unsupported { .. }
        | R::StaleId { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        R::TransferExists { .. }
        | R::NotHeld { .. }
        | R::NoCapacity(_)
        | R::OverPriceCap { .. }
        | R::OverTotalCap { .. }
        | R::Exists { .. }
        | R::WrongStage { .. }
        | R::WrongDeviceStage { .. }
        | R::NotYet { .. }
        | R::NoChange { .. }
        | R::Founded => StatusCode::CONFLICT,
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self {
            Self::NotSignedIn { .. } => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::TooMany { retry_s, .. } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_s));
            }
            _ => {}
        }
        response.extensions_mut().insert(Refusing(self.code().to_owned()));
        response
    }
}

/// Left on an error's response, so that refusals are counted by code in one place.
#[derive(Debug, Clone)]
pub(crate) struct Refusing(pub(crate) String);
