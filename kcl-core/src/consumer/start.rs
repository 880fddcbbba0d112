//! Where a term starts to read, which of the first records it skips, and whether records were trimmed meanwhile.
//!
//! Reading starts **at** the checkpoint's record, not after it. So the first record proves that nothing in between is gone: if it is the
//! checkpoint's own, the shard is whole. If it is a later one, the checkpoint's record was trimmed, and whether records after it
//! were trimmed too depends on how long nobody was there to see them arrive. The same is asked of a lease without a checkpoint that was watched
//! before: records may have come and gone since.

use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, InitialPosition, Timestamp};
use kcl_lease::Lease;

use crate::record::Record;
use crate::stream::StartingPosition;

/// How much less than the retention time a checkpoint may be old before a gap is suspected: covers clocks that differ and trimming that
/// is not to the second.
const RETENTION_MARGIN: Duration = Duration::from_secs(300);

/// Where reading of a taken lease starts.
pub(crate) fn starting_position(lease: &Lease, initial: InitialPosition) -> StartingPosition {
    match lease.checkpoint {
        Checkpoint::At(record) => StartingPosition::AtSequenceNumber(record.sequence_number),
        Checkpoint::TrimHorizon => StartingPosition::TrimHorizon,
        // The instant that LATEST or AT_TIMESTAMP meant when the lease was made; the take has noted it if nobody had.
        Checkpoint::Latest if is_planted(Bug::LatestResolvedTwice) => StartingPosition::Latest,
        Checkpoint::Latest => lease.initial_timestamp.map_or(StartingPosition::Latest, StartingPosition::AtTimestamp),
        Checkpoint::AtTimestamp => match (lease.initial_timestamp, initial) {
            (Some(time), _) | (None, InitialPosition::AtTimestamp(time)) => StartingPosition::AtTimestamp(time),
            // A row of a Java worker, and this worker is configured otherwise: the oldest record misses nothing.
            (None, _) => StartingPosition::TrimHorizon,
        },
        // A finished lease is never taken; should one be, its shard answers with its end.
        Checkpoint::ShardEnd => StartingPosition::Latest,
    }
}

/// Drops the records that are finished already and watches for a gap, until the first record past the checkpoint has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartFilter {
    finished: Option<ExtendedSequenceNumber>,
    /// All that arrived before is finished, as far as the lease tells.
    watermark: Option<Timestamp>,
    /// Nothing can have been missed: the checkpoint's record was seen, or the first record after it was let through.
    whole: bool,
    /// A record that was there when the shard was read before, in this term: the first that comes, comes no later than it.
    expected: Option<ExtendedSequenceNumber>,
}

/// Records between the checkpoint and the first record that the stream still holds may have been trimmed unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) first_kept: Option<ExtendedSequenceNumber>,
}

impl StartFilter {
    pub(crate) fn new(lease: &Lease) -> Self {
        // What arrived before the instant that LATEST meant was never asked for.
        let begun = lease.initial_timestamp.filter(|_| lease.checkpoint == Checkpoint::Latest);
        Self { finished: lease.checkpoint.record(), watermark: lease.watermark.max(begun), whole: false, expected: None }
    }

    /// Of a term that reads on at the last record that it has taken into work. `watermark` as in the lease.
    pub(crate) fn after(last: ExtendedSequenceNumber, watermark: Option<Timestamp>) -> Self {
        Self { finished: Some(last), watermark, whole: false, expected: None }
    }

    /// All that arrived before `time` was seen and is finished.
    pub(crate) fn watched_until(&mut self, time: Timestamp) {
        self.watermark = self.watermark.max(Some(time));
    }

    /// The shard has ended. `Err`: it may have ended with records that nobody has seen.
    pub(crate) fn end(&self, now: Timestamp, retention: Duration) -> Result<(), Gap> {
        let missed = self.expected.is_some() || self.may_have_missed(now, retention);
        if missed { Err(Gap { first_kept: None }) } else { Ok(()) }
    }

