//! The answer in hand: Kinesis records that were read and not yet taken into work, taken apart one by one as they are asked for.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use kcl_aggregation::{BrokenAggregate, Disaggregated, DisaggregatedAll, SubRecords, disaggregate_all};

use kcl_checkpoint::Timestamp;

use super::settings::{Aggregated, Elsewhere};
use crate::record::Record;

/// What comes next.
#[derive(Debug)]
pub(super) enum Item {
    /// A record for the processor.
    Record(Record),
    /// An aggregate that nobody can take apart, as Kinesis gave it.
    Broken(Record, BrokenAggregate),
    /// An aggregate with so many records of other shards, of which nothing is delivered, as configured.
    Dropped(Record, usize),
}

/// Kinesis records in order. At most one aggregate is open at a time: what the others would take is not there yet.
#[derive(Debug)]
pub(super) struct InHand {
    rule: Aggregated,
    /// The shard's hash keys, if its lease tells them.
    range: Option<RangeInclusive<u128>>,
    records: VecDeque<Record>,
    /// What each of the records is, if they are to be taken apart.
    parts: Option<DisaggregatedAll>,
    open: Option<(Record, SubRecords)>,
    /// Records of other shards that were delivered.
    elsewhere: u64,
}

impl InHand {
    pub(super) fn new(rule: Aggregated, range: Option<RangeInclusive<u128>>) -> Self {
        Self { rule, range, records: VecDeque::new(), parts: None, open: None, elsewhere: 0 }
    }

    /// An answer. The one before was taken whole.
    pub(super) fn put(&mut self, records: Vec<Record>) {
        debug_assert!(self.is_empty(), "an answer is put in the hand when that is empty");
        if let Aggregated::TakenApart { rules, .. } = &self.rule {
            // The digests of all are checked at once, which is where the time goes; everything else happens record by record.
            self.parts = Some(disaggregate_all(records.iter().map(|record| record.data().clone()), self.range.as_ref(), rules));
        }
        self.records = records.into();
    }

    /// Puts away what is left.
    pub(super) fn clear(&mut self) {
        (self.records, self.parts, self.open) = (VecDeque::new(), None, None);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.open.is_none()
    }

    /// The arrival of the oldest record that is not taken into work.
    pub(super) fn oldest_arrival(&self) -> Option<Timestamp> {
        let open = self.open.as_ref().map(|(aggregate, _)| aggregate);
        open.or(self.records.front()).and_then(Record::approximate_arrival)
    }

    /// Records that belong to other shards, since this was asked last.
    pub(super) fn take_elsewhere(&mut self) -> u64 {
        std::mem::take(&mut self.elsewhere)
    }

