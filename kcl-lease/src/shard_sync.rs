//! Which leases a list of shards needs.
//!
//! A stream is a family: shards split and merge, children follow their parents. Leases are made for the oldest generation that is
//! to be read; every later one gets its leases when its parents end. So between any two writes, every part of the key space is
//! covered by a lease that is not finished, or by its descendants to come.

use std::collections::{BTreeMap, BTreeSet};

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, InitialPosition, SequenceNumber, Timestamp};

use crate::lease::{HashKeyRange, Lease, ShardId};

/// A shard as ListShards tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shard {
    /// Its name.
    pub shard_id: ShardId,
    /// The parent and the adjacent parent, as far as Kinesis tells: none, one (split), or two (merge).
    pub parents: BTreeSet<ShardId>,
    /// Its hash keys.
    pub hash_range: HashKeyRange,
    /// The lowest sequence number that it may hold: above all of its parents'.
    pub starting_sequence_number: SequenceNumber,
    /// Its last sequence number, once it is closed.
    pub ending_sequence_number: Option<SequenceNumber>,
}

impl Shard {
    /// Whether records can still be put into it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.ending_sequence_number.is_none()
    }
}

/// A child as GetRecords and SubscribeToShard tell of it at the end of its parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildShard {
    /// Its name.
    pub shard_id: ShardId,
    /// All of its parents.
    pub parents: BTreeSet<ShardId>,
    /// Its hash keys.
    pub hash_range: HashKeyRange,
}

/// Hash keys that no shard of a list covers, though a stream always covers all: the list is incomplete. Read it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no shard covers the hash keys from {start} to {end}: the list of shards is incomplete")]
pub struct Hole {
    /// The lowest hash key that is not covered.
    pub start: u128,
    /// The highest one up to the next shard.
    pub end: u128,
}

/// A merged shard can't get its lease yet: it would hide that its other parent has none, and that one would never be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("shard {child} merges shard {parent}, which has no lease yet: wait for the next shard sync to create it")]
pub struct MissingMergeParent {
    /// The merged shard.
    pub child: ShardId,
    /// The parent without a lease.
    pub parent: ShardId,
}

/// Checks that the ranges cover all hash keys, from 0 to 2^128 - 1. They may overlap, as those of parents and children do.
///
/// # Errors
/// The first [`Hole`], from below.
pub fn tiles_key_space(ranges: impl IntoIterator<Item = HashKeyRange>) -> Result<(), Hole> {
    let mut ranges: Vec<_> = ranges.into_iter().collect();
    ranges.sort_by_key(|range| range.start);
    let mut next = 0;
    for range in ranges {
        if range.start > next {
            return Err(Hole { start: next, end: range.start - 1 });
        }
        match range.end.checked_add(1) {
            Some(after) => next = next.max(after),
            None => return Ok(()),
        }
    }
    Err(Hole { start: next, end: u128::MAX })
}

/// The leases of an empty table: one for each shard of `listing`, open or closed; and before them the one that decides.
///
/// `listing` holds the shards that were open at the initial position: ListShards with the filter `AT_LATEST`, `AT_TRIM_HORIZON`
/// or `AT_TIMESTAMP`. `all` are all shards that Kinesis lists. `resolved` is the instant that LATEST stands for, taken **after** both
/// listings were complete, so that each shard that closed before it is in the list or has its descendants there.
///
/// The leases are in the order in which they must be created: older shards first. After a crash in between,
/// [`missing_leases`] goes on. Should parent and child both be listed, both get a lease, and the child's waits for the parent's.
///
/// The first one decides where the application starts. Of two workers that begin at once, one may list shards before a reshard and the other after it: one
/// with a shard, the other with its children alone, and what each leaves out is lost if both create what they have listed. So the first lease is of the same shard for both:
/// the oldest of those listed and of all that they came of. If that one lies before the initial position, its lease is a finished one
/// ([`Lease::lies_before_start`]). Whoever finds a lease that starts elsewhere than its own would ([`starts_elsewhere`]) creates no more.
///
/// # Errors
/// [`Hole`] if the listed shards do not cover the key space.
pub fn initial_leases(
    listing: &[Shard],
    all: &[Shard],
    initial: InitialPosition,
    resolved: Option<Timestamp>,
    stream_created: Option<Timestamp>,
) -> Result<Vec<Lease>, Hole> {
    tiles_key_space(listing.iter().map(|shard| shard.hash_range))?;
    let instant = instant_of(initial, resolved);
    let in_order = oldest_first(listing);
    let oldest = in_order.first().copied();
    let before = oldest_before(listing, all).filter(|before| oldest.is_some_and(|oldest| age(before) < age(oldest)));
    let decides = before.filter(|_| instant.is_some()).map(|shard| {
        let children = all.iter().chain(listing).filter(|child| child.parents.contains(&shard.shard_id));
        let children = children.map(|child| child.shard_id.clone()).collect();
        Lease { children, ..lease_for(shard, Checkpoint::ShardEnd, instant, stream_created) }
    });
    let leases = in_order.into_iter().map(|shard| lease_for(shard, initial.checkpoint(), instant, stream_created));
    Ok(decides.into_iter().chain(leases).collect())
}

