//! Signing in, API keys, wallets, and what an account did.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ionet_api::rest::{
    ActivityLine, Challenge, ChallengeRequest, EventFilter, KeyView, LedgerLine, MadeKey, NewKey,
    SendRequest, Session, SignInRequest, Wallet,
};
use ionet_domain::account::{ActivityKind, ApiKey, Scope};
use ionet_domain::command::CommandBody;
use ionet_domain::event::{PrivateBody, PublicBody, activity_of};
use ionet_domain::ledger::{Owner, Transfer};
use ionet_domain::{Actor, Address, KeyId, Refusal};

use super::auth::key_token;
use super::caller::{Anybody, Caller};
use super::error::Error;
use super::extract::{Body, Named, Params};
use super::{Api, history, random, views};
use crate::handle::HistoryEvent;

/// A challenge to sign in with.
#[utoipa::path(post, path = "/v1/sign-in/challenge", tag = "accounts", request_body = ChallengeRequest,
    responses((status = 200, body = Challenge)))]
pub(super) async fn challenge(
    State(api): State<Api>,
    Body(request): Body<ChallengeRequest>,
) -> Result<Json<Challenge>, Error> {
    Ok(Json(api.sessions().challenge(request.account, &random()?, api.now_ms())))
}

/// A session for a signed challenge.
#[utoipa::path(post, path = "/v1/sign-in", tag = "accounts", request_body = SignInRequest,
    responses((status = 200, body = Session)))]
pub(super) async fn sign_in(
    State(api): State<Api>,
    Body(request): Body<SignInRequest>,
) -> Result<Json<Session>, Error> {
    let (network, random) = (api.handle.network(), random()?);
    let session = api.sessions().sign_in(&network, &request, &random, api.now_ms())?;
    let account = request.account;
    api.note(Caller { actor: Actor::Wallet(account), account }, ActivityKind::SignedIn, "by signature")
        .await?;
    Ok(Json(session))
}

/// Makes an API key; its token is shown once.
#[utoipa::path(post, path = "/v1/keys", tag = "accounts", request_body = NewKey,
    responses((status = 200, body = MadeKey)), security(("token" = [])))]
pub(super) async fn make_key(
    State(api): State<Api>,
    caller: Caller,
    Body(new): Body<NewKey>,
) -> Result<Json<MadeKey>, Error> {
    let now_ms = api.now_ms();
    let id = KeyId::from_parts(now_ms, api.handle.random_bits()?);
    let key = ApiKey {
        id,
        scopes: new.scopes,
        cap_micro_usd: new.cap_micro_usd,
        spent_micro_usd: 0,
        expires_ms: now_ms.saturating_add(new.lifetime_ms),
        revoked: false,
        revoked_ms: None,
    };
    let (token, sha256) = key_token(id, &random()?);
    api.ask(caller, None, CommandBody::MakeKey { key, label: new.label, sha256 }).await?;
    Ok(Json(MadeKey { id, token }))
}

/// The account's API keys.
#[utoipa::path(get, path = "/v1/keys", tag = "accounts",
    responses((status = 200, body = Vec<KeyView>)), security(("token" = [])))]
pub(super) async fn keys(State(api): State<Api>, caller: Caller) -> Result<Json<Vec<KeyView>>, Error> {
    caller.needs(&api, &[Scope::Read, Scope::Keys], "list keys")?;
    Ok(Json(api.handle.read(|view| views::keys(&view.state, caller.account))))
}

/// Revokes an API key.
#[utoipa::path(delete, path = "/v1/keys/{key}", tag = "accounts", params(("key" = String, Path, description = "Its id")),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn revoke_key(
    State(api): State<Api>,
    caller: Caller,
    Named(key): Named<KeyId>,
) -> Result<StatusCode, Error> {
    caller.needs(&api, &[Scope::Keys], "revoke keys")?;
    if api.handle.read(|view| view.state.key(caller.account, key).is_err()) {
        return Err(Error::UnknownKey { key: key.to_string() });
    }
    api.ask(caller, None, CommandBody::RevokeKey { key }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What the account holds.
#[utoipa::path(get, path = "/v1/wallet", tag = "accounts",
    responses((status = 200, body = Wallet)), security(("token" = [])))]
