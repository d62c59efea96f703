//! Addresses, routes and routers of a testbed.
//!
//! The internet is one machine that forwards; every other one has a wire to it with addresses of TEST-NET-3 to itself,
//! and so does the router of each site, or the provider's router before it. Workers sit on a bridge of their router. A
//! testbed has IPv4 or IPv6, never both. Not here: what runs on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::file::{Family, Nat};
use super::host::Host;
use super::line::Quality;
use super::wire::{End, Wire};
use crate::Result;

/// The device at a machine's end of its wire.
pub const WAN: &str = "wan";
/// The bridge of a router.
const LAN: &str = "lan";
/// A NAT forgets a UDP mapping after this, as many home routers do.
const UDP_MAPPING_S: u32 = 30;
/// The port of a carrier's bridge that the site's router is at.
const CARRIER_PORT: u8 = 100;

impl Family {
    /// The flag of `ip`.
    fn flag(self) -> &'static str {
        match self {
            Self::Ipv4 => "-4",
            Self::Ipv6 => "-6",
        }
    }

    /// The length of the prefix of a wire: its two ends and no others.
    fn wire_prefix(self) -> u8 {
        match self {
            Self::Ipv4 => 30,
            Self::Ipv6 => 112,
        }
    }

    /// What is said with a new address so that it can be used at once.
    fn at_once(self) -> &'static str {
        match self {
            Self::Ipv4 => "",
            Self::Ipv6 => "nodad",
        }
    }
}

/// Which wire, and how it is.
#[derive(Debug, Clone, Copy)]
pub struct Laid {
    /// Its number: every wire's is another.
    pub number: u8,
    /// What addresses it has.
    pub family: Family,
    /// The longest packet.
    pub mtu: u32,
    /// Away from the machine, and towards it.
    pub qualities: [Quality; 2],
    /// Of its chance.
    pub seed: u64,
}

/// The two addresses of the wire of this number: the internet's end, the machine's end.
pub fn wire_addresses(number: u8, family: Family) -> [IpAddr; 2] {
    [1, 2].map(|end| match family {
        Family::Ipv4 => Ipv4Addr::new(203, 0, 113, 4 * number + end).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, number.into(), end.into()).into(),
    })
}

/// The address that the machine's end of a wire has after this many changes; TEST-NET-1.
pub fn changed_address(number: u8, changes: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 4 * number + changes % 4)
}

/// The device at the internet's end of a wire.
pub fn internet_device(number: u8) -> String {
    format!("to-{number}")
}

/// The network behind a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lan {
    /// The router's address in it.
    pub router: IpAddr,
    prefix: u8,
    family: Family,
}

impl Lan {
    /// The network of a site.
    pub fn of_site(site: u8, nat: Nat, family: Family) -> Self {
        let (router, prefix) = match (family, nat) {
            (Family::Ipv6, _) => (Ipv6Addr::new(0x2001, 0xdb8, 1, site.into(), 0, 0, 0, 1).into(), 64),
            // Public: sixteen addresses of TEST-NET-2.
            (Family::Ipv4, Nat::None) => (Ipv4Addr::new(198, 51, 100, 16 * site + 1).into(), 28),
            (Family::Ipv4, _) => (Ipv4Addr::new(192, 168, 10 + site, 1).into(), 24),
        };
        Self { router, prefix, family }
    }

    /// The network between a site's router and its provider's.
    pub fn of_carrier(site: u8) -> Self {
        Self { router: Ipv4Addr::new(100, 64, site, 1).into(), prefix: 24, family: Family::Ipv4 }
    }

    /// The address of a machine, counted from 1.
    pub fn host(&self, number: u8) -> IpAddr {
        match self.router {
            IpAddr::V4(router) => Ipv4Addr::from(u32::from(router) + u32::from(number)).into(),
            IpAddr::V6(router) => Ipv6Addr::from(u128::from(router) + u128::from(number)).into(),
        }
    }

