//! What the server hears of the devices now: links, telemetry, what runs. In memory only; a restart forgets it and the
//! devices tell it again.
//!
//! Always holds: a device is believed only over the link of the endpoint key that it is enrolled with; a receipt is kept
//! only if the supervisor's own key signed it. Not here: what follows from it (`reconcile`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ionet_api::Secret;
use ionet_api::sign::{self, Usage};
use ionet_api::worker::{
    BoxPhase, Desired, Generation, MemberEndpoint, MemberList, ObservedLease, Telemetry,
};
use ionet_domain::device::Measured;
use ionet_domain::meter::Receipt;
use ionet_domain::{Address, DeviceId, EndpointId, LeaseId, OrderId, PayoutId, State};
use serde::{Deserialize, Serialize};

use crate::links::{Links, LinksNow};
use crate::vitals::Found;

/// A device that was not heard for longer than this is silent.
pub const SILENT_MS: u64 = 20_000;
/// Telemetry points kept for each device.
pub const TELEMETRY_POINTS: usize = 120;
/// A receipt may claim this much more than the server's own clock allows; it is never charged.
const CLOCKS_APART_MS: u64 = 2_000;
/// Limits on what one device can make the server keep: leases, other members in a receipt, an address, GPUs.
const MAX_OBSERVED: usize = 1024;
const MAX_HEARD: usize = 256;
const MAX_ADDR_BYTES: usize = 4096;
const MAX_GPUS: usize = 64;

/// The network between the server and a device as the server measured it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkMeasured {
    /// Shortest round trip in microseconds.
    pub rtt_us: u32,
    /// To the device, in Mbit/s.
    pub down_mbit_s: u32,
    /// From the device, in Mbit/s.
    pub up_mbit_s: u32,
}

/// A device's check as far as it got.
#[derive(Debug, Clone, Default)]
pub struct CheckNow {
    /// When the device was asked last.
    pub asked_ms: Option<u64>,
    /// The server's part.
    pub network: Option<NetworkMeasured>,
    /// The device's part.
    pub measured: Option<Result<Measured, String>>,
}

/// What is heard of one device.
#[derive(Debug, Clone)]
pub struct DeviceNow {
    /// Whether its link is up and it has said hello on it.
    pub connected: bool,
    /// The key that it is linked with.
    pub endpoint: EndpointId,
    /// The agent's release.
    pub version: String,
    /// The last desired set that it carried out, as it said in its hello.
    pub generation: Generation,
    /// When it was heard last.
    pub heard_ms: u64,
    /// Since when it is heard without a silence.
    pub heard_since_ms: u64,
    /// When it last said what runs.
    pub observed_ms: u64,
    /// What runs, by its own word; receipts in it are verified.
    pub observed: BTreeMap<LeaseId, ObservedLease>,
    /// How it was, oldest first.
    pub telemetry: VecDeque<Telemetry>,
    /// Receipts that were not believed.
    pub bad_receipts: u64,
    /// Its check, if one is going on.
    pub check: CheckNow,
    /// What it was told last on this link, and when.
    pub(crate) told: Option<(Desired, u64)>,
}

/// What is remembered of the metering of one lease.
#[derive(Debug, Clone, Default)]
pub(crate) struct MeterNow {
    /// When it was metered last.
    pub(crate) at_ms: Option<u64>,
    /// The receipt that was tried last, in elapsed milliseconds.
    pub(crate) tried_ms: u64,
    /// Members that said in a fresh receipt that they heard this lease, and when.
    pub(crate) heard_by: BTreeMap<u32, u64>,
}

/// A member list as the members are told it.
#[derive(Debug, Clone)]
pub(crate) struct SignedList {
    pub(crate) list: MemberList,
    pub(crate) signature: String,
    /// The secret of the cluster's services.
    pub(crate) token: Secret,
}

