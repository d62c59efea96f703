//! The real writer with its two threads, over a disk whose syncs wait until the test lets them through.

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ionet_domain::account::ActivityKind;
use ionet_domain::command::CommandBody;
use ionet_domain::{Actor, Command};
use ionet_journal::{Disk, MemDisk};
use ionet_server::{
    Core, CoreOptions, EngineOptions, Keys, Message, Output, ServerError, SharedView, Submitted, Writer,
};
use tokio::sync::{mpsc, oneshot};

use crate::world::{RENTER, START_MS, params};

/// A sync goes through when the gate stands open or has a pass left; `None` breaks the disk.
#[derive(Debug, Default)]
struct Gate {
    passes: Option<usize>,
    broken: bool,
    waiting: bool,
    synced: usize,
}

#[derive(Debug, Clone, Default)]
struct SlowDisk {
    mem: MemDisk,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

impl SlowDisk {
    fn set(&self, change: impl FnOnce(&mut Gate)) {
        change(&mut self.gate.0.lock().unwrap());
        self.gate.1.notify_all();
    }

    fn until(&self, holds: impl Fn(&Gate) -> bool) {
        let gate = self.gate.0.lock().unwrap();
        let waited = self.gate.1.wait_timeout_while(gate, Duration::from_mins(1), |gate| !holds(gate));
        let late = waited.unwrap().1;
        assert!(!late.timed_out(), "it never came to this");
    }

    fn pass(&self) -> Result<()> {
        let mut gate = self.gate.0.lock().unwrap();
        gate.waiting = true;
        self.gate.1.notify_all();
        let closed = |gate: &mut Gate| gate.passes == Some(0) && !gate.broken;
        let mut gate = self.gate.1.wait_while(gate, closed).unwrap();
        gate.waiting = false;
        gate.passes = gate.passes.map(|passes| passes.saturating_sub(1));
        gate.synced += 1;
        self.gate.1.notify_all();
        if gate.broken { Err(Error::other("the cable came off")) } else { Ok(()) }
    }
}

impl Disk for SlowDisk {
    fn list(&self) -> Result<Vec<String>> {
        self.mem.list()
    }
    fn size(&self, name: &str) -> Result<u64> {
        self.mem.size(name)
    }
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize> {
        self.mem.read_at(name, offset, into)
    }
    fn append(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.mem.append(name, bytes)
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.mem.write_at(name, offset, bytes)
    }
    fn truncate(&self, name: &str, bytes: u64) -> Result<()> {
        self.mem.truncate(name, bytes)
    }
    fn sync(&self, name: &str) -> Result<()> {
        self.pass()?;
        self.mem.sync(name)
    }
    fn sync_dir(&self) -> Result<()> {
        self.mem.sync_dir()
    }
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.mem.replace(name, bytes)
    }
    fn remove(&self, name: &str) -> Result<()> {
        self.mem.remove(name)
    }
}

type Answer = oneshot::Receiver<std::result::Result<Submitted, ServerError>>;

struct Running {
    disk: SlowDisk,
    inbox: mpsc::Sender<Message>,
    view: SharedView,
    /// How many events each batch had, as they were released.
    batches: Arc<Mutex<Vec<usize>>>,
    writer: JoinHandle<std::result::Result<(), ServerError>>,
}

/// A writer on a disk whose gate is shut.
fn running() -> Running {
    let disk = SlowDisk::default();
    let engine = EngineOptions { params: params(), ..EngineOptions::default() };
    let keys = Keys::from_seeds([40; 32], [41; 32]);
    let options = CoreOptions { engine, keys, endpoints: BTreeMap::new() };
    let (core, committer, _) = Core::open(disk.clone(), options, START_MS).unwrap();
    disk.set(|gate| gate.passes = Some(0));
    let view = core.view().clone();
    let (inbox, messages) = mpsc::channel(1000);
    let batches = Arc::new(Mutex::new(Vec::new()));
    let released = batches.clone();
    let release = move |durable: ionet_server::Durable, mut waiting: ionet_server::Waiting| {
        for output in durable.outputs {
            match output {
                Output::Answer(ticket, answer) => waiting.answer(ticket, answer),
                Output::Published(events) => released.lock().unwrap().push(events.len()),
                other => panic!("{other:?}"),
            }
        }
    };
    let mut writer = Writer::start(core, committer, messages, || START_MS, release).unwrap();
    let writer = std::thread::spawn(move || {
        while writer.turn()? {}
        Ok(())
    });
    Running { disk, inbox, view, batches, writer }
}

