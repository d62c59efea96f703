//! The overlay beside what an engineer would pick instead, in turn and in one run: only the ratios of a round are told, as
//! machines are noisy. Two machines are two network namespaces, their wire a veth pair.
//!
//! Not here: NATs and relays, which the testbed's scenarios cross.

mod measure;
pub mod member;
pub mod mesh;
mod pair;
mod rival;

use std::path::Path;

use super::plot::{Plot, Series};
use super::{Figure, Report, Target, percentile, sorted};
use crate::Result;
use measure::Flow;
use member::Kind;
use pair::{Condition, Pair};
use rival::Rival;

pub(super) use rival::is_installed;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// How often everybody takes a turn in each condition.
    pub rounds: usize,
    /// How long each turn is.
    pub seconds: u32,
    /// What privacy costs, and not what others do.
    pub private: bool,
}

/// What one rival did in one round under one condition.
struct Turn {
    condition: Condition,
    rival: Rival,
    stream: Flow,
    datagrams: Flow,
    round_trip_ms: f64,
}

/// Runs all of them below `dir`. Needs root.
///
/// # Errors
/// If something does not start, or is not installed.
pub fn run(dir: &Path, size: Size) -> Result<Report> {
    rival::needs(&[
        ("iperf3", "iperf3"),
        ("ethtool", "ethtool"),
        ("nft", "nftables"),
        ("ping", "iputils-ping"),
    ])?;
    let dir = &dir.canonicalize().map_err(crate::LabError::io("look at the bench's folder"))?;
    let pair = Pair::up(dir)?;
    measure::listen(&pair)?;
    let mut rivals = Vec::new();
    let mut running = Vec::new();
    let (wanted, conditions) = if size.private {
        (Rival::PRIVATE, &Condition::ALL[..1])
    } else {
        (Rival::OTHERS, &Condition::ALL[..])
    };
    for rival in wanted.iter().copied() {
        if let Some(hint) = rival.missing() {
            eprintln!("left out, not installed: {hint}");
            continue;
        }
        running.extend(rival.start(&pair, dir)?);
        rivals.push(rival);
    }
    let mut turns = Vec::new();
    for condition in conditions.iter().copied() {
        pair.set(condition)?;
        for round in 0..size.rounds.max(1) {
            for rival in &rivals {
                turns.push(take_turn(&pair, condition, *rival, size.seconds)?);
            }
            eprintln!("{}: round {} of {}", condition.name(), round + 1, size.rounds.max(1));
        }
    }
    pair.set(Condition::Offloads)?;
    let more = if size.private { idle(&pair)? } else { member::cost_of_peers(&pair, dir, size)? };
    Ok(report(&turns, &rivals, conditions, more))
}

fn idle(pair: &Pair) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (kind, name) in [(Kind::Plain, "ionet"), (Kind::Cells, "cells"), (Kind::Private, "cells_and_cover")] {
        let [kib, packets] = member::idle_minute(pair, kind)?;
        figures.push(Figure::new(format!("{name}_idle"), kib, "KiB a minute"));
        figures.push(Figure::new(format!("{name}_idle_packets"), packets, "a minute"));
    }
    Ok(figures)
}

fn take_turn(pair: &Pair, condition: Condition, rival: Rival, seconds: u32) -> Result<Turn> {
    let there = rival.inside()[1];
    let stream = measure::stream(pair, there, seconds)?;
    let alone = condition == Condition::Offloads;
    let datagrams = if alone { measure::datagrams(pair, there, seconds)? } else { Flow::default() };
    let round_trip_ms = if alone { measure::round_trip_ms(pair, there)? } else { 0.0 };
    Ok(Turn { condition, rival, stream, datagrams, round_trip_ms })
}

/// The middle of what `of` says of each round's turns of two rivals.
fn middle(
    turns: &[Turn],
    condition: Condition,
    [rival, other]: [Rival; 2],
    of: impl Fn(&Turn, &Turn) -> f64,
) -> f64 {
    let by = |rival| turns.iter().filter(move |turn| turn.rival == rival && turn.condition == condition);
    percentile(&sorted(by(rival).zip(by(other)).map(|(a, b)| of(a, b)).collect()), 50)
}

