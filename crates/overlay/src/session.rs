//! The sessions with one peer: the current one, the one before, and answered ones that nobody has used yet.
//!
//! What always holds: data is sealed in the current session only; a session that we answered becomes current when the
//! first packet of it opens, so a replayed initiation never displaces one that works; the one before still opens what
//! is under way. Pure: milliseconds come in. Not here: making a session (`handshake`), and when to try again.

use std::sync::Arc;

use crate::crypt::{ReceiveKey, SendKey};

/// The initiator makes a new session when the current one is this old.
pub const REKEY_MS: u64 = 120_000;
/// The initiator makes a new session when it sealed this much in the current one.
pub const REKEY_BYTES: u64 = 1 << 36;
/// A session opens nothing this long after another took its place, or after it should have been renewed and was not.
pub const EXPIRY_MS: u64 = 180_000;
/// How long an answered session waits for its first packet.
pub const TENTATIVE_MS: u64 = 10_000;
/// How many answered sessions wait at most; the oldest makes room.
pub const MOST_TENTATIVE: usize = 4;

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We began it, and renew it.
    Initiator,
    /// We answered.
    Responder,
}

/// The two keys that a handshake made.
#[derive(Clone, Debug)]
pub struct Session {
    /// Our side.
    pub role: Role,
    /// What seals for the peer.
    pub send: Arc<SendKey>,
    /// What opens the peer's.
    pub receive: Arc<ReceiveKey>,
    /// When the handshake was done.
    pub begun_ms: u64,
}

/// The sessions with one peer.
#[derive(Debug, Default)]
pub struct Sessions {
    current: Option<Session>,
    previous: Option<(Session, u64)>,
    tentative: Vec<Session>,
    is_unwanted: bool,
}

impl Sessions {
    /// Takes a session that we made: as initiator it is current at once, as responder it waits for its first packet.
    pub fn add(&mut self, session: Session, now_ms: u64) {
        if session.role == Role::Initiator {
            return self.make_current(session, now_ms);
        }
        if self.tentative.len() == MOST_TENTATIVE {
            self.tentative.remove(0);
        }
        self.tentative.push(session);
    }

    /// A packet opened under this index of ours; whether that made another session current.
    pub fn confirm(&mut self, index: u32, now_ms: u64) -> bool {
        let Some(at) = self.tentative.iter().position(|session| session.receive.index() == index) else {
            return false;
        };
        let session = self.tentative.remove(at);
        self.make_current(session, now_ms);
        true
    }

    fn make_current(&mut self, session: Session, now_ms: u64) {
        self.is_unwanted = false;
        if let Some(replaced) = self.current.replace(session) {
            self.previous = Some((replaced, now_ms));
        }
    }

