//! Looking things up in the journal, page by page.

use std::collections::BTreeMap;
use std::ops::Bound;

use ionet_api::rest::{EventFilter, EventView, PAGE_MOST};
use ionet_domain::PublicBody;
use ionet_domain::ledger::Transfer;

use super::Api;
use super::error::Error;
use super::views::out_of_range;
use crate::handle::{HistoryEvent, Span};

const LIMIT_DEFAULT: u32 = 100;
const PAGE_SPARE: usize = 64;
const SUBJECT_BYTES_MOST: usize = 200;

/// Which part of the journal is wanted, and how much of it.
pub(super) fn span(filter: &EventFilter) -> Result<Span, Error> {
    check_subject(filter.subject.as_deref())?;
    let limit = page_size(filter.limit.or(Some(LIMIT_DEFAULT)))?;
    Ok(Span { after: filter.after, before: filter.before, newest: filter.newest, limit })
}

/// How many entries of a list are wanted.
pub(super) fn page_size(limit: Option<u32>) -> Result<usize, Error> {
    let wanted = limit.unwrap_or(PAGE_MOST);
    if !(1..=PAGE_MOST).contains(&wanted) {
        return Err(out_of_range("limit", &wanted.to_string(), &format!("1 to {PAGE_MOST}")).into());
    }
    Ok(usize::try_from(wanted).unwrap_or(usize::MAX))
}

/// The things after the first id and before the second, which are in the order of their making, in the order asked for.
pub(super) fn in_span<K: Ord + Copy, V>(
    things: &BTreeMap<K, V>,
    (after, before, newest): (Option<K>, Option<K>, bool),
) -> Box<dyn Iterator<Item = (&K, &V)> + '_> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let to = before.map_or(Bound::Unbounded, Bound::Excluded);
    match (after, before) {
        (Some(after), Some(before)) if after >= before => Box::new(std::iter::empty()),
        _ if newest => Box::new(things.range((from, to)).rev()),
        _ => Box::new(things.range((from, to))),
    }
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
    let Span { limit: wanted, mut after, mut before, newest } = span(filter)?;
    let mut found = Vec::new();
    // A little more than is wanted, as not every event has something to find in it.
    let limit = wanted + PAGE_SPARE;
    loop {
        let page = api.handle.history(Some(subject.clone()), Span { after, before, newest, limit }).await?;
        let last = page.len() < limit;
        for event in &page {
            if found.len() >= wanted {
                return Ok(found);
            }
            let finds = pick(event);
            if newest {
                found.extend(finds.into_iter().rev());
                before = Some(event.seq);
            } else {
                found.extend(finds);
                after = event.seq;
            }
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
        | B::OrderGrown { transfer, .. }
        | B::PayoutPaid { transfer, .. } => vec![*transfer],
        B::LeaseMetered { charge, .. } => charge.transfers.clone(),
        B::ChargesProven { transfers, .. }
        | B::ChargesVoided { transfers, .. }
        | B::PayoutAdopted { transfers, .. } => transfers.clone(),
        B::OrderSettled { refund, .. } | B::OrderShrunk { refund, .. } | B::OrderChanged { refund, .. } => {
            refund.iter().copied().collect()
        }
        B::PayoutOpened { content, .. } => vec![content.transfer],
        _ => Vec::new(),
    }
}
