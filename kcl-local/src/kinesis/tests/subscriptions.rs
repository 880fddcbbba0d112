//! SubscribeToShard, and what subscribers get.

use super::*;
use ShardIteratorType::{AfterSequenceNumber, AtSequenceNumber, AtTimestamp, Latest, TrimHorizon};

/// Reads a stream's tree by subscriptions of one consumer, children after all of their parents.
pub(super) struct Subscriber<'a> {
    fixture: &'a Fixture,
    arn: String,
    /// Those not yet at their end, with the subscription that lasts and where the next one begins.
    pub(super) reading: BTreeMap<u32, (Option<SubscriptionId>, Option<SequenceNumber>)>,
    /// Every record by shard, in the order that they came.
    pub(super) read: BTreeMap<u32, Vec<(SequenceNumber, String)>>,
}

impl<'a> Subscriber<'a> {
    pub(super) fn new(fixture: &'a Fixture) -> Self {
        let roots = fixture.ids(ShardFilterType::AtTrimHorizon, None);
        let reading = roots.into_iter().map(|number| (number, (None, None))).collect();
        Self { fixture, arn: fixture.register("subscriber"), reading, read: BTreeMap::new() }
    }

    /// Subscribes if it isn't, and takes one event. Whether it was to wait.
    pub(super) fn pull(&mut self, number: u32) -> bool {
        let (subscription, continuation) = self.reading[&number];
        let id = subscription.unwrap_or_else(|| {
            let after = continuation.map(|number| number.to_string());
            let kind = if after.is_some() { AfterSequenceNumber } else { TrimHorizon };
            self.fixture.subscribe(&self.arn, number, kind, after.as_deref()).unwrap()
        });
        let event = match self.fixture.kinesis.next_event(id) {
            NextEvent::Event(event) => event,
            NextEvent::Wait { .. } => {
                self.reading.insert(number, (Some(id), continuation));
                return true;
            }
            NextEvent::Ended => {
                self.leave(number);
                return false;
            }
            NextEvent::Failed(error) => panic!("{error}"),
        };
        let numbers = event.records.iter().map(|record| record.sequence_number);
        self.read.entry(number).or_default().extend(numbers.zip(texts(&event.records)));
        if event.continuation_sequence_number.is_some() {
            assert_eq!(event.child_shards, []);
            self.reading.insert(number, (Some(id), event.continuation_sequence_number));
            return false;
        }
        self.reading.remove(&number);
        assert_eq!(self.fixture.kinesis.next_event(id), NextEvent::Ended);
        for child in event.child_shards {
            // The last parent to end brings the child.
            let ended = |parent: &String| {
                let parent = self::number(parent);
                self.read.contains_key(&parent) && !self.reading.contains_key(&parent)
            };
            if child.parent_shards.iter().all(ended) {
                assert!(!self.read.contains_key(&self::number(&child.shard_id)), "no shard is reached twice");
                self.reading.insert(self::number(&child.shard_id), (None, None));
            }
        }
        false
    }

    pub(super) fn leave(&mut self, number: u32) {
        if let Some((Some(id), continuation)) = self.reading.get(&number).copied() {
            self.fixture.kinesis.end_subscription(id);
            self.reading.insert(number, (None, continuation));
        }
    }

    /// Reads until there is nothing left but to wait.
    pub(super) fn drain(&mut self) {
        let mut progress = true;
        while progress {
            let numbers: Vec<u32> = self.reading.keys().copied().collect();
            progress = numbers.into_iter().filter(|number| !self.pull(*number)).count() > 0;
        }
    }
}

/// How many subscriptions the model holds.
fn held(fixture: &Fixture) -> usize {
    let text = fixture.kinesis.with(|model, _| format!("{model:?}"));
    let (_, count) = text.split_once("subscriptions: ").unwrap();
    count.split(',').next().unwrap().parse().unwrap()
}

#[track_caller]
fn failed(fixture: &Fixture, id: SubscriptionId, code: ErrorCode) -> String {
    let next = fixture.kinesis.next_event(id);
    let NextEvent::Failed(error) = next else { panic!("{next:?}") };
    assert_eq!(error.code, code, "{error}");
    assert_eq!(fixture.kinesis.next_event(id), NextEvent::Ended, "nothing is left");
    error.message
}

fn one_shard(config: KinesisConfig) -> (Fixture, String) {
    let fixture = Fixture::with(config, 1);
    let arn = fixture.register("billing");
    (fixture, arn)
}

/// Without the wait between subscriptions.
fn eager() -> KinesisConfig {
    KinesisConfig { resubscribe_ms: 0, ..Default::default() }
}

