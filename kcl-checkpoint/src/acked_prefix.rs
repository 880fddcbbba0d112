//! The contiguous acknowledged prefix: of records delivered in order and finished in any order, how far all are finished.

use std::collections::VecDeque;

use crate::finished_beyond::{FinishedBeyond, MOST_OPEN};
use crate::planted::{Bug, is_planted};
use crate::sequence_number::ExtendedSequenceNumber;

/// Tracks delivered records until all before them are finished too.
///
/// Memory grows with the records between the oldest unfinished one and the newest delivered one; whoever delivers bounds that.
#[derive(Clone, Debug, Default)]
pub struct AckedPrefix {
    /// Records beyond the prefix in the order of delivery, and whether each is finished. The first is never finished.
    open: VecDeque<(ExtendedSequenceNumber, bool)>,
    acked: Option<ExtendedSequenceNumber>,
}

impl AckedPrefix {
    /// Notes a record as delivered and not yet finished. Records come in the order of the shard.
    ///
    /// A record at or below one that was delivered before is no news and changes nothing: a retry of a record in work must not
    /// make it count twice.
    pub fn deliver(&mut self, record: ExtendedSequenceNumber) {
        if self.delivered().is_none_or(|last| last < record) {
            self.open.push_back((record, false));
        }
    }

    /// Notes a delivered record as finished and returns whether the prefix grew.
    ///
    /// A record that was never delivered, or is finished already, changes nothing.
    pub fn ack(&mut self, record: ExtendedSequenceNumber) -> bool {
        let Ok(index) = self.open.binary_search_by_key(&record, |(open, _)| *open) else { return false };
        self.open[index].1 = true;
        if is_planted(Bug::AggregateFinishedWhole) {
            let of_the_same = |open: &&mut (ExtendedSequenceNumber, bool)| open.0.sequence_number == record.sequence_number;
            self.open.iter_mut().filter(of_the_same).for_each(|open| open.1 = true);
        }
        let mut grew = false;
        while let Some((first, true)) = self.open.front() {
            self.acked = Some(*first);
            self.open.pop_front();
            grew = true;
        }
        grew
    }

    /// The last record of the prefix: it and all delivered before it are finished. `None` while there is none.
    #[must_use]
    pub fn acked(&self) -> Option<ExtendedSequenceNumber> {
        self.acked
    }

    /// The newest record that was delivered, finished or not.
    #[must_use]
    pub fn delivered(&self) -> Option<ExtendedSequenceNumber> {
        self.open.back().map(|(record, _)| *record).or(self.acked)
    }

    /// The oldest record that is delivered and not finished.
    #[must_use]
    pub fn oldest_open(&self) -> Option<ExtendedSequenceNumber> {
        self.open.front().map(|(record, _)| *record)
    }

    /// Records between the oldest unfinished one and the newest delivered one, both included.
    #[must_use]
    pub fn span(&self) -> usize {
        self.open.len()
    }

    /// Returns up to where all would be finished if these records were, which are in work, in order:
    /// for the first of them, the first two, and so on. `None`: nothing is, and would be.
    #[must_use]
    pub fn acked_with(&self, in_work: impl IntoIterator<Item = ExtendedSequenceNumber>) -> Vec<Option<ExtendedSequenceNumber>> {
        let (mut open, mut reached) = (self.open.iter().peekable(), self.acked);
        let mut reach = |record: ExtendedSequenceNumber| {
            while let Some((next, _)) = open.next_if(|(next, is_finished)| *is_finished || *next == record) {
                reached = Some(*next);
            }
            reached
        };
        in_work.into_iter().map(&mut reach).collect()
    }

    /// What is finished beyond the prefix, as far as it can be noted, without a base; `None`: nothing is.
    #[must_use]
    pub fn finished_beyond(&self) -> Option<FinishedBeyond> {
        let (mut open, mut until) = (Vec::new(), None);
        for (record, finished) in &self.open {
            if *finished {
                until = Some((*record, open.len()));
            } else if open.len() == MOST_OPEN {
                break;
            } else {
                open.push(*record);
            }
        }
        let (until, before) = until?;
        // What is open after the last finished one goes without saying.
        open.truncate(before);
        Some(FinishedBeyond { base: None, until, open })
    }

