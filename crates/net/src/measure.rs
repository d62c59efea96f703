//! Measuring the way between a node and a relay: shortest round trip, and bandwidth in both directions.
//!
//! What always holds: both sides count and the smaller figure stands, so neither is believed about itself; a
//! measurement is bounded in time and bytes, there are few at once, and none for whoever had one just now. The relay
//! hands out its figures under whatever its operator's closure makes of them (a signature), so that the measured one
//! cannot change them on the way to the server.
//!
//! Not here: what the figures mean (`ionet-domain`), signing (`ionet-api`), when to measure (`ionet-worker`).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    EndpointId, NetError, Node, NodeAddr,
    frame::{read_frame, write_frame},
    node::{ALPN_MEASURE, CLOSE_BUSY, Serving},
    relay::Admit,
};

/// Streams at once: together their windows fill long, wide ways.
pub(crate) const STREAMS: u32 = 16;
/// Given to whoever is being measured.
const WINDOW_BYTES: u32 = 32 << 20;
const PINGS: u32 = 5;
const FRAME_LIMIT_BYTES: usize = 64 << 10;
const CHUNK: &[u8] = &[0x5a; 64 << 10];
/// Longest and most of one direction.
const LONGEST: Duration = Duration::from_secs(3);
const MOST_BYTES: u64 = 1 << 30;
/// The first part of each direction is for getting up to speed.
const WARM_UP_PART: u32 = 4;
/// Everything of one measurement together.
const WHOLE_LIMIT: Duration = Duration::from_secs(45);
const AT_ONCE: usize = 2;
/// How long the same node waits for its next measurement of bandwidth.
const AGAIN_AFTER: Duration = Duration::from_mins(5);
const REMEMBERED_MOST: usize = 10_000;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Shortest round trip as the relay saw it, in microseconds.
    pub rtt_us: u32,
    /// To the node and from it in Mbit/s, the smaller of both sides' counts; `None` if it was not asked for.
    pub bandwidth: Option<(u32, u32)>,
}

/// How one end asks to be measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Ask {
    /// How long each direction takes, in milliseconds; 0 measures the round trip only.
    each_ms: u64,
}

/// A measured one's own counts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Counted {
    mbit_s: u32,
}

/// Makes of a node's figures what it is given to pass on.
pub type Attest = Arc<dyn Fn(EndpointId, Figures) -> Vec<u8> + Send + Sync>;

/// Measures for others while it lives.
pub struct MeasureServer {
    _serving: Serving,
}

impl fmt::Debug for MeasureServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeasureServer")
    }
}

struct Rules {
    attest: Attest,
    slots: Semaphore,
    lately: Mutex<BTreeMap<EndpointId, Instant>>,
}

impl MeasureServer {
    /// Measures whom `admit` lets in.
    pub fn start(node: &Node, admit: Admit, attest: Attest) -> Self {
        let rules = Arc::new(Rules { attest, slots: Semaphore::new(AT_ONCE), lately: Mutex::default() });
        let handle = move |connection: Connection| {
            let rules = rules.clone();
            tokio::spawn(async move {
                let peer = connection.remote_id();
                match timeout(WHOLE_LIMIT, serve(&connection, &rules)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "a measurement ended early"),
                    Err(_) => connection.close(VarInt::from_u32(CLOSE_BUSY), b"too_slow"),
                }
            });
        };
        Self { _serving: node.serve(ALPN_MEASURE, admit, Arc::new(handle)) }
    }
}

impl Rules {
    /// Whether a node may have its bandwidth measured now.
    fn may(&self, id: EndpointId, now: Instant) -> bool {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.retain(|_, at| now.duration_since(*at) < AGAIN_AFTER);
        let may = lately.len() < REMEMBERED_MOST && !lately.contains_key(&id);
        if may {
            lately.insert(id, now);
        }
        may
    }
}

