//! Words for what is done for a cluster while it lives, and for what changes it.

use clap::Args;
use ionet_domain::market::upkeep::{Metric, ReplaceMode, Scale};
use ionet_domain::market::{Priority, Upkeep};
use ionet_domain::{OrderId, Rate};

use super::request::{Droppable, WantArgs, parse_priority};
use super::{parse_rate, parse_usd};
use crate::units;

/// What is aimed at where only the bounds are said, in percent.
const SCALE_AT_PERCENT: u8 = 70;

/// What is done for a cluster while it lives.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpkeepArgs {
    /// Add and take away members by how busy they are, between these numbers, such as 2..8
    #[arg(long, value_name = "MIN..MAX", value_parser = parse_bounds)]
    pub(crate) scale: Option<(u32, u32)>,
    /// How busy all members together are to be, in percent [default: 70]
    #[arg(long, value_name = "PERCENT", requires = "scale")]
    pub(crate) scale_at: Option<u8>,
    /// What is looked at: cpu or gpu [default: gpu where members have GPUs]
    #[arg(long, value_name = "cpu|gpu", requires = "scale")]
    pub(crate) scale_by: Option<Metric>,
    /// Scale no further than this price of all members an hour, in dollars
    #[arg(long, value_name = "USD", value_parser = parse_rate, requires = "scale")]
    pub(crate) scale_max_price: Option<Rate>,
    /// What is done with members that ail: proposed, so that you decide, or by-itself
    #[arg(long, value_name = "HOW")]
    pub(crate) replace: Option<ReplaceMode>,
    /// How long it may be paused before it is closed [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration_ms)]
    pub(crate) max_pause: Option<u64>,
}

impl UpkeepArgs {
    /// What was there with what was said.
    pub(crate) fn applied(&self, before: &Upkeep, gpus: u32) -> Upkeep {
        let metric = self.scale_by.unwrap_or(if gpus > 0 { Metric::Gpu } else { Metric::Cpu });
        let scale = self.scale.map(|(min, max)| Scale {
            min,
            max,
            metric,
            target_percent: self.scale_at.unwrap_or(SCALE_AT_PERCENT),
            max_rate: self.scale_max_price,
        });
        Upkeep {
            max_pause_ms: self.max_pause.or(before.max_pause_ms),
            replace: self.replace.unwrap_or(before.replace),
            scale: scale.or_else(|| before.scale.clone()),
        }
    }
}

fn parse_bounds(text: &str) -> Result<(u32, u32), String> {
    let bounds = text.split_once("..").and_then(|(min, max)| Some((min.parse().ok()?, max.parse().ok()?)));
    bounds.ok_or_else(|| "write it as MIN..MAX, such as 2..8".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// Which
    pub(crate) cluster: OrderId,
    /// By how many
    #[arg(value_name = "MEMBERS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) members: u32,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Do not wait until it is done
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplaceArgs {
    /// Which
    pub(crate) cluster: OrderId,
    /// Which member; 0 is the head
    #[arg(value_name = "SLOT")]
    pub(crate) member: u32,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Do not wait until it is up
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Which
    pub(crate) cluster: OrderId,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Do not wait until it is done
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Which
    pub(crate) cluster: OrderId,
    /// A shorter time in all, from when it ran first; what is not used comes back
    #[arg(long = "for", value_parser = units::parse_duration_ms, value_name = "TIME")]
    pub(crate) duration_ms: Option<u64>,
    /// The most that all members together may cost an hour before fees, in dollars; 0 for no cap
    #[arg(long, value_name = "USD", value_parser = parse_rate)]
    pub(crate) max_price: Option<Rate>,
    /// The most that it may cost in all, fee included, in dollars; 0 for no cap
    #[arg(long, value_name = "USD", value_parser = parse_usd)]
    pub(crate) max_total: Option<u64>,
    /// How urgent it is against others that wait: low, normal or high
    #[arg(long, value_name = "CLASS", value_parser = parse_priority)]
    pub(crate) priority: Option<Priority>,
    #[command(flatten)]
    pub(crate) wants: WantArgs,
    /// A condition on its devices that does not matter any more, by the name of its option; may be given again
    #[arg(long, value_name = "OPTION")]
    pub(crate) drop: Vec<Droppable>,
    #[command(flatten)]
    pub(crate) upkeep: UpkeepArgs,
    /// Scale no more
    #[arg(long, conflicts_with = "scale")]
    pub(crate) no_scale: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}
