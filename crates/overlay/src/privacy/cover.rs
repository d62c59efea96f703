//! When packets to one peer leave: maybenot machines decide on cover and on delays, this keeps their timers.
//!
//! What always holds: time never runs backwards for a machine, whatever it was told; one call does a bounded amount of
//! work, whatever a machine asks for. Pure: microseconds and a seed come in. Not here: what waits (`cells`), how much
//! cover is allowed (`budget`), and who sends it.

use std::{fmt, ops::AddAssign, sync::Arc};

use maybenot::{Framework, Machine, MachineId, Timer, TriggerAction, TriggerEvent};

use crate::random::Random;

/// Timers that one call lets expire at most; what is left waits for the next one.
const MOST_EXPIRED: usize = 128;
/// Answers of machines to their own timers' beginning in one call.
const MOST_ROUNDS: usize = 8;
/// Events of one kind that a machine hears of at once; more of them tell it nothing new.
const MOST_EVENTS: usize = 64;
/// Who is late by more does not make up for it.
const MOST_LATE_US: u64 = 100_000;
/// How long a machine that acts without end is left alone.
const BREATH_US: u64 = 1_000;

/// What is to leave now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// What waits; cover if nothing does.
    Slot,
    /// Cover, whatever waits.
    Cover,
}

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Micros(u64);

impl AddAssign for Micros {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

impl maybenot::time::Duration for Micros {
    fn zero() -> Self {
        Self(0)
    }

    fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    fn is_zero(&self) -> bool {
        self.0 == 0
    }

    #[expect(clippy::cast_precision_loss, reason = "a share needs no more precision")]
    fn div_duration_f64(self, rhs: Self) -> f64 {
        self.0 as f64 / rhs.0 as f64
    }
}

impl maybenot::time::Instant for Micros {
    type Duration = Self;

    fn saturating_duration_since(&self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// Our source of randomness as the machines want it.
struct Dice {
    random: Random,
    left: [u8; 32],
    used: usize,
}

impl rand_core::RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == self.left.len() {
                (self.left, self.used) = (self.random.seed(), 0);
            }
            *byte = self.left[self.used];
            self.used += 1;
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Timers {
    action: Option<(u64, Planned)>,
    internal_us: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Planned {
    Padding { bypass: bool, replace: bool },
    Block { us: u64, bypass: bool, replace: bool },
}

#[derive(Clone, Copy, Debug)]
struct Block {
    until_us: u64,
    bypass: bool,
}

#[derive(Clone, Copy, Debug)]
enum Expired {
    Action(usize),
    Internal(usize),
    Block,
}

/// When packets to one peer leave.
pub struct Cover {
    framework: Framework<Arc<[Machine]>, Dice, Micros>,
    timers: Vec<Timers>,
    block: Option<Block>,
    now_us: u64,
    rest_until_us: u64,
    events: Vec<TriggerEvent>,
    actions: Vec<TriggerAction<Micros>>,
}

impl fmt::Debug for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cover({:?}, {:?})", self.timers, self.block)
    }
}

impl Cover {
    /// Machines at their beginning; `None` if one is no valid machine.
    pub fn new(machines: Arc<[Machine]>, seed: &[u8; 32], now_us: u64) -> Option<Self> {
        let dice = Dice { random: Random::new(seed), left: [0; 32], used: 32 };
        let timers = vec![Timers::default(); machines.len()];
        // Its own limits count slots with something in them as cover; ours are in `budget`.
        let framework = Framework::new(machines, 0.0, 0.0, Micros(now_us), dice).ok()?;
        Some(Self {
            framework,
            timers,
            block: None,
            now_us,
            rest_until_us: 0,
            events: Vec::new(),
            actions: Vec::new(),
        })
    }

    /// That many packets want to leave. Whether they may is known after the next [`Self::due`].
    pub fn wanted(&mut self, packets: usize, now_us: u64) {
        self.repeat(&TriggerEvent::NormalSent, packets, now_us);
    }

    /// That many packets left that nobody planned.
    pub fn left(&mut self, packets: usize, now_us: u64) {
        self.repeat(&TriggerEvent::TunnelSent, packets, now_us);
    }

    /// That many packets came, and that many of cover.
    pub fn came(&mut self, packets: usize, cover: usize, now_us: u64) {
        for (count, event) in [(packets, TriggerEvent::NormalRecv), (cover, TriggerEvent::PaddingRecv)] {
            self.repeat(&TriggerEvent::TunnelRecv, count, now_us);
            self.repeat(&event, count, now_us);
        }
    }

    /// Whether what wants to leave has to wait for a slot.
    pub fn is_blocking(&self) -> bool {
        self.block.is_some()
    }

    /// When [`Self::due`] next has something to say.
    pub fn next_us(&self) -> Option<u64> {
        let next = self.next_expiry().map(|(at_us, _)| at_us);
        next.map(|at_us| at_us.max(self.rest_until_us))
    }

