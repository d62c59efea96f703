//! What is wrong is refused with an exact code and status, and changes nothing: the journal stays as long as it was.

use ionet_api::WalletKey;
use ionet_api::rest::{ErrorBody, SendRequest, SignInRequest, SignedQuote};
use ionet_api::sign::SignIn;
use ionet_domain::account::Scope;
use ionet_domain::id::TransferKind;
use ionet_domain::market::request::EnvironmentRef;
use ionet_domain::{Asset, OrderId};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::http_kit::{Network, new_key, order, request, run, wallet};

/// What is there before the tables are walked.
struct Scene {
    network: Network,
    http: Client,
    session: String,
}

impl Scene {
    async fn new() -> Self {
        let network = Network::start().await;
        let name = network.handle().network();
        let session = network.nobody().sign_in(&name, &wallet(1)).await.expect("sign in");
        Self { http: Client::new(), session: session.token.expose().to_owned(), network }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.network.url()))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.ask(Method::GET, path).bearer_auth(&self.session)
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.ask(Method::POST, path).bearer_auth(&self.session).json(body)
    }

    /// The answer is this refusal, in words too, and the journal is as long as it was.
    async fn refuses(&self, what: &str, request: RequestBuilder, status: u16, code: &str) -> ErrorBody {
        let before = self.network.head_seq();
        let response = request.send().await.expect("an answer");
        let answered = response.status().as_u16();
        let body: ErrorBody = response.json().await.unwrap_or_else(|e| panic!("{what}: {answered}: {e}"));
        assert_eq!((answered, body.code.as_str()), (status, code), "{what}: {}", body.message);
        assert!(body.message.len() > 10, "{what}: {}", body.message);
        assert_eq!(self.network.head_seq(), before, "{what} changed something");
        body
    }
}

