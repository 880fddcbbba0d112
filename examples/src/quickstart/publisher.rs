//! The publisher: all records of the source, spread over the time of the run, each key's in their order.
//!
//! PutRecords may accept some records of a call and refuse others. If a call carried two records of one key, the first could be refused
//! and the second accepted, and the order of the key would be lost on the way in. So a call carries at most one record of a key,
//! there is one call at a time, and a record that was refused goes first again.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::put_records::PutRecordsOutput;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use aws_types::SdkConfig;
use kcl_core::{SequenceNumber, ShardId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ledger::Ledger;
use super::source::{Event, Source};

/// Most records of one PutRecords (AWS limit).
const MOST_RECORDS: usize = 500;

/// Most bytes of one PutRecords that this publisher sends; AWS takes 10 MiB, and took 5 MiB until 2025.
const MOST_BYTES: usize = 5 << 20;

/// Records that are looked through for keys that the call does not have yet.
const LOOK_AHEAD: usize = 2 * MOST_RECORDS;

/// How often records that have become due are sent.
const TICK: Duration = Duration::from_millis(50);

/// Calls in a row that may get nothing accepted.
const MOST_FAILURES: u32 = 12;

/// How records are spread over time.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The time that all records take, if the stream takes them that fast.
    pub span: Duration,
    /// Turns true when all that is to happen to the stream and its workers has happened: until then the last tenth of the records is kept
    /// back, so that there are some to be delivered afterwards.
    pub all_happened: watch::Receiver<bool>,
}

impl Pace {
    /// How many of `records` are due after this time.
    fn due(&self, records: usize, elapsed: Duration) -> usize {
        if elapsed >= self.span && *self.all_happened.borrow() {
            return records;
        }
        let share = elapsed.as_secs_f64() / self.span.as_secs_f64();
        let most = if *self.all_happened.borrow() { 1.0 } else { 0.9 };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // a share of a count
        let due = (records as f64 * share.min(most)) as usize;
        due
    }
}

/// Publishes all records; returns when all are accepted.
///
/// # Errors
/// A refusal that repeating does not mend, or too many failures in a row.
pub async fn publish(
    aws: &SdkConfig,
    stream: &str,
    source: &Source,
    ledger: &Ledger,
    pace: Pace,
    mut rng: fastrand::Rng,
) -> anyhow::Result<()> {
    // Repeating is this module's business: with the SDK doing it too, attempts would multiply.
    let config = aws_sdk_kinesis::config::Builder::from(aws)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(15)).build())
        .build();
    let client = Client::from_conf(config);
    let started = Instant::now();
    let total = source.events.len();
    // Places in the source, always in ascending order.
    let mut waiting: VecDeque<usize> = VecDeque::new();
    let (mut next, mut failures) = (0, 0);
    while next < total || !waiting.is_empty() {
        let due = pace.due(total, started.elapsed()).max(next);
        waiting.extend(next..due);
        next = due;
        let batch = next_batch(&mut waiting, &source.events);
        if batch.is_empty() {
            tokio::time::sleep(TICK).await;
            continue;
        }
        let refused = match put(&client, stream, source, &batch).await {
            Ok(answer) => note(&answer, &batch, ledger)?,
            Err(error) if is_worth_another_attempt(&error) => {
                tracing::warn!(error = %DisplayErrorContext(&error), "PutRecords failed; trying again");
                batch.clone()
            }
            Err(error) => bail!("records can't be published: {}", DisplayErrorContext(&error)),
        };
        for place in &refused {
            waiting.insert(waiting.partition_point(|other| other < place), *place);
        }
        failures = if refused.len() < batch.len() { 0 } else { failures + 1 };
        if failures >= MOST_FAILURES {
            bail!("records can't be published: {failures} calls of PutRecords in a row got none of their records accepted");
        }
        if !refused.is_empty() {
            let most = Duration::from_millis(100) * 2_u32.pow(failures.min(6));
            tokio::time::sleep(most.mul_f64(rng.f64())).await;
        }
    }
    Ok(())
}

/// Takes what one call may carry: from the front, at most one record of each key, and none before an earlier one of its key.
fn next_batch(waiting: &mut VecDeque<usize>, events: &[Event]) -> Vec<usize> {
    let (mut batch, mut left, mut keys, mut bytes) = (Vec::new(), Vec::new(), BTreeSet::new(), 0);
    let window: Vec<usize> = waiting.drain(..LOOK_AHEAD.min(waiting.len())).collect();
    let mut full = false;
    for place in window {
        // 256 characters of key have up to 1,024 bytes.
        let size = events[place].data.len() + 1024;
        full = full || batch.len() == MOST_RECORDS || (bytes + size > MOST_BYTES && !batch.is_empty());
        // A key whose record is left is noted as well: a later one must not overtake it.
        if keys.insert(events[place].key) && !full {
            bytes += size;
            batch.push(place);
        } else {
            left.push(place);
        }
    }
    for place in left.into_iter().rev() {
        waiting.push_front(place);
    }
    batch
}

