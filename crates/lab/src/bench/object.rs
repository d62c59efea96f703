//! A Ray object between two members of a cluster, and in turn one plain TCP stream of the same size between the same two
//! over the same overlay: how much of the network Ray uses.

use std::path::Path;

use serde_json::Value;

use super::network::Network;
use super::plot::{Plot, Series};
use super::{Figure, Report, Target, percentile, sorted};
use crate::{LabError, Result};

const OBJECT_BYTES: u64 = 1 << 30;
/// Of it Ray gives a third to objects.
const MEMORY: &str = "5GiB";
const PROGRAM: &str = include_str!("object.py");

/// Moves `rounds` objects through a network of the real binary in `dir`.
pub fn run(dir: &Path, binary: &Path, rounds: usize) -> Result<Report> {
    let dir = &dir.canonicalize().map_err(LabError::io("look at the bench's folder"))?;
    let network = Network::up(dir, binary, 2)?;
    network.wait("two workers in the pool", &["devices", "--json"], ("\"pooled\"", 2))?;
    let result = move_objects(&network, dir, rounds);
    network.end_leases()?;
    let (streams, objects) = result?;
    Ok(report(&streams, &objects))
}

/// Gbit/s of each round's stream and object.
fn move_objects(network: &Network, dir: &Path, rounds: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let order = ["cluster", "create", "-n", "2", "--memory", MEMORY, "--for", "1h", "--yes", "--json"];
    let said: Value = serde_json::from_str(network.ask(&order)?.lines().last().unwrap_or_default())
        .map_err(|error| LabError::Broken(format!("the order's answer is no JSON: {error}")))?;
    let id = said["id"].as_str().or_else(|| said["cluster"]["id"].as_str());
    let id = id.ok_or_else(|| LabError::Broken(format!("the order's answer names no cluster: {said}")))?;
    let folder = dir.join("object");
    std::fs::create_dir_all(&folder).map_err(LabError::io("make the job's folder"))?;
    std::fs::write(folder.join("object.py"), PROGRAM).map_err(LabError::io("write the job"))?;
    let (folder, size) = (folder.to_string_lossy().into_owned(), OBJECT_BYTES.to_string());
    let rounds = rounds.max(1).to_string();
    let job = ["job", "submit", id, "--working-dir", &folder, "--", "python", "object.py", &size, &rounds];
    let said = network.ask(&job)?;
    let line = said.lines().find(|line| line.starts_with("{\"bytes\""));
    let line: Value = line.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    let gbit = OBJECT_BYTES as f64 * 8.0 / 1e9;
    let rates = |name: &str| {
        let seconds = line[name].as_array().into_iter().flatten().filter_map(Value::as_f64);
        seconds.map(|seconds| gbit / seconds).collect::<Vec<_>>()
    };
    let (streams, objects) = (rates("stream_s"), rates("object_s"));
    if streams.is_empty() || streams.len() != objects.len() {
        return Err(LabError::Broken(format!("the job measured nothing: {said}")));
    }
    Ok((streams, objects))
}

fn report(streams: &[f64], objects: &[f64]) -> Report {
    let middle = |values: Vec<f64>| percentile(&sorted(values), 50);
    let shares = streams.iter().zip(objects).map(|(stream, object)| object / stream);
    let figures = vec![
        Figure::new("stream", middle(streams.to_vec()), "Gbit/s"),
        Figure::new("ray_object", middle(objects.to_vec()), "Gbit/s"),
        Figure::new("object_share_of_stream", middle(shares.collect()), "x").target(Target::AtLeast(0.75)),
    ];
    let series = [("one TCP stream", streams), ("a Ray object", objects)].map(|(name, values)| Series {
        name: name.into(),
        points: values.iter().enumerate().map(|(n, value)| (n as f64, *value)).collect(),
    });
    let plot = Plot {
        title: "1 GiB between two members of a cluster".into(),
        x_label: "round".into(),
        y_label: "Gbit/s".into(),
        series: series.into(),
    };
    let what = format!("{} rounds of 1 GiB between two members, plain and as an object", streams.len());
    Report { bench: "object", what, figures, plot }
}