impl Running {
    /// Two private bytes make two syncs, so these commands have none: an activity would.
    fn ask(&self) -> Answer {
        let (reply, answer) = oneshot::channel();
        let command = Command { id: None, actor: Actor::Server, body: CommandBody::BeginTerm { above: 0 } };
        self.inbox.blocking_send(Message::Submit(Box::new(command), Some(reply))).unwrap();
        answer
    }

    fn ask_in_private(&self) -> Answer {
        let (reply, answer) = oneshot::channel();
        let particulars = "from here".into();
        let body = CommandBody::LogActivity {
            account: RENTER,
            kind: ActivityKind::SignedIn,
            key: None,
            particulars,
        };
        let command = Command { id: None, actor: Actor::Server, body };
        self.inbox.blocking_send(Message::Submit(Box::new(command), Some(reply))).unwrap();
        answer
    }

    /// Waits until this many events were decided, durable or not.
    fn decided(&self, events: u64) {
        let began = std::time::Instant::now();
        while self.view.read().state.events < events {
            assert!(began.elapsed() < Duration::from_mins(1), "it never came to this");
            std::thread::yield_now();
        }
    }

    fn head(&self) -> u64 {
        self.view.read().head.seq
    }
}

fn is_open(answer: &mut Answer) -> bool {
    matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

#[test]
fn what_arrives_while_a_sync_runs_is_one_batch_and_waits_for_its_own() {
    let server = running();
    let before = server.head();
    let mut first = server.ask();
    server.disk.until(|gate| gate.waiting);
    let synced = server.disk.gate.0.lock().unwrap().synced;
    let mut rest: Vec<_> = (0..100).map(|_| server.ask()).collect();
    server.decided(before + 101);
    assert!(is_open(&mut first) && rest.iter_mut().all(is_open), "answered before it is durable");
    assert_eq!(server.head(), before);

    server.disk.set(|gate| gate.passes = Some(1));
    let seq = |answer: Answer| answer.blocking_recv().unwrap().unwrap().events[0].0;
    assert_eq!(seq(first), before + 1);
    server.disk.until(|gate| gate.waiting && gate.synced == synced + 1);
    assert!(rest.iter_mut().all(is_open), "answered with the batch before");
    assert_eq!(server.head(), before + 1);

    server.disk.set(|gate| gate.passes = Some(1));
    let seqs: Vec<_> = rest.into_iter().map(seq).collect();
    assert_eq!(seqs, (before + 2..before + 102).collect::<Vec<_>>());
    assert_eq!(server.disk.gate.0.lock().unwrap().synced, synced + 2, "one sync a batch");

    // The private part is durable before the public one is written.
    let mut private = server.ask_in_private();
    server.disk.set(|gate| gate.passes = Some(1));
    server.disk.until(|gate| gate.waiting && gate.synced == synced + 3);
    assert!(is_open(&mut private));
    server.disk.set(|gate| gate.passes = None);
    assert_eq!(seq(private), before + 102);
    server.inbox.blocking_send(Message::Stop).unwrap();
    server.writer.join().unwrap().unwrap();
    assert_eq!(*server.batches.lock().unwrap(), [1, 100, 1]);
}

#[test]
fn a_failed_sync_with_two_batches_pending_answers_nobody() {
    let server = running();
    let before = server.head();
    let first = server.ask();
    server.disk.until(|gate| gate.waiting);
    let second = server.ask();
    server.decided(before + 2);
    server.disk.set(|gate| gate.broken = true);
    assert_eq!(server.writer.join().unwrap().unwrap_err().code(), "sync_failed");
    for answer in [first, second] {
        assert!(answer.blocking_recv().is_err(), "it is not known whether it was carried out");
    }
    assert_eq!(server.view.read().head.seq, before);
    assert!(server.inbox.is_closed() && server.batches.lock().unwrap().is_empty());
}

#[test]
fn what_was_submitted_before_the_stop_is_answered() {
    let server = running();
    let answers: Vec<_> = (0..20).map(|_| server.ask()).collect();
    server.inbox.blocking_send(Message::Stop).unwrap();
    server.disk.set(|gate| gate.passes = None);
    for answer in answers {
        answer.blocking_recv().unwrap().unwrap();
    }
    server.writer.join().unwrap().unwrap();
    assert!(server.inbox.is_closed());
}
