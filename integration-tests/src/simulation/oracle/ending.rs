//! What is asked for in the end, and what a run comes to.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_core::{ExtendedSequenceNumber, ShardId};
use kcl_lease::Lease;

use super::lives::STOPS;
use super::notes::calls_finished;
use super::{Oracle, log};

impl Oracle {
    /// Records that are not done, nor in the hands of a processor that has collected them.
    pub(in crate::simulation) fn undone(&self) -> usize {
        let is_undone = |(shard, record): &&(ShardId, ExtendedSequenceNumber)| {
            self.log.shards.get(shard).and_then(|log| log.find(*record)).is_some_and(|(_, entry)| !entry.done)
        };
        self.log.undone() - self.collected.keys().filter(is_undone).count()
    }

    /// Returns whether calls with records are under way in a term: effects come before the end of a call.
    pub(in crate::simulation) fn is_at_work(&self) -> bool {
        self.terms.values().filter_map(|terms| terms.last()).any(|term| term.open && term.calls > 0)
    }

    /// A processor has collected a record.
    pub(in crate::simulation) fn collected(&mut self, shard: &ShardId, record: ExtendedSequenceNumber) {
        *self.collected.entry((shard.clone(), record)).or_default() += 1;
    }

    /// A processor has flushed a record that it had collected, or is gone with it.
    pub(in crate::simulation) fn let_go(&mut self, shard: &ShardId, record: ExtendedSequenceNumber) {
        let key = (shard.clone(), record);
        if let Some(processors) = self.collected.get_mut(&key) {
            *processors -= 1;
            if *processors == 0 {
                self.collected.remove(&key);
            }
        }
    }

    /// Which records are not done, in words.
    pub(in crate::simulation) fn missing(&self) -> String {
        let first: Vec<_> = self
            .log
            .first_undone()
            .take(5)
            .map(|(shard, entry)| format!("{shard} {} ({:?})", entry.position(), entry.published.kind))
            .collect();
        format!("{} records, first of each shard: {}", self.undone(), first.join(", "))
    }

    /// The time since the oldest good record arrived that is not done, in shards without records that can't be processed.
    pub(in crate::simulation) fn oldest_of_good_shards(&self, now: Duration) -> Duration {
        use crate::simulation::publisher::Kind;
        let good = |shard: &ShardId| self.log.shards[shard].entries.iter().all(|entry| entry.published.kind == Kind::Good);
        self.log.first_undone().filter(|(shard, _)| good(shard)).map(|(_, entry)| now.saturating_sub(entry.put)).max().unwrap_or_default()
    }

    pub(in crate::simulation) fn takes_between(&self, from: Duration, to: Duration) -> u64 {
        self.takes.iter().filter(|at| (from..to).contains(*at)).count() as u64
    }

    pub(in crate::simulation) fn moves_since(&self, from: Duration) -> usize {
        self.takes.iter().chain(&self.requests).filter(|at| **at >= from).count()
    }

    pub(in crate::simulation) fn repeated(&self) -> u64 {
        self.repeated
    }

    pub(in crate::simulation) fn good_letters(&self) -> u64 {
        self.good_letters
    }

    pub(in crate::simulation) fn slowest(&self) -> Duration {
        self.slowest
    }

    pub(in crate::simulation) fn most_held(&self, host: &str) -> usize {
        self.limits.most_held(host)
    }

    /// Leases by their owner, for those that are not finished and may be read.
    pub(in crate::simulation) fn owners(&self) -> BTreeMap<ShardId, Option<String>> {
        let startable = |parents: &std::collections::BTreeSet<ShardId>| {
            parents.iter().all(|parent| self.rows.get(parent).is_none_or(|row| row.checkpoint.is_shard_end()))
        };
        let unfinished = self.rows.values().filter(|row| !row.checkpoint.is_shard_end() && startable(&row.parents));
        unfinished.map(|row| (row.shard_id.clone(), row.actual_owner().map(ToString::to_string))).collect()
    }

    /// After all have stopped in order: every lease is free, and its checkpoint is all that there is, if the last record was called finished.
    pub(in crate::simulation) fn all_is_released(&mut self, checkpointed: bool) {
        let mut wrong = None;
        for row in self.rows.values().filter(|row| !row.checkpoint.is_shard_end()) {
            let behind = self.left_behind(row, Duration::MAX).filter(|_| checkpointed);
            if row.owner.is_some() {
                wrong = Some(("L6", format!("{} still belongs to {:?} after all have stopped", row.shard_id, row.owner)));
            } else if let Some(next) = behind {
                wrong = Some(("L6", format!("record {next} of {} is finished, which was left at {}", row.shard_id, row.checkpoint)));
            }
        }
        if let Some((invariant, message)) = wrong {
            self.violated(invariant, message);
        }
    }

    /// The first record beyond the checkpoint, if a call of the last term has said by this time that it is finished: the checkpoint should cover it. Records
    /// that were skipped, and those that the term found noted as finished, come between the two.
    fn left_behind(&self, row: &Lease, by: Duration) -> Option<ExtendedSequenceNumber> {
        let log = self.log.shards.get(&row.shard_id)?;
        let term = self.terms.get(&row.shard_id)?.last()?;
        let is_passed = |entry: &log::Entry| entry.skipped || term.spared.as_ref().is_some_and(|note| calls_finished(note, entry));
        let next = log.entries.get(log.start_of(row)..)?.iter().find(|entry| !is_passed(entry))?;
        let of_term = |(host, token): &(String, u64)| *host == term.host && *token == term.token;
        let is_told = next.told_in.as_ref().is_some_and(of_term) && next.told_at.is_some_and(|at| at <= by);
        // Its process may not know yet that a letter was accepted.
        (is_told && !next.lettered).then(|| next.position())
    }

    /// An owner has let go of a shard in order: its checkpoint covers all up to the first record that it has not finished.
    pub(super) fn released_in_order(&mut self, host: &str, row: &Lease, sent: Duration, now: Duration) {
        // Who is late with stopping frees leases as they are; a call that blocks its thread may have ended, and not be known to have.
        let is_late = self.stopping.get(host).is_some_and(|at| *at + STOPS <= now);
        if is_late || self.blocks || self.manual || row.checkpoint.is_shard_end() {
            return;
        }
        if let Some(next) = self.left_behind(row, sent) {
            let message = format!("{host} has let go of {} at {}, and record {next} after it is finished", row.shard_id, row.checkpoint);
            self.violated("L6", message);
        }
    }

    /// While nothing happens, all that is finished is checkpointed.
    pub(in crate::simulation) fn all_is_checkpointed(&mut self, now: Duration) {
        let in_time = now.saturating_sub(Duration::from_secs(30));
        let unfinished = self.rows.values().filter(|row| !row.checkpoint.is_shard_end());
        let behind = unfinished.filter_map(|row| Some((row, self.left_behind(row, in_time)?))).next();
        let words =
            behind.map(|(row, next)| format!("record {next} of {} is finished, and its checkpoint is {}", row.shard_id, row.checkpoint));
        if let Some(message) = words {
            self.violated("L9", message);
        }
    }
}