async fn serve(connection: &Connection, rules: &Rules) -> Result<(), NetError> {
    let id = EndpointId::from(connection.remote_id());
    let mut control = Control::accept(connection).await?;
    let ask: Ask = control.hear().await?;
    let each = Duration::from_millis(ask.each_ms).min(LONGEST);
    let mut slot = None;
    if !each.is_zero() {
        slot = rules.slots.try_acquire().ok().filter(|_| rules.may(id, Instant::now()));
        if slot.is_none() {
            connection.close(VarInt::from_u32(CLOSE_BUSY), b"busy");
            return Ok(());
        }
    }
    let rtt_us = control.ping().await?;
    let mut figures = Figures { rtt_us, bandwidth: None };
    if slot.is_some() {
        connection.set_receive_window(VarInt::from_u32(WINDOW_BYTES));
        let (sent, theirs) = (send_for(connection, each).await?, control.hear::<Counted>().await?);
        let down = sent.min(theirs.mbit_s);
        control.say(&Counted { mbit_s: down }).await?;
        let received = receive_all(connection).await?;
        let theirs = control.hear::<Counted>().await?;
        figures.bandwidth = Some((down, received.min(theirs.mbit_s)));
    }
    write_frame(&mut control.send, &(rules.attest)(id, figures), FRAME_LIMIT_BYTES).await?;
    // The other side closes when it has read the answer.
    connection.closed().await;
    Ok(())
}

/// Has the way to a relay's measuring node measured; `each` is the time for each direction, zero for the round trip
/// alone. The answer is what the relay attests.
///
/// # Errors
/// If the relay cannot be reached, is busy with others, or had this node's bandwidth measured minutes ago.
pub async fn measure(node: &Node, relay: &NodeAddr, each: Duration) -> Result<Vec<u8>, NetError> {
    let measured = async {
        let connection = node.connect(relay, ALPN_MEASURE).await?;
        let answer = be_measured(&connection, each).await;
        let answer = answer.map_err(|error| crate::node::explain_end(&connection, error));
        connection.close(VarInt::from_u32(crate::node::CLOSE_DONE), b"done");
        answer
    };
    timeout(WHOLE_LIMIT, measured).await.map_err(|_| NetError::closed("the relay took too long"))?
}

async fn be_measured(connection: &Connection, each: Duration) -> Result<Vec<u8>, NetError> {
    let mut control = Control::open(connection).await?;
    control.say(&Ask { each_ms: u64::try_from(each.as_millis()).unwrap_or(0) }).await?;
    control.echo().await?;
    if !each.is_zero() {
        connection.set_receive_window(VarInt::from_u32(WINDOW_BYTES));
        let mbit_s = receive_all(connection).await?;
        control.say(&Counted { mbit_s }).await?;
        let _: Counted = control.hear().await?;
        let mbit_s = send_for(connection, each.min(LONGEST)).await?;
        control.say(&Counted { mbit_s }).await?;
    }
    read_frame(&mut control.receive, FRAME_LIMIT_BYTES).await
}

/// The stream on which both say what comes next.
struct Control {
    send: SendStream,
    receive: RecvStream,
}

impl Control {
    async fn accept(connection: &Connection) -> Result<Self, NetError> {
        let (send, receive) = connection.accept_bi().await.map_err(NetError::closed)?;
        Ok(Self { send, receive })
    }

    async fn open(connection: &Connection) -> Result<Self, NetError> {
        let (send, receive) = connection.open_bi().await.map_err(NetError::closed)?;
        Ok(Self { send, receive })
    }

    async fn say(&mut self, what: &impl Serialize) -> Result<(), NetError> {
        let frame = serde_json::to_vec(what).map_err(NetError::closed)?;
        write_frame(&mut self.send, &frame, FRAME_LIMIT_BYTES).await
    }

    async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, NetError> {
        let frame = read_frame(&mut self.receive, FRAME_LIMIT_BYTES).await?;
        serde_json::from_slice(&frame).map_err(|_| NetError::Malformed { what: "a measuring frame".into() })
    }

    /// The shortest of a few round trips.
    async fn ping(&mut self) -> Result<u32, NetError> {
        let mut shortest = Duration::MAX;
        for n in 0..PINGS {
            let sent = Instant::now();
            self.say(&n).await?;
            if self.hear::<u32>().await? != n {
                return Err(NetError::Malformed { what: "an echo".into() });
            }
            shortest = shortest.min(sent.elapsed());
        }
        Ok(u32::try_from(shortest.as_micros()).unwrap_or(u32::MAX))
    }

