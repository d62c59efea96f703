//! Clusters: ordered, watched, extended, ended.

use std::time::{Duration, Instant};

use ionet_api::rest::{
    ClusterFilter, ClusterView, EventFilter, ExtendRequest, LeaseView, OrderRequest, PAGE_MOST, RateRequest,
};
use ionet_api::worker::BoxPhase;
use ionet_api::{Client, rest::SignedQuote};
use ionet_domain::market::Program;
use ionet_domain::market::queue::Waiting;
use ionet_domain::market::request::EnvironmentRef;
use ionet_domain::order::{Bill, CloseReason, LeasePhase, Stage};
use ionet_domain::tunnel::Service;
use ionet_domain::{CommandId, OrderId, Rate};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::args::{ClusterCommand, CreateArgs};
use crate::commands::{connect, course, egress, explain, expose, journal, network, quote, share};
use crate::context::{Context, now_ms, random};
use crate::error::{CliError, Result};
use crate::out::{Out, Progress};
use crate::tunnel::Tunnels;
use crate::units::{moment, span, usd};
use crate::words;

const POLL: Duration = Duration::from_millis(200);

/// `ionet cluster`
pub(crate) async fn cluster(context: &Context, command: &ClusterCommand) -> Result<u8> {
    match command {
        ClusterCommand::Create(args) => create(context, args).await?,
        ClusterCommand::Ls { all } => list(context, *all).await?,
        ClusterCommand::Show { cluster } => {
            let view = context.session().await?.client.cluster(*cluster).await?;
            context.out.answer(&view, |out| show(out, &view));
        }
        ClusterCommand::Network { cluster, watch } => network::show(context, *cluster, *watch).await?,
        ClusterCommand::Extend { cluster, added_ms, yes } => {
            extend(context, *cluster, *added_ms, *yes).await?;
        }
        ClusterCommand::Grow(args) => course::grow(context, args).await?,
        ClusterCommand::Shrink(args) => course::shrink(context, args).await?,
        ClusterCommand::Replace(args) => course::replace(context, args).await?,
        ClusterCommand::Pause(args) => course::pause(context, args).await?,
        ClusterCommand::Resume(args) => course::resume(context, args).await?,
        ClusterCommand::Set(args) => course::set(context, args).await?,
        ClusterCommand::Egress(args) => egress::egress(context, args).await?,
        ClusterCommand::Share(args) => share::share(context, args).await?,
        ClusterCommand::Unshare { cluster, account } => share::unshare(context, *cluster, *account).await?,
        ClusterCommand::Connect(args) => return connect::connect(context, args).await,
        ClusterCommand::Logs { cluster, member, follow } => logs(context, *cluster, *member, *follow).await?,
        ClusterCommand::Rm { cluster, yes, no_wait } => remove(context, *cluster, *yes, !*no_wait).await?,
        ClusterCommand::Rate { cluster, stars } => give_stars(context, *cluster, *stars).await?,
        ClusterCommand::Events { cluster, follow } => {
            let subject = Some(cluster.to_string());
            let filter = EventFilter { subject, limit: Some(PAGE_MOST), ..EventFilter::default() };
            journal::show(context, filter, *follow).await?;
        }
    }
    Ok(0)
}

async fn create(context: &Context, args: &CreateArgs) -> Result {
    let request = quote::request(&args.request)?;
    let program = Program {
        argv: args.argv.clone(),
        env: args.env.iter().cloned().collect(),
        environment: args.environment.clone().map(EnvironmentRef),
        jupyter: args.jupyter,
        allow: args.request.allow_egress.iter().cloned().collect(),
    };
    program.check(request.engine)?;
    request.egress.check(&program.allow)?;
    let client = context.session().await?.client;
    let signed = explain::or_explain(&client, &request, args.explain, client.quote(&request).await).await?;
    quote::show(context.out, &signed);
    context.out.confirm("order it?", args.yes)?;
    let view = order(&client, signed, program).await?;
    if args.no_wait {
        context.out.answer(&view, |out| out.line(format!("{} ordered", view.id)));
        return Ok(());
    }
    let view = wait_until_up(context.out, &client, view.id).await?;
    context.out.answer(&view, |out| {
        show(out, &view);
        next_commands(out, &view);
    });
    if args.follow { logs(context, view.id, 0, true).await } else { Ok(()) }
}

/// Accepts a quote under a new id.
pub(crate) async fn order(client: &Client, quote: SignedQuote, program: Program) -> Result<ClusterView> {
    let id = OrderId::from_parts(now_ms(), random()?);
    Ok(client.order(&OrderRequest { id, quote, program }).await?)
}

