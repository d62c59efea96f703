//! Every endpoint's good way through the typed client, and what others never see.

use futures_util::StreamExt;
use ionet_api::rest::{
    ClusterFilter, DeviceFilter, EventFilter, ExtendRequest, SendRequest, TunnelGrantRequest,
};
use ionet_api::sign;
use ionet_domain::account::{ActivityKind, Scope};
use ionet_domain::device::{DeviceChange, OwnerRules};
use ionet_domain::id::TransferKind;
use ionet_domain::{Asset, CommandId, EndpointId, Stage};

use crate::http_kit::{Network, PRIVATE_NAME, PRIVATE_WORD, new_key, order, request, run, soon, wallet};

#[test]
fn an_account_signs_in_makes_keys_and_moves_money() {
    run(async {
        let network = Network::start().await;
        let (me, other) = (wallet(1), wallet(2));
        network.fund(me.address(), 1_000_000).await;
        let client = network.signed_in(&me).await;
        let made = client.make_key(&new_key(&[Scope::Read, Scope::Pay], 500)).await.expect("key");
        let keys = client.keys().await.expect("keys");
        assert_eq!((keys.len(), keys[0].id, keys[0].label.as_str()), (1, made.id, "a test's"));
        let by_key = network.nobody().with_token(made.token);
        let id = network.transfer_id(TransferKind::Send);
        let sent = SendRequest { id, to: other.address(), asset: Asset::Iosd, amount: 250_000 };
        let wallet_after = by_key.send(&sent).await.expect("send");
        assert_eq!(wallet_after.holdings[0].available, 750_000);
        assert_eq!(by_key.wallet().await.expect("wallet"), wallet_after);
        let lines = client.ledger(&EventFilter::default()).await.expect("ledger");
        let amounts: Vec<_> = lines.iter().map(|line| line.transfer.amount).collect();
        assert_eq!(amounts, [1_000_000, 250_000]);
        let theirs = EventFilter { subject: Some(other.address().to_string()), ..EventFilter::default() };
        assert_eq!(network.nobody().ledger(&theirs).await.expect("public"), lines[1..]);
        let books = network.nobody().books().await.expect("books");
        assert_eq!(books.balances.values().sum::<i64>(), 0);
        assert_eq!(books.balances[&format!("wallet:{}:IOSD", other.address())], 250_000);
        client.revoke_key(made.id).await.expect("revoke");
        assert_eq!(by_key.wallet().await.expect_err("revoked").code(), "key_unusable");
        let log = client.activity(&EventFilter::default()).await.expect("activity");
        let kinds: Vec<_> = log.iter().map(|line| (line.kind, line.key)).collect();
        assert_eq!(kinds, [(ActivityKind::SignedIn, None), (ActivityKind::KeyUsed, Some(made.id))]);
        network.stop().await;
    });
}

#[test]
fn a_device_is_enrolled_found_changed_and_archived() {
    run(async {
        let network = Network::start().await;
        let (me, nobody) = (wallet(1), network.nobody());
        let client = network.signed_in(&me).await;
        let worker = network.pool(&client, me.address(), 11).await;
        let mine = DeviceFilter { mine: true, class: Some("cpu".into()), ..DeviceFilter::default() };
        let found = client.devices(&mine).await.expect("devices");
        assert_eq!((found.len(), found[0].id, found[0].status.as_str()), (1, worker.device, "idle"));
        assert_eq!(found[0].machine_name.as_deref(), Some(PRIVATE_NAME));
        network.until("telemetry", |view| view.fleet.device(worker.device)?.telemetry.back().cloned()).await;
        let own = client.device(worker.device).await.expect("device");
        assert_eq!(own.telemetry.map(|telemetry| telemetry.cpu_percent), Some(42));
        let public = nobody.device(worker.device).await.expect("device");
        assert_eq!((public.machine_name, public.telemetry), (None, None));
        for (filter, count) in [
            (DeviceFilter { tier: Some("basic".into()), ..DeviceFilter::default() }, 1),
            (DeviceFilter { tag: Some("test".into()), ..DeviceFilter::default() }, 1),
            (DeviceFilter { tag: Some("x".into()), ..DeviceFilter::default() }, 0),
            (DeviceFilter { stage: Some("pooled".into()), ..DeviceFilter::default() }, 1),
            (DeviceFilter { network: Some("render".into()), ..DeviceFilter::default() }, 0),
            (DeviceFilter { class: Some("NVIDIA H100".into()), ..DeviceFilter::default() }, 0),
        ] {
            assert_eq!(nobody.devices(&filter).await.expect("devices").len(), count, "{filter:?}");
        }
        let rules = Some(OwnerRules { paused: true, ..OwnerRules::default() });
        let change = DeviceChange { rules, ..DeviceChange::default() };
        assert_eq!(client.change_device(worker.device, &change).await.expect("change").status, "paused");
        client.check_device(worker.device).await.expect("check");
        network
            .until("the device is pooled again", |view| {
                let stage = &view.state.devices.get(&worker.device)?.stage;
                (*stage == ionet_domain::device::DeviceStage::Pooled).then_some(())
            })
            .await;
        client.archive_device(worker.device).await.expect("archive");
        assert!(nobody.devices(&DeviceFilter::default()).await.expect("devices").is_empty());
        let archived = DeviceFilter { archived: true, ..DeviceFilter::default() };
        assert_eq!(nobody.devices(&archived).await.expect("devices").len(), 1);
        for (after, before, newest, count) in [
            (None, None, true, 1),
            (Some(worker.device), None, false, 0),
            (None, Some(worker.device), true, 0),
            (Some(worker.device), Some(worker.device), false, 0),
        ] {
            let page = DeviceFilter { after, before, newest, limit: Some(5), ..archived.clone() };
            assert_eq!(nobody.devices(&page).await.expect("devices").len(), count, "{page:?}");
        }
        network.stop().await;
    });
}

