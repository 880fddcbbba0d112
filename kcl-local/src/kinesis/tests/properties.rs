//! Random histories of writes, splits, merges, resizings and time: the tree stays whole and every record is read once.

use proptest::prelude::*;

use super::subscriptions::Subscriber;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put { hash_key: u128 },
    Split { shard: prop::sample::Index, at: u128 },
    Merge { shard: prop::sample::Index },
    Resize { target: prop::sample::Index },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<u128>().prop_map(|hash_key| Step::Put { hash_key }),
        2 => (any::<prop::sample::Index>(), any::<u128>()).prop_map(|(shard, at)| Step::Split { shard, at }),
        2 => any::<prop::sample::Index>().prop_map(|shard| Step::Merge { shard }),
        1 => any::<prop::sample::Index>().prop_map(|target| Step::Resize { target }),
        2 => (0_u64..2_000).prop_map(|millis| Step::Wait { millis }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..80)
}

/// Does a step; one that the service would refuse is refused and leaves all as it was.
fn apply(fixture: &Fixture, step: &Step, record: &str) -> Option<PutRecordOutput> {
    let mut open = fixture.list(ShardFilterType::AtLatest, None).unwrap();
    open.sort_by_key(|shard| ranges(std::slice::from_ref(shard)));
    let number_at = |index: usize| number(&open[index].shard_id);
    match step {
        Step::Put { hash_key } => return Some(fixture.put_at(*hash_key, record)),
        Step::Split { shard, at } => {
            let index = shard.index(open.len());
            let (first, last) = ranges(&open)[index];
            let at = first + at % (last - first).max(1);
            let allowed = at > first + 1 && at < last;
            assert_eq!(fixture.split(number_at(index), at).is_ok(), allowed && fixture.status() == StreamStatus::Active);
        }
        Step::Merge { shard } if open.len() > 1 => {
            let index = shard.index(open.len() - 1);
            fixture.merge(number_at(index), number_at(index + 1)).unwrap();
        }
        Step::Resize { target } => {
            let (least, most) = (open.len().div_ceil(2), (open.len() * 2).min(12).max(open.len()));
            let target = least + target.index(most - least + 1);
            fixture.resize(u32::try_from(target).unwrap()).unwrap();
        }
        Step::Wait { millis } => fixture.time.advance(*millis),
        Step::Merge { .. } => {}
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_read_once_in_order_through_any_tree(shards in 1_u32..5, steps in steps()) {
        let fixture = Fixture::new(shards);
        let mut written: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let mut count = 0;
        for (index, step) in steps.iter().enumerate() {
            if let Some(put) = apply(&fixture, step, &index.to_string()) {
                written.entry(number(&put.shard_id)).or_default().push(index.to_string());
                count += 1;
            }
            assert_tiles(&fixture.list(ShardFilterType::AtLatest, None).unwrap());
            assert_tiles(&fixture.list(ShardFilterType::AtTrimHorizon, None).unwrap());
        }
        let read = fixture.read_tree();
        prop_assert_eq!(read.len(), fixture.shards().len(), "every shard is reached from the first ones");
        prop_assert_eq!(read.values().map(Vec::len).sum::<usize>(), count);
        for (shard, records) in read {
            prop_assert_eq!(records, written.remove(&shard).unwrap_or_default());
        }
    }

    #[test]
    fn every_record_is_given_once_in_order_by_subscriptions_that_end_at_random(
        shards in 1_u32..5,
        steps in prop::collection::vec((step(), prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..4)), 1..80),
    ) {
        // Short lives, so that time ends subscriptions too.
        let config = KinesisConfig { resubscribe_ms: 0, heartbeat_ms: 300, subscription_life_ms: 2_500, updating_ms: 0, ..Default::default() };
        let fixture = Fixture::with(config, shards);
        let mut subscriber = Subscriber::new(&fixture);
        let mut written: BTreeMap<u32, Vec<(SequenceNumber, String)>> = BTreeMap::new();
        for (index, (step, pulls)) in steps.iter().enumerate() {
            if let Some(put) = apply(&fixture, step, &index.to_string()) {
                written.entry(number(&put.shard_id)).or_default().push((put.sequence_number, index.to_string()));
            }
            for (shard, leave) in pulls {
                let number = *subscriber.reading.keys().nth(shard.index(subscriber.reading.len())).unwrap();
                subscriber.pull(number);
                if *leave {
                    subscriber.leave(number);
                }
            }
        }
        subscriber.drain();
        prop_assert_eq!(subscriber.read.len(), fixture.shards().len(), "every shard is reached from the first ones");
        subscriber.read.retain(|_, records| !records.is_empty());
        prop_assert_eq!(subscriber.read, written);
    }

    #[test]
    fn numbers_and_lineage_are_sound_in_any_tree(shards in 1_u32..5, steps in steps()) {
        let fixture = Fixture::new(shards);
        let mut last: BTreeMap<String, SequenceNumber> = BTreeMap::new();
        for step in &steps {
            if let Some(put) = apply(&fixture, step, "x") {
                let before = last.insert(put.shard_id, put.sequence_number);
                prop_assert!(before < Some(put.sequence_number));
            }
        }
        let shards = fixture.shards();
        let by_id: BTreeMap<_, _> = shards.iter().map(|shard| (&shard.shard_id, shard)).collect();
        for shard in &shards {
            let range = &shard.sequence_number_range;
            if let Some(last) = last.get(&shard.shard_id) {
                prop_assert!(range.starting_sequence_number < *last);
                prop_assert!(range.ending_sequence_number.is_none_or(|ending| *last <= ending));
            }
            for parent in shard.parent_shard_id.iter().chain(&shard.adjacent_parent_shard_id) {
                let ending = by_id[parent].sequence_number_range.ending_sequence_number;
                prop_assert!(ending.is_some_and(|ending| ending < range.starting_sequence_number));
            }
        }
    }

    #[test]
    fn equal_histories_give_equal_answers(steps in steps()) {
        let run = || {
            let fixture = Fixture::new(2);
            let puts: Vec<_> = steps.iter().filter_map(|step| apply(&fixture, step, "x")).collect();
            (puts, fixture.shards(), fixture.horizon(0))
        };
        prop_assert_eq!(run(), run());
    }
}
