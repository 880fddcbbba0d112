//! The contiguous acknowledged prefix: of records delivered in order and finished in any order, how far all are finished.

use std::collections::VecDeque;

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

    proptest! {
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
