//! How many members a cluster is to have, by how busy they are: a pure rule with a dead band, bounded steps and a time to settle.
//!
//! With `b` % busy on average over `m` members and `t` % aimed at, `ceil(m x b / t)` members would be as busy as aimed at. The
//! cluster grows when it is more than [`BAND_PERCENT`] points too busy, and shrinks when the fewer members would still be that
//! much less busy than aimed at; at most twice as many or half as many in one step. Always holds: never outside the bounds that the
//! renter set, except on the way back into them. Not here: the money (`size`), who measures (`ionet-server`).

use super::{LeasePhase, Order, Stage};
use crate::market::upkeep::Scale;

/// How far from the target nothing is done, in points of percent.
pub const BAND_PERCENT: u32 = 10;
/// After its size changed a cluster does not grow for this long, in milliseconds.
pub const GROW_AFTER_MS: u64 = 3 * 60_000;
/// And does not shrink for this long.
pub const SHRINK_AFTER_MS: u64 = 10 * 60_000;

/// How many members a cluster of `members` should have when they are this busy on average.
pub fn wanted(scale: &Scale, members: u32, busy_percent: u32) -> u32 {
    let target = u32::from(scale.target_percent.max(1));
    let load = u64::from(members) * u64::from(busy_percent);
    let count = |load: u64, at: u32| u32::try_from(load.div_ceil(u64::from(at.max(1)))).unwrap_or(u32::MAX);
    let wanted = if busy_percent >= (target + BAND_PERCENT).min(100) {
        count(load, target).clamp(members + 1, members.saturating_mul(2))
    } else {
        // So many members would be below the target by the band, and no fewer.
        let fewer = count(load, target.saturating_sub(BAND_PERCENT).max(1));
        fewer.clamp(members.div_ceil(2), members)
    };
    wanted.clamp(scale.min, scale.max)
}

/// How many members an order should have now, if that is another number than it has and it is time.
pub fn due(order: &Order, busy_percent: u32, now_ms: u64) -> Option<u32> {
    let scale = order.quote.request.upkeep.scale.as_ref()?;
    let whole = order.members().values().all(|(_, lease)| lease.phase != LeasePhase::Placed);
    if order.stage != Stage::Running || order.course.growth.is_some() || !whole || !order.vacant().is_empty()
    {
        return None;
    }
    let since_ms = order.running_since_ms?.max(order.course.sized_ms);
    let members = order.quote.request.members;
    let wanted = wanted(scale, members, busy_percent);
    let settled_ms = if wanted > members { GROW_AFTER_MS } else { SHRINK_AFTER_MS };
    (wanted != members && now_ms >= since_ms.saturating_add(settled_ms)).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market::upkeep::Metric;
    use proptest::prelude::*;

    fn scale(min: u32, max: u32, target_percent: u8) -> Scale {
        Scale { min, max, metric: Metric::Cpu, target_percent, max_rate: None }
    }

    #[test]
    fn members_follow_how_busy_they_are() {
        for (members, busy, expected) in [
            (4, 70, 4),
            (4, 79, 4),
            (4, 80, 5),
            (4, 100, 6),
            (2, 100, 3),
            (8, 100, 8),
            (4, 60, 4),
            (4, 46, 4),
            (4, 45, 3),
            (4, 30, 2),
            (4, 0, 2),
            (8, 0, 4),
            (2, 0, 2),
            (1, 0, 2),
            (9, 70, 8),
        ] {
            assert_eq!(wanted(&scale(2, 8, 70), members, busy), expected, "{members} members {busy} % busy");
        }
        assert_eq!(wanted(&scale(1, 8, 95), 2, 100), 3, "what cannot be exceeded counts as too busy");
    }

    proptest! {
        /// The same work on as many members as are wanted asks for nothing more, unless bounds or steps keep it back.
        #[test]
        fn it_settles(min in 1..20u32, more in 0..40u32, target in 10..96u8, members in 1..60u32, load in 0..6_000u64) {
            let scale = scale(min, min + more, target);
            let mut now = members.clamp(scale.min, scale.max);
            // One more in a step at least.
            for _ in 0..64 {
                let busy = u32::try_from((load / u64::from(now)).min(100)).unwrap();
                now = wanted(&scale, now, busy);
                prop_assert!((scale.min..=scale.max).contains(&now));
            }
            let busy = u32::try_from((load / u64::from(now)).min(100)).unwrap();
            prop_assert_eq!(wanted(&scale, now, busy), now);
        }
    }
}
