//! Fleets in simulated time: what every test run checks of the simulator. The long search is a program, `simulate`.
//!
//! A binary apart from the tests over the wire: those wait for real time, and these leave them none.

mod bounds;
mod commits;
mod crash_points;
mod delays;
mod fleet;
mod naive;
mod processing;
mod runs;
mod seek;
mod stale_listing;
