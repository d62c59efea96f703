//! A long tunnel moves from its QUIC stream to a TCP connection through a relay, which only splices bytes.
//!
//! The kernel then does for it what QUIC does in this process, at a fraction of the time for each byte, here and at the relay.
//! The client decides; both ends dial the relay and meet there by a token; the seal's secret and the token went from one to
//! the other on the QUIC stream. Who finds the relay's way the slower one goes back, and stays for ten minutes.
//!
//! Always holds: a server dials only relays that it was told of itself. Not here: the relay (`crate::relay::splice`), how
//! a session changes carriers (`session`).

use std::{
    collections::BTreeSet,
    fmt,
    io::{Error, ErrorKind, Result},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Pooled,
    carrier::{Carrier, Secret},
};
use crate::{
    Node, RelayInfo,
    relay::splice::{self, Token},
};

/// How often it is looked whether a tunnel is worth it, while something passes and while nothing does.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_SELDOM: Duration = Duration::from_secs(4);
/// A tunnel that carries as much between two looks is a long one at once,
const BULK_BYTES: u64 = 256 << 10;
/// and one that carries this twice in a row is one too.
const STEADY_BYTES: u64 = 4 << 10;
const MEET_WAIT: Duration = Duration::from_secs(8);
/// After a meeting that failed, doubled with each.
const RETRY_AFTER: Duration = Duration::from_secs(10);
const RETRY_MOST: Duration = Duration::from_mins(10);
/// The way through the relay has so many looks to show what it can do.
const TRIAL_LOOKS: u32 = 8;

/// Where and how both ends meet.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meeting {
    /// The relay's URL: one that both know.
    relay: String,
    token: Token,
    secret: Secret,
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meeting(at {})", self.relay)
    }
}

impl Meeting {
    fn at(relay: &RelayInfo) -> Result<Self> {
        let (mut token, mut secret) = (Token::default(), Secret::default());
        getrandom::fill(&mut token).map_err(Error::from)?;
        getrandom::fill(&mut secret).map_err(Error::from)?;
        Ok(Self { relay: relay.url.clone(), token, secret })
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(Error::other)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The server's part.
    pub(super) async fn come(&self, node: &Node) -> Result<Carrier> {
        let relay = node.splicers().into_iter().find(|relay| relay.url == self.relay);
        let relay = relay.ok_or_else(|| Error::new(ErrorKind::NotFound, "a relay that is not ours"))?;
        let stream = timeout(MEET_WAIT, self.meet(node, &relay)).await??;
        Carrier::tcp(stream, &self.secret, false)
    }

    async fn meet(&self, node: &Node, relay: &RelayInfo) -> Result<TcpStream> {
        let at = relay.splicer_at().await.ok_or(ErrorKind::HostUnreachable)?;
        let stream = TcpStream::connect(at).await?;
        splice::join(stream, relay, node, &self.token).await
    }
}

/// Decides for one session, at the client.
pub(super) struct Promoter {
    node: Node,
    /// Relays that the server is at home on.
    homes: BTreeSet<String>,
    not_before: Instant,
    failures: u32,
    /// What it carried before it moved, if that was a direct way.
    before: Option<Pace>,
}

/// Bytes over some time.
#[derive(Clone, Copy)]
struct Pace {
    bytes: u64,
    over: Duration,
}

impl Pace {
    fn is_much_less_than(self, other: Self) -> bool {
        let rate = |pace: Self| u128::from(pace.bytes) * 1000 / pace.over.as_millis().max(1);
        rate(self) * 10 < rate(other) * 7
    }
}

impl Promoter {
    pub(super) fn new(node: Node, homes: BTreeSet<String>) -> Self {
        Self { node, homes, not_before: Instant::now(), failures: 0, before: None }
    }

