//! Simulated devices: for show, in tables, quotes, prices and reasons, always marked, and on which nothing can be ordered.
//!
//! Always holds: they exist only where the network was founded for them; a real request never gets a place on one, a
//! simulated request gets no other place and is never accepted; no record of the market counts them. Not here: which of
//! them a request would get (`market::place`), making them up (`ionet-server`).

use crate::device::{Enrolment, Measured};
use crate::refusal::Refusal;
use crate::state::State;

/// Most that one command brings in.
pub const MOST_AT_ONCE: usize = 1000;

/// A device that is made up, with what a check would have measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulated {
    /// How it enters; marked.
    pub enrolment: Enrolment,
    /// What would have been measured.
    pub measured: Measured,
}

/// Whether simulated devices may be here at all.
///
/// # Errors
/// If the network was not founded for them.
pub fn allowed(state: &State) -> Result<(), Refusal> {
    if state.params.simulated_devices {
        return Ok(());
    }
    Err(Refusal::Unsupported {
        what: "a simulated device".into(),
        reason: "this network was not founded for them".into(),
        available: "a new network on one's own machine ('ionet up --simulate N' with another --data-dir)"
            .into(),
    })
}

/// Whether an order may be accepted: nothing runs on simulated devices.
///
/// # Errors
/// If simulated ones are asked for.
pub fn check_order(simulated: bool) -> Result<(), Refusal> {
    if !simulated {
        return Ok(());
    }
    Err(Refusal::Unsupported {
        what: "an order on simulated devices".into(),
        reason: "they are for show and nothing runs on them".into(),
        available: "their quotes, prices and reasons; an order on real devices (without --simulated)".into(),
    })
}
