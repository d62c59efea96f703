//! The box's output as a stream.
//!
//! Always holds: the older file comes first; with `follow` what was written before the box's end is sent before the stream
//! ends. Not here: who writes it (`ionet-runtime`).

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;

const FOLLOW_EVERY: Duration = Duration::from_millis(200);
pub(super) const LOG_BUFFER_BYTES: usize = 16 << 10;

/// Sends what is there, the older file first, and with `follow` what comes until the box has ended.
pub(super) async fn send_log(
    dir: &Path,
    follow: bool,
    over: watch::Receiver<bool>,
    mut to: DuplexStream,
) -> std::io::Result<()> {
    if let Ok(mut older) = File::open(dir.join("output.log.1")).await {
        tokio::io::copy(&mut older, &mut to).await?;
    }
    let path = dir.join("output.log");
    let mut current: Option<File> = None;
    let mut buffer = vec![0; LOG_BUFFER_BYTES];
    loop {
        // Asked before reading, so that what was written before the end is sent.
        let last = !follow || *over.borrow();
        let Some(file) = &mut current else {
            current = File::open(&path).await.ok();
            if current.is_none() && last {
                return Ok(());
            }
            if current.is_none() {
                tokio::time::sleep(FOLLOW_EVERY).await;
            }
            continue;
        };
        let count = file.read(&mut buffer).await?;
        to.write_all(&buffer[..count]).await?;
        if count > 0 {
            continue;
        }
        if is_other(file, &path).await {
            current = None;
        } else if last {
            return Ok(());
        } else {
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }
}

/// Whether another file has the name by now: a full log is moved away and a new one begun.
async fn is_other(open: &File, path: &Path) -> bool {
    match (open.metadata().await, tokio::fs::metadata(path).await) {
        (Ok(open), Ok(there)) => open.ino() != there.ino(),
        (_, there) => there.is_ok(),
    }
}
