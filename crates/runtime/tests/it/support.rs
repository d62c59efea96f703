//! A box for a test: its own folders, waiting for conditions, everything gone at the end.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ionet_runtime::{
    holder::{Devices, HelperExe},
    lease_box::{BoxConfig, LeaseBox, TUN_DEVICE},
    limits::Hierarchy,
    sandbox::{BoxReport, BoxSpec, Engine, Limits, Phase},
};

pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) environments: PathBuf,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let environments = folder.path().join("environments");
        Self { folder, environments }
    }

    pub(crate) fn config(&self, spec: BoxSpec) -> BoxConfig {
        BoxConfig {
            lease_dir: self.lease_dir(&spec.lease),
            spec,
            environments_dir: self.environments.clone(),
            helper: HelperExe(from_env("IONET_TEST_HELPER", env!("CARGO_BIN_EXE_ionet-box")), Vec::new()),
            tun_device: from_env("IONET_TEST_TUN", TUN_DEVICE),
            hierarchy: Hierarchy::detect(),
            resolver: Ipv4Addr::new(192, 0, 0, 1),
            out_mtu: 32_768,
        }
    }

    pub(crate) fn lease_dir(&self, lease: &str) -> PathBuf {
        self.folder.path().join(lease)
    }

    pub(crate) fn start(&self, spec: BoxSpec) -> (LeaseBox, Devices) {
        LeaseBox::start(self.config(spec), Instant::now()).unwrap()
    }
}

/// Tests that run in a process of another user bring their own files.
fn from_env(name: &str, otherwise: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| otherwise.into(), PathBuf::from)
}

/// Leases of concurrent test runs must not share a control group.
pub(crate) fn unique(name: &str) -> String {
    format!("test-{}-{name}", std::process::id())
}

pub(crate) fn spec(lease: &str, engine: Engine) -> BoxSpec {
    BoxSpec {
        lease: unique(lease),
        engine,
        ip: Ipv4Addr::new(10, 77, 0, 1),
        ip6: None,
        prefix: 24,
        mtu: 1280,
        head_ip: Ipv4Addr::new(10, 77, 0, 1),
        members: 1,
        limits: Limits {
            cpu_millis: 1000,
            memory_bytes: 256 << 20,
            processes: 64,
            disk_bytes: 1 << 30,
            gpus: Vec::new(),
        },
    }
}

pub(crate) fn shell_spec(lease: &str, script: &str) -> BoxSpec {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    spec(lease, Engine::Command { argv, env: Vec::new() })
}

/// Polls until the condition holds; the last report if it never does.
pub(crate) fn wait_for(it: &mut LeaseBox, seconds: u64, until: impl Fn(&BoxReport) -> bool) -> BoxReport {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let report = it.poll(Instant::now());
        if until(&report) {
            return report;
        }
        assert!(Instant::now() < deadline, "{report:?}\n{}", it.log_tail(8000));
        std::thread::sleep(Duration::from_millis(20)); // poll
    }
}

pub(crate) fn exit_code(it: &mut LeaseBox) -> i32 {
    let report = wait_for(it, 60, |r| matches!(r.phase, Phase::Exited { .. } | Phase::Failed { .. }));
    match report.phase {
        Phase::Exited { code } => code,
        other => panic!("{other:?}: {}", it.log_tail(4000)),
    }
}

/// Waits for a condition on the host; long, for the machine may be busy with other tests.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10)); // poll
    }
}

/// Processes on the host whose command line holds `text`.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| *pid != std::process::id())
        .filter(|pid| {
            let line = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
        })
        .collect()
}
