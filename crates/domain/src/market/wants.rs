//! What a request's devices must be, apart from the rest of it: the part that a renter may change while an order lives.
//!
//! Always holds: taken from a request and set again it changes nothing. Not here: what each condition means (`conditions`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::request::Request;
use super::wishes::{GpuMinimum, Isolation, Preference};
use crate::device::Tier;
use crate::id::Address;

/// The fields of a [`Request`] that choose among devices, with the same meaning; what is absent does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wants {
    /// GPU models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// The least that each GPU must be.
    #[serde(skip_serializing_if = "GpuMinimum::is_none")]
    pub gpu_min: GpuMinimum,
    /// CPU models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Supply networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Tags.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Least connectivity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Most members on a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_device: Option<u32>,
    /// Regions.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub regions: BTreeSet<String>,
    /// Data residency.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub not_regions: BTreeSet<String>,
    /// Where callers are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<String>,
    /// Least isolation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Least reliability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_reliability_percent: Option<u8>,
    /// Which devices are the better ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Preference>,
    /// Suppliers.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub suppliers: BTreeSet<Address>,
    /// Suppliers that are not wanted.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub not_suppliers: BTreeSet<Address>,
}

impl From<&Request> for Wants {
    fn from(request: &Request) -> Self {
        let request = request.clone();
        Self {
            max_per_device: request.most_per_device(),
            gpu_model: request.gpu_model,
            gpu_min: request.gpu_min,
            cpu_model: request.cpu_model,
            network: request.network,
            tags: request.tags,
            tier: request.tier,
            regions: request.regions,
            not_regions: request.not_regions,
            near: request.near,
            isolation: request.isolation,
            min_reliability_percent: request.min_reliability_percent,
            prefer: request.prefer,
            suppliers: request.suppliers,
            not_suppliers: request.not_suppliers,
        }
    }
}

impl Wants {
    /// The request with these in the place of its own, completed.
    #[must_use]
    pub fn of(&self, request: &Request) -> Request {
        let wants = self.clone();
        let request = Request {
            spread: wants.max_per_device == Some(1),
            max_per_device: wants.max_per_device,
            gpu_model: wants.gpu_model,
            gpu_min: wants.gpu_min,
            cpu_model: wants.cpu_model,
            network: wants.network,
            tags: wants.tags,
            tier: wants.tier,
            regions: wants.regions,
            not_regions: wants.not_regions,
            near: wants.near,
            isolation: wants.isolation,
            min_reliability_percent: wants.min_reliability_percent,
            prefer: wants.prefer,
            suppliers: wants.suppliers,
            not_suppliers: wants.not_suppliers,
            ..request.clone()
        };
        request.completed()
    }
}
