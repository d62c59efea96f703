//! `ionet worker doctor`: what a supplier's machine lacks, each with the command that mends it.
//!
//! Not here: the looking (`ionet-worker`, `ionet-runtime`).

use ionet_worker::box_doctor::{self, Check, Status};

use crate::commands::worker;
use crate::context::Context;
use crate::error::{Result, io};

/// Looks at the machine; status 1 if something is missing.
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
        out.line(if failed {
            "something is missing: this machine cannot supply yet"
        } else {
            "this machine can supply"
        });
    });
    Ok(u8::from(failed))
}

/// Everything that was looked at.
pub(crate) async fn findings(context: &Context) -> Result<Vec<Check>> {
    let dir = worker::dir(context);
    std::fs::create_dir_all(&dir).map_err(io(format!("make {}", dir.display())))?;
    Ok(ionet_worker::doctor::checks(&dir, context.url().ok().as_deref()).await)
}

/// Only what boxes need.
pub(crate) async fn of_boxes(context: &Context) -> Result<Vec<Check>> {
    let dir = worker::dir(context);
    std::fs::create_dir_all(&dir).map_err(io(format!("make {}", dir.display())))?;
    Ok(tokio::task::spawn_blocking(move || box_doctor::checks(&dir)).await.unwrap_or_default())
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    }
}
