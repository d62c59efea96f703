//! A small certificate authority that speaks RFC 8555 over HTTPS, for tests.
//!
//! Always holds: a request counts only with a fresh nonce, its own address and a true signature of a known account; a
//! certificate is made only for a name whose proof was found by HTTP at the port given, and for the key of a signed request
//! for this name and no other. Not here: other challenges than HTTP-01, other signatures than ES256, revocation.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const HOUR: Duration = Duration::from_hours(1);

/// An authority on a free port of the loopback.
pub(crate) struct Authority {
    shared: Arc<Shared>,
    dir: TempDir,
}

struct Shared {
    base: String,
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    /// Where port 80 of every name is.
    proof_port: u16,
    state: Mutex<Ca>,
}

/// What it knows.
#[derive(Default)]
struct Ca {
    /// Every order is refused.
    refuses: bool,
    /// The next certificate is over in an hour, after a long life.
    nearly_over: bool,
    nonces: BTreeSet<String>,
    accounts: Vec<Account>,
    /// Names that were asked for, refused ones too.
    asked: Vec<String>,
    orders: Vec<Order>,
}

struct Account {
    point: Vec<u8>,
    thumbprint: String,
}

struct Order {
    account: usize,
    name: String,
    token: String,
    proof: Proof,
    chain: Option<String>,
}

enum Proof {
    Pending,
    Found,
    Missing(String),
}

impl Order {
    fn status(&self) -> &'static str {
        match (&self.proof, &self.chain) {
            (_, Some(_)) => "valid",
            (Proof::Pending, _) => "pending",
            (Proof::Found, _) => "ready",
            (Proof::Missing(_), _) => "invalid",
        }
    }
}

/// What a request is refused with: the status, the type of RFC 8555, and words.
type Problem = (StatusCode, &'static str, String);

fn malformed(what: &str) -> Problem {
    (StatusCode::BAD_REQUEST, "malformed", what.to_owned())
}

impl Authority {
    /// Starts one that looks for proofs at this port of the loopback.
    pub(crate) async fn start(proof_port: u16) -> Self {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        root.distinguished_name.push(DnType::CommonName, "a test's authority");
        let key = KeyPair::generate().expect("key");
        let root_pem = root.self_signed(&key).expect("root").pem();
        let issuer = Issuer::new(root, key);
        let own_key = KeyPair::generate().expect("key");
        let own = CertificateParams::new(["127.0.0.1".to_owned()]).expect("name");
        let own = own.signed_by(&own_key, &issuer).expect("certificate");
        let tls = rustls::ServerConfig::builder().with_no_client_auth();
        let own_key = PrivateKeyDer::try_from(own_key.serialize_der()).expect("key");
        let tls = tls.with_single_cert(vec![own.der().clone()], own_key).expect("tls");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let base = format!("https://{}", listener.local_addr().expect("address"));
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("root.pem"), &root_pem).expect("write");
        let shared = Arc::new(Shared { base, issuer, root_pem, proof_port, state: Mutex::default() });
        let routes = Router::new().fallback(answer).with_state(shared.clone());
        let listener = Tls { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) };
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { shared, dir }
    }

    pub(crate) fn directory(&self) -> String {
        format!("{}/directory", self.shared.base)
    }

    /// The file with its root.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    /// A root for those who trust it alone.
    pub(crate) fn trusted(&self) -> reqwest::Certificate {
        reqwest::Certificate::from_pem(self.shared.root_pem.as_bytes()).expect("root")
    }

    pub(crate) fn refuse(&self) {
        self.shared.state().refuses = true;
    }

    /// Makes the next certificate one that is over soon.
    pub(crate) fn nearly_over(&self) {
        self.shared.state().nearly_over = true;
    }

    pub(crate) fn accounts(&self) -> usize {
        self.shared.state().accounts.len()
    }

    /// The name of each order that was asked for, refused ones too.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.shared.state().asked.clone()
    }

    /// The tokens of all challenges.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.shared.state().orders.iter().map(|order| order.token.clone()).collect()
    }
}

/// Connections whose handshake is done.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, from) = self.listener.accept().await.expect("accept");
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn random() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("random");
    BASE64.encode(bytes)
}

