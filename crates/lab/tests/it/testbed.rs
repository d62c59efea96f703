//! A small testbed with the real binary: two workers behind two kinds of router. Takes root; says so where it cannot be made.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use ionet_lab::testbed::dir_of;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) const LAB: &str = env!("CARGO_BIN_EXE_ionet-lab");

/// A testbed's file with a name that no other test has.
struct Bed {
    name: String,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new(case: &str, sites: &[(&str, &str)]) -> Option<Self> {
        if missing() {
            return None;
        }
        let bed = Self { name: format!("{case}-{}", std::process::id()), dir: tempfile::tempdir().unwrap() };
        let link = "link = { delay_ms = 5, jitter_ms = 1, loss_percent = 0.1 }";
        let head = format!("name = '{}'\n[[relays]]\n[server]\nlink = {{ delay_ms = 2 }}\n", bed.name);
        let site =
            |(name, nat): &(&str, &str)| format!("[[sites]]\nname = '{name}'\nnat = '{nat}'\n{link}\n");
        let text: String = std::iter::once(head).chain(sites.iter().map(site)).collect();
        std::fs::write(bed.file(), text).unwrap();
        Some(bed)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("bed.toml")
    }

    /// Nothing of it is left: neither its folder nor a process that names it.
    fn check_gone(&self) {
        assert!(!dir_of(&self.name).exists());
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let words = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        let left: Vec<_> = words
            .map(|words| String::from_utf8_lossy(&words).replace('\0', " "))
            .filter(|words| words.contains(&format!("ionet-lab-{}", self.name)))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Whether there can be no testbed here; it is said why.
pub(crate) fn missing() -> bool {
    let check = Command::new(LAB).args(["up", "--check"]).output().unwrap();
    if !check.status.success() {
        let why = String::from_utf8_lossy(&check.stdout).into_owned();
        eprintln!("skipped: machines in namespaces cannot be made here: {why}");
    }
    !check.status.success()
}

/// The product's binary, which a test of the whole workspace has built.
pub(crate) fn binary() -> PathBuf {
    let binary = Path::new(LAB).with_file_name("ionet");
    assert!(binary.exists(), "build it first: cargo build -p ionet-cli");
    binary
}

/// `ionet-lab up` that runs; killed if the test fails.
struct Up {
    child: Child,
    file: PathBuf,
}

impl Up {
    /// Starts it and waits until it says that all is there.
    fn start(bed: &Bed) -> Self {
        let mut up = Command::new(LAB);
        up.arg("up").arg(bed.file()).arg("--binary").arg(binary()).stdout(Stdio::piped());
        let mut up = Self { child: up.spawn().unwrap(), file: bed.file() };
        let lines = BufReader::new(up.child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.into_iter().any(|line| line.contains("Ctrl-C")), "it never was up");
        up
    }

    fn inside(&self, host: &str, words: &[&str]) -> Command {
        let mut command = Command::new(LAB);
        command.arg("in").arg(&self.file).args([host, "--"]).args(words);
        command
    }

    fn run(&self, host: &str, words: &[&str]) -> String {
        let output = self.inside(host, words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn python(&self, host: &str, script: &str, arguments: &[&str]) -> Python {
        let words = [&["/usr/bin/python3", "-uc", script], arguments].concat();
        let mut child = self.inside(host, &words).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Python { child, lines }
    }

    /// Ctrl-C.
    fn interrupt(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A script on a machine, and what it prints.
struct Python {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn line(&mut self) -> String {
        self.lines.next().expect("a line").unwrap()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_testbed_is_entered_and_leaves_nothing() {
    let Some(bed) = Bed::new("up", &[("home", "cone")]) else { return };
    let up = Up::start(&bed);
    assert_eq!(up.run("home-1", &["hostname"]).trim(), "home-1");
    assert!(up.run("home-1", &["ip", "-4", "addr", "show", "eth0"]).contains("192.168.10.2/24"));
    let second = Command::new(LAB).arg("up").arg(bed.file()).arg("--binary").arg(binary()).output().unwrap();
    assert!(
        !second.status.success() && String::from_utf8_lossy(&second.stderr).contains("is up"),
        "{second:?}"
    );
    up.interrupt();
    bed.check_gone();

    // A lab that was killed leaves a folder and nothing that runs.
    let killed = Up::start(&bed);
    drop(killed);
    let down = Command::new(LAB).arg("down").arg(bed.file()).output().unwrap();
    assert!(down.status.success() && String::from_utf8_lossy(&down.stdout).contains("removed"), "{down:?}");
    bed.check_gone();
}

/// Says to whoever asks where it is seen from.
const MIRROR: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 5000))
print('ready')
while True:
    _, peer = s.recvfrom(100)
    s.sendto(f'{peer[0]} {peer[1]}'.encode(), peer)";
/// Asks two mirrors from one port, then says whether a stranger's word comes.
const LOOK: &str = "import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 4000))
def seen(mirror):
    for _ in range(20):
        s.sendto(b'where am I', (mirror, 5000))
        s.settimeout(0.2)
        try:
            while True:
                answer, peer = s.recvfrom(100)
                if peer[0] == mirror: return answer.decode()
        except OSError: pass
    return 'nowhere'
print(','.join(seen(mirror) for mirror in sys.argv[1:]))
s.settimeout(3)
try:
    while s.recvfrom(100)[0] != b'stranger': pass
    print('heard')
except OSError: print('silence')";
const STRANGER: &str = "import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(10):
    s.sendto(b'stranger', (sys.argv[1], int(sys.argv[2])))
    time.sleep(0.1)";

#[test]
fn routers_do_to_addresses_what_their_kind_says() {
    let kinds = [
        ("open", "none"),
        ("full", "full_cone"),
        ("cone", "cone"),
        ("moody", "symmetric"),
        ("tcp-only", "udp_blocked"),
    ];
    let Some(bed) = Bed::new("nat", &kinds) else { return };
    let up = Up::start(&bed);
    let mut mirrors = ["server", "client"].map(|host| up.python(host, MIRROR, &[]));
    for mirror in &mut mirrors {
        assert_eq!(mirror.line(), "ready");
    }
    // Server and client have the first two wires.
    let (server, client) = ("203.0.113.2", "203.0.113.6");
    for (site, kind) in kinds {
        let mut look = up.python(&format!("{site}-1"), LOOK, &[server, client]);
        let seen = look.line();
        let (first, second) = seen.split_once(',').unwrap();
        let (translated, heard) = (!first.starts_with("198.51.100."), kind == "none" || kind == "full_cone");
        assert_eq!(translated, kind != "none", "{kind}: {seen}");
        match kind {
            "udp_blocked" => assert_eq!(seen, "nowhere,nowhere"),
            "symmetric" => assert_ne!(first, second, "one mapping for all"),
            _ => assert_eq!(first, second, "{kind}: a mapping for each"),
        }
        if kind != "udp_blocked" {
            let (address, port) = first.split_once(' ').unwrap();
            up.run("relay-1", &["/usr/bin/python3", "-c", STRANGER, address, port]);
            assert_eq!(look.line(), if heard { "heard" } else { "silence" }, "{kind}");
        }
    }
    drop(mirrors);
    up.interrupt();
    bed.check_gone();
}

#[test]
fn workers_behind_routers_serve_and_talk_through_faults() {
    let Some(bed) = Bed::new("soak", &[("home", "cone"), ("office", "symmetric")]) else { return };
    let mut soak = Command::new(LAB);
    soak.args([
        "soak",
        "--json",
        "--minutes",
        "3",
        "--in-turn",
        "--faults",
        "kill,cut,freeze,kill_supervisor",
    ]);
    let output =
        soak.arg("--binary").arg(binary()).arg(bed.file()).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let summary: Value = serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert!(output.status.success(), "{summary:#}");
    assert_eq!(summary["network"], "namespaces");
    assert_eq!(summary["faults"].as_object().unwrap().len(), 4, "{summary:#}");
    assert_eq!(summary["money"]["adds_up"], true);
    assert!(summary["journal_events"].as_u64() > Some(100), "{summary:#}");
    bed.check_gone();
}
