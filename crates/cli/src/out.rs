//! What is shown: tables and lines for people, one JSON value for programs, progress on the error stream.
//!
//! Always holds: with `--json` nothing but JSON goes to standard output; progress never goes there at all; a closed
//! pipe ends no command with a panic.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::{CliError, Result};

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    pub(crate) json: bool,
}

impl Out {
    /// One JSON value on one line.
    #[expect(clippy::unused_self, reason = "reads as the other ways to show something")]
    pub(crate) fn value(self, value: &impl Serialize) {
        let line = serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
        print_line(&line);
    }

    /// `value` for programs, or what `people` prints.
    pub(crate) fn answer(self, value: &impl Serialize, people: impl FnOnce(Self)) {
        if self.json { self.value(value) } else { people(self) }
    }

    /// A line for people; nothing with `--json`.
    pub(crate) fn line(self, text: impl Display) {
        if !self.json {
            print_line(&text.to_string());
        }
    }

    /// Lines for people.
    pub(crate) fn lines(self, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            self.line(text);
        }
    }

    /// A table for people. `right` are the columns with numbers.
    pub(crate) fn table(self, header: &[&str], right: &[usize], rows: Vec<Vec<String>>) {
        if !self.json {
            let nothing = rows.is_empty();
            print_line(&table(header, right, rows));
            if nothing {
                print_line("(none)");
            }
        }
    }

    /// A remark that is no part of the answer.
    #[expect(clippy::unused_self, reason = "reads as the other ways to show something")]
    pub(crate) fn note(self, text: impl Display) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Asks on the terminal; `yes` answers at once. Without a terminal it is a usage error.
    pub(crate) fn confirm(self, question: &str, yes: bool) -> Result {
        if yes {
            return Ok(());
        }
        if self.json || !std::io::stdin().is_terminal() {
            return Err(CliError::usage(format!("{question} needs an answer and there is no terminal"))
                .help("say --yes"));
        }
        let _ = write!(std::io::stderr(), "{question} [y/N] ");
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        match (read, answer.trim()) {
            (Ok(_), "y" | "Y" | "yes") => Ok(()),
            _ => Err(CliError::refused("declined", "not confirmed; nothing was done")),
        }
    }

    /// Begins to show what is going on.
    #[expect(clippy::unused_self, reason = "reads as the other ways to show something")]
    pub(crate) fn progress(self, text: &str) -> Progress {
        Progress::begin(text)
    }
}

fn print_line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{text}");
    let _ = stdout.flush();
}

fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec()).add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// What is going on now: a moving line on a terminal, otherwise a plain line at each change.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    shown: String,
}

impl Progress {
    fn begin(text: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let mut progress = Self { bar, shown: String::new() };
        progress.say(text);
        progress
    }

    /// Says what is going on now; the same words again show nothing new.
    pub(crate) fn say(&mut self, text: &str) {
        if self.shown == text {
            return;
        }
        text.clone_into(&mut self.shown);
        match &self.bar {
            Some(bar) => bar.set_message(self.shown.clone()),
            None => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }

    /// Ends the moving line and leaves `text` behind.
    pub(crate) fn done(mut self, text: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
