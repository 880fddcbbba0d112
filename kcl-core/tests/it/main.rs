//! The crate over the wire, against local AWS.

mod dead_letter;
mod fan_out;
mod stream;
