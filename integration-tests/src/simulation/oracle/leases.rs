//! What becomes of rows: terms, checkpoints, the ends of shards, and the lease table as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kcl_core::{Checkpoint, ShardId, Timestamp};
use kcl_lease::{Change, Lease, LeaseWrite};

use super::gaps::has_not_begun;
use super::notes::{Said, valid_note};
use super::{Oracle, Term, log};

/// Terms of a shard that are remembered.
pub(super) const TERMS: usize = 8;

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
        self.emptied.written(after);
        if self.is_skip(write, before, after) {
            self.skipped_ahead(host, before, after, now);
            return;
        }
        if after.checkpoint < before.checkpoint {
            self.violated("S2", format!("{host} moved the checkpoint of {shard} back from {} to {}", before.checkpoint, after.checkpoint));
        }
        if takes {
            self.taken_from_elsewhere(host, before, now);
        }
        self.owned_elsewhere(after, now);
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
        self.to_judge = Said::by(host, before, after);
        // Items that were written with it are told of next.
        if !self.commits {
            self.judge_said(now);
        }
    }

    fn taken(&mut self, host: &str, before: &Lease, after: &Lease, now: Duration) {
        let shard = &after.shard_id;
        self.takes.push(now);
        self.emptied.taken(host, shard);
        // The counter of a row that was made anew may be that of an old term.
        self.old_terms.remove(&(host.to_owned(), shard.clone(), after.counter));
        let sought = self.seeks.any;
        let log = self.log.shards.entry(shard.clone()).or_default();
        let first = log.start_of(after);
        let inside = log.is_inside(first);
        let first = if sought { first } else { self.log.start_of_first(after) };
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
        let back = terms.last().map(|last| last.token).filter(|last| *last >= after.counter);
        terms.push(Term {
            token: after.counter,
            host: host.to_owned(),
            worker: after.owner.clone(),
            taken_at: now,
            renewed: now,
            lapsed: false,
            handed_over: false,
            not_begun: has_not_begun(after),
            spared: valid_note(after).filter(|_| !self.manual).cloned(),
            poisoned: BTreeMap::new(),
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
        if let Some(last) = back {
            self.violated("S5", format!("{host} took {shard} with fencing token {}, after {last}", after.counter));
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
        let most = self.lease_duration / 2;
        if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()).filter(|_| of_term) {
            term.lapsed |= sent > term.renewed + most;
            term.renewed = sent;
        }
        if kind == "release" {
            let mut calls = 0;
            if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut()) {
                term.open = false;
                term.ended_at = Some(now);
                term.released = of_term;
                term.handed_over = after.owner.is_some();
                calls = if of_term { term.calls } else { 0 };
            }
            if calls > 0 && !self.blocks {
                self.violated("S6", format!("{host} has released {shard} while {calls} calls with its records are under way"));
            }
            if of_term {
                self.released_in_order(host, after, sent, now);
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

    pub(super) fn checkpointed(&mut self, host: &str, shard: &ShardId, checkpoint: Checkpoint, now: Duration) {
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

    pub(super) fn created(&mut self, host: &str, lease: &Lease, now: Duration) {
        let shard = &lease.shard_id;
        self.trace.line(now, format_args!("{host} create {shard} checkpoint {} instant {:?}", lease.checkpoint, lease.initial_timestamp));
        let was_empty = self.rows.is_empty();
        self.rows.insert(shard.clone(), lease.clone());
        self.begun_anew(host, shard, was_empty);
        if self.seeks.under_way {
            // The shard that it comes of has just ended, perhaps: whatever the seek has passed over is asked for with it.
            self.begins_anew(lease);
        } else if self.finished.contains(shard) {
            self.violated("S7", format!("{host} made the lease of {shard} anew, which was finished"));
        }
        if lease.lies_before_start() {
            self.made_before_start(host, lease);
            return;
        }
        if let Some(instant) = lease.initial_timestamp
            && lease.checkpoint != Checkpoint::TrimHorizon
            && !self.seeks.any
        {
            let err = if lease.checkpoint == Checkpoint::AtTimestamp { 0 } else { self.clocks_err };
            self.log.begins(instant, err);
            self.not_after_its_children(host, shard);
        }
        if let Some(watermark) = lease.watermark {
            self.judge_watermark(host, shard, watermark, now);
        }
        let parents = self.log.shards.get(shard).map(|log| log.parents.clone()).unwrap_or_default();
        if lease.checkpoint != Checkpoint::TrimHorizon && parents.iter().any(|parent| self.finished.contains(parent)) {
            self.violated("S1", format!("{host} made the lease of {shard} at {}, though its parent was read to its end", lease.checkpoint));
        }
    }

    /// A first sync has made the lease of a shard finished: nothing of it is asked for.
    fn made_before_start(&mut self, host: &str, lease: &Lease) {
        self.reached("first lease before the start");
        let shard = &lease.shard_id;
        let instant = lease.initial_timestamp.map_or(0, Timestamp::as_millis) + self.clocks_err;
        let Some(log) = self.log.shards.get(shard) else { return };
        if !log.closed || log.entries.iter().any(|entry| entry.arrival.as_millis() >= instant) {
            self.violated("S8", format!("{host} made a finished lease of {shard}, which does not lie before the start at {instant}"));
        }
    }

    /// A shard of which there is something to read has no lease yet when what came of it is read: its records would come after theirs.
    fn not_after_its_children(&mut self, host: &str, shard: &ShardId) {
        let Some(log) = self.log.shards.get(shard) else { return };
        let read =
            log.children.iter().find(|child| self.terms.get(*child).is_some_and(|terms| terms.iter().any(|term| term.next > term.first)));
        if let Some(child) = read.filter(|_| log.done_to < log.entries.len()).cloned() {
            self.violated("S4", format!("{host} made the lease of {shard} after its child {child} was read"));
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
        if lease.lies_before_start() {
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
        self.audits.clear();
        self.finished.clear();
    }
}

fn log_number(oracle: &Oracle, shard: &ShardId, index: usize) -> String {
    oracle.log.shards.get(shard).and_then(|log| log.entries.get(index)).map_or_else(String::new, |entry| entry.position().to_string())
}
