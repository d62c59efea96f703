//! After a restore devices may follow a later term than the books have: what they are told must be newer than that.
//!
//! A term comes from the clock of the server's start. The lost timeline may have begun its last one later by the clock
//! than this one, if the clock was put right in between; so the devices are asked, not only the clock.

use ionet_api::worker::Generation;
use ionet_domain::command::CommandBody;

use super::{Todo, command};
use crate::view::View;

/// A term further ahead of the clock than this is not believed: whoever says so would push all terms out of reach.
const AHEAD_AT_MOST_MS: u64 = 24 * 60 * 60_000;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let last = Generation { term: view.state.term, n: view.fleet.last_told_n };
    let connected = view.fleet.devices().filter(|(_, now)| now.connected);
    let later = connected.map(|(_, now)| now.generation).filter(|generation| *generation > last);
    let terms = later.map(|generation| generation.term);
    let above = terms.filter(|term| *term <= now_ms.saturating_add(AHEAD_AT_MOST_MS)).max();
    above.map(|above| command(CommandBody::BeginTerm { above })).into_iter().collect()
}