#[test]
fn requests_that_make_no_sense_are_refused_by_name() {
    run(async {
        let scene = Scene::new().await;
        let s = &scene;
        let challenge = json!({ "account": wallet(1).address() });
        let raw = |body: Vec<u8>| {
            s.ask(Method::POST, "/v1/sign-in/challenge").header("content-type", "application/json").body(body)
        };
        let path = "/v1/sign-in/challenge";
        let plain =
            s.ask(Method::POST, path).header("content-type", "text/plain").body(challenge.to_string());
        let extra = json!({ "account": wallet(1).address(), "colour": "red" });
        let deep = [b"{\"account\":".to_vec(), vec![b'['; 100_000]].concat();
        let table = [
            ("no such path", s.get("/v1/nothing"), 404, "no_such_path"),
            ("a wrong method", s.ask(Method::PUT, "/v1/keys"), 405, "wrong_method"),
            ("no content type", s.ask(Method::POST, path).body("{}"), 415, "wrong_content_type"),
            ("text", plain, 415, "wrong_content_type"),
            ("no JSON", raw(b"account".to_vec()), 400, "malformed"),
            ("an empty body", raw(Vec::new()), 400, "malformed"),
            ("a huge body", raw(vec![b' '; (1 << 20) + 1]), 413, "too_large"),
            ("deep JSON", raw(deep), 400, "malformed"),
            ("an unknown field", s.post(path, &extra), 400, "unknown_field"),
            ("a missing field", s.post(path, &json!({})), 400, "malformed"),
            ("a bad address", s.post(path, &json!({ "account": "me" })), 400, "malformed"),
            ("an unknown query field", s.get("/v1/journal?colour=red"), 400, "unknown_field"),
            ("a query where none is taken", s.get("/v1/wallet?colour=red"), 400, "unknown_field"),
            ("a query that is no number", s.get("/v1/journal?after=x"), 400, "malformed"),
            ("no events", s.get("/v1/journal?limit=0"), 422, "out_of_range"),
            ("too many events", s.get("/v1/ledger?limit=1001"), 422, "out_of_range"),
            ("a bad place", s.get("/v1/events").header("last-event-id", "x"), 422, "out_of_range"),
            ("a bad tier", s.get("/v1/devices?tier=best"), 422, "out_of_range"),
            ("a bad stage", s.get("/v1/devices?stage=best"), 422, "out_of_range"),
            ("a bad id", s.get("/v1/devices/dev_1"), 400, "malformed"),
            ("another kind of id", s.get("/v1/clusters/dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"), 400, "malformed"),
            ("an unknown device", s.get("/v1/devices/dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"), 404, "unknown_device"),
            (
                "an unknown cluster",
                s.get("/v1/clusters/clu_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
                404,
                "unknown_order",
            ),
            (
                "others' activity",
                s.get(&format!("/v1/activity?subject={}", wallet(2).address())),
                403,
                "not_allowed",
            ),
        ];
        for (what, request, status, code) in table {
            let body = s.refuses(what, request, status, code).await;
            assert!(code != "unknown_field" || body.message.contains("colour"), "{}", body.message);
        }
        scene.network.stop().await;
    });
}

#[test]
fn callers_that_prove_nothing_are_turned_away() {
    run(async {
        let scene = Scene::new().await;
        let (s, name) = (&scene, scene.network.handle().network());
        let owner = s.network.signed_in(&wallet(1)).await;
        let gone = s.network.with_key(&owner, &[Scope::Read], 0).await.1.expose().to_owned();
        let id = owner.keys().await.expect("keys")[0].id;
        owner.revoke_key(id).await.expect("revoke");
        let mut short = new_key(&[Scope::Read], 0);
        short.lifetime_ms = 1_000;
        let over = owner.make_key(&short).await.expect("key").token.expose().to_owned();
        let made_ms = s.network.handle().now_ms();
        s.network
            .until("the key is over", |_| (s.network.handle().now_ms() > made_ms + 1_000).then_some(()))
            .await;
        let other = if gone.ends_with('0') { '1' } else { '0' };
        let guessed = format!("{}{other}", &gone[..gone.len() - 1]);
        let unknown = gone.replace("key_0", "key_1");
        let bearer = |token: &str| s.ask(Method::GET, "/v1/wallet").bearer_auth(token);
        let basic = s.ask(Method::GET, "/v1/wallet").header("authorization", "Basic bWU6bWU=");
        let table = [
            ("nobody", s.ask(Method::GET, "/v1/wallet"), "not_signed_in"),
            ("a password", basic, "malformed_token"),
            ("no token of ours", bearer("abc"), "malformed_token"),
            ("a made-up session", bearer(&format!("session_{}", "0".repeat(64))), "unknown_session"),
            ("a guessed secret", bearer(&guessed), "unknown_key"),
            ("an unknown key", bearer(&unknown), "unknown_key"),
            ("a revoked key", bearer(&gone), "key_unusable"),
            ("a key past its time", bearer(&over), "key_unusable"),
            (
                "a bad token where none is needed",
                s.ask(Method::GET, "/v1/devices").bearer_auth("abc"),
                "malformed_token",
            ),
        ];
        for (what, request, code) in table {
            s.refuses(what, request, 401, code).await;
        }
        bad_sign_ins(s, &name).await;
        scene.network.stop().await;
    });
}

async fn bad_sign_ins(s: &Scene, name: &str) {
    let challenge = || async {
        let request =
            s.ask(Method::POST, "/v1/sign-in/challenge").json(&json!({ "account": wallet(1).address() }));
        let challenge: ionet_api::rest::Challenge =
            request.send().await.expect("answer").json().await.expect("json");
        challenge
    };
    let signed = |by: &WalletKey, network: &str, nonce: String, expires_ms: u64| {
        let account = wallet(1).address();
        let signature = by.sign(network, &SignIn { account, nonce: nonce.clone(), expires_ms });
        SignInRequest { account, nonce, expires_ms, signature }
    };
    let ask = |request: &SignInRequest| s.ask(Method::POST, "/v1/sign-in").json(request);
    let fresh = challenge().await;
    let good = signed(&wallet(1), name, fresh.nonce.clone(), fresh.expires_ms);
    let table = [
        (
            "somebody else's signature",
            signed(&wallet(2), name, fresh.nonce.clone(), fresh.expires_ms),
            "bad_signature",
        ),
        (
            "another network's",
            signed(&wallet(1), "other", fresh.nonce.clone(), fresh.expires_ms),
            "bad_signature",
        ),
        ("a made-up nonce", signed(&wallet(1), name, "0".repeat(96), fresh.expires_ms), "unknown_challenge"),
        ("a longer life", signed(&wallet(1), name, fresh.nonce, fresh.expires_ms + 1), "unknown_challenge"),
        ("a signature of no size", SignInRequest { signature: "00".into(), ..good.clone() }, "bad_signature"),
    ];
    for (what, request, code) in table {
        s.refuses(what, ask(&request), 401, code).await;
    }
    assert!(ask(&good).send().await.expect("answer").status().is_success());
    s.refuses("a challenge used twice", ask(&good), 401, "challenge_used").await;
}

#[test]
fn quotes_and_orders_that_do_not_add_up_are_refused() {
    run(async {
        let scene = Scene::new().await;
        let s = &scene;
        let owner = s.network.signed_in(&wallet(1)).await;
        let _worker = s.network.pool(&owner, wallet(1).address(), 11).await;
        let quote = owner.quote(&request()).await.expect("quote");
        let changed = |change: fn(&mut ionet_domain::market::Request)| {
            let mut request = request();
            change(&mut request);
            s.post("/v1/quotes", &serde_json::to_value(request).expect("json"))
        };
        let mut tampered = quote.clone();
        tampered.quote.total_micro_usd = 1;
        let expired = expired(s, &quote);
        let of_another = s.network.signed_in(&wallet(2)).await.quote(&request()).await.expect("quote");
        let place = |quote: &SignedQuote| {
            let request = order(s.network.order_id(), quote.clone());
            s.post("/v1/clusters", &serde_json::to_value(request).expect("json"))
        };
        let mut foreign = order(s.network.order_id(), quote.clone());
        foreign.program.environment = Some(EnvironmentRef("ray@sha256:00".into()));
        let mut old = order(OrderId::from_parts(1, 2), quote.clone());
        old.program.env.clear();
        let mut empty = order(s.network.order_id(), quote.clone());
        empty.program.argv.clear();
        let post = |body: &ionet_api::rest::OrderRequest| {
            s.post("/v1/clusters", &serde_json::to_value(body).expect("json"))
        };
        let table = [
            ("no members", changed(|r| r.members = 0), 422, "out_of_range"),
            ("too many members", changed(|r| r.members = 257), 422, "out_of_range"),
            ("no processor", changed(|r| r.per_member.cpu_millis = 0), 422, "out_of_range"),
            ("a second", changed(|r| r.duration_ms = 1000), 422, "out_of_range"),
            ("another coin", changed(|r| r.asset = Asset::Io), 422, "unsupported"),
            ("more than there is", changed(|r| r.members = 9), 409, "no_capacity"),
            ("too low a cap", changed(|r| r.max_rate = Some(ionet_domain::Rate(1))), 409, "over_price_cap"),
            ("a tampered quote", place(&tampered), 400, "bad_signature"),
            ("an expired quote", place(&expired), 410, "quote_expired"),
            ("another account's quote", place(&of_another), 403, "quote_not_yours"),
            ("an environment of nobody", post(&foreign), 422, "unsupported"),
            ("an id of long ago", post(&old), 422, "stale_id"),
            ("no program", post(&empty), 422, "out_of_range"),
            ("an empty wallet", place(&quote), 402, "insufficient_funds"),
        ];
        for (what, request, status, code) in table {
            // A denial is logged once a minute; the journal is compared all the same, so none may be due.
            s.refuses(what, request, status, code).await;
        }
        scene.network.stop().await;
    });
}

/// The quote as the server itself would have signed it long ago.
fn expired(s: &Scene, quote: &SignedQuote) -> SignedQuote {
    let seed = std::fs::read(s.network.signing_key_path()).expect("the server's key");
    let key = WalletKey::from_seed(&seed.try_into().expect("32 bytes"));
    let mut quote = quote.quote.clone();
    (quote.issued_ms, quote.expires_ms) = (1, 2);
    let signature = key.sign(&s.network.handle().network(), &quote);
    SignedQuote { quote, signature }
}

#[test]
fn what_was_done_is_not_done_twice() {
    run(async {
        let scene = Scene::new().await;
        let s = &scene;
        let owner = s.network.signed_in(&wallet(1)).await;
        s.network.fund(wallet(1).address(), 10_000_000).await;
        let id = s.network.transfer_id(TransferKind::Send);
        let sent = SendRequest { id, to: wallet(2).address(), asset: Asset::Iosd, amount: 5 };
        owner.send(&sent).await.expect("send");
        let body = serde_json::to_value(&sent).expect("json");
        s.refuses("the same transfer", s.post("/v1/wallet/send", &body), 409, "transfer_exists").await;
        let id = s.network.transfer_id(TransferKind::Deposit);
        let wrong = serde_json::to_value(SendRequest { id, ..sent }).expect("json");
        s.refuses("another kind of transfer", s.post("/v1/wallet/send", &wrong), 422, "bad_transfer").await;
        let _worker = s.network.pool(&owner, wallet(1).address(), 11).await;
        let placed = order(s.network.order_id(), owner.quote(&request()).await.expect("quote"));
        owner.order(&placed).await.expect("order");
        s.network
            .until("the cluster runs", |view| {
                let stage = view.state.orders.get(&placed.id)?.stage;
                (stage == ionet_domain::Stage::Running).then_some(())
            })
            .await;
        let again = owner.order(&placed).await.expect_err("twice");
        assert_eq!(again.code(), "exists");
        let extend = ionet_api::rest::ExtendRequest {
            id: ionet_domain::CommandId::from_bits(s.network.order_id().bits()),
            added_ms: 60_000,
        };
        owner.extend(placed.id, &extend).await.expect("extend");
        assert_eq!(owner.extend(placed.id, &extend).await.expect_err("twice").code(), "exists");
        let escrow = owner.cluster(placed.id).await.expect("cluster").bill.escrow_micro_usd;
        assert!(escrow < 2 * placed.quote.quote.total_micro_usd, "{escrow}");
        scene.network.stop().await;
    });
}
