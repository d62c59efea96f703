//! What can be asked of the state machine, and by whom.

use std::collections::BTreeSet;

use crate::account::{ActivityKind, ApiKey};
use crate::connectivity::RelayMeasure;
use crate::device::{Contact, DeviceChange, Enrolment, Measured};
use crate::id::{Address, CommandId, DeviceId, EndpointId, KeyId, LeaseId, OrderId, PayoutId, TransferId};
use crate::market::{Country, Denials, DenyList, Destination, Egress, Feed, Program, Quote};
use crate::meter::{Receipt, Witness};
use crate::money::Asset;
use crate::order::expose::{Kind, Wanted};
use crate::order::health::Ailment;
use crate::order::share::Share;
use crate::order::size::OrderChange;
use crate::order::{CloseReason, WipeReceipt};
use crate::simulated::Simulated;
use crate::state::Params;

/// Who asks. Signatures and secrets were checked where the command came in; rights are checked here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// An account by its wallet.
    Wallet(Address),
    /// An account by one of its keys.
    Key(Address, KeyId),
    /// A device over its authenticated link.
    Device(DeviceId),
    /// The server's own reconcilers and watchers.
    Server,
}

impl Actor {
    /// The account behind it.
    pub fn account(&self) -> Option<Address> {
        match self {
            Self::Wallet(address) | Self::Key(address, _) => Some(*address),
            Self::Device(_) | Self::Server => None,
        }
    }

    /// The key it acts by.
    pub fn key(&self) -> Option<KeyId> {
        match self {
            Self::Key(_, key) => Some(*key),
            _ => None,
        }
    }
}

/// A command with its sender and, from outside, its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Made by the sender, so that a repetition is found out. The server's own steps are safe to repeat without.
    pub id: Option<CommandId>,
    /// Who asks.
    pub actor: Actor,
    /// What is asked.
    pub body: CommandBody,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant says what its fields are for")]
pub enum CommandBody {
    /// Found the network: the first command of every journal.
    Found { params: Params },
    /// Begin a term above this one and the last: the first command of every start, and again when a device follows a
    /// later term than this journal has, as after a restore.
    BeginTerm { above: u64 },
    /// Make a key; the hash of its secret in hex.
    MakeKey { key: ApiKey, label: String, sha256: String },
    /// Revoke a key.
    RevokeKey { key: KeyId },
    /// Write a line into the activity log.
    LogActivity { account: Address, kind: ActivityKind, key: Option<KeyId>, particulars: String },
    /// Credit tokens that the chain's watcher saw.
    Deposit { id: TransferId, reference: String, account: Address, asset: Asset, amount: u64 },
    /// Move money from the actor's wallet to another.
    Send { id: TransferId, to: Address, asset: Asset, amount: u64 },
    /// Enrol a device under its owner's signature.
    Enrol { enrolment: Enrolment, machine_name: String },
    /// Bring in simulated devices, measured and heard.
    Simulate { devices: Vec<Simulated> },
    /// Bind a device to a new endpoint key under its owner's signature.
    Rebind { device: DeviceId, endpoint: EndpointId },
    /// Begin a device's check.
    BeginCheck { device: DeviceId },
    /// Take a check's result.
    ReportCheck { device: DeviceId, measured: Result<Measured, String> },
    /// Relays measured a device's links.
    ReportLinks { device: DeviceId, measures: Vec<RelayMeasure> },
    /// Note that a device is heard, or silent.
    NoteContact { device: DeviceId, contact: Contact },
    /// Change a device.
    ChangeDevice { device: DeviceId, change: DeviceChange },
    /// The agent sees the machine in its owner's own use, or free again.
    ReportYield { device: DeviceId, yielding: bool },
    /// Delete a device.
    ArchiveDevice { device: DeviceId },
    /// Accept a quote: take in the order and fund it.
    PlaceOrder { order: OrderId, quote: Quote, program: Program },
    /// Commit devices to a funded order, or close it when none are left.
    Place { order: OrderId },
    /// Let the waiting order hold capacity whose turn it is.
    Hold,
    /// Set a spot order's rates by the market, or give it notice where they are above its bid.
    Reprice { order: OrderId },
    /// Put lost members on other devices, or close the order when none fit.
    Replace { order: OrderId },
    /// Note that its devices are being told.
    Start { order: OrderId },
    /// A box is up.
    ReportReady { lease: LeaseId, parts_ms: Vec<(String, u64)> },
    /// A program ended.
    ReportExit { lease: LeaseId, exit_code: i32 },
    /// A box is gone.
    ReportLost { lease: LeaseId, reason: String },
    /// A box was removed.
    ReportRemoved { lease: LeaseId, wipe: Option<WipeReceipt> },
    /// All members are up.
    MarkRunning { order: OrderId },
    /// Charge for what a receipt says.
    Meter { receipt: Receipt, witness: Witness },
    /// Post the held charges that are proven: all of them with a witness, else those past their window.
    Prove { lease: LeaseId, witness: Witness },
    /// Void the held charges of a lease.
    Disprove { lease: LeaseId, reason: String },
    /// Add time.
    Extend { order: OrderId, added_ms: u64 },
    /// Change what an order's boxes may reach outside, while it lives.
    ChangeEgress { order: OrderId, egress: Egress, allow: BTreeSet<Destination> },
    /// Show a service of an order under the server's name.
    Expose { order: OrderId, wanted: Wanted },
    /// Show it no more.
    Unexpose { order: OrderId, kind: Kind, port: u16 },
    /// Let another account open some of an order's services, instead of what it might before.
    Share { order: OrderId, account: Address, share: Share },
    /// No longer.
    Unshare { order: OrderId, account: Address },
    /// Give an ended order one to five stars, once.
    Rate { order: OrderId, stars: u8 },
    /// Declare the actor's country.
    DeclareCountry { country: Country },
    /// Say whom and what a device does not serve.
    SetTerms { device: DeviceId, terms: Denials },
    /// Set the operator's deny list; the operator's signature was checked where it came in.
    SetDenyList { list: DenyList },
    /// Add the members of a quote to an order that runs.
    Grow { order: OrderId, quote: Quote },
    /// Keep an order's first members only.
    Shrink { order: OrderId, members: u32 },
    /// Take an order's boxes away until it resumes.
    Pause { order: OrderId },
    /// Run a paused order again.
    Resume { order: OrderId },
    /// Change an order's duration, cap or upkeep.
    ChangeOrder { order: OrderId, change: OrderChange },
    /// Put another device in a member's place: by the renter, or by the server where the renter allowed it.
    ReplaceMember { order: OrderId, slot: u32 },
    /// What a member ails from, as the server heard, or that it is well again.
    ReportAiling { lease: LeaseId, ailment: Option<Ailment> },
    /// Give an order as many members as it should have when they are this busy.
    Scale { order: OrderId, busy_percent: u32 },
    /// End an order.
    Close { order: OrderId, reason: CloseReason },
    /// Give back the rest.
    Settle { order: OrderId },
    /// Set a supplier's earnings aside for payment.
    OpenPayout { account: Address },
    /// Note that a payment arrived, and how much the chain says it was.
    ConfirmPayout { payout: PayoutId, reference: String, amount: u64 },
    /// Let what has ended leave the live state.
    Retire,
    /// Take in prices elsewhere, their signature already checked.
    TakeFeed { feed: Feed, signature: String },
    /// Set the load's part of the prices, once an hour.
    SetLoads,
}