#[test]
fn the_backlog_comes_first_then_records_as_they_are_written() {
    let (fixture, arn) = one_shard(KinesisConfig::default());
    fixture.put("key", "0");
    let put = fixture.put("key", "1");
    let id = fixture.subscribe(&arn, 0, TrimHorizon, None).unwrap();
    let event = fixture.event(id);
    assert_eq!((texts(&event.records), event.millis_behind_latest), (vec!["0".to_owned(), "1".to_owned()], 0));
    assert_eq!(event.continuation_sequence_number, Some(put.sequence_number));
    assert_eq!(fixture.waits(id), 5_000);
    fixture.time.advance(10);
    let put = fixture.put("key", "2");
    let event = fixture.event(id);
    assert_eq!((texts(&event.records), event.continuation_sequence_number), (vec!["2".to_owned()], Some(put.sequence_number)));
    assert_eq!(fixture.waits(id), 5_010);
}

#[test]
fn silence_is_broken_by_empty_events_until_the_time_is_over() {
    let (fixture, arn) = one_shard(KinesisConfig { subscription_life_ms: 12_000, ..Default::default() });
    let id = fixture.subscribe(&arn, 0, Latest, None).unwrap();
    let first = fixture.event(id);
    assert_eq!((first.records.len(), first.millis_behind_latest, first.child_shards.len()), (0, 0, 0));
    for until in [5_000, 10_000, 12_000] {
        assert_eq!(fixture.waits(id), until);
        let now = fixture.kinesis.with(|_, now| now) - START;
        fixture.time.advance(until - now - 1);
        assert_eq!(fixture.waits(id), until);
        fixture.time.advance(1);
        if until < 12_000 {
            assert_eq!(fixture.event(id), first);
        }
    }
    fixture.put("key", "too late");
    assert_eq!((fixture.kinesis.next_event(id), held(&fixture)), (NextEvent::Ended, 0));
    let id = fixture.subscribe(&arn, 0, AfterSequenceNumber, Some(&first.continuation_sequence_number.unwrap().to_string())).unwrap();
    assert_eq!(texts(&fixture.event(id).records), ["too late"]);
}

#[test]
fn the_five_starting_positions() {
    let (fixture, arn) = one_shard(eager());
    let put = |index: u32| {
        let number = fixture.put("key", &index.to_string()).sequence_number.to_string();
        fixture.time.advance(1_000);
        number
    };
    let numbers: Vec<String> = (0..10).map(put).collect();
    let all: Vec<String> = (0..10).map(|index| index.to_string()).collect();
    let from = |kind, number: Option<&str>| texts(&fixture.event(fixture.subscribe(&arn, 0, kind, number).unwrap()).records);
    let at_time = |time| {
        let starting_position = StartingPosition { position_type: AtTimestamp, timestamp: Some(time), ..Default::default() };
        let input = SubscribeToShardInput { consumer_arn: arn.clone(), shard_id: shard(0), starting_position };
        fixture.kinesis.call(input).map(|id| texts(&fixture.event(id).records))
    };
    assert_eq!(from(TrimHorizon, None), all);
    assert_eq!(from(Latest, None), Vec::<String>::new());
    for index in [0, 4, 9] {
        assert_eq!(from(AtSequenceNumber, Some(&numbers[index])), all[index..]);
        assert_eq!(from(AfterSequenceNumber, Some(&numbers[index])), all[index + 1..]);
        assert_eq!(at_time(START + 1_000 * index as u64).unwrap(), all[index..]);
    }
    let start = fixture.shards()[0].sequence_number_range.starting_sequence_number.to_string();
    for kind in [AtSequenceNumber, AfterSequenceNumber] {
        assert_eq!(from(kind, Some(&start)), all);
    }

    refused(at_time(START + 10_001), ErrorCode::InvalidArgument);
    refused(fixture.subscribe(&arn, 0, AtTimestamp, None), ErrorCode::InvalidArgument);
    refused(fixture.subscribe(&arn, 0, AfterSequenceNumber, None), ErrorCode::InvalidArgument);
    refused(fixture.subscribe(&arn, 0, TrimHorizon, Some(&numbers[0])), ErrorCode::InvalidArgument);
    refused(fixture.subscribe(&arn, 1, Latest, None), ErrorCode::ResourceNotFound);
    fixture.split(0, 1 << 127).unwrap();
    let message = refused(fixture.subscribe(&arn, 1, AtSequenceNumber, Some(&numbers[0])), ErrorCode::InvalidArgument);
    assert!(message.starts_with("Invalid StartingSequenceNumber. It encodes shardId-000000000000, while"), "{message}");
    let message = refused(fixture.subscribe(&arn, 1, AtSequenceNumber, Some("17")), ErrorCode::InvalidArgument);
    assert!(message.contains("used in SubscribeToShard on shard shardId-000000000001"), "{message}");
}

