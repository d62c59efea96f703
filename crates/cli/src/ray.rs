//! Ray's Jobs REST API on a cluster's head, as its own client speaks it.
//!
//! Not here: how the head is reached (`tunnel`).

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ionet_api::Secret;
use ionet_api::sign::hex;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zip::write::{SimpleFileOptions, ZipWriter};

use crate::error::{CliError, Result, io};

/// The head's dashboard and Jobs port.
pub(crate) const DASHBOARD_PORT: u16 = 8265;
/// Ray Client's port on the head.
pub(crate) const CLIENT_PORT: u16 = 10001;
/// `JupyterLab`'s port on the head.
pub(crate) const NOTEBOOK_PORT: u16 = 8888;

/// A head that says nothing of a job for so long is taken for not answering.
const STATUS_WAIT: Duration = Duration::from_secs(20);
/// More than this does not travel as a working directory.
const MAX_PACKAGE_BYTES: u64 = 200 << 20;
/// Folders that are no part of a program.
const SKIPPED: [&str; 5] = [".git", "__pycache__", ".venv", "node_modules", ".ipynb_checkpoints"];

/// A client of one cluster's Jobs API.
#[derive(Debug, Clone)]
pub(crate) struct Ray {
    base: String,
    token: Secret,
    http: reqwest::Client,
}

/// A job as Ray tells of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) submission_id: Option<String>,
    pub(crate) status: String,
    pub(crate) entrypoint: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) start_time: Option<u64>,
    pub(crate) end_time: Option<u64>,
    pub(crate) driver_exit_code: Option<i32>,
}

impl Job {
    /// Whether nothing more will come of it.
    pub(crate) fn ended(&self) -> bool {
        matches!(self.status.as_str(), "SUCCEEDED" | "FAILED" | "STOPPED")
    }
}

/// What a job runs in.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct RuntimeEnv {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) working_dir: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) env_vars: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) pip: Vec<String>,
}

impl Ray {
    /// A client at a local port that leads to the head.
    pub(crate) fn new(port: u16, token: Secret) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_mins(2))
            .no_proxy()
            .build();
        let http = http.map_err(|error| CliError::internal("http", error.to_string()))?;
        Ok(Self { base: format!("http://127.0.0.1:{port}"), token, http })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(self.token.expose())
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
        let response = request.send().await.map_err(|error| {
            CliError::unreachable(
                "ray_unreachable",
                format!("the cluster's Jobs API does not answer: {error}"),
            )
            .help("it may still be starting; 'ionet cluster show' says how the members are")
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = response.text().await.unwrap_or_default();
        let said = said.trim().chars().take(600).collect::<String>();
        let code = if status == StatusCode::NOT_FOUND { "unknown_job" } else { "ray_refused" };
        Err(CliError::refused(code, format!("Ray answered {status}: {said}")))
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T> {
        let response = self.call(request).await?;
        response.json().await.map_err(|error| {
            CliError::unreachable("ray_garbled", format!("Ray's answer cannot be read: {error}"))
        })
    }

    /// Ray's release on the cluster.
    pub(crate) async fn version(&self) -> Result<String> {
        let version: Value = self.json(self.request(Method::GET, "/api/version")).await?;
        Ok(version["ray_version"].as_str().unwrap_or_default().to_owned())
    }

    /// Submits a job; answers its id.
    pub(crate) async fn submit(
        &self,
        entrypoint: &str,
        env: &RuntimeEnv,
        id: Option<&str>,
    ) -> Result<String> {
        let mut body = json!({ "entrypoint": entrypoint, "runtime_env": env });
        if let Some(id) = id {
            body["submission_id"] = json!(id);
        }
        let answer: Value = self.json(self.request(Method::POST, "/api/jobs/").json(&body)).await?;
        Ok(answer["submission_id"].as_str().unwrap_or_default().to_owned())
    }

    /// One job.
    pub(crate) async fn job(&self, id: &str) -> Result<Job> {
        let request = self.request(Method::GET, &format!("/api/jobs/{id}"));
        self.json(request.timeout(STATUS_WAIT)).await
    }

    /// All jobs that were submitted.
    pub(crate) async fn jobs(&self) -> Result<Vec<Job>> {
        let all: Vec<Job> = self.json(self.request(Method::GET, "/api/jobs/")).await?;
        Ok(all.into_iter().filter(|job| job.submission_id.is_some()).collect())
    }

    /// Everything that a job printed so far.
    pub(crate) async fn logs(&self, id: &str) -> Result<String> {
        let answer: Value = self.json(self.request(Method::GET, &format!("/api/jobs/{id}/logs"))).await?;
        Ok(answer["logs"].as_str().unwrap_or_default().to_owned())
    }

    /// Stops a job; `false` if it had ended.
    pub(crate) async fn stop(&self, id: &str) -> Result<bool> {
        let answer: Value = self.json(self.request(Method::POST, &format!("/api/jobs/{id}/stop"))).await?;
        Ok(answer["stopped"].as_bool().unwrap_or_default())
    }

    /// Uploads a folder under a name made from its content; answers the URI that jobs use.
    pub(crate) async fn upload(&self, dir: &Path) -> Result<String> {
        self.upload_package(pack(dir)?).await
    }

    /// Uploads one file as a working directory.
    pub(crate) async fn upload_file(&self, name: &str, content: &str) -> Result<String> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        add(&mut zip, name, content.as_bytes())?;
        self.upload_package(finish(zip)?).await
    }

    async fn upload_package(&self, package: Vec<u8>) -> Result<String> {
        let digest = hex(&Sha256::digest(&package)[..8]);
        let name = format!("_ray_pkg_{digest}.zip");
        let path = format!("/api/packages/gcs/{name}");
        let known = self.request(Method::GET, &path).send().await;
        if !known.is_ok_and(|answer| answer.status().is_success()) {
            self.call(self.request(Method::PUT, &path).body(package)).await?;
        }
        Ok(format!("gcs://{name}"))
    }
}

