//! Looking after shards: which leases the stream's shards need, and which finished ones may go.
//!
//! Done by one worker at a time, as far as anybody can tell: the owner of the first unfinished lease; while nobody owns any, by all.
//! Two that both believe it are only wasteful: leases are created if they do not exist, and deleted if they are as seen.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_checkpoint::{Checkpoint, InitialPosition, Timestamp};
use kcl_lease::backoff::Backoff;
use kcl_lease::{Clock, Lease, LeaseListing, OutageLog, ShardId, TableError, WorkerId, cleanup, shard_sync};
use tokio::sync::Notify;

use crate::consumer::Shared;
use crate::error::WorkerError;
use crate::health::Call;
use crate::stream::{Shard, ShardFilter, StreamError};

/// While a listing of shards asks for leases that are not confirmed by another one, and after a first sync that somebody else was
/// faster with: time to the next look.
const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// The comparison in the log of outages.
pub(crate) const CALLER: &str = "the comparison of shards and leases";

/// The longest wait after a comparison that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Attempts at one call to the lease table within a comparison: one hiccup must not throw away what was done before it.
const ATTEMPTS: u32 = 5;

/// How long a finished lease is kept that may go. A creation that takes effect late, after the shard was read to its end, must find the lease there; else it
/// would make it anew, and the shard would be read twice. So this is longer than it takes from a listing that lacks a lease to the end of the last call
/// that creates it: [`FRESH`], and the time for which a call may be under way.
const KEPT: Duration = Duration::from_secs(30);

/// How old a listing may be when a lease is created that it lacks. A worker that stood still since lists again.
const FRESH: Duration = Duration::from_secs(10);

/// Keeps leases in step with shards for as long as a worker runs.
#[derive(Debug)]
pub(super) struct ShardSync {
    pub(super) shared: Arc<Shared>,
    /// Wakes the coordinator when there are new leases.
    pub(super) look_again: Arc<Notify>,
    pub(super) interval: Duration,
    /// The account of failed calls, shared with the keepers and the coordinator.
    pub(super) outages: OutageLog,
    /// Whether another stream of the same name may be adopted, at the next start.
    pub(super) adopt: bool,
    /// Whether the table had leases while this worker ran.
    pub(super) begun: Arc<AtomicBool>,
    /// Leases that the last listing asked for. Kinesis' listings can lag: only what two in a row ask for is created. Whoever suspects that some
    /// are missing follows it up, whoever leads by then: the leader may have died or changed in between.
    pub(super) suspected: BTreeSet<ShardId>,
    /// Finished leases that may go, and since when.
    pub(super) going: BTreeMap<ShardId, Going>,
    /// Who creates the first leases, if some are missing.
    pub(super) beginning: Beginning,
}

/// Who creates the leases with which the application begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Beginning {
    /// None are missing, as far as this worker knows.
    #[default]
    Through,
    /// This worker: it has created the first one.
    Here,
    /// Another one, since this time (boot time).
    Elsewhere(Duration),
}

impl Beginning {
    /// Returns whether this worker may create first leases now. It leaves another worker's first sync alone until its last call is over: that one has chosen its shards
    /// by its own listing, and leaves out what they came of.
    fn may_go_on(&mut self, now: Duration) -> bool {
        if *self == Self::Through {
            *self = Self::Elsewhere(now);
        }
        match self {
            Self::Elsewhere(since) => now.saturating_sub(*since) >= KEPT || is_planted(Bug::FirstSyncsMix),
            Self::Here | Self::Through => true,
        }
    }
}

/// A finished lease that may go.
#[derive(Debug)]
pub(super) struct Going {
    /// Its counter: the lease of a shard that was begun anew since is another one.
    counter: u64,
    /// Since when (boot time).
    since: Duration,
}

impl ShardSync {
    /// Why leases have vanished, as far as it can be told: with another stream of the same name somebody has adopted it.
    pub(super) async fn why_vanished(shared: &Shared, shard: Option<ShardId>, adopt: bool) -> WorkerError {
        match shared.clock.describe(shared.stream_api.as_ref()).await {
            Ok(stream) if stream.created != shared.stream.created => WorkerError::other_stream(&shared.application, &stream.arn, adopt),
            _ => WorkerError::LeasesVanished { application: shared.application.clone(), shard },
        }
    }

