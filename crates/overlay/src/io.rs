//! Descriptors: the TUN, the UDP socket, and which addresses this machine has. Everything unsafe is in here.

pub mod addresses;
pub mod tcp;
pub mod tun;
pub mod udp;

use std::io;

/// The result of a system call that says -1 for an error.
fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn check_int(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
