//! What becomes of rows: terms, checkpoints, the ends of shards, and the lease table as a whole.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::{Checkpoint, ShardId, Timestamp};
use kcl_lease::{Change, Lease, LeaseWrite};

use super::{Oracle, Term, log};

/// Terms of a shard that are remembered.
const TERMS: usize = 8;

impl Oracle {
    pub(super) fn written(&mut self, host: &str, sent: Duration, write: &LeaseWrite, before: &Lease, after: &Lease, now: Duration) {
        let shard = &after.shard_id;
        // The take of a worker notes the stream in the row; no other write does.
        let takes = write.stream_created_if_absent.is_some();
        let resumes = write.expected.stopped.is_some();
        let asks = write.write_id.is_none() && !resumes;
        let kind = match (takes, asks) {
            (true, _) => "take",
            _ if resumes => "resume",
            (_, true) => "request",
            _ if after.actual_owner() != before.actual_owner() || after.owner != before.owner => "release",
            _ if write.checkpoint.is_some() => "checkpoint",
            _ => "renew",
        };
        self.trace.line(
            now,
            format_args!("{host} {kind} {shard} counter {} owner {:?} checkpoint {}", after.counter, after.owner, after.checkpoint),
        );
        self.rows.insert(shard.clone(), after.clone());
        if let Change::Set(suspect) = &write.suspect
            && let Some(token) = self.terms.get(shard).and_then(|terms| terms.last()).map(|term| term.token)
            && let Some(entry) = self.log.find_mut(shard, suspect.record)
        {
            entry.tried_in.insert(token);
        }
        if matches!(write.suspect, Change::Set(_)) {
            self.limits.excuse(host, "dynamodb:UpdateItem", shard.as_str());
            self.reached("record tried alone");
        }
        if matches!(&write.suspect, Change::Set(suspect) if suspect.record.sub_sequence_number > 0) {
            self.reached("record of an aggregate tried alone");
        }
        if matches!(&write.finished_beyond, Change::Set(note) if note.open.iter().chain([&note.until]).any(|at| at.sub_sequence_number > 0))
        {
            self.reached("note of what is finished inside an aggregate");
        }
        if self.is_skip(write, before, after) {
            self.skipped_ahead(host, before, after, now);
            return;
        }
        if after.checkpoint < before.checkpoint {
            self.violated("S2", format!("{host} moved the checkpoint of {shard} back from {} to {}", before.checkpoint, after.checkpoint));
        }
        if resumes {
            self.reached("resumed from outside");
        } else if takes {
            self.taken(host, before, after, now);
        } else if asks {
            self.reached("handoff requested");
            self.requests.push(now);
        } else {
            self.written_by_owner(host, sent, kind, before, after, now);
        }
        if after.checkpoint != before.checkpoint {
            // Items that were written with it are told of next.
            self.to_judge = Some((host.to_owned(), shard.clone(), after.checkpoint));
            if !self.commits {
                self.judge_checkpoint(now);
            }
        }
    }

    fn taken(&mut self, host: &str, before: &Lease, after: &Lease, now: Duration) {
        let shard = &after.shard_id;
        self.takes.push(now);
        let log = self.log.shards.entry(shard.clone()).or_default();
        let first = log.start_of(after);
        let inside = log.is_inside(first);
        let terms = self.terms.entry(shard.clone()).or_default();
        let mut gave_up = false;
        let mut taken_over = false;
        if let Some(last) = terms.last_mut().filter(|last| last.open) {
            gave_up = last.host == host && before.checkpoint_owner.is_none();
            taken_over = last.host != host;
            last.open = false;
            last.ended_at = Some(now);
            self.died.insert((shard.clone(), last.token));
        }
        terms.push(Term {
            token: after.counter,
            host: host.to_owned(),
            taken_at: now,
            first,
            next: first,
            open: true,
            ended_at: None,
            released: false,
            calls: 0,
            fenced: false,
            sought: false,
            in_work: BTreeSet::new(),
        });
        if terms.len() > TERMS {
            terms.remove(0);
        }
        self.limits.holds(host, true);
        self.seeks.taken(shard);
        if inside {
            self.reached("term began inside an aggregate");
        }
        if taken_over {
            self.reached("taken over");
        }
        if gave_up {
            self.violated("L4", format!("{host} took {shard} anew although it held it: it had given up a lease that was its own"));
        }
        if before.owner != before.checkpoint_owner && before.checkpoint_owner.is_some() && before.owner == after.owner {
            self.reached("handoff cut short");
        }
        if after.checkpoint.is_shard_end() {
            self.violated("S8", format!("{host} took {shard}, which is finished"));
        }
    }

