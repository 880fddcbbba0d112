//! Which finished leases may be deleted.
//!
//! A finished lease is kept until its children have begun: it tells that they need not start from anything else, and it is the way
//! back should one of their leases be lost. Deleting goes from the oldest generation to the youngest, one generation at a time.

use std::collections::{BTreeMap, BTreeSet};

use crate::lease::{Lease, ShardId};

/// The leases that may be deleted now, in the order given. The deletion itself is conditional on the row as seen.
///
/// A lease may go if it is finished, its parents' leases are gone, and
///
/// - its children are noted, and each of them has a lease that has begun: a checkpoint that is no sentinel (stricter than
///   the Java library, for which LATEST has begun); or
/// - Kinesis does not list the shard any more (`listed`), and each of its children has begun or is itself neither listed nor leased.
///   This covers leases that never learnt of any children.
///
/// What goes is never missed by [`missing_leases`](crate::shard_sync::missing_leases): a child's lease, or that of a descendant,
/// still names it as done; or its shard is listed no more. Pass the same listing to both, or call with a `listed` that answers
/// `true` for all shards to leave those alone that Kinesis may have trimmed.
#[must_use]
pub fn deletable(leases: &[Lease], listed: &dyn Fn(&ShardId) -> bool) -> Vec<Lease> {
    let rows: BTreeMap<_, _> = leases.iter().map(|lease| (&lease.shard_id, lease)).collect();
    // Children as the parent notes them and as they tell themselves: a note may be incomplete.
    let mut children: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for lease in leases {
        children.entry(&lease.shard_id).or_default().extend(&lease.children);
        for parent in &lease.parents {
            children.entry(parent).or_default().insert(&lease.shard_id);
        }
    }
    let may_go = |lease: &&Lease| {
        let trimmed = !listed(&lease.shard_id);
        let past = |child: &ShardId| match rows.get(child) {
            Some(child) => !child.checkpoint.is_initial(),
            None => trimmed && !listed(child),
        };
        lease.is_finished()
            && lease.parents.iter().all(|parent| !rows.contains_key(parent))
            && (trimmed || !lease.children.is_empty())
            && children.get(&lease.shard_id).into_iter().flatten().all(|child| past(child))
    };
    leases.iter().filter(may_go).cloned().collect()
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber};

    use super::*;

    const BEGUN: Checkpoint = Checkpoint::At(ExtendedSequenceNumber { sequence_number: SEVEN, sub_sequence_number: 0 });
}
