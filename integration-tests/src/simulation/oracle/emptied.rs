//! The lease table is emptied, or some rows of it are deleted, under running workers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kcl_core::{ShardId, WorkerError};
use kcl_lease::Lease;

use super::Oracle;

/// The time in which a worker finds out that a lease of its own is gone, as long as it runs and reaches the table: it renews it in less, or reads the table.
const FOUND: Duration = Duration::from_secs(45);

/// The processes that ran when rows were deleted.
#[derive(Debug, Default)]
pub(super) struct Emptied {
    at: Duration,
    /// All of them.
    ran: BTreeSet<String>,
    /// True if the table was empty then.
    all: bool,
    /// Those that held a lease that is gone, and which.
    held: BTreeSet<(String, ShardId)>,
    /// Those of them that have not ended yet, and the counters of their leases.
    must_end: BTreeMap<String, BTreeMap<ShardId, u64>>,
}

impl Emptied {
    /// Returns whether a process held this lease when it was deleted: what it does with the shard from then on is done again by others.
    pub(super) fn held(&self, host: &str, shard: &ShardId) -> bool {
        !self.held.is_empty() && self.held.contains(&(host.to_owned(), shard.clone()))
    }

    /// A row is written. One that was made anew and has come as far as its predecessor looks to whoever held that one as if it had been taken over.
    pub(super) fn written(&mut self, row: &Lease) {
        self.must_end.retain(|_, held| {
            held.retain(|shard, counter| *shard != row.shard_id || row.counter < *counter);
            !held.is_empty()
        });
    }

    /// A process has taken a lease anew.
    pub(super) fn taken(&mut self, host: &str, shard: &ShardId) {
        if !self.held.is_empty() {
            self.held.remove(&(host.to_owned(), shard.clone()));
        }
    }
}

impl Oracle {
    /// Rows are gone. `running`: the processes that run now.
    pub(in crate::simulation) fn emptied(&mut self, gone: &[Lease], running: BTreeSet<String>, now: Duration) {
        let shards: BTreeSet<_> = gone.iter().map(|lease| lease.shard_id.clone()).collect();
        let all = shards.len() == self.rows.len();
        self.trace.line(now, format_args!("{} rows are deleted, all: {all}", gone.len()));
        self.reached(if all { "table emptied" } else { "rows deleted" });
        let (mut must_end, mut held) = (BTreeMap::<_, BTreeMap<_, _>>::new(), BTreeSet::new());
        for Lease { shard_id: shard, counter, .. } in gone {
            self.rows.remove(shard);
            self.finished.remove(shard);
            for term in self.terms.remove(shard).into_iter().flatten() {
                if term.open {
                    held.insert((term.host.clone(), shard.clone()));
                    if running.contains(&term.host) {
                        must_end.entry(term.host.clone()).or_default().insert(shard.clone(), *counter);
                    }
                }
                self.old_terms.insert((term.host, shard.clone(), term.token));
            }
        }
        self.log.forgotten(&shards, all);
        self.log.order_anew();
        self.emptied = Emptied { at: now, ran: running, all, held, must_end };
    }

    /// A process has ended with an error.
    pub(in crate::simulation) fn has_ended(&mut self, host: &str, error: &WorkerError) {
        if matches!(error, WorkerError::LeasesVanished { .. }) {
            self.reached("ended as its leases were gone");
            if !self.emptied.ran.contains(host) {
                self.violated("vanished", format!("{host} has ended, and nobody has deleted a lease since it began: {error}"));
            }
        } else if self.emptied.must_end.contains_key(host) {
            self.violated("vanished", format!("{host} has ended with another error than that its leases are gone: {error}"));
        }
        self.emptied.must_end.remove(host);
    }

    /// A process is gone, for whatever reason.
    pub(in crate::simulation) fn is_gone(&mut self, host: &str) {
        self.emptied.must_end.remove(host);
    }

    /// Whoever held a lease that is gone has ended by now.
    pub(in crate::simulation) fn all_have_ended(&mut self, now: Duration) {
        if self.emptied.at + FOUND < now
            && let Some((host, _)) = self.emptied.must_end.first_key_value()
        {
            self.violated("vanished", format!("{host} goes on although its leases were deleted at {:?}", self.emptied.at));
        }
    }

    /// A lease is created. Nobody who ran when the table was emptied begins anew in silence.
    pub(super) fn begun_anew(&mut self, host: &str, shard: &ShardId, was_empty: bool) {
        if was_empty && self.emptied.all && self.emptied.ran.contains(host) {
            self.violated("vanished", format!("{host} made the lease of {shard} in a table that was emptied while it ran"));
        }
    }
}