    pub(super) fn next(&mut self) -> Option<Item> {
        loop {
            if let Some((aggregate, sub_records)) = &mut self.open {
                match sub_records.next() {
                    Some(sub_record) => {
                        self.elsewhere += u64::from(sub_record.outside_range);
                        return Some(Item::Record(Record::of_aggregate(aggregate, sub_record)));
                    }
                    None => self.open = None,
                }
            }
            let record = self.records.pop_front()?;
            let Aggregated::TakenApart { elsewhere, .. } = self.rule else { return Some(Item::Record(record)) };
            match self.parts.as_mut().and_then(Iterator::next) {
                None | Some(Disaggregated::NotAggregated) => return Some(Item::Record(record)),
                Some(Disaggregated::Broken(broken)) => return Some(Item::Broken(record, broken)),
                Some(Disaggregated::Aggregate(aggregate)) if elsewhere == Elsewhere::DropAggregate && aggregate.outside_range() > 0 => {
                    return Some(Item::Dropped(record, aggregate.outside_range()));
                }
                Some(Disaggregated::Aggregate(aggregate)) => self.open = Some((record, aggregate.into_iter())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kcl_aggregation::{Aggregator, Rules};

    use super::*;

    fn aggregate(number: u128, keys: &[&str]) -> Record {
        let mut aggregator = Aggregator::new(usize::MAX);
        for (index, key) in keys.iter().enumerate() {
            aggregator.add(key, None, format!("{key}{index}")).unwrap();
        }
        let sealed = aggregator.finish().unwrap();
        Record::new(number.into(), Some("a".into()), sealed.payload, None)
    }

    fn plain(number: u128, data: &str) -> Record {
        Record::new(number.into(), Some("p".into()), Bytes::copy_from_slice(data.as_bytes()), None)
    }

    /// An aggregate with this message: a right envelope around it.
    fn sealed(number: u128, message: &[u8]) -> Record {
        use md5::Digest as _;
        let digest = md5::Md5::digest(message);
        Record::new(number.into(), None, [&[0xF3, 0x89, 0x9A, 0xC2][..], message, &digest].concat().into(), None)
    }

    /// An aggregate without records.
    fn broken(number: u128) -> Record {
        sealed(number, &[0x0a, 1, b'k'])
    }

    fn all(in_hand: &mut InHand) -> Vec<String> {
        let item = |item| match item {
            Item::Record(record) => format!("{} {}", record.position(), String::from_utf8_lossy(record.data())),
            Item::Broken(record, error) => format!("{} broken: {error}", record.position()),
            Item::Dropped(record, elsewhere) => format!("{} dropped, {elsewhere} elsewhere", record.position()),
        };
        std::iter::from_fn(|| in_hand.next()).map(item).collect()
    }

    #[test]
    fn aggregates_come_apart_in_their_place() {
        let mut in_hand = InHand::new(Aggregated::default(), None);
        in_hand.put(vec![plain(1, "one"), aggregate(2, &["x", "y"]), broken(3), plain(4, "four")]);
        assert!(!in_hand.is_empty());
        let broken = "3 broken: the aggregate has no sub-records";
        assert_eq!(all(&mut in_hand), ["1 one", "2 x0", "2/1 y1", broken, "4 four"]);
        assert!(in_hand.is_empty());
    }

    #[test]
    fn the_oldest_arrival_is_that_of_the_record_that_is_taken_apart_or_comes_next() {
        let at = |millis: u64| Some(Timestamp::from_millis(millis));
        let arrived = |record: Record, millis| Record::new(record.sequence_number(), Some("a".into()), record.data().clone(), at(millis));
        let mut in_hand = InHand::new(Aggregated::default(), None);
        assert_eq!(in_hand.oldest_arrival(), None);
        in_hand.put(vec![arrived(aggregate(1, &["x", "y"]), 5), arrived(plain(2, "two"), 7), arrived(plain(3, "three"), 9)]);
        for (item, oldest) in [("", at(5)), ("1 x0", at(5)), ("1/1 y1", at(5)), ("2 two", at(9)), ("3 three", None)] {
            if !item.is_empty() {
                let Some(Item::Record(record)) = in_hand.next() else { panic!("{item} comes next") };
                assert_eq!(format!("{} {}", record.position(), String::from_utf8_lossy(record.data())), item);
            }
            assert_eq!(in_hand.oldest_arrival(), oldest, "{item}");
        }
    }

    #[test]
    fn what_is_put_away_comes_no_more() {
        for taken in 0..4 {
            let mut in_hand = InHand::new(Aggregated::default(), None);
            in_hand.put(vec![plain(1, "one"), aggregate(2, &["x", "y"]), plain(3, "three")]);
            (0..taken).for_each(|_| drop(in_hand.next()));
            in_hand.clear();
            assert!(in_hand.is_empty() && in_hand.next().is_none(), "after {taken}");
            in_hand.put(vec![plain(4, "four")]);
            assert_eq!(all(&mut in_hand), ["4 four"]);
        }
    }

    #[test]
    fn an_odd_key_in_an_aggregate_takes_no_other_record_along() {
        let key = |key: &[u8]| [&[0x0a, u8::try_from(key.len()).unwrap()], key].concat();
        let record = |key: u8, data: u8| [0x1a, 5, 0x08, key, 0x1a, 1, data];
        let tables = [key(b"good"), key(b""), key(&[b'k', 0xff])].concat();
        let records = [record(0, b'a'), record(1, b'b'), record(2, b'c'), record(0, b'd')].concat();
        let mut in_hand = InHand::new(Aggregated::default(), None);
        in_hand.put(vec![sealed(2, &[tables, records].concat()), plain(3, "three")]);
        let mut seen = Vec::new();
        while let Some(item) = in_hand.next() {
            let Item::Record(record) = item else { panic!("{item:?}") };
            seen.push((record.position().to_string(), record.partition_key().map(str::to_owned), record.data().clone()));
        }
        let expected =
            [("2", Some("good"), "a"), ("2/1", Some(""), "b"), ("2/2", None, "c"), ("2/3", Some("good"), "d"), ("3", Some("p"), "three")];
        let expected = expected.map(|(at, key, data)| (at.to_owned(), key.map(str::to_owned), Bytes::from(data)));
        assert_eq!(seen, expected);
    }

    #[test]
    fn as_it_is_means_as_it_is() {
        let mut in_hand = InHand::new(Aggregated::AsIs, None);
        let record = aggregate(2, &["x", "y"]);
        in_hand.put(vec![record.clone()]);
        assert!(matches!(in_hand.next(), Some(Item::Record(given)) if given == record));
    }

    #[test]
    fn records_of_other_shards_are_delivered_and_counted_or_dropped_with_their_aggregate() {
        let (hash, other) = (kcl_aggregation::hash_of("x"), kcl_aggregation::hash_of("y"));
        assert_ne!(hash, other);
        let rule = |elsewhere| Aggregated::TakenApart { rules: Rules::default(), elsewhere };
        let mut in_hand = InHand::new(rule(Elsewhere::Deliver), Some(hash..=hash));
        in_hand.put(vec![aggregate(2, &["x", "y", "y"])]);
        assert_eq!(all(&mut in_hand).len(), 3);
        assert_eq!((in_hand.take_elsewhere(), in_hand.take_elsewhere()), (2, 0));
        let mut in_hand = InHand::new(rule(Elsewhere::DropAggregate), Some(hash..=hash));
        in_hand.put(vec![aggregate(2, &["x", "y", "y"]), aggregate(3, &["x"])]);
        assert_eq!(all(&mut in_hand), ["2 dropped, 2 elsewhere", "3 x0"]);
    }
}
