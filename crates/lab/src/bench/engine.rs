//! Durable transfers a second through the server's own pipelined writer, and how long a client waits for each.
//!
//! A fixed number of clients ask in a closed loop: each sends its next command when the last was answered. Beside them the
//! subject index follows, and bare writes and syncs of as many bytes as a batch has are measured on the same file system
//! while the load runs.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ionet_journal::{FileDisk, Index, Reader, Scope};
use ionet_server::shell::GATHER;
use ionet_server::{Durable, Message, Output, SharedView, Waiting, Writer};
use tokio::sync::{mpsc, oneshot};

use super::load::{self, Kind, Load, NOW_MS};
use super::plot::{Plot, Series};
use super::{Figure, Report, Target, ms, percentile, sorted};
use crate::{LabError, Result};

/// Pause between two bare syncs.
const BARE_EVERY: Duration = Duration::from_millis(10);
/// As the server's.
const QUEUED_MESSAGES: usize = 8192;

/// How much to do.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// What the commands are.
    pub kind: Kind,
    /// Transfers in all.
    pub transfers: usize,
    /// Clients, each with one command at a time.
    pub clients: usize,
}

/// What is known of the batches so far.
#[derive(Debug, Default)]
struct Batches {
    count: AtomicU64,
    events: AtomicU64,
}

/// Runs in `dir`, which should be on the disk that matters.
pub fn run(dir: &Path, size: Size) -> Result<Report> {
    let journal_dir = dir.join("journal");
    let disk = FileDisk::open(&journal_dir).map_err(LabError::journal("open the disk"))?;
    let mut server = load::open(disk.clone())?;
    let load = Load::begin(size.kind, &mut server)?;
    let (core, committer) = server;
    let view = core.view().clone();
    let first_seq = view.read().head.seq;
    let batches = Arc::new(Batches::default());
    let follower = Follower::start(disk, &dir.join("index.sqlite"), view.clone())?;
    let bare = Bare::start(dir, journal_dir, batches.clone(), view.clone())?;
    let (inbox, messages) = mpsc::channel(QUEUED_MESSAGES);
    let began = Instant::now();
    let release = release(batches.clone(), follower.commits.clone());
    let mut writer = Writer::start(core, committer, messages, clock(began), release)
        .map_err(LabError::server("start the writer"))?;
    let turns = move || {
        while writer.turn()? {}
        Ok(())
    };
    let writer = std::thread::Builder::new().name("writer".into()).spawn(turns);
    let writer = writer.map_err(LabError::io("start the writer"))?;
    let latencies = clients(load, &inbox, size)?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = Cpu::now();
    let _ = inbox.blocking_send(Message::Stop);
    let done = writer.join().map_err(|_| LabError::Broken("the writer panicked".into()))?;
    done.map_err(LabError::server("write"))?;
    let (syncs, sync_bytes) = bare.finish()?;
    let lags = follower.finish()?;
    view.read().state.audit().map_err(LabError::Broken)?;
    let events = (view.read().head.seq - first_seq) as f64;
    let batch_events = events / batches.count.load(Ordering::Relaxed) as f64;
    Ok(report(size, &Measured { seconds, latencies, syncs, sync_bytes, lags, cpu, batch_events }))
}

