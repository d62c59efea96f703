//! Services of a cluster under the server's own name: which, for whom, and at which of the server's ports.
//!
//! Always holds: a cluster has one HTTP service at most, and a TCP or UDP service has a public port that no other has; a
//! raw port is public or nothing, for there is nobody to ask who comes; what is exposed ends with its order. Not here: who
//! carries the traffic (`ionet-server`), tunnels (`crate::tunnel`), for which nothing needs to be exposed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Move, Order};
use crate::id::{Address, OrderId};
use crate::refusal::Refusal;
use crate::state::State;
use crate::tunnel::Service;

/// Most accounts that one service is exposed to by name.
pub const MAX_GUESTS: usize = 64;
/// Most public ports of one cluster.
pub const MAX_PORTS: usize = 8;

/// What the server speaks on the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// HTTP and WebSocket, under the cluster's host name.
    Http,
    /// Bytes, at a public TCP port.
    Tcp,
    /// Datagrams, at a public UDP port.
    Udp,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// The cluster's own account.
    Owner,
    /// That, and the accounts named.
    Accounts,
    /// Everybody who finds it.
    Public,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Owner => "owner",
            Self::Accounts => "accounts",
            Self::Public => "public",
        })
    }
}

/// The public ports that the server has to give, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no range of ports; write FIRST-LAST, such as 20000-20099");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (first, last) = (port(first)?, port(last)?);
        if first <= last { Ok(Self { first, last }) } else { Err(wrong()) }
    }
}

/// What the renter asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// How the server speaks outside.
    pub kind: Kind,
    /// The port in the box.
    pub port: u16,
    /// The member whose box it is.
    pub slot: u32,
    /// For whom.
    pub access: Access,
    /// Whom, with [`Access::Accounts`].
    pub guests: BTreeSet<Address>,
    /// What the server has to give.
    pub ports: Option<Ports>,
}

/// One service that is exposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exposure {
    /// How the server speaks outside.
    pub kind: Kind,
    /// The port in the box.
    pub port: u16,
    /// The member whose box it is.
    pub slot: u32,
    /// For whom.
    pub access: Access,
    /// At which port of the server; none for HTTP, which goes by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_port: Option<u16>,
    /// When it was exposed so, in milliseconds since 1970: what was shown at the door before is void.
    #[serde(default)]
    pub since_ms: u64,
}

impl Exposure {
    /// What is opened in the box.
    pub fn service(&self) -> Service {
        match self.kind {
            Kind::Http | Kind::Tcp => Service::Tcp(self.port),
            Kind::Udp => Service::Udp(self.port),
        }
    }

    /// Whether both cannot be at once: one takes the other's place.
    fn replaces(&self, other: &Self) -> bool {
        self.kind == other.kind && (self.kind == Kind::Http || self.port == other.port)
    }
}

/// All that a cluster exposes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exposed {
    /// One entry a service.
    pub services: Vec<Exposure>,
}

/// What an order exposes, and nothing where it exposes nothing.
impl Order {
    /// Its services that are exposed.
    pub fn exposures(&self) -> &[Exposure] {
        self.exposed.as_ref().map_or(&[], |exposed| &exposed.services)
    }

    /// Its HTTP service.
    pub fn web(&self) -> Option<&Exposure> {
        self.exposures().iter().find(|exposure| exposure.kind == Kind::Http)
    }

    /// Folds that a service is exposed.
    pub(crate) fn fold_exposed(&mut self, exposure: Exposure, at_ms: u64) {
        let exposed = self.exposed.get_or_insert_default();
        let exposure = Exposure { since_ms: at_ms, ..exposure };
        exposed.services.retain(|known| !exposure.replaces(known));
        exposed.services.push(exposure);
    }

    /// Folds that a service is not exposed any more.
    pub(crate) fn fold_unexposed(&mut self, kind: Kind, port: u16) {
        let Some(exposed) = &mut self.exposed else { return };
        exposed.services.retain(|known| (known.kind, known.port) != (kind, port));
        self.exposed.take_if(|exposed| exposed.services.is_empty());
    }
}

impl State {
    /// Whom an order names for its HTTP service.
    pub fn guests(&self, order: OrderId) -> &BTreeSet<Address> {
        const NOBODY: &BTreeSet<Address> = &BTreeSet::new();
        self.private.guests.get(&order).unwrap_or(NOBODY)
    }

    /// Whether somebody, or nobody known, may use an exposed service.
    pub fn admits(&self, order: &Order, exposure: &Exposure, who: Option<Address>) -> bool {
        match exposure.access {
            Access::Public => true,
            Access::Owner => who == Some(order.account),
            Access::Accounts => {
                who.is_some_and(|who| who == order.account || self.guests(order.id).contains(&who))
            }
        }
    }
}

