//! The REST types. Everything that also stands in the journal keeps the journal's own form; what only the API
//! says is defined here. Times are milliseconds since 1970, money is integer micro-USD or minor units.

use std::collections::{BTreeMap, BTreeSet};

use ionet_domain::account::{ActivityKind, Scope};
use ionet_domain::connectivity::{Bandwidth, RelayMeasure};
use ionet_domain::device::{DeviceStage, Enrolment, HardwareClass, Measured, OwnerRules, Resources, Tier};
use ionet_domain::market::board::ClassPrices;
use ionet_domain::market::explain::Explanation;
use ionet_domain::market::explain_device::DeviceExplanation;
use ionet_domain::market::queue::Waiting;
use ionet_domain::market::spot::Notice;
use ionet_domain::market::{
    Country, Denials, DenyList, Destination, Egress, EngineKind, Feed, Program, Quote,
};
use ionet_domain::money::{Asset, Rate};
use ionet_domain::order::course::ReleaseReason;
use ionet_domain::order::size::OrderChange;
use ionet_domain::order::{Bill, CloseReason, LeasePhase, ReplaceReason, Stage};
use ionet_domain::tunnel::Services;
use ionet_domain::{Address, CommandId, DeviceId, EndpointId, KeyId, LeaseId, OrderId, Refusal, TransferId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::exposed::ExposedService;
use crate::secret::Secret;
use crate::worker::{BoxPhase, EgressUse, Telemetry};

/// An error as every endpoint answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The stable name.
    pub code: String,
    /// What is wrong and what to do, for people.
    pub message: String,
    /// The refusal's numbers, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub refusal: Option<Refusal>,
}

/// What a network is: no secret in it, no sign-in needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInfo {
    /// Its name, part of every signature.
    pub name: String,
    /// The server's release.
    pub version: String,
    /// The key that signs quotes, member lists and grants.
    #[schema(value_type = String)]
    pub server: Address,
    /// How the server's endpoint is reached: the transport's own JSON.
    #[schema(value_type = Object)]
    pub server_addr: serde_json::Value,
    /// The relays, as the transport writes them.
    #[schema(value_type = Vec<Object>)]
    pub relays: Vec<serde_json::Value>,
    /// The journal's head.
    pub journal: JournalHead,
    /// The server's term.
    pub term: u64,
    /// Ray environments on offer, the default first: `name@sha256:digest`.
    pub environments: Vec<String>,
    /// The fees in basis points: renter's, supplier's.
    pub fees_basis_points: (u32, u32),
    /// Whether this is a local network whose money is worth nothing.
    pub local: bool,
}

/// Where the journal ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JournalHead {
    /// Events so far.
    pub seq: u64,
    /// The chain's hash in hex.
    pub hash: String,
}

/// Ask for a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    /// Who wants to sign in.
    #[schema(value_type = String)]
    pub account: Address,
}

/// What to sign: `sign::SignIn` with this nonce and expiry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// Good once.
    pub nonce: String,
    /// Good until then.
    pub expires_ms: u64,
}

/// A signed challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignInRequest {
    /// Who signs in.
    #[schema(value_type = String)]
    pub account: Address,
    /// From the challenge.
    pub nonce: String,
    /// From the challenge.
    pub expires_ms: u64,
    /// In hex.
    pub signature: String,
}

/// A session: a bearer token with all of the account's rights, kept by the server in memory only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// For the header `Authorization: Bearer ...`.
    #[schema(value_type = String)]
    pub token: Secret,
    /// Until when.
    pub expires_ms: u64,
}

/// Make an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Your words for it.
    pub label: String,
    /// What it may do: read, rent, supply, pay, keys.
    #[schema(value_type = Vec<String>)]
    pub scopes: BTreeSet<Scope>,
    /// The most that orders under it may commit.
    pub cap_micro_usd: u64,
    /// How long it works.
    pub lifetime_ms: u64,
}

