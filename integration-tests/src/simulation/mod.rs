//! Whole fleets of real workers in simulated time, under faults that follow from a seed, judged by an oracle that knows everything.
//!
//! | module | owns |
//! |---|---|
//! | [`plan`] | a run as plain data: fleet, traffic, faults, schedule, ending |
//! | [`scenario`] | the scenarios, each of which makes a plan from a seed |
//! | [`run`](mod@run) | carries a plan out |
//! | `chaos` | what happens to fleet, stream and services, entry by entry of the schedule |
//! | `finale` | the end of a run, and what must come true in it |
//! | `foreigner` | a worker of the Java library, and the leader that assigns a lease to it |
//! | `fleet` | machines and the processes on them, started again when they end |
//! | `operators` | who seeks, pauses and resumes, and the troubles of their machines |
//! | `fuses` | what happens to a machine at a certain write |
//! | `neighbour` | another application that reads the same shards |
//! | [`users`] | the services of the fleet, as ordinary users write them, and their database |
//! | `processor`, `publisher` | a model of a service that tells the truth, and what feeds the stream |
//! | `aggregates` | which records can be put together, and how that goes wrong |
//! | [`oracle`] | the invariants, checked at every step, and what is demanded at the end |
//! | [`trace`] | what happened, byte for byte |
//! | `logs` | the library's own log events |
//! | [`memory`] | how much is allocated |
//! | [`shrink`] | the shortest schedule that still fails |
//! | [`report`] | results of many runs, printed and as JSON |

mod aggregates;
mod chaos;
mod finale;
mod fleet;
mod foreigner;
mod fuses;
mod logs;
pub mod memory;
mod neighbour;
mod operators;
pub mod oracle;
pub mod plan;
pub mod planted;
mod processor;
mod publisher;
pub mod report;
pub mod run;
pub mod scenario;
pub mod shrink;
pub mod trace;
pub mod users;

pub use self::oracle::Violation;
pub use self::plan::{Options, Plan};
pub use self::run::{Detail, Outcome, run};
pub use self::scenario::{SCENARIOS, Scenario};
pub use self::users::A_BUG_OF_THE_SERVICE;
