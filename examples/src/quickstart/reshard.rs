//! What happens to the stream while records flow: one shard is split, and two are merged.

use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::{Shard, StreamStatus};
use tokio::time::Instant;

/// How long a stream may take to be made or changed.
const READY: Duration = Duration::from_secs(300);

/// An open shard and its range of hash keys, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Open {
    shard: String,
    first: u128,
    last: u128,
}

/// Splits one of the open shards in the middle, and says what it did.
///
/// # Errors
/// When the stream can't be changed.
pub async fn split(kinesis: &Client, stream: &str, rng: &mut fastrand::Rng) -> anyhow::Result<String> {
    let divisible: Vec<_> = open_shards(kinesis, stream).await?.into_iter().filter(|shard| shard.first < shard.last).collect();
    let Some(chosen) = rng.choice(divisible) else { bail!("no shard is left that can be split") };
    let middle = chosen.first + (chosen.last - chosen.first) / 2 + 1;
    let call = kinesis.split_shard().stream_name(stream).shard_to_split(&chosen.shard).new_starting_hash_key(middle.to_string());
    call.send().await.with_context(|| format!("{} can't be split", chosen.shard))?;
    ready(kinesis, stream).await?;
    Ok(format!("{} was split", chosen.shard))
}

/// Merges two open shards that are neighbours, and says what it did.
///
/// # Errors
/// When the stream can't be changed.
pub async fn merge(kinesis: &Client, stream: &str, rng: &mut fastrand::Rng) -> anyhow::Result<String> {
    let neighbours = neighbours(open_shards(kinesis, stream).await?);
    let Some((left, right)) = rng.choice(neighbours) else { bail!("no two shards are left that can be merged") };
    let call = kinesis.merge_shards().stream_name(stream).shard_to_merge(&left).adjacent_shard_to_merge(&right);
    call.send().await.with_context(|| format!("{left} and {right} can't be merged"))?;
    ready(kinesis, stream).await?;
    Ok(format!("{left} and {right} were merged"))
}

/// Waits until the stream is ACTIVE.
///
/// # Errors
/// When it is being deleted, or takes too long.
pub async fn ready(kinesis: &Client, stream: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    loop {
        let described = kinesis.describe_stream_summary().stream_name(stream).send().await;
        let described = described.with_context(|| format!("stream {stream} can't be described"))?;
        match described.stream_description_summary().map(|summary| summary.stream_status().clone()) {
            Some(StreamStatus::Active) => return Ok(()),
            Some(StreamStatus::Deleting) => bail!("stream {stream} is being deleted"),
            status if Instant::now() > deadline => bail!("stream {stream} is not ready after {READY:?}: its status is {status:?}"),
            _ => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// The open shards in the order of their hash keys.
async fn open_shards(kinesis: &Client, stream: &str) -> anyhow::Result<Vec<Open>> {
    let mut open = Vec::new();
    let mut call = kinesis.list_shards().stream_name(stream);
    loop {
        let page = call.send().await.with_context(|| format!("the shards of {stream} can't be listed"))?;
        for shard in page.shards() {
            open.extend(parse(shard)?);
        }
        match page.next_token() {
            Some(token) => call = kinesis.list_shards().next_token(token),
            None => break,
        }
    }
    open.sort_by_key(|shard| shard.first);
    Ok(open)
}

/// The shard, if it is open.
fn parse(shard: &Shard) -> anyhow::Result<Option<Open>> {
    if shard.sequence_number_range().is_none_or(|range| range.ending_sequence_number().is_some()) {
        return Ok(None);
    }
    let range = shard.hash_key_range().context("a shard without a range of hash keys")?;
    let (first, last) = (range.starting_hash_key().parse(), range.ending_hash_key().parse());
    Ok(Some(Open { shard: shard.shard_id().to_owned(), first: first?, last: last? }))
}

/// Pairs whose ranges join, of shards in the order of their hash keys.
fn neighbours(open: Vec<Open>) -> Vec<(String, String)> {
    let joined = open.windows(2).filter(|pair| pair[0].last.checked_add(1) == Some(pair[1].first));
    joined.map(|pair| (pair[0].shard.clone(), pair[1].shard.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shards_whose_ranges_join_are_neighbours() {
        let open = |shard: &str, first, last| Open { shard: shard.into(), first, last };
        let shards = vec![open("a", 0, 9), open("b", 10, 19), open("d", 30, 39), open("e", 40, u128::MAX)];
        assert_eq!(neighbours(shards), [("a".into(), "b".into()), ("d".into(), "e".into())]);
        assert_eq!(neighbours(vec![open("a", 0, u128::MAX)]), []);
    }
}
