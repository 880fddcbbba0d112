//! Faults as plain data: which there are, how often, and what becomes of one call.

use std::collections::BTreeMap;
use std::time::Duration;

use kcl_lease::Entropy;

/// Creates a lease.
const CREATE: &str = "dynamodb:PutItem";
/// Lists shards.
const LIST: &str = "kinesis:ListShards";

/// What a call goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Kinesis.
    Stream,
    /// The lease table.
    LeaseTable,
    /// The dead-letter queue.
    DeadLetters,
    /// The blob store.
    Blobs,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stream, Self::LeaseTable, Self::DeadLetters, Self::Blobs];

    /// Its name, as in traces.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "kinesis",
            Self::LeaseTable => "dynamodb",
            Self::DeadLetters => "sqs",
            Self::Blobs => "s3",
        }
    }
}

/// The kinds of faults of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// Slower than usual, perhaps slower than the caller waits.
    Slow,
    /// Refused with an error that the service documents.
    Error,
    /// Refused as over a limit.
    Throttled,
    /// Lost before it was applied.
    Dropped,
    /// Applied, and the answer lost.
    LostAnswer,
    /// Given up by the caller and applied later, up to 25 s.
    AppliedLate,
    /// Applied twice, the second time up to 10 s later.
    AppliedTwice,
    /// Answered with what was true before: a listing that lags, a scan that is torn.
    Stale,
    /// A subscription that breaks, falls silent, or ends early.
    BrokenStream,
    /// The service is away for all.
    Outage,
    /// One machine can't reach the service, or isn't reached by its answers.
    Partition,
    /// One entry of a batch is refused, while others of it are accepted.
    EntryRefused,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Slow,
        Self::Error,
        Self::Throttled,
        Self::Dropped,
        Self::LostAnswer,
        Self::AppliedLate,
        Self::AppliedTwice,
        Self::Stale,
        Self::BrokenStream,
        Self::Outage,
        Self::Partition,
        Self::EntryRefused,
    ];

    /// Its name, as in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Error => "error",
            Self::Throttled => "throttled",
            Self::Dropped => "dropped",
            Self::LostAnswer => "lost answer",
            Self::AppliedLate => "applied late",
            Self::AppliedTwice => "applied twice",
            Self::Stale => "stale",
            Self::BrokenStream => "broken stream",
            Self::Outage => "outage",
            Self::Partition => "partition",
            Self::EntryRefused => "entry refused",
        }
    }
}

/// How often each kind of fault happens to a call: a probability from 0 to 1 each. Their sum should stay well below 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultRates {
    /// See [`FaultKind::Slow`].
    pub slow: f64,
    /// See [`FaultKind::Error`].
    pub error: f64,
    /// See [`FaultKind::Throttled`].
    pub throttled: f64,
    /// See [`FaultKind::Dropped`].
    pub dropped: f64,
    /// See [`FaultKind::LostAnswer`].
    pub lost_answer: f64,
    /// See [`FaultKind::AppliedLate`]. A call that only reads is lost instead.
    pub applied_late: f64,
    /// See [`FaultKind::AppliedTwice`]. A call that only reads is answered once.
    pub applied_twice: f64,
    /// See [`FaultKind::Stale`]. For what is not read consistently; other calls are answered as usual.
    pub stale: f64,
    /// See [`FaultKind::BrokenStream`]. Of each event of a subscription.
    pub broken_stream: f64,
    /// See [`FaultKind::EntryRefused`]. Of each letter of a call to the dead-letter queue.
    pub refused_entry: f64,
}

impl FaultRates {
    /// The rate of one kind; `None` for kinds that are not drawn by the call.
    pub fn of(&mut self, kind: FaultKind) -> Option<&mut f64> {
        Some(match kind {
            FaultKind::Slow => &mut self.slow,
            FaultKind::Error => &mut self.error,
            FaultKind::Throttled => &mut self.throttled,
            FaultKind::Dropped => &mut self.dropped,
            FaultKind::LostAnswer => &mut self.lost_answer,
            FaultKind::AppliedLate => &mut self.applied_late,
            FaultKind::AppliedTwice => &mut self.applied_twice,
            FaultKind::Stale => &mut self.stale,
            FaultKind::BrokenStream => &mut self.broken_stream,
            FaultKind::EntryRefused => &mut self.refused_entry,
            FaultKind::Outage | FaultKind::Partition => return None,
        })
    }
}

/// What a partition cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What the machine sends is lost.
    Requests,
    /// What the machine sends is applied, and the answers are lost.
    Answers,
}

