//! `ionet quickstart`: a network, a cluster, a real job on both nodes, the bill, the payout, the books.
//!
//! Nothing here is made for show: it is what the other commands do, one after another.

use std::time::{Duration, Instant};

use ionet_api::Client;
use ionet_api::rest::{ClusterView, DeviceFilter, EventFilter, EventView};
use ionet_domain::device::Resources;
use ionet_domain::event::PublicBody;
use ionet_domain::market::{EngineKind, Program, Request};
use ionet_domain::money::{Asset, HOUR_MS};
use ionet_domain::order::Bill;
use ionet_domain::{Address, OrderId, PayoutId, Stage};
use serde::{Deserialize, Serialize};

use crate::args::QuickstartArgs;
use crate::commands::job::{self, Way};
use crate::commands::{cluster, journal, quote, up};
use crate::context::{Context, Session};
use crate::error::{CliError, Result};
use crate::out::{Out, Progress};
use crate::process::{Ending, OwnChild};
use crate::ray::RuntimeEnv;
use crate::units::{span, usd};
use crate::words;

const SCRIPT: &str = include_str!("digits_search.py");
const SCRIPT_NAME: &str = "digits_search.py";
const MEMBERS: u32 = 2;
const MEMORY_BYTES: u64 = 2 << 30;
const UP_WAIT: Duration = Duration::from_mins(2);
const PAYOUT_WAIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(200);

/// The last line of the job's output.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Search {
    score: f64,
    best: serde_json::Value,
    fits_by_node: serde_json::Map<String, serde_json::Value>,
    seconds: f64,
}

/// What the supplier got.
#[derive(Debug, Default, Serialize)]
struct Paid {
    total_micro_usd: u64,
    payouts: Vec<OnePayout>,
}

#[derive(Debug, Serialize)]
struct OnePayout {
    payout: PayoutId,
    amount_micro_usd: u64,
    reference: String,
}

/// How long each part took, since the order where nothing else is said.
#[derive(Debug, Default, Serialize)]
#[expect(clippy::struct_field_names, reason = "units come last in every name")]
struct Timeline {
    network_ms: u64,
    match_ms: u64,
    lease_ms: u64,
    boxes_ms: u64,
    overlay_ms: u64,
    engine_ms: u64,
    first_task_ms: u64,
    jobs_api_ms: u64,
    client_ms: u64,
    ready_ms: u64,
}

/// The figures, as programs get them.
#[derive(Debug, Serialize)]
struct Figures {
    ready_seconds: f64,
    first_task_seconds: f64,
    score: f64,
    bill: Bill,
    payout: Paid,
    journal_verified: bool,
    fits_by_node: serde_json::Map<String, serde_json::Value>,
    timeline: Timeline,
}

/// `ionet quickstart`
pub(crate) async fn quickstart(context: &Context, args: &QuickstartArgs) -> Result {
    let started = Instant::now();
    let mut ending = Ending::listen(false)?;
    let own = tokio::select! {
        own = network(context, args.keep) => own?,
        () = ending.told() => return Err(interrupted()),
    };
    let session = context.session().await?;
    let network_ms = millis(started);
    let result = show_it(context, &session, args, network_ms, &mut ending).await;
    match own {
        Some(child) if !args.keep => {
            let progress = context.out.progress("stopping the network");
            child.stop().await;
            progress.done("the network is stopped; 'ionet up' starts it again with all its history");
        }
        Some(child) => child.leave(),
        None => {}
    }
    result
}

fn interrupted() -> CliError {
    CliError::refused("interrupted", "ended before the job was done; what was rented is given back")
}