async fn answer(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path();
    let said = match (method, path) {
        (Method::GET, "/directory") => Ok(shared.shown()),
        (Method::HEAD, "/new-nonce") => Ok(StatusCode::OK.into_response()),
        (Method::POST, _) => shared.open(path, &body).and_then(|(who, said)| shared.act(path, who, &said)),
        _ => Err((StatusCode::NOT_FOUND, "malformed", format!("nothing at {path}"))),
    };
    let mut response = said.unwrap_or_else(|(status, kind, detail)| {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        (status, axum::Json(json!({ "type": kind, "detail": detail }))).into_response()
    });
    let nonce = random();
    response.headers_mut().insert("replay-nonce", nonce.parse().expect("header"));
    shared.state().nonces.insert(nonce);
    response
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Ca> {
        self.state.lock().expect("lock")
    }

    fn shown(&self) -> Response {
        let url = |path: &str| format!("{}/{path}", self.base);
        let shown = json!({ "newNonce": url("new-nonce"), "newAccount": url("new-account"), "newOrder": url("new-order") });
        axum::Json(shown).into_response()
    }

    /// Which account asks for what, by a request's signature; a new account says its key instead.
    fn open(&self, path: &str, body: &[u8]) -> Result<(usize, Value), Problem> {
        let jws: Value = serde_json::from_slice(body).map_err(|_| malformed("no JSON"))?;
        let text = |name: &str| jws[name].as_str().ok_or_else(|| malformed(name));
        let (protected, payload, signature) = (text("protected")?, text("payload")?, text("signature")?);
        let header: Value = serde_json::from_slice(&decoded(protected)?).map_err(|_| malformed("header"))?;
        if header["alg"] != "ES256" || header["url"] != format!("{}{path}", self.base) {
            return Err(malformed("another algorithm, or for another address"));
        }
        let mut state = self.state();
        if !state.nonces.remove(header["nonce"].as_str().unwrap_or_default()) {
            return Err((StatusCode::BAD_REQUEST, "badNonce", "not one of ours, or used before".into()));
        }
        let claimed = (path == "/new-account").then(|| account(&header["jwk"])).transpose()?;
        let known =
            header["kid"].as_str().and_then(|kid| kid.strip_prefix(&format!("{}/account/", self.base)));
        let known = known.and_then(|number| number.parse::<usize>().ok());
        let point = match (&claimed, known) {
            (Some(claimed), None) => &claimed.point,
            (None, Some(known)) if known < state.accounts.len() => &state.accounts[known].point,
            _ => return Err((StatusCode::BAD_REQUEST, "accountDoesNotExist", "who is it?".into())),
        };
        let signed = format!("{protected}.{payload}");
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(signed.as_bytes(), &decoded(signature)?)
            .map_err(|_| malformed("the signature is wrong"))?;
        let payload = decoded(payload)?;
        let said = match payload.as_slice() {
            [] => Value::Null,
            some => serde_json::from_slice(some).map_err(|_| malformed("payload"))?,
        };
        let who = known.unwrap_or(state.accounts.len());
        state.accounts.extend(claimed);
        Ok((who, said))
    }

    fn act(self: &Arc<Self>, path: &str, who: usize, said: &Value) -> Result<Response, Problem> {
        match path {
            "/new-account" if said["termsOfServiceAgreed"] == true => {
                let valid = axum::Json(json!({ "status": "valid" }));
                let place = [("location", format!("{}/account/{who}", self.base))];
                return Ok((StatusCode::CREATED, place, valid).into_response());
            }
            "/new-order" => return self.order(who, said),
            _ => {}
        }
        let (what, number) = path[1..].split_once('/').ok_or_else(|| malformed("no such place"))?;
        let number: usize = number.parse().map_err(|_| malformed("no such number"))?;
        let theirs = self.state().orders.get(number).is_some_and(|order| order.account == who);
        if !theirs {
            return Err((StatusCode::FORBIDDEN, "unauthorized", "not an order of this account".into()));
        }
        match what {
            "order" => {}
            "authorization" => return Ok(axum::Json(self.authorization(number)).into_response()),
            "challenge" => {
                tokio::spawn(self.clone().look_for_proof(number));
                return Ok(axum::Json(self.authorization(number)["challenges"][0].clone()).into_response());
            }
            "finalize" => self.make(number, said)?,
            "certificate" => {
                let chain = self.state().orders[number].chain.clone().ok_or_else(|| malformed("not yet"))?;
                return Ok(([("content-type", "application/pem-certificate-chain")], chain).into_response());
            }
            _ => return Err(malformed("no such place")),
        }
        Ok(axum::Json(self.shown_order(number)).into_response())
    }

    fn order(&self, account: usize, said: &Value) -> Result<Response, Problem> {
        let [wanted] = said["identifiers"].as_array().map_or(&[][..], Vec::as_slice) else {
            return Err(malformed("one name at a time"));
        };
        let name = wanted["value"].as_str().unwrap_or_default().to_owned();
        let mut state = self.state();
        state.asked.push(name.clone());
        if state.refuses || wanted["type"] != "dns" {
            return Err((
                StatusCode::FORBIDDEN,
                "rejectedIdentifier",
                format!("{name} is on a list of ours"),
            ));
        }
        state.orders.push(Order { account, name, token: random(), proof: Proof::Pending, chain: None });
        let number = state.orders.len() - 1;
        drop(state);
        let place = [("location", format!("{}/order/{number}", self.base))];
        Ok((StatusCode::CREATED, place, axum::Json(self.shown_order(number))).into_response())
    }

    fn shown_order(&self, number: usize) -> Value {
        let state = self.state();
        let (order, url) = (&state.orders[number], |what: &str| format!("{}/{what}/{number}", self.base));
        let mut shown = json!({
            "status": order.status(),
            "identifiers": [{ "type": "dns", "value": order.name }],
            "authorizations": [url("authorization")],
            "finalize": url("finalize"),
        });
        if order.chain.is_some() {
            shown["certificate"] = url("certificate").into();
        }
        shown
    }

    fn authorization(&self, number: usize) -> Value {
        let state = self.state();
        let order = &state.orders[number];
        let (status, error) = match &order.proof {
            Proof::Pending => ("pending", Value::Null),
            Proof::Found => ("valid", Value::Null),
            Proof::Missing(why) => {
                ("invalid", json!({ "type": "urn:ietf:params:acme:error:connection", "detail": why }))
            }
        };
        let url = format!("{}/challenge/{number}", self.base);
        let http =
            json!({ "type": "http-01", "url": url, "token": order.token, "status": status, "error": error });
        json!({ "status": status, "identifier": { "type": "dns", "value": order.name }, "challenges": [http] })
    }

    async fn look_for_proof(self: Arc<Self>, number: usize) {
        let (name, token, wanted) = {
            let state = self.state();
            let order = &state.orders[number];
            let wanted = format!("{}.{}", order.token, state.accounts[order.account].thumbprint);
            (order.name.clone(), order.token.clone(), wanted)
        };
        let url = format!("http://127.0.0.1:{}/.well-known/acme-challenge/{token}", self.proof_port);
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10));
        let request = client.build().expect("client").get(url).header("host", &name);
        let found = async { request.send().await?.error_for_status()?.text().await };
        let proof = match found.await {
            Ok(found) if found.trim_end() == wanted => Proof::Found,
            Ok(found) => Proof::Missing(format!("{name} says '{found}'")),
            Err(error) => Proof::Missing(format!("{name} does not answer: {error}")),
        };
        self.state().orders[number].proof = proof;
    }

    /// Makes the certificate that a proven order asks for.
    fn make(&self, number: usize, said: &Value) -> Result<(), Problem> {
        let mut state = self.state();
        let nearly_over = std::mem::take(&mut state.nearly_over);
        let order = &mut state.orders[number];
        if order.status() != "ready" {
            return Err((StatusCode::FORBIDDEN, "orderNotReady", order.status().into()));
        }
        let bad = |why: String| (StatusCode::BAD_REQUEST, "badCSR", why);
        let csr = decoded(said["csr"].as_str().unwrap_or_default())?;
        let mut csr =
            CertificateSigningRequestParams::from_der(&csr.into()).map_err(|error| bad(error.to_string()))?;
        let [SanType::DnsName(name)] = csr.params.subject_alt_names.as_slice() else {
            return Err(bad("one name at a time".into()));
        };
        if name.as_str() != order.name {
            return Err(bad("for another name".into()));
        }
        let mut leaf = CertificateParams::new([order.name.clone()]).expect("name");
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now =
            rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
        let (age, rest) = if nearly_over { (2000 * HOUR, HOUR) } else { (HOUR, 2000 * HOUR) };
        (leaf.not_before, leaf.not_after) = (now - age, now + rest);
        csr.params = leaf;
        let leaf = csr.signed_by(&self.issuer).expect("certificate");
        order.chain = Some(format!("{}{}", leaf.pem(), self.root_pem));
        Ok(())
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, Problem> {
    BASE64.decode(text).map_err(|_| malformed("not base64url"))
}

/// The account of a public key, with the key's thumbprint by RFC 7638.
fn account(jwk: &Value) -> Result<Account, Problem> {
    let (Some(x), Some(y)) = (jwk["x"].as_str(), jwk["y"].as_str()) else {
        return Err(malformed("no key"));
    };
    if jwk["kty"] != "EC" || jwk["crv"] != "P-256" {
        return Err(malformed("another kind of key"));
    }
    let point = [&[4][..], &decoded(x)?, &decoded(y)?].concat();
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    let digest = ring::digest::digest(&ring::digest::SHA256, members.as_bytes());
    Ok(Account { point, thumbprint: BASE64.encode(digest) })
}
