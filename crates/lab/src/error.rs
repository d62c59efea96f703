//! What can go wrong in the lab itself.

/// Why the lab could not do it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or a process.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The journal.
    #[error("{what}: {source}")]
    Journal {
        /// What was tried.
        what: &'static str,
        /// The journal's word.
        #[source]
        source: ionet_journal::Error,
    },
    /// The server's engine.
    #[error("{what}: {source}")]
    Server {
        /// What was tried.
        what: &'static str,
        /// The server's word.
        #[source]
        source: ionet_server::ServerError,
    },
    /// A promise was not kept.
    #[error("{promise}: {what}")]
    Promise {
        /// Which.
        promise: crate::sim::Promise,
        /// How.
        what: String,
    },
    /// Something that must hold did not.
    #[error("{0}")]
    Broken(String),
}

impl LabError {
    /// The stable name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "lab_io",
            Self::Journal { source, .. } => source.code(),
            Self::Server { .. } => "lab_server",
            Self::Promise { promise, .. } => promise.name(),
            Self::Broken(_) => "lab_broken",
        }
    }

    /// Adds what was tried to a system error.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Adds what was tried to an error of the server.
    pub fn server(what: &'static str) -> impl FnOnce(ionet_server::ServerError) -> Self {
        move |source| Self::Server { what, source }
    }

    /// Adds what was tried to an error of the journal.
    pub fn journal(what: &'static str) -> impl FnOnce(ionet_journal::Error) -> Self {
        move |source| Self::Journal { what, source }
    }
}

/// An error with all its causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What the lab answers.
pub type Result<T, E = LabError> = std::result::Result<T, E>;
