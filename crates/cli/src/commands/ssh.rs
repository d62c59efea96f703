//! `ionet ssh`: this machine's own ssh, with a tunnel for its way and the box's key known before the first byte.
//!
//! Always holds: the host's key comes with the tunnel, which is sealed end to end and opened under the server's word, so ssh is
//! strict and never asks; the engineer's private keys stay where they are. Not here: the server in the box.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ionet_domain::OrderId;
use ionet_domain::tunnel::Service;
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

use crate::args::SshArgs;
use crate::commands::tunnel::pass;
use crate::context::{Context, write_private};
use crate::error::{CliError, Result, io};
use crate::tunnel::Tunnels;

/// Most public keys that are offered, and their bytes in all.
const KEYS: usize = 64;
const KEYS_BYTES: usize = 16 << 10;
/// An agent that hangs must not hang us.
const AGENT_WAIT: Duration = Duration::from_secs(3);
const KINDS: [&str; 4] = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];

/// `ionet ssh`; answers ssh's status.
pub(crate) async fn ssh(context: &Context, args: &SshArgs) -> Result<u8> {
    if args.print_config || args.write_config {
        return config(context, args).await.map(|()| 0);
    }
    let way = Way::of(context, args.cluster, args.member)?;
    own_key_if_needed(context).await?;
    let mut command = Command::new("ssh");
    for (name, value) in way.options(context)? {
        command.arg("-o").arg(format!("{name}={value}"));
    }
    let status = command.arg(&way.alias).args(&args.words).status().await.map_err(ssh_missing)?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn ssh_missing(error: std::io::Error) -> CliError {
    CliError::refused("no_ssh", format!("cannot run ssh: {error}"))
        .help("sudo apt-get install openssh-client")
}

/// `ionet ssh-proxy`: the stream at standard input and output, after the host's key was written down.
pub(crate) async fn proxy(context: &Context, cluster: OrderId, member: u32) -> Result<u8> {
    let way = Way::of(context, cluster, member)?;
    let keys = public_keys(context).await?;
    let session = context.session().await?;
    let tunnels = Tunnels::open(context, &session, cluster, Some(Service::Ssh.into())).await?;
    let stream = tunnels.ssh(member, &keys).await?;
    let key = stream.note().filter(|key| is_public_key(key)).ok_or_else(|| {
        CliError::unreachable("garbled_answer", "the box did not say its key; its worker is too old")
    })?;
    write_private(&way.known_hosts, format!("{} {key}\n", way.alias).as_bytes())?;
    let done = pass(stream).await;
    tunnels.close().await;
    done.map(|()| 0)
}

/// How ssh gets to one member.
struct Way {
    cluster: OrderId,
    member: u32,
    /// What ssh calls it; lower case, as ssh has names.
    alias: String,
    /// The one line with its key.
    known_hosts: PathBuf,
}

impl Way {
    fn of(context: &Context, cluster: OrderId, member: u32) -> Result<Self> {
        let alias = format!("{cluster}.{member}.ionet").to_lowercase();
        let known_hosts = folder(context)?.join("hosts").join(&alias);
        Ok(Self { cluster, member, alias, known_hosts })
    }

    /// What ssh must know.
    fn options(&self, context: &Context) -> Result<Vec<(&'static str, String)>> {
        let mut options = vec![
            ("HostName", self.alias.clone()),
            ("HostKeyAlias", self.alias.clone()),
            ("User", "work".into()),
            ("ProxyCommand", self.proxy_command(context)?),
            ("UserKnownHostsFile", quoted(&self.known_hosts)),
            ("GlobalKnownHostsFile", "/dev/null".into()),
            ("StrictHostKeyChecking", "yes".into()),
            ("UpdateHostKeys", "no".into()),
            ("ServerAliveInterval", "20".into()),
            ("ServerAliveCountMax", "6".into()),
        ];
        options.extend(identities(context)?.iter().map(|path| ("IdentityFile", quoted(path))));
        Ok(options)
    }

    fn proxy_command(&self, context: &Context) -> Result<String> {
        let exe = std::env::current_exe().map_err(io("find this program"))?;
        let mut words =
            vec![exe.display().to_string(), "--data-dir".into(), context.data_dir.display().to_string()];
        if context.has_url() {
            words.extend(["--url".into(), context.url()?]);
        }
        words.extend(["ssh-proxy".into(), self.cluster.to_string(), self.member.to_string()]);
        // A shell reads it, after ssh has read its percent signs.
        let word = |word: &String| format!("'{}'", word.replace('\'', "'\\''").replace('%', "%%"));
        Ok(words.iter().map(word).collect::<Vec<_>>().join(" "))
    }
}

/// Where this client keeps what ssh needs.
fn folder(context: &Context) -> Result<PathBuf> {
    let folder = context.path("ssh");
    fs::create_dir_all(&folder).map_err(io(format!("make {}", folder.display())))?;
    Ok(folder)
}

/// As ssh's configuration takes a path.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('%', "%%"))
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

fn is_public_key(line: &str) -> bool {
    let kind = line.split(' ').next().unwrap_or_default();
    let certificate = kind.contains("-cert-");
    KINDS.iter().any(|known| kind.starts_with(known))
        && !certificate
        && line.split(' ').nth(1).is_some()
        && !line.contains(|c: char| c.is_control())
}

/// The engineer's public keys in files, each with the file of its private half.
fn in_files() -> Vec<(PathBuf, String)> {
    let Some(folder) = home().map(|home| home.join(".ssh")) else { return Vec::new() };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pub"))
        .filter_map(|path| {
            let line = fs::read_to_string(&path).ok()?.trim().to_owned();
            is_public_key(&line).then(|| (path.with_extension(""), line))
        })
        .collect();
    found.sort();
    found
}

fn own_key(context: &Context) -> Result<PathBuf> {
    Ok(folder(context)?.join("id_ed25519"))
}

/// Files with private keys that ssh is to try: the engineer's, and the one made here where there was none.
fn identities(context: &Context) -> Result<Vec<PathBuf>> {
    let own = own_key(context)?;
    let found = in_files().into_iter().map(|(private, _)| private).chain([own]);
    Ok(found.filter(|private| private.exists()).collect())
}

/// Public keys of the agent, none if there is none.
async fn in_agent() -> Vec<String> {
    if std::env::var_os("SSH_AUTH_SOCK").is_none() {
        return Vec::new();
    }
    let mut command = Command::new("ssh-add");
    command.arg("-L").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(Ok(said)) = timeout(AGENT_WAIT, command.output()).await else { return Vec::new() };
    String::from_utf8_lossy(&said.stdout)
        .lines()
        .map(str::to_owned)
        .filter(|line| is_public_key(line))
        .collect()
}

/// Makes a key for this client where the engineer has none at all.
async fn own_key_if_needed(context: &Context) -> Result {
    let own = own_key(context)?;
    if own.exists() || !in_files().is_empty() || !in_agent().await.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "ionet", "-f"]).arg(&own).stdin(Stdio::null());
    let made = command.stdout(Stdio::null()).status().await.map_err(ssh_missing)?;
    // Another process may have been first.
    if made.success() || own.exists() {
        return Ok(());
    }
    Err(CliError::internal("no_ssh_key", format!("ssh-keygen made no key at {}", own.display())))
}

