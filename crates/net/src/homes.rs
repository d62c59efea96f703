//! A node's two home relays: it can be reached through either, and the loss of one is soon made up for.
//!
//! The QUIC library keeps one home relay, the nearest, and forgets any other that it has not sent to for a minute. So
//! that a second one holds a connection too, a packet for nobody is sent through it now and then; the node's address
//! names both. When the home is lost, the library is asked to look for another at once instead of at its next round.
//! A node that knows one relay has one home. Where the library finds no home, as it happens where UDP is blocked and names are
//! found slowly, the first two relays are it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use iroh::{Endpoint, EndpointAddr, PublicKey, RelayConfig, RelayUrl, Watcher, endpoint::ConnectOptions};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{EndpointKey, node::ALPN_LINK};

/// The relays that a node was told of.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    /// In order of preference for the homes that the library does not keep; one that was lost goes last.
    pub(crate) all: Vec<Arc<RelayConfig>>,
    /// The library has found no home for a while.
    is_homeless: bool,
}

impl Relays {
    /// These, in this order.
    pub(crate) fn new(all: Vec<Arc<RelayConfig>>) -> Self {
        Self { all, is_homeless: false }
    }

    /// The homes that we keep ourselves of an endpoint that is where `addr` says.
    pub(crate) fn kept<'a>(&'a self, addr: &'a EndpointAddr) -> impl Iterator<Item = &'a RelayUrl> {
        let found = addr.relay_urls().count();
        let missing = if found == 0 && !self.is_homeless { 0 } else { HOMES.saturating_sub(found) };
        let others = self.all.iter().map(|relay| &relay.url);
        others.filter(|url| addr.relay_urls().all(|home| home != *url)).take(missing)
    }
}

const HOMES: usize = 2;
/// The library's first look at the relays takes up to five seconds.
const HOMELESS_AFTER: Duration = Duration::from_secs(6);
/// Well within the minute after which the library closes a relay's connection.
const KNOCK_EVERY: Duration = Duration::from_secs(40);
/// Long enough to connect to the relay and send once more.
const KNOCK_WAIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps both homes for as long as the endpoint lives.
pub(crate) async fn keep(endpoint: Endpoint, all: watch::Sender<Relays>) {
    // Its secret is forgotten, so nobody can answer.
    let Ok(nobody) = EndpointKey::generate() else { return };
    let nobody = nobody.secret().public();
    let mut status = endpoint.home_relay_status();
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut knocked: BTreeMap<RelayUrl, Instant> = BTreeMap::new();
    let mut was_lost = None;
    let mut at_home = Instant::now();
    loop {
        let now = look.tick().await;
        let lost = status.get().into_iter().find(|home| !home.is_connected() && home.last_error().is_some());
        let lost = lost.map(|home| home.url().clone());
        if let Some(url) = lost.as_ref().filter(|url| was_lost.as_ref() == Some(*url)) {
            all.send_if_modified(|relays| put_last(&mut relays.all, url));
            // Saying again what is known makes it measure all relays anew.
            let other = all.borrow().all.first().cloned();
            if let Some(other) = other.filter(|other| other.url != *url) {
                endpoint.insert_relay(other.url.clone(), other).await;
            }
        }
        was_lost = lost;
        let addr = endpoint.addr();
        if addr.relay_urls().next().is_some() {
            at_home = now;
        }
        let is_homeless = now.duration_since(at_home) >= HOMELESS_AFTER;
        all.send_if_modified(|relays| std::mem::replace(&mut relays.is_homeless, is_homeless) != is_homeless);
        let kept: Vec<_> = all.borrow().kept(&addr).cloned().collect();
        knocked.retain(|url, at| kept.contains(url) && now.duration_since(*at) < KNOCK_EVERY);
        for url in kept {
            if let Entry::Vacant(due) = knocked.entry(url) {
                tokio::spawn(knock(endpoint.clone(), nobody, due.key().clone()));
                due.insert(now);
            }
        }
    }
}

/// Whether the order has changed.
fn put_last(relays: &mut [Arc<RelayConfig>], url: &RelayUrl) -> bool {
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
