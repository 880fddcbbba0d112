//! The parts of the example programs; each program itself is a short file in `src/bin`.

pub mod consumer;
pub mod environment;
pub mod exactly_once;
pub mod flags;
pub mod quickstart;
pub mod retrieval;
