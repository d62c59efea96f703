//! The lab's own tests: the way of an order with a crash at every act, seeds by chance, faults put in on purpose,
//! malformed input, the golden journals, a testbed with real processes, and real routers.

mod fuzz;
mod golden;
mod nats;
mod planted;
mod seeds;
mod testbed;
mod way_of_an_order;
