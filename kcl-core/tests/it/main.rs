//! The crate over the wire, against local AWS.

mod dead_letter;
mod dead_letter_stream;
mod fan_out;
mod letters;
mod redrive;
mod stream;
