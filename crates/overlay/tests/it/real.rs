//! Members of tests with real sockets, and network namespaces that go when they are dropped.

use std::{
    fs::File,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ionet_overlay::{Addresses, Member, handshake::Identity, io::tun};

pub(crate) fn identity(number: u8) -> Identity {
    Identity::new("c1", &[number; 32])
}

pub(crate) fn addresses(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 77, 0, number),
        v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()),
    }
}

pub(crate) fn member(number: u8) -> Member {
    Member { key: identity(number).key(), addresses: addresses(number), eager: true }
}

/// Waits until a condition holds, looking often; fails the test instead of hanging.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_mins(1), "timed out: {what}");
        thread::sleep(Duration::from_millis(2)); // poll
    }
}

/// A network namespace; goes when dropped.
pub(crate) struct Space {
    pub(crate) name: String,
}

impl Space {
    /// `None`, with the reason printed, where namespaces cannot be made.
    pub(crate) fn new(label: &str) -> Option<Self> {
        let name = format!("ionet-overlay-{}-{label}", std::process::id());
        if let Err(reason) = ip(&["netns", "add", &name]) {
            eprintln!("skipped: cannot make a network namespace: {reason}");
            return None;
        }
        let space = Self { name };
        space.ip(&["link", "set", "lo", "up"]);
        Some(space)
    }

    /// Runs something on a thread inside the namespace.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let handle = File::open(format!("/run/netns/{}", self.name)).expect("a namespace");
        thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(handle.as_fd(), kind).expect("enter");
            inside()
        })
    }

    /// Runs something inside and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, inside: impl FnOnce() -> T + Send + 'static) -> T {
        self.enter(inside).join().expect("a thread in a namespace")
    }

    /// A device with offload that has a member's addresses.
    pub(crate) fn tun(&self, number: u8, mtu: u16) -> OwnedFd {
        let device = self.run(|| tun::create("tun0").expect("a TUN"));
        let Addresses { v4, v6 } = addresses(number);
        self.ip(&["addr", "add", &format!("{v4}/24"), "dev", "tun0"]);
        self.ip(&["-6", "addr", "add", &format!("{v6}/64"), "dev", "tun0", "nodad"]);
        self.ip(&["link", "set", "tun0", "mtu", &mtu.to_string(), "up"]);
        device
    }

    /// Runs a shell's script inside.
    pub(crate) fn script(&self, script: &str) {
        ip(&["netns", "exec", &self.name, "sh", "-ec", script]).expect("a script");
    }

    /// Runs `ip` for this namespace.
    pub(crate) fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.name], args].concat()).expect("ip");
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

/// Lays a wire between two namespaces, with both families at its ends.
pub(crate) fn wire(spaces: &[Space; 2], mtu: u16) {
    let [a, b] = spaces;
    a.ip(&["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", &b.name]);
    for (space, end) in spaces.iter().zip(1..) {
        space.ip(&["addr", "add", &format!("10.99.0.{end}/24"), "dev", "wire"]);
        space.ip(&["link", "set", "wire", "mtu", &mtu.to_string(), "up"]);
        if mtu >= 1280 {
            space.ip(&["-6", "addr", "add", &format!("fd99::{end}/64"), "dev", "wire", "nodad"]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
