//! What each kind of hardware costs, did cost, and costs elsewhere.

use ionet_domain::market::board::ClassPrices;
use ionet_domain::market::record::Hour;
use ionet_domain::money::Rate;

use crate::args::PricesArgs;
use crate::context::Context;
use crate::error::Result;
use crate::out::Out;
use crate::units::{cpus, moment};

/// Most hours in a plot.
const PLOT_HOURS: u64 = 72;
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `ionet prices`
pub(crate) async fn prices(context: &Context, args: &PricesArgs) -> Result {
    let (client, _) = context.visitor().await?;
    let board = client.prices(args.model.as_deref()).await?;
    context.out.answer(&board, |out| {
        let header =
            ["HARDWARE", "FREE", "OF", "HIRED", "LOWEST ASK", "MARKET", "LAST TRADE", "ELSEWHERE", "DATE"];
        out.table(&header, &[1, 2, 3, 4, 5, 6, 7], board.classes.iter().map(row).collect());
        if args.model.is_some() {
            board.classes.iter().for_each(|class| detail(out, class));
        }
    });
    Ok(())
}

fn units(millis: u64) -> String {
    u32::try_from(millis).map_or_else(|_| (millis / 1000).to_string(), cpus)
}

/// The hardware, marked where it is for show.
fn name(class: &ClassPrices) -> String {
    if class.simulated { format!("{} (simulated)", class.class) } else { class.class.to_string() }
}

fn row(class: &ClassPrices) -> Vec<String> {
    let rate = |rate: Option<Rate>| rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
    let (elsewhere, date) = match &class.elsewhere {
        Some(found) => (found.median.to_string(), found.date.clone()),
        None => ("-".into(), "-".into()),
    };
    vec![
        name(class),
        units(class.free_millis),
        units(class.units_millis),
        format!("{} %", class.hired_ppm / 10_000),
        rate(class.lowest_ask),
        rate(class.market),
        rate(class.trades.last().map(|trade| trade.per_unit)),
        elsewhere,
        date,
    ]
}

fn detail(out: Out, class: &ClassPrices) {
    out.line(format!(
        "\n{}: {} of {} devices could take work now",
        name(class),
        class.open_devices,
        class.devices
    ));
    if let Some(reference) = class.reference {
        out.line(format!("reference {reference}"));
    }
    plot(out, &class.hours);
    let trades = class.trades.iter().rev().take(8);
    let trade = |trade: &ionet_domain::market::record::Trade| {
        vec![moment(trade.at_ms), units(trade.units_millis), trade.per_unit.to_string()]
    };
    out.table(&["LAST TRADES", "UNITS", "A UNIT"], &[1, 2], trades.map(trade).collect());
    let competitor = |found: &ionet_domain::market::competitors::Competitor| {
        let counted = if found.counted { "yes" } else { "no" }.to_owned();
        vec![
            found.provider.clone(),
            found.rate.to_string(),
            found.date.clone(),
            counted,
            found.source.clone(),
        ]
    };
    let rows = class.competitors.iter().map(competitor).collect();
    out.table(&["ELSEWHERE", "RATE", "DATE", "COUNTS", "SOURCE"], &[1], rows);
}

/// What was hired, and the highest rate, hour by hour: a character each, the newest on the right.
fn plot(out: Out, hours: &[Hour]) {
    let Some(last) = hours.last().map(|hour| hour.hour) else { return };
    let first = hours.first().map_or(last, |hour| hour.hour).max(last.saturating_sub(PLOT_HOURS - 1));
    let line = |value: &dyn Fn(&Hour) -> u64, most: u64| -> String {
        let at = |hour: u64| {
            let found = hours.iter().find(|known| known.hour == hour).map_or(0, value);
            // Of anything above nothing at least the lowest bar is seen.
            let level = (found * 8).div_ceil(most.max(1)).min(8);
            LEVELS[usize::try_from(level).unwrap_or(8)]
        };
        (first..=last).map(at).collect()
    };
    let high = hours.iter().map(|hour| hour.high).max().unwrap_or_default();
    out.line(format!("hired  |{}| of 100 %, hour by hour", line(&|hour| hour.hired_ppm(), 1_000_000)));
    out.line(format!("trades |{}| up to {high}", line(&|hour| hour.high.0, high.0)));
}
