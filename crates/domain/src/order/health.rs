//! When a member ails: a pure rule on what was heard of it over some minutes, against fixed limits, its own past and its peers.
//!
//! The limits stand in one table. Always holds: a member of which nothing is heard does not ail (silence is not failure); one
//! that is only as bad as its peers does not ail by what is compared with them. Not here: who listens for how long
//! (`ionet-server`), what follows (`replace_ailing`, the renter).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::course::{ReleaseReason, Released};
use super::{Lease, Move, NewLease, Order, further, leases, rate_of};
use crate::id::LeaseId;
use crate::market::upkeep::ReplaceMode;
use crate::market::{EngineKind, Request};
use crate::refusal::Refusal;
use crate::state::State;

/// From where on something is an ailment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// CPU in other use than leases, as a share of the machine, in percent.
    pub foreign_cpu_percent: u32,
    /// The hottest of its GPUs, all the time, in degrees Celsius: from about here on they clock themselves down.
    pub temperature_c: u32,
    /// Packets lost of a million, on the middle one of its links, and at least [`Limits::times`] what its peers lose.
    pub loss_ppm: u32,
    /// Round trip in microseconds on the middle one of its links, and at least [`Limits::times`] that of its peers.
    pub rtt_us: u64,
    /// How much worse than its peers.
    pub times: u64,
    /// Restarts of its engine, and more than any peer had.
    pub engine_restarts: u32,
    /// What is left of the bandwidth that relays had measured, in percent.
    pub bandwidth_left_percent: u32,
}

/// The limits in force.
pub const LIMITS: Limits = Limits {
    foreign_cpu_percent: 50,
    temperature_c: 92,
    loss_ppm: 20_000,
    rtt_us: 50_000,
    times: 4,
    engine_restarts: 3,
    bandwidth_left_percent: 33,
};
/// For how long a member must ail before it is said, and be well before that is said, in milliseconds.
pub const LASTS_MS: u64 = 5 * 60_000;
/// Least time between two members of an order that are replaced by themselves, in milliseconds.
pub const REPLACE_EVERY_MS: u64 = 30 * 60_000;
/// Most members of an order that are replaced by themselves.
pub const REPLACE_MOST: usize = 8;

/// How a member is, as it was heard over the last minutes; what was not heard is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// CPU in other use than leases, on average, in percent.
    pub foreign_cpu_percent: Option<u32>,
    /// The hottest of its own GPUs at its coolest, in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// The middle of its links' losses, in a million.
    pub loss_ppm: Option<u32>,
    /// The middle of its links' round trips, in microseconds.
    pub rtt_us: Option<u64>,
    /// Its links to other members, and how many of them are down.
    pub links: (u32, u32),
    /// Restarts of its engine.
    pub engine_restarts: u32,
    /// Bandwidth that a relay measured last and the median before, in Mbit/s, of the direction that lost more.
    pub bandwidth_mbit_s: Option<(u32, u32)>,
}

/// What a member ails from, with the numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Ailment {
    /// The machine is busy with other things.
    Overloaded {
        /// CPU in other use than leases.
        foreign_cpu_percent: u32,
    },
    /// Its GPUs are too hot to run at full speed.
    Hot {
        /// The hottest.
        temperature_c: u32,
    },
    /// No other member can be reached over the overlay, while others reach each other.
    CutOff {
        /// Links that are down.
        down: u32,
    },
    /// It loses far more packets than its peers.
    Lossy {
        /// It.
        loss_ppm: u32,
        /// The middle one of its peers.
        peers_ppm: u32,
    },
    /// Its round trips are far longer than its peers'.
    Slow {
        /// It.
        rtt_us: u64,
        /// The middle one of its peers.
        peers_us: u64,
    },
    /// Its bandwidth is a fraction of what was measured before.
    Narrow {
        /// The last measure.
        mbit_s: u32,
        /// The median before.
        was_mbit_s: u32,
    },
    /// Its engine dies again and again, unlike its peers'.
    Restarting {
        /// So often.
        restarts: u32,
    },
}

