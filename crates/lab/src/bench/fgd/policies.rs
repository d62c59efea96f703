//! The six published policies, as their authors' simulator runs them: what the harness is checked with.

use std::collections::{BTreeMap, BTreeSet};

use super::trace::{GPU, Node, Pod};
use crate::random::Random;

/// The largest machine, for normalising.
const MOST_CPU_MILLIS: f64 = 128_000.0;
const MOST_GPU_MILLIS: i64 = 8000;

/// A policy of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Random,
    DotProd,
    GpuClustering,
    GpuPacking,
    BestFit,
    Fgd,
}

/// All of them, by their published names.
pub(super) const POLICIES: [(Policy, &str); 6] = [
    (Policy::Random, "Random"),
    (Policy::DotProd, "DotProd"),
    (Policy::GpuClustering, "GpuClustering"),
    (Policy::GpuPacking, "GpuPacking"),
    (Policy::BestFit, "BestFit"),
    (Policy::Fgd, "FGD"),
];

#[derive(Debug, Clone)]
struct Machine {
    cpu: i64,
    memory_mib: u64,
    gpus: Vec<i64>,
    model: String,
    /// Kinds of pods on it: 0 shares, n pods of n GPUs.
    kinds: BTreeSet<u32>,
    changes: u32,
}

impl Machine {
    fn free(&self) -> i64 {
        self.gpus.iter().sum()
    }

    fn fits(&self, pod: &Pod) -> bool {
        let enough = self.gpus.iter().filter(|free| **free >= i64::from(pod.gpu_millis)).count();
        self.cpu >= i64::from(pod.cpu_millis)
            && self.memory_mib >= pod.memory_mib
            && (pod.gpus == 0 || (pod.allows(&self.model) && enough >= pod.gpus as usize))
    }

    /// The GPU with the least that is enough.
    fn tightest(&self, millis: u16) -> usize {
        let enough = (0..self.gpus.len()).filter(|n| self.gpus[*n] >= i64::from(millis));
        enough.min_by_key(|n| self.gpus[*n]).unwrap_or(0)
    }

    fn after(&self, pod: &Pod, share_on: usize) -> (i64, Vec<i64>) {
        let mut gpus = self.gpus.clone();
        if pod.is_share() {
            gpus[share_on] -= i64::from(pod.gpu_millis);
        } else {
            let whole = gpus.iter_mut().filter(|free| **free == GPU.cast_signed());
            whole.take(pod.gpus as usize).for_each(|free| *free = 0);
        }
        (self.cpu - i64::from(pod.cpu_millis), gpus)
    }

    fn take(&mut self, pod: &Pod, share_on: usize) {
        (self.cpu, self.gpus) = self.after(pod, share_on);
        self.memory_mib -= pod.memory_mib;
        self.changes += 1;
        if pod.gpus > 0 {
            self.kinds.insert(if pod.is_share() { 0 } else { pod.gpus });
        }
    }
}

/// Kinds of pods with the share of all pods that each is: the most frequent until 95 % are covered.
fn typical(pods: &[Pod]) -> Vec<(Pod, f64)> {
    let mut counts: BTreeMap<Pod, u32> = BTreeMap::new();
    for pod in pods {
        *counts.entry(Pod { memory_mib: 0, ..pod.clone() }).or_default() += 1;
    }
    let mut kinds: Vec<_> = counts.into_iter().collect();
    kinds.sort_by(|a, b| (b.1, &b.0).cmp(&(a.1, &a.0)));
    let (mut covered, all) = (0, pods.len() as f64);
    kinds.retain(|(_, count)| {
        let more = f64::from(covered) < 0.95 * all;
        covered += if more { *count } else { 0 };
        more
    });
    kinds.into_iter().map(|(pod, count)| (pod, f64::from(count) / f64::from(covered))).collect()
}

fn fragmentation(model: &str, cpu: i64, gpus: &[i64], typical: &[(Pod, f64)]) -> f64 {
    let all: i64 = gpus.iter().sum();
    let lost = |pod: &Pod| {
        let least = i64::from(pod.gpu_millis);
        let enough = gpus.iter().filter(|free| **free >= least).count() >= pod.gpus as usize;
        let runs = pod.gpus > 0 && pod.allows(model) && i64::from(pod.cpu_millis) <= cpu && enough;
        if runs { gpus.iter().filter(|free| **free < least).sum() } else { all }
    };
    typical.iter().map(|(pod, share)| share * lost(pod) as f64).sum()
}

/// A cluster under one policy.
pub(super) struct Cluster {
    policy: Policy,
    machines: Vec<Machine>,
    typical: Vec<(Pod, f64)>,
    random: Random,
    /// Scores by kind of pod and machine, as long as the machine does not change.
    known: BTreeMap<Pod, Vec<Option<Known>>>,
}

/// The machine's count of changes then, the score and the GPU of a share.
type Known = (u32, f64, usize);

impl Cluster {
    pub(super) fn new(policy: Policy, nodes: &[Node], pods: &[Pod], random: Random) -> Self {
        let machine = |node: &Node| Machine {
            cpu: node.cpu_millis.into(),
            memory_mib: node.memory_mib,
            gpus: vec![GPU.cast_signed(); node.gpus as usize],
            model: node.model.clone(),
            kinds: BTreeSet::new(),
            changes: 0,
        };
        let machines = nodes.iter().map(machine).collect();
        Self { policy, machines, typical: typical(pods), random, known: BTreeMap::new() }
    }

