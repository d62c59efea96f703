//! One way to one peer: whether an echo comes back, how soon, how often not, and how large a packet passes.
//!
//! What always holds: a way is up only after a sealed echo came back, and the size it is said to take was echoed (or
//! is what every path takes); three questions in a row without an echo bring it down.

use crate::{
    Way,
    relay::message::Token,
    seam::{Hop, WayObserved},
};

/// What every path takes: the least IPv6 packet less its headers, and less a relay's channel.
pub(super) const LEAST_PACKET_BYTES: u16 = 1280 - 40 - 8 - 4;
/// A size between the least and the full one, tried together with it.
const MIDDLE_PACKET_BYTES: u16 = 1340;
/// What the introducer is asked to carry at most.
const INTRODUCED_PACKET_BYTES: u16 = 1200;

const MS: u64 = 1_000;
const BURST_TRIES: u32 = 6;
const BURST_FIRST_US: u64 = 40 * MS;
const RETRY_BUSY_US: u64 = 2_500 * MS;
const RETRY_IDLE_US: u64 = 30_000 * MS;
const ALIVE_BUSY_US: u64 = 1_000 * MS;
const ALIVE_IDLE_US: u64 = 20_000 * MS;
const ALIVE_STANDBY_US: u64 = 60_000 * MS;
const LOST_AFTER: u32 = 3;
const ECHO_MEMORY_US: u64 = 4_000 * MS;
const MOST_PROBES: usize = 24;
const SIZING_ROUNDS: u8 = 2;
/// Whether a way has become wider is asked this often.
const RESIZE_EVERY_US: u64 = 600_000 * MS;

/// What a way is, best first: a better kind that is up is used alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Direct,
    Relayed,
    RelayedTcp,
    Introduced,
}

impl Kind {
    pub(crate) fn of(way: Way) -> Self {
        match way {
            Way::Udp(_) => Self::Direct,
            Way::Relay { tcp: false, .. } => Self::Relayed,
            Way::Relay { tcp: true, .. } => Self::RelayedTcp,
            Way::Introducer => Self::Introduced,
        }
    }
}

/// How much a way matters now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// There is traffic for the peer.
    pub(crate) is_busy: bool,
    /// It goes by this way, or would.
    pub(crate) is_used: bool,
    /// A way of a better kind is up.
    pub(crate) is_standby: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No echo yet.
    Trying,
    /// Echoes come; which size passes is being found out.
    Sizing,
    Up,
    /// Was up.
    Down,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    token: Token,
    at_us: u64,
    packet_bytes: u16,
    is_lost: bool,
}

/// A probe to be sent: padded to a packet of that many bytes, or as short as it is for 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) way: Way,
    pub(crate) token: Token,
    pub(crate) packet_bytes: u16,
}

/// One way to one peer.
#[derive(Debug)]
pub(crate) struct WayState {
    pub(crate) way: Way,
    pub(crate) kind: Kind,
    /// A guessed address, forgotten soon if nothing comes of it.
    pub(crate) is_guess: bool,
    /// It shares the traffic of its kind. Kept here as it should not come and go with each jitter.
    pub(crate) is_used: bool,
    state: State,
    born_us: u64,
    probes: Vec<Probe>,
    tries: u32,
    next_us: u64,
    asked_us: u64,
    lost: u32,
    padded_lost: u32,
    loss_ppm: u32,
    rtt_us: Option<u64>,
    full_bytes: u16,
    packet_bytes: u16,
    sizing: u8,
    sized_us: u64,
    heard_us: u64,
}

