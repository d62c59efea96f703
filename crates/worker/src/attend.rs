//! The agent's side of one supervisor: starts it, or finds it running, and listens until it is gone.
//!
//! Always holds: whatever way a supervisor ends, the agent hears the lease's last word exactly once. Dropping an
//! attendant does nothing to its supervisor.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ionet_api::worker::{BoxPhase, ObservedLease, PeerLink};
use ionet_domain::LeaseId;
use ionet_runtime::holder::HelperExe;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::control::{self, Told, Word};
use crate::error::{During as _, Result};
use crate::files::{Brief, LeaseDir, make_dir, write_json};

/// How long a supervisor may take until its socket answers.
const START_WAIT: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(10);

/// What an attendant says of its lease.
#[derive(Debug)]
pub(crate) enum News {
    /// The supervisor's process id.
    Attached(u32),
    Observed(Box<ObservedLease>),
    Links(Vec<PeerLink>),
    Gone {
        last: Box<ObservedLease>,
        reason: String,
    },
}

/// Listens to one supervisor.
#[derive(Debug)]
pub(crate) struct Attendant {
    pub(crate) words: mpsc::UnboundedSender<Word>,
    task: JoinHandle<()>,
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes the lease's folder and starts its supervisor.
pub(crate) fn start(dir: &LeaseDir, brief: &Brief, helper: &HelperExe) -> Result<Child> {
    make_dir(dir.path())?;
    write_json(&dir.brief(), brief)?;
    let mut options = std::fs::OpenOptions::new();
    let log = options.append(true).create(true).open(dir.log()).during_at("open", &dir.log())?;
    let HelperExe(exe, before) = helper;
    Command::new(exe)
        .args(before)
        .args([OsString::from("supervisor"), "--dir".into(), dir.path().into()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .during(format!("start the supervisor {}", exe.display()))
}

/// Attends the supervisor of a lease; `child` if it was just started.
pub(crate) fn attend(
    dir: LeaseDir,
    lease: LeaseId,
    child: Option<Child>,
    tell: impl Fn(LeaseId, News) + Send + Sync + 'static,
) -> Attendant {
    let (words, heard) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let reason = listen(&dir, child, heard, |news| tell(lease, news)).await;
        let last = dir.last_word(lease, &reason);
        if matches!(last.phase, BoxPhase::Removed { .. }) {
            tell(lease, News::Observed(Box::new(last.clone())));
        }
        tell(lease, News::Gone { last: Box::new(last), reason });
    });
    Attendant { words, task }
}

/// Returns why there is nobody to listen to any more.
async fn listen(
    dir: &LeaseDir,
    mut child: Option<Child>,
    mut words: mpsc::UnboundedReceiver<Word>,
    tell: impl Fn(News),
) -> String {
    let mut stream = match first_connection(dir, child.as_mut()).await {
        Ok(stream) => stream,
        Err(reason) => return reason,
    };
    loop {
        if let Some(pid) = stream.peer_cred().ok().and_then(|cred| u32::try_from(cred.pid()?).ok()) {
            tell(News::Attached(pid));
        }
        let pass_on = |told| match told {
            Told::Observed(observed) => tell(News::Observed(observed)),
            Told::Links { links } => tell(News::Links(links)),
        };
        control::attend(stream, &mut words, pass_on).await;
        // A line may break while both live; a socket that nobody holds is the end.
        match connect(dir) {
            Ok(again) => stream = again,
            Err(_) => return ended(child).await,
        }
    }
}

fn connect(dir: &LeaseDir) -> std::io::Result<UnixStream> {
    dir.connect().and_then(UnixStream::from_std)
}

/// One that runs answers soon; one that was just started, by this agent or the one before it, gets its time.
async fn first_connection(
    dir: &LeaseDir,
    mut child: Option<&mut Child>,
) -> std::result::Result<UnixStream, String> {
    let deadline = Instant::now() + START_WAIT;
    loop {
        if let Ok(stream) = connect(dir) {
            return Ok(stream);
        }
        match child.as_deref_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                return Err(format!("its supervisor ended when it started ({status}): {}", last_line(dir)));
            }
            None if !dir.is_held() => {
                return Err("its supervisor is gone: the machine restarted or it was killed".into());
            }
            _ if Instant::now() > deadline => {
                if let Some(child) = child {
                    // What does not answer must not go on unseen.
                    let _ = child.start_kill();
                }
                return Err(format!("its supervisor does not answer: {}", last_line(dir)));
            }
            _ => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn ended(child: Option<Child>) -> String {
    let status = match child {
        // The socket is closed before the process is quite gone.
        Some(mut child) => {
            tokio::time::timeout(START_WAIT, child.wait()).await.ok().and_then(std::result::Result::ok)
        }
        None => None,
    };
    match status {
        Some(status) => format!("its supervisor ended ({status}), and the box with it"),
        None => "its supervisor ended, and the box with it".into(),
    }
}

fn last_line(dir: &LeaseDir) -> String {
    let log = std::fs::read_to_string(dir.log()).unwrap_or_default();
    log.lines().last().unwrap_or("its log is empty").chars().take(300).collect()
}
