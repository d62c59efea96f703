//! The way out of a box, between real kernels in network namespaces. Needs root; skipped where namespaces cannot be made.

mod limits;
mod reach;
mod world;
