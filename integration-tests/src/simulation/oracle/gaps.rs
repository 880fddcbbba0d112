//! Records that were trimmed before anybody read them: where they may be passed over, the audit log has said so, of this very shard and of these records.

use std::ops::Range;
use std::time::Duration;

use kcl_core::{Checkpoint, ExtendedSequenceNumber, SequenceNumber, ShardId};
use kcl_lease::Lease;

use super::Oracle;

/// The audit log's account of a gap, as it is written.
#[derive(Clone, Debug, Default)]
pub(in crate::simulation) struct Audit {
    pub(in crate::simulation) shard: Option<String>,
    pub(in crate::simulation) checkpoint: Option<String>,
    pub(in crate::simulation) first_kept: Option<String>,
}

impl Audit {
    /// The sequence number in a position's text. `None`: it names no record.
    fn number(text: Option<&String>) -> Option<SequenceNumber> {
        text?.split('/').next()?.parse().ok()
    }
}

/// Returns true for a row that has not begun, as far as anybody can know: it asks for the oldest record that there is whenever it is read.
pub(super) fn has_not_begun(row: &Lease) -> bool {
    row.checkpoint == Checkpoint::TrimHorizon && row.watermark.is_none()
}

impl Oracle {
    /// A gap was told in the audit log: its shard, and between which records. Other audit events name no checkpoint.
    pub(in crate::simulation) fn audited(&mut self, audit: &Audit) {
        if audit.checkpoint.is_none() {
            return;
        }
        self.reached("gap audited");
        let Some(shard) = audit.shard.as_deref().map(ShardId::from) else {
            self.violated("S1", format!("an audit event of a gap does not say of which shard: {audit:?}"));
            return;
        };
        let Some(log) = self.log.shards.get(&shard) else { return };
        let place = |number: Option<SequenceNumber>| number.map(|number| log.at_or_after(ExtendedSequenceNumber::whole(number)));
        let from = place(Audit::number(audit.checkpoint.as_ref())).unwrap_or(0);
        let to = place(Audit::number(audit.first_kept.as_ref())).unwrap_or(log.entries.len());
        self.audits.entry(shard).or_default().push(from..to);
    }

    /// Returns true if all unfinished records between two indices were trimmed, and may be skipped. They are, then.
    pub(super) fn were_trimmed(&mut self, shard: &ShardId, from: usize, to: usize, now: Duration) -> bool {
        let retention = self.retention;
        let Some(log) = self.log.shards.get(shard) else { return true };
        let to = to.min(log.entries.len());
        let mut left = (from.min(to)..to).filter(|place| !log.entries[*place].done);
        let trimmed = left.clone().all(|place| log.entries[place].put + retention <= now);
        if !trimmed || !self.trimmed_may_be_skipped {
            return false;
        }
        let audits: &[Range<usize>] = self.audits.get(shard).map_or(&[], Vec::as_slice);
        let not_begun_by = self.terms.get(shard).and_then(|terms| terms.last()).filter(|term| term.not_begun).map(|term| term.taken_at);
        let is_told = |place: usize| {
            audits.iter().any(|audited| audited.contains(&place)) || not_begun_by.is_some_and(|taken| log.entries[place].put <= taken)
        };
        let untold = left.find(|place| !is_told(*place)).map(|place| log.entries[place].position());
        self.log.skip(shard, from, to);
        self.reached("trimmed records skipped");
        if let Some(untold) = untold {
            self.violated("S1", format!("record {untold} of {shard} was trimmed unread and is passed over, and no audit event says so"));
        }
        true
    }

    /// Records that were trimmed unread, where that may be passed over, are not waited for in shards that are being read: nothing that comes after them
    /// need ever come, and then no delivery and no checkpoint shows that they were passed over. The audit log must have said so.
    pub(in crate::simulation) fn trimmed_are_past(&mut self, now: Duration) {
        let read = |terms: &Vec<super::Term>| terms.last().is_some_and(|term| term.open);
        let shards: Vec<_> = self.terms.iter().filter(|(_, terms)| read(terms)).map(|(shard, _)| shard.clone()).collect();
        for shard in shards {
            let Some(log) = self.log.shards.get(&shard) else { continue };
            let (from, to) = (log.done_to, log.entries.len());
            let not_begun = self.terms[&shard].last().is_some_and(|term| term.not_begun);
            if from < to && (not_begun || self.audits.contains_key(&shard)) {
                self.were_trimmed(&shard, from, to, now);
            }
        }
    }
}
