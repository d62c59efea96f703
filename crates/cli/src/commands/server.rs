//! `ionet server`, and the server inside `ionet up`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use ionet_domain::command::CommandBody;
use ionet_domain::device::{Device, DeviceStage};
use ionet_domain::money::Asset;
use ionet_domain::simulated::MOST_AT_ONCE;
use ionet_domain::{Actor, Address, Command, Params};
use ionet_net::RelayInfo;
use ionet_server::simulated::fleet;
use ionet_server::{AppsConfig, LocalFunds, Server, ServerConfig, ServerError};
use serde_json::{Value, json};

use crate::args::ServerArgs;
use crate::commands::expose;
use crate::context::{Context, now_ms, read_json};
use crate::error::{CliError, Result};
use crate::process::Ending;

/// Suppliers of a network on one machine are paid at the end of each of these.
const LOCAL_EPOCH_MS: u64 = 5_000;
const LOCAL_METER_PERIOD_MS: u64 = 10_000;
/// A charge that only the supplier attests (the server was away) waits so long; here renter and supplier are one.
const LOCAL_DISPUTE_WINDOW_MS: u64 = 5_000;
const LOCAL_REMOVAL_GRACE_MS: u64 = 60_000;

/// `ionet server`
pub(crate) async fn server(context: &Context, args: &ServerArgs) -> Result {
    crate::log::begin("info,iroh=warn");
    let ending = Ending::listen(false)?;
    let relays = args.relay.iter().map(|path| read_relay(path)).collect::<Result<Vec<_>>>()?;
    let funds = args.fund.iter().map(|(account, amount)| funds(*account, *amount)).collect();
    let config = config(context, args.listen, relays, params(args)?, funds);
    let server = LocalServer::start(ServerConfig { apps: expose::apps(&args.apps), ..config }).await?;
    let url = server.url().to_owned();
    let public_url = public_url(context, args.listen.ip(), &url, args.public_url.as_deref());
    context.remember_served(&url, public_url.clone())?;
    let (pid, network) = (std::process::id(), server.server.handle().network());
    if network != args.network {
        context.out.note(format!("the journal's network is '{network}'; --network names new ones only"));
    }
    let answer = json!({ "url": url, "public_url": public_url, "network": network, "pid": pid });
    context.out.answer(&answer, |out| out.line(format!("serving '{network}' at {url}")));
    serve(server, ending).await
}

/// Where other machines find a server that listens at `ip`; says so when nobody can know.
pub(crate) fn public_url(context: &Context, ip: IpAddr, url: &str, given: Option<&str>) -> Option<String> {
    match given {
        Some(given) => Some(given.to_owned()),
        None if ip.is_unspecified() => {
            let port = url.rsplit(':').next().unwrap_or_default();
            context.out.note("it listens on every interface; which address other machines dial is not known");
            context.out.note(format!(
                "help: say --public-url http://HOST:{port}, so that joining tokens ('ionet worker token') carry it"
            ));
            None
        }
        None if ip.is_loopback() => None,
        None => Some(url.to_owned()),
    }
}

async fn serve(mut server: LocalServer, mut ending: Ending) -> Result {
    tokio::select! {
        () = ending.told() => {}
        failed = server.failed() => return Err(failed),
    }
    server.stop().await
}

/// What a new network is founded with: the usual, and over it what the file of rules says.
fn params(args: &ServerArgs) -> Result<Params> {
    let usual = Params { network: args.network.clone(), ..Params::default() };
    let Some(path) = &args.rules else { return Ok(usual) };
    let said: serde_json::Map<String, Value> =
        read_json(path)?.ok_or_else(|| CliError::usage(format!("{} does not exist", path.display())))?;
    let mut rules = json!(usual);
    for (name, value) in said {
        rules[name] = value;
    }
    serde_json::from_value(rules)
        .map_err(|error| CliError::usage(format!("{} holds no rules of a network: {error}", path.display())))
}

