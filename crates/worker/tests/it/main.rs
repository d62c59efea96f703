//! The worker: its logic as tables and properties, its measurements, and its processes as they really run.

mod agent;
mod egress;
mod fixtures;
mod machine;
mod process;
mod ray;
mod server;
mod supervision;
