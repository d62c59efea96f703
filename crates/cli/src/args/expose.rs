//! The words of `ionet expose`, and of the server's side of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use ionet_domain::order::expose::Ports;
use ionet_domain::{Address, OrderId};

/// A port of a cluster, `ID:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterPort {
    pub(crate) cluster: OrderId,
    pub(crate) port: u16,
}

impl FromStr for ClusterPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place: ClusterOrPort = text.parse()?;
        let port =
            place.port.ok_or_else(|| format!("'{text}' has no port; write ID:PORT, such as clu_...:8000"))?;
        Ok(Self { cluster: place.cluster, port })
    }
}

/// A cluster or one of its ports, `ID[:PORT]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterOrPort {
    pub(crate) cluster: OrderId,
    pub(crate) port: Option<u16>,
}

impl FromStr for ClusterOrPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (cluster, port) = text.split_once(':').map_or((text, None), |(id, port)| (id, Some(port)));
        let cluster = cluster.parse().map_err(|error: ionet_domain::id::ParseIdError| error.to_string())?;
        let wrong = |port: &str| format!("'{port}' is no port; 1 to 65535");
        let read = |port: &str| port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong(port));
        Ok(Self { cluster, port: port.map(read).transpose()? })
    }
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line are what they are")]
pub(crate) struct ExposeArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ExposeCommand>,
    /// A port in a box of the cluster, such as clu_...:8000
    #[arg(value_name = "ID:PORT")]
    pub(crate) target: Option<ClusterPort>,
    /// HTTP with WebSocket, under the cluster's host name; there is one such service a cluster [default]
    #[arg(long, conflicts_with_all = ["tcp", "udp"])]
    pub(crate) http: bool,
    /// Any TCP, at a public port of the server; takes --public
    #[arg(long, conflicts_with = "udp", requires = "public")]
    pub(crate) tcp: bool,
    /// Datagrams, at a public port of the server; takes --public
    #[arg(long, requires = "public")]
    pub(crate) udp: bool,
    /// For everybody who finds it [default: for your account only]
    #[arg(long)]
    pub(crate) public: bool,
    /// Also for this account; may be given again. The list replaces the one of before
    #[arg(long = "for", value_name = "ACCOUNT", conflicts_with = "public")]
    pub(crate) accounts: Vec<Address>,
    /// Which member; 0 is the head
    #[arg(long, default_value_t = 0, value_name = "SLOT")]
    pub(crate) member: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExposeCommand {
    /// What a cluster exposes, to whom and where
    List {
        /// Which
        cluster: OrderId,
    },
    /// Print a link that lets a browser into the HTTP service: good once, for a minute
    Open {
        /// Which
        cluster: OrderId,
    },
    /// Take back a service, or all of a cluster's; what goes on through it is cut
    Remove {
        /// A cluster, or one port of it
        #[arg(value_name = "ID[:PORT]")]
        place: ClusterOrPort,
    },
}

/// How a server shows services of clusters.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_field_names, reason = "the options of a server are told apart by it")]
pub(crate) struct AppsArgs {
    /// Where visitors of exposed services come in (`ionet expose`); without it nothing is exposed. The server carries
    /// their traffic and can read it
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) apps_listen: Option<SocketAddr>,
    /// Each cluster is a host of this domain, so its names *.DOMAIN must lead to --apps-listen
    #[arg(long, default_value = "apps.localhost", value_name = "DOMAIN", value_parser = domain)]
    pub(crate) apps_domain: String,
    /// Public ports for exposed TCP and UDP services
    #[arg(long, default_value = "20000-20099", value_name = "FIRST-LAST")]
    pub(crate) apps_ports: Ports,
    /// TLS with this certificate for *.DOMAIN, a PEM file with its chain, read again when it changes
    #[arg(long, value_name = "FILE", requires = "apps_key", conflicts_with = "apps_acme")]
    pub(crate) apps_cert: Option<PathBuf>,
    /// The certificate's private key, a PEM file
    #[arg(long, value_name = "FILE", requires = "apps_cert")]
    pub(crate) apps_key: Option<PathBuf>,
    /// TLS with certificates from this authority (RFC 8555), one for each host at its first use; takes --apps-http-listen
    #[arg(long, value_name = "DIRECTORY-URL", requires = "apps_http_listen")]
    pub(crate) apps_acme: Option<String>,
    /// Whom the authority may write to, such as mailto:ops@example.org
    #[arg(long, value_name = "CONTACT", requires = "apps_acme")]
    pub(crate) apps_acme_contact: Option<String>,
    /// A root that the authority's own HTTPS is checked against, a PEM file [default: the system's]
    #[arg(long, value_name = "FILE", requires = "apps_acme")]
    pub(crate) apps_acme_root: Option<PathBuf>,
    /// Plain HTTP beside TLS: it answers the authority, and sends everybody else to TLS
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) apps_http_listen: Option<SocketAddr>,
}

fn domain(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty() && label.len() <= 63 && label.chars().all(fits)
    };
    if text.len() <= 200 && text.split('.').all(label) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("it takes a domain such as apps.example.org, without a port and without '*'".into())
}
