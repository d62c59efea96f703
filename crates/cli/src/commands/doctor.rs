//! `ionet worker doctor`: what a supplier's machine lacks, each with the command that mends it.
//!
//! What boxes need is looked at by the runtime; clock, ports and the way to the server are looked at here.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use ionet_worker::box_doctor::{self, Check, Status};

use crate::commands::worker;
use crate::context::Context;
use crate::error::{Result, io};

/// Looks at the machine; status 1 if boxes would not run.
pub(crate) async fn doctor(context: &Context) -> Result<u8> {
    let checks = findings(context).await?;
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    context.out.answer(&checks, |out| {
        let row =
            |check: &Check| vec![word(check.status).to_owned(), check.name.to_owned(), check.found.clone()];
        out.table(&[], &[], checks.iter().map(row).collect());
        for check in checks.iter().filter(|check| !check.remedy.is_empty()) {
            out.line(format!("{}: {}", check.name, check.remedy));
        }
        out.line(if failed { "boxes do not run here yet" } else { "boxes run here" });
    });
    Ok(u8::from(failed))
}

/// Everything that was looked at.
pub(crate) async fn findings(context: &Context) -> Result<Vec<Check>> {
    let dir = worker::dir(context);
    std::fs::create_dir_all(&dir).map_err(io(format!("make {}", dir.display())))?;
    let look = tokio::task::spawn_blocking(move || {
        let mut checks = box_doctor::checks(&dir);
        checks.extend([clock(), ports()]);
        checks
    });
    let mut checks = look.await.unwrap_or_default();
    checks.push(server(context).await);
    Ok(checks)
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    }
}

fn check(name: &'static str, status: Status, found: impl Into<String>, remedy: &str) -> Check {
    Check { name, status, found: found.into(), remedy: remedy.into() }
}

/// Receipts and grants carry times; a clock that is minutes off makes them worthless.
fn clock() -> Check {
    const REMEDY: &str = "sudo timedatectl set-ntp true";
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return check("clock", Status::Ok, "kept in step by systemd-timesyncd", "");
    }
    let said = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output();
    match said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).as_deref() {
        Ok("yes") => check("clock", Status::Ok, "kept in step", ""),
        Ok("no") => check("clock", Status::Warn, "nothing keeps the clock in step", REMEDY),
        _ => check("clock", Status::Ok, "not known whether it is kept in step (no timedatectl)", ""),
    }
}

/// Links are UDP; tunnels end in local TCP ports.
fn ports() -> Check {
    let udp = UdpSocket::bind("0.0.0.0:0").map(drop);
    match udp.and_then(|()| TcpListener::bind("127.0.0.1:0").map(drop)) {
        Ok(()) => check("ports", Status::Ok, "UDP and TCP ports open", ""),
        Err(error) => check("ports", Status::Fail, error.to_string(), "look at 'ss -uap' and at ulimit -n"),
    }
}

/// A worker without a server goes on with what it has, so this is no failure.
async fn server(context: &Context) -> Check {
    match context.visitor().await {
        Ok((client, network)) => {
            check("server", Status::Ok, format!("{} answers for '{}'", client.base(), network.name), "")
        }
        Err(error) => {
            let remedy = error.help.clone().unwrap_or_default();
            check("server", Status::Warn, error.message, &remedy)
        }
    }
}
