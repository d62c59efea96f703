//! Schemas of what is done for a cluster while it lives, and of what changes it.

use super::{Named, count, maybe, number, object, of, one_of};

pub(super) fn all() -> Named {
    let scale = [
        ("min", number()),
        ("max", number()),
        ("metric", one_of(&["cpu", "gpu"])),
        ("target_percent", number()),
        ("max_rate?", maybe(&count())),
    ];
    let upkeep = [
        ("max_pause_ms?", maybe(&count())),
        ("replace?", one_of(&["proposed", "by_itself"])),
        ("scale?", maybe(&of("Scale"))),
    ];
    let change = [
        ("duration_ms?", maybe(&count())),
        ("max_rate?", maybe(&count())),
        ("max_total_micro_usd?", maybe(&count())),
        ("upkeep?", maybe(&of("Upkeep"))),
        ("priority?", maybe(&of("Priority"))),
        ("wants?", maybe(&of("Wants"))),
    ];
    vec![
        ("Scale", object(&scale)),
        ("Upkeep", object(&upkeep)),
        ("OrderChange", object(&change)),
        ("PastItem", object(&[("slot", number()), ("rate", count()), ("time_ms", count())])),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use ionet_domain::Rate;
    use ionet_domain::market::quote::PastItem;
    use ionet_domain::market::upkeep::{Metric, ReplaceMode, Scale};
    use ionet_domain::market::{Priority, Upkeep, Wants};
    use ionet_domain::order::size::OrderChange;

    use super::super::tests::Check;

    pub(in super::super) fn upkeep() -> Upkeep {
        let max_rate = Some(Rate(5));
        let scale = Scale { min: 1, max: 2, metric: Metric::Cpu, target_percent: 70, max_rate };
        Upkeep { max_pause_ms: Some(60_000), replace: ReplaceMode::ByItself, scale: Some(scale) }
    }

    pub(in super::super) fn past() -> PastItem {
        PastItem { slot: 1, rate: Rate(2), time_ms: 3 }
    }

    #[test]
    fn what_changes_a_cluster_is_described_as_it_is() {
        let check = Check(super::super::all().collect());
        check.full("Upkeep", upkeep());
        check.full("Scale", upkeep().scale.unwrap());
        check.full("PastItem", past());
        let (duration_ms, max_rate) = (Some(1), Some(Rate(1)));
        let wants = Some(Box::new(Wants::from(&super::super::terms::tests::request())));
        check.full("Wants", wants.clone().unwrap());
        let (upkeep, priority) = (Some(upkeep()), Some(Priority::High));
        let max_total_micro_usd = Some(1);
        let change = OrderChange { duration_ms, max_rate, max_total_micro_usd, upkeep, priority, wants };
        check.full("OrderChange", change);
    }
}
