//! The double-entry ledger: immutable transfers between accounts, posted at once or held and then posted or
//! voided; linked transfers go all or none.
//!
//! Always holds: for every asset the balances of all accounts add up to zero; only [`Owner::World`] and
//! [`Owner::Losses`] may owe;
//! a transfer's id is used once. Not here: why money moves (`order`, `meter`, `payout`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{Address, OrderId, ParseIdError, TransferId, serde_as_text};
use crate::money::Asset;
use crate::refusal::Refusal;

/// Who holds an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Everything outside: the chain that deposits come from and payouts go to. It may owe.
    World,
    /// What an account may spend here.
    Wallet(Address),
    /// An order's own money; it cannot go below zero, so no charge can exceed the quote.
    Order(OrderId),
    /// What a supplier has earned and was not yet paid.
    Earned(Address),
    /// The network's fees.
    Fees,
    /// What went out on the chain and is owed to nobody by the books, because they were put back to an old backup. It
    /// only ever owes: the operator has to make it good.
    Losses,
}

impl Owner {
    fn may_owe(self) -> bool {
        matches!(self, Self::World | Self::Losses)
    }
}

/// One account: an owner's holding of one asset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountKey {
    /// Who holds it.
    pub owner: Owner,
    /// What is held.
    pub asset: Asset,
}

impl fmt::Display for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner {
            Owner::World => f.write_str("world")?,
            Owner::Wallet(address) => write!(f, "wallet:{address}")?,
            Owner::Order(order) => write!(f, "order:{order}")?,
            Owner::Earned(address) => write!(f, "earned:{address}")?,
            Owner::Fees => f.write_str("fees")?,
            Owner::Losses => f.write_str("losses")?,
        }
        write!(f, ":{}", self.asset)
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AccountKey {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError {
            text: text.chars().take(80).collect(),
            kind: "ledger account",
            expected: "owner[:id]:ASSET",
        };
        let (owner, asset) = text.rsplit_once(':').ok_or_else(wrong)?;
        let owner = match owner.split_once(':') {
            None if owner == "world" => Owner::World,
            None if owner == "fees" => Owner::Fees,
            None if owner == "losses" => Owner::Losses,
            Some(("wallet", id)) => Owner::Wallet(id.parse()?),
            Some(("order", id)) => Owner::Order(id.parse()?),
            Some(("earned", id)) => Owner::Earned(id.parse()?),
            _ => return Err(wrong()),
        };
        Ok(Self { owner, asset: asset.parse().map_err(|_| wrong())? })
    }
}

serde_as_text!(AccountKey);

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Moves the money at once.
    Post,
    /// Sets it aside until it is posted or voided.
    Hold,
    /// Moves what the transfer of the same id held.
    PostHeld,
    /// Gives back what the transfer of the same id held.
    VoidHeld,
}

/// A move of money. Immutable once in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Made by the caller; used once (a held transfer's second step carries the same id).
    pub id: TransferId,
    /// What it does.
    pub step: Step,
    /// Whose balance falls.
    pub debit: AccountKey,
    /// Whose balance rises.
    pub credit: AccountKey,
    /// Minor units of the accounts' asset; never zero.
    pub amount: u64,
}

/// Totals of one account in minor units. They only grow, so they can be audited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// Everything that ever came in.
    pub credits: u64,
    /// Everything that ever went out.
    pub debits: u64,
    /// Set aside to come in.
    pub credits_held: u64,
    /// Set aside to go out.
    pub debits_held: u64,
}

impl Balance {
    /// What can be spent now; zero for an account that owes.
    pub fn available(&self) -> u64 {
        self.credits.saturating_sub(self.debits).saturating_sub(self.debits_held)
    }

    fn nothing_left(&self) -> bool {
        self.credits == self.debits && self.credits_held == 0 && self.debits_held == 0
    }
}

/// All accounts, the held transfers and the ids already used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    balances: BTreeMap<AccountKey, Balance>,
    held: BTreeMap<TransferId, Transfer>,
    used: BTreeSet<TransferId>,
}

