//! The supplier's commands: the agent itself, how it is, what is missing, and the owner's wishes.

use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ionet_api::rest::{JoinToken, NewKey};
use ionet_api::worker::ObservedLease;
use ionet_domain::DeviceId;
use ionet_domain::account::Scope;
use ionet_domain::connectivity::REGION_TAG;
use ionet_domain::device::{DeviceChange, OwnerRules, Resources};
use ionet_worker::egress::EgressPolicy;
use ionet_worker::{HelperExe, Status, Worker, WorkerConfig};
use serde_json::json;

use crate::args::{WhichDevice, WorkerCommand, WorkerStartArgs, WorkerTokenArgs};
use crate::commands::{devices, doctor, up};
use crate::context::{Context, now_ms, read_json, write_json};
use crate::error::{CliError, Result, io};
use crate::machine::Machine;
use crate::out::Out;
use crate::process::Ending;
use crate::units::span;

/// Above this share of CPU in other use the machine takes no new leases.
const YIELD_ABOVE_CPU_PERCENT: u8 = 50;

/// `ionet worker`
pub(crate) async fn worker(context: &Context, command: &WorkerCommand) -> Result<u8> {
    match command {
        WorkerCommand::Start(args) => start(context, args).await?,
        WorkerCommand::Status(which) => status(context, which).await?,
        WorkerCommand::Doctor => return doctor::doctor(context).await,
        WorkerCommand::Token(args) => token(context, args).await?,
        WorkerCommand::Pause(which) => {
            wish(context, which, |rules| OwnerRules { paused: true, ..rules }).await?;
        }
        WorkerCommand::Resume(which) => {
            wish(context, which, |rules| OwnerRules { paused: false, draining: false, ..rules }).await?;
        }
        WorkerCommand::Drain(which) => {
            wish(context, which, |rules| OwnerRules { draining: true, ..rules }).await?;
        }
    }
    Ok(0)
}

/// Where this data directory's worker keeps its things.
pub(crate) fn dir(context: &Context) -> PathBuf {
    context.path("worker")
}

async fn start(context: &Context, args: &WorkerStartArgs) -> Result {
    crate::log::begin("info,iroh=warn");
    let mut ending = Ending::listen(args.tied)?;
    let join = join(context, args)?;
    let helper = HelperExe::current().map_err(|error| CliError::internal("helper", error.to_string()))?;
    let mut config = WorkerConfig::new(dir(context), join, args.ask, helper);
    let region = args.region.iter().map(|region| format!("{REGION_TAG}{region}"));
    config.tags = args.tag.iter().cloned().chain(region).collect();
    config.yield_cpu_percent = (!args.never_yield).then_some(YIELD_ABOVE_CPU_PERCENT);
    config.environments_dir.clone_from(&args.environments);
    config.egress =
        EgressPolicy { forbidden: args.no_egress, open: args.open_egress.iter().copied().collect() };
    if let Some(name) = &args.name {
        config.machine_name.clone_from(name);
    }
    config.offered = offered(context, args)?;
    let worker = Worker::start(config).await?;
    let (device, place) = (worker.device(), dir(context));
    context.out.answer(&json!({ "device": device, "data_dir": place, "pid": std::process::id() }), |out| {
        out.line(format!("{device} is offered; Ctrl-C ends the agent, leases go on and are found again"));
    });
    ending.told().await;
    worker.stop().await;
    Ok(())
}

/// The joining token: given, or kept from the first start.
fn join(context: &Context, args: &WorkerStartArgs) -> Result<JoinToken> {
    let kept = dir(context).join("join.json");
    let Some(path) = &args.token_file else {
        return read_json(&kept)?.ok_or_else(|| {
            CliError::usage("the first start needs a joining token")
                .help("make one with 'ionet worker token > token.txt' and say --token-file token.txt")
        });
    };
    let text = std::fs::read_to_string(path).map_err(io(format!("read {}", path.display())))?;
    let join = decode(text.trim()).ok_or_else(|| {
        CliError::usage(format!("{} holds no joining token", path.display()))
            .help("copy the one word that 'ionet worker token' prints, whole")
    })?;
    write_json(&kept, &join)?;
    Ok(join)
}

/// A joining token as one word.
pub(crate) fn encode(token: &JoinToken) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(token).unwrap_or_default())
}

fn decode(word: &str) -> Option<JoinToken> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(word).ok()?).ok()
}

/// What is for hire; `None` leaves it to the agent. What was not said follows from the machine.
fn offered(context: &Context, args: &WorkerStartArgs) -> Result<Option<Resources>> {
    if args.cpus.is_none() && args.memory.is_none() && args.disk.is_none() {
        return Ok(None);
    }
    std::fs::create_dir_all(&context.data_dir).map_err(io(format!("make {}", context.data_dir.display())))?;
    let whole = Machine::look(&context.data_dir)?.share(1);
    Ok(Some(Resources {
        cpu_millis: args.cpus.unwrap_or(whole.cpu_millis),
        memory_bytes: args.memory.unwrap_or(whole.memory_bytes),
        disk_bytes: args.disk.unwrap_or(whole.disk_bytes),
        gpus: args.gpus,
        gpu_share_millis: None,
    }))
}

