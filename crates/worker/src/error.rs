//! What can go wrong on a worker: one enum, a stable code each, messages that say what to do.

use std::io;
use std::path::Path;

/// The crate's result.
pub type Result<T> = std::result::Result<T, WorkerError>;

/// Why the worker or a supervisor could not do something.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A file, folder or socket could not be used.
    #[error("cannot {action}")]
    Io {
        /// What was being done, in the infinitive.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has this data directory or lease.
    #[error("another process already runs on {place}; stop it first or use another data directory")]
    Busy {
        /// The folder.
        place: String,
    },
    /// A file that we wrote does not read back.
    #[error("{place} is damaged ({reason}); restore it from a backup, or remove it to begin anew")]
    Damaged {
        /// The file.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The member list is not believed; the one before stays.
    #[error("the member list is refused: {reason}")]
    MembersRefused {
        /// Why.
        reason: String,
    },
    /// The joining token or what the server said cannot be used.
    #[error("cannot join: {reason}")]
    Join {
        /// Why, and what to do.
        reason: String,
    },
    /// The REST call did not work out.
    #[error(transparent)]
    Api(#[from] ionet_api::ClientError),
    /// The network did not work out.
    #[error(transparent)]
    Net(#[from] ionet_net::NetError),
    /// The box did not work out.
    #[error(transparent)]
    Runtime(#[from] ionet_runtime::Error),
    /// The GPU driver's library could not be used.
    #[error("the GPU driver's library {library} does not work: {reason}; reinstall the NVIDIA driver")]
    Nvml {
        /// Which library.
        library: String,
        /// What it said.
        reason: String,
    },
}

impl WorkerError {
    /// A stable word for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Io { .. } => "worker_io",
            Self::Busy { .. } => "worker_busy",
            Self::Damaged { .. } => "worker_file_damaged",
            Self::MembersRefused { .. } => "members_refused",
            Self::Join { .. } => "cannot_join",
            Self::Api(error) => error.code(),
            Self::Net(error) => error.code(),
            Self::Runtime(error) => error.code(),
            Self::Nvml { .. } => "nvml_failed",
        }
    }

    /// The message with its causes, for reports that cross a process boundary.
    pub fn full_message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        text
    }
}

/// Adds what was being done to an operating-system error.
pub(crate) trait During<T> {
    /// `action` is an infinitive: `read the lease's state`.
    fn during(self, action: impl Into<String>) -> Result<T>;
    /// The same with a place at the end.
    fn during_at(self, action: &str, place: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| WorkerError::Io { action: action.into(), source: source.into() })
    }

    fn during_at(self, action: &str, place: &Path) -> Result<T> {
        self.during(format!("{action} {}", place.display()))
    }
}
