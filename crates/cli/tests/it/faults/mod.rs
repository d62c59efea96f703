//! When things go wrong: real server, agents, supervisors and boxes as separate processes, and each killed in turn.
//!
//! Each test has a network of its own in a folder of its own; nothing of it outlives the test.

mod absence;
mod cloud;
mod damage;
mod hostile;
mod kills;
mod members;
mod ray;
mod refusals;
