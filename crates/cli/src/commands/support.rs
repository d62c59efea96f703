//! `ionet support`: a bundle for whoever helps. It names what is in it, and no secret is in it.
//!
//! Always holds: key files, sessions and tokens are never read into it; every text goes through [`Mask`].

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::args::SupportArgs;
use crate::commands::doctor;
use crate::context::{Context, now_ms, write_private};
use crate::error::{CliError, Result};
use crate::process::last_lines;

const LOG_LINES: usize = 400;

/// `ionet support`
pub(crate) async fn support(context: &Context, args: &SupportArgs) -> Result {
    let mut progress = context.out.progress("looking at this machine");
    let mask = Mask::of(context);
    let mut parts = vec![
        ("versions.txt".to_owned(), versions()),
        ("doctor.json".to_owned(), pretty(&doctor_json(context).await)),
        ("data-dir.txt".to_owned(), listing(&context.data_dir)),
    ];
    progress.say("asking the server");
    parts.push(("network.json".to_owned(), pretty(&network(context).await)));
    parts.extend(["up.json", "context.json"].into_iter().filter_map(|name| file(context, name)));
    parts.extend(logs(context));
    let parts: Vec<_> = parts.into_iter().map(|(name, text)| (name, mask.text(&text))).collect();
    let path = args
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("ionet-support-{}.zip", now_ms() / 1000)));
    write_private(&path, &packed(&parts)?)?;
    progress.done("done");
    let names: Vec<_> =
        parts.iter().map(|(name, text)| json!({ "name": name, "bytes": text.len() })).collect();
    context.out.answer(&json!({ "file": path, "parts": names }), |out| {
        let rows = parts.iter().map(|(name, text)| vec![name.clone(), text.len().to_string()]);
        out.table(&["PART", "BYTES"], &[1], rows.collect());
        out.line(format!("{}: secrets are masked; look into it before you send it", path.display()));
    });
    Ok(())
}

fn packed(parts: &[(String, String)]) -> Result<Vec<u8>> {
    let failed =
        |error: &dyn std::fmt::Display| CliError::internal("zip", format!("cannot pack the bundle: {error}"));
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, text) in parts {
        zip.start_file(name.as_str(), SimpleFileOptions::default()).map_err(|error| failed(&error))?;
        zip.write_all(text.as_bytes()).map_err(|error| failed(&error))?;
    }
    zip.finish().map(Cursor::into_inner).map_err(|error| failed(&error))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

async fn doctor_json(context: &Context) -> Value {
    match doctor::findings(context).await {
        Ok(checks) => json!(checks),
        Err(error) => error.json(),
    }
}

fn versions() -> String {
    let mut text = format!("ionet {}\n", env!("CARGO_PKG_VERSION"));
    for (program, words) in [
        ("uname", &["-srm"][..]),
        ("bwrap", &["--version"]),
        ("python3", &["--version"]),
        ("uv", &["--version"]),
    ] {
        let said = Command::new(program).args(words).output();
        let said = said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
        let said = said.unwrap_or_else(|error| error.to_string());
        text += &[program, ": ", &said, "\n"].concat();
    }
    text + &std::fs::read_to_string("/etc/os-release").unwrap_or_default()
}

/// Names and sizes of what is in the data directory; no contents.
fn listing(dir: &Path) -> String {
    let mut lines = Vec::new();
    list(dir, dir, 3, &mut lines);
    lines.sort();
    lines.join("\n")
}

fn list(root: &Path, dir: &Path, depth: u32, lines: &mut Vec<String>) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(about) = entry.metadata() else { continue };
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if about.is_dir() {
            lines.push(format!("{name}/"));
            if depth > 0 {
                list(root, &path, depth - 1, lines);
            }
        } else {
            lines.push(format!("{name} {}", about.len()));
        }
    }
}

/// What the server says, or why it says nothing.
async fn network(context: &Context) -> Value {
    let (client, network) = match context.visitor().await {
        Ok(found) => found,
        Err(error) => return error.json(),
    };
    let mut said = json!({ "url": client.base(), "network": network });
    if let Ok(session) = context.session().await {
        said["devices"] = json!(session.client.devices(&ionet_api::rest::DeviceFilter::default()).await.ok());
        said["clusters"] =
            json!(session.client.clusters(&ionet_api::rest::ClusterFilter::default()).await.ok());
    }
    said
}