    fn written_by_owner(&mut self, host: &str, sent: Duration, kind: &str, before: &Lease, after: &Lease, now: Duration) {
        let shard = &after.shard_id;
        let term = self.terms.get(shard).and_then(|terms| terms.last());
        let of_term = term.is_some_and(|term| term.host == host && term.taken_at <= sent && term.open);
        if !of_term {
            let holder = term.map(|term| format!("term {} of {} since {:?}", term.token, term.host, term.taken_at));
            // A lease that a worker owned by name only, and was asked for, is released without a term.
            if !(kind == "release" && term.is_none_or(|term| !term.open) && before.checkpoint_owner.is_some()) {
                self.violated("S5", format!("{kind} of {shard} by {host}, sent at {sent:?}, took effect in {holder:?}"));
            }
        }
        if kind == "release" {
            let mut calls = 0;
            if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) {
                term.open = false;
                term.ended_at = Some(now);
                term.released = of_term;
                calls = if of_term { term.calls } else { 0 };
            }
            if calls > 0 && !self.blocks {
                self.violated("S6", format!("{host} has released {shard} while {calls} calls with its records are under way"));
            }
            self.limits.holds(host, false);
            self.reached(if after.owner.is_some() { "handed over" } else { "released" });
            let log = self.log.shards.get(shard);
            if after.owner.is_some()
                && let (Checkpoint::At(at), Some(log)) = (after.checkpoint, log)
                && log.is_inside(log.after(at))
            {
                self.reached("handed over inside an aggregate");
            }
        }
    }

    /// Judges the checkpoint that was written last, if it was not judged yet.
    pub(super) fn judge_checkpoint(&mut self, now: Duration) {
        if let Some((host, shard, checkpoint)) = self.to_judge.take() {
            self.checkpointed(&host, &shard, checkpoint, now);
        }
    }

    fn checkpointed(&mut self, host: &str, shard: &ShardId, checkpoint: Checkpoint, now: Duration) {
        let Some(log) = self.log.shards.get(shard) else { return };
        let to = match checkpoint {
            Checkpoint::At(record) => log.after(record),
            Checkpoint::ShardEnd => log.entries.len(),
            _ => 0,
        };
        let (done_to, known) = (log.done_to, to.checked_sub(1).and_then(|last| log.entries.get(last)).map(log::Entry::position));
        if let Checkpoint::At(record) = checkpoint
            && known != Some(record)
        {
            self.violated("S1", format!("checkpoint {checkpoint} of {shard} by {host} is no record of it"));
        }
        if to > done_to && !self.were_trimmed(shard, done_to, to, now) {
            let first = log_number(self, shard, done_to);
            self.violated("S1", format!("checkpoint {checkpoint} of {shard} by {host} passes record {first}, which nobody has finished"));
        }
        if !checkpoint.is_shard_end() {
            return;
        }
        self.reached("shard ended");
        self.finished.insert(shard.clone());
        let Some(log) = self.log.shards.get(shard) else { return };
        if !log.closed {
            self.violated("S8", format!("{host} ended {shard}, which is open"));
            return;
        }
        if log.parents.len() > 1 {
            self.reached("merged shard ended");
        }
        let hole = self.log.shards[shard]
            .children
            .iter()
            .find(|child| !self.rows.contains_key(*child) && !self.finished.contains(*child))
            .cloned();
        if let Some(child) = hole {
            self.violated("S7", format!("{host} ended {shard} before its child {child} has a lease"));
        }
    }

    /// Whether all unfinished records between two indices were trimmed, and may be skipped. They are, then.
    pub(super) fn were_trimmed(&mut self, shard: &ShardId, from: usize, to: usize, now: Duration) -> bool {
        let retention = self.retention;
        let Some(log) = self.log.shards.get(shard) else { return true };
        let trimmed = log.entries[from.min(to)..to].iter().filter(|entry| !entry.done).all(|entry| entry.put + retention <= now);
        if !trimmed || !self.trimmed_may_be_skipped {
            return false;
        }
        self.skipped_unread += self.log.skip(shard, from, to);
        self.reached("trimmed records skipped");
        true
    }

    /// Records that were trimmed unread, where that may be passed over, are not waited for in shards that are being read: nothing that comes after them
    /// need ever come, and then no delivery and no checkpoint shows that they were passed over. The audit log must have said so.
    pub(in crate::simulation) fn trimmed_are_past(&mut self, now: Duration) {
        let read = |terms: &Vec<Term>| terms.last().is_some_and(|term| term.open);
        let shards: Vec<_> = self.terms.iter().filter(|(_, terms)| read(terms)).map(|(shard, _)| shard.clone()).collect();
        for shard in shards {
            let Some(log) = self.log.shards.get(&shard) else { continue };
            let (from, to) = (log.done_to, log.entries.len());
            if from < to && self.audits > 0 {
                self.were_trimmed(&shard, from, to, now);
            }
        }
    }

    pub(super) fn created(&mut self, host: &str, lease: &Lease, now: Duration) {
        let shard = &lease.shard_id;
        self.trace.line(now, format_args!("{host} create {shard} checkpoint {} instant {:?}", lease.checkpoint, lease.initial_timestamp));
        self.rows.insert(shard.clone(), lease.clone());
        if self.seeks.under_way {
            // The shard that it comes of has just ended, perhaps: whatever the seek has passed over is asked for with it.
            self.begins_anew(lease);
        } else if self.finished.contains(shard) {
            self.violated("S7", format!("{host} made the lease of {shard} anew, which was finished"));
        }
        if let Some(instant) = lease.initial_timestamp
            && !self.seeks.any
            && !self.log.has_scope()
        {
            // Records that arrive while the first leases are made are not asked for: they may come all the same.
            let made = Timestamp::from_millis(1_790_000_000_000 + u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
            self.log.begins(if lease.checkpoint == Checkpoint::AtTimestamp { instant } else { instant.max(made) });
        }
        let parents = self.log.shards.get(shard).map(|log| log.parents.clone()).unwrap_or_default();
        if lease.checkpoint != Checkpoint::TrimHorizon && parents.iter().any(|parent| self.finished.contains(parent)) {
            self.violated("S1", format!("{host} made the lease of {shard} at {}, though its parent was read to its end", lease.checkpoint));
        }
    }

    pub(super) fn deleted(&mut self, host: &str, lease: &Lease, now: Duration) {
        let shard = &lease.shard_id;
        self.trace.line(now, format_args!("{host} delete {shard}"));
        self.rows.remove(shard);
        self.reached("lease deleted");
        if !lease.checkpoint.is_shard_end() {
            self.violated("S7", format!("{host} deleted the lease of {shard}, which is not finished"));
            return;
        }
        let Some(log) = self.log.shards.get(shard) else { return };
        let begun = |child: &&ShardId| self.rows.get(*child).map_or(self.finished.contains(*child), |row| !row.checkpoint.is_initial());
        // Who deletes has seen it begun, before a seek has begun it anew.
        if let Some(child) = log.children.iter().find(|child| !begun(child) && !self.seeks.moved(child)).cloned() {
            self.violated("S7", format!("{host} deleted the lease of {shard} before its child {child} has begun"));
        }
    }

    /// The stream is another one of the same name, made at this time: nothing of the old one counts any more.
    pub(in crate::simulation) fn recreated(&mut self, made: Timestamp) {
        self.made_anew = Some(made);
        for (shard, terms) in std::mem::take(&mut self.terms) {
            self.old_terms.extend(terms.into_iter().map(|term| (term.host, shard.clone(), term.token)));
        }
        self.log.recreated();
        self.rows.clear();
        self.finished.clear();
    }
}

fn log_number(oracle: &Oracle, shard: &ShardId, index: usize) -> String {
    oracle.log.shards.get(shard).and_then(|log| log.entries.get(index)).map_or_else(String::new, |entry| entry.position().to_string())
}