fn next_commands(out: Out, view: &ClusterView) {
    if view.stage != Stage::Running {
        return;
    }
    if view.quote.request.engine == ionet_domain::market::EngineKind::Ray {
        out.line(format!("\nnext: ionet cluster connect {}", view.id));
        out.line(format!("      ionet job submit {} -- python -c 'import ray; ray.init()'", view.id));
    } else {
        out.line(format!("\nnext: ionet cluster logs {}", view.id));
    }
    out.line(format!("      ionet cluster rm {}", view.id));
}

/// Watches a cluster until it is up; an ending before that is an error that says why and what came back.
pub(crate) async fn wait_until_up(out: Out, client: &Client, id: OrderId) -> Result<ClusterView> {
    let mut progress = out.progress(&format!("{id} ordered"));
    let begun = Instant::now();
    let is_decided = |view: &ClusterView| view.stage >= Stage::Running || view.stage == Stage::Paused;
    let view = watch(client, id, &mut progress, is_decided).await?;
    if view.stage == Stage::Running {
        let watched_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        // By the server's clock, unless it was resumed long after it was ordered.
        let since_order_ms =
            view.running_since_ms.unwrap_or(view.accepted_ms).saturating_sub(view.accepted_ms);
        let took_ms = since_order_ms.min(watched_ms);
        progress.done(&format!("{id} is up after {}", span(took_ms)));
        return Ok(view);
    }
    if view.stage == Stage::Paused {
        drop(progress);
        return Err(put_off(&view));
    }
    let view = watch(client, id, &mut progress, |view| view.stage >= Stage::Settled).await?;
    drop(progress);
    match &view.reason {
        Some(CloseReason::Finished { exit_code: 0 }) => Ok(view),
        _ => Err(ended(&view)),
    }
}

/// The error for a cluster that was to run again and found no place.
fn put_off(view: &ClusterView) -> CliError {
    let message = format!("{} stays paused: others have taken what it would run on", view.id);
    CliError::refused("no_place", message).help(format!(
        "try again later, or 'ionet cluster set {}' asks for less; 'ionet explain {}' says what is in the way",
        view.id, view.id
    ))
}

/// The error for a cluster that ended too early.
fn ended(view: &ClusterView) -> CliError {
    let (code, why) = match &view.reason {
        Some(reason) => (reason.code(), words::reason(reason)),
        None => ("ended", "it ended".to_owned()),
    };
    let bill = &view.bill;
    let message = format!(
        "{} ended: {why}; charged {}, refunded {}",
        view.id,
        usd(bill.total_micro_usd),
        usd(bill.refund_micro_usd)
    );
    CliError::refused(code, message).help(format!("'ionet cluster events {}' tells the whole story", view.id))
}

/// Looks at a cluster until `done`, saying what it waits for.
pub(crate) async fn watch(
    client: &Client,
    id: OrderId,
    progress: &mut Progress,
    done: impl Fn(&ClusterView) -> bool,
) -> Result<ClusterView> {
    loop {
        let view = client.cluster(id).await?;
        if done(&view) {
            return Ok(view);
        }
        progress.say(&stage_line(&view));
        tokio::time::sleep(POLL).await;
    }
}

/// Where a cluster stands and how its members are, in one line.
pub(crate) fn stage_line(view: &ClusterView) -> String {
    let gone =
        |lease: &LeaseView| matches!(lease.phase, LeasePhase::Removed { .. } | LeasePhase::Lost { .. });
    if view.stage == Stage::Closing && view.leases.iter().all(gone) {
        return format!("{} is closing: charges that only the supplier attests wait for objections", view.id);
    }
    let is_live = |lease: &&LeaseView| {
        lease.released.is_none() && matches!(lease.phase, LeasePhase::Placed | LeasePhase::Ready)
    };
    let live = view.leases.iter().filter(is_live);
    let members: Vec<_> = live.map(|lease| format!("member {} {}", lease.slot, lease_now(lease))).collect();
    match members.as_slice() {
        [] => view.waiting.as_ref().map_or_else(
            || format!("{} is {}", view.id, view.stage),
            |waiting| format!("{} is {}", view.id, in_line(waiting)),
        ),
        _ => format!("{} is {}: {}", view.id, view.stage, members.join(", ")),
    }
}

/// Where a waiting order stands.
fn in_line(waiting: &Waiting) -> String {
    if waiting.place == 0 {
        return format!("{}; begins in {}", waiting.reason, span(waiting.estimate_ms.unwrap_or(0)));
    }
    let holds = waiting.holds.map(|n| format!("; holds the devices of {n} members")).unwrap_or_default();
    format!("number {} of {} in line: {}{holds}", waiting.place, waiting.of, waiting.reason)
}

