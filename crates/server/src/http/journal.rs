//! The public journal: its export, its live events and the books that it adds up to.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use ionet_api::rest::{Books, EventFilter, EventView};
use serde::Deserialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::error::Error;
use super::extract::Params;
use super::views::out_of_range;
use super::{Api, history, views};
use crate::handle::{Handle, PublishedEvent, Span, journal_head};
use crate::view::View;

/// Events of the journal: public parts, with what anyone needs to recompute the chain.
///
/// `hash = SHA-256("ionet-journal/record/1\0" || previous hash || seq || at_ms || subjects || text || private_digest)`, with
/// the lengths and widths that the journal's documentation gives.
#[utoipa::path(get, path = "/v1/journal", tag = "books", params(EventFilter),
    responses((status = 200, body = Vec<EventView>)))]
pub(super) async fn journal(
    State(api): State<Api>,
    Params(filter): Params<EventFilter>,
) -> Result<Json<Vec<EventView>>, Error> {
    let span = history::span(&filter)?;
    let found = api.handle.history(filter.subject, span).await?;
    Ok(Json(found.iter().map(|event| history::event_view(event, true)).collect()))
}

/// All balances, with the journal's head that they follow from.
#[utoipa::path(get, path = "/v1/books", tag = "books", responses((status = 200, body = Books)))]
pub(super) async fn books(State(api): State<Api>) -> Result<Json<Books>, Error> {
    /// Under load the state is ahead of the durable head most of the time; a moment when it is not comes with a commit.
    const TRIES: u32 = 200;
    let mut commits = api.handle.subscribe();
    for _ in 0..TRIES {
        if let Some(books) = api.handle.read(settled_books) {
            return Ok(Json(books));
        }
        let _ = tokio::time::timeout(Duration::from_millis(50), commits.recv()).await;
    }
    Err(Error::Busy)
}

/// The books, if nothing is in them that is not durable yet.
fn settled_books(view: &View) -> Option<Books> {
    let settled = view.state.events == view.head.seq;
    settled.then(|| Books { balances: views::books(&view.state), journal: journal_head(view.head) })
}

/// Which events are followed.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct FollowFilter {
    /// A cluster, lease, device, account, key or payout.
    subject: Option<String>,
    /// First what stands in the journal after this place, then live; without it, live events only.
    after: Option<u64>,
    /// The stream ends after this many events.
    limit: Option<u32>,
}

/// Live events as server-sent events: public parts, each with its place as the event's id. A client that comes back with
/// `Last-Event-ID` misses none.
#[utoipa::path(get, path = "/v1/events", tag = "books", params(FollowFilter),
    responses((status = 200, body = EventView, content_type = "text/event-stream")))]
pub(super) async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    Params(filter): Params<FollowFilter>,
) -> Result<Response, Error> {
    history::check_subject(filter.subject.as_deref())?;
    let too_many = |_| Error::TooMany { what: "live streams", retry_s: 30 };
    let permit = Arc::clone(&api.shared.streams).try_acquire_owned().map_err(too_many)?;
    let after = last_event_id(&headers)?.or(filter.after);
    let follow = Follow::new(&api, &filter, after, permit);
    let stream = stream::unfold(follow, |mut follow| async {
        let view = follow.next().await?;
        Some((Ok::<_, Infallible>(sent(&view)), follow))
    });
    let alive = KeepAlive::new().interval(Duration::from_secs(15));
    let mut response = Sse::new(stream).keep_alive(alive).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(header) = headers.get("last-event-id") else { return Ok(None) };
    let text = header.to_str().unwrap_or_default();
    let wrong = |_| out_of_range("Last-Event-ID", text, "a place in the journal");
    Ok(Some(text.parse().map_err(wrong)?))
}

fn sent(view: &EventView) -> Sent {
    Sent::default().id(view.seq.to_string()).json_data(view).unwrap_or_default()
}

/// One follower. Everything up to `cursor` was considered; live events that do not come right after it only say
/// that the journal has more, so nothing is missed or told twice.
struct Follow {
    handle: Handle,
    live: Receiver<Arc<PublishedEvent>>,
    subject: Option<String>,
    cursor: u64,
    /// Whether the journal may have more after `cursor` than was read.
    behind: bool,
    left: Option<u32>,
    ready: VecDeque<EventView>,
    _permit: OwnedSemaphorePermit,
}

const PAGE_EVENTS: usize = 256;

impl Follow {
    fn new(api: &Api, filter: &FollowFilter, after: Option<u64>, permit: OwnedSemaphorePermit) -> Self {
        let live = api.handle.subscribe();
        let head = api.handle.read(|view| view.head.seq);
        Self {
            handle: api.handle.clone(),
            live,
            subject: filter.subject.clone(),
            cursor: after.unwrap_or(head),
            behind: after.is_some(),
            left: filter.limit,
            ready: VecDeque::new(),
            _permit: permit,
        }
    }

    /// The next event; `None` ends the stream.
    async fn next(&mut self) -> Option<EventView> {
        if self.left == Some(0) {
            return None;
        }
        loop {
            if let Some(view) = self.ready.pop_front() {
                self.left = self.left.map(|left| left - 1);
                return Some(view);
            }
            if self.behind {
                self.catch_up().await?;
            } else {
                self.wait().await?;
            }
        }
    }

    async fn catch_up(&mut self) -> Option<()> {
        // Read before the journal is, so that everything up to it is in what the journal answers.
        let head = self.handle.read(|view| view.head.seq);
        let span = Span { after: self.cursor, limit: PAGE_EVENTS, ..Span::default() };
        let page = self.handle.history(self.subject.clone(), span).await;
        let page = page.inspect_err(|error| tracing::warn!(%error, "a live stream ends")).ok()?;
        self.behind = page.len() >= PAGE_EVENTS;
        let last = page.last().map_or(self.cursor, |event| event.seq);
        self.cursor = if self.behind { last } else { last.max(head).max(self.cursor) };
        self.ready.extend(page.iter().map(|event| history::event_view(event, false)));
        Some(())
    }

    async fn wait(&mut self) -> Option<()> {
        let event = tokio::select! {
            event = self.live.recv() => event,
            () = self.handle.0.writer.closed() => return None,
        };
        match event {
            Ok(event) if event.seq <= self.cursor => {}
            // What has a private part is read back for its digest; it is rare.
            Ok(event) if event.seq == self.cursor + 1 && event.event.private.is_none() => {
                self.cursor = event.seq;
                self.ready.extend(self.view(&event));
            }
            Ok(_) | Err(RecvError::Lagged(_)) => self.behind = true,
            Err(RecvError::Closed) => return None,
        }
        Some(())
    }

    fn view(&self, published: &PublishedEvent) -> Option<EventView> {
        let subjects = published.event.public.subjects();
        if self.subject.as_ref().is_some_and(|subject| !subjects.contains(subject)) {
            return None;
        }
        Some(EventView {
            seq: published.seq,
            at_ms: published.event.at_ms,
            hash: published.hash.to_string(),
            subjects,
            event: serde_json::from_slice(&published.event.public_json()).unwrap_or_default(),
            private_digest: None,
            text: None,
        })
    }
}