#[test]
fn a_continuation_loses_and_repeats_nothing_wherever_it_began() {
    let (fixture, arn) = one_shard(eager());
    let continuation = |kind, number: Option<&str>| {
        let event = fixture.event(fixture.subscribe(&arn, 0, kind, number).unwrap());
        assert_eq!(event.records, []);
        event.continuation_sequence_number.unwrap().to_string()
    };
    let after = |number: &str| {
        assert!(fixture.subscribe(&arn, 0, AtSequenceNumber, Some(number)).is_ok());
        let records = fixture.event(fixture.subscribe(&arn, 0, AfterSequenceNumber, Some(number)).unwrap()).records;
        assert_eq!(texts(&records), fixture.read(&fixture.iterator(0, AfterSequenceNumber, Some(number)).unwrap()));
        texts(&records)
    };
    // Nothing was ever written; then one record; then that one was trimmed, and another, and a third before and after.
    let fresh = [continuation(TrimHorizon, None), continuation(Latest, None)];
    assert_eq!(fresh[0], fixture.shards()[0].sequence_number_range.starting_sequence_number.to_string());
    let first = fixture.put("key", "0").sequence_number.to_string();
    for number in &fresh {
        assert_eq!(after(number), ["0"]);
    }
    let tip = continuation(Latest, None);
    assert_eq!(tip, first);
    fixture.time.advance(25 * HOUR);
    let trimmed = [continuation(TrimHorizon, None), continuation(Latest, None), continuation(AtSequenceNumber, Some(&first))];
    fixture.put("key", "1");
    for number in trimmed.iter().chain(&fresh).chain([&tip]) {
        assert_eq!(after(number), ["1"]);
    }
    let tip = continuation(Latest, None);
    fixture.time.advance(25 * HOUR);
    fixture.put("key", "2");
    for number in trimmed.iter().chain(&fresh).chain([&tip]) {
        assert_eq!(after(number), ["2"]);
    }
}

#[test]
fn records_trimmed_in_mid_subscription_are_passed_over() {
    let (fixture, arn) = one_shard(KinesisConfig { subscription_life_ms: 100 * HOUR, ..Default::default() });
    let id = fixture.subscribe(&arn, 0, TrimHorizon, None).unwrap();
    let first = fixture.event(id).continuation_sequence_number;
    fixture.put("key", "0");
    fixture.time.advance(25 * HOUR);
    assert_eq!(fixture.event(id).continuation_sequence_number, first);
    fixture.put("key", "1");
    assert_eq!(texts(&fixture.event(id).records), ["1"]);
}

#[test]
fn a_subscription_is_taken_over_after_five_seconds_and_not_before() {
    let fixture = Fixture::new(2);
    let (arn, other) = (fixture.register("billing"), fixture.register("other"));
    let first = fixture.subscribe(&arn, 0, Latest, None).unwrap();
    let next_door = fixture.subscribe(&arn, 1, Latest, None).unwrap();
    let neighbour = fixture.subscribe(&other, 0, Latest, None).unwrap();
    fixture.event(first);
    fixture.time.advance(4_999);
    let message = refused(fixture.subscribe(&arn, 0, Latest, None), ErrorCode::ResourceInUse);
    assert_eq!(message, "Another active subscription exists for this consumer: 000000000000:orders:billing");
    assert_eq!(fixture.waits(first), 5_000, "it wasn't disturbed");
    // A refused one begins no new wait.
    fixture.time.advance(1);
    let second = fixture.subscribe(&arn, 0, Latest, None).unwrap();
    let message = failed(&fixture, first, ErrorCode::ResourceInUse);
    assert_eq!(message, "Another active subscription exists for this consumer: 000000000000:orders:billing");
    for id in [second, next_door, neighbour] {
        fixture.event(id);
    }
    // Also when the subscriber has left.
    fixture.kinesis.end_subscription(second);
    fixture.kinesis.end_subscription(second);
    refused(fixture.subscribe(&arn, 0, Latest, None), ErrorCode::ResourceInUse);
    assert_eq!(held(&fixture), 2);
    fixture.time.advance(5_000);
    fixture.subscribe(&arn, 0, Latest, None).unwrap();
}

