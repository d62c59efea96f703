//! The rules of our forwarder: who gets a channel, and where a packet on it goes. Pure: time is an argument, and
//! `forwarder` carries out what is said here.
//!
//! What always holds: nothing is kept for whoever has not shown, by a cookie, that it receives at its address, and by
//! a signature that it holds an admitted key; a packet is passed on only from one bound end of a channel to the other,
//! unchanged; memory, channels of a key, and packets and bytes of a channel are bounded. A relay learns keys,
//! addresses, sizes and times, never what is inside. Which keys are admitted is the caller's closure.

pub mod client;
pub mod forwarder;
pub(crate) mod limits;
pub mod message;

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use ring::hmac;

pub use limits::Rate;
use limits::{Bucket, PerAddress};
use message::{Answer, Bind, Cookie, Question, Refusal, Tag, Token, write_address};

/// From where a packet came to the relay, and where another can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// An address, by way of one of our sockets.
    Udp {
        /// Which socket.
        socket: u8,
        /// The other side.
        address: SocketAddr,
        /// The address of ours that it speaks to, where the socket has several: answers leave from there.
        at: Option<IpAddr>,
    },
    /// A TCP connection, by the number it got when it came; no number is used twice.
    Tcp(u64),
}

/// What one relay allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Channels in all.
    pub channels: usize,
    /// Channels of one key.
    pub channels_per_key: u32,
    /// Packets on one channel.
    pub packets: Rate,
    /// Bytes on one channel.
    pub bytes: Rate,
    /// Questions for a channel from one address (a /64 of IPv6).
    pub binds: Rate,
    /// How long a channel stands without a packet.
    pub idle_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            channels: 32_768,
            channels_per_key: 1_024,
            packets: Rate { per_s: 400_000, burst: 100_000 },
            bytes: Rate { per_s: 500_000_000, burst: 64_000_000 },
            binds: Rate { per_s: 100, burst: 1_000 },
            idle_ms: 60_000,
        }
    }
}

/// Which keys may use a relay.
pub type Admit = Box<dyn Fn(&[u8; 32]) -> bool + Send>;

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Hellos answered.
    pub hellos: AtomicU64,
    /// Channel ends bound, rebinds among them.
    pub bound: AtomicU64,
    /// Questions for a channel refused, in the order of [`Refusal::ALL`].
    pub refused: [AtomicU64; Refusal::ALL.len()],
    /// Channels that stand now.
    pub channels: AtomicU64,
    /// TCP connections that stand now.
    pub connections: AtomicU64,
    /// Packets passed on.
    pub packets: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
    /// Packets dropped, as their channel was over its rate.
    pub over_rate: AtomicU64,
    /// Packets dropped, as the channel is unknown, the sender is not an end of it, or the other side is not there.
    pub unknown: AtomicU64,
    /// Packets dropped, as the network did not take them.
    pub unsent: AtomicU64,
    /// Packets that are no message.
    pub malformed: AtomicU64,
}

/// Adds to a counter that only one thread writes.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

/// An answer and where it goes.
pub type Reply = (End, Answer);

const COOKIE_SLOT_MS: u64 = 60_000;
const INDEX_BITS: u32 = 20;
const GENERATIONS: u32 = 1 << (31 - INDEX_BITS);

#[derive(Debug)]
struct Bound {
    key: [u8; 32],
    end: End,
    seen: SocketAddr,
    used_ms: u64,
}

#[derive(Debug)]
struct Channel {
    tag: Tag,
    ends: [Option<Bound>; 2],
    packets: Bucket,
    bytes: Bucket,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    channel: Option<Channel>,
}

/// The state of one relay.
pub struct Rules {
    id: [u8; 32],
    limits: Limits,
    admit: Admit,
    cookies: hmac::Key,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_tag: HashMap<Tag, u32>,
    of_key: HashMap<[u8; 32], u32>,
    binds: PerAddress,
    counters: std::sync::Arc<Counters>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rules({} channels)", self.by_tag.len())
    }
}

impl Rules {
    /// A relay without channels. `id` is what its members know it by, `secret` is random and never told.
    pub fn new(id: [u8; 32], secret: &[u8; 32], limits: Limits, admit: Admit) -> Self {
        Self {
            id,
            limits: Limits { channels: limits.channels.min(1 << INDEX_BITS), ..limits },
            admit,
            cookies: hmac::Key::new(hmac::HMAC_SHA256, secret),
            slots: Vec::new(),
            free: Vec::new(),
            by_tag: HashMap::new(),
            of_key: HashMap::new(),
            binds: PerAddress::new(limits.binds, 4_096),
            counters: std::sync::Arc::default(),
        }
    }

