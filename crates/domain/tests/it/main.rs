//! The rules as a stranger would try them: through commands, with nothing but the state to look at.

mod course;
mod explain;
mod placement;
mod pool;
mod price;
mod refusals;
mod table;
mod way_of_an_order;
mod world;
