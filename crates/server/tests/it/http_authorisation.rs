//! Who may do what: a line for every operation of the API, and no operation without a line.

use std::collections::BTreeSet;

use ionet_api::exposed::ExposeRequest;
use ionet_api::rest::{
    ChangeRequest, DenyOrder, EgressRequest, EnrolRequest, ExtendRequest, FeedRequest, GrowRequest,
    MoreRequest, NamedRequest, OperatorRequest, OrderRequest, RateRequest, ReplaceRequest, SendRequest,
    ShareRequest, ShrinkRequest, SignedQuote, TunnelGrantRequest,
};
use ionet_domain::account::Scope;
use ionet_domain::device::DeviceChange;
use ionet_domain::id::TransferKind;
use ionet_domain::market::competitors::PricePoint;
use ionet_domain::market::{Egress, Feed};
use ionet_domain::order::expose::{Access, Kind};
use ionet_domain::order::size::OrderChange;
use ionet_domain::tunnel::Services;
use ionet_domain::{Asset, CommandId, DeviceId, EndpointId, OrderId, Rate};
use ionet_server::AppsConfig;
use serde_json::{Value, json};

use crate::http_kit::{Network, PRIVATE_NAME, enrolment, new_key, order, request, run, wallet};

/// What is there before the table is walked.
struct Scene {
    network: Network,
    cluster: OrderId,
    /// Holds the cluster.
    device: DeviceId,
    /// Holds nothing.
    spare: DeviceId,
    next: OrderRequest,
    /// The price of another member of the cluster.
    more: SignedQuote,
    key: String,
}

/// One operation: its path, its body, and the status for nobody, another account, a key of the owner's without any
/// scope, and the owner.
type Line = (&'static str, &'static str, fn(&Scene) -> Value, [u16; 4]);

fn none(_: &Scene) -> Value {
    Value::Null
}

fn json_of(value: impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("json")
}

