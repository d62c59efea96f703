//! The bubblewrap command line of a box: what it can see, and nothing else.
//!
//! Always holds: the arguments go to bubblewrap through a memory file, so no secret shows in a process
//! list; the root of the box is read-only; its own folders are `/home/work`, `/tmp` and `/dev/shm`.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::{
    error::{During, Error, Result},
    launch::VARIABLE_PREFIX,
    netns::STAGE,
    seccomp,
};

/// Where the prepared environment is in the box.
pub const ENVIRONMENT: &str = "/env";
/// The renter's folder in the box.
pub const HOME: &str = "/home/work";
/// The launcher in the box.
const LAUNCHER: &str = "/run/ionet-box";
/// User and group inside the box.
const BOX_UID: u32 = 1000;

/// What one box is made of.
#[derive(Clone, Debug)]
pub(crate) struct BoxView {
    /// Host folder of the lease; holds `work`, `tmp` and `etc`.
    pub(crate) lease_dir: PathBuf,
    /// The launcher's executable and the arguments before its sub-command.
    pub(crate) launcher: (PathBuf, Vec<String>),
    /// The worker's folder of environments and the name of this one in it.
    pub(crate) environment: Option<(PathBuf, String)>,
    /// Further host files to show read-only, with their place in the box.
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) hostname: String,
    pub(crate) shm_bytes: u64,
    /// Device nodes of the leased GPUs.
    pub(crate) devices: Vec<PathBuf>,
    /// Environment variables, all of them.
    pub(crate) variables: Vec<(String, String)>,
}

impl BoxView {
    /// Writes the box's own small files of `/etc` and makes its folders.
    pub(crate) fn make_files(&self, hosts: &str, resolver: Ipv4Addr) -> Result<()> {
        let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        for folder in ["work", "tmp", "etc"] {
            fs::create_dir_all(self.lease_dir.join(folder))
                .during(format!("make the box's {folder} folder"))?;
        }
        let files = [
            ("hosts", format!("127.0.0.1 localhost\n{hosts}")),
            ("hostname", format!("{}\n", self.hostname)),
            // The lease's own process answers, with a refusal at once where the rules allow no names.
            ("resolv.conf", format!("nameserver {resolver}\noptions timeout:5 attempts:2\n")),
            ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
            (
                "passwd",
                format!(
                    "work:x:{BOX_UID}:{BOX_UID}:work:{HOME}:{shell}\nnobody:x:65534:65534::/:/bin/false\n"
                ),
            ),
            ("group", format!("work:x:{BOX_UID}:\nnogroup:x:65534:\n")),
        ];
        for (name, text) in files {
            fs::write(self.lease_dir.join("etc").join(name), text)
                .during(format!("write the box's {name}"))?;
        }
        Ok(())
    }

    /// Host paths that the helper must stage, with their names there.
    pub(crate) fn binds(&self) -> Vec<(PathBuf, String)> {
        let mut binds = vec![
            (self.lease_dir.join("work"), "work".to_owned()),
            (self.lease_dir.join("tmp"), "tmp".to_owned()),
            (self.lease_dir.join("etc"), "etc".to_owned()),
            (self.launcher.0.clone(), "launcher".to_owned()),
        ];
        // The folder above it, for the environment itself may not be there yet.
        binds.extend(self.environment.iter().map(|(folder, _)| (folder.clone(), "environments".to_owned())));
        binds.extend(self.files.iter().enumerate().map(|(n, (path, _))| (path.clone(), format!("file{n}"))));
        binds
    }

    /// The program line for the helper and the descriptors that it needs.
    /// `door` is the launcher's end of the box's door.
    pub(crate) fn command(&self, program: &[String], door: OwnedFd) -> Result<(Vec<String>, Vec<OwnedFd>)> {
        let bwrap = program_path("bwrap").ok_or_else(bubblewrap_missing)?;
        let mut fds = seccomp::filters()?;
        fds.push(options_file(&self.arguments())?);
        // Only the helper knows the descriptors' numbers, so these options stay on the line.
        let mut line =
            vec![bwrap.display().to_string(), "--args".to_owned(), format!("{{fd{}}}", fds.len() - 1)];
        for n in 0..fds.len() - 1 {
            line.extend(["--add-seccomp-fd".to_owned(), format!("{{fd{n}}}")]);
        }
        line.push("--".to_owned());
        line.extend(self.own());
        line.extend(["box-launch".to_owned(), "--door".to_owned(), format!("{{fd{}}}", fds.len())]);
        fds.push(door);
        line.extend(launcher_rules());
        line.extend(program.iter().cloned());
        Ok((line, fds))
    }

    /// The launcher as a program line in the box, up to its sub-command.
    pub(crate) fn own(&self) -> Vec<String> {
        std::iter::once(LAUNCHER.to_owned()).chain(self.launcher.1.iter().cloned()).collect()
    }

