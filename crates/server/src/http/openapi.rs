//! The list of all operations, and the API's description made from it.

use axum::middleware::from_fn;
use serde_json::{Value, json};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{
    Api, accounts, clusters, course, devices, exposed, journal, layers, market, network, schemas, shares,
    terms,
};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "ionet",
        description = "The REST API of an ionet network. Times are milliseconds since 1970; money is integer \
            micro-USD or minor units. Unknown fields are refused. Errors carry a stable code and a message that \
            says what to do."
    ),
    components(schemas(ionet_api::rest::ErrorBody)),
    tags(
        (name = "network", description = "What the network is and how it does"),
        (name = "accounts", description = "Sign-in, API keys, wallets, activity"),
        (name = "devices", description = "The pool"),
        (name = "clusters", description = "Quotes, orders, tunnels"),
        (name = "market", description = "Prices here and elsewhere, and the reason for every no"),
        (name = "books", description = "The public journal, live events, the ledger")
    )
)]
struct Described;

/// Every operation. Those that take no query refuse one.
pub(super) fn routes() -> OpenApiRouter<Api> {
    let plain = OpenApiRouter::new()
        .routes(routes!(network::home))
        .routes(routes!(network::healthz))
        .routes(routes!(network::metrics))
        .routes(routes!(network::openapi))
        .routes(routes!(network::network))
        .routes(routes!(accounts::challenge))
        .routes(routes!(accounts::sign_in))
        .routes(routes!(accounts::keys, accounts::make_key))
        .routes(routes!(accounts::revoke_key))
        .routes(routes!(accounts::wallet))
        .routes(routes!(accounts::send))
        .routes(routes!(devices::enrol))
        .routes(routes!(devices::device, devices::change_device, devices::archive_device))
        .routes(routes!(devices::check_device))
        .routes(routes!(clusters::quote))
        .routes(routes!(clusters::order))
        .routes(routes!(clusters::cluster, clusters::close, course::change))
        .routes(routes!(course::quote_more))
        .routes(routes!(course::grow))
        .routes(routes!(course::shrink))
        .routes(routes!(course::replace_member))
        .routes(routes!(course::pause))
        .routes(routes!(course::resume))
        .routes(routes!(clusters::cluster_network))
        .routes(routes!(clusters::extend))
        .routes(routes!(clusters::change_egress))
        .routes(routes!(shares::share))
        .routes(routes!(shares::unshare))
        .routes(routes!(shares::grant))
        .routes(routes!(exposed::expose, exposed::exposed))
        .routes(routes!(exposed::unexpose))
        .routes(routes!(exposed::ticket))
        .routes(routes!(terms::rate))
        .routes(routes!(terms::country, terms::declare))
        .routes(routes!(terms::terms, terms::set_terms))
        .routes(routes!(terms::deny_list))
        .routes(routes!(market::feed))
        .routes(routes!(market::explain_request))
        .routes(routes!(market::explain_cluster))
        .routes(routes!(market::explain_device))
        .routes(routes!(journal::books))
        .route_layer(from_fn(layers::no_query));
    let filtered = OpenApiRouter::new()
        .routes(routes!(accounts::ledger))
        .routes(routes!(accounts::activity))
        .routes(routes!(devices::devices))
        .routes(routes!(clusters::clusters))
        .routes(routes!(market::prices))
        .routes(routes!(journal::journal))
        .routes(routes!(journal::events));
    OpenApiRouter::with_openapi(Described::openapi()).merge(plain).merge(filtered)
}

/// The description as JSON, with what the operations have in common filled in.
pub(super) fn text(openapi: &OpenApi) -> String {
    let mut whole = serde_json::to_value(openapi).unwrap_or_default();
    whole["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    whole["components"]["securitySchemes"] = json!({ "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A session's token (POST /v1/sign-in) or an API key (POST /v1/keys)."
    }});
    schemas::add(&mut whole);
    for_each_operation(&mut whole, describe_answers);
    let mut text = serde_json::to_string_pretty(&whole).unwrap_or_default();
    text.push('\n');
    text
}

fn for_each_operation(whole: &mut Value, change: impl Fn(&mut Value)) {
    let paths = whole["paths"].as_object_mut().into_iter().flat_map(serde_json::Map::values_mut);
    for operation in paths.filter_map(Value::as_object_mut).flat_map(serde_json::Map::values_mut) {
        change(operation);
    }
}

/// Every "no" has the same body; every answer has a description, which `OpenAPI` asks for.
fn describe_answers(operation: &mut Value) {
    for answer in operation["responses"].as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        if answer["description"].as_str().is_none_or(str::is_empty) {
            answer["description"] = "As asked".into();
        }
    }
    let error = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/ErrorBody" } } });
    operation["responses"]["default"] =
        json!({ "description": "Refused: the code says why", "content": error });
    if operation["security"].is_array() {
        operation["responses"]["401"] =
            json!({ "description": "Not signed in: the message says how", "content": error });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Set to write the description anew instead of comparing.
    const UPDATE: &str = "IONET_UPDATE_OPENAPI";

    #[test]
    fn the_stored_description_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let now = super::super::openapi_json();
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &now).expect("write");
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == now,
            "docs/openapi.json is not up to date; run this test with {UPDATE}=1 and look at the change"
        );
    }

    #[test]
    fn every_reference_points_somewhere() {
        let whole: serde_json::Value = serde_json::from_str(&super::super::openapi_json()).expect("json");
        let mut open = vec![&whole];
        let mut references = 0;
        while let Some(value) = open.pop() {
            if let Some(reference) = value.get("$ref").and_then(|reference| reference.as_str()) {
                let pointer = reference.trim_start_matches('#');
                assert!(whole.pointer(pointer).is_some(), "{reference} points nowhere");
                references += 1;
            }
            match value {
                serde_json::Value::Object(object) => open.extend(object.values()),
                serde_json::Value::Array(array) => open.extend(array),
                _ => {}
            }
        }
        assert!(references > 100, "{references}");
    }
}