#[test]
fn a_cluster_is_priced_ordered_extended_reached_and_closed() {
    run(async {
        let network = Network::start().await;
        let (supplier, me) = (wallet(1), wallet(2));
        let supplying = network.signed_in(&supplier).await;
        let worker = network.pool(&supplying, supplier.address(), 11).await;
        network.fund(me.address(), 1_000_000).await;
        let client = network.signed_in(&me).await;
        let cluster = network.running_cluster(&client).await;
        let view = client.cluster(cluster).await.expect("cluster");
        assert_eq!((view.stage, view.leases.len()), (Stage::Running, 1));
        let lease = &view.leases[0];
        assert_eq!((lease.device, lease.contact.as_str()), (worker.device, "connected"));
        assert_eq!((lease.ip.as_str(), lease.parts_ms.len()), ("10.77.0.1", 1));
        assert_eq!(client.clusters(&ClusterFilter::default()).await.expect("clusters").len(), 1);
        assert_eq!(view.token.expose().len(), 64);
        assert!(supplying.clusters(&ClusterFilter::default()).await.expect("none").is_empty());
        let id = CommandId::from_bits(network.order_id().bits());
        let longer =
            client.extend(cluster, &ExtendRequest { id, added_ms: 3_600_000 }).await.expect("extend");
        assert_eq!(longer.quote.request.duration_ms, 7_200_000);
        let endpoint = EndpointId([5; 32]);
        let granted =
            client.grant(cluster, &TunnelGrantRequest { endpoint, services: None }).await.expect("grant");
        let info = client.network().await.expect("network");
        sign::verify(info.server, &info.name, &granted.grant, &granted.signature).expect("signed");
        assert_eq!((granted.members.len(), granted.members[0].endpoint.id), (1, worker.endpoint));
        let refused = supplying
            .grant(cluster, &TunnelGrantRequest { endpoint, services: None })
            .await
            .expect_err("not theirs");
        assert_eq!(refused.code(), "unknown_order");
        let denied = network.denied_lines(&supplying).await;
        assert_eq!(denied, 1, "a denied tunnel is logged");
        let closed = client.close(cluster).await.expect("close");
        assert!(closed.stage >= Stage::Closing);
        assert_eq!(client.close(cluster).await.expect_err("closed").code(), "wrong_stage");
        nothing_private_is_public(&network).await;
        network.stop().await;
    });
}

/// Programs, machine names and secrets stand in nothing that everybody can read.
async fn nothing_private_is_public(network: &Network) {
    let http = reqwest::Client::new();
    for path in ["/", "/metrics", "/v1/network", "/v1/devices", "/v1/books", "/v1/journal?limit=1000"] {
        let text = http.get(format!("{}{path}", network.url())).send().await.expect("answer");
        let text = text.text().await.expect("text");
        for private in [PRIVATE_WORD, PRIVATE_NAME] {
            assert!(!text.contains(private), "{private} stands in {path}");
        }
    }
}

#[test]
fn the_public_journal_proves_its_own_chain() {
    run(async {
        let network = Network::start().await;
        let me = wallet(1);
        network.fund(me.address(), 1_000_000).await;
        let client = network.signed_in(&me).await;
        client.make_key(&new_key(&[Scope::Read], 0)).await.expect("key");
        let (mut after, mut hash) = (0, [0; 32]);
        loop {
            let page = EventFilter { after, limit: Some(2), ..EventFilter::default() };
            let events = network.nobody().journal(&page).await.expect("journal");
            for event in &events {
                assert_eq!(event.seq, after + 1);
                hash = recomputed(hash, event);
                assert_eq!(sign::hex(&hash), event.hash, "event {}", event.seq);
                after = event.seq;
            }
            if events.is_empty() {
                break;
            }
        }
        let head = network.nobody().books().await.expect("books").journal;
        assert_eq!((head.seq, head.hash), (after, sign::hex(&hash)));
        for subject in [None, Some(me.address().to_string())] {
            all_pages_are_the_whole(&network.nobody(), subject).await;
        }
        assert!(after >= 5);
        network.stop().await;
    });
}

