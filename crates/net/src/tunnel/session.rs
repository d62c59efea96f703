//! One tunnel from its first byte to its last, over one carrier after another.
//!
//! A session copies between a service (a socket, a pipe) and a carrier. When the carrier is lost, the client opens another
//! and both go on where they were, for a minute at most; when the tunnel turns out to be a long one, the client asks to
//! meet at a relay and the session moves to TCP. One task; nothing waits without an end but for the service itself.
//!
//! Always holds: the service sees every byte once and in order or a visible break, never a clean end that is none; a
//! slow reader stops the writer and nobody else. Not here: the bytes' bookkeeping (`flow`), frames (`carrier`), who may
//! open what (the handler).

use std::{
    collections::{HashMap, VecDeque},
    io::{Error, ErrorKind, Result},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::{Notify, mpsc, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    carrier::{Carrier, Frame, Kind, Reader, Writer, malformed},
    dial::Dialler,
    flow::{Ack, Flow, Impossible},
    promote::{Meeting, Promoter},
};
use crate::{EndpointId, Node};

/// How long both ends wait for each other after a carrier was lost.
pub(super) const DETACHED_MOST: Duration = Duration::from_mins(1);
const HELLO_WAIT: Duration = Duration::from_secs(5);
const LAST_WORDS_WAIT: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_secs(5);
/// A TCP carrier that is silent for longer is dead: its other end says something every [`PING_EVERY`].
const SILENCE_MOST: Duration = Duration::from_secs(15);
/// What is read of the service at once, when little comes and when much does.
const READ_BYTES: usize = 8 << 10;
const READ_MOST_BYTES: usize = 64 << 10;
const READ_LEAST_BYTES: usize = 1 << 10;
/// Frames are put together up to here before they are sent.
const SEND_BYTES: usize = 128 << 10;
const REASON_BYTES: usize = 200;

/// A session's name: random, and known to its two ends only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct SessionId(pub(super) [u8; 16]);

impl SessionId {
    pub(super) fn random() -> Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(Error::from)?;
        Ok(Self(id))
    }
}

/// The sessions that a server has, so that a client finds its own again.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    open: HashMap<SessionId, (EndpointId, mpsc::Sender<Carrier>)>,
    /// The last that were done, for clients that did not hear of it.
    done: VecDeque<(SessionId, EndpointId)>,
}

/// At most so many at once, and remembered.
const SESSIONS_MOST: usize = 16_384;
const DONE_MOST: usize = 4096;

/// What a server knows of a session.
pub(super) enum Known {
    /// Where to hand a new carrier.
    Open(mpsc::Sender<Carrier>),
    Done,
    Unknown,
}

impl Sessions {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a session until what is returned is dropped; `None` when there are too many, or its name is taken.
    pub(super) fn enter(&self, id: SessionId, peer: EndpointId) -> Option<Entered> {
        let (offer, offers) = mpsc::channel(1);
        let mut table = self.table();
        if table.open.len() >= SESSIONS_MOST || table.open.contains_key(&id) {
            return None;
        }
        table.open.insert(id, (peer, offer.clone()));
        Some(Entered { sessions: self.clone(), id, offer, offers })
    }

    /// What has become of this peer's session.
    pub(super) fn find(&self, id: SessionId, peer: EndpointId) -> Known {
        let table = self.table();
        match table.open.get(&id) {
            Some((owner, offer)) if *owner == peer => Known::Open(offer.clone()),
            None if table.done.contains(&(id, peer)) => Known::Done,
            _ => Known::Unknown,
        }
    }
}

/// A session's place in the table.
pub(super) struct Entered {
    sessions: Sessions,
    id: SessionId,
    offer: mpsc::Sender<Carrier>,
    offers: mpsc::Receiver<Carrier>,
}

