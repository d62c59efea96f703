//! The journal under every fault its disks can have.

mod alike;
mod crash;
mod damage;
mod index;
mod kit;
mod use_it;
