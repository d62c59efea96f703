//! The launcher inside the box: applies Landlock to itself, starts the engine, and stays at the box's door.
//!
//! Always holds: it runs after bubblewrap has made the box, so it can only take rights away; Landlock is
//! best effort by the kernel's version, and [`landlock_abi`] reports what the kernel has; it ends with the engine and with
//! its exit status.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError,
};

use crate::door;

/// The newest rights that are asked for.
const ABI_WANTED: ABI = ABI::V5;

/// The program's variables reach the launcher under this prefix; it keeps no others.
pub(crate) const VARIABLE_PREFIX: &str = "IONET_BOX_";

/// Entry point of the hidden sub-command `box-launch`:
/// `--door NUMBER [--rw PATH]... [--ro PATH]... -- program [argument]...`.
pub fn main(args: &[String]) -> ExitCode {
    let Some(split) = args.iter().position(|arg| arg == "--") else {
        eprintln!("box-launch: write -- before the program");
        return ExitCode::from(2);
    };
    let (options, command) = (&args[..split], &args[split + 1..]);
    let [flag, number, rules @ ..] = options else {
        eprintln!("box-launch: say --door first");
        return ExitCode::from(2);
    };
    let door = match door::inherited(number) {
        Ok(door) if flag == "--door" => door,
        _ => {
            eprintln!("box-launch: {flag} {number} is no door");
            return ExitCode::from(2);
        }
    };
    let Some((program, arguments)) = command.split_first() else {
        eprintln!("box-launch: no program given");
        return ExitCode::from(2);
    };
    if let Err(error) = restrict(rules) {
        eprintln!("box-launch: cannot apply Landlock: {error}");
        return ExitCode::from(126);
    }
    let variables = variables();
    let engine = match Command::new(program).args(arguments).env_clear().envs(variables.clone()).spawn() {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("box-launch: cannot start {program}: {error}");
            return ExitCode::from(127);
        }
    };
    match door::serve(door, engine, variables) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("box-launch: cannot watch {program}: {error}");
            ExitCode::from(126)
        }
    }
}

fn variables() -> Vec<(OsString, OsString)> {
    let own = |(name, value): (OsString, OsString)| {
        let name = name.as_bytes().strip_prefix(VARIABLE_PREFIX.as_bytes())?;
        Some((OsStr::from_bytes(name).to_owned(), value))
    };
    std::env::vars_os().filter_map(own).collect()
}

fn restrict(rules: &[String]) -> Result<(), RulesetError> {
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI_WANTED))?.create()?;
    for rule in rules.chunks_exact(2) {
        let rights = match rule[0].as_str() {
            "--rw" => AccessFs::from_all(ABI_WANTED),
            _ => AccessFs::from_read(ABI_WANTED),
        };
        ruleset = allow(ruleset, Path::new(&rule[1]), rights)?;
    }
    ruleset.restrict_self().map(drop)
}

/// What is not there needs no rule.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    rights: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else { return Ok(ruleset) };
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(ABI_WANTED) };
    ruleset.add_rule(PathBeneath::new(fd, rights))
}

/// The kernel's Landlock version; `None` when it has none or has it off.
pub fn landlock_abi() -> Option<i64> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with a null attribute, size 0 and the VERSION flag the call only returns a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0usize, VERSION)
    };
    (version > 0).then_some(version)
}
