//! What changes a cluster that lives: more and fewer members, a pause, another duration, cap or upkeep.

use std::cmp::Ordering;

use ionet_api::rest::{ChangeRequest, ClusterView, GrowRequest, ReplaceRequest, ShrinkRequest};
use ionet_domain::market::{EngineKind, Upkeep, Wants};
use ionet_domain::order::size::OrderChange;
use ionet_domain::order::{LeasePhase, Stage};
use ionet_domain::{CommandId, OrderId};

use super::cluster::{show, wait_until_up, watch};
use super::quote;
use crate::args::{PauseArgs, ReplaceArgs, ResizeArgs, SetArgs};
use crate::context::{Context, now_ms, random};
use crate::error::{CliError, Result};
use crate::out::Out;
use crate::units::{moment, span, usd};

fn name() -> Result<CommandId> {
    Ok(CommandId::from_parts(now_ms(), random()?))
}

fn answer(out: Out, view: &ClusterView) {
    out.answer(view, |out| show(out, view));
}

/// `ionet cluster grow`
pub(crate) async fn grow(context: &Context, args: &ResizeArgs) -> Result {
    let (out, id) = (context.out, args.cluster);
    let client = context.session().await?.client;
    let quote = client.quote_more(id, args.members).await?;
    quote::show(out, &quote);
    out.confirm(&format!("add {} to {id} for the rest of its time?", members(args.members)), args.yes)?;
    let wanted = client.cluster(id).await?.quote.request.members + args.members;
    let mut view = client.grow(id, &GrowRequest { id: name()?, quote }).await?;
    if !args.no_wait {
        let mut progress = out.progress(&format!("{id} gets {}", members(args.members)));
        let done = |view: &ClusterView| view.quote.request.members < wanted || is_whole(view);
        view = watch(&client, id, &mut progress, done).await?;
        if view.quote.request.members < wanted {
            drop(progress);
            let message = format!(
                "{id} has {} as before: no devices were left for more, and their money came back",
                members(view.quote.request.members)
            );
            return Err(CliError::refused("no_capacity", message)
                .help(format!("try 'ionet cluster grow {id} N' with fewer")));
        }
        progress.done(&format!("{id} has {}", members(wanted)));
    }
    answer(out, &view);
    Ok(())
}

fn members(count: u32) -> String {
    if count == 1 { "1 member".to_owned() } else { format!("{count} members") }
}

/// Whether every member is up, or the cluster runs no more.
fn is_whole(view: &ClusterView) -> bool {
    let up = |lease: &&ionet_api::rest::LeaseView| {
        lease.released.is_none() && matches!(lease.phase, LeasePhase::Ready | LeasePhase::Exited { .. })
    };
    view.stage != Stage::Running
        || view.leases.iter().filter(up).count() >= view.quote.request.members as usize
}

/// `ionet cluster shrink`
pub(crate) async fn shrink(context: &Context, args: &ResizeArgs) -> Result {
    let (out, id) = (context.out, args.cluster);
    let client = context.session().await?.client;
    let before = client.cluster(id).await?;
    let stay = before.quote.request.members.saturating_sub(args.members);
    let rate: u64 = before.quote.items.iter().skip(stay as usize).map(|item| item.rate.0).sum();
    let left_ms = before.ends_ms.unwrap_or(0).saturating_sub(now_ms());
    let back = ionet_domain::Rate(rate).total_for(left_ms);
    let back = usd(back + before.quote.renter_fee.of(back));
    let what = format!(
        "take {} from {id}? the last ones go, their boxes are wiped, about {back} comes back",
        members(args.members)
    );
    out.confirm(&what, args.yes)?;
    let mut view = client.shrink(id, &ShrinkRequest { id: name()?, members: stay }).await?;
    if !args.no_wait {
        view = until_gone(out, &client, id).await?;
    }
    answer(out, &view);
    Ok(())
}

/// Waits until the boxes that are to go are gone.
async fn until_gone(out: Out, client: &ionet_api::Client, id: OrderId) -> Result<ClusterView> {
    let mut progress = out.progress(&format!("{id}: boxes are being removed and wiped"));
    let over = |phase: &LeasePhase| matches!(phase, LeasePhase::Removed { .. } | LeasePhase::Lost { .. });
    let gone = |view: &ClusterView| view.leases.iter().all(|it| it.released.is_none() || over(&it.phase));
    let view = watch(client, id, &mut progress, gone).await?;
    progress.done(&format!("{id}: they are gone"));
    Ok(view)
}

