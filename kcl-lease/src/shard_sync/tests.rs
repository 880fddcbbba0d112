use kcl_checkpoint::ExtendedSequenceNumber;
use proptest::prelude::*;

use super::*;
use crate::assignment::startable;
use crate::cleanup::deletable;
use crate::entropy::Entropy;

const ALL: HashKeyRange = HashKeyRange { start: 0, end: u128::MAX };
const T0: Timestamp = Timestamp::from_millis(1_000);

fn range(start: u128, end: u128) -> HashKeyRange {
    HashKeyRange { start, end }
}

/// A shard of the listings below; their order is that of their sequence numbers.
fn listed(name: &str, parents: &[&str], number: u128, open: bool) -> Shard {
    Shard {
        shard_id: name.into(),
        parents: parents.iter().map(|parent| (*parent).into()).collect(),
        hash_range: ALL,
        starting_sequence_number: number.into(),
        ending_sequence_number: (!open).then(|| (number + 5).into()),
    }
}

fn lease(name: &str, parents: &[&str], checkpoint: Checkpoint) -> Lease {
    Lease { parents: parents.iter().map(|parent| (*parent).into()).collect(), ..Lease::new(name.into(), checkpoint) }
}

fn begun() -> Checkpoint {
    Checkpoint::At(ExtendedSequenceNumber::whole(7.into()))
}

/// Name and checkpoint of the leases that are missing.
fn missing(shards: &[Shard], leases: &[Lease], initial: InitialPosition) -> Vec<(String, Checkpoint)> {
    let missing = missing_leases(shards, leases, initial, Some(T0));
    missing.into_iter().map(|lease| (lease.shard_id.to_string(), lease.checkpoint)).collect()
}

fn pairs(expected: &[(&str, Checkpoint)]) -> Vec<(String, Checkpoint)> {
    expected.iter().map(|(name, checkpoint)| ((*name).to_owned(), *checkpoint)).collect()
}

#[test]
fn a_shard_is_open_until_it_has_a_last_sequence_number() {
    for open in [true, false] {
        assert_eq!(listed("a", &[], 1, open).is_open(), open);
    }
}

#[test]
fn a_hole_is_found_wherever_it_is() {
    let max = u128::MAX;
    for (ranges, expected) in [
        (vec![ALL], Ok(())),
        (vec![range(9, max), range(0, 8)], Ok(())),
        (vec![range(0, 5), range(3, max), range(0, max)], Ok(())),
        (vec![range(0, max), range(3, 5)], Ok(())),
        (vec![range(0, 9), range(2, 3), range(10, max)], Ok(())),
        (vec![], Err(Hole { start: 0, end: max })),
        (vec![range(1, max)], Err(Hole { start: 0, end: 0 })),
        (vec![range(0, 4), range(6, max)], Err(Hole { start: 5, end: 5 })),
        (vec![range(0, 4), range(2, max - 1)], Err(Hole { start: max, end: max })),
    ] {
        assert_eq!(tiles_key_space(ranges.clone()), expected, "{ranges:?}");
    }
}

#[test]
fn the_first_leases_are_those_listed_older_ones_first_with_all_that_is_known() {
    let listing = [listed("b", &["a"], 10, true), listed("c", &[], 9, false), listed("a", &[], 10, false), listed("c", &[], 9, false)];
    for (initial, checkpoint, instant) in [
        (InitialPosition::Latest, Checkpoint::Latest, Some(T0)),
        (InitialPosition::TrimHorizon, Checkpoint::TrimHorizon, None),
        (InitialPosition::AtTimestamp(Timestamp::from_millis(5)), Checkpoint::AtTimestamp, Some(Timestamp::from_millis(5))),
    ] {
        let leases = initial_leases(&listing, &[], initial, Some(T0), Some(Timestamp::from_millis(3))).unwrap();
        assert_eq!(leases.iter().map(|lease| lease.shard_id.as_str()).collect::<Vec<_>>(), ["c", "a", "b"]);
        let expected = Lease {
            initial_timestamp: instant,
            hash_range: Some(ALL),
            stream_created: Some(Timestamp::from_millis(3)),
            ..lease("b", &["a"], checkpoint)
        };
        assert_eq!(leases[2], expected);
    }
}