/// The balances that a run of linked transfers would change, over an untouched ledger. Runs are short, so plain
/// lists beat maps; this is the hottest path of the engine.
struct Draft<'a> {
    ledger: &'a Ledger,
    balances: Vec<(AccountKey, Balance)>,
    held: Vec<(TransferId, Option<Transfer>)>,
    used: Vec<TransferId>,
}

impl Ledger {
    /// An account's totals; all zero if it was never used.
    pub fn balance(&self, owner: Owner, asset: Asset) -> Balance {
        self.balances.get(&AccountKey { owner, asset }).copied().unwrap_or_default()
    }

    /// Every account ever used and not forgotten, in order.
    pub fn balances(&self) -> impl Iterator<Item = (&AccountKey, &Balance)> {
        self.balances.iter()
    }

    /// Whether a transfer of this id was made (within what is remembered).
    pub fn exists(&self, id: TransferId) -> bool {
        self.used.contains(&id)
    }

    /// Whether all of `transfers`, in turn, are allowed. Changes nothing.
    pub fn check(&self, transfers: &[Transfer]) -> Result<(), Refusal> {
        self.draft(transfers).map(|_| ())
    }

    /// Makes all of `transfers` or none.
    pub fn post(&mut self, transfers: &[Transfer]) -> Result<(), Refusal> {
        let Draft { balances, held, used, .. } = self.draft(transfers)?;
        self.balances.extend(balances);
        self.used.extend(used);
        for (id, transfer) in held {
            match transfer {
                Some(transfer) => self.held.insert(id, transfer),
                None => self.held.remove(&id),
            };
        }
        Ok(())
    }

    fn draft(&self, transfers: &[Transfer]) -> Result<Draft<'_>, Refusal> {
        let balances = Vec::with_capacity(transfers.len().min(4) * 2);
        let mut draft = Draft { ledger: self, balances, held: Vec::new(), used: Vec::new() };
        transfers.iter().try_for_each(|transfer| draft.add(transfer))?;
        Ok(draft)
    }

    /// For every asset the sum over all accounts, which must be zero.
    pub fn sums(&self) -> BTreeMap<Asset, i128> {
        let mut sums = BTreeMap::new();
        for (key, balance) in &self.balances {
            *sums.entry(key.asset).or_insert(0) += i128::from(balance.credits) - i128::from(balance.debits);
        }
        sums
    }

    /// The first account that may not owe and whose balance is below zero. There must be none.
    pub fn overdrawn(&self) -> Option<AccountKey> {
        self.balances
            .iter()
            .find(|(key, b)| !key.owner.may_owe() && b.debits.saturating_add(b.debits_held) > b.credits)
            .map(|(key, _)| *key)
    }

    /// Forgets an emptied account; its history stays in the journal. Its credits equal its debits, so every sum stays.
    pub fn forget_account(&mut self, owner: Owner) {
        for asset in [Asset::Io, Asset::Iosd, Asset::Usdc] {
            let key = AccountKey { owner, asset };
            if self.balances.get(&key).is_some_and(Balance::nothing_left) {
                self.balances.remove(&key);
            }
        }
    }

    /// Forgets that the ids of one scope were used, once nothing can ask for them again.
    pub fn forget_scope(&mut self, scope: u128) {
        let first = TransferId { scope, kind: crate::id::TransferKind::Deposit, n: 0 };
        let last = TransferId { scope, kind: crate::id::TransferKind::Payout, n: u64::MAX };
        let ids: Vec<_> = self.used.range(first..=last).copied().collect();
        for id in ids {
            self.used.remove(&id);
        }
    }

    /// Forgets the ids of deposits, sends and payouts that were made before `at_ms`; older ones are refused by age.
    pub fn forget_before(&mut self, at_ms: u64) {
        let (held, first_kept) = (&self.held, u128::from(at_ms) << 80);
        let kept = self.used.split_off(&TransferId {
            scope: first_kept,
            kind: crate::id::TransferKind::Deposit,
            n: 0,
        });
        let old = std::mem::replace(&mut self.used, kept);
        let wanted = old.into_iter().filter(|id| held.contains_key(id) || id.belongs_to_order());
        self.used.extend(wanted);
    }
}

