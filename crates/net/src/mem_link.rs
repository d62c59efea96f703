//! The in-memory twin of the control link: a whole network of endpoints under one seed.
//!
//! It is harsher than the real one: frames may be delayed, lost, doubled and overtaken, and one direction may be cut.
//! It has no clock and no randomness of its own: [`MemNet::advance`] and the seed decide everything, so a run can be
//! repeated exactly.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    EndpointId,
    link::{Link, LinkEvent},
};

/// How bad the network is. Chances are in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Shortest delay of a frame, in virtual milliseconds.
    pub delay_min_ms: u64,
    /// Longest delay of a frame, in virtual milliseconds.
    pub delay_max_ms: u64,
    /// Chance that a frame is lost.
    pub loss_ppm: u32,
    /// Chance that a frame arrives twice.
    pub duplicate_ppm: u32,
    /// Chance that a frame may overtake earlier ones or be overtaken.
    pub reorder_ppm: u32,
    /// Time after which a session over a cut direction ends on both sides; 0 means never.
    pub dead_after_ms: u64,
}

/// The network. Clones share it.
#[derive(Clone, Debug)]
pub struct MemNet(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    now_ms: u64,
    random: u64,
    faults: Faults,
    sent: u64,
    under_way: BTreeMap<(u64, u64), Delivery>,
    inboxes: BTreeMap<EndpointId, VecDeque<LinkEvent>>,
    sessions: BTreeMap<(EndpointId, EndpointId), u64>,
    last_session: u64,
    cut_since_ms: BTreeMap<(EndpointId, EndpointId), u64>,
    last_due_ms: BTreeMap<(EndpointId, EndpointId), u64>,
    /// Endpoints whose inbox got something since they were last asked for.
    told: BTreeSet<EndpointId>,
}

#[derive(Debug)]
struct Delivery {
    from: EndpointId,
    to: EndpointId,
    session: u64,
    frame: Vec<u8>,
}

/// One endpoint's side of a [`MemNet`].
#[derive(Debug)]
pub struct MemLink {
    me: EndpointId,
    net: MemNet,
}

