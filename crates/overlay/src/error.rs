//! The one error type of this crate.

/// What can go wrong when an overlay is made or asked for something. What is wrong with a packet is not an error: it is
/// dropped and counted ([`crate::Dropped`]).
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// A descriptor or thread could not be had.
    #[error("cannot {action}")]
    Io {
        /// What was tried, in words: `listen on [::]:0`.
        action: String,
        /// The cause from the system.
        source: std::io::Error,
    },
    /// A key is no Ed25519 public key.
    #[error("the key {key:?} of a member is no Ed25519 public key; check the member list")]
    BadKey {
        /// The key.
        key: crate::PeerKey,
    },
    /// A handshake message is not what it should be, or of another cluster or key.
    #[error(
        "a handshake message does not verify; both sides must have the same cluster name and member list"
    )]
    Handshake,
    /// The source of randomness or the Noise library refused.
    #[error("the handshake cannot be made: {reason}")]
    Noise {
        /// Cause, in words.
        reason: String,
    },
    /// The configuration contradicts itself.
    #[error("the overlay's configuration is no use: {reason}")]
    Config {
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// What this crate's fallible functions return.
pub type Result<T, E = OverlayError> = std::result::Result<T, E>;

impl OverlayError {
    /// A stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "overlay_io",
            Self::BadKey { .. } => "overlay_bad_key",
            Self::Handshake => "overlay_handshake",
            Self::Noise { .. } => "overlay_noise",
            Self::Config { .. } => "overlay_config",
        }
    }

    /// Wraps an error of the system with what was tried.
    pub fn io<E: Into<std::io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source: source.into() }
    }
}
