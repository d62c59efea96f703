//! `ionet relay`: forwards sealed packets for endpoints that find no direct path.

use ionet_net::relay::{Relay, RelayConfig, RelayInfo, admit_all};

use crate::args::RelayArgs;
use crate::context::{Context, read_json, write_json};
use crate::error::{CliError, Result};
use crate::process::Ending;

/// What the last start said.
const LAST: &str = "relay/info.json";

/// Runs a relay until told to end. Its first line is what servers and clients need to use it.
pub(crate) async fn relay(context: &Context, args: &RelayArgs) -> Result {
    crate::log::begin("warn");
    if args.bind.is_unspecified() && args.host.is_none() {
        return Err(CliError::usage(
            "a relay on every interface must know which name or address clients dial",
        )
        .help("say --host HOST"));
    }
    let mut ending = Ending::listen(args.tied)?;
    let relay = spawn(context, args).await?;
    let info = relay.info();
    write_json(&context.path(LAST), &info)?;
    context.out.value(&info);
    ending.told().await;
    relay.shutdown().await;
    Ok(())
}

/// Free ports are those of the last start where they can be had, so that who was told of the relay finds it again.
async fn spawn(context: &Context, args: &RelayArgs) -> Result<Relay> {
    let config = |https_port, quic_port| RelayConfig {
        bind: args.bind,
        host: args.host.clone(),
        https_port,
        http_port: 0,
        quic_port,
        dir: context.path("relay"),
        admit: admit_all(),
    };
    if let (0, 0, Some((https_port, quic_port))) = (args.https_port, args.quic_port, last_ports(context))
        && let Ok(relay) = Relay::spawn(config(https_port, quic_port)).await
    {
        return Ok(relay);
    }
    Ok(Relay::spawn(config(args.https_port, args.quic_port)).await?)
}

fn last_ports(context: &Context) -> Option<(u16, u16)> {
    let last: RelayInfo = read_json(&context.path(LAST)).ok()??;
    Some((last.url.rsplit(':').next()?.parse().ok()?, last.quic_port))
}
