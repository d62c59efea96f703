//! What the ways to buy look like in the description of the API.

use super::schemas::{Named, count, maybe, number, object, tagged, text};

pub(super) fn all() -> Named {
    let waiting = [
        ("place", number()),
        ("of", number()),
        ("since_ms", count()),
        ("until_ms", count()),
        ("holds?", maybe(&number())),
        ("estimate_ms?", maybe(&count())),
        ("reason", text()),
    ];
    let ways = tagged("way", &[("on_demand", &[]), ("standing", &[("expires_ms", count())])]);
    vec![("Buy", ways), ("Waiting", object(&waiting))]
}
