//! Two TCP connections made one: how long tunnels pass a relay.
//!
//! Each end connects, says who it is and by which token it is to be found, and hears a yes once the other is there too. From
//! then on the kernel moves bytes from one socket to the other; they are sealed between the ends, and never in this
//! process's memory. A connection that carries nothing has two sockets and no buffer.
//!
//! The greeting is `ionet-splice-1\n`, the endpoint id (32 bytes), the token (16), and the endpoint key's Ed25519
//! signature (64) of the same greeting, the relay's id, and the token. The answer is one byte.
//!
//! Always holds: only who is admitted is let in, few wait at once and not for long, one end cannot hold many. Not here:
//! what the bytes are (`crate::tunnel`).

use std::{
    collections::HashMap,
    io::{Error, ErrorKind, Result},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use iroh::{PublicKey, Signature};
use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::{Admit, RelayInfo, failed, forwarder_id};
use crate::{EndpointId, NetError, Node};

/// By what two ends find each other: random, of use once.
pub(crate) type Token = [u8; 16];

const GREETING: &[u8] = b"ionet-splice-1\n";
const HELLO_BYTES: usize = GREETING.len() + 32 + 16 + 64;
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// How long one end waits for the other.
const MEET_WAIT: Duration = Duration::from_secs(10);
/// After an error, such as too many open files.
const BACK_OFF: Duration = Duration::from_millis(100);
const YES: u8 = 1;
const NOT_ADMITTED: u8 = 2;
const BUSY: u8 = 3;

const GREETING_MOST: usize = 512;
const WAITING_MOST: usize = 4096;
const WAITING_OF_ONE_MOST: usize = 256;
const PAIRS_MOST: u64 = 20_000;
const PIPE_BYTES: usize = 256 << 10;
const PIPES_KEPT: usize = 64;

/// Connects this end with the one that comes, or waits, with the same token.
pub(crate) async fn join(
    mut stream: TcpStream,
    relay: &RelayInfo,
    node: &Node,
    token: &Token,
) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    let signature = node.sign(&signed(&forwarder_id(&relay.ca_der), token));
    let hello = [GREETING, &node.id().0, token, &signature].concat();
    stream.write_all(&hello).await?;
    match stream.read_u8().await? {
        YES => Ok(stream),
        NOT_ADMITTED => Err(Error::new(ErrorKind::PermissionDenied, "the relay does not admit this key")),
        _ => Err(Error::other("the relay has no room")),
    }
}

