//! Stops over a table in memory that can be away, and whose leases can change hands between two calls.

use std::sync::Mutex;

use async_trait::async_trait;
use kcl_checkpoint::Timestamp;
use kcl_lease::{InMemoryLeaseTable, LeaseListing, StopReason, TransactItems, TransactOutcome, WriteId};

use super::*;

#[derive(Debug, Default)]
struct Table {
    rows: InMemoryLeaseTable,
    /// Calls that get no answer; a write among them takes effect.
    unanswered: Mutex<u32>,
    /// Writes before which another worker takes the lease.
    taken_before: Mutex<u32>,
    writes: Mutex<Vec<LeaseWrite>>,
}

impl Table {
    fn is_unanswered(&self) -> bool {
        let mut unanswered = self.unanswered.lock().unwrap();
        let left = *unanswered;
        *unanswered = left.saturating_sub(1);
        left > 0
    }

    fn unavailable() -> TableError {
        TableError::Unavailable { table: "orders-app".into(), operation: "UpdateItem", message: "a test".into() }
    }
}

#[async_trait]
impl LeaseTable for Table {
    async fn ensure(&self) -> Result<(), TableError> {
        Ok(())
    }

    async fn list(&self) -> Result<LeaseListing, TableError> {
        if self.is_unanswered() { Err(Self::unavailable()) } else { self.rows.list().await }
    }

    async fn get(&self, shard_id: &ShardId) -> Result<Option<Lease>, TableError> {
        if self.is_unanswered() { Err(Self::unavailable()) } else { self.rows.get(shard_id).await }
    }

    async fn create(&self, lease: &Lease) -> Result<bool, TableError> {
        self.rows.create(lease).await
    }

    async fn write(&self, write: &LeaseWrite) -> Result<WriteOutcome, TableError> {
        let number = {
            let mut writes = self.writes.lock().unwrap();
            writes.push(write.clone());
            writes.len() as u64
        };
        let races = {
            let mut left = self.taken_before.lock().unwrap();
            let races = *left > 0;
            *left = left.saturating_sub(1);
            races
        };
        if races {
            let seen = self.rows.get(&write.shard_id).await?.unwrap();
            let taker = WorkerId::from(format!("taker-{number}"));
            let _ = self.rows.write(&LeaseWrite::take(&seen, &taker, WriteId(number))).await?;
        }
        let answer = self.rows.write(write).await?;
        if self.is_unanswered() { Err(Self::unavailable()) } else { Ok(answer) }
    }

    async fn transact(&self, write: &LeaseWrite, with: &TransactItems) -> Result<TransactOutcome, TableError> {
        self.rows.transact(write, with).await
    }

    async fn delete(&self, seen: &Lease) -> Result<bool, TableError> {
        self.rows.delete(seen).await
    }
}

fn shard(number: u32) -> ShardId {
    format!("shardId-{number:012}").into()
}

fn stop(millis: u64) -> Stopped {
    Stopped { reason: StopReason::SafetyValve, since: Timestamp::from_millis(millis) }
}

/// Shards 1 and 3 are stopped; 2 is not; 4 is finished.
async fn world() -> (Arc<Table>, Stops) {
    let table = Arc::new(Table::default());
    for (number, stopped, checkpoint) in [
        (1, Some(stop(1)), Checkpoint::TrimHorizon),
        (2, None, Checkpoint::TrimHorizon),
        (3, Some(stop(3)), Checkpoint::Latest),
        (4, Some(stop(4)), Checkpoint::ShardEnd),
    ] {
        let owner = (number == 1).then(|| "a".into());
        let lease = Lease { stopped, owner, counter: 7, ..Lease::new(shard(number), checkpoint) };
        assert!(table.create(&lease).await.unwrap());
    }
    let stops = Stops::new("orders-app").lease_table(Arc::<Table>::clone(&table)).entropy(Entropy::from_seed(1));
    (table, stops)
}

async fn row(table: &Table, number: u32) -> Lease {
    table.rows.get(&shard(number)).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_stopped_shards_are_listed_and_resumed_one_or_all() {
    let (table, stops) = world().await;
    let listed = stops.list().await.unwrap();
    let expected = StoppedShard { shard_id: shard(1), stopped: stop(1), owner: Some("a".into()), checkpoint: Checkpoint::TrimHorizon };
    assert_eq!(listed.stopped[0], expected);
    assert_eq!(listed.stopped.iter().map(|stopped| stopped.shard_id.clone()).collect::<Vec<_>>(), [shard(1), shard(3)]);

    let before = row(&table, 1).await;
    assert_eq!(stops.resume(&shard(1)).await.unwrap(), Some(expected));
    assert_eq!(row(&table, 1).await, Lease { stopped: None, ..before }, "neither counter nor owner is touched");
    assert_eq!(stops.resume(&shard(1)).await.unwrap(), None);
    assert_eq!(stops.resume(&shard(2)).await.unwrap(), None);
    assert!(matches!(stops.resume(&shard(9)).await, Err(StopsError::NoSuchShard { shard: missing, .. }) if missing == shard(9)));

    let resumed = stops.resume_all().await.unwrap();
    assert_eq!(resumed.iter().map(|stopped| stopped.shard_id.clone()).collect::<Vec<_>>(), [shard(3)]);
    assert_eq!(stops.list().await.unwrap(), StopList::default());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_changes_hands_is_looked_at_again() {
    let (table, stops) = world().await;
    *table.taken_before.lock().unwrap() = 2;
    assert!(stops.resume(&shard(1)).await.unwrap().is_some());
    assert_eq!((row(&table, 1).await.stopped, row(&table, 1).await.counter), (None, 9));

    *table.taken_before.lock().unwrap() = 100;
    assert!(matches!(stops.resume(&shard(3)).await, Err(StopsError::Contended { .. })));
    assert_eq!(row(&table, 3).await.stopped, Some(stop(3)));
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_away_is_waited_for_and_the_write_that_was_lost_recognised() {
    let (table, stops) = world().await;
    *table.unanswered.lock().unwrap() = 4;
    assert!(stops.list().await.is_ok());
    // The first write takes effect and gets no answer.
    let seen = row(&table, 1).await;
    *table.unanswered.lock().unwrap() = 1;
    assert!(stops.resume_seen(table.as_ref(), seen).await.unwrap().is_some());
    let writes = table.writes.lock().unwrap().clone();
    assert_eq!(writes.len(), 2);
    assert_eq!(writes[0], writes[1]);

    *table.unanswered.lock().unwrap() = u32::MAX;
    let begun = Instant::now();
    assert!(matches!(stops.list().await, Err(StopsError::Table(TableError::Unavailable { .. }))));
    assert!(begun.elapsed() <= PATIENCE && begun.elapsed() > PATIENCE - LONGEST_WAIT, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn names_that_no_table_can_have_are_refused() {
    let (table, _) = world().await;
    let stops = Stops::new("a b").lease_table(table);
    assert!(matches!(stops.list().await, Err(StopsError::Config(_))));
    assert!(matches!(Stops::new("orders-app").list().await, Err(StopsError::Config(error)) if error.setting == "aws_config"));
}