impl MemNet {
    /// An empty network at time 0.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self(Arc::new(Mutex::new(State {
            now_ms: 0,
            random: seed,
            faults,
            sent: 0,
            under_way: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            cut_since_ms: BTreeMap::new(),
            last_due_ms: BTreeMap::new(),
            told: BTreeSet::new(),
        })))
    }

    /// Adds an endpoint, or comes back as one with an empty inbox.
    pub fn attach(&self, me: EndpointId) -> MemLink {
        self.state().inboxes.insert(me, VecDeque::new());
        MemLink { me, net: self.clone() }
    }

    /// Begins a session between two endpoints; an older one ends first.
    pub fn connect(&self, a: EndpointId, b: EndpointId) {
        let mut state = self.state();
        state.end(a, b);
        state.last_session += 1;
        let session = state.last_session;
        state.sessions.insert(pair(a, b), session);
        state.tell(a, LinkEvent::Up(b));
        state.tell(b, LinkEvent::Up(a));
    }

    /// Ends the session between two endpoints, if there is one; frames under way are lost.
    pub fn disconnect(&self, a: EndpointId, b: EndpointId) {
        self.state().end(a, b);
    }

    /// Cuts or heals the direction `from` -> `to`. Frames under way still arrive.
    pub fn cut(&self, from: EndpointId, to: EndpointId, cut: bool) {
        let mut state = self.state();
        if cut {
            let now_ms = state.now_ms;
            state.cut_since_ms.entry((from, to)).or_insert(now_ms);
        } else {
            state.cut_since_ms.remove(&(from, to));
        }
    }

    /// Changes how bad the network is, from the next frame on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Moves virtual time forward and delivers what is due, in order of time. Time never goes back.
    pub fn advance(&self, now_ms: u64) {
        let mut state = self.state();
        state.now_ms = state.now_ms.max(now_ms);
        state.end_dead_sessions();
        while let Some(due) = state.take_due() {
            if state.sessions.get(&pair(due.from, due.to)) == Some(&due.session) {
                state.tell(due.to, LinkEvent::Frame(due.from, due.frame));
            }
        }
    }

    /// When the next frame is due, in virtual milliseconds.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.state().under_way.keys().next().map(|(due_ms, _)| *due_ms)
    }

    /// Whose inboxes got something since this was last asked: with hundreds of endpoints nobody asks each of them.
    pub fn take_told(&self) -> BTreeSet<EndpointId> {
        std::mem::take(&mut self.state().told)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, who: EndpointId, event: LinkEvent) {
        if let Some(inbox) = self.inboxes.get_mut(&who) {
            inbox.push_back(event);
            self.told.insert(who);
        }
    }

    fn end(&mut self, a: EndpointId, b: EndpointId) {
        if self.sessions.remove(&pair(a, b)).is_some() {
            self.tell(a, LinkEvent::Down(b));
            self.tell(b, LinkEvent::Down(a));
            self.last_due_ms.remove(&(a, b));
            self.last_due_ms.remove(&(b, a));
        }
    }

    fn end_dead_sessions(&mut self) {
        if self.faults.dead_after_ms == 0 {
            return;
        }
        let limit_ms = self.faults.dead_after_ms;
        let dead: BTreeSet<_> = self
            .cut_since_ms
            .iter()
            .filter(|(_, since_ms)| self.now_ms.saturating_sub(**since_ms) >= limit_ms)
            .map(|((from, to), _)| pair(*from, *to))
            .collect();
        for (a, b) in dead {
            self.end(a, b);
        }
    }

    fn send(&mut self, from: EndpointId, to: EndpointId, frame: Vec<u8>) {
        let Some(&session) = self.sessions.get(&pair(from, to)) else { return };
        if self.chance(self.faults.loss_ppm) || self.cut_since_ms.contains_key(&(from, to)) {
            return;
        }
        if self.chance(self.faults.duplicate_ppm) {
            self.schedule(Delivery { from, to, session, frame: frame.clone() });
        }
        self.schedule(Delivery { from, to, session, frame });
    }

    fn schedule(&mut self, delivery: Delivery) {
        let due_ms = self.due_ms(delivery.from, delivery.to);
        self.sent += 1;
        self.under_way.insert((due_ms, self.sent), delivery);
    }

    fn take_due(&mut self) -> Option<Delivery> {
        let first = self.under_way.first_entry()?;
        (first.key().0 <= self.now_ms).then(|| first.remove())
    }

    fn due_ms(&mut self, from: EndpointId, to: EndpointId) -> u64 {
        let spread_ms = self.faults.delay_max_ms.saturating_sub(self.faults.delay_min_ms);
        let drawn_ms = self.faults.delay_min_ms + self.random() % spread_ms.saturating_add(1);
        let due_ms = self.now_ms + drawn_ms;
        if self.chance(self.faults.reorder_ppm) {
            return due_ms;
        }
        let last_ms = self.last_due_ms.entry((from, to)).or_default();
        *last_ms = due_ms.max(*last_ms);
        *last_ms
    }

    fn chance(&mut self, ppm: u32) -> bool {
        self.random() % 1_000_000 < u64::from(ppm)
    }

    /// Splitmix64: small, seeded, good enough to choose faults.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn pair(a: EndpointId, b: EndpointId) -> (EndpointId, EndpointId) {
    (a.min(b), a.max(b))
}

impl MemLink {
    /// Who this side is.
    pub fn id(&self) -> EndpointId {
        self.me
    }
}

impl Link for MemLink {
    fn send(&mut self, to: EndpointId, frame: Vec<u8>) {
        self.net.state().send(self.me, to, frame);
    }

    fn poll(&mut self) -> Option<LinkEvent> {
        self.net.state().inboxes.get_mut(&self.me)?.pop_front()
    }
}
