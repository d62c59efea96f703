//! The real binary: words in, tables or JSON out, exit status.

mod doors;
mod expose;
mod faults;
mod kit;
mod network;
mod words;