#[test]
fn the_first_lease_is_of_the_same_shard_whatever_is_resharded_meanwhile() {
    let part = |low: bool| if low { range(0, u128::MAX / 2) } else { range(u128::MAX / 2 + 1, u128::MAX) };
    let half = |shard: Shard, low: bool| Shard { hash_range: part(low), ..shard };
    let (old, p) = (listed("old", &[], 1, false), listed("p", &["old"], 2, false));
    let (left, right) = (half(listed("l", &["p"], 3, true), true), half(listed("r", &["p"], 4, true), false));
    let open = |shard: &Shard| Shard { ending_sequence_number: None, ..shard.clone() };
    for (what, initial, listing, all, expected) in [
        ("one shard", InitialPosition::Latest, vec![open(&p)], vec![open(&p)], "p LATEST"),
        (
            "it was split",
            InitialPosition::Latest,
            vec![left.clone(), right.clone()],
            vec![p.clone(), left.clone(), right.clone()],
            "p SHARD_END",
        ),
        ("an older one", InitialPosition::Latest, vec![open(&p)], vec![old.clone(), open(&p)], "old SHARD_END"),
        (
            "both",
            InitialPosition::Latest,
            vec![left.clone(), right.clone()],
            vec![old.clone(), p.clone(), left.clone(), right.clone()],
            "old SHARD_END",
        ),
        (
            "the oldest was trimmed",
            InitialPosition::Latest,
            vec![left.clone(), right.clone()],
            vec![left.clone(), right.clone()],
            "l LATEST",
        ),
        ("at a time", InitialPosition::AtTimestamp(T0), vec![p.clone()], vec![old.clone(), p.clone(), left.clone()], "old SHARD_END"),
        ("the oldest record", InitialPosition::TrimHorizon, vec![p.clone()], vec![old.clone(), p.clone(), left.clone()], "p TRIM_HORIZON"),
    ] {
        let leases = initial_leases(&listing, &all, initial, Some(T0), None).unwrap();
        assert_eq!(format!("{} {}", leases[0].shard_id, leases[0].checkpoint), expected, "{what}");
        assert_eq!(leases[0].lies_before_start(), leases.len() > listing.len(), "{what}");
    }
    let decides = &initial_leases(&[left.clone(), right.clone()], &[p, left, right], InitialPosition::Latest, Some(T0), None).unwrap()[0];
    assert_eq!(decides.children, ["l".into(), "r".into()].into());
}

#[test]
fn a_lease_of_another_first_sync_is_recognised() {
    let at = |millis: u64, checkpoint| Lease { initial_timestamp: Some(Timestamp::from_millis(millis)), ..lease("p", &[], checkpoint) };
    let wanted = at(7, Checkpoint::Latest);
    for (there, expected) in [
        (at(7, Checkpoint::Latest), false),
        (at(7, begun()), false),
        (at(8, Checkpoint::Latest), true),
        (at(7, Checkpoint::ShardEnd), true),
        (lease("p", &[], Checkpoint::Latest), true),
    ] {
        assert_eq!(starts_elsewhere(&there, &wanted), expected, "{there:?}");
    }
}

#[test]
fn what_came_of_a_shard_before_the_start_begins_at_the_start() {
    let chain = [listed("p", &[], 1, false), listed("c", &["p"], 2, false), listed("g", &["c"], 3, true)];
    let before = Lease { initial_timestamp: Some(T0), ..lease("p", &[], Checkpoint::ShardEnd) };
    let read = Lease { counter: 5, ..before.clone() };
    assert_eq!(missing(&chain, &[before], InitialPosition::Latest), pairs(&[("c", Checkpoint::Latest), ("g", Checkpoint::Latest)]));
    assert_eq!(missing(&chain, &[read], InitialPosition::Latest), pairs(&[("c", Checkpoint::TrimHorizon)]));
}

#[test]
fn an_incomplete_first_listing_is_refused() {
    let half = Shard { hash_range: range(0, 99), ..listed("a", &[], 1, true) };
    let hole = initial_leases(&[half], &[], InitialPosition::Latest, Some(T0), None).unwrap_err();
    assert_eq!(hole, Hole { start: 100, end: u128::MAX });
    assert!(hole.to_string().contains("from 100 to"), "{hole}");
}