/// What a machine that joins will dial: never an address that leads nowhere from anywhere.
fn joining_url(context: &Context, base: &str) -> Result<String> {
    let url = context.public_url_of(base)?.unwrap_or_else(|| base.to_owned());
    let host = up::host_of(url.split("://").nth(1).unwrap_or_default());
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            Err(CliError::refused("no_public_url", format!("no machine can join at {url}"))
                .help("start the server with --public-url http://HOST:PORT, or say --url here"))
        }
        Ok(ip) if ip.is_loopback() => {
            context.out.note(format!("this token says {url}, which only this machine reaches"));
            context
                .out
                .note("help: for others start the server with --listen ADDR:PORT and --public-url URL");
            Ok(url)
        }
        _ => Ok(url),
    }
}

async fn token(context: &Context, args: &WorkerTokenArgs) -> Result {
    let session = context.session().await?;
    let url = joining_url(context, session.client.base())?;
    let new = NewKey {
        label: "joining token".into(),
        scopes: [Scope::Supply, Scope::Read].into(),
        cap_micro_usd: 0,
        lifetime_ms: args.lifetime_ms,
    };
    let made = session.client.make_key(&new).await?;
    let owner = session.account().await?;
    let token = encode(&JoinToken { url, owner, network: args.network.clone(), key: made.token });
    context.out.answer(&json!({ "token": token, "key": made.id }), |out| {
        out.line(&token);
        out.note(format!(
            "works for {}; keep it secret ('ionet keys revoke {}' ends it)",
            span(args.lifetime_ms),
            made.id
        ));
    });
    Ok(())
}

/// The device that is meant: named, this data directory's worker, or the only one that is mine.
async fn which(context: &Context, which: &WhichDevice) -> Result<DeviceId> {
    if let Some(device) = which.device {
        return Ok(device);
    }
    if let Some(status) = local_status(context)? {
        return Ok(status.device);
    }
    let filter = ionet_api::rest::DeviceFilter { mine: true, ..Default::default() };
    let mine = context.session().await?.client.devices(&filter).await?;
    match mine.as_slice() {
        [only] => Ok(only.id),
        several => {
            let names: Vec<_> = several.iter().map(|device| device.id.to_string()).collect();
            Err(CliError::usage(format!("which device? yours are: [{}]", names.join(", ")))
                .help("name one, as in 'ionet worker pause dev_...'"))
        }
    }
}

fn local_status(context: &Context) -> Result<Option<Status>> {
    Ok(ionet_worker::status(&dir(context))?)
}

async fn status(context: &Context, named: &WhichDevice) -> Result {
    if named.device.is_none()
        && let Some(status) = local_status(context)?
    {
        context.out.answer(&status, |out| show(out, &status));
        return Ok(());
    }
    let device = which(context, named).await?;
    let view = context.session().await?.client.device(device).await?;
    context.out.answer(&view, |out| devices::show(out, &view));
    Ok(())
}

fn show(out: Out, status: &Status) {
    let agent = if status.running { format!("runs (process {})", status.pid) } else { "does not run".into() };
    let link = match (&status.linked, &status.link_error) {
        (true, _) => "up".to_owned(),
        (false, Some(error)) => format!("down: {error}"),
        (false, None) => "down".to_owned(),
    };
    let ago = span(now_ms().saturating_sub(status.at_ms));
    for (name, value) in [
        ("device", status.device.to_string()),
        ("name", status.machine_name.clone()),
        ("agent", agent),
        ("server", format!("{} (link {link})", status.server)),
        ("as of", format!("{ago} ago")),
    ] {
        out.line(format!("{name:<8} {value}"));
    }
    if status.yielding {
        out.line("yields to its owner's own use");
    }
    if let Some(reason) = &status.one_tenant_because {
        out.line(format!("never holds two tenants at once: {reason}"));
    }
    let row =
        |lease: &ObservedLease| vec![lease.lease.to_string(), format!("{:?}", lease.phase).to_lowercase()];
    if !status.leases.is_empty() {
        out.table(&["LEASE", "PHASE"], &[], status.leases.iter().map(row).collect());
    }
}

async fn wish(
    context: &Context,
    named: &WhichDevice,
    change: impl FnOnce(OwnerRules) -> OwnerRules,
) -> Result {
    let id = which(context, named).await?;
    let client = context.session().await?.client;
    let rules = Some(change(client.device(id).await?.rules));
    let device = client.change_device(id, &DeviceChange { rules, ..DeviceChange::default() }).await?;
    let leases = device.leases;
    context.out.answer(&device, |out| out.line(format!("{id} is {} ({leases} leases go on)", device.status)));
    Ok(())
}
