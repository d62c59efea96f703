//! The devices of a box's network namespace, configured by ioctl: the overlay's TUN, the one for what leaves the
//! cluster, and the loopback.
//!
//! Always holds: what is no member's address goes to the second device and so to whoever holds its descriptor; nothing
//! of the box reaches a network of the host by itself.

use std::{
    fs::OpenOptions,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    io,
    ioctl::{self, Opcode, Setter},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use crate::error::{During, Result};

const TUNSETIFF: Opcode = 0x4004_54ca;
const SIOCADDRT: Opcode = 0x890b;
const SIOCGIFINDEX: Opcode = 0x8933;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;
const SIOCSIFNETMASK: Opcode = 0x891c;
const SIOCSIFMTU: Opcode = 0x8922;

const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_UP: u16 = 0x0001;
const IFF_RUNNING: u16 = 0x0040;

/// The kernel's `struct ifreq`: a name and 24 bytes of union.
#[repr(C)]
#[derive(Clone, Copy)]
struct IfReq {
    name: [u8; 16],
    value: [u8; 24],
}

impl IfReq {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let mut request = Self { name: [0; 16], value: [0; 24] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request.value[..bytes.len()].copy_from_slice(bytes);
        request
    }

    /// With a `sockaddr_in` in the union.
    fn with_address(name: &str, ip: Ipv4Addr) -> Self {
        let mut address = [0u8; 16];
        address[..2].copy_from_slice(&AddressFamily::INET.as_raw().to_ne_bytes());
        address[4..8].copy_from_slice(&ip.octets());
        Self::new(name, &address)
    }

    /// The `sockaddr` in the union.
    fn address(&self) -> [u8; 16] {
        self.value.first_chunk().copied().unwrap_or_default()
    }
}

fn set<const OPCODE: Opcode>(fd: impl AsFd, request: IfReq) -> io::Result<()> {
    // SAFETY: every OPCODE of this module takes a pointer to a `struct ifreq`, which `IfReq` is (40
    // bytes, no invalid values), and only reads it or writes within it.
    unsafe { ioctl::ioctl(fd, Setter::<OPCODE, IfReq>::new(request)) }
}

/// Name of the overlay's interface in every box.
pub(crate) const TUN_NAME: &str = "tun0";

/// Name of the device for what leaves the cluster.
const OUT_NAME: &str = "out0";
const RTF_UP: u16 = 1;
const HOST_BITS_V6: u32 = 128;
const MEMBERS_BITS_V6: u32 = 64;

/// The kernel's `struct rtentry`.
#[repr(C)]
struct RtEntry {
    pad1: libc::c_ulong,
    destination: [u8; 16],
    gateway: [u8; 16],
    mask: [u8; 16],
    flags: u16,
    pad2: i16,
    pad3: libc::c_ulong,
    pad4: *const libc::c_void,
    metric: i16,
    device: *const libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    irtt: u16,
}

/// The kernel's `struct in6_rtmsg`.
#[repr(C)]
struct In6RtMsg {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_bits: u16,
    source_bits: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    interface: i32,
}

/// The kernel's `struct in6_ifreq`.
#[repr(C)]
struct In6IfReq {
    address: [u8; 16],
    prefix_bits: u32,
    interface: i32,
}

/// The IPv6 address that a member's traffic out of the cluster comes from, in its box: a unique local one, for nothing
/// outside ever sees it.
pub(crate) fn out_v6(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets();
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfd69, 0x6f6e, 0x6574, 0xffff, 0, 0, pair(a, b), pair(c, d))
}

/// Makes the device for what leaves the cluster, with the member's own address, and all that is no member's goes there.
pub(crate) fn open_out(device: &Path, ip: Ipv4Addr, mtu: u32) -> Result<OwnedFd> {
    let out = open_named(device, (OUT_NAME, IFF_TUN | IFF_NO_PI), ip, 32, mtu)?;
    let control = control_socket()?;
    let any = IfReq::with_address("", Ipv4Addr::UNSPECIFIED).address();
    let name = std::ffi::CString::new(OUT_NAME).unwrap_or_default();
    let route = RtEntry {
        pad1: 0,
        destination: any,
        gateway: [0; 16],
        mask: any,
        flags: RTF_UP,
        pad2: 0,
        pad3: 0,
        pad4: std::ptr::null(),
        metric: 0,
        device: name.as_ptr(),
        mtu: 0,
        window: 0,
        irtt: 0,
    };
    // SAFETY: SIOCADDRT reads a `struct rtentry`, which this is, and the name that it points to, which lives until after.
    unsafe { ioctl::ioctl(&control, Setter::<SIOCADDRT, RtEntry>::new(route)) }
        .during("make the way out of the box")?;
    // A kernel without IPv6 has no such addresses to reach.
    let _ = out_route_v6(&control, out_v6(ip));
    Ok(out)
}