    /// Takes the records before the checkpoint's off the head of what was read, as Kinesis gave it. The checkpoint's own stays: it may be an aggregate
    /// that is finished in part, see [`is_finished`](Self::is_finished). `at_tip`: nothing comes after these now. `Err`: a gap must be dealt with
    /// before anything is delivered.
    pub(crate) fn admit(&mut self, records: &mut Vec<Record>, at_tip: bool, now: Timestamp, retention: Duration) -> Result<(), Gap> {
        if let Some(checkpoint) = self.finished {
            self.whole |= records.iter().any(|record| record.sequence_number() == checkpoint.sequence_number);
            let before = |record: &Record| record.sequence_number() < checkpoint.sequence_number;
            let first = records.iter().position(|record| !before(record)).unwrap_or(records.len());
            records.drain(..first);
        }
        let first = records.first().map(Record::position);
        if let Some(expected) = self.expected.filter(|_| first.is_some() || at_tip) {
            if first.is_none_or(|first| first.sequence_number > expected.sequence_number) {
                return Err(Gap { first_kept: first });
            }
            // There was none between the checkpoint and it.
            (self.expected, self.whole) = (None, true);
        }
        // A shard without records is no proof either: all may have been trimmed, the checkpoint's included.
        if (first.is_some() || at_tip) && self.may_have_missed(now, retention) {
            return Err(Gap { first_kept: first });
        }
        self.whole |= first.is_some();
        Ok(())
    }

    /// Whether the record, as Kinesis gave it, comes after the checkpoint's own.
    pub(crate) fn is_new(&self, record: &Record) -> bool {
        self.finished.is_none_or(|checkpoint| record.sequence_number() > checkpoint.sequence_number)
    }

    /// Whether the checkpoint covers this record.
    pub(crate) fn is_finished(&self, record: &Record) -> bool {
        let Some(checkpoint) = self.finished.filter(|_| !is_planted(Bug::FirstRecordAgain)) else { return false };
        if is_planted(Bug::RestOfAggregateDropped) && record.sequence_number() == checkpoint.sequence_number {
            return true;
        }
        is_covered(record.position(), record.is_aggregated(), checkpoint.into())
    }

    /// Goes on after a gap: whatever comes first is the first. What was finished stays so: a service that refused the checkpoint's record by mistake still
    /// has all before it.
    pub(crate) fn accept_gap(&mut self) {
        (self.whole, self.expected) = (true, None);
    }

    /// The shard is read anew, and this record was there: records between the checkpoint and it there were none, or they are finished.
    pub(crate) fn expect(&mut self, record: Option<ExtendedSequenceNumber>) {
        self.expected = record;
    }

    pub(crate) fn expected(&self) -> Option<ExtendedSequenceNumber> {
        self.expected
    }

    /// The gap that a refusal of the starting position means, unless reading has begun.
    pub(crate) fn refused(&self) -> Option<Gap> {
        self.finished.filter(|_| !self.whole).map(|_| Gap { first_kept: None })
    }

    /// Whether a record that arrived after all were finished may be older than what the stream keeps.
    ///
    /// A lease without checkpoint and without watermark has not begun: then the oldest record that is kept is where it begins.
    fn may_have_missed(&self, now: Timestamp, retention: Duration) -> bool {
        let kept_since = now.as_millis().saturating_sub(millis(retention.saturating_sub(RETENTION_MARGIN)));
        let unwatched = self.watermark.map_or(self.finished.is_some(), |watermark| watermark.as_millis() < kept_since);
        !self.whole && unwatched && !is_planted(Bug::GapNotNoticed)
    }
}