/// Starts a network unless one runs from this data directory, or another was given by its URL.
async fn network(context: &Context, keep: bool) -> Result<Option<OwnChild>> {
    if context.has_url() || up::running(context)?.is_some() {
        return Ok(None);
    }
    let progress = context.out.progress("starting a network on this machine");
    let dir = context.data_dir.display().to_string();
    let words = ["up", "--json", "--data-dir", &dir].map(str::to_owned);
    let log = context.path("logs/up.log");
    let mut child = if keep {
        OwnChild::start_loose("the network", &words, &log)?
    } else {
        OwnChild::start("the network", &words, &log)?
    };
    let line = child.first_line(UP_WAIT).await?;
    let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
    if let Some(message) = said["error"]["message"].as_str() {
        let code = said["error"]["code"].as_str().unwrap_or("child");
        return Err(CliError::internal(code, format!("the network did not start: {message}")));
    }
    let ready = said["ready_ms"].as_u64().map(span).unwrap_or_default();
    progress.done(&format!("a network is up after {ready}: {}", said["url"].as_str().unwrap_or_default()));
    Ok(Some(child))
}

async fn show_it(
    context: &Context,
    session: &Session,
    args: &QuickstartArgs,
    network_ms: u64,
    ending: &mut Ending,
) -> Result {
    let (out, client) = (context.out, &session.client);
    let request = request(client).await?;
    let signed = client.quote(&request).await?;
    quote::show(out, &signed);
    let id = cluster::order(client, signed, Program::default()).await?.id;
    let search = tokio::select! {
        search = use_cluster(context, client, id, args.trials) => search,
        () = ending.told() => Err(interrupted()),
    };
    // Also when the job failed or nobody wants to wait: nothing is left rented.
    let closing = close(out, client, id).await;
    let (view, search) = search?;
    let settled = closing?;
    let payout = wait_for_payout(out, client, session.account().await?, &settled).await?;
    let events = all_events(client, &id.to_string(), 0).await?;
    let timeline = Timeline { network_ms, ..timeline(&view, &events) };
    let verified = verify(context).await?;
    let figures = Figures {
        ready_seconds: seconds(timeline.ready_ms),
        first_task_seconds: seconds(timeline.first_task_ms),
        score: search.score,
        bill: settled.bill.clone(),
        payout,
        journal_verified: verified.is_some(),
        fits_by_node: search.fits_by_node.clone(),
        timeline,
    };
    out.answer(&figures, |out| people(out, &figures, &search, verified.as_deref(), id));
    Ok(())
}

/// Two members, one a device, of a size that every device has free.
async fn request(client: &Client) -> Result<Request> {
    let devices =
        client.devices(&DeviceFilter { stage: Some("pooled".into()), ..DeviceFilter::default() }).await?;
    let real = || devices.iter().filter(|device| !device.simulated);
    let least = |part: fn(&Resources) -> u64, most: u64| {
        real().map(|device| part(&device.free)).filter(|free| *free > 0).fold(most, u64::min)
    };
    let cpu_millis = least(|free| u64::from(free.cpu_millis), 1000);
    let request = Request {
        engine: EngineKind::Ray,
        members: MEMBERS,
        per_member: Resources {
            cpu_millis: u32::try_from(cpu_millis).unwrap_or(1000),
            memory_bytes: least(|free| free.memory_bytes, MEMORY_BYTES) >> 20 << 20,
            disk_bytes: least(|free| free.disk_bytes, 1 << 30),
            gpus: 0,
            gpu_share_millis: None,
        },
        duration_ms: HOUR_MS,
        gpu_model: None,
        network: None,
        tags: std::collections::BTreeSet::new(),
        tier: None,
        spread: true,
        egress: ionet_domain::market::Egress::On,
        hiding: ionet_domain::market::Hiding::default(),
        max_rate: None,
        priority: ionet_domain::market::Priority::Normal,
        buy: ionet_domain::market::Buy::default(),
        mega: false,
        simulated: false,
        upkeep: ionet_domain::market::Upkeep::default(),
        asset: Asset::Iosd,
        ..Request::default()
    };
    request.check()?;
    Ok(request)
}

/// Waits for the cluster and runs the job on it.
async fn use_cluster(
    context: &Context,
    client: &Client,
    id: OrderId,
    trials: u32,
) -> Result<(ClusterView, Search)> {
    let view = cluster::wait_until_up(context.out, client, id).await?;
    let way = Way::open(context, id).await?;
    let search = search(context.out, &way, trials).await;
    way.close().await;
    Ok((view, search?))
}