/// How a service is exposed as asked, or why not.
///
/// # Errors
/// In words and numbers, with what would help.
pub fn expose(state: &State, order: &Order, wanted: &Wanted) -> Result<Exposure, Refusal> {
    order.may(Move::Expose)?;
    check(order, wanted)?;
    let Wanted { kind, port, slot, access, .. } = *wanted;
    let same = |known: &&Exposure| known.kind == kind && known.port == port;
    let known = order.exposures().iter().find(same);
    let unchanged = known.is_some_and(|known| known.slot == slot && known.access == access);
    if unchanged && (kind != Kind::Http || *state.guests(order.id) == wanted.guests) {
        return Err(Refusal::NoChange { what: format!("{kind} port {port} of {}", order.id) });
    }
    let public_port = match (kind, known.and_then(|known| known.public_port)) {
        (Kind::Http, _) => None,
        (_, Some(kept)) => Some(kept),
        (_, None) => Some(free_port(state, order, kind, wanted.ports)?),
    };
    Ok(Exposure { kind, port, slot, access, public_port, since_ms: 0 })
}

fn check(order: &Order, wanted: &Wanted) -> Result<(), Refusal> {
    let members = order.quote.request.members;
    if wanted.port == 0 {
        return Err(Refusal::out_of_range("port", 0, "1 to 65535"));
    }
    if wanted.slot >= members {
        return Err(Refusal::out_of_range("member", wanted.slot, format!("below {members}")));
    }
    if wanted.kind != Kind::Http && wanted.access != Access::Public {
        return Err(Refusal::Unsupported {
            what: format!("a {} port for known accounts only", wanted.kind),
            reason: "nobody can be asked who he is there".into(),
            available: "public (--public), or 'ionet tunnel', which is sealed and asks".into(),
        });
    }
    let named = wanted.guests.len();
    match wanted.access {
        Access::Accounts if !(1..=MAX_GUESTS).contains(&named) => {
            Err(Refusal::out_of_range("accounts", named, format!("1 to {MAX_GUESTS} of them")))
        }
        Access::Owner | Access::Public if named > 0 => {
            Err(Refusal::out_of_range("accounts", named, "none of them unless access is 'accounts'"))
        }
        _ => Ok(()),
    }
}

/// The lowest public port that nobody has.
fn free_port(state: &State, order: &Order, kind: Kind, ports: Option<Ports>) -> Result<u16, Refusal> {
    let own = order.exposures().iter().filter(|known| known.public_port.is_some()).count();
    if own >= MAX_PORTS {
        let limit = format!("at most {MAX_PORTS} a cluster; take one away with 'ionet expose remove'");
        return Err(Refusal::out_of_range("public ports", own + 1, limit));
    }
    let none = |reason: String| Refusal::Unsupported {
        what: format!("a public {kind} port"),
        reason,
        available: "http, or 'ionet tunnel', which needs none".into(),
    };
    let ports = ports.ok_or_else(|| none("this network gives none".into()))?;
    let all = state.orders.values().flat_map(Order::exposures).filter(|known| known.kind == kind);
    let taken: BTreeSet<u16> = all.filter_map(|known| known.public_port).collect();
    (ports.first..=ports.last).find(|port| !taken.contains(port)).ok_or_else(|| {
        let count = u32::from(ports.last) - u32::from(ports.first) + 1;
        none(format!("all {count} ports from {} to {} are taken", ports.first, ports.last))
    })
}

/// Whether a service can be taken back.
///
/// # Errors
/// If it is not exposed.
pub fn unexpose(order: &Order, kind: Kind, port: u16) -> Result<(), Refusal> {
    let is_there = order.exposures().iter().any(|known| (known.kind, known.port) == (kind, port));
    if is_there {
        return Ok(());
    }
    Err(Refusal::NoChange { what: format!("{kind} port {port} of {} is not exposed", order.id) })
}

/// The first label of a cluster's host name: its id without the prefix, in lower case (`_` may not stand in a host name).
pub fn host_label(order: OrderId) -> String {
    let text = order.to_string();
    text.split_once('_').map_or(text.as_str(), |(_, body)| body).to_lowercase()
}

/// The cluster of a host name's first label; there is one label for each id and no other.
pub fn order_of(label: &str) -> Option<OrderId> {
    let label = label.to_ascii_lowercase();
    let order: OrderId = format!("{}_{}", OrderId::PREFIX, label.to_ascii_uppercase()).parse().ok()?;
    (host_label(order) == label).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_host_label_and_back() {
        for bits in [0, 1, u128::MAX, 0x0190_1234_5678_9abc_def0_1234_5678_9abc] {
            let order = OrderId::from_bits(bits);
            let label = host_label(order);
            assert!(label.len() <= 63 && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
            assert_eq!(order_of(&label), Some(order));
            assert_eq!(order_of(&label.to_uppercase()), Some(order), "host names know no case");
        }
        // `o` and `l` read as digits in an id; as host names they would be second names of the same cluster.
        for wrong in ["", "www", "clu_0", "0000000000000000000000000o", "0000000000000000000000000l", "é"] {
            assert_eq!(order_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_range_of_ports_is_read_and_written() {
        let ports: Ports = "20000-20099".parse().unwrap();
        assert_eq!((ports.first, ports.last, ports.to_string().as_str()), (20_000, 20_099, "20000-20099"));
        for wrong in ["", "1", "0-5", "9-8", "1-65536", "a-b"] {
            assert!(wrong.parse::<Ports>().is_err(), "{wrong}");
        }
    }
}
