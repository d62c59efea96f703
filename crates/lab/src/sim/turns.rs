//! Whose turn it is: those who can act now, and when the others can. Asking costs nothing per part that sleeps, so
//! there may be hundreds of them and weeks without an act.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::random::Random;

/// Never.
pub(super) const NEVER_MS: u64 = u64::MAX;

/// The parts by number.
#[derive(Debug, Default)]
pub(super) struct Turns {
    due_ms: Vec<u64>,
    /// Place in `ready`, if there.
    at: Vec<Option<usize>>,
    ready: Vec<usize>,
    asleep: BinaryHeap<Reverse<(u64, usize)>>,
    stale: Vec<usize>,
    is_stale: Vec<bool>,
}

impl Turns {
    pub(super) fn new(parts: usize) -> Self {
        let mut turns = Self {
            due_ms: vec![NEVER_MS; parts],
            at: vec![None; parts],
            is_stale: vec![false; parts],
            ..Self::default()
        };
        (0..parts).for_each(|part| turns.touch(part));
        turns
    }

    /// Something happened to a part: when it is due must be asked again.
    pub(super) fn touch(&mut self, part: usize) {
        if !std::mem::replace(&mut self.is_stale[part], true) {
            self.stale.push(part);
        }
    }

    /// A part that must be asked when it is due.
    pub(super) fn take_stale(&mut self) -> Option<usize> {
        let part = self.stale.pop()?;
        self.is_stale[part] = false;
        Some(part)
    }

    pub(super) fn set(&mut self, part: usize, due_ms: u64, now_ms: u64) {
        if due_ms <= now_ms {
            self.due_ms[part] = now_ms;
            return self.wake(part);
        }
        self.put_to_sleep(part);
        if self.due_ms[part] != due_ms {
            self.due_ms[part] = due_ms;
            if due_ms != NEVER_MS {
                self.asleep.push(Reverse((due_ms, part)));
            }
        }
    }

    fn wake(&mut self, part: usize) {
        if self.at[part].is_none() {
            self.at[part] = Some(self.ready.len());
            self.ready.push(part);
        }
    }

    fn put_to_sleep(&mut self, part: usize) {
        let Some(at) = self.at[part].take() else { return };
        self.ready.swap_remove(at);
        if let Some(moved) = self.ready.get(at) {
            self.at[*moved] = Some(at);
        }
    }

    /// Wakes those whose time has come.
    pub(super) fn advance(&mut self, now_ms: u64) {
        while let Some(Reverse((due_ms, part))) =
            self.asleep.peek().copied().filter(|next| next.0.0 <= now_ms)
        {
            self.asleep.pop();
            if self.due_ms[part] == due_ms {
                self.wake(part);
            }
        }
    }

    /// When the next one wakes.
    pub(super) fn next_due_ms(&mut self) -> u64 {
        while let Some(Reverse((due_ms, part))) = self.asleep.peek().copied() {
            if self.due_ms[part] == due_ms && self.at[part].is_none() {
                return due_ms;
            }
            self.asleep.pop();
        }
        NEVER_MS
    }

    /// One of those who can act now.
    pub(super) fn pick(&self, random: &mut Random) -> Option<usize> {
        random.one_of(&self.ready).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleepers_wake_in_time_and_only_then() {
        let mut turns = Turns::new(3);
        while let Some(part) = turns.take_stale() {
            turns.set(part, 10 * (part as u64 + 1), 0);
        }
        assert_eq!((turns.next_due_ms(), turns.pick(&mut Random::new(1))), (10, None));
        turns.advance(20);
        assert_eq!(turns.next_due_ms(), 30);
        turns.set(0, 25, 20);
        turns.set(1, NEVER_MS, 20);
        assert_eq!((turns.next_due_ms(), turns.pick(&mut Random::new(1))), (25, None));
        turns.advance(40);
        turns.set(2, NEVER_MS, 40);
        assert_eq!(turns.pick(&mut Random::new(1)), Some(0));
    }
}
