//! Readers against a shard that is served both ways from the same records, in simulated time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use kcl_checkpoint::SequenceNumber;
use kcl_efo::{ChildShard, Consumer, ConsumerStatus, Event, EventStream, FanOutApi, FanOutError, SoleReader};
use kcl_lease::Entropy;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::*;
use crate::record::Record;
use crate::retrieval::fake::{CHILD, FAILURES, Failure, Fake, Operation, PARENT, SimulatedClock, assert_ended, error, numbers};
use crate::retrieval::{Fetched, LARGEST_ANSWER, PollingConfig};
use crate::stream::{RecordsPage, Shard, ShardFilter, ShardIterator, StreamApi, StreamDescription, StreamError};

const STREAM: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
const SUBSCRIBE: &str = "kinesis:SubscribeToShard";
/// How long after an accepted subscription another one is refused (AWS limit).
const TOO_YOUNG: Duration = Duration::from_secs(5);
const LIFE: Duration = Duration::from_secs(300);
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What becomes of a call of SubscribeToShard that the service would accept.
#[derive(Clone, Debug)]
enum Fate {
    Refused(FanOutError),
    Hangs,
    /// Accepted, but nobody is told.
    AnswerLost,
    Accepted,
}

/// How a subscription ends, unless by the end of the shard.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    InOrder,
    Broken,
    Silent,
}

struct Push {
    /// When the consumer is active; `None`: there is no consumer.
    active: Option<Instant>,
    /// Registrations so far: each makes another ARN.
    registered: u32,
    creation: Duration,
    /// Of the consumer's operations, by name.
    consumer_fault: Box<dyn FnMut(&'static str) -> Option<FanOutError> + Send>,
    fate: Box<dyn FnMut() -> Fate + Send>,
    ending: Box<dyn FnMut() -> (Duration, Ending) + Send>,
    latency: Box<dyn FnMut() -> Duration + Send>,
    /// What lies ready in the client when a subscription begins.
    ready: VecDeque<Event>,
    calls: Vec<(Instant, StartingPosition)>,
    accepted: Vec<Instant>,
    looks: Vec<Instant>,
    events: usize,
    /// The last event of a shard names no children.
    childless: bool,
    /// The present subscription.
    generation: u64,
    opening: usize,
    live: usize,
}

/// The fake shard, by GetRecords and by subscriptions. GetRecords beside either a subscription or an attempt at one is a failure of the test.
#[derive(Clone)]
struct Service {
    shard: Fake,
    push: Arc<Mutex<Push>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Service")
    }
}

impl Service {
    /// With an active consumer.
    fn new(records: usize) -> Self {
        let shard = Fake::new(0);
        // So that there are numbers between those of records, as continuation numbers are.
        shard.script().step = 10;
        (0..records).for_each(|_| shard.put(10));
        let push = Push {
            active: Some(Instant::now()),
            registered: 1,
            creation: Duration::ZERO,
            consumer_fault: Box::new(|_| None),
            fate: Box::new(|| Fate::Accepted),
            ending: Box::new(|| (LIFE, Ending::InOrder)),
            latency: Box::new(|| Duration::ZERO),
            ready: VecDeque::new(),
            calls: Vec::new(),
            accepted: Vec::new(),
            looks: Vec::new(),
            events: 0,
            childless: false,
            generation: 0,
            opening: 0,
            live: 0,
        };
        Self { shard, push: Arc::new(Mutex::new(push)) }
    }

