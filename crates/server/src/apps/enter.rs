//! How a browser comes in: a ticket in a link is exchanged for a cookie.

use hyper::header::{HeaderValue, LOCATION, SET_COOKIE};
use hyper::{Method, Response, StatusCode, Uri};
use ionet_domain::OrderId;
use ionet_domain::account::ActivityKind;
use ionet_domain::order::expose::Exposure;

use super::access::{COOKIE_LIFE_MS, admitted, cookie_name};
use super::answer::{Body, Trouble, plain};
use super::{Coming, Gateway};

/// What begins so is the gateway's own, and never passed on.
pub(super) const OWN_PREFIX: &str = "/.ionet/";
/// Where a ticket is shown.
pub(super) const PATH: &str = "/.ionet/enter";

impl Gateway {
    /// Answers what is asked of the gateway itself.
    pub(super) fn own(
        &self,
        (order, exposure): (OrderId, &Exposure),
        (method, uri): (&Method, &Uri),
        who: Coming,
    ) -> Result<Response<Body>, Trouble> {
        if uri.path() != PATH {
            return Err(Trouble::NothingHere);
        }
        if method != Method::GET {
            return Err(Trouble::Method);
        }
        let query = uri.query().unwrap_or_default();
        let ticket = query.split('&').find_map(|part| part.strip_prefix("ticket=")).unwrap_or_default();
        let now_ms = self.now_ms();
        let visitor = self.apps.tickets.take(ticket, order, now_ms).ok_or(Trouble::BadTicket)?;
        let service = (exposure.kind, exposure.port);
        let admitted = self.handle.read(|view| {
            admitted(view, order, service, Some(visitor), now_ms)
                .map(|(order, exposure)| (order.account, *exposure))
        });
        let (owner, exposure) = admitted.ok_or(Trouble::NotYou)?;
        let who = Coming { account: Some(visitor.account), ..who };
        self.note(ActivityKind::ServiceReached, owner, order, "a way in to the http service", who);
        let cookie = self.apps.seal.cookie(order, &exposure, visitor, now_ms);
        Ok(self.let_in(&cookie))
    }

    fn let_in(&self, cookie: &str) -> Response<Body> {
        let (secure, life_s) = (self.apps.secure(), COOKIE_LIFE_MS / 1000);
        let only_tls = if secure { "; Secure" } else { "" };
        let name = cookie_name(secure);
        let cookie = format!("{name}={cookie}; Path=/; HttpOnly; SameSite=Lax; Max-Age={life_s}{only_tls}");
        let mut response = plain(StatusCode::SEE_OTHER, "text/plain", String::new());
        response.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
        // Base 58, digits and hex: a header's value.
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        response
    }
}
