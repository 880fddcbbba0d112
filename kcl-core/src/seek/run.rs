//! A seek from the checks to the last write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use kcl_checkpoint::planted::{Bug, is_planted};
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::seek::{Move, SEEKER, plan};
use kcl_lease::shard_sync::tiles_key_space;
use kcl_lease::{
    Clock as _, DynamoDbLeaseTable, Lease, LeaseListing, LeaseTable, LeaseWrite, NewStart, ShardId, TableError, Trust, WorkerId, WriteId,
    WriteOutcome,
};
use tokio::time::Instant;

use super::{Seek, SeekError, SeekMove, SeekReport, SeekTo, record};
use crate::error::ConfigError;
use crate::stream::{KinesisStream, ServiceClock, ShardFilter, StreamApi, StreamDescription, StreamError};
use crate::worker::{retry_briefly, settings, usable};

/// How often leases and shards are compared: more than one time only if owners wrote in between.
const ROUNDS: u32 = 10;
/// How often the write of a lease is tried anew that its owner has written meanwhile.
const RACES: u32 = 10;
/// How long leases that another seek holds must stay as they are until that one counts as over. One that is under way writes each lease again every second or so.
const QUIET: Duration = Duration::from_secs(10);
/// How often they are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many writes are under way at once.
const CONCURRENT_WRITES: usize = 16;
/// How long moving may take until what was moved is held anew.
const HOLD_AGAIN: Duration = Duration::from_secs(1);
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

type Ports = (Arc<dyn StreamApi>, Arc<dyn LeaseTable>);

impl Seek {
    /// Does it.
    ///
    /// # Errors
    /// [`SeekError`] saying what is wrong. Only [`SeekError::Partly`] comes after something was changed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some leases moved and others not; the same seek again completes it.
    pub async fn run(self) -> Result<SeekReport, SeekError> {
        settings::table_name("application", &self.application)?;
        let (stream, table) = self.ports()?;
        let clock = ServiceClock::new(Arc::clone(&self.clock));
        let described = retry_briefly(|| clock.describe(stream.as_ref()).boxed(), StreamError::is_retryable).await?;
        let (roots, whole) = self.roots(stream.as_ref(), table.as_ref(), &clock, &described).await?;
        let holder = WorkerId::from(format!("{SEEKER}{}", self.entropy.uuid()));
        let (rows, moved, over, first_counter) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new(), clock.wall_time().as_millis());
        let mut run = Run { seek: &self, stream, table, described, roots, whole, holder, first_counter, over, rows, moved };
        let moves = run.planned().await?;
        if self.dry_run {
            return Ok(SeekReport { moves: moves.iter().map(told).collect() });
        }
        let moves = run.alone(moves).await?;
        let done = run.carry_out(moves).await;
        match done {
            Ok(()) => Ok(SeekReport { moves: run.told() }),
            Err(error @ SeekError::UnderWay { .. }) if run.moved.is_empty() => Err(error),
            Err(error) => {
                let left = run.planned().await.map_or(1, |moves| moves.len().saturating_sub(run.rows.len()));
                Err(SeekError::Partly { done: run.told(), left, source: error.into() })
            }
        }
    }

    fn ports(&self) -> Result<Ports, ConfigError> {
        if let (Some(stream), Some(table)) = (&self.stream_api, &self.lease_table) {
            return Ok((Arc::clone(stream), Arc::clone(table)));
        }
        let aws = usable(self.aws.as_ref())?;
        let stream = self
            .stream_api
            .clone()
            .unwrap_or_else(|| Arc::new(KinesisStream::new(aws_sdk_kinesis::Client::new(aws), &self.stream, CALL_TIMEOUT)));
        let table = self.lease_table.clone().unwrap_or_else(|| {
            let name = self.table_name.as_ref().unwrap_or(&self.application);
            Arc::new(DynamoDbLeaseTable::new(&aws_sdk_dynamodb::Client::new(aws), name, TableOptions::default(), &self.entropy))
        });
        Ok((stream, table))
    }

    /// The shards that get a new start, and whether they are those of the application as a whole.
    async fn roots(
        &self,
        stream: &dyn StreamApi,
        table: &dyn LeaseTable,
        clock: &ServiceClock,
        described: &StreamDescription,
    ) -> Result<(BTreeMap<ShardId, NewStart>, bool), SeekError> {
        let now = clock.wall_time();
        if let SeekTo::Time(time) = self.to {
            let kept = u64::from(described.retention_hours) * 3_600_000;
            if time > now {
                return Err(SeekError::InTheFuture { time, now });
            }
            if time.as_millis() < now.as_millis().saturating_sub(kept) {
                return Err(SeekError::NotKept { time, hours: described.retention_hours });
            }
        }
        let Some(shard) = &self.shard else {
            let filter = match self.to {
                SeekTo::TrimHorizon => ShardFilter::AtTrimHorizon,
                SeekTo::Latest => ShardFilter::AtLatest,
                SeekTo::Time(time) => ShardFilter::AtTimestamp(time),
                SeekTo::Record(_) | SeekTo::AfterRecord(_) => return Err(SeekError::ShardNeeded),
            };
            let shards = retry_briefly(|| stream.list_shards(filter), StreamError::is_retryable).await?;
            tiles_key_space(shards.iter().map(|shard| shard.hash_range))?;
            let start = match self.to {
                SeekTo::Time(_) if is_planted(Bug::SeekTargetIsNow) => NewStart::at_timestamp(now),
                SeekTo::Time(time) => NewStart::at_timestamp(time),
                // After the listing: what closes in between is read from this instant to its end, and its children from their beginning.
                SeekTo::Latest => NewStart::latest(clock.wall_time()),
                _ => NewStart::TRIM_HORIZON,
            };
            return Ok((shards.into_iter().map(|shard| (shard.shard_id, start)).collect(), true));
        };
        let listed = retry_briefly(|| stream.list_shards(ShardFilter::All), StreamError::is_retryable).await?;
        let is_known = listed.iter().any(|listed| listed.shard_id == *shard)
            || retry_briefly(|| table.get(shard), TableError::is_retryable).await?.is_some();
        if !is_known {
            return Err(SeekError::NoSuchShard { stream: described.arn.clone(), shard: shard.clone() });
        }
        let start = match self.to {
            SeekTo::TrimHorizon => NewStart::TRIM_HORIZON,
            SeekTo::Latest => NewStart::latest(now),
            SeekTo::Time(time) => NewStart::at_timestamp(time),
            SeekTo::Record(wanted) => NewStart { checkpoint: record::checkpoint_before(stream, shard, wanted).await?, instant: None },
            SeekTo::AfterRecord(last) => {
                record::find(stream, shard, last).await?;
                NewStart { checkpoint: last.into(), instant: None }
            }
        };
        Ok((BTreeMap::from([(shard.clone(), start)]), false))
    }
}

