//! A service whose every call and every event is scripted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kcl_checkpoint::{SequenceNumber, StartingPosition};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::{Consumer, ConsumerStatus, Event, EventStream, FanOutApi};
use crate::error::FanOutError;
use crate::fan_out::FanOut;
use crate::record::{ChildShard, Record};
use crate::registration::ConsumerChoice;
use crate::subscriber::{SoleReader, Subscriber};

pub(super) const STREAM: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
pub(super) const NAME: &str = "app";
pub(super) const CHILD: &str = "shardId-000000000009";
pub(super) const LIFE: Duration = Duration::from_secs(300);
const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Register,
    /// By name or by ARN.
    Describe,
    Deregister,
    Subscribe,
}

/// How a call goes, beyond what the service's state makes of it.
pub(super) enum Answer {
    Served,
    Refused(FanOutError),
    /// None ever comes.
    Hangs,
}

/// How an accepted subscription goes on.
pub(super) enum Fate {
    /// As the service intends: heartbeats, and an end in order when its time is over.
    Served,
    /// After so many events.
    After(u32, Then),
}

#[derive(Clone)]
pub(super) enum Then {
    Fails(FanOutError),
    Ends,
    Silent,
}

#[derive(Debug)]
pub(super) struct Made {
    pub(super) operation: Operation,
    pub(super) at: Instant,
    pub(super) shard: String,
    pub(super) start: Option<StartingPosition>,
    pub(super) consumer: String,
}

pub(super) struct Script {
    pub(super) records: Vec<Record>,
    pub(super) closed: bool,
    pub(super) answer: Box<dyn FnMut(Operation) -> Answer + Send>,
    pub(super) fate: Box<dyn FnMut() -> Fate + Send>,
    pub(super) latency: Box<dyn FnMut() -> Duration + Send>,
    /// Changes each event on its way; what it gives comes instead of the event, in order.
    pub(super) twist: Box<dyn FnMut(Event) -> Vec<Event> + Send>,
    /// Most records of one event.
    pub(super) event_records: usize,
    /// An event is there only when it is asked for a second time, as where a connection is read on demand.
    pub(super) on_demand: bool,
    /// How long a registered consumer is in creation.
    pub(super) creating: Duration,
    pub(super) made: Vec<Made>,
    /// By ARN: the name, and when it is active; `None`: it is being deleted.
    consumers: BTreeMap<String, (String, Option<Instant>)>,
    registered: u64,
    /// Accepted subscriptions that were not dropped.
    pub(super) open: usize,
}

/// Clones share the service.
#[derive(Clone)]
pub(super) struct Fake {
    script: Arc<Mutex<Script>>,
    changed: Arc<Notify>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Fake")
    }
}

