//! How long the market takes to answer, from ten thousand devices to a million: a quote, a place where next to nobody has what is
//! asked for, a reason for a no, the reason why a device gets no work, and the board behind `ionet prices`.
//!
//! The same market as in `place`, with the product's table of prices. The reasons asked for are of different kinds, none of
//! which can be had: too large, nowhere, too many, and what was hired away. Not here: placement alone (`place`).

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::Instant;

use ionet_domain::device::{DeviceChange, Resources, Tier};
use ionet_domain::event::PublicBody;
use ionet_domain::id::{Address, QuoteId};
use ionet_domain::market::{Request, board, explain, explain_device, place, price};
use ionet_domain::{DeviceId, Params, State};

use super::place::{filled, wish};
use super::plot::{Plot, Series};
use super::{Figure, Report, Target, percentile, sorted};
use crate::random::Random;
use crate::{LabError, Result};

/// The tag of one device alone.
const RARE: &str = "rare";

/// What to run.
#[derive(Debug, Clone)]
pub struct Size {
    /// Numbers of devices.
    pub devices: Vec<usize>,
    /// Quotes for each.
    pub quotes: usize,
    /// Explanations of each kind.
    pub explanations: usize,
}

/// What one number of devices gave, in microseconds.
struct Outcome {
    devices: usize,
    quote: Vec<f64>,
    nowhere: Vec<f64>,
    rare: Vec<f64>,
    explain: Vec<f64>,
    device: Vec<f64>,
    board: Vec<f64>,
}

/// Runs all sizes.
pub fn run(size: &Size) -> Result<Report> {
    let outcomes: Vec<_> = size.devices.iter().map(|devices| one(*devices, size)).collect::<Result<_>>()?;
    let mut figures = Vec::new();
    for outcome in &outcomes {
        let name = |what: &str| format!("{}_{what}", outcome.devices);
        let ms = |of: &[f64], percent| percentile(of, percent) / 1000.0;
        figures.extend([
            Figure::new(name("quote_p50"), percentile(&outcome.quote, 50), "us").target(Target::Below(100.0)),
            Figure::new(name("quote_p99"), percentile(&outcome.quote, 99), "us"),
            // Placement as the writer does it, without reasons.
            Figure::new(name("place_nowhere_p50"), percentile(&outcome.nowhere, 50), "us"),
            Figure::new(name("place_rare_p50"), percentile(&outcome.rare, 50), "us"),
            Figure::new(name("place_rare_max"), percentile(&outcome.rare, 100), "us"),
            Figure::new(name("explain_p50"), ms(&outcome.explain, 50), "ms").target(Target::Below(50.0)),
            Figure::new(name("explain_max"), ms(&outcome.explain, 100), "ms").target(Target::Below(50.0)),
            Figure::new(name("explain_device_p50"), ms(&outcome.device, 50), "ms")
                .target(Target::Below(50.0)),
            Figure::new(name("board_p50"), ms(&outcome.board, 50), "ms"),
        ]);
    }
    let line = |name: &str, of: fn(&Outcome) -> &Vec<f64>| Series {
        name: name.into(),
        points: outcomes
            .iter()
            .map(|o| ((o.devices as f64).log10(), percentile(of(o), 50) / 1000.0))
            .collect(),
    };
    let plot = Plot {
        title: "time to answer, p50".into(),
        x_label: "devices, power of ten".into(),
        y_label: "ms".into(),
        series: vec![
            line("quote", |o| &o.quote),
            line("explain", |o| &o.explain),
            line("explain a device", |o| &o.device),
            line("the board", |o| &o.board),
        ],
    };
    let what = format!("{:?} devices, {} quotes each", size.devices, size.quotes);
    Ok(Report { bench: "market", what, figures, plot })
}

fn one(devices: usize, size: &Size) -> Result<Outcome> {
    let mut random = Random::new(11);
    let mut market = filled(devices, Params { gpu_shares: true, ..Params::default() }, &mut random)?;
    let youngest = market.state.devices.keys().next_back().copied();
    if let Some(device) = youngest {
        let tags = Some(BTreeSet::from([RARE.to_owned()]));
        let change = DeviceChange { tags, ..DeviceChange::default() };
        market.happen(PublicBody::DeviceChanged { device, change })?;
    }
    let (state, now_ms) = (&market.state, market.now_ms);
    let (id, account) = (QuoteId::from_bits(0), Address([0; 32]));
    let quote = |_| {
        let wish = wish(&mut random);
        timed(|| drop(black_box(price::quote(state, id, account, &wish, now_ms))))
    };
    let quote = sorted((0..size.quotes).map(quote).collect());
    // Any device would do but for a tag: of nobody, and of one device alone.
    let tagged = |tag: &str| {
        let mut any = wish(&mut Random::new(5));
        (any.gpu_model, any.members, any.tags) = (None, 1, BTreeSet::from([tag.to_owned()]));
        any.per_member = Resources { cpu_millis: 1000, memory_bytes: 1 << 30, ..Resources::default() };
        let find = |_| timed(|| drop(black_box(place::find(state, &any, &place::Limits::default(), now_ms))));
        sorted((0..size.explanations * 4).map(find).collect())
    };
    let (nowhere, rare) = (tagged("nowhere"), tagged(RARE));
    let mut explained = Vec::new();
    for _ in 0..size.explanations {
        for wish in impossible(&mut random) {
            let mut relaxations = 0;
            explained.push(timed(|| {
                relaxations = explain::request(state, account, &wish, now_ms)
                    .map_or(0, |found| found.relaxations.len());
            }));
            black_box(relaxations);
        }
    }
    let ids: Vec<DeviceId> = state.devices.keys().copied().collect();
    let device = |_| match random.one_of(&ids) {
        Some(id) => timed(|| drop(black_box(explain_device::device(state, *id, now_ms)))),
        None => 0.0,
    };
    let device = sorted((0..size.explanations * 4).map(device).collect());
    let board =
        (0..size.explanations * 4).map(|_| timed(|| drop(black_box(board::prices(state, None, now_ms)))));
    check(state, now_ms)?;
    let (explain, board) = (sorted(explained), sorted(board.collect()));
    Ok(Outcome { devices, quote, nowhere, rare, explain, device, board })
}

/// The board counts every device.
fn check(state: &State, now_ms: u64) -> Result<()> {
    let counted: usize = board::prices(state, None, now_ms).iter().map(|class| class.devices as usize).sum();
    if counted == state.devices.len() {
        return Ok(());
    }
    Err(LabError::Broken(format!("the board counts {counted} devices of {}", state.devices.len())))
}

/// Wishes of every kind that nothing fits.
fn impossible(random: &mut Random) -> Vec<Request> {
    let model = Some("NVIDIA H100 80GB HBM3".to_owned());
    let tags = BTreeSet::from(["us".to_owned()]);
    let mut large = wish(random);
    large.per_member.memory_bytes = 4 << 40;
    let mut wide = wish(random);
    (wide.per_member.gpus, wide.per_member.gpu_share_millis) = (16, None);
    let nowhere = Request { network: Some("nowhere".into()), ..wish(random) };
    let mut rare = Request { gpu_model: model, tags, tier: Some(Tier::Ultra), members: 256, ..wish(random) };
    (rare.per_member.gpus, rare.per_member.gpu_share_millis, rare.spread) = (8, None, true);
    let mut many = Request { members: 256, spread: true, ..wish(random) };
    many.per_member.disk_bytes = 3 << 40;
    vec![large, wide, nowhere, rare, many]
}

fn timed(look: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    look();
    begun.elapsed().as_secs_f64() * 1e6
}
