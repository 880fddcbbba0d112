//! What becomes of the leases when an application begins elsewhere, forwards or back.
//!
//! Some shards get a new start: the roots. What came of a root is read after it, from its beginning. What a root came from
//! counts as read, if the application as a whole begins elsewhere. Everything is planned parents first, and is to be carried out the other way round: whoever
//! reads a child is stopped before its parent may be read. A child that is moved and whose parent is not yet, because of a crash half-way, is read anew by
//! itself: keys stay in order, and nothing is left out.

use std::collections::{BTreeMap, BTreeSet};

use kcl_checkpoint::planted::{Bug, is_planted};

use crate::lease::{Lease, ShardId};
use crate::shard_sync::Shard;
use crate::write::NewStart;

/// Begins the name of whoever owns a lease that a seek has moved, until a worker takes it. No worker's name may have a colon.
pub const SEEKER: &str = "seek:";

/// One lease's part in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Move {
    /// The lease as it is, or as it is to be created where there is none.
    pub lease: Lease,
    /// Whether it is to be created.
    pub is_new: bool,
    /// Where its shard begins.
    pub start: NewStart,
    /// For a shard that counts as read: what became of it.
    pub children: BTreeSet<ShardId>,
    /// Higher than that of all shards that it came of. Those of one generation may be moved at once.
    pub generation: usize,
}

/// What is to become of the leases, parents first.
///
/// `shards` are all that Kinesis lists; `leases` all of the table, read after them. `whole`: the application as a whole begins at the roots, and all that came
/// before them counts as read. Otherwise that is left as it is.
///
/// A descendant without a lease gets one if another one below it has one; else it comes when its parents end, as always. A shard that counts as read, and has
/// not begun, gets one that is finished: nobody can create it any more.
#[must_use]
pub fn plan(shards: &[Shard], leases: &[Lease], roots: &BTreeMap<ShardId, NewStart>, whole: bool) -> Vec<Move> {
    let family = Family::new(shards, leases);
    let chosen: BTreeSet<_> = roots.keys().collect();
    let after = if is_planted(Bug::DescendantsNotSought) { BTreeSet::new() } else { family.descendants(&chosen) };
    let before = if whole { family.ancestors(&chosen) } else { BTreeSet::new() };
    let leased: BTreeSet<_> = leases.iter().map(|lease| &lease.shard_id).collect();
    let above_a_lease = family.ancestors(&leased);
    // Whoever reads its parent may be at the end of it, and about to create the lease: it finds it there, and finished.
    let may_come = |id: &ShardId| !above_a_lease.contains(id);
    let like = leases.iter().find_map(|lease| lease.stream_created);
    let mut moves = Vec::new();
    for (generation, id) in family.oldest_first() {
        let lease = family.leases.get(id).copied();
        let start = match roots.get(id) {
            Some(start) => *start,
            None if after.contains(id) && (lease.is_some() || above_a_lease.contains(id)) => NewStart::TRIM_HORIZON,
            // A root's own ancestor may be a root too, or come after another one.
            None if before.contains(id) && !after.contains(id) && lease.map_or_else(|| may_come(id), |lease| !lease.is_finished()) => {
                NewStart::SHARD_END
            }
            None => continue,
        };
        let children = if start == NewStart::SHARD_END { family.children_of(id) } else { BTreeSet::new() };
        let (lease, is_new) = match (lease, family.listed.get(id)) {
            (Some(lease), _) => (lease.clone(), false),
            (None, _) if is_planted(Bug::CleanedUpNotSought) => continue,
            (None, Some(shard)) => {
                let parents = shard.parents.clone();
                let new = Lease::new(shard.shard_id.clone(), start.checkpoint);
                let (hash_range, initial_timestamp, children) = (Some(shard.hash_range), start.instant, children.clone());
                (Lease { parents, children, hash_range, initial_timestamp, stream_created: like, ..new }, true)
            }
            (None, None) => continue,
        };
        moves.push(Move { lease, is_new, start, children, generation });
    }
    moves
}

/// Who comes of whom, as far as the listing and the leases tell.
struct Family<'a> {
    leases: BTreeMap<&'a ShardId, &'a Lease>,
    listed: BTreeMap<&'a ShardId, &'a Shard>,
    parents: BTreeMap<&'a ShardId, BTreeSet<&'a ShardId>>,
    children: BTreeMap<&'a ShardId, BTreeSet<&'a ShardId>>,
}

impl<'a> Family<'a> {
    fn new(shards: &'a [Shard], leases: &'a [Lease]) -> Self {
        let mut family = Self {
            leases: leases.iter().map(|lease| (&lease.shard_id, lease)).collect(),
            listed: shards.iter().map(|shard| (&shard.shard_id, shard)).collect(),
            parents: BTreeMap::new(),
            children: BTreeMap::new(),
        };
        let listed = shards.iter().flat_map(|shard| shard.parents.iter().map(move |parent| (parent, &shard.shard_id)));
        let noted = leases.iter().flat_map(|lease| lease.parents.iter().map(move |parent| (parent, &lease.shard_id)));
        let ended = leases.iter().flat_map(|lease| lease.children.iter().map(move |child| (&lease.shard_id, child)));
        for (parent, child) in listed.chain(noted).chain(ended) {
            family.parents.entry(child).or_default().insert(parent);
            family.children.entry(parent).or_default().insert(child);
        }
        family
    }

