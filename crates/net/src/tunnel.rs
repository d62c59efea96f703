//! Byte streams from an engineer's client to a service inside a cluster, sealed end to end.
//!
//! One QUIC connection per pair of endpoints, one stream per tunnelled connection. Each stream begins with a
//! [`TunnelRequest`], answered by yes or by a refusal with code and message. Each direction ends on its own
//! (half-close); a broken service shows as a reset, never as a clean end. A tunnel outlives what carries it: when the
//! connection is lost the client comes back and both go on where they were (`session`), and one that carries much moves to a
//! TCP connection through a relay that only splices (`promote`). Who may open what is the handler's rule; until
//! it has said yes, a client is a stranger: few at once, with little room, for a short time.

mod carrier;
mod datagram;
mod dial;
mod flow;
mod promote;
mod session;

pub use datagram::{datagrams, forward_local_udp};

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinHandle,
    time::timeout,
};

use self::{
    carrier::Carrier,
    dial::{Ask, Dialled, Dialler, NO_SUCH_SESSION, SESSION_DONE, Whereabouts, decode, encode},
    promote::Promoter,
    session::{Known, SessionId, Sessions, Side},
};
use crate::{
    EndpointId, NetError, Node, NodeAddr,
    frame::{read_frame, write_frame},
    node::{ALPN_TUNNEL, CLOSE_BUSY, CLOSE_DONE, Serving, trust},
    relay::Admit,
};

const HEADER_LIMIT_BYTES: usize = 64 << 10;
const HEADER_WAIT: Duration = Duration::from_secs(10);
const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// Connections at once for which the handler has not yet said yes.
const STRANGERS: usize = 64;
const STRANGER_WAIT: Duration = Duration::from_mins(1);
/// Between a stream and its session.
const PIPE_BYTES: usize = 64 << 10;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRequest {
    /// Cluster or lease, as text.
    pub cluster: String,
    /// Which of its services, in the words of whoever serves.
    pub service: String,
    /// What proves the right to it; checked by the handler, never printed.
    #[serde(with = "crate::relay::base64")]
    pub auth: Vec<u8>,
}

impl fmt::Debug for TunnelRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelRequest({} {})", self.cluster, self.service)
    }
}

/// What a handler opened.
#[derive(Debug)]
pub struct Opening<S> {
    /// The service itself.
    pub service: S,
    /// What the client is to know of it before the first byte.
    pub note: Option<String>,
}

impl<S> From<S> for Opening<S> {
    fn from(service: S) -> Self {
        Self { service, note: None }
    }
}

/// The handler's note, or why it said no.
type Answer = Result<Option<String>, Refused>;

/// Why a handler said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Stable name of the reason.
    pub code: String,
    /// What to tell people, with what would help.
    pub message: String,
}

/// One tunnelled connection. It outlives the connection that carries it: see the module's head.
#[derive(Debug)]
pub struct TunnelStream {
    pipe: DuplexStream,
    note: Option<String>,
    /// Why it broke, if it did.
    broken: Arc<OnceLock<String>>,
    abort: Option<oneshot::Sender<()>>,
}

impl TunnelStream {
    /// What the other side told of the service.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Breaks both directions, so that the other side sees a reset.
    pub fn reset(mut self) {
        if let Some(abort) = self.abort.take() {
            // Over already is as good.
            let _ = abort.send(());
        }
    }

    fn begin(opened: Opened) -> Self {
        let (pipe, mut theirs) = duplex(PIPE_BYTES);
        let (abort, aborted) = oneshot::channel();
        let broken = Arc::new(OnceLock::new());
        let (note, told) = (opened.note.clone(), broken.clone());
        tokio::spawn(async move {
            if let Err(error) = session::run(opened.side, opened.carrier, &mut theirs, aborted).await {
                let _ = told.set(error.to_string());
            }
            // Not before the reason is told: its end would look like a clean one.
            drop(theirs);
        });
        Self { pipe, note, broken, abort: Some(abort) }
    }
}

/// A node's connections for tunnels, shared by all streams to one peer and dropped after a minute without one.
#[derive(Default)]
pub(crate) struct Pool(Mutex<BTreeMap<EndpointId, Slot>>);

type Slot = Arc<tokio::sync::Mutex<Weak<Pooled>>>;

#[derive(Debug)]
struct Pooled {
    connection: Connection,
    opened: AtomicU64,
}

/// A stream that a server said yes to, not yet begun.
struct Opened {
    side: Side,
    carrier: Carrier,
    note: Option<String>,
}