pub(super) async fn wallet(State(api): State<Api>, caller: Caller) -> Result<Json<Wallet>, Error> {
    caller.needs(&api, &[Scope::Read, Scope::Pay], "look at the wallet")?;
    Ok(Json(api.wallet(caller.account)))
}

/// Sends money to another wallet.
#[utoipa::path(post, path = "/v1/wallet/send", tag = "accounts", request_body = SendRequest,
    responses((status = 200, body = Wallet)), security(("token" = [])))]
pub(super) async fn send(
    State(api): State<Api>,
    caller: Caller,
    Body(SendRequest { id, to, asset, amount }): Body<SendRequest>,
) -> Result<Json<Wallet>, Error> {
    api.ask(caller, None, CommandBody::Send { id, to, asset, amount }).await?;
    Ok(Json(api.wallet(caller.account)))
}

/// Ledger lines: the account's own, or with a subject anybody's, as they stand in the public journal.
#[utoipa::path(get, path = "/v1/ledger", tag = "books", params(EventFilter),
    responses((status = 200, body = Vec<LedgerLine>)), security((), ("token" = [])))]
pub(super) async fn ledger(
    State(api): State<Api>,
    caller: Anybody,
    Params(filter): Params<EventFilter>,
) -> Result<Json<Vec<LedgerLine>>, Error> {
    let subject = if let Some(subject) = &filter.subject {
        subject.clone()
    } else {
        let caller = caller.0.ok_or_else(Caller::nobody)?;
        caller.needs(&api, &[Scope::Read, Scope::Pay], "look at the ledger")?;
        caller.account.to_string()
    };
    let about: Option<Address> = subject.parse().ok();
    let lines = history::collect(&api, subject, &filter, |record| {
        let transfers = history::transfers(&record.public);
        let wanted = transfers.into_iter().filter(|transfer| about.is_none_or(|a| touches(transfer, a)));
        wanted
            .map(|transfer| LedgerLine { seq: record.seq, at_ms: record.at_ms, transfer })
            .collect::<Vec<_>>()
    });
    Ok(Json(lines.await?))
}

fn touches(transfer: &Transfer, account: Address) -> bool {
    [transfer.debit, transfer.credit]
        .into_iter()
        .any(|key| key.owner == Owner::Wallet(account) || key.owner == Owner::Earned(account))
}

/// The account's activity log: sign-ins, keys used, tunnels, denials.
#[utoipa::path(get, path = "/v1/activity", tag = "accounts", params(EventFilter),
    responses((status = 200, body = Vec<ActivityLine>)), security(("token" = [])))]
pub(super) async fn activity(
    State(api): State<Api>,
    caller: Caller,
    Params(filter): Params<EventFilter>,
) -> Result<Json<Vec<ActivityLine>>, Error> {
    caller.needs(&api, &[Scope::Read], "look at the activity log")?;
    let own = caller.account.to_string();
    if filter.subject.as_ref().is_some_and(|subject| *subject != own) {
        let what = "look at somebody else's activity log".to_owned();
        return Err(Refusal::NotAllowed { who: own, what, takes: "that account itself".into() }.into());
    }
    let subject = activity_of(caller.account);
    let lines = history::collect(&api, subject, &filter, |record| line(record).into_iter().collect());
    Ok(Json(lines.await?))
}

fn line(event: &HistoryEvent) -> Option<ActivityLine> {
    let PublicBody::Active(activity) = &event.public else { return None };
    let particulars = match &event.private {
        Some(PrivateBody::Particulars(text)) => Some(text.clone()),
        _ => None,
    };
    Some(ActivityLine {
        seq: event.seq,
        at_ms: event.at_ms,
        kind: activity.kind,
        key: activity.key,
        particulars,
    })
}

impl Api {
    fn wallet(&self, account: Address) -> Wallet {
        self.handle.read(|view| views::wallet(&view.state, account))
    }
}
