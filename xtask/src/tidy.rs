//! What must hold for the repository as a whole and no compiler checks: which crate may know which, who may use
//! which dependency, how large a file may grow, and that what the documents name exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which crates of ours a crate may use. The arrows of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("ionet-domain", &[]),
    ("ionet-api", &["ionet-domain"]),
    ("ionet-journal", &["ionet-domain"]),
    ("ionet-overlay", &[]),
    ("ionet-egress", &["ionet-domain"]),
    ("ionet-net", &["ionet-domain", "ionet-overlay"]),
    ("ionet-runtime", &["ionet-domain"]),
    ("ionet-chain", &["ionet-domain"]),
    ("ionet-server", &["ionet-domain", "ionet-api", "ionet-journal", "ionet-net", "ionet-chain"]),
    ("ionet-worker", &["ionet-domain", "ionet-api", "ionet-net", "ionet-egress", "ionet-runtime"]),
    ("ionet", &["ionet-domain", "ionet-api", "ionet-net", "ionet-server", "ionet-worker"]),
    (
        "ionet-lab",
        &[
            "ionet-domain",
            "ionet-api",
            "ionet-journal",
            "ionet-net",
            "ionet-overlay",
            "ionet-runtime",
            "ionet-chain",
            "ionet-server",
            "ionet-worker",
        ],
    ),
    ("xtask", &[]),
];

/// Dependencies behind a fence: who may use them, and why nobody else.
const FENCES: &[(&str, &[&str], &str)] = &[
    ("iroh", &["ionet-net"], "one crate knows the transport"),
    ("iroh-relay", &["ionet-net"], "one crate knows the transport"),
    ("rusqlite", &["ionet-journal"], "the journal is the truth; SQL is only its index"),
    ("axum", &["ionet-server"], "one HTTP server"),
    ("seccompiler", &["ionet-runtime"], "one starter of customer code"),
    ("landlock", &["ionet-runtime"], "one starter of customer code"),
    ("smoltcp", &["ionet-egress"], "one place knows the TCP stack in user space"),
    ("if-addrs", &["ionet-egress"], "one guard knows the host's networks"),
    ("libloading", &["ionet-worker"], "one place loads foreign libraries"),
    ("ed25519-dalek", &["ionet-api"], "one place signs and verifies"),
    ("clap", &["ionet-cli", "ionet-lab"], "words in are the command line's business"),
    (
        "tokio",
        &["ionet-net", "ionet-server", "ionet-worker", "ionet-cli", "ionet-lab"],
        "logic is synchronous",
    ),
    (
        "getrandom",
        &["ionet-net", "ionet-server", "ionet-worker", "ionet-cli", "ionet-lab"],
        "rules get randomness as an argument",
    ),
];

/// A file longer than this has two subjects.
const MAX_LINES: usize = 1000;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["common", "shared", "utils", "util", "types", "helpers", "misc"];

/// Every fault, in words with the place. Empty is tidy.
pub(crate) fn faults(root: &Path) -> Vec<String> {
    let files = tracked(root);
    let mut faults = Vec::new();
    faults.extend(dependency_faults(root));
    faults.extend(files.iter().flat_map(|file| file_faults(root, file)));
    faults.extend(document_faults(root, &files));
    faults.extend(decision_faults(root, &files));
    faults
}

/// Every file that git knows or would add.
fn tracked(root: &Path) -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    listed.lines().map(PathBuf::from).filter(|file| root.join(file).is_file()).collect()
}

fn dependency_faults(root: &Path) -> Vec<String> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output();
    let parsed = metadata.ok().and_then(|o| serde_json::from_slice::<serde_json::Value>(&o.stdout).ok());
    let Some(packages) = parsed.as_ref().and_then(|m| m["packages"].as_array()) else {
        return vec!["cargo metadata could not be read".into()];
    };
    packages.iter().flat_map(package_faults).collect()
}