#[test]
fn the_ancestor_rules() {
    use Checkpoint::{Latest, ShardEnd, TrimHorizon};
    let split = [listed("p", &[], 1, false), listed("l", &["p"], 2, true), listed("r", &["p"], 3, true)];
    let merge = [listed("a", &[], 1, false), listed("b", &[], 2, false), listed("m", &["a", "b"], 3, true)];
    let chain = [listed("p", &[], 1, false), listed("c", &["p"], 2, false), listed("g", &["c"], 3, true)];
    let other = lease("x", &[], begun());
    let latest = InitialPosition::Latest;
    for (what, shards, leases, expected) in [
        ("children of an unfinished lease come when it ends", &split[..], vec![lease("p", &[], begun())], vec![]),
        ("children of a finished one are a hole", &split, vec![lease("p", &[], ShardEnd)], vec![("l", TrimHorizon), ("r", TrimHorizon)]),
        ("one child of a finished one", &split, vec![lease("p", &[], ShardEnd), lease("l", &["p"], begun())], vec![("r", TrimHorizon)]),
        ("a parent with a leased child is done; the sibling is not", &split, vec![lease("l", &["p"], Latest)], vec![("r", Latest)]),
        ("all children leased", &split, vec![lease("l", &["p"], begun()), lease("r", &["p"], TrimHorizon)], vec![]),
        ("nothing of the family is known", &split, vec![other.clone()], vec![("p", Latest), ("l", Latest), ("r", Latest)]),
        ("the other half of a merge", &merge, vec![lease("a", &[], begun())], vec![("b", Latest)]),
        ("the other half of a merge, too late for this half", &merge, vec![lease("a", &[], ShardEnd)], vec![("b", Latest)]),
        ("both halves finished", &merge, vec![lease("a", &[], ShardEnd), lease("b", &[], ShardEnd)], vec![("m", TrimHorizon)]),
        ("one half finished", &merge, vec![lease("a", &[], ShardEnd), lease("b", &[], begun())], vec![]),
        ("the other half trimmed", &merge[1..], vec![lease("b", &[], ShardEnd)], vec![("m", TrimHorizon)]),
        ("halves of a leased merge are done", &merge, vec![lease("m", &["a", "b"], begun())], vec![]),
        ("one generation at a time", &chain, vec![lease("p", &[], ShardEnd)], vec![("c", TrimHorizon)]),
        ("a grandchild of an unfinished one", &chain, vec![lease("p", &[], begun())], vec![]),
        ("two generations cleaned up", &chain, vec![lease("g", &["c"], begun())], vec![]),
        ("an ended middle one deleted by hand", &chain, vec![lease("p", &[], ShardEnd), lease("g", &["c"], begun())], vec![]),
        (
            "the generation between is trimmed",
            &chain[2..],
            vec![Lease { children: ["c".into()].into(), ..lease("p", &[], ShardEnd) }],
            vec![("g", TrimHorizon)],
        ),
        ("the unfinished parent is trimmed", &chain[1..], vec![lease("p", &[], begun())], vec![]),
        ("a cleaned parent is not in an old listing's way", &chain[..1], vec![lease("c", &["p"], begun())], vec![]),
    ] {
        assert_eq!(missing(shards, &leases, latest), pairs(&expected), "{what}");
    }
}

#[test]
fn what_is_missing_starts_at_the_instant_of_the_leases_that_are_there() {
    let shards = [listed("a", &[], 1, true), listed("b", &[], 2, true)];
    let early = Timestamp::from_millis(10);
    let mut there = Lease { stream_created: Some(Timestamp::from_millis(2)), ..lease("a", &[], begun()) };
    for (told, initial, instant) in [
        (Some(early), InitialPosition::Latest, Some(early)),
        (None, InitialPosition::Latest, Some(T0)),
        (Some(early), InitialPosition::AtTimestamp(T0), Some(early)),
        (None, InitialPosition::AtTimestamp(early), Some(early)),
        (None, InitialPosition::TrimHorizon, None),
    ] {
        there.initial_timestamp = told;
        let missing = missing_leases(&shards, std::slice::from_ref(&there), initial, Some(T0));
        assert_eq!(
            (missing.len(), missing[0].initial_timestamp, missing[0].checkpoint),
            (1, instant, initial.checkpoint()),
            "{told:?} {initial:?}"
        );
        assert_eq!(missing[0].stream_created, there.stream_created);
    }
}

