//! Whole fleets over the wire. One binary; each module is a subject.

mod bad_input;
mod blocking;
mod checkpoints;
mod dead_letter_queues;
mod dead_letters;
mod exactly_once;
mod fan_out;
mod faults;
mod life;
#[cfg(unix)]
mod processes;
#[cfg(unix)]
mod redrive;
mod shutdown;
mod support;
mod trimmed;
