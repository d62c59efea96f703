//! The mix of simulated devices that a network of one machine may show: made up here, marked in the rules
//! (`ionet-domain`, `simulated`).
//!
//! Always holds: the same numbers at the same time give the same devices. Not here: what may be done with them.

use std::collections::BTreeSet;

use ionet_domain::device::{Enrolment, Gpu, GpuCheck, Hardware, Measured, Resources};
use ionet_domain::simulated::Simulated;
use ionet_domain::{Address, DeviceId, EndpointId, Rate};
use sha2::{Digest as _, Sha256};

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

/// Simulated devices in a realistic mix: the `first`-th and those after it.
pub fn fleet(first: u64, count: usize, now_ms: u64) -> Vec<Simulated> {
    (first..).take(count).map(|n| one(n, now_ms)).collect()
}

fn one(n: u64, now_ms: u64) -> Simulated {
    const GIB: u64 = 1 << 30;
    let mut dice = Dice::of(n, now_ms);
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
        device: DeviceId::from_parts(now_ms, u128::from(n)),
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

/// What a device is made of: two bytes of a hash for each choice.
struct Dice([u8; 32], usize);

impl Dice {
    fn of(n: u64, now_ms: u64) -> Self {
        let hash = Sha256::new().chain_update(n.to_be_bytes()).chain_update(now_ms.to_be_bytes()).finalize();
        Self(hash.into(), 0)
    }

    fn below(&mut self, limit: u64) -> u64 {
        let [high, low] = [self.0[self.1 % 32], self.0[(self.1 + 1) % 32]];
        self.1 += 2;
        u64::from(u16::from_be_bytes([high, low])) % limit.max(1)
    }

    fn one_of<T: Copy>(&mut self, these: &[T]) -> Option<T> {
        let at = usize::try_from(self.below(these.len() as u64)).ok()?;
        these.get(at).copied()
    }
}