/// All devices as they are heard now.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    devices: BTreeMap<DeviceId, DeviceNow>,
    links: BTreeMap<EndpointId, Option<DeviceId>>,
    endpoints: BTreeMap<LeaseId, MemberEndpoint>,
    pub(crate) endpoints_changed: bool,
    pub(crate) meters: BTreeMap<LeaseId, MeterNow>,
    pub(crate) lists: BTreeMap<OrderId, SignedList>,
    /// When a program of an order last ended by itself; a restart forgets it, which only shortens a wait.
    pub(crate) exits: BTreeMap<OrderId, u64>,
    /// When a payment under way is asked for again.
    pub(crate) payments: BTreeMap<PayoutId, u64>,
    /// What members were last found to ail from.
    pub(crate) found: BTreeMap<LeaseId, Found>,
    /// When the size or a member of an order was last to be changed without its renter.
    pub(crate) tried: BTreeMap<OrderId, u64>,
    /// When this server started to listen.
    pub(crate) started_ms: u64,
    /// The number of the last desired set that any device was told.
    pub(crate) last_told_n: u64,
    unknown: BTreeMap<LeaseId, Unknown>,
    /// How members reach each other.
    pub(crate) overlay: Links,
}

/// A lease that a device reports and the live state does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// The journal is being asked.
    Asked(DeviceId),
    /// It is in the journal as ended long ago.
    Ended,
    /// Nobody here knows it: left alone.
    Adopted(DeviceId),
}

impl Fleet {
    /// A fleet that remembers how supervisors were reached before a restart.
    pub fn new(endpoints: BTreeMap<LeaseId, MemberEndpoint>, now_ms: u64) -> Self {
        Self { endpoints, started_ms: now_ms, ..Self::default() }
    }

    /// When a device was heard last; when this server started if it was not heard since.
    pub(crate) fn heard_ms(&self, device: DeviceId) -> u64 {
        self.devices.get(&device).map_or(self.started_ms, |now| now.heard_ms)
    }

    /// What is heard of a device; `None` if nothing was since the server started.
    pub fn device(&self, device: DeviceId) -> Option<&DeviceNow> {
        self.devices.get(&device)
    }

    /// All devices heard of since the server started.
    pub fn devices(&self) -> impl Iterator<Item = (&DeviceId, &DeviceNow)> {
        self.devices.iter()
    }

