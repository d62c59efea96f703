//! From order to work: a two-node Ray cluster through ionet, and the same started by hand with `ray start`, in turn.
//!
//! Always holds: both use the very same environment, the one that ionet prepared, and are asked the same: a task has
//! run on every member, `/api/jobs/` answers, the client's port answers. By hand, the two nodes share this machine's
//! network and the second is started as soon as the first one's port answers. Each node by hand is in a process
//! namespace of its own that ends with this process, so nothing of it stays.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::plot::{Plot, Series};
use super::{Figure, Report, Target, percentile, sorted};
use crate::{LabError, Result};

const PATIENCE: Duration = Duration::from_mins(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const NODES: u32 = 2;
/// As the quickstart's members have it.
const OBJECT_STORE_BYTES: u64 = (2 << 30) / 100 * 30;
const TOKEN: &str = "a-token-of-the-bench-that-protects-nothing-but-this-machine";
const FIRST_TASKS: &str = include_str!("plain_first_tasks.py");

/// The parts that quickstart tells, and what each may take in seconds if that was promised.
const PARTS: [(&str, &str, Option<f64>); 8] = [
    ("match_ms", "ionet_match", None),
    ("lease_ms", "ionet_lease", None),
    ("boxes_ms", "ionet_boxes", None),
    ("overlay_ms", "ionet_overlay", None),
    ("engine_ms", "ionet_engine", None),
    ("first_task_ms", "ionet_first_task", Some(10.0)),
    ("jobs_api_ms", "ionet_jobs_api", Some(20.0)),
    ("client_ms", "ionet_client", Some(20.0)),
];
const PLAIN: [&str; 3] = ["plain_first_task", "plain_jobs_api", "plain_client"];

/// Runs `rounds` of both in `dir`, after one through ionet that prepares the environment.
pub fn run(dir: &Path, binary: &Path, rounds: usize) -> Result<Report> {
    let dir = &dir.canonicalize().map_err(LabError::io("look at the bench's folder"))?;
    let cold = quickstart(dir, binary)?;
    let python = environment(dir)?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for round in 0..rounds.max(1) {
        ours.push(quickstart(dir, binary)?);
        plain.push(by_hand(&python)?);
        eprintln!("round {} of {}", round + 1, rounds.max(1));
    }
    Ok(report(cold[PARTS.len() - 2], &ours, &plain))
}

/// Each of [`PARTS`] of one quickstart, in seconds.
fn quickstart(dir: &Path, binary: &Path) -> Result<[f64; PARTS.len()]> {
    let words = ["quickstart", "--json", "--trials", "2", "--data-dir"];
    let output = Command::new(binary).args(words).arg(dir).stdin(Stdio::null()).output();
    let output = output.map_err(LabError::io(format!("start {}", binary.display())))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_default();
    let ms = |part: &str| figures["timeline"][part].as_f64();
    let parts: Option<Vec<f64>> = PARTS.iter().map(|(part, ..)| ms(part).map(|ms| ms / 1000.0)).collect();
    let parts = parts.and_then(|parts| <[f64; PARTS.len()]>::try_from(parts).ok());
    parts.ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        LabError::Broken(format!("the quickstart ended with {}: {said}{errors}", output.status))
    })
}

/// The interpreter of the environment that the quickstart prepared.
fn environment(dir: &Path) -> Result<PathBuf> {
    let folders = std::fs::read_dir(dir.join("environments"));
    let folders = folders.map_err(LabError::io("look at the prepared environments"))?;
    let pythons = folders.flatten().map(|folder| folder.path().join("bin/python"));
    let mut found: Vec<_> = pythons.filter(|python| python.exists()).collect();
    found.sort();
    found.into_iter().next().ok_or_else(|| LabError::Broken("the quickstart left no environment".into()))
}