/// A key just made; the secret is shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MadeKey {
    /// Its public name.
    #[schema(value_type = String)]
    pub id: KeyId,
    /// The bearer token.
    #[schema(value_type = String)]
    pub token: Secret,
}

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyView {
    /// Its public name.
    #[schema(value_type = String)]
    pub id: KeyId,
    /// Its owner's words.
    pub label: String,
    /// What it may do.
    #[schema(value_type = Vec<String>)]
    pub scopes: BTreeSet<Scope>,
    /// Its cap.
    pub cap_micro_usd: u64,
    /// Committed so far.
    pub spent_micro_usd: u64,
    /// Until when it works.
    pub expires_ms: u64,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// What an account holds of one asset, in minor units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    /// Which.
    #[schema(value_type = String)]
    pub asset: Asset,
    /// To be spent.
    pub available: u64,
    /// Set aside in orders.
    pub in_orders: u64,
    /// Earned and not yet paid out.
    pub earned: u64,
}

/// An account's wallet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Wallet {
    /// Whose.
    #[schema(value_type = String)]
    pub account: Address,
    /// One entry an asset.
    pub holdings: Vec<Holding>,
}

/// Send money to another wallet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendRequest {
    /// Made by the sender; a repetition is answered with `transfer_exists`.
    #[schema(value_type = String)]
    pub id: TransferId,
    /// To whom.
    #[schema(value_type = String)]
    pub to: Address,
    /// What.
    #[schema(value_type = String)]
    pub asset: Asset,
    /// In minor units.
    pub amount: u64,
}

/// Enrol a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// What it is and offers.
    #[schema(value_type = Object)]
    pub enrolment: Enrolment,
    /// The owner's name for it; only the owner sees it.
    pub machine_name: String,
}

/// What `worker start` needs to join: printed by `ionet worker token` as one word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// The server's REST address.
    pub url: String,
    /// Whose devices they will be.
    pub owner: Address,
    /// The supply network that they join under.
    pub network: String,
    /// A key with the scope `supply`.
    pub key: Secret,
}

/// A device as it is listed. What the owner alone sees is left out for others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: DeviceId,
    /// Who supplies it.
    #[schema(value_type = String)]
    pub owner: Address,
    /// Its name (owner only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_name: Option<String>,
    /// Made up, for show: nothing can be ordered on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// Where it stands: registered, checking, pooled, refused (with the reason), archived.
    #[schema(value_type = Object)]
    pub stage: DeviceStage,
    /// running, idle, paused, draining, yielding, unknown, simulated or its stage.
    pub status: String,
    /// A GPU model, or cpu.
    #[schema(value_type = Object)]
    pub class: HardwareClass,
    /// Connectivity as measured.
    #[schema(value_type = Option<String>)]
    pub tier: Option<Tier>,
    /// The supply network.
    pub network: String,
    /// The supplier's tags.
    pub tags: BTreeSet<String>,
    /// Asked for one GPU or CPU thread.
    #[schema(value_type = u64)]
    pub ask_per_unit: Rate,
    /// For hire.
    #[schema(value_type = Object)]
    pub offered: Resources,
    /// For hire and free now.
    #[schema(value_type = Object)]
    pub free: Resources,
    /// Live leases.
    pub leases: u32,
    /// CPU model, as claimed.
    pub claimed_cpu_model: String,
    /// GPUs as claimed: model and memory.
    pub claimed_gpus: Vec<String>,
    /// What the check measured.
    #[schema(value_type = Option<Object>)]
    pub measured: Option<Measured>,
    /// What relays measured of its links, the last few of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub measured_links: Vec<RelayMeasure>,
    /// The bandwidth that counts for the tier: medians of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub counted_bandwidth: Option<Bandwidth>,
    /// The region that a tag of its owner's claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_region: Option<String>,
    /// Why that is not believed, with the numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region_unproven: Option<String>,
    /// The owner's wishes.
    #[schema(value_type = Object)]
    pub rules: OwnerRules,
    /// How it is now (owner only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub telemetry: Option<Telemetry>,
}

/// Most entries that one answer with a list has.
pub const PAGE_MOST: u32 = 1000;

