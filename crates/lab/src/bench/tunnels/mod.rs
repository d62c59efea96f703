//! Tunnels beside what an engineer would pick instead, in turn and in one run, all on the loopback of one machine: only the
//! ratios of a round are told, as machines are noisy.

mod load;
pub mod parts;
mod rival;

use std::path::Path;
use std::time::Duration;

use super::plot::{Plot, Series};
use super::{Figure, Report, Target, percentile, sorted};
use crate::{LabError, Result};
use rival::{Rival, Running};

const IDLE: usize = 1000;
/// In which the kernel tells times to programs, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// How often everybody takes a turn.
    pub rounds: usize,
    /// How long each measurement is.
    pub seconds: u64,
}

/// What one rival did in one round.
struct Turn {
    rival: Rival,
    gbit_per_s: f64,
    relay_cpu_s_per_gbit: Option<f64>,
    request_us: f64,
    connections_per_s: f64,
}

/// Runs all of them below `dir`.
///
/// # Errors
/// If something does not start.
pub fn run(dir: &Path, size: Size) -> Result<Report> {
    many_files()?;
    let service = load::serve()?;
    let mut running = Vec::new();
    for rival in Rival::ALL {
        match rival.missing() {
            Some(hint) => eprintln!("{} is left out, not installed: {hint}", rival.name()),
            None => running.push(rival.start(dir, service)?),
        }
    }
    let over = Duration::from_secs(size.seconds.max(1));
    let mut turns = Vec::new();
    for round in 0..size.rounds.max(1) {
        for one in &running {
            turns.push(take_turn(one, over)?);
        }
        eprintln!("round {} of {}", round + 1, size.rounds.max(1));
    }
    let idle = idle(&mut running)?;
    Ok(report(&turns, idle))
}

/// A thousand tunnels have thousands of sockets.
fn many_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, most).map_err(|error| LabError::io("allow more open files")(error.into()))
}

fn take_turn(one: &Running, over: Duration) -> Result<Turn> {
    let pid = one.relay_pid();
    let spent = || pid.map_or(0.0, cpu_seconds);
    let (mut begun, mut relay_cpu_s_per_gbit) = (0.0, None);
    let gbit_per_s = load::stream(one.at, over, |gbit| {
        if gbit == 0.0 {
            begun = spent();
        } else if pid.is_some() {
            relay_cpu_s_per_gbit = Some((spent() - begun) / gbit);
        }
    })?;
    Ok(Turn {
        rival: one.rival,
        gbit_per_s,
        relay_cpu_s_per_gbit,
        request_us: load::request_us(one.at, over)?,
        connections_per_s: load::connections(one.at, over)?,
    })
}

/// What a process spent so far, in the kernel too.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let words: Vec<&str> = behind_name.split_whitespace().collect();
    [11, 12].iter().filter_map(|at| words.get(*at)?.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0.0) * 1024.0 / 1e6
}

/// What a relay keeps for many tunnels that carry nothing.
fn idle(running: &mut [Running]) -> Result<Vec<Figure>> {
    let Some(ours) = running.iter_mut().find(|one| one.rival == Rival::Ionet) else { return Ok(Vec::new()) };
    let at = ours.at;
    let pairs = std::cell::RefCell::new(ours);
    let moved = || Ok(pairs.borrow_mut().relay_metrics()?.splicer.pairs);
    let open = load::keep_open(at, IDLE, || Ok(moved()? >= IDLE as u64))?;
    let moved =
        Figure::new("idle_tunnels_at_the_relay", moved()? as f64, "").target(Target::AtLeast(IDLE as f64));
    let pid = pairs.borrow().relay_pid().unwrap_or_default();
    let figure =
        Figure::new("relay_with_1000_idle_tunnels", resident_mb(pid), "MB").target(Target::Below(50.0));
    drop(open);
    Ok(vec![moved, figure])
}

/// The middle one of a figure of all rounds' turns.
fn middle(turns: &[Turn], rival: Rival, of: impl Fn(&Turn) -> f64) -> Option<f64> {
    let all: Vec<f64> = turns.iter().filter(|turn| turn.rival == rival).map(of).collect();
    (!all.is_empty()).then(|| percentile(&sorted(all), 50))
}

/// The middle one of the ratios of each round.
fn ratio(turns: &[Turn], [rival, other]: [Rival; 2], of: impl Fn(&Turn) -> f64) -> Option<f64> {
    let by = |rival| turns.iter().filter(move |turn| turn.rival == rival).map(&of);
    let all: Vec<f64> = by(rival).zip(by(other)).map(|(a, b)| a / b.max(1e-9)).collect();
    (!all.is_empty()).then(|| percentile(&sorted(all), 50))
}

fn relay_cpu(turn: &Turn) -> f64 {
    turn.relay_cpu_s_per_gbit.unwrap_or(0.0)
}

fn report(turns: &[Turn], idle: Vec<Figure>) -> Report {
    let mut figures = Vec::new();
    for rival in Rival::ALL {
        let mut add = |what: &str, unit, of: &dyn Fn(&Turn) -> f64| {
            let value = middle(turns, rival, of);
            figures.extend(value.map(|value| Figure::new(format!("{}_{what}", rival.name()), value, unit)));
        };
        add("stream", "Gbit/s", &|turn| turn.gbit_per_s);
        add("request_p50", "us", &|turn| turn.request_us);
        add("connections", "/s", &|turn| turn.connections_per_s);
        if turns.iter().any(|turn| turn.rival == rival && turn.relay_cpu_s_per_gbit.is_some()) {
            add("relay_cpu", "s/Gbit", &relay_cpu);
        }
    }
    let mut promise = |name: &'static str, value: Option<f64>, target| {
        figures.extend(value.map(|value| Figure::new(name, value, "x").target(target)));
    };
    let of = |turn: &Turn| turn.gbit_per_s;
    promise("stream_of_rathole", ratio(turns, [Rival::Ionet, Rival::Rathole], of), Target::AtLeast(1.0));
    let of = |turn: &Turn| turn.connections_per_s;
    promise("connections_of_bore", ratio(turns, [Rival::Ionet, Rival::Bore], of), Target::AtLeast(1.0));
    let of = |turn: &Turn| turn.request_us;
    promise("warm_request_of_ssh", ratio(turns, [Rival::IonetStream, Rival::Ssh], of), Target::Below(2.0));
    promise("promoted_request_of_ssh", ratio(turns, [Rival::Ionet, Rival::Ssh], of), Target::Below(1.2));
    let cpu = ratio(turns, [Rival::Ionet, Rival::IonetRelayed], relay_cpu);
    promise("relay_cpu_of_iroh_relay", cpu, Target::Below(0.2));
    figures.extend(idle);
    let what = "all on one loopback; the median of each round's ratio".into();
    Report { bench: "tunnels", what, figures, plot: plot(turns) }
}

fn plot(turns: &[Turn]) -> Plot {
    let shown = [Rival::Ionet, Rival::Rathole, Rival::Bore, Rival::Ssh];
    let series = shown.iter().map(|rival| Series {
        name: rival.name().into(),
        points: turns
            .iter()
            .filter(|turn| turn.rival == *rival)
            .enumerate()
            .map(|(n, turn)| (n as f64, turn.gbit_per_s))
            .collect(),
    });
    Plot {
        title: "one stream down through a tunnel".into(),
        x_label: "round".into(),
        y_label: "Gbit/s".into(),
        series: series.collect(),
    }
}
