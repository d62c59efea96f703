//! Benchmarks of the real parts on a real disk; each prints text or JSON and draws a plot.
//!
//! Figures with a target say whether it was met. Not here: anything simulated.
#![expect(clippy::cast_precision_loss, reason = "counts become figures for people")]

pub mod answers;
pub mod engine;
pub mod fgd;
pub mod load;
mod market;
pub mod memory;
pub mod month;
mod network;
pub mod object;
pub mod overlay;
pub mod place;
pub mod plot;
pub mod ray;
pub mod start;
pub mod tunnels;

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::{LabError, Result};
use plot::Plot;

/// What a figure should reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This or more.
    AtLeast(f64),
    /// Less than this.
    Below(f64),
}

/// One number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: Cow<'static, str>,
    /// How much.
    pub value: f64,
    /// In what unit.
    pub unit: &'static str,
    /// What it should reach, if anything was promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// What a benchmark found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which benchmark.
    pub bench: &'static str,
    /// What was run, in words.
    pub what: String,
    /// The numbers.
    pub figures: Vec<Figure>,
    /// The picture.
    #[serde(skip)]
    pub plot: Plot,
}

impl Figure {
    /// A number without a promise.
    pub fn new(name: impl Into<Cow<'static, str>>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, target: None }
    }

    /// The same with a promise.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Whether the promise is kept; `None` without one.
    pub fn met(&self) -> Option<bool> {
        self.target.map(|target| match target {
            Target::AtLeast(least) => self.value >= least,
            Target::Below(limit) => self.value < limit,
        })
    }

    fn line(&self) -> String {
        let verdict = match (self.target, self.met()) {
            (Some(Target::AtLeast(least)), Some(met)) => format!("   >= {least}: {}", word(met)),
            (Some(Target::Below(limit)), Some(met)) => format!("   < {limit}: {}", word(met)),
            _ => String::new(),
        };
        format!("  {:<34} {:>14} {}{verdict}", self.name, show(self.value), self.unit)
    }
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn show(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let lines: Vec<_> = self.figures.iter().map(Figure::line).collect();
        format!("{}: {}\n{}\n", self.bench, self.what, lines.join("\n"))
    }

    /// The report for programs: one line.
    pub fn json(&self) -> String {
        // Plain data: writing it to memory has no way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Writes the picture.
    pub fn draw(&self, file: &Path) -> Result<()> {
        std::fs::write(file, self.plot.svg()).map_err(LabError::io(format!("write {}", file.display())))
    }

    /// A figure by its name.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}

/// The value below which `percent` of all lie; 0 for none.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