    /// Its counters, which go on counting.
    pub fn counters(&self) -> std::sync::Arc<Counters> {
        self.counters.clone()
    }

    /// Hears a message; what is to be said goes to `out`. `seen` is the address behind `from`.
    pub fn hear(&mut self, now_ms: u64, from: End, seen: SocketAddr, bytes: &[u8], out: &mut Vec<Reply>) {
        match Question::parse(bytes) {
            None => count(&self.counters.malformed, 1),
            Some(Question::Hello { token }) => {
                count(&self.counters.hellos, 1);
                let cookie = self.cookie(now_ms / COOKIE_SLOT_MS, from, seen);
                out.push((from, Answer::Cookie { token, cookie, seen }));
            }
            Some(Question::Bind(bind)) => {
                if let Err(reason) = self.bind(now_ms, from, seen, &bind, out) {
                    out.push((from, self.refuse(bind.token, reason)));
                }
            }
            Some(Question::Keep { token, channel }) => {
                let kept = self.keep(now_ms, from, token, channel);
                out.push((from, kept.unwrap_or_else(|| self.refuse(token, Refusal::NoSuchChannel))));
            }
        }
    }

    fn refuse(&self, token: Token, reason: Refusal) -> Answer {
        let at = Refusal::ALL.iter().position(|known| *known == reason);
        if let Some(counter) = at.and_then(|at| self.counters.refused.get(at)) {
            count(counter, 1);
        }
        Answer::Refused { token, reason }
    }

    /// Where `packets` packets of `bytes` bytes in all on a channel go; `None` if they are dropped.
    pub fn forward(&mut self, now_ms: u64, channel: u32, from: End, packets: u64, bytes: u64) -> Option<End> {
        let (limits, counters) = (self.limits, self.counters.clone());
        let found = self.channel(channel).and_then(|channel| {
            let side = channel.side(from)?;
            let to = channel.ends[1 - side].as_ref()?.end;
            if let Some(bound) = &mut channel.ends[side] {
                bound.used_ms = now_ms;
            }
            Some((channel, to))
        });
        let Some((channel, to)) = found else {
            count(&counters.unknown, packets);
            return None;
        };
        let passes = channel.packets.take(limits.packets, now_ms, packets)
            && channel.bytes.take(limits.bytes, now_ms, bytes);
        if !passes {
            count(&counters.over_rate, packets);
            return None;
        }
        count(&counters.packets, packets);
        count(&counters.bytes, bytes);
        Some(to)
    }

    /// Ends what has been idle for too long. To be called every few seconds.
    pub fn sweep(&mut self, now_ms: u64) {
        let old_ms = now_ms.saturating_sub(self.limits.idle_ms);
        for index in 0..self.slots.len() {
            let Some(channel) = &mut self.slots[index].channel else { continue };
            let mut gone = Vec::new();
            for end in &mut channel.ends {
                gone.extend(end.take_if(|bound| bound.used_ms < old_ms).map(|bound| bound.key));
            }
            if channel.ends.iter().all(Option::is_none) {
                self.by_tag.remove(&channel.tag);
                let slot = &mut self.slots[index];
                slot.channel = None;
                slot.generation = (slot.generation + 1) % GENERATIONS;
                self.free.extend(u32::try_from(index));
            }
            for key in gone {
                self.give_back(&key);
            }
        }
        self.counters.channels.store(self.by_tag.len() as u64, Relaxed);
    }

    fn give_back(&mut self, key: &[u8; 32]) {
        if let Some(n) = self.of_key.get_mut(key) {
            *n -= 1;
            if *n == 0 {
                self.of_key.remove(key);
            }
        }
    }

    fn cookie(&self, slot: u64, from: End, seen: SocketAddr) -> Cookie {
        let way = match from {
            End::Udp { socket, .. } => [0, u64::from(socket)],
            End::Tcp(number) => [1, number],
        };
        let [kind, number] = way.map(u64::to_be_bytes);
        let text = [&kind[..], &number, &slot.to_be_bytes(), &write_address(seen)].concat();
        let mut cookie = [0; 16];
        cookie.copy_from_slice(&hmac::sign(&self.cookies, &text).as_ref()[..16]);
        cookie
    }

    fn bind(
        &mut self,
        now_ms: u64,
        from: End,
        seen: SocketAddr,
        bind: &Bind,
        out: &mut Vec<Reply>,
    ) -> Result<(), Refusal> {
        let slot = now_ms / COOKIE_SLOT_MS;
        let mut valid = [slot, slot.saturating_sub(1)].into_iter();
        if !valid.any(|slot| self.cookie(slot, from, seen) == bind.cookie) {
            return Err(Refusal::StaleCookie);
        }
        if !self.binds.take(seen.ip(), now_ms) {
            return Err(Refusal::TooFast);
        }
        if !(self.admit)(&bind.key) {
            return Err(Refusal::NotAdmitted);
        }
        if !bind.is_genuine(&self.id) {
            return Err(Refusal::NotGenuine);
        }
        let number =
            self.place(now_ms, Bound { key: bind.key, end: from, seen, used_ms: now_ms }, bind.tag)?;
        count(&self.counters.bound, 1);
        self.announce(number, bind.key, bind.token, out);
        Ok(())
    }

