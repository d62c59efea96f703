//! What no box ever reaches, whatever its lease's rules say: the supplier's host and what is near it.
//!
//! Always holds: an address passes only when it is a public unicast one, of no network that this host has an interface
//! in, and not one that this host is known by; the operator's own list is the only exception. Pure but for
//! [`host_nets`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ionet_domain::market::egress::Net;

/// Mail is sent from here by nobody: the port is where unsolicited mail leaves, and every provider closes it.
const SMTP: u16 = 25;

const BLOCKED_V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    // Carrier-grade NAT, and Alibaba's metadata service in it.
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Link-local with nearly every cloud's metadata service.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // Azure's platform service has a public address.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    // Protocol assignments, Oracle's metadata service and our own resolver's address among them.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    // Relays to 6to4.
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    // Multicast, reserved, broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// IPv6 outside `2000::/3` is blocked as a whole; within it, forms that carry an IPv4 address.
const BLOCKED_V6: &[(Ipv6Addr, u8)] = &[
    // Teredo and other protocol assignments.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    // 6to4.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
];
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// NAT64's well-known prefix: what counts is the IPv4 address in it.
const NAT64: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Knows which addresses are near this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Networks of the host's interfaces, and addresses that the host is known by.
    pub near: Vec<Net>,
    /// What the operator of the device allows all the same.
    pub open: Vec<Net>,
}

impl Guard {
    /// Whether a box may not reach this port of this address.
    pub fn blocks(&self, address: IpAddr, port: u16) -> bool {
        port == SMTP || port == 0 || self.blocks_address(address)
    }

    fn blocks_address(&self, address: IpAddr) -> bool {
        if self.open.iter().any(|net| net.contains(address)) {
            return false;
        }
        if self.near.iter().any(|net| net.contains(address)) {
            return true;
        }
        match address {
            IpAddr::V4(v4) => BLOCKED_V4.iter().any(|net| holds(*net, v4)),
            IpAddr::V6(v6) if holds(NAT64, v6) => {
                let [.., a, b, c, d] = v6.octets();
                self.blocks_address(Ipv4Addr::new(a, b, c, d).into())
            }
            IpAddr::V6(v6) => !holds(GLOBAL_V6, v6) || BLOCKED_V6.iter().any(|net| holds(*net, v6)),
        }
    }
}

fn holds<A: Into<IpAddr> + Copy>((first, bits): (A, u8), address: A) -> bool {
    Net::of(first.into(), bits).is_some_and(|net| net.contains(address.into()))
}

/// The networks of this host's interfaces, its own addresses among them.
pub fn host_nets() -> std::io::Result<Vec<Net>> {
    let interfaces = if_addrs::get_if_addrs()?;
    let nets = interfaces.into_iter().filter_map(|interface| match interface.addr {
        if_addrs::IfAddr::V4(v4) => net_of(v4.ip.into(), v4.netmask.to_bits().leading_ones()),
        if_addrs::IfAddr::V6(v6) => net_of(v6.ip.into(), v6.netmask.to_bits().leading_ones()),
    });
    let mut nets: Vec<Net> = nets.collect();
    nets.sort_unstable();
    nets.dedup();
    Ok(nets)
}

/// A mask of nothing would make everything near: the address alone is meant then.
fn net_of(address: IpAddr, bits: u32) -> Option<Net> {
    match u8::try_from(bits).ok()? {
        0 => Some(Net::host(address)),
        bits => Net::of(address, bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        let guard = Guard::default();
        for (address, blocked) in [
            ("8.8.8.8", false),
            ("203.0.113.9", false),
            ("198.51.100.1", false),
            ("192.0.2.1", false),
            ("0.0.0.0", true),
            ("10.1.2.3", true),
            ("100.64.0.1", true),
            ("100.100.100.200", true),
            ("127.0.0.1", true),
            ("169.254.169.254", true),
            ("168.63.129.16", true),
            ("172.16.0.1", true),
            ("172.32.0.1", false),
            ("192.0.0.1", true),
            ("192.168.1.1", true),
            ("198.18.0.1", true),
            ("224.0.0.1", true),
            ("240.0.0.1", true),
            ("255.255.255.255", true),
            ("2606:4700::1", false),
            ("2001:db8::1", false),
            ("2001:4860:4860::8888", false),
            ("::", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:8.8.8.8", true),
            ("::10.0.0.1", true),
            ("64:ff9b::127.0.0.1", true),
            ("64:ff9b::10.0.0.1", true),
            ("64:ff9b::8.8.8.8", false),
            ("64:ff9b:1::8.8.8.8", true),
            ("2002:7f00:1::", true),
            ("2001::1", true),
            ("fc00::1", true),
            ("fd00:ec2::254", true),
            ("fe80::1", true),
            ("fec0::1", true),
            ("ff02::1", true),
            ("4000::1", true),
        ] {
            assert_eq!(guard.blocks(address.parse().unwrap(), 443), blocked, "{address}");
            assert!(guard.blocks(address.parse().unwrap(), 25), "{address}");
        }
    }

    #[test]
    fn the_hosts_networks_are_blocked_and_the_operator_has_the_last_word() {
        let net = |text: &str| text.parse().unwrap();
        let mut guard = Guard { near: vec![net("203.0.113.0/24"), net("2001:db8::5")], open: vec![] };
        assert!(guard.blocks("203.0.113.9".parse().unwrap(), 80));
        assert!(guard.blocks("2001:db8::5".parse().unwrap(), 80));
        assert!(!guard.blocks("2001:db8::6".parse().unwrap(), 80));
        guard.open = vec![net("203.0.113.9"), net("10.0.0.0/8")];
        assert!(!guard.blocks("203.0.113.9".parse().unwrap(), 80));
        assert!(guard.blocks("203.0.113.8".parse().unwrap(), 80));
        assert!(!guard.blocks("10.9.9.9".parse().unwrap(), 80));
        assert!(guard.blocks("10.9.9.9".parse().unwrap(), 25));
    }

    #[test]
    fn this_hosts_own_networks_are_found() {
        let nets = host_nets().unwrap();
        assert!(nets.iter().all(|net| net.prefix_bits() > 0), "{nets:?}");
        assert!(nets.iter().any(|net| net.contains("127.0.0.1".parse().unwrap())), "{nets:?}");
    }
}
