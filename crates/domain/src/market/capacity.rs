//! What a device has free, GPU by GPU, and what is left of it after a member.
//!
//! Always holds: the GPUs' free thousandths are in descending order, so that two devices with the same rest are equal here
//! whichever of their cards is in use; nothing goes below zero. Not here: which devices are open ([`super::book`]).

use std::cmp::Ordering;
use std::ops::{Deref, DerefMut};

use crate::device::{Device, Resources};

/// Thousandths of a whole GPU.
pub const GPU_MILLIS: u16 = 1000;
/// So many GPUs need no room of their own.
const FEW: usize = 8;

/// Thousandths of each GPU.
#[derive(Debug, Clone)]
pub enum Gpus {
    /// The first so many of these.
    Few(u8, [u16; FEW]),
    /// All of these.
    Many(Box<[u16]>),
}

impl FromIterator<u16> for Gpus {
    fn from_iter<I: IntoIterator<Item = u16>>(all: I) -> Self {
        let (mut few, mut count) = ([0; FEW], 0);
        let mut all = all.into_iter();
        for place in &mut few {
            let Some(gpu) = all.next() else { return Self::Few(count, few) };
            *place = gpu;
            count += 1;
        }
        match all.next() {
            None => Self::Few(count, few),
            Some(next) => Self::Many(few.into_iter().chain([next]).chain(all).collect()),
        }
    }
}

impl Deref for Gpus {
    type Target = [u16];
    fn deref(&self) -> &[u16] {
        match self {
            Self::Few(count, few) => &few[..usize::from(*count)],
            Self::Many(all) => all,
        }
    }
}

impl DerefMut for Gpus {
    fn deref_mut(&mut self) -> &mut [u16] {
        match self {
            Self::Few(count, few) => &mut few[..usize::from(*count)],
            Self::Many(all) => all,
        }
    }
}

impl PartialEq for Gpus {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Gpus {}

impl PartialOrd for Gpus {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Gpus {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

/// What a member's cost depends on: all that is neither memory nor disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Thousandths of a CPU thread that the device offers in all.
    pub cpu_offered_millis: u32,
    /// Thousandths of a CPU thread that are free.
    pub cpu_millis: u32,
    /// Free thousandths of each GPU, the freest first; used up ones are listed too.
    pub gpus: Gpus,
}

impl Shape {
    /// How many GPUs are fully free.
    pub fn whole_gpus(&self) -> u32 {
        u32::try_from(self.gpus.iter().take_while(|free| **free >= GPU_MILLIS).count()).unwrap_or(u32::MAX)
    }

    /// GPUs and CPU that the device offers in all.
    pub fn offered(&self) -> (u32, u32) {
        (u32::try_from(self.gpus.len()).unwrap_or(u32::MAX), self.cpu_offered_millis)
    }

    /// Whether a member's CPU and GPUs fit: whole GPUs must be fully free, a share fits on one GPU.
    pub fn fits(&self, wanted: Resources) -> bool {
        let Some(last) = wanted.gpus.checked_sub(1) else { return wanted.cpu_millis <= self.cpu_millis };
        let enough = |free: &u16| u32::from(*free) >= wanted.millis_per_gpu();
        wanted.cpu_millis <= self.cpu_millis && self.gpus.get(last as usize).is_some_and(enough)
    }
}

/// What a device has free.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capacity {
    /// CPU and GPUs.
    pub shape: Shape,
    /// Free memory.
    pub memory_bytes: u64,
    /// Free disk.
    pub disk_bytes: u64,
}

impl Capacity {
    /// A device's capacity, as its leases leave it.
    pub fn of(device: &Device) -> Self {
        Self::with(device, device.free_gpus())
    }

    /// The same where the free thousandths of each GPU are known.
    pub fn with(device: &Device, gpus: impl IntoIterator<Item = u16>) -> Self {
        let free = device.free_beside_gpus();
        let mut gpus: Gpus = gpus.into_iter().collect();
        gpus.sort_unstable_by(|a, b| b.cmp(a));
        let shape = Shape {
            cpu_offered_millis: device.enrolment.offered.cpu_millis,
            cpu_millis: free.cpu_millis,
            gpus,
        };
        Self { shape, memory_bytes: free.memory_bytes, disk_bytes: free.disk_bytes }
    }

    /// Whether a member fits.
    pub fn fits(&self, wanted: Resources) -> bool {
        wanted.memory_bytes <= self.memory_bytes
            && wanted.disk_bytes <= self.disk_bytes
            && self.shape.fits(wanted)
    }

    /// What is left after a member that fits. A share is taken from a GPU that has `share_of` free.
    #[must_use]
    pub fn less(&self, wanted: Resources, share_of: u16) -> Self {
        let mut left = self.clone();
        left.shape.cpu_millis = left.shape.cpu_millis.saturating_sub(wanted.cpu_millis);
        left.memory_bytes = left.memory_bytes.saturating_sub(wanted.memory_bytes);
        left.disk_bytes = left.disk_bytes.saturating_sub(wanted.disk_bytes);
        take(&mut left.shape.gpus, wanted, share_of);
        left.shape.gpus.sort_unstable_by(|a, b| b.cmp(a));
        left
    }
}

/// Takes a member's GPUs out of a list of free thousandths and answers with their places: whole ones from the first that are
/// fully free, a share from the first that has exactly `share_of` free.
pub fn take(free: &mut [u16], wanted: Resources, share_of: u16) -> Vec<u32> {
    let millis = u16::try_from(wanted.millis_per_gpu()).unwrap_or(GPU_MILLIS);
    let least = if wanted.is_share() { share_of } else { GPU_MILLIS };
    let mut taken = Vec::with_capacity(wanted.gpus as usize);
    for (place, gpu) in (0..).zip(free.iter_mut()) {
        if taken.len() < wanted.gpus as usize && *gpu == least && *gpu >= millis {
            *gpu -= millis;
            taken.push(place);
        }
    }
    taken
}
