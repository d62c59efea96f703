//! A public UDP port: each sender has a tunnel of its own, on which datagrams are framed.
//!
//! A datagram on a tunnel is its length as two bytes, the higher first, and then its bytes. Always holds: senders are
//! bounded, and forgotten when nothing passed either way for two minutes; what cannot be carried at once is dropped, as
//! networks do. Not here: the member's side.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ionet_domain::account::ActivityKind;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::listen::pause_after;
use super::raw::Target;
use super::{Coming, Gateway};

/// A sender is forgotten after so long without a datagram either way.
const IDLE_LIMIT: Duration = Duration::from_mins(2);
/// Datagrams of one sender that may wait for the tunnel.
const WAITING_MOST: usize = 64;
/// The longest there is.
const DATAGRAM_BYTES: usize = 65_535;

impl Gateway {
    pub(super) async fn datagrams(self, socket: UdpSocket, target: Target) {
        let socket = Arc::new(socket);
        let mut senders: BTreeMap<SocketAddr, mpsc::Sender<Bytes>> = BTreeMap::new();
        let mut going = JoinSet::new();
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let (len, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            while going.try_join_next().is_some() {}
            let datagram = Bytes::copy_from_slice(&buffer[..len]);
            let known = senders.get(&from).filter(|sender| !sender.is_closed());
            if let Some(sender) = known {
                // Full: dropped.
                let _ = sender.try_send(datagram);
                continue;
            }
            senders.retain(|_, sender| !sender.is_closed());
            if senders.len() >= self.apps.config.limits.udp_sources {
                continue;
            }
            let (sender, inbox) = mpsc::channel(WAITING_MOST);
            let _ = sender.try_send(datagram);
            senders.insert(from, sender);
            going.spawn(self.clone().sender(socket.clone(), from, target, inbox));
        }
    }

    async fn sender(
        self,
        socket: Arc<UdpSocket>,
        from: SocketAddr,
        target: Target,
        inbox: mpsc::Receiver<Bytes>,
    ) {
        let Ok(mut going) = self.apps.live.begin(target.pass(), self.now_ms()) else { return };
        let service = target.exposure.service().to_string();
        self.note(
            ActivityKind::ServiceReached,
            target.owner,
            target.order,
            &service,
            Coming { from, account: None },
        );
        let carrying = async {
            match self.open(target.order, &target.exposure).await {
                Ok(service) => carry(service, &socket, from, inbox).await,
                Err(trouble) => Err(io::Error::other(trouble.to_string())),
            }
        };
        let ended = tokio::select! {
            ended = carrying => ended,
            () = going.cut() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%from, order = %target.order, %error, "a sender of datagrams was let go");
        }
    }
}

/// Carries both ways until nothing moved for a while, or one side ends.
async fn carry(
    service: impl AsyncRead + AsyncWrite,
    socket: &UdpSocket,
    from: SocketAddr,
    mut inbox: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    let (mut incoming, mut outgoing) = tokio::io::split(service);
    let (told, mut moved) = mpsc::channel::<()>(1);
    let out = async {
        while let Some(datagram) = inbox.recv().await {
            write_datagram(&mut outgoing, &datagram).await?;
            let _ = told.try_send(());
        }
        Ok(())
    };
    let back = async {
        let mut buffer = Vec::new();
        while read_datagram(&mut incoming, &mut buffer).await? {
            socket.send_to(&buffer, from).await?;
            let _ = told.try_send(());
        }
        Ok(())
    };
    let idle = async { while timeout(IDLE_LIMIT, moved.recv()).await.is_ok() {} };
    tokio::select! {
        ended = out => ended,
        ended = back => ended,
        () = idle => Ok(()),
    }
}

async fn write_datagram(to: &mut (impl AsyncWrite + Unpin), datagram: &[u8]) -> io::Result<()> {
    let Ok(len) = u16::try_from(datagram.len()) else { return Ok(()) };
    let framed = [&len.to_be_bytes(), datagram].concat();
    to.write_all(&framed).await?;
    to.flush().await
}

/// The next datagram; `false` at the end of the stream.
async fn read_datagram(from: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> io::Result<bool> {
    let len = match from.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        len => len?,
    };
    into.resize(usize::from(len), 0);
    from.read_exact(into).await.map(|_| true)
}
