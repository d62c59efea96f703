//! The server as its HTTP side sees it: submit commands, read the view, follow and look up events, sign.
//!
//! Always holds: an answer to a command comes after its events are durable. Not here: who may see what (`http`).

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ionet_api::Secret;
use ionet_api::rest::{JournalHead, NetworkInfo, SignedQuote};
use ionet_api::sign::{self, Grant, SignatureError};
use ionet_domain::account::ActivityKind;
use ionet_domain::command::CommandBody;
use ionet_domain::market::Quote;
use ionet_domain::money::HOUR_MS;
use ionet_domain::{Actor, Address, Command, DeviceId, Event, KeyId, OrderId, PrivateBody, PublicBody};
use ionet_journal::{FileDisk, Hash, Head, Index, PrivatePart, Reader, Record, private_digest};
use ionet_net::{Node, RelayInfo};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::apps::Apps;
use crate::error::ServerError;
use crate::keys::{Keys, random};
use crate::view::{SharedView, View};
use crate::writer::Message;

/// What a carried out command did, durable: each event with its place in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// In their order.
    pub events: Vec<(u64, Event)>,
}

/// An event that just became durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedEvent {
    /// Its place in the journal.
    pub seq: u64,
    /// The chain's hash after it.
    pub hash: Hash,
    /// Public and private part.
    pub event: Event,
}

/// An event as it stands in the journal. The private part is for its owner only: the caller decides who that is.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryEvent {
    /// Its place in the journal.
    pub seq: u64,
    /// When it was decided.
    pub at_ms: u64,
    /// The chain's hash after it.
    pub hash: Hash,
    /// What it belongs to.
    pub subjects: Vec<String>,
    /// The public part exactly as it was written.
    pub public_json: Vec<u8>,
    /// The public part.
    pub public: PublicBody,
    /// The private part; `None` if there was none or it was erased.
    pub private: Option<PrivateBody>,
    /// H(salt || private part), if there ever was one.
    pub private_digest: Option<Hash>,
}

/// A part of the journal: the events after place `after` and before place `before`, at most `limit` of them, oldest
/// first or newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Only later ones.
    pub after: u64,
    /// Only earlier ones; `None` goes to the durable head.
    pub before: Option<u64>,
    /// Newest first.
    pub newest: bool,
    /// At most this many.
    pub limit: usize,
}

/// A running server. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) writer: mpsc::Sender<Message>,
    pub(crate) view: SharedView,
    pub(crate) events: broadcast::Sender<Arc<PublishedEvent>>,
    pub(crate) keys: Keys,
    pub(crate) node: Node,
    pub(crate) relays: Vec<RelayInfo>,
    pub(crate) environments: Vec<String>,
    pub(crate) local: bool,
    pub(crate) reader: Reader<FileDisk>,
    pub(crate) index_path: PathBuf,
    pub(crate) index: Mutex<Option<Index>>,
    pub(crate) keys_used: Mutex<BTreeMap<KeyId, u64>>,
    /// Services under this server's name, if it shows any.
    pub(crate) apps: Option<Arc<Apps>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle({})", self.0.keys.signing.address())
    }
}