type Zip = ZipWriter<Cursor<Vec<u8>>>;

fn zip_failed(error: impl std::fmt::Display) -> CliError {
    CliError::internal("zip", format!("cannot pack the working directory: {error}"))
}

fn add(zip: &mut Zip, name: &str, content: &[u8]) -> Result {
    let options = SimpleFileOptions::default().unix_permissions(0o755);
    zip.start_file(name, options).map_err(zip_failed)?;
    zip.write_all(content).map_err(zip_failed)
}

fn finish(zip: Zip) -> Result<Vec<u8>> {
    zip.finish().map(Cursor::into_inner).map_err(zip_failed)
}

/// A folder as a zip file; the same content makes the same bytes.
fn pack(dir: &Path) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    collect(dir, &mut files)?;
    files.sort();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut total = 0;
    for file in files {
        let content = std::fs::read(&file).map_err(io(format!("read {}", file.display())))?;
        total += content.len() as u64;
        if total > MAX_PACKAGE_BYTES {
            let message = format!("{} holds more than {} MiB", dir.display(), MAX_PACKAGE_BYTES >> 20);
            return Err(CliError::refused("package_too_large", message)
                .help("give --working-dir a folder with the program only; fetch data inside the job"));
        }
        let name = file.strip_prefix(dir).unwrap_or(&file).to_string_lossy().into_owned();
        add(&mut zip, &name, &content)?;
    }
    finish(zip)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result {
    let entries = std::fs::read_dir(dir).map_err(io(format!("read {}", dir.display())))?;
    for entry in entries {
        let entry = entry.map_err(io(format!("read {}", dir.display())))?;
        let kind = entry.file_type().map_err(io(format!("read {}", entry.path().display())))?;
        let skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && !skipped {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Words as a shell takes them; one word alone is a shell line already.
pub(crate) fn shell_line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        _ => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        for (words, line) in [
            (vec!["python -c 'print(1)'"], "python -c 'print(1)'"),
            (vec!["python", "-c", "print('a b')"], r"python -c 'print('\''a b'\'')'"),
            (vec!["echo", "", "$HOME"], "echo '' '$HOME'"),
        ] {
            let words: Vec<_> = words.into_iter().map(str::to_owned).collect();
            assert_eq!(shell_line(&words), line);
        }
    }

    #[test]
    fn a_folder_packs_the_same_twice_and_without_what_is_no_program() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".git")).unwrap();
        std::fs::create_dir_all(dir.path().join("lib")).unwrap();
        for name in ["main.py", "lib/a.py", ".git/config"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let package = pack(dir.path()).unwrap();
        assert_eq!(package, pack(dir.path()).unwrap());
        let zip = zip::ZipArchive::new(Cursor::new(package)).unwrap();
        let names: Vec<_> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
        assert_eq!(names, ["lib/a.py", "main.py"]);
    }
}
