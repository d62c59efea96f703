//! Who else may open a cluster's services.

use ionet_api::rest::{ClusterView, ShareRequest};
use ionet_domain::{Address, CommandId, OrderId};

use crate::args::ShareArgs;
use crate::context::{Context, now_ms, random};
use crate::error::Result;
use crate::out::Out;
use crate::units::moment;

/// `ionet cluster share`
pub(crate) async fn share(context: &Context, args: &ShareArgs) -> Result {
    let request = ShareRequest {
        id: CommandId::from_parts(now_ms(), random()?),
        account: args.account,
        services: args.services.clone(),
        until_ms: now_ms().saturating_add(args.for_ms),
    };
    let view = context.session().await?.client.share(args.cluster, &request).await?;
    context.out.answer(&view, |out| show(out, &view));
    Ok(())
}

/// `ionet cluster unshare`
pub(crate) async fn unshare(context: &Context, cluster: OrderId, account: Address) -> Result {
    let view = context.session().await?.client.unshare(cluster, account).await?;
    context.out.answer(&view, |out| out.line(format!("{cluster} is no longer shared with {account}")));
    Ok(())
}

/// One line for each share.
pub(crate) fn show(out: Out, view: &ClusterView) {
    out.lines(view.shares.iter().map(|share| {
        format!("shared with {}: {} until {}", share.account, share.services, moment(share.until_ms))
    }));
}
