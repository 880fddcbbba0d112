//! Reading up to a bound: what arrived at that time or later stays for whoever reads on.
//!
//! A shard has reached the bound with the first record that arrived then or later, or at its tip once that time has come, by what was asked for after it.
//! (A server that does not say where the tip is: see `retrieval/polling/tip.rs`.)
//! When all before is finished its processors are asked to finish, as when a shard is handed over, and the lease is freed with the last checkpoint. Its
//! watermark then says that all before the bound is finished: workers with this bound leave such a lease alone, and end when all are so.

use kcl_checkpoint::Timestamp;

use super::ShardConsumer;
use crate::record::Record;

/// How long after the bound a shard's tip is believed: clocks of the service differ, and this worker knows its time to the second only.
const MARGIN: u64 = 2_000;

/// What an answer says of the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// More may come before it.
    Before,
    /// The shard's tip, after it; but what says so may have been on its way before: read ahead, or held back in a subscription.
    Perhaps,
    /// Nothing more is to be read.
    Reached,
}

impl ShardConsumer {
    /// Cuts off what arrived at the bound or later, and sees whether reading ends with this answer.
    pub(super) fn look_for_bound(&mut self, records: &mut Vec<Record>, at_tip: bool, now: Timestamp, bound: Timestamp) {
        match cut(records, at_tip, now, bound) {
            Seen::Before => {}
            Seen::Perhaps if !self.work.read_from_bound => {
                // Whatever is read from here on was asked for after the bound.
                (self.work.read_from_bound, self.work.reopen) = (true, true);
            }
            Seen::Perhaps | Seen::Reached => {
                tracing::info!(bound = bound.as_millis(), "read up to where reading is to end");
                self.work.bound_reached = true;
            }
        }
    }

    /// Has the release say that all before the bound is finished; unless a processor that checkpoints for itself has not checkpointed all of it, for then its
    /// records come again.
    pub(super) fn note_bound(&self) {
        if self.is_anything_collected() {
            tracing::error!(
                "the last record before the bound is not checkpointed: manual checkpointing needs that of shutdown_requested; the shard is read again"
            );
        } else if let Some(bound) = self.hold.shared.bound {
            self.hold.term.set_watermark(bound);
        }
    }
}

/// Cuts off what arrived at the bound or later.
fn cut(records: &mut Vec<Record>, at_tip: bool, now: Timestamp, bound: Timestamp) -> Seen {
    let beyond = records.iter().position(|record| record.approximate_arrival().is_some_and(|arrival| arrival >= bound));
    if let Some(first) = beyond {
        records.truncate(first);
        return Seen::Reached;
    }
    let is_past = now.as_millis() >= bound.as_millis().saturating_add(MARGIN);
    if records.is_empty() && at_tip && is_past { Seen::Perhaps } else { Seen::Before }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn reading_ends_before_the_first_record_beyond_or_at_the_tip() {
        let at = Timestamp::from_millis;
        // arrivals, at the tip, now => how many stay, reached
        for (arrivals, at_tip, now, stay, seen) in [
            (&[][..], true, 99 + MARGIN, 0, Seen::Before),
            (&[], true, 100 + MARGIN, 0, Seen::Perhaps),
            (&[], false, 200 + MARGIN, 0, Seen::Before),
            (&[98, 99], true, 200 + MARGIN, 2, Seen::Before),
            (&[98, 100, 99], false, 200, 1, Seen::Reached),
            (&[100], true, 50, 0, Seen::Reached),
        ] {
            let record = |arrival: &u64| Record::new(1u128.into(), None, Bytes::new(), Some(at(*arrival)));
            let mut records: Vec<_> = arrivals.iter().map(record).collect();
            assert_eq!(cut(&mut records, at_tip, at(now), at(100)), seen, "{arrivals:?}");
            assert_eq!(records.len(), stay, "{arrivals:?}");
        }
    }
}
