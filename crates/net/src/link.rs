//! The control link between a worker and its server: whole frames, both ways, in order.
//!
//! What always holds: the server knows the worker's endpoint id, proven by the handshake, before the first frame; one
//! live link per endpoint, the newest; a silent peer is noticed after about 7 s. Frames sent before a break may be
//! lost, so what they ask for must be safe to repeat.
//!
//! [`Link`] is the seam for the simulation: [`IrohLink`] here is the real one, `mem_link` holds its twin. What the
//! frames mean is not here.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt, WeakConnectionHandle};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    EndpointId, NetError, Node, NodeAddr,
    frame::{FrameReader, check, write_frame},
    node::{ALPN_LINK, CLOSE_DONE, CLOSE_REPLACED, Serving, explain_end},
    relay::Admit,
};

/// Longest frame of a link.
pub const FRAME_LIMIT_BYTES: usize = 4 << 20;

const GREETING_LIMIT: Duration = Duration::from_secs(10);
const QUEUED_FRAMES: usize = 256;
const QUEUED_EVENTS: usize = 4096;

/// What a [`Link`] reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A session with this endpoint begins; for one endpoint, `Up` and `Down` alternate.
    Up(EndpointId),
    /// The session ended; frames under way are lost.
    Down(EndpointId),
    /// A frame arrived.
    Frame(EndpointId, Vec<u8>),
}

/// How one side reaches many: synchronous, never blocks, never fails visibly. A frame to an endpoint that is not up
/// is lost, as it would be on any network.
pub trait Link {
    /// Sends a frame of at most [`FRAME_LIMIT_BYTES`].
    fn send(&mut self, to: EndpointId, frame: Vec<u8>);
    /// The next event, if there is one now.
    fn poll(&mut self) -> Option<LinkEvent>;
}

enum Outgoing {
    Frame(Vec<u8>),
    Finish(oneshot::Sender<()>),
}

/// Sends frames on one link, from any task.
#[derive(Clone, Debug)]
pub struct LinkSender {
    queue: mpsc::Sender<Outgoing>,
    connection: WeakConnectionHandle,
}

impl LinkSender {
    /// Queues a frame, waiting while the queue is full.
    ///
    /// # Errors
    /// If the frame is too large or the link is gone.
    pub async fn send(&self, frame: Vec<u8>) -> Result<(), NetError> {
        check(frame.len(), FRAME_LIMIT_BYTES)?;
        self.queue
            .send(Outgoing::Frame(frame))
            .await
            .map_err(|_| NetError::closed("nobody sends on it any more"))
    }

    /// Queues a frame at once, or ends the link if the peer is so slow that the queue is full.
    fn send_or_hang_up(&self, frame: Vec<u8>) {
        let fits = frame.len() <= FRAME_LIMIT_BYTES;
        if fits && self.queue.try_send(Outgoing::Frame(frame)).is_ok() {
            return;
        }
        if let Some(connection) = self.connection.upgrade() {
            tracing::warn!(peer = %EndpointId::from(connection.remote_id()), fits, "hanging up a link that is too slow");
            connection.close(VarInt::from_u32(CLOSE_DONE), b"too_slow");
        }
    }
}

/// Closes the connection when its owner goes.
#[derive(Debug)]
struct HangUp(Connection);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.close(VarInt::from_u32(CLOSE_DONE), b"done");
    }
}

/// One link. Dropping it ends it at once; [`LinkConn::close`] first delivers what was sent.
#[derive(Debug)]
pub struct LinkConn {
    connection: HangUp,
    sender: LinkSender,
    reader: FrameReader<RecvStream>,
}

impl LinkConn {
    fn new(connection: Connection, send: SendStream, reader: FrameReader<RecvStream>) -> Self {
        let (queue, frames) = mpsc::channel(QUEUED_FRAMES);
        tokio::spawn(write_all(send, frames));
        let sender = LinkSender { queue, connection: connection.weak_handle() };
        Self { connection: HangUp(connection), sender, reader }
    }

    /// Who is on the other side.
    pub fn peer(&self) -> EndpointId {
        self.connection.0.remote_id().into()
    }

    /// A handle to send with while another task receives.
    pub fn sender(&self) -> LinkSender {
        self.sender.clone()
    }

