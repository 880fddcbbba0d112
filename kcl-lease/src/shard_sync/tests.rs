//! Shard sync over tables, and over random histories of a stream with crashes at every point.

use kcl_checkpoint::ExtendedSequenceNumber;
use proptest::prelude::*;

use super::*;
use crate::cleanup::deletable;
use crate::entropy::Entropy;

fn id(number: usize) -> ShardId {
    format!("shardId-{number:012}").into()
}

fn start(initial: InitialPosition) -> Start {
    Start { initial, latest: Some(Timestamp::from_millis(77)), stream_created: Some(Timestamp::from_millis(1)) }
}

/// A stream whose shards are split and merged.
#[derive(Clone, Default)]
struct Stream {
    shards: Vec<Shard>,
}

impl Stream {
    fn with_shards(count: u128) -> Self {
        let mut stream = Self::default();
        let width = u128::MAX / count;
        for n in 0..count {
            let end = if n + 1 == count { u128::MAX } else { (n + 1) * width - 1 };
            stream.add(HashKeyRange { start: n * width, end }, []);
        }
        stream
    }

    fn add(&mut self, hash_range: HashKeyRange, parents: impl IntoIterator<Item = usize>) {
        let number = self.shards.len();
        let parents: BTreeSet<_> = parents.into_iter().collect();
        for parent in &parents {
            self.shards[*parent].ending_sequence_number = Some((number as u128 * 10 + 9).into());
        }
        self.shards.push(Shard {
            shard_id: id(number),
            parents: parents.into_iter().map(id).collect(),
            hash_range,
            starting_sequence_number: (number as u128 * 10 + 10).into(),
            ending_sequence_number: None,
        });
    }

    fn split(&mut self, number: usize) {
        let HashKeyRange { start, end } = self.shards[number].hash_range;
        let middle = start + (end - start) / 2;
        self.add(HashKeyRange { start, end: middle }, [number]);
        self.add(HashKeyRange { start: middle + 1, end }, [number]);
    }

    fn merge(&mut self, low: usize, high: usize) {
        let range = HashKeyRange { start: self.shards[low].hash_range.start, end: self.shards[high].hash_range.end };
        self.add(range, [low, high]);
    }

    fn open(&self) -> Vec<usize> {
        let mut open: Vec<_> = (0..self.shards.len()).filter(|n| self.shards[*n].is_open()).collect();
        open.sort_by_key(|n| self.shards[*n].hash_range.start);
        open
    }

    fn at_latest(&self) -> Vec<Shard> {
        self.open().into_iter().map(|n| self.shards[n].clone()).collect()
    }

    fn at_horizon(&self) -> Vec<Shard> {
        self.shards.iter().filter(|shard| shard.parents.is_empty()).cloned().collect()
    }

    fn children(&self, parent: &ShardId) -> Vec<ChildShard> {
        let children = self.shards.iter().filter(|shard| shard.parents.contains(parent));
        let child =
            |shard: &Shard| ChildShard { shard_id: shard.shard_id.clone(), parents: shard.parents.clone(), hash_range: shard.hash_range };
        children.map(child).collect()
    }
}

fn names(leases: &[Lease]) -> Vec<&str> {
    leases.iter().map(|lease| lease.shard_id.as_str().trim_start_matches("shardId-00000000000")).collect()
}

fn finished(number: usize) -> Lease {
    Lease::new(id(number), Checkpoint::ShardEnd)
}

fn reading(number: usize) -> Lease {
    Lease::new(id(number), Checkpoint::At(ExtendedSequenceNumber::whole(1u128.into())))
}

#[test]
fn a_listing_with_a_hole_is_refused() {
    let stream = Stream::with_shards(3);
    let without = |gone: usize| -> Vec<Shard> { (0..3).filter(|n| *n != gone).map(|n| stream.shards[n].clone()).collect() };
    for gone in 0..3 {
        let hole = initial_leases(&without(gone), &start(InitialPosition::TrimHorizon)).unwrap_err();
        assert_eq!(hole.first_missing, stream.shards[gone].hash_range.start);
    }
    assert!(initial_leases(&[], &start(InitialPosition::TrimHorizon)).is_err());
}

#[test]
fn the_first_leases_say_where_the_application_begins() {
    let stream = Stream::with_shards(2);
    let time = Timestamp::from_millis(5);
    for (initial, checkpoint, timestamp) in [
        (InitialPosition::TrimHorizon, Checkpoint::TrimHorizon, None),
        (InitialPosition::Latest, Checkpoint::Latest, Some(Timestamp::from_millis(77))),
        (InitialPosition::AtTimestamp(time), Checkpoint::AtTimestamp, Some(time)),
    ] {
        let leases = initial_leases(&stream.at_latest(), &start(initial)).unwrap();
        assert_eq!(names(&leases), ["0", "1"]);
        for (lease, shard) in leases.iter().zip(&stream.shards) {
            assert_eq!((lease.checkpoint, lease.initial_timestamp, lease.hash_range), (checkpoint, timestamp, Some(shard.hash_range)));
            assert_eq!((lease.owner.as_ref(), lease.counter, lease.stream_created), (None, 0, Some(Timestamp::from_millis(1))));
        }
    }
}

