//! Whole fleets over the wire. One binary; each module is a subject.

mod bad_input;
mod checkpoints;
mod dead_letters;
mod fan_out;
mod faults;
mod life;
#[cfg(unix)]
mod processes;
mod shutdown;
mod support;
mod trimmed;
