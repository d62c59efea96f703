//! The pipelined writer: while one batch is written and synced on the journal's thread, the core decides the next one here.
//!
//! Whatever arrives while a sync runs is one batch, sealed the moment the journal is free. So batches are as long as
//! the load makes them, a command waits for at most the rest of one sync and for its own, and two processors share the
//! work: deciding and folding on one side, encoding, hashing, syncing and releasing on the other.
//!
//! Always holds: at most one batch is with the journal and one is being gathered; batches become durable in the order
//! in which they were decided, and each is released whole before anything of the next; after a failed commit nobody
//! who waits is answered. Not here: what is decided (`core`), where outputs go (`shell`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use ionet_domain::{Command, Event, Refusal};
use ionet_journal::Disk;
use tokio::sync::{mpsc, oneshot};

use crate::commit::{Batch, Committer, Durable};
use crate::core::{Core, Input, Ticket};
use crate::error::ServerError;
use crate::handle::Submitted;

/// Messages that one batch takes at most. What comes after them waits in the inbox, whose senders wait then.
const BATCH_MESSAGES: usize = 4096;
/// Messages taken before the writer looks again whether the journal is free.
const TURN_MESSAGES: usize = 16;

/// After the reconcilers looked, they rest for this many times as long as they took, or till the next tick: however much
/// there is to look at, most of the time is for commands.
const RECONCILE_REST: u32 = 9;

/// Where a command's answer goes.
pub type Reply = oneshot::Sender<Result<Submitted, ServerError>>;

/// What reaches the one writer.
#[derive(Debug)]
pub enum Message {
    /// A command, and who waits for the answer.
    Submit(Box<Command>, Option<Reply>),
    /// From links, chain and index.
    Input(Box<Input>),
    /// Time went by.
    Tick,
    /// Commit what there is and end.
    Stop,
}

/// Who waits for the answers of one batch, in the order in which they asked.
#[derive(Debug, Default)]
pub struct Waiting(VecDeque<(Ticket, Reply)>);

impl Waiting {
    /// Answers whoever holds `ticket`.
    pub fn answer(&mut self, ticket: Ticket, answer: Result<Vec<(u64, Event)>, Refusal>) {
        while let Some((of, reply)) = self.0.pop_front() {
            if of == ticket {
                let answer = answer.map(|events| Submitted { events }).map_err(ServerError::from);
                // Whoever no longer waits does not want to know.
                let _ = reply.send(answer);
                return;
            }
        }
    }
}

/// The writer's side of the pipeline.
pub struct Writer {
    core: Core,
    inbox: mpsc::Receiver<Message>,
    clock: Box<dyn Fn() -> u64 + Send>,
    waiting: Waiting,
    ticket: Ticket,
    gathered: usize,
    tick: bool,
    reconcile_at: Instant,
    stopping: bool,
    journal: JournalThread,
}

/// What the writer waits for.
enum Next {
    Message(Message),
    Committed(Result<(), ServerError>),
    Reconcile,
}

