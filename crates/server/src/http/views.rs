//! From the state and the fleet to what the API shows.
//!
//! Always holds: what only an owner sees is filled in only for the owner, who is an argument here. Not here: who asks.

use std::collections::BTreeMap;

use ionet_api::Secret;
use ionet_api::rest::{
    AilingView, ClusterNetwork, ClusterView, DeviceFilter, DeviceView, Holding, KeyView, LeaseView, LinkView,
    NetworkMember, ShareView, TunnelMember, Wallet,
};
use ionet_domain::connectivity;
use ionet_domain::device::{Contact, Device, DeviceStage, HardwareClass, Tier};
use ionet_domain::ledger::Owner;
use ionet_domain::market::queue::Waiting;
use ionet_domain::order::{Lease, overlay_ip};
use ionet_domain::{Address, Asset, DeviceId, LeaseId, Order, Refusal, Stage, State};

use crate::fleet::Fleet;

const ASSETS: [Asset; 3] = [Asset::Iosd, Asset::Io, Asset::Usdc];

/// What an account holds.
pub(super) fn wallet(state: &State, account: Address) -> Wallet {
    let in_orders = |asset| {
        let own = state.orders.values().filter(|order| order.account == account);
        own.map(|order| state.ledger.balance(Owner::Order(order.id), asset).available()).sum()
    };
    let holding = |asset| Holding {
        asset,
        available: state.ledger.balance(Owner::Wallet(account), asset).available(),
        in_orders: in_orders(asset),
        earned: state.ledger.balance(Owner::Earned(account), asset).available(),
    };
    Wallet { account, holdings: ASSETS.into_iter().map(holding).collect() }
}

/// All balances.
pub(super) fn books(state: &State) -> BTreeMap<String, i64> {
    let signed = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
    let entries = state.ledger.balances();
    entries.map(|(key, b)| (key.to_string(), signed(b.credits).saturating_sub(signed(b.debits)))).collect()
}

/// An account's API keys, oldest first.
pub(super) fn keys(state: &State, account: Address) -> Vec<KeyView> {
    let keys = state.accounts.get(&account).into_iter().flat_map(|account| account.keys.values());
    keys.map(|key| KeyView {
        id: key.id,
        label: state.private.key_secrets.get(&key.id).map(|(label, _)| label.clone()).unwrap_or_default(),
        scopes: key.scopes.clone(),
        cap_micro_usd: key.cap_micro_usd,
        spent_micro_usd: key.spent_micro_usd,
        expires_ms: key.expires_ms,
        revoked: key.revoked,
    })
    .collect()
}

/// A device; its owner sees more.
pub(super) fn device(
    state: &State,
    fleet: &Fleet,
    id: DeviceId,
    owner: Option<Address>,
) -> Result<DeviceView, Refusal> {
    let found = state.device(id)?;
    let enrolment = &found.enrolment;
    let own = owner == Some(enrolment.owner);
    let gpu = |gpu: &ionet_domain::device::Gpu| format!("{}, {} MiB", gpu.model, gpu.memory_bytes >> 20);
    Ok(DeviceView {
        id,
        owner: enrolment.owner,
        machine_name: own.then(|| state.private.machine_names.get(&id).cloned()).flatten(),
        simulated: enrolment.simulated,
        stage: found.stage.clone(),
        status: device_status(found).into(),
        class: found.class.clone(),
        tier: found.tier,
        network: enrolment.network.clone(),
        tags: enrolment.tags.clone(),
        ask_per_unit: enrolment.ask_per_unit,
        offered: enrolment.offered,
        free: found.free(),
        leases: found.leases,
        claimed_cpu_model: enrolment.hardware.cpu_model.clone(),
        claimed_gpus: enrolment.hardware.gpus.iter().map(gpu).collect(),
        measured: found.measured.clone(),
        measured_links: found.links.clone(),
        counted_bandwidth: connectivity::bandwidth(&found.links),
        claimed_region: connectivity::claimed_region(&enrolment.tags).map(str::to_owned),
        region_unproven: found.region_doubt(),
        rules: found.rules.clone(),
        telemetry: own.then(|| fleet.device(id).and_then(|now| now.telemetry.back().cloned())).flatten(),
    })
}

/// One word for how a device is.
pub(super) fn device_status(device: &Device) -> &'static str {
    let rules = &device.rules;
    match &device.stage {
        DeviceStage::Registered => "registered",
        DeviceStage::Checking => "checking",
        DeviceStage::Refused { .. } => "refused",
        DeviceStage::Archived => "archived",
        DeviceStage::Pooled if device.enrolment.simulated => "simulated",
        DeviceStage::Pooled if device.contact != Contact::Connected => "unknown",
        DeviceStage::Pooled if rules.paused => "paused",
        DeviceStage::Pooled if rules.draining => "draining",
        DeviceStage::Pooled if rules.yielding => "yielding",
        DeviceStage::Pooled if device.leases > 0 => "running",
        DeviceStage::Pooled => "idle",
    }
}

/// A device filter with its words understood.
pub(super) struct DeviceSieve {
    filter: DeviceFilter,
    tier: Option<Tier>,
    owner: Option<Address>,
}

impl DeviceSieve {
    /// Refuses words that name no tier or stage.
    pub(super) fn new(filter: DeviceFilter, caller: Option<Address>) -> Result<Self, Refusal> {
        const STAGES: [&str; 5] = ["registered", "checking", "pooled", "refused", "archived"];
        let tier = filter.tier.as_deref().map(str::parse).transpose()?;
        if let Some(stage) = filter.stage.as_deref().filter(|stage| !STAGES.contains(stage)) {
            return Err(out_of_range("stage", stage, &STAGES.join(", ")));
        }
        let owner = if filter.mine { caller } else { None };
        Ok(Self { filter, tier, owner })
    }