/// The faults in force. Times are since the start of the services, see [`SimulatedAws::elapsed`](super::SimulatedAws::elapsed).
#[derive(Debug, Default)]
pub struct Faults {
    rates: BTreeMap<Service, FaultRates>,
    outages: BTreeMap<Service, Duration>,
    partitions: BTreeMap<(String, Service), (Cut, Duration)>,
    /// Machines that no answer of a service reaches, not even those under way.
    silenced: BTreeMap<(String, Service), Duration>,
    latency: Option<(Duration, Duration)>,
    /// Machines whose calls take longer: how long, and until when.
    slow: BTreeMap<String, (Duration, Duration, Duration)>,
    /// Listings of shards show what was true so long ago, until this time.
    listings_lag: Option<(Duration, Duration)>,
    /// Leases that are created until this time appear seconds later.
    late_creations: Option<Duration>,
    /// Calls of an operation that the service takes in a second, from all machines together.
    limits: BTreeMap<&'static str, Limit>,
    pub(super) counts: BTreeMap<FaultKind, u64>,
}

/// How many calls of an operation the service takes.
#[derive(Clone, Copy, Debug)]
struct Limit {
    per_second: u32,
    /// The second that is counted, and the calls in it.
    second: u64,
    calls: u32,
}

impl Limit {
    /// Counts a call, and returns whether it is one too many.
    fn is_exceeded(&mut self, now: Duration) -> bool {
        if self.second != now.as_secs() {
            (self.second, self.calls) = (now.as_secs(), 0);
        }
        self.calls += 1;
        self.calls > self.per_second
    }
}

/// A call, as far as its fate depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) service: Service,
    pub(super) operation: &'static str,
    pub(super) machine: &'a str,
    /// Changes something.
    pub(super) writes: bool,
    /// May be answered with what was true before.
    pub(super) may_be_stale: bool,
    /// Errors that the service documents for it.
    pub(super) errors: &'static [&'static str],
    /// How long the caller waits.
    pub(super) timeout: Duration,
}

/// What becomes of a call. Durations are from its sending, but for `back` and `again`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate {
    /// Applied after `there`, answered `back` after that; `stale`: with what was true so long before.
    Answered { there: Duration, back: Duration, again: Option<Duration>, stale: Option<Duration> },
    /// Not applied, and answered with this error of the service. `None`: throttled.
    Refused { back: Duration, error: Option<&'static str> },
    /// The caller hears nothing but that the connection broke, `given_up` after it sent; applied after `there`, if at all.
    Lost { there: Option<Duration>, given_up: Duration },
}

impl Faults {
    /// The rates for calls to all services from now on.
    pub fn set_rates(&mut self, rates: FaultRates) {
        for service in Service::ALL {
            self.rates.insert(service, rates);
        }
    }

    /// The rates for calls to one service from now on.
    pub fn set_rates_of(&mut self, service: Service, rates: FaultRates) {
        self.rates.insert(service, rates);
    }

    /// How long an ordinary call takes there, and the same again back. Default: 1 to 5 ms.
    pub fn set_latency(&mut self, low: Duration, high: Duration) {
        self.latency = Some((low, high));
    }

    /// The service answers nobody until this time.
    pub fn outage(&mut self, service: Service, until: Duration) {
        self.outages.insert(service, until);
    }

    /// A machine and a service are cut from each other, one way, until this time.
    pub fn partition(&mut self, machine: &str, service: Service, cut: Cut, until: Duration) {
        self.partitions.insert((machine.to_owned(), service), (cut, until));
    }

    /// From now on no answer of the service reaches the machine, until this time. Unlike with a
    /// [partition](Self::partition), answers that are under way are lost as well.
    pub fn silence(&mut self, machine: &str, service: Service, until: Duration) {
        self.silenced.insert((machine.to_owned(), service), until);
    }

    /// Whether answers of the service to the machine are lost.
    pub(super) fn is_silenced(&self, machine: &str, service: Service, now: Duration) -> bool {
        !self.silenced.is_empty() && self.silenced.get(&(machine.to_owned(), service)).is_some_and(|until| now < *until)
    }

    /// How long calls of one machine take there, and the same again back, until a time.
    pub fn slow_machine(&mut self, machine: &str, low: Duration, high: Duration, until: Duration) {
        self.slow.insert(machine.to_owned(), (low, high, until));
    }

    /// Listings of all shards show what was true so long ago, until a time. At most a minute is remembered.
    pub fn lag_listings(&mut self, by: Duration, until: Duration) {
        self.listings_lag = Some((by.min(Duration::from_secs(60)), until));
    }