    async fn echo(&mut self) -> Result<(), NetError> {
        for _ in 0..PINGS {
            let n: u32 = self.hear().await?;
            self.say(&n).await?;
        }
        Ok(())
    }
}

fn mbit_s(bytes: u64, took: Duration) -> u32 {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    u32::try_from(bytes.saturating_mul(8) / micros).unwrap_or(u32::MAX)
}

/// Sends as much as goes for so long; the rate after the warm-up, of what was acknowledged in the end.
async fn send_for(connection: &Connection, each: Duration) -> Result<u32, NetError> {
    let sent = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let (mut stream, _) = connection.open_bi().await.map_err(NetError::closed)?;
        let sent = sent.clone();
        streams.spawn(async move {
            while began.elapsed() < each && sent.load(Ordering::Relaxed) < MOST_BYTES {
                stream.write_all(CHUNK).await.map_err(NetError::closed)?;
                sent.fetch_add(CHUNK.len() as u64, Ordering::Relaxed);
            }
            stream.finish().map_err(NetError::closed)?;
            // Nothing counts that never arrived.
            stream.stopped().await.map_err(NetError::closed).map(|_| ())
        });
    }
    tokio::time::sleep(each / WARM_UP_PART).await;
    let (warm, from) = (sent.load(Ordering::Relaxed), Instant::now());
    while let Some(ended) = streams.join_next().await {
        ended.map_err(NetError::closed)??;
    }
    Ok(mbit_s(sent.load(Ordering::Relaxed) - warm, from.elapsed()))
}

/// Takes what the other side sends until it ends; the rate after the warm-up.
async fn receive_all(connection: &Connection) -> Result<u32, NetError> {
    let meter = Arc::new(Mutex::new(Meter::default()));
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let (_, mut stream) = connection.accept_bi().await.map_err(NetError::closed)?;
        let meter = meter.clone();
        streams.spawn(async move {
            while let Some(chunk) = stream.read_chunk(1 << 20).await.map_err(NetError::closed)? {
                let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
                meter.add(chunk.len() as u64, Instant::now());
            }
            Ok::<_, NetError>(())
        });
    }
    while let Some(ended) = streams.join_next().await {
        ended.map_err(NetError::closed)??;
    }
    let meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(meter.rate())
}

/// Counts what arrives, in steps of time, so that the first quarter can be left out in the end.
#[derive(Clone, Debug, Default)]
struct Meter {
    began: Option<Instant>,
    last: Option<Instant>,
    steps: Vec<u64>,
}

const STEP_MS: u128 = 100;
/// What takes longer all counts as the last step.
const STEPS_MOST: usize = 512;

impl Meter {
    fn add(&mut self, bytes: u64, now: Instant) {
        let began = *self.began.get_or_insert(now);
        self.last = Some(now);
        let step = usize::try_from(now.duration_since(began).as_millis() / STEP_MS).unwrap_or(usize::MAX);
        let step = step.min(STEPS_MOST - 1);
        self.steps.resize(self.steps.len().max(step + 1), 0);
        self.steps[step] += bytes;
    }

    fn rate(&self) -> u32 {
        let (Some(began), Some(last)) = (self.began, self.last) else { return 0 };
        let took = last.duration_since(began);
        let skipped = usize::try_from(took.as_millis() / STEP_MS / u128::from(WARM_UP_PART)).unwrap_or(0);
        let bytes: u64 = self.steps[skipped.min(self.steps.len())..].iter().sum();
        let skipped =
            Duration::from_millis(u64::try_from(STEP_MS).unwrap_or(0)) * u32::try_from(skipped).unwrap_or(0);
        mbit_s(bytes, took.saturating_sub(skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_quarter_is_left_out_of_a_rate() {
        let began = Instant::now();
        let mut meter = Meter::default();
        assert_eq!(meter.rate(), 0);
        for step in 0..=40_u32 {
            // Slow in the first half second, then 80 Mbit/s.
            let bytes = if step < 10 { 1_000 } else { 500_000 };
            meter.add(bytes, began + Duration::from_millis(50) * step);
        }
        assert_eq!(meter.rate(), 82, "2 s in all, of which half a second is left out");
        assert_eq!(mbit_s(125_000_000, Duration::from_secs(1)), 1_000);
    }
}