#[test]
fn children_start_at_the_beginning_and_know_where_they_come_from() {
    let child = ChildShard { shard_id: "m".into(), parents: ["a".into(), "b".into()].into(), hash_range: ALL };
    let parent = Lease { initial_timestamp: Some(T0), stream_created: Some(T0), ..lease("a", &[], Checkpoint::Latest) };
    let watermark = Timestamp::from_millis(7);
    let expected = Lease {
        hash_range: Some(ALL),
        initial_timestamp: Some(T0),
        watermark: Some(watermark),
        stream_created: Some(T0),
        ..lease("m", &["a", "b"], Checkpoint::TrimHorizon)
    };
    assert_eq!(child_leases(&parent, std::slice::from_ref(&child), Some(watermark)), [expected]);
    assert_eq!(child_leases(&parent, &[], None), []);

    let ready = |known: &[&str]| merge_is_ready(&"a".into(), std::slice::from_ref(&child), &|shard| known.contains(&shard.as_str()));
    assert_eq!(ready(&["b"]), Ok(()));
    let missing = ready(&["a"]).unwrap_err();
    assert_eq!(missing, MissingMergeParent { child: "m".into(), parent: "b".into() });
    assert!(missing.to_string().contains("shard m merges shard b"), "{missing}");
    let split = ChildShard { parents: ["a".into()].into(), ..child.clone() };
    assert_eq!(merge_is_ready(&"a".into(), &[split], &|_| false), Ok(()));
}

#[test]
fn a_listing_that_makes_no_sense_ends_all_the_same() {
    let circle = [listed("a", &["b"], 1, false), listed("b", &["a"], 2, true), listed("c", &["c"], 3, true)];
    assert_eq!(missing(&circle, &[lease("x", &[], begun())], InitialPosition::TrimHorizon).len(), 3);
    assert_eq!(missing(&circle, &[lease("a", &["b"], begun())], InitialPosition::TrimHorizon), pairs(&[("c", Checkpoint::TrimHorizon)]));
}

/// A shard as it really is: what Kinesis knows, time in ticks.
#[derive(Debug)]
struct Real {
    shard_id: ShardId,
    parents: BTreeSet<ShardId>,
    hash_range: HashKeyRange,
    opened: u64,
    closed: Option<u64>,
    depth: usize,
    trimmed: bool,
}

impl Real {
    fn was_open_at(&self, tick: u64) -> bool {
        self.opened <= tick && self.outlived(tick)
    }

    fn outlived(&self, tick: u64) -> bool {
        self.closed.is_none_or(|closed| closed > tick)
    }
}

/// One stream that is resharded at random, and one application that reads it with crashes between any two writes.
#[derive(Debug)]
struct World {
    entropy: Entropy,
    now: u64,
    shards: Vec<Real>,
    initial: InitialPosition,
    horizon: u64,
    table: BTreeMap<ShardId, Lease>,
    /// From which tick on each shard that ever had a lease is read.
    read_from: BTreeMap<ShardId, u64>,
    finished: BTreeSet<ShardId>,
    /// The tick from which on everything must be read, once the first lease is there.
    start: Option<u64>,
    /// Whether the first sync was completed, and whether it was ever interrupted.
    complete: bool,
    interrupted: bool,
    /// Whether resharding is over.
    quiet: bool,
    /// First syncs that are under way, each with what it has listed and the number of its leases that it is through with.
    under_way: Vec<(Vec<Lease>, usize)>,
}

