//! `ionet tunnel`: local ports that lead to ports of members.
//!
//! Always holds: it says at once where it listens, and what is wrong with a connection when it happens; a port that was
//! asked for by number is that port or an error.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ionet_domain::OrderId;
use ionet_domain::tunnel::{Service, Services};
use ionet_net::tunnel::{LocalForward, TunnelStream};
use serde_json::json;
use tokio::io::{AsyncWriteExt as _, copy, split, stdin, stdout};
use tokio::time::interval;

use crate::args::{Target, TunnelArgs};
use crate::context::Context;
use crate::error::{CliError, Result, io};
use crate::out::Out;
use crate::tunnel::{PORT_IN_USE, Tunnels};

/// How soon a connection's failure is told.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// An open port.
struct Open {
    target: Target,
    forward: LocalForward,
    told: Option<String>,
}

/// `ionet tunnel`
pub(crate) async fn tunnel(context: &Context, args: &TunnelArgs) -> Result<u8> {
    let one = args.targets.len() == 1;
    if (args.local.is_some() || args.stdio) && !one {
        return Err(CliError::usage("--local and --stdio are for one port").help("begin one tunnel for each"));
    }
    let clusters = leaves(context, &args.targets).await?;
    let result = match args.targets.as_slice() {
        [target] if args.stdio => at_stdio(&clusters[&target.cluster], *target).await,
        targets => serve(context.out, &clusters, targets, args.local).await,
    };
    for tunnels in clusters.into_values() {
        tunnels.close().await;
    }
    result.map(|()| 0)
}

/// Leave for each cluster, for what is asked of it and no more.
async fn leaves(context: &Context, targets: &[Target]) -> Result<BTreeMap<OrderId, Tunnels>> {
    let session = context.session().await?;
    let mut clusters = BTreeMap::new();
    for cluster in targets.iter().map(|target| target.cluster).collect::<BTreeSet<_>>() {
        let own = targets.iter().filter(|target| target.cluster == cluster);
        let services = Services::Only(own.map(|target| target.service).collect());
        clusters.insert(cluster, Tunnels::open(context, &session, cluster, Some(services)).await?);
    }
    Ok(clusters)
}

async fn at_stdio(tunnels: &Tunnels, target: Target) -> Result {
    if let Service::Udp(_) = target.service {
        return Err(CliError::usage("--stdio carries TCP alone"));
    }
    pass(tunnels.stream(target.member, target.service).await?).await
}

/// Carries a stream at standard input and output until the far side ends it.
pub(crate) async fn pass(stream: TunnelStream) -> Result {
    let (mut receive, mut send) = split(stream);
    let there = tokio::spawn(async move {
        // The end of the input is passed on; a stream that broke shows below.
        if copy(&mut stdin(), &mut send).await.is_ok() {
            let _ = send.shutdown().await;
        }
        // Dropping it would end the other direction as well.
        std::future::pending::<()>().await;
    });
    let back = copy(&mut receive, &mut stdout()).await;
    there.abort();
    match back {
        Ok(_) => stdout().flush().await.map_err(io("write to standard output")),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CliError::unreachable("broken_off", format!("the tunnel broke off: {error}"))),
    }
}

async fn serve(
    out: Out,
    clusters: &BTreeMap<OrderId, Tunnels>,
    targets: &[Target],
    local: Option<u16>,
) -> Result {
    let mut ports = Vec::new();
    for target in targets {
        let forward = open(out, &clusters[&target.cluster], *target, local).await?;
        show(out, target, &forward);
        ports.push(Open { target: *target, forward, told: None });
    }
    out.note("open until Ctrl-C");
    let mut look = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            pressed = tokio::signal::ctrl_c() => return pressed.map_err(io("wait for Ctrl-C")),
            _ = look.tick() => ports.iter_mut().for_each(|port| tell_failure(out, port)),
        }
    }
}

async fn open(out: Out, tunnels: &Tunnels, target: Target, local: Option<u16>) -> Result<LocalForward> {
    let wanted = local.unwrap_or(target.port);
    match tunnels.forward_at(target.member, target.service, wanted).await {
        // Ports below 1024 are root's.
        Err(error) if local.is_none() && (error.code == PORT_IN_USE || wanted < 1024) => {
            let forward = tunnels.forward_at(target.member, target.service, 0).await?;
            out.note(format!("port {wanted} of this machine is not to be had; another one is used"));
            Ok(forward)
        }
        result => result,
    }
}

fn show(out: Out, target: &Target, forward: &LocalForward) {
    let Target { cluster, member, service, .. } = target;
    let local = forward.local_addr;
    let line =
        json!({ "cluster": cluster, "member": member, "service": service, "local": local.to_string() });
    out.answer(&line, |out| out.line(format!("{local} leads to {service} of {cluster}.{member}")));
}

/// Says what went wrong with the latest connection that failed, once.
fn tell_failure(out: Out, port: &mut Open) {
    let failure = port.forward.last_error();
    if failure != port.told
        && let Some(text) = &failure
    {
        let Target { cluster, member, service, .. } = port.target;
        out.note(format!("{service} of {cluster}.{member}: {text}"));
    }
    port.told = failure;
}
