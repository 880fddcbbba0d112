//! Commits that leave out older records: they are refused, as the checkpoint would cover what they leave out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::{CommitError, Outcome, ProcessError, ProcessResult, Record, RecordBatch, RecordProcessor, ShardContext, async_trait};
use tokio::time::timeout;

use super::scene::{Mishap, Scene, Service, until};

const MACHINE: &str = "m";

/// A mistake that a processor makes in its first call; later ones commit all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// It does not wait for its first commit, and goes on.
    GoesOn,
    /// It commits both halves beside each other, the later one first.
    Reversed,
    /// It commits the later half alone.
    LeavesOut,
    /// It forgets what it has collected in calls before.
    Forgets,
}

#[derive(Clone)]
struct Wrongly {
    wrong: Wrong,
    service: Service,
    collected: Vec<Record>,
    refused: Arc<Mutex<Vec<CommitError>>>,
    called: Arc<AtomicBool>,
}

impl Wrongly {
    async fn commit(&self, shard: &ShardContext, records: &[Record]) -> Result<(), CommitError> {
        shard.commit(records.iter().map(|record| self.service.effect(record)).collect(), records).await
    }

    fn note(&self, committed: Result<(), CommitError>) {
        self.refused.lock().unwrap().extend(committed.err());
    }
}

#[async_trait]
impl RecordProcessor for Wrongly {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        let records = batch.records();
        self.called.store(true, Ordering::Relaxed);
        if !self.refused.lock().unwrap().is_empty() {
            let all: Vec<_> = self.collected.drain(..).chain(records.iter().cloned()).collect();
            self.commit(shard, &all).await?;
            return Ok(Outcome::Done);
        }
        let (first, second) = records.split_at(records.len() / 2);
        match self.wrong {
            Wrong::GoesOn => {
                assert!(timeout(Duration::ZERO, self.commit(shard, first)).await.is_err());
                self.note(self.commit(shard, second).await);
            }
            Wrong::Reversed => {
                let (later, earlier) = tokio::join!(self.commit(shard, second), self.commit(shard, first));
                earlier?;
                self.note(later);
            }
            Wrong::LeavesOut => self.note(self.commit(shard, second).await),
            Wrong::Forgets if self.collected.is_empty() => {
                self.collected.extend(records.iter().cloned());
                return Ok(Outcome::Done);
            }
            Wrong::Forgets => self.note(self.commit(shard, records).await),
        }
        Err(ProcessError::retry("not all is committed"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_leaves_out_older_records_is_refused_and_nothing_is_lost() {
    for wrong in [Wrong::GoesOn, Wrong::Reversed, Wrong::LeavesOut, Wrong::Forgets] {
        // With manual checkpoints, and with automatic ones, where what earlier calls have returned is finished.
        for seed in if wrong == Wrong::Forgets { 2..=2 } else { 2..=3 } {
            let mut scene = Scene::new(seed, 1);
            scene.publish(6);
            let service = Service::new(1, (Mishap::Nothing, 1));
            let made = Wrongly { wrong, service: service.clone(), collected: Vec::new(), refused: Arc::default(), called: Arc::default() };
            let (refused, called) = (Arc::clone(&made.refused), Arc::clone(&made.called));
            let running = scene.start(MACHINE, &service, |builder| {
                let made = made.clone();
                builder.processor(move |_: &ShardContext| made.clone())
            });
            let running = running.await;
            until("it was called", || called.load(Ordering::Relaxed)).await;
            scene.publish(6);
            scene.settle().await;
            scene.assert_once(&format!("{wrong:?} {seed}"));
            let refused = std::mem::take(&mut *refused.lock().unwrap());
            assert!(matches!(refused[..], [CommitError::OutOfTurn { first, oldest }] if first > oldest), "{wrong:?} {seed}: {refused:?}");
            running.handle.shutdown();
        }
    }
}
