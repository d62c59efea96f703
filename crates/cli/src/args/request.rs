//! Words for what is asked for.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use ionet_domain::device::Tier;
use ionet_domain::market::{Destination, GpuMinimum, Isolation, Preference, Priority, Wants, WorkKind};
use ionet_domain::{Address, Rate};

use super::{UpkeepArgs, parse_rate, parse_switch, parse_usd};
use crate::units;

/// What is asked for, as price and placement read it.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of its own on the command line")]
pub(crate) struct RequestArgs {
    /// What runs in the boxes: ray or command
    #[arg(long, default_value = "ray")]
    pub(crate) engine: String,
    /// How many members
    #[arg(long, short = 'n', default_value_t = 1)]
    pub(crate) members: u32,
    /// CPU threads of each member, such as 2 or 0.5
    #[arg(long, default_value = "1", value_parser = units::parse_cpus, value_name = "N")]
    pub(crate) cpus: u32,
    /// Memory of each member
    #[arg(long, default_value = "2GiB", value_parser = units::parse_bytes, value_name = "SIZE")]
    pub(crate) memory: u64,
    /// Disk of each member
    #[arg(long, default_value = "1GiB", value_parser = units::parse_bytes, value_name = "SIZE")]
    pub(crate) disk: u64,
    /// GPUs of each member
    #[arg(long, default_value_t = 0)]
    pub(crate) gpus: u32,
    /// For how long: 90m, 2h, 1d
    #[arg(long = "for", default_value = "1h", value_parser = units::parse_duration_ms, value_name = "TIME")]
    pub(crate) duration_ms: u64,
    /// For how many hours; the same as --for
    #[arg(long, value_name = "N", conflicts_with = "duration_ms", value_parser = clap::value_parser!(u64).range(1..=8784))]
    pub(crate) hours: Option<u64>,
    #[command(flatten)]
    pub(crate) wants: WantArgs,
    /// What the work is: general (the cheapest), train (memory, links, members near each other) or inference (latency,
    /// members on different suppliers, price of memory bandwidth)
    #[arg(long, default_value = "general", value_name = "KIND")]
    pub(crate) kind: WorkKind,
    /// Whether the boxes may open connections out of the cluster: on (every public address) or off (members only)
    #[arg(long, value_name = "on|off", value_parser = parse_switch, conflicts_with = "allow_egress")]
    pub(crate) egress: Option<bool>,
    /// Only there: HOST or HOST:PORT with a name, *.name, an address or a CIDR; may be given again
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) allow_egress: Vec<Destination>,
    /// Packets between members are all of one size, with cover traffic between them: onlookers do not see sizes, nor
    /// when little is sent; costs 0.6 Mbit/s to each peer and up to 20 ms
    #[arg(long)]
    pub(crate) private: bool,
    /// Members do not see each other's addresses: everything goes over relays, at their pace
    #[arg(long)]
    pub(crate) via_relay: bool,
    /// And over two relays in turn, so that neither sees all of it
    #[arg(long)]
    pub(crate) split_relays: bool,
    /// The most that all members together may cost an hour before fees, in dollars
    #[arg(long, value_name = "USD", value_parser = parse_rate)]
    pub(crate) max_price: Option<Rate>,
    /// The most that it may cost in all, fee included, in dollars
    #[arg(long, value_name = "USD", value_parser = parse_usd)]
    pub(crate) max_total: Option<u64>,
    /// Open-ended: for as long as this pays, fee included, in dollars; end it when you are done, and the rest comes back
    #[arg(long, value_name = "USD", value_parser = parse_usd, conflicts_with_all = ["duration_ms", "hours", "max_total", "starts_ms", "deadline_ms"])]
    pub(crate) budget: Option<u64>,
    /// How urgent it is against others that wait: low, normal or high, which counts double in your fair share
    #[arg(long, default_value = "normal", value_name = "CLASS", value_parser = parse_priority, hide_default_value = true)]
    pub(crate) priority: Priority,
    /// Wait until --max-price (or --bid) or the hardware appears, for so long at most [default with the flag: 1d]
    #[arg(long = "wait", num_args = 0..=1, default_missing_value = "1d", value_parser = units::parse_duration_ms, value_name = "TIME")]
    pub(crate) wait_ms: Option<u64>,
    /// Cheaper, within --bid; it may be ended with a notice when others have no place otherwise or the price rises above the bid
    #[arg(long, requires = "bid")]
    pub(crate) spot: bool,
    /// With --spot: the most that all members together may cost an hour before fees, in dollars
    #[arg(long, value_name = "USD", value_parser = parse_rate, requires = "spot", conflicts_with = "max_price")]
    pub(crate) bid: Option<Rate>,
    /// With --spot: how long the notice is
    #[arg(long = "notice", default_value = "2m", value_parser = units::parse_duration_ms, value_name = "TIME")]
    pub(crate) notice_ms: u64,
    /// Reserve it for a window that begins then: 2026-11-30T08:00:00Z, or 12h from now; its devices are kept
    #[arg(long = "start", value_name = "WHEN", value_parser = units::parse_when_ms, conflicts_with_all = ["wait_ms", "spot", "deadline_ms"])]
    pub(crate) starts_ms: Option<u64>,
    /// Have it done by then, in the hours that are usually least in demand, within --max-price
    #[arg(long = "by", value_name = "WHEN", value_parser = units::parse_when_ms, conflicts_with_all = ["wait_ms", "spot"])]
    pub(crate) deadline_ms: Option<u64>,
    /// Everything that matches, up to 256 members and --max-price
    #[arg(long, conflicts_with_all = ["members", "wait_ms", "spot", "starts_ms", "deadline_ms"])]
    pub(crate) mega: bool,
    /// Ask for simulated devices ('ionet up --simulate'): for show, what is quoted cannot be ordered
    #[arg(long)]
    pub(crate) simulated: bool,
    #[command(flatten)]
    pub(crate) upkeep: UpkeepArgs,
}

