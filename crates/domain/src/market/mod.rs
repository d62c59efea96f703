//! The market: what is asked for, what it costs and where it goes.

pub mod board;
pub(crate) mod book;
pub mod capacity;
pub mod competitors;
pub mod demand;
pub mod egress;
pub mod explain;
pub mod explain_device;
pub mod hardware;
pub mod hiding;
pub mod place;
pub mod price;
pub mod price_params;
pub mod quote;
pub mod record;
pub mod request;
pub mod score;
mod search;
pub mod upkeep;

pub use competitors::Feed;
pub use egress::{Destination, Egress};
pub use hiding::Hiding;
pub use price_params::PriceParams;
pub use quote::{Quote, QuoteItem};
pub use record::MarketRecord;
pub use request::{EngineKind, Program, Request};
pub use upkeep::Upkeep;
