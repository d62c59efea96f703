//! The real binary: words in, tables or JSON out, exit status.

mod kit;
mod network;
mod words;
