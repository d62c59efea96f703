//! Who a visitor is: by a cookie that a ticket was exchanged for, by an API key, or nobody known.
//!
//! Always holds: a ticket is good once, for a minute, for one cluster; a cookie is good for one cluster, one account and the
//! exposure as it was when it was given, for twelve hours, and whether the account is still admitted is asked anew with
//! every request. Tickets are in memory: a restart voids them and loses nothing else. Not here: what is told to whom.

use std::collections::BTreeMap;
use std::sync::Mutex;

use hyper::HeaderMap;
use hyper::header::COOKIE;
use ionet_api::sign::{hex, unhex};
use ionet_domain::order::expose::{Exposure, Kind};
use ionet_domain::{Address, KeyId, Order, OrderId};
use ring::hmac;
use sha2::{Digest, Sha256};

use super::answer::Trouble;
use super::{Gateway, open};
use crate::view::View;

/// How long a ticket can be used.
pub(crate) const TICKET_LIFE_MS: u64 = 60_000;
/// How long a cookie is good.
pub(super) const COOKIE_LIFE_MS: u64 = 12 * 3_600_000;
/// Tickets that wait to be used.
const TICKETS_MOST: usize = 10_000;
/// The header that programs send an API key in.
pub(super) const KEY_HEADER: &str = "x-ionet-key";

/// On whose behalf somebody comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Visitor {
    pub(crate) account: Address,
    /// The API key that he came by, or asked for his ticket by: his way in ends with it.
    pub(crate) key: Option<KeyId>,
}

/// Tickets that were given and not used yet, by the hash of their text.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<BTreeMap<[u8; 32], Ticket>>);

#[derive(Debug)]
struct Ticket {
    order: OrderId,
    visitor: Visitor,
    expires_ms: u64,
}

impl Tickets {
    /// Keeps a fresh ticket, whose text nobody can guess; `false` where too many wait.
    pub(crate) fn put(&self, text: &str, order: OrderId, visitor: Visitor, now_ms: u64) -> bool {
        let mut kept = open(&self.0);
        kept.retain(|_, ticket| ticket.expires_ms > now_ms);
        let room = kept.len() < TICKETS_MOST;
        if room {
            let expires_ms = now_ms + TICKET_LIFE_MS;
            kept.insert(Sha256::digest(text).into(), Ticket { order, visitor, expires_ms });
        }
        room
    }

    /// Uses a ticket up: whoever it was made for, if it is good for this cluster now.
    pub(super) fn take(&self, text: &str, order: OrderId, now_ms: u64) -> Option<Visitor> {
        let ticket = open(&self.0).remove(&<[u8; 32]>::from(Sha256::digest(text)))?;
        (ticket.order == order && ticket.expires_ms > now_ms).then_some(ticket.visitor)
    }
}

/// What cookies are sealed with: the same after a restart.
#[derive(Debug)]
pub(super) struct Seal(hmac::Key);

impl Seal {
    /// From 32 secret bytes of the server.
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    fn said(order: OrderId, exposure: &Exposure, visitor: &str, expires_ms: u64) -> String {
        format!(
            "ionet/apps-cookie/1\n{order}\n{}/{}\n{visitor}\n{expires_ms}",
            exposure.port, exposure.since_ms
        )
    }

    /// The value of a cookie.
    pub(super) fn cookie(
        &self,
        order: OrderId,
        exposure: &Exposure,
        visitor: Visitor,
        now_ms: u64,
    ) -> String {
        let key = visitor.key.map_or_else(|| "-".to_owned(), |key| key.to_string());
        let (who, expires_ms) = (format!("{}.{key}", visitor.account), now_ms + COOKIE_LIFE_MS);
        let seal = hmac::sign(&self.0, Self::said(order, exposure, &who, expires_ms).as_bytes());
        format!("{who}.{expires_ms}.{}", hex(seal.as_ref()))
    }

    /// Whose cookie it is, if it is one of ours for this exposure and still good.
    pub(super) fn visitor(
        &self,
        order: OrderId,
        exposure: &Exposure,
        cookie: &str,
        now_ms: u64,
    ) -> Option<Visitor> {
        let mut parts = cookie.split('.');
        let (account, key, expires, seal) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let expires_ms: u64 = expires.parse().ok()?;
        let said = Self::said(order, exposure, &format!("{account}.{key}"), expires_ms);
        hmac::verify(&self.0, said.as_bytes(), &unhex(seal)?).ok()?;
        if parts.next().is_some() || expires_ms <= now_ms {
            return None;
        }
        let key = if key == "-" { None } else { Some(key.parse().ok()?) };
        Some(Visitor { account: account.parse().ok()?, key })
    }
}

/// The name of our cookie: under TLS one that no sibling host can set.
pub(super) fn cookie_name(secure: bool) -> &'static str {
    if secure { "__Host-ionet-apps" } else { "ionet-apps" }
}

/// Each `name=value` of a request's cookies.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).map(str::trim).filter(|cookie| !cookie.is_empty())
}

/// A visitor, and whether a browser brought him in by itself, at whatever page's wish.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) visitor: Visitor,
    pub(super) by_cookie: bool,
}