type PutError = SdkError<aws_sdk_kinesis::operation::put_records::PutRecordsError>;

async fn put(client: &Client, stream: &str, source: &Source, batch: &[usize]) -> Result<PutRecordsOutput, PutError> {
    let mut call = client.put_records().stream_name(stream);
    for place in batch {
        let event = &source.events[*place];
        let entry = PutRecordsRequestEntry::builder().partition_key(source.key(event)).data(Blob::new(event.data.to_vec()));
        call = call.records(entry.build().map_err(SdkError::construction_failure)?);
    }
    call.send().await
}

/// Notes what was accepted and returns what was not.
fn note(answer: &PutRecordsOutput, batch: &[usize], ledger: &Ledger) -> anyhow::Result<Vec<usize>> {
    let mut refused = Vec::new();
    if answer.records().len() != batch.len() {
        bail!("PutRecords answered for {} records of {}", answer.records().len(), batch.len());
    }
    for (place, result) in batch.iter().zip(answer.records()) {
        match (result.shard_id(), result.sequence_number()) {
            (Some(shard), Some(number)) => {
                let number: SequenceNumber = number.parse().context("PutRecords answered with a sequence number that is none")?;
                ledger.published(&ShardId::from(shard), number, *place);
            }
            // Mostly ProvisionedThroughputExceededException: the shard's limit for this second.
            _ => refused.push(*place),
        }
    }
    Ok(refused)
}

/// Throttling, failures of the service and lost connections. The request may have been applied: then its records are on the stream twice,
/// under two sequence numbers, of which the ledger knows the second.
fn is_worth_another_attempt(error: &PutError) -> bool {
    match error {
        SdkError::ConstructionFailure(_) => false,
        SdkError::ServiceError(refusal) => {
            let throttled = error.code().is_some_and(|code| code.contains("Throttl") || code.contains("Exceeded"));
            throttled || refusal.raw().status().is_server_error()
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(keys: &[u32], size: usize) -> Vec<Event> {
        keys.iter().map(|key| Event { key: *key, data: vec![0; size].into() }).collect()
    }

    fn batches(events: &[Event]) -> Vec<Vec<usize>> {
        let mut waiting: VecDeque<usize> = (0..events.len()).collect();
        let mut batches = Vec::new();
        while !waiting.is_empty() {
            batches.push(next_batch(&mut waiting, events));
        }
        batches
    }

    #[test]
    fn a_call_carries_one_record_of_a_key_and_none_overtakes() {
        assert_eq!(batches(&events(&[0, 1, 0, 2, 0, 1], 1)), [vec![0, 1, 3], vec![2, 5], vec![4]]);
        assert_eq!(batches(&events(&[], 1)), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_call_keeps_to_the_limits() {
        let many: Vec<u32> = (0..1200).collect();
        assert_eq!(batches(&events(&many, 1)).iter().map(Vec::len).collect::<Vec<_>>(), [500, 500, 200]);
        // A small record must not pass an earlier one of its key that did not fit.
        let mut large = events(&[0, 1, 2, 3, 4, 5], 1 << 20);
        large.push(Event { key: 5, data: vec![0].into() });
        assert_eq!(batches(&large), [vec![0, 1, 2, 3], vec![4, 5], vec![6]]);
        assert_eq!(batches(&events(&[0], MOST_BYTES)), [vec![0]], "what is too large alone is the service's to judge");
    }

    #[test]
    fn the_last_tenth_waits_for_what_is_to_happen() {
        let (happened, all_happened) = watch::channel(false);
        let pace = Pace { span: Duration::from_secs(10), all_happened };
        let due = |seconds| pace.due(1000, Duration::from_secs(seconds));
        assert_eq!([due(0), due(5), due(9), due(60)], [0, 500, 900, 900]);
        happened.send_replace(true);
        assert_eq!([due(5), due(10), due(60)], [500, 1000, 1000]);
        let one = Pace { span: Duration::from_secs(10), ..pace };
        assert_eq!(one.due(1, Duration::from_secs(10)), 1);
    }
}
