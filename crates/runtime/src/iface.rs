//! The TUN device and the loopback of a box's network namespace, configured by ioctl.
//!
//! Always holds: no default route is made, so a box reaches its overlay's members and nothing else.

use std::{
    fs::OpenOptions,
    net::Ipv4Addr,
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
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;
const SIOCSIFNETMASK: Opcode = 0x891c;
const SIOCSIFMTU: Opcode = 0x8922;

const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
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
}

fn set<const OPCODE: Opcode>(fd: impl AsFd, request: IfReq) -> io::Result<()> {
    // SAFETY: every OPCODE of this module takes a pointer to a `struct ifreq`, which `IfReq` is (40
    // bytes, no invalid values), and only reads it or writes within it.
    unsafe { ioctl::ioctl(fd, Setter::<OPCODE, IfReq>::new(request)) }
}

/// Name of the overlay's interface in every box.
pub(crate) const TUN_NAME: &str = "tun0";

/// Opens `device`, makes the TUN in the present network namespace and gives it its address.
pub(crate) fn open_tun(device: &Path, ip: Ipv4Addr, prefix: u8, mtu: u32) -> Result<OwnedFd> {
    let tun: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .during(format!("open {}", device.display()))?
        .into();
    set::<TUNSETIFF>(&tun, IfReq::new(TUN_NAME, &(IFF_TUN | IFF_NO_PI).to_ne_bytes()))
        .during("create the TUN interface")?;
    let control = control_socket()?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
    set::<SIOCSIFMTU>(&control, IfReq::new(TUN_NAME, &mtu.to_ne_bytes())).during("set the TUN's MTU")?;
    set::<SIOCSIFADDR>(&control, IfReq::with_address(TUN_NAME, ip)).during("set the TUN's address")?;
    set::<SIOCSIFNETMASK>(&control, IfReq::with_address(TUN_NAME, mask)).during("set the TUN's netmask")?;
    up(&control, TUN_NAME)?;
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
