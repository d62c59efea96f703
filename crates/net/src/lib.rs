//! The network of ionet: one key per process, and everything that travels under it.
//!
//! A [`Node`] is one encrypted endpoint. Over it run the worker's control [`link`], byte [`tunnel`]s to services
//! inside a cluster, and the private layer-3 [`overlay`] of a cluster. A [`relay`] forwards sealed packets where no
//! direct path can be found, and [`measure`]s the way to itself.
//!
//! What always holds: a peer is known by its [`EndpointId`] and nothing else, proven by the handshake; every protocol
//! asks its own `admit` rule before it reads a byte; no server outside the operator's control is ever contacted.
//!
//! What is not here: who may do what (the caller's `admit`), what the frames mean (`ionet-api`), binding an endpoint
//! to an account (`ionet-api`), making namespaces (`ionet-runtime`).

mod error;
mod frame;
mod homes;
pub mod key;
pub mod link;
pub mod measure;
pub mod mem_link;
pub mod node;
pub mod overlay;
mod pins;
pub mod relay;
pub mod tun;
pub mod tunnel;

pub use error::NetError;
pub use key::{EndpointId, EndpointKey};
pub use node::{Node, NodeAddr, NodeConfig};
pub use relay::{Relay, RelayConfig, RelayInfo};
