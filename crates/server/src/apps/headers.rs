//! What of a request's and an answer's headers passes, and what the gateway says itself.
//!
//! Always holds: what holds for one hop stays on it; a service never sees our cookie, our tickets or an API key, and cannot
//! be told by a visitor who he is or where he comes from; a service sets no cookie for its siblings. Not here: bodies.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};
use ionet_domain::Address;

use super::access::{cookie_name, cookies};
use super::answer::ERROR_HEADER;

/// For one hop only, whatever `Connection` says (RFC 9110, 7.6.1).
const ONE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];
const OURS_PREFIX: &str = "x-ionet-";
const ACCOUNT: HeaderName = HeaderName::from_static("x-ionet-account");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Whether a protocol change is asked for, and to which.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    asks.then(|| headers.get(header::UPGRADE).cloned())?
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn strip_one_hop(headers: &mut HeaderMap) {
    let named = tokens(headers, &header::CONNECTION).filter_map(|token| token.parse::<HeaderName>().ok());
    for name in named.collect::<Vec<_>>().iter().chain(&ONE_HOP) {
        headers.remove(name);
    }
}

/// Who a request comes from, as the service is told.
pub(super) struct From {
    pub(super) ip: IpAddr,
    pub(super) account: Option<Address>,
    pub(super) host: HeaderValue,
    pub(super) secure: bool,
}

/// Makes a request's headers those that the service gets.
pub(super) fn to_service(headers: &mut HeaderMap, from: &From) {
    strip_one_hop(headers);
    let told = |name: &&HeaderName| {
        let name = name.as_str();
        name.starts_with(OURS_PREFIX) || name.starts_with("x-forwarded-") || name.starts_with("proxy-")
    };
    let dropped: Vec<_> = headers.keys().filter(told).cloned().collect();
    let others = [header::FORWARDED, header::EXPECT, HeaderName::from_static("x-real-ip")];
    for name in dropped.iter().chain(&others) {
        headers.remove(name);
    }
    strip_our_cookie(headers);
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(FORWARDED_FOR, &from.ip.to_string());
    set(FORWARDED_PROTO, if from.secure { "https" } else { "http" });
    if let Some(account) = from.account {
        set(ACCOUNT, &account.to_string());
    }
    headers.insert(FORWARDED_HOST, from.host.clone());
    headers.insert(header::HOST, from.host.clone());
}

/// Both names are ours, whichever is in use.
fn is_ours(cookie: &str) -> bool {
    let name = cookie.split('=').next().unwrap_or_default().trim();
    [true, false].iter().any(|secure| name == cookie_name(*secure))
}

fn strip_our_cookie(headers: &mut HeaderMap) {
    let kept: Vec<_> = cookies(headers).filter(|cookie| !is_ours(cookie)).map(str::to_owned).collect();
    headers.remove(header::COOKIE);
    if let Ok(value) = HeaderValue::from_str(&kept.join("; "))
        && !kept.is_empty()
    {
        headers.insert(header::COOKIE, value);
    }
}

/// Makes an answer's headers those that the visitor gets from `host`.
pub(super) fn to_visitor(headers: &mut HeaderMap, host: &str) {
    strip_one_hop(headers);
    headers.remove(ERROR_HEADER);
    let name = host.split(':').next().unwrap_or_default();
    let set: Vec<_> =
        headers.get_all(header::SET_COOKIE).iter().filter(|line| may_set(line, name)).cloned().collect();
    headers.remove(header::SET_COOKIE);
    for line in set {
        headers.append(header::SET_COOKIE, line);
    }
}

/// Whether a service may set this cookie: not ours, and for no more than its own host.
fn may_set(line: &HeaderValue, host: &str) -> bool {
    let Ok(text) = std::str::from_utf8(line.as_bytes()) else { return false };
    let mut attributes = text.split(';').skip(1).filter_map(|attribute| attribute.split_once('='));
    let wide = attributes.any(|(name, value)| {
        let domain = value.trim().trim_start_matches('.');
        name.trim().eq_ignore_ascii_case("domain") && !domain.is_empty() && !domain.eq_ignore_ascii_case(host)
    });
    !wide && !is_ours(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn lines(map: &HeaderMap) -> Vec<(String, String)> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut lines: Vec<_> = map.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_service_gets_the_request_and_nothing_of_ours_or_of_the_hop() {
        let mut headers = map(&[
            ("host", "x.apps.localhost"),
            ("accept", "text/html"),
            ("authorization", "Bearer the-service's-own"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic x"),
            ("proxy-thing", "x"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-prefix", "/x"),
            ("x-real-ip", "1.2.3.4"),
            ("x-ionet-key", "ionet_key_1_secret"),
            ("x-ionet-account", "somebody-else"),
            ("cookie", "a=1; ionet-apps=secret; b=2"),
            ("cookie", "__Host-ionet-apps=secret;c=3"),
        ]);
        let host = HeaderValue::from_static("x.apps.localhost");
        let account = Address([7; 32]);
        let from = From { ip: [9, 9, 9, 9].into(), account: Some(account), host, secure: true };
        to_service(&mut headers, &from);
        let expected = map(&[
            ("host", "x.apps.localhost"),
            ("accept", "text/html"),
            ("authorization", "Bearer the-service's-own"),
            ("cookie", "a=1; b=2; c=3"),
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "x.apps.localhost"),
            ("x-ionet-account", &account.to_string()),
        ]);
        assert_eq!(lines(&headers), lines(&expected));
        let mut only_ours = map(&[("cookie", "ionet-apps=secret")]);
        strip_our_cookie(&mut only_ours);
        assert!(only_ours.is_empty());
    }

    #[test]
    fn a_service_sets_cookies_for_itself_only() {
        let mut headers = map(&[
            ("content-type", "text/plain"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-ionet-error", "forged"),
            ("set-cookie", "a=1; Path=/"),
            ("set-cookie", "b=2; Domain=X.apps.localhost"),
            ("set-cookie", "c=3; domain=.apps.localhost"),
            ("set-cookie", "d=4; Domain = localhost"),
            ("set-cookie", "ionet-apps=5"),
            ("set-cookie", "__Host-ionet-apps=6; Secure"),
        ]);
        to_visitor(&mut headers, "x.apps.localhost:8443");
        let expected = map(&[
            ("content-type", "text/plain"),
            ("set-cookie", "a=1; Path=/"),
            ("set-cookie", "b=2; Domain=X.apps.localhost"),
        ]);
        assert_eq!(lines(&headers), lines(&expected));
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_headers() {
        let asked = |lines| upgrade(&map(lines)).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(
            asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]),
            Some("websocket".into())
        );
        assert_eq!(asked(&[("upgrade", "websocket")]), None);
        assert_eq!(asked(&[("connection", "upgrade")]), None);
    }
}