/// How a member is, as its device last said.
fn lease_now(lease: &LeaseView) -> String {
    match &lease.now {
        Some(BoxPhase::Preparing { percent, detail }) => {
            let percent = percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
            format!("prepares its environment{percent} ({detail})")
        }
        Some(BoxPhase::Starting) => "is starting".into(),
        Some(BoxPhase::Ready) => "is up".into(),
        Some(BoxPhase::Exited { exit_code }) => format!("ended with exit code {exit_code}"),
        Some(BoxPhase::Lost { reason }) => format!("was lost: {reason}"),
        Some(BoxPhase::Removed { .. }) => "is removed".into(),
        None => "is being told".into(),
    }
}

async fn list(context: &Context, all: bool) -> Result {
    let mut clusters = context.session().await?.client.clusters(&ClusterFilter::default()).await?;
    clusters.retain(|view| all || view.stage < Stage::Settled);
    context.out.answer(&clusters, |out| {
        let header = ["CLUSTER", "STAGE", "ENGINE", "MEMBERS", "RATE", "CHARGED", "ENDS"];
        out.table(&header, &[3, 4, 5], clusters.iter().map(row).collect());
    });
    Ok(())
}

fn row(view: &ClusterView) -> Vec<String> {
    let ends = match (&view.reason, view.ends_ms) {
        (Some(reason), _) => reason.code().to_owned(),
        (None, Some(ends)) => format!("in {}", span(ends.saturating_sub(now_ms()) / 1000 * 1000)),
        (None, None) => match &view.waiting {
            Some(waiting) if waiting.place == 0 => {
                format!("begins in {}", span(waiting.estimate_ms.unwrap_or(0)))
            }
            Some(waiting) => format!("{} of {} in line", waiting.place, waiting.of),
            None => "-".to_owned(),
        },
    };
    vec![
        view.id.to_string(),
        view.stage.to_string(),
        view.quote.request.engine.to_string(),
        view.quote.request.members.to_string(),
        rate(view).to_string(),
        usd(view.bill.total_micro_usd),
        ends,
    ]
}

/// What it costs an hour: its members' leases, or before it has any what was quoted.
fn rate(view: &ClusterView) -> Rate {
    let live = |lease: &&LeaseView| {
        matches!(lease.phase, LeasePhase::Placed | LeasePhase::Ready | LeasePhase::Exited { .. })
    };
    let rates: Vec<_> = view.leases.iter().filter(live).map(|lease| lease.rate.0).collect();
    if rates.is_empty() { view.quote.rate } else { Rate(rates.iter().sum()) }
}

/// A cluster as people read it.
pub(crate) fn show(out: Out, view: &ClusterView) {
    let why = view.reason.as_ref().map(|reason| format!(": {}", words::reason(reason))).unwrap_or_default();
    out.line(format!("{}  {}{why}", view.id, view.stage));
    out.line(quote::sentence(&view.quote.request));
    if let Some(line) = quote::way(&view.quote.request) {
        out.line(line);
    }
    if let Some(notice) = view.notice.filter(|_| view.stage <= Stage::Running) {
        out.line(format!("ends at {}: {}", moment(notice.ends_ms), words::notice(notice.reason)));
    }
    if let Some(waiting) = &view.waiting {
        out.line(format!("{}; 'ionet explain {}' says more", in_line(waiting), view.id));
    }
    out.line(quote::network_rules(view.quote.request.egress, &view.allow));
    view.quote.request.hiding.explained().for_each(|line| out.line(line));
    out.lines(course::upkeep_lines(&view.quote.request.upkeep));
    let moments =
        [("ordered", Some(view.accepted_ms)), ("up", view.running_since_ms), ("closed", view.closed_ms)];
    for (name, at) in moments {
        if let Some(at) = at {
            out.line(format!("{name:<8} {}", moment(at)));
        }
    }
    if let (Some(ends), None) = (view.ends_ms, view.closed_ms) {
        out.line(format!("{:<8} {}", "ends", moment(ends)));
    }
    out.lines(course::paused_line(view));
    if let Some(reason) = view.replaced {
        out.line(format!("replaced {}", words::replaced(reason)));
    }
    out.table(&["MEMBER", "PHASE", "CONTACT", "ADDRESS", "DEVICE", "START"], &[], lease_rows(view));
    out.lines(course::proposals(view));
    expose::of(out, view);
    egress::show_used(out, view);
    share::show(out, view);
    show_bill(out, &view.bill);
}

fn lease_rows(view: &ClusterView) -> Vec<Vec<String>> {
    let row = |lease: &LeaseView| {
        let parts =
            lease.parts_ms.iter().map(|(name, ms)| format!("{name} {}", span(*ms))).collect::<Vec<_>>();
        let (phase, device) = (phase_word(lease), lease.device.to_string());
        vec![lease.slot.to_string(), phase, lease.contact.clone(), lease.ip.clone(), device, parts.join(", ")]
    };
    view.leases.iter().map(row).collect()
}