async fn search(out: Out, way: &Way, trials: u32) -> Result<Search> {
    let mut progress = out.progress("submitting a hyper-parameter search over 1797 handwritten digits");
    let env = RuntimeEnv {
        working_dir: Some(way.ray.upload_file(SCRIPT_NAME, SCRIPT).await?),
        ..RuntimeEnv::default()
    };
    let entrypoint = format!("python {SCRIPT_NAME} {trials} {MEMBERS}");
    let job = way.ray.submit(&entrypoint, &env, None).await?;
    let (job, logs) = job::follow(&way.ray, &job, |text| say_steps(&mut progress, text, trials)).await?;
    if job.status != "SUCCEEDED" {
        let tail: Vec<_> = logs.lines().rev().take(12).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        let message =
            format!("the job {}: {}\n  {tail}", job.status.to_lowercase(), job.message.unwrap_or_default());
        return Err(CliError::refused("job_failed", message));
    }
    let found = logs.lines().rev().find_map(|line| serde_json::from_str::<Search>(line).ok());
    let found = found.ok_or_else(|| CliError::internal("job_garbled", "the job printed no result"))?;
    progress.done(&format!("{} fits in {:.1} s", trials * 3, found.seconds));
    Ok(found)
}

fn say_steps(progress: &mut Progress, text: &str, trials: u32) {
    for line in text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        match line["step"].as_str() {
            Some("cluster") => {
                progress.say(&format!("the job sees {} nodes", line["nodes"].as_array().map_or(0, Vec::len)));
            }
            Some("data") => {
                progress.say(&format!("{trials} settings x 3 folds are being fitted on both nodes"));
            }
            _ => {}
        }
    }
}

async fn close(out: Out, client: &Client, id: OrderId) -> Result<ClusterView> {
    let view = client.cluster(id).await?;
    if view.stage < Stage::Closing {
        client.close(id).await?;
    }
    cluster::wait_until_settled(out, client, id).await
}

/// Waits until the suppliers of the cluster are paid, and answers what arrived since it was ordered.
async fn wait_for_payout(out: Out, client: &Client, account: Address, view: &ClusterView) -> Result<Paid> {
    let mut progress = out.progress("waiting for the supplier's payout at the end of the epoch");
    let until = Instant::now() + PAYOUT_WAIT;
    let mut stage = view.stage;
    while stage < Stage::Paid && Instant::now() < until {
        tokio::time::sleep(POLL).await;
        stage = cluster::watch(client, view.id, &mut progress, |_| true).await?.stage;
    }
    let paid = payouts(&all_events(client, &account.to_string(), 0).await?, view.accepted_ms);
    let total = usd(paid.total_micro_usd);
    match stage {
        Stage::Paid => progress.done(&format!("the supplier was paid {total}")),
        _ => progress.done("the payout comes at the end of the epoch; 'ionet ledger' will show it"),
    }
    Ok(paid)
}

fn payouts(events: &[EventView], since_ms: u64) -> Paid {
    let mut paid = Paid::default();
    for event in events.iter().filter(|event| event.at_ms >= since_ms) {
        if let Some(PublicBody::PayoutPaid { payout, transfer, reference }) = words::body(event) {
            paid.total_micro_usd += transfer.amount;
            paid.payouts.push(OnePayout { payout, amount_micro_usd: transfer.amount, reference });
        }
    }
    paid
}

/// Every event of a subject, page by page.
async fn all_events(client: &Client, subject: &str, mut after: u64) -> Result<Vec<EventView>> {
    const PAGE: u32 = 1000;
    let mut events: Vec<EventView> = Vec::new();
    loop {
        let filter = EventFilter {
            subject: Some(subject.to_owned()),
            after,
            limit: Some(PAGE),
            ..EventFilter::default()
        };
        let page = client.journal(&filter).await?;
        let full = page.len() == PAGE as usize;
        after = page.last().map_or(after, |event| event.seq);
        events.extend(page);
        if !full {
            return Ok(events);
        }
    }
}

