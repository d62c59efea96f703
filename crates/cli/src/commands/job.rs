//! Jobs on a Ray cluster, through a tunnel to its head.

use std::io::Write;
use std::time::Duration;

use ionet_api::rest::LeaseView;
use ionet_api::worker::BoxPhase;
use ionet_domain::{OrderId, Stage};
use ionet_net::tunnel::LocalForward;
use serde_json::json;

use crate::args::{JobCommand, SubmitArgs};
use crate::commands::cluster;
use crate::context::Context;
use crate::error::{CliError, Kind, Result};
use crate::out::Out;
use crate::ray::{DASHBOARD_PORT, Job, Ray, RuntimeEnv, shell_line};
use crate::tunnel::Tunnels;
use crate::units::{moment, span};

const POLL: Duration = Duration::from_millis(300);

/// A way to the Jobs API of a cluster, open while it lives.
pub(crate) struct Way {
    pub(crate) ray: Ray,
    /// How often the engine had been started anew when it was opened.
    engine_epoch: u32,
    tunnels: Tunnels,
    _forward: LocalForward,
}

impl Way {
    /// Opens a tunnel to the cluster's head.
    pub(crate) async fn open(context: &Context, cluster: OrderId) -> Result<Self> {
        let session = context.session().await?;
        let view = session.client.cluster(cluster).await?;
        let tunnels = Tunnels::open(context, &session, cluster, None).await?;
        let forward = tunnels.forward(0, DASHBOARD_PORT, 0).await?;
        let ray = Ray::new(forward.local_addr.port(), view.token)?;
        Ok(Self { ray, engine_epoch: view.engine_epoch, tunnels, _forward: forward })
    }

    pub(crate) async fn close(self) {
        self.tunnels.close().await;
    }
}

/// `ionet job`
pub(crate) async fn job(context: &Context, command: &JobCommand) -> Result {
    let cluster = match command {
        JobCommand::Submit(args) => args.cluster,
        JobCommand::Ls { cluster } | JobCommand::Logs { cluster, .. } | JobCommand::Stop { cluster, .. } => {
            *cluster
        }
    };
    let way = Way::open(context, cluster).await?;
    let result = run(context, &way, command).await;
    way.close().await;
    result
}

async fn run(context: &Context, way: &Way, command: &JobCommand) -> Result {
    let (out, ray) = (context.out, &way.ray);
    match command {
        JobCommand::Submit(args) if args.no_wait => {
            let id = submit(out, ray, args).await?;
            let next = format!("ionet job logs {} {id} --follow", args.cluster);
            out.answer(&json!({ "job": id }), |out| out.line(format!("{id} submitted\nnext: {next}")));
            Ok(())
        }
        JobCommand::Submit(args) => see_through(context, way, args).await,
        JobCommand::Ls { .. } => {
            let jobs = ray.jobs().await?;
            let header = ["JOB", "STATUS", "STARTED", "TOOK", "PROGRAM"];
            out.answer(&jobs, |out| out.table(&header, &[], jobs.iter().map(row).collect()));
            Ok(())
        }
        JobCommand::Logs { job, follow: false, .. } => {
            let logs = ray.logs(job).await?;
            out.answer(&json!({ "job": job, "logs": logs }), |_| write_out(&logs));
            Ok(())
        }
        JobCommand::Logs { job, follow: true, .. } => finish(out, ray, job, &mut Followed::default()).await,
        JobCommand::Stop { job, .. } => {
            let stopped = ray.stop(job).await?;
            let line = if stopped { format!("{job} is stopping") } else { format!("{job} had ended") };
            out.answer(&json!({ "job": job, "stopped": stopped }), |out| out.line(line));
            Ok(())
        }
    }
}

fn row(job: &Job) -> Vec<String> {
    let took = job.start_time.zip(job.end_time).map(|(start, end)| span(end.saturating_sub(start)));
    vec![
        job.submission_id.clone().unwrap_or_default(),
        job.status.to_lowercase(),
        job.start_time.map(moment).unwrap_or_default(),
        took.unwrap_or_default(),
        job.entrypoint.clone().unwrap_or_default().chars().take(60).collect(),
    ]
}

/// Submits a job; answers its id.
async fn submit(out: Out, ray: &Ray, args: &SubmitArgs) -> Result<String> {
    let working_dir = match &args.working_dir {
        Some(dir) => {
            let mut progress = out.progress("packing and uploading the working directory");
            let uri = ray.upload(dir).await?;
            progress.say("uploaded");
            Some(uri)
        }
        None => None,
    };
    let env = RuntimeEnv { working_dir, env_vars: args.env.iter().cloned().collect(), pip: args.pip.clone() };
    ray.submit(&shell_line(&args.entrypoint), &env, args.id.as_deref()).await
}

