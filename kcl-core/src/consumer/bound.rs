//! Reading up to a bound: what arrived at that time or later stays for whoever reads on.
//!
//! A shard has reached the bound with the first record that arrived then or later, or at its tip once that time has come. When all before is finished
//! its processors are asked to finish, as when a shard is handed over, and the lease is freed with the last checkpoint. Its watermark then says that
//! all before the bound is finished: workers with this bound leave such a lease alone, and end when all are so.

use kcl_checkpoint::{Checkpoint, Timestamp};

use super::{Checkpointing, ShardConsumer};
use crate::record::Record;

impl ShardConsumer {
    /// Has the release say that all before the bound is finished; unless a processor that checkpoints by itself has not checkpointed all of it, for then its
    /// records come again.
    pub(super) fn note_bound(&self) {
        let unwritten = self.prefix.delivered().filter(|last| self.hold.shard.checkpointer.last() < Checkpoint::At(*last));
        if self.hold.shared.checkpointing == Checkpointing::Manual && unwritten.is_some() {
            tracing::error!(
                "shutdown_requested returned without a checkpoint of the last record, which manual checkpointing needs here; the shard is read again"
            );
        } else if let Some(bound) = self.hold.shared.bound {
            self.hold.term.set_watermark(bound);
        }
    }
}

/// Cuts off what arrived at the bound or later. Returns whether the bound is reached: nothing more is to be read.
pub(super) fn cut(records: &mut Vec<Record>, at_tip: bool, now: Timestamp, bound: Timestamp) -> bool {
    let beyond = records.iter().position(|record| record.approximate_arrival().is_some_and(|arrival| arrival >= bound));
    if let Some(first) = beyond {
        records.truncate(first);
        return true;
    }
    records.is_empty() && at_tip && now >= bound
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn reading_ends_before_the_first_record_beyond_or_at_the_tip() {
        let at = Timestamp::from_millis;
        // arrivals, at the tip, now => how many stay, reached
        for (arrivals, at_tip, now, stay, reached) in [
            (&[][..], true, 99, 0, false),
            (&[], true, 100, 0, true),
            (&[], false, 200, 0, false),
            (&[98, 99], true, 200, 2, false),
            (&[98, 100, 99], false, 200, 1, true),
            (&[100], true, 200, 0, true),
        ] {
            let record = |arrival: &u64| Record::new(1u128.into(), None, Bytes::new(), Some(at(*arrival)));
            let mut records: Vec<_> = arrivals.iter().map(record).collect();
            assert_eq!(cut(&mut records, at_tip, at(now), at(100)), reached, "{arrivals:?}");
            assert_eq!(records.len(), stay, "{arrivals:?}");
        }
    }
}
