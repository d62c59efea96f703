//! The ways to buy, in one book, and how urgent an order is.
//!
//! | way | waits | price |
//! |---|---|---|
//! | on demand | no: taken in only if it fits | as quoted |
//! | standing | until its price or hardware appears, or it expires | of the moment, within the cap |
//!
//! Always holds: an order that waits has a cap and an end of waiting, so it ends. Not here: in which order waiting orders are
//! tried (`queue`), how they are priced and placed (`waiting`).

use serde::{Deserialize, Serialize};

use super::request::Request;
use crate::money::HOUR_MS;
use crate::refusal::Refusal;

/// How urgent an order is, against others that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Counts half in the account's fair share.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Counts double in the account's fair share.
    High,
}

impl Priority {
    /// All of them, the least urgent first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    pub(crate) fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

impl std::str::FromStr for Priority {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let short: String = text.chars().take(40).collect();
        let found = Self::ALL.into_iter().find(|one| one.name() == text);
        found.ok_or_else(|| Refusal::out_of_range("priority", short, "low, normal or high"))
    }
}

/// How an order is bought. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "way", rename_all = "snake_case", deny_unknown_fields)]
pub enum Buy {
    /// Now or not at all.
    OnDemand {},
    /// Waits until the price is within the cap and the hardware is there.
    Standing {
        /// When it gives up, with everything given back.
        expires_ms: u64,
    },
}

impl Default for Buy {
    fn default() -> Self {
        Self::OnDemand {}
    }
}

/// The longest that an order may wait.
pub const MOST_WAIT_MS: u64 = 90 * 24 * HOUR_MS;

impl Buy {
    pub(crate) fn is_on_demand(&self) -> bool {
        matches!(self, Self::OnDemand {})
    }

    /// Until when an order waits for devices; `None` if it does not wait.
    pub fn waits_until_ms(self) -> Option<u64> {
        match self {
            Self::OnDemand {} => None,
            Self::Standing { expires_ms } => Some(expires_ms),
        }
    }

    /// Whether its leases cost what the market says when they are made, within the cap, and not what was quoted.
    pub fn floats(self) -> bool {
        match self {
            Self::OnDemand {} => false,
            Self::Standing { .. } => true,
        }
    }

    /// The way in a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::OnDemand {} => "on demand",
            Self::Standing { .. } => "standing",
        }
    }

    /// Whether a price can be made for this way now; says which field and what it may be.
    pub(crate) fn check(self, request: &Request, now_ms: u64) -> Result<(), Refusal> {
        let within = |field: &str, at_ms: u64, least_ms: u64| {
            let most_ms = now_ms.saturating_add(MOST_WAIT_MS);
            if (least_ms..=most_ms).contains(&at_ms) {
                return Ok(());
            }
            let limit = format!("{least_ms} to {most_ms} (milliseconds since 1970)");
            Err(Refusal::out_of_range(field, at_ms, limit))
        };
        match self {
            Self::OnDemand {} => Ok(()),
            Self::Standing { expires_ms } => {
                within("expires_ms", expires_ms, now_ms + 1)?;
                capped(request)
            }
        }
    }
}

/// Who waits names the most that he pays: it is what is set aside.
fn capped(request: &Request) -> Result<(), Refusal> {
    match request.max_rate {
        Some(cap) if cap.0 >= u64::from(request.members) => Ok(()),
        Some(cap) => {
            Err(Refusal::out_of_range("max_rate", cap.0, format!("at least {} micro-USD", request.members)))
        }
        None => {
            let limit = "the most that all members may cost an hour (--max-price), for an order that waits";
            Err(Refusal::out_of_range("max_rate", "missing", limit))
        }
    }
}
