//! Reading requests: bodies, queries and ids, with unknown fields refused and every fault named.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::{body, http};
use serde::de::DeserializeOwned;

use super::error::Error;

/// The longest body that is read.
pub(crate) const BODY_LIMIT_BYTES: usize = 1 << 20;

/// A JSON body. Nesting is bounded by the parser, length by [`BODY_LIMIT_BYTES`].
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        if !is_json(request.headers()) {
            return Err(Error::WrongContentType);
        }
        let too_large = |_| Error::TooLarge { limit_bytes: BODY_LIMIT_BYTES };
        let bytes = body::to_bytes(request.into_body(), BODY_LIMIT_BYTES).await.map_err(too_large)?;
        let malformed = |error: serde_json::Error| Error::Malformed {
            part: "the body is not what this endpoint takes",
            reason: error.to_string(),
        };
        serde_json::from_slice(&bytes).map(Self).map_err(malformed)
    }
}

fn is_json(headers: &http::HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    said.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// The query of an endpoint that takes one.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let malformed = |error: axum::extract::rejection::QueryRejection| Error::Malformed {
            part: "the query is not what this endpoint takes",
            reason: innermost(&error),
        };
        Query::try_from_uri(&parts.uri).map(|Query(params)| Self(params)).map_err(malformed)
    }
}

/// An id in the path.
pub(crate) struct Named<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let malformed = |error: PathRejection| Error::Malformed {
            part: "the path does not name what this endpoint takes",
            reason: innermost(&error),
        };
        Path::from_request_parts(parts, state).await.map(|Path(id)| Self(id)).map_err(malformed)
    }
}

/// The last cause: the layers above only repeat that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