    /// The way through the relay, or the one before it, was lost.
    pub(super) fn was_lost(&mut self) {
        let wait = RETRY_AFTER * 2_u32.saturating_pow(self.failures.min(8));
        self.failures += 1;
        self.not_before = self.not_before.max(Instant::now() + wait.min(RETRY_MOST));
    }

    fn relay(&self) -> Option<RelayInfo> {
        let known = self.node.splicers();
        let home = known.iter().find(|relay| self.homes.contains(&relay.url));
        home.or(known.first()).cloned()
    }

    /// Waits until the tunnel is worth it and both have met. `say` takes word of it to the other side.
    pub(super) async fn promote(
        &mut self,
        pooled: Option<&Pooled>,
        bytes: impl Fn() -> u64,
        say: impl Fn(Meeting),
    ) -> Carrier {
        loop {
            sleep_until(self.not_before).await;
            let pace = worth(&bytes).await;
            match self.meet(pooled, pace, &say).await {
                Ok(carrier) => return carrier,
                Err(error) => {
                    tracing::debug!(%error, "a tunnel stays where it is");
                    self.was_lost();
                }
            }
        }
    }

    async fn meet(&mut self, pooled: Option<&Pooled>, pace: Pace, say: &impl Fn(Meeting)) -> Result<Carrier> {
        let relay = self.relay().ok_or(ErrorKind::NotFound)?;
        let at = relay.splicer_at().await.ok_or(ErrorKind::HostUnreachable)?;
        let begun = Instant::now();
        let stream = timeout(MEET_WAIT, TcpStream::connect(at)).await??;
        let there_and_back = begun.elapsed();
        let direct = pooled.and_then(Pooled::path).filter(|(is_direct, _)| *is_direct).map(|(_, rtt)| rtt);
        let is_bulk = pace.bytes >= BULK_BYTES;
        if direct.is_some_and(|rtt| !is_bulk && there_and_back > rtt + Duration::from_millis(1)) {
            return Err(Error::other("the relay is farther away than the other side"));
        }
        let meeting = Meeting::at(&relay)?;
        let (token, secret) = (meeting.token, meeting.secret);
        say(meeting);
        let stream = timeout(MEET_WAIT, splice::join(stream, &relay, &self.node, &token)).await??;
        self.before = direct.map(|_| pace);
        Carrier::tcp(stream, &secret, true)
    }

    /// Waits until it shows that the direct way was much better; it is taken again and kept for a while. What passes in
    /// bursts is judged by its bursts, and what idles not at all.
    pub(super) async fn regret(&mut self, bytes: impl Fn() -> u64) {
        let Some(before) = self.before.take() else { return std::future::pending().await };
        let most = loop {
            let most = most_in_a_look(&bytes).await;
            if most >= BULK_BYTES {
                break most;
            }
        };
        if !(Pace { bytes: most, over: LOOK_EVERY }).is_much_less_than(before) {
            return std::future::pending().await;
        }
        self.not_before = Instant::now() + RETRY_MOST;
    }
}

/// The most that passes between two of some looks.
async fn most_in_a_look(bytes: &impl Fn() -> u64) -> u64 {
    let (mut last, mut most) = (bytes(), 0);
    for _ in 0..TRIAL_LOOKS {
        sleep(LOOK_EVERY).await;
        let now = bytes();
        most = most.max(now - last);
        last = now;
    }
    most
}

/// Waits until much passes, or something for a while; how much it was.
async fn worth(bytes: &impl Fn() -> u64) -> Pace {
    let (mut last, mut every, mut is_steady) = (bytes(), LOOK_EVERY, false);
    loop {
        sleep(every).await;
        let now = bytes();
        let pace = Pace { bytes: now - last, over: every };
        let passes = pace.bytes >= STEADY_BYTES;
        if pace.bytes >= BULK_BYTES || (passes && is_steady) {
            return pace;
        }
        every = if passes { LOOK_EVERY } else { LOOK_SELDOM.min(2 * every) };
        (last, is_steady) = (now, passes);
    }
}