    fn push(&self) -> MutexGuard<'_, Push> {
        self.push.lock().unwrap()
    }

    fn refuse(&self, error: FanOutError) {
        self.push().fate = Box::new(move || Fate::Refused(error.clone()));
    }

    /// Another reader subscribes with the same consumer.
    fn taken_over(&self) {
        let mut push = self.push();
        push.generation += 1;
        push.accepted.push(Instant::now());
    }

    fn fan_out(&self, choice: ConsumerChoice, seed: u64) -> FanOut {
        let jitter = Entropy::from_seed(seed);
        FanOut::new(Arc::new(self.clone()), STREAM, choice, Arc::new(move || jitter.fraction())).unwrap()
    }

    fn retrieval(&self, bridge: bool, seed: u64) -> FanOutRetrieval {
        let clock = Arc::new(SimulatedClock(self.shard.script().began));
        let config = PollingConfig { max_records: 30, ..PollingConfig::default() };
        let polling = Polling::new(Arc::new(self.clone()), config, clock, Entropy::from_seed(seed));
        FanOutRetrieval::new(self.fan_out(ConsumerChoice::Named("app".into()), seed), polling, bridge)
    }

    fn open(&self, bridge: bool, start: StartingPosition) -> Box<dyn ShardReader> {
        self.retrieval(bridge, 0).open(&PARENT.into(), start, Arc::new(SoleReader))
    }

    fn calls(&self) -> usize {
        self.push().calls.len()
    }

    fn reads(&self) -> usize {
        self.shard.count(Operation::Read)
    }

    /// Within five calls a second of each operation that polls, one SubscribeToShard a second, and one look at the consumer.
    fn assert_within_budget(&self, of: &dyn std::fmt::Debug) {
        self.shard.assert_within_budget();
        let push = self.push();
        for pair in push.calls.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= Duration::from_secs(1), "{of:?}: subscribed after {:?}", pair[1].0 - pair[0].0);
        }
        // A look is up to two calls: one that finds no consumer, and one that registers it.
        for three in push.looks.windows(3) {
            assert!(three[2] - three[0] >= Duration::from_secs(1), "{of:?}: looked after {:?}", three[2] - three[0]);
        }
    }

    async fn look(&self, operation: &'static str) -> Result<(), FanOutError> {
        let (latency, fault) = {
            let mut push = self.push();
            push.looks.push(Instant::now());
            ((push.latency)(), (push.consumer_fault)(operation))
        };
        sleep(latency).await;
        fault.map_or(Ok(()), Err)
    }

    fn assert_only_way(&self) {
        assert_eq!(self.push().under_way(), (0, 0), "the bridge reads beside an attempt to subscribe, or a subscription");
    }
}

impl Push {
    /// Attempts, and subscriptions that live.
    fn under_way(&self) -> (usize, usize) {
        (self.opening, self.live)
    }

    fn arn(&self) -> String {
        format!("{STREAM}/consumer/app:{}", self.registered)
    }

    fn consumer(&self) -> Option<Consumer> {
        let status = if self.active? <= Instant::now() { ConsumerStatus::Active } else { ConsumerStatus::Creating };
        Some(Consumer { arn: self.arn(), status })
    }

    /// As the service does.
    fn accept(&mut self, consumer: &str) -> Result<u64, FanOutError> {
        let (operation, now) = (SUBSCRIBE, Instant::now());
        let in_use = |message: &str| Err(FanOutError::InUse { operation, message: message.into() });
        match self.consumer() {
            Some(known) if known.arn == consumer && known.status == ConsumerStatus::Active => {}
            Some(known) if known.arn == consumer => return in_use("the consumer is not active"),
            _ => return Err(FanOutError::NotFound { operation, message: "no such consumer".into() }),
        }
        if self.accepted.last().is_some_and(|last| now - *last < TOO_YOUNG) {
            return in_use("too young");
        }
        self.accepted.push(now);
        self.generation += 1;
        Ok(self.generation)
    }
}

/// Counts what is under way until it is dropped.
struct Under<F: Fn(&mut Push) -> &mut usize>(Arc<Mutex<Push>>, F);

impl<F: Fn(&mut Push) -> &mut usize> Under<F> {
    fn way(push: &Arc<Mutex<Push>>, count: F) -> Self {
        *count(&mut push.lock().unwrap()) += 1;
        Self(Arc::clone(push), count)
    }
}

impl<F: Fn(&mut Push) -> &mut usize> Drop for Under<F> {
    fn drop(&mut self) {
        *(self.1)(&mut self.0.lock().unwrap()) -= 1;
    }
}

#[async_trait]
impl FanOutApi for Service {
    async fn register(&self, _: &str, _: &str) -> Result<Consumer, FanOutError> {
        self.look("register").await?;
        let mut push = self.push();
        push.registered += 1;
        push.active = Some(Instant::now() + push.creation);
        Ok(push.consumer().unwrap())
    }

    async fn find(&self, _: &str, name: &str) -> Result<Consumer, FanOutError> {
        self.look("find").await?;
        self.push().consumer().ok_or(FanOutError::ConsumerNotFound { consumer: name.into() })
    }

    async fn describe(&self, arn: &str) -> Result<Consumer, FanOutError> {
        self.look("describe").await?;
        let found = self.push().consumer().filter(|consumer| consumer.arn == arn);
        found.ok_or(FanOutError::ConsumerNotFound { consumer: arn.into() })
    }