impl World {
    fn new(seed: u64, position: usize) -> Self {
        let mut world = Self {
            entropy: Entropy::from_seed(seed),
            now: 1,
            shards: Vec::new(),
            initial: InitialPosition::TrimHorizon,
            horizon: 0,
            table: BTreeMap::new(),
            read_from: BTreeMap::new(),
            finished: BTreeSet::new(),
            start: None,
            complete: false,
            interrupted: false,
            quiet: false,
            under_way: Vec::new(),
        };
        let width = u128::MAX / 4;
        for part in 0..4 {
            let end = if part == 3 { u128::MAX } else { (part + 1) * width - 1 };
            world.open(BTreeSet::new(), range(part * width, end), 0);
        }
        (0..world.draw(8)).for_each(|_| world.reshard());
        // What closed before the horizon is not listed any more. A timestamp may lie anywhere behind it.
        world.horizon = 1 + u64::try_from(world.draw(usize::try_from(world.now).unwrap())).unwrap();
        let horizon = world.horizon;
        world.shards.iter_mut().for_each(|shard| shard.trimmed = !shard.outlived(horizon));
        world.initial = match position {
            0 => InitialPosition::TrimHorizon,
            1 => InitialPosition::Latest,
            _ => InitialPosition::AtTimestamp(Timestamp::from_millis(horizon + (world.now - horizon) / 2)),
        };
        world
    }

    fn draw(&self, below: usize) -> usize {
        usize::try_from(self.entropy.u64() % u64::try_from(below.max(1)).unwrap()).unwrap()
    }

    fn open(&mut self, parents: BTreeSet<ShardId>, hash_range: HashKeyRange, depth: usize) {
        let shard_id = format!("shardId-{:012}", self.shards.len()).into();
        self.shards.push(Real { shard_id, parents, hash_range, opened: self.now, closed: None, depth, trimmed: false });
    }

    /// Splits a shard, or merges two neighbours.
    fn reshard(&mut self) {
        self.now += 1;
        let mut open: Vec<_> = (0..self.shards.len()).filter(|index| self.shards[*index].closed.is_none()).collect();
        open.sort_by_key(|index| self.shards[*index].hash_range.start);
        let at = self.draw(open.len());
        let (first, second) = (open[at], open.get(at + 1).copied().filter(|_| self.draw(2) == 0));
        let parents = || [Some(first), second].into_iter().flatten();
        let depth = parents().map(|index| self.shards[index].depth).max().unwrap_or(0) + 1;
        if depth > 8 {
            return;
        }
        let names: BTreeSet<_> = parents().map(|index| self.shards[index].shard_id.clone()).collect();
        let HashKeyRange { start, end } = self.shards[first].hash_range;
        let halves = match second {
            Some(second) => vec![range(start, self.shards[second].hash_range.end)],
            None => vec![range(start, start + (end - start) / 2), range(start + (end - start) / 2 + 1, end)],
        };
        for index in parents() {
            self.shards[index].closed = Some(self.now);
        }
        halves.into_iter().for_each(|half| self.open(names.clone(), half, depth));
    }

    fn shard(&self, shard_id: &ShardId) -> &Real {
        self.shards.iter().find(|shard| shard.shard_id == *shard_id).unwrap()
    }

    fn listing(&self, filter: impl Fn(&Real) -> bool) -> Vec<Shard> {
        let listed = self.shards.iter().filter(|shard| !shard.trimmed && filter(shard));
        let shard = |shard: &Real| Shard {
            shard_id: shard.shard_id.clone(),
            parents: shard.parents.clone(),
            hash_range: shard.hash_range,
            starting_sequence_number: u128::from(shard.opened).into(),
            ending_sequence_number: shard.closed.map(|closed| u128::from(closed).into()),
        };
        let mut listing: Vec<_> = listed.map(shard).collect();
        self.entropy.shuffle(&mut listing);
        listing
    }

    fn leases(&self) -> Vec<Lease> {
        self.table.values().cloned().collect()
    }

    fn create(&mut self, lease: Lease) {
        if self.table.contains_key(&lease.shard_id) {
            return;
        }
        let start = *self.start.get_or_insert(lease.initial_timestamp.map_or(self.horizon, Timestamp::as_millis));
        if lease.lies_before_start() {
            assert!(!self.shard(&lease.shard_id).outlived(start), "it does not lie before the start at {start}: {lease:?}");
            self.table.insert(lease.shard_id.clone(), lease);
            return;
        }
        let opened = self.shard(&lease.shard_id).opened;
        if !matches!(lease.checkpoint, Checkpoint::TrimHorizon) {
            assert_eq!(lease.initial_timestamp.map(Timestamp::as_millis), self.start, "all shards start alike: {lease:?}");
        }
        let from = if lease.checkpoint == Checkpoint::TrimHorizon { opened } else { opened.max(self.start.unwrap()) };
        assert_eq!(self.read_from.insert(lease.shard_id.clone(), from), None, "created for the second time: {lease:?}");
        self.table.insert(lease.shard_id.clone(), lease);
    }

