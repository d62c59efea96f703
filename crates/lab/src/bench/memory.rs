//! Resident memory of the server, an agent and a supervisor of the real binary, idle: a network on this machine with one
//! worker, and one lease that does nothing.

use std::path::Path;
use std::time::Duration;

use super::network::Network;
use super::plot::{Plot, Series};
use super::{Figure, Report, Target};
use crate::{LabError, Result};

const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOKS: usize = 25;

/// What is measured: how its processes are told by their words, and the most it may take.
const PARTS: [(&str, &str, f64); 3] = [
    ("server_idle", " up ", 80.0),
    ("agent_idle", " worker start ", 40.0),
    ("supervisor_idle", " supervisor ", 20.0),
];

/// Starts `binary` in `dir` and looks at it for some seconds.
pub fn run(dir: &Path, binary: &Path) -> Result<Report> {
    // Processes are told by this folder's name, and children name it in full.
    let dir = &dir.canonicalize().map_err(LabError::io("look at the bench's folder"))?;
    let network = Network::up(dir, binary, 1)?;
    network.wait("a worker in the pool", &["devices", "--json"], ("\"pooled\"", 1))?;
    let order = ["cluster", "create", "--engine", "command", "--memory", "64MiB", "--for", "10m", "--yes"];
    network.ask(&[order.as_slice(), &["--", "/bin/sleep", "600"]].concat())?;
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        std::thread::sleep(LOOK_EVERY);
        looks.push(PARTS.map(|(_, words, _)| resident_mib(dir, words)));
    }
    network.end_leases()?;
    if let Some(part) = (0..PARTS.len()).find(|part| looks.iter().all(|look| look[*part] == 0.0)) {
        return Err(LabError::Broken(format!("no process was found for {}", PARTS[part].0)));
    }
    Ok(report(&looks))
}

fn report(looks: &[[f64; 3]]) -> Report {
    let of = |part: usize| looks.iter().map(move |look| look[part]);
    let figure = |(part, (name, _, limit)): (usize, (&'static str, _, f64))| {
        Figure::new(name, super::percentile(&super::sorted(of(part).collect()), 50), "MiB")
            .target(Target::Below(limit))
    };
    let figures = PARTS.into_iter().enumerate().map(figure).collect();
    let seconds = |n: usize| n as f64 * LOOK_EVERY.as_secs_f64();
    let series = PARTS.into_iter().enumerate().map(|(part, (name, _, _))| Series {
        name: name.into(),
        points: of(part).enumerate().map(|(n, mib)| (seconds(n), mib)).collect(),
    });
    let plot = Plot {
        title: "resident memory, binary's own pages included".into(),
        x_label: "s".into(),
        y_label: "MiB".into(),
        series: series.collect(),
    };
    let what = "a network with one worker and one idle lease; median resident size".into();
    Report { bench: "memory", what, figures, plot }
}

/// The largest of the processes in this data directory whose command line has these words; 0 if there is none.
pub(super) fn resident_mib(dir: &Path, words: &str) -> f64 {
    let dir = dir.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let sizes = processes.filter_map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if !line.contains(words) || !line.contains(&dir) {
            return None;
        }
        let status = std::fs::read_to_string(process.path().join("status")).ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        kib.trim().trim_end_matches(" kB").parse::<f64>().ok()
    });
    sizes.fold(0.0, f64::max) / 1024.0
}
