//! The one error type of this crate.

use ionet_domain::{Broken, Refusal};

/// What can go wrong in a server. Every message says what to do or look at.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The rules say no; nothing happened.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server is going down. The command was carried out or not: send it again under the same id.
    #[error("the server is stopping; send the command again under the same id once it is back")]
    Stopping,
    /// The journal cannot be trusted or written. The process must end and open it again.
    #[error("the journal failed")]
    Journal(#[from] ionet_journal::Error),
    /// A record of the journal contradicts the ones before it.
    #[error(
        "record {seq} does not fold; was the journal written by another release? run 'ionet journal verify'"
    )]
    Unfoldable {
        /// Which record.
        seq: u64,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A decided event contradicts the state: a fault of this program. Nothing of the batch was kept.
    #[error("an event that was just decided does not fold; please report this")]
    Broken(#[from] Broken),
    /// The network failed.
    #[error("the network endpoint failed")]
    Net(#[from] ionet_net::NetError),
    /// The chain failed.
    #[error("the chain failed")]
    Chain(#[from] ionet_chain::ChainError),
    /// A file or socket failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// The cause from the system.
        source: std::io::Error,
    },
    /// A key file does not hold a key.
    #[error("the key file {path} is malformed; restore it from a copy, a new key would orphan this network")]
    BadKeyFile {
        /// Which file.
        path: String,
    },
}

impl ServerError {
    /// The stable name, for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Stopping => "stopping",
            Self::Journal(error) => error.code(),
            Self::Unfoldable { .. } => "journal_unfoldable",
            Self::Broken(_) => "event_broken",
            Self::Net(error) => error.code(),
            Self::Chain(error) => error.code(),
            Self::Io { .. } => "server_io",
            Self::BadKeyFile { .. } => "bad_key_file",
        }
    }

    /// Names what was tried when a system call failed.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