/// `ionet cluster replace`
pub(crate) async fn replace(context: &Context, args: &ReplaceArgs) -> Result {
    let (out, id, slot) = (context.out, args.cluster, args.member);
    let client = context.session().await?.client;
    let before = client.cluster(id).await?;
    let restarts = slot == 0 && before.quote.request.engine == EngineKind::Ray;
    let lost = if restarts { "; it is the head, so Ray starts anew and its jobs are lost" } else { "" };
    let what = format!(
        "put another device in the place of member {slot} of {id}? what is in its box is wiped{lost}"
    );
    out.confirm(&what, args.yes)?;
    let mut view = client.replace_member(id, &ReplaceRequest { id: name()?, member: slot }).await?;
    if !args.no_wait {
        let mut progress = out.progress(&format!("{id}: member {slot} gets another device"));
        view = watch(&client, id, &mut progress, is_whole).await?;
        progress.done(&format!("{id}: member {slot} is up"));
    }
    answer(out, &view);
    Ok(())
}

/// What is proposed for members that ail, a line each.
pub(crate) fn proposals(view: &ClusterView) -> Vec<String> {
    let each = view.leases.iter().filter_map(|lease| {
        let (slot, ailing) = (lease.slot, lease.ailing.as_ref()?);
        let says = format!("member {slot} ails ({}): {}", ailing.code, ailing.says);
        Some(format!("{says}; 'ionet cluster replace {} {slot}' puts another device in its place", view.id))
    });
    each.collect()
}

/// `ionet cluster pause`
pub(crate) async fn pause(context: &Context, args: &PauseArgs) -> Result {
    let (out, id) = (context.out, args.cluster);
    let client = context.session().await?.client;
    let most_ms = client.cluster(id).await?.quote.request.upkeep.pause_most_ms();
    let what = format!(
        "pause {id}? every box is wiped and nothing in them is kept; time and charges stop; it is closed unless it is \
         resumed within {}",
        span(most_ms)
    );
    out.confirm(&what, args.yes)?;
    let mut view = client.pause(id, name()?).await?;
    if !args.no_wait {
        view = until_gone(out, &client, id).await?;
    }
    answer(out, &view);
    Ok(())
}

/// `ionet cluster resume`
pub(crate) async fn resume(context: &Context, args: &PauseArgs) -> Result {
    let (out, id) = (context.out, args.cluster);
    let client = context.session().await?.client;
    let quote = client.cluster(id).await?.quote;
    out.confirm(
        &format!("run {id} again at {}, with nothing of what was in its boxes?", quote.rate),
        args.yes,
    )?;
    let mut view = client.resume(id, name()?).await?;
    if !args.no_wait {
        view = wait_until_up(out, &client, id).await?;
    }
    answer(out, &view);
    Ok(())
}

/// `ionet cluster set`
pub(crate) async fn set(context: &Context, args: &SetArgs) -> Result {
    let (out, id) = (context.out, args.cluster);
    let client = context.session().await?.client;
    let before = client.cluster(id).await?;
    let request = &before.quote.request;
    let mut upkeep = args.upkeep.applied(&request.upkeep, request.per_member.gpus);
    if args.no_scale {
        upkeep.scale = None;
    }
    let known = Wants::from(request);
    let wants = args.wants.applied(&known, &args.drop);
    let change = OrderChange {
        duration_ms: args.duration_ms,
        max_rate: args.max_price,
        max_total_micro_usd: args.max_total,
        upkeep: Some(upkeep).filter(|upkeep| *upkeep != request.upkeep),
        priority: args.priority,
        wants: Some(Box::new(wants)).filter(|wants| **wants != known),
    };
    let (was, is) = (before.quote.total_micro_usd, change.applied(&before.quote).total_micro_usd);
    let money = match is.cmp(&was) {
        Ordering::Less => format!("; {} comes back", usd(was - is)),
        Ordering::Equal => String::new(),
        Ordering::Greater => format!("; {} more is set aside", usd(is - was)),
    };
    out.confirm(&format!("change {id}{money}?"), args.yes)?;
    let view = client.change_cluster(id, &ChangeRequest { id: name()?, change }).await?;
    answer(out, &view);
    Ok(())
}

/// What is done for a cluster while it lives, a line each.
pub(crate) fn upkeep_lines(upkeep: &Upkeep) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(scale) = &upkeep.scale {
        let cap = scale.max_rate.map(|cap| format!(", at most {cap}")).unwrap_or_default();
        lines.push(format!(
            "scales     between {} and {} members at {} % of {}{cap}",
            scale.min, scale.max, scale.target_percent, scale.metric
        ));
    }
    if upkeep.replace == ionet_domain::market::upkeep::ReplaceMode::ByItself {
        lines.push("replaces   members that ail by itself".to_owned());
    }
    if let Some(most_ms) = upkeep.max_pause_ms {
        lines.push(format!("pauses     for {} at most", span(most_ms)));
    }
    lines
}

/// Until when a paused cluster waits, if it is paused.
pub(crate) fn paused_line(view: &ClusterView) -> Option<String> {
    let until = moment(view.paused_until_ms?);
    Some(format!("paused: 'ionet cluster resume {}' runs it again; it is closed {until}", view.id))
}
