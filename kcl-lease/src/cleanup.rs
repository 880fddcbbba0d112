//! Which finished leases may be deleted.
//!
//! A finished lease is kept until its children have begun: it tells that they need not start from anything else, and it is the way
//! back should one of their leases be lost. Deleting goes from the oldest generation to the youngest, one generation at a time.

use std::collections::{BTreeMap, BTreeSet};

use kcl_checkpoint::planted::{Bug, is_planted};

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
/// A lease of a shard that lies before the start ([`Lease::lies_before_start`]) goes as soon as another one notes where that is.
///
/// What goes is never missed by [`missing_leases`](crate::shard_sync::missing_leases): a child's lease, or that of a descendant,
/// still shows that it is done; or its shard is listed no more.
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
            Some(child) => !child.checkpoint.is_initial() || is_planted(Bug::DeletedBeforeChildrenBegan),
            None => trimmed && !listed(child),
        };
        if lease.lies_before_start() {
            return leases.iter().any(|other| !other.lies_before_start() && other.initial_timestamp == lease.initial_timestamp);
        }
        lease.is_finished()
            && lease.parents.iter().all(|parent| !rows.contains_key(parent))
            && (trimmed || !lease.children.is_empty())
            && children.get(&lease.shard_id).into_iter().flatten().all(|child| past(child))
    };
    leases.iter().filter(may_go).cloned().collect()
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, InitialPosition, Timestamp};

    use super::*;
    use crate::lease::HashKeyRange;
    use crate::shard_sync::{Shard, missing_leases};

    fn ids(names: &[&str]) -> BTreeSet<ShardId> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn lease(name: &str, checkpoint: Checkpoint, parents: &[&str], children: &[&str]) -> Lease {
        Lease { parents: ids(parents), children: ids(children), ..Lease::new(name.into(), checkpoint) }
    }

    fn begun() -> Checkpoint {
        Checkpoint::At(ExtendedSequenceNumber::whole(7.into()))
    }

    fn names(leases: &[Lease], trimmed: &[&str]) -> Vec<String> {
        deletable(leases, &|shard| !trimmed.contains(&shard.as_str())).iter().map(|lease| lease.shard_id.to_string()).collect()
    }

    #[test]
    fn a_finished_lease_goes_when_all_its_children_have_begun() {
        use Checkpoint::{AtTimestamp, Latest, ShardEnd, TrimHorizon};
        let parent = lease("p", ShardEnd, &[], &["l", "r"]);
        for (left, right, goes) in [
            (Some(begun()), Some(begun()), true),
            (Some(begun()), Some(ShardEnd), true),
            (Some(begun()), Some(TrimHorizon), false),
            (Some(begun()), Some(Latest), false),
            (Some(AtTimestamp), Some(begun()), false),
            (Some(begun()), None, false),
            (None, None, false),
        ] {
            let child = |name, checkpoint: Option<Checkpoint>| checkpoint.map(|checkpoint| lease(name, checkpoint, &["p"], &[]));
            let leases: Vec<_> = [Some(parent.clone()), child("l", left), child("r", right)].into_iter().flatten().collect();
            assert_eq!(names(&leases, &[]).contains(&"p".to_owned()), goes, "{left:?} {right:?}");
        }
    }

    #[test]
    fn an_unfinished_lease_never_goes() {
        let leases = [lease("p", begun(), &[], &["c"]), lease("c", begun(), &["p"], &[])];
        assert_eq!(names(&leases, &["p"]), [""; 0]);
    }

    #[test]
    fn older_generations_go_first() {
        let (p, c, g) = (
            lease("p", Checkpoint::ShardEnd, &[], &["c"]),
            lease("c", Checkpoint::ShardEnd, &["p"], &["g"]),
            lease("g", begun(), &["c"], &[]),
        );
        assert_eq!(names(&[p, c.clone(), g.clone()], &[]), ["p"]);
        assert_eq!(names(&[c, g.clone()], &[]), ["c"]);
        assert_eq!(names(&[g], &[]), [""; 0]);
    }

    #[test]
    fn a_lease_that_lies_before_the_start_goes_when_another_one_notes_that() {
        let at = |instant: u64, lease: Lease| Lease { initial_timestamp: Some(Timestamp::from_millis(instant)), ..lease };
        let before = at(7, lease("p", Checkpoint::ShardEnd, &[], &["l", "r"]));
        for (other, goes) in [
            (None, false),
            (Some(at(7, lease("x", Checkpoint::Latest, &[], &[]))), true),
            (Some(at(7, lease("l", Checkpoint::TrimHorizon, &["p"], &[]))), true),
            (Some(at(8, lease("l", Checkpoint::Latest, &["p"], &[]))), false),
            (Some(at(7, lease("o", Checkpoint::ShardEnd, &[], &["x"]))), false),
        ] {
            let leases: Vec<_> = [before.clone()].into_iter().chain(other).collect();
            assert_eq!(names(&leases, &[]).contains(&"p".to_owned()), goes, "{leases:?}");
        }
    }

    #[test]
    fn a_lease_that_knows_of_no_children_goes_only_when_its_shard_is_listed_no_more() {
        let p = lease("p", Checkpoint::ShardEnd, &[], &[]);
        assert_eq!(names(std::slice::from_ref(&p), &[]), [""; 0]);
        assert_eq!(names(std::slice::from_ref(&p), &["p"]), ["p"]);
        // a child that names it has not begun
        let child = lease("c", Checkpoint::TrimHorizon, &["p"], &[]);
        assert_eq!(names(&[p, child], &["p"]), [""; 0]);
    }

    #[test]
    fn a_child_that_the_parent_does_not_note_must_have_begun_too() {
        let leases = [
            lease("p", Checkpoint::ShardEnd, &[], &["l"]),
            lease("l", begun(), &["p"], &[]),
            lease("r", Checkpoint::TrimHorizon, &["p"], &[]),
        ];
        assert_eq!(names(&leases, &[]), [""; 0]);
    }

    #[test]
    fn a_child_without_a_lease_keeps_its_parent_until_both_are_trimmed() {
        let p = lease("p", Checkpoint::ShardEnd, &[], &["c"]);
        for (trimmed, goes) in [(&[][..], false), (&["p"], false), (&["p", "c"], true)] {
            assert_eq!(!names(std::slice::from_ref(&p), trimmed).is_empty(), goes, "{trimmed:?}");
        }
    }

    #[test]
    fn what_was_deleted_is_not_made_again() {
        let shard = |name: &str, parents: &[&str], number: u128| Shard {
            shard_id: name.into(),
            parents: ids(parents),
            hash_range: HashKeyRange { start: 0, end: u128::MAX },
            starting_sequence_number: number.into(),
            ending_sequence_number: (number < 4).then(|| (number + 1).into()),
        };
        let shards = [shard("a", &[], 1), shard("b", &[], 1), shard("m", &["a", "b"], 2), shard("g", &["m"], 3), shard("h", &["g"], 4)];
        let mut leases = vec![
            lease("a", Checkpoint::ShardEnd, &[], &["m"]),
            lease("b", Checkpoint::ShardEnd, &[], &["m"]),
            lease("m", Checkpoint::ShardEnd, &["a", "b"], &["g"]),
            lease("g", Checkpoint::ShardEnd, &["m"], &["h"]),
            lease("h", begun(), &["g"], &[]),
        ];
        let mut gone = Vec::new();
        while let Some(next) = deletable(&leases, &|_| true).first() {
            leases.retain(|lease| lease.shard_id != next.shard_id);
            gone.push(next.shard_id.to_string());
            for initial in [InitialPosition::TrimHorizon, InitialPosition::Latest] {
                assert_eq!(missing_leases(&shards, &leases, initial, None), [], "after {gone:?}");
            }
        }
        assert_eq!(gone, ["a", "b", "m", "g"]);
    }
}
