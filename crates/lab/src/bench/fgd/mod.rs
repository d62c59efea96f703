//! Placement against a paper: the experiment of "Beware of Fragmentation" (USENIX ATC'23) on the authors' traces, with
//! their six policies as a check of the harness, and then with the product's own `place`.
//!
//! Not here: the traces and the published table, which are read from the folder that is given.

mod policies;
mod product;
mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::plot::{Plot, Series};
use super::{Figure, Report, Target};
use crate::random::Random;
use crate::{LabError, Result};
use policies::{Cluster, POLICIES, Policy};
use product::Product;
use trace::{Node, Pod, Published};

/// Loads at which the allocation is read, in percent of all GPUs.
const LOADS: [u64; 2] = [100, 130];
const PRODUCT: &str = "place";
const FIRST_SEED: u64 = 42;
/// How far the harness may be from the published means, in points.
const HARNESS_POINTS: f64 = 0.5;
/// How far the product must be above published FGD at each load, in points.
const LEAD_POINTS: [f64; 2] = [0.35, 0.1];

/// What to run.
#[derive(Debug, Clone)]
pub struct Size {
    /// Where nodes, traces and the published table are.
    pub data: PathBuf,
    /// One trace alone; all in the folder otherwise.
    pub trace: Option<PathBuf>,
    /// How many seeds.
    pub seeds: u64,
    /// Only the product, not the published policies.
    pub only_product: bool,
}

/// Mean and standard deviation of the allocation in percent, at each load.
type Outcome = [(f64, f64); 2];

struct Trace {
    name: String,
    pods: Vec<Pod>,
}

/// Runs the experiment.
pub fn run(size: &Size) -> Result<Report> {
    let nodes = trace::nodes(&size.data.join("openb_node_list_gpu_node.csv"))?;
    let published = trace::published(&size.data.join("published_summary.csv"))?;
    let traces = traces(size)?;
    let policies = if size.only_product { &[][..] } else { &POLICIES[..] };
    let runs = policies.iter().map(|(policy, name)| (Some(*policy), *name)).chain([(None, PRODUCT)]);
    let mut found: Vec<(&str, Vec<Outcome>)> = Vec::new();
    for (policy, name) in runs {
        let of = |trace: &Trace| outcome(&nodes, &trace.pods, policy, size.seeds.max(1));
        found.push((name, traces.iter().map(of).collect::<Result<_>>()?));
    }
    let mut figures = Vec::new();
    for (load, percent) in LOADS.iter().enumerate() {
        for (name, outcomes) in &found {
            means(&mut figures, name, outcomes, &traces, &published, load);
        }
        by_trace(&mut figures, &found, &traces, &published, load);
        if traces.is_empty() {
            return Err(LabError::Broken(format!("no traces, so nothing at {percent} %")));
        }
    }
    let what = format!("{} traces, {} seeds", traces.len(), size.seeds.max(1));
    Ok(Report { bench: "fgd", what, figures, plot: plot(&found, &traces) })
}

fn traces(size: &Size) -> Result<Vec<Trace>> {
    let files = if let Some(file) = &size.trace {
        vec![file.clone()]
    } else {
        let what = || format!("read {}", size.data.display());
        let entries = fs::read_dir(&size.data).map_err(LabError::io(what()))?;
        let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|file| file_name(file).starts_with(PREFIX));
        files.sort();
        files
    };
    let read = |file: &PathBuf| {
        let name = file_name(file);
        let name = name.strip_prefix(PREFIX).unwrap_or(&name);
        let name = name.split('.').next().unwrap_or_default().to_owned();
        Ok(Trace { name, pods: trace::pods(file)? })
    };
    files.iter().map(read).collect()
}

const PREFIX: &str = "openb_pod_list_";

fn file_name(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A policy, or the product, over all seeds of a trace; seeds run side by side.
fn outcome(nodes: &[Node], pods: &[Pod], policy: Option<Policy>, seeds: u64) -> Result<Outcome> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let alone = |first: u64| -> Result<Vec<[f64; 2]>> {
        let seeds = (first..seeds).step_by(usize::try_from(threads).unwrap_or(1));
        seeds.map(|seed| one(nodes, pods, policy, FIRST_SEED + seed)).collect()
    };
    let all: Result<Vec<_>> = thread::scope(|scope| {
        let begun: Vec<_> = (0..threads).map(|first| scope.spawn(move || alone(first))).collect();
        let broken = || LabError::Broken("a run ended in a panic".into());
        begun.into_iter().map(|thread| thread.join().map_err(|_| broken())?).collect()
    });
    let all: Vec<[f64; 2]> = all?.concat();
    Ok([0, 1].map(|load| spread(&all.iter().map(|run| run[load]).collect::<Vec<_>>())))
}