    fn network(&self) -> String {
        let prefix = u32::from(self.prefix);
        let network: IpAddr = match self.router {
            IpAddr::V4(router) => Ipv4Addr::from(u32::from(router) & (u32::MAX << (32 - prefix))).into(),
            IpAddr::V6(router) => Ipv6Addr::from(u128::from(router) & (u128::MAX << (128 - prefix))).into(),
        };
        format!("{network}/{prefix}")
    }
}

/// Makes the internet forward.
pub fn set_up_internet(internet: &Host) -> Result<()> {
    internet.run(FORWARD).map(drop)
}

const FORWARD: &str = "echo 1 > /proc/sys/net/ipv4/ip_forward
[ ! -e /proc/sys/net/ipv6/conf/all/forwarding ] || echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";

/// Lays a wire from a machine to the internet and sends everything that way.
pub fn attach(internet: &Host, host: &Host, laid: &Laid) -> Result<Wire> {
    let Laid { number, family, mtu, .. } = *laid;
    let device = internet_device(number);
    let ends = [End { pid: host.pid, device: WAN }, End { pid: internet.pid, device: &device }];
    let wire = Wire::start(ends, laid.qualities, laid.seed)?;
    let [near, far] = wire_addresses(number, family).map(|end| format!("{end}/{}", family.wire_prefix()));
    let (ip, at_once) = (format!("ip {}", family.flag()), family.at_once());
    internet
        .run(&format!("ip link set {device} mtu {mtu} up; {ip} addr add {near} dev {device} {at_once}"))?;
    host.run(&format!(
        "ip link set {WAN} mtu {mtu} up; {ip} addr add {far} dev {WAN} {at_once}
         {ip} route add default dev {WAN}"
    ))?;
    Ok(wire)
}

/// Makes a router of a machine that is attached already.
pub fn set_up_router(router: &Host, lan: &Lan, nat: Nat) -> Result<()> {
    let Lan { router: address, prefix, family } = lan;
    router.run(&format!(
        "ip link add {LAN} type bridge; ip addr add {address}/{prefix} dev {LAN} {}; ip link set {LAN} up
         {FORWARD}",
        family.at_once()
    ))?;
    let rules = match (nat, family) {
        (Nat::None, _) => return Ok(()),
        (_, Family::Ipv4) => translating(nat),
        (_, Family::Ipv6) => filtering(nat),
    };
    router.run(&format!(
        "[ ! -e /proc/sys/net/netfilter/nf_conntrack_udp_timeout ] ||
           echo {UDP_MAPPING_S} > /proc/sys/net/netfilter/nf_conntrack_udp_timeout
         nft -f - <<'END'\n{rules}END"
    ))?;
    Ok(())
}

/// Tells the internet which wire a network with public addresses is behind.
pub fn route_to(internet: &Host, lan: &Lan, number: u8) -> Result<()> {
    let (flag, device) = (lan.family.flag(), internet_device(number));
    internet.run(&format!("ip {flag} route add {} dev {device}", lan.network())).map(drop)
}

/// Connects a worker's machine to its router's bridge.
pub fn join_lan(router: &Host, host: &Host, worker: u8, lan: &Lan) -> Result<()> {
    join(router, host, ("eth0", worker), lan)
}

/// Connects a site's router to its provider's.
pub fn join_carrier(carrier: &Host, router: &Host, lan: &Lan) -> Result<()> {
    join(carrier, router, (WAN, CARRIER_PORT), lan)
}

fn join(router: &Host, host: &Host, (device, number): (&str, u8), lan: &Lan) -> Result<()> {
    let (address, port) = (lan.host(number), format!("port-{number}"));
    let Lan { router: gateway, prefix, family } = lan;
    router.run(&format!(
        "ip link add {port} type veth peer name {device} netns {}; ip link set {port} master {LAN} up",
        host.pid
    ))?;
    host.run(&format!(
        "ip link set {device} up; ip addr add {address}/{prefix} dev {device} {}
         ip {} route add default via {gateway}",
        family.at_once(),
        family.flag()
    ))?;
    Ok(())
}

