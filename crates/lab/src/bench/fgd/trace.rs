//! The published traces: nodes, pods, the inflation to a load, and the means that were published.
//!
//! The files stay where they are published (`docs/performance.md` says where); nothing of them is in this repository.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use crate::random::Random;
use crate::{LabError, Result};

/// Thousandths of a GPU.
pub(super) const GPU: u64 = 1000;
/// GPUs requested in all, in percent of what there is.
const LOAD_PERCENT: u64 = 130;

/// A machine.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) cpu_millis: u32,
    pub(super) memory_mib: u64,
    pub(super) gpus: u32,
    pub(super) model: String,
}

/// What a pod wants; pods of one kind are equal to every policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pod {
    pub(super) cpu_millis: u32,
    pub(super) gpu_millis: u16,
    pub(super) gpus: u32,
    /// Models with `|` between them; empty for any.
    pub(super) models: String,
    pub(super) memory_mib: u64,
}

impl Pod {
    pub(super) fn total_gpu_millis(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.gpu_millis)
    }

    pub(super) fn is_share(&self) -> bool {
        self.gpus == 1 && u64::from(self.gpu_millis) < GPU
    }

    pub(super) fn allows(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.split('|').any(|name| name == model)
    }
}

fn text(file: &Path) -> Result<String> {
    let what = || format!("read {}", file.display());
    let bytes = std::fs::read(file).map_err(LabError::io(what()))?;
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).map_err(LabError::io(what()))?;
    } else {
        text = String::from_utf8(bytes)
            .map_err(|_| LabError::Broken(format!("{} is not text", file.display())))?;
    }
    Ok(text)
}

/// The rows of a table with a head, each by the names of its columns.
fn rows(file: &Path) -> Result<Vec<BTreeMap<String, String>>> {
    let text = text(file)?;
    let mut lines = text.lines();
    let head: Vec<_> = lines.next().unwrap_or_default().split(',').map(str::to_owned).collect();
    let row = |line: &str| head.iter().cloned().zip(line.split(',').map(str::to_owned)).collect();
    Ok(lines.filter(|line| !line.is_empty()).map(row).collect())
}

fn number<T: std::str::FromStr>(row: &BTreeMap<String, String>, column: &str, file: &Path) -> Result<T> {
    let value = row.get(column).map(String::as_str).unwrap_or_default();
    let wrong = || LabError::Broken(format!("{}: column {column} is '{value}'", file.display()));
    value.parse().map_err(|_| wrong())
}

/// The GPU nodes.
pub(super) fn nodes(file: &Path) -> Result<Vec<Node>> {
    let node = |row: BTreeMap<String, String>| {
        Ok(Node {
            cpu_millis: number(&row, "cpu_milli", file)?,
            memory_mib: number(&row, "memory_mib", file)?,
            gpus: number(&row, "gpu", file)?,
            model: row.get("model").cloned().unwrap_or_default(),
        })
    };
    rows(file)?.into_iter().map(node).collect()
}

/// The pods of a trace, by name.
pub(super) fn pods(file: &Path) -> Result<Vec<Pod>> {
    let mut rows = rows(file)?;
    rows.sort_by(|a, b| a.get("name").cmp(&b.get("name")));
    let pod = |row: BTreeMap<String, String>| {
        let gpus = number(&row, "num_gpu", file)?;
        Ok(Pod {
            cpu_millis: number(&row, "cpu_milli", file)?,
            gpu_millis: if gpus == 0 { 0 } else { number(&row, "gpu_milli", file)? },
            gpus,
            models: row.get("gpu_spec").cloned().unwrap_or_default(),
            memory_mib: number(&row, "memory_mib", file)?,
        })
    };
    rows.into_iter().map(pod).collect()
}

/// The arrivals of one seed: shuffled, then inflated with copies or thinned out to the load.
pub(super) fn arrivals(pods: &[Pod], capacity_millis: u64, random: &mut Random) -> Vec<Pod> {
    let target = capacity_millis * LOAD_PERCENT / 100;
    let mut arrivals = pods.to_vec();
    shuffle(&mut arrivals, random);
    let mut asked: u64 = arrivals.iter().map(Pod::total_gpu_millis).sum();
    if asked > target {
        while asked > target {
            asked -= arrivals.remove(random.index(arrivals.len())).total_gpu_millis();
        }
        return arrivals;
    }
    while let Some(copy) = random.one_of(pods) {
        asked += copy.total_gpu_millis();
        if asked > target {
            break;
        }
        arrivals.push(copy.clone());
    }
    arrivals
}

/// Any order is as likely as any other.
pub(super) fn shuffle<T>(these: &mut [T], random: &mut Random) {
    for n in (1..these.len()).rev() {
        these.swap(n, random.index(n + 1));
    }
}

/// Published mean and standard deviation of the allocation in percent, by trace, policy and load.
pub(super) type Published = BTreeMap<(String, String, u64), (f64, f64)>;

/// Reads the published table.
pub(super) fn published(file: &Path) -> Result<Published> {
    let mut published = Published::new();
    for row in rows(file)? {
        if row.get("metric").is_some_and(|metric| metric == "alloc") {
            let word = |column: &str| row.get(column).cloned().unwrap_or_default();
            let key = (word("trace"), word("policy"), number(&row, "arrived_pct", file)?);
            published.insert(key, (number(&row, "mean_pct", file)?, number(&row, "sd_pct", file)?));
        }
    }
    Ok(published)
}