/// Milliseconds since 1970 by the system's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Handle {
    /// Carries out a command and answers once its events are durable.
    ///
    /// # Errors
    /// [`ServerError::Refused`] if the rules say no; `exists` if this command's id was carried out before.
    /// [`ServerError::Stopping`]: not known whether it was carried out; ask again under the same id.
    pub async fn submit(&self, command: Command) -> Result<Submitted, ServerError> {
        let (answer, answered) = oneshot::channel();
        let message = Message::Submit(Box::new(command), Some(answer));
        self.0.writer.send(message).await.map_err(|_| ServerError::Stopping)?;
        answered.await.map_err(|_| ServerError::Stopping)?
    }

    /// Looks at the view under a short lock: do nothing slow in `look`.
    pub fn read<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.0.view.read())
    }

    /// Every event from now on, as it becomes durable. Who reads too slowly is told that some were missed
    /// (`Lagged`) and should look them up with [`Handle::history`].
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<PublishedEvent>> {
        self.0.events.subscribe()
    }

    /// Durable events of a part of the journal, of one subject or of all.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn history(
        &self,
        subject: Option<String>,
        span: Span,
    ) -> Result<Vec<HistoryEvent>, ServerError> {
        let inner = self.0.clone();
        let read = move || inner.history(subject.as_deref(), span);
        tokio::task::spawn_blocking(read).await.map_err(|_| ServerError::Stopping)?
    }

    /// What the network is.
    pub fn info(&self) -> NetworkInfo {
        let inner = &self.0;
        let json = |value| serde_json::to_value(value).unwrap_or_default();
        let relays = inner.relays.iter().map(|relay| serde_json::to_value(relay).unwrap_or_default());
        self.read(|view| NetworkInfo {
            name: view.state.params.network.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            server: inner.keys.signing.address(),
            server_addr: json(inner.node.addr()),
            relays: relays.collect(),
            journal: journal_head(view.head),
            term: view.state.term,
            environments: inner.environments.clone(),
            fees_basis_points: (view.state.params.renter_fee.0, view.state.params.supplier_fee.0),
            local: inner.local,
        })
    }

    /// The network's name, which is part of every signed statement.
    pub fn network(&self) -> String {
        self.read(|view| view.state.params.network.clone())
    }

    /// Signs a quote.
    pub fn sign_quote(&self, quote: Quote) -> SignedQuote {
        let signature = self.0.keys.signing.sign(&self.network(), &quote);
        SignedQuote { quote, signature }
    }

    /// Whether this server signed the quote.
    pub fn verify_quote(&self, signed: &SignedQuote) -> Result<(), SignatureError> {
        sign::verify(self.0.keys.signing.address(), &self.network(), &signed.quote, &signed.signature)
    }

    /// Signs leave to open tunnels; hex.
    pub fn sign_grant(&self, grant: &Grant) -> String {
        self.0.keys.signing.sign(&self.network(), grant)
    }

    /// The secret of a cluster's services; for its renter only.
    pub fn cluster_token(&self, order: OrderId) -> Secret {
        self.0.keys.cluster_token(order)
    }

    /// Writes a line into the activity log without waiting; the use of a key at most once an hour. Best effort: when
    /// the server is overloaded the line is dropped.
    pub fn note_activity(
        &self,
        account: Address,
        kind: ActivityKind,
        key: Option<KeyId>,
        particulars: String,
    ) {
        if kind == ActivityKind::KeyUsed && !key.is_some_and(|key| self.first_use(key)) {
            return;
        }
        let body = CommandBody::LogActivity { account, kind, key, particulars };
        let command = Command { id: None, actor: Actor::Server, body };
        if self.0.writer.try_send(Message::Submit(Box::new(command), None)).is_err() {
            tracing::warn!(%account, "a line of the activity log was dropped: the server is overloaded");
        }
    }

    fn first_use(&self, key: KeyId) -> bool {
        let hour = self.now_ms() / HOUR_MS;
        let mut used = self.0.keys_used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, at| *at == hour);
        used.insert(key, hour).is_none()
    }

    /// Begins a new check of a device. The caller has checked that its owner asks.
    pub async fn recheck(&self, device: DeviceId) -> Result<Submitted, ServerError> {
        let body = CommandBody::BeginCheck { device };
        self.submit(Command { id: None, actor: Actor::Server, body }).await
    }

    /// The server's clock, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        now_ms()
    }

    /// Fresh randomness for ids and nonces.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn random_bits(&self) -> Result<u128, ServerError> {
        let mut bytes = [0; 16];
        random(&mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }
}

/// A head as the API shows it.
pub(crate) fn journal_head(head: Head) -> JournalHead {
    JournalHead { seq: head.seq, hash: head.hash.to_string() }
}