fn phase_word(lease: &LeaseView) -> String {
    match &lease.phase {
        LeasePhase::Placed | LeasePhase::Ready | LeasePhase::Exited { .. } if lease.released.is_some() => {
            "leaving".into()
        }
        LeasePhase::Placed => "placed".into(),
        LeasePhase::Ready => "up".into(),
        LeasePhase::Exited { exit_code } => format!("exited {exit_code}"),
        LeasePhase::Lost { reason } => format!("lost ({reason})"),
        LeasePhase::Removed { wipe: Some(_) } => "removed, wiped".into(),
        LeasePhase::Removed { wipe: None } => "removed, no receipt".into(),
    }
}

/// The itemised bill.
pub(crate) fn show_bill(out: Out, bill: &Bill) {
    let line = |line: &ionet_domain::order::BillLine| {
        vec![
            line.lease.n.to_string(),
            line.rate.to_string(),
            span(line.elapsed_ms),
            usd(line.compute_micro_usd),
            usd(line.fee_micro_usd),
        ]
    };
    out.table(
        &["LEASE", "RATE", "METERED", "COMPUTE", "FEE"],
        &[1, 2, 3, 4],
        bill.lines.iter().map(line).collect(),
    );
    out.line(format!(
        "charged {} of {} set aside; {} came back",
        usd(bill.total_micro_usd),
        usd(bill.escrow_micro_usd),
        usd(bill.refund_micro_usd)
    ));
}

async fn extend(context: &Context, id: OrderId, added_ms: u64, yes: bool) -> Result {
    let client = context.session().await?.client;
    let before = client.cluster(id).await?;
    let compute = before.quote.rate.total_for(added_ms);
    let most = usd(compute + before.quote.renter_fee.of(compute));
    context.out.confirm(&format!("add {} to {id} for at most {most}?", span(added_ms)), yes)?;
    let request = ExtendRequest { id: CommandId::from_parts(now_ms(), random()?), added_ms };
    let view = client.extend(id, &request).await?;
    context.out.answer(&view, |out| {
        let ends = view.ends_ms.map(moment).unwrap_or_default();
        out.line(format!("{id} runs for {} in all, until {ends}", span(view.quote.request.duration_ms)));
    });
    Ok(())
}

async fn give_stars(context: &Context, id: OrderId, stars: u8) -> Result {
    let client = context.session().await?.client;
    let request = RateRequest { id: CommandId::from_parts(now_ms(), random()?), stars };
    let view = client.rate(id, &request).await?;
    context.out.answer(&view, |out| out.line(format!("{id} has {stars} of 5 stars from you")));
    Ok(())
}

/// Ends a cluster; waits until it is settled if asked.
async fn remove(context: &Context, id: OrderId, yes: bool, wait: bool) -> Result {
    context.out.confirm(&format!("end {id}? its boxes are wiped"), yes)?;
    let client = context.session().await?.client;
    let mut view = client.close(id).await?;
    if wait {
        view = wait_until_settled(context.out, &client, id).await?;
    }
    context.out.answer(&json!(view), |out| {
        out.line(format!("{id} is {}", view.stage));
        show_bill(out, &view.bill);
    });
    Ok(())
}

/// Waits until the boxes are gone and the rest of the money is back.
pub(crate) async fn wait_until_settled(out: Out, client: &Client, id: OrderId) -> Result<ClusterView> {
    let mut progress = out.progress(&format!("{id}: its boxes are being removed and wiped"));
    let view = watch(client, id, &mut progress, |view| view.stage >= Stage::Settled).await?;
    progress.done(&format!("{id} is settled"));
    Ok(view)
}

async fn logs(context: &Context, id: OrderId, slot: u32, follow: bool) -> Result {
    let session = context.session().await?;
    let tunnels = Tunnels::open(context, &session, id, Some(Service::Log.into())).await?;
    let mut stream = tunnels.logs(slot, follow).await?;
    let mut text = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = stream.read(&mut buffer).await;
        let n = read
            .map_err(|error| CliError::unreachable("unreachable", format!("the log broke off: {error}")))?;
        if n == 0 {
            break;
        }
        if context.out.json {
            text.extend_from_slice(&buffer[..n]);
        } else if !write_through(&buffer[..n]) {
            break;
        }
    }
    if context.out.json {
        context.out.value(&json!({ "cluster": id, "member": slot, "log": String::from_utf8_lossy(&text) }));
    }
    tunnels.close().await;
    Ok(())
}

/// Bytes as they are; `false` when nobody reads any more.
fn write_through(bytes: &[u8]) -> bool {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).is_ok()
}
