//! Numbers for Prometheus, in its text format, written by hand: nothing here needs a library.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use ionet_domain::Asset;
use ionet_domain::ledger::Owner;

use super::{open, views};
use crate::view::View;

/// Upper bounds of the latency buckets in microseconds.
const BOUNDS_US: [u64; 10] = [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000];

/// What this process has counted since it started.
#[derive(Default)]
pub(super) struct Counters(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    commands: BTreeMap<String, u64>,
    command_us: Latency,
    requests: BTreeMap<(String, String, u16), u64>,
    refused: BTreeMap<String, u64>,
    answer_us: Latency,
}

#[derive(Default)]
struct Latency {
    buckets: [u64; BOUNDS_US.len()],
    count: u64,
    sum_us: u64,
}

impl Latency {
    fn add(&mut self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(took_us);
        for (bucket, _) in self.buckets.iter_mut().zip(BOUNDS_US).filter(|(_, bound)| took_us <= *bound) {
            *bucket += 1;
        }
    }
}

impl Counters {
    /// A command from outside was answered: accepted, or refused with this code.
    pub(super) fn command(&self, refused: Option<&str>, took: Duration) {
        let mut counted = open(&self.0);
        *counted.commands.entry(refused.unwrap_or("accepted").to_owned()).or_default() += 1;
        if refused.is_none() {
            counted.command_us.add(took);
        }
    }

    /// A request was answered. The path is a route's pattern, so there are few.
    pub(super) fn request(&self, method: &Method, path: &str, status: StatusCode, took: Duration) {
        // A method can be any word; those that no route takes are one.
        let known = [Method::GET, Method::HEAD, Method::POST, Method::PATCH, Method::DELETE];
        let method = if known.contains(method) { method.as_str() } else { "other" };
        let mut counted = open(&self.0);
        let key = (method.to_owned(), path.to_owned(), status.as_u16());
        *counted.requests.entry(key).or_default() += 1;
        counted.answer_us.add(took);
    }

    /// A request was refused with this code.
    pub(super) fn refused(&self, code: Option<&str>) {
        let Some(code) = code else { return };
        *open(&self.0).refused.entry(code.to_owned()).or_default() += 1;
    }

    /// What was counted, as text.
    pub(super) fn write(&self, text: &mut Text) {
        let counted = open(&self.0);
        text.family("ionet_commands_total", "counter", "Commands from the API by how they were answered.");
        for (answer, count) in &counted.commands {
            text.line("ionet_commands_total", &[("answer", answer)], *count);
        }
        let about = "From a command's arrival to its answer, so with its commit.";
        text.histogram("ionet_command_seconds", about, &counted.command_us);
        text.family("ionet_http_requests_total", "counter", "HTTP requests.");
        for ((method, path, status), count) in &counted.requests {
            let labels = [("method", method.as_str()), ("path", path), ("status", &status.to_string())];
            text.line("ionet_http_requests_total", &labels, *count);
        }
        text.family("ionet_http_errors_total", "counter", "HTTP requests refused, by code.");
        for (code, count) in &counted.refused {
            text.line("ionet_http_errors_total", &[("code", code)], *count);
        }
        text.histogram("ionet_http_seconds", "From a request to its answer.", &counted.answer_us);
    }
}

