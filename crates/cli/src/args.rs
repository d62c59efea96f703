//! The words of the command line. Every command takes `--data-dir` and `--json`; texts are checked here, before
//! anything is done.

mod course;
mod doors;
mod expose;
mod request;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ionet_domain::account::Scope;
use ionet_domain::market::egress::Net;
use ionet_domain::market::{Country, Destination, WorkKind};
use ionet_domain::money::Asset;
use ionet_domain::{Address, DeviceId, KeyId, OrderId, Rate};

pub(crate) use self::course::{PauseArgs, ReplaceArgs, ResizeArgs, SetArgs, UpkeepArgs};
pub(crate) use self::doors::{CpArgs, Place, ShareArgs, SshArgs, Target, TunnelArgs};
pub(crate) use self::expose::{AppsArgs, ClusterOrPort, ClusterPort, ExposeArgs, ExposeCommand};
pub(crate) use self::request::RequestArgs;
use crate::units;

/// Rent and supply computers: private Ray clusters on machines that other people own.
#[derive(Debug, Parser)]
#[command(name = "ionet", version, max_term_width = 110, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  ionet quickstart                  a network on this machine, a Ray cluster on it, a real job, the bill
  ionet up                          a network on this machine, to keep
  ionet cluster create -n 2 --for 1h
  ionet cluster connect clu_...     local ports to the cluster's dashboard, Ray Client and Jobs

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 the network cannot be reached, 4 a fault
of ours or of this machine.";

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Where keys and state are kept [default: ~/.local/share/ionet]
    #[arg(long, global = true, env = "IONET_DATA_DIR", value_name = "DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// The server to talk to [default: the one used last from this data directory]
    #[arg(long, global = true, env = "IONET_URL", value_name = "URL", hide_env_values = true, value_parser = parse_url)]
    pub(crate) url: Option<String>,
    /// Answer in JSON, errors included
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole network on this machine: server, relay, workers and a funded local wallet
    #[command(after_help = "Examples:
  ionet up
  ionet up --workers 4 --data-dir ./net
  ionet up --listen 0.0.0.0:8080 --public-url http://10.0.0.5:8080     also for other machines")]
    Up(UpArgs),
    /// See it work: a network, a 2-node Ray cluster, a hyper-parameter search on both nodes, the bill
    #[command(after_help = "Examples:
  ionet quickstart
  ionet quickstart --keep            leave the network running
  ionet quickstart --json            the last line is one object with the figures")]
    Quickstart(QuickstartArgs),
    /// Run a server
    Server(ServerArgs),
    /// Run a relay for endpoints that find no direct path; it sees ciphertext only
    Relay(RelayArgs),
    /// Supply this machine
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Write a bundle for whoever helps: versions, doctor, settings and logs, secrets masked
    Support(SupportArgs),
    /// Make or use a wallet key, sign in, make API keys
    #[command(after_help = "Examples:
  ionet login --url http://10.0.0.5:8080
  ionet login --new-key --scopes read,rent --cap 25 --for 30d --label ci")]
    Login(LoginArgs),
    /// Show the wallet, send money
    Wallet(WalletArgs),
    /// List or revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// List devices, show or change one
    #[command(after_help = "Examples:
  ionet devices --class cpu --tier medium
  ionet devices show dev_...
  ionet devices set dev_... --ask 0.12 --tag fast")]
    Devices(DevicesArgs),
    /// Ask for a price; nothing is ordered
    #[command(after_help = "Examples:
  ionet quote -n 4 --cpus 2 --memory 8GiB --for 1d
  ionet quote --gpus 1 --gpu-model 'NVIDIA A100-SXM4-80GB'")]
    Quote(Box<QuoteArgs>),
    /// What hardware costs: asks, market, last trades, history, prices elsewhere
    #[command(after_help = "Examples:
  ionet prices
  ionet prices a100                  one kind in full, with a plot of its last days")]
    Prices(PricesArgs),
    /// Why a cluster waits or got no devices, or why a device gets no work
    #[command(after_help = "Examples:
  ionet explain clu_...
  ionet explain dev_...              why does my device get no work?")]
    Explain {
        /// A cluster or a device
        #[arg(value_name = "ID", value_parser = parse_explained)]
        id: Explained,
    },
    /// Declare the country you rent from, or show what you declared: your own word, which suppliers' terms go by
    #[command(after_help = "Examples:
  ionet country DE
  ionet country")]
    Country {
        /// Two letters, such as DE
        country: Option<Country>,
    },
    /// The operator's word, on the server's machine: whom, what and which devices the network does not serve
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Rent clusters and use them
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Show a service of a cluster under the server's name; the server can read what passes
    #[command(after_help = "Examples:
  ionet expose clu_...:8000                       HTTP, for your own account
  ionet expose clu_...:8000 --public
  ionet expose clu_...:6379 --tcp --public        at a public port of the server
  ionet expose open clu_...                       a link for a browser")]
    Expose(ExposeArgs),
    /// Open local ports to any port of a member, TCP or UDP
    #[command(after_help = "Examples:
  ionet tunnel clu_...:8000                   the head's port 8000, here at the same port if it is free
  ionet tunnel clu_...:8000 clu_....1:9000    member 1 too
  ionet tunnel clu_...:5353/udp --local 5300
  ionet tunnel clu_...:22 --stdio             one connection, at standard input and output")]
    Tunnel(TunnelArgs),
    /// A shell in a member's box, or a command there, by this machine's own ssh
    #[command(after_help = "Examples:
  ionet ssh clu_...
  ionet ssh clu_... 1 -- nvidia-smi
  ionet ssh clu_... -- -L 8888:localhost:8888
  ionet ssh --write-config clu_...            then: ssh clu_....ionet, scp, rsync, VS Code Remote")]
    Ssh(SshArgs),
    /// The way of ssh to a member, at standard input and output: what ssh runs by itself
    SshProxy {
        /// Which cluster
        cluster: OrderId,
        /// Which member; 0 is the head
        #[arg(default_value_t = 0)]
        member: u32,
    },
    /// Copy files and folders to a member's box or from it; goes on where it was broken off
    #[command(after_help = "Examples:
  ionet cp ./data clu_...:                    into its home folder
  ionet cp clu_....1:out/model.pt .")]
    Cp(CpArgs),
    /// Run programs on a Ray cluster (Ray's Jobs API)
    #[command(subcommand)]
    Job(JobCommand),
    /// Ledger lines: each move of money, the newest last
    #[command(after_help = "Examples:
  ionet ledger
  ionet ledger --before 1200          the page before
  ionet ledger --books                all balances; they add up to zero
  ionet ledger losses                 what the network has to make good")]
    Ledger(LedgerArgs),
    /// The journal: verify it, read it
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Sign-ins, keys used and tunnels opened for your account
    Activity(ActivityArgs),
    /// Print shell completions
    #[command(after_help = "Example:
  ionet completions bash > /etc/bash_completion.d/ionet")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// How many local workers share this machine
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,
    /// Address and port of the server
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    pub(crate) listen: std::net::SocketAddr,
    /// Where other machines find it, for joining tokens [default: what --listen says]
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub(crate) public_url: Option<String>,
    /// Ask of the local workers for one CPU thread (or GPU) an hour, in dollars
    #[arg(long, default_value = "0.10", value_name = "USD", value_parser = parse_rate)]
    pub(crate) ask: Rate,
    /// Also show so many simulated devices, in a realistic mix; nothing can be ordered on them
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) simulate: u32,
    /// End when standard input ends: for whoever starts it as a child
    #[arg(long, hide = true)]
    pub(crate) tied: bool,
}

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Leave the network running
    #[arg(long)]
    pub(crate) keep: bool,
    /// How many parameter settings are tried
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) trials: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Address and port of the REST API
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    pub(crate) listen: std::net::SocketAddr,
    /// Where other machines find it, for joining tokens [default: what --listen says]
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub(crate) public_url: Option<String>,
    /// Name of the network, part of every signature; fixed at the first start
    #[arg(long, default_value = "ionet", value_name = "NAME")]
    pub(crate) network: String,
    /// A file with the rules that a new network is founded with, as JSON; what it leaves out is as usual
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: Option<PathBuf>,
    /// A file with a relay's JSON line, as `ionet relay` prints it; may be given again
    #[arg(long, value_name = "FILE")]
    pub(crate) relay: Vec<PathBuf>,
    /// Local money for an account, given once, ADDRESS=USD; may be given again. It is worth nothing: no chain is
    /// connected yet
    #[arg(long, value_name = "ADDRESS=USD", value_parser = parse_funds)]
    pub(crate) fund: Vec<(Address, u64)>,
    #[command(flatten)]
    pub(crate) apps: AppsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    /// Address to bind
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDR")]
    pub(crate) bind: std::net::IpAddr,
    /// Name or address that clients dial, if it is another
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// TCP port for sealed traffic, 0 for a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) https_port: u16,
    /// UDP port for address discovery, 0 for a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) quic_port: u16,
    /// UDP port for packets of overlays, 0 for a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) forward_port: u16,
    /// Another UDP port, which shows members what NAT they are behind, 0 for a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) second_forward_port: u16,
    /// TCP port for packets of overlays where UDP is blocked, 0 for a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) forward_tcp_port: u16,
    /// TCP port on which long tunnels are spliced, 0 for a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) splice_port: u16,
    /// UDP port for measuring links, 0 for a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) measure_port: u16,
    /// Local address for monitors: GET /metrics there answers in Prometheus' text format. Anybody who reaches it may ask
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<std::net::SocketAddr>,
    /// The region that it stands in, such as eu-west: devices' claims are checked against it
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    /// End when standard input ends: for whoever starts it as a child
    #[arg(long, hide = true)]
    pub(crate) tied: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// Run the agent that offers this machine
    #[command(after_help = "Example, on the supplier's machine:
  ionet worker start --token-file token.txt --name rack1")]
    Start(WorkerStartArgs),
    /// What the network says of this machine's worker
    Status(WhichDevice),
    /// Find what is missing on this machine and name the command that mends it
    Doctor,
    /// Print a joining token for `ionet worker start`
    Token(WorkerTokenArgs),
    /// Take no new leases
    Pause(WhichDevice),
    /// Take new leases again
    Resume(WhichDevice),
    /// Take no new leases; what runs may finish
    Drain(WhichDevice),
}

