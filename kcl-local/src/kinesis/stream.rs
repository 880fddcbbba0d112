//! One stream: its state, its tree of shards, and how the tree grows.
//!
//! Owns the invariant that the open shards tile the 128-bit key space, at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::consumer::StreamConsumer;
use super::error::ApiError;
use super::sequence::shard_number;
use super::shard::Shard;
use super::types::{ChildShard, ShardFilter, ShardFilterType, StreamMode, StreamStatus};

/// Gives out shard generations: seconds, but each one above the last, so that no two reshardings, and no two
/// incarnations of a stream, share one.
#[derive(Debug, Default)]
pub(super) struct Generations(u64);

impl Generations {
    pub(super) fn next(&mut self, now: u64) -> u64 {
        self.0 = (self.0 + 1).max(now / 1_000);
        self.0
    }
}

/// What a stream is doing, and until when.
#[derive(Debug)]
enum State {
    Creating { until: u64, shards: u32 },
    Active,
    Updating { until: u64, reshard: Reshard },
    Deleting { until: u64 },
}

/// A change of the shards.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reshard {
    /// The second child begins at this hash key.
    Split { shard: u32, at: u128 },
    /// Two open shards whose ranges touch.
    Merge { shard: u32, adjacent: u32 },
    /// To so many of equal size.
    Resize { target: u32 },
}

/// What a new stream is like.
pub(super) struct NewStream {
    pub(super) name: Arc<str>,
    pub(super) arn: String,
    pub(super) account: Arc<str>,
    pub(super) mode: StreamMode,
    pub(super) shards: u32,
    pub(super) retention_hours: u32,
    pub(super) max_record_size_kib: u32,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) creating_until: u64,
}

pub(super) struct Stream {
    pub(super) name: Arc<str>,
    pub(super) arn: String,
    pub(super) account: Arc<str>,
    pub(super) mode: StreamMode,
    pub(super) created_at: u64,
    /// Tells this stream from an earlier one of the same name: the generation of its first shards.
    pub(super) incarnation: u64,
    pub(super) retention_hours: u32,
    pub(super) max_record_size_kib: u32,
    pub(super) tags: BTreeMap<String, String>,
    /// By name.
    pub(super) consumers: BTreeMap<String, StreamConsumer>,
    state: State,
    /// By number: all there ever were, as children and iterators name them after they have expired.
    shards: Vec<Shard>,
    /// The open ones by their first hash key.
    open: BTreeMap<u128, u32>,
}

impl Stream {
    pub(super) fn new(new: NewStream, generations: &mut Generations, now: u64) -> Self {
        Self {
            name: new.name,
            arn: new.arn,
            account: new.account,
            mode: new.mode,
            created_at: now,
            incarnation: generations.next(now),
            retention_hours: new.retention_hours,
            max_record_size_kib: new.max_record_size_kib,
            tags: new.tags,
            consumers: BTreeMap::new(),
            state: State::Creating { until: new.creating_until, shards: new.shards },
            shards: Vec::new(),
            open: BTreeMap::new(),
        }
    }

    pub(super) fn status(&self) -> StreamStatus {
        match self.state {
            State::Creating { .. } => StreamStatus::Creating,
            State::Active => StreamStatus::Active,
            State::Updating { .. } => StreamStatus::Updating,
            State::Deleting { .. } => StreamStatus::Deleting,
        }
    }

    /// Does what is due. Whether anything was.
    pub(super) fn settle(&mut self, generations: &mut Generations, now: u64) -> bool {
        let consumers = self.settle_consumers(now);
        match self.state {
            State::Creating { until, shards } if until <= now => {
                for range in uniform(shards) {
                    self.add_shard(self.incarnation, range, [None, None], until);
                }
            }
            // At the instant that it was due, whoever comes when to see it: nothing was stored since.
            State::Updating { until, reshard } if until <= now => self.reshard(reshard, generations, until),
            _ => return consumers,
        }
        self.state = State::Active;
        true
    }

    fn settle_consumers(&mut self, now: u64) -> bool {
        let before = self.consumers.len();
        self.consumers.retain(|_, consumer| !consumer.is_gone(now));
        let activated = self.consumers.values_mut().filter_map(|consumer| consumer.settle(now).then_some(())).count();
        activated > 0 || self.consumers.len() < before
    }

    /// When the state, or a consumer's, next changes by itself.
    pub(super) fn due(&self) -> Option<u64> {
        let due = match self.state {
            State::Active => None,
            State::Creating { until, .. } | State::Updating { until, .. } | State::Deleting { until } => Some(until),
        };
        self.consumers.values().filter_map(StreamConsumer::due).chain(due).min()
    }

    pub(super) fn is_gone(&self, now: u64) -> bool {
        matches!(self.state, State::Deleting { until } if until <= now)
    }

    pub(super) fn delete(&mut self, until: u64) {
        self.state = State::Deleting { until };
    }