fn file(context: &Context, name: &str) -> Option<(String, String)> {
    std::fs::read_to_string(context.path(name)).ok().map(|text| (name.to_owned(), text))
}

fn logs(context: &Context) -> Vec<(String, String)> {
    let mut files: Vec<_> = std::fs::read_dir(context.path("logs")).into_iter().flatten().flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    let part = |entry: &std::fs::DirEntry| {
        let name = format!("logs/{}", entry.file_name().to_string_lossy());
        (name, last_lines(&entry.path(), LOG_LINES).join("\n"))
    };
    files.iter().map(part).collect()
}

/// Takes secrets out of texts: those that this data directory knows, and whatever stands where secrets stand.
struct Mask {
    known: Vec<String>,
    home: Option<String>,
}

/// Files whose texts are secrets.
const SECRET_FILES: [&str; 4] = ["session.json", "supply-key.json", "join-token.txt", "worker/join.json"];
/// What a secret's name ends with.
const SECRET_NAMES: [&str; 8] =
    ["token", "secret", "password", "seed", "signature", "authorization", "api_key", "bearer"];
/// Shorter texts are no secrets of ours.
const SECRET_LENGTH: usize = 16;

impl Mask {
    fn of(context: &Context) -> Self {
        let texts = SECRET_FILES.iter().filter_map(|name| std::fs::read_to_string(context.path(name)).ok());
        let words = texts.flat_map(|text| {
            let words: Vec<_> = text.split(|c: char| "\"[]{},: \n".contains(c)).map(str::to_owned).collect();
            words
        });
        let known = words.filter(|word| word.len() >= 32 && !word.contains('/')).collect();
        Self { known, home: std::env::var("HOME").ok().filter(|home| home.len() > 1) }
    }

    fn text(&self, text: &str) -> String {
        let mut masked = self.known.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"));
        if let Some(home) = &self.home {
            masked = masked.replace(home.as_str(), "~");
        }
        masked.lines().map(masked_line).collect::<Vec<_>>().join("\n")
    }
}

/// `token: abc`, `"token": "abc"`, `TOKEN=abc`, `Bearer abc`: the value after a secret's name goes.
fn masked_line(line: &str) -> String {
    let separator = |c: char| c.is_whitespace() || "\"':=,{}()[]".contains(c);
    let mut shown = String::with_capacity(line.len());
    let mut hide_next = false;
    for piece in line.split_inclusive(separator) {
        let word = piece.trim_end_matches(separator);
        let is_name = SECRET_NAMES.iter().any(|name| word.to_ascii_lowercase().ends_with(name));
        if hide_next && word.len() >= SECRET_LENGTH {
            shown += "***";
            shown += &piece[word.len()..];
            hide_next = false;
            continue;
        }
        hide_next = is_name || (hide_next && word.is_empty());
        shown += piece;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_wherever_they_stand() {
        let secret = "Zm9vYmFyYmF6cXV4MTIzNDU2";
        for line in [
            format!("Authorization: Bearer {secret}"),
            format!("{{\"token\":\"{secret}\",\"n\":1}}"),
            format!("export RAY_AUTH_TOKEN={secret}"),
            format!("token = '{secret}' next"),
        ] {
            let masked = masked_line(&line);
            assert!(!masked.contains(secret), "{masked}");
            assert!(masked.contains("***"), "{masked}");
        }
        for line in ["device dev_01ABCDEFGHJKMNPQRSTVWXYZ12 is connected", "the token expired"] {
            assert_eq!(masked_line(line), line);
        }
    }

    #[test]
    fn what_the_data_directory_knows_goes_without_a_name_beside_it() {
        let mask = Mask { known: vec!["s".repeat(40)], home: Some("/home/ann".into()) };
        assert_eq!(mask.text(&format!("x {} /home/ann/y", "s".repeat(40))), "x *** ~/y");
    }
}
