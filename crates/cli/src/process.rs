//! Child processes of the same binary: each in a process of its own, so that one can be killed and measured alone.
//!
//! Always holds: a tied child ends when this process ends, however it ends, as its standard input closes then; a child
//! that is dropped is ended. Supervisors of leases are no children of this kind: they outlive everybody.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Result, io};

/// A child gets this long to end by itself.
const END_WAIT: Duration = Duration::from_secs(10);

/// A child of this same binary.
#[derive(Debug)]
pub(crate) struct OwnChild {
    name: String,
    log: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl OwnChild {
    /// Starts `ionet <words>` so that it ends with this process, with its messages in the file `log`.
    pub(crate) fn start(name: &str, words: &[String], log: &Path) -> Result<Self> {
        Self::spawn(name, words, Some("--tied"), log)
    }

    /// Starts `ionet <words>` so that it may stay; see [`Self::leave`].
    pub(crate) fn start_loose(name: &str, words: &[String], log: &Path) -> Result<Self> {
        Self::spawn(name, words, None, log)
    }

    fn spawn(name: &str, words: &[String], tied: Option<&str>, log: &Path) -> Result<Self> {
        let program = std::env::current_exe().map_err(io("find this program"))?;
        let mut child = Command::new(program)
            .args(words)
            .args(tied)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(append(log)?)
            .process_group(0)
            .kill_on_drop(tied.is_some())
            .spawn()
            .map_err(io(format!("start {name}")))?;
        let stdin = child.stdin.take();
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child, stdin })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The first line that it prints, which says that it is ready.
    pub(crate) async fn first_line(&mut self, wait: Duration) -> Result<String> {
        let Some(stdout) = self.child.stdout.take() else {
            return Err(CliError::internal("child", format!("{} has no output", self.name)));
        };
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(wait, lines.next_line()).await;
        // What comes later is read too, so that the child never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        match line {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(_) => Err(self.failed("ended at once")),
            Err(_) => Err(self.failed(&format!("said nothing within {} s", wait.as_secs()))),
        }
    }

    fn failed(&self, what: &str) -> CliError {
        let last = last_lines(&self.log, 3).join(" / ");
        CliError::internal("child", format!("{} {what}: {last}", self.name))
            .help(format!("its messages are in {}", self.log.display()))
    }

    /// Waits until it ends.
    pub(crate) async fn ended(&mut self) -> Option<ExitStatus> {
        self.child.wait().await.ok()
    }

    /// Lets it go on without us.
    pub(crate) fn leave(self) {
        drop(self.child);
    }

    /// Asks it to end and waits; ends it hard if it does not.
    pub(crate) async fn stop(mut self) {
        drop(self.stdin.take());
        if tokio::time::timeout(END_WAIT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn append(log: &Path) -> Result<File> {
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir).map_err(io(format!("make {}", dir.display())))?;
    }
    let file = OpenOptions::new().create(true).append(true).open(log);
    file.map_err(io(format!("write {}", log.display())))
}

/// The last lines of a text file; none if it cannot be read.
pub(crate) fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let from = text.len().saturating_sub(256 << 10);
    let text = String::from_utf8_lossy(&text[from..]).into_owned();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Listens for Ctrl-C, a polite end from outside, or, when tied, the end of whoever started us. From its making on
/// these no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Ending {
    terminate: Signal,
    interrupt: Signal,
    tied: bool,
}

impl Ending {
    pub(crate) fn listen(tied: bool) -> Result<Self> {
        let on = |kind| signal(kind).map_err(io("listen for signals"));
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())?, tied })
    }

    /// Returns once we are told to end.
    pub(crate) async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = input_ends(), if self.tied => {}
        }
    }
}

async fn input_ends() {
    let mut nothing = [0; 64];
    let mut input = tokio::io::stdin();
    while input.read(&mut nothing).await.is_ok_and(|read| read > 0) {}
}

/// As many open files as this user may have: a connection through a tunnel, a relay or a server takes two.
pub(crate) fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused there are as many as before.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