fn spread(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

enum Run {
    Published(Cluster),
    Product(Box<Product>),
}

/// One seed: the allocation in percent at each load.
fn one(nodes: &[Node], pods: &[Pod], policy: Option<Policy>, seed: u64) -> Result<[f64; 2]> {
    let capacity: u64 = nodes.iter().map(|node| u64::from(node.gpus) * trace::GPU).sum();
    let mut random = Random::new(seed);
    let arrivals = trace::arrivals(pods, capacity, &mut random);
    let mut nodes = nodes.to_vec();
    trace::shuffle(&mut nodes, &mut random);
    let mut run = match policy {
        Some(policy) => Run::Published(Cluster::new(policy, &nodes, pods, random)),
        None => Run::Product(Box::new(Product::new(&nodes, pods)?)),
    };
    let (mut asked, mut given) = (0, 0);
    let mut read = [(0.0, 0.0); 2];
    for pod in &arrivals {
        asked += pod.total_gpu_millis();
        let placed = match &mut run {
            Run::Published(cluster) => cluster.place(pod),
            Run::Product(product) => product.place(pod)?,
        };
        given += if placed { pod.total_gpu_millis() } else { 0 };
        let percent = (asked * 100 + capacity / 2) / capacity;
        for (load, read) in LOADS.iter().zip(&mut read).filter(|(load, _)| **load == percent) {
            debug_assert!(*load > 0);
            read.0 += given as f64 / capacity as f64 * 100.0;
            read.1 += 1.0;
        }
    }
    if let Run::Product(product) = &run {
        product.audit()?;
    }
    Ok(read.map(|(sum, count)| if count > 0.0 { sum / count } else { 0.0 }))
}

/// A policy's mean over all traces, beside what was published of the same traces.
fn means(
    figures: &mut Vec<Figure>,
    name: &str,
    outcomes: &[Outcome],
    traces: &[Trace],
    published: &Published,
    load: usize,
) {
    let percent = LOADS[load];
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let own = mean(&outcomes.iter().map(|outcome| outcome[load].0).collect::<Vec<_>>());
    figures.push(Figure::new(format!("{name}_at_{percent}"), own, "% of GPUs"));
    let beside = if name == PRODUCT { "FGD" } else { name };
    let of = |trace: &Trace| Some(published.get(&(trace.name.clone(), beside.into(), percent))?.0);
    let known: Option<Vec<f64>> = traces.iter().map(of).collect();
    let Some(known) = known.filter(|known: &Vec<f64>| !known.is_empty()) else { return };
    let off = own - mean(&known);
    if name == PRODUCT {
        let figure = Figure::new(format!("{PRODUCT}_above_published_FGD_at_{percent}"), off, "points");
        figures.push(figure.target(Target::AtLeast(LEAD_POINTS[load])));
    } else {
        let figure = Figure::new(format!("{name}_off_published_at_{percent}"), off.abs(), "points");
        figures.push(figure.target(Target::Below(HARNESS_POINTS)));
    }
}

/// The product beside FGD, trace by trace: by how many of FGD's standard deviations it leads at least.
fn by_trace(
    figures: &mut Vec<Figure>,
    found: &[(&str, Vec<Outcome>)],
    traces: &[Trace],
    published: &Published,
    load: usize,
) {
    let percent = LOADS[load];
    let of = |name: &str| found.iter().find(|(policy, _)| *policy == name).map(|(_, outcomes)| outcomes);
    let Some(product) = of(PRODUCT) else { return };
    for (at, trace) in traces.iter().enumerate() {
        let known = published.get(&(trace.name.clone(), "FGD".into(), percent)).copied();
        let beside = known.or_else(|| of("FGD").map(|outcomes| outcomes[at][load]));
        let Some((mean, deviation)) = beside else { continue };
        let (reached, _) = product[at][load];
        figures.push(Figure::new(format!("{}_at_{percent}", trace.name), reached, "% of GPUs"));
        let above = Figure::new(format!("{}_above_FGD_at_{percent}", trace.name), reached - mean, "points");
        figures.push(above.target(Target::AtLeast(-deviation)));
    }
}

fn plot(found: &[(&str, Vec<Outcome>)], traces: &[Trace]) -> Plot {
    let shown = ["Random", "BestFit", "FGD", PRODUCT];
    let line = |(name, outcomes): &(&str, Vec<Outcome>)| Series {
        name: (*name).to_owned(),
        points: outcomes.iter().enumerate().map(|(n, outcome)| (n as f64, outcome[0].0)).collect(),
    };
    let names: Vec<_> = traces.iter().map(|trace| trace.name.as_str()).collect();
    Plot {
        title: "GPUs in use when as many were asked for as there are".into(),
        x_label: names.join(", "),
        y_label: "% of GPUs".into(),
        series: found.iter().filter(|(name, _)| shown.contains(name)).map(line).collect(),
    }
}
