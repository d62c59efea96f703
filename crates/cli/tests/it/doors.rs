//! The ways into boxes on a real network: ports, shell, files, and who may use them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::kit::Home;
use super::network::{Up, ok, refused, text};

const LONG_ENOUGH: Duration = Duration::from_secs(40);
/// Answers what it hears, on TCP and UDP.
const ECHO: &str = r"
import socket, threading, time
def tcp():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('0.0.0.0', 7000)); s.listen(16)
    while True:
        c, _ = s.accept()
        threading.Thread(target=talk, args=(c,), daemon=True).start()
def talk(c):
    while True:
        b = c.recv(65536)
        if not b: break
        c.sendall(b)
    c.close()
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 7000))
    while True:
        b, a = s.recvfrom(65536); s.sendto(b.upper(), a)
threading.Thread(target=udp, daemon=True).start()
open('/dev/shm/of-the-engine', 'w').write('seen')
print('serving', flush=True)
tcp()
";

/// A child that is gone when the test is.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end, which must come.
fn finish(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    let read = |mut pipe: Box<dyn std::io::Read + Send>| {
        let (tell, all) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            let _ = tell.send(bytes);
        });
        all
    };
    let (out, err) =
        (read(Box::new(child.stdout.take().unwrap())), read(Box::new(child.stderr.take().unwrap())));
    let mut child = Kept(child);
    let until = Instant::now() + LONG_ENOUGH;
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < until, "{command:?} does not end");
        thread::sleep(Duration::from_millis(5)); // poll
    };
    let rest = |all: mpsc::Receiver<Vec<u8>>| all.recv_timeout(LONG_ENOUGH).expect("the end of its output");
    Output { status, stdout: rest(out), stderr: rest(err) }
}

fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// What a program that must succeed said.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", shown(output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `ionet tunnel` in the background and where it listens; its error stream goes on in the channel.
fn tunnel(home: &Home, words: &[&str]) -> (Kept, SocketAddr, mpsc::Receiver<String>) {
    let mut command = home.command(&[&["--json", "tunnel"], words].concat());
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = |pipe: Box<dyn std::io::Read + Send>| {
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        lines
    };
    let (out, err) =
        (lines(Box::new(child.stdout.take().unwrap())), lines(Box::new(child.stderr.take().unwrap())));
    let child = Kept(child);
    let line =
        out.recv_timeout(LONG_ENOUGH).unwrap_or_else(|_| panic!("{:?}", err.try_iter().collect::<Vec<_>>()));
    let line: Value = serde_json::from_str(&line).unwrap();
    (child, text(&line["local"]).parse().unwrap(), err)
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(LONG_ENOUGH)).unwrap();
    stream
}

fn echoes(stream: &mut TcpStream, words: &[u8]) {
    stream.write_all(words).unwrap();
    let mut back = vec![0; words.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, words);
}

/// Another account on the same network.
fn other_account(home: &Home) -> (Home, String) {
    let other = Home::new();
    let url = ok(home.run(&["--json", "up"])).json();
    let said = ok(other.run(&["--json", "login", "--url", text(&url["running"]["url"])])).json();
    let account = said["account"].as_str().or(said["address"].as_str()).map(str::to_owned);
    (other, account.unwrap_or_else(|| panic!("{said}")))
}

/// A program of ssh's with a home of its own.
fn with_home(program: &str, user: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("HOME", user).env_remove("SSH_AUTH_SOCK").env("TERM", "xterm");
    command
}

fn ionet(home: &Home, user: &Path, words: &[&str]) -> Command {
    let mut command = home.command(words);
    command.env("HOME", user).env_remove("SSH_AUTH_SOCK").env("TERM", "xterm");
    command
}

#[test]
fn boxes_are_entered_by_ports_shell_and_files_as_far_as_rights_go() {
    let home = Home::new();
    let up = Up::start_with(&home, 1);
    let create = [
        "--json",
        "cluster",
        "create",
        "--engine",
        "command",
        "--memory",
        "256MiB",
        "--disk",
        "64MiB",
        "--for",
        "20m",
        "--yes",
        "-n",
        "1",
        "--env",
        "COLOUR=deep blue",
        "--",
        "/usr/bin/python3",
        "-c",
        ECHO,
    ];
    let view = ok(home.run(&create)).json();
    let id = text(&view["id"]);
    let user = tempfile::tempdir().unwrap();
    ports(&home, id);
    let config = shell(&home, id, user.path());
    plain_ssh(&config, id, user.path());
    files(&home, id, user.path());
    shares(&home, id, user.path());
    ok(home.run(&["--json", "cluster", "rm", id, "--yes"]));
    assert_eq!(up.interrupt().0, 0);
}

