//! What happened: the effects of a command, each with a public part and, where needed, a private one.
//!
//! The public part alone keeps the books and the stages; the private part (a program, a machine's name, the hash
//! of a key's secret) may be erased and the state still folds. Fields are named, never positional; new ones are
//! optional, so that every old journal still folds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::account::{Activity, ApiKey};
use crate::connectivity::RelayMeasure;
use crate::device::{Contact, DeviceChange, Enrolment, HardwareClass, Measured, Tier};
use crate::id::{Address, CommandId, DeviceId, EndpointId, KeyId, LeaseId, OrderId, PayoutId};
use crate::ledger::{Owner, Transfer};
use crate::market::reserve::KeptSeat;
use crate::market::spot::{NewRate, Notice};
use crate::market::{Country, Denials, DenyList, Destination, Egress, Feed, Program, Quote};
use crate::meter::{Charge, Receipt, Witness};
use crate::order::expose::{Exposure, Kind};
use crate::order::health::Ailment;
use crate::order::pause::PauseReason;
use crate::order::share::Share;
use crate::order::size::{GrowReason, OrderChange, ShrinkReason};
use crate::order::{Bill, CloseReason, NewLease, ReplaceReason, WipeReceipt};
use crate::payout::Payout;
use crate::state::Params;

/// A thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it was decided, in milliseconds since 1970.
    pub at_ms: u64,
    /// The command that it came from, if it had a name; on the first of its events only.
    pub command: Option<CommandId>,
    /// What everybody may see.
    pub public: PublicBody,
    /// What only the network's own server sees.
    pub private: Option<PrivateBody>,
}

/// The public part as it stands in the journal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicPart<B> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<CommandId>,
    event: B,
}

/// A body that is no event of any release.
#[derive(Debug, thiserror::Error)]
#[error("the {part} part is not an event that this release knows: {source}")]
pub struct UnknownEvent {
    part: &'static str,
    source: serde_json::Error,
}

impl Event {
    /// The public part as JSON.
    pub fn public_json(&self) -> Vec<u8> {
        json(&PublicPart { command: self.command, event: &self.public })
    }

    /// The private part as JSON.
    pub fn private_json(&self) -> Option<Vec<u8>> {
        self.private.as_ref().map(json)
    }

    /// Reads an event back; `private` is absent if there was none or it was erased.
    pub fn read(at_ms: u64, public: &[u8], private: Option<&[u8]>) -> Result<Self, UnknownEvent> {
        let wrong = |part| move |source| UnknownEvent { part, source };
        let PublicPart { command, event } = serde_json::from_slice(public).map_err(wrong("public"))?;
        let private = private.map(serde_json::from_slice).transpose().map_err(wrong("private"))?;
        Ok(Self { at_ms, command, public: event, private })
    }
}

fn json<T: Serialize>(body: &T) -> Vec<u8> {
    // Bodies are plain data with text keys: writing them to memory has no way to fail.
    let mut text = Vec::with_capacity(512);
    serde_json::to_writer(&mut text, body).unwrap_or_default();
    text
}

