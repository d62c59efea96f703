//! Pause and resume. A pause removes every box and keeps nothing that was in them; time and charges stand still, what is left
//! of both is kept, and the order runs again with the same program at the same rates when there is a place for it.
//!
//! Always holds: a pause ends, by resuming, by closing or at its bound. Not here: what a lease that was let go may still be
//! charged for (`course`).

use serde::{Deserialize, Serialize};

use super::{Move, Order, size};
use crate::refusal::Refusal;
use crate::state::State;

/// Why an order is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// The renter asked.
    Renter,
    /// It was to run again, and the place that it had was taken by then.
    NoPlace,
}

/// A pause as it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// How much of the order's time is over.
    pub ran_ms: u64,
    /// Its leases are not charged for any time after this, in milliseconds since 1970.
    pub charged_until_ms: u64,
    /// When the order is closed unless it runs again, in milliseconds since 1970.
    pub until_ms: u64,
}

/// Whether an order that runs may be paused.
///
/// # Errors
/// `WrongStage` unless it runs.
pub fn pause(order: &Order, now_ms: u64) -> Result<Paused, Refusal> {
    order.may(Move::Pause)?;
    let ran_ms = order.over_ms(now_ms);
    let charged_until_ms = order.moment_ms(ran_ms).unwrap_or(now_ms);
    let until_ms = now_ms.saturating_add(order.quote.request.upkeep.pause_most_ms());
    Ok(Paused { ran_ms, charged_until_ms, until_ms })
}

/// The pause of an order that was to run again and found no place; `None` if it never was paused.
pub fn again(order: &Order, now_ms: u64) -> Option<Paused> {
    let pause = order.course.pause.filter(|_| order.may(Move::PutOff).is_ok())?;
    Some(Paused { ran_ms: order.course.ran_ms, charged_until_ms: now_ms, until_ms: pause.until_ms })
}

/// Whether a paused order may run again: there is a place for it now, at its own rates.
///
/// # Errors
/// `WrongStage` unless it is paused, `NoCapacity` with the reasons.
pub fn resume(state: &State, order: &Order, now_ms: u64) -> Result<(), Refusal> {
    order.may(Move::Resume)?;
    size::has_place(state, order, now_ms)
}
