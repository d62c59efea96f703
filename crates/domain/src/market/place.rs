//! Placement: all members of a request or none, on the cheapest devices that fit; and the count of what each
//! constraint removed when it does not work out.
//!
//! The same state gives the same answer: ties go to the older device.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::egress::Egress;
use super::price::member_rate;
use super::request::Request;
use crate::connectivity::claimed_region;
use crate::device::{Contact, Device, DeviceStage, HardwareClass, Resources, Tier};
use crate::id::DeviceId;
use crate::money::Rate;
use crate::order::{Order, Stage};
use crate::refusal::Refusal;
use crate::state::State;

/// How many devices one constraint removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    /// The constraint, in words.
    pub constraint: String,
    /// Devices that met every constraint before it and not this one.
    pub devices: u32,
}

/// Why a request cannot be placed, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shortfall {
    /// Members asked for.
    pub wanted: u32,
    /// Members that would fit now.
    pub possible: u32,
    /// Devices in the network.
    pub devices: u32,
    /// What removed the others, in the order in which it was applied.
    pub removed: Vec<Removed>,
    /// How long until somebody's paid time is over and capacity comes free, at the latest.
    pub free_in_ms: Option<u64>,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} members fit now, on {} devices", self.possible, self.wanted, self.devices)?;
        for removed in &self.removed {
            write!(f, "; {} removed by: {}", removed.devices, removed.constraint)?;
        }
        match self.possible {
            0 => {}
            n => write!(f, "; {n} would be placed at once")?,
        }
        match self.free_in_ms {
            None => write!(f, "; ask for less, or wait for more devices"),
            Some(ms) => write!(f, "; a device comes free within {} minutes", ms.div_ceil(60_000)),
        }
    }
}

/// What a replacement or an order under a quote adds to the request.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Devices that failed this order or are taken by its other members under `spread`.
    pub avoid: BTreeSet<DeviceId>,
    /// The promised prices, cheapest first: the i-th device may cost at most the i-th.
    pub rates: Option<Vec<Rate>>,
    /// Promised to orders that are paid for and not yet placed.
    pub promised: BTreeMap<DeviceId, Resources>,
}

/// Chooses a device for every member, cheapest first; the answer's order is the members' order.
pub fn plan(
    state: &State,
    request: &Request,
    limits: &Limits,
    now_ms: u64,
) -> Result<Vec<DeviceId>, Refusal> {
    let mut sieve = Sieve { request, limits, now_ms, removed: BTreeMap::new() };
    let mut open: Vec<Slot> =
        state.devices.iter().filter_map(|(id, device)| sieve.slot(*id, device)).collect();
    open.sort_by_key(|slot| (slot.rate, slot.id));
    let chosen = fill(&open, request.members as usize, limits.rates.as_deref());
    if chosen.len() < request.members as usize {
        let short = sieve.shortfall(state, u32::try_from(chosen.len()).unwrap_or(0));
        return Err(Refusal::NoCapacity(short));
    }
    Ok(chosen)
}

/// How many members of the request a device takes, at which price each.
struct Slot {
    rate: Rate,
    id: DeviceId,
    members: u32,
}

/// Takes members from the cheapest devices on; a promised price ends the run when it is passed.
fn fill(open: &[Slot], wanted: usize, promised: Option<&[Rate]>) -> Vec<DeviceId> {
    let each = open.iter().flat_map(|slot| (0..slot.members).map(move |_| slot));
    let mut chosen = Vec::with_capacity(wanted);
    for slot in each.take(wanted) {
        if promised.is_some_and(|rates| rates.get(chosen.len()).is_none_or(|most| slot.rate > *most)) {
            break;
        }
        chosen.push(slot.id);
    }
    chosen
}

/// The place of "hired by others now" among the constraints.
const HIRED: u8 = 8;

struct Sieve<'a> {
    request: &'a Request,
    limits: &'a Limits,
    now_ms: u64,
    removed: BTreeMap<(u8, String), u32>,
}

