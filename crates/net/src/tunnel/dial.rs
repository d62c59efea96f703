//! The client's way to a server, first and again: a stream on the pooled connection, and what is asked on it.

use std::{
    io::{Error, ErrorKind},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use iroh::endpoint::{RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    Answer, HEADER_LIMIT_BYTES, Pooled, TunnelRequest,
    carrier::Carrier,
    session::{Found, SessionId},
};
use crate::{
    NetError, Node, NodeAddr,
    frame::{read_frame, write_frame},
    node::explain_end,
};

const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// One try to find a server again.
const TRY_MOST: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(2);
/// The server's word for a session that it had, to its good end.
pub(super) const SESSION_DONE: &str = "session_done";
/// And for one that it does not have.
pub(super) const NO_SUCH_SESSION: &str = "no_such_session";

/// The first frame of a stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// A new session with a service.
    Open { session: SessionId, request: TunnelRequest },
    /// To go on with a session whose carrier was lost.
    Resume { session: SessionId },
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId(..)")
    }
}

/// Asks where the server is now; `true` when the answer before led nowhere.
pub(super) type Whereabouts = Arc<dyn Fn(bool) -> AddrFuture + Send + Sync>;
type AddrFuture = Pin<Box<dyn Future<Output = Result<NodeAddr, NetError>> + Send>>;

/// A stream that the server said yes to.
pub(super) struct Dialled {
    pub(super) carrier: Carrier,
    pub(super) note: Option<String>,
}

/// Opens a stream and asks on it.
pub(super) async fn ask(node: &Node, addr: &NodeAddr, what: &Ask) -> Result<Dialled, NetError> {
    let pooled = node.tunnels().connection(node, addr).await?;
    let asking = async {
        let (mut send, mut receive) = pooled.connection.open_bi().await.map_err(NetError::closed)?;
        write_frame(&mut send, &encode(what)?, HEADER_LIMIT_BYTES).await?;
        let answer = read_frame(&mut receive, HEADER_LIMIT_BYTES).await?;
        Ok::<(SendStream, RecvStream, Vec<u8>), NetError>((send, receive, answer))
    };
    let (send, receive, answer) = match timeout(ANSWER_WAIT, asking).await {
        Ok(Ok(parts)) => parts,
        Ok(Err(error @ NetError::FrameTooLarge { .. })) => return Err(error),
        Ok(Err(error)) => return Err(explain_end(&pooled.connection, error)),
        Err(_) => return Err(NetError::closed("the other side does not answer")),
    };
    match decode::<Answer>(&answer)? {
        Ok(told) => Ok(Dialled { carrier: Carrier::quic(send, receive, Some(pooled)), note: told }),
        Err(super::Refused { code, message }) => Err(NetError::Refused { code, message }),
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, NetError> {
    serde_json::to_vec(value).map_err(|_| NetError::Malformed { what: "the tunnel's header".into() })
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, NetError> {
    serde_json::from_slice(bytes).map_err(|_| NetError::Malformed { what: "the tunnel's header".into() })
}

/// Finds a session's server again.
pub(super) struct Dialler {
    pub(super) node: Node,
    pub(super) session: SessionId,
    pub(super) whereabouts: Whereabouts,
}

impl Dialler {
    /// Tries until it is found, it says that it does not know the session, or `most` is over.
    pub(super) async fn resume(&self, most: Duration) -> Result<Found, Error> {
        let until = Instant::now() + most;
        let (mut pause, mut is_again) = (PAUSE, false);
        loop {
            let error = match timeout(TRY_MOST, self.try_once(is_again)).await {
                Ok(Ok(carrier)) => return Ok(Found::Carrier(Box::new(carrier))),
                Ok(Err(NetError::Refused { code, .. })) if code == SESSION_DONE => return Ok(Found::Done),
                Ok(Err(NetError::Refused { code, message })) if code == NO_SUCH_SESSION => {
                    return Err(Error::new(ErrorKind::ConnectionReset, message));
                }
                Ok(Err(error)) => error,
                Err(_) => NetError::closed("the other side does not answer"),
            };
            if timeout_at(until, sleep(pause)).await.is_err() {
                return Err(Error::new(ErrorKind::TimedOut, error));
            }
            pause = PAUSE_MOST.min(2 * pause);
            is_again = true;
        }
    }

    async fn try_once(&self, is_again: bool) -> Result<Carrier, NetError> {
        let addr = (self.whereabouts)(is_again).await?;
        let dialled = ask(&self.node, &addr, &Ask::Resume { session: self.session }).await?;
        Ok(dialled.carrier)
    }
}

impl Pooled {
    /// Whether packets go straight to the other side, and how long there and back takes.
    pub(super) fn path(&self) -> Option<(bool, Duration)> {
        let paths = self.connection.paths();
        let path = paths.iter().find(iroh::endpoint::Path::is_selected)?;
        Some((path.is_ip(), path.rtt()))
    }
}
