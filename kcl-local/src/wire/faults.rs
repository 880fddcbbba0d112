//! Faults at the wire: which requests go wrong, how, and how often each has happened.
//!
//! The decision is made once for each request, when it has been read and before it is applied. The server carries it
//! out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Service;
use super::batches::has_entries;

/// What goes wrong with a request.
///
/// The three of streams concern the answer to SubscribeToShard, if it is accepted; a client that does not read meets
/// them when it reads again. They never strike another operation, and are not counted there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The request is applied and answered later, by a time drawn from `min..=max`. Its caller may have given up by
    /// then: it is applied all the same.
    Latency {
        /// The shortest delay.
        min: Duration,
        /// The longest delay; not below `min`.
        max: Duration,
    },
    /// Refused with the service's own throttling error; not applied.
    Throttle,
    /// Answered with the service's own internal failure, status 500; not applied.
    ServerError,
    /// The connection ends without an answer (over HTTP/2: the stream); not applied.
    Drop,
    /// Applied, but the connection ends without an answer (over HTTP/2: the stream).
    LoseAnswer,
    /// Applied, but never answered while the connection stays open: the caller's timeout decides.
    WithholdAnswer,
    /// Refused with this error; not applied.
    Error {
        /// The HTTP status: 400 for most errors that are the caller's, 500 and above for the service's.
        status: u16,
        /// The error's name in the service's model, as `KMSThrottlingException`; for SQS its code in the older query
        /// protocol, as `AWS.SimpleQueueService.NonExistentQueue`, where that is another.
        code: &'static str,
    },
    /// SendMessageBatch and PutRecords alone: the entries at these places, from 0, fail with this code; the others are applied. Never strikes
    /// another operation, and is not counted there.
    FailEntries {
        /// Places in the request.
        entries: &'static [usize],
        /// The entries' error code, as `InternalError` (SQS) or `ProvisionedThroughputExceededException` (Kinesis).
        code: &'static str,
    },
    /// SubscribeToShard alone: from this time after the beginning of the answer no frame comes any more, while the
    /// subscription lasts and the connection stays open. From zero on: not even the initial response, headers alone.
    StallStream {
        /// After the beginning of the answer.
        after: Duration,
    },
    /// SubscribeToShard alone: at this time after the beginning of the answer the connection ends in the middle of it
    /// (over HTTP/2: the stream is reset).
    CutStream {
        /// After the beginning of the answer.
        after: Duration,
    },
    /// SubscribeToShard alone: the answer is ended at this time after its beginning.
    EndStream {
        /// After the beginning of the answer. The initial response comes in any case.
        after: Duration,
        /// The exception that the stream ends with, as `InternalFailureException`; `None`: in order, without one.
        code: Option<&'static str>,
    },
}

/// How an answer that is a stream goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// No frame any more.
    Stall,
    /// The connection is cut.
    Cut,
    /// Ended, with an exception of this code or without one.
    End(Option<&'static str>),
}

impl Fault {
    /// The fault without its figures.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Latency { .. } => FaultKind::Latency,
            Self::Throttle => FaultKind::Throttle,
            Self::ServerError => FaultKind::ServerError,
            Self::Drop => FaultKind::Drop,
            Self::LoseAnswer => FaultKind::LoseAnswer,
            Self::WithholdAnswer => FaultKind::WithholdAnswer,
            Self::Error { .. } => FaultKind::Error,
            Self::FailEntries { .. } => FaultKind::FailEntries,
            Self::StallStream { .. } => FaultKind::StallStream,
            Self::CutStream { .. } => FaultKind::CutStream,
            Self::EndStream { .. } => FaultKind::EndStream,
        }
    }

    /// For a fault of streams: what happens, and how long after the answer's beginning.
    pub(super) fn of_stream(self) -> Option<(Duration, StreamEnd)> {
        match self {
            Self::StallStream { after } => Some((after, StreamEnd::Stall)),
            Self::CutStream { after } => Some((after, StreamEnd::Cut)),
            Self::EndStream { after, code } => Some((after, StreamEnd::End(code))),
            _ => None,
        }
    }
}

