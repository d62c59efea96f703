//! What boxes may reach outside their cluster: the mode that everybody may see ([`Egress`]) and the list that only the
//! workers need ([`Destination`]).
//!
//! Always holds: a destination has one spelling (lower case, no trailing dot, the network's first address), so that
//! lists compare as text. Not here: what is blocked whatever the rules say (`ionet-egress`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::refusal::Refusal;

/// Whether boxes may open connections out of their cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Egress {
    /// To every public address.
    #[default]
    On,
    /// To what is listed, and nothing else.
    Listed,
    /// Not at all: members only.
    Off,
}

impl Egress {
    /// Whether it is the usual mode, which is left out of what is written.
    pub fn is_on(&self) -> bool {
        *self == Self::On
    }

    /// Whether mode and list belong together, with what is wrong if not.
    pub fn check(self, allow: &BTreeSet<Destination>) -> Result<(), Refusal> {
        if allow.len() > MAX_DESTINATIONS {
            return Err(Refusal::out_of_range(
                "allow",
                format!("{} destinations", allow.len()),
                format!("at most {MAX_DESTINATIONS}"),
            ));
        }
        match (self, allow.is_empty()) {
            (Self::Listed, true) => {
                Err(Refusal::out_of_range("allow", "empty", "a destination at least, or egress off"))
            }
            (Self::On | Self::Off, false) => Err(Refusal::out_of_range(
                "egress",
                self,
                "listed, where destinations are given; nothing else is reached then",
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Listed => "listed",
            Self::Off => "off",
        })
    }
}

impl FromStr for Egress {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "on" => Ok(Self::On),
            "listed" => Ok(Self::Listed),
            "off" => Ok(Self::Off),
            _ => Err(Refusal::out_of_range("egress", cut(text), "on, listed or off")),
        }
    }
}

crate::id::serde_as_text!(Egress);

/// Most destinations of one list.
pub const MAX_DESTINATIONS: usize = 256;
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// One entry of an allow-list: `HOST[:PORT]`, where the host is a name, `*.name`, an address or a CIDR; an IPv6 one stands
/// in brackets where a port follows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Which hosts.
    pub host: Host,
    /// Only this port; every port if `None`.
    pub port: Option<u16>,
}

/// Which hosts an entry names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// This name, in lower case.
    Name(String),
    /// Every name below this one, not the name itself.
    Below(String),
    /// Every address of this network.
    Net(Net),
}

/// An address range: the first address and how many leading bits are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Net {
    first: IpAddr,
    prefix_bits: u8,
}

impl Net {
    /// The network of `prefix_bits` that `address` is in; `None` where an address has fewer bits.
    pub fn of(address: IpAddr, prefix_bits: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(v4) if prefix_bits <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if prefix_bits <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix_bits)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            _ => return None,
        };
        Some(Self { first, prefix_bits })
    }

    /// One address alone.
    pub fn host(address: IpAddr) -> Self {
        Self { first: address, prefix_bits: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::of(address, self.prefix_bits).is_some_and(|net| net == *self)
    }

    /// How many leading bits are fixed.
    pub fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }

    fn is_host(&self) -> bool {
        *self == Self::host(self.first)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, prefix_bits } = self;
        if self.is_host() { write!(f, "{first}") } else { write!(f, "{first}/{prefix_bits}") }
    }
}

impl FromStr for Net {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let parsed = match text.split_once('/') {
            None => text.parse().ok().map(Self::host),
            Some((address, bits)) => address
                .parse()
                .ok()
                .zip(bits.parse().ok())
                .and_then(|(address, bits)| Self::of(address, bits)),
        };
        parsed.ok_or_else(|| {
            Refusal::out_of_range("network", cut(text), "an address or a CIDR, such as 192.0.2.0/24")
        })
    }
}

crate::id::serde_as_text!(Net);

impl Destination {
    /// Whether it covers this address and port, by number alone.
    pub fn covers(&self, address: IpAddr, port: u16) -> bool {
        self.has_port(port) && matches!(&self.host, Host::Net(net) if net.contains(address))
    }

