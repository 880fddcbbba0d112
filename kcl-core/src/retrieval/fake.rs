//! A shard in memory, for the tests of what reads it: records, an end, and calls that fail.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kcl_checkpoint::{SequenceNumber, Timestamp};
use kcl_lease::{Clock, HashKeyRange, ShardId};
use tokio::time::{Instant, sleep};

use super::Fetched;
use crate::record::Record;
use crate::stream::{
    ChildShard, RecordsPage, Shard, ShardFilter, ShardIterator, StartingPosition, StreamApi, StreamDescription, StreamError,
};

pub(super) const PARENT: &str = "shardId-000000000000";
pub(super) const CHILD: &str = "shardId-000000000001";
pub(super) const EPOCH: u64 = 1_700_000_000_000;
pub(super) const ITERATOR_LIFE: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Open,
    Read,
    List,
}

#[derive(Debug)]
pub(super) struct Made {
    pub(super) operation: Operation,
    pub(super) at: Instant,
    /// Of the answer.
    pub(super) bytes: u64,
    pub(super) start: Option<StartingPosition>,
}

pub(super) type Fault = Box<dyn FnMut(Operation) -> Option<StreamError> + Send>;

/// A shard with its records, its end, and the faults of the calls on it.
pub(super) struct Script {
    pub(super) began: Instant,
    pub(super) records: Vec<Record>,
    /// From one record's number to the next one's.
    pub(super) step: u128,
    pub(super) closed: bool,
    /// Whether the last page names the children.
    pub(super) children_in_page: bool,
    /// Whether the listing has the children.
    pub(super) children_listed: bool,
    /// The next page has no iterator although the shard is open.
    pub(super) ends_in_error: bool,
    /// Empty pages before each page with records.
    pub(super) empty_pages: u32,
    pub(super) empty_pages_left: u32,
    pub(super) latency: Box<dyn FnMut() -> Duration + Send>,
    /// The time that each record takes on its way. A read that takes longer than its timeout gives no answer.
    pub(super) per_record: Duration,
    /// Whether answers say how far behind they are.
    pub(super) tells_behind: bool,
    /// Whether a read is answered by the last answer once more.
    pub(super) repeats: Box<dyn FnMut() -> bool + Send>,
    pub(super) last_page: Option<RecordsPage>,
    /// The service's limit of five reads in any second, if it is enforced.
    pub(super) read_limit: Option<ReadLimit>,
    pub(super) fault: Fault,
    pub(super) made: Vec<Made>,
}

/// Five reads in a second, whoever makes them.
pub(super) enum ReadLimit {
    /// A bucket of reads, and when it was filled up last. Refused reads do not count.
    Bucket(f64, Instant),
    /// The reads of the last second, refused ones included.
    Window(VecDeque<Instant>),
}

impl ReadLimit {
    fn allows(&mut self) -> bool {
        let now = Instant::now();
        match self {
            Self::Bucket(level, filled) => {
                *level = (*level + (now - *filled).as_secs_f64() * 5.0).min(5.0);
                *filled = now;
                let allows = *level >= 1.0;
                *level -= if allows { 1.0 } else { 0.0 };
                allows
            }
            Self::Window(reads) => {
                reads.retain(|at| now - *at < Duration::from_secs(1));
                reads.push_back(now);
                reads.len() <= 5
            }
        }
    }
}

/// How long a read may take.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct Fake(Arc<Mutex<Script>>);

impl std::fmt::Debug for Fake {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Fake")
    }
}

impl Script {
    /// Of the first record to read from there on.
    pub(super) fn index_of(&self, start: StartingPosition) -> usize {
        let first = |wanted: &dyn Fn(&Record) -> bool| self.records.iter().position(wanted).unwrap_or(self.records.len());
        match start {
            StartingPosition::TrimHorizon => 0,
            StartingPosition::Latest => self.records.len(),
            StartingPosition::AtTimestamp(time) => first(&|record| record.approximate_arrival() >= Some(time)),
            StartingPosition::AtSequenceNumber(number) => first(&|record| record.sequence_number() >= number),
            StartingPosition::AfterSequenceNumber(number) => first(&|record| record.sequence_number() > number),
        }
    }
}

