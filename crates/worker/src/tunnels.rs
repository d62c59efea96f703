//! The way into a cluster's services: who may open a tunnel, and to where in the box.
//!
//! Always holds: a stream is opened only under the server's signature for this network, cluster and client key, and
//! before its expiry; the check needs no server. Not here: the streams themselves
//! (`ionet-net`), the box's namespace (`ionet-runtime`).

mod log;
mod rights;
pub(crate) mod ssh;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ionet_api::sign::{self, Grant};
use ionet_domain::tunnel::{NoService, Service, Void};
use ionet_domain::{Address, LeaseId};
use ionet_net::EndpointId;
use ionet_net::tunnel::{Opening, Refused, TunnelRequest, datagrams};
use ionet_runtime::Inside;
use ionet_runtime::holder::Connector;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::watch;

use log::{LOG_BUFFER_BYTES, send_log};
use rights::WhileGranted;
use ssh::HostKey;

const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// What a client sends as a tunnel's proof, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelAuth {
    /// The server's leave.
    pub grant: Grant,
    /// The server's signature over it, in hex.
    pub signature: String,
    /// For the log: whether to go on with what comes later.
    #[serde(default = "yes")]
    pub follow: bool,
    /// For SSH: the public keys that may come in, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
}

fn yes() -> bool {
    true
}

impl TunnelAuth {
    /// Why this proof does not open tunnels, if so.
    ///
    /// # Errors
    /// With the code `bad_grant` or `grant_expired`.
    pub fn check(
        &self,
        network: &str,
        server: Address,
        lease: LeaseId,
        peer: EndpointId,
        now_ms: u64,
    ) -> Result<(), Refused> {
        let ask = "ask the server for a new one with 'ionet cluster connect'";
        if let Err(error) = sign::verify(server, network, &self.grant, &self.signature) {
            return Err(refused("bad_grant", format!("the grant is not the server's: {error}; {ask}")));
        }
        if self.grant.cluster != lease.order {
            return Err(refused(
                "bad_grant",
                format!("the grant is for {}, not for this; {ask}", self.grant.cluster),
            ));
        }
        if self.grant.endpoint.0 != peer.0 {
            return Err(refused("bad_grant", format!("the grant is for another client's key; {ask}")));
        }
        if self.grant.not_after_ms < now_ms {
            return Err(refused("grant_expired", format!("the grant has expired; {ask}")));
        }
        Ok(())
    }
}

fn refused(code: &str, message: impl Into<String>) -> Refused {
    Refused { code: code.into(), message: message.into() }
}

/// What a tunnel leads to.
pub(crate) trait AnyService: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> AnyService for T {}

/// One lease's services.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) network: String,
    pub(crate) server: Address,
    pub(crate) lease: LeaseId,
    pub(crate) ip: Ipv4Addr,
    /// There once the box is.
    pub(crate) connector: watch::Receiver<Option<Connector>>,
    /// The folder of the box's output.
    pub(crate) log_dir: PathBuf,
    /// Whether the box has ended.
    pub(crate) over: watch::Receiver<bool>,
    /// Leave that was taken back.
    pub(crate) void: watch::Receiver<Vec<Void>>,
    /// Who the box is for SSH.
    pub(crate) host_key: Arc<HostKey>,
}

impl Door {
    /// Opens what a client asks for.
    pub(crate) async fn open(
        self,
        peer: EndpointId,
        request: TunnelRequest,
    ) -> Result<Opening<Box<dyn AnyService>>, Refused> {
        let auth: TunnelAuth = serde_json::from_slice(&request.auth)
            .map_err(|error| refused("bad_grant", format!("the proof cannot be read: {error}")))?;
        auth.check(&self.network, self.server, self.lease, peer, now_ms())?;
        rights::check(&self.void.borrow(), &auth.grant)?;
        if request.cluster != self.lease.order.to_string() && request.cluster != self.lease.to_string() {
            return Err(refused("no_such_lease", format!("{} is not here", request.cluster)));
        }
        let service: Service = request
            .service
            .parse()
            .map_err(|error: NoService| refused("no_such_service", error.to_string()))?;
        if !auth.grant.services.include(service) {
            let message =
                format!("the grant is for {}, not for {service}; ask for one that is", auth.grant.services);
            return Err(refused("not_granted", message));
        }
        let Opening { service, note } = self.lead_to(service, &auth).await?;
        let service = WhileGranted::new(service, auth.grant, self.void.clone());
        Ok(Opening { service: Box::new(service), note })
    }