impl Ailment {
    /// The stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Overloaded { .. } => "overloaded",
            Self::Hot { .. } => "hot",
            Self::CutOff { .. } => "cut_off",
            Self::Lossy { .. } => "lossy",
            Self::Slow { .. } => "slow",
            Self::Narrow { .. } => "narrow",
            Self::Restarting { .. } => "restarting",
        }
    }
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overloaded { foreign_cpu_percent } => {
                write!(f, "{foreign_cpu_percent} % of the machine's CPU is in other use")
            }
            Self::Hot { temperature_c } => {
                write!(f, "its GPU stays at {temperature_c} degrees Celsius or above")
            }
            Self::CutOff { down } => write!(f, "none of its {down} links to other members is up"),
            Self::Lossy { loss_ppm, peers_ppm } => {
                write!(f, "it loses {loss_ppm} packets in a million and its peers {peers_ppm}")
            }
            Self::Slow { rtt_us, peers_us } => {
                write!(f, "its round trips take {rtt_us} us and its peers' {peers_us} us")
            }
            Self::Narrow { mbit_s, was_mbit_s } => {
                write!(f, "its bandwidth is {mbit_s} Mbit/s and was {was_mbit_s} Mbit/s")
            }
            Self::Restarting { restarts } => write!(f, "its engine was started anew {restarts} times"),
        }
    }
}

/// That a member ails, and since when that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ailing {
    /// In milliseconds since 1970.
    pub since_ms: u64,
    /// What it is.
    pub ailment: Ailment,
}

/// What a member ails from, if it does, beside its peers.
pub fn judge(own: &Vitals, peers: &[&Vitals], limits: &Limits) -> Option<Ailment> {
    let above = |value: Option<u32>, limit: u32| value.filter(|value| *value >= limit);
    if let Some(foreign_cpu_percent) = above(own.foreign_cpu_percent, limits.foreign_cpu_percent) {
        return Some(Ailment::Overloaded { foreign_cpu_percent });
    }
    if let Some(temperature_c) = above(own.temperature_c, limits.temperature_c) {
        return Some(Ailment::Hot { temperature_c });
    }
    if let Some(ailment) = links(own, peers, limits) {
        return Some(ailment);
    }
    if let Some((mbit_s, was_mbit_s)) = own.bandwidth_mbit_s
        && u64::from(mbit_s) * 100 < u64::from(was_mbit_s) * u64::from(limits.bandwidth_left_percent)
    {
        return Some(Ailment::Narrow { mbit_s, was_mbit_s });
    }
    let restarts = own.engine_restarts;
    let more = peers.iter().all(|peer| peer.engine_restarts < restarts) && !peers.is_empty();
    (restarts >= limits.engine_restarts && more).then_some(Ailment::Restarting { restarts })
}

/// What is compared with the peers: with two members nobody knows whose fault a link is.
fn links(own: &Vitals, peers: &[&Vitals], limits: &Limits) -> Option<Ailment> {
    if peers.len() < 2 {
        return None;
    }
    let (links, down) = own.links;
    let others_up = peers.iter().any(|peer| peer.links.1 < peer.links.0.saturating_sub(1));
    if links > 1 && down == links && others_up {
        return Some(Ailment::CutOff { down });
    }
    let peers_ppm = middle(peers.iter().filter_map(|peer| peer.loss_ppm.map(u64::from)))?;
    if let Some(loss_ppm) = own.loss_ppm.filter(|loss| *loss >= limits.loss_ppm)
        && u64::from(loss_ppm) >= peers_ppm.saturating_mul(limits.times)
    {
        return Some(Ailment::Lossy { loss_ppm, peers_ppm: u32::try_from(peers_ppm).unwrap_or(u32::MAX) });
    }
    let peers_us = middle(peers.iter().filter_map(|peer| peer.rtt_us))?;
    let rtt_us = own.rtt_us.filter(|rtt| *rtt >= limits.rtt_us)?;
    (rtt_us >= peers_us.saturating_mul(limits.times)).then_some(Ailment::Slow { rtt_us, peers_us })
}

/// The middle one, the lower of two.
pub fn middle(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Whether what a member ails from is news: the first word, another ailment, or that it is well again.
///
/// # Errors
/// `NoChange` if not, `WrongStage` unless the order runs.
pub fn report(order: &Order, n: u32, ailment: Option<&Ailment>) -> Result<(), Refusal> {
    order.may(Move::Exchange)?;
    let lease = order.lease(n)?;
    let known = lease.ailing.as_ref().map(|ailing| ailing.ailment.code());
    if !lease.live() || known == ailment.map(Ailment::code) {
        return Err(Refusal::NoChange { what: LeaseId { order: order.id, n }.to_string() });
    }
    Ok(())
}

/// A member that another takes the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Which lease goes.
    pub n: u32,
    /// It is charged for no time after this, in milliseconds since 1970.
    pub charged_until_ms: u64,
    /// What comes in its place.
    pub lease: NewLease,
}

