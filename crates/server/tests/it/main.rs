//! The server from outside: the core against workers, disks and chains in memory, and the shell against real ones.

mod acme_kit;
mod apps;
mod apps_acme;
mod apps_kit;
mod course;
mod crash;
mod http_authorisation;
mod http_bad_input;
mod http_kit;
mod http_live;
mod http_simulated;
mod http_ways;
mod order;
mod restore;
mod shell;
mod world;
mod writer;