impl Pool {
    async fn connection(&self, node: &Node, addr: &NodeAddr) -> Result<Arc<Pooled>, NetError> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(addr.id).or_default().clone();
        let mut known = slot.lock().await;
        let open = known.upgrade().filter(|pooled| pooled.connection.close_reason().is_none());
        let pooled = if let Some(pooled) = open {
            pooled
        } else {
            let connection = node.connect(addr, ALPN_TUNNEL).await?;
            let fresh = Arc::new(Pooled { connection, opened: AtomicU64::new(0) });
            *known = Arc::downgrade(&fresh);
            tokio::spawn(keep_while_used(fresh.clone()));
            fresh
        };
        pooled.opened.fetch_add(1, Ordering::Relaxed);
        Ok(pooled)
    }
}

/// Holds the connection until nobody used it for a while, so that what a dropped stream sent still arrives.
async fn keep_while_used(pooled: Arc<Pooled>) {
    let mut opened = 0;
    loop {
        if timeout(IDLE_LIMIT, pooled.connection.closed()).await.is_ok() {
            return;
        }
        let before = std::mem::replace(&mut opened, pooled.opened.load(Ordering::Relaxed));
        if before == opened && Arc::strong_count(&pooled) == 1 {
            return;
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.pipe).poll_read(cx, buffer);
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        match self.broken.get() {
            Some(why) if is_end && polled.is_ready() => {
                Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, why.clone())))
            }
            _ => polled,
        }
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// Opens a stream to a service.
///
/// # Errors
/// If the peer cannot be reached or does not admit us, or [`NetError::Refused`] with the handler's words.
pub async fn open(node: &Node, addr: &NodeAddr, request: &TunnelRequest) -> Result<TunnelStream, NetError> {
    let known = addr.clone();
    let there: Whereabouts = Arc::new(move |_| Box::pin(std::future::ready(Ok(known.clone()))));
    Ok(TunnelStream::begin(dial(node, addr, request.clone(), there).await?))
}

async fn dial(
    node: &Node,
    addr: &NodeAddr,
    request: TunnelRequest,
    whereabouts: Whereabouts,
) -> Result<Opened, NetError> {
    let session = SessionId::random().map_err(NetError::io("get random bytes"))?;
    let Dialled { carrier, note } = dial::ask(node, addr, &Ask::Open { session, request }).await?;
    let side = Side::Client {
        dialler: Dialler { node: node.clone(), session, whereabouts },
        promoter: Promoter::new(node.clone(), addr.relays.clone()),
    };
    Ok(Opened { side, carrier, note })
}

/// Serves tunnels while it lives.
#[derive(Debug)]
pub struct TunnelServer {
    _serving: Serving,
}

/// Serves tunnels on a node: `handler` turns a request into a connection to the service (usually a `TcpStream`) or
/// refuses. `admit` is asked once per connection, the handler for each stream.
pub fn serve<H, F, S>(node: &Node, admit: Admit, handler: H) -> TunnelServer
where
    H: Fn(EndpointId, TunnelRequest) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Opening<S>, Refused>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let desk = Arc::new(Desk { node: node.clone(), handler, sessions: Sessions::default() });
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let handle = move |connection: Connection| match strangers.clone().try_acquire_owned() {
        Ok(place) => {
            tokio::spawn(serve_connection(connection, desk.clone(), place));
        }
        Err(_) => connection.close(VarInt::from_u32(CLOSE_BUSY), b"busy"),
    };
    TunnelServer { _serving: node.serve(ALPN_TUNNEL, admit, Arc::new(handle)) }
}

/// What all streams of one service need.
struct Desk<H> {
    node: Node,
    handler: H,
    sessions: Sessions,
}

async fn serve_connection<H, F, S>(connection: Connection, desk: Arc<Desk<H>>, place: OwnedSemaphorePermit)
where
    H: Fn(EndpointId, TunnelRequest) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Opening<S>, Refused>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let peer = EndpointId::from(connection.remote_id());
    let said_yes = Arc::new(Notify::new());
    let mut place = Some(place);
    let mut strange_for_long = std::pin::pin!(tokio::time::sleep(STRANGER_WAIT));
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept_bi() => accepted,
            () = said_yes.notified(), if place.is_some() => {
                trust(&connection);
                place = None;
                continue;
            }
            () = &mut strange_for_long, if place.is_some() => {
                return connection.close(VarInt::from_u32(CLOSE_DONE), b"done");
            }
        };
        let Ok(stream) = accepted else { return };
        let (desk, said_yes) = (desk.clone(), said_yes.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_stream(stream, peer, &desk, &said_yes).await {
                tracing::debug!(%peer, %error, "a tunnel ended early");
            }
        });
    }
}

