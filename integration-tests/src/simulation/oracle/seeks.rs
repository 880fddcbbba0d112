//! Seeks: an operator moves leases, forwards and back, while workers go on.
//!
//! The oracle is told what was asked, and works out from its own log which records of each shard are asked for again: those that arrived at the target or
//! later. Each row that the operator moves must start exactly there. When the seek is made every shard with such a record has a row that starts there, or
//! gets one when its parents end.
//!
//! While a seek is under way some shards have moved and others have not; what is demanded of the order between shards waits until it is made. From then on
//! nobody who lost a shard by it may deliver once any of its shards has a new owner.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::{ShardId, Timestamp};
use kcl_lease::{Lease, LeaseWrite};

use super::notes::valid_note;
use super::{OPERATOR, Oracle};

/// What is known of the last seek.
#[derive(Debug, Default)]
pub(super) struct Seeks {
    /// There was one.
    pub(super) any: bool,
    pub(super) under_way: bool,
    /// Records that arrived at this time or later are asked for; `None`: all that the stream keeps.
    target: Option<Timestamp>,
    /// Its shards.
    shards: BTreeSet<ShardId>,
    /// Since it was made, one of them was taken.
    taken: Option<ShardId>,
}

impl Seeks {
    pub(super) fn moved(&self, shard: &ShardId) -> bool {
        self.shards.contains(shard)
    }

    pub(super) fn taken(&mut self, shard: &ShardId) {
        if !self.under_way && self.taken.is_none() && self.shards.contains(shard) {
            self.taken = Some(shard.clone());
        }
    }
}

pub(super) fn is_operator(host: &str) -> bool {
    host.starts_with(OPERATOR)
}

impl Oracle {
    /// An operator asks for the records that arrived at this time or later; `None`: for all.
    pub(in crate::simulation) fn seek_begins(&mut self, target: Option<Timestamp>) {
        self.seeks = Seeks { any: true, under_way: true, target, ..Seeks::default() };
    }

    pub(in crate::simulation) fn seek_is_made(&mut self) {
        self.seeks.under_way = false;
        for shard in self.log.shards.keys().cloned().collect::<Vec<_>>() {
            if let Some(wrong) = self.wrong_after_a_seek(&shard) {
                self.violated("S15", format!("the seek to {:?} is made: {shard} {wrong}", self.seeks.target));
            }
        }
        for shard in self.seeks.shards.clone() {
            self.passed_over(&shard);
        }
        // What was delivered meanwhile, by owners who lost their shards again, is no measure of the order.
        self.log.order_anew();
        self.reached("seek made");
    }

    /// The index of the first record of a shard that the last seek asks for.
    fn asked_from(&self, shard: &ShardId) -> usize {
        let log = self.log.shards.get(shard);
        log.zip(self.seeks.target).map_or(0, |(log, target)| log.since(target))
    }

    /// What is wrong with a shard once a seek is made.
    fn wrong_after_a_seek(&mut self, shard: &ShardId) -> Option<String> {
        let asked = self.asked_from(shard);
        let log = self.log.shards.get(shard)?;
        let is_asked_for = asked < log.entries.len();
        match self.rows.get(shard).filter(|row| !row.checkpoint.is_shard_end()) {
            Some(row) => {
                let start = log.start_of(row);
                if start < asked {
                    return Some(format!("starts at {}, {} records before the target", row.checkpoint, asked - start));
                }
                // It may have been taken since.
                let left_out = log.entries[asked..start].iter().find(|entry| !entry.done);
                left_out.map(|entry| format!("starts at {}, after record {}, which is asked for", row.checkpoint, entry.position()))
            }
            None if !is_asked_for => None,
            None if self.rows.contains_key(shard) => Some("counts as read, and records of it are asked for".to_owned()),
            None if self.comes_as_a_child(shard) => {
                // A seek before may have passed it over.
                self.log.ask_again(shard, asked);
                self.finished.remove(shard);
                None
            }
            None => Some("has no lease, none of its parents is read, and records of it are asked for".to_owned()),
        }
    }

