//! What the ways to buy look like in the description of the API.

use super::schemas::{Named, count, maybe, number, object, of, tagged, text};

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
    let spot = [("notice_ms?", count()), ("expires_ms?", maybe(&count()))];
    let ways = [
        ("on_demand", &[][..]),
        ("standing", &[("expires_ms", count())]),
        ("spot", &spot),
        ("reserved", &[("starts_ms", count())]),
        ("flexible", &[("deadline_ms", count())]),
    ];
    let reasons = [("room", &[("order", text())][..]), ("price", &[("rate", count())])];
    vec![
        ("Buy", tagged("way", &ways)),
        ("Outlook", object(&[("now_rate?", maybe(&count())), ("room_in_ms?", maybe(&count()))])),
        ("NoticeReason", tagged("code", &reasons)),
        ("Notice", object(&[("ends_ms", count()), ("reason", of("NoticeReason"))])),
        ("Waiting", object(&waiting)),
    ]
}