    /// Leases that are created until this time appear up to 20 s later, and their creators hear nothing of it.
    pub fn create_late(&mut self, until: Duration) {
        self.late_creations = Some(until);
    }

    /// The service takes so many calls of an operation a second, from all machines together, and throttles the others.
    pub fn limit(&mut self, operation: &'static str, per_second: u32) {
        self.limits.insert(operation, Limit { per_second, second: 0, calls: 0 });
    }

    /// Ends all faults.
    pub fn clear(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        *self = Self { counts, latency: self.latency, ..Self::default() };
    }

    /// How often each kind has happened.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<FaultKind, u64> {
        self.counts.clone()
    }

    pub(super) fn count(&mut self, kind: FaultKind) {
        *self.counts.entry(kind).or_default() += 1;
    }

    /// What becomes of a call that is sent now.
    pub(super) fn fate(&mut self, call: Call<'_>, now: Duration, entropy: &Entropy) -> (Fate, Option<FaultKind>) {
        let (fate, kind) = self.decide(call, now, entropy);
        if let Some(kind) = kind {
            self.count(kind);
        }
        (fate, kind)
    }

    fn decide(&mut self, call: Call<'_>, now: Duration, entropy: &Entropy) -> (Fate, Option<FaultKind>) {
        let millis = Duration::from_millis;
        let (low, high) = self.latency.unwrap_or((millis(1), millis(5)));
        let (low, high) =
            self.slow.get(call.machine).filter(|(.., until)| now < *until).map_or((low, high), |(low, high, _)| (*low, *high));
        let (there, back) = (entropy.between(low, high), entropy.between(low, high));
        // A broken connection is noticed at once, or never: then the caller's patience ends it.
        let given_up = |entropy: &Entropy| {
            if entropy.fraction() < 0.5 { entropy.between(millis(1), millis(200)).min(call.timeout) } else { call.timeout }
        };
        if self.outages.get(&call.service).is_some_and(|until| now < *until) {
            return (Fate::Lost { there: None, given_up: given_up(entropy) }, Some(FaultKind::Outage));
        }
        if let Some((cut, _)) = self.partitions.get(&(call.machine.to_owned(), call.service)).filter(|(_, until)| now < *until) {
            let there = (*cut == Cut::Answers).then_some(there);
            return (Fate::Lost { there, given_up: given_up(entropy) }, Some(FaultKind::Partition));
        }
        if self.is_silenced(call.machine, call.service, now) {
            return (Fate::Lost { there: Some(there), given_up: given_up(entropy) }, Some(FaultKind::Partition));
        }
        if self.limits.get_mut(call.operation).is_some_and(|limit| limit.is_exceeded(now)) {
            return (Fate::Refused { back: there + back, error: None }, Some(FaultKind::Throttled));
        }
        if call.operation == CREATE && self.late_creations.is_some_and(|until| now < until) {
            let there = Some(entropy.between(millis(500), millis(20_000)));
            return (Fate::Lost { there, given_up: given_up(entropy) }, Some(FaultKind::AppliedLate));
        }
        if call.operation == LIST
            && call.may_be_stale
            && let Some((by, _)) = self.listings_lag.filter(|(_, until)| now < *until)
        {
            return (Fate::Answered { there, back, again: None, stale: Some(by) }, Some(FaultKind::Stale));
        }
        let answered = |there, back| Fate::Answered { there, back, again: None, stale: None };
        let usual = (answered(there, back), None);
        let Some(rates) = self.rates.get(&call.service) else { return usual };
        let mut drawn = entropy.fraction();
        let mut falls = |rate: f64| {
            let falls = (0.0..rate).contains(&drawn);
            drawn -= rate;
            falls
        };
        if falls(rates.slow) {
            let (there, back) = (entropy.between(millis(5), millis(4_000)), entropy.between(millis(5), millis(4_000)));
            let fate =
                if there + back < call.timeout { answered(there, back) } else { Fate::Lost { there: Some(there), given_up: call.timeout } };
            return (fate, Some(FaultKind::Slow));
        }
        if falls(rates.error) && !call.errors.is_empty() {
            let error = call.errors[index(entropy, call.errors.len())];
            return (Fate::Refused { back: there + back, error: Some(error) }, Some(FaultKind::Error));
        }
        if falls(rates.throttled) {
            return (Fate::Refused { back: there + back, error: None }, Some(FaultKind::Throttled));
        }
        if falls(rates.dropped) {
            return (Fate::Lost { there: None, given_up: given_up(entropy) }, Some(FaultKind::Dropped));
        }
        if falls(rates.lost_answer) {
            return (Fate::Lost { there: Some(there), given_up: given_up(entropy) }, Some(FaultKind::LostAnswer));
        }
        if falls(rates.applied_late) {
            let there = call.writes.then(|| entropy.between(millis(100), millis(25_000)));
            let kind = if call.writes { FaultKind::AppliedLate } else { FaultKind::Dropped };
            return (Fate::Lost { there, given_up: given_up(entropy) }, Some(kind));
        }
        if falls(rates.applied_twice) && call.writes {
            let again = Some(entropy.between(millis(1), millis(10_000)));
            return (Fate::Answered { there, back, again, stale: None }, Some(FaultKind::AppliedTwice));
        }
        if falls(rates.stale) && call.may_be_stale {
            let stale = Some(entropy.between(millis(100), millis(4_000)));
            return (Fate::Answered { there, back, again: None, stale }, Some(FaultKind::Stale));
        }
        usual
    }

    /// Whether one entry of a batch is refused.
    pub(super) fn refuses_entry(&mut self, service: Service, entropy: &Entropy) -> bool {
        let rate = self.rates.get(&service).map_or(0.0, |rates| rates.refused_entry);
        let refused = rate > 0.0 && entropy.fraction() < rate;
        if refused {
            self.count(FaultKind::EntryRefused);
        }
        refused
    }

    /// Whether an event of a subscription comes to nothing, and how.
    pub(super) fn breaks(&mut self, machine: &str, now: Duration, entropy: &Entropy) -> Option<Break> {
        let away = self.outages.get(&Service::Stream).is_some_and(|until| now < *until);
        let cut = self.partitions.get(&(machine.to_owned(), Service::Stream)).filter(|(_, until)| now < *until);
        let kind = match (away, cut) {
            (true, _) => FaultKind::Outage,
            (_, Some(_)) => FaultKind::Partition,
            _ if entropy.fraction() < self.rates.get(&Service::Stream).map_or(0.0, |rates| rates.broken_stream) => FaultKind::BrokenStream,
            _ => return None,
        };
        self.count(kind);
        Some(match index(entropy, 4) {
            0 => Break::Silent,
            1 => Break::Ended,
            2 => Break::Late(entropy.between(Duration::from_secs(30), Duration::from_secs(50))),
            _ => Break::Broken,
        })
    }
}

