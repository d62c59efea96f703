//! A network of the real binary on a testbed: server, relays, workers, and a renter with money.
//!
//! Always holds: every process is started and awaited by a condition; what dies is started again only by [`Cloud::revive`],
//! which is what an init system would do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ionet_api::WalletKey;
use ionet_runtime::limits::{BoxGroup, Hierarchy, OwnGroup};
use serde_json::{Value, json};

use super::Testbed;
use super::file::{Family, Site};
use super::host::{Host, Process, Start, last_words};
use crate::random::Random;
use crate::{LabError, Result};

/// What the renter starts with.
pub const FUNDS_MICRO_USD: u64 = 100_000_000;
/// How long a start may take: longer than the two minutes after which the server asks a device again that lost a question.
const START_PATIENCE: Duration = Duration::from_mins(5);
/// A command that says nothing for so long is killed.
const COMMAND_PATIENCE_S: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SERVER_PORT: u16 = 8080;
const RELAY_PORTS: (u16, u16) = (8443, 7842);

/// What runs on a machine, and how it is started.
#[derive(Debug)]
struct Role {
    start: Start,
    process: Option<Process>,
}

/// A network of the real binary.
#[derive(Debug)]
pub struct Cloud {
    roles: BTreeMap<String, Role>,
    /// The renter's way to the server.
    pub client: Client,
    binary: PathBuf,
    url: String,
    /// Last, so that it ends last.
    pub testbed: Testbed,
}

/// Runs commands of a data directory on the client's machine.
#[derive(Debug, Clone)]
pub struct Client {
    pid: u32,
    isolated: bool,
    binary: PathBuf,
    dir: PathBuf,
    url: String,
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit status; 137 if it was killed for saying nothing.
    pub status: i32,
    /// The last line, as JSON.
    pub json: Value,
    /// All its words.
    pub text: String,
}

impl Said {
    /// "done", or the error's code.
    pub fn code(&self) -> &str {
        match self.status {
            0 => "done",
            _ => self.json["error"]["code"].as_str().unwrap_or_default(),
        }
    }
}

impl Client {
    /// Runs a command of the renter's.
    pub fn ask(&self, words: &[&str]) -> Result<Said> {
        self.ask_as(&self.dir, words)
    }

    /// A command of the renter's that goes on until it is ended.
    pub fn command(&self, words: &[&str]) -> Command {
        self.begin(Command::new("env"), &self.dir, words)
    }

    /// The command after other words.
    fn begin(&self, mut command: Command, dir: &Path, words: &[&str]) -> Command {
        if self.isolated {
            // With its processes too: the machine's /proc knows no others.
            let target = self.pid.to_string();
            command.args(["nsenter", "--target", &target, "--net", "--mount", "--uts", "--pid", "--"]);
        }
        command.arg(&self.binary).args(["--json", "--url", &self.url, "--data-dir"]).arg(dir).args(words);
        for name in ["IONET_URL", "IONET_API_KEY", "IONET_LOG", "IONET_DATA_DIR"] {
            command.env_remove(name);
        }
        command
    }

    fn ask_as(&self, dir: &Path, words: &[&str]) -> Result<Said> {
        let mut limit = Command::new("timeout");
        limit.args(["-s", "KILL", &COMMAND_PATIENCE_S.to_string()]);
        let mut command = self.begin(limit, dir, words);
        // Ctrl-C is for the lab, not for what it asks.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let output = command.stdin(Stdio::null()).output().map_err(LabError::io("start 'timeout'"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = said.lines().next_back().unwrap_or_default();
        Ok(Said {
            status: output.status.code().unwrap_or(137),
            json: serde_json::from_str(last).unwrap_or_default(),
            text: said.clone() + &String::from_utf8_lossy(&output.stderr),
        })
    }

