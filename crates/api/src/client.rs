//! The typed client of the REST API.
//!
//! Always holds: every call has a deadline; an error says which server was asked and what it answered.

use std::time::Duration;

use ionet_domain::device::DeviceChange;
use ionet_domain::market::Request;
use ionet_domain::{Address, DeviceId, KeyId, OrderId, Refusal};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rest;
use crate::secret::Secret;
use crate::sign::{SignIn, WalletKey};

/// Why a call did not work out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer at all.
    #[error("no answer from {url}: {reason}; is the server running? ('ionet up' starts one here)")]
    Unreachable {
        /// Whom we asked.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The server said no.
    #[error("{}", body.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        body: Box<rest::ErrorBody>,
    },
    /// An answer that is none of this API.
    #[error(
        "{url} answered with something else than this API ({reason}); is it an ionet server of this release?"
    )]
    Garbled {
        /// Whom we asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClientError {
    /// The stable name, for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Refused { body, .. } => &body.code,
            Self::Garbled { .. } => "garbled_answer",
        }
    }

    /// The refusal behind it, if the rules said no.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { body, .. } => body.refusal.as_ref(),
            _ => None,
        }
    }
}

/// Calls one server, as somebody or as nobody.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
    token: Option<Secret>,
}

type Answer<T> = Result<T, ClientError>;

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8080`, not signed in.
    pub fn new(base: &str) -> Answer<Self> {
        // TLS by ring wherever the process has not chosen otherwise.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_mins(1))
            .user_agent(concat!("ionet/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .build();
        let base = base.trim_end_matches('/').to_owned();
        match http {
            Ok(http) => Ok(Self { base, http, token: None }),
            Err(error) => Err(ClientError::Unreachable { url: base, reason: reason(&error) }),
        }
    }

    /// The same client with a session's token or an API key.
    #[must_use]
    pub fn with_token(mut self, token: Secret) -> Self {
        self.token = Some(token);
        self
    }

    /// Which server.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Signs in with a wallet and keeps the session.
    pub async fn sign_in(&mut self, network: &str, wallet: &WalletKey) -> Answer<rest::Session> {
        let account = wallet.address();
        let challenge: rest::Challenge =
            self.post("/v1/sign-in/challenge", &rest::ChallengeRequest { account }).await?;
        let (nonce, expires_ms) = (challenge.nonce, challenge.expires_ms);
        let said = SignIn { account, nonce: nonce.clone(), expires_ms };
        let signature = wallet.sign(network, &said);
        let request = rest::SignInRequest { account, nonce, expires_ms, signature };
        let session: rest::Session = self.post("/v1/sign-in", &request).await?;
        self.token = Some(session.token.clone());
        Ok(session)
    }

    /// What the network is.
    pub async fn network(&self) -> Answer<rest::NetworkInfo> {
        self.get("/v1/network", &()).await
    }

    /// The server's clock as it dates its answers (`Sun, 06 Nov 1994 08:49:37 GMT`), if it does.
    pub async fn server_date(&self) -> Answer<Option<String>> {
        let response = self.answer(self.request(Method::GET, "/v1/network")).await?;
        let date = response.headers().get("date").and_then(|date| date.to_str().ok());
        Ok(date.map(str::to_owned))
    }

    /// Makes an API key.
    pub async fn make_key(&self, key: &rest::NewKey) -> Answer<rest::MadeKey> {
        self.post("/v1/keys", key).await
    }

    /// The account's keys.
    pub async fn keys(&self) -> Answer<Vec<rest::KeyView>> {
        self.get("/v1/keys", &()).await
    }

    /// Revokes a key.
    pub async fn revoke_key(&self, key: KeyId) -> Answer<()> {
        self.nothing(Method::DELETE, &format!("/v1/keys/{key}")).await
    }

    /// What the account holds.
    pub async fn wallet(&self) -> Answer<rest::Wallet> {
        self.get("/v1/wallet", &()).await
    }

    /// Sends money.
    pub async fn send(&self, request: &rest::SendRequest) -> Answer<rest::Wallet> {
        self.post("/v1/wallet/send", request).await
    }

    /// The account's ledger lines, or another subject's public ones.
    pub async fn ledger(&self, filter: &rest::EventFilter) -> Answer<Vec<rest::LedgerLine>> {
        self.get("/v1/ledger", filter).await
    }

    /// All balances.
    pub async fn books(&self) -> Answer<rest::Books> {
        self.get("/v1/books", &()).await
    }

    /// The account's activity log.
    pub async fn activity(&self, filter: &rest::EventFilter) -> Answer<Vec<rest::ActivityLine>> {
        self.get("/v1/activity", filter).await
    }

    /// Enrols a device.
    pub async fn enrol(&self, request: &rest::EnrolRequest) -> Answer<rest::DeviceView> {
        self.post("/v1/devices", request).await
    }

    /// Devices that meet the filter: a page if it has a limit, else all of them.
    pub async fn devices(&self, filter: &rest::DeviceFilter) -> Answer<Vec<rest::DeviceView>> {
        let mut filter = filter.clone();
        let mut found: Vec<rest::DeviceView> = Vec::new();
        loop {
            let page: Vec<rest::DeviceView> = self.get("/v1/devices", &filter).await?;
            let last = page.last().map(|device| device.id).filter(|_| goes_on(&page, filter.limit));
            found.extend(page);
            let Some(last) = last else { return Ok(found) };
            *if filter.newest { &mut filter.before } else { &mut filter.after } = Some(last);
        }
    }

    /// One device.
    pub async fn device(&self, device: DeviceId) -> Answer<rest::DeviceView> {
        self.get(&format!("/v1/devices/{device}"), &()).await
    }

    /// Changes a device.
    pub async fn change_device(&self, device: DeviceId, change: &DeviceChange) -> Answer<rest::DeviceView> {
        self.send_json(Method::PATCH, &format!("/v1/devices/{device}"), change).await
    }

    /// Measures a device again.
    pub async fn check_device(&self, device: DeviceId) -> Answer<()> {
        self.nothing(Method::POST, &format!("/v1/devices/{device}/check")).await
    }

    /// Archives a device.
    pub async fn archive_device(&self, device: DeviceId) -> Answer<()> {
        self.nothing(Method::DELETE, &format!("/v1/devices/{device}")).await
    }

    /// Asks for a price.
    pub async fn quote(&self, request: &Request) -> Answer<rest::SignedQuote> {
        self.post("/v1/quotes", request).await
    }

    /// What each kind of hardware costs, or those whose name contains `model`.
    pub async fn prices(&self, model: Option<&str>) -> Answer<rest::PriceBoard> {
        self.get("/v1/prices", &rest::PriceFilter { model: model.map(str::to_owned) }).await
    }

    /// Hands in prices elsewhere.
    pub async fn feed(&self, request: &rest::FeedRequest) -> Answer<()> {
        self.answer(self.request(Method::POST, "/v1/prices/feeds").json(request)).await.map(|_| ())
    }

    /// Why a request gets what it gets.
    pub async fn explain(&self, request: &Request) -> Answer<rest::ExplainedRequest> {
        self.post("/v1/explain", request).await
    }

    /// Where a cluster stands and why.
    pub async fn explain_cluster(&self, cluster: OrderId) -> Answer<rest::ExplainedCluster> {
        self.get(&format!("/v1/clusters/{cluster}/explain"), &()).await
    }

    /// Why a device gets the work that it gets.
    pub async fn explain_device(&self, device: DeviceId) -> Answer<rest::ExplainedDevice> {
        self.get(&format!("/v1/devices/{device}/explain"), &()).await
    }

    /// Accepts a price.
    pub async fn order(&self, request: &rest::OrderRequest) -> Answer<rest::ClusterView> {
        self.post("/v1/clusters", request).await
    }

    /// The account's clusters: a page if the filter has a limit, else all of them.
    pub async fn clusters(&self, filter: &rest::ClusterFilter) -> Answer<Vec<rest::ClusterView>> {
        let mut filter = filter.clone();
        let mut found: Vec<rest::ClusterView> = Vec::new();
        loop {
            let page: Vec<rest::ClusterView> = self.get("/v1/clusters", &filter).await?;
            let last = page.last().map(|cluster| cluster.id).filter(|_| goes_on(&page, filter.limit));
            found.extend(page);
            let Some(last) = last else { return Ok(found) };
            *if filter.newest { &mut filter.before } else { &mut filter.after } = Some(last);
        }
    }

    /// One cluster.
    pub async fn cluster(&self, cluster: OrderId) -> Answer<rest::ClusterView> {
        self.get(&format!("/v1/clusters/{cluster}"), &()).await
    }

    /// How a cluster's members reach each other.
    pub async fn cluster_network(&self, cluster: OrderId) -> Answer<rest::ClusterNetwork> {
        self.get(&format!("/v1/clusters/{cluster}/network"), &()).await
    }

    /// Adds time.
    pub async fn extend(&self, cluster: OrderId, request: &rest::ExtendRequest) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/extend"), request).await
    }

    /// Asks what more members cost for the rest of the time.
    pub async fn quote_more(&self, cluster: OrderId, members: u32) -> Answer<rest::SignedQuote> {
        self.post(&format!("/v1/clusters/{cluster}/quote"), &rest::MoreRequest { members }).await
    }

    /// Adds members.
    pub async fn grow(&self, cluster: OrderId, request: &rest::GrowRequest) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/grow"), request).await
    }

    /// Takes members away.
    pub async fn shrink(&self, cluster: OrderId, request: &rest::ShrinkRequest) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/shrink"), request).await
    }

    /// Puts another device in a member's place.
    pub async fn replace_member(
        &self,
        cluster: OrderId,
        request: &rest::ReplaceRequest,
    ) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/replace"), request).await
    }

    /// Pauses a cluster.
    pub async fn pause(&self, cluster: OrderId, id: ionet_domain::CommandId) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/pause"), &rest::NamedRequest { id }).await
    }

    /// Resumes a cluster.
    pub async fn resume(&self, cluster: OrderId, id: ionet_domain::CommandId) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/resume"), &rest::NamedRequest { id }).await
    }

    /// Changes a cluster.
    pub async fn change_cluster(
        &self,
        cluster: OrderId,
        request: &rest::ChangeRequest,
    ) -> Answer<rest::ClusterView> {
        self.send_json(Method::PATCH, &format!("/v1/clusters/{cluster}"), request).await
    }

    /// Changes what its boxes may reach outside.
    pub async fn change_egress(
        &self,
        cluster: OrderId,
        request: &rest::EgressRequest,
    ) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/egress"), request).await
    }

    /// Lets another account open services of a cluster.
    pub async fn share(&self, cluster: OrderId, request: &rest::ShareRequest) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/shares"), request).await
    }

    /// Takes a share back.
    pub async fn unshare(&self, cluster: OrderId, account: Address) -> Answer<rest::ClusterView> {
        self.send_json(Method::DELETE, &format!("/v1/clusters/{cluster}/shares/{account}"), &()).await
    }

    /// Says how a cluster was.
    pub async fn rate(&self, cluster: OrderId, request: &rest::RateRequest) -> Answer<rest::ClusterView> {
        self.post(&format!("/v1/clusters/{cluster}/rate"), request).await
    }

    /// The country that the account declared.
    pub async fn country(&self) -> Answer<rest::Declared> {
        self.get("/v1/country", &()).await
    }

    /// Declares the account's country.
    pub async fn declare(&self, declared: &rest::Declared) -> Answer<rest::Declared> {
        self.send_json(Method::PUT, "/v1/country", declared).await
    }

    /// Whom and what one of the account's devices does not serve.
    pub async fn terms(&self, device: DeviceId) -> Answer<rest::DeviceTerms> {
        self.get(&format!("/v1/devices/{device}/terms"), &()).await
    }

    /// Sets whom and what it does not serve.
    pub async fn set_terms(&self, device: DeviceId, terms: &rest::DeviceTerms) -> Answer<rest::DeviceTerms> {
        self.send_json(Method::PUT, &format!("/v1/devices/{device}/terms"), terms).await
    }

    /// Shows or sets the operator's deny list.
    pub async fn deny_list(&self, request: &rest::OperatorRequest) -> Answer<rest::DenyListView> {
        self.post("/v1/operator/deny-list", request).await
    }

    /// Closes a cluster.
    pub async fn close(&self, cluster: OrderId) -> Answer<rest::ClusterView> {
        self.send_json(Method::DELETE, &format!("/v1/clusters/{cluster}"), &()).await
    }

    /// Leave to open tunnels into a cluster.
    pub async fn grant(
        &self,
        cluster: OrderId,
        request: &rest::TunnelGrantRequest,
    ) -> Answer<rest::TunnelGrant> {
        self.post(&format!("/v1/clusters/{cluster}/tunnels"), request).await
    }

    /// Events of the public journal.
    pub async fn journal(&self, filter: &rest::EventFilter) -> Answer<Vec<rest::EventView>> {
        self.get("/v1/journal", filter).await
    }

    /// The live events as server-sent events: the raw response, to be read line by line.
    pub async fn events(&self, filter: &rest::EventFilter) -> Answer<reqwest::Response> {
        self.answer(self.request(Method::GET, "/v1/events").query(filter)).await
    }

    pub(crate) async fn get<Q: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        query: &Q,
    ) -> Answer<T> {
        let response = self.answer(self.request(Method::GET, path).query(query)).await?;
        self.read(response).await
    }

    async fn post<B: Serialize + ?Sized, T: DeserializeOwned>(&self, path: &str, body: &B) -> Answer<T> {
        self.send_json(Method::POST, path, body).await
    }

    pub(crate) async fn send_json<B, T>(&self, method: Method, path: &str, body: &B) -> Answer<T>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let response = self.answer(self.request(method, path).json(body)).await?;
        self.read(response).await
    }

    async fn nothing(&self, method: Method, path: &str) -> Answer<()> {
        self.answer(self.request(method, path)).await.map(|_| ())
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Answer<reqwest::Response> {
        let unreachable = |error| ClientError::Unreachable { url: self.base.clone(), reason: reason(&error) };
        let response = request.send().await.map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(response.status(), response).await)
    }

    async fn refused(&self, status: StatusCode, response: reqwest::Response) -> ClientError {
        match response.json().await {
            Ok(body) => ClientError::Refused { status: status.as_u16(), body },
            Err(_) => self.garbled(format!("status {status}")),
        }
    }

    async fn read<T: DeserializeOwned>(&self, response: reqwest::Response) -> Answer<T> {
        response.json().await.map_err(|error| self.garbled(reason(&error)))
    }

    fn garbled(&self, reason: String) -> ClientError {
        ClientError::Garbled { url: self.base.clone(), reason }
    }
}

/// Whether there may be more than this page and more is wanted.
fn goes_on<T>(page: &[T], limit: Option<u32>) -> bool {
    limit.is_none() && page.len() >= rest::PAGE_MOST as usize
}

/// The innermost cause: the layers above only repeat that something failed.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