    /// Places a pod; whether it fits anywhere.
    pub(super) fn place(&mut self, pod: &Pod) -> bool {
        let chosen = if self.policy == Policy::Random { self.at_random(pod) } else { self.best(pod) };
        if let Some((machine, share_on)) = chosen {
            self.machines[machine].take(pod, share_on);
        }
        chosen.is_some()
    }

    fn at_random(&mut self, pod: &Pod) -> Option<(usize, usize)> {
        let fits: Vec<_> = (0..self.machines.len()).filter(|n| self.machines[*n].fits(pod)).collect();
        let machine = *self.random.one_of(&fits)?;
        let enough = |free: &i64| *free >= i64::from(pod.gpu_millis);
        let gpus = &self.machines[machine].gpus;
        let gpus: Vec<_> = (0..gpus.len()).filter(|n| enough(&gpus[*n])).collect();
        Some((machine, self.random.one_of(&gpus).copied().unwrap_or(0)))
    }

    fn best(&mut self, pod: &Pod) -> Option<(usize, usize)> {
        let count = self.machines.len();
        let key = Pod { memory_mib: 0, ..pod.clone() };
        let mut known = self.known.remove(&key).unwrap_or_else(|| vec![None; count]);
        let mut best: Option<(f64, usize, usize)> = None;
        for (n, machine) in self.machines.iter().enumerate().filter(|(_, machine)| machine.fits(pod)) {
            let (score, share_on) = match known[n] {
                Some((changes, score, share_on)) if changes == machine.changes => (score, share_on),
                _ => self.score(machine, pod),
            };
            known[n] = Some((machine.changes, score, share_on));
            if best.is_none_or(|(most, ..)| score > most) {
                best = Some((score, n, share_on));
            }
        }
        self.known.insert(key, known);
        best.map(|(_, n, share_on)| (n, share_on))
    }

    /// The score, of which more is better, and the GPU that a share would go to.
    fn score(&self, machine: &Machine, pod: &Pod) -> (f64, usize) {
        let tightest = machine.tightest(pod.gpu_millis);
        let whole = |score: f64| ((100.0 * score).floor(), tightest);
        let (free_cpu, free_cards) =
            (machine.cpu as f64 / MOST_CPU_MILLIS, machine.free() as f64 / MOST_GPU_MILLIS as f64);
        let asked_cpu = f64::from(pod.cpu_millis) / MOST_CPU_MILLIS;
        let asked_cards = pod.total_gpu_millis() as f64 / MOST_GPU_MILLIS as f64;
        match self.policy {
            Policy::Random => (0.0, tightest),
            Policy::DotProd => whole(1.0 - f64::midpoint(free_cpu * asked_cpu, free_cards * asked_cards)),
            Policy::BestFit => whole(1.0 - f64::midpoint(free_cpu - asked_cpu, free_cards - asked_cards)),
            Policy::GpuClustering => (clustering(machine, pod), tightest),
            Policy::GpuPacking => (packing(machine, pod), tightest),
            Policy::Fgd => self.fgd(machine, pod),
        }
    }

    fn fgd(&self, machine: &Machine, pod: &Pod) -> (f64, usize) {
        let of = |cpu, gpus: &[i64]| fragmentation(&machine.model, cpu, gpus, &self.typical);
        let before = of(machine.cpu, &machine.gpus);
        let score = |on: usize| {
            let (cpu, gpus) = machine.after(pod, on);
            (100.0 / (1.0 + ((of(cpu, &gpus) - before) / 1000.0).exp())).floor()
        };
        if !pod.is_share() {
            return (score(0), 0);
        }
        let enough = (0..machine.gpus.len()).filter(|n| machine.gpus[*n] >= i64::from(pod.gpu_millis));
        enough.fold((f64::MIN, 0), |best, n| {
            let score = score(n);
            if score > best.0 { (score, n) } else { best }
        })
    }
}

/// Pods of a kind together, on the fullest machine.
fn clustering(machine: &Machine, pod: &Pod) -> f64 {
    if pod.gpus == 0 {
        return 0.0;
    }
    let kind = if pod.is_share() { 0 } else { pod.gpus };
    let base = match (machine.kinds.contains(&kind), machine.kinds.len()) {
        (true, 1) => 75,
        (true, _) => 50,
        (false, 0) => 25,
        (false, _) => 0,
    };
    (base + 25 * (MOST_GPU_MILLIS - machine.free()) / MOST_GPU_MILLIS) as f64
}

/// First GPUs in use, then free GPUs of machines in use, then free machines.
fn packing(machine: &Machine, pod: &Pod) -> f64 {
    if pod.gpus == 0 {
        return 0.0;
    }
    let gpu = GPU.cast_signed();
    let whole = machine.gpus.iter().filter(|free| **free == gpu).count();
    if whole == machine.gpus.len() {
        return (33_usize.saturating_sub(whole)).max(whole) as f64;
    }
    let mut gpus: Vec<_> = machine.gpus.iter().filter(|free| **free >= i64::from(pod.gpu_millis)).collect();
    gpus.sort_unstable();
    gpus.truncate(pod.gpus as usize);
    let opened = gpus.iter().filter(|free| ***free == gpu).count();
    if opened > 0 {
        return 50_usize.saturating_sub(opened).max(33) as f64;
    }
    let free: i64 = gpus.iter().map(|free| *free * 100 / gpu).sum();
    (100 - free / 10).max(50) as f64
}
