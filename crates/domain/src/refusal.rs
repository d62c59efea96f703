//! Every way to say no, by name, with the numbers and the smallest change that would help.

use serde::{Deserialize, Serialize};

use crate::id::{DeviceId, KeyId, LeaseId, OrderId, TransferId};
use crate::ledger::AccountKey;
use crate::market::place::Shortfall;
use crate::money::Asset;
use crate::order::{Move, Stage};

/// Why a command was not carried out. A refused command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each message names its fields")]
pub enum Refusal {
    /// The text is no amount of the asset.
    #[error("'{text}' is not an amount; write digits with at most {decimals} after the point")]
    NotAnAmount { text: String, decimals: u32 },
    /// No such asset.
    #[error("'{text}' is not an asset; use IO, IOSD or USDC")]
    NotAnAsset { text: String },
    /// Amount zero, two assets, or both sides the same.
    #[error(
        "transfer {id} is malformed: it needs an amount above zero and two different accounts of one asset"
    )]
    BadTransfer { id: TransferId },
    /// The id was used before: the transfer was already made.
    #[error("transfer {id} exists already; nothing was moved twice")]
    TransferExists { id: TransferId },
    /// Not held, or held with other accounts or another amount.
    #[error("no such amount is held under transfer {id}")]
    NotHeld { id: TransferId },
    /// The account has less than is needed.
    #[error("{account} has {} and {} is needed; add {}", asset.show(*available), asset.show(*needed),
        asset.show(needed.saturating_sub(*available)))]
    InsufficientFunds { account: AccountKey, available: u64, needed: u64, asset: Asset },
    /// An API key would go over its cap.
    #[error("API key {key} may spend {} in all, {} is committed and {} is asked for; raise its cap by {}",
        Asset::Iosd.show(*cap_micro_usd), Asset::Iosd.show(*spent_micro_usd), Asset::Iosd.show(*needed_micro_usd),
        Asset::Iosd.show((spent_micro_usd + needed_micro_usd).saturating_sub(*cap_micro_usd)))]
    KeyOverCap { key: KeyId, cap_micro_usd: u64, spent_micro_usd: u64, needed_micro_usd: u64 },
    /// The key is unknown, revoked or expired.
    #[error("API key {key} is {state}; make a new one with 'ionet login --new-key'")]
    KeyUnusable { key: KeyId, state: String },
    /// Somebody without the right to it.
    #[error("{who} may not {what}; it takes {takes}")]
    NotAllowed { who: String, what: String, takes: String },
    /// A value outside its limits.
    #[error("{field} is {value}; it must be {limit}")]
    OutOfRange { field: String, value: String, limit: String },
    /// An engine or box that is planned but not here.
    #[error("{what} is not available: {reason}; available now: {available}")]
    Unsupported { what: String, reason: String, available: String },
    /// The quote's minute is over.
    #[error("the quote expired {ago_ms} ms ago; ask for a new one, prices may have moved")]
    QuoteExpired { ago_ms: u64 },
    /// A quote made for somebody else.
    #[error("this quote was made for another account; ask for one of your own")]
    QuoteNotYours,
    /// Nothing fits all that was asked.
    #[error("{0}")]
    NoCapacity(Shortfall),
    /// A price above the renter's own cap.
    #[error("the cheapest fit costs {rate_micro_usd_per_hour} micro-USD an hour and the cap is {cap_micro_usd_per_hour}; raise the cap by {}",
        rate_micro_usd_per_hour - cap_micro_usd_per_hour)]
    OverPriceCap { rate_micro_usd_per_hour: u64, cap_micro_usd_per_hour: u64 },
    /// A price above the renter's own cap on the whole.
    #[error("the cheapest fit costs {} in all and the cap is {}; raise it, or ask for less time",
        Asset::Iosd.show(*total_micro_usd), Asset::Iosd.show(*cap_micro_usd))]
    OverTotalCap { total_micro_usd: u64, cap_micro_usd: u64 },
    /// No such order.
    #[error(
        "there is no cluster {order} in the live state; ended ones are in the journal ('ionet journal show {order}')"
    )]
    UnknownOrder { order: OrderId },
    /// An id that was used before.
    #[error("{what} exists already")]
    Exists { what: String },
    /// No such lease.
    #[error("there is no lease {lease}")]
    UnknownLease { lease: LeaseId },
    /// No such device.
    #[error("there is no device {device}; 'ionet devices' lists them")]
    UnknownDevice { device: DeviceId },
    /// A move that the stage does not allow.
    #[error("cluster {order} is {stage}, which does not allow '{wanted}'")]
    WrongStage { order: OrderId, stage: Stage, wanted: Move },
    /// A device in a stage that does not allow it.
    #[error("device {device} is {stage}, which does not allow '{wanted}'")]
    WrongDeviceStage { device: DeviceId, stage: String, wanted: String },
    /// A step that is not due yet.
    #[error("{what} is not due for another {in_ms} ms")]
    NotYet { what: String, in_ms: u64 },
    /// Nothing to do: the state is already as asked.
    #[error("{what}: already so")]
    NoChange { what: String },
    /// A command id whose time is too far from now to be remembered.
    #[error(
        "the id's time is {age_ms} ms away from now and at most {limit_ms} ms is remembered; check the clock and send it under a new id"
    )]
    StaleId { age_ms: u64, limit_ms: u64 },
    /// The first event of a journal is its genesis; there is only one.
    #[error("the network is founded already")]
    Founded,
}

impl Refusal {
    /// The stable name of this refusal, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAnAmount { .. } => "not_an_amount",
            Self::NotAnAsset { .. } => "not_an_asset",
            Self::BadTransfer { .. } => "bad_transfer",
            Self::TransferExists { .. } => "transfer_exists",
            Self::NotHeld { .. } => "not_held",
            Self::InsufficientFunds { .. } => "insufficient_funds",
            Self::KeyOverCap { .. } => "key_over_cap",
            Self::KeyUnusable { .. } => "key_unusable",
            Self::NotAllowed { .. } => "not_allowed",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Unsupported { .. } => "unsupported",
            Self::QuoteExpired { .. } => "quote_expired",
            Self::QuoteNotYours => "quote_not_yours",
            Self::NoCapacity(_) => "no_capacity",
            Self::OverPriceCap { .. } => "over_price_cap",
            Self::OverTotalCap { .. } => "over_total_cap",
            Self::UnknownOrder { .. } => "unknown_order",
            Self::Exists { .. } => "exists",
            Self::UnknownLease { .. } => "unknown_lease",
            Self::UnknownDevice { .. } => "unknown_device",
            Self::WrongStage { .. } => "wrong_stage",
            Self::WrongDeviceStage { .. } => "wrong_device_stage",
            Self::NotYet { .. } => "not_yet",
            Self::NoChange { .. } => "no_change",
            Self::StaleId { .. } => "stale_id",
            Self::Founded => "founded",
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers hand over temporaries")]
    pub(crate) fn out_of_range(field: &str, value: impl ToString, limit: impl ToString) -> Self {
        Self::OutOfRange { field: field.into(), value: value.to_string(), limit: limit.to_string() }
    }
}
