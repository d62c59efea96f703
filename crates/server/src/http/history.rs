//! Looking things up in the journal, page by page.

use ionet_api::rest::{EventFilter, EventView};
use ionet_domain::PublicBody;
use ionet_domain::ledger::Transfer;

use super::Api;
use super::error::Error;
use super::views::out_of_range;
use crate::handle::HistoryEvent;

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MOST: u32 = 1000;
const SUBJECT_BYTES_MOST: usize = 200;

/// How many entries are wanted.
pub(super) fn limit(filter: &EventFilter) -> Result<usize, Error> {
    let wanted = filter.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MOST).contains(&wanted) {
        return Err(out_of_range("limit", &wanted.to_string(), &format!("1 to {LIMIT_MOST}")).into());
    }
    check_subject(filter.subject.as_deref())?;
    Ok(usize::try_from(wanted).unwrap_or(usize::MAX))
}

/// Refuses a subject that is longer than any there is.
pub(super) fn check_subject(subject: Option<&str>) -> Result<(), Error> {
    match subject {
        Some(subject) if subject.len() > SUBJECT_BYTES_MOST => {
            Err(out_of_range("subject", subject, "an id of this network").into())
        }
        _ => Ok(()),
    }
}

/// At least `limit` of what `pick` finds in the events about `subject`, or all there is. One event's finds stay together,
/// so that going on after its place misses none.
pub(super) async fn collect<T>(
    api: &Api,
    subject: String,
    filter: &EventFilter,
    pick: impl Fn(&HistoryEvent) -> Vec<T>,
) -> Result<Vec<T>, Error> {
    let wanted = limit(filter)?;
    let (mut found, mut after) = (Vec::new(), filter.after);
    let page_events = usize::try_from(LIMIT_MOST).unwrap_or(usize::MAX);
    loop {
        let page = api.handle.history(Some(subject.clone()), after, page_events).await?;
        let last = page.len() < page_events;
        for event in &page {
            if found.len() >= wanted {
                return Ok(found);
            }
            found.extend(pick(event));
            after = event.seq;
        }
        if last {
            return Ok(found);
        }
    }
}

/// The public part of an event as the API shows it; with its exact text where the chain is to be recomputed.
pub(super) fn event_view(event: &HistoryEvent, with_text: bool) -> EventView {
    let text = || String::from_utf8_lossy(&event.public_json).into_owned();
    EventView {
        seq: event.seq,
        at_ms: event.at_ms,
        hash: event.hash.to_string(),
        subjects: event.subjects.clone(),
        event: serde_json::from_slice(&event.public_json).unwrap_or_default(),
        private_digest: event.private_digest.map(|digest| digest.to_string()),
        text: with_text.then(text),
    }
}

/// Every transfer that an event made.
pub(super) fn transfers(event: &PublicBody) -> Vec<Transfer> {
    use PublicBody as B;
    match event {
        B::Deposited { transfer, .. }
        | B::Sent { transfer }
        | B::OrderFunded { transfer, .. }
        | B::OrderExtended { transfer, .. }
        | B::PayoutPaid { transfer, .. } => vec![*transfer],
        B::LeaseMetered { charge, .. } => charge.transfers.clone(),
        B::ChargesProven { transfers, .. }
        | B::ChargesVoided { transfers, .. }
        | B::PayoutAdopted { transfers, .. } => transfers.clone(),
        B::OrderSettled { refund, .. } => refund.iter().copied().collect(),
        B::PayoutOpened { content, .. } => vec![content.transfer],
        _ => Vec::new(),
    }
}
