//! What becomes of records: failures of every kind at every place, lanes, aggregates, pauses. One worker over services in memory, in paused time.

mod aggregates;
mod batches;
mod careful;
mod collected;
mod farewell;
mod flow;
mod lanes;
mod outage;
mod service;