/// Page by page, oldest or newest first, there is the same and nothing twice.
async fn all_pages_are_the_whole(client: &ionet_api::Client, subject: Option<String>) {
    let whole = EventFilter { subject: subject.clone(), ..EventFilter::default() };
    let whole: Vec<_> = client.journal(&whole).await.expect("whole").iter().map(|event| event.seq).collect();
    assert!(whole.len() >= 2, "{subject:?}");
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page = EventFilter { subject: subject.clone(), before, newest: true, limit: Some(2), after: 1 };
        let page = client.journal(&page).await.expect("page");
        found.extend(page.iter().map(|event| event.seq));
        let Some(last) = page.last() else { break };
        before = Some(last.seq);
    }
    found.reverse();
    assert_eq!(found, whole.into_iter().filter(|seq| *seq > 1).collect::<Vec<_>>(), "{subject:?}");
}

/// The chain's next hash from what the API shows, by the documented bytes.
fn recomputed(before: [u8; 32], event: &ionet_api::rest::EventView) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let text = event.text.as_deref().expect("the export has the exact text");
    let mut sha = Sha256::new();
    sha.update(b"ionet-journal/record/1\0");
    sha.update(before);
    sha.update(event.seq.to_le_bytes());
    sha.update(event.at_ms.to_le_bytes());
    sha.update(u32::try_from(event.subjects.len()).expect("few").to_le_bytes());
    for subject in &event.subjects {
        sha.update(u32::try_from(subject.len()).expect("short").to_le_bytes());
        sha.update(subject);
    }
    sha.update((text.len() as u64).to_le_bytes());
    sha.update(text);
    let digest = event.private_digest.as_deref().map(|hex| sign::unhex(hex).expect("hex"));
    sha.update([u8::from(digest.is_some())]);
    sha.update(digest.unwrap_or_else(|| vec![0; 32]));
    sha.finalize().into()
}

#[test]
fn an_order_under_a_key_keeps_to_its_cap() {
    run(async {
        let network = Network::start().await;
        let (supplier, me) = (wallet(1), wallet(2));
        let supplying = network.signed_in(&supplier).await;
        let _worker = network.pool(&supplying, supplier.address(), 11).await;
        network.fund(me.address(), 1_000_000).await;
        let client = network.signed_in(&me).await;
        let (poor, _) = network.with_key(&client, &[Scope::Rent], 1).await;
        let quote = poor.quote(&request()).await.expect("quote");
        let refused = poor.order(&order(network.order_id(), quote)).await.expect_err("over its cap");
        assert_eq!(refused.code(), "key_over_cap");
        let (rich, _) = network.with_key(&client, &[Scope::Rent], 1_000_000).await;
        let quote = rich.quote(&request()).await.expect("quote");
        let id = network.order_id();
        assert_eq!(rich.order(&order(id, quote)).await.expect("order").id, id);
        network.stop().await;
    });
}

#[test]
fn monitors_and_people_are_served() {
    run(async {
        let network = Network::start().await;
        let me = wallet(1);
        network.fund(me.address(), 5).await;
        let client = network.signed_in(&me).await;
        client.activity(&EventFilter::default()).await.expect("activity");
        let http = reqwest::Client::new();
        let get = |path: &str| http.get(format!("{}{path}", network.url())).send();
        assert_eq!(get("/healthz").await.expect("answer").text().await.expect("text"), "ok\n");
        let metrics = get("/metrics").await.expect("answer").text().await.expect("text");
        for line in [
            "ionet_money_minor_units{account=\"wallets\",asset=\"IOSD\"} 5",
            "ionet_money_minor_units{account=\"world\",asset=\"IOSD\"} -5",
            "ionet_links 0",
            "ionet_commands_total{answer=\"accepted\"} 1",
        ] {
            assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
        }
        for family in ["ionet_journal_head_seq ", "ionet_command_seconds_bucket", "ionet_index_lag_events "] {
            assert!(metrics.contains(family), "{family} is not in\n{metrics}");
        }
        let page = get("/").await.expect("answer");
        let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
        assert!(policy.starts_with("default-src 'none'; connect-src 'self'; style-src 'sha256-"), "{policy}");
        assert!(!page.headers().contains_key("access-control-allow-origin"));
        let page = page.text().await.expect("text");
        assert!(
            page.contains(&network.handle().network())
                && !page.contains("http://")
                && !page.contains("https://")
        );
        network.stop().await;
    });
}

#[test]
fn a_stopping_server_ends_its_live_streams() {
    run(async {
        let network = Network::start().await;
        let response = network.nobody().events(&EventFilter::default()).await.expect("events");
        let read = tokio::spawn(async move { response.bytes_stream().count().await });
        network.stop().await;
        soon("the stream's end", read).await.expect("read");
    });
}