/// Gives the machine's end of a wire another address in place of what it has, as a provider does. The kernel forgets what
/// was translated to an old one.
pub fn change_address(internet: &Host, host: &Host, number: u8, new: Ipv4Addr) -> Result<()> {
    let device = internet_device(number);
    internet.run(&format!("ip route replace {new}/32 dev {device}"))?;
    host.run(&format!(
        "ip -4 addr flush dev {WAN}; ip addr add {new}/32 dev {WAN}; ip route replace default dev {WAN}"
    ))?;
    Ok(())
}

/// From now on nothing passes between these wires, but everything between each and all others; without any, everything
/// passes again.
pub fn keep_apart(internet: &Host, pairs: &[[u8; 2]]) -> Result<()> {
    let drop = |[from, to]: [u8; 2]| {
        format!("iifname {} oifname {} drop\n", internet_device(from), internet_device(to))
    };
    let both = |[one, other]: &[u8; 2]| drop([*one, *other]) + &drop([*other, *one]);
    let rules: String = pairs.iter().map(both).collect();
    internet
        .run(&format!(
            "nft -f - <<'END'
table inet apart
delete table inet apart
table inet apart {{ chain passing {{ type filter hook forward priority filter;
{rules}}}
}}
END"
        ))
        .map(std::mem::drop)
}

/// What a router does, for nft. A plain masquerade keeps the source port where it can, so a mapping is the same for all
/// peers; a random one is another for each.
fn translating(nat: Nat) -> String {
    let masquerade = if nat == Nat::Symmetric { "masquerade fully-random" } else { "masquerade" };
    // Who was last seen behind a port gets whatever comes for it.
    let (learn, forward) = match nat {
        Nat::FullCone => (
            format!("oifname {WAN} meta l4proto udp update @mappings {{ udp sport : ip saddr }}"),
            format!("iifname {WAN} meta l4proto udp dnat to udp dport map @mappings"),
        ),
        _ => (String::new(), String::new()),
    };
    format!(
        "table ip router {{
           map mappings {{ type inet_service : ipv4_addr; flags dynamic, timeout; timeout {UDP_MAPPING_S}s; size 4096; }}
           chain inbound {{ type nat hook prerouting priority dstnat; {forward}
           }}
           chain outbound {{ type nat hook postrouting priority srcnat; oifname {WAN} {masquerade}
           }}
           {}
         }}
",
        passing(nat, &learn, "icmp type echo-request accept")
    )
}

/// A router without translation, which lets in what was asked for.
fn filtering(nat: Nat) -> String {
    format!("table ip6 router {{\n{}\n}}\n", passing(nat, "", "meta l4proto ipv6-icmp accept"))
}

fn passing(nat: Nat, learn: &str, own: &str) -> String {
    let no_udp = if nat == Nat::UdpBlocked { "meta l4proto udp drop" } else { "" };
    format!(
        "chain passing {{ type filter hook forward priority filter; policy drop;
           {no_udp}
           {learn}
           ct state established,related accept
           ct status dnat accept
           iifname {LAN} oifname {WAN} accept
         }}
         chain own {{ type filter hook input priority filter; policy drop;
           iifname {{ lo, {LAN} }} accept
           ct state established,related accept
           {own}
         }}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_an_address_of_its_own() {
        let mut all = Vec::new();
        for family in [Family::Ipv4, Family::Ipv6] {
            all.extend((0..60).flat_map(|number| wire_addresses(number, family)));
        }
        all.extend((0..60).flat_map(|number| (0..4).map(move |n| IpAddr::from(changed_address(number, n)))));
        let nats = [Nat::None, Nat::Cone].map(|nat| (nat, Family::Ipv4));
        for site in 0..15 {
            let lans = nats.into_iter().chain([(Nat::Cone, Family::Ipv6)]);
            let lans = lans.map(|(nat, family)| Lan::of_site(site, nat, family));
            for lan in lans.chain([Lan::of_carrier(site)]) {
                all.extend((0..=12).map(|worker| lan.host(worker)));
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(Lan::of_site(2, Nat::None, Family::Ipv4).network(), "198.51.100.32/28");
        assert_eq!(Lan::of_site(2, Nat::None, Family::Ipv6).network(), "2001:db8:1:2::/64");
    }
}