/// How a subscription comes to its end before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// The connection breaks.
    Broken,
    /// It ends as if in order.
    Ended,
    /// Nothing comes any more.
    Silent,
    /// The event comes so late that it may have been given up.
    Late(Duration),
}

fn index(entropy: &Entropy, length: usize) -> usize {
    usize::try_from(entropy.u64() % length.max(1) as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'static> = Call {
        service: Service::LeaseTable,
        operation: "dynamodb:UpdateItem",
        machine: "a",
        writes: true,
        may_be_stale: false,
        errors: &["AccessDenied"],
        timeout: Duration::from_secs(2),
    };

    fn fates(faults: &mut Faults, call: Call<'_>, now: u64) -> Vec<(Fate, Option<FaultKind>)> {
        let entropy = Entropy::from_seed(1);
        (0..2_000).map(|_| faults.fate(call, Duration::from_secs(now), &entropy)).collect()
    }

    #[test]
    fn without_faults_every_call_is_answered() {
        let answered = |fate: &Fate| matches!(fate, Fate::Answered { again: None, stale: None, .. });
        assert!(fates(&mut Faults::default(), CALL, 0).iter().all(|(fate, kind)| kind.is_none() && answered(fate)));
    }

    #[test]
    fn each_kind_happens_as_often_as_it_is_set_to() {
        for kind in FaultKind::ALL {
            let mut rates = FaultRates::default();
            let Some(rate) = rates.of(kind).filter(|_| !matches!(kind, FaultKind::BrokenStream | FaultKind::EntryRefused)) else {
                continue;
            };
            *rate = 0.25;
            let mut faults = Faults::default();
            faults.set_rates(rates);
            let call = Call { may_be_stale: kind == FaultKind::Stale, ..CALL };
            let hit = fates(&mut faults, call, 0).iter().filter(|(_, happened)| *happened == Some(kind)).count();
            assert!((400..600).contains(&hit), "{kind:?}: {hit} of 2000");
            assert_eq!(faults.counts()[&kind], hit as u64);
        }
    }

    #[test]
    fn a_call_that_only_reads_is_never_applied_late_or_twice() {
        let mut faults = Faults::default();
        faults.set_rates(FaultRates { applied_late: 0.3, applied_twice: 0.3, stale: 0.3, ..FaultRates::default() });
        for (fate, kind) in fates(&mut faults, Call { writes: false, ..CALL }, 0) {
            assert!(matches!(fate, Fate::Answered { again: None, stale: None, .. } | Fate::Lost { there: None, .. }), "{fate:?} {kind:?}");
        }
    }

    #[test]
    fn outages_and_partitions_last_their_time_and_concern_only_theirs() {
        let mut faults = Faults::default();
        faults.outage(Service::LeaseTable, Duration::from_secs(10));
        faults.partition("a", Service::Stream, Cut::Answers, Duration::from_secs(10));
        let lost = |faults: &mut Faults, call, now| fates(faults, call, now).iter().all(|(fate, _)| matches!(fate, Fate::Lost { .. }));
        let stream = Call { service: Service::Stream, ..CALL };
        assert!(lost(&mut faults, CALL, 9) && !lost(&mut faults, CALL, 10));
        assert!(lost(&mut faults, stream, 9) && !lost(&mut faults, stream, 10));
        assert!(!lost(&mut faults, Call { machine: "b", ..stream }, 9));
        assert!(
            fates(&mut faults, stream, 9).iter().all(|(fate, _)| matches!(fate, Fate::Lost { there: Some(_), .. })),
            "answers alone are cut"
        );
    }

    #[test]
    fn an_answer_that_comes_too_late_is_lost_and_the_write_stands() {
        let mut faults = Faults::default();
        faults.set_rates(FaultRates { slow: 1.0, ..FaultRates::default() });
        let fates = fates(&mut faults, CALL, 0);
        assert!(fates.iter().any(|(fate, _)| matches!(fate, Fate::Lost { there: Some(_), .. })));
        for (fate, _) in fates {
            if let Fate::Answered { there, back, .. } = fate {
                assert!(there + back < CALL.timeout);
            }
        }
    }

    #[test]
    fn a_machine_that_is_silenced_is_heard_and_hears_nothing() {
        let mut faults = Faults::default();
        faults.silence("a", Service::LeaseTable, Duration::from_secs(10));
        assert!(fates(&mut faults, CALL, 9).iter().all(|(fate, _)| matches!(fate, Fate::Lost { there: Some(_), .. })));
        assert!(fates(&mut faults, CALL, 10).iter().all(|(_, kind)| kind.is_none()));
        assert!(fates(&mut faults, Call { machine: "b", ..CALL }, 9).iter().all(|(_, kind)| kind.is_none()));
        assert!(fates(&mut faults, Call { service: Service::Stream, ..CALL }, 9).iter().all(|(_, kind)| kind.is_none()));
    }

    #[test]
    fn what_is_over_a_limit_of_all_machines_is_throttled() {
        let mut faults = Faults::default();
        faults.limit(CALL.operation, 5);
        let throttled = |call, faults: &mut Faults| fates(faults, call, 7).iter().filter(|(_, kind)| kind.is_some()).count();
        assert_eq!(throttled(CALL, &mut faults), 1_995);
        assert_eq!(throttled(Call { machine: "b", ..CALL }, &mut faults), 2_000);
        assert_eq!(throttled(Call { operation: LIST, ..CALL }, &mut faults), 0);
    }

    #[test]
    fn listings_lag_and_creations_are_late_for_their_time() {
        let mut faults = Faults::default();
        faults.lag_listings(Duration::from_secs(600), Duration::from_secs(10));
        faults.create_late(Duration::from_secs(10));
        let listing = Call { operation: LIST, service: Service::Stream, may_be_stale: true, writes: false, ..CALL };
        let stale = |fate: &Fate| matches!(fate, Fate::Answered { stale: Some(by), .. } if *by == Duration::from_secs(60));
        assert!(fates(&mut faults, listing, 9).iter().all(|(fate, _)| stale(fate)));
        let late = |fate: &Fate| matches!(fate, Fate::Lost { there: Some(there), .. } if *there >= Duration::from_millis(500));
        assert!(fates(&mut faults, Call { operation: CREATE, ..CALL }, 9).iter().all(|(fate, _)| late(fate)));
        for call in [listing, Call { operation: CREATE, ..CALL }] {
            assert!(fates(&mut faults, call, 10).iter().all(|(_, kind)| kind.is_none()));
        }
    }
}