impl TransferId {
    fn belongs_to_order(self) -> bool {
        use crate::id::TransferKind as K;
        matches!(self.kind, K::Escrow | K::Charge | K::Fee | K::Refund)
    }
}

impl Draft<'_> {
    fn balance(&mut self, key: AccountKey) -> &mut Balance {
        let drafted = self.balances.iter().position(|(drafted, _)| *drafted == key);
        let at = drafted.unwrap_or_else(|| {
            let balance = self.ledger.balances.get(&key).copied().unwrap_or_default();
            self.balances.push((key, balance));
            self.balances.len() - 1
        });
        &mut self.balances[at].1
    }

    fn add(&mut self, transfer: &Transfer) -> Result<(), Refusal> {
        if transfer.amount == 0
            || transfer.debit.asset != transfer.credit.asset
            || transfer.debit == transfer.credit
        {
            return Err(Refusal::BadTransfer { id: transfer.id });
        }
        match transfer.step {
            Step::Post | Step::Hold => self.open(transfer),
            Step::PostHeld | Step::VoidHeld => self.finish(transfer),
        }
    }

    fn open(&mut self, transfer: &Transfer) -> Result<(), Refusal> {
        if self.used.contains(&transfer.id) || self.ledger.exists(transfer.id) {
            return Err(Refusal::TransferExists { id: transfer.id });
        }
        self.used.push(transfer.id);
        let available = self.balance(transfer.debit).available();
        if !transfer.debit.owner.may_owe() && available < transfer.amount {
            return Err(Refusal::InsufficientFunds {
                account: transfer.debit,
                available,
                needed: transfer.amount,
                asset: transfer.debit.asset,
            });
        }
        let held = transfer.step == Step::Hold;
        let debit = self.balance(transfer.debit);
        grow(if held { &mut debit.debits_held } else { &mut debit.debits }, transfer)?;
        let credit = self.balance(transfer.credit);
        grow(if held { &mut credit.credits_held } else { &mut credit.credits }, transfer)?;
        if held {
            self.held.push((transfer.id, Some(*transfer)));
        }
        Ok(())
    }

    fn finish(&mut self, transfer: &Transfer) -> Result<(), Refusal> {
        let drafted = self.held.iter().rev().find(|(id, _)| *id == transfer.id).map(|(_, held)| *held);
        let held = drafted.unwrap_or_else(|| self.ledger.held.get(&transfer.id).copied());
        let same = |held: &Transfer| {
            (held.debit, held.credit, held.amount) == (transfer.debit, transfer.credit, transfer.amount)
        };
        if !held.as_ref().is_some_and(same) {
            return Err(Refusal::NotHeld { id: transfer.id });
        }
        let debit = self.balance(transfer.debit);
        debit.debits_held -= transfer.amount;
        if transfer.step == Step::PostHeld {
            grow(&mut debit.debits, transfer)?;
        }
        let credit = self.balance(transfer.credit);
        credit.credits_held -= transfer.amount;
        if transfer.step == Step::PostHeld {
            grow(&mut credit.credits, transfer)?;
        }
        self.held.push((transfer.id, None));
        Ok(())
    }
}