    /// Whether it covers this name (lower case, no trailing dot) on some port.
    pub fn names(&self, name: &str) -> bool {
        match &self.host {
            Host::Name(own) => own == name,
            Host::Below(own) => name.strip_suffix(own.as_str()).is_some_and(|rest| rest.ends_with('.')),
            Host::Net(_) => false,
        }
    }

    /// Whether it covers this port.
    pub fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Net(net), Some(port)) if net.first.is_ipv6() => return write!(f, "[{net}]:{port}"),
            (Host::Net(net), _) => write!(f, "{net}")?,
            (Host::Name(name), _) => f.write_str(name)?,
            (Host::Below(name), _) => write!(f, "*.{name}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for Destination {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (host, port) = split_port(text);
        let port = port.map(|port| port.parse().ok().filter(|port| *port > 0)).map(|port| port.ok_or(()));
        match (parse_host(host), port.transpose()) {
            (Some(host), Ok(port)) => Ok(Self { host, port }),
            _ => Err(Refusal::out_of_range(
                "destination",
                cut(text),
                "HOST or HOST:PORT with a name, *.name, an address or a CIDR; IPv6 with a port as [ADDRESS]:PORT",
            )),
        }
    }
}

crate::id::serde_as_text!(Destination);

fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, rest.strip_prefix(':').or((!rest.is_empty()).then_some("")));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

fn parse_host(text: &str) -> Option<Host> {
    if let Ok(net) = text.parse() {
        return Some(Host::Net(net));
    }
    match text.strip_prefix("*.") {
        Some(name) => normal_name(name).map(Host::Below),
        None => normal_name(text).map(Host::Name),
    }
}

/// A host name in its one spelling; `None` if it is none.
pub fn normal_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label_ok = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    // What ends in digits is a number that somebody mistyped, never a name.
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    (name.len() <= MAX_NAME_BYTES && !numeric && name.split('.').all(label_ok)).then_some(name)
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_have_one_spelling() {
        for (text, shown) in [
            ("PyPI.org", "pypi.org"),
            ("pypi.org.:443", "pypi.org:443"),
            ("*.pythonhosted.org", "*.pythonhosted.org"),
            ("203.0.113.7", "203.0.113.7"),
            ("203.0.113.7/24:80", "203.0.113.0/24:80"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("my_host", "my_host"),
        ] {
            let parsed: Destination = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<Destination>().unwrap(), parsed, "{text}");
        }
        let long = format!("{}.org", "a".repeat(64));
        for text in [
            "",
            "*",
            "*.",
            "a b",
            "http://x",
            "x:0",
            "x:70000",
            "x:",
            "1.2.3",
            "1.2.3.4/33",
            "[::1]x",
            "-x.org",
            "x..y",
            &long,
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_destination_covers_what_it_says() {
        let at = |text: &str| text.parse::<Destination>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(at("203.0.113.0/24:80").covers(ip("203.0.113.9"), 80));
        assert!(!at("203.0.113.0/24:80").covers(ip("203.0.113.9"), 81));
        assert!(!at("203.0.113.0/24").covers(ip("203.0.114.9"), 81));
        assert!(!at("0.0.0.0/0").covers(ip("2001:db8::1"), 80));
        assert!(at("::/0").covers(ip("2001:db8::1"), 80));
        assert!(at("*.example.org").names("a.b.example.org"));
        assert!(!at("*.example.org").names("example.org"));
        assert!(!at("*.example.org").names("badexample.org"));
        assert!(at("example.org:443").names("example.org"));
        assert!(!at("example.org").covers(ip("203.0.113.9"), 443));
    }

    #[test]
    fn mode_and_list_belong_together() {
        let some = BTreeSet::from(["pypi.org".parse::<Destination>().unwrap()]);
        let none = BTreeSet::new();
        for (mode, list, ok) in [
            (Egress::On, &none, true),
            (Egress::Off, &none, true),
            (Egress::Listed, &some, true),
            (Egress::On, &some, false),
            (Egress::Off, &some, false),
            (Egress::Listed, &none, false),
        ] {
            assert_eq!(mode.check(list).is_ok(), ok, "{mode} {list:?}");
            assert_eq!(mode.to_string().parse::<Egress>().unwrap(), mode);
        }
    }
}
