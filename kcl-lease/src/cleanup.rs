//! Which finished leases may be deleted.

use std::collections::BTreeMap;

use crate::lease::{Lease, ShardId};

/// The finished leases that nobody needs any more; `listed` tells whether Kinesis still lists a shard.
///
/// A finished lease is kept until each of its children is being read (its checkpoint is past its beginning) or is finished, and until its own
/// parents' leases are gone: so whoever looks at the table always sees why a shard needs no lease. Then
/// [`missing_leases`](crate::shard_sync::missing_leases) does not make it again, since its descendants have leases. A lease whose shard is
/// no longer listed goes as soon as its children have leases, or are not listed either.
#[must_use]
pub fn deletable(leases: &[Lease], listed: &dyn Fn(&ShardId) -> bool) -> Vec<Lease> {
    let rows: BTreeMap<_, _> = leases.iter().map(|lease| (&lease.shard_id, lease)).collect();
    let followed = |lease: &Lease| {
        let begun = |child: &ShardId| rows.get(child).is_some_and(|row| !row.checkpoint.is_initial());
        !lease.children.is_empty() && lease.children.iter().all(begun) && lease.parents.iter().all(|parent| !rows.contains_key(parent))
    };
    let trimmed = |lease: &Lease| !listed(&lease.shard_id) && lease.children.iter().all(|child| rows.contains_key(child) || !listed(child));
    leases.iter().filter(|lease| lease.is_finished() && (followed(lease) || trimmed(lease))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber};

    use super::*;

    fn lease(id: &str, checkpoint: Checkpoint, parents: &[&str], children: &[&str]) -> Lease {
        let mut lease = Lease::new(id.into(), checkpoint);
        lease.parents = parents.iter().map(|id| ShardId::from(*id)).collect();
        lease.children = children.iter().map(|id| ShardId::from(*id)).collect();
        lease
    }

    fn names(leases: &[Lease], listed: &[&str]) -> Vec<String> {
        deletable(leases, &|shard| listed.contains(&shard.as_str())).iter().map(|lease| lease.shard_id.to_string()).collect()
    }

    #[test]
    fn a_finished_lease_goes_when_all_its_children_have_begun() {
        let reading = Checkpoint::At(ExtendedSequenceNumber::whole(1u128.into()));
        let parent = |checkpoint| lease("p", checkpoint, &[], &["a", "b"]);
        let (a, b) = (|checkpoint| lease("a", checkpoint, &["p"], &[]), |checkpoint| lease("b", checkpoint, &["p"], &[]));
        let all = ["p", "a", "b"];
        assert!(names(&[parent(reading), a(reading), b(reading)], &all).is_empty(), "not finished");
        assert!(names(&[parent(Checkpoint::ShardEnd), a(reading), b(Checkpoint::TrimHorizon)], &all).is_empty(), "a child has not begun");
        assert!(names(&[parent(Checkpoint::ShardEnd), a(reading)], &all).is_empty(), "a child has no lease");
        assert_eq!(names(&[parent(Checkpoint::ShardEnd), a(reading), b(Checkpoint::ShardEnd)], &all), ["p"]);
    }

    #[test]
    fn older_generations_go_first() {
        let leases = [
            lease("g", Checkpoint::ShardEnd, &[], &["p"]),
            lease("p", Checkpoint::ShardEnd, &["g"], &["c"]),
            lease("c", Checkpoint::ShardEnd, &["p"], &[]),
        ];
        assert_eq!(names(&leases, &["g", "p", "c"]), ["g"]);
        assert_eq!(names(&leases[1..], &["g", "p", "c"]), ["p"]);
    }

    #[test]
    fn what_kinesis_lists_no_more_goes_once_its_children_are_looked_after() {
        let old = lease("p", Checkpoint::ShardEnd, &[], &["a"]);
        let child = lease("a", Checkpoint::TrimHorizon, &["p"], &[]);
        assert!(names(std::slice::from_ref(&old), &["a"]).is_empty());
        assert_eq!(names(&[old.clone(), child], &["a"]), ["p"]);
        assert_eq!(names(&[old], &[]), ["p"]);
    }
}