    /// What is to leave by now goes to `out`.
    pub fn due(&mut self, now_us: u64, out: &mut Vec<Act>) {
        if now_us < self.rest_until_us {
            return;
        }
        for _ in 0..MOST_EXPIRED {
            let Some((at_us, expired)) = self.next_expiry().filter(|(at_us, _)| *at_us <= now_us) else {
                return;
            };
            let at_us = if now_us - at_us > MOST_LATE_US { now_us } else { at_us };
            self.expire(at_us, expired, out);
        }
        self.rest_until_us = now_us + BREATH_US;
    }

    fn next_expiry(&self) -> Option<(u64, Expired)> {
        let of_machines = self.timers.iter().enumerate().flat_map(|(at, timers)| {
            let action = timers.action.map(|(at_us, _)| (at_us, Expired::Action(at)));
            action.into_iter().chain(timers.internal_us.map(|at_us| (at_us, Expired::Internal(at))))
        });
        let block = self.block.map(|block| (block.until_us, Expired::Block));
        of_machines.chain(block).min_by_key(|(at_us, _)| *at_us)
    }

    fn expire(&mut self, at_us: u64, expired: Expired, out: &mut Vec<Act>) {
        match expired {
            Expired::Block => {
                self.block = None;
                self.trigger(&TriggerEvent::BlockingEnd, 1, at_us);
            }
            Expired::Internal(at) => {
                self.timers[at].internal_us = None;
                self.trigger(&TriggerEvent::TimerEnd { machine: MachineId::from_raw(at) }, 1, at_us);
            }
            Expired::Action(at) => match self.timers[at].action.take() {
                Some((_, Planned::Padding { bypass, replace })) => self.pad(at, at_us, bypass, replace, out),
                Some((_, Planned::Block { us, bypass, replace })) => {
                    let until_us = at_us.saturating_add(us);
                    let stands_us = self.block.filter(|_| !replace).map_or(0, |block| block.until_us);
                    self.block = Some(Block { until_us: until_us.max(stands_us), bypass });
                    self.trigger(&TriggerEvent::BlockingBegin { machine: MachineId::from_raw(at) }, 1, at_us);
                }
                None => {}
            },
        }
    }

    /// A slot that blocking forbids stays empty; its machine goes on.
    fn pad(&mut self, at: usize, at_us: u64, bypass: bool, replace: bool, out: &mut Vec<Act>) {
        let machine = MachineId::from_raw(at);
        self.trigger(&TriggerEvent::PaddingSent { machine }, 1, at_us);
        let is_open = self.block.is_none_or(|block| block.bypass && bypass);
        if is_open {
            out.push(if replace { Act::Slot } else { Act::Cover });
            self.trigger(&TriggerEvent::TunnelSent, 1, at_us);
        }
    }

    fn repeat(&mut self, event: &TriggerEvent, count: usize, now_us: u64) {
        if count > 0 {
            self.trigger(event, count.min(MOST_EVENTS), now_us);
        }
    }

    fn trigger(&mut self, event: &TriggerEvent, count: usize, at_us: u64) {
        self.now_us = self.now_us.max(at_us);
        let mut events = std::mem::take(&mut self.events);
        let mut actions = std::mem::take(&mut self.actions);
        events.clear();
        events.extend(std::iter::repeat_n(event, count).cloned());
        for _ in 0..MOST_ROUNDS {
            actions.clear();
            actions.extend(self.framework.trigger_events(&events, Micros(self.now_us)).cloned());
            events.clear();
            events.extend(actions.iter().filter_map(|action| self.plan(action)));
            if events.is_empty() {
                break;
            }
        }
        (self.events, self.actions) = (events, actions);
    }

    /// Notes what a machine wants; its timer's beginning is an event.
    fn plan(&mut self, action: &TriggerAction<Micros>) -> Option<TriggerEvent> {
        let after = |us: &Micros| self.now_us.saturating_add(us.0);
        match action {
            TriggerAction::Cancel { machine, timer } => {
                let timers = &mut self.timers[machine.into_raw()];
                if matches!(timer, Timer::Action | Timer::All) {
                    timers.action = None;
                }
                if matches!(timer, Timer::Internal | Timer::All) {
                    timers.internal_us = None;
                }
                None
            }
            TriggerAction::SendPadding { timeout, bypass, replace, machine } => {
                let planned = Planned::Padding { bypass: *bypass, replace: *replace };
                self.timers[machine.into_raw()].action = Some((after(timeout), planned));
                None
            }
            TriggerAction::BlockOutgoing { timeout, duration, bypass, replace, machine } => {
                let planned = Planned::Block { us: duration.0, bypass: *bypass, replace: *replace };
                self.timers[machine.into_raw()].action = Some((after(timeout), planned));
                None
            }
            TriggerAction::UpdateTimer { duration, replace, machine } => {
                let at_us = after(duration);
                let internal_us = &mut self.timers[machine.into_raw()].internal_us;
                *internal_us =
                    Some(internal_us.filter(|stands_us| !replace && *stands_us > at_us).unwrap_or(at_us));
                Some(TriggerEvent::TimerBegin { machine: *machine })
            }
        }
    }
}