fn report(turns: &[Turn], rivals: &[Rival], conditions: &[Condition], more: Vec<Figure>) -> Report {
    let mut figures = Vec::new();
    for condition in conditions.iter().copied() {
        for rival in rivals {
            let share = middle(turns, condition, [*rival, Rival::Raw], speed);
            let cpu = middle(turns, condition, [*rival; 2], |turn, _| turn.stream.cpu_per_gbit());
            let name = |what: &str| format!("{}_{}_{what}", condition.name(), rival.name());
            if *rival == Rival::Raw {
                let rate = middle(turns, condition, [*rival; 2], |turn, _| turn.stream.gbit_per_second);
                figures.push(Figure::new(name("stream"), rate, "Gbit/s"));
            } else {
                figures.push(promised(Figure::new(name("share_of_raw"), share, "x")));
            }
            figures.push(promised(Figure::new(name("cpu"), cpu, "s/Gbit")));
        }
    }
    for (other, least_speed) in [(Rival::Nebula, 6.0), (Rival::Gotatun, 4.0)] {
        if rivals.contains(&other) {
            figures.extend(beside(turns, other, least_speed));
        }
    }
    for rival in rivals {
        let condition = Condition::Offloads;
        let trip = middle(turns, condition, [*rival; 2], |turn, _| turn.round_trip_ms);
        let lost = middle(turns, condition, [*rival, Rival::Raw], |a, b| {
            1.0 - a.datagrams.packets_per_second / b.datagrams.packets_per_second.max(1e-9)
        });
        figures.push(Figure::new(format!("{}_round_trip_p50", rival.name()), trip, "ms"));
        let spent = middle(turns, condition, [*rival; 2], |turn, _| turn.datagrams.carriers_us_per_packet());
        if *rival != Rival::Raw {
            figures.push(Figure::new(format!("{}_cpu_per_small_packet", rival.name()), spent, "us"));
        }
        figures.push(Figure::new(format!("{}_small_packets_lost", rival.name()), lost.max(0.0), "x"));
    }
    let added = middle(turns, Condition::Offloads, [Rival::Ionet, Rival::Raw], |a, b| {
        a.round_trip_ms - b.round_trip_ms
    });
    figures.push(Figure::new("added_round_trip_p50", added, "ms").target(Target::Below(0.2)));
    figures.extend(more);
    let what = "two namespaces and a veth pair; the median of each round's ratio".into();
    Report { bench: "overlay", what, figures, plot: plot(turns, rivals) }
}

fn speed(a: &Turn, b: &Turn) -> f64 {
    a.stream.gbit_per_second / b.stream.gbit_per_second.max(1e-9)
}

/// Ours in the other's. What iperf3 spends on small datagrams, several times what carries them, is the same for everybody:
/// the figure with it hides most of the difference, and is told beside the other.
fn beside(turns: &[Turn], other: Rival, least_speed: f64) -> [Figure; 4] {
    let figure = |name: String, of: &dyn Fn(&Turn) -> f64| {
        let pair = [Rival::Ionet, other];
        Figure::new(name, middle(turns, Condition::Offloads, pair, |a, b| of(a) / of(b).max(1e-9)), "x")
    };
    let name = other.name();
    let times = figure(format!("stream_times_{name}"), &|turn| turn.stream.gbit_per_second)
        .target(Target::AtLeast(least_speed));
    let cpu = figure(format!("cpu_of_{name}"), &|turn| turn.stream.cpu_per_gbit());
    let small =
        figure(format!("cpu_per_small_packet_of_{name}"), &|turn| turn.datagrams.carriers_us_per_packet());
    let with_iperf3 = figure(format!("cpu_per_small_packet_of_{name}_with_iperf3"), &|turn| {
        turn.datagrams.cpu_us_per_packet()
    });
    match other {
        Rival::Gotatun => [times, cpu.target(Target::Below(0.2)), small, with_iperf3],
        _ => [times, cpu, small.target(Target::Below(0.5)), with_iperf3],
    }
}

/// What was promised of the overlay's own figures.
fn promised(figure: Figure) -> Figure {
    let target = match figure.name.as_ref() {
        "offloads_ionet_share_of_raw" => Target::AtLeast(0.30),
        "no_offloads_ionet_share_of_raw" | "loss_ionet_share_of_raw" => Target::AtLeast(0.50),
        "offloads_ionet_cpu" => Target::Below(0.55),
        _ => return figure,
    };
    figure.target(target)
}

fn plot(turns: &[Turn], rivals: &[Rival]) -> Plot {
    let series = rivals.iter().map(|rival| Series {
        name: rival.name().into(),
        points: turns
            .iter()
            .filter(|turn| turn.rival == *rival)
            .enumerate()
            .map(|(n, turn)| (n as f64, turn.stream.gbit_per_second))
            .collect(),
    });
    Plot {
        title: "one TCP stream; rounds with offloads, then without, then with loss".into(),
        x_label: "round".into(),
        y_label: "Gbit/s".into(),
        series: series.collect(),
    }
}
