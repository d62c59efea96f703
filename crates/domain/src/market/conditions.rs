//! The conditions of a request beside hardware, size and price, and the terms of suppliers and operator: one rule each, asked
//! of a device as it stands and of the traits that the index keeps, with the same answer.
//!
//! Always holds: a condition that nobody set removes nothing; what is not known or not borne out meets no condition. Not
//! here: size, hardware, tags, connectivity (`place`), the index (`book`).

use std::collections::{BTreeMap, BTreeSet};

use super::explain::Condition;
use super::record::MarketRecord;
use super::request::Request;
use super::standing::USUAL_PRIOR_LEASES;
use super::terms::{Asker, Denials};
use super::wishes::{Isolation, region_within};
use crate::device::{Device, HardwareClass};
use crate::id::{Address, DeviceId};
use crate::state::{Params, Private, State};

/// What is known of devices beside themselves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    market: Option<&'a MarketRecord>,
    prior_leases: u32,
    terms: &'a BTreeMap<DeviceId, Denials>,
    denied: &'a BTreeSet<DeviceId>,
}

impl<'a> Known<'a> {
    /// As the parts of a state say.
    pub(crate) fn new(market: Option<&'a MarketRecord>, private: &'a Private, params: &'a Params) -> Self {
        let prior_leases = params.price.as_ref().map_or(USUAL_PRIOR_LEASES, |t| t.reliability_prior_leases);
        Self { market, prior_leases, terms: &private.terms, denied: &private.deny.devices }
    }

    /// As a state says.
    pub(crate) fn of(state: &'a State) -> Self {
        Self::new(state.market.as_ref(), &state.private, &state.params)
    }

    /// Whether the operator keeps a device out of the market.
    pub(crate) fn denied(&self, device: DeviceId) -> bool {
        self.denied.contains(&device)
    }

    /// Reliability as it is compared, in percent.
    pub(crate) fn reliability_percent(&self, device: DeviceId) -> u8 {
        let served = self.market.and_then(|market| market.served.get(&device));
        served.map_or(100, |served| served.reliability_percent(self.prior_leases))
    }

    /// What is missing in that.
    pub(crate) fn unreliable_percent(&self, device: DeviceId) -> u8 {
        100 - self.reliability_percent(device).min(100)
    }

    /// Since when a device waits for work: it was freed of its last lease, or else it enrolled. In milliseconds since 1970.
    pub(crate) fn waits_since_ms(&self, device: DeviceId) -> u64 {
        let served = self.market.and_then(|market| market.served.get(&device));
        served.map_or(0, |served| served.free_since_ms).max(device.at_ms())
    }

    /// What a device's supplier does not serve.
    pub(crate) fn terms(&self, device: DeviceId) -> Option<&'a Denials> {
        self.terms.get(&device)
    }
}

/// What conditions look at.
pub(crate) trait Facts {
    fn proven_region(&self) -> Option<&str>;
    fn cpu_model(&self) -> &str;
    fn gpu_memory_mib(&self) -> u32;
    fn one_tenant(&self) -> bool;
    fn reliability_percent(&self) -> u8;
    fn terms(&self) -> Option<&Denials>;
}

/// A device that is looked at by itself.
pub(crate) struct Looked<'a> {
    pub(crate) id: DeviceId,
    pub(crate) device: &'a Device,
    pub(crate) known: Known<'a>,
}

impl Facts for Looked<'_> {
    fn proven_region(&self) -> Option<&str> {
        self.device.proven_region()
    }
    fn cpu_model(&self) -> &str {
        &self.device.enrolment.hardware.cpu_model
    }
    fn gpu_memory_mib(&self) -> u32 {
        self.device.gpu_memory_mib()
    }
    fn one_tenant(&self) -> bool {
        self.device.one_tenant()
    }
    fn reliability_percent(&self) -> u8 {
        self.known.reliability_percent(self.id)
    }
    fn terms(&self) -> Option<&Denials> {
        self.known.terms(self.id)
    }
}

/// The conditions here, in the order in which they are applied.
pub(crate) const CONDITIONS: [Condition; 7] = [
    Condition::GpuMinimum,
    Condition::CpuModel,
    Condition::Regions,
    Condition::Residency,
    Condition::Isolation,
    Condition::Reliability,
    Condition::Terms,
];

/// Whether a request sets any of the conditions at all; terms are set by others.
pub(crate) fn any_set(request: &Request) -> bool {
    !request.gpu_min.is_none()
        || request.cpu_model.is_some()
        || !request.regions.is_empty()
        || !request.not_regions.is_empty()
        || request.isolation.is_some_and(|isolation| isolation != Isolation::Process)
        || request.min_reliability_percent.is_some()
}

