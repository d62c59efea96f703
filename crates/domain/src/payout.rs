//! Payouts: once an epoch, what a supplier has earned goes to the wallet on the chain.
//!
//! The amount is held first, paid outside under an id derived from epoch and account, and posted when the
//! chain confirms; so a crash at any point pays once.

use serde::{Deserialize, Serialize};

use crate::id::{Address, OrderId, PayoutId, TransferId, TransferKind};
use crate::ledger::{AccountKey, Owner, Step, Transfer};
use crate::money::Asset;
use crate::order::Stage;
use crate::refusal::Refusal;
use crate::state::State;

/// A payment under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payout {
    /// Who is paid.
    pub account: Address,
    /// The held transfer.
    pub transfer: Transfer,
    /// Settled orders whose earnings are in it.
    pub orders: Vec<OrderId>,
}

/// The payout of an account in an epoch: always the same id, whoever asks.
pub fn payout_id(epoch_start_ms: u64, account: Address) -> PayoutId {
    let mut first = [0u8; 16];
    first[6..].copy_from_slice(&account.0[..10]);
    PayoutId::from_parts(epoch_start_ms, u128::from_be_bytes(first))
}

/// The start of the epoch that `now_ms` is in.
pub fn epoch_start_ms(epoch_ms: u64, now_ms: u64) -> u64 {
    now_ms - now_ms % epoch_ms.max(1)
}

/// Opens the payout of everything that `account` has earned until this epoch began.
pub fn open(state: &State, account: Address, now_ms: u64) -> Result<(PayoutId, Payout), Refusal> {
    let id = payout_id(epoch_start_ms(state.params.epoch_ms, now_ms), account);
    let transfer_id = TransferId { scope: id.bits(), kind: TransferKind::Payout, n: 0 };
    if state.payouts.contains_key(&id) || state.ledger.exists(transfer_id) {
        return Err(Refusal::Exists { what: id.to_string() });
    }
    let debit = AccountKey { owner: Owner::Earned(account), asset: Asset::Iosd };
    let amount = state.ledger.balance(debit.owner, debit.asset).available();
    if amount == 0 {
        return Err(Refusal::NoChange { what: format!("{account} has nothing to be paid") });
    }
    let credit = AccountKey { owner: Owner::World, asset: Asset::Iosd };
    let transfer = Transfer { id: transfer_id, step: Step::Hold, debit, credit, amount };
    state.ledger.check(&[transfer])?;
    Ok((id, Payout { account, transfer, orders: settled_with(state, account) }))
}

fn settled_with(state: &State, account: Address) -> Vec<OrderId> {
    let waits = state.orders.values().filter(|o| o.stage == Stage::Settled && o.unpaid.contains(&account));
    waits.map(|order| order.id).collect()
}
