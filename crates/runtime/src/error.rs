//! What can go wrong with a box: one enum, a stable code each, messages that say what to do.

use std::io;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a box, an environment or an engine could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request names something that this crate does not run; nothing was changed.
    #[error("{message}")]
    Refused {
        /// Stable, `snake_case`.
        code: &'static str,
        /// What was refused, why, and what to ask for instead.
        message: String,
    },
    /// A program or a part of the system is missing or too old.
    #[error("{what}; to mend it: {remedy}")]
    Missing {
        /// Stable, `snake_case`.
        code: &'static str,
        /// What was looked for and what was found.
        what: String,
        /// The command or step that mends it.
        remedy: String,
    },
    /// A system call or file operation failed.
    #[error("cannot {action}")]
    Io {
        /// What was being done, in the infinitive.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The process that holds the box's namespaces refused or is gone.
    #[error("box helper: {message}")]
    Helper {
        /// What the helper said.
        message: String,
    },
    /// The environment could not be built or does not work.
    #[error("environment {name}: {message}")]
    Environment {
        /// The environment's name.
        name: String,
        /// What failed, with the tool's last words.
        message: String,
    },
}

impl Error {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Refused { code, .. } | Error::Missing { code, .. } => code,
            Error::Io { .. } => "box_io",
            Error::Helper { .. } => "box_helper",
            Error::Environment { .. } => "environment_failed",
        }
    }

    /// The message with its cause, for reports that cross a process boundary.
    pub fn full_message(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Adds what was being done to an operating-system error.
pub(crate) trait During<T> {
    /// `action` is an infinitive: "open the TUN device".
    fn during(self, action: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { action: action.into(), source: source.into() })
    }
}