/// Whether one of the conditions is met.
pub(crate) fn meets(one: Condition, facts: &impl Facts, request: &Request, asker: &Asker) -> bool {
    let within = |regions: &BTreeSet<String>, own: &str| regions.iter().any(|r| region_within(own, r));
    match one {
        Condition::GpuMinimum => {
            let least = request.gpu_min.memory_bytes;
            least == 0 || u64::from(facts.gpu_memory_mib()) << 20 >= least
        }
        Condition::CpuModel => request.allows_cpu(facts.cpu_model()),
        Condition::Regions => {
            request.regions.is_empty()
                || facts.proven_region().is_some_and(|own| within(&request.regions, own))
        }
        Condition::Residency => {
            request.not_regions.is_empty()
                || facts.proven_region().is_some_and(|own| !within(&request.not_regions, own))
        }
        Condition::Isolation => match request.isolation {
            None | Some(Isolation::Process) => true,
            Some(Isolation::Limits) => !facts.one_tenant(),
            Some(Isolation::OneTenant) => facts.one_tenant(),
        },
        Condition::Reliability => {
            request.min_reliability_percent.is_none_or(|least| facts.reliability_percent() >= least)
        }
        Condition::Terms => facts.terms().is_none_or(|terms| terms.refuse(asker).is_none()),
        _ => true,
    }
}

/// Whether all of them are.
pub(crate) fn meets_all(facts: &impl Facts, request: &Request, asker: &Asker) -> bool {
    meets(Condition::Terms, facts, request, asker)
        && (!any_set(request) || CONDITIONS.iter().all(|one| meets(*one, facts, request, asker)))
}

/// Whether a class of hardware and its supplier are what was asked for: what the index asks of rows and of devices.
pub(crate) fn class_allowed(request: &Request, class: &HardwareClass) -> bool {
    request.allows(class) && request.gpu_min.met_by(class)
}

/// Whether a supplier is one whom the renter wants.
pub(crate) fn supplier_allowed(request: &Request, supplier: &Address) -> bool {
    !request.not_suppliers.contains(supplier)
        && (request.suppliers.is_empty() || request.suppliers.contains(supplier))
}

/// What a condition asks, in the words of a count; the same for all devices, so that counts add up.
pub(crate) fn asked(one: Condition, request: &Request) -> String {
    match one {
        Condition::GpuMinimum => format!("a GPU of at least {}", request.gpu_min),
        Condition::CpuModel => format!("CPU model {}", request.cpu_model.as_deref().unwrap_or("any")),
        Condition::Suppliers => "the suppliers that are wanted or not wanted".into(),
        Condition::Regions => {
            format!("region {}, borne out by measurements", listed(&request.regions, " or "))
        }
        Condition::Residency => {
            format!("data residency: provably not in {}", listed(&request.not_regions, " nor "))
        }
        Condition::Isolation => {
            format!("isolation {}", request.isolation.unwrap_or(Isolation::Process))
        }
        Condition::Reliability => {
            format!("reliability of at least {} %", request.min_reliability_percent.unwrap_or(0))
        }
        Condition::Terms => "the terms of their suppliers".into(),
        Condition::Operator => "the operator's deny list".into(),
        _ => "another condition".into(),
    }
}

/// The same of one device, with what it is.
pub(crate) fn in_words(one: Condition, facts: &Looked<'_>, request: &Request, asker: &Asker) -> String {
    let region = || match (facts.proven_region(), facts.device.region_doubt()) {
        (Some(own), _) => format!("it is in {own}"),
        (None, Some(doubt)) => format!("where it is, is not borne out ({doubt})"),
        (None, None) => "it names no region".into(),
    };
    match one {
        Condition::GpuMinimum => {
            let memory = facts.gpu_memory_mib();
            format!("GPU: {} wanted, it is {} with {memory} MiB", request.gpu_min, facts.device.class)
        }
        Condition::CpuModel => {
            let wanted = request.cpu_model.as_deref().unwrap_or("any");
            format!("CPU: {wanted} wanted, it is '{}' (claimed)", facts.cpu_model())
        }
        Condition::Suppliers => format!("supplier: {} is not wanted", facts.device.enrolment.owner),
        Condition::Regions => format!("region: {} wanted, {}", listed(&request.regions, " or "), region()),
        Condition::Residency => {
            format!("data residency: not {} wanted, {}", listed(&request.not_regions, " nor "), region())
        }
        Condition::Isolation => {
            let own = if facts.one_tenant() { "one-tenant, without enforced limits" } else { "limits" };
            format!("isolation: {} wanted, it has {own}", request.isolation.unwrap_or(Isolation::Process))
        }
        Condition::Reliability => format!(
            "reliability: {} % wanted, it has {} %",
            request.min_reliability_percent.unwrap_or(0),
            facts.reliability_percent()
        ),
        Condition::Terms => {
            let why = facts.terms().and_then(|terms| terms.refuse(asker));
            why.map_or_else(String::new, |why| format!("its supplier's terms: {why}"))
        }
        Condition::Operator => "kept out of the market by the operator".into(),
        _ => String::new(),
    }
}

/// A list in words.
pub(crate) fn listed(texts: &BTreeSet<String>, between: &str) -> String {
    texts.iter().map(String::as_str).collect::<Vec<_>>().join(between)
}