impl Fake {
    pub(super) fn new(records: usize) -> Self {
        let began = Instant::now();
        let fake = Self(Arc::new(Mutex::new(Script {
            began,
            records: Vec::new(),
            step: 1,
            closed: false,
            children_in_page: false,
            children_listed: false,
            ends_in_error: false,
            empty_pages: 0,
            empty_pages_left: 0,
            latency: Box::new(|| Duration::ZERO),
            per_record: Duration::ZERO,
            tells_behind: true,
            repeats: Box::new(|| false),
            last_page: None,
            read_limit: None,
            fault: Box::new(|_| None),
            made: Vec::new(),
        })));
        (0..records).for_each(|_| fake.put(10));
        fake
    }

    pub(super) fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    pub(super) fn put(&self, size: usize) {
        let mut script = self.script();
        let number = SequenceNumber::from((script.records.len() as u128 + 1) * script.step);
        let arrival = Timestamp::from_millis(EPOCH + millis(script.began.elapsed()));
        script.records.push(Record::new(number, None, Bytes::from(vec![0; size]), Some(arrival)));
    }

    pub(super) fn all(&self) -> Vec<SequenceNumber> {
        self.script().records.iter().map(Record::sequence_number).collect()
    }

    pub(super) fn count(&self, operation: Operation) -> usize {
        self.script().made.iter().filter(|made| made.operation == operation).count()
    }

    pub(super) fn starts(&self) -> Vec<StartingPosition> {
        self.script().made.iter().filter_map(|made| made.start).collect()
    }

    /// Calls of one operation are never closer than the service's limit of five per second.
    pub(super) fn assert_within_budget(&self) {
        let script = self.script();
        for operation in [Operation::Open, Operation::Read, Operation::List] {
            let times: Vec<_> = script.made.iter().filter(|made| made.operation == operation).map(|made| made.at).collect();
            for pair in times.windows(2) {
                assert!(pair[1] - pair[0] >= Duration::from_millis(200), "{operation:?} after {:?}", pair[1] - pair[0]);
            }
        }
    }

    async fn begin(&self, operation: Operation, start: Option<StartingPosition>) -> Option<StreamError> {
        let latency = {
            let mut script = self.script();
            script.made.push(Made { operation, at: Instant::now(), bytes: 0, start });
            (script.latency)()
        };
        sleep(latency).await;
        (self.script().fault)(operation)
    }
}

#[derive(Debug)]
pub(super) struct SimulatedClock(pub(super) Instant);

impl Clock for SimulatedClock {
    fn boot_time(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall_time(&self) -> Timestamp {
        Timestamp::from_millis(EPOCH + millis(self.0.elapsed()))
    }
}

#[async_trait]
impl StreamApi for Fake {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        unreachable!("readers do not describe")
    }

    async fn list_shards(&self, _: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        if let Some(error) = self.begin(Operation::List, None).await {
            return Err(error);
        }
        let script = self.script();
        let shard = |id: &str, parents: &[&str], ending: Option<u128>| Shard {
            shard_id: id.into(),
            parents: parents.iter().copied().map(ShardId::from).collect(),
            hash_range: HashKeyRange { start: 0, end: u128::MAX },
            starting_sequence_number: 0.into(),
            ending_sequence_number: ending.map(SequenceNumber::from),
        };
        let mut listing = vec![shard(PARENT, &[], script.closed.then_some(1_000_000))];
        if script.children_listed {
            listing.push(shard(CHILD, &[PARENT], None));
        }
        Ok(listing)
    }

