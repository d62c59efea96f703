//! One request of a visitor, from its host name to the service and back.
//!
//! Always holds: nothing of a request goes on before its visitor is admitted; a service that does not begin to answer, and a
//! visitor who sends nothing more, are waited for so long and no longer; what goes on is cut with its way in. Not here:
//! connections (`listen`), headers (`headers`).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use ionet_domain::OrderId;
use ionet_domain::account::ActivityKind;
use ionet_domain::order::expose::Exposure;
use tokio::io::copy_bidirectional;
use tokio::time::{Instant, sleep_until};

use super::access::{Known, admitted};
use super::answer::{Body, BoxError, Trouble, whole};
use super::enter::OWN_PREFIX;
use super::live::{Going, Pass};
use super::{Coming, Gateway, headers, open};

/// How long a service may take to begin its answer, counted from the last of the request.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

impl Gateway {
    /// Answers one request.
    pub(super) async fn serve(
        self,
        from: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let asked = asked(request.headers());
        Ok(self.pass(from, request).await.unwrap_or_else(|trouble| trouble.answer(&asked)))
    }

    async fn pass(
        &self,
        from: SocketAddr,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Trouble> {
        let host = host_of(&request)?;
        let order = self.apps.order_of(host.to_str().unwrap_or_default()).ok_or(Trouble::NothingHere)?;
        let exposure =
            self.handle.read(|view| view.state.orders.get(&order).and_then(|order| order.web().copied()));
        let exposure = exposure.ok_or(Trouble::NothingHere)?;
        if request.method() == Method::CONNECT {
            return Err(Trouble::Method);
        }
        let mut who = Coming { from, account: None };
        if request.uri().path().starts_with(OWN_PREFIX) {
            return self.own((order, &exposure), (request.method(), request.uri()), who);
        }
        let known = self.known(order, &exposure, request.headers())?;
        who.account = known.map(|known| known.visitor.account);
        self.admit(order, &exposure, known, who)?;
        if known.is_some_and(|known| known.by_cookie) {
            own_page(request.headers(), &host)?;
        }
        let visitor = known.map(|known| known.visitor);
        let service = (exposure.kind, exposure.port);
        let pass = Pass { order, service, slot: exposure.slot, visitor };
        let going = self.apps.live.begin(pass, self.now_ms())?;
        let websocket = headers::upgrade(request.headers());
        let upgrade = match &websocket {
            Some(to) if to.as_bytes().eq_ignore_ascii_case(b"websocket") => {
                Some(hyper::upgrade::on(&mut request))
            }
            Some(_) => return Err(Trouble::Upgrade),
            None => None,
        };
        let from = headers::From { ip: from.ip(), account: who.account, host, secure: self.apps.secure() };
        headers::to_service(request.headers_mut(), &from);
        let hop = if upgrade.is_some() { "upgrade" } else { "close" };
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static(hop));
        if let Some(to) = websocket {
            request.headers_mut().insert(header::UPGRADE, to);
        }
        self.exchange((order, &exposure), request, from.host, (upgrade, going)).await
    }

    /// Says no to who is not admitted, and leaves a line about both answers, once an hour.
    fn admit(
        &self,
        order: OrderId,
        exposure: &Exposure,
        known: Option<Known>,
        who: Coming,
    ) -> Result<(), Trouble> {
        let (service, visitor, now_ms) =
            ((exposure.kind, exposure.port), known.map(|known| known.visitor), self.now_ms());
        let (owner, open) = self.handle.read(|view| {
            let owner = view.state.orders.get(&order).map(|order| order.account);
            (owner, admitted(view, order, service, visitor, now_ms).is_some())
        });
        let owner = owner.ok_or(Trouble::NothingHere)?;
        let kind = if open { ActivityKind::ServiceReached } else { ActivityKind::Denied };
        if open || visitor.is_some() {
            self.note(kind, owner, order, &exposure.service().to_string(), who);
        }
        match visitor {
            _ if open => Ok(()),
            Some(_) => Err(Trouble::NotYou),
            None => Err(Trouble::WhoAreYou(order)),
        }
    }

