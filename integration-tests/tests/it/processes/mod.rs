//! Real processes of the `consumer` program: killed, stopped, restarted, replaced, and started wrongly.
//!
//! Each is a child of the test, with an environment of its own, and reaches the test's endpoint over the wire. What the children print comes
//! together in one [`log`](log::Log).

mod bad_input;
pub(crate) mod child;
mod killer;
mod log;
#[cfg(target_os = "linux")]
mod memory;
mod output;
mod publisher;
mod restart;
mod seek;
mod signals;
mod stop;
