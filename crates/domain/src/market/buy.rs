//! The ways to buy, in one book, and how urgent an order is.
//!
//! | way | waits | price |
//! |---|---|---|
//! | on demand | no: taken in only if it fits | as quoted |
//! | standing | until its price or hardware appears, or it expires | of the moment, within the cap |
//! | spot | only if asked to | of the market with the spot discount, repriced every hour, within the bid |
//! | reserved | for its window, with devices kept | as quoted, with a discount for booking ahead |
//! | flexible | for the hours that are usually least in demand, as long as the deadline allows | of the moment, within the cap |
//!
//! Always holds: an order that waits has a cap and an end of waiting, so it ends. Not here: in which order waiting orders are
//! tried (`queue`), how they are priced and placed (`waiting`).

use serde::{Deserialize, Serialize};

use super::request::Request;
use super::reserve::{LATE_MS, SLACK_MS};
use super::spot::NOTICE_MS;
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
    /// Cheaper; may be ended with a notice. The bid is the request's cap.
    Spot {
        /// How long the notice is.
        #[serde(default = "usual_notice_ms")]
        notice_ms: u64,
        /// If it waits: when it gives up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_ms: Option<u64>,
    },
    /// For a window in the future.
    Reserved {
        /// When it begins.
        starts_ms: u64,
    },
    /// So much time by then.
    Flexible {
        /// When all of it must be over.
        deadline_ms: u64,
    },
}

fn usual_notice_ms() -> u64 {
    NOTICE_MS
}

impl Default for Buy {
    fn default() -> Self {
        Self::OnDemand {}
    }
}

/// The longest that an order may wait.
pub const MOST_WAIT_MS: u64 = 90 * 24 * HOUR_MS;

/// Least and most of a spot order's notice: whoever makes room is waited for so long.
const LEAST_NOTICE_MS: u64 = 10_000;
const MOST_NOTICE_MS: u64 = 10 * 60_000;

impl Buy {
    pub(crate) fn is_on_demand(&self) -> bool {
        matches!(self, Self::OnDemand {})
    }

    /// When it begins at the earliest, if that is not now.
    pub fn begins_ms(self) -> Option<u64> {
        match self {
            Self::Reserved { starts_ms } => Some(starts_ms),
            _ => None,
        }
    }

    /// Until when an order for so much time waits for devices; `None` if it does not wait.
    pub fn waits_until_ms(self, duration_ms: u64) -> Option<u64> {
        match self {
            Self::OnDemand {} => None,
            Self::Standing { expires_ms } => Some(expires_ms),
            Self::Spot { expires_ms, .. } => expires_ms,
            Self::Reserved { starts_ms } => Some(starts_ms.saturating_add(LATE_MS)),
            Self::Flexible { deadline_ms } => Some(deadline_ms.saturating_sub(duration_ms)),
        }
    }

    /// Whether its leases cost what the market says when they are made, within the cap, and not what was quoted.
    pub fn floats(self) -> bool {
        match self {
            Self::OnDemand {} | Self::Reserved { .. } => false,
            Self::Standing { .. } | Self::Spot { .. } | Self::Flexible { .. } => true,
        }
    }

    /// The way in a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::OnDemand {} => "on demand",
            Self::Standing { .. } => "standing",
            Self::Spot { .. } => "spot",
            Self::Reserved { .. } => "reserved",
            Self::Flexible { .. } => "flexible",
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
            Self::Spot { notice_ms, expires_ms } => {
                expires_ms.map_or(Ok(()), |expires_ms| within("expires_ms", expires_ms, now_ms + 1))?;
                if !(LEAST_NOTICE_MS..=MOST_NOTICE_MS).contains(&notice_ms) {
                    let limit = format!("{LEAST_NOTICE_MS} to {MOST_NOTICE_MS}");
                    return Err(Refusal::out_of_range("notice_ms", notice_ms, limit));
                }
                capped(request)
            }
            Self::Reserved { starts_ms } => within("starts_ms", starts_ms, now_ms + 1),
            Self::Flexible { deadline_ms } => {
                let least_ms = now_ms.saturating_add(request.duration_ms).saturating_add(SLACK_MS);
                within("deadline_ms", deadline_ms, least_ms)?;
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
            let limit = "the most that all members may cost an hour (--max-price, or --bid), for an order whose price floats";
            Err(Refusal::out_of_range("max_rate", "missing", limit))
        }
    }
}