impl Inner {
    fn history(&self, subject: Option<&str>, span: Span) -> Result<Vec<HistoryEvent>, ServerError> {
        let Span { after, before, newest, limit } = span;
        let head = self.view.read().head.seq;
        let last = before.map_or(head, |before| head.min(before.saturating_sub(1)));
        let Some(subject) = subject else {
            // Places have no gaps, so the newest begin where they begin.
            let from = if newest { after.max(last.saturating_sub(limit as u64)) } else { after };
            let mut found = Vec::from(self.scan(from, last, Keep::First(limit), |_| true)?);
            if newest {
                found.reverse();
            }
            return Ok(found);
        };
        // The index only says where to look: while it is not there yet or broken, the journal itself is looked through.
        let (indexed, seqs) =
            self.indexed(subject, Span { before: Some(last + 1), ..span }).unwrap_or_else(|error| {
                // Only slower: without the index, as at the very first start, the journal itself is looked through.
                tracing::debug!(%error, "the subject index cannot be asked");
                (0, Vec::new())
            });
        let known = seqs.into_iter().filter(|seq| (after + 1..=last.min(indexed)).contains(seq));
        // The index trails the head: what it does not have yet is looked through.
        let about = |record: &Record| record.subjects.iter().any(|of| of == subject);
        let from = indexed.max(after);
        if newest {
            let tail = self.scan(from, last, Keep::Last(limit), about)?;
            let mut found: Vec<_> = tail.into_iter().rev().collect();
            let missing = limit - found.len();
            self.read_each(known.take(missing), &mut found)?;
            return Ok(found);
        }
        let mut found = Vec::new();
        self.read_each(known, &mut found)?;
        found.extend(self.scan(from, last, Keep::First(limit.saturating_sub(found.len())), about)?);
        Ok(found)
    }

    fn read_each(
        &self,
        seqs: impl Iterator<Item = u64>,
        found: &mut Vec<HistoryEvent>,
    ) -> Result<(), ServerError> {
        for seq in seqs {
            found.extend(self.reader.get(seq)?.map(history_event).transpose()?);
        }
        Ok(())
    }

    /// Durable events that the subject index does not have yet; all of them while it cannot be asked.
    pub(crate) fn index_lag_events(&self) -> u64 {
        let indexed = self.ask_index(Index::position).map_or(0, |at| at.seq);
        self.view.read().head.seq.saturating_sub(indexed)
    }

    /// How far the index goes, and what it has about the subject.
    fn indexed(&self, subject: &str, span: Span) -> Result<(u64, Vec<u64>), ServerError> {
        self.ask_index(|index| {
            // Asked first, so that what comes in between is looked for in the journal.
            let indexed = index.position()?.seq;
            let seqs = match span {
                Span { newest: true, before, limit, .. } => {
                    index.by_subject_newest_first(subject, before.unwrap_or(u64::MAX), limit)
                }
                Span { after, limit, .. } => index.by_subject(subject, after, limit),
            };
            Ok((indexed, seqs?))
        })
    }

    /// Opens the index if need be; one that failed is opened anew the next time.
    fn ask_index<T>(
        &self,
        ask: impl FnOnce(&Index) -> Result<T, ionet_journal::Error>,
    ) -> Result<T, ServerError> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match index.take() {
            Some(open) => open,
            None => Index::open_read_only(&self.index_path)?,
        };
        let found = ask(&open)?;
        *index = Some(open);
        Ok(found)
    }

    /// Looks through the records after `after` up to `last`.
    fn scan(
        &self,
        after: u64,
        last: u64,
        keep: Keep,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<VecDeque<HistoryEvent>, ServerError> {
        let mut found = VecDeque::new();
        if after >= last || matches!(keep, Keep::First(0) | Keep::Last(0)) {
            return Ok(found);
        }
        for record in self.reader.read_from(after + 1)? {
            let record = record?;
            if record.seq > last || matches!(keep, Keep::First(limit) if found.len() >= limit) {
                break;
            }
            if wanted(&record) {
                found.push_back(history_event(record)?);
            }
            if matches!(keep, Keep::Last(limit) if found.len() > limit) {
                found.pop_front();
            }
        }
        Ok(found)
    }
}

/// Which of the found records are wanted.
#[derive(Debug, Clone, Copy)]
enum Keep {
    First(usize),
    Last(usize),
}

fn history_event(record: Record) -> Result<HistoryEvent, ServerError> {
    let (body, digest) = match &record.private {
        PrivatePart::None => (None, None),
        PrivatePart::Present(private) => {
            (Some(private.body.as_slice()), Some(private_digest(&private.salt, &private.body)))
        }
        PrivatePart::Erased { digest } | PrivatePart::Withheld { digest } => (None, Some(*digest)),
    };
    let event = Event::read(record.at_ms, &record.public, body)
        .map_err(|e| ServerError::Unfoldable { seq: record.seq, source: Box::new(e) })?;
    Ok(HistoryEvent {
        seq: record.seq,
        at_ms: record.at_ms,
        hash: record.hash,
        subjects: record.subjects,
        public_json: record.public,
        public: event.public,
        private: event.private,
        private_digest: digest,
    })
}
