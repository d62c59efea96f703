//! A member's side of one relay, over UDP or over TCP: whether it answers, which address it sees us from, and the
//! channels that it has for us. Pure: time and randomness are arguments, what is to be said comes back as bytes.
//!
//! What always holds: a question is repeated with growing pauses and its answer must bear its token; a relay that
//! does not answer any more loses us all its channels, and gets them asked for again when it is back.

use std::collections::BTreeMap;

use ring::signature::Ed25519KeyPair;

use super::message::{Answer, Bind, Cookie, Question, Refusal, Tag, Token};
use crate::random::Random;
use std::net::SocketAddr;

/// A hello keeps a NAT's mapping and the cookie fresh.
const HELLO_EVERY_MS: u64 = 18_000;
const KEEP_EVERY_MS: u64 = 20_000;
const RETRY_MIN_MS: u64 = 200;
const RETRY_MAX_MS: u64 = 5_000;
/// Questions without an answer after which a relay counts as away.
const LOST_AFTER: u32 = 3;
/// A refusal that time may cure is not asked about again before this.
const REFUSED_PAUSE_MS: u64 = 10_000;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It answers, and sees us from this address.
    Up(SocketAddr),
    /// It does not answer any more; all channels are gone.
    Down,
    /// A channel stands.
    Bound {
        /// For whom.
        tag: Tag,
        /// What to put before packets.
        channel: u32,
        /// Whether the other side is there.
        is_met: bool,
    },
    /// A channel is gone.
    Unbound {
        /// For whom.
        tag: Tag,
    },
    /// The relay does not want us.
    Refused {
        /// Why.
        reason: Refusal,
    },
}

/// A question under way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    token: Token,
    at_ms: u64,
    tries: u32,
}

impl Asked {
    fn again_ms(&self, rtt_ms: u64) -> u64 {
        let wait_ms = RETRY_MIN_MS.max(rtt_ms * 2) << self.tries.saturating_sub(1).min(8);
        self.at_ms + wait_ms.min(RETRY_MAX_MS.max(rtt_ms * 2))
    }
}

#[derive(Debug)]
struct Binding {
    channel: Option<(u32, bool)>,
    asked: Option<Asked>,
    next_ms: u64,
}

/// One member at one relay.
#[derive(Debug)]
pub struct Client {
    id: [u8; 32],
    cookie: Option<Cookie>,
    hello: Option<Asked>,
    next_hello_ms: u64,
    seen: Option<SocketAddr>,
    rtt_ms: Option<u64>,
    /// Connections lost since the last answer.
    losses: u32,
    bindings: BTreeMap<Tag, Binding>,
}

impl Client {
    /// Of the relay with that id, which is asked at the next tick.
    pub fn new(id: [u8; 32]) -> Self {
        let bindings = BTreeMap::new();
        let (cookie, hello, seen, rtt_ms) = (None, None, None, None);
        Self { id, cookie, hello, next_hello_ms: 0, seen, rtt_ms, losses: 0, bindings }
    }

