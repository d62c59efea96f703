//! Who else than its owner may open an order's services, which of them and until when.
//!
//! Always holds: what is taken back, wholly or in part, leaves a time behind before which everything that was given is void; few share
//! an order, so all of it is small. Not here: the leave itself (`ionet-api`), who checks it (`ionet-worker`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Move, Order};
use crate::id::{Address, KeyId};
use crate::refusal::Refusal;
use crate::state::State;
use crate::tunnel::{Services, Void};

/// Most accounts that an order is shared with, in its whole life.
pub const MOST_SHARES: usize = 64;
/// Most services named in one share.
const MOST_SERVICES: usize = 256;
/// The longest share.
const LONGEST_MS: u64 = 400 * 24 * 3_600_000;

/// What somebody else may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Which services.
    pub services: Services,
    /// Until when, in milliseconds since 1970.
    pub until_ms: u64,
}

/// An order's shares, and those that were taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    /// By account.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<Address, Share>,
    /// Leave given to an account before this time is void.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    void: BTreeMap<Address, u64>,
}

impl Shares {
    /// Whether there never was one.
    pub fn is_none(&self) -> bool {
        self.shares.is_empty() && self.void.is_empty()
    }

    /// What `account` may open at `now_ms`.
    pub fn of(&self, account: Address, now_ms: u64) -> Option<&Share> {
        self.shares.get(&account).filter(|share| now_ms < share.until_ms)
    }

    /// Accounts that share now or once did.
    fn known(&self) -> impl Iterator<Item = Address> {
        let taken_back = self.void.keys().filter(|account| !self.shares.contains_key(account));
        self.shares.keys().chain(taken_back).copied()
    }

    /// Folds a share; where it gives less than the one before, that one is taken back.
    pub(crate) fn give(&mut self, account: Address, share: Share, at_ms: u64) {
        let less = |old: &Share| {
            old.services.within(&share.services) != old.services || share.until_ms < old.until_ms
        };
        if self.shares.get(&account).is_some_and(less) {
            self.take_back(account, at_ms);
        }
        self.shares.insert(account, share);
    }

    /// Folds the end of a share.
    pub(crate) fn take_back(&mut self, account: Address, at_ms: u64) {
        self.shares.remove(&account);
        // What was given in this very millisecond too.
        self.void.insert(account, at_ms + 1);
    }
}

/// Whether `share` of an order may be given to `account`.
pub fn give(order: &Order, account: Address, share: &Share, now_ms: u64) -> Result<(), Refusal> {
    order.may(Move::Share)?;
    if account == order.account {
        return Err(Refusal::NoChange {
            what: format!("{account} owns {}, so it opens everything", order.id),
        });
    }
    if order.sharing.shares.get(&account) == Some(share) {
        return Err(Refusal::NoChange { what: format!("the share of {account} in {}", order.id) });
    }
    let named = match &share.services {
        Services::All => 1,
        Services::Only(services) => services.len(),
    };
    if !(1..=MOST_SERVICES).contains(&named) {
        return Err(Refusal::out_of_range("services", named, format!("1 to {MOST_SERVICES}")));
    }
    let latest_ms = now_ms.saturating_add(LONGEST_MS);
    if !(now_ms + 1..=latest_ms).contains(&share.until_ms) {
        return Err(Refusal::out_of_range(
            "until_ms",
            share.until_ms,
            format!("{} to {latest_ms}", now_ms + 1),
        ));
    }
    let others = order.sharing.known().filter(|known| *known != account).count();
    if others >= MOST_SHARES {
        return Err(Refusal::out_of_range("shares", others + 1, format!("at most {MOST_SHARES} accounts")));
    }
    Ok(())
}

/// Whether the share of `account` may be taken back.
pub fn take_back(order: &Order, account: Address) -> Result<(), Refusal> {
    order.may(Move::Share)?;
    if order.sharing.shares.contains_key(&account) {
        return Ok(());
    }
    Err(Refusal::NoChange { what: format!("{account} has no share of {}", order.id) })
}

/// What was taken back of the leave that was given to enter an order: shares, and keys that were revoked since.
pub fn void(state: &State, order: &Order) -> Vec<Void> {
    let sharing = &order.sharing;
    let shares = sharing.void.iter().map(|(account, before_ms)| Void {
        account: *account,
        key: None,
        before_ms: *before_ms,
    });
    let accounts = std::iter::once(order.account).chain(sharing.known());
    let keys = accounts.flat_map(|account| {
        revoked(state, account, order.accepted_ms).map(move |(key, before_ms)| Void {
            account,
            key: Some(key),
            before_ms,
        })
    });
    shares.chain(keys).collect()
}

/// Keys of an account that were revoked after a time, and when.
fn revoked(state: &State, account: Address, after_ms: u64) -> impl Iterator<Item = (KeyId, u64)> {
    let keys = state.accounts.get(&account).into_iter().flat_map(|account| account.keys.values());
    keys.filter_map(|key| Some((key.id, key.revoked_ms?)))
        .filter(move |(_, at_ms)| *at_ms >= after_ms)
        .map(|(key, at_ms)| (key, at_ms + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(services: &str, until_ms: u64) -> Share {
        Share { services: services.parse().unwrap(), until_ms }
    }

    #[test]
    fn what_gives_less_takes_back_what_was() {
        let account = Address([1; 32]);
        for (before, after, taken_back) in [
            (share("ssh", 10), share("ssh,log", 10), false),
            (share("ssh", 10), share("all", 20), false),
            (share("ssh,log", 10), share("ssh", 10), true),
            (share("all", 10), share("ssh", 10), true),
            (share("ssh", 10), share("ssh", 9), true),
        ] {
            let mut sharing = Shares::default();
            sharing.give(account, before.clone(), 1);
            assert!(sharing.void.is_empty());
            sharing.give(account, after.clone(), 5);
            assert_eq!(sharing.void.get(&account).copied(), taken_back.then_some(6), "{before:?} {after:?}");
            assert_eq!(sharing.of(account, after.until_ms - 1), Some(&after));
            assert_eq!(sharing.of(account, after.until_ms), None);
        }
    }

    #[test]
    fn who_once_shared_is_known() {
        let (a, b) = (Address([1; 32]), Address([2; 32]));
        let mut sharing = Shares::default();
        sharing.give(a, share("ssh", 10), 1);
        sharing.give(b, share("ssh", 10), 1);
        sharing.take_back(a, 4);
        assert_eq!(sharing.known().collect::<Vec<_>>(), [b, a]);
        assert_eq!(sharing.of(a, 5), None);
    }
}
