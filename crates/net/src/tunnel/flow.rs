//! The bytes of one tunnel in both directions, whatever carries them: what was sent and not yet heard of, what came and
//! is not yet taken, and how much more either side has room for. Pure: no I/O, no time.
//!
//! Always holds: bytes are delivered once and in order, though carriers break off anywhere, because what the other side has
//! not said that it has is kept and sent again from where it says; neither side keeps more than [`WINDOW_MOST_BYTES`] in
//! a direction, so who does not read stops who writes. Not here: frames (`carrier`), sockets (`session`).

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::carrier::DATA_BYTES;

/// How much may be on the way before the receiver has said that it keeps up.
pub(super) const WINDOW_BYTES: u64 = 256 << 10;
/// How much may be on the way at most: 1 Gbit/s over 32 ms.
pub(super) const WINDOW_MOST_BYTES: u64 = 4 << 20;

/// What one side tells the other of the direction towards it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ack {
    /// Bytes received since the tunnel began.
    pub(super) received: u64,
    /// Up to which byte there is room.
    pub(super) limit: u64,
    /// Whether the end was received too.
    pub(super) ended: bool,
}

impl Ack {
    pub(super) const BYTES: usize = 17;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.received.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.limit.to_be_bytes());
        bytes[16] = self.ended.into();
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes: &[u8] = <&[u8; Self::BYTES]>::try_from(bytes).ok()?;
        let (received, limit) = (bytes.get_u64(), bytes.get_u64());
        let ended = match bytes.get_u8() {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self { received, limit, ended })
    }
}

/// The other side said what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Impossible(pub(super) &'static str);

/// How far the end of our direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Open,
    Ended,
    /// Told on this carrier.
    Told,
    /// The other side said that it knows.
    Heard,
}

/// Both directions of one tunnel, as one end sees them.
#[derive(Debug)]
pub(super) struct Flow {
    unsent: VecDeque<Bytes>,
    /// Sent on this carrier, not yet heard of.
    unheard: VecDeque<Bytes>,
    /// Bytes that the other side has, taken from the service, and that it has room for.
    heard: u64,
    taken: u64,
    limit: u64,
    ours: Ours,