    /// The same, and it must succeed.
    pub fn must(&self, words: &[&str]) -> Result<Value> {
        let said = self.ask(words)?;
        match said.status {
            0 => Ok(said.json),
            status => Err(LabError::Broken(format!(
                "'ionet {}' ended with {status}: {}",
                words.join(" "),
                said.text
            ))),
        }
    }
}

/// Waits until `done` gives something.
pub fn wait_for<T>(what: &str, patience: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + patience;
    loop {
        if let Some(found) = done()? {
            return Ok(found);
        }
        if Instant::now() > until {
            return Err(LabError::Broken(format!("{what} did not come within {} s", patience.as_secs())));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

impl Cloud {
    /// Starts everything and waits until every worker is in the pool.
    pub fn start(testbed: Testbed, binary: &Path) -> Result<Self> {
        let isolated = testbed.isolated();
        let server_at =
            SocketAddr::new(testbed.address("server"), if isolated { SERVER_PORT } else { free_port()? });
        let url = format!("http://{server_at}");
        let host = testbed.get("client")?;
        let client = Client {
            pid: host.pid,
            isolated,
            binary: binary.into(),
            dir: host.dir.join("data"),
            url: url.clone(),
        };
        let mut cloud = Self { testbed, roles: BTreeMap::new(), client, binary: binary.into(), url };
        let mut random = Random::new(cloud.testbed.file.seed);
        let renter = cloud.make_wallet("client", "data", &mut random)?;
        for n in 1..=cloud.testbed.file.relays.len() {
            cloud.start_relay(&format!("relay-{n}"))?;
        }
        cloud.start_server(server_at, &renter)?;
        cloud.start_workers(&mut random)?;
        cloud.wait_pooled()?;
        Ok(cloud)
    }

    /// A wallet key in a folder of a machine; its address.
    fn make_wallet(&self, host: &str, folder: &str, random: &mut Random) -> Result<String> {
        let mut seed = [0; 32];
        seed.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&random.bits().to_le_bytes()));
        let key = WalletKey::from_seed(&seed);
        let keypair: Vec<u8> = seed.into_iter().chain(key.address().0).collect();
        self.write(host, &format!("{folder}/wallet.json"), &json!(keypair).to_string())?;
        Ok(key.address().to_string())
    }

    /// Writes a file in a machine's folder; its path there.
    fn write(&self, host: &str, name: &str, text: &str) -> Result<String> {
        let host = self.testbed.get(host)?;
        let path = host.dir.join(name);
        let here = host.path(&path);
        let folder = here.parent().unwrap_or(&here);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&here, text))
            .map_err(LabError::io(format!("write {}", path.display())))?;
        Ok(path.display().to_string())
    }

    fn add_role(&mut self, name: &str, words: &[&str]) -> Result<()> {
        let data = self.testbed.get(name)?.dir.join("data");
        let mut all = vec![self.binary.display().to_string(), "--json".into()];
        all.extend(["--data-dir".into(), data.display().to_string()]);
        all.extend(words.iter().map(|word| (*word).to_owned()));
        let start = Start { words: all, variables: BTreeMap::new(), log: self.testbed.log(name) };
        self.roles.insert(name.to_owned(), Role { start, process: None });
        self.start_role(name, &BTreeMap::new())
    }

    /// Starts a machine's program, with these variables besides its own.
    pub fn start_role(&mut self, name: &str, variables: &BTreeMap<String, String>) -> Result<()> {
        let host = self.testbed.get(name)?;
        let Some(role) = self.roles.get_mut(name) else { return Ok(()) };
        let start = Start { variables: variables.clone(), ..role.start.clone() };
        role.process = Some(host.start_process(&start)?);
        Ok(())
    }

    fn start_relay(&mut self, name: &str) -> Result<()> {
        let address = self.testbed.address(name).to_string();
        let (https, quic) = if self.testbed.isolated() { RELAY_PORTS } else { (0, 0) };
        let (https, quic) = (https.to_string(), quic.to_string());
        let mut words = vec!["relay", "--bind", &address, "--https-port", &https, "--quic-port", &quic];
        if self.testbed.file.family == Family::Ipv6 {
            words.extend(["--host", name]);
        }
        self.add_role(name, &words)?;
        let log = self.testbed.log(name);
        let line = wait_for("the relay", START_PATIENCE, || Ok(first_line(&log)))?;
        self.write("server", &format!("{name}.json"), &line).map(drop)
    }

    fn start_server(&mut self, at: SocketAddr, renter: &str) -> Result<()> {
        let rules = json!({
            "epoch_ms": 2_000, "meter_period_ms": 2_000, "dispute_window_ms": 4_000, "removal_grace_ms": 30_000,
        });
        let rules = self.write("server", "rules.json", &rules.to_string())?;
        let folder = self.testbed.get("server")?.dir.display().to_string();
        let (listen, fund) = (at.to_string(), format!("{renter}={}", FUNDS_MICRO_USD / 1_000_000));
        let relays = 1..=self.testbed.file.relays.len();
        let relays: Vec<_> = relays.map(|n| format!("{folder}/relay-{n}.json")).collect();
        let mut words =
            vec!["server", "--network", "lab", "--listen", &listen, "--rules", &rules, "--fund", &fund];
        words.extend(relays.iter().flat_map(|file| ["--relay", file]));
        self.add_role("server", &words)?;
        self.wait_served(START_PATIENCE).map_err(|error| {
            let (_, errors) = last_words(&self.testbed.log("server"));
            LabError::Broken(format!("{error}: {errors}"))
        })
    }

    /// Waits until the server answers the renter.
    pub fn wait_served(&self, patience: Duration) -> Result<()> {
        wait_for("the server's answer", patience, || {
            Ok((self.client.ask(&["journal", "head"])?.status == 0).then_some(()))
        })
    }

    fn start_workers(&mut self, random: &mut Random) -> Result<()> {
        for site in self.testbed.file.sites.clone() {
            let folder = format!("suppliers/{}", site.name);
            self.make_wallet("client", &folder, random)?;
            let dir = self.testbed.get("client")?.dir.join(&folder);
            let made = self.client.ask_as(&dir, &["worker", "token", "--network", &site.name])?;
            let token = made.json["token"].as_str();
            let token = token.ok_or_else(|| LabError::Broken(format!("no joining token: {}", made.text)))?;
            let memory = format!("{}MiB", site.memory_mib);
            let disk = format!("{}MiB", if site.disk_mib == 0 { 1024 } else { site.disk_mib / 2 });
            for name in site.worker_names() {
                let token = self.write(&name, "token.txt", token)?;
                let words = [
                    "worker",
                    "start",
                    "--never-yield",
                    "--name",
                    &name,
                    "--cpus",
                    &site.cpus,
                    "--memory",
                    &memory,
                    "--disk",
                    &disk,
                    "--token-file",
                    &token,
                ];
                self.add_role(&name, &words)?;
            }
        }
        Ok(())
    }

    /// Waits until every worker is in the pool and heard.
    fn wait_pooled(&self) -> Result<()> {
        wait_for("every worker in the pool", START_PATIENCE, || Ok(self.all_heard()?.then_some(()))).map_err(
            |error| {
                let workers = self.worker_names();
                let said =
                    workers.iter().map(|name| format!("{name}: {}", last_words(&self.testbed.log(name)).1));
                let devices = self.client.ask(&["devices"]).map(|said| said.text).unwrap_or_default();
                LabError::Broken(format!("{error}\n{}\n{devices}", said.collect::<Vec<_>>().join("\n")))
            },
        )
    }

    /// Whether every worker's device is in the pool and was heard lately.
    pub fn all_heard(&self) -> Result<bool> {
        let said = self.client.ask(&["devices"])?;
        let ready = |device: &&Value| device["stage"] == "pooled" && device["status"] != "unknown";
        let ready = said.json.as_array().map_or(0, |devices| devices.iter().filter(ready).count());
        Ok(ready == self.worker_names().len())
    }

    /// The renter at another machine: the same wallet and the same files.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn client_at(&self, host: &str) -> Result<Client> {
        Ok(Client { pid: self.testbed.get(host)?.pid, ..self.client.clone() })
    }

    /// The machines with a worker.
    pub fn worker_names(&self) -> Vec<String> {
        self.testbed.file.sites.iter().flat_map(Site::worker_names).collect()
    }

    /// The machines on which a program of ours should run: server, relays, workers.
    pub fn role_names(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    /// The product's binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The program of a machine, if it runs.
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.roles.get(name)?.process.as_ref().filter(|process| process.alive())
    }

    /// Starts again, without added variables, what has ended; which.
    pub fn revive(&mut self) -> Result<Vec<String>> {
        let dead: Vec<_> =
            self.role_names().into_iter().filter(|name| self.process(name).is_none()).collect();
        for name in &dead {
            self.start_role(name, &BTreeMap::new())?;
        }
        Ok(dead)
    }

    /// The supervisors of a machine.
    pub fn supervisors(&self, name: &str) -> Vec<Process> {
        let Ok(host) = self.testbed.get(name) else { return Vec::new() };
        let is = |words: &str| words.contains(" supervisor --dir ");
        let found = host.processes().into_iter().filter(|seen| is(&seen.words));
        found.filter_map(|seen| Process::open(seen.pid)).collect()
    }

    /// Ends the server politely and verifies its journal; what was found.
    pub fn stop_server_and_verify(&mut self) -> Result<Value> {
        if let Some(server) = self.process("server") {
            server.signal(rustix::process::Signal::TERM);
            if !server.ended_within(START_PATIENCE) {
                return Err(LabError::Broken("the server does not end when asked to".into()));
            }
        }
        let host = self.testbed.get("server")?;
        let mut command = host.command(&self.binary);
        command.args(["--json", "--data-dir"]).arg(host.dir.join("data")).args(["journal", "verify"]);
        let output = command.stdin(Stdio::null()).output().map_err(LabError::io("verify the journal"))?;
        let said = super::host::succeeded(&output, "'ionet journal verify'")?;
        Ok(serde_json::from_str(said.trim()).unwrap_or_default())
    }

    /// Where to look and what to type.
    pub fn directions(&self, file: &str) -> String {
        let mut lines = vec![format!("the server is at {} for {}", self.url, self.testbed.file.name)];
        for name in self.testbed.file.hosts() {
            lines.push(format!(
                "  {name:<14} {:<16} log {}",
                self.testbed.address(&name),
                self.testbed.log(&name).display()
            ));
        }
        let (binary, dir) = (self.binary.display(), self.client.dir.display());
        lines.push("enter a machine:".into());
        lines.push(format!("  ionet-lab in {file} client -- /bin/sh"));
        lines.push("rent something:".into());
        lines.push(format!(
            "  ionet-lab in {file} client -- {binary} --data-dir {dir} --url {} cluster create --engine command --memory 64MiB --for 5m --yes --follow -- /bin/echo hello",
            self.url
        ));
        lines.join("\n")
    }
}

fn first_line(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.split_once('\n').map(|(line, _)| line.to_owned())
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    Ok(listener.map_err(LabError::io("find a free port"))?.port())
}

/// Leases that a machine still has files of.
pub(super) fn leases_of(host: &Host) -> BTreeSet<String> {
    let folder = std::fs::read_dir(host.path(&host.dir.join("data/worker/leases")));
    folder
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Removes the control groups of a box and its supervisor whose machine is gone.
pub(super) fn remove_group(lease: &str) {
    let (hierarchy, name) = (Hierarchy::detect(), lease.replace('.', "-"));
    BoxGroup::existing(&hierarchy, &name).remove();
    OwnGroup::clear(&hierarchy, &name);
}
