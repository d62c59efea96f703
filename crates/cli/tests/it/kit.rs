//! Runs the binary in a data directory of its own and reads what it says.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A data directory and nothing else of this machine's settings.
pub(crate) struct Home {
    dir: TempDir,
}

/// What a command said.
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ionet"));
        command.args(words).env("IONET_DATA_DIR", self.path()).env("COLUMNS", "100");
        for name in ["IONET_URL", "IONET_API_KEY", "IONET_LOG", "IONET_JOIN_TOKEN_FILE"] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Said {
        Said::from(self.command(words).output().unwrap(), self.path())
    }
}

impl Said {
    pub(crate) fn from(output: Output, home: &Path) -> Self {
        let clean = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap().replace(&home.display().to_string(), "[HOME]");
            text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
        };
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: clean(output.stdout),
            stderr: clean(output.stderr),
        }
    }

    /// All of it as one text for a snapshot.
    pub(crate) fn text(&self) -> String {
        format!("status: {}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.stdout, self.stderr)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.stdout.lines().last().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}
