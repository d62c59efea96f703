//! Open-ended: for as long as a budget pays.
//!
//! What an hour costs says how long the budget lasts, and as another time may have another price that is repeated. Always holds:
//! the total of a quote for the time that is found is within the budget. Not here: who may have more (`order::size`).

use super::quote::{self, Quote};
use super::request::{MAX_DURATION_MS, MIN_DURATION_MS, Request};
use crate::id::{Address, QuoteId};
use crate::money::HOUR_MS;
use crate::refusal::Refusal;
use crate::state::State;

/// How often the time is priced.
const ROUNDS: usize = 6;
/// Times are whole seconds, for those who read them.
const SECOND_MS: u64 = 1000;
const BASIS_POINTS: u128 = 10_000;

/// An open-ended request with the longest time that was found within its budget.
///
/// # Errors
/// `OverTotalCap` if the budget does not pay the shortest time, and those of the quote.
pub(super) fn lasting(
    state: &State,
    account: Address,
    request: &Request,
    now_ms: u64,
) -> Result<Request, Refusal> {
    let cap_micro_usd = request.max_total_micro_usd.unwrap_or(0);
    let (mut duration_ms, mut longest_ms, mut total_micro_usd) = (HOUR_MS, None, 0);
    for _ in 0..ROUNDS {
        let tried = Request { duration_ms, max_total_micro_usd: None, ..request.clone() };
        let quote = quote::of_time(state, QuoteId::from_bits(0), account, &tried, now_ms)?;
        total_micro_usd = quote.total_micro_usd;
        if total_micro_usd <= cap_micro_usd {
            longest_ms = longest_ms.max(Some(duration_ms));
        }
        let next_ms = lasts_ms(&quote, cap_micro_usd).clamp(MIN_DURATION_MS, MAX_DURATION_MS);
        if next_ms == duration_ms {
            break;
        }
        duration_ms = next_ms;
    }
    let short = Refusal::OverTotalCap { total_micro_usd, cap_micro_usd };
    longest_ms.map(|duration_ms| Request { duration_ms, ..request.clone() }).ok_or(short)
}

/// How long a budget lasts at the rate of a quote, its fee included.
fn lasts_ms(quote: &Quote, budget_micro_usd: u64) -> u64 {
    let compute =
        u128::from(budget_micro_usd) * BASIS_POINTS / (BASIS_POINTS + u128::from(quote.renter_fee.0));
    let lasts_ms = (compute * u128::from(HOUR_MS)).checked_div(quote.rate.0.into());
    let lasts_ms = lasts_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(u64::MAX);
    lasts_ms - lasts_ms % SECOND_MS
}
