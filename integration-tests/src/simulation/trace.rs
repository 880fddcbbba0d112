//! What happened in a run, line by line: a hash over all of it, and the last lines.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::time::Duration;

/// Lines that are kept for a failure.
const TAIL: usize = 400;

/// The event log of a run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    lines: u64,
    tail: VecDeque<String>,
    /// The whole of it, if it was asked for.
    all: Option<String>,
    line: String,
}

impl Trace {
    /// A log that is kept as a whole, or only its end and its hash.
    #[must_use]
    pub fn new(keep_all: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, all: keep_all.then(String::new), ..Self::default() }
    }

    /// Adds a line.
    pub fn line(&mut self, at: Duration, what: fmt::Arguments<'_>) {
        self.line.clear();
        writeln!(self.line, "{:>6}.{:03} {what}", at.as_secs(), at.subsec_millis()).expect("text is written to memory");
        // FNV-1a: small, and the same everywhere.
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.lines += 1;
        let mut kept = if self.tail.len() == TAIL { self.tail.pop_front().unwrap_or_default() } else { String::new() };
        kept.clear();
        kept.push_str(&self.line);
        self.tail.push_back(kept);
        if let Some(all) = &mut self.all {
            all.push_str(&self.line);
        }
    }

    /// Over all lines.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many there are.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        self.tail.iter().skip(self.tail.len().saturating_sub(lines)).map(String::as_str).collect()
    }

    /// All lines, if they were to be kept.
    #[must_use]
    pub fn take_all(&mut self) -> Option<String> {
        self.all.take()
    }
}
