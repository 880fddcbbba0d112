//! How a stream is read, as both programs take it on the command line.

use std::fmt;

use clap::ValueEnum;
use kcl_core::RetrievalMode;

/// How shards are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Retrieval {
    /// Pushed, by enhanced fan-out; a stream consumer is registered if need be, for which AWS charges
    FanOut,
    /// By GetRecords, about once a second at the tip
    Polling,
    /// By enhanced fan-out where a consumer can be registered, else by polling
    Auto,
}

impl fmt::Display for Retrieval {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::FanOut => "enhanced fan-out",
            Self::Polling => "polling",
            Self::Auto => "enhanced fan-out or polling",
        })
    }
}

impl From<Retrieval> for RetrievalMode {
    fn from(retrieval: Retrieval) -> Self {
        match retrieval {
            Retrieval::FanOut => Self::FanOut,
            Retrieval::Polling => Self::Polling,
            Retrieval::Auto => Self::Auto,
        }
    }
}
