//! The network's page: one self-contained document. Its script and style are inline and named by their hashes in the
//! content security policy, so nothing else runs and nothing is loaded but this server's own live events.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ionet_domain::device::DeviceStage;
use ionet_domain::market::board::{self, ClassPrices};
use ionet_domain::money::Rate;
use sha2::{Digest, Sha256};

use super::views;
use crate::view::View;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; connect-src 'self'; style-src 'sha256-{}'; script-src 'sha256-{}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// What the page shows.
pub(super) struct Numbers {
    devices: BTreeMap<(String, &'static str), u64>,
    clusters: BTreeMap<String, u64>,
    prices: Vec<ClassPrices>,
    head_seq: u64,
    head_hash: String,
}

impl Numbers {
    pub(super) fn of(view: &View, now_ms: u64) -> Self {
        let mut devices = BTreeMap::new();
        for device in view.state.devices.values().filter(|device| device.stage != DeviceStage::Archived) {
            *devices.entry((device.class.to_string(), views::device_status(device))).or_default() += 1;
        }
        let mut clusters = BTreeMap::new();
        for order in view.state.orders.values() {
            *clusters.entry(order.stage.to_string()).or_default() += 1;
        }
        let head = view.head;
        let prices = board::prices(&view.state, None, now_ms);
        Self { devices, clusters, prices, head_seq: head.seq, head_hash: head.hash.to_string() }
    }

    fn device_rows(&self) -> String {
        let mut rows = String::new();
        for ((class, status), count) in &self.devices {
            let _ = write!(rows, "<tr><td>{}<td>{status}<td class=n>{count}", escaped(class));
        }
        if rows.is_empty() { "<tr><td colspan=3>none yet".into() } else { rows }
    }

    fn price_rows(&self) -> String {
        let mut rows = String::new();
        let rate = |rate: Option<Rate>| rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
        for known in &self.prices {
            let simulated = if known.simulated { " (simulated)" } else { "" };
            let class = escaped(&format!("{}{simulated}", known.class));
            let (free, hired) = (known.free_millis / 1000, known.hired_ppm / 10_000);
            let (ask, market) = (rate(known.lowest_ask), rate(known.market));
            let elsewhere = known.elsewhere.as_ref();
            let elsewhere =
                elsewhere.map_or_else(|| "-".to_owned(), |e| format!("{} ({})", e.median, e.date));
            let _ = write!(rows, "<tr><td>{class}<td class=n>{free}<td class=n>{hired} %");
            let _ = write!(rows, "<td class=n>{ask}<td class=n>{market}<td class=n>{}", escaped(&elsewhere));
        }
        if rows.is_empty() { "<tr><td colspan=6>none yet".into() } else { rows }
    }

    fn cluster_rows(&self) -> String {
        let mut rows = String::new();
        for (stage, count) in &self.clusters {
            let _ = write!(rows, "<tr><td>{stage}<td class=n>{count}");
        }
        if rows.is_empty() { "<tr><td colspan=2>none now".into() } else { rows }
    }
}

/// The page with its policy.
#[expect(clippy::needless_pass_by_value, reason = "callers hand over a temporary")]
pub(super) fn answer(numbers: &Numbers, network: String) -> Response {
    let page = PAGE
        .replace("{style}", STYLE)
        .replace("{script}", SCRIPT)
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{devices}", &numbers.device_rows())
        .replace("{clusters}", &numbers.cluster_rows())
        .replace("{prices}", &numbers.price_rows())
        .replace("{seq}", &numbers.head_seq.to_string())
        .replace("{hash}", &numbers.head_hash)
        .replace("{network}", &escaped(&network));
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, &POLICY)];
    (headers, page).into_response()
}

/// Text made harmless inside HTML: names come from outside.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Braces begin the page's own blanks.
            '{' => safe.push_str("&#123;"),
            c => safe.push(c),
        }
    }
    safe
}
