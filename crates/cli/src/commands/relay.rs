//! `ionet relay`: forwards sealed packets for endpoints that find no direct path.

use ionet_net::relay::{Relay, RelayConfig, admit_all};

use crate::args::RelayArgs;
use crate::context::Context;
use crate::error::Result;
use crate::process::told_to_end;

/// Runs a relay until told to end. Its first line is what servers and clients need to use it.
pub(crate) async fn relay(context: &Context, args: &RelayArgs) -> Result {
    crate::log::begin("warn");
    let config = RelayConfig {
        bind: args.bind,
        host: args.host.clone(),
        https_port: args.https_port,
        http_port: 0,
        quic_port: args.quic_port,
        dir: context.path("relay"),
        admit: admit_all(),
    };
    let relay = Relay::spawn(config).await?;
    context.out.value(&relay.info());
    told_to_end(args.tied).await?;
    relay.shutdown().await;
    Ok(())
}
