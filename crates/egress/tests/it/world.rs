//! A host, a box on it and an internet, each a network namespace of its own.
//!
//! The host's LAN is 192.168.231.0/24 and `2001:db8:231::/64`; the internet's router on it (.254, `::fe`) has everything else:
//! 203.0.113.9 and `2001:db8::9` stand for servers far away, 169.254.169.254 for a cloud's metadata.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ionet_domain::market::Egress as Mode;
use ionet_egress::{Config, Egress, Limits, MTU_BYTES, Rules};

pub(crate) const FAR: &str = "203.0.113.9";
pub(crate) const OTHER: &str = "203.0.113.10";
pub(crate) const FAR_V6: &str = "2001:db8::9";
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const ROUTER: &str = "192.168.231.254";
pub(crate) const HOST: &str = "192.168.231.1";
pub(crate) const BOX: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BOX_V6: &str = "fd77::1";
pub(crate) const WAIT: Duration = Duration::from_secs(20);

pub(crate) struct Namespace(String);

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Namespace {
    fn new(label: &str) -> Option<Self> {
        let name =
            format!("egress-{}-{}-{label}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        if let Err(reason) = ip(&["netns", "add", &name]) {
            eprintln!("skipped: cannot make a network namespace: {reason}");
            return None;
        }
        let it = Self(name);
        it.ip("link set lo up");
        Some(it)
    }

    /// Runs something on a thread inside the namespace.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let handle = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(handle.as_fd(), kind).unwrap();
            inside()
        })
    }

    /// The same, and waits for it.
    pub(crate) fn within<T: Send + 'static>(&self, inside: impl FnOnce() -> T + Send + 'static) -> T {
        self.enter(inside).join().unwrap()
    }

    pub(crate) fn ip(&self, command: &str) {
        let words: Vec<_> = ["-n", &self.0].into_iter().chain(command.split(' ')).collect();
        ip(&words).unwrap_or_else(|error| panic!("ip {command}: {error}"));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.0]);
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A TUN in the namespace of the calling thread.
pub(crate) fn tun() -> OwnedFd {
    const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
    let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"out0");
    // TUN, no packet information.
    request[16..18].copy_from_slice(&0x1001u16.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which 40 bytes are.
    unsafe { rustix::ioctl::ioctl(&device, rustix::ioctl::Setter::<TUNSETIFF, [u8; 40]>::new(request)) }
        .unwrap();
    device.into()
}

pub(crate) struct World {
    pub(crate) host: Namespace,
    pub(crate) net: Namespace,
    pub(crate) inside: Namespace,
    pub(crate) egress: Egress,
    resolv_conf: PathBuf,
}

impl World {
    pub(crate) fn new(rules: Rules) -> Option<Self> {
        Self::with(rules, |_| {})
    }

    pub(crate) fn with(rules: Rules, change: impl FnOnce(&mut Config)) -> Option<Self> {
        let (host, net, inside) = (Namespace::new("host")?, Namespace::new("net")?, Namespace::new("box")?);
        host.ip(&format!("link add lan type veth peer name lan netns {}", net.0));
        for (space, v4, v6) in [(&host, HOST, "2001:db8:231::1"), (&net, ROUTER, "2001:db8:231::fe")] {
            space.ip(&format!("addr add {v4}/24 dev lan"));
            space.ip(&format!("addr add {v6}/64 dev lan nodad"));
            space.ip("link set lan up");
        }
        host.ip(&format!("route add default via {ROUTER}"));
        host.ip("route add default via 2001:db8:231::fe");
        for address in [FAR, OTHER, METADATA, FAR_V6] {
            net.ip(&format!("addr add {address} dev lo"));
        }
        let device = inside.within(tun);
        inside.ip(&format!("addr add {BOX}/32 dev out0"));
        inside.ip(&format!("addr add {BOX_V6}/128 dev out0 nodad"));
        inside.ip(&format!("link set out0 mtu {MTU_BYTES} up"));
        inside.ip("route add default dev out0");
        inside.ip("-6 route add default dev out0");
        let resolv_conf = std::env::temp_dir().join(format!("{}.resolv.conf", host.0));
        std::fs::write(&resolv_conf, format!("nameserver {ROUTER}\n")).unwrap();
        let mut config = Config {
            sources: vec![BOX.into(), BOX_V6.parse().unwrap()],
            rules,
            open: Vec::new(),
            resolv_conf: resolv_conf.clone(),
            mtu: MTU_BYTES,
            limits: Limits::default(),
            seed: 7,
        };
        change(&mut config);
        let egress = host.within(move || Egress::start(config, device)).unwrap();
        Some(Self { host, net, inside, egress, resolv_conf })
    }

    /// Connects from the box. Of one "no" in a few thousand the kernel says that it came, but not yet which: then again.
    pub(crate) fn connect(&self, to: &str, port: u16) -> std::io::Result<TcpStream> {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        self.inside.within(move || {
            loop {
                match TcpStream::connect_timeout(&to, WAIT) {
                    Err(error) if error.raw_os_error().is_none() && error.kind() != ErrorKind::TimedOut => {}
                    answer => break answer,
                }
            }
        })
    }

    /// A connection that answers.
    pub(crate) fn echoes(&self, to: &str, port: u16) -> std::io::Result<TcpStream> {
        let mut stream = self.connect(to, port)?;
        echo(&mut stream, b"hello")?;
        Ok(stream)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.resolv_conf);
    }
}

pub(crate) fn echo(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(WAIT))?;
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, text);
    Ok(())
}

/// Sends everything back, on every address of the namespace, for as long as the process lives.
pub(crate) fn echo_server(space: &Namespace, port: u16) {
    let listener = space.within(move || TcpListener::bind((IpAddr::from([0u16; 8]), port))).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// Sends every datagram back.
pub(crate) fn udp_echo_server(space: &Namespace, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    let socket = space.within(move || UdpSocket::bind(at)).unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
}

/// A name server that answers every name with this address, for a minute.
pub(crate) fn name_server(space: &Namespace, answer: &str) {
    let answer: Ipv4Addr = answer.parse().unwrap();
    let at = SocketAddr::new(ROUTER.parse().unwrap(), 53);
    let socket = space.within(move || UdpSocket::bind(at)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let mut response = buffer[..n].to_vec();
            response[2..4].copy_from_slice(&[0x81, 0x80]);
            response[7] = 1;
            response[10..12].fill(0);
            response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            response.extend(answer.octets());
            let _ = socket.send_to(&response, from);
        }
    });
}

/// Asks the box's resolver; the answer's code and first address.
pub(crate) fn ask(world: &World, name: &str) -> (u8, Option<Ipv4Addr>) {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    world.inside.within(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.send_to(&query, (ionet_egress::RESOLVER, 53)).unwrap();
        let mut buffer = [0; 1500];
        let (n, _) = socket.recv_from(&mut buffer).unwrap();
        let address = (buffer[7] > 0).then(|| {
            let octets: [u8; 4] = buffer[n - 4..n].try_into().unwrap();
            Ipv4Addr::from(octets)
        });
        (buffer[3] & 15, address)
    })
}

pub(crate) fn rules(mode: Mode, allow: &[&str]) -> Rules {
    Rules { egress: mode, allow: allow.iter().map(|text| text.parse().unwrap()).collect() }
}

pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5)); // poll
    }
}
