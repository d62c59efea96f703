//! The lab's own tests: the way of an order with a crash at every act, seeds by chance, faults put in on purpose,
//! malformed input, the golden journals, and a testbed with real processes.

mod fuzz;
mod golden;
mod planted;
mod seeds;
mod testbed;
mod way_of_an_order;
