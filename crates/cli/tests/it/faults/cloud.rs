//! A network of separate processes on the loopback: one server, agents of any number of suppliers, one funded renter.
//!
//! Always holds: when it is dropped, also by a panic, no process, mount or control group of it is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ionet_api::WalletKey;
use serde_json::{Value, json};

use crate::kit::{Home, Said};

/// What the renter starts with.
pub(super) const FUNDS_USD: u64 = 100;
/// How long anything may take before the test says that it does not come.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until `done` gives something; says what was waited for if it never does.
pub(super) fn wait_for<T>(what: &str, patience: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come within {patience:?}");
        thread::sleep(Duration::from_millis(20)); // poll
    }
}

/// An agent and how it is started.
struct Agent {
    supplier: String,
    cpus: String,
    memory: String,
    path: Option<PathBuf>,
    child: Option<Child>,
}

pub(super) struct Cloud {
    pub(super) home: Arc<Home>,
    pub(super) renter: Renter,
    listen: String,
    server_words: Vec<String>,
    server: Option<Child>,
    relay: Option<Child>,
    agents: BTreeMap<u32, Agent>,
    starts: u32,
}

/// Short periods, so that everything can be watched.
pub(super) fn short_periods() -> Value {
    json!({
        "epoch_ms": 2_000, "meter_period_ms": 2_000, "dispute_window_ms": 4_000, "removal_grace_ms": 30_000,
    })
}

impl Cloud {
    /// A server under these rules, served.
    pub(super) fn new(rules: &Value) -> Self {
        Self::with_server(rules, &[])
    }

    /// The same with more words for the server.
    pub(super) fn with_server(rules: &Value, more: &[&str]) -> Self {
        let home = Arc::new(Home::new());
        let renter = make_wallet(home.path());
        let rules_path = home.path().join("rules.json");
        fs::write(&rules_path, rules.to_string()).unwrap();
        let fund = format!("{renter}={FUNDS_USD}");
        let words = ["--network", "test", "--fund", &fund, "--rules", rules_path.to_str().unwrap()];
        let server_words = words.iter().chain(more).map(|word| (*word).to_owned()).collect();
        let mut cloud = Self {
            renter: Renter(Arc::clone(&home)),
            home,
            listen: "127.0.0.1:0".into(),
            server_words,
            server: None,
            relay: None,
            agents: BTreeMap::new(),
            starts: 0,
        };
        cloud.start_server();
        let url = cloud.wait_served();
        url.trim_start_matches("http://").clone_into(&mut cloud.listen);
        cloud
    }

    /// Starts a relay, to be named to the server with what this gives: the file with its line, and its TCP port.
    pub(super) fn start_relay(&mut self) -> (PathBuf, u16) {
        let out = self.home.path().join("relay.json");
        let mut command = self.home.command(&["--json", "relay"]);
        self.relay = Some(spawn(&mut command, &out, &out.with_extension("err")));
        let line = wait_for("the relay", PATIENCE, || first_line(&out));
        let mut port = line.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
        (out, port.find(|port| *port > 1024).unwrap())
    }

    fn server_log(&self) -> PathBuf {
        self.home.path().join(format!("server-{}.err", self.starts))
    }

    /// What the server now, or the one before, said on its error output.
    pub(super) fn server_said(&self) -> String {
        fs::read_to_string(self.server_log()).unwrap_or_default()
    }

    /// Everything that the server said.
    pub(super) fn server_out(&self) -> String {
        fs::read_to_string(self.server_log().with_extension("out")).unwrap_or_default() + &self.server_said()
    }

    /// Starts the server's process and does not wait.
    pub(super) fn start_server(&mut self) {
        assert!(self.server.is_none());
        self.starts += 1;
        let words: Vec<&str> = self.server_words.iter().map(String::as_str).collect();
        let words = [&["--json", "server", "--listen", &self.listen][..], &words].concat();
        let mut command = self.home.command(&words);
        let err = self.server_log();
        self.server = Some(spawn(&mut command, &err.with_extension("out"), &err));
    }

    /// Waits until the server answers; its URL.
    pub(super) fn wait_served(&mut self) -> String {
        let out = self.server_log().with_extension("out");
        let line = wait_for("the server", PATIENCE, || {
            if let Some(status) = self.server.as_mut().and_then(|server| server.try_wait().unwrap()) {
                panic!("the server ended ({status}): {}", self.server_said());
            }
            first_line(&out)
        });
        let said: Value = serde_json::from_str(&line).unwrap();
        said["url"].as_str().unwrap().to_owned()
    }

