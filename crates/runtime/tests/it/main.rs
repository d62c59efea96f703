//! Boxes as a customer and as an attacker see them, with the real bubblewrap.

mod boxes;
mod door;
mod mem;
mod ray;
mod support;
