//! Devices: listed, shown, changed by their owner.

use std::collections::BTreeSet;

use ionet_api::rest::{DeviceFilter, DeviceView};
use ionet_domain::DeviceId;
use ionet_domain::connectivity::{Bandwidth, RelayMeasure};
use ionet_domain::device::{Alternative, DeviceChange, DeviceStage, Measured, OwnerRules, Resources, Window};
use serde_json::json;

use crate::args::{DevicesArgs, DevicesCommand};
use crate::commands::terms;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::out::Out;
use crate::units::{bytes, cpus, moment};

/// `ionet devices`
pub(crate) async fn devices(context: &Context, args: &DevicesArgs) -> Result {
    match &args.command {
        None => list(context, args).await,
        Some(DevicesCommand::Show { device }) => {
            let device = context.session().await?.client.device(*device).await?;
            context.out.answer(&device, |out| show(out, &device));
            Ok(())
        }
        Some(DevicesCommand::Set { device, ask, other_use, power_price, tag, schedule, egress }) => {
            let tags = (!tag.is_empty()).then(|| tag.iter().cloned().collect::<BTreeSet<_>>());
            let alternative = (other_use.is_some() || power_price.is_some()).then(|| Alternative {
                revenue_per_unit: other_use.unwrap_or_default(),
                power_micro_usd_per_kwh: power_price.unwrap_or_default().0,
            });
            let change = DeviceChange { ask_per_unit: *ask, tags, rules: None, alternative };
            set(context, *device, change, schedule, *egress).await
        }
        Some(DevicesCommand::Terms { device, denied, serve_all }) => {
            terms::terms(context, *device, denied, *serve_all).await
        }
        Some(DevicesCommand::Archive { device }) => {
            context.session().await?.client.archive_device(*device).await?;
            let (answer, line) = (json!({ "archived": device }), format!("{device} is archived"));
            context.out.answer(&answer, |out| out.line(line));
            Ok(())
        }
        Some(DevicesCommand::Check { device }) => {
            context.session().await?.client.check_device(*device).await?;
            let line = format!("{device} is being measured; 'ionet devices show {device}' has the result");
            context.out.answer(&json!({ "checking": device }), |out| out.line(line));
            Ok(())
        }
    }
}

async fn list(context: &Context, args: &DevicesArgs) -> Result {
    let filter = DeviceFilter {
        mine: args.mine,
        class: args.class.clone(),
        network: args.network.clone(),
        tag: args.tag.clone(),
        stage: args.stage.clone(),
        tier: args.tier.clone(),
        archived: args.archived,
        ..DeviceFilter::default()
    };
    let devices = context.session().await?.client.devices(&filter).await?;
    context.out.answer(&devices, |out| {
        let header = ["DEVICE", "STATUS", "CLASS", "FREE", "OF", "ASK", "TIER", "NETWORK", "NAME"];
        out.table(&header, &[5], devices.iter().map(row).collect());
    });
    Ok(())
}

fn row(device: &DeviceView) -> Vec<String> {
    vec![
        device.id.to_string(),
        device.status.clone(),
        device.class.to_string(),
        resources(device.free),
        resources(device.offered),
        device.ask_per_unit.to_string(),
        tier(device),
        device.network.clone(),
        device.machine_name.clone().unwrap_or_default(),
    ]
}

fn tier(device: &DeviceView) -> String {
    device.tier.map_or_else(|| "-".to_owned(), |tier| tier.to_string())
}

fn resources(resources: Resources) -> String {
    let gpus = if resources.gpus > 0 { format!(" {} GPU", resources.gpus) } else { String::new() };
    format!("{} CPU {}{gpus}", cpus(resources.cpu_millis), bytes(resources.memory_bytes))
}

/// All that is known, what is claimed apart from what was measured.
pub(crate) fn show(out: Out, device: &DeviceView) {
    let mut lines = vec![
        ("device", device.id.to_string()),
        ("status", status(device)),
        ("owner", device.owner.to_string()),
        ("network", device.network.clone()),
        ("tags", device.tags.iter().cloned().collect::<Vec<_>>().join(", ")),
        ("ask", format!("{} for one {}", device.ask_per_unit, unit(device))),
        ("offered", format!("{}, {} disk", resources(device.offered), bytes(device.offered.disk_bytes))),
        ("free", resources(device.free)),
        ("leases", device.leases.to_string()),
        ("cpu", format!("{} (claimed)", device.claimed_cpu_model)),
    ];
    lines.extend(device.claimed_gpus.iter().map(|gpu| ("gpu", format!("{gpu} (claimed)"))));
    if let Some(name) = &device.machine_name {
        lines.push(("name", name.clone()));
    }
    lines.extend(device.measured.iter().flat_map(|measured| measured_lines(measured)));
    lines.push(("tier", earned(device)));
    lines.extend(device.measured_links.iter().rev().map(|measure| ("relay's word", relays_word(measure))));
    lines.extend(device.claimed_region.iter().map(|claimed| ("region", region(device, claimed))));
    if device.rules.no_egress {
        lines.push(("egress", "forbidden by its owner".to_owned()));
    }
    lines.extend(device.rules.schedule.iter().map(|window| ("schedule", window_text(*window))));
    let rows = lines.into_iter().filter(|(_, value)| !value.is_empty());
    out.table(&[], &[], rows.map(|(name, value)| vec![name.to_owned(), value]).collect());
}