/// Which devices are listed; all given conditions hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct DeviceFilter {
    /// Only my own.
    pub mine: bool,
    /// A GPU model, or `cpu`.
    pub class: Option<String>,
    /// A supply network.
    pub network: Option<String>,
    /// A tag.
    pub tag: Option<String>,
    /// A stage.
    pub stage: Option<String>,
    /// At least this much connectivity: low, medium, high, ultra.
    pub tier: Option<String>,
    /// Also archived ones.
    pub archived: bool,
    /// Only after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub after: Option<DeviceId>,
    /// Only before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub before: Option<DeviceId>,
    /// Newest first instead of oldest first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub newest: bool,
    /// At most this many, up to 1000.
    pub limit: Option<u32>,
}

/// Which of the account's clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ClusterFilter {
    /// Only after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub after: Option<OrderId>,
    /// Only before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub before: Option<OrderId>,
    /// Newest first instead of oldest first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub newest: bool,
    /// At most this many, up to 1000.
    pub limit: Option<u32>,
}

/// A price with the server's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedQuote {
    /// The promise.
    #[schema(value_type = Object)]
    pub quote: Quote,
    /// In hex.
    pub signature: String,
}

/// Which hardware.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct PriceFilter {
    /// Only hardware whose name contains this, in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// What each kind of hardware costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceBoard {
    /// As of when.
    pub at_ms: u64,
    /// One entry for each kind in the pool.
    #[schema(value_type = Vec<Object>)]
    pub classes: Vec<ClassPrices>,
}

/// Prices elsewhere, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedRequest {
    /// The statement.
    #[schema(value_type = Object)]
    pub feed: Feed,
    /// In hex.
    pub signature: String,
}

/// Why a request gets what it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainedRequest {
    /// As of when.
    pub at_ms: u64,
    /// The reasons.
    #[schema(value_type = Object)]
    pub explanation: Explanation,
}

/// Where a cluster stands and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainedCluster {
    /// Which.
    #[schema(value_type = String)]
    pub cluster: OrderId,
    /// As of when.
    pub at_ms: u64,
    /// Its stage.
    #[schema(value_type = String)]
    pub stage: Stage,
    /// Why it ended.
    #[schema(value_type = Option<Object>)]
    pub reason: Option<CloseReason>,
    /// That in a sentence.
    pub says: String,
    /// While it waits: its place in the line, what it waits for, and for how long at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub waiting: Option<Waiting>,
    /// While it waits, and where devices were missing: what its request would need now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub explanation: Option<Explanation>,
}

/// Why a device gets the work that it gets, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainedDevice {
    /// As of when.
    pub at_ms: u64,
    /// The reasons.
    #[schema(value_type = Object)]
    pub explanation: DeviceExplanation,
}

/// Accept a price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    /// Made by the renter; a repetition is answered with `exists`.
    #[schema(value_type = String)]
    pub id: OrderId,
    /// The promise as it was given.
    pub quote: SignedQuote,
    /// What runs; only the workers see it.
    #[schema(value_type = Object)]
    pub program: Program,
}

/// A member of a cluster as its renter sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseView {
    /// Its lease.
    #[schema(value_type = String)]
    pub lease: LeaseId,
    /// Its place; 0 is the head.
    pub slot: u32,
    /// On which device.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// What kind of device.
    #[schema(value_type = Object)]
    pub class: HardwareClass,
    /// Whether the server hears the device: connected, or unknown (which is not failure).
    pub contact: String,
    /// Its address on the overlay.
    pub ip: String,
    /// As the journal has it.
    #[schema(value_type = Object)]
    pub phase: LeasePhase,
    /// As the device last said.
    #[schema(value_type = Option<Object>)]
    pub now: Option<BoxPhase>,
    /// How long each part of the start took, in milliseconds.
    #[schema(value_type = Vec<Object>)]
    pub parts_ms: Vec<(String, u64)>,
    /// At the quoted rate.
    #[schema(value_type = u64)]
    pub rate: Rate,
    /// Metered so far.
    pub elapsed_ms: u64,
    /// What left the cluster from its box, as the device last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressUse>,
    /// That it is no member any more, and why: `shrunk`, `paused` or `ailing`. Its box goes and costs nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub released: Option<ReleaseReason>,
    /// What it ails from; its replacement is proposed (`POST /v1/clusters/{cluster}/replace`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ailing: Option<AilingView>,
}

