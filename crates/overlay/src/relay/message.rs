//! What a member and a relay say to each other, besides the packets that are passed on.
//!
//! What always holds: an answer is never longer than its question, so nobody can use a relay to flood somebody else;
//! every length is fixed and checked. The same messages travel in UDP datagrams and in TCP frames. What they lead to
//! is not here (`super`, and `client` for the member's side).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

/// Names one question; its answer bears the same.
pub type Token = [u8; 8];
/// Proof that its bearer receives what is sent to the address it speaks from.
pub type Cookie = [u8; 16];
/// Names a pair of members to a relay, without telling who they are.
pub type Tag = [u8; 16];
/// An address as written on the wire: 16 bytes (an IPv4 address as its mapped one) and a port.
pub const ADDRESS_BYTES: usize = 18;

const HELLO: u32 = 0x10;
const COOKIE: u32 = 0x11;
const BIND: u32 = 0x12;
const BOUND: u32 = 0x13;
const REFUSED: u32 = 0x14;
const KEEP: u32 = 0x15;

const HELLO_BYTES: usize = 48;
const COOKIE_BYTES: usize = 4 + 8 + 16 + ADDRESS_BYTES;
const BIND_BYTES: usize = 4 + 8 + 16 + 32 + 16 + 64;
const BOUND_BYTES: usize = 4 + 8 + 4 + 2 + 1 + ADDRESS_BYTES;
const REFUSED_BYTES: usize = 4 + 8 + 1;
const KEEP_BYTES: usize = 40;

const SIGNED: &[u8] = b"ionet relay bind 1";

/// Asks for a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Names the question.
    pub token: Token,
    /// The relay's own cookie for the address this is sent from.
    pub cookie: Cookie,
    /// Who asks: an Ed25519 key.
    pub key: [u8; 32],
    /// Which pair it is for.
    pub tag: Tag,
    /// By `key` over the relay's id, the cookie and the tag.
    pub signature: [u8; 64],
}

impl Bind {
    /// A signed question to the relay of that id.
    pub fn new(token: Token, cookie: Cookie, tag: Tag, relay: &[u8; 32], key: &Ed25519KeyPair) -> Self {
        use ring::signature::KeyPair;
        let mut public = [0; 32];
        public.copy_from_slice(key.public_key().as_ref());
        let mut signature = [0; 64];
        signature.copy_from_slice(key.sign(&signed(relay, &cookie, &tag)).as_ref());
        Self { token, cookie, key: public, tag, signature }
    }

    /// Whether it was signed by its key, for the relay of that id.
    pub fn is_genuine(&self, relay: &[u8; 32]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.key);
        key.verify(&signed(relay, &self.cookie, &self.tag), &self.signature).is_ok()
    }
}

fn signed(relay: &[u8; 32], cookie: &Cookie, tag: &Tag) -> Vec<u8> {
    [SIGNED, relay, cookie, tag].concat()
}

/// What a member says to a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Asks for a cookie, and which address it is seen from.
    Hello {
        /// Names the question.
        token: Token,
    },
    /// Asks for a channel.
    Bind(Bind),
    /// Keeps a channel, and asks whether it is still there.
    Keep {
        /// Names the question.
        token: Token,
        /// The channel.
        channel: u32,
    },
}

impl Question {
    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        match self {
            Self::Hello { token } => padded(&[&HELLO.to_be_bytes(), token], HELLO_BYTES),
            Self::Bind(bind) => padded(
                &[&BIND.to_be_bytes(), &bind.token, &bind.cookie, &bind.key, &bind.tag, &bind.signature],
                BIND_BYTES,
            ),
            Self::Keep { token, channel } => {
                padded(&[&KEEP.to_be_bytes(), token, &channel.to_be_bytes()], KEEP_BYTES)
            }
        }
    }

    /// Reads one; `None` if it is none or has another length than it must.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let kind = u32::from_be_bytes(take(&mut rest)?);
        let token = take(&mut rest)?;
        match (kind, bytes.len()) {
            (HELLO, HELLO_BYTES) => Some(Self::Hello { token }),
            (BIND, BIND_BYTES) => Some(Self::Bind(Bind {
                token,
                cookie: take(&mut rest)?,
                key: take(&mut rest)?,
                tag: take(&mut rest)?,
                signature: take(&mut rest)?,
            })),
            (KEEP, KEEP_BYTES) => Some(Self::Keep { token, channel: u32::from_be_bytes(take(&mut rest)?) }),
            _ => None,
        }
    }
}