/// Puts another device in a member's place, at the same price: both or neither.
///
/// # Errors
/// `WrongStage` unless the order runs, `OutOfRange` if it has no such member, `NoCapacity` with the reasons.
pub fn exchange(state: &State, order: &Order, slot: u32, now_ms: u64) -> Result<Exchange, Refusal> {
    order.may(Move::Exchange)?;
    let Some((n, lease)) = order.members().get(&slot).copied() else {
        let members = order.quote.request.members.saturating_sub(1);
        return Err(Refusal::out_of_range("the member", slot, format!("0 to {members}, and one that is up")));
    };
    let mut limits = further(state, order, vec![rate_of(order, slot)], now_ms);
    limits.avoid.insert(lease.device);
    limits.beside.retain(|device| *device != lease.device);
    let request = Request { members: 1, ..order.quote.request.clone() };
    let leases = leases(state, order, &request, &[slot], limits, now_ms)?;
    let charged_until_ms = order.moment_ms(order.over_ms(now_ms)).unwrap_or(now_ms);
    let no_lease = || Refusal::NoChange { what: order.id.to_string() };
    Ok(Exchange { n, charged_until_ms, lease: leases.into_iter().next().ok_or_else(no_lease)? })
}

/// The member of an order that is to be replaced by itself now, if any: its renter allowed it, it ails, and it is not too soon.
/// Never the head of a Ray cluster, whose work would be lost with it.
pub fn due(order: &Order, now_ms: u64) -> Option<u32> {
    if order.quote.request.upkeep.replace != ReplaceMode::ByItself || order.may(Move::Exchange).is_err() {
        return None;
    }
    let ailed = |lease: &Lease| lease.released.filter(|released| released.why == ReleaseReason::Ailing);
    let gone: Vec<Released> = order.leases.values().filter_map(ailed).collect();
    let soon = gone.iter().any(|released| now_ms < released.at_ms.saturating_add(REPLACE_EVERY_MS));
    if soon || gone.len() >= REPLACE_MOST {
        return None;
    }
    let head_stays = order.quote.request.engine == EngineKind::Ray;
    let members = order.members();
    let mut ailing =
        members.iter().filter(|(slot, (_, lease))| lease.ailing.is_some() && !(head_stays && **slot == 0));
    ailing.next().map(|(slot, _)| *slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(loss_ppm: u32, rtt_us: u64) -> Vitals {
        Vitals { loss_ppm: Some(loss_ppm), rtt_us: Some(rtt_us), links: (2, 0), ..Vitals::default() }
    }

    #[test]
    fn a_member_ails_beside_its_own_past_and_its_peers() {
        let well = links(100, 2_000);
        let foreign = |percent| Vitals { foreign_cpu_percent: Some(percent), ..well.clone() };
        let hot = |degrees| Vitals { temperature_c: Some(degrees), ..well.clone() };
        let narrow = |now, was| Vitals { bandwidth_mbit_s: Some((now, was)), ..well.clone() };
        let restarted = |times| Vitals { engine_restarts: times, ..well.clone() };
        let down = |down| Vitals { links: (2, down), ..well.clone() };
        // The member, its two peers, and what it ails from.
        for (own, peer, code) in [
            (well.clone(), well.clone(), None),
            (Vitals::default(), well.clone(), None),
            (foreign(49), well.clone(), None),
            (foreign(50), well.clone(), Some("overloaded")),
            (hot(91), well.clone(), None),
            (hot(92), well.clone(), Some("hot")),
            (links(19_999, 2_000), well.clone(), None),
            (links(20_000, 2_000), well.clone(), Some("lossy")),
            (links(30_000, 2_000), links(20_000, 2_000), None),
            (links(0, 49_999), well.clone(), None),
            (links(0, 50_000), well.clone(), Some("slow")),
            (links(0, 150_000), links(0, 140_000), None),
            (narrow(330, 1_000), well.clone(), None),
            (narrow(329, 1_000), well.clone(), Some("narrow")),
            (restarted(2), well.clone(), None),
            (restarted(3), well.clone(), Some("restarting")),
            (restarted(3), restarted(3), None),
            (down(1), well.clone(), None),
            (down(2), well.clone(), Some("cut_off")),
            (down(2), down(2), None),
        ] {
            let said = judge(&own, &[&peer, &peer], &LIMITS);
            assert_eq!(said.as_ref().map(Ailment::code), code, "{own:?} beside {peer:?}");
            assert!(said.is_none_or(|said| !said.to_string().is_empty()));
        }
        let alone = judge(&links(900_000, 900_000), &[&well], &LIMITS);
        assert_eq!(alone, None, "of two nobody knows whose fault their link is");
    }
}