fn index_of(control: &OwnedFd, name: &str) -> io::Result<i32> {
    let mut request = IfReq::new(name, &[]);
    // SAFETY: SIOCGIFINDEX reads and writes a `struct ifreq`, which `IfReq` is.
    unsafe { ioctl::ioctl(control, ioctl::Updater::<SIOCGIFINDEX, IfReq>::new(&mut request)) }?;
    let [a, b, c, d, ..] = request.value;
    Ok(i32::from_ne_bytes([a, b, c, d]))
}

fn address_v6(ip: Ipv6Addr, prefix_bits: u32, interface: i32) -> io::Result<()> {
    let six = socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let address = In6IfReq { address: ip.octets(), prefix_bits, interface };
    // SAFETY: SIOCSIFADDR of an IPv6 socket reads a `struct in6_ifreq`, which this is.
    unsafe { ioctl::ioctl(&six, Setter::<SIOCSIFADDR, In6IfReq>::new(address)) }
}

fn out_route_v6(control: &OwnedFd, ip: Ipv6Addr) -> io::Result<()> {
    let interface = index_of(control, OUT_NAME)?;
    address_v6(ip, HOST_BITS_V6, interface)?;
    let six = socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let route = In6RtMsg {
        destination: [0; 16],
        source: [0; 16],
        gateway: [0; 16],
        kind: 0,
        destination_bits: 0,
        source_bits: 0,
        metric: 1,
        info: 0,
        flags: RTF_UP.into(),
        interface,
    };
    // SAFETY: SIOCADDRT of an IPv6 socket reads a `struct in6_rtmsg`, which this is.
    unsafe { ioctl::ioctl(&six, Setter::<SIOCADDRT, In6RtMsg>::new(route)) }
}

/// Opens `device`, makes the TUN in the present network namespace and gives it its addresses. Packets have the kernel's
/// note before them (`IFF_VNET_HDR`): whoever takes the descriptor says what may be left to it.
pub(crate) fn open_tun(
    device: &Path,
    (ip, prefix): (Ipv4Addr, u8),
    ip6: Option<Ipv6Addr>,
    mtu: u32,
) -> Result<OwnedFd> {
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    let tun = open_named(device, (TUN_NAME, flags), ip, prefix, mtu)?;
    if let Some(ip6) = ip6 {
        let control = control_socket()?;
        // A kernel without IPv6 has an overlay without it.
        let _ = index_of(&control, TUN_NAME).and_then(|index| address_v6(ip6, MEMBERS_BITS_V6, index));
    }
    Ok(tun)
}

fn open_named(
    device: &Path,
    (name, flags): (&str, u16),
    ip: Ipv4Addr,
    prefix: u8,
    mtu: u32,
) -> Result<OwnedFd> {
    let tun: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .during(format!("open {}", device.display()))?
        .into();
    set::<TUNSETIFF>(&tun, IfReq::new(name, &flags.to_ne_bytes())).during("create the TUN interface")?;
    let control = control_socket()?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
    set::<SIOCSIFMTU>(&control, IfReq::new(name, &mtu.to_ne_bytes())).during("set the TUN's MTU")?;
    set::<SIOCSIFADDR>(&control, IfReq::with_address(name, ip)).during("set the TUN's address")?;
    set::<SIOCSIFNETMASK>(&control, IfReq::with_address(name, mask)).during("set the TUN's netmask")?;
    up(&control, name)?;
    Ok(tun)
}

/// Brings the loopback up.
pub(crate) fn loopback_up() -> Result<()> {
    up(&control_socket()?, "lo")
}

fn up(control: &OwnedFd, name: &str) -> Result<()> {
    set::<SIOCSIFFLAGS>(control, IfReq::new(name, &(IFF_UP | IFF_RUNNING).to_ne_bytes()))
        .during(format!("bring {name} up"))
}

fn control_socket() -> Result<OwnedFd> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .during("open a socket to configure interfaces")
}