/// What a relay answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a hello.
    Cookie {
        /// Of the question.
        token: Token,
        /// Stands for the address seen; valid for a minute at least.
        cookie: Cookie,
        /// The address the question came from.
        seen: SocketAddr,
    },
    /// To a bind or a keep; with a token of zeros also unasked, when the other side has come.
    Bound {
        /// Of the question.
        token: Token,
        /// What to put before a packet.
        channel: u32,
        /// How long the channel stands without a packet.
        lifetime_s: u16,
        /// Whether the other side is bound too.
        is_met: bool,
        /// The address the question came from.
        seen: SocketAddr,
    },
    /// No, and why.
    Refused {
        /// Of the question.
        token: Token,
        /// Why.
        reason: Refusal,
    },
}

/// Why a relay says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The cookie is of another address or too old: say hello again.
    StaleCookie = 1,
    /// The relay does not know this channel from this address: bind again.
    NoSuchChannel = 2,
    /// The key may not use this relay.
    NotAdmitted = 3,
    /// The signature is not the key's.
    NotGenuine = 4,
    /// The key has as many channels as it may.
    TooManyOfKey = 5,
    /// The relay has as many channels as it may.
    Full = 6,
    /// Two other keys use this tag.
    TagTaken = 7,
    /// Too many questions from this address.
    TooFast = 8,
}

impl Refusal {
    /// All of them, as their numbers count.
    pub const ALL: [Self; 8] = [
        Self::StaleCookie,
        Self::NoSuchChannel,
        Self::NotAdmitted,
        Self::NotGenuine,
        Self::TooManyOfKey,
        Self::Full,
        Self::TagTaken,
        Self::TooFast,
    ];

    /// Its stable name.
    pub fn code(self) -> &'static str {
        match self {
            Self::StaleCookie => "stale_cookie",
            Self::NoSuchChannel => "no_such_channel",
            Self::NotAdmitted => "not_admitted",
            Self::NotGenuine => "not_genuine",
            Self::TooManyOfKey => "too_many_of_key",
            Self::Full => "full",
            Self::TagTaken => "tag_taken",
            Self::TooFast => "too_fast",
        }
    }

    fn parse(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == byte)
    }
}

impl Answer {
    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        match self {
            Self::Cookie { token, cookie, seen } => {
                padded(&[&COOKIE.to_be_bytes(), token, cookie, &write_address(*seen)], COOKIE_BYTES)
            }
            Self::Bound { token, channel, lifetime_s, is_met, seen } => padded(
                &[
                    &BOUND.to_be_bytes(),
                    token,
                    &channel.to_be_bytes(),
                    &lifetime_s.to_be_bytes(),
                    &[u8::from(*is_met)],
                    &write_address(*seen),
                ],
                BOUND_BYTES,
            ),
            Self::Refused { token, reason } => {
                padded(&[&REFUSED.to_be_bytes(), token, &[*reason as u8]], REFUSED_BYTES)
            }
        }
    }

    /// Reads one; `None` if it is none, or a field says what it cannot.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let kind = u32::from_be_bytes(take(&mut rest)?);
        let token = take(&mut rest)?;
        match (kind, bytes.len()) {
            (COOKIE, COOKIE_BYTES) => {
                Some(Self::Cookie { token, cookie: take(&mut rest)?, seen: read_address(take(&mut rest)?) })
            }
            (BOUND, BOUND_BYTES) => Some(Self::Bound {
                token,
                channel: Some(u32::from_be_bytes(take(&mut rest)?)).filter(|channel| channel >> 31 == 1)?,
                lifetime_s: u16::from_be_bytes(take(&mut rest)?),
                is_met: match take::<1>(&mut rest)? {
                    [0] => false,
                    [1] => true,
                    _ => return None,
                },
                seen: read_address(take(&mut rest)?),
            }),
            (REFUSED, REFUSED_BYTES) => {
                let [reason] = take(&mut rest)?;
                Some(Self::Refused { token, reason: Refusal::parse(reason)? })
            }
            _ => None,
        }
    }

    /// The token of its question.
    pub fn token(&self) -> Token {
        match self {
            Self::Cookie { token, .. } | Self::Bound { token, .. } | Self::Refused { token, .. } => *token,
        }
    }
}

fn padded(parts: &[&[u8]], len: usize) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.resize(len, 0);
    bytes
}

/// The next `N` bytes.
pub(crate) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*first)
}

/// An address in its 18 bytes.
pub(crate) fn write_address(address: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

/// The address in 18 bytes; every value is one.
pub(crate) fn read_address(bytes: [u8; ADDRESS_BYTES]) -> SocketAddr {
    let (mut ip, mut port) = ([0; 16], [0; 2]);
    ip.copy_from_slice(&bytes[..16]);
    port.copy_from_slice(&bytes[16..]);
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
}
