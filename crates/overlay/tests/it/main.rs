//! Tests of the crate from outside.

mod crafted;
mod nats;
mod paths;
mod plane;
mod private;
mod real;
mod relay;
mod world;
