//! Measuring a link: both sides count, the relay hands out the figures, and nobody is measured without end.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ionet_net::{
    NodeConfig,
    measure::{Figures, MeasureServer, measure},
    relay::admit_all,
};

use crate::{admit, key, node, relay, run, soon};

#[test]
fn a_link_is_measured_by_both_sides_and_not_again_at_once() {
    run(async {
        let (relay, worker, other) = (node(1).await, node(2).await, node(3).await);
        let attested = Arc::new(Mutex::new(Vec::new()));
        let seen = attested.clone();
        let attest = move |endpoint, figures: Figures| {
            seen.lock().expect("seen").push((endpoint, figures));
            serde_json::to_vec(&figures).expect("json")
        };
        let _serving = MeasureServer::start(&relay, admit(&[2]), Arc::new(attest));
        let ask = async |each| soon("measured", measure(&worker, &relay.addr(), each)).await;
        let ping: Figures =
            serde_json::from_slice(&ask(Duration::ZERO).await.expect("round trip")).expect("json");
        assert!(ping.rtt_us > 0 && ping.rtt_us < 1_000_000 && ping.bandwidth.is_none(), "{ping:?}");
        let each = Duration::from_millis(400);
        let full: Figures = serde_json::from_slice(&ask(each).await.expect("bandwidth")).expect("json");
        let (down, up) = full.bandwidth.expect("bandwidth");
        assert!(down > 1 && up > 1, "{full:?}");
        assert_eq!(ask(each).await.expect_err("again at once").code(), "net_closed");
        assert_eq!(attested.lock().expect("attested").as_slice(), [(key(2).id(), ping), (key(2).id(), full)]);
        let stranger = soon("turned away", measure(&other, &relay.addr(), each)).await;
        assert_eq!(stranger.expect_err("a stranger").code(), "net_not_admitted");
    });
}

#[test]
fn a_machine_without_udp_is_measured_through_the_relay_itself() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let relay = relay::relay(&dir, admit_all()).await;
        let config = NodeConfig { relays: vec![relay.info()], ..NodeConfig::default() };
        let measurer = ionet_net::Node::bind(&key(1), config).await.expect("bind");
        soon("at home", measurer.online()).await;
        let attest = |_, figures: Figures| serde_json::to_vec(&figures).expect("json");
        let _serving = MeasureServer::start(&measurer, admit_all(), Arc::new(attest));
        let worker = relay::behind(2, relay.info()).await;
        let mut at = measurer.addr();
        at.direct.clear();
        let answer =
            soon("measured", measure(&worker, &at, Duration::from_millis(300))).await.expect("measured");
        let figures: Figures = serde_json::from_slice(&answer).expect("json");
        assert!(figures.bandwidth.is_some_and(|(down, up)| down > 0 && up > 0), "{figures:?}");
    });
}
