//! The real binary: words in, tables or JSON out, exit status.

mod expose;
mod faults;
mod kit;
mod network;
mod words;
