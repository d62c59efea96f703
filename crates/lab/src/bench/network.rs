//! A whole network of the real binary on this machine, for as long as a benchmark runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::memory::resident_mib;
use crate::{LabError, Result};

const PATIENCE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A network of the real binary; ends with this.
pub(super) struct Network {
    dir: PathBuf,
    binary: PathBuf,
    up: Child,
}

impl Network {
    /// Starts it with so many workers.
    pub(super) fn up(dir: &Path, binary: &Path, workers: u32) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["up", "--workers", &workers.to_string(), "--data-dir"]).arg(dir);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let up = child.map_err(LabError::io(format!("start {}", binary.display())))?;
        Ok(Self { dir: dir.into(), binary: binary.into(), up })
    }

    /// What the command line says to these words.
    pub(super) fn ask(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.binary).arg("--data-dir").arg(&self.dir).args(words).output();
        let output = output.map_err(LabError::io(format!("start {}", self.binary.display())))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        // With --json what was refused is said on the standard output.
        let said = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned();
        Err(LabError::Broken(format!("'ionet {}' failed: {said}", words.join(" "))))
    }

    /// Asks until the answer has this sign so many times.
    pub(super) fn wait(&self, what: &str, words: &[&str], (sign, times): (&str, usize)) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.ask(words).is_ok_and(|said| said.matches(sign).count() >= times) {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(LabError::Broken(format!("waited {} s in vain for {what}", PATIENCE.as_secs())))
    }

    /// Nothing may be left behind: supervisors outlive everybody but the end of their order.
    pub(super) fn end_leases(&self) -> Result<()> {
        let clusters = self.ask(&["cluster", "ls", "--json"])?;
        for found in clusters.match_indices("clu_") {
            let id: String =
                clusters[found.0..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let _ = self.ask(&["cluster", "rm", &id, "--yes"]);
        }
        let begun = Instant::now();
        while resident_mib(&self.dir, " supervisor ") > 0.0 && begun.elapsed() < PATIENCE {
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.up.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.up.wait();
    }
}
