//! Whole fleets over the wire. One binary; each module is a subject.

mod life;
mod support;