    fn descendants(&self, of: &BTreeSet<&'a ShardId>) -> BTreeSet<&'a ShardId> {
        reachable(of, &self.children)
    }

    fn ancestors(&self, of: &BTreeSet<&'a ShardId>) -> BTreeSet<&'a ShardId> {
        reachable(of, &self.parents)
    }

    fn children_of(&self, shard: &ShardId) -> BTreeSet<ShardId> {
        self.children.get(shard).into_iter().flatten().map(|child| (*child).clone()).collect()
    }

    /// All shards with a lease or a listing, parents first, each with its generation.
    fn oldest_first(&self) -> Vec<(usize, &'a ShardId)> {
        let mut order = Vec::new();
        let mut generation = 0;
        let mut left: BTreeSet<&'a ShardId> = self.leases.keys().chain(self.listed.keys()).copied().collect();
        while !left.is_empty() {
            let waits = |shard: &ShardId| self.parents.get(shard).into_iter().flatten().any(|parent| left.contains(*parent));
            let mut next: Vec<_> = left.iter().copied().filter(|shard| !waits(shard)).collect();
            if next.is_empty() {
                // Shards that are their own ancestors are nonsense, and must not lead round in circles.
                next = left.iter().copied().collect();
            }
            for shard in next {
                left.remove(shard);
                order.push((generation, shard));
            }
            generation += 1;
        }
        order
    }
}

/// All that can be reached from these by one step or more.
fn reachable<'a>(from: &BTreeSet<&'a ShardId>, steps: &BTreeMap<&'a ShardId, BTreeSet<&'a ShardId>>) -> BTreeSet<&'a ShardId> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<_> = from.iter().copied().collect();
    while let Some(shard) = open.pop() {
        open.extend(steps.get(shard).into_iter().flatten().copied().filter(|next| reached.insert(*next)));
    }
    reached
}

#[cfg(test)]
mod tests {
    use kcl_checkpoint::{Checkpoint, ExtendedSequenceNumber, Timestamp};

    use super::*;
    use crate::lease::HashKeyRange;

    const NOON: NewStart = NewStart { checkpoint: Checkpoint::AtTimestamp, instant: Some(Timestamp::from_millis(12)) };

    fn ids(names: &[&str]) -> BTreeSet<ShardId> {
        names.iter().map(|name| (*name).into()).collect()
    }

    /// `a` was split into `b` and `c`; `b` and `d` were merged into `e`; `c` was split into `f` and `g`.
    fn family() -> Vec<Shard> {
        let shard = |(number, (name, parents)): (usize, (&str, &[&str]))| Shard {
            shard_id: name.into(),
            parents: ids(parents),
            hash_range: HashKeyRange { start: 0, end: u128::MAX },
            starting_sequence_number: (number as u128).into(),
            ending_sequence_number: None,
        };
        let all: [(&str, &[&str]); 7] =
            [("a", &[]), ("d", &[]), ("b", &["a"]), ("c", &["a"]), ("e", &["b", "d"]), ("f", &["c"]), ("g", &["c"])];
        all.into_iter().enumerate().map(shard).collect()
    }

    fn lease(name: &str, checkpoint: Checkpoint) -> Lease {
        Lease { stream_created: Some(Timestamp::from_millis(1)), ..Lease::new(name.into(), checkpoint) }
    }

    fn begun() -> Checkpoint {
        Checkpoint::At(ExtendedSequenceNumber::whole(7.into()))
    }

    /// The plan as text: `name:checkpoint`, new ones with a plus.
    fn planned(leases: &[(&str, Checkpoint)], roots: &[&str], whole: bool) -> Vec<String> {
        let leases: Vec<_> = leases.iter().map(|(name, checkpoint)| lease(name, *checkpoint)).collect();
        let roots = roots.iter().map(|name| ((*name).into(), NOON)).collect();
        let text = |moved: Move| format!("{}{}:{}", if moved.is_new { "+" } else { "" }, moved.lease.shard_id, moved.start.checkpoint);
        plan(&family(), &leases, &roots, whole).into_iter().map(text).collect()
    }

    #[test]
    fn the_roots_begin_anew_and_what_came_of_them_is_read_after_them() {
        let end = Checkpoint::ShardEnd;
        let all = [("a", end), ("b", end), ("c", begun()), ("d", end), ("e", begun())];
        assert_eq!(
            planned(&all, &["a", "d"], true),
            ["a:AT_TIMESTAMP", "d:AT_TIMESTAMP", "b:TRIM_HORIZON", "c:TRIM_HORIZON", "e:TRIM_HORIZON"]
        );
    }

