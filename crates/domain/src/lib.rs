//! The rules of the cloud: what is allowed, what it costs and what follows.
//!
//! A pure state machine. [`decide`] looks at the state and a command and answers with events or a
//! [`Refusal`] that says why in numbers; [`State::apply`] folds an event into the state. Everything the
//! product promises can be read, tested and simulated here.
//!
//! Always holds: no clock, no I/O, no randomness, no floats for money, no hashed iteration order; an event
//! records effects, so folding reads no parameter and no time. Not here: bytes on disk (`ionet-journal`),
//! words on wires (`ionet-api`), anything that acts (`ionet-server`, `ionet-worker`).

pub mod account;
pub mod command;
pub mod connectivity;
pub mod decide;
pub mod device;
pub mod devices;
pub mod event;
pub mod id;
pub mod ledger;
pub mod market;
pub mod meter;
pub mod money;
pub mod order;
pub mod payout;
pub mod refusal;
pub mod simulated;
pub mod state;
pub mod tunnel;

pub use command::{Actor, Command};
pub use decide::decide;
pub use event::{Event, PrivateBody, PublicBody};
pub use id::{Address, CommandId, DeviceId, EndpointId, KeyId, LeaseId, OrderId, PayoutId, TransferId};
pub use money::{Asset, Rate};
pub use order::{Order, Stage};
pub use refusal::Refusal;
pub use state::{Broken, Params, State};