    /// Kills the server as hard as it goes.
    pub(super) fn kill_server(&mut self) {
        kill(self.server.take().as_mut());
    }

    /// Waits until the server ends by itself.
    pub(super) fn server_ended(&mut self) -> ExitStatus {
        let server = self.server.as_mut().expect("a server");
        let status = wait_for("the server's end", PATIENCE, || server.try_wait().unwrap());
        self.server = None;
        status
    }

    /// Ends the server politely.
    pub(super) fn stop_server(&mut self) {
        let pid = self.server.as_ref().expect("a server").id();
        signal(pid, "-TERM");
        let status = self.server_ended();
        assert!(status.success(), "{status}: {}", self.server_said());
    }

    pub(super) fn port(&self) -> u16 {
        self.listen.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Adds an agent of `supplier` and starts it.
    pub(super) fn add_agent(&mut self, supplier: &str, cpus: &str) -> u32 {
        self.add_agent_with(supplier, cpus, "512MiB", None)
    }

    /// The same with more memory, or with its own `PATH`.
    pub(super) fn add_agent_with(
        &mut self,
        supplier: &str,
        cpus: &str,
        memory: &str,
        path: Option<PathBuf>,
    ) -> u32 {
        let dir = self.home.path().join(supplier);
        let token_path = dir.join("token.txt");
        if !token_path.exists() {
            make_wallet(&dir);
            let (url, dir) = (format!("http://{}", self.listen), dir.display().to_string());
            let made = self.home.run(&["--json", "--data-dir", &dir, "worker", "token", "--url", &url]);
            assert_eq!(made.status, 0, "{}", made.text());
            fs::write(&token_path, made.json()["token"].as_str().unwrap()).unwrap();
        }
        let n = u32::try_from(self.agents.len()).unwrap() + 1;
        let (supplier, cpus, memory) = (supplier.to_owned(), cpus.to_owned(), memory.to_owned());
        self.agents.insert(n, Agent { supplier, cpus, memory, path, child: None });
        self.start_agent(n);
        n
    }

    /// The data directory of an agent.
    pub(super) fn agent_dir(&self, n: u32) -> PathBuf {
        self.home.path().join(format!("workers/{n}"))
    }

    pub(super) fn start_agent(&mut self, n: u32) {
        let dir = self.agent_dir(n);
        fs::create_dir_all(&dir).unwrap();
        let agent = &self.agents[&n];
        let token = self.home.path().join(&agent.supplier).join("token.txt");
        let words =
            ["--json", "worker", "start", "--never-yield", "--disk", "1GiB", "--memory", &agent.memory];
        let name = format!("agent-{n}");
        let mut command = self.home.command(&words);
        command.arg("--environments").arg(self.home.path().join("environments"));
        command.args(["--cpus", &agent.cpus, "--ask", "0.10", "--name", &name, "--token-file"]).arg(token);
        command.arg("--data-dir").arg(&dir);
        if let Some(path) = &agent.path {
            command.env("PATH", path);
        }
        let log = dir.join("agent.err");
        let child = spawn(&mut command, &dir.join("agent.out"), &log);
        self.agents.get_mut(&n).unwrap().child = Some(child);
    }

    pub(super) fn kill_agent(&mut self, n: u32) {
        kill(self.agents.get_mut(&n).unwrap().child.take().as_mut());
    }

    /// Kills every agent and starts it again: a new link at once instead of when the old one is found dead.
    pub(super) fn restart_agents(&mut self) {
        for n in self.agents.keys().copied().collect::<Vec<_>>() {
            self.kill_agent(n);
            self.start_agent(n);
        }
    }

    /// Waits until every agent is in the pool.
    pub(super) fn wait_pooled(&self) {
        let wanted = self.agents.len();
        wait_for("the pool", PATIENCE, || {
            let said = self.renter.say(&["devices"]);
            let ready = |device: &&Value| device["stage"] == "pooled" && device["status"] != "unknown";
            (said.as_array()?.iter().filter(ready).count() == wanted).then_some(())
        });
    }

    /// Waits until an agent says that its link is up.
    pub(super) fn wait_linked(&self, n: u32) {
        let path = self.agent_dir(n).join("worker/status.json");
        let pid = self.agents[&n].child.as_ref().map(Child::id);
        wait_for("the agent's link", PATIENCE, || {
            let status: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            (status["linked"] == true && status["pid"].as_u64() == pid.map(u64::from)).then_some(())
        });
    }

    /// The device of an agent.
    pub(super) fn device(&self, n: u32) -> String {
        let path = self.agent_dir(n).join("worker/device.json");
        let identity: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        identity["device"].as_str().unwrap().to_owned()
    }

    /// Which agent a device is.
    pub(super) fn agent_of(&self, device: &Value) -> u32 {
        let is = |n: &u32| device.as_str() == Some(self.device(*n).as_str());
        self.agents.keys().copied().find(is).expect("a device of this network")
    }

    /// The lease that fills a slot now, and the agent that has it.
    pub(super) fn member(&self, cluster: &str, slot: u64) -> (String, u32) {
        let view = self.renter.show(cluster);
        let leases = view["leases"].as_array().unwrap().iter();
        let mut live = leases.filter(|lease| {
            lease["slot"] == slot && (lease["phase"] == "ready" || lease["phase"] == "placed")
        });
        let lease = live.next_back().unwrap_or_else(|| panic!("no member {slot} in {view}"));
        (lease["lease"].as_str().unwrap().to_owned(), self.agent_of(&lease["device"]))
    }

    /// What a box has printed, read on its machine.
    pub(super) fn output(&self, agent: u32, lease: &str) -> String {
        let lease_dir = fs::read_dir(self.agent_dir(agent).join("worker/leases").join(lease));
        let mut folders = lease_dir.into_iter().flatten().flatten();
        let read = |folder: fs::DirEntry| fs::read(folder.path().join("log/output.log")).ok();
        let output = folders.find_map(read).unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Supervisors that run, by lease.
    pub(super) fn supervisors(&self) -> BTreeMap<String, u32> {
        let home = self.home.path().display().to_string();
        let mut found = BTreeMap::new();
        for (pid, words) in processes() {
            let dir =
                words.split_once("supervisor --dir ").and_then(|(_, dir)| dir.trim().strip_prefix(&home));
            if let Some(lease) = dir.and_then(|dir| dir.rsplit('/').next()) {
                // A child that it has just forked has its words for a moment, and a higher number.
                found
                    .entry(lease.to_owned())
                    .and_modify(|first: &mut u32| *first = pid.min(*first))
                    .or_insert(pid);
            }
        }
        found
    }

    /// Nothing of any box is left: no supervisor, no box.
    pub(super) fn wait_no_boxes(&self) {
        wait_for("the end of all supervisors", PATIENCE, || self.supervisors().is_empty().then_some(()));
    }
}

/// Runs the commands of a data directory with a funded wallet.
#[derive(Clone)]
pub(super) struct Renter(Arc<Home>);

impl Renter {
    /// Runs a command of the renter's with `--json`.
    pub(super) fn run(&self, words: &[&str]) -> Said {
        self.0.run(&[&["--json"], words].concat())
    }

    /// The same, and it must succeed.
    pub(super) fn say(&self, words: &[&str]) -> Value {
        let said = self.run(words);
        assert_eq!(said.status, 0, "{words:?}: {}", said.text());
        said.json()
    }

    /// Orders a cluster and waits until it is up; its name.
    pub(super) fn order(&self, more: &[&str], program: &[&str]) -> String {
        self.say(&order_words(more, program))["id"].as_str().unwrap().to_owned()
    }

    pub(super) fn show(&self, cluster: &str) -> Value {
        self.say(&["cluster", "show", cluster])
    }

    /// Waits until a cluster is what is wanted; what it is then.
    pub(super) fn wait_cluster(&self, cluster: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            last = self.show(cluster);
            if wanted(&last) {
                return last;
            }
            thread::sleep(Duration::from_millis(100)); // poll
        }
        panic!("{cluster} is not {what}: {last}");
    }

    /// Waits until an order is paid out and settled.
    pub(super) fn wait_over(&self, cluster: &str) -> Value {
        self.wait_cluster(cluster, "over", is_over)
    }

    /// Events of a subject with their bodies.
    pub(super) fn events(&self, subject: &str) -> Vec<Value> {
        let events = self.say(&["journal", "show", subject, "--limit", "1000"]);
        events.as_array().unwrap().iter().map(|event| event["event"].clone()).collect()
    }

    /// All money is where it should be: what the renter lacks was charged, and no order holds any.
    pub(super) fn check_money(&self) {
        let wallet = self.say(&["wallet", "show"]);
        let clusters = self.say(&["cluster", "ls", "--all"]);
        let charged = |view: &Value| view["bill"]["total_micro_usd"].as_u64().unwrap();
        for view in clusters.as_array().unwrap() {
            let bill = &view["bill"];
            assert!(charged(view) <= bill["escrow_micro_usd"].as_u64().unwrap(), "{view}");
            let back = bill["refund_micro_usd"].as_u64().unwrap();
            assert_eq!(charged(view) + back, bill["escrow_micro_usd"].as_u64().unwrap(), "{view}");
        }
        let charged: u64 = clusters.as_array().unwrap().iter().map(charged).sum();
        let iosd = &wallet["holdings"][0];
        assert_eq!(iosd["available"].as_u64().unwrap() + charged, FUNDS_USD * 1_000_000, "{wallet}");
        assert_eq!(iosd["in_orders"], 0, "{wallet}");
    }

    /// The journal of the server, which need not run.
    pub(super) fn verify(&self) -> Value {
        let found = self.say(&["journal", "verify"]);
        assert_eq!(found["verified"], true, "{found}");
        found
    }
}

/// The words that order small boxes with this program.
pub(super) fn order_words<'a>(more: &[&'a str], program: &[&'a str]) -> Vec<&'a str> {
    let small = ["--engine", "command", "--memory", "48MiB", "--disk", "16MiB", "--yes"];
    [&["cluster", "create"][..], &small, more, &["--"], program].concat()
}

/// Whether an order has ended and its money is settled.
pub(super) fn is_over(view: &Value) -> bool {
    view["stage"] == "settled" || view["stage"] == "paid"
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let children = self.agents.values_mut().filter_map(|agent| agent.child.as_mut());
        for child in children.chain(self.server.as_mut()).chain(self.relay.as_mut()) {
            kill(Some(child));
        }
        if thread::panicking() {
            self.show_logs();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let left = self.supervisors();
            if left.is_empty() {
                break;
            }
            for pid in left.values() {
                signal(*pid, "-KILL");
            }
            thread::sleep(Duration::from_millis(20)); // poll
        }
        let folders = (1..=self.agents.len())
            .filter_map(|n| fs::read_dir(self.agent_dir(u32::try_from(n).ok()?).join("worker/leases")).ok());
        let leases: BTreeSet<_> = folders
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        for lease in &leases {
            remove_groups(lease);
        }
    }
}

