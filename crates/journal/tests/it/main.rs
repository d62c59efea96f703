//! The journal under every fault its disks can have.

mod crash;
mod damage;
mod kit;
mod use_it;