impl Sieve<'_> {
    fn slot(&mut self, id: DeviceId, device: &Device) -> Option<Slot> {
        if let Some(constraint) = self.misses(id, device) {
            *self.removed.entry(constraint).or_insert(0) += 1;
            return None;
        }
        let rate = member_rate(device, self.request.per_member, self.request.duration_ms);
        Some(Slot { rate, id, members: self.members_on(id, device) })
    }

    fn free(&self, id: DeviceId, device: &Device) -> Resources {
        match self.limits.promised.get(&id) {
            None => device.free(),
            Some(_) if device.measured.as_ref().is_some_and(|m| m.enforcement.is_none()) => {
                Resources::default()
            }
            Some(promised) => device.free().less(*promised),
        }
    }

    fn members_on(&self, id: DeviceId, device: &Device) -> u32 {
        let one_tenant = device.measured.as_ref().is_none_or(|m| m.enforcement.is_none());
        if self.request.spread || one_tenant {
            return 1;
        }
        let (wanted, mut free, mut members) = (self.request.per_member, self.free(id, device), 0);
        while free.holds(wanted) && members < self.request.members {
            free = free.less(wanted);
            members += 1;
        }
        members
    }

    /// The first constraint that the device does not meet, with its place in the order.
    fn misses(&self, id: DeviceId, device: &Device) -> Option<(u8, String)> {
        let r = self.request;
        let enrolment = &device.enrolment;
        let tag = r.tags.iter().find(|tag| !enrolment.tags.contains(*tag));
        let other_network = r.network.as_ref().filter(|network| **network != enrolment.network);
        let other_model =
            r.gpu_model.as_ref().filter(|model| device.class != HardwareClass::Gpu((*model).clone()));
        let wanted = r.per_member;
        let missing = if device.stage != DeviceStage::Pooled {
            (0, format!("not pooled ({})", device.stage))
        } else if let Some(model) = other_model {
            (1, format!("GPU model {model}"))
        } else if let Some(network) = other_network {
            (2, format!("supply network {network}"))
        } else if let Some(tag) = tag {
            (3, format!("tag {tag}"))
        } else if let Some(doubt) = self.unproven_region(device) {
            (3, doubt)
        } else if let Some(low) = self.below_tier(device) {
            (4, low)
        } else if device.rules.no_egress && r.egress != Egress::Off {
            (4, format!("egress {}, which their suppliers forbid (ask with egress off)", r.egress))
        } else if !enrolment.offered.holds(wanted) {
            (4, format!("size ({})", size(enrolment.offered, wanted)))
        } else if self.limits.avoid.contains(&id) {
            (5, "a device that this cluster already uses or that failed it".into())
        } else if device.contact != Contact::Connected {
            (6, "not heard from at present".into())
        } else if let Some(why) = device.rules.closed(self.now_ms) {
            (7, why.into())
        } else if !self.free(id, device).holds(wanted) {
            (HIRED, "hired by others now".into())
        } else {
            return self.too_dear(device);
        };
        Some(missing)
    }

    /// A tag that claims a region counts only as long as round trips bear it out.
    fn unproven_region(&self, device: &Device) -> Option<String> {
        let claimed = claimed_region(&self.request.tags)?;
        device.region_doubt()?;
        Some(format!("region {claimed}, which they claim and measurements do not bear out"))
    }

    /// Who is in the pool has a tier.
    fn below_tier(&self, device: &Device) -> Option<String> {
        let earned = device.tier.unwrap_or(Tier::Basic);
        let least = self.request.tier.filter(|least| earned < *least)?;
        let (down, up) = least.least();
        Some(format!("connectivity {least} ({down}/{up} Mbit/s down/up): measured {earned}"))
    }

    fn too_dear(&self, device: &Device) -> Option<(u8, String)> {
        let most = self.limits.rates.as_ref()?.iter().max()?;
        let rate = member_rate(device, self.request.per_member, self.request.duration_ms);
        (rate > *most).then(|| (9, format!("a price above the promised {most}")))
    }

    fn shortfall(self, state: &State, possible: u32) -> Shortfall {
        // Only a device that would do if it were free is worth waiting for.
        let may_do = |id| {
            let missing = state.devices.get(&id).map(|device| self.misses(id, device));
            missing.is_some_and(|missing| missing.is_none_or(|(place, _)| place == HIRED))
        };
        let live = state.orders.values().filter(|order| order.stage < Stage::Closing);
        let in_the_way =
            live.filter(|order| order.leases.values().any(|lease| lease.live() && may_do(lease.device)));
        let free_at_ms = in_the_way.filter_map(Order::ends_ms).min();
        Shortfall {
            wanted: self.request.members,
            possible,
            devices: u32::try_from(state.devices.len()).unwrap_or(u32::MAX),
            removed: self
                .removed
                .into_iter()
                .map(|((_, constraint), devices)| Removed { constraint, devices })
                .collect(),
            free_in_ms: free_at_ms.map(|at| at.saturating_sub(self.now_ms)),
        }
    }
}

/// Which of the sizes is too large, with both numbers.
fn size(offered: Resources, wanted: Resources) -> String {
    const MIB: u64 = 1 << 20;
    if wanted.gpus > offered.gpus {
        format!("{} GPUs wanted, {} offered", wanted.gpus, offered.gpus)
    } else if wanted.cpu_millis > offered.cpu_millis {
        format!("{} CPU millis wanted, {} offered", wanted.cpu_millis, offered.cpu_millis)
    } else if wanted.memory_bytes > offered.memory_bytes {
        format!("{} MiB memory wanted, {} offered", wanted.memory_bytes / MIB, offered.memory_bytes / MIB)
    } else {
        format!("{} MiB disk wanted, {} offered", wanted.disk_bytes / MIB, offered.disk_bytes / MIB)
    }
}
