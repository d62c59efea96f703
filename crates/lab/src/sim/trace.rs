//! What happened, act by act: printed, kept for the end, or not even put into words.

use std::collections::VecDeque;

/// Milliseconds as seconds.
pub(super) fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// The acts of a run.
#[derive(Debug, Default)]
pub(super) struct Trace {
    print: bool,
    keep: usize,
    lines: VecDeque<String>,
}

impl Trace {
    pub(super) fn silent() -> Self {
        Self::default()
    }

    pub(super) fn printing() -> Self {
        Self { print: true, ..Self::default() }
    }

    pub(super) fn remembering(keep: usize) -> Self {
        Self { keep, ..Self::default() }
    }

    pub(super) fn note(&mut self, at_ms: u64, words: impl FnOnce() -> String) {
        if !self.print && self.keep == 0 {
            return;
        }
        let mut words = words();
        if let Some((end, _)) = words.char_indices().nth(400) {
            words.truncate(end);
            words.push_str("...");
        }
        let line = format!("{:>9}  {words}", seconds(at_ms));
        if self.print {
            println!("{line}");
        }
        if self.lines.len() >= self.keep {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Something that happens again and again: only for those who want to see everything.
    pub(super) fn detail(&mut self, at_ms: u64, words: impl FnOnce() -> String) {
        if self.print {
            self.note(at_ms, words);
        }
    }

    pub(super) fn text(&self) -> String {
        self.lines.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}
