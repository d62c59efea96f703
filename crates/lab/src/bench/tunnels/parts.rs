//! The product's own three ends of a tunnel, each a process: a relay, a member with a service, an engineer's client.
//!
//! Each prints one line of JSON when it is up and ends with its input; a relay answers each further line with its counters.

use std::collections::BTreeSet;
use std::io::{BufRead as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Subcommand;
use ionet_net::relay::{ForwarderPorts, admit_all};
use ionet_net::tunnel::{Opening, Refused, TunnelRequest, forward_local, serve};
use ionet_net::{EndpointKey, Node, NodeAddr, NodeConfig, Relay, RelayConfig, RelayInfo};
use serde::Serialize;
use tokio::net::TcpStream;

use crate::{LabError, Result};

/// One end of a tunnel.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Forwards and splices.
    Relay {
        /// Its folder.
        dir: PathBuf,
    },
    /// Has the service.
    Member {
        /// The relay, as JSON.
        relay: String,
        /// Where the service is.
        service: SocketAddr,
        /// Whether it is reached through the relay only.
        #[arg(long)]
        relayed: bool,
    },
    /// Reaches it from a local port.
    Client {
        /// The relay, as JSON.
        relay: String,
        /// The member, as JSON.
        member: String,
        /// Whether the member is reached through the relay only.
        #[arg(long)]
        relayed: bool,
    },
}

/// Runs one end until its input ends.
///
/// # Errors
/// If it cannot start.
pub fn run(part: Part) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(LabError::io("start"))?.block_on(async {
        match part {
            Part::Relay { dir } => relay(dir).await,
            Part::Member { relay, service, relayed } => member(&relay, service, relayed).await,
            Part::Client { relay, member, relayed } => client(&relay, &member, relayed).await,
        }
    })
}

#[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
fn failed(error: impl ToString) -> LabError {
    LabError::Broken(error.to_string())
}

fn say(value: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let line = serde_json::to_string(value).map_err(failed)?;
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(LabError::io("answer"))
}

/// Answers each line of the input until its end.
async fn until_told(answer: impl Fn() -> Result<()> + Send + 'static) -> Result<()> {
    let reading = tokio::task::spawn_blocking(move || {
        std::io::stdin().lock().lines().map_while(std::io::Result::ok).try_for_each(|_| answer())
    });
    reading.await.map_err(failed)?
}

async fn relay(dir: PathBuf) -> Result<()> {
    let config = RelayConfig {
        bind: Ipv4Addr::LOCALHOST.into(),
        host: None,
        https_port: 0,
        http_port: 0,
        quic_port: 0,
        forwarder: ForwarderPorts::default(),
        dir,
        admit: admit_all(),
    };
    let relay = Relay::spawn(config).await.map_err(failed)?;
    say(&relay.info())?;
    until_told(move || say(&relay.metrics())).await
}

async fn node(relay: &str, relay_only: bool) -> Result<Node> {
    let relay: RelayInfo = serde_json::from_str(relay).map_err(failed)?;
    let bind = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    let key = EndpointKey::generate().map_err(failed)?;
    let node =
        Node::bind(&key, NodeConfig { relays: vec![relay], bind, relay_only }).await.map_err(failed)?;
    if relay_only {
        node.online().await;
    }
    Ok(node)
}

async fn member(relay: &str, service: SocketAddr, relayed: bool) -> Result<()> {
    let node = node(relay, relayed).await?;
    let _serving = serve(&node, admit_all(), move |_, _: TunnelRequest| async move {
        let stream = TcpStream::connect(service).await.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        let down = |e: std::io::Error| Refused { code: "service_unreachable".into(), message: e.to_string() };
        stream.map(Opening::from).map_err(down)
    });
    let direct: BTreeSet<_> = if relayed { BTreeSet::new() } else { node.bound().into_iter().collect() };
    say(&NodeAddr { direct, ..node.addr() })?;
    until_told(|| Ok(())).await
}

async fn client(relay: &str, member: &str, relayed: bool) -> Result<()> {
    let node = node(relay, relayed).await?;
    let member: NodeAddr = serde_json::from_str(member).map_err(failed)?;
    let request = TunnelRequest { cluster: "bench".into(), service: "tcp/1".into(), auth: Vec::new() };
    let way = move |_| std::future::ready(Ok((member.clone(), request.clone())));
    let forward = forward_local(&node, 0, way).await.map_err(failed)?;
    say(&forward.local_addr)?;
    until_told(|| Ok(())).await
}