    /// A first sync of which only the first `writes` take effect now; the others may come later.
    fn first_sync(&mut self, writes: usize) {
        let (now, initial, horizon) = (self.now, self.initial, self.horizon);
        let all = self.listing(|_| true);
        let listing = self.listing(|shard| match initial {
            InitialPosition::TrimHorizon => shard.was_open_at(horizon),
            InitialPosition::Latest => shard.was_open_at(now),
            InitialPosition::AtTimestamp(timestamp) => shard.was_open_at(timestamp.as_millis()),
        });
        if !self.quiet && self.draw(4) == 0 {
            self.reshard();
        }
        let leases = initial_leases(&listing, &all, initial, Some(Timestamp::from_millis(self.now)), None).unwrap();
        self.under_way.push((leases, 0));
        // Others list before it begins to write.
        if self.quiet || self.draw(2) == 0 {
            (0..writes.min(all.len() + 1)).for_each(|_| self.first_sync_goes_on(self.under_way.len() - 1));
        }
        self.interrupted |= !self.complete;
    }

    /// One more lease of a first sync.
    fn first_sync_goes_on(&mut self, which: usize) {
        let Some((leases, through)) = self.under_way.get_mut(which) else { return };
        let Some(lease) = leases.get(*through).cloned() else { return };
        let (is_first, is_last) = (*through == 0, *through + 1 == leases.len());
        *through += 1;
        let is_elsewhere = self.table.get(&lease.shard_id).is_some_and(|row| starts_elsewhere(row, &lease));
        let decided = lease.initial_timestamp;
        if !is_elsewhere {
            self.create(lease);
        }
        let alone = decided.is_none() || self.table.values().all(|row| row.initial_timestamp == decided);
        if is_elsewhere || (is_first && !alone) {
            self.under_way[which].1 = usize::MAX;
        } else if is_last {
            self.complete = true;
        }
    }

    /// A shard sync of which only the first `writes` take effect.
    fn sync(&mut self, writes: usize) {
        if self.table.is_empty() {
            self.first_sync(writes);
            return;
        }
        let missing = {
            let listing = self.listing(|_| true);
            // the world goes on between the two reads
            match self.draw(5) {
                0 if !self.quiet => self.reshard(),
                1 => self.finish(usize::MAX),
                2 => self.clean_up(),
                _ => {}
            }
            missing_leases(&listing, &self.leases(), self.initial, Some(Timestamp::from_millis(self.now)))
        };
        let mut missing = missing;
        let begins = |lease: &Lease| matches!(lease.checkpoint, Checkpoint::Latest | Checkpoint::AtTimestamp);
        if missing.iter().any(begins) {
            // First leases are left to the first sync that has begun, until that must be over.
            if self.quiet || self.draw(2) == 0 {
                self.under_way.clear();
            }
            if !self.under_way.is_empty() {
                missing.retain(|lease| !begins(lease));
                missing.into_iter().take(writes).for_each(|lease| self.create(lease));
                return;
            }
        }
        let all = missing.len() <= writes;
        missing.into_iter().take(writes).for_each(|lease| self.create(lease));
        self.interrupted |= !all && !self.complete;
        self.complete |= all;
    }

