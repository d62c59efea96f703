//! What can go wrong for whoever types a command: a code, a message, what helps, and an exit status.
//!
//! Always holds: a refusal changed nothing; the exit status follows from [`Kind`] alone and is given in `main`.

use ionet_api::ClientError;
use ionet_domain::Refusal;
use ionet_net::NetError;
use serde_json::{Value, json};

/// Decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The rules, or the state of things, said no.
    Refused,
    /// The words typed make no sense.
    Usage,
    /// The network or a machine in it cannot be reached.
    Unreachable,
    /// A fault of ours, or of this machine.
    Internal,
}

impl Kind {
    /// The process's exit status.
    pub(crate) fn exit_status(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Internal => 4,
        }
    }
}

/// An error as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct CliError {
    pub(crate) kind: Kind,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    pub(crate) refusal: Option<Value>,
}

/// What a command answers.
pub(crate) type Result<T = ()> = std::result::Result<T, CliError>;

impl CliError {
    fn new(kind: Kind, code: &str, message: impl Into<String>) -> Self {
        let help = help_for(code).map(str::to_owned);
        Self { kind, code: code.to_owned(), message: message.into(), help, refusal: None }
    }

    pub(crate) fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, code, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, "usage", message)
    }

    pub(crate) fn unreachable(code: &str, message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, code, message)
    }

    pub(crate) fn internal(code: &str, message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, code, message)
    }

    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// As one JSON object.
    pub(crate) fn json(&self) -> Value {
        let mut body = json!({ "code": self.code, "message": self.message });
        if let Some(help) = &self.help {
            body["help"] = json!(help);
        }
        if let Some(refusal) = &self.refusal {
            body["refusal"] = refusal.clone();
        }
        json!({ "error": body })
    }

    /// As people read it.
    pub(crate) fn text(&self) -> String {
        let help = self.help.as_ref().map(|help| format!("\nhelp: {help}")).unwrap_or_default();
        format!("error[{}]: {}{help}", self.code, self.message)
    }
}

/// The next command to type, where the message alone does not say it.
fn help_for(code: &str) -> Option<&'static str> {
    Some(match code {
        "no_capacity" => "'ionet devices' lists what there is; ask for less with -n, --cpus or --memory",
        "insufficient_funds" => "'ionet wallet' shows what the account holds; a shorter --for costs less",
        "wrong_stage" => "'ionet cluster show' says where it stands and why",
        "over_price_cap" => "raise --max-price, or ask for less",
        "unknown_order" => "'ionet cluster ls --all' lists your clusters",
        "unsupported" => "'ionet cluster create --help' lists what there is",
        "unauthorized" | "not_signed_in" | "bad_session" => "sign in with 'ionet login'",
        "no_network" => "'ionet up' starts a network on this machine; 'ionet login --url URL' uses another",
        "no_wallet" => "'ionet login' makes a wallet key for this data directory",
        "unreachable" => "is the server running? 'ionet up' starts one on this machine",
        _ => return None,
    })
}

impl From<Refusal> for CliError {
    fn from(refusal: Refusal) -> Self {
        let mut error = Self::refused(refusal.code(), refusal.to_string());
        error.refusal = serde_json::to_value(&refusal).ok();
        error
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            // A server that is stopping or too busy, or that a proxy does not find, is away too: it may be tried again.
            ClientError::Refused { status: 502..=504, .. }
            | ClientError::Unreachable { .. }
            | ClientError::Garbled { .. } => Kind::Unreachable,
            ClientError::Refused { status, .. } if *status >= 500 => Kind::Internal,
            ClientError::Refused { .. } => Kind::Refused,
        };
        let message = match &error {
            ClientError::Unreachable { url, reason } => format!("no answer from {url}: {reason}"),
            other => other.to_string(),
        };
        let mut shown = Self::new(kind, error.code(), message);
        shown.refusal = error.refusal().and_then(|refusal| serde_json::to_value(refusal).ok());
        shown
    }
}

impl From<NetError> for CliError {
    fn from(error: NetError) -> Self {
        match &error {
            NetError::Refused { code, message } => Self::refused(code, message.clone()),
            NetError::Io { action, source } => {
                Self::internal(error.code(), format!("cannot {action}: {source}"))
            }
            NetError::Malformed { .. } => Self::internal(error.code(), error.to_string()),
            _ => Self::unreachable(error.code(), error.to_string()),
        }
    }
}

impl From<ionet_worker::WorkerError> for CliError {
    fn from(error: ionet_worker::WorkerError) -> Self {
        match error {
            ionet_worker::WorkerError::Api(error) => error.into(),
            ionet_worker::WorkerError::Net(error) => error.into(),
            ionet_worker::WorkerError::Busy { .. } | ionet_worker::WorkerError::Join { .. } => {
                Self::refused(error.code(), error.to_string())
            }
            other => Self::internal(other.code(), other.full_message()),
        }
    }
}

/// An error with its causes, each said once.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = source.source();
    }
    text
}

/// Names what was tried when the system said no.
pub(crate) fn io(action: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> CliError {
    move |error| {
        let (code, help) = match error.kind() {
            std::io::ErrorKind::StorageFull => {
                ("disk_full", "make room on the disk, or use another --data-dir")
            }
            std::io::ErrorKind::PermissionDenied => {
                ("permission_denied", "use a --data-dir that is yours, or look at the folder's owner")
            }
            std::io::ErrorKind::NotFound => {
                let message = format!("cannot {action}: there is no such file or folder");
                return CliError::refused("not_found", message);
            }
            std::io::ErrorKind::AddrInUse => ("port_in_use", "another program has the port; choose another"),
            _ => return CliError::internal("io", format!("cannot {action}: {error}")),
        };
        CliError::internal(code, format!("cannot {action}: {error}")).help(help)
    }
}