impl Gateway {
    /// Who comes to a cluster's HTTP service. A key that does not work is refused; a cookie that is void is none.
    pub(super) fn known(
        &self,
        order: OrderId,
        exposure: &Exposure,
        headers: &HeaderMap,
    ) -> Result<Option<Known>, Trouble> {
        if let Some(key) = headers.get(KEY_HEADER) {
            let key = key.to_str().unwrap_or_default();
            let (account, key) = crate::http::account_of_key(&self.handle, key)
                .map_err(|error| Trouble::BadKey(Box::new(error.body())))?;
            return Ok(Some(Known { visitor: Visitor { account, key: Some(key) }, by_cookie: false }));
        }
        let name = cookie_name(self.apps.secure());
        let ours = cookies(headers).filter_map(|cookie| cookie.split_once('='));
        let mut ours = ours.filter(|(known, _)| *known == name);
        let now_ms = self.now_ms();
        let visitor = ours.find_map(|(_, value)| self.apps.seal.visitor(order, exposure, value, now_ms));
        Ok(visitor.map(|visitor| Known { visitor, by_cookie: true }))
    }
}

/// Whether the way in is open to somebody now: the service is exposed so, and his key, if he came by one, still works.
pub(crate) fn admitted(
    view: &View,
    order: OrderId,
    service: (Kind, u16),
    visitor: Option<Visitor>,
    now_ms: u64,
) -> Option<(&Order, &Exposure)> {
    let state = &view.state;
    let order = state.orders.get(&order)?;
    let exposure = order.exposures().iter().find(|known| (known.kind, known.port) == service)?;
    let key_works = |visitor: &Visitor| {
        visitor.key.is_none_or(|key| {
            state.key(visitor.account, key).is_ok_and(|key| {
                key.usable(now_ms).is_ok() && key.scopes.contains(&ionet_domain::account::Scope::Rent)
            })
        })
    };
    let account = visitor.filter(key_works).map(|visitor| visitor.account);
    state.admits(order, exposure, account).then_some((order, exposure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ionet_domain::order::expose::Access;

    const EXPOSURE: Exposure = Exposure {
        kind: Kind::Http,
        port: 80,
        slot: 0,
        access: Access::Owner,
        public_port: None,
        since_ms: 7,
    };

    #[test]
    fn a_cookie_is_good_for_one_cluster_exposure_account_and_time() {
        let (seal, order) = (Seal::new(&[1; 32]), OrderId::from_bits(5));
        let key = Some(KeyId::from_bits(9));
        for visitor in
            [Visitor { account: Address([3; 32]), key }, Visitor { account: Address([3; 32]), key: None }]
        {
            let cookie = seal.cookie(order, &EXPOSURE, visitor, 1000);
            let read = |seal: &Seal, order, exposure: &Exposure, cookie: &str, now_ms| {
                seal.visitor(order, exposure, cookie, now_ms)
            };
            assert_eq!(read(&seal, order, &EXPOSURE, &cookie, 1000), Some(visitor));
            let over = 1000 + COOKIE_LIFE_MS;
            assert_eq!(read(&seal, order, &EXPOSURE, &cookie, over), None, "too late");
            assert_eq!(read(&seal, OrderId::from_bits(6), &EXPOSURE, &cookie, 1000), None, "another cluster");
            let anew = Exposure { since_ms: 8, ..EXPOSURE };
            assert_eq!(read(&seal, order, &anew, &cookie, 1000), None, "exposed anew");
            assert_eq!(read(&Seal::new(&[2; 32]), order, &EXPOSURE, &cookie, 1000), None, "another server");
            let other = cookie.replacen(&visitor.account.to_string(), &Address([4; 32]).to_string(), 1);
            for wrong in ["", "...", "a.b.c.d", &other, &cookie[..cookie.len() - 2], &format!("{cookie}.x")] {
                assert_eq!(read(&seal, order, &EXPOSURE, wrong, 1000), None, "{wrong}");
            }
        }
    }

    #[test]
    fn a_ticket_is_good_once_for_its_cluster_and_a_minute() {
        let (tickets, order) = (Tickets::default(), OrderId::from_bits(5));
        let visitor = Visitor { account: Address([3; 32]), key: None };
        assert!(tickets.put("a", order, visitor, 1));
        assert_eq!(tickets.take("b", order, 1), None, "unknown");
        assert_eq!(tickets.take("a", order, 1), Some(visitor));
        assert_eq!(tickets.take("a", order, 1), None, "used");
        assert!(tickets.put("c", order, visitor, 1) && tickets.put("d", order, visitor, 1));
        assert_eq!(tickets.take("c", OrderId::from_bits(6), 1), None, "another cluster");
        assert_eq!(tickets.take("d", order, 1 + TICKET_LIFE_MS), None, "too late");
        for n in 0..TICKETS_MOST {
            assert!(tickets.put(&n.to_string(), order, visitor, 1));
        }
        assert!(!tickets.put("one more", order, visitor, 1));
        assert!(tickets.put("one more", order, visitor, 1 + TICKET_LIFE_MS), "old ones make room");
    }
}