    /// A worker reads some shard to its end, with only the first `writes` of what follows taking effect.
    fn finish(&mut self, writes: usize) {
        let leases = self.leases();
        let mut ended: Vec<_> = startable(&leases).into_iter().filter(|lease| self.shard(&lease.shard_id).closed.is_some()).collect();
        self.entropy.shuffle(&mut ended);
        let Some(lease) = ended.first() else { return };
        let children = self.shards.iter().filter(|shard| shard.parents.contains(&lease.shard_id));
        let child =
            |shard: &Real| ChildShard { shard_id: shard.shard_id.clone(), parents: shard.parents.clone(), hash_range: shard.hash_range };
        let children: Vec<_> = children.map(child).collect();
        // The parents of a child with a lease were known when it was made.
        let made = |parent: &ShardId| {
            children.iter().filter(|child| child.parents.contains(parent)).all(|child| self.table.contains_key(&child.shard_id))
        };
        let known = |shard: &ShardId| self.table.contains_key(shard) || self.shard(shard).trimmed || made(shard);
        if merge_is_ready(&lease.shard_id, &children, &known).is_err() {
            return;
        }
        let created = child_leases(lease, &children, None);
        let complete = created.len() + 2 <= writes;
        created.into_iter().take(writes).for_each(|lease| self.create(lease));
        if complete {
            let start = self.start.unwrap();
            for parent in &self.shard(&lease.shard_id).parents {
                let outside = !self.shard(parent).outlived(start);
                assert!(outside || self.finished.contains(parent), "{} ended before its parent {parent}", lease.shard_id);
            }
            assert!(self.finished.insert(lease.shard_id.clone()), "read twice: {lease:?}");
            let row = self.table.get_mut(&lease.shard_id).unwrap();
            row.children = children.into_iter().map(|child| child.shard_id).collect();
            (row.checkpoint, row.counter) = (Checkpoint::ShardEnd, row.counter + 1);
        }
    }

    /// Some record of some shard is finished.
    fn progress(&mut self) {
        let leases = self.leases();
        let mut begun: Vec<_> = startable(&leases).into_iter().map(|lease| lease.shard_id.clone()).collect();
        self.entropy.shuffle(&mut begun);
        if let Some(row) = begun.first().and_then(|shard| self.table.get_mut(shard)) {
            (row.checkpoint, row.counter) = (Checkpoint::At(ExtendedSequenceNumber::whole(u128::from(self.now).into())), row.counter + 1);
        }
    }

    fn clean_up(&mut self) {
        let mut deletable = deletable(&self.leases(), &|shard| !self.shard(shard).trimmed);
        self.entropy.shuffle(&mut deletable);
        if let Some(lease) = deletable.first() {
            self.table.remove(&lease.shard_id);
            // Leases are kept for longer than a listing is believed.
            self.under_way.clear();
        }
    }

    /// Kinesis forgets the oldest shard, if the application is done with it.
    fn trim(&mut self) {
        let Some(start) = self.start.filter(|_| !self.table.is_empty()) else { return };
        let oldest = self.shards.iter().position(|shard| !shard.trimmed).unwrap();
        let shard = &self.shards[oldest];
        let unread = self.table.get(&shard.shard_id).is_some_and(|lease| !lease.is_finished());
        if !unread && (self.finished.contains(&shard.shard_id) || !shard.outlived(start)) {
            self.shards[oldest].trimmed = true;
        }
    }

    fn step(&mut self) {
        self.now += 1;
        match self.draw(14) {
            0 => self.reshard(),
            12 | 13 => self.first_sync_goes_on(self.draw(self.under_way.len())),
            1 | 2 => {
                let writes = if self.draw(2) == 0 { usize::MAX } else { self.draw(5) };
                self.sync(writes);
            }
            3 | 4 => self.progress(),
            5 | 6 => self.clean_up(),
            7 => self.trim(),
            _ => {
                let writes = if self.draw(3) == 0 { self.draw(4) } else { usize::MAX };
                self.finish(writes);
            }
        }
        if self.complete {
            self.assert_covered();
        }
    }

    /// Each open shard is covered by a lease that is not finished: its own, or that of an ancestor whose end will bring it.
    fn assert_covered(&self) {
        for open in self.shards.iter().filter(|shard| shard.closed.is_none()) {
            let mut line = vec![open];
            let mut covered = false;
            while let Some(shard) = line.pop() {
                covered |= self.table.get(&shard.shard_id).is_some_and(|lease| !lease.is_finished());
                line.extend(shard.parents.iter().map(|parent| self.shard(parent)));
            }
            assert!(covered, "nobody will ever read {open:?}");
        }
    }

