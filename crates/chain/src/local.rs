//! A token ledger in a file, for networks on one machine: its tokens are worth nothing and nobody else knows them.
//!
//! One JSON line an entry, synced before it is answered. A torn last line, which nobody was told of, is cut.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ionet_domain::money::Asset;
use ionet_domain::{Address, PayoutId};
use serde::{Deserialize, Serialize};

use crate::book::Book;
use crate::{Chain, ChainError, Deposit, Paid};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Deposit(Deposit),
    Payout { payout: PayoutId, to: Address, asset: Asset, amount: u64 },
}

/// The local token ledger. Its tokens are worth nothing.
#[derive(Debug)]
pub struct LocalChain {
    path: PathBuf,
    file: File,
    book: Book,
}

impl LocalChain {
    /// Opens the ledger file, or begins one.
    pub fn open(path: &Path) -> Result<Self, ChainError> {
        let io = |action, source| ChainError::Io { action, path: path.display().to_string(), source };
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(|e| io("open", e))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|e| io("read", e))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(|e| io("cut the torn end of", e))?;
        file.seek(SeekFrom::End(0)).map_err(|e| io("read", e))?;
        let mut chain = Self { path: path.to_owned(), file, book: Book::default() };
        for (at, line) in text[..whole].lines().enumerate() {
            let damaged = || ChainError::Damaged { line: at + 1, path: path.display().to_string() };
            chain.take(serde_json::from_str(line).map_err(|_| damaged())?);
        }
        Ok(chain)
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Deposit(deposit) => self.book.deposits.push(deposit),
            Line::Payout { payout, to, asset, amount } => {
                self.book.payouts.insert(payout, (to, asset, amount));
            }
        }
    }

    fn write(&mut self, line: Line) -> Result<(), ChainError> {
        // Lines are plain data with text keys: writing them to memory has no way to fail.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        let io = |action, source| ChainError::Io { action, path: self.path.display().to_string(), source };
        self.file.write_all(&bytes).map_err(|e| io("write", e))?;
        self.file.sync_data().map_err(|e| io("sync", e))?;
        self.take(line);
        Ok(())
    }

    /// Gives tokens out of nothing to an account, once for each `reference`; false if that was done before.
    pub fn fund(
        &mut self,
        reference: &str,
        account: Address,
        asset: Asset,
        amount: u64,
        now_ms: u64,
    ) -> Result<bool, ChainError> {
        if amount == 0 || self.book.deposits.iter().any(|deposit| deposit.reference == reference) {
            return Ok(false);
        }
        let n = self.book.next();
        let reference = reference.into();
        self.write(Line::Deposit(Deposit { n, at_ms: now_ms, reference, account, asset, amount }))?;
        Ok(true)
    }

    /// What was paid out to an account in all, in minor units.
    pub fn paid_to(&self, account: Address, asset: Asset) -> u64 {
        let mine = self.book.payouts.values().filter(|(to, what, _)| (*to, *what) == (account, asset));
        mine.map(|(_, _, amount)| amount).sum()
    }
}

impl Chain for LocalChain {
    fn pay(&mut self, payout: PayoutId, to: Address, asset: Asset, amount: u64) -> Result<Paid, ChainError> {
        let made = self.book.made(payout, to, asset)?;
        if made.is_none() {
            self.write(Line::Payout { payout, to, asset, amount })?;
        }
        Ok(Paid { reference: format!("local:{payout}"), amount: made.unwrap_or(amount) })
    }

    fn deposits_after(&mut self, cursor: u64) -> Result<Vec<Deposit>, ChainError> {
        Ok(self.book.after(cursor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_and_a_torn_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.jsonl");
        let (me, payout) = (Address([7; 32]), PayoutId::from_parts(5, 6));
        let mut chain = LocalChain::open(&path).unwrap();
        assert!(chain.fund("first", me, Asset::Iosd, 100, 9).unwrap());
        assert!(!chain.fund("first", me, Asset::Iosd, 100, 9).unwrap());
        let paid = chain.pay(payout, me, Asset::Iosd, 40).unwrap();
        assert_eq!(paid.amount, 40);
        drop(chain);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"payout\":{\"pay").unwrap();
        let mut chain = LocalChain::open(&path).unwrap();
        assert_eq!(chain.pay(payout, me, Asset::Iosd, 40).unwrap(), paid);
        assert_eq!(chain.pay(payout, me, Asset::Iosd, 41).unwrap(), paid, "what was paid once stays so");
        let conflict = chain.pay(payout, Address([8; 32]), Asset::Iosd, 40).unwrap_err();
        assert_eq!(conflict.code(), "chain_conflict");
        assert_eq!(chain.paid_to(me, Asset::Iosd), 40);
        assert_eq!(chain.deposits_after(0).unwrap().len(), 1);
        assert_eq!(chain.deposits_after(1).unwrap(), []);
        assert!(chain.fund("second", me, Asset::Iosd, 1, 9).unwrap());
        assert_eq!(LocalChain::open(&path).unwrap().book.deposits.len(), 2);
        std::fs::write(&path, "nonsense\n").unwrap();
        assert_eq!(LocalChain::open(&path).unwrap_err().code(), "chain_damaged");
    }
}
