//! In which order letters are put back: lanes, one for each partition key, each in the order of the stream.

use std::collections::BTreeMap;

use crate::dead_letter::{Envelope, RecordAddress, ToldKey};

/// A letter, and the messages that carry it: more than one if it was sent more than once.
#[derive(Debug)]
pub(super) struct Job<M> {
    pub(super) letter: Envelope,
    pub(super) messages: Vec<M>,
}

/// What is put back one after the other: a stream's key, or a record alone that has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    Key(String, String),
    Alone(RecordAddress),
}

impl Lane {
    pub(super) fn of(letter: &Envelope) -> Self {
        match &letter.partition_key {
            // Told by its hash it is a key all the same: a handler keeps its order.
            ToldKey::Clear(key) | ToldKey::Hashed(key) => Self::Key(letter.record.stream_arn.clone(), key.clone()),
            ToldKey::Omitted | ToldKey::None => Self::Alone(letter.record.clone()),
        }
    }
}

/// Letters by their identity, each once.
///
/// Sequence numbers of a stream grow from parents to children: within a key they are the order, whatever the shard.
pub(super) fn jobs<M>(
    letters: impl IntoIterator<Item = (Envelope, M)>,
    identity: impl Fn(&Envelope) -> (RecordAddress, String),
) -> Vec<Job<M>> {
    let mut jobs: BTreeMap<(RecordAddress, String), Job<M>> = BTreeMap::new();
    for (letter, message) in letters {
        jobs.entry(identity(&letter)).or_insert_with(|| Job { letter, messages: Vec::new() }).messages.push(message);
    }
    let mut jobs: Vec<_> = jobs.into_values().collect();
    jobs.sort_by(|one, other| order(&one.letter.record).cmp(&order(&other.letter.record)));
    jobs
}

fn order(record: &RecordAddress) -> impl Ord + '_ {
    (&record.stream_arn, record.stream_created, record.sequence_number, record.sub_sequence_number)
}

/// The jobs by their lanes, each lane in the jobs' order.
pub(super) fn lanes<M>(jobs: Vec<Job<M>>) -> Vec<(Lane, Vec<Job<M>>)> {
    let mut lanes: BTreeMap<Lane, Vec<Job<M>>> = BTreeMap::new();
    for job in jobs {
        lanes.entry(Lane::of(&job.letter)).or_default().push(job);
    }
    lanes.into_iter().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use kcl_checkpoint::Timestamp;

    use super::*;
    use crate::dead_letter::Payload;

    pub(in crate::redrive) fn letter(number: u128, key: &str) -> Envelope {
        let now = Timestamp::from_millis(1_573_691_884_835);
        Envelope {
            record: RecordAddress {
                stream_arn: "arn:aws:kinesis:us-east-2:123456789012:stream/orders".into(),
                stream_created: now,
                shard_id: "shardId-000000000001".into(),
                sequence_number: number.into(),
                sub_sequence_number: 0,
            },
            aggregated: false,
            partition_key: ToldKey::Clear(key.into()),
            explicit_hash_key: None,
            approximate_arrival: None,
            payload: Payload::Inside(number.to_string().into()),
            error_kind: "poison".into(),
            error_message: "no order".into(),
            error_chain: Vec::new(),
            condition: "RetryAttemptsExhausted".into(),
            attempts: 1,
            first_failure: now,
            last_failure: now,
            application: "orders-app".into(),
            worker: "worker".into(),
            fencing_token: 1,
        }
    }

    #[test]
    fn a_lane_is_a_key_in_the_order_of_the_stream_and_each_record_is_there_once() {
        let mut of_child = letter(5, "a");
        of_child.record.shard_id = "shardId-000000000000".into();
        let mut alone = letter(2, "");
        alone.partition_key = ToldKey::None;
        let letters = [(letter(9, "a"), 0), (letter(3, "b"), 1), (of_child, 2), (letter(4, "a"), 3), (letter(9, "a"), 4), (alone, 5)];
        let lanes = lanes(jobs(letters, |letter| (letter.record.clone(), String::new())));
        let messages: Vec<Vec<_>> = lanes.iter().map(|(_, jobs)| jobs.iter().map(|job| job.messages.clone()).collect()).collect();
        assert_eq!(messages, [vec![vec![3], vec![2], vec![0, 4]], vec![vec![1]], vec![vec![5]]]);
    }
}
