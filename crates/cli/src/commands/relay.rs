//! `ionet relay`: forwards sealed packets for endpoints that find no direct path.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ionet_api::WalletKey;
use ionet_api::sign::LinkMeasured;
use ionet_api::worker::SignedLink;
use ionet_domain::EndpointId;
use ionet_domain::connectivity::Bandwidth;
use ionet_net::measure::{Attest, MeasureServer};
use ionet_net::relay::{ForwarderPorts, Relay, RelayConfig, RelayInfo, admit_all};
use ionet_net::{EndpointKey, Node, NodeAddr, NodeConfig};

use crate::args::RelayArgs;
use crate::context::{Context, now_ms, read_json, write_json};
use crate::error::{CliError, Result};
use crate::process::Ending;

/// What the last start said.
const LAST: &str = "relay/info.json";

/// Runs a relay until told to end. Its first line is what servers and clients need to use it.
pub(crate) async fn relay(context: &Context, args: &RelayArgs) -> Result {
    crate::log::begin("warn");
    if args.bind.is_unspecified() && args.host.is_none() {
        return Err(CliError::usage(
            "a relay on every interface must know which name or address clients dial",
        )
        .help("say --host HOST"));
    }
    let host = args.host.clone().unwrap_or_else(|| args.bind.to_string());
    if host.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_ok() {
        // The QUIC library's relay client takes the brackets of such an address for a part of a name.
        return Err(CliError::usage("a relay is not found by a bare address of IPv6")
            .help("say --host NAME with a name that leads to it"));
    }
    let mut ending = Ending::listen(args.tied)?;
    let relay = spawn(context, args).await?;
    let _monitor = match args.metrics {
        Some(at) => Some(relay.monitor(at).await?),
        None => None,
    };
    let node = measuring_node(context, args, &relay.info()).await?;
    let _measuring = MeasureServer::start(&node, admit_all(), attest(context)?);
    let info = RelayInfo {
        region: args.region.clone(),
        measure: Some(measuring_address(args, &node, &relay.info())),
        ..relay.info()
    };
    write_json(&context.path(LAST), &info)?;
    context.out.value(&info);
    ending.told().await;
    node.close().await;
    relay.shutdown().await;
    Ok(())
}

/// The key that says who measured, kept with the relay's own files.
fn measuring_key(context: &Context) -> Result<EndpointKey> {
    Ok(EndpointKey::load_or_create(&context.path("relay/measure.key"))?)
}

/// The node that measures links: at home on this very relay, so that whoever gets no UDP through is measured too.
async fn measuring_node(context: &Context, args: &RelayArgs, relay: &RelayInfo) -> Result<Node> {
    let last: Option<RelayInfo> = read_json(&context.path(LAST)).ok().flatten();
    let last = last.and_then(|info| info.measure?.direct.first().map(SocketAddr::port));
    let key = measuring_key(context)?;
    let config = |port| NodeConfig {
        relays: vec![relay.clone()],
        bind: vec![SocketAddr::new(args.bind, port)],
        ..NodeConfig::default()
    };
    if let (0, Some(port)) = (args.measure_port, last)
        && let Ok(node) = Node::bind(&key, config(port)).await
    {
        return Ok(node);
    }
    Ok(Node::bind(&key, config(args.measure_port)).await?)
}

/// Where it is reached: at the relay's host if that is an address, and through the relay itself.
fn measuring_address(args: &RelayArgs, node: &Node, relay: &RelayInfo) -> NodeAddr {
    let host = args.host.as_ref().and_then(|host| host.parse::<IpAddr>().ok());
    let port = node.bound().first().map_or(0, SocketAddr::port);
    let mut at = node.addr();
    if let Some(host) = host {
        at.direct = [SocketAddr::new(host, port)].into();
    }
    at.relays = [relay.url.clone()].into();
    at
}

/// Signs what was measured, for the device to carry to its server.
fn attest(context: &Context) -> Result<Attest> {
    let key = WalletKey::from_seed(&measuring_key(context)?.seed());
    let relay = EndpointId(key.address().0);
    Ok(Arc::new(move |endpoint, figures| {
        let bandwidth = |(down_mbit_s, up_mbit_s)| Bandwidth { down_mbit_s, up_mbit_s };
        let measured = LinkMeasured {
            relay,
            endpoint: EndpointId(endpoint.0),
            at_ms: now_ms(),
            rtt_us: figures.rtt_us,
            bandwidth: figures.bandwidth.map(bandwidth),
        };
        let signature = key.sign("", &measured);
        serde_json::to_vec(&SignedLink { measured, signature }).unwrap_or_default()
    }))
}

/// Free ports are those of the last start where they can be had, so that who was told of the relay finds it again.
async fn spawn(context: &Context, args: &RelayArgs) -> Result<Relay> {
    let config = |https_port, quic_port, forwarder| RelayConfig {
        bind: args.bind,
        host: args.host.clone(),
        https_port,
        http_port: 0,
        quic_port,
        forwarder,
        dir: context.path("relay"),
        admit: admit_all(),
    };
    let said = ForwarderPorts {
        udp: args.forward_port,
        second_udp: args.second_forward_port,
        tcp: args.forward_tcp_port,
        splice: args.splice_port,
    };
    if let Some((https_port, last)) = last_ports(context) {
        let or = |said: u16, last: u16| if said == 0 { last } else { said };
        let ports = last.forwarder.unwrap_or_default();
        let forwarder = ForwarderPorts {
            udp: or(said.udp, ports.udp),
            second_udp: or(said.second_udp, ports.second_udp),
            tcp: or(said.tcp, ports.tcp),
            splice: or(said.splice, ports.splice),
        };
        let kept = config(or(args.https_port, https_port), or(args.quic_port, last.quic_port), forwarder);
        if let Ok(relay) = Relay::spawn(kept).await {
            return Ok(relay);
        }
    }
    Ok(Relay::spawn(config(args.https_port, args.quic_port, said)).await?)
}

/// The port for sealed traffic, and what else was said at the last start.
fn last_ports(context: &Context) -> Option<(u16, RelayInfo)> {
    let last: RelayInfo = read_json(&context.path(LAST)).ok()??;
    Some((last.url.rsplit(':').next()?.parse().ok()?, last))
}