    /// Queues a frame, waiting while the queue is full.
    ///
    /// # Errors
    /// If the frame is too large or the link is gone.
    pub async fn send(&self, frame: Vec<u8>) -> Result<(), NetError> {
        self.sender.send(frame).await
    }

    /// The next frame. Dropping the pending call loses nothing.
    ///
    /// # Errors
    /// The reason, when the link ended.
    pub async fn recv(&mut self) -> Result<Vec<u8>, NetError> {
        match self.reader.next().await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(explain_end(&self.connection.0, NetError::closed("the other side ended it"))),
            Err(error) => Err(explain_end(&self.connection.0, error)),
        }
    }

    /// Ends the link after all frames queued so far were received, or after 5 s.
    pub async fn close(self) {
        let (done, finished) = oneshot::channel();
        let finish = async {
            if self.sender.queue.send(Outgoing::Finish(done)).await.is_ok() {
                let _ = finished.await;
            }
        };
        let _ = timeout(Duration::from_secs(5), finish).await;
    }
}

async fn write_all(mut stream: SendStream, mut frames: mpsc::Receiver<Outgoing>) {
    while let Some(next) = frames.recv().await {
        match next {
            Outgoing::Frame(frame) => {
                if write_frame(&mut stream, &frame, FRAME_LIMIT_BYTES).await.is_err() {
                    return;
                }
            }
            Outgoing::Finish(done) => {
                let _ = stream.finish();
                let _ = stream.stopped().await;
                let _ = done.send(());
                return;
            }
        }
    }
}

/// Opens a link to a server. Returns once the server has admitted us.
///
/// # Errors
/// If the server cannot be reached or does not admit this endpoint.
pub async fn connect_link(node: &Node, server: &NodeAddr) -> Result<LinkConn, NetError> {
    let connection = node.connect(server, ALPN_LINK).await?;
    let greet = async {
        let (mut send, receive) = connection.open_bi().await.map_err(NetError::closed)?;
        write_frame(&mut send, &[], FRAME_LIMIT_BYTES).await?;
        let mut reader = FrameReader::new(receive, FRAME_LIMIT_BYTES);
        reader.next().await?.ok_or_else(|| NetError::closed("the server sent no greeting"))?;
        Ok((send, reader))
    };
    match timeout(GREETING_LIMIT, greet).await {
        Ok(Ok((send, reader))) => Ok(LinkConn::new(connection, send, reader)),
        Ok(Err(error)) => Err(explain_end(&connection, error)),
        Err(_) => Err(explain_end(&connection, NetError::closed("the server does not answer"))),
    }
}

type Sessions = Arc<Mutex<BTreeMap<EndpointId, WeakConnectionHandle>>>;

/// The server's side: yields the links of admitted endpoints.
#[derive(Debug)]
pub struct LinkListener {
    incoming: mpsc::Receiver<LinkConn>,
    _serving: Serving,
}

impl LinkListener {
    /// Serves links on this node until dropped. `admit` is asked at every connect.
    pub fn start(node: &Node, admit: Admit) -> Self {
        let (ready, incoming) = mpsc::channel(QUEUED_FRAMES);
        let sessions = Sessions::default();
        let handle = move |connection: Connection| {
            tokio::spawn(welcome(connection, sessions.clone(), ready.clone()));
        };
        Self { _serving: node.serve(ALPN_LINK, admit, Arc::new(handle)), incoming }
    }

    /// The next link. A newer link of the same endpoint has then already ended the older one.
    pub async fn accept(&mut self) -> Option<LinkConn> {
        self.incoming.recv().await
    }
}

async fn welcome(connection: Connection, sessions: Sessions, ready: mpsc::Sender<LinkConn>) {
    let peer = EndpointId::from(connection.remote_id());
    let weak = connection.weak_handle();
    let session = connection.stable_id();
    match timeout(GREETING_LIMIT, greet(&connection)).await {
        Ok(Ok((send, reader))) => {
            take_place(&sessions, peer, &connection);
            if ready.send(LinkConn::new(connection, send, reader)).await.is_err() {
                return;
            }
        }
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a link failed at its greeting"),
        Err(_) => return tracing::debug!(%peer, "a link sent no greeting"),
    }
    weak.closed().await;
    let mut sessions = lock(&sessions);
    let ours = |live: &WeakConnectionHandle| live.upgrade().is_none_or(|c| c.stable_id() == session);
    if sessions.get(&peer).is_some_and(ours) {
        sessions.remove(&peer);
    }
}