    async fn shard_iterator(&self, _: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError> {
        if let Some(error) = self.begin(Operation::Open, Some(start)).await {
            return Err(error);
        }
        let script = self.script();
        let index = script.index_of(start);
        Ok(iterator(&script, index))
    }

    async fn get_records(&self, from: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError> {
        if let Some(error) = self.begin(Operation::Read, None).await {
            return Err(error);
        }
        if !self.script().read_limit.as_mut().is_none_or(ReadLimit::allows) {
            return Err(error(Failure::Throttled));
        }
        let per_record = self.script().per_record;
        if !per_record.is_zero() {
            let there = self.script().records.len() - from.0.split_once('@').unwrap().0.parse::<usize>().unwrap();
            let time = per_record * u32::try_from(there.min(limit as usize)).unwrap();
            sleep(time.min(READ_TIMEOUT)).await;
            if time > READ_TIMEOUT {
                return Err(error(Failure::Unavailable));
            }
        }
        let mut script = self.script();
        if (script.repeats)()
            && let Some(page) = &script.last_page
        {
            return Ok(page.clone());
        }
        let (index, issued) = from.0.split_once('@').unwrap();
        let (index, issued): (usize, u64) = (index.parse().unwrap(), issued.parse().unwrap());
        if millis(script.began.elapsed()) - issued > millis(ITERATOR_LIFE) {
            return Err(error(Failure::Expired));
        }
        let left = &script.records[index..];
        let empty = script.empty_pages_left > 0;
        let count = if empty { 0 } else { left.len().min(limit as usize) };
        let records = left[..count].to_vec();
        let end = index + count == script.records.len();
        script.empty_pages_left = if empty { script.empty_pages_left - 1 } else { script.empty_pages };
        script.made.last_mut().unwrap().bytes = records.iter().map(|record| record.size() as u64).sum();
        let ended = end && (script.closed || std::mem::take(&mut script.ends_in_error));
        let child = ChildShard {
            shard_id: CHILD.into(),
            parents: BTreeSet::from([PARENT.into()]),
            hash_range: HashKeyRange { start: 0, end: u128::MAX },
        };
        let page = RecordsPage {
            records,
            next: (!ended).then(|| iterator(&script, index + count)),
            children: if ended && script.children_in_page { vec![child] } else { Vec::new() },
            millis_behind_latest: script.tells_behind.then_some(if end { 0 } else { 1_000 }),
        };
        script.last_page = Some(page.clone());
        Ok(page)
    }
}

fn iterator(script: &Script, index: usize) -> ShardIterator {
    ShardIterator(format!("{index}@{}", millis(script.began.elapsed())))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    NotFound,
    Denied,
    Kms,
    Throttled,
    Expired,
    Invalid,
    NotReady,
    Unavailable,
}

pub(super) const FAILURES: [Failure; 8] = [
    Failure::NotFound,
    Failure::Denied,
    Failure::Kms,
    Failure::Throttled,
    Failure::Expired,
    Failure::Invalid,
    Failure::NotReady,
    Failure::Unavailable,
];

/// Those that waiting may mend are the reader's own business.
pub(super) const MENDED: [Failure; 4] = [Failure::Throttled, Failure::Expired, Failure::NotReady, Failure::Unavailable];

pub(super) fn error(failure: Failure) -> StreamError {
    let (stream, operation, message) = ("orders".to_owned(), "an operation", "no".to_owned());
    match failure {
        Failure::NotFound => StreamError::NotFound { stream, operation, message },
        Failure::Denied => StreamError::AccessDenied { stream, operation, message },
        Failure::Kms => StreamError::Kms { stream, operation, message },
        Failure::Throttled => StreamError::Throttled { stream, operation },
        Failure::Expired => StreamError::ExpiredIterator { stream },
        Failure::Invalid => StreamError::InvalidArgument { stream, operation, message },
        Failure::NotReady => StreamError::NotReady { stream, operation, message },
        Failure::Unavailable => StreamError::Unavailable { stream, operation, message },
    }
}

pub(super) fn numbers(fetched: Fetched) -> Vec<SequenceNumber> {
    match fetched {
        Fetched::Records { records, .. } => records.iter().map(Record::sequence_number).collect(),
        Fetched::ShardEnd { .. } => panic!("the shard has not ended"),
    }
}

pub(super) fn assert_ended(fetched: &Fetched) {
    match fetched {
        Fetched::ShardEnd { children } => assert_eq!(children.iter().map(|child| child.shard_id.as_str()).collect::<Vec<_>>(), [CHILD]),
        Fetched::Records { .. } => panic!("the shard has ended"),
    }
}
