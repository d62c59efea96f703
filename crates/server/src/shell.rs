//! The shell around the core: threads, clocks, links and files.

use ionet_domain::Command;
use tokio::sync::oneshot;

use crate::error::ServerError;
use crate::handle::Submitted;

/// What reaches the one writer.
#[derive(Debug)]
pub(crate) enum Message {
    /// A command, and who waits for the answer.
    Submit(Box<Command>, Option<oneshot::Sender<Result<Submitted, ServerError>>>),
}