/// Public bodies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(missing_docs, reason = "each variant says what its fields are for")]
pub enum PublicBody {
    /// The network was founded with these parameters.
    Founded { params: Params },
    /// A server began to write; generations are compared under its term first.
    TermBegun { term: u64 },
    /// A key was made.
    KeyMade { account: Address, key: ApiKey },
    /// A key was revoked.
    KeyRevoked {
        account: Address,
        key: KeyId,
        /// Leave to open tunnels that it was given before is void; absent in what was written before there was such leave.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        void_before_ms: Option<u64>,
    },
    /// A line of the activity log; the particulars are private.
    Active(Activity),
    /// Tokens arrived from the chain, under the chain's own reference.
    Deposited { reference: String, transfer: Transfer },
    /// Money moved between wallets.
    Sent { transfer: Transfer },
    /// A device enrolled.
    DeviceEnrolled { enrolment: Enrolment },
    /// Its owner bound it to another endpoint key.
    DeviceRebound { device: DeviceId, endpoint: EndpointId },
    /// Its check began.
    DeviceChecking { device: DeviceId },
    /// It passed.
    DevicePooled { device: DeviceId, measured: Measured, class: HardwareClass, tier: Tier },
    /// It was turned away.
    DeviceRefused { device: DeviceId, measured: Option<Measured>, reason: String },
    /// Relays measured its links, and this is the tier that it has earned.
    DeviceLinksMeasured {
        device: DeviceId,
        measures: Vec<RelayMeasure>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tier: Option<Tier>,
    },
    /// It was connected or lost contact.
    DeviceContact { device: DeviceId, contact: Contact },
    /// Its owner changed it.
    DeviceChanged { device: DeviceId, change: DeviceChange },
    /// Its owner deleted it.
    DeviceArchived { device: DeviceId },
    /// An order was taken in.
    OrderAccepted { order: OrderId, account: Address, key: Option<KeyId>, quote: Quote },
    /// Its money was set aside.
    OrderFunded { order: OrderId, transfer: Transfer },
    /// It got leases: all of them, or replacements for lost ones and then why.
    OrderPlaced {
        order: OrderId,
        leases: Vec<NewLease>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<ReplaceReason>,
    },
    /// From now on this waiting order holds what it can already get; none does if `None`.
    QueueHeld {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        order: Option<OrderId>,
    },
    /// These are kept for its window.
    OrderKept { order: OrderId, seats: Vec<KeptSeat> },
    /// A spot order was given notice.
    OrderNoticed { order: OrderId, notice: Notice },
    /// A spot order's leases cost this from now on; what is not named stays.
    OrderRepriced { order: OrderId, rates: Vec<NewRate> },
    /// The devices are being told.
    OrderStarted { order: OrderId },
    /// A lease's box and engine are up; how long each part took, in milliseconds.
    LeaseReady { lease: LeaseId, parts_ms: Vec<(String, u64)> },
    /// A lease's program ended by itself.
    LeaseExited { lease: LeaseId, exit_code: i32 },
    /// A lease's box is gone without having been asked to go.
    LeaseLost { lease: LeaseId, reason: String },
    /// Every member is up.
    OrderRunning { order: OrderId },
    /// Time was added.
    OrderExtended { order: OrderId, duration_ms: u64, transfer: Transfer },
    /// Members were added to it while it runs: they are placed next, and paid for from `from_ms` of its time on.
    OrderGrown { order: OrderId, quote: Quote, from_ms: u64, transfer: Transfer, reason: GrowReason },
    /// It has its first `members` only; the boxes of the others go, and what they will not use went back. They count until
    /// `until_ms` of its time and are charged for nothing after `charged_until_ms`.
    OrderShrunk {
        order: OrderId,
        members: u32,
        until_ms: u64,
        charged_until_ms: u64,
        refund: Option<Transfer>,
        reason: ShrinkReason,
    },
    /// Its boxes go and time stands still, when `ran_ms` of it were over.
    OrderPaused { order: OrderId, ran_ms: u64, charged_until_ms: u64, until_ms: u64, reason: PauseReason },
    /// A member ails, or another way than before; or it is well again.
    MemberAiling { lease: LeaseId, ailment: Option<Ailment> },
    /// A member that ails is let go: its box goes, and it is charged for nothing after this. What takes its place follows.
    MemberReleased { lease: LeaseId, charged_until_ms: u64 },
    /// It waits for a place to run again.
    OrderResumed { order: OrderId },
    /// Its renter changed it; what it will not use went back, and what it may cost more was set aside.
    OrderChanged {
        order: OrderId,
        change: OrderChange,
        refund: Option<Transfer>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        escrow: Option<Transfer>,
    },
    /// What its boxes may reach outside was changed; the list is private.
    OrderEgressChanged { order: OrderId, egress: Egress },
    /// A service of it is shown under the server's name; whom it names is private.
    OrderExposed { order: OrderId, exposure: Exposure },
    /// It is shown no more.
    OrderUnexposed { order: OrderId, kind: Kind, port: u16 },
    /// Its owner lets another account open some of its services.
    OrderShared { order: OrderId, account: Address, share: Share },
    /// And no longer.
    OrderUnshared { order: OrderId, account: Address },
    /// A period was charged.
    LeaseMetered { receipt: Receipt, witness: Witness, charge: Charge },
    /// Held charges were proven and posted, the oldest `count` of the lease.
    ChargesProven { lease: LeaseId, count: u32, transfers: Vec<Transfer> },
    /// Held charges were disproven and voided, the oldest `count` of the lease.
    ChargesVoided { lease: LeaseId, count: u32, transfers: Vec<Transfer>, reason: String },
    /// It was closed.
    OrderClosing { order: OrderId, reason: CloseReason },
    /// A lease's box was removed as asked, with the evidence if the device answered.
    LeaseRemoved { lease: LeaseId, wipe: Option<WipeReceipt> },
    /// What was not used went back.
    OrderSettled { order: OrderId, refund: Option<Transfer>, bill: Bill },
    /// A supplier's earnings are on their way.
    PayoutOpened {
        payout: PayoutId,
        #[serde(flatten)]
        content: Payout,
    },
    /// They arrived.
    PayoutPaid { payout: PayoutId, transfer: Transfer, reference: String },
    /// The chain had paid another amount under this id before, as happens when the books were put back to an old
    /// backup. What it paid counts; `orders` are those whose earnings are paid with it.
    PayoutAdopted {
        payout: PayoutId,
        account: Address,
        transfers: Vec<Transfer>,
        orders: Vec<OrderId>,
        reference: String,
    },
    /// All suppliers of an order were paid.
    OrderPaid { order: OrderId },
    /// Its renter gave it one to five stars; fees that were paid for the time on each device are their weight.
    OrderRated { order: OrderId, stars: u8 },
    /// An account declared its country; which is private.
    CountryDeclared { account: Address },
    /// A supplier said whom and what a device does not serve; the list is private.
    DeviceTermsSet { device: DeviceId },
    /// The operator set his deny list of so many entries; the list is private.
    DenyListSet { entries: u32 },
    /// What has ended leaves the live state.
    Retired { orders: Vec<OrderId>, forget_ids_before_ms: u64 },
    /// Prices elsewhere came in, with their signer's signature in hex.
    FeedTaken { feed: Feed, signature: String },
    /// The load's part of the prices was set, in ppm of the reference rate, by class; what is not named stays.
    LoadsSet { loads: BTreeMap<String, u32> },
}

