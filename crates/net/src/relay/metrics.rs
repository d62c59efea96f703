//! A relay's numbers for Prometheus, in its text format, over HTTP.
//!
//! What always holds: nothing but numbers is told, and nothing can be changed; what is read of a question, and how many
//! are answered at once, is bounded. Whoever reaches the address may ask.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ionet_overlay::relay::{Counters, message::Refusal};
use iroh_relay::server::Metrics;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};

use super::splice;
use crate::NetError;

const MOST_AT_ONCE: usize = 16;
const QUESTION_BYTES: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(5);
/// After an error, such as too many open files.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Answers monitors; ends when dropped.
#[derive(Debug)]
pub struct Monitor {
    at: SocketAddr,
    task: JoinHandle<()>,
}

impl Monitor {
    pub(super) async fn start(
        at: SocketAddr,
        server: Arc<Metrics>,
        forwarder: Arc<Counters>,
        splicer: Arc<splice::Counters>,
    ) -> Result<Self, NetError> {
        let failed = |e| NetError::io(format!("listen for monitors on {at}"))(e);
        let listener = TcpListener::bind(at).await.map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        let task = tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
            loop {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(BACK_OFF).await;
                    continue;
                };
                let text = text(&server, &forwarder, &splicer);
                tokio::spawn(async move {
                    // Whoever asks too slowly, or goes away, gets no answer.
                    let _ = timeout(PATIENCE, answer(stream, &text)).await;
                    drop(place);
                });
            }
        });
        Ok(Self { at, task })
    }

    /// Where it listens.
    pub fn local(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    let mut question = Vec::new();
    let mut piece = [0; 1024];
    while !question.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut piece).await?;
        question.extend_from_slice(&piece[..count]);
        if count == 0 || question.len() > QUESTION_BYTES {
            return Ok(());
        }
    }
    let (status, body) = if question.starts_with(b"GET /metrics ") {
        ("200 OK", text)
    } else {
        ("404 Not Found", "ask for /metrics\n")
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn text(server: &Metrics, forwarder: &Counters, splicer: &splice::Counters) -> String {
    let mut text = String::new();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut family = |name: &str, kind: &str, about: &str, lines: &[(&str, u64)]| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP ionet_relay_{name} {about}\n# TYPE ionet_relay_{name} {kind}");
        for (label, value) in lines {
            let _ = writeln!(text, "ionet_relay_{name}{label} {value}");
        }
    };
    let f = forwarder;
    family("channels", "gauge", "Channels that stand.", &[("", get(&f.channels))]);
    family("connections", "gauge", "TCP connections of members.", &[("", get(&f.connections))]);
    family("packets_total", "counter", "Packets passed on.", &[("", get(&f.packets))]);
    family("bytes_total", "counter", "Bytes of packets passed on.", &[("", get(&f.bytes))]);
    let dropped = [
        (r#"{reason="over_rate"}"#, get(&f.over_rate)),
        (r#"{reason="unknown"}"#, get(&f.unknown)),
        (r#"{reason="unsent"}"#, get(&f.unsent)),
        (r#"{reason="malformed"}"#, get(&f.malformed)),
    ];
    family("dropped_packets_total", "counter", "Packets dropped, by reason.", &dropped);
    family("hellos_total", "counter", "Hellos answered.", &[("", get(&f.hellos))]);
    family("binds_total", "counter", "Ends bound to channels, again and again.", &[("", get(&f.bound))]);
    let labels = Refusal::ALL.map(|reason| format!(r#"{{reason="{}"}}"#, reason.code()));
    let refused = labels.iter().map(String::as_str).zip(f.refused.iter().map(get));
    family(
        "refusals_total",
        "counter",
        "Questions for a channel refused, by reason.",
        &refused.collect::<Vec<_>>(),
    );
    let s = splicer;
    family("spliced_pairs", "gauge", "Tunnels spliced now.", &[("", get(&s.pairs))]);
    family("spliced_waiting", "gauge", "Tunnels' ends that wait for the other.", &[("", get(&s.waiting))]);
    family("spliced_bytes_total", "counter", "Bytes of tunnels spliced.", &[("", get(&s.bytes))]);
    family("spliced_refused_total", "counter", "Tunnels' ends refused.", &[("", get(&s.refused))]);
    let quic = [
        ("quic_connections_total", "Connections accepted for QUIC packets.", server.accepts.get()),
        ("quic_connections_ended_total", "Of them, those that ended.", server.disconnects.get()),
        ("quic_received_bytes_total", "Bytes of QUIC packets received.", server.bytes_recv.get()),
        ("quic_sent_bytes_total", "Bytes of QUIC packets sent on.", server.bytes_sent.get()),
        (
            "quic_dropped_packets_total",
            "QUIC packets whose receiver was away.",
            server.send_packets_dropped.get(),
        ),
    ];
    for (name, about, value) in quic {
        family(name, "counter", about, &[("", value)]);
    }
    text
}
