//! A TUN device: the kernel's side of an overlay. Plain IP packets, no extra header.
//!
//! The device is made in the network namespace of the calling thread; giving it an address and setting it up is the
//! caller's work, as is entering a namespace.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{Mode, OFlags, open},
    ioctl::{Opcode, Setter, ioctl},
};

use crate::NetError;

/// `TUNSETIFF` of `linux/if_tun.h`.
const TUNSETIFF: Opcode = 0x4004_54ca;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const NAME_BYTES: usize = 16;

/// `struct ifreq` of `linux/if.h`, as far as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a TUN device named `name` and returns its non-blocking descriptor; the device goes with the descriptor.
///
/// # Errors
/// If `/dev/net/tun` is missing, the name is taken or too long, or the process may not make devices here.
pub fn create(name: &str) -> Result<OwnedFd, NetError> {
    let failed = |e: rustix::io::Errno| NetError::io(format!("make the TUN device {name}"))(e.into());
    if name.is_empty() || name.len() >= NAME_BYTES || name.contains(['/', '\0']) {
        return Err(failed(rustix::io::Errno::INVAL));
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = open("/dev/net/tun", flags, Mode::empty()).map_err(failed)?;
    let mut request = InterfaceRequest { name: [0; NAME_BYTES], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads a `struct ifreq`, whose layout and size `InterfaceRequest` has.
    unsafe { ioctl(&device, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }.map_err(failed)?;
    Ok(device)
}