    /// Received, not yet given to the service.
    inbox: VecDeque<Bytes>,
    received: u64,
    given: u64,
    window: u64,
    grown_at: u64,
    told: Ack,
    their_end: Option<u64>,
    end_given: bool,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self {
            unsent: VecDeque::new(),
            unheard: VecDeque::new(),
            heard: 0,
            taken: 0,
            limit: WINDOW_BYTES,
            ours: Ours::Open,
            inbox: VecDeque::new(),
            received: 0,
            given: 0,
            window: WINDOW_BYTES,
            grown_at: 0,
            told: Ack { limit: WINDOW_BYTES, ..Ack::default() },
            their_end: None,
            end_given: false,
        }
    }

    /// How many bytes may be taken from the service now; `None` once it has ended.
    pub(super) fn room(&self) -> Option<usize> {
        let limit = self.limit.min(self.heard + WINDOW_MOST_BYTES);
        let room = limit.saturating_sub(self.taken).min(DATA_BYTES as u64);
        (self.ours == Ours::Open).then(|| usize::try_from(room).unwrap_or(DATA_BYTES))
    }

    /// The service gave these.
    pub(super) fn take(&mut self, bytes: Bytes) {
        self.taken += bytes.len() as u64;
        self.unsent.push_back(bytes);
    }

    /// The service will give no more.
    pub(super) fn end(&mut self) {
        self.ours = Ours::Ended;
    }

    /// The next bytes to send, at most [`DATA_BYTES`].
    pub(super) fn next_data(&mut self) -> Option<Bytes> {
        let bytes = self.unsent.pop_front()?;
        self.unheard.push_back(bytes.clone());
        Some(bytes)
    }

    /// Whether there are bytes to send.
    pub(super) fn has_data(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether to send the end now, and after how many bytes it comes.
    pub(super) fn next_end(&mut self) -> Option<u64> {
        let due = self.ours == Ours::Ended && self.unsent.is_empty();
        if due {
            self.ours = Ours::Told;
        }
        due.then_some(self.taken)
    }

    /// What to tell the other side, if there is enough of it.
    pub(super) fn next_ack(&mut self) -> Option<Ack> {
        self.is_ack_due().then(|| self.hello())
    }

    /// Whether there is enough to tell.
    pub(super) fn is_ack_due(&self) -> bool {
        let now = self.ack();
        let step = self.window / 4;
        now.received - self.told.received >= step
            || now.limit - self.told.limit >= step
            || now.ended != self.told.ended
    }

    fn ack(&self) -> Ack {
        // A limit once told is not taken back.
        let limit = (self.given + self.window).max(self.told.limit);
        Ack { received: self.received, limit, ended: self.their_end.is_some() }
    }

    /// The first word on a new carrier.
    pub(super) fn hello(&mut self) -> Ack {
        self.told = self.ack();
        self.told
    }

    /// The other side's first word on a new carrier: what it does not have is sent again.
    pub(super) fn hear_hello(&mut self, ack: Ack) -> Result<(), Impossible> {
        self.hear_ack(ack)?;
        for bytes in std::mem::take(&mut self.unheard).into_iter().rev() {
            self.unsent.push_front(bytes);
        }
        if self.ours == Ours::Told {
            self.ours = Ours::Ended;
        }
        Ok(())
    }

    /// The other side told how far it is.
    pub(super) fn hear_ack(&mut self, ack: Ack) -> Result<(), Impossible> {
        if ack.received > self.taken || ack.ended && self.ours == Ours::Open {
            return Err(Impossible("it has more than was sent"));
        }
        // An older word of the same carrier cannot come later; of another one it is not heard at all.
        if ack.received < self.heard || ack.limit < self.limit {
            return Err(Impossible("it has less than it had"));
        }
        self.limit = ack.limit;
        if ack.ended {
            self.ours = Ours::Heard;
        }
        let mut count = ack.received - self.heard;
        self.heard = ack.received;
        for queue in [&mut self.unheard, &mut self.unsent] {
            while let Some(front) = queue.front_mut().filter(|_| count > 0) {
                let length = count.min(front.len() as u64);
                front.advance(usize::try_from(length).unwrap_or(usize::MAX));
                count -= length;
                if front.is_empty() {
                    queue.pop_front();
                }
            }
        }
        Ok(())
    }

    /// Bytes came.
    pub(super) fn hear_data(&mut self, bytes: Bytes) -> Result<(), Impossible> {
        if self.their_end.is_some() {
            return Err(Impossible("it sends after its end"));
        }
        self.received += bytes.len() as u64;
        if self.received > self.told.limit {
            return Err(Impossible("it sends more than there is room for"));
        }
        if !bytes.is_empty() {
            self.inbox.push_back(bytes);
        }
        Ok(())
    }

    /// The other direction's end came.
    pub(super) fn hear_end(&mut self, total: u64) -> Result<(), Impossible> {
        if total != self.received || self.their_end.is_some_and(|end| end != total) {
            return Err(Impossible("it ends where it is not"));
        }
        self.their_end = Some(total);
        Ok(())
    }

    /// What the service is to get next.
    pub(super) fn front(&self) -> Option<Bytes> {
        self.inbox.front().cloned()
    }

    /// The service took `count` bytes of [`Flow::front`].
    pub(super) fn give(&mut self, count: usize) {
        let Some(front) = self.inbox.front_mut() else { return };
        front.advance(count);
        self.given += count as u64;
        if front.is_empty() {
            self.inbox.pop_front();
        }
        // Who takes all that comes may be sent more at once.
        if self.inbox.is_empty() && self.given - self.grown_at >= self.window {
            self.window = (2 * self.window).min(WINDOW_MOST_BYTES);
            self.grown_at = self.given;
        }
    }

    /// Whether the service is to be told of the other direction's end now.
    pub(super) fn wants_end(&self) -> bool {
        self.their_end.is_some() && self.inbox.is_empty() && !self.end_given
    }

    /// The service was told of it.
    pub(super) fn give_end(&mut self) {
        self.end_given = true;
    }

    /// The other side has all of ours and we have all of its: the carrier is of no more use.
    pub(super) fn is_settled(&self) -> bool {
        self.ours == Ours::Heard && self.their_end.is_some()
    }

    /// The other side said that it has everything and has ended, though its receipt was lost.
    pub(super) fn hear_done(&mut self) {
        self.ours = Ours::Heard;
    }

    /// Settled, and the service has everything.
    pub(super) fn is_given(&self) -> bool {
        self.is_settled() && self.end_given
    }

    /// Settled, said so, and the service has everything.
    pub(super) fn is_done(&self) -> bool {
        self.is_given() && self.told.ended
    }

    /// Bytes in both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.taken + self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed sequence of numbers for choices.
    struct Choices(u64);

    impl Choices {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    enum Sent {
        Data(Bytes),
        End(u64),
        Ack(Ack),
    }

    /// One end with its service: what it will say, what it has heard.
    struct Side {
        flow: Flow,
        says: Vec<u8>,
        said: usize,
        heard: Vec<u8>,
        sent: VecDeque<Sent>,
    }

    impl Side {
        fn new(length: usize, seed: u8) -> Self {
            let says = (0..length).map(|n| u8::try_from(n % 251).unwrap() ^ seed).collect();
            Self { flow: Flow::new(), says, said: 0, heard: Vec::new(), sent: VecDeque::new() }
        }

        /// One act by chance; `reads` is how gladly the service reads.
        fn act(&mut self, choices: &mut Choices, reads: u64) {
            match choices.below(4) {
                0 => {
                    let Some(room) = self.flow.room() else { return };
                    let left = self.says.len() - self.said;
                    let count = room.min(left).min(1 + usize::try_from(choices.below(90_000)).unwrap());
                    if left == 0 {
                        self.flow.end();
                    } else if count > 0 {
                        self.flow.take(Bytes::copy_from_slice(&self.says[self.said..self.said + count]));
                        self.said += count;
                    }
                }
                1 => {
                    self.sent.extend(self.flow.next_ack().map(Sent::Ack));
                    self.sent.extend(self.flow.next_data().map(Sent::Data));
                    self.sent.extend(self.flow.next_end().map(Sent::End));
                }
                _ if choices.below(10) < reads => {
                    if let Some(front) = self.flow.front() {
                        let count = 1 + usize::try_from(choices.below(front.len() as u64)).unwrap();
                        self.heard.extend_from_slice(&front[..count]);
                        self.flow.give(count);
                    } else if self.flow.wants_end() {
                        self.flow.give_end();
                    }
                }
                _ => {}
            }
        }

        fn hear(&mut self, sent: Sent) {
            match sent {
                Sent::Data(bytes) => self.flow.hear_data(bytes).unwrap(),
                Sent::End(total) => self.flow.hear_end(total).unwrap(),
                Sent::Ack(ack) => self.flow.hear_ack(ack).unwrap(),
            }
        }

        fn kept(&self) -> u64 {
            let sum = |queue: &VecDeque<Bytes>| queue.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
            let sending = sum(&self.flow.unsent) + sum(&self.flow.unheard);
            sending.max(sum(&self.flow.inbox))
        }
    }

    #[test]
    fn everything_arrives_once_and_in_order_over_carriers_that_break_anywhere() {
        for seed in 0..200 {
            let mut choices = Choices(seed);
            let length = |choices: &mut Choices| usize::try_from(choices.below(3_000_000)).unwrap();
            let mut sides = [Side::new(length(&mut choices), 1), Side::new(length(&mut choices), 2)];
            let reads = 1 + choices.below(10);
            for _ in 0..2_000_000 {
                if sides.iter().all(|side| side.flow.is_done()) {
                    break;
                }
                let at = usize::try_from(choices.below(2)).unwrap();
                sides[at].act(&mut choices, reads);
                assert!(sides[at].kept() <= WINDOW_MOST_BYTES, "seed {seed}");
                if let Some(sent) = sides[at].sent.pop_front() {
                    sides[1 - at].hear(sent);
                }
                if choices.below(3000) == 0 {
                    // What was on the way is lost; both begin anew on another carrier.
                    for side in &mut sides {
                        side.sent.clear();
                    }
                    let hellos = [sides[0].flow.hello(), sides[1].flow.hello()];
                    sides[0].flow.hear_hello(hellos[1]).unwrap();
                    sides[1].flow.hear_hello(hellos[0]).unwrap();
                }
            }
            let [a, b] = sides;
            assert!(a.flow.is_done() && b.flow.is_done(), "seed {seed}");
            assert!(a.heard == b.says && b.heard == a.says, "seed {seed}");
        }
    }

    #[test]
    fn who_does_not_read_is_sent_a_window_and_no_more() {
        let mut flow = Flow::new();
        while let Some(room @ 1..) = flow.room() {
            flow.take(Bytes::from(vec![0; room]));
        }
        assert_eq!(flow.bytes(), WINDOW_BYTES);
        let far = Ack { limit: u64::MAX, ..Ack::default() };
        flow.hear_ack(far).unwrap();
        while let Some(room @ 1..) = flow.room() {
            flow.take(Bytes::from(vec![0; room]));
        }
        assert_eq!(flow.bytes(), WINDOW_MOST_BYTES, "whatever it says");
    }

    #[test]
    fn who_keeps_up_is_given_more_room() {
        let mut flow = Flow::new();
        for _ in 0..400 {
            let room = flow.told.limit - flow.received;
            flow.hear_data(Bytes::from(vec![0; usize::try_from(room.min(65_536)).unwrap()])).unwrap();
            while let Some(front) = flow.front() {
                flow.give(front.len());
            }
            flow.next_ack();
        }
        assert_eq!(flow.window, WINDOW_MOST_BYTES);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut flow = Flow::new();
        flow.take(Bytes::from_static(b"four"));
        let limit = WINDOW_BYTES;
        assert!(flow.hear_ack(Ack { received: 5, limit, ended: false }).is_err(), "more than was sent");
        assert!(flow.hear_ack(Ack { received: 4, limit, ended: true }).is_err(), "an end before it");
        assert!(flow.hear_ack(Ack { received: 0, limit: limit - 1, ended: false }).is_err(), "less room");
        flow.hear_ack(Ack { received: 4, limit, ended: false }).unwrap();
        assert!(flow.hear_ack(Ack { received: 3, limit, ended: false }).is_err(), "less than before");
        let much = Bytes::from(vec![0; usize::try_from(WINDOW_BYTES).unwrap() + 1]);
        assert!(Flow::new().hear_data(much).is_err(), "no room");
        assert!(flow.hear_end(1).is_err(), "not there");
        flow.hear_end(0).unwrap();
        flow.hear_end(0).unwrap();
        assert!(flow.hear_data(Bytes::from_static(b"x")).is_err(), "after the end");
        for bytes in [&[0; 16][..], &[0; 18], &[2; 17]] {
            assert_eq!(Ack::decode(bytes), None);
        }
        let ack = Ack { received: 7, limit: 9, ended: true };
        assert_eq!(Ack::decode(&ack.encode()), Some(ack));
    }
}
