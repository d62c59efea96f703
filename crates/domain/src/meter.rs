//! Metering: from a worker's cumulative receipts to charges that are proven, held or voided.
//!
//! `charge_n = floor(rate x elapsed_total / 1 h) - charged_so_far`: cumulative and monotonic, so rounding never
//! adds up and a lost receipt costs nothing. A period counts at once when two witnesses agree (the receipt, and the
//! server's own heartbeats or another member); with the receipt alone it is held for the dispute window.

use serde::{Deserialize, Serialize};

use crate::id::{LeaseId, TransferId, TransferKind};
use crate::ledger::{AccountKey, Owner, Step, Transfer};
use crate::money::BasisPoints;
use crate::order::{Lease, Move, Order};
use crate::refusal::Refusal;
use crate::state::State;

/// A worker's signed word on how long a lease has run in all. Receipts are cumulative: only the newest matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Which lease.
    pub lease: LeaseId,
    /// Milliseconds of run time in all, by the supervisor's monotonic clock.
    pub elapsed_ms: u64,
    /// The lease numbers of other members that were heard over the overlay since the last receipt.
    pub heard: Vec<u32>,
    /// The device key's signature over the above, in hex; checked where it comes in.
    pub signature: String,
}

/// Who else says that a period was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// The server heard the device throughout.
    Heartbeats,
    /// Another member, on a device of another supplier, heard it.
    Member(LeaseId),
    /// Nobody: supplier-attested until the dispute window is over.
    Nobody,
}

/// A charge that waits for proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldCharge {
    /// When the dispute window ends, in milliseconds since 1970.
    pub due_ms: u64,
    /// Before fees, in micro-USD.
    pub charge_micro_usd: u64,
    /// The renter's fee on it.
    pub renter_fee_micro_usd: u64,
    /// The transfers that were held.
    pub transfers: Vec<Transfer>,
}

/// One period's charge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// Time charged for in all after this.
    pub elapsed_ms: u64,
    /// This period before fees, in micro-USD.
    pub charge_micro_usd: u64,
    /// The renter's fee on this period.
    pub renter_fee_micro_usd: u64,
    /// Posted or held: to the supplier, and the fees of both sides.
    pub transfers: Vec<Transfer>,
    /// When a held charge is posted unless disproven.
    pub held_until_ms: Option<u64>,
}

/// What a receipt is worth now.
pub fn charge(
    state: &State,
    order: &Order,
    n: u32,
    receipt: &Receipt,
    witness: &Witness,
    now_ms: u64,
) -> Result<Charge, Refusal> {
    order.may(Move::Meter)?;
    let lease = order.lease(n)?;
    let elapsed_ms = billable(order, lease, receipt.elapsed_ms, now_ms);
    if elapsed_ms <= lease.elapsed_ms {
        return Err(Refusal::NoChange { what: format!("lease {} is charged up to here", receipt.lease) });
    }
    let held_until_ms = (*witness == Witness::Nobody).then(|| now_ms + state.params.dispute_window_ms);
    let charge_micro_usd = lease.worth(elapsed_ms).saturating_sub(lease.charged_micro_usd);
    let step = if held_until_ms.is_some() { Step::Hold } else { Step::Post };
    let part = |fee: BasisPoints| {
        fee.of(lease.charged_micro_usd + charge_micro_usd) - fee.of(lease.charged_micro_usd)
    };
    let (renter_fee_micro_usd, supplier_fee) = (part(order.quote.renter_fee), part(order.quote.supplier_fee));
    let earned = charge_micro_usd - supplier_fee;
    let fees = renter_fee_micro_usd + supplier_fee;
    let transfers = transfers(order, n, lease, step, earned, fees);
    state.ledger.check(&transfers)?;
    Ok(Charge { elapsed_ms, charge_micro_usd, renter_fee_micro_usd, transfers, held_until_ms })
}

/// Never more than the time since charging began, than what was bought, or than the time until it was closed.
fn billable(order: &Order, lease: &Lease, receipted_ms: u64, now_ms: u64) -> u64 {
    let Some(since) = lease.charging_since_ms else { return 0 };
    let released_ms = lease.released.as_ref().map(|released| released.charged_until_ms);
    let ends_ms = order.ends_ms().filter(|_| released_ms.is_none());
    let until = [Some(now_ms), ends_ms, order.closed_ms, released_ms].into_iter().flatten().min();
    let until = until.unwrap_or(now_ms);
    receipted_ms.min(until.saturating_sub(since))
}

fn transfers(order: &Order, n: u32, lease: &Lease, step: Step, earned: u64, fees: u64) -> Vec<Transfer> {
    let asset = order.quote.request.asset;
    let number = u64::from(n) << 32 | u64::from(lease.periods);
    let make = |kind, owner, amount| Transfer {
        id: TransferId { scope: order.id.bits(), kind, n: number },
        step,
        debit: order.purse(),
        credit: AccountKey { owner, asset },
        amount,
    };
    let parts = [
        make(TransferKind::Charge, Owner::Earned(lease.supplier), earned),
        make(TransferKind::Fee, Owner::Fees, fees),
    ];
    parts.into_iter().filter(|transfer| transfer.amount > 0).collect()
}

/// Turns held transfers into posted or voided ones.
pub fn finish(held: &[HeldCharge], step: Step) -> Vec<Transfer> {
    held.iter().flat_map(|charge| &charge.transfers).map(|transfer| Transfer { step, ..*transfer }).collect()
}

/// The held charges of a lease whose dispute window is over: the oldest ones, up to the first that still waits. A clock
/// that was put back can make a younger one due first; it waits for the older, because they are posted in order.
pub fn proven(lease: &Lease, now_ms: u64) -> Vec<HeldCharge> {
    lease.held.iter().take_while(|held| held.due_ms <= now_ms).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Address, DeviceId};
    use crate::money::Rate;
    use crate::order::LeasePhase;

    fn lease_holding(dues_ms: &[u64]) -> Lease {
        let held = |due_ms: &u64| HeldCharge {
            due_ms: *due_ms,
            charge_micro_usd: 1,
            renter_fee_micro_usd: 0,
            transfers: Vec::new(),
        };
        Lease {
            gpus: Vec::new(),
            slot: 0,
            device: DeviceId::from_parts(1, 1),
            supplier: Address([1; 32]),
            rate: Rate(1),
            phase: LeasePhase::Ready,
            charging_since_ms: Some(0),
            elapsed_ms: 0,
            periods: 0,
            charged_micro_usd: 0,
            voided_micro_usd: 0,
            renter_fee_micro_usd: 0,
            held: dues_ms.iter().map(held).collect(),
            earlier: None,
            released: None,
            ailing: None,
        }
    }

    #[test]
    fn held_charges_are_proven_from_the_oldest_on() {
        // The last but one row: the clock was put back between the two charges.
        for (dues_ms, now_ms, proven_count) in [
            (&[10, 20][..], 5, 0),
            (&[10, 20], 10, 1),
            (&[10, 20], 20, 2),
            (&[20, 10], 15, 0),
            (&[20, 10], 20, 2),
        ] {
            let proven = proven(&lease_holding(dues_ms), now_ms);
            let dues: Vec<_> = proven.iter().map(|held| held.due_ms).collect();
            assert_eq!(dues, dues_ms[..proven_count], "{dues_ms:?} at {now_ms}");
        }
    }
}
