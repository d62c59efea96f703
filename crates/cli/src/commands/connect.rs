//! `ionet cluster connect`: local ports to a cluster's services, and the lines to paste.

use std::process::Stdio;

use ionet_api::Secret;
use ionet_domain::market::EngineKind;
use ionet_net::tunnel::LocalForward;
use ionet_worker::environment::BUILT_IN;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::args::ConnectArgs;
use crate::context::{Context, write_private};
use crate::error::{CliError, Result, io};
use crate::out::Out;
use crate::ray::{CLIENT_PORT, DASHBOARD_PORT, NOTEBOOK_PORT, Ray};
use crate::tunnel::Tunnels;

/// The local ports, open while it lives.
struct Ports {
    dashboard: LocalForward,
    client: LocalForward,
    notebook: Option<LocalForward>,
}

/// What to paste.
#[derive(Debug, Serialize)]
struct Lines {
    cluster: String,
    dashboard: String,
    ray_client: String,
    jobs: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    notebook: Option<String>,
    environment_file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    remarks: Vec<String>,
}

/// `ionet cluster connect`; answers the status of `--exec`.
pub(crate) async fn connect(context: &Context, args: &ConnectArgs) -> Result<u8> {
    let session = context.session().await?;
    let tunnels = Tunnels::open(context, &session, args.cluster, None).await?;
    let (engine, token) = tunnels.engine().await;
    if engine != EngineKind::Ray {
        tunnels.close().await;
        let message = format!("{} runs the command engine, which serves no ports", args.cluster);
        return Err(CliError::refused("not_ray", message)
            .help("'ionet cluster logs' shows its output, 'ionet tunnel' opens any port"));
    }
    let token = token.ok_or_else(|| {
        let message = format!("what is shared of {} has none of Ray's ports", args.cluster);
        CliError::refused("not_granted", message).help("ask its owner for tcp/8265,tcp/10001")
    })?;
    let ports = open_ports(&tunnels).await?;
    let result = use_ports(context, args, &token, &ports).await;
    tunnels.close().await;
    result
}

async fn open_ports(tunnels: &Tunnels) -> Result<Ports> {
    let notebook = if tunnels.answers(0, NOTEBOOK_PORT).await {
        Some(tunnels.forward(0, NOTEBOOK_PORT, NOTEBOOK_PORT).await?)
    } else {
        None
    };
    Ok(Ports {
        dashboard: tunnels.forward(0, DASHBOARD_PORT, DASHBOARD_PORT).await?,
        client: tunnels.forward(0, CLIENT_PORT, CLIENT_PORT).await?,
        notebook,
    })
}

async fn use_ports(context: &Context, args: &ConnectArgs, token: &Secret, ports: &Ports) -> Result<u8> {
    let remarks = remarks(token, ports).await?;
    let lines = lines(context, args, token, ports, remarks)?;
    if !args.exec.is_empty() {
        lines.remarks.iter().for_each(|remark| context.out.note(remark));
        return run(&args.exec, token, ports).await;
    }
    context.out.answer(&lines, |out| show(out, &lines));
    context.out.note("open until Ctrl-C");
    tokio::signal::ctrl_c().await.map_err(io("wait for Ctrl-C"))?;
    Ok(0)
}

/// What is worth knowing before anything is pasted: other ports than usual, a local Ray that does not fit.
async fn remarks(token: &Secret, ports: &Ports) -> Result<Vec<String>> {
    let usual =
        [("the dashboard", DASHBOARD_PORT, &ports.dashboard), ("Ray Client", CLIENT_PORT, &ports.client)];
    let moved = usual.into_iter().filter(|(_, port, forward)| forward.local_addr.port() != *port);
    let mut remarks: Vec<_> = moved
        .map(|(what, port, forward)| {
            format!("port {port} is in use here; {what} is at {}", forward.local_addr.port())
        })
        .collect();
    let ray = Ray::new(ports.dashboard.local_addr.port(), token.clone())?;
    let version = ray.version().await?;
    remarks.extend(local_mismatch(&version).await);
    Ok(remarks)
}