/// The kinds of [`Fault`], by which they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// [`Fault::Latency`]
    Latency,
    /// [`Fault::Throttle`]
    Throttle,
    /// [`Fault::ServerError`]
    ServerError,
    /// [`Fault::Drop`]
    Drop,
    /// [`Fault::LoseAnswer`]
    LoseAnswer,
    /// [`Fault::WithholdAnswer`]
    WithholdAnswer,
    /// [`Fault::Error`]
    Error,
    /// [`Fault::FailEntries`]
    FailEntries,
    /// [`Fault::StallStream`]
    StallStream,
    /// [`Fault::CutStream`]
    CutStream,
    /// [`Fault::EndStream`]
    EndStream,
}

/// Which requests a fault strikes: all, unless narrowed down.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    fault: Fault,
    service: Option<Service>,
    operation: Option<String>,
    probability: f64,
    from: Duration,
    until: Option<Duration>,
    times: Option<u64>,
}

impl Rule {
    /// `fault` for every request.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Self { fault, service: None, operation: None, probability: 1.0, from: Duration::ZERO, until: None, times: None }
    }

    /// Only requests of this service.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    /// Only requests of this operation, by its name in the API, as `UpdateItem`.
    #[must_use]
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Only this share of the requests, chosen at random from the server's seed: 0 (none) to 1 (all, the default);
    /// what is beyond is taken as the nearer of the two.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        self.probability = probability.clamp(0.0, 1.0);
        self
    }

    /// Only from this time after the server's start on; see [`Faults::elapsed`].
    #[must_use]
    pub fn from(mut self, since_start: Duration) -> Self {
        self.from = since_start;
        self
    }

    /// Only before this time after the server's start; see [`Faults::elapsed`].
    #[must_use]
    pub fn until(mut self, since_start: Duration) -> Self {
        self.until = Some(since_start);
        self
    }

    /// Strikes this often and never again. With the default probability: the next `times` requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    fn matches(&self, service: Service, operation: &str, elapsed: Duration) -> bool {
        self.service.is_none_or(|wanted| wanted == service)
            && self.operation.as_deref().is_none_or(|wanted| wanted == operation)
            && (self.fault.of_stream().is_none() || (service, operation) == STREAMING)
            && (self.fault.kind() != FaultKind::FailEntries || has_entries(service, operation))
            && elapsed >= self.from
            && self.until.is_none_or(|until| elapsed < until)
    }
}

/// The only operation whose answer is a stream.
pub(super) const STREAMING: (Service, &str) = (Service::Kinesis, "SubscribeToShard");

/// Names a rule that was added, to remove it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(u64);

/// What was asked of which service: the key of the counts.
pub type Operation = (Service, String);

/// The server's rules and counts: a handle, to change and to read while the server runs. Clones share it.
///
/// Rules are consulted in the order in which they were added. Delays of all rules that strike add up; of the other
/// faults the first that strikes is the request's. Each rule draws from its own generator, seeded by the server's seed
/// and the rule's place in the order, so that the same requests in the same order meet the same faults.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    started: Instant,
    seed: u64,
    added: u64,
    rules: BTreeMap<RuleId, Active>,
    requests: BTreeMap<Operation, u64>,
    accepted: BTreeMap<Operation, u64>,
    struck: BTreeMap<(Operation, FaultKind), u64>,
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    random: fastrand::Rng,
    struck: u64,
}

impl Active {
    fn strikes(&mut self) -> bool {
        let strikes = self.rule.times.is_none_or(|times| self.struck < times) && self.random.f64() < self.rule.probability;
        self.struck += u64::from(strikes);
        strikes
    }
}

