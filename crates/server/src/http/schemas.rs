//! Schemas of the types that also stand in the journal: the rules' own types know nothing of `OpenAPI`, so they are
//! described here. A test holds every description against the JSON of the type itself.

mod terms;
mod upkeep;

use super::schemas_ways;
use serde_json::{Map, Value, json};

/// Puts the schemas into the description and points to them where the API's types mention them.
pub(super) fn add(whole: &mut Value) {
    if let Some(schemas) = whole["components"]["schemas"].as_object_mut() {
        schemas.extend(all());
        for (owner, field, schema) in mentions() {
            if let Some(property) =
                schemas.get_mut(owner).and_then(|owner| owner["properties"].get_mut(field))
            {
                let described = property.get("description").cloned();
                *property = schema;
                if let (Some(text), Some(property)) = (described, property.as_object_mut()) {
                    property.insert("description".into(), text);
                }
            }
        }
    }
    for (path, method, name) in [
        ("/v1/quotes", "post", "Request"),
        ("/v1/explain", "post", "Request"),
        ("/v1/devices/{device}", "patch", "DeviceChange"),
    ] {
        whole["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"] = of(name);
    }
}

pub(super) fn of(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

pub(super) fn text() -> Value {
    json!({ "type": "string" })
}

fn truth() -> Value {
    json!({ "type": "boolean" })
}

pub(super) fn count() -> Value {
    json!({ "type": "integer", "format": "int64", "minimum": 0 })
}

pub(super) fn number() -> Value {
    json!({ "type": "integer", "format": "int32" })
}

fn list(of: &Value) -> Value {
    json!({ "type": "array", "items": of })
}

pub(super) fn maybe(schema: &Value) -> Value {
    json!({ "oneOf": [schema, { "type": "null" }] })
}

pub(super) fn one_of(words: &[&str]) -> Value {
    json!({ "type": "string", "enum": words })
}

/// An object; a field whose name ends in `?` may be left out.
pub(super) fn object(fields: &[(&str, Value)]) -> Value {
    let name = |field: &str| field.trim_end_matches('?').to_owned();
    let properties: Map<_, _> = fields.iter().map(|(field, schema)| (name(field), schema.clone())).collect();
    let required: Vec<_> =
        fields.iter().filter(|(field, _)| !field.ends_with('?')).map(|(f, _)| name(f)).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// Bare words, or an object of one entry named by the word.
fn variants(words: &[&str], objects: &[(&str, Value)]) -> Value {
    let words = (!words.is_empty()).then(|| one_of(words)).into_iter();
    let objects = objects.iter().map(|(word, schema)| object(&[(*word, schema.clone())]));
    json!({ "oneOf": words.chain(objects).collect::<Vec<_>>() })
}

/// Objects told apart by their `code`.
fn coded(codes: &[(&str, &[(&str, Value)])]) -> Value {
    tagged("code", codes)
}

/// Objects told apart by the word under `tag`.
pub(super) fn tagged(tag: &str, codes: &[(&str, &[(&str, Value)])]) -> Value {
    let one = |(code, fields): &(&str, &[(&str, Value)])| {
        let code = [(tag, one_of(&[code]))];
        object(&code.into_iter().chain(fields.iter().cloned()).collect::<Vec<_>>())
    };
    json!({ "oneOf": codes.iter().map(one).collect::<Vec<_>>() })
}

/// Where the API's types mention one of these.
fn mentions() -> Vec<(&'static str, &'static str, Value)> {
    let scopes = list(&of("Scope"));
    vec![
        ("ErrorBody", "refusal", maybe(&of("Refusal"))),
        ("NewKey", "scopes", scopes.clone()),
        ("KeyView", "scopes", scopes),
        ("Holding", "asset", of("Asset")),
        ("SendRequest", "asset", of("Asset")),
        ("ActivityLine", "kind", of("ActivityKind")),
        ("LedgerLine", "transfer", of("Transfer")),
        ("EnrolRequest", "enrolment", of("Enrolment")),
        ("DeviceView", "stage", of("DeviceStage")),
        ("DeviceView", "class", of("HardwareClass")),
        ("DeviceView", "tier", maybe(&of("Tier"))),
        ("DeviceView", "offered", of("Resources")),
        ("DeviceView", "free", of("Resources")),
        ("DeviceView", "measured", maybe(&of("Measured"))),
        ("DeviceView", "measured_links", list(&of("RelayMeasure"))),
        ("DeviceView", "counted_bandwidth", maybe(&of("Bandwidth"))),
        ("DeviceView", "rules", of("OwnerRules")),
        ("DeviceView", "telemetry", maybe(&of("Telemetry"))),
        ("SignedQuote", "quote", of("Quote")),
        ("OrderRequest", "program", of("Program")),
        ("PriceBoard", "classes", list(&of("ClassPrices"))),
        ("FeedRequest", "feed", of("Feed")),
        ("DeviceTerms", "denied", of("Denials")),
        ("OperatorRequest", "order", of("DenyOrder")),
        ("DenyListView", "list", of("DenyList")),
        ("ExplainedRequest", "explanation", of("Explanation")),
        ("ExplainedCluster", "stage", of("Stage")),
        ("ExplainedCluster", "reason", maybe(&of("CloseReason"))),
        ("ExplainedCluster", "explanation", maybe(&of("Explanation"))),
        ("ExplainedCluster", "waiting", maybe(&of("Waiting"))),
        ("ClusterView", "notice", maybe(&of("Notice"))),
        ("ClusterView", "waiting", maybe(&of("Waiting"))),
        ("ExplainedDevice", "explanation", of("DeviceExplanation")),
        ("LeaseView", "class", of("HardwareClass")),
        ("LeaseView", "phase", of("LeasePhase")),
        ("LeaseView", "now", maybe(&of("BoxPhase"))),
        ("LeaseView", "parts_ms", list(&of("Part"))),
        ("ClusterView", "stage", of("Stage")),
        ("ClusterView", "reason", maybe(&of("CloseReason"))),
        ("ClusterView", "quote", of("Quote")),
        ("ClusterView", "bill", of("Bill")),
        ("ChangeRequest", "change", of("OrderChange")),
        ("TunnelGrant", "grant", of("Grant")),
        ("TunnelMember", "endpoint", of("MemberEndpoint")),
    ]
}

fn all() -> impl Iterator<Item = (String, Value)> {
    let groups = [
        words(),
        terms::request(),
        market(),
        prices(),
        boards(),
        reasons(),
        device_reasons(),
        devices(),
        orders(),
        upkeep::all(),
        reports(),
        schemas_ways::all(),
    ];
    groups.into_iter().flatten().map(|(name, schema)| (name.to_owned(), schema))
}

pub(super) type Named = Vec<(&'static str, Value)>;

fn words() -> Named {
    vec![
        ("Asset", one_of(&["IO", "IOSD", "USDC"])),
        ("Scope", one_of(&["read", "rent", "supply", "pay", "keys"])),
        ("ActivityKind", one_of(&["signed_in", "key_used", "tunnel_opened", "service_reached", "denied"])),
        ("EngineKind", one_of(&["command", "ray"])),
        ("Tier", one_of(&["basic", "low", "medium", "high", "ultra"])),
        (
            "Stage",
            one_of(&[
                "accepted", "funded", "placed", "starting", "running", "paused", "closing", "settled", "paid",
            ]),
        ),
        (
            "Refusal",
            json!({
                "type": "object",
                "description": "The refusal's code and its numbers; which there are depends on the code.",
                "properties": { "code": { "type": "string" } },
                "required": ["code"],
                "additionalProperties": true
            }),
        ),
        (
            "Part",
            json!({ "type": "array", "description": "A name and milliseconds.", "minItems": 2, "maxItems": 2,
                "prefixItems": [text(), count()] }),
        ),
    ]
}

fn market() -> Named {
    let resources = [
        ("cpu_millis", number()),
        ("memory_bytes", count()),
        ("disk_bytes", count()),
        ("gpus", number()),
        ("gpu_share_millis?", maybe(&number())),
    ];
    let program = [
        ("argv?", list(&text())),
        ("env?", json!({ "type": "object", "additionalProperties": { "type": "string" } })),
        ("environment?", maybe(&text())),
        ("jupyter?", truth()),
        ("allow?", list(&text())),
    ];
    let item = [
        ("device?", maybe(&text())),
        ("class?", maybe(&of("HardwareClass"))),
        ("rate", count()),
        ("compute_micro_usd", count()),
        ("from_ms?", count()),
        ("pricing?", maybe(&number())),
    ];
    let quote = [
        ("id", text()),
        ("account", text()),
        ("request", of("Request")),
        ("items", list(&of("QuoteItem"))),
        ("rate", count()),
        ("duration_factor_percent", number()),
        ("renter_fee", number()),
        ("supplier_fee", number()),
        ("compute_micro_usd", count()),
        ("fee_micro_usd", count()),
        ("total_micro_usd", count()),
        ("issued_ms", count()),
        ("expires_ms", count()),
        ("reserves_capacity", truth()),
        ("pricing?", list(&of("Pricing"))),
        ("lines?", maybe(&of("QuoteLines"))),
        ("elsewhere?", maybe(&of("ElsewhereCost"))),
        ("outlook?", maybe(&of("Outlook"))),
        ("past?", list(&of("PastItem"))),
    ];
    vec![
        ("Resources", object(&resources)),
        ("Program", object(&program)),
        ("QuoteItem", object(&item)),
        ("Quote", object(&quote)),
    ]
}

/// Prices of all hardware, here and elsewhere.
fn boards() -> Named {
    let trade = [("at_ms", count()), ("per_unit", count()), ("units_millis", count())];
    let hour = [
        ("hour", count()),
        ("supply", count()),
        ("hired", count()),
        ("trades", number()),
        ("low", count()),
        ("high", count()),
    ];
    let competitor =
        [("provider", text()), ("rate", count()), ("date", text()), ("source", text()), ("counted", truth())];
    let range = json!({ "type": "array", "description": "The cheapest and the dearest.", "minItems": 2,
        "maxItems": 2, "items": count() });
    let elsewhere =
        [("median", count()), ("prices", number()), ("range", range), ("date", text()), ("source", text())];
    let class = [
        ("class", of("HardwareClass")),
        ("simulated?", truth()),
        ("devices", number()),
        ("open_devices", number()),
        ("units_millis", count()),
        ("free_millis", count()),
        ("hired_ppm", count()),
        ("lowest_ask?", maybe(&count())),
        ("reference?", maybe(&count())),
        ("market?", maybe(&count())),
        ("trades", list(&of("Trade"))),
        ("hours", list(&of("MarketHour"))),
        ("elsewhere?", maybe(&of("Elsewhere"))),
        ("competitors", list(&of("Competitor"))),
    ];
    let point = [("model", text()), ("provider", text()), ("rate", count())];
    let feed =
        [("signer", text()), ("at_ms", count()), ("source", text()), ("points", list(&of("PricePoint")))];
    vec![
        ("Trade", object(&trade)),
        ("MarketHour", object(&hour)),
        ("Competitor", object(&competitor)),
        ("Elsewhere", object(&elsewhere)),
        ("ClassPrices", object(&class)),
        ("PricePoint", object(&point)),
        ("Feed", object(&feed)),
    ]
}

/// Reasons for every no and every wait.
fn reasons() -> Named {
    let conditions = [
        "pooled",
        "heard",
        "open",
        "simulated",
        "operator",
        "gpu_model",
        "gpu_minimum",
        "cpu_model",
        "network",
        "suppliers",
        "tags",
        "tier",
        "egress",
        "regions",
        "residency",
        "isolation",
        "reliability",
        "terms",
        "cpus",
        "memory",
        "disk",
        "gpus",
        "members",
        "spread",
        "price_cap",
        "total_cap",
    ];
    let shortfall = [
        ("wanted", number()),
        ("possible", number()),
        ("devices", number()),
        ("removed", list(&of("Removed"))),
        ("free_in_ms", maybe(&count())),
    ];
    let near = [
        ("device", text()),
        ("class", of("HardwareClass")),
        ("least_rate", count()),
        ("misses", list(&text())),
    ];
    let relaxation = [
        ("changes", list(&of("Change"))),
        ("rate", count()),
        ("total_micro_usd", count()),
        ("request", of("Request")),
    ];
    let explanation = [
        ("request", of("Request")),
        ("fits", truth()),
        ("rate?", maybe(&count())),
        ("refused?", maybe(&text())),
        ("shortfall?", maybe(&of("Shortfall"))),
        ("nearest", list(&of("NearMiss"))),
        ("relaxations", list(&of("Relaxation"))),
    ];
    vec![
        ("Condition", one_of(&conditions)),
        ("Removed", object(&[("constraint", text()), ("devices", number())])),
        ("Shortfall", object(&shortfall)),
        ("NearMiss", object(&near)),
        ("Change", object(&[("condition", of("Condition")), ("from", text()), ("to", text())])),
        ("Relaxation", object(&relaxation)),
        ("Explanation", object(&explanation)),
    ]
}

/// Why a device gets the work that it gets.
fn device_reasons() -> Named {
    let passed = [
        ("order", text()),
        ("at_ms", count()),
        ("waiting", truth()),
        ("got", truth()),
        ("why", list(&text())),
    ];
    let device = [
        ("device", text()),
        ("class", of("HardwareClass")),
        ("closed", list(&text())),
        ("leases", number()),
        ("ask_per_unit", count()),
        ("lowest_ask_per_unit?", maybe(&count())),
        ("market_per_unit?", maybe(&count())),
        ("rivals", number()),
        ("cheaper", number()),
        ("hired_ppm?", maybe(&count())),
        ("served", of("Served")),
        ("orders", list(&of("Passed"))),
        ("advice", list(&text())),
    ];
    let served = [
        ("kept", number()),
        ("lost", number()),
        ("free_since_ms?", count()),
        ("rated_fees_micro_usd?", count()),
        ("rated_stars_micro_usd?", count()),
        ("rated_ms?", count()),
    ];
    vec![("Served", object(&served)), ("Passed", object(&passed)), ("DeviceExplanation", object(&device))]
}

/// How a price is made, and what it is compared with.
fn prices() -> Named {
    let factor = [("name", text()), ("ppm", number()), ("because", text())];
    let pricing = [
        ("units_millis", count()),
        ("ask_per_unit", count()),
        ("floor_per_unit?", maybe(&count())),
        ("reference?", maybe(&of("Reference"))),
        ("factors?", list(&of("Factor"))),
        ("market_per_unit?", maybe(&count())),
        ("decided_by", one_of(&["ask", "floor", "market"])),
        ("disk_rate", count()),
        ("list_rate", count()),
        ("rate", count()),
    ];
    let lines = [
        ("compute_micro_usd", count()),
        ("disk_micro_usd", count()),
        ("paused_disk_micro_usd", count()),
        ("traffic_micro_usd", count()),
        ("discount_micro_usd", count()),
        ("fee_micro_usd", count()),
        ("tax_micro_usd", count()),
    ];
    let elsewhere = [
        ("micro_usd", count()),
        ("median_per_gpu", count()),
        ("prices", number()),
        ("date", text()),
        ("source", text()),
    ];
    vec![
        (
            "Reference",
            json!({ "type": "array", "description": "A rate and where it is from.", "minItems": 2, "maxItems": 2,
                "prefixItems": [count(), text()] }),
        ),
        ("Factor", object(&factor)),
        ("Pricing", object(&pricing)),
        ("QuoteLines", object(&lines)),
        ("ElsewhereCost", object(&elsewhere)),
    ]
}

fn devices() -> Named {
    let hardware = [
        ("cpu_model", text()),
        ("cpu_threads", number()),
        ("memory_bytes", count()),
        ("gpus", list(&of("Gpu"))),
        ("unsupported", list(&text())),
    ];
    let measured = [
        ("cpu_one_mb_s", number()),
        ("cpu_all_mb_s", number()),
        ("memory_mb_s", number()),
        ("disk_write_mb_s", number()),
        ("disk_read_mb_s", number()),
        ("network_down_mbit_s", number()),
        ("network_up_mbit_s", number()),
        ("rtt_us", number()),
        ("gpus", list(&of("GpuCheck"))),
        ("enforcement?", maybe(&text())),
    ];
    let relay_measure = [
        ("relay", text()),
        ("region?", maybe(&text())),
        ("at_ms", count()),
        ("rtt_us", number()),
        ("bandwidth?", maybe(&of("Bandwidth"))),
    ];
    let gpu_check = [("uuid", text()), ("kernel_sees", truth()), ("driver_memory_bytes?", maybe(&count()))];
    let rules = [
        ("paused?", truth()),
        ("draining?", truth()),
        ("yielding?", truth()),
        ("schedule?", list(&of("Window"))),
        ("no_egress?", truth()),
    ];
    let change = [
        ("ask_per_unit?", maybe(&count())),
        ("tags?", maybe(&list(&text()))),
        ("rules?", maybe(&of("OwnerRules"))),
        ("alternative?", maybe(&of("Alternative"))),
    ];
    let alternative = [("revenue_per_unit?", count()), ("power_micro_usd_per_kwh?", count())];
    let enrolment = [
        ("device", text()),
        ("owner", text()),
        ("endpoint", text()),
        ("network", text()),
        ("tags", list(&text())),
        ("ask_per_unit", count()),
        ("offered", of("Resources")),
        ("hardware", of("Hardware")),
    ];
    let refused = object(&[("reason", text())]);
    vec![
        ("HardwareClass", variants(&["cpu"], &[("gpu", text())])),
        ("Gpu", object(&[("uuid", text()), ("model", text()), ("memory_bytes", count())])),
        ("Hardware", object(&hardware)),
        ("GpuCheck", object(&gpu_check)),
        ("Measured", object(&measured)),
        ("Bandwidth", object(&[("down_mbit_s", number()), ("up_mbit_s", number())])),
        ("RelayMeasure", object(&relay_measure)),
        ("Window", object(&[("from_minute", number()), ("to_minute", number())])),
        ("OwnerRules", object(&rules)),
        ("Alternative", object(&alternative)),
        ("DeviceChange", object(&change)),
        ("Enrolment", object(&enrolment)),
        ("DeviceStage", variants(&["registered", "checking", "pooled", "archived"], &[("refused", refused)])),
    ]
}

fn orders() -> Named {
    let reason = [("reason", text())];
    let close = coded(&[
        ("renter", &[]),
        ("time", &[]),
        ("no_capacity", &[]),
        ("expired", &[]),
        ("preempted", &[]),
        ("pause_over", &[]),
        ("member_lost", &[("lease", text()), ("reason", text())]),
        ("start_failed", &reason),
        ("finished", &[("exit_code", number())]),
        ("operator", &reason),
    ]);
    let phases = [
        ("exited", object(&[("exit_code", number())])),
        ("lost", object(&reason)),
        ("removed", object(&[("wipe?", maybe(&of("WipeReceipt")))])),
    ];
    let wipe = [("files", count()), ("bytes", count()), ("processes_killed", number()), ("method", text())];
    let line = [
        ("lease", text()),
        ("device", text()),
        ("rate", count()),
        ("elapsed_ms", count()),
        ("compute_micro_usd", count()),
        ("fee_micro_usd", count()),
    ];
    let bill = [
        ("lines", list(&of("BillLine"))),
        ("compute_micro_usd", count()),
        ("fee_micro_usd", count()),
        ("total_micro_usd", count()),
        ("escrow_micro_usd", count()),
        ("refund_micro_usd", count()),
    ];
    let transfer = [
        ("id", text()),
        ("step", one_of(&["post", "hold", "post_held", "void_held"])),
        ("debit", text()),
        ("credit", text()),
        ("amount", count()),
    ];
    vec![
        ("CloseReason", close),
        ("LeasePhase", variants(&["placed", "ready"], &phases)),
        ("WipeReceipt", object(&wipe)),
        ("BillLine", object(&line)),
        ("Bill", object(&bill)),
        ("Transfer", object(&transfer)),
    ]
}

fn reports() -> Named {
    let preparing = [("percent?", maybe(&number())), ("detail", text())];
    let phases = [
        ("preparing", object(&preparing)),
        ("exited", object(&[("exit_code", number())])),
        ("lost", object(&[("reason", text())])),
        ("removed", object(&[("wipe", of("WipeReceipt"))])),
    ];
    let telemetry = [
        ("at_ms", count()),
        ("cpu_percent", number()),
        ("foreign_cpu_percent", number()),
        ("memory_used_bytes", count()),
        ("disk_free_bytes", count()),
        ("gpus", list(&of("GpuTelemetry"))),
    ];
    let gpu = [
        ("uuid", text()),
        ("utilisation_percent", number()),
        ("memory_used_bytes", count()),
        ("memory_bytes", count()),
        ("temperature_c", number()),
        ("power_mw", number()),
    ];
    let grant = [
        ("cluster", text()),
        ("endpoint", text()),
        ("account", text()),
        ("key", text()),
        ("services", list(&text())),
        ("issued_ms", count()),
        ("not_after_ms", count()),
        ("cut_ms?", count()),
    ];
    let anything = json!({ "description": "The transport's own JSON." });
    vec![
        ("BoxPhase", variants(&["starting", "ready"], &phases)),
        ("Telemetry", object(&telemetry)),
        ("GpuTelemetry", object(&gpu)),
        ("Grant", object(&grant)),
        ("MemberEndpoint", object(&[("id", text()), ("addr", anything)])),
    ]
}

#[cfg(test)]
mod tests {
    use super::terms::tests::request;
    use super::*;
    use ionet_api::sign::Grant;
    use ionet_api::worker::{BoxPhase, GpuTelemetry, MemberEndpoint, Telemetry};
    use ionet_domain::connectivity::{Bandwidth, RelayMeasure};
    use ionet_domain::device::{
        Alternative, DeviceChange, DeviceStage, Enrolment, Gpu, GpuCheck, Hardware, HardwareClass, Measured,
        OwnerRules, Resources, Window,
    };
    use ionet_domain::id::{QuoteId, TransferKind};
    use ionet_domain::ledger::{AccountKey, Owner, Step, Transfer};
    use ionet_domain::market::board::ClassPrices;
    use ionet_domain::market::competitors::{Competitor, Elsewhere, Feed, PricePoint};
    use ionet_domain::market::explain::{Change, Condition, Explanation, NearMiss, Relaxation};
    use ionet_domain::market::explain_device::{DeviceExplanation, Passed};
    use ionet_domain::market::place::{Removed, Shortfall};
    use ionet_domain::market::price::{DecidedBy, Factor, Pricing};
    use ionet_domain::market::quote::{ElsewhereCost, Outlook};
    use ionet_domain::market::record::{Hour, Served, Trade};
    use ionet_domain::market::request::EnvironmentRef;
    use ionet_domain::market::{Program, Quote, QuoteItem};
    use ionet_domain::money::BasisPoints;
    use ionet_domain::order::{Bill, BillLine, CloseReason, LeasePhase, WipeReceipt};
    use ionet_domain::tunnel::Services;
    use ionet_domain::{
        Address, Asset, DeviceId, EndpointId, KeyId, LeaseId, OrderId, Rate, Refusal, TransferId,
    };
    use serde::Serialize;
    use std::collections::{BTreeMap, BTreeSet};

    /// Why a value is not what a schema says; the words of the schemas above and no others.
    fn fault(schemas: &BTreeMap<String, Value>, schema: &Value, value: &Value) -> Option<String> {
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            let found = schemas.get(name).unwrap_or_else(|| panic!("no schema {name}"));
            return fault(schemas, found, value).map(|fault| format!("{name}: {fault}"));
        }
        if let Some(options) = schema["oneOf"].as_array() {
            let faults: Vec<_> = options.iter().map(|option| fault(schemas, option, value)).collect();
            let fitting = faults.iter().filter(|fault| fault.is_none()).count();
            return (fitting != 1).then(|| format!("{fitting} options fit {value}: {faults:?}"));
        }
        let wrong = match schema["type"].as_str() {
            None => false,
            Some("null") => !value.is_null(),
            Some("string") => !value.is_string(),
            Some("boolean") => !value.is_boolean(),
            Some("integer") => !value.is_i64() && !value.is_u64(),
            Some("array") => {
                let items = value.as_array()?;
                return items.iter().find_map(|item| fault(schemas, &schema["items"], item));
            }
            Some("object") => return object_fault(schemas, schema, value),
            other => panic!("unknown type {other:?}"),
        };
        let unlisted = schema["enum"].as_array().is_some_and(|words| !words.contains(value));
        (wrong || unlisted).then(|| format!("{value} is not {schema}"))
    }

    fn object_fault(schemas: &BTreeMap<String, Value>, schema: &Value, value: &Value) -> Option<String> {
        let Some(fields) = value.as_object() else { return Some(format!("{value} is no object")) };
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let missing = required.iter().find(|name| !fields.contains_key(name.as_str().unwrap_or_default()));
        if let Some(name) = missing {
            return Some(format!("{name} is missing"));
        }
        fields.iter().find_map(|(name, field)| match schema["properties"].get(name) {
            Some(property) => fault(schemas, property, field).map(|fault| format!("{name}: {fault}")),
            None if schema["additionalProperties"] == Value::Bool(false) => {
                Some(format!("{name} is undescribed"))
            }
            None => None,
        })
    }

    pub(super) struct Check(pub(super) BTreeMap<String, Value>);

    impl Check {
        /// The value, and as it shows every field, nothing of its description must be missing in it.
        pub(super) fn full(&self, name: &str, value: impl Serialize) {
            let value = serde_json::to_value(value).unwrap();
            assert_eq!(fault(&self.0, &of(name), &value), None);
            let described = self.0[name]["properties"].as_object().cloned().unwrap_or_default();
            for field in described.keys() {
                assert!(value.get(field).is_some(), "{name}.{field} is described and not there: {value}");
            }
        }

        pub(super) fn each<T: Serialize>(&self, name: &str, values: &[T]) {
            for value in values {
                assert_eq!(fault(&self.0, &of(name), &serde_json::to_value(value).unwrap()), None);
            }
        }
    }

    fn quote() -> Quote {
        let item = QuoteItem {
            device: Some(DeviceId::from_parts(1, 2)),
            class: Some(HardwareClass::Gpu("A".into())),
            rate: Rate(1),
            compute_micro_usd: 2,
            from_ms: 3,
            pricing: Some(0),
        };
        Quote {
            id: QuoteId::from_parts(1, 2),
            account: Address([1; 32]),
            request: request(),
            items: vec![item],
            rate: Rate(1),
            duration_factor_percent: 90,
            renter_fee: BasisPoints(25),
            supplier_fee: BasisPoints(25),
            compute_micro_usd: 1,
            fee_micro_usd: 1,
            total_micro_usd: 2,
            issued_ms: 1,
            expires_ms: 2,
            reserves_capacity: false,
            pricing: vec![pricing()],
            lines: Some(Box::default()),
            elsewhere: Some(Box::new(ElsewhereCost {
                micro_usd: 1,
                median_per_gpu: Rate(1),
                prices: 2,
                date: "2026-03".into(),
                source: "s".into(),
            })),
            outlook: Some(Box::new(Outlook { now_rate: Some(Rate(1)), room_in_ms: Some(1) })),
            past: vec![upkeep::tests::past()],
        }
    }

    fn pricing() -> Pricing {
        let factor = Factor { name: "load".into(), ppm: 1, because: "b".into() };
        Pricing {
            units_millis: 1000,
            ask_per_unit: Rate(1),
            floor_per_unit: Some(Rate(1)),
            reference: Some((Rate(1), "s".into())),
            factors: vec![factor],
            market_per_unit: Some(Rate(1)),
            decided_by: DecidedBy::Market,
            disk_rate: Rate(0),
            list_rate: Rate(2),
            rate: Rate(1),
        }
    }

    fn class_prices() -> ClassPrices {
        let (date, source) = ("2026-03".to_owned(), "s".to_owned());
        let range = (Rate(1), Rate(2));
        let elsewhere =
            Elsewhere { median: Rate(1), prices: 1, range, date: date.clone(), source: source.clone() };
        let provider = "p".into();
        ClassPrices {
            class: HardwareClass::Gpu("A".into()),
            simulated: true,
            devices: 1,
            open_devices: 1,
            units_millis: 1,
            free_millis: 1,
            hired_ppm: 1,
            lowest_ask: Some(Rate(1)),
            reference: Some(Rate(1)),
            market: Some(Rate(1)),
            trades: vec![Trade { at_ms: 1, per_unit: Rate(1), units_millis: 1 }],
            hours: vec![Hour::default()],
            elsewhere: Some(elsewhere),
            competitors: vec![Competitor { provider, rate: Rate(1), date, source, counted: true }],
        }
    }

    fn explanation() -> Explanation {
        let change = Change { condition: Condition::Tier, from: "a".into(), to: "b".into() };
        let removed = vec![Removed { constraint: "c".into(), devices: 1 }];
        Explanation {
            request: request(),
            fits: false,
            rate: Some(Rate(1)),
            refused: Some("r".into()),
            shortfall: Some(Shortfall { wanted: 1, possible: 0, devices: 1, removed, free_in_ms: Some(1) }),
            nearest: vec![NearMiss {
                device: DeviceId::from_parts(1, 2),
                class: HardwareClass::Cpu,
                least_rate: Rate(1),
                misses: vec!["m".into()],
            }],
            relaxations: vec![Relaxation {
                changes: vec![change],
                rate: Rate(1),
                total_micro_usd: 1,
                request: request(),
            }],
        }
    }

    fn device_explanation() -> DeviceExplanation {
        let order = OrderId::from_parts(1, 2);
        DeviceExplanation {
            device: DeviceId::from_parts(1, 2),
            class: HardwareClass::Cpu,
            closed: vec!["c".into()],
            leases: 1,
            ask_per_unit: Rate(1),
            lowest_ask_per_unit: Some(Rate(1)),
            market_per_unit: Some(Rate(1)),
            rivals: 1,
            cheaper: 1,
            hired_ppm: Some(1),
            served: Served::default(),
            orders: vec![Passed { order, at_ms: 1, waiting: true, got: false, why: vec!["w".into()] }],
            advice: vec!["a".into()],
        }
    }

    #[test]
    fn the_markets_types_are_described_as_they_are() {
        let check = Check(all().collect());
        check.full("Resources", Resources { gpu_share_millis: Some(500), ..Resources::default() });
        check.full("Request", request());
        check.full("Quote", quote());
        check.full("Pricing", pricing());
        check.full("QuoteLines", ionet_domain::market::quote::Lines::default());
        check.full("ClassPrices", class_prices());
        check.full("Explanation", explanation());
        check.full("DeviceExplanation", device_explanation());
        let point = PricePoint { model: "m".into(), provider: "p".into(), rate: Rate(1) };
        let feed = Feed { signer: Address([1; 32]), at_ms: 1, source: "s".into(), points: vec![point] };
        check.full("Feed", feed);
        let environment = Some(EnvironmentRef("ray@sha256:0".into()));
        let env = BTreeMap::from([("A".to_owned(), "b".to_owned())]);
        let allow = BTreeSet::from(["pypi.org:443".parse().unwrap()]);
        check.full("Program", Program { argv: vec!["x".into()], env, environment, jupyter: true, allow });
        check.each("Asset", &[Asset::Io, Asset::Iosd, Asset::Usdc]);
        check.each("Scope", &ionet_domain::account::Scope::ALL);
    }

    #[test]
    fn the_devices_types_are_described_as_they_are() {
        let check = Check(all().collect());
        let gpu = Gpu { uuid: "u".into(), model: "m".into(), memory_bytes: 1 };
        let hardware = Hardware { gpus: vec![gpu], unsupported: vec!["x".into()], ..Hardware::default() };
        let seen = GpuCheck { uuid: "u".into(), kernel_sees: true, driver_memory_bytes: Some(1) };
        let rules = OwnerRules {
            schedule: vec![Window { from_minute: 1, to_minute: 2 }],
            no_egress: true,
            ..OwnerRules::default()
        };
        let bandwidth = Some(Bandwidth { down_mbit_s: 1, up_mbit_s: 2 });
        let measure =
            RelayMeasure { relay: "r".into(), region: Some("e".into()), at_ms: 1, rtt_us: 2, bandwidth };
        check.full("RelayMeasure", measure);
        check.full("Measured", Measured { gpus: vec![seen], enforcement: None, ..Measured::default() });
        let (ask_per_unit, tags) = (Some(Rate(1)), Some(BTreeSet::from(["t".to_owned()])));
        let alternative = Some(Alternative::default());
        let change = DeviceChange { ask_per_unit, tags, rules: Some(rules), alternative };
        check.full("DeviceChange", change);
        check.full(
            "Enrolment",
            Enrolment {
                device: DeviceId::from_parts(1, 2),
                owner: Address([1; 32]),
                endpoint: EndpointId([2; 32]),
                network: "n".into(),
                tags: BTreeSet::new(),
                ask_per_unit: Rate(1),
                offered: Resources::default(),
                hardware,
                simulated: false,
            },
        );
        let refused = DeviceStage::Refused { reason: "r".into() };
        check.each(
            "DeviceStage",
            &[
                DeviceStage::Registered,
                DeviceStage::Checking,
                DeviceStage::Pooled,
                refused,
                DeviceStage::Archived,
            ],
        );
        check.each("HardwareClass", &[HardwareClass::Cpu, HardwareClass::Gpu("A".into())]);
    }

    #[test]
    fn the_orders_types_are_described_as_they_are() {
        let check = Check(all().collect());
        let lease = LeaseId { order: OrderId::from_parts(1, 2), n: 0 };
        let device = DeviceId::from_parts(1, 2);
        let line =
            BillLine { lease, device, rate: Rate(1), elapsed_ms: 2, compute_micro_usd: 3, fee_micro_usd: 4 };
        check.full(
            "Bill",
            Bill {
                lines: vec![line],
                compute_micro_usd: 1,
                fee_micro_usd: 1,
                total_micro_usd: 2,
                escrow_micro_usd: 3,
                refund_micro_usd: 1,
            },
        );
        let account = |owner| AccountKey { owner, asset: Asset::Iosd };
        let id = TransferId { scope: 1, kind: TransferKind::Send, n: 0 };
        let (debit, credit) = (account(Owner::World), account(Owner::Fees));
        for step in [Step::Post, Step::Hold, Step::PostHeld, Step::VoidHeld] {
            check.full("Transfer", Transfer { id, step, debit, credit, amount: 1 });
        }
        let reason = || "r".to_owned();
        let reasons = [
            CloseReason::Renter,
            CloseReason::Time,
            CloseReason::NoCapacity,
            CloseReason::Expired,
            CloseReason::Preempted,
            CloseReason::PauseOver,
            CloseReason::MemberLost { lease, reason: reason() },
            CloseReason::StartFailed { reason: reason() },
            CloseReason::Finished { exit_code: -1 },
            CloseReason::Operator { reason: reason() },
        ];
        check.each("CloseReason", &reasons);
        let wipe = Some(WipeReceipt::default());
        let phases = [
            LeasePhase::Placed,
            LeasePhase::Ready,
            LeasePhase::Exited { exit_code: 1 },
            LeasePhase::Lost { reason: reason() },
            LeasePhase::Removed { wipe },
            LeasePhase::Removed { wipe: None },
        ];
        check.each("LeasePhase", &phases);
        check.each("Refusal", &[Refusal::QuoteNotYours, Refusal::QuoteExpired { ago_ms: 1 }]);
    }

    #[test]
    fn the_workers_reports_are_described_as_they_are() {
        let check = Check(all().collect());
        let gpu = GpuTelemetry {
            uuid: "u".into(),
            utilisation_percent: 1,
            memory_used_bytes: 2,
            memory_bytes: 3,
            temperature_c: 4,
            power_mw: 5,
        };
        check.full("Telemetry", Telemetry { gpus: vec![gpu], ..Telemetry::default() });
        let (cluster, endpoint) = (OrderId::from_parts(1, 2), EndpointId([2; 32]));
        let (account, key) = (Address([3; 32]), Some(KeyId::from_parts(1, 2)));
        let (services, issued_ms, not_after_ms, cut_ms) = (Services::All, 1, 2, Some(3));
        check.full(
            "Grant",
            Grant { cluster, endpoint, account, key, services, issued_ms, not_after_ms, cut_ms },
        );
        check.full("MemberEndpoint", MemberEndpoint { id: endpoint, addr: json!({}) });
        let phases = [
            BoxPhase::Preparing { percent: None, detail: "d".into() },
            BoxPhase::Starting,
            BoxPhase::Ready,
            BoxPhase::Exited { exit_code: 1 },
            BoxPhase::Lost { reason: "r".into() },
            BoxPhase::Removed { wipe: WipeReceipt::default() },
        ];
        check.each("BoxPhase", &phases);
    }

    #[test]
    fn every_mention_is_of_a_field_that_is_there() {
        let whole: Value = serde_json::from_str(&super::super::openapi_json()).unwrap();
        for (owner, field, schema) in mentions() {
            let mut found = whole["components"]["schemas"][owner]["properties"][field].clone();
            if let Some(found) = found.as_object_mut() {
                found.remove("description");
            }
            assert_eq!(found, schema, "{owner}.{field}");
        }
    }
}