/// What a member ails from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AilingView {
    /// Since when that is known.
    pub since_ms: u64,
    /// Its stable name: `overloaded`, `hot`, `cut_off`, `lossy`, `slow`, `narrow` or `restarting`.
    pub code: String,
    /// That with its numbers, for people.
    pub says: String,
}

/// A cluster as its renter sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: OrderId,
    /// Where it stands.
    #[schema(value_type = String)]
    pub stage: Stage,
    /// Why it ended.
    #[schema(value_type = Option<Object>)]
    pub reason: Option<CloseReason>,
    /// The promise.
    #[schema(value_type = Object)]
    pub quote: Quote,
    /// Its members, lost ones included.
    pub leases: Vec<LeaseView>,
    /// How often its engine was started anew because its head was lost.
    pub engine_epoch: u32,
    /// Why it last got another member, if it did: `head_lost` or `member_lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub replaced: Option<ReplaceReason>,
    /// While it waits for devices: its place in the line and what it waits for, in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub waiting: Option<Waiting>,
    /// A spot order's notice: when it is ended and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub notice: Option<Notice>,
    /// When it was ordered.
    pub accepted_ms: u64,
    /// When all members were up.
    pub running_since_ms: Option<u64>,
    /// When its paid time is over.
    pub ends_ms: Option<u64>,
    /// While it is paused: when it is closed unless it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until_ms: Option<u64>,
    /// When it was closed.
    pub closed_ms: Option<u64>,
    /// Metered so far, itemised.
    #[schema(value_type = Object)]
    pub bill: Bill,
    /// With egress `listed`, what its boxes may reach outside.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow: BTreeSet<Destination>,
    /// Its services under the server's name, which the server carries and can read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed: Vec<ExposedService>,
    /// Who else may open its services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareView>,
    /// The secret of its services (Ray's token, the notebook's).
    #[schema(value_type = String)]
    pub token: Secret,
}

/// What another account may open of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareView {
    /// Who.
    #[schema(value_type = String)]
    pub account: Address,
    /// Which services; `all` for every one.
    #[schema(value_type = Vec<String>)]
    pub services: Services,
    /// Until when, in milliseconds since 1970.
    pub until_ms: u64,
}

/// Let another account open services of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// Who.
    #[schema(value_type = String)]
    pub account: Address,
    /// Which services: `tcp/PORT`, `udp/PORT`, `ssh`, `files`, `log`; or `all` alone.
    #[schema(value_type = Vec<String>)]
    pub services: Services,
    /// Until when, in milliseconds since 1970.
    pub until_ms: u64,
}

/// How the members of a cluster reach each other, by their own word of a few seconds ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterNetwork {
    /// Which cluster.
    #[schema(value_type = String)]
    pub cluster: OrderId,
    /// When this was put together.
    pub at_ms: u64,
    /// Its live members.
    pub members: Vec<NetworkMember>,
    /// Each live member's view of each other one: every pair is there twice, once from each side.
    pub links: Vec<LinkView>,
}

/// A member on the cluster's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkMember {
    /// Its place; 0 is the head.
    pub slot: u32,
    /// Its lease.
    #[schema(value_type = String)]
    pub lease: LeaseId,
    /// Its address on the overlay.
    pub ip: String,
}

/// One member's view of its link to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkView {
    /// Whose view it is, by place.
    pub from: u32,
    /// Of whom, by place.
    pub to: u32,
    /// When it was told.
    pub told_ms: u64,
    /// The link.
    pub link: crate::worker::PeerLink,
}

/// Add time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// How much.
    pub added_ms: u64,
}

/// Ask what more members cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoreRequest {
    /// How many more.
    pub members: u32,
}

/// Add members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrowRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// The price of the added members as it was given.
    pub quote: SignedQuote,
}

/// Take members away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShrinkRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// How many stay: the first ones, the head among them.
    pub members: u32,
}

/// Put another device in a member's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// Which member, by its place; 0 is the head.
    pub member: u32,
}

/// A command without particulars: pause, resume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
}

/// Change a cluster that waits or runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// What is changed; what is not named stays.
    #[schema(value_type = Object)]
    pub change: OrderChange,
}

