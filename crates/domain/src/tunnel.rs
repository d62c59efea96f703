//! What a cluster offers to those who come from outside, and who may come.
//!
//! Always holds: a service has one name, the same on every wire and in every list. Not here: streams (`ionet-net`),
//! what a service is made of (`ionet-worker`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One way into a member of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// The box's output.
    Log,
    /// A TCP port in the box.
    Tcp(u16),
    /// A UDP port in the box.
    Udp(u16),
    /// A shell in the box, by SSH.
    Ssh,
    /// The box's files.
    Files,
}

/// A text that names no service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no service; expected tcp/PORT, udp/PORT, ssh, files or log")]
pub struct NoService(String);

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => f.write_str("log"),
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Ssh => f.write_str("ssh"),
            Self::Files => f.write_str("files"),
        }
    }
}

impl FromStr for Service {
    type Err = NoService;

    fn from_str(text: &str) -> Result<Self, NoService> {
        let wrong = || NoService(text.chars().take(80).collect());
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        match text.split_once('/') {
            Some(("tcp", number)) => port(number).map(Self::Tcp),
            Some(("udp", number)) => port(number).map(Self::Udp),
            None if text == "log" => Ok(Self::Log),
            None if text == "ssh" => Ok(Self::Ssh),
            None if text == "files" => Ok(Self::Files),
            _ => Err(wrong()),
        }
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Which services somebody may open: all there are, or these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Services {
    /// Whatever the cluster offers, now and later.
    All,
    /// These and no others.
    Only(BTreeSet<Service>),
}

/// How `Services::All` is written, among the names of services.
const ALL: &str = "all";

impl Services {
    /// Whether `service` is one of them.
    pub fn include(&self, service: Service) -> bool {
        match self {
            Self::All => true,
            Self::Only(services) => services.contains(&service),
        }
    }

    /// What of these `other` has too.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, services) | (services, Self::All) => services.clone(),
            (Self::Only(ours), Self::Only(theirs)) => Self::Only(ours & theirs),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Only(services) if services.is_empty())
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::All => vec![ALL.to_owned()],
            Self::Only(services) => services.iter().map(Service::to_string).collect(),
        }
    }
}

impl From<Service> for Services {
    fn from(service: Service) -> Self {
        Self::Only([service].into())
    }
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

impl FromStr for Services {
    type Err = NoService;

    /// Names with commas between them.
    fn from_str(text: &str) -> Result<Self, NoService> {
        if text == ALL {
            return Ok(Self::All);
        }
        text.split(',').map(str::trim).map(str::parse).collect::<Result<_, _>>().map(Self::Only)
    }
}

impl Serialize for Services {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

impl<'de> Deserialize<'de> for Services {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        if names == [ALL] {
            return Ok(Self::All);
        }
        let services = names.iter().map(|name| name.parse()).collect::<Result<_, _>>();
        services.map(Self::Only).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_one_name_everywhere() {
        for name in ["log", "tcp/8265", "udp/53", "ssh", "files"] {
            let service: Service = name.parse().unwrap();
            assert_eq!(service.to_string(), name);
            assert_eq!(serde_json::to_string(&service).unwrap(), format!("\"{name}\""));
        }
        for wrong in ["", "tcp", "tcp/0", "tcp/65536", "udp/-1", "sctp/9", "SSH", "all"] {
            assert!(wrong.parse::<Service>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn services_are_all_or_the_ones_named() {
        let some: Services = "ssh,tcp/80".parse().unwrap();
        let all: Services = "all".parse().unwrap();
        assert!(all.include(Service::Udp(9)) && some.include(Service::Ssh) && !some.include(Service::Log));
        assert_eq!(some.within(&all), some);
        assert_eq!(some.within(&"tcp/80,log".parse().unwrap()), Service::Tcp(80).into());
        assert!(some.within(&Service::Log.into()).is_empty());
        for services in [all, some] {
            let text = serde_json::to_string(&services).unwrap();
            assert_eq!(serde_json::from_str::<Services>(&text).unwrap(), services, "{text}");
        }
        assert!(serde_json::from_str::<Services>("[\"all\",\"ssh\"]").is_err());
    }
}
