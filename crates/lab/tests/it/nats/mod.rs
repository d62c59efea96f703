//! Clusters of the real binary over real routers, in namespaces: each case is a testbed, a plain cluster with a member on
//! every worker, and a condition waited for.
//!
//! Always holds: nothing waits for a time, all for a condition, within [`PATIENCE`]; what does not come is named together
//! with the paths that were there instead. How long things took is printed, never judged.

mod alone;
mod apart;
mod doors;
mod faults;
mod listen;
mod pairs;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ionet_lab::testbed::Testbed;
use ionet_lab::testbed::cloud::{Client, Cloud, wait_for};
use ionet_lab::testbed::file::TestbedFile;
use ionet_lab::testbed::member::Member;
use serde_json::Value;

use crate::testbed::{LAB, binary, missing};

/// A CI machine is slow; all of this comes within seconds elsewhere.
const PATIENCE: Duration = Duration::from_mins(3);
const PYTHON: &str = "/usr/bin/python3";
const SERVE: &str = include_str!("serve.py");
const CARRY: &str = include_str!("carry.py");
const TALK: &str = include_str!("talk.py");
const REACH: &str = include_str!("reach.py");

const CONE: &str = "nat = 'cone'";
const SYMMETRIC: &str = "nat = 'symmetric'";

/// So many relays, and sites by name and what their routers do, as a testbed's file has them.
fn bed(relays: usize, sites: &[(&str, &str)]) -> String {
    let sites = sites.iter().map(|(name, routers)| format!("[[sites]]\nname = '{name}'\n{routers}\n"));
    "[[relays]]\n".repeat(relays) + &sites.collect::<String>()
}

/// A server, relays, and sites of one worker each.
fn up(case: &str, sites: &str) -> Option<Cloud> {
    if missing() {
        return None;
    }
    let name = format!("{case}-{}", std::process::id());
    let file = TestbedFile::parse(&format!("name = '{name}'\n{sites}")).unwrap();
    let begun = Instant::now();
    let testbed = Testbed::up_by(Path::new(LAB), file, true).unwrap();
    let cloud = Cloud::start(testbed, &binary()).unwrap();
    println!("{case}: everything is up after {:.1} s", begun.elapsed().as_secs_f64());
    Some(cloud)
}

/// A cluster with a member on every worker; members are named by their sites.
struct Cluster {
    id: String,
    members: BTreeMap<String, Member>,
    client: Client,
}

/// How one member reaches another, as both are told of to the renter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    path: String,
    via: String,
}

/// By from and to.
type Links = BTreeMap<(String, String), Link>;

impl Cluster {
    fn rent(cloud: &Cloud, words: &[&str]) -> Self {
        Self::rent_on(cloud, cloud.worker_names().len(), words)
    }

    /// The same with a member on each of so many workers.
    fn rent_on(cloud: &Cloud, count: usize, words: &[&str]) -> Self {
        let count = count.to_string();
        let order = [
            "cluster", "create", "--engine", "command", "--memory", "64MiB", "--disk", "64MiB", "--spread",
            "--for", "1h",
        ];
        let program = ["-n", &count, "--yes", "--", PYTHON, "-uc", SERVE];
        let view = cloud.client.must(&[&order, words, &program].concat()).unwrap();
        let id = view["id"].as_str().unwrap().to_owned();
        let mut cluster = Self { id, members: BTreeMap::new(), client: cloud.client.clone() };
        cluster.find(cloud).unwrap();
        cluster
    }

    /// Finds out where its members are now.
    fn find(&mut self, cloud: &Cloud) -> ionet_lab::Result<()> {
        let site = |member: &Member| member.host.trim_end_matches("-1").to_owned();
        let members = cloud.members(&self.id)?;
        self.members = members.into_iter().map(|member| (site(&member), member)).collect();
        Ok(())
    }

    fn links(&self) -> Links {
        let network = self.client.must(&["cluster", "network", &self.id]).unwrap();
        let site = |slot: &Value| {
            let member = self.members.iter().find(|(_, member)| Some(member.slot) == slot.as_u64());
            member.unwrap().0.clone()
        };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let link = |view: &Value| {
            let link = Link { path: text(&view["link"]["path"]), via: text(&view["link"]["via"]) };
            ((site(&view["from"]), site(&view["to"])), link)
        };
        network["links"].as_array().unwrap().iter().map(link).collect()
    }

