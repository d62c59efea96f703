//! What a worker is told when it starts, and the small files that it keeps of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ionet_api::rest::{JoinToken, NetworkInfo};
use ionet_api::worker::{ObservedLease, Telemetry};
use ionet_domain::DeviceId;
use ionet_domain::device::Resources;
use ionet_domain::money::Rate;
use ionet_net::{NodeAddr, RelayInfo};
use ionet_runtime::holder::HelperExe;
use serde::{Deserialize, Serialize};

use crate::egress::EgressPolicy;
use crate::error::{Result, WorkerError};
use crate::inventory::Places;

/// How to run a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where everything is kept; one agent each.
    pub data_dir: PathBuf,
    /// From `ionet worker token`.
    pub join: JoinToken,
    /// The owner's name for the machine.
    pub machine_name: String,
    /// For hire; `None` offers all CPU threads and GPUs, three quarters of the memory and half of the free disk.
    pub offered: Option<Resources>,
    /// Asked for one GPU, or on a CPU device for one CPU thread.
    pub ask_per_unit: Rate,
    /// The supplier's own words to find it by.
    pub tags: BTreeSet<String>,
    /// Above this share of CPU in other use the machine takes no new leases; `None` never.
    pub yield_cpu_percent: Option<u8>,
    /// Folder of prepared environments, to share it between the workers of one machine; `None` keeps them in the data
    /// directory.
    pub environments_dir: Option<PathBuf>,
    /// What boxes here may reach outside their clusters.
    pub egress: EgressPolicy,
    /// UDP addresses of the agent's endpoint; empty means every interface on a free port.
    pub bind: Vec<SocketAddr>,
    /// The executable with the hidden sub-commands `supervisor`, `box-init` and `box-launch`.
    pub helper: HelperExe,
    /// Where to look for hardware.
    pub places: Places,
}

impl WorkerConfig {
    /// A worker with nothing said but what must be.
    pub fn new(data_dir: PathBuf, join: JoinToken, ask_per_unit: Rate, helper: HelperExe) -> Self {
        Self {
            data_dir,
            join,
            machine_name: machine_name(),
            offered: None,
            ask_per_unit,
            tags: BTreeSet::new(),
            yield_cpu_percent: None,
            environments_dir: None,
            egress: EgressPolicy::default(),
            bind: Vec::new(),
            helper,
            places: Places::default(),
        }
    }
}

fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "worker".into() } else { name.trim().into() }
}

/// Who this device is: made once and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) device: DeviceId,
    /// Whether a server has taken it in.
    pub(crate) enrolled: bool,
}

/// What the agent needs of the network to find its server, kept for when the REST API does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) server_addr: NodeAddr,
    pub(crate) relays: Vec<RelayInfo>,
    pub(crate) local: bool,
}

impl Network {
    pub(crate) fn of(info: &NetworkInfo) -> Result<Self> {
        let wrong = |what: &str, error: serde_json::Error| WorkerError::Join {
            reason: format!(
                "the server's {what} cannot be read ({error}); is it an ionet server of this release?"
            ),
        };
        let relay = |relay: &serde_json::Value| serde_json::from_value(relay.clone());
        Ok(Self {
            name: info.name.clone(),
            server_addr: serde_json::from_value(info.server_addr.clone()).map_err(|e| wrong("address", e))?,
            relays: info
                .relays
                .iter()
                .map(relay)
                .collect::<std::result::Result<_, _>>()
                .map_err(|e| wrong("relays", e))?,
            local: info.local,
        })
    }
}

/// How a worker is, as its agent last wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Which device.
    pub device: DeviceId,
    /// Its owner's name for it.
    pub machine_name: String,
    /// The agent's process id.
    pub pid: u32,
    /// Whether the agent runs; set by whoever reads this.
    #[serde(default)]
    pub running: bool,
    /// The server's REST address.
    pub server: String,
    /// Whether the link to the server is up.
    pub linked: bool,
    /// Why it is not, if it is not.
    pub link_error: Option<String>,
    /// Whether the machine is in its owner's own use.
    pub yielding: bool,
    /// Why this machine never holds two tenants at once, if so.
    #[serde(default)]
    pub one_tenant_because: Option<String>,
    /// What runs.
    pub leases: Vec<ObservedLease>,
    /// How the machine is.
    pub telemetry: Option<Telemetry>,
    /// When this was written, in milliseconds since 1970.
    pub at_ms: u64,
}