impl Fake {
    /// A service without faults or latency that has this many records in each shard, and no consumer.
    pub(super) fn new(records: usize) -> Self {
        let fake = Self {
            script: Arc::new(Mutex::new(Script {
                records: Vec::new(),
                closed: false,
                answer: Box::new(|_| Answer::Served),
                fate: Box::new(|| Fate::Served),
                latency: Box::new(|| Duration::ZERO),
                twist: Box::new(|event| vec![event]),
                event_records: 10,
                on_demand: false,
                creating: Duration::ZERO,
                made: Vec::new(),
                consumers: BTreeMap::new(),
                registered: 0,
                open: 0,
            })),
            changed: Arc::default(),
        };
        fake.put(records);
        fake
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(super) fn put(&self, records: usize) {
        let mut script = self.script();
        for _ in 0..records {
            let number = SequenceNumber::from(script.records.len() as u128 + 1);
            script.records.push(Record { sequence_number: number, partition_key: None, data: Bytes::new(), arrival: None });
        }
        self.changed.notify_waiters();
    }

    pub(super) fn close(&self) {
        self.script().closed = true;
        self.changed.notify_waiters();
    }

    /// The consumer is gone, as is each of its subscriptions.
    pub(super) fn remove_consumers(&self) {
        self.script().consumers.clear();
        self.changed.notify_waiters();
    }

    /// Consumers are being deleted.
    pub(super) fn delete_consumers(&self) {
        self.script().consumers.values_mut().for_each(|(_, active)| *active = None);
    }

    /// Registers a consumer that is active.
    pub(super) fn consumer(&self) -> String {
        self.script().register(NAME, Instant::now())
    }

    pub(super) fn fan_out(&self, choice: ConsumerChoice, seed: u64) -> FanOut {
        let draws = Mutex::new(fastrand::Rng::with_seed(seed));
        FanOut::new(Arc::new(self.clone()), STREAM, choice, Arc::new(move || draws.lock().unwrap().f64())).unwrap()
    }

    /// Of the consumer by its name.
    pub(super) fn named(&self, seed: u64) -> FanOut {
        self.fan_out(ConsumerChoice::Named(NAME.into()), seed)
    }

    /// A reader of a shard's oldest record and all that come after it.
    pub(super) fn reader(&self) -> Subscriber {
        self.named(0).subscriber("shard", StartingPosition::TrimHorizon, Arc::new(SoleReader))
    }

    pub(super) fn all(&self) -> Vec<SequenceNumber> {
        numbers(&self.script().records)
    }

    /// When calls of one operation were made.
    pub(super) fn times(&self, operation: Operation) -> Vec<Instant> {
        self.script().made.iter().filter(|made| made.operation == operation).map(|made| made.at).collect()
    }

    pub(super) fn count(&self, operation: Operation) -> usize {
        self.times(operation).len()
    }

    pub(super) fn starts(&self) -> Vec<StartingPosition> {
        self.script().made.iter().filter_map(|made| made.start).collect()
    }

    /// One SubscribeToShard of a shard and five of a consumer in a second, one look at the consumer, one registration.
    pub(super) fn assert_within_budget(&self, context: &str) {
        let second = Duration::from_secs(1);
        let (calls, looks) = (self.times(Operation::Subscribe), [Operation::Describe, Operation::Register].map(|of| self.times(of)));
        assert!(calls.windows(6).all(|six| six[5] - six[0] >= second), "{context}: six subscriptions within a second");
        for looks in looks {
            assert!(looks.windows(2).all(|two| two[1] - two[0] >= second), "{context}: two looks within a second");
        }
        let mut last = BTreeMap::new();
        for made in self.script().made.iter().filter(|made| made.operation == Operation::Subscribe) {
            let before: Option<Instant> = last.insert(made.shard.clone(), made.at);
            assert!(before.is_none_or(|before| made.at - before >= second), "{context}: a shard's second subscription within a second");
        }
    }

    async fn begin(&self, operation: Operation, consumer: &str, shard: &str, start: Option<StartingPosition>) -> Result<(), FanOutError> {
        let (latency, answer) = {
            let mut script = self.script();
            script.made.push(Made { operation, at: Instant::now(), shard: shard.into(), start, consumer: consumer.into() });
            ((script.latency)(), (script.answer)(operation))
        };
        if !latency.is_zero() {
            sleep(latency).await;
        }
        match answer {
            Answer::Served => Ok(()),
            Answer::Refused(error) => Err(error),
            Answer::Hangs => pending().await,
        }
    }
}

impl Script {
    fn register(&mut self, name: &str, active: Instant) -> String {
        self.registered += 1;
        let arn = format!("{STREAM}/consumer/{name}:{}", self.registered);
        self.consumers.insert(arn.clone(), (name.to_owned(), Some(active)));
        arn
    }

    fn found(&self, wanted: impl Fn(&str, &str) -> bool, asked: &str) -> Result<Consumer, FanOutError> {
        let found = self.consumers.iter().find(|(arn, (name, _))| wanted(arn, name));
        let (arn, (_, active)) = found.ok_or_else(|| FanOutError::ConsumerNotFound { consumer: asked.to_owned() })?;
        let status = match active {
            None => ConsumerStatus::Deleting,
            Some(active) if *active > Instant::now() => ConsumerStatus::Creating,
            Some(_) => ConsumerStatus::Active,
        };
        Ok(Consumer { arn: arn.clone(), status })
    }

    /// Where a reading that starts here begins in `records`.
    pub(super) fn index(&self, start: StartingPosition) -> usize {
        let first = |wanted: &dyn Fn(SequenceNumber) -> bool| {
            self.records.iter().position(|record| wanted(record.sequence_number)).unwrap_or(self.records.len())
        };
        match start {
            StartingPosition::TrimHorizon | StartingPosition::AtTimestamp(_) => 0,
            StartingPosition::Latest => self.records.len(),
            StartingPosition::AtSequenceNumber(number) => first(&|record| record >= number),
            StartingPosition::AfterSequenceNumber(number) => first(&|record| record > number),
        }
    }
}

#[async_trait]
impl FanOutApi for Fake {
    async fn register(&self, _: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.begin(Operation::Register, name, "", None).await?;
        let mut script = self.script();
        if script.consumers.values().any(|(known, _)| known == name) {
            return Err(error(Failure::InUse));
        }
        let active = Instant::now() + script.creating;
        let arn = script.register(name, active);
        script.found(|found, _| found == arn, name)
    }

    async fn find(&self, _: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.begin(Operation::Describe, name, "", None).await?;
        self.script().found(|_, found| found == name, name)
    }

    async fn describe(&self, consumer_arn: &str) -> Result<Consumer, FanOutError> {
        self.begin(Operation::Describe, consumer_arn, "", None).await?;
        self.script().found(|found, _| found == consumer_arn, consumer_arn)
    }

