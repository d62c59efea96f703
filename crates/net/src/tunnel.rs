//! Byte streams from an engineer's client to a service inside a cluster, sealed end to end.
//!
//! One QUIC connection per pair of endpoints, one stream per tunnelled connection. Each stream begins with a
//! [`TunnelRequest`], answered by yes or by a refusal with code and message. Each direction ends on its own
//! (half-close); a broken service shows as a reset, never as a clean end. Who may open what is the handler's rule; until
//! it has said yes, a client is a stranger: few at once, with little room, for a short time.

mod datagram;

pub use datagram::{datagrams, forward_local_udp};

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    EndpointId, NetError, Node, NodeAddr,
    frame::{read_frame, write_frame},
    node::{ALPN_TUNNEL, CLOSE_BUSY, CLOSE_DONE, Serving, explain_end, trust},
    relay::Admit,
};

const HEADER_LIMIT_BYTES: usize = 64 << 10;
const HEADER_WAIT: Duration = Duration::from_secs(10);
const ANSWER_WAIT: Duration = Duration::from_secs(30);
const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// Connections at once for which the handler has not yet said yes.
const STRANGERS: usize = 64;
const STRANGER_WAIT: Duration = Duration::from_mins(1);
const COPY_BUFFER_BYTES: usize = 32 << 10;
/// Stream code for "the service broke", as against a clean end.
const RESET: VarInt = VarInt::from_u32(1);

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

/// One tunnelled connection.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream,
    receive: RecvStream,
    note: Option<String>,
    /// Keeps the connection open while the stream lives.
    _pooled: Option<Arc<Pooled>>,
}

impl TunnelStream {
    /// What the other side told of the service.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Breaks both directions, so that the other side sees a reset.
    pub fn reset(mut self) {
        let _ = self.send.reset(RESET);
        let _ = self.receive.stop(RESET);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
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

/// Opens a stream to a service.
///
/// # Errors
/// If the peer cannot be reached or does not admit us, or [`NetError::Refused`] with the handler's words.
pub async fn open(node: &Node, addr: &NodeAddr, request: &TunnelRequest) -> Result<TunnelStream, NetError> {
    let pooled = node.tunnels().connection(node, addr).await?;
    let ask = async {
        let (mut send, mut receive) = pooled.connection.open_bi().await.map_err(NetError::closed)?;
        write_frame(&mut send, &encode(request)?, HEADER_LIMIT_BYTES).await?;
        let answer = read_frame(&mut receive, HEADER_LIMIT_BYTES).await?;
        Ok((send, receive, answer))
    };
    let (send, receive, answer) = match timeout(ANSWER_WAIT, ask).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error @ NetError::FrameTooLarge { .. })) => return Err(error),
        Ok(Err(error)) => return Err(explain_end(&pooled.connection, error)),
        Err(_) => return Err(NetError::closed("the other side does not answer")),
    };
    match decode::<Answer>(&answer)? {
        Ok(said) => Ok(TunnelStream { send, receive, note: said, _pooled: Some(pooled) }),
        Err(Refused { code, message }) => Err(NetError::Refused { code, message }),
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, NetError> {
    serde_json::to_vec(value).map_err(|_| NetError::Malformed { what: "the tunnel's header".into() })
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, NetError> {
    serde_json::from_slice(bytes).map_err(|_| NetError::Malformed { what: "the tunnel's header".into() })
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
    let handler = Arc::new(handler);
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let handle = move |connection: Connection| match strangers.clone().try_acquire_owned() {
        Ok(place) => {
            tokio::spawn(serve_connection(connection, handler.clone(), place));
        }
        Err(_) => connection.close(VarInt::from_u32(CLOSE_BUSY), b"busy"),
    };
    TunnelServer { _serving: node.serve(ALPN_TUNNEL, admit, Arc::new(handle)) }
}

async fn serve_connection<H, F, S>(connection: Connection, handler: Arc<H>, place: OwnedSemaphorePermit)
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
        let Ok((send, receive)) = accepted else { return };
        let (handler, said_yes) = (handler.clone(), said_yes.clone());
        tokio::spawn(async move {
            let stream = TunnelStream { send, receive, note: None, _pooled: None };
            if let Err(error) = serve_stream(stream, peer, &*handler, &said_yes).await {
                tracing::debug!(%peer, %error, "a tunnel ended early");
            }
        });
    }
}

async fn serve_stream<H, F, S>(
    mut stream: TunnelStream,
    peer: EndpointId,
    handler: &H,
    said_yes: &Notify,
) -> Result<(), NetError>
where
    H: Fn(EndpointId, TunnelRequest) -> F,
    F: Future<Output = Result<Opening<S>, Refused>>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let header = timeout(HEADER_WAIT, read_frame(&mut stream.receive, HEADER_LIMIT_BYTES))
        .await
        .map_err(|_| NetError::closed("no request came"))??;
    let result = handler(peer, decode(&header)?).await;
    let answer: Answer = match &result {
        Ok(opening) => {
            said_yes.notify_one();
            Ok(opening.note.clone())
        }
        Err(refused) => Err(refused.clone()),
    };
    write_frame(&mut stream.send, &encode(&answer)?, HEADER_LIMIT_BYTES).await?;
    if let Ok(mut opening) = result {
        pump(stream, &mut opening.service).await.map_err(NetError::closed)?;
    }
    Ok(())
}

/// Copies both ways until both directions ended; an error breaks the stream visibly.
async fn pump<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: TunnelStream,
    other: &mut S,
) -> std::io::Result<()> {
    match copy_bidirectional_with_sizes(&mut stream, other, COPY_BUFFER_BYTES, COPY_BUFFER_BYTES).await {
        Ok(_) => Ok(()),
        Err(error) => {
            stream.reset();
            Err(error)
        }
    }
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
            if let Err(error) = forward_one(&node, &*route, tcp).await {
                *last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
        });
    }
}

async fn forward_one<R, F>(node: &Node, route: &R, mut tcp: TcpStream) -> Result<(), NetError>
where
    R: Fn(bool) -> F,
    F: Future<Output = Result<(NodeAddr, TunnelRequest), NetError>>,
{
    let _ = tcp.set_nodelay(true);
    let reach = async |again| {
        let (addr, request) = route(again).await?;
        open(node, &addr, &request).await
    };
    let stream = match reach(false).await {
        Err(_) => reach(true).await,
        stream => stream,
    };
    let result = match stream {
        Ok(stream) => pump(stream, &mut tcp).await.map_err(NetError::closed),
        Err(error) => Err(error),
    };
    if result.is_err() {
        let _ = tcp.set_zero_linger();
    }
    result
}