#[test]
fn subscribers_that_never_come_back_are_forgotten() {
    let (fixture, arn) = one_shard(KinesisConfig::default());
    for _ in 0..200 {
        fixture.subscribe(&arn, 0, Latest, None).unwrap();
        fixture.time.advance(5_000);
    }
    assert_eq!(held(&fixture), 60, "those of the last five minutes");
}

#[test]
fn a_split_in_mid_subscription_tells_the_children_with_or_after_the_last_records() {
    let fixture = Fixture::with(KinesisConfig { updating_ms: 1_000, ..Default::default() }, 1);
    let [prompt, late] = ["prompt", "late"].map(|name| fixture.register(name));
    let prompt = fixture.subscribe(&prompt, 0, Latest, None).unwrap();
    let late = fixture.subscribe(&late, 0, Latest, None).unwrap();
    fixture.event(prompt);
    fixture.event(late);
    fixture.split(0, 1 << 127).unwrap();
    assert_eq!(fixture.waits(prompt), 1_000, "the change is due before the heartbeat");
    fixture.put("key", "last");
    let event = fixture.event(prompt);
    assert_eq!((texts(&event.records), event.child_shards.len()), (vec!["last".to_owned()], 0));
    fixture.time.advance(1_000);
    let expected: Vec<ChildShard> = [(1, 0_u128, (1_u128 << 127) - 1), (2, 1_u128 << 127, u128::MAX)]
        .into_iter()
        .map(|(number, first, last)| ChildShard {
            shard_id: shard(number),
            parent_shards: vec![shard(0)],
            hash_key_range: HashKeyRange { starting_hash_key: first.to_string(), ending_hash_key: last.to_string() },
        })
        .collect();
    for (id, records) in [(prompt, vec![]), (late, vec!["last".to_owned()])] {
        let event = fixture.event(id);
        assert_eq!((texts(&event.records), event.continuation_sequence_number, event.millis_behind_latest), (records, None, 0));
        assert_eq!(event.child_shards, expected);
        assert_eq!(fixture.kinesis.next_event(id), NextEvent::Ended);
    }
    assert_eq!(held(&fixture), 0);
}

#[test]
fn a_closed_shard_that_is_subscribed_at_its_end_tells_its_children_at_once() {
    let fixture = Fixture::with(eager(), 2);
    let arn = fixture.register("billing");
    let last = fixture.put_at(0, "x").sequence_number.to_string();
    fixture.merge(0, 1).unwrap();
    let ending = fixture.shards()[0].sequence_number_range.ending_sequence_number.unwrap().to_string();
    for (kind, number) in
        [(Latest, None), (AfterSequenceNumber, Some(&last)), (AfterSequenceNumber, Some(&ending)), (AtSequenceNumber, Some(&ending))]
    {
        let id = fixture.subscribe(&arn, 0, kind, number.map(String::as_str)).unwrap();
        let event = fixture.event(id);
        assert_eq!((event.records.len(), event.continuation_sequence_number), (0, None));
        assert_eq!(event.child_shards[0].parent_shards, [shard(0), shard(1)]);
        assert_eq!(fixture.kinesis.next_event(id), NextEvent::Ended);
    }
    // One that outlives its shard's retention ends as usual; a new one isn't begun.
    fixture.kinesis.with(|model, _| model.config_mut().subscription_life_ms = 100 * HOUR);
    let id = fixture.subscribe(&arn, 0, TrimHorizon, None).unwrap();
    fixture.time.advance(25 * HOUR);
    refused(fixture.subscribe(&arn, 0, TrimHorizon, None), ErrorCode::ResourceNotFound);
    assert_eq!(fixture.event(id).child_shards.len(), 1);
}

#[test]
fn subscriptions_end_with_their_consumer_and_with_their_stream() {
    for config in [eager(), KinesisConfig { consumer_deleting_ms: 1_000, deleting_ms: 1_000, ..eager() }] {
        let fixture = Fixture::with(config, 1);
        let [first, second, third] = ["first", "second", "third"].map(|name| fixture.register(name));
        let [one, two, three] = [&first, &second, &third].map(|arn| fixture.subscribe(arn, 0, Latest, None).unwrap());
        fixture.deregister(&first).unwrap();
        failed(&fixture, one, ErrorCode::ResourceNotFound);
        fixture.event(two);
        let delete = DeleteStreamInput { stream_name: orders(), enforce_consumer_deletion: Some(true), ..Default::default() };
        fixture.kinesis.call(delete).unwrap();
        failed(&fixture, two, ErrorCode::ResourceNotFound);
        // A stream of the same name with a consumer of the same name is not the one that was subscribed to.
        fixture.time.advance(1_000);
        fixture.create("orders", 1).unwrap();
        fixture.register("third");
        failed(&fixture, three, ErrorCode::ResourceNotFound);
        assert_eq!(held(&fixture), 0);
    }
}

