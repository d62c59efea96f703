//! The rules as a stranger would try them: through commands, with nothing but the state to look at.

mod choice;
mod course;
mod explain;
mod expose;
mod placement;
mod pool;
mod price;
mod queue;
mod refusals;
mod simulated;
mod table;
mod terms;
mod way_of_an_order;
mod world;
