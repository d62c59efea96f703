//! The launcher inside the box: applies Landlock to itself, then becomes the program.
//!
//! Always holds: it runs after bubblewrap has made the box, so it can only take rights away; Landlock is
//! best effort by the kernel's version, and [`landlock_abi`] reports what the kernel has.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, ExitCode},
};

use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError,
};

/// The newest rights that are asked for.
const ABI_WANTED: ABI = ABI::V5;

/// The program's variables reach the launcher under this prefix; it keeps no others.
pub(crate) const VARIABLE_PREFIX: &str = "IONET_BOX_";

/// Entry point of the hidden sub-command `box-launch`:
/// `[--rw PATH]... [--ro PATH]... -- program [argument]...`.
pub fn main(args: &[String]) -> ExitCode {
    let Some(split) = args.iter().position(|arg| arg == "--") else {
        eprintln!("box-launch: write -- before the program");
        return ExitCode::from(2);
    };
    let (rules, command) = (&args[..split], &args[split + 1..]);
    let Some((program, arguments)) = command.split_first() else {
        eprintln!("box-launch: no program given");
        return ExitCode::from(2);
    };
    if let Err(error) = restrict(rules) {
        eprintln!("box-launch: cannot apply Landlock: {error}");
        return ExitCode::from(126);
    }
    // `exec` comes back only when it failed.
    let error = Command::new(program).args(arguments).env_clear().envs(variables()).exec();
    eprintln!("box-launch: cannot start {program}: {error}");
    ExitCode::from(127)
}

fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.as_bytes().strip_prefix(VARIABLE_PREFIX.as_bytes())?;
        Some((OsStr::from_bytes(name).to_owned(), value))
    })
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
