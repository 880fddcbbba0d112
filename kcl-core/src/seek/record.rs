//! Which checkpoint makes a record the next one: that of the record before it.
//!
//! Kinesis reads forwards only. The search begins a little before the record's arrival, and goes further back until another record
//! comes before it, or it is the oldest of its shard.

use std::time::Duration;

use kcl_aggregation::{Disaggregated, Rules, disaggregate};
use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, Timestamp};
use kcl_lease::ShardId;

use super::SeekError;
use crate::record::Record;
use crate::stream::{StartingPosition, StreamApi, StreamError};
use crate::worker::retry_briefly;

/// How far back of the record's arrival the search begins, try by try; then at the oldest record.
const BACK: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(3600)];
/// A shard is read five times a second by all applications together: other readers need their share.
const BETWEEN_READS: Duration = Duration::from_millis(250);
/// The most records in one answer.
const LIMIT: u32 = 10_000;

/// The checkpoint after which `record` is the next one.
pub(super) async fn checkpoint_before(
    stream: &dyn StreamApi,
    shard: &ShardId,
    record: ExtendedSequenceNumber,
) -> Result<Checkpoint, SeekError> {
    let found = find(stream, shard, record).await?;
    if let Some(sub_sequence_number) = record.sub_sequence_number.checked_sub(1) {
        return Ok(Checkpoint::At(ExtendedSequenceNumber::new(record.sequence_number, sub_sequence_number)));
    }
    let arrival = found.approximate_arrival();
    let back = arrival.into_iter().flat_map(|arrival| {
        let millis = |back: Duration| u64::try_from(back.as_millis()).unwrap_or(u64::MAX);
        BACK.map(|back| StartingPosition::AtTimestamp(Timestamp::from_millis(arrival.as_millis().saturating_sub(millis(back)))))
    });
    for start in back.chain([StartingPosition::TrimHorizon]) {
        if let Some(before) = last_before(stream, shard, record, start).await? {
            return Ok(Checkpoint::At(end_of(&before)));
        }
    }
    // The oldest that the shard has: it may have begun with it.
    Ok(Checkpoint::TrimHorizon)
}

/// The Kinesis record that holds this record.
pub(super) async fn find(stream: &dyn StreamApi, shard: &ShardId, record: ExtendedSequenceNumber) -> Result<Record, SeekError> {
    let mut wanted = None;
    let start = StartingPosition::AtSequenceNumber(record.sequence_number);
    let read = read(stream, shard, start, 1, |found| {
        wanted = Some(found);
        false
    });
    match read.await {
        Ok(()) => {}
        Err(StreamError::InvalidArgument { .. }) => wanted = None,
        Err(error) => return Err(error.into()),
    }
    let wanted = wanted.filter(|found| found.sequence_number() == record.sequence_number && record <= end_of(found));
    wanted.ok_or_else(|| SeekError::NoSuchRecord { shard: shard.clone(), record })
}

/// The last record before this one, of those from `start` on.
async fn last_before(
    stream: &dyn StreamApi,
    shard: &ShardId,
    record: ExtendedSequenceNumber,
    start: StartingPosition,
) -> Result<Option<Record>, StreamError> {
    let mut before = None;
    read(stream, shard, start, LIMIT, |found| {
        let is_before = found.sequence_number() < record.sequence_number;
        if is_before {
            before = Some(found);
        }
        is_before
    })
    .await?;
    Ok(before)
}

/// The address of the last part of a record.
fn end_of(record: &Record) -> ExtendedSequenceNumber {
    let parts = match disaggregate(record.data(), None, &Rules::default()) {
        Disaggregated::Aggregate(parts) => parts.into_iter().count() as u64,
        _ => 1,
    };
    ExtendedSequenceNumber::new(record.sequence_number(), parts.saturating_sub(1))
}

/// Gives records from `start` on for as long as `more` says so, up to the tip or the end of the shard.
async fn read(
    stream: &dyn StreamApi,
    shard: &ShardId,
    start: StartingPosition,
    limit: u32,
    mut more: impl FnMut(Record) -> bool,
) -> Result<(), StreamError> {
    let mut iterator = retry_briefly(|| stream.shard_iterator(shard, start), StreamError::is_retryable).await?;
    loop {
        let page = retry_briefly(|| stream.get_records(&iterator, limit), StreamError::is_retryable).await?;
        let at_tip = page.records.is_empty() && page.millis_behind_latest == Some(0);
        for record in page.records {
            if !more(record) {
                return Ok(());
            }
        }
        match page.next {
            Some(next) if !at_tip => iterator = next,
            _ => return Ok(()),
        }
        tokio::time::sleep(BETWEEN_READS).await;
    }
}