/// What the devices must be.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WantArgs {
    /// Only this GPU model
    #[arg(long, value_name = "MODEL")]
    pub(crate) gpu_model: Option<String>,
    /// Only this supply network, or one of several with '|' between them
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<String>,
    /// The least memory of each GPU, as measured
    #[arg(long, value_parser = units::parse_bytes, value_name = "SIZE")]
    pub(crate) gpu_memory: Option<u64>,
    /// The least memory bandwidth of each GPU in GB/s, by its data sheet
    #[arg(long, value_name = "N")]
    pub(crate) gpu_bandwidth: Option<u64>,
    /// The least FP16 rate of each GPU in TFLOPS, by its data sheet
    #[arg(long, value_name = "N")]
    pub(crate) gpu_tflops: Option<u64>,
    /// Only CPUs whose (claimed) name contains this, in any case
    #[arg(long, value_name = "TEXT")]
    pub(crate) cpu_model: Option<String>,
    /// At most so many members on one device [default: as many as fit]
    #[arg(long, value_name = "N", conflicts_with = "spread")]
    pub(crate) per_device: Option<u32>,
    /// Only in this region, where measurements bear it out; may be given again; us covers us-east
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Vec<String>,
    /// Data residency: only where measurements bear out that it is not in this region; may be given again
    #[arg(long, value_name = "NAME")]
    pub(crate) not_region: Vec<String>,
    /// The region that callers are in: near to it is better
    #[arg(long, value_name = "NAME")]
    pub(crate) near: Option<String>,
    /// What keeps boxes from their neighbours: process, limits (enforced) or one-tenant [default: process]
    #[arg(long, value_name = "TIER")]
    pub(crate) isolation: Option<Isolation>,
    /// Only devices that kept this share of their leases, in percent
    #[arg(long, value_name = "PERCENT")]
    pub(crate) min_reliability: Option<u8>,
    /// What is better among devices that would do: cheapest, fastest, together, apart or near; all but the cheapest may cost
    /// a little more [default: by --kind]
    #[arg(long, value_name = "WHAT")]
    pub(crate) prefer: Option<Preference>,
    /// Only devices of this supplier; may be given again
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) supplier: Vec<Address>,
    /// No devices of this supplier; may be given again
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) not_supplier: Vec<Address>,
    /// Only devices with this tag; may be given again
    #[arg(long, value_name = "WORD")]
    pub(crate) tag: Vec<String>,
    /// Only devices that have earned this connectivity or better: low, medium, high or ultra
    #[arg(long, value_name = "TIER")]
    pub(crate) tier: Option<Tier>,
    /// Every member on a device of its own
    #[arg(long)]
    pub(crate) spread: bool,
}