    async fn deregister(&self, _: &str) -> Result<(), FanOutError> {
        unreachable!("readers do not deregister")
    }

    async fn subscribe(&self, consumer: &str, _: &str, start: StartingPosition) -> Result<Box<dyn EventStream>, FanOutError> {
        let _attempt = Under::way(&self.push, |push| &mut push.opening);
        let (latency, fate) = {
            let mut push = self.push();
            push.calls.push((Instant::now(), start));
            ((push.latency)(), (push.fate)())
        };
        sleep(latency).await;
        match fate {
            Fate::Refused(error) => return Err(error),
            Fate::Hangs => return std::future::pending().await,
            Fate::AnswerLost => {
                self.push().accept(consumer)?;
                return Err(FanOutError::Unavailable { operation: SUBSCRIBE, message: "lost".into() });
            }
            Fate::Accepted => {}
        }
        let generation = self.push().accept(consumer)?;
        let (after, ending) = (self.push().ending)();
        let ready = std::mem::take(&mut self.push().ready);
        let index = self.shard.script().index_of(start);
        Ok(Box::new(Stream {
            index,
            service: self.clone(),
            generation,
            ends: Instant::now() + after,
            ending,
            heard: Instant::now(),
            ready,
            ended: false,
            _live: Box::new(Under::way(&self.push, |push| &mut push.live)),
        }))
    }
}

struct Stream {
    service: Service,
    generation: u64,
    index: usize,
    ends: Instant,
    ending: Ending,
    /// When the last event was given.
    heard: Instant,
    ready: VecDeque<Event>,
    ended: bool,
    _live: Box<dyn Send>,
}

impl Stream {
    /// What there is to give now.
    fn event(&mut self) -> Option<Event> {
        let script = self.service.shard.script();
        let records = &script.records[self.index..];
        let (records, behind) = (&records[..records.len().min(7)], records.len() > 7);
        let closed = script.closed && records.is_empty();
        if records.is_empty() && !closed && self.heard.elapsed() < HEARTBEAT {
            return None;
        }
        // At the tip: beyond the last record, and before the next one.
        let tip = SequenceNumber::from(script.records.len() as u128 * script.step + 5);
        let continuation = records.last().map_or(tip, Record::sequence_number);
        let children = vec![ChildShard { shard_id: CHILD.into(), parents: [PARENT.into()].into(), hash_range: (0, u128::MAX) }];
        let event = Event {
            records: records.iter().map(pushed).collect(),
            continuation: (!closed).then_some(continuation),
            millis_behind_latest: Some(if behind { 1_000 } else { 0 }),
            children: if closed { children } else { Vec::new() },
        };
        drop(script);
        let mut event = event;
        if self.service.push().childless {
            event.children.clear();
        }
        self.index += event.records.len();
        (self.heard, self.ended) = (Instant::now(), closed);
        Some(event)
    }
}

fn pushed(record: &Record) -> kcl_efo::Record {
    let (sequence_number, arrival) = (record.sequence_number(), record.approximate_arrival());
    kcl_efo::Record { sequence_number, partition_key: None, data: record.data().clone(), arrival }
}

#[async_trait]
impl EventStream for Stream {
    async fn next(&mut self) -> Result<Option<Event>, FanOutError> {
        if let Some(event) = self.ready.pop_front() {
            self.index += event.records.len();
            return Ok(Some(event));
        }
        loop {
            if self.ended {
                return Ok(None);
            }
            if self.service.push().generation != self.generation {
                return Err(FanOutError::InUse { operation: SUBSCRIBE, message: "another one has its place".into() });
            }
            if Instant::now() >= self.ends {
                match self.ending {
                    Ending::InOrder => return Ok(None),
                    Ending::Broken => return Err(FanOutError::Unavailable { operation: SUBSCRIBE, message: "reset".into() }),
                    Ending::Silent => std::future::pending().await,
                }
            }
            if let Some(event) = self.event() {
                self.service.push().events += 1;
                return Ok(Some(event));
            }
            sleep_until(self.ends.min(Instant::now() + Duration::from_millis(70))).await;
        }
    }
}

#[async_trait]
impl StreamApi for Service {
    async fn describe(&self) -> Result<StreamDescription, StreamError> {
        self.shard.describe().await
    }

