//! What one supervisor is told: the lease as the server wants it, and how that becomes a box.
//!
//! Always holds: a member list counts only with the server's signature over it, for this cluster and this network.
//! Pure: the same assignment always makes the same box. Not here: files, processes.

use ionet_api::sign;
use ionet_api::worker::{DesiredLease, Member};
use ionet_domain::market::EngineKind;
use ionet_domain::{Address, LeaseId};
use ionet_net::{NodeAddr, overlay};
use ionet_runtime::environment::Environment;
use ionet_runtime::sandbox::{BoxSpec, Engine, FailureDetection, Limits, Role, Secret};
use serde::{Deserialize, Serialize};

use crate::error::{Result, WorkerError};

/// Length of the overlay's network prefix: every cluster is `10.77.0.0/16` to itself.
const OVERLAY_PREFIX_BITS: u8 = 16;
/// In a cluster of at most so many members every pair is made ready at once, in a larger one those with the head; the
/// others are with their first packet.
const ALL_EAGER_MEMBERS: usize = 16;
/// Logs and the engine's own files need some room even where no disk was hired.
const LEAST_DISK_BYTES: u64 = 1 << 30;
/// Processes and threads that every box may have, and more for each CPU thread that it hires.
const PROCESSES: u64 = 4096;
const PROCESSES_PER_CPU: u64 = 512;

/// Everything a supervisor must know to carry a lease without its agent and without the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Names the network in signed statements.
    pub network: String,
    /// The key that signs member lists and grants.
    pub server: Address,
    /// Whether all members are near each other, so that a silent one is soon taken for dead.
    pub near: bool,
    /// UUIDs of the GPUs that this lease may use.
    pub gpus: Vec<String>,
    /// The lease as the server wants it.
    pub lease: DesiredLease,
}

impl Assignment {
    /// Refuses a member list that the server did not sign, that is of another cluster, or that lacks this lease.
    pub fn check(&self) -> Result<()> {
        let list = &self.lease.members;
        let refused = |reason: String| WorkerError::MembersRefused { reason };
        sign::verify(self.server, &self.network, list, &self.lease.members_signature)
            .map_err(|error| refused(error.to_string()))?;
        if list.cluster != self.lease.lease.order {
            return Err(refused(format!("it is of cluster {}", list.cluster)));
        }
        self.me().map(|_| ())
    }

    fn me(&self) -> Result<&Member> {
        let missing = || WorkerError::MembersRefused { reason: "this lease is not on it".into() };
        self.member(self.lease.lease).ok_or_else(missing)
    }

    fn member(&self, lease: LeaseId) -> Option<&Member> {
        self.lease.members.members.iter().find(|member| member.lease == lease)
    }

    /// The cluster's name on the overlay.
    pub fn cluster(&self) -> String {
        self.lease.lease.order.to_string()
    }

    /// The other members that have said how they are reached, as the overlay takes them.
    pub fn peers(&self) -> Vec<overlay::Member> {
        let head = self.me().is_ok_and(|me| me.slot == 0);
        let few = self.lease.members.members.len() <= ALL_EAGER_MEMBERS;
        self.others().filter_map(|member| peer(member, few || head || member.slot == 0)).collect()
    }

    /// Every member but this one.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.lease.members.members.iter().filter(|member| member.lease != self.lease.lease)
    }

    /// The box that the lease gets. Refuses what this release cannot run.
    pub fn box_spec(&self) -> Result<BoxSpec> {
        let me = self.me()?;
        let members = &self.lease.members.members;
        let head = members.iter().find(|member| member.slot == 0).unwrap_or(me);
        let spec = BoxSpec {
            lease: box_name(self.lease.lease),
            engine: self.engine(me.slot == 0)?,
            ip: me.ip,
            ip6: Some(overlay::ipv6(&self.cluster(), me.ip)),
            prefix: OVERLAY_PREFIX_BITS,
            mtu: overlay::MTU_BYTES.into(),
            head_ip: head.ip,
            members: u32::try_from(members.len()).unwrap_or(u32::MAX),
            limits: self.limits(),
        };
        spec.check()?;
        Ok(spec)
    }

    fn engine(&self, is_head: bool) -> Result<Engine> {
        let program = &self.lease.program;
        Ok(match self.lease.engine {
            EngineKind::Command => Engine::Command {
                argv: program.argv.clone(),
                env: program.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            },
            EngineKind::Ray => Engine::Ray {
                environment: match &program.environment {
                    Some(asked) => asked.0.parse()?,
                    None if program.jupyter => Environment::named("ray-jupyter")?.reference(),
                    None => Environment::named("ray")?.reference(),
                },
                role: if is_head { Role::Head } else { Role::Member },
                jupyter: program.jupyter,
                token: Secret::new(self.lease.token.expose()),
                failure_detection: if self.near { FailureDetection::Lan } else { FailureDetection::Wan },
                fast_start: true,
            },
        })
    }

    fn limits(&self) -> Limits {
        let hired = &self.lease.resources;
        Limits {
            cpu_millis: hired.cpu_millis.into(),
            memory_bytes: hired.memory_bytes,
            processes: PROCESSES + PROCESSES_PER_CPU * u64::from(hired.cpu_millis.div_ceil(1000)),
            disk_bytes: hired.disk_bytes.max(LEAST_DISK_BYTES),
            gpus: self.gpus.clone(),
        }
    }
}

/// The lease's name where only letters, digits, `-` and `_` go.
pub fn box_name(lease: LeaseId) -> String {
    lease.to_string().replace('.', "-")
}

fn peer(member: &Member, eager: bool) -> Option<overlay::Member> {
    let said = member.endpoint.as_ref()?;
    let endpoint = ionet_net::EndpointId(said.id.0);
    // An address that cannot be read is no address: the peer may still dial us.
    let addr = serde_json::from_value::<NodeAddr>(said.addr.clone())
        .ok()
        .filter(|addr| addr.id == endpoint)
        .unwrap_or_else(|| NodeAddr::direct(endpoint, []));
    Some(overlay::Member { endpoint, ip: member.ip, addr, eager })
}
