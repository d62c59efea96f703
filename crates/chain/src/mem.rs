//! The lab's chain: in memory, and it can refuse, or pay and then not answer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ionet_domain::money::Asset;
use ionet_domain::{Address, PayoutId};

use crate::book::Book;
use crate::{Chain, ChainError, Deposit, Paid};

/// What happens to a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayFault {
    /// Refused; nothing is paid.
    Refuse,
    /// Nothing is paid and no answer comes.
    TimeoutBefore,
    /// Paid, and no answer comes.
    TimeoutAfter,
}

#[derive(Debug, Default)]
struct Ledger {
    book: Book,
    faults: VecDeque<PayFault>,
}

/// A chain in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemChain(Arc<Mutex<Ledger>>);

impl MemChain {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets tokens arrive for an account.
    pub fn fund(&self, account: Address, asset: Asset, amount: u64, now_ms: u64) {
        let book = &mut self.ledger().book;
        let n = book.next();
        let reference = format!("mem:{n}");
        book.deposits.push(Deposit { n, at_ms: now_ms, reference, account, asset, amount });
    }

    /// What happens to the next payment that has nothing planned yet.
    pub fn plan(&self, fault: PayFault) {
        self.ledger().faults.push_back(fault);
    }

    /// Every payment made, by its id.
    pub fn payouts(&self) -> BTreeMap<PayoutId, (Address, Asset, u64)> {
        self.ledger().book.payouts.clone()
    }
}

impl Chain for MemChain {
    fn pay(&mut self, payout: PayoutId, to: Address, asset: Asset, amount: u64) -> Result<Paid, ChainError> {
        let mut ledger = self.ledger();
        let fault = ledger.faults.pop_front();
        match fault {
            Some(PayFault::Refuse) => return Err(ChainError::Refused { reason: "as planned".into() }),
            Some(PayFault::TimeoutBefore) => return Err(ChainError::Timeout),
            _ => {}
        }
        let amount = ledger.book.made(payout, to, asset)?.unwrap_or(amount);
        ledger.book.payouts.insert(payout, (to, asset, amount));
        if fault == Some(PayFault::TimeoutAfter) {
            return Err(ChainError::Timeout);
        }
        Ok(Paid { reference: format!("mem:{payout}"), amount })
    }

    fn deposits_after(&mut self, cursor: u64) -> Result<Vec<Deposit>, ChainError> {
        Ok(self.ledger().book.after(cursor))
    }
}