    async fn list_shards(&self, filter: ShardFilter) -> Result<Vec<Shard>, StreamError> {
        self.assert_only_way();
        self.shard.list_shards(filter).await
    }

    async fn shard_iterator(&self, shard: &ShardId, start: StartingPosition) -> Result<ShardIterator, StreamError> {
        self.assert_only_way();
        assert_ne!(start, StartingPosition::Latest, "the bridge can't know which place that is");
        self.shard.shard_iterator(shard, start).await
    }

    async fn get_records(&self, iterator: &ShardIterator, limit: u32) -> Result<RecordsPage, StreamError> {
        self.assert_only_way();
        self.shard.get_records(iterator, limit).await
    }
}

/// Every error that a subscription, or the look for its consumer, may give.
fn refusals() -> Vec<FanOutError> {
    let (operation, message, consumer) = (SUBSCRIBE, String::from("no"), String::from("app"));
    vec![
        FanOutError::ConsumerNotFound { consumer: consumer.clone() },
        FanOutError::ConsumerDeleting { consumer: consumer.clone() },
        FanOutError::ConsumerCreating { consumer: consumer.clone() },
        FanOutError::ConsumerLimit { consumer, stream: STREAM.into(), message: message.clone() },
        FanOutError::NotFound { operation, message: message.clone() },
        FanOutError::InUse { operation, message: message.clone() },
        FanOutError::Throttled { operation, message: message.clone() },
        FanOutError::AccessDenied { operation, message: message.clone() },
        FanOutError::Kms { operation, message: message.clone() },
        FanOutError::InvalidArgument { operation, message: message.clone() },
        FanOutError::Unavailable { operation, message },
    ]
}

/// A hold on the shard that takes its time and is not always certain.
struct Doubtful(Entropy);

#[async_trait]
impl Ownership for Doubtful {
    async fn granted(&self, ask: bool) -> bool {
        let longest = if ask { Duration::from_secs(2) } else { Duration::from_millis(100) };
        let wait = self.0.between(Duration::ZERO, longest);
        sleep(wait).await;
        true
    }

    fn is_certain(&self) -> bool {
        self.0.fraction() < 0.9
    }

    fn is_inherited(&self) -> bool {
        self.0.fraction() < 0.5
    }
}

#[tokio::test(start_paused = true)]
async fn every_record_comes_once_and_in_order_whatever_fails_and_is_cancelled() {
    let (mut by_push, mut by_polling) = (0, 0);
    for seed in 0..300 {
        let chance = Entropy::from_seed(seed);
        let service = Service::new((chance.u64() % 200) as usize);
        {
            let mut script = service.shard.script();
            script.children_in_page = chance.fraction() < 0.5;
            let (faults, rate) = (chance.clone(), chance.fraction() * 0.6);
            script.fault =
                Box::new(move |_| (faults.fraction() < rate).then(|| error(FAILURES[(faults.u64() % FAILURES.len() as u64) as usize])));
            let latency = chance.clone();
            script.latency = Box::new(move || latency.between(Duration::ZERO, Duration::from_millis(300)));
        }
        {
            let mut push = service.push();
            push.creation = chance.between(Duration::ZERO, Duration::from_secs(20));
            push.active = (chance.fraction() < 0.5).then(Instant::now);
            // In every fifth nothing is ever accepted: the bridge goes all the way.
            let (fates, rate) = (chance.clone(), if seed % 5 == 0 { 1.0 } else { chance.fraction() * 0.8 });
            push.fate = Box::new(move || match fates.fraction() {
                draw if draw < rate * 0.8 => {
                    let refusals = refusals();
                    Fate::Refused(refusals[(fates.u64() % refusals.len() as u64) as usize].clone())
                }
                draw if draw < rate * 0.9 => Fate::Hangs,
                draw if draw < rate => Fate::AnswerLost,
                _ => Fate::Accepted,
            });
            let endings = chance.clone();
            push.ending = Box::new(move || {
                let ending = [Ending::InOrder, Ending::Broken, Ending::Silent][(endings.u64() % 3) as usize];
                (endings.between(Duration::ZERO, Duration::from_secs(12)), ending)
            });
            let latency = chance.clone();
            push.latency = Box::new(move || latency.between(Duration::ZERO, Duration::from_millis(400)));
            let faults = chance.clone();
            push.consumer_fault =
                Box::new(move |operation| (faults.fraction() < 0.2).then(|| refusals().swap_remove(6)).filter(|_| operation != "describe"));
        }
        let retrieval = service.retrieval(true, seed);
        let mut reader = retrieval.open(&PARENT.into(), StartingPosition::TrimHorizon, Arc::new(Doubtful(chance.clone())));
        let (mut seen, mut to_come) = (Vec::new(), chance.u64() % 100);
        loop {
            assert!(service.shard.script().began.elapsed() < Duration::from_secs(4 * 3600), "seed {seed}: stuck after {}", seen.len());
            match timeout(chance.between(Duration::ZERO, Duration::from_millis(400)), reader.fetch()).await {
                Ok(Ok(Fetched::Records { records, .. })) => seen.extend(records.iter().map(Record::sequence_number)),
                Ok(Ok(end @ Fetched::ShardEnd { .. })) => {
                    assert_ended(&end);
                    break;
                }
                Ok(Err(_)) | Err(_) => {}
            }
            let draw = chance.fraction();
            if to_come > 0 && draw < 0.3 {
                service.shard.put(10);
                to_come -= 1;
                service.shard.script().closed = to_come == 0;
            } else if to_come == 0 && draw < 0.02 {
                service.shard.script().closed = true;
                service.shard.script().children_listed = true;
            } else if draw > 0.99 {
                service.taken_over();
            } else if draw > 0.98 {
                // A processor that takes its time, longer than an iterator lives.
                sleep(Duration::from_secs(301)).await;
            } else if draw > 0.97 && chance.fraction() < 0.2 {
                service.push().active = None;
            }
        }
        assert_eq!(seen, service.shard.all(), "seed {seed}");
        service.assert_within_budget(&seed);
        let push = service.push();
        by_push += push.events;
        by_polling += service.reads();
        drop(push);
        drop(reader);
        assert_eq!(service.push().under_way(), (0, 0));
    }
    assert!(by_push > 3_000 && by_polling > 3_000, "both ways are used: {by_push} {by_polling}");
}