/// 0 and 1; 0 splits into 2 and 3; 3 and 1 merge into 4; 4 splits into 5 and 6.
fn family() -> Stream {
    let mut stream = Stream::with_shards(2);
    stream.split(0);
    stream.merge(3, 1);
    stream.split(4);
    stream
}

#[test]
fn what_is_missing_follows_from_the_ancestors() {
    let stream = family();
    let horizon = start(InitialPosition::TrimHorizon);
    let missing = |leases: &[Lease]| missing_leases(&stream.shards, leases, &stream.at_horizon(), &horizon);
    for (leases, expected, why) in [
        (vec![reading(0), reading(1)], vec![], "descendants wait"),
        (vec![reading(0)], vec!["1"], "a first sync that was broken off"),
        (vec![finished(0), reading(1)], vec!["2", "3"], "children of a finished parent"),
        (vec![finished(0), reading(1), reading(2)], vec!["3"], "a sibling"),
        (vec![finished(0), finished(1), reading(2), reading(3)], vec![], "one parent of the merge is still read"),
        (vec![finished(0), finished(1), reading(2), finished(3)], vec!["4"], "both parents are finished"),
        (vec![finished(3), finished(1), reading(2)], vec!["4"], "the grandparent's lease is cleaned up"),
        (vec![reading(2), reading(4)], vec![], "all ancestors are cleaned up"),
        (vec![reading(2), finished(4), reading(5)], vec!["6"], "a sibling, with all ancestors cleaned up"),
    ] {
        let missing = missing(&leases);
        assert_eq!(names(&missing), expected, "{why}");
        let from_beginning = |lease: &Lease| lease.checkpoint == Checkpoint::TrimHorizon && lease.initial_timestamp.is_none();
        assert!(missing.iter().all(from_beginning));
    }
}

#[test]
fn a_first_sync_at_latest_that_was_broken_off_is_completed_as_it_began() {
    let mut stream = Stream::with_shards(3);
    let at_start = stream.at_latest();
    let latest = start(InitialPosition::Latest);
    let first = initial_leases(&at_start, &latest).unwrap()[0].clone();
    stream.split(1);
    let missing = missing_leases(&stream.shards, &[first], &at_start, &latest);
    assert_eq!(names(&missing), ["1", "2"], "the shard that was open at the start, not its children");
    assert!(missing.iter().all(|lease| (lease.checkpoint, lease.initial_timestamp) == (Checkpoint::Latest, latest.latest)));
}

#[test]
fn shards_older_than_the_start_are_past() {
    let mut stream = Stream::with_shards(2);
    stream.split(0);
    let at_start = stream.at_latest();
    let latest = start(InitialPosition::Latest);
    let leases = initial_leases(&at_start, &latest).unwrap();
    assert_eq!(names(&leases), ["1", "2", "3"]);
    assert_eq!(names(&missing_leases(&stream.shards, &leases, &at_start, &latest)), [""; 0]);
    assert_eq!(names(&missing_leases(&stream.shards, &leases[..1], &at_start, &latest)), ["2", "3"]);
}

#[test]
fn a_trimmed_parent_that_is_still_listed_holds_nothing_up() {
    let stream = family();
    // 0 and 1 are trimmed and listed; at the horizon 2 and 4 are open
    let at_start = [stream.shards[2].clone(), stream.shards[4].clone()];
    let horizon = start(InitialPosition::TrimHorizon);
    assert_eq!(names(&missing_leases(&stream.shards, &[reading(2)], &at_start, &horizon)), ["4"]);
}

/// An application that reads a stream, with a table that outlives its crashes.
struct Application {
    table: BTreeMap<ShardId, Lease>,
    made: BTreeMap<ShardId, u32>,
    finished: BTreeSet<ShardId>,
}

impl Application {
    fn create(&mut self, lease: Lease) {
        if !self.table.contains_key(&lease.shard_id) {
            *self.made.entry(lease.shard_id.clone()).or_default() += 1;
            self.table.insert(lease.shard_id.clone(), lease);
        }
    }

    fn leases(&self) -> Vec<Lease> {
        self.table.values().cloned().collect()
    }

    /// Creates the leases one by one, and crashes after some of them.
    fn create_some(&mut self, leases: Vec<Lease>, entropy: &Entropy) -> bool {
        let survives = if entropy.fraction() < 0.3 { below(entropy, leases.len() + 1) } else { usize::MAX };
        let complete = survives >= leases.len();
        leases.into_iter().take(survives).for_each(|lease| self.create(lease));
        complete
    }

    fn sync(&mut self, stream: &Stream, at_start: &[Shard], start: &Start, entropy: &Entropy) {
        let leases = self.leases();
        let missing = if leases.is_empty() {
            initial_leases(at_start, start).unwrap()
        } else {
            missing_leases(&stream.shards, &leases, at_start, start)
        };
        self.create_some(missing, entropy);
    }

