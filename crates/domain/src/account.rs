//! Accounts and their API keys: scopes and a spending cap.
//!
//! Always holds: a key never commits more than its cap. Not here: checking signatures (`ionet-api`), the
//! secrets of keys (only their hash is known, and only in the event's private part).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{Address, KeyId};
use crate::refusal::Refusal;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at what the account owns.
    Read,
    /// Rent: quotes, orders, tunnels.
    Rent,
    /// Enrol devices and change them.
    Supply,
    /// Move money out of the wallet.
    Pay,
    /// Make and revoke keys.
    Keys,
}

impl Scope {
    /// Every scope, as a wallet's own sign-in has it.
    pub const ALL: [Self; 5] = [Self::Read, Self::Rent, Self::Supply, Self::Pay, Self::Keys];
}

/// A key that acts for an account within limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Its public name.
    pub id: KeyId,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// The most that orders under it may commit, refunds given back, in micro-USD.
    pub cap_micro_usd: u64,
    /// Committed so far, in micro-USD.
    pub spent_micro_usd: u64,
    /// When it stops working, in milliseconds since 1970.
    pub expires_ms: u64,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
}

impl ApiKey {
    /// Whether the key still works at `now_ms`.
    pub fn usable(&self, now_ms: u64) -> Result<(), Refusal> {
        let state = if self.revoked {
            "revoked"
        } else if now_ms >= self.expires_ms {
            "expired"
        } else {
            return Ok(());
        };
        Err(Refusal::KeyUnusable { key: self.id, state: state.into() })
    }

    /// Whether `needed_micro_usd` more may be committed.
    pub fn affords(&self, needed_micro_usd: u64) -> Result<(), Refusal> {
        if self.spent_micro_usd.saturating_add(needed_micro_usd) <= self.cap_micro_usd {
            return Ok(());
        }
        Err(Refusal::KeyOverCap {
            key: self.id,
            cap_micro_usd: self.cap_micro_usd,
            spent_micro_usd: self.spent_micro_usd,
            needed_micro_usd,
        })
    }
}

/// Somebody who rents, supplies or both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its API keys, revoked ones included.
    pub keys: BTreeMap<KeyId, ApiKey>,
}

/// What the activity log records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivityKind {
    /// A sign-in by the wallet's signature.
    SignedIn,
    /// A key used for the first time in an hour.
    KeyUsed,
    /// A tunnel into a cluster.
    TunnelOpened,
    /// Somebody came to an exposed service, for the first time in an hour.
    ServiceReached,
    /// A sign-in or a tunnel that was turned away.
    Denied,
}

/// A line of the activity log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activity {
    /// Whose.
    pub account: Address,
    /// What happened.
    pub kind: ActivityKind,
    /// By which key, if by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
}
