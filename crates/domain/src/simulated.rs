//! Simulated devices: for show, in tables, quotes, prices and reasons, always marked, and on which nothing can be ordered.
//!
//! Always holds: they exist only where the network was founded for them; a real request never gets a place on one, a
//! simulated request gets no other place and is never accepted; no record of the market counts them. Not here: which of
//! them a request would get (`market::place`).

use std::collections::BTreeSet;

use crate::device::{Enrolment, Gpu, GpuCheck, Hardware, Measured, Resources};
use crate::id::{Address, DeviceId, EndpointId};
use crate::money::Rate;
use crate::refusal::Refusal;
use crate::state::State;

/// Most that one command brings in.
pub const MOST_AT_ONCE: usize = 1000;

/// A device that is made up, with what a check would have measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulated {
    /// How it enters; marked.
    pub enrolment: Enrolment,
    /// What would have been measured.
    pub measured: Measured,
}

/// One kind of machine of the mix. The models are those that are most often on offer; how many there are of each is our
/// assumption, and asks spread around half to all of what such a GPU costs at the network's reference rates.
struct Kind {
    model: &'static str,
    memory_gib: u64,
    /// Of all devices, in thousandths.
    share: u64,
    ask_micro_usd_per_hour: u64,
    /// How many GPUs such machines have.
    gpus: &'static [u32],
}

const fn kind(
    model: &'static str,
    memory_gib: u64,
    share: u64,
    ask_micro_usd_per_hour: u64,
    gpus: &'static [u32],
) -> Kind {
    Kind { model, memory_gib, share, ask_micro_usd_per_hour, gpus }
}

const MIX: [Kind; 10] = [
    kind("", 0, 150, 15_000, &[0]),
    kind("NVIDIA GeForce RTX 4090", 24, 250, 300_000, &[1, 1, 2, 4]),
    kind("NVIDIA GeForce RTX 3090", 24, 140, 200_000, &[1, 1, 2, 4]),
    kind("NVIDIA GeForce RTX 3080", 10, 110, 150_000, &[1, 1, 2]),
    kind("NVIDIA RTX A6000", 48, 80, 600_000, &[1, 2, 4, 8]),
    kind("NVIDIA RTX A4000", 16, 70, 180_000, &[1, 2, 4]),
    kind("Tesla T4", 16, 80, 200_000, &[1, 4]),
    kind("NVIDIA L40S", 48, 40, 700_000, &[4, 8]),
    kind("NVIDIA A100-SXM4-80GB", 80, 60, 650_000, &[4, 8, 8]),
    kind("NVIDIA H100 80GB HBM3", 80, 20, 1_700_000, &[8]),
];

/// Simulated devices in a realistic mix: the `first`-th and those after it. The same numbers at the same time give the same
/// devices.
pub fn fleet(first: u64, count: usize, now_ms: u64) -> Vec<Simulated> {
    (first..).take(count).map(|n| one(n, now_ms)).collect()
}

fn one(n: u64, now_ms: u64) -> Simulated {
    const GIB: u64 = 1 << 30;
    let mut dice = Dice(n.wrapping_mul(0x9e37_79b9) ^ now_ms);
    let mut at = dice.below(MIX.iter().map(|kind| kind.share).sum());
    let here = |kind: &&Kind| {
        let here = at < kind.share;
        at = at.saturating_sub(kind.share);
        here
    };
    let kind = MIX.iter().find(here).unwrap_or(&MIX[0]);
    let count = dice.one_of(kind.gpus).unwrap_or(0);
    let threads = if count == 0 { 8 << dice.below(3) } else { count * (8 << dice.below(2)) };
    let memory_bytes = u64::from(threads) * GIB * dice.one_of(&[2, 4, 8]).unwrap_or(4);
    let gpus: Vec<Gpu> = (0..count)
        .map(|gpu| Gpu {
            uuid: format!("GPU-simulated-{n}-{gpu}"),
            model: kind.model.into(),
            memory_bytes: kind.memory_gib * GIB,
        })
        .collect();
    let (down, up) =
        dice.one_of(&[(150, 100), (500, 400), (500, 400), (900, 700), (2000, 1500)]).unwrap_or((150, 100));
    let seen = |gpu: &Gpu| GpuCheck {
        uuid: gpu.uuid.clone(),
        kernel_sees: true,
        driver_memory_bytes: Some(gpu.memory_bytes),
    };
    let measured = Measured {
        cpu_one_mb_s: 400,
        cpu_all_mb_s: 400 * threads,
        memory_mb_s: 10_000,
        disk_write_mb_s: 800,
        disk_read_mb_s: 1500,
        network_down_mbit_s: down,
        network_up_mbit_s: up,
        rtt_us: 20_000,
        gpus: gpus.iter().map(seen).collect(),
        enforcement: Some("simulated".into()),
    };
    let region = dice.one_of(&["us", "us", "eu", "eu", "apac"]).unwrap_or("us");
    let percent = 80 + dice.below(50);
    let mut endpoint = [0; 32];
    endpoint[..9].copy_from_slice(b"simulated");
    endpoint[16..24].copy_from_slice(&now_ms.to_be_bytes());
    endpoint[24..].copy_from_slice(&n.to_be_bytes());
    let enrolment = Enrolment {
        device: DeviceId::from_parts(now_ms, u128::from(dice.bits()) << 16 | u128::from(n & 0xffff)),
        owner: Address([0; 32]),
        endpoint: EndpointId(endpoint),
        network: "ionet".into(),
        tags: BTreeSet::from([region.to_owned()]),
        ask_per_unit: Rate(kind.ask_micro_usd_per_hour * percent / 100),
        offered: Resources {
            cpu_millis: threads * 1000,
            memory_bytes,
            disk_bytes: dice.one_of(&[500, 1000, 2000]).unwrap_or(500) * GIB,
            gpus: count,
            gpu_share_millis: None,
        },
        hardware: Hardware {
            cpu_model: "simulated".into(),
            cpu_threads: threads,
            memory_bytes,
            gpus,
            unsupported: Vec::new(),
        },
        simulated: true,
    };
    Simulated { enrolment, measured }
}

/// Numbers that look thrown: `SplitMix64`, the same on every machine.
struct Dice(u64);

impl Dice {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    fn one_of<T: Copy>(&mut self, these: &[T]) -> Option<T> {
        let at = usize::try_from(self.below(these.len() as u64)).ok()?;
        these.get(at).copied()
    }
}

/// Whether simulated devices may be here at all.
///
/// # Errors
/// If the network was not founded for them.
pub fn allowed(state: &State) -> Result<(), Refusal> {
    if state.params.simulated_devices {
        return Ok(());
    }
    Err(Refusal::Unsupported {
        what: "a simulated device".into(),
        reason: "this network was not founded for them".into(),
        available: "a new network on one's own machine ('ionet up --simulate N' with another --data-dir)"
            .into(),
    })
}

/// Whether an order may be accepted: nothing runs on simulated devices.
///
/// # Errors
/// If simulated ones are asked for.
pub fn check_order(simulated: bool) -> Result<(), Refusal> {
    if !simulated {
        return Ok(());
    }
    Err(Refusal::Unsupported {
        what: "an order on simulated devices".into(),
        reason: "they are for show and nothing runs on them".into(),
        available: "their quotes, prices and reasons; an order on real devices (without --simulated)".into(),
    })
}
