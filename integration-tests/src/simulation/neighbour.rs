//! Another application that reads the same shards: the service counts its reads together with ours.

use std::time::Duration;

use kcl_core::test_util::SimulatedAws;
use kcl_core::test_util::kinesis_model::{GetRecordsInput, GetShardIteratorInput, ShardIteratorType};
use tokio::time::sleep;

use super::publisher::STREAM;
use super::run::Simulation;

impl Simulation {
    /// Lets another application read each open shard so often a second, until the disturbance is over.
    pub(super) fn neighbour_reads(&mut self, per_second: u32) {
        let (aws, judge) = (self.aws.clone(), self.judge.clone());
        self.neighbours.spawn(async move {
            while !judge.is_calm() {
                for shard in aws.shards(STREAM).unwrap_or_default().iter().filter(|shard| shard.is_open()) {
                    read(&aws, shard.shard_id.as_str());
                }
                sleep(Duration::from_secs(1) / per_second.max(1)).await;
            }
        });
    }
}

/// One read at the tip. It may be throttled as well: that is its own concern.
fn read(aws: &SimulatedAws, shard: &str) {
    let (stream_name, shard_iterator_type) = (Some(STREAM.to_owned()), ShardIteratorType::Latest);
    let input = GetShardIteratorInput { stream_name, shard_id: shard.to_owned(), shard_iterator_type, ..Default::default() };
    if let Ok(output) = aws.kinesis().call(input) {
        let _ = aws.kinesis().call(GetRecordsInput { shard_iterator: output.shard_iterator, limit: Some(1), stream_arn: None });
    }
}