#[test]
fn an_event_has_at_most_one_mebibyte_and_ten_thousand_records_but_one_record_of_any_size() {
    let (fixture, arn) = one_shard(eager());
    let size = UpdateMaxRecordSizeInput { stream_name: orders(), max_record_size_in_kib: 10_240, ..Default::default() };
    fixture.kinesis.call(size).unwrap();
    let id = fixture.subscribe(&arn, 0, TrimHorizon, None).unwrap();
    let mib = 1_024 * 1_024;
    for bytes in [10 * mib - 1, mib / 2, mib / 2 - 2, 1] {
        let input = PutRecordInput { stream_name: orders(), data: vec![0; bytes].into(), partition_key: "k".into(), ..Default::default() };
        fixture.kinesis.call(input).unwrap();
        fixture.time.advance(1);
    }
    let behind = [3, 1, 0];
    for (count, behind) in [1, 2, 1].into_iter().zip(behind) {
        let event = fixture.event(id);
        assert_eq!((event.records.len(), event.millis_behind_latest), (count, behind));
    }
    for _ in 0..21 {
        let records = vec![PutRecordsEntry { partition_key: "k".into(), ..Default::default() }; 500];
        fixture.kinesis.call(PutRecordsInput { stream_name: orders(), records, ..Default::default() }).unwrap();
    }
    assert_eq!([fixture.event(id).records.len(), fixture.event(id).records.len()], [10_000, 500]);
}

#[test]
fn limits_hold_for_each_subscription_and_each_consumer() {
    let fixture = Fixture::with(KinesisConfig { enforce_read_limits: true, ..eager() }, 1);
    let [first, second] = ["first", "second"].map(|name| fixture.register(name));
    for _ in 0..16 {
        fixture.put("key", &"x".repeat(500_000));
    }
    let [one, two] = [&first, &second].map(|arn| fixture.subscribe(arn, 0, TrimHorizon, None).unwrap());
    // 2 MiB at once are two events of 1,000,006 bytes.
    for id in [one, one, two, two] {
        assert_eq!(fixture.event(id).records.len(), 2);
    }
    let until = fixture.waits(one);
    assert!((400..500).contains(&until), "{until}");
    fixture.time.advance(until - 1);
    assert_eq!(fixture.waits(one), until);
    fixture.time.advance(1);
    let event = fixture.event(one);
    assert_eq!((event.records.len(), event.millis_behind_latest), (2, until));
    fixture.waits(one);

    for _ in 0..5 {
        fixture.time.advance(1_000);
        fixture.event(two);
    }
    for _ in 0..5 {
        fixture.subscribe(&second, 0, Latest, None).unwrap();
    }
    refused(fixture.subscribe(&second, 0, Latest, None), ErrorCode::LimitExceeded);
    fixture.subscribe(&first, 0, Latest, None).unwrap();
    fixture.time.advance(200);
    fixture.subscribe(&second, 0, Latest, None).unwrap();
}

#[test]
fn silence_for_want_of_throughput_is_broken_too() {
    let (fixture, arn) = one_shard(KinesisConfig { enforce_read_limits: true, heartbeat_ms: 1_000, ..Default::default() });
    let size = UpdateMaxRecordSizeInput { stream_name: orders(), max_record_size_in_kib: 10_240, ..Default::default() };
    fixture.kinesis.call(size).unwrap();
    fixture.put("k", &"x".repeat(10 * 1_024 * 1_024 - 1));
    fixture.put("k", "y");
    let id = fixture.subscribe(&arn, 0, TrimHorizon, None).unwrap();
    let large = fixture.event(id);
    assert_eq!(large.records.len(), 1);
    for _ in 0..4 {
        assert_eq!(fixture.waits(id) + START, fixture.kinesis.with(|_, now| now) + 1_000);
        fixture.time.advance(1_000);
        let event = fixture.event(id);
        assert_eq!((event.records.len(), event.continuation_sequence_number), (0, large.continuation_sequence_number));
        assert!(event.millis_behind_latest > 0);
    }
    fixture.time.advance(1);
    assert_eq!(texts(&fixture.event(id).records), ["y"]);
}

#[test]
fn latest_then_put_loses_none() {
    let (fixture, arn) = one_shard(eager());
    for index in 0..300 {
        let id = fixture.subscribe(&arn, 0, Latest, None).unwrap();
        fixture.put("key", &index.to_string());
        assert_eq!(texts(&fixture.event(id).records), [index.to_string()]);
    }
}
