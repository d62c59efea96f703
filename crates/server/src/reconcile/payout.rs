//! Suppliers are paid: at most once an epoch each, in its first tenth, or later when a settled order waits for it.

use std::collections::BTreeSet;

use ionet_domain::command::CommandBody;
use ionet_domain::ledger::Owner;
use ionet_domain::money::Asset;
use ionet_domain::payout::{epoch_start_ms, payout_id};
use ionet_domain::{Address, Stage, TransferId, id::TransferKind};

use super::{Act, Todo, command, in_stage};
use crate::view::View;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let opened = due(view, now_ms).into_iter().map(|account| command(CommandBody::OpenPayout { account }));
    let asked_again = |payout| view.fleet.payments.get(payout).is_none_or(|at_ms| *at_ms <= now_ms);
    let unpaid = view.state.payouts.iter().filter(|(payout, _)| asked_again(payout));
    let paid = unpaid.map(|(payout, content)| {
        let (account, amount) = (content.account, content.transfer.amount);
        Todo::Act(Act::Pay { payout: *payout, account, asset: content.transfer.debit.asset, amount })
    });
    opened.chain(paid).collect()
}

fn due(view: &View, now_ms: u64) -> Vec<Address> {
    let state = &view.state;
    let epoch_ms = epoch_start_ms(state.params.epoch_ms, now_ms);
    let waited_for: BTreeSet<_> = in_stage(view, Stage::Settled).flat_map(|order| &order.unpaid).collect();
    let early = now_ms - epoch_ms < state.params.epoch_ms / 10;
    let may = |account: &Address| {
        let payout = payout_id(epoch_ms, *account);
        let transfer = TransferId { scope: payout.bits(), kind: TransferKind::Payout, n: 0 };
        (early || waited_for.contains(account)) && !state.ledger.exists(transfer)
    };
    let earned = state.ledger.balances().filter_map(|(key, balance)| match key.owner {
        Owner::Earned(account) if key.asset == Asset::Iosd && balance.available() > 0 => Some(account),
        _ => None,
    });
    earned.filter(may).collect()
}
