//! Which addresses this machine has.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
};

/// The addresses of all interfaces that are up, without loopback and link-local ones.
pub fn own() -> BTreeSet<IpAddr> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    let mut own = BTreeSet::new();
    // SAFETY: the call writes a list to `first`, or fails.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return own;
    }
    let mut next = first;
    // SAFETY: the list's nodes and the addresses that they point at live until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        let is_up = entry.ifa_flags & u32::try_from(libc::IFF_UP).unwrap_or(0) != 0;
        own.extend(address(entry).filter(|address| is_up && is_reachable(address)));
    }
    // SAFETY: `first` is the list that was made above.
    unsafe { libc::freeifaddrs(first) };
    own
}

fn address(entry: &libc::ifaddrs) -> Option<IpAddr> {
    // SAFETY: `ifa_addr` is null or points at an address whose family says how long it is.
    let family = i32::from(unsafe { entry.ifa_addr.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: of this family it is a `sockaddr_in`.
            let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: of this family it is a `sockaddr_in6`.
            let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}
