//! What is asked for, and who serves whom.

use super::{Named, count, list, maybe, number, object, of, one_of, text, truth};

/// The request and its wishes, and the lists of who is not served.
pub(super) fn request() -> Named {
    let request = [
        ("engine", of("EngineKind")),
        ("members", number()),
        ("per_member", of("Resources")),
        ("duration_ms", count()),
        ("gpu_model?", maybe(&text())),
        ("network?", maybe(&text())),
        ("tags?", list(&text())),
        ("tier?", maybe(&of("Tier"))),
        ("spread?", truth()),
        ("egress?", text()),
        ("hiding?", text()),
        ("max_rate?", maybe(&count())),
        ("priority?", of("Priority")),
        ("buy?", of("Buy")),
        ("open_ended?", truth()),
        ("mega?", truth()),
        ("simulated?", truth()),
        ("upkeep?", of("Upkeep")),
        ("asset", of("Asset")),
        ("kind?", of("WorkKind")),
        ("gpu_min?", of("GpuMinimum")),
        ("cpu_model?", maybe(&text())),
        ("max_per_device?", maybe(&number())),
        ("regions?", list(&text())),
        ("not_regions?", list(&text())),
        ("near?", maybe(&text())),
        ("isolation?", maybe(&of("Isolation"))),
        ("min_reliability_percent?", maybe(&number())),
        ("max_total_micro_usd?", maybe(&count())),
        ("prefer?", maybe(&of("Preference"))),
        ("suppliers?", list(&text())),
        ("not_suppliers?", list(&text())),
    ];
    let wants = [
        ("gpu_model?", maybe(&text())),
        ("gpu_min?", of("GpuMinimum")),
        ("cpu_model?", maybe(&text())),
        ("network?", maybe(&text())),
        ("tags?", list(&text())),
        ("tier?", maybe(&of("Tier"))),
        ("max_per_device?", maybe(&number())),
        ("regions?", list(&text())),
        ("not_regions?", list(&text())),
        ("near?", maybe(&text())),
        ("isolation?", maybe(&of("Isolation"))),
        ("min_reliability_percent?", maybe(&number())),
        ("prefer?", maybe(&of("Preference"))),
        ("suppliers?", list(&text())),
        ("not_suppliers?", list(&text())),
    ];
    let gpu_min = [("memory_bytes?", count()), ("bandwidth_gb_s?", count()), ("fp16_gflops?", count())];
    let denials =
        [("accounts?", list(&text())), ("countries?", list(&text())), ("kinds?", list(&of("WorkKind")))];
    let deny_list = [("renters?", of("Denials")), ("devices?", list(&text()))];
    let deny_order = [("at_ms", count()), ("list?", maybe(&of("DenyList")))];
    vec![
        ("Request", object(&request)),
        ("Wants", object(&wants)),
        ("Priority", one_of(&["low", "normal", "high"])),
        ("Isolation", one_of(&["process", "limits", "one-tenant"])),
        ("Preference", one_of(&["cheapest", "fastest", "together", "apart", "near"])),
        ("WorkKind", one_of(&["general", "train", "inference"])),
        ("GpuMinimum", object(&gpu_min)),
        ("Denials", object(&denials)),
        ("DenyList", object(&deny_list)),
        ("DenyOrder", object(&deny_order)),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use ionet_domain::device::{Resources, Tier};
    use ionet_domain::market::record::Served;
    use ionet_domain::market::{
        Denials, DenyList, EngineKind, GpuMinimum, Isolation, Preference, Request, WorkKind,
    };
    use ionet_domain::{Address, Asset, DeviceId, Rate};

    use crate::http::schemas::all;
    use crate::http::schemas::tests::Check;

    pub(in crate::http::schemas) fn request() -> Request {
        Request {
            engine: EngineKind::Ray,
            members: 2,
            per_member: Resources::default(),
            duration_ms: 3,
            gpu_model: Some("A".into()),
            network: Some("n".into()),
            tags: BTreeSet::from(["t".into()]),
            tier: Some(Tier::Low),
            spread: true,
            egress: ionet_domain::market::Egress::Off,
            hiding: ionet_domain::market::Hiding { private: true, ..Default::default() },
            max_rate: Some(Rate(4)),
            priority: ionet_domain::market::Priority::High,
            buy: ionet_domain::market::Buy::Standing { expires_ms: 9 },
            open_ended: true,
            mega: true,
            simulated: true,
            upkeep: super::super::upkeep::tests::upkeep(),
            asset: Asset::Iosd,
            kind: WorkKind::Train,
            gpu_min: gpu_min(),
            cpu_model: Some("c".into()),
            max_per_device: Some(1),
            regions: BTreeSet::from(["us".into()]),
            not_regions: BTreeSet::from(["eu".into()]),
            near: Some("us".into()),
            isolation: Some(Isolation::OneTenant),
            min_reliability_percent: Some(95),
            max_total_micro_usd: Some(5),
            prefer: Some(Preference::Together),
            suppliers: BTreeSet::from([Address([1; 32])]),
            not_suppliers: BTreeSet::from([Address([2; 32])]),
        }
    }

    fn gpu_min() -> GpuMinimum {
        GpuMinimum { memory_bytes: 1, bandwidth_gb_s: 2, fp16_gflops: 3 }
    }

    fn deny_list() -> DenyList {
        let denials = Denials {
            accounts: BTreeSet::from([Address([1; 32])]),
            countries: BTreeSet::from(["DE".parse().unwrap()]),
            kinds: WorkKind::ALL.iter().copied().collect(),
        };
        DenyList { renters: denials, devices: BTreeSet::from([DeviceId::from_parts(1, 2)]) }
    }

    #[test]
    fn terms_are_described_as_they_are() {
        let check = Check(all().collect());
        check.full("GpuMinimum", gpu_min());
        check.full("Denials", deny_list().renters);
        check.full("DenyList", deny_list());
        check.full("DenyOrder", ionet_api::rest::DenyOrder { at_ms: 1, list: Some(deny_list()) });
        check.each("WorkKind", WorkKind::ALL);
        for prefer in Preference::ALL {
            check.full("Request", Request { prefer: Some(*prefer), ..request() });
        }
        let served = Served {
            kept: 1,
            lost: 1,
            free_since_ms: 1,
            rated_fees_micro_usd: 1,
            rated_stars_micro_usd: 1,
            rated_ms: 1,
        };
        check.full("Served", served);
    }
}