fn ports(home: &Home, id: &str) {
    let target = format!("{id}:7000");
    let (_tunnel, tcp, _) = tunnel(home, &[&target]);
    let mut stream = connect(tcp);
    echoes(&mut stream, b"hello");
    // The same port again is in use: by number that is an error, else another one is taken.
    let taken = tcp.port().to_string();
    refused(&home.run(&["--json", "tunnel", &target, "--local", &taken]), "port_in_use");
    let (_other, elsewhere, _) = tunnel(home, &[&target]);
    assert_ne!(elsewhere.port(), tcp.port());
    echoes(&mut connect(elsewhere), &vec![7; 300_000]);
    // A port that nobody serves: the connection ends at once and the reason is told.
    let (_down, down, told) = tunnel(home, &[&format!("{id}:7999")]);
    assert!(connect(down).read(&mut [0]).map_or(true, |count| count == 0));
    let told =
        std::iter::from_fn(|| told.recv_timeout(LONG_ENOUGH).ok()).find(|line| line.contains("tcp/7999 of"));
    assert!(told.as_ref().is_some_and(|line| line.contains("nothing answers on port 7999")), "{told:?}");

    let (_udp, udp, _) = tunnel(home, &[&format!("{id}:7000/udp"), "--local", "0"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let until = Instant::now() + LONG_ENOUGH;
    let mut answer = [0; 64];
    let length = loop {
        // Datagrams may be lost.
        socket.send_to(b"over udp", udp).unwrap();
        match socket.recv(&mut answer) {
            Ok(length) => break length,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    };
    assert_eq!(&answer[..length], b"OVER UDP");

    let through = finish(&mut home.command(&["tunnel", &target, "--stdio"]), b"by stdio");
    assert_eq!(said(&through), "by stdio");
    assert_eq!(home.run(&["tunnel", &format!("{id}:70000")]).status, 2);
    refused(&home.run(&["--json", "tunnel", &format!("{id}.4:7000")]), "member_not_reachable");
}

/// `ionet ssh`; gives a file with ssh's configuration.
fn shell(home: &Home, id: &str, user: &Path) -> PathBuf {
    let run = |words: &[&str]| finish(&mut ionet(home, user, words), b"");
    let command = "cat /dev/shm/of-the-engine; echo; pwd; echo $COLOUR; echo $IONET_MEMBERS; exit 7";
    let done = run(&["ssh", id, "--", command]);
    assert_eq!(done.status.code(), Some(7), "{}", shown(&done));
    let lines = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(lines.lines().collect::<Vec<_>>(), ["seen", "/home/work", "deep blue", "1"]);
    let lost = run(&["ssh", id, "3", "--", "true"]);
    assert_eq!(lost.status.code(), Some(255), "{}", shown(&lost));
    assert!(shown(&lost).contains("member_not_reachable"), "{}", shown(&lost));

    let printed = said(&run(&["ssh", "--print-config", id]));
    let file = user.join("printed.conf");
    fs::write(&file, printed).unwrap();
    // Written twice it is there once, and the rest of the file stays.
    fs::create_dir_all(user.join(".ssh")).unwrap();
    fs::write(user.join(".ssh/config"), "Host mine\n    User me\n").unwrap();
    said(&run(&["ssh", "--write-config", id]));
    said(&run(&["ssh", "--write-config", id]));
    let written = fs::read_to_string(user.join(".ssh/config")).unwrap();
    assert_eq!(written.matches("Include").count(), 1, "{written}");
    assert!(written.ends_with("Host mine\n    User me\n"), "{written}");
    let mode = fs::metadata(user.join(".ssh/config")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    file
}

fn plain_ssh(config: &Path, id: &str, user: &Path) {
    let host = format!("{id}.ionet").to_lowercase();
    let config = config.to_str().unwrap();
    let ssh = |words: &[&str]| finish(with_home("ssh", user).args(["-F", config]).args(words), b"");
    assert_eq!(said(&ssh(&[&host, "id -un; hostname"])), "work\nmember-1");
    // A terminal.
    let terminal = ssh(&["-tt", &host, "tty && stty size"]);
    assert!(said(&terminal).starts_with("/dev/pts/"), "{}", shown(&terminal));
    // A whole round of files.
    let big = user.join("big");
    fs::write(&big, (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect::<Vec<_>>()).unwrap();
    let (big, back) = (big.to_str().unwrap(), user.join("back"));
    let there = format!("{host}:by-scp");
    said(&finish(with_home("scp", user).args(["-q", "-F", config, big, &there]), b""));
    said(&finish(with_home("scp", user).args(["-q", "-F", config, &there, back.to_str().unwrap()]), b""));
    assert!(fs::read(&back).unwrap() == fs::read(big).unwrap());
    let shell = format!("ssh -F {config}");
    let there = format!("{host}:by-rsync");
    said(&finish(with_home("rsync", user).args(["-a", "-e", &shell, big, &there]), b""));
    assert_eq!(said(&ssh(&[&host, "cmp by-scp by-rsync && rm by-scp by-rsync && echo same"])), "same");
    // A port, and the port's end with ssh.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("{port}:127.0.0.1:7000");
    let options = ["-F", config, "-N", "-o", "ExitOnForwardFailure=yes", "-L", &forward, &host];
    let mut ssh = with_home("ssh", user);
    let _kept = Kept(ssh.args(options).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let until = Instant::now() + LONG_ENOUGH;
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::sleep(Duration::from_millis(20)); // poll
    };
    stream.set_read_timeout(Some(LONG_ENOUGH)).unwrap();
    echoes(&mut stream, b"through ssh");
}

fn files(home: &Home, id: &str, user: &Path) {
    let tree = user.join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/run.sh"), "echo it runs\n").unwrap();
    fs::set_permissions(tree.join("a/b/run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(tree.join("weights"), vec![3; 2_000_000]).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    let cp = |from: &str, to: &str| ok(home.run(&["--json", "cp", from, to])).json();
    let (tree, there) = (tree.to_str().unwrap(), format!("{id}:"));
    assert_eq!(cp(tree, &there)["files"], 3);
    let again = cp(tree, &there);
    assert_eq!((&again["files"], &again["skipped"]), (&0.into(), &3.into()));
    let run = |line: &str| said(&finish(&mut ionet(home, user, &["ssh", id, "--", line]), b""));
    assert_eq!(run("tree/a/b/run.sh; stat -c %a tree/a/b/run.sh"), "it runs\n750");
    // Broken off in the middle, on either side.
    run("head -c 1500000 tree/weights > tree/w2.ionet-part; cp tree/weights tree/w2; rm tree/weights");
    run("mv tree/w2.ionet-part tree/weights.ionet-part");
    let resumed = cp(&format!("{tree}/weights"), &format!("{id}:tree/weights"));
    assert_eq!((&resumed["bytes"], &resumed["resumed_bytes"]), (&500_000.into(), &1_500_000.into()));
    assert_eq!(run("cmp tree/weights tree/w2 && rm tree/w2 && ls tree | wc -l"), "3");
    let out = user.join("out");
    fs::create_dir(&out).unwrap();
    fs::create_dir(out.join("tree")).unwrap();
    fs::write(out.join("tree/weights.ionet-part"), vec![3; 700_000]).unwrap();
    let got = cp(&format!("{id}:tree"), out.to_str().unwrap());
    assert_eq!((&got["files"], &got["resumed_bytes"]), (&3.into(), &700_000.into()));
    let same = finish(Command::new("diff").args(["-r", tree]).arg(out.join("tree")), b"");
    assert_eq!(said(&same), "");
    let wrong = home.run(&["--json", "cp", &format!("{id}:no-such"), out.to_str().unwrap()]);
    refused(&wrong, "no_such_file");
}

fn shares(home: &Home, id: &str, user: &Path) {
    let (other, account) = other_account(home);
    let target = format!("{id}:7000");
    refused(&other.run(&["--json", "tunnel", &target]), "unknown_order");
    let share = |services: &str| {
        let words = ["--json", "cluster", "share", id, &account, "--services", services, "--for", "10m"];
        ok(home.run(&words)).json()
    };
    assert_eq!(share("tcp/7000,ssh,log")["shares"][0]["services"].as_array().map(Vec::len), Some(3));
    let (_tunnel, addr, _) = tunnel(&other, &[&target]);
    let mut live = connect(addr);
    echoes(&mut live, b"shared");
    let shell = finish(&mut ionet(&other, user, &["ssh", id, "--", "echo in"]), b"");
    assert_eq!(said(&shell), "in");
    assert!(ok(other.run(&["cluster", "logs", id])).stdout.contains("serving"));
    refused(&other.run(&["--json", "tunnel", &format!("{id}:7001")]), "not_allowed");
    refused(&other.run(&["--json", "cluster", "show", id]), "unknown_order");
    refused(&other.run(&["--json", "cluster", "unshare", id, &account]), "unknown_order");
    // Less than before cuts what is open, and so does none at all.
    share("tcp/7000");
    assert_cut(&mut live);
    refused(&other.run(&["--json", "cluster", "logs", id]), "not_allowed");
    let mut live = connect(addr);
    echoes(&mut live, b"again");
    ok(home.run(&["--json", "cluster", "unshare", id, &account]));
    assert_cut(&mut live);
    refused(&other.run(&["--json", "tunnel", &target]), "unknown_order");
    let log = ok(home.run(&["activity"])).stdout;
    assert!(log.contains(&account) && log.contains("tcp/7000"), "{log}");
}

/// The far side ends it, though nobody here did.
fn assert_cut(stream: &mut TcpStream) {
    let ended = stream.read(&mut [0]);
    let timed_out = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    };
    match ended {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert!(!timed_out(&error), "not cut: {error}"),
    }
}