async fn greet(connection: &Connection) -> Result<(SendStream, FrameReader<RecvStream>), NetError> {
    let (mut send, receive) = connection.accept_bi().await.map_err(NetError::closed)?;
    let mut reader = FrameReader::new(receive, FRAME_LIMIT_BYTES);
    reader.next().await?.ok_or_else(|| NetError::closed("no greeting"))?;
    write_frame(&mut send, &[], FRAME_LIMIT_BYTES).await?;
    Ok((send, reader))
}

fn take_place(sessions: &Sessions, peer: EndpointId, connection: &Connection) {
    let older = lock(sessions).insert(peer, connection.weak_handle());
    if let Some(older) = older.and_then(|weak| weak.upgrade()) {
        older.close(VarInt::from_u32(CLOSE_REPLACED), b"replaced");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Report {
    Up(LinkSender),
    Frame(Vec<u8>),
    Down,
}

struct Tagged {
    peer: EndpointId,
    session: u64,
    report: Report,
}

/// The real [`Link`]: a server's hub over a [`LinkListener`]; tokio tasks behind channels.
#[derive(Debug)]
pub struct IrohLink {
    reports: mpsc::Receiver<Tagged>,
    live: BTreeMap<EndpointId, (u64, LinkSender)>,
    events: VecDeque<LinkEvent>,
    accepting: tokio::task::JoinHandle<()>,
}

impl IrohLink {
    /// Serves links on this node until dropped. Must be called inside a tokio runtime.
    pub fn start(node: &Node, admit: Admit) -> Self {
        let (sender, reports) = mpsc::channel(QUEUED_EVENTS);
        let accepting = tokio::spawn(report_all(LinkListener::start(node, admit), sender));
        Self { reports, live: BTreeMap::new(), events: VecDeque::new(), accepting }
    }

    /// Waits until [`Link::poll`] has something; `false` when the node is gone. Dropping the call loses nothing.
    pub async fn ready(&mut self) -> bool {
        while self.events.is_empty() {
            match self.reports.recv().await {
                Some(report) => self.take(report),
                None => return false,
            }
        }
        true
    }

    /// The endpoints with a live link now.
    pub fn live(&self) -> impl Iterator<Item = EndpointId> {
        self.live.keys().copied()
    }

    /// Turns reports of many tasks into one order per endpoint; what an ended session still says is dropped.
    fn take(&mut self, Tagged { peer, session, report }: Tagged) {
        let current = self.live.get(&peer).map(|(session, _)| *session);
        match report {
            Report::Up(_) if current.is_some_and(|current| current > session) => {}
            Report::Up(sender) => {
                if self.live.insert(peer, (session, sender)).is_some() {
                    self.events.push_back(LinkEvent::Down(peer));
                }
                self.events.push_back(LinkEvent::Up(peer));
            }
            _ if current != Some(session) => {}
            Report::Frame(frame) => self.events.push_back(LinkEvent::Frame(peer, frame)),
            Report::Down => {
                self.live.remove(&peer);
                self.events.push_back(LinkEvent::Down(peer));
            }
        }
    }
}

impl Link for IrohLink {
    fn send(&mut self, to: EndpointId, frame: Vec<u8>) {
        if let Some((_, sender)) = self.live.get(&to) {
            sender.send_or_hang_up(frame);
        }
    }

    fn poll(&mut self) -> Option<LinkEvent> {
        while self.events.is_empty() {
            let report = self.reports.try_recv().ok()?;
            self.take(report);
        }
        self.events.pop_front()
    }
}

impl Drop for IrohLink {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn report_all(mut listener: LinkListener, reports: mpsc::Sender<Tagged>) {
    let mut session = 0;
    while let Some(link) = listener.accept().await {
        session += 1;
        tokio::spawn(report_one(link, session, reports.clone()));
    }
}

async fn report_one(mut link: LinkConn, session: u64, reports: mpsc::Sender<Tagged>) {
    let peer = link.peer();
    let mut report = Report::Up(link.sender());
    loop {
        let over = matches!(report, Report::Down);
        if reports.send(Tagged { peer, session, report }).await.is_err() || over {
            return;
        }
        report = link.recv().await.map_or(Report::Down, Report::Frame);
    }
}