/// The oldest shard that one of `listing` came of and that is not in it.
fn oldest_before<'a>(listing: &'a [Shard], all: &'a [Shard]) -> Option<&'a Shard> {
    let known: BTreeMap<_, _> = all.iter().chain(listing).map(|shard| (&shard.shard_id, shard)).collect();
    let listed: BTreeSet<_> = listing.iter().map(|shard| &shard.shard_id).collect();
    let mut seen = BTreeSet::new();
    let mut above: Vec<_> = listing.iter().flat_map(|shard| &shard.parents).collect();
    while let Some(parent) = above.pop() {
        if let Some(shard) = known.get(parent).filter(|shard| seen.insert(&shard.shard_id)) {
            above.extend(&shard.parents);
        }
    }
    seen.into_iter().filter(|shard| !listed.contains(shard)).map(|shard| known[shard]).min_by_key(|shard| age(shard))
}

/// Whether a lease that is there starts its application elsewhere than one that was to be created in its place: they were made by different first syncs.
#[must_use]
pub fn starts_elsewhere(there: &Lease, wanted: &Lease) -> bool {
    there.initial_timestamp != wanted.initial_timestamp || there.is_finished() != wanted.is_finished()
}

/// The leases that a table with leases lacks, in the order in which they must be created: older shards first.
///
/// `shards` are all shards that Kinesis lists; the leases must be read **after** them, so that no lease that was meanwhile finished
/// and deleted looks as if it had never been. `resolved` is used for LATEST only if no lease tells when the application started.
///
/// A shard without a lease
///
/// - is done if it has a descendant with a lease: descendants get theirs only when their parents are finished, or when the parents
///   lie before the initial position. It may have been read and cleaned up, and is never created again.
/// - waits if it descends from a shard that is not finished: it comes when that one ends. One whose shard is no longer listed
///   counts too; its owner has to end it.
/// - starts at TRIM_HORIZON if all its parents are finished: this heals a hole, whatever made it. A parent that is neither listed nor
///   leased is finished.
/// - starts at the initial position if no ancestor has a lease but one that lies before the start: a first sync was interrupted, or it is the other half of a merge.
///   Open or closed, with all its descendants: each gives exactly its records from the instant on that existing leases
///   tell, so that all shards start alike however often the first sync is interrupted.
#[must_use]
pub fn missing_leases(shards: &[Shard], leases: &[Lease], initial: InitialPosition, resolved: Option<Timestamp>) -> Vec<Lease> {
    // Shards that get their leases later carry the instant of the first ones, so that it outlives their clean-up.
    let started = leases.iter().filter_map(|lease| lease.initial_timestamp).min().filter(|_| !is_planted(Bug::OwnStart));
    let instant = started.or_else(|| instant_of(initial, resolved));
    let stream_created = leases.iter().find_map(|lease| lease.stream_created);
    let mut family = Family::new(shards, leases);
    let mut missing = Vec::new();
    for shard in oldest_first(shards) {
        let checkpoint = match family.standing(&shard.shard_id) {
            Standing::Initial => initial.checkpoint(),
            Standing::Next => Checkpoint::TrimHorizon,
            Standing::Outside | Standing::Finished | Standing::Unfinished => continue,
        };
        missing.push(lease_for(shard, checkpoint, instant, stream_created));
    }
    missing
}

