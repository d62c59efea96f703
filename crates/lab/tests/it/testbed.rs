//! A small testbed with the real binary: two workers behind two kinds of router. Takes root; says so where it cannot be made.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ionet_lab::testbed::{dir_of, missing};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_ionet-lab");

/// A testbed's file with a name that no other test has.
struct Bed {
    name: String,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new(case: &str) -> Option<Self> {
        if let Some(why) = missing() {
            eprintln!("skipped: machines in namespaces cannot be made here: {why}");
            return None;
        }
        let bed = Self { name: format!("{case}-{}", std::process::id()), dir: tempfile::tempdir().unwrap() };
        let text = format!(
            "name = '{}'
            [[relays]]
            [server]
            link = {{ delay_ms = 2 }}
            [[sites]]
            name = 'home'
            nat = 'cone'
            link = {{ delay_ms = 5, jitter_ms = 1, loss_percent = 0.1 }}
            [[sites]]
            name = 'office'
            nat = 'symmetric'",
            bed.name
        );
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

/// The product's binary, which a test of the whole workspace has built.
fn binary() -> PathBuf {
    let binary = Path::new(LAB).with_file_name("ionet");
    assert!(binary.exists(), "build it first: cargo build -p ionet-cli");
    binary
}

#[test]
fn a_testbed_is_entered_and_leaves_nothing() {
    let Some(bed) = Bed::new("up") else { return };
    let mut up = Command::new(LAB);
    up.arg("up").arg(bed.file()).arg("--binary").arg(binary()).stdout(Stdio::piped());
    let mut up = up.spawn().unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines().map_while(Result::ok);
    let first: Vec<_> = lines.by_ref().take_while(|line| !line.contains("Ctrl-C")).collect();
    assert!(first.iter().any(|line| line.contains("office-1")), "{first:?}");
    let inside = |host: &str, script: &str| {
        let output =
            Command::new(LAB).arg("in").arg(bed.file()).args([host, "--", "/bin/sh", "-c", script]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(inside("home-1", "hostname").trim(), "home-1");
    assert!(inside("home-1", "ip -4 addr show eth0").contains("192.168.10.2/24"));
    assert!(inside("home", "nft list ruleset").contains("masquerade"));
    kill_process(Pid::from_child(&up), Signal::INT).unwrap();
    assert!(up.wait().unwrap().success());
    bed.check_gone();
}

#[test]
fn workers_behind_routers_serve_and_talk_through_faults() {
    let Some(bed) = Bed::new("soak") else { return };
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
