//! The maybenot machines that clusters run: ours, and whatever string of maybenot's is configured.

use std::sync::Arc;

use enum_map::{EnumMap, enum_map};
use maybenot::{
    Machine,
    action::Action,
    counter::{Counter, Operation},
    dist::{Dist, DistType},
    event::Event,
    state::{State, Trans},
};

/// The time between two slots of [`steady`].
pub const SLOT_US: u32 = 20_000;
const WINDOW_US: u32 = 200_000;
/// More packets than a window has slots are a bulk transfer.
const BULK_PACKETS: u32 = WINDOW_US / SLOT_US;
/// It is no bulk transfer any more when less than [`STILL_BULK_PACKETS`] came in such a time.
const HOLD_US: [u32; 2] = [1_000_000, 2_000_000];
const DAY_US: u32 = u32::MAX;

const STILL_BULK_PACKETS: u32 = 60;

// The states of [`steady`].
const START: usize = 0;
const BLOCK: usize = 1;
const FIRST: usize = 2;
const SLOT: usize = 3;
const COUNT: usize = 4;
const WAIT: usize = 5;
const WINDOW: usize = 6;
const OPEN: usize = 7;
const HOLD: usize = 8;
const GAP: usize = 9;
const FLOOR: usize = 10;

/// One packet leaves every [`SLOT_US`], with what waits in it or with nothing. When more comes than slots can take,
/// everything may pass until there was little for a second or two; slots still fill the gaps. So of little traffic
/// nobody sees times or amount; of a bulk transfer, that it is one, and how much.
pub fn steady() -> Machine {
    let slot = || Action::SendPadding { bypass: true, replace: true, timeout: exactly(SLOT_US), limit: None };
    let block = |us| Action::BlockOutgoing {
        bypass: true,
        replace: true,
        timeout: exactly(0),
        duration: exactly(us),
        limit: None,
    };
    let timer = |duration| Action::UpdateTimer { replace: true, duration, limit: None };
    let wait = || {
        enum_map! {
            Event::NormalSent => to(COUNT),
            Event::PaddingSent => to(SLOT),
            Event::TimerEnd => to(WINDOW),
            Event::CounterZero => to(OPEN),
            Event::BlockingEnd => to(BLOCK),
            _ => vec![],
        }
    };
    let counting = |state, operation, count: u32| {
        let mut state: State = state;
        state.counter.0 = Some(Counter::new_dist(operation, exactly(count)));
        state
    };
    let mut states = vec![State::new(EnumMap::default()); FLOOR + 1];
    states[START] = State::new(enum_map! { Event::NormalSent | Event::NormalRecv => to(BLOCK), _ => vec![] });
    states[BLOCK] = acting(block(DAY_US), enum_map! { Event::BlockingBegin => to(FIRST), _ => vec![] });
    let window = || timer(exactly(WINDOW_US));
    let first = acting(window(), enum_map! { Event::TimerBegin => to(SLOT), _ => vec![] });
    states[FIRST] = counting(first, Operation::Set, BULK_PACKETS);
    states[SLOT] = acting(slot(), wait());
    states[COUNT] = counting(State::new(wait()), Operation::Decrement, 1);
    states[WAIT] = State::new(wait());
    let next = acting(window(), enum_map! { Event::TimerBegin => to(WAIT), _ => vec![] });
    states[WINDOW] = counting(next, Operation::Set, BULK_PACKETS);
    states[OPEN] = acting(block(0), enum_map! { Event::BlockingBegin => to(HOLD), _ => vec![] });
    let hold =
        Dist::new(DistType::Uniform { low: f64::from(HOLD_US[0]), high: f64::from(HOLD_US[1]) }, 0.0, 0.0);
    let hold = acting(timer(hold), enum_map! { Event::TimerBegin => to(GAP), _ => vec![] });
    states[HOLD] = counting(hold, Operation::Set, STILL_BULK_PACKETS);
    let open = || {
        enum_map! {
            Event::PaddingSent => to(GAP),
            Event::NormalSent => to(FLOOR),
            Event::CounterZero => to(HOLD),
            Event::TimerEnd => to(BLOCK),
            _ => vec![],
        }
    };
    states[GAP] = acting(slot(), open());
    states[FLOOR] = counting(acting(slot(), open()), Operation::Decrement, 1);
    Machine {
        allowed_padding_packets: 0,
        max_padding_frac: 0.0,
        allowed_blocked_microsec: 0,
        max_blocking_frac: 0.0,
        states,
    }
}

/// The machines of these strings, each one of maybenot's (version 2); `steady` is ours.
///
/// # Errors
/// Which of them is no machine, and why.
pub fn parse(texts: &[String]) -> Result<Arc<[Machine]>, String> {
    texts
        .iter()
        .map(|text| match text.as_str() {
            "steady" => Ok(steady()),
            text => {
                text.parse::<Machine>().map_err(|error| format!("'{text}' is no maybenot machine: {error}"))
            }
        })
        .collect()
}

fn acting(action: Action, transitions: EnumMap<Event, Vec<Trans>>) -> State {
    let mut state = State::new(transitions);
    state.action = Some(action);
    state
}

fn to(state: usize) -> Vec<Trans> {
    vec![Trans(state, 1.0)]
}

fn exactly(value: u32) -> Dist {
    Dist::new(DistType::Uniform { low: f64::from(value), high: f64::from(value) }, 0.0, 0.0)
}
