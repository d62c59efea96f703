//! Who calls: a session, an API key or nobody; and what a caller may look at.
//!
//! What a caller may *do* is checked by the rules (`ionet-domain`); here only reading is.

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use ionet_api::sign::hex;
use ionet_domain::account::{ActivityKind, Scope};
use ionet_domain::{Actor, Address, KeyId, Refusal, State};

use super::Api;
use super::auth::{Bearer, same, sha256};
use super::error::Error;
use crate::handle::Handle;

/// Somebody who proved who he is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// As the rules see him.
    pub(super) actor: Actor,
    /// Whose account it is.
    pub(super) account: Address,
}

/// Somebody or nobody, where everybody may look and an owner sees more. Bad credentials are refused all the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anybody(pub(super) Option<Caller>);

impl Anybody {
    /// The caller's account, if there is one that may read.
    pub(super) fn reader(self, api: &Api, scopes: &[Scope]) -> Option<Address> {
        let caller = self.0?;
        let may = api.handle.read(|view| caller.has_one_of(&view.state, scopes));
        may.then_some(caller.account)
    }
}

impl FromRequestParts<Api> for Anybody {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Error> {
        let Some(header) = parts.headers.get(AUTHORIZATION) else { return Ok(Self(None)) };
        let malformed = || Error::NotSignedIn {
            code: "malformed_token",
            reason: "the Authorization header holds no session token and no API key".into(),
        };
        let bearer = header.to_str().ok().and_then(Bearer::read).ok_or_else(malformed)?;
        match bearer {
            Bearer::Session(token) => session(api, token).map(|caller| Self(Some(caller))),
            Bearer::Key(key, secret) => by_key(api, key, secret).map(|caller| Self(Some(caller))),
        }
    }
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Error> {
        Anybody::from_request_parts(parts, api).await?.0.ok_or_else(Self::nobody)
    }
}

fn session(api: &Api, token: &str) -> Result<Caller, Error> {
    let account = api.sessions().account(token, api.now_ms())?;
    Ok(Caller { actor: Actor::Wallet(account), account })
}

/// Whose API key this text is, and which, if it works and may rent.
pub(crate) fn account_of_key(handle: &Handle, text: &str) -> Result<(Address, KeyId), Error> {
    let malformed =
        || Error::NotSignedIn { code: "malformed_token", reason: "the header holds no API key".into() };
    let Some(Bearer::Key(key, secret)) = Bearer::of(text) else { return Err(malformed()) };
    usable_key(handle, key, secret).map(|account| (account, key))
}

/// A key is unknown and its secret wrong in the same words: which of both is nobody's business.
fn by_key(api: &Api, key: KeyId, secret: &str) -> Result<Caller, Error> {
    let account = usable_key(&api.handle, key, secret)?;
    Ok(Caller { actor: Actor::Key(account, key), account })
}

fn usable_key(handle: &Handle, key: KeyId, secret: &str) -> Result<Address, Error> {
    let sha = hex(&sha256(secret));
    let (account, usable) = handle.read(|view| known_key(&view.state, key, &sha, handle.now_ms()))?;
    usable?;
    handle.note_activity(account, ActivityKind::KeyUsed, Some(key), "first use in this hour".into());
    Ok(account)
}

/// Whose key it is and whether it still works.
fn known_key(
    state: &State,
    id: KeyId,
    sha: &str,
    now_ms: u64,
) -> Result<(Address, Result<(), Refusal>), Error> {
    let wrong = || Error::NotSignedIn {
        code: "unknown_key",
        reason: "the API key is not one of this network's".into(),
    };
    let (_, expected) = state.private.key_secrets.get(&id).ok_or_else(wrong)?;
    if !same(expected.as_bytes(), sha.as_bytes()) {
        return Err(wrong());
    }
    let mut owners = state.accounts.iter();
    let found = owners.find_map(|(account, a)| Some((*account, a.keys.get(&id)?)));
    found.map(|(account, key)| (account, key.usable(now_ms))).ok_or_else(wrong)
}

impl Caller {
    /// What nobody is told where somebody is needed.
    pub(super) fn nobody() -> Error {
        Error::NotSignedIn { code: "not_signed_in", reason: "this needs an account".into() }
    }

    /// Whether one of these scopes is his: all are a wallet's.
    pub(super) fn has_one_of(&self, state: &State, scopes: &[Scope]) -> bool {
        match self.actor {
            Actor::Key(account, key) => {
                state.key(account, key).is_ok_and(|key| scopes.iter().any(|scope| key.scopes.contains(scope)))
            }
            _ => true,
        }
    }

    /// Refuses a key with none of these scopes.
    pub(super) fn needs(&self, api: &Api, scopes: &[Scope], what: &str) -> Result<(), Error> {
        if api.handle.read(|view| self.has_one_of(&view.state, scopes)) {
            return Ok(());
        }
        let names: Vec<_> = scopes.iter().map(|scope| format!("{scope:?}").to_lowercase()).collect();
        let takes = format!("the wallet or a key with the scope {}", names.join(" or "));
        let who = self.actor.key().map_or_else(|| self.account.to_string(), |key| key.to_string());
        api.note_denied(*self, what);
        Err(Refusal::NotAllowed { who, what: what.into(), takes }.into())
    }
}