/// Whether a checkpoint covers a record. Not one that was an aggregate once, when the checkpoint was made inside of it, and is none by today's rules: not all
/// of it is finished.
pub(super) fn is_covered(record: ExtendedSequenceNumber, is_aggregated: bool, checkpoint: Checkpoint) -> bool {
    let inside = checkpoint.record().is_some_and(|at| at.sequence_number == record.sequence_number && at.sub_sequence_number > 0);
    Checkpoint::At(record) <= checkpoint && (is_aggregated || !inside)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn lease(checkpoint: Checkpoint, watermark_age: Option<Duration>) -> Lease {
        let mut lease = Lease::new("shardId-000000000000".into(), checkpoint);
        lease.watermark = watermark_age.map(|age| Timestamp::from_millis(NOW.as_millis() - millis(age)));
        lease
    }

    fn at(number: u128, sub: u64) -> Checkpoint {
        Checkpoint::At(ExtendedSequenceNumber::new(number.into(), sub))
    }

    fn records(numbers: impl IntoIterator<Item = u128>) -> Vec<Record> {
        numbers.into_iter().map(|number| Record::new(number.into(), None, Bytes::new(), None)).collect()
    }

    fn admitted(filter: &mut StartFilter, numbers: impl IntoIterator<Item = u128>) -> Result<Vec<u128>, Gap> {
        let mut records = records(numbers);
        filter.admit(&mut records, false, NOW, DAY)?;
        records.retain(|record| !filter.is_finished(record));
        Ok(records.iter().map(|record| record.sequence_number().to_string().parse().unwrap()).collect())
    }

    #[test]
    fn reading_goes_on_after_the_checkpoint() {
        let mut filter = StartFilter::new(&lease(at(5, 0), None));
        assert_eq!(admitted(&mut filter, []), Ok(vec![]));
        assert_eq!(admitted(&mut filter, [5]), Ok(vec![]));
        assert_eq!(admitted(&mut filter, [6, 7]), Ok(vec![6, 7]));
        assert_eq!(admitted(&mut filter, [8]), Ok(vec![8]));
    }

    #[test]
    fn an_aggregate_that_is_finished_in_part_goes_on_where_it_was() {
        let mut aggregator = kcl_aggregation::Aggregator::new(usize::MAX);
        (0..6).for_each(|_| aggregator.add("key", None, "data").unwrap());
        let aggregate = Record::new(5.into(), None, aggregator.finish().unwrap().payload, None);
        let kcl_aggregation::Disaggregated::Aggregate(parts) = kcl_aggregation::disaggregate(aggregate.data(), None, &Default::default())
        else {
            panic!("it is one")
        };
        let parts: Vec<_> = parts.into_iter().map(|part| Record::of_aggregate(&aggregate, part)).collect();
        for (sub, unfinished) in [(3, vec![4, 5]), (0, vec![1, 2, 3, 4, 5]), (5, vec![])] {
            let mut filter = StartFilter::new(&lease(at(5, sub), None));
            assert_eq!(filter.admit(&mut vec![aggregate.clone()], false, NOW, DAY), Ok(()));
            let left: Vec<_> = parts.iter().filter(|part| !filter.is_finished(part)).map(Record::sub_sequence_number).collect();
            assert_eq!(left, unfinished);
        }
    }

    #[test]
    fn what_was_an_aggregate_and_is_none_any_more_comes_again() {
        let mut filter = StartFilter::new(&lease(at(5, 3), None));
        assert_eq!(admitted(&mut filter, [5, 6]), Ok(vec![5, 6]));
    }

    #[test]
    fn without_a_checkpoint_all_is_new() {
        let mut filter = StartFilter::new(&lease(Checkpoint::TrimHorizon, None));
        assert_eq!(admitted(&mut filter, [1, 2]), Ok(vec![1, 2]));
    }

    #[test]
    fn a_checkpoint_inside_of_what_is_no_aggregate_any_more_does_not_cover_it() {
        for (checkpoint, covered) in [(at(4, 9), false), (at(5, 0), true), (at(5, 3), false), (at(6, 2), true), (Checkpoint::Latest, false)]
        {
            assert_eq!(is_covered(ExtendedSequenceNumber::whole(5.into()), false, checkpoint), covered, "{checkpoint}");
        }
    }

    #[test]
    fn a_gap_is_suspected_only_if_records_could_have_been_trimmed_unread() {
        let hour = Duration::from_secs(3600);
        // age of the watermark => gap
        let least = DAY - RETENTION_MARGIN;
        for (age, gap) in [
            (Some(hour), false),
            (Some(23 * hour), false),
            (Some(least), false),
            (Some(least + Duration::from_millis(1)), true),
            (Some(24 * hour), true),
            (Some(48 * hour), true),
            (None, true),
        ] {
            let mut filter = StartFilter::new(&lease(at(5, 0), age));
            let result = admitted(&mut filter, [9]);
            assert_eq!(result.is_err(), gap, "{age:?}");
            if gap {
                filter.accept_gap();
                assert_eq!(admitted(&mut filter, [4, 5, 9]), Ok(vec![9]), "what was finished is not new");
            }
        }
        let mut whole = StartFilter::new(&lease(at(5, 0), Some(48 * hour)));
        assert_eq!(admitted(&mut whole, [5, 9]), Ok(vec![9]), "the checkpoint's own record proves that nothing is gone");
    }

    #[test]
    fn a_record_that_was_there_has_to_come_again() {
        let expecting = |checkpoint| {
            let mut filter = StartFilter::new(&lease(checkpoint, None));
            filter.expect(Some(ExtendedSequenceNumber::whole(7.into())));
            filter
        };
        for checkpoint in [Checkpoint::TrimHorizon, at(5, 0)] {
            for (first, gap) in [(7, false), (6, false), (8, true)] {
                let mut filter = expecting(checkpoint);
                assert_eq!(admitted(&mut filter, []), Ok(vec![]));
                assert_eq!(admitted(&mut filter, [first, 9]).is_err(), gap, "{checkpoint} {first}");
                filter.accept_gap();
                assert_eq!(admitted(&mut filter, [10]), Ok(vec![10]));
                assert_eq!(filter.end(NOW, DAY), Ok(()));
            }
            assert!(expecting(checkpoint).end(NOW, DAY).is_err());
            assert!(expecting(checkpoint).admit(&mut Vec::new(), true, NOW, DAY).is_err());
        }
    }

    #[test]
    fn what_was_expected_is_forgotten_when_it_has_come_or_a_gap_is_accepted() {
        let seven = Some(ExtendedSequenceNumber::whole(7.into()));
        for accepts in [false, true] {
            let mut filter = StartFilter::new(&lease(Checkpoint::TrimHorizon, None));
            filter.expect(seven);
            assert_eq!(filter.expected(), seven);
            if accepts {
                filter.accept_gap();
            } else {
                admitted(&mut filter, [7]).unwrap();
            }
            assert_eq!(filter.expected(), None);
        }
    }

    #[test]
    fn a_refusal_of_the_checkpoint_is_a_gap_until_reading_has_begun() {
        let gap = Some(Gap { first_kept: None });
        assert_eq!(StartFilter::new(&lease(Checkpoint::TrimHorizon, None)).refused(), None, "there is no checkpoint");
        for begun in [&[5][..], &[9]] {
            let mut filter = StartFilter::new(&lease(at(5, 0), Some(Duration::from_secs(3600))));
            assert_eq!(filter.refused(), gap);
            admitted(&mut filter, begun.iter().copied()).unwrap();
            assert_eq!(filter.refused(), None, "{begun:?}");
        }
    }

    #[test]
    fn only_a_record_after_the_checkpoints_own_is_new() {
        let inside = StartFilter::new(&lease(at(5, 3), None));
        let begun = StartFilter::new(&lease(Checkpoint::TrimHorizon, None));
        for (record, is_new) in records([4, 5, 6]).iter().zip([false, false, true]) {
            assert_eq!((inside.is_new(record), begun.is_new(record)), (is_new, true), "{record:?}");
        }
    }

    #[test]
    fn once_a_record_was_let_through_no_gap_is_suspected_however_much_later_the_next_one_comes() {
        let hour = Duration::from_secs(3600);
        let later = Timestamp::from_millis(NOW.as_millis() + millis(48 * hour));
        let mut filter = StartFilter::new(&lease(at(5, 0), Some(hour)));
        assert_eq!(admitted(&mut filter, [9]), Ok(vec![9]));
        for numbers in [vec![], vec![10]] {
            assert_eq!(filter.admit(&mut records(numbers.clone()), true, later, DAY), Ok(()), "{numbers:?}");
        }
        assert_eq!(filter.end(later, DAY), Ok(()));
    }

    #[test]
    fn a_shard_that_ends_unseen_is_a_gap_like_any_other() {
        let hour = Duration::from_secs(3600);
        for (age, gap) in [(Some(hour), false), (Some(48 * hour), true), (None, true)] {
            let mut filter = StartFilter::new(&lease(at(5, 0), age));
            assert_eq!(filter.end(NOW, DAY).is_err(), gap, "{age:?}");
            assert_eq!(admitted(&mut filter, [5]), Ok(vec![]));
            assert_eq!(filter.end(NOW, DAY), Ok(()), "the checkpoint's own record was seen");
        }
        assert_eq!(StartFilter::new(&lease(Checkpoint::TrimHorizon, None)).end(NOW, DAY), Ok(()));
    }

    #[test]
    fn an_empty_shard_is_no_proof_that_nothing_was_trimmed() {
        let hour = Duration::from_secs(3600);
        let at_tip = |filter: &mut StartFilter| filter.admit(&mut Vec::new(), true, NOW, DAY);
        for (checkpoint, age, gap) in [
            (at(5, 0), Some(48 * hour), true),
            (at(5, 0), None, true),
            (at(5, 0), Some(hour), false),
            (Checkpoint::TrimHorizon, Some(48 * hour), true),
            (Checkpoint::TrimHorizon, Some(hour), false),
            (Checkpoint::TrimHorizon, None, false),
        ] {
            let mut filter = StartFilter::new(&lease(checkpoint, age));
            assert_eq!(at_tip(&mut filter).is_err(), gap, "{checkpoint:?} {age:?}");
        }
        let mut seen = StartFilter::new(&lease(at(5, 0), Some(48 * hour)));
        assert_eq!(admitted(&mut seen, [5]), Ok(vec![]));
        assert_eq!(at_tip(&mut seen), Ok(()));
    }

    #[test]
    fn a_lease_without_a_checkpoint_that_was_watched_long_ago_may_have_a_gap() {
        let hour = Duration::from_secs(3600);
        for (checkpoint, age, gap) in [
            (Checkpoint::TrimHorizon, None, false),
            (Checkpoint::TrimHorizon, Some(hour), false),
            (Checkpoint::TrimHorizon, Some(48 * hour), true),
            (Checkpoint::AtTimestamp, None, false),
            (Checkpoint::AtTimestamp, Some(48 * hour), true),
        ] {
            let mut filter = StartFilter::new(&lease(checkpoint, age));
            assert_eq!(filter.end(NOW, DAY).is_err(), gap, "{checkpoint:?} {age:?}");
            assert_eq!(admitted(&mut filter, [9]).is_err(), gap, "{checkpoint:?} {age:?}");
        }
        let begun = Timestamp::from_millis(NOW.as_millis() - millis(48 * hour));
        let latest = Lease { initial_timestamp: Some(begun), ..lease(Checkpoint::Latest, None) };
        assert!(admitted(&mut StartFilter::new(&latest), [9]).is_err(), "all that came since LATEST was resolved is asked for");
    }

    #[test]
    fn a_shard_that_was_watched_meanwhile_has_lost_nothing() {
        let mut filter = StartFilter::new(&lease(at(5, 0), Some(48 * Duration::from_secs(3600))));
        filter.watched_until(NOW);
        assert_eq!(filter.end(NOW, DAY), Ok(()));
        assert_eq!(admitted(&mut filter, [9]), Ok(vec![9]));
    }

    #[test]
    fn sentinels_start_where_the_lease_says() {
        let time = Timestamp::from_millis(7);
        let with_time = |checkpoint| Lease { initial_timestamp: Some(time), ..lease(checkpoint, None) };
        let elsewhere = InitialPosition::AtTimestamp(Timestamp::from_millis(99));
        for (lease, initial, expected) in [
            (with_time(Checkpoint::Latest), InitialPosition::TrimHorizon, StartingPosition::AtTimestamp(time)),
            (with_time(Checkpoint::AtTimestamp), elsewhere, StartingPosition::AtTimestamp(time)),
            (lease(Checkpoint::AtTimestamp, None), elsewhere, StartingPosition::AtTimestamp(Timestamp::from_millis(99))),
            (lease(Checkpoint::AtTimestamp, None), InitialPosition::Latest, StartingPosition::TrimHorizon),
            (lease(Checkpoint::TrimHorizon, None), InitialPosition::Latest, StartingPosition::TrimHorizon),
            (lease(at(5, 3), None), InitialPosition::Latest, StartingPosition::AtSequenceNumber(5u128.into())),
        ] {
            assert_eq!(starting_position(&lease, initial), expected);
        }
    }
}
