//! The load of the engine's benchmarks: many wallets that send each other money, every command with an id of its own.

use ionet_domain::command::{Actor, Command, CommandBody};
use ionet_domain::id::TransferKind;
use ionet_domain::{Address, Asset, CommandId, TransferId};
use ionet_journal::{FileDisk, Options};
use ionet_server::{Engine, EngineOptions, Fleet};

use crate::random::Random;
use crate::{LabError, Result};

/// Wallets in the load.
pub(super) const WALLETS: u64 = 1000;
/// A Monday at noon; the load's clock stands still, so no id grows old.
pub(super) const NOW_MS: u64 = 1_800_014_400_000;

/// Endless sends between wallets.
pub(super) struct Load {
    random: Random,
    sent: u128,
}

impl Load {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), sent: 0 }
    }

    /// What comes before the first send: a rich deposit for everybody.
    pub(super) fn founding() -> Vec<Command> {
        let server = |body| Command { id: None, actor: Actor::Server, body };
        let deposits = (0..WALLETS).map(|n| {
            let id = TransferId { scope: 1 << 80, kind: TransferKind::Deposit, n };
            let (account, amount) = (wallet(n), 1 << 40);
            server(CommandBody::Deposit {
                id,
                reference: format!("bench:{n}"),
                account,
                asset: Asset::Iosd,
                amount,
            })
        });
        deposits.collect()
    }

    /// The next send.
    pub(super) fn send(&mut self) -> Command {
        self.sent += 1;
        let id = CommandId::from_parts(NOW_MS, self.sent);
        let (from, gap) = (self.random.below(WALLETS), self.random.between(1, WALLETS - 1));
        let body = CommandBody::Send {
            id: TransferId { scope: id.bits(), kind: TransferKind::Send, n: 0 },
            to: wallet((from + gap) % WALLETS),
            asset: Asset::Iosd,
            amount: self.random.between(1, 100),
        };
        Command { id: Some(id), actor: Actor::Wallet(wallet(from)), body }
    }
}

/// The server's engine on a real disk, opened as the server opens it, but without snapshots of its own.
pub(super) fn open(disk: FileDisk) -> Result<Engine<FileDisk>> {
    let journal = Options { check_from_snapshot: true, ..Options::default() };
    let options = EngineOptions { journal, snapshot_every: 0, ..EngineOptions::default() };
    let (engine, _) =
        Engine::open(disk, options, Fleet::default(), NOW_MS).map_err(LabError::server("open the engine"))?;
    Ok(engine)
}

fn wallet(n: u64) -> Address {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Address(key)
}
