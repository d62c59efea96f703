//! An engineer behind a symmetric NAT uses boxes behind another: shell and copies by OpenSSH and rsync, ports by TCP and
//! UDP; what is open goes on when the address changes and when the relay, the only way there is, dies and comes back.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ionet_lab::testbed::cloud::{Client, Cloud, wait_for};
use serde_json::Value;

use super::{Cluster, PATIENCE, PYTHON, SYMMETRIC, TALK, Talk, bed, up};

const PORT: &str = "4000";
const FILE_BYTES: usize = 12 << 20;

/// Ends with the test.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Desk {
    cloud: Cloud,
    client: Client,
    cluster: Cluster,
    /// The engineer's own files.
    home: PathBuf,
}

impl Desk {
    fn member(&self) -> String {
        self.cluster.members["home"].slot.to_string()
    }

    /// A command of the engineer's machine, with a time limit of its own.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.cloud.testbed.get("desk-1").unwrap().command("timeout");
        command.args(["-s", "KILL", "150"]).args(words).env("HOME", &self.home).env_remove("SSH_AUTH_SOCK");
        command
    }

    /// What it said, which must be all well.
    fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).stdin(Stdio::null()).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{words:?}: {} {}", said(&output.stdout), said(&output.stderr));
        said(&output.stdout)
    }

    fn path(&self, name: &str) -> String {
        self.home.join(name).display().to_string()
    }

    /// Plain ssh, scp and rsync with the printed lines.
    fn copies_arrive(&self) {
        let member = self.member();
        let said = self.client.must(&["ssh", "--print-config", &self.cluster.id]).unwrap();
        let end = format!(".{member}.ionet");
        let hosts = said["hosts"].as_array().unwrap().iter().filter_map(Value::as_str);
        let alias = hosts.into_iter().find(|host| host.ends_with(&end)).unwrap_or_else(|| panic!("{said}"));
        std::fs::write(self.home.join("config"), said["config"].as_str().unwrap()).unwrap();
        let bytes: Vec<u8> = (0..FILE_BYTES).map(|n| u8::try_from(n * n % 251).unwrap()).collect();
        std::fs::write(self.home.join("data"), bytes).unwrap();
        let config = self.path("config");
        let sum = |said: String| said.split_whitespace().next().unwrap().to_owned();
        let ours = sum(self.run(&["sha256sum", &self.path("data")]));
        self.run(&["scp", "-q", "-F", &config, &self.path("data"), &format!("{alias}:sent")]);
        assert_eq!(sum(self.run(&["ssh", "-F", &config, alias, "sha256sum sent"])), ours);
        let shell = format!("ssh -F {config}");
        self.run(&["rsync", "-e", &shell, &format!("{alias}:sent"), &self.path("back")]);
        assert_eq!(sum(self.run(&["sha256sum", &self.path("back")])), ours);
        let there = format!("{}.{member}:copied", self.cluster.id);
        self.client.must(&["cp", &self.path("data"), &there]).unwrap();
        assert_eq!(sum(self.run(&["ssh", "-F", &config, alias, "sha256sum copied"])), ours);
    }

    /// Local ports to the member's, TCP and UDP, of the same number.
    fn tunnel(&self) -> Kept {
        let target = format!("{}.{}:{PORT}", self.cluster.id, self.member());
        let datagrams = format!("{target}/udp");
        let mut command = self.client.command(&["tunnel", &target, &datagrams]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(2);
        for line in lines {
            let said: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert!(said["local"].as_str().unwrap().ends_with(PORT), "{said}");
        }
        Kept(child)
    }
}

#[test]
fn boxes_are_used_from_behind_any_nat_and_nothing_that_is_open_is_lost() {
    let Some(cloud) = up("doors", &bed(1, &[("desk", SYMMETRIC), ("home", SYMMETRIC)])) else { return };
    let cluster = Cluster::rent(&cloud, &[]);
    let client = cloud.client_at("desk-1").unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut desk = Desk { cloud, client, cluster, home: home.path().to_owned() };
    desk.copies_arrive();
    let _ports = desk.tunnel();
    let mut command = desk.cloud.testbed.get("desk-1").unwrap().command(PYTHON);
    command.args(["-uc", TALK, "127.0.0.1"]);
    let mut talk = Talk::start("a tunnel", command);
    let silence = |talk: &mut Talk, when: &str| println!("{when}, silent for {:?}", talk.goes_on(when));
    desk.cloud.testbed.change_address("desk").unwrap();
    silence(&mut talk, "from another address");
    desk.cloud.testbed.keep_apart(&[["desk", "home"]]).unwrap();
    silence(&mut talk, "with the relay as the only way");
    desk.cloud.process("relay-1").unwrap().kill();
    // It is looked every 100 ms, and asked every 20.
    let (mut before, mut looks) = (talk.count(), 0);
    let still = || {
        let now = talk.count();
        looks = if std::mem::replace(&mut before, now) == now { looks + 1 } else { 0 };
        Ok((looks == 10).then_some(()))
    };
    wait_for("silence without the relay", PATIENCE, still).unwrap();
    desk.cloud.start_role("relay-1", &BTreeMap::new()).unwrap();
    silence(&mut talk, "through the relay once more");
}
