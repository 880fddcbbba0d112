//! Fleets in simulated time: what every test run checks of the simulator. The long search is a program, `simulate`.
//!
//! A binary apart from the tests over the wire: those wait for real time, and these leave them none.

mod blocking;
mod bounds;
mod commits;
mod crash_points;
mod delays;
mod fleet;
mod lease_durations;
mod lease_keeping;
mod log;
mod naive;
mod outage_log;
mod prepared;
mod processing;
mod reading;
mod runs;
mod seek;
mod stale_listing;
mod start;
mod struck_table;
mod subscriptions;
mod users;
mod vanished;