async fn serve_stream<H, F, S>(
    (mut send, mut receive): (SendStream, RecvStream),
    peer: EndpointId,
    desk: &Desk<H>,
    said_yes: &Notify,
) -> Result<(), NetError>
where
    H: Fn(EndpointId, TunnelRequest) -> F,
    F: Future<Output = Result<Opening<S>, Refused>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let header = timeout(HEADER_WAIT, read_frame(&mut receive, HEADER_LIMIT_BYTES))
        .await
        .map_err(|_| NetError::closed("no request came"))??;
    match decode(&header)? {
        Ask::Open { session, request } => {
            let opening = (desk.handler)(peer, request).await;
            let entered = desk.sessions.enter(session, peer).ok_or_else(no_room);
            match opening.and_then(|opening| Ok((opening, entered?))) {
                Ok((Opening { service, note }, entered)) => {
                    said_yes.notify_one();
                    answer(&mut send, &Ok(note)).await?;
                    let side = Side::Server { node: desk.node.clone(), entered };
                    let (_never, aborted) = oneshot::channel();
                    let carrier = Carrier::quic(send, receive, None);
                    session::run(side, carrier, service, aborted).await.map_err(NetError::closed)
                }
                Err(refused) => answer(&mut send, &Err(refused)).await,
            }
        }
        Ask::Resume { session } => {
            let refused = |code: &str| {
                let message = "the tunnel is not open any more; open it again".into();
                Err(Refused { code: code.into(), message })
            };
            let offer = match desk.sessions.find(session, peer) {
                Known::Open(offer) => offer,
                Known::Done => return answer(&mut send, &refused(SESSION_DONE)).await,
                Known::Unknown => return answer(&mut send, &refused(NO_SUCH_SESSION)).await,
            };
            said_yes.notify_one();
            answer(&mut send, &Ok(None)).await?;
            let carrier = Carrier::quic(send, receive, None);
            offer.send(carrier).await.map_err(|_| NetError::closed("it ended meanwhile"))
        }
    }
}

async fn answer(send: &mut SendStream, answer: &Answer) -> Result<(), NetError> {
    write_frame(send, &encode(answer)?, HEADER_LIMIT_BYTES).await
}

fn no_room() -> Refused {
    let message = "too many tunnels are open to this member; close some and try again".into();
    Refused { code: "too_many_tunnels".into(), message }
}

/// A port on this machine's loopback whose connections come out at the service. Stops when dropped.
#[derive(Debug)]
pub struct LocalForward {
    /// Where to connect.
    pub local_addr: SocketAddr,
    accepting: JoinHandle<()>,
    last_error: Arc<Mutex<Option<String>>>,
}

impl LocalForward {
    /// What went wrong with the latest connection that failed.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for LocalForward {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Listens on 127.0.0.1 at `local_port` (0 takes a free one) and opens a stream for each connection.
///
/// `route` says for each connection where it goes and what proves the right to it. It is asked again, with `true`, when
/// the stream could not be opened: a service may have moved and leave may have run out since a port was opened.
///
/// # Errors
/// If the port is taken.
pub async fn forward_local<R, F>(node: &Node, local_port: u16, route: R) -> Result<LocalForward, NetError>
where
    R: Fn(bool) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(NodeAddr, TunnelRequest), NetError>> + Send + 'static,
{
    let bind = || NetError::io(format!("listen on 127.0.0.1:{local_port}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local_port)).await.map_err(bind())?;
    let local_addr = listener.local_addr().map_err(bind())?;
    let last_error = Arc::new(Mutex::new(None));
    let accepting = tokio::spawn(forward_all(node.clone(), Arc::new(route), listener, last_error.clone()));
    Ok(LocalForward { local_addr, accepting, last_error })
}

async fn forward_all<R, F>(
    node: Node,
    route: Arc<R>,
    listener: TcpListener,
    last_error: Arc<Mutex<Option<String>>>,
) where
    R: Fn(bool) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(NodeAddr, TunnelRequest), NetError>> + Send + 'static,
{
    loop {
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                // Out of descriptors: those in use must first go.
                tracing::warn!(%error, "cannot accept a local connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (node, route, last_error) = (node.clone(), route.clone(), last_error.clone());
        tokio::spawn(async move {
            if let Err(error) = forward_one(&node, &route, tcp).await {
                *last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
        });
    }
}

async fn forward_one<R, F>(node: &Node, route: &Arc<R>, tcp: TcpStream) -> Result<(), NetError>
where
    R: Fn(bool) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(NodeAddr, TunnelRequest), NetError>> + Send + 'static,
{
    let _ = tcp.set_nodelay(true);
    let reach = async |again| {
        let (addr, request) = route(again).await?;
        let route = route.clone();
        let there: Whereabouts = Arc::new(move |again| {
            let asked = route(again);
            Box::pin(async move { asked.await.map(|(addr, _)| addr) })
        });
        dial(node, &addr, request, there).await
    };
    let opened = match reach(false).await {
        Err(_) => reach(true).await,
        opened => opened,
    };
    let (_never, aborted) = oneshot::channel();
    let mut tcp = tcp;
    let result = match opened {
        Ok(Opened { side, carrier, .. }) => {
            session::run(side, carrier, &mut tcp, aborted).await.map_err(NetError::closed)
        }
        Err(error) => Err(error),
    };
    if result.is_err() {
        let _ = tcp.set_zero_linger();
    }
    result
}