/// Text in the exposition format.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn into_string(self) -> String {
        self.0
    }

    fn family(&mut self, name: &str, kind: &str, about: &str) {
        // Writing to a string has no way to fail.
        let _ = writeln!(self.0, "# HELP {name} {about}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// One number that goes up and down.
    pub(super) fn gauge(&mut self, name: &str, about: &str, value: impl std::fmt::Display) {
        self.family(name, "gauge", about);
        self.line(name, &[], value);
    }

    /// Counts of things by one label.
    fn by_label(&mut self, name: &str, about: &str, label: &str, counts: &BTreeMap<String, i128>) {
        self.family(name, "gauge", about);
        for (value, count) in counts {
            self.line(name, &[(label, value)], *count);
        }
    }

    fn histogram(&mut self, name: &str, about: &str, latency: &Latency) {
        self.family(name, "histogram", about);
        let bucket = format!("{name}_bucket");
        for (bound_us, count) in BOUNDS_US.iter().zip(latency.buckets) {
            self.line(&bucket, &[("le", &seconds(*bound_us))], count);
        }
        self.line(&bucket, &[("le", "+Inf")], latency.count);
        self.line(&format!("{name}_sum"), &[], seconds(latency.sum_us));
        self.line(&format!("{name}_count"), &[], latency.count);
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn tally<K: ToString>(things: impl Iterator<Item = K>) -> BTreeMap<String, i128> {
    let mut counts = BTreeMap::new();
    for thing in things {
        *counts.entry(thing.to_string()).or_default() += 1;
    }
    counts
}

/// What the state and the fleet are now.
pub(super) fn write_view(text: &mut Text, view: &View, now_ms: u64) {
    let state = &view.state;
    text.gauge("ionet_journal_head_seq", "Durable events.", view.head.seq);
    text.gauge("ionet_term", "The server's term.", state.term);
    let stages = tally(state.orders.values().map(|order| order.stage));
    text.by_label("ionet_orders", "Live orders by stage.", "stage", &stages);
    let statuses = tally(state.devices.values().map(views::device_status));
    text.by_label("ionet_devices", "Devices by status.", "status", &statuses);
    let links = view.fleet.devices().filter(|(_, now)| now.connected).count();
    text.gauge("ionet_links", "Devices whose link is up.", links);
    let bad: u64 = view.fleet.devices().map(|(_, now)| now.bad_receipts).sum();
    text.gauge("ionet_receipts_not_believed", "Usage receipts with a bad signature since the start.", bad);
    overlay(text, view, now_ms);
    money(text, view);
}

fn overlay(text: &mut Text, view: &View, now_ms: u64) {
    let links = &view.fleet.overlay;
    let pairs = links.pairs(now_ms).into_iter();
    let pairs = pairs.map(|(kind, count)| (kind.name().to_owned(), i128::from(count))).collect();
    let about = "Links between members by path, each pair once from either side.";
    text.by_label("ionet_overlay_links", about, "path", &pairs);
    let (name, about) = ("ionet_overlay_sent_bytes_total", "Bytes that members sent to each other.");
    text.family(name, "counter", about);
    text.line(name, &[], links.sent_bytes());
    let (name, about) =
        ("ionet_overlay_dropped_packets_total", "Packets between members dropped, by reason.");
    text.family(name, "counter", about);
    for (reason, count) in links.dropped() {
        text.line(name, &[("reason", reason)], *count);
    }
}

fn money(text: &mut Text, view: &View) {
    let mut sums: BTreeMap<(&str, Asset), i128> = BTreeMap::new();
    for (key, balance) in view.state.ledger.balances() {
        let sum = sums.entry((kind(key.owner), key.asset)).or_default();
        *sum += i128::from(balance.credits) - i128::from(balance.debits);
    }
    let name = "ionet_money_minor_units";
    text.family(name, "gauge", "Credits less debits by kind of account; the sum of each asset is zero.");
    for ((kind, asset), sum) in sums {
        text.line(name, &[("account", kind), ("asset", asset.name())], sum);
    }
}

fn kind(owner: Owner) -> &'static str {
    match owner {
        Owner::World => "world",
        Owner::Wallet(_) => "wallets",
        Owner::Order(_) => "orders",
        Owner::Earned(_) => "earned",
        Owner::Fees => "fees",
        Owner::Losses => "losses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_in_the_exposition_format() {
        let counters = Counters::default();
        counters.command(None, Duration::from_micros(400));
        counters.command(Some("no_\"capacity\""), Duration::from_micros(1));
        let mut text = Text::default();
        counters.write(&mut text);
        let text = text.into_string();
        for line in [
            "# TYPE ionet_commands_total counter",
            "ionet_commands_total{answer=\"accepted\"} 1",
            "ionet_commands_total{answer=\"no_\\\"capacity\\\"\"} 1",
            "ionet_command_seconds_bucket{le=\"0.000250\"} 0",
            "ionet_command_seconds_bucket{le=\"0.000500\"} 1",
            "ionet_command_seconds_bucket{le=\"+Inf\"} 1",
            "ionet_command_seconds_sum 0.000400",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
