//! How much is allocated, where a program counts it.

use std::sync::OnceLock;

static COUNTER: OnceLock<fn() -> usize> = OnceLock::new();

/// Sets what tells how many bytes are allocated: for programs with an allocator that counts.
pub fn count_with(counter: fn() -> usize) {
    // The first one stands: there is one allocator.
    let _ = COUNTER.set(counter);
}

/// Bytes that are allocated in this process; 0 where nobody counts.
#[must_use]
pub fn allocated() -> usize {
    COUNTER.get().map_or(0, |counter| counter())
}
