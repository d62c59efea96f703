//! The Python environments that Ray nodes run in: named, pinned to the last package, made once a worker.
//!
//! Always holds: the reference's digest covers everything that decides the content, so equal references
//! mean equal environments; a folder under the final name is complete and was imported once; two
//! preparers never work on the same one; an interrupted preparation is continued. The downloads come
//! from whatever index uv is configured for on the machine.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::{FlockOperation, flock};
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

/// Makes the environment under `folder` unless it is there, and gives its path. `progress` gets a
/// percentage and the step, for people. Blocks, for minutes where much must be downloaded.
pub fn prepare(
    folder: &Path,
    environment: &Environment,
    progress: &mut dyn FnMut(u8, &str),
) -> Result<PathBuf> {
    let name = folder_name(&environment.reference());
    let place = folder.join(&name);
    if place.join("bin/python").exists() {
        return Ok(place);
    }
    let python = find_python(environment.python_minor)?;
    let uv = program_path("uv").ok_or_else(uv_missing)?;
    fs::create_dir_all(folder).during(format!("make {}", folder.display()))?;
    progress(1, "waiting for another preparation of the same environment");
    let lock = File::create(folder.join(format!("{name}.lock"))).during("open the environment's lock")?;
    flock(&lock, FlockOperation::LockExclusive).during("lock the environment")?;
    if place.join("bin/python").exists() {
        return Ok(place);
    }
    let partial = folder.join(format!("{name}.partial"));
    Build { environment, uv, partial: &partial, progress }.run(&python)?;
    fs::rename(&partial, &place).during("put the finished environment in its place")?;
    Ok(place)
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
    uv: PathBuf,
    partial: &'a Path,
    progress: Progress<'a>,
}

impl Build<'_> {
    fn run(mut self, python: &Path) -> Result<()> {
        (self.progress)(2, "making the environment's folder");
        let mut venv = Command::new(&self.uv);
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
        let mut install = Command::new(&self.uv);
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
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .during(format!("start {program}"))?;
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
        let status = child.wait().during(format!("wait for {program}"))?;
        if status.success() {
            return Ok(());
        }
        let message = format!("{program} failed ({status}): {}", last.join(" | "));
        Err(Error::Environment { name: self.environment.name.into(), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