fn package_faults(package: &serde_json::Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let dependencies: BTreeMap<&str, &str> = package["dependencies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|d| Some((d["name"].as_str()?, d["kind"].as_str().unwrap_or("normal"))))
        .collect();
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let known = if name == "ionet-cli" { "ionet" } else { name };
    let Some(allowed) = arrows.get(known) else {
        return vec![format!(
            "crate {name} is not in xtask's list of arrows; add it with the crates it may use"
        )];
    };
    let ours = dependencies.iter().filter(|(d, kind)| d.starts_with("ionet-") && **kind == "normal");
    let foreign = ours.filter(|(d, _)| !allowed.contains(*d));
    let mut faults: Vec<_> = foreign.map(|(d, _)| format!("crate {name} may not use {d}")).collect();
    for (dependency, users, why) in FENCES {
        let used = dependencies.get(dependency).is_some_and(|kind| *kind == "normal");
        if used && !users.contains(&name) {
            faults.push(format!("crate {name} may not use {dependency}: {why}"));
        }
    }
    faults
}

fn file_faults(root: &Path, file: &Path) -> Vec<String> {
    let shown = file.display();
    let mut faults = Vec::new();
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        faults.push(format!("{shown}: the name '{stem}' does not say what is inside"));
    }
    let Ok(text) = std::fs::read_to_string(root.join(file)) else { return faults };
    let code = file.extension().is_some_and(|e| e == "rs" || e == "py" || e == "sh");
    if code && text.lines().count() > MAX_LINES {
        faults.push(format!("{shown}: {} lines, {MAX_LINES} is the most", text.lines().count()));
    }
    if file.extension().is_some_and(|e| e == "rs") {
        faults.extend(rust_faults(&shown.to_string(), &text));
    }
    faults
}

fn rust_faults(shown: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.trim_start().starts_with("//!") && !shown.contains("/tests/") {
        faults.push(format!("{shown}: no head that says what it is for"));
    }
    let unfinished = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")];
    let naps = [concat!("thread::", "sleep("), concat!("time::", "sleep(")];
    for (n, line) in text.lines().enumerate() {
        let n = n + 1;
        if let Some(word) = unfinished.iter().find(|word| line.contains(**word)) {
            faults.push(format!("{shown}:{n}: {word}...) was left in"));
        }
        let in_test = shown.contains("/tests/");
        if in_test && naps.iter().any(|nap| line.contains(nap)) && !line.contains("// poll") {
            faults.push(format!(
                "{shown}:{n}: a test sleeps; wait for a condition (a poll's pause is marked '// poll')"
            ));
        }
    }
    faults
}

/// Every path in backquotes in the documents exists.
fn document_faults(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let documents = ["ARCHITECTURE.md", "README.md"].map(PathBuf::from);
    let docs =
        files.iter().filter(|file| file.starts_with("docs") && file.extension().is_some_and(|e| e == "md"));
    let all: BTreeSet<_> = documents.iter().chain(docs).collect();
    all.into_iter().flat_map(|document| missing_paths(root, document)).collect()
}

fn missing_paths(root: &Path, document: &Path) -> Vec<String> {
    let Ok(text) = std::fs::read_to_string(root.join(document)) else {
        return vec![format!("{} is missing", document.display())];
    };
    let quoted = text.split('`').skip(1).step_by(2);
    let paths = quoted.filter(|q| names_a_path(q)).map(|q| q.split(['#', ':']).next().unwrap_or(q));
    let linked = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let relative = linked.filter(|link| !link.contains("://") && !link.starts_with('#'));
    let folder = document.parent().unwrap_or(Path::new(""));
    let missing_links = relative.filter(|link| {
        let path = link.split('#').next().unwrap_or(link);
        !root.join(folder).join(path).exists()
    });
    paths
        .filter(|path| !root.join(path).exists())
        .chain(missing_links)
        .map(|path| format!("{}: '{path}' does not exist", document.display()))
        .collect()
}

fn names_a_path(quoted: &str) -> bool {
    let ours = ["crates/", "docs/", "scripts/", "xtask/", ".ci/", "sdk/"];
    ours.iter().any(|start| quoted.starts_with(start)) && !quoted.contains(['*', '{', '<', ' '])
}

/// Decisions are numbered without gaps and each says what was decided.
fn decision_faults(root: &Path, files: &[PathBuf]) -> Vec<String> {
    let mut pages: Vec<_> = files.iter().filter(|file| file.starts_with("docs/decisions")).collect();
    pages.sort();
    let mut faults = Vec::new();
    for (n, page) in pages.iter().enumerate() {
        let name = page.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with(&format!("{:04}-", n + 1)) {
            faults.push(format!("{}: decisions are numbered from 0001 without gaps", page.display()));
        }
        let text = std::fs::read_to_string(root.join(page)).unwrap_or_default();
        if !text.starts_with("# ") {
            faults.push(format!("{}: a decision starts with its title", page.display()));
        }
    }
    faults
}