    /// Syncs at a steady pace, and never returns but with an error that ends the worker.
    pub(super) async fn run(mut self) -> WorkerError {
        match self.sync_for_ever().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn sync_for_ever(&mut self) -> Result<Infallible, WorkerError> {
        let mut backoff = Backoff::new(Duration::from_millis(500), self.interval.min(LONGEST_WAIT), &self.shared.entropy);
        loop {
            let wait = match self.sync().await {
                Ok(wait) => {
                    backoff.reset();
                    self.shared.health.succeeded(Call::ShardSync);
                    let now = self.shared.clock.boot_time();
                    self.outages.succeeded(StreamError::SERVICE, CALLER, now);
                    self.outages.succeeded(TableError::SERVICE, CALLER, now);
                    wait
                }
                Err(error @ (WorkerError::StreamRecreated { .. } | WorkerError::StreamReplaced { .. })) => {
                    return Err(error);
                }
                Err(error) => {
                    self.shared.health.failed(Call::ShardSync, &error);
                    self.failed(&error);
                    backoff.next_wait()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Notes a comparison that failed and is made again.
    fn failed(&self, error: &WorkerError) {
        let cause = match error {
            WorkerError::Stream(error) => error.cause(),
            WorkerError::Table(error) => error.cause(),
            error => {
                tracing::warn!(%error, "shards and leases could not be compared; trying again");
                return;
            }
        };
        self.outages.failed(cause, CALLER, self.shared.clock.boot_time(), error);
    }

    /// One comparison; returns the time until the next.
    async fn sync(&mut self) -> Result<Duration, WorkerError> {
        // Every worker must know that the stream is still the same, and how long it keeps records.
        let stream = match self.shared.clock.describe(self.shared.stream_api.as_ref()).await {
            Ok(stream) => stream,
            Err(error) => {
                self.shared.reading.unreached(self.shared.clock.boot_time());
                return Err(error.into());
            }
        };
        if stream.created != self.shared.stream.created && !is_planted(Bug::IdentityNotChecked) {
            return Err(WorkerError::other_stream(&self.shared.application, &stream.arn, self.adopt));
        }
        self.shared.reading.reached(self.shared.clock.boot_time());
        self.shared.retention_hours.store(stream.retention_hours, Ordering::Relaxed);
        if self.suspected.is_empty() && !leads(&self.list().await?.leases, &self.shared.worker) {
            return Ok(self.interval);
        }
        let shards = self.shared.stream_api.list_shards(ShardFilter::All).await?;
        let listed_at = self.shared.clock.boot_time();
        // After the shards, so that no lease that is finished and cleaned up meanwhile looks as if it never had been.
        let listing = self.list().await?;
        if !listing.leases.is_empty() || !listing.unreadable.is_empty() {
            self.begun.store(true, Ordering::Relaxed);
        } else if self.begun.load(Ordering::Relaxed) {
            // Nothing begins anew in silence: the coordinator sees that too, and ends the worker.
            tracing::error!("the lease table had leases, and has none any more");
            return Ok(CONFIRM_AFTER.min(self.interval));
        } else {
            return self.first_sync(&shards, listed_at).await;
        }
        // A lease that can't be read stands for one that has not begun: its shard's descendants get no leases, and those before it are kept.
        let mut leases = listing.leases;
        leases.extend(listing.unreadable.into_iter().map(|item| Lease::new(item.key.into(), Checkpoint::TrimHorizon)));
        let missing = shard_sync::missing_leases(&shards, &leases, self.shared.initial, self.latest());
        let (confirmed, mut suspected) = shard_sync::confirmed(missing, &self.suspected);
        let (first, mut confirmed): (Vec<_>, Vec<_>) = confirmed.into_iter().partition(begins);
        if first.is_empty() && !suspected.iter().any(begins) {
            self.beginning = Beginning::Through;
        } else if self.beginning.may_go_on(self.shared.clock.boot_time()) {
            confirmed = first.into_iter().chain(confirmed).collect();
        } else {
            suspected.extend(first);
        }
        for (index, lease) in confirmed.iter().enumerate() {
            if self.create(lease, listed_at).await?.is_none() {
                // What is suspected stays so: the next listing confirms it.
                return Ok(self.not_all_created(index));
            }
        }
        self.suspected = suspected.into_iter().map(|lease| lease.shard_id).collect();
        if !confirmed.is_empty() {
            self.look_again.notify_one();
        }
        let listed: BTreeSet<_> = shards.iter().map(|shard| &shard.shard_id).collect();
        let may_go = cleanup::deletable(&leases, &|shard| listed.contains(shard));
        for lease in kept_long_enough(&mut self.going, may_go, self.shared.clock.boot_time()) {
            let deleted = self.shared.table.delete(&lease).await?;
            self.going.remove(&lease.shard_id);
            tracing::info!(shard = %lease.shard_id, deleted, "finished lease cleaned up");
        }
        Ok(if self.suspected.is_empty() { self.interval } else { CONFIRM_AFTER.min(self.interval) })
    }

    /// Makes the leases of an application that has none. `all`: the stream's shards, as they were listed at `listed_at`.
    async fn first_sync(&mut self, all: &[Shard], listed_at: Duration) -> Result<Duration, WorkerError> {
        let listing = match self.shared.initial {
            InitialPosition::Latest => all.iter().filter(|shard| shard.is_open()).cloned().collect(),
            InitialPosition::TrimHorizon => self.shared.stream_api.list_shards(ShardFilter::AtTrimHorizon).await?,
            InitialPosition::AtTimestamp(time) => self.shared.stream_api.list_shards(ShardFilter::AtTimestamp(time)).await?,
        };
        // What LATEST means is fixed after the listing: a shard that closes in between is read from this instant to its end, and its children
        // from their beginning.
        let (resolved, created) = (self.latest(), Some(self.shared.stream.created));
        let leases = match shard_sync::initial_leases(&listing, all, self.shared.initial, resolved, created) {
            Ok(leases) => leases,
            Err(hole) => {
                tracing::warn!(%hole, "the listing of shards is not complete; trying again");
                return Ok(Duration::from_secs(1));
            }
        };
        // The first lease decides. Whoever finds it made by another first sync leaves the others alone: what that one has listed must not be mixed with this.
        // Should the other worker die half-way, the next comparison goes on with the instant that its leases carry.
        // Should the table fail half-way, the next comparison needs no other one to confirm it, and no lead: these leases are wanted. It sees
        // whether others have made them meanwhile, and have perhaps finished them.
        self.suspected = leases.iter().map(|lease| lease.shard_id.clone()).collect();
        for (index, lease) in leases.iter().enumerate() {
            let is_ours = match self.create(lease, listed_at).await? {
                Some(true) => true,
                Some(false) => !self.is_elsewhere(lease).await?,
                None => return Ok(self.not_all_created(index)),
            };
            // If the oldest shard was trimmed between two listings, each of two workers has another first lease. Then both create theirs before they look, and
            // one at least sees the other's.
            if !is_ours || (index == 0 && !self.decides_alone(lease).await?) {
                tracing::info!(shard = %lease.shard_id, "another worker creates the first leases; its choice of shards holds");
                self.beginning = Beginning::Elsewhere(self.shared.clock.boot_time());
                return Ok(CONFIRM_AFTER.min(self.interval));
            }
            self.beginning = Beginning::Here;
        }
        self.suspected.clear();
        self.beginning = Beginning::Through;
        self.look_again.notify_one();
        Ok(self.interval)
    }

    /// The listing became too old when so many leases were created: the time until the next one.
    fn not_all_created(&self, created: usize) -> Duration {
        if created == 0 {
            tracing::warn!("it took too long to read the leases: none is created by what was read; trying again");
            return CONFIRM_AFTER.min(self.interval);
        }
        self.look_again.notify_one();
        Duration::ZERO
    }

    /// Whether the lease that exists in the place of this one was made by another first sync.
    async fn is_elsewhere(&self, lease: &Lease) -> Result<bool, TableError> {
        if is_planted(Bug::FirstSyncsMix) {
            return Ok(false);
        }
        let mut backoff = self.backoff();
        loop {
            match self.shared.table.get(&lease.shard_id).await {
                Ok(row) => return Ok(row.is_some_and(|row| shard_sync::starts_elsewhere(&row, lease))),
                Err(error) => drop(pause_or_give_up(error, &mut backoff).await?),
            }
        }
    }

    /// Whether all leases start where this one, which has decided it, does.
    async fn decides_alone(&self, lease: &Lease) -> Result<bool, TableError> {
        if lease.initial_timestamp.is_none() || is_planted(Bug::FirstSyncsMix) {
            return Ok(true);
        }
        Ok(self.list().await?.leases.iter().all(|row| row.initial_timestamp == lease.initial_timestamp))
    }

    /// What LATEST means if no lease says yet.
    fn latest(&self) -> Option<Timestamp> {
        Some(self.shared.clock.wall_time())
    }

    /// Creates a lease that a listing lacks; returns whether it was new. `None`: the listing is too old by now to tell.
    async fn create(&self, lease: &Lease, listed_at: Duration) -> Result<Option<bool>, TableError> {
        let mut backoff = self.backoff();
        let mut failed = None;
        loop {
            if self.shared.clock.boot_time().saturating_sub(listed_at) > FRESH {
                return failed.map_or(Ok(None), Err);
            }
            match self.shared.table.create(lease).await {
                Ok(created) => {
                    if created {
                        tracing::info!(shard = %lease.shard_id, checkpoint = %lease.checkpoint, "lease created");
                    }
                    return Ok(Some(created));
                }
                Err(error) => failed = Some(pause_or_give_up(error, &mut backoff).await?),
            }
        }
    }

    async fn list(&self) -> Result<LeaseListing, TableError> {
        let mut backoff = self.backoff();
        loop {
            match self.shared.table.list().await {
                Ok(listing) => return Ok(listing),
                Err(error) => drop(pause_or_give_up(error, &mut backoff).await?),
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(2), &self.shared.entropy)
    }
}

/// Returns the error after a pause, if the call may be tried again.
async fn pause_or_give_up(error: TableError, backoff: &mut Backoff) -> Result<TableError, TableError> {
    let wait = backoff.next_wait();
    if !error.is_retryable() || backoff.failures() >= ATTEMPTS {
        return Err(error);
    }
    tracing::debug!(%error, ?wait, "trying again");
    tokio::time::sleep(wait).await;
    Ok(error)
}

/// Whether a lease is one of those with which an application begins elsewhere than at the oldest record.
fn begins(lease: &Lease) -> bool {
    matches!(lease.checkpoint, Checkpoint::Latest | Checkpoint::AtTimestamp)
}

/// Of leases that may go, those that may have gone for a while. `going`: since when each may.
fn kept_long_enough(going: &mut BTreeMap<ShardId, Going>, may_go: Vec<Lease>, now: Duration) -> Vec<Lease> {
    going.retain(|shard, going| may_go.iter().any(|lease| lease.shard_id == *shard && lease.counter == going.counter));
    let mut since = |lease: &Lease| going.entry(lease.shard_id.clone()).or_insert(Going { counter: lease.counter, since: now }).since;
    let kept: Vec<_> = may_go.into_iter().map(|lease| (since(&lease), lease)).collect();
    kept.into_iter()
        .filter(|(since, _)| now.saturating_sub(*since) >= KEPT || is_planted(Bug::FinishedGoesAtOnce))
        .map(|(_, lease)| lease)
        .collect()
}

/// Whether this worker looks after the shards now.
fn leads(leases: &[Lease], me: &WorkerId) -> bool {
    let first = leases.iter().filter(|lease| !lease.is_finished()).find_map(Lease::actual_owner);
    first.is_none_or(|owner| owner == me)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_goes_when_it_may_have_gone_for_a_while() {
        let mut going = BTreeMap::new();
        let mut gone_at = |counter: u64, shards: &[&str], seconds: u64| {
            let may_go = shards.iter().map(|shard| Lease { counter, ..Lease::new((*shard).into(), Checkpoint::ShardEnd) }).collect();
            let gone = kept_long_enough(&mut going, may_go, Duration::from_secs(seconds));
            gone.iter().map(|lease| lease.shard_id.to_string()).collect::<Vec<_>>()
        };
        let mut gone = |shards: &[&str], seconds: u64| gone_at(7, shards, seconds);
        assert_eq!(gone(&["a"], 100), [""; 0]);
        assert_eq!(gone(&["a", "b"], 129), [""; 0]);
        assert_eq!(gone(&["a", "b"], 130), ["a"]);
        // one that may not go for a moment begins anew
        assert_eq!(gone(&["a"], 140), ["a"]);
        assert_eq!(gone(&["b"], 170), [""; 0]);
        assert_eq!(gone(&["b"], 200), ["b"]);
        // the shard was begun anew since, by a seek, and has ended again
        assert_eq!(gone_at(19, &["b"], 210), [""; 0]);
        assert_eq!(gone_at(19, &["b"], 240), ["b"]);
    }

    #[test]
    fn the_owner_of_the_first_unfinished_lease_leads_and_all_do_while_nobody_owns_any() {
        let lease = |shard: &str, owner: Option<&str>, checkpoint| {
            let mut lease = Lease::new(shard.into(), checkpoint);
            lease.owner = owner.map(Into::into);
            lease
        };
        let me: WorkerId = "me".into();
        assert!(leads(&[], &me));
        assert!(leads(&[lease("a", None, Checkpoint::TrimHorizon)], &me));
        assert!(leads(&[lease("a", None, Checkpoint::TrimHorizon), lease("b", Some("me"), Checkpoint::TrimHorizon)], &me));
        assert!(!leads(&[lease("a", Some("you"), Checkpoint::TrimHorizon), lease("b", Some("me"), Checkpoint::TrimHorizon)], &me));
        assert!(leads(&[lease("a", Some("you"), Checkpoint::ShardEnd), lease("b", Some("me"), Checkpoint::TrimHorizon)], &me));
    }
}