/// A condition that can be dropped, by the name of its option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Droppable {
    GpuModel,
    GpuMemory,
    GpuBandwidth,
    GpuTflops,
    CpuModel,
    Network,
    Tag,
    Tier,
    PerDevice,
    Region,
    NotRegion,
    Near,
    Isolation,
    MinReliability,
    Prefer,
    Supplier,
    NotSupplier,
}

impl WantArgs {
    /// What was there, without what is dropped and with what was said.
    pub(crate) fn applied(&self, before: &Wants, dropped: &[Droppable]) -> Wants {
        let mut was = before.clone();
        for one in dropped {
            one.drop_from(&mut was);
        }
        let least = was.gpu_min;
        Wants {
            gpu_model: self.gpu_model.clone().or(was.gpu_model),
            gpu_min: GpuMinimum {
                memory_bytes: self.gpu_memory.unwrap_or(least.memory_bytes),
                bandwidth_gb_s: self.gpu_bandwidth.unwrap_or(least.bandwidth_gb_s),
                fp16_gflops: self.gpu_tflops.map_or(least.fp16_gflops, |tflops| tflops.saturating_mul(1000)),
            },
            cpu_model: self.cpu_model.clone().or(was.cpu_model),
            network: self.network.clone().or(was.network),
            tags: said(&self.tag, was.tags),
            tier: self.tier.or(was.tier),
            max_per_device: if self.spread { Some(1) } else { self.per_device.or(was.max_per_device) },
            regions: said(&self.region, was.regions),
            not_regions: said(&self.not_region, was.not_regions),
            near: self.near.clone().or(was.near),
            isolation: self.isolation.or(was.isolation),
            min_reliability_percent: self.min_reliability.or(was.min_reliability_percent),
            prefer: self.prefer.or(was.prefer),
            suppliers: said(&self.supplier, was.suppliers),
            not_suppliers: said(&self.not_supplier, was.not_suppliers),
        }
    }
}

fn said<T: Clone + Ord>(list: &[T], was: BTreeSet<T>) -> BTreeSet<T> {
    if list.is_empty() { was } else { list.iter().cloned().collect() }
}

impl Droppable {
    fn drop_from(self, wants: &mut Wants) {
        let none = Wants::default();
        match self {
            Self::GpuModel => wants.gpu_model = none.gpu_model,
            Self::GpuMemory => wants.gpu_min.memory_bytes = 0,
            Self::GpuBandwidth => wants.gpu_min.bandwidth_gb_s = 0,
            Self::GpuTflops => wants.gpu_min.fp16_gflops = 0,
            Self::CpuModel => wants.cpu_model = none.cpu_model,
            Self::Network => wants.network = none.network,
            Self::Tag => wants.tags = none.tags,
            Self::Tier => wants.tier = none.tier,
            Self::PerDevice => wants.max_per_device = none.max_per_device,
            Self::Region => wants.regions = none.regions,
            Self::NotRegion => wants.not_regions = none.not_regions,
            Self::Near => wants.near = none.near,
            Self::Isolation => wants.isolation = none.isolation,
            Self::MinReliability => wants.min_reliability_percent = none.min_reliability_percent,
            Self::Prefer => wants.prefer = none.prefer,
            Self::Supplier => wants.suppliers = none.suppliers,
            Self::NotSupplier => wants.not_suppliers = none.not_suppliers,
        }
    }
}

pub(super) fn parse_priority(text: &str) -> Result<Priority, String> {
    text.parse().map_err(|refusal: ionet_domain::Refusal| refusal.to_string())
}
