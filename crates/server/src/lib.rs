//! The server: one writer over the journal, reconcilers that move every order on, and the HTTP side.
//!
//! The core (`engine`, `commit`, `fleet`, `reconcile`, `core`) is synchronous and has no clock; the lab runs it too.
//! `writer` gives it two threads and batches, the shell time, links and a disk.
//!
//! Always holds: nothing is answered, published or acted upon before it is durable; a failed append ends the process.
//! Not here: rules (`ionet-domain`), anything that runs a customer's code (`ionet-worker`).

pub mod apps;
pub mod commit;
pub mod core;
pub mod engine;
pub mod error;
pub mod fleet;
pub mod handle;
pub mod http;
pub mod keys;
pub mod links;
pub mod reconcile;
pub mod shell;
pub mod simulated;
pub mod verify;
pub mod view;
pub(crate) mod vitals;
pub mod writer;

pub use crate::core::{Core, CoreOptions, Input, Output, Ticket};
pub use apps::{AcmeConfig, AppsConfig, AppsLimits, AppsTls};
pub use commit::{Batch, Committer, Durable};
pub use engine::{Decided, Engine, EngineOptions, Opened};
pub use error::ServerError;
pub use fleet::Fleet;
pub use handle::{Handle, HistoryEvent, PublishedEvent, Span, Submitted};
pub use keys::Keys;
pub use shell::{LocalFunds, Server, ServerConfig};
pub use verify::{Audit, verify};
pub use view::{SharedView, View};
pub use writer::{Message, Waiting, Writer};
