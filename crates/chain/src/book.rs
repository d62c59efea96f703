//! What has gone in and out, as both kinds of local token ledger keep it.

use std::collections::BTreeMap;

use ionet_domain::money::Asset;
use ionet_domain::{Address, PayoutId};

use crate::{ChainError, Deposit};

#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) deposits: Vec<Deposit>,
    pub(crate) payouts: BTreeMap<PayoutId, (Address, Asset, u64)>,
}

impl Book {
    /// The number of the deposit that comes next.
    pub(crate) fn next(&self) -> u64 {
        self.deposits.len() as u64 + 1
    }

    pub(crate) fn after(&self, cursor: u64) -> Vec<Deposit> {
        self.deposits.iter().filter(|deposit| deposit.n > cursor).cloned().collect()
    }

    /// What was paid under this id, if it was; to somebody else or in something else it is a conflict.
    pub(crate) fn made(
        &self,
        payout: PayoutId,
        to: Address,
        asset: Asset,
    ) -> Result<Option<u64>, ChainError> {
        match self.payouts.get(&payout) {
            None => Ok(None),
            Some((account, what, amount)) if (*account, *what) == (to, asset) => Ok(Some(*amount)),
            Some(_) => Err(ChainError::Conflict { payout }),
        }
    }
}
