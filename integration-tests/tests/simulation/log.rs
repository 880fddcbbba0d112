//! The library's log of one test, from the level INFO on.
//!
//! One subscriber for the whole binary hears all threads and keeps what the tests' own threads ask
//! for: scoped subscribers of tests that run side by side race for tracing's cache of what is heard.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Hears what happens on this thread, until it is dropped.
pub(super) struct Log(());

impl Log {
    pub(super) fn listen() -> Self {
        static HEARD: Once = Once::new();
        HEARD.call_once(|| tracing::subscriber::set_global_default(Listener).expect("the only one of this binary"));
        LINES.set(Some(Vec::new()));
        Self(())
    }

    /// The lines with these words so far.
    #[expect(clippy::unused_self, reason = "it holds the thread's lines")]
    pub(super) fn lines(&self, words: &str) -> Vec<String> {
        LINES.with_borrow(|lines| lines.iter().flatten().filter(|line| line.contains(words)).cloned().collect())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        LINES.set(None);
    }
}

struct Listener;

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && *metadata.level() <= Level::INFO { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO && LINES.with_borrow(Option::is_some)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("{} {}:", event.metadata().level(), event.metadata().target()));
        event.record(&mut line);
        LINES.with_borrow_mut(|lines| lines.iter_mut().for_each(|lines| lines.push(line.0.clone())));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // To memory, which does not fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
