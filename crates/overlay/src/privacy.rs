//! What is hidden from whoever watches packets: their sizes, and to a degree their times.
//!
//! What always holds: in a padded cluster, every sealed packet that goes one way is as large as any other; what waits
//! is bounded. Pure. Which addresses members show each other is the machine's business; `docs/network.md` says what
//! each part hides and what not.

mod budget;
pub mod cells;
pub mod cover;
pub mod machines;

use std::sync::Arc;

use maybenot::Machine;

use crate::{OverlayError, Result, wire::Shim};
use budget::Budget;
use cells::Cells;
use cover::{Act, Cover};

/// Cells that wait for one peer at most: about as much as a train of the kernel's.
const MOST_WAITING: usize = 256;

/// What machines may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoverLimits {
    /// Packets of cover to one peer in a second.
    pub cover_per_s: u32,
    /// How much of all packets may be cover; 0 for any share. The share of an idle pair is all.
    pub cover_percent: u8,
}

impl Default for CoverLimits {
    fn default() -> Self {
        Self { cover_per_s: 200, cover_percent: 0 }
    }
}

/// The machines that every pair of a cluster runs, and what they may ask for.
#[derive(Clone, Debug)]
pub struct CoverPlan {
    machines: Arc<[Machine]>,
    limits: CoverLimits,
}

/// A plan that costs 50 packets a second to each peer: see [`machines::steady`].
impl Default for CoverPlan {
    fn default() -> Self {
        Self { machines: Arc::new([machines::steady()]), limits: CoverLimits::default() }
    }
}

impl CoverPlan {
    /// The plan of these machines: strings of maybenot's, or the name of one of ours. None of them is no cover.
    ///
    /// # Errors
    /// If one is no machine, or the limits are none.
    pub fn new(machines: &[String], limits: CoverLimits) -> Result<Self> {
        let machines = machines::parse(machines).map_err(|reason| OverlayError::Config { reason })?;
        if limits.cover_percent > 100 {
            let reason = format!("cover cannot be {} % of all packets; at most 100", limits.cover_percent);
            return Err(OverlayError::Config { reason });
        }
        Ok(Self { machines, limits })
    }
}

/// What waits for one peer of a padded cluster, and when it leaves.
#[derive(Debug)]
pub struct Shaper {
    cells: Cells,
    cover: Option<Cover>,
    budget: Budget,
    acts: Vec<Act>,
}

impl Shaper {
    /// Nothing waits. `seed` must be random.
    pub fn new(plan: &CoverPlan, seed: &[u8; 32], now_us: u64) -> Self {
        let has_machines = !plan.machines.is_empty();
        let cover = has_machines.then(|| Cover::new(plan.machines.clone(), seed, now_us)).flatten();
        let budget = Budget::new(plan.limits, now_us);
        Self { cells: Cells::new(MOST_WAITING), cover, budget, acts: Vec::new() }
    }

    /// Takes what stands behind a shim, in parts; `room` is what a cell of this peer holds. Whether there was room.
    pub fn push(&mut self, now_us: u64, shim: &Shim, parts: &[&[u8]], room: usize) -> bool {
        let Some(is_new) = self.cells.push(shim, parts, room) else { return false };
        if let Some(cover) = self.cover.as_mut().filter(|_| is_new) {
            cover.wanted(1, now_us);
        }
        true
    }

    /// That many packets came, and that many of cover.
    pub fn came(&mut self, now_us: u64, packets: usize, cover: usize) {
        if let Some(machines) = &mut self.cover {
            machines.came(packets, cover, now_us);
        }
    }

    /// Cells that wait.
    pub fn waiting(&self) -> usize {
        self.cells.len()
    }

    /// When [`Self::leave`] next has something to say.
    pub fn next_us(&self) -> Option<u64> {
        self.cover.as_ref().and_then(Cover::next_us)
    }

    /// What leaves by now, in order: cells, or `None` for cover.
    pub fn leave(&mut self, now_us: u64, mut send: impl FnMut(Option<&[u8]>)) {
        let Some(cover) = &mut self.cover else {
            empty(&mut self.cells, &mut send);
            return;
        };
        let mut acts = std::mem::take(&mut self.acts);
        cover.due(now_us, &mut acts);
        for act in acts.drain(..) {
            match if act == Act::Slot { self.cells.pop() } else { None } {
                Some(cell) => {
                    send(Some(&cell));
                    self.budget.left();
                    self.cells.reuse(cell);
                }
                None if self.budget.take(now_us) => send(None),
                None => {}
            }
        }
        self.acts = acts;
        if !cover.is_blocking() {
            let left = empty(&mut self.cells, &mut send);
            (0..left).for_each(|_| self.budget.left());
            cover.left(left, now_us);
        }
    }
}

fn empty(cells: &mut Cells, send: &mut impl FnMut(Option<&[u8]>)) -> usize {
    let mut left = 0;
    while let Some(cell) = cells.pop() {
        send(Some(&cell));
        cells.reuse(cell);
        left += 1;
    }
    left
}

#[cfg(test)]
mod tests;
