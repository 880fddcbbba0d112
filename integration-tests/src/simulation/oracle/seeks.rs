//! Seeks: an operator moves leases, forwards and back, while workers go on.
//!
//! While a seek is under way some shards have moved and others have not; what is demanded of the order between shards waits until it is made. From then on
//! nobody who lost a shard by it may deliver once any of its shards has a new owner.

use std::collections::BTreeSet;
use std::time::Duration;

use kcl_core::ShardId;
use kcl_lease::{Lease, LeaseWrite};

use super::{OPERATOR, Oracle};

/// What is known of the last seek.
#[derive(Debug, Default)]
pub(super) struct Seeks {
    /// There was one.
    pub(super) any: bool,
    pub(super) under_way: bool,
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
    pub(in crate::simulation) fn seek_begins(&mut self) {
        self.seeks = Seeks { any: true, under_way: true, ..Seeks::default() };
    }

    pub(in crate::simulation) fn seek_is_made(&mut self) {
        self.seeks.under_way = false;
        // What was delivered meanwhile, by owners who lost their shards again, is no measure of the order.
        self.log.order_anew();
        self.reached("seek made");
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
        self.begins_anew(after);
    }

    pub(super) fn made_by_operator(&mut self, host: &str, lease: &Lease, now: Duration) {
        self.trace.line(now, format_args!("{host} makes {} at {}", lease.shard_id, lease.checkpoint));
        self.rows.insert(lease.shard_id.clone(), lease.clone());
        self.reached("lease made anew by a seek");
        self.begins_anew(lease);
    }

    pub(super) fn begins_anew(&mut self, row: &Lease) {
        let shard = &row.shard_id;
        self.seeks.shards.insert(shard.clone());
        self.terms.get_mut(shard).into_iter().flatten().for_each(|term| term.sought = true);
        let first = self.log.shards.entry(shard.clone()).or_default().start_of(row);
        let _ = self.log.ask_again(shard, first);
        self.passed_over(shard);
        if row.checkpoint.is_shard_end() {
            self.finished.insert(shard.clone());
        } else {
            self.finished.remove(shard);
        }
    }

    /// What a sought shard came of, and has no lease, counts as read: it was, or the seek passes it over. If it is to be read again, its lease is made after
    /// that of the shard that came of it.
    fn passed_over(&mut self, shard: &ShardId) {
        let parents = self.log.shards.get(shard).map(|log| log.parents.clone()).unwrap_or_default();
        for parent in parents {
            if self.rows.contains_key(&parent) {
                continue;
            }
            let all = self.log.shards.get(&parent).map_or(0, |log| log.entries.len());
            self.log.skip(&parent, 0, all);
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