impl Writer {
    /// Starts the journal's thread. `clock` gives milliseconds since 1970; `release` is called there with everything
    /// that became durable.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start<D: Disk + Send + 'static>(
        core: Core,
        committer: Committer<D>,
        inbox: mpsc::Receiver<Message>,
        clock: impl Fn() -> u64 + Send + 'static,
        release: impl FnMut(Durable, Waiting) + Send + 'static,
    ) -> Result<Self, ServerError> {
        Ok(Self {
            core,
            inbox,
            clock: Box::new(clock),
            waiting: Waiting::default(),
            ticket: 0,
            gathered: 0,
            tick: true,
            reconcile_at: Instant::now(),
            stopping: false,
            journal: JournalThread::start(committer, release)?,
        })
    }

    /// State and fleet.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Waits until there is something to do and does it; false once it was stopped and everything is durable.
    ///
    /// # Errors
    /// A failed commit: drop the writer, so that whoever waits is told that the server is stopping.
    pub fn turn(&mut self) -> Result<bool, ServerError> {
        self.hand_over()?;
        if self.stopping && !self.journal.busy {
            return Ok(false);
        }
        match self.wait() {
            Next::Committed(done) => {
                done?;
                self.journal.busy = false;
            }
            Next::Message(message) => {
                self.take(message);
                self.take_more();
            }
            Next::Reconcile => {}
        }
        Ok(true)
    }

    /// Gives the journal what was gathered, if it is free.
    fn hand_over(&mut self) -> Result<(), ServerError> {
        if self.journal.busy {
            return Ok(());
        }
        let look = std::mem::take(&mut self.tick) || self.rest() == Some(Duration::ZERO);
        if look && !self.stopping {
            let began = Instant::now();
            self.core.step((self.clock)(), Input::Tick);
            self.reconcile_at = Instant::now() + RECONCILE_REST * began.elapsed();
        }
        let batch = self.core.seal()?;
        if !batch.is_empty() {
            self.gathered = 0;
            self.journal.take(batch, std::mem::take(&mut self.waiting))?;
        }
        Ok(())
    }

    /// How long the reconcilers still rest, if there is something for them to look at.
    fn rest(&self) -> Option<Duration> {
        self.core.dirty().then(|| self.reconcile_at.saturating_duration_since(Instant::now()))
    }

    fn may_take(&self) -> bool {
        !self.stopping && self.gathered < BATCH_MESSAGES
    }

    fn take_more(&mut self) {
        for _ in 1..TURN_MESSAGES {
            let message = if self.may_take() { self.inbox.try_recv().ok() } else { None };
            match message {
                Some(message) => self.take(message),
                None => return,
            }
        }
    }

    fn take(&mut self, message: Message) {
        self.gathered += 1;
        match message {
            Message::Submit(command, reply) => {
                let ticket = reply.map(|reply| self.queue(reply));
                self.core.step((self.clock)(), Input::Submit(ticket, *command));
            }
            Message::Input(input) => self.core.step((self.clock)(), *input),
            Message::Tick => self.tick = true,
            Message::Stop => self.stopping = true,
        }
    }

    fn queue(&mut self, reply: Reply) -> Ticket {
        self.ticket += 1;
        self.waiting.0.push_back((self.ticket, reply));
        self.ticket
    }

    /// The end of a commit comes first: the journal shall not stand still.
    fn wait(&mut self) -> Next {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(done) = self.journal.done.poll_recv(&mut context) {
                return Next::Committed(done.unwrap_or(Err(ServerError::Stopping)));
            }
            if self.may_take()
                && let Poll::Ready(message) = self.inbox.poll_recv(&mut context)
            {
                return Next::Message(message.unwrap_or(Message::Stop));
            }
            match self.rest().filter(|_| !self.journal.busy) {
                Some(Duration::ZERO) => return Next::Reconcile,
                Some(rest) => std::thread::park_timeout(rest),
                None => std::thread::park(),
            }
        }
    }
}

/// Wakes a thread that waits for two queues.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The journal's side: commits and releases batch by batch.
struct JournalThread {
    batches: Option<SyncSender<(Batch, Waiting)>>,
    done: mpsc::UnboundedReceiver<Result<(), ServerError>>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

impl JournalThread {
    fn start<D: Disk + Send + 'static>(
        mut committer: Committer<D>,
        mut release: impl FnMut(Durable, Waiting) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let (batches, sealed): (_, Receiver<(Batch, Waiting)>) = sync_channel(1);
        let (tell, done) = mpsc::unbounded_channel();
        let run = move || {
            for (batch, waiting) in sealed {
                match committer.commit(batch) {
                    Ok(durable) => {
                        // First that it is free again: the next batch comes while this one leaves.
                        let _ = tell.send(Ok(()));
                        release(durable, waiting);
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("ionet-journal".into()).spawn(run);
        let thread = thread.map_err(ServerError::io("start the journal's thread"))?;
        Ok(Self { batches: Some(batches), done, busy: false, thread: Some(thread) })
    }

    fn take(&mut self, batch: Batch, waiting: Waiting) -> Result<(), ServerError> {
        self.busy = true;
        let batches = self.batches.as_ref().ok_or(ServerError::Stopping)?;
        batches.send((batch, waiting)).map_err(|_| ServerError::Stopping)
    }
}

impl Drop for JournalThread {
    /// Everything handed over is committed and released when this returns.
    fn drop(&mut self) {
        self.batches = None;
        self.thread.take().map(JoinHandle::join);
    }
}