/// Submits a job and follows it to its end; one that was lost with the cluster's head is submitted again where that was
/// asked for.
async fn see_through(context: &Context, way: &Way, args: &SubmitArgs) -> Result {
    let (out, mut epoch) = (context.out, way.engine_epoch);
    let mut followed = Followed::default();
    let mut id = submit(out, &way.ray, args).await?;
    out.note(format!("{id} submitted"));
    loop {
        let error = match finish(out, &way.ray, &id, &mut followed).await {
            Err(error) if may_come_back(&error) && followed.resubmitted < args.resubmit => error,
            done => return done,
        };
        out.note(format!("{}; looking whether the cluster's head was lost", error.message));
        let now = wait_for_head(context, way, (args.cluster, &id), epoch).await?.ok_or(error)?;
        if now == epoch {
            continue;
        }
        epoch = now;
        followed = Followed { shown: 0, resubmitted: followed.resubmitted + 1 };
        id = submit(out, &way.ray, args).await?;
        let (n, most) = (followed.resubmitted, args.resubmit);
        out.note(format!("head_lost: the cluster has a new head; submitted again as {id} ({n} of {most})"));
    }
}

/// Whether an error may come from a head that was lost.
fn may_come_back(error: &CliError) -> bool {
    ["ray_unreachable", "ray_garbled", "ray_refused", "unknown_job"].contains(&error.code.as_str())
}

/// Waits until the head answers: `epoch` if it still knows the job, a later one if it was started anew since. `None` if
/// neither is so, or the cluster ended.
async fn wait_for_head(
    context: &Context,
    way: &Way,
    (cluster, job): (OrderId, &str),
    epoch: u32,
) -> Result<Option<u32>> {
    let mut progress = context.out.progress("waiting for the cluster's head");
    loop {
        let view = match context.session().await {
            Ok(session) => session.client.cluster(cluster).await?,
            // The server may be away while the cluster works on.
            Err(error) if error.kind == Kind::Unreachable => {
                progress.say(&error.message);
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if view.stage >= Stage::Closing {
            return Ok(None);
        }
        let up = |lease: &LeaseView| lease.slot == 0 && lease.now == Some(BoxPhase::Ready);
        progress.say(&cluster::stage_line(&view));
        if view.leases.iter().any(up) {
            match way.ray.job(job).await {
                Ok(_) => return Ok(Some(epoch)),
                Err(error) if error.code == "unknown_job" => {
                    return Ok(Some(view.engine_epoch).filter(|now| *now > epoch));
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How far a job was followed.
#[derive(Debug, Default)]
struct Followed {
    /// Bytes of its output that were shown.
    shown: usize,
    resubmitted: u32,
}

/// Shows a job's output until it ends; an unhappy end is an error.
async fn finish(out: Out, ray: &Ray, id: &str, followed: &mut Followed) -> Result {
    let show = |text: &str| {
        if !out.json {
            write_out(text);
        }
    };
    let (job, logs) = follow_from(ray, id, &mut followed.shown, show).await?;
    if job.status == "SUCCEEDED" {
        let resubmitted = followed.resubmitted;
        let status = job.status.to_lowercase();
        let answer = json!({ "job": id, "status": status, "resubmitted": resubmitted, "logs": logs });
        out.answer(&answer, |out| out.note(format!("{id} succeeded")));
        return Ok(());
    }
    // Ray's message goes on with the output, which was shown.
    let said = job.message.unwrap_or_default();
    let said = said.trim().lines().next().unwrap_or_default();
    let exit = job.driver_exit_code.map(|code| format!(" (exit code {code})")).unwrap_or_default();
    let message = format!("{id} {}{exit}: {said}", job.status.to_lowercase());
    Err(CliError::refused("job_failed", message).help("'ionet job logs' shows its output again"))
}

/// Follows a job to its end; each new piece of output goes to `show`.
pub(crate) async fn follow(ray: &Ray, id: &str, show: impl FnMut(&str)) -> Result<(Job, String)> {
    follow_from(ray, id, &mut 0, show).await
}

async fn follow_from(
    ray: &Ray,
    id: &str,
    shown: &mut usize,
    mut show: impl FnMut(&str),
) -> Result<(Job, String)> {
    loop {
        let job = ray.job(id).await?;
        let logs = ray.logs(id).await.unwrap_or_default();
        if let Some(more) = logs.get(*shown..).filter(|more| !more.is_empty()) {
            show(more);
            *shown = logs.len();
        }
        if job.ended() {
            return Ok((job, logs));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn write_out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
