//! The Python environments that Ray nodes run in: named, pinned to the last package, made once a worker.
//!
//! Always holds: the reference's digest covers everything that decides the content, so equal references
//! mean equal environments; a folder under the final name is complete and was imported once; two
//! preparers never work on the same one, even if one was killed and its tools are not gone yet; an
//! interrupted preparation is begun anew from uv's cache, which keeps what was downloaded, for a package
//! may have been cut in the middle. One that nobody wants any more ends with everything it started; who
//! waits for the same environment then goes on with it. The downloads come from whatever index uv is
//! configured for on the machine.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{FlockOperation, flock, syncfs},
    io::retry_on_intr,
    process::{
        Pid, Signal, WaitId, WaitIdOptions, kill_process_group, set_parent_process_death_signal, waitid,
    },
};
use sha2::{Digest as _, Sha256};

use crate::{
    bwrap::program_path,
    error::{During, Error, Result},
    sandbox::EnvironmentRef,
};

/// One environment: a Python minor version and exact packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Such as `ray`.
    pub name: &'static str,
    /// Such as `3.11`.
    pub python_minor: &'static str,
    /// `name==version` lines, sorted, dependencies included.
    pub packages: &'static str,
}

/// Everything that can be asked for.
pub const BUILT_IN: &[Environment] = &[
    Environment { name: "ray", python_minor: "3.11", packages: include_str!("environments/ray.txt") },
    Environment {
        name: "ray-jupyter",
        python_minor: "3.11",
        packages: include_str!("environments/ray-jupyter.txt"),
    },
];

impl Environment {
    /// The built-in environment of this name.
    pub fn named(name: &str) -> Result<&'static Environment> {
        BUILT_IN.iter().find(|e| e.name == name).ok_or_else(|| unknown(name))
    }

    /// The built-in environment that a reference means; refuses another content under a known name.
    pub fn resolve(reference: &EnvironmentRef) -> Result<&'static Environment> {
        let environment = Self::named(&reference.name)?;
        let have = environment.reference();
        if have == *reference {
            return Ok(environment);
        }
        Err(Error::Refused {
            code: "environment_unknown",
            message: format!("environment {reference} is not known to this version; it has {have}"),
        })
    }

    /// Its name and digest.
    pub fn reference(&self) -> EnvironmentRef {
        let digest = Sha256::digest(self.canonical_text().as_bytes());
        let hex = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
        let digest = digest.iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect();
        EnvironmentRef { name: self.name.into(), digest }
    }

    /// The version of Ray in it.
    pub fn ray_version(&self) -> &'static str {
        self.packages.lines().find_map(|line| line.strip_prefix("ray==")).unwrap_or_default()
    }

    /// What the digest is of.
    fn canonical_text(&self) -> String {
        let mut packages: Vec<&str> =
            self.packages.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        packages.sort_unstable();
        format!(
            "ionet-environment 1\npython {}\nray {}\n{}\n",
            self.python_minor,
            self.ray_version(),
            packages.join("\n")
        )
    }
}

fn unknown(name: &str) -> Error {
    let names: Vec<&str> = BUILT_IN.iter().map(|e| e.name).collect();
    Error::Refused {
        code: "environment_unknown",
        message: format!("environment {name:?} is not known; available: {}", names.join(", ")),
    }
}

/// The folder's name of an environment under the worker's environments folder.
pub fn folder_name(reference: &EnvironmentRef) -> String {
    format!("{}-{}", reference.name, &reference.digest[..16.min(reference.digest.len())])
}

/// Whether the environment is there already.
pub fn is_prepared(folder: &Path, environment: &Environment) -> bool {
    folder.join(folder_name(&environment.reference())).join("bin/python").exists()
}

/// Ends a preparation when it is dropped: its tools are killed and it gives up.
#[derive(Debug)]
pub struct Wanted(Arc<Mutex<Tools>>);

/// What a preparation runs at the moment.
#[derive(Debug, Default)]
struct Tools {
    unwanted: bool,
    /// The tool's process group; there only while it cannot be another's.
    group: Option<Pid>,
}

