//! Addresses, routes and routers of a testbed.
//!
//! The internet is one machine that forwards; every other one has a wire to it with four addresses of TEST-NET-3 to
//! itself, and so does the router of each site. Workers sit on a bridge of their router. Not here: what runs on them.

use std::net::Ipv4Addr;

use super::file::Nat;
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

/// The two addresses of the wire of this number: the internet's end, the machine's end.
pub fn wire_addresses(number: u8) -> [Ipv4Addr; 2] {
    [1, 2].map(|end| Ipv4Addr::new(203, 0, 113, 4 * number + end))
}

/// The network of a site: a router's address and the length of the prefix.
pub fn lan(site: u8, nat: Nat) -> (Ipv4Addr, u8) {
    match nat {
        // Public: sixteen addresses of TEST-NET-2.
        Nat::None => (Ipv4Addr::new(198, 51, 100, 16 * site + 1), 28),
        _ => (Ipv4Addr::new(192, 168, 10 + site, 1), 24),
    }
}

/// The address of a worker, counted from 1, behind a router's.
pub fn lan_host(router: Ipv4Addr, worker: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(router) + u32::from(worker))
}

/// Makes the internet forward.
pub fn set_up_internet(internet: &Host) -> Result<()> {
    internet.run("echo 1 > /proc/sys/net/ipv4/ip_forward").map(drop)
}

/// Lays a wire from a machine to the internet and sends everything that way.
pub fn attach(internet: &Host, host: &Host, number: u8, qualities: [Quality; 2], seed: u64) -> Result<Wire> {
    let device = format!("to-{number}");
    let ends = [End { pid: host.pid, device: WAN }, End { pid: internet.pid, device: &device }];
    let wire = Wire::start(ends, qualities, seed)?;
    let [near, far] = wire_addresses(number);
    // A packet with the overlay's headers must fit: nobody on the way fragments.
    internet.run(&format!("ip addr add {near} peer {far} dev {device}; ip link set {device} mtu 1500 up"))?;
    host.run(&format!(
        "ip addr add {far} peer {near} dev {WAN}; ip link set {WAN} mtu 1500 up; ip route add default via {near}"
    ))?;
    Ok(wire)
}

/// Makes a router of a machine that is attached already.
pub fn set_up_router(internet: &Host, router: &Host, number: u8, site: u8, nat: Nat) -> Result<()> {
    let (address, prefix) = lan(site, nat);
    let script = format!(
        "ip link add {LAN} type bridge; ip addr add {address}/{prefix} dev {LAN}; ip link set {LAN} up
         echo 1 > /proc/sys/net/ipv4/ip_forward"
    );
    router.run(&script)?;
    if nat == Nat::None {
        let [_, far] = wire_addresses(number);
        internet.run(&format!("ip route add {}/{prefix} via {far}", network(address, prefix)))?;
        return Ok(());
    }
    router.run(&format!(
        "[ ! -e /proc/sys/net/netfilter/nf_conntrack_udp_timeout ] ||
           echo {UDP_MAPPING_S} > /proc/sys/net/netfilter/nf_conntrack_udp_timeout
         nft -f - <<'END'\n{}END",
        rules(nat)
    ))?;
    Ok(())
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

/// Connects a worker's machine to its router's bridge.
pub fn join_lan(router: &Host, host: &Host, worker: u8, site: u8, nat: Nat) -> Result<()> {
    let (gateway, prefix) = lan(site, nat);
    let (address, port) = (lan_host(gateway, worker), format!("port-{worker}"));
    router.run(&format!(
        "ip link add {port} type veth peer name eth0 netns {}; ip link set {port} master {LAN} up",
        host.pid
    ))?;
    host.run(&format!(
        "ip addr add {address}/{prefix} dev eth0; ip link set eth0 up; ip route add default via {gateway}"
    ))?;
    Ok(())
}

/// What a router does, for nft. A plain masquerade keeps the source port where it can, so a mapping is the same for all
/// peers; a random one is another for each.
fn rules(nat: Nat) -> String {
    let masquerade = if nat == Nat::Symmetric { "masquerade fully-random" } else { "masquerade" };
    let no_udp = if nat == Nat::UdpBlocked { "meta l4proto udp drop" } else { "" };
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
           chain passing {{ type filter hook forward priority filter; policy drop;
             {no_udp}
             {learn}
             ct state established,related accept
             ct status dnat accept
             iifname {LAN} oifname {WAN} accept
           }}
           chain own {{ type filter hook input priority filter; policy drop;
             iifname {{ lo, {LAN} }} accept
             ct state established,related accept
             icmp type echo-request accept
           }}
         }}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_an_address_of_its_own() {
        let mut all = Vec::new();
        all.extend((0..60).flat_map(wire_addresses));
        for nat in [Nat::None, Nat::Cone] {
            for site in 0..15 {
                let (router, _) = lan(site, nat);
                all.extend((0..=12).map(|worker| lan_host(router, worker)));
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(network(Ipv4Addr::new(198, 51, 100, 33), 28), Ipv4Addr::new(198, 51, 100, 32));
    }
}
