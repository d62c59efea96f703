//! Planted faults of what leaves the server: published events, answers, words to workers.

use ionet_api::worker::ToWorker;
use ionet_domain::account::{Activity, ActivityKind};
use ionet_domain::ledger::Owner;
use ionet_domain::order::CloseReason;
use ionet_domain::{Address, CommandId, PublicBody, Refusal, TransferId};
use ionet_server::{Output, PublishedEvent};

use super::planted::Planted;
use super::world::World;

/// What planted faults remember between two events.
#[derive(Debug, Default)]
pub(super) struct Memory {
    command: Option<CommandId>,
    transfer: Option<TransferId>,
}

impl World {
    /// Changes events as a broken server would have made them.
    pub(super) fn spoil_published(&mut self, events: &mut Vec<PublishedEvent>) {
        let Some(planted) = self.plan.planted else { return };
        if planted == Planted::IndexGap && self.fault_random.chance(20_000) {
            events.remove(0);
        }
        for published in events.iter_mut() {
            let event = &mut published.event;
            if let (Planted::RepeatCommand, Some(command)) = (planted, event.command) {
                event.command = Some(*self.memory.command.get_or_insert(command));
            }
            spoil(planted, &mut event.public, &mut self.memory);
        }
    }

    /// Changes words as a broken server would have said them.
    pub(super) fn spoil_output(&mut self, output: &mut Output) {
        match output {
            Output::Answer(_, answer @ Err(_)) if self.plants(Planted::WrongRefusal) => {
                *answer = Err(Refusal::Founded);
            }
            Output::Tell(_, message) if self.plants(Planted::BoxTooLarge) => {
                if let ToWorker::Desired(desired) = message.as_mut() {
                    for lease in &mut desired.leases {
                        lease.resources.cpu_millis *= 16;
                    }
                }
            }
            _ => {}
        }
    }
}

fn spoil(planted: Planted, event: &mut PublicBody, memory: &mut Memory) {
    match (planted, &mut *event) {
        (Planted::SkipRefund, PublicBody::OrderSettled { refund, bill, .. }) => {
            *refund = None;
            bill.refund_micro_usd = 0;
        }
        (Planted::FeeRoundedUp, PublicBody::LeaseMetered { charge, .. }) => {
            charge.renter_fee_micro_usd += 1;
            for transfer in
                charge.transfers.iter_mut().filter(|transfer| transfer.credit.owner == Owner::Fees)
            {
                transfer.amount += 1;
            }
        }
        (Planted::WrongSupplier, PublicBody::LeaseMetered { charge, .. }) => {
            for transfer in &mut charge.transfers {
                if matches!(transfer.credit.owner, Owner::Earned(_)) {
                    transfer.credit.owner = Owner::Earned(Address([77; 32]));
                }
            }
        }
        (Planted::ReuseTransfer, PublicBody::LeaseMetered { charge, .. }) => {
            for transfer in charge.transfers.iter_mut().take(1) {
                transfer.id = *memory.transfer.get_or_insert(transfer.id);
            }
        }
        (Planted::ShortExtension, PublicBody::OrderExtended { duration_ms, .. }) => *duration_ms = 1_000,
        (Planted::KeepShrunk, PublicBody::OrderShrunk { refund, .. }) => *refund = None,
        (
            Planted::ChargeLeavers,
            PublicBody::OrderShrunk { charged_until_ms, .. }
            | PublicBody::MemberReleased { charged_until_ms, .. }
            | PublicBody::OrderPaused { charged_until_ms, .. },
        ) => *charged_until_ms += 10 * 60_000,
        (Planted::DepositTooHigh, PublicBody::Deposited { transfer, .. }) => transfer.amount += 1,
        (Planted::DoubleLease, PublicBody::OrderPlaced { leases, .. }) => {
            let again: Vec<_> =
                (1..9).flat_map(|n| leases.iter().map(move |lease| (n, lease.clone()))).collect();
            leases.extend(again.into_iter().map(|(n, mut lease)| {
                lease.n += 100 * n;
                lease
            }));
        }
        (Planted::LostRelease, PublicBody::LeaseRemoved { .. }) => {
            let account = Address([0; 32]);
            *event = PublicBody::Active(Activity { account, kind: ActivityKind::SignedIn, key: None });
        }
        (Planted::WrongReason, PublicBody::OrderClosing { reason, .. }) => {
            *reason = match reason {
                CloseReason::Time => CloseReason::Finished { exit_code: 9 },
                _ => CloseReason::Time,
            };
        }
        _ => {}
    }
}