    /// Puts an end into the channel of its tag, which is made if there is none.
    fn place(&mut self, now_ms: u64, bound: Bound, tag: Tag) -> Result<u32, Refusal> {
        let known = self.by_tag.get(&tag).copied();
        let slots = &mut self.slots;
        let channel = known.and_then(|number| slots.get_mut(index(number))?.channel.as_mut());
        let (side, is_new) = match &channel {
            None => (0, true),
            Some(channel) => channel.seat(&bound.key).ok_or(Refusal::TagTaken)?,
        };
        if is_new {
            let have = self.of_key.get(&bound.key).copied().unwrap_or_default();
            if have >= self.limits.channels_per_key {
                return Err(Refusal::TooManyOfKey);
            }
            if channel.is_none() && self.by_tag.len() >= self.limits.channels {
                return Err(Refusal::Full);
            }
            self.of_key.insert(bound.key, have + 1);
        }
        if let (Some(channel), Some(number)) = (channel, known) {
            channel.ends[side] = Some(bound);
            return Ok(number);
        }
        Ok(self.open(now_ms, bound, tag))
    }

    fn open(&mut self, now_ms: u64, bound: Bound, tag: Tag) -> u32 {
        let at = self.free.pop().map_or(self.slots.len(), |at| at as usize);
        if at == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let channel = Channel {
            tag,
            ends: [Some(bound), None],
            packets: Bucket::new(self.limits.packets, now_ms),
            bytes: Bucket::new(self.limits.bytes, now_ms),
        };
        self.slots[at].channel = Some(channel);
        let at_bits = u32::try_from(at).unwrap_or(u32::MAX) & ((1 << INDEX_BITS) - 1);
        let number = 1 << 31 | self.slots[at].generation << INDEX_BITS | at_bits;
        self.by_tag.insert(tag, number);
        self.counters.channels.store(self.by_tag.len() as u64, Relaxed);
        number
    }

    /// Tells who has just been bound, and the other side that it is not alone any more.
    fn announce(&mut self, number: u32, key: [u8; 32], token: Token, out: &mut Vec<Reply>) {
        let lifetime_s = self.lifetime_s();
        let Some(channel) = self.channel(number) else { return };
        let is_met = channel.ends.iter().all(Option::is_some);
        for bound in channel.ends.iter().flatten() {
            let is_asker = bound.key == key;
            let token = if is_asker { token } else { Token::default() };
            let answer = Answer::Bound { token, channel: number, lifetime_s, is_met, seen: bound.seen };
            out.push((bound.end, answer));
        }
    }

    fn keep(&mut self, now_ms: u64, from: End, token: Token, number: u32) -> Option<Answer> {
        let lifetime_s = self.lifetime_s();
        let channel = self.channel(number)?;
        let is_met = channel.ends.iter().all(Option::is_some);
        let side = channel.side(from)?;
        let bound = channel.ends[side].as_mut()?;
        bound.used_ms = now_ms;
        Some(Answer::Bound { token, channel: number, lifetime_s, is_met, seen: bound.seen })
    }

    fn lifetime_s(&self) -> u16 {
        u16::try_from(self.limits.idle_ms / 1000).unwrap_or(u16::MAX)
    }

    fn channel(&mut self, number: u32) -> Option<&mut Channel> {
        let slot = self.slots.get_mut(index(number))?;
        let generation = number >> INDEX_BITS & (GENERATIONS - 1);
        slot.channel.as_mut().filter(|_| slot.generation == generation && number >> 31 == 1)
    }
}

fn index(number: u32) -> usize {
    (number & ((1 << INDEX_BITS) - 1)) as usize
}

impl Channel {
    fn side(&self, from: End) -> Option<usize> {
        self.ends.iter().position(|bound| bound.as_ref().is_some_and(|bound| bound.end == from))
    }

    /// Where a key sits, or may sit, and whether it is new there.
    fn seat(&self, key: &[u8; 32]) -> Option<(usize, bool)> {
        let known = self.ends.iter().position(|bound| bound.as_ref().is_some_and(|bound| bound.key == *key));
        let free = self.ends.iter().position(Option::is_none);
        known.map(|side| (side, false)).or(free.map(|side| (side, true)))
    }
}
