//! One file per family of commands.

pub(crate) mod account;
pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod devices;
pub(crate) mod job;
pub(crate) mod journal;
pub(crate) mod quote;
pub(crate) mod relay;