/// The preparation's side of [`Wanted`].
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Mutex<Tools>>);

/// A preparation is wanted until the first is dropped; the second goes to [`prepare`].
pub fn wanted() -> (Wanted, Stop) {
    let stop = Stop::default();
    (Wanted(Arc::clone(&stop.0)), stop)
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let mut tools = lock(&self.0);
        tools.unwanted = true;
        if let Some(group) = tools.group {
            // Already gone is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn lock(tools: &Mutex<Tools>) -> MutexGuard<'_, Tools> {
    tools.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stop {
    fn is_unwanted(&self) -> bool {
        lock(&self.0).unwanted
    }

    /// Starts a tool in a process group of its own, which dies when this thread does.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut tools = lock(&self.0);
        if tools.unwanted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let die_with_us = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
        // SAFETY: the closure makes one system call and touches no memory of this process.
        let child = unsafe { command.process_group(0).pre_exec(die_with_us) }.spawn()?;
        tools.group = Some(Pid::from_child(&child));
        Ok(child)
    }

    /// Waits for the tool; its number is not free for others before this forgets it.
    fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let (pid, until_ended) = (Pid::from_child(child), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let ended = retry_on_intr(|| waitid(WaitId::Pid(pid), until_ended));
        let mut tools = lock(&self.0);
        if let Some(group) = tools.group.take() {
            // What it may have left behind holds the environment's lock.
            let _ = kill_process_group(group, Signal::KILL);
        }
        ended?;
        child.wait()
    }
}

/// Makes the environment under `folder` unless it is there, and gives its path. `progress` gets a
/// percentage and the step, for people. Blocks, for minutes where much must be downloaded; ends early
/// when `stop`'s other side is dropped.
pub fn prepare(
    folder: &Path,
    environment: &Environment,
    stop: &Stop,
    progress: &mut dyn FnMut(u8, &str),
) -> Result<PathBuf> {
    let place = folder.join(folder_name(&environment.reference()));
    if place.join("bin/python").exists() {
        return Ok(place);
    }
    let python = find_python(environment.python_minor)?;
    let uv = program_path("uv").ok_or_else(uv_missing)?;
    prepare_with(&uv, &python, folder, environment, stop, progress)
}

fn prepare_with(
    uv: &Path,
    python: &Path,
    folder: &Path,
    environment: &Environment,
    stop: &Stop,
    progress: &mut dyn FnMut(u8, &str),
) -> Result<PathBuf> {
    let name = folder_name(&environment.reference());
    let place = folder.join(&name);
    fs::create_dir_all(folder).during(format!("make {}", folder.display()))?;
    progress(1, "waiting for another preparation of the same environment");
    let mut options = OpenOptions::new();
    let lock = options.read(true).write(true).create(true).truncate(false);
    let lock = lock.open(folder.join(format!("{name}.lock"))).during("open the environment's lock")?;
    flock(&lock, FlockOperation::LockExclusive).during("lock the environment")?;
    if place.join("bin/python").exists() {
        return Ok(place);
    }
    if stop.is_unwanted() {
        return Err(failed(environment, "nobody wants it any more".into()));
    }
    let partial = folder.join(format!("{name}.partial"));
    remove_folder(&partial).during("remove an interrupted preparation")?;
    // The lock is held until the folder has its name: who waits for it must find that.
    Build { environment, uv, partial: &partial, lock: &lock, stop, progress }.run(python)?;
    // After a power failure a name must not stand for files that never came to the disk.
    File::open(&partial).and_then(|dir| Ok(syncfs(&dir)?)).during("sync the finished environment")?;
    fs::rename(&partial, &place).during("put the finished environment in its place")?;
    Ok(place)
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(environment: &Environment, message: String) -> Error {
    Error::Environment { name: environment.name.into(), message }
}

/// The system's interpreter of this minor version. One under a home folder would be out of sight in a box.
pub fn find_python(minor: &str) -> Result<PathBuf> {
    ["/usr/bin", "/usr/local/bin"]
        .map(|folder| Path::new(folder).join(format!("python{minor}")))
        .into_iter()
        .find(|path| fs::canonicalize(path).is_ok_and(|real| real.starts_with("/usr")))
        .ok_or_else(|| Error::Missing {
            code: "python_missing",
            what: format!("the system has no /usr/bin/python{minor}, which boxes run (one in a home folder cannot be used)"),
            remedy: format!("sudo apt-get install python{minor}"),
        })
}

fn uv_missing() -> Error {
    Error::Missing {
        code: "uv_missing",
        what: "uv, which makes Python environments, is not on PATH".into(),
        remedy: "pip install uv".into(),
    }
}

/// Gets a percentage and the step.
type Progress<'a> = &'a mut dyn FnMut(u8, &str);

struct Build<'a> {
    environment: &'a Environment,
    uv: &'a Path,
    partial: &'a Path,
    /// Given to every tool too, so that it is held until the last of them is gone.
    lock: &'a File,
    stop: &'a Stop,
    progress: Progress<'a>,
}

impl Build<'_> {
    fn run(mut self, python: &Path) -> Result<()> {
        (self.progress)(2, "making the environment's folder");
        let mut venv = Command::new(self.uv);
        venv.args(["venv", "--relocatable", "--allow-existing", "--no-project", "--python"]);
        self.step(venv.arg(python).arg(self.partial), &mut |_, _| {})?;
        let list = self.partial.join("packages.txt");
        fs::write(&list, self.environment.packages).during("write the list of packages")?;
        (self.progress)(5, "finding packages");
        self.install(&list)?;
        (self.progress)(95, "checking that it works");
        let mut check = Command::new(self.partial.join("bin/python"));
        self.step(check.args(["-c", "import ray; print(ray.__version__)"]), &mut |_, _| {})?;
        (self.progress)(100, "ready");
        Ok(())
    }

    fn install(&mut self, list: &Path) -> Result<()> {
        let total = self.environment.packages.lines().count().max(1);
        let mut install = Command::new(self.uv);
        install.args(["pip", "install", "--compile-bytecode", "--python"]);
        install.arg(self.partial.join("bin/python")).arg("-r").arg(list);
        let (mut seen, mut percent) = (0, 5);
        self.step(&mut install, &mut |line, progress| {
            // uv names a large download when it starts and when it is done.
            seen += usize::from(line.trim_start().starts_with("Download"));
            let reached = match line.split_whitespace().next() {
                Some("Resolved") => 15,
                Some("Prepared") => 70,
                Some("Installed") => 80,
                Some("Bytecode") => 94,
                Some("+" | "-") => return,
                _ => 15 + u8::try_from((seen * 50 / total).min(50)).unwrap_or(50),
            };
            percent = reached.max(percent);
            progress(percent, line.trim());
        })
    }

    /// Runs a tool; its lines go to `line`, its last ones into the error.
    fn step(&mut self, command: &mut Command, line: &mut dyn FnMut(&str, Progress<'_>)) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let lock = self.lock.try_clone().during("share the environment's lock")?;
        command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.stop.spawn(command).during(format!("start {program}"))?;
        let mut last = Vec::new();
        if let Some(output) = child.stderr.take() {
            for text in BufReader::new(output).split(b'\n') {
                let text = text.during(format!("read what {program} says"))?;
                let text = String::from_utf8_lossy(&text).into_owned();
                line(&text, self.progress);
                last.push(text);
                if last.len() > 12 {
                    last.remove(0);
                }
            }
        }
        let status = self.stop.wait(&mut child).during(format!("wait for {program}"))?;
        if status.success() {
            return Ok(());
        }
        Err(failed(self.environment, format!("{program} failed ({status}): {}", last.join(" | "))))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt as _,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    const SMALL: Environment = Environment { name: "small", python_minor: "3.11", packages: "ray==1" };

    /// Stands for uv: makes the folder, then installs for ever with a helper of its own, unless it may end.
    const STAND_IN: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
case $1 in
venv) for partial; do :; done; mkdir -p "$partial/bin"; printf '#!/bin/sh\nexit 0\n' > "$partial/bin/python"; chmod +x "$partial/bin/python";;
pip) [ -e may-end ] && exit 0; echo half > "$(ls -d *.partial)/half"; sleep 1000 & echo $! > helper; echo $$ > tool; wait;;
esac
"#;

    fn stand_in(folder: &Path) -> PathBuf {
        let uv = folder.join("uv");
        fs::write(&uv, STAND_IN).unwrap();
        fs::set_permissions(&uv, fs::Permissions::from_mode(0o755)).unwrap();
        uv
    }

    fn start(folder: &Path, stop: Stop) -> thread::JoinHandle<Result<PathBuf>> {
        let (folder, uv) = (folder.to_owned(), folder.join("uv"));
        thread::spawn(move || {
            prepare_with(&uv, Path::new("/usr/bin/python3"), &folder, &SMALL, &stop, &mut |_, _| {})
        })
    }

    fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(5)); // poll
        }
    }

    fn pid_in(path: &Path) -> Option<u32> {
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    #[test]
    fn a_preparation_that_nobody_wants_ends_with_its_tools_and_the_next_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        stand_in(folder.path());
        let (wish, stop) = wanted();
        let first = start(folder.path(), stop);
        let pids = eventually("the tool runs", || Some([pid_in(&at("helper"))?, pid_in(&at("tool"))?]));
        let (_other_wish, stop) = wanted();
        let second = start(folder.path(), stop);
        let (unwanted, stop) = wanted();
        let third = start(folder.path(), stop);
        drop(unwanted);
        fs::write(at("may-end"), "").unwrap();
        drop(wish);
        assert_eq!(first.join().unwrap().unwrap_err().code(), "environment_failed");
        for pid in pids {
            let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            eventually("no orphan", || (state().is_empty() || state().contains(") Z ")).then_some(()));
        }
        let place = second.join().unwrap().unwrap();
        assert!(place.join("bin/python").exists() && !place.join("half").exists());
        // It may have had its turn before or after the second.
        let third = third.join().unwrap();
        assert!(third.is_err() || third.is_ok_and(|found| found == place));
        assert!(!at(&format!("{}.partial", folder_name(&SMALL.reference()))).exists());
    }

    #[test]
    fn the_digest_covers_python_and_packages_and_not_their_order() {
        let ray = Environment::named("ray").unwrap();
        let reference = ray.reference();
        assert_eq!(Environment::resolve(&reference).unwrap(), ray);
        assert_eq!(reference.to_string().parse::<EnvironmentRef>().unwrap(), reference);
        let other = |python_minor, packages| Environment { name: "ray", python_minor, packages }.reference();
        assert_eq!(other("3.11", "b==1\na==2\n"), other("3.11", "a==2\nb==1"));
        assert_ne!(other("3.11", "a==2"), other("3.12", "a==2"));
        assert_ne!(other("3.11", "a==2"), other("3.11", "a==3"));
    }

    #[test]
    fn built_in_environments_are_sorted_and_pinned() {
        for environment in BUILT_IN {
            assert_eq!(environment.ray_version(), "2.60.0");
            let lines: Vec<&str> = environment.packages.lines().collect();
            assert!(
                lines.is_sorted() && lines.iter().all(|line| line.contains("==")),
                "{}",
                environment.name
            );
        }
    }

    #[test]
    fn unknown_names_and_digests_are_refused() {
        let mut reference = Environment::named("ray").unwrap().reference();
        reference.digest = "0".repeat(64);
        assert_eq!(Environment::resolve(&reference).unwrap_err().code(), "environment_unknown");
        assert_eq!(Environment::named("torch").unwrap_err().code(), "environment_unknown");
        for text in ["ray", "ray@sha256:12", "../x@sha256:0", &format!("../ray@sha256:{}", "0".repeat(64))] {
            assert!(text.parse::<EnvironmentRef>().is_err(), "{text}");
        }
    }
}