    /// The consumer of this name, and of this ARN if one is given.
    pub(super) fn consumer(&mut self, name: &str, arn: Option<&str>) -> Result<&mut StreamConsumer, ApiError> {
        let (stream, account) = (&self.name, &self.account);
        let consumer = self.consumers.get_mut(name).filter(|consumer| arn.is_none_or(|arn| arn == consumer.arn));
        consumer.ok_or_else(|| {
            let name = arn.unwrap_or(name);
            ApiError::not_found(format!("Consumer {name} under stream {stream} not found for account {account}."))
        })
    }

    /// Refuses a caller who means a stream that was made at another time.
    pub(super) fn check_created(&self, at: Option<u64>) -> Result<(), ApiError> {
        // On the wire it is a fraction of seconds, and some clients cut it to whole ones.
        match at {
            Some(time) if time / 1_000 != self.created_at / 1_000 => {
                let (name, account) = (&self.name, &self.account);
                Err(ApiError::not_found(format!("Stream {name} under account {account} created at {time} not found.")))
            }
            _ => Ok(()),
        }
    }

    /// Begins a change of the shards, to be done by [`settle`](Self::settle).
    pub(super) fn update(&mut self, reshard: Reshard, until: u64) {
        self.state = State::Updating { until, reshard };
    }

    // Shards

    pub(super) fn open_shards(&self) -> u32 {
        match self.state {
            // Counted against the account's limit before they are there.
            State::Creating { shards, .. } => shards,
            _ => u32::try_from(self.open.len()).expect("shard numbers are 32 bits"),
        }
    }

    /// The open shard that takes a hash key. `None` while the stream is being created.
    pub(super) fn route(&mut self, hash_key: u128) -> Option<&mut Shard> {
        let number = *self.open.range(..=hash_key).next_back()?.1;
        Some(self.at_mut(number))
    }

    /// The shard with this id, unless it has expired.
    pub(super) fn shard(&mut self, id: &str, now: u64) -> Result<&mut Shard, ApiError> {
        let horizon = self.horizon(now);
        let shard = shard_number(id).and_then(|number| self.shards.get_mut(number as usize));
        if let Some(shard) = shard {
            shard.trim(horizon);
            if !shard.expired {
                return Ok(shard);
            }
        }
        Err(ApiError::not_found(format!("Shard {id} in stream {} under account {} does not exist", self.name, self.account)))
    }

    /// The shard with this number, trimmed; also one that has expired.
    pub(super) fn shard_by_number(&mut self, number: u32, now: u64) -> Option<&mut Shard> {
        let horizon = self.horizon(now);
        let shard = self.shards.get_mut(number as usize)?;
        shard.trim(horizon);
        Some(shard)
    }

    /// The shards that follow a closed one.
    pub(super) fn children(&self, number: u32) -> Vec<ChildShard> {
        let child = |number: &u32| {
            let shard = self.at(*number);
            ChildShard {
                shard_id: shard.id(),
                parent_shards: shard.parents().map(|parent| self.at(parent).id()).collect(),
                hash_key_range: shard.hash_key_range(),
            }
        };
        self.at(number).children.iter().map(child).collect()
    }

    /// The shards that a filter shows, by number.
    ///
    /// At the trim horizon are those whose parents have all expired. As a parent closes when its children open, these
    /// are just the shards that were open then; and it holds where milliseconds are too coarse to tell, as when a
    /// stream is split in the millisecond it was made in.
    pub(super) fn select(&mut self, filter: &ShardFilter, now: u64) -> Vec<&Shard> {
        self.trim(now);
        let made = self.shards.first().map_or(now, |shard| shard.created_at);
        let horizon = self.horizon(now).max(made);
        let shown = |shard: &&Shard| {
            let roots = || !shard.parents().any(|parent| !self.at(parent).expired);
            match filter.filter_type {
                ShardFilterType::FromTrimHorizon | ShardFilterType::AfterShardId => true,
                ShardFilterType::AtTrimHorizon => roots(),
                ShardFilterType::AtLatest => shard.closed_at.is_none(),
                ShardFilterType::AtTimestamp => match filter.timestamp {
                    Some(time) if time >= horizon => shard.created_at <= time && shard.closed_at.is_none_or(|closed_at| closed_at >= time),
                    _ => roots(),
                },
                ShardFilterType::FromTimestamp => shard.closed_at.is_none_or(|closed_at| closed_at >= filter.timestamp.unwrap_or(0)),
            }
        };
        self.shards.iter().filter(|shard| !shard.expired).filter(shown).collect()
    }

    /// Drops all that retention has passed over.
    pub(super) fn trim(&mut self, now: u64) {
        let horizon = self.horizon(now);
        for shard in &mut self.shards {
            shard.trim(horizon);
        }
    }

    fn horizon(&self, now: u64) -> u64 {
        now.saturating_sub(u64::from(self.retention_hours) * 3_600_000)
    }