/// The parts of the start: the market's from the journal, the boxes' from their supervisors.
fn timeline(view: &ClusterView, events: &[EventView]) -> Timeline {
    let at = |wanted: fn(&PublicBody) -> bool| {
        events
            .iter()
            .find(|event| words::body(event).is_some_and(|body| wanted(&body)))
            .map(|event| event.at_ms)
    };
    let since = |at_ms: Option<u64>, from_ms: u64| at_ms.map_or(0, |at_ms| at_ms.saturating_sub(from_ms));
    let placed = at(|body| matches!(body, PublicBody::OrderPlaced { .. }));
    let started = at(|body| matches!(body, PublicBody::OrderStarted { .. }));
    let part = |name: &str| {
        let parts = view.leases.iter().flat_map(|lease| &lease.parts_ms);
        parts.filter(|(part, _)| part == name).map(|(_, ms)| *ms).max().unwrap_or(0)
    };
    // The boxes' parts are measured where they happen, by a supervisor's clock that begins when its device is told.
    let told_ms = since(started, view.accepted_ms);
    Timeline {
        network_ms: 0,
        match_ms: since(placed, view.accepted_ms),
        lease_ms: since(started, placed.unwrap_or(view.accepted_ms)),
        boxes_ms: part("boxes"),
        overlay_ms: part("overlay"),
        engine_ms: part("engine"),
        first_task_ms: told_ms + part("first_task"),
        jobs_api_ms: told_ms + part("jobs_api"),
        client_ms: told_ms + part("client"),
        ready_ms: since(view.running_since_ms, view.accepted_ms),
    }
}

/// Verifies the journal on disk, if it is on this machine; says what was found.
async fn verify(context: &Context) -> Result<Option<String>> {
    let dir = journal::dir_of(context);
    if context.has_url() || !dir.exists() {
        return Ok(None);
    }
    let report = journal::verify_dir(&dir).await?;
    Ok(Some(report.line()))
}

fn people(out: Out, figures: &Figures, search: &Search, verified: Option<&str>, id: OrderId) {
    let best = search.best.as_object().map(|best| {
        best.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
    });
    out.line(format!("\nscore       {} on held-out digits ({})", search.score, best.unwrap_or_default()));
    let nodes: Vec<_> = search.fits_by_node.iter().map(|(node, fits)| format!("{fits} on {node}")).collect();
    out.line(format!("fits        {}", nodes.join(", ")));
    out.line("\ntimeline");
    let t = &figures.timeline;
    for (name, ms, what) in [
        ("match", t.match_ms, "devices chosen"),
        ("lease", t.lease_ms, "devices told"),
        ("boxes", t.boxes_ms, "of the box's start"),
        ("overlay", t.overlay_ms, "of the box's start"),
        ("engine", t.engine_ms, "of the box's start"),
        ("first task", t.first_task_ms, "since the order, on every member"),
        ("jobs API", t.jobs_api_ms, "since the order"),
        ("client", t.client_ms, "since the order"),
    ] {
        out.line(format!("  {name:<10} {:>9}  {what}", span(ms)));
    }
    out.line("\nbill");
    cluster::show_bill(out, &figures.bill);
    out.line(format!("\npayout      {} to the supplier", usd(figures.payout.total_micro_usd)));
    for one in &figures.payout.payouts {
        out.line(format!("            {} {} ({})", one.payout, usd(one.amount_micro_usd), one.reference));
    }
    out.line(format!("journal     {}", verified.unwrap_or("not on this machine; not verified here")));
    out.line(format!(
        "
look further
  ionet up                      the same network again with its history, to stay
  ionet journal show {id}
                                every event of this cluster (while the network is up)
  ionet ledger                  every move of your money
  ionet journal verify          the chain and the books again, from the files alone"
    ));
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// For programs; money is never treated so.
#[expect(clippy::cast_precision_loss, reason = "a time of minutes in milliseconds fits a float exactly")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