    #[test]
    fn leases_that_were_cleaned_up_are_made_anew_where_a_later_one_exists() {
        let all = [("e", begun()), ("f", begun()), ("g", begun())];
        assert_eq!(
            planned(&all, &["a", "d"], true),
            [
                "+a:AT_TIMESTAMP",
                "+d:AT_TIMESTAMP",
                "+b:TRIM_HORIZON",
                "+c:TRIM_HORIZON",
                "e:TRIM_HORIZON",
                "f:TRIM_HORIZON",
                "g:TRIM_HORIZON"
            ]
        );
        let moves = plan(&family(), &[lease("e", begun())], &BTreeMap::from([("b".into(), NOON)]), false);
        let made = &moves[0].lease;
        assert_eq!(
            (made.parents.clone(), made.initial_timestamp, made.stream_created),
            (ids(&["a"]), NOON.instant, Some(Timestamp::from_millis(1)))
        );
        assert_eq!(made.hash_range, Some(HashKeyRange { start: 0, end: u128::MAX }));
    }

    #[test]
    fn every_shard_is_of_a_later_generation_than_those_it_came_of() {
        let all = ["a", "d", "b", "c", "e", "f", "g"].map(|name| lease(name, begun()));
        let moves = plan(&family(), &all, &BTreeMap::from([("a".into(), NOON), ("d".into(), NOON)]), true);
        let generations: Vec<_> = moves.iter().map(|moved| (moved.lease.shard_id.as_str(), moved.generation)).collect();
        assert_eq!(generations, [("a", 0), ("d", 0), ("b", 1), ("c", 1), ("e", 2), ("f", 2), ("g", 2)]);
    }

    #[test]
    fn what_has_no_lease_yet_comes_when_its_parents_end() {
        assert_eq!(planned(&[("a", begun()), ("d", begun())], &["a", "d"], true), ["a:AT_TIMESTAMP", "d:AT_TIMESTAMP"]);
    }

    #[test]
    fn what_came_before_the_roots_counts_as_read() {
        let all = [("a", begun()), ("d", Checkpoint::ShardEnd)];
        assert_eq!(
            planned(&all, &["e", "f", "g"], true),
            ["a:SHARD_END", "+b:SHARD_END", "+c:SHARD_END", "+e:AT_TIMESTAMP", "+f:AT_TIMESTAMP", "+g:AT_TIMESTAMP"],
            "what is at its end already stays so, and what would begin only when its parent ends does not begin"
        );
        let read = [("b", Checkpoint::ShardEnd), ("c", begun()), ("d", Checkpoint::ShardEnd)];
        assert_eq!(
            planned(&read, &["e", "f", "g"], true),
            ["c:SHARD_END", "+e:AT_TIMESTAMP", "+f:AT_TIMESTAMP", "+g:AT_TIMESTAMP"],
            "a parent that was cleaned up stays so"
        );
        let leases: Vec<_> = all.iter().map(|(name, checkpoint)| lease(name, *checkpoint)).collect();
        let moves = plan(&family(), &leases, &BTreeMap::from([("b".into(), NOON), ("c".into(), NOON), ("d".into(), NOON)]), true);
        assert_eq!(moves.iter().find(|moved| moved.lease.shard_id == "a".into()).unwrap().children, ids(&["b", "c"]));
        let leases = [lease("a", begun()), lease("d", begun())];
        let moves = plan(&family(), &leases, &BTreeMap::from([("e".into(), NOON), ("f".into(), NOON), ("g".into(), NOON)]), true);
        assert_eq!(moves.iter().find(|moved| moved.lease.shard_id == "c".into()).unwrap().lease.children, ids(&["f", "g"]));
    }

    #[test]
    fn a_single_shard_leaves_what_came_before_and_beside_it_alone() {
        let all = [("a", begun()), ("b", begun()), ("c", begun()), ("d", begun()), ("e", Checkpoint::TrimHorizon)];
        assert_eq!(planned(&all, &["b"], false), ["b:AT_TIMESTAMP", "e:TRIM_HORIZON"]);
    }

    #[test]
    fn of_a_shard_and_its_parent_both_may_be_roots() {
        // a shard that closed in the very instant is listed together with its children
        let all = [("c", Checkpoint::ShardEnd), ("f", begun()), ("g", begun())];
        assert_eq!(planned(&all, &["c", "f", "g"], true), ["c:AT_TIMESTAMP", "f:AT_TIMESTAMP", "g:AT_TIMESTAMP"]);
    }

    #[test]
    fn shards_that_are_their_own_ancestors_do_no_harm() {
        let mut shards = family();
        shards[0].parents = ids(&["g"]);
        let moves = plan(&shards, &[lease("a", begun())], &BTreeMap::from([("a".into(), NOON)]), true);
        assert_eq!(moves[0].lease.shard_id, "a".into());
    }
}