    /// Whether a device's link is up and it has said hello.
    pub fn connected(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|now| now.connected)
    }

    /// A lease as its device last said.
    pub fn observed(&self, device: DeviceId, lease: LeaseId) -> Option<&ObservedLease> {
        self.devices.get(&device)?.observed.get(&lease)
    }

    /// How a lease's supervisor is reached.
    pub fn endpoint(&self, lease: LeaseId) -> Option<&MemberEndpoint> {
        self.endpoints.get(&lease)
    }

    /// How a member last saw its links to the others of its cluster.
    pub fn links(&self, lease: LeaseId) -> Option<&LinksNow> {
        self.overlay.of(lease)
    }

    /// How all supervisors are reached.
    pub fn endpoints(&self) -> &BTreeMap<LeaseId, MemberEndpoint> {
        &self.endpoints
    }

    /// Leases that run on devices and that this server does not know: it was restored from an old backup. They are
    /// left alone until what is paid for runs out.
    pub fn adopted(&self) -> Vec<(DeviceId, LeaseId)> {
        let adopted = self.unknown.iter().filter_map(|(lease, unknown)| match unknown {
            Unknown::Adopted(device) | Unknown::Asked(device) => Some((*device, *lease)),
            Unknown::Ended => None,
        });
        adopted.collect()
    }

    /// Whether a lease that the live state does not have is known to have ended.
    pub(crate) fn ended_long_ago(&self, lease: LeaseId) -> bool {
        self.unknown.get(&lease) == Some(&Unknown::Ended)
    }

    /// Takes note of a lease that the live state does not have; true if the journal should be asked.
    pub(crate) fn note_unknown(&mut self, device: DeviceId, lease: LeaseId) -> bool {
        let new = !self.unknown.contains_key(&lease);
        if new {
            self.unknown.insert(lease, Unknown::Asked(device));
        }
        new
    }

    /// Takes the journal's answer on such a lease.
    pub(crate) fn note_found(&mut self, lease: LeaseId, ended: bool) {
        if let Some(unknown) = self.unknown.get_mut(&lease) {
            *unknown = match *unknown {
                _ if ended => Unknown::Ended,
                Unknown::Asked(device) => Unknown::Adopted(device),
                other => other,
            };
        }
    }

    pub(crate) fn link_is_up(&self, endpoint: EndpointId) -> bool {
        self.links.contains_key(&endpoint)
    }

    /// The device that said hello on a link.
    pub(crate) fn device_on(&self, endpoint: EndpointId) -> Option<DeviceId> {
        self.links.get(&endpoint).copied().flatten()
    }

    pub(crate) fn link_up(&mut self, endpoint: EndpointId) {
        self.link_down(endpoint);
        self.links.insert(endpoint, None);
    }

    pub(crate) fn link_down(&mut self, endpoint: EndpointId) {
        let Some(Some(device)) = self.links.remove(&endpoint) else { return };
        if let Some(now) = self.devices.get_mut(&device).filter(|now| now.endpoint == endpoint) {
            now.connected = false;
            now.told = None;
            now.check = CheckNow::default();
        }
    }

    /// A device said hello on a link that is up; the caller has checked that the key is the device's.
    pub(crate) fn hello(
        &mut self,
        device: DeviceId,
        endpoint: EndpointId,
        (version, generation): (String, Generation),
        now_ms: u64,
    ) {
        self.links.insert(endpoint, Some(device));
        let now = self.devices.entry(device).or_insert_with(|| DeviceNow::heard(endpoint, now_ms));
        now.endpoint = endpoint;
        now.connected = true;
        now.told = None;
        now.version = version.chars().take(80).collect();
        now.generation = generation;
        now.check = CheckNow::default();
    }

    /// A frame of the device arrived.
    pub(crate) fn heard(&mut self, device: DeviceId, now_ms: u64) -> Option<&mut DeviceNow> {
        let now = self.devices.get_mut(&device)?;
        if now_ms.saturating_sub(now.heard_ms) > SILENT_MS {
            now.heard_since_ms = now_ms;
        }
        now.heard_ms = now.heard_ms.max(now_ms);
        Some(now)
    }

    pub(crate) fn device_mut(&mut self, device: DeviceId) -> Option<&mut DeviceNow> {
        self.devices.get_mut(&device)
    }

    /// A device said what runs on it: all of it. Receipts are verified; one that is not good is replaced by the last
    /// good one. True if anything but receipts is new: those are looked at with the next tick.
    pub(crate) fn observe(
        &mut self,
        device: DeviceId,
        reported: Vec<ObservedLease>,
        state: &State,
        now_ms: u64,
    ) -> bool {
        let Some(now) = self.devices.get_mut(&device) else { return false };
        let before = std::mem::take(&mut now.observed);
        now.observed_ms = now_ms;
        for mut observed in reported.into_iter().take(MAX_OBSERVED) {
            trim(&mut observed);
            let id = observed.lease;
            let ran_at_most_ms = ran_at_most_ms(state, device, id, now_ms);
            if let Some(endpoint) = observed.endpoint.as_ref().filter(|_| ran_at_most_ms.is_some())
                && self.endpoints.get(&id) != Some(endpoint)
            {
                self.endpoints.insert(id, endpoint.clone());
                self.endpoints_changed = true;
            }
            let last = before.get(&id).and_then(|known| known.receipt.as_ref());
            if let Some(receipt) = observed.receipt.take_if(|receipt| last != Some(receipt)) {
                let signer = self.endpoints.get(&id).map(|endpoint| endpoint.id);
                let plausible = receipt.lease == id
                    && receipt.heard.len() <= MAX_HEARD
                    && ran_at_most_ms.is_some_and(|most_ms| receipt.elapsed_ms <= most_ms + CLOCKS_APART_MS);
                let network = &state.params.network;
                if plausible && signer.is_some_and(|key| believed(&receipt, key, network)) {
                    note_heard(&mut self.meters, &receipt, last, (state, now_ms));
                    observed.receipt = Some(receipt);
                } else {
                    now.bad_receipts += 1;
                    observed.receipt = last.cloned();
                }
            }
            now.observed.insert(id, observed);
        }
        now.observed.len() != before.len()
            || now.observed.values().zip(before.values()).any(|(one, other)| differs(one, other))
    }

    /// Forgets what belongs to leases that no longer matter.
    pub(crate) fn forget(&mut self, live: &BTreeSet<OrderId>) {
        let count = self.endpoints.len();
        self.endpoints.retain(|lease, _| live.contains(&lease.order));
        self.endpoints_changed |= self.endpoints.len() != count;
        self.meters.retain(|lease, _| live.contains(&lease.order));
        self.lists.retain(|order, _| live.contains(order));
        self.exits.retain(|order, _| live.contains(order));
        self.tried.retain(|order, _| live.contains(order));
        self.overlay.retain(|order| live.contains(&order));
        let devices = &self.devices;
        self.unknown.retain(|lease, _| devices.values().any(|now| now.observed.contains_key(lease)));
    }
}

