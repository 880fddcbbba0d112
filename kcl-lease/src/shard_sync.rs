//! Which leases a stream's shards need.
//!
//! A lease is made for the oldest shards that the application reads; their descendants' leases follow when their parents end. So a stream that
//! was resharded a hundred times starts with as many leases as it had shards then, and nothing is read before what it came from.
//!
//! All leases are made in the order of the shards' birth. A crash between any two leaves a table from which
//! [`missing_leases`] goes on to the same result.

use std::collections::{BTreeMap, BTreeSet};

use kcl_checkpoint::{Checkpoint, InitialPosition, SequenceNumber, Timestamp};

use crate::lease::{HashKeyRange, Lease, ShardId};

/// A shard as ListShards tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub shard_id: ShardId,
    /// The shards that it came from: none, one (split) or two (merge). They need not be listed any more.
    pub parents: BTreeSet<ShardId>,
    /// The hash keys that it holds.
    pub hash_range: HashKeyRange,
    /// Grows from parent to child.
    pub starting_sequence_number: SequenceNumber,
    /// Set once the shard is closed.
    pub ending_sequence_number: Option<SequenceNumber>,
}

impl Shard {
    /// Whether the shard takes new records.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.ending_sequence_number.is_none()
    }

    fn birth(&self) -> (SequenceNumber, &ShardId) {
        (self.starting_sequence_number, &self.shard_id)
    }
}

/// A child shard as the end of its parent tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildShard {
    /// Its name.
    pub shard_id: ShardId,
    /// The shards that it came from.
    pub parents: BTreeSet<ShardId>,
    /// The hash keys that it holds.
    pub hash_range: HashKeyRange,
}

/// Hash keys that no shard of a listing holds: the listing is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no listed shard holds hash key {first_missing}")]
pub struct Hole {
    /// The first of them.
    pub first_missing: u128,
}

/// Checks that every hash key belongs to a shard. Ranges may overlap: a parent and its child may both be listed.
///
/// # Errors
/// The first hole.
pub fn tiles_key_space<'a>(ranges: impl IntoIterator<Item = &'a HashKeyRange>) -> Result<(), Hole> {
    let mut ranges: Vec<_> = ranges.into_iter().collect();
    ranges.sort_by_key(|range| range.start);
    let mut first_missing = 0;
    for range in ranges {
        if range.start > first_missing {
            break;
        }
        if range.end >= first_missing {
            first_missing = match range.end.checked_add(1) {
                Some(next) => next,
                None => return Ok(()),
            };
        }
    }
    Err(Hole { first_missing })
}

/// What new leases of an application's first shards carry.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Where the application begins.
    pub initial: InitialPosition,
    /// The instant that LATEST means; unused otherwise.
    pub latest: Option<Timestamp>,
    /// When the stream was made.
    pub stream_created: Option<Timestamp>,
}

impl Start {
    fn lease(&self, shard: &Shard) -> Lease {
        let initial_timestamp = match self.initial {
            InitialPosition::TrimHorizon => None,
            InitialPosition::Latest => self.latest,
            InitialPosition::AtTimestamp(time) => Some(time),
        };
        Lease {
            initial_timestamp,
            ..new_lease(&shard.shard_id, &shard.parents, shard.hash_range, self.initial.checkpoint(), self.stream_created)
        }
    }
}

/// The leases of an application that has none: one for each shard that was open at its initial position, in the order of their birth.
///
/// A parent and its child may both be listed, in the very millisecond of a reshard. Both get a lease; the child's waits for its parent's.
///
/// # Errors
/// If the listing leaves a hole: then nothing may be made of it.
pub fn initial_leases(listing: &[Shard], start: &Start) -> Result<Vec<Lease>, Hole> {
    tiles_key_space(listing.iter().map(|shard| &shard.hash_range))?;
    Ok(by_birth(listing).into_iter().map(|shard| start.lease(shard)).collect())
}

/// How a shard without a lease, or with one, stands to those that may follow it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its records are all finished, in this application: what comes next is due, from its beginning.
    Finished,
    /// It is being read, or will be: what comes next waits.
    Pending,
    /// It has nothing to do with this application: trimmed, or older than its start.
    Past,
}

