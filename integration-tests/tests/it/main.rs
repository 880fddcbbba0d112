//! Whole fleets over the wire. One binary; each module is a subject.

mod life;
#[cfg(unix)]
mod processes;
mod support;