/// Private bodies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PrivateBody {
    /// What an order runs.
    Program(Program),
    /// The name that its owner gave a machine.
    MachineName(String),
    /// A key's label and the SHA-256 of its secret in hex.
    KeySecret {
        /// The owner's words for it.
        label: String,
        /// The hash.
        sha256: String,
    },
    /// What an order's boxes may reach outside.
    Allow(BTreeSet<Destination>),
    /// Whom an exposed service is for.
    Guests(BTreeSet<Address>),
    /// An account's country.
    Country(Country),
    /// What a device's supplier does not serve.
    Terms(Denials),
    /// What the operator does not let into the market.
    DenyList(DenyList),
    /// Particulars of an activity: from where, with what.
    Particulars(String),
}

/// The subject of an account's activity log, apart from its other history, of which there is far more.
pub fn activity_of(account: Address) -> String {
    format!("activity:{account}")
}

fn with_devices(order: OrderId, devices: impl Iterator<Item = DeviceId>) -> Vec<String> {
    std::iter::once(order.to_string()).chain(devices.map(|device| device.to_string())).collect()
}

/// The accounts whose money moves.
fn touched(transfer: &Transfer) -> impl Iterator<Item = String> + use<> {
    [transfer.debit, transfer.credit].into_iter().filter_map(|key| match key.owner {
        Owner::Wallet(a) | Owner::Earned(a) => Some(a.to_string()),
        _ => None,
    })
}

