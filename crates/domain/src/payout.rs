//! Payouts: once an epoch, what a supplier has earned goes to the wallet on the chain.
//!
//! The amount is held first, paid outside under an id derived from epoch and account, and posted when the
//! chain confirms; so a crash at any point pays once. The chain is believed on what it paid: books that were put back to
//! an old backup may ask under the same id for another amount, which then counts as what was paid.

use serde::{Deserialize, Serialize};

use crate::event::PublicBody;
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

/// What follows when the chain says that `amount` went out under this payout's id.
///
/// If it is not the amount that was on its way, that amount is given back and what went out is taken from the
/// supplier's earnings, as far as they go. What is left of them waits for the next epoch; what went out beyond them
/// is the network's loss.
pub fn confirm(
    state: &State,
    id: PayoutId,
    payout: &Payout,
    amount: u64,
    reference: &str,
) -> Result<PublicBody, Refusal> {
    let (held, reference) = (payout.transfer, reference.to_owned());
    if amount == held.amount {
        let transfer = Transfer { step: Step::PostHeld, ..held };
        return Ok(PublicBody::PayoutPaid { payout: id, transfer, reference });
    }
    let owed = held.amount + state.ledger.balance(held.debit.owner, held.debit.asset).available();
    let earned = amount.min(owed);
    let out = |n, owner, amount| Transfer {
        id: TransferId { n, ..held.id },
        step: Step::Post,
        debit: AccountKey { owner, ..held.debit },
        credit: held.credit,
        amount,
    };
    let out = [out(1, held.debit.owner, earned), out(2, Owner::Losses, amount - earned)];
    let back = Transfer { step: Step::VoidHeld, ..held };
    let transfers = std::iter::once(back).chain(out.into_iter().filter(|transfer| transfer.amount > 0));
    let transfers: Vec<_> = transfers.collect();
    state.ledger.check(&transfers)?;
    let account = payout.account;
    let orders = match amount {
        _ if amount >= owed => settled_with(state, account),
        _ if amount > held.amount => payout.orders.clone(),
        _ => Vec::new(),
    };
    Ok(PublicBody::PayoutAdopted { payout: id, account, transfers, orders, reference })
}

fn settled_with(state: &State, account: Address) -> Vec<OrderId> {
    let waits = state.orders.values().filter(|o| o.stage == Stage::Settled && o.unpaid.contains(&account));
    waits.map(|order| order.id).collect()
}