    /// Sends the request and hands back the answer as it comes.
    async fn exchange(
        &self,
        (order, exposure): (OrderId, &Exposure),
        request: Request<Incoming>,
        host: HeaderValue,
        (upgrade, mut going): (Option<hyper::upgrade::OnUpgrade>, Going),
    ) -> Result<Response<Body>, Trouble> {
        let moved = Arc::new(Mutex::new(Instant::now()));
        let request = outgoing(request, moved.clone());
        let asking = async {
            let stream = self.open(order, exposure).await?;
            *open(&moved) = Instant::now();
            let down = |error: hyper::Error| Trouble::Down { reason: error.to_string() };
            let (mut service, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(down)?;
            tokio::spawn(connection.with_upgrades());
            service.send_request(request).await.map_err(|error| said_wrong(&error))
        };
        let answer = tokio::select! {
            answer = in_time(&moved, asking) => answer?,
            () = going.cut() => return Err(Trouble::Cut),
        };
        let mut answer = answer?;
        // The version is each hop's own: a service of HTTP/1.0 is answered for in 1.1.
        *answer.version_mut() = hyper::Version::HTTP_11;
        let upgraded =
            (answer.status() == StatusCode::SWITCHING_PROTOCOLS).then(|| hyper::upgrade::on(&mut answer));
        let protocol = headers::upgrade(answer.headers());
        headers::to_visitor(answer.headers_mut(), host.to_str().unwrap_or_default());
        match (upgraded, upgrade) {
            (Some(service), Some(visitor)) => {
                tokio::spawn(both_ways(visitor, service, going));
                let (mut parts, _) = answer.into_parts();
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                parts.headers.extend(protocol.map(|to| (header::UPGRADE, to)));
                Ok(Response::from_parts(parts, whole(Bytes::new())))
            }
            (Some(_), None) => {
                Err(Trouble::Garbled { reason: "a change of protocol that nobody asked for".into() })
            }
            (None, _) => Ok(answer.map(|body| Cut { body, going }.boxed_unsync())),
        }
    }
}

/// The headers that say how an answer should look.
fn asked(headers: &HeaderMap) -> HeaderMap {
    headers.get(header::ACCEPT).map(|accept| (header::ACCEPT, accept.clone())).into_iter().collect()
}

/// The host that is asked for, as it is written.
fn host_of(request: &Request<Incoming>) -> Result<HeaderValue, Trouble> {
    let named = request.uri().authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    let said = request.headers().get(header::HOST).cloned().map(Ok);
    named.or(said).and_then(Result::ok).ok_or(Trouble::NoHost)
}

/// A cookie comes along at any page's wish, so what another site's page sends is not taken for the visitor's own wish.
fn own_page(headers: &HeaderMap, host: &HeaderValue) -> Result<(), Trouble> {
    let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Sibling hosts are one site to a browser; following a link from there is the visitor's own wish.
    let elsewhere = ["same-site", "cross-site"].contains(&said("sec-fetch-site"));
    if elsewhere && said("sec-fetch-mode") != "navigate" {
        return Err(Trouble::ForeignOrigin);
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let of = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let same = of.is_some_and(|(_, of)| of.as_bytes().eq_ignore_ascii_case(host.as_bytes()));
    if same { Ok(()) } else { Err(Trouble::ForeignOrigin) }
}

/// The request as it is sent on: in origin form, its body watched.
fn outgoing(request: Request<Incoming>, moved: Arc<Mutex<Instant>>) -> Request<Watched> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    parts.version = hyper::Version::HTTP_11;
    parts.extensions.clear();
    Request::from_parts(parts, Watched { body, moved })
}

fn said_wrong(error: &hyper::Error) -> Trouble {
    let reason = std::error::Error::source(error)
        .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    if error.is_parse() { Trouble::Garbled { reason } } else { Trouble::Down { reason } }
}

/// Waits as long as something moves.
async fn in_time<T>(moved: &Mutex<Instant>, asking: impl Future<Output = T>) -> Result<T, Trouble> {
    let mut asking = std::pin::pin!(asking);
    loop {
        let until = *open(moved) + ANSWER_LIMIT;
        tokio::select! {
            answer = &mut asking => return Ok(answer),
            () = sleep_until(until) => {}
        }
        if *open(moved) + ANSWER_LIMIT <= Instant::now() {
            return Err(Trouble::Silent { limit_s: ANSWER_LIMIT.as_secs() });
        }
    }
}

async fn both_ways(visitor: hyper::upgrade::OnUpgrade, service: hyper::upgrade::OnUpgrade, mut going: Going) {
    let copying = async {
        let (Ok(visitor), Ok(service)) = tokio::join!(visitor, service) else { return };
        // Either side hanging up is the usual end.
        let _ = copy_bidirectional(&mut TokioIo::new(visitor), &mut TokioIo::new(service)).await;
    };
    tokio::select! {
        () = copying => {}
        () = going.cut() => {}
    }
}

/// A request's body on its way, and when it last moved.
struct Watched {
    body: Incoming,
    moved: Arc<Mutex<Instant>>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            *open(&self.moved) = Instant::now();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body that breaks off when its way in is closed.
struct Cut {
    body: Incoming,
    going: Going,
}

impl HttpBody for Cut {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.going.poll_cut(cx).is_ready() {
            return Poll::Ready(Some(Err(Trouble::Cut.into())));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