impl WayState {
    /// A way that nothing is known of; `full_bytes` is the largest packet that will ever be sent.
    pub(crate) fn new(way: Way, full_bytes: u16, now_us: u64) -> Self {
        Self {
            way,
            kind: Kind::of(way),
            is_guess: false,
            is_used: false,
            state: State::Trying,
            born_us: now_us,
            probes: Vec::new(),
            tries: 0,
            next_us: now_us,
            asked_us: now_us,
            lost: 0,
            padded_lost: 0,
            loss_ppm: 0,
            rtt_us: None,
            full_bytes,
            packet_bytes: full_bytes.min(LEAST_PACKET_BYTES),
            sizing: 0,
            sized_us: 0,
            heard_us: now_us,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    pub(crate) fn born_us(&self) -> u64 {
        self.born_us
    }

    pub(crate) fn heard_us(&self) -> u64 {
        self.heard_us
    }

    /// Whether a question of it was not answered, so that it may be about to go.
    pub(crate) fn is_suspect(&self) -> bool {
        self.lost > 0
    }

    pub(crate) fn rtt_us(&self) -> u64 {
        self.rtt_us.unwrap_or(u64::MAX)
    }

    /// Its share of the flows among the ways of its kind.
    pub(crate) fn weight(&self) -> u16 {
        match self.loss_ppm {
            0..50_000 => 16,
            50_000..150_000 => 8,
            _ => 4,
        }
    }

    pub(crate) fn hop(&self, weight: u16) -> Hop {
        Hop { way: self.way, packet_bytes: self.packet_bytes, weight }
    }

    pub(crate) fn observed(&self) -> WayObserved {
        WayObserved {
            way: self.way,
            up: self.is_up(),
            rtt_us: self.rtt_us.unwrap_or_default(),
            loss_ppm: self.loss_ppm,
            packet_bytes: self.packet_bytes,
        }
    }

    /// Asks anew, quickly: something has changed. What is up stays so until the questions stay unanswered.
    pub(crate) fn urge(&mut self, now_us: u64) {
        self.next_us = now_us;
        if !self.is_up() {
            self.tries = 0;
        }
    }

    /// An authentic packet came this way: asks back at once where nothing came back before.
    pub(crate) fn heard(&mut self, now_us: u64) {
        self.heard_us = now_us;
        self.is_guess = false;
        if matches!(self.state, State::Trying | State::Down) && !self.is_asking(now_us) {
            self.urge(now_us);
        }
    }

    fn is_asking(&self, now_us: u64) -> bool {
        self.probes.iter().any(|probe| now_us < probe.at_us + BURST_FIRST_US)
    }

    /// It cannot be sent to at all.
    pub(crate) fn fail(&mut self, now_us: u64) {
        self.go_down(now_us);
        self.tries = BURST_TRIES;
    }

    /// The system takes nothing as large as what passed until now: only the least is sure until more was tried.
    pub(crate) fn shrink(&mut self, now_us: u64) {
        let least = self.full_bytes.min(LEAST_PACKET_BYTES);
        if self.is_up() && self.packet_bytes > least {
            (self.packet_bytes, self.padded_lost) = (least, 0);
            self.find_size(State::Up, now_us);
        }
    }

    fn go_down(&mut self, now_us: u64) {
        self.state = State::Down;
        (self.tries, self.lost, self.next_us) = (0, 0, now_us + BURST_FIRST_US);
    }

    fn patience_us(&self) -> u64 {
        self.rtt_us.map_or(1_000 * MS, |rtt_us| (rtt_us * 3 / 2 + 100 * MS).clamp(200 * MS, 1_000 * MS))
    }

    /// An echo came. Whether it was of this way.
    pub(crate) fn echoed(&mut self, token: Token, now_us: u64) -> bool {
        let Some(at) = self.probes.iter().position(|probe| probe.token == token) else { return false };
        let probe = self.probes.remove(at);
        let took_us = now_us.saturating_sub(probe.at_us);
        self.rtt_us = Some(self.rtt_us.map_or(took_us, |rtt_us| (rtt_us * 7 + took_us) / 8));
        self.note_loss(false);
        (self.heard_us, self.lost, self.is_guess) = (now_us, 0, false);
        if probe.packet_bytes > 0 {
            self.padded_lost = 0;
            self.packet_bytes = self.packet_bytes.max(probe.packet_bytes);
        }
        match self.state {
            State::Trying | State::Down if self.is_sized() => self.go_up(now_us),
            State::Trying | State::Down => self.find_size(State::Sizing, now_us),
            State::Sizing if self.packet_bytes >= self.full_bytes => self.go_up(now_us),
            State::Up if self.padded_lost > 0 && self.sizing == 0 => self.next_us = now_us,
            State::Sizing | State::Up => {}
        }
        true
    }

    /// Whether there is no size to be found out: nothing larger could pass, or it did.
    fn is_sized(&self) -> bool {
        matches!(self.kind, Kind::RelayedTcp | Kind::Introduced) || self.packet_bytes >= self.full_bytes
    }

    fn go_up(&mut self, now_us: u64) {
        match self.kind {
            Kind::RelayedTcp => self.packet_bytes = self.full_bytes,
            Kind::Introduced => self.packet_bytes = self.full_bytes.min(INTRODUCED_PACKET_BYTES),
            Kind::Direct | Kind::Relayed => {}
        }
        (self.state, self.sizing, self.tries, self.sized_us) = (State::Up, 0, 0, now_us);
        (self.padded_lost, self.next_us) = (0, now_us + ALIVE_BUSY_US);
    }

    fn find_size(&mut self, state: State, now_us: u64) {
        (self.state, self.sizing, self.next_us) = (state, SIZING_ROUNDS + 1, now_us);
    }

    fn note_loss(&mut self, is_lost: bool) {
        let now_ppm = if is_lost { 1_000_000 } else { 0 };
        self.loss_ppm = (self.loss_ppm * 63 + now_ppm) / 64;
    }

    /// Counts what was not echoed in time.
    fn expire(&mut self, now_us: u64) {
        let patience_us = self.patience_us();
        let (mut lost, mut padded_lost) = (0, 0);
        for probe in self.probes.iter_mut().filter(|p| !p.is_lost && now_us >= p.at_us + patience_us) {
            probe.is_lost = true;
            // A size that does not pass says nothing about the way as such.
            if self.sizing == 0 || probe.packet_bytes == 0 {
                lost += 1;
                padded_lost += u32::from(probe.packet_bytes > 0);
            }
        }
        self.probes.retain(|probe| now_us < probe.at_us + ECHO_MEMORY_US);
        if lost == 0 || !matches!(self.state, State::Up) {
            return;
        }
        self.note_loss(true);
        self.lost += lost;
        self.padded_lost += padded_lost;
        if self.lost >= LOST_AFTER {
            self.go_down(now_us);
        }
        self.next_us = now_us;
    }

    /// Asks what is due.
    pub(crate) fn tick(
        &mut self,
        now_us: u64,
        need: Need,
        mut token: impl FnMut() -> Token,
        out: &mut Vec<Ask>,
    ) {
        self.expire(now_us);
        if now_us < self.due_us(need) {
            return;
        }
        for packet_bytes in self.questions(now_us, need).into_iter().flatten() {
            let token = token();
            self.asked_us = now_us;
            if self.probes.len() == MOST_PROBES {
                self.probes.remove(0);
            }
            self.probes.push(Probe { token, at_us: now_us, packet_bytes, is_lost: false });
            out.push(Ask { way: self.way, token, packet_bytes });
        }
    }

    /// Which packets to ask with now; when to ask next is noted.
    fn questions(&mut self, now_us: u64, need: Need) -> [Option<u16>; 2] {
        if self.sizing > 0 {
            self.sizing -= 1;
            if self.sizing > 0 {
                self.next_us = now_us + self.patience_us();
                let middle = Some(MIDDLE_PACKET_BYTES).filter(|middle| *middle < self.full_bytes);
                return [Some(self.full_bytes), middle];
            }
            self.go_up(now_us);
        }
        match self.state {
            State::Up if self.padded_lost >= LOST_AFTER && self.lost == 0 => {
                // Small ones pass and large ones do not any more.
                self.packet_bytes = self.full_bytes.min(LEAST_PACKET_BYTES);
                self.padded_lost = 0;
                self.find_size(State::Up, now_us);
                self.questions(now_us, need)
            }
            State::Up if now_us >= self.sized_us + RESIZE_EVERY_US && !self.is_sized() => {
                self.find_size(State::Up, now_us);
                self.questions(now_us, need)
            }
            State::Up => {
                self.next_us = now_us + if self.lost > 0 { self.patience_us() } else { Self::pause_us(need) };
                let is_padded = self.lost == 0 && need.is_busy && self.kind != Kind::RelayedTcp;
                [Some(if is_padded { self.packet_bytes } else { 0 }), None]
            }
            State::Trying | State::Down | State::Sizing => {
                let burst_us = BURST_FIRST_US << self.tries.min(BURST_TRIES);
                let slow_us = if need.is_busy { RETRY_BUSY_US } else { RETRY_IDLE_US };
                self.next_us = now_us + if self.tries < BURST_TRIES { burst_us } else { slow_us };
                self.tries += 1;
                [Some(0), None]
            }
        }
    }

    /// How long what is up is left alone.
    fn pause_us(need: Need) -> u64 {
        match need {
            Need { is_busy: true, is_used: true, .. } => ALIVE_BUSY_US,
            Need { is_standby: true, .. } => ALIVE_STANDBY_US,
            _ => ALIVE_IDLE_US,
        }
    }

    /// When it next has something to ask, or to give up waiting for.
    pub(crate) fn due_us(&self, need: Need) -> u64 {
        let is_quiet_up = self.is_up() && self.lost == 0 && self.sizing == 0;
        // What became busy does not wait for the pause of idle times to end.
        let soonest = |us: u64| if is_quiet_up { us.min(self.asked_us + Self::pause_us(need)) } else { us };
        let is_slow = !self.is_up() && self.sizing == 0 && self.tries > BURST_TRIES && need.is_busy;
        let retry = |us: u64| if is_slow { us.min(self.asked_us + RETRY_BUSY_US) } else { us };
        retry(soonest(self.next_us))
    }

    /// When to look again: something is due, or a question stays unanswered.
    pub(crate) fn wake_us(&self, need: Need) -> u64 {
        let patience_us = self.patience_us();
        let waiting = self.probes.iter().filter(|probe| !probe.is_lost && self.is_up());
        waiting.map(|probe| probe.at_us + patience_us).fold(self.due_us(need), u64::min)
    }
}