/// What is to happen to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fate {
    /// Waited before anything else.
    pub(super) delay: Duration,
    /// The fault, never one of latency; without one the request is served.
    pub(super) fault: Option<Fault>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            started: Instant::now(),
            seed,
            added: 0,
            rules: BTreeMap::new(),
            requests: BTreeMap::new(),
            accepted: BTreeMap::new(),
            struck: BTreeMap::new(),
        })))
    }

    /// Puts a rule in force, after those there are.
    #[allow(clippy::must_use_candidate, reason = "most rules are never removed")]
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.lock();
        let id = RuleId(state.added);
        state.added += 1;
        // Spread by an odd constant: neighbouring seeds of neighbouring servers must not share generators.
        let seed = state.seed ^ id.0.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        state.rules.insert(id, Active { rule, random: fastrand::Rng::with_seed(seed), struck: 0 });
        id
    }

    /// Takes a rule out of force; false if it was not.
    #[allow(clippy::must_use_candidate, reason = "removing twice is harmless")]
    pub fn remove(&self, id: RuleId) -> bool {
        self.lock().rules.remove(&id).is_some()
    }

    /// Takes all rules out of force. Counts stay.
    pub fn clear(&self) {
        self.lock().rules.clear();
    }

    /// Time since the server's start, against which [`Rule::from`] and [`Rule::until`] are read.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.lock().started.elapsed()
    }

    /// How often each kind of fault has struck each operation.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(Operation, FaultKind), u64> {
        self.lock().struck.clone()
    }

    /// How many requests each operation has had, those struck by a fault included.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<Operation, u64> {
        self.lock().requests.clone()
    }

    /// How many requests this operation has had, those struck by a fault included.
    #[must_use]
    pub fn requests_of(&self, service: Service, operation: &str) -> u64 {
        self.lock().requests.get(&(service, operation.to_owned())).copied().unwrap_or(0)
    }

    /// How many requests this operation has had that were applied and not refused, those included whose answer was lost.
    #[must_use]
    pub fn accepted_of(&self, service: Service, operation: &str) -> u64 {
        self.lock().accepted.get(&(service, operation.to_owned())).copied().unwrap_or(0)
    }

    /// Begins counting anew, requests and faults. Rules, and how often they may still strike, stay.
    pub fn reset_counts(&self) {
        let mut state = self.lock();
        state.requests.clear();
        state.accepted.clear();
        state.struck.clear();
    }

    /// Counts a request that arrived, and decides on it.
    pub(super) fn decide(&self, service: Service, operation: &str) -> Fate {
        let mut state = self.lock();
        let State { started, rules, requests, struck, .. } = &mut *state;
        let key = (service, operation.to_owned());
        *requests.entry(key.clone()).or_default() += 1;
        let elapsed = started.elapsed();
        let mut fate = Fate::default();
        for active in rules.values_mut().filter(|active| active.rule.matches(service, operation, elapsed)) {
            let fault = active.rule.fault;
            let settled = fate.fault.is_some() && fault.kind() != FaultKind::Latency;
            if settled || !active.strikes() {
                continue;
            }
            if let Fault::Latency { min, max } = fault {
                fate.delay += min + max.saturating_sub(min).mul_f64(active.random.f64());
            } else {
                fate.fault = Some(fault);
            }
            *struck.entry((key.clone(), fault.kind())).or_default() += 1;
        }
        fate
    }

    /// Counts a request that was applied and not refused.
    pub(super) fn count_accepted(&self, service: Service, operation: &str) {
        *self.lock().accepted.entry((service, operation.to_owned())).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn update(faults: &Faults) -> Option<Fault> {
        faults.decide(Service::DynamoDb, "UpdateItem").fault
    }

    #[tokio::test(start_paused = true)]
    async fn a_rule_strikes_only_what_it_names() {
        let faults = Faults::new(1);
        faults.add(Rule::new(Fault::Throttle).service(Service::DynamoDb).operation("UpdateItem"));
        assert_eq!(update(&faults), Some(Fault::Throttle));
        assert_eq!(faults.decide(Service::DynamoDb, "GetItem").fault, None);
        assert_eq!(faults.decide(Service::Kinesis, "UpdateItem").fault, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rule_is_in_force_in_its_window() {
        let faults = Faults::new(1);
        faults.add(Rule::new(Fault::Drop).from(SECOND).until(2 * SECOND));
        assert_eq!(update(&faults), None);
        tokio::time::advance(SECOND).await;
        assert_eq!(update(&faults), Some(Fault::Drop));
        tokio::time::advance(SECOND).await;
        assert_eq!(update(&faults), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rule_strikes_as_often_as_it_may_until_it_is_removed() {
        let faults = Faults::new(1);
        let twice = faults.add(Rule::new(Fault::ServerError).times(2));
        assert_eq!([update(&faults), update(&faults), update(&faults)], [Some(Fault::ServerError), Some(Fault::ServerError), None]);
        let always = faults.add(Rule::new(Fault::LoseAnswer));
        assert_eq!(update(&faults), Some(Fault::LoseAnswer));
        assert!(faults.remove(always) && !faults.remove(always));
        assert_eq!(update(&faults), None);
        let operation = (Service::DynamoDb, "UpdateItem".to_owned());
        assert_eq!(
            faults.counts(),
            BTreeMap::from([((operation.clone(), FaultKind::ServerError), 2), ((operation.clone(), FaultKind::LoseAnswer), 1),])
        );
        assert_eq!(faults.requests(), BTreeMap::from([(operation, 5)]));
        faults.reset_counts();
        assert_eq!(faults.requests_of(Service::DynamoDb, "UpdateItem"), 0);
        // Spent it stays, whatever the counts say.
        assert_eq!(update(&faults), None);
        assert!(faults.remove(twice));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_add_up_and_the_first_other_fault_is_taken() {
        let faults = Faults::new(1);
        faults.add(Rule::new(Fault::Latency { min: SECOND, max: SECOND }));
        faults.add(Rule::new(Fault::Throttle));
        faults.add(Rule::new(Fault::Drop));
        faults.add(Rule::new(Fault::Latency { min: SECOND, max: 2 * SECOND }));
        let fate = faults.decide(Service::Sqs, "SendMessage");
        assert_eq!(fate.fault, Some(Fault::Throttle));
        assert!(fate.delay >= 2 * SECOND && fate.delay <= 3 * SECOND, "{:?}", fate.delay);
        assert!(!faults.counts().keys().any(|(_, kind)| *kind == FaultKind::Drop));
    }

    #[tokio::test(start_paused = true)]
    async fn faults_of_streams_strike_subscriptions_alone() {
        let faults = Faults::new(1);
        let cut = Fault::CutStream { after: SECOND };
        faults.add(Rule::new(cut).times(1));
        assert_eq!(update(&faults), None);
        assert_eq!(faults.decide(Service::Kinesis, "SubscribeToShard").fault, Some(cut));
        let subscribe = (Service::Kinesis, "SubscribeToShard".to_owned());
        assert_eq!(faults.counts(), BTreeMap::from([((subscribe, FaultKind::CutStream), 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn faults_of_entries_strike_batches_alone() {
        let faults = Faults::new(1);
        let fault = Fault::FailEntries { entries: &[0], code: "InternalError" };
        faults.add(Rule::new(fault));
        assert_eq!(faults.decide(Service::Sqs, "SendMessage").fault, None);
        assert_eq!(faults.decide(Service::Sqs, "SendMessageBatch").fault, Some(fault));
        assert_eq!(faults.decide(Service::Kinesis, "PutRecords").fault, Some(fault));
    }

    #[tokio::test(start_paused = true)]
    async fn the_seed_decides_which_requests_are_struck() {
        let struck = |seed| {
            let faults = Faults::new(seed);
            faults.add(Rule::new(Fault::Throttle).probability(0.3));
            (0..1000).map(|_| update(&faults).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(struck(7), struck(7));
        assert_ne!(struck(7), struck(8));
        let share = struck(7).into_iter().filter(|struck| *struck).count();
        assert!((250..350).contains(&share), "{share} of 1000");
    }
}
