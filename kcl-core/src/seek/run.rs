//! A seek from the checks to the last write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use kcl_lease::dynamodb::TableOptions;
use kcl_lease::seek::{Move, plan};
use kcl_lease::{
    Clock as _, DynamoDbLeaseTable, Lease, LeaseListing, LeaseTable, LeaseWrite, NewStart, ShardId, TableError, WorkerId, WriteId,
    WriteOutcome,
};

use super::{Seek, SeekError, SeekMove, SeekReport, SeekTo, record};
use crate::error::ConfigError;
use crate::stream::{KinesisStream, ServiceClock, ShardFilter, StreamApi, StreamDescription, StreamError};
use crate::worker::{patiently, settings};

/// How often leases and shards are compared: more than one time only if owners wrote in between.
const ROUNDS: u32 = 10;
/// How often the write of a lease is tried anew that its owner has written meanwhile.
const RACES: u32 = 10;
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
        let described = patiently(|| clock.describe(stream.as_ref()).boxed(), StreamError::is_retryable).await?;
        let (roots, whole) = self.roots(stream.as_ref(), table.as_ref(), &clock, &described).await?;
        let mut run =
            Run { seek: &self, stream, table, described, roots, whole, holder: None, settled: BTreeSet::new(), moved: Vec::new() };
        let (moves, held) = run.planned().await?;
        if self.dry_run {
            return Ok(SeekReport { moves: moves.iter().map(told).collect(), held });
        }
        match run.carry_out(moves, held).await {
            Ok(()) => Ok(SeekReport { held: run.holder.is_some(), moves: run.moved }),
            Err(error) => {
                let left = run.planned().await.map_or(1, |(moves, _)| moves.len().saturating_sub(run.settled.len()));
                Err(SeekError::Partly { done: run.moved, left, source: error.into() })
            }
        }
    }

    fn ports(&self) -> Result<Ports, ConfigError> {
        if let (Some(stream), Some(table)) = (&self.stream_api, &self.lease_table) {
            return Ok((Arc::clone(stream), Arc::clone(table)));
        }
        let aws = self.aws.as_ref().ok_or_else(|| {
            ConfigError::new("aws_config", "not set", "is needed: give it what aws_config::load_from_env().await returns")
        })?;
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
            let shards = patiently(|| stream.list_shards(filter), StreamError::is_retryable).await?;
            let start = match self.to {
                SeekTo::Time(time) => NewStart::at_timestamp(time),
                // After the listing: what closes in between is read from this instant to its end, and its children from their beginning.
                SeekTo::Latest => NewStart::latest(clock.wall_time()),
                _ => NewStart::TRIM_HORIZON,
            };
            return Ok((shards.into_iter().map(|shard| (shard.shard_id, start)).collect(), true));
        };
        let listed = patiently(|| stream.list_shards(ShardFilter::All), StreamError::is_retryable).await?;
        let is_known = listed.iter().any(|listed| listed.shard_id == *shard)
            || patiently(|| table.get(shard), TableError::is_retryable).await?.is_some();
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
struct Run<'a> {
    seek: &'a Seek,
    stream: Arc<dyn StreamApi>,
    table: Arc<dyn LeaseTable>,
    described: StreamDescription,
    roots: BTreeMap<ShardId, NewStart>,
    whole: bool,
    /// Who holds moved leases until they expire. `None`: nobody had them, and nobody needs to be waited for.
    holder: Option<WorkerId>,
    /// Shards whose leases are as they shall be.
    settled: BTreeSet<ShardId>,
    moved: Vec<SeekMove>,
}

/// What became of one lease.
enum Outcome {
    /// It is where it shall be.
    Moved(SeekMove),
    /// It is not as it was: the plan has to be made anew.
    Changed,
    /// A worker has taken it: leases are to be held from now on, those moved before too.
    Taken,
}

impl Run<'_> {
    /// What is to be done, and whether anybody has one of the leases.
    async fn planned(&self) -> Result<(Vec<Move>, bool), SeekError> {
        let shards = patiently(|| self.stream.list_shards(ShardFilter::All), StreamError::is_retryable).await?;
        // After the shards, so that no lease that is finished and cleaned up meanwhile looks as if it never had been.
        let listing = patiently(|| self.table.list(), TableError::is_retryable).await?;
        let leases = self.checked(listing)?;
        let moves = plan(&shards, &leases, &self.roots, self.whole);
        let held = moves.iter().any(|moved| moved.lease.actual_owner().is_some());
        Ok((moves, held))
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

    async fn carry_out(&mut self, mut moves: Vec<Move>, mut held: bool) -> Result<(), SeekError> {
        for _ in 0..ROUNDS {
            if held && self.holder.is_none() {
                self.hold();
            }
            let mut finished = true;
            for moved in moves.iter().filter(|moved| !self.settled.contains(&moved.lease.shard_id)).collect::<Vec<_>>() {
                match self.apply(moved).await? {
                    Outcome::Moved(done) => {
                        self.settled.insert(done.shard_id.clone());
                        // What was moved free to take, and again when a worker was seen, is told as it was before both.
                        if self.moved.iter().all(|moved| moved.shard_id != done.shard_id) {
                            self.moved.push(done);
                        }
                    }
                    Outcome::Changed => finished = false,
                    Outcome::Taken => {
                        self.hold();
                        finished = false;
                        break;
                    }
                }
            }
            if finished {
                return Ok(());
            }
            (moves, held) = self.planned().await?;
        }
        let message = format!("its leases were still being changed after {ROUNDS} comparisons");
        Err(TableError::Unavailable { table: self.seek.application.clone(), operation: "dynamodb:UpdateItem", message }.into())
    }

    /// From now on leases are held, so that workers wait before they take them. Those that were moved free to take are moved again.
    fn hold(&mut self) {
        self.holder = Some(WorkerId::from(format!("seek-{}", self.seek.entropy.uuid())));
        self.settled.clear();
    }

    async fn apply(&self, moved: &Move) -> Result<Outcome, SeekError> {
        // A finished lease needs no holder: nobody takes it.
        let holder = self.holder.as_ref().filter(|_| !moved.start.checkpoint.is_shard_end());
        if moved.is_new {
            let lease = Lease { owner: holder.cloned(), ..moved.lease.clone() };
            let created = patiently(|| self.table.create(&lease), TableError::is_retryable).await?;
            return Ok(if created { self.note(moved) } else { Outcome::Changed });
        }
        let mut seen = moved.lease.clone();
        for _ in 0..RACES {
            let children = moved.children.clone();
            let write = LeaseWrite::seek(&seen, holder, moved.start, children, WriteId(self.seek.entropy.u64()));
            match patiently(|| self.table.write(&write), TableError::is_retryable).await? {
                WriteOutcome::Applied(_) => return Ok(self.note(&Move { lease: seen, ..moved.clone() })),
                WriteOutcome::Refused(None) => return Ok(Outcome::Changed),
                WriteOutcome::Refused(Some(row)) if self.holder.is_none() && row.actual_owner().is_some() => return Ok(Outcome::Taken),
                // Its owner has renewed it, say.
                WriteOutcome::Refused(Some(row)) => seen = *row,
            }
        }
        Ok(Outcome::Changed)
    }

    fn note(&self, moved: &Move) -> Outcome {
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
        Outcome::Moved(told)
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