    fn at(&self, number: u32) -> &Shard {
        &self.shards[number as usize]
    }

    fn at_mut(&mut self, number: u32) -> &mut Shard {
        &mut self.shards[number as usize]
    }

    // The tree

    /// The open shard with this id, for a change of the tree.
    pub(super) fn open_shard(&self, id: &str) -> Result<&Shard, ApiError> {
        let (name, account) = (&self.name, &self.account);
        let shard = shard_number(id).and_then(|number| self.shards.get(number as usize)).filter(|shard| !shard.expired);
        let shard =
            shard.ok_or_else(|| ApiError::not_found(format!("Could not find shard {id} in stream {name} under account {account}.")))?;
        if shard.closed_at.is_some() {
            return Err(ApiError::invalid(format!(
                "Shard {id} in stream {name} under account {account} has already been merged or split, and thus is not eligible \
                 for merging or splitting."
            )));
        }
        Ok(shard)
    }

    fn reshard(&mut self, reshard: Reshard, generations: &mut Generations, now: u64) {
        match reshard {
            Reshard::Split { shard, at } => self.split(shard, at, generations, now),
            Reshard::Merge { shard, adjacent } => self.merge(shard, adjacent, generations, now),
            Reshard::Resize { target } => self.resize(target, generations, now),
        }
    }

    fn split(&mut self, parent: u32, at: u128, generations: &mut Generations, now: u64) {
        let (first, last) = self.at(parent).range;
        debug_assert!(first < at && at <= last, "both children have hash keys");
        self.close(parent, now);
        let generation = generations.next(now);
        for range in [(first, at - 1), (at, last)] {
            self.add_shard(generation, range, [Some(parent), None], now);
        }
    }

    fn merge(&mut self, parent: u32, adjacent: u32, generations: &mut Generations, now: u64) {
        let ranges = [self.at(parent).range, self.at(adjacent).range];
        self.close(parent, now);
        self.close(adjacent, now);
        let range = (ranges[0].0.min(ranges[1].0), ranges[0].1.max(ranges[1].1));
        self.add_shard(generations.next(now), range, [Some(parent), Some(adjacent)], now);
    }

    /// Splits at every border there is to be, then merges over every border there isn't to be. On the way there are
    /// shards that live for an instant, as with the service.
    fn resize(&mut self, target: u32, generations: &mut Generations, now: u64) {
        let borders: BTreeSet<u128> = uniform(target).map(|range| range.0).collect();
        for border in &borders {
            let (first, shard) = self.open.range(..=*border).next_back().expect("open shards tile the key space");
            if first != border {
                self.split(*shard, *border, generations, now);
            }
        }
        while let Some(border) = self.open.keys().find(|first| !borders.contains(first)).copied() {
            let adjacent = self.open[&border];
            let shard = *self.open.range(..border).next_back().expect("0 is a border").1;
            self.merge(shard, adjacent, generations, now);
        }
    }

    fn close(&mut self, number: u32, now: u64) {
        let shard = self.at_mut(number);
        shard.closed_at = Some(now);
        let first = shard.range.0;
        self.open.remove(&first);
    }

    fn add_shard(&mut self, generation: u64, range: (u128, u128), parents: [Option<u32>; 2], now: u64) {
        let number = u32::try_from(self.shards.len()).expect("shard numbers are 32 bits");
        for parent in parents.into_iter().flatten() {
            self.at_mut(parent).children.push(number);
        }
        self.shards.push(Shard::new(number, generation, range, parents, now));
        self.open.insert(range.0, number);
    }
}

/// The key space in `count` ranges of equal size; the last one takes the rest.
fn uniform(count: u32) -> impl Iterator<Item = (u128, u128)> {
    let count = u128::from(count);
    // 2^128 / count, without 2^128.
    let size = if count == 1 { 0 } else { u128::MAX / count + u128::from(u128::MAX % count == count - 1) };
    (0..count).map(move |index| (size * index, if index + 1 == count { u128::MAX } else { size * (index + 1) - 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_ranges_are_the_service_s() {
        assert_eq!(uniform(1).collect::<Vec<_>>(), [(0, u128::MAX)]);
        assert_eq!(uniform(2).collect::<Vec<_>>(), [(0, (1 << 127) - 1), (1 << 127, u128::MAX)]);
        let thirds: Vec<_> = uniform(3).map(|range| range.0).collect();
        assert_eq!(thirds, [0, 113_427_455_640_312_821_154_458_202_477_256_070_485, 226_854_911_280_625_642_308_916_404_954_512_140_970]);
    }

    #[test]
    fn generations_grow_within_a_second_and_follow_the_time() {
        let mut generations = Generations::default();
        let given: Vec<u64> = [5_000, 5_999, 5_999, 9_000].into_iter().map(|now| generations.next(now)).collect();
        assert_eq!(given, [5, 6, 7, 9]);
    }
}
