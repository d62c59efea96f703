//! The REST API, the live events, the metrics and the network's page, all on top of [`Handle`].
//!
//! Always holds: a handler only parses, asks the engine or reads, and shows; an answer to a command is given after
//! it is durable; every operation stands in `/openapi.json`, because both are made from one list; nothing outside is
//! loaded by the page; errors carry a code. Not here: rules (`ionet-domain`), the types (`ionet-api`), TLS (a proxy
//! in front, or the loopback).

mod accounts;
mod auth;
mod caller;
mod clusters;
mod course;
mod devices;
mod error;
mod exposed;
mod extract;
mod history;
mod journal;
mod layers;
mod market;
mod metrics;
mod network;
mod openapi;
mod page;
mod schemas;
mod schemas_ways;
mod shares;
mod terms;
mod views;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use ionet_domain::account::ActivityKind;
use ionet_domain::command::CommandBody;
use ionet_domain::{Actor, Address, Command, CommandId, Refusal};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::auth::{Random, Sessions};
use self::caller::Caller;
pub(crate) use self::caller::account_of_key;
use self::error::Error;
use self::metrics::Counters;
use crate::error::ServerError;
use crate::handle::Handle;
use crate::keys;

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Api {
    handle: Handle,
    shared: Arc<Shared>,
}

struct Shared {
    sessions: Mutex<Sessions>,
    /// The minute in which a denial was last logged for an account, accounts of this minute only.
    denied: Mutex<BTreeMap<Address, u64>>,
    counters: Counters,
    streams: Arc<Semaphore>,
    /// One look at everything at a time, so that however many ask, the writer waits for one at most.
    look: Semaphore,
    openapi: String,
}

/// Live event streams at a time.
const STREAMS_MOST: usize = 1024;

/// Answers requests on `listener` until `stop` is done, then lets those under way finish.
///
/// # Errors
/// If the system gives no randomness or the listener fails.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServerError> {
    let serving = axum::serve(listener, router(handle)?).with_graceful_shutdown(stop);
    serving.await.map_err(ServerError::io("answer HTTP requests"))
}

/// The whole HTTP service. Live streams end when the writer does.
///
/// # Errors
/// If the system gives no randomness.
pub fn router(handle: Handle) -> Result<Router, ServerError> {
    let api = Api::new(handle)?;
    let (routes, _) = openapi::routes().split_for_parts();
    let routes = routes
        .fallback(layers::no_such_path)
        .method_not_allowed_fallback(layers::wrong_method)
        .layer(from_fn(layers::in_time))
        .layer(from_fn_with_state(api.clone(), layers::count))
        .layer(from_fn(layers::harden));
    Ok(routes.with_state(api))
}

/// The API's description as it is served at `/openapi.json`.
pub fn openapi_json() -> String {
    openapi::text(&openapi::routes().into_openapi())
}

fn random() -> Result<Random, ServerError> {
    let mut bytes = Random::default();
    keys::random(&mut bytes)?;
    Ok(bytes)
}

/// The lock's content: nothing that holds these locks can stop halfway.
fn open<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Api {
    fn new(handle: Handle) -> Result<Self, ServerError> {
        let shared = Shared {
            sessions: Mutex::new(Sessions::new(random()?)),
            denied: Mutex::default(),
            counters: Counters::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MOST)),
            look: Semaphore::new(1),
            openapi: openapi_json(),
        };
        Ok(Self { handle, shared: Arc::new(shared) })
    }

    fn now_ms(&self) -> u64 {
        self.handle.now_ms()
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        open(&self.shared.sessions)
    }

    /// Asks the engine on a caller's behalf; answered when it is durable.
    async fn ask(&self, caller: Caller, id: Option<CommandId>, body: CommandBody) -> Result<(), Error> {
        let answer = self.submit(Command { id, actor: caller.actor, body }).await;
        if let Err(Error::Refused(refusal @ Refusal::NotAllowed { .. })) = &answer {
            self.note_denied(caller, &refusal.to_string());
        }
        answer
    }

    async fn submit(&self, command: Command) -> Result<(), Error> {
        let begun = Instant::now();
        let answer = self.handle.submit(command).await.map(|_| ()).map_err(Error::from);
        self.shared.counters.command(answer.as_ref().err().map(Error::code), begun.elapsed());
        answer
    }

    /// Writes a line of the caller's activity log, durably before what it tells of is answered.
    async fn note(&self, caller: Caller, kind: ActivityKind, particulars: &str) -> Result<(), Error> {
        let (account, key, particulars) = (caller.account, caller.actor.key(), particulars.into());
        let body = CommandBody::LogActivity { account, kind, key, particulars };
        self.submit(Command { id: None, actor: Actor::Server, body }).await
    }

    /// Logs that a known caller was turned away, once a minute for each account, so that nobody fills the journal.
    fn note_denied(&self, caller: Caller, what: &str) {
        if first_in(&self.shared.denied, caller.account, self.now_ms() / 60_000) {
            let (account, key) = (caller.account, caller.actor.key());
            self.handle.note_activity(account, ActivityKind::Denied, key, what.into());
        }
    }
}

/// Whether `who` is seen for the first time in this stretch of time; what is older is forgotten. When too many were
/// seen, nobody else is.
fn first_in<K: Ord>(seen: &Mutex<BTreeMap<K, u64>>, who: K, stretch: u64) -> bool {
    const MOST: usize = 10_000;
    let mut seen = open(seen);
    if seen.get(&who) == Some(&stretch) {
        return false;
    }
    seen.retain(|_, last| *last == stretch);
    let room = seen.len() < MOST;
    if room {
        seen.insert(who, stretch);
    }
    room
}