    /// Whether a device meets all conditions.
    pub(super) fn passes(&self, device: &Device) -> bool {
        let f = &self.filter;
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let stage = device.stage.to_string();
        is(&f.class, &device.class.to_string())
            && is(&f.network, &device.enrolment.network)
            && is(&f.stage, &stage)
            && f.tag.as_ref().is_none_or(|tag| device.enrolment.tags.contains(tag))
            && self.tier.is_none_or(|least| device.tier.is_some_and(|tier| tier >= least))
            && self.owner.is_none_or(|owner| owner == device.enrolment.owner)
            && (f.archived || f.stage.is_some() || device.stage != DeviceStage::Archived)
    }
}

/// A value outside what a field takes.
pub(super) fn out_of_range(field: &str, value: &str, limit: &str) -> Refusal {
    let value = value.chars().take(80).collect();
    Refusal::OutOfRange { field: field.into(), value, limit: limit.into() }
}

/// A cluster for its renter; `waiting` is what it is told in the line.
pub(super) fn cluster(
    state: &State,
    fleet: &Fleet,
    order: &Order,
    waiting: Option<Waiting>,
    token: Secret,
) -> ClusterView {
    let leases = order.leases.iter().map(|(n, lease)| lease_view(state, fleet, order, *n, lease)).collect();
    ClusterView {
        id: order.id,
        stage: order.stage,
        reason: order.reason.clone(),
        quote: order.quote.clone(),
        leases,
        engine_epoch: order.engine_epoch,
        replaced: order.replaced,
        waiting,
        notice: order.ways.notice,
        accepted_ms: order.accepted_ms,
        running_since_ms: order.running_since_ms,
        ends_ms: order.ends_ms(),
        paused_until_ms: order.course.pause.filter(|_| order.stage == Stage::Paused).map(|it| it.until_ms),
        closed_ms: order.closed_ms,
        bill: order.bill(),
        exposed: Vec::new(),
        shares: shares(order),
        allow: state.private.programs.get(&order.id).map(|program| program.allow.clone()).unwrap_or_default(),
        token,
    }
}

fn shares(order: &Order) -> Vec<ShareView> {
    let each = order.sharing.shares.iter().map(|(account, share)| ShareView {
        account: *account,
        services: share.services.clone(),
        until_ms: share.until_ms,
    });
    each.collect()
}

fn lease_view(state: &State, fleet: &Fleet, order: &Order, n: u32, lease: &Lease) -> LeaseView {
    let id = LeaseId { order: order.id, n };
    let device = state.devices.get(&lease.device);
    let connected = device.is_some_and(|device| device.contact == Contact::Connected);
    let observed = fleet.observed(lease.device, id);
    LeaseView {
        lease: id,
        slot: lease.slot,
        device: lease.device,
        class: device.map_or(HardwareClass::Cpu, |device| device.class.clone()),
        contact: if connected { "connected" } else { "unknown" }.into(),
        ip: overlay_ip(lease.slot).to_string(),
        phase: lease.phase.clone(),
        now: observed.map(|observed| observed.phase.clone()),
        parts_ms: observed.map(|observed| observed.parts_ms.clone()).unwrap_or_default(),
        rate: lease.rate,
        elapsed_ms: lease.elapsed_ms,
        egress: observed.and_then(|observed| observed.egress),
        released: lease.released.map(|released| released.why),
        ailing: lease.ailing.as_ref().filter(|_| lease.live()).map(|ailing| AilingView {
            since_ms: ailing.since_ms,
            code: ailing.ailment.code().into(),
            says: ailing.ailment.to_string(),
        }),
    }
}

/// How the live members of a cluster reach each other.
pub(super) fn cluster_network(fleet: &Fleet, order: &Order, at_ms: u64) -> ClusterNetwork {
    let live: Vec<_> = order.leases.iter().filter(|(_, lease)| lease.live()).collect();
    let slots: BTreeMap<u32, u32> = live.iter().map(|(n, lease)| (**n, lease.slot)).collect();
    let member = |(n, lease): &(&u32, &Lease)| {
        let id = LeaseId { order: order.id, n: **n };
        NetworkMember { slot: lease.slot, lease: id, ip: overlay_ip(lease.slot).to_string() }
    };
    let links = live.iter().flat_map(|(n, lease)| {
        let told = fleet.links(LeaseId { order: order.id, n: **n });
        let each = told.into_iter().flat_map(|now| now.links.iter().map(move |link| (now.told_ms, link)));
        each.filter_map(|(told_ms, link)| {
            let to = *slots.get(&link.peer)?;
            Some(LinkView { from: lease.slot, to, told_ms, link: link.clone() })
        })
    });
    ClusterNetwork {
        cluster: order.id,
        at_ms,
        members: live.iter().map(member).collect(),
        links: links.collect(),
    }
}

/// The members of a cluster that have said how they are reached.
pub(super) fn tunnel_members(fleet: &Fleet, order: &Order) -> Vec<TunnelMember> {
    let live = order.leases.iter().filter(|(_, lease)| lease.live());
    live.filter_map(|(n, lease)| {
        let id = LeaseId { order: order.id, n: *n };
        let endpoint = fleet.endpoint(id)?.clone();
        Some(TunnelMember { lease: id, slot: lease.slot, endpoint })
    })
    .collect()
}
