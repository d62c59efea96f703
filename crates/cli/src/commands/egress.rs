//! What a cluster's boxes may reach outside it, and what passed.

use ionet_api::rest::{ClusterView, EgressRequest};
use ionet_api::worker::EgressUse;
use ionet_domain::CommandId;

use crate::args::EgressArgs;
use crate::commands::quote;
use crate::context::{Context, now_ms, random};
use crate::error::Result;
use crate::out::Out;
use crate::units::bytes;

/// `ionet cluster egress`
pub(crate) async fn egress(context: &Context, args: &EgressArgs) -> Result {
    let client = context.session().await?.client;
    let view = if args.egress.is_none() && args.allow.is_empty() {
        client.cluster(args.cluster).await?
    } else {
        let (egress, allow) = (quote::mode(args.egress, &args.allow), args.allow.iter().cloned().collect());
        let id = CommandId::from_parts(now_ms(), random()?);
        client.change_egress(args.cluster, &EgressRequest { id, egress, allow }).await?
    };
    context.out.answer(&view, |out| {
        out.line(quote::network_rules(view.quote.request.egress, &view.allow));
        show_used(out, &view);
    });
    Ok(())
}

/// What each box sent and received outside its cluster; nothing where no device has said so yet.
pub(crate) fn show_used(out: Out, view: &ClusterView) {
    let used = view.leases.iter().filter_map(|lease| Some((lease.slot, lease.egress?)));
    let rows: Vec<_> = used.map(|(slot, used)| row(slot, &used)).collect();
    if !rows.is_empty() {
        out.table(
            &["MEMBER", "EGRESS", "SENT", "RECEIVED", "OPENED", "OPEN", "REFUSED"],
            &[2, 3, 4, 5, 6],
            rows,
        );
    }
}

fn row(slot: u32, used: &EgressUse) -> Vec<String> {
    let mut row =
        vec![slot.to_string(), used.mode.to_string(), bytes(used.sent_bytes), bytes(used.received_bytes)];
    row.extend([used.opened, used.open, used.refused].map(|count| count.to_string()));
    row
}
