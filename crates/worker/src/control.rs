//! The words between the agent and a supervisor: JSON lines over the lease's unix socket.
//!
//! Always holds: any number of agents, one after another or at once, may listen; each gets the newest state first. The
//! supervisor waits for none of them. Not here: who acts on the words.

use ionet_api::worker::{ObservedLease, PeerLink};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::files::Brief;

/// Agent to supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Word {
    /// How the lease should be now.
    Assign(Box<Brief>),
    /// End the lease and wipe it.
    Remove,
}

/// Supervisor to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Told {
    /// How it reaches the other members.
    Links {
        /// One for each.
        links: Vec<PeerLink>,
    },
    /// How the lease is.
    Observed(Box<ObservedLease>),
}

/// Serves the socket until the states' sender is gone, then lets every client read the last state.
pub(crate) async fn serve(
    listener: UnixListener,
    words: mpsc::Sender<Word>,
    mut states: watch::Receiver<ObservedLease>,
    links: watch::Receiver<Vec<PeerLink>>,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { clients.spawn(serve_client(stream, words.clone(), states.clone(), links.clone())); }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = clients.join_next() => {}
            changed = states.changed() => if changed.is_err() { break },
        }
    }
    let all = async { while clients.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), all).await;
}

async fn serve_client(
    stream: UnixStream,
    words: mpsc::Sender<Word>,
    mut states: watch::Receiver<ObservedLease>,
    mut peers: watch::Receiver<Vec<PeerLink>>,
) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    states.mark_changed();
    loop {
        tokio::select! {
            biased;
            changed = states.changed() => {
                let Ok(text) = serde_json::to_string(&*states.borrow_and_update()) else { return };
                if changed.is_err() || writer.write_all(format!("{text}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
            Ok(()) = peers.changed() => {
                let told = Told::Links { links: peers.borrow_and_update().clone() };
                let Ok(text) = serde_json::to_string(&told) else { return };
                if writer.write_all(format!("{text}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                match serde_json::from_str(&line) {
                    Ok(word) => if words.send(word).await.is_err() { return },
                    Err(error) => tracing::warn!(%error, "a word of the agent cannot be read"),
                }
            }
        }
    }
}

/// The agent's end: says what it is given, passes on what it hears; returns when the supervisor is gone.
pub(crate) async fn attend(
    stream: UnixStream,
    words: &mut mpsc::UnboundedReceiver<Word>,
    mut hear: impl FnMut(Told),
) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                match serde_json::from_str(&line) {
                    Ok(told) => hear(told),
                    Err(error) => tracing::warn!(%error, "a supervisor's word cannot be read"),
                }
            }
            Some(word) = words.recv() => {
                let Ok(text) = serde_json::to_string(&word) else { continue };
                if writer.write_all(format!("{text}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
}
