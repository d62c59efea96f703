//! Datagrams over a tunnel's stream: a big-endian `u16` length and that many bytes each.
//!
//! Always holds: a datagram is whole or not there; where the other side is too slow, datagrams are dropped, not kept; a
//! flow that is silent in both directions for two minutes ends. Not here: streams and who may open them.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex},
    net::UdpSocket,
    sync::mpsc,
    time::Instant,
};

use super::{LocalForward, TunnelRequest, open};
use crate::{NetError, Node, NodeAddr};

const SILENCE: Duration = Duration::from_mins(2);
const LARGEST_BYTES: usize = u16::MAX as usize;
/// Room for a few of the largest.
const BUFFER_BYTES: usize = 256 << 10;
/// Datagrams that wait for their stream.
const WAITING: usize = 256;
/// Source addresses at once.
const FLOWS: usize = 256;

/// The stream form of a connected socket's datagrams. Ends after two minutes of silence.
pub fn datagrams(socket: UdpSocket) -> DuplexStream {
    let (ours, theirs) = duplex(BUFFER_BYTES);
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(ours);
        let heard = Heard::new();
        let out = async {
            let mut datagram = vec![0; LARGEST_BYTES];
            while let Ok(length) = read_datagram(&mut from, &mut datagram).await {
                heard.now();
                // A port that nobody serves, or a full queue: datagrams get lost.
                let _ = socket.send(&datagram[..length]).await;
            }
        };
        let back = async {
            let mut datagram = vec![0; LARGEST_BYTES];
            loop {
                // An answer that nobody serves the port is no end: somebody may do so later.
                let Ok(length) = socket.recv(&mut datagram).await else { continue };
                heard.now();
                if write_datagram(&mut to, &datagram[..length]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = out => {}
            () = back => {}
            () = heard.silence() => {}
        }
    });
    theirs
}

/// When something last passed.
struct Heard(Mutex<Instant>);

impl Heard {
    fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Comes back when nothing has passed for long.
    async fn silence(&self) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + SILENCE;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

async fn read_datagram(from: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> io::Result<usize> {
    let length = usize::from(from.read_u16().await?);
    let room = into.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
    from.read_exact(room).await?;
    Ok(length)
}

async fn write_datagram(to: &mut (impl AsyncWrite + Unpin), datagram: &[u8]) -> io::Result<()> {
    let length = u16::try_from(datagram.len()).map_err(io::Error::other)?;
    to.write_u16(length).await?;
    to.write_all(datagram).await?;
    to.flush().await
}

/// Listens for datagrams on 127.0.0.1 at `local_port` (0 takes a free one) and opens a stream for each source address.
/// `route` is asked as by [`super::forward_local`].
///
/// # Errors
/// If the port is taken.
pub async fn forward_local_udp<R, F>(node: &Node, local_port: u16, route: R) -> Result<LocalForward, NetError>
where
    R: Fn(bool) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(NodeAddr, TunnelRequest), NetError>> + Send + 'static,
{
    let bind = || NetError::io(format!("listen on 127.0.0.1:{local_port}"));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, local_port)).await.map_err(bind())?;
    let local_addr = socket.local_addr().map_err(bind())?;
    let last_error = Arc::new(Mutex::new(None));
    let flows = Flows {
        node: node.clone(),
        route: Arc::new(route),
        socket: Arc::new(socket),
        last_error: Arc::clone(&last_error),
    };
    let accepting = tokio::spawn(flows.serve());
    Ok(LocalForward { local_addr, accepting, last_error })
}

struct Flows<R> {
    node: Node,
    route: Arc<R>,
    socket: Arc<UdpSocket>,
    last_error: Arc<Mutex<Option<String>>>,
}

impl<R> Clone for Flows<R> {
    fn clone(&self) -> Self {
        Self {
            node: self.node.clone(),
            route: Arc::clone(&self.route),
            socket: Arc::clone(&self.socket),
            last_error: Arc::clone(&self.last_error),
        }
    }
}

impl<R, F> Flows<R>
where
    R: Fn(bool) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(NodeAddr, TunnelRequest), NetError>> + Send + 'static,
{
    async fn serve(self) {
        let mut known: BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
        // The flows end with this.
        let mut running = tokio::task::JoinSet::new();
        let mut datagram = vec![0; LARGEST_BYTES];
        loop {
            let Ok((length, from)) = self.socket.recv_from(&mut datagram).await else { continue };
            while running.try_join_next().is_some() {}
            known.retain(|_, flow| !flow.is_closed());
            if !known.contains_key(&from) {
                if known.len() >= FLOWS {
                    continue;
                }
                let (tell, waiting) = mpsc::channel(WAITING);
                running.spawn(self.clone().flow(from, waiting));
                known.insert(from, tell);
            }
            if let Some(flow) = known.get(&from) {
                // One that is too slow loses datagrams.
                let _ = flow.try_send(datagram[..length].to_vec());
            }
        }
    }

    async fn flow(self, from: SocketAddr, waiting: mpsc::Receiver<Vec<u8>>) {
        if let Err(error) = self.carry(from, waiting).await {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }

    async fn carry(&self, from: SocketAddr, mut waiting: mpsc::Receiver<Vec<u8>>) -> Result<(), NetError> {
        let reach = async |again| {
            let (addr, request) = (self.route)(again).await?;
            open(&self.node, &addr, &request).await
        };
        let stream = match reach(false).await {
            Err(_) => reach(true).await,
            stream => stream,
        }?;
        let (mut receive, mut send) = tokio::io::split(stream);
        let there = async {
            while let Some(datagram) = waiting.recv().await {
                if write_datagram(&mut send, &datagram).await.is_err() {
                    return;
                }
            }
        };
        let back = async {
            let mut datagram = vec![0; LARGEST_BYTES];
            while let Ok(length) = read_datagram(&mut receive, &mut datagram).await {
                let _ = self.socket.send_to(&datagram[..length], from).await;
            }
        };
        // The far side sees both directions and ends the flow when both are silent.
        tokio::select! {
            () = there => {}
            () = back => {}
        }
        let _ = send.shutdown().await;
        Ok(())
    }
}