fn status(device: &DeviceView) -> String {
    match &device.stage {
        DeviceStage::Refused { reason } => format!("{}: {reason}", device.status),
        _ => device.status.clone(),
    }
}

fn unit(device: &DeviceView) -> &'static str {
    if device.offered.gpus > 0 { "GPU" } else { "CPU thread" }
}

/// What connectivity it has earned, and by what.
fn earned(device: &DeviceView) -> String {
    let by = match (device.counted_bandwidth, device.tier) {
        (Some(Bandwidth { down_mbit_s, up_mbit_s }), _) => {
            format!(" (measured with relays: {down_mbit_s} Mbit/s down, {up_mbit_s} up)")
        }
        (None, Some(_)) => " (by the server's pings alone; relays have not measured it yet)".into(),
        (None, None) => " (not measured yet)".into(),
    };
    format!("{}{by}", tier(device))
}

fn relays_word(measure: &RelayMeasure) -> String {
    let RelayMeasure { relay, region, at_ms, rtt_us, bandwidth } = measure;
    let region = region.as_ref().map(|region| format!(" in {region}")).unwrap_or_default();
    let bandwidth = bandwidth.map(|one| format!(", {} Mbit/s down, {} up", one.down_mbit_s, one.up_mbit_s));
    format!("{relay}{region}: round trip {rtt_us} us{}, {}", bandwidth.unwrap_or_default(), moment(*at_ms))
}

fn region(device: &DeviceView, claimed: &str) -> String {
    match &device.region_unproven {
        Some(why) => format!("{claimed} (claimed) region_unproven: {why}"),
        None => format!("{claimed} (claimed, and borne out by round trips)"),
    }
}

fn measured_lines(measured: &Measured) -> Vec<(&'static str, String)> {
    let enforced = measured.enforcement.as_deref().unwrap_or("no limits enforced: one tenant at a time");
    vec![
        (
            "measured cpu",
            format!("{} MB/s one thread, {} MB/s all", measured.cpu_one_mb_s, measured.cpu_all_mb_s),
        ),
        ("measured memory", format!("{} MB/s", measured.memory_mb_s)),
        (
            "measured disk",
            format!("{} MB/s write, {} MB/s read", measured.disk_write_mb_s, measured.disk_read_mb_s),
        ),
        (
            "measured network",
            format!(
                "{} Mbit/s down, {} up, round trip {} us (the server's pings)",
                measured.network_down_mbit_s, measured.network_up_mbit_s, measured.rtt_us,
            ),
        ),
        ("box limits", enforced.to_owned()),
    ]
}

async fn set(
    context: &Context,
    id: DeviceId,
    mut change: DeviceChange,
    schedule: &[String],
    egress: Option<bool>,
) -> Result {
    let client = context.session().await?.client;
    if !schedule.is_empty() || egress.is_some() {
        let now: OwnerRules = client.device(id).await?.rules;
        let schedule = if schedule.is_empty() { now.schedule.clone() } else { read_schedule(schedule)? };
        let no_egress = egress.map_or(now.no_egress, |on| !on);
        change.rules = Some(OwnerRules { schedule, no_egress, ..now });
    }
    if change == DeviceChange::default() {
        return Err(CliError::usage("nothing to change")
            .help("say --ask, --other-use, --tag, --egress or --schedule"));
    }
    let device = client.change_device(id, &change).await?;
    context.out.answer(&device, |out| show(out, &device));
    Ok(())
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn read_schedule(words: &[String]) -> Result<Vec<Window>> {
    if words == ["always"] {
        return Ok(Vec::new());
    }
    words.iter().map(|text| read_window(text)).collect()
}

fn read_window(text: &str) -> Result<Window> {
    let window = text.split_once('-').and_then(|(from, to)| {
        Some(Window { from_minute: minute_of_week(from)?, to_minute: minute_of_week(to)? })
    });
    window.ok_or_else(|| {
        CliError::usage(format!("'{text}' is not a window of the week"))
            .help("write it as 'mon 08:00-fri 18:00' (UTC)")
    })
}

fn minute_of_week(text: &str) -> Option<u16> {
    let (day, clock) = text.trim().split_once(' ')?;
    let day = DAYS.iter().position(|name| day.eq_ignore_ascii_case(name))?;
    let (hour, minute) = clock.trim().split_once(':')?;
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour < 24 && minute < 60).then_some(u16::try_from(day).ok()? * 1440 + hour * 60 + minute)
}

fn window_text(window: Window) -> String {
    let part = |minute: u16| {
        let day = DAYS[usize::from(minute / 1440) % DAYS.len()];
        format!("{day} {:02}:{:02}", minute / 60 % 24, minute % 60)
    };
    format!("{}-{} UTC", part(window.from_minute), part(window.to_minute))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_read_and_show() {
        let window = read_window("mon 08:00-fri 18:30").unwrap();
        assert_eq!((window.from_minute, window.to_minute), (480, 4 * 1440 + 18 * 60 + 30));
        assert_eq!(window_text(window), "mon 08:00-fri 18:30 UTC");
        for text in ["", "mon", "mon 8-9", "mon 25:00-tue 01:00", "xyz 01:00-tue 01:00"] {
            assert!(read_window(text).is_err(), "{text}");
        }
    }
}
