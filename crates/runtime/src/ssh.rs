//! A shell in the box by SSH: one connection of the machine's own OpenSSH server, without root, without its daemon.
//!
//! Always holds: whoever may come in is exactly whom the lease's own process named for this connection; no password, no
//! other user, nothing of the host's configuration. Not here: who is named, and the way to the client (`ionet-worker`).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use crate::{door, error::Error};

/// The sub-command.
pub const WORD: &str = "box-ssh";
/// Where Debian's package puts the server; a box sees the host's `/usr`.
const SERVER: &str = "/usr/sbin/sshd";
/// The names of connections' folders, with their process's number after it.
const FOLDER: &str = ".ionet-ssh-";
/// Which client keys may come in, one a line.
const KEYS: &str = "IONET_SSH_KEYS";
/// The server's own key, in OpenSSH's format.
const HOST_KEY: &str = "IONET_SSH_HOST_KEY";

/// Whether this machine can serve SSH.
///
/// # Errors
/// With the code `ssh_missing` and what to do.
pub fn available() -> Result<(), Error> {
    if Path::new(SERVER).exists() {
        return Ok(());
    }
    Err(Error::Missing {
        code: "ssh_missing",
        what: format!("this machine has no OpenSSH server ({SERVER}), so its boxes have no shell"),
        remedy: "its supplier installs it: sudo apt-get install openssh-server; no daemon need run".into(),
    })
}

/// What the sub-command is told, as variables.
pub fn variables(host_key: &str, keys: &[String]) -> BTreeMap<String, String> {
    [(HOST_KEY.to_owned(), host_key.to_owned()), (KEYS.to_owned(), keys.join("\n"))].into()
}

/// Entry point of the hidden sub-command: serves the connection at standard input and output.
pub fn main(_arguments: &[String]) -> ExitCode {
    match serve() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{WORD}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<u8> {
    let folder = Folder::make()?;
    let secret = |name: &str| std::env::var(name).map_err(io::Error::other);
    folder.write("host_key", &secret(HOST_KEY)?)?;
    folder.write("authorized_keys", &format!("{}\n", secret(KEYS)?))?;
    let variables = std::env::vars().filter(|(name, _)| name != HOST_KEY && name != KEYS);
    let config = folder.write("config", &config(&folder.0, variables))?;
    let status = Command::new(SERVER)
        .args(["-i", "-e", "-f"])
        .arg(config)
        .env_remove(HOST_KEY)
        .env_remove(KEYS)
        .status()?;
    Ok(u8::try_from(door::code(status)).unwrap_or(1))
}

/// Removes the files of connections that were killed: their processes are gone.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The files of one connection, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn make() -> io::Result<Self> {
        sweep(Path::new("/tmp"));
        let path = PathBuf::from(format!("/tmp/{FOLDER}{}", std::process::id()));
        // What a killed connection of the same number left.
        let _ = fs::remove_dir_all(&path);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The whole configuration; nothing is read from the machine's own.
fn config(folder: &Path, variables: impl Iterator<Item = (String, String)>) -> String {
    let folder = folder.display();
    let mut text = format!(
        "HostKey {folder}/host_key\n\
         AuthorizedKeysFile {folder}/authorized_keys\n\
         PidFile none\n\
         UsePAM no\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         StrictModes no\n\
         UseDNS no\n\
         MaxAuthTries 70\n\
         LoginGraceTime 60\n\
         PrintMotd no\n\
         PrintLastLog no\n\
         X11Forwarding no\n\
         PermitTunnel no\n\
         PermitUserEnvironment no\n\
         AllowTcpForwarding yes\n\
         AllowStreamLocalForwarding yes\n\
         AllowAgentForwarding yes\n\
         AcceptEnv LANG LC_* COLORTERM\n\
         ClientAliveInterval 30\n\
         ClientAliveCountMax 10\n\
         LogLevel ERROR\n\
         Subsystem sftp internal-sftp\n"
    );
    // Only the first such line counts.
    text.push_str("SetEnv");
    for (name, value) in variables.filter(|(name, value)| settable(name, value)) {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        let _ = write!(text, " \"{name}={value}\"");
    }
    text.push('\n');
    text
}

/// What fits in a line of the configuration; a shell's own variables are its own business.
fn settable(name: &str, value: &str) -> bool {
    let own = ["HOME", "USER", "LOGNAME", "SHELL", "PWD", "SHLVL", "_"];
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !own.contains(&name)
        && !name.is_empty()
        && name.bytes().all(plain)
        && !value.contains(|c: char| c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_connections_left_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let own = format!("{FOLDER}{}", std::process::id());
        for name in [&*own, ".ionet-ssh-4294967295", ".ionet-ssh-x", "mine"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        assert!(!dir.path().join(".ionet-ssh-4294967295").exists());
    }

    #[test]
    fn variables_cannot_leave_their_line() {
        let all =
            [("PATH", "/env/bin"), ("A", "a \"b\" \\"), ("B", "x\nHostKey /"), ("C D", "x"), ("HOME", "/")];
        let text = config(Path::new("/f"), all.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())));
        let line = text.lines().find(|line| line.starts_with("SetEnv")).unwrap();
        assert_eq!(line, r#"SetEnv "PATH=/env/bin" "A=a \"b\" \\""#);
        assert_eq!(text.matches("HostKey").count(), 1);
    }
}
