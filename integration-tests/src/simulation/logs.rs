//! The library's own log events: audit events are counted, and in runs that are looked at all of them become part of the trace.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::oracle::Judge;
use super::publisher::CANARY;

/// Hears of every log event of a run.
pub(super) struct Listener {
    judge: Judge,
    /// Whether events at `INFO` and above are traced.
    all: bool,
}

impl Listener {
    pub(super) fn new(judge: Judge, all: bool) -> Self {
        Self { judge, all }
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && (metadata.target() == "kcl::audit" || (self.all && metadata.target().starts_with("kcl") && *metadata.level() <= Level::INFO))
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(if self.all { tracing::level_filters::LevelFilter::INFO } else { tracing::level_filters::LevelFilter::ERROR })
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let (level, target, text) = (event.metadata().level(), event.metadata().target(), text.0);
        self.judge.with(|oracle, now| {
            oracle.trace.line(now, format_args!("log {level} {target}{text}"));
            if target == "kcl::audit" {
                oracle.audited();
            }
            if text.contains(CANARY) {
                oracle.violated("S10", format!("a payload or a partition key was logged:{text}"));
            }
        });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // To memory, which does not fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