/// Of the leases that are missing, oldest first, those that may be created, and those that the next listing has to ask for too. `suspected`: those that the last one
/// asked for.
///
/// A listing may lack a shard and show its child; then both are asked for by the next one, the child for the second time. Created alone, the child's lease would say that
/// its parent is done.
#[must_use]
pub fn confirmed(missing: Vec<Lease>, suspected: &BTreeSet<ShardId>) -> (Vec<Lease>, Vec<Lease>) {
    let mut waiting = BTreeSet::new();
    missing.into_iter().partition(|lease| {
        let may_be = suspected.contains(&lease.shard_id) && lease.parents.is_disjoint(&waiting);
        if !may_be {
            waiting.insert(lease.shard_id.clone());
        }
        may_be
    })
}

/// The leases of the children of a shard that has ended. They are created before the parent is noted as finished, so that a crash in
/// between leaves no hole. Children start at TRIM_HORIZON whatever the initial position: nothing of them has been read.
///
/// `watermark`: all records of the parent that arrived before are finished. No child has older ones, so that it holds for them as well: should
/// they be begun only after the stream has trimmed their first records, that is noticed.
#[must_use]
pub fn child_leases(parent: &Lease, children: &[ChildShard], watermark: Option<Timestamp>) -> Vec<Lease> {
    let checkpoint = if is_planted(Bug::ChildrenAtLatest) { Checkpoint::Latest } else { Checkpoint::TrimHorizon };
    let lease = |child: &ChildShard| Lease {
        parents: child.parents.iter().chain([&parent.shard_id]).cloned().collect(),
        hash_range: Some(child.hash_range),
        initial_timestamp: parent.initial_timestamp,
        watermark,
        stream_created: parent.stream_created,
        ..Lease::new(child.shard_id.clone(), checkpoint)
    };
    children.iter().map(lease).collect()
}

/// Checks that the other parent of each merged child is known, before the child gets its lease.
///
/// `known` tells of a shard whether it has a lease or is no longer listed by Kinesis. If only one of two parents has a lease,
/// the next shard sync makes the other one's; it could not tell any more once the child has one.
///
/// # Errors
/// [`MissingMergeParent`] names the first parent without a lease: try again later.
pub fn merge_is_ready(parent: &ShardId, children: &[ChildShard], known: &dyn Fn(&ShardId) -> bool) -> Result<(), MissingMergeParent> {
    let parents = children.iter().flat_map(|child| child.parents.iter().map(move |parent| (child, parent)));
    match parents.into_iter().find(|(_, other)| *other != parent && !known(other)) {
        Some(_) if is_planted(Bug::MergeNotAwaited) => Ok(()),
        Some((child, other)) => Err(MissingMergeParent { child: child.shard_id.clone(), parent: other.clone() }),
        None => Ok(()),
    }
}

/// Whether all records that arrived before `bound` are finished, as far as the leases tell.
///
/// Each lease that is not finished must say so; and as a first sync may be under way, together they must cover all hash keys. A child whose parent is not
/// finished, and says so, has nothing older. (There are such after a seek.)
#[must_use]
pub fn is_read_until(leases: &[Lease], bound: Timestamp) -> bool {
    let unfinished: Vec<_> = leases.iter().filter(|lease| !lease.is_finished()).collect();
    let ranges: Vec<_> = unfinished.iter().filter_map(|lease| lease.hash_range).collect();
    // Old Java libraries note no ranges: then the leases are all that is known.
    let covers_all = if ranges.len() == unfinished.len() { tiles_key_space(ranges).is_ok() } else { true };
    let mut read: BTreeSet<_> = unfinished.iter().filter(|lease| lease.watermark >= Some(bound)).map(|lease| &lease.shard_id).collect();
    // Generation by generation.
    loop {
        let before = read.len();
        let below = |lease: &&&Lease| lease.parents.iter().any(|parent| read.contains(parent));
        let more: Vec<_> = unfinished.iter().filter(below).map(|lease| &lease.shard_id).collect();
        read.extend(more);
        if read.len() == before {
            break;
        }
    }
    !unfinished.is_empty() && covers_all && unfinished.iter().all(|lease| read.contains(&lease.shard_id))
}

/// The instant that the initial position stands for; TRIM_HORIZON needs none.
fn instant_of(initial: InitialPosition, resolved: Option<Timestamp>) -> Option<Timestamp> {
    match initial {
        InitialPosition::TrimHorizon => None,
        InitialPosition::Latest => resolved,
        InitialPosition::AtTimestamp(timestamp) => Some(timestamp),
    }
}

/// The shards, each once, parents before their children.
fn oldest_first(shards: &[Shard]) -> Vec<&Shard> {
    let mut shards: Vec<_> = shards.iter().collect();
    shards.sort_by_key(|shard| age(shard));
    shards.dedup_by_key(|shard| &shard.shard_id);
    shards
}

