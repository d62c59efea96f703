//! The way into a cluster's services: who may open a tunnel, and to where in the box.
//!
//! Always holds: a stream is opened only under the server's signature for this network, cluster and client key, and
//! before its expiry; the check needs no server. Not here: the streams themselves
//! (`ionet-net`), the box's namespace (`ionet-runtime`).

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ionet_api::sign::{self, Grant};
use ionet_domain::tunnel::{NoService, Service};
use ionet_domain::{Address, LeaseId};
use ionet_net::EndpointId;
use ionet_net::tunnel::{Opening, Refused, TunnelRequest};
use ionet_runtime::holder::Connector;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::watch;

const CONNECT_WAIT: Duration = Duration::from_secs(10);
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
const LOG_BUFFER_BYTES: usize = 16 << 10;

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
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        auth.check(&self.network, self.server, self.lease, peer, now_ms)?;
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
        let service: Box<dyn AnyService> = match service {
            Service::Log => Box::new(self.log(auth.follow)),
            Service::Tcp(port) => Box::new(self.connect(port).await?),
            other => return Err(refused("no_such_service", format!("{other} is not served here"))),
        };
        Ok(service.into())
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, Refused> {
        let Some(connector) = self.connector.borrow().clone() else {
            return Err(refused("box_not_up", "the box is not up yet; try again shortly"));
        };
        let ip = self.ip;
        let connecting = tokio::task::spawn_blocking(move || connector.connect(ip, port, CONNECT_WAIT));
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!("nothing answers on port {port} of the box: {error}; is the service up?");
            refused("service_unreachable", message)
        };
        let stream = connecting.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        stream.set_nonblocking(true).map_err(|error| failed(&error))?;
        TcpStream::from_std(stream).map_err(|error| failed(&error))
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

/// Sends what is there, the older file first, and with `follow` what comes until the box has ended.
async fn send_log(
    dir: &Path,
    follow: bool,
    over: watch::Receiver<bool>,
    mut to: DuplexStream,
) -> std::io::Result<()> {
    if let Ok(mut older) = File::open(dir.join("output.log.1")).await {
        tokio::io::copy(&mut older, &mut to).await?;
    }
    let path = dir.join("output.log");
    let mut current: Option<File> = None;
    let mut buffer = vec![0; LOG_BUFFER_BYTES];
    loop {
        // Asked before reading, so that what was written before the end is sent.
        let last = !follow || *over.borrow();
        let Some(file) = &mut current else {
            current = File::open(&path).await.ok();
            if current.is_none() && last {
                return Ok(());
            }
            if current.is_none() {
                tokio::time::sleep(FOLLOW_EVERY).await;
            }
            continue;
        };
        let count = file.read(&mut buffer).await?;
        to.write_all(&buffer[..count]).await?;
        if count > 0 {
            continue;
        }
        if is_other(file, &path).await {
            current = None;
        } else if last {
            return Ok(());
        } else {
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }
}

/// Whether another file has the name by now: a full log is moved away and a new one begun.
async fn is_other(open: &File, path: &Path) -> bool {
    match (open.metadata().await, tokio::fs::metadata(path).await) {
        (Ok(open), Ok(there)) => open.ino() != there.ino(),
        (_, there) => there.is_ok(),
    }
}