/// Seconds to the first task on every node, the Jobs API and the client's port.
fn by_hand(python: &Path) -> Result<[f64; 3]> {
    let ports = Ports::free()?;
    let begun = Instant::now();
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut head = Node::head(python, &ports)?;
    let first_tasks = head.done();
    let mut member = None;
    let mut took: [Option<f64>; 3] = [None; 3];
    while took.contains(&None) {
        head.alive()?;
        match &mut member {
            None if TcpStream::connect(at(ports.gcs)).is_ok() => member = Some(Node::member(python, &ports)?),
            None => {}
            Some(member) => member.alive()?,
        }
        let up = [
            first_tasks.load(Ordering::Acquire),
            jobs_answer(at(ports.dashboard)),
            TcpStream::connect(at(ports.client)).is_ok(),
        ];
        for (took, _) in took.iter_mut().zip(up).filter(|(_, up)| *up) {
            took.get_or_insert(begun.elapsed().as_secs_f64());
        }
        if begun.elapsed() > PATIENCE {
            return Err(LabError::Broken(format!(
                "plain Ray is not up after {} s: {took:?}",
                PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(took.map(Option::unwrap_or_default))
}

/// The ports that are named; Ray finds the others itself.
struct Ports {
    gcs: u16,
    client: u16,
    dashboard: u16,
    agents: [u16; 2],
}

impl Ports {
    fn free() -> Result<Self> {
        // All are held at once, so that no two are the same.
        let held = [(); 5].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let mut ports = Vec::new();
        for listener in held {
            let addr = listener.and_then(|listener| listener.local_addr());
            ports.push(addr.map_err(LabError::io("find a free port"))?.port());
        }
        let [gcs, client, dashboard, first, second] = ports[..] else {
            return Err(LabError::Broken("five ports are five".into()));
        };
        Ok(Self { gcs, client, dashboard, agents: [first, second] })
    }

    fn head_words(&self) -> Vec<String> {
        let mut words = Self::shared_words(self.agents[0]);
        words.extend([
            "--head".into(),
            format!("--port={}", self.gcs),
            format!("--ray-client-server-port={}", self.client),
            "--dashboard-host=127.0.0.1".into(),
            format!("--dashboard-port={}", self.dashboard),
        ]);
        words
    }

    fn member_words(&self) -> Vec<String> {
        let mut words = Self::shared_words(self.agents[1]);
        words.push("--block".into());
        words.push(format!("--address=127.0.0.1:{}", self.gcs));
        words
    }

    fn shared_words(agent: u16) -> Vec<String> {
        vec![
            "--node-ip-address=127.0.0.1".into(),
            "--num-cpus=1".into(),
            format!("--object-store-memory={OBJECT_STORE_BYTES}"),
            format!("--dashboard-agent-listen-port={agent}"),
        ]
    }
}

/// A node by hand in a process namespace, with its own temporary folder and shared memory. Its standard output is the
/// driver's, if there is one; everything else that is said goes to the log.
struct Node {
    child: Child,
    log: File,
}

/// `ray start`, and then either the driver or nothing more, which `--block` is for.
const START: &str = r#"python=$0; "$python" -m ray.scripts.scripts start --disable-usage-stats "$@" >&2 || exit
[ -z "$DRIVER" ] || exec "$python" -c "$DRIVER""#;

impl Node {
    fn head(python: &Path, ports: &Ports) -> Result<Self> {
        let address = format!("'127.0.0.1:{}', {NODES}", ports.gcs);
        Self::start(python, &ports.head_words(), &format!("ARGUMENTS = ({address})\n{FIRST_TASKS}"))
    }

    fn member(python: &Path, ports: &Ports) -> Result<Self> {
        Self::start(python, &ports.member_words(), "")
    }

    fn start(python: &Path, words: &[String], driver: &str) -> Result<Self> {
        let log = tempfile::tempfile().map_err(LabError::io("make a log"))?;
        let errors = log.try_clone().map_err(LabError::io("copy the log's handle"))?;
        let mut command = Command::new("bwrap");
        command.args(["--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent"]);
        command.args(["--tmpfs", "/tmp", "--tmpfs", "/dev/shm"]);
        if let Some(environment) = python.parent().and_then(Path::parent) {
            // It may be below the folder that was just hidden.
            command.arg("--ro-bind").arg(environment).arg(environment);
        }
        command.args(["--", "/bin/sh", "-c", START]);
        command.arg(python).args(words).env("DRIVER", driver);
        command.env("RAY_AUTH_MODE", "token").env("RAY_AUTH_TOKEN", TOKEN);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
        Ok(Self { child: child.map_err(LabError::io("start bwrap"))?, log })
    }

    /// Set once the driver has said that it is done.
    fn done(&mut self) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        if let Some(output) = self.child.stdout.take() {
            let tell = done.clone();
            // It ends with the driver, whose output it reads.
            std::thread::spawn(move || {
                let line = BufReader::new(output).lines().next();
                tell.store(matches!(line, Some(Ok(_))), Ordering::Release);
            });
        }
        done
    }

    fn alive(&mut self) -> Result<()> {
        if matches!(self.child.try_wait(), Ok(None)) {
            return Ok(());
        }
        let mut said = String::new();
        let read = self.log.rewind().and_then(|()| self.log.read_to_string(&mut said));
        read.map_err(LabError::io("read the log"))?;
        Err(LabError::Broken(format!("plain Ray ended: {said}")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the Jobs API gives its list.
fn jobs_answer(at: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        let head = format!("GET /api/jobs/ HTTP/1.0\r\nHost: {at}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut first = [0; 12];
        stream.read_exact(&mut first)?;
        Ok(first.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

fn report(cold_jobs_api_s: f64, ours: &[[f64; PARTS.len()]], plain: &[[f64; 3]]) -> Report {
    let median = |values: Vec<f64>| percentile(&sorted(values), 50);
    let part = |n: usize| median(ours.iter().map(|round| round[n]).collect());
    let by_hand = |n: usize| median(plain.iter().map(|round| round[n]).collect());
    let of_ionet = PARTS.iter().enumerate().map(|(n, (_, name, most))| {
        let figure = Figure::new(*name, part(n), "s");
        most.map_or(figure.clone(), |most| figure.target(Target::Below(most)))
    });
    let of_plain = PLAIN.iter().enumerate().map(|(n, name)| Figure::new(*name, by_hand(n), "s"));
    let mut figures: Vec<_> = of_ionet.chain(of_plain).collect();
    figures.push(Figure::new("ionet_jobs_api_environment_made", cold_jobs_api_s, "s"));
    let line = |name: &str, values: Vec<f64>| {
        let points = values.into_iter().enumerate().map(|(n, s)| ((n + 1) as f64, s)).collect();
        Series { name: name.into(), points }
    };
    let series = vec![
        line("ionet: first task", ours.iter().map(|round| round[5]).collect()),
        line("by hand: first task", plain.iter().map(|round| round[0]).collect()),
        line("ionet: Jobs API", ours.iter().map(|round| round[6]).collect()),
        line("by hand: Jobs API", plain.iter().map(|round| round[1]).collect()),
    ];
    let plot = Plot {
        title: "two nodes of one CPU on this machine: from order to work".into(),
        x_label: "round".into(),
        y_label: "s".into(),
        series,
    };
    let rounds = ours.len();
    let what =
        format!("order to work on {NODES} nodes, {rounds} rounds in turn with 'ray start' by hand; medians");
    Report { bench: "ray", what, figures, plot }
}
