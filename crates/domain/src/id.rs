//! Typed ids for every noun.
//!
//! An id is made by whoever names the thing first, so a retry answers "exists". It carries its time
//! (48 bits of milliseconds, then 80 random bits, in ULID text), so what is too old to remember is refused
//! instead of being remembered for ever. Randomness and time are arguments.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// A text that is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no {kind}; expected {expected}")]
pub struct ParseIdError {
    /// What was read.
    pub text: String,
    /// What it should have been.
    pub kind: &'static str,
    /// The form it should have had.
    pub expected: &'static str,
}

fn parse_error(text: &str, kind: &'static str, expected: &'static str) -> ParseIdError {
    ParseIdError { text: text.chars().take(80).collect(), kind, expected }
}

/// Room for the longest id on the stack: ids are most of what an event says, and the engine writes many.
pub(crate) struct Text {
    bytes: [u8; 128],
    len: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; 128], len: 0 }
    }
}

impl Text {
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = self.len + part.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(part.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Serde as the `Display` and `FromStr` text, so that ids read the same in journals, APIs and terminals.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut text = crate::id::Text::default();
                std::fmt::Write::write_fmt(&mut text, format_args!("{self}"))
                    .map_err(<S::Error as serde::ser::Error>::custom)?;
                serializer.serialize_str(text.as_str())
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(<D::Error as serde::de::Error>::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;

macro_rules! timed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// Text prefix of this kind of id.
            pub const PREFIX: &'static str = $prefix;

            /// Makes an id from its time in milliseconds since 1970 and 80 random bits.
            pub fn from_parts(at_ms: u64, random: u128) -> Self {
                Self(Ulid::from_parts(at_ms, random).0)
            }

            /// When the id was made, in milliseconds since 1970, as its maker said.
            pub fn at_ms(self) -> u64 {
                Ulid(self.0).timestamp_ms()
            }

            /// All 128 bits.
            pub fn bits(self) -> u128 {
                self.0
            }

            /// The id with exactly these bits.
            pub fn from_bits(bits: u128) -> Self {
                Self(bits)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0u8; ulid::ULID_LEN];
                write!(f, concat!($prefix, "_{}"), Ulid(self.0).array_to_str(&mut text))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let wrong = || parse_error(text, "id of this kind", concat!($prefix, "_ and 26 letters or digits"));
                let body = text.strip_prefix(concat!($prefix, "_")).ok_or_else(wrong)?;
                Ulid::from_string(body).map(|ulid| Self(ulid.0)).map_err(|_| wrong())
            }
        }

        serde_as_text!($name);
    };
}

timed_id!(
    /// One machine with one agent. It is the enrolment and survives a change of endpoint key.
    DeviceId, "dev"
);
timed_id!(
    /// A request with money behind it, and the cluster that it gets: both go by this id.
    OrderId, "clu"
);
timed_id!(
    /// A command as its sender named it.
    CommandId, "cmd"
);
timed_id!(
    /// An API key's public name.
    KeyId, "key"
);
timed_id!(
    /// One payment of a supplier's earnings to the wallet.
    PayoutId, "pay"
);
timed_id!(
    /// A signed price.
    QuoteId, "quo"
);

/// Part of one device committed to one order: the order's id and a number that is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId {
    /// The order that pays.
    pub order: OrderId,
    /// Counts the order's leases from 0, replacements included.
    pub n: u32,
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.order, self.n)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LeaseId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || parse_error(text, "lease id", "an order's id, a dot and a number");
        let (order, n) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Self { order: order.parse().map_err(|_| wrong())?, n: n.parse().map_err(|_| wrong())? })
    }
}

serde_as_text!(LeaseId);

macro_rules! base58_key {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0u8; five8::BASE58_ENCODED_32_MAX_LEN];
                let len = five8::encode_32(&self.0, &mut text);
                f.write_str(std::str::from_utf8(&text[..usize::from(len)]).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut key = [0u8; 32];
                five8::decode_32(text, &mut key)
                    .map(|()| Self(key))
                    .map_err(|_| parse_error(text, $kind, "32 bytes in base58"))
            }
        }

        serde_as_text!($name);
    };
}

base58_key!(
    /// An account: an Ed25519 public key, written as a Solana address.
    Address, "account address"
);
base58_key!(
    /// The public key by which a device, a relay or an engineer's client is reached; bound to an account by
    /// a signed, expiring statement.
    EndpointId, "endpoint id"
);

/// What a transfer is for; with its scope and number it names the transfer for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferKind {
    /// Tokens seen arriving from the chain.
    Deposit,
    /// Between two wallets, by their owner's order.
    Send,
    /// From the renter into the order's own account.
    Escrow,
    /// From the order's account to what the supplier has earned.
    Charge,
    /// From the order's account to the network's fees.
    Fee,
    /// What the order did not use, back to the renter.
    Refund,
    /// From what the supplier has earned to the wallet on the chain.
    Payout,
}

impl TransferKind {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Deposit, "deposit"),
        (Self::Send, "send"),
        (Self::Escrow, "escrow"),
        (Self::Charge, "charge"),
        (Self::Fee, "fee"),
        (Self::Refund, "refund"),
        (Self::Payout, "payout"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

/// A transfer's name, made by the caller from what it is for, so that a repetition is found out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId {
    /// The thing it belongs to (an order, a deposit, a payout, a command): all 128 bits of its id.
    pub scope: u128,
    /// What it is for.
    pub kind: TransferKind,
    /// Counts within scope and kind. For charges the high 32 bits are the lease's number.
    pub n: u64,
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; ulid::ULID_LEN];
        write!(f, "{}/{}/{}", Ulid(self.scope).array_to_str(&mut text), self.kind.name(), self.n)
    }
}

impl fmt::Debug for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TransferId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || parse_error(text, "TransferId", "scope/kind/number");
        let mut parts = text.split('/');
        let scope = parts.next().and_then(|s| Ulid::from_string(s).ok()).ok_or_else(wrong)?;
        let kind = parts.next().and_then(|k| TransferKind::ALL.iter().find(|(_, name)| *name == k));
        let n = parts.next().and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        match (kind, parts.next()) {
            (Some((kind, _)), None) => Ok(Self { scope: scope.0, kind: *kind, n }),
            _ => Err(wrong()),
        }
    }
}

serde_as_text!(TransferId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_id_reads_back(bits: u128, n: u64, key: [u8; 32]) {
            let order = OrderId::from_bits(bits);
            prop_assert_eq!(order.to_string().parse::<OrderId>().unwrap(), order);
            let lease = LeaseId { order, n: 7 };
            prop_assert_eq!(lease.to_string().parse::<LeaseId>().unwrap(), lease);
            let address = Address(key);
            prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            let transfer = TransferId { scope: bits, kind: TransferKind::Charge, n };
            prop_assert_eq!(transfer.to_string().parse::<TransferId>().unwrap(), transfer);
        }
    }

    #[test]
    fn another_kind_of_id_is_refused() {
        let device = DeviceId::from_parts(1, 2).to_string();
        let error = device.parse::<OrderId>().unwrap_err().to_string();
        assert!(error.contains("clu_"), "{error}");
    }
}
