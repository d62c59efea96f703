//! What a box can and cannot do: as a customer sees it, and as an attacker tries.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ionet_runtime::{
    launch,
    lease_box::{self, LeaseBox},
    limits::{Enforcement, Hierarchy},
    sandbox::{BoxSpec, Engine, Phase},
};

use crate::support::{Site, eventually, exit_code, processes_with, shell_spec, spec, unique, wait_for};

/// A box that runs a Python program of the system's interpreter.
fn python_spec(lease: &str, code: &str) -> BoxSpec {
    let argv = ["/usr/bin/python3", "-c", code].map(str::to_owned).to_vec();
    spec(lease, Engine::Command { argv, env: vec![("GREETING".into(), "a-secret-value".into())] })
}

fn python(site: &Site, lease: &str, code: &str) -> (i32, String) {
    run(site, python_spec(lease, code))
}

fn run(site: &Site, spec: BoxSpec) -> (i32, String) {
    let (mut it, _tun) = site.start(spec);
    let code = exit_code(&mut it);
    let log = it.settled_log();
    assert!(it.remove().unwrap().finished);
    (code, log)
}

trait SettledLog {
    fn settled_log(&self) -> String;
}

impl SettledLog for LeaseBox {
    /// The log's thread may be a moment behind the exit: until the program's last word is there.
    fn settled_log(&self) -> String {
        let log = || self.log_tail(1 << 20);
        let whole =
            |log: &str| log.ends_with("end\n") || log.contains("Traceback") || log.contains("box-launch:");
        eventually("the log's end", || whole(&log()));
        log()
    }
}

#[test]
fn a_program_runs_and_its_exit_code_and_output_are_kept() {
    let site = Site::new();
    let (code, log) =
        run(&site, shell_spec("hello", "echo hello from $(hostname) in $PWD; echo end; exit 7"));
    assert_eq!((code, log.as_str()), (7, "hello from member-1 in /home/work\nend\n"));
    let (code, log) = run(&site, spec("none", Engine::Command { argv: vec!["no-such".into()], env: vec![] }));
    assert_eq!(code, 127, "{log}");
}