async fn read_for(reader: &mut Box<dyn ShardReader>, time: Duration) -> (Vec<SequenceNumber>, Vec<StreamError>) {
    let (end, mut seen, mut errors) = (Instant::now() + time, Vec::new(), Vec::new());
    while Instant::now() < end {
        match timeout(end - Instant::now(), reader.fetch()).await {
            Ok(Ok(fetched)) => seen.extend(numbers(fetched)),
            Ok(Err(error)) => errors.push(error),
            Err(_) => {}
        }
    }
    (seen, errors)
}

#[tokio::test(start_paused = true)]
async fn under_any_lasting_refusal_the_bridge_reads_and_no_call_is_made_too_often() {
    for refusal in refusals() {
        let service = Service::new(5);
        service.refuse(refusal.clone());
        let mut reader = service.open(true, StartingPosition::TrimHorizon);
        let began = Instant::now();
        let (mut seen, errors) = read_for(&mut reader, Duration::from_secs(2)).await;
        assert_eq!(seen.len(), 5, "{refusal}: at once");
        service.shard.put(10);
        let (more, more_errors) = read_for(&mut reader, Duration::from_secs(300)).await;
        seen.extend(more);
        assert_eq!(seen, service.shard.all(), "{refusal}");
        assert!(errors.is_empty() && more_errors.is_empty(), "{refusal}: {errors:?} {more_errors:?}");
        let calls = service.calls();
        assert!((8..=200).contains(&calls), "{refusal}: {calls} calls in {:?}", began.elapsed());
        service.assert_within_budget(&refusal);
        // And then it may.
        service.push().fate = Box::new(|| Fate::Accepted);
        read_for(&mut reader, Duration::from_secs(60)).await;
        let reads = service.reads();
        service.shard.put(10);
        let (more, _) = read_for(&mut reader, Duration::from_secs(60)).await;
        assert_eq!((more.len(), service.reads()), (1, reads), "{refusal}: the subscription has taken over");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_bridge_a_shard_waits_for_what_passes_and_says_what_does_not() {
    for refusal in refusals() {
        let service = Service::new(5);
        service.refuse(refusal.clone());
        let mut reader = service.open(false, StartingPosition::TrimHorizon);
        let (seen, errors) = read_for(&mut reader, Duration::from_secs(300)).await;
        assert_eq!((seen.len(), service.reads()), (0, 0), "{refusal}");
        assert_eq!(errors.is_empty(), refusal.is_retryable(), "{refusal}: {errors:?}");
        for error in errors {
            // What the consumer of the shard draws conclusions from keeps its kind.
            match &refusal {
                FanOutError::InvalidArgument { .. } => assert!(matches!(error, StreamError::InvalidArgument { .. }), "{error}"),
                FanOutError::NotFound { .. } => assert!(matches!(error, StreamError::NotFound { .. }), "{error}"),
                refusal => assert_eq!(error.to_string(), refusal.to_string()),
            }
        }
        service.assert_within_budget(&refusal);
        service.push().fate = Box::new(|| Fate::Accepted);
        let (seen, _) = read_for(&mut reader, Duration::from_secs(60)).await;
        assert_eq!(seen, service.shard.all(), "{refusal}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_position_that_is_refused_either_way_is_told_although_there_is_a_bridge() {
    let (operation, message) = (SUBSCRIBE, String::from("no"));
    let both = [
        (FanOutError::InvalidArgument { operation, message: message.clone() }, Failure::Invalid),
        (FanOutError::NotFound { operation, message }, Failure::NotFound),
    ];
    for (refusal, failure) in both {
        let service = Service::new(5);
        service.refuse(refusal.clone());
        service.shard.script().fault = Box::new(move |_| Some(error(failure)));
        let mut reader = service.open(true, StartingPosition::AtSequenceNumber(3.into()));
        let (seen, errors) = read_for(&mut reader, Duration::from_secs(60)).await;
        assert!(seen.is_empty() && !errors.is_empty(), "{refusal}");
        for told in errors {
            let is_refused = failure == Failure::Invalid && matches!(told, StreamError::StartRefused { .. });
            assert!(is_refused || std::mem::discriminant(&told) == std::mem::discriminant(&error(failure)), "{told}");
        }
        service.assert_within_budget(&refusal);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_polls_nothing_and_a_consumer_in_creation_is_bridged() {
    let service = Service::new(5);
    service.push().active = None;
    service.push().creation = Duration::from_secs(20);
    let mut reader = service.open(true, StartingPosition::TrimHorizon);
    let (seen, _) = read_for(&mut reader, Duration::from_secs(10)).await;
    assert_eq!(seen, service.shard.all());
    assert!(service.calls() == 0 && service.reads() > 5, "{} calls, {} reads", service.calls(), service.reads());
    read_for(&mut reader, Duration::from_secs(60)).await;
    assert_eq!(service.calls(), 1);
    let reads = service.reads();
    // Twelve lives.
    for _ in 0..60 {
        service.shard.put(10);
        let (seen, _) = read_for(&mut reader, Duration::from_secs(60)).await;
        assert_eq!(seen.len(), 1);
    }
    assert!((12..=14).contains(&service.calls()), "{}", service.calls());
    assert_eq!(service.reads(), reads);
}

#[tokio::test(start_paused = true)]
async fn the_tip_is_where_a_subscription_finds_it_and_no_bridge_goes_before() {
    let service = Service::new(5);
    service.push().active = Some(Instant::now() + Duration::from_secs(10));
    let mut reader = service.open(true, StartingPosition::Latest);
    read_for(&mut reader, Duration::from_secs(30)).await;
    assert_eq!((service.calls(), service.reads()), (1, 0));
    // From then on the place is known, and nothing behind it is left out.
    service.taken_over();
    service.shard.put(10);
    let (seen, _) = read_for(&mut reader, Duration::from_secs(60)).await;
    assert_eq!(seen, service.shard.all()[5..]);
    assert!(service.reads() > 0);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_nobody_asks_makes_no_attempts() {
    let service = Service::new(5);
    let mut reader = service.open(true, StartingPosition::TrimHorizon);
    assert_eq!(numbers(reader.fetch().await.unwrap()), service.shard.all());
    for _ in 0..5 {
        sleep(Duration::from_secs(600)).await;
        service.shard.put(10);
    }
    assert_eq!((service.calls(), service.push().events), (1, 1));
    let (seen, _) = read_for(&mut reader, Duration::from_secs(30)).await;
    assert_eq!(seen, service.shard.all()[5..]);
    assert_eq!((service.calls(), service.reads()), (2, 0), "its subscription was over");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_shard_is_looked_for_in_the_listing_if_no_event_names_the_children() {
    for bridge in [false, true] {
        let service = Service::new(5);
        service.push().childless = true;
        let mut reader = service.open(bridge, StartingPosition::TrimHorizon);
        assert_eq!(numbers(reader.fetch().await.unwrap()), service.shard.all());
        service.shard.put(10);
        service.shard.script().closed = true;
        // The listing lags: no children, no end.
        let (seen, errors) = read_for(&mut reader, Duration::from_secs(60)).await;
        assert_eq!((seen, errors.len()), (service.shard.all()[5..].to_vec(), 0), "bridge {bridge}");
        assert!(service.shard.count(Operation::List) > 1, "bridge {bridge}");
        service.shard.script().children_listed = true;
        let end = loop {
            match timeout(Duration::from_secs(60), reader.fetch()).await.unwrap().unwrap() {
                Fetched::Records { records, .. } => assert!(records.is_empty(), "bridge {bridge}"),
                end @ Fetched::ShardEnd { .. } => break end,
            }
        };
        assert_ended(&end);
        assert_ended(&reader.fetch().await.unwrap());
        assert!(bridge || service.reads() == 0);
        service.assert_within_budget(&bridge);
    }
}

/// A subscription that breaks off at the tip says nothing of what came after it, and neither does a listing made since.
#[tokio::test(start_paused = true)]
async fn no_end_is_taken_from_a_listing_before_the_closed_shard_has_nothing_more_to_give() {
    let service = Service::new(0);
    service.push().childless = true;
    // Looks like a shard's last event, and the subscription ends; meanwhile records come and the shard is closed.
    let empty = Event { records: Vec::new(), continuation: None, millis_behind_latest: Some(0), children: Vec::new() };
    service.push().ready.push_back(empty);
    let mut once = true;
    service.push().ending = Box::new(move || (if std::mem::take(&mut once) { Duration::ZERO } else { LIFE }, Ending::InOrder));
    let mut reader = service.open(false, StartingPosition::TrimHorizon);
    assert!(numbers(reader.fetch().await.unwrap()).is_empty());
    (0..20).for_each(|_| service.shard.put(10));
    service.shard.script().closed = true;
    service.shard.script().children_listed = true;
    let mut seen = Vec::new();
    let end = loop {
        match timeout(Duration::from_secs(60), reader.fetch()).await.unwrap().unwrap() {
            records @ Fetched::Records { .. } => seen.extend(numbers(records)),
            end @ Fetched::ShardEnd { .. } => break end,
        }
    };
    assert_ended(&end);
    assert_eq!(seen, service.shard.all());
}

#[tokio::test(start_paused = true)]
async fn a_starting_position_that_is_refused_twice_is_told_apart() {
    for bridge in [false, true] {
        let service = Service::new(5);
        let refusal = FanOutError::InvalidArgument { operation: SUBSCRIBE, message: "no".into() };
        service.refuse(refusal);
        service.shard.script().fault = Box::new(|operation| (operation == Operation::Open).then(|| error(Failure::Invalid)));
        let mut reader = service.open(bridge, StartingPosition::AtSequenceNumber(30.into()));
        assert!(matches!(reader.fetch().await, Err(StreamError::InvalidArgument { .. })), "bridge {bridge}: once is no proof");
        assert!(matches!(reader.fetch().await, Err(StreamError::StartRefused { .. })), "bridge {bridge}");
        service.push().fate = Box::new(|| Fate::Accepted);
        service.shard.script().fault = Box::new(|_| None);
        let (seen, _) = read_for(&mut reader, Duration::from_secs(60)).await;
        assert_eq!(seen, service.shard.all()[2..], "bridge {bridge}: it may be asked on");
    }
}

/// Nothing is read by the bridge that `ready` has not announced.
#[tokio::test(start_paused = true)]
async fn ready_says_how_much_the_next_answer_may_hold() {
    let service = Service::new(5);
    service.push().active = None;
    service.push().creation = Duration::from_secs(20);
    let mut reader = service.open(true, StartingPosition::TrimHorizon);
    let mut polled = 0;
    while service.calls() == 0 {
        let bytes = reader.ready().await.unwrap();
        let reads = service.reads();
        _ = reader.next().await.unwrap();
        if service.reads() > reads {
            assert!(bytes > 0);
            polled += 1;
        }
    }
    assert!(polled > 5, "{polled}");
    assert!(reader.ready().await.unwrap() < LARGEST_ANSWER);
}
