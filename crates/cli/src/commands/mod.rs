//! One file per family of commands.

pub(crate) mod account;
pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod course;
pub(crate) mod cp;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod egress;
pub(crate) mod explain;
pub(crate) mod expose;
pub(crate) mod job;
pub(crate) mod journal;
pub(crate) mod network;
pub(crate) mod prices;
pub(crate) mod quickstart;
pub(crate) mod quote;
pub(crate) mod relay;
pub(crate) mod server;
pub(crate) mod share;
pub(crate) mod ssh;
pub(crate) mod support;
pub(crate) mod terms;
pub(crate) mod tunnel;
pub(crate) mod up;
pub(crate) mod worker;
