//! Fuses of machines, which burn at a write of their process: it is killed, or the lease table's answers
//! are lost from then on. Before the process hears of the write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kcl_core::test_util::{Event, Host, Service, SimulatedAws};

/// Processes that die at a write, by their names; and those that hear nothing after one.
#[derive(Default)]
struct Lit {
    deaths: BTreeMap<String, (u64, Host)>,
    cuts: BTreeMap<String, (u64, Host, Duration)>,
}

/// All that are lit. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Fuses(Arc<Mutex<Lit>>);

impl Fuses {
    fn lit(&self) -> MutexGuard<'_, Lit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process is killed when so many of its writes were applied to the lease table, or accepted by the queue.
    pub(super) fn kill_after(&self, writes: u64, host: &Host) {
        self.lit().deaths.insert(host.name().to_owned(), (writes.max(1), host.clone()));
    }

    /// The answer to the write of this number to the lease table, and all that follow for this time, are lost.
    pub(super) fn cut_after(&self, writes: u64, host: &Host, time: Duration) {
        self.lit().cuts.insert(host.name().to_owned(), (writes.max(1), host.clone(), time));
    }

    pub(super) fn clear(&self) {
        *self.lit() = Lit::default();
    }

    /// Counts writes that took effect.
    pub(super) fn burn(&self, event: &Event<'_>, aws: &SimulatedAws) {
        let (name, is_lease) = match event {
            Event::LeaseWritten { host, .. } | Event::LeaseCreated { host, .. } | Event::LeaseDeleted { host, .. } => (*host, true),
            Event::DeadLetterAccepted { host, .. } => (*host, false),
            _ => return,
        };
        let mut lit = self.lit();
        if let Some((left, host)) = lit.deaths.get_mut(name) {
            *left -= 1;
            if *left == 0 {
                host.kill();
                lit.deaths.remove(name);
            }
        }
        if let Some((left, host, time)) = lit.cuts.get_mut(name).filter(|_| is_lease) {
            *left -= 1;
            if *left == 0 {
                aws.faults().silence(host.machine(), Service::LeaseTable, aws.elapsed() + *time);
                lit.cuts.remove(name);
            }
        }
    }
}
