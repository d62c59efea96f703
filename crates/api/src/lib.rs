//! What is said on the wires: signed statements, the REST types with their `OpenAPI` schemas, the messages between
//! server and worker, and the typed client.
//!
//! Always holds: unknown fields are refused; secrets mask themselves in every print; a statement is signed over
//! text that names its purpose and the network, so it is good for nothing else. Not here: rules
//! (`ionet-domain`), transports other than the client's HTTP.

pub mod client;
pub mod exposed;
pub mod rest;
pub mod secret;
pub mod sign;
pub mod worker;

pub use client::{Client, ClientError};
pub use secret::Secret;
pub use sign::WalletKey;