/// Goes on from the moment at which the load begins.
fn clock(began: Instant) -> impl Fn() -> u64 + Send {
    move || NOW_MS + 1000 + u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What the shell does with what became durable, as far as the load asks for it.
fn release(batches: Arc<Batches>, commits: Commits) -> impl FnMut(Durable, Waiting) + Send {
    move |durable, mut waiting| {
        for output in durable.outputs {
            match output {
                Output::Answer(ticket, answer) => waiting.answer(ticket, answer),
                Output::Published(events) => {
                    batches.count.fetch_add(1, Ordering::Relaxed);
                    batches.events.fetch_add(events.len() as u64, Ordering::Relaxed);
                    let seq = events.last().map_or(0, |event| event.seq);
                    commits.lock().unwrap_or_else(PoisonError::into_inner).push((seq, Instant::now()));
                }
                _ => {}
            }
        }
    }
}

/// All clients in one thread: answers come in the order of the questions. Gives how long each waited, in milliseconds.
fn clients(mut load: Load, inbox: &mpsc::Sender<Message>, size: Size) -> Result<Vec<f64>> {
    let commands = size.transfers / size.kind.transfers();
    let mut latencies = Vec::with_capacity(commands);
    let mut asked = VecDeque::with_capacity(size.clients);
    let mut hear = |asked: &mut VecDeque<(Instant, oneshot::Receiver<_>)>| {
        let Some((at, answer)) = asked.pop_front() else { return Ok(false) };
        let answer: std::result::Result<_, ionet_server::ServerError> =
            answer.blocking_recv().map_err(|_| LabError::Broken("the writer ended".into()))?;
        answer.map_err(LabError::server("carry out a command"))?;
        latencies.push(ms(at.elapsed()));
        Ok::<_, LabError>(true)
    };
    for _ in 0..commands {
        if asked.len() >= size.clients {
            hear(&mut asked)?;
        }
        let (reply, answer) = oneshot::channel();
        asked.push_back((Instant::now(), answer));
        let message = Message::Submit(Box::new(load.command()), Some(reply));
        inbox.blocking_send(message).map_err(|_| LabError::Broken("the writer ended".into()))?;
    }
    while hear(&mut asked)? {}
    Ok(latencies)
}

/// What a run gave; times in milliseconds.
struct Measured {
    seconds: f64,
    latencies: Vec<f64>,
    syncs: Vec<f64>,
    sync_bytes: f64,
    lags: Vec<f64>,
    cpu: Cpu,
    batch_events: f64,
}

fn report(size: Size, run: &Measured) -> Report {
    let Size { kind, clients, .. } = size;
    let transfers = (run.latencies.len() * kind.transfers()) as f64;
    let (waits, syncs, lags) =
        (sorted(run.latencies.clone()), sorted(run.syncs.clone()), sorted(run.lags.clone()));
    let (p50, p99) = (percentile(&waits, 50), percentile(&waits, 99));
    let (sync_p50, sync_p99) = (percentile(&syncs, 50), percentile(&syncs, 99));
    let cpu = |thread| Figure::new(thread, run.cpu.of(thread) / transfers * 1000.0, "us a transfer");
    let figures = vec![
        Figure::new("transfers_per_second", transfers / run.seconds, "1/s")
            .target(Target::AtLeast(100_000.0)),
        Figure::new("command_p50", p50, "ms"),
        Figure::new("command_p99", p99, "ms"),
        Figure::new("bare_sync_p50", sync_p50, "ms"),
        Figure::new("bare_sync_p99", sync_p99, "ms"),
        Figure::new("bare_syncs", run.syncs.len() as f64, "measured"),
        Figure::new("bare_sync_bytes", run.sync_bytes, "bytes each"),
        Figure::new("p50_in_syncs", p50 / sync_p50, "p50 of bare syncs"),
        Figure::new("p99_in_syncs", p99 / sync_p99, "p99 of bare syncs").target(Target::Below(3.0)),
        Figure::new("p99_in_typical_syncs", p99 / sync_p50, "p50 of bare syncs"),
        Figure::new("batch", run.batch_events, "events a sync"),
        Figure::new("index_lag_p50", percentile(&lags, 50), "ms"),
        Figure::new("index_lag_max", lags.last().copied().unwrap_or_default(), "ms")
            .target(Target::Below(1000.0)),
        cpu("writer"),
        cpu("ionet-journal"),
        cpu("index"),
        cpu("ionet-lab"),
    ];
    let what = format!(
        "{transfers} transfers ({kind:?} commands) by {clients} clients, each with one command at a time"
    );
    Report { bench: "engine", what, figures, plot: plot(run) }
}

/// At most this many points a line.
const POINTS: usize = 2000;

fn plot(run: &Measured) -> Plot {
    let points = |values: &[f64]| -> Vec<(f64, f64)> {
        let lot = values.len().div_ceil(POINTS).max(1);
        let worst = values.chunks(lot).map(|lot| lot.iter().copied().fold(0.0, f64::max));
        let share = run.seconds / values.len().div_ceil(lot).max(1) as f64;
        worst.enumerate().map(|(n, worst)| (n as f64 * share, worst)).collect()
    };
    Plot {
        title: "what a client waits for a durable answer, beside bare syncs".into(),
        x_label: "s".into(),
        y_label: "ms".into(),
        series: vec![
            Series { name: "command to durable answer".into(), points: points(&run.latencies) },
            Series { name: "bare write and sync".into(), points: points(&run.syncs) },
        ],
    }
}

/// What each thread of this process has had of a processor, in milliseconds; other programs' share is not in it.
struct Cpu(Vec<(String, f64)>);

impl Cpu {
    fn now() -> Self {
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let of = |thread: std::fs::DirEntry| {
            let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
            let spent = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((name.trim().to_owned(), spent.split(' ').next()?.parse::<f64>().ok()? / 1e6))
        };
        Self(threads.filter_map(of).collect())
    }

    fn of(&self, thread: &str) -> f64 {
        self.0.iter().filter(|(name, _)| name == thread).map(|(_, spent_ms)| spent_ms).sum()
    }
}

/// A file that is written and synced with nothing around it, on a thread of its own while the load runs.
struct Bare {
    done: Arc<AtomicBool>,
    thread: JoinHandle<Result<(Vec<f64>, f64)>>,
}

impl Bare {
    fn start(dir: &Path, journal: PathBuf, batches: Arc<Batches>, view: SharedView) -> Result<Self> {
        let mut file =
            File::create(dir.join("bare")).map_err(LabError::io("create the file for bare syncs"))?;
        let done = Arc::new(AtomicBool::new(false));
        let ended = done.clone();
        let run = move || {
            let (mut took, mut written) = (Vec::new(), 0);
            while !ended.load(Ordering::Acquire) {
                std::thread::sleep(BARE_EVERY);
                let bytes = vec![b'x'; batch_bytes(&journal, &batches, view.read().head.seq)?];
                written += bytes.len();
                let begun = Instant::now();
                file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(LabError::io("sync"))?;
                took.push(ms(begun.elapsed()));
            }
            let mean = written as f64 / took.len() as f64;
            Ok((took, mean))
        };
        let thread = std::thread::Builder::new().name("bare".into()).spawn(run);
        Ok(Self { done, thread: thread.map_err(LabError::io("start the thread of bare syncs"))? })
    }

    fn finish(self) -> Result<(Vec<f64>, f64)> {
        self.done.store(true, Ordering::Release);
        self.thread.join().map_err(|_| LabError::Broken("the thread of bare syncs panicked".into()))?
    }
}

/// What a batch has taken in the journal so far, on average.
fn batch_bytes(journal: &Path, batches: &Batches, records: u64) -> Result<usize> {
    let files = std::fs::read_dir(journal).map_err(LabError::io("list the journal"))?;
    let sizes = files.flatten().filter_map(|file| Some(file.metadata().ok()?.len()));
    let a_record = sizes.sum::<u64>() / records.max(1);
    let (count, events) =
        (batches.count.load(Ordering::Relaxed).max(1), batches.events.load(Ordering::Relaxed).max(1));
    Ok(usize::try_from(a_record * events / count).unwrap_or(1).max(1))
}

/// When each batch was durable, by its last record.
type Commits = Arc<Mutex<Vec<(u64, Instant)>>>;

/// The index on a thread of its own, as the server has it.
struct Follower {
    commits: Commits,
    done: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<f64>>>,
}

impl Follower {
    fn start(disk: FileDisk, path: &Path, view: SharedView) -> Result<Self> {
        let mut index = Index::open(path).map_err(LabError::journal("open the index"))?;
        let (done, commits) = (Arc::new(AtomicBool::new(false)), Commits::default());
        let (its_done, its_commits) = (done.clone(), commits.clone());
        let thread = std::thread::Builder::new().name("index".into());
        let thread = thread.spawn(move || {
            let reader = Reader::new(disk, Scope::Full);
            let (mut lags, mut covered) = (Vec::new(), 0);
            loop {
                let last = its_done.load(Ordering::Acquire);
                let head = view.read().head.seq;
                let caught_up =
                    index.catch_up(&reader, head).map_err(LabError::journal("index the journal"))?;
                take_lags(&its_commits, caught_up.position.seq, &mut covered, &mut lags);
                if last {
                    return Ok(lags);
                }
                std::thread::sleep(GATHER);
            }
        });
        let thread = thread.map_err(LabError::io("start the index thread"))?;
        Ok(Self { commits, done, thread })
    }

    fn finish(self) -> Result<Vec<f64>> {
        self.done.store(true, Ordering::Release);
        self.thread.join().map_err(|_| LabError::Broken("the index thread panicked".into()))?
    }
}

/// How long each commit up to `seq` waited for the index.
fn take_lags(commits: &Mutex<Vec<(u64, Instant)>>, seq: u64, covered: &mut usize, lags: &mut Vec<f64>) {
    let commits = commits.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((_, at)) = commits.get(*covered).filter(|(of, _)| *of <= seq) {
        lags.push(ms(at.elapsed()));
        *covered += 1;
    }
}