/// All public keys that this client can show, without their comments.
async fn public_keys(context: &Context) -> Result<Vec<String>> {
    own_key_if_needed(context).await?;
    let own = fs::read_to_string(own_key(context)?.with_extension("pub")).unwrap_or_default();
    let files = in_files().into_iter().map(|(_, line)| line);
    let all = files.chain(in_agent().await).chain([own.trim().to_owned()]).filter(|line| is_public_key(line));
    let mut keys: Vec<String> = Vec::new();
    let mut bytes = 0;
    for key in all.map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")) {
        if !keys.contains(&key) && keys.len() < KEYS && bytes + key.len() <= KEYS_BYTES {
            bytes += key.len();
            keys.push(key);
        }
    }
    Ok(keys)
}

/// `ionet ssh --print-config` and `--write-config`
async fn config(context: &Context, args: &SshArgs) -> Result {
    let session = context.session().await?;
    let tunnels = Tunnels::open(context, &session, args.cluster, Some(Service::Ssh.into())).await?;
    let slots = tunnels.slots().await;
    tunnels.close().await;
    own_key_if_needed(context).await?;
    let mut text = format!("# Made by ionet for {}.\n", args.cluster);
    let mut hosts = Vec::new();
    for slot in slots {
        let way = Way::of(context, args.cluster, slot)?;
        let mut names = vec![way.alias.clone()];
        if slot == 0 {
            names.push(format!("{}.ionet", args.cluster).to_lowercase());
            // As it is shown everywhere.
            names.push(format!("{}.ionet", args.cluster));
        }
        let _ = writeln!(text, "Host {}", names.join(" "));
        for (name, value) in way.options(context)? {
            let _ = writeln!(text, "    {name} {value}");
        }
        hosts.extend(names);
    }
    if args.print_config {
        let answer = json!({ "hosts": hosts, "config": text });
        context.out.answer(&answer, |out| out.line(text.trim_end()));
        return Ok(());
    }
    let file = folder(context)?.join(format!("{}.conf", args.cluster));
    write_private(&file, text.as_bytes())?;
    let own = include(context)?;
    let answer = json!({ "hosts": hosts, "file": file, "included_by": own });
    context.out.answer(&answer, |out| {
        out.line(format!("{} is read by {}", file.display(), own.display()));
        out.lines(hosts.iter().map(|host| format!("  ssh {host}")));
    });
    Ok(())
}

/// Has ssh's own configuration read this client's; all else in it stays as it is.
fn include(context: &Context) -> Result<PathBuf> {
    let home = home().ok_or_else(|| CliError::usage("HOME is not set").help("use --print-config"))?;
    let path = home.join(".ssh/config");
    // A link stays one.
    let path = fs::canonicalize(&path).unwrap_or(path);
    let line = format!("Include \"{}/*.conf\"", folder(context)?.display());
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(io(format!("read {}", path.display()))(error)),
    };
    if !before.lines().any(|known| known.trim() == line) {
        // Before the first Host, else it counts for that host alone.
        write_private(&path, format!("{line}\n{before}").as_bytes())?;
    }
    Ok(path)
}