fn grow(total: &mut u64, transfer: &Transfer) -> Result<(), Refusal> {
    *total = total.checked_add(transfer.amount).ok_or(Refusal::BadTransfer { id: transfer.id })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TransferKind;
    use proptest::prelude::*;

    fn key(n: u8) -> AccountKey {
        let owner = if n == 0 { Owner::World } else { Owner::Wallet(Address([n; 32])) };
        AccountKey { owner, asset: Asset::Iosd }
    }

    fn transfer(n: u64, step: Step, debit: u8, credit: u8, amount: u64) -> Transfer {
        let id = TransferId { scope: 1 << 80, kind: TransferKind::Send, n };
        Transfer { id, step, debit: key(debit), credit: key(credit), amount }
    }

    /// One line an action: what is asked, and the answer's code ("ok" when it is made).
    #[test]
    fn actions_and_their_answers() {
        use Step::{Hold, Post, PostHeld, VoidHeld};
        let table = [
            (transfer(1, Post, 0, 1, 100), "ok"),
            (transfer(1, Post, 0, 1, 100), "transfer_exists"),
            (transfer(2, Post, 1, 2, 101), "insufficient_funds"),
            (transfer(2, Hold, 1, 2, 60), "ok"),
            (transfer(3, Post, 1, 2, 41), "insufficient_funds"),
            (transfer(3, Post, 1, 2, 40), "ok"),
            (transfer(2, PostHeld, 1, 2, 59), "not_held"),
            (transfer(2, PostHeld, 1, 2, 60), "ok"),
            (transfer(2, PostHeld, 1, 2, 60), "not_held"),
            (transfer(2, Hold, 2, 1, 1), "transfer_exists"),
            (transfer(4, Hold, 2, 3, 100), "ok"),
            (transfer(5, Post, 2, 3, 1), "insufficient_funds"),
            (transfer(4, VoidHeld, 2, 3, 100), "ok"),
            (transfer(4, PostHeld, 2, 3, 100), "not_held"),
            (transfer(5, Post, 2, 3, 100), "ok"),
            (transfer(6, Post, 3, 3, 1), "bad_transfer"),
            (transfer(6, Post, 3, 2, 0), "bad_transfer"),
        ];
        let mut ledger = Ledger::default();
        for (line, (transfer, expected)) in table.into_iter().enumerate() {
            let before = ledger.clone();
            let answer = ledger.post(&[transfer]).map_or_else(|refusal| refusal.code(), |()| "ok");
            assert_eq!(answer, expected, "line {line}: {transfer:?}");
            assert!(answer == "ok" || ledger == before, "line {line} changed something");
        }
        assert_eq!(ledger.balance(key(3).owner, Asset::Iosd).available(), 100);
    }

    #[test]
    fn linked_transfers_go_all_or_none() {
        let mut ledger = Ledger::default();
        let linked = [
            transfer(1, Step::Post, 0, 1, 10),
            transfer(2, Step::Post, 1, 2, 10),
            transfer(3, Step::Post, 1, 2, 1),
        ];
        assert_eq!(ledger.post(&linked).unwrap_err().code(), "insufficient_funds");
        assert_eq!(ledger, Ledger::default());
        ledger.post(&linked[..2]).unwrap();
        assert_eq!(ledger.balance(key(2).owner, Asset::Iosd).available(), 10);
    }

    #[test]
    fn old_ids_are_forgotten_but_not_what_is_held() {
        let mut ledger = Ledger::default();
        ledger.post(&[transfer(1, Step::Post, 0, 1, 10), transfer(2, Step::Hold, 1, 2, 5)]).unwrap();
        ledger.forget_before(2);
        assert!(!ledger.exists(transfer(1, Step::Post, 0, 1, 10).id));
        assert!(ledger.exists(transfer(2, Step::Hold, 1, 2, 5).id));
    }

    proptest! {
        #[test]
        fn money_is_conserved(moves in prop::collection::vec((0u64..12, 0u8..4, 0u8..4, 0u8..4, 0u64..50), 0..200)) {
            let mut ledger = Ledger::default();
            for (n, step, debit, credit, amount) in moves {
                let step = [Step::Post, Step::Hold, Step::PostHeld, Step::VoidHeld][usize::from(step)];
                let _ = ledger.post(&[transfer(n, step, debit, credit, amount)]);
                prop_assert!(ledger.sums().values().all(|sum| *sum == 0));
                prop_assert_eq!(ledger.overdrawn(), None);
            }
            let text = serde_json::to_string(&ledger).unwrap();
            prop_assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
        }
    }
}