    /// Whether a shard without a lease gets one when others end.
    fn comes_as_a_child(&self, shard: &ShardId) -> bool {
        let parents = self.log.shards.get(shard).into_iter().flat_map(|log| &log.parents);
        parents.into_iter().any(|parent| match self.rows.get(parent) {
            Some(row) => !row.checkpoint.is_shard_end(),
            None => self.comes_as_a_child(parent),
        })
    }

    /// An operator has written a lease.
    pub(super) fn sought(&mut self, host: &str, write: &LeaseWrite, before: &Lease, after: &Lease, now: Duration) {
        let shard = &after.shard_id;
        self.rows.insert(shard.clone(), after.clone());
        if write.checkpoint.is_none() {
            self.trace.line(now, format_args!("{host} holds {shard} counter {}", after.counter));
            return;
        }
        self.trace.line(
            now,
            format_args!("{host} moves {shard} from {} to {} {:?}", before.checkpoint, after.checkpoint, after.initial_timestamp),
        );
        if let Some(term) = self.terms.get_mut(shard).and_then(|terms| terms.last_mut())
            && std::mem::replace(&mut term.open, false)
        {
            term.fenced = true;
            let owner = term.host.clone();
            self.limits.holds(&owner, false);
            self.reached("owner stopped by a seek");
        }
        self.moved(after, now);
    }

    pub(super) fn made_by_operator(&mut self, host: &str, lease: &Lease, now: Duration) {
        self.trace.line(now, format_args!("{host} makes {} at {}", lease.shard_id, lease.checkpoint));
        self.rows.insert(lease.shard_id.clone(), lease.clone());
        self.reached("lease made anew by a seek");
        self.moved(lease, now);
    }

    /// An operator has given a shard a new start.
    fn moved(&mut self, row: &Lease, now: Duration) {
        self.begins_anew(row);
        let (shard, asked) = (&row.shard_id, self.asked_from(&row.shard_id));
        let start = self.log.shards.get(shard).map_or(0, |log| log.start_of(row));
        if let Some(watermark) = row.watermark {
            self.judge_watermark("the operator", shard, watermark, now);
        }
        if let Some(note) = valid_note(row).cloned() {
            self.judge_note("the operator", shard, &note, now);
        }
        if start != asked {
            let target = self.seeks.target;
            self.violated("S15", format!("a seek to {target:?} lets {shard} start with its record {start}, and {asked} is right"));
        }
    }

    /// A shard's row was written while a seek is under way: from here on its records are asked for anew.
    pub(super) fn begins_anew(&mut self, row: &Lease) {
        let shard = &row.shard_id;
        self.seeks.shards.insert(shard.clone());
        self.terms.get_mut(shard).into_iter().flatten().for_each(|term| term.sought = true);
        let asked = self.asked_from(shard);
        self.log.shards.entry(shard.clone()).or_default();
        let _ = self.log.ask_again(shard, asked);
        if row.checkpoint.is_shard_end() {
            self.finished.insert(shard.clone());
        } else {
            self.finished.remove(shard);
        }
    }

    /// What a sought shard came of, and has no lease, counts as read: it was, or the seek passes it over. Nothing of it is asked for, else it would have a
    /// lease.
    fn passed_over(&mut self, shard: &ShardId) {
        let parents = self.log.shards.get(shard).map(|log| log.parents.clone()).unwrap_or_default();
        for parent in parents {
            if self.rows.contains_key(&parent) || self.comes_as_a_child(&parent) {
                continue;
            }
            let asked = self.asked_from(&parent);
            self.log.skip(&parent, 0, asked);
            self.finished.insert(parent.clone());
            self.passed_over(&parent);
        }
    }

    /// A shard is delivered by an owner that has lost it by a seek. It does not know yet; nobody may have begun anew meanwhile.
    pub(super) fn delivered_after_a_seek(&mut self, host: &str, shard: &ShardId, now: Duration) {
        self.trace.line(now, format_args!("{host} does not know yet that {shard} has moved"));
        self.reached("delivery after a seek");
        if let Some(taken) = self.seeks.taken.clone() {
            self.violated("S6", format!("{host} delivers {shard}, which it has lost by a seek, after {taken} was taken anew"));
        }
    }
}
