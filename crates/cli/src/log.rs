//! Messages of the long-running commands: to the error stream, as much as `IONET_LOG` says.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Begins to show messages; `warn` unless `IONET_LOG` says otherwise (as in `info` or `ionet_server=debug`).
pub(crate) fn begin(default: &str) {
    let filter = EnvFilter::try_from_env("IONET_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    // Only the first call in a process counts; a second one changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .try_init();
}
