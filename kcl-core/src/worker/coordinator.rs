//! Looking after leases: reads the table, judges who is alive, and takes or asks for what this worker should own.
//!
//! One round at a time. A round reads all leases, lets [`assignment::plan`] decide, and carries the plan out. Rounds come at a steady
//! pace, at once when something may have changed, and exactly when an owner that seems dead would be.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kcl_checkpoint::Timestamp;
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::assignment::{self, Plan, View};
use kcl_lease::backoff::Backoff;
use kcl_lease::liveness::Liveness;
use kcl_lease::seek::SEEKER;
use kcl_lease::term::{Term, TermContext};
use kcl_lease::{Lease, LeaseListing, LeaseWrite, ShardId, TableError, UnreadableLease, WriteId, WriteOutcome, shard_sync};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::lease_keepers::{LeaseKeepers, Taken};
use super::taking::Asked;
use super::unowned::{Line, UnownedLeases};
use crate::consumer::Reading;
use crate::error::WorkerError;
use crate::health::{Call, HealthBoard};
use crate::retrieval::{Retrieval, Share};

/// Takes and requests that are under way at once.
const CONCURRENT_WRITES: usize = 16;

/// The longest wait for the next round after another worker took what this one went for.
const AFTER_LOST_RACE: Duration = Duration::from_millis(300);

/// For how long a table that had leases must have none until they count as vanished.
const EMPTY: Duration = Duration::from_secs(3);

/// How often a lease that was asked for is looked at until it is handed over.
const HANDOFF_POLL: Duration = Duration::from_millis(250);

/// The shards that this worker holds a term for, or is acquiring one for. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<Mutex<BTreeSet<ShardId>>>);

impl Held {
    fn insert(&self, shard: &ShardId) {
        self.lock().insert(shard.clone());
    }

    pub(super) fn remove(&self, shard: &ShardId) {
        self.lock().remove(shard);
    }