impl PublicBody {
    /// The things that this is part of the history of, as the subject index names them.
    pub fn subjects(&self) -> Vec<String> {
        match self {
            Self::Founded { .. } | Self::TermBegun { .. } | Self::DenyListSet { .. } => {
                vec!["network".into()]
            }
            Self::CountryDeclared { account } => vec![account.to_string()],
            Self::FeedTaken { feed, .. } => vec!["market".into(), feed.signer.to_string()],
            Self::LoadsSet { .. } => vec!["market".into()],
            Self::QueueHeld { order } => {
                order.map(|id| id.to_string()).into_iter().chain(["market".into()]).collect()
            }
            Self::KeyMade { account, key } => vec![account.to_string(), key.id.to_string()],
            Self::KeyRevoked { account, key, .. } => vec![account.to_string(), key.to_string()],
            Self::Active(activity) => vec![activity.account.to_string(), activity_of(activity.account)],
            Self::Deposited { transfer, .. } | Self::Sent { transfer } => touched(transfer).collect(),
            Self::DeviceEnrolled { enrolment } => {
                vec![enrolment.device.to_string(), enrolment.owner.to_string()]
            }
            Self::DeviceRebound { device, .. }
            | Self::DeviceChecking { device }
            | Self::DevicePooled { device, .. }
            | Self::DeviceRefused { device, .. }
            | Self::DeviceLinksMeasured { device, .. }
            | Self::DeviceContact { device, .. }
            | Self::DeviceChanged { device, .. }
            | Self::DeviceTermsSet { device }
            | Self::DeviceArchived { device } => vec![device.to_string()],
            Self::PayoutOpened { payout, content } => vec![payout.to_string(), content.account.to_string()],
            Self::PayoutPaid { payout, transfer, .. } => {
                std::iter::once(payout.to_string()).chain(touched(transfer)).collect()
            }
            Self::PayoutAdopted { payout, account, transfers, .. } => {
                let lost = transfers.iter().any(|transfer| transfer.debit.owner == Owner::Losses);
                let losses = lost.then(|| "losses".to_owned());
                [payout.to_string(), account.to_string()].into_iter().chain(losses).collect()
            }
            Self::Retired { orders, .. } => orders.iter().map(ToString::to_string).collect(),
            _ => self.subjects_of_order(),
        }
    }

    /// The same of what happens to one order or one of its leases.
    fn subjects_of_order(&self) -> Vec<String> {
        let lease = |id: &LeaseId| vec![id.order.to_string(), id.to_string()];
        match self {
            Self::OrderAccepted { order, account, .. } => vec![order.to_string(), account.to_string()],
            Self::OrderKept { order, seats } => with_devices(*order, seats.iter().map(|seat| seat.device)),
            Self::OrderNoticed { order, notice } => notice.subjects(*order),
            Self::OrderPlaced { order, leases, .. } => {
                with_devices(*order, leases.iter().map(|lease| lease.device))
            }
            Self::OrderFunded { order, transfer }
            | Self::OrderExtended { order, transfer, .. }
            | Self::OrderGrown { order, transfer, .. } => {
                std::iter::once(order.to_string()).chain(touched(transfer)).collect()
            }
            Self::OrderSettled { order, refund, .. } | Self::OrderShrunk { order, refund, .. } => {
                std::iter::once(order.to_string()).chain(refund.iter().flat_map(touched)).collect()
            }
            Self::OrderChanged { order, refund, escrow, .. } => {
                let moved = refund.iter().chain(escrow).flat_map(touched);
                std::iter::once(order.to_string()).chain(moved).collect()
            }
            Self::OrderShared { order, account, .. } | Self::OrderUnshared { order, account } => {
                vec![order.to_string(), account.to_string()]
            }
            Self::OrderStarted { order }
            | Self::OrderRunning { order }
            | Self::OrderRepriced { order, .. }
            | Self::OrderEgressChanged { order, .. }
            | Self::OrderExposed { order, .. }
            | Self::OrderUnexposed { order, .. }
            | Self::OrderPaused { order, .. }
            | Self::OrderResumed { order }
            | Self::OrderClosing { order, .. }
            | Self::OrderRated { order, .. }
            | Self::OrderPaid { order } => vec![order.to_string()],
            Self::LeaseReady { lease: id, .. }
            | Self::MemberAiling { lease: id, .. }
            | Self::MemberReleased { lease: id, .. }
            | Self::LeaseExited { lease: id, .. }
            | Self::LeaseLost { lease: id, .. }
            | Self::ChargesProven { lease: id, .. }
            | Self::ChargesVoided { lease: id, .. }
            | Self::LeaseRemoved { lease: id, .. } => lease(id),
            Self::LeaseMetered { receipt, charge, .. } => {
                lease(&receipt.lease).into_iter().chain(charge.transfers.iter().flat_map(touched)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The event's stable name.
    pub fn name(&self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(object)) => object.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        }
    }
}
