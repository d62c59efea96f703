//! Machines as they come: plain ones, or all kinds, some of which are not what they claim.

use std::collections::BTreeSet;

use ionet_api::WalletKey;
use ionet_domain::connectivity::{Bandwidth, REGION_TAG, RelayMeasure};
use ionet_domain::device::{Enrolment, Gpu, GpuCheck, Hardware, Measured, Resources};
use ionet_domain::money::Rate;
use ionet_domain::{DeviceId, EndpointId};
use ionet_net::mem_link::MemNet;

use super::device::DeviceNode;
use super::plan::{FaultKind, Plan};
use super::planted::Planted;
use super::world::{GIB, START_MS, supplier};
use crate::random::Random;

pub(super) const MODELS: [&str; 2] = ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe"];
pub(super) const NETWORKS: [&str; 2] = ["lab", "campus"];
pub(super) const TAG: &str = "fast";
/// Claimed, truly or not.
pub(super) const REGIONS: [&str; 2] = ["north", "south"];

/// The n-th machine of a run, and whether it is what it claims.
pub(super) fn machine(n: usize, plan: &Plan, net: &MemNet) -> (DeviceNode, bool) {
    let mut random = Random::new(plan.seed ^ 0x0064_6576 ^ ((n as u64) << 32));
    let varied = plan.load.varied;
    let threads = u32::try_from(2 + random.below(3)).unwrap_or(2);
    let gpus = if varied && random.chance(300_000) { gpus(n, &mut random) } else { Vec::new() };
    let mut enrolment = Enrolment {
        // The machine's own clock says when it was set up, and may be wrong.
        device: DeviceId::from_parts(set_up_ms(plan, &mut random), n as u128 + 1),
        owner: supplier(n, plan.devices),
        endpoint: endpoint(n, 0),
        network: NETWORKS[usize::from(varied && random.chance(200_000))].into(),
        tags: BTreeSet::new(),
        ask_per_unit: Rate(random.between(20_000, 400_000)),
        offered: Resources {
            cpu_millis: threads * 1000,
            memory_bytes: 6 * GIB,
            disk_bytes: 40 * GIB,
            gpus: u32::try_from(gpus.len()).unwrap_or(0),
            gpu_share_millis: None,
        },
        hardware: Hardware { cpu_threads: threads, memory_bytes: 8 * GIB, gpus, ..Hardware::default() },
        simulated: false,
    };
    if varied && random.chance(300_000) {
        enrolment.tags.insert(TAG.into());
    }
    if varied && random.chance(250_000) {
        enrolment.tags.insert(format!("{REGION_TAG}{}", REGIONS[random.index(2)]));
    }
    let enforced = !varied || random.chance(850_000);
    let mut measures = Ok(measured(&enrolment, enforced, &mut random));
    let false_one = plan.may(FaultKind::FalseHardware) && random.chance(120_000);
    let honest = !(false_one || (plan.plants(Planted::PoolLiar) && n == 0));
    if !honest && plan.plants(Planted::PoolLiar) {
        // It lies so well that the check finds nothing: the lab knows better.
    } else if !honest {
        measures = pretend(&mut enrolment, measures, &mut random);
    }
    let link = net.attach(ionet_net::EndpointId(enrolment.endpoint.0));
    let mut device = DeviceNode::new(enrolment, link, random.below(1 << 30), random.between(200, 4_000));
    device.enforced = enforced;
    device.measures = measures;
    if plan.may(FaultKind::ClockSkew) {
        device.skew_ppm = i64::try_from(random.below(401)).unwrap_or(0) - 200;
    }
    (device, honest)
}

fn set_up_ms(plan: &Plan, random: &mut Random) -> u64 {
    let wrong = plan.may(FaultKind::WorkerClock) && random.chance(300_000);
    if wrong { random.between(START_MS / 2, START_MS * 2) } else { START_MS }
}

