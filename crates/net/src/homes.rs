//! A node's two home relays: it can be reached through either, and the loss of one is soon made up for.
//!
//! The QUIC library keeps one home relay, the nearest, and forgets any other that it has not sent to for a minute. So
//! that a second one holds a connection too, a packet for nobody is sent through it now and then; the node's address
//! names both. When the home is lost, the library is asked to look for another at once instead of at its next round.
//! A node that knows one relay has one home.

use std::{sync::Arc, time::Duration};

use iroh::{Endpoint, EndpointAddr, PublicKey, RelayConfig, RelayUrl, Watcher, endpoint::ConnectOptions};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{EndpointKey, node::ALPN_LINK};

/// The relays that a node was told of, in order of preference for its second home; one that was lost goes last.
pub(crate) type Relays = Vec<Arc<RelayConfig>>;

/// Well within the minute after which the library closes a relay's connection.
const KNOCK_EVERY: Duration = Duration::from_secs(40);
/// Long enough to connect to the relay and send once more.
const KNOCK_WAIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The second home of an endpoint that is at home in `addr`.
pub(crate) fn second<'a>(addr: &EndpointAddr, relays: &'a Relays) -> Option<&'a RelayUrl> {
    addr.relay_urls().next()?;
    relays.iter().map(|relay| &relay.url).find(|url| addr.relay_urls().all(|home| home != *url))
}

/// Keeps both homes for as long as the endpoint lives.
pub(crate) async fn keep(endpoint: Endpoint, all: watch::Sender<Relays>) {
    // Its secret is forgotten, so nobody can answer.
    let Ok(nobody) = EndpointKey::generate() else { return };
    let nobody = nobody.secret().public();
    let mut status = endpoint.home_relay_status();
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut knocked: Option<(RelayUrl, tokio::time::Instant)> = None;
    let mut was_lost = None;
    loop {
        let now = look.tick().await;
        let lost = status.get().into_iter().find(|home| !home.is_connected() && home.last_error().is_some());
        let lost = lost.map(|home| home.url().clone());
        if let Some(url) = lost.as_ref().filter(|url| was_lost.as_ref() == Some(*url)) {
            all.send_if_modified(|relays| put_last(relays, url));
            // Saying again what is known makes it measure all relays anew.
            let other = all.borrow().first().cloned();
            if let Some(other) = other.filter(|other| other.url != *url) {
                endpoint.insert_relay(other.url.clone(), other).await;
            }
        }
        was_lost = lost;
        let relays = all.borrow().clone();
        let Some(url) = second(&endpoint.addr(), &relays) else { continue };
        let is_due = |(there, at): &(RelayUrl, _)| there != url || now.duration_since(*at) >= KNOCK_EVERY;
        if knocked.as_ref().is_none_or(is_due) {
            knocked = Some((url.clone(), now));
            tokio::spawn(knock(endpoint.clone(), nobody, url.clone()));
        }
    }
}

/// Whether the order has changed.
fn put_last(relays: &mut Relays, url: &RelayUrl) -> bool {
    let at = relays.iter().position(|relay| relay.url == *url).unwrap_or(relays.len());
    let moves = at + 1 < relays.len();
    if moves {
        relays[at..].rotate_left(1);
    }
    moves
}

/// Makes the endpoint connect to a relay and be known there.
async fn knock(endpoint: Endpoint, nobody: PublicKey, url: RelayUrl) {
    let addr = EndpointAddr::new(nobody).with_relay_url(url);
    let dial = async {
        if let Ok(dialling) = endpoint.connect_with_opts(addr, ALPN_LINK, ConnectOptions::new()).await {
            let _ = dialling.await;
        }
    };
    let _ = timeout(KNOCK_WAIT, dial).await;
}
