//! The last calls that a processor gets: the shard's end, or that the shard is not its any more, and never both.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kcl_core::test_util::kinesis_model::SplitShardInput;
use kcl_core::{
    Checkpointing, Lanes, Outcome, ProcessError, ProcessResult, RecordBatch, RecordProcessor, ShardContext, ShardInfo, WorkerBuilder,
    async_trait,
};
use tokio::time::sleep;

use super::service::{APPLICATION, STREAM, Scene, Tells, shard, until};

/// Tells which calls came for the first shard, each once in a row.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<&'static str>>>);

impl Told {
    fn note(&self, about: &ShardInfo, call: &'static str) {
        let mut calls = self.0.lock().unwrap();
        if *about.shard_id() == shard() && calls.last() != Some(&call) {
            calls.push(call);
        }
    }

    fn calls(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl RecordProcessor for Told {
    async fn process_records(&mut self, _batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.note(shard, "records");
        Ok(Outcome::Done)
    }

    async fn lease_lost(&mut self, shard: &ShardInfo) {
        self.note(shard, "lease lost");
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.note(shard, "shard ended");
        Ok(shard.checkpointer().checkpoint().await?)
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.note(shard, "shutdown requested");
        Ok(shard.checkpointer().checkpoint().await?)
    }
}

/// Leaves the checkpoint to the framework.
struct Relying(Told);

#[async_trait]
impl RecordProcessor for Relying {
    async fn process_records(&mut self, batch: &RecordBatch, shard: &ShardContext) -> ProcessResult {
        self.0.process_records(batch, shard).await
    }

    async fn lease_lost(&mut self, shard: &ShardInfo) {
        self.0.lease_lost(shard).await;
    }

    async fn shard_ended(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.0.note(shard, "shard ended");
        Ok(())
    }

    async fn shutdown_requested(&mut self, shard: &ShardContext) -> Result<(), ProcessError> {
        self.0.note(shard, "shutdown requested");
        Ok(())
    }
}

fn telling(told: &Told, manual: bool, lanes: usize) -> impl FnOnce(WorkerBuilder) -> WorkerBuilder + use<> {
    let told = told.clone();
    move |builder| {
        if manual {
            builder.checkpointing(Checkpointing::Manual).processor(move |_: &ShardContext| told.clone())
        } else {
            builder.lanes(Lanes::new(lanes)).processor(move |_: &ShardContext| Relying(told.clone()))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_its_shard_a_processor_is_told_of_that_alone() {
    for (manual, lanes) in [(false, 1), (false, 4), (true, 1)] {
        let (mut scene, told) = (Scene::new(1, Tells::InOrder), Told::default());
        for key in ["a", "b", "c", "d", "e"] {
            scene.put(key, "good");
        }
        let running = scene.start(telling(&told, manual, lanes)).await;
        until("it has records", || told.calls() == ["records"]).await;
        let split = SplitShardInput {
            stream_name: Some(STREAM.to_owned()),
            shard_to_split: shard().to_string(),
            new_starting_hash_key: (1u128 << 127).to_string(),
            ..SplitShardInput::default()
        };
        scene.aws.kinesis().call(split).unwrap();
        let ended = || scene.aws.leases(APPLICATION).iter().any(|lease| lease.shard_id == shard() && lease.checkpoint.is_shard_end());
        until("the shard is ended", ended).await;
        sleep(Duration::from_secs(30)).await;
        assert_eq!(told.calls(), ["records", "shard ended"], "manual: {manual}, lanes: {lanes}");
        scene.stop(running).await;
        assert_eq!(told.calls(), ["records", "shard ended"], "manual: {manual}, lanes: {lanes}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_its_shard_goes_a_processor_is_told_so() {
    for manual in [false, true] {
        let (mut scene, told) = (Scene::new(2, Tells::InOrder), Told::default());
        scene.put("a", "good");
        let running = scene.start(telling(&told, manual, 1)).await;
        until("it has records", || told.calls() == ["records"]).await;
        scene.stop(running).await;
        assert_eq!(told.calls(), ["records", "shutdown requested", "lease lost"], "manual: {manual}");
    }
}