/// What older shards have less of.
fn age(shard: &Shard) -> (SequenceNumber, &ShardId) {
    (shard.starting_sequence_number, &shard.shard_id)
}

fn lease_for(shard: &Shard, checkpoint: Checkpoint, instant: Option<Timestamp>, stream_created: Option<Timestamp>) -> Lease {
    Lease {
        parents: shard.parents.clone(),
        hash_range: Some(shard.hash_range),
        initial_timestamp: instant,
        stream_created,
        ..Lease::new(shard.shard_id.clone(), checkpoint)
    }
}

/// What a shard is to its children.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Before the initial position, or done and cleaned up long ago: no ancestor has a lease either.
    Outside,
    /// Finished, or a gap below finished ones.
    Finished,
    /// It or an ancestor has a lease that is not finished.
    Unfinished,
    /// No lease yet, and none of its ancestors has one: starts at the initial position.
    Initial,
    /// No lease yet, and all before it is finished: starts at TRIM_HORIZON.
    Next,
}

/// All shards of which the listing or the leases tell, and who descends from whom.
struct Family<'a> {
    leases: BTreeMap<&'a ShardId, &'a Lease>,
    listed: BTreeSet<&'a ShardId>,
    parents: BTreeMap<&'a ShardId, BTreeSet<&'a ShardId>>,
    /// Shards with a descendant that has a lease.
    superseded: BTreeSet<&'a ShardId>,
    standings: BTreeMap<&'a ShardId, Standing>,
}

impl<'a> Family<'a> {
    fn new(shards: &'a [Shard], leases: &'a [Lease]) -> Self {
        let listed = shards.iter().flat_map(|shard| shard.parents.iter().map(|parent| (&shard.shard_id, parent)));
        let noted = leases.iter().flat_map(|lease| lease.parents.iter().map(|parent| (&lease.shard_id, parent)));
        let ended = leases.iter().flat_map(|lease| lease.children.iter().map(|child| (child, &lease.shard_id)));
        let mut parents: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (child, parent) in listed.chain(noted).chain(ended) {
            parents.entry(child).or_default().insert(parent);
        }
        let mut superseded = BTreeSet::new();
        let mut above: Vec<_> = leases.iter().map(|lease| &lease.shard_id).collect();
        while let Some(shard) = above.pop() {
            above.extend(parents.get(shard).into_iter().flatten().copied().filter(|parent| superseded.insert(*parent)));
        }
        Self {
            leases: leases.iter().map(|lease| (&lease.shard_id, lease)).collect(),
            listed: shards.iter().map(|shard| &shard.shard_id).collect(),
            parents,
            superseded,
            standings: BTreeMap::new(),
        }
    }

    /// What this shard is to its children. Asked oldest first, so that it goes back one generation at a time.
    fn standing(&mut self, shard: &'a ShardId) -> Standing {
        if let Some(known) = self.standings.get(shard) {
            return *known;
        }
        // A shard that is its own ancestor is nonsense, and must not lead round in circles.
        self.standings.insert(shard, Standing::Outside);
        let standing = match self.leases.get(shard) {
            Some(lease) if lease.lies_before_start() => Standing::Outside,
            Some(lease) if lease.is_finished() => Standing::Finished,
            Some(_) => Standing::Unfinished,
            None => {
                let parents: Vec<_> = self.parents.get(shard).into_iter().flatten().copied().collect();
                let parents: Vec<_> = parents.into_iter().map(|parent| self.standing(parent)).collect();
                let is_to_come = self.listed.contains(shard) && !self.superseded.contains(shard);
                Self::after(&parents, is_to_come)
            }
        };
        self.standings.insert(shard, standing);
        standing
    }

    /// The standing of a shard without a lease from its parents', and whether it could get one at all.
    fn after(parents: &[Standing], is_to_come: bool) -> Standing {
        let any = |standing| parents.contains(&standing);
        // A parent that gets its lease now is unfinished as soon as it has it. But where nothing has been read yet, all start at once.
        if any(Standing::Unfinished) || any(Standing::Next) || (any(Standing::Finished) && any(Standing::Initial)) {
            Standing::Unfinished
        } else if any(Standing::Finished) {
            if is_to_come { Standing::Next } else { Standing::Finished }
        } else if is_to_come {
            Standing::Initial
        } else {
            Standing::Outside
        }
    }
}

#[cfg(test)]
mod tests;