#[test]
fn a_box_sees_nothing_of_the_host() {
    let site = Site::new();
    let key = site.folder.path().join("agent.key");
    fs::write(&key, "the agent's key").unwrap();
    let (other, _tun) = site.start(shell_spec("other", "echo private > /home/work/file; sleep 60"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let code = format!(
        r#"
import os, socket
for path in ["/root", "/etc/shadow", "/home/user", "{key}", "{other}/work", "/sys/class", "/var", "/run/user"]:
    print("path", path, os.path.exists(path))
print("processes", len([n for n in os.listdir("/proc") if n.isdigit()]))
print("interfaces", sorted(name for _, name in socket.if_nameindex()))
routes = [line.split()[1] for line in open("/proc/net/route").readlines()[1:]]
print("default route", "00000000" in routes)
s = socket.socket(); s.settimeout(2)
print("host service", s.connect_ex(("127.0.0.1", {port})) == 0)
print("tun", os.path.exists("/dev/net/tun"), "root writable", os.access("/", os.W_OK), os.access("/usr", os.W_OK))
print("environment", sorted(os.environ))
try: os.listdir("/"); print("listed")
except OSError as error: print("list root", error.errno)
print("end")
"#,
        key = key.display(),
        other = site.lease_dir(&unique("other")).display(),
        port = listener.local_addr().unwrap().port(),
    );
    let (exit, log) = python(&site, "spy", &code);
    assert_eq!(exit, 0, "{log}");
    for line in log.lines().filter(|l| l.starts_with("path")) {
        assert!(line.ends_with("False"), "{line}");
    }
    let has = |text: &str| assert!(log.contains(text), "{text}: {log}");
    // bubblewrap's first process, the launcher and the program itself.
    has("processes 3");
    // The way out leads to the supervisor's own stack, behind which there is nobody here.
    has("interfaces ['lo', 'out0', 'tun0']");
    has("default route True");
    has("host service False");
    has("tun False root writable False False");
    assert!(!log.contains("CARGO") && !log.contains("IONET_BOX_"), "{log}");
    has("'GREETING', 'HOME', 'IONET_HEAD_IP'");
    if launch::landlock_abi().is_some() {
        // The mounts alone would allow it.
        has("list root 13");
    }
    assert!(other.remove().unwrap().finished);
}

/// One line per attack: its name and the error number it gave, 0 when it worked.
const ATTACKS: &str = r#"
import ctypes, errno, fcntl, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*args)
    print(name, args[0] if name == "syscall" else "", errno.errorcode.get(ctypes.get_errno(), 0) if result < 0 else "WORKED")
def attempt(name, action):
    try:
        action()
        print(name, "WORKED")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
call("unshare", 0x10000000)
call("unshare", 0x40000000)
call("setns", 0, 0)
call("mount", b"none", b"/tmp", b"tmpfs", 0, 0)
call("umount2", b"/proc", 2)
call("chroot", b"/tmp")
call("ptrace", 0, 0, 0, 0)
call("sethostname", b"x", 1)
call("syscall", 435, 0, 0)
call("syscall", 0x40000000 + 39)
# add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd, io_uring, file handles, kexec, modules, other
# processes' memory and descriptors, personality, kernel log, and the new ways to mount.
for number in (248, 249, 250, 298, 321, 323, 425, 426, 427, 303, 304, 246, 320, 175, 313, 310, 311, 312, 438, 135,
               103, 428, 429, 430, 431, 432, 433, 442, 443, 447, 300, 155, 165):
    call("syscall", number, 0, 0, 0, 0, 0)
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    call("syscall", 56, flag | 17, 0, 0, 0, 0)
for protocol in (2, 4, 6, 9, 12, 15, 16): attempt(f"netlink {protocol}", lambda: socket.socket(16, 3, protocol))
def netlink(kind, flags, body):
    route = socket.socket(16, 3, 0)
    route.bind((0, 0))
    route.send(struct.pack("IHHII", 16 + len(body), kind, flags | 5, 1, 0) + body)
    error = struct.unpack_from("i", route.recv(4096), 16)[0]
    if error: raise OSError(-error, "")
tun = socket.if_nametoindex("tun0")
attempt("netlink interface down", lambda: netlink(16, 0, struct.pack("BxHiII", 0, 0, tun, 0, 1)))
attempt("netlink new address", lambda: netlink(20, 0x600, struct.pack("BBBBI", 2, 24, 0, 0, tun) + struct.pack("HH4B", 8, 2, 10, 77, 0, 9)))
attempt("netlink new route", lambda: netlink(24, 0x600, struct.pack("8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("HHI", 8, 4, tun)))
def spoof():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 15, 1)
    s.bind(("10.77.0.9", 5000))
    s.sendto(b"x", ("10.77.0.2", 5000))
attempt("another member's address", spoof)
attempt("transparent", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).setsockopt(0, 19, 1))
for request in (0x5412, 0x541c): attempt("type into a terminal", lambda: fcntl.ioctl(os.openpty()[1], request, b"x"))
attempt("the host's sockets", lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + HOST_SOCKET))
attempt("the host's /sys", lambda: os.listdir("/sys"))
def environ():
    seen = open("/proc/1/environ", "rb").read()
    if not seen: raise OSError(errno.ENODATA, "")
    print(seen)
attempt("the first process's variables", environ)
for family, kind in ((socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW), (40, 1), (38, 5), (socket.AF_BLUETOOTH, 3)):
    attempt(f"socket {int(family)} {int(kind)}", lambda: socket.socket(family, kind))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
address = struct.pack("16sH2x4s8x", b"tun0", socket.AF_INET, bytes([10, 99, 0, 1]))
attempt("interface address", lambda: fcntl.ioctl(s, 0x8916, address))
attempt("interface down", lambda: fcntl.ioctl(s, 0x8914, struct.pack("16sH22x", b"tun0", 0)))
attempt("device node", lambda: os.mknod("/tmp/disk", 0o060600, os.makedev(8, 0)))
attempt("write usr", lambda: open("/usr/x", "w"))
attempt("own uid 0", lambda: os.setuid(0))
attempt("kernel log", lambda: open("/dev/kmsg"))
print("status", [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd", "NoNewPrivs", "Seccomp:"))])
print("end")
"#;

/// Runs the attacks while the host has a socket to be found.
fn attack(site: &Site, lease: &str) -> (i32, String) {
    use std::os::{linux::net::SocketAddrExt as _, unix::net};
    let name = unique(lease);
    let address = net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = net::UnixListener::bind_addr(&address).unwrap();
    net::UnixStream::connect_addr(&address).expect("it is there for the host");
    python(site, lease, &format!("HOST_SOCKET = '{name}'{ATTACKS}"))
}

#[test]
fn attacks_are_refused() {
    let site = Site::new();
    let (exit, log) = attack(&site, "attacks");
    println!("{log}");
    assert_eq!(exit, 0, "{log}");
    assert!(!log.contains("WORKED") && log.contains("device node EPERM"), "{log}");
    assert!(log.contains("syscall 435 ENOSYS"), "clone3 must look absent: {log}");
    assert!(log.contains("status ['0000000000000000', '0000000000000000', '1', '2']"), "{log}");
}

/// A box for the process that is not root: the same as above, within one process.
fn unprivileged_body() {
    let site = Site::new();
    let (exit, log) = attack(&site, "rootless");
    assert!(exit == 0 && !log.contains("WORKED"), "{log}");
    let (mut it, _tun) = site.start(python_spec("web", SERVER));
    let answer = get(&mut it);
    assert!(answer.contains("200 OK"), "{answer}");
    assert!(it.remove().unwrap().finished);
}

/// Not a test by itself: what the tests below run in a process of its own.
#[test]
#[ignore = "the body of other tests, which run it in a process of its own"]
fn body() {
    match std::env::var("IONET_TEST_BODY").as_deref() {
        Ok("unprivileged") => unprivileged_body(),
        Ok("parent") => parent_body(),
        _ => panic!("this is run by other tests"),
    }
}

/// This test binary again, running only `body`.
fn body_command(program: &Path, body: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", "boxes::body", "--ignored", "--nocapture"]).env("IONET_TEST_BODY", body);
    command
}

#[test]
fn all_of_it_works_without_root() {
    if !rustix::process::geteuid().is_root() {
        // The other tests have shown it already.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // The build's folder may be closed to others, and this machine's TUN device too.
    fs::copy(std::env::current_exe().unwrap(), at("it")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_ionet-box"), at("ionet-box")).unwrap();
    let made = Command::new("mknod").arg(at("tun")).args(["c", "10", "200"]).status().unwrap();
    if !made.success() {
        println!("skipped: no device node can be made here");
        return;
    }
    fs::set_permissions(at("tun"), fs::Permissions::from_mode(0o666)).unwrap();
    let out = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
        .arg(at("it"))
        .args(["--exact", "boxes::body", "--ignored", "--nocapture"])
        .env("IONET_TEST_BODY", "unprivileged")
        .env("IONET_TEST_HELPER", at("ionet-box"))
        .env("IONET_TEST_TUN", at("tun"))
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn as_root_a_box_runs_as_nobody_known_and_its_variables_show_in_no_process_list() {
    let site = Site::new();
    let marker = unique("marker");
    let (mut it, _tun) = site
        .start(python_spec("uid", &format!("import time; print('{marker}', flush=True); time.sleep(60)")));
    wait_for(&mut it, 60, |r| r.phase == Phase::Ready);
    // Its own word: the marker stands in the command line of bubblewrap too, before the box is whole.
    eventually("the program runs", || it.log_tail(1 << 10).contains(&marker));
    let status = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    for text in processes_with(&marker).iter().map(status).filter(|text| !text.is_empty()) {
        let uid: u32 =
            text.lines().find_map(|l| l.strip_prefix("Uid:\t")?.split('\t').next()?.parse().ok()).unwrap();
        assert_ne!(uid, 0, "{text}");
    }
    assert_eq!(processes_with("a-secret-value"), [0; 0], "a variable shows in a process list");
    let receipt = it.remove().unwrap();
    assert!(receipt.processes_killed >= 2, "{receipt:?}");
    assert_eq!(processes_with(&marker), [0; 0], "a process is left: {receipt:?}");
}

/// Skips when this machine does not enforce limits.
fn enforced() -> bool {
    match Hierarchy::detect().enforcement() {
        Enforcement::None { reason } => {
            println!("skipped: {reason}");
            false
        }
        by => {
            println!("enforced by {by:?}");
            true
        }
    }
}

#[test]
fn a_memory_hog_is_killed_and_only_it() {
    let site = Site::new();
    if !enforced() {
        return;
    }
    let hog = "import subprocess, sys; r = subprocess.run([sys.executable, '-c', 'x = bytearray(600 << 20)']); print('hog', r.returncode); print('end')";
    let (mut it, _tun) = site.start(python_spec("hog", hog));
    assert_eq!(exit_code(&mut it), 0);
    let log = it.settled_log();
    assert!(log.contains("hog -9") && it.memory_kills() > 0, "{log}");
    assert!(it.remove().unwrap().finished);
}

#[test]
fn a_fork_bomb_is_bounded() {
    let site = Site::new();
    if !enforced() {
        return;
    }
    let bomb = r#"
import os, time
children = 0
try:
    while children < 500:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        children += 1
except OSError as error:
    print("stopped", children < 64, error.errno)
print("end", flush=True)
os._exit(0)
"#;
    let (exit, log) = python(&site, "bomb", bomb);
    assert!(exit == 0 && log.contains("stopped True 11"), "{log}");
}

#[test]
fn cpu_time_is_limited() {
    let site = Site::new();
    if !enforced() {
        return;
    }
    let burn = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint('share', time.process_time() / 2 < 0.5); print('end')";
    let mut spec = python_spec("burn", burn);
    spec.limits.cpu_millis = 250;
    let (exit, log) = run(&site, spec);
    assert!(exit == 0 && log.contains("share True"), "{log}");
}

#[test]
fn a_box_that_fills_the_disk_ends() {
    let site = Site::new();
    let mut spec = shell_spec("disk", "head -c 30000000 /dev/zero > /home/work/file; sleep 60");
    spec.limits.disk_bytes = 20_000_000;
    let (mut it, _tun) = site.start(spec);
    let report = wait_for(&mut it, 60, |r| matches!(r.phase, Phase::Failed { .. }));
    assert!(
        matches!(&report.phase, Phase::Failed { code, .. } if code == "disk_limit_exceeded"),
        "{report:?}"
    );
    let receipt = it.remove().unwrap();
    assert!(receipt.finished && receipt.bytes >= 30_000_000, "{receipt:?}");
    assert!(!site.lease_dir(&receipt.lease).exists());
}

#[test]
fn a_flood_of_output_neither_fills_the_disk_nor_stops_the_program() {
    let site = Site::new();
    let flood = "head -c 300000000 /dev/zero; head -c 50000000 /dev/zero >&2; echo; echo end";
    let (mut it, _tun) = site.start(shell_spec("flood", flood));
    assert_eq!(exit_code(&mut it), 0);
    it.settled_log();
    let log = fs::read_dir(site.lease_dir(&unique("flood")).join("log")).unwrap();
    let bytes: u64 = log.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!((1 << 20..9 << 20).contains(&bytes), "{bytes}");
    assert!(it.remove().unwrap().finished);
}

const SERVER: &str = "import http.server as h; h.ThreadingHTTPServer(('0.0.0.0', 8000), h.SimpleHTTPRequestHandler).serve_forever()";

/// Gets the index of the box's web server once it answers.
fn get(it: &mut LeaseBox) -> String {
    let connector = it.connector();
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let report = it.poll(Instant::now());
        match connector.connect(it.ip(), 8000, Duration::from_secs(1)) {
            Ok(mut stream) => {
                write!(stream, "GET / HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                return answer;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}: {report:?} {}", it.log_tail(2000)),
        }
        std::thread::sleep(Duration::from_millis(20)); // poll
    }
}

#[test]
fn tunnels_reach_services_in_the_box() {
    let site = Site::new();
    let (mut it, _tun) = site.start(python_spec("web", SERVER));
    assert!(get(&mut it).contains("200 OK"));
    let refused = it.connector().connect(Ipv4Addr::LOCALHOST, 9, Duration::from_secs(5)).unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
    // Nobody answers beyond the TUN, so this must end by its own time.
    let begun = Instant::now();
    let silent = Ipv4Addr::new(10, 77, 0, 9);
    it.connector().connect(silent, 80, Duration::from_millis(200)).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(it.remove().unwrap().finished);
}

/// Starts a box, says so and waits to be killed.
fn parent_body() {
    let folder = std::env::var("IONET_TEST_FOLDER").unwrap();
    let mut site = Site::new();
    site.environments = "/nonexistent".into();
    let marker = std::env::var("IONET_TEST_MARKER").unwrap();
    let script = format!("(setsid sleep 1000 &); echo {marker}; while true; do sleep 1; done");
    let mut spec = shell_spec("orphan", &script);
    spec.lease = format!("{marker}-lease");
    let mut config = site.config(spec);
    config.lease_dir = Path::new(&folder).join("lease");
    let (mut it, _tun) = LeaseBox::start(config, Instant::now()).unwrap();
    wait_for(&mut it, 60, |r| r.phase == Phase::Ready);
    while !it.log_tail(1000).contains(&marker) {
        std::thread::sleep(Duration::from_millis(5)); // poll
    }
    println!("up");
    std::thread::park();
}

#[test]
fn killing_the_parent_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let marker = unique("orphan-marker");
    let mut parent = body_command(&std::env::current_exe().unwrap(), "parent")
        .env("IONET_TEST_FOLDER", folder.path())
        .env("IONET_TEST_MARKER", &marker)
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("up")));
    assert!(!processes_with(&marker).is_empty());
    parent.kill().unwrap();
    parent.wait().unwrap();
    eventually("the box ends with its parent", || processes_with(&marker).is_empty());
    let lease_dir = folder.path().join("lease");
    let receipt = lease_box::reap(&format!("{marker}-lease"), &lease_dir, &Hierarchy::detect()).unwrap();
    assert!(receipt.finished && !lease_dir.exists(), "{receipt:?}");
}