    fn snapshot(&self) -> BTreeSet<ShardId> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<ShardId>> {
        // Each change is one insertion or removal: a panic elsewhere can't have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes leases for a worker for as long as it runs.
#[derive(Debug)]
pub(super) struct Coordinator {
    pub(super) terms: TermContext,
    pub(super) application: String,
    pub(super) stream: String,
    pub(super) max_leases: usize,
    pub(super) held: Held,
    /// Wakes the coordinator before its next round is due.
    pub(super) look_again: Arc<Notify>,
    pub(super) started: mpsc::Sender<Term>,
    pub(super) liveness: Liveness,
    /// To be told how many workers there are.
    pub(super) retrieval: Arc<dyn Retrieval>,
    /// Whether this worker can read the stream.
    pub(super) reading: Arc<Reading>,
    /// Where reading is to end.
    pub(super) bound: Option<Timestamp>,
    /// Whether another worker was faster in this round: then the sum has changed, and is done again soon.
    pub(super) outrun: AtomicBool,
    /// The items that could not be read when the table was last looked at, each told once.
    pub(super) unreadable: Vec<UnreadableLease>,
    /// Whether leases of another stream of the same name may be replaced, at the next start.
    pub(super) adopt: bool,
    /// The other lease duration that was told of last.
    pub(super) other_duration: Option<Duration>,
    /// Whether it has looked at the leases before.
    pub(super) has_looked: bool,
    /// Whether the table had leases while this worker ran.
    pub(super) begun: Arc<AtomicBool>,
    /// Since when it has none any more (boot time).
    pub(super) empty_since: Option<Duration>,
    pub(super) asked: Asked,
    pub(super) health: HealthBoard,
    pub(super) unowned: UnownedLeases,
}

/// The coordinator in the log of outages: its calls that concern no single shard.
pub(crate) const CALLER: &str = "the worker's look at all leases";

/// What a round leaves to wait for.
#[derive(Default)]
struct Pending {
    /// All shards are read up to where reading is to end.
    all_read: bool,
    /// Leases that were asked for and are not handed over yet.
    handoffs: Vec<ShardId>,
}

impl Coordinator {
    /// Runs rounds until it is told to stop; a round that has begun is finished, unless the table is away.
    ///
    /// # Errors
    /// When the lease table is gone, or holds leases of another stream. Also returns, without an error, when all is read up to a bound.
    pub(super) async fn run(mut self, keepers: LeaseKeepers, stop: CancellationToken) -> Result<(), WorkerError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), self.terms.timing.lease_duration / 2, &self.terms.entropy);
        let grace = self.terms.timing.call_timeout() * 2;
        while !stop.is_cancelled() {
            let stopping = stop.clone();
            let grace = async move {
                stopping.cancelled().await;
                tokio::time::sleep(grace).await;
            };
            let round = async {
                match self.terms.table.list().await {
                    Ok(listing) => {
                        let now = self.terms.clock.boot_time();
                        self.terms.outages.succeeded(TableError::SERVICE, CALLER, now);
                        self.health.succeeded(Call::TableRead);
                        self.round(&keepers, listing).await.map(Some)
                    }
                    Err(error @ TableError::NotFound { .. }) => Err(error.into()),
                    Err(error) => {
                        let now = self.terms.clock.boot_time();
                        self.terms.outages.failed(error.cause(), CALLER, now, &error);
                        self.health.failed(Call::TableRead, &error);
                        Ok(None)
                    }
                }
            };
            let Some(pending) = with_grace(round, grace).await else { return Ok(()) };
            match pending? {
                Some(pending) if pending.all_read => {
                    tracing::info!("all shards are read up to where reading is to end");
                    return Ok(());
                }
                Some(pending) => {
                    backoff.reset();
                    self.wait(&pending, &stop).await;
                }
                None => stop.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await.unwrap_or(()),
            }
        }
        Ok(())
    }

    async fn round(&mut self, keepers: &LeaseKeepers, mut listing: LeaseListing) -> Result<Pending, WorkerError> {
        let now = self.terms.clock.boot_time();
        self.is_still_begun(&listing, now)?;
        hold_back_children(&mut listing);
        self.report_unreadable(listing.unreadable);
        let stranger = |lease: &Lease| lease.stream_created.is_some() && lease.stream_created != self.terms.stream_created;
        if !is_planted(Bug::IdentityNotChecked) && listing.leases.iter().any(stranger) {
            return Err(WorkerError::other_stream(&self.application, &self.stream, self.adopt));
        }
        if self.bound.is_some_and(|bound| shard_sync::is_read_until(&listing.leases, bound)) && self.unreadable.is_empty() {
            return Ok(Pending { all_read: true, ..Pending::default() });
        }
        self.liveness.observe(&listing.leases, now);
        self.report_other_duration(&listing.leases);
        let held = self.held.snapshot();
        // A worker that rests leaves the others a lease duration more.
        let resting = self.reading.rests(now);
        let patient = if resting { now.saturating_sub(self.terms.timing.lease_duration) } else { now };
        let plan = assignment::plan(
            &View {
                me: &self.terms.worker,
                leases: &listing.leases,
                held: &held,
                expired: &|lease| self.liveness.is_expired(lease, now),
                overdue: &|lease| self.liveness.is_overdue(lease, patient),
                unneeded: &|lease| self.bound.is_some_and(|bound| lease.watermark.is_some_and(|watermark| watermark >= bound)),
                max_leases: self.max_leases,
                resting,
            },
            &self.terms.entropy,
        );
        let time = Duration::from_millis(self.terms.clock.wall_time().as_millis());
        if std::mem::replace(&mut self.has_looked, true) {
            self.retrieval.share(Share { workers: plan.workers, place: plan.place, time });
        } else if self.retrieval.needs_share() {
            // Workers that start together see each other only when they have taken leases: look again soon.
            self.outrun.store(true, Ordering::Relaxed);
        }
        self.reading.share(plan.workers);
        self.report_unowned(plan.left, now);
        let unfinished = listing.leases.iter().filter(|lease| !lease.is_finished()).count();
        self.health.seen(plan.workers, unfinished, plan.left);
        self.asked.observe(&listing.leases, &self.terms.worker);
        plan.request.iter().for_each(|lease| self.asked.ask(lease));
        let known = listing.leases.iter().map(|lease| &lease.shard_id).collect();
        self.carry_out(keepers, &plan, &known).await?;
        let to_me = |lease: &&Lease| lease.next_owner() == Some(&self.terms.worker);
        let already = listing.leases.iter().filter(to_me).map(|lease| lease.shard_id.clone());
        Ok(Pending { all_read: false, handoffs: already.chain(plan.request.into_iter().map(|lease| lease.shard_id)).collect() })
    }

    /// `Err`: there were leases, and for a while there have been none.
    fn is_still_begun(&mut self, listing: &LeaseListing, now: Duration) -> Result<(), WorkerError> {
        if !listing.leases.is_empty() || !listing.unreadable.is_empty() {
            self.begun.store(true, Ordering::Relaxed);
            self.empty_since = None;
        } else if self.begun.load(Ordering::Relaxed) {
            let since = *self.empty_since.get_or_insert(now);
            if now.saturating_sub(since) >= EMPTY {
                return Err(WorkerError::LeasesVanished { application: self.application.clone(), shard: None });
            }
        }
        Ok(())
    }

    async fn carry_out(&self, keepers: &LeaseKeepers, plan: &Plan, known: &BTreeSet<&ShardId>) -> Result<(), WorkerError> {
        if !plan.take.is_empty() || !plan.request.is_empty() {
            tracing::debug!(take = plan.take.len(), request = plan.request.len(), left = plan.left, "leases to take and to ask for");
        }
        let takes: Vec<_> = plan.take.iter().map(|lease| self.take(keepers, lease, known)).collect();
        let outcomes: Vec<_> = futures::stream::iter(takes).buffer_unordered(CONCURRENT_WRITES).collect().await;
        outcomes.into_iter().collect::<Result<(), TableError>>()?;
        let requests: Vec<_> = plan.request.iter().map(|lease| self.request(lease)).collect();
        futures::stream::iter(requests).buffer_unordered(CONCURRENT_WRITES).collect::<()>().await;
        let releases: Vec<_> = plan.release.iter().map(|lease| self.release(lease)).collect();
        futures::stream::iter(releases).buffer_unordered(CONCURRENT_WRITES).collect::<()>().await;
        Ok(())
    }

    /// Returns whether a lease that nobody has begun has a parent that is not finished, although the listing, whose leases are `known`, does not show it. A scan is no
    /// picture of one moment: of two leases that are created while it goes on, the parent's first, it may show the child's alone.
    async fn waits_for_unseen_parent(&self, lease: &Lease, known: &BTreeSet<&ShardId>) -> bool {
        if lease.counter > 0 || !lease.checkpoint.is_initial() {
            return false;
        }
        for parent in lease.parents.iter().filter(|parent| !known.contains(parent)) {
            match self.terms.table.get(parent).await {
                Ok(row) if row.as_ref().is_none_or(Lease::is_finished) => {}
                Ok(_) => return true,
                Err(error) => {
                    self.write_failed(lease, &error);
                    return true;
                }
            }
        }
        false
    }

    async fn take(&self, keepers: &LeaseKeepers, lease: &Lease, known: &BTreeSet<&ShardId>) -> Result<(), TableError> {
        if self.waits_for_unseen_parent(lease, known).await {
            return Ok(());
        }
        // Noted before the write: whatever is known of this shard from now on is newer than any listing.
        self.held.insert(&lease.shard_id);
        match keepers.take(lease).await {
            Taken::Yes(term) => {
                let (previous_owner, reason) = self.asked.explain(lease, &self.terms.worker);
                tracing::info!(
                    shard = %lease.shard_id,
                    previous_owner = previous_owner.map(tracing::field::display),
                    reason = reason.as_str(),
                    "lease taken"
                );
                if self.started.send(term).await.is_err() {
                    self.held.remove(&lease.shard_id);
                }
                return Ok(());
            }
            Taken::No => {
                tracing::debug!(shard = %lease.shard_id, "another worker was faster");
                self.outrun.store(true, Ordering::Relaxed);
            }
            Taken::Failed(error @ TableError::NotFound { .. }) => return Err(error),
            // The shard's failure, as the next round tries again: its keeper's first answer ends it.
            Taken::Failed(error) => {
                let now = self.terms.clock.boot_time();
                self.terms.outages.failed(error.cause(), lease.shard_id.as_str(), now, &error);
            }
            Taken::Stopped => {}
        }
        self.held.remove(&lease.shard_id);
        Ok(())
    }

    async fn request(&self, lease: &Lease) {
        let Some(write) = LeaseWrite::request_handoff(lease, &self.terms.worker) else { return };
        match self.terms.table.write(&write).await {
            Ok(WriteOutcome::Applied(_)) => {
                tracing::info!(shard = %lease.shard_id, owner = lease.owner.as_ref().map(tracing::field::display), "asked for the shard");
            }
            Ok(WriteOutcome::Refused(_)) => tracing::debug!(shard = %lease.shard_id, "the lease has changed; not asked for"),
            // The next round sees whether it took effect.
            Err(error) => self.write_failed(lease, &error),
        }
    }

    /// Hands over a lease that is this worker's in name only: a take whose answer was lost, and asked for by another worker since.
    async fn release(&self, lease: &Lease) {
        let write = LeaseWrite::release(lease, None, BTreeSet::new(), WriteId(self.terms.entropy.u64()));
        match self.terms.table.write(&write).await {
            Ok(WriteOutcome::Applied(_)) => tracing::info!(shard = %lease.shard_id, "handed over without having been begun"),
            Ok(WriteOutcome::Refused(_)) => {}
            // The next round sees whether it took effect.
            Err(error) => self.write_failed(lease, &error),
        }
    }

    /// Notes a write that failed and that the next round decides on anew. It is the coordinator's
    /// failure, since a shard that this worker does not own may never be written by it again.
    fn write_failed(&self, lease: &Lease, error: &TableError) {
        tracing::debug!(shard = %lease.shard_id, %error, "a lease was not written");
        self.terms.outages.failed(error.cause(), CALLER, self.terms.clock.boot_time(), error);
    }

    /// Tells if another worker has another lease duration, once for each.
    fn report_other_duration(&mut self, leases: &[Lease]) {
        let mine = self.terms.timing.lease_duration;
        let notes = leases.iter().filter_map(|lease| lease.trust.as_ref().filter(|trust| lease.actual_owner() == Some(&trust.owner)));
        // Of a seek's holder it says how long takers wait.
        let other = notes.filter(|trust| trust.owner != self.terms.worker && !trust.owner.as_str().starts_with(SEEKER)).find(|trust| {
            // Noted in whole milliseconds.
            trust.lease_duration.abs_diff(mine) > Duration::from_millis(1)
        });
        if let Some(trust) = other
            && self.other_duration != Some(trust.lease_duration)
        {
            tracing::warn!(
                worker = %trust.owner,
                theirs = ?trust.lease_duration,
                ?mine,
                "another worker has another lease duration; its leases are taken only after the longer of both, so a dead one is found later"
            );
        }
        self.other_duration = other.map(|trust| trust.lease_duration);
    }

    /// Reports leases that have been free for long: no worker takes them.
    fn report_unowned(&mut self, left: usize, now: Duration) {
        match self.unowned.left(left, now) {
            Some(Line::Unowned(leases, since)) => {
                let max_leases = Some(self.max_leases).filter(|most| *most < usize::MAX);
                tracing::warn!(
                    leases,
                    ?since,
                    max_leases,
                    "shards are not read: no worker takes their leases; start more workers, or raise their max_leases"
                );
            }
            Some(Line::Ended(duration)) => {
                tracing::info!(?duration, "all leases that can be owned have owners");
            }
            None => {}
        }
    }

    /// Waits for the next round; meanwhile takes what is handed over as soon as it is.
    async fn wait(&self, pending: &Pending, stop: &CancellationToken) {
        let interval = self.terms.timing.lease_duration / 6;
        let jittered = self.terms.entropy.between(interval.mul_f64(0.9), interval.mul_f64(1.1));
        let now = self.terms.clock.boot_time();
        let expiry = self.liveness.next_expiry(now).map(|expiry| expiry.saturating_sub(now));
        let mut pause = expiry.map_or(jittered, |expiry| expiry.min(jittered));
        if self.outrun.swap(false, Ordering::Relaxed) {
            pause = pause.min(self.terms.entropy.between(AFTER_LOST_RACE / 2, AFTER_LOST_RACE));
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.look_again.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = self.handed_over(&pending.handoffs) => {}
        }
    }

    /// Completes when one of the leases that were asked for is this worker's. Only looks, so that a full round decides.
    async fn handed_over(&self, handoffs: &[ShardId]) {
        loop {
            tokio::time::sleep(HANDOFF_POLL).await;
            for shard in handoffs {
                let row = self.terms.table.get(shard).await;
                if let Ok(Some(row)) = row
                    && row.owner.as_ref() == Some(&self.terms.worker)
                    && row.checkpoint_owner.is_none()
                    && !self.held.lock().contains(shard)
                {
                    return;
                }
            }
        }
    }

    /// Tells of items that claim to be leases and can't be read. They are set aside; the others go on.
    fn report_unreadable(&mut self, unreadable: Vec<UnreadableLease>) {
        for item in unreadable.iter().filter(|item| !self.unreadable.contains(item)) {
            tracing::error!(
                lease = item.key,
                reason = item.reason,
                "a lease can't be read and is set aside: its shard is not consumed until the item is mended"
            );
        }
        self.unreadable = unreadable;
    }
}

/// Takes free leases that have not begun out of the listing, if a parent's can't be read: nobody knows whether the parent is finished.
/// One with an owner was begun by somebody who knew.
fn hold_back_children(listing: &mut LeaseListing) {
    let LeaseListing { leases, unreadable } = listing;
    let waits = |lease: &Lease| unreadable.iter().any(|item| lease.parents.iter().any(|parent| parent.as_str() == item.key));
    leases.retain(|lease| lease.actual_owner().is_some() || !lease.checkpoint.is_initial() || !waits(lease));
}

/// The outcome of `work`, or `None` if the grace is over first.
async fn with_grace<T>(work: impl Future<Output = T>, grace: impl Future<Output = ()>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = grace => None,
    }
}