    /// Whether it answers.
    pub fn is_up(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether it has been asked in vain for a while.
    pub fn is_silent(&self) -> bool {
        self.seen.is_none() && self.hello.is_some_and(|asked| asked.tries >= 2)
    }

    /// The address it sees us from.
    pub fn seen(&self) -> Option<SocketAddr> {
        self.seen
    }

    /// Its last round trip.
    pub fn rtt_ms(&self) -> Option<u64> {
        self.rtt_ms
    }

    /// The channel of a pair, and whether the other side is there.
    pub fn channel(&self, tag: &Tag) -> Option<(u32, bool)> {
        self.bindings.get(tag)?.channel
    }

    /// A channel is wanted for this pair.
    pub fn want(&mut self, tag: Tag) {
        self.bindings.entry(tag).or_insert(Binding { channel: None, asked: None, next_ms: 0 });
    }

    /// No channel is wanted any more; the relay forgets it by itself.
    pub fn unwant(&mut self, tag: &Tag) {
        self.bindings.remove(tag);
    }

    /// The pair whose channel this is.
    pub fn tag_of(&self, channel: u32) -> Option<&Tag> {
        let mut found = self.bindings.iter().filter(|(_, b)| b.channel.is_some_and(|(c, _)| c == channel));
        found.next().map(|(tag, _)| tag)
    }

    /// Nothing came through a channel, or our address has changed: asks at the next tick.
    pub fn check(&mut self, tag: &Tag) {
        if let Some(binding) = self.bindings.get_mut(tag) {
            binding.next_ms = 0;
        }
    }

    /// Our address has changed: everything is asked again at the next tick.
    pub fn check_all(&mut self) {
        self.next_hello_ms = 0;
        self.hello = None;
        self.bindings.values_mut().for_each(|binding| (binding.next_ms, binding.asked) = (0, None));
    }

    /// It cannot be reached: the connection ended. Tried again after a pause that grows.
    pub fn lost(&mut self, now_ms: u64, events: &mut Vec<Event>) {
        self.forget(events);
        self.hello = None;
        self.next_hello_ms = now_ms + (RETRY_MIN_MS << self.losses.min(8)).min(RETRY_MAX_MS);
        self.losses += 1;
    }

    fn forget(&mut self, events: &mut Vec<Event>) {
        self.cookie = None;
        if self.seen.take().is_some() {
            events.push(Event::Down);
        }
        for (tag, binding) in &mut self.bindings {
            if binding.channel.take().is_some() {
                events.push(Event::Unbound { tag: *tag });
            }
            (binding.asked, binding.next_ms) = (None, 0);
        }
    }

    /// When something is due next.
    pub fn next_ms(&self) -> u64 {
        let rtt_ms = self.rtt_ms.unwrap_or_default();
        let hello_ms = self.hello.map_or(self.next_hello_ms, |asked| asked.again_ms(rtt_ms));
        let bindings =
            self.bindings.values().filter(|binding| binding.channel.is_some() || self.cookie.is_some());
        let due = bindings.map(|b| b.asked.map_or(b.next_ms, |asked| asked.again_ms(rtt_ms)));
        due.fold(hello_ms, u64::min)
    }

    /// Asks what is due; the messages go to `out`.
    pub fn tick(
        &mut self,
        now_ms: u64,
        random: &mut Random,
        key: &Ed25519KeyPair,
        out: &mut Vec<Vec<u8>>,
        events: &mut Vec<Event>,
    ) {
        self.say_hello(now_ms, random, out, events);
        let rtt_ms = self.rtt_ms.unwrap_or_default();
        let Self { id, cookie, bindings, next_hello_ms, .. } = self;
        for (tag, binding) in bindings {
            let due_ms = binding.asked.map_or(binding.next_ms, |asked| asked.again_ms(rtt_ms));
            let tries = binding.asked.map_or(0, |asked| asked.tries);
            if due_ms > now_ms {
                continue;
            }
            if tries >= LOST_AFTER && binding.channel.take().is_some() {
                events.push(Event::Unbound { tag: *tag });
                *next_hello_ms = now_ms;
            }
            let token = random.token();
            let question = match (binding.channel, *cookie) {
                (Some((channel, _)), _) => Question::Keep { token, channel },
                (None, Some(cookie)) => Question::Bind(Bind::new(token, cookie, *tag, id, key)),
                (None, None) => continue,
            };
            binding.asked = Some(Asked { token, at_ms: now_ms, tries: tries + 1 });
            out.push(question.write());
        }
    }

    fn say_hello(
        &mut self,
        now_ms: u64,
        random: &mut Random,
        out: &mut Vec<Vec<u8>>,
        events: &mut Vec<Event>,
    ) {
        let rtt_ms = self.rtt_ms.unwrap_or_default();
        let due_ms = self.hello.map_or(self.next_hello_ms, |asked| asked.again_ms(rtt_ms));
        if due_ms > now_ms {
            return;
        }
        let tries = self.hello.map_or(0, |asked| asked.tries);
        if tries == LOST_AFTER {
            self.forget(events);
        }
        let token = random.token();
        self.hello = Some(Asked { token, at_ms: now_ms, tries: tries + 1 });
        out.push(Question::Hello { token }.write());
    }

    /// Hears an answer of the relay.
    pub fn hear(&mut self, now_ms: u64, answer: &Answer, random: &mut Random, events: &mut Vec<Event>) {
        match *answer {
            Answer::Cookie { token, cookie, seen } => {
                let Some(asked) = self.hello.take_if(|asked| asked.token == token) else { return };
                self.rtt_ms = Some(now_ms.saturating_sub(asked.at_ms));
                self.next_hello_ms = now_ms + random.around(HELLO_EVERY_MS);
                (self.cookie, self.losses) = (Some(cookie), 0);
                if self.seen.replace(seen) != Some(seen) {
                    events.push(Event::Up(seen));
                }
            }
            Answer::Bound { token, channel, is_met, .. } if token == Token::default() => {
                self.met(channel, is_met, events);
            }
            Answer::Bound { token, channel, is_met, .. } => {
                let Some((tag, binding)) = self.asked(token) else { return };
                (binding.asked, binding.next_ms) = (None, now_ms + random.around(KEEP_EVERY_MS));
                if binding.channel.replace((channel, is_met)) != Some((channel, is_met)) {
                    events.push(Event::Bound { tag, channel, is_met });
                }
            }
            Answer::Refused { token, reason } => self.refused(now_ms, token, reason, events),
        }
    }

    /// The other side has come, or gone.
    fn met(&mut self, channel: u32, is_met: bool, events: &mut Vec<Event>) {
        for (tag, binding) in &mut self.bindings {
            if binding.channel == Some((channel, !is_met)) {
                binding.channel = Some((channel, is_met));
                events.push(Event::Bound { tag: *tag, channel, is_met });
            }
        }
    }

    fn asked(&mut self, token: Token) -> Option<(Tag, &mut Binding)> {
        let mut asked =
            self.bindings.iter_mut().filter(|(_, b)| b.asked.is_some_and(|asked| asked.token == token));
        asked.next().map(|(tag, binding)| (*tag, binding))
    }

    fn refused(&mut self, now_ms: u64, token: Token, reason: Refusal, events: &mut Vec<Event>) {
        let Some((tag, binding)) = self.asked(token) else { return };
        binding.asked = None;
        let is_curable = matches!(reason, Refusal::NoSuchChannel | Refusal::StaleCookie);
        binding.next_ms = if is_curable { now_ms } else { now_ms + REFUSED_PAUSE_MS };
        if binding.channel.take().is_some() {
            events.push(Event::Unbound { tag });
        }
        if is_curable {
            // A relay that was started anew knows neither the channel nor the cookie.
            self.cookie = None;
            self.next_hello_ms = now_ms;
        } else {
            events.push(Event::Refused { reason });
        }
    }
}