impl Cloud {
    fn show_logs(&self) {
        eprintln!("--- server\n{}", last_lines(&self.server_log()));
        for n in self.agents.keys() {
            eprintln!("--- agent {n}\n{}", last_lines(&self.agent_dir(*n).join("agent.err")));
        }
    }
}

fn last_lines(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Control groups of a box whose supervisor was killed and whose agent is gone too.
fn remove_groups(lease: &str) {
    let name = format!("ionet-{}", lease.replace('.', "-"));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        for mounted in [controllers, controllers.trim_start_matches("name="), "unified"] {
            let mount = Path::new("/sys/fs/cgroup").join(mounted);
            for folder in mount.join(group.trim_start_matches('/')).ancestors() {
                if folder.starts_with("/sys/fs/cgroup") {
                    let _ = fs::remove_dir(folder.join(&name));
                    let _ = fs::remove_dir(folder.join(format!("{name}-supervisor")));
                }
            }
        }
    }
}

/// A new wallet key in a data directory; its address.
pub(super) fn make_wallet(dir: &Path) -> String {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).unwrap();
    let key = WalletKey::from_seed(&seed);
    let keypair: Vec<u8> = seed.into_iter().chain(key.address().0).collect();
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("wallet.json"), json!(keypair).to_string()).unwrap();
    key.address().to_string()
}

/// Starts a process in a group of its own with its words in files.
pub(super) fn spawn(command: &mut Command, out: &Path, err: &Path) -> Child {
    let open = |path: &Path| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::options().create(true).append(true).open(path).unwrap()
    };
    let command = command.stdin(Stdio::null()).stdout(open(out)).stderr(open(err)).process_group(0);
    command.spawn().unwrap()
}

fn first_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.split_once('\n').map(|(line, _)| line.to_owned())
}

fn kill(child: Option<&mut Child>) {
    if let Some(child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Sends a signal to one process.
pub(super) fn signal(pid: u32, signal: &str) {
    let _ = Command::new("kill").args([signal, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Every process of this machine with its words, separated by spaces.
pub(super) fn processes() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let words = pids.filter_map(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&words).replace('\0', " ")))
    });
    words.collect()
}

/// Processes whose words have `marker` in them, other than commands of the test.
pub(super) fn marked(marker: &str) -> Vec<u32> {
    let own = |words: &str| words.contains("cluster create");
    let found = processes().into_iter().filter(|(_, words)| words.contains(marker) && !own(words));
    found.map(|(pid, _)| pid).collect()
}
