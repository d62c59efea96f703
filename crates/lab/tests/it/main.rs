//! The lab's own tests: the way of an order with a crash at every act, seeds by chance, faults put in on purpose, and
//! the golden journals.

mod golden;
mod planted;
mod seeds;
mod way_of_an_order;
