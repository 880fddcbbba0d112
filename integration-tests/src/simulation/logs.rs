//! The library's own log events: audit events are counted, and in runs that are looked at all of them become part of the trace.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::oracle::{Audit, Judge};
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
        let mut told = Told::default();
        event.record(&mut told);
        let (level, target, Told { text, audit }) = (event.metadata().level(), event.metadata().target(), told);
        self.judge.with(|oracle, now| {
            oracle.trace.line(now, format_args!("log {level} {target}{text}"));
            if target == "kcl::audit" {
                oracle.audited(&audit);
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

/// The fields of an event: as text, and those of an audited gap.
#[derive(Default)]
struct Told {
    text: String,
    audit: Audit,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // To memory, which does not fail.
        let _ = write!(self.text, " {}={value:?}", field.name());
        let place = match field.name() {
            "shard" => &mut self.audit.shard,
            "checkpoint" => &mut self.audit.checkpoint,
            "first_kept" => &mut self.audit.first_kept,
            _ => return,
        };
        *place = Some(format!("{value:?}"));
    }
}
