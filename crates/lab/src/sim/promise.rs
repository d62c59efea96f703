//! What is promised, by name: every checker breaks exactly one of these.

use crate::{LabError, Result};

macro_rules! promises {
    ($($(#[doc = $text:literal])+ $name:ident = $word:literal,)+) => {
        /// A promise that a checker watches.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Promise {
            $($(#[doc = $text])+ $name,)+
        }

        impl Promise {
            /// Every promise.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its stable name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// What is promised, in words.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($text),+).trim_ascii(),)+
                }
            }
        }
    };
}

promises! {
    /// For every asset all accounts add up to zero and only the outside world owes, and the operator for losses.
    MoneyConserved = "money_conserved",
    /// A charge is exactly rate x time with both fees rounded down, to the lease's own supplier.
    ChargeExact = "charge_exact",
    /// Nothing is charged that the lease's own supervisor did not sign for.
    ChargeReceipted = "charge_receipted",
    /// What is set aside is the quoted price, and no bill exceeds it.
    WithinQuote = "within_quote",
    /// A member that is let go, by shrinking or by a pause, is charged for nothing after that.
    LeaversFree = "leavers_free",
    /// A bill and its refund are what was set aside, and a settled order's account is empty.
    BillAddsUp = "bill_adds_up",
    /// An order is taken in at the price that was quoted, while the quote was good.
    QuoteKept = "quote_kept",
    /// What came in and went out on the chain is in the books once.
    ChainOnce = "chain_once",
    /// No unit of a device is in two leases, and what an order held is free once it settled.
    UnitsOnce = "units_once",
    /// The boxes that really run on a machine fit in what it offers.
    RealCapacity = "real_capacity",
    /// No box runs on for long that nobody pays for.
    BoxHasLease = "box_has_lease",
    /// No lease is paid for long without its box.
    LeaseHasBox = "lease_has_box",
    /// A lease's box is started once, on its own device.
    OneBox = "one_box",
    /// Paid work is never ended because it was silent or not known.
    WorkKept = "work_kept",
    /// A device follows what it was told, in the order of generations.
    NewestWish = "newest_wish",
    /// A box may reach what its renter said last, and nothing else.
    EgressFollowed = "egress_followed",
    /// Every order ends once faults stop.
    OrdersEnd = "orders_end",
    /// Without faults nothing is lost and nothing is late.
    Calm = "calm",
    /// One command id has one effect.
    OneEffect = "one_effect",
    /// One wish of a renter, however often asked for, becomes one order.
    OneOrder = "one_order",
    /// A request is answered once, with what really happened.
    AnsweredOnce = "answered_once",
    /// What was answered is in the journal after any crash.
    AnswerDurable = "answer_durable",
    /// What was published is in the journal after any crash, unchanged.
    PublishedDurable = "published_durable",
    /// Records are published one by one, in order.
    PublishedInOrder = "published_in_order",
    /// The journal folds, and to the state that the server has, byte for byte.
    JournalFolds = "journal_folds",
    /// A start from any snapshot gives the same state as the whole journal, byte for byte.
    SnapshotFolds = "snapshot_folds",
    /// The public part alone verifies and keeps the same books.
    PublicFolds = "public_folds",
    /// The server starts again after any crash; only damage keeps it from it.
    Restarts = "restarts",
    /// Damage is refused or passed over, never believed.
    DamageRefused = "damage_refused",
    /// Reasons that are given are true.
    ReasonsTrue = "reasons_true",
    /// Only devices that are what they claim are in the pool.
    PoolHonest = "pool_honest",
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a checker says when it finds something.
pub(super) fn broken<T>(promise: Promise, what: impl Into<String>) -> Result<T> {
    Err(LabError::Promise { promise, what: what.into() })
}

/// The same, unless `is`.
pub(super) fn must(is: bool, promise: Promise, what: impl FnOnce() -> String) -> Result<()> {
    if is { Ok(()) } else { broken(promise, what()) }
}