    /// Forgets what has expired; whether there was any.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let before = self.receiving().count();
        self.tentative.retain(|session| now_ms < session.begun_ms + TENTATIVE_MS);
        self.previous.take_if(|(_, ended_ms)| now_ms >= *ended_ms + EXPIRY_MS);
        self.current.take_if(|session| now_ms >= session.begun_ms + REKEY_MS + EXPIRY_MS);
        self.receiving().count() < before
    }

    /// When [`Self::expire`] or [`Self::needs_renewal`] may next have something to say.
    pub fn next_ms(&self) -> Option<u64> {
        let tentative = self.tentative.iter().map(|session| session.begun_ms + TENTATIVE_MS);
        let previous = self.previous.iter().map(|(_, ended_ms)| ended_ms + EXPIRY_MS);
        let current = self.current.iter().map(|session| session.begun_ms + REKEY_MS + EXPIRY_MS);
        let renewal = self.current.iter().filter(|session| session.role == Role::Initiator);
        tentative.chain(previous).chain(current).chain(renewal.map(|s| s.begun_ms + REKEY_MS)).min()
    }

    /// Asks for a new session, whatever age and volume say; the current one serves until then.
    pub fn renew(&mut self) {
        self.is_unwanted = true;
    }

    /// Whether it is ours to make a new session now, by age, by volume or because somebody asked.
    pub fn needs_renewal(&self, now_ms: u64) -> bool {
        let Some(current) = self.current.as_ref().filter(|session| session.role == Role::Initiator) else {
            return false;
        };
        self.is_unwanted || now_ms >= current.begun_ms + REKEY_MS || current.send.used()[1] >= REKEY_BYTES
    }

    /// The session that data is sealed in.
    pub fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    /// Every session whose packets are opened.
    pub fn receiving(&self) -> impl Iterator<Item = &Session> {
        let previous = self.previous.as_ref().map(|(session, _)| session);
        self.current.iter().chain(previous).chain(&self.tentative)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::Cipher;

    fn session(role: Role, index: u32, begun_ms: u64) -> Session {
        let send = Arc::new(SendKey::new(Cipher::Aes256Gcm, &[1; 32], index));
        let receive = Arc::new(ReceiveKey::new(Cipher::Aes256Gcm, &[2; 32], index));
        Session { role, send, receive, begun_ms }
    }

    fn indexes(sessions: &Sessions) -> Vec<u32> {
        sessions.receiving().map(|session| session.receive.index()).collect()
    }

    #[test]
    fn an_answered_session_is_current_when_it_is_used() {
        let mut sessions = Sessions::default();
        sessions.add(session(Role::Initiator, 1, 0), 0);
        sessions.add(session(Role::Responder, 2, 5), 5);
        assert_eq!(sessions.current().unwrap().receive.index(), 1);
        assert!(!sessions.confirm(1, 6) && !sessions.confirm(9, 6));
        assert!(sessions.confirm(2, 7) && !sessions.confirm(2, 8));
        assert_eq!(sessions.current().unwrap().receive.index(), 2);
        assert_eq!(indexes(&sessions), [2, 1]);
    }

    #[test]
    fn replayed_initiations_displace_each_other_only_and_end() {
        let mut sessions = Sessions::default();
        sessions.add(session(Role::Initiator, 1, 0), 0);
        for index in 2..20 {
            sessions.add(session(Role::Responder, index, 0), 0);
        }
        assert_eq!(indexes(&sessions), [1, 16, 17, 18, 19]);
        assert_eq!(sessions.next_ms(), Some(TENTATIVE_MS));
        assert!(!sessions.expire(TENTATIVE_MS - 1));
        assert!(sessions.expire(TENTATIVE_MS));
        assert_eq!(indexes(&sessions), [1]);
    }

    #[test]
    fn sessions_are_renewed_and_end() {
        let mut sessions = Sessions::default();
        sessions.add(session(Role::Initiator, 1, 0), 0);
        assert!(!sessions.needs_renewal(REKEY_MS - 1) && sessions.needs_renewal(REKEY_MS));
        sessions.add(session(Role::Initiator, 2, REKEY_MS), REKEY_MS);
        assert!(!sessions.needs_renewal(REKEY_MS));
        assert!(!sessions.expire(REKEY_MS + EXPIRY_MS - 1) && sessions.expire(REKEY_MS + EXPIRY_MS));
        assert_eq!(indexes(&sessions), [2]);
        assert!(sessions.expire(2 * REKEY_MS + EXPIRY_MS));
        assert!(sessions.current().is_none() && sessions.next_ms().is_none());
    }

    #[test]
    fn who_asks_gets_a_new_session_once() {
        let mut sessions = Sessions::default();
        sessions.add(session(Role::Initiator, 1, 0), 0);
        sessions.renew();
        assert!(sessions.needs_renewal(1));
        sessions.add(session(Role::Initiator, 2, 1), 1);
        assert!(!sessions.needs_renewal(2));
    }

    #[test]
    fn volume_renews_and_only_by_the_initiator() {
        let mut sessions = Sessions::default();
        let first = session(Role::Initiator, 1, 0);
        let _ = first.send.reserve(1, usize::try_from(REKEY_BYTES).unwrap());
        sessions.add(first, 0);
        assert!(sessions.needs_renewal(1));
        sessions.add(session(Role::Responder, 2, 1), 1);
        sessions.confirm(2, 1);
        assert!(!sessions.needs_renewal(REKEY_MS * 2));
    }
}
