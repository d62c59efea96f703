//! Whom and what a supplier, or the operator, will not serve: accounts, countries, kinds of work.
//!
//! Always holds: who is denied learns so of himself and of nobody else; a country is its renter's own declaration. Not here:
//! where the lists are kept (`state`, in the private part) and when they are applied (`conditions`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::wishes::WorkKind;
use crate::id::{Address, DeviceId};
use crate::refusal::Refusal;
use crate::state::Private;

/// Most accounts of a list.
const MOST_ACCOUNTS: usize = 10_000;
/// Most devices of the operator's list.
const MOST_DEVICES: usize = 100_000;

/// A country by its two letters (ISO 3166-1 alpha-2), as an account declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.0).unwrap_or("??"))
    }
}

impl FromStr for Country {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text.to_ascii_uppercase().as_bytes() {
            [a, b] if a.is_ascii_uppercase() && b.is_ascii_uppercase() => Ok(Self([*a, *b])),
            _ => Err(Refusal::out_of_range(
                "country",
                text.chars().take(40).collect::<String>(),
                "two letters, such as DE",
            )),
        }
    }
}

crate::id::serde_as_text!(Country);

/// What is not served.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Denials {
    /// Renters.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub accounts: BTreeSet<Address>,
    /// Renters who declared one of these countries; with any, those who declared none are not served either.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub countries: BTreeSet<Country>,
    /// Kinds of work, by the renter's word.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub kinds: BTreeSet<WorkKind>,
}

/// Why somebody is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denied {
    /// The account is on the list.
    Account,
    /// Its country is.
    Country(Country),
    /// It declared none, and some are.
    NoCountry,
    /// The kind of work is.
    Kind(WorkKind),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account => f.write_str("this account is not served"),
            Self::Country(country) => write!(f, "renters of {country} are not served"),
            Self::NoCountry => f.write_str(
                "only renters who declared their country are served ('ionet country XX' declares it)",
            ),
            Self::Kind(kind) => write!(f, "work of the kind '{kind}' is not served"),
        }
    }
}

/// Who asks, for what.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asker {
    account: Option<Address>,
    country: Option<Country>,
    kind: WorkKind,
}

impl Asker {
    /// An account with what it declared; without one, as in a look at the market at large, accounts and countries count for
    /// nothing.
    pub(crate) fn new(private: &Private, account: Option<Address>, kind: WorkKind) -> Self {
        let country = account.and_then(|account| private.countries.get(&account).copied());
        Self { account, country, kind }
    }
}

impl Denials {
    /// Whether nothing is denied.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Why the asker is not served, if so.
    pub(crate) fn refuse(&self, asker: &Asker) -> Option<Denied> {
        if self.kinds.contains(&asker.kind) {
            return Some(Denied::Kind(asker.kind));
        }
        let account = asker.account?;
        if self.accounts.contains(&account) {
            return Some(Denied::Account);
        }
        match asker.country {
            Some(country) => self.countries.contains(&country).then_some(Denied::Country(country)),
            None => (!self.countries.is_empty()).then_some(Denied::NoCountry),
        }
    }

    /// Whether the list is within limits.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.accounts.len() > MOST_ACCOUNTS {
            let limit = format!("at most {MOST_ACCOUNTS}");
            return Err(Refusal::out_of_range("denied accounts", self.accounts.len(), limit));
        }
        Ok(())
    }
}

/// What the operator does not let into the market.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DenyList {
    /// Renters and kinds of work.
    #[serde(skip_serializing_if = "Denials::is_none")]
    pub renters: Denials,
    /// Devices; what runs there runs on.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub devices: BTreeSet<DeviceId>,
}

impl DenyList {
    /// Whether nothing is denied.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        let Denials { accounts, countries, kinds } = &self.renters;
        accounts.len() + countries.len() + kinds.len() + self.devices.len()
    }

    /// Whether the list is within limits.
    pub fn check(&self) -> Result<(), Refusal> {
        self.renters.check()?;
        if self.devices.len() > MOST_DEVICES {
            let limit = format!("at most {MOST_DEVICES}");
            return Err(Refusal::out_of_range("denied devices", self.devices.len(), limit));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_served_hears_why() {
        let country = |text: &str| text.parse::<Country>().unwrap();
        let (one, other) = (Address([1; 32]), Address([2; 32]));
        let ask = |account, country, kind| Asker { account: Some(account), country, kind };
        let mut list = Denials { accounts: [one].into(), ..Denials::default() };
        assert_eq!(list.refuse(&ask(one, None, WorkKind::General)), Some(Denied::Account));
        assert_eq!(list.refuse(&ask(other, None, WorkKind::General)), None);
        list.countries = [country("kp")].into();
        assert_eq!(list.refuse(&ask(other, None, WorkKind::General)), Some(Denied::NoCountry));
        assert_eq!(list.refuse(&ask(other, Some(country("DE")), WorkKind::General)), None);
        let denied = list.refuse(&ask(other, Some(country("KP")), WorkKind::General));
        assert_eq!(denied, Some(Denied::Country(country("KP"))));
        list.kinds = [WorkKind::Train].into();
        let denied = list.refuse(&Asker { kind: WorkKind::Train, ..Asker::default() });
        assert_eq!(denied, Some(Denied::Kind(WorkKind::Train)));
        assert_eq!(list.refuse(&Asker::default()), None, "a look at the market at large");
        for wrong in ["", "D", "DEU", "1A", "é"] {
            assert!(wrong.parse::<Country>().is_err(), "{wrong}");
        }
    }
}
