//! The TUN device: one read or write moves up to 64 KiB where the kernel has offload; plain packets where not.
//!
//! Making its namespace, its addresses and setting it up are not here.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use super::{check, check_int};
use crate::{
    OverlayError, Result,
    segment::{MOST_BYTES, VIRTIO_BYTES},
};

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const CHECKSUM: libc::c_ulong = 0x01;
/// TCP over IPv4 and IPv6, with ECN.
const TCP: libc::c_ulong = 0x0e;
/// UDP over IPv4 and IPv6; since Linux 6.2.
const UDP: libc::c_ulong = 0x60;

/// The most that one read gives: the kernel's note and a packet.
pub const READ_BYTES: usize = VIRTIO_BYTES + MOST_BYTES;

/// The kernel's `struct ifreq`, as far as TUNs use it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a TUN device with offload in the network namespace of the calling thread; it goes with the descriptor.
///
/// # Errors
/// If `/dev/net/tun` is missing, the name is taken or too long, or the process may not make devices here.
pub fn create(name: &str) -> Result<OwnedFd> {
    let failed = || OverlayError::io(format!("make the TUN device {name}"));
    if name.is_empty() || name.len() >= 16 || name.contains(['/', '\0']) {
        return Err(failed()(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    // SAFETY: the path is a C string; what is returned is a new descriptor or an error.
    let opened = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    check_int(opened).map_err(failed())?;
    // SAFETY: it was opened just now and belongs to nobody else.
    let device = unsafe { OwnedFd::from_raw_fd(opened) };
    let flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    let mut request = InterfaceRequest { name: [0; 16], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, whose layout and size `InterfaceRequest` has.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) };
    check_int(made).map_err(failed())?;
    Ok(device)
}

/// A TUN device, or any descriptor that gives and takes one packet at a time.
#[derive(Debug)]
pub struct Tun {
    device: OwnedFd,
    offload: bool,
    datagrams: bool,
}

impl Tun {
    /// Takes a device; offload is switched on if it was made with the kernel's notes (`IFF_VNET_HDR`).
    ///
    /// # Errors
    /// If the descriptor cannot be made non-blocking, or a device with notes cannot be set up.
    pub fn new(device: OwnedFd) -> Result<Self> {
        let failed = || OverlayError::io("set the TUN device up");
        rustix::io::ioctl_fionbio(&device, true).map_err(io::Error::from).map_err(failed())?;
        let offload = has_notes(device.as_fd());
        let mut datagrams = false;
        if offload {
            let bytes = libc::c_int::try_from(VIRTIO_BYTES).unwrap_or(0);
            // SAFETY: TUNSETVNETHDRSZ reads an int.
            let set = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) };
            check_int(set).map_err(failed())?;
            let set = |flags: libc::c_ulong| {
                // SAFETY: TUNSETOFFLOAD takes its flags by value.
                check_int(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETOFFLOAD, flags) })
            };
            datagrams = set(CHECKSUM | TCP | UDP).is_ok();
            if !datagrams {
                set(CHECKSUM | TCP).map_err(failed())?;
            }
        }
        Ok(Self { device, offload, datagrams })
    }

    /// Whether packets have the kernel's note before them, and may be large or lack their checksum.
    pub fn has_offload(&self) -> bool {
        self.offload
    }

    /// Whether many datagrams may be handed over as one large packet.
    pub fn joins_datagrams(&self) -> bool {
        self.datagrams
    }

    /// Reads one packet, the note included if there is one.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; others if the device is down or gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and length are of one slice that outlives the call.
        check(unsafe { libc::read(self.device.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
    }

    /// Hands one packet to the kernel, in pieces; the first is the note if there is one.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `IoSlice` has the layout of `struct iovec`, and its slices outlive the call.
        check(unsafe { libc::writev(self.device.as_raw_fd(), pieces.as_ptr().cast(), count) })
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn has_notes(device: BorrowedFd<'_>) -> bool {
    let mut request = InterfaceRequest { name: [0; 16], flags: 0, rest: [0; 22] };
    // SAFETY: TUNGETIFF writes a `struct ifreq`, whose layout and size `InterfaceRequest` has.
    let asked = unsafe { libc::ioctl(device.as_raw_fd(), TUNGETIFF, &raw mut request) };
    asked == 0 && request.flags & IFF_VNET_HDR != 0
}