fn signed(relay: &[u8; 32], token: &Token) -> Vec<u8> {
    [GREETING, relay, token].concat()
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Pairs that stand now.
    pub(crate) pairs: AtomicU64,
    /// Ends that wait now.
    pub(crate) waiting: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// Splices while it lives.
#[derive(Debug)]
pub(crate) struct Splicer {
    port: u16,
    counters: Arc<Counters>,
    accepting: JoinHandle<()>,
}

impl Drop for Splicer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Splicer {
    pub(crate) async fn start(
        at: (IpAddr, u16),
        relay: [u8; 32],
        admit: Admit,
    ) -> std::result::Result<Self, NetError> {
        let listener = TcpListener::bind(SocketAddr::from(at)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let counters = Arc::new(Counters::default());
        let shared = Shared {
            relay,
            admit,
            waiting: Mutex::default(),
            greeting: tokio::sync::Semaphore::new(GREETING_MOST),
            pipes: Mutex::default(),
            counters: counters.clone(),
        };
        Ok(Self { port, counters, accepting: tokio::spawn(accept_all(listener, Arc::new(shared))) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

struct Shared {
    relay: [u8; 32],
    admit: Admit,
    waiting: Mutex<HashMap<Token, Waiting>>,
    greeting: tokio::sync::Semaphore,
    pipes: Mutex<Vec<Pipe>>,
    counters: Arc<Counters>,
}

/// The end that came first; its connection goes to the one that comes second.
struct Waiting {
    who: EndpointId,
    other: oneshot::Sender<TcpStream>,
}

/// A pipe, empty whenever nobody uses it.
struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
}

async fn accept_all(listener: TcpListener, shared: Arc<Shared>) {
    // Whoever splices ends with the splicer.
    let mut serving = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = shared.clone();
                    serving.spawn(async move {
                        if let Err(error) = serve(&shared, stream).await {
                            tracing::debug!(%error, "a spliced connection ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to splice");
                    tokio::time::sleep(BACK_OFF).await;
                }
            },
            Some(_) = serving.join_next() => {}
        }
    }
}

async fn serve(shared: &Arc<Shared>, mut stream: TcpStream) -> Result<()> {
    let Ok(place) = shared.greeting.try_acquire() else {
        return refuse(shared, stream, BUSY).await;
    };
    let hello = timeout(HELLO_WAIT, read_hello(shared, &mut stream)).await??;
    drop(place);
    let Some((who, token)) = hello else { return refuse(shared, stream, NOT_ADMITTED).await };
    stream.set_nodelay(true)?;
    let (other, comes) = oneshot::channel();
    match enter(shared, who, token, other) {
        Entered::First => {
            let waited = timeout(MEET_WAIT, until_met(comes, &mut stream)).await;
            leave(shared, &token);
            let theirs = waited??;
            pair(shared, stream, theirs).await
        }
        // The first one's task does the rest.
        Entered::Second(first) => first.send(stream).map_err(|_| Error::other("the other end is gone")),
        Entered::Full => refuse(shared, stream, BUSY).await,
    }
}

/// Who comes, and by which token, if he is who he says and may come.
async fn read_hello(shared: &Shared, stream: &mut TcpStream) -> Result<Option<(EndpointId, Token)>> {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    let parse = || {
        let rest = hello.strip_prefix(GREETING)?;
        let (who, rest) = rest.split_first_chunk::<32>()?;
        let (token, signature) = rest.split_first_chunk::<16>()?;
        let signature = Signature::from_bytes(signature.try_into().ok()?);
        let key = PublicKey::from_bytes(who).ok()?;
        key.verify(&signed(&shared.relay, token), &signature).ok()?;
        let who = EndpointId(*who);
        (shared.admit)(who).then_some((who, *token))
    };
    Ok(parse())
}

async fn refuse(shared: &Shared, mut stream: TcpStream, why: u8) -> Result<()> {
    shared.counters.refused.fetch_add(1, Ordering::Relaxed);
    stream.write_u8(why).await
}

enum Entered {
    First,
    Second(oneshot::Sender<TcpStream>),
    Full,
}

fn enter(shared: &Shared, who: EndpointId, token: Token, other: oneshot::Sender<TcpStream>) -> Entered {
    let mut waiting = lock(&shared.waiting);
    if let Some(first) = waiting.remove(&token) {
        return Entered::Second(first.other);
    }
    let own = waiting.values().filter(|waiting| waiting.who == who).count();
    let pairs = shared.counters.pairs.load(Ordering::Relaxed);
    if waiting.len() >= WAITING_MOST || own >= WAITING_OF_ONE_MOST || pairs >= PAIRS_MOST {
        return Entered::Full;
    }
    waiting.insert(token, Waiting { who, other });
    shared.counters.waiting.store(waiting.len() as u64, Ordering::Relaxed);
    Entered::First
}

fn leave(shared: &Shared, token: &Token) {
    let mut waiting = lock(&shared.waiting);
    waiting.remove(token);
    shared.counters.waiting.store(waiting.len() as u64, Ordering::Relaxed);
}

/// The other end's connection; an error when this one goes away, or speaks, before there is anybody to hear it.
async fn until_met(comes: oneshot::Receiver<TcpStream>, stream: &mut TcpStream) -> Result<TcpStream> {
    let mut byte = [0];
    tokio::select! {
        theirs = comes => theirs.map_err(|_| ErrorKind::NotConnected.into()),
        // Asked of the socket itself: that it was readable once says nothing of now.
        _ = stream.peek(&mut byte) => Err(Error::other("an end left before the other came")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a pair while it lives.
struct Counted<'a>(&'a Counters);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.pairs.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells both that they have met, then moves bytes both ways until both directions ended.
async fn pair(shared: &Shared, mut one: TcpStream, mut other: TcpStream) -> Result<()> {
    shared.counters.pairs.fetch_add(1, Ordering::Relaxed);
    let _counted = Counted(&shared.counters);
    one.write_u8(YES).await?;
    other.write_u8(YES).await?;
    tokio::try_join!(forward(shared, &one, &other), forward(shared, &other, &one))?;
    Ok(())
}

/// Moves bytes from one socket to the other until the first ends, then ends the second.
async fn forward(shared: &Shared, from: &TcpStream, to: &TcpStream) -> Result<()> {
    loop {
        from.readable().await?;
        let pipe = Pipe::of(shared)?;
        // A pipe that was left with something in it is dropped with it.
        if pipe.pass(shared, from, to).await? == 0 {
            pipe.give_back(shared);
            rustix::net::shutdown(to, rustix::net::Shutdown::Write)?;
            return Ok(());
        }
        pipe.give_back(shared);
    }
}

impl Pipe {
    fn of(shared: &Shared) -> Result<Self> {
        if let Some(pipe) = lock(&shared.pipes).pop() {
            return Ok(pipe);
        }
        let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // More than the usual size saves calls; a user's share of large pipes may be used up.
        let _ = fcntl_setpipe_size(&to, PIPE_BYTES);
        Ok(Self { from, to })
    }

    fn give_back(self, shared: &Shared) {
        let mut kept = lock(&shared.pipes);
        if kept.len() < PIPES_KEPT {
            kept.push(self);
        }
    }

    /// Moves what is there now; how much that was, 0 at the end.
    async fn pass(&self, shared: &Shared, from: &TcpStream, to: &TcpStream) -> Result<usize> {
        let count = loop {
            match from.try_io(Interest::READABLE, || move_bytes(from, &self.to, PIPE_BYTES)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => from.readable().await?,
                count => break count?,
            }
        };
        let mut left = count;
        while left > 0 {
            match to.try_io(Interest::WRITABLE, || move_bytes(&self.from, to, left)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => to.writable().await?,
                moved => left -= moved?,
            }
        }
        shared.counters.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

fn move_bytes(from: impl AsFd, to: impl AsFd, most: usize) -> Result<usize> {
    loop {
        match splice(&from, None, &to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
            Err(Errno::INTR) => {}
            moved => return moved.map_err(Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{EndpointKey, NodeConfig};

    const RELAY: [u8; 32] = [3; 32];

    async fn splicer() -> Splicer {
        let admit: Admit = Arc::new(|id| id != EndpointKey::from_seed([2; 32]).id());
        Splicer::start((Ipv4Addr::LOCALHOST.into(), 0), RELAY, admit).await.unwrap()
    }

    fn hello(seed: u8, relay: [u8; 32], token: Token) -> Vec<u8> {
        let key = EndpointKey::from_seed([seed; 32]);
        let signature = key.secret().sign(&signed(&relay, &token)).to_bytes();
        [GREETING, &key.id().0, &token, &signature].concat()
    }

    async fn say(splicer: &Splicer, hello: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", splicer.port())).await.unwrap();
        stream.write_all(hello).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn two_with_one_token_are_one_connection_with_an_end_in_each_direction() {
        let splicer = splicer().await;
        let mut a = say(&splicer, &hello(1, RELAY, [7; 16])).await;
        let mut b = say(&splicer, &hello(4, RELAY, [7; 16])).await;
        assert_eq!((a.read_u8().await.unwrap(), b.read_u8().await.unwrap()), (YES, YES));
        let much = vec![6; 3_000_000];
        let sending = async {
            a.write_all(&much).await.unwrap();
            a.shutdown().await.unwrap();
        };
        let mut heard = Vec::new();
        tokio::join!(sending, async { b.read_to_end(&mut heard).await.unwrap() });
        assert!(heard == much);
        b.write_all(b"and back").await.unwrap();
        drop(b);
        let mut back = String::new();
        a.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "and back");
        assert_eq!(splicer.counters().bytes.load(Ordering::Relaxed), 3_000_008);
    }

    #[tokio::test]
    async fn strangers_and_forgeries_are_refused() {
        let splicer = splicer().await;
        let mut spoiled = hello(1, RELAY, [7; 16]);
        spoiled[GREETING.len() + 40] ^= 1;
        let other_relay = hello(1, [4; 32], [7; 16]);
        for hello in [hello(2, RELAY, [7; 16]), spoiled, other_relay, vec![0; HELLO_BYTES]] {
            let mut stream = say(&splicer, &hello).await;
            assert_eq!(stream.read_u8().await.unwrap(), NOT_ADMITTED);
        }
        assert_eq!(splicer.counters().refused.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn who_leaves_before_the_other_came_is_not_met() {
        let splicer = splicer().await;
        let waiting = || splicer.counters().waiting.load(Ordering::Relaxed);
        drop(say(&splicer, &hello(1, RELAY, [7; 16])).await);
        let mut other = say(&splicer, &hello(4, RELAY, [8; 16])).await;
        // The first has gone and the second waits: nobody is where the first was.
        let mut look = tokio::time::interval(Duration::from_millis(2));
        while waiting() != 1 {
            look.tick().await;
        }
        let mut late = say(&splicer, &hello(4, RELAY, [7; 16])).await;
        while waiting() != 2 {
            look.tick().await;
        }
        let mut met = say(&splicer, &hello(1, RELAY, [8; 16])).await;
        assert_eq!((met.read_u8().await.unwrap(), other.read_u8().await.unwrap()), (YES, YES));
        drop(splicer);
        assert!(!matches!(late.read_u8().await, Ok(YES)));
    }

    #[tokio::test]
    async fn one_end_cannot_wait_in_every_place() {
        let splicer = splicer().await;
        let mut all = Vec::new();
        for number in 0..=WAITING_OF_ONE_MOST {
            let mut token = [0; 16];
            token[..8].copy_from_slice(&(number as u64).to_be_bytes());
            all.push(say(&splicer, &hello(1, RELAY, token)).await);
        }
        let mut look = tokio::time::interval(Duration::from_millis(2));
        while splicer.counters().refused.load(Ordering::Relaxed) == 0 {
            look.tick().await;
        }
        assert_eq!(splicer.counters().waiting.load(Ordering::Relaxed), WAITING_OF_ONE_MOST as u64);
    }

    #[tokio::test]
    async fn a_client_hears_what_the_relay_says() {
        let splicer = splicer().await;
        let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let key = EndpointKey::from_seed([2; 32]);
        let node = Node::bind(&key, NodeConfig { bind, ..NodeConfig::default() });
        let node = node.await.unwrap();
        let relay = RelayInfo {
            url: format!("https://127.0.0.1:{}", splicer.port()),
            ca_der: b"another".to_vec(),
            quic_port: 0,
            forwarder: None,
            region: None,
            measure: None,
        };
        let stream = TcpStream::connect(("127.0.0.1", splicer.port())).await.unwrap();
        let error = join(stream, &relay, &node, &[7; 16]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
}
