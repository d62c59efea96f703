//! What becomes of an order's size and time while it runs: which of its leases were let go, how much of its time is over, what
//! went back before its end.
//!
//! An order's time is counted from when it ran first and stands still while it is paused; `from_ms` of a quote's item and
//! `time_ms` of a past one are on that clock. Always holds: an order's total covers all that its leases, past ones included, can
//! be charged for; so what the total falls by can go back at once. Not here: who may ask for what (`size`, `pause`).

use serde::{Deserialize, Serialize};

use super::Order;
use crate::id::{TransferId, TransferKind};
use crate::ledger::{AccountKey, Owner, Step, Transfer};

/// Why a lease was let go while its order lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseReason {
    /// The order has fewer members now.
    Shrunk,
    /// The order is paused.
    Paused,
    /// It ailed, and another takes its place.
    Ailing,
}

/// That a lease is no member any more. It keeps what it holds of its device until its box is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Released {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// It is not charged for any time after this. The same, unless the server's clock was put back and more was charged before.
    pub charged_until_ms: u64,
    /// Why.
    pub why: ReleaseReason,
}

/// A pause that goes on, or that the order is about to come out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Since when.
    pub since_ms: u64,
    /// Then the order is closed and gives back.
    pub until_ms: u64,
}

/// What became of an order's size and time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Course {
    /// How much of its time was over before it ran last.
    #[serde(skip_serializing_if = "is_default")]
    pub ran_ms: u64,
    /// The number of the first lease of its present run.
    #[serde(skip_serializing_if = "is_default")]
    pub run_first: u32,
    /// Its pause, until it runs again.
    #[serde(skip_serializing_if = "is_default")]
    pub pause: Option<Pause>,
    /// Pauses so far.
    #[serde(skip_serializing_if = "is_default")]
    pub pauses: u32,
    /// It is growing: members from this slot on are being added.
    #[serde(skip_serializing_if = "is_default")]
    pub growth: Option<u32>,
    /// When its size changed last, in milliseconds since 1970; 0 if it never did.
    #[serde(skip_serializing_if = "is_default")]
    pub sized_ms: u64,
    /// With how many members it was accepted, if it has another number since.
    #[serde(skip_serializing_if = "is_default")]
    pub accepted_members: Option<u32>,
    /// Times that money went back so far.
    #[serde(skip_serializing_if = "is_default")]
    pub refunds: u32,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Course {
    /// Whether nothing of it happened.
    pub fn is_none(&self) -> bool {
        is_default(self)
    }
}

impl Order {
    /// With how many members it was accepted.
    pub fn accepted_members(&self) -> u32 {
        self.course.accepted_members.unwrap_or(self.quote.request.members)
    }

    /// How much of its time is over at `now_ms`: by the clock, or by what was charged if the clock was put back since.
    pub fn over_ms(&self, now_ms: u64) -> u64 {
        let Some(since_ms) = self.running_since_ms else { return self.course.ran_ms };
        let of_this_run = self.leases.range(self.course.run_first..).map(|(_, lease)| lease);
        let charged = of_this_run.filter_map(|lease| {
            Some(lease.charging_since_ms?.saturating_sub(since_ms).saturating_add(lease.elapsed_ms))
        });
        let run_ms = charged.fold(now_ms.saturating_sub(since_ms), u64::max);
        self.course.ran_ms.saturating_add(run_ms).min(self.quote.request.duration_ms)
    }

    /// How much of its time is left at `now_ms`.
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        self.quote.request.duration_ms.saturating_sub(self.over_ms(now_ms))
    }

    /// The moment, in milliseconds since 1970, at which so much of its time is over in its present run.
    pub fn moment_ms(&self, over_ms: u64) -> Option<u64> {
        Some(self.running_since_ms?.saturating_add(over_ms.saturating_sub(self.course.ran_ms)))
    }
}

/// Back to the renter from the order's own account; `None` if it is nothing.
pub(super) fn give_back(order: &Order, amount: u64) -> Option<Transfer> {
    let purse = order.purse();
    let n = order.course.refunds.into();
    let refund = Transfer {
        id: TransferId { scope: order.id.bits(), kind: TransferKind::Refund, n },
        step: Step::Post,
        debit: purse,
        credit: AccountKey { owner: Owner::Wallet(order.account), asset: purse.asset },
        amount,
    };
    (amount > 0).then_some(refund)
}
