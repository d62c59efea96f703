//! The supplier's side: the agent of one machine and the supervisor process of each lease.
//!
//! Always holds: the agent is only the supervisors' client, so its end interrupts no packet; what a lease needs to go
//! on is in its own folder; everything that decides is a synchronous step ([`agent`], [`supervision`]) that the lab runs
//! too. Not here: rules and money (`ionet-domain`), boxes (`ionet-runtime`), packets (`ionet-net`).

pub mod agent;
pub mod assignment;
mod attend;
pub mod check;
pub mod config;
mod control;
pub mod doctor;
pub mod egress;
pub mod error;
pub mod files;
mod footprint;
pub mod inventory;
mod links;
pub mod measuring;
pub mod nvml;
pub mod shell;
pub mod supervision;
pub mod supervisor;
pub mod telemetry;
pub mod tunnels;

pub use config::{Status, WorkerConfig};
pub use error::{Result, WorkerError};
// The binary offers the box's hidden sub-commands without knowing the runtime.
pub use ionet_runtime::holder::HelperExe;
pub use ionet_runtime::{doctor as box_doctor, environment, files as box_files, hidden};
pub use shell::{Worker, status};
