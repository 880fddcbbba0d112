//! The users' database. The oracle believes what it holds, and nothing that a processor says.

use std::sync::Arc;
use std::time::Duration;

use kcl_core::test_util::Host;
use kcl_core::{Entropy, ExtendedSequenceNumber, Record, ShardInfo};
use tokio::time::sleep;

use crate::simulation::oracle::Judge;
use crate::simulation::plan::Plan;
use crate::simulation::publisher::{Kind, kind_of};
use crate::simulation::users::A_BUG_OF_THE_SERVICE;

/// A record as the database stores it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) position: ExtendedSequenceNumber,
    pub(super) kind: Kind,
}

impl From<&Record> for Row {
    fn from(record: &Record) -> Self {
        Self { position: record.position(), kind: kind_of(record.data()) }
    }
}

/// A record that can't be parsed.
#[derive(Debug, thiserror::Error)]
#[error("the order can't be read")]
pub(super) struct Unreadable;

impl Row {
    /// Parses a record, as a service does before it writes.
    pub(super) fn parse(record: &Record) -> Result<Self, Unreadable> {
        let row = Self::from(record);
        if row.kind == Kind::Panicking {
            std::panic::panic_any(A_BUG_OF_THE_SERVICE);
        }
        if row.kind == Kind::Poison { Err(Unreadable) } else { Ok(row) }
    }
}

/// A failed call of the database.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    #[error("the database is away")]
    Away,
    /// The rows may be stored all the same.
    #[error("the database did not answer in time")]
    TimedOut,
    /// Nothing is stored.
    #[error("the database refuses a row")]
    Rejected,
}

/// A connection to the database from one process. Clones share it.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) judge: Judge,
    pub(super) host: Host,
    pub(super) entropy: Entropy,
    pub(super) plan: Arc<Plan>,
}

impl Database {
    /// Stores rows: all of them, or none.
    pub(super) async fn insert(&self, shard: &ShardInfo, rows: &[Row]) -> Result<(), DatabaseError> {
        let plan = &self.plan.handling.database;
        let mut time = self.entropy.between(Duration::ZERO, plan.latency);
        if self.happens(plan.stalls) {
            time += self.entropy.between(Duration::ZERO, plan.stall);
        }
        // A crash comes before the effect as well as after it.
        sleep(time / 2).await;
        self.reach().await?;
        if self.happens(plan.errors) {
            return Err(DatabaseError::Away);
        }
        self.check(rows).await?;
        for row in rows {
            self.judge.effect(self.host.name(), shard.shard_id(), row.position);
        }
        sleep(time / 2).await;
        if self.happens(plan.lost_answers) {
            return Err(DatabaseError::TimedOut);
        }
        Ok(())
    }

    /// Checks rows against the database's rules, without storing them.
    pub(super) async fn check(&self, rows: &[Row]) -> Result<(), DatabaseError> {
        if rows.iter().any(|row| row.kind == Kind::Killer) {
            self.judge.note("process killed by its record");
            self.host.kill();
            std::future::pending::<()>().await;
        }
        if rows.iter().any(|row| row.kind == Kind::Panicking) {
            self.judge.note("record panics");
            std::panic::panic_any(A_BUG_OF_THE_SERVICE);
        }
        let is_good = |row: &Row| matches!(row.kind, Kind::Good | Kind::Broken);
        if rows.iter().all(is_good) { Ok(()) } else { Err(DatabaseError::Rejected) }
    }

    /// Fails while the database is away: at once, or after a timeout.
    async fn reach(&self) -> Result<(), DatabaseError> {
        let now = self.judge.now();
        let outages = &self.plan.handling.database.outages;
        if !outages.iter().any(|(from, to)| (*from..*to).contains(&now)) {
            return Ok(());
        }
        if self.entropy.u64().is_multiple_of(2) {
            sleep(Duration::from_secs(5)).await;
            return Err(DatabaseError::TimedOut);
        }
        Err(DatabaseError::Away)
    }

    fn happens(&self, rate: f64) -> bool {
        rate > 0.0 && self.entropy.fraction() < rate
    }
}
