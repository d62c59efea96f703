//! The way out of one lease's box: what the lease says, what the operator of this device says, and what is told of it.
//!
//! Always holds: the operator's word comes first; rules are followed while the box runs. Not here: connections
//! (`ionet-egress`), who may change the rules (the server).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use ionet_api::worker::{DesiredLease, EgressUse};
use ionet_domain::market::Egress;
use ionet_domain::market::egress::Net;
use ionet_egress::{Config, Limits, MTU_BYTES, Rules};
use ionet_runtime::lease_box;
use serde::{Deserialize, Serialize};

use crate::error::{During as _, Result};

/// Where the host's name servers are written.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the operator of a device says of what its boxes may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressPolicy {
    /// Boxes here reach nothing outside their cluster, whatever a lease says.
    pub forbidden: bool,
    /// What boxes may reach although it is near this host.
    pub open: BTreeSet<Net>,
}

/// One box's way out, open or not.
pub(crate) struct WayOut {
    egress: ionet_egress::Egress,
    policy: EgressPolicy,
    rules: Rules,
}

impl WayOut {
    /// Serves the box's device for what leaves the cluster. `me` is the member's address.
    pub(crate) fn start(
        lease: &DesiredLease,
        policy: EgressPolicy,
        me: std::net::Ipv4Addr,
        device: OwnedFd,
    ) -> Result<Self> {
        let rules = rules(lease, &policy);
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(std::io::Error::from).during("get random bytes")?;
        let config = Config {
            sources: vec![me.into(), lease_box::out_v6(me).into()],
            rules: rules.clone(),
            open: policy.open.iter().copied().collect(),
            resolv_conf: RESOLV_CONF.into(),
            mtu: MTU_BYTES,
            limits: Limits::default(),
            seed: u64::from_ne_bytes(seed),
        };
        let egress = ionet_egress::Egress::start(config, device).during("open the box's way out")?;
        Ok(Self { egress, policy, rules })
    }

    /// From now on it is as the lease says now.
    pub(crate) fn follow(&mut self, lease: &DesiredLease) {
        let rules = rules(lease, &self.policy);
        if rules != self.rules {
            tracing::info!(egress = %rules.egress, allowed = rules.allow.len(), "new rules for the way out");
            self.egress.set_rules(rules.clone());
            self.rules = rules;
        }
    }

    /// Addresses that this host is known by elsewhere; boxes do not reach them.
    pub(crate) fn set_own_addresses(&self, own: Vec<IpAddr>) {
        self.egress.set_own_addresses(own);
    }

    /// What passed so far.
    pub(crate) fn used(&self) -> EgressUse {
        let ionet_egress::Usage { sent_bytes, received_bytes, opened, refused, limited, open } =
            self.egress.usage();
        EgressUse { mode: self.rules.egress, sent_bytes, received_bytes, opened, refused, limited, open }
    }
}

fn rules(lease: &DesiredLease, policy: &EgressPolicy) -> Rules {
    let egress = if policy.forbidden { Egress::Off } else { lease.egress };
    Rules { egress, allow: lease.program.allow.clone() }
}
