//! The test kit: everything that a worker needs, in memory, in simulated time, and as unreliable as you like. Feature `test-util`.
//!
//! [`SimulatedAws`] holds the services: Kinesis (the model of `kcl-local`: shard tree, iterators that expire, read limits, retention, enhanced
//! fan-out), lease tables, dead-letter queues and a blob store. A [`Host`] is a machine with one process on it: its own clock, its own
//! connections to the services, and a power switch. Every call between the two passes the fault layer ([`faults`]): it may be slow, refused,
//! throttled, lost on the way there or back, applied late or twice, or answered with what was true a while ago.
//!
//! All of it is deterministic. On one current-thread runtime with paused time, equal seeds give equal runs:
//!
//! ```
//! use std::time::Duration;
//!
//! use kcl_core::test_util::{FaultRates, SimulatedAws};
//! use kcl_core::{Outcome, ProcessResult, RecordBatch, RecordProcessor, ShardContext, async_trait};
//!
//! struct Count(tokio::sync::mpsc::UnboundedSender<usize>);
//!
//! #[async_trait]
//! impl RecordProcessor for Count {
//!     async fn process_records(&mut self, batch: &RecordBatch, _shard: &ShardContext) -> ProcessResult {
//!         self.0.send(batch.len())?;
//!         Ok(Outcome::Done)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() { // in a test: #[tokio::test(start_paused = true)]
//! let aws = SimulatedAws::new(7);
//! aws.create_stream("orders", 2);
//! aws.faults().set_rates(FaultRates { lost_answer: 0.2, slow: 0.2, ..FaultRates::default() });
//!
//! let (done, mut records) = tokio::sync::mpsc::unbounded_channel();
//! let host = aws.host("host-1");
//! let worker = host.worker("orders-app", "orders").processor(move |_: &ShardContext| Count(done.clone())).build().await.unwrap();
//! let handle = worker.handle();
//! let process = tokio::spawn(host.run(worker.run()));
//!
//! aws.put("orders", "a key", "a payload");
//! assert_eq!(records.recv().await, Some(1));
//!
//! host.freeze();
//! aws.put("orders", "a key", "another payload");
//! tokio::time::sleep(Duration::from_secs(30)).await; // an instant
//! host.thaw();
//! assert_eq!(records.recv().await, Some(1));
//!
//! handle.shutdown();
//! process.await.unwrap().unwrap();
//! # }
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`faults`] | which faults there are, how often, and what becomes of one call |
//! | [`events`] | what observers are told |
//! | `aws`, `host` | the services together; a machine: clock, power, connections |
//! | [`clock`] | clocks that are wrong by an offset, a rate or a step |
//! | `network` | carries calls out as the fault layer decides |
//! | `stream`, `fan_out`, `lease_table`, `dead_letters`, `blobs` | the ports over the simulated services |
//! | `model` | the terms of `kcl-local`'s model, and ours |

mod aws;
mod blobs;
pub mod clock;
mod dead_letters;
pub mod events;
mod fan_out;
pub mod faults;
mod host;
mod lease_table;
mod model;
mod network;
mod stream;
#[cfg(test)]
mod tests;

/// The model of Kinesis behind [`SimulatedAws::kinesis`].
pub use kcl_local::kinesis as kinesis_model;

pub use self::aws::SimulatedAws;
pub use self::blobs::SimulatedBlobs;
pub use self::clock::SimulatedClock;
pub use self::dead_letters::SimulatedDeadLetterQueue;
pub use self::events::Event;
pub use self::fan_out::SimulatedFanOut;
pub use self::faults::{Cut, FaultKind, FaultRates, Faults, Service};
pub use self::host::{Host, Power, Powered};
pub use self::lease_table::SimulatedLeaseTable;
pub use self::stream::SimulatedStream;