    /// Reads a shard that may be read, to its end if it is closed; and crashes at some step of that.
    fn read_one(&mut self, stream: &Stream, entropy: &Entropy) -> Result<(), TestCaseError> {
        let leases = self.leases();
        let startable = crate::assignment::startable(&leases);
        if startable.is_empty() {
            return Ok(());
        }
        let chosen = startable[below(entropy, startable.len())].shard_id.clone();
        let shard = stream.shards.iter().find(|shard| shard.shard_id == chosen).unwrap();
        for parent in &shard.parents {
            let in_scope = self.made.contains_key(parent);
            prop_assert!(!in_scope || self.finished.contains(parent), "{chosen} is read before its parent {parent} is finished");
        }
        let row = self.table.get_mut(&chosen).unwrap();
        row.checkpoint = row.checkpoint.max(Checkpoint::At(ExtendedSequenceNumber::whole(1u128.into())));
        if shard.is_open() {
            return Ok(());
        }
        let children = stream.children(&chosen);
        // the rule of a merge: the other parent has a lease before the child gets one
        let others = children.iter().flat_map(|child| &child.parents).filter(|parent| **parent != chosen);
        if others.into_iter().any(|parent| !self.table.contains_key(parent) && !self.finished.contains(parent)) {
            return Ok(());
        }
        if self.create_some(child_leases(&children, None), entropy) && entropy.fraction() < 0.8 {
            let row = self.table.get_mut(&chosen).unwrap();
            row.checkpoint = Checkpoint::ShardEnd;
            row.children = children.into_iter().map(|child| child.shard_id).collect();
            self.finished.insert(chosen);
        }
        Ok(())
    }

    fn clean_up(&mut self, entropy: &Entropy) {
        let leases = deletable(&self.leases(), &|_| true);
        let survives = below(entropy, leases.len() + 1);
        leases.iter().take(survives).for_each(|lease| {
            self.table.remove(&lease.shard_id);
        });
    }

    /// Every hash key belongs to an unfinished lease, or to a shard that will descend from one.
    fn check_coverage(&self, stream: &Stream) -> Result<(), TestCaseError> {
        let unfinished = self.table.values().filter(|lease| !lease.is_finished()).filter_map(|lease| lease.hash_range.as_ref());
        let covered = tiles_key_space(unfinished);
        prop_assert!(covered.is_ok(), "{covered:?} of {} shards", stream.shards.len());
        Ok(())
    }
}

fn below(entropy: &Entropy, limit: usize) -> usize {
    usize::try_from(entropy.u64() % limit as u64).unwrap()
}

fn reshard(stream: &mut Stream, entropy: &Entropy) {
    let open = stream.open();
    let at = below(entropy, open.len());
    if entropy.fraction() < 0.5 && open.len() > 1 && at + 1 < open.len() {
        stream.merge(open[at], open[at + 1]);
    } else if open.len() < 12 {
        stream.split(open[at]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_shard_is_read_once_after_its_parents_whatever_crashes(seed: u64, latest: bool) {
        let entropy = Entropy::from_seed(seed);
        let mut stream = Stream::with_shards(1 + u128::from(entropy.u64() % 4));
        for _ in 0..below(&entropy, 4) {
            reshard(&mut stream, &entropy);
        }
        let (initial, at_start) = if latest {
            (InitialPosition::Latest, stream.at_latest())
        } else {
            (InitialPosition::TrimHorizon, stream.at_horizon())
        };
        let start = start(initial);
        let mut application = Application { table: BTreeMap::new(), made: BTreeMap::new(), finished: BTreeSet::new() };
        let mut synced = false;
        for step in 0..300 {
            match below(&entropy, 8) {
                0 if stream.shards.len() < 40 && step < 150 => reshard(&mut stream, &entropy),
                1 => {
                    application.sync(&stream, &at_start, &start, &entropy);
                }
                2 => application.clean_up(&entropy),
                _ => application.read_one(&stream, &entropy)?,
            }
            synced |= at_start.iter().all(|shard| application.made.contains_key(&shard.shard_id));
            if synced {
                application.check_coverage(&stream)?;
            }
        }
        // without crashes it settles: all closed shards from the start on are finished, all open ones are read
        for _ in 0..100 {
            let leases = application.leases();
            let missing = if leases.is_empty() { initial_leases(&at_start, &start).unwrap() }
                else { missing_leases(&stream.shards, &leases, &at_start, &start) };
            missing.into_iter().for_each(|lease| application.create(lease));
            for _ in 0..20 {
                application.read_one(&stream, &entropy)?;
            }
        }
        prop_assert!(application.made.values().all(|made| *made == 1), "made twice: {:?}", application.made);
        let in_scope = |shard: &&Shard| at_start.contains(shard) || shard.starting_sequence_number > at_start.iter().map(|shard| shard.starting_sequence_number).max().unwrap();
        for shard in stream.shards.iter().filter(in_scope) {
            if shard.is_open() {
                prop_assert!(application.table.contains_key(&shard.shard_id), "{} is not read", shard.shard_id);
            } else {
                prop_assert!(application.finished.contains(&shard.shard_id), "{} is not finished", shard.shard_id);
            }
        }
        prop_assert!(latest || application.made.len() == stream.shards.len());
    }
}