fn read_relay(path: &Path) -> Result<RelayInfo> {
    let missing = || CliError::usage(format!("{} does not exist", path.display()));
    read_json(path)?.ok_or_else(missing)
}

fn funds(account: Address, amount: u64) -> LocalFunds {
    LocalFunds { account, asset: Asset::Iosd, amount }
}

fn config(
    context: &Context,
    listen: SocketAddr,
    relays: Vec<RelayInfo>,
    params: Params,
    local_funds: Vec<LocalFunds>,
) -> ServerConfig {
    // Who listens for other machines is linked to from other machines too.
    let bind = if listen.ip().is_loopback() { vec![SocketAddr::new(listen.ip(), 0)] } else { Vec::new() };
    let environments = ionet_worker::environment::BUILT_IN.iter().map(|known| known.reference().to_string());
    ServerConfig {
        listen,
        bind,
        params,
        relays,
        environments: environments.collect(),
        local_funds,
        ..ServerConfig::local(context.path("server"))
    }
}

/// The server of a network on this machine: short periods, so that everything can be watched, and a funded wallet.
pub(crate) fn local_config(
    context: &Context,
    listen: SocketAddr,
    relay: RelayInfo,
    renter: Address,
    amount: u64,
) -> ServerConfig {
    let params = Params {
        network: "local".into(),
        simulated_devices: true,
        epoch_ms: LOCAL_EPOCH_MS,
        meter_period_ms: LOCAL_METER_PERIOD_MS,
        dispute_window_ms: LOCAL_DISPUTE_WINDOW_MS,
        removal_grace_ms: LOCAL_REMOVAL_GRACE_MS,
        ..Params::default()
    };
    let config = config(context, listen, vec![relay], params, vec![funds(renter, amount)]);
    ServerConfig { apps: Some(AppsConfig::local()), ..config }
}

/// A server in this process.
#[derive(Debug)]
pub(crate) struct LocalServer {
    server: Server,
    url: String,
}

impl LocalServer {
    pub(crate) async fn start(config: ServerConfig) -> Result<Self> {
        let server = Server::start(config).await?;
        for torn in &server.opened().journal.torn {
            tracing::warn!("the journal's end was torn by a crash and cut: {torn:?}");
        }
        // Who listens on every interface is found on the loopback from here.
        let url = server
            .url()
            .replace(&format!("//{}:", Ipv4Addr::UNSPECIFIED), &format!("//{}:", Ipv4Addr::LOCALHOST));
        let url =
            url.replace(&format!("//[{}]:", Ipv6Addr::UNSPECIFIED), &format!("//[{}]:", Ipv6Addr::LOCALHOST));
        Ok(Self { server, url })
    }

    /// Brings in simulated devices until there are so many; how many there are then.
    pub(crate) async fn simulate(&self, wanted: u32) -> Result<usize> {
        let handle = self.server.handle();
        let is_here = |device: &&Device| device.enrolment.simulated && device.stage != DeviceStage::Archived;
        let count = || handle.read(|view| view.state.devices.values().filter(is_here).count());
        let mut here = count();
        while here < wanted as usize {
            let more = (wanted as usize - here).min(MOST_AT_ONCE);
            let devices = fleet(here as u64, more, now_ms());
            let body = CommandBody::Simulate { devices };
            handle.submit(Command { id: None, actor: Actor::Server, body }).await?;
            here += more;
        }
        Ok(count())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Why it ended by itself; never returns while it runs.
    pub(crate) async fn failed(&mut self) -> CliError {
        match self.server.wait().await {
            Ok(()) => CliError::internal("server_ended", "the server ended by itself"),
            Err(error) => error.into(),
        }
    }

    pub(crate) async fn stop(self) -> Result {
        Ok(self.server.stop().await?)
    }
}

impl From<ServerError> for CliError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Refused(refusal) => refusal.into(),
            ServerError::Net(error) => error.into(),
            ServerError::Io { action, source } => crate::error::io(action)(source),
            other => Self::internal(other.code(), crate::error::whole(&other)),
        }
    }
}