    /// Waits until the links are so; how long it took.
    fn until(&self, what: &str, mut so: impl FnMut(&Links) -> bool) -> Duration {
        let begun = Instant::now();
        let mut seen = Links::new();
        let came = wait_for(what, PATIENCE, || {
            seen = self.links();
            Ok(so(&seen).then_some(()))
        });
        came.unwrap_or_else(|error| panic!("{error}; {}", table(&seen)));
        begun.elapsed()
    }

    /// Waits until two reach each other so, in both directions.
    fn until_path(&self, [one, other]: [&str; 2], path: &str) -> Duration {
        let pairs = [(one, other), (other, one)].map(|(from, to)| (from.to_owned(), to.to_owned()));
        self.until(&format!("{one} and {other} {path}"), |links| {
            pairs.iter().all(|pair| links.get(pair).is_some_and(|link| link.path == path))
        })
    }

    /// A member's bytes arrive whole at these others, over IPv4 and IPv6; how long it took.
    fn carries(&self, from: &str, to: &[&str], bytes: usize) -> Duration {
        let begun = Instant::now();
        let peers = to.iter().map(|to| self.members[*to].ip.to_string());
        let mut carry = self.members[from].command(PYTHON);
        carry.args(["-c", CARRY, &bytes.to_string()]).args(peers).stdin(Stdio::null());
        let output = carry.output().unwrap();
        assert!(
            output.status.success() && output.stdout == b"whole\n",
            "{from} to {to:?}: {output:?}; {}",
            table(&self.links())
        );
        begun.elapsed()
    }

    fn talk(&self, [from, to]: [&str; 2]) -> Talk {
        let mut talk = self.members[from].command(PYTHON);
        talk.args(["-uc", TALK, &self.members[to].ip.to_string()]);
        Talk::start(&format!("{from} to {to}"), talk)
    }

    fn end(self) {
        self.client.must(&["cluster", "rm", &self.id, "--yes"]).unwrap();
    }
}

/// The links for a human's eyes.
fn table(links: &Links) -> String {
    let line = |((from, to), link): (&(String, String), &Link)| {
        format!("\n  {from} to {to}: {} {}", link.path, link.via)
    };
    links.iter().map(line).fold("the paths are:".to_owned(), |all, line| all + &line)
}

/// Questions from one member to another, all the time, over one TCP connection and over UDP; ends when dropped.
struct Talk {
    name: String,
    heard: Arc<Mutex<Heard>>,
    child: Child,
}

#[derive(Debug, Default)]
struct Heard {
    /// When each of the two was answered last, and the longest time without an answer since it was asked for.
    of: BTreeMap<String, (Instant, Duration)>,
    count: BTreeMap<String, u64>,
}

impl Heard {
    fn note(&mut self, kind: &str) {
        let now = Instant::now();
        let (last, longest) = self.of.entry(kind.to_owned()).or_insert((now, Duration::ZERO));
        *longest = now.duration_since(*last).max(*longest);
        *last = now;
        *self.count.entry(kind.to_owned()).or_default() += 1;
    }
}

impl Talk {
    fn start(name: &str, mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (lines, noted) = (BufReader::new(child.stdout.take().unwrap()).lines(), heard.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                noted.lock().unwrap_or_else(PoisonError::into_inner).note(&line);
            }
        });
        let mut talk = Self { name: name.into(), heard, child };
        talk.goes_on("at its beginning");
        talk
    }

    fn count(&self) -> [u64; 2] {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        ["tcp", "udp"].map(|kind| heard.count.get(kind).copied().unwrap_or(0))
    }

    /// Waits until both were answered some times more, from now on; the longest silence of each since it was asked last.
    fn goes_on(&mut self, when: &str) -> [Duration; 2] {
        let before = self.count();
        let what = format!("{}: answers over TCP and UDP {when}", self.name);
        let child = &mut self.child;
        let heard = &self.heard;
        let counts = || {
            let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            ["tcp", "udp"].map(|kind| heard.count.get(kind).copied().unwrap_or(0))
        };
        wait_for(&what, PATIENCE, || {
            assert!(child.try_wait().unwrap().is_none(), "{what}: the connection ended");
            let now = counts();
            Ok((0..2).all(|n| now[n] >= before[n] + 10).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: from {before:?} to {:?}", counts()));
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        ["tcp", "udp"]
            .map(|kind| heard.of.get_mut(kind).map_or(Duration::ZERO, |(_, longest)| std::mem::take(longest)))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script to its end; what it said.
fn python(mut command: Command, script: &str, arguments: &[&str]) -> String {
    let output = command.args(["-c", script]).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