    async fn lead_to(
        &self,
        service: Service,
        auth: &TunnelAuth,
    ) -> Result<Opening<Box<dyn AnyService>>, Refused> {
        let mut note = None;
        let service: Box<dyn AnyService> = match service {
            Service::Log => Box::new(self.log(auth.follow)),
            Service::Tcp(port) => Box::new(self.connect(port).await?),
            Service::Udp(port) => Box::new(self.datagrams(port).await?),
            Service::Files => Box::new(self.start(ionet_runtime::files::WORD, BTreeMap::new())?),
            Service::Ssh => {
                ionet_runtime::ssh::available().map_err(|error| refused(error.code(), error.to_string()))?;
                let keys = ssh::authorized(&auth.ssh_keys)?;
                note = Some(self.host_key.public.clone());
                let variables = ionet_runtime::ssh::variables(&self.host_key.private, &keys);
                Box::new(self.start(ionet_runtime::ssh::WORD, variables)?)
            }
        };
        Ok(Opening { service, note })
    }

    fn connector(&self) -> Result<Connector, Refused> {
        let connector = self.connector.borrow().clone();
        connector.ok_or_else(|| refused("box_not_up", "the box is not up yet; try again shortly"))
    }

    /// The port on the member's address, or else on its loopback.
    async fn connect(&self, port: u16) -> Result<TcpStream, Refused> {
        let connector = self.connector()?;
        let ip = self.ip;
        let connecting = tokio::task::spawn_blocking(move || {
            let loopback = |_| connector.connect(Ipv4Addr::LOCALHOST, port, CONNECT_WAIT);
            connector.connect(ip, port, CONNECT_WAIT).or_else(loopback)
        });
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!("nothing answers on port {port} of the box: {error}; is the service up?");
            refused("service_unreachable", message)
        };
        let stream = connecting.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        stream.set_nonblocking(true).map_err(|error| failed(&error))?;
        TcpStream::from_std(stream).map_err(|error| failed(&error))
    }

    async fn datagrams(&self, port: u16) -> Result<DuplexStream, Refused> {
        let (connector, ip) = (self.connector()?, self.ip);
        let failed = |error: &dyn std::fmt::Display| {
            refused("service_unreachable", format!("no way to UDP port {port} of the box: {error}"))
        };
        let made = tokio::task::spawn_blocking(move || connector.datagrams(ip, port));
        let socket = made.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        Ok(datagrams(UdpSocket::from_std(socket).map_err(|error| failed(&error))?))
    }

    /// A sub-command of this executable, in the box.
    fn start(&self, word: &str, variables: BTreeMap<String, String>) -> Result<Program, Refused> {
        let failed = |error: &dyn std::fmt::Display| {
            refused("box_not_ready", format!("the box starts no program now: {error}; try again shortly"))
        };
        let Inside { stdio, leash } =
            self.connector()?.start(word, variables).map_err(|error| failed(&error))?;
        stdio.set_nonblocking(true).map_err(|error| failed(&error))?;
        Ok(Program { stdio: UnixStream::from_std(stdio).map_err(|error| failed(&error))?, _leash: leash })
    }

    fn log(&self, follow: bool) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(LOG_BUFFER_BYTES);
        let (log_dir, over) = (self.log_dir.clone(), self.over.clone());
        tokio::spawn(async move {
            // The client hanging up is the usual end.
            let _ = send_log(&log_dir, follow, over, ours).await;
        });
        theirs
    }
}

/// A program in the box; it is killed when this goes.
struct Program {
    stdio: UnixStream,
    _leash: OwnedFd,
}

impl AsyncRead for Program {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdio).poll_read(cx, buf)
    }
}

impl AsyncWrite for Program {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stdio).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdio).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdio).poll_shutdown(cx)
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
