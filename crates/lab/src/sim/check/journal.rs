//! Records, commands, wishes and answers: each once, and still there after any crash.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::{CommandId, Event, OrderId, PublicBody, Refusal};
use ionet_journal::{Hash, Record};
use ionet_server::{PublishedEvent, Ticket};

use crate::Result;
use crate::sim::promise::{Promise, broken, must};

/// What was said to be in the journal.
#[derive(Debug, Default)]
pub(in crate::sim) struct Book {
    /// Which wish of which renter each order belongs to.
    pub(in crate::sim) wishes: BTreeMap<OrderId, u64>,
    /// The answer that is true, of requests that must be refused.
    pub(in crate::sim) refusals: BTreeMap<Ticket, Refusal>,
    hashes: Vec<Hash>,
    promised: BTreeMap<u64, Vec<u8>>,
    commands: BTreeSet<CommandId>,
    accepted: BTreeMap<u64, OrderId>,
    /// Orders that the journal has, as the subject index knows them.
    pub(in crate::sim) orders: BTreeSet<OrderId>,
}

impl Book {
    pub(super) fn put_back(&mut self, seq: u64) {
        self.hashes.truncate(usize::try_from(seq).unwrap_or(usize::MAX));
        self.promised.retain(|at, _| *at <= seq);
        self.commands.clear();
        self.accepted.clear();
        self.orders.clear();
    }

    /// Records that are known.
    pub(in crate::sim) fn len(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// A record read again must be the one that was published and answered. True if it is new.
    pub(in crate::sim) fn reread(&mut self, record: &Record) -> Result<bool> {
        let at = usize::try_from(record.seq - 1).unwrap_or(usize::MAX);
        let known = self.hashes.get(at);
        must(known.is_none_or(|hash| *hash == record.hash), Promise::PublishedDurable, || {
            format!("record {} changed after it was published", record.seq)
        })?;
        let promised = self.promised.get(&record.seq);
        must(promised.is_none_or(|public| *public == record.public), Promise::AnswerDurable, || {
            format!("record {} is not the event that was answered", record.seq)
        })?;
        let new = known.is_none();
        if new {
            self.hashes.push(record.hash);
        }
        Ok(new)
    }

    /// All was read again.
    pub(in crate::sim) fn reread_all(&self, last_seq: u64) -> Result<()> {
        must(last_seq >= self.len(), Promise::PublishedDurable, || {
            format!("{} records were published and {last_seq} are left", self.hashes.len())
        })?;
        match self.promised.keys().next_back() {
            Some(seq) if *seq > last_seq => broken(
                Promise::AnswerDurable,
                format!("the event of record {seq} was answered and the journal ends at {last_seq}"),
            ),
            _ => Ok(()),
        }
    }

    /// An event became durable.
    pub(in crate::sim) fn published(&mut self, published: &PublishedEvent) -> Result<()> {
        must(published.seq == self.len() + 1, Promise::PublishedInOrder, || {
            format!("record {} was published after {}", published.seq, self.hashes.len())
        })?;
        self.hashes.push(published.hash);
        Ok(())
    }

    /// Somebody was told that these happened.
    pub(in crate::sim) fn promise(&mut self, events: Vec<(u64, Event)>) {
        self.promised.extend(events.into_iter().map(|(seq, event)| (seq, event.public_json())));
    }

    /// An answer must be the true one.
    pub(in crate::sim) fn answered(&mut self, ticket: Ticket, refusal: Option<&Refusal>) -> Result<()> {
        let truth = self.refusals.remove(&ticket);
        must(truth.as_ref() == refusal, Promise::ReasonsTrue, || {
            format!("the answer was {refusal:?} and the truth is {truth:?}")
        })
    }

    /// One effect a command, one order a wish.
    pub(super) fn note(&mut self, event: &Event) -> Result<()> {
        if let Some(command) = event.command {
            let new = self.commands.insert(command);
            must(new, Promise::OneEffect, || format!("command {command} had its effect twice"))?;
        }
        let PublicBody::OrderAccepted { order, .. } = &event.public else { return Ok(()) };
        self.orders.insert(*order);
        let Some(wish) = self.wishes.get(order) else { return Ok(()) };
        match self.accepted.insert(*wish, *order) {
            Some(first) => {
                broken(Promise::OneOrder, format!("one wish became two orders: {first} and {order}"))
            }
            None => Ok(()),
        }
    }
}