impl Entered {
    /// The session is done, not broken.
    fn finish(self) {
        let mut table = self.sessions.table();
        if let Some((peer, _)) = table.open.remove(&self.id) {
            if table.done.len() >= DONE_MOST {
                table.done.pop_front();
            }
            table.done.push_back((self.id, peer));
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.sessions.table().open.remove(&self.id);
    }
}

/// Which end we are.
pub(super) enum Side {
    /// Finds the way again, and moves the session to a better one.
    Client { dialler: Dialler, promoter: Promoter },
    /// Waits to be found again.
    Server { node: Node, entered: Entered },
}

/// Why a carrier is left.
enum Left {
    Done,
    /// For this one.
    Moved(Box<Carrier>),
    /// It broke.
    Lost(Error),
    /// The service or the other side's service broke, or the other side does not keep to the rules.
    Broken(Error),
}

/// What the parts of a session share.
struct Shared {
    flow: Mutex<Flow>,
    /// There may be something to send.
    send: Notify,
    /// There may be something to give to the service.
    give: Notify,
    /// What to say besides the flow's own frames.
    say: Mutex<Option<Meeting>>,
}

impl Shared {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saying(&self) -> MutexGuard<'_, Option<Meeting>> {
        self.say.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies between the service and its carriers until both directions ended. `abort` breaks it.
///
/// # Errors
/// Why it broke; the service and the other side saw it as a break.
pub(super) async fn run<S>(
    mut side: Side,
    mut carrier: Carrier,
    service: S,
    abort: oneshot::Receiver<()>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let shared = Shared {
        flow: Mutex::new(Flow::new()),
        send: Notify::new(),
        give: Notify::new(),
        say: Mutex::new(None),
    };
    let (from, to) = split(service);
    let mut service = Service { from, to, read: BytesMut::new(), wants: READ_BYTES };
    let mut abort = std::pin::pin!(aborted(abort));
    let mut is_first = true;
    loop {
        let left = tokio::select! {
            left = attach(&shared, &mut side, &mut carrier, &mut service, is_first) => left,
            error = &mut abort => Left::Broken(error),
        };
        is_first = false;
        match left {
            Left::Done => {
                if let Side::Server { entered, .. } = side {
                    entered.finish();
                }
                return Ok(());
            }
            Left::Moved(to) => carrier = *to,
            Left::Broken(error) => {
                say_broken(&mut carrier.writer, &error).await;
                return Err(error);
            }
            Left::Lost(error) => {
                tracing::debug!(%error, "a tunnel's carrier was lost");
                drop(carrier);
                let found = tokio::select! {
                    found = find_again(&mut side) => found.map_err(|again| because(&again, &error))?,
                    settled = settle(&shared, &mut service) => return settled,
                    error = &mut abort => return Err(error),
                };
                match found {
                    Found::Carrier(found) => carrier = *found,
                    Found::Done => {
                        shared.flow().hear_done();
                        return settle(&shared, &mut service).await;
                    }
                }
            }
        }
    }
}

/// Why a session could not go on, with what began it.
fn because(again: &Error, first: &Error) -> Error {
    Error::new(ErrorKind::ConnectionReset, format!("{first}; and then: {again}"))
}

async fn aborted(abort: oneshot::Receiver<()>) -> Error {
    match abort.await {
        Ok(()) => Error::new(ErrorKind::ConnectionAborted, "it was broken off"),
        // Nobody can break it any more.
        Err(_) => std::future::pending().await,
    }
}

/// The other side learns why, if the carrier is not in the middle of something else.
async fn say_broken(writer: &mut Writer, error: &Error) {
    if writer.pushed() == 0 {
        let reason: String = error.to_string().chars().take(REASON_BYTES).collect();
        let saying = async {
            writer.push(Kind::Reset, reason.as_bytes())?;
            writer.shutdown().await
        };
        let _ = timeout(LAST_WORDS_WAIT, saying).await;
    }
}

/// What came of looking for the other side.
pub(super) enum Found {
    Carrier(Box<Carrier>),
    /// It has all of ours and has ended.
    Done,
}

async fn find_again(side: &mut Side) -> Result<Found> {
    match side {
        Side::Client { dialler, promoter } => {
            promoter.was_lost();
            dialler.resume(DETACHED_MOST).await
        }
        Side::Server { entered, .. } => match timeout(DETACHED_MOST, entered.offers.recv()).await {
            Ok(Some(carrier)) => Ok(Found::Carrier(Box::new(carrier))),
            _ => Err(Error::new(ErrorKind::TimedOut, "the client did not come back")),
        },
    }
}

/// Without a carrier, what came is given to the service all the same; ends when that was the last of it.
async fn settle<S: AsyncRead + AsyncWrite>(shared: &Shared, service: &mut Service<S>) -> Result<()> {
    let given = async {
        while !shared.flow().is_given() {
            shared.send.notified().await;
        }
    };
    tokio::select! {
        left = give(shared, &mut service.to) => match left {
            Left::Broken(error) => Err(error),
            _ => Ok(()),
        },
        () = given => Ok(()),
    }
}

/// Works on one carrier until it is left.
async fn attach<S>(
    shared: &Shared,
    side: &mut Side,
    carrier: &mut Carrier,
    service: &mut Service<S>,
    is_first: bool,
) -> Left
where
    S: AsyncRead + AsyncWrite,
{
    let is_tcp = carrier.is_tcp;
    let Carrier { reader, writer, pooled, .. } = carrier;
    if !is_first {
        match timeout(HELLO_WAIT, exchange_hellos(shared, reader, writer)).await {
            Ok(Ok(())) => {}
            Ok(Err(left)) => return left,
            Err(_) => return Left::Lost(Error::new(ErrorKind::TimedOut, "no word came on the new way")),
        }
    }
    // Whatever is to be done may have become so on the last carrier.
    shared.send.notify_one();
    shared.give.notify_one();
    let (meet, meetings) = mpsc::channel(1);
    let Service { from, to, read, wants } = service;
    let left = tokio::select! {
        left = send(shared, writer, from, (read, wants), is_tcp) => left,
        left = hear(shared, reader, &meet, is_tcp) => left,
        left = give(shared, to) => left,
        left = next_carrier(shared, side, pooled.as_deref(), meetings, is_tcp) => left,
    };
    if matches!(left, Left::Done) {
        // Until the other side ends the carrier too it must not be dropped: our last word may be on the way.
        let ending = async {
            writer.shutdown().await?;
            while reader.next().await?.is_some() {}
            Ok::<_, Error>(())
        };
        let _ = timeout(LAST_WORDS_WAIT, ending).await;
    }
    left
}

/// The first words on a carrier that takes over: how far each side is.
async fn exchange_hellos(
    shared: &Shared,
    reader: &mut Reader,
    writer: &mut Writer,
) -> std::result::Result<(), Left> {
    let ours = shared.flow().hello().encode();
    let said = async {
        writer.push(Kind::Hello, &ours)?;
        writer.flush().await
    };
    said.await.map_err(Left::Lost)?;
    let Frame { kind: Kind::Hello, body } = next_frame(reader).await.map_err(Left::Lost)? else {
        return Err(Left::Broken(malformed("the first word on a new way")));
    };
    let ack = Ack::decode(&body).ok_or_else(|| Left::Broken(malformed("the first word on a new way")))?;
    shared.flow().hear_hello(ack).map_err(impossible)
}

async fn next_frame(reader: &mut Reader) -> Result<Frame> {
    reader.next().await?.ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

fn impossible(what: Impossible) -> Left {
    Left::Broken(Error::new(ErrorKind::InvalidData, format!("the other side is wrong: {}", what.0)))
}

/// The service's two directions, and room for what is read of it.
struct Service<S> {
    from: ReadHalf<S>,
    to: WriteHalf<S>,
    read: BytesMut,
    wants: usize,
}

/// Takes from the service and sends, with all else that there is to say.
async fn send<S: AsyncRead + AsyncWrite>(
    shared: &Shared,
    writer: &mut Writer,
    from: &mut ReadHalf<S>,
    (read, wants): (&mut BytesMut, &mut usize),
    is_tcp: bool,
) -> Left {
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    loop {
        let done = match push_all(shared, writer) {
            Ok(done) => done,
            Err(error) => return Left::Lost(error),
        };
        if let Err(error) = writer.flush().await {
            return Left::Lost(error);
        }
        if done {
            return Left::Done;
        }
        let room = shared.flow().room();
        tokio::select! {
            biased;
            () = shared.send.notified() => {}
            taken = take(from, read, wants, room.unwrap_or(0)), if room.is_some_and(|room| room > 0) => {
                match taken {
                    Ok(bytes) if bytes.is_empty() => shared.flow().end(),
                    Ok(bytes) => shared.flow().take(bytes),
                    Err(error) => return Left::Broken(error),
                }
            }
            _ = ping.tick(), if is_tcp => {
                if let Err(error) = writer.push(Kind::Ping, b"") {
                    return Left::Lost(error);
                }
            }
        }
    }
}

/// Puts what there is to say together, up to a limit; true when all is said and done.
fn push_all(shared: &Shared, writer: &mut Writer) -> Result<bool> {
    if let Some(meeting) = shared.saying().take() {
        writer.push(Kind::Move, &meeting.encode()?)?;
    }
    let mut flow = shared.flow();
    if let Some(ack) = flow.next_ack() {
        writer.push(Kind::Ack, &ack.encode())?;
    }
    while writer.pushed() < SEND_BYTES
        && let Some(bytes) = flow.next_data()
    {
        writer.push(Kind::Data, &bytes)?;
    }
    if let Some(total) = flow.next_end() {
        writer.push(Kind::End, &total.to_be_bytes())?;
    } else if flow.has_data() {
        shared.send.notify_one();
    }
    Ok(flow.is_done())
}

/// Reads of the service, at most `room` bytes; nothing is its end.
async fn take(
    from: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
    wants: &mut usize,
    room: usize,
) -> Result<Bytes> {
    if read.capacity() < READ_LEAST_BYTES {
        read.reserve(*wants);
    }
    let fits = room.min(read.capacity());
    let count = from.read_buf(&mut (&mut *read).limit(fits)).await?;
    // Much comes in large reads; an idle tunnel keeps little.
    *wants = if count == fits { READ_MOST_BYTES } else { READ_BYTES };
    Ok(read.split_to(count).freeze())
}

/// Hears what the other side says.
async fn hear(shared: &Shared, reader: &mut Reader, meet: &mpsc::Sender<Meeting>, is_tcp: bool) -> Left {
    let mut look = interval(PING_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            biased;
            frame = reader.next() => frame,
            _ = look.tick(), if is_tcp => {
                if reader.silence() > SILENCE_MOST {
                    return Left::Lost(Error::new(ErrorKind::TimedOut, "the other side fell silent"));
                }
                continue;
            }
        };
        match frame {
            Ok(Some(frame)) => {
                if let Err(left) = hear_frame(shared, frame, meet) {
                    return left;
                }
            }
            // The other side is done; we soon are.
            Ok(None) if shared.flow().is_settled() => return std::future::pending().await,
            Ok(None) => return Left::Lost(ErrorKind::UnexpectedEof.into()),
            Err(error) => return Left::Lost(error),
        }
    }
}

fn hear_frame(shared: &Shared, frame: Frame, meet: &mpsc::Sender<Meeting>) -> std::result::Result<(), Left> {
    let wrong = |what| Left::Broken(malformed(what));
    match frame.kind {
        Kind::Data => {
            let mut flow = shared.flow();
            flow.hear_data(frame.body).map_err(impossible)?;
            drop(flow);
            shared.give.notify_one();
        }
        Kind::Ack => {
            let ack = Ack::decode(&frame.body).ok_or_else(|| wrong("a receipt"))?;
            shared.flow().hear_ack(ack).map_err(impossible)?;
            shared.send.notify_one();
        }
        Kind::End => {
            let total = <[u8; 8]>::try_from(&frame.body[..]).map_err(|_| wrong("an end"))?;
            shared.flow().hear_end(u64::from_be_bytes(total)).map_err(impossible)?;
            shared.give.notify_one();
            shared.send.notify_one();
        }
        Kind::Reset => {
            let reason = String::from_utf8_lossy(&frame.body).into_owned();
            return Err(Left::Broken(Error::new(ErrorKind::ConnectionReset, reason)));
        }
        Kind::Move => {
            let meeting = Meeting::decode(&frame.body).ok_or_else(|| wrong("a meeting"))?;
            // One at a time; of more than that the client hears nothing and stays where it is.
            let _ = meet.try_send(meeting);
        }
        Kind::Ping => {}
        Kind::Hello => return Err(wrong("a greeting in the middle")),
    }
    Ok(())
}

/// Gives to the service what came, and its end.
async fn give<S: AsyncRead + AsyncWrite>(shared: &Shared, to: &mut WriteHalf<S>) -> Left {
    loop {
        let (front, wants_end) = {
            let flow = shared.flow();
            (flow.front(), flow.wants_end())
        };
        let given = match front {
            Some(bytes) => match to.write(bytes.chunk()).await {
                Ok(0) => Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let mut flow = shared.flow();
                    flow.give(count);
                    if flow.is_ack_due() {
                        shared.send.notify_one();
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
            None if wants_end => {
                let ended = to.shutdown().await;
                shared.flow().give_end();
                shared.send.notify_one();
                ended
            }
            None => {
                let flushed = to.flush().await;
                shared.give.notified().await;
                flushed
            }
        };
        if let Err(error) = given {
            return Left::Broken(error);
        }
    }
}

/// Waits until there is a better way: through a relay, that the client came back on, or back from a relay.
async fn next_carrier(
    shared: &Shared,
    side: &mut Side,
    pooled: Option<&super::Pooled>,
    mut meetings: mpsc::Receiver<Meeting>,
    is_tcp: bool,
) -> Left {
    match side {
        Side::Client { promoter, .. } if !is_tcp => {
            let say = |meeting| {
                *shared.saying() = Some(meeting);
                shared.send.notify_one();
            };
            Left::Moved(Box::new(promoter.promote(pooled, || shared.flow().bytes(), say).await))
        }
        Side::Client { promoter, .. } => {
            promoter.regret(|| shared.flow().bytes()).await;
            Left::Lost(Error::other("the way through the relay is the slower one"))
        }
        Side::Server { node, entered } => loop {
            tokio::select! {
                Some(carrier) = entered.offers.recv() => return Left::Moved(Box::new(carrier)),
                Some(meeting) = meetings.recv() => {
                    let (node, offer) = (node.clone(), entered.offer.clone());
                    tokio::spawn(async move {
                        match meeting.come(&node).await {
                            Ok(carrier) => _ = offer.send(carrier).await,
                            Err(error) => tracing::debug!(%error, "no meeting at a relay"),
                        }
                    });
                }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Shutdown};

    use tokio::{
        io::{DuplexStream, duplex},
        net::{TcpListener, TcpStream},
        task::JoinHandle,
    };

    use super::*;
    use crate::{EndpointKey, NodeConfig};

    const PEER: EndpointId = EndpointId([9; 32]);

    /// One end of a session that waits for carriers, and its service.
    struct Place {
        sessions: Sessions,
        service: Option<DuplexStream>,
        running: JoinHandle<Result<()>>,
    }

    async fn place(carrier: Carrier) -> Place {
        let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let key = EndpointKey::generate().unwrap();
        let node = Node::bind(&key, NodeConfig { bind, ..NodeConfig::default() });
        let (node, sessions) = (node.await.unwrap(), Sessions::default());
        let entered = sessions.enter(SessionId([1; 16]), PEER).unwrap();
        let (service, inner) = duplex(10_000);
        let (_never, aborted) = oneshot::channel();
        let running = tokio::spawn(run(Side::Server { node, entered }, carrier, inner, aborted));
        Place { sessions, service: Some(service), running }
    }

    impl Place {
        async fn offer(&self, carrier: Carrier) {
            if let Known::Open(offer) = self.sessions.find(SessionId([1; 16]), PEER) {
                let _ = offer.send(carrier).await;
            }
        }
    }

    /// Two ends of a carrier, and what cuts it.
    async fn carriers() -> (Carrier, Carrier, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        dialled.set_nonblocking(true).unwrap();
        let cut = dialled.try_clone().unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let dialled = TcpStream::from_std(dialled).unwrap();
        let secret = [5; 32];
        (Carrier::tcp(dialled, &secret, true).unwrap(), Carrier::tcp(accepted, &secret, false).unwrap(), cut)
    }

    /// Says `length` bytes and hears what the other says; how much it heard, if it was right.
    async fn talk(service: DuplexStream, length: usize) -> usize {
        let (mut from, mut to) = split(service);
        let byte = |at: usize| u8::try_from(at * 31 % 253).unwrap();
        let saying = async {
            let text: Vec<u8> = (0..length).map(byte).collect();
            for piece in text.chunks(7001) {
                to.write_all(piece).await.unwrap();
            }
            to.shutdown().await.unwrap();
        };
        let hearing = async {
            let mut heard = Vec::new();
            from.read_to_end(&mut heard).await.unwrap();
            assert!(heard.iter().enumerate().all(|(at, is)| *is == byte(at)));
            heard.len()
        };
        tokio::join!(saying, hearing).1
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_session_goes_on_over_any_number_of_carriers() {
        let (ours, theirs, mut cut) = carriers().await;
        let (mut a, mut b) = (place(ours).await, place(theirs).await);
        let (of_a, of_b) = (a.service.take().unwrap(), b.service.take().unwrap());
        let mut talking = tokio::spawn(async { tokio::join!(talk(of_a, 9_000_000), talk(of_b, 4_000_000)) });
        let mut cuts = 0;
        let heard = loop {
            let pause = Duration::from_millis(5);
            match timeout(pause, &mut talking).await {
                Ok(heard) => break heard.unwrap(),
                // Some are cut, some are left for another that is at hand.
                Err(_) if cuts % 2 == 0 => cut.shutdown(Shutdown::Both).unwrap_or_default(),
                Err(_) => {}
            }
            cuts += 1;
            let (ours, theirs, next) = carriers().await;
            tokio::join!(a.offer(ours), b.offer(theirs));
            cut = next;
        };
        assert_eq!(heard, (4_000_000, 9_000_000));
        assert!(cuts > 3, "{cuts}");
        drop(cut);
        // A last word that was cut off is no loss: both services have everything.
        a.running.abort();
        b.running.abort();
    }

    #[tokio::test]
    async fn another_peer_s_session_is_not_found_and_no_name_is_taken_twice() {
        let sessions = Sessions::default();
        let [id, other] = [SessionId([1; 16]), SessionId([2; 16])];
        let stranger = EndpointId([8; 32]);
        let entered = sessions.enter(id, PEER).unwrap();
        assert!(matches!(sessions.find(id, stranger), Known::Unknown));
        assert!(sessions.enter(id, stranger).is_none());
        assert!(matches!(sessions.find(id, PEER), Known::Open(_)));
        entered.finish();
        assert!(matches!(sessions.find(id, PEER), Known::Done));
        assert!(matches!(sessions.find(id, stranger), Known::Unknown));
        drop(sessions.enter(other, PEER));
        assert!(matches!(sessions.find(other, PEER), Known::Unknown), "broken");
    }
}
