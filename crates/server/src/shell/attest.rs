//! Which of the measurements that a device hands in are believed: those that one of our relays signed, of this very
//! device, just now. The relay counted too and signed the smaller figures.

use ionet_api::sign;
use ionet_api::worker::SignedLink;
use ionet_domain::connectivity::RelayMeasure;
use ionet_domain::{Address, EndpointId};
use ionet_net::RelayInfo;

/// Relays know no network; their words bear none.
const NO_NETWORK: &str = "";
/// How far a relay's clock may be from ours, with the time that a measurement may be on its way.
const CLOCKS_APART_MS: u64 = 10 * 60_000;
/// Measurements in one frame that are looked at.
const MOST: usize = 32;

/// The believed ones, as the journal has them. The time is ours where the relay's clock is ahead.
pub(super) fn believed(
    relays: &[RelayInfo],
    from: EndpointId,
    signed: &[SignedLink],
    now_ms: u64,
) -> Vec<RelayMeasure> {
    signed.iter().take(MOST).filter_map(|one| believe(relays, from, one, now_ms)).collect()
}

fn believe(relays: &[RelayInfo], from: EndpointId, signed: &SignedLink, now_ms: u64) -> Option<RelayMeasure> {
    let SignedLink { measured, signature } = signed;
    let is_its_own =
        |relay: &&RelayInfo| relay.measure.as_ref().is_some_and(|at| at.id.0 == measured.relay.0);
    let relay = relays.iter().find(is_its_own)?;
    let fits = measured.endpoint == from && measured.at_ms.abs_diff(now_ms) <= CLOCKS_APART_MS;
    let verified = sign::verify(Address(measured.relay.0), NO_NETWORK, measured, signature);
    if !fits || verified.is_err() {
        tracing::warn!(endpoint = %from, relay = relay.url, "a measurement of links is not believed");
        return None;
    }
    Some(RelayMeasure {
        relay: relay.url.clone(),
        region: relay.region.clone(),
        at_ms: measured.at_ms.min(now_ms),
        rtt_us: measured.rtt_us,
        bandwidth: measured.bandwidth,
    })
}

#[cfg(test)]
mod tests {
    use ionet_api::WalletKey;
    use ionet_api::sign::LinkMeasured;
    use ionet_domain::connectivity::Bandwidth;
    use ionet_net::NodeAddr;

    use super::*;

    #[test]
    fn only_a_relays_fresh_word_of_this_device_is_believed() {
        let (relay, stranger) = (WalletKey::from_seed(&[1; 32]), WalletKey::from_seed(&[2; 32]));
        let id = relay.address().0;
        let info = RelayInfo {
            url: "https://relay".into(),
            ca_der: Vec::new(),
            quic_port: 1,
            forwarder: None,
            region: Some("eu".into()),
            measure: Some(NodeAddr::direct(ionet_net::EndpointId(id), [])),
        };
        let device = EndpointId([7; 32]);
        let bandwidth = Some(Bandwidth { down_mbit_s: 500, up_mbit_s: 400 });
        let measured = LinkMeasured {
            relay: EndpointId(id),
            endpoint: device,
            at_ms: 1_000_000,
            rtt_us: 900,
            bandwidth,
        };
        let signed = |key: &WalletKey, measured: &LinkMeasured| SignedLink {
            measured: measured.clone(),
            signature: key.sign(NO_NETWORK, measured),
        };
        let good = signed(&relay, &measured);
        let mut improved = good.clone();
        improved.measured.bandwidth = Some(Bandwidth { down_mbit_s: 5_000, up_mbit_s: 4_000 });
        let unknown = LinkMeasured { relay: EndpointId(stranger.address().0), ..measured.clone() };
        let ask = |from, one: &SignedLink, now_ms| {
            believed(std::slice::from_ref(&info), from, std::slice::from_ref(one), now_ms)
        };
        let found = ask(device, &good, 1_000_500);
        assert_eq!((found.len(), found[0].region.as_deref(), found[0].bandwidth), (1, Some("eu"), bandwidth));
        for (from, one, now_ms, what) in [
            (device, &improved, 1_000_500, "figures changed on the way"),
            (device, &signed(&stranger, &measured), 1_000_500, "signed by another"),
            (device, &signed(&stranger, &unknown), 1_000_500, "a relay that is none of ours"),
            (EndpointId([8; 32]), &good, 1_000_500, "another device's"),
            (device, &good, 1_000_001 + CLOCKS_APART_MS, "an old one"),
        ] {
            assert_eq!(ask(from, one, now_ms), [], "{what}");
        }
    }
}