    fn arguments(&self) -> Vec<String> {
        let mut line = Line::default();
        line.add("--unshare-user --disable-userns --unshare-pid --unshare-ipc --unshare-uts");
        line.add("--unshare-cgroup-try --die-with-parent --new-session --cap-drop ALL --clearenv");
        line.add(&format!("--uid {BOX_UID} --gid {BOX_UID}"));
        line.add(&format!("--hostname {}", self.hostname));
        system(&mut line);
        line.add("--proc /proc --dev /dev");
        line.add(&format!("--perms 1777 --size {} --tmpfs /dev/shm", self.shm_bytes));
        for device in &self.devices {
            line.pair("--dev-bind-try", device, device);
        }
        line.add(&format!("--bind {STAGE}/tmp /tmp --dir /home --bind {STAGE}/work {HOME}"));
        line.add(&format!("--dir /run --ro-bind {STAGE}/launcher {LAUNCHER}"));
        if let Some((_, name)) = &self.environment {
            line.add(&format!("--ro-bind {STAGE}/environments/{name} {ENVIRONMENT}"));
        }
        for (n, (_, place)) in self.files.iter().enumerate() {
            line.add(&format!("--ro-bind {STAGE}/file{n} {place}"));
        }
        line.add(&format!("--remount-ro / --chdir {HOME}"));
        for (name, value) in &self.variables {
            // The launcher takes the prefix off, so that no variable acts on the launcher itself.
            line.0.extend(["--setenv".into(), format!("{VARIABLE_PREFIX}{name}"), value.clone()]);
        }
        line.0
    }
}

/// The options as bubblewrap reads them from a descriptor.
fn options_file(options: &[String]) -> Result<OwnedFd> {
    if options.iter().any(|option| option.contains('\0')) {
        return Err(Error::Refused {
            code: "box_spec_invalid",
            message: "a variable of the box holds a NUL byte".into(),
        });
    }
    let bytes: Vec<u8> = options.iter().flat_map(|option| option.bytes().chain([0])).collect();
    seccomp::memfd("ionet-bwrap", &bytes)
}

/// `/usr`, its links at the root as the host has them, and a minimal `/etc`.
fn system(line: &mut Line) {
    line.add("--ro-bind /usr /usr");
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = Path::new("/").join(name);
        match fs::read_link(&path) {
            Ok(target) => line.pair("--symlink", &target, &path),
            Err(_) if path.is_dir() => line.pair("--ro-bind", &path, &path),
            Err(_) => {}
        }
    }
    for name in ["hosts", "hostname", "resolv.conf", "nsswitch.conf", "passwd", "group"] {
        line.add(&format!("--ro-bind {STAGE}/etc/{name} /etc/{name}"));
    }
    for path in ["ld.so.cache", "alternatives", "ssl/certs", "localtime", "mime.types"] {
        line.add(&format!("--ro-bind-try /etc/{path} /etc/{path}"));
    }
}

/// Landlock says the same once more, from inside.
fn launcher_rules() -> Vec<String> {
    let rw = [HOME, "/tmp", "/dev", "/proc"].map(|path| ["--rw", path]);
    let ro = ["/usr", "/etc", ENVIRONMENT, "/run", "/bin", "/sbin", "/lib", "/lib32", "/lib64"]
        .map(|path| ["--ro", path]);
    let rules = rw.iter().chain(&ro).flatten();
    rules.chain(&["--"]).map(|word| (*word).to_owned()).collect()
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    /// Adds words that hold no spaces themselves.
    fn add(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(str::to_owned));
    }

    fn pair(&mut self, option: &str, from: &Path, to: &Path) {
        self.0.extend([option.to_owned(), from.display().to_string(), to.display().to_string()]);
    }
}

/// Where a program is on `PATH`, system folders included.
pub(crate) fn program_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// The error when bubblewrap is not there.
pub(crate) fn bubblewrap_missing() -> Error {
    Error::Missing {
        code: "bubblewrap_missing",
        what: "bubblewrap (bwrap) 0.8 or newer is not installed".into(),
        remedy: "sudo apt-get install bubblewrap".into(),
    }
}

/// Device nodes of the leased GPUs, by UUID; the driver's folder is a parameter for tests.
pub(crate) fn gpu_devices(driver: &Path, uuids: &[String]) -> Result<Vec<PathBuf>> {
    if uuids.is_empty() {
        return Ok(Vec::new());
    }
    let mut nodes = vec![PathBuf::from("/dev/nvidiactl"), PathBuf::from("/dev/nvidia-uvm")];
    for uuid in uuids {
        let minor = gpu_minor(driver, uuid).ok_or_else(|| Error::Missing {
            code: "gpu_missing",
            what: format!("the driver shows no GPU {uuid}"),
            remedy: "nvidia-smi -L; if it is not listed, reload the driver".into(),
        })?;
        nodes.push(PathBuf::from(format!("/dev/nvidia{minor}")));
    }
    Ok(nodes)
}

fn gpu_minor(driver: &Path, uuid: &str) -> Option<u32> {
    let value = |text: &str, key: &str| {
        text.lines().find_map(|l| l.strip_prefix(key).map(|v| v.trim_start_matches(':').trim().to_owned()))
    };
    fs::read_dir(driver.join("gpus")).ok()?.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("information")).ok()?;
        (value(&text, "GPU UUID")? == uuid).then(|| value(&text, "Device Minor")?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_found_by_its_uuid_and_only_leased_ones_are_shown() {
        let driver = tempfile::tempdir().unwrap();
        for (bus, uuid, minor) in [("0000:01:00.0", "GPU-aa", 0), ("0000:02:00.0", "GPU-bb", 3)] {
            let folder = driver.path().join("gpus").join(bus);
            fs::create_dir_all(&folder).unwrap();
            let text = format!("Model: \t\t NVIDIA X\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n");
            fs::write(folder.join("information"), text).unwrap();
        }
        let nodes = gpu_devices(driver.path(), &["GPU-bb".into()]).unwrap();
        assert_eq!(nodes.last().unwrap(), Path::new("/dev/nvidia3"));
        assert!(!nodes.contains(&PathBuf::from("/dev/nvidia0")));
        assert_eq!(gpu_devices(driver.path(), &["GPU-cc".into()]).unwrap_err().code(), "gpu_missing");
        assert!(gpu_devices(driver.path(), &[]).unwrap().is_empty());
    }
}
