//! The hub of the links: frames in and out, and the probes that measure the network to a worker.
//!
//! Always holds: it takes orders at any time, whatever the writer does, so the two never wait for each other.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ionet_api::worker::{FromWorker, ToWorker};
use ionet_domain::EndpointId;
use ionet_net::RelayInfo;
use ionet_net::link::{IrohLink, Link, LinkEvent};
use tokio::sync::mpsc;

use super::attest;
use crate::core::Input;
use crate::fleet::NetworkMeasured;
use crate::handle::now_ms;
use crate::writer::Message;

/// Events that may wait for the writer here; beyond that the links themselves are slowed down.
const PENDING_MOST: usize = 256;
/// One probe: short pings for the round trip, long ones for both directions together, and a burst of long ones, whose
/// echoes arrive at the pace of the slower direction.
const SHORT_PINGS: u64 = 5;
const LONG_PINGS: u64 = 3;
const BURST_PINGS: u64 = 4;
const PAYLOAD_BYTES: usize = 256 << 10;

/// What the hub is asked.
#[derive(Debug)]
pub(super) enum HubOrder {
    /// Send a frame.
    Send(EndpointId, Vec<u8>),
    /// Measure the network to a worker.
    Probe(EndpointId),
}

/// Runs until the writer or the node is gone.
pub(super) async fn run(
    mut link: IrohLink,
    mut orders: mpsc::Receiver<HubOrder>,
    writer: mpsc::Sender<Message>,
    relays: Vec<RelayInfo>,
) {
    let mut probes = BTreeMap::new();
    let mut pending: VecDeque<Input> = VecDeque::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(HubOrder::Send(to, frame)) => link.send(ionet_net::EndpointId(to.0), frame),
                Some(HubOrder::Probe(to)) => {
                    let probe = probes.entry(to).insert_entry(Probe::new()).into_mut();
                    probe.ping(|frame| link.send(ionet_net::EndpointId(to.0), frame));
                }
            },
            permit = writer.reserve(), if !pending.is_empty() => match (permit, pending.pop_front()) {
                (Ok(permit), Some(input)) => permit.send(Message::Input(Box::new(input))),
                _ => return,
            },
            alive = link.ready(), if pending.len() < PENDING_MOST => {
                if !alive {
                    return;
                }
                while let Some(event) = (pending.len() < PENDING_MOST).then(|| link.poll()).flatten() {
                    pending.extend(take(event, &mut probes, &mut link, &relays));
                }
            }
        }
    }
}

/// Probes take their own echoes, relays' words are checked; everything else is the core's.
fn take(
    event: LinkEvent,
    probes: &mut BTreeMap<EndpointId, Probe>,
    link: &mut IrohLink,
    relays: &[RelayInfo],
) -> Option<Input> {
    match &event {
        LinkEvent::Frame(from, frame) if frame.starts_with(b"{\"links_measured\"") => {
            let FromWorker::LinksMeasured(signed) = serde_json::from_slice(frame).ok()? else { return None };
            let endpoint = EndpointId(from.0);
            let believed = attest::believed(relays, endpoint, &signed, now_ms());
            (!believed.is_empty()).then_some(Input::LinksMeasured(endpoint, believed))
        }
        LinkEvent::Frame(from, frame) if frame.starts_with(b"{\"pong\"") => {
            let at = Instant::now();
            let (from, endpoint) = (*from, EndpointId(from.0));
            let FromWorker::Pong { n, .. } = serde_json::from_slice(frame).ok()? else { return None };
            let probe = probes.get_mut(&endpoint)?;
            let measured = probe.echoed(n, at, |frame| link.send(from, frame))?;
            probes.remove(&endpoint);
            Some(Input::Probed(endpoint, measured))
        }
        LinkEvent::Down(from) => {
            probes.remove(&EndpointId(from.0));
            Some(Input::Link(event))
        }
        _ => Some(Input::Link(event)),
    }
}

#[derive(Debug)]
struct Probe {
    /// The ping that is expected next.
    n: u64,
    sent: Instant,
    short: Duration,
    long: Duration,
    burst_began: Option<Instant>,
}

impl Probe {
    fn new() -> Self {
        let (short, long) = (Duration::MAX, Duration::MAX);
        Self { n: 0, sent: Instant::now(), short, long, burst_began: None }
    }

    /// Sends the ping that is expected next, or the whole burst.
    fn ping(&mut self, mut send: impl FnMut(Vec<u8>)) {
        let burst = self.n == SHORT_PINGS + LONG_PINGS;
        let payload = if self.n < SHORT_PINGS { 0 } else { PAYLOAD_BYTES };
        let pings = if burst { BURST_PINGS } else { 1 };
        let frames = (self.n..self.n + pings).map(|n| ToWorker::Ping { n, payload: "x".repeat(payload) });
        let frames: Vec<_> = frames.filter_map(|ping| serde_json::to_vec(&ping).ok()).collect();
        self.sent = Instant::now();
        frames.into_iter().for_each(&mut send);
    }

    /// Takes an echo; the result, if it was the last one.
    fn echoed(&mut self, n: u64, at: Instant, send: impl FnMut(Vec<u8>)) -> Option<NetworkMeasured> {
        if n != self.n {
            return None;
        }
        let took = at.duration_since(self.sent);
        self.n += 1;
        if n < SHORT_PINGS {
            self.short = self.short.min(took);
        } else if n < SHORT_PINGS + LONG_PINGS {
            self.long = self.long.min(took);
        } else {
            let began = *self.burst_began.get_or_insert(at);
            let last = self.n == SHORT_PINGS + LONG_PINGS + BURST_PINGS;
            return last.then(|| measured(self.short, self.long, at.duration_since(began)));
        }
        self.ping(send);
        None
    }
}

/// Both directions together take what a long ping takes beyond a short one; the slower of them sets the pace of the
/// burst. Which one that is cannot be told, so it is taken to be the way from the worker, as at most homes.
fn measured(short: Duration, long: Duration, burst: Duration) -> NetworkMeasured {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let both = micros(long.saturating_sub(short)).max(2);
    let up = (micros(burst) / (BURST_PINGS - 1)).clamp(both / 2, (both * 19 / 20).max(both / 2));
    let bits = PAYLOAD_BYTES as u64 * 8;
    let rate = |time: u64| u32::try_from(bits / time.max(1)).unwrap_or(u32::MAX);
    NetworkMeasured {
        rtt_us: u32::try_from(micros(short)).unwrap_or(u32::MAX),
        down_mbit_s: rate(both - up),
        up_mbit_s: rate(up),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_told_apart() {
        let ms = Duration::from_millis;
        // 2.097 Mbit: 20 ms down is about 100 Mbit/s, 80 ms up about 25.
        let found = measured(ms(10), ms(110), ms(240));
        assert_eq!((found.rtt_us, found.down_mbit_s, found.up_mbit_s), (10_000, 104, 26));
        let even = measured(ms(1), ms(21), ms(30));
        assert_eq!((even.down_mbit_s, even.up_mbit_s), (209, 209));
        let instant = measured(ms(0), ms(0), ms(0));
        assert!(instant.down_mbit_s > 1000 && instant.up_mbit_s > 1000);
    }
}