/// Change what the boxes may reach outside their cluster, while they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// `on`: every public address; `listed`: what `allow` says; `off`: members only.
    #[schema(value_type = String)]
    pub egress: Egress,
    /// With `listed`: HOST or HOST:PORT each, the host a name, `*.name`, an address or a CIDR.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow: BTreeSet<Destination>,
}

/// Say how a cluster that ended was, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateRequest {
    /// A name for the command, so that a retry is found out.
    #[schema(value_type = String)]
    pub id: CommandId,
    /// One to five; five is the best.
    pub stars: u8,
}

/// The country of an account, by its own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// Two letters, such as DE; none if none was declared.
    #[schema(value_type = Option<String>)]
    pub country: Option<Country>,
}

/// Whom and what a device does not serve; its owner's eyes only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceTerms {
    /// The lists.
    #[schema(value_type = Object)]
    pub denied: Denials,
}

/// The operator's word on his deny list, by the server's own key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorRequest {
    /// What he says.
    #[schema(value_type = Object)]
    pub order: DenyOrder,
    /// In hex.
    pub signature: String,
}

/// What the operator says of his deny list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenyOrder {
    /// When, in milliseconds since 1970: a statement is good for a minute.
    pub at_ms: u64,
    /// The list from now on; without it, it is only shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<DenyList>,
}

/// The operator's deny list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DenyListView {
    /// As it is.
    #[schema(value_type = Object)]
    pub list: DenyList,
}

/// Ask for leave to open tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelGrantRequest {
    /// The client's endpoint key.
    #[schema(value_type = String)]
    pub endpoint: EndpointId,
    /// To which services; all that the caller may open, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub services: Option<Services>,
}

/// Leave to open tunnels, and where to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelGrant {
    /// `sign::Grant` as signed by the server.
    #[schema(value_type = Object)]
    pub grant: crate::sign::Grant,
    /// In hex.
    pub signature: String,
    /// The members that can be reached: lease, slot, endpoint.
    pub members: Vec<TunnelMember>,
    /// What runs in the cluster.
    #[schema(value_type = String)]
    pub engine: EngineKind,
    /// The secret of its services, for whoever may open Ray's ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub token: Option<Secret>,
}

/// A member that a tunnel can go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelMember {
    /// Its lease.
    #[schema(value_type = String)]
    pub lease: LeaseId,
    /// Its place; 0 is the head.
    pub slot: u32,
    /// How it is reached.
    #[schema(value_type = Object)]
    pub endpoint: crate::worker::MemberEndpoint,
}

/// An event of the journal as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EventView {
    /// Its place in the journal.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// The chain's hash after it, in hex.
    pub hash: String,
    /// What it belongs to.
    pub subjects: Vec<String>,
    /// The public part.
    #[schema(value_type = Object)]
    pub event: serde_json::Value,
    /// H(salt || private part) in hex, if there is one: with it anyone can recompute the hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_digest: Option<String>,
    /// The public part exactly as it was written, which the hash is taken over; in the journal's export only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Which events. All lists are paged alike: go on after (or, newest first, before) the last one that you have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct EventFilter {
    /// A cluster, lease, device, account, key or payout.
    pub subject: Option<String>,
    /// Only after this place.
    pub after: u64,
    /// Only before this place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// Newest first instead of oldest first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub newest: bool,
    /// At most this many, up to 1000.
    pub limit: Option<u32>,
}

/// A line of the ledger as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LedgerLine {
    /// The event's place in the journal.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// The transfer.
    #[schema(value_type = Object)]
    pub transfer: ionet_domain::ledger::Transfer,
}

/// A line of the activity log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivityLine {
    /// The event's place in the journal.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// What.
    #[schema(value_type = String)]
    pub kind: ActivityKind,
    /// By which key.
    #[schema(value_type = Option<String>)]
    pub key: Option<KeyId>,
    /// From where, with what; gone if it was erased.
    pub particulars: Option<String>,
}

/// All balances of the ledger, public: account text to minor units available.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Books {
    /// `owner:ASSET` to credits less debits; the sum for each asset is zero.
    pub balances: BTreeMap<String, i64>,
    /// The journal's head that they were taken at.
    pub journal: JournalHead,
}