/// The key of a machine: a new one after each rebinding.
pub(super) fn endpoint(n: usize, generation: u8) -> EndpointId {
    let mut seed = [150; 32];
    seed[..4].copy_from_slice(&u32::try_from(n).unwrap_or(0).to_be_bytes());
    seed[4] = generation;
    EndpointId(WalletKey::from_seed(&seed).address().0)
}

fn gpus(n: usize, random: &mut Random) -> Vec<Gpu> {
    let model = MODELS[random.index(2)];
    (0..random.between(1, 4)).map(|card| gpu(n, card, model)).collect()
}

fn gpu(n: usize, card: u64, model: &str) -> Gpu {
    Gpu { uuid: format!("GPU-{n}-{card}"), model: model.into(), memory_bytes: 80 * GIB }
}

/// What relays attest of a machine's link: the first is in the first region, the second in the second.
pub(super) fn links(n: usize, at_ms: u64, random: &mut Random) -> Vec<RelayMeasure> {
    let own = [n % 2, random.index(2)][usize::from(random.chance(100_000))];
    // Seldom there are more relays than are remembered.
    let count = if random.chance(30_000) { 20 } else { 1 + random.index(2) };
    let relays = (0..count).map(|relay| {
        let mbit_s = |random: &mut Random| u32::try_from(random.between(20, 2_400)).unwrap_or(0);
        let near_us = if relay == own { 4_000 } else { 70_000 };
        RelayMeasure {
            relay: format!("relay-{relay}"),
            region: random.chance(900_000).then(|| REGIONS[relay % 2].into()),
            at_ms,
            rtt_us: near_us + u32::try_from(random.below(9_000)).unwrap_or(0),
            bandwidth: random
                .chance(800_000)
                .then(|| Bandwidth { down_mbit_s: mbit_s(random), up_mbit_s: mbit_s(random) }),
        }
    });
    relays.collect()
}

fn measured(enrolment: &Enrolment, enforced: bool, random: &mut Random) -> Measured {
    let check = |gpu: &Gpu| GpuCheck {
        uuid: gpu.uuid.clone(),
        kernel_sees: true,
        driver_memory_bytes: Some(gpu.memory_bytes - GIB),
    };
    Measured {
        cpu_one_mb_s: 400,
        cpu_all_mb_s: 800,
        memory_mb_s: 5000,
        disk_write_mb_s: u32::try_from(random.between(20, 900)).unwrap_or(20),
        disk_read_mb_s: 400,
        gpus: enrolment.hardware.gpus.iter().map(check).collect(),
        enforcement: enforced.then(|| "cgroup v2".into()),
        ..Measured::default()
    }
}

/// Claims what the check will not find.
fn pretend(
    enrolment: &mut Enrolment,
    measures: Result<Measured, String>,
    random: &mut Random,
) -> Result<Measured, String> {
    let mut measures = measures?;
    let mut claim = gpu(99, random.below(9), MODELS[0]);
    let truth = GpuCheck {
        uuid: claim.uuid.clone(),
        kernel_sees: true,
        driver_memory_bytes: Some(claim.memory_bytes),
    };
    match random.below(8) {
        0 => measures.cpu_one_mb_s = 3,
        1 => measures.disk_write_mb_s = 1,
        2 => return Err("the check could not be made".into()),
        3 => {}
        4 => measures.gpus.push(GpuCheck { kernel_sees: false, ..truth }),
        5 => measures.gpus.push(GpuCheck { driver_memory_bytes: None, ..truth }),
        6 => measures.gpus.push(GpuCheck { driver_memory_bytes: Some(8 * GIB), ..truth }),
        _ => {
            // Two models in one machine.
            enrolment.hardware.gpus = vec![gpu(99, 10, MODELS[1])];
            measures.gpus = vec![GpuCheck { uuid: "GPU-99-10".into(), ..truth.clone() }, truth];
        }
    }
    if measures.cpu_one_mb_s > 20 && measures.disk_write_mb_s > 5 {
        claim.memory_bytes = 80 * GIB;
        enrolment.hardware.gpus.push(claim);
    }
    Ok(measures)
}