/// The leases that the shards need beside those that there are, in the order of their birth.
///
/// `shards` is a full listing; `at_start` lists the shards that were open at the application's initial position. From these the
/// following leases are made, and no other:
///
/// - Of a shard all of whose parents are finished (or past): from its beginning. Normally the end of a parent makes them; this heals
///   whatever was left undone.
/// - Of a shard that was open at the start and has nothing to do with any lease: at the initial position. So a first sync that was broken off is
///   completed.
///
/// A shard with a descendant that has a lease is over: its lease was finished and cleaned up, or never was needed.
#[must_use]
pub fn missing_leases(shards: &[Shard], leases: &[Lease], at_start: &[Shard], start: &Start) -> Vec<Lease> {
    let finished: BTreeMap<_, _> = leases.iter().map(|lease| (&lease.shard_id, lease.is_finished())).collect();
    let initial: BTreeSet<_> = at_start.iter().map(|shard| &shard.shard_id).collect();
    let ordered = by_birth(shards);
    let outlived = outlived(&ordered, &finished);

    let mut standing: BTreeMap<&ShardId, Standing> = BTreeMap::new();
    let mut missing = Vec::new();
    for shard in ordered {
        let parents: Vec<_> = shard.parents.iter().map(|parent| standing_of(parent, &standing, &finished)).collect();
        let this = match finished.get(&shard.shard_id) {
            Some(true) => Standing::Finished,
            Some(false) => Standing::Pending,
            // Not finished as far as its other descendants are concerned: had it been read, they would have leases too, since a
            // finished lease is kept until all its children are read. Whoever has none is older than the application's start.
            None if outlived.contains(&shard.shard_id) => Standing::Past,
            None if parents.contains(&Standing::Pending) => Standing::Pending,
            None if parents.contains(&Standing::Finished) => {
                let (shard_id, parents) = (&shard.shard_id, &shard.parents);
                missing.push(new_lease(shard_id, parents, shard.hash_range, Checkpoint::TrimHorizon, start.stream_created));
                Standing::Pending
            }
            None if initial.contains(&shard.shard_id) => {
                missing.push(start.lease(shard));
                Standing::Pending
            }
            None => Standing::Past,
        };
        standing.insert(&shard.shard_id, this);
    }
    missing
}

/// The shards with a descendant that has a lease. `ordered` is by birth.
fn outlived(ordered: &[&Shard], finished: &BTreeMap<&ShardId, bool>) -> BTreeSet<ShardId> {
    let mut outlived = BTreeSet::new();
    for shard in ordered.iter().rev() {
        if finished.contains_key(&shard.shard_id) || outlived.contains(&shard.shard_id) {
            outlived.extend(shard.parents.iter().cloned());
        }
    }
    outlived
}

/// A parent that is listed was born before its child and stands already; one that is not listed is past, or has a lease that outlived it.
fn standing_of(parent: &ShardId, standing: &BTreeMap<&ShardId, Standing>, finished: &BTreeMap<&ShardId, bool>) -> Standing {
    standing.get(parent).copied().unwrap_or_else(|| match finished.get(parent) {
        Some(true) => Standing::Finished,
        Some(false) => Standing::Pending,
        None => Standing::Past,
    })
}

/// The leases of the shards that a shard became, from their beginnings. Made before the parent is ended.
#[must_use]
pub fn child_leases(children: &[ChildShard], stream_created: Option<Timestamp>) -> Vec<Lease> {
    let lease = |child: &ChildShard| new_lease(&child.shard_id, &child.parents, child.hash_range, Checkpoint::TrimHorizon, stream_created);
    children.iter().map(lease).collect()
}

fn new_lease(
    shard_id: &ShardId,
    parents: &BTreeSet<ShardId>,
    hash_range: HashKeyRange,
    checkpoint: Checkpoint,
    stream_created: Option<Timestamp>,
) -> Lease {
    Lease { parents: parents.clone(), hash_range: Some(hash_range), stream_created, ..Lease::new(shard_id.clone(), checkpoint) }
}

fn by_birth(shards: &[Shard]) -> Vec<&Shard> {
    let mut ordered: Vec<_> = shards.iter().collect();
    ordered.sort_by_key(|shard| shard.birth());
    ordered
}

#[cfg(test)]
mod tests;
