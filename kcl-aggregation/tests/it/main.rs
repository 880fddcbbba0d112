//! Aggregates as they arrive: published ones, broken ones, and whatever bytes there are.

mod differential;
mod digests;
mod hostile;
mod packing;
mod range;
mod reference;
mod rules;
mod vectors;
mod wire;