/// A seek under way.
///
/// The order of events: each lease is moved, children before their parents, so that whoever reads a child has been stopped, or reads it anew, before its
/// parent is anybody's to read. Then each is written once more. A lease expires a lease duration after it was written last, as takers see it; so none
/// does before all who lost one by a move have ceased to believe in theirs. Should one be taken before, since moving took too long, it is moved again,
/// and all are written once more.
struct Run<'a> {
    seek: &'a Seek,
    stream: Arc<dyn StreamApi>,
    table: Arc<dyn LeaseTable>,
    described: StreamDescription,
    roots: BTreeMap<ShardId, NewStart>,
    whole: bool,
    /// Who holds moved leases until they expire.
    holder: WorkerId,
    /// The counter of leases that are made anew. It is the fencing token too, which grows with every term of a shard: the milliseconds of this time are more than
    /// all writes that a lease had before it was cleaned up.
    first_counter: u64,
    /// The same of other seeks that are over, or have died.
    over: BTreeSet<WorkerId>,
    /// The leases that were moved, as they are.
    rows: BTreeMap<ShardId, Lease>,
    /// What is told of them, by generation.
    moved: BTreeMap<(usize, ShardId), SeekMove>,
}

impl Run<'_> {
    /// What is to be done, parents first.
    async fn planned(&self) -> Result<Vec<Move>, SeekError> {
        let shards = retry_briefly(|| self.stream.list_shards(ShardFilter::All), StreamError::is_retryable).await?;
        // After the shards, so that no lease that is finished and cleaned up meanwhile looks as if it never had been.
        let listing = retry_briefly(|| self.table.list(), TableError::is_retryable).await?;
        Ok(plan(&shards, &self.checked(listing)?, &self.roots, self.whole))
    }

    /// Waits until no other seek is under way that moves the same leases. A seek that is over leaves its leases as they are, until workers take them.
    async fn alone(&mut self, mut moves: Vec<Move>) -> Result<Vec<Move>, SeekError> {
        let (began, mut before) = (Instant::now(), self.held_by_others(&moves));
        if let Some((holder, _)) = before.values().next() {
            tracing::info!(%holder, "leases are held by another seek; waiting up to {QUIET:?} to see whether it is over");
        }
        while !before.is_empty() && began.elapsed() < QUIET {
            tokio::time::sleep(LOOK).await;
            moves = self.planned().await?;
            let held = self.held_by_others(&moves);
            if let Some((_, (holder, _))) = held.iter().find(|(shard, row)| before.get(*shard) != Some(row)) {
                return Err(self.under_way(holder));
            }
            before = held;
        }
        self.over.extend(before.into_values().map(|(holder, _)| holder));
        Ok(moves)
    }

    /// The leases that another seek holds: its holder, and the row's counter.
    fn held_by_others(&self, moves: &[Move]) -> BTreeMap<ShardId, (WorkerId, u64)> {
        let held = |moved: &Move| Some((moved.lease.shard_id.clone(), (self.other_seek(&moved.lease)?.clone(), moved.lease.counter)));
        moves.iter().filter_map(held).collect()
    }

    /// The holder of a lease that another seek holds, which may be under way.
    fn other_seek<'a>(&self, lease: &'a Lease) -> Option<&'a WorkerId> {
        lease.actual_owner().filter(|owner| owner.as_str().starts_with(SEEKER) && **owner != self.holder && !self.over.contains(*owner))
    }

    fn under_way(&self, holder: &WorkerId) -> SeekError {
        SeekError::UnderWay { application: self.seek.application.clone(), holder: holder.clone() }
    }

    fn checked(&self, listing: LeaseListing) -> Result<Vec<Lease>, SeekError> {
        if let Some(item) = listing.unreadable.into_iter().next() {
            return Err(SeekError::Unreadable { lease: item.key, reason: item.reason });
        }
        let application = self.seek.application.clone();
        if listing.leases.is_empty() {
            return Err(SeekError::NotBegun { application });
        }
        let strange = |lease: &Lease| lease.stream_created.is_some_and(|created| created != self.described.created);
        if listing.leases.iter().any(strange) {
            return Err(SeekError::OtherStream { application, stream: self.described.arn.clone() });
        }
        Ok(listing.leases)
    }

    async fn carry_out(&mut self, mut moves: Vec<Move>) -> Result<(), SeekError> {
        for _ in 0..ROUNDS {
            let mut as_planned = true;
            // Children before their parents.
            let mut held = Instant::now();
            for generation in moves.chunk_by(|one, other| one.generation == other.generation).rev() {
                as_planned &= self.apply(generation).await?;
                if held.elapsed() > HOLD_AGAIN && !is_planted(Bug::SoughtIsFree) {
                    // It takes long: what was moved first is not to expire before what is moved last.
                    held = Instant::now();
                    as_planned &= self.hold().await?;
                }
            }
            moves = self.planned().await?;
            // A shard that ended before it was moved may have children by now, of which the first plan knew nothing. From here on none of those that
            // were moved can end.
            let all = moves.iter().all(|moved| self.rows.contains_key(&moved.lease.shard_id));
            if as_planned && all && (is_planted(Bug::SoughtIsFree) || self.hold().await?) {
                return Ok(());
            }
        }
        let message = format!("its leases were still being changed after {ROUNDS} comparisons");
        Err(TableError::Unavailable { table: self.seek.application.clone(), operation: "dynamodb:UpdateItem", message }.into())
    }

    /// Moves leases. Returns whether all were there, or not there, as planned.
    async fn apply(&mut self, generation: &[Move]) -> Result<bool, SeekError> {
        let to_do: Vec<_> = generation.iter().filter(|moved| !self.rows.contains_key(&moved.lease.shard_id)).collect();
        // The very first alone: of two seeks that begin at once, one finds it moved, and has moved nothing.
        let (first, rest) = to_do.split_at(usize::from(self.rows.is_empty()).min(to_do.len()));
        let mut moved = Vec::new();
        for some in [first, rest] {
            let moving: Vec<_> = some.iter().map(|moved| self.moved(moved)).collect();
            moved.extend(stream::iter(moving).buffer_unordered(CONCURRENT_WRITES).collect::<Vec<_>>().await);
            if moved.iter().any(Result::is_err) {
                break;
            }
        }
        let mut as_planned = true;
        let mut failed = None;
        for outcome in moved {
            match outcome {
                Ok(Some((moved, row))) => self.note(&moved, row),
                Ok(None) => as_planned = false,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(as_planned), Err)
    }

    /// Moves a lease. Returns what it was and is; `None`: it was not as planned.
    async fn moved(&self, moved: &Move) -> Result<Option<(Move, Lease)>, SeekError> {
        // A finished lease needs no holder: nobody takes it.
        let holder = Some(self.holder.clone()).filter(|_| !moved.start.checkpoint.is_shard_end() && !is_planted(Bug::SoughtIsFree));
        if moved.is_new {
            let trust = holder.clone().map(|owner| Trust::new(owner, Duration::ZERO));
            let lease = Lease { owner: holder, trust, counter: self.first_counter, ..moved.lease.clone() };
            let created = retry_briefly(|| self.table.create(&lease), TableError::is_retryable).await?;
            return Ok(created.then(|| (moved.clone(), lease)));
        }
        let mut seen = moved.lease.clone();
        for _ in 0..RACES {
            if let Some(holder) = self.other_seek(&seen) {
                return Err(self.under_way(holder));
            }
            let write = LeaseWrite::seek(&seen, holder.as_ref(), moved.start, moved.children.clone(), self.write_id());
            match retry_briefly(|| self.table.write(&write), TableError::is_retryable).await? {
                WriteOutcome::Applied(row) => return Ok(Some((Move { lease: seen, ..moved.clone() }, *row))),
                WriteOutcome::Refused(None) => break,
                // It has ended since: its children may be read by now, and are to be moved before it.
                WriteOutcome::Refused(Some(row)) if row.is_finished() && !seen.is_finished() => break,
                // Its owner has renewed it, say.
                WriteOutcome::Refused(Some(row)) => seen = *row,
            }
        }
        Ok(None)
    }

    /// Writes each lease once more. Returns whether all are still held; one that is not is to be moved again.
    async fn hold(&mut self) -> Result<bool, SeekError> {
        let rows: Vec<_> = self.rows.values().filter(|row| !row.is_finished()).cloned().collect();
        let touching: Vec<_> = rows.into_iter().map(|row| self.touched(row)).collect();
        let touched: Vec<_> = stream::iter(touching).buffer_unordered(CONCURRENT_WRITES).collect().await;
        let mut all = true;
        for touched in touched {
            match touched? {
                (shard, Some(row)) => self.rows.insert(shard, row),
                (shard, None) => {
                    all = false;
                    self.rows.remove(&shard)
                }
            };
        }
        Ok(all)
    }

    /// The lease, written once more; `None`: it is not held any more.
    async fn touched(&self, mut row: Lease) -> Result<(ShardId, Option<Lease>), SeekError> {
        let shard = row.shard_id.clone();
        while row.actual_owner() == Some(&self.holder) {
            let write = LeaseWrite::renew(&row, self.write_id());
            match retry_briefly(|| self.table.write(&write), TableError::is_retryable).await? {
                WriteOutcome::Applied(row) => return Ok((shard, Some(*row))),
                // A worker has asked for it, and gets it when it expires.
                WriteOutcome::Refused(Some(changed)) => row = *changed,
                WriteOutcome::Refused(None) => break,
            }
        }
        Ok((shard, None))
    }

    /// The lease was moved; this is its row now.
    fn note(&mut self, moved: &Move, row: Lease) {
        let told = told(moved);
        tracing::warn!(
            target: "kcl::audit",
            application = self.seek.application,
            stream = %self.described.arn,
            shard = %told.shard_id,
            before = told.before.map(tracing::field::display),
            after = %told.after,
            instant = told.instant.map(|instant| instant.as_millis()),
            owner = told.owner.as_ref().map(tracing::field::display),
            reason = self.seek.reason,
            "the shard begins elsewhere, as it was asked for"
        );
        self.rows.insert(told.shard_id.clone(), row);
        // What was moved twice is told as it was before both.
        self.moved.entry((moved.generation, told.shard_id.clone())).or_insert(told);
    }

    /// What was moved, parents first.
    fn told(&self) -> Vec<SeekMove> {
        self.moved.values().cloned().collect()
    }

    fn write_id(&self) -> WriteId {
        WriteId(self.seek.entropy.u64())
    }
}

fn told(moved: &Move) -> SeekMove {
    SeekMove {
        shard_id: moved.lease.shard_id.clone(),
        before: (!moved.is_new).then_some(moved.lease.checkpoint),
        after: moved.start.checkpoint,
        instant: moved.start.instant,
        owner: moved.lease.actual_owner().cloned(),
    }
}
