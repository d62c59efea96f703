//! The worker.
pub mod agent;
pub mod assignment;
pub mod error;
pub mod supervision;
pub use error::{Result, WorkerError};
