//! The gateway's own listeners, and the loop that keeps what is open as the state says.
//!
//! Always holds: a change of what is exposed, of an order or of a key is acted upon at once, and looked for every second all
//! the same; a visitor who says nothing, or whose machine is gone, is let go. Not here: requests (`proxy`).

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HeaderValue, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ionet_domain::PublicBody;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinSet;

use super::access::{Seal, admitted};
use super::answer::{Body, Trouble, plain};
use super::certificates::Certificates;
use super::live::Live;
use super::raw::Ports;
use super::stall::Stall;
use super::{Apps, AppsConfig, Gateway};
use crate::error::ServerError;
use crate::handle::Handle;
use crate::keys::Keys;

/// How long a visitor may take to say what he wants, each time.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
const TLS_LIMIT: Duration = Duration::from_mins(1);
const HEADERS_MOST: usize = 100;
const HEAD_BYTES_MOST: usize = 64 << 10;
/// What is open is looked over this often, whatever happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A machine that is gone without a word is found out after about this and as much again.
const PROBE_AFTER: Duration = Duration::from_mins(1);

/// What is bound before anything is served.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) apps: Arc<Apps>,
    listener: TcpListener,
    plain: Option<TcpListener>,
}

impl Bound {
    /// Takes the addresses and reads the certificates.
    pub(crate) async fn new(config: &AppsConfig, dir: &Path, keys: &Keys) -> Result<Self, ServerError> {
        let bind = async |address: SocketAddr| {
            let bound = TcpListener::bind(address).await;
            bound.map_err(ServerError::io(format!("listen on {address} for exposed services")))
        };
        let listener = bind(config.listen).await?;
        let plain = match config.http_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let address =
            listener.local_addr().map_err(ServerError::io("find the address of exposed services"))?;
        let dir = dir.join("apps");
        let apps = Apps {
            config: config.clone(),
            address,
            certificates: Certificates::new(&config.tls, &dir)?.map(Arc::new),
            seal: Seal::new(&keys.apps_secret()),
            tickets: super::Tickets::default(),
            live: Arc::new(Live::new(config.limits)),
            troubles: std::sync::Mutex::default(),
            noted: std::sync::Mutex::default(),
        };
        Ok(Self { apps: Arc::new(apps), listener, plain })
    }
}

/// Serves exposed services until it is dropped.
pub(crate) async fn run(handle: Handle, bound: Bound) {
    let Bound { apps, listener, plain } = bound;
    let most = Arc::new(Semaphore::new(apps.config.limits.connections));
    let gateway = Gateway { handle, apps };
    let mut parts = JoinSet::new();
    if let Some(certificates) = &gateway.apps.certificates {
        parts.spawn(certificates.clone().upkeep(gateway.clone()));
    }
    if let Some(plain) = plain {
        let gateway = gateway.clone();
        parts.spawn(accept(plain, most.clone(), move |stream, _| aside(gateway.clone(), stream)));
    }
    let inner = gateway.clone();
    parts.spawn(accept(listener, most, move |stream, from| visit(inner.clone(), stream, from)));
    gateway.keep_as_said().await;
}

/// Takes connections in, so many at a time; over that they are closed at once.
async fn accept<F>(listener: TcpListener, most: Arc<Semaphore>, serve: impl Fn(TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut going = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let Ok(place) = most.clone().try_acquire_owned() else {
                    tracing::debug!(%from, "turned away: too many connections");
                    continue;
                };
                keep_alive(&stream);
                going.spawn(in_place(place, serve(stream, from)));
            }
            Err(error) => pause_after(&error).await,
        }
        while going.try_join_next().is_some() {}
    }
}

async fn in_place(_place: OwnedSemaphorePermit, serving: impl Future<Output = ()>) {
    serving.await;
}

/// After what may go on failing, as when the process has no file left.
pub(super) async fn pause_after(error: &io::Error) {
    tracing::debug!(%error, "a visitor could not be taken in");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Has the system find out whether the other machine is still there.
pub(super) fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, PROBE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(stream, PROBE_AFTER / 4);
    let _ = sockopt::set_tcp_keepcnt(stream, 4);
}

async fn visit(gateway: Gateway, stream: TcpStream, from: SocketAddr) {
    let stream = Stall::new(stream);
    let Some(certificates) = gateway.apps.certificates.clone() else {
        return talk(gateway, stream, from).await;
    };
    match tokio::time::timeout(TLS_LIMIT, certificates.accept(&gateway, stream)).await {
        Ok(Ok(stream)) => talk(gateway, stream, from).await,
        Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS with a visitor"),
        Err(_) => tracing::debug!(%from, "a visitor took too long over TLS"),
    }
}

fn server() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    http.max_headers(HEADERS_MOST).max_buf_size(HEAD_BYTES_MOST).half_close(false);
    http
}

async fn talk(
    gateway: Gateway,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
) {
    let service = service_fn(move |request| gateway.clone().serve(from, request));
    // A visitor who leaves, or is left, is nothing to tell.
    let _ = server().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

/// Plain HTTP beside TLS: answers an authority's challenge, and sends everybody else to TLS.
async fn aside(gateway: Gateway, stream: TcpStream) {
    let service = service_fn(move |request| {
        let answer = elsewhere(&gateway, &request);
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let _ = server().serve_connection(TokioIo::new(Stall::new(stream)), service).await;
}

fn elsewhere(gateway: &Gateway, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if let Some(token) = path.strip_prefix("/.well-known/acme-challenge/")
        && let Some(answer) =
            gateway.apps.certificates.as_ref().and_then(|certificates| certificates.challenge(token))
    {
        return plain(StatusCode::OK, "application/octet-stream", answer);
    }
    let host = request.headers().get(hyper::header::HOST).and_then(|host| host.to_str().ok());
    let order = host.and_then(|host| gateway.apps.order_of(host));
    let Some(order) = order.filter(|_| gateway.apps.secure()) else {
        return Trouble::NothingHere.answer(request.headers());
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut response = plain(StatusCode::PERMANENT_REDIRECT, "text/plain", String::new());
    if let Ok(to) = HeaderValue::from_str(&format!("{}{path}", gateway.apps.origin(order))) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

impl Gateway {
    /// Opens, closes and cuts as the state says, for as long as it is waited for.
    async fn keep_as_said(&self) {
        let mut events = self.handle.subscribe();
        let mut ports = Ports::default();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.reconcile(&mut ports).await;
            self.cut_what_is_not_admitted();
            loop {
                tokio::select! {
                    _ = look.tick() => break,
                    event = events.recv() => match event {
                        Ok(event) if !matters(&event.event.public) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                        _ => break,
                    }
                }
            }
        }
    }

    fn cut_what_is_not_admitted(&self) {
        let now_ms = self.now_ms();
        let passes = self.apps.live.passes();
        if passes.is_empty() {
            return;
        }
        let holds = |pass: &super::live::Pass| {
            self.handle.read(|view| {
                admitted(view, pass.order, pass.service, pass.visitor, now_ms)
                    .is_some_and(|(_, exposure)| exposure.slot == pass.slot)
            })
        };
        let void: Vec<_> = passes.into_iter().filter(|pass| !holds(pass)).collect();
        if !void.is_empty() {
            let cut = self.apps.live.cut(|pass| !void.contains(pass));
            tracing::info!(cut, "cut what is not admitted to exposed services any more");
        }
    }
}

fn matters(event: &PublicBody) -> bool {
    matches!(
        event,
        PublicBody::OrderExposed { .. }
            | PublicBody::OrderUnexposed { .. }
            | PublicBody::OrderClosing { .. }
            | PublicBody::KeyRevoked { .. }
    )
}