/// Whether two reports of leases differ in more than their receipts.
fn differs(one: &ObservedLease, other: &ObservedLease) -> bool {
    (one.lease, one.engine_restarts) != (other.lease, other.engine_restarts)
        || one.phase != other.phase
        || one.parts_ms != other.parts_ms
        || one.endpoint != other.endpoint
}

fn believed(receipt: &Receipt, signer: EndpointId, network: &str) -> bool {
    let usage = Usage { lease: receipt.lease, elapsed_ms: receipt.elapsed_ms, heard: receipt.heard.clone() };
    sign::verify(Address(signer.0), network, &usage, &receipt.signature).is_ok()
}

/// How long a lease of this device can have run by now; `None` if it is not this device's.
fn ran_at_most_ms(state: &State, device: DeviceId, lease: LeaseId, now_ms: u64) -> Option<u64> {
    let (_, lease) = state.lease(lease).ok().filter(|(_, lease)| lease.device == device)?;
    Some(lease.charging_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms)))
}

/// Cuts what a device says to sizes that can be kept, passed on and written down.
fn trim(observed: &mut ObservedLease) {
    observed.parts_ms.truncate(32);
    for (part, _) in &mut observed.parts_ms {
        *part = part.chars().take(60).collect();
    }
    if let BoxPhase::Removed { wipe } = &mut observed.phase {
        wipe.method = wipe.method.chars().take(200).collect();
    }
    observed.endpoint.take_if(|endpoint| endpoint.addr.to_string().len() > MAX_ADDR_BYTES);
}

/// A receipt that goes on from the last one is fresh word of whom its supervisor heard.
fn note_heard(
    meters: &mut BTreeMap<LeaseId, MeterNow>,
    receipt: &Receipt,
    last: Option<&Receipt>,
    (state, now_ms): (&State, u64),
) {
    if last.is_some_and(|last| last.elapsed_ms >= receipt.elapsed_ms) {
        return;
    }
    for heard in receipt.heard.iter().filter(|heard| **heard != receipt.lease.n) {
        let lease = LeaseId { order: receipt.lease.order, n: *heard };
        if state.lease(lease).is_ok() {
            meters.entry(lease).or_default().heard_by.insert(receipt.lease.n, now_ms);
        }
    }
}

/// A check's result with texts and lists cut to sizes that can be written down.
pub(crate) fn trimmed(measured: Result<Measured, String>) -> Result<Measured, String> {
    let mut measured = measured.map_err(|reason| reason.chars().take(500).collect::<String>())?;
    measured.gpus.truncate(MAX_GPUS);
    for gpu in &mut measured.gpus {
        gpu.uuid = gpu.uuid.chars().take(80).collect();
    }
    measured.enforcement = measured.enforcement.map(|how| how.chars().take(200).collect());
    Ok(measured)
}

impl DeviceNow {
    fn heard(endpoint: EndpointId, now_ms: u64) -> Self {
        Self {
            connected: true,
            endpoint,
            version: String::new(),
            generation: Generation::default(),
            heard_ms: now_ms,
            heard_since_ms: now_ms,
            observed_ms: now_ms,
            observed: BTreeMap::new(),
            telemetry: VecDeque::new(),
            bad_receipts: 0,
            check: CheckNow::default(),
            told: None,
        }
    }

    pub(crate) fn take_telemetry(&mut self, mut telemetry: Telemetry) {
        telemetry.gpus.truncate(MAX_GPUS);
        if self.telemetry.len() >= TELEMETRY_POINTS {
            self.telemetry.pop_front();
        }
        self.telemetry.push_back(telemetry);
    }
}
