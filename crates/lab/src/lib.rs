//! The lab: the whole cloud in one thread under one seed, the testbed with real processes and its soak, the benchmarks,
//! the fuzzer and the golden journals. Not shipped.
//!
//! Always holds: a simulation reads no clock and no randomness but its seed; benchmarks measure the real parts on a
//! real disk. Not here: anything a product crate could use.

pub mod bench;
mod error;
pub mod fuzz;
pub mod golden;
pub mod random;
pub mod sim;
pub mod soak;
pub mod testbed;

pub use error::{LabError, Result};