    async fn deregister(&self, consumer_arn: &str) -> Result<(), FanOutError> {
        self.begin(Operation::Deregister, consumer_arn, "", None).await?;
        self.script().consumers.remove(consumer_arn);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn subscribe(&self, consumer_arn: &str, shard: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError> {
        self.begin(Operation::Subscribe, consumer_arn, shard, Some(start)).await?;
        let mut script = self.script();
        match script.found(|found, _| found == consumer_arn, consumer_arn) {
            Ok(Consumer { status: ConsumerStatus::Active, .. }) => {}
            Ok(_) => return Err(error(Failure::InUse)),
            Err(_) => return Err(error(Failure::NotFound)),
        }
        let fate = (script.fate)();
        script.open += 1;
        Ok(Box::new(Events {
            service: self.clone(),
            consumer: consumer_arn.to_owned(),
            index: script.index(start),
            opened: Instant::now(),
            last: None,
            given: 0,
            fate,
            asked: false,
            twisted: VecDeque::new(),
        }))
    }
}

struct Events {
    service: Fake,
    consumer: String,
    index: usize,
    opened: Instant,
    last: Option<Instant>,
    given: u32,
    fate: Fate,
    asked: bool,
    twisted: VecDeque<Event>,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.service.script().open -= 1;
    }
}

impl Events {
    /// What is there now.
    fn present(&mut self) -> Option<Result<Option<Event>, FanOutError>> {
        let script = self.service.script();
        if !script.consumers.contains_key(&self.consumer) {
            return Some(Err(error(Failure::Unavailable)));
        }
        let left = &script.records[self.index..];
        let records = left[..left.len().min(script.event_records)].to_vec();
        let ended = script.closed && records.len() == left.len();
        let now = Instant::now();
        let due = self.last.is_none_or(|last| now >= last + HEARTBEAT);
        if records.is_empty() && !ended {
            if now >= self.opened + LIFE {
                return Some(Ok(None));
            }
            if !due {
                return None;
            }
        }
        if script.on_demand && !std::mem::replace(&mut self.asked, true) {
            return None;
        }
        (self.asked, self.last) = (false, Some(now));
        self.index += records.len();
        self.given += 1;
        let child = ChildShard { shard_id: CHILD.into(), parents: BTreeSet::from(["shard".to_owned()]), hash_range: (0, u128::MAX) };
        let before = script.records[..self.index].last().map_or(0.into(), |record| record.sequence_number);
        Some(Ok(Some(Event {
            millis_behind_latest: Some(if self.index == script.records.len() { 0 } else { 1_000 }),
            continuation: (!ended).then_some(before),
            children: if ended { vec![child] } else { Vec::new() },
            records,
        })))
    }
}

#[async_trait]
impl EventStream for Events {
    async fn next(&mut self) -> Result<Option<Event>, FanOutError> {
        loop {
            if let Some(event) = self.twisted.pop_front() {
                return Ok(Some(event));
            }
            if let Fate::After(events, then) = &self.fate
                && self.given >= *events
            {
                match then.clone() {
                    Then::Fails(error) => return Err(error),
                    Then::Ends => return Ok(None),
                    Then::Silent => pending().await,
                }
            }
            let service = self.service.clone();
            let changed = service.changed.notified();
            match self.present() {
                Some(Ok(Some(event))) => {
                    self.twisted = (service.script().twist)(event).into();
                    continue;
                }
                Some(present) => return present,
                None => {}
            }
            if self.asked {
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.last.map_or_else(Instant::now, |last| last + HEARTBEAT).min(self.opened + LIFE);
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(due) => {}
            }
        }
    }
}

pub(super) fn numbers(records: &[Record]) -> Vec<SequenceNumber> {
    records.iter().map(|record| record.sequence_number).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    InUse,
    NotFound,
    Throttled,
    Denied,
    Kms,
    Invalid,
    Unavailable,
    Limit,
    Creating,
    Deleting,
    Missing,
}

pub(super) const FAILURES: [Failure; 11] = [
    Failure::InUse,
    Failure::NotFound,
    Failure::Throttled,
    Failure::Denied,
    Failure::Kms,
    Failure::Invalid,
    Failure::Unavailable,
    Failure::Limit,
    Failure::Creating,
    Failure::Deleting,
    Failure::Missing,
];

pub(super) fn error(failure: Failure) -> FanOutError {
    let (operation, message, consumer) = ("an operation", "no".to_owned(), NAME.to_owned());
    match failure {
        Failure::InUse => FanOutError::InUse { operation, message },
        Failure::NotFound => FanOutError::NotFound { operation, message },
        Failure::Throttled => FanOutError::Throttled { operation, message },
        Failure::Denied => FanOutError::AccessDenied { operation, message },
        Failure::Kms => FanOutError::Kms { operation, message },
        Failure::Invalid => FanOutError::InvalidArgument { operation, message },
        Failure::Unavailable => FanOutError::Unavailable { operation, message },
        Failure::Limit => FanOutError::ConsumerLimit { consumer, stream: STREAM.to_owned(), message },
        Failure::Creating => FanOutError::ConsumerCreating { consumer },
        Failure::Deleting => FanOutError::ConsumerDeleting { consumer },
        Failure::Missing => FanOutError::ConsumerNotFound { consumer },
    }
}
