//! A hostile program in a box tries what it can; none of it succeeds.

use std::fs;
use std::net::UdpSocket;

use serde_json::{Value, json};

use super::cloud::{Cloud, PATIENCE, short_periods, wait_for};

/// Prints one JSON object: each thing tried, and what came of it; `null` where it failed as it should.
const ATTEMPTS: &str = r"
import ctypes, glob, json, os, socket, sys
aims = json.loads(sys.argv[1])
found = {}
def attempt(name, act):
    try: found[name] = act()
    except BaseException as e: found[name] = None
def read(path):
    with open(path, 'rb') as f: return len(f.read(64)) or 'empty'
def write(path):
    with open(path, 'ab') as f: f.write(b'x')
    return 'written'
def connect(host, port):
    with socket.create_connection((host, port), timeout=2): return 'connected'
def ask(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
    s.sendto(b'hello', (host, port)); return len(s.recvfrom(100)[0])
for path in aims['read']: attempt('read ' + path, lambda: read(path))
for path in aims['write']: attempt('write ' + path, lambda: write(path))
for host, port in aims['tcp']: attempt(f'tcp {host}:{port}', lambda: connect(host, port))
for host, port in aims['udp']: attempt(f'udp {host}:{port}', lambda: ask(host, port))
def host_processes():
    words = []
    for path in glob.glob('/proc/[0-9]*/cmdline'):
        try: words.append(open(path).read().replace('\0', ' '))
        except OSError: pass
    return [w for w in words if aims['mark'] not in w and ('ionet' in w and 'box-launch' not in w)] or None
attempt('processes of the host', host_processes)
attempt('signal outside', lambda: os.kill(aims['pid'], 0))
libc = ctypes.CDLL(None, use_errno=True)
def syscall(result):
    if result != 0: raise OSError(ctypes.get_errno())
    return 'allowed'
attempt('new user namespace', lambda: syscall(libc.unshare(0x10000000)))
attempt('new network namespace', lambda: syscall(libc.unshare(0x40000000)))
attempt('new mount', lambda: syscall(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)))
attempt('root', lambda: os.setuid(0) or 'root')
attempt('raw socket', lambda: str(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)))
attempt('packet socket', lambda: str(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)))
attempt('tun', lambda: os.open('/dev/net/tun', os.O_RDWR))
attempt('kernel memory', lambda: read('/dev/kmem'))
attempt('control groups', lambda: write('/sys/fs/cgroup/cgroup.procs'))
print('FOUND ' + json.dumps(found), flush=True)
";

/// Listens on its overlay address and says so.
const NEIGHBOUR: &str = "import os, socket
s = socket.create_server((os.environ['IONET_MEMBER_IP'], 8000))
print('listening', flush=True)
while True: s.accept()[0].close()";

/// The address that this machine is reached at from outside, if it has one.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

#[test]
fn a_hostile_program_reaches_nothing_of_host_neighbours_relay_or_agent() {
    let mut cloud = Cloud::new(&short_periods());
    let (_, relay_port) = cloud.start_relay();
    let agent = cloud.add_agent("supplier-a", "2");
    cloud.wait_pooled();
    let neighbour = cloud
        .renter
        .order(&["-n", "2", "--cpus", "0.2", "--for", "10m"], &["/usr/bin/python3", "-c", NEIGHBOUR]);
    for slot in [0, 1] {
        let (lease, _) = cloud.member(&neighbour, slot);
        wait_for("the neighbour", PATIENCE, || {
            cloud.output(agent, &lease).contains("listening").then_some(())
        });
    }
    let aims = aims(&cloud, agent, relay_port);
    let count = ["read", "write", "tcp", "udp"]
        .iter()
        .map(|kind| aims[kind].as_array().unwrap().len())
        .sum::<usize>();
    let cluster = cloud.renter.say(&super::cloud::order_words(
        &["-n", "1", "--cpus", "0.3", "--for", "10m", "--no-wait"],
        &["/usr/bin/python3", "-c", &format!("{ATTEMPTS}\nimport time; time.sleep(600)"), &aims.to_string()],
    ));
    let cluster = cluster["id"].as_str().unwrap();
    cloud.renter.wait_cluster(cluster, "running", |view| view["stage"] == "running");
    let (lease, _) = cloud.member(cluster, 0);
    let line = wait_for("the report", PATIENCE, || {
        let output = cloud.output(agent, &lease);
        output.lines().find_map(|line| line.strip_prefix("FOUND ").map(str::to_owned))
    });
    let found: serde_json::Map<String, Value> = serde_json::from_str(&line).unwrap();
    let reached: Vec<_> = found.iter().filter(|(_, what)| !what.is_null()).collect();
    assert!(found.len() >= count + 10, "not everything was tried: {line}");
    assert!(reached.is_empty(), "the program reached {reached:?}");
    for cluster in [cluster, &neighbour] {
        cloud.renter.say(&["cluster", "rm", cluster, "--yes", "--no-wait"]);
        cloud.renter.wait_over(cluster);
    }
    cloud.wait_no_boxes();
}

/// Everything there is to reach, and the test itself makes sure that it is really there.
fn aims(cloud: &Cloud, agent: u32, relay_port: u16) -> Value {
    let dir = cloud.agent_dir(agent).join("worker");
    let secret = cloud.home.path().join("secret.txt");
    fs::write(&secret, "of the host").unwrap();
    let files = [
        dir.join("endpoint.key"),
        dir.join("join.json"),
        secret,
        cloud.home.path().join("server/signing.key"),
    ];
    for file in &files {
        assert!(file.exists(), "{}", file.display());
    }
    let mut read: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    read.extend(["/etc/shadow", "/root/.bashrc", "/dev/mem"].map(str::to_owned));
    read.push(format!("/proc/1/root{}", files[0].display()));
    let host = own_address();
    let hosts: Vec<&str> =
        ["127.0.0.1", "10.77.0.2", "10.77.255.1"].into_iter().chain(host.as_deref()).collect();
    let ports = [cloud.port(), relay_port, 8000];
    let tcp: Vec<_> = hosts.iter().flat_map(|host| ports.map(|port| json!([host, port]))).collect();
    for port in [cloud.port(), relay_port] {
        std::net::TcpStream::connect(("127.0.0.1", port)).expect("it is there for the test");
    }
    let link: u16 =
        fs::read_to_string(cloud.home.path().join("server/link.port")).unwrap().trim().parse().unwrap();
    json!({
        "read": read,
        "write": ["/usr/bin/python3", "/etc/passwd", "/run/ionet-box", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"],
        "tcp": tcp,
        "udp": [["127.0.0.1", link], ["10.77.0.2", 8000], ["8.8.8.8", 53]],
        "pid": std::process::id(),
        "mark": "FOUND ",
    })
}
