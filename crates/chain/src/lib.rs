//! The chain: where deposits come from and payouts go to.
//!
//! [`Chain`] is the seam; [`LocalChain`] is a token ledger in a file for local networks and [`MemChain`] the lab's
//! twin with faults.
//!
//! Always holds: a payment is made once for each [`PayoutId`], however often and for however much it is asked for;
//! deposits are numbered from 1 without gaps and never change. Not here: Solana (not built yet); why money moves (`ionet-domain`).

mod book;
mod local;
mod mem;

use ionet_domain::id::{TransferId, TransferKind};
use ionet_domain::money::Asset;
use ionet_domain::{Address, OrderId, PayoutId};
use serde::{Deserialize, Serialize};

pub use local::LocalChain;
pub use mem::{MemChain, PayFault};

/// Why the chain did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The ledger file could not be read or written.
    #[error("cannot {action} the local token ledger {path}; check the disk and its rights")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: String,
        /// The cause from the system.
        source: std::io::Error,
    },
    /// A line of the ledger file is not what was written.
    #[error("line {line} of the local token ledger {path} is damaged; restore the file from a copy")]
    Damaged {
        /// Which line, from 1.
        line: usize,
        /// Which file.
        path: String,
    },
    /// The same payout was made to somebody else, or in another asset.
    #[error("payout {payout} was made before to another account or in another asset; nothing was paid")]
    Conflict {
        /// Which payout.
        payout: PayoutId,
    },
    /// No answer came: the payment was made or not. Asking again under the same id is safe.
    #[error("the chain did not answer in time; it is safe to ask again")]
    Timeout,
    /// The chain said no; nothing was paid.
    #[error("the chain refused: {reason}; nothing was paid")]
    Refused {
        /// Why, in words.
        reason: String,
    },
}

impl ChainError {
    /// The stable name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "chain_io",
            Self::Damaged { .. } => "chain_damaged",
            Self::Conflict { .. } => "chain_conflict",
            Self::Timeout => "chain_timeout",
            Self::Refused { .. } => "chain_refused",
        }
    }
}

/// Tokens that arrived for an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deposit {
    /// Its number on this chain, from 1 without gaps.
    pub n: u64,
    /// When it was seen, in milliseconds since 1970.
    pub at_ms: u64,
    /// The chain's own name for it.
    pub reference: String,
    /// For whom.
    pub account: Address,
    /// What.
    pub asset: Asset,
    /// In minor units.
    pub amount: u64,
}

impl Deposit {
    /// The transfer that credits it: always the same id for the same deposit.
    pub fn transfer_id(&self) -> TransferId {
        let scope = OrderId::from_parts(self.at_ms, u128::from(self.n)).bits();
        TransferId { scope, kind: TransferKind::Deposit, n: self.n }
    }
}

/// A payment as the chain has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paid {
    /// The chain's own name for it.
    pub reference: String,
    /// How much went out under the payout's id, in minor units.
    pub amount: u64,
}

/// A chain that tokens can be paid out on and are seen arriving from. Calls may block.
pub trait Chain {
    /// Pays, unless a payment was made under this id before, and answers with the payment that the chain has. Asking again
    /// pays nothing. The amount is another than was asked for if the first one was, which happens when the books were put
    /// back to an old backup.
    ///
    /// # Errors
    /// After [`ChainError::Timeout`] it may have been paid: ask again under the same id.
    fn pay(&mut self, payout: PayoutId, to: Address, asset: Asset, amount: u64) -> Result<Paid, ChainError>;

    /// Deposits with numbers above `cursor`, oldest first.
    fn deposits_after(&mut self, cursor: u64) -> Result<Vec<Deposit>, ChainError>;
}
