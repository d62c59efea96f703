//! The one error type of this crate.

use crate::EndpointId;

/// What can go wrong on the network. Every message says what to do or look at.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A file or socket operation failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried, in words: `read the endpoint key /x/y`.
        action: String,
        /// The cause from the system.
        source: std::io::Error,
    },
    /// A text or file does not hold what it should.
    #[error("{what} is malformed; check that it was copied whole")]
    Malformed {
        /// What was read.
        what: String,
    },
    /// The local endpoint could not be opened.
    #[error("cannot open the network endpoint: {reason}; is the address or port in use?")]
    Bind {
        /// Cause, in words.
        reason: String,
    },
    /// The relay could not start.
    #[error("cannot start the relay: {reason}; is a port in use?")]
    Relay {
        /// Cause, in words.
        reason: String,
    },
    /// The peer could not be reached on any path.
    #[error(
        "cannot reach {peer}: {reason}; check that it runs and that a relay or an address of it is known"
    )]
    Unreachable {
        /// Whom we tried to reach.
        peer: EndpointId,
        /// Cause, in words.
        reason: String,
    },
    /// The peer does not admit our endpoint key for this protocol.
    #[error("the other side does not admit this endpoint key; enrol it first")]
    NotAdmitted,
    /// The peer runs, but offers no such service.
    #[error("the other side does not offer this service; check address and cluster")]
    NoService,
    /// A newer connection of the same endpoint took this one's place.
    #[error("a newer connection with the same endpoint key replaced this one; run one process per key")]
    Replaced,
    /// The connection is gone.
    #[error("the connection is closed: {reason}; connect again")]
    Closed {
        /// Cause, in words.
        reason: String,
    },
    /// A frame is longer than the protocol allows.
    #[error("a frame of {bytes} bytes is over the limit of {limit_bytes} bytes; send it in parts")]
    FrameTooLarge {
        /// Length asked for.
        bytes: usize,
        /// Longest allowed.
        limit_bytes: usize,
    },
    /// The far side of a tunnel refused the request.
    #[error("refused ({code}): {message}")]
    Refused {
        /// Stable code of the reason, chosen by the server.
        code: String,
        /// What the server says to people.
        message: String,
    },
}

impl NetError {
    /// A stable name of the kind of error, for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Io { .. } => "net_io",
            Self::Malformed { .. } => "net_malformed",
            Self::Bind { .. } => "net_bind",
            Self::Relay { .. } => "net_relay",
            Self::Unreachable { .. } => "net_unreachable",
            Self::NotAdmitted => "net_not_admitted",
            Self::NoService => "net_no_service",
            Self::Replaced => "net_replaced",
            Self::Closed { .. } => "net_closed",
            Self::FrameTooLarge { .. } => "net_frame_too_large",
            Self::Refused { .. } => "net_refused",
        }
    }

    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
    pub(crate) fn closed(reason: impl ToString) -> Self {
        Self::Closed { reason: reason.to_string() }
    }
}
