//! What a machine needs to run boxes: looked at, with the command that mends what is missing.
//!
//! Always holds: looking changes nothing that lasts; a remedy is a command or a step to take. Not here:
//! clock, ports and the link to the server, which the worker checks.

use std::{fs, fs::OpenOptions, path::Path, process::Command};

use rustix::fs::statvfs;
use serde::Serialize;

use crate::{
    environment::find_python,
    launch::landlock_abi,
    lease_box::TUN_DEVICE,
    limits::{Enforcement, Hierarchy},
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Boxes run, with what `found` says missing.
    Warn,
    /// Boxes do not run.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable, `snake_case`.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// The command or step that mends it; empty when there is nothing to mend.
    pub remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), remedy: String::new() }
    }

    fn bad(name: &'static str, status: Status, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status, found: found.into(), remedy: remedy.into() }
    }
}

/// Looks at everything; `data_dir` is where leases and environments would be.
pub fn checks(data_dir: &Path) -> Vec<Check> {
    vec![
        bubblewrap(),
        namespaces(),
        tun(Path::new(TUN_DEVICE)),
        python(),
        uv(),
        limits(),
        seccomp(),
        landlock(),
        nvidia(Path::new("/proc/driver/nvidia")),
        shared_memory(),
        disk(data_dir),
    ]
}

fn output(program: &str, args: &[&str]) -> Result<String, String> {
    match Command::new(program).args(args).output() {
        Ok(out) if out.status.success() => Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned()),
        Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn bubblewrap() -> Check {
    const REMEDY: &str = "sudo apt-get install bubblewrap";
    match output("bwrap", &["--version"]) {
        Ok(version) if version_of(&version) >= (0, 8) => Check::ok("bubblewrap", version),
        Ok(version) => Check::bad("bubblewrap", Status::Fail, format!("{version}, 0.8 is needed"), REMEDY),
        Err(error) => Check::bad("bubblewrap", Status::Fail, format!("bwrap does not run: {error}"), REMEDY),
    }
}

/// Major and minor of `name 1.2.3`.
fn version_of(text: &str) -> (u32, u32) {
    let mut numbers = text.rsplit(' ').next().unwrap_or_default().split('.').map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn namespaces() -> Check {
    let options = ["--unshare-user", "--unshare-pid", "--unshare-net", "--disable-userns"];
    let rest = ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"];
    match output("bwrap", &[&options[..], &rest[..]].concat()) {
        Ok(_) => Check::ok("namespaces", "a box with its own namespaces starts"),
        Err(error) => Check::bad("namespaces", Status::Fail, error, namespaces_remedy()),
    }
}

/// Distributions switch user namespaces off in different ways.
fn namespaces_remedy() -> &'static str {
    let off = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if off("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    } else if off("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    } else {
        "sudo sysctl -w user.max_user_namespaces=15000 (in a container: start it so that it may make namespaces)"
    }
}

fn tun(device: &Path) -> Check {
    let name = "tun_device";
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Check::ok(name, format!("{} opens", device.display())),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let remedy = format!("sudo chmod 0666 {}", device.display());
            Check::bad(name, Status::Fail, format!("{} is closed to this user", device.display()), remedy)
        }
        Err(error) => {
            Check::bad(name, Status::Fail, format!("{}: {error}", device.display()), "sudo modprobe tun")
        }
    }
}

fn python() -> Check {
    let name = "python";
    match find_python("3.11") {
        Err(error) => Check::bad(name, Status::Fail, error.to_string(), "sudo apt-get install python3.11"),
        Ok(path) => match output(
            &path.to_string_lossy(),
            &["-c", "import ssl, ctypes, sys; print(sys.version.split()[0])"],
        ) {
            Ok(version) => Check::ok(name, format!("{} is {version}", path.display())),
            Err(error) => Check::bad(
                name,
                Status::Fail,
                format!("{} is broken: {error}", path.display()),
                "sudo apt-get install --reinstall python3.11 libpython3.11-stdlib",
            ),
        },
    }
}

fn uv() -> Check {
    match output("uv", &["--version"]) {
        Ok(version) => Check::ok("uv", version),
        Err(error) => Check::bad("uv", Status::Fail, format!("uv does not run: {error}"), "pip install uv"),
    }
}

fn limits() -> Check {
    let name = "limits";
    match Hierarchy::detect().enforcement() {
        Enforcement::Cgroup2 => Check::ok(name, "memory, CPU and processes by cgroup 2"),
        Enforcement::Cgroup1 => Check::ok(name, "memory, CPU and processes by cgroup 1"),
        Enforcement::None { reason } => Check::bad(
            name,
            Status::Warn,
            format!("{reason}; until then this device holds one tenant at a time"),
            "sudo systemctl edit user@.service, write [Service] and Delegate=cpu memory pids, log in again; or run \
             the worker as root",
        ),
    }
}

fn seccomp() -> Check {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => Check::ok("seccomp", "system call filters work"),
        _ => Check::bad(
            "seccomp",
            Status::Fail,
            "the kernel has no system call filters",
            "boot a kernel with CONFIG_SECCOMP_FILTER=y",
        ),
    }
}

fn landlock() -> Check {
    match landlock_abi() {
        Some(version) => Check::ok("landlock", format!("version {version}")),
        None => Check::bad(
            "landlock",
            Status::Warn,
            "the kernel has Landlock off; boxes run without this second fence",
            "boot with lsm=landlock,... (kernel 5.13 or newer)",
        ),
    }
}

fn nvidia(driver: &Path) -> Check {
    match fs::read_to_string(driver.join("version")) {
        Ok(version) => Check::ok("nvidia_driver", version.lines().next().unwrap_or_default()),
        Err(_) => Check::bad(
            "nvidia_driver",
            Status::Warn,
            "no NVIDIA driver: this machine can be rented as a CPU device",
            "with an NVIDIA GPU: sudo apt-get install nvidia-driver",
        ),
    }
}

fn shared_memory() -> Check {
    match statvfs("/dev/shm") {
        Ok(_) => Check::ok("shared_memory", "/dev/shm is there; each box gets its own"),
        Err(error) => Check::bad(
            "shared_memory",
            Status::Warn,
            format!("/dev/shm: {error}"),
            "sudo mount -t tmpfs tmpfs /dev/shm",
        ),
    }
}

fn disk(data_dir: &Path) -> Check {
    const NEEDED_BYTES: u64 = 5 << 30;
    let there = data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let free_bytes = statvfs(there).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let found = format!("{} MB free in {}", free_bytes / 1_000_000, there.display());
    if free_bytes >= NEEDED_BYTES {
        return Check::ok("disk", found);
    }
    Check::bad("disk", Status::Warn, found, "free 5 GB there, or start with --data-dir on a larger disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version_of("bubblewrap 0.11.0") >= (0, 8));
        assert!(version_of("bubblewrap 0.6.1") < (0, 8));
        assert_eq!(version_of("nonsense"), (0, 0));
    }

    #[test]
    fn a_missing_device_and_a_missing_driver_come_with_a_remedy() {
        let nowhere = tempfile::tempdir().unwrap();
        let missing = tun(&nowhere.path().join("tun"));
        assert_eq!((missing.status, missing.remedy.as_str()), (Status::Fail, "sudo modprobe tun"));
        assert_eq!(nvidia(nowhere.path()).status, Status::Warn);
    }

    #[test]
    fn whatever_is_not_ok_says_how_to_mend_it() {
        for check in checks(Path::new("/nonexistent/data")) {
            assert_eq!(check.status == Status::Ok, check.remedy.is_empty(), "{check:?}");
        }
    }
}