#[derive(Debug, Deserialize)]
struct LocalPython {
    python: String,
    ray: Option<String>,
}

/// How this machine's Python and Ray differ from the cluster's, if they do.
async fn local_mismatch(cluster_ray: &str) -> Option<String> {
    const PROBE: &str = "import json, sys
try:
    import importlib.metadata as m; ray = m.version('ray')
except Exception:
    ray = None
print(json.dumps({'python': '%d.%d' % sys.version_info[:2], 'ray': ray}))";
    let output = Command::new("python3").args(["-c", PROBE]).stderr(Stdio::null()).output().await.ok()?;
    let local: LocalPython = serde_json::from_slice(&output.stdout).ok()?;
    let install = format!("pip install 'ray[client]=={cluster_ray}'");
    match local.ray {
        None => Some(format!("this machine's python3 has no Ray; for ray.init(\"ray://...\"): {install}")),
        Some(ray) if ray != cluster_ray => Some(format!(
            "this machine has Ray {ray} and the cluster {cluster_ray}; Ray Client needs the same: {install}"
        )),
        Some(ray) => {
            // Environments of one Ray release have one Python.
            let known = BUILT_IN.iter().find(|environment| environment.ray_version() == ray)?;
            let wanted = known.python_minor;
            (local.python != wanted).then(|| {
                format!(
                    "this machine's python3 is {} and the cluster's {wanted}; Ray Client needs the same minor release \
                     (jobs do not)",
                    local.python
                )
            })
        }
    }
}

fn variables(token: &Secret, ports: &Ports) -> Vec<(&'static str, String)> {
    vec![
        ("RAY_ADDRESS", address("http", &ports.dashboard)),
        ("IONET_RAY_CLIENT", address("ray", &ports.client)),
        ("RAY_AUTH_MODE", "token".into()),
        ("RAY_AUTH_TOKEN", token.expose().to_owned()),
    ]
}

fn address(scheme: &str, forward: &LocalForward) -> String {
    format!("{scheme}://{}", forward.local_addr)
}

fn lines(
    context: &Context,
    args: &ConnectArgs,
    token: &Secret,
    ports: &Ports,
    remarks: Vec<String>,
) -> Result<Lines> {
    let file = context.path(format!("clusters/{}.env", args.cluster));
    let exports =
        variables(token, ports).into_iter().map(|(name, value)| format!("export {name}='{value}'\n"));
    write_private(&file, exports.collect::<String>().as_bytes())?;
    Ok(Lines {
        cluster: args.cluster.to_string(),
        dashboard: address("http", &ports.dashboard),
        ray_client: address("ray", &ports.client),
        jobs: address("http", &ports.dashboard),
        notebook: ports.notebook.as_ref().map(|forward| address("http", forward)),
        environment_file: file.display().to_string(),
        token: args.show_token.then(|| token.expose().to_owned()),
        remarks,
    })
}

fn show(out: Out, lines: &Lines) {
    lines.remarks.iter().for_each(|remark| out.note(remark));
    out.line(format!("dashboard    {}", lines.dashboard));
    out.line(format!("Ray Client   {}", lines.ray_client));
    if let Some(notebook) = &lines.notebook {
        out.line(format!("notebook     {notebook} (its token is the cluster's)"));
    }
    out.line(format!("\nin a shell:\n  source {}", lines.environment_file));
    if let Some(token) = &lines.token {
        out.line(format!("  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token}"));
    }
    out.line("  ray job submit --working-dir . -- python train.py");
    out.line(format!("in Python:\n  import ray\n  ray.init(\"{}\")", lines.ray_client));
}

/// Runs a program with the cluster's variables; answers its status.
async fn run(words: &[String], token: &Secret, ports: &Ports) -> Result<u8> {
    let [program, rest @ ..] = words else { return Err(CliError::usage("--exec needs a program")) };
    let mut command = Command::new(program);
    command.args(rest).envs(variables(token, ports)).kill_on_drop(true);
    let status = command.status().await.map_err(io(format!("run {program}")))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