    /// Nothing is resharded any more and nothing crashes: everything is read.
    fn come_to_rest(&mut self) {
        self.quiet = true;
        for _ in 0..4 * self.shards.len() + 20 {
            self.sync(usize::MAX);
            self.finish(usize::MAX);
            self.progress();
            self.clean_up();
        }
        let start = self.start.unwrap();
        for shard in &self.shards {
            let read_from = self.read_from.get(&shard.shard_id);
            if shard.outlived(start) {
                assert!(
                    read_from.is_some_and(|from| *from <= shard.opened.max(start)),
                    "records are lost: {shard:?} is read from {read_from:?}"
                );
                assert_eq!(self.finished.contains(&shard.shard_id), shard.closed.is_some(), "not read to its end: {shard:?}");
            }
            if !self.interrupted && shard.outlived(start) && !matches!(self.initial, InitialPosition::TrimHorizon) {
                assert_eq!(read_from.copied(), Some(shard.opened.max(start)), "records from before the start: {shard:?}");
            }
            // One that closed between the listing and the instant has a lease, and nothing to read.
            if !self.interrupted && !shard.outlived(start) {
                assert!(read_from.is_none_or(|from| Some(*from) >= shard.closed), "records from before the start: {shard:?}");
            }
        }
        assert_eq!(missing_leases(&self.listing(|_| true), &self.leases(), self.initial, None), []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Splits, merges, crashes between any two writes, shard syncs at any moment, clean-up and trimming: every shard gets one lease,
    /// is read once, after its parents, and at every moment somebody will read every part of the key space.
    #[test]
    fn every_shard_is_read_once_after_its_parents_whatever_happens(seed: u64, position in 0usize..3, steps in 10usize..250) {
        let mut world = World::new(seed, position);
        (0..steps).for_each(|_| world.step());
        world.come_to_rest();
    }
}

#[test]
fn a_bound_is_reached_when_all_of_the_key_space_is() {
    let half = u128::MAX / 2;
    let part = |name: &str, ranges: HashKeyRange, watermark: Option<u64>| Lease {
        hash_range: Some(ranges),
        watermark: watermark.map(Timestamp::from_millis),
        ..lease(name, &[], begun())
    };
    let (low, high) = (range(0, half), range(half + 1, u128::MAX));
    let ended = lease("p", &[], Checkpoint::ShardEnd);
    let without_range = Lease { hash_range: None, ..part("a", low, Some(10)) };
    for (leases, expected) in [
        (vec![part("a", low, Some(10)), part("b", high, Some(12)), ended.clone()], true),
        (vec![part("a", low, Some(9)), part("b", high, Some(12))], false),
        (vec![part("a", low, None), part("b", high, Some(12))], false),
        // a seek has made the child's lease anew, and its parent is read up to the bound
        (vec![part("a", low, Some(10)), part("b", high, Some(12)), Lease { parents: ["a".into()].into(), ..part("c", low, None) }], true),
        (
            vec![part("a", low, Some(9)), part("b", high, Some(12)), Lease { parents: ["a".into()].into(), ..part("c", low, Some(11)) }],
            false,
        ),
        // a first sync is under way
        (vec![part("b", high, Some(12))], false),
        (vec![ended], false),
        (vec![], false),
        (vec![without_range], true),
    ] {
        assert_eq!(is_read_until(&leases, Timestamp::from_millis(10)), expected, "{leases:?}");
    }
}

#[test]
fn a_lease_is_confirmed_together_with_the_missing_ones_of_its_ancestors() {
    let names = |leases: Vec<Lease>| leases.into_iter().map(|lease| lease.shard_id.to_string()).collect::<Vec<_>>();
    let confirmed = |missing: &[(&str, &[&str])], before: &[&str]| {
        let missing = missing.iter().map(|(name, parents)| lease(name, parents, Checkpoint::TrimHorizon)).collect();
        let (may, wait) = super::confirmed(missing, &before.iter().map(|name| (*name).into()).collect());
        (names(may).join(" "), names(wait).join(" "))
    };
    let text = |may: &str, wait: &str| (may.to_owned(), wait.to_owned());
    assert_eq!(confirmed(&[("a", &[]), ("b", &[])], &[]), text("", "a b"));
    assert_eq!(confirmed(&[("a", &[]), ("b", &[])], &["b"]), text("b", "a"), "each family for itself");
    // the first listing lacked p
    let family: [(&str, &[&str]); 4] = [("p", &[]), ("c", &["p"]), ("d", &["c", "x"]), ("e", &["x"])];
    assert_eq!(confirmed(&family, &["c", "d", "e"]), text("e", "p c d"));
    assert_eq!(confirmed(&family, &["p", "c", "d", "e"]), text("p c d e", ""));
}
