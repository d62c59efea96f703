//! What is looked up on the host again and again: its networks and its name servers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ionet_domain::market::egress::Net;

use crate::guard;

const DNS: u16 = 53;
/// As the C library has it.
const MAX_NAME_SERVERS: usize = 3;
/// How old what is known may be before it is looked up again.
const FRESH_MS: u64 = 5_000;

#[derive(Debug, Default)]
pub(crate) struct Host {
    /// Where its name servers are written.
    resolv_conf: PathBuf,
    looked_ms: Option<u64>,
    pub(crate) nets: Vec<Net>,
    pub(crate) name_servers: Vec<SocketAddr>,
}

impl Host {
    pub(crate) fn new(resolv_conf: PathBuf) -> Self {
        Self { resolv_conf, ..Self::default() }
    }

    /// Looks again if that was long ago; whether it did.
    pub(crate) fn look(&mut self, now_ms: u64) -> bool {
        if self.looked_ms.is_some_and(|looked_ms| now_ms < looked_ms + FRESH_MS) {
            return false;
        }
        self.looked_ms = Some(now_ms);
        match guard::host_nets() {
            Ok(nets) => self.nets = nets,
            // What was known still stands; the private ranges are blocked without it.
            Err(error) => tracing::warn!(%error, "the host's networks cannot be listed"),
        }
        self.name_servers = name_servers(&std::fs::read_to_string(&self.resolv_conf).unwrap_or_default());
        true
    }
}

/// The name servers of a `resolv.conf`; this host itself if there are none, as for every program on it.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let named = words.filter_map(|words| match words.as_slice() {
        ["nameserver", address, ..] => address.parse::<IpAddr>().ok(),
        _ => None,
    });
    let mut servers: Vec<_> = named.take(MAX_NAME_SERVERS).map(|ip| SocketAddr::new(ip, DNS)).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_reads_them() {
        let text = "# a comment\nsearch lan\nnameserver 192.0.2.1\nnameserver 2001:db8::1 # two\nnameserver fe80::1%eth0\n";
        let expected = ["192.0.2.1:53", "[2001:db8::1]:53"].map(|at| at.parse().unwrap());
        assert_eq!(name_servers(text), expected);
        assert_eq!(name_servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
