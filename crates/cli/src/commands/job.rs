//! Jobs on a Ray cluster, through a tunnel to its head.

use std::io::Write;
use std::time::Duration;

use ionet_domain::OrderId;
use ionet_net::tunnel::LocalForward;
use serde_json::json;

use crate::args::{JobCommand, SubmitArgs};
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::out::Out;
use crate::ray::{DASHBOARD_PORT, Job, Ray, RuntimeEnv, shell_line};
use crate::tunnel::Tunnels;
use crate::units::{moment, span};

const POLL: Duration = Duration::from_millis(300);

/// A way to the Jobs API of a cluster, open while it lives.
pub(crate) struct Way {
    pub(crate) ray: Ray,
    tunnels: Tunnels,
    _forward: LocalForward,
}

impl Way {
    /// Opens a tunnel to the cluster's head.
    pub(crate) async fn open(context: &Context, cluster: OrderId) -> Result<Self> {
        let session = context.session().await?;
        let view = session.client.cluster(cluster).await?;
        let tunnels = Tunnels::open(context, &session, cluster).await?;
        let forward = tunnels.forward(0, DASHBOARD_PORT, 0).await?;
        let ray = Ray::new(forward.local_addr.port(), view.token)?;
        Ok(Self { ray, tunnels, _forward: forward })
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
    let result = run(context.out, &way.ray, command).await;
    way.close().await;
    result
}

async fn run(out: Out, ray: &Ray, command: &JobCommand) -> Result {
    match command {
        JobCommand::Submit(args) => submit(out, ray, args).await,
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
        JobCommand::Logs { job, follow: true, .. } => finish(out, ray, job).await,
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

async fn submit(out: Out, ray: &Ray, args: &SubmitArgs) -> Result {
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
    let id = ray.submit(&shell_line(&args.entrypoint), &env, args.id.as_deref()).await?;
    if args.no_wait {
        let next = format!("ionet job logs {} {id} --follow", args.cluster);
        out.answer(&json!({ "job": id }), |out| out.line(format!("{id} submitted\nnext: {next}")));
        return Ok(());
    }
    out.note(format!("{id} submitted"));
    finish(out, ray, &id).await
}

/// Shows a job's output until it ends; an unhappy end is an error.
async fn finish(out: Out, ray: &Ray, id: &str) -> Result {
    let show = |text: &str| {
        if !out.json {
            write_out(text);
        }
    };
    let (job, logs) = follow(ray, id, show).await?;
    if job.status == "SUCCEEDED" {
        let answer = json!({ "job": id, "status": job.status.to_lowercase(), "logs": logs });
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
pub(crate) async fn follow(ray: &Ray, id: &str, mut show: impl FnMut(&str)) -> Result<(Job, String)> {
    let mut shown = 0;
    loop {
        let job = ray.job(id).await?;
        let logs = ray.logs(id).await.unwrap_or_default();
        if let Some(more) = logs.get(shown..).filter(|more| !more.is_empty()) {
            show(more);
            shown = logs.len();
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