const TABLE: &[Line] = &[
    ("get", "/", none, [200; 4]),
    ("get", "/healthz", none, [200; 4]),
    ("get", "/metrics", none, [200; 4]),
    ("get", "/openapi.json", none, [200; 4]),
    ("get", "/v1/network", none, [200; 4]),
    ("post", "/v1/sign-in/challenge", |_| json!({ "account": wallet(1).address() }), [200; 4]),
    (
        "post",
        "/v1/sign-in",
        |_| json!({ "account": wallet(1).address(), "nonce": "n", "expires_ms": 1, "signature": "00" }),
        [401; 4],
    ),
    ("get", "/v1/keys", none, [401, 200, 403, 200]),
    ("post", "/v1/keys", |_| json_of(new_key(&[Scope::Read], 0)), [401, 200, 403, 200]),
    ("delete", "/v1/keys/{key}", none, [401, 404, 403, 204]),
    ("get", "/v1/wallet", none, [401, 200, 403, 200]),
    ("post", "/v1/wallet/send", send, [401, 402, 403, 200]),
    ("get", "/v1/ledger", none, [401, 200, 403, 200]),
    ("get", "/v1/activity", none, [401, 200, 403, 200]),
    ("get", "/v1/devices", none, [200; 4]),
    ("post", "/v1/devices", enrol, [401, 403, 403, 200]),
    ("get", "/v1/devices/{device}", none, [200; 4]),
    ("patch", "/v1/devices/{device}", change, [401, 403, 403, 200]),
    ("post", "/v1/devices/{device}/check", none, [401, 403, 403, 409]),
    ("delete", "/v1/devices/{device}", none, [401, 403, 403, 204]),
    ("post", "/v1/quotes", |_| json_of(request()), [401, 200, 403, 200]),
    ("get", "/v1/prices", none, [200; 4]),
    ("post", "/v1/prices/feeds", feed, [403; 4]),
    ("post", "/v1/explain", |_| json_of(request()), [401, 200, 403, 200]),
    ("get", "/v1/clusters/{cluster}/explain", none, [401, 404, 403, 200]),
    ("get", "/v1/devices/{device}/explain", none, [401, 403, 403, 200]),
    ("get", "/v1/clusters", none, [401, 200, 403, 200]),
    ("post", "/v1/clusters", |scene| json_of(&scene.next), [401, 403, 403, 200]),
    ("get", "/v1/clusters/{cluster}", none, [401, 404, 403, 200]),
    ("get", "/v1/clusters/{cluster}/network", none, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/quote", |_| json_of(MoreRequest { members: 1 }), [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/grow", grow, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/shrink", shrink, [401, 404, 403, 200]),
    ("patch", "/v1/clusters/{cluster}", shorter, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/extend", extend, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/egress", egress, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/tunnels", tunnel, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/exposed", expose, [401, 404, 403, 200]),
    ("get", "/v1/clusters/{cluster}/exposed", none, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/tickets", none, [401, 404, 403, 200]),
    ("delete", "/v1/clusters/{cluster}/exposed/{kind}/{port}", none, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/shares", share, [401, 404, 403, 200]),
    ("delete", "/v1/clusters/{cluster}/shares/{account}", none, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/replace", replace, [401, 404, 403, 422]),
    ("post", "/v1/clusters/{cluster}/resume", named, [401, 404, 403, 409]),
    ("post", "/v1/clusters/{cluster}/pause", named, [401, 404, 403, 200]),
    ("post", "/v1/clusters/{cluster}/rate", rate, [401, 404, 403, 409]),
    ("get", "/v1/country", none, [401, 200, 403, 200]),
    ("put", "/v1/country", |_| json!({ "country": "DE" }), [401, 200, 403, 200]),
    ("get", "/v1/devices/{device}/terms", none, [401, 403, 403, 200]),
    ("put", "/v1/devices/{device}/terms", terms, [401, 403, 403, 200]),
    ("post", "/v1/operator/deny-list", deny, [403; 4]),
    ("delete", "/v1/clusters/{cluster}", none, [401, 404, 403, 200]),
    ("get", "/v1/books", none, [200; 4]),
    ("get", "/v1/journal", none, [200; 4]),
    ("get", "/v1/events", none, [200; 4]),
];

fn send(scene: &Scene) -> Value {
    let id = scene.network.transfer_id(TransferKind::Send);
    json_of(SendRequest { id, to: wallet(9).address(), asset: Asset::Iosd, amount: 5 })
}

fn enrol(scene: &Scene) -> Value {
    let device = DeviceId::from_bits(scene.network.order_id().bits());
    let enrolment = enrolment(device, wallet(1).address(), EndpointId([77; 32]));
    json_of(EnrolRequest { enrolment, machine_name: PRIVATE_NAME.into() })
}

fn change(_: &Scene) -> Value {
    json_of(DeviceChange { ask_per_unit: Some(Rate(90_000)), ..DeviceChange::default() })
}

fn extend(scene: &Scene) -> Value {
    let id = CommandId::from_bits(scene.network.order_id().bits());
    json_of(ExtendRequest { id, added_ms: 60_000 })
}

fn command_id(scene: &Scene) -> CommandId {
    CommandId::from_bits(scene.network.order_id().bits())
}

fn grow(scene: &Scene) -> Value {
    json_of(GrowRequest { id: command_id(scene), quote: scene.more.clone() })
}

fn shrink(scene: &Scene) -> Value {
    json_of(ShrinkRequest { id: command_id(scene), members: 1 })
}

fn expose(scene: &Scene) -> Value {
    let (kind, access) = (Kind::Http, Access::Owner);
    let id = command_id(scene);
    json_of(ExposeRequest { id, kind, port: 8000, member: 0, access, accounts: BTreeSet::new() })
}

/// There is no such member.
fn replace(scene: &Scene) -> Value {
    json_of(ReplaceRequest { id: command_id(scene), member: 9 })
}

fn named(scene: &Scene) -> Value {
    json_of(NamedRequest { id: command_id(scene) })
}

fn shorter(scene: &Scene) -> Value {
    let change = OrderChange { duration_ms: Some(50 * 60_000), ..OrderChange::default() };
    json_of(ChangeRequest { id: command_id(scene), change })
}

fn egress(scene: &Scene) -> Value {
    let id = CommandId::from_bits(scene.network.order_id().bits());
    json_of(EgressRequest { id, egress: Egress::Off, allow: std::collections::BTreeSet::new() })
}

/// It runs still.
fn rate(scene: &Scene) -> Value {
    json_of(RateRequest { id: CommandId::from_bits(scene.network.order_id().bits()), stars: 5 })
}

fn terms(_: &Scene) -> Value {
    json!({ "denied": { "kinds": ["train"] } })
}

/// Signed well, by somebody who is not the operator.
fn deny(scene: &Scene) -> Value {
    let order = DenyOrder { at_ms: scene.network.handle().now_ms(), list: None };
    let signature = wallet(1).sign(&scene.network.handle().network(), &order);
    json_of(OperatorRequest { order, signature })
}

/// Signed well, by somebody whom the network's table does not name.
fn feed(scene: &Scene) -> Value {
    let points = vec![PricePoint { model: "L4".into(), provider: "x".into(), rate: Rate(1) }];
    let feed = Feed { signer: wallet(1).address(), at_ms: 1, source: "seen".into(), points };
    let signature = wallet(1).sign(&scene.network.handle().network(), &feed);
    json_of(FeedRequest { feed, signature })
}

fn tunnel(_: &Scene) -> Value {
    json_of(TunnelGrantRequest { endpoint: EndpointId([5; 32]), services: None })
}

/// With an account that is no other line's.
fn share(scene: &Scene) -> Value {
    let id = CommandId::from_bits(scene.network.order_id().bits());
    let until_ms = id.at_ms() + 60_000;
    json_of(ShareRequest { id, account: wallet(7).address(), services: Services::All, until_ms })
}

async fn scene() -> (Scene, [Option<String>; 4]) {
    let network = Network::start_with(|config| config.apps = Some(AppsConfig::local())).await;
    let owner = network.signed_in(&wallet(1)).await;
    let address = wallet(1).address();
    network.fund(address, 10_000_000).await;
    let worker = network.pool(&owner, address, 11).await;
    let cluster = network.running_cluster(&owner).await;
    let spare = network.pool(&owner, address, 12).await;
    let next = order(network.order_id(), owner.quote(&request()).await.expect("quote"));
    let more = owner.quote_more(cluster, 1).await.expect("a price for more");
    let key = owner.make_key(&new_key(&[Scope::Read], 0)).await.expect("key").id.to_string();
    let (_, without_scope) = network.with_key(&owner, &[], 0).await;
    let network_name = network.handle().network();
    let mut tokens = [None, None, Some(without_scope.expose().to_owned()), None];
    for (place, number) in [(1, 2), (3, 1)] {
        let session = network.nobody().sign_in(&network_name, &wallet(number)).await.expect("sign in");
        tokens[place] = Some(session.token.expose().to_owned());
    }
    let (device, spare_device) = (worker.device, spare.device);
    // The stand-ins live as long as the test's process: their links must stay up.
    std::mem::forget((worker, spare));
    (Scene { network, cluster, device, spare: spare_device, next, more, key }, tokens)
}

async fn status(scene: &Scene, line: &Line, token: Option<&String>) -> u16 {
    let (method, path, body, _) = line;
    let path = path.replace("{cluster}", &scene.cluster.to_string()).replace("{key}", &scene.key);
    let path = path.replace("{kind}/{port}", "http/8000");
    let path = path.replace("{account}", &wallet(7).address().to_string());
    let device = if ["patch", "delete"].contains(method) { scene.spare } else { scene.device };
    let url = format!("{}{}", scene.network.url(), path.replace("{device}", &device.to_string()));
    let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).expect("method");
    let mut request = reqwest::Client::new().request(method, url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let body = body(scene);
    if !body.is_null() {
        request = request.json(&body);
    }
    request.send().await.expect("an answer").status().as_u16()
}

#[test]
fn every_operation_has_a_line_and_answers_by_it() {
    run(async {
        let (scene, tokens) = scene().await;
        let whole: Value = serde_json::from_str(&ionet_server::http::openapi_json()).expect("json");
        let paths = whole["paths"].as_object().expect("paths");
        let operations = paths.iter().flat_map(|(path, item)| {
            item.as_object().expect("item").keys().map(move |method| (method.clone(), path.clone()))
        });
        let listed = TABLE.iter().map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned()));
        assert_eq!(operations.collect::<BTreeSet<_>>(), listed.collect::<BTreeSet<_>>());
        for line in TABLE {
            for (who, (token, expected)) in ["nobody", "another account", "a key without scopes", "the owner"]
                .into_iter()
                .zip(tokens.iter().zip(line.3))
            {
                let answered = status(&scene, line, token.as_ref()).await;
                assert_eq!(answered, expected, "{} {} by {who}", line.0, line.1);
            }
        }
    });
}