    /// Whether every delivered record is finished.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(number: u128) -> ExtendedSequenceNumber {
        ExtendedSequenceNumber::whole(number.into())
    }

    #[test]
    fn a_finished_record_waits_for_those_before_it() {
        let mut prefix = AckedPrefix::default();
        (1..=4).for_each(|n| prefix.deliver(record(n)));
        assert!(!prefix.ack(record(3)));
        assert_eq!(prefix.acked(), None);
        assert!(prefix.ack(record(1)));
        assert_eq!(prefix.acked(), Some(record(1)));
        assert!(prefix.ack(record(2)));
        assert_eq!((prefix.acked(), prefix.oldest_open()), (Some(record(3)), Some(record(4))));
        assert!(!prefix.is_complete());
    }

    #[test]
    fn an_unknown_or_repeated_acknowledgement_changes_nothing() {
        let mut prefix = AckedPrefix::default();
        prefix.deliver(record(5));
        assert!(!prefix.ack(record(4)));
        assert!(!prefix.ack(record(6)));
        assert!(prefix.ack(record(5)));
        assert!(!prefix.ack(record(5)));
        assert_eq!(prefix.acked(), Some(record(5)));
    }

    #[test]
    fn a_record_delivered_again_counts_once() {
        let mut prefix = AckedPrefix::default();
        prefix.deliver(record(1));
        prefix.deliver(record(2));
        prefix.deliver(record(1));
        prefix.ack(record(1));
        prefix.deliver(record(1));
        prefix.ack(record(2));
        assert!(prefix.is_complete());
        assert_eq!(prefix.acked(), Some(record(2)));
    }

    #[test]
    fn the_span_goes_from_the_oldest_unfinished_record_to_the_newest_delivered_one() {
        let mut prefix = AckedPrefix::default();
        assert_eq!(prefix.span(), 0);
        for (delivered, span) in [(1, 1), (2, 2), (2, 2), (1, 2), (3, 3)] {
            prefix.deliver(record(delivered));
            assert_eq!(prefix.span(), span, "after the delivery of {delivered}");
        }
        for (finished, span) in [(2, 3), (1, 1), (3, 0)] {
            prefix.ack(record(finished));
            assert_eq!(prefix.span(), span, "after the end of {finished}");
        }
    }

    #[test]
    fn records_in_work_reach_as_far_as_nothing_else_is_open() {
        let mut prefix = AckedPrefix::default();
        (1..=6).for_each(|n| prefix.deliver(record(n)));
        prefix.ack(record(1));
        prefix.ack(record(3));
        for (in_work, reached) in [
            (&[2u128, 4][..], &[3, 4][..]),
            (&[2], &[3]),
            (&[4, 5], &[1, 1]),
            (&[], &[]),
            (&[2, 5, 6], &[3, 3, 3]),
            (&[2, 4, 5, 6], &[3, 4, 5, 6]),
        ] {
            let reached: Vec<_> = reached.iter().map(|n: &u128| Some(record(*n))).collect();
            assert_eq!(prefix.acked_with(in_work.iter().map(|n| record(*n))), reached, "{in_work:?}");
        }
        assert_eq!(AckedPrefix::default().acked_with([record(1)]), [None]);
    }

    #[test]
    fn what_is_finished_beyond_the_prefix_is_noted_as_far_as_it_may() {
        let mut prefix = AckedPrefix::default();
        (1..=100).for_each(|n| prefix.deliver(record(n)));
        assert_eq!(prefix.finished_beyond(), None);
        for n in [1, 2, 4, 6, 7] {
            prefix.ack(record(n));
        }
        let note = prefix.finished_beyond().unwrap();
        assert_eq!((note.until, note.open), (record(7), vec![record(3), record(5)]));
        // every second one is open: the note ends with the last finished one before the open ones are too many
        (8..=100).filter(|n| n % 2 == 0).for_each(|n| {
            prefix.ack(record(n));
        });
        let note = prefix.finished_beyond().unwrap();
        assert_eq!(note.open.len(), MOST_OPEN);
        assert_eq!((note.until, note.open[MOST_OPEN - 1]), (record(44), record(43)));
    }

    proptest! {
        #[test]
        fn the_note_says_the_truth(finish in Just((0u128..80).collect::<Vec<_>>()).prop_shuffle(), count in 0usize..80) {
            let mut prefix = AckedPrefix::default();
            (0..80).for_each(|n| prefix.deliver(record(n)));
            let finished = &finish[..count];
            finished.iter().for_each(|n| { prefix.ack(record(*n)); });
            if let Some(note) = prefix.finished_beyond() {
                let beyond = (0..80).map(record).filter(|r| Some(*r) > prefix.acked());
                for r in beyond.filter(|r| note.covers(*r, false)) {
                    prop_assert!(finished.iter().any(|n| record(*n) == r), "{r}");
                }
            }
        }

        #[test]
        fn the_prefix_is_what_a_plain_count_says(finish in Just((0u128..40).collect::<Vec<_>>()).prop_shuffle(), count in 0usize..40) {
            let mut prefix = AckedPrefix::default();
            (0..40).for_each(|n| prefix.deliver(record(n)));
            let finished = &finish[..count];
            finished.iter().for_each(|n| { prefix.ack(record(*n)); });
            let expected = (0..40).take_while(|n| finished.contains(n)).last();
            prop_assert_eq!(prefix.acked(), expected.map(record));
        }
    }
}
