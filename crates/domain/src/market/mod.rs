//! The market: what is asked for, what it costs and where it goes.

pub mod egress;
pub mod hiding;
pub mod place;
pub mod price;
pub mod request;

pub use egress::{Destination, Egress};
pub use hiding::Hiding;
pub use price::{Quote, QuoteItem};
pub use request::{EngineKind, Program, Request};
