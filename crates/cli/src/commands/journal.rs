//! The journal: read it, follow it, and (offline) verify it.

use std::path::{Path, PathBuf};

use ionet_api::rest::{EventFilter, EventView};
use ionet_server::Audit;
use serde_json::{Value, json};

use crate::args::JournalCommand;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::out::Out;
use crate::units::moment;
use crate::words;

/// `ionet journal`
pub(crate) async fn journal(context: &Context, command: &JournalCommand) -> Result {
    match command {
        JournalCommand::Verify { dir } => {
            let found = verify_dir(&dir.clone().unwrap_or_else(|| dir_of(context))).await?;
            context.out.answer(&found.json(), |out| found.show(out));
            Ok(())
        }
        JournalCommand::Show { subject, after, limit, follow } => {
            let (after, newest) = (after.unwrap_or_default(), after.is_none());
            let (subject, limit) = (subject.clone(), Some(*limit));
            show(context, EventFilter { subject, after, newest, limit, before: None }, *follow).await
        }
        JournalCommand::Head => head(context).await,
    }
}

/// Where the journal of this data directory's server is.
pub(crate) fn dir_of(context: &Context) -> PathBuf {
    context.path("server/journal")
}

/// A journal that was found whole, and whose books add up.
#[derive(Debug)]
pub(crate) struct Found(Audit);

/// Recomputes the chain of the journal in this folder, folds it and checks the books.
pub(crate) async fn verify_dir(dir: &Path) -> Result<Found> {
    if !dir.is_dir() {
        let message = format!("there is no journal in {}", dir.display());
        return Err(CliError::refused("no_journal", message)
            .help("say --dir DIR; the server's machine has it in <data-dir>/server/journal"));
    }
    let dir = dir.to_owned();
    let audit = tokio::task::spawn_blocking(move || ionet_server::verify(&dir)).await;
    let audit = audit.map_err(|error| CliError::internal("verify", error.to_string()))??;
    match &audit.fault {
        Some(fault) => Err(CliError::refused("books_wrong", format!("the books do not add up: {fault}"))
            .help("keep a copy of the data directory and report this")),
        None => Ok(Found(audit)),
    }
}

impl Found {
    fn json(&self) -> Value {
        let Audit { journal, state, .. } = &self.0;
        json!({
            "verified": true,
            "seq": journal.head.seq,
            "hash": journal.head.hash.to_string(),
            "segments": journal.segments,
            "private_present": journal.privates_present,
            "private_erased": journal.privates_erased,
            "torn": journal.torn.as_ref().map(|torn| format!("{torn:?}")),
            "accounts": state.ledger.balances().count(),
            "devices": state.devices.len(),
            "live_orders": state.orders.len(),
        })
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Audit { journal, state, .. } = &self.0;
        format!(
            "verified: {} events in one chain, {} accounts that add up to zero, head {}",
            journal.head.seq,
            state.ledger.balances().count(),
            journal.head.hash
        )
    }

    fn show(&self, out: Out) {
        let Audit { journal, state, .. } = &self.0;
        out.line(self.line());
        out.line(format!(
            "{} segments, {} private parts that match, {} erased; {} devices, {} live orders",
            journal.segments,
            journal.privates_present,
            journal.privates_erased,
            state.devices.len(),
            state.orders.len()
        ));
        if let Some(torn) = &journal.torn {
            out.line(format!("a torn end, which the next start cuts (nobody was told of it): {torn:?}"));
        }
    }
}

async fn head(context: &Context) -> Result {
    let (_, network) = context.visitor().await?;
    let head = &network.journal;
    let answer = json!({ "seq": head.seq, "hash": head.hash, "term": network.term });
    context.out.answer(&answer, |out| out.line(format!("{} {}", head.seq, head.hash)));
    Ok(())
}

/// Prints the events that meet the filter, newest last, and, if asked, goes on with those that come.
pub(crate) async fn show(context: &Context, mut filter: EventFilter, follow: bool) -> Result {
    let client = match context.session().await {
        Ok(session) => session.client,
        // The public journal needs no account.
        Err(error) if error.code == "no_wallet" => context.visitor().await?.0,
        Err(error) => return Err(error),
    };
    let mut events = client.journal(&filter).await?;
    if filter.newest {
        events.reverse();
    }
    if !follow {
        context.out.answer(&events, |out| events.iter().for_each(|event| line(out, event)));
        return Ok(());
    }
    for event in &events {
        one(context.out, event);
    }
    filter.after = events.last().map_or(filter.after, |event| event.seq);
    (filter.limit, filter.newest) = (None, false);
    let mut response = client.events(&filter).await?;
    let mut reader = EventLines::default();
    while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
        for data in reader.push(&chunk) {
            if let Ok(event) = serde_json::from_str::<EventView>(&data)
                && event.seq > filter.after
            {
                filter.after = event.seq;
                one(context.out, &event);
            }
        }
    }
    Ok(())
}

fn lost(error: &reqwest::Error) -> CliError {
    CliError::unreachable("unreachable", format!("the stream of events broke: {error}"))
}

fn one(out: Out, event: &EventView) {
    out.answer(event, |out| line(out, event));
}

fn line(out: Out, event: &EventView) {
    out.line(format!("{:>6}  {}  {}", event.seq, moment(event.at_ms), words::event(event)));
}

/// The `data:` parts of server-sent events, as their bytes come in.
#[derive(Debug, Default)]
struct EventLines {
    pending: Vec<u8>,
}

impl EventLines {
    fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(chunk);
        let mut found = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            found.extend(line.trim_end().strip_prefix("data:").map(|data| data.trim_start().to_owned()));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_any_pieces() {
        let mut lines = EventLines::default();
        assert_eq!(lines.push(b"event: x\nda"), Vec::<String>::new());
        assert_eq!(lines.push(b"ta: {\"a\":1}\n\ndata:2\r\n: keep"), vec!["{\"a\":1}", "2"]);
    }
}