#[derive(Debug, Args)]
pub(crate) struct WhichDevice {
    /// The device [default: the one of this data directory]
    pub(crate) device: Option<DeviceId>,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerStartArgs {
    /// A file with the joining token; needed for the first start only
    #[arg(long, env = "IONET_JOIN_TOKEN_FILE", value_name = "FILE", hide_env_values = true)]
    pub(crate) token_file: Option<PathBuf>,
    /// Your name for the machine; only you see it [default: its host name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// CPU threads for hire, such as 2 or 0.5 [default: all]
    #[arg(long, value_parser = units::parse_cpus, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Memory for hire, such as 8GiB [default: 80 % of it]
    #[arg(long, value_parser = units::parse_bytes, value_name = "SIZE")]
    pub(crate) memory: Option<u64>,
    /// Disk for hire [default: 80 % of what is free]
    #[arg(long, value_parser = units::parse_bytes, value_name = "SIZE")]
    pub(crate) disk: Option<u64>,
    /// Ask for one GPU, or on a CPU device for one CPU thread, an hour in dollars
    #[arg(long, default_value = "0.10", value_name = "USD", value_parser = parse_rate)]
    pub(crate) ask: Rate,
    /// GPUs for hire, with --cpus, --memory or --disk [default: none then, all otherwise]
    #[arg(long, default_value_t = 0)]
    pub(crate) gpus: u32,
    /// A word to find the device by; may be given again
    #[arg(long, value_name = "WORD")]
    pub(crate) tag: Vec<String>,
    /// The region that it stands in, such as eu-west: a claim, checked by the relays' round trips
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    /// Folder of prepared environments, to share between the workers of a machine
    #[arg(long, env = "IONET_ENVIRONMENTS_DIR", value_name = "DIR", hide_env_values = true)]
    pub(crate) environments: Option<PathBuf>,
    /// Leases here open no connections out of their cluster, whatever the renter says; see also
    /// 'ionet devices set --egress off', which keeps such orders away
    #[arg(long)]
    pub(crate) no_egress: bool,
    /// A network near this machine that leases may reach all the same, such as 192.0.2.0/24; may be given again
    #[arg(long, value_name = "CIDR")]
    pub(crate) open_egress: Vec<Net>,
    /// Never let a lease wait for the owner's own use of the machine
    #[arg(long)]
    pub(crate) never_yield: bool,
    /// End when standard input ends: for whoever starts it as a child
    #[arg(long, hide = true)]
    pub(crate) tied: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerTokenArgs {
    /// The supply network that devices join under
    #[arg(long, default_value = "ionet", value_name = "NAME")]
    pub(crate) network: String,
    /// How long the token works
    #[arg(long = "for", default_value = "1d", value_parser = units::parse_duration_ms, value_name = "TIME")]
    pub(crate) lifetime_ms: u64,
}

#[derive(Debug, Args)]
pub(crate) struct SupportArgs {
    /// Where to write it [default: ionet-support-<time>.zip here]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Make an API key and print it once
    #[arg(long)]
    pub(crate) new_key: bool,
    /// What the key may do: read, rent, supply, pay, keys
    #[arg(long, value_delimiter = ',', default_value = "read,rent", value_parser = parse_scope, requires = "new_key")]
    pub(crate) scopes: Vec<Scope>,
    /// The most that the key may commit, in dollars
    #[arg(long, default_value = "10", value_parser = parse_usd, value_name = "USD", requires = "new_key")]
    pub(crate) cap: u64,
    /// How long the key works
    #[arg(long = "for", default_value = "30d", value_parser = units::parse_duration_ms, value_name = "TIME", requires = "new_key")]
    pub(crate) lifetime_ms: u64,
    /// Your words for the key
    #[arg(long, default_value = "cli", requires = "new_key")]
    pub(crate) label: String,
}

#[derive(Debug, Args)]
pub(crate) struct WalletArgs {
    #[command(subcommand)]
    pub(crate) command: Option<WalletCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalletCommand {
    /// What the account holds
    Show,
    /// Send money to another wallet
    Send {
        /// To whom
        to: Address,
        /// How much, such as 12.50
        amount: String,
        /// Of what
        #[arg(long, default_value = "IOSD")]
        asset: Asset,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// The account's address
    Address,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List them
    Ls,
    /// Revoke one at once
    Revoke {
        /// Which
        key: KeyId,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DevicesArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DevicesCommand>,
    /// Only mine
    #[arg(long)]
    pub(crate) mine: bool,
    /// A GPU model, or cpu
    #[arg(long)]
    pub(crate) class: Option<String>,
    /// A supply network
    #[arg(long)]
    pub(crate) network: Option<String>,
    /// A tag
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// registered, checking, pooled, refused or archived
    #[arg(long)]
    pub(crate) stage: Option<String>,
    /// At least this connectivity: low, medium, high, ultra
    #[arg(long)]
    pub(crate) tier: Option<String>,
    /// Also archived ones
    #[arg(long)]
    pub(crate) archived: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevicesCommand {
    /// All that is known of one
    Show {
        /// Which
        device: DeviceId,
    },
    /// Change one of mine
    Set {
        /// Which
        device: DeviceId,
        /// Ask for one GPU or CPU thread an hour, in dollars
        #[arg(long, value_name = "USD", value_parser = parse_rate)]
        ask: Option<Rate>,
        /// What a GPU or CPU thread would earn you otherwise, an hour, in dollars: you are never paid less
        #[arg(long, value_name = "USD", value_parser = parse_rate)]
        other_use: Option<Rate>,
        /// What your power costs, a kilowatt-hour, in dollars: a GPU's power is added to its other use
        #[arg(long, value_name = "USD", value_parser = parse_rate)]
        power_price: Option<Rate>,
        /// Its tags from now on; may be given again
        #[arg(long, value_name = "WORD")]
        tag: Vec<String>,
        /// Whether leases on it may open connections out of their cluster: on or off
        #[arg(long, value_name = "on|off", value_parser = parse_switch)]
        egress: Option<bool>,
        /// Offer it only then (UTC), such as 'mon 08:00-fri 18:00'; may be given again; 'always' ends it
        #[arg(long, value_name = "WINDOW")]
        schedule: Vec<String>,
    },
    /// Whom and what one of mine does not serve: show the lists, or set them anew. Nobody else sees them
    #[command(after_help = "Examples:
  ionet devices terms dev_...
  ionet devices terms dev_... --deny-kind train --deny-country KP
  ionet devices terms dev_... --serve-all")]
    Terms {
        /// Which
        device: DeviceId,
        #[command(flatten)]
        denied: DeniedArgs,
        /// Serve everybody again
        #[arg(long, conflicts_with_all = ["account", "country", "kind"])]
        serve_all: bool,
    },
    /// Delete one of mine; its history stays
    Archive {
        /// Which
        device: DeviceId,
    },
    /// Measure one of mine again
    Check {
        /// Which
        device: DeviceId,
    },
}

/// Renters and kinds of work that are not served.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeniedArgs {
    /// A renter's account; may be given again
    #[arg(long = "deny-account", value_name = "ADDRESS")]
    pub(crate) account: Vec<Address>,
    /// Renters of this country, by their own declaration; those who declared none are not served then; may be given again
    #[arg(long = "deny-country", value_name = "XX")]
    pub(crate) country: Vec<Country>,
    /// A kind of work, by the renter's word: general, train or inference; may be given again
    #[arg(long = "deny-kind", value_name = "KIND")]
    pub(crate) kind: Vec<WorkKind>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Show the deny list
    DenyList,
    /// Put entries onto the deny list; what runs runs on
    #[command(after_help = "Examples:
  ionet operator deny --deny-country KP
  ionet operator deny --device dev_...")]
    Deny {
        #[command(flatten)]
        denied: DeniedArgs,
        /// A device that gets no new leases; may be given again
        #[arg(long, value_name = "ID")]
        device: Vec<DeviceId>,
    },
    /// Take entries off the deny list
    Allow {
        #[command(flatten)]
        denied: DeniedArgs,
        /// A device that gets leases again; may be given again
        #[arg(long, value_name = "ID")]
        device: Vec<DeviceId>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct QuoteArgs {
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    /// If it is refused, say what would do and at which price
    #[arg(long)]
    pub(crate) explain: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PricesArgs {
    /// Only hardware whose name contains this, in any case
    pub(crate) model: Option<String>,
}

/// What can be explained.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Explained {
    /// A cluster.
    Cluster(OrderId),
    /// A device.
    Device(DeviceId),
}

fn parse_explained(text: &str) -> Result<Explained, String> {
    if let Ok(device) = text.parse() {
        return Ok(Explained::Device(device));
    }
    let cluster = text.parse().map(Explained::Cluster);
    cluster.map_err(|_| format!("'{text}' is no cluster (clu_...) and no device (dev_...)"))
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Rent a cluster: shows the price, asks, orders, waits until it is up
    #[command(after_help = "Examples:
  ionet cluster create -n 2 --for 2h
  ionet cluster create -n 2 --spread --cpus 4 --memory 16GiB --jupyter --yes
  ionet cluster create --engine command --memory 64MiB --for 5m --yes --follow -- /bin/echo hello")]
    Create(Box<CreateArgs>),
    /// My clusters
    Ls {
        /// Also those that ended
        #[arg(long, short)]
        all: bool,
    },
    /// One cluster: members, timeline, bill
    Show {
        /// Which
        cluster: OrderId,
    },
    /// How its members reach each other: paths, round trips, loss, throughput
    Network {
        /// Which
        cluster: OrderId,
        /// Show it anew every two seconds
        #[arg(long, short)]
        watch: bool,
    },
    /// Add time at the same price
    Extend {
        /// Which
        cluster: OrderId,
        /// How much
        #[arg(long = "for", value_parser = units::parse_duration_ms, value_name = "TIME")]
        added_ms: u64,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Add members to a running cluster for the rest of its time: all of them, or none
    Grow(ResizeArgs),
    /// Take the last members away; what they will not use comes back at once
    Shrink(ResizeArgs),
    /// Put another device in a member's place, at the same price
    Replace(ReplaceArgs),
    /// Stop clock and charges: every box is wiped, nothing in them is kept; time and money that are left stay
    Pause(PauseArgs),
    /// Run a paused cluster again, at the same rates
    Resume(PauseArgs),
    /// Change a cluster that waits or runs: its time, price cap, urgency, what its devices must be, scaling
    #[command(after_help = "Examples:
  ionet cluster set clu_... --for 90m                                 end sooner, and get the rest back
  ionet cluster set clu_... --scale 2..8 --scale-at 70")]
    Set(Box<SetArgs>),
    /// What the boxes may reach outside their cluster: show it, or change it while they run
    #[command(after_help = "Examples:
  ionet cluster egress clu_...                                        what holds and what passed
  ionet cluster egress clu_... off
  ionet cluster egress clu_... --allow '*.pythonhosted.org:443' --allow pypi.org:443")]
    Egress(EgressArgs),
    /// Let another account open some of the services: ports, shell, files, log
    #[command(after_help = "Examples:
  ionet cluster share clu_... ADDRESS --services tcp/8265,tcp/10001,log --for 2d
  ionet cluster share clu_... ADDRESS --services all")]
    Share(ShareArgs),
    /// Take a share back; what is open under it is cut
    Unshare {
        /// Which
        cluster: OrderId,
        /// Whose share
        account: Address,
    },
    /// Open local ports to dashboard, Ray Client, Jobs and notebook
    #[command(after_help = "Examples:
  ionet cluster connect clu_...
  ionet cluster connect clu_... --exec python3 train.py")]
    Connect(ConnectArgs),
    /// A member's output
    Logs {
        /// Which
        cluster: OrderId,
        /// Which member; 0 is the head
        #[arg(long, default_value_t = 0, value_name = "SLOT")]
        member: u32,
        /// Go on with what comes
        #[arg(long, short)]
        follow: bool,
    },
    /// End a cluster: boxes are removed and wiped, the rest of the money comes back
    Rm {
        /// Which
        cluster: OrderId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Do not wait until it is settled
        #[arg(long)]
        no_wait: bool,
    },
    /// Say how a cluster that ended was, once: one to five stars, weighed by the fees that you paid
    Rate {
        /// Which
        cluster: OrderId,
        /// 1 to 5; 5 is the best
        #[arg(value_parser = clap::value_parser!(u8).range(1..=5))]
        stars: u8,
    },
    /// What happened to a cluster, from the journal
    Events {
        /// Which
        cluster: OrderId,
        /// Go on with what happens
        #[arg(long, short)]
        follow: bool,
    },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line are what they are")]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    /// If it is refused, say what would do and at which price
    #[arg(long)]
    pub(crate) explain: bool,
    /// A variable of the program, NAME=VALUE; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Ray environment name@digest [default: the network's]
    #[arg(long, value_name = "NAME@DIGEST")]
    pub(crate) environment: Option<String>,
    /// Also start JupyterLab
    #[arg(long)]
    pub(crate) jupyter: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Do not wait until it is up
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Print the first member's output until its program ends; Ctrl-C leaves the cluster as it is
    #[arg(long, short, conflicts_with_all = ["no_wait", "json"])]
    pub(crate) follow: bool,
    /// The program of the command engine, after --
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EgressArgs {
    /// Which
    pub(crate) cluster: OrderId,
    /// On: every public address; off: members only
    #[arg(value_name = "on|off", value_parser = parse_switch, conflicts_with = "allow")]
    pub(crate) egress: Option<bool>,
    /// Only there: HOST or HOST:PORT with a name, *.name, an address or a CIDR; may be given again
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) allow: Vec<Destination>,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Which
    pub(crate) cluster: OrderId,
    /// Print the cluster's token instead of the name of a file with it
    #[arg(long)]
    pub(crate) show_token: bool,
    /// Run this with the cluster's variables set, then end with its status
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "PROGRAM")]
    pub(crate) exec: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Run a program on a cluster
    #[command(after_help = "Examples:
  ionet job submit clu_... --working-dir . -- python train.py
  ionet job submit clu_... --no-wait -- python -c 'print(1)'
  ionet job submit clu_... --resubmit --working-dir . -- python train.py     again if the head is lost")]
    Submit(SubmitArgs),
    /// Jobs of a cluster
    Ls {
        /// Of which cluster
        cluster: OrderId,
    },
    /// A job's output
    Logs {
        /// Of which cluster
        cluster: OrderId,
        /// Which job
        job: String,
        /// Go on until it ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Stop a job
    Stop {
        /// Of which cluster
        cluster: OrderId,
        /// Which job
        job: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// On which cluster
    pub(crate) cluster: OrderId,
    /// A folder that the program finds as its working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) working_dir: Option<PathBuf>,
    /// A variable of the program, NAME=VALUE; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// A package that pip installs for the job; may be given again
    #[arg(long, value_name = "PACKAGE")]
    pub(crate) pip: Vec<String>,
    /// Your name for the job
    #[arg(long, value_name = "NAME")]
    pub(crate) id: Option<String>,
    /// Do not wait for its end
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// If the cluster's head is lost before the job's end, submit it again, at most so often [default: 3]
    #[arg(long, value_name = "TIMES", num_args = 0..=1, require_equals = true, default_value_t = 0,
        default_missing_value = "3", hide_default_value = true, conflicts_with = "no_wait")]
    pub(crate) resubmit: u32,
    /// The program, after --
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(crate) entrypoint: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LedgerArgs {
    /// Of this account, cluster or payout [default: my account]
    pub(crate) subject: Option<String>,
    /// All balances of the network instead; they add up to zero
    #[arg(long, conflicts_with = "subject")]
    pub(crate) books: bool,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

/// Which part of a long list; the newest entries, the newest last, unless --after says where to begin.
#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// Begin after this number instead of showing the newest
    #[arg(long, value_name = "SEQ")]
    pub(crate) after: Option<u64>,
    /// Only before this number
    #[arg(long, value_name = "SEQ")]
    pub(crate) before: Option<u64>,
    /// At most this many, about
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Recompute the chain, fold the state, check the books; works without a running server
    Verify {
        /// The journal's folder [default: the one of this data directory]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Events in words, the newest last, of everything or of one cluster, lease, device, account or payout
    Show {
        /// Of what
        subject: Option<String>,
        /// Begin after this number instead of showing the newest
        #[arg(long, value_name = "SEQ")]
        after: Option<u64>,
        /// At most this many
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Go on with what happens
        #[arg(long, short)]
        follow: bool,
    },
    /// Number and hash of the last event
    Head,
}

#[derive(Debug, Args)]
pub(crate) struct ActivityArgs {
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".to_owned()),
    }
}

fn parse_usd(text: &str) -> Result<u64, String> {
    let text = text.strip_prefix('$').unwrap_or(text);
    Asset::Iosd.parse(text).map_err(|refusal| refusal.to_string())
}

fn parse_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest.map(|rest| rest.trim_end_matches('/')) {
        Some(rest) if !rest.is_empty() && !rest.contains(['/', '@', '?', '#', ' ']) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err("write it as http://HOST:PORT or https://HOST".to_owned()),
    }
}

fn parse_funds(text: &str) -> Result<(Address, u64), String> {
    let (account, amount) = text.split_once('=').ok_or("write it as ADDRESS=USD")?;
    Ok((account.parse().map_err(|error| format!("{error}"))?, parse_usd(amount)?))
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    parse_usd(text).map(Rate)
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    let value = serde_json::Value::String(text.to_owned());
    serde_json::from_value(value).map_err(|_| "scopes are read, rent, supply, pay and keys".to_owned())
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}
